"""by_minimisation, by_gauss_newton: fixed points as the zeros of q = ½‖f(z) − z‖²."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab.dynamics.searching import ERROR_FORCING, GMRES_CAP, Found, Search, norm, run_in_chunks
from attractorlab.maps import LatentMap
from attractorlab.types import State

ADAM_RATE, ADAM_DECAY, ADAM_PATIENCE = 1.0, 0.95, 2  # rate, and the factor to it after more than so many steps without progress
DAMPING, LESS, MORE = 1e-3, 1 / 3, 4.0  # the first damping relative to ‖J − I‖², and its factors after success and failure


def by_minimisation(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Adam on q = ½‖f(z) − z‖², row by row: the method of FixedPointFinder, with its rate 1 that falls by 5 % after two steps without progress.

    Slow, and it also ends in minima of q that are no fixed points; it is here for comparison. `error` is NaN.

    References:
        Sussillo and Barak (2013), Opening the black box; Golub and Sussillo (2018), FixedPointFinder.
    """
    return run_in_chunks(f, z, _Adam, vectors=6, tol=tol, max_steps=max_steps)


def by_gauss_newton(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Levenberg and Marquardt's method on q = ½‖f(z) − z‖², its least-squares systems solved by conjugate gradients on products with J and its transpose.

    Slower than Newton's method where that works; it always lowers q, and so ends in a minimum of it, a fixed point or none. `error` is NaN.

    References:
        Levenberg (1944), Marquardt (1963); Björck (1996), section 7.4 (CGLS).
    """
    return run_in_chunks(f, z, _GaussNewton, vectors=10, tol=tol, max_steps=max_steps)


class _Adam:
    errs = False

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search, self.t = search, 0
        self.first, self.second = torch.zeros_like(x), torch.zeros_like(x)
        self.rate = torch.full_like(x[:, 0], ADAM_RATE)
        self.lowest, self.waited = torch.full_like(self.rate, torch.inf), torch.zeros_like(self.rate)

    def keep(self, stay: Tensor) -> None:
        self.first, self.second, self.rate = self.first[stay], self.second[stay], self.rate[stay]
        self.lowest, self.waited = self.lowest[stay], self.waited[stay]

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        back = self.search.jacobian(x, rows, transposed=True)
        gradient = back(r, torch.arange(len(rows))) - r
        self.t += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        away = (self.first / (1 - 0.9**self.t)) / ((self.second / (1 - 0.999**self.t)).sqrt() + 1e-8)
        new = self.search.round(x - self.rate[:, None] * away)
        new_r = self.search.residual(new, rows)
        q = norm(new_r)
        progress = q < self.lowest * (1 - 1e-4)
        self.lowest = torch.minimum(self.lowest, q)
        self.waited = torch.where(progress, 0, self.waited + 1)
        late = self.waited > ADAM_PATIENCE
        self.rate = torch.where(late, ADAM_DECAY * self.rate, self.rate)
        self.waited = torch.where(late, 0, self.waited)
        return new, new_r


class _GaussNewton:
    errs = False

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search = search
        self.damping = torch.full_like(x[:, 0], DAMPING)

    def keep(self, stay: Tensor) -> None:
        self.damping = self.damping[stay]

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        forward, back = self.search.jacobian(x, rows), self.search.jacobian(x, rows, transposed=True)
        at = torch.arange(len(rows))
        d = _cgls(lambda v: forward(v, at) - v, lambda u: back(u, at) - u, -r, self.damping)
        new = self.search.round(x + torch.where(d.isfinite().all(1)[:, None], d, 0))
        new_r = self.search.residual(new, rows)
        worse = ~(norm(new_r) < norm(r))
        broken = ~d.isfinite().all(1)
        self.damping = (self.damping * torch.where(worse, MORE, LESS)).clamp(1e-12, 1e12)
        new, new_r = torch.where(worse[:, None], x, new), torch.where(worse[:, None], r, new_r)
        new_r[broken] = torch.nan
        return new, new_r


def _cgls(forward: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], b: Tensor, damping: Tensor) -> Float[Tensor, "row dim"]:
    """The d that minimises ‖A d − b‖² + μ‖d‖² row by row, μ being `damping` times an estimate of ‖A‖², by conjugate gradients."""
    d, rest = torch.zeros_like(b), b.clone()
    s = back(rest)
    along, gamma = s.clone(), s.square().sum(1)
    first, mu = gamma.clone(), torch.zeros_like(gamma)
    going = torch.ones_like(gamma, dtype=torch.bool)  # each row stops by itself, so that none depends on its neighbours
    for k in range(GMRES_CAP):
        image = forward(along)
        length = along.square().sum(1).clamp(min=1e-300)
        if k == 0:
            mu = damping * image.square().sum(1) / length
        step = going * gamma / (image.square().sum(1) + mu * length).clamp(min=1e-300)
        d, rest = d + step[:, None] * along, rest - step[:, None] * image
        s = back(rest) - mu[:, None] * d
        new = s.square().sum(1)
        going = going & (new > ERROR_FORCING**2 * 1e-4 * first)
        if not bool(going.any()):
            break
        along = s + (new / gamma.clamp(min=1e-300))[:, None] * along
        gamma = new
    return d
