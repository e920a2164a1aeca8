"""The nouns: frozen, complete records that every function takes and returns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int, Shaped
from torch import Tensor

State = Mapping[str, Tensor]
"""A latent state: named leaves, batch first, e.g. ``{"z_H": [row site width]}``."""
Drive = Mapping[str, Tensor]
"""What the instances contribute to every tick, batch first. Empty for an undriven map."""


class Result(Enum):
    """How one row ended. The value is the sentence that an error would print."""

    CONVERGED = "The residual fell below the tolerance."
    MAX_STEPS = "The allowed number of steps was used up before the residual fell below the tolerance."
    DIVERGED = "The state grew without bound."
    NONFINITE = "The map returned a NaN or an infinity."
    COMPLETED = "The row was followed for as many ticks as asked."

    @property
    def code(self) -> int:
        """The number that stands for this result in a tensor."""
        return list(Result).index(self)

    @classmethod
    def of(cls, code: int) -> "Result":
        """The result that `code` stands for."""
        return list(cls)[code]


@dataclass(frozen=True)
class Origin:
    """Where a number came from. Attached by the function that made the noun."""

    model: str = "unnamed"
    weights: str = ""
    dtype: str = ""
    device: str = ""
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()


def dims_of(noun: type) -> dict[str, tuple[str, ...]]:
    """The dimension names of each tensor field of a noun class, read from its annotations.

    Example:
        >>> dims_of(Convergence)["residual"]
        ('time', 'row')
    """
    found: dict[str, tuple[str, ...]] = {}
    for one in fields(noun):
        match = re.search(r"\[[\w.]*Tensor, ['\"]([^'\"]*)['\"]\]", _spelled(one.type))
        if match:
            found[one.name] = tuple(match.group(1).split())
    return found


def _spelled(annotation: Any) -> str:
    if hasattr(annotation, "dim_str"):  # a jaxtyping class
        return f"[Tensor, '{annotation.dim_str.strip()}']"
    parts = getattr(annotation, "__args__", ())
    return " ".join(_spelled(part) for part in parts) if parts else str(annotation)


class _HasRows:
    """What every noun with a `row` dimension can do."""

    instance: Tensor
    start: Tensor

    def by_instance(self, name: str) -> Tensor:
        """Field `name` with its `row` axis split into `instance, start`.

        Raises:
            ValueError: If the run is not rectangular (as many starts for each instance).
        """
        values: Tensor = getattr(self, name)
        axis = dims_of(type(self))[name].index("row")
        order = torch.argsort(self.instance * (int(self.start.max()) + 1) + self.start)
        kinds, counts = torch.unique(self.instance, return_counts=True)
        if bool((counts != counts[0]).any()):
            raise ValueError(
                f"`by_instance` got between {int(counts.min())} and {int(counts.max())} starts an instance. "
                "A table needs as many starts for every instance. "
                "Use the `instance` coordinate to group the rows yourself."
            )
        moved = values.index_select(axis, order)
        return moved.unflatten(axis, (len(kinds), int(counts[0])))


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
class Trajectory(_HasRows):
    """What `trace` recorded. Scalars and readouts at every tick, states at the `kept` ones (always the last).

    `residual[t]` belongs to the state at tick t: ‖f(z_t) − z_t‖/‖z_t‖, before any kick.
    `recurrence[p-1]` is ‖z_T − z_{T−p}‖/‖z_T‖ at the last tick T. `last_tick` is the last tick at which the
    row was followed, finite and bounded. After it the values of a row that DIVERGED or turned NONFINITE are NaN, or −1 for integers, and those of a
    CONVERGED row, which was at rest, are the last ones recorded. `ticks` counts applications since the start.
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

    @property
    def last(self) -> State:
        """The state of every row at the last tick."""
        return {name: leaf[-1] for name, leaf in self.states.items()}


@dataclass(frozen=True, eq=False)
class Convergence(_HasRows):
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


class NotConvergedError(RuntimeError):
    """Raised by `FixedPointSet.require` when a row did not converge."""


