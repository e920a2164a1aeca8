"""Lyapunov exponents: closed forms, the order of time, and rows that end."""

import math
from dataclasses import replace

import pytest
import torch

from attractorlab import strobe, trees
from attractorlab.dynamics.lyapunov import batch_error, lyapunov_exponents
from attractorlab.maps import LatentMap, Update, in_turn
from attractorlab.testing import toys
from attractorlab.types import Result

F64 = torch.float64


def plain(rule, clock="tick"):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock=clock)


def one(*numbers):
    return {"z": torch.tensor([numbers], dtype=F64)}


def test_a_linear_map_has_the_logarithms_of_its_moduli(generator):
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=F64))[0]
    moduli = torch.tensor([1.5, 1.2, 0.9, 0.5, 0.2, 0.1], dtype=F64)
    matrix = basis @ (torch.diag(moduli) + torch.triu(torch.ones(6, 6, dtype=F64), 1)) @ basis.T
    found = lyapunov_exponents(plain(lambda z: z @ matrix.T), {"z": torch.zeros(2, 6, dtype=F64)}, k=4, ticks=40, transient=100)
    assert (found.exponents - moduli[:4].log()).abs().max() < 1e-6
    assert found.clock == "tick" and found.growth.shape == (40, 2, 4) and found.transient == 100


def henon(z):
    x, y = z[:, :1], z[:, 1:]
    return torch.cat([1 - 1.4 * x**2 + y, 0.3 * x], dim=1)


def test_the_exponents_of_the_henon_map_add_up_to_the_logarithm_of_its_determinant():
    found = lyapunov_exponents(plain(henon), one(0.1, 0.1), k=2, ticks=900, transient=100)
    assert abs(found.exponents.sum().item() - math.log(0.3)) < 1e-10  # at every tick, so rounding alone
    # Sprott (2003) gives 0.41922 for the first exponent and 1.25826 for the dimension.
    assert abs(found.exponents[0, 0].item() - 0.41922) < 4 * found.standard_error[0, 0].item() < 0.08
    assert abs(found.kaplan_yorke.item() - 1.258) < 0.03


def test_standard_errors_cover_the_truth_as_often_as_they_say(generator):
    z = {"z": 0.1 * torch.rand(40, 2, generator=generator, dtype=F64)}
    found = lyapunov_exponents(plain(henon), z, k=1, ticks=900, transient=100)
    inside = ((found.exponents - 0.41922).abs() < 2.1 * found.standard_error).double().mean()
    assert inside > 0.8, inside


def test_the_product_is_in_the_order_of_time():
    # Three matrices in turn, told by a leaf that turns round. In reverse order the product has other eigenvalues.
    a = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.3]], [[0.2, 0.0, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.7]], [[0.0, 1.0, 0.0], [0.5, 0.0, 0.0], [0.0, 3.0, 1.0]]], dtype=F64)
    right = torch.linalg.eigvals(a[2] @ a[1] @ a[0]).abs().log().sort(descending=True).values / 3
    wrong = torch.linalg.eigvals(a[0] @ a[1] @ a[2]).abs().log().sort(descending=True).values / 3
    assert (right - wrong).abs().max() > 0.05
    rule = lambda z, x: {"z": torch.einsum("rp,pij,rj->ri", z["turn"], a, z["z"]), "turn": z["turn"].roll(1, 1)}  # noqa: E731
    z = {"z": torch.zeros(1, 3, dtype=F64), "turn": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)}
    found = lyapunov_exponents(LatentMap(rule, {}), z, k=6, ticks=200, transient=150)
    expected = torch.cat([right, torch.zeros(3, dtype=F64)]).sort(descending=True).values
    assert (found.exponents[0] - expected).abs().max() < 2e-3


@pytest.mark.parametrize("size", [2, 50, 10_000])
def test_a_separable_tanh_has_the_logarithm_of_its_multiplier_everywhere(size, generator):
    toy = toys.separable_tanh(1.5, size)
    z = toy.starts(2, generator=generator)
    found = lyapunov_exponents(toy.map, z, k=2, ticks=20, transient=60)
    assert (found.exponents - math.log(0.394313025)).abs().max() < 1e-7
    assert found.standard_error.max() < 1e-7 and found.kaplan_yorke.tolist() == [0.0, 0.0]


