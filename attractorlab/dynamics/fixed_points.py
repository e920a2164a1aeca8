"""find_fixed_points: polish starts to points that the map leaves where they are; distinct: which of them are the same."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.krylov import NOISE, Jacobian, blocks_of_rows, check_dtype, dtype_of, gmres
from attractorlab.dynamics.orbits import DIVERGED, check_tol, settle
from attractorlab.maps import LatentMap, relative
from attractorlab.types import FixedPointSet, Result, State

GMRES_CAP = 60  # products that one linear solve may take
FIRST_FORCING, LARGEST_FORCING = 0.1, 0.5
ERROR_FORCING = 1e-2  # the error estimate is good to two digits
HALVINGS = 2  # of a Newton step before one tick is taken instead: shorter steps creep into minima of the residual that are no fixed points
LONGEST_STEP = 100  # times the larger of ‖z‖, ‖f(z)‖ and 1
SAME = 1e-6  # of the norm: points nearer than this are one, however small their error


@dataclass(frozen=True, eq=False)
class Found:
    """What a solver hands back, one entry per start; the fields are those of `FixedPointSet`."""

    states: State
    residual: Float[Tensor, " point"]
    error: Float[Tensor, " point"]
    result: Int[Tensor, " point"]
    steps: Int[Tensor, " point"]


@runtime_checkable
class Solver(Protocol):
    """A way to search for fixed points from each row of `z`."""

    def __call__(self, f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
        """Every row of `z` gets an entry, found or not."""
        ...


def by_newton_krylov(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Newton's method on f(z) − z, its linear systems solved by GMRES on Jacobian products.

    It also finds saddles and repelling points. A step that does not lower the residual is halved, and at last replaced by one tick of the
    map. Where I − J is singular (a circle of fixed points), the step is a least-squares one.

    References:
        Knoll and Keyes (2004), Jacobian-free Newton-Krylov methods; Eisenstat and Walker (1996), choice 2 of the forcing term.
    """
    parts = [
        _newton(f.take(rows), trees.take(z, rows), tol=tol, max_steps=max_steps) for rows in blocks_of_rows(f, z, vectors=GMRES_CAP + 1)
    ]
    return Found(
        states=trees.cat([part.states for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        error=torch.cat([part.error for part in parts]),
        result=torch.cat([part.result for part in parts]),
        steps=torch.cat([part.steps for part in parts]),
    )


def by_iteration(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Plain iteration of the map: finds what attracts, and takes no Newton step, so `error` is NaN."""
    rest = settle(f, z, tol=tol, max_ticks=max_steps, window=1)
    return Found(
        states=rest.states,
        residual=rest.residual,
        error=torch.full_like(rest.residual, torch.nan),
        result=rest.result,
        steps=torch.where(rest.tick >= 0, rest.tick, max_steps),
    )


def find_fixed_points(f: LatentMap, z: State, *, method: Solver = by_newton_krylov, tol: float, max_steps: int) -> FixedPointSet:
    """Search for a fixed point of `f` from each row of `z`.

    Every start gets an entry, found or not: read `converged` before `states`. A point that lies far from its start (`moved`) says that there was none
    near it.

    Args:
        f: The map. Its clock is copied to the result.
        z: The starts, one per row of `f`, in the dtype of the map: float64 to polish.
        method: How to search: `by_newton_krylov` or `by_iteration`.
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
    instance, start = f.coordinates(z)
    check_dtype(f, z, "find_fixed_points")
    found = method(f, z, tol=tol, max_steps=max_steps)
    return FixedPointSet(
        states=found.states,
        residual=found.residual.cpu(),
        error=found.error.cpu(),
        moved=relative(trees.norm(trees.sub(found.states, z)), z).cpu(),
        result=found.result.cpu(),
        steps=found.steps.cpu(),
        row=torch.arange(trees.rows(z)),
        instance=instance,
        start=start,
        tol=tol,
        clock=f.clock,
        origin=f.origin,
    )


class Distinct(NamedTuple):
    """The points that differ, and which of them each point is."""

    points: FixedPointSet
    labels: Int[Tensor, " point"]
    counts: Int[Tensor, " distinct"]


def distinct(points: FixedPointSet, *, tol: float | None = None) -> Distinct:
    """One representative for each group of converged points that are the same, instance by instance.

    Two points are the same if a chain of points leads from one to the other, each nearer to the next than the tolerance.

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
        group = _components(points, members, reach[members], floor=SAME if tol is None else 0.0)
        sizes = torch.bincount(group)
        order = torch.argsort(sizes, descending=True, stable=True)
        for number in order.tolist():
            inside = members[group == number]
            labels[inside] = len(chosen)
            chosen.append(int(inside[points.residual[inside].argmin()]))
            counts.append(len(inside))
    return Distinct(points[torch.tensor(chosen, dtype=torch.int64)], labels, torch.tensor(counts, dtype=torch.int64))


def _components(points: FixedPointSet, members: Tensor, reach: Tensor, floor: float) -> Int[Tensor, " member"]:
    """The connected component of each member under the tolerance."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    flat = trees.flatten(trees.take(points.states, members)).to(torch.float64).cpu()
    n = len(flat)
    # An error is relative to what `relative` divides by: not to the norm of a point that is 0 up to rounding.
    whole = 1 / relative(torch.ones(n, dtype=torch.float64), {"z": flat})
    limit = reach.to(torch.float64).clamp(min=floor) * whole
    flat = flat - flat.mean(0)
    # Distances through a matrix product are good to about 1e-8 of the norm only.
    exact = bool((limit < SAME / 2 * flat.norm(dim=1).max()).any())
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    left, right = [], []
    for part in torch.arange(n).split(512):
        near = torch.cdist(flat[part], flat, compute_mode=mode) <= torch.maximum(limit[part, None], limit[None])
        i, j = near.nonzero(as_tuple=True)
        left.append(part[i])
        right.append(j)
    edges = (torch.cat(left).numpy(), torch.cat(right).numpy())
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(n, n))
    return torch.as_tensor(connected_components(graph, directed=False)[1], dtype=torch.int64)


class _Search:
    """The residuals of a chunk of rows on flat float64 vectors that are always rounded to the dtype of the state."""

    def __init__(self, f: LatentMap, z: State) -> None:
        self.f, self.like, self.dtype = f, z, dtype_of(z)

    def state(self, x: Float[Tensor, "row dim"]) -> State:
        return trees.unflatten(x.to(self.dtype), self.like)

    def round(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        return x.to(self.dtype).to(torch.float64)

    @torch.no_grad()
    def residual(self, x: Float[Tensor, "row dim"], rows: Int[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """f(z) − z."""
        return trees.flatten(self.f.take(rows)(self.state(x))).to(torch.float64) - x

    def newton_step(self, x: Tensor, r: Tensor, rows: Tensor, forcing: Tensor) -> Float[Tensor, "row dim"]:
        """d with (J − I) d = −r, to a relative residual of `forcing`."""
        product = Jacobian(self.f.take(rows), self.state(x)).at(torch.arange(len(rows)))
        return gmres(lambda v, at: product(v, at) - v, -r, tol=forcing, cap=GMRES_CAP, noise=NOISE[self.dtype])[0]


def _newton(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    search = _Search(f, z)
    x = trees.flatten(z).to(torch.float64)
    n = len(x)
    rows = torch.arange(n)
    r = search.residual(x, rows)
    best, best_r = x.clone(), r.clone()
    steps, result = torch.zeros(n, dtype=torch.int64), torch.full((n,), Result.MAX_STEPS.code)
    large = DIVERGED * _norm(x).clamp(min=1)
    forcing = torch.full_like(large, FIRST_FORCING)
    for step in range(max_steps + 1):
        size, length = _relative(r, x), _norm(r)
        code = torch.full(rows.shape, -1)
        code[(size < tol).cpu()] = Result.CONVERGED.code
        code[(_norm(x) > large[rows]).cpu()] = Result.DIVERGED.code
        code[~torch.isfinite(length).cpu()] = Result.NONFINITE.code
        better = size < _relative(best_r[rows], best[rows])
        best[rows[better.cpu()]], best_r[rows[better.cpu()]] = x[better], r[better]
        ended = code >= 0
        result[rows[ended]] = code[ended]
        steps[rows] = step
        stay = ~ended
        if step == max_steps or not bool(stay.any()):
            break
        rows, x, r, forcing = rows[stay], x[stay], r[stay], forcing[stay]
        d = search.newton_step(x, r, rows, forcing)
        broken = ~torch.isfinite(d).all(1)
        new, new_r = _search_line(search, x, r, torch.where(broken[:, None], 0, d), rows, forcing)
        new_r[broken] = torch.nan  # the map is finite here and its Jacobian is not
        forcing = _next_forcing(forcing, _norm(new_r) / _norm(r), tol / _relative(new_r, new))
        x, r = new, new_r
    return _finish(search, best, best_r, result, steps)


def _search_line(search: _Search, x: Tensor, r: Tensor, d: Tensor, rows: Tensor, forcing: Tensor) -> tuple[Tensor, Tensor]:
    """Along each row's `d`: the first of 1, 1/2, 1/4, ... that lowers the residual enough (Armijo); or else one tick of the map."""
    longest = LONGEST_STEP * torch.stack([_norm(x), _norm(x + r), torch.ones_like(_norm(x))]).amax(0)
    d = d * (longest / _norm(d).clamp(min=1e-300)).clamp(max=1)[:, None]
    new, new_r = search.round(x + r), torch.full_like(r, torch.nan)
    open_ = torch.arange(len(rows))
    t = 1.0
    for _ in range(HALVINGS + 1):
        trial = search.round(x[open_] + t * d[open_])
        trial_r = search.residual(trial, rows[open_])
        enough = (_norm(trial_r) <= (1 - 1e-4 * t * (1 - forcing[open_])) * _norm(r[open_])).cpu()
        new[open_[enough]], new_r[open_[enough]] = trial[enough], trial_r[enough]
        open_ = open_[~enough]
        if not len(open_):
            return new, new_r
        t /= 2
    new_r[open_] = search.residual(new[open_], rows[open_])
    return new, new_r


def _next_forcing(forcing: Tensor, ratio: Tensor, needed: Tensor) -> Float[Tensor, " row"]:
    """Eisenstat and Walker's choice 2 with their safeguard, and not below what the tolerance asks for."""
    chosen, slow = 0.9 * ratio**2, 0.9 * forcing**2
    chosen = torch.where(slow > 0.1, torch.maximum(chosen, slow), chosen)
    return torch.maximum(chosen, 0.1 * needed).nan_to_num(LARGEST_FORCING).clamp(1e-10, LARGEST_FORCING)


def _finish(search: _Search, best: Tensor, best_r: Tensor, result: Tensor, steps: Tensor) -> Found:
    """The best states, with the length of one more Newton step as their error."""
    finite = torch.isfinite(best_r).all(1).cpu().nonzero().squeeze(1)
    error = torch.full_like(best[:, 0], torch.nan)
    if len(finite):
        forcing = torch.full_like(best[finite, 0], ERROR_FORCING)
        d = search.newton_step(best[finite], best_r[finite], finite, forcing)
        error[finite] = _relative(d, best[finite])
    kind = torch.float32 if search.dtype in (torch.float16, torch.bfloat16) else search.dtype
    return Found(search.state(best), _relative(best_r, best).to(kind), error.to(kind), result, steps)


def _norm(x: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    return torch.linalg.vector_norm(x, dim=1)


def _relative(r: Float[Tensor, "row dim"], x: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    return relative(_norm(r), {"x": x})
