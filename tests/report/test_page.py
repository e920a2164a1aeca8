"""The page stands alone: it parses, fetches nothing, runs nothing that it was not given, and draws its figures in a browser."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from plotly.offline import get_plotlyjs

from attractorlab import plots
from attractorlab.report.page import Block, Board, Code, Figure, Findings, Mono, Section, Strong, Table, Text, build_page
from attractorlab.types import Finding

HOSTILE = "</script><script>window.stolen=1</script><img src=x onerror=window.stolen=1>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "path"}


class Reader(HTMLParser):
    """Collects elements, and fails on one that is closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page.replace(get_plotlyjs(), ""))
    assert reader.open == []
    return reader


def figure(name: str = "a curve", n: int = 50) -> go.Figure:
    fig = go.Figure(go.Scatter(x=np.arange(n) / 7, y=np.sin(np.arange(n)), name=name))
    return fig.update_layout(title=dict(text=name, subtitle=dict(text="n = 50 · clock: recursion")), height=400)


def page_of(*blocks: Block, title: str = "A run") -> str:
    return build_page(title, [Section("one", "First", "What was asked.", blocks)], subtitle="A subtitle", facts={"model": "toy"})


def spec_of(page: str, number: int = 1) -> dict[str, object]:
    found = re.search(rf'<script type="application/json" id="data-{number}">(.*?)</script>', page, re.S)
    assert found
    spec: dict[str, object] = json.loads(found.group(1))
    return spec


def finding(low: float = 0.7, high: float = 0.9, unit: str = "share") -> Finding:
    return Finding(claim="share of starts that settle", value=0.8, low=low, high=high, n=1234, unit=unit, source="convergence.zarr")


def test_a_page_parses_and_every_reference_inside_it_has_its_target() -> None:
    table = Table(("tick", "share"), ((1, 0.5), (2, None)), "Shares", ("A note.",))
    page = page_of(Text("Words."), Figure(figure(), "It oscillates.", table), table, Code("a < b"), Findings((finding(),)))
    reader = read(page)
    ids = [attrs["id"] for _, attrs in reader.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in reader.all("a"):
        assert (attrs["href"] or "")[1:] in ids
    for _, attrs in reader.seen:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
    assert reader.all("html")[0]["lang"] == "en"
    assert [attrs.get("role") for attrs in reader.all("figure")] == ["group"]
    assert "It oscillates." in "".join(reader.words)
    assert [len(reader.all(tag)) for tag in ("h1", "h2", "main", "nav", "noscript", "details")] == [1] * 6


def test_nothing_on_a_page_points_outside_and_the_browser_is_told_to_fetch_nothing() -> None:
    reader = read(page_of(Figure(figure(), "It oscillates.")))
    for _, attrs in reader.seen:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attrs.get(name) or "#").startswith("#")
    policy = next(attrs["content"] or "" for attrs in reader.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy and "connect-src" not in policy


def test_the_plotting_code_is_there_once_and_only_with_figures() -> None:
    with_two = page_of(Figure(figure(), "One."), Figure(figure(), "Two."))
    assert with_two.count(get_plotlyjs()) == 1
    assert len(with_two) < 5.2e6
    assert len(page_of(Text("No figure."))) < 40_000


def test_words_with_markup_are_shown_letter_by_letter_wherever_they_stand() -> None:
    fig = figure(HOSTILE).update_xaxes(title=HOSTILE)
    bad = Finding(claim=HOSTILE, value=0.5, low=0.4, high=0.6, n=3, unit=HOSTILE, source=HOSTILE)
    table = Table((HOSTILE,), ((HOSTILE,),), HOSTILE, (HOSTILE,))
    board = Board(plots.boards(torch.ones(1, 16).long(), torch.ones(1, 16).long(), side=4, titles=[HOSTILE]), HOSTILE)
    text = Text((HOSTILE, Strong(HOSTILE), Mono(HOSTILE)))
    section = Section("one", HOSTILE, HOSTILE, (text, Figure(fig, HOSTILE, table), table, board, Code(HOSTILE), Findings((bad,))))
    page = build_page(HOSTILE, [section], subtitle=HOSTILE, facts={HOSTILE: HOSTILE})
    reader = read(page)
    assert HOSTILE not in page
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S):
        assert not set(data) & set("<>&")
    assert reader.all("img") == []
    assert not any(name.startswith("on") for _, attrs in reader.seen for name in attrs)
    # looks, data, plotly.js and the page's own.
    assert len(reader.all("script")) == 4
    assert "".join(reader.words).count(HOSTILE) >= 15


