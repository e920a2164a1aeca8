"""Where starts end, from a run or made now, as float64 states under the map that they are polished and analysed with."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab import models, trees
from attractorlab.dynamics.recorder import only_last, trace
from attractorlab.errors import Unfinished
from attractorlab.maps import LatentMap
from attractorlab.models.recursion import AbstractRecursion
from attractorlab.store import Run, RunError
from attractorlab.sweep import PUZZLES, UNIT, Series, rest_of, unit_of, whole
from attractorlab.tasks import spread_rows
from attractorlab.types import Instance, State, Trajectory

AT_REST = 1e-4  # what `attractorlab record` takes as rest: it decides from where on a row is held


@dataclass(frozen=True, eq=False)
class Ends:
    """States in float64, one per row of `f`, whose `instance` coordinate counts through `instance`.

    `ticks` were followed to get there, none if they are starts. `of` says how many there are from which these were taken.
    """

    instance: Instance
    reasoner: AbstractRecursion
    f: LatentMap
    z: State
    ticks: int
    of: int


def ends_of_run(run: Run, series: str) -> Ends:
    """The last states of a series, as far as it is recorded.

    Raises:
        RunError: If the run has no such series, or its model cannot be found or has other weights.
        Unfinished: If nothing of the series is recorded yet.
    """
    one = series_of(run)
    if series not in one:
        raise RunError(f"{run.path} has no series {series!r}. A run holds what was recorded under a name. Use one of {', '.join(one)}.")
    if not run.has(PUZZLES) or not any(run.has(unit) for unit in units_of(run, series)):
        raise Unfinished(f"{run.path} has no finished unit of series {series!r}. What is not recorded cannot be analysed. Run the command that began it again: it goes on where it stopped.")
    instance: Instance = run.read(PUZZLES)["instance"]
    traj = run.trajectory_of(series)
    reasoner, f, z = lifted(model_of(run, one[series]), instance, one[series], traj)
    return Ends(instance, reasoner, f, z, int(traj.ticks[-1]), len(traj.instance))


def ends_of_model(reasoner: AbstractRecursion, instance: Instance, one: Series, *, ticks: int, seed: int, progress: Callable[[int, int], None]) -> Ends:
    """The states after so many ticks, from the starts that `record` draws; with 0 ticks, the starts themselves."""
    blocks = range(-(-len(instance) // UNIT))
    parts, rest = [], rest_of(reasoner, tol=AT_REST)
    for block in blocks:
        progress(block, len(blocks))
        f, z = unit_of(reasoner, instance, one, block=block, seed=seed)
        parts.append(trace(f, z, ticks=ticks, keep=only_last(), rest=rest).last if ticks else z)
    progress(len(blocks), len(blocks))
    twin = reasoner.to(torch.float64)
    z = trees.to(trees.cat(parts), torch.float64)
    return Ends(instance, twin, whole(twin, instance, one, seed=seed)[0], z, ticks, trees.rows(z))


def fewer(ends: Ends, limit: int) -> Ends:
    """At most `limit` of them, chosen without looking at them: spread evenly over the instances, and the first starts of each."""
    if len(ends.f.instance) <= limit:
        return ends
    rows = _spread(ends.f.instance, ends.f.start, limit)
    return replace(ends, f=ends.f.take(rows), z=trees.take(ends.z, rows))


def _spread(instance: Int[Tensor, " row"], start: Int[Tensor, " row"], limit: int) -> Int[Tensor, " chosen"]:
    kinds = torch.unique(instance)
    kept = kinds[spread_rows(min(limit, len(kinds)), len(kinds))]
    rows = torch.isin(instance, kept).nonzero().squeeze(1)
    by_start = rows[torch.argsort(start[rows] * (int(instance.max()) + 1) + instance[rows])]
    return torch.sort(by_start[:limit]).values


def lifted(reasoner: AbstractRecursion, instance: Instance, one: Series, traj: Trajectory) -> tuple[AbstractRecursion, LatentMap, State]:
    """The reasoner in float64, its map with one row per row of `traj`, and the last states."""
    twin = reasoner.to(torch.float64)
    f, _ = whole(twin, instance, replace(one, starts=1), seed=0)
    return twin, f.take(traj.instance), trees.to(traj.last, torch.float64)


def series_of(run: Run) -> dict[str, Series]:
    """What was recorded in a run, by name.

    Raises:
        RunError: If the folder holds no recording but an analysis of one, or what it says of its series cannot be read.
    """
    found = run.manifest.config.get("series")
    if not isinstance(found, dict) or not found or found.keys() == Series.__dataclass_fields__.keys():  # that of one series, as `scale` writes it
        raise RunError(f"{run.path} holds no recording. What is analysed is the run of `attractorlab record` or `report`, which keeps states; one of `scale` keeps scores alone. Give the folder of that run.")
    try:
        return {name: Series(**one) for name, one in found.items()}
    except TypeError as error:
        raise RunError(f"{run.path} says of its series what cannot be read ({error}). A recording is read as `attractorlab record` wrote it. Copy its manifest.json again, or record the run again.") from None


def units_of(run: Run, series: str) -> list[str]:
    """The units of a series, done or not."""
    return [unit for unit in run.manifest.units if unit.rpartition("-")[0] == series]


def model_of(run: Run, one: Series) -> AbstractRecursion:
    """The model of a series, with the weights that it had when the run was recorded.

    Raises:
        RunError: If it cannot be found, or has other weights.
    """
    try:
        models.find(one.model)
    except models.NoModelError:
        raise RunError(
            f"{run.path} was recorded with {one.model}, where there is no model any more. An analysis reads the model that made the run. Put the file back in its place, or record the run again."
        ) from None
    return same_weights(run, one, models.load(one.model))


def same_weights(run: Run, one: Series, reasoner: AbstractRecursion) -> AbstractRecursion:
    """The reasoner, if it has the weights that the run was recorded with.

    Raises:
        RunError: If it has not.
    """
    if reasoner.origin().weights != one.weights:
        raise RunError(
            f"{run.path} was recorded with weights {one.weights} of {one.model}, which now has {reasoner.origin().weights}. "
            "An analysis reads the model that made the run. Record the run again with the present weights."
        )
    return reasoner
