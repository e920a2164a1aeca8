"""What each row of a search comes to when it, or one beside it, is odd; for every way to search, below and above the size where matrices are formed."""

import pytest
import torch

from attractorlab import by_anderson, by_broyden, by_gauss_newton, by_minimisation, by_newton_krylov, find_fixed_points, trees
from attractorlab.dynamics import direct
from attractorlab.dynamics.fixed_points import by_iteration
from attractorlab.dynamics.krylov import CACHE
from attractorlab.dynamics.searching import DIRECT
from attractorlab.maps import LatentMap
from attractorlab.types import Result

F64 = torch.float64
ALL = [by_iteration, by_anderson, by_broyden, by_newton_krylov, by_gauss_newton, by_minimisation]
BY_DERIVATIVES = [by_newton_krylov, by_gauss_newton, by_minimisation]
SIZES = [3, DIRECT + 20]
every_way = pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)


def plain(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def search(f, z, method, tol=1e-9, max_steps=60):
    return find_fixed_points(f, {"z": z}, method=method, tol=tol, max_steps=max_steps)


@pytest.mark.parametrize("dim", SIZES)
@every_way
def test_odd_rows_end_with_their_result_and_leave_the_others_to_the_bit(method, dim, generator):
    # Entry by entry: contracting to 2, but beyond 1000 a NaN and below −10 growth without bound.
    def rule(z):
        calm = 0.5 * z + 1
        return torch.where(z > 1000, torch.full_like(z, torch.nan), torch.where(z < -10, 4 * z, calm))

    good = 2 + torch.randn(3, dim, generator=generator, dtype=F64)
    odd = torch.stack([torch.full((dim,), value, dtype=F64) for value in (torch.nan, torch.inf, 2000.0, -50.0, 2.0)])
    f = plain(rule)
    alone = search(f, good, method)
    among = search(f, torch.cat([odd[:2], good[:1], odd[2:4], good[1:], odd[4:]]), method)
    names = [Result.of(code).name for code in among.result.tolist()]
    assert [names[0], names[1], names[3]] == ["NONFINITE"] * 3 and names[7] == "CONVERGED" and among.steps[7] == 0
    assert among.states["z"][7].equal(odd[4]) and among.residual[7] == 0
    at = torch.tensor([2, 5, 6])
    assert among.states["z"][at].equal(alone.states["z"]) and among.result[at].equal(alone.result) and among.residual[at].equal(alone.residual)
    if method is by_iteration:
        assert names[4] == "DIVERGED"
    if method is not by_minimisation:
        assert alone.converged.all() and (alone.states["z"] - 2).abs().max() < 1e-6


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("method", BY_DERIVATIVES, ids=lambda m: m.__name__)
def test_a_jacobian_that_is_not_finite_ends_its_row_alone(method, dim, generator):
    # √((z − 5)²) at 5: the value is 0 and the derivative NaN.
    f = plain(lambda z: 1 + 0.5 * torch.sqrt((z - 5) ** 2))
    z = torch.rand(4, dim, generator=generator, dtype=F64)
    alone = search(f, z, method)
    broken = torch.cat([z[:2], torch.full((1, dim), 5.0, dtype=F64), z[2:]])
    among = search(f, broken, method)
    assert among.result[2] == Result.NONFINITE.code and among.states["z"][2].equal(broken[2])
    assert among.states["z"][[0, 1, 3, 4]].equal(alone.states["z"]) and among.result[[0, 1, 3, 4]].equal(alone.result)


@every_way
def test_one_dimension_one_row_and_no_row(method):
    f = plain(lambda z: 0.3 * z + 0.7)
    one = search(f, torch.zeros(1, 1, dtype=F64), method, max_steps=400)
    assert one.converged.all() and abs(one.states["z"].item() - 1) < 1e-7
    none = search(f, torch.zeros(0, 1, dtype=F64), method)
    assert len(none) == 0 and none.states["z"].shape == (0, 1) and none.converged.tolist() == []


@pytest.mark.parametrize("dim", SIZES)
@every_way
def test_a_fixed_point_at_zero_is_found_as_any_other(method, dim, generator):
    # The residual is relative to the state until that is tiny, then absolute: 0 itself can be met.
    f = plain(lambda z: 0.5 * torch.sin(z))
    found = search(f, 0.5 * torch.rand(2, dim, generator=generator, dtype=F64), method, max_steps=3000 if method is by_minimisation else 200)
    if method is not by_minimisation:
        assert found.converged.all(), found.residual
    assert found.states["z"].norm(dim=1).max() < (1e-6 if method is not by_minimisation else 1e-2)
    assert search(f, torch.zeros(1, dim, dtype=F64), method).steps.item() == 0


class _ReverseOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x) ** 2)


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("method", BY_DERIVATIVES, ids=lambda m: m.__name__)
def test_an_operation_without_a_forward_mode_is_searched_all_the_same(method, dim, generator):
    z = torch.randn(2, dim, generator=generator, dtype=F64)
    b = torch.linspace(-1, 1, dim, dtype=F64)
    own = search(plain(lambda z: _ReverseOnly.apply(0.5 * z) + b), z, method, max_steps=1500)
    torchs = search(plain(lambda z: torch.tanh(0.5 * z) + b), z, method, max_steps=1500)
    assert own.converged.equal(torchs.converged) and own.converged.all()
    assert (own.states["z"] - torchs.states["z"]).norm(dim=1).max() < 1e-6


