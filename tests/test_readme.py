"""The code in the README runs."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_twenty_lines_run(capsys):
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), scope)
    assert bool(scope["points"].converged.all())
    assert scope["spec"].verdict == ("stable", "stable")
    assert "solved:" in capsys.readouterr().out
