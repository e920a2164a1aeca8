"""The tasks by name: how each is made, checked, moved about and drawn."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.tasks import checks, grids, maze, maze_generate, maze_symmetry, sudoku, symmetry
from attractorlab.tasks.generate import generate as generate_sudoku
from attractorlab.tasks.symmetry import Symmetries
from attractorlab.types import Instance

_NAME = re.compile(r"(sudoku|maze)(?:-(\d{1,3}))?")


@dataclass(frozen=True)
class Kind:
    """A kind of task, for boards of any of its sides.

    Args:
        name: "sudoku" or "maze".
        sides: The sides it has.
        usual: The side that is meant if none is named.
        few_up_to: The largest side with so few puzzles up to symmetry that any pool holds most of them.
        colours: Token ids for a side, padding included.
        blank: The id of a cell that is asked for.
        givens: Lowest and highest id of a question, for a side.
        answers: Lowest and highest id of an answer.
        ids: What the ids mean, in words.
        unit: What its difficulty counts.
        graded: What bundled puzzles of one level share, from the side and the difficulty.
        several: Which puzzles have more than one right answer.
        same_solutions: A number for each target, the same for those that count as one solution.
        generate, identity, random_symmetries: Called with the side first.
        verify, canonical, fingerprint, overlap, tokens_of, to_text, grid_lines, from_tokens, checked: The functions of those names.
    """

    name: str
    sides: range | tuple[int, ...]
    usual: int
    few_up_to: int
    colours: Callable[[int], int]
    blank: int
    givens: Callable[[int], tuple[int, int]]
    answers: Callable[[int], tuple[int, int]]
    ids: str
    unit: str
    graded: Callable[[int, Tensor], Tensor]
    several: Callable[[Tensor], Tensor]
    same_solutions: Callable[[Tensor], Tensor]
    generate: Callable[..., Instance]
    identity: Callable[[int, int], Symmetries]
    random_symmetries: Callable[..., Symmetries]
    verify: Callable[[Instance, Tensor], Tensor]
    canonical: Callable[[Tensor], Tensor]
    fingerprint: Callable[[Tensor], Tensor]
    overlap: Callable[[Instance, Instance], Tensor]
    tokens_of: Callable[..., Tensor]
    to_text: Callable[[Tensor], str]
    grid_lines: Callable[[Tensor], tuple[str, ...]]
    from_tokens: Callable[..., Instance]
    checked: Callable[[Tensor, Tensor | None, Callable[[int], str]], checks.Checked]


@dataclass(frozen=True)
class Task:
    """A task: a kind and the side of its boards.

    Example:
        >>> task = task_of("maze-11")
        >>> task.name, task.sites, task.vocabulary
        ('maze-11', 121, 6)
    """

    kind: Kind
    side: int

    @property
    def name(self) -> str:
        """The name with its side, as instances carry it."""
        return f"{self.kind.name}-{self.side}"

    @property
    def sites(self) -> int:
        """Cells of a board."""
        return self.side * self.side

    @property
    def vocabulary(self) -> int:
        """Token ids, padding included."""
        return self.kind.colours(self.side)

    @property
    def unseen(self) -> bool:
        """Whether there are so many puzzles up to symmetry that a test puzzle can be one that training has not met."""
        return self.side > self.kind.few_up_to

    def from_text(self, lines: str | Sequence[str]) -> Int[Tensor, "row site"]:
        """Token ids of boards written as text, one a line.

        Raises:
            DataError: If a line is no board of this task.
        """
        boards = [lines] if isinstance(lines, str) else list(lines)
        return self.kind.tokens_of(boards, [f"row {i}" for i in range(len(boards))], side=self.side, caller="from_text")

    def to_text(self, tokens: Int[Tensor, " site"]) -> str:
        """A board as one line."""
        return self.kind.to_text(tokens)


SUDOKU = Kind(
    name="sudoku",
    sides=(4, 6, 9),
    usual=9,
    few_up_to=4,
    colours=lambda side: side + 2,
    blank=sudoku.BLANK,
    givens=lambda side: (sudoku.BLANK, side + 1),
    answers=lambda side: (sudoku.BLANK + 1, side + 1),
    ids="a blank is 1 and digit d is d + 1",
    unit="guesses",
    graded=lambda side, guesses: torch.log2(1 + guesses.double()).floor().long(),
    several=lambda inputs: torch.zeros(len(inputs), dtype=torch.bool),  # none that is read has
    same_solutions=grids.same_grids,
    generate=generate_sudoku,
    identity=symmetry.identity,
    random_symmetries=symmetry.random_symmetries,
    verify=sudoku.verify,
    canonical=symmetry.canonical,
    fingerprint=symmetry.fingerprint,
    overlap=symmetry.overlap,
    tokens_of=sudoku.tokens_of,
    to_text=sudoku.to_text,
    grid_lines=sudoku.grid_lines,
    from_tokens=lambda ids, *, side: sudoku.from_tokens(ids, task=f"sudoku-{side}"),
    checked=checks.checked_sudoku,
)
MAZE = Kind(
    name="maze",
    sides=range(maze.SMALLEST, maze.LARGEST + 1),
    usual=30,
    few_up_to=8,  # side 8 has the cells of side 7
    colours=lambda side: maze.PATH + 1,
    blank=maze.SPACE,
    givens=lambda side: (maze.WALL, maze.GOAL),
    answers=lambda side: (maze.WALL, maze.PATH),
    ids="a wall is 1, a space 2, the start 3, the goal 4 and the path 5",
    unit="steps of the path",
    graded=lambda side, steps: (steps / side).floor().long(),
    several=lambda inputs: maze_generate.solve_mazes(inputs)[1] > 1,
    same_solutions=grids.numbered,
    generate=maze_generate.generate_mazes,
    identity=maze_symmetry.identity,
    random_symmetries=maze_symmetry.random_symmetries,
    verify=maze.verify,
    canonical=maze_symmetry.canonical,
    fingerprint=maze_symmetry.fingerprint,
    overlap=maze_symmetry.overlap,
    tokens_of=maze.tokens_of,
    to_text=maze.to_text,
    grid_lines=maze.grid_lines,
    from_tokens=maze.from_tokens,
    checked=checks.checked_mazes,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (SUDOKU, MAZE)}


def task_of(name: str) -> Task:
    """The task of a name: "sudoku-4", "sudoku-6", "sudoku-9", or "maze-N" with a side N from 5 to 255.

    "sudoku" is side 9 and "maze" side 30, as published.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> task_of("sudoku").name, task_of("maze").name
        ('sudoku-9', 'maze-30')
    """
    found = _NAME.fullmatch(name)
    kind = KINDS[found[1]] if found else None
    side = int(found[2]) if found and found[2] else kind.usual if kind else 0
    if kind is None or side not in kind.sides or (found and found[2] and found[2] != str(side)):
        known = ", ".join(f"'{one.name}-{side}'" for one in KINDS.values() if isinstance(one.sides, tuple) for side in one.sides)
        raise ValueError(
            f"`task_of` got the task {name!r}. The tasks are 'sudoku', {known}, 'maze', and 'maze-N' with a side N from {maze.SMALLEST} to {maze.LARGEST}. "
            "Pass one of them, e.g. 'sudoku-9'."
        )
    return Task(kind, side)


def side_of(task: str) -> int:
    """The side of a task's board.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> side_of("sudoku"), side_of("sudoku-6"), side_of("maze-11")
        (9, 6, 11)
    """
    return task_of(task).side


def generate(task: str | int, count: int, *, seed: int, clues: int | None = None) -> Instance:
    """Puzzles with exactly one solution, made as `attractorlab.tasks.generate.generate` and `generate_mazes` say.

    Puzzle i depends on the task, `clues`, `seed` and i alone: a longer list begins with the shorter one, and any machine gives the same bytes.

    Args:
        task: The name of a task, or a number: Sudoku of that side.
        count: How many.
        seed: Below 2**64. The bundled puzzles use 1,000,001 and 1,000,002.
        clues: Of a Sudoku: stop taking clues away at this number. Left out, no clue can go.

    Returns:
        Puzzles with their solutions. `difficulty` is the number of guesses of a Sudoku, and the steps of the path of a maze.

    Raises:
        ValueError: If there is no such task, or a number is out of range.

    Example:
        >>> generate(4, 3, seed=0).ids[2], generate("maze-11", 3, seed=0).ids[2]
        ('sudoku-4/seed0/2', 'maze-11/seed0/2')
    """
    kind, side = _resolved(task)
    if kind is SUDOKU:
        return generate_sudoku(side, count, seed=seed, clues=clues)
    if clues is not None:
        raise ValueError(f"`generate` got clues={clues} for {task}. Clues are the digits of a Sudoku. Leave it out; `generate_mazes` takes `steps`.")
    return kind.generate(side, count, seed=seed)


def random_symmetries(task: str | int, rows: int, *, generator: torch.Generator) -> Symmetries:
    """`rows` symmetries of a task drawn evenly from its whole group, on the generator's device.

    A Sudoku's group renames digits, orders lines within bands and the bands, and turns the board over where its boxes are square; a maze's are the
    four turns of the board and their mirror images.

    Args:
        task: The name of a task, or a number: Sudoku of that side.
        rows: How many.
        generator: Where the randomness comes from.

    Example:
        >>> random_symmetries("maze-11", 100, generator=torch.Generator().manual_seed(0)).sites.shape
        torch.Size([100, 121])
    """
    kind, side = _resolved(task)
    return kind.random_symmetries(side, rows, generator=generator)


def identity(task: str | int, rows: int) -> Symmetries:
    """The symmetry that changes nothing, for each of `rows` boards of a task; a number means Sudoku of that side.

    Example:
        >>> identity(4, 2).sites.shape
        torch.Size([2, 16])
    """
    kind, side = _resolved(task)
    return kind.identity(side, rows)


def verify(instance: Instance, answers: Integer[Tensor, "... row site"]) -> Bool[Tensor, "... row"]:
    """Which answers are right by the rules of the instance's task.

    A Sudoku is right when every row, column and box holds each digit once and the givens are kept; a maze, when it is kept and a shortest path from
    start to goal is marked, and nothing else. No stored solution is read, so any of several counts, and puzzles without targets can be scored.
    An exact match with a stored answer calls the other ones wrong.

    Args:
        instance: The puzzles, one for each row of `answers`; use `instance[rows]` to repeat or choose them.
        answers: Token ids. Any axes may lead, e.g. ``[time row site]``; ids outside the vocabulary are wrong, not an error.

    Raises:
        ValueError: If the last two axes do not match the puzzles, or there is no such task.

    Example:
        >>> puzzles = generate("maze-11", 2, seed=0)
        >>> verify(puzzles, puzzles.inputs).tolist(), verify(puzzles, puzzles.targets).tolist()
        ([False, False], [True, True])
    """
    return task_of(instance.task).kind.verify(instance, answers)


def same_solutions(instance: Instance) -> Int[Tensor, " instance"]:
    """A number for each instance, the same for those of one solution, which are not independent: intervals redraw them together.

    Sudokus of side 9 are taken together up to symmetry, as `grids.same_grids` says: the 2,000 test rows of Sudoku-Extreme have 2,000 grids, and 1,604 up to symmetry. Other instances have one solution
    if theirs are equal.

    Raises:
        ValueError: If the instances have no targets.

    Example:
        >>> same_solutions(generate(9, 3, seed=0)).unique().numel()
        3
    """
    if instance.targets is None:
        raise ValueError("`same_solutions` got instances without targets. It compares their solutions. Load them with targets.")
    return task_of(instance.task).kind.same_solutions(instance.targets)


def overlap(train: Instance, test: Instance) -> Bool[Tensor, " row"]:
    """Which rows of `test` have a symmetric twin in `train`: the same puzzle up to the whole group of their task. Exact.

    Puzzles with the same solution grid but other clues are not twins and not seen by it. On side 4 all grids of Sudoku are
    symmetric images of 2, and on side 6 of 49, so there a solution grid is never new; nor is a minimal puzzle on side 4, of which there are 36.

    Raises:
        ValueError: If the two are of different tasks.

    Example:
        >>> puzzles = generate(9, 4, seed=0)
        >>> overlap(puzzles[:2], puzzles).tolist()
        [True, True, False, False]
    """
    ours, theirs = task_of(train.task), task_of(test.task)
    if ours.kind is not theirs.kind:
        raise ValueError(f"`overlap` got puzzles of {train.task} and of {test.task}. Twins are of one task. Pass puzzles of the same task.")
    return theirs.kind.overlap(train, test)


def from_tokens(ids: Sequence[Sequence[int]] | NDArray[np.integer] | Integer[Tensor, "row site"], *, task: str = "sudoku") -> Instance:
    """Puzzles made of raw token ids in the official vocabulary of their task.

    Of a Sudoku nothing but the vocabulary is checked: 1 for a blank, d + 1 for digit d. A maze (1 wall, 2 space, 3 start, 4 goal) has one start
    and one goal. There are no targets. Score answers with `verify`, find solutions with `solve` or `solve_mazes`.

    Args:
        ids: A board to a row, site by site in reading order.
        task: The name of a task.

    Raises:
        DataError: If a row has the wrong length or an id outside the vocabulary.

    Example:
        >>> from_tokens([[1] * 16], task="sudoku-4").inputs.shape
        torch.Size([1, 16])
    """
    found = task_of(task)
    return found.kind.from_tokens(ids, side=found.side)


def _resolved(task: str | int) -> tuple[Kind, int]:
    """The kind and side; the kind's functions refuse a side themselves."""
    if isinstance(task, int):
        return SUDOKU, task
    found = task_of(task)
    return found.kind, found.side