class _ForwardOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx, tangent):
        (y,) = ctx.saved_tensors
        return tangent * (1 - y**2)


def test_an_operation_without_a_reverse_mode_is_searched_by_newtons_method(generator):
    z = torch.randn(2, 4, generator=generator, dtype=F64)
    found = search(plain(lambda z: _ForwardOnly.apply(0.5 * z) + 1), z, by_newton_krylov)
    assert found.converged.all() and (torch.tanh(0.5 * found.states["z"]) + 1 - found.states["z"]).abs().max() < 1e-8


def test_matrices_are_the_jacobians_whatever_the_leaves(generator):
    weight = torch.randn(5, 5, generator=generator, dtype=F64)
    f = LatentMap(
        lambda z, x: {"c": 0.5 * z["c"] + z["h"].flatten(1)[:, :2].sum(1, keepdim=True), "h": torch.tanh(z["h"] @ weight + x["x"][:, None]), "k": x["x"][:, :1] * 1.0},
        {"x": torch.randn(3, 5, generator=generator, dtype=F64)},
        clock="tick",
        instance=torch.arange(3),
        start=torch.zeros(3).long(),
    )
    z = {"h": torch.randn(3, 2, 5, generator=generator, dtype=F64), "c": torch.randn(3, 1, generator=generator, dtype=F64), "k": torch.zeros(3, 1, dtype=F64)}
    matrices = direct.matrix_of(f, z)
    eye = torch.eye(12, dtype=F64)
    for j in range(12):
        column = trees.flatten({name: f.jvp(z, trees.unflatten(eye[j].expand(3, -1), z))[name] for name in z})
        assert (matrices[:, :, j] - column).abs().max() < 1e-14
    assert find_fixed_points(f, z, tol=1e-10, max_steps=60).converged.all()


