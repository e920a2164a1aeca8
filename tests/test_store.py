"""A run on disk: what is read is what was written, and a run that was killed tells what is missing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attractorlab import store
from attractorlab.store import NOUNS, Run, RunError, SpaceError, from_dataset, join, room_for, to_dataset
from attractorlab.types import (
    BasinEstimate,
    BasinSlice,
    Convergence,
    FixedPointSet,
    Instance,
    Origin,
    ProbeFit,
    Projection,
    ScalingGrid,
    Spectrum,
    Trajectory,
)

NAN, INF = math.nan, math.inf
ORIGIN = Origin(model='m "ü" \\', weights="ab12", dtype="float32", device="cpu", seed=7, versions={"torch": "2.13"}, argv=("a b", "--x=ü"))


def floats(*shape, dtype=torch.float32):
    """Numbers with NaN, both infinities, both zeros and a subnormal among them."""
    values = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).to(dtype)
    odd = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1e-40], dtype=dtype)
    values[: len(odd)] = odd[: len(values)]
    return values.reshape(shape)


def ints(*shape, dtype=torch.int64):
    values = torch.arange(math.prod(shape)) - 1
    values[-1] = torch.iinfo(dtype).max
    return values.to(dtype).reshape(shape)


def trajectory(rows=3, **more):
    made = Trajectory(
        states={"z_H": floats(2, rows, 4, 5), "z.L": floats(2, rows, 6, dtype=torch.float64), "b": floats(2, rows, 2, dtype=torch.bfloat16)},
        kept=torch.tensor([0, 3]),
        ticks=torch.arange(4),
        residual=floats(4, rows),
        recurrence=floats(8, rows),
        readouts={"answer": ints(4, rows, 4, dtype=torch.int16), "halt": floats(4, rows, dtype=torch.float16), "sure": ints(4, rows).to(torch.int8)},
        last_tick=ints(rows),
        result=torch.full((rows,), 4),
        instance=torch.arange(rows),
        start=torch.zeros(rows, dtype=torch.int64),
        clock="3 x recursion",
        origin=ORIGIN,
    )
    return replace(made, **more)


def convergence(**more):
    made = Convergence(
        ticks=torch.arange(4),
        residual=floats(4, 3),
        rate=floats(3),
        settle_tick=ints(3),
        solved=torch.tensor([[True, False, True]] * 4),
        first_solved=ints(3),
        stays_solved=ints(3),
        period=torch.tensor([0, 1, 2]),
        verdict=("wandering", "settled", "periodic(2)"),
        instance=torch.arange(3),
        start=torch.zeros(3, dtype=torch.int64),
        tol=1e-4,
        clock="tick",
        origin=ORIGIN,
    )
    return replace(made, **more)


def points(n=3):
    return FixedPointSet(
        states={"z_H": floats(n, 4, 5, dtype=torch.float64)},
        residual=floats(n),
        error=floats(n),
        moved=floats(n),
        result=torch.zeros(n, dtype=torch.int64),
        steps=torch.arange(n),
        row=torch.arange(n),
        instance=torch.arange(n),
        start=torch.arange(n),
        tol=1e-10,
        clock="tick",
        origin=Origin(),
    )


def spectrum():
    return Spectrum(
        eigenvalues=torch.complex(floats(3, 4, dtype=torch.float64), floats(3, 4, dtype=torch.float64).flip(0)),
        defect=floats(3, 4),
        condition=floats(3, 4),
        radius=floats(3),
        verdict=("stable", "unstable(2)", "ill-conditioned"),
        method="krylov",
        products=120,
        clock="tick",
        origin=ORIGIN,
    )


def basins(attractors=3):
    return BasinEstimate(
        labels=ints(5),
        instance=torch.tensor([0, 0, 0, 4, 4]),
        start=torch.tensor([0, 1, 2, 0, 1]),
        label=ints(max(1, attractors))[:attractors],
        of_instance=torch.tensor([0, 0, 4])[:attractors],
        count=torch.tensor([2, 1, 2])[:attractors],
        share=floats(7, dtype=torch.float64)[:attractors],
        low=floats(7, dtype=torch.float64)[:attractors],
        high=floats(7, dtype=torch.float64)[:attractors],
        share_if=floats(7, 2, dtype=torch.float64)[:attractors],
        example=torch.tensor([0, 2, 3])[:attractors],
        instances=torch.tensor([0, 4]),
        starts=torch.tensor([3, 2]),
        undecided=floats(2, dtype=torch.float64),
        missing_mass=floats(2, dtype=torch.float64),
        effective_n=NAN,
        level=0.95,
        sampler="normal",
        clock="tick",
        origin=ORIGIN,
    )


def plane():
    return BasinSlice(
        labels=ints(2, 3),
        ticks=ints(2, 3),
        residual=floats(2, 3),
        x=torch.linspace(-1, 1, 3, dtype=torch.float64),
        y=torch.linspace(-1, 1, 2),
        center={"z_H": floats(1, 4, 5), "z_L": floats(1, 4)},
        axes={"z_H": floats(2, 4, 5), "z_L": floats(2, 4)},
        tol=1e-3,
        clock="tick",
        origin=ORIGIN,
    )


def grid():
    return ScalingGrid(
        depth=torch.tensor([1, 4, 16]),
        breadth=torch.tensor([1, 8]),
        selectors=("mean", "vote"),
        accuracy=floats(3, 2, 2),
        low=floats(3, 2, 2),
        high=floats(3, 2, 2),
        residual=floats(3, 2, 2),
        spread=floats(3, 2),
        map_calls=ints(3, 2),
        instances=9,
        level=0.95,
        clock="tick",
        origin=ORIGIN,
    )


def projection(**more):
    made = Projection(
        coordinates=floats(6, 2, dtype=torch.float64),
        tick=torch.arange(6),
        row=torch.tensor([0, 0, 0, 1, 1, 1]),
        faithfulness={"trustworthiness": 0.9, "variance 1": NAN},
        method="UMAP",
        clock="tick",
        origin=ORIGIN,
    )
    return replace(made, **more)


def probe():
    return ProbeFit(
        ticks=torch.tensor([0, 4, 16]),
        **{name: floats(3, dtype=torch.float64) for name in ("score", "low", "high", "control", "selectivity")},
        train_instances=5,
        test_instances=4,
        level=0.9,
        target="digit",
        clock="tick",
        origin=ORIGIN,
    )


def instance(**more):
    made = Instance(torch.ones(2, 4).long(), ints(2, 4), ("a/0", "ü"), "sudoku-4", torch.tensor([NAN, 3.0]))
    return replace(made, **more)


EXAMPLES = {
    "instance": instance(),
    "instance without targets": instance(targets=None, difficulty=None),
    "trajectory": trajectory(),
    "trajectory without readouts": trajectory(readouts={}),
    "convergence": convergence(),
    "convergence without targets": convergence(solved=None, first_solved=None, stays_solved=None, tol=INF),
    "fixed points": points(),
    "no fixed points": points()[:0],
    "spectrum": spectrum(),
    "basins": basins(),
    "basins without attractors": basins(0),
    "plane": plane(),
    "grid": grid(),
    "projection": projection(),
    "projection without scores": projection(faithfulness={}),
    "probe": probe(),
}


def same(a, b, where=""):
    """Equal to the bit, types included."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (a, b))
        if a.is_floating_point():  # a NaN is a NaN, whatever its payload
            assert a.isnan().equal(b.isnan()), where
            a, b = (torch.where(t.isnan(), 0, t) for t in (a, b))
        assert a.contiguous().view(bits[a.element_size()]).equal(b.contiguous().view(bits[b.element_size()])), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif type(a) in NOUNS.values() or isinstance(a, Origin):
        for one in fields(a):
            same(getattr(a, one.name), getattr(b, one.name), f"{where}.{one.name}")
    else:
        assert a == b or (a != a and b != b), where


