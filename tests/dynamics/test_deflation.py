"""Further fixed points by deflation, all of them where that can be known; starts from trajectories; slow points."""

import itertools
import math

import pytest
import torch

from attractorlab import (
    by_deflation,
    by_gauss_newton,
    by_minimisation,
    distinct,
    enumerate_fixed_points,
    every,
    find_fixed_points,
    grade,
    only_last,
    repeat_rows,
    starts_from,
    trace,
    trees,
)
from attractorlab.maps import LatentMap
from attractorlab.testing import toys

F64 = torch.float64


def plain(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def enumerate_(f, z, generator, rounds):
    return enumerate_fixed_points(f, {"z": z}, tol=1e-12, max_steps=20, rounds=rounds, scale=1.0, generator=generator)


def test_a_known_point_is_not_found_again_from_its_own_neighbourhood():
    f = plain(lambda z: torch.tanh(2 * z))
    x = 0.957504024077
    known = find_fixed_points(f, {"z": torch.tensor([[0.9]], dtype=F64)}, tol=1e-12, max_steps=50)
    z = {"z": torch.tensor([[0.95], [0.97], [0.5], [1.5]], dtype=F64)}
    plainly = find_fixed_points(f, z, tol=1e-12, max_steps=50).require()
    other = find_fixed_points(f, z, method=by_deflation(known), tol=1e-12, max_steps=50).require()
    assert (plainly.states["z"] - x).abs().max() < 1e-9
    assert (other.states["z"] - x).abs().min() > 0.9
    both = find_fixed_points(f, z, method=by_deflation(other[:1]), tol=1e-12, max_steps=50).require()
    assert (both.states["z"] - other.states["z"][0]).abs().min() > 0.9


def test_the_deflated_step_is_the_newton_step_of_the_product():
    # By hand in one dimension: g = M·(f − z) with M = 1 + s²/(z − z₁)²; a Newton step of g, whole, from a state where it lowers |g|.
    f = plain(lambda z: 5 + torch.tanh(2 * (z - 5)))
    known = find_fixed_points(f, {"z": torch.tensor([[5.9]], dtype=F64)}, tol=1e-12, max_steps=50)
    x = torch.tensor(5.3, dtype=F64, requires_grad=True)
    root = known.states["z"][0, 0]
    g = (1 + root**2 / (x - root) ** 2) * (f({"z": x})["z"] - x)
    step = x - g / torch.autograd.grad(g, x)[0]
    found = find_fixed_points(f, {"z": torch.tensor([[5.3]], dtype=F64)}, method=by_deflation(known), tol=1e-12, max_steps=1)
    assert found.states["z"].item() == pytest.approx(step.item(), abs=1e-12)


@pytest.mark.parametrize(("dim", "rows"), [(1, 2), (2, 16), (3, 100)])
def test_all_fixed_points_of_separable_tanh_are_found_and_none_twice(dim, rows, generator):
    toy = toys.separable_tanh(1.5, dim)
    found = enumerate_(toy.map, toy.starts(rows, generator=generator)["z"], generator, rounds=4)
    truth = torch.tensor(list(itertools.product([-0.85855963664, 0.0, 0.85855963664], repeat=dim)), dtype=F64)
    assert len(found.points) == 3**dim and found.new.sum() == 3**dim and len(found.new) == 5
    assert torch.cdist(found.points.states["z"], truth).amin(1).max() < 1e-7
    assert torch.cdist(truth, found.points.states["z"]).amin(1).max() < 1e-7
    assert found.barren == next(k for k, n in enumerate(reversed(found.new.tolist())) if n)
    assert torch.bincount(found.found_in, minlength=5).equal(found.new)


def test_in_five_dimensions_there_are_243(generator):
    toy = toys.separable_tanh(2.0, 5)
    found = enumerate_(toy.map, toy.starts(800, generator=generator)["z"], generator, rounds=3)
    signs = (found.points.states["z"] / 0.957504024077).round()
    assert len(found.points) == 243 == len(torch.unique(signs, dim=0)), found.new
    assert (found.points.states["z"] - 0.957504024077 * signs).abs().max() < 1e-9


def by_degree(weight, box=1.0, depth=9):
    """The fixed points of z -> tanh(Wz) in the plane, by cutting boxes that bounds on tanh cannot clear in four, then Newton's method in each that is left."""
    boxes = torch.tensor([[0.0, 0.0]], dtype=F64)
    half = box
    for _ in range(depth):
        middle = boxes @ weight.T
        reach = half * weight.abs().sum(1)
        low, high = torch.tanh(middle - reach), torch.tanh(middle + reach)
        boxes = boxes[((low <= boxes + half) & (high >= boxes - half)).all(1)]
        half /= 2
        boxes = (boxes[:, None] + half * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=F64)).flatten(0, 1)
    x = boxes
    for _ in range(60):
        t = torch.tanh(x @ weight.T)
        x = x + torch.linalg.solve(torch.eye(2, dtype=F64) - (1 - t**2)[:, :, None] * weight, (t - x)[:, :, None])[:, :, 0]
    x = x[(torch.tanh(x @ weight.T) - x).norm(dim=1) < 1e-12]
    kept = []
    for row in x:
        if all((row - other).norm() > 1e-7 for other in kept):
            kept.append(row)
    return torch.stack(kept)


