"""record and measure: instances x starts as independent units of a run on disk."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.dynamics.attempts import Halting, Verify, attempt, elastic, joined
from attractorlab.dynamics.orbits import FLOOR
from attractorlab.dynamics.recorder import bytes_of, only_last, trace
from attractorlab.maps import LatentMap, Rule, repeat_rows, strobe
from attractorlab.models.compiling import ENGINES, compiled
from attractorlab.models.recursion import AbstractRecursion
from attractorlab.store import Run, RunError, room_for
from attractorlab.types import Attempts, Drive, Instance, State

UNIT = 8  # instances in a unit of work
PUZZLES = "puzzles"  # the segment that holds the instances
PAGE = 8_000_000  # bytes of a report's page, of what is written beside it and of its analysis
OVERHEAD = 150_000  # bytes of file system blocks and metadata that a segment takes beside its numbers
CLEAR = 10.0  # times that residual: tolerances from which it is used
QUEUE = 4  # rows for each slot, at least, where throughput is timed
REST = 5.0  # times the rounding floor: a row that stays below it has no digits left to move, and is followed no further


@dataclass(frozen=True)
class Series:
    """One model on the run's instances: what is recorded under one name.

    Args:
        model: Bundled name or path, for reading the run later.
        weights: Hash of the weights; a run whose model changed is refused.
        starts: Starts per instance.
        scale: Standard deviation of random starts; None for the model's own starts.
        every: Model ticks that are one recorded tick; H_cycles makes it a segment.
    """

    model: str
    weights: str
    starts: int
    scale: float | None
    every: int


def record(
    folder: Path,
    instance: Instance,
    series: Mapping[str, tuple[AbstractRecursion, Series]],
    *,
    ticks: int,
    seed: int,
    tol: float,
    settings: Mapping[str, Any],
    reported: bool,
    also: Sequence[str] = (),
    progress: Callable[[int, int], None],
) -> Run:
    """Record every series on every instance, continuing what `folder` already holds.

    A unit is a few instances with all their starts; its starts are drawn from a generator of its own, so that any order of work gives the same numbers.

    Args:
        folder: The run's folder.
        instance: The instances.
        series: By name, the model and what to record with it.
        ticks: Recorded ticks per start.
        seed: Of the starts.
        tol: The residual that will count as rest when the run is read.
        settings: Further entries of the manifest.
        reported: Whether the disk must also have room for a report.
        also: Units that others may add.
        progress: Called with units done and units in all.

    Raises:
        SpaceError: If the disk has no room for it; nothing is written then.
        RunError: If the folder holds a run that was asked for something else, or of other puzzles.
    """
    blocks = [range(k, min(k + UNIT, len(instance))) for k in range(0, len(instance), UNIT)]
    units = {unit_name(name, k): (name, k) for name in series for k in range(len(blocks))}
    config = {
        **settings,
        "task": instance.task,
        "ids": list(instance.ids),
        "ticks": ticks,
        "seed": seed,
        "tol": tol,
        "unit": UNIT,
        "rest": {name: rest_of(reasoner, tol=tol) for name, (reasoner, _) in series.items()},
        "series": {name: asdict(one) for name, (_, one) in series.items()},
    }
    with room_for(folder, price(instance, series, ticks=ticks, reported=reported)):
        run = Run.create(folder, config=config, units=[PUZZLES, *units], optional=also)
    _keep_puzzles(run, instance)
    for done, (unit, (name, k)) in enumerate(units.items()):
        progress(done, len(units))
        if run.has(unit):
            continue
        reasoner, one = series[name]
        f, z = unit_of(reasoner, instance, one, block=k, seed=seed)
        traj = trace(f, z, ticks=ticks, keep=only_last(), rest=rest_of(reasoner, tol=tol))
        run.commit(unit, {"trajectory": replace(traj, origin=replace(traj.origin, seed=seed))})
    progress(len(units), len(units))
    return run


def rest_of(reasoner: AbstractRecursion, *, tol: float) -> float | None:
    """The residual below which a row of this model is followed no further; none where `tol` is so near to it that holding a row could decide its verdict."""
    rest = REST * FLOOR[reasoner.dtype]
    return rest if tol >= CLEAR * rest else None


def unit_name(series: str, block: int) -> str:
    """The name of a unit's segment."""
    return f"{series}-{block:03d}"


def unit_of(reasoner: AbstractRecursion, instance: Instance, one: Series, *, block: int, seed: int) -> tuple[LatentMap, State]:
    """The map and the starts of a unit; `instance` coordinates count through the whole run."""
    rows = torch.arange(block * UNIT, min((block + 1) * UNIT, len(instance)))
    whole = strobe(reasoner.bind(instance), one.every)
    f = whole.take(rows.repeat_interleave(one.starts))
    return f, start(reasoner, f.drive, one, seed=seed, block=block)


