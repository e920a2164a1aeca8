"""Families of maps: damping moves no fixed point, both ends are the maps they were made of, and the parameter can be differentiated."""

import math
from dataclasses import replace

import pytest
import torch

import attractorlab as al
from attractorlab import trees
from attractorlab.dynamics.continuation import continuation
from attractorlab.dynamics.fixed_points import find_fixed_points
from attractorlab.dynamics.parametric import ParametricMap, between_drives, between_weights, damped
from attractorlab.dynamics.spectrum import spectrum
from attractorlab.maps import LatentMap

TOL = 1e-12


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def net(dim, generator, gain=1.6):
    weight = gain / dim**0.5 * torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(dim, generator=generator, dtype=torch.float64)
    return LatentMap(lambda z, x: {"z": torch.tanh(z["z"] @ weight + bias)}, {}, clock="tick")


def test_damping_moves_no_fixed_point_and_every_eigenvalue_as_it_should(generator):
    f = net(12, generator)
    start = {"z": torch.randn(1, 12, generator=generator, dtype=torch.float64)}
    point = find_fixed_points(f, start, tol=TOL, max_steps=60).require()
    mu = spectrum(f, point.states, k=12).eigenvalues[0]
    found = continuation(damped(f), point.states, parameter=numbers(1.0), direction=-1, span=(0.1, 1.0), tol=TOL, step=0.25, max_steps=30, k=12)
    assert found.end == ("range",) and found.name == "damping" and (found.slope == -1).all()
    assert (found.states["z"] - point.states["z"]).abs().max() < 1e-11
    for at, values in zip(found.parameter, found.eigenvalues, strict=True):
        expected = 1 - at + at * mu
        assert (values[:, None] - expected).abs().amin(1).max() < 1e-10 and (values[:, None] - expected).abs().amin(0).max() < 1e-10


def test_damping_stops_a_flip_and_a_rotation_where_algebra_says(generator):
    # Eigenvalues −3 and 0.5 ± 1.5i: 1 − λ + λμ reaches −1 at λ = 2/(1 − μ), and the circle at λ = 2(1 − Re μ)/|1 − μ|².
    turn = numbers(0.5, 1.5, -1.5, 0.5).reshape(2, 2)
    f = LatentMap(lambda z, x: {"z": torch.cat([-3 * z["z"][:, :1], z["z"][:, 1:] @ turn], 1)}, {}, clock="tick")
    found = continuation(damped(f), {"z": torch.zeros(1, 3).double()}, parameter=numbers(0.1), direction=1, span=(0.1, 1.0), tol=TOL, step=0.3, max_steps=30, k=3)
    assert found.event_kind == ("Neimark-Sacker", "flip") and found.event_change.tolist() == [2, 1]
    assert (found.event_parameter - numbers(1 / (0.25 + 2.25), 0.5)).abs().max() < 1e-10


def puzzles(model, rows):
    return model.bind(al.tasks.load("sudoku-4", split="test", rows=rows))


def test_a_fixed_point_goes_from_one_puzzle_towards_another_certified_at_every_step():
    model = al.models.load("eqr-sudoku-4").to(torch.float64)
    f, other = puzzles(model, slice(0, 1)), puzzles(model, slice(1, 2))
    z = model.start(f.drive, generator=torch.Generator().manual_seed(0))
    at_rest = al.settle(f, z, tol=1e-4, max_ticks=200).states
    family = between_drives(f, towards=other.drive)
    found = continuation(family, at_rest, parameter=numbers(0.0), direction=1, span=(0.0, 1.0), tol=1e-10, step=0.06, max_steps=3, k=0)
    assert found.end == ("max steps",) and len(found.parameter) == 4 and found.parameter[-1] > 0.1 and found.clock == "recursion"
    # Certified anew, by a plain call of the model's map under the mixed drive.
    for at, point in zip(found.parameter.tolist(), range(4), strict=True):
        drive = {name: (1 - at) * leaf + at * other.drive[name] for name, leaf in f.drive.items()}
        here = LatentMap(f.rule, drive, instance=f.instance, start=f.start)
        assert here.residual({name: leaf[point : point + 1] for name, leaf in found.states.items()}).item() < 1e-10
    assert found.error.max() < 1e-9


