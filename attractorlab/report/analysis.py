"""From a recorded run to the nouns that a report speaks of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attractorlab import tasks, trees
from attractorlab.dynamics.basins import basin_slice, basins_of, by_end_state, plane_through, tally
from attractorlab.dynamics.convergence import convergence
from attractorlab.dynamics.fixed_points import distinct, find_fixed_points
from attractorlab.dynamics.newton import by_newton_krylov
from attractorlab.dynamics.recorder import every, trace
from attractorlab.dynamics.scaling import scaling_of
from attractorlab.dynamics.searching import Found
from attractorlab.dynamics.selectors import by_halt, by_residual, by_vote
from attractorlab.dynamics.settling import settle
from attractorlab.dynamics.spectrum import spectrum
from attractorlab.maps import LatentMap
from attractorlab.models.recursion import AbstractRecursion
from attractorlab.projection import by_pca, by_umap, project
from attractorlab.report.ends import lifted, model_of, same_weights, series_of
from attractorlab.store import Run, RunError
from attractorlab.sweep import PUZZLES, Series, whole
from attractorlab.types import (
    BasinEstimate,
    BasinSlice,
    Convergence,
    FixedPointSet,
    Instance,
    Projection,
    ScalingGrid,
    Spectrum,
    State,
    Trajectory,
)

ANALYSIS = "analysis"  # the segment that holds what is computed here
MAIN, BASELINE, OWN = "main", "baseline", "own"
END_STATE = 10.0  # ends this many times the tolerance of rest apart, relatively, are told apart until polishing shows them to be one
NEAR = 1e-2  # of the norm: a fixed point further from an end at rest was not what the run rested on
FIXED_TOL = 1e-10  # float64 residual of a fixed point; the floor is 1e-13
FIXED_STEPS = 30
MODES = 8
POINTS = 96  # ends that are polished, at most
UNSETTLED = 16  # of them, ends not at rest
PLANE, PLANE_EXTENT = 33, 1.5
PATH_INSTANCES, PATH_STARTS, PATH_TICKS = 3, 8, 32
LATER = 4  # times the run's ticks: how much longer a few starts that are not at rest are followed
LATER_STARTS = 64  # of them, at most

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run read back: the instances, and per series the model, the trajectory and its convergence."""

    run: Run
    instance: Instance
    series: dict[str, Series]
    reasoner: dict[str, AbstractRecursion]
    traj: dict[str, Trajectory]
    conv: dict[str, Convergence]
    tol: float
    level: float

    @property
    def clock(self) -> str:
        """One tick of the run in words."""
        return self.traj[MAIN].clock


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that a report says, as nouns. Rows of `points`, `pca` and `umap` are rows of the run; `later` follows some rows that were not at rest."""

    basins: BasinEstimate
    ends: BasinEstimate
    grid: ScalingGrid
    points: FixedPointSet
    spectrum: Spectrum | None
    later: FixedPointSet | None
    plane: BasinSlice
    pca: Projection
    umap: Projection
    baseline: ScalingGrid | None
    own: ScalingGrid | None


def recorded(run: Run, *, reasoners: dict[str, AbstractRecursion] | None = None) -> Recorded:
    """Read a run back, with its models.

    Raises:
        RunError: If the run is not complete, or a model cannot be found or has other weights than the run was recorded with.
    """
    config, series = run.manifest.config, series_of(run)
    missing = [unit for unit in run.missing() if unit != ANALYSIS]
    if missing:
        raise RunError(
            f"{run.path} lacks {len(missing)} of {len(run.manifest.units)} units, the first being {missing[0]!r}. A report is made of a complete run. "
            "Run the command that began it again: it goes on where it stopped."
        )
    instance: Instance = run.read(PUZZLES)["instance"]
    found = {name: model_of(run, one) if name not in (reasoners or {}) else same_weights(run, one, (reasoners or {})[name]) for name, one in series.items()}
    traj = {name: run.trajectory_of(name) for name in series}
    tol = float(config["tol"])
    conv = {name: convergence(one, tol=tol, targets=instance.targets) for name, one in traj.items()}
    return Recorded(run, instance, series, found, traj, conv, tol, float(config["level"]))


def analyse(data: Recorded, *, say: Say) -> Analysis:
    """Compute every noun of the report, or read those that the run already holds."""
    names = ("basins", "ends", "grid", "points", "spectrum", "later", "plane", "pca", "umap", "baseline", "own")
    if data.run.has(ANALYSIS):
        stored = data.run.read(ANALYSIS)
        return Analysis(**{name: stored.get(name) for name in names})  # type: ignore[arg-type]
    traj, conv = data.traj[MAIN], data.conv[MAIN]
    seed = int(data.run.manifest.config["seed"])
    say("basins and scaling")
    basins = basins_of(traj, conv, level=data.level, sampler=law(data, MAIN))
    ends = basins_of(traj, conv, level=data.level, by_state=END_STATE * data.tol, sampler=law(data, MAIN))
    grids = {name: grid_of(data, name) for name in data.series}
    say("fixed points in float64")
    _, f64, z64 = lifted(data.reasoner[MAIN], data.instance, data.series[MAIN], traj)
    chosen = candidates(ends, conv)
    points = find_fixed_points(f64.take(chosen), trees.take(z64, chosen), method=by_newton_krylov, tol=FIXED_TOL, max_steps=FIXED_STEPS)
    points = replace(points, row=chosen[points.row])
    ends, points = merged(ends, points, conv)
    say("spectra")
    fixed = points[points.converged]
    spec = spectrum(f64.take(fixed.row), fixed.states, k=MODES) if len(fixed) else None
    f, z0 = whole(data.reasoner[MAIN], data.instance, data.series[MAIN], seed=seed)
    say("starts that are not at rest, followed longer")
    later = followed(data, f)
    say("a plane through state space")
    plane = plane_of(data, f, z0, ends)
    say("trajectories, PCA and UMAP")
    rows = path_rows(conv, ends)
    paths = trace(f.take(rows), trees.take(z0, rows), ticks=min(PATH_TICKS, len(traj.ticks) - 1), keep=every(1))
    pca, umap = project(paths, by_pca(2)), project(paths, by_umap(2, random_state=0))
    pca, umap = replace(pca, row=rows[pca.row]), replace(umap, row=rows[umap.row])
    found = Analysis(basins, ends, grids[MAIN], points, spec, later, plane, pca, umap, grids.get(BASELINE), grids.get(OWN))
    data.run.commit(ANALYSIS, {name: getattr(found, name) for name in names if getattr(found, name) is not None})
    return found


def merged(ends: BasinEstimate, points: FixedPointSet, conv: Convergence) -> tuple[BasinEstimate, FixedPointSet]:
    """The end states with those counted as one attractor whose polished points are the same, and one point for each of them.

    Ends that come in slowly are still far apart when they count as at rest: about their residual over 1 − radius.
    """
    at_rest = conv.settled[points.row]
    labels = torch.where(at_rest & (points.moved <= NEAR), distinct(points).labels, -1)
    attractor = {row: k for k, row in enumerate(ends.example.tolist())}
    one = torch.arange(len(ends.example))  # attractors that are the same share a number
    for label in torch.unique(labels[labels >= 0]).tolist():
        same = torch.tensor([attractor[row] for row in points.row[labels == label].tolist()])
        one[same] = one[same].min()
    number = {(i, label): k for k, (i, label) in enumerate(zip(ends.of_instance.tolist(), ends.label.tolist(), strict=True))}
    rows = [int(one[number[pair]]) if pair[1] >= 0 else -1 for pair in zip(ends.instance.tolist(), ends.labels.tolist(), strict=True)]
    found = tally(
        torch.tensor(rows), ends.labels >= 0, ends.instance, ends.start, level=ends.level, sampler=ends.sampler, clock=ends.clock, origin=ends.origin
    )
    return found, points[~at_rest | torch.isin(points.row, found.example)]


def followed(data: Recorded, f: LatentMap) -> FixedPointSet | None:
    """Some rows that were not at rest at the last tick, run on: whether and where they come to rest after all, at three ticks in a row as everywhere."""
    conv, traj = data.conv[MAIN], data.traj[MAIN]
    rows = (~conv.settled & torch.tensor([word != "diverged" for word in conv.verdict])).nonzero().squeeze(1)
    if not len(rows):
        return None
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), LATER_STARTS)).round().long()]
    z = trees.take(traj.last, rows)
    return find_fixed_points(f.take(rows), z, method=_to_rest, tol=data.tol, max_steps=LATER * (len(traj.ticks) - 1))


def _to_rest(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    rest = settle(f, z, tol=tol, max_ticks=max_steps)
    return Found(rest.states, rest.residual, torch.full_like(rest.residual, torch.nan), rest.result, torch.where(rest.tick >= 0, rest.tick, max_steps))


def solved_later(data: Recorded, later: FixedPointSet) -> Bool[Tensor, " point"]:
    """Which of the rows that were followed longer end solved, by the rules of the task."""
    with torch.no_grad():
        answer = data.reasoner[MAIN].readout(later.states)["logits"].argmax(-1)
    return tasks.verify(data.instance[later.instance], answer)


def law(data: Recorded, name: str) -> str:
    """The law of a series' starts in words."""
    one = data.series[name]
    return "the model's own start" if one.scale is None else f"normal numbers cut at two standard deviations, of standard deviation {one.scale:g}"


