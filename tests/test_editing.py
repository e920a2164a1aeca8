"""Edits of a run: each is what a loop by hand does, between ticks and inside them, however the run goes on."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import attractorlab as al
from attractorlab import trees
from attractorlab.editing import Continuation, Edit
from attractorlab.maps import LatentMap, Update, in_turn, strobe
from attractorlab.points import Tap
from attractorlab.store import RunError, join


class Gain(nn.Module):
    def __init__(self, width, generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5)

    def forward(self, x):
        return torch.tanh(x @ self.weight)


def made(rows, generator, width=4):
    """z_L <- low(z_L + z_H + x) twice, z_H <- high(z_H + z_L): elementwise in the rows, or near enough."""
    model = nn.ModuleDict({"low": Gain(width, generator), "high": Gain(width, generator)})
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)

    def low(z, drive):
        return {"z_H": z["z_H"], "z_L": model["low"](z["z_L"] + z["z_H"] + drive["x"])}

    def high(z, drive):
        return {"z_H": model["high"](z["z_H"] + z["z_L"]), "z_L": z["z_L"]}

    updates = (Update("L0", ("z_L",), low), Update("L1", ("z_L",), low), Update("H", ("z_H",), high))
    f = LatentMap(
        in_turn(updates),
        {"x": x},
        readout=lambda z: {"sum": z["z_H"].sum(1)},
        clock="recursion",
        instance=torch.arange(rows),
        start=torch.zeros(rows, dtype=torch.int64),
        updates=updates,
        model=model,
    )
    z = {name: torch.randn(rows, width, generator=generator, dtype=torch.float64) for name in ("z_H", "z_L")}
    return model, f, z


def run(f, z, *edits, ticks=6, continuation=al.free_running, tap=None):
    return al.trace(f, z, ticks=ticks, keep=al.every(1), edits=edits, continuation=continuation, tap=tap)


@torch.no_grad()
def by_hand(f, z, ticks, change):
    """The states of a loop in which `change(value, point, tick, update)` meets every leaf after every update, and before each tick (update "")."""
    states = []
    for t in range(ticks + 1):
        z = {name: change(leaf, name, t, "") for name, leaf in z.items()}
        states.append(z)
        for update in f.updates:
            z = update.rule(z, f.drive)
            z = {name: change(leaf, name, t, update.name) for name, leaf in z.items()}
    return states


def same(traj, states):
    for t, z in enumerate(states):
        for name, leaf in z.items():
            assert traj.states[name][t].equal(leaf), (name, t)


def test_an_edit_that_changes_nothing_leaves_every_bit(generator) -> None:
    _, f, z = made(5, generator)
    plain = al.trace(f, z, ticks=6, keep=al.every(1))
    for point, calls in (("z_H", None), ("z_L", "L*"), ("low", None), ("high", "H")):
        kept = run(f, z, Edit(point, lambda value, call: value, "nothing", None, calls))
        assert kept.residual.equal(plain.residual) and kept.readouts["sum"].equal(plain.readouts["sum"])
        same(kept, [{name: plain.states[name][t] for name in z} for t in range(7)])


def test_patching_with_the_runs_own_values_changes_nothing(generator) -> None:
    model, f, z = made(5, generator)
    for g in (f, strobe(f, 2)):
        clean = al.trace(g, z, ticks=6, keep=al.every(1), tap=Tap(model, "*"))
        for point, calls in (("z_H", None), ("z_L", None), ("z_H", "*H"), ("z_L", "*L*"), ("low", None), ("low", "*L1"), ("high", None)):
            patched = run(g, z, al.patch(point, clean, ticks=None, calls=calls), tap=Tap(model, "*"))
            assert patched.residual.equal(clean.residual)
            assert all(patched.states[name].equal(clean.states[name]) for name in z)
            assert all(patched.taps[name].equal(clean.taps[name]) for name in clean.taps)


def test_patching_by_tensor_is_a_loop_by_hand(generator) -> None:
    _, f, z = made(4, generator)
    values = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    between = run(f, z, al.patch("z_H", values, ticks=[2, 5]))
    same(between, by_hand(f, z, 6, lambda v, p, t, u: values if p == "z_H" and t in (2, 5) and u == "" else v))
    inside = run(f, z, al.patch("z_L", values[0], ticks=slice(1, 4), calls="L0"))
    same(inside, by_hand(f, z, 6, lambda v, p, t, u: values[:1].expand(4, 4) if p == "z_L" and t in (1, 2, 3) and u == "L0" else v))
    # Between two updates of z_L, where no update rewrites z_H.
    other = run(f, z, al.patch("z_H", values, ticks=3, calls="L0"))
    same(other, by_hand(f, z, 6, lambda v, p, t, u: values if p == "z_H" and t == 3 and u == "L0" else v))


def test_part_of_a_value_is_edited_where_asked(generator) -> None:
    _, f, z = made(4, generator)
    where = torch.tensor([True, False, False, True])
    part = run(f, z, al.ablate("z_H", ticks=2, where=where))
    same(part, by_hand(f, z, 6, lambda v, p, t, u: torch.where(where, 0.0, v) if (p, t, u) == ("z_H", 2, "") else v))
    assert part.edits == ("ablate to zero at z_H, tick 2, in part",)


def test_patching_another_instances_final_state_moves_the_answer(generator) -> None:
    model = al.models.load("eqr-sudoku-4")
    puzzles = al.tasks.load("sudoku-4", split="test", rows=slice(0, 6))
    f = strobe(model.bind(puzzles), 2)
    z = model.start(f.drive, generator=generator)
    clean = al.trace(f, z, ticks=16, keep=al.only_last())
    answers = clean.readouts["answer"].long()
    assert (answers[-1] == puzzles.targets).all()
    swapped = al.trace(
        f,
        clean.last,
        ticks=16,
        keep=al.every(1),
        continuation=al.free_running,
        edits=[al.patch(name, clean.last[name].roll(1, 0), ticks=0) for name in z],
    )
    got = swapped.readouts["answer"].long()
    assert (got[0] == puzzles.targets.roll(1, 0)).all(), "at first it says the other's answer"
    assert (got[-1] == puzzles.targets).all(), "and then its own again"


def test_ablating_a_module_to_zero_is_a_model_with_that_module_zeroed(generator) -> None:
    model = al.models.load("eqr-sudoku-4")
    puzzles = al.tasks.load("sudoku-4", split="test", rows=slice(0, 3))
    f = model.bind(puzzles)
    z = model.start(f.drive, generator=generator)
    ablated = run(f, z, al.ablate("L_level.layers.1.mlp", ticks=None))
    zeroed = model.to(torch.float32)
    with torch.no_grad():
        zeroed.L_level.layers[1].mlp.down_proj.weight.zero_()
    plain = al.trace(zeroed.bind(puzzles), z, ticks=6, keep=al.every(1))
    assert all(ablated.states[name].equal(plain.states[name]) for name in z)
    assert ablated.residual[1:].ne(plain.residual[1:]).any(), "the residual is that of the whole model"


def test_ablating_to_a_mean_puts_the_mean_there(generator) -> None:
    model, f, z = made(4, generator)
    mean = torch.randn(4, generator=generator, dtype=torch.float64)
    traj = run(f, z, al.ablate("low", ticks=2, mean=mean, calls="L1"), tap=Tap(model, "low"))
    assert (traj.taps["low"][2, 1] == mean).all() and not (traj.taps["low"][2, 0] == mean).any()
    assert traj.edits == ("ablate to a mean at low, tick 2, in L1",)


def test_steering_adds_the_direction(generator) -> None:
    _, f, z = made(4, generator)
    direction = torch.randn(4, generator=generator, dtype=torch.float64)
    traj = run(f, z, al.steer("z_L", direction, ticks=[1, 2], scale=-2.0, calls="L*"))
    same(traj, by_hand(f, z, 6, lambda v, p, t, u: v + -2.0 * direction if p == "z_L" and t in (1, 2) and u.startswith("L") else v))
    assert traj.edits == ("add -2 x a direction at z_L, ticks 1 to 2, in L*",)


def test_freezing_is_a_loop_that_holds_the_first_value(generator) -> None:
    _, f, z = made(4, generator)
    for calls, met in ((None, ""), ("L1", "L1")):
        held = []

        def hold(v, p, t, u, held=held, met=met):
            if p == "z_L" and u == met and t in (2, 3, 5):
                held.append(v)
                return held[0]
            return v

        same(run(f, z, al.freeze("z_L", ticks=[2, 3, 5], calls=calls)), by_hand(f, z, 6, hold))


def test_a_frozen_edit_remembers_nothing_of_an_earlier_run(generator) -> None:
    _, f, z = made(4, generator)
    edit, other = al.freeze("z_L", ticks=slice(1, None)), {name: -leaf for name, leaf in z.items()}
    run(f, other, edit)
    assert run(f, z, edit).states["z_L"].equal(run(f, z, al.freeze("z_L", ticks=slice(1, None))).states["z_L"])


def test_noise_has_the_stated_scale_and_repeats_with_its_generator() -> None:
    still = LatentMap(lambda z, x: {"z": z["z"]}, {})
    z = {"z": torch.zeros(50, 400, dtype=torch.float64)}

    def noisy(seed):
        return run(still, z, al.add_noise("z", 0.3, ticks=[1, 4], generator=torch.Generator().manual_seed(seed))).states["z"]

    first, again, other = noisy(1), noisy(1), noisy(2)
    assert first.equal(again) and not first.equal(other)
    n = first[1].numel()
    one, two = first[1], first[4] - first[3]
    for draw in (one, two):
        assert abs(float(draw.std()) / 0.3 - 1) < 5 / (2 * n) ** 0.5 and abs(float(draw.mean())) < 5 * 0.3 / n**0.5
    assert abs(float((one * two).mean())) < 5 * 0.09 / n**0.5, "drawn anew"
    assert first[0].eq(0).all() and first[2].equal(first[1]) and first[3].equal(first[1])


def test_clamped_edits_go_on_at_every_later_tick(generator) -> None:
    _, f, z = made(4, generator)
    value = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    clamped = run(f, z, al.patch("z_H", value, ticks=2), al.ablate("z_L", ticks=4, calls="L1"), continuation=al.clamped)

    def change(v, p, t, u):
        if p == "z_H" and u == "" and t >= 2:
            return value
        return torch.zeros_like(v) if p == "z_L" and u == "L1" and t >= 4 else v

    same(clamped, by_hand(f, z, 6, change))
    assert clamped.continuation == "clamped" and clamped.edits == (
        "patch at z_H, ticks 2 to 6",
        "ablate to zero at z_L, ticks 4 to 6, in L1",
    )
    free = run(f, z, al.patch("z_H", value, ticks=2))
    assert free.continuation == "free-running" and not free.states["z_H"][3].equal(value)


def test_teacher_forced_ticks_show_the_effect_of_one_edited_tick(generator) -> None:
    model, f, z = made(4, generator)
    clean = al.trace(f, z, ticks=6, keep=al.every(1))
    kick = torch.randn(4, generator=generator, dtype=torch.float64)
    edits = [al.steer("z_H", kick, ticks=[1, 3], scale=1.0), al.ablate("low", ticks=[3, 4], calls="L1")]
    forced = run(f, z, *edits, continuation=al.teacher_forced(clean), tap=Tap(model, "low"))
    assert forced.continuation == "teacher-forced"
    with torch.no_grad():
        for t in range(6):
            state = {name: clean.states[name][t] for name in z}
            if t in (1, 3):
                state = {**state, "z_H": state["z_H"] + 1.0 * kick}
            for update in f.updates:
                if update.name == "L1" and t in (3, 4):
                    state = {**state, "z_L": torch.zeros(4, 4, dtype=torch.float64)}
                else:
                    state = update.rule(state, f.drive)
            for name in z:
                assert forced.states[name][t + 1].equal(state[name])
                assert forced.states[name][t + 1].equal(clean.states[name][t + 1]) == (t not in (1, 3, 4))
            at = {name: forced.states[name][t] for name in z}
            assert forced.residual[t].equal(f.residual(at)), "of the map itself at the state on record"
    assert (forced.taps["low"][3:5, 1] == 0).all()


def test_residuals_of_an_edited_run_are_those_of_the_map_itself(generator) -> None:
    _model, f, z = made(4, generator)
    traj = run(f, z, al.ablate("low", ticks=None), al.steer("z_H", torch.ones(4, dtype=torch.float64), ticks=3, scale=1.0))
    for t in range(7):
        assert traj.residual[t].equal(f.residual({name: traj.states[name][t] for name in z}))
        assert traj.readouts["sum"][t].equal(traj.states["z_H"][t].sum(1))


def test_an_edit_at_the_last_tick_shows_in_the_last_state_and_taps(generator) -> None:
    model, f, z = made(2, generator)
    zero = run(f, z, al.ablate("z_H", ticks=6), al.ablate("low", ticks=6), tap=Tap(model, "low"))
    assert (zero.last["z_H"] == 0).all() and (zero.taps["low"][-1] == 0).all() and (zero.taps["low"][-2] != 0).all()


def test_a_tap_shows_what_goes_on_from_its_point_and_edits_come_in_their_order(generator) -> None:
    model, f, z = made(2, generator)
    one = torch.ones(4, dtype=torch.float64)
    traj = run(f, z, al.ablate("low", ticks=1), al.steer("low", one, ticks=1, scale=3.0), tap=Tap(model, "low"))
    assert (traj.taps["low"][1] == 3).all()
    turned = run(f, z, al.steer("low", one, ticks=1, scale=3.0), al.ablate("low", ticks=1), tap=Tap(model, "low"))
    assert (turned.taps["low"][1] == 0).all()


def test_an_edit_that_writes_into_its_value_spoils_nothing_else() -> None:
    model = nn.ModuleDict({"same": nn.Identity()})
    f = LatentMap(lambda z, x: {"z": model["same"](z["z"]) + 1}, {}, model=model)
    z = {"z": torch.zeros(1, 1)}
    traj = run(f, z, Edit("same", lambda value, call: value.mul_(0).add_(5), "five", 1), ticks=3)
    assert traj.states["z"].flatten().tolist() == [0, 1, 6, 7] and z["z"].item() == 0
    assert traj.residual[1].item() == 1.0, "the residual is of the state before it was written over"


def test_permuted_rows_give_permuted_edited_runs(generator) -> None:
    model, f, z = made(5, generator)
    values, order = torch.randn(5, 4, generator=generator, dtype=torch.float64), torch.tensor([4, 2, 0, 1, 3])
    straight = run(f, z, al.patch("z_L", values, ticks=1, calls="L0"), al.freeze("z_H", ticks=[2, 4]), tap=Tap(model, "high"))
    moved = run(
        f.take(order),
        trees.take(z, order),
        al.patch("z_L", values[order], ticks=1, calls="L0"),
        al.freeze("z_H", ticks=[2, 4]),
        tap=Tap(model, "high"),
    )
    torch.testing.assert_close(moved.states["z_H"], straight.states["z_H"][:, order], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(moved.taps["high"], straight.taps["high"][:, :, order], rtol=1e-12, atol=1e-13)


def test_a_map_without_updates_or_model_is_edited_between_and_after_ticks() -> None:
    double = LatentMap(lambda z, x: {"z": 2 * z["z"]}, {})
    z = {"z": torch.ones(1, 1)}
    assert run(double, z, al.ablate("z", ticks=2), ticks=3).states["z"].flatten().tolist() == [1, 2, 0, 0]
    after = run(double, z, al.steer("z", torch.tensor(1.0), ticks=0, scale=1.0, calls="*"), ticks=3, tap=Tap(None, "z"))
    assert after.states["z"].flatten().tolist() == [1, 3, 6, 12] and after.taps["z"].flatten().tolist() == [3, 6, 12, 24]


def test_an_edited_run_is_stored_and_joined_with_its_mode(generator, tmp_path) -> None:
    model, f, z = made(4, generator)
    store = al.Run.create(tmp_path / "run", config={}, units=["a-0", "a-1"])
    whole = run(f, z, al.ablate("low", ticks=2), continuation=al.clamped, tap=Tap(model, "low", "z_H"))
    for k, rows in enumerate(torch.arange(4).split(2)):
        part = run(f.take(rows), trees.take(z, rows), al.ablate("low", ticks=2), continuation=al.clamped, tap=Tap(model, "low", "z_H"))
        store.write(f"a-{k}", {"trajectory": part})
    found = store.trajectory_of("a")
    assert found.edits == whole.edits and found.continuation == "clamped" and found.calls == whole.calls
    for name in whole.taps:
        torch.testing.assert_close(found.taps[name], whole.taps[name], rtol=1e-12, atol=1e-13)
    plain = al.trace(f.take([0]), trees.take(z, slice(0, 1)), ticks=6, keep=al.every(1))
    with pytest.raises(RunError, match="of 2 kinds"):
        join([found, plain])


def test_what_is_edited_is_checked_before_the_run_begins(generator) -> None:
    model, f, z = made(3, generator)
    model["idle"] = nn.Identity()
    asked = []
    counting = replace(f, readout=lambda z: asked.append(1) or {})

    def refused(match, *edits, continuation=al.free_running, **more):
        with pytest.raises(ValueError, match=match):
            al.trace(counting, z, ticks=6, keep=al.every(1), edits=edits, continuation=continuation, **more)

    refused(r"`Edit` got 'lwo', which names no point\. .*low.*See all of them", al.ablate("lwo", ticks=1))
    refused(r"`Edit` got 'idle', which does not run in a tick\. .*Choose a point of `f\.names\(z\)`", al.ablate("idle", ticks=1))
    refused(
        r"`Edit` got '\*', which stands for 5 points\. An edit is of one point\. Make one for each of z_H, z_L, low, high, idle",
        al.ablate("*", ticks=1),
    )
    refused(
        r"`Edit` got calls='M' at z_L\. .*updates in which the point is met\. Near it are 'L0', 'L1', 'H'",
        al.ablate("z_L", ticks=1, calls="M"),
    )
    refused(r"`Edit` got calls='H' at low\. .*Near it are 'L0', 'L1'", al.ablate("low", ticks=1, calls="H"))
    for ticks in (7, -1, [2, 9], [], slice(9, None)):
        refused(
            r"`Edit` got ticks=.* at z_H in a trace of 6 ticks\. .*each from 0 to 6\. Use ticks from 0 to 6", al.ablate("z_H", ticks=ticks)
        )
    refused(r"got 1 edits and no continuation\. .*part of the experiment\. Pass both", al.ablate("z_H", ticks=1), continuation=None)
    refused(r"got 0 edits and continuation=free-running")
    refused(r"got both edits and kick\. .*Leave out one of them", al.ablate("z_H", ticks=1), kick=lambda state, tick: state)
    refused(r"got both rest and edits\. An edit may move a row that is at rest\. Leave out one", al.ablate("z_H", ticks=1), rest=1e-6)
    assert not asked


def test_a_value_of_another_shape_or_kind_is_refused_when_it_comes(generator) -> None:
    _, f, z = made(3, generator)
    with pytest.raises(
        ValueError,
        match=r"An edit at low gave float64 \(3, 1\) on cpu for float64 \(3, 4\) on cpu\. .*Return such a tensor, or expand yours",
    ) as caught:
        run(f, z, Edit("low", lambda value, call: value[:, :1], "cut", 2))
    assert caught.value.__notes__ == ["in edit 'cut' at low, tick 2, call 0 (L0)"]
    with pytest.raises(ValueError, match=r"An edit at z_H gave NoneType for float64"):
        run(f, z, Edit("z_H", lambda value, call: None, "nothing", 2))
    with pytest.raises(ValueError, match=r"gave float32 \(3, 4\)"):
        run(f, z, Edit("z_H", lambda value, call: value.float(), "narrow", 2))
    with pytest.raises(ValueError, match=r"gave float64 \(2, 4\)"):
        run(f, z, al.patch("z_H", torch.zeros(2, 4), ticks=1))


def test_a_run_to_patch_from_must_have_recorded_the_point(generator) -> None:
    model, f, z = made(3, generator)
    clean = al.trace(f, z, ticks=6, keep=al.every(2), tap=Tap(model, "z_H"))
    with pytest.raises(ValueError, match=r"`patch` got a run that recorded nothing at low\. .*tap=Tap\(f\.model, 'low'\)"):
        al.patch("low", clean, ticks=1)
    with pytest.raises(ValueError, match=r"recorded nothing at z_H at tick 1, call 0 \(\)\. .*Trace that run with keep=every\(1\)"):
        run(f, z, al.patch("z_H", clean, ticks=1))
    with pytest.raises(ValueError, match=r"recorded nothing at z_H at tick 2, call 0 \(L0\)"):
        run(f, z, al.patch("z_H", clean, ticks=2, calls="L0"))


def test_a_run_to_go_back_to_must_be_the_same_run(generator) -> None:
    _, f, z = made(3, generator)
    clean = al.trace(f, z, ticks=6, keep=al.every(1))
    edit = al.ablate("z_H", ticks=1)
    assert run(f, z, edit, ticks=4, continuation=al.teacher_forced(clean)).states["z_H"].shape[0] == 5
    with pytest.raises(ValueError, match=r"keeps 4 states for a trace of 6 ticks\. .*Trace the clean run with ticks=6, keep=every\(1\)"):
        run(f, z, edit, continuation=al.teacher_forced(al.trace(f, z, ticks=6, keep=al.every(2))))
    with pytest.raises(ValueError, match=r"keeps 7 states for a trace of 9 ticks"):
        run(f, z, edit, ticks=9, continuation=al.teacher_forced(clean))
    with pytest.raises(
        ValueError, match=r"of 3 rows of clock recursion for a map of 3 rows of 2 x recursion\. .*Trace it with the same map"
    ):
        run(strobe(f, 2), z, edit, continuation=al.teacher_forced(clean))
    with pytest.raises(ValueError, match=r"begins at other states than the trace\. .*Pass the same starts to both"):
        run(f, {name: leaf + 1 for name, leaf in z.items()}, edit, continuation=al.teacher_forced(clean))


def test_there_are_three_ways_to_go_on() -> None:
    for name in ("free", "teacher-forced"):
        with pytest.raises(
            ValueError, match=rf"`Continuation` got '{name}' without a clean run\. .*Use free_running, clamped or teacher_forced\(clean\)"
        ):
            Continuation(name)
