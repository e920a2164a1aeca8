"""Reading mazes from the bundle, from CSV files and from folders of arrays."""

import gzip
import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attractorlab import tasks
from attractorlab.tasks import bundle, maze
from attractorlab.types import Instance

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
PUBLISHED = SHARED / "maze-30x30-hard-1k"
MAZES = tasks.generate("maze-7", 5, seed=9)
ASKED = [maze.to_text(row) for row in MAZES.inputs]


def answers(mazes: Instance) -> Tensor:
    assert mazes.targets is not None
    return mazes.targets


SOLVED = [maze.to_text(row) for row in answers(MAZES)]


def written(folder: Path, asked: list[str], solved: list[str]) -> Path:
    path = folder / "some.csv"
    path.write_text("\n".join(["question,answer", *[f"{q},{a}" for q, a in zip(asked, solved, strict=True)]]) + "\n")
    return path


def arrays(folder: Path, inputs: Tensor, labels: Tensor, *, side: int = 7) -> Path:
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "dataset.json").write_text(json.dumps({"vocab_size": 6, "seq_len": side * side, "sets": ["all"]}))
    np.save(folder / "train" / "all__inputs.npy", inputs.numpy().astype(np.uint8))
    np.save(folder / "train" / "all__labels.npy", labels.numpy().astype(np.uint8))
    return folder


@pytest.mark.parametrize(("split", "size"), [("test", 400), ("validation", 200)])
@pytest.mark.parametrize("side", [11, 13])
def test_bundled_mazes_have_one_path_and_its_steps(side: int, split: str, size: int) -> None:
    mazes = tasks.load(f"maze-{side}", split=split)
    solutions, counts, steps = tasks.solve_mazes(mazes.inputs)
    assert len(mazes) == len(set(mazes.ids)) == len(tasks.task_of(mazes.task).kind.canonical(mazes.inputs).unique(dim=0)) == size
    assert (counts == 1).all() and torch.equal(solutions, answers(mazes)) and mazes.difficulty is not None and torch.equal(steps.float(), mazes.difficulty)
    numbers = [int(name.split("/")[3]) for name in mazes.ids]
    made = tasks.generate(f"maze-{side}", max(numbers) + 1, seed=bundle.SEEDS[split])
    assert torch.equal(made.inputs[numbers], mazes.inputs)
    levels = (mazes.difficulty[:8] / side).long().tolist()
    assert len(set(levels)) >= 3, "the first few run from easy to hard"


def test_the_bundled_file_of_mazes_is_remade_to_the_same_text() -> None:
    stored = gzip.decompress(files("attractorlab").joinpath("assets", "puzzles", "maze-11.csv.gz").read_bytes())
    assert bundle.as_csv(bundle.bundled("maze-11")).encode() == stored


def test_no_bundled_maze_has_a_twin_in_the_other_split() -> None:
    assert not tasks.overlap(tasks.load("maze-11"), tasks.load("maze-11", split="validation")).any()


