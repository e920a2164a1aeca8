"""`attractorlab fixed-points`, `spectrum` and `lyapunov`: the library's numbers, read off runs and models, printed, kept and refused."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import attractorlab as al
from attractorlab.cli import main
from attractorlab.cli_tables import fixed_point_lines, lyapunov_lines, spectrum_lines
from attractorlab.models.checkpoints import find, read_metadata, write_tensors
from attractorlab.report.ends import ends_of_run, fewer
from attractorlab.report.stability import signs
from attractorlab.statistics import clopper_pearson

PUZZLES, STARTS, TICKS = 2, 3, 8
QUICK = ["--method", "iteration"]  # where the search is not the question
SMALL = ["--rows", str(PUZZLES), "--starts", str(STARTS), "--ticks", str(TICKS), "--seed", "3"]
COMMANDS = ("fixed-points", "spectrum", "lyapunov")


def printed(*argv, code=0):
    """What a command writes to standard output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([str(one) for one in argv]) == code
    return out.getvalue()


def said(*argv, code=0):
    """What a command prints as JSON."""
    return json.loads(printed(*argv, "--json", code=code))


def fails(capsys, code, *words, argv):
    assert main([str(one) for one in argv]) == code
    message = capsys.readouterr().err
    lines = [line for line in message.splitlines() if line.startswith("attractorlab: ")]
    assert "Traceback" not in message and len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]
    assert lines[0].count(". ") >= 2, "a fact, a rule and a remedy"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six starts, as `record` makes it."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    assert main(["record", "eqr-sudoku-4", *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def polished(run):
    """The float64 map and the fixed points at the run's ends, by the library alone."""
    recorded = al.Run(run)
    instance, traj = recorded.read("puzzles")["instance"], recorded.trajectory_of("main")
    reasoner = al.models.load("eqr-sudoku-4").to(torch.float64)
    f = al.strobe(reasoner.bind(instance), reasoner.config.H_cycles).take(traj.instance)
    points = al.find_fixed_points(f, al.trees.to(traj.last, torch.float64), tol=1e-10, max_steps=30)
    return reasoner, instance, f, points


@pytest.fixture(scope="module")
def facts(run):
    """What `fixed-points` says of the run."""
    return said("fixed-points", run)


@pytest.fixture(scope="module")
def spectral(run, tmp_path_factory):
    """What `spectrum` says of it, and where that is kept."""
    out = tmp_path_factory.mktemp("spectrum") / "kept"
    return said("spectrum", run, "--k", 3, "--level", 0.9, "--out", out), out


