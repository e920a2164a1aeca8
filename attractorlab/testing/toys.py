"""Toy maps whose fixed points, spectra and basins are known in closed form, in any dimension."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab.maps import LatentMap
from attractorlab.types import Drive, Origin, State

LISTED = 8  # winding numbers of the ring (up to this size) and eigenvectors of the power iteration that are listed
EXACT = 200  # up to this many oscillators the basin shares are computed exactly

Leaf = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Toy:
    """An undriven map of one leaf, "z" [row dim], with the truth about it.

    Every attractor up to symmetry is among the points; of the unstable points only some are. The readout "answer"
    [row site] differs between attractors and is the same all over a basin.

    Args:
        map: The map.
        fixed_points: One row per listed fixed point.
        eigenvalues: Of the Jacobian at each, all of them, largest modulus first.
        attracting: Whether starts nearby end there, or on its circle when the phase is free.
        share: The chance that a start drawn by `starts` ends there.
        shock: The smallest Euclidean distance from the point to the edge of its basin; 0 for points that attract nothing.
        sample: The entries of as many starts as asked: the law that `share` refers to.
    """

    map: LatentMap
    fixed_points: State
    eigenvalues: Complex[Tensor, "point mode"]
    attracting: Bool[Tensor, " point"]
    share: Float[Tensor, " point"]
    shock: Float[Tensor, " point"]
    sample: Callable[[int, torch.Generator], Float[Tensor, "row dim"]]

    @property
    def answer(self) -> Int[Tensor, "point site"]:
        """The answer that is read off each fixed point."""
        return self.map.readout(self.fixed_points)["answer"]

    def starts(self, rows: int, *, generator: torch.Generator) -> State:
        """As many starts as asked, drawn by the law that `share` refers to."""
        return {"z": self.sample(rows, generator)}


def starts(dim: int, rows: int, *, generator: torch.Generator, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> State:
    """Independent normal numbers of standard deviation `scale`, as a state of one leaf "z".

    Drawn in float64 and then cast, so that all dtypes share their starts.

    Example:
        >>> starts(3, 2, generator=torch.Generator().manual_seed(0))["z"].shape
        torch.Size([2, 3])
    """
    return {"z": (scale * torch.randn(rows, dim, generator=generator, dtype=torch.float64)).to(dtype)}


def linear(A: Float[Tensor, "dim dim"], b: Float[Tensor, " dim"] | None = None, *, dtype: torch.dtype = torch.float64) -> Toy:
    """f(z) = Az + b, whose one fixed point is (I − A)⁻¹b. `A` must not have the eigenvalue 1.

    Raises:
        ValueError: If `A` is not square, or I − A is singular.

    Example:
        >>> toy = linear(0.5 * torch.eye(2), torch.ones(2))
        >>> toy.fixed_points["z"].tolist(), toy.eigenvalues.real.tolist()
        ([[2.0, 2.0]], [[0.5, 0.5]])
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(
            f"`linear` got a matrix of shape {tuple(A.shape)}. A map of a space into itself is a square matrix. Pass A of shape [dim, dim]."
        )
    dim = A.shape[0]
    matrix = A.to(torch.float64)
    shift = torch.zeros(dim, dtype=torch.float64) if b is None else b.to(torch.float64)
    eigenvalues = _sorted(torch.linalg.eigvals(matrix))
    if bool(((eigenvalues - 1).abs() < 1e-12).any()):
        raise ValueError(
            "`linear` got a matrix with the eigenvalue 1. Then there is no fixed point, or a whole line of them. Scale A, e.g. by 0.9."
        )
    point = torch.linalg.solve(torch.eye(dim, dtype=torch.float64) - matrix, shift)
    stable = bool(eigenvalues.abs().max() < 1)
    weight, offset = matrix.T.contiguous().to(dtype), shift.to(dtype)
    return Toy(
        map=_map("linear", lambda z: z @ weight + offset, lambda z: torch.zeros_like(z[:, :1]), dtype),
        fixed_points={"z": point[None].to(dtype)},
        eigenvalues=eigenvalues[None],
        attracting=torch.tensor([stable]),
        share=torch.tensor([float(stable)], dtype=torch.float64),
        shock=torch.tensor([math.inf if stable else 0.0], dtype=torch.float64),
        sample=_normal(dim, dtype),
    )


