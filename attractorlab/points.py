"""The points inside a tick, by name: which there are, what passes through them, and what is put in its place."""

import difflib
import fnmatch
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attractorlab import trees
from attractorlab.types import Drive, State


@runtime_checkable
class Part(Protocol):
    """What is needed of a named update."""

    @property
    def name(self) -> str: ...
    @property
    def leaves(self) -> tuple[str, ...]: ...
    @property
    def rule(self) -> Callable[[State, Drive], State]: ...


@runtime_checkable
class Ticking(Protocol):
    """What is needed of a map: `LatentMap` is one."""

    @property
    def rule(self) -> Callable[[State, Drive], State]: ...
    @property
    def drive(self) -> Drive: ...
    @property
    def updates(self) -> Sequence[Part]: ...
    @property
    def model(self) -> nn.Module | None: ...
    def take(self, chosen: Sequence[int] | Tensor) -> "Ticking": ...


@dataclass(frozen=True)
class Point:
    """A place inside a tick that can be tapped and edited.

    Args:
        name: A leaf of the state, or the dotted name of a submodule.
        kind: "leaf" or "module".
        shape: Of what passes, for one row.
        dims: A name for each axis of `shape`: a leaf's are ..., site, width from the right; a module's axis has the name of the leaf axis of its
            size, or is numbered if none has that size, or several have.
        fires: The update in which each call of a tick happens, in order; "" where the map has no updates.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    fires: tuple[str, ...]


class Points(tuple[Point, ...]):
    """Points, shown as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        head = ("name", "kind", "shape of one row", "fires")
        lines = [
            (
                one.name,
                one.kind,
                " x ".join(f"{dim} {n}" for dim, n in zip(one.dims, one.shape, strict=True)) or "one number",
                _times(one.fires),
            )
            for one in self
        ]
        widths = [max(len(line[k]) for line in (head, *lines)) for k in range(4)]
        return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in (head, *lines))


@dataclass(frozen=True, eq=False, init=False)
class Tap:
    """What `trace` records inside each kept tick: every call of the points that the patterns name.

    A pattern is a name or a glob (``*`` also matches dots) of submodules of `model`, and of leaves of the state: those are recorded after each update
    that rewrites them. A module that runs several times in a tick has one entry for each of its calls. Submodules that a glob matches and that do not
    run in a tick are left out; a pattern of which nothing runs is an error.

    Args:
        model: The module that the map runs, `f.model` or a part of it; None to record leaves alone.
        patterns: One or more.

    Raises:
        ValueError: If there is no pattern.

    Example:
        >>> Tap(torch.nn.Sequential(torch.nn.Linear(2, 2)), "0", "z").patterns
        ('0', 'z')
    """

    model: nn.Module | None
    patterns: tuple[str, ...]

    def __init__(self, model: nn.Module | None, *patterns: str) -> None:
        if not patterns:
            raise ValueError(
                "`Tap` got no pattern. A tap records the points that its patterns name. Use Tap(model, '*') to record all of them."
            )
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "patterns", patterns)


@dataclass(frozen=True, eq=False)
class Call:
    """One passage through a point: at which tick, the how manieth of that tick, in which update.

    `first` is the value that the same edit met at its first call of the run. Between ticks `update` is "" and `call` 0.
    """

    point: str
    tick: int
    call: int
    update: str
    first: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Sight:
    """A point that is looked at: a module, or (None) a leaf, after the updates that rewrite it or after `all_updates`.

    What `see` returns goes on in the place of what it was given.
    """

    name: str
    module: nn.Module | None
    see: Callable[[Tensor, Call], Tensor]
    all_updates: bool = False


