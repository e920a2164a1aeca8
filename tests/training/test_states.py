"""What is refused when a training goes on, and what a save, a log or a report must not do."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from attractorlab import tasks
from attractorlab.errors import BadData
from attractorlab.models import CheckpointError
from attractorlab.models.checkpoints import load_feedforward, read_metadata, write_tensors
from attractorlab.training import preparing, shards
from attractorlab.training.config import PRESETS, SEEDS, TrainConfig
from attractorlab.training.loop import Trainer, _cut_log, train
from attractorlab.training.preparing import training_pool
from attractorlab.training.ranks import ALONE, join
from attractorlab.training.shards import newest, write_shards
from attractorlab.types import Instance

TINY = TrainConfig("sudoku-4", width=16, blocks=1, H_cycles=1, L_cycles=1, segments=6, batch=8, warmup=2, halt_max=4)
FILE = "rank-0-of-1-0000.safetensors"
Parts = tuple[dict[str, Tensor], dict[str, str]]


@pytest.fixture(scope="module")
def pool() -> Instance:
    return tasks.generate(4, 60, seed=1)


@pytest.fixture(scope="module")
def saved(pool: Instance, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The tensors and metadata of a state after two segments."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = Trainer(TINY, pool=pool)
    trainer._segment()
    trainer._segment()
    trainer.save_state(folder)
    file = folder / "segment-00000002" / FILE
    return load_file(file), {key: value for key, value in read_metadata(file).items() if key != shards.CHECKSUM}


def without(*names: str) -> Callable[[Parts], Parts]:
    return lambda parts: tuple({key: value for key, value in one.items() if key not in names} for one in parts)  # type: ignore[return-value]


def said(**about: str) -> Callable[[Parts], Parts]:
    return lambda parts: (parts[0], {**parts[1], **about})


def cut(name: str) -> Callable[[Parts], Parts]:
    return lambda parts: ({**parts[0], name: parts[0][name][:2].clone()}, parts[1])


SPOILED = {
    "no training": (without("training"), r"does not say what was trained \(KeyError\('training'\)\)\. A state names its training, .*Copy the folder again"),
    "no data": (without("data"), r"does not say what was trained \(KeyError\('data'\)\)"),
    "half a training": (said(training="{"), "does not say what was trained"),
    "a list": (said(training="[]"), "does not say what was trained"),
    "no number": (said(segment="x"), "does not say what was trained"),
    "too far": (said(segment="7"), r"is no state of its training: segment 7 is not as it should be"),
    "before the first": (said(segment="-2"), r"segment -2 is not as it should be"),
    "uncounted files": (said(files="x"), r"says that it has 'x' files\. That is a number from 1\. Copy the folder segment-00000002 again"),
    "a weight": (without("model.lm_head.weight"), r"is no state of its training: model\.lm_head\.weight is not as it should be\. A state holds every tensor"),
    "moments": (without("optimizer.lm_head.weight.exp_avg"), r"optimizer\.lm_head\.weight\.exp_avg is not as it should be"),
    "random numbers": (without("generator.noise"), r"generator\.noise is not as it should be"),
    "half the carry": (cut("carry.z_H"), r"carry\.z_H is not as it should be"),
    "half the slots": (cut("slots.steps"), r"slots\.steps is not as it should be"),
    "another device": (cut("generator.noise"), r"was saved on another kind of device than cpu\. Random numbers .*Pass the --device that the training was begun on"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_state_that_is_not_as_it_should_be_is_refused(name: str, tmp_path: Path, saved: Parts, pool: Instance) -> None:
    spoil, match = SPOILED[name]
    (tmp_path / "segment-00000002").mkdir()
    tensors, about = spoil(saved)
    write_tensors(tensors, tmp_path / "segment-00000002" / FILE, {**about, shards.CHECKSUM: shards._checksum(tensors, about)})
    with pytest.raises(CheckpointError, match=match):
        Trainer.resume(tmp_path, pool=pool)


def test_a_state_without_a_checksum_is_refused_and_one_of_before_by_its_format(tmp_path: Path, saved: Parts, pool: Instance) -> None:
    (tmp_path / "segment-00000002").mkdir()
    file = tmp_path / "segment-00000002" / FILE
    tensors, about = saved
    write_tensors(tensors, file, about)
    with pytest.raises(CheckpointError, match=r"its checksum is another or missing\. A state is read to the last bit\. Copy the folder segment-00000002 again"):
        Trainer.resume(tmp_path, pool=pool)
    write_tensors(tensors, file, {**about, "format": "attractorlab-training-2"})
    with pytest.raises(CheckpointError, match=r"says format 'attractorlab-training-2'\. .*Use the version of attractorlab that wrote them"):
        Trainer.resume(tmp_path, pool=pool)


def test_a_file_that_is_called_like_a_state_is_none(tmp_path: Path, pool: Instance) -> None:
    (tmp_path / "segment-00000001").write_text("x")
    with pytest.raises(CheckpointError, match="holds no training state"):
        Trainer.resume(tmp_path, pool=pool)
    write_shards({"a": torch.zeros(1)}, tmp_path, {}, segment=2, ranks=ALONE)
    assert newest(tmp_path) == tmp_path / "segment-00000002"


def test_a_state_of_another_training_after_as_many_segments_is_replaced(tmp_path: Path, pool: Instance) -> None:
    for seed in (0, 5):
        trainer = Trainer(replace(TINY, seed=seed), pool=pool)
        trainer._segment()
        trainer.save_state(tmp_path)
    assert Trainer.resume(tmp_path, pool=pool).config.seed == 5
    file = tmp_path / "segment-00000001" / FILE
    for damaged in (b"damaged", file.read_bytes()[:-1] + b"x"):
        file.write_bytes(damaged)
        trainer.save_state(tmp_path)
        assert Trainer.resume(tmp_path, pool=pool).segment == 1


def test_weights_that_are_not_finite_take_the_place_of_no_save(tmp_path: Path, pool: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a segment is that of the weights before its step: it may still be finite."""
    learn = Trainer._segment

    def spoiled(trainer: Trainer) -> None:
        learn(trainer)
        if trainer.segment == 4:
            with torch.no_grad():
                trainer.model.lm_head.weight[0, 0] = torch.inf

    monkeypatch.setattr(Trainer, "_segment", spoiled)
    with pytest.raises(ValueError, match=r"met numbers that are not finite in .* after segment 4\. .*the save before this one was kept\. Lower lr"):
        train(Trainer(TINY, pool=pool), tmp_path, name="tiny", command="", save_every=2, report=lambda progress: None)
    resumed = Trainer.resume(tmp_path / "state", pool=pool)
    assert resumed.segment == 2 and all(bool(one.isfinite().all()) for one in resumed.model.parameters())


