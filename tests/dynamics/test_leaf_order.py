"""The order in which a rule or a caller writes the leaves of a state changes no number."""

import pytest
import torch

import attractorlab as al
from attractorlab import trees
from attractorlab.maps import LatentMap

F64 = torch.float64
SOLVERS = [al.by_newton_krylov, al.by_iteration, al.by_anderson, al.by_broyden, al.by_gauss_newton]


@pytest.fixture
def pair(generator):
    """A map whose rule gives its leaves in the order b, a; and the same with a, b."""
    w = torch.randn(8, 8, generator=generator, dtype=F64) / 4

    def rule(z, x):
        out = torch.tanh(torch.cat([z["a"], z["b"]], dim=1) @ w + 0.3)
        return {"b": out[:, 4:], "a": out[:, :4]}

    return LatentMap(rule, {}), LatentMap(lambda z, x: {name: rule(z, x)[name] for name in ("a", "b")}, {})


def states(generator):
    z = {"a": torch.randn(3, 4, generator=generator, dtype=F64), "b": torch.randn(3, 4, generator=generator, dtype=F64)}
    return z, {"b": z["b"], "a": z["a"]}


def test_a_map_gives_its_leaves_in_the_order_of_the_state(pair, generator):
    mixed, _ = pair
    for z in states(generator):
        assert list(mixed(z)) == list(mixed.jvp(z, z)) == list(mixed.vjp(z, z)) == list(z)


@pytest.mark.parametrize("method", SOLVERS, ids=lambda one: one.__name__)
def test_fixed_points(pair, generator, method):
    mixed, plain = pair
    z, turned = states(generator)
    exact = al.find_fixed_points(plain, z, tol=1e-12, max_steps=60).require()
    for f, start in ((mixed, z), (mixed, turned), (plain, turned)):
        found = al.find_fixed_points(f, start, method=method, tol=1e-9, max_steps=400).require()
        assert f.residual(found.states).max() < 1e-9
        assert max(float((found.states[name] - exact.states[name]).abs().max()) for name in "ab") < 1e-7


@pytest.mark.parametrize("method", [None, "krylov-schur"])
def test_spectra_exponents_and_norms(pair, generator, method):
    from attractorlab.dynamics.krylov_schur import by_krylov_schur

    mixed, plain = pair
    z, turned = states(generator)
    truth = torch.linalg.eigvals(al.dense_jacobian(plain, z)).abs().sort(descending=True).values
    d = trees.normal_like(z, generator=generator)
    gain = al.non_normality(plain, z, ticks=2, direction=d)
    exponents = al.lyapunov_exponents(plain, z, k=1, ticks=20, transient=400).exponents
    for f, start in ((mixed, z), (mixed, turned), (plain, turned)):
        spec = al.spectrum(f, start, k=3, method=by_krylov_schur if method else None)
        assert torch.allclose(spec.eigenvalues.abs(), truth[:, :3], atol=1e-8)
        other = al.non_normality(f, start, ticks=2, direction=d)
        assert torch.allclose(other.transient_growth, gain.transient_growth) and torch.allclose(other.natural_gain, gain.natural_gain)
        assert torch.allclose(al.lyapunov_exponents(f, start, k=1, ticks=20, transient=400).exponents, exponents, atol=1e-6)


def test_a_trained_reasoner_whose_state_is_written_the_other_way_round():
    reasoner = al.models.load("eqr-sudoku-4").to(F64)
    f = reasoner.bind(al.tasks.load("sudoku-4", split="test", rows=slice(0, 1)))
    z = al.settle(f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), tol=1e-10, max_ticks=500).states
    turned = {"z_L": z["z_L"], "z_H": z["z_H"]}
    for method in (al.by_anderson, al.by_newton_krylov):
        assert al.find_fixed_points(f, turned, method=method, tol=1e-8, max_steps=9).require().moved.max() < 1e-6
    assert al.spectrum(f, turned, k=4).verdict == al.spectrum(f, z, k=4).verdict == ("stable",)
