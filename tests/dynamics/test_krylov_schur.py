"""Krylov-Schur spaces on matrices that mislead eigensolvers, on maps of 100,000 dimensions, and on maps that lack a derivative."""

import math

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import attractorlab as al
from attractorlab.dynamics.krylov_schur import leading_schur
from attractorlab.dynamics.modes import Side, assemble, by_modulus, leading
from attractorlab.maps import LatentMap
from attractorlab.testing import toys

F64 = torch.float64
EXACT = 1e-8  # what is promised of well-conditioned eigenvalues in float64
BOTH = pytest.mark.parametrize("method", [al.by_dense, al.by_krylov_schur], ids=lambda one: one.__name__)


def undriven(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def matrix_map(a):
    return undriven(lambda z: z @ a.T)


def origin(dim, points=1, dtype=F64):
    return {"z": torch.zeros(points, dim, dtype=dtype)}


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=F64)


def reflected(z, u):
    """The Householder reflection of each row, by sums that are the same whatever rows stand beside it."""
    return z - 2 * (z * u).sum(1, keepdim=True) * u


def hidden(multiply, dim, generator):
    """The map of `multiply` seen in the basis of two Householder reflections: of any size, with known eigenvalues."""
    u, v = (one / one.norm() for one in normal(2, dim, generator=generator))
    return undriven(lambda z: reflected(reflected(multiply(reflected(reflected(z, u.to(z)), v.to(z))), v.to(z)), u.to(z)))


def diagonal(values, dim, generator, bulk=0.3):
    """Diagonal eigenvalues, `values` first, then others of size `bulk` at most."""
    rest = bulk * (2 * torch.rand(dim, generator=generator, dtype=F64) - 1)
    rest[: len(values)] = torch.tensor(values, dtype=F64)
    return rest


def found_apart(found, exact):
    """The largest distance of the found eigenvalues of each point from the exact ones, order aside."""
    exact = torch.as_tensor(exact).to(torch.complex128)
    return max((row[:, None] - exact).abs().amin(1).max() + (row[:, None] - exact).abs().amin(0).max() for row in found.eigenvalues)


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
def test_every_copy_of_a_multiple_eigenvalue_is_found(copies, generator):
    values = [0.9] * copies + [0.8, 0.7, 0.6]
    d = diagonal(values, 1500, generator)
    found = al.spectrum(hidden(lambda z: z * d.to(z), 1500, generator), origin(1500), k=copies + 2)
    assert (found.eigenvalues[0] - d[: copies + 2]).abs().max() < EXACT
    assert found.verdict == ("stable",) and found.error.max() < EXACT


def test_a_cluster_of_slow_eigenvalues_is_resolved(generator):
    d = 0.99 * torch.rand(3000, generator=generator, dtype=F64)
    d[:5] = torch.tensor([0.999, 0.998, 0.997, 0.996, 0.995])
    found = al.spectrum(hidden(lambda z: z * d, 3000, generator), origin(3000), k=4)
    assert (found.eigenvalues[0] - d[:4]).abs().max() < EXACT and found.verdict == ("stable",)


def test_the_largest_real_part_is_found_behind_larger_moduli(generator):
    d = diagonal([-0.95, -0.9, -0.85, 0.6, 0.55, -0.7], 1200, generator)
    f = hidden(lambda z: z * d, 1200, generator)
    found = al.spectrum(f, origin(1200), k=2, order=al.by_real_part)
    assert (found.eigenvalues[0] - torch.tensor([0.6, 0.55], dtype=F64)).abs().max() < EXACT
    assert found.order == "real part" and found.radius.item() == pytest.approx(0.6)
    assert al.spectrum(f, origin(1200), k=2).order == "modulus"


def test_the_two_orders_differ_in_their_verdicts():
    f = matrix_map(torch.diag(torch.tensor([-1.5, 0.4, 0.2], dtype=F64)))
    assert al.spectrum(f, origin(3), k=2).verdict == ("unstable(1)",)
    assert al.spectrum(f, origin(3), k=2, order=al.by_real_part).verdict == ("stable",)
    assert al.spectrum(f, origin(3), k=2, order=al.by_real_part).eigenvalues.real[0].tolist() == pytest.approx([0.4, 0.2])


