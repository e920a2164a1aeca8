"""The symmetries of a maze: the four turns of its board, and each of them mirrored."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attractorlab.tasks.maze import LARGEST, PATH, SMALLEST, int8_of, side_for
from attractorlab.tasks.symmetry import Symmetries, twins
from attractorlab.types import Instance


def moves(side: int, *, device: torch.device | str = "cpu") -> Int[Tensor, "move site"]:
    """The eight moves of a square board as sites: site s of the image shows site ``moves(side)[m, s]``. The first changes nothing.

    Raises:
        ValueError: If the side is out of range.

    Example:
        >>> moves(5)[1, :5].tolist()
        [4, 9, 14, 19, 24]
    """
    if not SMALLEST <= side <= LARGEST:
        raise ValueError(f"`moves` got a side of {side}. Mazes have a side from {SMALLEST} to {LARGEST}. Pass `side=11`, for example.")
    board = torch.arange(side * side, device=device).reshape(side, side)
    turned = [board.rot90(quarter) for quarter in range(4)]
    return torch.stack([*turned, *(one.T for one in turned)]).flatten(1)


def identity(side: int, rows: int) -> Symmetries:
    """The symmetry that changes nothing, for each of `rows` mazes.

    Example:
        >>> identity(11, 2).sites.shape
        torch.Size([2, 121])
    """
    return Symmetries(moves(side)[:1].repeat(rows, 1), torch.arange(PATH + 1).repeat(rows, 1))


def random_symmetries(side: int, rows: int, *, generator: torch.Generator) -> Symmetries:
    """`rows` symmetries drawn evenly from the eight, on the generator's device.

    Tokens keep their names: start and goal, which could change places, stay what they are. On an even side the spare line of wall moves with the board.

    Args:
        side: From 5 to 255.
        rows: How many.
        generator: Where the randomness comes from.

    Example:
        >>> random_symmetries(11, 100, generator=torch.Generator().manual_seed(0)).tokens.shape
        torch.Size([100, 6])
    """
    device = generator.device
    chosen = torch.randint(8, (rows,), generator=generator, device=device)
    return Symmetries(moves(side, device=device)[chosen], torch.arange(PATH + 1, device=device).repeat(rows, 1))


def canonical(tokens: Int[Tensor, "row site"]) -> Int[Tensor, "row site"]:
    """The smallest of the eight images of each maze: two mazes are twins if and only if theirs are equal.

    Example:
        >>> from attractorlab.tasks.maze_generate import generate_mazes
        >>> g, mazes = torch.Generator().manual_seed(0), generate_mazes(11, 2, seed=0).inputs
        >>> bool((canonical(mazes) == canonical(random_symmetries(11, 2, generator=g).apply(mazes))).all())
        True
    """
    return _smallest(tokens, "canonical")[0]


def fingerprint(tokens: Int[Tensor, "row site"]) -> Int[Tensor, " row"]:
    """A number for each maze that all its images share, made of the canonical form; mazes with different numbers are not twins."""
    return _smallest(tokens, "fingerprint")[1]


def overlap(train: Instance, test: Instance) -> Bool[Tensor, " row"]:
    """Which mazes of `test` have a symmetric twin in `train`, ends included. Exact.

    The symmetries are those of the board. On even sides one line of walls is spare, and mazes that match but for the place of that line are not twins.

    Raises:
        ValueError: If the two are of different sides.

    Example:
        >>> from attractorlab.tasks.maze_generate import generate_mazes
        >>> mazes = generate_mazes(11, 4, seed=0)
        >>> overlap(mazes[:2], mazes).tolist()
        [True, True, False, False]
    """
    return twins(train.inputs, test.inputs, fingerprint=fingerprint, canonical=canonical)


def _smallest(tokens: Int[Tensor, "row site"], caller: str) -> tuple[Int[Tensor, "row site"], Int[Tensor, " row"]]:
    from attractorlab.tasks import maze_kernels

    boards = int8_of(tokens, caller)
    best, prints = np.empty_like(boards), np.empty(len(boards), np.uint64)
    maze_kernels.canonical_mazes(boards, moves(side_for(tokens.shape[1])).numpy(), best, prints)
    return torch.from_numpy(best.astype(np.int64)), torch.from_numpy(prints.view(np.int64))