def grid_of(data: Recorded, name: str) -> ScalingGrid:
    """Accuracy over the powers of two up to the run's depth and breadth."""
    assert data.instance.targets is not None
    traj = data.traj[name]
    return scaling_of(
        traj,
        data.instance.targets,
        depth=powers(len(traj.ticks) - 1),
        breadth=powers(data.series[name].starts),
        select=[by_residual, by_vote, by_halt],
        level=data.level,
        cluster=tasks.same_solutions(data.instance),
    )


def powers(top: int) -> list[int]:
    """1, 2, 4, ... and `top`."""
    return sorted({top, *(2**k for k in range(top.bit_length()) if 2**k <= top)})


def candidates(ends: BasinEstimate, conv: Convergence) -> Int[Tensor, " point"]:
    """The rows whose ends are polished: one of each attractor, larger shares first, and a few that did not settle."""
    largest_first = torch.argsort(-ends.count, stable=True)[: POINTS - UNSETTLED]
    restless = (~conv.settled & (conv.period == 0)).nonzero().squeeze(1)
    # One of each instance before a second of any.
    first = torch.tensor([k for k, one in enumerate(conv.instance[restless].tolist()) if one not in conv.instance[restless][:k].tolist()], dtype=torch.int64)
    return torch.cat([torch.sort(ends.example[largest_first]).values, restless[first][:UNSETTLED]])


