"""Ticks: one period of a recorded loop, or one call that a solver makes, ready to be replayed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attractorlab.models.recording import CONSTANT, Event, Recorder, Ref, copied
from attractorlab.models.replaying import FAILURES, Pair, Program, Unfit, by_rows
from attractorlab.models.rolling import Loop, alike, following, identical, mismatch, roll, same
from attractorlab.models.sightings import Sighting, arguments, leaf_names, numbered

# With one of these between the calls, what goes round is a solver's bookkeeping rather than a state.
SOLVERS = {
    "lstsq",
    "linalg_lstsq",
    "solve",
    "linalg_solve",
    "linalg_solve_ex",
    "pinverse",
    "linalg_pinv",
    "inverse",
    "linalg_inv",
    "cholesky_solve",
}
ROUNDINGS = 100  # by which a replayed call of a solver may differ from what was seen


@dataclass(frozen=True, eq=False)
class Side:
    """What one run saw of the ticks.

    Args:
        own: The events of each tick.
        replayed: Which tick stands for all of them.
        cuts: The state before each tick and after the last: one Ref a leaf. Where a solver stands between the calls, it is what each call got.
        after: The state after each tick.
        moving: The events that rest on the state.
    """

    record: Recorder
    own: tuple[tuple[int, ...], ...]
    replayed: int
    cuts: tuple[tuple[Ref, ...], ...]
    after: tuple[tuple[Ref, ...], ...]
    moving: frozenset[int]

    @property
    def events(self) -> tuple[int, ...]:
        """The events of the tick that stands for all of them."""
        return self.own[self.replayed]

    def known(self, refs: Sequence[Ref], names: Sequence[str]) -> dict[Ref, str]:
        """The names of the leaves, by their values."""
        return dict(zip(refs, names, strict=True))


@dataclass(frozen=True, eq=False)
class Ticks:
    """The ticks as both runs saw them.

    Args:
        names: The leaves of the state.
        calls: Calls of the block a tick.
        driven: Whether a solver makes the calls.
    """

    names: tuple[str, ...]
    calls: int
    sides: tuple[Side, Side]
    seen: Sighting
    driven: bool

    @property
    def seen_events(self) -> list[Event]:
        """The events of the tick that is replayed."""
        side = self.sides[0]
        return [side.record.events[number] for number in side.events]

    @property
    def argument_names(self) -> dict[Ref, str]:
        """What the block calls its arguments."""
        calls = [event for event in self.seen_events if event.call >= 0]
        return {
            ref: name
            for event in calls
            for name, ref in zip(arguments(self.seen.block, event), event.leaves, strict=True)
            if isinstance(ref, Ref)
        }

    def part(self) -> list[str]:
        """A sentence if some calls of the block do not belong to the loop."""
        side = self.sides[0]
        calls = [side.record.events[number].call for tick in side.own for number in tick if side.record.events[number].call >= 0]
        whole = len(side.record.calls)
        return (
            []
            if len(calls) == whole
            else [f"The loop is calls {calls[0]} to {calls[-1]}; {whole - len(calls)} of {whole} calls are no part of it."]
        )

    def program(self, pair: Pair) -> Program:
        """One tick.

        Raises:
            Unfit: If the two runs disagree by more than the number of rows, or the state is not batch first.
        """
        one, two = self.sides
        for name, a, b in zip(self.names, one.after[-1], two.after[-1], strict=True):
            x, y = one.record.value(a), two.record.value(b)
            if not by_rows(x, y, pair.rows):
                raise Unfit(f"the state {name!r} has shapes {list(x.shape)} and {list(y.shape)}")
            if x.is_complex():
                raise Unfit(
                    f"the state {name!r} is of {x.dtype}, and states are of real numbers: let the block pass `torch.view_as_real` of it"
                )
            if not x.is_floating_point():
                raise Unfit(f"the state {name!r} is of {x.dtype}, a counter or mask that goes round with it, and not of real numbers")
        entries = tuple(side.known(side.cuts[side.replayed], self.names) for side in self.sides)
        results = {name: (a, b) for name, a, b in zip(self.names, one.after[one.replayed], two.after[two.replayed], strict=True)}
        return pair.program((one.events, two.events), (entries[0], entries[1]), results)

    def states(self, pair: Pair, program: Program) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
        """The start and all states that were seen, each tick replayed and compared with what was seen; and a sentence if the start is another one.

        Raises:
            ValueError: If a replayed tick differs.
        """
        side = self.sides[0]
        values = [[copied(side.record.value(ref)) for ref in cut] for cut in side.cuts]
        after = [[side.record.value(ref) for ref in refs] for refs in side.after]
        odd = any(x.shape != y.shape or x.dtype != y.dtype for x, y in zip(values[0], after[0], strict=True))
        values[0] = [spread(x, y) for x, y in zip(values[0], after[0], strict=True)]
        begin, got = 0, dict[str, Tensor]()
        for k, (before, wanted) in enumerate(zip(values, after, strict=False)):
            events = [side.record.events[number] for number in side.own[k]]
            got = dict(zip(self.names, before, strict=True))
            fits = all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(before, wanted, strict=True))
            if fits:
                got = self._replay(k, program, got, pair.drive)
                # Between a solver's calls values may lie in memory as no iteration lays them, and sums then round otherwise.
                agree = _close if self.driven else identical
                fits = all(agree(got[name], y) for name, y in zip(self.names, wanted, strict=True))
            if not fits and odd and k == 0 and len(after) > 1:
                begin = 1
            elif not fits:
                raise self._differs(k, events, {name: (got[name], y) for name, y in zip(self.names, wanted, strict=True)})
        k = len(after) - 1
        if k and all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(values[k], after[k], strict=True)):
            again = self._replay(k, program, {name: x.clone() for name, x in zip(self.names, values[k], strict=True)}, pair.drive)
            if not all((_close if self.driven else identical)(again[name], y) for name, y in zip(self.names, after[k], strict=True)):
                raise self.seen.error(
                    f"replayed tick {k + 1} twice, and the second time it differs: the block counts its calls, or keeps something else",
                    "A tick is a function of the state and of what drives it, however often it was called before",
                    "Pass what changes through the block's arguments, or give the map by `from_function`",
                )
        start = dict(zip(self.names, values[begin], strict=True))
        remarks = ["The start is the state after the first tick: the one before is of another shape or dtype."] if begin else []
        return start, {name: torch.stack([value[i] for value in values[begin:]]) for i, name in enumerate(self.names)}, remarks

    def _replay(self, k: int, program: Program, z: Mapping[str, Tensor], drive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        side = self.sides[0]
        try:
            with torch.no_grad():
                return program(z, drive, [side.record.events[number].grad for number in side.own[k]])
        except FAILURES as error:
            raise self.seen.error(
                f"replayed tick {k + 1}, which ended in {type(error).__name__}: {str(error)[:200]}",
                "A tick takes the state and what drives it from the arguments of the block, and from nothing that the model keeps elsewhere",
                "Pass it all through the block's arguments, or give the map by `from_function`",
            ) from error

    def _differs(self, k: int, events: Sequence[Event], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> ValueError:
        random = next((event.name for event in events if event.random), None)
        if random is not None:
            return self.seen.error(
                f"saw `{random}` draw random numbers in the loop",
                "A map is deterministic: the same state gives the same tick",
                "Call `model.eval()` first, or turn the noise off",
            )
        grown = next(((name, a, b) for name, (a, b) in pairs.items() if a.shape != b.shape or a.dtype != b.dtype), None)
        if grown is not None:
            name, a, b = grown
            return self.seen.error(
                f"saw the state {name!r} go from {list(a.shape)}, {a.dtype}, to {list(b.shape)}, {b.dtype}, in tick {k + 1}",
                "A map gives back what it was given: leaves of the same shapes and dtypes",
                "Hook a block whose state does not grow, or give the map by `from_function`",
            )
        far = {name: float((a.detach() - b.detach()).abs().max()) for name, (a, b) in pairs.items()}
        return self.seen.error(
            f"replayed tick {k + 1}, and it differs from what the model did by {far}",
            "A tick is a function of the state and of what drives it; what a module keeps for itself, or does with other tools than torch, is not seen",
            "Pass the state through the block's arguments, or give the map by `from_function`",
        )


def rolled(seen: Sighting, twin: Sighting, names: Sequence[str] | None) -> Ticks:
    """The ticks of a model that goes round by itself.

    Raises:
        ValueError: If nothing repeats, or the two runs do not go round alike.
    """
    loops = [roll(one.record) for one in (seen, twin)]
    loop, other = loops
    changing = seen.changing()
    hint = f"hook(..., state={(changing or ['z'])[0]!r})"
    if loop is None:
        other_hands = f"Where a solver, or a place in a buffer, hands on the state, name it: `{hint}`. Else hook" if changing else "Hook"
        raise seen.error(
            f"found no loop: {mismatch(seen.record)}",
            "Every tick does the same with the same numbers, to the state and to what drives it",
            f"{other_hands} another block, leave out what changes from call to call, or hold it fixed, as the input of a sequence, in a map by `from_function`",
        )
    solver = next((event.name for event in loop.events(loop.periods) if event.name in SOLVERS), None)
    if solver is not None:
        raise seen.error(
            f"saw `{solver}` between the calls: a solver seems to call {seen.name!r}",
            "Where a solver drives the block, the state is named by the caller",
            f"Use `{hint}`",
        )
    if any(event.name == "grad" for event in loop.events(loop.periods)):
        raise seen.error(
            "saw a gradient taken between the calls",
            "What autograd does on the way is not replayed",
            "Give the map by `from_function`, with `torch.func.grad` in its rule",
        )
    if other is None or (other.length, other.slots) != (loop.length, loop.slots):
        raise seen.error(
            "found another loop when the model ran on another number of rows",
            "A map takes any number of rows, and its ticks are the same for all of them",
            "Pass inputs for which the model goes round alike, or give the map by `from_function`",
        )
    words = _named(leaf_names(seen.block, loop), names)
    return Ticks(words, loop.calls, (_side(loop), _side(other)), seen, False)


def called(
    seen: Sighting, twin: Sighting, state: str | int, names: Sequence[str] | None, *, output: str | int | None, results: Iterable[Ref]
) -> Ticks:
    """The ticks of a block that a solver calls: one call each.

    Raises:
        ValueError: If the block has no such argument, another of its arguments changes, or its output has no part like the state.
    """
    record = seen.record
    first = record.events[record.calls[0]]
    words = arguments(seen.block, first)
    tops = list(dict.fromkeys(word.split(".")[0] for word in words))
    if state not in tops and not (isinstance(state, int) and 0 <= state < len(tops)):
        raise seen.error(
            f"got state={state!r}",
            "The state is one of the block's arguments, by name or position",
            f"Use one of {', '.join(map(repr, tops))}",
        )
    chosen = tops[state] if isinstance(state, int) else state
    places = [i for i, word in enumerate(words) if word.split(".")[0] == chosen and isinstance(first.leaves[i], Ref)]
    for number in record.calls[1:]:
        event = record.events[number]
        changed = "arguments" if event.shape != first.shape else None
        for i, (a, b) in enumerate(zip(first.leaves, event.leaves, strict=False)):
            if changed is None and i not in places and not _constant(record, a, b):
                changed = words[i]
        if changed:
            raise seen.error(
                f"saw {changed!r} change between call 0 and call {event.call}",
                f"Where {chosen!r} is the state, all other arguments are the same at every call",
                f"Name another state, or hold {changed!r} at one value, as the input of a sequence, in a map by `from_function`",
            )
    if output is not None and len(places) > 1:
        raise seen.error(
            f"got output={output!r} for a state of {len(places)} tensors, {', '.join(words[i] for i in places)}",
            "An output is named where the state is one tensor; several are taken from the outputs in their order",
            "Leave `output` out",
        )
    outputs = _outputs_like(record, first, places)
    if outputs is not None and len(places) == 1:
        outputs = [_chosen(seen, outputs, [places[0]], output, results)]
    if not places or outputs is None:
        raise seen.error(
            f"saw {seen.name!r} give nothing of the shape of its argument {chosen!r}",
            "A tick gives back a state of the same leaves, alone or before everything else",
            "Name another state, or give the map by `from_function`",
        )
    sides = tuple(_call_side(one.record, places, outputs) for one in (seen, twin))
    return Ticks(_named([words[i] for i in places], names), 1, (sides[0], sides[1]), seen, True)


def _side(loop: Loop) -> Side:
    n = loop.length
    own = tuple(loop.order[at : at + n] for at in range(loop.base, len(loop.order), n))
    cuts = tuple(tuple(loop.state(cut)) for cut in range(loop.periods + 1))
    roots = {number for tick in own for number in tick if set(loop.record.events[number].refs) & set(cuts[0])}
    return Side(loop.record, own, loop.periods - 1, cuts, cuts[1:], following(loop.record, roots))


def _call_side(record: Recorder, places: Sequence[int], outputs: Sequence[int]) -> Side:
    calls = record.calls
    cuts = tuple(tuple(record.events[number].leaves[i] for i in places) for number in calls)
    after = tuple(tuple(Ref(number, k) for k in outputs) for number in calls)
    return Side(record, tuple((number,) for number in calls), 0, cuts, after, following(record, set(calls)))


def _outputs_like(record: Recorder, call: Event, places: Sequence[int]) -> list[int] | None:
    """Which of the call's outputs may be the next state: all that are like it, or, for several leaves, the first; None if they are not of its shapes."""
    number = record.calls[call.call]
    wanted = [record.value(call.leaves[i]) for i in places]
    given = [record.value(Ref(number, k)) for k in range(call.outputs)]
    if len(wanted) == 1:
        return [k for k, a in enumerate(given) if a.shape == wanted[0].shape and a.dtype == wanted[0].dtype] or None
    fits = len(given) >= len(wanted) and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(given, wanted, strict=False))
    return [*range(len(wanted))] if fits else None


