"""Branches of fixed points whose curves, folds and changes of stability are known in closed form."""

import cmath
import math

import pytest
import torch

from attractorlab.dynamics import krylov
from attractorlab.dynamics.continuation import continuation
from attractorlab.dynamics.parametric import ParametricMap
from attractorlab.maps import LatentMap

TOL = 1e-12


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def state(*rows):
    return {"z": numbers(*rows).reshape(len(rows), -1)}


def follow(family, z, at, direction=1, **more):
    settings = dict(span=(-1.0, 1.0), tol=TOL, step=0.2, max_steps=300, k=1) | more
    return continuation(family, z, parameter=numbers(*at), direction=direction, **settings)


def events(found, branch=0):
    chosen = found.events_of(branch).tolist()
    return [found.event_kind[i] for i in chosen], found.event_parameter[chosen], found.event_eigenvalue[chosen], found.event_change[chosen].tolist()


def pointwise(rule, name="p"):
    """A family of maps of single numbers, entry by entry."""
    return ParametricMap(lambda z, x, p: {"z": rule(z["z"], p[:, None])}, name)


def test_s_curves_are_followed_around_both_folds():
    w = numbers(2.0, 3.0)
    like = LatentMap(lambda z, x: z, {"w": w[:, None]}, instance=torch.arange(2), start=torch.zeros(2).long(), clock="recursion")
    family = ParametricMap(lambda z, x, b: {"z": torch.tanh(x["w"] * z["z"] + b[:, None])}, "b", like)
    found = follow(family, state(-1.0, -1.0), (-1.5, -1.5), span=(-1.5, 1.5))
    assert found.end == ("range",) * 2 and found.clock == "recursion" and found.name == "b" and found.derivative == "exact"
    for row in range(2):
        x_c = math.sqrt(1 - 1 / w[row].item())
        b_c = w[row].item() * x_c - math.atanh(x_c)
        kinds, at, eigenvalue, change = events(found, row)
        assert kinds == ["fold", "fold"] and change == [1, -1]
        assert (at - numbers(b_c, -b_c)).abs().max() < 1e-12
        assert (eigenvalue - 1).abs().max() < 1e-6
        points = found.points_of(row)
        x, b = found.states["z"][points, 0], found.parameter[points]
        assert b[0] == -1.5 and b[-1] == 1.5 and x[0] < -0.98 and x[-1] > 0.98
        assert (b - (torch.atanh(x) - w[row] * x)).abs().max() < 1e-9
        middle = x.abs() < x_c
        assert [found.verdict[i] == "unstable(1)" for i in points] == middle.tolist()
        assert ((found.slope[points] < 0) == middle).all()
        assert (found.eigenvalues[points, 0].real - w[row] * (1 - x**2)).abs().max() < 1e-9
        assert (found.arclength[points].diff() > 0).all()
        # An event lies between its point and the next.
        for i, side in zip(found.events_of(row).tolist(), (-1, 1), strict=True):
            before = int(found.event_point[i])
            assert found.branch[before] == row and x[before - points[0]] < side * x_c < x[before + 1 - points[0]]
            assert found.event_states["z"][i].item() == pytest.approx(side * x_c, abs=1e-6)
    assert found.residual.max() < TOL and found.error.max() < 1e-11
    assert (found.event_error < 1e-9).all()


SIX = cmath.exp(1j * math.pi / 3)


def twice(rule):
    return lambda z, p: rule(rule(z, p), p)


def logistic(z, r):
    return r * z * (1 - z)


def delayed(z, x, a):
    """The delayed logistic map."""
    return {"x": a[:, None] * z["x"] * (1 - z["y"]), "y": z["x"]}


def henon(z, x, a):
    first, second = z["z"].unbind(1)
    return {"z": torch.stack([a - first**2 + 0.3 * second, first], 1)}


