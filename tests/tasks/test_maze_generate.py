"""Generated mazes: trees of passages, drawn evenly, with one path between ends that lie far apart."""

import hashlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attractorlab import tasks
from attractorlab.types import Instance

SIDES = [5, 6, 11, 14, 30]


def grid(boards: Tensor) -> Tensor:
    side = math.isqrt(boards.shape[1])
    return boards.unflatten(1, (side, side))


def neighbours(free: Tensor) -> Tensor:
    """How many of the four cells around each are free."""
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    return functional.conv2d(free[:, None].float(), cross[None, None], padding=1)[:, 0] * free


def without_dead_ends(boards: Tensor) -> Tensor:
    """The free cells left when dead ends are filled in until there are none: in a tree, the one path between the ends."""
    free, ends = grid(boards) > 1, (grid(boards) == 3) | (grid(boards) == 4)
    while True:
        kept = free & ((neighbours(free) > 1) | ends)
        if torch.equal(kept, free):
            return kept
        free = kept


def targets(mazes: Instance) -> Tensor:
    assert mazes.targets is not None
    return mazes.targets


@pytest.mark.parametrize("side", SIDES)
def test_the_passages_are_a_spanning_tree_of_the_cells(side: int) -> None:
    mazes = tasks.generate(f"maze-{side}", 1000 // side, seed=3)
    free = grid(mazes.inputs) > 1
    cells = (side - 1) // 2
    assert free[:, 1 : 2 * cells : 2, 1 : 2 * cells : 2].all(), "every cell is there"
    assert not free[:, 0].any() and not free[:, :, 0].any() and not free[:, 2 * cells :].any() and not free[:, :, 2 * cells :].any()
    assert not free[:, 2 : 2 * cells : 2, 2 : 2 * cells : 2].any(), "the corners between cells are wall"
    # A graph is a tree if it is connected and has one edge less than nodes.
    assert (neighbours(free).sum((1, 2)) / 2 == free.sum((1, 2)) - 1).all() and (free.sum((1, 2)) == 2 * cells**2 - 1).all()
    reached = grid(mazes.inputs) == 3
    for _ in range(2 * cells**2):
        reached = reached | ((functional.max_pool2d(reached.float(), (3, 1), 1, (1, 0)) + functional.max_pool2d(reached.float(), (1, 3), 1, (0, 1)) > 0) & free)
    assert torch.equal(reached, free)


@pytest.mark.parametrize("side", SIDES)
def test_the_answer_is_what_is_left_when_dead_ends_are_filled_in(side: int) -> None:
    mazes = tasks.generate(f"maze-{side}", 100, seed=4)
    assert ((mazes.inputs == 3).sum(1) == 1).all() and ((mazes.inputs == 4).sum(1) == 1).all()
    path = without_dead_ends(mazes.inputs).flatten(1)
    expected = torch.where(path & (mazes.inputs == 2), 5, mazes.inputs)
    assert torch.equal(targets(mazes), expected)
    assert mazes.difficulty is not None and torch.equal(mazes.difficulty, (expected == 5).sum(1).float() + 1)
    solutions, counts, _ = tasks.solve_mazes(mazes.inputs)
    assert (counts == 1).all() and torch.equal(solutions, expected) and tasks.verify(mazes, expected).all()


def test_all_spanning_trees_come_equally_often() -> None:
    """Kirchhoff: the 3 x 3 grid has 192 spanning trees."""
    mazes = tasks.generate("maze-7", 192 * 60, seed=0)
    _, counts = torch.unique(mazes.inputs > 1, dim=0, return_counts=True)
    assert len(counts) == 192
    chi_square = float(((counts - 60.0) ** 2 / 60.0).sum())
    assert abs(chi_square - 191) < 5 * (2 * 191) ** 0.5  # five standard deviations of the chi-square distribution


def test_the_ends_are_drawn_evenly_among_those_far_apart() -> None:
    """The trees of 2 x 2 cells are paths of four: 2 of their 6 pairs are 4 steps apart, 1 is 6, and the others are too near. On side 7 all pairs are counted."""
    mazes = tasks.generate("maze-5", 6000, seed=1)
    kinds, counts = torch.unique(mazes.inputs, dim=0, return_counts=True)
    assert mazes.difficulty is not None and set(mazes.difficulty.tolist()) == {4.0, 6.0}
    assert len(kinds) == 4 * 6 and (counts - 250).abs().max() < 5 * 250**0.5
    seven = tasks.generate("maze-7", 20_000, seed=1)
    assert seven.difficulty is not None
    one, seen = torch.unique(seven.inputs > 1, dim=0, return_inverse=True)
    for tree in range(0, len(one), 40):
        lengths = seven.difficulty[seen == tree]
        assert lengths.min() * 2 >= lengths.max(), "the shortest is at least half the longest"


@pytest.mark.parametrize("steps", [(16, 16), (8, 14), (48, 48)])
def test_paths_are_as_long_as_asked(steps: tuple[int, int]) -> None:
    count = 3 if steps[0] == 48 else 200
    if steps[0] == 48:
        with pytest.raises(ValueError, match=r"`generate_mazes` found no path of 48 to 48 steps in 1000 mazes of side 11\. .*Lower or widen `steps`"):
            tasks.generate_mazes(11, count, seed=0, steps=steps)
        return
    mazes = tasks.generate_mazes(11, count, seed=0, steps=steps)
    assert mazes.difficulty is not None and mazes.difficulty.min() >= steps[0] and mazes.difficulty.max() <= steps[1]
    assert mazes.ids[0] == f"maze-11/steps{steps[0]}-{steps[1]}/seed0/0" and mazes.task == "maze-11"


def test_a_rare_length_is_drawn_evenly_too() -> None:
    """On 3 x 3 cells a path of all 9 (16 steps) is one pair of 36, so that most draws end with counting: each end is the start equally often."""
    mazes = tasks.generate_mazes(7, 1000, seed=2, steps=(16, 16))
    kinds, counts = torch.unique(mazes.inputs, dim=0, return_counts=True)
    assert len(kinds) == 2 * 20  # the 3 x 3 grid has 20 Hamiltonian paths
    assert (counts - 25).abs().max() < 5 * 25**0.5


def test_side_30_is_as_long_as_published() -> None:
    difficulty = tasks.generate("maze-30", 200, seed=0).difficulty
    assert difficulty is not None and difficulty.min() >= 100 and difficulty.max() <= 140


def test_a_longer_list_begins_with_the_shorter_and_seeds_differ() -> None:
    few, many = tasks.generate("maze-11", 5, seed=9), tasks.generate("maze-11", 600, seed=9)
    assert torch.equal(few.inputs, many[:5].inputs) and few.ids == many.ids[:5] and torch.equal(targets(few), targets(many[:5]))
    assert not torch.equal(few.inputs, tasks.generate("maze-11", 5, seed=10).inputs)
    assert len(tasks.generate("maze-11", 0, seed=0)) == 0
    assert len(many.inputs.unique(dim=0)) == 600


def test_a_seed_gives_the_same_mazes_on_any_machine() -> None:
    boards = torch.cat([tasks.generate(f"maze-{side}", 50, seed=7).inputs.flatten() for side in SIDES]).to(torch.uint8)
    assert hashlib.sha256(boards.numpy().tobytes()).hexdigest()[:16] == "97aeada38c462f28"


def test_what_cannot_be_made_is_refused() -> None:
    for side in (4, 256):
        with pytest.raises(ValueError, match=rf"`generate_mazes` got a side of {side}\. Mazes have a side from 5 to 255\. Pass"):
            tasks.generate_mazes(side, 1, seed=0)
    for count, seed in ((-1, 0), (1, -1), (1, 2**64)):
        with pytest.raises(ValueError, match=rf"`generate_mazes` got count={count}, seed={seed}\. A count is at least 0.*Use `seed=0`"):
            tasks.generate_mazes(11, count, seed=seed)
    for steps in ((0, 4), (6, 4)):
        with pytest.raises(ValueError, match=rf"`generate_mazes` got steps=\({steps[0]}, {steps[1]}\)\. They are the fewest and the most.*Use `steps="):
            tasks.generate_mazes(11, 1, seed=0, steps=steps)
    with pytest.raises(ValueError, match=r"found no path of 5 to 5 steps in 1000 mazes of side 5\. Cells are an even number of steps apart"):
        tasks.generate_mazes(5, 1, seed=0, steps=(5, 5))
    with pytest.raises(ValueError, match=rf"found no path of {10**20} to {10**30} steps in 1000 mazes of side 5\."):
        tasks.generate_mazes(5, 1, seed=0, steps=(10**20, 10**30))
    wide = tasks.generate_mazes(5, 2, seed=0, steps=(1, 10**30))
    assert torch.equal(wide.inputs, tasks.generate_mazes(5, 2, seed=0, steps=(1, 100)).inputs) and wide.ids[0] == f"maze-5/steps1-{10**30}/seed0/0"
    with pytest.raises(ValueError, match=r"`generate` got clues=3 for maze-11\. Clues are the digits of a Sudoku\. Leave it out"):
        tasks.generate("maze-11", 1, seed=0, clues=3)
