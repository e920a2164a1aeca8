"""The eight symmetries of a maze."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attractorlab import tasks
from attractorlab.tasks import maze_symmetry
from attractorlab.types import Instance

SIDES = [5, 11, 30]


def drawn(side: int, rows: int, seed: int) -> tasks.Symmetries:
    return tasks.random_symmetries(f"maze-{side}", rows, generator=torch.Generator().manual_seed(seed))


def images(board: Tensor, side: int) -> set[bytes]:
    """The turns and mirror images that numpy makes."""
    square = board.numpy().reshape(side, side).astype(np.int8)
    return {np.rot90(one, k).tobytes() for one in (square, square.T) for k in range(4)}


@pytest.mark.parametrize("side", SIDES)
def test_the_moves_are_the_turns_and_mirror_images(side: int) -> None:
    board = torch.arange(side * side) % 100
    moved = board[maze_symmetry.moves(side)]
    assert {row.numpy().astype(np.int8).tobytes() for row in moved} == images(board, side)
    assert len(moved.unique(dim=0)) == 8 and torch.equal(moved[0], board)
    assert maze_symmetry.moves(side, device="meta").device.type == "meta", "they are made where they are used: a copy would wait for an accelerator"


@pytest.mark.parametrize("side", SIDES)
def test_they_are_a_group(side: int) -> None:
    every = tasks.Symmetries(maze_symmetry.moves(side), tasks.identity(f"maze-{side}", 8).tokens)
    known = {tuple(row) for row in every.sites.tolist()}
    for other in range(8):
        product = every.compose(every.take([other] * 8))
        assert {tuple(row) for row in product.sites.tolist()} == known
    assert torch.equal(every.compose(every.inverse()).sites, tasks.identity(f"maze-{side}", 8).sites)
    puzzles = tasks.generate(f"maze-{side}", 8, seed=0).inputs
    assert torch.equal(every.inverse().apply(every.apply(puzzles)), puzzles)


def test_all_eight_are_drawn_equally_often_and_tokens_keep_their_names() -> None:
    symmetries = drawn(5, 8000, 0)
    counts = torch.unique(symmetries.sites, dim=0, return_counts=True)[1]
    assert len(counts) == 8 and float(((counts - 1000.0) ** 2 / 1000.0).sum()) < 7 + 5 * 14**0.5  # chi-square of 7 degrees of freedom
    assert torch.equal(symmetries.tokens, torch.arange(6).expand(8000, 6))
    assert torch.equal(symmetries.sites, drawn(5, 8000, 0).sites) and not torch.equal(symmetries.sites, drawn(5, 8000, 1).sites)


@pytest.mark.parametrize("side", SIDES)
def test_the_image_of_a_path_is_the_path_of_the_image(side: int) -> None:
    puzzles = tasks.generate(f"maze-{side}", 50, seed=1)
    turned = drawn(side, 50, 2)
    solutions, counts, steps = tasks.solve_mazes(turned.apply(puzzles.inputs))
    assert puzzles.targets is not None and torch.equal(solutions, turned.apply(puzzles.targets)) and (counts == 1).all()
    assert puzzles.difficulty is not None and torch.equal(steps.float(), puzzles.difficulty)
    answers = puzzles.targets.clone()
    answers[::2, side + 1 :: 7] = 2
    moved = Instance(turned.apply(puzzles.inputs), None, puzzles.ids, puzzles.task, None)
    right = tasks.verify(puzzles, answers)
    assert torch.equal(tasks.verify(moved, turned.apply(answers)), right) and right.any() and not right.all()


@pytest.mark.parametrize("side", SIDES)
def test_the_canonical_form_is_the_smallest_image(side: int) -> None:
    kind = tasks.task_of(f"maze-{side}").kind
    puzzles = tasks.generate(f"maze-{side}", 20, seed=3).inputs
    forms = kind.canonical(puzzles)
    assert [form.numpy().astype(np.int8).tobytes() for form in forms] == [min(images(board, side)) for board in puzzles]
    turned = drawn(side, 20, 4).apply(puzzles)
    assert torch.equal(kind.canonical(turned), forms) and torch.equal(kind.fingerprint(turned), kind.fingerprint(puzzles))
    distinct = len(forms.unique(dim=0))
    assert len(kind.fingerprint(puzzles).unique()) == distinct


def test_side_5_has_as_many_mazes_up_to_symmetry_as_burnside_counts() -> None:
    """24 mazes: 4 trees, each with 6 ordered pairs far enough apart. A turn keeps none, and a mirror image none either, as the ends differ, so 24 / 8 = 3."""
    puzzles = tasks.generate("maze-5", 1000, seed=0).inputs
    assert len(puzzles.unique(dim=0)) == 24 and len(tasks.task_of("maze-5").kind.canonical(puzzles).unique(dim=0)) == 3


def test_overlap_finds_the_twins_and_no_others() -> None:
    puzzles = tasks.generate("maze-11", 60, seed=5)
    test = Instance(drawn(11, 60, 6).apply(puzzles.inputs), None, puzzles.ids, puzzles.task, None)
    assert tasks.overlap(puzzles[:30], test).tolist() == [True] * 30 + [False] * 30
    swapped = puzzles.inputs.where((puzzles.inputs != 3) & (puzzles.inputs != 4), 7 - puzzles.inputs)
    assert not tasks.overlap(puzzles, Instance(swapped, None, puzzles.ids, puzzles.task, None)).any(), "start and goal are told apart"


def test_what_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`overlap` got puzzles of sudoku-6 and of maze-6\. Twins are of one task\. Pass puzzles of the same task"):
        tasks.overlap(tasks.generate("sudoku-6", 1, seed=0), tasks.generate("maze-6", 1, seed=0))
    with pytest.raises(ValueError, match=r"`overlap` got boards of 25 and of 49 sites\. Twins are of one size"):
        tasks.overlap(tasks.generate("maze-5", 1, seed=0), tasks.generate("maze-7", 1, seed=0))
    with pytest.raises(ValueError, match=r"`moves` got a side of 4\. Mazes have a side from 5 to 255\. Pass"):
        maze_symmetry.random_symmetries(4, 1, generator=torch.Generator())


@pytest.mark.usefixtures("unchecked")
def test_a_single_maze_is_told_to_become_a_batch() -> None:
    with pytest.raises(ValueError, match=r"`canonical` got mazes of shape \(25,\)\. Mazes are \[row site\]\. Put one maze into `tokens\[None\]`"):
        tasks.task_of("maze-5").kind.canonical(torch.ones(25, dtype=torch.long))
