"""Shares against basins of known size, labels against brute force, and counts against a made-up run."""

import itertools
import math

import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from attractorlab import (
    basin_slice,
    basins_of,
    by_answer,
    by_end_state,
    convergence,
    estimate_basins,
    only_last,
    plane_through,
    repeat_rows,
    trace,
    trees,
)
from attractorlab.dynamics.basins import label_answers, label_states, tally
from attractorlab.maps import LatentMap
from attractorlab.statistics import wilson
from attractorlab.testing import toys
from attractorlab.types import Origin

TOL, LEVEL = 1e-8, 0.95
# A seeded draw may miss a 95 % interval: bounds on many shares at once are read at this level.
STRICT = 0.9999


def estimate(f, z, label, *, level=LEVEL, tol=TOL, max_ticks=500):
    return estimate_basins(f, z, label=label, tol=tol, max_ticks=max_ticks, level=level)


def by_hand(labels, settled, instance=None, start=None):
    labels, settled = torch.tensor(labels), torch.tensor(settled)
    instance = torch.zeros(len(labels)).long() if instance is None else torch.tensor(instance)
    start = torch.arange(len(labels)) if start is None else torch.tensor(start)
    return tally(labels, settled, instance, start, level=LEVEL, sampler="by hand", clock="tick", origin=Origin())


def test_tanh_has_two_to_the_dim_basins_of_equal_size(generator):
    toy = toys.separable_tanh(2.0, 3)
    found = estimate(toy.map, toy.starts(4000, generator=generator), by_end_state(1e-3), level=STRICT)
    assert len(found.label) == 8 and found.label.tolist() == list(range(8))
    assert (found.low < 1 / 8).all() and (found.high > 1 / 8).all()
    assert found.share.sum() == 1 and found.undecided.tolist() == [0.0] and found.missing_mass.tolist() == [0.0]


def test_the_shares_of_the_ring_are_the_irwin_hall_density(generator):
    n = 10
    toy = toys.ring(n, 0.3)
    found = estimate(toy.map, toy.starts(1500, generator=generator), by_answer, level=STRICT, tol=1e-6, max_ticks=2000)
    # The winding number of each attractor, read from one of its starts: it never changes.
    ends = trace(toy.map, toy.starts(1500, generator=torch.Generator().manual_seed(0)), ticks=1, keep=only_last()).readouts["answer"][-1, :, 0]
    windings = ends[found.example].tolist()
    assert len(set(windings)) == len(windings) and windings[0] == 0
    for q, low, high in zip(windings, found.low.tolist(), found.high.tolist(), strict=True):
        assert low < toys.winding_share(n, q) < high, q


@pytest.mark.parametrize("a", [0.2, 0.5, 0.7])
def test_the_edge_of_the_cubic_is_where_it_is(a):
    toy = toys.cubic(1.0, a, 1)
    grid = {"z": (torch.arange(1000, dtype=torch.float64) / 1000 + 0.0005)[:, None]}
    found = estimate(toy.map, grid, by_answer)
    low = grid["z"][:, 0] < a
    assert len(found.share) == 2
    assert len(set(found.labels[low].tolist())) == 1 and len(set(found.labels[~low].tolist())) == 1
    assert sorted(found.share.tolist()) == pytest.approx(sorted([a, 1 - a]), abs=1e-12)
    assert found.labels[low][0] == (0 if a > 0.5 or (a == 0.5) else 1), "the larger basin is label 0, the earlier one in a tie"


def two_instances(starts, generator):
    """Instance 0 has its edge at 0.3, instance 1 at 0.6."""
    edge = torch.tensor([[0.3], [0.6]], dtype=torch.float64)
    f = LatentMap(
        lambda z, x: {"z": z["z"] + z["z"] * (1 - z["z"]) * (z["z"] - x["a"])},
        {"a": edge},
        readout=lambda z: {"answer": (z["z"] > 0.5).long()},
        clock="tick",
        instance=torch.arange(2),
        start=torch.zeros(2).long(),
    ).take(repeat_rows(2, starts))
    return f, {"z": torch.rand(2 * starts, 1, generator=generator, dtype=torch.float64)}


