"""A tick taken apart: the updates' Jacobians multiply to the tick's, their gains to its multipliers."""

from dataclasses import replace

import pytest
import torch

import attractorlab as al
from attractorlab.dynamics import floquet as module
from attractorlab.dynamics.floquet import floquet, largest_singular
from attractorlab.dynamics.spectrum import by_dense, dense_jacobian, spectrum
from attractorlab.maps import LatentMap, Update, in_turn, strobe
from attractorlab.models.eqr import EqR, EqRConfig

ROUNDING = 1e-10  # of gains and multipliers that are of order 1, in float64


def linear(a, b, c, d):
    """a <- A a + B b, then b <- C a + D b with the new a: the tick is [[A, B], [CA, CB + D]]."""

    def first(z, x):
        return {"a": z["a"] @ a.T + z["b"] @ b.T, "b": z["b"]}

    def second(z, x):
        return {"a": z["a"], "b": z["a"] @ c.T + z["b"] @ d.T}

    updates = (Update("first", ("a",), first), Update("second", ("b",), second))
    return LatentMap(in_turn(updates), {}, clock="tick", updates=updates)


def matrices(generator, n=3, m=2):
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, n), (n, m), (m, n), (m, m))]


def origin_of(n=3, m=2, rows=1):
    return {"a": torch.zeros(rows, n, dtype=torch.float64), "b": torch.zeros(rows, m, dtype=torch.float64)}


@pytest.fixture(scope="module")
def small():
    """The side-4 model in float64 with two states on their way."""
    model = al.models.load("eqr-sudoku-4").to(torch.float64)
    f = model.bind(al.tasks.load("sudoku-4", split="test", rows=slice(0, 2)))
    z = model.start(f.drive, generator=torch.Generator().manual_seed(0))
    return f, al.trace(f, z, ticks=2, keep=al.only_last()).last


def test_a_linear_map_of_two_leaves_is_as_its_formula_says(generator) -> None:
    a, b, c, d = matrices(generator)
    found = floquet(linear(a, b, c, d), origin_of(), k=5)
    tick = torch.cat([torch.cat([a, b], 1), torch.cat([c @ a, c @ b + d], 1)], 0)
    values, vectors = torch.linalg.eig(tick)
    order = values.abs().argsort(descending=True)
    assert (found.multipliers[0].abs() - values[order].abs()).abs().max() < ROUNDING
    assert (found.gain[0].prod(1) - found.multipliers[0].abs()).abs().max() < ROUNDING
    for mode, at in enumerate(order.tolist()):
        v = vectors[:, at]
        new_a = a.to(v) @ v[:3] + b.to(v) @ v[3:]
        middle = torch.cat([new_a, v[3:]])
        assert found.gain[0, mode, 0].item() == pytest.approx(float(middle.norm() / v.norm()), rel=1e-9)
        assert found.part[0, mode, 0, 0].item() == pytest.approx(float(new_a.norm() ** 2 / middle.norm() ** 2), rel=1e-9)
        # A whole tick turns and scales an eigenvector: its shares are the eigenvector's own.
        assert found.part[0, mode, 1, 1].item() == pytest.approx(float(v[3:].norm() ** 2), rel=1e-9)
    sizes = [[torch.linalg.matrix_norm(block, 2).item() for block in row] for row in ((a, b), (c, d))]
    assert (found.block_gain[0] - torch.tensor(sizes, dtype=torch.float64)).abs().max() < ROUNDING
    assert found.updates == ("first", "second") and found.leaves == ("a", "b") and found.clock == "tick" and (found.block_error == 0).all()


def test_gains_that_a_reader_can_check_in_the_head() -> None:
    """a <- 4b, b <- a/8: the mode (4, 1)/2 of multiplier 1/2 grows by 4 in a, then shrinks."""
    one = torch.eye(1, dtype=torch.float64)
    found = floquet(linear(0 * one, 4 * one, one / 8, 0 * one), origin_of(1, 1), k=2)
    assert found.multipliers[0].abs().tolist() == [0.5, 0.0]
    # The eigenvector is (8, 1): (8, 1) -> (4, 1) -> (4, 1/2).
    assert found.gain[0, 0].tolist() == pytest.approx([(17 / 65) ** 0.5, (16.25 / 17) ** 0.5])
    assert found.part[0, 0, 0].tolist() == pytest.approx([16 / 17, 1 / 17]) and found.part[0, 0, 1].tolist() == pytest.approx(
        [64 / 65, 1 / 65]
    )
    # The other one, (1, 0), is gone after the first update.
    assert found.gain[0, 1].tolist() == [0.0, 1.0] and found.part[0, 1].isnan().all()
    assert found.block_gain[0].tolist() == [[0.0, 4.0], [0.125, 0.0]]