CASES = {
    "logistic, upwards": (pointwise(logistic), state(0.6), 2.5, 1, (-2.0, 4.0), [("flip", 3.0, -1, 1)]),
    "logistic at zero, downwards": (pointwise(logistic), state(0.0), 2.5, -1, (-2.0, 4.0), [("branch point", 1.0, 1, -1), ("flip", -1.0, -1, 1)]),
    "logistic through zero": (pointwise(logistic), state(0.3), 1.5, -1, (0.7, 4.0), [("branch point", 1.0, 1, 1)]),
    "logistic, period two around its birth": (
        pointwise(twice(logistic)), state(0.513), 3.2, -1, (2.5, 4.0), [("branch point", 3.0, 1, 0), ("flip", 1 + math.sqrt(6), -1, 1)]
    ),
    "tanh at zero, downwards": (pointwise(lambda z, w: torch.tanh(w * z)), state(0.0), 2.0, -1, (-3.0, 3.0), [("branch point", 1.0, 1, -1), ("flip", -1.0, -1, 1)]),
    "both arms of a pitchfork": (pointwise(lambda z, r: r * z - z**3), state(1.3), 1 + 1.3**2, -1, (0.0, 3.0), [("flip", 2.0, -1, -1), ("branch point", 1.0, 1, 0), ("flip", 2.0, -1, 1)]),
    "cubic, edge through both sides": (pointwise(lambda z, a: z + 0.5 * z * (1 - z) * (z - a)), state(0.5), 0.5, 1, (-2.0, 2.0), [("branch point", 1.0, 1, -1)]),
    "Henon": (ParametricMap(henon, "a"), state([0.45, 0.45]), 0.6, -1, (-0.5, 1.0), [("flip", 0.3675, -1, -1), ("fold", -0.1225, 1, 1)]),
    "delayed logistic": (ParametricMap(delayed, "a"), {"x": state(0.4)["z"], "y": state(0.4)["z"]}, 1.6, 1, (1.2, 2.4), [("Neimark-Sacker", 2.0, SIX, 2)]),
}


@pytest.mark.parametrize("name", CASES)
def test_changes_of_stability_are_found_where_they_are(name):
    family, z, at, direction, span, truth = CASES[name]
    found = follow(family, z, [at], direction, span=span, k=sum(leaf.shape[1] for leaf in z.values()))
    kinds, parameter, eigenvalue, change = events(found)
    assert kinds == [kind for kind, *_ in truth] and change == [by for *_, by in truth]
    off = (parameter - numbers(*[p for _, p, _, _ in truth])).abs()
    assert (off <= 3 * found.event_error + 1e-14).all() and off.max() < 1e-8 and found.event_error.max() < 1e-5
    assert (eigenvalue - torch.tensor([value for _, _, value, _ in truth], dtype=torch.complex128)).abs().max() < 1e-5
    assert found.end == ("range",) and found.residual.max() < TOL


def several(rule, values):
    """z + 0.3 times a flow of one number, with a constant of its own in each row."""
    like = LatentMap(lambda z, x: z, {"c": numbers(*values)[:, None]}, instance=torch.arange(len(values)), start=torch.zeros(len(values)).long())
    return ParametricMap(lambda z, x, p: {"z": z["z"] + 0.3 * rule(z["z"], p[:, None], x["c"])}, "p", like)


def test_a_step_does_not_leap_from_one_branch_to_another_that_passes_near_it():
    # c + pz − z²: two branches apart by 2√|c|, with folds at ±2√−c, or one that is stable and one that is not.
    c = (-1e-3, 1e-3)
    z = [(-0.9 + math.sqrt(0.81 + 4 * one)) / 2 for one in c]
    found = follow(several(lambda z, p, c: c + p * z - z**2, c), state(*z), (-0.9, -0.9))
    kinds, parameter, _, change = events(found, 0)
    assert kinds == ["fold"] and change == [1] and parameter.item() == pytest.approx(-2 * math.sqrt(1e-3), abs=1e-12) and found.parameter[found.points_of(0)[-1]] == -1
    assert events(found, 1)[0] == [] and {found.verdict[i] for i in found.points_of(1)} == {"stable"} and found.end == ("range", "range")
    x, p = (values[found.points_of(1)] for values in (found.states["z"][:, 0], found.parameter))
    assert (x - (p + (p**2 + 4e-3).sqrt()) / 2).abs().max() < 1e-9


def test_a_step_does_not_leap_from_the_arm_of_a_pitchfork_onto_its_trunk():
    found = follow(pointwise(twice(twice(logistic))), state(0.874997263602), [3.5], -1, span=(2.5, 4.0), step=0.1)
    kinds, parameter, _, change = events(found)
    assert kinds == ["branch point", "flip"] and change == [0, 1] and found.end == ("range",)  # down one arm of period 4, and up the other
    assert parameter.tolist() == pytest.approx([1 + math.sqrt(6), 3.544090359552], abs=1e-8)