@pytest.fixture(scope="module")
def drifting(run, tmp_path_factory):
    """What `lyapunov` says of two of its orbits, and where that is kept."""
    out = tmp_path_factory.mktemp("lyapunov") / "kept"
    return said("lyapunov", run, "--k", 2, "--ticks", 16, "--transient", 1, "--limit", 2, "--out", out), out


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run of two units, of which the second is missing."""
    folder = tmp_path_factory.mktemp("wide") / "run"
    assert main(["record", "eqr-sudoku-4", "--rows", "9", "--starts", "1", "--ticks", "6", "--out", str(folder)]) == 0
    shutil.rmtree(folder / "segments" / "main-001.zarr")
    return folder


def test_fixed_points_of_a_run_are_those_that_the_library_finds(facts, polished):
    reasoner, instance, _, points = polished
    for name in ("residual", "error", "moved", "steps"):
        assert [one[name] for one in facts["points"]] == getattr(points, name).tolist()
    different = al.distinct(points)
    assert [one["point"] for one in facts["points"]] == different.labels.tolist()
    assert facts["results"] == {"converged": PUZZLES * STARTS} and facts["distinct"] == len(different.points)
    right = al.tasks.verify(instance[different.points.instance], reasoner.readout(different.points.states)["logits"].argmax(-1))
    assert facts["solved"] == int(right.sum()) == sum(one["solved"] for one in facts["by_puzzle"])
    assert [one["puzzle"] for one in facts["by_puzzle"]] == list(instance.ids)
    assert facts["by_puzzle"][1]["residual"] == float(points.residual[points.instance == 1].max()) < 1e-10


def test_a_model_gives_the_points_of_the_run_that_record_makes_of_it(run):
    of_run, of_model = said("fixed-points", run, *QUICK), said("fixed-points", "eqr-sudoku-4", *SMALL, *QUICK)
    assert of_run["points"] == of_model["points"] and of_run["by_puzzle"] == of_model["by_puzzle"]


def test_a_spectrum_is_the_librarys_at_the_points_that_differ(spectral, polished):
    facts, out = spectral
    _, _, f, points = polished
    different = al.distinct(points)
    spec = al.spectrum(f.take(different.points.row), different.points.states, k=3)
    assert [one["eigenvalues"] for one in facts["points"]] == [[[x.real, x.imag] for x in row] for row in spec.eigenvalues.tolist()]
    assert [one["defects"] for one in facts["points"]] == spec.defect.tolist()
    assert [one["starts"] for one in facts["points"]] == different.counts.tolist()
    n = len(different.points)
    [stable] = [one for one in facts["verdicts"] if one["verdict"] == "stable"]
    assert (stable["near"], stable["far"]) == (sum(word == "stable" for word in spec.verdict), 0)
    assert (stable["low"], stable["high"]) == clopper_pearson(stable["near"], n, level=0.9)
    assert sum(one["near"] + one["far"] for one in facts["verdicts"]) == n
    kept = al.Run(out).read("spectrum")
    assert torch.equal(kept["spectrum"].eigenvalues, spec.eigenvalues) and kept["spectrum"].verdict == spec.verdict
    assert torch.equal(kept["fixed"].states["z_H"], different.points.states["z_H"])
    assert torch.equal(kept["points"].residual, points.residual)


def test_exponents_are_the_librarys_along_the_orbits_from_the_ends(run, drifting, polished):
    facts, out = drifting
    _, _, f, _ = polished
    z = al.trees.to(al.Run(run).trajectory_of("main").last, torch.float64)
    rows = torch.tensor([0, STARTS])  # two of six, spread: the first start of each puzzle
    found = al.lyapunov_exponents(f.take(rows), al.trees.take(z, rows), k=2, ticks=16, transient=1)
    assert [one["exponents"] for one in facts["orbits"]] == found.exponents.tolist()
    assert [one["standard_errors"] for one in facts["orbits"]] == found.standard_error.tolist()
    assert [one["kaplan_yorke"] for one in facts["orbits"]] == found.kaplan_yorke.tolist() == [0, 0]
    assert facts["exponents"][1]["highest"] == float(found.exponents[:, 1].max())
    assert facts["results"] == {"completed": 2} and facts["first_exponent"] == {"negative": 2} and (facts["rows"], facts["of"]) == (2, 6)
    assert torch.equal(al.Run(out).read("lyapunov")["lyapunov"].growth, found.growth)


def test_orbits_of_a_model_begin_at_the_starts_that_record_draws():
    reasoner = al.models.load("eqr-sudoku-4")
    puzzles = al.tasks.load("sudoku-4", split="test")
    puzzles = puzzles[al.tasks.spread_rows(1, len(puzzles))]
    f = al.strobe(reasoner.to(torch.float64).bind(puzzles), 2).take([0, 0])
    z = reasoner.random_start(f.drive, scale=1.0, generator=torch.Generator().manual_seed(0))
    found = al.lyapunov_exponents(f, al.trees.to(z, torch.float64), k=1, ticks=3)
    facts = said("lyapunov", "eqr-sudoku-4", "--rows", 1, "--starts", 2, "--k", 1, "--ticks", 3, "--transient", 0)
    assert [one["exponents"] for one in facts["orbits"]] == found.exponents.tolist()
    assert facts["first_exponent"] == {"undecided": 2}  # three ticks tell no error


def test_what_is_kept_is_read_again_and_another_question_is_refused(run, capsys, tmp_path, monkeypatch):
    out = tmp_path / "kept"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = said("fixed-points", run, *QUICK, "--out", out)
    assert json.loads((out / "fixed-points.json").read_text()) == first
    assert said("verify", out)["whole"] == 2 and said("inspect", out)["analysis"] == "fixed-points"
    fails(capsys, 4, "differs in", "tol", argv=["fixed-points", run, *QUICK, "--tol", "1e-9", "--out", out])
    fails(capsys, 2, "holds a run", "Choose another --out", argv=["fixed-points", run, "--out", run])
    fails(capsys, 2, "another analysis", argv=["lyapunov", run, "--out", out])
    fails(capsys, 4, "holds no recording", argv=["spectrum", out])
    monkeypatch.delattr("attractorlab.report.stability.fixed_point_facts")
    assert said("fixed-points", run, *QUICK, "--out", out) == first
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_an_interruption_leaves_nothing_half_written(run, capsys, tmp_path, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("attractorlab.dynamics.fixed_points.find_fixed_points", stopped)
    assert main(["fixed-points", str(run), "--out", str(tmp_path / "kept")]) == 3
    assert "Interrupted" in capsys.readouterr().err and not (tmp_path / "kept").exists()


def test_a_folder_that_takes_no_files_is_refused_before_the_work(run, capsys, tmp_path, monkeypatch):
    monkeypatch.delattr("attractorlab.dynamics.fixed_points.find_fixed_points")  # what would be called
    fails(capsys, 3, "/proc/kept", "Make room or choose another --out", argv=["fixed-points", run, "--out", "/proc/kept"])
    assert main(["fixed-points", str(run), "--max-steps", "-1", "--out", str(tmp_path / "kept")]) == 2 and not list(tmp_path.iterdir())


SPY = """
import os, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            raise KeyboardInterrupt
sys.meta_path.insert(0, Spy())
from attractorlab.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("given", "policy"), [(None, "20000"), ("7", "7")])
def test_threads_wait_shortly_and_then_sleep_unless_told_otherwise(given, policy):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | ({} if given is None else {"GOMP_SPINCOUNT": given})
    for command in COMMANDS if given is None else COMMANDS[:1]:
        done = subprocess.run([sys.executable, "-c", SPY, command, "eqr-sudoku-4"], capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout.split()) == (3, [policy]), done.stderr