@pytest.mark.parametrize("seed", range(4))
def test_planar_networks_have_the_points_that_an_exhaustive_search_has(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = 2.5 * torch.randn(2, 2, generator=generator, dtype=F64)
    truth = by_degree(weight)
    assert len(truth) % 2 == 1, "0 and pairs"
    found = enumerate_(plain(lambda z: torch.tanh(z @ weight.T)), torch.randn(30, 2, generator=generator, dtype=F64), generator, rounds=3)
    assert len(found.points) == len(truth)
    assert torch.cdist(found.points.states["z"], truth).amin(0).max() < 1e-7


@pytest.mark.parametrize("n", [2, 3, 4])
def test_networks_whose_points_are_known_in_part_have_them_all(n, generator):
    # x' = tanh(xW) with W[i] the reversed roll of equally spaced numbers; in the plane the points are 0 and ±(0.9575, −0.9575).
    line = torch.linspace(-1, 1, n, dtype=F64)
    weight = torch.stack([-line.roll(-i) for i in range(n)])
    found = enumerate_(plain(lambda z: torch.tanh(z @ weight)), torch.randn(40, n, generator=generator, dtype=F64), generator, rounds=3)
    x = found.points.states["z"]
    assert torch.cdist(-x, x).amin(1).max() < 1e-7, "the map is odd: with each point its opposite is one"
    assert (x.norm(dim=1) < 1e-9).sum() == 1 and found.barren >= 2
    if n == 2:
        assert len(x) == 3 and x.abs().amax().item() == pytest.approx(0.957504024077, abs=1e-11)


def test_each_instance_has_its_own_known_points(generator):
    gain = torch.tensor([[0.5], [2.0]], dtype=F64)
    f = LatentMap(lambda z, x: {"z": torch.tanh(x["w"] * z["z"])}, {"w": gain}, clock="tick", instance=torch.tensor([3, 8]), start=torch.zeros(2).long())
    rows = repeat_rows(2, 4)
    z = {"z": torch.randn(8, 1, generator=generator, dtype=F64)}
    found = enumerate_fixed_points(f.take(rows), z, tol=1e-12, max_steps=20, rounds=2, scale=1.0, generator=generator)
    assert found.points.instance.sort()[0].tolist() == [3, 8, 8, 8] and found.instances.tolist() == [3, 8]
    assert found.missing_mass[0] == 0, "four starts, one point, met four times"
    known = found.points[found.points.instance == 8]
    # The points of one instance are no obstacle to the other.
    again = find_fixed_points(f.take(rows), z, method=by_deflation(known), tol=1e-12, max_steps=60)
    assert again.converged[:4].all() and again.states["z"][:4].abs().max() < 1e-9


def test_rows_of_a_deflated_search_do_not_depend_on_their_neighbours(generator):
    toy = toys.separable_tanh(2.0, 3)
    z = toy.starts(6, generator=generator)
    known = distinct(find_fixed_points(toy.map, z, tol=1e-12, max_steps=60)).points
    whole = find_fixed_points(toy.map, z, method=by_deflation(known), tol=1e-12, max_steps=8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    turned = find_fixed_points(toy.map, trees.take(z, order), method=by_deflation(known), tol=1e-12, max_steps=8)
    assert torch.allclose(turned.states["z"], whole.states["z"][order], atol=1e-9) and turned.result.equal(whole.result[order])
    spoilt = {"z": z["z"].index_fill(0, torch.tensor([1]), torch.nan)}
    dirty = find_fixed_points(toy.map, spoilt, method=by_deflation(known), tol=1e-12, max_steps=8)
    keep = torch.tensor([0, 2, 3, 4, 5])
    assert dirty.states["z"][keep].equal(whole.states["z"][keep])


def test_where_nothing_is_fixed_nothing_is_claimed(generator):
    found = enumerate_(plain(lambda z: z + 1 + z * z), torch.ones(2, 1, dtype=F64), generator, rounds=2)
    assert len(found.points) == 0 and found.barren == 3 and found.missing_mass.isnan().all()
    with pytest.raises(ValueError, match=r"`enumerate_fixed_points` got rounds=-1, scale=1.0. Rounds are counted.* Use rounds=5, scale=0.5"):
        enumerate_(plain(lambda z: z), torch.ones(2, 1, dtype=F64), generator, rounds=-1)


def test_starts_are_kept_states_of_their_own_row_and_each_is_drawn_once(generator):
    f = plain(lambda z: z + 1)
    traj = trace(f, {"z": torch.tensor([[0.0], [100.0]], dtype=F64)}, ticks=5, keep=every(1))
    states, rows = starts_from(traj, count=6, scale=0.0, generator=generator)
    assert rows.tolist() == [0] * 6 + [1] * 6
    assert sorted(states["z"][:6, 0].tolist()) == list(range(6)) and sorted(states["z"][6:, 0].tolist()) == list(range(100, 106))
    more, _ = starts_from(traj, count=13, scale=0.0, generator=generator)
    assert sorted(torch.bincount(more["z"][:13, 0].long()).tolist()) == [2, 2, 2, 2, 2, 3]


def test_the_noise_of_starts_has_its_length(generator):
    traj = trace(plain(lambda z: z.clone()), {"z": torch.full((2, 1000), 2.0, dtype=F64)}, ticks=1, keep=only_last())
    states, rows = starts_from(traj, count=50, scale=0.1, generator=generator)
    noise = (states["z"] - 2).norm(dim=1) / (2 * 1000**0.5)
    assert abs(noise.mean() - 0.1) < 0.002 and len(rows) == 100
    again = [starts_from(traj, count=2, scale=0.1, generator=torch.Generator().manual_seed(5))[0]["z"] for _ in range(2)]
    assert again[0].equal(again[1])


def test_rows_that_left_give_starts_from_the_time_before(generator):
    f = plain(lambda z: torch.where(z > 1, torch.full_like(z, torch.nan), z + 0.4))
    traj = trace(f, {"z": torch.tensor([[0.0], [-50.0], [torch.nan]], dtype=F64)}, ticks=8, keep=every(1))
    states, rows = starts_from(traj, count=9, scale=0.0, generator=generator)
    assert rows.tolist() == [0] * 9 + [1] * 9 and states["z"].isfinite().all() and states["z"][:9].max() < 1.5
    with pytest.raises(ValueError, match=r"`starts_from` got count=0, scale=0.1. Each row gives one start or more.* Use count=16, scale=0.1"):
        starts_from(traj, count=0, scale=0.1, generator=generator)


@pytest.mark.parametrize("method", [by_gauss_newton, by_minimisation], ids=lambda m: m.__name__)
def test_a_minimum_of_the_speed_is_slow_and_never_fixed(method):
    gap = 1e-4  # f(z) = z + gap + z² is slowest at 0, where it moves by the gap
    f = plain(lambda z: z + gap + z**2)
    z = {"z": torch.tensor([[0.7], [-0.6]], dtype=F64)}
    points = find_fixed_points(f, z, method=method, tol=1e-9, max_steps=100 if method is by_gauss_newton else 500)
    grades = grade(f, points, typical=z, slow=0.01)
    assert grades.word == ("slow", "slow") and not points.converged.any()
    assert (grades.speed >= gap).all() and (grades.speed < 20 * gap).all()
    usual = min(0.7**2, 0.6**2) + gap  # the lower median of the two speeds
    assert torch.allclose(grades.ratio, grades.speed / usual)
    if method is by_gauss_newton:
        assert grades.speed.tolist() == pytest.approx([gap] * 2, rel=0.05)
    assert grade(f, points, typical=z, slow=1e-5).word == ("not at rest", "not at rest")


def test_grades_of_a_mixed_set_and_the_slope_in_closed_form():
    f = plain(lambda z: torch.tanh(2 * z))
    z = {"z": torch.tensor([[0.9], [0.3], [1e-4]], dtype=F64)}
    points = find_fixed_points(f, z, tol=1e-10, max_steps=50)
    early = find_fixed_points(f, z, tol=1e-10, max_steps=0)
    assert grade(f, points, typical=z, slow=0.01).word == ("fixed",) * 3
    grades = grade(f, early, typical=z, slow=0.01)
    assert grades.word == ("not at rest", "not at rest", "slow")
    # In one dimension the slope is |f′ − 1|.
    assert grades.slope.tolist() == pytest.approx([abs(2 / math.cosh(2 * x) ** 2 - 1) for x in (0.9, 0.3, 1e-4)], rel=1e-9)
    assert grade(f, points[:0], typical=z, slow=0.01).word == ()
    with pytest.raises(ValueError, match=r"`grade` got slow=2.0. A slow point moves by a part .* Use slow=0.01"):
        grade(f, points, typical=z, slow=2.0)
