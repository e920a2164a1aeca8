"""Nested arguments taken apart into leaves and put together again: tuples, lists, dicts, slices and dataclasses."""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree


@dataclass(frozen=True)
class Shape:
    """How leaves are nested: the kind of container and what it holds. The kind of a leaf is None."""

    kind: type | None
    keys: tuple[Any, ...] = ()
    parts: tuple["Shape", ...] = ()


LEAF = Shape(None)


def flatten(tree: Any) -> tuple[list[Any], Shape]:
    """The leaves of `tree` in order, and how they are nested."""
    leaves: list[Any] = []
    return leaves, _walk(tree, leaves)


def rebuild(shape: Shape, leaves: Sequence[Any]) -> Any:
    """The tree of which `flatten` gave `shape`, with other leaves."""
    return _build(shape, iter(leaves))


def paths(shape: Shape, before: str = "") -> list[str]:
    """The dotted path of each leaf, e.g. "carry.h" or "0.1"; "" for a tree that is a leaf."""
    if shape.kind is None:
        return [before]
    return [
        path for key, part in zip(shape.keys, shape.parts, strict=True) for path in paths(part, f"{before}.{key}" if before else str(key))
    ]


def _walk(tree: Any, leaves: list[Any]) -> Shape:
    keys, children = _open(tree)
    if keys is None:
        leaves.append(tree)
        return LEAF
    return Shape(type(tree), keys, tuple(_walk(child, leaves) for child in children))


def _open(tree: Any) -> tuple[tuple[Any, ...] | None, Sequence[Any]]:
    """The keys and the children of a container; None for a leaf."""
    if isinstance(tree, tuple | list):
        named = vars(type(tree))["_fields"] if _is_named(type(tree)) else range(len(tree))
        return tuple(named), tree
    if type(tree) in (dict, OrderedDict):
        return tuple(tree), list(tree.values())
    if isinstance(tree, slice):
        return ("start", "stop", "step"), (tree.start, tree.stop, tree.step)
    if _is_record(type(tree)):
        names = tuple(one.name for one in dataclasses.fields(tree))
        return names, [getattr(tree, name) for name in names]
    if type(tree) in _pytree.SUPPORTED_NODES:
        children, context = _pytree.SUPPORTED_NODES[type(tree)].flatten_fn(tree)
        names = (
            tuple(map(str, context))
            if isinstance(context, list | tuple) and len(context) == len(children)
            else tuple(map(str, range(len(children))))
        )
        return tuple(_Key(name, k, context) for k, name in enumerate(names)), children
    return None, ()


def _is_record(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and kind not in _pytree.SUPPORTED_NODES


@dataclass(frozen=True)
class _Key:
    """A key of a container that was registered with torch, which is put together by torch."""

    name: str
    number: int
    context: Any = dataclasses.field(hash=False)

    def __str__(self) -> str:
        return self.name


def _is_named(kind: type) -> bool:
    return issubclass(kind, tuple) and "_fields" in vars(kind)


def _build(shape: Shape, leaves: Iterator[Any]) -> Any:
    kind = shape.kind
    if kind is None:
        return next(leaves)
    parts = [_build(part, leaves) for part in shape.parts]
    if _is_named(kind):
        return kind(*parts)
    if issubclass(kind, list):
        return parts
    if issubclass(kind, tuple):  # torch.Size takes numbers alone, and these may be tensors under a transform
        return tuple(parts)
    if kind in (dict, OrderedDict):
        return kind(zip(shape.keys, parts, strict=True))
    if kind is slice:
        return slice(*parts)
    if _is_record(kind) and issubclass(kind, dict):
        return kind(**dict(zip(shape.keys, parts, strict=True)))
    if _is_record(kind):
        made = object.__new__(kind)  # as it was, without running its __init__ again
        for name, part in zip(shape.keys, parts, strict=True):
            object.__setattr__(made, name, part)
        return made
    return _pytree.SUPPORTED_NODES[kind].unflatten_fn(parts, shape.keys[0].context)