def test_a_fold_is_told_from_the_transcritical_point_beside_it():
    # z(p + cz − z²): a fold at p = −c²/4, and across the line z = 0 at p = 0.
    c = (0.1, 0.004)
    found = follow(several(lambda z, p, c: z * (p + c * z - z**2), c), state(0.5, 0.5), [0.25 - 0.5 * one for one in c], -1, step=0.1)
    for row, one in enumerate(c):
        kinds, parameter, _, change = events(found, row)
        assert kinds == ["fold", "branch point"] and change == [1, -1]
        assert (parameter - numbers(-(one**2) / 4, 0.0)).abs().max() < 1e-9


def embedded(dim, generator):
    """tanh(2x + b) along a random direction in `dim` dimensions, in which everything else contracts towards a place that moves with b."""
    u = torch.randn(dim, generator=generator, dtype=torch.float64)
    u = u / u.norm()
    decay, pull = (torch.rand(dim - 1, generator=generator, dtype=torch.float64) - 0.5 for _ in range(2))
    decay, pull = 0.6 * decay, pull / 10
    decay[0], decay[1] = 0.6, -0.5  # apart from the others: two leading modes that are found fast

    def turned(x):  # a Householder reflection, its own inverse
        return x - 2 * (x @ u)[:, None] * u

    def rule(z, x, b):
        y = turned(z["z"])
        head = torch.tanh(2 * y[:, :1] + b[:, None])
        return {"z": turned(torch.cat([head, decay * y[:, 1:] + pull * b[:, None]], 1))}

    def truth(x, b):
        return turned(torch.cat([x[:, None], pull * b[:, None] / (1 - decay)], 1))

    return ParametricMap(rule, "b"), truth, decay


def test_an_s_curve_in_1200_dimensions(generator):
    family, truth, _ = embedded(1200, generator)
    z = {"z": truth(numbers(-0.957504024077), numbers(0.0))}
    found = follow(family, z, [0.0], span=(-0.7, 0.7), step=0.3, k=0, tol=1e-11, scale=1.0)
    kinds, parameter, eigenvalue, _ = events(found)
    b_c = math.sqrt(2) - math.atanh(math.sqrt(0.5))
    assert kinds == ["fold", "fold"] and (parameter - numbers(b_c, -b_c)).abs().max() < 1e-10
    assert eigenvalue.isnan().all() and found.end == ("range",) and set(found.verdict) == {"not asked"}
    b = found.parameter
    x = (found.states["z"] @ truth(numbers(1.0), numbers(0.0))[0]).clamp(-1, 1)
    assert (found.states["z"] - truth(x, b)).norm(dim=1).max() < 1e-9
    assert (b - (torch.atanh(x) - 2 * x)).abs().max() < 1e-9


def test_eigenvalues_in_1200_dimensions_come_with_the_points(generator):
    family, truth, _ = embedded(1200, generator)
    found = follow(family, {"z": truth(numbers(-0.8), numbers(1.6 - math.atanh(0.8)))}, [1.6 - math.atanh(0.8)], step=0.3, k=2, tol=1e-11, scale=1.0, max_steps=6)
    x = (found.states["z"] @ truth(numbers(1.0), numbers(0.0))[0]).clamp(-1, 1)
    head = 2 * (1 - x**2)
    exact = torch.stack([head, numbers(0.6).expand(len(x))], 1).sort(dim=1, descending=True).values
    assert (found.eigenvalues.real - exact).abs().max() < 1e-8
    kinds, parameter, eigenvalue, change = events(found)
    assert kinds == ["fold"] and change == [1] and abs(eigenvalue - 1).item() < 1e-6
    assert parameter.item() == pytest.approx(math.sqrt(2) - math.atanh(math.sqrt(0.5)), abs=1e-11)
    assert found.end == ("max steps",) and found.steps.tolist() == [6]


# z + h(a + bz + cz² + dp + ep² + gpz) + (1 − qp)^1.5 − 1, row by row
ROWS = {
    "closed": ([1, 0, -1, 0, -1, 0, 0], 1.0),
    "range": ([0, -1, 0, 1, 0, 0, 0], 0.0),
    "nonfinite": ([0, -1, 0, 0, 0, 0, 1], 0.0),
    "no start": ([1, 0, 1, 0, 1, 0, 0], 0.3),
    "max steps": ([1, 0, 0, 0, 0, -1, 0], 2.0),
}


