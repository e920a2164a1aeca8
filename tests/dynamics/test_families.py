"""Circles, lines and tori of fixed points are one attractor each; points with an accidental eigenvalue of 1 are no family."""

import math

import pytest
import torch

from attractorlab import families, find_fixed_points, trees
from attractorlab.dynamics.fixed_points import by_iteration
from attractorlab.maps import LatentMap
from attractorlab.testing import toys

F64 = torch.float64


def plain(rule):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick")


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=F64)


def round_trip(a):
    """The plane, its radii drawn to 1 and 2 and away from 3/2; angles stay."""
    r = a.norm(dim=1, keepdim=True)
    return a * (1 + 0.2 * (r - 1) * (1.5 - r) * (r - 2))


def found(f, z, **more):
    points = find_fixed_points(f, {"z": z}, tol=1e-12, max_steps=80).require()
    return families(f, points, **more)


def angles(*turns):
    return torch.tensor([[math.cos(t), math.sin(t)] for t in turns], dtype=F64)


def test_a_circle_is_one_attractor_of_dimension_one():
    f = plain(lambda z: z / z.norm(dim=1, keepdim=True) ** 0.5)
    whole = found(f, 1.2 * angles(0.1, 1.3, 2.9, 4.0, 5.5))
    assert whole.labels.tolist() == [0] * 5 and whole.dimension.tolist() == [1] and whole.counts.tolist() == [5]
    opposite = found(f, 0.8 * angles(0.4, 0.4 + math.pi))
    assert opposite.labels.tolist() == [0, 0] and opposite.dimension.tolist() == [1]


@pytest.mark.parametrize("dim", [2, 30])
def test_concentric_circles_are_two_attractors_and_their_centre_a_point(dim, generator):
    plane = torch.linalg.qr(normal(dim, 2, generator=generator))[0]

    def rule(z):
        a = z @ plane
        return 0.5 * (z - a @ plane.T) + round_trip(a) @ plane.T

    inside, outside = angles(0.3, 2.0), 2 * angles(0.2, 1.1, 3.0)
    z = torch.cat([inside, outside, torch.zeros(1, 2, dtype=F64)]) @ plane.T + 0.01 * normal(6, dim, generator=generator)
    result = found(plain(rule), z)
    assert result.labels.tolist() == [1, 1, 0, 0, 0, 2], result.labels
    assert result.dimension.tolist() == [1, 1, 0] and result.counts.tolist() == [3, 2, 1]
    assert torch.allclose((result.points.states["z"] @ plane).norm(dim=1), torch.tensor([2.0, 1.0, 0.0], dtype=F64), atol=1e-8)


def test_a_circle_in_a_thousand_dimensions(generator):
    plane = torch.linalg.qr(normal(1000, 2, generator=generator))[0]

    def rule(z):
        a = z @ plane
        return 0.5 * (z - a @ plane.T) + (a / a.norm(dim=1, keepdim=True) ** 0.5) @ plane.T

    result = found(plain(rule), angles(0.0, 0.9, 2.5) @ plane.T + 0.01 * normal(3, 1000, generator=generator))
    assert result.labels.tolist() == [0, 0, 0] and result.dimension.tolist() == [1]


def test_a_torus_has_dimension_two_and_a_sphere_too(generator):
    def pair(z):
        one, other = z[:, :2], z[:, 2:4]
        return torch.cat([one / one.norm(dim=1, keepdim=True) ** 0.5, other / other.norm(dim=1, keepdim=True) ** 0.5, 0.5 * z[:, 4:]], dim=1)

    torus = found(plain(pair), normal(5, 6, generator=generator))
    assert torus.labels.tolist() == [0] * 5 and torus.dimension.tolist() == [2]
    sphere = found(plain(lambda z: z / z.norm(dim=1, keepdim=True) ** 0.5), normal(5, 3, generator=generator))
    assert sphere.labels.tolist() == [0] * 5 and sphere.dimension.tolist() == [2]


def test_a_line_and_a_space_of_fixed_points(generator):
    line = found(plain(lambda z: torch.cat([z[:, :1], 0.5 * z[:, 1:] + 0.1], dim=1)), normal(5, 3, generator=generator))
    assert line.labels.tolist() == [0] * 5 and line.dimension.tolist() == [1]
    rows = normal(3, 7, generator=generator)
    everything = found(plain(lambda z: z.clone()), rows)
    assert everything.dimension.tolist() == [7] and everything.labels.tolist() == [0, 0, 0]


def test_two_parallel_lines_are_two_attractors():
    # Across the lines: z -> z + z(1 - z²)/2 rests at −1, 0 and 1.
    f = plain(lambda z: torch.stack([z[:, 0], z[:, 1] + 0.5 * z[:, 1] * (1 - z[:, 1] ** 2)], dim=1))
    result = found(f, torch.tensor([[0.3, 1.0], [-0.4, 1.0], [0.1, -1.0], [0.3, 0.0]], dtype=F64))
    assert result.dimension.tolist() == [1, 1, 1] and result.labels.tolist() == [0, 0, 1, 2]


