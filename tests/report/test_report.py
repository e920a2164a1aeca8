"""A report on a trained model: its numbers by other routes, from its own stored run."""

import json
import re

import numpy as np
import pytest
import torch
import xarray

import attractorlab as al
from attractorlab import tasks
from attractorlab.cli import main
from attractorlab.report.analysis import recorded
from attractorlab.report.markdown import as_markdown

ROWS, STARTS, TICKS = 6, 5, 20
SAME_EIGENVALUE = 1e-6
FIXED = 1e-9


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a report on the side-4 model, compared with itself."""
    folder = tmp_path_factory.mktemp("made") / "report"
    asked = ["--rows", str(ROWS), "--starts", str(STARTS), "--ticks", str(TICKS), "--baseline", "eqr-sudoku-4", "--out", str(folder)]
    assert main(["report", "eqr-sudoku-4", *asked]) == 0
    return folder


@pytest.fixture(scope="module")
def told(made):
    return json.loads((made / "report.json").read_text())


@pytest.fixture(scope="module")
def arrays(made):
    """What the run holds, opened by xarray alone: the trajectory of the one unit, and the puzzles."""
    segments = made / "run" / "segments"
    with xarray.open_datatree(segments / "main-000.zarr", engine="zarr", consolidated=False) as unit:
        trajectory = unit["trajectory"].to_dataset().load()
    with xarray.open_datatree(segments / "puzzles.zarr", engine="zarr", consolidated=False) as unit:
        puzzles = unit["instance"].to_dataset().load()
    return trajectory, puzzles


def value(told, claim):
    return next(one["value"] for one in told["findings"] if one["claim"] == claim)


def test_the_report_is_three_files_and_the_run(made):
    assert sorted(path.name for path in made.iterdir()) == ["index.html", "report.json", "report.md", "run"]


def test_shares_recomputed_from_the_stored_run_by_numpy_agree_exactly(told, arrays):
    trajectory, puzzles = arrays
    answer, residual = trajectory["readouts.answer"].values, trajectory["residual"].values
    instance, targets = trajectory["instance"].values, puzzles["targets"].values
    solved = (answer == targets[instance]).all(2)
    settled = (residual[-3:] < told["config"]["tol"]).all(0)
    assert value(told, "solved at the last tick") == solved[-1].mean()
    assert value(told, "settled at the last tick") == settled.mean()
    assert value(told, "starts undecided") == (~settled).mean()
    for i in range(ROWS):
        mine = [bytes(one) for one in answer[-1][(instance == i) & settled].astype(np.int16)]
        counts = sorted((mine.count(kind) for kind in set(mine)), reverse=True)
        assert [one["count"] for one in told["basins"] if one["instance"] == i] == counts


def test_accuracies_recomputed_from_the_stored_run_by_numpy_agree_exactly(told, arrays):
    trajectory, puzzles = arrays
    solved = (trajectory["readouts.answer"].values == puzzles["targets"].values[trajectory["instance"].values]).all(2).reshape(-1, ROWS, STARTS)
    residual = trajectory["residual"].values.reshape(-1, ROWS, STARTS)
    grid = told["scaling"]
    for i, depth in enumerate(grid["depth"]):
        for j, breadth in enumerate(grid["breadth"]):
            best = residual[max(0, depth - 3) : depth, :, :breadth].mean(0).argmin(1)
            by_name = dict(zip(grid["selectors"], grid["accuracy"][i][j], strict=True))
            assert by_name["mean"] == pytest.approx(solved[depth, :, :breadth].mean(), abs=1e-15)
            assert by_name["any"] == pytest.approx(solved[depth, :, :breadth].any(1).mean(), abs=1e-15)
            assert by_name["residual"] == pytest.approx(solved[depth][np.arange(ROWS), best].mean(), abs=1e-15)


def test_every_fixed_point_has_a_float64_residual_below_its_bound_by_a_plain_call(made, told):
    run = al.Run(made / "run")
    points = run.read("analysis")["points"]
    fixed = points[points.converged]
    assert len(fixed) == len(told["fixed_points"]) > 0
    reasoner = al.models.load("eqr-sudoku-4").to(torch.float64)
    z = {name: leaf.clone() for name, leaf in fixed.states.items()}
    drive = reasoner.embed(run.read("puzzles")["instance"][fixed.instance])
    new = z
    for _ in range(reasoner.config.H_cycles):
        new = reasoner.tick(new, drive)
    gap = sum(((new[name] - z[name]) ** 2).flatten(1).sum(1) for name in z).sqrt() / sum((z[name] ** 2).flatten(1).sum(1) for name in z).sqrt()
    assert gap.max() < FIXED
    start = run.trajectory_of("main").last
    moved = al.trees.norm(al.trees.sub(z, al.trees.to(al.trees.take(start, fixed.row), torch.float64))) / al.trees.norm(
        al.trees.to(al.trees.take(start, fixed.row), torch.float64)
    )
    assert torch.tensor([one["moved"] for one in told["fixed_points"]]).double() == pytest.approx(moved, rel=1e-9)


def test_eigenvalues_agree_with_a_dense_jacobian_by_reverse_mode(made, told):
    run = al.Run(made / "run")
    points = run.read("analysis")["points"]
    fixed = points[points.converged][:2]
    reasoner = al.models.load("eqr-sudoku-4").to(torch.float64)
    instance = run.read("puzzles")["instance"]
    for k in range(len(fixed)):
        drive = reasoner.embed(instance[fixed.instance[k : k + 1]])
        shape = fixed.states["z_H"][k].shape
        size = shape.numel()

        def flat(x, drive=drive, shape=shape, size=size):
            z = {"z_H": x[:size].reshape(1, *shape), "z_L": x[size:].reshape(1, *shape)}
            for _ in range(reasoner.config.H_cycles):
                z = reasoner.tick(z, drive)
            return torch.cat([z["z_H"].flatten(), z["z_L"].flatten()])

        x = torch.cat([fixed.states["z_H"][k].flatten(), fixed.states["z_L"][k].flatten()])
        dense = torch.func.jacrev(flat, chunk_size=64)(x)
        values = np.linalg.eigvals(dense.numpy())
        claimed = np.array([complex(*pair) for pair in told["fixed_points"][k]["eigenvalues"]])
        leading = np.sort(np.abs(values))[::-1][: len(claimed)]
        assert np.abs(np.abs(claimed) - leading).max() < SAME_EIGENVALUE
        assert np.abs(claimed[:, None] - values[None]).min(1).max() < SAME_EIGENVALUE


def test_answers_are_judged_by_the_rules_and_agree_with_the_stored_solutions(made, told):
    run = al.Run(made / "run")
    traj, puzzles = run.trajectory_of("main"), run.read("puzzles")["instance"]
    by_rules = tasks.verify(puzzles[traj.instance], traj.readouts["answer"][-1].long())
    by_target = (traj.readouts["answer"][-1].long() == puzzles.targets[traj.instance]).all(1)
    assert by_rules.equal(by_target)
    assert value(told, "solved at the last tick") == by_rules.double().mean().item()


def test_every_finding_has_an_n_and_every_share_an_interval_around_it(told):
    for one in told["findings"]:
        assert one["n"] >= 0 and one["source"]
        if one["unit"].startswith("share of") and one["n"] and one["source"] != "points.row":  # how many were polished is no sample
            assert one["between"] in ("interval", "range")
            assert one["low"] <= one["value"] + 1e-12 and one["value"] <= one["high"] + 1e-12, one["claim"]


def test_the_verdict_has_five_sentences_with_numbers(told):
    assert len(told["verdict"]) == 5
    assert all(re.search(r"\d", sentence) for sentence in told["verdict"])


def test_the_page_holds_every_section_and_asks_nothing_of_the_network(made):
    page = (made / "index.html").read_text()
    for section in ("verdict", "run", "convergence", "solution", "stability", "basins", "trajectories", "scaling", "comparison", "hardest", "reproduce"):
        assert f'id="{section}"' in page, section
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?:https?:)?//", page)
    assert len(page) < 8_000_000


def test_a_model_compared_with_itself_from_the_same_starts_has_the_same_numbers(told):
    last = told["scaling"]["depth"][-1]
    assert value(told, f"solved by one start at depth {last}") == next(
        one["value"] for one in told["findings"] if one["claim"].startswith(f"baseline: solved by one start at depth {last}")
    )


def test_a_second_report_on_the_same_run_reads_what_is_stored(made, tmp_path):
    again = al.report(made / "run", tmp_path)
    first, second = ((folder / "report.json").read_text() for folder in (made, tmp_path))
    assert first == second
    assert len(again.findings) > 30


def test_a_models_name_is_shown_as_it_is_and_never_as_markup(made):
    data = recorded(al.Run(made / "run"))
    data.reasoner["main"].name = "a|b <script>x</script>\n## *c* _d_ `e` [f](g) &amp;"
    shown = r"a\|b &lt;script&gt;x&lt;/script&gt; \#\# \*c\* \_d\_ \`e\` \[f\](g) &amp;amp;"
    lines = as_markdown(data, (), ["One."]).splitlines()
    assert lines[0] == f"# Stability report: {shown}"
    [row] = [line for line in lines if line.startswith("| model |")]
    assert row.startswith(f"| model | {shown} (weights ") and len(re.findall(r"(?<!\\)\|", row)) == 3
    assert sum(line.startswith("## ") for line in lines) == 3


def test_a_run_that_is_not_complete_is_refused(made, tmp_path):
    run = al.Run(made / "run")
    half = al.Run.create(tmp_path / "half", config=run.manifest.config, units=run.manifest.units)
    half.write("puzzles", run.read("puzzles"))
    with pytest.raises(ValueError, match=r"lacks 3 of 4 units.*complete run.*goes on where it stopped"):
        al.report(half, tmp_path)
