"""The rows of a file, checked by the rules of their task."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab.tasks import maze, sudoku
from attractorlab.tasks.boards import DataError
from attractorlab.tasks.generate import solve
from attractorlab.tasks.maze_generate import solve_mazes
from attractorlab.types import Instance

Where = Callable[[int], str]
Checked = tuple[Int[Tensor, "row site"], Float[Tensor, " row"] | None]
"""The answers, and the difficulty if it is known without the file."""


def checked_sudoku(inputs: Int[Tensor, "row site"], stored: Int[Tensor, "row site"] | None, where: Where) -> Checked:
    """The solutions, if every puzzle has exactly one and the stored answers are those; guesses are not counted for them.

    Raises:
        DataError: If a row breaks the rules, has no solution or several, or disagrees with its stored answer.
    """
    twice = sudoku.clashes(inputs).nonzero().flatten().tolist()
    if twice:
        raise DataError(
            f"`load` found a digit twice among the givens of one row, column or box in {where(twice[0])}. "
            "The givens of a puzzle obey its rules. Correct the question, or remove the row."
        )
    if stored is not None:
        side = sudoku.side_for(inputs.shape[1])
        puzzles = Instance(inputs=inputs, targets=None, ids=(), task=f"sudoku-{side}", difficulty=None)
        wrong = (~sudoku.verify(puzzles, stored)).nonzero().flatten().tolist()
        if wrong:
            row = wrong[0]
            changed = bool(((inputs[row] > sudoku.BLANK) & (stored[row] != inputs[row])).any())
            fault = "disagrees with its givens" if changed else "is incomplete or breaks the rules"
            raise DataError(
                f"`load` found an answer that {fault} in {where(row)}. "
                "An answer holds each digit once in every row, column and box, and keeps the givens. "
                "Correct the answer, or leave the column out."
            )
    solutions, counts, _ = solve(inputs)
    odd = (counts != 1).nonzero().flatten().tolist()
    if odd:
        number = "no solution" if counts[odd[0]] == 0 else "several solutions"
        raise DataError(
            f"`load` found a puzzle with {number} in {where(odd[0])}. A puzzle has exactly one. "
            "Correct the question, remove the row, or make an instance of it with `from_tokens`, which asks for nothing."
        )
    return solutions, None


def checked_mazes(inputs: Int[Tensor, "row site"], stored: Int[Tensor, "row site"] | None, where: Where) -> Checked:
    """The stored answers, if each marks a shortest path, or the paths of `solve_mazes` where none are stored; and the steps of the paths.

    Raises:
        DataError: If a maze has not one start and one goal, they are not joined, or its stored answer is no shortest path.
    """
    odd = (~maze.one_of_each(inputs)).nonzero().flatten().tolist()
    if odd:
        starts, goals = (int((inputs[odd[0]] == end).sum()) for end in (maze.START, maze.GOAL))
        raise DataError(f"`load` found {starts} starts and {goals} goals in {where(odd[0])}. A maze has one of each. Correct the question, or remove the row.")
    marked = (inputs == maze.PATH).any(1).nonzero().flatten().tolist()
    if marked:
        raise DataError(
            f"`load` found a path in the question in {where(marked[0])}. A path is what is asked for. Write a space where it is marked, and the path into the answer."
        )
    solutions, counts, steps = solve_mazes(inputs)
    apart = (counts == 0).nonzero().flatten().tolist()
    if apart:
        raise DataError(
            f"`load` found no way from start to goal in {where(apart[0])}. The two are joined by free cells that share a side. Correct the question, or remove the row."
        )
    if stored is not None:
        mazes = Instance(inputs=inputs, targets=None, ids=(), task=f"maze-{maze.side_for(inputs.shape[1])}", difficulty=None)
        wrong = (~maze.verify(mazes, stored)).nonzero().flatten().tolist()
        if wrong:
            row = wrong[0]
            scores = maze.score_paths(Instance(inputs[row : row + 1], None, (), mazes.task, None), stored[row : row + 1])
            length, shortest = int(scores.length[0]), int(scores.shortest[0])
            fault = (
                "changes the maze"
                if not bool(scores.kept[0])
                else "marks no path from start to goal"
                if length < 0
                else f"marks a path of {length} steps where {shortest} are enough"
                if length > shortest
                else f"marks {int(scores.spare[0])} cells beside the path"
            )
            raise DataError(
                f"`load` found an answer that {fault} in {where(row)}. An answer is the maze with one shortest path marked, and nothing else. "
                "Correct the answer, or leave the column out."
            )
    return (solutions if stored is None else stored), steps.to(torch.float32)
