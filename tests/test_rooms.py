"""The plan of the building: who may import whom, how long a file may be, and what stands in no file."""

import ast
import graphlib
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import attractorlab

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "attractorlab"

# A room is a module or folder of the package. It may import itself and the rooms on its right, and no other.
MAY_IMPORT = {
    "errors": "",
    "types": "statistics",
    "trees": "types",
    "points": "types trees",
    "editing": "types points",
    "maps": "types trees points",
    "testing": "types trees maps",
    "statistics": "",
    "store": "errors types",
    "tasks": "errors types",
    "models": "errors types trees maps",
    "training": "errors types trees maps tasks models",
    "dynamics": "types trees points editing maps statistics",
    "sweep": "errors types trees maps store models dynamics",
    "projection": "types trees statistics",
    "probing": "types trees maps statistics",
    "plots": "types statistics",
    "report": "errors types trees maps statistics store tasks models dynamics sweep projection probing plots",
    "doctor": "errors types trees maps store tasks models dynamics projection",
    "probes": "errors types",
    "cli_tools": "errors types store tasks models report",
    "cli_tables": "report",
    "cli_analysis": "errors types store models dynamics sweep report cli_tools cli_tables",
    "cli_training": "errors models training plots report cli_tools",
    "cli_scale": "errors types statistics store tasks models dynamics sweep report cli_tools cli_tables",
    "__main__": "cli",
    "cli": "errors types statistics store tasks models training dynamics sweep report doctor probes cli_tools cli_analysis cli_scale cli_training",
}
FRONT_DOOR = "cli"  # may say `import attractorlab as al`, as a user does
# Who may import these at all. Everybody may use the standard library, torch, numpy and jaxtyping, except where said below.
ONLY = {
    "dask": "store",
    "numba": "tasks projection",
    "plotly": "plots report",
    "rich": "cli_tools",
    "safetensors": "models training",
    "scipy": "statistics dynamics projection probing report",
    "sklearn": "statistics projection probing report",
    "typer": "cli cli_analysis cli_scale cli_tools cli_training",
    "umap": "projection",
    "xarray": "store",
    "yaml": "models",
    "zarr": "store",
}
COMMON = {"torch", "numpy", "jaxtyping"}
LONGEST = 400
# File: why it may be longer.
LONGER: dict[str, str] = {}  # file: why it may be longer
FOLDERS = (".ci", "attractorlab", "benchmarks", "notebooks", "probes", "tests")
TEXT = {"", ".cfg", ".css", ".csv", ".html", ".ipynb", ".js", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules, or of the names in them, that a file imports anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(room: str, code: str) -> list[str]:
    """The imports of `code` that a file of `room` may not make."""
    allowed = {room, *MAY_IMPORT.get(room, "").split()}
    wrong = []
    for name in imported(ast.parse(code)):
        first, _, rest = name.partition(".")
        if first == "attractorlab":
            # `from attractorlab import trace` would go through the front door: a name is imported from its home.
            fine = rest.partition(".")[0] in allowed or (not rest and room == FRONT_DOOR)
        elif first in ONLY:
            fine = room in ONLY[first].split()
        else:
            fine = first in COMMON or first in sys.stdlib_module_names
        if not fine:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_its_neighbours(path: Path) -> None:
    assert wrong_imports(room_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "code", "wrong"),
    [
        ("dynamics", "from attractorlab.tasks import generate", ["attractorlab.tasks.generate"]),
        ("models", "def f():\n    import attractorlab.dynamics.basins", ["attractorlab.dynamics.basins"]),
        ("plots", "from attractorlab import dynamics", ["attractorlab.dynamics"]),
        ("report", "from attractorlab import trace", ["attractorlab.trace"]),
        ("report", "import attractorlab as al", ["attractorlab"]),
        ("dynamics", "import sklearn.cluster", ["sklearn.cluster"]),
        ("plots", "import matplotlib", ["matplotlib"]),
        ("dynamics", "import torch\nfrom attractorlab import trees\nfrom attractorlab.dynamics.settling import settle", []),
    ],
)
def test_a_wrong_import_is_noticed(room: str, code: str, wrong: list[str]) -> None:
    assert wrong_imports(room, code) == wrong


