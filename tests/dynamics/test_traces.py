"""Traces against matrices whose traces are known: exact values, how often intervals cover them, cost, rows on their own."""

import math

import pytest
import torch

from attractorlab import trees
from attractorlab.dynamics.densities import singular_density
from attractorlab.dynamics.lyapunov import lyapunov_exponents
from attractorlab.dynamics.non_normality import non_normality
from attractorlab.dynamics.traces import by_hutchinson, by_xtrace, traces
from attractorlab.maps import LatentMap
from attractorlab.statistics import students_t
from attractorlab.testing import toys

F64 = torch.float64
METHODS = (by_hutchinson, by_xtrace)


def of(*matrices):
    """The map z <- A z with a matrix for each row, and the states 0."""
    a = torch.stack(matrices)
    n = len(a)
    f = LatentMap(lambda z, x: {"z": torch.einsum("rij,rj->ri", x["a"], z["z"])}, {"a": a}, instance=torch.arange(n), start=torch.zeros(n).long())
    return f, {"z": torch.zeros(n, a.shape[2], dtype=a.dtype)}


def known(n, generator):
    """Matrices of many kinds: normal and far from it, flat and steep, of full rank and of two."""
    turn = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64))[0]
    wide = torch.randn(n, n, generator=generator, dtype=F64) / math.sqrt(n)
    return {
        "random": wide,
        "flat and symmetric": turn * torch.linspace(1, 3, n, dtype=F64) @ turn.T,
        "steep": turn * 0.8 ** torch.arange(n, dtype=F64) @ torch.linalg.qr(wide)[0],
        "one outside": 0.3 * wide + 3 * torch.eye(n, dtype=F64)[:, :1] @ torch.eye(n, dtype=F64)[:1],
        "Jordan block": 0.9 * torch.eye(n, dtype=F64) + torch.diag(torch.ones(n - 1, dtype=F64), 1),
        "turn": turn,
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("probes", [3, 12])
def test_intervals_cover_the_truth_as_often_as_they_say(method, probes, generator):
    n, often = 30, 400
    half = students_t(probes - 1, level=0.95)
    for name, a in known(n, generator).items():
        draws = torch.randn(often, probes, n, generator=generator, dtype=F64)
        values, squares = method(lambda v, a=a: v @ a.T, draws, 2)
        truth = torch.stack([a.trace(), (a @ a).trace()])
        error, miss = values.std(1) / math.sqrt(probes), (values.mean(1) - truth).abs()
        cover = (miss <= half * error + 1e-10).double().mean(0)
        # Of 400, 95 % are met 380 ± 4.4 times: three such deviations, and half a percent for distributions with long tails. Above it errors are too large, never too small.
        assert (cover > 0.912).all(), (name, cover)
        assert (miss.square().mean(0) < 1.4 * error.square().mean(0) + 1e-20).all(), name
        norm, spread = squares.mean(1), squares.std(1) / math.sqrt(probes)
        # A sum of few squares is skewed: with 3 probes its intervals cover less.
        assert ((norm - a.square().sum()).abs() <= half * spread + 1e-10).double().mean() > (0.86 if probes == 3 else 0.91), name


def test_the_spread_of_one_run_is_not_the_error_of_few_probes(generator):
    # What 1.96 would do in place of Student's t: the reason for `interval`.
    a = known(60, generator)["random"]
    values, _ = by_hutchinson(lambda v: v @ a.T, torch.randn(2000, 3, 60, generator=generator, dtype=F64), 1)
    error, miss = values.std(1)[:, 0] / math.sqrt(3), (values.mean(1)[:, 0] - a.trace()).abs()
    assert 0.75 < (miss <= 1.96 * error).double().mean() < 0.87
    assert 0.93 < (miss <= students_t(2, level=0.95) * error).double().mean() < 0.97


@pytest.mark.parametrize("method", METHODS)
def test_estimates_and_their_intervals_on_a_map(method, generator):
    a = torch.stack(list(known(80, generator).values()))
    found = traces(*of(*a), powers=4, probes=20, generator=generator, method=method)
    truth = torch.stack([torch.linalg.matrix_power(a, k).diagonal(dim1=1, dim2=2).sum(1) for k in (1, 2, 3, 4)], 1)
    low, high = found.interval(level=0.999)
    assert ((low - 1e-9 <= truth) & (truth <= high + 1e-9)).all()
    norm = torch.linalg.matrix_norm(a)
    assert ((found.frobenius - norm).abs() <= students_t(19, level=0.999) * found.frobenius_error + 1e-9).all()
    assert found.products == 6 * (20 * (4 if method is by_hutchinson else 4 + 10)) and found.probes == 20 and not found.exact
    assert found.method == method.__name__[3:]


def test_a_steep_or_low_spectrum_is_met_exactly_by_leaving_one_out(generator):
    n = 150
    low = torch.randn(n, 3, generator=generator, dtype=F64) @ torch.randn(3, n, generator=generator, dtype=F64)
    steep = known(n, generator)["steep"]
    fine = traces(*of(low, steep, torch.zeros(n, n, dtype=F64)), powers=2, probes=30, generator=generator)
    rough = traces(*of(low, steep, torch.zeros(n, n, dtype=F64)), powers=2, probes=30, generator=generator, method=by_hutchinson)
    assert fine.traces[0, 0].item() == pytest.approx(low.trace().item(), abs=1e-8)
    assert fine.traces[0, 1].item() == pytest.approx((low @ low).trace().item(), abs=1e-5)
    assert (fine.standard_error[1] < 1e-2 * rough.standard_error[1]).all() and (fine.standard_error[1] > 0).all()
    assert fine.traces[2].tolist() == [0, 0] and fine.standard_error[2].tolist() == [0, 0] and fine.frobenius[2].item() == 0


def test_a_diagonal_is_met_exactly_by_random_signs(generator):
    toy = toys.separable_tanh(1.5, 100_000)  # every entry is multiplied by 1.5(1 − z²)
    z = toy.starts(2, generator=generator)
    slopes = 1.5 * (1 - torch.tanh(1.5 * z["z"]).square())
    found = traces(toy.map, z, powers=3, probes=3, generator=generator, method=by_hutchinson)
    exact = torch.stack([slopes.pow(k).sum(1) for k in (1, 2, 3)], 1)
    assert torch.allclose(found.traces, exact, rtol=1e-12) and (found.standard_error < 1e-10 * exact).all()
    assert torch.allclose(found.frobenius, slopes.norm(dim=1), rtol=1e-12)


def test_in_a_hundred_thousand_dimensions(generator):
    # A ring with 1 − 4h sin²(πk/n), h = 0.2: tr J = (1 − 2h)n, tr J² = ((1 − 2h)² + 2h²)n.
    f = LatentMap(lambda z, x: {"z": 0.6 * z["z"] + 0.2 * (z["z"].roll(1, 1) + z["z"].roll(-1, 1))}, {})
    at = {"z": torch.zeros(1, 100_000, dtype=F64)}
    for method in METHODS:
        found = traces(f, at, powers=2, probes=4, generator=generator, method=method)
        truth = 1e5 * torch.tensor([0.6, 0.44], dtype=F64)
        low, high = found.interval(level=0.999)
        assert (found.standard_error / truth < 5e-3).all() and ((low < truth) & (truth < high)).all()
        assert found.frobenius.item() == pytest.approx(math.sqrt(44_000), rel=5e-3)


def test_with_as_many_probes_as_numbers_the_values_are_exact_and_said_to_be(generator):
    a = torch.randn(2, 7, 7, generator=generator, dtype=F64)
    found = traces(*of(*a), powers=3, probes=7, generator=generator)
    truth = torch.stack([torch.linalg.matrix_power(a, k).diagonal(dim1=1, dim2=2).sum(1) for k in (1, 2, 3)], 1)
    assert torch.allclose(found.traces, truth, rtol=1e-12) and torch.allclose(found.frobenius, torch.linalg.matrix_norm(a))
    assert found.exact and found.method == "dense" and found.probes == 0 and found.products == 2 * 7
    assert found.standard_error.eq(0).all() and found.frobenius_error.eq(0).all()
    low, high = found.interval(level=0.95)
    assert low.equal(high) and low.equal(found.traces)
    # The trace of a power is the sum of the powers of all eigenvalues, complex pairs among them.
    assert torch.allclose(found.traces[:, 2], torch.linalg.eigvals(a).pow(3).sum(1).real)


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_touch_one_another(method, generator):
    a = torch.stack(list(known(40, generator).values()))

    def run(f, z):
        return traces(f, z, powers=2, probes=6, generator=torch.Generator().manual_seed(4), method=method).traces

    f, z = of(*a)
    whole = run(f, z)
    order = torch.tensor([4, 0, 2])
    assert torch.allclose(run(f.take(order), trees.take(z, order)), whole[order], rtol=1e-12, atol=1e-12)
    f, z = of(a[0], torch.full_like(a[0], torch.nan), a[1], torch.full_like(a[0], 1e300))
    found = traces(f, z, powers=2, probes=6, generator=torch.Generator().manual_seed(4), method=method)
    assert torch.allclose(found.traces[[0, 2]], whole[:2], rtol=1e-12, atol=1e-12)
    assert found.traces[1].isnan().all() and found.frobenius[1].isnan() and found.standard_error[1].isnan().all()
    assert found.traces[3, 1].isnan()  # beyond the largest number


def test_float32_and_several_leaves(generator):
    f = LatentMap(lambda z, x: {"a": 0.5 * z["a"] + z["b"].sum(1, keepdim=True), "b": torch.tanh(z["b"])}, {})
    z = {"a": torch.zeros(2, 30), "b": torch.zeros(2, 30)}
    found = traces(f, z, powers=2, probes=8, generator=generator, method=by_hutchinson)
    assert ((found.traces - torch.tensor([45.0, 37.5])).abs() <= students_t(7, level=0.999) * found.standard_error + 1e-4).all()


class Once(torch.autograd.Function):
    """tanh, whose derivative cannot be differentiated."""

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].square())

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * (1 - ctx.saved_tensors[0].square())


