"""Basins: which attractor each start reaches, how large the shares are, and a plane through state space."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_strategy
from attractorlab.dynamics.settling import settle
from attractorlab.maps import LatentMap
from attractorlab.statistics import effective_n, wilson
from attractorlab.types import BasinEstimate, BasinSlice, Convergence, Origin, Result, State, Trajectory

SKETCH = 64  # directions of the projection that spares full distances
Label = Callable[[LatentMap, State, Bool[Tensor, " row"]], Int[Tensor, " row"]]
"""Given the map, its end states and which of them are at rest, a number per row; equal numbers on one instance mean one attractor."""


def by_answer(f: LatentMap, z: State, settled: Bool[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Ends with the same decoded answer are one attractor. Two attractors that decode alike are not told apart.

    Raises:
        ValueError: If the map has no readout `logits` or `answer`.
    """
    with torch.no_grad():
        out = f.readout(z)
    if "logits" in out:
        return label_answers(out["logits"].argmax(-1))
    if "answer" in out:
        return label_answers(out["answer"])
    raise ValueError(
        f"`by_answer` got a map with the readouts {sorted(out) or 'none'}. Answers are read from `logits` or `answer`. "
        "Use by_end_state(tol), or give the map such a readout."
    )


def by_end_state(tol: float) -> Label:
    """Ends on one instance that a chain of relative distances below `tol` connects are one attractor.

    Choose `tol` well above the distance that remains at rest (about residual / (1 − radius)) and below that between attractors. A distance is relative to the larger
    norm of the two ends. Ends no further from the origin than the square root of their dtype's rounding are one: rest is judged absolutely there.

    Raises:
        ValueError: If `tol` is not above 0.
    """
    if not tol > 0:
        raise ValueError(f"`by_end_state` got tol={tol}. Ends differ by rounding at least, so a distance above 0 makes them one. Use by_end_state(1e-2).")

    def label(f: LatentMap, z: State, settled: Bool[Tensor, " row"]) -> Int[Tensor, " row"]:
        instance, _ = f.coordinates(z)
        return label_states(z, instance, settled, tol=tol)

    return label


def estimate_basins(f: LatentMap, z: State, *, label: Label, tol: float, max_ticks: int, level: float, sampler: str = "as given") -> BasinEstimate:
    """The share of starts that reach each attractor, per instance, with Wilson intervals.

    The shares are those of the law that drew `z`. Starts that are not at rest after `max_ticks` are undecided, and are counted as such.

    Args:
        f: The map, one row per start.
        z: The starts.
        label: What makes two ends one attractor: `by_answer` or `by_end_state(tol)`.
        tol: Largest relative residual that counts as rest.
        max_ticks: Ticks allowed per start; a start at rest leaves the batch.
        level: Coverage of each interval, e.g. 0.95.
        sampler: A name for the law that drew `z`, kept with the result.

    Raises:
        ValueError: If `tol` is below the rounding floor, or `z` and `f` differ in their number of rows.

    Example:
        >>> cubic = LatentMap(lambda z, x: {"z": 1.5 * z["z"] - 0.5 * z["z"] ** 3}, {}, clock="tick")
        >>> starts = {"z": torch.linspace(-1.2, 1.2, 8)[:, None]}
        >>> estimate_basins(cubic, starts, label=by_end_state(1e-2), tol=1e-4, max_ticks=99, level=0.95).share.tolist()
        [0.5, 0.5]
    """
    check_strategy(label, "label", "estimate_basins", example="by_end_state(1e-2)")
    rest = settle(f, z, tol=tol, max_ticks=max_ticks)
    settled = rest.result == Result.CONVERGED.code
    instance, start = f.coordinates(z)
    labels = label(f, rest.states, settled)
    return tally(labels, settled, instance, start, level=level, sampler=sampler, clock=f.clock, origin=f.origin)


