"""`attractorlab convert`: official files in our format, and the other commands on both."""

import inspect
import json
from dataclasses import fields
from typing import get_args

import pytest
import torch

import attractorlab as al
from attractorlab.cli import main
from attractorlab.cli_tools import convert
from tests.models import made

SUDOKU_4 = {"width": 16, "sites": 16, "prefix": 2, "vocabulary": 6, "mixer": "mlp"}
CYCLES = {"H_cycles": 2, "L_cycles": 2, "num_heads": 2, "puzzle_emb_len": 2}


@pytest.fixture(params=["trm", "hrm", "eqr"])
def official(request, tmp_path):
    """An official file of a model for side 4, with its configuration beside it."""
    kind = request.param
    weights = made.state_dict(kind, **SUDOKU_4)
    said = {"lambda_": 0.95} if kind == "eqr" else {}
    return kind, made.write_raw(tmp_path / "theirs" / "step_3", weights, made.arch(kind, **CYCLES, **said))


def fails(capsys, code, *words, argv):
    assert main([str(one) for one in argv]) == code
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said and all(word in said for word in words), said


def test_a_converted_model_is_inspected_recorded_and_reported_like_any_other(official, capsys, tmp_path):
    kind, path = official
    out = tmp_path / "new" / "model.safetensors"
    assert main(["convert", str(path), "--out", str(out), "--task", "sudoku-4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["task"], facts["sites"], facts["prefix"], facts["heads"]) == (kind, "sudoku-4", 16, 2, 2)
    assert al.models.load(out).origin().weights == facts["weights"] == al.models.load(path, task="sudoku-4").origin().weights
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == facts["weights"]
    run = ["record", str(out), "--rows", "4", "--starts", "3", "--ticks", "5", "--out", str(tmp_path / "run"), "--json"]
    assert main(run) == 0 and json.loads(capsys.readouterr().out)["done"] == 2
    traj = al.Run(tmp_path / "run").trajectory_of("main")
    assert traj.states["z_H"].shape[2:] == (18, 16) and traj.readouts["answer"].shape[2:] == (16,) and len(traj.instance) == 12
    assert ("continue" in traj.readouts) == (kind != "eqr")
    assert not list(out.parent.glob(".*"))


@pytest.mark.slow
def test_a_report_is_made_of_a_converted_model_beside_a_bundled_one(official, tmp_path):
    _, path = official
    out = tmp_path / "model.safetensors"
    assert main(["convert", str(path), "--out", str(out), "--task", "sudoku-4"]) == 0
    report = ["report", str(out), "--rows", "2", "--starts", "2", "--ticks", "6", "--baseline", "eqr-sudoku-4", "--out", str(tmp_path / "report")]
    assert main(report) == 0
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert "instead of" in (tmp_path / "report" / "index.html").read_text()


def test_what_is_not_known_is_asked_for_with_code_2_and_nothing_is_written(capsys, tmp_path):
    path = made.write_raw(tmp_path / "step_3", made.state_dict("trm", **{**SUDOKU_4, "vocabulary": 7}))
    out = tmp_path / "new" / "x.safetensors"
    fails(capsys, 2, "cannot tell kind,", "task", "H_cycles", "all_config.yaml", argv=["convert", path, "--out", out])
    assert not out.parent.exists()
    options = ["--kind", "trm", "--sites", "16", "--task", "toy", "--H-cycles", "2", "--L-cycles", "3"]
    assert main(["convert", str(path), "--out", str(out), *options]) == 0
    c = al.models.load(out).config
    assert (c.prefix, c.H_cycles, c.L_cycles, c.task) == (2, 2, 3, "toy")


def test_bad_files_are_code_4_and_misuse_is_code_2(capsys, tmp_path, official):
    _, path = official
    new = tmp_path / "x.safetensors"
    whole = path.read_bytes()
    path.with_name("cut").write_bytes(whole[: len(whole) // 2])
    fails(capsys, 4, "cannot be read to its end", argv=["convert", path.with_name("cut"), "--out", new])
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    fails(capsys, 4, "another kind of model: fc.weight", argv=["convert", tmp_path / "other.pt", "--out", new])
    fails(capsys, 4, "is no file of torch.save", argv=["convert", "eqr-sudoku-4", "--out", new])
    fails(capsys, 2, "ends in .safetensors", argv=["convert", path, "--out", tmp_path / "x.pth"])
    fails(capsys, 2, "which is a file", argv=["convert", path, "--out", path / "x.safetensors"])
    fails(capsys, 2, "no-such-file", argv=["convert", "no-such-file", "--out", new])
    same = tmp_path / "same.safetensors"
    same.write_bytes(whole)
    fails(capsys, 2, "to read and to write", argv=["convert", same, "--out", same, "--task", "sudoku-4"])
    assert not new.exists() and same.read_bytes() == whole


def test_given_says_what_load_and_convert_can_be_told():
    known = {one.name: one.type for one in fields(al.models.Given)}
    asked = {name: one.annotation for name, one in inspect.signature(al.models.load).parameters.items() if one.kind is one.KEYWORD_ONLY}
    options = {name: get_args(one.annotation)[0] for name, one in inspect.signature(convert).parameters.items() if name not in ("path", "out", "as_json")}
    assert known == asked == options
