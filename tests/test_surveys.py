"""What is found out about a map before it is run inside: where its rows are, its dtypes, and whether its updates are its rule."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import attractorlab as al
from attractorlab.dynamics import orbits
from attractorlab.maps import LatentMap
from attractorlab.points import Tap
from tests.tapped import made


class Heads(nn.Module):
    """[row width] -> [head row width] for two heads: the first axis is 2 by chance where there are two rows."""

    def forward(self, x):
        return torch.stack([x, 2 * x])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_an_axis_of_length_two_is_not_taken_for_the_rows(rows) -> None:
    model = nn.ModuleDict({"heads": Heads()})
    f = LatentMap(lambda z, x: {"z": model["heads"](z["z"]).mean(0)}, {}, model=model)
    z = {"z": torch.zeros(rows, 4)}
    assert [point.name for point in f.names(z)] == ["z"]
    refused = r"heads gives \(2, 3, 4\) in a tick of 3 rows\. .*rows first\. Name another point"
    with pytest.raises(ValueError, match=refused):
        al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "heads"))
    with pytest.raises(ValueError, match=refused):
        al.trace(f, z, ticks=1, keep=al.only_last(), edits=[al.ablate("heads", ticks=0)], continuation=al.free_running)


def test_a_survey_runs_the_tick_twice_on_five_rows_at_most() -> None:
    seen = []
    f = LatentMap(lambda z, x: (seen.append(len(z["z"])), {"z": z["z"] + 1})[1], {})
    f.names({"z": torch.zeros(64, 4)})
    assert seen == [2, 3]


def flagged(generator, rows):
    """A map whose rule follows a flag of the row's drive that its updates do not know of."""
    model, f, z = made(rows, generator)
    drive = {**f.drive, "flag": torch.zeros(rows, dtype=torch.float64)}

    def rule(z, x):
        return {name: leaf + 1e-13 * x["flag"][:, None] for name, leaf in f.rule(z, x).items()}

    return model, replace(f, rule=rule, drive=drive), z


@pytest.mark.parametrize("row", [0, 1, 4])
def test_updates_that_are_the_rule_in_all_rows_but_one_are_refused(row, generator, monkeypatch) -> None:
    model, f, z = flagged(generator, 5)
    al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell"))
    f.drive["flag"][row] = 1
    refused = rf"got a map whose updates and rule differ by up to \de-1\d in row {row}\. .*bit for bit"
    with pytest.raises(ValueError, match="`trace` " + refused):
        al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell"))
    with pytest.raises(ValueError, match="`floquet` " + refused):
        al.floquet(f, z, k=1)
    monkeypatch.setattr(orbits, "CPU_CHUNK", 1)  # rows in several chunks
    model, f, z = flagged(generator, 20)
    f.drive["flag"][15 + row] = 1
    with pytest.raises(ValueError, match=rf"in row {15 + row}\."):
        al.floquet(f, z, k=1)


def test_rows_that_are_not_finite_are_no_difference(generator) -> None:
    model, f, z = made(3, generator)
    z["z_H"][1] = torch.nan
    assert al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell")).taps["cell"][0, :, 1].isnan().any()


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_calls_of_several_dtypes_are_recorded_in_one_that_holds_them_all(first) -> None:
    model = nn.ModuleDict({"same": nn.Identity()})
    second = torch.float32 if first == torch.float64 else torch.float64

    def rule(z, x):
        return {"z": model["same"](model["same"](z["z"].to(first)).to(second) / 3).double()}

    z = {"z": torch.ones(2, 1, dtype=torch.float64)}
    traj = al.trace(LatentMap(rule, {}, model=model), z, ticks=1, keep=al.every(1), tap=Tap(model, "same"))
    third = torch.tensor(1.0, dtype=second) / 3
    assert traj.taps["same"].dtype == torch.float64 and traj.taps["same"][0, 1].eq(third.double()).all()
    assert traj.states["z"][1].equal(traj.taps["same"][0, 1])


def test_a_mask_and_its_numbers_are_recorded_as_numbers() -> None:
    model = nn.ModuleDict({"same": nn.Identity()})
    f = LatentMap(lambda z, x: {"z": model["same"](model["same"](z["z"] > 0) * 0.5).double()}, {}, model=model)
    traj = al.trace(f, {"z": torch.ones(2, 1, dtype=torch.float64)}, ticks=1, keep=al.every(1), tap=Tap(model, "same"))
    assert traj.taps["same"][0, :, 0, 0].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("where", [(5, 4), (3,), (2, 5, 4), (1, 1, 4)])
