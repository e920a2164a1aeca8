"""Make Sudoku puzzles with one solution and no clue to spare, and solve any."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.tasks.sudoku import box_of, side_for
from attractorlab.types import Instance

_CHUNK = 512  # puzzles a compiled call, so that an interrupt is answered between calls


def generate(side: int, count: int, *, seed: int, clues: int | None = None) -> Instance:
    """Puzzles with exactly one solution; unless `clues` says otherwise, minimal: no clue can go.

    Puzzle i depends on `side`, `clues`, `seed` and i alone: a longer list begins with the shorter one, and any
    machine gives the same bytes. Every complete grid can occur, though not all equally often: a grid is
    found by a search with random digits, then clues are taken away in random order while one solution is left.

    Args:
        side: 4, 6 or 9.
        count: How many.
        seed: Below 2**64. The bundled puzzles use 1,000,001 and 1,000,002.
        clues: Stop taking clues away at this number. The puzzles are then not minimal, and easier.

    Returns:
        Puzzles with their solutions. `difficulty` is the number of guesses, as `solve` counts them.

    Raises:
        ValueError: If the side, count or seed is out of range, or no puzzle of so few clues was found in 1,000 grids.

    Example:
        >>> puzzles = generate(4, 3, seed=0)
        >>> puzzles.ids[2], solve(puzzles.inputs)[1].tolist()
        ('sudoku-4/seed0/2', [1, 1, 1])
    """
    from attractorlab.tasks import kernels

    high, wide = box_of(side)
    sites = side * side
    if count < 0 or not 0 <= seed < 2**64 or (clues is not None and not 0 < clues <= sites):
        raise ValueError(
            f"`generate` got count={count}, seed={seed}, clues={clues}. "
            f"A count is at least 0, a seed lies between 0 and 2**64 - 1, and clues between 1 and {sites}. "
            "Leave `clues` out for puzzles with no clue to spare."
        )
    boards, solutions, guesses = np.zeros((count, sites), np.int8), np.zeros((count, sites), np.int8), np.zeros(count, np.int64)
    for first in range(0, count, _CHUNK):
        part = slice(first, first + _CHUNK)
        made = kernels.make_boards(np.uint64(seed), first, side, high, wide, clues or 0, boards[part], solutions[part], guesses[part])
        if made < len(boards[part]):
            raise ValueError(
                f"`generate` found no puzzle of side {side} with {clues} clues in {kernels.ATTEMPTS} grids. "
                "Taking clues away at random seldom ends far below the usual number. "
                "Raise `clues`, or leave it out."
            )
    name = f"sudoku-{side}" if clues is None else f"sudoku-{side}/clues{clues}"
    return Instance(
        inputs=torch.from_numpy(boards.astype(np.int64) + 1),
        targets=torch.from_numpy(solutions.astype(np.int64) + 1),
        ids=tuple(f"{name}/seed{seed}/{i}" for i in range(count)),
        task=f"sudoku-{side}",
        difficulty=torch.from_numpy(guesses).float(),
    )


def solve(tokens: Int[Tensor, "row site"]) -> tuple[Int[Tensor, "row site"], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """The solution of each board, how many it has (2 means two or more), and the guesses it took.

    The solver fills in naked and hidden singles until there are none, then tries the digits of the cell with the fewest
    candidates (the first such in reading order), smallest digit first. A guess is a digit tried so. The search goes on until it
    is exhausted or has two solutions. For a puzzle with one solution it therefore covers the whole tree: the luck of trying the
    right digit first does not count, and renaming digits leaves the guesses as they are. Moving lines can change which cell is
    first, and so the guesses of a puzzle that needs any.

    Args:
        tokens: Boards of side 4, 6 or 9 as token ids; anything up to 1 is a blank.

    Returns:
        Solutions (the first found; all 0 where there is none), numbers of solutions up to 2, and guesses.

    Raises:
        ValueError: If the boards have no known size, or an id outside the vocabulary.

    Example:
        >>> from attractorlab.tasks.sudoku import from_text, to_text
        >>> solutions, counts, guesses = solve(from_text(["1234............", "12..34..........", "11.............."]))
        >>> counts.tolist()
        [2, 2, 0]
    """
    from attractorlab.tasks import kernels

    boards = digits_of(tokens)
    side = side_for(tokens.shape[-1])
    high, wide = box_of(side)
    solutions = np.full_like(boards, -1)
    counts, guesses = np.zeros(len(boards), np.int64), np.zeros(len(boards), np.int64)
    for first in range(0, len(boards), _CHUNK):
        part = slice(first, first + _CHUNK)
        kernels.solve_boards(boards[part], side, high, wide, solutions[part], counts[part], guesses[part])
    return torch.from_numpy(solutions.astype(np.int64) + 1), torch.from_numpy(counts), torch.from_numpy(guesses)


def digits_of(tokens: Int[Tensor, "row site"]) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """The boards as int8 digits, 0 for a blank, for the compiled loops.

    Raises:
        ValueError: If the tensor is not [row site], or an id is outside the vocabulary.
    """
    if tokens.dim() != 2:
        raise ValueError(
            f"`digits_of` got boards of shape {tuple(tokens.shape)}. Boards are [row site]. Put one board into `tokens[None]`."
        )
    side = side_for(tokens.shape[1])
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) > side + 1):
        raise ValueError(
            f"`digits_of` got ids from {int(tokens.min())} to {int(tokens.max())}. "
            f"On a board of side {side} ids run from 0 to {side + 1}. "
            "Pass token ids: 1 for a blank, d + 1 for digit d."
        )
    return np.ascontiguousarray((tokens.cpu() - 1).clamp(min=0).numpy().astype(np.int8))
