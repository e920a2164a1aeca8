"""The command line: one subcommand per verb. The only place that prints."""

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attractorlab.cli_analysis import fixed_points, lyapunov, spectrum
from attractorlab.cli_scale import scale
from attractorlab.cli_tools import (
    Data,
    Json,
    Level,
    Model,
    Rows,
    Seed,
    Split,
    Starts,
    TaskName,
    Threads,
    Ticks,
    Tol,
    command_line,
    convert,
    instances,
    must_be_folder,
    print_json,
    progress_bar,
    run_folder,
    stages,
    tell,
    use,
)
from attractorlab.cli_training import curves, train
from attractorlab.errors import BadData, SpaceError, Unfinished

if TYPE_CHECKING:
    from attractorlab.models.recursion import AbstractRecursion
    from attractorlab.store import Run

USAGE, PARTIAL, BAD_DATA = 2, 3, 4
BY_SIGNAL = 130  # what typer makes of Ctrl-C
INTERRUPTED = "Interrupted. What was complete is kept. Give the same command again to go on (for `train`, with --resume once something was saved)."

app = typer.Typer(
    help="Attractor analysis of iterative latent reasoners: do they settle, on what, how stably, and is it the solution?",
    epilog="Exit codes: 0 done, 2 wrong usage, 3 not finished (what is complete is kept), 4 bad data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Baseline = Annotated[str, typer.Option(help='A model to compare with, "none", or "auto" for the bundled one without random starts.')]


@app.command()
def report(
    model: Model = "eqr-sudoku-9",
    task: TaskName = "",
    data: Data = "",
    split: Split = "test",
    rows: Rows = 48,
    starts: Starts = 8,
    ticks: Ticks = 64,
    tol: Tol = 1e-4,
    level: Level = 0.95,
    seed: Seed = 0,
    baseline: Baseline = "auto",
    out: Annotated[Path, typer.Option(help="Folder for index.html, report.json, report.md and run/.")] = Path("out/report"),
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Record a model on puzzles and write a stability report.

    An interrupted report goes on where it stopped when the same command is given again.
    """
    use(threads)
    must_be_folder(out)
    run = _record("report", out / "run", model, task, data, split, rows, starts, ticks, tol, level, seed, baseline)
    import attractorlab as al

    with stages() as say:
        made = al.report(run, out, say=say)
    if as_json:
        print_json({"report": str(out / "index.html"), "findings": [vars(one) for one in made.findings]})
    else:
        typer.echo((out / "report.md").read_text().split("## ", 2)[1].removeprefix("Verdict\n").strip())
        typer.echo(f"\nOpen {out / 'index.html'} in a browser.")


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    model: Model = "eqr-sudoku-9",
    task: TaskName = "",
    data: Data = "",
    split: Split = "test",
    rows: Rows = 48,
    starts: Starts = 8,
    ticks: Ticks = 64,
    tol: Tol = 1e-4,
    level: Level = 0.95,
    seed: Seed = 0,
    baseline: Baseline = "none",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Record trajectories into a run folder, without analysing them."""
    use(threads)
    run = _record("record", out, model, task, data, split, rows, starts, ticks, tol, level, seed, baseline)
    facts = {"run": str(out), "units": len(run.manifest.units), "done": len(run.done()), "bytes": run.bytes()}
    tell(facts, as_json)


app.command()(train)
app.command()(curves)
app.command()(fixed_points)
app.command()(spectrum)
app.command()(lyapunov)
app.command()(scale)
app.command()(convert)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A bundled model, a model file, a training folder or a run folder.")],
    as_json: Json = False,
) -> None:
    """Say what a model or a run holds."""
    if (folder := run_folder(path)) is not None:
        from attractorlab.store import Run

        run = Run(folder)
        missing = run.missing()
        facts: dict[str, Any] = {"run": str(run.path), "created": run.manifest.created, "complete": len(run.done()), "missing": len(missing), "bytes": run.bytes()}
        tell(facts | {key: value for key, value in run.manifest.config.items() if key != "ids"}, as_json)
        if missing:
            raise typer.Exit(PARTIAL)
        return
    from attractorlab import models
    from attractorlab.models.base import weights_hash

    about = models.describe(models.find(path))
    model = models.load_feedforward(path) if about["model"] == "feedforward" else models.load(path)
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"name": about["name"], "kind": about["model"], "weights": weights_hash(model), "parameters": parameters, **json.loads(about["config"])}
    facts |= {key: about[key] for key in ("command", "segments", "data", "source", "weights_from") if key in about}
    tell(facts | ({"training": json.loads(about["training"])} if "training" in about else {}), as_json)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A run folder, or the folder of a report.")],
    as_json: Json = False,
) -> None:
    """Check every number of a run against the checksum that was stored with it, and say what is missing, and what a killed writer left unfinished."""
    from attractorlab.store import Run

    run = Run(run_folder(path) or path)
    damaged = {unit: said for unit in run.done() if (said := run.damage(unit))}
    tell({"run": str(run.path), "whole": len(run.done()) - len(damaged), "damaged": damaged, "missing": run.missing(), "unfinished": run.unfinished()}, as_json)
    if damaged or run.missing():
        raise typer.Exit(BAD_DATA if damaged else PARTIAL)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check that the installation works and gives right numbers."""
    from attractorlab.doctor import examine

    checks = examine()
    if as_json:
        print_json({name: {"ok": good, "says": says} for name, good, says in checks})
    else:
        for name, good, says in checks:
            typer.echo(f"{'ok  ' if good else 'FAIL'}  {name}: {says}")
    if not all(good for _, good, _ in checks):
        raise typer.Exit(PARTIAL)


@app.command()
def probe(
    name: Annotated[str, typer.Argument(help="A probe in ./probes, or the path of one.")],
    log: Annotated[bool, typer.Option(help="Add the outcome to LOG.md beside the probe.")] = True,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Run one probe, a file that asks one question, and log its outcome."""
    from attractorlab.probes import add_to_log, run_probe

    use(threads)
    outcome = run_probe(path := Path(name) if name.endswith(".py") else Path("probes") / f"{name}.py")
    if log:
        add_to_log(path, outcome, command=command_line())
    if as_json:
        print_json({"question": outcome.question, "answer": outcome.answer, "findings": [vars(one) for one in outcome.findings]})
    else:
        typer.echo(outcome.text())


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Misuse is 2, work that could not be finished 3, data that cannot be used 4; each prints one message and no traceback.
    """
    command, words = typer.main.get_command(app), sys.argv[1:] if argv is None else argv
    if odd := [word for word in words if word.encode(errors="replace") != word.encode(errors="surrogateescape")]:
        return _fail(f"{odd[0]!r} is no text in UTF-8. The command is kept with its results, as text. Rename the file or folder.", USAGE)
    try:
        code = command.main(words, prog_name="attractorlab", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, PARTIAL)
    except typer.Exit as ended:
        return int(ended.exit_code) if ended.exit_code != BY_SIGNAL else _fail(INTERRUPTED, PARTIAL)
    except typer.TyperException as error:
        said = error.format_message().rstrip(". ") or "No command was given"
        return _fail(f"{said}. See attractorlab --help.", USAGE)
    except (SpaceError, Unfinished) as error:
        return _fail(str(error), PARTIAL)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _fail(f"{str(error.filename)!r} is too long for a path. No file can have such a name. Give a shorter one.", USAGE)
        return _fail(f"{error}. The work could not be finished; what was complete is kept. Make room or choose another --out.", PARTIAL)
    except ValueError as error:
        return _fail(str(error), BAD_DATA if isinstance(error, BadData) else USAGE)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("allocate memory", "enough memory", "out of memory")):
            raise
        return _fail(f"{str(error).splitlines()[0][:160]} What was asked for does not fit into memory; what was complete is kept. Ask for less at a time.", PARTIAL)
    if code == BY_SIGNAL:
        return _fail(INTERRUPTED, PARTIAL)
    return int(code or 0)


def _record(
    command: str, folder: Path, model: str, task: str, data: str, split: str, rows: int, starts: int, ticks: int, tol: float, level: float, seed: int, baseline: str
) -> "Run":
    must_be_folder(folder)
    from attractorlab import models
    from attractorlab.report.analysis import ANALYSIS, BASELINE, MAIN, OWN
    from attractorlab.sweep import Series, record

    reasoner = models.load(model)
    instance = instances(command, reasoner, task, data, split, rows)

    def series(name: str, one: "AbstractRecursion", count: int, scale: float | None) -> tuple["AbstractRecursion", Series]:
        # A run is read later, perhaps from another folder.
        place = name if name in (*models.names(), *models.ALIASES) else str(Path(name).absolute())
        return one, Series(model=place, weights=one.origin().weights, starts=count, scale=scale, every=one.config.H_cycles)

    asked = {MAIN: series(model, reasoner, starts, reasoner.config.start_scale)}
    if other := _baseline(baseline, reasoner):
        second = models.load(other)
        reasoner_task, other_task = reasoner.config.task, second.config.task
        if reasoner_task != other_task:
            raise models.CheckpointError(f"`{command}` got a model for {reasoner_task} and a baseline for {other_task}. Both solve the same puzzles. Use --baseline none.")
        if second.config.H_cycles != reasoner.config.H_cycles:
            raise models.CheckpointError(
                f"`{command}` got a model of {reasoner.config.H_cycles} recursions a segment and a baseline of {second.config.H_cycles}. Numbers of two clocks cannot stand side by side. "
                "Use --baseline none, and report on each."
            )
        asked[BASELINE] = series(other, second, starts, reasoner.config.start_scale)
        asked[OWN] = series(other, second, 1, None)
    settings = {"data": data, "split": split, "level": level, "command": command_line()}
    from attractorlab.dynamics.orbits import check_tol

    check_tol(tol, reasoner.dtype, command)
    with progress_bar("recording", 1) as bar:
        return record(
            folder,
            instance,
            asked,
            ticks=ticks,
            seed=seed,
            tol=tol,
            reported=command == "report",
            settings=settings,
            also=[ANALYSIS],
            progress=lambda done, of: bar(done / max(1, of), f"{done} of {of} units"),
        )


def _baseline(asked: str, reasoner: "AbstractRecursion") -> str:
    from attractorlab import models

    if asked != "auto":
        return "" if asked == "none" else asked
    twin = reasoner.config.task and f"trm-{reasoner.config.task}"
    return twin if twin in models.names() and reasoner.name != twin else ""


def _fail(message: str, code: int) -> int:
    typer.echo(f"attractorlab: {message}", err=True)
    return code
