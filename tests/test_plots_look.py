"""Boards tell givens, answers and wrong cells apart; colours and words of figures can be told apart and read."""

import re

import pytest
import torch

from attractorlab import plots
from attractorlab.plots import theme

HOSTILE = "<script>alert(1)</script>"


def test_a_strip_of_boards_tells_givens_answers_and_wrong_cells_apart() -> None:
    inputs = torch.full((2, 16), 1)
    inputs[:, 0] = 2
    targets = torch.tensor([2, 3, 4, 5] * 4).expand(2, 16)
    answers = targets.clone()
    answers[0, 5] = 5
    strip = plots.boards(inputs, answers, targets=targets, side=4, titles=["tick 1", HOSTILE])
    first, second = strip.html.split("<svg")[1:]
    assert first.count('font-weight="700"') == 1
    assert first.count("<rect") == 1 and 'stroke="#D55E00"' in first
    assert "1 wrong cell" in first and "all cells right" in second
    assert HOSTILE not in strip.html
    assert strip._repr_html_() == strip.html
    assert 'role="img" aria-label="tick 1, 15 of 16 cells asked for, 1 wrong cell"' in first


def test_boards_accept_none_mazes_and_foreign_tokens() -> None:
    assert "nothing to show" in plots.boards(torch.zeros(0, 16).long(), torch.zeros(0, 16).long(), side=4).html
    maze = plots.boards(torch.tensor([[3, 2, 1, 4]]), torch.tensor([[3, 5, 1, 4]]), side=2, symbols=plots.MAZE, blank=2).html
    assert re.findall(r">([^<>])</text>", maze) == ["S", "●", "G"]
    assert ">?</text>" in plots.boards(torch.full((1, 16), 1), torch.full((1, 16), 99), side=4).html


@pytest.mark.usefixtures("unchecked")
def test_boards_refuse_other_shapes_and_missing_titles() -> None:
    board = torch.full((2, 16), 1)
    with pytest.raises(ValueError, match=r"shapes \[\(2, 16\), \(1, 16\)\] for a side of 4\..*Repeat the inputs"):
        plots.boards(board, board[:1], side=4)
    with pytest.raises(ValueError, match=r"for a side of 9\. Inputs, answers"):
        plots.boards(board, board, side=9)
    with pytest.raises(ValueError, match=r"got 1 titles for 2 boards\. Each board.*Pass as many"):
        plots.boards(board, board, side=4, titles=["a"])


def test_outcomes_differ_in_more_than_colour() -> None:
    words = ["settled, solved", "settled, wrong", "unsettled, solved", "unsettled, wrong"]
    looks = theme.styles(words)
    assert list(looks) == words
    assert len({look.colour for look in looks.values()}) == 4
    assert len({(look.symbol, look.dash) for look in looks.values()}) == 4


def test_unknown_words_get_styles_that_known_ones_do_not_have() -> None:
    looks = theme.styles(["solved", "zebra", "ant", "wrong"])
    assert len({look.colour for look in looks.values()}) == 4
    assert theme.styles(["ant", "zebra", "wrong", "solved"]) == looks


def test_more_words_than_hues_still_differ() -> None:
    words = ["mean", "residual", "logit_change", "vote", "halt", "first_halt", "verifier", "any"]
    assert len({look.colour for look in theme.styles(words).values()}) == 8
    assert len({(look.colour, look.symbol, look.dash) for look in theme.styles(map(str, range(14))).values()}) == 14


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("mode", "paper"), [("light", "#FFFFFF"), ("dark", "#14171B")])
def test_words_on_figures_can_be_read_on_light_and_dark_pages(mode: theme.Mode, paper: str) -> None:
    layout = theme.template(mode).layout
    for ink in (layout.font.color, layout.xaxis.tickfont.color, layout.title.subtitle.font.color):
        bright, dim = sorted([luminance(ink), luminance(paper)], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5