def test_every_room_is_in_the_table_and_every_room_of_the_table_exists() -> None:
    rooms = {room_of(path) for path in sources()} - {"__init__"}
    assert rooms == set(MAY_IMPORT)


def test_the_table_has_no_circle() -> None:
    graph = {room: others.split() for room, others in MAY_IMPORT.items()}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(MAY_IMPORT)


def test_no_file_imports_relatively_or_from_the_future() -> None:
    found = []
    for path in [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "probes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or node.module == "__future__"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_no_file_is_longer_than_a_reader_has_patience() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > LONGEST and name not in LONGER} == {}
    assert [name for name in LONGER if lengths.get(name, 0) <= LONGEST] == []


def test_every_module_says_in_its_first_line_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


@pytest.mark.parametrize("name", attractorlab.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    value = getattr(attractorlab, name)
    home = attractorlab._HOME.get(name)
    if home is None:
        assert value is importlib.import_module(f"attractorlab.{name}")
    elif home == f"attractorlab.{name}":
        # A room that is also a function: which of the two stands here depends on what was imported first, and both can be called.
        assert value in (importlib.import_module(home), getattr(importlib.import_module(home), name)) and callable(value)
    else:
        # Also after the module of the same name was imported.
        assert value is getattr(importlib.import_module(home), name)
        assert getattr(attractorlab, name) is value


def tree(text: str) -> tuple[set[str], set[str]]:
    """Folders of the repository and rooms of the package that a folder tree in a fenced block names.

    The block's first line is ``attractorlab/``; rooms are the indented names that end in ``/`` or ``.py``.
    """
    block = re.search(r"^```\w*\nattractorlab/[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert block, "README.md has no fenced block that begins with attractorlab/"
    folders, rooms = {"attractorlab"}, set()
    for line in block.group(1).splitlines():
        names = re.findall(r"(?:^|(?<=\s))([\w.-]+?)(?:/|\.py)(?=\s|$)", line)
        (rooms if line.startswith((" ", "│", "├", "└")) else folders).update(names)
    return folders, rooms


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    folders, rooms = tree((ROOT / "README.md").read_text())
    assert rooms - {"__init__"} == {*MAY_IMPORT, "assets"}
    assert folders == {name for name in FOLDERS if not name.startswith(".")}


def test_a_tree_is_read_in_one_column_or_two() -> None:
    text = "```\nattractorlab/\n  __init__.py   names      types.py  the nouns\n  tasks/        make an Instance: sudoku, maze\nprobes/  questions\n```\n"
    assert tree(text) == ({"attractorlab", "probes"}, {"__init__", "types", "tasks"})


def test_what_a_reader_cannot_use_stands_in_no_file() -> None:
    # Spelt in two halves, or this file would find itself.
    unfinished = rf"\b(?:TO{'DO'}|FIX{'ME'}|X{'XX'})\b"
    machine = rf"(?<![\w.~)}}-])/(?:wo{'rk'}|ro{'ot'}|ho{'me'}|Us{'ers'})/"
    files = [path for name in FOLDERS for path in (ROOT / name).rglob("*")] + list(ROOT.iterdir())
    found = []
    for path in files:
        if path.is_file() and path.suffix in TEXT and not {"__pycache__", ".ruff_cache", ".ipynb_checkpoints"} & set(path.parts):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(f"{unfinished}|{machine}", line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_every_requirement_has_a_tested_version_that_meets_its_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a line of constraints.txt is no plain name==version"
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
        assert not any(one.operator in ("<", "<=", "==", "~=") for one in requirement.specifier), f"{text} has an upper bound"


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first and first.group(1) == attractorlab.__version__
