"""Pictures of a Convergence: residual curves, when rows settle, and whether settling means solving."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.plots.theme import (
    BLUE,
    PURPLE,
    VERMILION,
    add_band,
    add_level,
    array,
    counted,
    faded,
    finish,
    joined,
    nothing,
    plain,
    run_facts,
    shade,
    share_of,
    styles,
    thinned,
)
from attractorlab.statistics import wilson
from attractorlab.types import Convergence

MAX_LINES, MAX_TICKS = 200, 160
_QUANTILES = (0.1, 0.5, 0.9)
_NO_TARGETS = "no targets were given, so no row counts as solved"


def outcome_words(conv: Convergence) -> tuple[str, ...]:
    """One word for each row: settled or unsettled, and solved or wrong at the last tick where that is known.

    Example:
        >>> import torch
        >>> from attractorlab.types import Convergence, Origin
        >>> ones = torch.ones(2, dtype=torch.int64)
        >>> conv = Convergence(ticks=ones[:1], residual=torch.ones(1, 2), rate=torch.ones(2), settle_tick=ones, solved=None,
        ...     first_solved=None, stays_solved=None, period=torch.tensor([1, 0]), verdict=("settled", "wandering"), instance=ones,
        ...     start=ones, tol=1e-3, clock="tick", origin=Origin())
        >>> outcome_words(conv)
        ('settled', 'unsettled')
    """
    settled = ["settled" if one else "unsettled" for one in conv.settled.tolist()]
    if conv.solved is None or not len(conv.solved):
        return tuple(settled)
    return tuple(f"{word}, {'solved' if one else 'wrong'}" for word, one in zip(settled, conv.solved[-1].tolist(), strict=True))


def residual_curves(conv: Convergence, *, floor: float | None = None) -> go.Figure:
    """The residual of each row over the ticks, with the median and the 10-90 % band of each outcome.

    At most about 200 rows are drawn as lines; medians and bands are of all rows.

    Args:
        conv: What to draw.
        floor: The relative residual that rounding alone leaves in the dtype of the run, drawn as a line if given.

    Returns:
        A figure with a logarithmic residual axis.
    """
    title, facts = "Residual of each row", _facts(conv)
    residual, ticks = array(conv.residual), array(conv.ticks)
    positive = residual[np.isfinite(residual) & (residual > 0)]
    if not positive.size:
        return nothing(title, reason="no residual above zero was recorded", facts=facts)
    # A logarithmic axis has no zero: exact fixed points lie at its lower edge.
    edge = floor if floor is not None else float(positive.min()) / 2
    zeros = bool((residual == 0).any())
    residual = np.where(residual == 0, np.float32(edge), residual)
    words = np.array(outcome_words(conv), dtype=object)
    drawn, kept = share_of(words.tolist(), limit=MAX_LINES), thinned(len(ticks), limit=MAX_TICKS)
    fig = go.Figure()
    for word, style in styles(words.tolist()).items():
        rows = np.flatnonzero(words == word)
        thin = np.intersect1d(rows, drawn)
        x, y = joined(ticks[kept], residual[np.ix_(kept, thin)])
        low, middle, high = _quantiles(residual[:, rows])
        add_band(fig, x=ticks, low=low, high=high, colour=style.colour, group=word)
        line = dict(color=faded(style.colour, 0.55 if len(thin) <= 20 else 0.28), width=0.8, dash=style.dash)
        fig.add_scatter(x=x, y=y, mode="lines", line=line, legendgroup=word, showlegend=False, name=word, hoverinfo="skip")
        fig.add_scatter(
            x=ticks,
            y=middle,
            mode="lines+markers" if len(ticks) == 1 else "lines",
            name=f"{word} ({counted(len(rows), 'row')})",
            legendgroup=word,
            line=dict(color=style.colour, width=3, dash=style.dash),
            marker=dict(symbol=style.symbol),
            hovertemplate="%{fullData.name}<br>tick %{x}: median residual %{y:.2e}<extra></extra>",
        )
    ends = [float(ticks[0]), float(ticks[-1])]
    add_level(fig, x=ends, y=conv.tol, name=f"tol {conv.tol:g}")
    if floor is not None:
        add_level(fig, x=ends, y=floor, name=f"rounding floor {floor:g}", dash="dot")
    fig.update_xaxes(title=f"tick (clock: {plain(conv.clock)})")
    fig.update_yaxes(
        title="relative residual ‖f(z) − z‖ / ‖z‖",
        type="log",
        exponentformat="power",
        dtick=1 if _decades(np.append(positive, conv.tol)) > 2 else None,
    )
    facts += ["bold: median, band: 10-90 % of all rows", f"{len(drawn)} rows drawn" if len(drawn) < len(words) else ""]
    return finish(fig, title=title, facts=[*facts, "exact zeros at the lower edge" if zeros else ""])


def settle_times(conv: Convergence) -> go.Figure:
    """The share of rows that have settled, were solved at least once, and are solved for good, by tick.

    Rows that never do hold the curve below 1: the plateau at the right is the answer for the ticks that were run, not for ever.
    """
    title, facts = "When rows settle, and when they are solved", _facts(conv)
    if not len(conv.settle_tick) or not len(conv.ticks):
        return nothing(title, reason="there are no rows", facts=facts)
    fig = go.Figure()
    last = int(conv.ticks[-1])
    curves = [
        ("settled", conv.settle_tick, BLUE, "solid"),
        ("solved once", conv.first_solved, VERMILION, "dash"),
        ("solved for good", conv.stays_solved, PURPLE, "dot"),
    ]
    for name, when, colour, dash in curves:
        if when is None:
            continue
        x, y = _ecdf(when, last=last)
        never = int((when < 0).sum())
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line=dict(shape="hv", color=colour, width=2.5, dash=dash),
            name=f"{name} (never: {never:,} of {len(when):,})",
            hovertemplate=f"by tick %{{x}}: %{{y:.1%}} {name}<extra></extra>",
        )
    fig.update_xaxes(title=f"tick (clock: {plain(conv.clock)})", range=[0, last * 1.02 + 0.5])
    fig.update_yaxes(title="share of rows", range=[0, 1.03], tickformat=".0%")
    return finish(fig, title=title, facts=[*facts, f"followed for {counted(last, 'tick')}"])


def settled_by_solved(conv: Convergence) -> go.Figure:
    """Counts of rows by whether they settled and whether they are solved at the last tick."""
    title, facts = "Does settling mean solving?", _facts(conv)
    if conv.solved is None:
        return nothing(title, reason=_NO_TARGETS, facts=facts)
    if not conv.solved.numel():
        return nothing(title, reason="there are no rows", facts=facts)
    settled, solved = conv.settled, conv.solved[-1]
    counts = array(torch.stack([torch.stack([(settled == a) & (solved == b) for b in (True, False)]) for a in (True, False)]).sum(-1))
    n = len(settled)
    text = [[f"<b>{count:,}</b><br>{count / n:.1%}" for count in row] for row in counts.tolist()]
    heat = go.Heatmap(
        z=counts,
        x=["solved", "wrong"],
        y=["settled", "not settled"],
        text=text,
        texttemplate="%{text}",
        textfont=dict(size=17),
        showscale=False,
        colorscale="Blues",
        zmin=0,
        zmax=n,
        xgap=4,
        ygap=4,
        hovertemplate="%{y} and %{x}: %{z} rows<extra></extra>",
    )
    fig = go.Figure(heat)
    fig.update_xaxes(title="answer at the last tick", showline=False, ticks="", showgrid=False)
    fig.update_yaxes(title=f"residual below tol {conv.tol:g}", autorange="reversed", showline=False, ticks="", showgrid=False)
    kinds = {word: conv.verdict.count(word) for word in sorted(set(conv.verdict))}
    return finish(fig, title=title, facts=[*facts, ", ".join(f"{plain(word)} {count:,}" for word, count in kinds.items())], height=360)


def residual_vs_accuracy(conv: Convergence, *, bins: int = 8, level: float = 0.95) -> go.Figure:
    """The share of solved rows by residual, one curve for each of up to six ticks: does a low residual mean a right answer?

    Bins hold equally many rows of a tick. Whiskers are Wilson intervals with the number of different instances in a bin as n.

    Args:
        conv: What to draw; it must have been made with targets.
        bins: How many bins at each tick.
        level: Coverage of the whiskers.

    References:
        Fig. 1 of the Equilibrium Reasoners paper plots the same against iterations.
    """
    title, facts = "Accuracy by residual", _facts(conv)
    if conv.solved is None:
        return nothing(title, reason=_NO_TARGETS, facts=facts)
    residual = array(conv.residual)
    times = [int(t) for t in _spread(len(residual), 6) if np.isfinite(residual[t]).any()]
    if not times or not residual.shape[1]:
        return nothing(title, reason="there are no finite residuals", facts=facts)
    fig = go.Figure()
    for colour, t in zip(shade(len(times)), times, strict=True):
        finite = np.flatnonzero(np.isfinite(residual[t]))
        order = finite[np.argsort(residual[t, finite], kind="stable")]
        parts = np.array_split(order, min(bins, len(order)))
        middle = np.array([np.median(residual[t, part]) for part in parts], dtype=np.float32)
        hits = torch.tensor([float(conv.solved[t][torch.as_tensor(part)].double().mean()) for part in parts])
        worth = torch.tensor([int(conv.instance[torch.as_tensor(part)].unique().numel()) for part in parts])
        low, high = wilson(hits * worth, worth, level=level)
        whisker = dict(
            type="data",
            symmetric=False,
            array=array(high - hits),
            arrayminus=array(hits - low),
            thickness=1,
            width=3,
            color=faded(colour, 0.6),
        )
        fig.add_scatter(
            x=np.maximum(middle, np.finfo(np.float32).tiny),
            y=array(hits),
            error_y=whisker,
            mode="lines+markers",
            name=f"tick {int(conv.ticks[t])}",
            line=dict(color=colour, width=1.5),
            marker=dict(color=colour, size=8),
            customdata=[len(part) for part in parts],
            hovertemplate="%{fullData.name}, residual %{x:.2e}: %{y:.1%} solved of %{customdata} rows<extra></extra>",
        )
    fig.update_xaxes(title=f"relative residual at the tick (clock: {plain(conv.clock)})", type="log", exponentformat="power")
    fig.update_yaxes(title="share of rows solved at the tick", range=[-0.03, 1.03], tickformat=".0%")
    return finish(fig, title=title, facts=[*facts, f"{level:.0%} Wilson intervals over instances"])


def _facts(conv: Convergence) -> list[str]:
    return [*run_facts(conv.instance, clock=conv.clock, model=conv.origin.model, dtype=conv.origin.dtype), f"tol = {conv.tol:g}"]


def _quantiles(values: NDArray[Any]) -> NDArray[Any]:
    """Three quantiles over rows; NaN where no row is finite."""
    found = np.full((3, len(values)), np.nan, dtype=np.float32)
    some = np.isfinite(values).any(1)
    if some.any():
        found[:, some] = np.nanquantile(np.where(np.isfinite(values), values, np.nan)[some], _QUANTILES, axis=1)
    return found


def _ecdf(when: Int[Tensor, " row"], *, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
    ticks, counts = np.unique(array(when[when >= 0]), return_counts=True)
    share = np.cumsum(counts) / len(when)
    ends = share[-1] if len(share) else 0.0
    return np.concatenate([[0], ticks, [last]]).astype(np.float32), np.concatenate([[0], share, [ends]]).astype(np.float32)


def _spread(n: int, k: int) -> NDArray[Any]:
    """Up to k positions below n, closer together at the beginning, the last among them."""
    return np.unique(np.geomspace(1, n, min(n, k)).round().astype(np.int64)) - 1 if n else np.zeros(0, dtype=np.int64)


def _decades(positive: NDArray[Any]) -> float:
    return float(np.log10(positive.max()) - np.log10(positive.min()))
