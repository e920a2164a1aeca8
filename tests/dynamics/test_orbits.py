"""Settling: closed forms of linear maps, compaction, chunks, and rows that fail."""

import pytest
import torch

from attractorlab import Result, every, repeat_rows, settle, trace, trees
from attractorlab.dynamics import orbits
from attractorlab.dynamics.orbits import check_tol, chunks
from attractorlab.maps import LatentMap
from attractorlab.testing import toys

TOL = 1e-6
halving = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, clock="tick")  # rests at 2
# Entry by entry: above 0 the row goes to 1, below 0 it goes to minus infinity ever faster; NaN stays NaN.
mixed = LatentMap(lambda z, x: {"z": torch.where(z["z"] > 0, 0.5 * z["z"] + 0.5, 3 * z["z"] * z["z"].abs())}, {}, clock="tick")


def driven(rows, dtype=torch.float64):
    """Row i rests at i + 1, with rate 0.1 (i + 1)."""
    rate = (0.1 * torch.arange(1, rows + 1, dtype=dtype))[:, None]
    goal = torch.arange(1, rows + 1, dtype=dtype)[:, None]
    return LatentMap(
        lambda z, x: {"z": x["goal"] + x["rate"] * (z["z"] - x["goal"])},
        {"goal": goal, "rate": rate},
        instance=torch.arange(rows),
        start=torch.zeros(rows, dtype=torch.int64),
        clock="tick",
    )


def test_a_halving_map_settles_at_the_tick_of_the_formula():
    rest = settle(halving, {"z": torch.zeros(3, 1, dtype=torch.float64)}, tol=TOL, max_ticks=99)
    # z_t = 2(1 − 2^−t), so the residual is 2^−t/(2(1 − 2^−t)): below 1e-6 from t = 19 on.
    assert rest.tick.tolist() == [19] * 3
    assert rest.residual.tolist() == pytest.approx([2.0**-21 / (2 * (1 - 2.0**-21))] * 3)
    assert rest.states["z"][:, 0].tolist() == [2 * (1 - 2.0**-21)] * 3
    assert (rest.result == Result.CONVERGED.code).all()


@pytest.mark.parametrize("window", [1, 3, 7])
def test_the_end_is_the_recorded_state_of_the_last_tick_of_the_window(window):
    f = driven(6)
    z = {"z": torch.linspace(-3, 9, 6, dtype=torch.float64)[:, None]}
    rest = settle(f, z, tol=TOL, max_ticks=80, window=window)
    traj = trace(f, z, ticks=80, keep=every(1))
    for row in range(6):
        low = (traj.residual[:, row] < TOL).tolist()
        first = next(t for t in range(80) if all(low[t : t + window]))
        assert rest.tick[row] == first
        assert rest.states["z"][row].equal(traj.states["z"][first + window - 1, row])
        assert rest.residual[row].equal(traj.residual[first + window - 1, row])


def test_rows_of_a_driven_map_keep_their_own_drive_when_others_leave():
    f = driven(8)
    rest = settle(f, {"z": torch.zeros(8, 1, dtype=torch.float64)}, tol=1e-10, max_ticks=300)
    assert (rest.states["z"][:, 0] - torch.arange(1, 9)).abs().max() < 1e-7
    assert rest.tick.tolist() == sorted(rest.tick.tolist()) and len(set(rest.tick.tolist())) == 8


def test_cost_follows_the_sum_of_the_work_and_not_the_slowest_row():
    seen = []

    def rule(z, x):
        seen.append(len(z["z"]))
        return {"z": x["goal"] + x["rate"] * (z["z"] - x["goal"])}

    f = driven(8)
    f = LatentMap(rule, f.drive, instance=f.instance, start=f.start, clock="tick")
    rest = settle(f, {"z": torch.zeros(8, 1, dtype=torch.float64)}, tol=TOL, max_ticks=300)
    assert sum(seen) == int((rest.tick + 3).sum()) + 8 + 8 + 4  # before, a few rows are run twice, and half of them


def test_a_chunked_run_is_bitwise_the_whole_one(monkeypatch):
    f = driven(40).take(repeat_rows(8, 5))
    z = {"z": torch.linspace(-3, 9, 40, dtype=torch.float64)[:, None]}
    whole = settle(f, z, tol=TOL, max_ticks=50)
    monkeypatch.setattr(orbits, "CPU_CHUNK", 1)
    assert [len(rows) for rows in chunks(z)] == [8] * 5
    parts = settle(f, z, tol=TOL, max_ticks=50)
    for name in ("tick", "residual", "result"):
        assert getattr(whole, name).equal(getattr(parts, name))
    assert whole.states["z"].equal(parts.states["z"])


