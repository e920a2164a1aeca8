"""What following states needs: how rows are cut into chunks, and how close to rest rounding lets them come."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab import trees
from attractorlab.types import State

# Numbers of a state that are worked on at a time. On a CPU a chunk and its inner activations should stay in cache:
# 64 rows of a 4,608-number state run twice as fast per row as 768 rows.
CPU_CHUNK, DEVICE_CHUNK = 2**18, 2**26
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-7, torch.float16: 1e-3, torch.bfloat16: 3e-3}
"""The relative residual that rounding alone leaves, by dtype."""
DIVERGED = 1e8  # times the norm of the start


def chunks(z: State) -> Iterator[Int[Tensor, " chunk"]]:
    """Row numbers of `z`, as many at a time as its device works on best."""
    n = trees.rows(z)
    yield from torch.arange(n).tensor_split(max(1, -(-n // rows_at_once(z))))


def rows_at_once(z: State) -> int:
    """How many rows like those of `z` its device works on best."""
    device = next(iter(z.values())).device
    return max(8, (CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK) // trees.size(z) // 8 * 8)


def check_tol(tol: float, dtype: torch.dtype, caller: str, *, named: str = "tol") -> None:
    """Refuse a tolerance that rounding in `dtype` cannot reach, or that no state could miss.

    Raises:
        ValueError: If `tol` is below the floor of the dtype, or not below 1.
    """
    if dtype not in FLOOR:
        raise ValueError(f"`{caller}` got states in {str(dtype).removeprefix('torch.')}. Rest is judged between floating-point numbers. Cast the state: `trees.to(z, torch.float64)`.")
    floor = FLOOR[dtype]
    if tol >= 1:
        raise ValueError(f"`{caller}` got {named}={tol}. A tick that moves the state by its own length is not at rest. Use a {named} below 1, such as 1e-4.")
    if not tol >= floor:
        raise ValueError(
            f"`{caller}` got {named}={tol} for states in {str(dtype).removeprefix('torch.')}. Rounding alone leaves a relative residual of about {floor:g}. "
            f"Use {named}={floor:g} or more, or cast model and state to float64."
        )