def test_a_choice_of_numbers_that_does_not_fit_the_value_is_refused(where, generator) -> None:
    _model, f, z = made(5, generator, width=4)
    fits = where == (5, 4)
    edit = al.ablate("z_H", ticks=1, where=torch.ones(where, dtype=torch.bool))
    if fits:
        assert (al.trace(f, z, ticks=1, keep=al.every(1), edits=[edit], continuation=al.free_running).states["z_H"][1] == 0).all()
    else:
        words = re.escape(f"An edit at z_H got where= of {where} for a value of (5, 4).") + " .*Index or reshape `where`"
        with pytest.raises(ValueError, match=words) as caught:
            al.trace(f, z, ticks=1, keep=al.every(1), edits=[edit], continuation=al.free_running)
        assert caught.value.__notes__ == ["in edit 'ablate to zero' at z_H, tick 1, call 0"]


@pytest.mark.parametrize("ticks", [True, False, [0, True]])
def test_a_boolean_is_no_tick(ticks, generator) -> None:
    _model, f, z = made(2, generator)
    with pytest.raises(ValueError, match=r"`Edit` got ticks=.* with a boolean.*Use ticks=None for all ticks, or ticks=1"):
        al.trace(f, z, ticks=2, keep=al.every(1), edits=[al.ablate("z_H", ticks=ticks)], continuation=al.free_running)


def forced(f, z, clean):
    return al.trace(f, z, ticks=3, keep=al.every(1), edits=[al.ablate("z_H", ticks=1)], continuation=al.teacher_forced(clean))


@pytest.mark.parametrize("row", [0, 2])
def test_a_clean_run_of_another_drive_in_one_row_is_refused(row, generator) -> None:
    _model, f, z = made(3, generator)
    clean = al.trace(f, z, ticks=3, keep=al.every(1))
    assert forced(f, z, clean).continuation == "teacher-forced"
    x = f.drive["x"].clone()
    x[row] += 1e-6
    refused = rf"`teacher_forced` got a trajectory whose tick 1 is \de-0\d away from where the map takes its tick 0, in row {row}\. .*Trace it with the same map"
    with pytest.raises(ValueError, match=refused):
        forced(replace(f, drive={"x": x}), z, clean)
    kicked = al.trace(f, z, ticks=3, keep=al.every(1), kick=lambda z, t: {**z, "z_H": z["z_H"] + 1e-6 * torch.eye(3)[row][:, None]})
    with pytest.raises(ValueError, match=refused):
        forced(f, z, kicked)


def test_a_clean_run_of_other_weights_is_refused(generator) -> None:
    model, f, z = made(3, generator)
    clean = al.trace(f, z, ticks=3, keep=al.every(1))
    known = replace(f, origin=replace(f.origin, weights="aa"))
    assert forced(known, z, clean).origin.weights == "aa", "of a run whose weights are not on record, what it did is looked at"
    other = replace(clean, origin=replace(clean.origin, weights="bb"))
    with pytest.raises(ValueError, match=r"`teacher_forced` got a trajectory of weights bb for a map of weights aa\. .*Trace it with the same map"):
        forced(known, z, other)
    with torch.no_grad():
        model.cell.inner.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"away from where the map takes its tick 0"):
        forced(f, z, clean)


@pytest.mark.parametrize("continuation", [al.free_running, al.clamped])
def test_an_edited_run_is_no_clean_one(continuation, generator) -> None:
    _model, f, z = made(3, generator)
    edited = al.trace(f, z, ticks=3, keep=al.every(1), edits=[al.ablate("z_H", ticks=2)], continuation=continuation)
    with pytest.raises(ValueError, match=r"`teacher_forced` got a trajectory that is itself edited \(ablate to zero at z_H, .*Trace it without edits"):
        forced(f, z, edited)


def test_a_clean_run_that_was_cut_otherwise_is_the_same_run(generator) -> None:
    """Rows in other batches differ by rounding."""
    _model, plain, z = made(20, generator)
    f = replace(plain, rule=lambda z, x: {name: leaf + 1e-15 * len(leaf) for name, leaf in plain.rule(z, x).items()}, updates=())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(orbits, "CPU_CHUNK", 1)
        clean = al.trace(f, z, ticks=3, keep=al.every(1))
    whole = forced(f, z, clean)
    assert not whole.states["z_L"][1].equal(clean.states["z_L"][1]) and (whole.states["z_L"][1] - clean.states["z_L"][1]).abs().max() < 1e-13


def test_a_row_that_leaves_the_finite_numbers_at_once_is_not_held_against_its_clean_run(generator) -> None:
    _model, plain, z = made(3, generator)
    f = replace(plain, rule=lambda z, x: {name: leaf / (x["x"][:, :1] != 7) for name, leaf in plain.rule(z, x).items()}, updates=())
    f.drive["x"][1, 0] = 7
    clean = al.trace(f, z, ticks=3, keep=al.every(1))
    assert clean.states["z_L"][1, 1].isnan().all() and clean.last_tick.tolist() == [3, 0, 3]
    assert forced(f, z, clean).states["z_L"][1, [0, 2]].equal(clean.states["z_L"][1, [0, 2]])