def test_permuted_rows_settle_alike(generator):
    toy = toys.separable_tanh(1.5, 3)
    z = toy.starts(50, generator=generator)
    order = torch.randperm(50, generator=generator)
    a = settle(toy.map, z, tol=1e-9, max_ticks=200)
    b = settle(toy.map, trees.take(z, order), tol=1e-9, max_ticks=200)
    assert a.tick[order].equal(b.tick) and a.states["z"][order].equal(b.states["z"])


def test_rows_that_fail_are_told_apart_and_leave_the_others_untouched():
    good = {"z": torch.tensor([[0.5], [3.0]], dtype=torch.float64)}
    bad = {"z": torch.tensor([[torch.nan], [0.5], [-2.0], [3.0], [torch.inf]], dtype=torch.float64)}
    alone, among = settle(mixed, good, tol=TOL, max_ticks=60), settle(mixed, bad, tol=TOL, max_ticks=60)
    names = [Result.of(code) for code in among.result.tolist()]
    assert names == [Result.NONFINITE, Result.CONVERGED, Result.DIVERGED, Result.CONVERGED, Result.NONFINITE]
    assert among.states["z"][[1, 3]].equal(alone.states["z"]) and among.tick[[1, 3]].equal(alone.tick)
    assert among.tick[[0, 2, 4]].tolist() == [-1] * 3
    assert among.states["z"][2].isfinite().all(), "the state before it grew without bound is kept"


def test_a_row_that_needs_longer_is_undecided_with_its_last_state_and_residual():
    rest = settle(halving, {"z": torch.zeros(1, 1, dtype=torch.float64)}, tol=TOL, max_ticks=10)
    assert rest.result.tolist() == [Result.MAX_STEPS.code] and rest.tick.tolist() == [-1]
    assert rest.states["z"].item() == 2 * (1 - 2.0**-10)
    assert rest.residual.item() == pytest.approx(2.0**-10 / (2 * (1 - 2.0**-10)))


def test_two_slow_ticks_before_a_leap_are_rest_for_a_window_of_two_and_not_of_three():
    def rule(z, x):  # two steps of 1e-5 after each whole number, then on to the next
        past = z["z"] - z["z"].floor()
        return {"z": torch.where(past < 1.5e-5, z["z"] + 1e-5, z["z"].floor() + 1)}

    f, z = LatentMap(rule, {}, clock="tick"), {"z": torch.tensor([[1.0]], dtype=torch.float64)}
    assert settle(f, z, tol=1e-4, max_ticks=50, window=2).tick.tolist() == [0]
    assert settle(f, z, tol=1e-4, max_ticks=50, window=3).result.tolist() == [Result.MAX_STEPS.code]


def test_the_residual_keeps_the_dtype_that_the_leaves_have_together():
    f = LatentMap(lambda z, x: {"a": 0.5 * z["a"] + 1, "b": 0.5 * z["b"] + 1}, {}, clock="tick")
    z = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3, dtype=torch.float64)}
    assert settle(f, z, tol=1e-5, max_ticks=60).residual.dtype == torch.float64
    with pytest.raises(ValueError, match=r"`settle` got tol=1e-09 for states in float32.*Use tol=1e-07 or more"):
        settle(f, z, tol=1e-9, max_ticks=60)


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float64, 1e-13), (torch.float32, 1e-7), (torch.bfloat16, 3e-3)])
def test_a_tolerance_below_the_floor_of_the_dtype_is_refused(dtype, floor):
    check_tol(floor, dtype, "anything")
    for tol in (floor / 2, 0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`anything` got tol=.*Rounding alone leaves.*or cast model and state to float64"):
            check_tol(tol, dtype, "anything")


def test_windows_and_ticks_below_one_are_refused():
    for wrong in ({"max_ticks": 0}, {"max_ticks": 5, "window": 0}):
        with pytest.raises(ValueError, match=r"`settle` got max_ticks=.*judged over one tick or more.*Use max_ticks=512, window=3"):
            settle(halving, {"z": torch.zeros(1, 1)}, tol=1e-3, **wrong)


def test_states_that_do_not_pair_up_with_the_rows_are_refused():
    with pytest.raises(ValueError, match=r"A state of 5 rows met a map of 3 rows.*f.take\(\[0\] \* 5\)"):
        settle(driven(3), {"z": torch.zeros(5, 1)}, tol=1e-3, max_ticks=5)
