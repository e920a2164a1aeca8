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
POLISH_STEPS = 60  # Newton's method comes down to a degenerate point by a constant factor a step
DISTURBED = {torch.float64: 0.02, torch.float32: 0.05}  # length of a disturbance, relative to the largest point of the instance
STAYED = 0.3  # of its length: the least part of a disturbance along a family that is left after polishing
STRETCHED = 2.0  # and the most
BETWEEN, OFF = 5, 0.08  # points of a chord that are polished, and how far off it they may come to lie, relative to its length
UNCERTAIN = 1e4  # times its estimated error, a point is at least so large: only then can a disturbance be told from the error
STRIDE, SHORTEST, LONGEST = 0.2, 0.004, 0.35  # steps along a family, relative to the largest point of the instance
STEPS, ASTRAY = 60, 4.0  # along a family from one point towards another, and how much further than before it may lead away, relative likewise
FRUITLESS = 4  # rounds in a row, of trying to join each family with the nearest that it was not tried with, that may be in vain


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
    that families are split rather than merged.

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

    def bridged(self, at: Int[Tensor, " row"], a: Float[Tensor, "row dim"], b: Float[Tensor, "row dim"]) -> Bool[Tensor, " row"]:
        """Whether fixed points lie all along the chord from `a` to `b`."""
        share = torch.arange(1, BETWEEN + 1).to(a) / (BETWEEN + 1)
        chord = (a[:, None] + share[:, None] * (b - a)[:, None]).flatten(0, 1)
        end, fixed = self.polish(at.repeat_interleave(BETWEEN), chord)
        off = torch.linalg.vector_norm(end - chord, dim=1).unflatten(0, (len(a), BETWEEN))
        near = off <= OFF * torch.linalg.vector_norm(b - a, dim=1)[:, None]
        return (near & fixed.unflatten(0, (len(a), BETWEEN))).all(1)

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
        left, _ = self._left(at, directions, size)
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
        end, fixed = self.polish(every, self.x[every] + (size[:, None, None] * directions).flatten(0, 1))
        left = (end - self.x[every]) * fixed[:, None]
        part = torch.linalg.vector_norm(left, dim=1) / size.repeat_interleave(probes)
        stayed = (part > STAYED) & (part < STRETCHED)
        asked = stayed.nonzero().squeeze(1).cpu()
        if len(asked):
            stayed[asked] = self.bridged(every[asked], self.x[every[asked]], end[asked])
        return left.unflatten(0, (len(at), probes)), stayed.unflatten(0, (len(at), probes))

    def groups(self, dimension: Int[Tensor, " point"], tangent: Float[Tensor, "point dim"]) -> Int[Tensor, " point"]:
        """A number for each family: those are joined between whose nearest points a walk leads."""
        n = len(self.x)
        group, fruitless = torch.arange(n), 0
        same = (self.instance[:, None] == self.instance[None]) & (dimension[:, None] == dimension[None]) & (dimension > 0)[:, None]
        apart = torch.cdist(self.x, self.x).cpu()
        tried = torch.zeros(n, n, dtype=torch.bool)  # by groups
        while fruitless < FRUITLESS:
            open_ = same & (group[:, None] != group[None]) & ~tried[group][:, group]
            nearest, partner = torch.where(open_, apart, torch.inf).min(1) if n else (apart.new_zeros(0), group)
            pairs = set()
            for one in torch.unique(group[nearest.isfinite()]).tolist():
                i = int(torch.where(group == one, nearest, torch.inf).argmin())
                pairs.add((min(i, int(partner[i])), max(i, int(partner[i]))))
            if not pairs:
                break
            a, b = torch.tensor(sorted(pairs)).T
            joined = self._connected(a, b, tangent[a])
            fruitless = 0 if bool(joined.any()) else fruitless + 1
            tried[group[a], group[b]] = tried[group[b], group[a]] = True
            for i, j in zip(a[joined].tolist(), b[joined].tolist(), strict=True):
                old, new = int(group[j]), int(group[i])
                group[group == old] = new
                tried[new] = tried[new] | tried[old]
                tried[:, new] = tried[:, new] | tried[:, old]
                tried[new, new] = False
        return torch.unique(group, return_inverse=True)[1]

    def _connected(self, a: Int[Tensor, " pair"], b: Int[Tensor, " pair"], along: Float[Tensor, "pair dim"]) -> Bool[Tensor, " pair"]:
        """Whether a walk along fixed points leads from the points numbered `a` to those numbered `b`: straight on where it can, else the way it was going."""
        joined = torch.zeros(len(a), dtype=torch.bool)
        open_, x, goal, scale = torch.arange(len(a)), self.x[a], self.x[b], self.scale[a]
        stride, near, nearest = STRIDE * scale, torch.full_like(scale, torch.inf), x.clone()
        left = torch.zeros_like(scale, dtype=torch.bool)
        for _ in range(STEPS):
            gap = torch.linalg.vector_norm(goal - x, dim=1)
            # Round a closed curve once: back near the point that was nearest to the goal, having been away from it.
            back = torch.linalg.vector_norm(x - nearest, dim=1)
            closer = gap < near
            near, nearest = torch.where(closer, gap, near), torch.where(closer[:, None], x, nearest)
            left = (left | (back > 2 * stride)) & ~closer
            lost = (left & (back < stride)) | (stride < SHORTEST * scale) | (gap > near + ASTRAY * scale)
            there = torch.zeros_like(lost)
            close = ((gap <= stride) & ~lost).nonzero().squeeze(1)
            if len(close):
                there[close] = self.bridged(a[open_[close.cpu()]], x[close], goal[close])
                stride[close] /= 2
                joined[open_[there.cpu()]] = True
            stay = ~(there | lost)
            if not bool(stay.any()):
                break
            open_, x, goal, scale, stride, along = open_[stay.cpu()], x[stay], goal[stay], scale[stay], stride[stay], along[stay]
            near, nearest, left, gap = near[stay], nearest[stay], left[stay], gap[stay]
            new, went = self._step(a[open_], x, (goal - x) / gap.clamp(min=1e-300)[:, None], along, stride)
            moved = new - x
            along = torch.where(went[:, None], moved / torch.linalg.vector_norm(moved, dim=1).clamp(min=1e-300)[:, None], along)
            x = torch.where(went[:, None], new, x)
            stride = torch.where(went, (1.5 * stride).minimum(LONGEST * scale), stride / 2)
        return joined

    def _step(self, at: Tensor, x: Tensor, first: Tensor, second: Tensor, stride: Tensor) -> tuple[Float[Tensor, "row dim"], Bool[Tensor, " row"]]:
        """A step in the first direction, or else the second, that leads along fixed points; and whether there is one."""
        both, twice, steps = torch.cat([at, at]), torch.cat([x, x]), torch.cat([stride, stride])
        new, fixed = self.polish(both, twice + steps[:, None] * torch.cat([first, second]))
        part = torch.linalg.vector_norm(new - twice, dim=1) / steps
        went = fixed & (part > STAYED) & (part < STRETCHED)
        asked = went.nonzero().squeeze(1).cpu()
        if len(asked):
            went[asked] = self.bridged(both[asked], twice[asked], new[asked])
        n = len(at)
        return torch.where(went[:n, None], new[:n], new[n:]), went[:n] | went[n:]
