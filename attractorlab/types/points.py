"""Where a map rests, and how it acts on small disturbances there and along an orbit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab.types.base import HasRows, Origin, Result, dims_of
from attractorlab.types.traces import around


class NotConvergedError(RuntimeError):
    """Raised by `FixedPointSet.require` when a row did not converge."""


@dataclass(frozen=True, eq=False)
class FixedPointSet:
    """One entry per start, found or not. Read `converged` before `states`.

    `residual` belongs to the returned state. `error` is the length of the Newton step from it, relative to the state: the
    distance to the true fixed point to first order (NaN if the method takes none, infinite if its equations could not be solved). `moved` is the relative distance from the start.
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
    """The leading eigenvalues of the Jacobian at each point, in the order that `order` names ("modulus": largest first), each with its error.

    `defect` is ‖Jv − λv‖/‖v‖, measured with products of its own; `condition` is 1/|w*v| for unit left and right
    vectors (infinite when they could not be paired); `error` how far the eigenvalue may be off to first order, about their product. `radius` is the largest
    modulus, or real part. `verdict` is one of stable, unstable(k), marginal, ill-conditioned;
    unstable(k+) when there may be more outside the unit circle: all the modes that were asked for are, or others are ill-conditioned.
    """

    eigenvalues: Complex[Tensor, "point mode"]
    defect: Float[Tensor, "point mode"]
    condition: Float[Tensor, "point mode"]
    error: Float[Tensor, "point mode"]
    radius: Float[Tensor, " point"]
    verdict: tuple[str, ...]
    order: str
    method: str
    products: int
    clock: str
    origin: Origin

    @property
    def named(self) -> tuple[tuple[str, ...], ...]:
        """A word for each eigenvalue that a law of the map makes exact: "zero" (a direction that a norm layer forgets), "unit" (one of a family of points, by a symmetry), or "".

        So called is one within ten of its errors of 0 or 1, and at least 1e-7, unless ten errors are more than 0.1 (at 1: 1e-3).
        """
        reach = (10 * self.error).clamp(min=1e-7)
        zero = (self.eigenvalues.abs() <= reach) & (reach <= 0.1)
        unit = ((self.eigenvalues - 1).abs() <= reach) & (reach <= 1e-3)
        codes = (zero.long() + 2 * unit.long()).tolist()
        return tuple(tuple(("", "zero", "unit")[code] for code in row) for row in codes)


