"""The command line: exit codes, messages, interruption, and nothing half written."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import attractorlab as al
from attractorlab.cli import main
from attractorlab.models.checkpoints import find
from attractorlab.training.config import PRESETS
from attractorlab.training.loop import Trainer

SMALL = ["--rows", "4", "--starts", "3", "--ticks", "6"]
GOOD = "1...............,"


def csv(path: Path, *rows: str) -> Path:
    path.write_text("source,question,answer,rating\n" + "".join(f"s,{row},0\n" for row in rows))
    return path


@pytest.fixture
def puzzles():
    made = al.tasks.generate(4, 3, seed=5)
    return [(al.tasks.to_text(q), al.tasks.to_text(a)) for q, a in zip(made.inputs, made.targets, strict=True)]


def fails(capsys, code, *words, argv):
    assert main(argv) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said and sum(line.startswith("attractorlab: ") for line in said.splitlines()) == 1
    said = " ".join(said.split())
    for word in words:
        assert word in said, said
    return said


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda q, a: (q[:-1], a), ("line 3", "15")),
        (lambda q, a: ("x" + q[1:], a), ("line 3", "x")),
        (lambda q, a: ("11" + q[2:], a), ("line 3",)),
        (lambda q, a: (q, a[::-1]), ("line 3",)),
    ],
    ids=["wrong length", "wrong letter", "contradiction", "wrong answer"],
)
def test_a_bad_puzzle_file_is_refused_with_its_row_number(capsys, tmp_path, puzzles, spoil, words):
    bad = spoil(*puzzles[1])
    path = csv(tmp_path / "bad.csv", ",".join(puzzles[0]), ",".join(bad), ",".join(puzzles[2]))
    argv = ["report", "eqr-sudoku-4", "--data", str(path), "--task", "sudoku-4", "--rows", "3", "--out", str(tmp_path / "out")]
    fails(capsys, 4, *words, argv=argv)
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_refused(capsys, tmp_path):
    whole = find("eqr-sudoku-4").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: len(whole) // 2])
    fails(capsys, 4, "cut.safetensors", "complete", argv=["report", str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_for_another_side_is_refused(capsys, tmp_path):
    fails(capsys, 4, "sudoku-6", "sudoku-4", argv=["report", "eqr-sudoku-4", "--task", "sudoku-6", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["report", "--colour", "red"], ("--colour",)),
        (["report", "no-such-model"], ("no-such-model", "eqr-sudoku-6")),
        (["report", "eqr-sudoku-4", "--rows", "100000"], ("100000",)),
        (["report", "eqr-sudoku-4", "--tol", "1e-12"], ("1e-12", "1e-07")),
        (["train", "eqr-sudoku-4", "--set", "widht=3", "--out", "x"], ("widht", "width")),
        (["train", "nothing", "--out", "x"], ("nothing", "eqr-sudoku-6")),
        (["probe", "no_such_probe"], ("no_such_probe",)),
        (["inspect", "a" * 300], ("found no model", "bundled name")),
        (["report", "eqr-sudoku-4", "--data", "a" * 300], ("too long for a path",)),
        (["record", "eqr-sudoku-4", "--out", "a" * 300], ("too long for a path",)),
    ],
    ids=["option", "model", "rows", "tolerance", "key", "configuration", "probe", "long model", "long data", "long output"],
)
def test_misuse_is_one_message_and_code_2(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, *words, argv=argv)
    assert not any(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before_anything_is_written(capsys, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    fails(capsys, 3, "MB free", argv=["report", "eqr-sudoku-4", *SMALL, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small disk")
def test_a_disk_that_fills_up_is_told_and_leaves_a_readable_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("attractorlab.sweep.price", lambda *args, **options: 0)  # another program takes the room meanwhile
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        out = small / "run"
        said = fails(capsys, 3, "No space left", argv=["record", "eqr-sudoku-4", "--rows", "64", "--starts", "4", "--ticks", "4", "--out", str(out)])
        assert "what was complete is kept" in said
        run = al.Run(out)
        assert run.missing() and not list((out / "segments").glob(".tmp-*"))
        assert all(run.read(unit) for unit in run.done())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_ctrl_c_in_the_middle_leaves_a_readable_run_that_the_same_command_completes(tmp_path):
    out = tmp_path / "run"
    argv = [sys.executable, "-m", "attractorlab", "record", "eqr-sudoku-4", "--rows", "48", "--starts", "16", "--ticks", "64", "--threads", "1", "--out", str(out)]
    # A shell that runs the tests in the background makes its children deaf to Ctrl-C.
    listening = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listening)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "segments" / "main-001.zarr").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "Interrupted" in said and "Traceback" not in said
    run = al.Run(out)
    assert 0 < len(run.done()) < len(run.manifest.units)
    assert run.trajectory_of("main").residual.shape[1] == 8 * 16 * (len(run.done()) - 1)
    assert not list((out / "segments").glob(".tmp-*"))
    assert main(argv[3:]) == 0
    assert not al.Run(out).missing()


def test_a_folder_of_another_run_is_not_mixed_with(capsys, tmp_path):
    out = str(tmp_path / "run")
    assert main(["record", "eqr-sudoku-4", *SMALL, "--out", out]) == 0
    capsys.readouterr()
    fails(capsys, 4, "differs", "ticks", argv=["record", "eqr-sudoku-4", *SMALL[:-1], "7", "--out", out])


def test_a_recording_goes_on_with_its_own_puzzles_alone(capsys, tmp_path):
    five = al.tasks.load("sudoku-4", rows=slice(0, 5))
    rows = [f"{al.tasks.to_text(one)},{al.tasks.to_text(other)}" for one, other in zip(five.inputs, five.targets, strict=True)]
    data = csv(tmp_path / "some.csv", *rows[:4])
    argv = ["record", "eqr-sudoku-4", *SMALL, "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    capsys.readouterr()
    csv(data, *rows[1:])
    fails(capsys, 4, "other puzzles of the same names", "Choose another --out", argv=argv)


def test_inspect_speaks_json_of_models_and_runs(capsys, tmp_path):
    assert main(["inspect", "eqr-sudoku-4", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["task"] == "sudoku-4" and about["command"].startswith("attractorlab train eqr-sudoku-4")
    assert main(["record", "eqr-sudoku-4", *SMALL, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 2
    assert main(["inspect", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 0


def test_a_file_without_puzzles_and_an_output_without_a_name_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("question,answer\n")
    fails(capsys, 4, "empty.csv", argv=["report", "eqr-sudoku-4", "--data", "empty.csv", "--out", "out"])
    fails(capsys, 2, "present folder", argv=["report", "eqr-sudoku-4", "--out", ""])
    assert [path.name for path in tmp_path.iterdir()] == ["empty.csv"]


def test_verify_finds_what_is_damaged_and_what_is_missing(capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["record", "eqr-sudoku-4", *SMALL, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(out), "whole": 2, "damaged": {}, "missing": [], "unfinished": []}
    [chunk, *_] = [p for p in (out / "segments" / "main-000.zarr").rglob("*") if p.is_file() and p.parts[-2] == "c"]
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert main(["verify", str(out), "--json"]) == 4
    assert list(json.loads(capsys.readouterr().out)["damaged"]) == ["main-000"]
    (out / "segments" / "main-000.zarr").rename(out / "segments" / ".tmp-0")
    assert main(["verify", str(out), "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["missing"] == ["main-000"] and said["unfinished"] == [str(out / "segments" / ".tmp-0")]


def test_train_writes_resumes_and_refuses_a_second_training(capsys, tmp_path):
    tiny = ["train", "eqr-sudoku-4", "--set", "width=16", "--set", "batch=8", "--set", "puzzles=50", "--set", "segments=4", "--save-every", "2"]
    out = str(tmp_path / "made")
    assert main([*tiny, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["segments"] == 4
    fails(capsys, 2, "--resume", argv=[*tiny, "--out", out])
    made = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert main([*tiny, "--out", out, "--resume"]) == 0
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == made
    shutil.rmtree(tmp_path / "made" / "state")
    fails(capsys, 2, "Its state is gone, so choose another --out", argv=[*tiny, "--out", out])  # its model is not written over
    fails(capsys, 2, "Choose another --out to begin it again", argv=[*tiny, "--out", out, "--resume"])
    assert main(["inspect", out, "--json"]) == 0
    capsys.readouterr()
    assert main([*tiny, "--set", "task=sudoku-6", "--out", str(tmp_path / "other")]) == 0
    assert [al.models.describe(tmp_path / name / "model.safetensors")["name"] for name in ("made", "other")] == ["eqr-sudoku-4", "eqr-sudoku-4 on sudoku-6"]


def test_a_resumed_training_writes_the_bytes_of_one_that_was_never_stopped(tmp_path, monkeypatch):
    def interrupted(self, *, every):
        for progress in run(self, every=every):
            yield progress
            if progress["segment"] == 4:
                raise KeyboardInterrupt

    def command(*argv):
        monkeypatch.setattr(sys, "argv", ["attractorlab", *argv])  # which a model file says
        return main(list(argv))

    run, model = Trainer.run, tmp_path / "made" / "model.safetensors"
    tiny = ["train", "eqr-sudoku-4", "--set", "width=16", "--set", "batch=8", "--set", "puzzles=50", "--set", "segments=6", "--save-every", "2", "--threads", "1", "--out", str(tmp_path / "made")]
    assert command(*tiny) == 0
    whole = model.read_bytes()
    shutil.rmtree(tmp_path / "made")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", interrupted)
        assert command(*tiny) == 3
    shutil.copytree(tmp_path / "made", tmp_path / "other")
    assert command(*tiny, "--resume", "--json") == 0 and model.read_bytes() == whole, "it says the command that began it"
    shutil.rmtree(tmp_path / "made")
    shutil.move(tmp_path / "other", tmp_path / "made")
    model.unlink()  # as a kill between the first state and the first model leaves it
    assert command(*tiny, "--resume") == 0 and model.read_bytes() == whole


def test_a_folder_is_trained_in_by_one_process_and_a_setting_is_given_once(capsys, tmp_path):
    tiny = ["train", "eqr-sudoku-4", "--set", "width=16", "--set", "batch=8", "--set", "puzzles=50", "--set", "segments=2", "--out", str(tmp_path)]
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(capsys, 2, "found another process that trains in", "Wait for it, or choose another --out", argv=tiny)
    assert [one.name for one in tmp_path.iterdir()] == [".lock"]
    fails(capsys, 2, "got --set width=... twice", "Leave one out", argv=[*tiny, "--set", "width=32"])
    assert main(tiny) == 0


def test_a_training_that_cannot_begin_leaves_no_folder_of_its_own_and_none_of_others_is_removed(capsys, tmp_path):
    made, theirs = tmp_path / "made", tmp_path / "theirs"
    theirs.mkdir()
    for folder in (made, theirs):
        fails(capsys, 2, "got begin='eqr-sudoku-6', whose weights are not those", argv=["train", "eqr-sudoku-4", "--set", "begin=eqr-sudoku-6", "--set", "puzzles=50", "--out", str(folder)])
    assert not made.exists() and [one.name for one in theirs.iterdir()] == [".lock"]


def test_what_is_written_onto_a_full_disk_leaves_what_was_there(capsys, tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text('{"segment": 20, "loss": 1}\n')
    page = tmp_path / "page.html"
    page.write_text("before")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    fails(capsys, 3, "No space left on device", argv=["curves", str(tmp_path), "--out", str(page)])
    tiny = ["train", "eqr-sudoku-4", "--set", "width=16", "--set", "batch=8", "--set", "puzzles=50", "--set", "segments=2", "--out", str(tmp_path / "made")]
    fails(capsys, 3, "No space left on device", argv=tiny)
    assert page.read_text() == "before" and list((tmp_path / "made" / "state").iterdir()) == []


def test_every_configuration_is_named_where_one_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["train", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in PRESETS)


def test_curves_draws_trainings_beside_each_other_and_says_where_a_log_is_wrong(capsys, tmp_path):
    from attractorlab.plots import training

    lines = [{"segment": 20.0 * k, "loss": 1 / k, "exact": 0.1 * k, "samples_per_second": 50.0} for k in (1, 2, 3)]
    lines[2] |= {"validation": 0.25, "validation_puzzles": 100.0}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"segment": 80, "lo')
    page = tmp_path / "made" / "page.html"
    assert main(["curves", str(tmp_path / "b"), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "b: segment 60, loss 0.333333, exact 0.3, " in said and "{" not in said
    assert main(["curves", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["b"]["validation"] == 0.25 and "Training" in page.read_text()
    drawn = {trace.name: trace for trace in training({"a": lines}).data if trace.yaxis == "y3" and trace.name}
    assert list(drawn["a"].x) == [60.0] and list(drawn["a"].y) == [0.25]
    (tmp_path / "a" / "log.jsonl").write_text('{"segment": 20, "loss": "high"}\n')
    fails(capsys, 4, "is no log of a training in line 1", argv=["curves", str(tmp_path / "a"), "--out", str(page)])
    for spoiled in ('{"segment": 20, "loss": 1, "validation": 0.5}', '{"segment": 20, "loss": 1, "validation": 1.5, "validation_puzzles": 10}', f'{{"segment": 20, "loss": 1{"0" * 400}}}', "[" * 100_000):
        (tmp_path / "a" / "log.jsonl").write_text(json.dumps(lines[0]) + f"\n{spoiled}\n")
        fails(capsys, 4, "is no log of a training in line 2", argv=["curves", str(tmp_path / "a"), "--out", str(page)])
    fails(capsys, 2, "twice. Trainings are drawn beside each other, each once", argv=["curves", str(tmp_path / "b"), f"{tmp_path}/a/../b", "--out", str(page)])
    fails(capsys, 2, "found no log.jsonl in", argv=["curves", str(tmp_path), "--out", str(page)])
    fails(capsys, 2, "ends in .html", argv=["curves", str(tmp_path / "b"), "--out", str(tmp_path)])


def test_no_command_at_all_is_said(capsys):
    fails(capsys, 2, "No command was given", argv=[])


def test_what_does_not_fit_into_memory_is_one_message(capsys, monkeypatch, tmp_path):
    from attractorlab import sweep

    def large(*args, **more):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.\nframe #0: ...")

    monkeypatch.setattr(sweep, "measure", large)
    fails(capsys, 3, "can't allocate memory", "Ask for less at a time", argv=["scale", "eqr-sudoku-4", "--rows", "2", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(sweep, "measure", lambda *args, **more: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["scale", "eqr-sudoku-4", "--rows", "2", "--out", str(tmp_path / "out")])


def test_every_command_has_help(capsys):
    for command in ("report", "record", "train", "convert", "inspect", "verify", "doctor", "probe", "fixed-points", "spectrum", "lyapunov", "curves"):
        assert main([command, "--help"]) == 0
        assert "--json" in capsys.readouterr().out
