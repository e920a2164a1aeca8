"""Pictures of what compute buys: accuracy against ticks spent, what scores foretell, and ticks to a lasting solution."""

import numpy as np
import plotly.graph_objects as go

from attractorlab.plots.theme import (
    GREY,
    Style,
    add_band,
    add_level,
    add_line,
    array,
    counted,
    finish,
    in_doublings,
    nothing,
    panels,
    plain,
    shade,
    source,
    styles,
)
from attractorlab.types import Foresight, ScalingGrid, SolveTimes


def frontier(grid: ScalingGrid, elastic: ScalingGrid | None = None) -> go.Figure:
    """Accuracy against the ticks that an instance costs, for each selector: the best cell up to each cost as a line, all cells as points.

    Args:
        grid: Every start followed to its depth.
        elastic: The same with halting, in a second panel.

    Returns:
        A figure of one panel or two. A line joins the cells that no cheaper cell equals; as it picks the best of noisy cells it is a little too high. Bands are intervals of those cells.

    Raises:
        ValueError: If the clocks differ.
    """
    title = "Accuracy by ticks spent"
    shown = [(name, one) for name, one in (("to the last tick", grid), ("with halting", elastic)) if one is not None]
    if not grid.accuracy.numel() or not grid.instances:
        return nothing(title, reason="the grid is empty")
    if len({one.clock for _, one in shown}) > 1:
        raise ValueError(
            f"`frontier` got grids on the clocks {sorted({one.clock for _, one in shown})}. Ticks of different clocks do not compare. Strobe the maps to one clock, or draw each."
        )
    fig = panels(1, len(shown), titles=[name for name, _ in shown], horizontal_spacing=0.08, shared_yaxes=True)
    look = styles(grid.selectors)
    for col, (_, one) in enumerate(shown, start=1):
        spent = array(one.map_calls).ravel()
        for s, selector in enumerate(one.selectors):
            order = np.lexsort((-array(one.accuracy[..., s]).ravel(), spent))  # of cells that cost the same the best comes first
            accuracy, low, high = (array(part[..., s]).ravel()[order] for part in (one.accuracy, one.low, one.high))
            best = np.flatnonzero(accuracy > np.concatenate([[-1.0], np.maximum.accumulate(accuracy)[:-1]]))
            style, word = look[selector], plain(selector)
            x = spent[order]
            add_band(fig, x=x[best], low=low[best], high=high[best], colour=style.colour, group=word, row=1, col=col)
            hover = "%{x:.4~g} ticks: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]"
            add_line(fig, x[best], accuracy[best], style=style, name=word, legend=col == 1, hover=hover, more=np.stack([low[best], high[best]], -1), row=1, col=col)
            fig.add_trace(
                go.Scatter(x=x, y=accuracy, mode="markers", showlegend=False, legendgroup=word, marker=dict(symbol=style.symbol, size=4, color=style.colour, opacity=0.35), hoverinfo="skip"),
                row=1,
                col=col,
            )
    fig.update_xaxes(title=f"ticks an instance (clock: {plain(grid.clock)})", **in_doublings(np.concatenate([array(one.map_calls).ravel() for _, one in shown])))
    fig.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    fig.update_yaxes(title="accuracy", row=1, col=1)
    facts = [source(grid.origin.model, grid.origin.dtype), f"n = {counted(grid.instances, 'instance')}, {counted(grid.clusters, 'cluster')}", f"clock: {plain(grid.clock)}", f"bands: {grid.level:.0%} intervals over clusters"]
    return finish(fig, title=title, facts=[*facts, plain(elastic.policy) if elastic is not None else ""], height=470)


def foresight(told: Foresight) -> go.Figure:
    """The area under the ROC curve of each score against the tick at which it is read: over all rows, and over those not solved yet."""
    title = f"What scores say of being solved at tick {told.ticks}"
    facts = [source(told.origin.model, told.origin.dtype), f"n = {counted(told.rows, 'row')}, {counted(told.clusters, 'cluster')}", f"clock: {plain(told.clock)}", f"bands: {told.level:.0%} intervals over clusters"]
    if not told.auc.isfinite().any():
        return nothing(title, reason="all rows are solved, or none", facts=facts)
    fig = panels(1, 2, titles=("all rows: will solve and has solved", "rows not solved yet: will solve"), horizontal_spacing=0.08, shared_yaxes=True)
    look, ticks = styles(told.scores), array(told.read)
    for col, (value, low, high) in enumerate(((told.auc, told.low, told.high), (told.ahead, told.ahead_low, told.ahead_high)), start=1):
        for s, score in enumerate(told.scores):
            style, word = look[score], plain(score)
            add_band(fig, x=ticks, low=array(low[:, s]), high=array(high[:, s]), colour=style.colour, group=word, row=1, col=col)
            hover = "tick %{x}: %{y:.3f}" + ("" if col == 1 else "<br>%{customdata[0]:,} not solved yet, %{customdata[1]:,} of them later")
            add_line(fig, ticks, array(value[:, s]), style=style, name=word, legend=col == 1, hover=hover, more=np.stack([array(told.unsolved), array(told.later)], -1), row=1, col=col)
        add_level(fig, x=[float(ticks.min()), float(ticks.max())], y=0.5, name="no better than chance" if col == 1 else "", row=1, col=col)
    fig.data[-1].showlegend = False
    fig.update_xaxes(title=f"tick at which it is read (clock: {plain(told.clock)})", **in_doublings(ticks))
    fig.update_yaxes(range=[-0.03, 1.03])
    fig.update_yaxes(title="area under the ROC curve", row=1, col=1)
    return finish(fig, title=title, facts=facts, height=470)


def solve_times(times: SolveTimes) -> go.Figure:
    """The share of rows that are solved for good by each tick, by difficulty."""
    title = "Ticks to a lasting solution, by difficulty"
    facts = [source(times.origin.model, times.origin.dtype), f"n = {counted(int(times.rows.sum()), 'row')}", f"clock: {plain(times.clock)}", f"bands: {times.level:.0%} intervals over clusters", f"followed for {counted(times.ticks, 'tick')}"]
    if not len(times.rows):
        return nothing(title, reason="there are no rows", facts=facts)
    fig, ticks = go.Figure(), array(times.tick)
    for b, colour in enumerate(shade(len(times.rows))):
        name = f"difficulty {float(times.easiest[b]):g} to {float(times.hardest[b]):g}" if len(times.rows) > 1 else "all"
        add_band(fig, x=ticks, low=array(times.low[b]), high=array(times.high[b]), colour=colour, group=name)
        style = Style(colour, ("circle", "diamond", "square", "triangle-up", "cross", "pentagon", "hexagram")[b % 7], "solid")
        fig.add_trace(
            go.Scatter(
                x=ticks,
                y=array(times.share[b]),
                mode="lines+markers",
                name=name,
                legendgroup=name,
                line=dict(color=style.colour, width=2.2, shape="hv"),
                marker=dict(symbol=style.symbol, size=6, color=style.colour),
                hovertemplate="solved for good by tick %{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
            )
        )
    if float(times.censored.max()) > 0:
        fig.add_annotation(text="what is missing to 100 % was not solved in the end", x=1, y=1.02, xref="paper", yref="paper", xanchor="right", showarrow=False, font=dict(size=11, color=GREY))
    fig.update_xaxes(title=f"tick (clock: {plain(times.clock)})", **in_doublings(ticks))
    fig.update_yaxes(title="share solved for good", tickformat=".0%", range=[-0.03, 1.06])
    return finish(fig, title=title, facts=facts)
