"""What was seen of a model, in words: the calls of its block one by one, and what happens between them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from attractorlab.models.containers import paths
from attractorlab.models.recording import CONSTANT, Event, Recorder, Ref
from attractorlab.models.rolling import Inside, Loop, Slot, alike

SHOWN = 12  # calls in a table; of a longer one the first and the last are shown


@dataclass(frozen=True, eq=False)
class Sighting:
    """One recorded run: which block was watched, and what it was called with."""

    block: nn.Module
    name: str
    record: Recorder
    inputs: Mapping[Ref, str]

    def error(self, fact: str, rule: str, remedy: str) -> ValueError:
        """The error that lists, call by call, what was seen."""
        return ValueError(f"`hook` {fact}. {rule}. {remedy}.\nThe calls of {self.name!r} that were seen:\n{self.table()}")

    def table(self) -> str:
        """The calls of the block, one a line."""
        n = len(self.record.calls)
        if n == 0:
            return "  none"
        chosen = list(range(n)) if n <= SHOWN else [*range(SHOWN - 3), *range(n - 2, n)]
        lines = [f"  call {k}: {self._line(k)}" for k in chosen]
        if n > SHOWN:
            lines.insert(SHOWN - 3, f"  ... {n - SHOWN + 1} more")
        return "\n".join(lines)

    def changing(self) -> list[str]:
        """The arguments that are not the same at the first and the last call."""
        first, last = (self.record.events[self.record.calls[k]] for k in (0, -1))
        pairs = zip(arguments(self.block, last), first.leaves, last.leaves, strict=False)
        return [name for name, a, b in pairs if isinstance(a, Ref) and isinstance(b, Ref) and not alike(self.record, a, b)]

    def _line(self, k: int) -> str:
        event = self.record.events[self.record.calls[k]]
        parts = [
            f"{name} {self._origin(leaf, k)}" if isinstance(leaf, Ref) else f"{name} = {repr(leaf)[:30]}"
            for name, leaf in zip(arguments(self.block, event), event.leaves, strict=True)
        ]
        return "; ".join(parts) or "no arguments"

    def _origin(self, ref: Ref, k: int) -> str:
        shape = list(self.record.value(ref).shape)
        earlier = [j for j in range(k) if ref in self.record.events[self.record.calls[j]].refs]
        if ref in self.inputs:
            return f"{shape} is the input {self.inputs[ref]!r}"
        if ref.event == CONSTANT:
            return f"{shape} is a constant" + (f", as at call {earlier[0]}" if earlier else "")
        made = self.record.events[ref.event]
        if made.call >= 0:
            return f"{shape} is the output of call {made.call}"
        if earlier:
            return f"{shape} is the same as at call {earlier[0]}"
        ops, calls = self._source(ref)
        return f"{shape} is made by {', '.join(ops[:4])} from " + (", ".join(f"call {c}" for c in calls[:4]) or "what was there before")

    def _source(self, ref: Ref) -> tuple[list[str], list[int]]:
        """The operations that made a value, the last first, and the calls whose outputs they took."""
        ops: list[str] = []
        calls: set[int] = set()
        open_, found = [ref.event], set[int]()
        while open_:
            number = open_.pop(0)
            if number == CONSTANT or number in found:
                continue
            found.add(number)
            event = self.record.events[number]
            if event.call >= 0:
                calls.add(event.call)
                continue
            ops.append(event.name)
            open_ += [*(one.event for one in event.refs), *event.after]
        return list(dict.fromkeys(ops)), sorted(calls)


def arguments(block: nn.Module, event: Event) -> list[str]:
    """What the block calls each leaf of its arguments, e.g. "z" or "carry.h"."""
    names = parameters_of(block)
    found = []
    for path in paths(event.shape):
        kind, _, rest = path.partition(".")
        first, dot, inside = rest.partition(".")
        if kind == "0":
            first = names[int(first)] if int(first) < len(names) else f"argument{first}"
        found.append(first + dot + inside)
    return found


def parameters_of(module: nn.Module) -> list[str]:
    """The names of a module's arguments, in the order of their positions."""
    inner = dict(module.named_children()).get("_orig_mod", module)  # inside what torch.compile wraps
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in inspect.signature(inner.forward).parameters.values() if one.kind in kinds]


def leaf_names(block: nn.Module, loop: Loop) -> list[str]:
    """Names for the leaves of the state: the argument of the block that each of them is, or that it is made into."""
    events = loop.events(loop.periods)
    calls = [(offset, arguments(block, event)) for offset, event in enumerate(events) if event.call >= 0]
    names: list[str] = []
    for slot in loop.slots:
        young = slot._replace(age=1)
        direct = [
            words[i] for offset, words in calls for i, leaf in enumerate(loop.leaves[offset]) if isinstance(leaf, Slot) and leaf == young
        ]
        reached: set[int] = set()
        led: list[str] = []
        for offset, row in enumerate(loop.leaves):
            hit = [
                i
                for i, leaf in enumerate(row)
                if (isinstance(leaf, Slot) and leaf == young) or (isinstance(leaf, Inside) and leaf.offset in reached)
            ]
            if hit and events[offset].call >= 0:
                led.append(arguments(block, events[offset])[hit[0]])
            elif hit:
                reached.add(offset)
        name = next(iter([*direct, *led]), "state") + ".before" * (slot.age - 1)
        names.append(numbered(name, names))
    return names


def numbered(name: str, taken: Sequence[str] | Mapping[str, object]) -> str:
    """`name`, or with a number behind it if it is taken."""
    return name if name not in taken else next(f"{name}.{n}" for n in range(2, len(taken) + 3) if f"{name}.{n}" not in taken)


def between(events: Sequence[Event], record: Recorder) -> str:
    """Which operations stand between the calls, and what is left out of them."""
    ops = list(dict.fromkeys(event.name for event in events if event.call < 0))
    sentences = [f"Between the calls: {', '.join(ops)}." if ops else "Nothing stands between the calls."]
    if record.dropped:
        sentences.append(
            "Left out, so that there is a derivative: " + ", ".join(f"{name} ({n})" for name, n in sorted(record.dropped.items())) + "."
        )
    if record.read_off:
        sentences.append(f"Numbers were read off tensors {record.read_off} times; what the model decided by them is not part of the map.")
    return " ".join(sentences)
