"""AbstractReasoner: four verbs make a model; bind makes it a LatentMap."""

import copy
import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import metadata
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attractorlab.maps import LatentMap, Update
from attractorlab.types import Drive, Instance, Origin, State

_Reasoner = TypeVar("_Reasoner", bound="AbstractReasoner")


class AbstractReasoner(nn.Module, ABC):
    """A model that answers by updating a latent state. Write `embed`, `start`, `tick`, `readout`; `bind` is inherited."""

    name: str = "unnamed"
    clock: str = "tick"

    @abstractmethod
    def embed(self, instance: Instance) -> Drive:
        """What the instances contribute to every tick, batch first.

        Raises:
            ValueError: If the instances are of another task or size than the model's.
        """

    @abstractmethod
    def start(self, drive: Drive, *, generator: torch.Generator) -> State:
        """A start for every row of `drive`, in the model's dtype."""

    @abstractmethod
    def tick(self, z: State, drive: Drive) -> State:
        """One noise-free update of the whole state."""

    @abstractmethod
    def readout(self, z: State) -> Mapping[str, Tensor]:
        """What can be read off a state: ``{"logits": [row site class], "halt": [row]}``."""

    def updates(self) -> tuple[Update, ...]:
        """The tick taken apart: updates that are the tick, one after the other. Empty unless a model says so."""
        return ()

    def bind(self, instance: Instance) -> LatentMap:
        """The map of one tick with `instance` bound, one row per instance, in the model's present dtype."""
        with torch.no_grad():
            drive = self.embed(instance)
        n = len(instance)
        return LatentMap(
            rule=self.tick,
            drive=drive,
            readout=self.readout,
            clock=self.clock,
            instance=torch.arange(n),
            start=torch.zeros(n, dtype=torch.int64),
            origin=self.origin(),
            updates=self.updates(),
            model=self,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def to(self: _Reasoner, *args: Any, **kwargs: Any) -> _Reasoner:
        """A copy in another dtype or on another device. Unlike a plain module's, it leaves this model as it is.

        Maps bound earlier hold on to the model; a cast in place would change them behind their back.
        """
        twin = copy.deepcopy(self)
        nn.Module.to(twin, *args, **kwargs)
        return twin

    def origin(self) -> Origin:
        """Model, weights hash, dtype, device and versions."""
        return Origin(
            model=self.name,
            weights=weights_hash(self),
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(next(self.parameters()).device),
            versions=versions(),
            argv=tuple(sys.argv),
        )


def weights_hash(model: nn.Module) -> str:
    """The first 16 hex digits of the SHA-256 of all persistent tensors, as float64, with their names.

    The dtype does not enter: a model and its float64 copy share the hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        digest.update(real.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for package in ("attractorlab", "torch", "numpy", "scipy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
