"""Make an `Instance`: read, generate, verify and transform Sudoku puzzles."""

from attractorlab.tasks.generate import generate, solve
from attractorlab.tasks.reading import load
from attractorlab.tasks.sudoku import BLANK, PAD, DataError, from_text, from_tokens, grid_lines, side_of, to_text, verify
from attractorlab.tasks.symmetry import Symmetries, canonical, fingerprint, identity, overlap, random_symmetries

__all__ = [
    "BLANK",
    "PAD",
    "DataError",
    "Symmetries",
    "canonical",
    "fingerprint",
    "from_text",
    "from_tokens",
    "generate",
    "grid_lines",
    "identity",
    "load",
    "overlap",
    "random_symmetries",
    "side_of",
    "solve",
    "to_text",
    "verify",
]
