"""Every way to search for a fixed point: closed forms, rows of their own, and what each is known for."""

import pytest
import torch

from attractorlab import by_anderson, by_broyden, by_gauss_newton, by_minimisation, by_newton_krylov, find_fixed_points, trees
from attractorlab.dynamics.fixed_points import by_iteration
from attractorlab.maps import LatentMap
from attractorlab.testing import toys
from attractorlab.types import Result

F64 = torch.float64
ALL = [by_iteration, by_anderson, by_broyden, by_newton_krylov, by_gauss_newton, by_minimisation]
WITHOUT_DERIVATIVES = [by_iteration, by_anderson, by_broyden]


def plain(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def contraction(size, radius, generator, distinct=0):
    """z <- A z + b with a symmetric A, and its fixed point."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]
    values = torch.linspace(-radius, radius, distinct or size, dtype=F64).repeat_interleave(-(-size // (distinct or size)))[:size]
    matrix = basis * values @ basis.T
    b = torch.randn(size, generator=generator, dtype=F64)
    return plain(lambda z: z @ matrix + b), torch.linalg.solve(torch.eye(size, dtype=F64) - matrix, b)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
def test_a_contraction_is_solved(method, generator):
    f, exact = contraction(20, 0.6, generator)
    z = {"z": torch.randn(3, 20, generator=generator, dtype=F64)}
    found = find_fixed_points(f, z, method=method, tol=1e-8, max_steps=2000).require()
    assert (found.states["z"] - exact).norm(dim=1).max() < 1e-6 * exact.norm()
    assert (found.residual < 1e-8).all()
    assert torch.allclose(found.residual, f.residual(found.states), rtol=1e-3, atol=1e-12), "the residual is that of the state returned"


@pytest.mark.parametrize("method", [by_anderson, by_broyden], ids=lambda m: m.__name__)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_few_distinct_eigenvalues_take_few_steps_at_any_scale(method, scale, generator):
    matrix = contraction(50, 0.9, generator, distinct=5)[0].jvp
    eye = {"z": torch.eye(50, dtype=F64)}
    a = matrix({"z": torch.zeros(50, 50, dtype=F64)}, eye)["z"]
    b = scale * torch.randn(50, generator=generator, dtype=F64)
    found = find_fixed_points(plain(lambda z: z @ a + b), {"z": torch.zeros(1, 50, dtype=F64) + scale}, method=method, tol=1e-11, max_steps=60).require()
    # Anderson's method is GMRES here: one step for each eigenvalue and one more. Broyden's takes at most twice the dimension of the space.
    assert found.steps.item() <= (8 if method is by_anderson else 12), found.steps


def test_acceleration_beats_iteration_where_that_is_slow(generator):
    f, _ = contraction(200, 0.99, generator)
    z = {"z": torch.randn(2, 200, generator=generator, dtype=F64)}
    slow, anderson, broyden = (find_fixed_points(f, z, method=one, tol=1e-9, max_steps=3000).require().steps.max() for one in WITHOUT_DERIVATIVES)
    assert anderson < slow / 2 and broyden < slow / 2, (slow, anderson, broyden)


@pytest.mark.parametrize("method", WITHOUT_DERIVATIVES, ids=lambda m: m.__name__)
def test_no_derivative_is_asked_for(method):
    def rule(z):
        with torch.no_grad():
            return (0.5 * z + 1).detach()

    found = find_fixed_points(plain(rule), {"z": torch.zeros(1, 3, dtype=F64)}, method=method, tol=1e-10, max_steps=100).require()
    assert (found.states["z"] - 2).abs().max() < 1e-8 and found.error.isnan().all()


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
def test_a_row_does_not_touch_the_others_and_ends_as_it_must(method):
    f = plain(lambda z: torch.tanh(2 * z) + 0 * torch.sqrt(50 - z))
    z = {"z": torch.tensor([[0.9, 0.8], [90.0, 1.0], [-1.2, 0.7]], dtype=F64)}
    found = find_fixed_points(f, z, method=method, tol=1e-9, max_steps=3000)
    assert [Result.of(code) for code in found.result.tolist()] == [Result.CONVERGED, Result.NONFINITE, Result.CONVERGED]
    alone = find_fixed_points(f, trees.take(z, torch.tensor([2])), method=method, tol=1e-9, max_steps=3000)
    assert torch.allclose(found.states["z"][2], alone.states["z"][0], atol=1e-8) and found.steps[2] == alone.steps[0]
    entries = found.states["z"][[0, 2]].abs()
    assert torch.minimum(entries, (entries - 0.957504024077).abs()).max() < 1e-6  # Adam's first steps may lead to another fixed point


@pytest.mark.parametrize("method", [by_newton_krylov, by_gauss_newton, by_minimisation], ids=lambda m: m.__name__)
def test_repelling_points_are_found_too(method):
    toy = toys.separable_tanh(1.5, 4)
    z = {"z": torch.full((1, 4), 0.05, dtype=F64)}
    found = find_fixed_points(toy.map, z, method=method, tol=1e-9, max_steps=5000).require()
    assert found.states["z"].abs().max() < 1e-6, "0 is a fixed point, and unstable in every direction"


def test_gauss_newton_ends_in_a_minimum_that_is_no_fixed_point_and_says_so():
    f = plain(lambda z: z + 0.1 + z**2)  # f(z) = z has no solution; q is smallest at 0
    found = find_fixed_points(f, {"z": torch.full((1, 1), 0.7, dtype=F64)}, method=by_gauss_newton, tol=1e-9, max_steps=200)
    assert found.result.tolist() == [Result.MAX_STEPS.code] and abs(found.states["z"].item()) < 0.05
    assert found.residual.item() > 0.05


@pytest.mark.parametrize("method", [by_anderson, by_broyden, by_gauss_newton], ids=lambda m: m.__name__)
def test_float32_states_come_down_to_their_floor(method, generator):
    f, exact = contraction(30, 0.8, generator)
    a = f.jvp({"z": torch.zeros(30, 30, dtype=F64)}, {"z": torch.eye(30, dtype=F64)})["z"].float()
    b = f({"z": torch.zeros(1, 30, dtype=F64)})["z"].float()
    found = find_fixed_points(plain(lambda z: z @ a + b), {"z": torch.zeros(2, 30)}, method=method, tol=1e-6, max_steps=200).require()
    assert found.states["z"].dtype == torch.float32 and (found.states["z"] - exact.float()).norm(dim=1).max() < 1e-4 * exact.norm()


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
def test_no_steps_give_back_the_start(method):
    f = plain(lambda z: torch.tanh(2 * z))
    z = {"z": torch.tensor([[0.3], [0.957504024077260]], dtype=F64)}
    found = find_fixed_points(f, z, method=method, tol=1e-9, max_steps=0 if method is not by_iteration else 1)
    assert found.result[1] == Result.CONVERGED.code and found.result[0] == Result.MAX_STEPS.code


def test_a_gauss_newton_row_does_not_depend_on_its_neighbours(generator):
    w = torch.randn(12, 12, generator=generator, dtype=F64) / 3
    f = plain(lambda z: torch.tanh(1.4 * z @ w))
    z = {"z": 2 * torch.randn(5, 12, generator=generator, dtype=F64)}
    together = find_fixed_points(f, z, method=by_gauss_newton, tol=1e-12, max_steps=2)
    for row in range(5):
        alone = find_fixed_points(f, trees.take(z, torch.tensor([row])), method=by_gauss_newton, tol=1e-12, max_steps=2)
        assert torch.allclose(alone.states["z"][0], together.states["z"][row], atol=1e-12)


def test_iteration_gives_back_the_best_state_and_counts_its_steps():
    f = plain(lambda z: 3 * z + 1)
    z = {"z": torch.tensor([[0.2], [torch.nan]], dtype=F64)}
    found = find_fixed_points(f, z, method=by_iteration, tol=1e-9, max_steps=50)
    assert found.residual[0] <= f.residual(z)[0] and torch.allclose(found.residual[0], f.residual(found.states)[0]) and found.result.tolist() == [Result.DIVERGED.code, Result.NONFINITE.code]
    assert found.steps[0] < 30 and found.steps[1] == 0


def test_an_error_that_could_not_be_computed_is_infinite_and_not_small():
    far = torch.logspace(-6, 0, 200, dtype=F64)  # 1 − λ: sixty products do not solve for so many scales
    f = plain(lambda z: (1 - far) * z + far)
    found = find_fixed_points(f, {"z": torch.zeros(1, 200, dtype=F64)}, tol=1e-4, max_steps=20)
    truth = (found.states["z"] - 1).norm() / found.states["z"].norm()
    assert found.converged.all() and (found.error.isinf().all() or found.error.item() > truth / 2), (found.error, truth)
