"""A run on disk: complete units or none, whoever writes, fails or is killed; and everything foreign refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attractorlab import every, store, trace
from attractorlab.maps import LatentMap
from attractorlab.store import SCHEMA, Run, RunError, SpaceError, from_dataset, join, room_for, to_dataset
from attractorlab.sweep import attempts_in
from attractorlab.types import Instance, Origin, Trajectory
from tests.stored_attempts import attempts
from tests.stored_nouns import ORIGIN

halving = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, readout=lambda z: {"logits": z["z"][:, None]}, clock="3 x recursion")


def trajectory(rows=3, **more) -> Trajectory:
    z = {"z": torch.arange(4.0 * rows).reshape(rows, 4)}
    z["z"][-1, 0] = torch.nan
    return replace(trace(halving, z, ticks=3, keep=every(3)), **more)


def instance() -> Instance:
    return Instance(torch.ones(2, 4).long(), None, ("a/0", "ü"), "sudoku-4", torch.tensor([torch.nan, 3.0]))


def same(a, b):
    assert to_dataset(a).identical(to_dataset(b))


def fresh(path, units=("a", "b"), **config):
    return Run.create(path, config=config or {"seed": 1}, units=units)


def test_a_run_knows_what_is_done_and_what_is_missing(tmp_path):
    run = fresh(tmp_path / "run", units=["c", "a", "b"])
    assert run.done() == [] and run.missing() == ["c", "a", "b"]
    run.write("b", {"trajectory": trajectory()})
    assert run.done() == ["b"] and run.missing() == ["c", "a"] and run.has("b") and not run.has("a")
    assert Run(tmp_path / "run").missing() == ["c", "a"] and run.bytes() > 1000
    with pytest.raises(RunError, match=r"has no segment 'a'.*read once it is complete.*Run the command again"):
        run.read("a")


def test_the_second_of_two_writers_at_once_loses_and_leaves_nothing_behind(tmp_path, monkeypatch):
    run = fresh(tmp_path / "run")
    first, before = trajectory(), []

    def overtaken(*names):
        monkeypatch.undo()
        Run(tmp_path / "run").commit("a", {"trajectory": first})
        before.extend(sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if ".tmp-" not in str(p)))
        os.rename(*names)

    monkeypatch.setattr(store.os, "rename", overtaken)
    run.commit("a", {"trajectory": trajectory(residual=torch.zeros(4, 3))})
    assert [p.name for p in (tmp_path / "run" / "segments").iterdir()] == ["a.zarr"]
    inside = [entry for entry in before if entry[0].name != "segments"]
    assert inside == [entry for entry in sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) if entry[0].name != "segments"]
    same(first, run.read("a")["trajectory"])


def test_a_segment_is_never_changed_and_holds_nouns_alone(tmp_path):
    run = Run.create(tmp_path / "run", config={}, units=["a", "b"])
    assert run.manifest.created.endswith("+00:00")
    run.write("a", {"trajectory": trajectory()})
    with pytest.raises(RunError, match=r"has the segment 'a' already\. A segment is never changed\. Write another unit"):
        run.write("a", {"trajectory": trajectory(residual=torch.zeros(4, 3))})
    same(trajectory(), run.read("a")["trajectory"])
    for strange, kind in ((torch.ones(3), "Tensor"), ({"x": 1}, "dict"), (trajectory().origin, "Origin")):
        with pytest.raises(RunError, match=rf"was given 'mine', a {kind}\. A run holds nouns.*Trajectory"):
            run.write("b", {"mine": strange})
    assert run.missing() == ["b"]


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    run = fresh(tmp_path / "run")

    written = []

    def full(handle):
        written.append(handle)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.write("a", {"trajectory": trajectory()})
    assert list((tmp_path / "run" / "segments").iterdir()) == [] and run.missing() == ["a", "b"]
    written[:] = [None, None]
    with pytest.raises(OSError, match="No space left"):
        fresh(tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").rglob("*")] == ["segments"]


def test_a_run_that_is_killed_in_the_middle_of_writing_stays_readable(tmp_path):
    run = fresh(tmp_path / "run")
    run.write("a", {"trajectory": trajectory()})
    program = (
        "import sys, time, torch\n"
        "from attractorlab import store\n"
        "from attractorlab.types import Instance\n"
        "def stop(*names):\n    print('written', flush=True)\n    time.sleep(60)\n"
        "store.os.rename = stop\n"
        "one = Instance(torch.ones(2, 4).long(), None, ('a', 'b'), 'task', None)\n"
        "store.Run(sys.argv[1]).write('b', {'instance': one})\n"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE, env=environment, text=True)
    assert child.stdout.readline() == "written\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    litter = [p for p in (tmp_path / "run" / "segments").iterdir() if p.name != "a.zarr"]
    assert len(litter) == 1 and litter[0].name.startswith(".tmp-"), "it was killed after the data, before the rename"
    again = Run(tmp_path / "run")
    assert again.done() == ["a"] and again.missing() == ["b"] and again.unfinished() == [str(one) for one in litter]
    same(trajectory(), again.read("a")["trajectory"])
    again.write("b", {"instance": instance()})
    same(instance(), again.read("b")["instance"])


def test_a_run_is_continued_with_the_same_settings_alone(tmp_path):
    run = fresh(tmp_path / "run", seed=1, ids=("x", "y"))
    run.write("a", {"trajectory": trajectory()})
    assert fresh(tmp_path / "run", seed=1, ids=["x", "y"]).done() == ["a"]
    assert fresh(tmp_path / "run", seed=1, ids=["x", "y"], command="typed otherwise").done() == ["a"]
    with pytest.raises(RunError, match=r"holds a run that differs in seed\. .*same settings.*Choose another --out"):
        fresh(tmp_path / "run", seed=2, ids=("x", "y"))
    with pytest.raises(RunError, match=r"differs in more, seed\."):
        fresh(tmp_path / "run", more=1, ids=("x", "y"))
    with pytest.raises(RunError, match=r"differs in its units\."):
        fresh(tmp_path / "run", units=("a",), seed=1, ids=("x", "y"))


FOREIGN = [
    "",
    "{",
    "[]",
    "3",
    '"text"',
    "{}",
    '{"name": "a web page", "version": 2}',
    '{"config": 3, "units": ["a"], "created": "x", "schema": 3}',
    '{"config": {}, "units": 4, "created": "x", "schema": 3}',
]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"has no readable manifest.json \(\w+\)\. .*Check the path, or record the run again"):
        Run(tmp_path)


def test_binary_and_absent_manifests_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no readable manifest.json \(FileNotFoundError\)"):
        Run(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"has no readable manifest.json"):
        Run(tmp_path)


def test_another_schema_is_refused(tmp_path):
    fresh(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace(f'"schema": {SCHEMA}', '"schema": 99'))
    with pytest.raises(RunError, match=r"has schema 99. This version reads schema \d. Use the version of attractorlab that wrote it"):
        Run(tmp_path)


@pytest.mark.parametrize("unit", ["", "..", "a/b", "../../elsewhere", "/tmp/x"])
def test_units_stay_in_the_folder(tmp_path, unit):
    with pytest.raises(RunError, match=r"A run has a unit .*names a file.*Use letters, digits, dots and hyphens"):
        fresh(tmp_path / "run", units=("a", unit))
    assert not (tmp_path / "run").exists()
    foreign = {"config": {}, "units": [unit], "created": "x", "schema": SCHEMA}
    (tmp_path / "manifest.json").write_text(json.dumps(foreign))
    with pytest.raises(RunError, match="A run has a unit"):
        Run(tmp_path)


def test_a_unit_that_nobody_asked_for_is_not_written(tmp_path):
    run = fresh(tmp_path / "run")
    with pytest.raises(RunError, match=r"has no unit 'z'.*the units of its manifest.*Use one of a, b"):
        run.write("z", {"instance": instance()})


def test_a_segment_of_something_else_is_refused():
    import xarray

    with pytest.raises(RunError, match=r"A segment holds 'no noun' without a known name.*Use the version of attractorlab"):
        from_dataset(xarray.Dataset({"temperature": ("time", [1.0])}))
    with pytest.raises(RunError, match=r"A segment holds 'Bogus' without a known name"):
        from_dataset(xarray.Dataset(attrs={"noun": "Bogus"}))
    data = to_dataset(instance()).drop_vars("inputs")
    del data.attrs["task"]
    with pytest.raises(RunError, match=r"A segment holds 'Instance' without inputs, task\."):
        from_dataset(data)


def test_finished_units_stand_side_by_side(tmp_path):
    run = fresh(tmp_path / "run", units=("puzzles", "main-000", "main-001", "other-000"))
    run.write("puzzles", {"instance": instance()})
    with pytest.raises(RunError, match=r"has no finished unit of series 'main'.*Run the command again to continue it"):
        run.trajectory_of("main")
    parts = [trajectory(3), trajectory(2, instance=torch.tensor([3, 4]))]
    run.write("main-001", {"trajectory": parts[1]})
    run.write("main-000", {"trajectory": parts[0]})
    run.write("other-000", {"trajectory": trajectory(clock="tick")})
    whole = run.trajectory_of("main")
    assert whole.instance.tolist() == [0, 0, 0, 3, 4] and whole.residual.shape == (4, 5)
    same(join(parts), whole)
    for name in ("residual", "recurrence"):
        assert torch.allclose(getattr(whole, name)[:, 3:], getattr(parts[1], name), rtol=0, atol=0, equal_nan=True)
    assert torch.allclose(whole.states["z"][:, :3], parts[0].states["z"], rtol=0, atol=0, equal_nan=True)
    assert whole.readouts["answer"][:, 3:].equal(parts[1].readouts["answer"])


@pytest.mark.parametrize(
    "other",
    [{"clock": "tick"}, {"ticks": torch.arange(1, 5)}, {"kept": torch.tensor([1, 3])}, {"origin": Origin(weights="cd")}, {"readouts": {}}, {"states": {}}],
)
def test_runs_of_different_kinds_are_not_joined(other):
    with pytest.raises(RunError, match=r"`join` got trajectories of 2 kinds.*one model, clock and length.*Join the units of one series"):
        join([trajectory(), trajectory(**other)])


Usage = namedtuple("Usage", "total used free")


def test_a_run_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(Path(path))
        return Usage(10**9, 0, 5_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with room_for(tmp_path / "not" / "yet" / "there", 5_000_000):
        pass
    assert asked == [tmp_path], "the disk is that of the nearest folder that exists"
    with pytest.raises(SpaceError, match=r"has 5.0 MB free and this run writes about 6.0 MB.*only begun if it fits.*Choose another --out"), room_for(tmp_path, 6_000_000):
        pytest.fail("it was begun")


def test_opening_a_run_reads_no_segment(tmp_path):
    """There is nothing in these to read."""
    run = fresh(tmp_path / "run", units=[str(k) for k in range(200)])
    for k in range(200):
        (tmp_path / "run" / "segments" / f"{k}.zarr").mkdir()
    assert len(run.done()) == 200


def test_a_changed_number_and_a_broken_file_are_found(tmp_path):
    import zarr

    run = fresh(tmp_path / "run")
    run.write("a", {"trajectory": trajectory()})
    run.write("b", {"instance": instance()})
    assert run.damage("a") == run.damage("b") == ""
    with pytest.raises(RunError, match=r"has no segment 'c'"):
        run.damage("c")
    array = zarr.open_array(run.path / "segments" / "a.zarr" / "trajectory" / "residual", mode="r+")
    array[1, 1] = array[1, 1] + 1e-6
    assert "a damaged segment 'a': trajectory/residual/c/0/0 is not what was written" in run.damage("a")
    with pytest.raises(RunError, match=r"damaged segment 'a'.*recorded anew"):
        run.read("a")
    chunk = next(p for p in (run.path / "segments" / "b.zarr").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert "damaged segment 'b'" in run.damage("b") and run.has("b")


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("trajectory/zarr.json", lambda file: file.unlink()),
        ("trajectory/residual/zarr.json", lambda file: shutil.rmtree(file.parent)),
        ("trajectory/zarr.json", lambda file: file.write_text(file.read_text().replace("3 x", "9 x"))),
        ("trajectory/zarr.json", lambda file: shutil.rmtree(file.parent)),
        ("zarr.json", lambda file: file.write_text("null")),
        ("zarr.json", lambda file: file.write_text("[" * 100_000)),
        ("zarr.json", lambda file: file.unlink()),
    ],
)
def test_what_is_gone_from_a_segment_is_found(tmp_path, what, how):
    run = fresh(tmp_path / "run")
    run.write("a", {"trajectory": trajectory()})
    file = run.path / "segments" / "a.zarr" / what
    before = file.read_bytes()
    how(file)
    assert not file.exists() or file.read_bytes() != before
    assert re.search(rf"damaged segment 'a': ({what}|trajectory/\w+/).* is not what was written", run.damage("a"))


def test_of_two_runs_begun_at_once_the_slower_is_held_against_the_faster(tmp_path, monkeypatch):
    put = store.put

    def slow(file, content):
        put(file, content)
        monkeypatch.setattr(store, "put", put)
        fresh(tmp_path / "run", seed=2)

    for seed in (2, 1):
        monkeypatch.setattr(store, "put", slow)
        if seed == 2:
            assert fresh(tmp_path / "run", seed=seed).manifest.config["seed"] == 2
        else:
            with pytest.raises(RunError, match="holds a run that differs in seed"):
                fresh(tmp_path / "run", seed=seed)
        assert [file.name for file in sorted((tmp_path / "run").iterdir())] == ["manifest.json", "segments"]
        assert Run(tmp_path / "run").manifest.config["seed"] == 2
        shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(store.os, "link", lambda *names: (_ for _ in ()).throw(OSError(1, "no hard links here")))
    assert fresh(tmp_path / "run", seed=3).manifest.config["seed"] == 3


def test_attempts_of_another_seed_than_the_runs_are_refused(tmp_path):
    run = fresh(tmp_path / "run", seed=0)
    run.write("a", {"attempts": attempts(origin=replace(ORIGIN, seed=0))})
    run.write("b", {"attempts": attempts(origin=replace(ORIGIN, seed=1))})
    with pytest.raises(RunError, match=r"has the segment 'b' of another seed.*measured anew"):
        attempts_in(run)
    shutil.rmtree(run.path / "segments" / "b.zarr")
    run.write("b", {"attempts": attempts(origin=replace(ORIGIN, seed=0))})
    assert len(attempts_in(run).instance) == 6
