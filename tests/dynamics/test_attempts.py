"""Rows through slots: maps that solve, halt and rest at known ticks; the same reads by another route; no row feels another."""

import dataclasses
import gc
import itertools
from dataclasses import replace

import pytest
import torch

from attractorlab import Halting, Result, attempt, elastic, halted, only_last, trace
from attractorlab.dynamics.attempts import fingerprint, joined, slots_for, spaced
from attractorlab.dynamics.slots import Slots
from attractorlab.maps import LatentMap
from attractorlab.types import Attempts

PUBLISHED = Halting(0.0, 1, None)
NEVER = 10**6


def clocked(solves, *, until=None, halts=None, rests=None, rule=None):
    """A map that counts ticks: row i is solved from tick solves[i] to before until[i], has a positive halting logit from halts[i] on, and stands still from rests[i] on."""
    n = len(solves)

    def column(values):
        return torch.tensor([NEVER] * n if values is None else values, dtype=torch.float64)

    drive = {"solves": column(solves), "until": column(until), "halts": column(halts), "rests": column(rests)}

    def count(z, x):
        return {"t": torch.minimum(z["t"] + 1, torch.maximum(z["t"], x["rests"][:, None]))}

    def readout(z, x):
        t = z["t"][:, 0]
        right = ((t >= x["solves"]) & (t < x["until"])).double()
        logits = torch.stack([1 - right, right], 1)[:, None]
        return {"logits": logits} | ({} if halts is None else {"halt": t - x["halts"] + 0.5})

    from attractorlab.maps import DrivenReadout

    return LatentMap(rule or count, drive, readout=DrivenReadout(readout, drive), clock="tick", instance=torch.arange(n), start=torch.zeros(n).long())


def from_zero(n):
    return {"t": torch.zeros(n, 1, dtype=torch.float64)}


def ones(n):
    return torch.ones(n, 1).long()


def bent(generator, rows=10):
    """A nonlinear map of coupled entries, its starts, and targets that some rows reach."""
    goal = torch.randint(4, (rows, 3), generator=generator)
    drive = {"goal": 2.0 * torch.nn.functional.one_hot(goal, 4).double()}

    def rule(z, x):
        return {"z": 0.7 * z["z"] + 0.3 * torch.tanh(x["goal"] - z["z"].flip(1))}

    f = LatentMap(rule, drive, readout=lambda z: {"logits": z["z"], "halt": 0.8 - z["z"].abs().amax((1, 2))}, clock="tick", instance=torch.arange(rows), start=torch.zeros(rows).long())
    return f, {"z": 2 * torch.randn(rows, 3, 4, generator=generator, dtype=torch.float64)}, goal


def test_residuals_in_bfloat16_are_those_of_its_states():
    """Held against the same states in double precision: rounded to bfloat16 they would tie, and the first of them be chosen."""
    drive = {"goal": torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(1)).bfloat16()}
    f = LatentMap(lambda z, x: {"z": 0.7 * z["z"] + 0.3 * torch.tanh(x["goal"] - z["z"].flip(1))}, drive, readout=lambda z: {"logits": z["z"]}, clock="tick", instance=torch.arange(60), start=torch.zeros(60).long())
    z = {"z": torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(2)).bfloat16()}
    runs = attempt(f, z, ticks=3, read=[1, 3], slots=7, halting=None, hold=None, targets=None)
    path = [z["z"].double()]
    for _ in range(3):
        z = f(z)
        path.append(z["z"].double())
    moved = torch.stack([(b - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1) for a, b in itertools.pairwise(path)])
    changed = torch.stack([(b - a).norm(dim=-1).mean(1) for a, b in itertools.pairwise(path)])
    assert runs.residual.dtype == torch.float32 and len(runs.residual[0].unique()) == 60
    for k, ticks in enumerate((1, 3)):
        torch.testing.assert_close(runs.residual[k].double(), moved[:ticks].mean(0), rtol=1e-5, atol=0)
        torch.testing.assert_close(runs.logit_change[k].double(), changed[:ticks].mean(0), rtol=1e-5, atol=0)


def same(a, b, *, but=()):
    for one in dataclasses.fields(Attempts):
        x, y = getattr(a, one.name), getattr(b, one.name)
        if one.name in but:
            continue
        if isinstance(x, dict):
            assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), one.name
        elif isinstance(x, torch.Tensor):
            assert x.shape == y.shape and torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), one.name
        else:
            assert x == y, one.name


