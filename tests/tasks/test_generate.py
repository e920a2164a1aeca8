"""Generated puzzles and the solver."""

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from attractorlab import tasks
from attractorlab.tasks.generate import digits_of
from attractorlab.tasks.sudoku import box_of

SIDES = [4, 6, 9]
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def grids_of_side_4() -> list[str]:
    """All 288."""
    lines = ["".join(line) for line in permutations("1234")]
    texts = ["".join(rows) for rows in product(lines, repeat=4) if len({row[0] for row in rows}) == 4]
    legal = tasks.verify(tasks.from_tokens([[1] * 16] * len(texts), task="sudoku-4"), tasks.from_text(texts))
    return [texts[row] for row in legal.nonzero().flatten().tolist()]


def without_each_clue(board: Tensor) -> Tensor:
    """The boards that lack one of the clues."""
    clues = (board > 1).nonzero().flatten()
    return board.repeat(len(clues), 1).scatter(1, clues[:, None], 1)


def plain_guesses(text: str, side: int) -> tuple[int, int]:
    """Solutions and guesses of the solver that `solve` describes, written with sets and recursion."""
    high, wide = box_of(side)
    cells = [(row, column) for row in range(side) for column in range(side)]
    units = [
        [cell for cell in cells if key(cell) == unit]
        for key in (lambda c: c[0], lambda c: c[1], lambda c: c[0] // high * high + c[1] // wide)
        for unit in range(side)
    ]
    peers = {cell: {other for unit in units if cell in unit for other in unit} - {cell} for cell in cells}

    def search(board: dict[tuple[int, int], int]) -> tuple[int, int]:
        while True:
            free = {c: set(range(1, side + 1)) - {board[p] for p in peers[c] if p in board} for c in cells if c not in board}
            if any(not digits for digits in free.values()):
                return 0, 0
            single = next(((c, next(iter(digits))) for c, digits in free.items() if len(digits) == 1), None)
            for unit in units:
                for digit in set(range(1, side + 1)) - {board[c] for c in unit if c in board}:
                    places = [c for c in unit if digit in free.get(c, ())]
                    if not places:
                        return 0, 0
                    if len(places) == 1 and single is None:
                        single = (places[0], digit)
            if single is None:
                break
            board = board | {single[0]: single[1]}
        if not free:
            return 1, 0
        cell = min(cells, key=lambda c: len(free[c]) if c in free else side + 1)
        count = guesses = 0
        for digit in sorted(free[cell]):
            guesses += 1
            found, more = search(board | {cell: digit})
            count, guesses = count + found, guesses + more
        return count, guesses

    return search({cell: int(letter) for cell, letter in zip(cells, text, strict=True) if letter != "."})


def test_the_known_puzzle_is_solved() -> None:
    solutions, counts, guesses = tasks.solve(tasks.from_text(PUZZLE))
    assert tasks.to_text(solutions[0]) == ANSWER
    assert counts.tolist() == [1] and guesses.tolist() == [0]


@pytest.mark.parametrize("clues", [0, 2, 3, 4, 5, 6, 8])
def test_the_solver_counts_as_many_solutions_as_the_list_of_all_grids(clues: int) -> None:
    """Side 4 has only 288 grids: the solutions of a board are those that it matches."""
    grids = tasks.from_text(grids_of_side_4())
    generator = torch.Generator().manual_seed(clues)
    kept = torch.rand(400, 16, generator=generator).argsort(1) < clues
    legal = grids[torch.randint(len(grids), (200,), generator=generator)]
    anything = torch.randint(2, 6, (200, 16), generator=generator)
    boards = torch.where(kept, torch.cat([legal, anything]), 1)
    matches = ((boards[:, None] == 1) | (boards[:, None] == grids)).all(-1)
    solutions, counts, _ = tasks.solve(boards)
    assert torch.equal(counts, matches.sum(1).clamp(max=2))
    assert torch.equal(tasks.verify(tasks.from_tokens(boards, task="sudoku-4"), solutions), counts > 0)


@pytest.mark.parametrize("side", SIDES)
def test_every_generated_puzzle_has_one_solution_and_no_clue_to_spare(side: int) -> None:
    puzzles = tasks.generate(side, 40, seed=7)
    solutions, counts, guesses = tasks.solve(puzzles.inputs)
    assert puzzles.targets is not None and puzzles.difficulty is not None
    assert (counts == 1).all()
    assert torch.equal(solutions, puzzles.targets) and torch.equal(guesses.float(), puzzles.difficulty)
    assert tasks.verify(puzzles, puzzles.targets).all()
    for board in puzzles.inputs:
        assert (tasks.solve(without_each_clue(board))[1] == 2).all()


def test_a_longer_list_begins_with_the_shorter_one_across_chunks() -> None:
    long, short = tasks.generate(4, 1100, seed=5), tasks.generate(4, 520, seed=5)
    assert torch.equal(long.inputs[:520], short.inputs) and long.ids[:520] == short.ids
    assert long.ids[1099] == "sudoku-4/seed5/1099"
    assert len(long.inputs.unique(dim=0)) > 900


def test_seeds_give_different_puzzles_also_next_to_each_other() -> None:
    boards = torch.cat([tasks.generate(9, 20, seed=seed).inputs for seed in (0, 1, 2, 2**64 - 1)])
    assert len(boards.unique(dim=0)) == 80


def test_a_seed_gives_the_same_puzzles_on_every_machine() -> None:
    text = "\n".join(tasks.to_text(board) for side in SIDES for board in tasks.generate(side, 20, seed=0).inputs)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "5dc365e591bf9d5b"


@pytest.mark.parametrize("side", SIDES)
def test_guesses_are_those_of_the_solver_as_it_is_described(side: int) -> None:
    """Second route: sets and recursion, on the hardest of some generated puzzles."""
    puzzles = tasks.generate(side, 300, seed=11)
    assert puzzles.difficulty is not None
    hardest = puzzles[puzzles.difficulty.argsort(descending=True)[: 8 if side < 9 else 2]]
    assert side == 4 or int(hardest.difficulty.min()) > 0  # type: ignore[union-attr]
    for board, guesses in zip(hardest.inputs, hardest.difficulty.tolist(), strict=True):  # type: ignore[union-attr]
        assert plain_guesses(tasks.to_text(board), side) == (1, guesses)


def test_renaming_the_digits_leaves_the_guesses_as_they_are() -> None:
    boards = tasks.generate(9, 100, seed=12).inputs
    symmetries = tasks.random_symmetries(9, 100, generator=torch.Generator().manual_seed(0))
    renamed = tasks.Symmetries(tasks.identity(9, 100).sites, symmetries.tokens).apply(boards)
    assert torch.equal(tasks.solve(boards)[2], tasks.solve(renamed)[2])


@pytest.mark.parametrize(("side", "clues"), [(4, 6), (6, 14), (9, 30)])
def test_puzzles_of_a_given_number_of_clues_have_that_many_and_one_solution(side: int, clues: int) -> None:
    puzzles = tasks.generate(side, 30, seed=1, clues=clues)
    assert ((puzzles.inputs > 1).sum(1) == clues).all()
    assert (tasks.solve(puzzles.inputs)[1] == 1).all()
    assert puzzles.ids[2] == f"sudoku-{side}/clues{clues}/seed1/2"
    assert torch.equal(tasks.generate(side, 7, seed=1, clues=clues).inputs, puzzles.inputs[:7])


def test_no_puzzles_are_an_empty_instance() -> None:
    assert len(tasks.generate(9, 0, seed=0)) == 0
    assert [len(part) for part in tasks.solve(torch.ones(0, 81, dtype=torch.long))] == [0, 0, 0]


def test_impossible_demands_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`generate` found no puzzle of side 4 with 3 clues in 1000 grids\. Taking.*Raise `clues`"):
        tasks.generate(4, 1, seed=0, clues=3)  # four is the least
    with pytest.raises(ValueError, match=r"`generate` got count=-1, seed=0, clues=None\. A count.*Leave `clues` out"):
        tasks.generate(9, -1, seed=0)
    with pytest.raises(ValueError, match=r"seed=18446744073709551616"):
        tasks.generate(9, 1, seed=2**64)
    with pytest.raises(ValueError, match=r"clues=82.*between 1 and 81"):
        tasks.generate(9, 1, seed=0, clues=82)
    with pytest.raises(ValueError, match=r"`box_of` got a side of 5"):
        tasks.generate(5, 1, seed=0)


def test_boards_that_are_none_are_refused_by_the_solver() -> None:
    with pytest.raises(ValueError, match=r"got boards of shape \(81,\)\. Boards are \[row site\]\. Put one board into `tokens\[None\]`"):
        inspect.unwrap(digits_of)(torch.ones(81, dtype=torch.long))  # as users call it, without the tests' type checker
    with pytest.raises(ValueError, match=r"got ids from 1 to 11\. On a board of side 9 ids run from 0 to 10\. Pass token ids"):
        tasks.solve(torch.tensor([[11] + [1] * 80]))


def test_a_folder_that_cannot_be_written_to_only_loses_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from attractorlab.tasks import kernels

    asked: list[dict[str, bool]] = []

    def njit(**options: bool) -> Callable[[Callable[..., int]], Callable[..., int]]:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: loop

    monkeypatch.setattr(kernels.numba, "njit", njit)
    assert kernels.compiled(lambda: 7)() == 7
    assert asked == [{"cache": True, "nogil": True}, {"nogil": True}]


def test_importing_tasks_compiles_nothing() -> None:
    code = "import sys, attractorlab.tasks; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
