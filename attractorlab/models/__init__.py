"""Models: each makes a LatentMap from instances."""

from attractorlab.models.base import AbstractReasoner
from attractorlab.models.checkpoints import ALIASES, CheckpointError, describe, find, load, names, save
from attractorlab.models.eqr import EqR, EqRConfig

__all__ = ["ALIASES", "AbstractReasoner", "CheckpointError", "EqR", "EqRConfig", "describe", "find", "load", "names", "save"]
