"""Models: each makes a LatentMap from instances."""

from attractorlab.models.base import AbstractReasoner
from attractorlab.models.cells import from_cell
from attractorlab.models.checkpoints import ALIASES, NoModelError, convert, describe, find, load, load_feedforward, names, save
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.models.feedforward import FeedForward, FeedForwardConfig, untied
from attractorlab.models.hooking import Hooked, from_function, hook
from attractorlab.models.hrm import HRM, HRMConfig
from attractorlab.models.official import Given
from attractorlab.models.recursion import AbstractRecursion, AbstractShape
from attractorlab.models.trm import TRM, TRMConfig
from attractorlab.models.unpickling import CheckpointError

__all__ = [
    "ALIASES",
    "HRM",
    "TRM",
    "AbstractReasoner",
    "AbstractRecursion",
    "AbstractShape",
    "CheckpointError",
    "EqR",
    "EqRConfig",
    "FeedForward",
    "FeedForwardConfig",
    "Given",
    "HRMConfig",
    "Hooked",
    "NoModelError",
    "TRMConfig",
    "convert",
    "describe",
    "find",
    "from_cell",
    "from_function",
    "hook",
    "load",
    "load_feedforward",
    "names",
    "save",
    "untied",
]
