"""Models: each makes a LatentMap from instances."""

from attractorlab.models.base import AbstractReasoner
from attractorlab.models.cells import from_cell
from attractorlab.models.checkpoints import ALIASES, CheckpointError, describe, find, load, names, save
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.models.hooking import Hooked, from_function, hook

__all__ = [
    "ALIASES",
    "AbstractReasoner",
    "CheckpointError",
    "EqR",
    "EqRConfig",
    "Hooked",
    "describe",
    "find",
    "from_cell",
    "from_function",
    "hook",
    "load",
    "names",
    "save",
]