def test_figures_are_stored_in_few_digits_and_valid_json() -> None:
    fig = go.Figure()
    fig.add_scatter(x=np.array([1 / 3, np.nan, 2.0]), y=[1 / 3, float("nan"), float("inf")], customdata=[np.float64(2 / 3), None, 1])
    (trace,) = spec_of(page_of(Figure(fig, "Thirds.")))["data"]  # type: ignore[misc]
    assert trace["x"]["dtype"] == "f4"
    kept = np.frombuffer(base64.b64decode(trace["x"]["bdata"]), dtype=np.float32)
    assert kept == pytest.approx([1 / 3, np.nan, 2.0], rel=1e-6, nan_ok=True)
    assert trace["y"] == [0.33333, None, None]
    assert trace["customdata"] == [0.66667, None, 1]


def test_a_figure_leaves_its_title_and_its_theme_to_the_page_and_is_not_changed() -> None:
    fig = plots.recoloured(figure("Sine & co"), mode="dark")
    before = fig.to_json()
    page = page_of(Figure(fig, "It oscillates."))
    layout = spec_of(page)["layout"]
    assert isinstance(layout, dict)
    assert "title" not in layout and "template" not in layout
    assert '<p class="fig-title">Sine &amp; co</p>' in page
    assert "n = 50 · clock: recursion" in page
    assert fig.to_json() == before


def test_both_looks_are_on_the_page() -> None:
    found = re.search(r'id="looks">(.*?)</script>', page_of(Text("x")), re.S)
    assert found
    looks = json.loads(found.group(1))
    assert looks["light"]["layout"]["font"]["color"] != looks["dark"]["layout"]["font"]["color"]


def test_cells_show_numbers_to_the_right_and_gaps_as_dashes() -> None:
    page = page_of(Table(("name", "n", "share", "ok"), (("a", 12345, 0.123456, True), ("b", None, float("nan"), False))))
    assert '<td class="num">12,345</td><td class="num">0.1235</td>' in page
    assert page.count('<td class="num">–</td>') == 2
    assert ">yes<" in page and ">no<" in page
    assert "2.6 [1.4,\N{NO-BREAK SPACE}4.0]" in page_of(Table(("a",), (("2.6 [1.4, 4.0]",),))), "an interval is not broken in two"
    assert "the table has no rows" in page_of(Table(("a",), ()))


def test_a_finding_shows_value_interval_and_n_and_a_bar_only_for_shares() -> None:
    share = page_of(Findings((finding(),)))
    assert "70.0 % to 90.0 %" in share and '<td class="num">1,234</td>' in share
    assert 'class="gauge"' in share
    ticks = page_of(Findings((finding(unit="ticks"),)))
    assert 'class="gauge"' not in ticks and "0.7 to 0.9" in ticks
    assert "no interval" in page_of(Findings((finding(float("nan"), float("nan")),)))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["Bad id"], r"the section id 'Bad id'\. An id is an anchor.*Use for example"),
        (["one", "one"], r"the section id 'one' twice.*Every anchor.*Choose another"),
        (["figure-1"], r"'figure-1' twice, or it is one of its own"),
    ],
)
def test_anchors_are_checked(ids: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_page("A run", [Section(one, "Title", "", ()) for one in ids])


def test_a_row_of_the_wrong_length_is_refused_also_behind_a_figure() -> None:
    table = Table(("a", "b"), ((1, 2), (1, 2, 3)), "Numbers")
    for block in (table, Figure(figure(), "x", table)):
        with pytest.raises(ValueError, match=r"rows of \[3\] cells under 2 headings in the table 'Numbers'\. Every row.*Fill the gaps"):
            page_of(block)


def luminance(colour: str) -> float:
    short = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    channels = [int(short[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_words_of_the_page_can_be_read_in_both_modes() -> None:
    page = page_of(Text("x"))
    modes = [dict(re.findall(r"--(\w+):(#\w+)", part)) for part in re.findall(r":root[^{]*\{(--paper.*?)\}", page, re.S)]
    assert len(modes) == 3
    for colours in modes:
        for ink in ("ink", "muted", "accent"):
            for ground in ("paper", "card", "tint"):
                bright, dim = sorted([luminance(colours[ink]), luminance(colours[ground])], reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_the_figures_and_runs_nothing_foreign(tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    probe = "<script>addEventListener('load',()=>setTimeout(()=>{document.title='drawn '+document.querySelectorAll('.main-svg').length+' stolen '+window.stolen},1500))</script>"
    page = page_of(Figure(figure(HOSTILE), HOSTILE), Text(HOSTILE), title=HOSTILE)
    file.write_text(page.replace("</body>", probe + "</body>"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=900,1200",
        "--virtual-time-budget=8000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    assert BROWSER is not None
    done = subprocess.run([BROWSER, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title and title.group(1) == "drawn 3 stolen undefined"
