"""One look for every figure: colours, light and dark templates, captions, choosing rows."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

Mode = Literal["light", "dark"]

# Okabe and Ito (2008). Their black gives way to greys that stand out on white and on black alike.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"
GREY, OTHERS = "#8A929C", "#4A4F57"
CATEGORICAL = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW)
SEQUENTIAL = "Cividis"

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "pentagon", "hexagram")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Style:
    """How one group is drawn: never by colour alone."""

    colour: str
    symbol: str
    dash: str


# Hue says solved or not, lightness and dash say settled or not; likewise stable and not.
_KNOWN = {
    "settled, solved": Style(BLUE, "circle", "solid"),
    "settled, wrong": Style(VERMILION, "diamond", "solid"),
    "unsettled, solved": Style(SKY, "circle-open", "dash"),
    "unsettled, wrong": Style(ORANGE, "diamond-open", "dash"),
    "settled": Style(BLUE, "circle", "solid"),
    "unsettled": Style(ORANGE, "diamond-open", "dash"),
    "solved": Style(BLUE, "circle", "solid"),
    "wrong": Style(VERMILION, "diamond", "dash"),
    "stable": Style(BLUE, "circle", "solid"),
    "unstable": Style(VERMILION, "diamond", "dash"),
    "marginal": Style(PURPLE, "square", "dot"),
    "ill-conditioned": Style(GREY, "x", "dashdot"),
    "any": Style(GREY, "x", "dash"),  # a ceiling, beside seven ways to select
}


def template(mode: Mode) -> go.layout.Template:
    """The look of every figure, for a light or a dark page. Only what depends on the page's colour differs."""
    ink, muted, grid, line = (
        ("#1B1F24", "#4B535C", "#E4E7EB", "#9AA3AD") if mode == "light" else ("#E8EAED", "#B4BBC4", "#2C3239", "#6B747F")
    )
    axis = dict(
        gridcolor=grid,
        linecolor=line,
        tickcolor=line,
        zeroline=False,
        showline=True,
        ticks="outside",
        ticklen=4,
        automargin=True,
        title=dict(font=dict(size=13), standoff=8),
        tickfont=dict(size=12, color=muted),
    )
    bar = dict(
        outlinewidth=0, ticks="outside", ticklen=3, thickness=12, tickfont=dict(size=11, color=muted), title=dict(font=dict(size=12))
    )
    return go.layout.Template(
        layout=dict(
            font=dict(family=_FONT, size=13, color=ink),
            paper_bgcolor="rgba(0,0,0,0)" if mode == "light" else "#14171B",
            plot_bgcolor="rgba(0,0,0,0)",
            colorway=list(CATEGORICAL),
            colorscale=dict(sequential=SEQUENTIAL),
            title=dict(x=0, xref="paper", xanchor="left", font=dict(size=17), subtitle=dict(font=dict(size=12, color=muted))),
            xaxis=axis,
            yaxis=axis,
            coloraxis=dict(colorbar=bar),
            legend=dict(orientation="h", yref="container", y=0, yanchor="bottom", x=0, xanchor="left", font=dict(size=12)),
            hoverlabel=dict(font=dict(family=_FONT, size=12)),
            hovermode="closest",
            modebar=dict(bgcolor="rgba(0,0,0,0)", color=line, activecolor=ink),
            margin=dict(l=64, r=24, t=92, b=90),
        ),
        data=dict(heatmap=[go.Heatmap(colorbar=bar)]),
    )


def recoloured(fig: go.Figure, *, mode: Mode) -> go.Figure:
    """A copy of a figure for a light or a dark page. The figure itself stays as it is."""
    twin = go.Figure(fig)
    twin.layout.template = template(mode)
    return twin


def panels(rows: int, cols: int, *, titles: Sequence[str] = (), **spacing: Any) -> go.Figure:
    """An empty figure of `rows` x `cols` panels with small panel titles."""
    fig = go.Figure(make_subplots(rows=rows, cols=cols, subplot_titles=list(titles) or None, **spacing))
    fig.update_annotations(font_size=13)
    return fig


def finish(fig: go.Figure, *, title: str, facts: Sequence[str], height: int = 430) -> go.Figure:
    """The figure with its title, its facts (n, clock, tol) as subtitle, and the light template.

    `layout.meta["width"]`, if a figure sets it, is the least width in pixels at which it can be read.
    """
    named = [trace for trace in fig.data if trace.showlegend is not False and trace.type in ("scatter", "bar")]
    if len(named) < 2:  # No legend, so no room for one.
        fig.update_layout(showlegend=False, margin=dict(b=58))
        height -= 38
    return fig.update_layout(
        template=template("light"), height=height, title=dict(text=title, subtitle=dict(text=" · ".join(fact for fact in facts if fact)))
    )


