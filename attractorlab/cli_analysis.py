"""fixed-points, spectrum and lyapunov: where the starts of a run or of a model end, how stable that is, and how neighbours drift apart."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attractorlab.cli_tables import Facts, fixed_point_lines, lyapunov_lines, spectrum_lines
from attractorlab.cli_tools import (
    Data,
    Json,
    Level,
    Rows,
    Seed,
    Split,
    Starts,
    TaskName,
    Threads,
    Ticks,
    command_line,
    instances,
    must_be_folder,
    print_json,
    progress_bar,
    run_folder,
    stages,
    stored_command,
    use,
)
from attractorlab.errors import Unfinished

if TYPE_CHECKING:
    from attractorlab.dynamics.searching import Solver
    from attractorlab.models.recursion import AbstractRecursion
    from attractorlab.report.ends import Ends
    from attractorlab.store import Run
    from attractorlab.sweep import Series
    from attractorlab.types import FixedPointSet, Instance

STEPS = {"newton-krylov": 30, "gauss-newton": 100, "anderson": 300, "broyden": 300, "iteration": 1000, "minimisation": 5000}
OF_A_MODEL = ("task", "data", "split", "rows", "starts", "seed")  # what a run has settled

Source = Annotated[str, typer.Argument(help="A run folder, the folder of a report, or a model: a bundled one, a model file, a training folder.")]
SeriesName = Annotated[str, typer.Option(help="Which series of a run: main, or in a report's run also baseline or own.")]
Limit = Annotated[int, typer.Option(help="Ends to analyse at most, spread evenly over the puzzles.", min=1)]
Method = Annotated[str, typer.Option(help=f"{', '.join(STEPS)}.")]
FixedTol = Annotated[float, typer.Option(help="Largest relative residual, in float64, of a fixed point.")]
MaxSteps = Annotated[int | None, typer.Option(help="Solver steps for each end.", min=0, show_default="what suits the method, 30 for newton-krylov")]
Out = Annotated[Path | None, typer.Option(help="Folder for the numbers and what they were read off.", show_default="nothing is kept")]


@dataclass(frozen=True)
class Asked:
    """From where the ends are to come; `typed` are the options that were given rather than left to their defaults."""

    command: str
    source: str
    task: str
    data: str
    split: str
    rows: int
    starts: int
    ticks: int
    seed: int
    series: str
    limit: int
    typed: frozenset[str]


@dataclass(frozen=True, eq=False)
class Opened:
    """A run or a model that was found fit: what it is, as settings, how its ends are had, and what is missing, in a sentence."""

    settings: dict[str, Any]
    size: int
    ends: Callable[[], "Ends"]
    lacks: str


def fixed_points(
    ctx: typer.Context,
    source: Source,
    task: TaskName = "",
    data: Data = "",
    split: Split = "test",
    rows: Rows = 12,
    starts: Starts = 8,
    ticks: Ticks = 64,
    seed: Seed = 0,
    series: SeriesName = "main",
    limit: Limit = 96,
    method: Method = "newton-krylov",
    tol: FixedTol = 1e-10,
    max_steps: MaxSteps = None,
    out: Out = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Polish the ends of a run, or of starts followed now, to fixed points in float64.

    Ends of a run are its last states. An end from which no fixed point is found is counted as such.
    """
    asked = Asked("fixed-points", source, task, data, split, rows, starts, ticks, seed, series, limit, _typed(ctx))
    settings = _search(asked, method, tol, max_steps)

    def analyse(ends: "Ends", say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        from attractorlab.report.stability import fixed_point_facts

        points = _polished(ends, settings, say)
        return {"points": points}, fixed_point_facts(ends, points)

    _run(asked, settings, out, threads, as_json, analyse, fixed_point_lines)


def spectrum(
    ctx: typer.Context,
    source: Source,
    task: TaskName = "",
    data: Data = "",
    split: Split = "test",
    rows: Rows = 8,
    starts: Starts = 4,
    ticks: Ticks = 64,
    seed: Seed = 0,
    series: SeriesName = "main",
    limit: Limit = 32,
    k: Annotated[int, typer.Option("--k", help="Eigenvalues at each point, largest modulus first.", min=1)] = 8,
    method: Method = "newton-krylov",
    tol: FixedTol = 1e-10,
    max_steps: MaxSteps = None,
    level: Level = 0.95,
    out: Out = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Tell how stable the fixed points are: the leading eigenvalues of one tick at each that differs.

    The points are those of `fixed-points` with the same options.
    """
    asked = Asked("spectrum", source, task, data, split, rows, starts, ticks, seed, series, limit, _typed(ctx))
    settings = {**_search(asked, method, tol, max_steps), "k": k, "level": level}

    def analyse(ends: "Ends", say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        from attractorlab.dynamics.spectrum import spectrum as spectrum_of
        from attractorlab.report.stability import groups, spectrum_facts

        points = _polished(ends, settings, say)
        fixed = groups(points).points
        say(f"{k} eigenvalues at each of {len(fixed)} fixed points that differ")
        found = spectrum_of(ends.f.take(fixed.row), fixed.states, k=k) if len(fixed) else None
        nouns = {"points": points, "fixed": fixed, "spectrum": found}
        return {name: noun for name, noun in nouns.items() if noun is not None}, spectrum_facts(ends, points, found, level=level)

    _run(asked, settings, out, threads, as_json, analyse, spectrum_lines)


def lyapunov(
    ctx: typer.Context,
    source: Source,
    task: TaskName = "",
    data: Data = "",
    split: Split = "test",
    rows: Rows = 4,
    starts: Starts = 2,
    ticks: Annotated[int, typer.Option(help="Ticks that count.", min=1)] = 64,
    transient: Annotated[int, typer.Option(help="Ticks before them, over which the orbit comes to its attractor.", min=0)] = 32,
    seed: Seed = 0,
    series: SeriesName = "main",
    limit: Limit = 8,
    k: Annotated[int, typer.Option("--k", help="Exponents of each orbit.", min=1)] = 4,
    out: Out = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Tell how fast neighbours drift apart: the leading Lyapunov exponents along orbits, in nats per tick.

    Orbits of a model begin at its starts, those of a run where the run ended.
    """
    asked = Asked("lyapunov", source, task, data, split, rows, starts, 0, seed, series, limit, _typed(ctx))
    settings = {"k": k, "counted": ticks, "transient": transient}

    def analyse(ends: "Ends", say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        from attractorlab.dynamics.lyapunov import lyapunov_exponents
        from attractorlab.report.stability import lyapunov_facts

        say(f"{k} exponents along {len(ends.f.instance)} orbits of {transient + ticks} ticks in float64")
        found = lyapunov_exponents(ends.f, ends.z, k=k, ticks=ticks, transient=transient)
        return {"lyapunov": found}, lyapunov_facts(ends, found)

    _run(asked, settings, out, threads, as_json, analyse, lyapunov_lines)


def _run(
    asked: Asked,
    settings: Mapping[str, Any],
    out: Path | None,
    threads: int,
    as_json: bool,
    analyse: Callable[["Ends", Callable[[str], None]], tuple[dict[str, Any], dict[str, Any]]],
    lines: Callable[[Facts], Iterator[str]],
) -> None:
    """Open the source, analyse its ends or read what --out holds of it, keep and print the facts, and say what was missing."""
    use(threads)
    opened = _open(asked)
    if settings.get("k", 1) > opened.size:
        raise ValueError(
            f"`{asked.command}` got --k {settings['k']} for states of {opened.size} numbers. A state of n numbers has n eigenvalues and n exponents. Use --k {opened.size} or less."
        )
    config = {"analysis": asked.command, **opened.settings, "limit": asked.limit, **settings}
    kept = None if out is None else _kept(out, config, asked.command)
    if kept is not None:
        facts = kept
    else:
        from attractorlab.report.ends import fewer

        ends = fewer(opened.ends(), asked.limit)
        with stages() as say:
            nouns, facts = analyse(ends, say)
        facts = {**config, **facts}
        if out is not None:
            _keep(out, config, asked.command, {"instance": ends.instance, **nouns}, facts)
    if as_json:
        print_json(facts)
    else:
        typer.echo("\n".join(lines(facts)))
        if out is not None:
            typer.echo(f"\nKept in {out}: {asked.command}.json, and the run format for the rest.")
    if opened.lacks:
        raise Unfinished(opened.lacks)


def _typed(ctx: typer.Context) -> frozenset[str]:
    return frozenset(name for name in ctx.params if (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE")


def _search(asked: Asked, method: str, tol: float, max_steps: int | None) -> dict[str, Any]:
    """The settings of the search, checked."""
    if method not in STEPS:
        raise ValueError(f"`{asked.command}` got --method {method}. A fixed point is searched for by one of the methods there are. Use one of {', '.join(STEPS)}.")
    import torch

    from attractorlab.dynamics.orbits import check_tol

    check_tol(tol, torch.float64, asked.command)
    return {"search": method, "tol": tol, "max_steps": STEPS[method] if max_steps is None else max_steps}


def _polished(ends: "Ends", settings: Mapping[str, Any], say: Callable[[str], None]) -> "FixedPointSet":
    from attractorlab.dynamics.fixed_points import find_fixed_points

    say(f"polishing {len(ends.f.instance)} ends by {settings['search']} in float64")
    return find_fixed_points(ends.f, ends.z, method=_solvers()[settings["search"]], tol=settings["tol"], max_steps=settings["max_steps"])


def _solvers() -> dict[str, "Solver"]:
    import attractorlab as al

    return {
        "newton-krylov": al.by_newton_krylov,
        "gauss-newton": al.by_gauss_newton,
        "anderson": al.by_anderson,
        "broyden": al.by_broyden,
        "iteration": al.by_iteration,
        "minimisation": al.by_minimisation,
    }


def _open(asked: Asked) -> Opened:
    folder = run_folder(asked.source)
    return _open_model(asked) if folder is None else _open_run(asked, folder)


def _open_run(asked: Asked, folder: Path) -> Opened:
    from attractorlab.report.ends import ends_of_run, units_of
    from attractorlab.store import Run

    refused = [name for name in (*OF_A_MODEL, *(("ticks",) if asked.ticks else ())) if name in asked.typed]
    if refused:
        raise ValueError(
            f"`{asked.command}` got --{refused[0]} for the run {folder}. A run has its puzzles, its starts and its ticks. Leave --{refused[0]} out; --limit takes fewer of its ends."
        )
    run = Run(folder)
    ends = ends_of_run(run, asked.series)
    units = units_of(run, asked.series)
    missing = [unit for unit in units if not run.has(unit)]
    lacks = (
        f"{folder} lacks {len(missing)} of {len(units)} units of series {asked.series!r}, the first being {missing[0]!r}. What is complete was analysed. "
        "Run the command that began the run again to complete it, then this one."
    )
    settings = {"run": str(folder.absolute()), "series": asked.series, "recorded": run.manifest.created, "weights": ends.f.origin.weights, "missing": missing}
    return Opened(settings, _size(ends.reasoner), lambda: ends, lacks if missing else "")


def _open_model(asked: Asked) -> Opened:
    from attractorlab import models
    from attractorlab.sweep import Series

    if "series" in asked.typed:
        raise ValueError(f"`{asked.command}` got --series {asked.series} for {asked.source}, which is no run. Only a run has series. Leave --series out, or give the folder of a run.")
    try:
        models.find(asked.source)
    except models.NoModelError:
        raise ValueError(
            f"`{asked.command}` found neither a run nor a model at {asked.source!r}. It takes the folder of a run or of a report, a model file, a training folder or a bundled model. "
            f"Use one of {', '.join(models.names())}, or check the path."
        ) from None
    reasoner = models.load(asked.source)
    instance = instances(asked.command, reasoner, asked.task, asked.data, asked.split, asked.rows)
    place = asked.source if asked.source in (*models.names(), *models.ALIASES) else str(Path(asked.source).absolute())
    one = Series(model=place, weights=reasoner.origin().weights, starts=asked.starts, scale=reasoner.config.start_scale, every=reasoner.config.H_cycles)
    settings = {
        "source": place,
        "weights": one.weights,
        "ids": list(instance.ids),
        **{name: vars(asked)[name] for name in ("data", "split", "rows", "starts", "ticks", "seed")},
    }
    return Opened(settings, _size(reasoner), lambda: _follow(reasoner, instance, one, asked), "")


def _follow(reasoner: "AbstractRecursion", instance: "Instance", one: "Series", asked: Asked) -> "Ends":
    from attractorlab.report.ends import ends_of_model

    with progress_bar("recording", 1) as bar:
        return ends_of_model(
            reasoner, instance, one, ticks=asked.ticks, seed=asked.seed, progress=lambda done, of: bar(done / max(1, of), f"{done} of {of} units")
        )


def _size(reasoner: "AbstractRecursion") -> int:
    """The numbers of a state, z_H and z_L."""
    return 2 * reasoner.config.tokens * reasoner.config.width


def _kept(out: Path, config: Mapping[str, Any], command: str) -> dict[str, Any] | None:
    """The facts that --out holds of this very analysis, if it is complete.

    Raises:
        RunError: If it holds something else.
    """
    must_be_folder(out)
    there = run_folder(out)
    if there is None:
        return None
    if there != out:
        raise ValueError(f"`{command}` got --out {out}, which holds a report. A report's folder stays as it is. Choose another --out.")
    run, path = _place(out, config, command), out / f"{command}.json"
    return None if run.missing() or not path.exists() else dict(json.loads(path.read_text(encoding="utf-8")))


def _keep(out: Path, config: Mapping[str, Any], command: str, nouns: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the nouns as a run of two units, and the facts beside them."""
    from attractorlab.report.markdown import finite, write_whole
    from attractorlab.sweep import PUZZLES

    run = _place(out, config, command)
    run.write(PUZZLES, {"instance": nouns["instance"]})
    run.write(command, {name: noun for name, noun in nouns.items() if name != "instance"})
    write_whole({out / f"{command}.json": json.dumps(finite(dict(facts)), indent=1, allow_nan=False)})


def _place(out: Path, config: Mapping[str, Any], command: str) -> "Run":
    from datetime import UTC, datetime

    from attractorlab.store import Run
    from attractorlab.sweep import PUZZLES

    asked = {**config, "command": stored_command(out) or command_line()}
    return Run.create(out, config=asked, units=[PUZZLES, command], created=datetime.now(UTC).isoformat(timespec="seconds"))
