"""Densities against diagonals, random matrices and rings whose densities are known, and the estimates against the whole Jacobian."""

import math

import pytest
import torch

from attractorlab import trees
from attractorlab.dynamics import densities as room
from attractorlab.dynamics.densities import singular_density, symmetric_density
from attractorlab.maps import LatentMap
from attractorlab.statistics import students_t

F64 = torch.float64
BOTH = (singular_density, symmetric_density)


def of(*matrices):
    """The map z <- A z with a matrix for each row, and the states 0."""
    a = torch.stack(matrices)
    n = len(a)
    f = LatentMap(lambda z, x: {"z": torch.einsum("rij,rj->ri", x["a"], z["z"])}, {"a": a}, instance=torch.arange(n), start=torch.zeros(n).long())
    return f, {"z": torch.zeros(n, a.shape[2], dtype=a.dtype)}


@pytest.fixture
def by_products(monkeypatch):
    """No Jacobian is formed, however small."""
    monkeypatch.setattr(room, "DENSE_LIMIT", 0)


def spread(generator):
    return torch.randn(90, 90, generator=generator, dtype=F64) / math.sqrt(90) + torch.diag(torch.linspace(-2, 2, 90, dtype=F64))


@pytest.mark.parametrize("density", BOTH)
def test_all_values_of_a_small_state_are_there(density, generator):
    a = torch.randn(2, 6, 6, generator=generator, dtype=F64)
    found = density(*of(*a), probes=2, steps=6, generator=generator)
    values = torch.linalg.svdvals(a).flip(1) if density is singular_density else torch.linalg.eigvalsh((a + a.mT) / 2)
    assert torch.allclose(found.nodes[:, 0], values) and found.exact and found.weights.eq(1 / 6).all() and found.products == 2 * 6
    mean, error = found.average(torch.exp)
    assert torch.allclose(mean, values.exp().mean(1)) and error.eq(0).all() and found.size == 6
    assert found.kind == ("singular values" if density is singular_density else "symmetric part")


@pytest.mark.usefixtures("by_products")
@pytest.mark.parametrize("density", BOTH)
def test_the_values_of_a_diagonal_and_their_shares(density, generator):
    # Three values 2, −1 and 0 in 60, 30 and 10 places: three nodes hold all there is, further ones have weight 0.
    diagonal = torch.tensor([2.0] * 60 + [-1.0] * 30 + [0.0] * 10, dtype=F64)
    found = density(*of(torch.diag(diagonal)), probes=60, steps=5, generator=generator)
    assert not found.exact and torch.allclose(found.weights.sum(2), torch.ones(1, 60, dtype=F64))
    middle, low = (1.0, 0.0) if density is singular_density else (0.0, -1.0)
    heavy = found.nodes[found.weights > 1e-9]
    assert ((heavy[:, None] - torch.tensor([2.0, middle, low], dtype=F64)).abs().amin(1) < 1e-7).all()
    for value, share in ((2.0, 0.6), (middle, 0.3 if middle else 0.1), (low, 0.1 if not low else 0.3)):
        mean, error = found.average(lambda x, value=value: (x - value).abs().lt(1e-6).double())
        assert abs(mean.item() - share) < students_t(59, level=0.999) * error.item() < 0.05
    bins = found.histogram(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5]))[0]
    assert bins.sum().item() == pytest.approx(1) and bins[3].item() == pytest.approx(0.6, abs=0.04)
    assert torch.allclose(found.cdf(torch.tensor([-2.0, 1.9, 3.0]))[0], torch.stack([torch.zeros(()).double(), 1 - bins[3], torch.ones(()).double()]), atol=1e-12)


@pytest.mark.usefixtures("by_products")
def test_moments_are_those_of_the_jacobian_to_within_their_error(generator):
    a = spread(generator)
    s = (a + a.T) / 2
    half = students_t(29, level=0.999)
    found = singular_density(*of(a), probes=30, steps=8, generator=generator)
    for power in (1, 2, 4):  # of σ²
        mean, error = found.average(lambda x, power=power: x.pow(2 * power))
        assert abs(mean.item() - (torch.linalg.matrix_power(a.T @ a, power).trace() / 90).item()) < half * error.item()
    found = symmetric_density(*of(a), probes=30, steps=8, generator=generator)
    for power in (1, 2, 3, 7):
        mean, error = found.average(lambda x, power=power: x.pow(power))
        assert abs(mean.item() - (torch.linalg.matrix_power(s, power).trace() / 90).item()) < half * error.item() + 1e-12
    assert found.products == 2 * 30 * 8


@pytest.mark.usefixtures("by_products")
def test_each_probe_is_integrated_exactly_up_to_the_degree_of_its_quadrature(generator):
    a = spread(generator)
    draws = torch.randn(3, 90, generator=torch.Generator().manual_seed(5), dtype=F64)
    v = draws / draws.norm(dim=1, keepdim=True)
    found = singular_density(*of(a), probes=3, steps=4, generator=torch.Generator().manual_seed(5))
    for power in range(8):  # 2m − 1 = 7
        direct = (v * (v @ torch.linalg.matrix_power(a.T @ a, power))).sum(1)
        assert torch.allclose((found.nodes.pow(2 * power) * found.weights).sum(2)[0], direct, rtol=1e-10)
    beyond = (v * (v @ torch.linalg.matrix_power(a.T @ a, 8))).sum(1)
    assert not torch.allclose((found.nodes.pow(16) * found.weights).sum(2)[0], beyond, rtol=1e-6)
    found = symmetric_density(*of(a), probes=3, steps=4, generator=torch.Generator().manual_seed(5))
    for power in range(8):
        direct = (v * (v @ torch.linalg.matrix_power((a + a.T) / 2, power))).sum(1)
        assert torch.allclose((found.nodes.pow(power) * found.weights).sum(2)[0], direct, rtol=1e-9)


