"""The errors that the command line tells apart; every other misuse is a plain ValueError."""


class BadData(ValueError):
    """What was read cannot be used: puzzles, a checkpoint, a run."""


class SpaceError(OSError):
    """Not enough room on the disk for what is about to be written."""


class Unfinished(ValueError):
    """What was asked for is done only in part, as what it is made from is not complete."""
