"""Non-normality against closed forms, the dense route against the one by products, and what is no number."""

import math

import pytest
import torch

from attractorlab.dynamics import non_normality as room
from attractorlab.dynamics.non_normality import kreiss, non_normality, numerical_radius
from attractorlab.dynamics.pseudospectra import pseudospectral_radius
from attractorlab.maps import LatentMap

F64 = torch.float64


def of(*matrices):
    """The map z <- A z with a matrix for each row, and the states 0."""
    a = torch.stack(matrices)
    n = len(a)
    f = LatentMap(lambda z, x: {"z": torch.einsum("rij,rj->ri", x["a"], z["z"])}, {"a": a}, instance=torch.arange(n), start=torch.zeros(n).long())
    return f, {"z": torch.zeros(n, a.shape[2], dtype=a.dtype)}


def test_a_jordan_block_of_two():
    found = non_normality(*of(torch.tensor([[0.5, 10.0], [0.0, 0.5]], dtype=F64)), ticks=4)
    # ‖J‖₂ and the Kreiss constant 5.0500 at |z| = 1.5105 by hand; Jᵏ = [[2⁻ᵏ, 20 k 2⁻ᵏ], [0, 2⁻ᵏ]].
    assert found.sigma_max.item() == pytest.approx(10.024938, abs=1e-6) and found.henrici.item() == pytest.approx(10)
    assert found.kreiss.item() == pytest.approx(5.0500, abs=1e-4) and found.numerical_radius.item() == pytest.approx(5.5)
    exact = [1.0, *[torch.linalg.matrix_norm(torch.tensor([[1.0, 20.0 * k], [0.0, 1.0]], dtype=F64), 2).item() / 2**k for k in range(1, 5)]]
    assert found.transient_growth[0].tolist() == pytest.approx(exact) and not found.bounds


def test_a_nilpotent_shift():
    shift = 2 * torch.diag(torch.ones(7, dtype=F64), 1)
    found = non_normality(*of(shift), ticks=8)
    assert found.transient_growth[0].tolist() == pytest.approx([2.0**k for k in range(8)] + [0.0], abs=1e-12)
    assert found.numerical_radius.item() == pytest.approx(2 * math.cos(math.pi / 9), abs=1e-9)
    assert found.henrici.item() == pytest.approx(2 * math.sqrt(7)) and found.kreiss.item() == pytest.approx(9.413, abs=2e-3)


def test_a_normal_matrix_has_nothing_to_report(generator):
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=F64))[0]
    values = torch.tensor([0.9, -0.7, 0.5, 0.3, 0.2, 0.1], dtype=F64)
    found = non_normality(*of(basis * values @ basis.T), ticks=3)
    assert found.sigma_max.item() == pytest.approx(0.9) and found.numerical_radius.item() == pytest.approx(0.9)
    assert found.henrici.item() < 1e-7 and found.kreiss.item() == pytest.approx(1, abs=1e-6)
    assert found.transient_growth[0].tolist() == pytest.approx([1, 0.9, 0.81, 0.729]) and found.defect.item() < 1e-14


def test_the_two_routes_agree(generator, monkeypatch):
    matrices = [torch.randn(60, 60, generator=generator, dtype=F64) / 12 for _ in range(3)]
    d = {"z": torch.randn(3, 60, generator=generator, dtype=F64)}
    dense = non_normality(*of(*matrices), ticks=3, direction=d)
    monkeypatch.setattr(room, "DENSE_LIMIT", 1)
    free = non_normality(*of(*matrices), ticks=3, direction=d)
    assert torch.allclose(dense.transient_growth, free.transient_growth, rtol=1e-6) and (free.defect < 1e-6).all()
    assert torch.allclose(dense.natural_gain, free.natural_gain)
    # Read off a part of the space, these are lower bounds, and not far ones.
    for name in ("numerical_radius", "kreiss"):
        low, exact = getattr(free, name), getattr(dense, name)
        assert (low <= exact * (1 + 1e-9)).all() and (low > 0.8 * exact).all(), name
    assert free.bounds and free.henrici.isnan().all() and dense.products == 3 * 60 + 3


