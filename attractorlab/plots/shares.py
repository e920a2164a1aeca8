"""Pictures of basins: the shares of starts per attractor, and a plane through them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.plots.theme import (
    BLUE,
    CATEGORICAL,
    GREY,
    OTHERS,
    VERMILION,
    array,
    counted,
    finish,
    nothing,
    panels,
    plain,
    source,
    thinned,
)
from attractorlab.types import BasinEstimate, BasinSlice

MAX_BARS, MAX_RANKS, MAX_COLOURS = 240, 6, len(CATEGORICAL)
_KINDS = ("solution", "not a solution")


def basins(basins: BasinEstimate, *, solved: Bool[Tensor, " attractor"] | None = None) -> go.Figure:
    """Stacked shares of starts per attractor, one bar an instance, sorted by the largest share.

    The whisker is the interval of the largest share. Undecided starts are grey, at the top.

    Args:
        basins: What to draw.
        solved: Which entries of the attractor table are solutions; they are then told apart by colour and hatching.

    Returns:
        A figure of at most 240 bars; of more instances, evenly spaced ones in the sorted order.

    Raises:
        ValueError: If `solved` has not one entry for each attractor.
    """
    if solved is not None and len(solved) != len(basins.label):
        raise ValueError(
            f"`basins` got {len(solved)} values of `solved` for {len(basins.label)} attractors. Each attractor of the table needs one. "
            "Pass a mask along `basins.label`, not along the starts."
        )
    title = "Share of starts per attractor"
    k, n = len(basins.instances), int(basins.starts.sum())
    facts = [
        source(basins.origin.model, basins.origin.dtype),
        f"n = {counted(n, 'start')} of {counted(k, 'instance')}",
        f"clock: {plain(basins.clock)}",
    ]
    facts += [
        f"effective n {basins.effective_n:.3g}",
        f"whisker: {basins.level:.0%} interval of the largest share",
        f"starts: {plain(basins.sampler)}",
    ]
    if not k or not n:
        return nothing(title, reason="there are no starts", facts=facts)
    share, whisker = _table(basins, solved)
    largest = share[0].sum(0)
    order = np.argsort(-largest, kind="stable")[thinned(k, limit=MAX_BARS)]
    place = np.arange(1, len(order) + 1)
    names = array(basins.instances)[order]
    fig = go.Figure()
    for rank, kind in np.argwhere(share[:, :, order].any(-1)).tolist():
        word = "further attractors" if rank == MAX_RANKS else f"attractor {rank}"
        fig.add_bar(
            x=place,
            y=share[rank, kind, order],
            marker=_bar_look(rank, kind, coloured=solved is not None)
            | dict(line=dict(width=0.6 if len(order) <= 80 else 0, color="#FFFFFF")),
            customdata=names,
            showlegend=solved is None,
            name=word if solved is None else f"{word}, {_KINDS[kind]}",
            hovertemplate="instance %{customdata}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    for kind in range(2) if solved is not None else ():
        fig.add_bar(x=[None], y=[None], name=_KINDS[kind], marker=_bar_look(0, kind, coloured=True))
    undecided = array(basins.undecided)[order]
    grey = dict(color=GREY, pattern=dict(shape="x", size=5, solidity=0.25, fgcolor="#FFFFFF", fillmode="overlay"), line=dict(width=0))
    fig.add_bar(
        x=place,
        y=undecided,
        name="undecided",
        marker=grey,
        customdata=names,
        hovertemplate="instance %{customdata}: %{y:.1%} undecided<extra></extra>",
    )
    for colour, width in (("#FFFFFF", 3.2), ("#101316", 1.2)):  # Dark on a light rim stands out on every bar.
        bar = dict(
            type="data",
            symmetric=False,
            array=whisker[1][order],
            arrayminus=whisker[0][order],
            color=colour,
            thickness=width,
            width=width + 1,
        )
        fig.add_scatter(
            x=place, y=largest[order], error_y=bar, mode="markers", marker=dict(size=1, color=colour), hoverinfo="skip", showlegend=False
        )
    fig.update_layout(barmode="stack", bargap=0.12 if len(order) <= 80 else 0, legend=dict(traceorder="normal"))
    few = len(order) <= 32
    fig.update_layout(meta=dict(width=22 * len(order) + 120) if few else None)
    fig.update_xaxes(
        title="instance, sorted by its largest share",
        tickvals=place if few else None,
        ticktext=[str(i) for i in names] if few else None,
        showgrid=False,
    )
    fig.update_yaxes(title="share of starts", range=[0, 1.02], tickformat=".0%")
    facts.append(f"{len(order)} of {k} instances drawn" if len(order) < k else "")
    return finish(fig, title=title, facts=facts)


def basin_slice(plane: BasinSlice, *, names: Mapping[int, str] | None = None) -> go.Figure:
    """A plane of starts: the attractor that each pixel reaches, and the ticks it takes. Undecided pixels are grey.

    A plane is a thin sample of a space of thousands of dimensions: shares of its area are not shares of the space.

    Args:
        plane: What to draw.
        names: Words for labels, e.g. ``{0: "solution"}``. The others are called attractor 0, 1, ...

    Returns:
        A figure of two panels with square pixels; the cross marks the centre.
    """
    title = "A plane of starts"
    labels, ticks, x, y = array(plane.labels), array(plane.ticks).astype(np.float32), array(plane.x), array(plane.y)
    facts = [
        source(plane.origin.model, plane.origin.dtype),
        f"n = {labels.size:,} pixels",
        f"clock: {plain(plane.clock)}",
        f"tol = {plane.tol:g}",
    ]
    if not labels.size:
        return nothing(title, reason="the plane has no pixels", facts=facts)
    fig = panels(1, 2, titles=("attractor reached", "ticks to settle"), horizontal_spacing=0.24, shared_yaxes=True)
    codes, words, colours = _coded(labels, dict(names or {}))
    fig.add_trace(_categories(codes, words, colours, x=x, y=y), row=1, col=1)
    grey = go.Heatmap(
        z=np.zeros(labels.shape, dtype=np.int8), x=x, y=y, colorscale=[[0, GREY], [1, GREY]], showscale=False, hoverinfo="skip"
    )
    fig.add_trace(grey, row=1, col=2)
    settled = np.where((labels >= 0) & (ticks >= 0), ticks, np.nan)
    bar = dict(title=dict(text="ticks"), x=1.01, thickness=12, outlinewidth=0)
    hover = "(%{x:.3g}, %{y:.3g}): settled after %{z} ticks<extra></extra>"
    fig.add_trace(go.Heatmap(z=settled, x=x, y=y, colorscale="Viridis", colorbar=bar, hoverongaps=False, hovertemplate=hover), row=1, col=2)
    cross = dict(symbol="cross-thin", size=14, line=dict(width=3, color="#FFFFFF"))
    for look in (cross, cross | dict(line=dict(width=1.2, color="#000000"))):
        for col in (1, 2):
            fig.add_scatter(
                x=[0], y=[0], mode="markers", marker=look, showlegend=False, hovertemplate="centre<extra></extra>", row=1, col=col
            )
    edge = [dict(range=[float(v.min() - step / 2), float(v.max() + step / 2)]) for v, step in ((x, _step(x)), (y, _step(y)))]
    fig.update_xaxes(title="steps along axis 0", constrain="domain", showgrid=False, **edge[0])
    fig.update_yaxes(constrain="domain", showgrid=False, **edge[1])
    fig.update_xaxes(matches="x", row=1, col=2)
    # Square pixels: one pixel's width and height take as many points on the screen. The second panel matches the first.
    fig.update_layout(meta=dict(width=780))
    fig.update_yaxes(title="steps along axis 1", scaleanchor="x", scaleratio=_step(x) / _step(y), row=1, col=1)
    return finish(fig, title=title, facts=[*facts, f"undecided {float((labels < 0).mean()):.1%}"], height=430)


def _table(basins: BasinEstimate, solved: Bool[Tensor, " attractor"] | None) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]]:
    """Shares [rank kind instance], and the whiskers of rank 0; ranks past the sixth are added up. Kind 1 is no solution."""
    k = len(basins.instances)
    row = {int(name): i for i, name in enumerate(basins.instances.tolist())}
    at = np.array([row[int(name)] for name in basins.of_instance.tolist()], dtype=np.int64)
    rank = np.minimum(array(basins.label), MAX_RANKS)
    kind = np.zeros(len(at), dtype=np.int64) if solved is None else (~array(solved.bool())).astype(np.int64)
    share = np.zeros((MAX_RANKS + 1, 2, k), dtype=np.float32)
    np.add.at(share, (rank, kind, at), array(basins.share))
    first = rank == 0
    below, above = np.zeros(k, dtype=np.float32), np.zeros(k, dtype=np.float32)
    below[at[first]] = array(basins.share - basins.low)[first]
    above[at[first]] = array(basins.high - basins.share)[first]
    return share, (below, above)


def _bar_look(rank: int, kind: int, *, coloured: bool) -> dict[str, object]:
    if not coloured:
        return dict(color=OTHERS if rank == MAX_RANKS else CATEGORICAL[rank % MAX_COLOURS])
    hatch = dict(shape="/", size=6, solidity=0.22, fgcolor="#FFFFFF", fillmode="overlay") if kind else dict(shape="")
    return dict(color=(BLUE, VERMILION)[kind], opacity=(1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.35)[rank], pattern=hatch)


def _coded(labels: NDArray[Any], names: Mapping[int, str]) -> tuple[NDArray[Any], list[str], list[str]]:
    """Labels as 0, 1, ... with a word and a colour each: undecided, then the seven most frequent, then all others together."""
    kinds, counts = np.unique(labels, return_counts=True)
    total = labels.size
    by_count = sorted(((int(kind), int(count)) for kind, count in zip(kinds, counts, strict=True) if kind >= 0), key=lambda one: -one[1])
    shown = sorted(kind for kind, _ in by_count[:MAX_COLOURS])
    own = all(kind < MAX_COLOURS for kind in shown)  # A label keeps its colour from plane to plane where it can.
    entries = [(-1, "undecided", GREY)] if (kinds < 0).any() else []
    entries += [(kind, names.get(kind, f"attractor {kind}"), CATEGORICAL[kind if own else i]) for i, kind in enumerate(shown)]
    codes = np.full(labels.shape, len(entries), dtype=np.int8)
    for code, (kind, _, _) in enumerate(entries):
        codes[(labels < 0) if kind < 0 else (labels == kind)] = code
    words = [f"{plain(word)} ({float((codes == code).sum()) / total:.1%})" for code, (_, word, _) in enumerate(entries)]
    colours = [colour for _, _, colour in entries]
    if len(by_count) > MAX_COLOURS:
        rest = by_count[MAX_COLOURS:]
        words.append(f"{len(rest)} others ({sum(count for _, count in rest) / total:.1%})")
        colours.append(OTHERS)
    return codes, words, colours


def _categories(codes: NDArray[Any], words: list[str], colours: list[str], *, x: NDArray[Any], y: NDArray[Any]) -> go.Heatmap:
    k = len(words)
    scale = [[edge, colour] for i, colour in enumerate(colours) for edge in (i / k, (i + 1) / k)]
    bar = dict(tickvals=list(range(k)), ticktext=words, x=0.4, xanchor="left", thickness=12, outlinewidth=0, ticks="")
    return go.Heatmap(
        z=codes,
        x=x,
        y=y,
        colorscale=scale,
        zmin=-0.5,
        zmax=k - 0.5,
        colorbar=bar,
        hovertemplate="(%{x:.3g}, %{y:.3g})<extra></extra>",
    )


def _step(values: NDArray[Any]) -> float:
    return float(abs(values[-1] - values[0]) / (len(values) - 1)) if len(values) > 1 and values[-1] != values[0] else 1.0
