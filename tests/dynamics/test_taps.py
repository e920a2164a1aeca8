"""Taps of a trace: every call of every kept tick, whatever the chunks and the rows that leave, and not a bit of the run changed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import attractorlab as al
from attractorlab import trees
from attractorlab.dynamics import orbits
from attractorlab.dynamics.recorder import bytes_of
from attractorlab.maps import LatentMap, strobe
from attractorlab.points import Tap
from attractorlab.types import Result
from tests.tapped import Plus, counter, made


def test_a_module_that_runs_twice_has_one_entry_for_each_call() -> None:
    model, f, z = counter()
    traj = al.trace(f, z, ticks=4, keep=al.every(1), tap=Tap(model, "one", "z"))
    assert traj.taps["one"].shape == (5, 2, 3, 2) and traj.calls == {"one": ("", ""), "z": ("",)}
    for t in range(5):
        assert (traj.taps["one"][t, 0] == 2 * t + 1).all() and (traj.taps["one"][t, 1] == 2 * t + 2).all()
        assert traj.taps["z"][t, 0].equal(traj.taps["one"][t, 1])


def test_the_rank_of_a_tap_does_not_depend_on_the_number_of_calls(generator) -> None:
    model, f, z = made(2, generator)
    traj = al.trace(f, z, ticks=2, keep=al.only_last(), tap=Tap(model, "cell", "cell.inner", "z_H"))
    assert (
        traj.taps["z_H"].shape == (1, 1, 2, 3) and traj.taps["cell"].shape == (1, 3, 2, 3) and traj.taps["cell.inner"].shape == (1, 6, 2, 3)
    )
    assert traj.calls["cell.inner"] == ("L0", "L0", "L1", "L1", "H", "H")


def test_every_call_of_a_tick_is_what_a_loop_by_hand_computes(generator) -> None:
    model, f, z = made(5, generator)
    traj = al.trace(f, z, ticks=3, keep=al.every(1), tap=Tap(model, "cell", "z_*"))
    with torch.no_grad():
        for t in range(4):
            h, low, x = z["z_H"], z["z_L"], f.drive["x"]
            for c in range(2):
                low = model.cell(low, h + x)
                assert traj.taps["cell"][t, c].equal(low) and traj.taps["z_L"][t, c].equal(low)
            h = model.cell(h, low)
            assert traj.taps["cell"][t, 2].equal(h) and traj.taps["z_H"][t, 0].equal(h)
            z = {"z_H": h, "z_L": low}
            if t < 3:
                assert traj.states["z_H"][t + 1].equal(h)


def test_strobed_ticks_say_which_inner_tick_a_call_belongs_to(generator) -> None:
    model, f, z = made(2, generator)
    seen = al.trace(strobe(f, 2), z, ticks=2, keep=al.every(1), tap=Tap(model, "cell"))
    plain = al.trace(f, z, ticks=5, keep=al.every(1), tap=Tap(model, "cell"))
    assert seen.calls["cell"] == ("0.L0", "0.L1", "0.H", "1.L0", "1.L1", "1.H")
    assert seen.taps["cell"].flatten(0, 1).equal(plain.taps["cell"].flatten(0, 1))


@pytest.mark.parametrize("rest", [None, 1e-12])
def test_recording_does_not_change_a_bit_of_the_run(generator, rest) -> None:
    model, f, z = made(6, generator)
    plain, tapped = (al.trace(f, z, ticks=20, keep=al.every(3), rest=rest, tap=tap) for tap in (None, Tap(model, "*")))
    same_run(plain, tapped)


def test_recording_does_not_change_a_bit_of_a_real_model(generator) -> None:
    model = al.models.load("eqr-sudoku-4")
    f = strobe(model.bind(al.tasks.load("sudoku-4", split="test", rows=slice(0, 3))), 2)
    z = model.start(f.drive, generator=generator)
    same_run(*(al.trace(f, z, ticks=4, keep=al.every(2), tap=tap) for tap in (None, Tap(model, "L_level.*", "z_?"))))


def same_run(a, b):
    for one, other in ((a.states, b.states), (a.readouts, b.readouts)):
        assert all(one[name].nan_to_num(nan=-7).equal(other[name].nan_to_num(nan=-7)) for name in one)
    for name in ("residual", "recurrence", "last_tick", "result"):
        assert getattr(a, name).nan_to_num(nan=-7).equal(getattr(b, name).nan_to_num(nan=-7)), name


def test_chunks_do_not_change_a_tap(generator, monkeypatch) -> None:
    model, f, z = counter()
    z = {"z": torch.randn(40, 2, generator=generator, dtype=torch.float64)}
    whole = al.trace(f, z, ticks=5, keep=al.every(2), tap=Tap(model, "one", "z"))
    monkeypatch.setattr(orbits, "CPU_CHUNK", 1)
    parts = al.trace(f, z, ticks=5, keep=al.every(2), tap=Tap(model, "one", "z"))
    assert len(list(orbits.chunks(z))) > 1
    assert all(whole.taps[name].equal(parts.taps[name]) for name in whole.taps)


def test_permuted_rows_give_permuted_taps(generator) -> None:
    model, f, z = made(6, generator)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight = al.trace(f, z, ticks=3, keep=al.every(1), tap=Tap(model, "*"))
    moved = al.trace(f.take(order), trees.take(z, order), ticks=3, keep=al.every(1), tap=Tap(model, "*"))
    for name, values in straight.taps.items():
        torch.testing.assert_close(moved.taps[name], values[:, :, order], rtol=1e-13, atol=1e-13)  # sums in another order


class Pull(nn.Module):
    def forward(self, z, rate):
        return z * rate + 1


def pulled(rates):
    model = nn.ModuleDict({"pull": Pull()})
    rate = torch.tensor(rates, dtype=torch.float64)[:, None]
    n = len(rates)
    f = LatentMap(
        lambda z, x: {"z": model["pull"](z["z"], x["rate"])},
        {"rate": rate},
        instance=torch.arange(n),
        start=torch.zeros(n, dtype=torch.int64),
        model=model,
    )
    return model, f, {"z": torch.zeros(n, 1, dtype=torch.float64)}


@pytest.mark.parametrize("keep", [al.every(1), al.every(7), al.only_last()])
@pytest.mark.parametrize("chunk", [1, 2**18])
def test_a_row_that_leaves_at_rest_shows_what_passed_last(keep, chunk, monkeypatch) -> None:
    monkeypatch.setattr(orbits, "CPU_CHUNK", chunk)
    model, f, z = pulled([0.1, 0.9, 0.2, 0.5] * 5)
    held, free = (al.trace(f, z, ticks=60, keep=keep, rest=rest, tap=Tap(model, "pull")) for rest in (1e-9, None))
    every = al.trace(f, z, ticks=60, keep=al.every(1), tap=Tap(model, "pull"))
    assert held.last_tick.unique().numel() > 2
    for row in range(20):
        last = int(held.last_tick[row])
        for k, t in enumerate(held.kept.tolist()):
            assert held.taps["pull"][k, 0, row].equal(every.taps["pull"][min(t, last), 0, row])
            if t <= last:
                assert held.taps["pull"][k, 0, row].equal(free.taps["pull"][k, 0, row])


def test_when_all_rows_are_at_rest_kept_ticks_still_have_their_taps() -> None:
    model, f, z = pulled([0.1, 0.2])
    traj = al.trace(f, z, ticks=500, keep=al.every(100), rest=1e-6, tap=Tap(model, "pull", "z"))
    assert (traj.taps["pull"][1:] == traj.taps["pull"][-1]).all() and (traj.taps["pull"] > 0).all()


@pytest.mark.parametrize("rest", [None, 1e-12])
def test_a_row_that_ends_shows_nothing_from_then_on(rest) -> None:
    model, f, z = pulled([10.0, 0.5])
    traj = al.trace(f, z, ticks=20, keep=al.every(1), rest=rest, tap=Tap(model, "pull"))
    assert Result.of(int(traj.result[0])) is Result.DIVERGED
    last = int(traj.last_tick[0])
    assert traj.taps["pull"][: last + 1, 0, 0].isfinite().all() and traj.taps["pull"][last + 1 :, 0, 0].isnan().all()
    assert traj.taps["pull"][:, 0, 1].isfinite().all()


class Flag(nn.Module):
    def forward(self, z):
        return z > 0


def test_integers_and_flags_of_a_row_that_ended_are_minus_one() -> None:
    model = nn.ModuleDict({"flag": Flag()})

    def rule(z, x):
        model["flag"](z["z"])
        return {"z": 100 * z["z"]}

    f = LatentMap(rule, {}, model=model)
    traj = al.trace(f, {"z": torch.tensor([[1.0], [0.0]])}, ticks=8, keep=al.every(1), tap=Tap(model, "flag"))
    assert (
        traj.taps["flag"].dtype == torch.int8
        and traj.taps["flag"][-1, 0].tolist() == [[-1], [0]]
        and traj.taps["flag"][0, 0].tolist() == [[1], [0]]
    )


def test_the_price_counts_the_taps(generator) -> None:
    model, f, z = made(6, generator)
    for keep in (al.every(1), al.only_last(), al.log_spaced(3)):
        tap = Tap(model, "cell", "z_L")
        traj = al.trace(f, z, ticks=9, keep=keep, tap=tap)
        held = sum(v.numel() * v.element_size() for v in traj.taps.values())
        assert bytes_of(f, z, ticks=9, keep=keep, tap=tap) - bytes_of(f, z, ticks=9, keep=keep) == held > 0


def test_an_inner_activation_that_is_changed_in_place_afterwards_is_recorded_as_it_was() -> None:
    model = nn.ModuleDict({"one": Plus()})

    def rule(z, x):
        h = model["one"](z["z"])
        h.add_(10)
        return {"z": h}

    f = LatentMap(rule, {}, model=model)
    traj = al.trace(f, {"z": torch.zeros(1, 1)}, ticks=2, keep=al.every(1), tap=Tap(model, "one"))
    assert traj.taps["one"].flatten().tolist() == [1.0, 12.0, 23.0]


def test_a_map_whose_updates_are_not_its_rule_is_refused(generator) -> None:
    model, f, z = made(3, generator)
    noisy = replace(f, rule=lambda z, x: {name: leaf + 0.01 for name, leaf in f.rule(z, x).items()})
    refused = r"got a map whose updates and rule differ by .*without noise\. Use `dataclasses\.replace\(f, updates=\(\)\)`"
    with pytest.raises(ValueError, match="`trace` " + refused):
        al.trace(noisy, z, ticks=2, keep=al.only_last(), tap=Tap(model, "cell"))
    with pytest.raises(ValueError, match="`floquet` " + refused):
        al.floquet(noisy, z, k=1)
    whole = replace(noisy, updates=())
    traj = al.trace(whole, z, ticks=2, keep=al.every(1), tap=Tap(model, "cell", "z_H"))
    assert traj.states["z_H"].equal(al.trace(noisy, z, ticks=2, keep=al.every(1)).states["z_H"])
    assert traj.calls == {"z_H": ("",), "cell": ("", "", "")} and traj.taps["z_H"][0, 0].equal(traj.states["z_H"][1])