def _chosen(seen: Sighting, like: Sequence[int], places: Sequence[int], output: str | int | None, results: Iterable[Ref]) -> int:
    """The one of some outputs that is the next state: the one that was named, or that later calls, or else the model's result, rest on."""
    record = seen.record
    labels = record.events[record.calls[0]].labels
    if output is not None:
        found = [k for k in like if str(output) in (labels[k], labels[k].split(".")[0])]
    else:
        found = list(like)
        for targets in ([record.events[number].leaves[i] for number in record.calls[1:] for i in places], [*results]):
            used = _used(record, targets)
            found = [k for k in like if any(Ref(number, k) in used for number in record.calls)] if len(found) != 1 else found
    if len(found) == 1:
        return found[0]
    listed = ", ".join(repr(labels[k]) for k in like)
    raise seen.error(
        f"saw {seen.name!r} give {len(like)} tensors like its state: {listed}"
        + (f", and got output={output!r}" if output is not None else ""),
        "A tick gives back one state, and it cannot be seen which of them it is",
        f"Name it: `hook(..., output={labels[like[0]]!r})`",
    )


def _used(record: Recorder, targets: Sequence[Ref]) -> set[Ref]:
    """All values that some values rest on, and these; of a call, what it gave and not what it took."""
    found: set[Ref] = set()
    open_ = list(targets)
    while open_:
        ref = open_.pop()
        if ref not in found:
            found.add(ref)
            if ref.event != CONSTANT and record.events[ref.event].call < 0:
                open_ += record.events[ref.event].refs
                open_ += [one for number in record.events[ref.event].after for one in record.events[number].refs]
    return found


def _constant(record: Recorder, a: object, b: object) -> bool:
    if isinstance(a, Ref) and isinstance(b, Ref):
        return alike(record, a, b) or identical(record.value(a), record.value(b))
    return not isinstance(a, Ref) and not isinstance(b, Ref) and same(a, b)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=ROUNDINGS * torch.finfo(b.dtype).eps * (1 + float(b.abs().max())), equal_nan=True)


def spread(start: Tensor, like: Tensor) -> Tensor:
    """A start in the shape of the states that follow, where it can be spread out to it."""
    fits = start.ndim <= like.ndim and all(a in (1, b) for a, b in zip(reversed(start.shape), reversed(like.shape), strict=False))
    return start.expand(like.shape).clone() if fits else start


def _named(found: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    unique: list[str] = []
    for name in found:
        unique.append(numbered(name, unique))
    if names is None:
        return tuple(unique)
    if len(names) != len(unique) or len(set(names)) != len(names):
        raise ValueError(
            f"`hook` got names={list(names)} for a state of the leaves {', '.join(unique)}. Each leaf has one name, in this order. "
            f"Pass {len(unique)} different names, or none."
        )
    return tuple(names)