def test_an_operation_whose_derivative_is_taken_once_only_is_not_left_out(generator):
    z = {"z": torch.randn(2, 20, generator=generator, dtype=F64)}
    for rest in (0.0, 0.3):  # alone, and beside something that can be recorded
        once, many = (LatentMap(lambda z, x, op=op, rest=rest: {"z": op(z["z"]) + rest * z["z"].roll(1, 1)}, {}) for op in (Once.apply, torch.tanh))
        left, right = (traces(f, z, powers=2, probes=4, generator=torch.Generator().manual_seed(1)) for f in (once, many))
        assert torch.allclose(left.traces, right.traces) and left.frobenius.min() > 0
        left, right = (lyapunov_exponents(f, z, k=2, ticks=5) for f in (once, many))
        assert torch.allclose(left.exponents, right.exponents)
        left, right = (singular_density(f, z, probes=2, steps=3, generator=torch.Generator().manual_seed(1)) for f in (once, many))
        assert torch.allclose(left.nodes, right.nodes)


def test_no_rows_and_no_jacobian(generator):
    f = LatentMap(lambda z, x: {"z": torch.zeros_like(z["z"])}, {})
    assert traces(f, {"z": torch.zeros(0, 20, dtype=F64)}, powers=2, probes=4, generator=generator).traces.shape == (0, 2)
    assert traces(f, {"z": torch.zeros(1, 20, dtype=F64)}, powers=2, probes=4, generator=generator).traces.tolist() == [[0, 0]]