@pytest.mark.parametrize("n", [60, 400])
@BOTH
def test_the_toeplitz_trap_is_ill_conditioned(n, method):
    ones = torch.ones(n - 1, dtype=F64)
    found = al.spectrum(matrix_map(torch.diag(ones / 16, 1) + torch.diag(ones, -1)), origin(n), k=4, method=method)
    exact = 0.5 * math.cos(math.pi / (n + 1))
    assert found.verdict == ("ill-conditioned",)
    assert found.error[0, 0] >= abs(found.radius.item() - exact)


@pytest.mark.parametrize("value", [0.5, 0.99, 1.0])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@BOTH
def test_jordan_blocks_never_look_unstable_and_their_errors_cover_the_truth(n, value, method, generator):
    block = torch.zeros(120, 120, dtype=F64)
    block[:n, :n] = value * torch.eye(n, dtype=F64) + torch.diag(torch.ones(n - 1, dtype=F64), 1)
    block[range(n, 120), range(n, 120)] = diagonal([], 120 - n, generator)
    found = al.spectrum(hidden(lambda z: z @ block.T, 120, generator), origin(120), k=n, method=method)
    assert ((found.eigenvalues - value).abs() <= found.error).all()
    assert found.verdict[0] in {0.5: ("stable", "ill-conditioned"), 0.99: ("stable", "ill-conditioned", "marginal"), 1.0: ("marginal", "ill-conditioned")}[value]


@pytest.mark.parametrize("dim", [1, 2, 3, 50, 200])
@pytest.mark.parametrize("kind", ["zero", "identity", "half", "nilpotent"])
@BOTH
def test_degenerate_jacobians(kind, dim, method):
    shift = torch.diag(torch.ones(dim - 1, dtype=F64), 1)
    a = {"zero": 0 * shift, "identity": torch.eye(dim, dtype=F64), "half": 0.5 * torch.eye(dim, dtype=F64), "nilpotent": shift if dim < 4 else shift @ torch.diag((torch.arange(dim) < 2).to(F64))}[kind]
    for k in {1, min(3, dim)}:
        found = al.spectrum(matrix_map(a), origin(dim), k=k, method=method)
        value = {"identity": 1.0, "half": 0.5}.get(kind, 0.0)
        assert (found.eigenvalues - value).abs().max() < (1e-4 if kind == "nilpotent" else 1e-12)
        assert found.verdict == ("marginal",) if kind == "identity" else found.verdict == ("stable",)
        if kind != "nilpotent":
            assert found.named == ((({"zero": "zero", "identity": "unit"}.get(kind, "")),) * k,)


@pytest.mark.parametrize("dim", [2, 3, 40])
@BOTH
def test_a_rotation_has_all_eigenvalues_on_the_circle(dim, method, generator):
    q = torch.linalg.qr(normal(dim, dim, generator=generator))[0]
    found = al.spectrum(matrix_map(q), origin(dim), k=dim, method=method)
    exact = torch.linalg.eigvals(q)[None]
    assert (found.eigenvalues - exact.gather(1, leading(exact))).abs().max() < 1e-12
    assert found.verdict == ("marginal",)


def test_the_dominant_eigenvalue_of_a_bulk_without_a_gap_is_not_missed(generator):
    a = 0.9 * normal(1000, 1000, generator=generator) / 1000**0.5
    exact = torch.linalg.eigvals(a)[None]
    found = al.spectrum(matrix_map(a), origin(1000), k=4, method=al.by_krylov_schur)
    assert (found.eigenvalues - exact.gather(1, leading(exact))[:, :4]).abs().max() < 1e-7
    assert found.verdict == ("stable",)


def test_a_map_of_100_000_dimensions_with_pairs_copies_and_a_negative_value(generator):
    dim = 100_000
    d = diagonal([0.0, 0.0, 0.97, 0.97, -0.9, 0.85], dim, generator)
    c, s = 0.95 * math.cos(0.7), 0.95 * math.sin(0.7)

    def multiply(z):
        return torch.cat([c * z[:, :1] - s * z[:, 1:2], s * z[:, :1] + c * z[:, 1:2], d[2:] * z[:, 2:]], dim=1)

    found = al.spectrum(hidden(multiply, dim, generator), origin(dim), k=6)
    exact = torch.tensor([0.97, 0.97, complex(c, s), complex(c, -s), -0.9, 0.85], dtype=torch.complex128)
    assert (found.eigenvalues[0] - exact).abs().max() < EXACT
    assert found.verdict == ("stable",) and found.method == "krylov-schur"


