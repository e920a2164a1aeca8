"""Program: recorded events as a function of the state and the drive, for any number of rows."""

import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attractorlab import trees
from attractorlab.models.base import versions, weights_hash
from attractorlab.models.containers import Shape, flatten, rebuild
from attractorlab.models.recording import CONSTANT, Recorder, Ref, copied
from attractorlab.models.rolling import alike, same
from attractorlab.models.sightings import numbered
from attractorlab.types import Drive, Origin, State


@dataclass(frozen=True)
class Entry:
    """A leaf of the state."""

    name: str


@dataclass(frozen=True)
class Driving:
    """A leaf of the drive."""

    name: str


@dataclass(frozen=True)
class Local:
    """An output of an earlier step of the program."""

    step: int
    out: int


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter or buffer, looked up at each run."""

    module: nn.Module
    name: str


@dataclass(frozen=True, eq=False)
class Table:
    """A tensor that is the same for all rows."""

    value: Tensor


@dataclass(frozen=True)
class Rows:
    """A multiple of the number of rows."""

    times: int


@dataclass(frozen=True, eq=False)
class Step:
    """One event of a program. What stands at `apart` is copied before it is written into, as nobody sees it from elsewhere."""

    act: Callable[..., Any]
    shape: Shape
    leaves: tuple[Any, ...]
    outputs: int
    writes: tuple[int, ...]
    apart: tuple[int, ...]
    autocast: tuple[tuple[str, torch.dtype], ...]


@dataclass(frozen=True, eq=False)
class Program:
    """Steps, and where their results are.

    Args:
        steps: In order.
        results: Name of each result, and where it is.
        touched: What is written into, and seen from elsewhere: it is copied at once.
        shared: Results that may lie in the memory of the state: they are copied at last.
    """

    steps: tuple[Step, ...]
    results: Mapping[str, Any]
    touched: frozenset[Entry | Driving]
    shared: frozenset[str]

    def __repr__(self) -> str:
        return f"<{len(self.steps)} steps to {', '.join(self.results)}>"

    def __call__(self, z: State, drive: Drive, grads: Sequence[bool] | None = None) -> dict[str, Tensor]:
        """The results from a state; `grads` says for each step whether gradients are recorded, where it is not as outside."""
        given: dict[Any, Tensor] = {Entry(name): leaf for name, leaf in z.items()} | {Driving(name): leaf for name, leaf in drive.items()}
        for source in self.touched:
            given[source] = given[source].clone()
        with eagerly(), transformable():
            for n, step in enumerate(self.steps):
                leaves = [_resolve(leaf, given, z) for leaf in step.leaves]
                for at in step.apart:
                    leaves[at] = leaves[at].clone()
                args, kwargs = rebuild(step.shape, leaves)
                with ExitStack() as stack:
                    for device, dtype in step.autocast:
                        stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
                    if grads is not None:
                        stack.enter_context(torch.set_grad_enabled(grads[n]))
                    out = step.act(*args, **kwargs)
                tensors = [leaf for leaf in flatten(out)[0] if isinstance(leaf, Tensor)]
                given |= {Local(n, k): tensor for k, tensor in enumerate(tensors)}
                given |= {Local(n, step.outputs + k): leaves[at] for k, at in enumerate(step.writes)}
            found = {name: _resolve(source, given, z) for name, source in self.results.items()}
        return {name: leaf.clone() if name in self.shared else leaf for name, leaf in found.items()}


def _resolve(leaf: Any, given: Mapping[Any, Tensor], z: State) -> Any:
    if isinstance(leaf, Entry | Driving | Local):
        return given[leaf]
    if isinstance(leaf, Rows):
        return leaf.times * trees.rows(z)
    if isinstance(leaf, Weight):
        return getattr(leaf.module, leaf.name)
    return leaf.value if isinstance(leaf, Table) else leaf


@contextmanager
def eagerly() -> Iterator[None]:
    """Compiled functions run as they were written: what is compiled calls no hooks, and knows no forward mode."""
    if "torch._dynamo" not in sys.modules:  # loaded by the first use of torch.compile, and slow to load
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def transformable() -> Iterator[None]:
    """Under a transform, such as jvp, the library's own layers take the plain way: the faster ones have no forward mode."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        yield
        return
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(False)
        torch._C._set_cudnn_enabled(False)
        with torch.enable_grad():  # where gradients are recorded, a transformer's layer keeps to the plain way too
            yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])