def test_every_instance_has_its_own_labels_and_shares(generator):
    f, z = two_instances(800, generator)
    found = estimate(f, z, by_answer, level=STRICT)
    assert found.of_instance.tolist() == [0, 0, 1, 1] and found.label.tolist() == [0, 1, 0, 1]
    for truth, low, high in zip([0.7, 0.3, 0.6, 0.4], found.low.tolist(), found.high.tolist(), strict=True):
        assert low < truth < high
    assert (z["z"][found.example, 0] > torch.tensor([0.3, 0.3, 0.6, 0.6])).tolist() == [True, False, False, True]
    assert found.by_instance("labels").shape == (2, 800) and found.starts.tolist() == [800, 800]


def test_a_recorded_run_gives_the_same_estimate(generator):
    f, z = two_instances(60, generator)
    live = estimate(f, z, by_answer)
    traj = trace(f, z, ticks=500, keep=only_last())
    conv = convergence(traj, tol=TOL)
    for recorded in (basins_of(traj, conv, level=LEVEL), basins_of(traj, conv, level=LEVEL, by_state=1e-3)):
        for name in ("labels", "label", "of_instance", "count", "share", "low", "high", "share_if", "example", "undecided", "missing_mass"):
            assert getattr(live, name).equal(getattr(recorded, name)), name


def test_end_states_and_answers_agree_where_answers_tell_attractors_apart(generator):
    toy = toys.separable_tanh(1.7, 2)
    z = toy.starts(300, generator=generator)
    assert estimate(toy.map, z, by_answer).labels.equal(estimate(toy.map, z, by_end_state(1e-2)).labels)


def test_the_same_starts_in_another_order_have_the_same_basins(generator):
    f, z = two_instances(50, generator)
    order = torch.randperm(100, generator=generator)
    straight, moved = estimate(f, z, by_answer), estimate(f.take(order), trees.take(z, order), by_answer)
    assert straight.labels[order].equal(moved.labels)
    for name in ("count", "share", "of_instance", "undecided", "missing_mass"):
        assert getattr(straight, name).equal(getattr(moved, name))


def test_relabelled_answers_make_no_difference(generator):
    toy = toys.separable_tanh(1.7, 3)
    z = toy.starts(200, generator=generator)
    renamed = LatentMap(toy.map.rule, {}, readout=lambda state: {"answer": 7 - 5 * toy.map.readout(state)["answer"]}, clock="tick")
    a, b = estimate(toy.map, z, by_answer), estimate(renamed, z, by_answer)
    assert a.labels.equal(b.labels) and a.count.equal(b.count)


def test_starts_that_do_not_come_to_rest_are_undecided_and_bound_the_shares():
    # Above 0 to 1, below 0 round and round between −1 and −2; NaN is lost.
    f = LatentMap(
        lambda z, x: {"z": torch.where(z["z"] > 0, 0.5 * z["z"] + 0.5, torch.where(z["z"] < -1.5, z["z"] + 1, z["z"] - 1))}, {}, clock="tick"
    )
    z = {"z": torch.tensor([[0.3], [2.0], [5.0], [-1.0], [-2.0], [math.nan]], dtype=torch.float64)}
    found = estimate(f, z, by_end_state(1e-3), max_ticks=60)
    assert found.labels.tolist() == [0, 0, 0, -1, -1, -1]
    assert found.share.tolist() == [0.5] and found.undecided.tolist() == [0.5]
    assert found.share_if.tolist() == [[0.5, 1.0]]
    low, high = wilson(torch.tensor(3), torch.tensor(6), level=LEVEL)
    assert (found.low.item(), found.high.item()) == (low.item(), high.item())


