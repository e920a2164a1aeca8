"""The leading modes of many Jacobians: what they are made of, and how left and right ones are paired and measured."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab.dynamics.krylov import Jacobian, Product
from attractorlab.dynamics.records import has_products
from attractorlab.maps import LatentMap
from attractorlab.types import State

NEAR = {torch.float64: 1e-8, torch.float32: 1e-4}  # relative to ‖J‖: eigenvalues nearer than this are one
COARSE = {torch.float64: 1e-3, torch.float32: 1e-2}  # relative to ‖J‖: eigenvalues further apart than this are never one, nor found if their residual is larger
HARMLESS = 0.1  # an eigenvalue below it is inside the unit circle, however ill-conditioned


@runtime_checkable
class Order(Protocol):
    """Which eigenvalues come first: those with the largest key."""

    __name__: str

    def __call__(self, values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The key of each eigenvalue."""
        ...


def by_modulus(values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The moduli: what decides whether disturbances grow from tick to tick."""
    return values.abs()


def by_real_part(values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The real parts: those nearest 1 belong to the slow directions, however large the moduli on the negative side are."""
    return values.real


def leading(values: Complex[Tensor, "row mode"], *, order: Order = by_modulus) -> Int[Tensor, "row mode"]:
    """The places of eigenvalues in order, equal keys by real part, then by imaginary part, downwards.

    Example:
        >>> values = torch.tensor([[0.5 - 1j, 2.0, 0.5 + 1j, -3.0]])
        >>> values.gather(1, leading(values)).tolist()
        [[(-3+0j), (2+0j), (0.5+1j), (0.5-1j)]]
    """
    top = values.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    rounded = (order(values) / top * 1e10).round()  # keys that differ by rounding alone are equal
    places = values.imag.argsort(dim=1, descending=True, stable=True)
    for key in (values.real, rounded):
        places = places.gather(1, key.gather(1, places).argsort(dim=1, descending=True, stable=True))
    return places


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

    def __call__(self, f: LatentMap, z: State, *, k: int, order: Order) -> Modes:
        """The `k` leading modes at each row of `z`."""
        ...


@dataclass(frozen=True, eq=False)
class Side:
    """Eigenvalues with their unit eigenvectors from one side; the size is NaN where a product was not finite.

    `width` is one more than the copies that an eigenvalue was found to have, `sure` whether a last look for more found none.
    """

    values: Complex[Tensor, "point mode"]
    vectors: Complex[Tensor, "point mode dim"]
    residual: Float[Tensor, "point mode"]
    size: Float[Tensor, " point"]
    width: Int[Tensor, " point"]
    sure: Bool[Tensor, " point"]


def operators(f: LatentMap, z: State) -> tuple[Jacobian, Jacobian, bool]:
    """Products with J and with its transpose; where those with J cannot be had, the two change places, and True.

    J and its transpose have the same eigenvalues; the second operator, which serves the conditions alone, is then made of secants.

    Raises:
        ValueError: If there are no products with the transpose either.
    """
    if has_products(f, z):
        return Jacobian(f, z), Jacobian(f, z, transposed=True), False
    return Jacobian(f, z, transposed=True), Jacobian(f, z, secant=True), True


def assemble(product: Product, transpose: Product, kind: torch.dtype, right: Side, left: Side, order: Order) -> Modes:
    """Measure the defects, pair left with right vectors, and read the conditions. Both products number the points of the two sides."""
    size = torch.maximum(right.size, left.size)
    finite = torch.isfinite(right.size + left.size)
    near, coarse = NEAR[kind] * size.nan_to_num(0), COARSE[kind] * size.nan_to_num(0)
    values = torch.where(finite[:, None], right.values, torch.nan)
    defect = _defects(product, values, right.vectors)
    condition, partner = _pair(values, right.vectors, defect, left, near, coarse)
    own = _own_left(transpose, values, right.vectors, condition, near)
    return Modes(
        eigenvalues=values,
        defect=defect,
        condition=torch.where(finite[:, None], torch.where(own, 1.0, condition), torch.nan),
        right=torch.where(finite[:, None, None], right.vectors, torch.nan),
        left=torch.where(own[:, :, None], right.vectors, partner),
        size=size,
        agreed=_agreed(values, left, coarse[:, None], order) & right.sure & finite,
        method="",
        products=0,
    )


def _defects(product: Product, values: Tensor, vectors: Tensor) -> Float[Tensor, "point mode"]:
    """‖Jv − λv‖/‖v‖ from new products with the real and the imaginary part; the two of a conjugate pair share theirs."""
    # A mode is measured unless it is the second of a pair that is here.
    mate = (values[:, None, :] == values[:, :, None].conj()) & (values.imag < 0)[:, :, None]
    needed = values.isfinite() & ~mate.any(2)
    image = _image(product, vectors, needed, values.imag != 0)
    gap = torch.linalg.vector_norm(image - values[:, :, None] * vectors, dim=2) / torch.linalg.vector_norm(vectors, dim=2)
    defect = torch.where(needed, gap, torch.nan)
    point, mode = mate.any(2).nonzero(as_tuple=True)
    defect[point, mode] = defect[point, mate[point, mode].to(torch.uint8).argmax(1)]
    return defect


def _image(product: Product, vectors: Tensor, needed: Bool[Tensor, "point mode"], turned: Bool[Tensor, "point mode"]) -> Complex[Tensor, "point mode dim"]:
    """The products with the vectors that are needed, mode by mode; the imaginary parts of those not turned are zero."""
    image = torch.zeros_like(vectors)
    for mode in range(vectors.shape[1]):
        for real, chosen in ((True, needed[:, mode]), (False, needed[:, mode] & turned[:, mode])):
            at = chosen.nonzero().squeeze(1)
            if len(at):
                one = vectors[at, mode]
                moved = product((one.real if real else one.imag).contiguous(), at)
                (image.real if real else image.imag)[at, mode] = moved
    return image


def _pair(
    values: Tensor, vectors: Tensor, defect: Tensor, left: Side, near: Float[Tensor, " point"], coarse: Float[Tensor, " point"]
) -> tuple[Float[Tensor, "point mode"], Complex[Tensor, "point mode dim"]]:
    """Condition and left vector: each right mode meets the span of the left vectors whose eigenvalue is its own.

    A right and a left eigenvalue are one if they differ by less than `near`, or than ten times what their residuals explain, if that is below `coarse`.
    """
    others = torch.where(left.vectors.isfinite().all(2), left.values, torch.nan)
    span = torch.where(others.isfinite()[:, :, None], left.vectors, 0)
    apart = (values[:, :, None] - others[:, None, :]).abs().nan_to_num(torch.inf)
    overlap = torch.einsum("pjd,pid->pij", span.conj(), vectors.nan_to_num(0))  # w*v
    gap, best = apart.min(2)
    alone = 1 / overlap.gather(2, best[:, :, None])[:, :, 0].abs()
    explained = 10 * alone * (defect + left.residual.gather(1, best))
    paired = gap <= torch.maximum(near[:, None], torch.minimum(explained, coarse[:, None]))
    # Copies of a multiple eigenvalue: the best left vector in their span, near-parallel ones counted once.
    same = ((others[:, None, :] - others.gather(1, best)[:, :, None]).abs() <= near[:, None, None]) & paired[:, :, None]
    gram = torch.einsum("pjd,pld->pjl", span.conj(), span)[:, None] * (same[:, :, :, None] & same[:, :, None, :])
    inside = torch.where(same, overlap, 0)
    weights = (torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ inside[..., None])[..., 0]
    condition = 1 / (inside.conj() * weights).sum(2).real.clamp(min=0).sqrt()
    partner = torch.einsum("pij,pjd->pid", weights, span)
    partner = partner / torch.linalg.vector_norm(partner, dim=2, keepdim=True)
    return torch.where(paired, condition, torch.inf).clamp(min=1), torch.where(paired[:, :, None], partner, torch.nan)


def _own_left(transpose: Product, values: Tensor, vectors: Tensor, condition: Tensor, near: Tensor) -> Bool[Tensor, "point mode"]:
    """Which copies of a multiple eigenvalue have a right vector that is a left one too, as all of a normal Jacobian.

    Its eigenspace may be larger than the modes asked for; two samples of it then need not meet.
    """
    copies = ((values[:, :, None] - values[:, None, :]).abs() <= near[:, None, None]).sum(2) > 1
    doubtful = copies & (condition > 1 + 1e-6)
    turned = vectors.conj().resolve_conj()
    image = _image(transpose, turned, doubtful, torch.ones_like(doubtful))
    miss = torch.linalg.vector_norm(image - values[:, :, None] * turned, dim=2)
    return doubtful & (miss <= near[:, None])


def _agreed(values: Tensor, left: Side, coarse: Float[Tensor, "point one"], order: Order) -> Bool[Tensor, " point"]:
    """Whether the settled left eigenvalues that are clearly ahead of the last right one are among the right ones, and no more often than those."""
    settled = left.residual <= coarse
    copies = ((left.values[:, :, None] - left.values[:, None, :]).abs() <= coarse[:, :, None]) & settled[:, None, :]
    known = (left.values[:, :, None] - values[:, None, :]).abs() <= 2 * coarse[:, :, None]
    ahead = order(left.values) > order(values).amin(1)[:, None] + coarse
    extra = (copies.sum(2) > known.sum(2)) & ahead & settled & (left.values.abs() > HARMLESS)
    return ~extra.any(1)


def gather(parts: list[Modes], method: str, products: int, *, swapped: bool) -> Modes:
    """The modes of all points; `swapped` ones are those of the transposes, whose left vectors are the conjugates of the right ones of J."""
    right, left = torch.cat([part.right for part in parts]), torch.cat([part.left for part in parts])
    return Modes(
        eigenvalues=torch.cat([part.eigenvalues for part in parts]),
        defect=torch.cat([part.defect for part in parts]),
        condition=torch.cat([part.condition for part in parts]),
        right=left.conj().resolve_conj() if swapped else right,
        left=right.conj().resolve_conj() if swapped else left,
        size=torch.cat([part.size for part in parts]),
        agreed=torch.cat([part.agreed for part in parts]),
        method=f"{method} of the transpose" if swapped else method,
        products=products,
    )
