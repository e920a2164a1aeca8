"""Boards as small drawings: givens, filled cells and wrong cells told apart."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from attractorlab.plots.theme import BLUE, SKY, VERMILION

SUDOKU = ("", "", "1", "2", "3", "4", "5", "6", "7", "8", "9")
MAZE = ("", "█", "", "S", "G", "●")
"""What each token id looks like in the official vocabularies: padding first, then blank or wall."""

_BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
_CELL = 20


@dataclass(frozen=True)
class Markup:
    """HTML that is trusted to be shown as it is. Notebooks draw it."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def boards(
    inputs: Int[Tensor, "board site"],
    answers: Int[Tensor, "board site"],
    *,
    targets: Int[Tensor, "board site"] | None = None,
    side: int,
    titles: Sequence[str] = (),
    symbols: Sequence[str] = SUDOKU,
    blank: int = 1,
) -> Markup:
    """A strip of boards: givens bold, answers in blue, wrong cells tinted and struck through.

    Repeat an instance's inputs to draw its answers at several ticks as a filmstrip.

    Args:
        inputs: Token ids of what was asked.
        answers: Token ids of what was answered.
        targets: Token ids of the solutions; without them no cell is marked as wrong.
        side: Cells along one side.
        titles: A line under each board, e.g. its id or tick.
        symbols: What each token id looks like; `MAZE` for mazes.
        blank: The token id of a cell that is asked for: 1 in Sudoku, 2 in mazes.

    Returns:
        Drawings that need no style sheet and follow the text colour of the page.

    Raises:
        ValueError: If shapes or the number of titles do not match.

    Example:
        >>> import torch
        >>> strip = boards(torch.full((1, 16), 1), torch.full((1, 16), 3), side=4, titles=["tick 0"])
        >>> strip.html.count("<svg")
        1
    """
    _check(inputs, answers, targets, side, titles)
    if not len(inputs):
        return Markup("<p>nothing to show: there are no boards</p>")
    words = list(titles) or [""] * len(inputs)
    drawn = []
    for i, word in enumerate(words):
        wanted = None if targets is None else targets[i].tolist()
        drawn.append(_board(inputs[i].tolist(), answers[i].tolist(), wanted, side=side, title=word, symbols=symbols, blank=blank))
    return Markup('<div class="boards" style="display:flex;flex-wrap:wrap;gap:18px">' + "".join(drawn) + "</div>")


def _check(inputs: Tensor, answers: Tensor, targets: Tensor | None, side: int, titles: Sequence[str]) -> None:
    shapes = [tuple(part.shape) for part in (inputs, answers, targets) if part is not None]
    if len(set(shapes)) > 1 or inputs.ndim != 2 or inputs.shape[1] != side * side:
        raise ValueError(
            f"`boards` got tensors of shapes {shapes} for a side of {side}. Inputs, answers and targets have one shape, boards x side². "
            "Repeat the inputs with `inputs.expand_as(answers)`, or pass another `side`."
        )
    if titles and len(titles) != len(inputs):
        raise ValueError(
            f"`boards` got {len(titles)} titles for {len(inputs)} boards. Each board has one or none has. Pass as many titles as boards."
        )


def _board(
    given: list[int], answer: list[int], wanted: list[int] | None, *, side: int, title: str, symbols: Sequence[str], blank: int
) -> str:
    size, parts = side * _CELL, []
    wrong = 0
    for site, (asked, got) in enumerate(zip(given, answer, strict=True)):
        x, y = site % side * _CELL, site // side * _CELL
        off = wanted is not None and got != wanted[site]
        wrong += off
        if off:
            parts.append(f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{VERMILION}" fill-opacity="0.28"/>')
            parts.append(f'<path d="M{x + 2} {y + _CELL - 2}L{x + _CELL - 2} {y + 2}" stroke="{VERMILION}" stroke-width="1.5"/>')
        mark = symbols[got] if 0 <= got < len(symbols) else "?"
        if mark == "█":
            parts.append(f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="currentColor" fill-opacity="0.55"/>')
        elif mark:
            # Without `light-dark` a browser keeps the plain blue.
            filled_in = 'fill="currentColor"' if off else f'fill="{BLUE}" style="fill:light-dark({BLUE},{SKY})"'
            look = 'fill="currentColor" font-weight="700"' if asked != blank else filled_in
            parts.append(f'<text x="{x + _CELL / 2:g}" y="{y + _CELL * 0.72:g}" {look}>{html.escape(mark)}</text>')
    down, across = _BOXES.get(side, (side, side)) if symbols == SUDOKU else (side, side)
    for i in range(side + 1):
        for bold, line in ((i % across == 0, f"M{i * _CELL} 0V{size}"), (i % down == 0, f"M0 {i * _CELL}H{size}")):
            if side <= 12 or i in (0, side):
                parts.append(
                    f'<path d="{line}" stroke="currentColor" stroke-width="{1.6 if bold else 0.4}" stroke-opacity="{0.9 if bold else 0.5}"/>'
                )
    filled = sum(asked == blank for asked in given)
    verdict = "" if wanted is None else ("all cells right" if not wrong else f"{wrong} wrong cell{'s' if wrong > 1 else ''}")
    label = html.escape(", ".join(word for word in (title, f"{filled} of {side * side} cells asked for", verdict) if word))
    caption = html.escape(title) + (" · " if title and verdict else "") + verdict
    width = min(360, (24 if side <= 12 else 12) * side)
    return (
        f'<div style="width:{width}px"><svg role="img" aria-label="{label}" viewBox="-1.5 -1.5 {size + 3} {size + 3}" width="{width}" '
        f'font-family="ui-monospace,monospace" font-size="{_CELL * 0.66:g}" text-anchor="middle" fill="none">{"".join(parts)}</svg>'
        f'<div style="font-size:0.8em;text-align:center">{caption}</div></div>'
    )
