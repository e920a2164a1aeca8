"""Recorder: what a model does with tensors while it runs, the calls of its blocks as single events."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    TracebackType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from attractorlab.models.containers import Shape, flatten, paths
from attractorlab.models.unseen import Followed, storage_of

CONSTANT = -1
# These give their argument on, as far as values go.
SAME_VALUE = {"detach", "detach_", "data", "requires_grad_"}
# These give numbers to what is no longer recorded.
READING = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}
READING |= {"__bool__", "__float__", "__int__", "__index__", "__array__", "__dlpack__", "__contains__"}
LEAVING = {"numpy", "__array__", "__dlpack__", "tolist"}
# They choose a faster way, of other rounding, when no mode is watching; so they are recorded from outside, as one event each.
OPAQUE = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.MultiheadAttention,
)


class Ref(NamedTuple):
    """A tensor in a record: an output of an event, or, with the event CONSTANT, one that no event made.

    What an event wrote into gets a new Ref, numbered after its outputs.
    """

    event: int
    out: int


@dataclass(frozen=True, eq=False)
class Event:
    """One operation on tensors, or one call of a module.

    Args:
        act: The function or module.
        name: What it is called.
        call: The number of the call, for calls of the block; -1 otherwise.
        shape: How the leaves make up its arguments, ``(args, kwargs)``.
        leaves: Its arguments, flat; tensors stand as Refs.
        outputs: How many tensors it gave.
        labels: The path of each tensor that it gave.
        writes: Which leaves it wrote into.
        storages: The memory that it wrote into.
        after: The events that wrote into the memory of its arguments after these were made.
        grad: Whether gradients were recorded.
        autocast: The devices and dtypes of automatic casts.
        random: Whether it drew random numbers.
    """

    act: Callable[..., Any]
    name: str
    call: int
    shape: Shape
    leaves: tuple[Any, ...]
    outputs: int
    labels: tuple[str, ...]
    writes: tuple[int, ...]
    storages: frozenset[int]
    after: frozenset[int]
    grad: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    random: bool

    @property
    def refs(self) -> list[Ref]:
        """The tensors among its arguments."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Ref)]


class _Begun(NamedTuple):
    act: Callable[..., Any]
    name: str
    call: int
    shape: Shape
    leaves: list[Any]
    refs: tuple[Any, ...]
    versions: list[int]
    writer: bool
    after: frozenset[int]
    dice: tuple[bytes, ...]
    handled: BaseException | None


