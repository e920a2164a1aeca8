"""match_attractors: labels of fixed points that persist while a parameter changes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from attractorlab import trees
from attractorlab.maps import relative
from attractorlab.types import FixedPointSet


def match_attractors(sets: Sequence[FixedPointSet], *, threshold: float) -> tuple[Int[Tensor, " point"], ...]:
    """A label for each point of each set, the same for what is one attractor at successive values of a parameter.

    A point takes the label of the remembered one that it is paired with, so that as many as possible are paired and, among these pairings, the relative distances add up to least.
    Every label is remembered at the place where it was last seen: an attractor that vanished and comes back near it has its old label again. Labels follow distance alone;
    two attractors that come nearer to each other than they move between two sets may swap.

    Args:
        sets: The fixed points at successive values of the parameter, each point once: ``distinct(find_fixed_points(...)).points``.
        threshold: The largest distance, relative to the norm of the remembered state (or 1 if that is near 0), at which a point is held to be a remembered one.

    Returns:
        For each set its labels, 0, 1, ... in the order of first appearance, the points of different instances apart; −1 for points that did not converge.

    Raises:
        ValueError: If the threshold is not above 0, or the sets differ in clock, or in the leaves or shapes of their states.

    Example:
        >>> from attractorlab.dynamics.fixed_points import find_fixed_points
        >>> from attractorlab.maps import LatentMap
        >>> def at(w, *starts):
        ...     f = LatentMap(lambda z, x: {"z": torch.tanh(w * z["z"])}, {}, clock="tick")
        ...     return find_fixed_points(f, {"z": torch.tensor(starts, dtype=torch.float64)[:, None]}, tol=1e-12, max_steps=40)
        >>> labels = match_attractors([at(2.0, 0.9, -0.9), at(2.1, -0.9), at(2.2, -0.9, 0.9)], threshold=0.2)
        >>> [one.tolist() for one in labels]
        [[0, 1], [1], [1, 0]]

    References:
        Kuhn (1955), The Hungarian method for the assignment problem; Datseris, Luiz Rossi and Wagemakers (2023), Framework for global stability analysis
        of dynamical systems (labels along a sweep).
    """
    if not threshold > 0:
        raise ValueError(f"`match_attractors` got threshold={threshold}. Points nearer than the threshold are one attractor. Use one above 0, such as 0.1.")
    kinds = {(one.clock, *((name, leaf.shape[1:]) for name, leaf in one.states.items())) for one in sets}
    if len(kinds) > 1:
        raise ValueError(
            f"`match_attractors` got sets of {len(kinds)} kinds. States that are compared have one clock, the same leaves and the same shapes. "
            "Match the fixed points of one family."
        )
    memory: dict[int, tuple[Tensor, Tensor]] = {}  # of each instance: labels, and the states at which they were last seen
    count = 0
    found = []
    for one in sets:
        labels = torch.full((len(one),), -1)
        for instance in torch.unique(one.instance[one.converged]).tolist():
            members = (one.converged & (one.instance == instance)).nonzero().squeeze(1)
            x = trees.flatten(trees.take(one.states, members)).to("cpu", torch.float64)
            known, seen = memory.get(instance, (torch.zeros(0, dtype=torch.int64), x[:0]))
            old, new = _pairs(seen, x, threshold)
            labels[members[new]] = known[old]
            seen = seen.index_copy(0, old, x[new])
            fresh = (labels[members] < 0).nonzero().squeeze(1)
            labels[members[fresh]] = torch.arange(count, count + len(fresh))
            memory[instance] = (torch.cat([known, labels[members[fresh]]]), torch.cat([seen, x[fresh]]))
            count += len(fresh)
        found.append(labels)
    return tuple(found)


def _pairs(seen: Tensor, x: Tensor, threshold: float) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Which remembered point goes with which new one."""
    from scipy.optimize import linear_sum_assignment

    distance = torch.cdist(seen, x, compute_mode="donot_use_mm_for_euclid_dist")
    share = (distance * relative(torch.ones(len(seen), dtype=torch.float64), {"x": seen})[:, None] / threshold).numpy()
    near: NDArray[np.bool_] = share <= 1
    # A pair out of reach costs more than all pairs within reach together: as many as possible are within.
    cost = np.where(near, share, 1.0 + min(share.shape))
    old, new = linear_sum_assignment(cost)
    kept = near[old, new]
    return torch.as_tensor(old[kept]), torch.as_tensor(new[kept])
