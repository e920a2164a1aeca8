"""The symmetries of a Sudoku: rename digits, move lines within and between bands, turn it over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.tasks.generate import digits_of
from attractorlab.tasks.sudoku import box_of, side_for
from attractorlab.types import Instance


@dataclass(frozen=True, eq=False)
class Symmetries:
    """One symmetry a row: site s of the image shows site ``sites[row, s]``, with token t written as ``tokens[row, t]``.

    Apply the same symmetries to a puzzle and to its answer. Pad and blank (ids 0 and 1) stay as they are.

    Example:
        >>> turned = random_symmetries(9, 5, generator=torch.Generator().manual_seed(0))
        >>> boards = torch.randint(1, 11, (5, 81), generator=torch.Generator().manual_seed(1))
        >>> bool((turned.inverse().apply(turned.apply(boards)) == boards).all())
        True
    """

    sites: Int[Tensor, "row site"]
    tokens: Int[Tensor, "row token"]

    def __len__(self) -> int:
        return self.sites.shape[0]

    def apply(self, tokens: Integer[Tensor, "... row site"]) -> Integer[Tensor, "... row site"]:
        """The images of boards, one symmetry for each row; any axes may lead.

        Raises:
            ValueError: If the last two axes are not those of the symmetries.
        """
        if tokens.shape[-2:] != self.sites.shape:
            raise ValueError(
                f"`apply` got boards of shape {tuple(tokens.shape)} for {len(self)} symmetries of {self.sites.shape[1]} sites. "
                "The last two axes are row and site, a board for each symmetry. "
                "Choose or repeat symmetries with `take`."
            )
        moved = tokens.gather(-1, self.sites.expand(tokens.shape))
        names = self.tokens.to(tokens.dtype).expand(*tokens.shape[:-1], -1)
        return names.gather(-1, moved.long())

    def inverse(self) -> "Symmetries":
        """The symmetries that undo these."""
        return Symmetries(self.sites.argsort(-1), self.tokens.argsort(-1))

    def compose(self, other: "Symmetries") -> "Symmetries":
        """`other` first, then these: ``a.compose(b).apply(x)`` is ``a.apply(b.apply(x))``."""
        return Symmetries(other.sites.gather(-1, self.sites), self.tokens.gather(-1, other.tokens))

    def take(self, rows: slice | Sequence[int] | Tensor) -> "Symmetries":
        """The symmetries of chosen or repeated rows."""
        chosen = rows if isinstance(rows, (slice, Tensor)) else list(rows)
        return Symmetries(self.sites[chosen], self.tokens[chosen])

    def to(self, device: torch.device | str) -> "Symmetries":
        """These symmetries on another device."""
        return Symmetries(self.sites.to(device), self.tokens.to(device))


def identity(side: int, rows: int) -> Symmetries:
    """The symmetry that changes nothing, for each of `rows` boards.

    Example:
        >>> identity(4, 2).sites.shape
        torch.Size([2, 16])
    """
    box_of(side)
    return Symmetries(torch.arange(side * side).repeat(rows, 1), torch.arange(side + 2).repeat(rows, 1))


def random_symmetries(side: int, rows: int, *, generator: torch.Generator) -> Symmetries:
    """`rows` symmetries drawn evenly from the whole group, on the generator's device.

    The group renames digits, orders the rows within each band, the bands, the columns within each stack, and the stacks,
    and turns the board over its diagonal. The last needs square boxes: on side 6 it would make 2 x 3 boxes 3 x 2, so it is no
    symmetry there.

    Args:
        side: 4, 6 or 9.
        rows: How many.
        generator: Where the randomness comes from.

    Example:
        >>> random_symmetries(6, 100, generator=torch.Generator().manual_seed(0)).tokens.shape
        torch.Size([100, 8])
    """
    high, wide = box_of(side)
    down = _random_lines(rows, side, high, generator)
    across = _random_lines(rows, side, wide, generator)
    sites = down[:, :, None] * side + across[:, None, :]
    if high == wide:
        flip = torch.rand(rows, 1, 1, generator=generator, device=generator.device) < 0.5
        sites = torch.where(flip, sites.transpose(1, 2), sites)
    kept = torch.arange(2, device=generator.device).expand(rows, 2)
    return Symmetries(sites.flatten(1), torch.cat([kept, _shuffled((rows, side), generator) + 2], 1))


def canonical(tokens: Int[Tensor, "row site"]) -> Int[Tensor, "row site"]:
    """The smallest symmetric image of each board: two boards are twins if and only if theirs are equal.

    Exact on every side, by trying all moves of lines with the digits renamed in order of appearance.
    A board of side 9 takes milliseconds; compare large sets with `overlap`, which asks only where it must. Boards are taken for Sudoku by their size:
    for mazes there is ``task_of("maze-11").kind.canonical``, and `fingerprint` beside it.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> from attractorlab.tasks import generate
        >>> boards = generate(6, 2, seed=0).inputs
        >>> bool((canonical(boards) == canonical(random_symmetries(6, 2, generator=g).apply(boards))).all())
        True
    """
    from attractorlab.tasks import kernels

    boards = digits_of(tokens)
    side = side_for(tokens.shape[1])
    high, wide = box_of(side)
    best = np.empty_like(boards)
    kernels.canonical_boards(boards, side, _line_orders(side, high), _line_orders(side, wide), high == wide, best)
    return torch.from_numpy(best.astype(np.int64) + 1)


def fingerprint(tokens: Int[Tensor, "row site"]) -> Int[Tensor, " row"]:
    """A number for each board that all its symmetric images share. Cheap, and boards with different numbers are not twins.

    Equal numbers are a hint only: colour refinement of clues, digits and units cannot tell all boards apart.
    """
    from attractorlab.tasks import kernels

    boards = digits_of(tokens)
    side = side_for(tokens.shape[1])
    high, wide = box_of(side)
    prints = np.empty(len(boards), np.uint64)
    kernels.fingerprint_boards(boards, side, high, wide, high == wide, prints)
    return torch.from_numpy(prints.view(np.int64))


def overlap(train: Instance, test: Instance) -> Bool[Tensor, " row"]:
    """Which rows of `test` have a symmetric twin in `train`: the same puzzle up to the whole group.

    Exact on every side. Puzzles with the same solution grid but other clues are not twins and not seen by it. On side 4 all grids are
    symmetric images of 2, and on side 6 of 49 (measured: every solution of the bundled puzzles has a twin among 20,000 generated ones),
    so there a solution grid is never new. On side 4 the minimal puzzles, too, are images of 36: every test puzzle has a twin
    in a training set of any size to speak of.

    Raises:
        ValueError: If the two are of different sides.

    Example:
        >>> from attractorlab.tasks import generate
        >>> puzzles = generate(9, 4, seed=0)
        >>> overlap(puzzles[:2], puzzles).tolist()
        [True, True, False, False]
    """
    return twins(train.inputs, test.inputs, fingerprint=fingerprint, canonical=canonical)


def twins(
    train: Int[Tensor, "row site"], test: Int[Tensor, "other site2"], *, fingerprint: Callable[[Tensor], Tensor], canonical: Callable[[Tensor], Tensor]
) -> Bool[Tensor, " other"]:
    """Which boards of `test` have the canonical form of one of `train`; it is made only where fingerprints agree."""
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"`overlap` got boards of {train.shape[1]} and of {test.shape[1]} sites. "
            "Twins are of one size. "
            "Pass puzzles of the same task."
        )
    train_prints, test_prints = fingerprint(train), fingerprint(test)
    maybe = torch.isin(test_prints, train_prints)
    found = torch.zeros(len(test), dtype=torch.bool)
    if not bool(maybe.any()):
        return found
    rivals = canonical(train[torch.isin(train_prints, test_prints)])
    known = {row.tobytes() for row in rivals.numpy()}
    found[maybe] = torch.tensor([row.tobytes() in known for row in canonical(test[maybe]).numpy()])
    return found


def _random_lines(rows: int, side: int, block: int, generator: torch.Generator) -> Int[Tensor, "row line"]:
    """Orders of the lines that keep the blocks together."""
    blocks = side // block
    order = _shuffled((rows, blocks), generator)
    within = _shuffled((rows, blocks, block), generator)
    return (order[:, :, None] * block + within).flatten(1)


def _shuffled(shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, "..."]:
    """Random orders along the last axis."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).argsort(-1)


def _line_orders(side: int, block: int) -> NDArray[np.int64]:
    """All orders of the lines that keep the blocks together, sorted."""
    within = list(permutations(range(block)))
    orders = [
        [block * part + line for part, lines in zip(parts, inner, strict=True) for line in lines]
        for parts in permutations(range(side // block))
        for inner in product(within, repeat=side // block)
    ]
    return np.array(sorted(orders), np.int64)
