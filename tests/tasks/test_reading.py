"""Reading puzzles from the bundle, from CSV files and from folders of arrays."""

import csv
import gzip
import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing
import pytest
import torch
from torch import Tensor

from attractorlab import tasks
from attractorlab.tasks import bundle, kernels
from attractorlab.tasks.sudoku import box_of
from attractorlab.types import Instance

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data: set SHARED_DATA to the folder of test.csv.gz")
SIDES = [4, 6, 9]


def written(folder: Path, text: str, name: str = "some.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def arrays(
    folder: Path, inputs: np.typing.NDArray[np.integer], labels: np.typing.NDArray[np.integer], *, side: int = 4, split: str = "test"
) -> Path:
    (folder / split).mkdir(parents=True)
    described = {"pad_id": 0, "ignore_label_id": 0, "vocab_size": side + 2, "seq_len": side * side, "sets": ["all"]}
    (folder / split / "dataset.json").write_text(json.dumps(described))
    np.save(folder / split / "all__inputs.npy", inputs)
    np.save(folder / split / "all__labels.npy", labels)
    return folder


def answers(puzzles: Instance) -> Tensor:
    assert puzzles.targets is not None
    return puzzles.targets


def ratings(puzzles: Instance) -> Tensor:
    assert puzzles.difficulty is not None
    return puzzles.difficulty


PUZZLES = tasks.generate(4, 5, seed=9, clues=8)
ASKED = [tasks.to_text(row) for row in PUZZLES.inputs]
SOLVED = [tasks.to_text(row) for row in answers(PUZZLES)]


def table(*, solved: list[str] | None = None, asked: list[str] | None = None) -> str:
    lines = [f"ours,{q},{a},{i}" for i, (q, a) in enumerate(zip(asked or ASKED, solved or SOLVED, strict=True))]
    return "\n".join(["source,question,answer,rating", *lines]) + "\n"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("split", "size"), [("test", 400), ("validation", 200)])
def test_bundled_puzzles_are_minimal_and_have_one_solution_and_their_rating(side: int, split: str, size: int) -> None:
    puzzles = tasks.load(f"sudoku-{side}", split=split)
    solutions, counts, guesses = tasks.solve(puzzles.inputs)
    assert len(puzzles) == len(set(puzzles.ids)) == len(puzzles.inputs.unique(dim=0)) == size
    assert (counts == 1).all() and torch.equal(solutions, answers(puzzles)) and torch.equal(guesses.float(), ratings(puzzles))
    for board in puzzles.inputs[:40]:
        clues = (board > 1).nonzero().flatten()
        assert (tasks.solve(board.repeat(len(clues), 1).scatter(1, clues[:, None], 1))[1] == 2).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_every_bundled_puzzle_can_be_remade_from_its_name(side: int, split: str) -> None:
    puzzles = tasks.load(f"sudoku-{side}", split=split)
    board, solution, guesses = np.zeros((1, side * side), np.int8), np.zeros((1, side * side), np.int8), np.zeros(1, np.int64)
    for name, inputs in zip(puzzles.ids, puzzles.inputs, strict=True):
        task, named, seed, number = name.split("/")
        assert (task, named, seed) == (f"sudoku-{side}", split, f"seed{bundle.SEEDS[split]}")
        kernels.make_boards(np.uint64(bundle.SEEDS[split]), int(number), side, *box_of(side), 0, board, solution, guesses)
        assert (board[0] + 1).tolist() == inputs.tolist()


def test_the_smallest_bundled_file_is_remade_to_the_same_text() -> None:
    stored = gzip.decompress(files("attractorlab").joinpath("assets", "puzzles", "sudoku-4.csv.gz").read_bytes())
    assert bundle.as_csv(bundle.bundled("sudoku-4")).encode() == stored


@pytest.mark.parametrize("side", [6, 9])
def test_no_bundled_puzzle_has_a_twin_in_the_bundle(side: int) -> None:
    test, validation = tasks.load(f"sudoku-{side}"), tasks.load(f"sudoku-{side}", split="validation")
    assert not tasks.overlap(test, validation).any()
    for puzzles in (test, validation):
        assert len(tasks.fingerprint(puzzles.inputs).unique()) == len(puzzles)


def test_any_first_puzzles_of_side_9_run_from_easy_to_hard() -> None:
    difficulty = tasks.load("sudoku-9").difficulty
    assert difficulty is not None
    for n in (8, 32, 128):
        levels = torch.log2(1 + difficulty[:n]).floor().long()
        assert torch.bincount(levels, minlength=7)[:6].min() >= n // 8


