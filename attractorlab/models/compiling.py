"""Functions that torch compiles, where asked for: what lies between their matrix products is fused."""

import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

ENGINES = ("eager", "compiled")


def can_compile(device: torch.device) -> bool:
    """Whether torch finds what it compiles with: on a CPU, a C++ compiler, the one that the environment variable CXX names or g++."""
    return device.type != "cpu" or shutil.which(_compiler()) is not None


def compiled(function: Callable[P, T], device: torch.device, caller: str) -> Callable[P, T]:
    """`function`, to be compiled when it is first called, and again for other shapes.

    Raises:
        ValueError: If it is to run on a CPU and there is no C++ compiler.
    """
    if not can_compile(device):
        raise ValueError(
            f"`{caller}` got engine='compiled' and found no {_compiler()}. On the CPU, compiled code needs a C++ compiler. "
            "Install g++, name another one in the environment variable CXX, or use engine=eager."
        )
    return torch.compile(function, dynamic=False)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")
