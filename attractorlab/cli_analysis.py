"""fixed-points, spectrum and lyapunov: where the starts of a run or of a model end, how stable that is, and how neighbours drift apart."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attractorlab.cli_tables import Facts, fixed_point_lines, lyapunov_lines, spectrum_lines
from attractorlab.cli_tools import (
    SEEDS,
    Json,
    Level,
    Threads,
    command_line,
    instances,
    must_be_folder,
    must_take_files,
    print_json,
    progress_bar,
    run_folder,
    stages,
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
DEFAULTS: dict[str, Any] = {"split": "test", "rows": 8, "starts": 4, "ticks": 64, "seed": 0}  # of a model's puzzles and starts
MOST_TICKS = 10**6  # of an orbit: every tick's growth is kept
PANEL = "Of a model: a run has settled these"

Source = Annotated[str, typer.Argument(help="A run folder, the folder of a report, or a model: a bundled one, a model file, a training folder.")]
TaskName = Annotated[str | None, typer.Option(help="Task of the puzzles.", show_default="the model's own", rich_help_panel=PANEL)]
Data = Annotated[str | None, typer.Option(help="Puzzle file (.csv, .csv.gz) or array folder.", show_default="the bundled puzzles", rich_help_panel=PANEL)]
Split = Annotated[str | None, typer.Option(help="Which part of the puzzles.", show_default=DEFAULTS["split"], rich_help_panel=PANEL)]
Rows = Annotated[int | None, typer.Option(help="Puzzles, one of each of as many equal parts of the split.", min=1, show_default=str(DEFAULTS["rows"]), rich_help_panel=PANEL)]
Starts = Annotated[int | None, typer.Option(help="Random starts per puzzle.", min=1, show_default=str(DEFAULTS["starts"]), rich_help_panel=PANEL)]
Ticks = Annotated[int | None, typer.Option(help="Ticks to follow each start.", min=1, show_default=str(DEFAULTS["ticks"]), rich_help_panel=PANEL)]
Seed = Annotated[int | None, typer.Option(help="Of the starts.", min=0, max=SEEDS, show_default=str(DEFAULTS["seed"]), rich_help_panel=PANEL)]
SeriesName = Annotated[str | None, typer.Option("--series", help="Which series of a run: main, in that of a report also baseline or own.", show_default="main")]
Limit = Annotated[int, typer.Option(help="Ends to analyse at most, spread evenly over the puzzles.", min=1)]
Method = Annotated[str, typer.Option(help=f"{', '.join(STEPS)}.")]
FixedTol = Annotated[float, typer.Option(help="Largest relative residual, in float64, of a fixed point.")]
MaxSteps = Annotated[int | None, typer.Option(help="Solver steps for each end.", min=0, show_default="what suits the method, 30 for newton-krylov")]
Out = Annotated[Path | None, typer.Option(help="Folder for the numbers and what they were read off.", show_default="nothing is kept")]


@dataclass(frozen=True)
class Asked:
    """From where the ends are to come. None: the option was left out."""

    command: str
    source: str
    task: str | None
    data: str | None
    split: str | None
    rows: int | None
    starts: int | None
    ticks: int | None
    seed: int | None
    series: str | None
    limit: int


@dataclass(frozen=True, eq=False)
class Opened:
    """A run or a model that was found fit: what it is, as settings, how its ends are had, and what is missing, in a sentence."""

    settings: dict[str, Any]
    size: int
    ends: Callable[[], "Ends"]
    lacks: str


def fixed_points(
    source: Source,
    task: TaskName = None,
    data: Data = None,
    split: Split = None,
    rows: Rows = None,
    starts: Starts = None,
    ticks: Ticks = None,
    seed: Seed = None,
    series: SeriesName = None,
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
    use(threads)
    asked = Asked("fixed-points", source, task, data, split, rows, starts, ticks, seed, series, limit)
    settings = _search(asked, method, tol, max_steps)

    def analyse(ends: "Ends", say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        from attractorlab.report.stability import fixed_point_facts

        points = _polished(ends, settings, say)
        return {"points": points}, fixed_point_facts(ends, points)

    _run(asked, settings, out, as_json, analyse, fixed_point_lines)


def spectrum(
    source: Source,
    task: TaskName = None,
    data: Data = None,
    split: Split = None,
    rows: Rows = None,
    starts: Starts = None,
    ticks: Ticks = None,
    seed: Seed = None,
    series: SeriesName = None,
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
    use(threads)
    asked = Asked("spectrum", source, task, data, split, rows, starts, ticks, seed, series, limit)
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

    _run(asked, settings, out, as_json, analyse, spectrum_lines)


def lyapunov(
    source: Source,
    task: TaskName = None,
    data: Data = None,
    split: Split = None,
    rows: Rows = None,
    starts: Starts = None,
    ticks: Annotated[int, typer.Option(help="Ticks that count.", min=1, max=MOST_TICKS)] = 64,
    transient: Annotated[int, typer.Option(help="Ticks before them, over which the orbit comes to its attractor.", min=0, max=MOST_TICKS)] = 32,
    seed: Seed = None,
    series: SeriesName = None,
    limit: Limit = 8,
    k: Annotated[int, typer.Option("--k", help="Exponents of each orbit.", min=1)] = 4,
    out: Out = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Tell how fast neighbours drift apart: the leading Lyapunov exponents along orbits, in nats per tick.

    Orbits of a model begin at its starts, those of a run where the run ended.
    """
    use(threads)
    asked = Asked("lyapunov", source, task, data, split, rows, starts, None, seed, series, limit)
    settings = {"k": k, "counted": ticks, "transient": transient}

    def analyse(ends: "Ends", say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        from attractorlab.dynamics.lyapunov import lyapunov_exponents
        from attractorlab.report.stability import lyapunov_facts

        say(f"{k} exponents along {len(ends.f.instance)} orbits of {transient + ticks} ticks in float64")
        found = lyapunov_exponents(ends.f, ends.z, k=k, ticks=ticks, transient=transient)
        return {"lyapunov": found}, lyapunov_facts(ends, found)

    _run(asked, settings, out, as_json, analyse, lyapunov_lines)


def _run(
    asked: Asked,
    settings: Mapping[str, Any],
    out: Path | None,
    as_json: bool,
    analyse: Callable[["Ends", Callable[[str], None]], tuple[dict[str, Any], dict[str, Any]]],
    lines: Callable[[Facts], Iterator[str]],
) -> None:
    """Open the source, analyse its ends or read what --out holds of it, keep and print the facts, and say what was missing."""
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
    from attractorlab.dynamics.fixed_points import by_iteration
    from attractorlab.dynamics.minimisation import by_gauss_newton, by_minimisation
    from attractorlab.dynamics.newton import by_newton_krylov
    from attractorlab.dynamics.quasi_newton import by_anderson, by_broyden

    return {
        "newton-krylov": by_newton_krylov,
        "gauss-newton": by_gauss_newton,
        "anderson": by_anderson,
        "broyden": by_broyden,
        "iteration": by_iteration,
        "minimisation": by_minimisation,
    }


def _open(asked: Asked) -> Opened:
    folder = run_folder(asked.source)
    return _open_model(asked) if folder is None else _open_run(asked, folder)


def _open_run(asked: Asked, folder: Path) -> Opened:
    from attractorlab.report.analysis import MAIN
    from attractorlab.report.ends import ends_of_run, units_of
    from attractorlab.store import Run

    refused = [name for name in ("task", "data", *DEFAULTS) if vars(asked)[name] is not None]
    if refused:
        raise ValueError(
            f"`{asked.command}` got --{refused[0]} for the run {folder}. A run has its puzzles, its starts and its ticks. Leave --{refused[0]} out; --limit takes fewer of its ends."
        )
    run = Run(folder)
    series = asked.series or MAIN
    ends, units = ends_of_run(run, series), units_of(run, series)
    missing = [unit for unit in units if not run.has(unit)]
    lacks = "" if not missing else (
        f"{folder} lacks {len(missing)} of {len(units)} units of series {series!r}, the first being {missing[0]!r}. What is complete was analysed. "
        "Run the command that began the run again to complete it, then this one."
    )
    settings = {"source": str(folder.absolute()), "series": series, "recorded": run.manifest.created, "weights": ends.f.origin.weights, "lacks": missing}
    return Opened(settings, _size(ends.reasoner), lambda: ends, lacks)


def _open_model(asked: Asked) -> Opened:
    from attractorlab import models
    from attractorlab.sweep import Series

    if asked.series is not None:
        raise ValueError(f"`{asked.command}` got --series {asked.series} for {asked.source}, which is no run. Only a run has series. Leave --series out, or give the folder of a run.")
    try:
        models.find(asked.source)
    except models.NoModelError:
        raise ValueError(
            f"`{asked.command}` found neither a run nor a model at {asked.source!r}. It takes the folder of a run or of a report, a model file, a training folder or a bundled model. "
            f"Use one of {', '.join(models.names())}, or check the path."
        ) from None
    reasoner = models.load(asked.source)
    chosen = {name: default if vars(asked)[name] is None else vars(asked)[name] for name, default in DEFAULTS.items()}
    if asked.command == "lyapunov":
        chosen["ticks"] = 0
    instance = instances(asked.command, reasoner, asked.task or "", asked.data or "", chosen["split"], chosen["rows"])
    place = asked.source if asked.source in (*models.names(), *models.ALIASES) else str(Path(asked.source).absolute())
    one = Series(model=place, weights=reasoner.origin().weights, starts=chosen["starts"], scale=reasoner.config.start_scale, every=reasoner.config.H_cycles)
    settings = {"source": place, "weights": one.weights, "ids": list(instance.ids), "data": asked.data or "", **chosen}
    return Opened(settings, _size(reasoner), lambda: _follow(reasoner, instance, one, chosen["ticks"], chosen["seed"]), "")


def _follow(reasoner: "AbstractRecursion", instance: "Instance", one: "Series", ticks: int, seed: int) -> "Ends":
    from attractorlab.report.ends import ends_of_model

    with progress_bar("recording", 1) as bar:
        return ends_of_model(reasoner, instance, one, ticks=ticks, seed=seed, progress=lambda done, of: bar(done / max(1, of), f"{done} of {of} units"))


def _size(reasoner: "AbstractRecursion") -> int:
    """The numbers of a state, z_H and z_L."""
    return 2 * reasoner.config.tokens * reasoner.config.width


def _kept(out: Path, config: Mapping[str, Any], command: str) -> dict[str, Any] | None:
    """The facts that --out holds of this very analysis, if it is complete.

    Raises:
        RunError: If it holds something else.
        OSError: If nothing can be written there, which is better known before the work.
    """
    must_be_folder(out)
    must_take_files(out)
    there = run_folder(out)
    if there is None:
        return None
    if there != out or _analysis_in(out) != command:
        raise ValueError(f"`{command}` got --out {out}, which holds a run, a report or another analysis. It stays as it is. Choose another --out.")
    run, path = _place(out, config, command), out / f"{command}.json"
    if run.missing() or not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # somebody wrote into it: it is made anew
        return None


def _analysis_in(out: Path) -> object:
    from attractorlab.store import Run

    return Run(out).manifest.config.get("analysis")


def _keep(out: Path, config: Mapping[str, Any], command: str, nouns: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the nouns as a run of two units, and the facts beside them."""
    from attractorlab.report.markdown import finite, write_whole
    from attractorlab.sweep import PUZZLES

    run = _place(out, config, command)
    run.commit(PUZZLES, {"instance": nouns["instance"]})
    run.commit(command, {name: noun for name, noun in nouns.items() if name != "instance"})
    write_whole({out / f"{command}.json": json.dumps(finite(dict(facts)), indent=1, allow_nan=False)})


def _place(out: Path, config: Mapping[str, Any], command: str) -> "Run":
    from attractorlab.store import Run
    from attractorlab.sweep import PUZZLES

    asked = {**config, "command": command_line()}
    return Run.create(out, config=asked, units=[PUZZLES, command])