def in_doublings(values: NDArray[Any]) -> dict[str, object]:
    """A logarithmic axis for positive numbers, marked at powers of two, at most eight of them."""
    low, high = int(np.floor(np.log2(values.min()))), int(np.ceil(np.log2(values.max())))
    marks = range(low, high + 1, -(-(high - low + 1) // 8))
    return dict(type="log", tickvals=[2.0**k for k in marks], ticktext=[f"{2.0**k:g}" if k < 20 else f"2^{k}" for k in marks])


def nothing(title: str, *, reason: str, facts: Sequence[str] = ()) -> go.Figure:
    """A figure that says why there is nothing to show."""
    fig = go.Figure()
    fig.add_annotation(text=f"nothing to show: {reason}", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font=dict(size=14))
    fig.update_xaxes(visible=False, range=[0, 1])
    fig.update_yaxes(visible=False, range=[0, 1])
    return finish(fig, title=title, facts=facts, height=220)


def plain(text: str) -> str:
    """`text` so that plotly, which reads a little HTML, shows it letter by letter."""
    return html.escape(text, quote=False)


def array(values: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, at most float32 or int32 wide: more digits cannot be seen."""
    found = values.detach().cpu().numpy()
    if found.dtype.kind == "f":
        return found.astype(np.float32)
    return found.astype(np.int32) if found.dtype.kind in "iu" else found


def counted(n: int, thing: str) -> str:
    """A count with its noun, e.g. ``"1 row"`` or ``"1,024 rows"``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def run_facts(instance: Tensor, *, clock: str, model: str, dtype: str = "") -> list[str]:
    """What every caption of a noun with rows says: the model, how many rows of how many instances, and the clock."""
    n, k = len(instance), int(instance.unique().numel())
    rows = f"n = {counted(n, 'row')}" + (f" ({counted(k, 'instance')})" if k != n else "")
    return [source(model, dtype), rows, f"clock: {plain(clock)}"]


def source(model: str, dtype: str = "") -> str:
    """The model's name and dtype; empty for an unnamed one."""
    return "" if model in ("", "unnamed") else plain(model) + (f" in {plain(dtype)}" if dtype else "")


def styles(words: Iterable[str]) -> dict[str, Style]:
    """A style for each different word: a fixed one for outcomes and verdicts, the next free one for others."""
    present = list(dict.fromkeys(words))
    known = {word: style for word, style in _KNOWN.items() if word in present}
    taken = {style.colour for style in known.values()}
    free = [style for style in map(Style, CATEGORICAL, _SYMBOLS, _DASHES) if style.colour not in taken] or [Style(GREY, "x", "dot")]
    free += [Style(style.colour, f"{style.symbol}-open", "dot" if style.dash == "solid" else "solid") for style in free]  # when hues run out
    unknown = sorted(word for word in present if word not in known)
    return known | {word: free[i % len(free)] for i, word in enumerate(unknown)}


def share_of(groups: Sequence[str], *, limit: int) -> NDArray[Any]:
    """At most about `limit` numbers of whole items, every group in proportion, evenly spaced within its group, at least one of each."""
    names = np.asarray(groups, dtype=object)
    if len(names) <= limit:
        return np.arange(len(names))
    chosen = []
    for word in dict.fromkeys(groups):
        members = np.flatnonzero(names == word)
        quota = max(1, int(limit * len(members) / len(names)))
        chosen.append(members[np.linspace(0, len(members) - 1, quota).round().astype(np.int64)])
    return np.sort(np.concatenate(chosen))


def thinned(n: int, *, limit: int) -> NDArray[Any]:
    """At most `limit` of the numbers 0 to n − 1, evenly spaced, the first and the last among them."""
    return np.arange(n) if n <= limit else np.unique(np.linspace(0, n - 1, limit).round().astype(np.int64))


def joined(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Many lines as one trace: `x` is ``[time]``, or ``[time row]`` like `y`; a NaN parts one line from the next."""
    wide = np.broadcast_to(x[:, None], y.shape) if x.ndim == 1 else x
    gap = np.full((1, y.shape[1]), np.nan, dtype=np.float32)
    return tuple(np.concatenate([part.astype(np.float32), gap]).T.ravel() for part in (wide, y))  # type: ignore[return-value]


def shade(n: int) -> list[str]:
    """`n` ordered colours, each of which stands out on white and on black."""
    where = np.linspace(0.25, 0.8, n) if n > 1 else np.array([0.45])
    return [str(colour) for colour in sample_colorscale("Viridis", where.tolist())]


def faded(colour: str, alpha: float) -> str:
    """A colour ``#RRGGBB`` or ``rgb(...)`` with an opacity."""
    if colour.startswith("#"):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha:g})"
    return colour.replace("rgb(", "rgba(").replace(")", f",{alpha:g})")


def add_line(
    fig: go.Figure,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    style: Style,
    name: str,
    legend: bool,
    group: str = "",
    hover: str = "%{x}: %{y:.1%}",
    markers: bool = True,
    more: NDArray[Any] | None = None,
    **where: int,
) -> None:
    """A curve in the style of its group; `more` are the numbers that `hover` calls customdata."""
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines+markers" if markers else "lines",
            name=name,
            legendgroup=group or name,
            showlegend=legend,
            line=dict(color=style.colour, width=2.2, dash=style.dash),
            marker=dict(symbol=style.symbol, size=7, color=style.colour),
            customdata=more,
            hovertemplate=hover + "<extra>%{fullData.name}</extra>",
        ),
        **where,
    )


def add_band(fig: go.Figure, *, x: NDArray[Any], low: NDArray[Any], high: NDArray[Any], colour: str, group: str, **where: int) -> None:
    """A shaded band between two curves, without its own legend entry."""
    kept = np.isfinite(low) & np.isfinite(high)
    outline = dict(
        x=np.concatenate([x[kept], x[kept][::-1]]),
        y=np.concatenate([high[kept], low[kept][::-1]]),
        fill="toself",
        fillcolor=faded(colour, 0.16),
        line=dict(width=0),
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
    )
    fig.add_trace(go.Scatter(**outline), **where)


def add_level(fig: go.Figure, *, x: Sequence[float], y: float, name: str, dash: str = "dash", **where: int) -> None:
    """A grey reference line from x[0] to x[1], named in the legend."""
    fig.add_trace(
        go.Scatter(x=list(x), y=[y, y], mode="lines", name=name, line=dict(color=GREY, width=1.5, dash=dash), hoverinfo="name"), **where
    )


def unit_circle() -> tuple[NDArray[Any], NDArray[Any]]:
    """121 points around the unit circle."""
    angle = np.linspace(0, 2 * np.pi, 121)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