def solved_ends(data: Recorded) -> Bool[Tensor, " row"]:
    """Which rows of the main series end solved, by the rules of the task."""
    traj = data.traj[MAIN]
    return tasks.verify(data.instance[traj.instance], traj.readouts["answer"][-1].long())


def interesting(conv: Convergence, ends: BasinEstimate) -> list[int]:
    """Instances to show: the one with most attractors, the slowest that settles, and a typical one."""
    attractors = torch.bincount(ends.of_instance, minlength=int(ends.instances.max()) + 1)
    slowness = torch.zeros(len(attractors)).scatter_reduce(0, conv.instance, conv.settle_tick.float(), "amax")
    restless = torch.zeros(len(attractors)).scatter_reduce(0, conv.instance, (~conv.settled).float(), "sum")
    order = torch.argsort(slowness, stable=True)
    wanted = [int((attractors + restless / 1000).argmax()), int(slowness.argmax()), int(order[len(order) // 2]), *order.tolist()]
    seen: list[int] = []
    for one in wanted:
        if one not in seen and int(attractors[one]) > 0:
            seen.append(one)
    return seen or [0]


def path_rows(conv: Convergence, ends: BasinEstimate) -> Int[Tensor, " row"]:
    """The rows whose whole paths are drawn."""
    rows = [(conv.instance == one).nonzero().squeeze(1)[:PATH_STARTS] for one in interesting(conv, ends)[:PATH_INSTANCES]]
    return torch.cat(rows)


def plane_of(data: Recorded, f: LatentMap, z0: State, ends: BasinEstimate) -> BasinSlice:
    """A plane through the largest attractor of the instance with most of them, a second attractor or a start, and a start."""
    conv, traj = data.conv[MAIN], data.traj[MAIN]
    one = interesting(conv, ends)[0]
    examples = ends.example[ends.of_instance == one]
    rows = (conv.instance == one).nonzero().squeeze(1)
    end, begin = traj.last, z0
    center = trees.take(end, examples[:1] if len(examples) else rows[:1])
    first = trees.take(end, examples[1:2]) if len(examples) > 1 else trees.take(begin, rows[:1])
    # With one start there is no third state: a fixed random direction stands in.
    random = trees.normal_like(center, generator=torch.Generator().manual_seed(0))
    third = trees.take(begin, rows[-1:]) if len(rows) > 1 else trees.add(center, random)
    axes = plane_through(center, first, third)
    return basin_slice(
        f.take(rows[:1]),
        center=center,
        axes=axes,
        extent=PLANE_EXTENT,
        resolution=PLANE,
        label=by_end_state(END_STATE * data.tol),
        tol=data.tol,
        max_ticks=len(traj.ticks) - 1,
    )


def describe_points(points: FixedPointSet, conv: Convergence) -> dict[str, Any]:
    """Counts of the polishing: how many candidates, at rest or not, became fixed points, and how far they moved."""
    at_rest = conv.settled[points.row]
    good = points.converged
    near = at_rest & good & (points.moved <= NEAR)
    return {
        "at_rest": int(at_rest.sum()),
        "at_rest_fixed": int(near.sum()),
        "at_rest_away": int((at_rest & good & ~near).sum()),
        "restless": int((~at_rest).sum()),
        "restless_fixed": int((~at_rest & good).sum()),
        "moved": points.moved[near],
        "restless_moved": points.moved[~at_rest & good],
        "residual": points.residual[good],
    }