def basins_of(traj: Trajectory, conv: Convergence, *, level: float, by_state: float | None = None, sampler: str = "as given") -> BasinEstimate:
    """The same from a recorded run: ends are labelled by the answer recorded last, or, with `by_state`, by end states closer than that.

    Raises:
        ValueError: If answers are asked for and none was recorded.
    """
    if by_state is not None:
        labels = label_states(traj.last, traj.instance, conv.settled, tol=by_state)
    elif "answer" in traj.readouts:
        labels = label_answers(traj.readouts["answer"][-1])
    else:
        raise ValueError(
            f"`basins_of` got a trajectory with the readouts {sorted(traj.readouts) or 'none'}. Labels are read from `answer`. "
            "Pass by_state=tol to label by end state."
        )
    return tally(labels, conv.settled, traj.instance, traj.start, level=level, sampler=sampler, clock=traj.clock, origin=traj.origin)


def label_answers(answer: Int[Tensor, "row ..."]) -> Int[Tensor, " row"]:
    """Equal numbers for equal answers."""
    return torch.unique(answer.reshape(len(answer), -1).long(), dim=0, return_inverse=True)[1].cpu()


def label_states(z: State, instance: Int[Tensor, " row"], among: Bool[Tensor, " row"], *, tol: float) -> Int[Tensor, " row"]:
    """Equal numbers for rows of one instance, `among` those given, that a chain of relative distances below `tol` connects; −1 outside. See `by_end_state`."""
    labels = torch.full((len(instance),), -1)
    used = 0
    for one in torch.unique(instance[among]).tolist():
        rows = ((instance == one) & among).nonzero().squeeze(1)
        ends = trees.take(z, rows)
        origin = trees.norm(ends) <= torch.finfo(trees.norm(ends).dtype).eps ** 0.5  # where rest is judged absolutely, as `yardstick` says
        part = _chained(trees.flatten(ends).double().masked_fill(origin[:, None], 0).cpu(), tol)
        labels[rows] = part + used
        used += int(part.max()) + 1
    return labels


def _chained(x: Float[Tensor, "row dim"], tol: float) -> Int[Tensor, " row"]:
    """Single linkage without the table of all pairs: its cost grows with rows times groups, its memory with rows."""
    size = x.norm(dim=1)
    # A projection never lengthens a distance, so what is far apart in the sketch need not be measured in full.
    width = min(x.shape[1], SKETCH)
    sketch = x
    if width < x.shape[1]:
        sketch = x @ torch.linalg.qr(torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=x.dtype))[0]
    # Groups: every member is linked to the group's leader.
    group = torch.full((len(x),), -1)
    leaders: list[int] = []
    radius: list[float] = []
    left = torch.arange(len(x))
    while len(left):
        leader = int(left[0])
        near, distance = _within(x, sketch, leader, left, tol * torch.maximum(size[left], size[leader]))
        group[near] = len(leaders)
        leaders.append(leader)
        radius.append(float(distance.max()))
        left = left[group[left] < 0]
    # Two groups whose leaders are further apart than both radii and a link can have no link. The others are looked at in full.
    at, reach = torch.tensor(leaders), torch.tensor(radius, dtype=x.dtype)
    largest = torch.zeros(len(at), dtype=x.dtype).scatter_reduce(0, group, size, "amax")
    links: list[tuple[int, int]] = []
    for k in range(len(at) - 1):
        later = torch.arange(k + 1, len(at))
        limit = reach[k] + reach[later] + tol * torch.maximum(largest[k], largest[later])
        close, _ = _within(x, sketch, leaders[k], at[later], limit)
        for other in group[close].tolist():
            if _linked(x, size, (group == k).nonzero().squeeze(1), (group == other).nonzero().squeeze(1), tol):
                links.append((k, other))
    pairs = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(at), len(at)))
    part = torch.as_tensor(connected_components(graph, directed=False)[1], dtype=torch.int64)
    return part[group]


