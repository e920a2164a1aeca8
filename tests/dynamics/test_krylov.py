"""Krylov spaces and GMRES against dense algebra."""

import pytest
import torch

import attractorlab as al
from attractorlab.dynamics.krylov import Jacobian, Krylov, gmres
from attractorlab.dynamics.krylov_schur import by_krylov_schur, ritz
from attractorlab.dynamics.modes import by_modulus, leading
from attractorlab.dynamics.records import Record
from attractorlab.dynamics.spectrum import dense_jacobian, spectrum
from attractorlab.maps import LatentMap

ROUNDING = 1e-12  # of a few hundred float64 operations on numbers near 1


def product_with(matrices):
    return lambda v, rows: torch.einsum("rij,rj->ri", matrices[rows], v)


def matrices(rows, dim, generator, scale=1.0):
    return scale * torch.randn(rows, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5


def starts(rows, width, dim, generator):
    return torch.randn(rows, width, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_basis_is_orthonormal_and_the_projected_operator_is_exact(width, generator):
    a = matrices(4, 40, generator)
    space = Krylov(product_with(a), starts(4, width, 40, generator), cap=20, noise=1e-13)
    for _ in range(20):
        space.step()
    longer = space._basis[:, : space.m + width]
    assert (longer @ longer.mT - torch.eye(20 + width, dtype=torch.float64)).abs().max() < ROUNDING
    assert (space.basis @ a.mT - space.h.mT @ longer).abs().max() < ROUNDING


def test_a_space_that_closes_goes_on_from_a_fresh_vector(generator):
    a = matrices(2, 30, generator)
    a[0] = 0.5 * torch.eye(30)  # closes at every step
    a[1] = 0
    a[1, 3, 5] = 1  # rank one and nilpotent
    space = Krylov(product_with(a), starts(2, 2, 30, generator), cap=12, noise=1e-13)
    for _ in range(12):
        space.step()
    longer = space._basis[:, :14]
    assert (longer @ longer.mT - torch.eye(14, dtype=torch.float64)).abs().max() < ROUNDING
    assert (space.basis @ a.mT - space.h.mT @ longer).abs().max() < ROUNDING
    values, _, residual = ritz(space.h, k=5, order=by_modulus)
    assert (values[0] - 0.5).abs().max() < ROUNDING and residual[0].max() < ROUNDING


def test_a_whole_space_gives_all_eigenvalues(generator):
    a = matrices(3, 12, generator)
    space = Krylov(product_with(a), starts(3, 2, 12, generator), cap=12, noise=1e-13)
    for _ in range(12):
        space.step()
    values, _, residual = ritz(space.h, k=12, order=by_modulus)
    exact = torch.linalg.eigvals(a)
    assert (values - exact.gather(1, leading(exact))).abs().max() < 1e-10
    assert residual.max() < ROUNDING


def test_rows_that_leave_do_not_disturb_the_others(generator):
    a, start = matrices(5, 25, generator), starts(5, 1, 25, generator)
    together = Krylov(product_with(a), start, cap=10, noise=1e-13)
    alone = Krylov(product_with(a[3:4]), start[3:4], cap=10, noise=1e-13)
    for step in range(10):
        together.step()
        alone.step()
        if step == 4:
            together.leave(torch.tensor([True, False, True, False, True]))
    assert together.rows.tolist() == [1, 3]
    assert (together.h[1] - alone.h[0]).abs().max() < ROUNDING


def test_gmres_solves_to_the_tolerance_of_each_row(generator):
    a = torch.eye(30, dtype=torch.float64) + matrices(4, 30, generator, 0.4)
    b = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    tol = torch.tensor([1e-1, 1e-4, 1e-8, 1e-12], dtype=torch.float64)
    x, left = gmres(product_with(a), b, tol=tol, cap=30, noise=1e-13)
    true = torch.linalg.vector_norm(torch.einsum("rij,rj->ri", a, x) - b, dim=1) / torch.linalg.vector_norm(b, dim=1)
    assert (true <= 1.01 * tol + 1e-14).all()
    assert (true - left).abs().max() < ROUNDING
    assert true[0] > 1e-4  # a loose tolerance is not paid for


def test_gmres_ends_after_as_many_products_as_there_are_eigenvalues(generator):
    calls = []
    diagonal = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(10)

    def product(v, rows):
        calls.append(len(rows))
        return diagonal * v

    b = torch.randn(1, 30, generator=generator, dtype=torch.float64)
    x, _ = gmres(product, b, tol=torch.full((1,), 1e-11, dtype=torch.float64), cap=30, noise=1e-13)
    assert (x - b / diagonal).abs().max() < 1e-10
    assert len(calls) == 3


def test_gmres_takes_a_least_squares_step_where_the_operator_is_singular(generator):
    diagonal = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    b = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    x, left = gmres(lambda v, rows: diagonal * v, b, tol=torch.full((2,), 1e-10, dtype=torch.float64), cap=4, noise=1e-13)
    assert (diagonal * x[0] - b[0]).abs().max() < 1e-10
    assert left[1].item() == pytest.approx(0.5**0.5, abs=1e-10)  # the part of b that no x can reach
    assert x.isfinite().all()


def test_gmres_returns_nan_for_a_row_of_nan_and_zero_for_a_row_of_zeros(generator):
    a = torch.eye(6, dtype=torch.float64) + matrices(3, 6, generator, 0.3)
    a[0, 2, 2] = torch.nan
    b = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    b[1] = 0
    x, left = gmres(product_with(a), b, tol=torch.full((3,), 1e-12, dtype=torch.float64), cap=6, noise=1e-13)
    assert x[0].isnan().all()
    assert (x[1] == 0).all() and left[1] == 0
    assert (a[2] @ x[2] - b[2]).abs().max() < 1e-10


def test_eigenvalues_are_led_by_modulus_and_pairs_by_the_upper_half_plane():
    values = torch.tensor([[0.1, 0.6 - 0.8j, -1.0, 0.6 + 0.8j, 1.0 + 1e-15]], dtype=torch.complex128)
    assert values.gather(1, leading(values))[0].tolist() == pytest.approx([1.0, 0.6 + 0.8j, 0.6 - 0.8j, -1.0, 0.1])


def test_a_jacobian_multiplies_repeated_rows_and_counts_them(generator):
    z = {"a": torch.randn(3, 2, generator=generator, dtype=torch.float64), "b": torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)}
    gain = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    f = LatentMap(
        lambda z, x: {"a": x["gain"][:, None] * z["b"][:, 0], "b": z["b"] * z["a"][:, :, None]},
        {"gain": gain},
        clock="tick",
        instance=torch.arange(3),
        start=torch.zeros(3, dtype=torch.int64),
    )
    forward, transpose = Jacobian(f, z), Jacobian(f, z, transposed=True)
    rows = torch.tensor([2, 0, 2, 1])
    u, v = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    ahead, back = forward(v, rows), transpose(u, rows)
    assert (ahead[:, :2] - gain[rows][:, None] * v[:, 2:4]).abs().max() < ROUNDING
    assert ((u * ahead).sum(1) - (v * back).sum(1)).abs().max() < ROUNDING * 100
    assert forward.products == 4


def overwriting(generator, width, size=0.9):
    """a <- size tanh(a W + 0.2), b <- sin(a): what b was is never read."""
    w = matrices(1, width, generator)[0]
    f = LatentMap(lambda z, x: {"a": size * torch.tanh(z["a"] @ w + 0.2), "b": torch.sin(z["a"])}, {})
    return f, {name: 0.3 * torch.randn(2, width, generator=generator, dtype=torch.float64) for name in "ab"}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_products_with_a_leaf_that_is_not_read_are_those_of_the_dense_jacobian(order, transposed, generator):
    f, z = overwriting(generator, 5)
    z = {name: z[name] for name in order}
    dense = dense_jacobian(f, z)
    v = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    jacobian = Jacobian(f, z, transposed=transposed)
    multiply = jacobian.at(torch.arange(2))
    assert Record(f, z, torch.arange(2), transposed=transposed).usable, "walking back through a record costs a sixth of the plain product"
    for rows in (torch.tensor([0, 1]), torch.tensor([1])):
        product = multiply(v[rows], rows)
        wanted = torch.einsum("rji,rj->ri" if transposed else "rij,rj->ri", dense[rows], v[rows])
        assert (product - wanted).abs().max() < ROUNDING
    assert jacobian.products == 3


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_a_map_that_reads_no_leaf_are_zero(transposed, generator):
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    z = {"z": torch.randn(2, 3, generator=generator, dtype=torch.float64)}
    f = LatentMap(lambda z, x: {"z": weight.sin().expand(len(z["z"]), 3)}, {})
    product = Jacobian(f, z, transposed=transposed).at(torch.arange(2))
    assert (product(torch.ones(2, 3, dtype=torch.float64), torch.arange(2)) == 0).all()


def test_a_large_state_with_a_leaf_that_is_not_read_is_analysed(generator):
    f, z = overwriting(generator, 600)
    dense = torch.linalg.eigvals(dense_jacobian(f, z)).abs().sort(dim=1, descending=True).values[:, :4]
    for method in (None, by_krylov_schur):
        found = spectrum(f, z, k=4, method=method)
        assert (found.eigenvalues.abs() - dense).abs().max() < 1e-6
    assert (al.floquet(f, z, k=2).multipliers.abs() - dense[:, :2]).abs().max() < 1e-6
    exact = torch.linalg.matrix_norm(dense_jacobian(f, z), 2)
    assert (al.non_normality(f, z, ticks=2).sigma_max / exact - 1).abs().max() < 1e-6
    f, z = overwriting(generator, 600, size=0.4)
    found = al.find_fixed_points(f, z, method=al.by_newton_krylov, tol=1e-9, max_steps=50).require()
    assert (f.residual(found.states) < 1e-9).all()
