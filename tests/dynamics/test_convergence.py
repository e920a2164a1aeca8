"""Verdicts, ticks and rates against maps whose behaviour is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from attractorlab import convergence, every, only_last, repeat_rows, settle, strobe, trace
from attractorlab.dynamics.convergence import solved_at
from attractorlab.maps import LatentMap
from attractorlab.testing import toys

TOL = 1e-6


def scalar(rule, **more):
    return LatentMap(lambda z, x: {"z": rule(z["z"])}, {}, clock="tick", **more)


def at(*values, dtype=torch.float64):
    return {"z": torch.tensor(values, dtype=dtype)[:, None]}


@pytest.mark.parametrize("rate", [0.1, 0.5, -0.5, 0.9, -0.95, 0.99])
def test_the_rate_of_a_linear_map_is_the_modulus_of_its_eigenvalue(rate):
    f = scalar(lambda z: rate * (z - 3) + 3)
    conv = convergence(trace(f, at(3.01), ticks=1500, keep=only_last()), tol=TOL)
    assert conv.verdict == ("settled",)
    assert conv.rate.item() == pytest.approx(abs(rate), rel=1e-4)


@pytest.mark.parametrize("ticks", [5, 12, 24, 60, 400])
def test_the_rate_does_not_depend_on_how_long_the_row_then_lies_still(ticks):
    conv = convergence(trace(scalar(lambda z: 0.5 * z + 1), at(2.1), ticks=ticks, keep=only_last()), tol=1e-2)
    assert conv.rate.item() == pytest.approx(0.5, rel=0.03)


def test_a_rate_needs_three_residuals_above_the_floor():
    conv = convergence(trace(scalar(lambda z: 1e-6 * (z - 1) + 1), at(1.5, 1.0), ticks=9, keep=only_last()), tol=TOL)
    assert conv.rate.isnan().tolist() == [True, True], "two residuals lie above the floor, and none"
    assert convergence(trace(scalar(lambda z: 1e-4 * (z - 1) + 1), at(1.001), ticks=9, keep=only_last()), tol=TOL).rate.item() == pytest.approx(1e-4, rel=1e-3)


def test_rounding_at_the_floor_does_not_enter_the_rate():
    f = scalar(lambda z: 0.5 * z + 1)
    conv = convergence(trace(f, at(3.0, dtype=torch.float32), ticks=60, keep=only_last()), tol=1e-5)
    assert conv.rate.dtype == torch.float32 and conv.rate.item() == pytest.approx(0.5, rel=1e-2)


def test_the_rate_of_a_strobed_map_is_the_power():
    f = scalar(lambda z: 0.9 * (z - 3) + 3)
    conv = convergence(trace(strobe(f, 4), at(3.1), ticks=60, keep=only_last()), tol=TOL)
    assert conv.rate.item() == pytest.approx(0.9**4, rel=1e-6) and conv.clock == "4 x tick"


def test_the_settle_tick_is_that_of_the_formula_and_of_settle():
    f = scalar(lambda z: 0.5 * z + 1)
    z = at(0.0, 2.0, 1e3)
    conv = convergence(trace(f, z, ticks=90, keep=only_last()), tol=TOL)
    # From 0: 2^−t/(2(1 − 2^−t)) < 1e-6 from t = 19 on; from 1000: 499 2^−t/2 < 1e-6 from 28 on; 2 is the fixed point.
    assert conv.settle_tick.tolist() == [19, 0, 28]
    assert conv.settle_tick.equal(settle(f, z, tol=TOL, max_ticks=90).tick)
    assert conv.settled.all() and conv.period.tolist() == [1, 1, 1]


def test_a_row_that_came_to_rest_too_late_for_the_window_is_not_yet_settled():
    f = scalar(lambda z: 0.5 * z + 1)  # at rest from tick 19 on, see above
    early, late = (convergence(trace(f, at(0.0), ticks=ticks, keep=only_last()), tol=TOL) for ticks in (20, 21))
    assert (early.verdict, early.period.item(), early.settle_tick.item()) == (("approaching",), 0, -1)
    assert (late.verdict, late.period.item(), late.settle_tick.item()) == (("settled",), 1, 19)


def logistic(r):
    return scalar(lambda z: r * z * (1 - z))


@pytest.mark.parametrize(("r", "period"), [(2.8, 1), (3.2, 2), (3.5, 4), (3.55, 8), (3.84, 3), (3.74, 5)])
def test_the_logistic_map_has_the_period_of_its_window(r, period):
    conv = convergence(trace(logistic(r), at(0.3, 0.41), ticks=1000, keep=only_last()), tol=TOL)
    word = "settled" if period == 1 else f"periodic({period})"
    assert conv.verdict == (word, word) and conv.period.tolist() == [period] * 2
    assert conv.settled.tolist() == [period == 1] * 2


def test_the_orbit_of_period_two_of_the_logistic_map_is_at_rest_under_the_strobe():
    f, r = strobe(logistic(3.2), 2), 3.2
    traj = trace(f, at(0.3), ticks=200, keep=only_last())
    conv = convergence(traj, tol=TOL)
    roots = [(r + 1 + s * math.sqrt((r - 3) * (r + 1))) / (2 * r) for s in (1, -1)]
    assert conv.verdict == ("settled",) and min(abs(traj.last["z"].item() - root) for root in roots) < 1e-12
    # The eigenvalue of the orbit is 4 + 2r − r².
    assert conv.rate.item() == pytest.approx(abs(4 + 2 * r - r * r), rel=1e-2)


def test_chaos_wanders_and_growth_diverges_and_nan_is_diverged():
    f = scalar(lambda z: torch.where(z < 1, 4 * z * (1 - z), 3 * z))
    conv = convergence(trace(f, at(0.3, 2.0, math.nan), ticks=300, keep=only_last()), tol=1e-3)
    assert conv.verdict == ("wandering", "diverged", "diverged")
    assert conv.settle_tick.tolist() == [-1] * 3 and conv.period.tolist() == [0] * 3


def test_a_row_that_fails_leaves_the_numbers_of_the_others(generator):
    toy = toys.separable_tanh(1.5, 4)
    z = toy.starts(6, generator=generator)
    spoiled = {"z": z["z"].clone()}
    spoiled["z"][2] = math.nan
    a, b = (convergence(trace(toy.map, start, ticks=80, keep=only_last()), tol=TOL) for start in (z, spoiled))
    fine = torch.tensor([0, 1, 3, 4, 5])
    for name in ("rate", "settle_tick", "period"):
        assert getattr(a, name)[fine].equal(getattr(b, name)[fine]), name
    assert b.verdict[2] == "diverged" and b.rate[2].isnan()


def test_a_rotation_wanders_unless_its_period_is_eight_or_less():
    def turn(turns):
        c, s = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
        return toys.linear(torch.tensor([[c, -s], [s, c]], dtype=torch.float64)).map

    words = []
    for turns in (1 / 2, 2 / 7, 3 / 8, 1 / 9, 1 / math.pi):
        words += convergence(trace(turn(turns), {"z": torch.tensor([[1.0, 0.5]]).double()}, ticks=50, keep=only_last()), tol=TOL).verdict
    assert words == ["periodic(2)", "periodic(7)", "periodic(8)", "wandering", "wandering"]


def counting(starts):
    """Each row counts up to 6 and stays; it answers its count. Row by row, another start."""
    f = LatentMap(
        lambda z, x: {"z": (z["z"] + 1).clamp(max=6)},
        {"x": torch.zeros(len(starts), 1)},
        readout=lambda z: {"answer": z["z"].round().long()},
        clock="tick",
        instance=torch.arange(len(starts)) % 2,
        start=torch.arange(len(starts)) // 2,
    )
    return f, at(*starts)


def test_solving_is_read_at_every_tick_against_the_targets_of_the_instance():
    f, z = counting([0.0, 2.0, 4.0, 6.0])
    traj = trace(f, z, ticks=8, keep=only_last())
    conv = convergence(traj, tol=TOL, targets=torch.tensor([[6], [4]]))
    # Rows 0 and 2 belong to instance 0 (asked for 6), rows 1 and 3 to instance 1 (asked for 4).
    assert conv.first_solved.tolist() == [6, 2, 2, -1]
    assert conv.stays_solved.tolist() == [6, -1, 2, -1], "instance 1 passes its answer and leaves it"
    assert conv.solved[:, 1].nonzero().flatten().tolist() == [2]
    assert conv.by_instance("first_solved").tolist() == [[6, 2], [2, -1]]


def test_without_targets_nothing_is_said_about_solving():
    conv = convergence(trace(scalar(lambda z: 0.5 * z), at(1.0), ticks=4, keep=only_last()), tol=TOL)
    assert conv.solved is None and conv.first_solved is None and conv.stays_solved is None


def test_a_row_that_ended_solves_nothing_even_where_minus_one_is_asked_for_in_part():
    f, z = counting([0.0, 0.0])
    z["z"][1] = math.nan
    conv = convergence(trace(f, z, ticks=8, keep=only_last()), tol=TOL, targets=torch.tensor([[6], [6]]))
    assert conv.stays_solved.tolist() == [6, -1]


def test_answers_do_not_wrap_around_sixteen_bits():
    f = scalar(lambda z: z, readout=lambda z: {"logits": torch.eye(3)[:1].double().expand(len(z["z"]), 3)[:, None]})
    traj = trace(f, at(1.0), ticks=3, keep=only_last())
    assert convergence(traj, tol=TOL, targets=torch.tensor([[0]])).solved.all()
    assert not convergence(traj, tol=TOL, targets=torch.tensor([[65_536]])).solved.any()


def test_misuse_is_refused_with_what_to_do():
    f, z = counting([0.0, 1.0])
    traj = trace(f, z, ticks=4, keep=every(1))
    with pytest.raises(ValueError, match=r"`convergence` got tol=1e-20 for states in float64"):
        convergence(traj, tol=1e-20)
    with pytest.raises(ValueError, match=r"`convergence` got a trajectory of 5 residuals for window=9.*Trace 8 ticks or more"):
        convergence(traj, tol=TOL, window=9)
    with pytest.raises(ValueError, match=r"residuals for window=0"):
        convergence(traj, tol=TOL, window=0)
    for wrong in (torch.zeros(2, 3).long(), torch.zeros(1, 1).long()):
        with pytest.raises(ValueError, match=r"`solved_at` got targets of shape .* for answers of 1 sites on instances up to 1.*Pass the `targets`"):
            convergence(traj, tol=TOL, targets=wrong)
    with pytest.raises(ValueError, match=r"`solved_at` got targets for a trajectory with the readouts none.*leave `targets` out"):
        solved_at(replace(traj, readouts={}), torch.zeros(2, 1).long())


def test_a_table_by_instance_needs_as_many_starts_for_each():
    f, z = counting([0.0, 1.0, 2.0, 3.0])
    traj = trace(f, z, ticks=4, keep=every(1))
    assert traj.by_instance("residual").shape == (5, 2, 2)
    ragged = trace(f.take([0, 1, 2]), {"z": z["z"][:3]}, ticks=4, keep=every(1))
    with pytest.raises(ValueError, match=r"`by_instance` got between 1 and 2 starts an instance.*group the rows yourself"):
        ragged.by_instance("residual")
    repeated = trace(f.take(repeat_rows(2, 3)), {"z": z["z"][[0] * 6]}, ticks=4, keep=every(1))
    assert repeated.instance.tolist() == [0, 0, 0, 1, 1, 1] and repeated.start.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_dying_oscillation_is_approaching_and_a_two_cycle_is_not():
    dying = LatentMap(lambda z, x: {"z": -0.97 * z["z"] + 1}, {}, clock="tick")
    cycle = LatentMap(lambda z, x: {"z": 3.2 * z["z"] * (1 - z["z"])}, {}, clock="tick")
    z = {"z": torch.full((1, 1), 0.2, dtype=torch.float64)}
    assert convergence(trace(dying, z, ticks=150, keep=only_last()), tol=1e-3).verdict == ("approaching",)
    assert convergence(trace(cycle, z, ticks=150, keep=only_last()), tol=1e-3).verdict == ("periodic(2)",)


@pytest.mark.parametrize("ticks", [2, 3, 5, 7, 12])
def test_a_short_run_that_comes_in_is_approaching_however_short(ticks):
    half = scalar(lambda z: 0.5 * z + 1)
    assert convergence(trace(half, at(5.0), ticks=ticks, keep=only_last()), tol=1e-9).verdict == ("approaching",)


def test_a_tolerance_that_everything_meets_is_refused():
    with pytest.raises(ValueError, match=r"`convergence` got tol=5.0.*its own length is not at rest.*Use a tol below 1"):
        convergence(trace(scalar(lambda z: 0.5 * z), at(1.0), ticks=4, keep=only_last()), tol=5.0)
