"""find_fixed_points: polish starts to points that the map leaves where they are; distinct: which of them are the same."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_at, check_strategy
from attractorlab.dynamics.krylov import dtype_of
from attractorlab.dynamics.newton import by_newton_krylov
from attractorlab.dynamics.orbits import check_tol
from attractorlab.dynamics.quasi_newton import by_anderson, by_broyden
from attractorlab.dynamics.searching import Found, Search, Solver, run_in_chunks
from attractorlab.maps import LatentMap, relative, yardstick
from attractorlab.types import FixedPointSet, State

SAME = 1e-6  # of the norm: points nearer than this are one, however small their error


def find_fixed_points(f: LatentMap, z: State, *, method: Solver = by_newton_krylov, tol: float, max_steps: int) -> FixedPointSet:
    """Search for a fixed point of `f` from each row of `z`.

    Every start gets an entry, found or not: read `converged` before `states`. A point that lies far from its start (`moved`) says that there was none
    near it.

    Args:
        f: The map. Its clock is copied to the result.
        z: The starts, one per row of `f`, in the dtype of the map: float64 to polish.
        method: How to search: `by_newton_krylov`, `by_iteration`, `by_anderson`, `by_broyden`, `by_minimisation` or `by_gauss_newton`; or `by_deflation(known)`
            for points other than those known.
        tol: Largest relative residual ‖f(z) − z‖/‖z‖ that counts as fixed.
        max_steps: Solver steps allowed per start.

    Returns:
        One entry per row of `z`, in the same order, each the best state met: the one of smallest residual.

    Raises:
        ValueError: If `tol` is below the rounding floor of the dtype, `max_steps` is negative, `z` and `f` differ in
            their number of rows, or in dtype.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {}, clock="tick")
        >>> z = {"z": torch.tensor([[0.1], [0.8]], dtype=torch.float64)}
        >>> points = find_fixed_points(f, z, tol=1e-12, max_steps=20)
        >>> [round(abs(x), 6) for x in points.require().states["z"].flatten().tolist()]
        [0.0, 0.957504]
    """
    check_tol(tol, dtype_of(z), "find_fixed_points")
    if max_steps < 0:
        raise ValueError(f"`find_fixed_points` got max_steps={max_steps}. A search takes 0 or more steps. Use max_steps=50.")
    check_strategy(method, "method", "find_fixed_points", example="by_newton_krylov")
    instance, start = f.coordinates(z)
    check_at(f, z, "find_fixed_points", derivative=method not in (by_iteration, by_anderson, by_broyden))
    found = method(f, z, tol=tol, max_steps=max_steps)
    return FixedPointSet(
        states=found.states,
        residual=found.residual.cpu(),
        error=found.error.cpu(),
        moved=relative(trees.distance(found.states, z), z).cpu(),
        result=found.result.cpu(),
        steps=found.steps.cpu(),
        row=torch.arange(trees.rows(z)),
        instance=instance,
        start=start,
        tol=tol,
        clock=f.clock,
        origin=f.origin,
    )


def by_iteration(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Plain iteration of the map: finds what attracts, and takes no Newton step, so `error` is NaN. One tick below `tol` is enough; `settle` asks for three."""
    return run_in_chunks(f, z, _Ticks, vectors=3, tol=tol, max_steps=max_steps)


class _Ticks:
    errs = False

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search = search

    def keep(self, stay: Tensor) -> None:
        pass

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        new = self.search.round(x + r)
        return new, self.search.residual(new, rows)


class Distinct(NamedTuple):
    """The points that differ, and which of them each point is."""

    points: FixedPointSet
    labels: Int[Tensor, " point"]
    counts: Int[Tensor, " distinct"]


def distinct(points: FixedPointSet, *, tol: float | None = None) -> Distinct:
    """One representative for each group of converged points that are the same, instance by instance.

    Two points are the same if a chain of points leads from one to the other, each nearer to the next than the tolerance. Points on a circle or line of fixed points
    differ: `families` tells which are on one.

    Args:
        points: What `find_fixed_points` found.
        tol: Distance relative to the norm of the state. By default the larger of 1e-6 and ten times the estimated errors.

    Returns:
        `points`: the member of smallest residual of each group, by instance, the group with most members first. `labels`: for each
        point given, its number among them, −1 if it did not converge. `counts`: the members of each group.

    Raises:
        ValueError: If `tol` is left out and the method that found the points estimated no errors.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {}, clock="tick")
        >>> z = {"z": torch.tensor([[-0.7], [0.7], [0.9]], dtype=torch.float64)}
        >>> found = distinct(find_fixed_points(f, z, tol=1e-12, max_steps=20))
        >>> found.labels.tolist(), found.counts.tolist()
        ([1, 0, 0], [2, 1])
    """
    good = points.converged
    reach = 10 * points.error if tol is None else torch.full_like(points.error, tol)
    reach = torch.where(reach.isinf(), 0, reach)  # nobody knows how far the true point is: only near-equal points are held to be one
    if bool(reach[good].isnan().any()):
        raise ValueError(
            f"`distinct` got {int(reach[good].isnan().sum())} points without an error estimate. Without one it cannot tell which points are the same. "
            "Give `tol`, or find the points by `by_newton_krylov`."
        )
    labels = torch.full((len(points),), -1)
    chosen: list[int] = []
    counts: list[int] = []
    for instance in torch.unique(points.instance[good]).tolist():
        members = (good & (points.instance == instance)).nonzero().squeeze(1)
        group = joined_up([trees.flatten(trees.take(points.states, members))], reach[members], floor=SAME if tol is None else 0.0)
        sizes = torch.bincount(group)
        order = torch.argsort(sizes, descending=True, stable=True)
        for number in order.tolist():
            inside = members[group == number]
            labels[inside] = len(chosen)
            chosen.append(int(inside[points.residual[inside].argmin()]))
            counts.append(len(inside))
    return Distinct(points[torch.tensor(chosen, dtype=torch.int64)], labels, torch.tensor(counts, dtype=torch.int64))


def joined_up(turns: Sequence[Float[Tensor, "member dim"]], reach: Float[Tensor, " member"], *, floor: float) -> Int[Tensor, " member"]:
    """The connected component of each member under the tolerance, which is relative to its norm.

    Members are near if the first states of one are near the first of the other, or any later one of `turns`: the other phases of an orbit.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    flats = [one.to(torch.float64).cpu() for one in turns]
    n = len(flats[0])
    # As errors are: not relative to the norm of a point that is 0 up to the rounding of its dtype.
    whole = yardstick(turns[0].norm(dim=1)).to(torch.float64).cpu()
    limit = reach.to(torch.float64).cpu().clamp(min=floor) * whole
    middle = flats[0].mean(0)
    flats = [flat - middle for flat in flats]
    # Distances through a matrix product are good to about 1e-8 of the norm only.
    exact = bool((limit < SAME / 2 * flats[0].norm(dim=1).max()).any())
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    left, right = [], []
    for part in torch.arange(n).split(512):
        for flat in flats:
            near = torch.cdist(flats[0][part], flat, compute_mode=mode) <= torch.maximum(limit[part, None], limit[None])
            i, j = near.nonzero(as_tuple=True)
            left.append(part[i])
            right.append(j)
    edges = (torch.cat(left).numpy(), torch.cat(right).numpy())
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(n, n))
    return torch.as_tensor(connected_components(graph, directed=False)[1], dtype=torch.int64)
