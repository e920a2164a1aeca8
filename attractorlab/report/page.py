"""Build one self-contained HTML page out of texts, tables, boards and plotly figures."""

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from attractorlab.plots.tables import Markup
from attractorlab.plots.theme import template
from attractorlab.report.style import SCRIPT, STYLE
from attractorlab.types import Finding

Cell = str | int | float | bool | None
_ID = re.compile(r"[a-z][a-z0-9-]*")
# Nothing may be fetched from anywhere, whatever is written on the page. plotly compiles shaders for 3-D figures, hence eval.
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:"


@dataclass(frozen=True)
class Strong:
    """Words set in bold."""

    text: str


@dataclass(frozen=True)
class Mono:
    """Words set like code."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph: plain words, or a sequence of plain, `Strong` and `Mono` ones. All are shown letter by letter."""

    parts: str | tuple[str | Strong | Mono, ...]


@dataclass(frozen=True)
class Code:
    """Lines of code or of a terminal."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header. Numbers stand right; floats show four digits, None a dash."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """Drawings made by `attractorlab.plots.boards`, with what they show."""

    markup: Markup
    caption: str


@dataclass(frozen=True)
class Findings:
    """Numbers, one row each: what is claimed, the value, its interval, its n and its source. Shares are shown in per cent."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Figure:
    """A plotly figure. The caption is one sentence that says what was found; the table holds the numbers behind the picture."""

    fig: go.Figure
    caption: str
    table: Table | None = None


Block = Text | Code | Table | Board | Findings | Figure


