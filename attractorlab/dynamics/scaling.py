"""scaling: what depth (ticks) and breadth (starts) buy, under several ways to select one answer."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab.dynamics.attempts import Halting, Verify, attempt, fingerprint, slots_for
from attractorlab.dynamics.convergence import solved_at
from attractorlab.dynamics.door import check_strategy
from attractorlab.dynamics.selectors import Candidates, Select
from attractorlab.dynamics.slots import WINDOW
from attractorlab.maps import LatentMap, repeat_rows, strobe
from attractorlab.statistics import cluster_shares
from attractorlab.types import Attempts, Drive, Instance, Result, ScalingGrid, State, Trajectory

PUBLISHED = Halting(above=0.0, after=1, rest=None)


@runtime_checkable
class Scales(Protocol):
    """A reasoner, as far as `scaling` needs one."""

    def bind(self, instance: Instance) -> LatentMap: ...

    def start(self, drive: Drive, *, generator: torch.Generator) -> State: ...


def scaling(
    reasoner: Scales,
    instance: Instance,
    *,
    depth: Sequence[int],
    breadth: Sequence[int],
    select: Sequence[Select],
    generator: torch.Generator,
    every: int = 1,
    level: float = 0.95,
    cluster: Int[Tensor, " instance"] | None = None,
    verify: Verify | None = None,
) -> ScalingGrid:
    """Accuracy and residual over depth x breadth, from one run of the largest depth and breadth.

    Smaller breadths are the first starts of the larger ones, smaller depths their earlier ticks. The starts of all instances are held at once; for more than fit, run `attempt` on some
    instances at a time and give what it found, put together by `joined`, to `scaling_grid`.

    Args:
        reasoner: Binds and starts.
        instance: The instances, with targets.
        depth: Ticks per start.
        breadth: Starts per instance.
        select: Ways to choose one start: `by_residual`, `by_logit_change`, `by_vote`, `by_halt`, `by_first_halt`, `by_verifier`.
        generator: Draws the starts.
        every: Model ticks that are one tick here, as in `strobe`; H_cycles makes it a segment.
        level: Coverage of the intervals.
        cluster: Instances that are not independent share a number, e.g. puzzles of one solution; None where each stands alone.
        verify: Whether answers obey the rules of the task, for `by_verifier`.

    Returns:
        Columns `mean` (a start picked blindly), the selectors by name, and `any` (an oracle picks: the ceiling).

    Raises:
        ValueError: If the instances have no targets, a depth or breadth is below 1, or the starts of an instance are all the same.
    """
    _check_sizes(depth, breadth, "scaling")
    if instance.targets is None:
        raise ValueError("`scaling` got instances without targets. Accuracy needs the right answers. Load puzzles that have them.")
    f = strobe(reasoner.bind(instance), every).take(repeat_rows(len(instance), max(breadth)))
    z = reasoner.start(f.drive, generator=generator)
    if max(breadth) > 1 and one_start(z):
        raise ValueError(
            f"`scaling` got breadth {list(breadth)} for a reasoner with one fixed start. All starts of an instance would be the same. "
            "Use breadth=[1], or random starts: `attempt` and `scaling_grid`."
        )
    with torch.no_grad():
        halts = "halt" in f.take([0]).readout({name: leaf[:1] for name, leaf in z.items()})
    runs = attempt(
        f, z, ticks=max(depth), read=depth, slots=slots_for(z), halting=PUBLISHED if halts else None, hold=None, targets=instance.targets, verify=verify
    )
    return _grid(runs, depth, breadth, select, level, cluster, caller="scaling")


def one_start(z: State) -> bool:
    """Whether the first two rows, starts of one instance, are the same, as those of a model with a fixed start are."""
    return all(bool((leaf[0] == leaf[1]).all()) for leaf in z.values())


def scaling_of(
    traj: Trajectory,
    targets: Int[Tensor, "instance site"],
    *,
    depth: Sequence[int],
    breadth: Sequence[int],
    select: Sequence[Select],
    level: float = 0.95,
    cluster: Int[Tensor, " instance"] | None = None,
) -> ScalingGrid:
    """The same from a recorded, rectangular run (as many starts for each instance).

    Raises:
        ValueError: If the run does not reach the depth or breadth asked for, or is not rectangular.
    """
    _check_sizes(depth, breadth, "scaling_of")
    if not max(depth) < len(traj.ticks):
        raise ValueError(
            f"`scaling_of` got depth {list(depth)} for a run of {len(traj.ticks) - 1} ticks. Depth ends with the run. Ask for less, or record more."
        )
    return _grid(_attempts_of(traj, targets, sorted(set(depth))), depth, breadth, select, level, cluster, caller="scaling_of")


def scaling_grid(
    runs: Attempts,
    *,
    depth: Sequence[int],
    breadth: Sequence[int],
    select: Sequence[Select],
    level: float,
    cluster: Int[Tensor, " instance"] | None,
) -> ScalingGrid:
    """The same from attempts that were read at every depth asked for.

    Intervals redraw whole clusters of instances; where that says nothing (fewer than ten clusters, or all of them alike) they are Wilson's, with one cluster as the unit.
    Of `halted` or `elastic` runs `map_calls` are the ticks that the starts took, on average over the instances.

    Args:
        runs: As many starts for each instance, with targets.
        depth: Ticks per start.
        breadth: Starts per instance.
        select: Ways to choose one start.
        level: Coverage of the intervals.
        cluster: Instances, in the order of their numbers, that are not independent share a number; None where each stands alone.

    Raises:
        ValueError: If the runs were not read at a depth, have fewer starts than a breadth, have no targets, or are not rectangular.
    """
    return _grid(runs, depth, breadth, select, level, cluster, caller="scaling_grid")


def _grid(
    runs: Attempts, depth: Sequence[int], breadth: Sequence[int], select: Sequence[Select], level: float, cluster: Int[Tensor, " instance"] | None, *, caller: str
) -> ScalingGrid:
    """The grid; errors are those of `caller`."""
    _check_sizes(depth, breadth, caller)
    depth, breadth = sorted(set(depth)), sorted(set(breadth))
    if runs.solved is None:
        raise ValueError(f"`{caller}` got runs without targets. Accuracy needs the right answers. Run `attempt` with targets=....")
    unread = sorted(set(depth) - set(runs.read.tolist()))
    if unread:
        raise ValueError(f"`{caller}` got depth {unread[0]} for runs read at {runs.read.tolist()}. What lies between was not kept. Read the depths: attempt(..., read=depth).")
    kinds, counts = torch.unique(runs.instance, return_counts=True)
    if bool((counts != counts[0]).any()):
        raise ValueError(
            f"`{caller}` got between {int(counts.min())} and {int(counts.max())} starts an instance. A grid needs as many for every one. "
            "Make the rows by f.take(repeat_rows(instances, starts))."
        )
    n, starts = len(kinds), int(counts[0])
    if max(breadth) > starts:
        raise ValueError(f"`{caller}` got breadth {list(breadth)} for a run of {starts} starts. Breadth ends with the starts. Ask for less, or follow more.")
    if cluster is not None and len(cluster) != n:
        raise ValueError(f"`{caller}` got {len(cluster)} clusters for {n} instances. Each instance belongs to one. Pass one number for each instance, in order.")
    solved, residual, last = (runs.by_instance(name) for name in ("solved", "residual", "last_tick"))
    more = {name: runs.by_instance(name) for name in ("answer", "halt", "logit_change", "valid", "halt_tick") if vars(runs)[name] is not None}
    names = ("mean", *[_name(one, caller) for one in select], "any")
    cells: list[Tensor] = []
    spreads: list[Tensor] = []
    chosen, calls = torch.zeros(len(depth), len(breadth), len(names), dtype=torch.float64), torch.zeros(len(depth), len(breadth), dtype=torch.float64)
    places = {tick: k for k, tick in enumerate(runs.read.tolist())}
    for i, d in enumerate(depth):
        k = places[d]
        for j, b in enumerate(breadth):
            c = Candidates(
                residual=residual[k, :, :b],
                answer=more["answer"][k, :, :b],
                **{name: more[name][k, :, :b] if name in more else None for name in ("halt", "logit_change", "valid")},
                halt_tick=torch.where(more["halt_tick"] <= d, more["halt_tick"], -1)[:, :b] if runs.policy else None,
            )
            right, r = solved[k, :, :b].double(), c.residual.double()
            picks = [one(c)[:, None] for one in select]
            cells += [right.mean(1), *[right.gather(1, pick)[:, 0] for pick in picks], right.amax(1)]
            known = r.nan_to_num(nan=torch.inf)
            oracle = torch.where((right < 1) & (right > 0).any(1, keepdim=True), torch.inf, known).argmin(1, keepdim=True)
            chosen[i, j] = torch.stack([r.nanmean(), *[r.gather(1, pick).nanmean() for pick in (*picks, oracle)]])
            spreads.append((right.mean(1) - right[:, 0]).abs())
            calls[i, j] = last[:, :b].clamp(max=d).sum(1).double().mean()
    groups = torch.arange(n) if cluster is None else cluster
    accuracy, low, high = (part.reshape(chosen.shape) for part in cluster_shares(torch.stack(cells), groups, level=level))
    spread, spread_low, spread_high = (part.reshape(calls.shape) for part in cluster_shares(torch.stack(spreads), groups, level=level))
    return ScalingGrid(
        depth=torch.tensor(list(depth)),
        breadth=torch.tensor(list(breadth)),
        selectors=names,
        accuracy=accuracy,
        low=low,
        high=high,
        residual=chosen,
        spread=spread,
        spread_low=spread_low,
        spread_high=spread_high,
        map_calls=calls,
        instances=n,
        clusters=len(torch.unique(groups)),
        level=level,
        policy=runs.policy if runs.elastic else "",
        clock=runs.clock,
        origin=runs.origin,
    )


def _check_sizes(depth: Sequence[int], breadth: Sequence[int], caller: str) -> None:
    if not depth or not breadth or not all(isinstance(one, int) and one >= 1 for one in (*depth, *breadth)):
        raise ValueError(
            f"`{caller}` got depth {list(depth)} and breadth {list(breadth)}. Both hold whole numbers from 1. Use depth=[1, 4, 16], breadth=[1, 4]."
        )


def _attempts_of(traj: Trajectory, targets: Tensor, read: list[int]) -> Attempts:
    """A recorded run, read at a few ticks; the halting of the paper is read off all of them."""
    solved = solved_at(traj, targets)
    answer = traj.readouts["answer"].flatten(2)
    ticks = len(traj.ticks) - 1

    # Of a lost row a recording ends before the tick that `attempt` ends with, at which it was lost.
    lost = (traj.result == Result.DIVERGED.code) | (traj.result == Result.NONFINITE.code)
    end = torch.where(lost, traj.last_tick + 1, ticks)

    def windows(values: Float[Tensor, "time row"], read: Sequence[int]) -> Float[Tensor, "read row"]:
        # The residuals of the ticks before d: they are known, as displacements, when tick d is reached.
        means = torch.stack([values[max(0, d - WINDOW) : d].mean(0) for d in read])
        return torch.where(lost & (torch.tensor(list(read))[:, None] >= end), torch.nan, means)

    halt, change = traj.readouts.get("halt"), traj.readouts.get("logit_change")
    goes = torch.zeros_like(solved[1:]) if halt is None else halt[1:] > PUBLISHED.above
    halt_tick = torch.where(goes.any(0), goes.int().argmax(0) + 1, -1)
    at = torch.where(halt_tick < 0, ticks, halt_tick)
    row = torch.arange(len(at))
    after = solved[1:]
    seen: dict[str, Any] = {
        "answer": torch.stack([fingerprint(answer[d]) for d in read]),
        "solved": solved[read],
        "residual": windows(traj.residual, read),
        "logit_change": None if change is None else windows(change[1:], read),
        "halt": None if halt is None else halt[read].double(),
    }
    means = {"residual": traj.residual} | ({} if change is None else {"logit_change": change[1:]})
    each = {name: windows(values, range(1, ticks + 1)) for name, values in means.items()}
    whole = {"solved": after, "halt": None if halt is None else halt[1:], **each}
    unsolved = len(after) - after.flip(0).int().cumprod(0).sum(0)
    return Attempts(
        read=torch.tensor(read),
        **seen,
        valid=None,
        at_halt={"answer": fingerprint(answer[at, row])} | {name: values[at - 1, row] for name, values in whole.items() if values is not None},
        halt_tick=halt_tick,
        first_solved=torch.where(after.any(0), after.int().argmax(0) + 1, -1),
        stays_solved=torch.where(after[-1], unsolved + 1, -1),
        final=answer[-1],
        final_at_halt=answer[at, row],
        last_tick=end,
        computed=torch.where(lost, end, traj.last_tick.clamp(max=ticks)),
        result=torch.where(traj.result == Result.CONVERGED.code, Result.COMPLETED.code, traj.result),
        instance=traj.instance,
        start=traj.start,
        ticks=ticks,
        elastic=False,
        policy="" if halt is None else str(PUBLISHED),
        held="",
        clock=traj.clock,
        origin=traj.origin,
    )


def _name(select: Select, caller: str) -> str:
    check_strategy(select, "select", caller, example="(by_residual, by_vote)")
    return getattr(select, "__name__", str(select)).removeprefix("by_")
