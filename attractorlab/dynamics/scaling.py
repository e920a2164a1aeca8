"""scaling: what depth (ticks) and breadth (starts) buy, under several ways to select one answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab.dynamics.basins import label_answers
from attractorlab.dynamics.convergence import solved_at
from attractorlab.dynamics.recorder import only_last, trace
from attractorlab.maps import LatentMap, repeat_rows, strobe
from attractorlab.statistics import wilson
from attractorlab.types import Drive, Instance, ScalingGrid, State, Trajectory

WINDOW = 3  # last residuals that a selection by residual averages, as in the paper


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a selector may look at: the starts of each instance at one tick. Never the targets."""

    residual: Float[Tensor, "instance start"]
    answer: Int[Tensor, "instance start"]
    halt: Float[Tensor, "instance start"] | None


Select = Callable[[Candidates], Int[Tensor, " instance"]]
"""Chooses one start per instance."""


def by_residual(c: Candidates) -> Int[Tensor, " instance"]:
    """The start with the lowest mean residual over the last three ticks ("Top-1 converged", arXiv 2605.21488, D.3)."""
    return c.residual.nan_to_num(nan=torch.inf).argmin(1)


def by_vote(c: Candidates) -> Int[Tensor, " instance"]:
    """A start with the most frequent whole answer; of equally frequent ones, that of the lowest start number."""
    votes = (c.answer[:, :, None] == c.answer[:, None, :]).sum(2)
    return votes.argmax(1)


def by_halt(c: Candidates) -> Int[Tensor, " instance"]:
    """The start with the highest halting logit.

    Raises:
        ValueError: If the map reads out no halting logit.
    """
    if c.halt is None:
        raise ValueError("`by_halt` got a run without a readout `halt`. It needs a halting logit per start. Use by_residual or by_vote.")
    return c.halt.nan_to_num(nan=-torch.inf).argmax(1)


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
) -> ScalingGrid:
    """Accuracy and residual over depth x breadth, from one run of the largest depth and breadth.

    Smaller breadths are the first starts of the larger ones, smaller depths their earlier ticks.

    Args:
        reasoner: Binds and starts.
        instance: The instances, with targets.
        depth: Ticks per start.
        breadth: Starts per instance.
        select: Ways to choose one start: `by_residual`, `by_vote`, `by_halt`.
        generator: Draws the starts.
        every: Model ticks that are one tick here, as in `strobe`; H_cycles makes it a segment.
        level: Coverage of the intervals.

    Returns:
        Columns `mean` (a start picked blindly), the selectors by name, and `any` (an oracle picks: the ceiling).

    Raises:
        ValueError: If the instances have no targets, or a depth or breadth is below 1.
    """
    _check_sizes(depth, breadth)
    if instance.targets is None:
        raise ValueError("`scaling` got instances without targets. Accuracy needs the right answers. Load puzzles that have them.")
    f = strobe(reasoner.bind(instance), every).take(repeat_rows(len(instance), max(breadth)))
    traj = trace(f, reasoner.start(f.drive, generator=generator), ticks=max(depth), keep=only_last())
    return scaling_of(traj, instance.targets, depth=depth, breadth=breadth, select=select, level=level)


