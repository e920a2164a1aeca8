"""The errors that the command line tells apart; every other misuse is a plain ValueError."""


class BadData(ValueError):
    """What was read cannot be used: puzzles, a checkpoint, a run."""


class SpaceError(OSError):
    """Not enough room on the disk for what is about to be written."""
