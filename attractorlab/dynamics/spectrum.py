"""spectrum: the leading eigenvalues of the Jacobian at each point, each with its error, and what they say about stability."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_at
from attractorlab.dynamics.krylov import NOISE, Jacobian, Krylov, blocks_of_rows, dtype_of, leading, random_vectors, ritz
from attractorlab.maps import LatentMap
from attractorlab.types import Spectrum, State

DENSE_LIMIT = 1_000  # numbers of a state up to which the whole Jacobian is formed
BLOCK = 2  # start vectors of an Arnoldi: two, so that double eigenvalues, which symmetries bring, show twice
FIRST_LOOK, GROWTH, LARGEST = 24, 1.2, 400  # basis sizes: when it is first looked at, the factor to the next look, the largest
RIGHT_TOL = {torch.float64: 1e-9, torch.float32: 1e-4}  # Ritz residual relative to ‖J‖
LEFT_TOL = {torch.float64: 1e-7, torch.float32: 1e-3}  # left vectors serve the condition alone
SPARE = 4  # left eigenvalues beyond k: their order at the cut may differ
NEAR = {torch.float64: 1e-8, torch.float32: 1e-4}  # relative to ‖J‖: eigenvalues nearer than this are one
BAND = {torch.float64: 1e-4, torch.float32: 1e-3}  # half width of the marginal band around 1
TRUSTED = 1e-3  # an error estimate above it is no longer one
HARMLESS = 0.1  # an eigenvalue below it is inside the unit circle, however ill-conditioned


@dataclass(frozen=True, eq=False)
class Modes:
    """The leading eigenvalues with their eigenvectors, on flat states (`trees.unflatten` makes states of their real and imaginary parts).

    ``J right = λ right`` and ``left* J = λ left*``, all of unit length. A left vector is NaN where none could be paired. `size` is a lower bound
    of ‖J‖₂; `agreed` whether left and right found the same eigenvalues.
    """

    eigenvalues: Complex[Tensor, "point mode"]
    defect: Float[Tensor, "point mode"]
    condition: Float[Tensor, "point mode"]
    right: Complex[Tensor, "point mode dim"]
    left: Complex[Tensor, "point mode dim"]
    size: Float[Tensor, " point"]
    agreed: Bool[Tensor, " point"]
    method: str
    products: int


@runtime_checkable
class Method(Protocol):
    """A way to the leading modes."""

    def __call__(self, f: LatentMap, z: State, *, k: int) -> Modes:
        """The `k` leading modes at each row of `z`."""
        ...


def spectrum(f: LatentMap, z: State, *, k: int, method: Method | None = None) -> Spectrum:
    """The `k` leading eigenvalues of the Jacobian of `f` at each row of `z`, largest modulus first, each with its error.

    They describe stability only where `z` is at rest. Of a conjugate pair the one with positive imaginary part comes first; the last
    entry may be half of a pair.

    Args:
        f: The map, one row per point: ``f.take(points.row)`` for the points of a `FixedPointSet`.
        z: The points, in float64 or float32, the dtype of the map.
        k: How many eigenvalues.
        method: `by_dense` or `by_arnoldi`; by default the first up to 1,000 numbers a state, then the second.

    Returns:
        One entry per row of `z`. The error of an eigenvalue is its condition times its defect. With δ the larger of 1e-4 (float32:
        1e-3) and five errors, a point is unstable(n) if n of the returned moduli exceed 1 by more than their error and δ (n+ if those are all that were asked for); else
        ill-conditioned if an eigenvalue that could reach the circle has an error above 1e-3, or left and right
        vectors give different ones; else marginal if one lies within the band; else stable. Eigenvalues below 0.1 are held to be
        inside, however ill-conditioned: blocks of exact zeros from norm layers are. A Jacobian that is not finite gives NaN and ill-conditioned.

    Raises:
        ValueError: If `k` is below 1 or above the size of the state, `z` is in another dtype than float64 or float32, or
            `z` and `f` differ in their number of rows.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] @ torch.tensor([[0.5, 10.0], [0.0, 0.25]], dtype=torch.float64)}, {}, clock="tick")
        >>> found = spectrum(f, {"z": torch.zeros(1, 2, dtype=torch.float64)}, k=2)
        >>> found.eigenvalues.real.tolist(), found.verdict
        ([[0.5, 0.25]], ('stable',))

    References:
        Stewart (2001), Matrix Algorithms II; Trefethen and Embree (2005), Spectra and Pseudospectra, section 28 (Arnoldi on non-normal matrices).
    """
    found = leading_modes(f, z, k=k, method=method)
    modulus = found.eigenvalues.abs()
    return Spectrum(
        eigenvalues=found.eigenvalues,
        defect=found.defect,
        condition=found.condition,
        radius=modulus[:, 0],
        verdict=_verdicts(found, BAND[dtype_of(z)], torch.finfo(dtype_of(z)).eps, trees.size(z)),
        method=found.method,
        products=found.products,
        clock=f.clock,
        origin=f.origin,
    )


def leading_modes(f: LatentMap, z: State, *, k: int, method: Method | None = None) -> Modes:
    """The `k` leading eigenvalues at each row of `z` with their left and right eigenvectors. Arguments as for `spectrum`."""
    f.coordinates(z)
    dim = trees.size(z)
    if dtype_of(z) not in BAND:
        raise ValueError(
            f"`spectrum` got states in {str(dtype_of(z)).removeprefix('torch.')}. Eigenvalues need float64 or float32. "
            "Cast both: `reasoner.to(torch.float64).bind(puzzles)` and `trees.to(z, torch.float64)`."
        )
    if not 1 <= k <= dim:
        raise ValueError(f"`spectrum` got k={k} for states of {dim} numbers. A state of n numbers has n eigenvalues. Use k from 1 to {dim}.")
    check_at(f, z, "spectrum")
    return (method or (by_dense if dim <= DENSE_LIMIT else by_arnoldi))(f, z, k=k)


def dense_jacobian(f: LatentMap, z: State) -> Float[Tensor, "point dim dim"]:
    """The whole Jacobian at each row of `z` in float64, entry (i, j) the derivative of number i of f(z) by number j of z.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] ** 2}, {}, clock="tick")
        >>> dense_jacobian(f, {"z": torch.tensor([[1.0, 3.0]])})
        tensor([[[2., 0.],
                 [0., 6.]]], dtype=torch.float64)
    """
    f.coordinates(z)
    return _dense(Jacobian(f, z), torch.arange(trees.rows(z)), trees.size(z))


def by_dense(f: LatentMap, z: State, *, k: int) -> Modes:
    """All eigenvalues of the whole Jacobian, by LAPACK in float64 on the CPU; the `k` leading ones are returned."""
    dim = trees.size(z)
    jacobian, transpose = Jacobian(f, z), Jacobian(f, z, transposed=True)
    parts = [_dense_part(jacobian, transpose, rows, k) for rows in blocks_of_rows(f, z, vectors=6 * dim)]
    return _gather(parts, "dense", jacobian.products + transpose.products)


def by_arnoldi(f: LatentMap, z: State, *, k: int) -> Modes:
    """The `k` leading modes from two Krylov spaces, one of J and one, started anew, of its transpose.

    A space grows until the wanted Ritz values settle; what is not settled at 400 vectors shows in its defect.
    """
    jacobian, transpose = Jacobian(f, z), Jacobian(f, z, transposed=True)
    cap = min(LARGEST, trees.size(z))
    parts = [_arnoldi_part(jacobian, transpose, rows, trees.take(z, rows), k, cap) for rows in blocks_of_rows(f, z, vectors=cap + BLOCK)]
    return _gather(parts, "arnoldi", jacobian.products + transpose.products)


@dataclass(frozen=True, eq=False)
class _Side:
    """Eigenvalues with their unit eigenvectors from one side; the size is NaN where a product was not finite."""

    values: Complex[Tensor, "point mode"]
    vectors: Complex[Tensor, "point mode dim"]
    residual: Float[Tensor, "point mode"]
    size: Float[Tensor, " point"]


def _dense(jacobian: Jacobian, rows: Tensor, dim: int) -> Float[Tensor, "point dim dim"]:
    device = next(iter(jacobian.z.values())).device
    unit = torch.eye(dim, dtype=torch.float64, device=device).repeat(len(rows), 1)
    return jacobian(unit, rows.repeat_interleave(dim)).unflatten(0, (len(rows), dim)).transpose(1, 2)


def _dense_part(jacobian: Jacobian, transpose: Jacobian, rows: Tensor, k: int) -> Modes:
    dim = trees.size(jacobian.z)
    matrix = _dense(jacobian, rows, dim).cpu()
    finite = matrix.flatten(1).isfinite().all(1)
    safe = torch.where(finite[:, None, None], matrix, 0)
    values, vectors = torch.linalg.eig(safe)
    inverse, info = torch.linalg.inv_ex(vectors)
    lefts = (inverse / torch.linalg.vector_norm(inverse, dim=2, keepdim=True)).conj()
    lefts = torch.where((info == 0)[:, None, None], lefts, torch.nan)
    order = leading(values)[:, : min(dim, k + SPARE)]
    values, order = values.gather(1, order), order[:, :, None].expand(-1, -1, dim)
    vectors, lefts = vectors.mT.gather(1, order), lefts.gather(1, order)
    size = torch.where(finite, torch.linalg.vector_norm(safe, dim=1).amax(1), torch.nan)
    exact = torch.zeros(values.shape, dtype=torch.float64)
    return _assemble(jacobian, transpose, rows, _Side(values[:, :k], vectors[:, :k], exact[:, :k], size), _Side(values, lefts, exact, size))


def _arnoldi_part(jacobian: Jacobian, transpose: Jacobian, rows: Tensor, z: State, k: int, cap: int) -> Modes:
    kind, dim = dtype_of(z), trees.size(z)
    right = _eigen(jacobian, rows, z, k=k, settle=k, tol=RIGHT_TOL[kind], cap=cap, seed=1)
    pulled = _eigen(transpose, rows, z, k=min(dim, k + SPARE), settle=k, tol=LEFT_TOL[kind], cap=cap, seed=2)
    # Jᵀu = λu is u* turned: the left vector of λ is the conjugate of u.
    left = _Side(pulled.values, pulled.vectors.conj(), pulled.residual, pulled.size)
    return _assemble(jacobian, transpose, rows, right, left)


def _eigen(product: Jacobian, rows: Tensor, z: State, *, k: int, settle: int, tol: float, cap: int, seed: int) -> _Side:
    """The `k` leading Ritz pairs of each row, once the first `settle` have converged."""
    n, dim = len(rows), trees.size(z)
    device = next(iter(z.values())).device
    start = random_vectors(min(BLOCK, dim), dim, seed=seed).to(device).expand(n, -1, -1)
    space = Krylov(product.at(rows), start, cap=cap, noise=NOISE[dtype_of(z)], seed=seed)
    values = torch.full((n, k), torch.nan, dtype=torch.complex128)
    vectors = torch.full((n, k, dim), torch.nan, dtype=torch.complex128)
    residual, size = torch.full((n, k), torch.nan, dtype=torch.float64), torch.full((n,), torch.nan, dtype=torch.float64)
    look = min(cap, max(FIRST_LOOK, 2 * k + 4))
    while len(space.rows):
        space.step()
        broken = ~torch.isfinite(space.size)
        if bool(broken.any()):
            space.leave(broken)
        if space.m < look or not len(space.rows):
            continue
        theta, y, rest = ritz(space.h, k=k)
        done = (rest[:, :settle] <= tol * space.size[:, None].cpu()).all(1) | (space.m == cap)
        if bool(done.any()):
            at = space.rows[done]
            values[at], residual[at], size[at] = theta[done], rest[done], space.size.cpu()[done]
            chosen = y[done].mT.to(device)
            basis = space.basis[done.to(device)]
            vectors[at] = torch.complex(torch.bmm(chosen.real, basis), torch.bmm(chosen.imag, basis)).cpu()
            space.leave(done.to(device))
        look = min(cap, max(look + 4, round(look * GROWTH)))
    return _Side(values, vectors, residual, size)


def _assemble(jacobian: Jacobian, transpose: Jacobian, rows: Tensor, right: _Side, left: _Side) -> Modes:
    """Measure the defects, pair left with right, and read the conditions."""
    size = torch.maximum(right.size, left.size)
    finite = torch.isfinite(right.size + left.size)
    near = NEAR[dtype_of(jacobian.z)] * size.nan_to_num(0)
    values = torch.where(finite[:, None], right.values, torch.nan)
    defect = _defects(jacobian, rows, values, right.vectors)
    condition, partner = _pair(values, right.vectors, defect, left, near)
    own = _own_left(transpose, rows, values, right.vectors, condition, near)
    return Modes(
        eigenvalues=values,
        defect=defect,
        condition=torch.where(finite[:, None], torch.where(own, 1.0, condition), torch.nan),
        right=torch.where(finite[:, None, None], right.vectors, torch.nan),
        left=torch.where(own[:, :, None], right.vectors, partner),
        size=size,
        agreed=_agreed(values, left, near) & finite,
        method="",
        products=0,
    )


def _defects(jacobian: Jacobian, rows: Tensor, values: Tensor, vectors: Tensor) -> Float[Tensor, "point mode"]:
    """‖Jv − λv‖/‖v‖ from new products with the real and the imaginary part; the two of a conjugate pair share theirs."""
    device = next(iter(jacobian.z.values())).device
    # A mode is measured unless it is the second of a pair that is here.
    mate = (values[:, None, :] == values[:, :, None].conj()) & (values.imag < 0)[:, :, None]
    needed = values.isfinite() & ~mate.any(2)
    point, mode = needed.nonzero(as_tuple=True)
    chosen = vectors[point, mode]
    turned = values[point, mode].imag != 0
    image = torch.zeros_like(chosen)
    image += jacobian(chosen.real.to(device), rows[point]).cpu() if len(point) else 0
    if bool(turned.any()):
        image[turned] += 1j * jacobian(chosen[turned].imag.to(device), rows[point[turned]]).cpu()
    length = torch.linalg.vector_norm(chosen, dim=1)
    defect = torch.full(values.shape, torch.nan, dtype=torch.float64)
    defect[point, mode] = torch.linalg.vector_norm(image - values[point, mode][:, None] * chosen, dim=1) / length
    point, mode = mate.any(2).nonzero(as_tuple=True)
    defect[point, mode] = defect[point, mate[point, mode].to(torch.uint8).argmax(1)]
    return defect


def _pair(
    values: Tensor, vectors: Tensor, defect: Tensor, left: _Side, near: Float[Tensor, " point"]
) -> tuple[Float[Tensor, "point mode"], Complex[Tensor, "point mode dim"]]:
    """Condition and left vector: each right mode meets the span of the left vectors whose eigenvalue is its own.

    A right and a left eigenvalue are one if they differ by less than `near`, or than ten times what their residuals explain.
    """
    others = torch.where(left.vectors.isfinite().all(2), left.values, torch.nan)
    span = torch.where(others.isfinite()[:, :, None], left.vectors, 0)
    apart = (values[:, :, None] - others[:, None, :]).abs().nan_to_num(torch.inf)
    overlap = torch.einsum("pjd,pid->pij", span.conj(), vectors.nan_to_num(0))  # w*v
    gap, best = apart.min(2)
    alone = 1 / overlap.gather(2, best[:, :, None])[:, :, 0].abs()
    explained = 10 * alone * (defect + left.residual.gather(1, best))
    paired = gap <= torch.maximum(near[:, None], torch.minimum(explained, 1e5 * near[:, None]))
    # Copies of a multiple eigenvalue: the best left vector in their span, near-parallel ones counted once.
    same = ((others[:, None, :] - others.gather(1, best)[:, :, None]).abs() <= near[:, None, None]) & paired[:, :, None]
    gram = torch.einsum("pjd,pld->pjl", span.conj(), span)[:, None] * (same[:, :, :, None] & same[:, :, None, :])
    inside = torch.where(same, overlap, 0)
    weights = (torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ inside[..., None])[..., 0]
    condition = 1 / (inside.conj() * weights).sum(2).real.clamp(min=0).sqrt()
    partner = torch.einsum("pij,pjd->pid", weights, span)
    partner = partner / torch.linalg.vector_norm(partner, dim=2, keepdim=True)
    return torch.where(paired, condition, torch.inf).clamp(min=1), torch.where(paired[:, :, None], partner, torch.nan)


def _own_left(transpose: Jacobian, rows: Tensor, values: Tensor, vectors: Tensor, condition: Tensor, near: Tensor) -> Bool[Tensor, "point mode"]:
    """Which copies of a multiple eigenvalue have a right vector that is a left one too, as all of a normal Jacobian.

    Its eigenspace may be larger than the modes asked for; two samples of it then need not meet.
    """
    copies = ((values[:, :, None] - values[:, None, :]).abs() <= near[:, None, None]).sum(2) > 1
    own = torch.zeros_like(copies)
    point, mode = (copies & (condition > 1 + 1e-6)).nonzero(as_tuple=True)
    if len(point):
        chosen = vectors[point, mode].conj()
        device = next(iter(transpose.z.values())).device
        real, imag = (transpose(part.contiguous().to(device), rows[point]).cpu() for part in (chosen.real, chosen.imag))
        miss = torch.linalg.vector_norm(torch.complex(real, imag) - values[point, mode][:, None] * chosen, dim=1)
        own[point, mode] = miss <= near[point]
    return own


def _agreed(values: Tensor, left: _Side, near: Tensor) -> Bool[Tensor, " point"]:
    """Whether every settled left eigenvalue that is clearly larger than the smallest right one is among the right ones."""
    coarse = 1e5 * near[:, None]
    modulus = left.values.abs()
    apart = (left.values[:, :, None] - values[:, None, :]).abs().amin(2)
    extra = (modulus > values.abs().amin(1)[:, None] + coarse) & (apart > coarse) & (left.residual <= coarse) & (modulus > HARMLESS)
    return ~extra.any(1)


def _gather(parts: list[Modes], method: str, products: int) -> Modes:
    return Modes(
        eigenvalues=torch.cat([part.eigenvalues for part in parts]),
        defect=torch.cat([part.defect for part in parts]),
        condition=torch.cat([part.condition for part in parts]),
        right=torch.cat([part.right for part in parts]),
        left=torch.cat([part.left for part in parts]),
        size=torch.cat([part.size for part in parts]),
        agreed=torch.cat([part.agreed for part in parts]),
        method=method,
        products=products,
    )


def _verdicts(found: Modes, band: float, eps: float, dim: int) -> tuple[str, ...]:
    """The rule stated in `spectrum`, with no error below rounding."""
    modulus = found.eigenvalues.abs()
    error = found.condition * torch.maximum(found.defect, eps * found.size[:, None])
    margin = torch.clamp(5 * error, min=band)
    outside = modulus - error > 1 + margin
    inside = (modulus + error < 1 - margin) | (modulus < HARMLESS)
    open_ = ~outside & ~inside
    unsure = open_ & ~(error <= TRUSTED)
    words = []
    for point in range(len(modulus)):
        count = int(outside[point].sum())
        if not bool(found.eigenvalues[point].isfinite().all()):
            words.append("ill-conditioned")
        elif count:
            more = "+" if count == modulus.shape[1] < dim else ""
            words.append(f"unstable({count}{more})")
        elif bool(unsure[point].any()) or not bool(found.agreed[point]):
            words.append("ill-conditioned")
        else:
            words.append("marginal" if bool(open_[point].any()) else "stable")
    return tuple(words)
