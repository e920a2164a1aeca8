"""Basins: which attractor each start reaches, how large the shares are, and a plane through state space."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.orbits import settle
from attractorlab.maps import LatentMap
from attractorlab.statistics import effective_n, wilson
from attractorlab.types import BasinEstimate, BasinSlice, Convergence, Origin, Result, State, Trajectory

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

    Choose `tol` well above the distance that remains at rest (about residual / (1 − radius)) and below that between attractors.
    """

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
    return torch.unique(answer.flatten(1).long(), dim=0, return_inverse=True)[1]


def label_states(z: State, instance: Int[Tensor, " row"], among: Bool[Tensor, " row"], *, tol: float) -> Int[Tensor, " row"]:
    """Equal numbers for rows of one instance, `among` those given, that a chain of relative distances below `tol` connects; −1 outside."""
    labels = torch.full((len(instance),), -1)
    used = 0
    for one in torch.unique(instance[among]).tolist():
        rows = ((instance == one) & among).nonzero().squeeze(1)
        flat = trees.flatten(trees.take(z, rows)).double()
        # Differences, not the expanded square: the distance between near-equal ends would drown in rounding.
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        size = torch.maximum(flat.norm(dim=1)[:, None], flat.norm(dim=1)[None]).clamp(min=1e-8)
        near = (distance <= tol * size).numpy()
        count, part = connected_components(csr_matrix(near), directed=False)
        labels[rows] = torch.as_tensor(part, dtype=torch.int64) + used
        used += int(count)
    return labels


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
        missing_mass=singles.double() / starts,
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
        ValueError: If `center` is not one row or `axes` not two.
    """
    if trees.rows(center) != 1 or trees.rows(axes) != 2:
        raise ValueError(
            f"`basin_slice` got a centre of {trees.rows(center)} rows and axes of {trees.rows(axes)}. A plane is one point and two directions. "
            "Pass states of 1 and of 2 rows."
        )
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
        ValueError: If the three lie on a line.
    """
    u, v = trees.sub(first, center), trees.sub(second, center)
    length = trees.norm(u)
    u = trees.scale(u, 1 / length)
    v = trees.sub(v, trees.scale(u, trees.dot(u, v)))
    rest: Float[Tensor, " row"] = trees.norm(v)
    if not bool((length > 0).all() & (rest > 1e-6 * length).all()):
        raise ValueError(
            "`plane_through` got three states on a line. A plane needs three states that are not. "
            "Use another state as the third."
        )
    return trees.scale(trees.cat([u, trees.scale(v, 1 / rest)]), torch.cat([length, length]))