def _within(x: Tensor, sketch: Tensor, of: int, rows: Int[Tensor, " row"], limit: Float[Tensor, " row"]) -> tuple[Tensor, Tensor]:
    """Which `rows` are no further from row `of` than their limit, and how far they are."""
    rough = (sketch[rows] - sketch[of]).norm(dim=1) <= limit * (1 + 1e-9)
    rows, limit = rows[rough], limit[rough]
    # Differences, not the expanded square: the distance between near-equal ends would drown in rounding.
    distance = (x[rows] - x[of]).norm(dim=1)
    near = distance <= limit
    return rows[near], distance[near]


def _linked(x: Tensor, size: Tensor, these: Tensor, those: Tensor, tol: float) -> bool:
    """Whether any of these rows is near any of those."""
    for some in these.split(max(1, 2**22 // len(those))):
        distance = torch.cdist(x[some], x[those], compute_mode="donot_use_mm_for_euclid_dist")
        if bool((distance <= tol * torch.maximum(size[some][:, None], size[those][None])).any()):
            return True
    return False


def tally(
    labels: Int[Tensor, " row"],
    settled: Bool[Tensor, " row"],
    instance: Int[Tensor, " row"],
    start: Int[Tensor, " row"],
    *,
    level: float,
    sampler: str,
    clock: str,
    origin: Origin,
) -> BasinEstimate:
    """Count labels per instance. Rows that are not settled are undecided, whatever their label."""
    instances, row_instance, starts = torch.unique(instance, return_inverse=True, return_counts=True)
    kept = settled.nonzero().squeeze(1)
    pairs = torch.stack([row_instance[kept], labels[kept]], dim=1)
    kinds, pair_of, count = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
    example = _first(pair_of, len(kinds), kept)
    # Within an instance the largest share comes first; equal shares in order of their first start.
    order = torch.as_tensor(np.lexsort((example.numpy(), -count.numpy(), kinds[:, 0].numpy())), dtype=torch.int64)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    of, count, example = kinds[order, 0], count[order], example[order]
    label = torch.arange(len(of)) - _first(of, len(instances), torch.arange(len(of)))[of] if len(of) else of
    out = torch.full_like(labels, -1)
    out[kept] = label[place[pair_of]]
    n = starts[of]
    undecided = torch.bincount(row_instance[~settled], minlength=len(instances))
    singles = torch.bincount(of[count == 1], minlength=len(instances))
    low, high = wilson(count, n, level=level)
    return BasinEstimate(
        labels=out,
        instance=instance,
        start=start,
        label=label,
        of_instance=instances[of],
        count=count,
        share=count.double() / n,
        low=low,
        high=high,
        share_if=torch.stack([count.double() / n, (count + undecided[of]).double() / n], dim=1),
        example=example,
        instances=instances,
        starts=starts,
        undecided=undecided.double() / starts,
        missing_mass=torch.where(starts > undecided, singles.double() / (starts - undecided).clamp(min=1), torch.nan),
        effective_n=effective_n(out == 0, instance),
        level=level,
        sampler=sampler,
        clock=clock,
        origin=origin,
    )


def _first(group: Int[Tensor, " item"], groups: int, value: Int[Tensor, " item"]) -> Int[Tensor, " group"]:
    """The smallest `value` in each group."""
    top = torch.iinfo(torch.int64).max
    return torch.full((groups,), top).scatter_reduce(0, group, value, "amin")


def basin_slice(
    f: LatentMap,
    *,
    center: State,
    axes: State,
    extent: float,
    resolution: int,
    label: Label,
    tol: float,
    max_ticks: int,
) -> BasinSlice:
    """Which attractor each point of a square in state space reaches, and in how many ticks.

    A plane is a vanishing part of a state space of thousands of dimensions: shares in it are not basin sizes.

    Args:
        f: The map on one instance, `g.take([0])`.
        center: The middle of the square, one row.
        axes: The two directions, two rows; their lengths are the unit of `extent`.
        extent: Half the side of the square, in lengths of the axes.
        resolution: Pixels along each side.
        label: What makes two ends one attractor.
        tol: Largest relative residual that counts as rest.
        max_ticks: Ticks allowed per pixel.

    Raises:
        ValueError: If `center` is not one row, `axes` not two, `f` a map of several rows, or `resolution` below 2.

    Example:
        >>> cubic = LatentMap(lambda z, x: {"z": 1.5 * z["z"] - 0.5 * z["z"] ** 3}, {}, clock="tick")
        >>> origin, axes = {"z": torch.zeros(1, 2)}, {"z": torch.eye(2)}
        >>> plane = basin_slice(
        ...     cubic, center=origin, axes=axes, extent=1.2, resolution=4, label=by_end_state(1e-2), tol=1e-4, max_ticks=99
        ... )
        >>> plane.labels[0].tolist(), plane.labels[3].tolist()
        ([0, 0, 1, 1], [2, 2, 3, 3])
    """
    if trees.rows(center) != 1 or trees.rows(axes) != 2:
        raise ValueError(
            f"`basin_slice` got a centre of {trees.rows(center)} rows and axes of {trees.rows(axes)}. A plane is one point and two directions. "
            "Pass states of 1 and of 2 rows."
        )
    if f.driven and len(f.instance) != 1:
        raise ValueError(f"`basin_slice` got a map of {len(f.instance)} rows. A plane belongs to one instance. Use `f.take([0])`.")
    if resolution < 2:
        raise ValueError(f"`basin_slice` got resolution={resolution}. A side runs from pixel to pixel. Use resolution=2 or more.")
    check_strategy(label, "label", "basin_slice", example="by_end_state(1e-2)")
    span = torch.linspace(-extent, extent, resolution, dtype=torch.float64)
    i, j = torch.meshgrid(span, span, indexing="ij")
    pixels = resolution * resolution
    base = {name: leaf.expand(pixels, *leaf.shape[1:]) for name, leaf in center.items()}
    along = [{name: leaf[k : k + 1].expand(pixels, *leaf.shape[1:]) for name, leaf in axes.items()} for k in (0, 1)]
    z = trees.add(base, trees.add(trees.scale(along[0], j.flatten()), trees.scale(along[1], i.flatten())))
    grid = f.take([0] * pixels)
    rest = settle(grid, z, tol=tol, max_ticks=max_ticks)
    settled = rest.result == Result.CONVERGED.code
    labels = tally(
        label(grid, rest.states, settled), settled, *grid.coordinates(z), level=0.95, sampler="plane", clock=f.clock, origin=f.origin
    ).labels
    shape = (resolution, resolution)
    return BasinSlice(
        labels=labels.reshape(shape),
        ticks=rest.tick.reshape(shape),
        residual=rest.residual.reshape(shape),
        x=span,
        y=span,
        center=center,
        axes=axes,
        tol=tol,
        clock=f.clock,
        origin=f.origin,
    )


def plane_through(center: State, first: State, second: State) -> State:
    """Two orthogonal directions, as long as `first` is from `center`, that span the plane through three states.

    Raises:
        ValueError: If the three lie on a line, up to rounding.

    Example:
        >>> a, b, c = ({"z": torch.tensor([corner])} for corner in ([0.0, 0.0], [2.0, 0.0], [1.0, 1.0]))
        >>> plane_through(a, b, c)["z"].tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    u, v = trees.sub(first, center), trees.sub(second, center)
    length, reach = trees.norm(u), trees.norm(v)
    u = trees.scale(u, 1 / length)
    for _ in range(2):  # once leaves a rounding error along u that counts when the angle is small
        v = trees.sub(v, trees.scale(u, trees.dot(u, v)))
    rest: Float[Tensor, " row"] = trees.norm(v)
    if not bool((length > 0).all() & (rest > torch.finfo(rest.dtype).eps ** 0.5 * reach).all()):
        raise ValueError(
            "`plane_through` got three states on a line. A plane needs three states that are not. "
            "Use another state as the third."
        )
    return trees.scale(trees.cat([u, trees.scale(v, 1 / rest)]), torch.cat([length, length]))