def test_not_to_converge_is_an_outcome_and_no_failure(run):
    facts = said("fixed-points", run, *QUICK, "--max-steps", 0)
    assert facts["results"] == {"max_steps": 6} and facts["unseen"] is None and facts["by_puzzle"][0]["residual"] is None
    text = printed("fixed-points", run, *QUICK, "--max-steps", 0)
    assert "6 max steps" in text and "no proof that there is none" in " ".join(text.split())
    assert "there is no spectrum" in printed("spectrum", run, *QUICK, "--max-steps", 0)


@pytest.mark.parametrize("method", ["iteration", "anderson", "broyden"])
def test_every_method_ends_on_the_same_points(run, polished, method):
    different = al.distinct(polished[3])
    facts = said("fixed-points", run, "--method", method)
    assert facts["results"] == {"converged": 6} and facts["distinct"] == len(different.points)
    assert [one["point"] for one in facts["points"]] == different.labels.tolist()


def test_a_row_that_is_not_finite_ends_with_its_word_and_leaves_the_others_as_they_are(run, tmp_path):
    whole = al.Run(run)
    broken = al.Run.create(tmp_path / "run", config=whole.manifest.config, units=whole.manifest.units)
    traj = whole.trajectory_of("main")
    states = {name: leaf.clone() for name, leaf in traj.states.items()}
    states["z_L"][-1, 4, 0, 0] = torch.nan
    broken.write("puzzles", whole.read("puzzles"))
    broken.write("main-000", {"trajectory": replace(traj, states=states)})
    facts, others = said("fixed-points", broken.path, *QUICK), said("fixed-points", run, *QUICK)
    assert facts["results"] == {"converged": 5, "nonfinite": 1} and facts["points"][4]["result"] == "nonfinite"
    assert [facts["points"][k] for k in (0, 1, 2, 3, 5)] == [others["points"][k] for k in (0, 1, 2, 3, 5)]


def test_an_incomplete_run_is_analysed_as_far_as_it_goes_with_code_3(wide, capsys):
    facts = said("fixed-points", wide, *QUICK, code=3)
    capsys.readouterr()
    assert (facts["rows"], facts["puzzles"], facts["lacks"]) == (8, 8, ["main-001"])
    fails(capsys, 3, "lacks 1 of 2 units", "'main-001'", argv=["fixed-points", wide, *QUICK])
    shutil.rmtree(wide / "segments" / "main-000.zarr")
    fails(capsys, 3, "no finished unit", argv=["fixed-points", wide])


def test_the_printed_tables_fit_and_say_what_the_json_says(run, facts, spectral, drifting):
    tables = {"points": fixed_point_lines(facts), "spectrum": spectrum_lines(spectral[0]), "exponents": lyapunov_lines(drifting[0])}
    lines = {name: list(made) for name, made in tables.items()}
    assert max(len(line) for made in lines.values() for line in made) <= 80
    [total] = [line.split() for line in lines["points"] if line.startswith("all ")]
    assert total[1:5] == [str(n) for n in (6, 6, facts["distinct"], facts["solved"])]
    radii = [line.split()[4] for line in lines["spectrum"] if line.endswith(" stable")]
    assert radii == [f"{one['radius']:.4f}" for one in spectral[0]["points"]]
    assert [line.split()[2] for line in lines["exponents"] if line.endswith("completed") and "results" not in line] == [f"{one['exponents'][0]:.4f}" for one in drifting[0]["orbits"]]
    assert "6 converged" in printed("fixed-points", run, *QUICK)


def test_fewer_ends_are_spread_over_the_instances_and_their_first_starts(run):
    ends = ends_of_run(al.Run(run), "main")
    assert [(fewer(ends, n).f.instance.tolist(), fewer(ends, n).f.start.tolist()) for n in (1, 3, 4)] == [([1], [0]), ([0, 0, 1], [0, 1, 0]), ([0, 0, 1, 1], [0, 1, 0, 1])]
    assert fewer(ends, 6) is ends