def test_solving_and_halting_are_seen_at_the_ticks_at_which_they_happen():
    f = clocked([1, 3, 9, 20, 2], until=[NEVER, 5, NEVER, NEVER, NEVER], halts=[2, 4, 30, 1, 12])
    runs = attempt(f, from_zero(5), ticks=12, read=[1, 4, 12], slots=2, halting=PUBLISHED, hold=None, targets=ones(5))
    assert runs.first_solved.tolist() == [1, 3, 9, -1, 2]
    assert runs.stays_solved.tolist() == [1, -1, 9, -1, 2]
    assert runs.halt_tick.tolist() == [2, 4, -1, 1, 12]
    assert runs.solved.tolist() == [[True, False, False, False, False], [True, True, False, False, True], [True, False, True, False, True]]
    assert runs.at_halt["solved"].tolist() == [True, True, True, False, True]
    assert runs.last_tick.tolist() == [12] * 5 and runs.computed.tolist() == [12] * 5
    # |t + 1 − t| over max(t, 1): ticks 1 to 12, means of the last three.
    assert runs.residual[:, 0].tolist() == pytest.approx([1.0, (1 + 1 / 2 + 1 / 3) / 3, (1 / 9 + 1 / 10 + 1 / 11) / 3])
    # The logits of a row change by √2 at the tick at which it is solved or lost.
    assert runs.logit_change[:, 1].tolist() == pytest.approx([0.0, 2**0.5 / 3, 0.0])


def test_every_read_is_what_a_recorded_trajectory_holds(generator):
    f, z, goal = bent(generator)
    read, ticks = [1, 2, 5, 9], 9
    runs = attempt(f, z, ticks=ticks, read=read, slots=4, halting=PUBLISHED, hold=None, targets=goal, verify=lambda rows, answers: answers[..., 0] == rows % 4)
    traj = trace(f, z, ticks=ticks, keep=only_last())
    answer = traj.readouts["answer"]
    solved = (answer == goal).all(2)
    assert 0.1 < solved.double().mean() < 0.95, "all right or all wrong would test nothing"
    assert runs.solved.equal(solved[read]) and runs.answer.equal(fingerprint(answer[read])) and runs.final.equal(answer[-1].to(torch.int8))
    assert runs.halt.double().allclose(traj.readouts["halt"][read], rtol=1e-6)
    assert runs.valid.equal(answer[read][..., 0] == torch.arange(10) % 4)
    for k, d in enumerate(read):
        assert runs.residual[k].allclose(traj.residual[max(0, d - 3) : d].mean(0), rtol=1e-12)
        assert runs.logit_change[k].allclose(traj.readouts["logit_change"][max(1, d - 2) : d + 1].mean(0), rtol=1e-6)


@pytest.mark.parametrize("leave", [True, False])
def test_neither_the_order_of_the_queue_nor_the_slots_change_a_bit(generator, leave):
    f, z, goal = bent(generator, rows=23)
    goal = goal[torch.arange(23)]

    def followed(f, z, slots):
        more = {"ticks": 15, "read": [1, 4, 15], "slots": slots, "halting": PUBLISHED, "targets": goal}
        return elastic(f, z, **more) if leave else attempt(f, z, hold=None, **more)

    runs = followed(f, z, 5)
    assert 0 < (runs.halt_tick > 0).sum() < 23, "all halted or none would test nothing"
    for slots in (1, 8, 64):
        same(runs, followed(f, z, slots))
    order = torch.randperm(23, generator=generator)
    moved = followed(f.take(order), {"z": z["z"][order]}, 5)
    for name in ("solved", "answer", "residual"):
        assert getattr(moved, name).equal(getattr(runs, name)[:, order]), name
    for name in ("halt_tick", "first_solved", "stays_solved", "last_tick", "result", "final"):
        assert getattr(moved, name).equal(getattr(runs, name)[order]), name


