"""Orbits in closed form, their minimal period, multipliers, and which are the same at another phase."""

import math

import pytest
import torch

from attractorlab import distinct_orbits, find_periodic_orbits, spectrum, strobe, trees
from attractorlab.dynamics.fixed_points import by_iteration
from attractorlab.maps import LatentMap

F64 = torch.float64


def plain(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def logistic(a):
    return plain(lambda z: a * z * (1 - z))


def starts(*values):
    return {"z": torch.tensor(values, dtype=F64)[:, None]}


def two_cycle(a):
    root = math.sqrt((a - 3) * (a + 1))
    return sorted([(a + 1 - root) / (2 * a), (a + 1 + root) / (2 * a)])


def test_the_two_cycle_of_the_logistic_map_has_its_closed_form_and_multiplier():
    a = 3.3
    orbits = find_periodic_orbits(logistic(a), starts(0.45, 0.85, 0.69), period=2, tol=1e-12, max_steps=50)
    assert orbits.period.tolist() == [2, 2, 1] and orbits.found.tolist() == [True, True, False] and orbits.converged.all()
    for k in (0, 1):
        assert sorted(orbits.states["z"][:, k, 0].tolist()) == pytest.approx(two_cycle(a), abs=1e-12)
    multiplier = spectrum(strobe(logistic(a), 2), orbits.first, k=1).eigenvalues[:2, 0]
    assert (multiplier - (4 + 2 * a - a * a)).abs().max() < 1e-9
    assert orbits.worst[orbits.found].max() < 1e-11 and orbits.clock == "tick" and orbits.asked == 2


def test_all_orbits_of_period_three_of_the_doubled_tent_are_counted():
    # z -> 4z(1 − z) is the tent of slope 2: sin²(πk/7) and sin²(πk/9) are its 8 points of period 3 and 1, two orbits of 3 and two fixed points.
    z = starts(*[math.sin(math.pi * k / 7) ** 2 + 1e-6 for k in (1, 2, 3)], *[math.sin(math.pi * k / 9) ** 2 + 1e-6 for k in (1, 2, 4, 3)], 1e-7)
    orbits = find_periodic_orbits(logistic(4.0), z, period=3, tol=1e-12, max_steps=30)
    assert orbits.period.tolist() == [3] * 6 + [1, 1]
    result = distinct_orbits(orbits)
    assert result.labels.tolist() == [0, 0, 0, 1, 1, 1, -1, -1] and result.counts.tolist() == [3, 3]
    assert sorted(result.orbits.states["z"][:, 0, 0].tolist()) == pytest.approx(sorted(math.sin(math.pi * k / 7) ** 2 for k in (1, 2, 3)), abs=1e-9)


def test_period_four_is_told_from_its_divisors():
    f = logistic(3.5)  # attracting: period 4; repelling: one of period 2 and the fixed points
    low, high = two_cycle(3.5)
    z = starts(0.5, 0.83, low + 1e-4, high, 1 - 1 / 3.5 + 1e-5, 1e-6)
    for _ in range(400):
        z["z"][:2] = f({"z": z["z"][:2]})["z"]
    orbits = find_periodic_orbits(f, z, period=4, tol=1e-12, max_steps=50)
    assert orbits.period.tolist() == [4, 4, 2, 2, 1, 1]
    assert distinct_orbits(orbits).labels.tolist() == [0, 0, -1, -1, -1, -1]
    orbits = find_periodic_orbits(f, z, period=2, tol=1e-12, max_steps=0)
    assert orbits.period.tolist()[:2] == [0, 0], "what is not back after 2 ticks is no orbit of 2"


def test_close_to_the_flip_a_small_orbit_is_an_orbit_and_the_fixed_point_is_none():
    a = 3 + 1e-6
    low, high = two_cycle(a)
    assert high - low < 1.2e-3
    orbits = find_periodic_orbits(logistic(a), starts(low, high, 1 - 1 / a, 1 - 1 / a + 1e-9), period=2, tol=1e-12, max_steps=40)
    assert orbits.period.tolist() == [2, 2, 1, 1]
    assert orbits.amplitude[0].item() == pytest.approx((high - low) / orbits.states["z"][0, 0, 0].item(), rel=1e-3)


@pytest.mark.parametrize(("dim", "period"), [(2, 3), (2, 5), (1000, 3)])
def test_a_turned_plane_goes_round_in_its_period(dim, period, generator):
    # Angles advance by 2π/p, radii go to 1, all else dies out: a circle of orbits of period p.
    turn = 2 * math.pi / period
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=F64)
    plane = torch.linalg.qr(torch.randn(dim, 2, generator=generator, dtype=F64))[0]

    def rule(z):
        a = z @ plane
        return 0.5 * (z - a @ plane.T) + (a @ rotation / a.norm(dim=1, keepdim=True) ** 0.5) @ plane.T

    z = {"z": torch.randn(3, dim, generator=generator, dtype=F64)}
    orbits = find_periodic_orbits(plain(rule), z, period=period, tol=1e-12, max_steps=40)
    assert orbits.period.tolist() == [period] * 3
    ahead = (orbits.states["z"] @ plane)[1:] - (orbits.states["z"] @ plane)[:-1] @ rotation
    assert ahead.abs().max() < 1e-10


def test_orbits_of_different_instances_are_never_the_same_and_rows_may_be_split():
    f = LatentMap(
        lambda z, x: {"z": x["a"] * z["z"] * (1 - z["z"])},
        {"a": torch.tensor([[3.2], [3.2], [3.3]], dtype=F64)},
        clock="tick",
        instance=torch.tensor([0, 0, 1]),
        start=torch.tensor([0, 1, 0]),
    )
    z = starts(0.5, 0.8, 0.48)
    whole = find_periodic_orbits(f, z, period=2, tol=1e-12, max_steps=50)
    assert distinct_orbits(whole).labels.tolist() == [0, 0, 1]
    order = torch.tensor([2, 0, 1])
    turned = find_periodic_orbits(f.take(order), trees.take(z, order), period=2, tol=1e-12, max_steps=50)
    assert turned.states["z"].equal(whole.states["z"][:, order]) and turned.period.equal(whole.period[order])


def test_a_row_of_nan_is_no_orbit_and_leaves_the_others():
    clean = find_periodic_orbits(logistic(3.2), starts(0.5, 0.8), period=2, tol=1e-12, max_steps=50)
    dirty = find_periodic_orbits(logistic(3.2), starts(0.5, math.nan, 0.8), period=2, tol=1e-12, max_steps=50)
    assert dirty.period.tolist() == [2, 0, 2] and dirty.states["z"][:, [0, 2]].equal(clean.states["z"])
    assert len(dirty[dirty.found]) == 2 and dirty[:1].states["z"].shape == (2, 1, 1)
    assert distinct_orbits(dirty[torch.tensor([1])]).labels.tolist() == [-1]


def test_attracting_orbits_are_found_without_derivatives():
    orbits = find_periodic_orbits(logistic(3.2), starts(0.3, 0.9), period=2, method=by_iteration, tol=1e-10, max_steps=200)
    assert orbits.period.tolist() == [2, 2] and orbits.error.isnan().all()
    with pytest.raises(ValueError, match=r"`distinct_orbits` got 2 orbits without an error estimate.*Give `tol`"):
        distinct_orbits(orbits)
    assert distinct_orbits(orbits, tol=1e-6).counts.tolist() == [2]


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match=r"`find_periodic_orbits` got period=0. An orbit comes back after 1 or more ticks. Use period=2"):
        find_periodic_orbits(logistic(3.2), starts(0.5), period=0, tol=1e-10, max_steps=5)