@dataclass(frozen=True, eq=False)
class FixedPointSet:
    """One entry per start, found or not. Read `converged` before `states`.

    `residual` belongs to the returned state. `error` is the length of the Newton step from it, relative to the state: the
    distance to the true fixed point to first order (NaN if the method takes none). `moved` is the relative distance from the start.
    """

    states: Mapping[str, Float[Tensor, "point ..."]]
    residual: Float[Tensor, " point"]
    error: Float[Tensor, " point"]
    moved: Float[Tensor, " point"]
    result: Int[Tensor, " point"]
    steps: Int[Tensor, " point"]
    row: Int[Tensor, " point"]
    instance: Int[Tensor, " point"]
    start: Int[Tensor, " point"]
    tol: float
    clock: str
    origin: Origin

    def __len__(self) -> int:
        return self.residual.shape[0]

    def __getitem__(self, points: slice | Tensor) -> "FixedPointSet":
        """The points chosen by a slice, or an index or mask tensor."""
        chosen = {name: getattr(self, name)[points] for name in dims_of(type(self)) if name != "states"}
        return replace(self, states={name: leaf[points] for name, leaf in self.states.items()}, **chosen)

    @property
    def converged(self) -> Bool[Tensor, " point"]:
        """Which points are fixed to within `tol`."""
        return self.result == Result.CONVERGED.code

    def require(self) -> "FixedPointSet":
        """This set, if every point converged.

        Raises:
            NotConvergedError: Otherwise, with the counts per result.
        """
        if bool(self.converged.all()):
            return self
        counts = {Result.of(code).name: int((self.result == code).sum()) for code in sorted(set(self.result.tolist()))}
        raise NotConvergedError(
            f"`require` found {counts} among {len(self)} points. Only converged points are fixed points. "
            "Raise `max_steps`, loosen `tol`, or keep `points[points.converged]`."
        )


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The leading eigenvalues of the Jacobian at each point, largest modulus first, each with its error.

    `defect` is ‖Jv − λv‖/‖v‖, measured with products of its own; `condition` is 1/|w*v| for unit left and right
    vectors (infinite when they could not be paired). `verdict` is one of stable, unstable(k), marginal, ill-conditioned;
    unstable(k+) when all the modes that were asked for lie outside the unit circle, so that there may be more.
    """

    eigenvalues: Complex[Tensor, "point mode"]
    defect: Float[Tensor, "point mode"]
    condition: Float[Tensor, "point mode"]
    radius: Float[Tensor, " point"]
    verdict: tuple[str, ...]
    method: str
    products: int
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class NonNormality:
    """How far the Jacobian at each point can amplify what its eigenvalues say dies out.

    `sigma_max` is ‖J‖₂, the most that one tick stretches a small disturbance, with its `defect` ‖Jᵀu − σv‖. `transient_growth[k]` is ‖Jᵏ‖₂, from k = 0
    on. `numerical_radius` is the largest |v*Jv|; `kreiss` a lower bound of the Kreiss constant, max (|z| − 1)‖(zI − J)⁻¹‖ outside the unit circle: some
    disturbance grows at least so much. `henrici` is √(‖J‖_F² − Σ|λ|²), 0 for a normal matrix; NaN where only a part of the spectrum is known.
    `natural_gain` is ‖Jd‖ for the direction d that was given, NaN if none was. Where `bounds` holds, the numerical radius and kreiss were read off a
    Krylov space and are lower bounds.
    """

    sigma_max: Float[Tensor, " point"]
    defect: Float[Tensor, " point"]
    transient_growth: Float[Tensor, "point k"]
    numerical_radius: Float[Tensor, " point"]
    kreiss: Float[Tensor, " point"]
    henrici: Float[Tensor, " point"]
    natural_gain: Float[Tensor, " point"]
    bounds: bool
    products: int
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class LyapunovEstimate(_HasRows):
    """The leading finite-time Lyapunov exponents along each row's orbit, in nats per tick, in the order of the frame's columns.

    `growth[t]` is the logarithm of the factor by which each column grew at counted tick t; `exponents` are its means and `standard_error` comes from batch
    means over time (NaN below 4 ticks). Finite-time exponents need not be in order; they are not sorted, which would bias them. A row whose orbit
    or tangents left the finite numbers holds NaN, and its `result` says why.
    """

    exponents: Float[Tensor, "row mode"]
    standard_error: Float[Tensor, "row mode"]
    growth: Float[Tensor, "time row mode"]
    result: Int[Tensor, " row"]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    transient: int
    clock: str
    origin: Origin

    @property
    def kaplan_yorke(self) -> Float[Tensor, " row"]:
        """The Kaplan-Yorke dimension; NaN where the exponents computed never add up to less than zero."""
        sums = self.exponents.cumsum(1)
        below = sums < 0
        j = below.int().argmax(1)  # exponents before the sum turns negative
        before = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1).gather(1, j[:, None])[:, 0]
        inside = j + before / self.exponents.gather(1, j[:, None])[:, 0].abs()
        return torch.where(below.any(1), torch.where(j == 0, 0.0, inside), torch.nan)

    def windows(self, ticks: int) -> Float[Tensor, "window row mode"]:
        """The exponents over windows of `ticks` ticks, one after the other; ticks left over at the end are not used.

        Raises:
            ValueError: If there is no whole window.
        """
        count = len(self.growth) // max(1, ticks)
        if ticks < 1 or count < 1:
            raise ValueError(
                f"`windows` got windows of {ticks} ticks for {len(self.growth)} counted ones. A window is 1 or more ticks and fits into the run. "
                f"Use 1 to {len(self.growth)}."
            )
        return self.growth[: count * ticks].unflatten(0, (count, ticks)).mean(1)

    def covariance(self, ticks: int) -> Float[Tensor, "row mode mode"]:
        """The covariance of the exponents over windows of `ticks` ticks; NaN where there are fewer than two windows."""
        x = self.windows(ticks)
        centred = x - x.mean(0)
        return torch.einsum("wri,wrj->rij", centred, centred) / (len(x) - 1 if len(x) > 1 else torch.nan)


@dataclass(frozen=True, eq=False)
class BasinEstimate(_HasRows):
    """Which attractor each start reaches, and the share of starts per attractor with its interval.

    Labels count from 0 within each instance, largest share first; −1 is undecided. Entry a of the attractor
    table is label `label[a]` of instance `of_instance[a]`, seen `count[a]` times among that instance's
    starts; `example[a]` is one of its rows. Shares are of all starts, undecided ones included; `share_if` bounds
    them with every undecided start counted against and for. `missing_mass` is Good and Turing's estimate of
    the share of starts in attractors not seen. `undecided`, `missing_mass` and `starts` are per entry of `instances`.
    """

    labels: Int[Tensor, " row"]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    label: Int[Tensor, " attractor"]
    of_instance: Int[Tensor, " attractor"]
    count: Int[Tensor, " attractor"]
    share: Float[Tensor, " attractor"]
    low: Float[Tensor, " attractor"]
    high: Float[Tensor, " attractor"]
    share_if: Float[Tensor, "attractor bound"]
    example: Int[Tensor, " attractor"]
    instances: Int[Tensor, " instance"]
    starts: Int[Tensor, " instance"]
    undecided: Float[Tensor, " instance"]
    missing_mass: Float[Tensor, " instance"]
    effective_n: float
    level: float
    sampler: str
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class BasinSlice:
    """A plane through state space, each pixel a start: which attractor it reaches, and in how many ticks.

    Pixel (i, j) starts at ``center + y[i] * axes[1] + x[j] * axes[0]``. Labels count from 0, −1 is undecided.
    """

    labels: Int[Tensor, "y x"]
    ticks: Int[Tensor, "y x"]
    residual: Float[Tensor, "y x"]
    x: Float[Tensor, " x"]
    y: Float[Tensor, " y"]
    center: State
    axes: State
    tol: float
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class ScalingGrid:
    """Accuracy and residual over depth (ticks) x breadth (starts) x selector, with intervals over instances.

    `map_calls` is what one instance costs: depth x breadth. `spread` is the path dependence of the paper,
    mean over instances of |accuracy over B starts − accuracy of the first|.
    """

    depth: Int[Tensor, " depth"]
    breadth: Int[Tensor, " breadth"]
    selectors: tuple[str, ...]
    accuracy: Float[Tensor, "depth breadth selector"]
    low: Float[Tensor, "depth breadth selector"]
    high: Float[Tensor, "depth breadth selector"]
    residual: Float[Tensor, "depth breadth selector"]
    spread: Float[Tensor, "depth breadth"]
    map_calls: Int[Tensor, "depth breadth"]
    instances: int
    level: float
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


@dataclass(frozen=True)
class Finding:
    """One number of a report: what is claimed, how sure, from how many, and where it can be recomputed."""

    claim: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    source: str


@dataclass(frozen=True, eq=False)
class Report:
    """What `report` wrote: its findings, its figures by name, and the folder."""

    findings: tuple[Finding, ...]
    figures: Mapping[str, Any]
    folder: str