def separable_tanh(w: float, dim: int, *, dtype: torch.dtype = torch.float64) -> Toy:
    """f(z) = tanh(wz), entry by entry: 2^dim attractors, one per sign pattern, with equal shares under a symmetric law.

    Every entry rests at 0, where it is multiplied by w, or at ±x*, by w(1 − x*²). The listed points are all plus, all minus,
    a saddle with the first entry at 0, and the origin. The answer is the sign pattern, 1 for plus.

    Raises:
        ValueError: If `w` is not above 1, where 0 is the only fixed point.

    Example:
        >>> toy = separable_tanh(2.0, 3)
        >>> round(toy.fixed_points["z"][0, 0].item(), 9), round(toy.eigenvalues[0, 0].real.item(), 9)
        (0.957504024, 0.166372088)
    """
    if w <= 1:
        raise ValueError(f"`separable_tanh` got w={w}. Up to w=1 the origin is the only fixed point. Use w above 1.")
    x = 1.0
    for _ in range(100):  # Newton's method; x − tanh(wx) is convex on x > 0, so it comes down from 1 without overshooting
        t = math.tanh(w * x)
        x -= (x - t) / (1 - w * (1 - t * t))
    signs = torch.ones(4, dim, dtype=torch.float64)
    signs[1], signs[2, 0], signs[3] = -1, 0, 0
    if dim == 1:
        signs = signs[[0, 1, 3]]  # the saddle is the origin
    attracting = (signs != 0).all(1)
    return Toy(
        map=_map("separable tanh", lambda z: torch.tanh(w * z), lambda z: z > 0, dtype),
        fixed_points={"z": (x * signs).to(dtype)},
        eigenvalues=_sorted(w * (1 - (x * signs).square())),
        attracting=attracting,
        share=attracting * 0.5**dim,
        shock=attracting * x,
        sample=_normal(dim, dtype),
    )


def power_iteration(
    values: Sequence[float], dim: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Toy:
    """f(z) = √dim Mz/‖Mz‖, a linear layer and an RMS norm: it ends on ±√dim times the leading eigenvector of M.

    M is symmetric, with eigenvectors drawn from `generator` (two Householder reflections, so a tick costs O(dim)). The
    listed points are the pairs ±√dim v_i of the positive ones among the first 8 values, in order. The first pair attracts
    half of all starts each; their basins meet in the plane through 0, where the second pair are the edge states. At
    ±√dim v_i the eigenvalues are 0 and λ_j/λ_i, j ≠ i. The map of 0 is NaN. The answer is the side, 1 where v_1 is.

    Args:
        values: The leading eigenvalues of M; the others up to `dim` are 0. The first is positive and strictly the largest in modulus.
        dim: Dimension of the state.
        generator: Draws the eigenvectors.
        dtype: Of the map and its states.

    Raises:
        ValueError: If the first value is not positive and largest in modulus, or there are more values than dimensions.

    Example:
        >>> toy = power_iteration([2.0, 1.5, -1.2], 10, generator=torch.Generator().manual_seed(0))
        >>> [round(value, 9) for value in toy.eigenvalues[0, :3].real.tolist()]
        [0.75, -0.6, 0.0]
    """
    if not 1 <= len(values) <= dim or values[0] <= max([0.0, *(abs(value) for value in values[1:])]):
        raise ValueError(
            f"`power_iteration` got values that begin with {list(values[:3])} for dim={dim}. "
            "The first is positive and strictly the largest in modulus, and there is at most one for each dimension. "
            "Sort them by modulus, largest first."
        )
    spectrum = torch.zeros(dim, dtype=torch.float64)
    spectrum[: len(values)] = torch.tensor(values, dtype=torch.float64)
    normals = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    first, second = (normals / normals.norm(dim=1, keepdim=True)).unbind()
    listed = [i for i, value in enumerate(values[:LISTED]) if value > 0]
    units = torch.zeros(len(listed), dim, dtype=torch.float64)
    units[torch.arange(len(listed)), listed] = 1
    vectors = _reflect(_reflect(units, second), first)  # Q e_i with Q = H_1 H_2
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(listed))
    eigenvalues = spectrum / spectrum[listed, None]
    eigenvalues[torch.arange(len(listed)), listed] = 0
    attracting = torch.arange(2 * len(listed)) < 2
    lam, u, v, lead = (part.to(dtype) for part in (spectrum, first, second, vectors[0]))

    def tick(z: Tensor) -> Tensor:
        mz = _reflect(_reflect(lam * _reflect(_reflect(z, u), v), v), u)
        return math.sqrt(dim) * mz / torch.linalg.vector_norm(mz, dim=1, keepdim=True)

    return Toy(
        map=_map("power iteration", tick, lambda z: (z @ lead > 0)[:, None], dtype),
        fixed_points={"z": (math.sqrt(dim) * signs[:, None] * vectors.repeat_interleave(2, dim=0)).to(dtype)},
        eigenvalues=_sorted(eigenvalues.repeat_interleave(2, dim=0)),
        attracting=attracting,
        share=attracting * 0.5,
        shock=attracting * math.sqrt(dim),
        sample=_normal(dim, dtype),
    )


