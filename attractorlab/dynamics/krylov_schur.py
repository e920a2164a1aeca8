"""by_krylov_schur: leading modes from products alone, by Arnoldi's method restarted with the Schur vectors that matter, for all points at once."""

import math

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from scipy.linalg import lapack, schur
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.krylov import NOISE, Jacobian, Krylov, Product, blocks_of_rows, dtype_of, random_vectors
from attractorlab.dynamics.modes import Modes, Order, Side, assemble, gather, leading, operators
from attractorlab.maps import LatentMap
from attractorlab.types import State

LARGEST = 2_000  # products that one side of a point is given
WIDEST = 6  # start vectors of a space, one more than the copies of an eigenvalue that it must show
CHAIN = 10  # products with each start vector, after a new one came in, before it counts as having brought nothing
SPARE = 4  # left eigenvalues beyond k: their order at the cut may differ
RIGHT_TOL = {torch.float64: 1e-9, torch.float32: 1e-4}  # Ritz residual relative to ‖J‖
LEFT_TOL = {torch.float64: 1e-7, torch.float32: 1e-3}  # left vectors serve the condition alone
SAME = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative to ‖J‖: leading eigenvalues that moved by less did not change
LOOK = 2, 12  # products between two looks at the Ritz values of a row, at least and at most


def by_krylov_schur(f: LatentMap, z: State, *, k: int, order: Order) -> Modes:
    """The `k` leading modes from Krylov spaces of J, and others, started anew, of its transpose.

    A space of 4k + 28 vectors is restarted with the better half of its Schur vectors until the modes settle; what is not settled after 2,000 products shows in its
    defect. A space of one start vector holds one copy of an eigenvalue. So the settled space is widened by a fresh vector and goes on, and again, until one brings nothing new.

    References:
        Stewart (2001), A Krylov-Schur algorithm for large eigenproblems; Ruhe (1979), whose band form lets a space be widened.
    """
    jacobian, transpose, swapped = operators(f, z)
    largest, kept = _sizes(k, trees.size(z))
    vectors = largest + 2 * kept + 3 * WIDEST
    parts = [_part(jacobian, transpose, rows, k, order) for rows in blocks_of_rows(f, z, vectors=vectors)]
    return gather(parts, "krylov-schur", jacobian.products + transpose.products, swapped=swapped)


def _sizes(k: int, dim: int) -> tuple[int, int]:
    """Vectors of a space at its largest, and after a restart; they differ by an even number, so that no conjugate pair need be parted."""
    kept = 2 * (k + 7)
    return (dim, min(kept, dim)) if dim <= 4 * kept else (2 * kept, kept)


def _part(jacobian: Jacobian, transpose: Jacobian, rows: Tensor, k: int, order: Order) -> Modes:
    kind, dim = dtype_of(jacobian.z), trees.size(jacobian.z)
    search = _Search(jacobian, rows, k=k, settle=k, order=order, tol=RIGHT_TOL[kind], seed=1)
    right = search.run(None)
    more = min(dim, k + SPARE)
    other = _Search(transpose, rows, k=more, settle=k, order=order, tol=LEFT_TOL[kind], seed=2)
    pulled = other.run(right.width)
    # Jᵀu = λu is u* turned: the left vector of λ is the conjugate of u.
    left = Side(pulled.values, pulled.vectors.conj(), pulled.residual, pulled.size, pulled.width, pulled.sure)
    return assemble(_on_device(search), _on_device(other), kind, right, left, order)


def _on_device(search: "_Search") -> Product:
    """The products of a search for vectors on the CPU."""
    return lambda v, at: search.product(v.to(search.device), at).cpu()