@pytest.mark.parametrize(("scale", "dtype"), [(1e-6, torch.float64), (1.0, torch.float64), (1.0, torch.float32)])
@pytest.mark.parametrize("seed", range(6))
def test_what_rounding_leaves_of_a_vanished_tangent_is_no_gain(scale, seed, dtype) -> None:
    """D is of rank 1: the second update takes a mode to zero, but for rounding, and there is nothing left that a later one could stretch."""
    a, b, c, d = (scale * one for one in matrices(torch.Generator().manual_seed(seed)))
    d = d[:, :1] @ d[:1] / scale
    found = floquet(strobe(linear(*(one.to(dtype) for one in (a, b, c, d))), 2), {name: leaf.to(dtype) for name, leaf in origin_of().items()}, k=5)
    gone = found.multipliers[0].abs().argmin()
    alive = found.multipliers[0].abs() > 1e-4 * found.multipliers[0].abs().max()
    gain = found.gain[0, gone].tolist()
    if dtype == torch.float64:
        assert gain[1:] == [0.0, 1.0, 1.0] and found.part[0, gone, 1:].isnan().all()
    else:  # an eigenvector that is worse than rounding is followed for as long as it stands out of that
        assert gain[1] < 1e-3 and gain.count(0.0) == 1 and set(gain[gain.index(0.0) + 1 :]) <= {1.0}
    assert found.gain[0, gone, 0] > 0 and found.part[0, gone, 0].sum().item() == pytest.approx(1)
    assert (found.gain[0, alive] > 0).all() and found.part[0, alive].isfinite().all()


def test_small_gains_that_are_no_rounding_stay() -> None:
    """A contraction to a millionth in each of two updates, and on."""
    one = torch.eye(1, dtype=torch.float64)
    found = floquet(strobe(linear(1e-6 * one, 0 * one, 0 * one, 1e-6 * one), 3), origin_of(1, 1), k=2, method=by_dense)
    assert (found.gain.prod(2) / 1e-18 - 1).abs().max() < 1e-9 and found.part.isfinite().all()


@pytest.fixture(params=["mlp", "attention"])
def tiny(request):
    """A fresh model of 128 numbers a state, small enough for whole Jacobians."""
    g = torch.Generator().manual_seed(1)
    config = EqRConfig(task="sudoku-4", sites=16, vocabulary=6, width=4, heads=2, mixer=request.param)
    model = EqR(config, generator=g).to(torch.float64)
    f = model.bind(al.tasks.load("sudoku-4", split="test", rows=slice(0, 2)))
    return f, model.start(f.drive, generator=g)


@pytest.mark.parametrize("every", [1, 2])
def test_the_jacobians_of_the_updates_multiply_to_that_of_the_tick(tiny, every) -> None:
    f, z = strobe(tiny[0], every), tiny[1]
    product, state = torch.eye(128, dtype=torch.float64), z
    for update in f.updates:
        step = replace(f, rule=update.rule, updates=())
        product = dense_jacobian(step, state) @ product
        state = step(state)
    whole = dense_jacobian(f, z)
    assert (product - whole).norm() / whole.norm() < 1e-12


@pytest.mark.parametrize("every", [1, 2])
def test_gains_of_a_real_model_multiply_to_its_multipliers(small, every) -> None:
    f, z = strobe(small[0], every), small[1]
    found, spec = floquet(f, z, k=4), spectrum(f, z, k=4)
    assert found.multipliers.equal(spec.eigenvalues) and found.defect.equal(spec.defect) and found.method == spec.method == "krylov-schur"
    assert found.updates == (("L0", "L1", "H") if every == 1 else ("0.L0", "0.L1", "0.H", "1.L0", "1.L1", "1.H"))
    assert found.leaves == ("z_H", "z_L") and found.clock == f.clock
    modulus = found.multipliers.abs()
    assert ((found.gain.prod(2) - modulus).abs() <= 2 * found.defect + ROUNDING * modulus).all()
    assert ((found.part.sum(3) - 1).abs() < ROUNDING).all()