def test_sudoku_means_side_9_and_rows_choose() -> None:
    everything = tasks.load("sudoku")
    assert everything.ids == tasks.load("sudoku-9").ids
    assert tasks.load("sudoku", rows=slice(3, 9, 2)).ids == everything.ids[3:9:2]
    assert tasks.load("sudoku", rows=[5, -1, 5]).ids == (everything.ids[5], everything.ids[-1], everything.ids[5])
    assert len(tasks.load("sudoku", rows=slice(0, 0))) == 0


def test_unknown_names_and_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`task_of` got the task 'chess'\. The tasks are"):
        tasks.load("chess")
    with pytest.raises(
        ValueError,
        match=r"`load` got the split 'train' for the bundled puzzles\..*Make training puzzles with `generate\('sudoku-6', count, seed=0\)`",
    ):
        tasks.load("sudoku-6", split="train")
    with pytest.raises(ValueError, match=r"`load` got row 400 of sudoku-9.csv.gz\. It has 400 rows, numbered from 0\. Choose `rows`"):
        tasks.load("sudoku", rows=[0, 400])
    with pytest.raises(ValueError, match=r"`load` found nothing at .*nowhere.csv\. A path is.*Correct the path"):
        tasks.load("sudoku", path=tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"`load` got the file a.txt\. Files are read as .csv or .csv.gz\. Convert it"):
        tasks.load("sudoku", path=written(tmp_path, "", "a.txt"))


@pytest.mark.parametrize("name", ["some.csv", "some.csv.gz"])
def test_a_csv_file_is_read_with_its_answers_and_ratings(tmp_path: Path, name: str) -> None:
    puzzles = tasks.load("sudoku-4", path=written(tmp_path, table(), name))
    assert torch.equal(puzzles.inputs, PUZZLES.inputs) and torch.equal(answers(puzzles), answers(PUZZLES))
    assert puzzles.difficulty is not None and puzzles.difficulty.tolist() == [0, 1, 2, 3, 4]
    assert puzzles.ids[4] == "some/4" and puzzles.task == "sudoku-4"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("question,answer", "q,a"),
        lambda text: text.replace(".", "0"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n"),
    ],
)
def test_the_usual_ways_to_write_a_csv_file_are_read_alike(tmp_path: Path, change: object) -> None:
    puzzles = tasks.load("sudoku-4", path=written(tmp_path, change(table())))  # type: ignore[operator]
    assert torch.equal(puzzles.inputs, PUZZLES.inputs) and torch.equal(answers(puzzles), answers(PUZZLES))


def test_a_csv_file_may_hold_questions_alone(tmp_path: Path) -> None:
    puzzles = tasks.load("sudoku-4", path=written(tmp_path, "question\n" + "\n".join(ASKED)))
    assert torch.equal(answers(puzzles), answers(PUZZLES)) and puzzles.difficulty is None


def test_only_the_chosen_rows_of_a_file_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, table(asked=["x" * 16, *ASKED[1:]]))
    assert tasks.load("sudoku-4", path=path, rows=slice(1, 3)).ids == ("some/1", "some/2")
    with pytest.raises(tasks.DataError, match=r"line 2 of some\.csv"):
        tasks.load("sudoku-4", path=path, rows=[0])


def test_an_empty_table_is_an_empty_instance(tmp_path: Path) -> None:
    assert len(tasks.load("sudoku-4", path=written(tmp_path, "question,answer\n"))) == 0


