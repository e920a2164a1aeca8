"""non_normality: what a Jacobian can amplify for a while although its eigenvalues say that everything dies out."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_at
from attractorlab.dynamics.krylov import DENSE_LIMIT, NOISE, Jacobian, Krylov, Product, blocks_of_rows, dtype_of, random_vectors
from attractorlab.dynamics.pseudospectra import pseudospectral_radius
from attractorlab.maps import LatentMap
from attractorlab.types import NonNormality, State

CRISS_CROSS = 200  # numbers of a state up to which the Kreiss constant and the pseudospectral radius are sought in the whole Jacobian
LEAD = 60  # leading eigenvectors on whose span they are sought in a larger one
EPSILONS = (1e-8, 1e-4, 1e-2)  # disturbances of the Jacobian, if none are given
SPACE = 40  # vectors of the Krylov space that bounds are read off
LANCZOS = 60  # products with Jᵏ and its transpose that a singular value may take
SIGMA_TOL = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the singular value, for ‖(JᵀJ)v − σ²v‖ relative to σ²
LINES, CUTS = 16, 100  # around the field of values: at first, and added one by one
ANGLES, RADII = 48, 24  # of the grid on which the resolvent is first looked at
FARTHEST = 4.0  # times ‖J‖ and 1: beyond it (|z| − 1)‖(zI − J)⁻¹‖ is at most 4/3 and tends to 1
CLIMBS = 4  # points of a grid from which a climb begins
ROUNDING = 4e-15  # of the smallest singular value, relative to the largest
SHRINKING, HALVINGS = 0.5, 30  # of the steps that climb from the best point of a grid


def non_normality(f: LatentMap, z: State, *, ticks: int, direction: State | None = None, epsilons: Sequence[float] = EPSILONS) -> NonNormality:
    """How far the Jacobian of `f` at each row of `z` is from normal: its norm, transient growth, numerical radius, Kreiss constant,
    Henrici's departure and pseudospectral radius.

    σ_max > 1 does not mean unstable, and a spectral radius below 1 does not mean that disturbances shrink at once: reasoners have the first at nearly
    every state.

    Args:
        f: The map, one row per point.
        z: The points, in float64 or float32, the dtype of the map.
        ticks: The largest k of ‖Jᵏ‖₂.
        direction: A direction for each row, for instance the last displacement; its gain ‖Jd‖/‖d‖ is the natural gain.
        epsilons: Sizes ‖E‖₂ of disturbances of the Jacobian: how far out do eigenvalues of J + E come? For an ill-conditioned eigenvalue, its defect.

    Returns:
        One entry per row. Up to 1,000 numbers a state everything comes from the whole Jacobian; above, norms come from products with J and
        Jᵀ, and the numerical radius, the Kreiss constant and the pseudospectral radius from a Krylov space of 40 vectors, as lower bounds. Above 200 numbers the Kreiss constant, a lower bound anyway,
        and the pseudospectral radius come from the span of 60 leading eigenvectors, as lower bounds too. A Jacobian that is not finite gives NaN.

    Raises:
        ValueError: If `ticks` is below 1, an epsilon is not above 0, `direction` has another shape than `z`, `z` is in another dtype than float64 or float32, rows or dtypes
            differ, or `f` breaks a law.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] @ torch.tensor([[0.5, 0.0], [10.0, 0.5]], dtype=torch.float64)}, {}, clock="tick")
        >>> found = non_normality(f, {"z": torch.zeros(1, 2, dtype=torch.float64)}, ticks=2)
        >>> round(found.sigma_max.item(), 6), round(found.henrici.item(), 6), round(found.kreiss.item(), 4)
        (10.024938, 10.0, 5.05)

    References:
        Trefethen and Embree (2005), Spectra and Pseudospectra, sections 14 to 18 and 28; Henrici (1962); Kreiss (1962). The natural gain: Krishna et al. (2026).
    """
    f.coordinates(z)
    if ticks < 1:
        raise ValueError(f"`non_normality` got ticks={ticks}. Growth is looked at after 1 tick or more. Use ticks=8.")
    if not all(0 < epsilon < math.inf for epsilon in epsilons):
        raise ValueError(f"`non_normality` got epsilons={tuple(epsilons)}. A disturbance has a size above 0. Use epsilons=(1e-8, 1e-4, 1e-2).")
    if dtype_of(z) not in SIGMA_TOL:
        raise ValueError(
            f"`non_normality` got states in {str(dtype_of(z)).removeprefix('torch.')}. Norms of a Jacobian need float64 or float32. "
            "Cast both: `reasoner.to(torch.float64).bind(puzzles)` and `trees.to(z, torch.float64)`."
        )
    if direction is not None and {name: leaf.shape for name, leaf in direction.items()} != {name: leaf.shape for name, leaf in z.items()}:
        given, wanted = ({name: list(leaf.shape) for name, leaf in some.items()} for some in (direction, z))
        raise ValueError(
            f"`non_normality` got a direction of {given} for states of {wanted}. Every row has a direction, of the leaves and shapes of its state. "
            "Pass a displacement such as `trees.sub(f(z), z)`."
        )
    check_at(f, z, "non_normality")
    dense = trees.size(z) <= DENSE_LIMIT
    parts = [
        (_dense if dense else _free)(f.take(rows), trees.take(z, rows), ticks, None if direction is None else trees.take(direction, rows), tuple(epsilons))
        for rows in blocks_of_rows(f, z, vectors=8 * trees.size(z) if dense else 2 * max(SPACE, LANCZOS) + 8)
    ]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return NonNormality(
        sigma_max=joined("sigma_max"),
        defect=joined("defect"),
        transient_growth=joined("transient_growth"),
        numerical_radius=joined("numerical_radius"),
        kreiss=joined("kreiss"),
        henrici=joined("henrici"),
        natural_gain=joined("natural_gain"),
        pseudospectral_radius=joined("pseudospectral_radius"),
        epsilons=tuple(epsilons),
        bounds=not dense,
        pseudospectral_bound=trees.size(z) > CRISS_CROSS or not dense,
        products=sum(part.products for part in parts),
        clock=f.clock,
        origin=f.origin,
    )


def numerical_radius(matrix: Complex[Tensor, "point m m"]) -> Float[Tensor, " point"]:
    """The largest |v*Av| over unit vectors v, to a relative 1e-9: the largest eigenvalue of the Hermitian part of e^{iθ}A, over all θ.

    Each θ bounds the field of values by a line. The next θ is that of the farthest corner of the polygon that the lines make: no peak between them is missed. Where the
    field is nearly a disk about 0, the lines may run out first, and the last digits are a lower bound.

    Example:
        >>> shift = torch.diag(torch.ones(3, dtype=torch.complex128), 1)[None]
        >>> round(numerical_radius(shift).item(), 6), round(math.cos(math.pi / 5), 6)
        (0.809017, 0.809017)

    References:
        Johnson (1978); Horn and Johnson (1991), Topics in Matrix Analysis, chapter 1; Uhlig (2009), for the corners.
    """

    def reach(rows: Tensor, angle: Float[Tensor, " line"]) -> Float[Tensor, " line"]:
        turned = torch.polar(torch.ones_like(angle), angle)[:, None, None] * matrix[rows]
        return torch.linalg.eigvalsh((turned + turned.mH) / 2)[:, -1]

    n, whole = len(matrix), 2 * math.pi
    angle = torch.arange(LINES, dtype=torch.float64).mul(whole / LINES).repeat(n, 1)
    height = torch.stack([reach(torch.arange(n), one) for one in angle.T], 1)
    best = torch.maximum(torch.linalg.eigvals(matrix).abs().amax(1), height.amax(1))
    for _ in range(CUTS):
        angle, order = angle.sort(dim=1)
        height = height.gather(1, order)
        after, gap = height.roll(-1, 1), torch.cat([angle[:, 1:], angle[:, :1] + whole], dim=1) - angle
        side = after - height * gap.cos()
        corner = torch.where(gap > 1e-9, (height.square() + (side / gap.sin().clamp(min=1e-12)).square()).sqrt(), torch.maximum(height, after))
        farthest, at = corner.max(dim=1, keepdim=True)
        turn = torch.atan2(side, height * gap.sin()).gather(1, at)[:, 0]
        gap = gap.gather(1, at)[:, 0]
        new = angle.gather(1, at)[:, 0] + torch.where((turn > 0.05 * gap) & (turn < 0.95 * gap), turn, gap / 2)
        rows = (farthest[:, 0] > best * (1 + 1e-9)).nonzero().squeeze(1)
        if not len(rows):
            break
        found = height[:, 0].clone()
        found[rows] = reach(rows, new[rows])
        best = torch.maximum(best, found)
        still = torch.ones(n, dtype=torch.bool).index_fill(0, rows, False)
        angle = torch.cat([angle, torch.where(still, angle[:, 0], new)[:, None].remainder(whole)], dim=1)
        height = torch.cat([height, found[:, None]], dim=1)
    return best


def kreiss(matrix: Complex[Tensor, "point longer m"]) -> Float[Tensor, " point"]:
    """A lower bound of the Kreiss constant, sup of (|z| − 1)‖(zI − A)⁻¹‖₂ over |z| > 1: the best of a grid, and of climbs from it and from beside the eigenvalues.

    A square matrix with an eigenvalue outside the unit circle has no such constant: NaN. A longer one is the projection of a larger matrix on a Krylov
    space, with the rows below its square part; the bound is then one of the larger matrix. max‖Aᵏ‖ lies between the true constant and e·m times it.

    References:
        Kreiss (1962); Spijker (1991), for the constant e·m; Toh and Trefethen (1996), for resolvents from a Krylov space.
    """
    n, longer, m = matrix.shape
    eye = torch.eye(longer, m, dtype=matrix.dtype, device=matrix.device)
    top = torch.linalg.matrix_norm(matrix, 2).clamp(min=1.0)
    values = torch.linalg.eigvals(matrix[:, :m])

    def height(points: Float[Tensor, "point probe 2"]) -> Float[Tensor, "point probe"]:
        # The first coordinate is log(|z| − 1), the second the angle.
        outside = points[:, :, 0].exp()
        where = torch.polar(1 + outside, points[:, :, 1])
        smallest = torch.linalg.svdvals(where[:, :, None, None] * eye - matrix[:, None])[..., -1]
        return outside / (smallest + ROUNDING * (1 + outside + top[:, None]))  # rounding must not lift a lower bound

    low, high = math.log(1e-4), (FARTHEST * top).log()
    share = torch.linspace(0, 1, RADII, dtype=torch.float64)
    depth = low + (high[:, None] - low) * share
    angles = ANGLES // 2 + 1 if bool((matrix.imag == 0).all()) else ANGLES  # the resolvent of a real matrix is the same in both half planes
    angle = torch.arange(angles, dtype=torch.float64) * (2 * math.pi / ANGLES)
    grid = torch.stack([depth.repeat_interleave(angles, dim=1), angle.repeat(RADII).expand(n, -1)], dim=2)
    heights = torch.cat([height(part) for part in grid.split(ANGLES, dim=1)], dim=1)
    # As far outside the circle as an eigenvalue is inside it: where slow modes have their peak, however narrow.
    inside = (1 - values.abs()).abs().clamp(min=1e-8).log()
    seeds = torch.stack([torch.minimum(inside, high[:, None]), values.angle()], dim=2)
    points, heights = torch.cat([grid, seeds], dim=1), torch.cat([heights, torch.cat([height(part) for part in seeds.split(ANGLES, dim=1)], dim=1)], dim=1)
    best = torch.ones(n, dtype=torch.float64)
    peaks, where = heights.topk(min(CLIMBS, heights.shape[1]), dim=1)
    for peak, at in zip(peaks.T, where.T, strict=True):
        step = torch.stack([(high - low) / RADII, torch.full_like(high, 2 * math.pi / ANGLES)], dim=1)
        best = torch.maximum(best, _climb(height, points[torch.arange(n), at], peak, step=step))
    has_one = values.abs().amax(1) <= 1 + 1e-12 if longer == m else torch.ones(n, dtype=torch.bool)
    return torch.where(has_one, best, torch.nan)


def _climb(height: Callable[[Tensor], Tensor], at: Float[Tensor, "point coordinate"], best: Float[Tensor, " point"], *, step: Tensor) -> Float[Tensor, " point"]:
    """The height reached from `at` by steps along the coordinates that shrink where none of them leads up."""
    coordinates = at.shape[1]
    compass = torch.cat([torch.eye(coordinates, dtype=torch.float64), -torch.eye(coordinates, dtype=torch.float64)])
    least = step * SHRINKING**HALVINGS
    for _ in range(2 * HALVINGS):
        tried = at[:, None] + step[:, None] * compass
        heights, which = height(tried).max(1)
        up = heights > best
        at = torch.where(up[:, None], tried[torch.arange(len(at)), which], at)
        best = torch.maximum(best, heights)
        step = torch.where(up[:, None], step, SHRINKING * step)
        if bool((step <= least).all()):
            break
    return best


def _dense(f: LatentMap, z: State, ticks: int, direction: State | None, epsilons: tuple[float, ...]) -> NonNormality:
    dim, rows = trees.size(z), torch.arange(trees.rows(z))
    jacobian = Jacobian(f, z)
    matrix = jacobian.matrix(torch.arange(trees.rows(jacobian.z))).cpu()
    finite = matrix.flatten(1).isfinite().all(1)
    safe = torch.where(finite[:, None, None], matrix, 0)
    u, s, vh = torch.linalg.svd(safe)
    defect = torch.linalg.vector_norm(torch.einsum("pij,pi->pj", safe, u[:, :, 0]) - s[:, :1] * vh[:, 0], dim=1)
    powers, growth = torch.eye(dim, dtype=torch.float64).expand_as(safe), [torch.ones(len(rows), dtype=torch.float64)]
    for _ in range(ticks):
        powers = safe @ powers
        whole = powers.flatten(1).isfinite().all(1)  # a power may be too large for a number
        growth.append(torch.where(whole, torch.linalg.matrix_norm(torch.where(whole[:, None, None], powers, 0), 2), torch.inf))
    values = torch.linalg.eigvals(safe)
    henrici = (safe.square().sum((1, 2)) - values.abs().square().sum(1)).clamp(min=0).sqrt()
    complex_ = safe.to(torch.complex128)
    # A thousand singular value decompositions, as the Kreiss constant takes, are too many of large matrices.
    small = complex_ if dim <= CRISS_CROSS else _leading_part(complex_)
    fields = {
        "sigma_max": s[:, 0],
        "defect": defect,
        "numerical_radius": numerical_radius(complex_),
        "kreiss": torch.where(values.abs().amax(1) <= 1 + 1e-12, kreiss(small), torch.nan),
        "henrici": henrici,
    }
    fields = {name: torch.where(finite, value, torch.nan) for name, value in fields.items()}
    grown = torch.where(finite[:, None], torch.stack(growth, dim=1), torch.nan)
    return NonNormality(
        **fields,
        transient_growth=grown,
        natural_gain=_gain(jacobian, direction, rows),
        pseudospectral_radius=torch.where(finite[:, None], _pseudospectral_radii(small, epsilons), torch.nan),
        epsilons=epsilons,
        bounds=False,
        pseudospectral_bound=dim > CRISS_CROSS,
        products=jacobian.products,
        clock=f.clock,
        origin=f.origin,
    )


def _free(f: LatentMap, z: State, ticks: int, direction: State | None, epsilons: tuple[float, ...]) -> NonNormality:
    rows = torch.arange(trees.rows(z))
    jacobian, transpose = Jacobian(f, z), Jacobian(f, z, transposed=True)
    forward, back = jacobian.at(rows), transpose.at(rows)
    tol = SIGMA_TOL[dtype_of(z)]
    growth, defect = [torch.ones(len(rows), dtype=torch.float64)], torch.full((len(rows),), torch.nan, dtype=torch.float64)
    for k in range(1, ticks + 1):
        sigma, error = _norm_of_power(forward, back, z, k, tol)
        growth.append(sigma)
        defect = error if k == 1 else defect
    space = Krylov(forward, random_vectors(2, trees.size(z), seed=4).to(next(iter(z.values())).device).expand(len(rows), -1, -1), cap=SPACE, noise=NOISE[dtype_of(z)])
    for _ in range(SPACE):
        space.step()
    h = space.h.cpu()
    finite = h.flatten(1).isfinite().all(1)
    small = torch.where(finite[:, None, None], h, 0).to(torch.complex128)
    fields = {"numerical_radius": numerical_radius(small[:, :SPACE]), "kreiss": kreiss(small), "henrici": torch.full((len(rows),), torch.nan, dtype=torch.float64)}
    return NonNormality(
        sigma_max=growth[1],
        defect=defect,
        transient_growth=torch.stack(growth, dim=1),
        **{name: torch.where(finite, value, torch.nan) for name, value in fields.items()},
        natural_gain=_gain(jacobian, direction, rows),
        pseudospectral_radius=torch.where(finite[:, None], _pseudospectral_radii(small, epsilons), torch.nan),
        epsilons=epsilons,
        bounds=True,
        pseudospectral_bound=True,
        products=jacobian.products + transpose.products,
        clock=f.clock,
        origin=f.origin,
    )


def _leading_part(matrix: Complex[Tensor, "point m m"]) -> Complex[Tensor, "point longer lead"]:
    """The matrices on the span of their leading eigenvectors, with what leads out of it in rows below: bounds read off are good however well the vectors were found."""
    values, vectors = torch.linalg.eig(matrix)
    lead = values.abs().argsort(dim=1, descending=True, stable=True)[:, :LEAD]
    q, _ = torch.linalg.qr(vectors.gather(2, lead[:, None].expand(-1, matrix.shape[1], -1)))
    image = matrix @ q
    square = q.mH @ image
    return torch.cat([square, torch.linalg.qr(image - q @ square)[1]], dim=1)


def _pseudospectral_radii(matrix: Complex[Tensor, "point longer m"], epsilons: Sequence[float]) -> Float[Tensor, "point epsilon"]:
    found = [pseudospectral_radius(matrix, epsilon) for epsilon in epsilons]
    return torch.stack(found, 1) if found else torch.zeros(len(matrix), 0, dtype=torch.float64)


def _norm_of_power(forward: Product, back: Product, z: State, k: int, tol: float) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """‖Jᵏ‖₂ of each point by Lanczos' method on (Jᵏ)ᵀJᵏ, with the defect of its singular pair."""
    n, dim = trees.rows(z), trees.size(z)

    def normal(v: Tensor, at: Tensor) -> Tensor:
        for _ in range(k):
            v = forward(v, at)
        for _ in range(k):
            v = back(v, at)
        return v

    start = random_vectors(1, dim, seed=5).to(next(iter(z.values())).device).expand(n, 1, -1)
    space = Krylov(normal, start, cap=min(LANCZOS, dim), noise=NOISE[dtype_of(z)], seed=5)
    sigma, defect = torch.full((n,), torch.nan, dtype=torch.float64), torch.full((n,), torch.nan, dtype=torch.float64)
    while len(space.rows):
        space.step()
        broken = ~torch.isfinite(space.size)
        if bool(broken.any()):
            space.leave(broken)
        if not len(space.rows):
            break
        h = space.h.cpu()
        m = h.shape[2]
        values, vectors = torch.linalg.eigh((h[:, :m] + h[:, :m].mT) / 2)
        top = values[:, -1].clamp(min=0)
        rest = torch.linalg.vector_norm(torch.einsum("plm,pm->pl", h[:, m:], vectors[:, :, -1]), dim=1)
        done = (rest <= tol * top) | (space.m == min(LANCZOS, dim))
        if bool(done.any()):
            sigma[space.rows[done]] = top[done].sqrt()
            defect[space.rows[done]] = rest[done] / top[done].sqrt().clamp(min=1e-300)
            space.leave(done.to(space.size.device))
    return sigma, defect


def _gain(jacobian: Jacobian, direction: State | None, rows: Tensor) -> Float[Tensor, " point"]:
    if direction is None:
        return torch.full((len(rows),), torch.nan, dtype=torch.float64)
    d = trees.flatten({name: direction[name] for name in jacobian.z}).to(torch.float64)
    return (torch.linalg.vector_norm(jacobian(d, rows), dim=1) / torch.linalg.vector_norm(d, dim=1)).cpu()