def test_files_of_a_state_stay_below_14_megabytes(tmp_path: Path) -> None:
    tensors = {f"{number:03d} with a name of some length, as those of moments are": torch.zeros(256, 64) for number in range(450)}
    write_shards(tensors, tmp_path, {"training": "x" * 2000}, segment=1, ranks=ALONE)
    sizes = [one.stat().st_size for one in (tmp_path / "segment-00000001").iterdir()]
    assert len(sizes) == 3 and 13e6 < max(sizes) <= 14e6


def test_accuracy_is_left_out_where_no_puzzle_ended_and_throughput_leaves_out_the_reader(pool: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(replace(TINY, halt_max=5), pool=pool)
    learn, clock = Trainer._segment, [0.0]

    def timed(one: Trainer) -> None:
        learn(one)
        clock[0] += 2.0 if one.segment <= 2 else 0.5

    monkeypatch.setattr(Trainer, "_segment", timed)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    seen = []
    for progress in trainer.run(every=2):
        seen.append(progress)
        clock[0] += 100.0  # e.g. to validate and to save
    assert [one["samples_per_second"] for one in seen] == [4.0, 16.0, 16.0]
    assert [one["seconds"] for one in seen] == [4.0, 105.0, 206.0] and seen[0]["seconds_left"] == 8.0
    assert all("exact" not in one and "segments_per_puzzle" not in one and one["puzzles"] == 0 for one in seen[:2])
    assert (seen[2]["puzzles"], seen[2]["segments_per_puzzle"]) == (8, 5.0) and seen[2]["exact"] in [k / 8 for k in range(9)]


def test_the_log_is_shortened_whole_or_not_at_all_and_a_foreign_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    lines = "".join(json.dumps({"segment": segment, "loss": 1.0}) + "\n" for segment in (2, 4, 6))
    log.write_text(lines)

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            _cut_log(log, 4)
    assert log.read_text() == lines
    _cut_log(log, 4)
    assert log.read_text() == lines[: 2 * len(lines) // 3]
    log.write_text(lines.rstrip("\n"))  # killed between a line and its end
    _cut_log(log, 6)
    assert log.read_text() == lines
    for bad in ("rubbish}", '{"loss": 1.0}', "[1]", ""):
        log.write_text(f"{bad}\n{lines}")
        with pytest.raises(BadData, match=r"log\.jsonl is no log of a training in line 1\. .*Remove the line, then resume"):
            _cut_log(log, 4)
        assert log.read_text() == f"{bad}\n{lines}"


def test_a_training_without_puzzles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none.csv").write_text("question,answer\n")
    with pytest.raises(ValueError, match=r"`train` found no puzzle in .*none\.csv\. A training needs one or more\. Give data=FILE"):
        training_pool(replace(TINY, data=str(tmp_path / "none.csv")))
    monkeypatch.setattr(preparing, "generate", lambda task, count, *, seed: tasks.load("sudoku-6", rows=slice(0, 3)))
    with pytest.raises(ValueError, match=r"found 3 puzzles, and a symmetric twin of each among the bundled .*Give more puzzles"):
        training_pool(replace(TINY, task="sudoku-6"))


def test_a_model_trained_for_a_short_name_takes_the_puzzles_of_that_task() -> None:
    puzzles = tasks.generate(9, 4, seed=1)
    config = replace(TINY, task="sudoku", batch=2)
    assert config == replace(TINY, task="sudoku-9", batch=2)
    Trainer(config, pool=puzzles).finished_model("x").bind(puzzles)
    with pytest.raises(ValueError, match=r"`task_of` got the task 'sudoku-5'"):
        replace(TINY, task="sudoku-5")


def test_a_feedforward_training_begins_with_a_model_that_was_named() -> None:
    config = replace(PRESETS["feedforward-sudoku-9"], engine="eager", begin="feedforward-sudoku-9", batch=2)
    trainer, given = Trainer(config, pool=tasks.generate(9, 4, seed=1)), load_feedforward("feedforward-sudoku-9").state_dict()
    assert all(one.equal(given[name]) for name, one in trainer.model.state_dict().items())


def test_seeds_that_torch_cannot_tell_apart_are_refused(pool: Instance) -> None:
    for seed in (-1, SEEDS + 1, 10**17):
        with pytest.raises(ValueError, match=rf"`TrainConfig` got seed={seed}\. Seeds are whole numbers from 0 to 4,294,966: torch would draw the same for larger ones\. Use seed=0\."):
            replace(TINY, seed=seed)
    last = [Trainer(replace(TINY, seed=SEEDS - k), pool=pool).generators for k in (0, 1)]
    drawn = [float(torch.rand(1, dtype=torch.float64, generator=one)) for generators in last for one in generators.values()]
    assert len(set(drawn)) == len(drawn) == 10, "and the largest ones are told apart"


def test_processes_do_not_share_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"`train` got --device cuda:1 for 2 processes\. Each has an accelerator of its own\. Use --device cuda\."):
        join("cuda:1")


def test_another_training_s_state_of_the_same_segment_gives_way_whole(tmp_path: Path, saved: Parts) -> None:
    tensors, about = saved
    write_shards(tensors, tmp_path, {**about, "of": "another"}, segment=2, ranks=ALONE)
    write_shards(tensors, tmp_path, about, segment=2, ranks=ALONE)
    assert [one.name for one in tmp_path.iterdir()] == ["segment-00000002"]
    assert "of" not in shards.read_shards(tmp_path / "segment-00000002", ranks=ALONE)[1]


def test_a_save_that_is_the_same_is_kept_as_it_is(tmp_path: Path, saved: Parts) -> None:
    tensors, about = saved
    write_shards(tensors, tmp_path, about, segment=2, ranks=ALONE)
    before = (tmp_path / "segment-00000002" / FILE).stat().st_ino
    write_shards(tensors, tmp_path, about, segment=2, ranks=ALONE)
    assert (tmp_path / "segment-00000002" / FILE).stat().st_ino == before
    shutil.rmtree(tmp_path / "segment-00000002")
    assert shards.newest(tmp_path) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_a_training_on_an_accelerator_is_resumed_there(tmp_path: Path, pool: Instance) -> None:
    """The fused optimizer counts its steps on the device."""
    whole = Trainer(TINY, device="cuda", pool=pool)
    for segment in range(4):
        if segment == 2:
            whole.save_state(tmp_path)
        whole._segment()
    resumed = Trainer.resume(tmp_path, device="cuda", pool=pool)
    assert {one["step"].device.type for one in resumed.optimizer.state.values()} == {"cuda"}
    for _ in range(2):
        resumed._segment()
    assert torch.allclose(whole.model.lm_head.weight, resumed.model.lm_head.weight, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"was saved on another kind of device than cpu"):
        Trainer.resume(tmp_path, pool=pool)
