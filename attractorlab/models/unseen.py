"""Followed: which memory holds what rests on the state, also where functions that nobody records made it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attractorlab.models.containers import flatten


class Followed(TorchDispatchMode):
    """While entered, memory that an operation writes from followed memory is followed too.

    It sees the operations inside of transforms and of scripted functions, and none of other libraries. Those of scripted functions pass through the
    modes again on their way, so that a `Recorder` notes them down one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: set[int] = set()
        self._made: set[int] = set()
        self._held: list[Tensor] = []  # memory keeps its number as long as it lives

    def follow(self, tensors: Iterable[Any]) -> None:
        """Follow the memory of these."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._storages.add(storage_of(tensor))
                self._held.append(tensor)

    def rests(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is followed."""
        return storage_of(tensor) in self._storages

    def knows(self, tensor: Tensor) -> bool:
        """Whether an operation was seen to make the memory of a tensor."""
        return storage_of(tensor) in self._made

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for, and follow what it gives."""
        out = func(*args, **(kwargs or {}))
        if self._storages:
            given = [leaf for leaf in flatten((tuple(args), kwargs or {}))[0] if isinstance(leaf, Tensor)]
            made = [leaf for leaf in flatten(out)[0] if isinstance(leaf, Tensor)]
            if any(self.rests(leaf) for leaf in given):
                self.follow(made)
            elif given and func is not torch.ops.aten.lift_fresh.default:
                self._made |= {storage_of(leaf) for leaf in made}
                self._held += made
        return out


def storage_of(tensor: Tensor) -> int:
    """A number for the memory that a tensor lies in; another for each tensor whose memory has no address."""
    if tensor.layout != torch.strided:
        return -id(tensor)
    return int(tensor.untyped_storage()._cdata)
