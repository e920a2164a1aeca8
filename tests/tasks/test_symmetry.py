"""The symmetries of a board."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attractorlab import tasks
from attractorlab.tasks import Symmetries
from attractorlab.tasks.grids import same_grids
from attractorlab.types import Instance

SIDES = [4, 6, 9]
seeds = st.integers(0, 2**31)
sides = st.sampled_from(SIDES)
quick = settings(max_examples=25, deadline=None)


def drawn(side: int, rows: int, seed: int) -> Symmetries:
    return tasks.random_symmetries(side, rows, generator=torch.Generator().manual_seed(seed))


def boards(side: int, rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, side + 2, (rows, side * side), generator=torch.Generator().manual_seed(seed))


@quick
@given(sides, seeds)
def test_the_inverse_undoes_and_the_identity_does_nothing(side: int, seed: int) -> None:
    g, x = drawn(side, 5, seed), boards(side, 5, seed)
    assert torch.equal(g.inverse().apply(g.apply(x)), x) and torch.equal(g.apply(g.inverse().apply(x)), x)
    assert torch.equal(tasks.identity(side, 5).apply(x), x)
    assert torch.equal(g.compose(g.inverse()).sites, tasks.identity(side, 5).sites)


@quick
@given(sides, seeds)
def test_a_composition_applies_the_right_one_first_and_is_associative(side: int, seed: int) -> None:
    a, b, c = (drawn(side, 4, seed + i) for i in range(3))
    x = boards(side, 4, seed)
    assert torch.equal(a.compose(b).apply(x), a.apply(b.apply(x)))
    left, right = a.compose(b).compose(c), a.compose(b.compose(c))
    assert torch.equal(left.sites, right.sites) and torch.equal(left.tokens, right.tokens)


@quick
@given(sides, seeds)
def test_images_of_right_answers_are_right_and_of_wrong_ones_wrong(side: int, seed: int) -> None:
    puzzles = tasks.generate(side, 6, seed=seed % 50)
    assert puzzles.targets is not None
    g = drawn(side, 6, seed)
    answers = puzzles.targets.clone()
    answers[::2, seed % side] = 2
    images = Instance(g.apply(puzzles.inputs), None, puzzles.ids, puzzles.task, None)
    assert torch.equal(tasks.verify(images, g.apply(answers)), tasks.verify(puzzles, answers))


@pytest.mark.parametrize("side", SIDES)
def test_images_have_as_many_solutions_and_the_image_of_the_solution(side: int) -> None:
    puzzles = tasks.generate(side, 50, seed=1)
    assert puzzles.targets is not None
    g = drawn(side, 50, 0)
    looser = puzzles.inputs.clone()
    looser[torch.arange(50), (looser > 1).int().argmax(1)] = 1  # minimal puzzles: one clue less has several solutions
    solutions, counts, _ = tasks.solve(g.apply(puzzles.inputs))
    assert torch.equal(solutions, g.apply(puzzles.targets)) and (counts == 1).all()
    assert (tasks.solve(g.apply(looser))[1] == 2).all()


@pytest.mark.parametrize(("side", "size"), [(4, 128), (6, 3456)])
def test_all_moves_of_the_group_are_drawn_about_equally_often(side: int, size: int) -> None:
    """2 x 8 x 8 moves on side 4; 48 x 72 on side 6, which has no transpose."""
    draws = 60 * size
    sites = drawn(side, draws, 0).sites
    edges = torch.cat([sites[:, :side], sites[:, side::side]], 1)  # the first row and column tell moves apart
    kinds, counts = torch.unique((edges * (side * side) ** torch.arange(2 * side - 1)).sum(1), return_counts=True)
    assert len(kinds) == size
    chi_square = float(((counts - 60.0) ** 2 / 60.0).sum())
    assert abs(chi_square - size) < 5 * (2 * size) ** 0.5  # five standard deviations of the chi-square distribution


def test_turning_over_a_board_of_side_6_breaks_its_boxes() -> None:
    puzzle = tasks.generate(6, 20, seed=0)
    assert puzzle.targets is not None
    turned = puzzle.targets.reshape(20, 6, 6).transpose(1, 2).flatten(1)
    empty = Instance(torch.ones_like(turned), None, puzzle.ids, puzzle.task, None)
    assert not tasks.verify(empty, turned).all()


def test_half_of_the_symmetries_of_side_9_turn_the_board_over() -> None:
    sites = drawn(9, 4000, 0).sites.reshape(-1, 9, 9)
    turned = (sites[:, 0] // 9 != sites[:, :1, 0] // 9).any(1)  # the first row of the image comes from more than one row
    assert abs(float(turned.float().mean()) - 0.5) < 5 * 0.5 / 4000**0.5


def test_pad_and_blank_stay_and_digits_stay_digits() -> None:
    g = drawn(9, 50, 0)
    assert (g.tokens[:, :2] == torch.tensor([0, 1])).all()
    assert torch.equal(g.tokens.sort(1).values, torch.arange(11).expand(50, 11))


def test_a_generator_gives_the_same_symmetries_again() -> None:
    assert torch.equal(drawn(9, 10, 3).sites, drawn(9, 10, 3).sites)
    assert not torch.equal(drawn(9, 10, 3).sites, drawn(9, 10, 4).sites)


def test_leading_axes_and_other_integers_are_carried_along() -> None:
    g, x = drawn(6, 4, 0), boards(6, 4, 0)
    stacked = torch.stack([x, x.flip(0)]).to(torch.uint8)
    image = g.apply(stacked)
    assert image.dtype == torch.uint8 and torch.equal(image[0].long(), g.apply(x)) and torch.equal(image[1].long(), g.apply(x.flip(0)))


def test_chosen_symmetries_act_on_chosen_rows() -> None:
    g, x = drawn(6, 4, 0), boards(6, 4, 0)
    assert torch.equal(g.take([2, 2, 0]).apply(x[[2, 2, 0]]), g.apply(x)[[2, 2, 0]])
    assert len(g.take(slice(1, 3))) == 2
    assert torch.equal(g.take(torch.tensor([3])).sites, g.sites[3:])


def test_boards_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`apply` got boards of shape \(3, 81\) for 4 symmetries of 81 sites\. The last two.*`take`"):
        drawn(9, 4, 0).apply(boards(9, 3, 0))
    with pytest.raises(ValueError, match=r"`box_of` got a side of 8"):
        tasks.random_symmetries(8, 1, generator=torch.Generator())


@pytest.mark.parametrize("side", SIDES)
def test_twins_share_their_canonical_form_and_their_fingerprint(side: int) -> None:
    puzzles = tasks.generate(side, 30, seed=2).inputs
    images = drawn(side, 30, 1).apply(puzzles)
    assert torch.equal(tasks.canonical(images), tasks.canonical(puzzles))
    assert torch.equal(tasks.fingerprint(images), tasks.fingerprint(puzzles))


@pytest.mark.parametrize("side", [4, 6])
def test_the_canonical_form_is_the_smallest_of_all_images(side: int) -> None:
    """Second route: draw so many symmetries that all moves occur, and compare the images as lists."""
    board = tasks.generate(side, 3, seed=4).inputs[1:2]
    best = tasks.to_text(tasks.canonical(board)[0])
    moves = torch.unique(drawn(side, 60_000, 0).sites, dim=0)
    texts = []
    for image in board[0][moves].tolist():
        names: dict[int, int] = {1: 1}
        texts.append([names.setdefault(token, len(names) + 1) for token in image])
    assert best == tasks.to_text(torch.tensor(min(texts)))


def test_side_4_has_36_minimal_puzzles_and_2_grids_up_to_symmetry() -> None:
    puzzles = tasks.generate(4, 3000, seed=0)
    forms = tasks.canonical(puzzles.inputs).unique(dim=0)
    assert len(forms) == 36
    assert torch.bincount((forms > 1).sum(1)).tolist() == [0, 0, 0, 0, 13, 22, 1]
    assert len(tasks.canonical(puzzles.targets).unique(dim=0)) == 2  # type: ignore[arg-type]


def test_side_6_has_49_grids_up_to_symmetry_which_make_up_all_28200960() -> None:
    """Known: 28,200,960 grids (OEIS A107739). A class has as many members as the group, divided by the moves that keep one of them."""
    forms = tasks.canonical(tasks.generate(6, 10_000, seed=0, clues=36).inputs).unique(dim=0)
    assert len(forms) == 49
    moves = torch.unique(drawn(6, 60_000, 0).sites, dim=0)
    images = forms[:, moves]
    names = images[:, :, :6].argsort(-1) + 2  # digits renamed in order of appearance, as in a canonical form
    kept = (names.gather(-1, images - 2) == forms[:, None]).all(-1).sum(1)
    assert len(moves) == 3456 and int((3456 * 720 // kept).sum()) == 28_200_960


@pytest.mark.parametrize("side", [6, 9])
def test_overlap_finds_the_twins_and_no_others(side: int) -> None:
    puzzles = tasks.generate(side, 60, seed=5)
    train = puzzles[slice(0, 30)]
    turned = drawn(side, 60, 2).apply(puzzles.inputs)
    test = Instance(turned, None, puzzles.ids, puzzles.task, None)
    found = tasks.overlap(train, test)
    keys = {tuple(row) for row in tasks.canonical(train.inputs).tolist()}
    assert found.tolist() == [tuple(row) in keys for row in tasks.canonical(test.inputs).tolist()]
    assert found[:30].all() and not found[30:].all()


def test_a_puzzle_with_a_clue_less_is_no_twin() -> None:
    """The rest of the set is still found."""
    puzzles = tasks.generate(6, 60, seed=5)
    other = puzzles.inputs.clone()
    other[0, int((other[0] > 1).int().argmax())] = 1
    changed = Instance(other, None, puzzles.ids, puzzles.task, None)
    assert tasks.overlap(puzzles, changed).tolist() == [False] + [True] * 59


def test_overlap_is_exact_though_fingerprints_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attractorlab.tasks.symmetry.fingerprint", lambda tokens: torch.zeros(len(tokens), dtype=torch.long))
    puzzles = tasks.generate(6, 60, seed=5)
    assert tasks.overlap(puzzles[:20], puzzles).tolist() == [True] * 20 + [False] * 40


def test_boards_of_different_sides_have_no_overlap_to_ask_for() -> None:
    with pytest.raises(
        ValueError, match=r"`overlap` got boards of 16 and of 36 sites\. Twins are of one size\. Pass puzzles of the same task"
    ):
        tasks.overlap(tasks.generate(4, 1, seed=0), tasks.generate(6, 1, seed=0))


def test_images_of_one_grid_are_one_solution_and_other_grids_are_others() -> None:
    grids = tasks.generate(9, 200, seed=5)
    assert grids.targets is not None
    both = same_grids(torch.cat([grids.targets, *[drawn(9, 200, seed).apply(grids.targets) for seed in range(4)]]))
    assert tasks.same_solutions(grids).equal(same_grids(grids.targets))
    assert len(both.unique()) == 200
    assert both.view(5, 200).unique(dim=0).shape[0] == 1


def test_a_grid_with_two_rows_exchanged_across_bands_is_no_image() -> None:
    """As a Latin square it is the same up to the order of its rows; what a band is makes the difference."""
    grids = tasks.generate(9, 50, seed=6).targets.view(50, 9, 9)  # type: ignore[union-attr]
    moved = grids[:, [3, 1, 2, 0, 4, 5, 6, 7, 8]]
    named = same_grids(torch.cat([grids, moved]).flatten(1)).view(2, 50)
    assert (named[0] != named[1]).all()


def test_a_grid_with_one_pair_of_digits_exchanged_in_two_rows_is_another() -> None:
    grid = tasks.generate(9, 30, seed=7).targets.view(30, 9, 9)  # type: ignore[union-attr]
    found = []
    for one in grid:
        for a, b in ((0, 1), (3, 4), (6, 8)):
            for x in range(9):
                y = int((one[a] == one[b, x]).nonzero())
                if one[b, y] == one[a, x]:  # two digits in two places: exchanging them leaves every line whole, and boxes if they lie in one
                    other = one.clone()
                    other[a, x], other[a, y], other[b, x], other[b, y] = one[b, x], one[b, y], one[a, x], one[a, y]
                    found.append((one, other))
    assert len(found) > 10
    pairs = torch.stack([torch.stack(pair) for pair in found]).view(-1, 81)
    numbers = same_grids(pairs).view(-1, 2)
    assert (numbers[:, 0] != numbers[:, 1]).all()


@pytest.mark.parametrize("name", ["sudoku-4", "sudoku-6", "maze-11"])
def test_where_grids_are_few_only_equal_solutions_are_one(name: str) -> None:
    made = tasks.generate(name, 300, seed=1)
    numbers = tasks.same_solutions(made)
    assert len(numbers.unique()) == len(made.targets.unique(dim=0))  # type: ignore[union-attr]
    assert all(bool((made.targets[numbers == k] == made.targets[numbers == k][0]).all()) for k in numbers.unique().tolist())  # type: ignore[index]


def test_solutions_are_needed_to_compare_them() -> None:
    with pytest.raises(ValueError, match="without targets"):
        tasks.same_solutions(replace(tasks.generate(4, 2, seed=0), targets=None))
    assert tasks.same_solutions(tasks.generate(9, 2, seed=0)[:0]).shape == (0,)
