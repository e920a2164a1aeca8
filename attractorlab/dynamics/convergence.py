"""convergence: does each row settle, when, how fast, and is it then solved."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab.dynamics.orbits import FLOOR, check_tol
from attractorlab.types import Convergence, Result, Trajectory

FALLING_TICKS, FALLING_BY = 8, 0.9  # a residual that fell at each of so many ticks, or all there are, to below so much of what it was, is still falling
RATE_TICKS = 8  # residuals that the rate is fitted to, at most
RATE_FLOOR = 30  # times the rounding floor: below it a residual is noise


def convergence(traj: Trajectory, *, tol: float, targets: Int[Tensor, "instance site"] | None = None, window: int = 3) -> Convergence:
    """Whether and when each row of `traj` settles, how fast, and whether and when it is solved.

    A low residual says "at rest", not "solved", and not "at a fixed point": polish with `find_fixed_points` to claim one.

    Args:
        traj: A trajectory that was recorded without a kick.
        tol: Largest relative residual that counts as rest. The rounding floor of the dtype is the lower limit.
        targets: The right answers, one row per instance (not per start).
        window: Residuals at the end that must all be at rest.

    Returns:
        One entry per row. The rate is the factor by which the residual shrinks per tick, from a straight line through its logarithm over the
        last 8 ticks above 30 times the rounding floor. A row that is not at rest but whose residual fell at each of the last 8 ticks, or all of fewer, by a
        tenth or more in all, is approaching: it was not followed long enough. The period is the smallest p up to 8 for which the last state and the one p ticks
        before differ by less than `tol`.

    Raises:
        ValueError: If `tol` is below the floor, `targets` do not fit the recorded answers, or there are fewer residuals than `window`.

    Example:
        >>> from attractorlab import every, trace
        >>> from attractorlab.maps import LatentMap
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, clock="tick")
        >>> conv = convergence(trace(half, {"z": torch.zeros(1, 1)}, ticks=30, keep=every(1)), tol=1e-6)
        >>> conv.verdict, conv.settle_tick.item(), round(conv.rate.item(), 3)
        (('settled',), 19, 0.5)
    """
    check_tol(tol, traj.residual.dtype, "convergence")
    if not 1 <= window <= len(traj.ticks):
        raise ValueError(
            f"`convergence` got a trajectory of {len(traj.ticks)} residuals for window={window}. Rest is judged over a whole window of 1 or more. "
            f"Trace {max(1, window - 1)} ticks or more, or use window=3."
        )
    low = traj.residual < tol  # NaN compares false: a row that ended early is not at rest
    settled = low[-window:].all(0)
    diverged = (traj.result == Result.DIVERGED.code) | (traj.result == Result.NONFINITE.code)
    returns = traj.recurrence < tol
    lag = torch.where(returns.any(0), returns.int().argmax(0) + 1, 0)
    period = torch.where(diverged, 0, torch.where(settled, 1, torch.where(lag >= 2, lag, 0)))
    # An oscillation that dies out returns after two ticks too; its residual gives it away.
    approaching = _falling(traj.residual) & ~settled & ~diverged
    period = torch.where(approaching, 0, period)
    words = {0: "wandering", 1: "settled"}
    verdict = tuple(
        "diverged" if d else "approaching" if a else words.get(p, f"periodic({p})")
        for d, a, p in zip(diverged.tolist(), approaching.tolist(), period.tolist(), strict=True)
    )
    solved = None if targets is None else solved_at(traj, targets)
    return Convergence(
        ticks=traj.ticks,
        residual=traj.residual,
        rate=_rate(traj.residual),
        settle_tick=torch.where(settled, _holds_since(low), -1),
        solved=solved,
        first_solved=None if solved is None else torch.where(solved.any(0), solved.int().argmax(0), -1),
        stays_solved=None if solved is None else torch.where(solved[-1], _holds_since(solved), -1),
        period=period,
        verdict=verdict,
        instance=traj.instance,
        start=traj.start,
        tol=tol,
        clock=traj.clock,
        origin=traj.origin,
    )


def solved_at(traj: Trajectory, targets: Int[Tensor, "instance site"]) -> Bool[Tensor, "time row"]:
    """Whether the recorded answer equals the target at every site, per tick and row.

    Raises:
        ValueError: If no answer was recorded, or it is of another size than the targets.
    """
    if "answer" not in traj.readouts:
        raise ValueError(
            f"`solved_at` got targets for a trajectory with the readouts {sorted(traj.readouts) or 'none'}. Targets are compared with a readout `answer`. "
            "Give the map a readout of `logits` or `answer`, or leave `targets` out."
        )
    recorded = traj.readouts["answer"]
    answer = recorded.reshape(*recorded.shape[:2], -1)
    if targets.ndim != 2 or targets.shape[1] != answer.shape[2] or len(targets) <= int(traj.instance.max()):
        raise ValueError(
            f"`solved_at` got targets of shape {tuple(targets.shape)} for answers of {answer.shape[2]} sites on instances up to {int(traj.instance.max())}. "
            "Targets are one row of sites per instance. Pass the `targets` of the instances that were bound."
        )
    return (answer == targets[traj.instance].to(answer.device)).all(-1)


def _falling(residual: Float[Tensor, "time row"]) -> Bool[Tensor, " row"]:
    """Which residuals were still falling at the end."""
    last = residual[-FALLING_TICKS - 1 :]
    return (last.diff(dim=0) < 0).all(0) & (last[-1] < FALLING_BY * last[0]) & (len(last) > 2)


def _holds_since(mask: Bool[Tensor, "time row"]) -> Int[Tensor, " row"]:
    """The first tick from which `mask` holds to the end."""
    return len(mask) - mask.flip(0).int().cumprod(0).sum(0)


def _rate(residual: Float[Tensor, "time row"]) -> Float[Tensor, " row"]:
    """exp of the slope of log residual over its last ticks above the floor."""
    floor = RATE_FLOOR * FLOOR[residual.dtype]
    above = residual > floor
    # The first descent to the floor ends the fit: what comes after it is rounding.
    before = above.int().cumprod(0).bool()
    number = before.sum(0)
    t = torch.arange(len(residual))[:, None]
    used = before & (t >= number - RATE_TICKS)
    w = used.double()
    n = w.sum(0)
    x = t.double().expand_as(w)
    y = torch.where(used, residual.double().clamp(min=1e-300).log(), 0.0)
    mx, my = (w * x).sum(0) / n.clamp(min=1), (w * y).sum(0) / n.clamp(min=1)
    slope = (w * (x - mx) * (y - my)).sum(0) / (w * (x - mx) ** 2).sum(0).clamp(min=1e-12)
    return torch.where(n >= 3, slope.exp(), torch.nan).to(residual.dtype)