def fresh(path, units=("a", "b"), **config):
    return Run.create(path, config=config or {"seed": 1}, units=units, created="today")


def test_every_noun_has_an_example():
    assert {type(noun) for noun in EXAMPLES.values()} == set(NOUNS.values())


def test_every_noun_is_read_as_it_was_written(tmp_path):
    run = fresh(tmp_path / "run", units=["all"])
    nouns = {f"noun {k}": noun for k, noun in enumerate(EXAMPLES.values())}
    run.write("all", nouns)
    again = Run(tmp_path / "run").read("all")
    assert set(again) == set(nouns)
    for name, noun in nouns.items():
        same(noun, again[name], f"{name} {type(noun).__name__}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_dataset_names_its_dimensions_and_gives_the_noun_back(name):
    data = to_dataset(EXAMPLES[name])
    same(EXAMPLES[name], from_dataset(data), name)
    assert data.attrs["noun"] == type(EXAMPLES[name]).__name__


def test_other_tools_see_the_words_of_the_nouns():
    data = to_dataset(trajectory())
    assert data["residual"].dims == ("time", "row") and data["states.z_H"].dims[:2] == ("kept", "row")
    assert to_dataset(basins())["share_if"].dims == ("attractor", "bound")
    assert json.loads(data.attrs["origin"])["weights"] == "ab12"


def test_other_tools_open_a_segment(tmp_path):
    import xarray

    run = fresh(tmp_path / "run")
    run.write("a", {"trajectory": trajectory()})
    with xarray.open_datatree(tmp_path / "run" / "segments" / "a.zarr", engine="zarr", consolidated=False) as tree:
        assert tree["trajectory"]["residual"].sizes == {"time": 4, "row": 3}


def test_a_run_knows_what_is_done_and_what_is_missing(tmp_path):
    run = fresh(tmp_path / "run", units=["c", "a", "b"])
    assert run.done() == [] and run.missing() == ["c", "a", "b"]
    run.write("b", {"trajectory": trajectory()})
    assert run.done() == ["b"] and run.missing() == ["c", "a"] and run.has("b") and not run.has("a")
    assert Run(tmp_path / "run").missing() == ["c", "a"] and run.bytes() > 1000
    with pytest.raises(RunError, match=r"has no segment 'a'.*read once it is complete.*Run the command again"):
        run.read("a")


def test_the_second_writer_of_a_unit_loses_and_leaves_nothing_behind(tmp_path):
    run = fresh(tmp_path / "run")
    first = trajectory()
    run.write("a", {"trajectory": first})
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    Run(tmp_path / "run").write("a", {"trajectory": trajectory(residual=torch.zeros(4, 3))})
    assert [p.name for p in (tmp_path / "run" / "segments").iterdir()] == ["a.zarr"]
    inside = [entry for entry in before if entry[0].name != "segments"]
    assert inside == [entry for entry in sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) if entry[0].name != "segments"]
    same(first, run.read("a")["trajectory"])


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    run = fresh(tmp_path / "run")

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        run.write("a", {"trajectory": trajectory()})
    assert list((tmp_path / "run" / "segments").iterdir()) == [] and run.missing() == ["a", "b"]


