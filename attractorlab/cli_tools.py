"""What commands share: their options, the puzzles they take, how facts and progress are printed; and the command that converts model files."""

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attractorlab.errors import BadData

if TYPE_CHECKING:
    from rich.console import Console

    from attractorlab.models.feedforward import FeedForward
    from attractorlab.models.recursion import AbstractRecursion
    from attractorlab.types import Instance

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 for all cores.", min=0, max=1024)]
Model = Annotated[str, typer.Argument(help="A bundled model, a model file, or a training folder.")]
TaskName = Annotated[str, typer.Option(help="Task of the puzzles; the model's own if left out.")]
Data = Annotated[str, typer.Option(help="Puzzle file (.csv, .csv.gz) or array folder; the bundled puzzles if left out.")]
Split = Annotated[str, typer.Option(help="Which part of the puzzles.")]
Rows = Annotated[int, typer.Option(help="Puzzles, one of each of as many equal parts of the split.", min=1)]
Starts = Annotated[int, typer.Option(help="Random starts per puzzle.", min=1)]
Ticks = Annotated[int, typer.Option(help="Ticks to follow each start; one tick is one segment of the model.", min=3)]
Tol = Annotated[float, typer.Option(help="Relative residual that counts as at rest.")]
Level = Annotated[float, typer.Option(help="Coverage of the intervals.", min=0.5, max=0.9999)]
SEEDS = 2**32 - 1  # torch's generators look at no more bits of a seed
Seed = Annotated[int, typer.Option(help="Of the starts.", min=0, max=SEEDS)]


