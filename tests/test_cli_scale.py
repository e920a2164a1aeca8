"""`attractorlab scale`: resumed, shared out and cut in other pieces it gives the same numbers, and those are the library's."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from attractorlab import Run, attempt, models, strobe, tasks
from attractorlab.cli import main
from attractorlab.dynamics.attempts import Halting
from attractorlab.report.scaling import accuracy_table, number, read_off, share
from attractorlab.sweep import Measure, Series, attempts_in, own_starts, throughput
from tests.dynamics.test_attempts import clocked, from_zero, ones
from tests.test_cli_analysis import fails, printed, said

ASKED = ["scale", "eqr-sudoku-4", "--rows", "12", "--depth", "1,3,8", "--breadth", "1,3", "--time-rows", "0", "--seed", "5", "--threads", "1"]
NUMBERS = ("grid", "elastic", "gain", "foresight", "times", "policies")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A measurement made in one go, and what was printed of it."""
    out = tmp_path_factory.mktemp("scale") / "whole"
    return out, said(*ASKED, "--out", out)


def same_numbers(a, b):
    for name in NUMBERS:
        assert a[name] == b[name], name


def test_shared_out_in_other_units_and_interrupted_it_gives_the_same_numbers(whole, tmp_path, capsys):
    out = tmp_path / "parts"
    argv = [*ASKED, "--out", out, "--shard", "3"]
    fails(capsys, 3, "part 1 of 2", "are missing", "without --part", argv=[*argv, "--part", "1/2"])
    assert Run(out / "run").missing() == ["attempts-00001", "attempts-00003"]
    shared = said(*argv, "--part", "2/2")
    same_numbers(whole[1], shared)
    for unit in ("attempts-00001", "readings"):
        shutil.rmtree(out / "run" / "segments" / f"{unit}.zarr")
    kept = out / "run" / "segments" / "attempts-00000.zarr"
    before = kept.stat().st_mtime_ns
    again = said(*argv)
    same_numbers(whole[1], again)
    assert kept.stat().st_mtime_ns == before and shared["command"] == again["command"], "what was complete is kept"


