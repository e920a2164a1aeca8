"""families: which fixed points lie on one continuous family, and of how many dimensions it is."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.fixed_points import distinct
from attractorlab.dynamics.krylov import dtype_of, random_vectors
from attractorlab.dynamics.newton import by_newton_krylov
from attractorlab.dynamics.orbits import FLOOR
from attractorlab.maps import LatentMap, relative
from attractorlab.types import FixedPointSet, Result

PROBES = 3  # random disturbances of a point that are first looked at; twice as many where all of them stay
POLISH_STEPS = 12  # Newton's method comes down to a family in a few; what takes more is no sign of one
DISTURBED = {torch.float64: 0.02, torch.float32: 0.05}  # length of a disturbance, relative to the largest point of the instance
STAYED = 0.3  # of its length: the least part of a disturbance along a family that is left after polishing
STRETCHED = 2.0  # and the most
PARTS, OFF = 6, 0.08  # of a step: after each it is polished, and what comes out may lie so far off the line between its ends, relative to its length
UNCERTAIN = 1e4  # times its estimated error, a point is at least so large: only then can a disturbance be told from the error
STRIDE, SHORTEST, LONGEST = 0.2, 0.004, 0.35  # steps along a family, relative to the largest point of the instance
STEPS, PATIENCE = 60, 12  # along a family from one point towards another, and how many of them in a row may lead no nearer to it
PAIRS = 500  # of families that are tried at once


class Families(NamedTuple):
    """The fixed points that differ, a continuous family of them counted as one, and which of them each point is."""

    points: FixedPointSet
    labels: Int[Tensor, " point"]
    counts: Int[Tensor, " distinct"]
    dimension: Int[Tensor, " distinct"]


def families(f: LatentMap, points: FixedPointSet, *, tol: float | None = None) -> Families:
    """The converged points that differ, where a circle, a line or a torus of fixed points is one and has its dimension; an isolated point has dimension 0.

    An eigenvalue of 1 is no proof of a family: it is also met where points are born or merge. Here a point is on one if fixed points lie all along short chords
    from it. Two are on one family if a walk along such chords leads from one to the other; a walk that is too winding or longer than 60 steps is not found, so
    that families are split rather than merged. Nor is a family seen where Newton's method does not come down to rounding in 12 steps, as on large states whose other
    eigenvalues are very near 1 too.

    Args:
        f: The map that the points were found with, one row per start, in float64 or float32.
        points: What `find_fixed_points` found.
        tol: As for `distinct`.

    Returns:
        `points`: the member of smallest residual of each family, by instance, the one with most members first. `labels`: for each point given its number among them, −1 if
        it did not converge. `counts`: the members of each. `dimension`: how many independent directions lead to further fixed points.

    Raises:
        ValueError: If `tol` is left out and the method that found the points estimated no errors, or the map is in another dtype than float64 or float32.

    Example:
        >>> from attractorlab.dynamics.fixed_points import find_fixed_points
        >>> def turned(z, x):  # every angle is kept, every radius goes to 1
        ...     return {"z": z["z"] / z["z"].norm(dim=1, keepdim=True) ** 0.5}
        >>> f = LatentMap(turned, {})
        >>> z = {"z": torch.tensor([[0.9, 0.0], [0.2, 1.0], [-1.0, 0.3]], dtype=torch.float64)}
        >>> found = families(f, find_fixed_points(f, z, tol=1e-12, max_steps=50))
        >>> found.labels.tolist(), found.dimension.tolist()
        ([0, 0, 0], [1])
    """
    if dtype_of(points.states) not in DISTURBED:
        raise ValueError(
            f"`families` got points in {str(dtype_of(points.states)).removeprefix('torch.')}. Families are told from single points in float64 or float32. "
            "Cast both: `reasoner.to(torch.float64).bind(puzzles)` and `trees.to(z, torch.float64)`, and find the points again."
        )
    single = distinct(points, tol=tol)
    walker = _Walker(f, single.points)
    dimension, tangent = walker.dimensions()
    group = walker.groups(dimension, tangent)
    # Numbered by instance and then by members, most first.
    count = torch.zeros(int(group.max()) + 1 if len(group) else 0, dtype=torch.int64).index_add_(0, group, single.counts)
    chosen = []
    for one in range(len(count)):
        inside = (group == one).nonzero().squeeze(1)
        chosen.append(int(inside[single.points.residual[inside].argmin()]))
    kept = torch.tensor(chosen, dtype=torch.int64)
    order = count.argsort(descending=True, stable=True)
    order = order[single.points.instance[kept][order].argsort(stable=True)]
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order))
    labels = torch.where(points.converged, number[group][single.labels.clamp(min=0)] if len(group) else -1, -1)
    return Families(single.points[kept[order]], labels, count[order], dimension[kept[order]])


class _Walker:
    """Fixed points of `f`, as flat float64 vectors, and where fixed points are found near them."""

    def __init__(self, f: LatentMap, points: FixedPointSet) -> None:
        self.f, self.like, self.row, self.instance = f, points.states, points.row, points.instance
        self.dtype = dtype_of(points.states)
        self.device = next(iter(points.states.values())).device
        x = trees.flatten(points.states).to(torch.float64)
        held = by_newton_krylov(f.take(self.row), points.states, tol=10 * FLOOR[self.dtype], max_steps=POLISH_STEPS) if len(x) else None
        self.x = x if held is None else trees.flatten(held.states).to(torch.float64)
        length = 1 / relative(torch.ones_like(self.x[:, 0]), {"z": self.x})
        if held is not None:
            length = length * (UNCERTAIN * torch.where(held.error.isfinite(), held.error, 0)).clamp(min=1)
        together = (self.instance[:, None] == self.instance[None]).to(self.device)
        self.scale = torch.where(together, length[None], 0).amax(1) if len(x) else length

    def polish(self, at: Int[Tensor, " row"], x: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "row dim"], Bool[Tensor, " row"]]:
        """Where Newton's method ends from `x` with the instances of the points numbered `at`, and whether that is fixed to rounding."""
        found = by_newton_krylov(self.f.take(self.row[at]), trees.unflatten(x.to(self.dtype), self.like), tol=10 * FLOOR[self.dtype], max_steps=POLISH_STEPS)
        return trees.flatten(found.states).to(torch.float64), (found.result == Result.CONVERGED.code).to(self.device)

    def step(self, at: Int[Tensor, " row"], x: Float[Tensor, "row dim"], v: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "row dim"], Bool[Tensor, " row"]]:
        """The polished end of a step by `v`, and whether it leads along fixed points: what the parts of the step are polished to lies along the line to its end."""
        share = (torch.arange(1, PARTS + 1).to(x) / PARTS)[:, None]
        end, fixed = self.polish(at.repeat_interleave(PARTS), (x[:, None] + share * v[:, None]).flatten(0, 1))
        ends = end.unflatten(0, (len(x), PARTS))
        moved = ends[:, -1] - x
        length = torch.linalg.vector_norm(moved, dim=1)
        off = torch.linalg.vector_norm(ends - x[:, None] - share * moved[:, None], dim=2)
        part = length / torch.linalg.vector_norm(v, dim=1).clamp(min=1e-300)
        along = (off <= OFF * length[:, None]).all(1) & fixed.unflatten(0, (len(x), PARTS)).all(1)
        return ends[:, -1], along & (part > STAYED) & (part < STRETCHED)

    def dimensions(self) -> tuple[Int[Tensor, " point"], Float[Tensor, "point dim"]]:
        """How many independent directions from each point lead along fixed points, and one of them."""
        n, dim = self.x.shape
        dimension, tangent = torch.zeros(n, dtype=torch.int64), torch.zeros_like(self.x)
        at, probes = torch.arange(n), min(PROBES, dim)
        while len(at):
            dimension[at], tangent[at] = self._free(at, probes)
            at = at[(dimension[at] == probes) & (probes < dim)]
            probes = min(2 * probes, dim)
        return dimension, tangent

    def _free(self, at: Int[Tensor, " row"], probes: int) -> tuple[Int[Tensor, " row"], Float[Tensor, "row dim"]]:
        """How many of so many directions are free, from two rounds of disturbing and polishing: what is left of the first shows where to push in the second."""
        size = DISTURBED[self.dtype] * self.scale[at]
        directions = torch.linalg.qr(random_vectors(probes, self.x.shape[1], seed=0).T)[0].T.to(self.x).expand(len(at), -1, -1)
        every = at.repeat_interleave(probes)
        end, _ = self.polish(every, self.x[every] + (size[:, None, None] * directions).flatten(0, 1))
        left = (end - self.x[every]).nan_to_num(0).unflatten(0, (len(at), probes))
        # A point whose disturbances are all gone is isolated, and done with: what remains of them is rounding.
        alive = torch.linalg.matrix_norm(left) > 1e3 * FLOOR[self.dtype] * self.scale[at]
        count, tangent = torch.zeros(len(at), dtype=torch.int64), torch.zeros_like(self.x[at])
        if bool(alive.any()):
            inside = alive.nonzero().squeeze(1).cpu()
            directions = torch.linalg.svd(left[inside], full_matrices=False)[2]
            left, stayed = self._left(at[inside], directions, size[inside])
            _, s, vh = torch.linalg.svd(torch.where(stayed[:, :, None], left / size[inside, None, None], 0), full_matrices=False)
            count[inside] = (s > STAYED).sum(1).cpu()
            tangent[inside] = vh[:, 0]
        return count, tangent

    def _left(self, at: Tensor, directions: Tensor, size: Tensor) -> tuple[Float[Tensor, "row probe dim"], Bool[Tensor, "row probe"]]:
        """What polishing leaves of disturbances of length `size`, and whether that leads along fixed points."""
        probes = directions.shape[1]
        every = at.repeat_interleave(probes)
        end, along = self.step(every, self.x[every], (size[:, None, None] * directions).flatten(0, 1))
        left = (end - self.x[every]).nan_to_num(0)
        return left.unflatten(0, (len(at), probes)), along.unflatten(0, (len(at), probes))

    def groups(self, dimension: Int[Tensor, " point"], tangent: Float[Tensor, "point dim"]) -> Int[Tensor, " point"]:
        """A number for each family: those are joined between whose nearest points a walk leads."""
        n = len(self.x)
        group = torch.arange(n)
        same = (self.instance[:, None] == self.instance[None]) & (dimension[:, None] == dimension[None]) & (dimension > 0)[:, None]
        apart = torch.cdist(self.x, self.x).cpu()
        tried = torch.zeros(n, n, dtype=torch.bool)  # by groups
        first = True
        while True:
            # First of each family and the nearest other, then of all that are left.
            pairs = _nearest(torch.where(same & (group[:, None] != group[None]) & ~tried[group][:, group], apart, torch.inf), group, every=not first)
            if not pairs:
                break
            a, b = torch.tensor(sorted(pairs)).T
            joined = self._connected(a, b, tangent[a])
            first = bool(joined.any())
            tried[group[a], group[b]] = tried[group[b], group[a]] = True
            for i, j in zip(a[joined].tolist(), b[joined].tolist(), strict=True):
                old, new = int(group[j]), int(group[i])
                group[group == old] = new
                tried[new] = tried[new] | tried[old]
                tried[:, new] = tried[:, new] | tried[:, old]
        return torch.unique(group, return_inverse=True)[1]

    def _connected(self, a: Int[Tensor, " pair"], b: Int[Tensor, " pair"], along: Float[Tensor, "pair dim"]) -> Bool[Tensor, " pair"]:
        """Whether a walk along fixed points leads from the points numbered `a` to those numbered `b`: straight on where it can, else the way it was going."""
        joined = torch.zeros(len(a), dtype=torch.bool)
        open_, x, goal, scale = torch.arange(len(a)), self.x[a], self.x[b], self.scale[a]
        stride, near, patience = STRIDE * scale, torch.full_like(scale, torch.inf), torch.full(scale.shape, PATIENCE, device=self.device)
        along = torch.where(((goal - x) * along).sum(1, keepdim=True) < 0, -along, along)
        most, went = LONGEST * scale, torch.ones_like(scale, dtype=torch.bool)
        refused = torch.full_like(scale, torch.inf)  # the distance from which the goal could not be reached in one step
        for _ in range(STEPS):
            gap = torch.linalg.vector_norm(goal - x, dim=1)
            patience = torch.where(gap < near, PATIENCE, patience - went.to(patience))
            near = gap.minimum(near)
            lost = (patience < 0) | (stride < SHORTEST * scale)
            there = torch.zeros_like(lost)
            close = ((gap <= LONGEST * scale) & (gap < refused / 2) & ~lost).nonzero().squeeze(1)
            if len(close):
                there[close] = self.step(a[open_[close.cpu()]], x[close], goal[close] - x[close])[1]
                refused[close] = gap[close]
                joined[open_[there.cpu()]] = True
            stay = ~(there | lost)
            if not bool(stay.any()):
                break
            open_, x, goal, scale, stride, along = open_[stay.cpu()], x[stay], goal[stay], scale[stay], stride[stay], along[stay]
            near, patience, gap, refused, most = near[stay], patience[stay], gap[stay], refused[stay], most[stay]
            ways = torch.cat([(goal - x) / gap.clamp(min=1e-300)[:, None], along])
            ends, good = self.step(a[open_].repeat(2), x.repeat(2, 1), stride.repeat(2)[:, None] * ways)
            straight, went = good[: len(x)], good[: len(x)] | good[len(x) :]
            moved = torch.where(straight[:, None], ends[: len(x)], ends[len(x) :]) - x
            along = torch.where(went[:, None], moved / torch.linalg.vector_norm(moved, dim=1).clamp(min=1e-300)[:, None], along)
            x = torch.where(went[:, None], x + moved, x)
            most = torch.where(went, most, stride / 2)  # a stride that was too long once is not tried again
            stride = (1.5 * stride).minimum(most)
        return joined


def _nearest(apart: Float[Tensor, "point point"], group: Int[Tensor, " point"], *, every: bool) -> list[tuple[int, int]]:
    """The nearest points of two groups, infinite distances left out: of `every` two, or of each and the one nearest to it."""
    i, j = apart.isfinite().triu().nonzero().T
    order = apart[i, j].argsort(stable=True)
    found: dict[tuple[int, int], tuple[int, int]] = {}
    met: set[int] = set()
    for one, other in zip(i[order].tolist(), j[order].tolist(), strict=True):
        a, b = sorted((int(group[one]), int(group[other])))
        if (a, b) not in found and (every or not {a, b} <= met):
            found[a, b] = (one, other)
            met |= {a, b}
    return list(found.values())[:PAIRS]