def test_the_counts_of_a_made_up_run():
    instance = [4, 4, 4, 4, 4, 4, 9, 9, 9, 9]
    labels = [7, 3, 3, 5, 3, 7, 1, 1, 2, 2]
    settled = [True, True, True, True, True, False, False, True, True, True]
    found = by_hand(labels, settled, instance, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    # Instance 4: label 3 three times (rows 1, 2, 4), then 7 (row 0) before 5 (row 3). Instance 9: 2 twice, 1 once.
    assert found.labels.tolist() == [1, 0, 0, 2, 0, -1, -1, 1, 0, 0]
    assert found.of_instance.tolist() == [4, 4, 4, 9, 9] and found.label.tolist() == [0, 1, 2, 0, 1]
    assert found.count.tolist() == [3, 1, 1, 2, 1] and found.example.tolist() == [1, 0, 3, 8, 7]
    assert found.share.tolist() == [3 / 6, 1 / 6, 1 / 6, 2 / 4, 1 / 4]
    assert found.share_if.tolist() == [[3 / 6, 4 / 6], [1 / 6, 2 / 6], [1 / 6, 2 / 6], [2 / 4, 3 / 4], [1 / 4, 2 / 4]]
    assert found.instances.tolist() == [4, 9] and found.starts.tolist() == [6, 4]
    assert found.undecided.tolist() == [1 / 6, 1 / 4]
    assert found.missing_mass.tolist() == [2 / 5, 1 / 3], "Good and Turing: attractors seen once, over decided starts"


def test_a_run_in_which_nothing_settles_has_no_attractor():
    found = by_hand([0, 1, 2], [False] * 3)
    assert len(found.label) == 0 and found.share_if.shape == (0, 2)
    assert found.labels.tolist() == [-1] * 3 and found.undecided.tolist() == [1.0]


def test_good_and_turing_foretell_the_unseen_share_of_the_ring(generator):
    # Many attractors, few starts: the average of the estimate over runs is the average share that was not seen.
    n, starts, runs = 40, 30, 200
    share = {q: toys.winding_share(n, q) for q in range(-9, 10)}
    q = torch.tensor(list(share))
    drawn = torch.multinomial(torch.tensor(list(share.values())), starts * runs, replacement=True, generator=generator).reshape(runs, starts)
    unseen, estimates = [], []
    for row in q[drawn]:
        found = by_hand(row.tolist(), [True] * starts)
        estimates.append(found.missing_mass.item())
        unseen.append(1 - sum(share[one] for one in set(row.tolist())))
    # Its standard deviation is about √(f1)/starts a run, over √runs.
    assert sum(estimates) / runs == pytest.approx(sum(unseen) / runs, abs=4 * 0.05 / math.sqrt(runs) + 1 / starts * 0.1)


def brute(x, tol):
    size = x.norm(dim=1).clamp(min=1e-8)
    near = torch.tensor([[float((a - b).norm()) <= tol * float(max(s, r)) for b, r in zip(x, size, strict=True)] for a, s in zip(x, size, strict=True)])
    return torch.as_tensor(connected_components(csr_matrix(near.numpy()), directed=False)[1])


@pytest.mark.parametrize(("dim", "tol"), [(1, 0.02), (1, 0.2), (2, 0.1), (2, 0.4), (100, 1.2), (100, 1.42)])
def test_chains_of_near_ends_are_those_of_the_full_table_of_distances(dim, tol, generator):
    for rows in (1, 2, 12, 40):
        x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
        ours = label_states({"z": x}, torch.zeros(rows).long(), torch.ones(rows, dtype=torch.bool), tol=tol)
        pairs = torch.unique(torch.stack([ours, brute(x, tol)]), dim=1)
        assert pairs.shape[1] == len(pairs[0].unique()) == len(pairs[1].unique())


def test_a_ring_of_ends_is_one_chain_and_a_gap_makes_two():
    angle = torch.linspace(0, 6, 2000, dtype=torch.float64)
    ring = {"z": torch.stack([angle.cos(), angle.sin()], 1)}
    everything, one = torch.ones(2000, dtype=torch.bool), torch.zeros(2000).long()
    assert label_states(ring, one, everything, tol=0.01).unique().tolist() == [0]
    some = everything.clone()
    some[500:510] = some[1500:1510] = False
    labels = label_states(ring, one, some, tol=0.01)
    assert labels[~some].tolist() == [-1] * 20 and len(labels[some].unique()) == 3


def test_near_equal_ends_far_from_the_origin_are_told_apart():
    # An expanded square would lose differences of 1e-9 of the length.
    z = {"z": torch.tensor([[1.0, 0.0], [1.0, 3e-9], [1.0, 9e-9]], dtype=torch.float64)}
    labels = label_states(z, torch.zeros(3).long(), torch.ones(3, dtype=torch.bool), tol=4e-9)
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_attractor_at_the_origin_is_one(dtype, generator):
    """Rest about the origin is judged absolutely, so its ends differ by a multiple of their norm."""
    tol = {torch.float64: 1e-8, torch.float32: 1e-5}[dtype]
    half = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {})
    found = estimate_basins(half, {"z": torch.randn(20, 3, dtype=dtype, generator=generator)}, label=by_end_state(1e-2), tol=tol, max_ticks=999, level=0.95)
    assert found.count.tolist() == [20] and found.undecided.item() == 0
    # z' = z - 0.3 z (z² - 1)(z² - 1/4): attractors -1, 0 and 1, their borders at ±1/2.
    quintic = LatentMap(lambda z, x: {"z": z["z"] - 0.3 * z["z"] * (z["z"] ** 2 - 1) * (z["z"] ** 2 - 0.25)}, {})
    z = torch.linspace(-1.2, 1.2, 41, dtype=dtype)[:, None]
    found = estimate_basins(quintic, {"z": z}, label=by_end_state(1e-2), tol=tol, max_ticks=999, level=0.95)
    side = (z[:, 0] > 0.5).long() - (z[:, 0] < -0.5).long()
    assert len(found.count) == 3 and torch.unique(torch.stack([found.labels, side]), dim=1).shape[1] == 3
    plane = basin_slice(half, center={"z": torch.zeros(1, 3, dtype=dtype)}, axes={"z": torch.eye(3, dtype=dtype)[:2]}, extent=1.0, resolution=6, label=by_end_state(1e-2), tol=tol, max_ticks=999)
    assert plane.labels.unique().tolist() == [0]


