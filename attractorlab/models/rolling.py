"""roll: the loop in a record of events, as the period that repeats and the values that cross from one period to the next."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from attractorlab.models.recording import CONSTANT, Event, Recorder, Ref


class Inside(NamedTuple):
    """A value made earlier in the same period: output `out` of its event number `offset`."""

    offset: int
    out: int


class Slot(NamedTuple):
    """A value that crosses: output `out` of event `offset`, made `age` periods ago."""

    offset: int
    out: int
    age: int


class Fixed(NamedTuple):
    """A value that is the same in every period."""

    ref: Ref


@dataclass(frozen=True, eq=False)
class Loop:
    """What repeats.

    Args:
        record: The events.
        order: The events that matter for the loop, in order; the loop ends with the last of them.
        length: Events a period.
        calls: Calls of the block a period.
        periods: How often the period was seen.
        leaves: The arguments of the period's events; tensors stand as Inside, Slot or Fixed.
        slots: What crosses from one period to the next: the state.
        first: The values of the slots before the first period.
    """

    record: Recorder
    order: tuple[int, ...]
    length: int
    calls: int
    periods: int
    leaves: tuple[tuple[Any, ...], ...]
    slots: tuple[Slot, ...]
    first: tuple[Ref, ...]

    @property
    def base(self) -> int:
        """Where in `order` the first period begins."""
        return len(self.order) - self.periods * self.length

    def events(self, period: int) -> list[Event]:
        """The events of a period, counted from 1."""
        begin = self.base + (period - 1) * self.length
        return [self.record.events[number] for number in self.order[begin : begin + self.length]]

    def state(self, cut: int) -> list[Ref]:
        """The values of the slots after `cut` periods."""
        found = []
        for slot, start in zip(self.slots, self.first, strict=True):
            period = cut - slot.age + 1  # the period that made it
            if period >= 1:
                found.append(Ref(self.order[self.base + (period - 1) * self.length + slot.offset], slot.out))
            elif cut == 0:
                found.append(start)
            else:  # made before the first period: it was a younger slot of the same value then
                younger = self.slots.index(slot._replace(age=slot.age - cut))
                found.append(self.first[younger])
        return found


def roll(record: Recorder) -> Loop | None:
    """The loop that covers most calls of the block, of the shortest period, or None if nothing repeats."""
    best: tuple[tuple[int, int], Loop] | None = None
    whole = len(record.calls)
    for n in range(whole, 1, -1):
        if best is not None and best[0][0] >= (n - 1 if best[1].calls == 1 else n + 1):
            break
        full = needed(record, [record.calls[n - 1]])
        calls = [at for at, number in enumerate(full) if record.events[number].call >= 0]
        for p in range(1, min(len(calls) - 1, whole // 2) + 1):
            # What the last call needs is all of the loop but for what its own turn does for a turn that never comes. So the loop is also sought up to
            # the turn before, from where it goes on by itself.
            for last in (-1, -p - 1):
                if len(calls) + last - p >= 0:
                    length = calls[last] - calls[last - p]
                    begin, _ = _walk(record, full[: calls[last] + 1], length)
                    like = last - 2 * p + 1  # a whole turn is like the one before, unless the run is too short to say
                    if begin > (calls[like] if len(calls) + like >= 0 else calls[last] - length):
                        continue
                    loop = _cut(record, full[: calls[last] + 1], begin, length, p)
                    if loop is not None:
                        covered = sum(record.events[number].call >= 0 for number in loop.order[loop.base :])
                        if best is None or (covered, -p) > best[0]:
                            best = (covered, -p), loop
    return None if best is None else best[1]


def mismatch(record: Recorder) -> str:
    """Why the last two calls are not two ticks of one loop."""
    order = needed(record, [record.calls[-1]])
    calls = [at for at, number in enumerate(order) if record.events[number].call >= 0]
    if len(calls) < 2:
        return "what the last call got comes from no earlier call"
    return _walk(record, order, len(order) - 1 - calls[-2])[1]


def needed(record: Recorder, targets: Iterable[int]) -> tuple[int, ...]:
    """The events that `targets` rest on, and these themselves, in order."""
    found: set[int] = set()
    open_ = list(targets)
    while open_:
        number = open_.pop()
        if number not in found:
            found.add(number)
            event = record.events[number]
            open_ += [ref.event for ref in event.refs if ref.event != CONSTANT]
            open_ += event.after
    return tuple(sorted(found))


def same(a: Any, b: Any) -> bool:
    """Whether two arguments that are no tensors are the same."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return bool(np.array_equal(a, b))
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return (a == b) is True


def alike(record: Recorder, a: Ref, b: Ref) -> bool:
    """Whether two values are one, or two constants of equal numbers, neither of them a parameter or buffer."""
    if a == b:
        return True
    if not a.event == b.event == CONSTANT or record.owned & {id(record.constants[a.out]), id(record.constants[b.out])}:
        return False  # two parameters are two, also while they are equal
    return identical(record.value(a), record.value(b))


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, bit for bit but for the kinds of NaN and zero."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def following(record: Recorder, roots: Iterable[int]) -> frozenset[int]:
    """The events `roots` and all that rest on them."""
    found = set(roots)
    for number, event in enumerate(record.events):
        if any(ref.event in found for ref in event.refs) or event.after & found:
            found.add(number)
    return frozenset(found)


def _position(order: Sequence[int], ref: Ref) -> int | None:
    at = _bisect(order, ref.event)
    return at if at < len(order) and order[at] == ref.event else None


def _bisect(order: Sequence[int], number: int) -> int:
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if order[middle] < number else (low, middle)
    return low