def test_on_a_circle_of_fixed_points_the_first_exponent_is_zero(generator):
    toy = toys.ring(8, 0.2)
    z = toy.starts(3, generator=generator)
    found = lyapunov_exponents(toy.map, z, k=3, ticks=100, transient=400)
    pair = math.log(1 - 4 * 0.2 * math.sin(math.pi / 8) ** 2)
    assert (found.exponents - torch.tensor([0.0, pair, pair], dtype=F64)).abs().max() < 1e-6


def test_n_ticks_as_one_have_n_times_the_exponents():
    f, z = plain(henon), one(0.1, 0.2)
    single, five = lyapunov_exponents(f, z, k=2, ticks=100), lyapunov_exponents(strobe(f, 5), z, k=2, ticks=20)
    assert torch.allclose(5 * single.exponents, five.exponents, atol=1e-10) and five.clock == "5 x tick"
    assert torch.allclose(single.windows(5) * 5, five.growth, atol=1e-9)


def test_orthonormal_after_every_update_or_every_tick_is_the_same():
    parts = (
        Update("a", ("a",), lambda z, x: {"a": torch.tanh(2 * z["a"] + z["b"]), "b": z["b"]}),
        Update("b", ("b",), lambda z, x: {"a": z["a"], "b": torch.sin(3 * z["b"] - z["a"])}),
    )
    f = LatentMap(in_turn(parts), {}, updates=parts)
    z = {"a": torch.tensor([[0.3, -0.2]], dtype=F64), "b": torch.tensor([[0.1, 0.5]], dtype=F64)}
    whole, apart = (lyapunov_exponents(f, z, k=4, ticks=12, by_update=way) for way in (False, True))
    assert torch.allclose(whole.growth, apart.growth, atol=1e-9)
    with pytest.raises(ValueError, match=r"got by_update=True for a map without updates.*Leave `by_update` out"):
        lyapunov_exponents(plain(henon), one(0.1, 0.1), k=1, ticks=2, by_update=True)


def test_rows_do_not_touch_one_another(generator):
    z = {"z": 0.2 * torch.rand(5, 2, generator=generator, dtype=F64)}
    f = plain(henon)
    whole = lyapunov_exponents(f, z, k=2, ticks=30)
    order = torch.tensor([3, 0, 4])
    assert torch.allclose(lyapunov_exponents(f, trees.take(z, order), k=2, ticks=30).exponents, whole.exponents[order], atol=1e-12)


def test_rows_that_end_say_how_and_leave_the_others_alone():
    f = plain(lambda z: torch.where(z > 100, torch.nan * z, torch.where(z < 0, 50 * z, torch.tanh(2 * z))))
    z = {"z": torch.tensor([[0.5], [1000.0], [-1.0]], dtype=F64)}
    found = lyapunov_exponents(f, z, k=1, ticks=20)
    assert found.result.tolist() == [Result.COMPLETED.code, Result.NONFINITE.code, Result.DIVERGED.code]
    assert found.exponents.isnan()[:, 0].tolist() == [False, True, True]
    alone = lyapunov_exponents(f, trees.take(z, torch.tensor([0])), k=1, ticks=20)
    assert found.exponents[0].equal(alone.exponents[0])


def test_a_direction_that_is_lost_has_the_exponent_minus_infinity():
    found = lyapunov_exponents(plain(lambda z: torch.cat([2 * z[:, :1], 0 * z[:, 1:]], dim=1)), {"z": torch.zeros(1, 2, dtype=F64)}, k=2, ticks=5, transient=1)
    assert found.exponents[0].tolist() == [pytest.approx(math.log(2)), -math.inf] and found.result.tolist() == [Result.COMPLETED.code]