def test_a_device_that_is_not_asked_gives_the_same_bits(generator, monkeypatch):
    class Elsewhere(str):
        """The processor under a name that does not say so."""

        type = "elsewhere"

    plain = Slots.__init__

    def hidden(self, *given, **named):
        plain(self, *given, **named)
        self.device = Elsewhere("cpu")

    f, z, goal = bent(generator, rows=11)
    more = {"ticks": 15, "read": [1, 4, 15], "halting": PUBLISHED, "targets": goal}
    known = [(elastic(f, z, slots=n, **more), attempt(f, z, slots=n, hold=1e-3, **more)) for n in (1, 4, 20)]
    monkeypatch.setattr(Slots, "__init__", hidden)
    for n, (left, held) in zip((1, 4, 20), known, strict=True):
        same(elastic(f, z, slots=n, **more), left)
        same(attempt(f, z, slots=n, hold=1e-3, **more), held)


def test_leaving_at_the_halting_gives_what_was_read_there_of_rows_that_went_on(generator):
    f, z, goal = bent(generator)
    more = {"ticks": 15, "read": [1, 2, 4, 15], "slots": 3, "halting": PUBLISHED, "targets": goal, "verify": lambda rows, answers: answers[..., 0] > 1}
    whole, left = attempt(f, z, hold=None, **more), elastic(f, z, **more)
    same(halted(whole), left, but=("computed", "first_solved", "stays_solved"))
    assert left.computed.equal(left.last_tick) and int(left.computed.sum()) < int(whole.computed.sum())


def test_a_slot_is_refilled_at_once_so_that_the_calls_are_those_of_the_best_queue():
    halts = [3, 1, 4, 1, 5, 9, 2, 6]
    calls = []
    f = clocked([1] * 8, halts=halts)
    counted = replace(f, rule=lambda z, x: (calls.append(len(z["t"])), f.rule(z, x))[1])
    runs = elastic(counted, from_zero(8), ticks=7, read=[7], slots=3, halting=PUBLISHED, targets=ones(8))
    assert runs.last_tick.tolist() == [3, 1, 4, 1, 5, 7, 2, 6], "9 is cut at the last tick"
    assert [Result.of(code).name for code in runs.result.tolist()] == ["HALTED"] * 5 + ["COMPLETED"] + ["HALTED"] * 2
    free = [0, 0, 0]  # when each slot is free: the next row goes to the first
    for ticks in runs.last_tick.tolist():
        free[free.index(min(free))] += ticks
    calls = calls[1:]  # after a look at a few rows
    assert len(calls) == max(free) == 12 and set(calls) == {3}
    assert float(runs.last_tick.double().mean()) == 29 / 8, "ticks a row takes on average"


def test_halting_waits_for_its_first_tick_and_may_come_from_rest():
    f = clocked([1] * 3, halts=[1, 6, 50])
    assert elastic(f, from_zero(3), ticks=9, read=[9], slots=2, halting=Halting(0.0, 4, None)).last_tick.tolist() == [4, 6, 9]
    # The residual is 1/t: below 0.3 at ticks 4, 5 and 6, which are known at tick 7.
    assert elastic(f, from_zero(3), ticks=9, read=[9], slots=2, halting=Halting(0.0, 1, 0.3)).last_tick.tolist() == [1, 6, 7]


def test_a_row_that_returns_to_the_bit_is_known_and_saved_exactly():
    f = clocked([2, 2, 9], rests=[3, NEVER, 4], halts=[9, 9, 9])
    runs = attempt(f, from_zero(3), ticks=40, read=[1, 3, 8, 39, 40], slots=2, halting=PUBLISHED, hold=None, targets=ones(3))
    assert runs.computed.tolist() == [7, 40, 8] and runs.last_tick.tolist() == [40] * 3
    assert [Result.of(code).name for code in runs.result.tolist()] == ["CONVERGED", "COMPLETED", "CONVERGED"]
    assert runs.residual[:, 0].tolist() == pytest.approx([1.0, (1 + 1 + 1 / 2) / 3, 0, 0, 0])
    assert runs.first_solved.tolist() == [2, 2, -1] and runs.stays_solved.tolist() == [2, 2, -1]


