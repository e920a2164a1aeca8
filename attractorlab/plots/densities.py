"""Pictures of a TraceEstimate and a SpectralDensity: traces with their intervals, and how singular values are distributed."""

import numpy as np
import plotly.graph_objects as go
import torch

from attractorlab.plots.theme import (
    BLUE,
    CATEGORICAL,
    PURPLE,
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
from attractorlab.types import SpectralDensity, TraceEstimate

MAX_OWN = 6  # points whose intervals can be told apart
MAX_LINES = 60


def traces(est: TraceEstimate, *, level: float = 0.95) -> go.Figure:
    """tr Jᵏ over k, and ‖J‖_F of each point, with Student's intervals.

    tr Jᵏ is the sum of the k-th powers of all eigenvalues: where they all lie well inside the unit circle it falls to 0. At most six points are drawn, evenly spaced; of ‖J‖_F at most sixty.

    Args:
        est: What to draw.
        level: Coverage of the intervals.

    Returns:
        A figure of two panels.
    """
    points, powers = est.traces.shape
    title = "Traces of powers of the Jacobian"
    facts = [source(est.origin.model, est.origin.dtype), f"n = {counted(points, 'point')}", f"clock: {plain(est.clock)}"]
    facts.append("exact" if est.exact else f"{counted(est.probes, 'probe')} by {plain(est.method)}, whiskers: {level:.0%} Student's intervals")
    values = array(est.traces)
    if not np.isfinite(values).any():
        return nothing(title, reason="no trace is a finite number", facts=facts)
    half = (est.interval(level=level)[1] - est.traces).nan_to_num(nan=0.0, posinf=0.0)
    # As many errors to either side as for the traces: the degrees of freedom are the same.
    wide = est.frobenius_error * (half / est.standard_error.clamp(min=1e-300)).flatten().max() if not est.exact and half.numel() else est.frobenius_error
    fig = panels(1, 2, titles=("tr Jᵏ", "‖J‖_F"), horizontal_spacing=0.12)
    drawn = thinned(points, limit=MAX_OWN)
    k = np.arange(1, powers + 1, dtype=np.float32)
    for i, point in enumerate(drawn.tolist()):
        known = np.isfinite(values[point])
        fig.add_scatter(
            x=k[known],
            y=values[point][known],
            error_y=dict(type="data", array=array(half[point])[known], thickness=1.2, width=3),
            mode="lines+markers",
            name=f"point {point}",
            line=dict(color=CATEGORICAL[i % len(CATEGORICAL)], width=1.5),
            marker=dict(symbol=("circle", "diamond", "square", "triangle-up", "cross", "x")[i % 6], size=8),
            hovertemplate="%{fullData.name}, k = %{x}: %{y:.4g}<extra></extra>",
            row=1,
            col=1,
        )
    add_level(fig, x=[0.7, powers + 0.3], y=0.0, name="0", dash="solid", row=1, col=1)
    fig.data[-1].showlegend = False
    some = thinned(points, limit=MAX_LINES)
    norm, error = array(est.frobenius)[some], array(wide.nan_to_num(nan=0.0, posinf=0.0))[some]
    known = np.isfinite(norm)
    look = dict(mode="markers", marker=dict(color=BLUE, size=7), showlegend=False, hovertemplate="point %{x}: %{y:.4g}<extra></extra>")
    whisker = dict(type="data", array=error[known], thickness=1, width=2, color=faded(BLUE, 0.6))
    fig.add_scatter(x=some[known].astype(np.int32), y=norm[known], error_y=whisker, name="‖J‖_F", **look, row=1, col=2)
    fig.update_xaxes(title="power k", range=[0.7, powers + 0.3], dtick=1 if powers <= 16 else None, row=1, col=1)
    fig.update_yaxes(title=f"trace per {plain(est.clock)}", row=1, col=1)
    fig.update_xaxes(title="point", row=1, col=2)
    fig.update_yaxes(title="Frobenius norm", rangemode="tozero", row=1, col=2)
    facts.append(f"{len(drawn)} points drawn" if len(drawn) < points else "")
    return finish(fig, title=title, facts=facts, height=450)


def density(found: SpectralDensity, *, bins: int = 40) -> go.Figure:
    """The share of singular values, or of eigenvalues of the symmetric part, by size: a histogram over all points and the cumulative share of each.

    Args:
        found: What to draw.
        bins: How many bins of equal width; more than there are nodes show the nodes.

    Returns:
        A figure of two panels.
    """
    points = len(found.nodes)
    word = "singular value" if found.kind == "singular values" else "eigenvalue of (J + Jᵀ)/2"
    title = "Density of the singular values of the Jacobian" if found.kind == "singular values" else "Density of the symmetric part of the Jacobian"
    facts = [source(found.origin.model, found.origin.dtype), f"n = {counted(points, 'point')}", f"clock: {plain(found.clock)}"]
    _, probes, nodes = found.nodes.shape
    facts.append("all values" if found.exact else f"{counted(probes, 'probe')} of {counted(nodes, 'node')} each for {found.size:,} values")
    fine = found.nodes.flatten(1).isfinite().all(1)
    if not bool(fine.any()):
        return nothing(title, reason="no quadrature is finite", facts=facts)
    low, high = float(found.nodes[fine].min()), float(found.nodes[fine].max())
    room = max(1e-9, 0.02 * (high - low), 1e-3 * abs(high))
    edges = torch.linspace(low - room, high + room, bins + 1, dtype=torch.float64)
    shares = found.histogram(edges)[fine].mean(0)
    fig = panels(1, 2, titles=("share in each bin, mean over points", "share up to it"), horizontal_spacing=0.12)
    fig.add_bar(
        x=array((edges[:-1] + edges[1:]) / 2),
        y=array(shares),
        width=float(edges[1] - edges[0]),
        marker=dict(color=faded(PURPLE, 0.75), line=dict(width=0)),
        name="share",
        showlegend=False,
        hovertemplate="%{x:.4g}: %{y:.2%}<extra></extra>",
        row=1,
        col=1,
    )
    x = torch.linspace(low - room, high + room, 201, dtype=torch.float64)
    share = array(found.cdf(x)[fine])
    one, y = joined(array(x), share[thinned(len(share), limit=MAX_LINES)].T)
    look = dict(mode="lines", line=dict(color=faded(PURPLE, 0.35), width=0.8, shape="hv"), hoverinfo="skip", showlegend=False)
    fig.add_scatter(x=one, y=y, name="points", **look, row=1, col=2)
    middle = dict(color=PURPLE, width=2.5, shape="hv")
    name = "median of points" if len(share) > 1 else "share"
    hover = f"%{{y:.1%}} of all are up to %{{x:.4g}}<extra>{name}</extra>"
    fig.add_scatter(x=array(x), y=np.median(share, axis=0), mode="lines", line=middle, name=name, showlegend=False, hovertemplate=hover, row=1, col=2)
    for col in (1, 2):
        fig.update_xaxes(title=f"{word} per {plain(found.clock)}", row=1, col=col)
    fig.update_yaxes(title="share of all values", tickformat=".0%", rangemode="tozero", row=1, col=1)
    fig.update_yaxes(title="share of all values", range=[-0.03, 1.03], tickformat=".0%", row=1, col=2)
    facts.append("lines: points, bold: their median" if len(share) > 1 else "")
    facts.append(f"{int((~fine).sum())} points without numbers left out" if not bool(fine.all()) else "")
    return finish(fig, title=title, facts=facts, height=450)
