"""by_anderson, by_broyden: from the residuals of earlier steps to the next, without derivatives."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attractorlab.dynamics.searching import Found, Search, norm, run_in_chunks
from attractorlab.maps import LatentMap
from attractorlab.types import State

WINDOW = 8  # residuals that an Anderson step combines
RANK = {torch.float64: 1e-10, torch.float32: 1e-6}  # directions of relative length below it take no part: rounding made them
MEMORY = 60  # rank-one updates that Broyden's method keeps before it starts afresh
GROWN = 100.0  # times the best residual: a step to more than that is taken back; both methods have to climb at times


def by_anderson(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Anderson's acceleration of the iteration: the last 8 residuals are combined to the smallest one, and the images likewise. No derivatives.

    It is GMRES in disguise on a linear map, so that few distinct eigenvalues need few steps. It mostly finds what attracts. Directions are cut
    off relative to the residuals, so that the scale of the state does not matter; a step that makes the residual grow a hundredfold is taken back, and a plain tick
    taken from the best state so far. `error` is NaN.

    References:
        Anderson (1965); Walker and Ni (2011), Anderson acceleration for fixed-point iterations.
    """
    return run_in_chunks(f, z, _Anderson, vectors=2 * WINDOW + 4, tol=tol, max_steps=max_steps)


def by_broyden(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Broyden's good method from the Jacobian −I of f(z) − z, its inverse kept as up to 60 rank-one updates. No derivatives.

    The first step is a tick of the map. Each row has its own updates; a step that makes the residual grow a hundredfold is taken back, and the row starts
    afresh with a tick from its best state. `error` is NaN.

    References:
        Broyden (1965); Kelley (1995), Iterative Methods for Linear and Nonlinear Equations, section 7.3.
    """
    return run_in_chunks(f, z, _Broyden, vectors=2 * MEMORY + 4, tol=tol, max_steps=max_steps)


class _Anderson:
    errs = False

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search, self.k = search, 0
        self.rank = RANK.get(search.dtype, RANK[torch.float32])
        # Differences of residuals and of images; a column of zeros takes no part.
        self.dr, self.dg = x.new_zeros(len(x), WINDOW, x.shape[1]), x.new_zeros(len(x), WINDOW, x.shape[1])
        self.best: tuple[Tensor, Tensor] | None = None

    def keep(self, stay: Tensor) -> None:
        self.dr, self.dg = self.dr[stay], self.dg[stay]
        if self.best is not None:
            self.best = (self.best[0][stay], self.best[1][stay])

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, r, fell, self.best = _take_back(x, r, self.best)
        if bool(fell.any()):
            self.dr[fell], self.dg[fell] = 0, 0
        # The residual is brought down by a combination of its differences, and the image by the same one. Columns of one length, so that old ones count no more.
        length = torch.linalg.vector_norm(self.dr, dim=2).clamp(min=1e-300)
        basis, small = torch.linalg.qr((self.dr / length[:, :, None]).transpose(1, 2))
        along = torch.bmm(basis.transpose(1, 2), r[:, :, None])
        gamma = torch.linalg.lstsq(small.cpu(), along.cpu(), rcond=self.rank, driver="gelsd").solution.to(x.device)[:, :, 0] / length
        step = r - torch.bmm(gamma[:, None], self.dg)[:, 0]
        new = self.search.round(x + torch.where(step.isfinite().all(1)[:, None], step, r))
        new_r = self.search.residual(new, rows)
        at = self.k % WINDOW
        self.dr[:, at], self.dg[:, at] = (new_r - r).nan_to_num(0, 0, 0), (new + new_r - x - r).nan_to_num(0, 0, 0)
        self.k += 1
        return new, new_r


class _Broyden:
    errs = False

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search = search
        # The inverse Jacobian of f(z) − z is −I + Σ u vᵀ.
        self.u, self.v = x.new_zeros(len(x), MEMORY, x.shape[1]), x.new_zeros(len(x), MEMORY, x.shape[1])
        self.used = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.best: tuple[Tensor, Tensor] | None = None

    def keep(self, stay: Tensor) -> None:
        self.u, self.v, self.used = self.u[stay], self.v[stay], self.used[stay]
        if self.best is not None:
            self.best = (self.best[0][stay], self.best[1][stay])

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, r, fell, self.best = _take_back(x, r, self.best)
        fresh = fell | (self.used == MEMORY)
        if bool(fresh.any()):
            self.u[fresh], self.v[fresh], self.used[fresh] = 0, 0, 0
        d = -_low_rank(self.u, self.v, r)
        d = torch.where(d.isfinite().all(1)[:, None], d, r)
        new = self.search.round(x + d)
        new_r = self.search.residual(new, rows)
        s, y = new - x, new_r - r
        hy = _low_rank(self.u, self.v, y)
        sh = _low_rank(self.v, self.u, s)  # sᵀ H, by the transposed updates
        scale = (sh * y).sum(1)
        good = scale.abs() > 1e-12 * norm(sh) * norm(y)
        row = torch.arange(len(x), device=x.device)
        update = (s - hy) / torch.where(good, scale, 1)[:, None]
        fine = good & update.isfinite().all(1) & sh.isfinite().all(1)
        self.u[row, self.used] = torch.where(fine[:, None], update, 0)
        self.v[row, self.used] = torch.where(fine[:, None], sh, 0)
        self.used += 1
        return new, new_r


def _take_back(x: Tensor, r: Tensor, best: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Bool[Tensor, " row"], tuple[Tensor, Tensor]]:
    """The states to go on from: where the residual grew too far over the best one, that one; and which rows fell back so."""
    if best is None:
        return x, r, torch.zeros(len(x), dtype=torch.bool, device=x.device), (x, r)
    fell = ~(norm(r) <= GROWN * norm(best[1]))
    x, r = torch.where(fell[:, None], best[0], x), torch.where(fell[:, None], best[1], r)
    better = (norm(r) < norm(best[1]))[:, None]
    return x, r, fell, (torch.where(better, x, best[0]), torch.where(better, r, best[1]))


def _low_rank(u: Tensor, v: Tensor, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """(−I + Σ u vᵀ) x."""
    return torch.bmm(torch.bmm(v, x[:, :, None]).transpose(1, 2), u)[:, 0] - x