@dataclass(frozen=True, eq=False)
class Section:
    """A chapter of the page. `id` is its anchor: lower-case letters, digits and hyphens."""

    id: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def build_page(title: str, sections: Sequence[Section], *, subtitle: str = "", facts: Mapping[str, str] | None = None) -> str:
    """One HTML page that needs no network: plotly.js is inside, figures are drawn when they are scrolled near.

    All words are escaped; only `Markup` is shown as it is. Figures are stored as float32, which is finer than a screen.

    Args:
        title: The title of the page.
        sections: Its chapters, in order.
        subtitle: One line below the title.
        facts: Where the page's numbers come from, e.g. model, weights, dtype and seed, by name.

    Returns:
        The page, of about 4.8 MB plus its figures.

    Raises:
        ValueError: If a section's id is not fit for an anchor or used twice, or a table's row does not match its header.

    Example:
        >>> page = build_page("A run", [Section("start", "Start", "What was asked.", (Text("Nothing <yet>."),))])
        >>> "Nothing &lt;yet&gt;." in page
        True
    """
    _check(sections)
    counter = _Counter()
    chapters = "".join(_section(section, number, counter) for number, section in enumerate(sections, start=1))
    links = "".join(
        f'<li><a href="#{section.id}"><span class="no">{number}</span>{_plain(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    listed = "".join(f"<div><dt>{_plain(name)}</dt><dd>{_plain(value)}</dd></div>" for name, value in (facts or {}).items())
    looks = {mode: template(mode).to_plotly_json() for mode in ("light", "dark")}
    for look in looks.values():
        look["layout"]["paper_bgcolor"] = "rgba(0,0,0,0)"
    has_figures = counter.figures > 0
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n',
            f"<title>{_plain(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
            '<a class="skip" href="#content">Skip to the content</a>\n',
            f'<nav aria-label="Sections"><div class="bar"><a class="name" href="#top">{_plain(title)}</a>',
            '<button id="theme" type="button" aria-pressed="false" title="Switch between light and dark">Dark</button></div>',
            f"<ol>{links}</ol></nav>\n",
            f'<main id="content"><header id="top"><h1>{_plain(title)}</h1>',
            f'<p class="subtitle">{_plain(subtitle)}</p>' if subtitle else "",
            f'<dl class="facts">{listed}</dl>' if listed else "",
            "</header>\n<noscript><p class='note'>The figures need JavaScript. Their captions and tables do not.</p></noscript>\n"
            if has_figures
            else "</header>\n",
            chapters,
            "</main>\n",
            f'<script type="application/json" id="looks">{_json(looks)}</script>\n',
            f"<script>{get_plotlyjs()}</script>\n" if has_figures else "",
            f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


class _Counter:
    """Numbers figures and tables through the page."""

    def __init__(self) -> None:
        self.figures = 0
        self.tables = 0


def _check(sections: Sequence[Section]) -> None:
    seen: set[str] = {"top", "content", "theme", "looks"}
    for section in sections:
        if not _ID.fullmatch(section.id):
            raise ValueError(
                f"`build_page` got the section id {section.id!r}. An id is an anchor: lower-case letters, digits and hyphens, a letter first. "
                "Use for example 'basins' or 'fixed-points'."
            )
        if section.id in seen or re.fullmatch(r"(figure|table|data)-\d+", section.id):
            raise ValueError(
                f"`build_page` got the section id {section.id!r} twice, or it is one of its own. Every anchor of a page differs. Choose another id."
            )
        seen.add(section.id)
        tables = [block.table if isinstance(block, Figure) else block for block in section.blocks if isinstance(block, (Figure, Table))]
        for table in tables:
            lengths = {len(row) for row in table.rows} - {len(table.header)} if table is not None else set()
            if table is not None and lengths:
                raise ValueError(
                    f"`build_page` got rows of {sorted(lengths)} cells under {len(table.header)} headings in the table {table.caption!r}. "
                    "Every row has one cell for each heading. Fill the gaps with None."
                )


def _section(section: Section, number: int, counter: _Counter) -> str:
    body = "".join(_block(block, counter) for block in section.blocks)
    lead = f'<p class="lead">{_plain(section.lead)}</p>' if section.lead else ""
    heading = f'<h2 id="{section.id}-title"><span class="no">{number}</span>{_plain(section.title)}</h2>'
    return f'<section id="{section.id}" aria-labelledby="{section.id}-title">{heading}{lead}{body}</section>\n'


def _block(block: Block, counter: _Counter) -> str:
    match block:
        case Text():
            parts = (block.parts,) if isinstance(block.parts, str) else block.parts
            return f"<p>{''.join(_inline(part) for part in parts)}</p>"
        case Code():
            return f'<pre tabindex="0"><code>{_plain(block.text)}</code></pre>'
        case Table():
            counter.tables += 1
            return _table(block, f"Table {counter.tables}")
        case Board():
            return f'<figure role="group" class="card board">{block.markup.html}<figcaption>{_plain(block.caption)}</figcaption></figure>'
        case Findings():
            return _findings(block.findings)
        case Figure():
            counter.figures += 1
            return _figure(block, counter.figures)


def _inline(part: str | Strong | Mono) -> str:
    match part:
        case Strong():
            return f"<strong>{_plain(part.text)}</strong>"
        case Mono():
            return f"<code>{_plain(part.text)}</code>"
        case _:
            return _plain(part)


def _findings(found: Sequence[Finding]) -> str:
    head = "".join(f'<th scope="col"{mark}>{word}</th>' for word, mark in (("finding", ""), ("value", ' class="num"'), ("interval or range", ""), ("n", ' class="num"'), ("source", "")))
    rows = "".join(_finding(one) for one in found)
    return f'<div class="table" tabindex="0" role="group"><table class="findings"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _finding(one: Finding) -> str:
    number = _percent if one.unit.startswith("share") else _number
    interval = f"{number(one.low)} to {number(one.high)}" if math.isfinite(one.low) and math.isfinite(one.high) else "no interval"
    unit = f'<br><span class="how">{_plain(one.unit)}</span>' if one.unit else ""
    return (
        f'<tr><td>{_plain(one.claim)}{unit}</td><td class="num value">{number(one.value)}</td><td class="span">{_gauge(one)}{interval}</td>'
        f'<td class="num">{one.n:,}</td><td class="how source">{_plain(one.source)}</td></tr>'
    )


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _gauge(one: Finding) -> str:
    """The interval as a bar, for shares only: between 0 and 1."""
    if not (one.unit.startswith("share") and 0 <= one.low <= one.value <= one.high <= 1):
        return ""
    wide = max(100 * (one.high - one.low), 0.8)
    return (
        '<svg class="gauge" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect class="track" width="100" height="6" rx="1"/>'
        f'<rect class="span" x="{min(100 * one.low, 100 - wide):.2f}" width="{wide:.2f}" height="6"/>'
        f'<rect class="mark" x="{min(100 * one.value, 99.2):.2f}" width="0.8" height="6"/></svg>'
    )


def _table(table: Table, name: str) -> str:
    numeric = [all(isinstance(row[i], (int, float)) or row[i] is None for row in table.rows) for i in range(len(table.header))]
    marks = [' class="num"' if one else "" for one in numeric]
    head = "".join(f'<th scope="col"{mark}>{_plain(word)}</th>' for word, mark in zip(table.header, marks, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{mark}>{_number(cell)}</td>" for cell, mark in zip(row, marks, strict=True)) + "</tr>" for row in table.rows
    )
    label = f"<b>{name}.</b> " if name else ""
    caption = f"<caption>{label}{_plain(table.caption)}</caption>" if table.caption or name else ""
    empty = "" if table.rows else "<p class='how'>nothing to show: the table has no rows</p>"
    notes = "".join(f'<p class="how">{_plain(note)}</p>' for note in table.notes)
    wide = " wide" if len(table.header) > 8 else ""
    return f'<div class="table{wide}" tabindex="0" role="group"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{empty}{notes}</div>'


def _figure(block: Figure, number: int) -> str:
    spec = _spec(block.fig)
    layout = spec["layout"]
    title, subtitle = _taken_title(layout)
    height = int(layout.get("height") or 430)
    margin = layout.setdefault("margin", {})
    # The page itself writes title and subtitle, where they wrap; the space that they took goes.
    panel_titles = any(note.get("yanchor") == "bottom" and note.get("yref") == "paper" for note in layout.get("annotations", []))
    margin.setdefault("t", 34 if panel_titles else 16)
    layout["height"] = height - 56
    columns = len({tuple(axis.get("domain", (0, 1))) for name, axis in layout.items() if name.startswith("xaxis")})
    width = int((layout.get("meta") or {}).get("width", 320 if columns <= 1 else 330 * columns))
    label = f"figure-{number}-caption"
    more = (
        f"<details><summary>The numbers behind figure {number}</summary>{_table(block.table, '')}</details>"
        if block.table is not None
        else ""
    )
    return (
        f'<figure role="group" class="card" id="figure-{number}" aria-labelledby="{label}">'
        f'<p class="fig-title">{title}</p><p class="fig-facts">{subtitle}</p>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="Figure {number}, interactive"><div class="plot" data-figure="{number}" '
        f'style="height:{layout["height"]}px;min-width:{width}px"></div></div>'
        f'<figcaption id="{label}"><b>Figure {number}.</b> {_plain(block.caption)}</figcaption>{more}'
        f'<script type="application/json" id="data-{number}">{_json(spec)}</script></figure>'
    )


def _spec(fig: go.Figure) -> dict[str, Any]:
    """What plotly.js needs of a figure, without its template and in few digits."""
    found = fig.to_dict()
    layout = {name: part for name, part in found["layout"].items() if name != "template"}
    return {"data": [_light(trace) for trace in found["data"]], "layout": _light(layout)}


def _light(value: Any) -> Any:
    """The same value with floats of five digits and float32 arrays; what is not finite becomes null."""
    if isinstance(value, dict):
        if value.get("dtype") == "f8" and "bdata" in value:
            numbers = np.frombuffer(base64.b64decode(value["bdata"]), dtype=np.float64).astype(np.float32)
            return value | {"dtype": "f4", "bdata": base64.b64encode(numbers.tobytes()).decode()}
        return {str(name): _light(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_light(part) for part in value]
    if isinstance(value, np.ndarray):
        return _light(value.tolist())
    if isinstance(value, np.generic):
        return _light(value.item())
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _taken_title(layout: dict[str, Any]) -> tuple[str, str]:
    """The words of title and subtitle as HTML; they leave the layout."""
    title = layout.pop("title", {})
    words = [title.get("text", ""), title.get("subtitle", {}).get("text", "")]
    return tuple(_plain(html.unescape(re.sub(r"<[^>]*>", " ", word or ""))) for word in words)  # type: ignore[return-value]


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return "–" if math.isnan(cell) else f"{cell:.4g}"
    return re.sub(r"\[[-\d.]+, [-\d.]+\]", lambda interval: interval[0].replace(" ", "\N{NO-BREAK SPACE}"), _plain(cell))


def _plain(text: str) -> str:
    return html.escape(text, quote=True)