def origin_of(model: nn.Module, like: Tensor) -> Origin:
    """Where a map of a foreign model comes from."""
    inner = dict(model.named_children()).get("_orig_mod", model)
    return Origin(
        model=type(inner).__name__,
        weights=weights_hash(inner),
        dtype=str(like.dtype).removeprefix("torch."),
        device=str(like.device),
        versions=versions(),
        argv=tuple(sys.argv),
    )


# What an operation says to arguments that do not fit it.
FAILURES = (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError, AssertionError)


class Unfit(Exception):
    """Why two runs with different numbers of rows are not one program."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two records of one model, with different numbers of rows."""

    one: Recorder
    two: Recorder
    rows: tuple[int, int]
    owners: Mapping[int, Weight]
    names: Mapping[Ref, str]
    drive: dict[str, Tensor]
    known: dict[Ref, Any]
    mates: dict[Any, Ref]  # what the second run had in the place of a leaf of the drive, or of a table

    def apart(self) -> "Pair":
        """The same, for a trial: what it finds to be the drive is not kept."""
        return replace(self, drive=dict(self.drive), known=dict(self.known), mates=dict(self.mates))

    def program(
        self,
        events: tuple[Sequence[int], Sequence[int]],
        entries: tuple[Mapping[Ref, str], Mapping[Ref, str]],
        results: Mapping[str, tuple[Ref, Ref]],
    ) -> Program:
        """The events, as they stand in both records, with `entries` as the state. Fills in the drive.

        Raises:
            Unfit: If the two disagree by more than the number of rows.
        """
        if len(events[0]) != len(events[1]):
            raise Unfit(f"{len(events[0])} operations became {len(events[1])}")
        places = tuple({number: n for n, number in enumerate(side)} for side in events)
        sides = zip(*([record.events[k] for k in side] for record, side in zip((self.one, self.two), events, strict=True)), strict=True)
        steps: list[Step] = []
        written: set[int] = set()
        for n, (a, b) in enumerate(sides):
            if not (a.act == b.act and a.shape == b.shape and a.writes == b.writes):
                raise Unfit(f"`{a.name}` became `{b.name}`, or has other arguments")
            leaves = tuple(self._leaf(x, y, a.name, places, entries) for x, y in zip(a.leaves, b.leaves, strict=True))
            apart: tuple[int, ...] = ()
            if a.writes:
                later = {ref for k in events[0][n + 1 :] for ref in self.one.events[k].refs} | {x for x, _ in results.values()}
                apart = tuple(at for at in a.writes if not any(self._alias(ref, a.leaves[at], events[0][n]) for ref in later))
            if any(isinstance(leaves[at], Weight | Table) for at in a.writes if at not in apart):
                raise Unfit(f"`{a.name}` writes into a weight or a constant")
            steps.append(Step(a.act, a.shape, leaves, a.outputs, a.writes, apart, a.autocast))
            written |= {self.one.storage(a.leaves[at]) for at in a.writes if at not in apart}
        found = {name: self._leaf(x, y, "the result", places, entries) for name, (x, y) in results.items()}
        own = {Entry(name): self.one.storage(ref) for ref, name in entries[0].items()}
        given = own | {source: self.one.storage(ref) for ref, source in self.known.items() if isinstance(source, Driving)}
        shared = frozenset(
            name for name, (x, _) in results.items() if self.one.storage(x) in own.values() or not isinstance(found[name], Local)
        )
        return Program(tuple(steps), found, frozenset(source for source, where in given.items() if where in written), shared)

    def _alias(self, ref: Ref, target: Ref, event: int) -> bool:
        """Whether a value from before the event lies in the memory that the event writes into."""
        return ref.event < event and self.one.storage(ref) == self.one.storage(target)

    def _leaf(self, x: Any, y: Any, what: str, places: Any, entries: Any) -> Any:
        if not (isinstance(x, Ref) and isinstance(y, Ref)):
            if same(x, y) and not isinstance(x, Ref):
                return x
            if type(x) is type(y) is int and x % self.rows[0] == 0 and x * self.rows[1] == y * self.rows[0]:
                if self.rows[0] == 1 < x and x in self.one.numbers:
                    raise Unfit(
                        f"`{what}` got {x}, which was read off a tensor, and with one row it cannot be told from {x} times the rows"
                    )
                return Rows(x // self.rows[0])
            raise Unfit(f"`{what}` got {_said(x)} and then {_said(y)}")
        sides = [
            Entry(names[ref]) if ref in names else Local(place[ref.event], ref.out) if ref.event in place else None
            for ref, names, place in zip((x, y), entries, places, strict=True)
        ]
        if sides[0] != sides[1]:
            raise Unfit(f"`{what}` got a value that is made otherwise")
        return self._fixed(x, y) if sides[0] is None else sides[0]

    def _fixed(self, x: Ref, y: Ref) -> Any:
        """What never changes: a weight, a leaf of the drive, or a table."""
        if x not in self.known:
            way = self.one.unseen(x)
            if way is not None:
                raise Unfit(f"a tensor of shape {list(self.one.value(x).shape)} was made from the state unseen, by {way}")
            a, b = self.one.value(x), self.two.value(y)
            if x.event == CONSTANT and id(self.one.constants[x.out]) in self.owners:
                self.known[x] = self.owners[id(self.one.constants[x.out])]
            elif a.shape == b.shape:
                self.known[x] = Table(copied(a))
            elif by_rows(a, b, self.rows):
                twin = next((s for ref, s in self.known.items() if isinstance(s, Driving) and self._alike(s, ref, x, y)), None)
                self.known[x] = twin or Driving(numbered(self.names.get(x) or self._maker(x), self.drive))
                self.drive.setdefault(self.known[x].name, copied(a))
            else:
                raise Unfit(f"a constant of shape {list(a.shape)} became {list(b.shape)} when {self.rows[0]} rows became {self.rows[1]}")
            self.mates.setdefault(self.known[x], y)
        return self.known[x]

    def _alike(self, source: Driving, ref: Ref, x: Ref, y: Ref) -> bool:
        return alike(self.one, ref, x) and alike(self.two, self.mates[source], y)

    def _maker(self, ref: Ref) -> str:
        return "constant" if ref.event == CONSTANT else self.one.events[ref.event].name


def _said(value: Any) -> str:
    return "a tensor" if isinstance(value, Ref) else repr(value)[:60]


def by_rows(a: Tensor, b: Tensor, rows: tuple[int, int]) -> bool:
    """Whether the first axis, and no other, follows the number of rows."""
    return a.ndim > 0 and b.ndim > 0 and (a.shape[0], b.shape[0]) == rows and a.shape[1:] == b.shape[1:]


def backward(
    record: Recorder, target: Ref, known: Container[Ref], moving: frozenset[int], barred: frozenset[int]
) -> tuple[int, ...] | None:
    """The events between the values in `known` and `target`, of those in `moving`; None if one of them is barred."""
    found: set[int] = set()
    open_ = [target]
    while open_:
        ref = open_.pop()
        if ref in known or ref.event not in moving or ref.event in found:
            continue
        if ref.event in barred:
            return None
        found.add(ref.event)
        event = record.events[ref.event]
        open_ += event.refs
        open_ += [Ref(number, -1) for number in event.after if number not in barred]
    return tuple(sorted(found))
