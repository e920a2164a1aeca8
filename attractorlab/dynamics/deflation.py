"""by_deflation, enumerate_fixed_points: further fixed points, saddles among them, by taking the known ones out of the equations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.fixed_points import distinct, find_fixed_points
from attractorlab.dynamics.newton import search_line
from attractorlab.dynamics.searching import ERROR_FORCING, GMRES_CAP, Found, Search, Solver, norm, run_in_chunks
from attractorlab.maps import LatentMap, relative
from attractorlab.types import FixedPointSet, State, dims_of

AT_ONCE = 2**22  # numbers of the table of differences between states and known points


def by_deflation(known: FixedPointSet) -> Solver:
    """A method that searches for fixed points other than `known`: Newton's on the residual times ∏(1 + s²/‖z − z_i‖²) over the known points of the row's own instance.

    Known points no longer draw the search in, saddles of small basins are left. A degenerate point may be found again. s is the largest norm of the start and the
    known points of its instance, so that the scale of the state does not matter. The Newton step of the product is that of the map times
    one number, by the formula of Sherman and Morrison.

    References:
        Farrell, Birkisson and Funke (2015), Deflation techniques for finding distinct solutions of nonlinear partial differential equations.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {})
        >>> z = {"z": torch.tensor([[0.9]], dtype=torch.float64)}
        >>> known = find_fixed_points(f, z, tol=1e-12, max_steps=50)
        >>> other = find_fixed_points(f, z, method=by_deflation(known), tol=1e-12, max_steps=50).require()
        >>> abs(other.states["z"].item() - known.states["z"].item()) > 0.9
        True
    """

    def search(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
        return run_in_chunks(f, z, lambda *given: _Deflated(known[known.converged], *given), vectors=GMRES_CAP + 1, tol=tol, max_steps=max_steps)

    return search


class Enumeration(NamedTuple):
    """Fixed points that differ, and what the search for more of them came to."""

    points: FixedPointSet
    found_in: Int[Tensor, " point"]
    new: Int[Tensor, " round"]
    barren: int
    instances: Int[Tensor, " instance"]
    missing_mass: Float[Tensor, " instance"]


def enumerate_fixed_points(
    f: LatentMap, z: State, *, tol: float, max_steps: int, rounds: int, scale: float, generator: torch.Generator
) -> Enumeration:
    """The fixed points that Newton's method finds from `z`, then from `z` with those taken out, and so on from `z` with noise: `rounds` times.

    That is never proof that there are no others: read `barren` and `missing_mass`. Where there is a continuous family of fixed points, each round finds more of its members: see
    `families`. A point counts only once Newton's method on the map itself holds it.

    Args:
        f: The map, one row per start.
        z: The starts; those of an instance look for its points together.
        tol: Largest relative residual that counts as fixed.
        max_steps: Solver steps allowed per start and round.
        rounds: How many rounds with the known points taken out: the first from `z`, each later one from `z` with noise, also plainly.
        scale: Length of that noise relative to the norm of the start. It has to carry starts as far as there may be fixed points: 1 rather than 0.1.
        generator: Draws the noise.

    Returns:
        `points`: those that differ, in the order found. `found_in`: the round of each, 0 for the plain search. `new`: how many were new in each round, the plain one first.
        `barren`: how many rounds at the end found nothing new. `missing_mass`: for each entry of `instances` Good and Turing's estimate of the chance that the plain
        search ends at a point that it has not met, from one more start drawn like these; NaN where it met none.

    Raises:
        ValueError: If `rounds` or `scale` is negative, or for what `find_fixed_points` refuses.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {})
        >>> z = {"z": torch.tensor([[0.9]], dtype=torch.float64)}
        >>> found = enumerate_fixed_points(f, z, tol=1e-12, max_steps=50, rounds=4, scale=1.0, generator=torch.Generator().manual_seed(0))
        >>> sorted(round(x, 6) for x in found.points.states["z"].flatten().abs().tolist()), found.barren
        ([0.0, 0.957504, 0.957504], 2)

    References:
        Farrell, Birkisson and Funke (2015); Good (1953), the missing mass.
    """
    if rounds < 0 or scale < 0:
        raise ValueError(
            f"`enumerate_fixed_points` got rounds={rounds}, scale={scale}. Rounds are counted, and noise has a length. Use rounds=5, scale=0.5, or 0 of either."
        )
    met = find_fixed_points(f, z, tol=tol, max_steps=max_steps)
    first = distinct(met)
    known, found_in, new = first.points, [0] * len(first.points), [len(first.points)]
    instances = torch.unique(met.instance)
    once = torch.stack([(first.counts[known.instance == one] == 1).sum() for one in instances]) if len(instances) else torch.zeros(0)
    settled = torch.stack([met.converged[met.instance == one].sum() for one in instances]) if len(instances) else torch.zeros(0)
    for k in range(1, rounds + 1):
        starts, before = z, len(known)
        if k > 1:
            starts = _noisy(z, scale, generator)
            known = _joined([known, _new_ones(f, z, find_fixed_points(f, starts, tol=tol, max_steps=max_steps), known, tol, max_steps)])
        other = find_fixed_points(f, starts, method=by_deflation(known), tol=tol, max_steps=max_steps)
        known = _joined([known, _new_ones(f, z, other, known, tol, max_steps)])
        new.append(len(known) - before)
        found_in += [k] * new[-1]
    late = [count > 0 for count in reversed(new)]
    return Enumeration(
        points=known,
        found_in=torch.tensor(found_in, dtype=torch.int64),
        new=torch.tensor(new),
        barren=late.index(True) if any(late) else len(late),
        instances=instances,
        missing_mass=torch.where(settled > 0, once.double() / settled.clamp(min=1), torch.nan).double(),
    )


def _new_ones(f: LatentMap, z: State, found: FixedPointSet, known: FixedPointSet, tol: float, max_steps: int) -> FixedPointSet:
    """Of the points found those that the map itself holds, one for each that is not among `known`."""
    row = found.row[found.converged]
    held = find_fixed_points(f.take(row), trees.take(found.states, found.converged), tol=tol, max_steps=max_steps)
    held = replace(
        held,
        moved=relative(trees.distance(held.states, trees.take(z, row)), trees.take(z, row)).cpu(),
        row=row,
        instance=found.instance[row],
        start=found.start[row],
        steps=held.steps + found.steps[row],
    )
    both = _joined([known, held])
    labels = distinct(both).labels
    fresh = (labels >= 0) & ~torch.isin(labels, labels[: len(known)])
    fresh[: len(known)] = False
    first: dict[int, int] = {}
    for at in fresh.nonzero().squeeze(1).tolist():
        first.setdefault(int(labels[at]), at)
    return both[torch.tensor(list(first.values()), dtype=torch.int64)]


def _noisy(z: State, scale: float, generator: torch.Generator) -> State:
    """`z` with normal noise of about `scale` times the norm of each row."""
    whole = trees.norm(z)
    return trees.add(z, trees.scale(trees.normal_like(z, generator=generator), scale * torch.where(whole > 0, whole, 1) / trees.size(z) ** 0.5))


def _joined(parts: Sequence[FixedPointSet]) -> FixedPointSet:
    """Points of one search, one set after the other."""
    fields: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in dims_of(FixedPointSet) if name != "states"}
    return replace(parts[0], states=trees.cat([part.states for part in parts]), **fields)


class _Deflated:
    errs = True

    def __init__(self, known: FixedPointSet, search: Search, x: Tensor, tol: float) -> None:
        self.search = search
        instance, _ = search.f.coordinates(search.like)
        kinds, self.kind = torch.unique(instance, return_inverse=True)
        member = [(known.instance == one).nonzero().squeeze(1) for one in kinds]
        most = max([0, *map(len, member)])
        flat = trees.flatten(known.states).to(x)
        self.points, self.there = x.new_zeros(len(kinds), most, x.shape[1]), torch.zeros(len(kinds), most, dtype=torch.bool, device=x.device)
        for k, chosen in enumerate(member):
            self.points[k, : len(chosen)], self.there[k, : len(chosen)] = flat[chosen.to(x.device)], True
        large = torch.linalg.vector_norm(self.points, dim=2).amax(1) if most else x.new_zeros(len(kinds))
        size = torch.maximum(norm(x), large[self.kind])
        self.scale = torch.where(size > 0, size, 1)

    def keep(self, stay: Tensor) -> None:
        pass

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        d, _ = self.search.newton_step(x, r, rows, torch.full_like(x[:, 0], ERROR_FORCING))
        broken = ~torch.isfinite(d).all(1)
        d = torch.where(broken[:, None], 0, d)
        # (M(J − I) + r∇Mᵀ) τd = −Mr with (J − I)d = −r gives τ = 1/(1 − ∇log M·d).
        turn = 1 - self.logarithm(rows, x, d)[1]
        d = d / torch.where(turn == 0, 1e-300, turn)[:, None]

        def merit(at: Tensor, y: Tensor, v: Tensor) -> Float[Tensor, " row"]:
            return norm(v).log() + self.logarithm(at, y, None)[0]

        new, new_r = search_line(self.search, x, r, d, rows, merit, slack=torch.ones_like(x[:, 0]), ticks=False)
        new_r[broken] = torch.nan
        return new, new_r

    def logarithm(self, rows: Tensor, x: Tensor, d: Tensor | None) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """log ∏(1 + s²/‖x − z_i‖²), and its derivative along `d`."""
        value, slope = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        kind, most = self.kind[rows], self.points.shape[1]
        s = self.scale[rows].square()[:, None]
        for part in torch.arange(most).split(max(1, AT_ONCE // max(1, x.numel()))):
            there = self.there[kind][:, part]
            away = x[:, None] - self.points[kind][:, part]
            square = away.square().sum(2).clamp(min=1e-300)
            value += torch.where(there, torch.log1p(s / square), 0).sum(1)
            if d is not None:
                along = torch.einsum("rkd,rd->rk", away, d)
                slope += torch.where(there, -2 * s * along / (square * (square + s)), 0).sum(1)
        return value, slope
