"""Traces: the recorded numbers are those of a plain loop, whatever the chunks, the kick or the row that fails."""

import pytest
import torch

from attractorlab import Result, every, log_spaced, only_last, repeat_rows, strobe, trace, trees
from attractorlab.dynamics import orbits, recorder
from attractorlab.dynamics.recorder import LAGS, bytes_of
from attractorlab.maps import LatentMap
from attractorlab.testing import toys

CLASSES, SITES = 5, 4


def reader(rows, generator, dtype=torch.float64):
    """A driven map with logits, a halting value, a flag and a byte to read; elementwise, so that bits do not depend on the batch."""
    goal = torch.randn(rows, SITES, CLASSES, generator=generator, dtype=dtype)

    def readout(z):
        return {"logits": 3 * z["h"], "halt": z["c"][:, 0], "sure": z["c"][:, 0] > 0, "byte": (z["c"][:, 0] > 0).to(torch.uint8)}

    def rule(z, x):
        return {"h": 0.6 * z["h"] + 0.4 * x["goal"] + 0.1 * z["c"][:, None, :1], "c": 0.5 * z["c"].flip(1) + 0.1}

    return LatentMap(
        rule, {"goal": goal}, readout=readout, clock="tick", instance=torch.arange(rows), start=torch.zeros(rows, dtype=torch.int64)
    )


def starts(rows, generator, dtype=torch.float64):
    return {
        "h": torch.randn(rows, SITES, CLASSES, generator=generator, dtype=dtype),
        "c": torch.randn(rows, 2, generator=generator, dtype=dtype),
    }


def same(a, b, fields=("residual", "recurrence", "last_tick", "result", "instance", "start", "kept", "ticks")):
    for name in fields:
        assert torch.equal(getattr(a, name).nan_to_num(nan=-7), getattr(b, name).nan_to_num(nan=-7)), name
    for one, other in ((a.states, b.states), (a.readouts, b.readouts)):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name].nan_to_num(nan=-7), other[name].nan_to_num(nan=-7)), name


def test_a_trace_is_bitwise_a_plain_loop(generator):
    f, z = reader(7, generator), starts(7, generator)
    traj = trace(f, z, ticks=12, keep=every(1))
    past = []
    for t in range(13):
        past.append(z)
        new, out = f(z), f.readout(z)
        for name in z:
            assert traj.states[name][t].equal(z[name])
        length = trees.norm(trees.sub(new, z)) / trees.norm(z)
        assert traj.residual[t].equal(length)
        logits = out["logits"]
        assert traj.readouts["answer"][t].long().equal(logits.argmax(-1))
        gaps = logits.sort(dim=-1).values
        assert traj.readouts["margin"][t].equal((gaps[..., -1] - gaps[..., -2]).amin(1))
        assert traj.readouts["halt"][t].equal(out["halt"])
        assert traj.readouts["sure"][t].bool().equal(out["sure"])
        if t:
            change = (logits - f.readout(past[-2])["logits"]).norm(dim=-1).mean(1)
            assert (traj.readouts["logit_change"][t] - change).abs().max() < 1e-14
        z = new
    assert traj.readouts["logit_change"][0].isnan().all()
    for lag in range(1, LAGS + 1):
        back = trees.norm(trees.sub(past[-1], past[-1 - lag])) / trees.norm(past[-1])
        assert traj.recurrence[lag - 1].equal(back)
    assert traj.result.tolist() == [Result.COMPLETED.code] * 7 and traj.last_tick.tolist() == [12] * 7
    assert traj.last["h"].equal(past[-1]["h"]) and traj.clock == "tick"


def test_the_residuals_of_a_linear_map_are_those_of_the_formula():
    toy = toys.linear(torch.diag(torch.tensor([0.5, -0.25])), torch.tensor([1.0, 5.0]))
    traj = trace(toy.map, {"z": torch.zeros(1, 2, dtype=torch.float64)}, ticks=9, keep=every(1))
    rates, fixed = torch.tensor([0.5, -0.25], dtype=torch.float64), torch.tensor([2.0, 4.0], dtype=torch.float64)
    for t in range(1, 10):
        z, after = fixed * (1 - rates**t), fixed * (1 - rates ** (t + 1))
        assert traj.residual[t].item() == pytest.approx(float((after - z).norm() / z.norm()), rel=1e-12)
    assert traj.residual[0].item() == pytest.approx(26**0.5), "a start at 0 has no length to compare with: the step itself"