def test_block_gains_by_products_are_those_of_whole_blocks(tiny, monkeypatch) -> None:
    f, z = tiny
    dense = floquet(f, z, k=1)
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    krylov = floquet(f, z, k=1)
    assert (krylov.block_error <= 1e-6 * krylov.block_gain).all() and (krylov.block_error > 0).any() and (dense.block_error == 0).all()
    assert ((krylov.block_gain - dense.block_gain).abs() <= krylov.block_error + ROUNDING).all() and (dense.block_gain > 0).all()
    whole = dense_jacobian(replace(f, rule=f.updates[0].rule), z)
    assert (dense.block_gain[:, 0, 1] - torch.linalg.matrix_norm(whole[:, 64:, 64:], 2)).abs().max() < ROUNDING


def test_points_do_not_see_each_other(small) -> None:
    f, z = small
    both, second = floquet(f, z, k=2), floquet(f.take([1]), {name: leaf[1:] for name, leaf in z.items()}, k=2)
    for name in ("gain", "part", "block_gain"):
        assert (getattr(both, name)[1:] - getattr(second, name)).abs().max() < 1e-6


def test_float32_gains_are_those_of_float64_to_a_few_digits(small) -> None:
    f, z = small
    model = al.models.load("eqr-sudoku-4")
    narrow = model.bind(al.tasks.load("sudoku-4", split="test", rows=slice(0, 2)))
    wide, found = floquet(f, z, k=1), floquet(narrow, {name: leaf.float() for name, leaf in z.items()}, k=1)
    assert (found.gain - wide.gain).abs().max() < 1e-2 and (found.block_gain / wide.block_gain - 1).abs().max() < 1e-3


def test_a_map_without_updates_is_its_own_single_update(generator) -> None:
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    f = LatentMap(lambda z, x: {"z": z["z"] @ matrix.T}, {}, clock="tick")
    found = floquet(f, {"z": torch.zeros(2, 4, dtype=torch.float64)}, k=4, method=by_dense)
    assert found.updates == ("tick",) and (found.gain[:, :, 0] - found.multipliers.abs()).abs().max() < ROUNDING
    assert (found.block_gain - torch.linalg.matrix_norm(matrix, 2)).abs().max() < ROUNDING and (found.part == 1).all()


def test_strobed_gains_at_a_fixed_point_repeat_those_of_one_tick(generator) -> None:
    a, b, c, d = matrices(generator)
    f = linear(a, b, c, d)
    one, three = floquet(f, origin_of(), k=3), floquet(strobe(f, 3), origin_of(), k=3)
    assert (three.multipliers.abs() - one.multipliers.abs() ** 3).abs().max() < 1e-8
    assert (three.gain.unflatten(2, (3, 2)) - one.gain[:, :, None]).abs().max() < 1e-8
    assert three.updates[-1] == "2.second"


def test_a_jacobian_that_is_not_finite_gives_nan_there_alone() -> None:
    f = LatentMap(lambda z, x: {"z": z["z"].sqrt()}, {}, clock="tick")
    for limit in (1000, 0):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "DENSE_LIMIT", limit)
            found = floquet(f, {"z": torch.tensor([[0.0, 1.0], [1.0, 4.0]], dtype=torch.float64)}, k=1)
        assert found.gain[0].isnan().all() and found.block_gain[0].isnan().all()
        assert found.gain[1].item() == pytest.approx(0.5) and found.block_gain[1].item() == pytest.approx(0.5)


def test_the_largest_singular_value_is_found_for_every_row_at_once(generator) -> None:
    matrix = torch.randn(5, 60, 40, generator=generator, dtype=torch.float64)
    matrix[3] = 0
    matrix[4] = torch.outer(torch.ones(60), torch.arange(40.0))
    start = torch.randn(5, 40, generator=generator, dtype=torch.float64)

    def found(cap):
        return largest_singular(
            lambda v: torch.einsum("rmn,rn->rm", matrix, v),
            lambda u: torch.einsum("rmn,rm->rn", matrix, u),
            start,
            tol=1e-10,
            noise=1e-13,
            cap=cap,
        )

    truth = torch.linalg.matrix_norm(matrix, 2)
    size, _ = found(40)
    assert (size - truth).abs().max() < 1e-9 * truth.max() and size[3] == 0
    early, rough = found(3)
    assert (early <= truth + 1e-9).all() and (rough[:3] > 1e-6).all() and ((truth - early)[:3] <= rough[:3] * 3).all()


def test_misuse_is_refused_as_for_a_spectrum(generator) -> None:
    f = linear(*matrices(generator))
    with pytest.raises(ValueError, match=r"got k=6 for states of 5 numbers.*Use k from 1 to 5"):
        floquet(f, origin_of(), k=6)