def mixed(names):
    table = numbers(*[ROWS[name][0] for name in names])
    like = LatentMap(lambda z, x: z, {"a": table}, instance=torch.arange(len(names)), start=torch.zeros(len(names)).long())

    def rule(z, x, p):
        y, c = z["z"][:, 0], x["a"].unbind(1)
        flow = c[0] + c[1] * y + c[2] * y**2 + c[3] * p + c[4] * p**2 + c[5] * p * y
        return {"z": (y + 0.3 * flow + (1 - c[6] * p) ** 1.5 - 1)[:, None]}

    return ParametricMap(rule, "p", like)


def run_mixed(names):
    at = [0.5 if name in ("max steps", "range") else 0.0 for name in names]
    direction = torch.tensor([-1 if name == "max steps" else 1 for name in names])
    return follow(mixed(names), state(*[ROWS[name][1] for name in names]), at, direction, span=(-2.0, 2.0), max_steps=32, step=0.4, scale=4.0)


def test_branches_end_each_in_its_own_way_whatever_lies_beside_them(monkeypatch):
    names = list(ROWS)
    whole = run_mixed(names)
    assert whole.end == tuple(names)
    assert whole.residual.max() < TOL
    monkeypatch.setitem(krylov.MEMORY, "cpu", 1)  # in another order, and each in a chunk of its own
    some = ["nonfinite", "no start", "closed", "range"]
    part = run_mixed(some)
    assert (part.branch.diff() >= 0).all() and part.instance.tolist() == [0, 1, 2, 3]
    for row, name in enumerate(some):
        at = names.index(name)
        mine, there = part.points_of(row), whole.points_of(at)
        assert part.end[row] == name and len(mine) == len(there) and part.steps[row] == whole.steps[at]
        for field in ("parameter", "arclength", "slope"):
            assert torch.allclose(getattr(part, field)[mine], getattr(whole, field)[there], rtol=0, atol=1e-9), field
        assert [part.verdict[i] for i in mine] == [whole.verdict[i] for i in there]
        assert events(part, row)[0] == events(whole, at)[0]
        assert (part.event_point[part.events_of(row)] - mine[:1] == whole.event_point[whole.events_of(at)] - there[:1]).all()
    # The circle: all of it, with a fold at each side.
    points = whole.points_of(0)
    assert (whole.states["z"][points, 0] ** 2 + whole.parameter[points] ** 2 - 1).abs().max() < 1e-10
    assert whole.states["z"][points[-1]].item() == pytest.approx(1.0, abs=1e-9)
    kinds, parameter, _, change = events(whole)
    assert kinds == ["fold", "fold"] and (parameter - numbers(1.0, -1.0)).abs().max() < 1e-9 and change == [1, -1]
    # z = ((1 − p)^1.5 − 1)/h: up to the point where the root ends.
    points = whole.points_of(names.index("nonfinite"))
    assert 0.99 < whole.parameter[points].max() <= 1 and whole.states["z"][points].isfinite().all()
    assert not len(whole.points_of(names.index("no start")))


def test_a_branch_without_a_start_has_no_points_and_no_events():
    found = run_mixed(["no start", "no start"])
    assert found.end == ("no start", "no start") and found.parameter.shape == (0,) and found.event_states["z"].shape == (0, 1)
    assert found.eigenvalues.shape == (0, 1) and found.verdict == () and found.event_kind == ()


def test_two_modes_that_pass_together_are_counted_and_a_circle_of_fixed_points_passes_nothing():
    # Two copies of the logistic map flip at one place; beside them, z(1 + h(p − |z|²)) rests on a circle of radius √p, with the eigenvalues 1 and 1 − 2hp.
    def rule(z, x, p):
        square = z["circle"].square().sum(1)
        return {"twins": p[:, None] * z["twins"] * (1 - z["twins"]), "circle": z["circle"] * (1 + 0.2 * (p - square))[:, None]}

    z = {"twins": state([0.6, 0.6])["z"], "circle": state([1.5, 0.5])["z"]}
    found = follow(ParametricMap(rule, "r"), z, [2.5], span=(1.8, 6.0), k=4)
    kinds, parameter, eigenvalue, change = events(found)
    assert kinds == ["flip", "flip"] and change == [2, 1]
    assert (parameter - numbers(3.0, 5.0)).abs().max() < 1e-7 and (eigenvalue + 1).abs().max() < 1e-6
    assert (found.states["circle"].norm(dim=1) - found.parameter.sqrt()).abs().max() < 1e-10
    assert all(word == "marginal" for word, p in zip(found.verdict, found.parameter.tolist(), strict=True) if p < 3)