def test_an_exponent_has_a_sign_only_with_three_errors_between_it_and_zero():
    first, error = torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, -torch.inf]), torch.tensor([0.1, 0.1, 0.4, 0.4, torch.nan, torch.nan])
    assert signs(first, error) == {"negative": 1, "positive": 1, "undecided": 4}


def test_series_that_cannot_be_read_are_one_message_and_code_4(run, capsys, tmp_path):
    whole = json.loads((run / "manifest.json").read_text())
    one = dict.fromkeys(("model", "weights", "starts", "scale", "every"), "1")  # as a run of `scale` says it
    for series, words in (({}, "holds no recording"), (one, "holds no recording"), ({"main": 3}, "what cannot be read"), ({"main": {"pace": 1}}, "what cannot be read")):
        (tmp_path / "manifest.json").write_text(json.dumps(whole | {"config": whole["config"] | {"series": series}}))
        fails(capsys, 4, words, argv=["fixed-points", tmp_path])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_neither_run_nor_model_is_one_message_and_code_2(command, capsys, tmp_path):
    for source in (tmp_path, "no-such-model", "a" * 300):
        fails(capsys, 2, "neither a run nor a model", "eqr-sudoku-4", argv=[command, source])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["spectrum", "eqr-sudoku-4", "--k", "2049"], ("--k 2049", "1024")),
        (["lyapunov", "eqr-sudoku-4", "--k", "2049"], ("--k 2049", "1024")),
        (["fixed-points", "eqr-sudoku-4", "--tol", "1e-14"], ("1e-14", "1e-13")),
        (["spectrum", "eqr-sudoku-4", "--tol", "1.5"], ("1.5",)),
        (["fixed-points", "eqr-sudoku-4", "--rows", "100000"], ("100000", "--rows")),
        (["fixed-points", "eqr-sudoku-4", "--method", "newton"], ("newton", "newton-krylov")),
        (["spectrum", "eqr-sudoku-4", "--series", "own"], ("--series own", "no run")),
    ],
    ids=["eigenvalues", "exponents", "floor", "one", "rows", "method", "series"],
)
def test_misuse_is_one_message_with_code_2(capsys, argv, words):
    fails(capsys, 2, *words, argv=argv)


def test_more_ticks_than_memory_holds_are_refused(capsys):
    assert main(["lyapunov", "eqr-sudoku-4", "--ticks", "2000000000"]) == 2
    assert "less than or equal to 1000000. See attractorlab --help." in capsys.readouterr().err


def test_options_that_a_run_has_settled_are_refused(run, capsys):
    fails(capsys, 2, "got --rows", "--limit", argv=["fixed-points", run, "--rows", "2"])
    fails(capsys, 2, "got --ticks", argv=["spectrum", run, "--ticks", "64"])
    fails(capsys, 2, "got --seed", argv=["lyapunov", run, "--ticks", "4", "--seed", "1"])
    fails(capsys, 4, "no series 'own'", "main", argv=["spectrum", run, "--series", "own"])
    fails(capsys, 2, "present folder", argv=["spectrum", run, "--out", ""])


def test_a_report_folder_stands_for_its_run_and_is_not_written_into(run, capsys, tmp_path):
    shutil.copytree(run, tmp_path / "report" / "run")
    assert said("fixed-points", tmp_path / "report", *QUICK)["points"] == said("fixed-points", run, *QUICK)["points"]
    fails(capsys, 2, "a report", argv=["fixed-points", run, "--out", tmp_path / "report"])


def test_a_model_that_is_gone_or_another_or_not_finite_or_without_a_tick_is_refused(capsys, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(find("eqr-sudoku-4"), path)
    folder = tmp_path / "run"
    assert main(["record", str(path), "--rows", "1", "--starts", "1", "--ticks", "3", "--out", str(folder)]) == 0
    weights, about = load_file(path), read_metadata(path)
    weights["q_head.bias"] += 1
    write_tensors(weights, path, about)
    fails(capsys, 4, "was recorded with weights", argv=["fixed-points", folder])
    path.unlink()
    fails(capsys, 4, "there is no model any more", argv=["spectrum", folder])
    weights["q_head.bias"] *= torch.nan
    write_tensors(weights, path, about)
    fails(capsys, 4, "NaN or infinity in q_head.bias", argv=["lyapunov", path])
    fails(capsys, 4, "NaN or infinity in q_head.bias", argv=["lyapunov", folder])
    network = al.models.FeedForward(al.models.FeedForwardConfig(task="sudoku-4", sites=16, vocabulary=6), generator=torch.Generator().manual_seed(0))
    al.models.save(network, path, about={})
    fails(capsys, 4, "feed-forward", "no tick", argv=["fixed-points", path])