def test_a_run_that_is_killed_in_the_middle_of_writing_stays_readable(tmp_path):
    run = fresh(tmp_path / "run")
    run.write("a", {"trajectory": trajectory()})
    program = (
        "import sys, time, torch\n"
        "from attractorlab import store\n"
        "from attractorlab.types import Instance\n"
        "def stop(folder):\n    print('written', flush=True)\n    time.sleep(60)\n"
        "store._sync = stop\n"
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
    assert again.done() == ["a"] and again.missing() == ["b"]
    same(trajectory(), again.read("a")["trajectory"])
    again.write("b", {"instance": instance()})
    same(instance(), again.read("b")["instance"])


def test_a_run_is_continued_with_the_same_settings_alone(tmp_path):
    run = fresh(tmp_path / "run", seed=1, ids=("x", "y"))
    run.write("a", {"trajectory": trajectory()})
    assert fresh(tmp_path / "run", seed=1, ids=["x", "y"]).done() == ["a"]
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
    '{"config": 3, "units": ["a"], "created": "x", "schema": 1}',
    '{"config": {}, "units": 4, "created": "x", "schema": 1}',
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
    (tmp_path / "manifest.json").write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(RunError, match=r"has schema 2. This version reads schema 1. Use the version of attractorlab that wrote it"):
        Run(tmp_path)


@pytest.mark.parametrize("unit", ["", "..", "a/b", "../../elsewhere", "/tmp/x"])
def test_units_stay_in_the_folder(tmp_path, unit):
    with pytest.raises(RunError, match=r"A run has a unit .*names a file.*Use letters, digits, dots and hyphens"):
        fresh(tmp_path / "run", units=("a", unit))
    assert not (tmp_path / "run").exists()
    foreign = {"config": {}, "units": [unit], "created": "x", "schema": 1}
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
    data = to_dataset(projection()).drop_vars("tick")
    del data.attrs["clock"]
    with pytest.raises(RunError, match=r"A segment holds 'Projection' without tick, clock\."):
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
    assert whole.instance.tolist() == [0, 1, 2, 3, 4] and whole.residual.shape == (4, 5)
    same(join(parts), whole)
    for name in ("residual", "recurrence"):
        same(getattr(whole, name)[:, 3:], getattr(parts[1], name))
    same(whole.states["z_H"][:, :3], parts[0].states["z_H"])
    same(whole.readouts["answer"][:, 3:], parts[1].readouts["answer"])


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
    run = fresh(tmp_path / "run", units=[str(k) for k in range(200)])
    for k in range(200):
        (tmp_path / "run" / "segments" / f"{k}.zarr").mkdir()
    began = time.perf_counter()
    assert len(run.done()) == 200
    assert time.perf_counter() - began < 1.0
