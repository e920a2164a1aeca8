"""The inside of the ticks of a trace: what is tapped there, and what is changed."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.orbits import FLOOR, chunks
from attractorlab.editing import Continuation, Edit
from attractorlab.maps import LatentMap, relative
from attractorlab.points import Call, Sight, Tap, Watch, find, nearest, survey
from attractorlab.types import State, Trajectory

ROUNDINGS = 30  # that one tick may leave, and that rows in other batches may differ by


@torch.no_grad()
def check_updates(f: LatentMap, z: State, *, caller: str) -> None:
    """Refuse a map whose updates, one after the other, are not its rule, bit for bit, on every row of `z`. Costs two ticks, unless it is made of them.

    Raises:
        ValueError: If they differ at all. The same operations on the same rows give the same bits; a rule that is compiled while its updates are not, say, does not.
    """
    if not f.updates or f.made_of_updates:
        return
    for rows in chunks(z):
        part, whole = f.take(rows), trees.take(z, rows)
        parted = whole
        for update in part.updates:
            parted = update.rule(parted, part.drive)
        whole = part.rule(whole, part.drive)
        same = torch.stack([((leaf == parted[name]) | (leaf.isnan() & parted[name].isnan())).flatten(1).all(1) for name, leaf in whole.items()]).all(0)
        if not bool(same.all()):
            off = trees.distance(whole, parted).nan_to_num(nan=torch.inf)
            off[same] = -1  # what is not finite in both is no difference
            raise ValueError(
                f"`{caller}` got a map whose updates and rule differ by up to {float(off.max()):.0e} in row {int(rows[int(off.argmax())])}. "
                "A tick is seen update by update, so these are the rule, one after the other, bit for bit and without noise. "
                "Use `dataclasses.replace(f, updates=())` to take the rule as one piece."
            )


class Inside:
    """Runs the ticks of one trace with its taps and edits; a context, within which the model carries their hooks."""

    def __init__(self, taps: "Taps | None", edits: "Edits | None") -> None:
        self.taps, self.edits = taps, edits
        # Edits first: a tap shows what goes on from its point.
        self._watch = Watch([*(edits.sights if edits else []), *(taps.sights if taps else [])])

    def __enter__(self) -> "Inside":
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.__exit__(kind, error, trace)

    def arrive(self, z: State, tick: int) -> State:
        """The state at `tick` as it is recorded: edited, unless the run is put back to a clean one."""
        return z if self.edits is None or self.edits.clean is not None else self.edits.between(z, tick)

    def step(
        self, f: LatentMap, z: State, tick: int, *, moving: Int[Tensor, " row"], alive: Bool[Tensor, " row"], last: bool
    ) -> tuple[State, State]:
        """f(z), and the state to go on from."""
        edits, tapped = self.edits, self.taps is not None and self.taps.wants(tick)
        source = z if edits is None or edits.clean is None else edits.between(edits.clean_at(z, tick), tick)
        if source is z and (edits is None or not edits.inside(tick)):
            new = self._watched(f, z, tick, moving, alive) if tapped else f(z)
            return new, new
        new = f(z)
        return new, new if last and not tapped else self._watched(f, source, tick, moving, alive)

    def keep(self, tick: int) -> None:
        """What the rows at rest showed last stands for this tick too."""
        if self.taps is not None:
            self.taps.keep(tick)

    def _watched(self, f: LatentMap, z: State, tick: int, moving: Tensor, alive: Tensor) -> State:
        if self.taps is None:
            return self._watch.tick(f, z, tick=tick)
        self.taps.begin(tick, moving)
        new = self._watch.tick(f, z, tick=tick)
        self.taps.end(tick, alive)
        return new


class Taps:
    """What a tap records, allocated before the run: one entry for each kept tick and call, on the CPU.

    With `hold`, what passed last is held for each row, so that rows may leave.
    """

    def __init__(self, f: LatentMap, z: State, tap: Tap, *, kept: Int[Tensor, " kept"], hold: bool) -> None:
        found = find(tap.patterns, tap.model, z, caller="Tap")
        passages = survey(f, z, list(found.items()))
        for pattern in tap.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in passages):
                silent = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
                if silent or not passages:
                    raise ValueError(
                        f"`Tap` got {pattern!r}, and {', '.join(silent[:3]) or 'nothing'} did not run in a tick. A tap records what runs in a tick of the map, on the module that "
                        f"the map runs and not on a copy of it. Name one of {', '.join(passages) or ', '.join(point.name for point in f.names(z)[:6])}; `f.names(z)` lists all."
                    )
        self._at = {tick: k for k, tick in enumerate(kept.tolist())}
        self._hold = hold
        self.calls = {name: one.calls for name, one in passages.items()}
        n = trees.rows(z)
        # Booleans and bytes have no −1 to stand for a row that ended.
        wider = {torch.bool: torch.int8, torch.uint8: torch.int16}
        self.values = {
            name: torch.empty((len(kept), len(one.calls), n, *one.shape), dtype=wider.get(one.dtype, one.dtype))
            for name, one in passages.items()
        }
        self.sights = [Sight(name, found[name], self._see) for name in passages]
        self._rows = slice(0, n)
        self._last: dict[str, Tensor] = {}
        self._into: dict[str, Tensor] = {}
        self._moving: Tensor | None = None
        self._met: dict[str, int] = {}

    def chunk(self, first: int, end: int) -> None:
        """Go on with the rows from `first` to before `end`."""
        self._rows = slice(first, end)
        self._last = {name: torch.zeros_like(values[0][:, self._rows]) for name, values in self.values.items()} if self._hold else {}

    def wants(self, tick: int) -> bool:
        """Whether the application from `tick` has to be seen."""
        return self._hold or tick in self._at

    def begin(self, tick: int, moving: Int[Tensor, " row"]) -> None:
        """The application from `tick` is about to run, on the rows `moving` of the chunk."""
        self._into = self._last if self._hold else {name: values[self._at[tick]][:, self._rows] for name, values in self.values.items()}
        self._moving = None if len(moving) == self._rows.stop - self._rows.start else moving.cpu()
        self._met = dict.fromkeys(self.calls, 0)

    def end(self, tick: int, alive: Bool[Tensor, " row"]) -> None:
        """The application has run; rows that are not `alive` show nothing."""
        for name, calls in self.calls.items():
            if self._met[name] != len(calls):
                raise ValueError(_uneven(name, self._met[name], tick, len(calls)))
        ended = (~alive).cpu()
        if bool(ended.any()):
            rows = ended.nonzero().squeeze(1) if self._moving is None else self._moving[ended]
            for into in self._into.values():
                into[:, rows] = torch.nan if into.is_floating_point() or into.is_complex() else -1
        self.keep(tick)

    def keep(self, tick: int) -> None:
        """Copy what is held to the record of `tick`, if it is a kept one."""
        if self._hold and tick in self._at:
            for name, values in self.values.items():
                values[self._at[tick]][:, self._rows] = self._last[name]

    def _see(self, value: Tensor, call: Call) -> Tensor:
        self._met[call.point] += 1
        into = self._into[call.point]
        if call.call >= len(into):
            raise ValueError(_uneven(call.point, call.call + 1, call.tick, len(into)))
        n = into.shape[1] if self._moving is None else len(self._moving)
        if value.shape != (n, *into.shape[2:]):
            raise ValueError(
                f"{call.point} gave {tuple(value.shape)} at tick {call.tick} for {n} rows, and {tuple(into.shape[2:])} a row before. A point that is recorded gives one shape, "
                "rows first. Name another point: `f.names(z)` lists those that do."
            )
        if self._moving is None:
            into[call.call].copy_(value.detach())
        else:
            into[call.call][self._moving] = value.detach().to(into)
        return value


class Edits:
    """The edits of one run, checked before it begins. What an edit remembers, it remembers for this run alone."""

    def __init__(self, f: LatentMap, z: State, edits: Sequence[Edit], continuation: Continuation, *, ticks: int) -> None:
        self._edits, self.clean = tuple(edits), continuation.clean
        self._first: list[Tensor | None] = [None] * len(self._edits)
        self._at = [_chosen(edit, ticks) for edit in self._edits]
        if continuation.name == "clamped":
            self._at = [set(range(min(at), ticks + 1)) for at in self._at]
        if self.clean is not None:
            _check_clean(continuation, f, z, ticks)
        self._inside: list[int] = []
        self.sights: list[Sight] = []
        for k, edit in enumerate(self._edits):
            if edit.calls is None and edit.point in z:
                continue
            found = find([edit.point], f.model, z, caller="Edit")
            if edit.point not in found:
                raise ValueError(
                    f"`Edit` got {edit.point!r}, which stands for {len(found)} points. An edit is of one point. Make one for each of {', '.join(found)}."
                )
            calls = survey(f, z, list(found.items()), all_updates=True)
            if edit.point not in calls:
                raise ValueError(
                    f"`Edit` got {edit.point!r}, which does not run in a tick. An edit changes what runs in a tick of the map. Choose a point of `f.names(z)`."
                )
            if not any(fnmatch.fnmatchcase(update, edit.calls or "*") for update in calls[edit.point].calls):
                raise ValueError(
                    f"`Edit` got calls={edit.calls!r} at {edit.point}. It is a glob of the updates in which the point is met. Near it are {nearest(edit.calls or '*', calls[edit.point].calls)}."
                )
            self._inside.append(k)
            self.sights.append(Sight(edit.point, found[edit.point], self._seer(k), all_updates=True))
        self.words = tuple(_sentence(edit, at) for edit, at in zip(self._edits, self._at, strict=True))

    def between(self, z: State, tick: int) -> State:
        """`z` with the edits that are made before the tick begins."""
        for k, edit in enumerate(self._edits):
            if k not in self._inside and tick in self._at[k]:
                z = {**z, edit.point: self._apply(k, z[edit.point], Call(edit.point, tick, 0, ""))}
        return z

    def inside(self, tick: int) -> bool:
        """Whether anything is edited inside the application from `tick`."""
        return any(tick in self._at[k] for k in self._inside)

    def clean_at(self, z: State, tick: int) -> State:
        """The clean state at `tick`, where and as `z` is."""
        assert self.clean is not None
        return {name: self.clean.states[name][tick].to(leaf.device) for name, leaf in z.items()}

    def _seer(self, k: int) -> Callable[[Tensor, Call], Tensor]:
        edit, at = self._edits[k], self._at[k]

        def see(value: Tensor, call: Call) -> Tensor:
            return self._apply(k, value, call) if call.tick in at and fnmatch.fnmatchcase(call.update, edit.calls or "*") else value

        return see

    def _apply(self, k: int, value: Tensor, call: Call) -> Tensor:
        first = self._first[k]
        if first is None:
            first = self._first[k] = value.clone()
        return self._edits[k].apply(value, replace(call, first=first))


def _uneven(name: str, met: int, tick: int, before: int) -> str:
    return (
        f"{name} ran {met} times at tick {tick}, and {before} times in a tick before. A point that is recorded runs equally often in every tick. "
        "Tap a point that does, or trace the rows or ticks apart."
    )


def _chosen(edit: Edit, last: int) -> set[int]:
    """The ticks of an edit."""
    there = range(last + 1)
    ticks = edit.ticks
    chosen = (
        list(there)
        if ticks is None
        else list(there[ticks])
        if isinstance(ticks, slice)
        else [ticks]
        if isinstance(ticks, int)
        else list(ticks)
    )
    if any(isinstance(tick, bool) for tick in chosen):
        raise ValueError(
            f"`Edit` got ticks={edit.ticks!r} at {edit.point}, with a boolean. Ticks are whole numbers, and True would be taken for 1. Use ticks=None for all ticks, or ticks=1."
        )
    wrong = [tick for tick in chosen if tick not in there]
    if wrong or not chosen:
        raise ValueError(
            f"`Edit` got ticks={edit.ticks!r} at {edit.point} in a trace of {last} ticks. An edit is made at one tick or more, each from 0 to {last}. "
            f"Use ticks from 0 to {last}, or trace for longer."
        )
    return set(chosen)


def _check_clean(continuation: Continuation, f: LatentMap, z: State, ticks: int) -> None:
    clean = continuation.clean
    assert clean is not None
    instance, start = f.coordinates(z)
    if clean.kept.tolist()[: ticks + 1] != list(range(ticks + 1)):
        raise ValueError(
            f"`teacher_forced` got a trajectory that keeps {len(clean.kept)} states for a trace of {ticks} ticks. The run is put back to the clean state at every tick. "
            f"Trace the clean run with ticks={ticks}, keep=every(1)."
        )
    if clean.clock != f.clock or not clean.instance.equal(instance) or not clean.start.equal(start):
        raise ValueError(
            f"`teacher_forced` got a trajectory of {len(clean.instance)} rows of clock {clean.clock} for a map of {len(instance)} rows of {f.clock}. "
            "The clean run is one of the same map and rows. Trace it with the same map."
        )
    if clean.continuation != "none":
        raise ValueError(
            f"`teacher_forced` got a trajectory that is itself edited ({'; '.join(clean.edits)}). The run is put back to what the map does by itself. Trace it without edits."
        )
    if clean.origin.weights and f.origin.weights and clean.origin.weights != f.origin.weights:
        raise ValueError(
            f"`teacher_forced` got a trajectory of weights {clean.origin.weights} for a map of weights {f.origin.weights}. "
            "The clean run is one of the same map and rows. Trace it with the same map."
        )
    if any(name not in clean.states or not clean.states[name][0].equal(leaf.cpu()) for name, leaf in z.items()):
        raise ValueError(
            "`teacher_forced` got a trajectory that begins at other states than the trace. Both begin at the same. Pass the same starts to both traces."
        )
    _check_tick(clean, f, z)


@torch.no_grad()
def _check_tick(clean: Trajectory, f: LatentMap, z: State) -> None:
    """Refuse a run whose first tick is not one of `f`: weights, drive or kicks are others. Rows in other batches differ by rounding."""
    for rows in chunks(z):
        start = trees.take(z, rows)
        new = f.take(rows)(start)
        there = {name: clean.states[name][1][rows].to(leaf.device) for name, leaf in start.items()}
        off = relative(trees.distance(new, there), start)
        moved = relative(trees.distance(new, start), start)
        # Rows that end at once are NaN on record.
        wrong = (off > ROUNDINGS * FLOOR[next(iter(z.values())).dtype] * (1 + moved)) & trees.finite(there)
        if bool(wrong.any()):
            worst = int(torch.where(wrong, off, -1).argmax())
            raise ValueError(
                f"`teacher_forced` got a trajectory whose tick 1 is {float(off[worst]):.0e} away from where the map takes its tick 0, in row {int(rows[worst])}. "
                "The clean run is one of the same weights and drive, without kicks. Trace it with the same map."
            )


def _sentence(edit: Edit, at: set[int]) -> str:
    """What is done, where and when."""
    ticks = sorted(at)
    if ticks == list(range(ticks[0], ticks[-1] + 1)):
        when = f"tick {ticks[0]}" if len(ticks) == 1 else f"ticks {ticks[0]} to {ticks[-1]}"
    else:
        when = f"ticks {', '.join(map(str, ticks))}"
    return (
        f"{edit.deed} at {edit.point}, {when}"
        + (f", in {edit.calls}" if edit.calls else "")
        + (", in part" if edit.where is not None else "")
    )
