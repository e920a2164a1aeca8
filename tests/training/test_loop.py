"""The trainer: the same bytes after a stop, a loss that falls, and carries, halts and averages as described."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from attractorlab import tasks
from attractorlab.maps import in_turn
from attractorlab.models import CheckpointError, eqr, load, load_feedforward
from attractorlab.tasks import BLANK
from attractorlab.training import loop, preparing
from attractorlab.training.config import TrainConfig
from attractorlab.training.loop import Trainer, train
from attractorlab.training.preparing import training_pool
from attractorlab.training.ranks import Ranks
from attractorlab.training.validation import validation_puzzles

TINY = TrainConfig("sudoku-4", width=16, blocks=1, H_cycles=2, L_cycles=1, segments=12, batch=8, warmup=4, decay=4, halt_max=4, reveal=0.5, noise=0.05)


@pytest.fixture(scope="module")
def pool():
    return tasks.generate(4, 60, seed=1)


def train_in(folder, trainer, *, save_every=100):
    seen = []
    train(trainer, folder, name="tiny", command="a test", save_every=save_every, report=seen.append)
    return seen


class Killed(Exception):
    pass


def killed_after(segments):
    """A report that stops the run once it has come that far."""

    def report(progress):
        if progress["segment"] >= segments:
            raise Killed

    return report


@pytest.mark.parametrize("change", [{}, {"precision": "bfloat16", "start": "fixed", "noise": 0.0, "loss": "softmax"}, {"model": "feedforward"}])
def test_a_stopped_and_resumed_run_writes_the_same_bytes(tmp_path, pool, change):
    config = replace(TINY, **change)
    train_in(tmp_path / "whole", Trainer(config, pool=pool))
    with pytest.raises(Killed):
        train(Trainer(config, pool=pool), tmp_path / "parts", name="tiny", command="a test", save_every=6, report=killed_after(8))
    resumed = Trainer.resume(tmp_path / "parts" / "state", pool=pool)
    assert resumed.segment == 6
    train_in(tmp_path / "parts", resumed)
    for name in ("model.safetensors", "state/segment-00000012/rank-0-of-1-0000.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert [one.name for one in (tmp_path / "parts" / "state").iterdir()] == ["segment-00000012"]
    segments = [json.loads(line)["segment"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert segments == sorted(set(segments)) and segments[-1] == 12
    about = load_feedforward(tmp_path / "whole" / "model.safetensors") if config.model == "feedforward" else load(tmp_path / "whole")
    assert about.name == "tiny" and about.config.width == 16


def test_two_runs_of_one_seed_agree_and_another_seed_does_not(pool):
    def weights(seed):
        trainer = Trainer(replace(TINY, segments=3, seed=seed), pool=pool)
        list(trainer.run())
        return trainer.average.state_dict()["lm_head.weight"]

    assert weights(0).equal(weights(0)) and not weights(0).equal(weights(1))


def test_saving_in_the_middle_changes_nothing(tmp_path, pool):
    straight, saving = Trainer(TINY, pool=pool), Trainer(TINY, pool=pool)
    list(straight.run())
    for _ in saving.run(every=1):
        saving.save_state(tmp_path / "s")
        saving.save_model(tmp_path / "m.safetensors", name="x", command="y")
    for name, tensor in straight.model.state_dict().items():
        assert tensor.equal(saving.model.state_dict()[name]), name


def test_the_loss_falls_on_a_tiny_problem(pool):
    config = replace(TINY, segments=80, batch=32, lr=1e-2, warmup=10, noise=0.0, reveal=1.0, reveal_up_to=1.0, decay=30)
    losses = [progress["loss"] for progress in Trainer(config, pool=pool).run(every=10)]
    # A guess among four digits costs about log 4 = 1.39 on blanks; copying the clues brings it to about half of that.
    assert losses[-1] < 0.5 * losses[0] and losses[-1] < 1.0, losses


def test_a_feedforward_network_learns_and_meets_new_puzzles_at_every_segment(pool):
    config = replace(TINY, model="feedforward", segments=80, batch=32, lr=1e-2, warmup=10, reveal=1.0, reveal_up_to=1.0, decay=30)
    trainer = Trainer(config, pool=pool)
    before = trainer.inputs.clone()
    seen = list(trainer.run(every=10))
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"] and seen[-1]["segments_per_puzzle"] == 1.0 and seen[-1]["halt_loss"] == 0.0
    assert not trainer.inputs.equal(before) and not trainer.carry and bool(trainer.halted.all())
    # All its updates learn, not the last recursion alone.
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in trainer.model.parameters())


def test_a_training_begins_with_given_weights_and_is_resumed_without_them(tmp_path, pool):
    first = Trainer(TINY, pool=pool)
    train_in(tmp_path / "first", first)
    given = tmp_path / "first" / "model.safetensors"
    config = replace(TINY, begin=str(given), segments=4, start="fixed")
    second = Trainer(config, pool=pool)
    for name, tensor in load(given).state_dict().items():
        assert tensor.equal(second.model.state_dict()[name]) and tensor.equal(second.average.state_dict()[name]), name
    second._segment()
    second.save_state(tmp_path / "state")
    given.unlink()
    resumed = Trainer.resume(tmp_path / "state", pool=pool)
    assert resumed.config == config and resumed.segment == 1
    with pytest.raises(ValueError, match=r"got begin='eqr-sudoku-4', whose weights are not those of the configuration \(.*\)\. .* Set width, blocks"):
        Trainer(replace(TINY, begin="eqr-sudoku-4"), pool=pool)


def spied(trainer, monkeypatch):
    """The states that a segment starts each tick from, with whether a graph hangs on them."""
    seen = []

    def spy(updates):
        def rule(z, drive):
            seen.append(({name: leaf.clone().detach() for name, leaf in z.items()}, z["z_H"].requires_grad, torch.is_grad_enabled()))
            return in_turn(updates)(z, drive)

        return rule

    monkeypatch.setattr(eqr, "in_turn", spy)
    trainer._segment()
    monkeypatch.undo()
    return seen


def test_only_the_last_recursion_has_a_gradient_and_the_carry_has_none(pool, monkeypatch):
    trainer = Trainer(replace(TINY, H_cycles=3), pool=pool)
    seen = spied(trainer, monkeypatch)
    assert [graph for _, graph, _ in seen] == [False] * 3 and [enabled for *_, enabled in seen] == [False, False, True]
    assert not any(leaf.requires_grad for leaf in trainer.carry.values())
    again = spied(trainer, monkeypatch)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trainer.model.parameters())
    assert not any(graph for _, graph, _ in again)


@pytest.mark.parametrize("change", [{}, {"model": "feedforward"}])
def test_learning_in_groups_of_slots_is_learning_from_all(pool, monkeypatch, change):
    def learned(cached):
        monkeypatch.setattr(loop, "CACHED", cached)
        trainer = Trainer(replace(TINY, noise=0.0, batch=7, segments=3, weight_decay=0.0, **change), pool=pool)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)  # weights that follow the gradients, and do not blow rounding up
        progress = list(trainer.run(every=1))
        return trainer, progress

    (whole, told), (cut, told_too) = learned(7), learned(3)
    assert [len(group) for group in cut.groups] == [3, 3, 1] and len(whole.groups) == 1
    for one, other in zip(told, told_too, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5) and one["halt_loss"] == pytest.approx(other["halt_loss"], rel=1e-5)
        assert one["puzzles"] == other["puzzles"]
    for (name, one), other in zip(whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)
    for name, leaf in whole.carry.items():
        torch.testing.assert_close(leaf, cut.carry[name], rtol=1e-3, atol=1e-4, msg=name)


def test_every_weight_gets_a_gradient_in_bfloat16_too(pool):
    # The recursions without a graph run first, under the same autocast: their casts must not be reused.
    trainer = Trainer(replace(TINY, precision="bfloat16"), pool=pool)
    trainer._segment()
    # The halting head starts at zero weight, which has a gradient all the same.
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainer.model.parameters())
    assert {leaf.dtype for leaf in trainer.carry.values()} == {torch.float32}


def test_refilling_touches_the_halted_rows_alone(pool):
    trainer = Trainer(TINY, pool=pool)
    trainer._segment()
    trainer.halted = torch.tensor([False, True, False, False, True, False, True, False])
    keep = ~trainer.halted
    before = {name: getattr(trainer, name).clone() for name in ("inputs", "targets", "steps", "least")}
    carry = {name: leaf.clone() for name, leaf in trainer.carry.items()}
    starts = torch.Generator()
    starts.set_state(trainer.generators["starts"].get_state())
    trainer._refill()
    for name, value in before.items():
        assert getattr(trainer, name)[keep].equal(value[keep]), name
    fresh = trainer.model.start({"x": carry["z_H"][~keep]}, generator=starts)
    for name, leaf in carry.items():
        assert trainer.carry[name][keep].equal(leaf[keep]), name
        assert trainer.carry[name][~keep].equal(fresh[name]), name
    assert trainer.steps[~keep].tolist() == [0, 0, 0] and trainer.steps[keep].tolist() == [1] * 5
    given = trainer.inputs != BLANK
    assert (trainer.inputs[given] == trainer.targets[given]).all()


def test_nothing_is_drawn_when_nothing_halted(pool):
    trainer = Trainer(TINY, pool=pool)
    trainer._segment()
    trainer.halted = torch.zeros(8, dtype=torch.bool)
    states = {name: generator.get_state() for name, generator in trainer.generators.items()}
    trainer._refill()
    assert all(generator.get_state().equal(states[name]) for name, generator in trainer.generators.items())


def set_halt(trainer, value):
    """The halting head says `value`, whatever the state."""
    with torch.no_grad():
        trainer.model.q_head.weight.zero_()
        trainer.model.q_head.bias[0] = value


def test_a_slot_halts_when_it_wants_to_but_explorers_wait_their_segments(pool):
    config = replace(TINY, batch=400, halt_max=5, halt_explore=0.5, lr=1e-9, weight_decay=0.0)
    trainer = Trainer(config, pool=pool)
    set_halt(trainer, 5.0)
    trainer._segment()
    explorers = trainer.least > 1
    assert 0.4 < explorers.float().mean() < 0.6 and trainer.least[~explorers].unique().tolist() == [1]
    assert trainer.least[explorers].unique().tolist() == [2, 3, 4, 5], "from 2 to halt_max"
    assert trainer.halted.equal(~explorers)
    patient = (trainer.least == 4).nonzero().flatten()
    for steps in (2, 3):
        trainer._segment()
        assert trainer.steps[patient].tolist() == [steps] * len(patient) and not trainer.halted[patient].any()
    trainer._segment()
    assert trainer.halted[patient].all()


def test_a_slot_that_never_wants_to_halt_is_refilled_at_the_latest(pool):
    trainer = Trainer(replace(TINY, halt_max=3, lr=1e-9, weight_decay=0.0), pool=pool)
    set_halt(trainer, -5.0)
    halted = []
    for _ in range(6):
        trainer._segment()
        halted.append(trainer.halted.all().item())
    assert halted == [False, False, True, False, False, True]


def test_the_average_follows_the_weights_with_the_ramped_decay(pool):
    trainer = Trainer(replace(TINY, ema=0.5), pool=pool)
    expected = trainer.average.lm_head.weight.detach().clone()
    for segment in range(12):
        trainer._segment()
        decay = min(0.5, (1 + segment) / (10 + segment))
        expected = decay * expected + (1 - decay) * trainer.model.lm_head.weight.detach()
        assert (trainer.average.lm_head.weight - expected).abs().max() < 1e-6
    assert not any(parameter.requires_grad for parameter in trainer.average.parameters())
    assert trainer.finished_model("x").lm_head.weight.equal(trainer.average.lm_head.weight)


def test_the_rate_warms_up_holds_and_falls_to_its_share(pool):
    def rates(**change):
        trainer = Trainer(replace(TINY, segments=100, lr=0.01, final_lr=0.1, **change), pool=pool)
        for trainer.segment in range(100):
            yield trainer._rate()

    some = list(rates(warmup=10, decay=20))
    assert some[:10] == pytest.approx([0.001 * k for k in range(1, 11)]) and some[10:81] == pytest.approx([0.01] * 71)
    assert some[90] == pytest.approx(0.01 * 0.55) and all(a > b for a, b in pairwise(some[80:])) and 0.001 < some[99] < 0.0011
    assert set(rates(warmup=0, decay=0)) == {0.01} and list(rates(warmup=0, decay=1500)) == list(rates(warmup=0, decay=100)), "over all segments where they are fewer"


def test_a_noisy_rule_of_scale_zero_is_the_tick(pool, generator):
    trainer = Trainer(TINY, pool=pool)
    drive = trainer.model.embed(pool[[0, 1, 2]])
    z = trainer.model.start(drive, generator=generator)
    silent, loud = trainer.model.noisy(0.0, generator)(z, drive), trainer.model.noisy(0.1, generator)(z, drive)
    plain = trainer.model.tick(z, drive)
    assert all(silent[name].equal(plain[name]) and not loud[name].equal(plain[name]) for name in z)


def test_progress_is_the_average_since_the_last_and_does_not_suffer_from_a_resume(tmp_path, pool):
    every_one = [one["loss"] for one in Trainer(TINY, pool=pool).run(every=1)]
    by_five = list(Trainer(TINY, pool=pool).run(every=5))
    assert [one["segment"] for one in by_five] == [5, 10, 12]
    assert [one["loss"] for one in by_five] == pytest.approx([sum(every_one[:5]) / 5, sum(every_one[5:10]) / 5, sum(every_one[10:]) / 2])
    trainer = Trainer(TINY, pool=pool)
    for progress in trainer.run(every=1):
        if progress["segment"] == 7:
            trainer.save_state(tmp_path / "s")
            break
    rest = list(Trainer.resume(tmp_path / "s", pool=pool).run(every=5))
    assert [one["loss"] for one in rest] == pytest.approx([sum(every_one[7:10]) / 3, sum(every_one[10:]) / 2])


@pytest.mark.parametrize("save_every", [1, 5, 6, 7])
def test_an_interruption_loses_no_more_than_was_asked(tmp_path, pool, save_every):
    def report(progress):
        if progress["segment"] >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Trainer(TINY, pool=pool), tmp_path, name="tiny", command="", save_every=save_every, report=report)
    saved = Trainer.resume(tmp_path / "state", pool=pool).segment
    assert saved % save_every == 0 and 8 - saved <= save_every


def test_a_torn_log_is_mended_on_resuming(tmp_path, pool):
    train_in(tmp_path, Trainer(replace(TINY, segments=2), pool=pool), save_every=1)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"segment": 9, "loss": 1.0}\n{"segment": 3, "lo')
    train_in(tmp_path, Trainer.resume(tmp_path / "state", pool=pool))
    assert [json.loads(line)["segment"] for line in log.read_text().splitlines()] == [1, 2]


def test_a_state_is_resumed_on_the_same_data_and_from_a_whole_file_alone(tmp_path, pool):
    trainer = Trainer(replace(TINY, segments=1), pool=pool)
    train_in(tmp_path, trainer)
    state = tmp_path / "state"
    with pytest.raises(CheckpointError, match=r"was trained on data with the fingerprint .*resumed on the same data.*Put the same file where it was"):
        Trainer.resume(state, pool=pool[:59])
    with pytest.raises(CheckpointError, match=r"holds no training state.*Use the folder `state` that `attractorlab train` left"):
        Trainer.resume(tmp_path, pool=pool)
    file = state / "segment-00000001" / "rank-0-of-1-0000.safetensors"
    with pytest.raises(CheckpointError, match=r"is a safetensors file of format 'attractorlab-training-3'"):
        load(file)
    with pytest.raises(CheckpointError, match=r"holds the parts of 1 processes, and 2 would read it.*Start as many with torchrun"):
        Trainer.resume(state, pool=pool, ranks=Ranks(0, 2))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"cannot be read as a safetensors file"):
        Trainer.resume(state, pool=pool)
    shutil.copy(tmp_path / "model.safetensors", file)
    with pytest.raises(CheckpointError, match=r"says format 'attractorlab-model-1'.*Use the version of attractorlab that wrote them"):
        Trainer.resume(state, pool=pool)
    with pytest.raises(ValueError, match=r"got batch=8 for 3 processes.*Set batch to a multiple of 3"):
        Trainer(TINY, pool=pool, ranks=Ranks(0, 3))


def test_a_state_is_saved_once_in_one_or_more_segments(tmp_path, pool):
    with pytest.raises(ValueError, match=r"`train` got save_every=0.*Use save_every=200"):
        train_in(tmp_path, Trainer(TINY, pool=pool), save_every=0)


def test_the_pool_leaves_out_twins_of_the_bundled_puzzles_but_on_side_four(monkeypatch):
    own = tasks.generate(6, 30, seed=11)
    test, validation = (tasks.load("sudoku-6", split=split, rows=slice(0, 3)) for split in ("test", "validation"))
    symmetries = tasks.random_symmetries(6, 6, generator=torch.Generator().manual_seed(0))
    twins = symmetries.apply(torch.cat([test.inputs, validation.inputs]))
    answers = symmetries.apply(torch.cat([test.targets, validation.targets]))
    mixed = replace(
        own,
        inputs=torch.cat([own.inputs, twins]),
        targets=torch.cat([own.targets, answers]),
        ids=(*own.ids, *["twin"] * 6),
        difficulty=torch.cat([own.difficulty, torch.zeros(6, dtype=own.difficulty.dtype)]),
    )
    monkeypatch.setattr(preparing, "generate", lambda side, count, *, seed: mixed)
    pool = training_pool(replace(TINY, task="sudoku-6"))
    assert "twin" not in pool.ids and len(pool) >= 29 and set(pool.ids) <= set(own.ids)
    monkeypatch.setattr(preparing, "generate", lambda side, count, *, seed: tasks.generate(side, count, seed=seed))
    assert len(training_pool(replace(TINY, puzzles=37))) == 37


COMPARED = """
from attractorlab import tasks
from attractorlab.training.config import TrainConfig
from attractorlab.training.loop import Trainer