class Watch:
    """A context in which ticks can be run with their points seen. It adds hooks to the modules and takes away exactly those, whatever happens.

    Hooks act only inside `tick`, on the thread that opened the context, never inside another `see`, and not under `torch.func` transforms. Compiled
    modules run as written meanwhile, since a compiled one calls no hooks. Sights of one module see it in the order given. A module that gives no tensor
    is an error, unless `lenient`: then it is not seen.
    """

    def __init__(self, sights: Sequence[Sight], *, lenient: bool = False) -> None:
        self._sights, self._lenient = tuple(sights), lenient
        self._handles: list[tuple[nn.Module, RemovableHandle]] = []
        self._stack = ExitStack()
        self._live, self._tick, self._update, self._counts = False, 0, "", [0] * len(self._sights)
        self._thread = threading.get_ident()

    def __enter__(self) -> "Watch":
        try:
            if "torch._dynamo" in sys.modules:  # else nothing was compiled, and loading it takes seconds
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))
            for k, sight in enumerate(self._sights):
                if sight.module is not None:
                    self._handles.append((sight.module, sight.module.register_forward_hook(self._hook(k))))
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(error)

    def tick(self, f: Ticking, z: State, *, tick: int) -> State:
        """One tick of `f` from `z`, update by update where it has updates."""
        self._tick, self._update, self._counts, self._live = tick, "", [0] * len(self._sights), True
        try:
            if not f.updates:
                return self._leaves(f.rule(z, f.drive), tuple(z))
            for update in f.updates:
                self._update = update.name
                z = self._leaves(update.rule(z, f.drive), update.leaves)
            return z
        finally:
            self._live, self._update = False, ""

    def counts(self) -> list[int]:
        """How often each sight was met in the last tick."""
        return list(self._counts)

    def _leaves(self, z: State, rewritten: tuple[str, ...]) -> State:
        for k, sight in enumerate(self._sights):
            if sight.module is None and (sight.all_updates or sight.name in rewritten):
                seen = self._visit(k, z[sight.name])
                if seen is not z[sight.name]:
                    z = {**z, sight.name: seen}
        return z

    def _hook(self, k: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, arguments: Any, out: Any) -> Any:
            if not self._live or threading.get_ident() != self._thread or torch._C._functorch.peek_interpreter_stack() is not None:
                return None
            value = _tensor_of(out)
            if value is None:
                if self._lenient:
                    return None
                raise ValueError(
                    f"{self._sights[k].name} gives a {type(out).__name__}. A point that is recorded or edited gives a tensor, or a tuple or list with one in it. "
                    "Name a submodule of it: `f.names(z)` lists those that do."
                )
            seen = self._visit(k, value)
            return None if seen is value else _put(out, seen)

        return hook

    def _visit(self, k: int, value: Tensor) -> Tensor:
        sight, call = self._sights[k], self._counts[k]
        self._counts[k] += 1
        self._live = False
        try:
            return sight.see(value, Call(sight.name, self._tick, call, self._update))
        finally:
            self._live = True

    def _close(self, error: BaseException | None) -> None:
        failed: list[BaseException] = []
        try:
            for module, handle in reversed(self._handles):
                try:
                    handle.remove()
                except BaseException as one:  # collected, and raised or noted below
                    failed.append(one)
                    for hooks in (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called):
                        hooks.pop(handle.id, None)
            self._handles.clear()
        finally:
            self._stack.close()
        if failed and error is not None:
            error.add_note(
                f"Besides, {len(failed)} hooks could not be removed in the usual way ({failed[0]!r}). They are gone all the same."
            )
        elif failed:
            raise BaseExceptionGroup("hooks could not be removed in the usual way; they are gone all the same", failed)


COUNTS = (2, 3)  # rows of the ticks that a survey runs


@dataclass(frozen=True)
class Passage:
    """What passes a point in one tick: the update of each call, the shape, rows left out, and a dtype that holds those of all calls."""

    calls: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def names(f: Ticking, z: State) -> Points:
    """Every point of a tick of `f` that gives a tensor with a row for each row of the state, found by running it on two and on three copies of the first row of `z`.

    A module that returns a tuple or list is known by its first tensor. Modules that do not run in a tick are no points of it.
    """
    modules = [] if f.model is None else [(name, module) for name, module in f.model.named_modules() if name]
    found = survey(f, z, [*((name, None) for name in z), *modules], strict=False)
    axes: dict[int, set[str]] = {}
    for leaf in z.values():
        for name, n in zip(_leaf_dims(leaf), leaf.shape[1:], strict=True):
            axes.setdefault(n, set()).add(name)
    listed = []
    for name, one in found.items():
        named = [next(iter(axes[n])) if len(axes.get(n, ())) == 1 else f"axis{k}" for k, n in enumerate(one.shape)]
        dims = _leaf_dims(z[name]) if name in z else tuple(dim if named.count(dim) == 1 else f"axis{k}" for k, dim in enumerate(named))
        listed.append(Point(name, "leaf" if name in z else "module", one.shape, dims, one.calls))
    return Points(listed)