def test_chunks_do_not_change_a_bit(generator, monkeypatch):
    f, z = reader(5, generator).take(repeat_rows(5, 6)), starts(30, generator)
    whole = trace(f, z, ticks=10, keep=log_spaced(4))
    monkeypatch.setattr(orbits, "CPU_CHUNK", 1)
    same(whole, trace(f, z, ticks=10, keep=log_spaced(4)))


def test_permuted_rows_give_permuted_columns(generator):
    f, z = reader(6, generator), starts(6, generator)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight, moved = trace(f, z, ticks=5, keep=every(2)), trace(f.take(order), trees.take(z, order), ticks=5, keep=every(2))
    assert moved.residual.equal(straight.residual[:, order])
    assert moved.states["h"].equal(straight.states["h"][:, order])
    assert moved.readouts["answer"].equal(straight.readouts["answer"][:, order])
    assert moved.instance.equal(order)


def test_a_strobed_trace_is_every_third_tick_of_a_plain_one(generator):
    f, z = reader(4, generator), starts(4, generator)
    plain, seen = trace(f, z, ticks=12, keep=every(3)), trace(strobe(f, 3), z, ticks=4, keep=every(1))
    assert seen.clock == "3 x tick"
    for name in z:
        assert seen.states[name].equal(plain.states[name])
    assert seen.readouts["answer"].equal(plain.readouts["answer"][::3])


def test_a_nan_row_ends_alone_and_the_others_keep_their_bits(generator):
    f, z = reader(6, generator), starts(6, generator)
    clean = trace(f, z, ticks=8, keep=every(1))
    spoiled = {name: leaf.clone() for name, leaf in z.items()}
    spoiled["h"][2, 1, 1] = torch.nan
    spoiled["c"][4, 0] = torch.inf
    traj = trace(f, spoiled, ticks=8, keep=every(1))
    fine = torch.tensor([0, 1, 3, 5])
    assert traj.residual[:, fine].equal(clean.residual[:, fine]) and traj.states["h"][:, fine].equal(clean.states["h"][:, fine])
    assert traj.readouts["answer"][:, fine].equal(clean.readouts["answer"][:, fine])
    for row in (2, 4):
        assert Result.of(int(traj.result[row])) is Result.NONFINITE and traj.last_tick[row] == -1
        assert traj.residual[:, row].isnan().all() and traj.states["h"][:, row].isnan().all() and traj.recurrence[:, row].isnan().all()
        for name in ("answer", "sure", "byte"):
            assert (traj.readouts[name][:, row] == -1).all(), f"{name} has a number that cannot be mistaken for a value"


def test_a_row_that_breaks_on_its_way_keeps_what_came_before():
    # 1/z − 2 of 1/2 is 0, of 0 infinite.
    f = LatentMap(lambda z, x: {"z": 1 / z["z"] - 2}, {}, clock="tick")
    traj = trace(f, {"z": torch.tensor([[0.5], [1.0]], dtype=torch.float64)}, ticks=6, keep=every(1))
    assert traj.last_tick.tolist() == [1, 6]
    assert traj.states["z"][:3, 0, 0].tolist()[:2] == [0.5, 0.0] and traj.states["z"][2:, 0].isnan().all()
    assert [Result.of(code) for code in traj.result.tolist()] == [Result.NONFINITE, Result.COMPLETED]


def test_a_row_that_grows_a_hundred_million_times_has_diverged():
    f = LatentMap(lambda z, x: {"z": 10 * z["z"]}, {}, clock="tick")
    traj = trace(f, {"z": torch.tensor([[3.0], [1e-20]], dtype=torch.float64)}, ticks=20, keep=only_last())
    assert traj.last_tick.tolist() == [8, 20], "a start below 1 may grow to 1e8"
    assert [Result.of(code) for code in traj.result.tolist()] == [Result.DIVERGED, Result.COMPLETED]


