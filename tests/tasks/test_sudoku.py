"""Boards, rules and text."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from attractorlab import tasks
from attractorlab.tasks.sudoku import box_of, clashes, side_for
from attractorlab.types import Instance

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def board(text: str) -> Instance:
    return tasks.from_tokens(tasks.from_text(text))


def by_hand(text: str, side: int) -> bool:
    """The rules spelled out with sets."""
    high, wide = box_of(side)
    rows = [text[side * row : side * row + side] for row in range(side)]
    columns = ["".join(line) for line in zip(*rows, strict=True)]
    boxes = [
        "".join(rows[up + i][left + j] for i in range(high) for j in range(wide))
        for up, left in product(range(0, side, high), range(0, side, wide))
    ]
    digits = set("123456789"[:side])
    return all(set(unit) == digits for unit in rows + columns + boxes)


def grids_of_side_4() -> list[str]:
    lines = ["".join(line) for line in permutations("1234")]
    return [text for text in ("".join(rows) for rows in product(lines, repeat=4) if len({row[0] for row in rows}) == 4) if by_hand(text, 4)]


def test_the_known_answer_is_right_and_the_puzzle_itself_is_not() -> None:
    puzzle = board(PUZZLE)
    answers = torch.stack([tasks.from_text(ANSWER), puzzle.inputs])
    assert tasks.verify(puzzle, answers).tolist() == [[True], [False]]


def test_an_answer_that_changes_a_given_is_wrong_though_it_is_a_legal_grid() -> None:
    swapped = ANSWER.translate(str.maketrans("12", "21"))
    assert by_hand(swapped, 9)
    assert not tasks.verify(board(PUZZLE), tasks.from_text(swapped)).item()


def test_any_of_several_solutions_counts() -> None:
    empty = tasks.from_tokens([[1] * 81, [1] * 81])
    swapped = ANSWER.translate(str.maketrans("12", "21"))
    assert tasks.verify(empty, tasks.from_text([ANSWER, swapped])).all()


def test_exactly_288_grids_of_side_4_are_legal() -> None:
    """Known: 288 (OEIS A107739). All 24**4 boards whose rows are permutations are asked."""
    lines = ["".join(line) for line in permutations("1234")]
    texts = ["".join(rows) for rows in product(lines, repeat=4)]
    tokens = torch.tensor([list(text.encode()) for text in texts]) - ord("0") + 1
    empty = Instance(torch.ones(len(texts), 16, dtype=torch.long), None, (), "sudoku-4", None)
    legal = tasks.verify(empty, tokens)
    assert int(legal.sum()) == 288
    assert {texts[row] for row in legal.nonzero().flatten().tolist()} == set(grids_of_side_4())


@pytest.mark.parametrize("side", [4, 6, 9])
def test_one_wrong_cell_makes_an_answer_wrong(side: int) -> None:
    puzzles = tasks.generate(side, 8, seed=3)
    assert puzzles.targets is not None
    generator = torch.Generator().manual_seed(0)
    sites = torch.randint(side * side, (50, 8, 1), generator=generator)
    shift = torch.randint(1, side, (50, 8, 1), generator=generator)
    right = puzzles.targets.expand(50, 8, -1)
    wrong = right.scatter(-1, sites, (right.gather(-1, sites) - 2 + shift) % side + 2)
    assert tasks.verify(puzzles, right).all()
    assert not tasks.verify(puzzles, wrong).any()


@pytest.mark.parametrize("bad", [0, 1, 11, -5, 63, 64, 1000])
def test_ids_outside_the_digits_are_wrong_and_no_error(bad: int) -> None:
    answer = tasks.from_text(ANSWER)
    nine = next(i for i in range(81) if PUZZLE[i] == "." and ANSWER[i] == "9")
    answer[0, nine] = bad
    assert not tasks.verify(board(PUZZLE), answer).item()


def test_answers_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`verify` got answers of shape \(3, 81\) for puzzles of shape \(1, 81\)\. The last two.*`instance\[rows\]`"
    ):
        tasks.verify(board(PUZZLE), torch.ones(3, 81, dtype=torch.long))


@pytest.mark.parametrize("integer", [torch.uint8, torch.int32, torch.int64])
def test_answers_may_be_integers_of_any_kind(integer: torch.dtype) -> None:
    assert tasks.verify(board(PUZZLE), tasks.from_text(ANSWER).to(integer)).item()


def test_text_and_tokens_say_the_same() -> None:
    assert tasks.to_text(tasks.from_text(PUZZLE)[0]) == PUZZLE
    assert torch.equal(tasks.from_text(PUZZLE.replace(".", "0")), tasks.from_text(PUZZLE))
    assert tasks.from_text(PUZZLE)[0, :4].tolist() == [6, 4, 1, 1]


def test_a_printed_board_has_a_line_for_each_row_and_rules_between_boxes() -> None:
    lines = tasks.grid_lines(tasks.from_text("1.....2.....3.....4.....5.....6.....")[0])
    assert lines[0] == "1 . . | . . ."
    assert lines[2] == "------+------"
    assert len(lines) == 6 + 2 and {len(line) for line in lines} == {13}


def test_clashes_are_found_in_rows_columns_and_boxes() -> None:
    texts = ["1..1............", "1...........1...", "1....1..........", "1......1......1.", "................"]
    assert clashes(tasks.from_text(texts)).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("ids", [[[1] * 81] * 2, np.ones((2, 81), np.uint8), torch.ones(2, 81, dtype=torch.int32)])
def test_tokens_may_be_lists_arrays_or_tensors(ids: object) -> None:
    made = tasks.from_tokens(ids)  # type: ignore[arg-type]
    assert made.task == "sudoku-9" and made.inputs.dtype == torch.long and made.inputs.shape == (2, 81)
    assert made.targets is None and made.difficulty is None and len(made.ids) == 2


def test_tokens_are_not_shared_with_the_caller() -> None:
    ids = torch.ones(1, 16, dtype=torch.long)
    made = tasks.from_tokens(ids, task="sudoku-4")
    ids[0, 0] = 5
    assert made.inputs[0, 0] == 1


def test_wrong_tokens_are_refused_with_their_row() -> None:
    with pytest.raises(
        tasks.DataError, match=r"`from_tokens` got the id 0 in row 1, site 2\. In sudoku-4 a blank is 1 .*Add 1 to every id"
    ):
        tasks.from_tokens([[1] * 16, [1, 1, 0] + [1] * 13], task="sudoku-4")
    with pytest.raises(tasks.DataError, match=r"the id 6 in row 0, site 15.*up to 5\."):
        tasks.from_tokens([[1] * 15 + [6]], task="sudoku-4")
    with pytest.raises(
        tasks.DataError, match=r"`from_tokens` got a board of 15 ids in row 1\. In sudoku-4 a board has 16, row by row\. Correct the row"
    ):
        tasks.from_tokens([[1] * 16, [1] * 15], task="sudoku-4")
    with pytest.raises(
        tasks.DataError, match=r"ids of shape \(1, 16\) .* for sudoku-9\. Ids are integers of shape \[row 81\]\. Pass a board"
    ):
        tasks.from_tokens(torch.ones(1, 16, dtype=torch.long))


@pytest.mark.parametrize("task", ["sudoku-4", "maze-5"])
@pytest.mark.usefixtures("unchecked")
def test_ids_that_are_no_integers_are_refused(task: str) -> None:
    with pytest.raises(tasks.DataError, match=rf"type torch.float32 for {task}\. Ids are integers"):
        tasks.from_tokens(torch.ones(1, tasks.task_of(task).sites), task=task)


def test_wrong_text_is_refused_with_its_row() -> None:
    with pytest.raises(tasks.DataError, match=r"`from_text` got a board of 80 letters in row 0\. A board has 16, 36 or 81.*one line"):
        tasks.from_text(PUZZLE[:-1])
    with pytest.raises(
        tasks.DataError, match=r"`from_text` got a board of 15 letters in row 1\. A board of side 4 has 16.*Correct the line"
    ):
        tasks.from_text(["." * 16, "." * 15])
    with pytest.raises(tasks.DataError, match=r"`from_text` got the letter '5' at site 3 in row 1\. Boards of side 4.*Correct the line"):
        tasks.from_text(["." * 16, "...5" + "." * 12])
    with pytest.raises(tasks.DataError, match=r"the letter 'é' at site 0 in row 0"):
        tasks.from_text("é" + "." * 15)
    with pytest.raises(ValueError, match=r"`from_text` got no lines\. A board is one line.*Pass a line"):
        tasks.from_text([])


def test_unknown_tasks_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`task_of` got the task 'sudoku-5'\. The tasks are 'sudoku', .*Pass one of them"):
        tasks.side_of("sudoku-5")
    with pytest.raises(ValueError, match=r"`box_of` got a side of 5\. Boards have a side of 4, 6 or 9\. Pass"):
        box_of(5)
    with pytest.raises(ValueError, match=r"`side_for` got a board of 25 sites\. Boards have 16, 36 or 81 sites\. Pass"):
        side_for(25)
    assert [tasks.side_of(name) for name in ("sudoku", "sudoku-4", "sudoku-6", "sudoku-9")] == [9, 4, 6, 9]