def test_attractors_about_the_origin_are_told_apart_where_they_are_small(generator):
    scale = 5e-3  # below the distance that makes ends one, if it were not relative
    pitchfork = LatentMap(lambda z, x: {"z": 1.1 * z["z"] - 0.1 * z["z"] ** 3 / scale**2}, {})
    z = {"z": scale * torch.linspace(-1.2, 1.2, 41, dtype=torch.float64)[:, None]}
    assert estimate_basins(pitchfork, z, label=by_end_state(1e-2), tol=1e-8, max_ticks=9999, level=0.95).count.tolist() == [20, 20, 1]


def test_a_distance_that_makes_two_ends_one_is_above_zero():
    with pytest.raises(ValueError, match=r"`by_end_state` got tol=-1\.0\..*Use by_end_state\(1e-2\)"):
        by_end_state(-1.0)


def test_ends_of_different_instances_are_never_one_attractor():
    labels = label_states({"z": torch.ones(4, 2)}, torch.tensor([0, 1, 0, 1]), torch.ones(4, dtype=torch.bool), tol=0.1)
    assert labels[0] == labels[2] != labels[1] == labels[3]


def test_ten_thousand_ends_are_labelled_and_counted_without_a_table_of_pairs(generator):
    x = torch.randn(20, 64, generator=generator)[torch.randint(20, (10_000,), generator=generator)]
    x = x + 1e-4 * torch.randn(x.shape, generator=generator)
    settled = torch.ones(10_000, dtype=torch.bool)
    labels = label_states({"z": x}, torch.zeros(10_000).long(), settled, tol=1e-2)
    found = by_hand(labels.tolist(), settled.tolist())
    assert len(found.label) == 20 and found.count.sum() == 10_000 and (found.count.diff() <= 0).all()


def test_equal_answers_have_equal_labels():
    answers = torch.tensor([[3, 1], [1, 3], [3, 1], [-1, -1]])
    labels = label_answers(answers)
    assert labels[0] == labels[2] and len(labels.unique()) == 3
    assert label_answers(answers[:, 0])[2] == label_answers(answers[:, 0])[0]