def test_the_natural_gain_is_that_of_the_direction():
    f, z = of(torch.diag(torch.tensor([3.0, 0.25], dtype=F64)), torch.eye(2, dtype=F64))
    found = non_normality(f, z, ticks=1, direction={"z": torch.tensor([[0.0, 7.0], [1.0, 1.0]], dtype=F64)})
    assert found.natural_gain.tolist() == pytest.approx([0.25, 1.0])
    assert non_normality(f, z, ticks=1).natural_gain.isnan().all()


def test_kreiss_and_growth_obey_the_theorem(generator):
    a = torch.randn(20, 8, 8, generator=generator, dtype=F64)
    a = torch.triu(a, 1) + torch.diag_embed(0.9 * torch.tanh(torch.diagonal(a, dim1=1, dim2=2)))
    found = non_normality(*of(*a), ticks=400)
    top = found.transient_growth.amax(1)
    assert (found.kreiss <= top * (1 + 1e-9)).all() and (top <= math.e * 8 * found.kreiss * 1.001).all()
    assert (found.numerical_radius <= found.sigma_max * (1 + 1e-12)).all() and (found.sigma_max <= 2 * found.numerical_radius * (1 + 1e-9)).all()


def test_an_eigenvalue_outside_the_circle_has_no_kreiss_constant():
    assert kreiss(torch.tensor([[[1.2, 5.0], [0.0, 0.1]]], dtype=torch.complex128)).isnan().all()
    assert numerical_radius(torch.tensor([[[1.2, 0.0], [0.0, -2.0]]], dtype=torch.complex128)).item() == pytest.approx(2.0)


@pytest.mark.parametrize("limit", [1000, 1])
def test_a_jacobian_that_is_no_number_gives_nan_and_leaves_the_others(limit, monkeypatch):
    monkeypatch.setattr(room, "DENSE_LIMIT", limit)
    good = 0.5 * torch.eye(50, dtype=F64)
    found = non_normality(*of(good, torch.full_like(good, torch.nan), good), ticks=2)
    assert found.sigma_max.isnan().tolist() == [False, True, False] and found.kreiss.isnan().tolist() == [False, True, False]
    assert found.pseudospectral_radius[1].isnan().all() and found.pseudospectral_radius[0, 2].item() == pytest.approx(0.51, rel=1e-9)
    assert found.sigma_max[0].item() == pytest.approx(0.5) and found.transient_growth[2].tolist() == pytest.approx([1, 0.5, 0.25])


def test_a_disturbed_jordan_block_by_hand():
    # σ(zI − A) of [[λ, c], [0, λ]] with d = |z − λ|: their product is d², the sum of their squares 2d² + c². The smaller is ε where d² = ε² + ε|c|.
    pairs = [(0.5, 10.0), (-0.9, 1.0), (0.0, 1e3), (0.3, 0.0)]
    matrices = [torch.tensor([[value, c], [0.0, value]], dtype=F64) for value, c in pairs]
    found = non_normality(*of(*matrices), ticks=1, epsilons=(1e-6, 1e-2, 1.0))
    exact = torch.tensor([[abs(value) + math.sqrt(e * e + e * c) for e in found.epsilons] for value, c in pairs], dtype=F64)
    assert torch.allclose(found.pseudospectral_radius, exact, rtol=1e-9) and not found.pseudospectral_bound
    turned = pseudospectral_radius(1j * torch.stack(matrices).to(torch.complex128), 1e-2)
    assert torch.allclose(turned, exact[:, 1], rtol=1e-9)


