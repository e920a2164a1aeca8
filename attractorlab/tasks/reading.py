"""Read puzzles: the bundled ones, a CSV file, or a folder of arrays; every row is checked."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.tasks.boards import DataError
from attractorlab.tasks.table import MAZE, Task, task_of
from attractorlab.types import Instance

BUNDLED = ("test", "validation")
_NAMES = {"question": ("question", "q"), "answer": ("answer", "a"), "rating": ("rating",)}
LARGEST = torch.finfo(torch.float32).max
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Rows = slice | Sequence[int] | None


def load(task: str, *, split: str = "test", rows: Rows = None, path: str | Path | None = None) -> Instance:
    """Puzzles with their solutions: bundled ones, or those of a file or folder.

    The unit of `difficulty` is that of the source: guesses as `solve` counts them for bundled Sudoku, steps of the path for mazes, the `rating`
    column of a CSV file (the guesses of another solver in Sudoku-Extreme); None where there is none.
    A file's rows are checked by the rules and by our solver, which takes about 20 seconds for 100,000 hard Sudoku puzzles; `rows` is taken first.
    Where a maze has several shortest paths, as all those of HRM have, `targets` holds one of them: score answers with `verify` or `score_paths`,
    as an exact match calls the other paths wrong.

    Args:
        task: "sudoku-4", "sudoku-6", "sudoku-9", or "maze-N" with a side N; "sudoku" is side 9 and "maze" side 30. The bundled mazes of side 11 are
            read from a file, and those of other sides made from the same two seeds.
        split: "test" or "validation" of the bundled puzzles, or the subfolder of a folder. A CSV file has none, and ignores it.
        rows: Which rows, as a slice or a list of numbers. Bundled puzzles go in cycles from easy to hard, so that the first n are of all levels.
        path: A .csv or .csv.gz file with the columns `question` (or `q`), and `answer` (or `a`) and `rating` where known;
            or a folder in the array format of HRM, TRM and EqR, with or without its split.

    Raises:
        DataError: If a row breaks the rules, has no solution, or disagrees with its stored answer; or if a Sudoku has several. Names the row.
        ValueError: If there is no such task, split, file or row.

    Example:
        >>> from attractorlab.tasks import verify
        >>> puzzles = load("sudoku-9", rows=slice(0, 32))
        >>> bool(verify(puzzles, puzzles.targets).all())
        True

    References:
        Wang et al. (2025), Hierarchical Reasoning Model (arXiv 2506.21734), for Sudoku-Extreme and the array format.
    """
    found = task_of(task)
    if path is None:
        return _bundled(found, split, rows)
    where = Path(path)
    if not where.exists():
        raise ValueError(
            f"`load` found nothing at {where}. A path is a .csv or .csv.gz file, or a folder of arrays. "
            "Correct the path, or leave it out for the bundled puzzles."
        )
    if where.is_dir():
        return _from_folder(where, found, split, rows)
    if not where.name.endswith((".csv", ".csv.gz")):
        raise ValueError(
            f"`load` got the file {where.name}. Files are read as .csv or .csv.gz. Convert it to a CSV file with a column `question`."
        )
    return _from_csv(where, found, rows)


def spread_rows(count: int, of: int) -> Int[Tensor, " row"]:
    """One row of each of `count` equal parts of a file of `of` rows, drawn within its part, always the same ones.

    A sorted file is covered evenly so. In one that goes in cycles, as the bundled puzzles go from easy to hard again and again, every n-th row may be of one level; these are not.

    Raises:
        ValueError: If there are fewer rows.

    Example:
        >>> spread_rows(4, 4).tolist()
        [0, 1, 2, 3]
    """
    if not 0 < count <= of:
        raise ValueError(f"`spread_rows` got {count} rows of {of}. It takes each row once, and one at least. Ask for 1 to {of}.")
    edges = torch.arange(count + 1) * of // count
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return edges[:-1] + (drawn * (edges[1:] - edges[:-1])).long()


def _bundled(task: Task, split: str, rows: Rows) -> Instance:
    if split not in BUNDLED:
        raise ValueError(
            f"`load` got the split {split!r} for the bundled puzzles. The bundled splits are 'test' and 'validation'. "
            f"Make training puzzles with `generate({task.name!r}, count, seed=0)`, or pass a `path`."
        )
    name = f"{task.name}.csv.gz"
    file = files("attractorlab").joinpath("assets", "puzzles", name)
    if task.kind is MAZE and not file.is_file():
        from attractorlab.tasks.bundle import bundled  # which is also run as a module

        made = bundled(task.name)[split]
        return made[_chosen(rows, len(made), task.name)]
    with (
        file.open("rb") as raw,
        gzip.open(raw, "rt", encoding="ascii", newline="") as text,
    ):
        found = [line for line in csv.DictReader(text) if line["source"].split("/")[1] == split]
    chosen = [found[i] for i in _chosen(rows, len(found), name)]
    places = [line["source"] for line in chosen]
    return Instance(
        inputs=task.kind.tokens_of([line["question"] for line in chosen], places, side=task.side, caller="load"),
        targets=task.kind.tokens_of([line["answer"] for line in chosen], places, side=task.side, caller="load"),
        ids=tuple(places),
        task=task.name,
        difficulty=torch.tensor([float(line["rating"]) for line in chosen], dtype=torch.float32),
    )


def _from_csv(path: Path, task: Task, rows: Rows) -> Instance:
    header, lines = _csv_lines(path)
    column = {kind: next((header.index(name) for name in names if name in header), None) for kind, names in _NAMES.items()}
    question, answer, rating = column["question"], column["answer"], column["rating"]
    if question is None:
        raise DataError(
            f"`load` found the columns {', '.join(header) or 'none'} in line 1 of {path.name}. "
            "The first line names the columns, and one of them is `question` or `q`. "
            "Put `source,question,answer,rating` there."
        )
    chosen = _chosen(rows, len(lines), path.name)
    kept = [lines[i][1] for i in chosen]
    places = [f"line {lines[i][0]} of {path.name}" for i in chosen]
    for line, place in zip(kept, places, strict=True):
        if len(line) != len(header):
            raise DataError(
                f"`load` found {len(line)} fields in {place}. Its first line names {len(header)} columns. Correct the line, or remove it."
            )
    inputs = task.kind.tokens_of([line[question] for line in kept], places, side=task.side, caller="load")
    stored = None if answer is None else task.kind.tokens_of([line[answer] for line in kept], places, side=task.side, caller="load")
    targets, difficulty = task.kind.checked(inputs, stored, places.__getitem__)
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    return Instance(
        inputs=inputs,
        targets=targets,
        ids=tuple(f"{stem}/{i}" for i in chosen),
        task=task.name,
        difficulty=difficulty if rating is None else _numbers([line[rating] for line in kept], places),
    )


def _csv_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and every other line that is not empty with its number."""
    opened: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as text:
            reader = csv.reader(text)
            header = [name.strip() for name in next(reader, [])]
            return header, [(reader.line_num, line) for line in reader if line]
    except (gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise DataError(
            f"`load` could not read {path.name}: {error}. A file is CSV text, compressed by gzip if its name ends in .gz. "
            "Make or fetch it again."
        ) from error


def _from_folder(path: Path, task: Task, split: str, rows: Rows) -> Instance:
    folder = path if (path / "dataset.json").is_file() else path / split
    if not (folder / "dataset.json").is_file():
        raise ValueError(
            f"`load` found no dataset.json in {path} or in its subfolder {split!r}. "
            "A folder of arrays has a subfolder for each split, with dataset.json and all__inputs.npy in it. "
            "Correct `path` or `split`."
        )
    sets, sites = _described(folder / "dataset.json", task), task.sites
    asked = {name: _array(folder / f"{name}__inputs.npy", sites) for name in sets}
    answers = {name: _array(folder / f"{name}__labels.npy", sites) for name in sets}
    for name in sets:
        if len(asked[name]) != len(answers[name]):
            raise DataError(
                f"`load` found {len(asked[name])} inputs and {len(answers[name])} labels in the set {name!r} of {folder.name}. "
                "Inputs and labels pair up one to one. Make or fetch the folder again."
            )
    chosen = _chosen(rows, sum(len(asked[name]) for name in sets), folder.name)
    everything = [(name, i) for name in sets for i in range(len(asked[name]))]
    picked = [everything[i] for i in chosen]
    inputs = _stacked([asked[name][i] for name, i in picked], sites)
    labels = _stacked([answers[name][i] for name, i in picked], sites)

    def where(row: int) -> str:
        return f"row {picked[row][1]} of {folder.name}/{picked[row][0]}__inputs.npy"

    for kind, tokens, (lowest, highest) in (("input", inputs, task.kind.givens(task.side)), ("label", labels, task.kind.answers(task.side))):
        wrong = ((tokens < lowest) | (tokens > highest)).nonzero()
        if len(wrong):
            row, site = wrong[0].tolist()
            raise DataError(
                f"`load` found the {kind} {int(tokens[row, site])} at site {site} in {where(row)}. "
                f"Ids run from {lowest} to {highest}: {task.kind.ids}. Make or fetch the folder again."
            )
    targets, difficulty = task.kind.checked(inputs, labels, where)
    return Instance(
        inputs=inputs,
        targets=targets,
        ids=tuple(f"{folder.name}/{i}" for i in chosen),
        task=task.name,
        difficulty=difficulty,
    )


def _described(path: Path, task: Task) -> list[str]:
    """The names of the sets, if the description is that of boards of that task."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        sets, sites, ids = list(described["sets"]), described["seq_len"], described["vocab_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"`load` could not read {path}: {error!r}. It names `sets`, `seq_len` and `vocab_size`. Make or fetch the folder again."
        ) from error
    if (sites, ids) != (task.sites, task.vocabulary):
        raise DataError(
            f"`load` found {sites} sites and {ids} token ids in {path}. "
            f"{task.kind.name.capitalize()} of side {task.side} has {task.sites} sites and {task.vocabulary} ids. "
            "Pass the `task` that the folder holds."
        )
    return sets


def _array(path: Path, sites: int) -> NDArray[np.integer]:
    """One array of boards, mapped from disk; objects are refused."""
    if not path.is_file():
        raise DataError(f"`load` found no {path.name} in {path.parent}. Its dataset.json names that set. Make or fetch the folder again.")
    try:
        found = np.lib.format.open_memmap(path, mode="r")  # which, unlike np.load, tries nothing but an array
    except (ValueError, EOFError) as error:
        raise DataError(
            f"`load` could not read {path}: {error}. Arrays are .npy files of integers; pickled objects are refused. "
            "Make or fetch the folder again."
        ) from error
    if found.ndim != 2 or found.shape[1] != sites or found.dtype.kind not in "iu":
        raise DataError(
            f"`load` found the shape {found.shape} in {path}. Boards are integers of shape [row {sites}]. Make or fetch the folder again."
        )
    return found


def _stacked(boards: list[NDArray[np.integer]], sites: int) -> Int[Tensor, "row site"]:
    return torch.from_numpy(np.stack(boards).astype(np.int64)) if boards else torch.empty(0, sites, dtype=torch.long)


def _chosen(rows: Rows, count: int, name: str) -> list[int]:
    """The numbers of the chosen rows, none negative."""
    if rows is None or isinstance(rows, slice):
        return list(range(count))[rows or slice(None)]
    if len(rows) and np.asarray(rows).dtype.kind not in "iu":
        raise ValueError(f"`load` got the rows {str(rows)[:60]} of {name}. Rows are chosen by their numbers. Pass whole numbers, e.g. `mask.nonzero().flatten().tolist()`.")
    numbers = [int(row) for row in rows]
    for row in numbers:
        if not -count <= row < count:
            raise ValueError(f"`load` got row {row} of {name}. It has {count} rows, numbered from 0. Choose `rows` among them.")
    return [row % count for row in numbers]


def _numbers(texts: list[str], places: list[str]) -> Float[Tensor, " row"]:
    """The ratings."""
    for text, place in zip(texts, places, strict=True):
        if not _FLOAT.fullmatch(text.strip()) or abs(float(text)) > LARGEST:
            raise DataError(f"`load` found the rating {text!r} in {place}. A rating is a number that float32 holds. Correct it, or remove the column.")
    return torch.tensor([float(text) for text in texts], dtype=torch.float32)