class Recorder(TorchFunctionMode):
    """Everything that happens to tensors while it is entered, in order.

    It keeps all tensors that it saw, so memory grows with the number of operations outside of the blocks.
    """

    def __init__(self, model: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.model, self.block = model, block
        self.owned = {id(leaf) for leaf in [*model.parameters(), *model.buffers()]}
        self.events: list[Event] = []
        self.constants: list[Tensor] = []
        self.calls: list[int] = []  # the events that are calls of the block
        self.dropped: dict[str, int] = {}  # operations that replay leaves out
        self.read_off = 0  # numbers that were read off tensors, as .item() does
        self.inside: list[str] = []  # where the block was called unseen
        self.numbers: set[int] = set()  # the whole numbers among them
        self._values: dict[Ref, Tensor] = {}
        self._copies: dict[Ref, Tensor] = {}  # values as they were before somebody wrote into them
        self._current: dict[int, Ref] = {}
        self._held: list[Tensor] = []  # an id is unique as long as the tensor lives
        self._sharing: dict[int, list[Ref]] = {}
        self._wrote: dict[int, int] = {}
        self._followed = Followed()
        self._left: list[str] = []  # how values that rest on the state went to other libraries
        self._born: list[int] = []  # how many of them had gone when a constant was first seen
        self._used: dict[Ref, tuple[int, int]] = {}  # between which calls a constant was used first and last
        self._open: list[_Begun | None] = []
        self._pushed = False

    def value(self, ref: Ref) -> Tensor:
        """The tensor that `ref` stands for, as it was then."""
        return self._copies[ref] if ref in self._copies else self._values[ref]

    def storage(self, ref: Ref) -> int:
        """Which memory the tensor lies in."""
        return storage_of(self._values[ref])

    def ref(self, tensor: Tensor) -> Ref:
        """The Ref of a tensor; a new constant for one that no event made."""
        if id(tensor) not in self._current:
            self._note(tensor, Ref(CONSTANT, len(self.constants)))
            self.constants.append(tensor)
            self._born.append(len(self._left))
        return self._current[id(tensor)]

    def unseen(self, ref: Ref) -> str | None:
        """How a constant may have come from the state with no operation seen; None if it did not."""
        if ref.event != CONSTANT:
            return None
        if self._followed.rests(self.constants[ref.out]):
            return "a transform such as `torch.vmap`"
        if self._followed.knows(self.constants[ref.out]):
            return None
        first, last = self._used.get(ref, (0, 0))
        return f"`{self._left[self._born[ref.out] - 1]}`" if self._born[ref.out] and first == last else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the block and this mode, for as long as the context lasts."""
        with ExitStack() as stack:  # which undoes everything, also where undoing one thing fails
            for module in [self.block, *(one for one in self.model.modules() if isinstance(one, OPAQUE) and one is not self.block)]:
                # First before and last after: arguments and outputs are then as the caller of the module sees them.
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True).remove)
            stack.enter_context(self._followed)
            stack.enter_context(self)
            yield

    def __enter__(self) -> "Recorder":
        super().__enter__()
        self._pushed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._suspend()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for, and note it down."""
        kwargs = kwargs or {}
        if self._open or _transformed():
            return func(*args, **kwargs)
        begun = self._begin(func, name_of(func), -1, args, kwargs)
        out = func(*args, **kwargs)
        self._end(begun, out)
        return out

    def _suspend(self) -> None:
        if self._pushed and _get_current_function_mode() is self:
            super().__exit__(None, None, None)
            self._pushed = False

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._open.append(None)
        self._suspend()
        if len(self._open) > 1 or _transformed():
            if module is self.block:
                around = self._open[0]
                self.inside.append("a transform such as `torch.vmap`" if around is None else f"a call of `{around.name}`")
            return
        begun = self._begin(module, type(module).__name__, len(self.calls) if module is self.block else -1, args, kwargs)
        # What a module writes into is known when it is too late.
        for leaf, ref in zip(begun.leaves, begun.refs, strict=True):
            if isinstance(leaf, Tensor) and ref not in self._copies:
                self._copies[ref] = copied(leaf)
        self._open[0] = begun

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        begun = self._open[-1]
        if begun is not None and sys.exception() is begun.handled:  # else it was left by an exception
            if begun.call >= 0:
                self.calls.append(len(self.events))
            self._end(begun, out)
        self._open.pop()
        if not self._open and not self._pushed:
            self.__enter__()

    def _begin(self, act: Callable[..., Any], name: str, call: int, args: Any, kwargs: Any) -> _Begun:
        leaves, shape = flatten((tuple(args), dict(kwargs)))
        writer = call < 0 and _writes(name, kwargs)
        refs: list[Any] = []
        after: set[int] = set()
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                refs.append(leaf)
                continue
            ref, where = self.ref(leaf), storage_of(leaf)
            if ref.event == CONSTANT:
                self._used[ref] = self._used.get(ref, (len(self.calls), 0))[0], len(self.calls)
            refs.append(ref)
            if self._wrote.get(where, CONSTANT) > ref.event:  # a view: its memory changed after it was made
                after.add(self._wrote[where])
            if writer:
                for other in self._sharing.get(where, ()):
                    if other not in self._copies:
                        self._copies[other] = copied(self._values[other])
        versions = [_version(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        return _Begun(act, name, call, shape, leaves, tuple(refs), versions, writer, frozenset(after), _dice(leaves), sys.exception())

    def _end(self, begun: _Begun, out: Any) -> None:
        found, shape = flatten(out)
        given = [(leaf, path) for leaf, path in zip(found, paths(shape), strict=True) if isinstance(leaf, Tensor)]
        tensors = [(at, leaf) for at, leaf in enumerate(begun.leaves) if isinstance(leaf, Tensor)]
        writes = [
            at
            for n, ((at, leaf), version) in enumerate(zip(tensors, begun.versions, strict=True))
            if (_version(leaf) != version if version >= 0 else begun.writer and n == 0)
        ]
        if begun.name in SAME_VALUE and len(given) == 1 and tensors:
            self.dropped[begun.name] = self.dropped.get(begun.name, 0) + 1
            if given[0][0] is not tensors[0][1]:
                self._note(given[0][0], begun.refs[tensors[0][0]])
            return
        new = [leaf for leaf, _ in given if not any(leaf is old for _, old in tensors)]
        if not writes and not new and begun.call < 0:
            if not given and begun.name in READING:
                self.read_off += 1
                if begun.name in LEAVING and any(self._followed.rests(leaf) for _, leaf in tensors):
                    self._left.append(begun.name)
                self.numbers |= {leaf for leaf in found if type(leaf) is int}
            return
        number = len(self.events)
        touched = frozenset(storage_of(begun.leaves[at]) for at in writes)
        self.events.append(
            Event(
                act=begun.act,
                name=begun.name,
                call=begun.call,
                shape=begun.shape,
                leaves=begun.refs,
                outputs=len(given),
                labels=tuple(path for _, path in given),
                writes=tuple(writes),
                storages=touched,
                after=begun.after,
                grad=torch.is_grad_enabled(),
                autocast=_autocast(),
                random=_dice(begun.leaves) != begun.dice,
            )
        )
        if begun.call >= 0 or (isinstance(begun.act, nn.Module) and any(self._followed.rests(leaf) for _, leaf in tensors)):
            self._followed.follow([*new, *(begun.leaves[at] for at in writes)])
        for where in touched:
            self._wrote[where] = number
        for out_number, (leaf, _) in enumerate(given):
            if any(leaf is old for _, old in tensors):  # what a module hands through stays what it was
                self._values[Ref(number, out_number)] = leaf
            else:
                self._note(leaf, Ref(number, out_number))
                if begun.call >= 0:
                    self._copies[Ref(number, out_number)] = copied(leaf)
        for n, at in enumerate(writes):
            self._note(begun.leaves[at], Ref(number, len(given) + n))

    def _note(self, tensor: Tensor, ref: Ref) -> None:
        self._current[id(tensor)] = ref
        self._held.append(tensor)
        if ref not in self._values:
            self._values[ref] = tensor
            self._sharing.setdefault(storage_of(tensor), []).append(ref)


def copied(tensor: Tensor) -> Tensor:
    """A copy with the same numbers, laid out in memory as they were, on which sums depend; and with no past, also of a tensor of inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_contiguous():
            return tensor.clone()
        # Along axes that were spread out there is one number, however long they are.
        whole = tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
        dense = sorted(zip(whole.stride(), whole.shape, strict=True))
        if any(step < inner * n for (inner, n), (step, m) in pairwise(dense) if m > 1):  # windows that overlap
            return tensor.clone()
        offset = tensor.storage_offset() % 64  # sums also depend on where in a line of the cache they begin
        length = offset + 1 + sum(step * (n - 1) for step, n in zip(whole.stride(), whole.shape, strict=True))
        base = torch.empty(length, dtype=whole.dtype, device=whole.device)
        return base.as_strided(whole.shape, whole.stride(), offset).copy_(whole).expand(tensor.shape)


def name_of(func: Callable[..., Any]) -> str:
    """What a function is called; for the getter of a property, what the property is called."""
    if isinstance(func, MethodWrapperType) and isinstance(func.__self__, GetSetDescriptorType):
        return func.__self__.__name__
    named = (FunctionType, BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, MethodWrapperType)
    return func.__name__ if isinstance(func, named) else str(func)


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    plain = name.endswith("_") and not name.endswith("__")
    return (
        plain or name == "__setitem__" or "out" in kwargs or (name.startswith("__i") and name not in ("__invert__", "__int__", "__index__"))
    )


def _transformed() -> bool:
    """Whether tensors are stand-ins, as under vmap: they cannot be kept."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _dice(leaves: Sequence[Any]) -> tuple[bytes, ...]:
    """The states of the generators that torch draws from: its own, and those among the arguments."""
    states = [torch.get_rng_state(), *(leaf.get_state() for leaf in leaves if isinstance(leaf, torch.Generator))]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return tuple(state.numpy().tobytes() for state in states)


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    return tuple((device, torch.get_autocast_dtype(device)) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device))
