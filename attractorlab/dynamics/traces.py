"""traces: tr Jᵏ and ‖J‖_F from products with random probes, with standard errors."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_at, check_strategy
from attractorlab.dynamics.krylov import Jacobian, Product, blocks_of_rows, device_of, dtype_of
from attractorlab.maps import LatentMap
from attractorlab.types import State, TraceEstimate

FEW = 16  # numbers of a state up to which the Jacobian is formed in any case: few probes of random signs may all agree there, and so hide their error

Push = Callable[[Float[Tensor, "row probe dim"]], Float[Tensor, "row probe dim"]]
"""The Jacobian of each row times each of its vectors."""
Samples = tuple[Float[Tensor, "row probe power"], Float[Tensor, "row probe"]]
"""One value per probe of each tr Jᵏ and of ‖J‖_F²: their means are the estimates, and their spread over √probes the standard errors."""
Method = Callable[[Push, Float[Tensor, "row probe dim"], int], Samples]


def traces(f: LatentMap, z: State, *, powers: int, probes: int, generator: torch.Generator, method: Method | None = None) -> TraceEstimate:
    """tr Jᵏ, k = 1 to `powers`, and ‖J‖_F of the Jacobian of `f` at each row of `z`, each with its standard error.

    The error is all there is to judge by: a mean that has stopped changing proves nothing. It falls like 1/√probes for a flat spectrum, and with `by_xtrace` much faster for one that decays.

    Args:
        f: The map, one row per point.
        z: The points, in float64 or float32, the dtype of the map.
        powers: The largest k.
        probes: Random vectors, the same for every row. With as many as the state has numbers or more, or up to 16 numbers, the Jacobian is formed instead: exact
            values, with error 0.
        generator: Draws the probes.
        method: `by_xtrace`, which is also used if none is given, takes powers + powers(powers + 1)/2 products a probe; `by_hutchinson` takes `powers`.

    Returns:
        One entry per row.

    Raises:
        ValueError: If `powers` is below 1 or `probes` below 2, `z` is in another dtype than float64 or float32, or rows or dtypes differ.

    Example:
        >>> shift = LatentMap(lambda z, x: {"z": z["z"].roll(1, 1)}, {}, clock="tick")
        >>> g = torch.Generator().manual_seed(0)
        >>> found = traces(shift, {"z": torch.zeros(1, 3).double()}, powers=3, probes=8, generator=g)
        >>> found.traces.tolist(), found.exact, round(found.frobenius.item(), 6)
        ([[0.0, 0.0, 3.0]], True, 1.732051)

    References:
        Hutchinson (1990); Epperly, Tropp and Webber (2024), XTrace: making the most of every sample in stochastic trace estimation.
    """
    if powers < 1 or probes < 2:
        raise ValueError(
            f"`traces` got powers={powers}, probes={probes}. A power is 1 or more, and an error needs the spread of 2 probes or more. Use powers=1, probes=16."
        )
    method, dim = by_xtrace if method is None else method, trees.size(z)
    check_strategy(method, "method", "traces", example="by_xtrace")
    check_points(f, z, caller="traces")
    exact = dim <= max(probes, FEW)
    # Drawn once: no row's answer depends on the rows beside it.
    draws = torch.empty(0, dim) if exact else torch.randn(probes, dim, generator=generator, dtype=torch.float64, device=generator.device)
    found, products = [], 0
    for rows in blocks_of_rows(f, z, vectors=(dim if exact else probes) * 6):
        jacobian = Jacobian(f.take(rows), trees.take(z, rows))
        if exact:
            found.append(_exact(jacobian, powers))
        else:
            push = pushing(jacobian.at(torch.arange(len(rows))))
            found.append(_spread(method(push, draws.to(device_of(z)).expand(len(rows), -1, -1), powers)))
        products += jacobian.products
    values, errors, norms, norm_errors = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return TraceEstimate(
        traces=values,
        standard_error=errors,
        frobenius=norms,
        frobenius_error=norm_errors,
        probes=0 if exact else probes,
        exact=exact,
        method="dense" if exact else method.__name__.removeprefix("by_"),
        products=products,
        clock=f.clock,
        origin=f.origin,
    )


def by_hutchinson(push: Push, draws: Float[Tensor, "row probe dim"], powers: int) -> Samples:
    """vᵀJᵏv for vectors v of random signs: a value per probe, each of which has the mean tr Jᵏ, whether J is symmetric or not.

    Its variance is 2(‖S‖_F² − Σ s_ii²), S the symmetric part of Jᵏ: a diagonal Jacobian is met exactly. Where no more than a dozen entries of a state
    interact, few probes may agree by chance, and their spread is then too small.

    References:
        Hutchinson (1990).
    """
    signs = torch.where(draws >= 0, 1.0, -1.0).to(draws)
    y, values, squares = signs, [], []
    for _ in range(powers):
        y = push(y)
        values.append((signs * y).sum(2))
        squares.append(y.square().sum(2))
    return torch.stack(values, 2), squares[0]


def by_xtrace(push: Push, draws: Float[Tensor, "row probe dim"], powers: int) -> Samples:
    """The trace on the span of what all probes but one were mapped to, plus what the one sees of the rest: a value per probe, all from the same products.

    Each has the mean tr Jᵏ, whether J is symmetric or not, and what the leading directions contribute is met exactly. The values share their subspaces, so that for a nearly
    symmetric Jacobian of flat spectrum their spread alone is too small, by up to n/(n − m) for m probes in n dimensions; it is widened by that.

    References:
        Epperly, Tropp and Webber (2024), section 2.2 and the vectors of exact length of section 2.3.
    """
    m, n = draws.shape[1:]
    omega = math.sqrt(n) * draws / torch.linalg.vector_norm(draws, dim=2, keepdim=True)
    y, values, squares = omega, [], omega[:, :, 0]
    for k in range(1, powers + 1):
        y = push(y)
        fine = y.isfinite().flatten(1).all(1)
        q, r = torch.linalg.qr(torch.where(fine[:, None, None], y, 0).mT)
        pushed = q.mT
        for _ in range(k):
            pushed = push(pushed)
        fine = fine & pushed.isfinite().flatten(1).all(1)
        pushed = torch.where(fine[:, None, None], pushed, 0)
        out = _left_out(r)
        h, w, t = q.mT @ pushed.mT, q.mT @ omega.mT, pushed @ omega.mT
        p = w - out * (out * w).sum(1, keepdim=True)  # Qp is the part of a probe in the span of the others' images
        scale = (n - m + 1) / (n - p.square().sum(1))  # the rest of it is brought to its mean length
        rest = (w * r).sum(1) - (t * p).sum(1) - (p * r).sum(1) + (p * (h @ p)).sum(1)
        value = h.diagonal(dim1=1, dim2=2).sum(1)[:, None] - (out * (h @ out)).sum(1) + scale * rest
        values.append(torch.where(fine[:, None], _widened(value, n / (n - m)), torch.nan))
        if k == 1:
            outside = (y - (pushed.mT @ p).mT).square().sum(2)
            squares = pushed.square().sum((1, 2))[:, None] - (pushed.mT @ out).square().sum(1) + scale * outside
            squares = torch.where(fine[:, None], _widened(squares, n / (n - m)), torch.nan)
    return torch.stack(values, 2), squares


def pushing(product: Product) -> Push:
    """A product as one with several vectors of every row, one after the other."""

    def push(vectors: Float[Tensor, "row probe dim"]) -> Float[Tensor, "row probe dim"]:
        everyone = torch.arange(len(vectors))
        return torch.stack([product(vectors[:, j], everyone) for j in range(vectors.shape[1])], 1)

    return push


def check_points(f: LatentMap, z: State, *, caller: str) -> None:
    """Refuse rows or dtypes that do not go together.

    Raises:
        ValueError: If `z` is in another dtype than float64 or float32, or rows or dtypes differ.
    """
    f.coordinates(z)
    if dtype_of(z) not in (torch.float64, torch.float32):
        raise ValueError(
            f"`{caller}` got states in {str(dtype_of(z)).removeprefix('torch.')}. Products with a Jacobian need float64 or float32. "
            "Cast both: `reasoner.to(torch.float64).bind(puzzles)` and `trees.to(z, torch.float64)`."
        )
    check_at(f, z, caller)


def whole(jacobian: Jacobian) -> Float[Tensor, "row dim dim"]:
    """The whole Jacobian of each row; NaN all over where it is not finite."""
    matrix = jacobian.matrix(torch.arange(trees.rows(jacobian.z)))
    return torch.where(matrix.isfinite().flatten(1).all(1)[:, None, None], matrix, torch.nan)


def _exact(jacobian: Jacobian, powers: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrix = whole(jacobian)
    power, values = matrix, []
    for k in range(powers):
        power = matrix @ power if k else matrix
        values.append(power.diagonal(dim1=1, dim2=2).sum(1))
    norm, found = torch.linalg.vector_norm(matrix.flatten(1), dim=1), torch.stack(values, 1)
    found = torch.where(found.isfinite(), found, torch.nan)
    none = [torch.where(one.isfinite(), 0.0, torch.nan) for one in (found, norm)]
    return found, none[0], norm, none[1]


def _spread(samples: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and standard errors over the probes; ‖J‖_F by the delta method."""
    values, squares = samples
    root = math.sqrt(values.shape[1])
    norm = squares.mean(1).clamp(min=0).sqrt()
    values = torch.where(values.isfinite(), values, torch.nan)
    return values.mean(1), _deviation(values) / root, norm, _deviation(squares) / root / (2 * norm).clamp(min=1e-300)