def test_power_iteration_in_100_000_dimensions(generator):
    toy = toys.power_iteration([2.0, 1.5, -1.2, 0.9, 0.5], 100_000, generator=generator)
    found = al.spectrum(toy.map, al.trees.take(toy.fixed_points, slice(0, 1)), k=6)
    assert (found.eigenvalues - toy.eigenvalues[:1, :6]).abs().max() < EXACT
    assert found.verdict == ("stable",) and found.named[0] == ("",) * 4 + ("zero",) * 2


def test_float32_maps_of_many_dimensions_have_their_own_tolerance(generator):
    d = diagonal([0.97, -0.9, 0.85], 20_000, generator)
    found = al.spectrum(hidden(lambda z: z * d.to(z), 20_000, generator), origin(20_000, dtype=torch.float32), k=3)
    assert (found.eigenvalues[0] - d[:3]).abs().max() < 1e-4
    assert ((found.eigenvalues[0] - d[:3]).abs() <= found.error[0] + 1e-6).all() and found.verdict == ("stable",)


def test_a_ring_of_phases_names_its_unit_direction():
    toy = toys.ring(40, 0.2)
    found = al.spectrum(toy.map, al.trees.take(toy.fixed_points, slice(0, 2)), k=3)
    assert found.named == (("unit", "", ""),) * 2 and found.verdict == ("marginal", "marginal")


def test_a_norm_layer_names_one_zero_for_each_token(generator):
    w = torch.eye(3, dtype=F64) + 0.1 * normal(3, 3, generator=generator)

    def tick(z):
        y = z["z"] @ w
        return {"z": y / y.norm(dim=2, keepdim=True)}

    f = LatentMap(lambda z, x: tick(z), {})
    z = al.settle(f, {"z": normal(1, 4, 3, generator=generator)}, tol=1e-12, max_ticks=3000).states
    assert sum(word == "zero" for word in al.spectrum(f, z, k=12).named[0]) == 4


def test_a_point_of_nan_leaves_the_others_bitwise_untouched(generator):
    d = diagonal([0.9, 0.8], 1500, generator)
    f = undriven(lambda z: d * torch.sin(z))
    z = {"z": 0.3 * normal(3, 1500, generator=generator)}
    clean = al.spectrum(f, z, k=3)
    z["z"][1, 7] = torch.nan
    found = al.spectrum(f, z, k=3)
    assert found.eigenvalues[1].isnan().all() and found.error[1].isnan().all() and found.verdict[1] == "ill-conditioned"
    for name in ("eigenvalues", "defect", "condition", "error"):
        assert torch.equal(getattr(found, name)[[0, 2]], getattr(clean, name)[[0, 2]])


def test_a_row_does_not_depend_on_the_rows_beside_it(generator):
    d = torch.stack([diagonal(values, 600, generator) for values in ([0.9, 0.9, 0.5], [0.99, 0.98, 0.97, 0.96], [0.4], [-0.8, 0.8, 0.8, 0.7])])
    u = normal(600, generator=generator)
    u = u / u.norm()
    f = LatentMap(lambda z, x: {"z": reflected(x["d"] * reflected(z["z"], u), u)}, {"d": d}, instance=torch.arange(4), start=torch.zeros(4).long())
    whole = al.spectrum(f, origin(600, 4), k=3)
    order = torch.tensor([2, 0, 3, 1])
    again = al.spectrum(f.take(order), origin(600, 4), k=3)
    assert torch.equal(again.eigenvalues, whole.eigenvalues[order]) and again.verdict == tuple(whole.verdict[i] for i in order.tolist())
    for i in (1, 3):
        assert torch.equal(al.spectrum(f.take([i]), origin(600), k=3).eigenvalues[0], whole.eigenvalues[i])


