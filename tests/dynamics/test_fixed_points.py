"""Fixed points in closed form, what does not converge, and which points are the same."""

import math

import pytest
import torch

from attractorlab import trees
from attractorlab.dynamics.fixed_points import by_iteration, distinct, find_fixed_points
from attractorlab.dynamics.newton import by_newton_krylov
from attractorlab.maps import LatentMap, strobe
from attractorlab.testing import toys
from attractorlab.types import NotConvergedError, Result

TOL = 1e-12


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def undriven(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


@pytest.mark.parametrize("dim", [2, 50, 10_000])
def test_the_fixed_point_of_a_linear_map_is_found_to_rounding(dim, generator):
    diagonal = torch.linspace(-3, 0.9, 7, dtype=torch.float64).repeat(dim // 7 + 1)[:dim]  # repelling directions too
    b = normal(dim, generator=generator)
    points = find_fixed_points(undriven(lambda z: diagonal * z + b), {"z": normal(3, dim, generator=generator)}, tol=TOL, max_steps=20)
    assert points.require() is points
    exact = b / (1 - diagonal)
    assert (points.states["z"] - exact).norm(dim=1).max() < 1e-10 * exact.norm()


@pytest.mark.parametrize("dim", [2, 50, 10_000])
def test_separable_tanh_rests_at_its_closed_form(dim, generator):
    toy = toys.separable_tanh(1.5, dim)
    points = find_fixed_points(toy.map, toy.starts(4, generator=generator), tol=TOL, max_steps=60).require()
    x = points.states["z"]
    # Newton's method also ends on saddles, where some entries rest at 0.
    near = torch.stack([x.abs(), (x.abs() - 0.858559636640).abs()]).amin(0)
    assert near.max() < 1e-11
    assert points.clock == toy.map.clock and points.row.tolist() == points.start.tolist() == [0, 1, 2, 3]


def test_newton_finds_the_edge_state_and_iteration_leaves_it(generator):
    toy = toys.power_iteration([2.0, 1.5, -1.2, 0.5], 300, generator=generator)
    edge = toy.fixed_points["z"][2]
    z = {"z": edge[None] + 0.02 * edge.norm() / 300**0.5 * normal(2, 300, generator=generator)}
    points = find_fixed_points(toy.map, z, tol=TOL, max_steps=20).require()
    assert (points.states["z"] - edge).norm(dim=1).max() < 1e-10 * edge.norm()
    assert (points.moved < 0.05).all() and (points.moved > 1e-3).all()
    away = find_fixed_points(toy.map, z, method=by_iteration, tol=1e-9, max_steps=300).require()
    first = toy.fixed_points["z"][0]
    assert ((away.states["z"].abs() - first.abs()).norm(dim=1) < 1e-6 * first.norm()).all()
    assert away.error.isnan().all() and (away.steps > 10).all()


def test_a_circle_of_fixed_points_is_no_obstacle(generator):
    toy = toys.ring(20, 0.2)
    z = {"z": toy.fixed_points["z"][:3] + 0.05 * normal(3, 20, generator=generator)}
    points = find_fixed_points(toy.map, z, tol=TOL, max_steps=20).require()
    assert (toy.map.readout(points.states)["answer"][:, 0] == torch.tensor([0, 1, -1])).all()
    assert (points.moved < 0.2).all()


def test_the_estimated_error_is_the_distance_to_the_fixed_point(generator):
    toy = toys.linear(torch.diag(torch.linspace(0.1, 0.99, 130)), normal(130, generator=generator))
    points = find_fixed_points(toy.map, {"z": torch.ones(1, 130, dtype=torch.float64)}, tol=1e-4, max_steps=20).require()
    distance = (points.states["z"] - toy.fixed_points["z"]).norm() / points.states["z"].norm()
    assert distance > 1e-9
    assert points.error.item() == pytest.approx(distance.item(), rel=0.05)


@pytest.mark.parametrize("method", [by_newton_krylov, by_iteration])
def test_the_residual_is_that_of_the_returned_state(method, generator):
    f = undriven(lambda z: torch.cos(z))
    points = find_fixed_points(f, {"z": normal(5, 3, generator=generator)}, method=method, tol=1e-6, max_steps=40).require()
    # Recomputed from another order of sums: equal up to rounding of the state, 1e-16.
    assert (points.residual - f.residual(points.states)).abs().max() < 1e-14
    assert (points.residual > 0).any()


def test_a_map_without_fixed_points_gives_its_best_state_and_says_so():
    f = undriven(lambda z: z + 1 + z * z)
    points = find_fixed_points(f, {"z": torch.tensor([[2.0], [0.5]], dtype=torch.float64)}, tol=1e-10, max_steps=15)
    assert not points.converged.any()
    assert set(points.result.tolist()) <= {Result.MAX_STEPS.code, Result.DIVERGED.code, Result.NONFINITE.code}
    assert (points.residual <= f.residual({"z": torch.tensor([[2.0], [0.5]], dtype=torch.float64)})).all()
    with pytest.raises(NotConvergedError, match="Only converged points are fixed points"):
        points.require()


def test_a_row_of_nan_leaves_the_others_untouched(generator):
    toy = toys.separable_tanh(1.5, 6)
    z = toy.starts(4, generator=generator)
    spoilt = {"z": z["z"].clone()}
    spoilt["z"][1, 2] = torch.nan
    clean, dirty = (find_fixed_points(toy.map, start, tol=TOL, max_steps=60) for start in (z, spoilt))
    others = torch.tensor([0, 2, 3])
    assert dirty.result[1] == Result.NONFINITE.code and dirty.converged[others].all()
    assert dirty.states["z"][others].equal(clean.states["z"][others])


def test_a_jacobian_of_nan_at_a_finite_point_is_not_finite():
    f = undriven(lambda z: 1 + torch.sqrt(z * z - z * z))
    points = find_fixed_points(f, {"z": torch.tensor([[3.0]], dtype=torch.float64)}, tol=1e-10, max_steps=5)
    assert points.result.tolist() == [Result.NONFINITE.code]
    assert points.states["z"].item() == 3.0


def test_iteration_that_grows_without_bound_is_called_diverged():
    points = find_fixed_points(undriven(lambda z: 3 * z + 1), {"z": torch.ones(1, 2)}, method=by_iteration, tol=1e-5, max_steps=100)
    assert points.result.tolist() == [Result.DIVERGED.code]


def driven(generator):
    drive = {"x": normal(6, 8, generator=generator)}
    weight = 1.5 * normal(8, 8, generator=generator) / 8**0.5
    return LatentMap(
        lambda z, x: {"h": torch.tanh(z["h"] @ weight + x["x"]), "c": 0.5 * z["c"] + z["h"][:, :3]},
        drive,
        clock="tick",
        instance=torch.arange(6),
        start=torch.zeros(6, dtype=torch.int64),
    )


def test_rows_may_be_permuted_or_split(generator):
    f = driven(generator)
    z = {"h": normal(6, 8, generator=generator), "c": normal(6, 3, generator=generator)}
    whole = find_fixed_points(f, z, tol=TOL, max_steps=50)
    assert whole.converged.sum() >= 4
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    turned = find_fixed_points(f.take(order), trees.take(z, order), tol=TOL, max_steps=50)
    single = [find_fixed_points(f.take([i]), trees.take(z, slice(i, i + 1)), tol=TOL, max_steps=50) for i in range(6)]
    for i in whole.converged.nonzero().flatten().tolist():
        at = order.tolist().index(i)
        for name in z:
            assert (turned.states[name][at] - whole.states[name][i]).abs().max() < 1e-10
            assert (single[i].states[name][0] - whole.states[name][i]).abs().max() < 1e-10
    assert turned.instance.tolist() == order.tolist()


def test_a_fixed_point_is_one_of_the_strobed_map(generator):
    f = driven(generator)
    z = {"h": normal(6, 8, generator=generator), "c": normal(6, 3, generator=generator)}
    points = find_fixed_points(f, z, tol=TOL, max_steps=50)
    again = find_fixed_points(strobe(f, 3), points.states, tol=1e-10, max_steps=0)
    assert again.converged[points.converged].all() and again.clock == "3 x tick"
    assert (again.steps == 0).all() and (again.moved == 0).all()


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_narrow_dtypes_are_searched_in_their_own_precision(dtype, tol, generator):
    toy = toys.separable_tanh(2.0, 20, dtype=dtype)
    points = find_fixed_points(toy.map, toy.starts(3, generator=generator), tol=tol, max_steps=60).require()
    assert points.states["z"].dtype == dtype


def test_distinct_points_are_counted_per_instance(generator):
    f = undriven(lambda z: torch.tanh(2 * z))
    x = math.sqrt(0.5)
    z = {"z": torch.tensor([[-x], [x], [0.9], [1.1], [0.01]], dtype=torch.float64)}
    points = find_fixed_points(f, z, tol=TOL, max_steps=20).require()
    found = distinct(points)
    assert found.labels.tolist() == [1, 0, 0, 0, 2] and found.counts.tolist() == [3, 1, 1]
    assert [round(value, 6) for value in found.points.states["z"].flatten().tolist()] == [0.957504, -0.957504, 0.0]


def test_points_of_different_instances_are_never_the_same(generator):
    f = LatentMap(
        lambda z, x: {"z": 0.5 * z["z"] + x["x"]},
        {"x": torch.ones(4, 2, dtype=torch.float64)},
        clock="tick",
        instance=torch.tensor([0, 0, 7, 7]),
        start=torch.tensor([0, 1, 0, 1]),
    )
    found = distinct(find_fixed_points(f, {"z": normal(4, 2, generator=generator)}, tol=TOL, max_steps=20))
    assert found.labels.tolist() == [0, 0, 1, 1] and found.points.instance.tolist() == [0, 7]


def test_points_without_convergence_get_no_label(generator):
    toy = toys.separable_tanh(2.0, 2)
    z = toy.starts(3, generator=generator)
    z["z"][1] = torch.nan
    found = distinct(find_fixed_points(toy.map, z, tol=TOL, max_steps=60))
    assert found.labels[1] == -1 and (found.labels[[0, 2]] >= 0).all()
    nothing = distinct(find_fixed_points(toy.map, {"z": z["z"][[1]]}, tol=TOL, max_steps=5))
    assert len(nothing.points) == 0 and nothing.labels.tolist() == [-1]


def test_a_chain_of_near_points_is_one_group_and_a_gap_parts_it():
    identity = undriven(lambda z: z.clone())
    z = {"z": 1 + torch.tensor([[0.0], [0.9e-3], [1.8e-3], [5e-3]], dtype=torch.float64)}
    points = find_fixed_points(identity, z, tol=TOL, max_steps=1).require()
    assert distinct(points, tol=1e-3).labels.tolist() == [0, 0, 0, 1]
    assert distinct(points, tol=1e-12).labels.tolist() == [0, 1, 2, 3]  # finer than a matrix product could tell


def test_misuse_is_refused_in_three_sentences():
    half = undriven(lambda z: 0.5 * z)
    z = {"z": torch.ones(1, 2, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"`find_fixed_points` got tol=1e-15 for states in float64. Rounding alone .* Use tol=1e-13 or more"):
        find_fixed_points(half, z, tol=1e-15, max_steps=5)
    with pytest.raises(ValueError, match=r"tol=1e-08 for states in float32.*Use tol=1e-07"):
        find_fixed_points(half, trees.to(z, torch.float32), tol=1e-8, max_steps=5)
    with pytest.raises(ValueError, match=r"tol=0.001 for states in bfloat16.*Use tol=0.003"):
        find_fixed_points(half, trees.to(z, torch.bfloat16), tol=1e-3, max_steps=5)
    with pytest.raises(ValueError, match=r"got max_steps=-1. A search takes 0 or more steps. Use max_steps=50"):
        find_fixed_points(half, z, tol=1e-6, max_steps=-1)
    wide = undriven(lambda z: z.to(torch.float64) * 0.5)
    with pytest.raises(ValueError, match=r"got states in float32 for a map in float64. State and map are worked on in one dtype. Cast both"):
        find_fixed_points(wide, trees.to(z, torch.float32), tol=1e-6, max_steps=5)
    with pytest.raises(ValueError, match=r"A state of 2 rows met a map of 6 rows.*Use `f.take"):
        find_fixed_points(driven(torch.Generator().manual_seed(0)), {"h": torch.ones(2, 8), "c": torch.ones(2, 3)}, tol=1e-6, max_steps=5)
    iterated = find_fixed_points(half, z, method=by_iteration, tol=1e-6, max_steps=50)
    with pytest.raises(ValueError, match=r"`distinct` got 1 points without an error estimate. Without one .* Give `tol`"):
        distinct(iterated)
