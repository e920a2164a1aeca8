"""starts_from: starts taken from a trajectory, with noise."""

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab import trees
from attractorlab.types import State, Trajectory


def starts_from(traj: Trajectory, *, count: int, scale: float, generator: torch.Generator) -> tuple[State, Int[Tensor, " start"]]:
    """`count` states of each row of `traj` with noise, and the row that each belongs to, for `f.take`.

    States are drawn from the kept ticks at which the row was still followed, each of them once before any is drawn again. Keep more than the last tick: `keep=every(1)`.

    Args:
        traj: What `trace` recorded.
        count: Starts for each row.
        scale: Length of the noise relative to the root-mean-square norm of the states of the row.
        generator: Draws ticks and noise.

    Returns:
        The states, row by row, and their rows: search with ``find_fixed_points(f.take(rows), states, ...)``. Rows without a finite state give none.

    Raises:
        ValueError: If `count` is below 1 or `scale` negative.

    Example:
        >>> from attractorlab.dynamics.recorder import every, trace
        >>> from attractorlab.maps import LatentMap
        >>> f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {})
        >>> traj = trace(f, {"z": torch.tensor([[0.1], [-0.1]])}, ticks=8, keep=every(1))
        >>> states, rows = starts_from(traj, count=3, scale=0.1, generator=torch.Generator().manual_seed(0))
        >>> states["z"].shape, rows.tolist()
        (torch.Size([6, 1]), [0, 0, 0, 1, 1, 1])
    """
    if count < 1 or scale < 0:
        raise ValueError(f"`starts_from` got count={count}, scale={scale}. Each row gives one start or more, and noise has a length. Use count=16, scale=0.1.")
    kept, n = len(traj.kept), len(traj.instance)
    flat = {name: leaf.flatten(0, 1) for name, leaf in traj.states.items()}
    followed = (traj.kept[:, None] <= traj.last_tick[None]) & trees.finite(flat).cpu().unflatten(0, (kept, n))
    tick, rows = _draw(followed, count, generator)
    z = {name: leaf[tick.to(leaf.device), rows.to(leaf.device)] for name, leaf in traj.states.items()}
    square = torch.where(followed, trees.norm(flat).cpu().unflatten(0, (kept, n)).double().square().nan_to_num(), 0).sum(0) / followed.sum(0).clamp(min=1)
    length = scale * square.sqrt()[rows] / max(1, trees.size(z)) ** 0.5
    return trees.add(z, trees.scale(trees.normal_like(z, generator=generator), length)), rows


def _draw(followed: Tensor, count: int, generator: torch.Generator) -> tuple[Int[Tensor, " start"], Int[Tensor, " start"]]:
    """For each row `count` of the ticks where it was followed, each once before any comes again."""
    kept, n = followed.shape
    times = -(-count // max(1, int(followed.sum(0).clamp(min=1).min())))  # turns that the shortest row needs
    keys = torch.rand(times, kept, n, generator=generator, device=generator.device).cpu() + torch.arange(times)[:, None, None]
    keys = torch.where(followed, keys, torch.inf).flatten(0, 1)
    order = keys.argsort(dim=0)[:count] % kept
    rows = followed.any(0).nonzero().squeeze(1)
    return order[:, rows].T.flatten(), rows.repeat_interleave(count)
