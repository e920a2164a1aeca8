"""Spectra in closed form, by two routes, under permutation, and against the recorded ones of the official model."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attractorlab import trees
from attractorlab.dynamics.fixed_points import find_fixed_points
from attractorlab.dynamics.krylov_schur import by_krylov_schur
from attractorlab.dynamics.modes import leading
from attractorlab.dynamics.spectrum import by_dense, dense_jacobian, leading_modes, spectrum
from attractorlab.maps import LatentMap, strobe
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.testing import toys
from attractorlab.types import Instance

REFERENCE = Path(os.environ.get("SHARED_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
METHODS = pytest.mark.parametrize("method", [by_dense, by_krylov_schur])
ROUTES = 1e-8  # Arnoldi stops at a residual of 1e-9 of the norm; conditions here are below 10


def undriven(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def matrix_map(a):
    return undriven(lambda z: z @ a.T)


def origin(dim, points=1):
    return {"z": torch.zeros(points, dim, dtype=torch.float64)}


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def turned(a, generator):
    """`a` in another orthonormal basis."""
    q = torch.linalg.qr(normal(*a.shape, generator=generator))[0]
    return q @ a @ q.T


def led(values, k):
    return values.gather(1, leading(values))[:, :k]


def network(dim, generator, gain=0.8):
    weight = gain * normal(dim, dim, generator=generator) / dim**0.5
    return undriven(lambda z: torch.tanh(z @ weight.T)), weight


def tiny_eqr(rows, mixer="mlp", dtype=torch.float64):
    config = EqRConfig("tiny", 6, 5, width=8, blocks=1, heads=2, mixer=mixer)
    model = EqR(config, generator=torch.Generator().manual_seed(0)).to(dtype)
    inputs = torch.randint(0, 5, (rows, 6), generator=torch.Generator().manual_seed(1))
    f = model.bind(Instance(inputs, None, ("",) * rows, "tiny", None))
    return f, model.start(f.drive, generator=torch.Generator().manual_seed(2))


@METHODS
def test_a_complex_leading_pair_comes_with_its_upper_half_first(method, generator):
    a = torch.zeros(50, 50, dtype=torch.float64)
    a[:2, :2] = torch.tensor([[0.6, -0.7], [0.7, 0.6]], dtype=torch.float64)
    a[2:, 2:] = torch.diag(torch.linspace(-0.5, 0.5, 48, dtype=torch.float64))
    found = spectrum(matrix_map(turned(a, generator)), origin(50), k=3, method=method)
    assert (found.eigenvalues[0] - torch.tensor([0.6 + 0.7j, 0.6 - 0.7j, 0.5], dtype=torch.complex128)).abs().max() < 1e-10
    assert found.radius.item() == pytest.approx(0.85**0.5)
    assert found.verdict == ("stable",) and found.condition.max() < 1 + 1e-6
    assert found.clock == "tick" and found.products > 0


@METHODS
def test_a_cut_through_a_pair_keeps_the_upper_half(method, generator):
    a = torch.zeros(30, 30, dtype=torch.float64)
    a[:2, :2] = torch.tensor([[0.6, -0.7], [0.7, 0.6]], dtype=torch.float64)
    found = spectrum(matrix_map(turned(a, generator)), origin(30), k=1, method=method)
    assert found.eigenvalues.shape == (1, 1)
    assert (found.eigenvalues - (0.6 + 0.7j)).abs().max() < 1e-12
    assert found.defect.max() < 1e-12 and found.condition.max() < 1 + 1e-6


@pytest.mark.parametrize(("dim", "method"), [(2, by_dense), (2, by_krylov_schur), (50, by_dense), (50, by_krylov_schur), (10_000, None)])
def test_attractors_of_separable_tanh_have_one_multiplier_many_times(dim, method):
    toy = toys.separable_tanh(1.5, dim)
    k = min(4, dim)
    found = spectrum(toy.map, trees.take(toy.fixed_points, slice(0, 2)), k=k, method=method)
    assert (found.eigenvalues - 0.394313025).abs().max() < 1e-8
    assert found.verdict == ("stable", "stable")
    assert (found.condition - 1).abs().max() < 1e-6  # normal, although its eigenspace is larger than k
    assert found.method == ("krylov-schur" if method is None else method.__name__.removeprefix("by_").replace("_", "-"))


def test_a_saddle_counts_its_unstable_directions():
    toy = toys.separable_tanh(1.5, 6)
    saddle = toy.fixed_points["z"][0].clone()
    saddle[[1, 4]] = 0
    found = spectrum(toy.map, {"z": torch.stack([saddle, toy.fixed_points["z"][-1]])}, k=4)
    assert found.verdict == ("unstable(2)", "unstable(4+)")
    assert (found.eigenvalues[0, :2] - 1.5).abs().max() < 1e-12


@pytest.mark.parametrize(("dim", "method"), [(50, by_dense), (50, by_krylov_schur), (10_000, None)])
def test_power_iteration_has_the_ratios_of_its_values_and_one_zero(dim, method, generator):
    toy = toys.power_iteration([2.0, 1.5, -1.2, 0.9, 0.5], dim, generator=generator)
    z = trees.take(toy.fixed_points, slice(0, 4))
    found = spectrum(toy.map, z, k=6, method=method)
    assert (found.eigenvalues - toy.eigenvalues[:4, :6]).abs().max() < 1e-9
    assert found.verdict == ("stable", "stable", "unstable(1)", "unstable(1)")


@METHODS
def test_a_ring_is_marginal_and_its_double_eigenvalues_show_twice(method):
    toy = toys.ring(120, 0.2)
    found = spectrum(toy.map, trees.take(toy.fixed_points, slice(0, 2)), k=7, method=method)
    assert (found.eigenvalues - toy.eigenvalues[:2, :7]).abs().max() < 1e-9
    assert found.verdict == ("marginal", "marginal")


def test_krylov_schur_finds_both_copies_of_a_double_eigenvalue(generator):
    # A space grown from a single vector settles on 0.9, 0.8, 0.7 here.
    diagonal = 0.4 * (2 * torch.rand(2000, generator=generator, dtype=torch.float64) - 1)
    diagonal[:4] = torch.tensor([0.9, 0.9, 0.8, 0.7])
    found = spectrum(undriven(lambda z: diagonal * z), origin(2000), k=3)
    assert (found.eigenvalues[0] - diagonal[:3]).abs().max() < 1e-9
    assert (found.condition - 1).abs().max() < 1e-6
    assert found.method == "krylov-schur" and found.products < 170


@METHODS
def test_a_non_normal_matrix_shows_in_its_condition(method, generator):
    a = torch.tensor([[0.5, 10.0], [0.0, 0.25]], dtype=torch.float64)
    found = spectrum(matrix_map(turned(a, generator)), origin(2), k=2, method=method)
    assert (found.eigenvalues.real[0] - torch.tensor([0.5, 0.25])).abs().max() < 1e-12
    # 1/|w*v| of the triangular matrix, by hand.
    assert (found.condition - (1 + 40.0**2) ** 0.5).abs().max() < 1e-6
    assert found.verdict == ("stable",)


@METHODS
def test_a_double_root_of_one_vector_claims_no_more_than_it_knows(method):
    found = spectrum(matrix_map(torch.tensor([[0.5, 10.0], [0.0, 0.5]], dtype=torch.float64)), origin(2), k=2, method=method)
    assert (found.eigenvalues - 0.5).abs().max() < 1e-6
    assert found.condition.min() > 1e6
    assert found.verdict[0] in ("stable", "ill-conditioned")


@METHODS
def test_a_large_jordan_block_is_ill_conditioned(method, generator):
    block = 0.9 * torch.eye(30, dtype=torch.float64) + torch.diag(torch.ones(29, dtype=torch.float64), 1)
    jordan = spectrum(matrix_map(turned(block, generator)), origin(30), k=4, method=method)
    assert jordan.radius.item() > 1.1  # wrong: the only eigenvalue is 0.9
    assert jordan.verdict == ("ill-conditioned",)


def chain(n, step, coupling):
    """A bidiagonal matrix with the eigenvalues 0.9, 0.9 − step, ..., and their conditions, by hand."""
    values = [0.9 - step * i for i in range(n)]

    def length(i, way):
        entry, square, j = 1.0, 1.0, i + way
        while 0 <= j < n:
            entry *= coupling / (values[i] - values[j])
            square, j = square + entry**2, j + way
        return square**0.5

    a = torch.diag(torch.tensor(values, dtype=torch.float64)) + coupling * torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    return a, torch.tensor([length(i, -1) * length(i, 1) for i in range(n)])


def test_conditions_are_true_where_the_eigenvectors_nearly_depend_on_each_other(generator):
    a, condition = chain(24, 0.03, 0.5)
    found = spectrum(matrix_map(turned(a, generator)), origin(24), k=4, method=by_dense)
    assert (found.condition[0] / condition[:4] - 1).abs().max() < 1e-2  # up to 3e9, of vectors whose matrix has no inverse in float64
    assert ((found.eigenvalues[0] - a.diagonal()[:4]).abs() < found.error[0]).all()


def test_eigenvalues_that_float64_cannot_resolve_are_ill_conditioned(generator):
    a, condition = chain(30, 0.03, 1.0)
    assert condition[0] > 1e13
    found = spectrum(matrix_map(turned(a, generator)), origin(30), k=4, method=by_dense)
    assert (found.eigenvalues[0] - a.diagonal()[:4]).abs().max() > 1e-2
    assert found.verdict == ("ill-conditioned",)


def test_an_unstable_point_with_modes_that_nothing_is_known_of_may_have_more(generator):
    block = 0.95 * torch.eye(8, dtype=torch.float64) + 0.3 * torch.diag(torch.ones(7, dtype=torch.float64), 1)
    both = torch.block_diag(torch.tensor([[5.0]], dtype=torch.float64), block)
    found = spectrum(matrix_map(turned(both, generator)), origin(9), k=4)
    assert found.error[0, 1:].min() > 1e-3
    assert found.verdict == ("unstable(1+)",)


@METHODS
def test_defective_blocks_of_exact_zeros_do_not_spoil_the_leading_ones(method, generator):
    a = torch.zeros(40, 40, dtype=torch.float64)
    a[0, 0], a[1, 1] = 0.8, -0.3
    a[range(2, 11), range(3, 12)] = 1.0  # one nilpotent chain of ten, whose zeros rounding scatters over a disc
    a[range(20, 38, 3), range(21, 39, 3)] = 1.0
    found = spectrum(matrix_map(turned(a, generator)), origin(40), k=6, method=method)
    assert (found.eigenvalues[0, :2] - torch.tensor([0.8, -0.3], dtype=torch.float64)).abs().max() < 1e-9
    assert 1e-3 < found.eigenvalues[0, 2:].abs().max() < 0.1 and found.condition[0, 2:].max() > 1e8
    # The dense route reads left vectors from the inverse of all right ones, which the chain makes nearly singular.
    assert found.condition[0, :2].max() < 1.01
    assert found.verdict == ("stable",)


@METHODS
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_fewer_eigenvalues_than_asked_for_are_filled_up_with_measured_zeros(method, rank, generator):
    a = torch.zeros(60, 60, dtype=torch.float64)
    a[range(rank), range(rank)] = torch.linspace(0.9, 0.4, rank, dtype=torch.float64)
    found = spectrum(matrix_map(turned(a, generator)), origin(60), k=8, method=method)
    exact = torch.cat([torch.linspace(0.9, 0.4, rank, dtype=torch.float64), torch.zeros(8 - rank, dtype=torch.float64)])
    assert (found.eigenvalues[0] - exact).abs().max() < 1e-9
    assert found.defect.max() < 1e-9 and found.defect.isfinite().all()
    assert found.verdict == ("stable",)


@METHODS
def test_the_defect_and_the_vectors_are_true(method, generator):
    f, weight = network(80, generator)
    x = {"z": 0.3 * normal(2, 80, generator=generator)}
    modes = leading_modes(f, x, k=5, method=method)
    jacobian = dense_jacobian(f, x).to(torch.complex128)
    assert (jacobian - (1 - torch.tanh(x["z"] @ weight.T) ** 2)[:, :, None] * weight).abs().max() < 1e-13
    right = torch.einsum("pij,pmj->pmi", jacobian, modes.right) - modes.eigenvalues[..., None] * modes.right
    left = torch.einsum("pmi,pij->pmj", modes.left.conj(), jacobian) - modes.eigenvalues[..., None] * modes.left.conj()
    assert (right.norm(dim=2) - modes.defect).abs().max() < 1e-13
    assert left.norm(dim=2).max() < 1e-6
    assert (modes.right.norm(dim=2) - 1).abs().max() < 1e-10 and (modes.left.norm(dim=2) - 1).abs().max() < 1e-10
    overlap = (modes.left.conj() * modes.right).sum(2).abs()
    assert (1 / overlap - modes.condition).abs().max() < 1e-6


def test_krylov_schur_dense_and_numpy_agree_on_a_random_network(generator):
    f, weight = network(600, generator)
    x = {"z": 0.1 * normal(1, 600, generator=generator)}
    dense, krylov = spectrum(f, x, k=8), spectrum(f, x, k=8, method=by_krylov_schur)
    assert (dense.method, krylov.method) == ("dense", "krylov-schur")
    exact = torch.linalg.eigvals((1 - torch.tanh(x["z"] @ weight.T) ** 2)[:, :, None] * weight)
    assert (dense.eigenvalues - led(exact, 8)).abs().max() < 1e-11
    assert (krylov.eigenvalues - dense.eigenvalues).abs().max() < ROUTES
    assert (krylov.condition / dense.condition - 1).abs().max() < 1e-5
    assert krylov.verdict == dense.verdict


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_krylov_schur_and_dense_agree_on_a_reasoner(mixer):
    f, z = tiny_eqr(3, mixer)
    dense, krylov = spectrum(f, z, k=6, method=by_dense), spectrum(f, z, k=6, method=by_krylov_schur)
    assert (krylov.eigenvalues - dense.eigenvalues).abs().max() < ROUTES
    assert (krylov.condition / dense.condition - 1).abs().max() < 1e-4
    assert dense.origin == f.origin and dense.clock == "recursion"


def test_a_strobed_spectrum_is_the_cube_at_a_fixed_point(generator):
    f, _ = network(30, generator, gain=0.7)
    z = find_fixed_points(f, {"z": 0.1 * normal(1, 30, generator=generator)}, tol=1e-13, max_steps=30).require().states
    once, thrice = spectrum(f, z, k=30), spectrum(strobe(f, 3), z, k=30)
    assert (thrice.eigenvalues - led(once.eigenvalues**3, 30)).abs().max() < 1e-10
    assert thrice.clock == "3 x tick"


@METHODS
def test_points_may_be_permuted_or_split(method):
    f, z = tiny_eqr(5)
    order = torch.tensor([3, 1, 4, 0, 2])
    whole = spectrum(f, z, k=5, method=method)
    again = spectrum(f.take(order), trees.take(z, order), k=5, method=method)
    assert (again.eigenvalues - whole.eigenvalues[order]).abs().max() < 1e-9
    assert again.verdict == tuple(whole.verdict[i] for i in order.tolist())
    for i in range(5):
        single = spectrum(f.take([i]), trees.take(z, slice(i, i + 1)), k=5, method=method)
        assert (single.eigenvalues[0] - whole.eigenvalues[i]).abs().max() < 1e-9


@METHODS
def test_a_point_of_nan_leaves_the_others_untouched(method):
    f, z = tiny_eqr(3)
    z = {name: leaf.clone() for name, leaf in z.items()}
    clean = spectrum(f.take([0, 2]), trees.take(z, torch.tensor([0, 2])), k=4, method=method)
    z["z_L"][1, 0, 0] = torch.nan
    found = spectrum(f, z, k=4, method=method)
    assert found.eigenvalues[1].isnan().all() and found.condition[1].isnan().all() and found.defect[1].isnan().all()
    assert found.verdict[1] == "ill-conditioned" and found.radius[1].isnan()
    assert (found.eigenvalues[[0, 2]] - clean.eigenvalues).abs().max() < 1e-10


@METHODS
def test_float32_agrees_with_float64_within_its_own_error(method):
    (f, z), (narrow, z32) = tiny_eqr(2), tiny_eqr(2, dtype=torch.float32)
    exact, found = spectrum(f, z, k=4, method=method), spectrum(narrow, z32, k=4, method=method)
    assert found.eigenvalues.dtype == torch.complex128
    assert (found.eigenvalues - exact.eigenvalues).abs().max() < 1e-3
    assert 1e-9 < found.defect.max() < 1e-3


def test_an_eigenvalue_within_its_error_of_one_is_marginal(generator):
    def verdict(value):
        a = torch.diag(torch.tensor([value, 0.5, 0.1], dtype=torch.float64))
        return spectrum(matrix_map(turned(a, generator)), origin(3), k=2).verdict[0]

    assert [verdict(value) for value in (0.999, 0.99995, -1.0, 1.00005, 1.001)] == ["stable", "marginal", "marginal", "marginal", "unstable(1)"]


def test_misuse_is_refused_in_three_sentences():
    f = matrix_map(torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"`spectrum` got k=4 for states of 3 numbers. A state of n numbers .* Use k from 1 to 3"):
        spectrum(f, origin(3), k=4)
    with pytest.raises(ValueError, match=r"`spectrum` got k=0"):
        spectrum(f, origin(3), k=0)
    with pytest.raises(ValueError, match=r"`spectrum` got states in bfloat16. Eigenvalues need float64 or float32. Cast both"):
        spectrum(f, trees.to(origin(3), torch.bfloat16), k=1)
    with pytest.raises(ValueError, match=r"`spectrum` got states in float32 for a map in float64.*Cast both"):
        spectrum(undriven(lambda z: z.double()), trees.to(origin(3), torch.float32), k=1)
    driven, z = tiny_eqr(3)
    with pytest.raises(ValueError, match=r"A state of 2 rows met a map of 3 rows"):
        spectrum(driven, trees.take(z, slice(0, 2)), k=1)


@pytest.fixture
def recorded():
    folder = REFERENCE / "eqr_mlp"
    if not folder.exists():
        pytest.skip(f"no recorded spectra of the official model at {REFERENCE}; set SHARED_REFERENCE to their folder")
    [path] = (folder / "checkpoints").glob("*.pth")
    shadow = torch.load(path, weights_only=True)["ema"]["shadow"]
    model = EqR(EqRConfig("sudoku-9", 81, 11, width=32, blocks=2, mixer="mlp", H_cycles=3, L_cycles=6), generator=torch.Generator().manual_seed(0))
    model.load_state_dict({name.removeprefix("_orig_mod.model.inner."): tensor for name, tensor in shadow.items()}, strict=False)
    expected, jacobian = load_file(folder / "expected.safetensors"), load_file(folder / "jacobian.safetensors")
    inputs = expected["inputs"][:2]
    f = strobe(model.to(torch.float64).bind(Instance(inputs, None, ("",) * 2, "sudoku-9", None)), 3)
    return f, {"z_H": expected["z_H"][5, :2].double(), "z_L": expected["z_L"][5, :2].double()}, jacobian


def test_the_jvp_matches_the_recorded_one_to_twelve_digits(recorded):
    f, z, jacobian = recorded
    pushed = f.jvp(z, {"z_H": jacobian["direction_H"], "z_L": jacobian["direction_L"]})
    assert (pushed["z_H"] - jacobian["jvp_H"]).abs().max() < 1e-12
    assert (pushed["z_L"] - jacobian["jvp_L"]).abs().max() < 1e-12


@pytest.mark.slow
def test_the_leading_eigenvalues_match_the_recorded_ones(recorded):
    f, z, jacobian = recorded
    found = spectrum(f.take([0]), trees.take(z, slice(0, 1)), k=12)
    exact = torch.complex(jacobian["eigenvalues_real"], jacobian["eigenvalues_imag"])[:1]
    assert (found.eigenvalues - exact).abs().max() < 1e-6
    assert (found.condition / jacobian["eigenvalue_condition"][:1] - 1).abs().max() < 1e-4
    assert found.verdict == ("unstable(12+)",)
