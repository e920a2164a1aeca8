"""pseudospectra: how far out an eigenvalue can come to lie when a matrix is disturbed a little."""

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

ROUNDS = 30  # of the criss-cross search; it converges quadratically, after a few
AHEAD = 1e-9  # relative distance beyond the best radius at which a circle is searched, and so the accuracy
NEAR = 1e-4  # how far from the unit circle a computed eigenvalue may lie and still stand for a crossing; what it stands for is checked
TRIED = 3  # crossings of a ray, from outside, that are looked at
RAYS = 4  # through the leading eigenvalues, on which the search begins


def pseudospectral_radius(matrix: Complex[Tensor, "point longer m"], epsilon: float) -> Float[Tensor, " point"]:
    """The largest modulus of an eigenvalue of A + E over all ‖E‖₂ ≤ `epsilon`, that is the largest |z| with ‖(zI − A)⁻¹‖₂ ≥ 1/`epsilon`.

    A square matrix: to a relative 1e-9, unless `epsilon` is near the rounding of ‖A‖. A longer one is the projection of a larger matrix on a Krylov space, with the rows below
    its square part: what is found is a lower bound for the larger matrix, and NaN where no point so near to an eigenvalue was seen.

    Args:
        matrix: The matrices, finite.
        epsilon: The size of the disturbance, absolute.

    Example:
        >>> block = torch.tensor([[[0.5, 10.0], [0.0, 0.5]]], dtype=torch.complex128)
        >>> round(pseudospectral_radius(block, 0.1).item(), 9), round(0.5 + math.sqrt(0.1**2 + 0.1 * 10), 9)
        (1.504987562, 1.504987562)

    References:
        Mengi and Overton (2005), the criss-cross algorithm; Toh and Trefethen (1996), for projections; Trefethen and Embree (2005), section 2.
    """
    search = _Search(matrix, epsilon)
    values = torch.linalg.eigvals(search.square)
    lead = values.abs().argsort(dim=1, descending=True, stable=True)[:, :RAYS]
    angles = values.gather(1, lead).angle()
    everyone = torch.arange(len(matrix))
    best = search.outermost(everyone.repeat_interleave(angles.shape[1]), angles.flatten()).unflatten(0, angles.shape).amax(1)
    rows = everyone[best >= 0]
    for k in range(ROUNDS):
        if not len(rows):
            break
        at, middles = search.inside(rows, best[rows] * (1 + AHEAD), turn=0.7 + k)
        further = torch.full_like(best, -1).scatter_reduce(0, at, search.outermost(at, middles), "amax")
        up = further > best * (1 + AHEAD)
        best = torch.maximum(best, further)
        rows = everyone[up]
    return torch.where(best < 0, torch.nan, best)


class _Search:
    """Where rays and circles cross the edge of the pseudospectrum.

    z = re^{iθ} is on an edge where (zI − A)v = εu and (zI − A)*u = εv for some u, v, with rows of zeros below the unit matrix if A is longer than wide. The part of u there is −Gv/ε, G
    the lower rows of A: what is left is linear in (v, u), with r as its eigenvalue for a given θ and e^{iθ} for a given r. u is measured in units that balance the two halves.
    """

    def __init__(self, matrix: Complex[Tensor, "point longer m"], epsilon: float) -> None:
        n, longer, m = matrix.shape
        self.matrix, self.epsilon, self.m = matrix, epsilon, m
        self.square, lower = matrix[:, :m], matrix[:, m:]
        self.eye = torch.eye(longer, m, dtype=matrix.dtype, device=matrix.device)
        unit = self.eye[:m].expand(n, m, m)
        pull = epsilon * unit - lower.mH @ lower / epsilon
        size = torch.linalg.matrix_norm(pull).clamp(min=epsilon)
        unit_of_u = (size / epsilon).sqrt()[:, None, None]
        self.up, self.down = epsilon * unit_of_u * unit, pull / unit_of_u
        self.slack = epsilon * 1e-7 + 1e-15 * torch.linalg.matrix_norm(matrix)

    def smallest(self, rows: Int[Tensor, " ray"], z: Complex[Tensor, " ray"]) -> Float[Tensor, " ray"]:
        """The smallest singular value of zI − A."""
        return torch.linalg.svdvals(z[:, None, None] * self.eye - self.matrix[rows])[:, -1]

    def outermost(self, rows: Int[Tensor, " ray"], angle: Float[Tensor, " ray"]) -> Float[Tensor, " ray"]:
        """The largest r at which each ray is in the pseudospectrum, checked there; −1 where none was found."""
        turn = torch.polar(torch.ones_like(angle), angle)[:, None, None]
        square = self.square[rows]
        top = torch.cat([turn.conj() * square, turn.conj() * self.up[rows]], dim=2)
        whole = torch.cat([top, torch.cat([turn * self.down[rows], turn * square.mH], dim=2)], dim=1)
        r = torch.linalg.eigvals(whole)
        size = 1 + torch.linalg.matrix_norm(whole)[:, None]
        r = torch.where(r.imag.abs() <= NEAR * size, r.real, -1.0)
        found = torch.full_like(angle, -1.0)
        for one in r.topk(min(TRIED, r.shape[1]), dim=1).values.T:
            fits = (one > found) & (self.smallest(rows, torch.polar(one.clamp(min=0), angle)) <= self.epsilon + self.slack[rows])
            found = torch.where(fits, one, found)
        return found

    def inside(self, rows: Int[Tensor, " circle"], radius: Float[Tensor, " circle"], *, turn: float) -> tuple[Int[Tensor, " arc"], Float[Tensor, " arc"]]:
        """The arcs of each circle that lie in the pseudospectrum: their row and the angle of their middle."""
        square, r = self.square[rows], radius[:, None, None] * self.eye[: self.m]
        none = torch.zeros_like(square)
        ahead = torch.cat([torch.cat([square, self.up[rows]], 2), torch.cat([none, r], 2)], 1)
        behind = torch.cat([torch.cat([r, none], 2), torch.cat([self.down[rows], square.mH], 2)], 1)
        # Cayley's transform makes one matrix of the two, with the circle on its imaginary axis.
        pole = complex(math.cos(turn), math.sin(turn))
        w = torch.linalg.eigvals(torch.linalg.solve_ex(ahead - pole * behind, ahead + pole * behind)[0].nan_to_num(nan=0, posinf=0, neginf=0))
        turns = pole * (w + 1) / (w - 1)
        crossing = (turns.abs() - 1).abs() <= NEAR
        angle = torch.where(crossing, turns.angle(), torch.inf).sort(dim=1).values
        following = torch.cat([angle[:, 1:], torch.full_like(angle[:, :1], torch.inf)], dim=1)
        middle = torch.where(following.isfinite(), (angle + following) / 2, (angle + angle[:, :1] + 2 * math.pi) / 2)  # the last arc ends at the first crossing
        which, where = angle.isfinite().nonzero(as_tuple=True)
        middles = middle[which, where]
        deep = self.smallest(rows[which], torch.polar(radius[which], middles)) < self.epsilon
        return rows[which[deep]], middles[deep]