def test_five_passages_within_one_step_are_told_apart():
    at = numbers(1.0, 1.01, 1.02, 1.5, -1.2)
    found = follow(ParametricMap(lambda z, x, p: {"z": -p[:, None] * z["z"] / at}, "p"), state([0.0] * 5), [0.5], span=(0.5, 3.0), step=0.9, k=5)
    kinds, parameter, _, change = events(found)
    assert kinds == ["flip", "flip", "flip", "branch point", "flip"] and change == [1] * 5 and found.steps.item() < 5
    assert (parameter - at.abs().sort().values).abs().max() < 1e-10


def test_a_passage_beyond_the_leading_modes_is_not_seen_and_the_verdict_says_so():
    rates = numbers(3.0, 2.5, -1.0, 0.2)
    family = ParametricMap(lambda z, x, p: {"z": p[:, None] * z["z"] * rates}, "p")
    for k, seen in ((1, [1 / 3]), (2, [1 / 3, 0.4]), (3, [1 / 3, 0.4, 1.0]), (4, [1 / 3, 0.4, 1.0])):
        found = follow(family, state([0.0] * 4), [0.1], span=(0.1, 1.5), k=k, step=0.4)
        assert (found.event_parameter - numbers(*seen)).abs().max() < 1e-12
        assert found.verdict[-1] == ("unstable(3)" if k == 4 else f"unstable({k}+)")


def test_the_edge_of_the_leading_modes_invents_no_event_and_halves_no_pair():
    # Eigenvalues 3, 2 and −(1 + p): at p = 1 the order changes, and nothing passes.
    family = ParametricMap(lambda z, x, p: {"z": z["z"] * torch.stack([3 + 0 * p, 2 + 0 * p, -1 - p], 1)}, "p")
    assert follow(family, state([0.0] * 3), [0.5], span=(0.5, 2.0), k=2, step=0.4).event_kind == ()
    # p(0.6 ± 0.8i), of which the leading mode is one.
    turn = numbers(0.6, 0.8, -0.8, 0.6).reshape(2, 2)
    found = follow(ParametricMap(lambda z, x, p: {"z": p[:, None] * (z["z"] @ turn)}, "p"), state([0.0, 0.0]), [0.5], span=(0.5, 2.0), k=1, step=0.4)
    assert found.event_kind == ("Neimark-Sacker",) and found.event_change.tolist() == [2]
    assert abs(found.event_eigenvalue.item() - (0.6 + 0.8j)) < 1e-12 and found.event_parameter.item() == pytest.approx(1.0, abs=1e-12)


def test_a_circle_of_fixed_points_turns_and_shrinks_to_a_point():
    # |z|² = s with p + s − s² = 0: a fold at p = −1/4, and at p = 0 the circle shrinks into the origin; the branch comes out on the other side.
    def rule(z, x, p):
        s = z["z"].square().sum(1)
        return {"z": z["z"] * (1 + 0.3 * (p + s - s**2))[:, None]}

    s = (1 + 1.4**0.5) / 2
    found = follow(ParametricMap(rule, "p"), state([0.6 * s**0.5, 0.8 * s**0.5]), [0.1], -1, span=(-0.5, 0.1), k=2, step=0.3)
    kinds, parameter, _, change = events(found)
    assert kinds == ["fold", "branch point", "fold"] and change == [1, 0, -1] and found.end == ("range",)
    assert (parameter - numbers(-0.25, 0.0, -0.25)).abs().max() < 1e-9
    assert (found.states["z"] @ numbers(0.8, -0.6)).abs().max() < 1e-9  # along one ray, and never around the circle


def test_a_nan_just_beyond_a_flip_leaves_the_flip():
    family = pointwise(lambda z, r: logistic(z, r) + 0 * (3.02 - r).sqrt())
    found = follow(family, state(0.6), [2.5], span=(2.0, 4.0), step=0.3)
    assert found.end == ("nonfinite",) and found.event_kind == ("flip",) and 3 < found.parameter.max() <= 3.02
    assert found.event_parameter.item() == pytest.approx(3.0, abs=1e-12) and found.residual.max() < TOL


