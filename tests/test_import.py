"""Importing the package, or asking the command for help, loads nothing large."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"dask", "numba", "numpy", "plotly", "scipy", "sklearn", "torch", "umap", "xarray", "zarr"}
HELP_SECONDS = 1.0  # of processor time, the best of three: waiting for other programs does not count

IMPORT = "import attractorlab"
DIRECTORY = "import attractorlab; dir(attractorlab)"
HELP = """
import sys
sys.argv = ["attractorlab", "--help"]
from attractorlab.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def run(code: str) -> tuple[set[str], str, float]:
    """The top-level modules that a fresh interpreter holds after `code`, what it printed, and its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    modules = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    return modules, done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("code", [IMPORT, DIRECTORY, HELP], ids=["import", "dir", "help"])
def test_nothing_large_is_loaded(code: str) -> None:
    modules, _, _ = run(code)
    assert "attractorlab" in modules
    assert not modules & HEAVY


def test_a_large_import_would_be_noticed() -> None:
    modules, _, _ = run("import numpy")
    assert modules & HEAVY == {"numpy"}


def test_help_answers_in_under_a_second_and_names_the_report() -> None:
    runs = [run(HELP) for _ in range(3)]
    assert min(seconds for _, _, seconds in runs) < HELP_SECONDS
    assert all("report" in printed for _, printed, _ in runs)


def test_an_unknown_name_is_refused_with_a_remedy() -> None:
    import attractorlab

    with pytest.raises(AttributeError, match=r"attractorlab has no 'tracee'.*attractorlab\.__all__.*Check the spelling"):
        attractorlab.tracee  # noqa: B018