def _walk(record: Recorder, order: Sequence[int], length: int) -> tuple[int, str]:
    """From where on each event is like the one `length` later, and why not before."""
    begin = len(order) - length
    least = 0
    for at in range(len(order) - 1 - length, -1, -1):
        later, earlier = record.events[order[at + length]], record.events[order[at]]
        need = _unify(record, order, later, earlier, length)
        if isinstance(need, str):
            return begin, need
        least = max(least, need)
        if at < least:
            return begin, f"the arguments of `{later.name}` come from elsewhere"
        begin = at
        if at == least:
            break
    return begin, "there is nothing before"


def _unify(record: Recorder, order: Sequence[int], later: Event, earlier: Event, length: int) -> int | str:
    """Where the loop can begin at the earliest if `later` is `earlier` one period on; a text if it is not."""
    if not (later.act == earlier.act and later.shape == earlier.shape and later.writes == earlier.writes):
        return f"`{later.name}`{_of(later)} stands where `{earlier.name}`{_of(earlier)} stood before, or has other arguments"
    need = 0
    for a, b in zip(later.leaves, earlier.leaves, strict=True):
        if isinstance(a, Ref) and isinstance(b, Ref):
            at = _position(order, a)
            if alike(record, a, b):
                continue
            if at is None:
                return f"`{later.name}`{_of(later)} got another constant than{_of(earlier) or ' before'}"
            if a.out != b.out or _position(order, b) != at - length:
                need = max(need, at - length + 1)  # true of a first period alone: what it got was made before the loop
        elif not same(a, b):
            return f"`{later.name}`{_of(later)} got {_short(a)} where it got {_short(b)}{_of(earlier) or ' before'}"
    return need


def _of(event: Event) -> str:
    return f" of call {event.call}" if event.call >= 0 else ""


def _short(value: Any) -> str:
    return "a tensor" if isinstance(value, Ref | Tensor) else repr(value)[:60]


def _cut(record: Recorder, order: tuple[int, ...], begin: int, length: int, calls: int) -> Loop | None:
    """The loop, cut where the fewest values cross; among equals as late as possible, which is where the next tick begins."""
    least, number = len(order), order[-1] + 1
    passed = 0
    while number < len(record.events) and passed < 2:  # the loop goes on as long as what it does next is found
        event = record.events[number]
        pattern = record.events[order[len(order) - length]]
        if event.act == pattern.act and _follows(record, (*order, number), event, pattern, length, begin):
            order, passed = (*order, number), 0
        elif event.call >= 0:
            passed += 1  # a call of the block for something else
        number += 1
    best: Loop | None = None
    ends = [*range(max(least, len(order) - length + 1, begin + 2 * length), len(order) + 1)]
    for end in [*ends, least] if least < len(order) else ends:
        if best is not None and end < len(best.order):
            continue  # what comes after belongs to the loop
        for periods in range((end - begin) // length, 1, -1):
            loop = _build(record, order[:end], length, periods, calls)
            if loop is not None:
                if best is None or len(loop.slots) <= len(best.slots):
                    best = loop
                break
    return best


def _follows(record: Recorder, order: Sequence[int], event: Event, pattern: Event, length: int, begin: int) -> bool:
    need = _unify(record, order, event, pattern, length)
    known = all(not isinstance(ref, Ref) or ref.event == CONSTANT or _position(order, ref) is not None for ref in event.leaves)
    return known and not isinstance(need, str) and need <= begin


def _build(record: Recorder, order: tuple[int, ...], length: int, periods: int, calls: int) -> Loop | None:
    base = len(order) - periods * length
    history: dict[tuple[int, int, int], Ref] = {}
    rows: list[tuple[Any, ...]] = []
    crossing: dict[Slot, tuple[bool, int, int]] = {}
    for offset in range(length):
        events = [record.events[order[base + k * length + offset]] for k in range(periods)]
        row: list[Any] = []
        for i, leaf in enumerate(events[-1].leaves):
            kind = _kind(record, order, [event.leaves[i] for event in events], length, base, history) if isinstance(leaf, Ref) else leaf
            if kind is None and leaf is not None:
                return None
            if isinstance(kind, Slot):  # first what the block itself is given, in the order of its arguments
                place = (events[-1].call < 0, offset, i)
                crossing[kind] = min(place, crossing.get(kind, place))
            row.append(kind)
        rows.append(tuple(row))
    slots = [
        Slot(o, out, age)
        for o, out in dict.fromkeys(s[:2] for s in sorted(crossing, key=crossing.__getitem__))
        for age in range(1, 1 + max(s.age for s in crossing if s[:2] == (o, out)))
    ]
    first = [history.get((slot.offset, slot.out, 1 - slot.age)) for slot in slots]
    if not slots or None in first:
        return None
    return Loop(record, order, length, calls, periods, tuple(rows), tuple(slots), tuple(ref for ref in first if ref is not None))


def _kind(
    record: Recorder, order: Sequence[int], column: list[Ref], length: int, base: int, history: dict[tuple[int, int, int], Ref]
) -> Inside | Slot | Fixed | None:
    """What one argument is, from its values in all periods; None if it follows no rule."""
    periods, last = len(column), column[-1]
    if all(alike(record, last, ref) for ref in column):
        return Fixed(last)
    at = _position(order, last)
    if at is None or at < base:
        return None
    made, offset = (at - base) // length + 1, (at - base) % length
    age = periods - made
    for period, ref in enumerate(column, 1):
        if period - age >= 1:
            if ref != Ref(order[base + (period - age - 1) * length + offset], last.out):
                return None
        elif history.setdefault((offset, last.out, period - age), ref) != ref:
            return None
    return Slot(offset, last.out, age) if age else Inside(offset, last.out)
