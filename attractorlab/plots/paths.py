"""Pictures of projections: trajectories in the plane, side by side for several methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from attractorlab.plots.theme import Style, array, counted, faded, finish, nothing, panels, plain, shade, share_of, source, styles, thinned
from attractorlab.types import Projection

MAX_ROWS, MAX_POINTS = 60, 1600


def trajectories(projections: Sequence[Projection], outcome: Sequence[str]) -> go.Figure:
    """Trajectories in the plane, one column for each projection: coloured by tick above and by outcome below.

    Open circles are starts, stars ends. A picture, never evidence: distances, sizes and gaps in it need not be those of the states;
    how far to trust it stands above each panel.

    Args:
        projections: Projections of the same run, e.g. by PCA and by UMAP.
        outcome: A word for each row of the run, e.g. from `outcome_words`.

    Returns:
        A figure of at most about 60 whole trajectories, every outcome in proportion.

    Raises:
        ValueError: If a projection has rows that `outcome` does not, is not of the plane, or if clocks differ.
    """
    title = "Trajectories, projected"
    shown = [one for one in projections if one.coordinates.shape[0]]
    if not shown:
        return nothing(title, reason="there is no projected point")
    _check(shown, outcome)
    rows = np.unique(np.concatenate([array(one.row) for one in shown]))
    words = [outcome[int(row)] for row in rows]
    chosen = rows[share_of(words, limit=MAX_ROWS)]
    look = styles(words)
    k = len(shown)
    titles = [_panel_title(one) for one in shown] + [""] * k
    fig = panels(2, k, titles=titles, horizontal_spacing=0.12, vertical_spacing=0.12)
    last = max(int(one.tick.max()) for one in shown)
    for col, one in enumerate(shown, start=1):
        paths = _paths(one, chosen)
        if not paths:
            continue
        _by_tick(fig, paths, one, col=col, last=last)
        _by_outcome(fig, paths, {int(row): outcome[int(row)] for row in chosen}, look, col=col)
        for row in (1, 2):
            across, up = _axis_titles(one)
            fig.update_xaxes(title=across if row == 2 else None, showgrid=False, showticklabels=_linear(one), row=row, col=col)
            fig.update_yaxes(title=up, showgrid=False, showticklabels=_linear(one), row=row, col=col)
            if _linear(one):  # Distances can be read, so both axes have one scale.
                fig.update_yaxes(scaleanchor=fig.get_subplot(row, col).yaxis.anchor, row=row, col=col)
    bar = dict(title=dict(text="tick"), len=0.46, y=1, yanchor="top", thickness=12, outlinewidth=0)
    fig.update_layout(meta=dict(width=390 * k), coloraxis=dict(colorscale=shade(9), cmin=0, cmax=max(last, 1), colorbar=bar))
    facts = [source(shown[0].origin.model, shown[0].origin.dtype), f"n = {counted(len(rows), 'row')}", f"clock: {plain(shown[0].clock)}"]
    facts += [f"{len(chosen)} trajectories drawn" if len(chosen) < len(rows) else "", "open circle: start, star: end"]
    return finish(fig, title=title, facts=facts, height=820)


def _check(projections: Sequence[Projection], outcome: Sequence[str]) -> None:
    for one in projections:
        if int(one.row.max()) >= len(outcome):
            raise ValueError(
                f"`trajectories` got {len(outcome)} outcomes, and a projection of row {int(one.row.max())}. Every row of the run needs one. "
                "Pass `outcome_words(conv)` of the same run."
            )
        if one.coordinates.shape[1] != 2:
            raise ValueError(
                f"`trajectories` got a projection with {one.coordinates.shape[1]} axes. It draws planes. Project with `n_components=2`."
            )
    clocks = sorted({one.clock for one in projections})
    if len(clocks) > 1:
        raise ValueError(
            f"`trajectories` got projections on the clocks {clocks}. Ticks of different clocks cannot share a colour bar. Draw one figure for each clock."
        )


def _paths(one: Projection, chosen: NDArray[Any]) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
    """Points and ticks of each chosen row in order of ticks, thinned alike so that the figure stays light."""
    row, tick, points = array(one.row), array(one.tick), array(one.coordinates)
    found = {}
    for name in chosen:
        mine = np.flatnonzero(row == name)
        if not len(mine):
            continue
        mine = mine[np.argsort(tick[mine], kind="stable")]
        kept = mine[thinned(len(mine), limit=max(2, MAX_POINTS // len(chosen)))]
        found[int(name)] = (points[kept], tick[kept])
    return found


def _by_tick(fig: go.Figure, paths: dict[int, tuple[NDArray[Any], NDArray[Any]]], one: Projection, *, col: int, last: int) -> None:
    x, y = _lines(paths, list(paths))
    fig.add_scatter(
        x=x, y=y, mode="lines", line=dict(color="rgba(138,146,156,0.45)", width=0.8), hoverinfo="skip", showlegend=False, row=1, col=col
    )
    points = np.concatenate([path for path, _ in paths.values()])
    ticks = np.concatenate([when for _, when in paths.values()])
    names = np.concatenate([np.full(len(when), row, dtype=np.int32) for row, (_, when) in paths.items()])
    fig.add_scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        marker=dict(size=4.5, color=ticks, coloraxis="coloraxis"),
        showlegend=False,
        customdata=names,
        hovertemplate="row %{customdata}, tick %{marker.color}<extra></extra>",
        row=1,
        col=col,
    )
    _ends(fig, paths, list(paths), colour="#8A929C", row=1, col=col)


def _by_outcome(
    fig: go.Figure,
    paths: dict[int, tuple[NDArray[Any], NDArray[Any]]],
    word_of: dict[int, str],
    look: dict[str, Style],
    *,
    col: int,
) -> None:
    for word, style in look.items():
        rows = [row for row in paths if word_of[row] == word]
        if not rows:
            continue
        x, y = _lines(paths, rows)
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line=dict(color=faded(style.colour, 0.7), width=1.2, dash=style.dash),
            legendgroup=word,
            showlegend=col == 1,
            name=plain(word),
            hoverinfo="name",
            row=2,
            col=col,
        )
        _ends(fig, paths, rows, colour=style.colour, row=2, col=col, group=word)


def _lines(paths: dict[int, tuple[NDArray[Any], NDArray[Any]]], rows: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    gap = np.full((1, 2), np.nan, dtype=np.float32)
    whole = np.concatenate([part for row in rows for part in (paths[row][0], gap)])
    return whole[:, 0], whole[:, 1]


def _ends(
    fig: go.Figure,
    paths: dict[int, tuple[NDArray[Any], NDArray[Any]]],
    rows: list[int],
    *,
    colour: str,
    row: int,
    col: int,
    group: str = "",
) -> None:
    for place, symbol, size, what in ((0, "circle-open", 7, "start"), (-1, "star", 10, "end")):
        points = np.stack([paths[name][0][place] for name in rows])
        fig.add_scatter(
            x=points[:, 0],
            y=points[:, 1],
            mode="markers",
            marker=dict(symbol=symbol, size=size, color=colour, line=dict(width=1.2 if place == 0 else 0.5)),
            customdata=np.array(rows, dtype=np.int32),
            hovertemplate=f"{what} of row %{{customdata}}<extra></extra>",
            showlegend=False,
            legendgroup=group or None,
            row=row,
            col=col,
        )


def _variance(one: Projection) -> list[float]:
    """The shares of variance that the scores name, in their order: of the first axis, of the second."""
    return [value for name, value in sorted(one.faithfulness.items()) if name.startswith("variance")]


def _linear(one: Projection) -> bool:
    return bool(_variance(one))


def _axis_titles(one: Projection) -> tuple[str, str]:
    shares = _variance(one)
    if len(shares) >= 2:
        return f"axis 1 ({shares[0]:.1%} of variance)", f"axis 2 ({shares[1]:.1%})"
    return "axis 1 (no unit)", "axis 2 (no unit)"


def _panel_title(one: Projection) -> str:
    scores = [f"{name} {one.faithfulness[name]:.2f}" for name in ("trustworthiness", "continuity") if name in one.faithfulness]
    return f"<b>{plain(one.method)}</b>" + (f": {', '.join(scores)}" if scores else "")