class BackwardOnly(torch.autograd.Function):
    """tanh, with a backward pass alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, given):
        return given * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class OnceDifferentiable(BackwardOnly):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, given):
        return given * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class CutBackward(BackwardOnly):
    """Its backward pass forgets that it is linear in what it is given."""

    @staticmethod
    def backward(ctx, given):
        return given.detach() * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class HalfCutBackward(BackwardOnly):
    """Walked back through twice, it gives half of the truth."""

    @staticmethod
    def backward(ctx, given):
        return (0.5 * given + 0.5 * given.detach()) * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)


@pytest.mark.parametrize("dim", [40, 1100])
@pytest.mark.parametrize(
    ("tanh", "route"), [(BackwardOnly, ""), (OnceDifferentiable, " of the transpose"), (CutBackward, " of the transpose"), (HalfCutBackward, " of the transpose")]
)
def test_operations_without_forward_mode(tanh, route, dim, generator):
    w = torch.zeros(dim, dim, dtype=F64)
    w[:40, :40] = 0.9 * normal(40, 40, generator=generator) / 40**0.5
    z = {"z": 0.3 * normal(2, dim, generator=generator)}
    exact = al.spectrum(undriven(lambda z: torch.tanh(z @ w.T)), z, k=4)
    found = al.spectrum(undriven(lambda z: tanh.apply(z @ w.T)), z, k=4)
    assert (found.eigenvalues - exact.eigenvalues).abs().max() < EXACT
    assert (found.condition / exact.condition - 1).abs().max() < 1e-4
    assert found.verdict == exact.verdict
    assert found.method == ("dense" if dim == 40 else "krylov-schur") + route


def test_an_operation_without_any_derivative_is_refused():
    with pytest.raises(ValueError, match=r"an operation of it cannot be differentiated in forward mode, nor twice in reverse mode.*give it a `jvp`"):
        al.spectrum(undriven(lambda z: NoBackward.apply(0.5 * z)), origin(3), k=1)


@pytest.mark.parametrize("kernel", [None, SDPBackend.FLASH_ATTENTION])
def test_fused_attention(kernel, generator):
    w = normal(3, 8, 8, generator=generator) / 8**0.5

    def attend(z):
        q, k, v = ((z @ one)[:, None] for one in w)
        if kernel is None:
            return functional.scaled_dot_product_attention(q, k, v)[:, 0]
        with sdpa_kernel(kernel):
            return functional.scaled_dot_product_attention(q, k, v)[:, 0]

    def plain(z):
        q, k, v = (z @ one for one in w)
        return torch.softmax(q @ k.mT / 8**0.5, dim=2) @ v

    z = {"z": normal(2, 5, 8, generator=generator)}
    exact = al.spectrum(undriven(plain), z, k=4)
    found = al.spectrum(undriven(attend), z, k=4)
    assert (found.eigenvalues - exact.eigenvalues).abs().max() < EXACT
    assert found.method == ("dense" if kernel is None else "dense of the transpose")


def test_schur_vectors_span_what_the_matrix_maps_into_itself(generator):
    for m, kept in ((24, 10), (25, 11), (9, 7)):
        a = normal(m, m, generator=generator)
        q = leading_schur(a, kept=kept, order=al.by_modulus)
        assert (q.T @ q - torch.eye(kept, dtype=F64)).abs().max() < 1e-12
        assert (a @ q - q @ (q.T @ a @ q)).abs().max() < 1e-11
        values = torch.linalg.eigvals(a)
        inner = torch.linalg.eigvals(q.T @ a @ q).abs().sort(descending=True).values
        assert (inner[: kept - 1] - values.abs().sort(descending=True).values[: kept - 1]).abs().max() < 1e-10


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_a_leading_eigenvalue_that_the_other_side_alone_found_is_a_disagreement(kind):
    a = torch.diag(torch.tensor([1.5, 0.5, 0.4, 0.3], dtype=torch.float64))
    one = torch.ones(1, dtype=torch.int64)

    def side(*places):
        values, vectors = a.diagonal()[list(places)][None], torch.eye(4, dtype=torch.float64)[list(places)][None]
        return Side(values.to(torch.complex128), vectors.to(torch.complex128), torch.zeros_like(values), torch.tensor([1.5], dtype=torch.float64), one, one == 1)

    def agreed(right, left):
        return bool(assemble(lambda v, at: v @ a, lambda v, at: v @ a, kind, right, left, by_modulus).agreed)

    assert agreed(side(0, 1), side(0, 1, 2))
    assert not agreed(side(1, 2), side(0, 1, 2))