def test_the_numbers_are_those_of_the_library(whole):
    out, facts = whole
    reasoner, puzzles = models.load("eqr-sudoku-4"), tasks.load("sudoku-4")
    chosen = puzzles[torch.arange(12) * len(puzzles) // 12]
    one = Series(model="eqr-sudoku-4", weights=reasoner.origin().weights, starts=3, scale=None, every=reasoner.config.H_cycles)
    f, z = own_starts(reasoner, chosen, torch.arange(12), one, seed=5)
    runs = attempt(f, z, ticks=8, read=[1, 3, 8], slots=36, halting=Halting(0.0, 1, None), hold=None, targets=chosen.targets)
    assert facts["clock"] == strobe(reasoner.bind(chosen), reasoner.config.H_cycles).clock == "2 x recursion"
    stored = attempts_in(Run(out / "run"))
    at = [stored.read.tolist().index(d) for d in (1, 3, 8)]
    assert stored.solved[at].equal(runs.solved) and stored.halt_tick.equal(runs.halt_tick) and stored.instance.equal(runs.instance)
    assert [row[-1][0] for row in facts["grid"]["accuracy"]] == pytest.approx(runs.solved.double().mean(1).tolist())
    assert facts["solutions that differ"] == len(tasks.same_solutions(chosen).unique()) and facts["puzzles"] == 12
    taken = torch.where(runs.halt_tick < 0, 8, runs.halt_tick).double().mean().item()
    assert facts["gain"]["calls"][-1] == pytest.approx(taken)
    assert facts["grid"]["selectors"] == ["mean", "residual", "logit_change", "vote", "halt", "first_halt", "verifier", "any"]
    assert facts["elastic"]["selectors"] == ["mean", "vote", "halt", "first_halt", "verifier", "any"], "residuals read at different ticks do not compare"
    columns = {name: [cell[k] for row in facts["grid"]["accuracy"] for cell in row] for k, name in enumerate(facts["grid"]["selectors"])}
    assert columns["verifier"] == columns["any"], "a puzzle with one solution has no other valid answer"


def test_holding_rows_at_rest_saves_ticks_and_changes_no_answer(whole):
    reasoner, puzzles = models.load("eqr-sudoku-4"), tasks.load("sudoku-4", rows=slice(0, 8))
    one = Series(model="", weights="", starts=2, scale=None, every=2)
    f, z = own_starts(reasoner, puzzles, torch.arange(8), one, seed=0)
    more = {"ticks": 48, "read": [1, 6, 48], "slots": 8, "halting": Halting(0.0, 1, None), "targets": puzzles.targets}
    held, followed = attempt(f, z, hold=5e-7, **more), attempt(f, z, hold=None, **more)
    assert held.solved.equal(followed.solved) and held.answer.equal(followed.answer) and held.halt_tick.equal(followed.halt_tick)
    assert held.last_tick.equal(followed.last_tick) and int(held.computed.sum()) < 0.8 * int(followed.computed.sum())


def test_starts_belong_to_the_puzzle_and_not_to_its_place(whole):
    reasoner, puzzles = models.load("eqr-sudoku-4"), tasks.load("sudoku-4", rows=slice(0, 6))
    one = Series(model="", weights="", starts=2, scale=None, every=1)
    _, all_of_them = own_starts(reasoner, puzzles, torch.arange(6), one, seed=1)
    f, some = own_starts(reasoner, puzzles[[4, 2]], torch.arange(2), one, seed=1)
    assert some["z_H"].equal(all_of_them["z_H"][[8, 9, 4, 5]]) and f.instance.tolist() == [0, 0, 1, 1] and f.start.tolist() == [0, 1, 0, 1]
    _, more = own_starts(reasoner, puzzles[[4]], torch.arange(1), Series(model="", weights="", starts=5, scale=None, every=1), seed=1)
    assert more["z_L"][:2].equal(some["z_L"][:2]), "fewer starts are the first of more"
    assert not own_starts(reasoner, puzzles[[4]], torch.arange(1), one, seed=2)[1]["z_H"].equal(some["z_H"][:2])


def test_the_files_say_what_was_measured(whole):
    out, facts = whole
    page, text, told = (out / "index.html").read_text(), (out / "scale.md").read_text(), json.loads((out / "scale.json").read_text())
    same_numbers(told, facts)
    for words in ("Accuracy by depth and breadth", "The same with halting", "What halting saves", "Other thresholds", "What scores foretell", "Ticks to a lasting solution", "2 x recursion", "clusters"):
        assert words in page and words in text, words
    lines = printed(*ASKED, "--out", out).splitlines()
    tables = [line for line in lines if "Kept in" not in line]
    assert max(map(len, tables)) <= 80 and all(any(word in line.split() for line in lines) for word in facts["grid"]["selectors"]), "what does not fit stands in a table of its own"
    assert [one["policy"] for one in facts["policies"]] == [f"halt > {k} from tick 1 on, looked at when read" for k in (1, 2, 4, 8)]
    assert "answers" not in facts, "a Sudoku has one right answer"
    assert "One tick is 2 x recursion" in " ".join(lines) and any(line.split()[:3] == ["depth", "breadth", "ticks"] for line in lines)
    grid = Run(out / "run").read("readings")["grid"]
    head, rows = accuracy_table(grid)
    assert len(rows) == 6 and all(len(row) == len(head) for row in rows)
    assert [row[-1] == "-" for row in rows] == [True, False] * 3, "one start has no path to depend on"


def test_a_number_without_an_interval_says_so():
    nan, inf, x = torch.tensor(torch.nan), torch.tensor(torch.inf), torch.tensor(0.25)
    assert share(x, nan, nan) == "25.0 [-]" and share(nan, nan, nan) == "-" and share(x, x - 0.05, x + 0.05) == "25.0 [20.0, 30.0]"
    assert number(x, nan, nan) == "0.25 [-]" and number(inf, x, inf) == "inf [0.25, inf]" and number(inf, x, inf, above=64) == "> 64 [0.25, > 64]"
    assert number(nan, nan, nan) == "-"


def test_halting_and_refill_are_timed_against_all_to_the_end():
    reasoner, puzzles = models.load("eqr-sudoku-4"), tasks.load("sudoku-4", rows=slice(0, 12))
    one = Series(model="", weights="", starts=3, scale=None, every=2)
    asked = Measure(series=one, ticks=8, read=(8,), halting=Halting(0.0, 1, None), hold=None, slots=64, shard=4, seed=0, dtype="float32", engine="eager")
    timed = throughput(reasoner, puzzles, asked)
    assert timed["ticks_full"] <= 12 * 8 and timed["ticks_refill"] < timed["ticks_full"] and timed["slots"] == 3 and timed["instances"] == 12
    assert timed["ratio"] == pytest.approx(timed["seconds_full"] / timed["seconds_refill"])
    assert timed["ratio"] == pytest.approx(timed["instances_per_second_refill"] / timed["instances_per_second_full"])
    with pytest.raises(ValueError, match=r"`throughput` got no halting policy.*Use halting=Halting"):
        throughput(reasoner, puzzles, replace(asked, halting=None))
    with pytest.raises(ValueError, match=r"engine='fast'.*one of eager, compiled"):
        throughput(reasoner, puzzles, replace(asked, engine="fast"))


COMPILED = """
import sys
from dataclasses import replace
import torch
from attractorlab import models, tasks
from attractorlab.dynamics.attempts import Halting
from attractorlab.sweep import Measure, Series, attempts_in, measure, throughput

reasoner, puzzles = models.load("eqr-sudoku-4").double(), tasks.load("sudoku-4", rows=slice(0, 5))
one = Series(model="", weights="", starts=2, scale=None, every=2)
asked = Measure(series=one, ticks=6, read=(1, 6), halting=Halting(0.0, 1, None), hold=None, slots=4, shard=3, seed=0, dtype="float64", engine="eager")
both = [
    attempts_in(measure(f"{sys.argv[1]}/{engine}", puzzles, reasoner, replace(asked, engine=engine), settings={}, also=[], verify=None, part=(1, 1), progress=lambda *counts: None))
    for engine in ("eager", "compiled")
]
eager, fused = both
assert fused.solved.equal(eager.solved) and fused.answer.equal(eager.answer) and fused.halt_tick.equal(eager.halt_tick) and fused.computed.equal(eager.computed)
assert throughput(reasoner, puzzles, replace(asked, engine="compiled"))["ticks_full"] == 30
print(float((fused.halt - eager.halt).abs().max()), float((fused.residual - eager.residual).abs().max()))
"""


def test_a_compiled_measurement_differs_in_rounding_only(tmp_path):
    # In a process of its own: the shape checks of the tests cannot be compiled.
    apart = [float(word) for word in subprocess.run([sys.executable, "-c", COMPILED, tmp_path], capture_output=True, text=True, check=True).stdout.split()]
    assert len(apart) == 2 and 0 < max(apart) < 1e-10


def test_a_compiled_measurement_is_refused_where_it_cannot_be(tmp_path, capsys, monkeypatch):
    fails(capsys, 2, "got --engine compiled for a feed-forward", "Leave them out", argv=["scale", twin(tmp_path / "twin.safetensors", "maze-5", 25, 6), "--out", tmp_path / "out", "--engine", "compiled"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    fails(capsys, 2, "found no no-such-compiler", "engine=eager", argv=[*ASKED, "--out", tmp_path / "out", "--engine", "compiled"])
    assert not (tmp_path / "out").exists()
    fails(capsys, 2, "--engine fast", "eager, compiled", argv=[*ASKED, "--out", tmp_path / "out", "--engine", "fast"])


def twin(path, task, sites, classes):
    """The file of a feed-forward network that knows nothing."""
    from attractorlab.models import FeedForward, FeedForwardConfig, save

    save(FeedForward(FeedForwardConfig(task, sites, classes, width=8, H_cycles=1, L_cycles=1), generator=torch.Generator().manual_seed(0)), path, about={})
    return path


def test_other_thresholds_wait_as_long_as_the_policy_does():
    runs = attempt(clocked([2] * 12, halts=[3] * 12), from_zero(12), ticks=16, read=range(1, 17), slots=4, halting=Halting(0.0, 8, None), hold=None, targets=ones(12))
    found = read_off(runs, depth=[16], breadth=[1], level=0.9, cluster=torch.arange(12), difficulty=None, halting=Halting(0.0, 8, None), thresholds=[2.0, 9.0])
    assert [one.calls.item() for one in found.policies] == [8, 12] and found.policies[0].policy.startswith("halt > 2 from tick 8 on")


def test_only_the_stored_of_several_right_answers_counts_and_that_is_said(tmp_path):
    from attractorlab.cli_scale import _answers

    data = tmp_path / "open.csv"
    data.write_text("question,answer\n######S..##...##..G######,######Soo##..o##..G######\n")
    facts = said("scale", twin(tmp_path / "twin.safetensors", "maze-5", 25, 6), "--data", data, "--out", tmp_path / "out")
    assert facts["answers"] == "1 of the puzzles have several right answers; accuracy counts the stored one alone and calls the others wrong."
    assert facts["answers"] in (tmp_path / "out" / "scale.md").read_text()
    maze = tasks.load("maze-5", path=data)
    runs = attempt(clocked([2, 9], halts=[3, 3]).take([0, 0, 1]), from_zero(3), ticks=4, read=[1, 4], slots=2, halting=None, hold=None, targets=ones(2), verify=lambda rows, answers: answers[..., 0] >= 0)
    assert _answers(maze, runs)["answers"].endswith("calls the others wrong: 1 of 3 starts end on such a one.")


def test_processes_that_begin_together_name_one_command():
    from attractorlab.cli_scale import _of_all_parts

    for part in ("--part 1/2 --out 'a b'", "--out 'a b' --part=2/2", "--out 'a b'"):
        assert _of_all_parts(f"attractorlab scale model {part}") == "attractorlab scale model --out 'a b'"


def test_a_run_goes_on_with_its_own_puzzles_alone(tmp_path, capsys):
    data, puzzles = tmp_path / "some.csv", tasks.load("sudoku-4", rows=slice(0, 4))
    texts = [tasks.to_text(one) for one in puzzles.inputs]
    argv = ["scale", "eqr-sudoku-4", "--data", data, "--depth", "1", "--breadth", "1", "--time-rows", "0", "--out", tmp_path / "out"]
    data.write_text("\n".join(["question", *texts[:3], ""]))
    said(*argv)
    shutil.rmtree(tmp_path / "out" / "run" / "segments" / "attempts-00000.zarr")
    data.write_text("\n".join(["question", *texts[1:], ""]))
    fails(capsys, 4, "other puzzles of the same names", "Choose another --out", argv=argv)


def test_a_timing_is_that_of_its_own_run(whole):
    out = whole[0]
    kept, argv = out / "throughput.json", [*ASKED, "--out", out]
    argv[argv.index("--time-rows") + 1] = "2"
    kept.write_text(json.dumps({"ratio": 999.0, "run": "another"}))
    timed = said(*argv)["throughput"]
    assert timed["ratio"] != 999.0 and timed["instances"] == 2
    assert said(*argv)["throughput"] == timed, "once in a run"
    argv[argv.index("--time-rows") + 1] = "3"
    assert said(*argv)["throughput"]["instances"] == 3, "and anew for other rows"
    for torn in ("", kept.read_text()[:-30], "null", "[1, 2]", "[" * 100_000, json.dumps({"instances": 3, "ticks_refill": 0})):
        kept.write_text(torn)
        assert said(*argv)["throughput"]["ratio"] > 0, "and where it is not whole"
    kept.unlink()


def test_a_feed_forward_network_has_one_number(tmp_path, capsys):
    path = twin(tmp_path / "twin.safetensors", "sudoku-4", 16, 6)
    facts = said("scale", path, "--rows", "20", "--out", tmp_path / "out")
    assert facts["clock"].startswith("none: a feed-forward network has no ticks and no starts")
    assert facts["low"] <= facts["accuracy"] <= facts["high"] and facts["low"] < facts["high"] and facts["puzzles"] == 20
    assert "do not apply" in printed("scale", path, "--rows", "20", "--out", tmp_path / "out") and (tmp_path / "out" / "scale.md").exists()
    fails(capsys, 2, "holds the results of a feed-forward network", "Choose another --out", argv=["scale", "eqr-sudoku-4", "--rows", "2", "--time-rows", "0", "--out", str(tmp_path / "out")])
    fails(capsys, 2, "got --part 1/2 for a feed-forward", "measured in one piece", argv=["scale", str(path), "--part", "1/2", "--out", str(tmp_path / "parts")])
    exact = said("scale", path, "--rows", "20", "--dtype", "float64", "--out", tmp_path / "exact")
    assert exact["dtype"] == "float64" and exact["device"] == facts["device"] == "cpu" and exact["accuracy"] == facts["accuracy"]
    fails(capsys, 2, "differ in puzzles, fingerprint of the puzzles, dtype", "Choose another --out", argv=["scale", str(path), "--rows", "10", "--out", str(tmp_path / "exact")])
    assert json.loads((tmp_path / "exact" / "scale.json").read_text()) == exact
    assert json.loads((tmp_path / "out" / "scale.json").read_text())["kind"] == "feedforward" and not (tmp_path / "out" / "run").exists() and not (tmp_path / "parts").exists()


def test_what_stands_where_output_goes_is_found_before_anything_is_measured(tmp_path, capsys):
    for name in ("run", "scale.md", "throughput.json"):
        out = tmp_path / name / "out"
        out.mkdir(parents=True)
        if name == "run":
            (out / name).write_text("a file")
        else:
            (out / name).mkdir()
        fails(capsys, 2, name, "Choose another --out", argv=["scale", "eqr-sudoku-4", "--rows", "4", "--out", str(out)])
        assert [one.name for one in out.iterdir()] == [name]


def test_misuse_is_refused_with_what_to_do(whole, tmp_path, capsys):
    out = ["--out", str(tmp_path / "never")]
    base = ["scale", "eqr-sudoku-4", "--rows", "4", *out]
    fails(capsys, 2, "--depth '1,x'", "joined by commas", argv=[*base, "--depth", "1,x"])
    fails(capsys, 2, "--breadth '0'", argv=[*base, "--breadth", "0"])
    fails(capsys, 2, "the present folder itself", "Choose another --out", argv=["scale", "eqr-sudoku-4", "--rows", "4", "--out", "."])
    fails(capsys, 2, "from 1 to 1,048,576", argv=[*base, "--depth", "9" * 20])
    fails(capsys, 2, "from 1 to 16,384", argv=[*base, "--breadth", "16385"])
    fails(capsys, 2, "--depth '١'", argv=[*base, "--depth", "\N{ARABIC-INDIC DIGIT ONE}"])
    fails(capsys, 2, "--thresholds '1,high'", "or nothing", argv=[*base, "--thresholds", "1,high"])
    fails(capsys, 2, "--every blink", "segment, recursion", argv=[*base, "--every", "blink"])
    fails(capsys, 2, "--dtype float8", "--dtype float32", argv=[*base, "--dtype", "float8"])
    fails(capsys, 2, "--part 3/2", "--part 1/2", argv=[*base, "--part", "3/2"])
    for odd in ("1/" + "9" * 5000, "\N{ARABIC-INDIC DIGIT ONE}/2", "9" * 5000 + "/2"):
        fails(capsys, 2, "the k-th of n processes", argv=[*base, "--part", odd])
    for option in ("--slots", "--halt-after"):
        assert main([*base, option, "9" * 23]) == 2 and option in capsys.readouterr().err
    fails(capsys, 2, "which this torch cannot use (it computes nothing)", argv=[*base, "--device", "meta"])
    fails(capsys, 2, "no text in UTF-8", "Rename", argv=[*base[:-1], str(tmp_path / "\udcff")])
    fails(capsys, 2, "--starts none", argv=[*base, "--starts", "none"])
    fails(capsys, 2, "one fixed start", "--starts random", argv=["scale", "trm-sudoku-6", "--rows", "2", "--breadth", "1,2", *out])
    fails(capsys, 2, "--halt-above nan", "--halt-above 0", argv=[*base, "--halt-above", "nan"])
    fails(capsys, 2, "--halt-above inf", "finite", argv=[*base, "--halt-above", "inf"])
    fails(capsys, 2, "--halt-rest -1.0", "above 0", argv=[*base, "--halt-rest", "-1"])
    fails(capsys, 2, "--halt-rest inf", "above 0", argv=[*base, "--halt-rest", "inf"])
    for option, value in (("--dtype", "float8"), ("--device", "abacus"), ("--every", "blink"), ("--starts", "none"), ("--halt-above", "nan")):  # refused of models, too, to which it does not apply
        fails(capsys, 2, option.removeprefix("--").split("-")[0], argv=["scale", "feedforward-sudoku-9", "--rows", "4", *out, option, value])
    fails(capsys, 2, "holds the run of a reasoner", "Choose another --out", argv=["scale", twin(tmp_path / "twin.safetensors", "sudoku-4", 16, 6), "--out", whole[0]])
    fails(capsys, 4, "differs in", "Choose another --out", argv=[*ASKED, "--out", whole[0], "--seed", "6"])
    assert main([*base, "--rows", "99999"]) == 2
    assert not (tmp_path / "never").exists()
