"""Make an `Instance`: read, generate, verify and transform Sudoku puzzles and mazes."""

from attractorlab.tasks.boards import DataError, data_fingerprint
from attractorlab.tasks.generate import solve
from attractorlab.tasks.maze import PathScores, score_paths
from attractorlab.tasks.maze_generate import generate_mazes, solve_mazes
from attractorlab.tasks.reading import load, spread_rows
from attractorlab.tasks.sudoku import BLANK, PAD, from_text, grid_lines, to_text
from attractorlab.tasks.symmetry import Symmetries, canonical, fingerprint
from attractorlab.tasks.table import (
    Task,
    from_tokens,
    generate,
    identity,
    overlap,
    random_symmetries,
    same_solutions,
    side_of,
    task_of,
    verify,
)

__all__ = [
    "BLANK",
    "PAD",
    "DataError",
    "PathScores",
    "Symmetries",
    "Task",
    "canonical",
    "data_fingerprint",
    "fingerprint",
    "from_text",
    "from_tokens",
    "generate",
    "generate_mazes",
    "grid_lines",
    "identity",
    "load",
    "overlap",
    "random_symmetries",
    "same_solutions",
    "score_paths",
    "side_of",
    "solve",
    "solve_mazes",
    "spread_rows",
    "task_of",
    "to_text",
    "verify",
]
