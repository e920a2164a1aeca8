"""Make mazes whose path is unique, and find the shortest path of any."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.tasks.maze import LARGEST, SMALLEST, int8_of, one_of_each, side_for
from attractorlab.types import Instance

PUBLISHED = {30: (100, 140)}  # steps of the paths of Maze-Unique
_CHUNK = 512  # mazes a compiled call, so that an interrupt is answered between calls


def generate_mazes(side: int, count: int, *, seed: int, steps: tuple[int, int] | None = None) -> Instance:
    """Perfect mazes: their passages are a tree, so there is one path between any two cells.

    Cells lie at the odd coordinates 1, 3, 5, ... of the board, with passages or walls between them and a wall around them. On an odd side that
    fills the board: side 11 has 5 x 5 cells. On an even side the last row and the last column are wall as well, as in Maze-Unique: 14 x 14 cells on
    29 x 29 sites of a 30 x 30 board. (The mazes of HRM are something else: walls strewn over the whole board, with many ways between two cells.)

    The tree is drawn evenly among all spanning trees of the cells. Start and goal are drawn evenly among the ordered pairs of cells whose path is long:
    on side 30 from 100 to 140 steps, as published, and on other sides at least half as long as the longest path in that maze.
    A maze without such a pair is thrown away. Maze i depends on `side`, `steps`, `seed` and i alone, and any machine gives the same bytes.

    Args:
        side: From 5 to 255.
        count: How many.
        seed: Below 2**64. The bundled mazes use 1,000,001 and 1,000,002.
        steps: Fewest and most steps of the path instead. Cells are an even number of steps apart.

    Returns:
        Mazes with their paths. `difficulty` is the number of steps from start to goal; one cell less is marked.

    Raises:
        ValueError: If an argument is out of range, or no maze with such a path was found in 1,000.

    Example:
        >>> mazes = generate_mazes(11, 3, seed=0)
        >>> mazes.ids[2], solve_mazes(mazes.inputs)[1].tolist()
        ('maze-11/seed0/2', [1, 1, 1])

    References:
        Wilson (1996), Generating random spanning trees more quickly than the cover time.
    """
    from attractorlab.tasks import maze_kernels
    from attractorlab.tasks.kernels import ATTEMPTS

    if not SMALLEST <= side <= LARGEST:
        raise ValueError(f"`generate_mazes` got a side of {side}. Mazes have a side from {SMALLEST} to {LARGEST}. Pass `side=11`, for example.")
    if count < 0 or not 0 <= seed < 2**64:
        raise ValueError(
            f"`generate_mazes` got count={count}, seed={seed}. A count is at least 0, and a seed lies between 0 and 2**64 - 1. Use `seed=0`, for example."
        )
    if steps is not None and not 1 <= steps[0] <= steps[1]:
        raise ValueError(f"`generate_mazes` got steps={steps}. They are the fewest and the most, at least 1. Use `steps=(20, 30)`, for example.")
    sites = side * side
    least, most = (min(number, sites + 1) for number in steps or PUBLISHED.get(side, (0, 0)))  # no path has so many
    boards, solutions = np.zeros((count, sites), np.int8), np.zeros((count, sites), np.int8)
    counts, lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for first in range(0, count, _CHUNK):
        part = slice(first, first + _CHUNK)
        made = maze_kernels.make_mazes(np.uint64(seed), first, side, least, most, boards[part], solutions[part], counts[part], lengths[part])
        if made < len(boards[part]):
            raise ValueError(
                f"`generate_mazes` found no path of {steps[0] if steps else least} to {steps[1] if steps else most} steps in {ATTEMPTS} mazes of side {side}. "
                "Cells are an even number of steps apart, and few mazes have paths far longer than usual. Lower or widen `steps`, or leave it out."
            )
    name = f"maze-{side}" if steps is None else f"maze-{side}/steps{steps[0]}-{steps[1]}"
    return Instance(
        inputs=torch.from_numpy(boards.astype(np.int64)),
        targets=torch.from_numpy(solutions.astype(np.int64)),
        ids=tuple(f"{name}/seed{seed}/{i}" for i in range(count)),
        task=f"maze-{side}",
        difficulty=torch.from_numpy(lengths).float(),
    )


def solve_mazes(tokens: Int[Tensor, "row site"]) -> tuple[Int[Tensor, "row site"], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Each maze with a shortest path marked, how many shortest paths it has (2 means two or more), and their steps.

    Of several, the path is marked that goes up at the first chance it has on its way from the start, else left, else right, else down.

    Args:
        tokens: Mazes as token ids, each with one start and one goal; a path already marked is forgotten.

    Returns:
        Marked mazes, numbers of shortest paths up to 2, and steps, −1 where start and goal are not joined.

    Raises:
        ValueError: If the boards are no mazes, or one has not exactly one start and one goal.

    Example:
        >>> from attractorlab.tasks.maze import from_text, to_text
        >>> solutions, counts, steps = solve_mazes(from_text("######S..##.#.##..G######"))
        >>> to_text(solutions[0]), counts.tolist(), steps.tolist()
        ('######Soo##.#o##..G######', [2], [4])
    """
    from attractorlab.tasks import maze_kernels

    boards = int8_of(tokens, "solve_mazes")
    odd = (~one_of_each(tokens)).nonzero().flatten().tolist()
    if odd:
        raise ValueError(
            f"`solve_mazes` got a maze without exactly one start and one goal in row {odd[0]}. A path has two ends. Mark them with the ids 3 and 4, once each."
        )
    solutions = np.zeros_like(boards)
    counts, lengths = np.zeros(len(boards), np.int64), np.zeros(len(boards), np.int64)
    maze_kernels.solve_mazes(boards, side_for(tokens.shape[1]), solutions, counts, lengths)
    return torch.from_numpy(solutions.astype(np.int64)), torch.from_numpy(counts), torch.from_numpy(lengths)