class _Search:
    """The `k` leading Ritz pairs of each row, once the first `settle` have converged."""

    def __init__(self, operator: Jacobian, rows: Tensor, *, k: int, settle: int, order: Order, tol: float, seed: int) -> None:
        kind, self.dim, n = dtype_of(operator.z), trees.size(operator.z), len(rows)
        self.product, self.device = operator.at(rows), next(iter(operator.z.values())).device
        self.k, self.settle, self.order, self.tol, self.seed = k, settle, order, tol, seed
        self.noise, self.same = max(NOISE[kind], 1e-8 if operator.secant else 0.0), SAME[kind]
        self.largest, self.kept = _sizes(settle, self.dim)
        self.values = torch.full((n, k), torch.nan, dtype=torch.complex128)
        self.vectors = torch.full((n, k, self.dim), torch.nan, dtype=torch.complex128)
        self.residual, self.size = torch.full((n, k), torch.nan, dtype=torch.float64), torch.full((n,), torch.nan, dtype=torch.float64)
        self.taken = torch.zeros(n, dtype=torch.int64)
        self.whole = torch.zeros(n, dtype=torch.bool)  # rows whose space is the whole, or that used up their products
        self.saved: tuple[Tensor, Tensor] | None = None

    def run(self, width: Int[Tensor, " point"] | None) -> Side:
        """Spaces of one start vector, widened up to `width` of each row; without it, until a new start vector changes nothing."""
        n = len(self.values)
        going, reached, sure = torch.arange(n), torch.ones(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        self._stage(going, 1)
        for wide in range(2, WIDEST + 1):
            sure |= self.whole | ~self.size.isfinite()
            here = torch.arange(len(going))[~sure[going] if width is None else ~sure[going] & (width[going] >= wide)]
            if not len(here):
                break
            going, before = going[here], self.values.clone()
            assert self.saved is not None
            self.saved = (self.saved[0][here.to(self.device)], self.saved[1][here.to(self.device)])
            self._stage(going, wide)
            changed = self._moved(before) > self.same * self.size
            reached[going] = torch.where(changed[going], wide, reached[going])
            if width is None:
                sure[going] |= ~changed[going]
        sure |= self.whole if width is None else True
        return Side(self.values, self.vectors, self.residual, self.size, reached, sure)

    def _moved(self, before: Complex[Tensor, "point k"]) -> Float[Tensor, " point"]:
        """How far the set of leading eigenvalues is from that before."""
        pairs = [(part(before[:, : self.settle]), part(self.values[:, : self.settle])) for part in (torch.abs, torch.real)]
        return torch.stack([(old.sort(1).values - new.sort(1).values).abs().amax(1) for old, new in pairs]).amax(0)

    def _stage(self, going: Int[Tensor, " going"], width: int) -> None:
        """Go on with the rows `going` in spaces of `width` start vectors until they settle."""
        fresh = random_vectors(1, self.dim, seed=10 * self.seed + width).to(self.device).expand(len(going), 1, -1)
        space = Krylov(
            lambda v, at: self.product(v, going[at]), fresh, cap=self.largest, noise=self.noise, seed=10 * self.seed + width, known=self.saved
        )
        if self.saved is not None:
            space.size, self.saved = self.size[going].to(self.device), None
        first = CHAIN * width if width > 1 else self.kept
        look = torch.full((len(going),), first)
        last = torch.full((len(going), 2), torch.nan, dtype=torch.float64)  # when each row was last looked at, and how far from settled it was
        basis = space._basis.new_empty(len(going), self.kept + width, self.dim)
        h = space._h.new_empty(len(going), self.kept + width, self.kept)
        while len(space.rows):
            space.step()
            broken = ~torch.isfinite(space.size)
            if bool(broken.any()):
                self.size[going[space.rows[broken.cpu()]]] = torch.nan
                space.leave(broken)
                if not len(space.rows):
                    break
            end = space.m == self.dim
            spent = space.taken + self.taken[going[space.rows]] >= LARGEST
            full = space.m == self.largest
            due = (look[space.rows] <= space.taken) | end | spent
            if (end or (space.m - self.kept) % 2 == 0) and bool(due.any()):
                done = self._look(space, going, due, last, look) | end | spent
                if bool(done.any()):
                    at = space.rows[done]
                    self.taken[going[at]] += space.taken
                    self.whole[going[at]] = end | spent[done]
                    some = done.nonzero().squeeze(1)
                    if not end:
                        kept = self._kept(space, some)
                        basis[at.to(self.device)], h[at.to(self.device)] = space.compressed(kept, some)
                    space.leave(done.to(self.device))
            if full and not end and len(space.rows):
                space.restart(self._kept(space, torch.arange(len(space.rows))))
        self.saved = (basis, h)

    def _look(self, space: Krylov, going: Tensor, due: Tensor, last: Tensor, look: Tensor) -> Tensor:
        """Which of the rows that are `due` have settled; all of those are written down, and told when to be looked at next."""
        some = due.nonzero().squeeze(1)
        at = space.rows[some]
        place = some.to(self.device)
        values, small, rest = ritz(space.h[place], k=self.k, order=self.order)
        size = space.size[place].cpu()
        far = (rest[:, : self.settle].amax(1) / (self.tol * size).clamp(min=1e-300)).log()
        settled = rest[:, : self.settle].amax(1) <= self.tol * size
        rate = (last[at, 1] - far) / (space.taken - last[at, 0])
        wait = torch.where(rate > 0, 0.9 * far / rate, torch.nan).nan_to_num(LOOK[1] / 2).clamp(*LOOK)
        last[at] = torch.stack([torch.full_like(far, space.taken), far], dim=1)
        look[at] = space.taken + (wait / 2).round().long() * 2
        done = torch.zeros(len(space.rows), dtype=torch.bool)
        done[some] = settled
        over = settled | (space.m == self.dim) | (space.taken + self.taken[going[at]] >= LARGEST)
        if bool(over.any()):
            to = going[at[over]]
            self.values[to], self.residual[to], self.size[to] = values[over], rest[over], size[over]
            for row, coordinates, where in zip(some[over].tolist(), small[over], to.tolist(), strict=True):  # in turn: a basis is large
                turned = coordinates.mT.to(self.device)
                self.vectors[where] = torch.complex(turned.real @ space.basis[row], turned.imag @ space.basis[row]).cpu()
        return done

    def _kept(self, space: Krylov, some: Int[Tensor, " some"]) -> Float[Tensor, "some m kept"]:
        small = space.h[some.to(self.device), : space.m].cpu()
        return torch.stack([leading_schur(one, kept=self.kept, order=self.order) for one in small]).to(self.device)


def ritz(
    h: Float[Tensor, "row longer m"], *, k: int, order: Order
) -> tuple[Complex[Tensor, "row k"], Complex[Tensor, "row m k"], Float[Tensor, "row k"]]:
    """The `k` leading Ritz values of each row, their unit vectors in the basis, and their residuals. `h` must be finite."""
    m = h.shape[2]
    h = h.cpu()
    values, vectors = torch.linalg.eig(h[:, :m])
    places = leading(values, order=order)[:, :k]
    values = values.gather(1, places)
    vectors = vectors.gather(2, places[:, None, :].expand(-1, m, -1))
    below = (h[:, m:, :, None] * vectors[:, None]).sum(2)
    return values, vectors, torch.linalg.vector_norm(below, dim=1)


def leading_schur(matrix: Float[Tensor, "m m"], *, kept: int, order: Order) -> Float[Tensor, "m kept"]:
    """Orthonormal Schur vectors of the leading eigenvalues of a real matrix: they span what it maps into itself.

    A conjugate pair is kept or left out as a whole; where it would be cut, the next real eigenvalue takes the last place. There is one if m − kept is even.
    """
    m = len(matrix)
    if kept == m:
        return torch.eye(m, dtype=matrix.dtype)
    triangle, vectors = schur(matrix.numpy(), output="real")
    below = np.append(np.diagonal(triangle, -1) != 0, False)
    values = np.diagonal(triangle).astype(complex)
    for i in np.flatnonzero(below):
        root = math.sqrt(abs(triangle[i, i + 1])) * math.sqrt(abs(triangle[i + 1, i]))  # LAPACK leaves pairs as [[a b] [c a]] with bc < 0
        values[i], values[i + 1] = complex(triangle[i, i], root), complex(triangle[i, i], -root)
    first = np.arange(m) - np.append(False, below[:-1])  # where the block of each eigenvalue begins
    select, room = np.zeros(m, dtype=np.int32), kept
    for place in leading(torch.from_numpy(values)[None], order=order)[0].tolist():
        block = slice(first[place], first[place] + 1 + int(below[first[place]]))
        length = block.stop - block.start
        if length <= room and not select[block.start]:
            select[block] = 1
            room -= length
    work = 2 * kept * (m - kept)
    turned = lapack.dtrsen(select, triangle, vectors, lwork=work, liwork=work)[1]
    return torch.from_numpy(np.ascontiguousarray(turned[:, :kept]))