def scaling_of(
    traj: Trajectory,
    targets: Int[Tensor, "instance site"],
    *,
    depth: Sequence[int],
    breadth: Sequence[int],
    select: Sequence[Select],
    level: float = 0.95,
) -> ScalingGrid:
    """The same from a recorded, rectangular run (as many starts for each instance).

    Intervals are Wilson's, with one instance as the unit. The column `mean` averages over starts first, so that its interval is conservative.

    Raises:
        ValueError: If the run does not reach the depth or breadth asked for, or is not rectangular.
    """
    _check_sizes(depth, breadth)
    if not max(depth) < len(traj.ticks):
        raise ValueError(
            f"`scaling_of` got depth {list(depth)} for a run of {len(traj.ticks) - 1} ticks. Depth ends with the run. Ask for less, or record more."
        )
    solved, residual, answer, halt = _tables(traj, targets, depth)
    n, starts = solved.shape[1:]
    if max(breadth) > starts:
        raise ValueError(
            f"`scaling_of` got breadth {list(breadth)} for a run of {starts} starts. Breadth ends with the starts. Ask for less, or record more."
        )
    names = ("mean", *[_name(one) for one in select], "any")
    accuracy = torch.zeros(len(depth), len(breadth), len(names), dtype=torch.float64)
    chosen_residual, spread = torch.zeros_like(accuracy), torch.zeros(len(depth), len(breadth), dtype=torch.float64)
    for i, d in enumerate(depth):
        # The residuals of the ticks before d: they are known, as displacements, when tick d is reached.
        settled = residual[max(0, d - WINDOW) : d].mean(0)
        for j, b in enumerate(breadth):
            c = Candidates(settled[:, :b], answer[i, :, :b], None if halt is None else halt[d, :, :b])
            right = solved[d, :, :b].double()
            accuracy[i, j, 0], chosen_residual[i, j, 0] = right.mean(), c.residual.mean()
            for k, one in enumerate(select, start=1):
                pick = one(c)[:, None]
                accuracy[i, j, k], chosen_residual[i, j, k] = right.gather(1, pick).mean(), c.residual.gather(1, pick).mean()
            accuracy[i, j, -1], chosen_residual[i, j, -1] = right.amax(1).mean(), c.residual.nan_to_num(nan=torch.inf).amin(1).mean()
            spread[i, j] = (right.mean(1) - right[:, 0]).abs().mean()
    low, high = wilson(accuracy * n, torch.tensor(n), level=level)
    return ScalingGrid(
        depth=torch.tensor(list(depth)),
        breadth=torch.tensor(list(breadth)),
        selectors=names,
        accuracy=accuracy,
        low=low,
        high=high,
        residual=chosen_residual,
        spread=spread,
        map_calls=torch.tensor(list(depth))[:, None] * torch.tensor(list(breadth))[None],
        instances=n,
        level=level,
        clock=traj.clock,
        origin=traj.origin,
    )


def _check_sizes(depth: Sequence[int], breadth: Sequence[int]) -> None:
    if not depth or not breadth or min([*depth, *breadth]) < 1:
        raise ValueError(
            f"`scaling` got depth {list(depth)} and breadth {list(breadth)}. Both hold numbers from 1. Use depth=[1, 4, 16], breadth=[1, 4]."
        )


def _tables(
    traj: Trajectory, targets: Tensor, depth: Sequence[int]
) -> tuple[Bool[Tensor, "time instance start"], Float[Tensor, "time instance start"], Int[Tensor, "depth instance start"], Tensor | None]:
    """Solved, residual, answer label (at the depths alone) and halting logit with the row axis split into instance and start."""
    solved = solved_at(traj, targets)
    _, index, counts = torch.unique(traj.instance, return_inverse=True, return_counts=True)
    if bool((counts != counts[0]).any()):
        raise ValueError(
            f"`scaling_of` got between {int(counts.min())} and {int(counts.max())} starts an instance. A grid needs as many for every one. "
            "Record a rectangular run."
        )
    order = torch.argsort(index * (int(traj.start.max()) + 1) + traj.start)
    shape = (len(counts), int(counts[0]))

    def table(values: Tensor) -> Tensor:
        return values[:, order].unflatten(1, shape)

    answer = traj.readouts["answer"][list(depth)].flatten(2)
    labels = label_answers(answer.flatten(0, 1)).unflatten(0, answer.shape[:2])
    halt = traj.readouts.get("halt")
    return table(solved), table(traj.residual), table(labels), None if halt is None else table(halt)


def _name(select: Select) -> str:
    return select.__name__.removeprefix("by_")
