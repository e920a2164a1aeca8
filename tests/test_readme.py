"""The code in the README runs."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


CODE = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def run(code):
    scope = {}
    exec(compile(code, str(README), "exec"), scope)
    return scope


def test_every_block_is_run_here():
    assert len(CODE) == 3


def test_the_twenty_lines_run(capsys):
    scope = run(CODE[0])
    assert bool(scope["points"].converged.all())
    assert scope["spec"].verdict == ("stable", "stable")
    assert "solved:" in capsys.readouterr().out


def test_the_lines_on_where_it_settles_run(capsys):
    scope = run(CODE[1])
    points, curve = scope["points"], scope["curve"]
    assert bool(points.converged.all()) and scope["spec"].verdict == ("stable", "stable", "unstable(4+)")
    assert curve.end == ("range",) and curve.event_kind.count("fold") == 2
    assert bool((scope["traces"].standard_error >= 0).all()) and scope["lyap"].exponents.shape == (64, 3)
    assert not scope["orbits"].found.any()
    assert "rounds that found no more: 4" in capsys.readouterr().out


def test_the_lines_on_hooking_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they keep a run
    scope = run(CODE[2])
    with torch.no_grad():
        output = scope["model"](scope["x"])
    assert scope["seen"].readouts["output"][8].equal(output), "the readout after as many ticks as the model takes"
    assert list(scope["seen"].taps) == ["block"] and scope["seen"].taps["block"].shape == (31, 1, 5, 16)
    assert scope["cut"].edits == ("ablate to zero at block, ticks 3 to 5",)
    assert scope["g"](scope["h0"])["h"].shape == (5, 8)
    gains, multipliers = scope["parts"].gain, scope["parts"].multipliers
    assert torch.allclose(gains.prod(-1), multipliers.abs(), rtol=1e-6)
    assert "block" in capsys.readouterr().out
