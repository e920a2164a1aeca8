"""Arithmetic on states: named leaves, batch first, one result per row."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from attractorlab.types import State

HALF = (torch.float16, torch.bfloat16)


def rows(z: State) -> int:
    """How many rows `z` has.

    Raises:
        ValueError: If `z` is no mapping of names to batched tensors, the leaves disagree, or there are none.
    """
    if not isinstance(z, Mapping) or not all(isinstance(leaf, Tensor) and leaf.ndim > 1 for leaf in z.values()):
        raise ValueError(
            f"`rows` got {_kind(z)} for a state. A state maps names to tensors, each [row ...] of two axes or more. "
            'Pass, for example, {"z": h}, with h[:, None] if a row is one number; and of a record its `.states`.'
        )
    counts = {name: leaf.shape[0] for name, leaf in z.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"`rows` got leaves with {counts or 'no'} rows. All leaves of a state are batched over the same rows. "
            "Make the first axis of every leaf the row."
        )
    return next(iter(counts.values()))


def _kind(z: object) -> str:
    """What was given in place of a state, in a word or two."""
    if not isinstance(z, Mapping):
        return f"a {type(z).__name__}"
    odd = {name: leaf for name, leaf in z.items() if not isinstance(leaf, Tensor) or leaf.ndim < 2}
    name, leaf = next(iter(odd.items()))
    return f"the leaf {name!r} as a {type(leaf).__name__}" + (f" of shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else "")


def size(z: State) -> int:
    """How many numbers one row of `z` holds.

    Example:
        >>> size({"h": torch.zeros(3, 4, 5), "c": torch.zeros(3, 2)})
        22
    """
    return sum(leaf.shape[1:].numel() for leaf in z.values())


def dot(u: State, v: State) -> Float[Tensor, " row"]:
    """The inner product of `u` and `v`, row by row."""
    total = [(u[name].flatten(1) * v[name].flatten(1)).sum(1) for name in u]
    return torch.stack(total).sum(0)


def norm(z: State) -> Float[Tensor, " row"]:
    """The Euclidean norm of each row over all leaves together; that of numbers of half precision is one of single precision.

    Example:
        >>> norm({"a": torch.tensor([[3.0]]), "b": torch.tensor([[4.0]])})
        tensor([5.])
    """
    parts = [torch.linalg.vector_norm(single(leaf).flatten(1), dim=1) for leaf in z.values()]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def distance(u: State, v: State) -> Float[Tensor, " row"]:
    """The norm of u − v, row by row; that of numbers of half precision is taken in single precision.

    Example:
        >>> distance({"a": torch.tensor([[3.0]])}, {"a": torch.tensor([[1.0]])})
        tensor([2.])
    """
    return norm({name: single(u[name]) - single(v[name]) for name in u})


def single(values: Tensor) -> Tensor:
    """`values`, in single precision if they have half."""
    return values.float() if values.dtype in HALF else values


def add(u: State, v: State) -> State:
    """u + v."""
    return {name: u[name] + v[name] for name in u}


def sub(u: State, v: State) -> State:
    """u − v."""
    return {name: u[name] - v[name] for name in u}


def scale(z: State, by: float | Shaped[Tensor, " row"]) -> State:
    """`z` times a number, or each row times its own."""
    if isinstance(by, Tensor):
        return {name: leaf * by.to(leaf).reshape(-1, *[1] * (leaf.ndim - 1)) for name, leaf in z.items()}
    return {name: leaf * by for name, leaf in z.items()}


def where(mask: Bool[Tensor, " row"], u: State, v: State) -> State:
    """Row by row `u` where `mask` holds, else `v`."""
    return {name: torch.where(mask.reshape(-1, *[1] * (u[name].ndim - 1)), u[name], v[name]) for name in u}


def take(z: State, chosen: Shaped[Tensor, " chosen"] | slice) -> State:
    """The rows of `z` chosen by an index tensor, a mask or a slice."""
    return {name: leaf[chosen] for name, leaf in z.items()}


def cat(parts: Sequence[State]) -> State:
    """States one below the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def to(z: State, kind: torch.dtype | torch.device | str) -> State:
    """`z` in another dtype or on another device."""
    return {name: leaf.to(kind) for name, leaf in z.items()}


def finite(z: State) -> Bool[Tensor, " row"]:
    """Which rows hold neither NaN nor infinity."""
    return torch.stack([leaf.flatten(1).isfinite().all(1) for leaf in z.values()]).all(0)


def flatten(z: State) -> Float[Tensor, "row dim"]:
    """The leaves of each row side by side, in the order of the mapping."""
    return torch.cat([leaf.flatten(1) for leaf in z.values()], dim=1)


def unflatten(flat: Float[Tensor, "row dim"], like: State) -> State:
    """The state whose `flatten` is `flat`, with the leaf shapes of `like`.

    Example:
        >>> z = {"a": torch.rand(2, 3), "b": torch.rand(2, 4, 5)}
        >>> unflatten(flatten(z), z)["b"].equal(z["b"])
        True
    """
    leaves: dict[str, Tensor] = {}
    at = 0
    for name, leaf in like.items():
        width = leaf.shape[1:].numel()
        leaves[name] = flat[:, at : at + width].reshape(-1, *leaf.shape[1:])
        at += width
    return leaves


def normal_like(z: State, *, generator: torch.Generator) -> State:
    """Independent standard normal numbers in the shape of `z`."""
    return {
        name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device=generator.device).to(leaf.device)
        for name, leaf in z.items()
    }