def test_a_normal_matrix_is_disturbed_by_epsilon_and_no_more(generator):
    for n in (1, 3, 24):
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.complex128))[0]
        values = torch.randn(2, n, generator=generator, dtype=torch.complex128)
        matrix = basis * values[:, None] @ basis.mH
        for epsilon in (1e-6, 0.5):
            assert torch.allclose(pseudospectral_radius(matrix, epsilon), values.abs().amax(1) + epsilon, rtol=1e-9)
    ring = torch.eye(9, dtype=torch.complex128).roll(1, 0)[None]  # every angle is as good as any other nine
    assert pseudospectral_radius(ring, 0.1).item() == pytest.approx(1.1, rel=1e-9)
    assert pseudospectral_radius(0 * ring, 0.1).item() == pytest.approx(0.1, rel=1e-9)


def test_no_point_of_a_fine_grid_lies_further_out_and_one_lies_as_far(generator):
    a = torch.randn(1, 6, 6, generator=generator, dtype=torch.complex128)
    a = torch.cat([a, a.triu(), 2 * torch.diag_embed(torch.ones(1, 5, dtype=torch.complex128), 1)])
    share, angle = torch.linspace(0.8, 1.2, 101, dtype=F64), torch.linspace(0, 2 * math.pi, 181, dtype=F64)
    for epsilon in (0.3, 1.0):
        found = pseudospectral_radius(a, epsilon)
        for matrix, radius in zip(a, found, strict=True):
            z = torch.polar((radius * share)[:, None].expand(-1, 181), angle.expand(101, -1)).flatten()
            near = torch.linalg.svdvals(z[:, None, None] * torch.eye(6, dtype=z.dtype) - matrix)[:, -1] <= epsilon
            assert 0 <= radius - z[near].abs().amax() + 1e-9 < 0.03


def test_the_worst_of_many_disturbances_is_a_bound_from_below(generator):
    a = torch.triu(torch.randn(5, 5, generator=generator, dtype=F64)) / 2
    e = torch.randn(2000, 5, 5, generator=generator, dtype=torch.complex128)
    u, _, vh = torch.linalg.svd(e)
    worst = torch.linalg.eigvals(a + 1e-2 * (u[:, :, :1] @ vh[:, :1])).abs().max()
    found = pseudospectral_radius(a.to(torch.complex128)[None], 1e-2).item()
    assert torch.linalg.eigvals(a).abs().max() < worst <= found < worst + 0.05


def toeplitz(n):
    """Eigenvalues ½cos(kπ/(n + 1)), so ill-conditioned that a space finds others instead."""
    return torch.diag(torch.ones(n - 1, dtype=F64), 1) + torch.diag(torch.full((n - 1,), 1 / 16, dtype=F64), -1)


def test_where_eigenvalues_are_ill_conditioned_a_disturbance_of_rounding_size_moves_them_far(generator):
    found = non_normality(*of(toeplitz(60)), ticks=1, epsilons=(1e-10, 1e-6))
    tiny, small = found.pseudospectral_radius[0].tolist()
    assert 0.75 < tiny < small < 17 / 16  # the radius is 0.4993, and the pseudospectra of all sizes stay inside the symbol's ellipse
    # A disturbance in one corner shows it: [n−1, 0] entry, the smallest that moves an eigenvalue so far.
    corner = toeplitz(60)
    corner[-1, 0] = 1e-10
    assert 0.7 < torch.linalg.eigvals(corner).abs().max().item() <= tiny * (1 + 1e-9)


@pytest.mark.parametrize("limit", ["DENSE_LIMIT", "CRISS_CROSS"])
def test_a_pseudospectral_radius_from_a_krylov_space_is_a_lower_bound(limit, generator, monkeypatch):
    a = torch.randn(2, 60, 60, generator=generator, dtype=F64) / math.sqrt(60) + torch.diag(torch.tensor([2.0] + [0.0] * 59, dtype=F64))
    exact = torch.stack([pseudospectral_radius(a.to(torch.complex128), e) for e in (1e-4, 1e-1)], 1)
    monkeypatch.setattr(room, limit, 1)
    found = non_normality(*of(*a), ticks=1, epsilons=(1e-4, 1e-1))
    assert found.pseudospectral_bound and found.bounds == (limit == "DENSE_LIMIT")
    assert limit == "DENSE_LIMIT" or (found.pseudospectral_radius >= torch.linalg.eigvals(a).abs().amax(1)[:, None] + torch.tensor([1e-4, 1e-1]) - 1e-9).all()
    assert (found.pseudospectral_radius <= exact * (1 + 1e-9)).all() and (found.pseudospectral_radius > 0.99 * exact).all()


