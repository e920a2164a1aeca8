"""find_periodic_orbits: orbits that come back after p ticks and no earlier; distinct_orbits: which of them are the same, at whatever phase."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.fixed_points import SAME, find_fixed_points, joined_up
from attractorlab.dynamics.newton import by_newton_krylov
from attractorlab.dynamics.searching import Solver
from attractorlab.maps import LatentMap, relative, strobe
from attractorlab.types import FixedPointSet, PeriodicOrbitSet, State

CHECK_STEPS = 10  # solver steps that may show that an orbit is one of a shorter period
ROUNDING = 100  # times the rounding of the dtype: nearer than this two states are one


def find_periodic_orbits(f: LatentMap, z: State, *, period: int, tol: float, max_steps: int, method: Solver = by_newton_krylov) -> PeriodicOrbitSet:
    """Search for an orbit of `period` ticks from each row of `z`: a fixed point of the map strobed so often that is none of a shorter one.

    Every start gets an entry. What comes back earlier, as fixed points do, is converged with its own, smaller `period` and is not `found`.

    Args:
        f: The map.
        z: The starts, one per row of `f`. An attracting orbit is found from the end of a trajectory, others from near.
        period: Ticks after which the orbit is back.
        tol: Largest relative residual of f^p that counts as back.
        max_steps: Solver steps allowed per start.
        method: How to search, as for `find_fixed_points`.

    Returns:
        One entry per row of `z`, in the same order. The multipliers of an orbit are ``spectrum(strobe(f, period), orbits.first, k=...)``. That an orbit is one of a divisor
        of `period` is decided by searching from it for a fixed point of the map strobed by the divisor: it is, if one lies within ten times the estimated errors.

    Raises:
        ValueError: If `period` is below 1, or for what `find_fixed_points` refuses.

    Example:
        >>> logistic = LatentMap(lambda z, x: {"z": 3.2 * z["z"] * (1 - z["z"])}, {})
        >>> z = {"z": torch.tensor([[0.5], [0.7]], dtype=torch.float64)}
        >>> orbits = find_periodic_orbits(logistic, z, period=2, tol=1e-12, max_steps=50)
        >>> orbits.period.tolist(), [round(x, 6) for x in sorted(orbits.states["z"][:, 0, 0].tolist())]
        ([2, 1], [0.513045, 0.799455])
    """
    if period < 1:
        raise ValueError(f"`find_periodic_orbits` got period={period}. An orbit comes back after 1 or more ticks. Use period=2.")
    points = find_fixed_points(strobe(f, period), z, method=method, tol=tol, max_steps=max_steps)
    states, largest = _go_round(f, points.states, period)
    return PeriodicOrbitSet(
        states=states,
        residual=points.residual,
        worst=largest.cpu(),
        error=points.error,
        moved=points.moved,
        period=_periods(f, points, period, method),
        result=points.result,
        steps=points.steps,
        row=points.row,
        instance=points.instance,
        start=points.start,
        asked=period,
        tol=tol,
        clock=f.clock,
        origin=f.origin,
    )


@torch.no_grad()
def _go_round(f: LatentMap, z: State, period: int) -> tuple[State, Float[Tensor, " row"]]:
    """The states of one turn from `z`, and the largest residual after a second one."""
    first = [z]
    for _ in range(period - 1):
        first.append(f(first[-1]))
    largest, late = torch.zeros_like(trees.norm(z)), first[-1]
    for state in first:
        late = f(late)
        # A NaN stays: torch's maximum hands it on.
        largest = torch.maximum(largest, relative(trees.distance(late, state), state))
    return {name: torch.stack([one[name] for one in first]) for name in z}, largest


def _periods(f: LatentMap, points: FixedPointSet, period: int, method: Solver) -> Int[Tensor, " point"]:
    """The smallest divisor of `period` after which each point is back; 0 for those that did not converge."""
    found = torch.where(points.converged, period, 0)
    rounding = ROUNDING * torch.finfo(points.residual.dtype).eps
    for divisor in (m for m in range(1, period) if period % m == 0):
        rows = (found == period).nonzero().squeeze(1)
        near = find_fixed_points(strobe(f.take(rows), divisor), trees.take(points.states, rows), method=method, tol=points.tol, max_steps=CHECK_STEPS)
        found[rows[near.converged & (near.moved <= 10 * (_error(points[rows]) + _error(near)) + rounding)]] = divisor
    return found


def _error(points: FixedPointSet) -> Float[Tensor, " point"]:
    """The estimated errors; where the method estimates none, or none could be had, the residual stands for it."""
    return torch.where(points.error.isfinite(), points.error, points.residual)


class DistinctOrbits(NamedTuple):
    """The orbits that differ, and which of them each is."""

    orbits: PeriodicOrbitSet
    labels: Int[Tensor, " point"]
    counts: Int[Tensor, " distinct"]


def distinct_orbits(orbits: PeriodicOrbitSet, *, tol: float | None = None) -> DistinctOrbits:
    """One representative for each group of `found` orbits that are the same up to the phase, instance by instance.

    Args:
        orbits: What `find_periodic_orbits` found.
        tol: Distance relative to the norm of the state. By default the larger of 1e-6 and ten times the estimated errors.

    Returns:
        `orbits`: the member of smallest residual of each group, by instance, the group with most members first. `labels`: for each orbit given its number among them, −1
        if it is not of the period asked for. `counts`: the members of each group.

    Raises:
        ValueError: If `tol` is left out and the method that found the orbits estimated no errors.

    Example:
        >>> logistic = LatentMap(lambda z, x: {"z": 3.2 * z["z"] * (1 - z["z"])}, {})
        >>> z = {"z": torch.tensor([[0.5], [0.8], [0.7]], dtype=torch.float64)}
        >>> distinct_orbits(find_periodic_orbits(logistic, z, period=2, tol=1e-12, max_steps=50)).labels.tolist()
        [0, 0, -1]
    """
    good = orbits.found
    reach = 10 * orbits.error if tol is None else torch.full_like(orbits.error, tol)
    reach = torch.where(reach.isinf(), 0, reach)
    if bool(reach[good].isnan().any()):
        raise ValueError(
            f"`distinct_orbits` got {int(reach[good].isnan().sum())} orbits without an error estimate. Without one it cannot tell which orbits are the same. "
            "Give `tol`, or find the orbits by `by_newton_krylov`."
        )
    labels = torch.full((len(orbits),), -1)
    chosen: list[int] = []
    counts: list[int] = []
    for instance in torch.unique(orbits.instance[good]).tolist():
        members = (good & (orbits.instance == instance)).nonzero().squeeze(1)
        turns = [trees.flatten({name: leaf[k, members] for name, leaf in orbits.states.items()}) for k in range(orbits.asked)]
        group = joined_up(turns, reach[members], floor=SAME if tol is None else 0.0)
        sizes = torch.bincount(group)
        for number in torch.argsort(sizes, descending=True, stable=True).tolist():
            inside = members[group == number]
            labels[inside] = len(chosen)
            chosen.append(int(inside[orbits.residual[inside].argmin()]))
            counts.append(len(inside))
    return DistinctOrbits(orbits[torch.tensor(chosen, dtype=torch.int64)], labels, torch.tensor(counts, dtype=torch.int64))
