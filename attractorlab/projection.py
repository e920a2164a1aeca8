"""project: a trajectory in the plane by PCA or UMAP, with scores of how far to believe the picture."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab.types import Projection, Trajectory

Layout = Callable[[Float[Tensor, "point dim"]], "Placed"]
NEIGHBOURS = 15
SCORED = 3000  # points that the scores are computed on, at most: their cost grows with the square
LANDMARKS = 20000  # points that are laid out, at most


@dataclass(frozen=True, eq=False)
class Placed:
    """Coordinates of the points, what the method is called, and what it says of itself (variance shares)."""

    coordinates: Float[Tensor, "point axis"]
    method: str
    scores: dict[str, float]


def project(traj: Trajectory, method: Layout, *, points_per_row: int = 40) -> Projection:
    """The kept states of `traj` in a few dimensions.

    A picture, never evidence: distances between far points, densities and gaps in a UMAP mean nothing. Each row is thinned to points that lie
    evenly along its path rather than in time, because the many late states at rest would otherwise outweigh the journey.

    Args:
        traj: A trajectory with states kept at many ticks.
        method: `by_pca(n)` or `by_umap(...)`.
        points_per_row: Points of each row, at most; the first and the last are always among them. A row that left the finite numbers is left out, and
            `faithfulness` counts such rows.

    Returns:
        The points with their ticks and rows, and the scores: trustworthiness (are neighbours in the picture neighbours in truth) and continuity (the
        reverse), at 15 neighbours, 1 is perfect, read on at most 3,000 points.

    Raises:
        ValueError: If fewer than 4 points are left, or `points_per_row` is below 2.

    Example:
        >>> from attractorlab import every, trace
        >>> from attractorlab.maps import LatentMap
        >>> turn = LatentMap(lambda z, x: {"z": 0.9 * z["z"].flip(1) * torch.tensor([1.0, -1.0])}, {}, clock="tick")
        >>> traj = trace(turn, {"z": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}, ticks=20, keep=every(1))
        >>> proj = project(traj, by_pca(2))
        >>> proj.method, round(proj.faithfulness["trustworthiness"], 3)
        ('PCA', 1.0)

    References:
        Venna and Kaski (2001), trustworthiness and continuity.
    """
    if points_per_row < 2:
        raise ValueError(f"`project` got points_per_row={points_per_row}. A path has a first and a last point. Use points_per_row=40.")
    time, row = thin(traj, points_per_row)
    fine = torch.stack([leaf.flatten(2).isfinite().all(2).all(0) for leaf in traj.states.values()]).all(0)
    time, row = time[fine[row]], row[fine[row]]
    flat = torch.cat([leaf[time, row].flatten(1) for leaf in traj.states.values()], dim=1).double()
    if len(flat) < 4:
        raise ValueError(
            f"`project` got {len(flat)} points of {int(fine.sum())} rows that are finite throughout. A picture needs four or more finite states. "
            "Trace with keep=every(1), on rows whose result is COMPLETED."
        )
    placed = method(flat)
    return Projection(
        coordinates=placed.coordinates,
        tick=traj.kept[time],
        row=row,
        faithfulness=placed.scores | faithfulness(flat, placed.coordinates) | ({} if bool(fine.all()) else {"rows left out": float((~fine).sum())}),
        method=placed.method,
        clock=traj.clock,
        origin=traj.origin,
    )


def by_pca(n_components: int = 2) -> Layout:
    """Principal components: linear, so directions, distances and speeds can be read, as far as the shares of variance go."""

    def place(x: Float[Tensor, "point dim"]) -> Placed:
        centred = x - x.mean(0)
        u, s, vh = torch.linalg.svd(centred, full_matrices=False)
        n = min(n_components, len(s))
        # A sign convention, so that the picture is the same on every machine: the largest loading is positive.
        sign = vh[:n].gather(1, vh[:n].abs().argmax(1, keepdim=True)).sign().squeeze(1)
        share = (s**2 / (s**2).sum().clamp(min=1e-300)).tolist()
        return Placed(u[:, :n] * s[:n] * sign, "PCA", {f"variance {k + 1}": share[k] for k in range(n)})

    return place


def by_umap(n_components: int = 2, *, random_state: int, neighbours: int = NEIGHBOURS) -> Layout:
    """UMAP on exact neighbours, seeded. The same seed gives the same picture on one machine; other machines may differ.

    Args:
        n_components: Dimensions of the picture.
        random_state: The seed.
        neighbours: Size of the neighbourhoods that are kept together.
    """

    def place(x: Float[Tensor, "point dim"]) -> Placed:
        k = min(neighbours, len(x) - 1)
        distance, index = _neighbours(x, k)
        umap = _umap()
        threads = torch.get_num_threads()
        try:
            with warnings.catch_warnings():
                # UMAP warns about every deliberate choice: precomputed neighbours, one thread for a seed, a graph in pieces.
                warnings.simplefilter("ignore")
                fit = umap.UMAP(
                    n_components=n_components,
                    n_neighbors=k,
                    random_state=random_state,
                    n_jobs=1,
                    init="pca",
                    precomputed_knn=(index.numpy().astype(np.int32), distance.float().numpy(), None),
                ).fit_transform(x.float().numpy())
        finally:
            # UMAP's compiled loops share OpenMP with torch and leave it at another number of threads.
            torch.set_num_threads(threads)
        return Placed(torch.as_tensor(fit, dtype=torch.float64), "UMAP", {"neighbours": float(k)})

    return place


def thin(traj: Trajectory, points_per_row: int) -> tuple[Int[Tensor, " point"], Int[Tensor, " point"]]:
    """Which (kept index, row) pairs to draw: evenly spaced along each row's path, first and last included."""
    flat = {name: leaf.flatten(2).double() for name, leaf in traj.states.items()}
    step = torch.stack([(leaf[1:] - leaf[:-1]).square().sum(-1) for leaf in flat.values()]).sum(0).sqrt()
    path = torch.cat([torch.zeros(1, step.shape[1], dtype=torch.float64), step.nan_to_num(nan=0.0).cumsum(0)])
    share = path / path[-1].clamp(min=1e-300)
    # The last bucket begins at the end of the path: the state that gets there stands for the whole tail at rest.
    bucket = (share * (points_per_row - 1)).floor()
    new = torch.ones_like(bucket, dtype=torch.bool)
    new[1:] = bucket[1:] > bucket[:-1]
    row, time = new.T.nonzero(as_tuple=True)
    if len(row) > LANDMARKS:
        rows = torch.unique(row)
        kept = rows[torch.linspace(0, len(rows) - 1, max(1, len(rows) * LANDMARKS // len(row))).long()]
        chosen = torch.isin(row, kept)
        row, time = row[chosen], time[chosen]
    return time, row


def faithfulness(x: Float[Tensor, "point dim"], y: Float[Tensor, "point axis"]) -> dict[str, float]:
    """Trustworthiness and continuity of the picture `y` of `x`, with the neighbourhood size they are read at."""
    from sklearn.manifold import trustworthiness

    if len(x) > SCORED:
        chosen = torch.linspace(0, len(x) - 1, SCORED).long()
        x, y = x[chosen], y[chosen]
    k = max(1, min(NEIGHBOURS, (len(x) - 1) // 2 - 1))
    a, b = x.numpy(), y.numpy()
    return {
        "trustworthiness": float(trustworthiness(a, b, n_neighbors=k)),
        "continuity": float(trustworthiness(b, a, n_neighbors=k)),
        "scored at": float(k),
        "scored points": float(len(x)),
    }


def _neighbours(x: Float[Tensor, "point dim"], k: int) -> tuple[Tensor, Tensor]:
    """Distances and numbers of each point's k nearest, itself first, as UMAP wants them."""
    parts = [torch.cdist(block, x).topk(k, largest=False) for block in x.split(2048)]
    distance, index = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    # Rounding may put a twin before the point itself.
    own = torch.arange(len(x))[:, None]
    at = torch.where((index == own).any(1), (index == own).int().argmax(1), k - 1)[:, None]
    distance, index = distance.scatter(1, at, distance[:, :1]), index.scatter(1, at, index[:, :1])
    distance[:, 0], index[:, 0] = 0.0, own[:, 0]
    return distance, index


def _umap() -> Any:
    # On a read-only installation numba finds no place for its cache and the import fails.
    if "NUMBA_CACHE_DIR" not in os.environ:
        import numba

        if not os.access(Path(numba.__file__).parent.parent, os.W_OK):
            os.environ["NUMBA_CACHE_DIR"] = str(Path.home() / ".cache" / "attractorlab" / "numba")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap
    return umap