def test_bounds_hold_where_eigenvectors_could_not_be_found(monkeypatch):
    # Of a Jordan block, and nearly of the Toeplitz matrix, all computed eigenvectors are one: what leads out of their span counts.
    matrices = [0.9 * torch.eye(60, dtype=F64) + torch.diag(torch.full((59,), 0.3, dtype=F64), 1), toeplitz(60)]
    exact = non_normality(*of(*matrices), ticks=1, epsilons=(1e-8, 1e-2))
    monkeypatch.setattr(room, "CRISS_CROSS", 1)
    monkeypatch.setattr(room, "LEAD", 20)
    bound = non_normality(*of(*matrices), ticks=1, epsilons=(1e-8, 1e-2))
    low = bound.pseudospectral_radius.nan_to_num(nan=0.0)
    assert (low <= exact.pseudospectral_radius * (1 + 1e-9)).all() and (low[:, 1] > 0.5 * exact.pseudospectral_radius[:, 1]).all()
    assert (bound.kreiss <= exact.kreiss * (1 + 1e-6)).all() and (bound.kreiss >= 1).all() and not bound.bounds


def test_a_space_that_saw_no_point_so_near_says_so(generator, monkeypatch):
    monkeypatch.setattr(room, "DENSE_LIMIT", 1)
    a = torch.randn(1, 300, 300, generator=generator, dtype=F64) / math.sqrt(300)
    found = non_normality(*of(*a), ticks=1, epsilons=(1e-12,))
    assert found.pseudospectral_radius.isnan().all()


def test_misuse_is_refused():
    f, z = of(torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match=r"`non_normality` got ticks=0.*1 tick or more.*Use ticks=8"):
        non_normality(f, z, ticks=0)
    with pytest.raises(ValueError, match=r"got epsilons=\(0.1, 0.0\). A disturbance has a size above 0.*Use epsilons"):
        non_normality(f, z, ticks=1, epsilons=(0.1, 0.0))
    assert non_normality(f, z, ticks=1, epsilons=()).pseudospectral_radius.shape == (1, 0)
    with pytest.raises(ValueError, match=r"got states in float16.*Cast both"):
        non_normality(f, {"z": z["z"].half()}, ticks=1)


def test_slow_modes_between_the_points_of_the_grid_are_found():
    def turn(radius, angle):
        c, s = radius * math.cos(angle), radius * math.sin(angle)
        return torch.tensor([[c, -s], [s, c]], dtype=F64)

    slow = torch.zeros(4, 4, dtype=F64)
    slow[:2, :2] = slow[2:, 2:] = turn(1 - 1e-5, 1.0)
    slow[:2, 2:] = turn(0.3, 1.0)
    found = non_normality(*of(slow), ticks=1)
    # ‖Jᵏ‖ grows like 0.3 k (1 − 1e-5)ᵏ, to about 11,036; the resolvent along the modes is 0.3/ε² at a distance of ε: K is 0.3/(4·1e-5) = 7,500.
    assert 7000 < found.kreiss.item() < 7600
    peak = torch.block_diag(torch.tensor([[0.9985]], dtype=F64), turn(0.9999, 7.5 * math.pi / 24))
    assert non_normality(*of(peak), ticks=1).numerical_radius.item() == pytest.approx(0.9999, abs=1e-9)


