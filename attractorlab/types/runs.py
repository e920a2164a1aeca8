"""What is asked, what happened, and what was read off it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attractorlab.types.base import HasRows, Origin, State


@dataclass(frozen=True, eq=False)
class Instance:
    """A batch of task instances: what is asked, and the answer where it is known.

    `inputs` and `targets` are token ids in the task's vocabulary; `difficulty` is in the task's own unit.
    """

    inputs: Int[Tensor, "row site"]
    targets: Int[Tensor, "row site"] | None
    ids: tuple[str, ...]
    task: str
    difficulty: Float[Tensor, " row"] | None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Instance":
        """The instances chosen by a slice, a list of numbers, or an index or mask tensor."""
        chosen = torch.arange(len(self))[rows if isinstance(rows, (slice, Tensor)) else list(rows)]
        return Instance(
            inputs=self.inputs[chosen],
            targets=None if self.targets is None else self.targets[chosen],
            ids=tuple(self.ids[i] for i in chosen.tolist()),
            task=self.task,
            difficulty=None if self.difficulty is None else self.difficulty[chosen],
        )


@dataclass(frozen=True, eq=False)
class Trajectory(HasRows):
    """What `trace` recorded. Scalars and readouts at every tick, states at the `kept` ones (always the last).

    `residual[t]` belongs to the state at tick t: ‖f(z_t) − z_t‖/‖z_t‖, before any kick.
    `recurrence[p-1]` is ‖z_T − z_{T−p}‖/‖z_T‖ at the last tick T. `last_tick` is the last tick at which the
    row was followed, finite and bounded. After it the values of a row that DIVERGED or turned NONFINITE are NaN, or −1 for integers, and those of a
    CONVERGED row, which was at rest, are the last ones recorded. `ticks` counts applications since the start.

    `taps[name]` is what passed through a tapped point inside the application that starts from the state at each kept tick; entry c along `call` was seen
    in the update `calls[name][c]` ("" where the map has no updates). `edits` says what was changed in the run, where and when, and
    `continuation` how it went on from there ("none" for a run without edits).
    """

    states: Mapping[str, Float[Tensor, "kept row ..."]]
    kept: Int[Tensor, " kept"]
    ticks: Int[Tensor, " time"]
    residual: Float[Tensor, "time row"]
    recurrence: Float[Tensor, "lag row"]
    readouts: Mapping[str, Shaped[Tensor, "time row ..."]]
    last_tick: Int[Tensor, " row"]
    result: Int[Tensor, " row"]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    clock: str
    origin: Origin
    taps: Mapping[str, Shaped[Tensor, "kept call row ..."]] = field(default_factory=dict)
    calls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edits: tuple[str, ...] = ()
    continuation: str = "none"

    @property
    def last(self) -> State:
        """The state of every row at the last tick."""
        return {name: leaf[-1] for name, leaf in self.states.items()}


@dataclass(frozen=True, eq=False)
class Convergence(HasRows):
    """Whether, when and how fast each row settles; and whether and when it is solved.

    A tick of −1 means never; a NaN rate, that fewer than three residuals lay between the first and the floor.
    `period` is 1 for settled, p for periodic, 0 otherwise. `verdict` is one of settled, approaching,
    periodic(p), wandering, diverged, each as of the last tick: a wandering row may settle later. The three fields on solving are None when no targets were given.
    """

    ticks: Int[Tensor, " time"]
    residual: Float[Tensor, "time row"]
    rate: Float[Tensor, " row"]
    settle_tick: Int[Tensor, " row"]
    solved: Bool[Tensor, "time row"] | None
    first_solved: Int[Tensor, " row"] | None
    stays_solved: Int[Tensor, " row"] | None
    period: Int[Tensor, " row"]
    verdict: tuple[str, ...]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    tol: float
    clock: str
    origin: Origin

    @property
    def settled(self) -> Bool[Tensor, " row"]:
        """Which rows ended at rest."""
        return self.period == 1


@dataclass(frozen=True, eq=False)
class ScalingGrid:
    """Accuracy and residual over depth (ticks) x breadth (starts) x selector, with intervals over clusters of instances.

    `residual` is that of the start chosen, on average over the instances where it has one, not being lost; the oracle of `any` takes of the right starts the one of lowest residual, and where none is right of all.
    `map_calls` is what one instance costs in ticks of the clock: depth x breadth, or, where rows left by the halting `policy`, what they took on average ("" for no policy);
    a start that was lost costs the ticks up to its loss.
    `spread` is the path dependence of the paper, mean over instances of |accuracy over B starts − accuracy of the first|. Of `instances`, those that share a cluster are
    not independent: `clusters` is the number that the intervals rest on.
    """

    depth: Int[Tensor, " depth"]
    breadth: Int[Tensor, " breadth"]
    selectors: tuple[str, ...]
    accuracy: Float[Tensor, "depth breadth selector"]
    low: Float[Tensor, "depth breadth selector"]
    high: Float[Tensor, "depth breadth selector"]
    residual: Float[Tensor, "depth breadth selector"]
    spread: Float[Tensor, "depth breadth"]
    spread_low: Float[Tensor, "depth breadth"]
    spread_high: Float[Tensor, "depth breadth"]
    map_calls: Float[Tensor, "depth breadth"]
    instances: int
    clusters: int
    level: float
    policy: str
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class Projection:
    """Points of a trajectory in the plane, with scores of how far to believe it. A picture, never evidence.

    `faithfulness` holds trustworthiness and continuity (0 to 1) with the neighbourhood size that they were read at, and
    for a linear method the share of variance of each axis.
    """

    coordinates: Float[Tensor, "point axis"]
    tick: Int[Tensor, " point"]
    row: Int[Tensor, " point"]
    faithfulness: Mapping[str, float]
    method: str
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class ProbeFit:
    """Held-out score of a linear probe at each tick, beside the same probe on a control task.

    `selectivity` is score minus control. Intervals are over the instances of the held-out part; `held_out` are their numbers and
    `by_held_out` the score on each, for comparisons puzzle by puzzle.
    """

    ticks: Int[Tensor, " time"]
    score: Float[Tensor, " time"]
    low: Float[Tensor, " time"]
    high: Float[Tensor, " time"]
    control: Float[Tensor, " time"]
    selectivity: Float[Tensor, " time"]
    held_out: Int[Tensor, " held"]
    by_held_out: Float[Tensor, "time held"]
    train_instances: int
    level: float
    target: str
    clock: str
    origin: Origin