class Cell(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.inner = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.constant_(self.inner.weight, weight)

    def forward(self, z):
        return torch.tanh(self.inner(z))


def celled(weight):
    model = Cell(weight)
    return LatentMap(lambda z, x: {"z": model(z["z"])}, {}, model=model)


def test_between_two_checkpoints_a_pitchfork_is_met_where_the_weight_is_one():
    a, b = celled(0.5), celled(2.0)
    family = between_weights(a, towards=b)
    found = continuation(family, {"z": torch.zeros(1, 1).double()}, parameter=numbers(0.0), direction=1, span=(0.0, 1.0), tol=TOL, step=0.4, max_steps=30, k=1)
    assert found.event_kind == ("branch point",) and found.event_parameter.item() == pytest.approx(1 / 3, abs=1e-12)
    assert (found.eigenvalues[:, 0].real - (0.5 + 1.5 * found.parameter)).abs().max() < 1e-12
    assert a.model.inner.weight.item() == 0.5 and b.model.inner.weight.item() == 2.0


def test_running_means_are_interpolated_with_a_difference_for_a_derivative():
    cells = [torch.nn.BatchNorm1d(1, eps=0.0, affine=False, dtype=torch.float64).eval() for _ in range(2)]
    cells[1].running_mean.fill_(0.5)
    f, g = (LatentMap(lambda z, x, cell=cell: {"z": 0.5 * cell(z["z"])}, {}, model=cell) for cell in cells)
    family = replace(between_weights(f, towards=g), difference=1e-5)
    found = continuation(family, {"z": torch.zeros(1, 1).double()}, parameter=numbers(0.0), direction=1, span=(0.0, 1.0), tol=TOL, step=0.4, max_steps=30, k=1)
    assert found.end == ("range",) and (found.states["z"][:, 0] + 0.5 * found.parameter).abs().max() < 1e-11  # z = (z - p/2)/2


def test_both_ends_of_a_checkpoint_step_are_the_checkpoints(generator):
    model = al.models.load("eqr-sudoku-4").to(torch.float64)
    other = model.to(torch.float64)
    with torch.no_grad():
        for leaf in other.parameters():
            leaf += 1e-3 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
    f, g = puzzles(model, slice(0, 2)), puzzles(other, slice(0, 2))
    z = model.start(f.drive, generator=generator)
    ends = between_weights(f, towards=g).at(numbers(0.0, 1.0))(z)
    truth = [f(z), g(z)]
    for row in (0, 1):
        for name, leaf in ends.items():
            assert (leaf[row] - truth[row][name][row]).abs().max() < 1e-12
            assert (truth[0][name][row] - truth[1][name][row]).abs().max() > 1e-6
    half = find_fixed_points(between_weights(f, towards=g).at(numbers(0.5, 0.5)), al.settle(f, z, tol=1e-3, max_ticks=200).states, tol=1e-11, max_steps=20)
    assert half.converged.all()


def hiding(difference=None):
    return ParametricMap(lambda z, x, b: {"z": torch.tanh(2 * z["z"] + b.detach()[:, None])}, "b", difference=difference)


def test_a_rule_that_hides_its_parameter_is_refused_and_followed_by_differences():
    settings = dict(parameter=numbers(0.0), direction=1, span=(0.0, 1.0), tol=TOL, step=0.2, max_steps=60, k=0)
    z = {"z": numbers(-0.95)[:, None]}
    with pytest.raises(ValueError, match=r"derivative by b is 0 where a difference gives 0\.\d+\. The exact derivative needs.*Give the family a `difference`"):
        continuation(hiding(), z, **settings)
    found = continuation(hiding(1e-5), z, **settings)
    assert found.derivative == "central differences of step 1e-05" and found.event_kind == ("fold",)
    assert found.event_parameter.item() == pytest.approx(math.sqrt(2) - math.atanh(math.sqrt(0.5)), abs=1e-9)


def test_a_family_is_a_map_at_each_parameter_and_follows_its_rows(generator):
    like = LatentMap(lambda z, x: z, {"x": numbers(1.0, 2.0)[:, None]}, instance=torch.tensor([3, 5]), start=torch.tensor([0, 1]), clock="segment")
    f = ParametricMap(lambda z, x, p: {"z": p[:, None] * z["z"] + x["x"]}, "p", like).at(numbers(0.5, 0.25))
    assert f.take([1])({"z": numbers(4.0)[:, None]})["z"].item() == 3.0 and f.clock == "segment"
    assert f.coordinates({"z": torch.zeros(2, 1)})[0].tolist() == [3, 5]
    assert trees.size(f({"z": torch.zeros(2, 1).double()})) == 1


@pytest.mark.usefixtures("unchecked")
def test_families_refuse_ends_that_do_not_fit():
    f = LatentMap(lambda z, x: z, {"x": torch.zeros(1, 2)}, instance=torch.zeros(1).long(), start=torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"drives with different leaves: \['x', 'y'\]\. Both ends have the same names.*Bind one model"):
        between_drives(f, towards={"y": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"leaf 'x' is \(1, 2\) float32 and \(2, 2\) float32\. Both ends have"):
        between_drives(f, towards={"x": torch.zeros(2, 2)})
    ids = LatentMap(lambda z, x: z, {"x": torch.zeros(1).long()}, instance=torch.zeros(1).long(), start=torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"drives that differ in 'x', which holds int64\. Only floating-point.*Choose two ends"):
        between_drives(ids, towards={"x": torch.ones(1).long()})
    with pytest.raises(ValueError, match=r"`between_weights` got a map without a model\. Weights.*Pass maps that `bind` made"):
        between_weights(f, towards=f)
    with pytest.raises(ValueError, match=r"whose drive has a leaf 'parameter'\. The parameter of a family.*Rename"):
        ParametricMap(lambda z, x, p: z, "p", LatentMap(lambda z, x: z, {"parameter": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"got difference=0\.0\. A central difference.*Use difference=1e-5"):
        ParametricMap(lambda z, x, p: z, "p", difference=0.0)
    with pytest.raises(ValueError, match=r"`at` got 2 parameters for a family of 1 rows\. Every row.*Pass a tensor of 1"):
        ParametricMap(lambda z, x, p: z, "p", f).at(torch.zeros(2))