def convert(
    path: Annotated[str, typer.Argument(help="A file that the trainer of EqR, TRM or HRM wrote, or the folder of one training.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    kind: Annotated[str | None, typer.Option(help="eqr, trm or hrm.")] = None,
    task: Annotated[str | None, typer.Option(help="The task whose puzzles it takes, e.g. sudoku-9.")] = None,
    sites: Annotated[int | None, typer.Option(help="Cells of a puzzle.", min=1)] = None,
    prefix: Annotated[int | None, typer.Option(help="Tokens before those of the puzzle.", min=0)] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.", min=1)] = None,
    positions: Annotated[str | None, typer.Option(help="rotary or none.")] = None,
    H_cycles: Annotated[int | None, typer.Option("--H-cycles", help="Recursions in a segment.", min=1)] = None,
    L_cycles: Annotated[int | None, typer.Option("--L-cycles", help="Updates of z_L in a recursion.", min=1)] = None,
    damping: Annotated[float | None, typer.Option(help="Weight that the old state keeps (EqR).")] = None,
    start_scale: Annotated[float | None, typer.Option(help="Standard deviation of random starts (EqR).")] = None,
    identifier: Annotated[int | None, typer.Option(help="Which of several puzzle embeddings to take.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Write an official EqR, TRM or HRM file in the format of attractorlab.

    What neither the file nor the all_config.yaml beside it says is asked for by name.
    """
    from attractorlab import models

    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"`convert` got --out {out}. It writes one safetensors file. Use a name that ends in .safetensors.")
    if out.parent != Path():
        must_be_folder(out.parent)
    source = models.find(path)
    if out.exists() and out.samefile(source):
        raise ValueError(f"`convert` got {out} to read and to write. The official file stays as it is. Choose another --out.")
    given = models.Given(
        kind=kind,
        task=task,
        sites=sites,
        prefix=prefix,
        heads=heads,
        positions=positions,
        H_cycles=H_cycles,
        L_cycles=L_cycles,
        damping=damping,
        start_scale=start_scale,
        identifier=identifier,
    )
    reasoner = models.convert(source, out, given=given, about={"command": command_line()})
    parameters = sum(p.numel() for p in reasoner.parameters())
    about = models.describe(out)
    facts = {"model": str(out), "kind": about["model"], "weights": reasoner.origin().weights, "weights_from": about["weights_from"], "parameters": parameters}
    tell(facts | json.loads(about["config"]), as_json)


SPINS = "20000"  # turns, some ten microseconds: threads that sleep at once cost a third more where nothing else runs


def use(threads: int) -> None:
    """Compute with so many CPU threads; 0 leaves it to torch.

    Called before torch is loaded, it has threads spin only shortly while they wait for each other, unless the environment says otherwise: an analysis is made of many short steps, and
    where other work wants the processors too, threads that spin on at each of them take ten times as long.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    import torch

    if threads:
        torch.set_num_threads(threads)


def run_folder(path: str | Path) -> Path | None:
    """The folder of the run that `path` is, or that the report in it is of; None if it is neither."""
    for place in (Path(path), Path(path) / "run"):
        try:
            if (place / "manifest.json").exists():
                return place
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    return None


def instances(command: str, reasoner: "AbstractRecursion | FeedForward", task: str, data: str, split: str, rows: int | None) -> "Instance":
    """So many puzzles for a model, one of each of as many equal parts of the split; None: all.

    Raises:
        CheckpointError: If they are of another task than the reasoner's.
        BadData: If there are none.
        ValueError: If there are fewer.
    """
    from attractorlab import tasks
    from attractorlab.models import CheckpointError

    found = tasks.load(task or reasoner.config.task, split=split, path=data or None)
    if found.task != reasoner.config.task:
        raise CheckpointError(
            f"`{command}` got {found.task} for {reasoner.name}, a model for {reasoner.config.task}. A reasoner only takes the task it was built for. "
            f"Use --task {reasoner.config.task}, or a model for {found.task}."
        )
    if not len(found):
        raise BadData(f"{data} holds no puzzles. A run is made of one puzzle or more. Give a file with rows below its header.")
    if rows is None:
        return found
    if rows > len(found):
        raise ValueError(f"`{command}` got --rows {rows} for {len(found)} puzzles. It takes each puzzle once. Use --rows {len(found)} or fewer.")
    return found[tasks.spread_rows(rows, len(found))]


def command_line() -> str:
    """The command that was given."""
    return shlex.join(["attractorlab", *sys.argv[1:]])


def must_be_folder(path: Path) -> None:
    """Raise a ValueError if something that is no folder stands where one is wanted, or the folder has no name of its own."""
    if path == Path():
        raise ValueError("--out names the present folder itself. Output goes into a folder of its own. Choose another --out, such as out/report.")
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"--out leads through {place}, which is a file. Output goes into a folder. Choose another --out.")


def must_be_no_folders(*paths: Path) -> None:
    """Raise a ValueError if a folder stands where a file is to be written."""
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder. A file of that name is written there. Choose another --out, or move the folder away.")


def must_take_files(path: Path) -> None:
    """Raise an OSError if nothing can be written into a folder, or into the one in which it is to be made."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        with TemporaryDirectory(prefix=".attractorlab-", dir=place):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def must_be_usable(command: str, device: str) -> None:
    """Raise a ValueError if this torch cannot compute on a device."""
    import torch

    try:
        if torch.zeros(1, device=device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`{command}` got --device {device!r}, which this torch cannot use ({str(error).splitlines()[0][:80]}). A device is cpu, or cuda on a CUDA build. Use --device cpu."
        ) from None


def tell(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts, one a line or as JSON."""
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        typer.echo(f"{key}: {json.dumps(value) if isinstance(value, (dict, list)) else value}")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    from attractorlab.report.markdown import finite

    typer.echo(json.dumps(finite(value), allow_nan=False))


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[float | int, str], None]]:
    """A progress line on standard error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[says]}"), TimeElapsedColumn())
    with Progress(*columns, console=_console()) as progress:
        task = progress.add_task(title, total=total, says="")

        def show(done: float | int, says: str) -> None:
            progress.update(task, completed=done, says=says)

        yield show


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A line on standard error for each stage of the analysis."""
    console = _console()
    with console.status("analysing") as status:

        def say(stage: str) -> None:
            status.update(stage)
            console.print(stage, highlight=False)

        yield say


def _console() -> "Console":
    """Standard error; it moves on a terminal alone, and not in a notebook, whose stream calls itself one."""
    from rich.console import Console

    return Console(stderr=True, force_jupyter=False, force_terminal=sys.stderr is sys.__stderr__ and sys.__stderr__.isatty())
