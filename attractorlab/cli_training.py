"""The commands that train: train, and curves, which draws what a training wrote down."""

import fcntl
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from attractorlab.cli_tools import Json, Threads, command_line, must_be_folder, must_be_usable, progress_bar, tell, use
from attractorlab.errors import BadData


def train(
    config: Annotated[str, typer.Argument(help="A configuration: eqr-sudoku-4, eqr-sudoku-6, eqr-sudoku-9, eqr-maze-11 or eqr-maze-11-attention; trm-sudoku-6 or trm-sudoku-9; feedforward-sudoku-9; eqr-sudoku-extreme or eqr-maze-30 as published.")],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors, log.jsonl and the folder state.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, as often as needed; unknown keys are refused.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training that the folder holds.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    save_every: Annotated[int, typer.Option(help="Segments between two saves.", min=1)] = 200,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Train a reasoner, or go on with an interrupted training to the same bytes. Under torchrun, its processes share the slots."""
    from attractorlab.training import ranks as processes
    from attractorlab.training.config import read_config
    from attractorlab.training.loop import Trainer
    from attractorlab.training.loop import train as run_training
    from attractorlab.training.preparing import keep_freed_memory

    use(threads)
    keep_freed_memory()
    must_be_folder(out)
    must_be_usable("train", device)
    pairs = [text.partition("=") for text in overrides or []]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"`train` got --set {key!r}. Settings are written key=value. Write, for example, --set lr=0.001.")
        if [other for other, _, _ in pairs].count(key) > 1:
            raise ValueError(f"`train` got --set {key}=... twice. A setting has one value. Leave one out.")
    settings = read_config(config, {key: value for key, _, value in pairs})
    state = out / "state"
    _refuse_other_uses(out, resume)
    ranks, device = processes.join(device)
    with _alone(out) if ranks.rank == 0 else nullcontext():
        _refuse_other_uses(out, resume)  # again: another process may have begun or ended one meanwhile
        if not resume and ranks.rank == 0:
            typer.echo(f"{config}: preparing the puzzles", err=True)
        trainer = Trainer.resume(state, device=device, ranks=ranks) if resume else Trainer(settings, device=device, ranks=ranks)
        if resume and trainer.config != settings:
            raise ValueError(f"`train` was asked to resume {out} with other settings than it was begun with. A training keeps its settings. Repeat the first command and add --resume.")
        with progress_bar(f"training {config}", trainer.config.segments) if ranks.rank == 0 else nullcontext(_silent) as bar:
            bar(trainer.segment, "")

            def show(p: dict[str, float | int]) -> None:
                exact = f"exact {100 * p['exact']:.1f} %, " if "exact" in p else ""  # where a puzzle ended
                bar(int(p["segment"]), f"loss {p['loss']:.4f}, {exact}{p['seconds_left'] / 60:.1f} min left")

            name = config if settings.task == read_config(config, {}).task else f"{config} on {settings.task}"
            path = run_training(trainer, out, name=name, command=_first_command(out), save_every=save_every, report=show)
    processes.part()
    if ranks.rank == 0:
        tell({"model": str(path), "segments": trainer.segment, "parameters": sum(p.numel() for p in trainer.model.parameters())}, as_json)


def _refuse_other_uses(out: Path, resume: bool) -> None:
    """Raise a ValueError if a folder holds a training and none is to be resumed, or the other way round."""
    from attractorlab.training.shards import newest

    state = newest(out / "state")
    if (state or (out / "model.safetensors").exists()) and not resume:
        remedy = "Add --resume to go on with it, or choose" if state else "Its state is gone, so choose"
        raise ValueError(f"`train` found a training in {out}. A folder holds one training. {remedy} another --out.")
    if resume and not state:
        remedy = "Choose another --out to begin it again" if (out / "model.safetensors").exists() else "Leave out --resume to begin it"
        raise ValueError(f"`train` found no state in {out / 'state'} to resume. A training is resumed from its state. {remedy}.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder while it is trained in. The lock goes with the process, however that ends; a folder that is new and still empty after an error goes, too."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"`train` found another process that trains in {folder}. A folder holds one training. Wait for it, or choose another --out.") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        except BaseException:
            if new and list(folder.iterdir()) == [lock]:
                lock.unlink()
                folder.rmdir()
            raise


def _first_command(folder: Path) -> str:
    """The command that began the training in a folder: one that goes on with it makes the same file."""
    from attractorlab.models import describe
    from attractorlab.models.unpickling import CheckpointError

    model = folder / "model.safetensors"
    try:
        said = describe(model).get("command", "") if model.exists() else ""
    except CheckpointError:
        said = ""  # a damaged file is written anew from the state
    return said or shlex.join(word for word in shlex.split(command_line()) if word != "--resume")


def _silent(done: int, text: str) -> None:
    """A progress bar of a process that has nothing to show."""


def curves(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `attractorlab train` wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("curves.html"),
    as_json: Json = False,
) -> None:
    """Draw loss, accuracy and throughput of trainings, finished or not, side by side."""
    from attractorlab import plots
    from attractorlab.report.markdown import write_whole
    from attractorlab.report.page import Figure, Section, build_page

    if out.suffix != ".html" or out.is_dir():
        raise ValueError(f"`curves` got --out {out}. It writes one page. Use a name that ends in .html.")
    if out.parent != Path():
        must_be_folder(out.parent)
    known = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder in folders if known.count(folder.resolve()) > 1]
    if twice:
        raise ValueError(f"`curves` got {twice[0]} twice. Trainings are drawn beside each other, each once. Leave one out.")
    names = [one.name if [other.name for other in known].count(one.name) == 1 else str(folder) for one, folder in zip(known, folders, strict=True)]
    logs = {name: _log(folder) for name, folder in zip(names, folders, strict=True)}
    figure = plots.training(logs)
    out.parent.mkdir(parents=True, exist_ok=True)
    caption = "Loss is on a logarithmic scale; validation is the averaged model without noise, on puzzles that nothing is trained on."
    write_whole({out: build_page("Training", [Section("curves", "Curves", "", (Figure(figure, caption),))], facts=dict(zip(names, map(str, folders), strict=True)))})
    last = {name: lines[-1] if lines else {} for name, lines in logs.items()}
    tell({"page": str(out), **(last if as_json else {name: ", ".join(f"{key} {value:g}" for key, value in line.items()) for name, line in last.items()})}, as_json)


def _log(folder: Path) -> list[dict[str, float]]:
    """The whole lines of a training's log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise ValueError(f"`curves` found no log.jsonl in {folder}. A training writes one into its folder. Give the --out of an `attractorlab train`.")
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        lines.pop()  # it is being written
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            one = json.loads(line)
            found.append({key: float(value) for key, value in {**one, "segment": one["segment"], "loss": one["loss"]}.items()})
            if "validation" in one and not (one["validation_puzzles"] >= 1 and 0 <= one["validation"] <= 1):
                raise ValueError
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            raise BadData(f"{path} is no log of a training in line {number}. Each line is one object of numbers, with segment and loss, and a share where something was validated. Remove the line, or train anew.") from None
    return found
