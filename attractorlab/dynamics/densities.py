"""densities: how the singular values of a Jacobian, and the eigenvalues of its symmetric part, are distributed, without forming it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.krylov import DENSE_LIMIT, NOISE, Jacobian, Krylov, Product, blocks_of_rows, dtype_of, random_vectors
from attractorlab.dynamics.traces import check_points, whole
from attractorlab.maps import LatentMap
from attractorlab.types import SpectralDensity, State

Quadrature = tuple[Float[Tensor, "row node"], Float[Tensor, "row node"]]


def singular_density(f: LatentMap, z: State, *, probes: int, steps: int, generator: torch.Generator) -> SpectralDensity:
    """How the singular values of the Jacobian of `f` at each row of `z` are distributed, by Golub-Kahan quadrature from random vectors.

    Args:
        f: The map, one row per point.
        z: The points, in float64 or float32, the dtype of the map.
        probes: Random unit vectors, the same for every row; the error of every average is their spread.
        steps: Nodes of each probe's quadrature: what a histogram can resolve.
        generator: Draws the probes.

    Returns:
        One entry per row. Where forming the Jacobian takes no more products (up to 1,000 numbers a state), all singular values, exactly.

    Raises:
        ValueError: If `probes` or `steps` is below 1, `z` is in another dtype than float64 or float32, or rows or dtypes differ.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] * torch.tensor([3.0, -4.0]).double()}, {}, clock="tick")
        >>> found = singular_density(f, {"z": torch.zeros(1, 2).double()}, probes=2, steps=2, generator=torch.Generator().manual_seed(0))
        >>> found.nodes.tolist(), found.exact, found.average(torch.square)[0].item()
        ([[[3.0, 4.0]]], True, 12.5)

    References:
        Golub and Kahan (1965); Golub and Meurant (2010), Matrices, Moments and Quadrature, chapters 6 and 11; Ubaru, Chen and Saad (2017), for the error over probes.
    """
    return _density(f, z, probes, steps, generator, "singular values")


def symmetric_density(f: LatentMap, z: State, *, probes: int, steps: int, generator: torch.Generator) -> SpectralDensity:
    """How the eigenvalues of (J + Jᵀ)/2, the symmetric part of the Jacobian of `f` at each row of `z`, are distributed, by stochastic Lanczos quadrature.

    They bound the real parts of the eigenvalues of J, and are them only where J is symmetric.

    Args:
        f: The map, one row per point.
        z: The points, in float64 or float32, the dtype of the map.
        probes: Random unit vectors, the same for every row; the error of every average is their spread.
        steps: Nodes of each probe's quadrature: what a histogram can resolve.
        generator: Draws the probes.

    Returns:
        One entry per row. Where forming the Jacobian takes no more products (up to 1,000 numbers a state), all eigenvalues, exactly.

    Raises:
        ValueError: As for `singular_density`.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"].roll(1, 1)}, {}, clock="tick")
        >>> found = symmetric_density(f, {"z": torch.zeros(1, 4).double()}, probes=2, steps=2, generator=torch.Generator().manual_seed(0))
        >>> (found.nodes + 0.0).round(decimals=6).abs().tolist()
        [[[1.0, 0.0, 0.0, 1.0]]]

    References:
        Golub and Meurant (2010), chapter 6; Lin, Saad and Yang (2016), Approximating spectral densities of large matrices.
    """
    return _density(f, z, probes, steps, generator, "symmetric part")


def _density(f: LatentMap, z: State, probes: int, steps: int, generator: torch.Generator, kind: str) -> SpectralDensity:
    caller = "singular_density" if kind == "singular values" else "symmetric_density"
    if probes < 1 or steps < 1:
        raise ValueError(f"`{caller}` got probes={probes}, steps={steps}. A quadrature has a probe and a node or more. Use probes=8, steps=32.")
    check_points(f, z, caller=caller)
    dim = trees.size(z)
    nodes = min(steps, dim)
    exact = dim <= min(DENSE_LIMIT, 2 * probes * nodes)
    device = next(iter(z.values())).device
    draws = torch.empty(0, dim) if exact else torch.randn(probes, dim, generator=generator, dtype=torch.float64, device=generator.device).to(device)
    found, products = [], 0
    for rows in blocks_of_rows(f, z, vectors=4 * dim if exact else 2 * nodes + 8):
        here, at = f.take(rows), trees.take(z, rows)
        forth, back = Jacobian(here, at), Jacobian(here, at, transposed=True)
        everyone = torch.arange(len(rows))
        if exact:
            parts = [_all(whole(forth), kind)]
        else:
            ahead, behind = forth.at(everyone), back.at(everyone)
            quadrature = _golub_kahan if kind == "singular values" else _lanczos
            parts = [quadrature(ahead, behind, draw.expand(len(rows), -1), nodes, NOISE[dtype_of(z)]) for draw in draws]
        found.append(tuple(torch.stack(side, 1) for side in zip(*parts, strict=True)))
        products += forth.products + back.products
    return SpectralDensity(
        nodes=torch.cat([part[0] for part in found]),
        weights=torch.cat([part[1] for part in found]),
        kind=kind,
        size=dim,
        exact=exact,
        products=products,
        clock=f.clock,
        origin=f.origin,
    )


def _all(matrix: Float[Tensor, "row dim dim"], kind: str) -> Quadrature:
    """Every value, with equal weights."""
    matrix = matrix.cpu()
    values = _finite(matrix, lambda a: torch.linalg.svdvals(a).flip(1) if kind == "singular values" else torch.linalg.eigvalsh((a + a.mT) / 2))
    return values, torch.full_like(values, 1 / values.shape[1]) + 0 * values


def _lanczos(ahead: Product, behind: Product, start: Float[Tensor, "row dim"], steps: int, noise: float) -> Quadrature:
    """Gauss quadrature of the symmetric part for the start vectors."""

    def product(v: Tensor, at: Tensor) -> Tensor:
        return (ahead(v, at) + behind(v, at)) / 2

    space = Krylov(product, start[:, None].contiguous(), cap=steps, noise=noise, seed=6)
    for _ in range(steps):
        space.step()
    h = space.h[:, :steps].cpu()
    return _gauss(h, lambda a: torch.linalg.eigh((a + a.mT) / 2))


def _golub_kahan(ahead: Product, behind: Product, start: Float[Tensor, "row dim"], steps: int, noise: float) -> Quadrature:
    """Gauss quadrature of JᵀJ for the start vectors, from the singular values of its bidiagonal factor, so that small ones keep their digits.

    Where a space closes it goes on from a random vector, with a zero in the factor: those nodes have weight 0.
    """
    everyone = torch.arange(len(start))
    n, dim = start.shape
    left, right = start.new_zeros(n, steps, dim), start.new_zeros(n, steps, dim)
    factor = start.new_zeros(n, steps, steps)
    size = start.new_zeros(n)
    right[:, 0] = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    for j in range(steps):
        w = ahead(right[:, j], everyone)
        size = torch.maximum(size, torch.linalg.vector_norm(w, dim=1))
        left[:, j], factor[:, j, j] = _orthogonal(w, left[:, :j], noise * size, seed=7000 + j)
        if j + 1 < steps:
            right[:, j + 1], factor[:, j, j + 1] = _orthogonal(behind(left[:, j], everyone), right[:, : j + 1], noise * size, seed=8000 + j)

    def split(a: Tensor) -> tuple[Tensor, Tensor]:
        _, values, vectors = torch.linalg.svd(a)
        return values.flip(1), vectors.mT.flip(2)

    return _gauss(factor.cpu(), split)


def _gauss(small: Float[Tensor, "row m m"], split: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Quadrature:
    """Nodes in rising order, and the squares of the first entries of their vectors."""
    fine = small.isfinite().flatten(1).all(1)
    values, vectors = split(torch.where(fine[:, None, None], small, 0))
    weights = vectors[:, 0].square()
    return torch.where(fine[:, None], values, torch.nan), torch.where(fine[:, None], weights / weights.sum(1, keepdim=True), torch.nan)


def _finite(matrix: Float[Tensor, "row m m"], of: Callable[[Tensor], Tensor]) -> Float[Tensor, "row m"]:
    fine = matrix.isfinite().flatten(1).all(1)
    return torch.where(fine[:, None], of(torch.where(fine[:, None, None], matrix, 0)), torch.nan)


def _orthogonal(
    w: Float[Tensor, "row dim"], basis: Float[Tensor, "row j dim"], floor: Float[Tensor, " row"], *, seed: int
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, " row"]]:
    """A unit vector along what `w` has outside the basis and the length of that; a random one, and 0, where only rounding is left."""

    def outside(x: Tensor) -> Tensor:
        for _ in range(2):
            x = x - torch.bmm(torch.bmm(x[:, None], basis.mT), basis)[:, 0]
        return x

    w = outside(w)
    length = torch.linalg.vector_norm(w, dim=1)
    closed = length <= floor
    if bool(closed.any()):
        draw = outside(random_vectors(1, w.shape[1], seed=seed).to(w).expand_as(w))
        w, length = torch.where(closed[:, None], draw, w), torch.where(closed, 0.0, length)
    return w / torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp(min=1e-300), length
