"""Small linear systems of many rows, solved directly; where one is singular, by its shortest least-squares solution."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attractorlab import trees
from attractorlab.dynamics.krylov import Jacobian, dtype_of, random_vectors
from attractorlab.maps import LatentMap
from attractorlab.types import State

SINGULAR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative singular value below which a direction is held to be a null direction, by dtype of the map whose Jacobian it is."""


def matrix_of(f: LatentMap, z: State) -> Float[Tensor, "row dim dim"]:
    """The Jacobians at the rows of `z` in float64, entry (i, j) the derivative of number i of f(z) by number j of z.

    All rows of a matrix are walked back at once through one call of the map. Where that is not possible, it is made of products, a column at a time.
    """
    rows, dim = trees.rows(z), trees.size(z)
    device = next(iter(z.values())).device
    unit = torch.eye(dim, dtype=torch.float64, device=device)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaves = {name: leaf.detach().clone().requires_grad_(True) for name, leaf in z.items()}
            out = f(leaves)
            given = trees.unflatten(unit.to(dtype_of(z)), z)
            walked = torch.autograd.grad(
                [out[name] for name in z],
                list(leaves.values()),
                [one[:, None].expand(dim, rows, *one.shape[1:]) for one in given.values()],
                allow_unused=True,
                is_grads_batched=True,
            )
        parts = [leaf.new_zeros(dim, *leaf.shape) if one is None else one for leaf, one in zip(z.values(), walked, strict=True)]
        whole = parts[0].flatten(2) if len(parts) == 1 else torch.cat([one.flatten(2) for one in parts], dim=2)
        return whole.to(torch.float64).transpose(0, 1).contiguous()
    except RuntimeError:  # an operation without a reverse mode or a batched one
        return Jacobian(f, z).matrix(torch.arange(rows))


class Factors:
    """The factored matrices of so many rows, for further right-hand sides; `there` says which are known and far from singular."""

    def __init__(self, rows: int, like: Float[Tensor, "row dim"]) -> None:
        dim = like.shape[1]
        self.lu = like.new_empty(rows, dim, dim)
        self.pivots = torch.empty(rows, dim, dtype=torch.int32, device=like.device)
        self.there = torch.zeros(rows, dtype=torch.bool, device=like.device)

    def keep(self, rows: Int[Tensor, " row"], lu: Float[Tensor, "row dim dim"], pivots: Int[Tensor, "row dim"], sound: Bool[Tensor, " row"]) -> None:
        """Take in the factors of the rows numbered `rows`."""
        self.lu[rows], self.pivots[rows], self.there[rows] = lu.mT, pivots, sound

    def solve(self, rows: Int[Tensor, " row"], b: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """The x with A x = b for the matrices numbered `rows`."""
        return torch.linalg.lu_solve(self.lu[rows].mT, self.pivots[rows], b[:, :, None], adjoint=True)[:, :, 0]


def solve(
    a: Float[Tensor, "row dim dim"], b: Float[Tensor, "row dim"], *, singular: float, rounding: Float[Tensor, " row"]
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, " row"], tuple[Tensor, Tensor, Bool[Tensor, " row"]]]:
    """The x with A x = b row by row, the relative residual it leaves, and the factors, with which of them are sound; NaN where A or b is not finite.

    A matrix that is nearly singular is met by least squares without the directions of singular values below `singular` times the largest, and without those of small ones, below
    its square root, along which b is no more than `rounding`: there x would be rounding, made large. It is noticed by a right-hand side of random numbers, whose solution is then long.
    """
    size, norm = torch.linalg.vector_norm(b, dim=1), torch.linalg.vector_norm(a, dim=(1, 2))
    finite = size.isfinite() & norm.isfinite()
    if not bool(finite.all()):
        a = torch.where(finite[:, None, None], a, torch.eye(b.shape[1], dtype=b.dtype, device=b.device))
        b = torch.where(finite[:, None], b, 0)
    probe = random_vectors(1, b.shape[1], seed=0).to(b)
    lu, pivots, info = torch.linalg.lu_factor_ex(a.mT)  # LAPACK goes by columns: the transpose is factored without turning it round
    both = torch.linalg.lu_solve(lu, pivots, torch.stack([b, (probe / probe.norm()).expand_as(b)], dim=2), adjoint=True)
    near = (info != 0) | ~(torch.linalg.vector_norm(both[:, :, 1], dim=1) * norm < singular**-0.5)
    near &= finite
    x, left = torch.where(finite[:, None], both[:, :, 0], torch.nan), torch.where(finite, 0.0, torch.nan).to(b)
    if bool(near.any()):
        x[near] = _shortest(a[near], b[near], singular, rounding[near])
        rest = torch.bmm(a[near], x[near][:, :, None])[:, :, 0] - b[near]
        left[near] = torch.linalg.vector_norm(rest, dim=1) / torch.where(size > 0, size, 1)[near]
    return x, left, (lu, pivots, finite & ~near)


def _shortest(a: Tensor, b: Tensor, singular: float, rounding: Tensor) -> Float[Tensor, "row dim"]:
    """The shortest least-squares solution without the directions that `solve` leaves out."""
    u, s, vh = torch.linalg.svd(a)
    inside = torch.einsum("rij,ri->rj", u, b)
    kept = (s > singular * s[:, :1]) & ((s > singular**0.5 * s[:, :1]) | (inside.abs() > rounding[:, None]))
    return torch.einsum("rj,rjk->rk", torch.where(kept, inside / torch.where(kept, s, 1), 0), vh)
