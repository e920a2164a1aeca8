"""The loop behind every search for a fixed point: rows that ended leave, and the best state of each is handed back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics import direct
from attractorlab.dynamics.krylov import CACHE, NOISE, Jacobian, Product, blocks_of_rows, dtype_of, gmres
from attractorlab.dynamics.orbits import DIVERGED, FLOOR
from attractorlab.maps import LatentMap, relative
from attractorlab.types import Result, State

GMRES_CAP = 60  # products that one linear solve in Krylov spaces may take
DIRECT = 100  # numbers of a state up to which the equations of a Newton step are formed and solved directly: there as many products cost less than a Krylov space
BUFFERS = 2  # the Jacobian of a row and its factors
ERROR_FORCING, UNSOLVED = 1e-2, 0.1  # the error estimate is good to two digits, and is none where so much of the equations is left unsolved


@dataclass(frozen=True, eq=False)
class Found:
    """What a solver hands back, one entry per start; the fields are those of `FixedPointSet`."""

    states: State
    residual: Float[Tensor, " point"]
    error: Float[Tensor, " point"]
    result: Int[Tensor, " point"]
    steps: Int[Tensor, " point"]


@runtime_checkable
class Solver(Protocol):
    """A way to search for fixed points from each row of `z`."""

    def __call__(self, f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
        """Every row of `z` gets an entry, found or not."""
        ...


class Search:
    """The residuals of a chunk of rows on flat float64 vectors that are always rounded to the dtype of the state."""

    def __init__(self, f: LatentMap, z: State) -> None:
        self.f, self.like, self.dtype = f, z, dtype_of(z)
        self.factors: direct.Factors | None = None
        self.steady = torch.zeros(trees.rows(z), dtype=torch.bool)  # rows whose last Newton step left so little that their Jacobian cannot have changed much

    def state(self, x: Float[Tensor, "row dim"]) -> State:
        return trees.unflatten(x.to(self.dtype), self.like)

    def round(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        return x.to(self.dtype).to(torch.float64)

    @torch.no_grad()
    def residual(self, x: Float[Tensor, "row dim"], rows: Int[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """f(z) − z."""
        return trees.flatten(self.f.take(rows)(self.state(x))).to(torch.float64) - x

    def jacobian(self, x: Float[Tensor, "row dim"], rows: Int[Tensor, " row"], *, transposed: bool = False) -> Product:
        """Products with J, or its transpose, at each row of `x`."""
        return Jacobian(self.f.take(rows), self.state(x), transposed=transposed).at(torch.arange(len(rows)))

    def newton_step(
        self, x: Tensor, r: Tensor, rows: Tensor, forcing: Tensor, *, again: Bool[Tensor, " row"] | None = None
    ) -> tuple[Float[Tensor, "row dim"], Float[Tensor, " row"]]:
        """d with (J − I) d = −r, to a relative residual of `forcing` or less, and the relative residual that was reached.

        Where `again` holds, the Jacobian of the row's last step will do, if its factors are at hand.
        """
        if x.shape[1] > DIRECT:
            product = self.jacobian(x, rows)
            return gmres(lambda v, at: product(v, at) - v, -r, tol=forcing, cap=GMRES_CAP, noise=NOISE[self.dtype])
        self.factors = self.factors or direct.Factors(trees.rows(self.like), x)
        old = torch.zeros_like(x[:, 0], dtype=torch.bool) if again is None else self.factors.there[rows] & again
        d, left, new = torch.zeros_like(x), torch.zeros_like(x[:, 0]), (~old).nonzero().squeeze(1).cpu()
        if bool(old.any()):
            d[old] = self.factors.solve(rows[old.cpu()], -r[old])
        for part in new.split(max(1, CACHE[x.device.type] // (8 * BUFFERS * x.shape[1] ** 2))):  # all that is done to a matrix, while it is in the cache
            matrix = direct.matrix_of(self.f.take(rows[part]), self.state(x[part]))
            matrix.diagonal(dim1=1, dim2=2).sub_(1)
            rounding = max(FLOOR[self.dtype] / 10, torch.finfo(self.dtype).eps) * norm(x[part])
            d[part], left[part], kept = direct.solve(matrix, -r[part], singular=direct.SINGULAR[self.dtype], rounding=rounding)
            self.factors.keep(rows[part], *kept)
        return d, left


class Steps(Protocol):
    """What a method does in a step, and what it keeps of each row; `errs` says whether its points get a Newton step as their error."""

    errs: bool

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """From states and their residuals to the next ones."""
        ...

    def keep(self, stay: Bool[Tensor, " row"]) -> None:
        """The rows that are left."""
        ...


def run_in_chunks(f: LatentMap, z: State, make: Callable[[Search, Tensor, float], Steps], *, vectors: int, tol: float, max_steps: int) -> Found:
    """Run the method that `make` makes on as many rows at a time as memory allows; `vectors` is what it keeps per row, in states."""
    parts = [_run(f.take(rows), trees.take(z, rows), make, tol=tol, max_steps=max_steps) for rows in blocks_of_rows(f, z, vectors=vectors)]
    return Found(
        states=trees.cat([part.states for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        error=torch.cat([part.error for part in parts]),
        result=torch.cat([part.result for part in parts]),
        steps=torch.cat([part.steps for part in parts]),
    )


def _run(f: LatentMap, z: State, make: Callable[[Search, Tensor, float], Steps], *, tol: float, max_steps: int) -> Found:
    """The loop of every method: rows that ended leave, and the best state of each is handed back."""
    search = Search(f, z)
    x = trees.flatten(z).to(torch.float64)
    n = len(x)
    rows = torch.arange(n)
    r = search.residual(x, rows)
    best, best_r = x.clone(), r.clone()
    steps, result = torch.zeros(n, dtype=torch.int64), torch.full((n,), Result.MAX_STEPS.code)
    large = DIVERGED * norm(x).clamp(min=1)
    method = make(search, x, tol)
    for step in range(max_steps + 1):
        size = relative_length(r, x)
        code = torch.full(rows.shape, -1)
        code[(size < tol).cpu()] = Result.CONVERGED.code
        code[(norm(x) > large[rows]).cpu()] = Result.DIVERGED.code
        code[~torch.isfinite(norm(r)).cpu()] = Result.NONFINITE.code
        better = size < relative_length(best_r[rows], best[rows])
        best[rows[better.cpu()]], best_r[rows[better.cpu()]] = x[better], r[better]
        ended = code >= 0
        result[rows[ended]] = code[ended]
        steps[rows] = step
        stay = ~ended
        if step == max_steps or not bool(stay.any()):
            break
        if bool(ended.any()):
            rows, x, r = rows[stay], x[stay], r[stay]
            method.keep(stay)
        x, r = method.step(x, r, rows)
    return _finish(search, best, best_r, result, steps, errs=method.errs)


def _finish(search: Search, best: Tensor, best_r: Tensor, result: Tensor, steps: Tensor, *, errs: bool) -> Found:
    """The best states, with the length of one more Newton step as their error if `errs`."""
    error = torch.full_like(best[:, 0], torch.nan)
    finite = torch.isfinite(best_r).all(1).cpu().nonzero().squeeze(1)
    if errs and len(finite):
        forcing = torch.full_like(best[finite, 0], ERROR_FORCING)
        d, left = search.newton_step(best[finite], best_r[finite], finite, forcing, again=search.steady[finite].to(forcing.device))
        # A step whose equations were not solved is shorter than the true one by nobody knows how much.
        rest = left * relative_length(best_r[finite], best[finite])
        known = (left <= UNSOLVED) | (rest <= FLOOR[search.dtype] / 10)  # along a family of fixed points rounding is all that is left
        error[finite] = torch.where(known, relative_length(d, best[finite]), torch.inf)
    kind = torch.float32 if search.dtype in trees.HALF else search.dtype
    return Found(search.state(best), relative_length(best_r, best).to(kind), error.to(kind), result, steps)


def norm(x: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """The length of each row."""
    return torch.linalg.vector_norm(x, dim=1)


def relative_length(r: Float[Tensor, "row dim"], x: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """The length of each row of `r` over that of `x`."""
    return relative(norm(r), {"x": x})