def test_intervals_cover_the_truth_at_few_ticks_too(generator):
    # Independent growth of mean 0.3: 4 batches at 16 ticks, 8 at 64.
    for ticks in (16, 64, 100):
        growth = 0.3 + torch.randn(ticks, 2000, 1, generator=generator, dtype=F64)
        made = lyapunov_exponents(plain(henon), one(0.1, 0.1), k=1, ticks=16)
        rows = dict.fromkeys(("result", "instance", "start"), torch.zeros(2000, dtype=torch.int64))
        found = replace(made, exponents=growth.mean(0), growth=growth, standard_error=batch_error(growth), **rows)
        low, high = found.interval(level=0.95)
        cover = ((low <= 0.3) & (high >= 0.3)).double().mean().item()
        assert 0.935 < cover < 0.965, (ticks, cover)
    assert lyapunov_exponents(plain(henon), one(0.1, 0.1), k=1, ticks=15).interval(level=0.95)[0].isnan().all()


def test_the_exponents_of_the_logistic_map_and_their_intervals(generator):
    # r = 4: ln 2 for almost every start. Growth ln|4 − 8x| has a long tail towards −inf, and so the mean needs ticks.
    z = {"z": torch.rand(300, 1, generator=generator, dtype=F64)}
    found = lyapunov_exponents(plain(lambda x: 4 * x * (1 - x)), z, k=1, ticks=400, transient=50)
    low, high = found.interval(level=0.95)
    assert ((low <= math.log(2)) & (math.log(2) <= high)).double().mean() > 0.9
    assert abs(found.exponents.mean().item() - math.log(2)) < 2e-3 and found.kaplan_yorke.eq(1).all()


def test_arnolds_cat_keeps_areas_and_fills_its_torus(generator):
    cat = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=F64)
    z = {"z": torch.rand(3, 2, generator=generator, dtype=F64)}
    found = lyapunov_exponents(plain(lambda z: torch.remainder(z @ cat.T, 1.0)), z, k=2, ticks=40, transient=30)
    golden = math.log((3 + math.sqrt(5)) / 2)
    assert torch.allclose(found.exponents, torch.tensor([[golden, -golden]] * 3, dtype=F64), rtol=1e-12)
    assert found.kaplan_yorke.tolist() == [2.0, 2.0, 2.0]
    first = lyapunov_exponents(plain(lambda z: torch.remainder(z @ cat.T, 1.0)), z, k=1, ticks=40)
    assert first.kaplan_yorke.isnan().all()  # there may be more exponents


def test_the_dimension_of_many_sets_of_exponents():
    made = lyapunov_exponents(plain(henon), one(0.1, 0.1), k=1, ticks=4)
    cases = [
        ([0.5, 0.0, -1.0], 3, 2.5),
        ([0.5, -0.5, -1.0], 3, 2.0),
        ([0.5, -0.3, -0.2], 3, 3.0),  # volumes are kept, to within rounding
        ([0.1, 0.2, 0.3], 3, 3.0),
        ([0.5, -0.3, -0.2], 4, math.nan),
        ([-0.1, -0.2, -math.inf], 9, 0.0),
        ([0.5, -1.0, -math.inf], 9, 1.5),
        ([-1.0, 0.5, 0.0], 9, 2.5),  # out of order
        ([-1e-17, -0.5, -0.6], 9, 1.0),  # a circle of fixed points, whichever side of zero rounding chose
        ([1e-17, -0.5, -0.6], 9, 1.0),
        ([math.nan] * 3, 3, math.nan),
    ]
    for exponents, size, dimension in cases:
        values = torch.tensor([exponents], dtype=F64)
        found = replace(made, exponents=values, growth=values.expand(20, 1, 3), standard_error=0 * values, size=size).kaplan_yorke.item()
        assert found == pytest.approx(dimension, nan_ok=True), (exponents, size, found)


