"""lyapunov_exponents: how fast neighbours of an orbit drift apart, direction by direction."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_at
from attractorlab.dynamics.inside import check_updates
from attractorlab.dynamics.krylov import NOISE, Jacobian, blocks_of_rows, dtype_of, random_vectors
from attractorlab.dynamics.orbits import DIVERGED
from attractorlab.dynamics.traces import pushing
from attractorlab.maps import LatentMap
from attractorlab.statistics import batch_error
from attractorlab.types import LyapunovEstimate, Result, State


def lyapunov_exponents(f: LatentMap, z: State, *, k: int, ticks: int, transient: int = 0, by_update: bool = False) -> LyapunovEstimate:
    """The `k` leading finite-time Lyapunov exponents along the orbit from each row of `z`, in nats per tick.

    A frame of `k` tangent vectors is pushed along the orbit by products with the Jacobian, in the order of time, and made orthonormal again after every
    tick; what the columns grew by is averaged. Along a transient they describe the transient: at a fixed point they are the logarithms of
    the moduli of its eigenvalues, and elsewhere they are no statement on an attractor until the orbit has reached it.

    Args:
        f: The map.
        z: Where the orbits begin, in float64 or float32, the dtype of the map.
        k: How many exponents.
        ticks: Ticks that count.
        transient: Ticks before them, over which the orbit comes to its attractor and the frame to its directions.
        by_update: Make the frame orthonormal after each of the map's sub-updates, for maps whose single tick stretches one direction by so much more than another that
            rounding cannot carry both (10¹⁰ times in float64). The exponents stay per tick.

    Raises:
        ValueError: If `k` is below 1 or above the size of the state, `ticks` is below 1, `transient` is negative, `by_update` is asked of a map
            without updates, or with others than its rule, `z` and `f` differ in rows or dtype, or `f` breaks a law.

    Example:
        >>> import math
        >>> tent = LatentMap(lambda z, x: {"z": 1 - 1.9 * z["z"].abs()}, {}, clock="tick")  # the tent map of slope 1.9
        >>> found = lyapunov_exponents(tent, {"z": torch.tensor([[0.1]], dtype=torch.float64)}, k=1, ticks=50)
        >>> round(found.exponents.item(), 6), round(math.log(1.9), 6)
        (0.641854, 0.641854)

    References:
        Benettin, Galgani, Giorgilli and Strelcyn (1980); Engelken, Wolf and Abbott (arXiv 2006.02427), for recurrent networks; Kaplan and Yorke (1979).
    """
    instance, start = f.coordinates(z)
    dim = trees.size(z)
    if not 1 <= k <= dim:
        raise ValueError(f"`lyapunov_exponents` got k={k} for states of {dim} numbers. A state of n numbers has n exponents. Use k from 1 to {dim}.")
    if ticks < 1 or transient < 0:
        raise ValueError(
            f"`lyapunov_exponents` got ticks={ticks}, transient={transient}. One tick or more is counted, after none or more that are not. "
            "Use ticks=64, transient=0."
        )
    if by_update and not f.updates:
        raise ValueError(
            "`lyapunov_exponents` got by_update=True for a map without updates. Only a map whose author took its tick apart has them. Leave `by_update` out."
        )
    if dtype_of(z) not in (torch.float64, torch.float32):
        raise ValueError(
            f"`lyapunov_exponents` got states in {str(dtype_of(z)).removeprefix('torch.')}. Exponents need float64 or float32. "
            "Cast both: `reasoner.to(torch.float64).bind(puzzles)` and `trees.to(z, torch.float64)`."
        )
    check_at(f, z, "lyapunov_exponents")
    if by_update:
        check_updates(f, z, caller="lyapunov_exponents")
    parts = [_follow(f.take(rows), trees.take(z, rows), k, ticks, transient, by_update) for rows in blocks_of_rows(f, z, vectors=3 * k)]
    growth = torch.cat([part[0] for part in parts], dim=1)
    return LyapunovEstimate(
        exponents=growth.mean(0),
        standard_error=batch_error(growth),
        growth=growth,
        result=torch.cat([part[1] for part in parts]),
        instance=instance,
        start=start,
        size=dim,
        transient=transient,
        clock=f.clock,
        origin=f.origin,
    )


@torch.no_grad()
def _follow(f: LatentMap, z: State, k: int, ticks: int, transient: int, by_update: bool) -> tuple[Float[Tensor, "time row k"], Int[Tensor, " row"]]:
    n, dim = trees.rows(z), trees.size(z)
    device = next(iter(z.values())).device
    steps = [LatentMap(one.rule, f.drive, instance=f.instance, start=f.start) for one in f.updates] if by_update else [f]
    # Every row gets the same frame: no row's answer depends on the rows beside it.
    frame = torch.linalg.qr(random_vectors(k, dim, seed=3).T)[0].T.to(device).expand(n, -1, -1)
    large = DIVERGED * trees.norm(z).clamp(min=1)
    growth = torch.full((ticks, n, k), torch.nan, dtype=torch.float64)
    result = torch.full((n,), Result.COMPLETED.code)
    rows = torch.arange(n)
    for t in range(transient + ticks):
        grown, z, frame = _tick(steps, z, frame)
        if t >= transient:
            growth[t - transient, rows] = grown.cpu()
        finite = trees.finite(z) & frame.isfinite().flatten(1).all(1) & ~grown.isnan().any(1)
        small = trees.norm(z) <= large
        stay = finite & small
        if not bool(stay.all()):
            result[rows] = torch.where(stay, result[rows].to(device), torch.where(finite, Result.DIVERGED.code, Result.NONFINITE.code)).cpu()
            growth[:, rows[~stay.cpu()]] = torch.nan
            keep = stay.nonzero().squeeze(1)
            steps = [one.take(keep.cpu()) for one in steps]
            z, frame, large, rows = trees.take(z, keep), frame[keep], large[keep], rows[keep.cpu()]
            if not len(rows):
                break
    return growth, result


def _tick(steps: Sequence[LatentMap], z: State, frame: Float[Tensor, "row k dim"]) -> tuple[Float[Tensor, "row k"], State, Float[Tensor, "row k dim"]]:
    """One tick of the orbit and of the frame; the logarithms of what each vector grew by."""
    grown = torch.zeros_like(frame[:, :, 0])
    everyone = torch.arange(len(frame))
    for f in steps:
        pushed = pushing(Jacobian(f, z).at(everyone))(frame)
        fine = pushed.isfinite().flatten(1).all(1)
        q, r = torch.linalg.qr(torch.where(fine[:, None, None], pushed, 0).mT)
        frame = q.mT
        # What is left of a vector beside the others is rounding where it is that much smaller than the longest of them.
        left, longest = r.diagonal(dim1=1, dim2=2).abs(), torch.linalg.vector_norm(r, dim=1).amax(1, keepdim=True)
        grown = grown + torch.where(fine[:, None], torch.where(left > NOISE[dtype_of(z)] * longest, left, 0).log(), torch.nan)
        z = f(z)
    return grown, z, frame