def _deviation(values: Float[Tensor, "row probe ..."]) -> Float[Tensor, "row ..."]:
    """The standard deviation over the probes; of no rows too, where torch's own warns."""
    return ((values - values.mean(1, keepdim=True)).square().sum(1) / (values.shape[1] - 1)).sqrt()


def _left_out(r: Float[Tensor, "row m m"]) -> Float[Tensor, "row m m"]:
    """Unit columns, the i-th orthogonal to all columns of the triangular `r` but the i-th."""
    diagonal = r.diagonal(dim1=1, dim2=2)
    # Where the images span less than there are probes, any such column will do: a pivot of rounding's size finds one.
    floor = 1e-15 * diagonal.abs().amax(1, keepdim=True)
    safe = torch.where(diagonal.abs() > floor, diagonal, torch.where(floor > 0, floor, 1))
    lower = (r.triu(1) + torch.diag_embed(safe)).mT
    columns = torch.linalg.solve_triangular(lower, torch.eye(r.shape[1], dtype=r.dtype, device=r.device).expand_as(r), upper=False)
    columns = columns / columns.abs().amax(1, keepdim=True)  # their squares may be beyond the largest number
    return columns / torch.linalg.vector_norm(columns, dim=1, keepdim=True)


def _widened(values: Float[Tensor, "row probe"], by: float) -> Float[Tensor, "row probe"]:
    mean = values.mean(1, keepdim=True)
    return mean + by * (values - mean)