@dataclass(frozen=True, eq=False)
class Floquet:
    """A tick's Jacobian as the product of its updates' Jacobians: what each update does to the leading modes, and to each leaf.

    `multipliers` are the eigenvalues of the whole tick, with their `defect` as in a `Spectrum`. `gain` is the factor by which an update stretches the tangent
    that arrives there from a mode's eigenvector: over the updates the factors multiply to |multiplier|, to within the defect. `part` is the share of the tangent's squared
    length in each leaf after the update. A mode whose multiplier is 0, to within its defect or rounding, has a tangent that vanishes, with the update that leaves no more
    of it than rounding: there its gain is 0, after that its gains are 1, and its parts are NaN. `block_gain` is the largest singular value of the update's Jacobian from
    one leaf into the leaves that it rewrites, and `block_error` how far it may be off, by the residual of its singular vectors (0 where the block was formed).
    """

    multipliers: Complex[Tensor, "point mode"]
    defect: Float[Tensor, "point mode"]
    gain: Float[Tensor, "point mode update"]
    part: Float[Tensor, "point mode update leaf"]
    block_gain: Float[Tensor, "point update leaf"]
    block_error: Float[Tensor, "point update leaf"]
    updates: tuple[str, ...]
    leaves: tuple[str, ...]
    method: str
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class NonNormality:
    """How far the Jacobian at each point can amplify what its eigenvalues say dies out.

    `sigma_max` is ‖J‖₂, the most that one tick stretches a small disturbance, with its `defect` ‖Jᵀu − σv‖. `transient_growth[k]` is ‖Jᵏ‖₂, from k = 0
    on. `numerical_radius` is the largest |v*Jv|; `kreiss` a lower bound of the Kreiss constant, max (|z| − 1)‖(zI − J)⁻¹‖ outside the unit circle: some
    disturbance grows at least so much; NaN where an eigenvalue is outside. `henrici` is √(‖J‖_F² − Σ|λ|²), 0 for a normal matrix; NaN where only a part of the spectrum is known.
    `natural_gain` is ‖Jd‖/‖d‖ for the direction d that was given, NaN if none was or it is 0. Where `bounds` holds, the numerical radius and kreiss were read off a
    Krylov space and are lower bounds; so are `sigma_max` and `transient_growth`, from at most 60 steps of Lanczos' method: within the defect of a singular value.

    `pseudospectral_radius` is the largest modulus that an eigenvalue takes when J is disturbed by as much as each of `epsilons`, in the 2-norm: the number to report in place of the radius where a
    `Spectrum` is ill-conditioned, with the defect of its eigenvalues as epsilon. It lies above the radius by epsilon for a normal J, and by far more for others. Where `pseudospectral_bound` holds it was
    read off a part of the space and is a lower bound; NaN where a Krylov space saw no point so near to an eigenvalue.
    """

    sigma_max: Float[Tensor, " point"]
    defect: Float[Tensor, " point"]
    transient_growth: Float[Tensor, "point k"]
    numerical_radius: Float[Tensor, " point"]
    kreiss: Float[Tensor, " point"]
    henrici: Float[Tensor, " point"]
    natural_gain: Float[Tensor, " point"]
    pseudospectral_radius: Float[Tensor, "point epsilon"]
    epsilons: tuple[float, ...]
    bounds: bool
    pseudospectral_bound: bool
    products: int
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class LyapunovEstimate(HasRows):
    """The leading finite-time Lyapunov exponents along each row's orbit, in nats per tick, in the order of the frame's columns.

    `growth[t]` is the logarithm of the factor by which each column grew at counted tick t; `exponents` are its means and `standard_error` comes from the means of
    √ticks batches over time (NaN below 16 ticks). Few batches know their own spread badly, so that an interval takes Student's t: `interval`. Finite-time exponents need not be in order; they
    are not sorted, which would bias them. A direction that the map forgets, or shrinks in one step beside another by more than rounding can carry (10¹³ times in float64, 10⁶ in
    float32), has −inf. A row whose orbit or tangents left the finite numbers holds NaN, and its `result` says why. `size` is how many
    numbers a state has, and so how many exponents there are.
    """

    exponents: Float[Tensor, "row mode"]
    standard_error: Float[Tensor, "row mode"]
    growth: Float[Tensor, "time row mode"]
    result: Int[Tensor, " row"]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    size: int
    transient: int
    clock: str
    origin: Origin

    @property
    def kaplan_yorke(self) -> Float[Tensor, " row"]:
        """The Kaplan-Yorke dimension: how many of the exponents, largest first, add up to zero or more, and what of the next one fits.

        A sum that is zero to within two of its standard errors or 1e-9 counts as zero: a map that keeps areas has the dimension of its space, a circle of fixed points has dimension 1. Where
        all the exponents that were computed add up to zero or more, it is the size of the state if those are all there are, and NaN if there may be more.
        """
        from attractorlab.statistics import batch_error  # brings scipy, which nouns do not need to be made

        order = self.exponents.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)
        exponents, growth = self.exponents.gather(1, order), self.growth.gather(2, order.expand_as(self.growth))
        sums = exponents.cumsum(1)
        off = (2 * batch_error(growth.cumsum(2))).nan_to_num(nan=0.0).clamp(min=1e-9)
        sums = torch.where(sums.abs() <= off, 0.0, sums)
        j = (sums < 0).int().argmax(1)  # exponents before the sum turns negative
        before = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1).gather(1, j[:, None])[:, 0]
        inside = j + before / exponents.gather(1, j[:, None])[:, 0].abs()
        beyond = torch.where(sums[:, -1].isnan() | (self.exponents.shape[1] < self.size), torch.nan, float(self.size))
        return torch.where((sums < 0).any(1), torch.where(j == 0, 0.0, inside), beyond)

    def interval(self, *, level: float) -> tuple[Float[Tensor, "row mode"], Float[Tensor, "row mode"]]:
        """Student's interval for each exponent of the orbit's attractor, from its batches over time; NaN below 16 ticks.

        It knows of what the run saw: an orbit that is still on its way, or that visits a part of its attractor rarely, has exponents outside.

        Args:
            level: Coverage, e.g. 0.95.
        """
        from attractorlab.statistics import batches_of

        return around(self.exponents, self.standard_error, batches_of(len(self.growth)) - 1, level=level)

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
