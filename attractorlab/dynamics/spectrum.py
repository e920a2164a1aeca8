"""spectrum: the leading eigenvalues of the Jacobian at each point, each with its error, and what they say about stability."""

import torch
from jaxtyping import Float
from scipy.linalg import eig
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_at, check_strategy
from attractorlab.dynamics.krylov import DENSE_LIMIT, Jacobian, Product, blocks_of_rows, dtype_of
from attractorlab.dynamics.krylov_schur import SPARE, by_krylov_schur
from attractorlab.dynamics.modes import HARMLESS, Method, Modes, Order, Side, assemble, by_modulus, gather, leading, operators
from attractorlab.maps import LatentMap
from attractorlab.types import Spectrum, State

BAND = {torch.float64: 1e-4, torch.float32: 1e-3}  # half width of the marginal band around 1
TRUSTED = 1e-3  # an error estimate above it is no longer one
DEPENDENT = 1e7  # condition of the matrix of eigenvectors above which its inverse is not to be trusted
SCATTERED = 20  # errors: eigenvalues nearer to each other may be one multiple eigenvalue that rounding took apart


def spectrum(f: LatentMap, z: State, *, k: int, order: Order = by_modulus, method: Method | None = None) -> Spectrum:
    """The `k` leading eigenvalues of the Jacobian of `f` at each row of `z`, largest modulus first, each with its error.

    They describe stability only where `z` is at rest. Of a conjugate pair the one with positive imaginary part comes first; the last
    entry may be half of a pair.

    Args:
        f: The map, one row per point: ``f.take(points.row)`` for the points of a `FixedPointSet`.
        z: The points, in float64 or float32, the dtype of the map.
        k: How many eigenvalues.
        order: `by_modulus`, or `by_real_part` for the slow directions, whose eigenvalues are nearest 1. Radius and verdict then speak of the real parts alone: of
            the flow dz/dt = f(z) − z, not of the ticks.
        method: `by_dense` or `by_krylov_schur`; by default the first up to 1,000 numbers a state, then the second.

    Returns:
        One entry per row of `z`. The error of an eigenvalue is its condition times its defect, or times the rounding of a product where that is more; eigenvalues within 20 errors of
        each other, the smaller being counted, may be one defective eigenvalue taken apart, and have as many times that error. With δ the larger of 1e-4 (float32:
        1e-3) and five errors, a point is unstable(n) if n of the returned moduli exceed 1 by more than their error and δ (n+ if there may be more: those are all that were asked for, or what follows holds too); else
        ill-conditioned if an eigenvalue that could reach the circle has an error above 1e-3, or left and right
        vectors, whose searches start apart, give different ones; else marginal if one lies within the band; else stable. Eigenvalues below 0.1 are held to be
        inside, however ill-conditioned: blocks of exact zeros from norm layers are. A Jacobian that is not finite gives NaN and ill-conditioned.
        Where the map can be differentiated in reverse mode alone, eigenvalues and defects are those of the transposed Jacobian, and `method` says so.

    Raises:
        ValueError: If `k` is below 1 or above the size of the state, `z` is in another dtype than float64 or float32,
            `z` and `f` differ in their number of rows, or the map cannot be differentiated.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] @ torch.tensor([[0.5, 10.0], [0.0, 0.25]], dtype=torch.float64)}, {}, clock="tick")
        >>> found = spectrum(f, {"z": torch.zeros(1, 2, dtype=torch.float64)}, k=2)
        >>> found.eigenvalues.real.tolist(), found.verdict
        ([[0.5, 0.25]], ('stable',))

    References:
        Stewart (2001), Matrix Algorithms II; Trefethen and Embree (2005), Spectra and Pseudospectra, section 28 (Arnoldi on non-normal matrices).
    """
    found = leading_modes(f, z, k=k, order=order, method=method)
    error = _errors(found, torch.finfo(dtype_of(z)).eps)
    return Spectrum(
        eigenvalues=found.eigenvalues,
        defect=found.defect,
        condition=found.condition,
        error=error,
        radius=order(found.eigenvalues)[:, 0],
        verdict=_verdicts(found, error, BAND[dtype_of(z)], trees.size(z), order),
        order=order.__name__.removeprefix("by_").replace("_", " "),
        method=found.method,
        products=found.products,
        clock=f.clock,
        origin=f.origin,
    )


def leading_modes(f: LatentMap, z: State, *, k: int, order: Order = by_modulus, method: Method | None = None) -> Modes:
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
    check_strategy(order, "order", "spectrum", example="by_modulus")
    way = (by_dense if dim <= DENSE_LIMIT else by_krylov_schur) if method is None else method
    check_strategy(way, "method", "spectrum", example="by_krylov_schur")
    check_at(f, z, "spectrum")
    return way(f, z, k=k, order=order)