def test_the_same_events_are_found_with_half_the_step_and_the_last_point_is_on_the_bound(generator):
    weight = torch.randn(20, 20, generator=generator.manual_seed(2), dtype=torch.float64) / 20**0.5
    bias = 0.3 * torch.randn(20, generator=generator, dtype=torch.float64)
    family = ParametricMap(lambda z, x, p: {"z": torch.tanh(p[:, None] * (z["z"] @ weight) + bias)}, "gain")
    whole, half = (follow(family, state([0.0] * 20), [0.9], span=(0.9, 1.05), k=20, step=step) for step in (0.5, 0.25))
    assert whole.event_kind == half.event_kind == ("flip", "Neimark-Sacker")
    assert whole.event_change.tolist() == [1, 2] and len(half.parameter) > len(whole.parameter)
    assert (whole.event_parameter - half.event_parameter).abs().max() < 1e-11 and whole.event_error.max() < 1e-11
    assert whole.parameter[-1] == half.parameter[-1] == 1.05 and whole.end == ("range",)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_branch_can_begin_at_its_fold(direction):
    x_c = math.sqrt(0.5)
    b_c = math.atanh(x_c) - 2 * x_c
    found = follow(pointwise(lambda z, b: torch.tanh(2 * z + b)), state(x_c), [b_c], direction, span=(-0.55, 0.0), k=0)
    ends = found.states["z"][-1].item(), found.parameter[-1].item()
    assert found.end == ("range",) and ends[1] == 0 and min(abs(ends[0]), abs(ends[0] - 0.957504024077)) < 1e-9


def test_float32_states_are_followed_to_their_precision():
    family = pointwise(lambda z, b: torch.tanh(2 * z + b))
    z = {"z": torch.tensor([[-0.95]])}
    found = continuation(family, z, parameter=torch.tensor([0.0]), direction=1, span=(0.0, 1.0), tol=1e-6, step=0.2, max_steps=100, k=1)
    assert found.event_kind == ("fold",) and found.end == ("range",) and found.states["z"].dtype == torch.float32
    assert found.event_parameter.item() == pytest.approx(math.sqrt(2) - math.atanh(math.sqrt(0.5)), abs=1e-5)
    assert found.parameter[-1] == 0 and found.states["z"][-1].abs() < 1e-6


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_followed_is_refused():
    family = pointwise(lambda z, b: torch.tanh(2 * z + b), "b")
    z = state(-1.0)
    for more, text in {
        ("at", (-1.0, 0.0)): r"got 2 parameters for 1 states\. Every branch.*Pass a tensor of 1",
        ("at", (-3.0,)): r"a start at b = -3 for span=\(-1\.0, 1\.0\)\. A branch starts inside.*Widen",
        ("span", (1.0, -1.0)): r"got span=\(1\.0, -1\.0\)\. It is the least.*Use span=\(-1\.0, 1\.0\)",
        ("span", (-math.inf, 1.0)): r"got span=\(-inf, 1\.0\)\..*both finite\. Use span=\(0\.0, 1\.0\)",
        ("direction", torch.tensor([1, -1])): r"directions of shape \(2,\) for 1 states\. There is one.*Use direction=1, or a tensor of 1",
        ("step", math.inf): r"got step=inf.*all finite\. Use step=0\.05",
        ("scale", math.inf): r"scale=inf\..*all finite\. Use step=0\.05",
        ("direction", 2): r"got a direction of 2\. A branch begins up or down.*Use 1 or -1",
        ("step", 0.0): r"got step=0\.0, max_steps=300.*Use step=0\.05",
        ("max_steps", 0): r"max_steps=0.*one or more steps.*Use step=0\.05",
        ("scale", -1.0): r"scale=-1\.0.*above 0.*no scale",
        ("k", 2): r"got k=2 for states of 1 numbers\. A state of n.*Use k from 0 to 1",
        ("tol", 1e-15): r"`continuation` got tol=1e-15",
    }.items():
        with pytest.raises(ValueError, match=text):
            follow(family, z, **({"at": (-1.0,)} | {more[0]: more[1]}))
    with pytest.raises(ValueError, match=r"states and parameters in float32 and float64\. Both are followed.*Cast all"):
        follow(family, {"z": torch.zeros(1, 1)}, (0.0,), tol=1e-5)
    named = ParametricMap(lambda z, x, b: {"parameter": torch.tanh(z["parameter"] + b[:, None])}, "b")
    with pytest.raises(ValueError, match=r"a state with a leaf 'parameter'\. The parameter of a family.*Rename the leaf"):
        follow(named, {"parameter": z["z"]}, (0.0,))
