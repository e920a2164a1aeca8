"""Krylov spaces of many Jacobians at once: batched Arnoldi and GMRES on products with J or its transpose."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attractorlab import trees
from attractorlab.dynamics.orbits import chunks
from attractorlab.maps import LatentMap
from attractorlab.types import State

Product = Callable[[Float[Tensor, "row dim"], Int[Tensor, " row"]], Float[Tensor, "row dim"]]
"""Applies to each vector the operator of its row."""
NOISE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}
"""Relative length below which what orthogonalisation leaves of a product is rounding, by dtype of the map."""
MEMORY = {"cpu": 2**28, "cuda": 2**33}  # bytes that the basis of one chunk of rows may take
RECORD = {"cpu": 3 * 2**26, "cuda": 2**34}  # bytes that the recorded map of one chunk of rows may take


class Jacobian:
    """The Jacobians of `f` at the rows of `z` as a product on flat float64 vectors; `products` counts them.

    Args:
        f: The map.
        z: The points, one per row of `f`.
        transposed: Multiply with the transpose instead, in reverse mode.
    """

    def __init__(self, f: LatentMap, z: State, *, transposed: bool = False) -> None:
        self.f, self.z, self.transposed = f, z, transposed
        self.products = 0

    @torch.no_grad()
    def __call__(self, v: Float[Tensor, "row dim"], rows: Int[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """The Jacobian at point ``rows[i]`` times ``v[i]``, in as many rows at a time as the device works on best."""
        self.products += len(rows)
        tangent = trees.unflatten(v.to(dtype_of(self.z)), self.z)
        out = []
        for part in chunks(tangent):
            f, z, one = self.f.take(rows[part]), trees.take(self.z, rows[part]), trees.take(tangent, part)
            moved = f.vjp(z, one) if self.transposed else f.jvp(z, one)
            out.append(trees.flatten({name: moved[name] for name in z}))  # a map may name its leaves in another order
        return torch.cat(out).to(torch.float64)

    def at(self, rows: Int[Tensor, " chunk"]) -> Product:
        """The product for points that are multiplied again and again, numbered within `rows`.

        The map is run once and each product walks back through its record, which costs about one call of the map where a
        forward-mode product costs six. Where a map cannot be recorded so, the plain product is used. `blocks_of_rows` says how many rows fit the memory set aside.
        """
        record = _Record(self, rows)
        return record if record.usable else lambda v, at: self(v, rows[at])


class _Record:
    """Products by walking back through one recorded call of the map.

    Back once is a product with the transpose. That walk is linear in what it is given, so a walk back through the walk is a product with J itself.
    """

    def __init__(self, jacobian: Jacobian, rows: Int[Tensor, " chunk"]) -> None:
        self.jacobian, self.rows = jacobian, rows
        self.usable = self._make(torch.arange(len(rows)))

    def _make(self, at: Int[Tensor, " row"]) -> bool:
        """Run the map at the points numbered `at`; whether that could be recorded."""
        self.made = at
        j, chosen = self.jacobian, self.rows[at]
        f, z = j.f.take(chosen), trees.take(j.z, chosen)
        try:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                leaves = {name: leaf.detach().clone().requires_grad_(True) for name, leaf in z.items()}
                out = f(leaves)
                self._out, self._leaves = [out[name] for name in z], list(leaves.values())
                if j.transposed:
                    return all(one.requires_grad for one in self._out)
                self._given = [torch.zeros_like(one, requires_grad=True) for one in self._out]
                # A leaf that the map overwrites without reading it is not in the graph: None stands for its zeros.
                self._back = torch.autograd.grad(self._out, self._leaves, self._given, create_graph=True, allow_unused=True)
                return all(one is None or one.requires_grad for one in self._back)
        except RuntimeError:  # an operation without a second derivative, or an output that does not come from the state
            return False

    def __call__(self, v: Float[Tensor, "row dim"], at: Int[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """The product of row ``at[i]`` with ``v[i]``; `at` increases. Rows that left may come back: the map is then run anew."""
        if len(at) <= len(self.made) // 2 or not bool(torch.isin(at, self.made).all()):
            self._make(at)
        place = torch.searchsorted(self.made, at)
        whole = v if len(at) == len(self.made) else v.new_zeros(len(self.made), v.shape[1]).index_copy_(0, place.to(v.device), v)
        like = trees.take(self.jacobian.z, self.rows[self.made])
        given = list(trees.unflatten(whole.to(dtype_of(like)), like).values())
        ends, start = (self._out, self._leaves) if self.jacobian.transposed else (self._back, self._given)
        met = [(end, one) for end, one in zip(ends, given, strict=True) if end is not None]
        walked = torch.autograd.grad([end for end, _ in met], start, [one for _, one in met], retain_graph=True, allow_unused=True)
        self.jacobian.products += len(at)
        parts = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(start, walked, strict=True)]
        flat = torch.cat([one.flatten(1) for one in parts], dim=1).to(torch.float64)
        return flat if len(at) == len(self.made) else flat[place.to(v.device)]


def record_bytes(f: LatentMap, z: State) -> int:
    """The bytes that recording a call of `f` and the walk back through it adds per row."""
    if not trees.rows(z):
        return 0
    held = []
    for n in (1, 2):
        seen: dict[int, int] = {}

        def keep(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        rows = torch.zeros(n, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            record = _Record(Jacobian(f, z), rows)
        held.append(sum(seen.values()))
        del record
    return max(0, held[1] - held[0])


def _device(z: State) -> torch.device:
    return next(iter(z.values())).device


def dtype_of(z: State) -> torch.dtype:
    """The dtype of the leaves of `z`."""
    return next(iter(z.values())).dtype


def blocks_of_rows(f: LatentMap, z: State, *, vectors: int) -> list[Int[Tensor, " chunk"]]:
    """Row numbers of `z` in chunks, such that `vectors` float64 basis vectors and the recorded map of each row of a chunk fit the memory set aside."""
    device = _device(z).type
    at_once = max(1, MEMORY[device] // (8 * vectors * max(1, trees.size(z))))
    at_once = min(at_once, max(1, RECORD[device] // max(1, record_bytes(f, z))))
    return list(torch.arange(trees.rows(z)).split(at_once))


class Krylov:
    """Orthonormal bases of growing Krylov spaces, one per row: ``J V[:m] = V[:m+width] H``, with `width` start vectors.

    Orthogonalised twice. Where a space closes (happy breakdown), it goes on from a fresh random vector with a zero in `H`, so that the relation stays
    true, and copies of multiple eigenvalues and zeros are found. Rows can leave at any time.

    Args:
        product: The operator of each row.
        start: Start vectors of each row; they need not be orthonormal, but must be independent.
        cap: The most vectors that a space will be given.
        noise: See `NOISE`.

    References:
        Ruhe (1979), Implementation aspects of band Lanczos algorithms; Stewart (2001), Matrix Algorithms II, section 5.1.
    """

    def __init__(self, product: Product, start: Float[Tensor, "row width dim"], *, cap: int, noise: float, seed: int = 0) -> None:
        n, self.width, self.dim = start.shape
        self.product, self.noise, self.seed, self.m = product, noise, seed, 0
        self.rows = torch.arange(n)
        self._basis = start.new_empty(n, cap + self.width, self.dim)
        self._h = start.new_zeros(n, cap + self.width, cap)
        self.size = start.new_zeros(n)  # largest ‖Jv‖ so far: a lower bound of ‖J‖₂
        self.closed = torch.zeros(n, dtype=torch.bool, device=start.device)  # whether the last step broke down
        for j in range(self.width):
            w, _ = _project_out(self._basis[:, :j], start[:, j])
            self._basis[:, j] = _unit(w)

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
        if bool(self.closed.any()):
            w, length = torch.where(self.closed[:, None], self._fresh(end), w), torch.where(self.closed, 0, length)
        self._h[:, :end, j] = c
        self._h[:, end, j] = length
        self._basis[:, end] = _unit(w)
        self.m += 1

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
        draw = random_vectors(1, self.dim, seed=1000 * self.seed + end).to(self._basis)
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


def ritz(h: Float[Tensor, "row longer m"], *, k: int) -> tuple[Complex[Tensor, "row k"], Complex[Tensor, "row m k"], Float[Tensor, "row k"]]:
    """The `k` leading Ritz values of each row, their unit vectors in the basis, and their residuals. `h` must be finite."""
    m = h.shape[2]
    h = h.cpu()
    values, vectors = torch.linalg.eig(h[:, :m])
    order = leading(values)[:, :k]
    values = values.gather(1, order)
    vectors = vectors.gather(2, order[:, None, :].expand(-1, m, -1))
    return values, vectors, torch.linalg.vector_norm(h[:, m:].to(vectors.dtype) @ vectors, dim=1)


def leading(values: Complex[Tensor, "row mode"]) -> Int[Tensor, "row mode"]:
    """The order of eigenvalues, largest modulus first; equal moduli by real part, then by imaginary part, downwards.

    Example:
        >>> values = torch.tensor([[0.5 - 1j, 2.0, 0.5 + 1j, -3.0]])
        >>> values.gather(1, leading(values)).tolist()
        [[(-3+0j), (2+0j), (0.5+1j), (0.5-1j)]]
    """
    modulus = values.abs()
    top = modulus.amax(dim=1, keepdim=True).clamp(min=1e-300)
    rounded = (modulus / top * 1e10).round()  # moduli that differ by rounding alone are equal
    order = values.imag.argsort(dim=1, descending=True, stable=True)
    for key in (values.real, rounded):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return order


def _project_out(basis: Float[Tensor, "row j dim"], w: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row j"]]:
    """`w` without its part in `basis`, and its coefficients there: classical Gram-Schmidt, twice."""
    total = w.new_zeros(basis.shape[:2])
    for _ in range(2):
        c = torch.bmm(basis, w[:, :, None])
        w = torch.baddbmm(w[:, None, :], c.transpose(1, 2), basis, alpha=-1)[:, 0]
        total = total + c[:, :, 0]
    return w, total


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