def test_what_is_read_off_a_krylov_space_is_a_lower_bound(generator, monkeypatch):
    basis = torch.linalg.qr(torch.randn(99, 99, generator=generator, dtype=F64))[0]
    blocks = torch.zeros(99, 99, dtype=F64)
    blocks[:33, 33:66], blocks[33:66, 66:] = torch.randn(2, 33, 33, generator=generator, dtype=F64)
    shift = 1.05 * torch.diag(torch.ones(98, dtype=F64), 1)
    matrices = [0.15 * basis @ blocks @ basis.T, 0.6 * basis @ blocks @ basis.T, shift]
    exact = non_normality(*of(*matrices), ticks=1, epsilons=()).kreiss
    monkeypatch.setattr(room, "DENSE_LIMIT", 1)
    bound = non_normality(*of(*matrices), ticks=1, epsilons=()).kreiss
    assert bound.isfinite().all() and (bound <= exact * (1 + 1e-6)).all(), (bound, exact)


def test_ones_on_the_circle_and_powers_beyond_numbers():
    found = non_normality(*of(torch.eye(3, dtype=F64), 1e6 * torch.eye(3, dtype=F64)), ticks=60)
    assert found.kreiss[0].item() == pytest.approx(1, abs=1e-6) and found.kreiss[1].isnan()
    assert found.transient_growth[0].tolist() == pytest.approx([1.0] * 61)
    assert found.transient_growth[1, 60] == math.inf and found.transient_growth[1, 10] == pytest.approx(1e60)


def test_a_direction_of_other_shape_is_refused(generator):
    f = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {})
    z = {"z": torch.randn(3, 4, dtype=torch.float64, generator=generator)}
    for direction in ({"z": z["z"][:1]}, {"z": torch.ones(5, 4, dtype=torch.float64)}, {"y": z["z"]}):
        with pytest.raises(ValueError, match=r"`non_normality` got a direction of .* for states of \{'z': \[3, 4\]\}\. Every row has a direction.*Pass a displacement"):
            non_normality(f, z, ticks=1, direction=direction)


def test_rounding_does_not_lift_the_kreiss_constant_of_a_rotation_above_one(generator):
    for n in (1, 2, 9, 40):
        turn = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
        found = kreiss(turn[None].to(torch.complex128)).item()
        assert math.isnan(found) or 1 <= found <= 1 + 1e-12


def test_states_that_are_constant_have_a_jacobian_of_zeros():
    for n in (3, 1_200):
        f = LatentMap(lambda z, x: {"z": torch.ones_like(z["z"])}, {})
        found = non_normality(f, {"z": torch.ones(1, n, dtype=torch.float64)}, ticks=2)
        assert found.sigma_max.tolist() == [0] and found.transient_growth.tolist() == [[1, 0, 0]]


def test_a_field_of_values_with_many_peaks_of_nearly_one_height(generator):
    # Disks about 0.9 rᵢe^{iθᵢ} of radius 0.1 rᵢ reach out to rᵢ: the farthest by 0.15 %, between the others.
    angles, reach = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.4583], dtype=F64), torch.tensor([1.0] * 6 + [1.0015], dtype=F64)
    centre, up = torch.polar(0.9 * reach, angles), torch.tensor([[0.0, 0.2], [0.0, 0.0]], dtype=F64)
    disks = torch.block_diag(*(c * torch.eye(2, dtype=F64) + r * up for c, r in zip(centre, reach, strict=True)))
    turn = torch.linalg.qr(torch.randn(14, 14, dtype=torch.complex128, generator=generator))[0]
    assert numerical_radius((turn @ disks @ turn.mH)[None]).item() == pytest.approx(1.0015, rel=2e-9)
    # The field of values of [[a, b], [0, c]] is an ellipse with the foci a and c and the minor axis |b|: for c = −a, the largest modulus is √(a² + b²/4).
    ellipse = torch.tensor([[[0.6j, 0.5], [0.0, -0.6j]]], dtype=torch.complex128)
    assert numerical_radius(ellipse).item() == pytest.approx(math.sqrt(0.36 + 0.0625), rel=2e-9)
    rows = torch.randn(5, 6, 6, dtype=torch.complex128, generator=generator)
    assert numerical_radius(rows).equal(torch.cat([numerical_radius(row[None]) for row in rows]))