def swapped(text: str) -> str:
    """Another legal grid."""
    return text.translate(str.maketrans("12", "21"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            table(asked=[*ASKED[:3], ASKED[3][:-1], ASKED[4]]),
            r"`load` got a board of 15 letters in line 5 of some.csv\. A board of side 4 has 16.*or pass",
        ),
        (
            table(asked=[*ASKED[:2], "x" + ASKED[2][1:], *ASKED[3:]]),
            r"the letter 'x' at site 0 in line 4 of some.csv\. Boards of side 4.*Correct",
        ),
        (
            table(asked=["11" + "." * 14, *ASKED[1:]]),
            r"a digit twice among the givens .* in line 2 of some.csv\. The givens.*Correct the question",
        ),
        (
            table(solved=[SOLVED[0], swapped(SOLVED[1]), *SOLVED[2:]]),
            r"an answer that disagrees with its givens in line 3 of some.csv\. An answer",
        ),
        (
            table(solved=[*SOLVED[:4], ASKED[4]]),
            r"an answer that is incomplete or breaks the rules in line 6 of some.csv\. An answer.*leave the column",
        ),
        (
            table(asked=["." * 16, *ASKED[1:]]),
            r"a puzzle with several solutions in line 2 of some.csv\. A puzzle has exactly one\. Correct.*from_tokens",
        ),
        ("a,b\n1,2\n", r"`load` found the columns a, b in line 1 of some.csv\. The first line names.*Put `source,question,answer,rating`"),
        ("", r"`load` found the columns none in line 1"),
        ("question,rating\n" + ASKED[0] + "\n", r"`load` found 1 fields in line 2 of some.csv\. Its first line names 2 columns\. Correct"),
        (
            "question,rating\n" + ASKED[0] + ",hard\n",
            r"`load` found the rating 'hard' in line 2 of some.csv\. A rating is a number that float32 holds\. Correct it",
        ),
        ("question,rating\n" + ASKED[0] + ",1e39\n", r"`load` found the rating '1e39' in line 2 of some.csv"),
    ],
)
def test_bad_rows_of_a_csv_file_are_refused_with_their_line(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(tasks.DataError, match=match):
        tasks.load("sudoku-4", path=written(tmp_path, text))


def test_a_puzzle_without_solution_is_told_from_one_with_several(tmp_path: Path) -> None:
    none = "123....4" + "." * 8  # the fourth cell would have to be 4, and is not allowed to
    with pytest.raises(tasks.DataError, match=r"a puzzle with no solution in line 3 of some.csv\. A puzzle has exactly one"):
        tasks.load("sudoku-4", path=written(tmp_path, f"q\n{ASKED[0]}\n{none}\n"))


def test_a_file_of_another_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        tasks.DataError, match=r"a board of 16 letters in line 2 of some.csv\. A board of side 9 has 81.*pass the `task` of that side"
    ):
        tasks.load("sudoku", path=written(tmp_path, table()))


