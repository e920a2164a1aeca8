"""Krylov spaces of many Jacobians at once: batched Arnoldi and GMRES on products with J or its transpose."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.orbits import chunks, rows_at_once
from attractorlab.dynamics.records import Record, not_differentiable, record_bytes, secant
from attractorlab.maps import LatentMap
from attractorlab.types import State

Product = Callable[[Float[Tensor, "row dim"], Int[Tensor, " row"]], Float[Tensor, "row dim"]]
"""Applies to each vector the operator of its row."""
NOISE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}
"""Relative length below which what orthogonalisation leaves of a product is rounding, by dtype of the map."""
DENSE_LIMIT = 1_000  # numbers of a state up to which the whole Jacobian is formed
SECOND = 0.3  # share of its length that a vector must keep when a basis is projected out of it once; else it is done again
MEMORY = {"cpu": 2**28, "cuda": 2**33}  # bytes that the basis of one chunk of rows may take
CACHE = {"cpu": 2**22, "cuda": 2**40}  # bytes of the bases that are worked on at a time
RECORD = {"cpu": 3 * 2**26, "cuda": 2**34}  # bytes that the recorded map of one chunk of rows may take


class Jacobian:
    """The Jacobians of `f` at the rows of `z` as a product on flat float64 vectors; `products` counts them.

    Args:
        f: The map.
        z: The points, one per row of `f`.
        transposed: Multiply with the transpose instead, in reverse mode.
        secant: Multiply by central differences of the map, good to about 1e-9 of a product in float64: for maps that can be differentiated in reverse mode alone.
    """

    def __init__(self, f: LatentMap, z: State, *, transposed: bool = False, secant: bool = False) -> None:
        self.f, self.z, self.transposed, self.secant = f, z, transposed, secant
        self.products = 0

    @torch.no_grad()
    def __call__(self, v: Float[Tensor, "row dim"], rows: Int[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """The Jacobian at point ``rows[i]`` times ``v[i]``, in as many rows at a time as the device works on best.

        Where the map has no forward mode, its call is recorded and walked back through twice.

        Raises:
            ValueError: If the map can be differentiated in neither way.
        """
        self.products += len(rows)
        tangent = trees.unflatten(v.to(dtype_of(self.z)), self.z)
        out = []
        for part in chunks(tangent):
            f, z, one = self.f.take(rows[part]), trees.take(self.z, rows[part]), trees.take(tangent, part)
            out.append(trees.flatten(secant(f, z, one)) if self.secant else self._product(f, z, one, v[part]))
        return torch.cat(out).to(torch.float64)

    def _product(self, f: LatentMap, z: State, one: State, flat: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        try:
            moved = f.vjp(z, one) if self.transposed else f.jvp(z, one)
        except (NotImplementedError, RuntimeError) as cause:  # no rule for an operation of the map, or an error of its author
            record = Record(f, z, torch.arange(len(flat)))
            walked = record(flat, record.rows) if record.usable and not self.transposed else None
            if walked is None:
                raise not_differentiable(self.transposed) from cause
            return walked.to(dtype_of(z))
        return trees.flatten({name: moved[name] for name in z})  # a map may name its leaves in another order

    def at(self, rows: Int[Tensor, " chunk"]) -> Product:
        """The product for points that are multiplied again and again, numbered within `rows`.

        The map is run once and each product walks back through its record, which costs about one call of the map where a
        forward-mode product costs four. Where a map cannot be recorded so, the plain product is used. `blocks_of_rows` says how many rows fit the memory set aside.
        """
        plain: Product = lambda v, at: self(v, rows[at])  # noqa: E731
        if self.secant:
            return plain
        record = Record(self.f, self.z, rows, transposed=self.transposed)

        def product(v: Float[Tensor, "row dim"], at: Int[Tensor, " row"]) -> Float[Tensor, "row dim"]:
            walked = record(v, at) if record.usable else None
            if walked is None:
                return plain(v, at)
            self.products += len(at)
            return walked

        return product

    def matrix(self, rows: Int[Tensor, " point"]) -> Float[Tensor, "point dim dim"]:
        """The whole Jacobian at each of the points numbered `rows`: several of its columns at a time, from a record of as many copies of each point."""
        n, dim, device = len(rows), trees.size(self.z), device_of(self.z)
        if not n:
            return torch.zeros(0, dim, dim, dtype=torch.float64, device=device)
        fit = min(rows_at_once(self.z), RECORD[device.type] // max(1, record_bytes(self.f, self.z)))
        width = min(dim, max(1, fit // n))
        product, everyone = self.at(rows.repeat_interleave(width)), torch.arange(n * width)
        unit = torch.eye(-(-dim // width) * width, dim, dtype=torch.float64, device=device)  # beyond the last column come zeros
        columns = [product(part.repeat(n, 1), everyone).unflatten(0, (n, width)) for part in unit.split(width)]
        return torch.cat(columns, dim=1)[:, :dim].transpose(1, 2)


def device_of(z: State) -> torch.device:
    """The device of the leaves of `z`."""
    return next(iter(z.values())).device


def dtype_of(z: State) -> torch.dtype:
    """The dtype of the leaves of `z`."""
    return next(iter(z.values())).dtype


def blocks_of_rows(f: LatentMap, z: State, *, vectors: int) -> list[Int[Tensor, " chunk"]]:
    """Row numbers of `z` in chunks, such that `vectors` float64 basis vectors and the recorded map of each row of a chunk fit the memory set aside."""
    device = device_of(z).type
    at_once = max(1, MEMORY[device] // (8 * vectors * max(1, trees.size(z))))
    at_once = min(at_once, max(1, RECORD[device] // max(1, record_bytes(f, z))))
    return list(torch.arange(trees.rows(z)).split(at_once))


class Krylov:
    """Orthonormal bases of growing spaces, one per row: ``J V[:m] = V[:m+width] H``, with as many start vectors as `width`.

    Orthogonalised twice where once is not enough. Where a space closes (happy breakdown), it goes on from a fresh random vector with a zero in `H`, so that the relation stays
    true, and copies of multiple eigenvalues and zeros are found. Rows can leave at any time.

    Args:
        product: The operator of each row.
        start: Start vectors of each row; they need not be orthonormal, but must be independent.
        cap: The most vectors that a space will be given.
        noise: See `NOISE`.
        seed: Of the fresh vectors.
        known: A basis and its H that the space goes on from; `start` then widens it.

    References:
        Ruhe (1979), Implementation aspects of band Lanczos algorithms; Stewart (2001), Matrix Algorithms II, section 5.1 and (restart) 5.2.
    """

    def __init__(
        self,
        product: Product,
        start: Float[Tensor, "row more dim"],
        *,
        cap: int,
        noise: float,
        seed: int = 0,
        known: tuple[Float[Tensor, "row longer dim"], Float[Tensor, "row longer m"]] | None = None,
    ) -> None:
        n, more, self.dim = start.shape
        self.product, self.noise, self.seed, self.m, self.taken = product, noise, seed, 0, 0
        self.rows = torch.arange(n)
        held = 0 if known is None else known[0].shape[1]
        self.m = 0 if known is None else known[1].shape[2]
        self.width = held - self.m + more
        self._basis = start.new_empty(n, cap + self.width, self.dim)
        self._h = start.new_zeros(n, cap + self.width, cap)
        if known is not None:
            self._basis[:, :held], self._h[:, :held, : self.m] = known
        self.size = start.new_zeros(n)  # largest ‖Jv‖ so far: a lower bound of ‖J‖₂
        self.closed = torch.zeros(n, dtype=torch.bool, device=start.device)  # whether the last step broke down
        for j in range(more):
            w, _ = _project_out(self._basis[:, : held + j], start[:, j])
            self._basis[:, held + j] = _unit(w)

    @property
    def basis(self) -> Float[Tensor, "row m dim"]:
        """The first `m` basis vectors of each row."""
        return self._basis[:, : self.m]

    @property
    def h(self) -> Float[Tensor, "row longer m"]:
        """The projected operator, with `width` rows below its square part."""
        return self._h[:, : self.m + self.width, : self.m]

    def step(self) -> None:
        """One more product for each row that is left."""
        j, end = self.m, self.m + self.width
        w = self.product(self._basis[:, j], self.rows)
        self.size = torch.maximum(self.size, torch.linalg.vector_norm(w, dim=1))
        w, c = _project_out(self._basis[:, :end], w)
        length = torch.linalg.vector_norm(w, dim=1)
        self.closed = ~(length > self.noise * self.size)
        self.taken += 1
        if bool(self.closed.any()):
            w, length = torch.where(self.closed[:, None], self._fresh(end), w), torch.where(self.closed, 0, length)
        self._h[:, :end, j] = c
        self._h[:, end, j] = length
        self._basis[:, end] = _unit(w)
        self.m += 1

    def compressed(self, q: Float[Tensor, "chosen m kept"], chosen: Int[Tensor, " chosen"]) -> tuple[Tensor, Tensor]:
        """Basis and H of some rows cut down to the subspaces with the orthonormal coordinates `q`, which the square part of H maps into themselves."""
        m, kept = q.shape[1], q.shape[2]
        basis = self._basis.new_empty(len(chosen), kept + self.width, self.dim)
        h = self._h.new_empty(len(chosen), kept + self.width, kept)
        for i, row in enumerate(chosen.tolist()):  # in turn, so that one basis is in the cache at a time
            torch.mm(q[i].mT, self._basis[row, :m], out=basis[i, :kept])
            basis[i, kept:] = self._basis[row, m : m + self.width]
            h[i, :kept], h[i, kept:] = q[i].mT @ self.h[row, :m] @ q[i], self.h[row, m:] @ q[i]
        return basis, h

    def restart(self, q: Float[Tensor, "row m kept"]) -> None:
        """Cut all spaces down to the subspaces with the coordinates `q`, and go on from there; see `compressed`."""
        kept = q.shape[2]
        for row in torch.arange(len(q)).split(1):  # one at a time, so that the second basis is small
            basis, h = self.compressed(q[row], row)
            self._basis[row, : kept + self.width] = basis
            self._h[row] = 0
            self._h[row, : kept + self.width, :kept] = h
        self.m = kept

    def leave(self, going: Bool[Tensor, " row"]) -> None:
        """Let the rows where `going` holds leave; the others move up in place."""
        stay = (~going).nonzero().squeeze(1).tolist()
        for new, old in enumerate(stay):  # in place: the basis is the largest thing in memory
            if new != old:
                self._basis[new, : self.m + self.width] = self._basis[old, : self.m + self.width]
        self._basis = self._basis[: len(stay)]
        self._h, self.size, self.closed = self._h[stay], self.size[stay], self.closed[stay]
        self.rows = self.rows[stay]

    def _fresh(self, end: int) -> Float[Tensor, "row dim"]:
        """A random vector orthogonal to all bases, the same draw for every row; zero when a basis spans the space."""
        if end >= self.dim:
            return torch.zeros_like(self._basis[:, 0])
        draw = random_vectors(1, self.dim, seed=100_000 * self.seed + self.taken).to(self._basis)
        return _project_out(self._basis[:, :end], draw.expand(len(self._basis), -1))[0]


def random_vectors(count: int, dim: int, *, seed: int) -> Float[Tensor, "count dim"]:
    """Standard normal vectors, always the same for a seed: no row's answer depends on the rows beside it."""
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gmres(
    product: Product, b: Float[Tensor, "row dim"], *, tol: Float[Tensor, " row"], cap: int, noise: float
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, " row"]]:
    """Solutions x of A x = b row by row, and the relative residuals they leave.

    A singular A is met by least squares over the Krylov space. A row whose products are not finite gets NaN.

    Args:
        product: The operator A of each row.
        b: The right-hand sides.
        tol: Relative residual at which a row is done.
        cap: The most products a row is given; there is no restart.
        noise: See `NOISE`.

    References:
        Saad and Schultz (1986). The residual is read from the left null vector of the Hessenberg matrix, as in Ayachour (2003).
    """
    beta = torch.linalg.vector_norm(b, dim=1)
    x = torch.where(torch.isfinite(beta), 0.0, torch.nan)[:, None] * torch.ones_like(b)
    left = torch.where(beta > 0, torch.ones_like(beta), beta)
    alive = torch.isfinite(beta) & (beta > 0)
    space = Krylov(product, b[:, None, :], cap=min(cap, b.shape[1]), noise=noise)
    null = torch.ones_like(beta)[:, None]  # u with uᵀH = 0 and u₁ = 1: the residual is β/‖u‖
    space.leave(~alive)
    null = null[alive]
    while len(space.rows):
        space.step()
        m = space.m
        column = space.h[:, :, -1]
        below = torch.where(space.closed, 1, column[:, m])
        null = torch.cat([null, torch.where(space.closed, 0, -(null * column[:, :m]).sum(1) / below)[:, None]], dim=1)
        estimate = 1 / torch.linalg.vector_norm(null, dim=1)
        broken = ~torch.isfinite(estimate + space.size)
        done = (estimate <= tol[space.rows]) | space.closed | broken | (m == space._h.shape[2])
        if bool(done.any()):
            at = space.rows[done.cpu()]
            y, rest = _least_squares(space.h[done], beta[at])
            x[at] = torch.einsum("rm,rmd->rd", y, space.basis[done])
            left[at] = rest / beta[at]
            space.leave(done)
            null = null[~done]
    return x, left


