"""Labels of attractors that persist: pairs by the least total distance, memory of those that vanished, instances apart."""

import pytest
import torch

from attractorlab.dynamics.matching import match_attractors
from attractorlab.types import FixedPointSet, Origin, Result


def points(*rows, instance=None, lost=(), clock="tick", leaf="z"):
    x = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
    n = len(rows)
    zero = torch.zeros(n, dtype=torch.float64)
    result = torch.tensor([Result.MAX_STEPS.code if i in lost else Result.CONVERGED.code for i in range(n)], dtype=torch.int64)
    count = torch.arange(n)
    return FixedPointSet(
        states={leaf: x},
        residual=zero,
        error=zero,
        moved=zero,
        result=result,
        steps=count,
        row=count,
        instance=torch.zeros(n, dtype=torch.int64) if instance is None else torch.tensor(instance),
        start=count,
        tol=1e-10,
        clock=clock,
        origin=Origin(),
    )


def labels(*sets, threshold=0.3):
    return [one.tolist() for one in match_attractors(sets, threshold=threshold)]


def test_labels_follow_points_in_any_order():
    assert labels(points(1.0, 2.0, -1.0), points(-1.05, 2.1, 1.05), points(2.2, 1.1, -1.1)) == [[0, 1, 2], [2, 1, 0], [1, 0, 2]]


def test_pairs_are_chosen_together_and_not_one_by_one():
    # Point by point 1.2 would take 1.25 (nearest) and leave 1.0 without a partner within reach of 1.5.
    assert labels(points(1.0, 1.25), points(1.2, 1.5)) == [[0, 1], [0, 1]]
    # As many pairs as possible come before the sum of the distances.
    assert labels(points(1.0, 1.3), points(1.29, 1.6), threshold=0.3) == [[0, 1], [0, 1]]


def test_a_vanished_attractor_is_remembered_where_it_was_last_seen():
    assert labels(points(1.0, -1.0), points(1.0), points(1.0), points(-1.1, 1.0)) == [[0, 1], [0], [0], [1, 0]]
    assert labels(points(1.0, -1.0), points(1.0), points(-2.0, 1.0)) == [[0, 1], [0], [2, 0]]
    assert labels(points(1.0), points(1.0)[:0], points(1.2)) == [[0], [], [0]]


def test_a_label_drifts_with_its_attractor_and_the_threshold_is_relative():
    moving = [points(1.2**k) for k in range(12)]
    assert labels(*moving, threshold=0.25) == [[0]] * 12
    assert labels(*moving[:4], threshold=0.15) == [[0], [1], [2], [3]]
    assert labels(points(0.0), points(0.2), threshold=0.3) == [[0], [0]]


def test_instances_have_labels_of_their_own_and_points_that_did_not_converge_have_none():
    first, second = points(1.0, 1.0, -1.0, instance=[4, 7, 7]), points(-1.0, 1.0, 1.0, instance=[7, 7, 4], lost=[1])
    assert labels(first, second) == [[0, 1, 2], [2, -1, 0]]
    assert labels() == [] and labels(points(1.0, lost=[0]), points(1.0)) == [[-1], [0]]


def test_many_dimensions_and_a_shuffle(generator):
    places = torch.randn(40, 500, generator=generator, dtype=torch.float64)
    order = torch.randperm(40, generator=generator)
    moved = places + 0.1 * torch.randn(40, 500, generator=generator, dtype=torch.float64)
    found = match_attractors([points(*places.tolist()), points(*moved[order].tolist())], threshold=0.3)
    assert found[1].tolist() == order.tolist()


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match=r"got threshold=0\.0\. Points nearer.*Use one above 0"):
        match_attractors([points(1.0)], threshold=0.0)
    for other in (points(1.0, clock="segment"), points([1.0, 2.0]), points(1.0, leaf="h")):
        with pytest.raises(ValueError, match=r"got sets of 2 kinds\. States that are compared.*Match the fixed points of one family"):
            match_attractors([points(1.0), other], threshold=0.1)