@pytest.mark.parametrize("ticks", [30, 31])
def test_a_row_that_alternates_is_read_at_the_side_it_would_be_on(ticks):
    def swing(z, x):
        return {"t": -z["t"]}

    f = LatentMap(swing, {}, readout=lambda z: {"logits": torch.stack([z["t"][:, 0], -z["t"][:, 0]], 1)[:, None]}, clock="tick")
    z = {"t": torch.tensor([[1.0], [-2.0]], dtype=torch.float64)}
    read = [1, 2, 28, 29, ticks]
    runs = attempt(f, z, ticks=ticks, read=read, slots=2, halting=None, hold=None, targets=torch.ones(1, 1).long())
    assert runs.computed.tolist() == [5, 5]
    assert runs.solved[:, 0].tolist() == [t % 2 == 1 for t in read] and runs.solved[:, 1].tolist() == [t % 2 == 0 for t in read]
    assert runs.first_solved.tolist() == [1, 2]
    assert runs.stays_solved.tolist() == ([-1, ticks] if ticks % 2 == 0 else [ticks, -1])
    assert (runs.residual[2:] == 2).all()


def drifting(speed, *, gap=1.0):
    """A large constant and a small drift: at rest by its residual, but its logits cross after gap / speed ticks."""
    drive = {"speed": torch.tensor(speed, dtype=torch.float64)[:, None]}

    def rule(z, x):
        return {"z": torch.stack([z["z"][:, 0], z["z"][:, 1] + x["speed"][:, 0]], 1)}

    def readout(z):
        return {"logits": torch.stack([z["z"][:, 1] - gap, torch.zeros(len(z["z"]), dtype=torch.float64)], 1)[:, None]}

    n = len(speed)
    f = LatentMap(rule, drive, readout=readout, clock="tick", instance=torch.arange(n), start=torch.zeros(n).long())
    return f, {"z": torch.tensor([[1e6, 0.0]], dtype=torch.float64).repeat(n, 1)}


def test_a_row_at_rest_is_held_only_where_no_tick_left_could_change_its_answer():
    f, z = drifting([1e-4, 1e-2, 1e-3])
    runs = attempt(f, z, ticks=400, read=[1, 400], slots=2, halting=None, hold=1e-7, targets=ones(3))
    assert runs.solved[-1].tolist() == [True, False, True], "the second crosses at tick 100"
    assert runs.computed.tolist()[0] == 3, "400 √2 1e-4 is far below its gap of 1"
    assert runs.computed.tolist()[1:] == [276, 3], "the second is not held while it could cross; far beyond, it is: √2 (400 − t) < t − 100 from t = 276 on"
    free = attempt(f, z, ticks=400, read=[1, 400], slots=2, halting=None, hold=None, targets=ones(3))
    assert free.solved.equal(runs.solved) and free.stays_solved.equal(runs.stays_solved) and (free.computed == 400).all()


