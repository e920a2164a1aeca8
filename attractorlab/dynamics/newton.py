"""by_newton_krylov: Newton's method with its linear systems solved in Krylov spaces."""

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab.dynamics.searching import GMRES_CAP, Found, Search, norm, relative_length, run_in_chunks
from attractorlab.maps import LatentMap
from attractorlab.types import State

FIRST_FORCING, LARGEST_FORCING = 0.1, 0.5
HALVINGS = 2  # of a Newton step before one tick is taken instead: shorter steps creep into minima of the residual that are no fixed points
LONGEST_STEP = 100  # times the larger of ‖z‖, ‖f(z)‖ and 1


def by_newton_krylov(f: LatentMap, z: State, *, tol: float, max_steps: int) -> Found:
    """Newton's method on f(z) − z, its linear systems solved by GMRES on Jacobian products.

    It also finds saddles and repelling points. A step that does not lower the residual is halved, and at last replaced by one tick of the
    map. Where I − J is singular (a circle of fixed points), the step is a least-squares one.

    References:
        Knoll and Keyes (2004), Jacobian-free Newton-Krylov methods; Eisenstat and Walker (1996), choice 2 of the forcing term.
    """
    return run_in_chunks(f, z, _Newton, vectors=GMRES_CAP + 1, tol=tol, max_steps=max_steps)


class _Newton:
    errs = True

    def __init__(self, search: Search, x: Tensor, tol: float) -> None:
        self.search, self.tol = search, tol
        self.forcing = torch.full_like(x[:, 0], FIRST_FORCING)

    def keep(self, stay: Tensor) -> None:
        self.forcing = self.forcing[stay]

    def step(self, x: Tensor, r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        d, _ = self.search.newton_step(x, r, rows, self.forcing)
        broken = ~torch.isfinite(d).all(1)
        new, new_r = _search_line(self.search, x, r, torch.where(broken[:, None], 0, d), rows, self.forcing)
        new_r[broken] = torch.nan  # the map is finite here and its Jacobian is not
        self.forcing = _next_forcing(self.forcing, norm(new_r) / norm(r), self.tol / relative_length(new_r, new))
        return new, new_r


def _search_line(search: Search, x: Tensor, r: Tensor, d: Tensor, rows: Tensor, forcing: Tensor) -> tuple[Tensor, Tensor]:
    """Along each row's `d`: the first of 1, 1/2, 1/4, ... that lowers the residual enough (Armijo); or else one tick of the map."""
    longest = LONGEST_STEP * torch.stack([norm(x), norm(x + r), torch.ones_like(norm(x))]).amax(0)
    d = d * (longest / norm(d).clamp(min=1e-300)).clamp(max=1)[:, None]
    new, new_r = search.round(x + r), torch.full_like(r, torch.nan)
    open_ = torch.arange(len(rows))
    t = 1.0
    for _ in range(HALVINGS + 1):
        trial = search.round(x[open_] + t * d[open_])
        trial_r = search.residual(trial, rows[open_])
        enough = (norm(trial_r) <= (1 - 1e-4 * t * (1 - forcing[open_])) * norm(r[open_])).cpu()
        new[open_[enough]], new_r[open_[enough]] = trial[enough], trial_r[enough]
        open_ = open_[~enough]
        if not len(open_):
            return new, new_r
        t /= 2
    new_r[open_] = search.residual(new[open_], rows[open_])
    return new, new_r


def _next_forcing(forcing: Tensor, ratio: Tensor, needed: Tensor) -> Float[Tensor, " row"]:
    """Eisenstat and Walker's choice 2 with their safeguard, and not below what the tolerance asks for."""
    chosen, slow = 0.9 * ratio**2, 0.9 * forcing**2
    chosen = torch.where(slow > 0.1, torch.maximum(chosen, slow), chosen)
    return torch.maximum(chosen, 0.1 * needed).nan_to_num(LARGEST_FORCING).clamp(1e-10, LARGEST_FORCING)