def dense_jacobian(f: LatentMap, z: State) -> Float[Tensor, "point dim dim"]:
    """The whole Jacobian at each row of `z` in float64, entry (i, j) the derivative of number i of f(z) by number j of z.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] ** 2}, {}, clock="tick")
        >>> dense_jacobian(f, {"z": torch.tensor([[1.0, 3.0]])})
        tensor([[[2., 0.],
                 [0., 6.]]], dtype=torch.float64)
    """
    f.coordinates(z)
    return Jacobian(f, z).matrix(torch.arange(trees.rows(z)))


def by_dense(f: LatentMap, z: State, *, k: int, order: Order) -> Modes:
    """All eigenvalues of the whole Jacobian, by LAPACK in float64 on the CPU; the `k` leading ones are returned."""
    dim = trees.size(z)
    jacobian, transpose, swapped = operators(f, z)
    parts = [_dense_part(jacobian, transpose, rows, k, order) for rows in blocks_of_rows(f, z, vectors=6 * dim)]
    return gather(parts, "dense", jacobian.products + transpose.products, swapped=swapped)


def _dense_part(jacobian: Jacobian, transpose: Jacobian, rows: Tensor, k: int, order: Order) -> Modes:
    dim = trees.size(jacobian.z)
    matrix = jacobian.matrix(rows).cpu()
    finite = matrix.flatten(1).isfinite().all(1)
    safe = torch.where(finite[:, None, None], matrix, 0)
    values, vectors = torch.linalg.eig(safe)
    inverse, info = torch.linalg.inv_ex(vectors)
    spread = torch.linalg.vector_norm(inverse, dim=(1, 2)) * torch.linalg.vector_norm(vectors, dim=(1, 2))
    lefts = (inverse / torch.linalg.vector_norm(inverse, dim=2, keepdim=True)).conj()
    # Vectors that are nearly dependent, as of a defective eigenvalue, cannot be inverted; the left ones exist all the same.
    for point in ((info != 0) | ~(spread < DEPENDENT)).nonzero().squeeze(1).tolist():
        theta, turned, straight = map(torch.from_numpy, eig(safe[point].numpy(), left=True, right=True))
        values[point], vectors[point], lefts[point] = theta, straight, turned.mT
    size = torch.where(finite, torch.linalg.vector_norm(safe, dim=1).amax(1), torch.nan)
    sides = []
    for basis, count in ((vectors.mT, k), (lefts, min(dim, k + SPARE))):
        place = leading(values, order=order)[:, :count]
        exact, one = torch.zeros(place.shape, dtype=torch.float64), torch.ones(len(rows), dtype=torch.int64)
        sides.append(Side(values.gather(1, place), basis.gather(1, place[:, :, None].expand(-1, -1, dim)), exact, size, one, one == 1))
    device = next(iter(jacobian.z.values())).device

    def on_device(operator: Jacobian) -> Product:
        return lambda v, at: operator(v.to(device), rows[at]).cpu()

    return assemble(on_device(jacobian), on_device(transpose), dtype_of(jacobian.z), sides[0], sides[1], order)


def _errors(found: Modes, eps: float) -> Float[Tensor, "point mode"]:
    """The rule stated in `spectrum`."""
    error = found.condition * torch.maximum(found.defect, eps * found.size[:, None])
    apart = (found.eigenvalues[:, :, None] - found.eigenvalues[:, None, :]).abs()
    near = (apart <= SCATTERED * torch.minimum(error[:, :, None], error[:, None, :])) & error.isfinite()[:, None, :]
    near = near | torch.eye(apart.shape[1], dtype=torch.bool)
    for _ in range(apart.shape[1].bit_length()):  # near ones of near ones
        near = (near.double() @ near.double()) > 0
    # The largest of their errors: where it is infinite, that of a mode without a partner, it stays with it.
    worst = torch.where(near & error.isfinite()[:, None, :], error[:, None, :], 0).amax(2)
    return torch.where(error.isfinite(), near.sum(2) * worst, error)


def _verdicts(found: Modes, error: Float[Tensor, "point mode"], band: float, dim: int, order: Order) -> tuple[str, ...]:
    """The rule stated in `spectrum`."""
    key = order(found.eigenvalues)
    margin = torch.clamp(5 * error, min=band)
    outside = key - error > 1 + margin
    inside = (key + error < 1 - margin) | (found.eigenvalues.abs() < HARMLESS)
    open_ = ~outside & ~inside
    unsure = open_ & ~(error <= TRUSTED)
    words = []
    for point in range(len(key)):
        count = int(outside[point].sum())
        if not bool(found.eigenvalues[point].isfinite().all()):
            words.append("ill-conditioned")
        elif count:
            more = "+" if count == key.shape[1] < dim or bool(unsure[point].any()) or not bool(found.agreed[point]) else ""
            words.append(f"unstable({count}{more})")
        elif bool(unsure[point].any()) or not bool(found.agreed[point]):
            words.append("ill-conditioned")
        else:
            words.append("marginal" if bool(open_[point].any()) else "stable")
    return tuple(words)
