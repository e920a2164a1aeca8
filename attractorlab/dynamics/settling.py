"""Run states to rest, settled rows leaving the batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_some
from attractorlab.dynamics.orbits import DIVERGED, check_tol, chunks
from attractorlab.maps import LatentMap, relative
from attractorlab.types import Result, State


@dataclass(frozen=True, eq=False)
class Rest:
    """Where each row came to rest, or was given up: the state, the first tick of rest (−1: none), its residual and result."""

    states: State
    tick: Int[Tensor, " row"]
    residual: Float[Tensor, " row"]
    result: Int[Tensor, " row"]


def settle(f: LatentMap, z: State, *, tol: float, max_ticks: int, window: int = 3) -> Rest:
    """Run each row until its residual was below `tol` at `window` ticks in a row; a row at rest leaves the batch.

    Args:
        f: The map.
        z: The starts.
        tol: Largest relative residual that counts as rest.
        max_ticks: Ticks allowed per row.
        window: Ticks in a row that must be at rest.

    Returns:
        The state at the last of those ticks, and the first of them as `tick`.

    Raises:
        ValueError: If `tol` is below the rounding floor of any leaf, `max_ticks` or `window` is below 1, `z` and `f` differ in
            their number of rows, or a few of them show that the map is random, mixes its rows, writes into its argument or gives no state like it.

    Example:
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, clock="tick")
        >>> rest = settle(half, {"z": torch.zeros(1, 1)}, tol=1e-3, max_ticks=99)
        >>> rest.tick.item(), round(rest.states["z"].item(), 3)
        (9, 1.999)
    """
    if max_ticks < 1 or window < 1:
        raise ValueError(
            f"`settle` got max_ticks={max_ticks}, window={window}. Rest is judged over one tick or more. Use max_ticks=512, window=3."
        )
    f.coordinates(z)
    for leaf in z.values():
        check_tol(tol, leaf.dtype, "settle")
    check_some(f, z, "settle", laws=True)
    parts = [_settle_chunk(f.take(rows), trees.take(z, rows), tol, max_ticks, window) for rows in chunks(z)]
    return Rest(
        states=trees.cat([part.states for part in parts]),
        tick=torch.cat([part.tick for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        result=torch.cat([part.result for part in parts]),
    )


@torch.no_grad()
def _settle_chunk(f: LatentMap, z: State, tol: float, max_ticks: int, window: int) -> Rest:
    n = trees.rows(z)
    ends = {name: leaf.clone() for name, leaf in z.items()}  # filled row by row as rows end
    device = next(iter(z.values())).device
    large = DIVERGED * trees.norm(z).clamp(min=1)
    tick = torch.full((n,), -1, device=device)
    residual = torch.full_like(large, torch.nan)
    result = torch.full((n,), Result.MAX_STEPS.code, device=device)
    rows = torch.arange(n, device=device)
    since = torch.zeros(n, dtype=torch.int64, device=device)  # ticks in a row at rest
    for t in range(max_ticks + 1):
        new = f(z)
        r = relative(trees.distance(new, z), z)
        since = torch.where(r < tol, since + 1, 0)
        code = torch.full_like(rows, -1)
        code[since >= window] = Result.CONVERGED.code
        code[trees.norm(new) > large] = Result.DIVERGED.code
        code[~trees.finite(new)] = Result.NONFINITE.code
        if t == max_ticks:
            code[code < 0] = Result.MAX_STEPS.code
        ended = code >= 0
        if bool(ended.any()):
            at = rows[ended]
            for name, leaf in z.items():
                ends[name][at] = leaf[ended]
            residual[at], result[at] = r[ended], code[ended]
            tick[at] = torch.where(code[ended] == Result.CONVERGED.code, t - window + 1, -1)
            stay = ~ended
            if not bool(stay.any()):
                break
            f, new = f.take(stay.nonzero().squeeze(1).cpu()), trees.take(new, stay)
            rows, since, large = rows[stay], since[stay], large[stay]
        z = new
    return Rest(ends, tick.cpu(), residual.cpu(), result.cpu())