def test_labels_by_answer_need_an_answer():
    f = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}, readout=lambda z: {"halt": z["z"][:, 0]}, clock="tick")
    z = {"z": torch.ones(2, 1, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"`by_answer` got a map with the readouts \['halt'\].*Use by_end_state\(tol\)"):
        estimate(f, z, by_answer)
    traj = trace(f, z, ticks=5, keep=only_last())
    with pytest.raises(ValueError, match=r"`basins_of` got a trajectory with the readouts \['halt'\].*Pass by_state=tol"):
        basins_of(traj, convergence(traj, tol=1e-3), level=LEVEL)


def test_a_plane_of_the_tanh_map_has_four_quadrants():
    toy = toys.separable_tanh(2.0, 3)
    axes = {"z": torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)}
    center = {"z": torch.tensor([[0.5, 0.0, 1.0]], dtype=torch.float64)}
    plane = basin_slice(toy.map, center=center, axes=axes, extent=1.0, resolution=8, label=by_answer, tol=TOL, max_ticks=200)
    for (i, y), (j, x) in itertools.product(enumerate(plane.y.tolist()), enumerate(plane.x.tolist())):
        start = center["z"][0] + y * axes["z"][1] + x * axes["z"][0]
        same = [plane.labels[i, j] == plane.labels[k, m] for k, m in ((0, 0), (0, 7), (7, 0), (7, 7))]
        signs = [((start[0] > 0) == (m == 7)) and ((start[1] > 0) == (k == 7)) for k, m in ((0, 0), (0, 7), (7, 0), (7, 7))]
        assert [bool(one) for one in same] == [bool(one) for one in signs], (i, j)
    assert (plane.ticks >= 0).all() and (plane.residual < TOL).all() and plane.clock == "tick"


def test_a_pixel_that_does_not_come_to_rest_is_undecided():
    f = LatentMap(lambda z, x: {"z": torch.where(z["z"][:, :1] > 0, 0.5 * z["z"], -z["z"].flip(1) - 1)}, {}, clock="tick")
    plane = basin_slice(
        f, center={"z": torch.zeros(1, 2)}, axes={"z": torch.eye(2)}, extent=1.0, resolution=4, label=by_end_state(1e-2), tol=1e-4, max_ticks=9
    )
    assert ((plane.labels == -1) == (plane.ticks == -1)).all() and (plane.labels == -1).any()


def test_a_plane_belongs_to_one_instance_and_two_axes(generator):
    f, _ = two_instances(2, generator)
    point, axes = {"z": torch.zeros(1, 1, dtype=torch.float64)}, {"z": torch.ones(2, 1, dtype=torch.float64)}
    rest = {"extent": 1.0, "label": by_answer, "tol": TOL, "max_ticks": 9}
    with pytest.raises(ValueError, match=r"`basin_slice` got a centre of 2 rows and axes of 2.*Pass states of 1 and of 2 rows"):
        basin_slice(f, center=axes, axes=axes, resolution=4, **rest)
    with pytest.raises(ValueError, match=r"`basin_slice` got a map of 4 rows.*Use `f.take\(\[0\]\)`"):
        basin_slice(f, center=point, axes=axes, resolution=4, **rest)
    with pytest.raises(ValueError, match=r"`basin_slice` got resolution=1.*Use resolution=2 or more"):
        basin_slice(f.take([0]), center=point, axes=axes, resolution=1, **rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plane_through_three_states_holds_all_three(dtype, generator):
    a, b, c = ({"p": torch.randn(1, 3, 4, generator=generator, dtype=dtype), "q": torch.randn(1, 2, generator=generator, dtype=dtype)} for _ in range(3))
    axes = plane_through(a, b, c)
    u, v = trees.take(axes, slice(0, 1)), trees.take(axes, slice(1, 2))
    length = trees.norm(trees.sub(b, a))
    assert trees.norm(axes).tolist() == pytest.approx([length.item()] * 2, rel=1e-5)
    assert abs(trees.dot(u, v).item()) < 1e-5 * length.item() ** 2
    away = trees.sub(c, a)
    inside = trees.add(trees.scale(u, trees.dot(away, u) / length**2), trees.scale(v, trees.dot(away, v) / length**2))
    assert trees.norm(trees.sub(away, inside)).item() < 1e-5 * length.item()
    assert trees.norm(trees.sub(trees.sub(b, a), u)).item() < 1e-5 * length.item()


def test_three_states_on_a_line_span_no_plane(generator):
    for dtype, far in itertools.product((torch.float32, torch.float64), (0.0, 1.0, 2.0, -1000.0)):
        a, step = torch.randn(2, 1, 500, generator=generator, dtype=dtype)
        with pytest.raises(ValueError, match=r"`plane_through` got three states on a line.*Use another state as the third"):
            plane_through({"z": a}, {"z": a + step}, {"z": a + far * step})
    with pytest.raises(ValueError, match="on a line"):
        plane_through({"z": a}, {"z": a}, {"z": a + step})
