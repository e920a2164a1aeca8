"""Boards, rules and text of Sudoku with sides of 4, 6 and 9."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.tasks.boards import DataError, board_ids, refuse_other_answers
from attractorlab.types import Instance

PAD, BLANK = 0, 1
"""Token ids of the official vocabulary; digit d is token d + 1."""

_BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
_TASKS = {"sudoku": 9, "sudoku-4": 4, "sudoku-6": 6, "sudoku-9": 9}


def sudoku_side(task: str) -> int:
    """The side of a Sudoku's board by the name of the task: 4, 6 or 9.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> sudoku_side("sudoku"), sudoku_side("sudoku-6")
        (9, 6)
    """
    if task not in _TASKS:
        known = ", ".join(repr(name) for name in _TASKS)
        raise ValueError(f"`sudoku_side` got the task {task!r}. The tasks are {known}. Pass one of them, e.g. 'sudoku-9'.")
    return _TASKS[task]


def box_of(side: int) -> tuple[int, int]:
    """The rows and columns of one box on a board of that side.

    Raises:
        ValueError: If the side is not 4, 6 or 9.

    Example:
        >>> box_of(6)
        (2, 3)
    """
    if side not in _BOXES:
        raise ValueError(f"`box_of` got a side of {side}. Boards have a side of 4, 6 or 9. Pass `side=9`, or another of them.")
    return _BOXES[side]


def side_for(sites: int) -> int:
    """The side of a board of that many sites.

    Raises:
        ValueError: If no board has so many.

    Example:
        >>> side_for(81)
        9
    """
    for side in _BOXES:
        if side * side == sites:
            return side
    raise ValueError(f"`side_for` got a board of {sites} sites. Boards have 16, 36 or 81 sites. Pass whole boards, row by row.")


def verify(instance: Instance, answers: Integer[Tensor, "... row site"]) -> Bool[Tensor, "... row"]:
    """Which answers are complete boards that obey the rules and keep the givens.

    No stored solution is read, so that any of several solutions counts, and puzzles without targets can be scored.

    Args:
        instance: The puzzles, one for each row of `answers`; use `instance[rows]` to repeat or choose them.
        answers: Token ids. Any axes may lead, e.g. ``[time row site]``; ids outside the vocabulary are wrong, not an error.

    Returns:
        True where every row, column and box holds each digit once and every given is kept.

    Raises:
        ValueError: If the last two axes do not match the puzzles.

    Example:
        >>> puzzle = from_tokens([[1, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2]], task="sudoku-4")
        >>> verify(puzzle, puzzle.inputs).item(), verify(puzzle, puzzle.inputs.clamp(min=2)).item()
        (False, True)
    """
    refuse_other_answers(instance, answers, caller="verify")
    givens = instance.inputs.to(answers.device)
    kept = ((givens <= BLANK) | (answers == givens)).all(-1)
    return kept & _complete(answers, sudoku_side(instance.task))


def from_tokens(ids: Sequence[Sequence[int]] | NDArray[np.integer] | Integer[Tensor, "row site"], *, task: str = "sudoku") -> Instance:
    """Puzzles made of raw token ids: 1 for a blank, d + 1 for digit d.

    Nothing but the vocabulary is checked: contradictory puzzles and puzzles with many solutions pass, and
    there are no targets. Score answers with `verify`, find solutions with `solve`.

    Args:
        ids: A board to a row, site by site in reading order.
        task: "sudoku-4", "sudoku-6" or "sudoku-9"; "sudoku" is the last.

    Raises:
        DataError: If a row has the wrong length or an id outside the vocabulary.

    Example:
        >>> from_tokens([[1] * 16], task="sudoku-4").inputs.shape
        torch.Size([1, 16])
    """
    side = sudoku_side(task)
    rule = f"In {task} a blank is 1 and digit d is d + 1, up to {side + 1}. Add 1 to every id if your blanks are 0."
    tokens = board_ids(ids, task=task, side=side, lowest=BLANK, highest=side + 1, rule=rule)
    ids_made = tuple(f"tokens/{i}" for i in range(len(tokens)))
    return Instance(inputs=tokens, targets=None, ids=ids_made, task=f"sudoku-{side}", difficulty=None)


def from_text(lines: str | Sequence[str]) -> Int[Tensor, "row site"]:
    """Token ids of boards written as lines: digits, and a point or a 0 for a blank.

    Raises:
        DataError: If a line is no board, has another length than the first, or another letter. Names the row.
        ValueError: If there are no lines.

    Example:
        >>> from_text("12..34..........")[0, :5].tolist()
        [2, 3, 1, 1, 4]
    """
    boards = [lines] if isinstance(lines, str) else list(lines)
    if not boards:
        raise ValueError("`from_text` got no lines. A board is one line of 16, 36 or 81 letters. Pass a line for each board.")
    sizes = {side * side: side for side in _BOXES}
    letters = len(boards[0].strip())
    if letters not in sizes:
        raise DataError(
            f"`from_text` got a board of {letters} letters in row 0. "
            "A board has 16, 36 or 81, row by row, with a point for a blank. "
            "Put each board on one line."
        )
    return tokens_of(boards, [f"row {i}" for i in range(len(boards))], side=sizes[letters], caller="from_text")


def to_text(tokens: Int[Tensor, " site"]) -> str:
    """A board as one line: digits, a point for a blank.

    Example:
        >>> to_text(from_text("12..34..........")[0])
        '12..34..........'
    """
    return "".join(_letter(token) for token in tokens.tolist())


def grid_lines(tokens: Int[Tensor, " site"]) -> tuple[str, ...]:
    """A board as lines to print, with rules between its boxes.

    Example:
        >>> print("\\n".join(grid_lines(from_text("12..34..........")[0])))
        1 2 | . .
        3 4 | . .
        ----+----
        . . | . .
        . . | . .
    """
    side = side_for(tokens.shape[0])
    high, wide = box_of(side)
    letters = [_letter(token) for token in tokens.tolist()]
    lines: list[str] = []
    for row in range(side):
        if row and row % high == 0:
            lines.append("-+-".join("-" * (2 * wide - 1) for _ in range(side // wide)))
        line = letters[row * side : (row + 1) * side]
        lines.append(" | ".join(" ".join(line[at : at + wide]) for at in range(0, side, wide)))
    return tuple(lines)


def tokens_of(boards: Sequence[str], where: Sequence[str], *, side: int, caller: str) -> Int[Tensor, "row site"]:
    """Token ids of boards written as text; an error names the caller and where the board stands.

    Raises:
        DataError: If a board has the wrong length or a letter that is no digit of that side.
    """
    sites = side * side
    texts = [board.strip() for board in boards]
    for text, place in zip(texts, where, strict=True):
        if len(text) != sites:
            raise DataError(
                f"`{caller}` got a board of {len(text)} letters in {place}. "
                f"A board of side {side} has {sites}, row by row, with a point for a blank. "
                "Correct the line, or pass the `task` of that side."
            )
    values = np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8).reshape(len(texts), sites)
    table = np.zeros(256, np.int64)
    table[[ord("."), ord("0")]] = BLANK
    table[[ord("0") + digit for digit in range(1, side + 1)]] = range(2, side + 2)
    tokens = table[values]
    wrong = np.argwhere(tokens == PAD)
    if len(wrong):
        row, site = wrong[0].tolist()
        raise DataError(
            f"`{caller}` got the letter {texts[row][site]!r} at site {site} in {where[row]}. "
            f"Boards of side {side} are written with the digits 1 to {side}, and a point or a 0 for a blank. "
            "Correct the line, or pass the `task` of that side."
        )
    return torch.from_numpy(tokens)


def clashes(tokens: Int[Tensor, "row site"]) -> Bool[Tensor, " row"]:
    """Which boards hold a digit twice in a row, column or box. Blanks do not count.

    Example:
        >>> clashes(from_text(["11..............", "1..........1...."])).tolist()
        [True, False]
    """
    side = side_for(tokens.shape[-1])
    digits = torch.arange(2, side + 2, device=tokens.device)
    twice = [(unit > 1).flatten(1).any(1) for unit in _units((tokens[:, None] == digits[:, None]).long(), side)]
    return twice[0] | twice[1] | twice[2]


def _complete(tokens: Integer[Tensor, "... site"], side: int) -> Bool[Tensor, "..."]:
    """Which boards hold each digit once in every unit."""
    legal = ((tokens > BLANK) & (tokens <= side + 1)).all(-1)
    # A sum of `side` powers of two has `side` bits set only if they all differ.
    bits = torch.bitwise_left_shift(torch.ones_like(tokens, dtype=torch.long), tokens.clamp(0, side + 1).long())
    whole = (1 << (side + 2)) - 4
    for unit in _units(bits, side):
        legal = legal & (unit == whole).flatten(tokens.dim() - 1).all(-1)
    return legal


def _units(values: Int[Tensor, "... site"], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the rows, columns and boxes."""
    high, wide = box_of(side)
    lead = values.shape[:-1]
    grid = values.reshape(*lead, side, side)
    boxes = values.reshape(*lead, side // high, high, side // wide, wide)
    return grid.sum(-1), grid.sum(-2), boxes.sum((-3, -1))


def _letter(token: int) -> str:
    return "." if token <= BLANK else str(token - 1)
