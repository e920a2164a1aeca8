"""Pictures of a LyapunovEstimate: exponents with their intervals, and how they settle over the run."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from attractorlab.plots.theme import (
    CATEGORICAL,
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
    run_facts,
    shade,
    thinned,
)
from attractorlab.types import LyapunovEstimate

MAX_OWN = 6  # rows whose intervals can be told apart
MAX_LINES, MAX_MODES, MAX_TICKS = 60, 8, 400


def lyapunov(lyap: LyapunovEstimate, *, level: float = 0.95) -> go.Figure:
    """Exponents in the order of the frame with their intervals, and the running mean of the growth they are the end of.

    Above 0 neighbours drift apart. Up to six rows are drawn one by one with Student's intervals; of more, the median and the 10-90 % range over the rows. A running
    mean that still slopes at its end has not arrived.

    Args:
        lyap: What to draw.
        level: Coverage of the intervals.

    Returns:
        A figure of two panels.
    """
    rows, modes = lyap.exponents.shape
    title = "Lyapunov exponents"
    facts = run_facts(lyap.instance, clock=lyap.clock, model=lyap.origin.model, dtype=lyap.origin.dtype)
    facts.append(f"{counted(len(lyap.growth), 'tick')} after {lyap.transient:,}")
    values = array(lyap.exponents)
    if not np.isfinite(values).any():
        return nothing(title, reason="no exponent is a finite number", facts=facts)
    fig = panels(1, 2, titles=("exponents", "running mean of the growth"), horizontal_spacing=0.12)
    order = np.arange(1, modes + 1, dtype=np.float32)
    if rows <= MAX_OWN:
        low, high = (array(side) for side in lyap.interval(level=level))
        facts.append(f"whiskers: {level:.0%} Student's intervals" if np.isfinite(low).any() else "no intervals below 16 ticks")
        for row in range(rows):
            _dots(fig, order, values[row], low[row], high[row], f"instance {int(lyap.instance[row])}, start {int(lyap.start[row])}", row, rows)
    else:
        known = np.where(np.isfinite(values), values, np.nan)
        some = np.isfinite(known).any(0)
        low, middle, high = (np.full(modes, np.nan, dtype=np.float32) for _ in range(3))
        low[some], middle[some], high[some] = np.nanquantile(known[:, some], (0.1, 0.5, 0.9), axis=0)
        facts.append("medians, whiskers and bands: 10-90 % of rows")
        _dots(fig, order, middle, low, high, "median of rows", 0, 1)
    _running(fig, array(lyap.growth))
    add_level(fig, x=[0.5, modes + 0.5], y=0.0, name="no growth", dash="solid", row=1, col=1)
    fig.data[-1].showlegend = False
    fig.update_xaxes(title="exponent, in the order of the frame", range=[0.5, modes + 0.5], dtick=1 if modes <= 16 else None, row=1, col=1)
    fig.update_yaxes(title=f"nats per {plain(lyap.clock)}", row=1, col=1)
    fig.update_xaxes(title=f"counted tick (clock: {plain(lyap.clock)})", row=1, col=2)
    fig.update_yaxes(title=f"mean growth so far, nats per {plain(lyap.clock)}", row=1, col=2)
    facts.append("−∞ left out" if bool(np.isneginf(values).any()) else "")
    facts.append(f"{MAX_MODES} exponents followed" if modes > MAX_MODES else "")
    return finish(fig, title=title, facts=facts, height=470)


def _dots(
    fig: go.Figure,
    order: NDArray[np.float32],
    values: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    name: str,
    k: int,
    of: int,
) -> None:
    """Exponents of one row, or of the middle one, beside those of the others."""
    known = np.isfinite(values)
    values, low, high = values[known], low[known], high[known]
    reach = [np.nan_to_num(side, nan=0.0, posinf=0.0, neginf=0.0) for side in (high - values, values - low)]
    fig.add_scatter(
        x=order[known] + np.float32(0.5 * (k - (of - 1) / 2) / max(1, of)),
        y=values,
        error_y=dict(type="data", symmetric=False, array=reach[0], arrayminus=reach[1], thickness=1.2, width=3),
        mode="markers",
        name=name,
        marker=dict(color=CATEGORICAL[k % len(CATEGORICAL)], symbol=("circle", "diamond", "square", "triangle-up", "cross", "x")[k % 6], size=8),
        hovertemplate="%{fullData.name}, exponent %{x:.0f}: %{y:.4g}<extra></extra>",
        row=1,
        col=1,
    )


def _running(fig: go.Figure, growth: NDArray[np.float32]) -> None:
    """The mean of the growth up to each tick: thin for some rows, bold for their median."""
    ticks, rows, modes = growth.shape
    kept, drawn = thinned(ticks, limit=MAX_TICKS), thinned(rows, limit=max(1, MAX_LINES // min(modes, MAX_MODES)))
    mean = growth.astype(np.float64).cumsum(0) / np.arange(1, ticks + 1)[:, None, None]
    mean = np.where(np.isfinite(mean), mean, np.nan).astype(np.float32)[kept]
    at = (kept + 1).astype(np.float32)
    for mode, colour in enumerate(shade(min(modes, MAX_MODES))):
        mine = mean[:, :, mode]
        some = np.isfinite(mine).any(1)
        if not some.any():
            continue
        where = dict(row=1, col=2)
        if rows > 1:
            x, y = joined(at, mine[:, drawn])
            look = dict(mode="lines", line=dict(color=faded(colour, 0.3), width=0.8), hoverinfo="skip", showlegend=False)
            fig.add_scatter(x=x, y=y, **look, **where)
            low, middle, high = np.nanquantile(mine[some], (0.1, 0.5, 0.9), axis=1).astype(np.float32)
            add_band(fig, x=at[some], low=low, high=high, colour=colour, group="", **where)  # groups of a legend stack, and leave the panels no height
        else:
            middle = mine[some, 0]
        fig.add_scatter(
            x=at[some],
            y=middle,
            mode="lines" if some.sum() > 1 else "markers",
            name=f"exponent {mode + 1}",
            line=dict(color=colour, width=2.5, dash=("solid", "dash", "dot", "dashdot")[mode % 4]),
            marker=dict(color=colour),
            hovertemplate="%{fullData.name}, tick %{x}: %{y:.4g}<extra></extra>",
            **where,
        )
