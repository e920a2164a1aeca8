"""Which puzzles were made from one solution grid, up to symmetry: they are not independent."""

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.tasks.sudoku import BLANK, box_of, side_for

FEW = 6  # sides up to this have so few grids up to symmetry (2 and 49) that puzzles share them by chance, not by origin
AT_A_TIME = 4096


def same_grids(targets: Int[Tensor, "instance site"]) -> Int[Tensor, " instance"]:
    """A number for each solved Sudoku, the same for symmetric images of one grid; on sides 4 and 6 for equal grids alone.

    Two lines of a grid, or two digits, are a permutation of each other. Symmetries keep the lengths of its cycles, and which lines lie in one band; grids that agree in all of them get one number. Images of one grid
    always do. Others might: what is drawn by these numbers then has an interval that is too wide, not too narrow.

    Example:
        >>> from attractorlab.tasks import generate, random_symmetries
        >>> grids = generate(9, 2, seed=0).targets
        >>> turned = random_symmetries(9, 2, generator=torch.Generator().manual_seed(0)).apply(grids)
        >>> same_grids(torch.cat([grids, turned])).unique_consecutive().numel(), same_grids(grids).unique().numel()
        (4, 2)
    """
    side = side_for(targets.shape[1])
    if side <= FEW or not len(targets):
        return numbered(targets)
    high = box_of(side)[0]
    grids = targets.view(-1, side, side) - BLANK - 1
    places = torch.zeros_like(grids).scatter_(1, grids, torch.arange(side)[:, None].expand_as(grids))  # [digit column]: its row
    lines = _banded(torch.cat([_cycles(grids), _cycles(grids.mT)]), high).view(2, -1).T  # a turn exchanges rows and columns, and is a symmetry: boxes are square here
    digits = numbered(numbered(_cycles(places).sort(-1).values).sort(-1).values)
    return numbered(torch.cat([lines.sort(-1).values, digits[:, None]], 1))


def _banded(kinds: Int[Tensor, "grid line other"], high: int) -> Int[Tensor, " grid"]:
    """A number for each grid from the kinds of its pairs of lines, whatever the order of lines within bands of `high`, and of bands."""
    band = torch.arange(kinds.shape[1]) // high
    near = band[:, None] == band
    sorted_ = [kinds.where(which, -1).sort(-1).values for which in (near, ~near)]
    in_bands = numbered(torch.cat(sorted_, -1)).view(len(kinds), -1, high)
    return numbered(numbered(in_bands.sort(-1).values).sort(-1).values)


def _cycles(lines: Int[Tensor, "grid line place"]) -> Int[Tensor, "grid line other"]:
    """The lengths of the cycles of the permutation between any two lines, as one number: how many places lie on a cycle of each length, in digits of base 10."""
    size = lines.shape[1]
    found = []
    for some in lines.split(AT_A_TIME):
        n = len(some)
        where = some.argsort(-1)  # [line value]: its place
        step = where[:, None].expand(n, size, size, size).gather(-1, some[:, :, None].expand(n, size, size, size))
        at, length = step, torch.zeros_like(step)
        for k in range(1, size + 1):
            length = torch.where((at == torch.arange(size)) & (length == 0), k, length)
            at = step.gather(-1, at)
        found.append((10 ** (length - 1)).sum(-1))
    return torch.cat(found)


def numbered(keys: Int[Tensor, "... key"]) -> Int[Tensor, "..."]:
    """A number for each key, the same for equal ones."""
    return torch.unique(keys.flatten(0, -2), dim=0, return_inverse=True)[1].view(keys.shape[:-1])
