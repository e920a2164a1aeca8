"""What a report makes of ends at rest: which of them are one attractor, which are near a fixed point, and which come to rest later."""

import shutil
from dataclasses import replace

import pytest
import torch

import attractorlab as al
from attractorlab.cli import main
from attractorlab.dynamics.basins import basins_of
from attractorlab.maps import LatentMap
from attractorlab.report.analysis import _to_rest, describe_points, merged
from attractorlab.types import Result

F64 = torch.float64


def run_of(rule, z, *, ticks, tol):
    """A trajectory of a scalar map with all rows of one instance, its convergence, its end states and its polished points."""
    n = len(z)
    f = LatentMap(lambda z, x: {"z": rule(z["z"])}, {"x": torch.zeros(n, 1, dtype=F64)}, clock="tick", instance=torch.zeros(n).long(), start=torch.arange(n))
    traj = al.trace(f, {"z": z}, ticks=ticks, keep=al.only_last())
    conv = al.convergence(traj, tol=tol)
    ends = basins_of(traj, conv, level=0.95, by_state=10 * tol)
    points = al.find_fixed_points(f.take(ends.example), al.trees.take(traj.last, ends.example), tol=1e-12, max_steps=40)
    return conv, ends, replace(points, row=ends.example[points.row])


def test_slow_ends_of_one_attractor_are_one_after_polishing():
    # The multiplier is 0.995 around 10: ends at rest may still be 200 tolerances from it, on either side.
    z = torch.tensor([[9.0], [11.0], [9.01], [-3.0]], dtype=F64)
    conv, ends, points = run_of(lambda z: torch.where(z > 0, 10 + 0.995 * (z - 10), -2 + 0.1 * (z + 2)), z, ticks=900, tol=1e-4)
    assert conv.settled.all() and len(ends.count) > 2, "by end state alone they are told apart"
    once, kept = merged(ends, points, conv)
    assert once.count.tolist() == [3, 1] and once.labels.tolist() == [0, 0, 0, 1]
    assert len(kept) == 2 and sorted(kept.states["z"].flatten().round(decimals=6).tolist()) == [-2.0, 10.0]
    assert once.share.tolist() == [0.75, 0.25] and set(once.example.tolist()) == set(kept.row.tolist())


def test_what_is_told_apart_stays_apart():
    z = torch.tensor([[0.2], [-0.2], [0.4], [-0.9]], dtype=F64)
    conv, ends, points = run_of(lambda z: torch.tanh(2 * z), z, ticks=60, tol=1e-6)
    once, kept = merged(ends, points, conv)
    assert once.labels.equal(ends.labels) and once.count.equal(ends.count) and len(kept) == len(points) == 2


def test_a_slow_cycle_is_not_near_the_fixed_point_that_newton_finds():
    # Turning by 5e-5 a tick looks like rest; the only fixed point is the centre.
    turn = torch.tensor([[torch.cos(torch.tensor(5e-5)), -torch.sin(torch.tensor(5e-5))], [torch.sin(torch.tensor(5e-5)), torch.cos(torch.tensor(5e-5))]], dtype=F64)
    conv, ends, points = run_of(lambda z: z @ turn.T, torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64), ticks=20, tol=1e-4)
    assert conv.verdict == ("settled", "settled") and points.converged.all() and (points.moved > 0.9).all()
    about = describe_points(points, conv)
    assert about["at_rest"] == 2 and about["at_rest_fixed"] == 0 and about["at_rest_away"] == 2 and len(about["moved"]) == 0
    once, _ = merged(ends, points, conv)
    assert once.labels.equal(ends.labels), "both led to the centre, and neither rests there"


def test_a_passage_by_a_saddle_is_no_rest():
    # From beside the saddle at 1 the residual dips below the tolerance for a tick or two and grows again.
    away = torch.tensor([1.5, 0.2], dtype=F64)
    f = LatentMap(lambda z, x: {"z": 1 + (z["z"] - 1) * away}, {}, clock="tick")
    z = {"z": torch.tensor([[1 + 6e-5, 1 + 1e-2]], dtype=F64)}
    assert al.find_fixed_points(f, z, method=al.by_iteration, tol=1e-4, max_steps=9).converged.all()
    assert al.find_fixed_points(f, z, method=_to_rest, tol=1e-4, max_steps=9).result.tolist() == [Result.MAX_STEPS.code]


def test_a_recorded_run_can_be_reported_on_and_a_damaged_one_cannot(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["record", "eqr-sudoku-4", "--rows", "3", "--starts", "2", "--ticks", "12", "--out", str(out)]) == 0
    made = al.report(out, tmp_path / "report")
    assert (tmp_path / "report" / "index.html").exists() and len(made.findings) > 30
    assert al.Run(out).has("analysis") and al.Run(out).missing() == []
    before = (tmp_path / "report" / "report.json").read_bytes()
    shutil.rmtree(out / "segments" / "analysis.zarr")
    shutil.rmtree(out / "segments" / "main-000.zarr" / "trajectory" / "residual" / "c")
    with pytest.raises(ValueError, match=r"damaged segment 'main-000': trajectory/residual/c/0/0 is not what was written.*Remove that segment"):
        al.report(out, tmp_path / "report")
    assert (tmp_path / "report" / "report.json").read_bytes() == before, "the good report stays"