def test_complex_pairs_have_the_logarithm_of_their_modulus(generator):
    c, s = 0.9 * math.cos(1.0), 0.9 * math.sin(1.0)
    matrix = torch.block_diag(torch.tensor([[c, -s], [s, c]], dtype=F64), torch.tensor([[0.6]], dtype=F64), 0.3 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64))
    matrix = matrix + torch.triu(torch.ones(5, 5, dtype=F64), 2)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=F64))[0]
    matrix = turn @ matrix @ turn.T
    assert torch.linalg.eigvals(matrix).abs().sort(descending=True).values.tolist() == pytest.approx([0.9, 0.9, 0.6, 0.3, 0.3])
    found = lyapunov_exponents(plain(lambda z: z @ matrix.T), {"z": torch.zeros(1, 5, dtype=F64)}, k=5, ticks=600, transient=50)
    # The two of a pair share what the turning frame leaves over, which falls like 1/ticks: their sums are exact.
    pair, last = 2 * math.log(0.9), 2 * math.log(0.3)
    assert found.exponents[0, :2].sum().item() == pytest.approx(pair, abs=5e-3) and found.exponents[0, 0].item() == pytest.approx(pair / 2, abs=5e-3)
    assert found.exponents[0, 2].item() == pytest.approx(math.log(0.6), abs=5e-3) and found.exponents[0, 3:].sum().item() == pytest.approx(last, abs=5e-3)
    assert found.exponents.sum().item() == pytest.approx(pair + math.log(0.6) + last, abs=1e-10)


def test_a_driven_network_is_multiplied_in_the_order_of_time(generator):
    # Row r of a network driven by inputs that repeat after three ticks; the phase turns with the state.
    w = 0.45 * torch.randn(4, 4, generator=generator, dtype=F64)
    inputs = 2 * torch.randn(3, 4, generator=generator, dtype=F64)

    def rule(z, x):
        return {"h": torch.tanh(z["h"] @ w.T + z["phase"] @ inputs), "phase": z["phase"].roll(1, 1)}

    z = {"h": torch.zeros(1, 4, dtype=F64), "phase": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)}
    f = LatentMap(rule, {})
    for _ in range(600):
        z = f(z)
    jacobians, at = [], z
    for _ in range(3):
        phase = at["phase"]
        jacobians.append(torch.func.jacfwd(lambda h, phase=phase: torch.tanh(w @ h + phase[0] @ inputs))(at["h"][0]))
        at = f(at)
    assert torch.allclose(at["h"], z["h"], atol=1e-12)  # it has come to a cycle
    a, b, c = jacobians
    right, wrong = (torch.linalg.eigvals(product).abs().log().sort(descending=True).values / 3 for product in (c @ b @ a, a @ b @ c))
    assert (right - wrong).abs().max() > 0.02
    found = lyapunov_exponents(f, z, k=7, ticks=90, transient=60).exponents[0]
    expected = torch.cat([right, torch.zeros(3, dtype=F64)]).sort(descending=True).values
    assert (found - expected).abs().max() < 1e-2


def test_a_derivative_of_exactly_zero_is_no_nan():
    # 4x(1 − x) has slope 0 at ½, from where it goes to 1 and rests at 0, with slope 4.
    found = lyapunov_exponents(plain(lambda x: 4 * x * (1 - x)), one(0.5), k=1, ticks=20)
    assert found.exponents.item() == -math.inf and found.growth[1:, 0, 0].tolist() == pytest.approx([math.log(4)] * 19)
    assert found.kaplan_yorke.item() == 0 and found.result.tolist() == [Result.COMPLETED.code]


def test_a_product_of_maps_has_the_exponents_of_its_factors(generator):
    # Ten thousand entries: five chaotic ones that are kept apart, and tents that shrink.
    slopes = torch.cat([torch.tensor([1.9, 1.8, 1.7, 1.6, 1.5], dtype=F64), torch.full((9_995,), 0.7, dtype=F64)])
    z = {"z": torch.rand(2, 10_000, generator=generator, dtype=F64)}
    found = lyapunov_exponents(plain(lambda z: 1 - slopes * z.abs()), z, k=5, ticks=20, transient=250)
    assert torch.allclose(found.exponents, slopes[:5].log().expand(2, 5), atol=2e-3)


def test_at_a_fixed_point_they_are_the_logarithms_of_the_moduli(generator):
    toy = toys.power_iteration([2.0, 1.5, -1.2, 0.5], 50, generator=generator)
    found = lyapunov_exponents(toy.map, trees.take(toy.fixed_points, slice(0, 1)), k=3, ticks=30, transient=200)
    assert torch.allclose(found.exponents, toy.eigenvalues[0, :3].abs().log().expand(1, 3), atol=1e-9)


