"""The toy maps do what their closed forms say."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from attractorlab import trees
from attractorlab.maps import LatentMap, repeat_rows
from attractorlab.testing import Toy, starts, toys
from attractorlab.types import State

SURE = 1e-6  # chance that a right share fails its binomial test; starts are seeded, so this is decided once
NEAR = 1e-12  # closed forms in float64, a few roundings of numbers of order 1 to 10


def iterate(f: LatentMap, z: State, ticks: int) -> State:
    with torch.no_grad():
        for _ in range(ticks):
            z = f(z)
    return z


def jacobian(f: LatentMap, z: State) -> Tensor:
    """Column by column, at the one row of `z`."""
    dim = trees.size(z)
    columns = f.jvp(trees.take(z, repeat_rows(1, dim)), {"z": torch.eye(dim, dtype=z["z"].dtype)})
    return columns["z"].T


def all_toys(dim: int) -> dict[str, Toy]:
    g = torch.Generator().manual_seed(0)
    matrix = 0.8 * torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64))[0]
    return {
        "linear": toys.linear(matrix, torch.randn(dim, generator=g, dtype=torch.float64)),
        "separable tanh": toys.separable_tanh(1.5, dim),
        "power iteration": toys.power_iteration([2.0, 1.5, -1.2, 0.7][:dim], dim, generator=g),
        "ring": toys.ring(max(dim, 3), 0.2),
        "cubic": toys.cubic(1.0, 0.3, dim),
    }


NAMES = sorted(all_toys(1))


@pytest.mark.parametrize("dim", [1, 2, 50])
@pytest.mark.parametrize("name", NAMES)
def test_every_listed_point_is_fixed(name: str, dim: int) -> None:
    toy = all_toys(dim)[name]
    assert float(toy.map.residual(toy.fixed_points).max()) < NEAR


@pytest.mark.parametrize("dim", [2, 9])
@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_are_those_of_the_jacobian_by_jvp(name: str, dim: int) -> None:
    toy = all_toys(dim)[name]
    for point in range(len(toy.share)):
        seen = torch.linalg.eigvals(jacobian(toy.map, trees.take(toy.fixed_points, slice(point, point + 1))))
        # Compare as sets: sums of powers do not depend on the order of equal moduli.
        for power in range(1, 5):
            torch.testing.assert_close((seen**power).sum(), (toy.eigenvalues[point] ** power).sum(), atol=1e-9, rtol=1e-9)
        assert bool((toy.eigenvalues[point].abs().diff() <= NEAR).all())


@pytest.mark.parametrize("name", NAMES)
def test_attracting_points_draw_their_surroundings_in_and_the_others_do_not(name: str, generator: torch.Generator) -> None:
    toy = all_toys(4)[name]
    n = len(toy.share)
    push = trees.normal_like(toy.fixed_points, generator=generator)
    near = trees.add(toy.fixed_points, trees.scale(push, 1e-4 / trees.norm(push)))
    end = iterate(toy.map, near, 400)
    moved = trees.norm(trees.sub(end, toy.fixed_points))
    # Around the ring only the phase stays: it moves by at most the push.
    assert toy.attracting.tolist() == (moved < 1.1e-4).tolist()
    assert len(toy.answer) == n and torch.equal(toy.map.readout(end)["answer"][toy.attracting], toy.answer[toy.attracting])


TOWARDS = {  # a direction that leaves the basin of the first point soonest
    "separable tanh": torch.tensor([[-1.0, 0, 0, 0, 0]], dtype=torch.float64),
    "cubic": torch.tensor([[1.0, 0, 0, 0, 0]], dtype=torch.float64),
    # The gap between two neighbours opens fastest when one steps forward and the other back.
    "ring": torch.tensor([[-1.0, 1, 0, 0, 0]], dtype=torch.float64) / math.sqrt(2),
}


@pytest.mark.parametrize("name", [*TOWARDS, "power iteration"])
def test_a_push_just_short_of_the_shock_returns_and_one_past_it_does_not(name: str) -> None:
    toy = all_toys(5)[name]
    point, length = toy.fixed_points["z"][:1], float(toy.shock[0])
    towards = TOWARDS.get(name, -point / math.sqrt(5))
    stays, leaves = (
        toy.map.readout(iterate(toy.map, {"z": point + by * length * towards}, 300))["answer"] for by in (1 - 1e-3, 1 + 1e-3)
    )
    assert torch.equal(stays, toy.answer[:1])
    assert not torch.equal(leaves, toy.answer[:1])


@pytest.mark.parametrize("name", NAMES)
def test_no_random_push_shorter_than_the_shock_leaves_the_basin(name: str, generator: torch.Generator) -> None:
    toy = all_toys(5)[name]
    point = trees.take(toy.fixed_points, torch.zeros(200, dtype=torch.int64))
    push = trees.normal_like(point, generator=generator)
    length = min(float(toy.shock[0]), 100.0)
    ends = iterate(toy.map, trees.add(point, trees.scale(push, 0.999 * length / trees.norm(push))), 100)
    assert bool((toy.map.readout(ends)["answer"] == toy.answer[:1]).all())


def share_of(toy: Toy, point: int, ends: State) -> int:
    return int((toy.map.readout(ends)["answer"] == toy.answer[point]).all(1).sum())


@pytest.mark.parametrize(
    "toy",
    [
        toys.ring(5, 0.3),
        toys.ring(10, 0.3),
        toys.separable_tanh(2.0, 3),
        toys.cubic(1.0, 0.3, 2),
        toys.power_iteration([2.0, 1.0], 6, generator=torch.Generator().manual_seed(0)),
        toys.linear(0.5 * torch.eye(2)),
    ],
    ids=["ring 5", "ring 10", "tanh", "cubic", "power iteration", "linear"],
)
def test_shares_of_4000_starts_agree_with_the_closed_form(toy: Toy, generator: torch.Generator) -> None:
    z = toy.starts(4000, generator=generator)
    ends = iterate(toy.map, z, 60)
    for point in torch.nonzero(toy.attracting).flatten().tolist():
        test = stats.binomtest(share_of(toy, point, ends), 4000, min(1.0, float(toy.share[point])))
        assert test.pvalue > SURE
    assert float(toy.share[~toy.attracting].sum()) == 0


@pytest.mark.parametrize("n", [3, 5, 6, 10, 80])
def test_shares_of_the_ring_add_up_to_one(n: int) -> None:
    assert sum(toys.winding_share(n, q) for q in range(-(n // 2), n // 2 + 1)) == pytest.approx(1, abs=1e-12)


def test_shares_of_the_ring_are_the_published_ones() -> None:
    # Groisman 2026, arXiv 2604.20541; for even n the share at |q| = n/2 is 0.
    published = {5: (0.598958, 0.197917, 0.002604), 6: (0.55, 0.216667, 0.008333, 0.0), 10: (0.430418, 0.243149, 0.040256, 0.001383, 2.756e-6, 0.0)}
    for n, shares in published.items():
        assert [toys.winding_share(n, q) for q in range(len(shares))] == pytest.approx(shares, abs=5e-7)


def test_the_normal_limit_meets_the_exact_shares() -> None:
    n = toys.EXACT
    limit = [math.sqrt(6 / (math.pi * n)) * math.exp(-6 * q * q / n) for q in range(6)]
    assert [toys.winding_share(n, q) for q in range(6)] == pytest.approx(limit, rel=1e-3)
    assert [toys.winding_share(n + 1, q) for q in range(6)] == pytest.approx(limit, rel=1e-2)


def test_the_winding_number_never_changes(generator: torch.Generator) -> None:
    toy = toys.ring(12, 0.45)
    z = toy.starts(500, generator=generator)
    before = toy.map.readout(z)["answer"]
    assert len(before.unique()) > 3
    for _ in range(50):
        z = toy.map(z)
        assert torch.equal(toy.map.readout(z)["answer"], before)
    assert float(toy.map.residual(iterate(toy.map, z, 2000)).max()) < NEAR


def test_known_numbers_of_tanh() -> None:
    for w, x, multiplier in ((1.1, 0.502940574944, 0.821755856), (1.5, 0.858559636640, 0.394313025), (3.0, 0.994901528453, 0.030512846)):
        toy = toys.separable_tanh(w, 2)
        assert toy.fixed_points["z"][0, 0].item() == pytest.approx(x, abs=1e-12)
        assert toy.eigenvalues[0, 0].real.item() == pytest.approx(multiplier, abs=1e-9)
        assert toy.eigenvalues[2].real.tolist() == pytest.approx([w, multiplier], abs=1e-9)


def test_power_iteration_runs_in_the_dimension_of_a_large_model(generator: torch.Generator) -> None:
    dim = 82_944
    toy = toys.power_iteration([2.0, 1.5, -1.2], dim, generator=generator)
    assert toy.fixed_points["z"].shape == (4, dim)
    assert float(toy.map.residual(toy.fixed_points).max()) < 1e-10  # sums over 82,944 numbers
    v = trees.take(toy.fixed_points, torch.tensor([2]))
    pushed = toy.map.jvp(trees.take(toy.fixed_points, torch.tensor([0])), v)
    torch.testing.assert_close(pushed["z"], 0.75 * v["z"], atol=1e-9, rtol=0)
    ends = iterate(toy.map, toy.starts(2, generator=generator), 200)
    assert float(toy.map.residual(ends).max()) < 1e-9
    side = toy.map.readout(ends)["answer"][:, 0]
    torch.testing.assert_close(ends["z"], toy.fixed_points["z"][(1 - side)], atol=1e-7, rtol=0)


def test_a_negative_eigenvalue_of_the_power_iteration_gives_a_cycle_of_two(generator: torch.Generator) -> None:
    toy = toys.power_iteration([2.0, -1.5], 2, generator=generator)
    assert len(toy.share) == 2
    lead = toy.fixed_points["z"][0]
    other = {"z": torch.stack([-lead[1], lead[0]])[None]}  # in the plane, the second eigenvector is the first turned by 90°
    torch.testing.assert_close(toy.map(other)["z"], -other["z"])


@pytest.mark.parametrize("name", NAMES)
def test_toys_come_in_float32(name: str, generator: torch.Generator) -> None:
    toy = {
        "linear": lambda: toys.linear(0.5 * torch.eye(3), torch.ones(3), dtype=torch.float32),
        "separable tanh": lambda: toys.separable_tanh(1.5, 3, dtype=torch.float32),
        "power iteration": lambda: toys.power_iteration([2.0, 1.0], 3, generator=generator, dtype=torch.float32),
        "ring": lambda: toys.ring(5, 0.2, dtype=torch.float32),
        "cubic": lambda: toys.cubic(1.0, 0.3, 3, dtype=torch.float32),
    }[name]()
    z = toy.starts(3, generator=generator)
    assert z["z"].dtype == toy.fixed_points["z"].dtype == toy.map(z)["z"].dtype == torch.float32
    assert float(toy.map.residual(toy.fixed_points).max()) < 1e-6
    assert toy.map.origin.dtype == "float32" and toy.map.origin.model == f"toy {name}"


def test_starts_are_shared_by_the_dtypes_and_scaled(generator: torch.Generator) -> None:
    state = generator.get_state()
    double = starts(3, 4, generator=generator, scale=2.0)["z"]
    single = starts(3, 4, generator=generator.set_state(state), scale=2.0, dtype=torch.float32)["z"]
    assert torch.equal(double.float(), single)
    assert float(starts(1000, 10, generator=generator, scale=2.0)["z"].std()) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: toys.separable_tanh(1.0, 2), r"`separable_tanh` got w=1\.0\. .*Use w above 1"),
        (lambda g: toys.ring(2, 0.2), r"`ring` got n=2, h=0\.2\. .*3 oscillators or more.*Use n=10"),
        (lambda g: toys.ring(5, 0.5), r"`ring` got n=5, h=0\.5"),
        (lambda g: toys.cubic(1.0, 1.0, 2), r"`cubic` got k=1\.0, a=1\.0\. .*Use k=1\.0, a=0\.3"),
        (lambda g: toys.cubic(2.0, 0.3, 2), r"`cubic` got k=2\.0"),
        (lambda g: toys.linear(torch.eye(2)), r"`linear` got a matrix with the eigenvalue 1\. .*no fixed point.*Scale A"),
        (lambda g: toys.power_iteration([1.0, -1.0], 3, generator=g), r"values that begin with \[1\.0, -1\.0\] for dim=3.*Sort them by modulus"),
        (lambda g: toys.power_iteration([-1.0], 3, generator=g), r"`power_iteration` got values"),
        (lambda g: toys.power_iteration([2.0, 1.0], 1, generator=g), r"at most one for each dimension"),
        (lambda g: toys.power_iteration([], 1, generator=g), r"`power_iteration` got values that begin with \[\]"),
    ],
)
def test_toys_refuse_what_has_no_closed_form(make: object, words: str, generator: torch.Generator) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=words):
        make(generator)


def test_linear_refuses_a_matrix_that_is_not_square(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"`linear` got a matrix of shape \(2, 3\)\. .*square.* Pass A of shape"):
        toys.linear(torch.zeros(2, 3))
