"""Functions that torch compiles, where asked for: what lies between their matrix products is fused."""

import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def compiled(function: Callable[P, T], device: torch.device, caller: str) -> Callable[P, T]:
    """`function`, to be compiled when it is first called, and again for other shapes.

    Raises:
        ValueError: If it is to run on a CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"`{caller}` got engine='compiled' and found no {compiler}. On the CPU, compiled code needs a C++ compiler. "
            "Install g++, name another one in the environment variable CXX, or use engine=eager."
        )
    return torch.compile(function, dynamic=False)
