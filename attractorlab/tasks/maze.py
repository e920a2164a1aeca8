"""Boards, rules and text of mazes, and the scoring of paths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.tasks.boards import DataError, board_ids, refuse_other_answers
from attractorlab.types import Instance

WALL, SPACE, START, GOAL, PATH = 1, 2, 3, 4, 5
"""Token ids of the official vocabulary; 0 is padding."""

SMALLEST, LARGEST = 5, 255  # sides: the smallest has four cells
_LETTERS = ("?", "#", ".", "S", "G", "o")


@dataclass(frozen=True, eq=False)
class PathScores:
    """How good the paths of some answers are, where more than one may be shortest.

    Args:
        kept: Whether walls, start and goal are where they were, and every other cell is a space or marked.
        length: Steps of the shortest way from start to goal over marked cells; −1 where they do not join the two.
        shortest: Steps of a shortest path of the maze; −1 where there is none.
        spare: Marked cells that the way does without; where it does not join the two, all marked cells.
    """

    kept: Bool[Tensor, "... row"]
    length: Int[Tensor, "... row"]
    shortest: Int[Tensor, " row"]
    spare: Int[Tensor, "... row"]

    @property
    def valid(self) -> Bool[Tensor, "... row"]:
        """Which answers keep the maze and mark one path from start to goal and nothing else.

        A path that passes beside itself could be cut short there, so it has spare cells and is none.
        """
        return self.kept & (self.length >= 0) & (self.spare == 0)

    @property
    def optimal(self) -> Bool[Tensor, "... row"]:
        """Which answers are valid and as short as can be: what `verify` calls solved."""
        return self.valid & (self.length == self.shortest)


def side_for(sites: int) -> int:
    """The side of a maze of that many sites.

    Raises:
        ValueError: If none has so many.

    Example:
        >>> side_for(900)
        30
    """
    side = math.isqrt(sites)
    if side * side != sites or not SMALLEST <= side <= LARGEST:
        raise ValueError(
            f"`side_for` got a maze of {sites} sites. Mazes are square, with a side from {SMALLEST} to {LARGEST}. Pass whole mazes, row by row."
        )
    return side


def verify(instance: Instance, answers: Integer[Tensor, "... row site"]) -> Bool[Tensor, "... row"]:
    """Which answers keep the maze and mark a shortest path from start to goal, and nothing else.

    No stored answer is read, so any of several shortest paths counts. An exact match with the stored one, which is what training and
    `convergence` go by, calls the others wrong: where paths are not unique, score with this or with `score_paths`.

    Args:
        instance: The mazes, one for each row of `answers`; use `instance[rows]` to repeat or choose them.
        answers: Token ids. Any axes may lead, e.g. ``[time row site]``; ids outside the vocabulary are wrong, not an error.

    Returns:
        True where the answer is right. A maze without exactly one start and one goal, or with no way between them, has no right answer.

    Raises:
        ValueError: If the last two axes do not match the mazes.

    Example:
        >>> asked, marked = from_text("######S..####.##G..######"), from_text("######Soo####o##Goo######")
        >>> maze = Instance(inputs=asked, targets=None, ids=("a",), task="maze-5", difficulty=None)
        >>> verify(maze, marked).item(), verify(maze, asked).item()
        (True, False)
    """
    refuse_other_answers(instance, answers, caller="verify")
    inputs = instance.inputs.to(answers.device)
    _, _, shortest = _ways(instance.inputs)
    ends = (inputs == START) | (inputs == GOAL)
    marked = (answers == PATH) & (inputs >= SPACE)
    # A shortest path passes nowhere beside itself. Conversely, cells with two marked neighbours each, and ends with one, are a path
    # from end to end and perhaps loops; with as many cells as a shortest path has, the path is all of them.
    on = _lines(marked | ends)
    beside = torch.zeros_like(on, dtype=torch.uint8)
    beside[..., 1:, :] += on[..., :-1, :]
    beside[..., :-1, :] += on[..., 1:, :]
    beside[..., :, 1:] += on[..., :, :-1]
    beside[..., :, :-1] += on[..., :, 1:]
    around = beside.flatten(-2)
    threaded = torch.where(ends, around == 1, (around == 2) | ~marked).all(-1)
    return _kept(inputs, answers) & threaded & (marked.sum(-1) == shortest.to(answers.device) - 1)


def score_paths(instance: Instance, answers: Integer[Tensor, "... row site"]) -> PathScores:
    """Whether answers mark a path, how long it is, and how long a shortest one is: for mazes whose shortest path is not unique.

    Args:
        instance: The mazes, one for each row of `answers`.
        answers: Token ids. Any axes may lead.

    Returns:
        The scores, on the CPU. A row's scores depend on its own maze and answer alone.

    Raises:
        ValueError: If the last two axes do not match the mazes.

    Example:
        >>> asked, marked = from_text("######S..##.#.##..G######"), from_text("######S..##o#.##ooG######")
        >>> maze = Instance(inputs=asked, targets=None, ids=("a",), task="maze-5", difficulty=None)
        >>> scores = score_paths(maze, torch.stack([marked, asked]))
        >>> scores.valid.flatten().tolist(), scores.length.flatten().tolist(), scores.shortest.tolist()
        ([True, False], [4, -1], [4])
    """
    from attractorlab.tasks import maze_kernels

    refuse_other_answers(instance, answers, caller="score_paths")
    inputs, answers = instance.inputs.cpu(), answers.cpu()
    starts, goals, shortest = _ways(inputs)
    marked = (answers == PATH) & (inputs >= SPACE)
    free = (marked | (inputs == START) | (inputs == GOAL)).flatten(0, -2)
    lead = answers.shape[:-1]
    length = np.full(len(free), -1, np.int64)
    first, last = (ends.expand(lead).reshape(-1).numpy() for ends in (starts, goals))
    maze_kernels.path_lengths(free.numpy(), first, last, side_for(inputs.shape[1]), length)
    steps = torch.where(shortest >= 0, torch.from_numpy(length).reshape(lead), -1)
    cells = marked.sum(-1)
    return PathScores(_kept(inputs, answers), steps, shortest, torch.where(steps >= 0, cells - (steps - 1), cells))


def from_tokens(ids: Sequence[Sequence[int]] | NDArray[np.integer] | Integer[Tensor, "row site"], *, side: int) -> Instance:
    """Mazes made of raw token ids: 1 a wall, 2 a space, 3 the start, 4 the goal.

    That the two are joined is not checked, and there are no targets. Score answers with `verify` or `score_paths`.

    Raises:
        DataError: If a row has the wrong length, an id outside the vocabulary, or not exactly one start and one goal.

    Example:
        >>> from_tokens([[1] * 6 + [3, 2, 4] + [1] * 16], side=5).inputs.shape
        torch.Size([1, 25])
    """
    task = f"maze-{side}"
    rule = f"In {task} a wall is 1, a space 2, the start 3, the goal 4, and a path that is given away 5. Renumber your ids so."
    tokens = board_ids(ids, task=task, side=side, lowest=WALL, highest=PATH, rule=rule)
    odd = (~one_of_each(tokens)).nonzero().flatten().tolist()
    if odd:
        raise DataError(
            f"`from_tokens` got a maze without exactly one start and one goal in row {odd[0]}. A path has two ends. Mark them with the ids 3 and 4, once each."
        )
    return Instance(inputs=tokens, targets=None, ids=tuple(f"tokens/{i}" for i in range(len(tokens))), task=task, difficulty=None)


def from_text(lines: str | Sequence[str]) -> Int[Tensor, "row site"]:
    """Token ids of mazes written as text: `#` a wall, a point or a space a free cell, `S` the start, `G` the goal, `o` the path.

    Args:
        lines: A text for each maze, row by row. It may be broken into its rows.

    Raises:
        DataError: If a text is no maze, has another length than the first, or another letter. Names the row.
        ValueError: If there are none.

    Example:
        >>> from_text("######S..####.##G..######")[0, 5:10].tolist()
        [1, 3, 2, 2, 1]
    """
    boards = [text.replace("\n", "") for text in ([lines] if isinstance(lines, str) else lines)]
    if not boards:
        raise ValueError("`from_text` got no lines. A maze is one line, row by row. Pass a line for each maze.")
    letters = len(boards[0])
    side = math.isqrt(letters)
    if side * side != letters or not SMALLEST <= side <= LARGEST:
        raise DataError(
            f"`from_text` got a maze of {letters} letters in row 0. A maze is square, with a side from {SMALLEST} to {LARGEST}. Put each maze on one line, row by row."
        )
    return tokens_of(boards, [f"row {i}" for i in range(len(boards))], side=side, caller="from_text")


def to_text(tokens: Int[Tensor, " site"]) -> str:
    """A maze as one line.

    Example:
        >>> to_text(from_text("######S..####.##G..######")[0])
        '######S..####.##G..######'
    """
    return "".join(_LETTERS[token] if 0 < token < len(_LETTERS) else "?" for token in tokens.tolist())


def grid_lines(tokens: Int[Tensor, " site"]) -> tuple[str, ...]:
    """A maze as lines to print.

    Example:
        >>> print("\\n".join(grid_lines(from_text("######S..####.##G..######")[0])))
        #####
        #S..#
        ###.#
        #G..#
        #####
    """
    side = side_for(tokens.shape[0])
    text = to_text(tokens)
    return tuple(text[row * side : (row + 1) * side] for row in range(side))


def tokens_of(boards: Sequence[str], where: Sequence[str], *, side: int, caller: str) -> Int[Tensor, "row site"]:
    """Token ids of mazes written as text; an error names the caller and where the maze stands.

    Raises:
        DataError: If a maze has the wrong length or an unknown letter.
    """
    sites = side * side
    texts = [text if len(text := board.strip("\r\n\t")) == sites else text.strip() for board in boards]
    for text, place in zip(texts, where, strict=True):
        if len(text) != sites:
            raise DataError(
                f"`{caller}` got a maze of {len(text)} letters in {place}. A maze of side {side} has {sites}, row by row. "
                "Correct the line, or pass the `task` of that side."
            )
    table = np.zeros(256, np.int64)
    for token, letter in enumerate(_LETTERS):
        table[ord(letter)] = token
    table[ord(" ")] = SPACE
    tokens = table[np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8).reshape(len(texts), sites)]
    wrong = np.argwhere(tokens == 0)
    if len(wrong):
        row, site = wrong[0].tolist()
        raise DataError(
            f"`{caller}` got the letter {texts[row][site]!r} at site {site} in {where[row]}. "
            "Mazes are written with # for a wall, a point or a space, S, G, and o for the path. Correct the line."
        )
    return torch.from_numpy(tokens)


def int8_of(tokens: Int[Tensor, "row site"], caller: str) -> NDArray[np.int8]:
    """The boards as int8, for the compiled loops.

    Raises:
        ValueError: If the tensor is not [row site] of a square board, or an id is outside the vocabulary.
    """
    if tokens.dim() != 2:
        raise ValueError(f"`{caller}` got mazes of shape {tuple(tokens.shape)}. Mazes are [row site]. Put one maze into `tokens[None]`.")
    side_for(tokens.shape[1])
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) > PATH):
        raise ValueError(
            f"`{caller}` got ids from {int(tokens.min())} to {int(tokens.max())}. Ids of mazes run from 0 to {PATH}. Pass token ids: 1 for a wall, 2 for a space."
        )
    return np.ascontiguousarray(tokens.cpu().numpy().astype(np.int8))


def one_of_each(inputs: Int[Tensor, "row site"]) -> Bool[Tensor, " row"]:
    """Which mazes have exactly one start and one goal."""
    return ((inputs == START).sum(1) == 1) & ((inputs == GOAL).sum(1) == 1)


def _ways(inputs: Int[Tensor, "row site"]) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Sites of start and goal, and the steps of a shortest path between them, on the CPU."""
    from attractorlab.tasks import maze_kernels

    inputs = inputs.cpu()
    starts, goals = (inputs == START).int().argmax(1), (inputs == GOAL).int().argmax(1)
    lengths = np.empty(len(inputs), np.int64)
    maze_kernels.path_lengths((inputs >= SPACE).numpy(), starts.numpy(), goals.numpy(), side_for(inputs.shape[1]), lengths)
    return starts, goals, torch.where(one_of_each(inputs), torch.from_numpy(lengths), -1)


def _kept(inputs: Tensor, answers: Tensor) -> Bool[Tensor, "... row"]:
    return ((answers == inputs) | ((inputs == SPACE) & (answers == PATH))).all(-1)


def _lines(values: Bool[Tensor, "... site"]) -> Bool[Tensor, "... side side"]:
    side = side_for(values.shape[-1])
    return values.unflatten(-1, (side, side))
