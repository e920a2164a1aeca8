"""Pictures of compute: accuracy over depth and breadth; probe scores over ticks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from attractorlab.plots.theme import (
    BLUE,
    GREY,
    SEQUENTIAL,
    Style,
    add_band,
    add_line,
    array,
    counted,
    finish,
    nothing,
    panels,
    plain,
    shade,
    source,
    styles,
)
from attractorlab.types import ProbeFit, ScalingGrid

_DASHES = ("solid", "dash", "dot", "dashdot")


def scaling(grid: ScalingGrid) -> go.Figure:
    """Accuracy over depth (ticks) and breadth (starts), one row of panels for each selector: a heat map, and lines with intervals.

    Of one breadth there is one panel with a line for each selector; with one start they are all the same line.
    """
    title, facts = "Accuracy by depth and breadth", _facts(grid)
    if not grid.accuracy.numel() or not grid.instances:
        return nothing(title, reason="the grid is empty", facts=facts)
    if len(grid.breadth) == 1:
        return finish(_one_breadth(grid), title=title, facts=facts)
    k = len(grid.selectors)
    depth, breadth = array(grid.depth), array(grid.breadth)
    accuracy, low, high, residual = (array(part) for part in (grid.accuracy, grid.low, grid.high, grid.residual))
    calls = array(grid.map_calls)
    titles = [f"<b>{plain(name)}</b>{end}" for name in grid.selectors for end in ("", f", {grid.level:.0%} intervals")]
    fig = panels(k, 2, titles=titles, horizontal_spacing=0.14, vertical_spacing=min(0.16, 0.4 / k))
    for s in range(k):
        more = np.stack([low[..., s], high[..., s], residual[..., s], np.broadcast_to(calls, accuracy.shape[:2])], -1).transpose(1, 0, 2)
        fig.add_trace(
            go.Heatmap(
                z=accuracy[..., s].T,
                x=[str(d) for d in depth],
                y=[str(b) for b in breadth],
                coloraxis="coloraxis",
                customdata=more,
                xgap=2,
                ygap=2,
                texttemplate="%{z:.0%}" if depth.size * breadth.size <= 80 else None,
                hovertemplate="depth %{x}, breadth %{y}: %{z:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]<br>"
                "mean residual %{customdata[2]:.1e}, %{customdata[3]:,.4~g} map calls<extra></extra>",
            ),
            row=s + 1,
            col=1,
        )
        for b, colour in enumerate(shade(len(breadth))):
            name = counted(int(breadth[b]), "start")
            add_band(fig, x=depth, low=low[:, b, s], high=high[:, b, s], colour=colour, group=name, row=s + 1, col=2)
            add_line(fig, depth, accuracy[:, b, s], style=Style(colour, "circle", "solid"), name=name, legend=s == 0, row=s + 1, col=2)
        fig.update_xaxes(title=f"depth (ticks, clock: {plain(grid.clock)})", type="category", showgrid=False, row=s + 1, col=1)
        fig.update_yaxes(title="breadth (starts)", type="category", showgrid=False, row=s + 1, col=1)
        fig.update_xaxes(title=f"depth (ticks, clock: {plain(grid.clock)})", **_scale(depth), row=s + 1, col=2)
        fig.update_yaxes(title="accuracy", tickformat=".0%", range=[-0.03, 1.03], row=s + 1, col=2)
    fig.update_layout(coloraxis=dict(colorscale=SEQUENTIAL, cmin=0, cmax=1, showscale=False))
    return finish(fig, title=title, facts=facts, height=180 + 290 * k)


def _one_breadth(grid: ScalingGrid) -> go.Figure:
    """Lines over depth, where there is nothing to lay out in two directions."""
    fig, depth, starts = go.Figure(), array(grid.depth), int(grid.breadth[0])
    look = styles(grid.selectors)
    for s, selector in enumerate(grid.selectors[:1] if starts == 1 else grid.selectors):
        name = counted(1, "start") if starts == 1 else plain(selector)
        low, high = array(grid.low[:, 0, s]), array(grid.high[:, 0, s])
        more = np.stack([low, high, array(grid.residual[:, 0, s]), array(grid.map_calls[:, 0])], -1)
        hover = "depth %{x}: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]<br>mean residual %{customdata[2]:.1e}, %{customdata[3]:,.4~g} map calls"
        add_band(fig, x=depth, low=low, high=high, colour=look[selector].colour, group=name)
        add_line(fig, depth, array(grid.accuracy[:, 0, s]), style=look[selector], name=name, legend=True, hover=hover, more=more)
    fig.update_xaxes(title=f"depth (ticks, clock: {plain(grid.clock)})", **_scale(depth))
    fig.update_yaxes(title=f"accuracy, {counted(starts, 'start')}", tickformat=".0%", range=[-0.03, 1.03])
    return fig


def scaling_lines(grids: Mapping[str, ScalingGrid]) -> go.Figure:
    """Several models compared: accuracy over depth at the smallest breadth, and over breadth at the greatest depth.

    Args:
        grids: Grids by the name that the legend shows. Their ticks must be of one clock.

    Returns:
        A figure of two panels; colours are models, dashes in the second panel are selectors.

    Raises:
        ValueError: If clocks differ.
    """
    title = "Accuracy by depth and by breadth"
    shown = {name: grid for name, grid in grids.items() if grid.accuracy.numel() and grid.instances}
    if not shown:
        return nothing(title, reason="there is no grid with values")
    clocks = sorted({grid.clock for grid in shown.values()})
    if len(clocks) > 1:
        raise ValueError(
            f"`scaling_lines` got grids on the clocks {clocks}. Ticks of different clocks do not compare. Strobe the maps to one clock, or draw `scaling` of each."
        )
    clock = clocks[0]
    fig = panels(1, 2, titles=("fewest starts", "greatest depth"), horizontal_spacing=0.12, shared_yaxes=True)
    look = styles(shown)
    for name, grid in shown.items():
        depth, breadth = array(grid.depth), array(grid.breadth)
        accuracy, low, high = (array(part) for part in (grid.accuracy, grid.low, grid.high))
        few, deep = int(breadth.argmin()), int(depth.argmax())
        style, word = look[name], plain(name)
        add_band(fig, x=depth, low=low[:, few, 0], high=high[:, few, 0], colour=style.colour, group=word, row=1, col=1)
        add_line(fig, depth, accuracy[:, few, 0], style=style, name=word, legend=True, row=1, col=1)
        for s, selector in enumerate(grid.selectors if len(breadth) > 1 else grid.selectors[:1]):
            if s == 0:
                add_band(fig, x=breadth, low=low[deep, :, 0], high=high[deep, :, 0], colour=style.colour, group=word, row=1, col=2)
            dashed = Style(style.colour, style.symbol, _DASHES[s % len(_DASHES)])
            add_line(
                fig, breadth, accuracy[deep, :, s], style=dashed, name=f"{word}, {plain(selector)}", legend=False, row=1, col=2, group=word
            )
    depths, breadths = (
        np.unique(np.concatenate([array(part) for part in parts]))
        for parts in zip(*((g.depth, g.breadth) for g in shown.values()), strict=True)
    )
    fig.update_xaxes(title=f"depth (ticks, clock: {plain(clock)})", **_scale(depths), row=1, col=1)
    fig.update_xaxes(title="breadth (starts)", **_scale(breadths), row=1, col=2)
    fig.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    fig.update_yaxes(title="accuracy", row=1, col=1)
    first = next(iter(shown.values()))
    selectors = list(dict.fromkeys(name for grid in shown.values() for name in grid.selectors))
    dashes = ", ".join(f"{dash}: {plain(name)}" for name, dash in zip(selectors, _DASHES, strict=False)) if len(selectors) > 1 else ""
    sizes = sorted({grid.instances for grid in shown.values()})
    n = f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"
    return finish(fig, title=title, facts=[f"{n} instances each", f"clock: {plain(clock)}", f"bands: {first.level:.0%} intervals", dashes])


def probe(fit: ProbeFit) -> go.Figure:
    """The held-out score of a probe over the ticks, with its interval, beside the same probe on a control task."""
    title = f"What the state knows: {plain(fit.target)}"
    facts = [
        source(fit.origin.model, fit.origin.dtype),
        f"n = {len(fit.held_out):,} held-out instances, fitted on {fit.train_instances:,}",
        f"clock: {plain(fit.clock)}",
    ]
    facts.append(f"band: {fit.level:.0%} interval over instances")
    score, control, ticks = array(fit.score), array(fit.control), array(fit.ticks)
    if not np.isfinite(score).any():
        return nothing(title, reason="no score was computed", facts=facts)
    fig = go.Figure()
    add_band(fig, x=ticks, low=array(fit.low), high=array(fit.high), colour=BLUE, group="probe")
    add_line(fig, ticks, score, style=Style(BLUE, "circle", "solid"), name="probe", legend=True, hover="tick %{x}: score %{y:.3f}")
    add_line(fig, ticks, control, style=Style(GREY, "square", "dash"), name="control task", legend=True, hover="tick %{x}: control %{y:.3f}")
    fig.update_xaxes(title=f"tick (clock: {plain(fit.clock)})")
    fig.update_yaxes(title="held-out score (0 to 1)", range=[-0.03, 1.03] if np.nanmin(np.concatenate([score, control])) >= 0 else None)
    return finish(fig, title=title, facts=facts)


def _facts(grid: ScalingGrid) -> list[str]:
    return [
        source(grid.origin.model, grid.origin.dtype),
        f"n = {counted(grid.instances, 'instance')}",
        f"clock: {plain(grid.clock)}",
        f"bands: {grid.level:.0%} intervals over instances",
    ]


def _scale(values: NDArray[Any]) -> dict[str, object]:
    """A logarithmic axis with a tick at each value, where the values span enough."""
    if values.size > 1 and values.min() > 0 and values.max() / values.min() >= 8:
        return dict(type="log", tickvals=values.tolist(), ticktext=[str(v) for v in values.tolist()])
    return dict(tickvals=values.tolist()) if values.size <= 12 else {}