def test_a_kick_is_applied_between_ticks_to_all_rows_at_once(generator, monkeypatch):
    monkeypatch.setattr(orbits, "CPU_CHUNK", 1)
    f, z = reader(20, generator), starts(20, generator)
    seen = []

    def kick(state, tick):
        seen.append((trees.rows(state), tick))
        return {name: leaf + 1 if tick == 3 else leaf for name, leaf in state.items()}

    traj = trace(f, z, ticks=5, keep=every(1), kick=kick)
    assert seen == [(20, tick) for tick in range(1, 6)]
    before = trace(f, z, ticks=2, keep=only_last()).last
    kicked = {name: leaf + 1 for name, leaf in f(before).items()}
    assert traj.states["h"][3].equal(kicked["h"]) and traj.states["c"][5].equal(f(f(kicked))["c"])
    unkicked = trees.norm(trees.sub(f(before), before)) / trees.norm(before)
    assert traj.residual[2].equal(unkicked), "the residual is that of the map, without the kick"


def test_a_kick_that_writes_into_the_state_does_not_reach_what_was_recorded(generator):
    # The map hands on a leaf as it is, so that the states of all ticks would be one tensor.
    f = LatentMap(lambda z, x: {"a": z["a"], "b": 0.5 * z["b"]}, {}, readout=lambda z: {"a": z["a"][:, 0]})
    z = {name: torch.randn(3, 2, generator=generator) for name in ("a", "b")}

    def writing(state, tick):
        state["a"].add_(tick)
        return state

    again = {name: leaf.clone() for name, leaf in z.items()}
    written = trace(f, again, ticks=12, keep=every(1), kick=writing)
    same(written, trace(f, z, ticks=12, keep=every(1), kick=lambda state, tick: {**state, "a": state["a"] + tick}))


@pytest.mark.parametrize("ticks", [1, 2, 3, 64, 100, 12345])
def test_the_last_tick_is_always_kept_and_ticks_increase(ticks):
    for keep in (every(1), every(7), every(10**6), log_spaced(1), log_spaced(5), log_spaced(50), only_last()):
        kept = keep(ticks).tolist()
        assert kept[-1] == ticks and kept == sorted(set(kept)) and kept[0] >= 0
    assert log_spaced(5)(ticks)[0] == 0 and len(log_spaced(5)(ticks)) <= 6
    assert every(1)(ticks).tolist() == list(range(ticks + 1))


def test_a_keep_of_ones_own_that_leaves_out_the_last_tick_is_refused(generator):
    f, z = reader(2, generator), starts(2, generator)
    for keep in (lambda t: torch.tensor([0, 3]), lambda t: torch.tensor([5, 0]), lambda t: torch.tensor([-1, 5]), lambda t: torch.tensor([]).long()):
        with pytest.raises(ValueError, match=r"`trace` got a `keep` that chooses.*increase from 0 or later to the last.*Use every\(n\)"):
            trace(f, z, ticks=5, keep=keep)


def test_wrong_numbers_are_refused_with_what_to_type(generator):
    f, z = reader(2, generator), starts(2, generator)
    with pytest.raises(ValueError, match=r"`trace` got ticks=0.*at least one tick long.*Use ticks=1"):
        trace(f, z, ticks=0, keep=every(1))
    with pytest.raises(ValueError, match=r"`every` got 0.*once in 1 or more ticks.*Use every\(1\)"):
        every(0)
    with pytest.raises(ValueError, match=r"`log_spaced` got 0.*besides the start.*Use log_spaced\(8\)"):
        log_spaced(0)
    with pytest.raises(ValueError, match=r"A state of 3 rows met a map of 2 rows"):
        trace(f, starts(3, generator), ticks=2, keep=every(1))


