"""Pictures of a NonNormality: how far disturbances grow before they die out, and how far eigenvalues move when the Jacobian is disturbed."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.plots.theme import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    add_band,
    add_level,
    array,
    counted,
    faded,
    finish,
    joined,
    nothing,
    panels,
    plain,
    source,
    thinned,
)
from attractorlab.types import NonNormality

MAX_LINES = 60


def non_normality(nonn: NonNormality, *, radius: Float[Tensor, " point"] | None = None) -> go.Figure:
    """‖Jᵏ‖₂ over the ticks k, beside what the spectral radius alone says, and the pseudospectral radius for each size of disturbance.

    Where growth rises above 1 before it falls, some disturbance is amplified although all eigenvalues lie inside the circle. Bold lines are medians over the points, bands their 10-90 % range.

    Args:
        nonn: What to draw.
        radius: The spectral radius of each point, e.g. `Spectrum.radius`: its powers ρᵏ are what a normal Jacobian would do.

    Returns:
        A figure of two panels with logarithmic axes.

    Raises:
        ValueError: If `radius` has not one number for each point.
    """
    points, powers = nonn.transient_growth.shape
    if radius is not None and len(radius) != points:
        raise ValueError(
            f"`non_normality` got {len(radius)} radii for {points} points. Every point has one. Pass `spectrum(f, z, k=4).radius` of the same points."
        )
    title = "Transient growth of disturbances"
    facts = [
        source(nonn.origin.model, nonn.origin.dtype),
        f"n = {counted(points, 'point')}",
        f"clock: {plain(nonn.clock)}",
        f"‖J‖₂ up to {float(nonn.sigma_max[nonn.sigma_max.isfinite()].max()):.3g}" if bool(nonn.sigma_max.isfinite().any()) else "",
    ]
    growth = array(nonn.transient_growth)
    if not np.isfinite(growth).any():
        return nothing(title, reason="no norm is a finite number", facts=facts)
    fig = panels(1, 2, titles=("‖Jᵏ‖₂", "pseudospectral radius"), horizontal_spacing=0.13)
    k = np.arange(powers, dtype=np.float32)
    _curves(fig, k, growth, "‖Jᵏ‖₂", BLUE, "solid", col=1)
    if radius is not None:
        rho = array(radius)
        _curves(fig, k, rho[:, None] ** k, "ρᵏ", VERMILION, "dash", col=1)
    add_level(fig, x=[0.0, max(1.0, powers - 1.0)], y=1.0, name="no growth", dash="dot", row=1, col=1)
    moved, sizes = array(nonn.pseudospectral_radius), np.array(nonn.epsilons, dtype=np.float32)
    if len(sizes) and np.isfinite(moved).any():
        order = sizes.argsort()
        _curves(fig, sizes[order], moved[:, order], "lower bound" if nonn.pseudospectral_bound else "pseudospectral radius", ORANGE, "solid", col=2)
        add_level(fig, x=[float(sizes.min()), float(sizes.max())], y=1.0, name="unit circle", dash="solid", row=1, col=2)
        if radius is not None and np.isfinite(rho).any():
            add_level(fig, x=[float(sizes.min()), float(sizes.max())], y=float(np.nanmedian(rho)), name="median radius ρ", row=1, col=2)
        fig.update_xaxes(title="‖E‖₂ of the disturbance J + E", type="log", exponentformat="power", row=1, col=2)
        fig.update_yaxes(title="largest |λ| of J + E", type="log", row=1, col=2)
    else:
        fig.add_annotation(text="no disturbance was asked for, or none was seen", showarrow=False, font=dict(color=GREY), x=0.5, y=0.5, xref="x2 domain", yref="y2 domain")
        fig.update_xaxes(title="‖E‖₂ of the disturbance J + E", row=1, col=2)
    fig.update_xaxes(title=f"ticks k (clock: {plain(nonn.clock)})", row=1, col=1)
    fig.update_yaxes(title="largest amplification", type="log", exponentformat="power", row=1, col=1)
    facts.append("medians, bands: 10-90 % of points" if points > 1 else "")
    facts.append("pseudospectral radius: lower bound" if nonn.pseudospectral_bound and len(sizes) else "")
    return finish(fig, title=title, facts=facts, height=450)


def _curves(fig: go.Figure, x: NDArray[np.float32], values: NDArray[np.float32], name: str, colour: str, dash: str, *, col: int) -> None:
    """The points as thin lines, their median in bold and the middle 80 % as a band; what a logarithmic axis cannot show is left out."""
    known = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    some = np.isfinite(known).any(0)
    if not some.any():
        return
    where = dict(row=1, col=col)
    if len(known) > 1:
        thin, y = joined(x, known[thinned(len(known), limit=MAX_LINES)].T)
        look = dict(mode="lines", line=dict(color=faded(colour, 0.25), width=0.8, dash=dash), hoverinfo="skip", showlegend=False)
        fig.add_scatter(x=thin, y=y, legendgroup=name, **look, **where)
    low, middle, high = np.nanquantile(known[:, some], (0.1, 0.5, 0.9), axis=0).astype(np.float32)
    if len(known) > 1:
        add_band(fig, x=x[some], low=low, high=high, colour=colour, group=name, **where)
    fig.add_scatter(
        x=x[some],
        y=middle,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        line=dict(color=colour, width=2.5, dash=dash),
        marker=dict(color=colour, size=7, symbol="circle" if dash == "solid" else "diamond"),
        hovertemplate="%{fullData.name} at %{x:.3g}: median %{y:.4g}<extra></extra>",
        **where,
    )
