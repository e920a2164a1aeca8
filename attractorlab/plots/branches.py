"""Pictures of a Branch: bifurcation diagrams."""

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.plots.theme import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    array,
    counted,
    finish,
    nothing,
    panels,
    plain,
    source,
    styles,
    thinned,
)
from attractorlab.types import Branch, State

MAX_POINTS = 6000
_EVENTS = {
    "fold": ("triangle-up", ORANGE),
    "branch point": ("star", PURPLE),
    "flip": ("square", GREEN),
    "Neimark-Sacker": ("hexagram", BLUE),
}
_ORDER = ("stable", "unstable", "marginal", "ill-conditioned", "not asked")


def branches(found: Branch, *, read: Callable[[State], Tensor], label: str) -> go.Figure:
    """A bifurcation diagram: the parameter against a number read off the state, point by point.

    Lines are solid where the branch is stable and dashed where it is not; a line between two points has the look of the first. Markers are the events. Two branches that
    cross in the picture need not meet in the state.

    Args:
        found: What to draw.
        read: The number that stands for a state, one per row: ``lambda z: z["z_H"][:, 0, 0]``.
        label: What that number is, for the axis.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: If `read` gives anything but one number a state.
    """
    n = len(found.parameter)
    height, at_events = read(found.states), read(found.event_states)
    if tuple(height.shape) != (n,):
        raise ValueError(
            f"`branches` read off numbers of shape {tuple(height.shape)} for {n} points. A diagram shows one number a state. "
            'Pass a function such as `lambda z: z["z"][:, 0]`.'
        )
    title = f"Fixed points along {plain(found.name)}"
    facts = [
        source(found.origin.model, found.origin.dtype),
        f"n = {counted(len(found), 'branch').replace('branchs', 'branches')}, {counted(n, 'point')}",
        f"clock: {plain(found.clock)}",
        f"residual below {found.tol:.0e}",
    ]
    if not n:
        return nothing(title, reason="no start became a fixed point", facts=facts)
    fig = panels(1, 1)
    x, y, row = array(found.parameter), array(height), array(found.branch)
    words = np.array([word.split("(")[0] for word in found.verdict], dtype=object)
    looks = styles(word for word in words if word != "not asked")
    drawn = thinned(n, limit=MAX_POINTS)
    for word in sorted(dict.fromkeys(words[drawn]), key=lambda one: _ORDER.index(one) if one in _ORDER else len(_ORDER)):
        colour, dash = (GREY, "solid") if word == "not asked" else (looks[word].colour, looks[word].dash)
        across, up = _lines(x[drawn], y[drawn], row[drawn], words[drawn] == word)
        fig.add_scatter(
            x=across,
            y=up,
            mode="lines",
            name="stability not asked" if word == "not asked" else str(word),
            line=dict(color=colour, dash=dash, width=2.2),
            hovertemplate=f"{plain(found.name)} %{{x:.5g}}, {plain(label)} %{{y:.5g}}<extra>%{{fullData.name}}</extra>",
        )
    _events(fig, found, array(at_events), label)
    fig.update_xaxes(title=plain(found.name))
    fig.update_yaxes(title=plain(label))
    facts.append(f"{len(drawn)} points drawn" if len(drawn) < n else "")
    return finish(fig, title=title, facts=facts, height=470)


def _lines(x: NDArray[np.float32], y: NDArray[np.float32], row: NDArray[np.int32], mine: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The points of one look in pieces, each with the next point of its branch so that no gap is left; a NaN parts the pieces."""
    follows = np.append(row[1:] == row[:-1], False)
    goes_on = mine & follows & np.append(mine[1:], False)
    begins, ends = mine & ~np.append(False, goes_on[:-1]), mine & ~goes_on
    across, up = [], []
    for start, end in zip(np.flatnonzero(begins), np.flatnonzero(ends), strict=True):
        stop = end + 2 if follows[end] else end + 1
        across.append(np.append(x[start:stop], np.nan))
        up.append(np.append(y[start:stop], np.nan))
    return np.concatenate(across).astype(np.float32), np.concatenate(up).astype(np.float32)


def _events(fig: go.Figure, found: Branch, height: NDArray[np.float32], label: str) -> None:
    kinds = np.array(found.event_kind, dtype=object)
    error = found.event_error.detach().cpu().numpy()
    for kind, (symbol, colour) in _EVENTS.items():
        mine = np.flatnonzero(kinds == kind)
        if len(mine):
            fig.add_scatter(
                x=array(found.event_parameter)[mine],
                y=height[mine],
                mode="markers",
                name=f"{kind} ({len(mine)})",
                marker=dict(symbol=symbol, color=colour, size=11, line=dict(width=1, color=GREY)),
                customdata=np.stack([found.event_parameter.detach().cpu().numpy()[mine], error[mine]], 1),
                hovertemplate=f"{kind} at {plain(found.name)} = %{{customdata[0]:.9f}}, error about %{{customdata[1]:.0e}}<br>{plain(label)} %{{y:.5g}}<extra></extra>",
            )
