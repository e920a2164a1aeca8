"""by_newton_krylov: Newton's method with its linear systems solved in Krylov spaces."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.searching import DIRECT, GMRES_CAP, Found, Search, norm, relative_length, run_in_chunks
from attractorlab.maps import LatentMap
from attractorlab.types import State

FIRST_FORCING, LARGEST_FORCING = 0.1, 0.5
HALVINGS = 4  # of a Newton step that does not lower the residual: shorter steps creep into minima of it that are no fixed points
STEADY = 1e-3  # part of the residual that a step leaves, below which its Jacobian is good to two digits at its end
AGAIN = 0.02  # of the tolerance: what a further step with the same Jacobian has to promise
LONGEST_STEP = 100  # times the larger of ‖z‖, ‖f(z)‖ and 1


def by_newton_krylov(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Newton's method on f(z) − z, its linear systems solved by GMRES on Jacobian products.

    It also finds saddles and repelling points. A step that does not lower the residual is halved. If that does not help, one tick of the map is taken if it
    lowers the residual, and else the whole Newton step, which may lead far away: see `moved`. Where I − J is singular (a circle of fixed points), the step is a
    least-squares one. Up to 100 numbers a state the systems are solved directly.

    References:
        Knoll and Keyes (2004), Jacobian-free Newton-Krylov methods; Eisenstat and Walker (1996), choice 2 of the forcing term.
    """
    return run_in_chunks(f, z, _Newton, vectors=max(GMRES_CAP + 1, 3 * min(DIRECT, trees.size(z))), tol=tol, max_steps=max_steps)


class _Newton:
    errs = True

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search, self.tol = search, tol
        self.forcing = torch.full_like(x[:, 0], FIRST_FORCING)
        self.again = torch.zeros_like(x[:, 0], dtype=torch.bool)

    def keep(self, stay: Tensor) -> None:
        self.forcing, self.again = self.forcing[stay], self.again[stay]

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        d, _ = self.search.newton_step(x, r, rows, self.forcing, again=self.again)
        broken = ~torch.isfinite(d).all(1)
        slack = 1 - self.forcing
        new, new_r = search_line(self.search, x, r, torch.where(broken[:, None], 0, d), rows, lambda at, y, v: norm(v).log(), slack=slack, ticks=True)
        new_r[broken] = torch.nan  # the map is finite here and its Jacobian is not
        ratio, size = norm(new_r) / norm(r), relative_length(new_r, new)
        self.forcing = _next_forcing(self.forcing, ratio, self.tol / size)
        # With the same Jacobian the next step gains about what this one did: where that is enough, no new one is formed.
        self.search.steady[rows] = (ratio < STEADY).cpu()
        self.again = ~self.again & (ratio * size < AGAIN * self.tol)
        return new, new_r


Merit = Callable[[Int[Tensor, " row"], Float[Tensor, "row dim"], Float[Tensor, "row dim"]], Float[Tensor, " row"]]
"""From the numbers of rows, states and residuals: the logarithm of what a step is to lower."""


def search_line(
    search: Search, x: Tensor, r: Tensor, d: Tensor, rows: Tensor, merit: Merit, *, slack: Tensor, ticks: bool
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row dim"]]:
    """Along each row's `d`: the first of 1, 1/2, 1/4, ... that lowers the merit enough (Armijo, `slack` of a row being what its step promises).

    Where none does: with `ticks`, one tick of the map if it lowers the merit; otherwise the whole step.
    """
    longest = LONGEST_STEP * torch.stack([norm(x), norm(x + r), torch.ones_like(norm(x))]).amax(0)
    d = d * (longest / norm(d).clamp(min=1e-300)).clamp(max=1)[:, None]
    before = merit(rows, x, r)
    new = search.round(x + d)
    new_r = search.residual(new, rows)
    whole, whole_r = new.clone(), new_r.clone()
    t, open_ = 1.0, (~(merit(rows, new, new_r) <= before + torch.log1p(-1e-4 * slack))).nonzero().squeeze(1).cpu()
    for _ in range(HALVINGS):
        if not len(open_):
            return new, new_r
        t /= 2
        trial = search.round(x[open_] + t * d[open_])
        trial_r = search.residual(trial, rows[open_])
        enough = merit(rows[open_], trial, trial_r) <= before[open_] + torch.log1p(-1e-4 * t * slack[open_])
        done = open_[enough.cpu()]
        new[done], new_r[done] = trial[enough], trial_r[enough]
        open_ = open_[~enough.cpu()]
    new[open_], new_r[open_] = whole[open_], whole_r[open_]
    if ticks and len(open_):
        tick = search.round(x[open_] + r[open_])
        tick_r = search.residual(tick, rows[open_])
        lower = (merit(rows[open_], tick, tick_r) < before[open_]) | ~whole_r[open_].isfinite().all(1)
        new[open_[lower.cpu()]], new_r[open_[lower.cpu()]] = tick[lower], tick_r[lower]
    return new, new_r


def _next_forcing(forcing: Tensor, ratio: Tensor, needed: Tensor) -> Float[Tensor, " row"]:
    """Eisenstat and Walker's choice 2 with their safeguard, and not below what the tolerance asks for."""
    chosen, slow = 0.9 * ratio**2, 0.9 * forcing**2
    chosen = torch.where(slow > 0.1, torch.maximum(chosen, slow), chosen)
    return torch.maximum(chosen, 0.1 * needed).nan_to_num(LARGEST_FORCING).clamp(1e-10, LARGEST_FORCING)