@pytest.mark.parametrize("damage", [lambda raw: b"not gzip at all", lambda raw: raw[: len(raw) // 2]])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: object) -> None:
    path = written(tmp_path, table(), "some.csv.gz")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(tasks.DataError, match=r"`load` could not read some.csv.gz: .* A file is CSV text.*Make or fetch it again"):
        tasks.load("sudoku-4", path=path)


@pytest.mark.parametrize("integer", [np.uint8, np.int32])
def test_a_folder_of_arrays_is_read_with_and_without_its_split(tmp_path: Path, integer: type) -> None:
    folder = arrays(tmp_path, PUZZLES.inputs.numpy().astype(integer), answers(PUZZLES).numpy().astype(integer), split="train")
    for path in (folder, folder / "train"):
        puzzles = tasks.load("sudoku-4", path=path, split="train")
        assert torch.equal(puzzles.inputs, PUZZLES.inputs) and torch.equal(answers(puzzles), answers(PUZZLES))
        assert puzzles.ids[1] == "train/1" and puzzles.difficulty is None
    assert torch.equal(tasks.load("sudoku-4", path=str(folder), split="train", rows=[3, 1]).inputs, PUZZLES.inputs[[3, 1]])
    assert len(tasks.load("sudoku-4", path=folder, split="train", rows=slice(0, 0))) == 0


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    inputs, labels = PUZZLES.inputs.numpy(), answers(PUZZLES).numpy()
    with pytest.raises(
        ValueError, match=r"`load` found no dataset.json in .* or in its subfolder 'test'\. A folder.*Correct `path` or `split`"
    ):
        tasks.load("sudoku-4", path=tmp_path)
    with pytest.raises(
        tasks.DataError, match=r"`load` found 16 sites and 6 token ids in .*\. Sudoku of side 9 has 81 sites and 11 ids\. Pass the `task`"
    ):
        tasks.load("sudoku", path=arrays(tmp_path / "a", inputs, labels))
    with pytest.raises(tasks.DataError, match=r"found 5 inputs and 4 labels in the set 'all' of test\. Inputs and labels pair up"):
        tasks.load("sudoku-4", path=arrays(tmp_path / "b", inputs, labels[:4]))
    with pytest.raises(tasks.DataError, match=r"found the shape \(5, 15\) in .*\. Boards are integers of shape \[row 16\]\. Make or fetch"):
        tasks.load("sudoku-4", path=arrays(tmp_path / "c", inputs[:, :15], labels))
    with pytest.raises(tasks.DataError, match=r"found the input 0 at site 0 in row 0 of test/all__inputs.npy\. Ids run from 1 to 5"):
        tasks.load("sudoku-4", path=arrays(tmp_path / "d", inputs - inputs[:1, :1], labels))
    with pytest.raises(tasks.DataError, match=r"found an answer that disagrees with its givens in row 2 of test/all__inputs.npy"):
        tasks.load("sudoku-4", path=arrays(tmp_path / "e", inputs, labels[[0, 1, 3, 3, 4]]))
    with pytest.raises(tasks.DataError, match=r"could not read .*all__inputs.npy: .* pickled objects are refused\. Make or fetch"):
        tasks.load("sudoku-4", path=arrays(tmp_path / "f", inputs.astype(object), labels))
    described = arrays(tmp_path / "g", inputs, labels) / "test" / "dataset.json"
    described.write_text("{}")
    with pytest.raises(
        tasks.DataError, match=r"could not read .*dataset.json: KeyError\('sets'\)\. It names `sets`, `seq_len` and `vocab_size`\. Make"
    ):
        tasks.load("sudoku-4", path=tmp_path / "g")
    (arrays(tmp_path / "h", inputs, labels) / "test" / "all__labels.npy").unlink()
    with pytest.raises(tasks.DataError, match=r"`load` found no all__labels.npy in .*\. Its dataset.json names that set\. Make or fetch"):
        tasks.load("sudoku-4", path=tmp_path / "h")


@needs_shared
@pytest.mark.parametrize("name", ["test", "validation", "ladder", "ladder_guesses", "train", "train_easy", "train_official_1k"])
def test_published_puzzles_are_read_and_their_answers_are_ours(name: str) -> None:
    puzzles = tasks.load("sudoku", path=SHARED / f"{name}.csv.gz", rows=slice(0, 200))
    assert puzzles.targets is not None and len(puzzles) == 200
    assert tasks.verify(puzzles, answers(puzzles)).all()


@needs_shared
def test_our_guesses_rank_puzzles_as_those_of_another_solver_do() -> None:
    """Logarithms of our guesses and of its exhaustive guesses; measured 0.957 on all 7,000."""
    with gzip.open(SHARED / "difficulty.csv.gz", "rt", newline="") as text:
        lines = list(csv.DictReader(text))[::10]
    guesses = tasks.solve(tasks.from_text([line["question"] for line in lines]))[2].float().log1p()
    theirs = torch.tensor([float(line["guesses_exhaustive"]) for line in lines]).log1p()
    assert torch.corrcoef(torch.stack([guesses, theirs]))[0, 1] > 0.9


@needs_shared
def test_a_folder_of_mazes_is_no_sudoku() -> None:
    with pytest.raises(tasks.DataError, match=r"found 900 sites and 6 token ids"):
        tasks.load("sudoku", path=SHARED / "maze-30x30-hard-1k")


def test_rows_are_spread_over_a_file_whatever_its_order():
    for of, count in ((2000, 400), (2000, 399), (400, 400), (7, 3), (1, 1)):
        rows = tasks.spread_rows(count, of)
        assert bool((rows[1:] > rows[:-1]).all()) and bool((rows >= torch.arange(count) * of // count).all())  # sorted files: one row of each part
        assert bool((rows < (torch.arange(count) + 1) * of // count).all()) and tasks.spread_rows(count, of).equal(rows)
    for cycle in (2, 4, 8, 50):  # files in cycles: every phase about as often
        phases = torch.bincount(tasks.spread_rows(200, 400) % cycle, minlength=cycle)
        assert float((phases - 200 / cycle).abs().max()) < 4.5 * (200 / cycle) ** 0.5
    whole = tasks.load("sudoku-6").difficulty
    assert abs(float(whole[tasks.spread_rows(100, len(whole))].mean() - whole.mean())) < 0.6  # every fourth row: 2.1 below


def test_more_rows_than_there_are_cannot_be_spread():
    with pytest.raises(ValueError, match=r"`spread_rows` got 5 rows of 4\. It takes each row once.*Ask for 1 to 4"):
        tasks.spread_rows(5, 4)


@needs_shared
def test_the_test_rows_of_sudoku_extreme_have_as_many_grids_up_to_symmetry_as_their_readme_says() -> None:
    assert len(tasks.same_solutions(tasks.load("sudoku-9", path=SHARED / "test.csv.gz")).unique()) == 1604