def find(patterns: Sequence[str], model: nn.Module | None, z: State, *, caller: str) -> dict[str, nn.Module | None]:
    """The points that the patterns name: submodules of `model`, and leaves of `z` (None).

    Raises:
        ValueError: If a pattern names nothing, with the names next to it.
    """
    modules = {} if model is None else {name: one for name, one in model.named_modules(remove_duplicate=False) if name}
    for both in sorted(set(modules) & set(z)):
        if any(fnmatch.fnmatchcase(both, pattern) for pattern in patterns):
            raise ValueError(
                f"`{caller}` got {', '.join(map(repr, patterns))}, and {both!r} is both a leaf of the state and a submodule. A name means one point. "
                "Rename one of them, or tap a part of the model: `Tap(model.part, ...)`."
            )
    there: dict[str, nn.Module | None] = {**dict.fromkeys(z), **modules}
    found: dict[str, nn.Module | None] = {}
    for pattern in patterns:
        matched = [name for name in there if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, there, n=3, cutoff=0.5) or list(there)[:6]
            raise ValueError(
                f"`{caller}` got {pattern!r}, which names no point{' (there is no model)' if model is None else ''}. A point is a leaf of the state or a "
                f"submodule of the model, dots included: {', '.join(near)}. See all of them with `f.names(z)`."
            )
        for name in matched:
            module = there[name]
            if module is None or not any(module is other for other in found.values()):  # a module of two names is recorded once
                found.setdefault(name, module)
    return found


@torch.no_grad()
def survey(
    f: Ticking, z: State, points: Sequence[tuple[str, nn.Module | None]], *, strict: bool = True, all_updates: bool = False
) -> dict[str, Passage]:
    """What passes each point in one tick from the first row of `z`; points that do not fire are left out. Two ticks are run, of 5 rows in all.

    Raises:
        ValueError: If `strict` and what passes is no tensor with a row for each row of the state, or changes shape from call to call.
    """
    seen: dict[str, list[tuple[str, Tensor]]] = {}

    def see(value: Tensor, call: Call) -> Tensor:
        seen.setdefault(call.point, []).append((call.update, value))
        return value

    # Two rows and then three, so that no axis of another meaning is taken for the rows. They are one row repeated: no map mixes them.
    met = []
    with Watch([Sight(name, module, see, all_updates) for name, module in points], lenient=not strict) as watch:
        for n in COUNTS:
            rows = torch.zeros(n, dtype=torch.int64)
            watch.tick(f.take(rows), trees.take(z, rows), tick=0)
            met.append(seen)
            seen = {}
    passages = {}
    for name in (one for one, _ in points if one in met[0]):
        values = met[0][name]
        calls, shape = tuple(update for update, _ in values), tuple(values[0][1].shape[1:])
        wrong = [(n, {tuple(value.shape) for _, value in one.get(name, ())}) for n, one in zip(COUNTS, met, strict=True)]
        wrong = [(n, shapes) for n, shapes in wrong if shapes != {(n, *shape)}]
        if not wrong:
            passages[name] = Passage(calls, shape, functools.reduce(torch.promote_types, (value.dtype for _, value in values)))
        elif strict:
            raise ValueError(
                f"{name} gives {' and '.join(map(str, sorted(wrong[0][1])))} in a tick of {wrong[0][0]} rows. A point that is recorded or edited gives one shape, rows first. "
                "Name another point: `f.names(z)` lists those that do."
            )
    return passages


def nearest(word: str, words: Sequence[str]) -> str:
    """The words next to `word`, or the first few."""
    return ", ".join(repr(one) for one in difflib.get_close_matches(word, words, n=3, cutoff=0.3) or list(words)[:6])


def _tensor_of(out: Any) -> Tensor | None:
    """The tensor that stands for what a module returned."""
    if isinstance(out, Tensor):
        return out
    return next((one for one in out if isinstance(one, Tensor)), None) if isinstance(out, (tuple, list)) else None


def _put(out: Any, new: Tensor) -> Any:
    """What the module returned, with `new` in the place of its tensor."""
    if isinstance(out, Tensor):
        return new
    old = _tensor_of(out)
    items = [new if one is old else one for one in out]
    named = type(out) not in (tuple, list) and type(out).__module__ != "torch.return_types"
    return type(out)(*items) if named else type(out)(items)


def _leaf_dims(leaf: Tensor) -> tuple[str, ...]:
    """A name for each axis of one row of a leaf, as in [row site width]."""
    n = leaf.ndim - 1
    return (*[f"axis{k}" for k in range(n - 2)], *("site", "width")[max(0, 2 - n) :])


def _times(fires: tuple[str, ...]) -> str:
    if not any(fires):
        return "once" if len(fires) == 1 else f"{len(fires)} times"
    return ", ".join(fires) if len(fires) <= 8 else f"{len(fires)} times: {', '.join(fires[:3])}, ..., {fires[-1]}"