def test_misuse_is_refused(generator):
    f, z = of(torch.eye(4, dtype=F64))
    with pytest.raises(ValueError, match=r"`traces` got powers=0, probes=16.*Use powers=1, probes=16"):
        traces(f, z, powers=0, probes=16, generator=generator)
    with pytest.raises(ValueError, match=r"got powers=1, probes=1\. .*spread of 2 probes"):
        traces(f, z, powers=1, probes=1, generator=generator)
    with pytest.raises(ValueError, match=r"`traces` got states in float16.*need float64 or float32.*Cast both"):
        traces(f, {"z": z["z"].half()}, powers=1, probes=2, generator=generator)


class Backwards(torch.autograd.Function):
    """tanh without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - torch.tanh(ctx.saved_tensors[0]).square())


class BackwardsOnce(Backwards):
    """tanh without forward mode, whose derivative cannot be differentiated."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - torch.tanh(ctx.saved_tensors[0]).square())


class Neither(torch.autograd.Function):
    """tanh without any derivative."""

    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)


USES = {
    "traces": lambda f, z: traces(f, z, powers=2, probes=30, generator=torch.Generator().manual_seed(1)),
    "singular_density": lambda f, z: singular_density(f, z, probes=2, steps=3, generator=torch.Generator().manual_seed(1)),
    "non_normality": lambda f, z: non_normality(f, z, ticks=2),
    "lyapunov_exponents": lambda f, z: lyapunov_exponents(f, z, k=2, ticks=4),
}


@pytest.mark.parametrize("caller", USES)
def test_operations_without_forward_mode_go_another_way_or_are_refused(caller, generator):
    z = {"z": torch.randn(2, 20, generator=generator, dtype=F64)}
    made = {op: LatentMap(lambda z, x, op=op: {"z": op(z["z"].roll(1, 1)) + 0.3 * z["z"]}, {}) for op in (torch.tanh, Backwards.apply, BackwardsOnce.apply, Neither.apply)}
    left, right = USES[caller](made[torch.tanh], z), USES[caller](made[Backwards.apply], z)
    for name in ("traces", "frobenius", "nodes", "sigma_max", "kreiss", "exponents"):
        if name in left.__dict__:
            assert torch.allclose(left.__dict__[name], right.__dict__[name], rtol=1e-9), name
    for op in (BackwardsOnce.apply, Neither.apply):
        with pytest.raises(ValueError, match=r"an operation of it cannot be differentiated in forward mode, nor twice in reverse mode.*Write the operation that is named above in torch"):
            USES[caller](made[op], z)


def test_in_few_dimensions_where_probes_agree_by_chance_the_jacobian_is_formed(generator):
    a = torch.randn(3, 3, generator=generator, dtype=F64)
    for seed in range(20):
        found = traces(*of(a), powers=2, probes=2, generator=torch.Generator().manual_seed(seed), method=by_hutchinson)
        assert found.exact and found.traces[0].tolist() == pytest.approx([a.trace().item(), (a @ a).trace().item()])