def test_linear_systems_are_solved_and_singular_ones_by_their_shortest_solution(generator):
    a = torch.randn(4, 6, 6, generator=generator, dtype=F64)
    b = torch.randn(4, 6, generator=generator, dtype=F64)
    u, s, vh = torch.linalg.svd(a)
    s[1, 4:] = 0
    a[1] = u[1] * s[1] @ vh[1]
    a[3, 2, 2] = torch.nan
    x, left, (lu, pivots, sound) = direct.solve(a, b, singular=1e-10, rounding=torch.zeros(4, dtype=F64))
    assert (torch.bmm(a[[0, 2]], x[[0, 2], :, None])[:, :, 0] - b[[0, 2]]).abs().max() < 1e-10 and (left[[0, 2]] == 0).all()
    shortest = torch.linalg.pinv(a[1], rtol=1e-10) @ b[1]
    assert (x[1] - shortest).abs().max() < 1e-9
    assert left[1].item() == pytest.approx(((a[1] @ shortest - b[1]).norm() / b[1].norm()).item(), rel=1e-6)
    assert x[3].isnan().all() and left[3].isnan() and sound.tolist() == [True, False, True, False]
    factors = direct.Factors(4, b)
    factors.keep(torch.arange(4), lu, pivots, sound)
    other = torch.randn(2, 6, generator=generator, dtype=F64)
    assert (torch.bmm(a[[2, 0]], factors.solve(torch.tensor([2, 0]), other)[:, :, None])[:, :, 0] - other).abs().max() < 1e-10


def contraction(size, values, generator):
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]
    matrix = basis * values @ basis.T
    b = torch.randn(size, generator=generator, dtype=F64)
    return matrix, b, torch.linalg.solve(torch.eye(size, dtype=F64) - matrix, b)


def test_newtons_method_solves_a_linear_map_in_one_step_where_matrices_are_formed(generator):
    matrix, b, exact = contraction(50, torch.linspace(-4, 0.99, 50, dtype=F64), generator)
    found = search(plain(lambda z: z @ matrix + b), torch.randn(3, 50, generator=generator, dtype=F64), by_newton_krylov, tol=1e-11)
    assert found.steps.tolist() == [1, 1, 1] and (found.states["z"] - exact).norm(dim=1).max() < 1e-10 * exact.norm()


@pytest.mark.parametrize("distinct", [1, 2, 4, 6])
def test_andersons_method_takes_a_step_for_each_eigenvalue_as_gmres_does(distinct, generator):
    values = torch.linspace(-0.9, 0.8, distinct, dtype=F64).repeat(40 // distinct + 1)[:40]
    matrix, b, exact = contraction(40, values, generator)
    found = search(plain(lambda z: z @ matrix + b), torch.zeros(1, 40, dtype=F64), by_anderson, tol=1e-11).require()
    assert distinct <= found.steps.item() <= distinct + 2
    assert (found.states["z"] - exact).norm() < 1e-9 * exact.norm()


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_broydens_method_ends_within_twice_the_dimension_on_a_linear_map(size, generator):
    matrix, b, exact = contraction(size, torch.linspace(-0.9, 0.7, size, dtype=F64), generator)
    found = search(plain(lambda z: z @ matrix + b), torch.zeros(1, size, dtype=F64), by_broyden, tol=1e-9).require()
    assert found.steps.item() <= 2 * size + 1 and (found.states["z"] - exact).norm() < 1e-7 * exact.norm()


def test_newton_steps_are_made_of_as_many_rows_as_the_cache_holds(monkeypatch, generator):
    formed = []
    matrix_of = direct.matrix_of
    monkeypatch.setattr(direct, "matrix_of", lambda f, z: formed.append(trees.rows(z)) or matrix_of(f, z))
    weight = 0.5 * torch.randn(60, DIRECT, DIRECT, generator=generator, dtype=F64) / DIRECT**0.5
    f = LatentMap(lambda z, x: {"z": torch.tanh((x["w"] @ z["z"][:, :, None])[:, :, 0] + 1)}, {"w": weight}, instance=torch.arange(60), start=torch.zeros(60).long())
    found = search(f, torch.zeros(60, DIRECT, dtype=F64), by_newton_krylov, tol=1e-12).require()
    assert max(formed) * 16 * DIRECT**2 <= CACHE["cpu"] and sum(formed) >= 60
    last = search(f.take([59]), torch.zeros(1, DIRECT, dtype=F64), by_newton_krylov, tol=1e-12)
    assert (found.states["z"][59] - last.states["z"][0]).norm() < 1e-10