def test_a_random_matrix_has_the_quarter_circle_and_the_semicircle(generator):
    n = 2000
    a = torch.randn(n, n, generator=generator, dtype=F64) / math.sqrt(n)
    f, z = LatentMap(lambda z, x: {"z": z["z"] @ a.T}, {}), {"z": torch.zeros(1, n, dtype=F64)}
    found = singular_density(f, z, probes=4, steps=16, generator=generator)
    for power, catalan in ((1, 1.0), (2, 2.0), (3, 5.0)):  # moments of Marchenko and Pastur's law for a square matrix
        assert found.average(lambda x, power=power: x.pow(2 * power))[0].item() == pytest.approx(catalan, rel=0.05)
    x = torch.linspace(0, 2, 9, dtype=F64)
    law = (x * (4 - x.square()).sqrt() / 2 + 2 * (x / 2).asin()) / math.pi
    assert (found.cdf(x)[0] - law).abs().max() < 0.07 and found.nodes.max() < 2.05
    found = symmetric_density(f, z, probes=4, steps=16, generator=generator)
    radius = math.sqrt(2)  # the variance of the symmetric part's entries is 1/(2n)
    x = torch.linspace(-1, 1, 9, dtype=F64) * radius
    law = 0.5 + x * (radius**2 - x.square()).clamp(min=0).sqrt() / (math.pi * radius**2) + (x / radius).asin() / math.pi
    assert (found.cdf(x)[0] - law).abs().max() < 0.07
    assert found.average(torch.square)[0].item() == pytest.approx(0.5, rel=0.05)


def test_a_ring_of_a_hundred_thousand_has_the_arcsine_law(generator):
    f = LatentMap(lambda z, x: {"z": 0.6 * z["z"] + 0.2 * (z["z"].roll(1, 1) + z["z"].roll(-1, 1))}, {})
    found = symmetric_density(f, {"z": torch.zeros(1, 100_000, dtype=F64)}, probes=2, steps=10, generator=generator)
    x = torch.linspace(0.2, 1, 7, dtype=F64)
    law = 1 - ((x - 0.6) / 0.4).acos() / math.pi
    assert (found.cdf(x)[0] - law).abs().max() < 0.11  # a tenth is the weight of a node
    assert found.average(torch.square)[0].item() == pytest.approx(0.44, rel=1e-2)


@pytest.mark.usefixtures("by_products")
def test_small_singular_values_keep_their_digits(generator):
    values = torch.tensor([1.0, 1e-3, 1e-6, 1e-9], dtype=F64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64))[0]
    found = singular_density(*of(turn * values), probes=2, steps=4, generator=generator)
    assert ((found.nodes[0].flip(1) / values - 1).abs() < 1e-5).all()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("density", BOTH)
def test_rows_do_not_touch_one_another(density, dense, generator, monkeypatch):
    monkeypatch.setattr(room, "DENSE_LIMIT", 1000 if dense else 0)
    a = torch.randn(4, 12, 12, generator=generator, dtype=F64)

    def run(f, z):
        return density(f, z, probes=2, steps=6, generator=torch.Generator().manual_seed(4))

    f, z = of(*a)
    whole, order = run(f, z), torch.tensor([3, 0])
    part = run(f.take(order), trees.take(z, order))
    assert torch.allclose(part.nodes, whole.nodes[order]) and torch.allclose(part.weights, whole.weights[order])
    a[1] = torch.nan
    broken = run(*of(*a))
    assert torch.allclose(broken.nodes[[0, 2, 3]], whole.nodes[[0, 2, 3]]) and broken.nodes[1].isnan().all() and broken.weights[1].isnan().all()
    assert broken.average(torch.square)[0].isnan().tolist() == [False, True, False, False] and broken.average(torch.square)[1].isnan()[1]


def test_one_probe_has_no_error(generator, by_products):
    found = singular_density(*of(spread(generator)), probes=1, steps=3, generator=generator)
    assert found.average(torch.square)[1].isnan().all()


def test_misuse_is_refused(generator):
    f, z = of(torch.eye(4, dtype=F64))
    with pytest.raises(ValueError, match=r"`singular_density` got probes=0, steps=4.*Use probes=8, steps=32"):
        singular_density(f, z, probes=0, steps=4, generator=generator)
    with pytest.raises(ValueError, match=r"`symmetric_density` got states in float16.*Cast both"):
        symmetric_density(f, {"z": z["z"].half()}, probes=1, steps=2, generator=generator)
    found = singular_density(f, z, probes=2, steps=4, generator=generator)
    with pytest.raises(ValueError, match=r"`histogram` got the edges \[1.0, 0.0\]. Bins lie between edges that rise.*linspace"):
        found.histogram(torch.tensor([1.0, 0.0]))