@pytest.mark.usefixtures("unchecked")
def test_rows_choose_and_maze_means_side_30() -> None:
    few = tasks.load("maze-13", rows=[5, -1])
    assert few.ids == tuple(tasks.load("maze-13").ids[row] for row in (5, -1))
    assert len(tasks.load("maze-5", rows=slice(0, 3))) == 3
    for rows in ([True, False, True], [0.0, 1.5], torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"`load` got the rows .* of maze-13\. Rows are chosen by their numbers\. Pass whole numbers"):
            tasks.load("maze-13", rows=rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got the split 'train' for the bundled puzzles\..*`generate\('maze-30', count, seed=0\)`"):
        tasks.load("maze", split="train")


@pytest.mark.parametrize("space", [".", " "])
def test_a_csv_file_is_read_with_its_answers(tmp_path: Path, space: str) -> None:
    mazes = tasks.load("maze-7", path=written(tmp_path, [q.replace(".", space) for q in ASKED], [a.replace(".", space) for a in SOLVED]))
    assert torch.equal(mazes.inputs, MAZES.inputs) and torch.equal(answers(mazes), answers(MAZES))
    assert mazes.task == "maze-7" and mazes.ids[4] == "some/4"
    assert mazes.difficulty is not None and MAZES.difficulty is not None and torch.equal(mazes.difficulty, MAZES.difficulty)


def test_questions_alone_get_their_paths_and_a_rating_is_kept(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("question,rating\n" + "\n".join(f"{q},{3 * i}" for i, q in enumerate(ASKED)))
    mazes = tasks.load("maze-7", path=tmp_path / "some.csv")
    assert torch.equal(answers(mazes), answers(MAZES)) and mazes.difficulty is not None and mazes.difficulty.tolist() == [0, 3, 6, 9, 12]


def test_any_shortest_path_may_be_the_stored_one(tmp_path: Path) -> None:
    room = "######S..##...##..G######"
    stored = ["######Soo##..o##..G######", "######S..##o..##ooG######", "######So.##.o.##.oG######"]
    mazes = tasks.load("maze-5", path=written(tmp_path, [room] * 3, stored))
    assert [maze.to_text(row) for row in answers(mazes)] == stored and tasks.verify(mazes, answers(mazes)).all()


def changed(texts: list[str], row: int, text: str) -> list[str]:
    return [*texts[:row], text, *texts[row + 1 :]]


@pytest.mark.parametrize(
    ("asked", "solved", "match"),
    [
        (ASKED[1].replace("S", "."), SOLVED[1], r"found 0 starts and 1 goals in line 3 of some.csv\. A maze has one of each\. Correct the question"),
        (ASKED[1].replace(".", "G", 1), SOLVED[1], r"found 1 starts and 2 goals in line 3"),
        (SOLVED[1], SOLVED[1], r"found a path in the question in line 3 of some.csv\. A path is what is asked for\. Write a space"),
        (SOLVED[1].replace("o", "#", 1).replace("o", "."), SOLVED[1], r"found no way from start to goal in line 3 of some.csv\. .*Correct the question"),
        (ASKED[1], ASKED[1], r"found an answer that marks no path from start to goal in line 3 of some.csv\. An answer is the maze with one shortest"),
        (ASKED[1], SOLVED[1].replace("#", ".", 1), r"found an answer that changes the maze in line 3"),
        (ASKED[1], SOLVED[1][:-1], r"got a maze of 48 letters in line 3 of some.csv\. A maze of side 7 has 49"),
    ],
)
def test_bad_rows_of_a_csv_file_are_refused_with_their_line(tmp_path: Path, asked: str, solved: str, match: str) -> None:
    with pytest.raises(tasks.DataError, match=match):
        tasks.load("maze-7", path=written(tmp_path, changed(ASKED, 1, asked), changed(SOLVED, 1, solved)))
    assert len(tasks.load("maze-7", path=tmp_path / "some.csv", rows=[0, 2])) == 2, "only the chosen rows are checked"


@pytest.mark.parametrize(
    ("asked", "solved", "match"),
    [
        ("######S.G##.#.##...######", "######S.G##o#o##ooo######", r"an answer that marks a path of 6 steps where 2 are enough in line 2 of some.csv"),
        ("######S..##.#.##..G######", "######Soo##o#o##..G######", r"an answer that marks 1 cells beside the path in line 2"),
    ],
)
def test_answers_that_are_longer_or_mark_more_are_told_apart(tmp_path: Path, asked: str, solved: str, match: str) -> None:
    path = written(tmp_path, [asked], [solved])
    with pytest.raises(tasks.DataError, match=match):
        tasks.load("maze-5", path=path)


def test_a_folder_of_arrays_is_read(tmp_path: Path) -> None:
    folder = arrays(tmp_path, MAZES.inputs, answers(MAZES))
    mazes = tasks.load("maze-7", path=folder, split="train")
    assert torch.equal(mazes.inputs, MAZES.inputs) and torch.equal(answers(mazes), answers(MAZES)) and mazes.ids[1] == "train/1"
    assert mazes.difficulty is not None and MAZES.difficulty is not None and torch.equal(mazes.difficulty, MAZES.difficulty)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tasks.DataError, match=r"`load` found 49 sites and 6 token ids in .*\. Maze of side 11 has 121 sites and 6 ids\. Pass the `task`"):
        tasks.load("maze-11", path=arrays(tmp_path / "a", MAZES.inputs, answers(MAZES)), split="train")
    with pytest.raises(tasks.DataError, match=r"found the input 5 at site \d+ in row 0 of train/all__inputs.npy\. Ids run from 1 to 4: a wall is 1"):
        tasks.load("maze-7", path=arrays(tmp_path / "b", answers(MAZES), answers(MAZES)), split="train")
    labels = answers(MAZES).clone()
    labels[3] = MAZES.inputs[3]
    with pytest.raises(tasks.DataError, match=r"marks no path from start to goal in row 3 of train/all__inputs.npy"):
        tasks.load("maze-7", path=arrays(tmp_path / "c", MAZES.inputs, labels), split="train")
    folder = arrays(tmp_path / "d", MAZES.inputs, answers(MAZES))
    (folder / "train" / "all__labels.npy").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(tasks.DataError, match=r"could not read .*all__labels.npy: .*\. Arrays are .npy files of integers; pickled objects are refused"):
        tasks.load("maze-7", path=folder, split="train")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"no published mazes at {PUBLISHED}: set SHARED_DATA to the folder of maze-30x30-hard-1k")
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_published_mazes_are_read_and_none_has_a_unique_path(split: str) -> None:
    mazes = tasks.load("maze", path=PUBLISHED, split=split)
    assert len(mazes) == 1000 and mazes.task == "maze-30" and mazes.difficulty is not None
    assert torch.equal(mazes.difficulty, (answers(mazes) == maze.PATH).sum(1).float() + 1) and mazes.difficulty.min() > 100
    ours, counts, _ = tasks.solve_mazes(mazes.inputs)
    assert (counts == 2).all()
    right, exact = tasks.verify(mazes, ours), (ours == answers(mazes)).all(1)
    assert right.all() and exact.double().mean() < 0.05, "an exact match calls nearly all shortest paths wrong"
