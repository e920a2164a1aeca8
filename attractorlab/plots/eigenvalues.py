"""Pictures of a Spectrum: eigenvalues against the unit circle."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from attractorlab.plots.theme import (
    GREY,
    add_level,
    counted,
    faded,
    finish,
    joined,
    nothing,
    panels,
    plain,
    share_of,
    source,
    styles,
    unit_circle,
)
from attractorlab.types import Spectrum

MAX_MARKERS, MAX_LINES = 2400, 60


def spectrum(spec: Spectrum, *, groups: Sequence[str] | None = None) -> go.Figure:
    """Eigenvalues in the complex plane with the unit circle, and their moduli in order.

    A map is stable where all of them lie inside the circle. Whiskers show the error, where it
    is large enough to be seen; the numbers are in the hover text, and the word for one that a law makes exact.

    Args:
        spec: What to draw.
        groups: A word for each point to colour by, e.g. solved and wrong. Without it the verdicts are used.

    Returns:
        A figure of two panels, the first with equal scales on both axes.

    Raises:
        ValueError: If `groups` has not one word for each point.
    """
    points, modes = spec.eigenvalues.shape
    if groups is not None and len(groups) != points:
        raise ValueError(
            f"`spectrum` got {len(groups)} groups for {points} points. Every point belongs to one group. "
            "Pass one word for each point, or leave out `groups` to colour by verdict."
        )
    title = "Leading eigenvalues of the Jacobian"
    facts = [
        source(spec.origin.model, spec.origin.dtype),
        f"n = {counted(points, 'point')}, {counted(modes, 'eigenvalue')} each",
        f"clock: {plain(spec.clock)}",
    ]
    facts.append(f"method: {plain(spec.method)}")
    values = spec.eigenvalues.detach().cpu().numpy()
    if not np.isfinite(values).any():
        return nothing(title, reason="no eigenvalue was found", facts=facts)
    words = np.array([word.split("(")[0] for word in spec.verdict] if groups is None else list(groups), dtype=object)
    error = spec.error.detach().cpu().numpy().astype(np.float32)
    named = np.array(spec.named, dtype=object).reshape(points, modes)
    reach = max(1.08, 1.08 * float(np.abs(values[np.isfinite(values)]).max()))
    drawn = share_of(words.tolist(), limit=max(1, MAX_MARKERS // modes))
    lines = share_of(words.tolist(), limit=MAX_LINES)
    fig = panels(1, 2, titles=("complex plane", "moduli, largest first"), column_widths=[0.5, 0.5], horizontal_spacing=0.13)
    x, y = unit_circle()
    fig.add_scatter(x=x, y=y, mode="lines", line=dict(color=GREY, width=1.5), name="unit circle", hoverinfo="skip", row=1, col=1)
    moduli = np.abs(values).astype(np.float32)
    for word, style in styles(words.tolist()).items():
        mine = np.intersect1d(np.flatnonzero(words == word), drawn)
        flat, off = values[mine].ravel(), error[mine].ravel()
        known = np.isfinite(flat)
        flat, off, names = flat[known], off[known], named[mine].ravel()[known]
        about = np.repeat(mine, modes)[known]
        plane = dict(x=flat.real.astype(np.float32), y=flat.imag.astype(np.float32))
        fig.add_scatter(
            **plane,
            mode="markers",
            name=f"{plain(word)} ({counted(int((words == word).sum()), 'point')})",
            legendgroup=word,
            marker=dict(
                color=style.colour,
                symbol=style.symbol,
                size=6 if len(flat) > 200 else 8,
                opacity=0.75,
                line=dict(width=0.5, color=faded(GREY, 0.6)),
            ),
            customdata=np.stack([about, np.nan_to_num(off, posinf=np.inf)], 1).astype(np.float32),
            text=[f"<br>{name} direction" if name else "" for name in names] if any(names) else None,
            row=1,
            col=1,
            hovertemplate="point %{customdata[0]}: %{x:.4f} + %{y:.4f}i<br>error about %{customdata[1]:.1e}"
            + ("%{text}" if any(names) else "")
            + "<extra>%{fullData.name}</extra>",
        )
        seen = np.isfinite(off) & (off > 0.005 * reach)
        if seen.any():
            bar = dict(type="data", array=np.minimum(off[seen], 2 * reach), color=faded(style.colour, 0.4), thickness=1, width=0)
            fig.add_scatter(
                x=plane["x"][seen],
                y=plane["y"][seen],
                error_x=bar,
                error_y=bar,
                mode="markers",
                marker=dict(size=1, color=style.colour),
                hoverinfo="skip",
                showlegend=False,
                legendgroup=word,
                row=1,
                col=1,
            )
        _moduli(fig, moduli, np.intersect1d(np.flatnonzero(words == word), lines), np.flatnonzero(words == word), word)
    add_level(fig, x=[0.7, modes + 0.3], y=1.0, name="modulus 1", dash="solid", row=1, col=2)
    fig.data[-1].showlegend = False
    side = dict(range=[-reach, reach], constrain="domain")
    fig.update_xaxes(title="real part", **side, row=1, col=1)
    fig.update_yaxes(title="imaginary part", scaleanchor="x", scaleratio=1, **side, row=1, col=1)
    fig.update_xaxes(title="order", range=[0.7, modes + 0.3], dtick=1 if modes <= 16 else None, row=1, col=2)
    fig.update_yaxes(title=f"modulus per {plain(spec.clock)}", rangemode="tozero", row=1, col=2)
    facts.append(f"{len(drawn)} points drawn" if len(drawn) < points else "")
    return finish(fig, title=title, facts=facts, height=470)


def _moduli(fig: go.Figure, moduli: np.ndarray, thin: np.ndarray, rows: np.ndarray, word: str) -> None:
    """Thin lines of some points and the bold median of all points of a group."""
    style = styles([word])[word]
    order = np.arange(1, moduli.shape[1] + 1)
    x, y = joined(order, moduli[thin].T)
    look = dict(legendgroup=word, showlegend=False, row=1, col=2)
    fig.add_scatter(x=x, y=y, mode="lines", line=dict(color=faded(style.colour, 0.35), width=0.8), hoverinfo="skip", **look)
    some = np.isfinite(moduli[rows]).any(0)
    middle = np.nanmedian(moduli[rows][:, some], axis=0)
    fig.add_scatter(
        x=order[some],
        y=middle,
        mode="lines+markers",
        line=dict(color=style.colour, width=2.5, dash=style.dash),
        marker=dict(symbol=style.symbol, size=7),
        name=plain(word),
        hovertemplate="median of %{fullData.name}, order %{x}: %{y:.4f}<extra></extra>",
        **look,
    )