def humming(*, halt=5.0, slope=0.0, shrinks=1.0):
    """A row at rest by its residual from the first tick on, and never to the bit: its halting value is `halt` + `slope` times the ticks, its residual shrinks by a factor a tick."""

    def rule(z, x):
        return {"z": torch.stack([z["z"][:, 0], shrinks * z["z"][:, 1], z["z"][:, 2] + 1], 1)}

    def readout(z):
        return {"logits": torch.tensor([1.0, 0.0]).expand(len(z["z"]), 1, 2), "halt": halt + slope * z["z"][:, 2]}

    return LatentMap(rule, {}, readout=readout, clock="tick"), {"z": torch.tensor([[1e8, 10.0, 0.0]], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("halting", "made", "halts", "computed"),
    [
        (Halting(0.0, 16, None), {}, 16, 16),
        (Halting(0.0, 16, 1e-6), {"halt": -5.0}, 16, 16),
        (Halting(0.0, 1, 2e-8), {"halt": -5.0, "shrinks": 0.5}, 5, 5),
        (Halting(0.0, 16, None), {"halt": -5.0}, -1, 16),
        (Halting(0.0, 1, None), {}, 1, 3),
        (Halting(0.0, 1, None), {"halt": -1.0, "slope": 0.1}, 11, 26),
    ],
)
def test_a_row_is_not_held_before_its_policy_has_spoken(halting, made, halts, computed):
    f, z = humming(**made)
    more = {"ticks": 40, "read": [1, 40], "slots": 1, "halting": halting}
    held, free = attempt(f, z, hold=1e-7, **more), attempt(f, z, hold=None, **more)
    assert held.halt_tick.tolist() == free.halt_tick.tolist() == [halts]
    assert held.computed.tolist() == [computed] and free.computed.tolist() == [40]


def test_a_held_row_keeps_what_it_was_read_last():
    f = LatentMap(lambda z, x: {"t": 1 + (z["t"] - 1) / 10}, {}, readout=lambda z: {"logits": torch.stack([z["t"], 0 * z["t"]], 2)}, clock="tick")
    runs = [attempt(f, {"t": torch.tensor([[2.0]], dtype=torch.float64)}, ticks=ticks, read=[ticks], slots=1, halting=None, hold=1e-6) for ticks in (30, 31)]
    last = [one.computed.item() for one in runs]
    assert last[0] == last[1] == 9, "0.9 times 1e-6, 1e-7 and 1e-8 are the first three below"
    for one in runs:
        assert one.residual.item() == pytest.approx((9e-7 + 9e-8 + 9e-9) / 3, rel=1e-5) and one.residual.item() < 1e-6


def test_a_gap_of_the_answer_is_seen_in_the_precision_of_the_logits():
    # In float32 this gap of 2 is one of 8, and a drift of 0.1 a tick crosses it within the ticks left.
    def readout(z):
        first = 2.0**26 + 4 + 0 * z["z"][:, 1]
        return {"logits": torch.stack([first, first - 2 + z["z"][:, 1]], 1)[:, None]}

    f = LatentMap(lambda z, x: {"z": torch.stack([z["z"][:, 0], z["z"][:, 1] + 0.1], 1)}, {}, readout=readout, clock="tick")
    z = {"z": torch.tensor([[1e9, 0.0]], dtype=torch.float64)}
    more = {"ticks": 40, "read": [1, 40], "slots": 1, "halting": None, "targets": torch.zeros(1, 1).long()}
    assert attempt(f, z, hold=1e-7, **more).solved.tolist() == attempt(f, z, hold=None, **more).solved.tolist() == [[True], [False]]
    one_class = replace(f, readout=lambda z: {"logits": torch.ones(len(z["z"]), 1, 1)})
    assert attempt(one_class, z, hold=1e-7, **more).computed.tolist() == [3], "one class is the answer whatever comes"


def test_a_lost_row_ends_with_its_result_and_leaves_the_others_to_the_bit(generator):
    f, z, goal = bent(generator)
    more = {"ticks": 12, "read": [1, 6, 12], "slots": 4, "halting": PUBLISHED, "hold": None, "targets": goal}
    sound = attempt(f, z, **more)

    def rule(z, x):
        new = f.rule(z, x)["z"]
        return {"z": torch.where(x["bad"][:, None, None] == 1, torch.nan, torch.where(x["bad"][:, None, None] == 2, 1e5 * z["z"], new))}

    bad = torch.tensor([0, 1, 0, 0, 2, 0, 0, 0, 0, 0])
    runs = attempt(replace(f, rule=rule, drive={**f.drive, "bad": bad}), z, **more)
    good = bad == 0
    for name in ("solved", "residual", "logit_change", "halt", "answer"):
        assert getattr(runs, name)[:, good].equal(getattr(sound, name)[:, good]), name
    assert [Result.of(code).name for code in runs.result[~good].tolist()] == ["NONFINITE", "DIVERGED"]
    assert runs.last_tick[~good].tolist() == [1, 2] and not runs.solved[1:, ~good].any() and runs.residual[1:, ~good].isnan().all()
    assert (runs.final[~good] == -1).all()


def test_memory_does_not_grow_with_the_ticks(unchecked):
    held = []

    def rule(z, x):
        if float(z["t"][0, 0]) in (40, 1490):
            gc.collect()
            alive = gc.get_objects()
            held.append((sum(one.numel() * one.element_size() for one in alive if issubclass(type(one), torch.Tensor)), len(alive)))
        return {"t": z["t"] + 1}

    f = replace(clocked([NEVER] * 6, halts=[NEVER] * 6), rule=rule)
    attempt(f, from_zero(6), ticks=1500, read=spaced(1500), slots=6, halting=PUBLISHED, hold=None, targets=ones(6))
    (few, things), (many, more_things) = held
    assert many == few and more_things < things + 100
    assert len(spaced(7000)) < 60, "what is read grows with the logarithm"


def test_ticks_are_read_to_within_a_fifth_of_each_other():
    for ticks in (1, 2, 8, 9, 64, 7000):
        read = spaced(ticks, also=[min(3, ticks)])
        assert read[0] == 1 and read[-1] == ticks and read == sorted(set(read))
        assert all(b <= max(a + 1, 1.27 * a) for a, b in itertools.pairwise(read))


def test_parts_join_to_the_whole(generator):
    f, z, goal = bent(generator)
    more = {"ticks": 6, "read": [2, 6], "slots": 4, "halting": PUBLISHED, "hold": None, "targets": goal}
    rows = torch.arange(10)
    parts = [attempt(f.take(part), {"z": z["z"][part]}, **more) for part in (rows[:3], rows[3:])]
    same(joined(parts), attempt(f, z, **more))
    on = [replace(part, origin=replace(part.origin, device=device)) for part, device in zip(parts, ("cuda:1", "cpu"), strict=True)]
    assert joined(on).origin.device == "cpu, cuda:1", "what was computed where is not one device's"
    others = [{"ticks": 7}, {"read": [1, 6]}, {"halting": None}, {"targets": None}, {"hold": 1e-9}]
    for other in others:
        unlike = attempt(f.take(rows[3:]), {"z": z["z"][3:]}, **{**more, **other})
        with pytest.raises(ValueError, match=r"`joined` got 2 attempts of 2 kinds.*same ticks.*Make all of them by `attempt`"):
            joined([parts[0], unlike])
    # Units of a run may have been written by a version that worded it otherwise.
    assert len(joined([replace(part, held=f"residual < 1e-7 at 3 ticks{k}") for k, part in enumerate(parts)]).instance) == 10
    with pytest.raises(ValueError, match=r"`joined` got 0 attempts of 0 kinds"):
        joined([])


def test_equal_answers_and_only_those_share_a_fingerprint(generator):
    answer = torch.randint(10, (500, 81), generator=generator)
    answer[1::2] = answer[::2]
    answer[1::2, 5] = (answer[1::2, 5] + 1) % 10
    marks = fingerprint(answer)
    assert len(marks.unique()) == 500 and fingerprint(answer.to(torch.int8)).equal(marks)


def test_misuse_is_refused_with_what_to_do():
    f = clocked([1, 2], halts=[1, 2])
    more = {"ticks": 4, "read": [4], "slots": 2, "halting": None, "hold": None}
    for wrong in ({"ticks": 0}, {"read": [5]}, {"read": []}, {"read": [0]}, {"slots": 0}):
        with pytest.raises(ValueError, match=r"`attempt` got ticks=.*ticks are read from 1 to the last\. Use ticks=64"):
            attempt(f, from_zero(2), **{**more, **wrong})
    with pytest.raises(ValueError, match=r"`attempt` got targets of shape \(1, 1\) for instances up to 1.*Pass the `targets`"):
        attempt(f, from_zero(2), **more, targets=ones(1))
    with pytest.raises(ValueError, match=r"`attempt` got targets of 2 sites for answers of 1.*site by site"):
        attempt(f, from_zero(2), **more, targets=torch.ones(2, 2).long())
    whole = LatentMap(lambda z, x: {"z": 1 - z["z"]}, {}, readout=lambda z: {"answer": z["z"]}, clock="tick")
    with pytest.raises(ValueError, match=r"`attempt` got states in int64\. Residuals are measured between floating-point numbers\. Cast the state"):
        attempt(whole, {"z": torch.zeros(2, 1).long()}, **more)
    with pytest.raises(ValueError, match=r"`attempt` got hold=1e-14.*Rounding alone.*Use hold=1e-13"):
        attempt(f, from_zero(2), **{**more, "hold": 1e-14})
    silent = clocked([1, 2])
    with pytest.raises(ValueError, match=r"`elastic` got a policy on the halting value for a map that reads out no `halt`.*Use halting=None"):
        elastic(silent, from_zero(2), ticks=4, read=[4], slots=2, halting=PUBLISHED)
    with pytest.raises(ValueError, match=r"`attempt` got a map with the readouts none\..*Give the map a readout"):
        attempt(replace(f, readout=lambda z: {}), from_zero(2), **more)
    with pytest.raises(ValueError, match=r"`attempt` got hold=1e-06 for a map that reads out no logits.*Use hold=None"):
        attempt(replace(f, readout=lambda z: {"answer": z["t"].long()}), from_zero(2), **{**more, "hold": 1e-6})
    with pytest.raises(ValueError, match=r"`halted` got runs without a halting policy.*Halting\(0\.0, 1, None\)"):
        halted(attempt(f, from_zero(2), **more))
    assert slots_for(from_zero(2)) == slots_for(from_zero(99))
