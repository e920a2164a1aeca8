"""read_off: the parts of a hooked model's output that follow from the state, as programs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from attractorlab.models.recording import Ref, copied
from attractorlab.models.replaying import Pair, Program, Unfit, backward, by_rows
from attractorlab.models.rolling import identical
from attractorlab.models.rowwise import reads_rows
from attractorlab.models.ticking import Side, Ticks


def read_off(
    ticks: Ticks, pair: Pair, out: Mapping[str, Tensor], out2: Mapping[str, Tensor], *, chosen: Sequence[int], model: nn.Module
) -> tuple[list[Program], list[str]]:
    """Programs for the parts of the model's output that follow from the state, and a sentence on each that is special or left out."""
    remarks: list[str] = []
    ways: dict[int, dict[str, tuple[Ref, Ref]]] = {}
    for name, tensor in out.items():
        if name not in out2 or not by_rows(tensor, out2[name], pair.rows):
            remarks.append(f"No readout is {name!r}: its first axis is not the row.")
            continue
        refs = ticks.sides[0].record.ref(tensor), ticks.sides[1].record.ref(out2[name])
        if refs[0].event not in ticks.sides[0].moving and refs[0] not in ticks.sides[0].cuts[-1]:
            remarks.append(f"No readout is {name!r}: it does not follow from the state.")
            continue
        try:
            trial = pair.apart()
            way, program, before, grads, second = _reader(ticks, trial, {name: refs})
        except Unfit as reason:
            remarks.append(f"No readout is {name!r}: {reason}.")
            continue
        with torch.no_grad():
            got = program(before, trial.drive, grads)[name]
        if not identical(got, tensor):
            remarks.append(f"No readout is {name!r}: replayed from the state that was seen, it differs from what the model gave.")
            continue
        if not reads_rows(trial, program, second, {name: out2[name]}, chosen, model):
            remarks.append(f"No readout is {name!r}: its row i does not follow from row i of the state.")
            continue
        ways.setdefault(way, {})[name] = refs
        if way == 1:
            made = (
                "read from what the solver makes of all calls"
                if ticks.driven
                else "made within a tick, and read from the tick that begins with the state"
            )
            remarks.append(f"The readout {name!r} is {made}.")
    return [_reader(ticks, pair, refs, way)[1] for way, refs in ways.items()], remarks


def _reader(
    ticks: Ticks, pair: Pair, refs: Mapping[str, tuple[Ref, Ref]], way: int | None = None
) -> tuple[int, Program, dict[str, Tensor], list[bool], dict[str, Tensor]]:
    """The first way of two that leads from a state to some results: which it was, the program, the state that was seen there, where gradients were
    recorded, and the state that the second run had there.
    """
    for k in (0, 1) if way is None else (way,):
        one, two = (_cut(side, [both[n] for both in refs.values()], k, ticks.driven) for n, side in enumerate(ticks.sides))
        if one is not None and two is not None:
            known = (dict(zip(one[0], ticks.names, strict=True)), dict(zip(two[0], ticks.names, strict=True)))
            record = ticks.sides[0].record
            before, second = (
                {name: copied(side.record.value(ref)) for ref, name in names.items()}
                for side, names in zip(ticks.sides, known, strict=True)
            )
            return k, pair.program((one[1], two[1]), known, refs), before, [record.events[number].grad for number in one[1]], second
    raise Unfit("it needs more than the last state")


def _cut(side: Side, targets: Sequence[Ref], way: int, driven: bool) -> tuple[tuple[Ref, ...], tuple[int, ...]] | None:
    """Values that stand for the state, and the events from there to the targets.

    Without a solver these are the last state, or, for what is made within a tick, the state before it. With a solver, the output of the last call, or
    what the solver made of all of them.
    """
    record, own = side.record, frozenset(number for tick in side.own for number in tick)
    barred = own & side.moving
    if not driven:
        known = side.cuts[-1 - way]
        barred -= frozenset(side.own[-1]) if way else frozenset()
    else:
        result = side.after[-1] if way == 0 else _solution(side, targets)
        if result is None:
            return None
        known = result
    found: set[int] = set()
    for target in targets:
        events = backward(record, target, known, side.moving, barred)
        if events is None:
            return None
        found |= set(events)
    if way and not driven and not found & set(side.own[-1]):
        return None  # it follows from an earlier state, and says nothing of a tick
    return known, tuple(sorted(found))


def _solution(side: Side, targets: Sequence[Ref]) -> tuple[Ref] | None:
    """The earliest value after the calls that has the state's shape and that everything in the targets comes through."""
    record, front = side.record, {target for target in targets if target.event in side.moving}
    like = record.value(side.cuts[0][0])
    best: tuple[Ref] | None = None
    done: set[Ref] = set()
    while front and len(side.cuts[0]) == 1:
        if len(front) == 1:
            (only,) = front
            value = record.value(only) if only.out >= 0 else None
            if value is not None and value.shape == like.shape and value.dtype == like.dtype:
                best = (only,)
        last = max(front)
        if record.events[last.event].call >= 0:
            break
        front = {ref for ref in front if ref.event != last.event}
        done.add(last)
        event = record.events[last.event]
        front |= {ref for ref in event.refs if ref.event in side.moving}
        made = {ref.event for ref in front}
        front |= {Ref(number, -1) for number in event.after & side.moving if number not in made}
    return best