def ring(n: int, h: float, *, dtype: torch.dtype = torch.float64) -> Toy:
    """A ring of `n` phase oscillators, each pulled by `h` times the wrapped differences to its two neighbours.

    The angles are in radians and not wrapped: wrapping would tear the surroundings of a fixed point apart. The winding
    number q, the answer, never changes. The ring ends in a twisted state θ_i = 2πqi/n + phase, on a circle of fixed points:
    of the eigenvalues 1 − 4h sin²(πk/n), the one at k = 0 is exactly 1.
    The listed points are q = 0, 1, −1, 2, ... up to ±8, at phase 1/2. The map jumps where two neighbours differ by π.

    Raises:
        ValueError: If `n` is below 3, or `h` is not between 0 and 1/2.

    Example:
        >>> [round(share, 6) for share in ring(5, 0.2).share.tolist()]
        [0.598958, 0.197917, 0.197917, 0.002604, 0.002604]

    References:
        Groisman (2026), arXiv 2604.20541: basins and the smallest shock. The shares are the Irwin-Hall density.
    """
    if n < 3 or not 0 < h < 0.5:
        raise ValueError(
            f"`ring` got n={n}, h={h}. Twisted states need 3 oscillators or more and a pull between 0 and 1/2. Use n=10, h=0.25."
        )
    most = min((n - 1) // 2, LISTED)
    q = torch.tensor([0] + [sign * k for k in range(1, most + 1) for sign in (1, -1)], dtype=torch.float64)
    site = torch.arange(n, dtype=torch.float64)
    multipliers = 1 - 4 * h * torch.sin(math.pi * site / n).square()

    def gaps(z: Tensor) -> Tensor:  # wrapped difference to the next oscillator
        ahead = z.roll(-1, 1) - z
        return ahead - 2 * math.pi * (ahead / (2 * math.pi)).round()

    def tick(z: Tensor) -> Tensor:
        ahead = gaps(z)
        return z + h * (ahead - ahead.roll(1, 1))

    def sample(rows: int, generator: torch.Generator) -> Tensor:
        return (math.pi * (2 * torch.rand(rows, n, generator=generator, dtype=torch.float64) - 1)).to(dtype)

    return Toy(
        map=_map("ring", tick, lambda z: (gaps(z).sum(1, keepdim=True) / (2 * math.pi)).round(), dtype),
        fixed_points={"z": (2 * math.pi * q[:, None] * site / n + 0.5).to(dtype)},
        eigenvalues=_sorted(multipliers.expand(len(q), n)),
        attracting=torch.ones(len(q), dtype=torch.bool),
        share=torch.tensor([winding_share(n, int(k)) for k in q.tolist()], dtype=torch.float64),
        shock=math.pi / math.sqrt(2) * (1 - 2 * q.abs() / n),
        sample=sample,
    )


def winding_share(n: int, q: int) -> float:
    """The share of uniform random angles on a ring of `n` whose winding number is `q`.

    It is the density at q of a sum of n uniform numbers on (−1/2, 1/2): exact up to n = 200, beyond it the normal
    limit √(6/πn) exp(−6q²/n), good to a relative 0.15/n in the middle.

    Example:
        >>> round(winding_share(10, 0), 6), round(winding_share(80, 2), 6)
        (0.430418, 0.11448)
    """
    if n > EXACT:
        return math.sqrt(6 / (math.pi * n)) * math.exp(-6 * q * q / n)
    top = Fraction(n + 2 * abs(q), 2)
    terms = ((-1) ** k * math.comb(n, k) * (top - k) ** (n - 1) for k in range(math.floor(top) + 1))
    return float(sum(terms, Fraction(0)) / math.factorial(n - 1))


def cubic(k: float, a: float, dim: int, *, dtype: torch.dtype = torch.float64) -> Toy:
    """f(z) = z + kz(1 − z)(z − a), entry by entry: each entry above `a` goes to 1, each below it to 0.

    The listed points are all 0, all 1 and all a; any mixture is a fixed point too. Shares are of starts uniform in [0, 1]^dim:
    aᵐ(1 − a)^(dim−m) for an attractor with m zeros. The answer is 1 for entries above `a`.

    Raises:
        ValueError: If `a` is not between 0 and 1, or `k` is not between 0 and 1/max(a, 1 − a), where the map stops being monotone.

    Example:
        >>> toy = cubic(1.0, 0.25, 2)
        >>> toy.share.tolist(), toy.eigenvalues[:, 0].real.tolist()
        ([0.0625, 0.5625, 0.0], [0.75, 0.25, 1.1875])
    """
    if not 0 < a < 1 or not 0 < k < 1 / max(a, 1 - a):
        raise ValueError(
            f"`cubic` got k={k}, a={a}. The edge of the basins is at `a` when 0 < a < 1 and 0 < k < 1/max(a, 1 − a). Use k=1.0, a=0.3."
        )
    levels = torch.tensor([0.0, 1.0, a], dtype=torch.float64)
    multipliers = torch.tensor([1 - k * a, 1 - k * (1 - a), 1 + k * a * (1 - a)], dtype=torch.float64)

    def sample(rows: int, generator: torch.Generator) -> Tensor:
        return torch.rand(rows, dim, generator=generator, dtype=torch.float64).to(dtype)

    return Toy(
        map=_map("cubic", lambda z: z + k * z * (1 - z) * (z - a), lambda z: z > a, dtype),
        fixed_points={"z": levels[:, None].expand(3, dim).to(dtype).contiguous()},
        eigenvalues=_sorted(multipliers[:, None].expand(3, dim)),
        attracting=torch.tensor([True, True, False]),
        share=torch.tensor([a**dim, (1 - a) ** dim, 0.0], dtype=torch.float64),
        shock=torch.tensor([a, 1 - a, 0.0], dtype=torch.float64),
        sample=sample,
    )


def _map(name: str, tick: Leaf, answer: Leaf, dtype: torch.dtype) -> LatentMap:
    def rule(z: State, drive: Drive) -> State:
        return {"z": tick(z["z"])}

    def readout(z: State) -> Mapping[str, Tensor]:
        return {"answer": answer(z["z"]).long()}

    return LatentMap(rule, {}, readout=readout, clock="tick", origin=Origin(model=f"toy {name}", dtype=str(dtype).removeprefix("torch.")))


def _normal(dim: int, dtype: torch.dtype) -> Callable[[int, torch.Generator], Tensor]:
    return lambda rows, generator: starts(dim, rows, generator=generator, dtype=dtype)["z"]


def _reflect(x: Float[Tensor, "row dim"], u: Float[Tensor, " dim"]) -> Float[Tensor, "row dim"]:
    """The Householder reflection I − 2uuᵀ, for a unit vector u."""
    return x - 2 * (x @ u)[:, None] * u


def _sorted(values: Tensor) -> Complex[Tensor, "... mode"]:
    """Largest modulus first, as complex numbers."""
    return values.gather(-1, values.abs().argsort(dim=-1, descending=True, stable=True)).to(torch.complex128)