pool = tasks.generate(4, 60, seed=1)
config = dict(width=16, blocks=1, H_cycles=1, L_cycles=1, batch=8, noise=0.05)
both = [Trainer(TrainConfig("sudoku-4", engine=engine, **config), pool=pool) for engine in ("eager", "compiled")]
for _ in range(3):
    for one in both:
        one.sums.zero_()
        one._segment()
    print(*[float(one.sums[0]) for one in both])
assert both[0].model.state_dict().keys() == both[1].model.state_dict().keys()
"""


def test_a_compiled_training_differs_in_rounding_only():
    # In a process of its own: the shape checks of the tests cannot be compiled.
    told = subprocess.run([sys.executable, "-c", COMPARED], capture_output=True, text=True, check=True).stdout
    losses = torch.tensor([[float(word) for word in line.split()] for line in told.splitlines()])
    assert losses.shape == (3, 2) and losses[0, 0] != losses[1, 0]
    assert torch.allclose(losses[:, 0], losses[:, 1], rtol=1e-4)


def test_a_compiled_training_without_a_compiler_is_refused(pool, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"engine='compiled' and found no no-such-compiler. .* Install g\+\+, name another one .* or use engine=eager."):
        Trainer(replace(TINY, engine="compiled"), pool=pool)


def test_the_log_says_how_many_unseen_puzzles_the_average_solves(tmp_path, pool):
    seen = train_in(tmp_path, Trainer(replace(TINY, segments=3), pool=pool), save_every=2)
    assert [("validation" in one, one["segment"]) for one in seen] == [(True, 2), (True, 3)]
    assert all(one["samples_per_second"] > 0 for one in seen) and seen[0]["validation_puzzles"] == 100
    model, puzzles = load(tmp_path), validation_puzzles("sudoku-4")
    f = model.bind(puzzles)
    z = model.start(f.drive, generator=torch.Generator().manual_seed(0))
    for _ in range(TINY.halt_max * TINY.H_cycles):
        z = f(z)
    solved = (f.readout(z)["logits"].argmax(-1) == puzzles.targets).all(1)
    assert seen[-1]["validation"] == solved.double().mean()