def test_a_bent_line_is_walked_along():
    # The graph of y = sin 2x, drawn to from above and below: the straight way from one end to the other leads off it.
    f = plain(lambda z: torch.stack([z[:, 0], z[:, 1] + 0.5 * (torch.sin(2 * z[:, 0]) - z[:, 1])], dim=1))
    x = torch.tensor([-1.5, 1.5], dtype=F64)
    result = found(f, torch.stack([x, torch.sin(2 * x)], dim=1) + 1e-3)
    assert result.labels.tolist() == [0, 0] and result.dimension.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fold", lambda z: z + (z - 1) ** 2),
        ("cubic", lambda z: z - (z - 1) ** 3),
        ("pitchfork", torch.tanh),
        ("shifted pitchfork", lambda z: 1 + torch.tanh(z - 1)),
        ("fold in one direction", lambda z: torch.stack([z[:, 0] + (z[:, 0] - 1) ** 2, 0.5 * z[:, 1]], dim=1)),
    ],
)
def test_an_accidental_eigenvalue_of_one_is_no_family(name, rule):
    result = found(plain(rule), torch.tensor([[0.9, 0.02], [1.1, 0.01], [0.95, 0.0]], dtype=F64)[:, : 2 if name == "fold in one direction" else 1])
    assert (result.dimension == 0).all() and result.labels.max() == 0, (name, result)


def test_past_the_pitchfork_there_are_three_points():
    w = 1.0001  # they are 0.0173 apart
    result = found(plain(lambda z: torch.tanh(w * z)), torch.tensor([[-0.02], [0.02], [1e-5]], dtype=F64))
    assert sorted(result.labels.tolist()) == [0, 1, 2] and (result.dimension == 0).all()


def embedded(n):
    toy = toys.ring(n, 0.2)

    def rule(z):
        phase = toy.map({"z": torch.atan2(z[:, n:], z[:, :n])})["z"]
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=1)

    return toy, plain(rule)


def test_twisted_states_of_a_ring_are_circles(generator):
    toy, f = embedded(8)
    phase = toy.fixed_points["z"][[0, 1, 2, 0, 1]] + torch.tensor([0.1, 2.0, 0.7, 1.9, -0.5], dtype=F64)[:, None] + 0.01 * normal(5, 8, generator=generator)
    result = found(f, torch.cat([torch.cos(phase), torch.sin(phase)], dim=1))
    assert result.labels.tolist() == [0, 1, 2, 0, 1] and result.dimension.tolist() == [1, 1, 1]


def test_the_order_of_the_points_does_not_matter():
    f = plain(lambda z: torch.cat([round_trip(z[:, :2]), 0.5 * z[:, 2:]], dim=1))
    flat = torch.cat([angles(0.3, 2.0), 2 * angles(0.2, 1.1, 3.0)])
    points = find_fixed_points(f, {"z": torch.cat([flat, 0.1 * flat[:, :1]], dim=1)}, tol=1e-12, max_steps=80).require()
    order = torch.tensor([3, 1, 4, 0, 2])
    whole, turned = families(f, points), families(f, points[order])
    assert turned.labels.equal(whole.labels[order]) and turned.dimension.equal(whole.dimension)


def test_families_are_of_one_instance(generator):
    f = LatentMap(
        lambda z, x: {"z": x["r"] * z["z"] / (x["r"] * z["z"].norm(dim=1, keepdim=True)) ** 0.5},
        {"r": torch.tensor([[1.0], [1.0], [2.0], [2.0]], dtype=F64)},
        clock="tick",
        instance=torch.tensor([0, 0, 5, 5]),
        start=torch.tensor([0, 1, 0, 1]),
    )
    points = find_fixed_points(f, {"z": normal(4, 2, generator=generator)}, tol=1e-12, max_steps=60).require()
    result = families(f, points)
    assert result.labels.tolist() == [0, 0, 1, 1] and result.points.instance.tolist() == [0, 5] and result.dimension.tolist() == [1, 1]


def test_rows_that_did_not_converge_get_no_label_and_no_rows_no_family():
    f = plain(lambda z: z / z.norm(dim=1, keepdim=True) ** 0.5)
    z = {"z": torch.cat([angles(0.5, 2.0), torch.full((1, 2), torch.nan, dtype=F64)])}
    points = find_fixed_points(f, z, tol=1e-12, max_steps=30)
    assert families(f, points).labels.tolist() == [0, 0, -1]
    nothing = families(f, points[points.result < 0])
    assert len(nothing.points) == 0 and nothing.labels.tolist() == [] and nothing.dimension.tolist() == []
    assert families(f, points[~points.converged]).labels.tolist() == [-1]


def test_families_are_told_in_float32_too():
    f = plain(lambda z: z / z.norm(dim=1, keepdim=True) ** 0.5)
    points = find_fixed_points(f, {"z": 1.1 * angles(0.1, 1.3, 2.9).float()}, tol=1e-6, max_steps=50).require()
    result = families(f, points)
    assert result.labels.tolist() == [0, 0, 0] and result.dimension.tolist() == [1]
    fold = plain(lambda z: z + (z - 1) ** 2)
    points = find_fixed_points(fold, {"z": torch.tensor([[0.9], [1.1]])}, tol=1e-6, max_steps=50).require()
    assert families(fold, points, tol=1e-2).dimension.tolist() == [0]


def test_misuse_is_refused():
    f = plain(lambda z: 0.5 * z)
    z = {"z": torch.ones(1, 2, dtype=torch.bfloat16)}
    with pytest.raises(ValueError, match=r"`families` got points in bfloat16. Families are told .* Cast both"):
        families(f, find_fixed_points(f, z, tol=1e-2, max_steps=10))
    with pytest.raises(ValueError, match=r"`distinct` got 1 points without an error estimate.*Give `tol`"):
        families(f, find_fixed_points(f, trees.to(z, F64), method=by_iteration, tol=1e-6, max_steps=99))