@pytest.mark.parametrize("keep", [every(1), log_spaced(4), only_last()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_price_is_what_the_trace_holds(keep, dtype, generator):
    f, z = reader(6, generator, dtype), starts(6, generator, dtype)
    traj = trace(f, z, ticks=9, keep=keep)
    scalars = [getattr(traj, name) for name in ("kept", "ticks", "residual", "recurrence", "last_tick", "result", "instance", "start")]
    held = sum(t.numel() * t.element_size() for t in [*traj.states.values(), *traj.readouts.values(), *scalars])
    assert bytes_of(f, z, ticks=9, keep=keep) == held


def test_logits_without_sites_and_with_many_classes_are_read(generator):
    # One answer per row, of 40,000 classes: more than 16 bits can count.
    f = LatentMap(lambda z, x: {"z": z["z"]}, {}, readout=lambda z: {"logits": z["z"]}, clock="tick")
    z = torch.randn(3, 40_000, generator=generator)
    z[:, 39_000] = 99.0
    traj = trace(f, {"z": z}, ticks=2, keep=only_last())
    assert traj.readouts["answer"].tolist() == [[39_000] * 3] * 3
    assert traj.readouts["margin"].shape == traj.readouts["logit_change"].shape == (3, 3)


def test_bfloat16_states_are_followed_in_bfloat16():
    f = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, clock="tick")
    traj = trace(f, {"z": torch.zeros(2, 3, dtype=torch.bfloat16)}, ticks=20, keep=every(5))
    assert traj.states["z"].dtype == torch.bfloat16 and traj.residual.dtype == torch.float32 and traj.residual[-1].tolist() == [0.0, 0.0]


def test_no_graph_is_kept():
    weight = torch.ones(1, requires_grad=True)
    f = LatentMap(lambda z, x: {"z": 0.5 * weight * z["z"]}, {}, clock="tick")
    traj = trace(f, {"z": torch.ones(1, 1)}, ticks=2, keep=every(1))
    assert not traj.residual.requires_grad and not traj.states["z"].requires_grad
    assert len(traj.recurrence) == recorder.LAGS


def counting(values):
    """A linear contraction, one rate a number, that counts the rows it is asked for."""
    asked = []

    def rule(z, x):
        asked.append(len(z["z"]))
        return {"z": z["z"] * x["rate"] + 1}

    rate = torch.tensor(values, dtype=torch.float64)[:, None]
    n = len(values)
    return LatentMap(rule, {"rate": rate}, clock="tick", instance=torch.arange(n), start=torch.zeros(n, dtype=torch.int64)), asked


def test_a_row_at_rest_leaves_is_held_and_says_since_when():
    f, asked = counting([0.1, 0.9])
    z = {"z": torch.zeros(2, 1, dtype=torch.float64)}
    held, free = (trace(f, z, ticks=40, keep=every(1), rest=rest) for rest in (1e-6, None))
    assert [Result.of(code) for code in held.result.tolist()] == [Result.CONVERGED, Result.COMPLETED]
    below = (free.residual[:, 0] < 1e-6).nonzero().squeeze(1)
    assert held.last_tick.tolist() == [int(below[2]), 40]
    left = int(held.last_tick[0])
    assert held.residual[: left + 1].equal(free.residual[: left + 1]) and held.residual[:, 1].equal(free.residual[:, 1])
    assert (held.residual[left:, 0] == held.residual[left, 0]).all()
    assert (held.states["z"][left:, 0] == free.states["z"][left, 0]).all() and held.states["z"][:, 1].equal(free.states["z"][:, 1])
    assert sum(asked[1:42]) == (left + 1) * 2 + (40 - left)  # after a look at a few rows


def test_when_every_row_is_at_rest_nothing_more_is_computed():
    f, asked = counting([0.1, 0.2])
    traj = trace(f, {"z": torch.zeros(2, 1, dtype=torch.float64)}, ticks=500, keep=every(100), rest=1e-6)
    assert len(asked) < 20
    assert traj.states["z"].shape == (6, 2, 1) and (traj.states["z"][1:] == traj.states["z"][-1]).all()
    assert (traj.recurrence == 0).all()


def test_rest_below_the_floor_or_beside_a_kick_is_refused():
    f, _ = counting([0.1])
    z = {"z": torch.zeros(1, 1, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"got tol=1e-15 for states in float64.*1e-13 or more"):
        trace(f, z, ticks=3, keep=every(1), rest=1e-15)
    with pytest.raises(ValueError, match=r"both rest and kick.*Leave out one"):
        trace(f, z, ticks=3, keep=every(1), rest=1e-6, kick=lambda state, tick: state)


def test_no_rows_and_whole_numbers_are_refused():
    half = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}, clock="tick")
    for z, said in ((torch.zeros(0, 2), "0 rows of float32"), (torch.zeros(2, 2).long(), "2 rows of int64")):
        with pytest.raises(ValueError, match=rf"`trace` got {said}.*one row or more, of floating-point numbers"):
            trace(half, {"z": z}, ticks=2, keep=only_last())


def test_of_one_class_the_answer_is_that_class_by_any_margin():
    f = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}, readout=lambda z: {"logits": z["z"][:, :, None]})
    traj = trace(f, {"z": torch.ones(2, 3, dtype=torch.float64)}, ticks=2, keep=every(1))
    assert bool((traj.readouts["answer"] == 0).all()) and bool(traj.readouts["margin"].isposinf().all())
    torch.testing.assert_close(traj.readouts["logit_change"][1:, 0], torch.tensor([0.5, 0.25], dtype=torch.float64))
