"""record: instances x starts as independent units of a run on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attractorlab.dynamics.orbits import FLOOR
from attractorlab.dynamics.recorder import bytes_of, only_last, trace
from attractorlab.maps import LatentMap, repeat_rows, strobe
from attractorlab.models.recursion import AbstractRecursion
from attractorlab.store import Run, room_for
from attractorlab.types import Drive, Instance, State

UNIT = 8  # instances in a unit of work
PUZZLES = "puzzles"  # the segment that holds the instances
PAGE = 8_000_000  # bytes of a report's page, of what is written beside it and of its analysis
OVERHEAD = 150_000  # bytes of file system blocks and metadata that a segment takes beside its numbers
CLEAR = 10.0  # times that residual: tolerances from which it is used
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
        RunError: If the folder holds a run that was asked for something else.
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
        run = Run.create(folder, config=config, units=[PUZZLES, *units], optional=also, created=datetime.now(UTC).isoformat(timespec="seconds"))
    if not run.has(PUZZLES):
        run.write(PUZZLES, {"instance": instance})
    for done, (unit, (name, k)) in enumerate(units.items()):
        progress(done, len(units))
        if run.has(unit):
            continue
        reasoner, one = series[name]
        f, z = unit_of(reasoner, instance, one, block=k, seed=seed)
        traj = trace(f, z, ticks=ticks, keep=only_last(), rest=rest_of(reasoner, tol=tol))
        run.write(unit, {"trajectory": replace(traj, origin=replace(traj.origin, seed=seed))})
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