def test_windows_and_their_covariance():
    found = lyapunov_exponents(plain(henon), one(0.1, 0.1), k=2, ticks=103, transient=10)
    x = found.windows(10)
    assert x.shape == (10, 1, 2) and torch.allclose(x[2, 0], found.growth[20:30, 0].mean(0))
    assert torch.allclose(found.covariance(10)[0], torch.cov(x[:, 0].T), atol=1e-12)
    assert found.covariance(60)[0].isnan().all()
    with pytest.raises(ValueError, match=r"`windows` got windows of 104 ticks for 103 counted ones.*Use 1 to 103"):
        found.windows(104)


def test_the_standard_error_of_independent_numbers_is_the_textbook_one(generator):
    x = torch.randn(10_000, 50, generator=generator, dtype=F64)
    assert abs(batch_error(x).mean().item() - 0.01) < 0.0005
    assert batch_error(x[:3]).isnan().all()


def test_misuse_is_refused():
    f, z = plain(henon), one(0.1, 0.1)
    with pytest.raises(ValueError, match=r"`lyapunov_exponents` got k=3 for states of 2 numbers.*Use k from 1 to 2"):
        lyapunov_exponents(f, z, k=3, ticks=5)
    with pytest.raises(ValueError, match=r"got ticks=0, transient=-1.*Use ticks=64"):
        lyapunov_exponents(f, z, k=1, ticks=0, transient=-1)
    with pytest.raises(ValueError, match=r"got states in bfloat16.*Exponents need float64 or float32.*Cast both"):
        lyapunov_exponents(f, trees.to(z, torch.bfloat16), k=1, ticks=1)


def test_a_direction_that_is_lost_is_told_from_rounding_in_any_basis(generator):
    a, b = torch.randn(2, 6, generator=generator, dtype=F64)
    lost = torch.outer(a, b) + 0.1 * torch.outer(b, a)  # of rank two
    for dtype in (F64, torch.float32):
        z = {"z": torch.zeros(2, 6, dtype=dtype)}
        found = lyapunov_exponents(plain(lambda z: z @ lost.to(z).T), z, k=4, ticks=30, transient=30)
        # All that is kept is the span of a and b, whose volume grows by the determinant of what the map does there.
        plane = torch.linalg.qr(torch.stack([a, b], 1))[0]
        volume = torch.linalg.slogdet(plane.T @ lost @ plane).logabsdet.item()
        assert found.exponents[:, :2].sum(1).tolist() == pytest.approx([volume] * 2, abs=1e-4)
        assert found.exponents[:, 2:].isneginf().all() and found.result.tolist() == [Result.COMPLETED.code] * 2
    # A layer that normalises forgets the length of each row.
    w = torch.randn(6, 6, generator=generator, dtype=F64)
    normal = lyapunov_exponents(plain(lambda z: torch.nn.functional.rms_norm(z @ w, (6,), eps=0.0)), {"z": torch.randn(1, 6, generator=generator, dtype=F64)}, k=6, ticks=30)
    assert normal.exponents.isneginf().tolist() == [[False] * 5 + [True]]


def test_updates_that_are_not_the_rule_are_refused():
    part = Update("a", ("z",), lambda z, x: {"z": 0.5 * z["z"]})
    f = LatentMap(lambda z, x: {"z": 2 * z["z"]}, {}, updates=(part,))
    with pytest.raises(ValueError, match=r"`lyapunov_exponents` got a map whose updates and rule differ"):
        lyapunov_exponents(f, one(1.0, 2.0), k=1, ticks=2, by_update=True)
    assert lyapunov_exponents(f, one(1.0, 2.0), k=1, ticks=2).exponents.item() == pytest.approx(math.log(2))


class OnceSquare(torch.autograd.Function):
    """z², whose derivative cannot be differentiated, and is 0 at 0."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent * ctx.saved_tensors[0]


def test_an_operation_that_is_seen_on_the_way_only_is_not_left_out():
    z = {"z": torch.zeros(1, 3, dtype=F64)}
    left, right = (lyapunov_exponents(plain(lambda z, op=op: 1 - 1.4 * op(z) + 0.1 * z), z, k=1, ticks=50).exponents for op in (OnceSquare.apply, torch.square))
    assert torch.allclose(left, right, atol=1e-9)