def start(reasoner: AbstractRecursion, drive: Drive, one: Series, *, seed: int, block: int) -> State:
    """The starts of a unit, from its own generator."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**63)
    if one.scale is None:
        return reasoner.start(drive, generator=generator)
    return reasoner.random_start(drive, scale=one.scale, generator=generator)


def whole(reasoner: AbstractRecursion, instance: Instance, one: Series, *, seed: int) -> tuple[LatentMap, State]:
    """The map and the starts of all units of a series, in their order."""
    blocks = range((len(instance) + UNIT - 1) // UNIT)
    f = strobe(reasoner.bind(instance), one.every).take(repeat_rows(len(instance), one.starts))
    parts = [unit_of(reasoner, instance, one, block=k, seed=seed)[1] for k in blocks]
    return f, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def price(instance: Instance, series: Mapping[str, tuple[AbstractRecursion, Series]], *, ticks: int, reported: bool) -> int:
    """The bytes that a run will hold, before compression, and its report, if it is to have one."""
    total = OVERHEAD + PAGE * reported
    for reasoner, one in series.values():
        f = strobe(reasoner.bind(instance[:1]), one.every).take([0])
        z = reasoner.random_start(f.drive, scale=1.0, generator=torch.Generator().manual_seed(0))
        total += len(instance) * one.starts * bytes_of(f, z, ticks=ticks, keep=only_last()) + -(-len(instance) // UNIT) * OVERHEAD
    return total


@dataclass(frozen=True, eq=False)
class Measure:
    """What is measured of a model by `measure`, beside the model and its puzzles.

    Args:
        series: The model's name, weights, starts per instance, scale of random starts (None: the model's own) and clock.
        ticks: Ticks that each start is followed.
        read: Ticks at which it is read.
        halting: The policy whose halting is recorded; None for a model without a halting value.
        hold: Residual from which a row at rest is held, see `attempt`.
        slots: Rows that are computed at a time.
        shard: Instances in a unit of work: what a kill loses, and nothing else.
        seed: Of the starts.
        dtype: Of the computation.
        engine: "eager", or "compiled" to fuse what lies between the matrix products of a tick, which can change last digits.
    """

    series: Series
    ticks: int
    read: tuple[int, ...]
    halting: Halting | None
    hold: float | None
    slots: int
    shard: int
    seed: int
    dtype: str
    engine: str


def measure(
    folder: Path,
    instance: Instance,
    reasoner: AbstractRecursion,
    asked: Measure,
    *,
    settings: Mapping[str, Any],
    also: Sequence[str],
    verify: Verify | None,
    part: tuple[int, int],
    progress: Callable[[int, int, int], None],
) -> Run:
    """Attempts at every instance from every start, in units of a few instances, going on with what `folder` already holds.

    Each start is drawn from a generator of its own, made from the seed, the puzzle and the number of the start: neither the size of the units nor the choice of rows or breadth
    changes a number.

    Args:
        folder: The run's folder.
        instance: The instances, with targets.
        reasoner: The model, in the dtype to compute in.
        asked: What to measure.
        settings: Further entries of the manifest.
        also: Units that others may add.
        verify: Whether answers obey the rules, from rows of `instance` and answers.
        part: (1, 1) for all units; (k, n) for every n-th alone, from the k-th on, so that n processes can share the work.
        progress: Called with units done in this call, units still to do in it, and units in all.

    Raises:
        RunError: If the folder holds a run that was asked for something else, or of other puzzles.
        ValueError: If the engine is unknown, or is to compile and there is no compiler.
    """
    tick = _tick(reasoner, asked)
    blocks = [range(k, min(k + asked.shard, len(instance))) for k in range(0, len(instance), asked.shard)]
    units = {f"attempts-{k:05d}": block for k, block in enumerate(blocks)}
    config = {**settings, "task": instance.task, "ids": list(instance.ids), **asdict(asked), "read": list(asked.read)}
    run = Run.create(folder, config=config, units=[PUZZLES, *units], optional=also)
    _keep_puzzles(run, instance)
    mine = [unit for unit in list(units)[part[0] - 1 :: part[1]] if not run.has(unit)]
    for done, unit in enumerate(mine):
        progress(done, len(mine) - done, len(units))
        rows = torch.tensor(list(units[unit]))
        f, z = own_starts(reasoner, instance, rows, asked.series, seed=asked.seed, tick=tick)
        runs = attempt(
            f, z, ticks=asked.ticks, read=asked.read, slots=asked.slots, halting=asked.halting, hold=asked.hold, targets=instance.targets, verify=verify
        )
        run.commit(unit, {"attempts": replace(runs, origin=replace(runs.origin, seed=asked.seed))})
    progress(len(mine), 0, len(units))
    return run


def _tick(reasoner: AbstractRecursion, asked: Measure) -> Rule | None:
    """The compiled tick of the model, if that is asked for."""
    if asked.engine not in ENGINES:
        raise ValueError(f"`measure` got engine={asked.engine!r}. It is one of {', '.join(ENGINES)}. Use engine={ENGINES[0]!r}.")
    return compiled(reasoner.tick, next(reasoner.parameters()).device, "measure") if asked.engine == "compiled" else None


def _keep_puzzles(run: Run, instance: Instance) -> None:
    """Write the puzzles to a run that has none yet.

    Raises:
        RunError: If it has others.
    """
    if not run.has(PUZZLES):
        run.commit(PUZZLES, {"instance": instance})
    before: Instance = run.read(PUZZLES)["instance"]
    if not all(_same(getattr(before, name), getattr(instance, name)) for name in ("inputs", "targets", "difficulty")):
        raise RunError(f"{run.path} holds a run on other puzzles of the same names. A run is only continued with the puzzles that it began with. Choose another --out, or remove that folder.")


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else a.equal(b)


def attempts_in(run: Run) -> Attempts:
    """The attempts of all units of a run that `measure` made.

    Raises:
        RunError: If a unit was not made from the run's seed.
    """
    parts = {unit: run.read(unit)["attempts"] for unit in run.manifest.units if unit != PUZZLES}
    if other := sorted(unit for unit, part in parts.items() if part.origin.seed != run.manifest.config["seed"]):
        raise RunError(f"{run.path} has the segment {other[0]!r} of another seed. A run has one seed. Remove that segment and run the command again: it is measured anew.")
    return joined(list(parts.values()))


def own_starts(reasoner: AbstractRecursion, instance: Instance, rows: Int[Tensor, " chosen"], one: Series, *, seed: int, tick: Rule | None = None) -> tuple[LatentMap, State]:
    """The map and the starts of some instances, each start from a generator of its own; `instance` coordinates count through all of them. `tick` replaces the tick of the model."""
    f = reasoner.bind(instance[rows])
    f = replace(strobe(f if tick is None else replace(f, rule=tick), one.every), instance=rows)
    parts = []
    for row in range(len(rows)):
        drive = {name: leaf[row : row + 1] for name, leaf in f.drive.items()}
        for start in range(one.starts):
            drawn = hashlib.sha256(f"{seed} {start} ".encode() + instance.inputs[rows[row]].numpy().tobytes()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
            parts.append(reasoner.start(drive, generator=generator) if one.scale is None else reasoner.random_start(drive, scale=one.scale, generator=generator))
    return f.take(repeat_rows(len(rows), one.starts)), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def throughput(reasoner: AbstractRecursion, instance: Instance, asked: Measure) -> dict[str, float | int | str]:
    """Instances per second, one start each, with every row run to the last tick, or until its state returns to the bit, and with halted rows leaving; in both ways slots are refilled at once. Timed one after the other.

    Raises:
        ValueError: If no halting policy is asked for.
    """
    if asked.halting is None:
        raise ValueError("`throughput` got no halting policy. It times rows that leave at their halting. Use halting=Halting(0.0, 1, None).")
    f, z = own_starts(reasoner, instance, torch.arange(len(instance)), replace(asked.series, starts=1), seed=asked.seed, tick=_tick(reasoner, asked))
    slots = min(asked.slots, max(1, len(instance) // QUEUE))
    attempt(f, z, ticks=2, read=[2], slots=slots, halting=asked.halting, hold=None)  # what is slow the first time is not timed
    at = [monotonic()]
    whole_runs = attempt(f, z, ticks=asked.ticks, read=[asked.ticks], slots=slots, halting=asked.halting, hold=None)
    at.append(monotonic())
    left = elastic(f, z, ticks=asked.ticks, read=[asked.ticks], slots=slots, halting=asked.halting)
    at.append(monotonic())
    n = len(instance)
    full, refilled = at[1] - at[0], at[2] - at[1]
    return {
        "instances": n,
        "slots": slots,
        "ticks": asked.ticks,
        "threads": torch.get_num_threads(),
        "seconds_full": full,
        "seconds_refill": refilled,
        "instances_per_second_full": n / full,
        "instances_per_second_refill": n / refilled,
        "ratio": full / refilled,
        "ticks_full": int(whole_runs.computed.sum()),
        "ticks_refill": int(left.computed.sum()),
        "device": reasoner.origin().device,
    }
