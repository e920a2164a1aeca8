"""Remake the bundled puzzles from their seeds."""

import csv
import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor

from attractorlab.tasks.table import task_of
from attractorlab.types import Instance

SEEDS = {"test": 1_000_001, "validation": 1_000_002}
SIZES = {"test": 400, "validation": 200}
POOLS = {"sudoku-4": 4_000, "sudoku-6": 40_000, "sudoku-9": 40_000, "maze-11": 2_000}
POOL = 1_000  # of mazes of other sides, which are made when they are asked for


def bundled(name: str) -> dict[str, Instance]:
    """The bundled puzzles of a task, remade: "test" and "validation".

    1. A pool is generated: so many puzzles as `POOLS` says, from the split's seed.
    2. Puzzles that may be twins of an earlier one (equal fingerprints) are dropped, and from the validation pool those with a twin in the
       test set. Of the smallest boards only repeated ones are: there are so few up to symmetry that nothing there is ever unseen.
    3. A puzzle has a level: of Sudoku, log2(1 + guesses), of mazes, steps / side, rounded down. Puzzles are dealt level by level, one of each, over
       and over, until the split is full; a level that runs out is passed over. So any first n puzzles cover the levels as evenly as the pool allows.

    Takes about half a minute for Sudoku of side 9.

    Example:
        >>> from attractorlab.tasks.reading import load
        >>> bundled("sudoku-4")["test"].ids == load("sudoku-4").ids
        True
    """
    task = task_of(name)
    chosen: dict[str, Instance] = {}
    for split, seed in SEEDS.items():
        pool = task.kind.generate(task.side, POOLS.get(task.name, POOL), seed=seed)
        if not task.unseen:
            pool = pool[_first_seen(pool.inputs)]
        else:
            pool = pool[_first_seen(task.kind.fingerprint(pool.inputs)[:, None])]
            if split == "validation":
                pool = pool[~task.kind.overlap(chosen["test"], pool)]
        assert pool.difficulty is not None
        levels: list[int] = task.kind.graded(task.side, pool.difficulty).tolist()
        puzzles = pool[_dealt(levels)[: SIZES[split]]]
        names = [one.split("/") for one in puzzles.ids]
        chosen[split] = replace(puzzles, ids=tuple(f"{task.name}/{split}/{seeded}/{number}" for _, seeded, number in names))
    return chosen


def as_csv(splits: dict[str, Instance]) -> str:
    """The text of a bundled file."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["source", "question", "answer", "rating"])
    for puzzles in splits.values():
        assert puzzles.targets is not None and puzzles.difficulty is not None
        to_text = task_of(puzzles.task).to_text
        for name, asked, answer, guesses in zip(puzzles.ids, puzzles.inputs, puzzles.targets, puzzles.difficulty.tolist(), strict=True):
            table.writerow([name, to_text(asked), to_text(answer), int(guesses)])
    return text.getvalue()


def write(folder: str | Path) -> None:
    """Write the bundled files into a folder, one a task. The text is always the same; the bytes are, given the same zlib."""
    for name in POOLS:
        with (
            (Path(folder) / f"{name}.csv.gz").open("wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed,
        ):
            packed.write(as_csv(bundled(name)).encode("ascii"))


def _first_seen(keys: Int[Tensor, "row key"]) -> list[int]:
    """The rows whose key has not occurred before."""
    _, first = np.unique(keys.numpy(), axis=0, return_index=True)
    return sorted(first.tolist())


def _dealt(levels: list[int]) -> list[int]:
    """The rows, one of each level in turn."""
    seen: dict[int, int] = {}
    turn = []
    for row, level in enumerate(levels):
        seen[level] = seen.get(level, 0) + 1
        turn.append((seen[level], level, row))
    return [row for _, _, row in sorted(turn)]


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "assets" / "puzzles")