def _project_out(basis: Float[Tensor, "row j dim"], w: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row j"]]:
    """`w` without its part in `basis`, and its coefficients there: classical Gram-Schmidt, and once more where little was left.

    What stays of `w` is orthogonal to the basis up to rounding over the share of the length that was kept at the last turn (Hoffmann 1989, Iterative
    algorithms for Gram-Schmidt orthogonalization). A second turn keeps all but rounding.
    """
    total, rest = w.new_zeros(basis.shape[:2]), w.clone()
    at_once = max(1, CACHE[w.device.type] // max(1, 8 * basis.shape[1] * basis.shape[2]))
    for start in range(0, len(w), at_once):  # up to four passes over a basis, of which all but one find it in the cache
        some = slice(start, start + at_once)
        vectors, left = basis[some], rest[some]
        if len(left) == 1 < at_once:  # a batch of one is added up in another order than a larger one: its row would know that it is alone
            vectors, left = vectors.expand(2, -1, -1), left.expand(2, -1)
        again = torch.ones(len(left), dtype=torch.bool, device=w.device)
        for _ in range(2):
            c = torch.bmm(vectors, left[:, :, None]) * again[:, None, None]
            before, left = left, torch.baddbmm(left[:, None, :], c.transpose(1, 2), vectors, alpha=-1)[:, 0]
            total[some] += c[: len(total[some]), :, 0]
            again = ~(torch.linalg.vector_norm(left, dim=1) > SECOND * torch.linalg.vector_norm(before, dim=1))
            if not bool(again.any()):
                break
        rest[some] = left[: len(rest[some])]
    return rest, total


def _unit(w: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    length = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    return w / torch.where(length > 0, length, 1)


def _least_squares(h: Float[Tensor, "row longer m"], beta: Float[Tensor, " row"]) -> tuple[Float[Tensor, "row m"], Float[Tensor, " row"]]:
    """The shortest y that minimises ‖β e₁ − H y‖, and that minimum; NaN where H is not finite."""
    small, right = h.cpu(), h.new_zeros(h.shape[:2]).cpu()
    right[:, 0] = beta.cpu()
    y = torch.full((len(h), h.shape[2]), torch.nan, dtype=h.dtype)
    fine = small.flatten(1).isfinite().all(1)
    if bool(fine.any()):
        y[fine] = torch.linalg.lstsq(small[fine], right[fine, :, None], rcond=1e-13, driver="gelsd").solution[:, :, 0]
    rest = torch.linalg.vector_norm(right - torch.einsum("rlm,rm->rl", small, y), dim=1)
    return y.to(h.device), rest.to(h.device)
