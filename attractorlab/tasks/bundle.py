"""Remake the bundled puzzles from their seeds."""

import csv
import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.tasks.generate import generate
from attractorlab.tasks.sudoku import to_text
from attractorlab.tasks.symmetry import fingerprint, overlap
from attractorlab.types import Instance

SEEDS = {"test": 1_000_001, "validation": 1_000_002}
SIZES = {"test": 400, "validation": 200}
POOLS = {4: 4_000, 6: 40_000, 9: 40_000}


def bundled(side: int) -> dict[str, Instance]:
    """The bundled puzzles of a side, remade: "test" and "validation".

    1. A pool is generated: `POOLS` puzzles from the split's seed.
    2. Puzzles that may be twins of an earlier one (equal fingerprints) are dropped, and from the validation pool those with a twin in the
       test set. On side 4 only repeated boards are: it has 36 minimal puzzles up to symmetry, so nothing there is ever unseen.
    3. The level of a puzzle is log2(1 + difficulty), rounded down. Puzzles are dealt level by level, one of each, over and over,
       until the split is full; a level that runs out is passed over. So any first n puzzles cover the levels as evenly as the pool allows.

    Takes about half a minute for side 9.

    Example:
        >>> from attractorlab.tasks.reading import load
        >>> bundled(4)["test"].ids == load("sudoku-4").ids
        True
    """
    chosen: dict[str, Instance] = {}
    for split, seed in SEEDS.items():
        pool = generate(side, POOLS[side], seed=seed)
        if side == 4:
            pool = pool[_first_seen(pool.inputs)]
        else:
            pool = pool[_first_seen(fingerprint(pool.inputs)[:, None])]
            if split == "validation":
                pool = pool[~overlap(chosen["test"], pool)]
        puzzles = pool[_dealt(_levels(pool))[: SIZES[split]]]
        names = [name.split("/") for name in puzzles.ids]
        chosen[split] = replace(puzzles, ids=tuple(f"{task}/{split}/{seeded}/{number}" for task, seeded, number in names))
    return chosen


def as_csv(splits: dict[str, Instance]) -> str:
    """The text of a bundled file."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["source", "question", "answer", "rating"])
    for puzzles in splits.values():
        assert puzzles.targets is not None and puzzles.difficulty is not None
        for name, asked, answer, guesses in zip(puzzles.ids, puzzles.inputs, puzzles.targets, puzzles.difficulty.tolist(), strict=True):
            table.writerow([name, to_text(asked), to_text(answer), int(guesses)])
    return text.getvalue()


def write(folder: str | Path) -> None:
    """Write the bundled files into a folder, one a side. The text is always the same; the bytes are, given the same zlib."""
    for side in POOLS:
        with (
            (Path(folder) / f"sudoku-{side}.csv.gz").open("wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed,
        ):
            packed.write(as_csv(bundled(side)).encode("ascii"))


def _first_seen(keys: Int[Tensor, "row key"]) -> list[int]:
    """The rows whose key has not occurred before."""
    _, first = np.unique(keys.numpy(), axis=0, return_index=True)
    return sorted(first.tolist())


def _levels(puzzles: Instance) -> list[int]:
    assert puzzles.difficulty is not None
    levels: list[int] = torch.log2(1 + puzzles.difficulty.double()).floor().int().tolist()
    return levels


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
