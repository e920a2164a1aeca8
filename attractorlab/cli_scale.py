"""scale: what depth, breadth, selection and halting buy a model on a file of puzzles."""

import json
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attractorlab.cli_tables import scale_lines, speed
from attractorlab.cli_tools import (
    Data,
    Json,
    Level,
    Model,
    Split,
    TaskName,
    Threads,
    command_line,
    instances,
    must_be_folder,
    must_be_no_folders,
    must_be_usable,
    must_take_files,
    print_json,
    progress_bar,
    stages,
    use,
)
from attractorlab.errors import Unfinished

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from attractorlab.models.feedforward import FeedForward
    from attractorlab.models.recursion import AbstractRecursion
    from attractorlab.report.scaling import Scaled
    from attractorlab.store import Run
    from attractorlab.sweep import Measure
    from attractorlab.types import Attempts, Instance

READINGS = "readings"  # the unit that holds what is read off the attempts
FILLED = 16  # times that a unit of work fills all slots: at its end some are without a row
BATCH = 64  # instances that a feed-forward network takes at a time


def scale(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for index.html, scale.json, scale.md, throughput.json and run/.")],
    task: TaskName = "",
    data: Data = "",
    split: Split = "test",
    rows: Annotated[int | None, typer.Option(help="Puzzles, one of each of as many equal parts of the file.", min=1, show_default="all")] = None,
    depth: Annotated[str, typer.Option(help="Ticks at which starts end, joined by commas.")] = "1,4,16,64",
    breadth: Annotated[str, typer.Option(help="Starts per puzzle, joined by commas.")] = "1,4,16",
    every: Annotated[str, typer.Option(help="What one tick is: segment (what halting is trained on) or recursion.")] = "segment",
    starts: Annotated[str, typer.Option(help="own: the model's own starts; random: normal numbers of its scale, for a model with one fixed start.")] = "own",
    halt_above: Annotated[float, typer.Option(help="A start halts when its halting logit is above this. HRM's own rule, which compares two logits, is not followed.")] = 0.0,
    halt_after: Annotated[int, typer.Option(help="Ticks before which no start halts.", min=1, max=2**20)] = 1,
    halt_rest: Annotated[float | None, typer.Option(help="Residual below which, at three ticks, a start halts too.", show_default="the halting logit alone")] = None,
    thresholds: Annotated[str, typer.Option(help="Other thresholds of the halting logit that are tried on the same starts, joined by commas; empty for none.")] = "1,2,4,8",
    hold: Annotated[
        bool, typer.Option("--hold/--no-hold", help="Stop computing a row at rest at the rounding floor whose answer no tick left could change at its pace. It is then held as it is, scores included: nothing proves that it would have stayed.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    engine: Annotated[str, typer.Option(help="eager, or compiled to fuse what lies between the matrix products (on a CPU this needs a C++ compiler); last digits can differ with it.")] = "eager",
    slots: Annotated[int | None, typer.Option(help="Rows that are computed at a time; last digits can differ with it.", min=1, max=2**20, show_default="what suits the device")] = None,
    shard: Annotated[
        int | None, typer.Option(help="Puzzles in a unit of work: what an interruption loses at most. It changes no number.", min=1, show_default="as many as fill the slots 16 times")
    ] = None,
    part: Annotated[str, typer.Option(help="k/n: every n-th unit alone, from the k-th on, for n processes that share a folder. Without it, what they left is done and all is read.")] = "1/1",
    time_rows: Annotated[int, typer.Option(help="Puzzles on which running all to the end is timed against halting with refill; 0 for none.", min=0)] = 64,
    level: Level = 0.95,
    seed: Annotated[int, typer.Option(help="Of the starts.", min=0, max=2**40)] = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure accuracy over depth and breadth, selectors, halting, foresight and ticks to a solution.

    Starts are followed once, to the largest depth; everything else is read off that. The same command goes on with what an interrupted one has left.
    """
    use(threads)
    depths, breadths, share = _numbers("depth", depth, most=2**20), _numbers("breadth", breadth, most=2**14), _part(part)
    tried = _thresholds(thresholds)
    must_be_folder(out)
    must_be_folder(out / "run")
    must_be_no_folders(out / "scale.json", out / "scale.md", out / "index.html", out / "throughput.json")
    must_take_files(out)
    must_be_usable("scale", device)
    if not math.isfinite(halt_above) or not (halt_rest is None or 0 < halt_rest < math.inf):
        raise ValueError(
            f"`scale` got --halt-above {halt_above:g} and --halt-rest {halt_rest}. A threshold is a finite number, and a residual is above 0. Use --halt-above 0, and --halt-rest 1e-4 or none."
        )
    for name, value, choices in (("every", every, ("segment", "recursion")), ("starts", starts, ("own", "random")), ("dtype", dtype, ("float32", "float64", "bfloat16")), ("engine", engine, ("eager", "compiled"))):
        if value not in choices:
            raise ValueError(f"`scale` got --{name} {value}. It is one of {', '.join(choices)}. Use --{name} {choices[0]}.")
    import torch

    from attractorlab import models

    if models.describe(models.find(model))["model"] == "feedforward":
        if given := [f"--{name} {value}" for name, value, usual in (("part", part, share == (1, 1)), ("engine", engine, engine == "eager")) if not usual]:
            raise ValueError(f"`scale` got {' and '.join(given)} for a feed-forward network, which is measured in one piece, eagerly. Parts and engines are of a reasoner's ticks. Leave them out.")
        facts = _feedforward(models.load_feedforward(model), out, task, data, split, rows, level, dtype, device)
    else:
        reasoner = models.load(model).to(getattr(torch, dtype)).to(device)
        instance = instances("scale", reasoner, task, data, split, rows)
        asked = _asked(
            reasoner, model, instance, depths=depths, breadths=breadths, every=every, starts=starts, above=halt_above, after=halt_after, rest=halt_rest, hold=hold, slots=slots, shard=shard, seed=seed, engine=engine
        )
        facts = _measured(reasoner, instance, asked, out, depths, breadths, level, time_rows, share, {"data": data, "split": split, "level": level, "depth": depths, "breadth": breadths, "thresholds": tried})
    if as_json:
        print_json(facts)
    else:
        typer.echo("\n".join(scale_lines(facts)))
        made = [name for name in ("scale.json", "scale.md", "index.html", "throughput.json", "run") if (out / name).exists()]
        typer.echo(f"\nKept in {out}: {', '.join(made)}.")


def _measured(
    reasoner: "AbstractRecursion", instance: "Instance", asked: "Measure", out: Path, depth: list[int], breadth: list[int], level: float, time_rows: int, part: tuple[int, int], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Attempts, their readings, and the files that say so."""
    if (out / "scale.json").exists() and not (out / "run").exists():
        raise ValueError(f"`scale` got --out {out}, which holds the results of a feed-forward network. Those of a reasoner would replace them. Choose another --out.")
    from attractorlab import tasks
    from attractorlab.report.markdown import finite, write_whole
    from attractorlab.report.scaling import nouns_of, read_off, scaled_of, scaling_facts, scaling_markdown, scaling_page
    from attractorlab.sweep import attempts_in, measure

    command = _of_all_parts(command_line())
    with progress_bar("measuring", 1) as bar:
        run = measure(
            out / "run", instance, reasoner, asked, settings={**settings, "command": command}, also=[READINGS], verify=_verifier(instance), part=part, progress=_with_time_left(bar)
        )
    if missing := [unit for unit in run.missing() if unit != READINGS]:
        raise Unfinished(f"{out} has part {part[0]} of {part[1]} of its units; {len(missing)} are missing. They are read together. Run the other parts, then the command without --part.")
    runs = attempts_in(run)
    if not run.has(READINGS):
        with stages() as say:
            say("reading the attempts")
            cluster = tasks.same_solutions(instance)
            run.commit(READINGS, nouns_of(read_off(runs, depth=depth, breadth=breadth, level=level, cluster=cluster, difficulty=instance.difficulty, halting=asked.halting, thresholds=settings["thresholds"])))
    found = scaled_of(run.read(READINGS))
    about = _about(run, runs, reasoner, instance, asked, found)
    timed = _timed(out / "throughput.json", reasoner, instance, asked, time_rows, run.manifest.created)
    facts = {**about, "throughput": timed, **scaling_facts(found)}
    title = f"Depth, breadth and halting: {reasoner.name}"
    words = {key: value for key, value in about.items() if key != "ids"} | ({"throughput": speed(timed)} if timed else {})
    texts = {
        "scale.json": json.dumps(finite(facts), indent=1, allow_nan=False),
        "scale.md": scaling_markdown(title, words, found),
        "index.html": scaling_page(title, words, found),
    }
    write_whole({out / name: text for name, text in texts.items()})
    return facts


def _about(run: "Run", runs: "Attempts", reasoner: "AbstractRecursion", instance: "Instance", asked: "Measure", found: "Scaled") -> dict[str, Any]:
    """What the numbers are about."""
    computed, whole = int(runs.computed.sum()), runs.ticks * len(runs.instance)
    results = {name: int(n) for name, n in _results(runs.result).items()}
    return {
        "model": asked.series.model,
        "weights": asked.series.weights,
        "dtype": asked.dtype,
        "engine": asked.engine,
        "device": runs.origin.device,
        "task": instance.task,
        "data": run.manifest.config["data"] or f"bundled, {run.manifest.config['split']}",
        "puzzles": len(instance),
        "solutions that differ": found.grid.clusters,
        "starts": asked.series.starts,
        "starts drawn": "the model's own" if asked.series.scale is None else f"normal, of standard deviation {asked.series.scale:g}, cut at two",
        "seed": asked.seed,
        "ticks": asked.ticks,
        "clock": found.grid.clock,
        "halting": "" if asked.halting is None else str(asked.halting),
        "held": runs.held,
        "ticks computed": f"{computed} of {whole}, {100 * computed / whole:.1f} %",
        "results": ", ".join(f"{n} {name}" for name, n in results.items()),
        "level": found.grid.level,
        "command": run.manifest.config["command"],
        **_answers(instance, runs),
    }


def _answers(instance: "Instance", runs: "Attempts | None") -> dict[str, str]:
    """What is said where an answer can be right and not the stored one."""
    from attractorlab import tasks

    several = int(tasks.task_of(instance.task).kind.several(instance.inputs).sum())
    if not several:
        return {}
    text = f"{several} of the puzzles have several right answers; accuracy counts the stored one alone and calls the others wrong"
    if runs is not None and runs.valid is not None and runs.solved is not None:
        text += f": {int((runs.valid[-1] & ~runs.solved[-1]).sum())} of {len(runs.instance)} starts end on such a one"
    return {"answers": f"{text}."}


def _results(codes: "Int[Tensor, ' row']") -> dict[str, int]:
    from attractorlab.types import Result

    return {Result.of(code).name.lower(): int((codes == code).sum()) for code in sorted(set(codes.tolist()))}


def _timed(path: Path, reasoner: "AbstractRecursion", instance: "Instance", asked: "Measure", rows: int, created: str) -> dict[str, Any]:
    """The timing, once in a run, named by when it was `created`: another one on a busy machine would say something else."""
    from attractorlab import tasks
    from attractorlab.report.markdown import write_whole
    from attractorlab.sweep import throughput

    if not rows or asked.halting is None:
        return {}
    n = min(rows, len(instance))
    if path.exists():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
            if found.pop("run", created) == created and found["instances"] == n and speed(found):
                return found
        except (ValueError, TypeError, KeyError, ZeroDivisionError, RecursionError):
            pass  # not whole, so it is timed again
    with stages() as say:
        say(f"timing {n} puzzles to the end, and with halting and refill")
        timed: dict[str, Any] = throughput(reasoner, instance[tasks.spread_rows(n, len(instance))], asked)
    write_whole({path: json.dumps(timed | {"run": created}, indent=1)})
    return timed


def _asked(
    reasoner: "AbstractRecursion",
    model: str,
    instance: "Instance",
    *,
    depths: list[int],
    breadths: list[int],
    every: str,
    starts: str,
    above: float,
    after: int,
    rest: float | None,
    hold: bool,
    slots: int | None,
    shard: int | None,
    seed: int,
    engine: str,
) -> "Measure":
    """The options as what is measured."""
    from attractorlab import models
    from attractorlab.dynamics.attempts import Halting, slots_for, spaced
    from attractorlab.dynamics.orbits import FLOOR
    from attractorlab.dynamics.scaling import one_start
    from attractorlab.sweep import REST, Measure, Series, own_starts

    place = model if model in (*models.names(), *models.ALIASES) else str(Path(model).absolute())
    one = Series(
        model=place,
        weights=reasoner.origin().weights,
        starts=max(breadths),
        scale=None if starts == "own" else reasoner.config.start_scale,
        every=reasoner.config.H_cycles if every == "segment" else 1,
    )
    import torch

    f, z = own_starts(reasoner, instance, torch.tensor([0]), Series(**{**vars(one), "starts": min(2, one.starts)}), seed=seed)
    if one.starts > 1 and one_start(z):
        raise ValueError(
            f"`scale` got --breadth {','.join(map(str, breadths))} for {reasoner.name}, which has one fixed start. All starts of a puzzle would be the same. Use --breadth 1, or --starts random."
        )
    with torch.no_grad():
        halts = "halt" in f.readout(z)
    chosen = slots or min(slots_for(z), len(instance) * one.starts)
    return Measure(
        series=one,
        ticks=max(depths),
        read=tuple(spaced(max(depths), also=depths)),
        halting=Halting(above, after, rest) if halts or rest is not None else None,
        hold=REST * FLOOR[reasoner.dtype] if hold else None,
        slots=chosen,
        shard=shard or -(-FILLED * chosen // one.starts),
        seed=seed,
        dtype=str(reasoner.dtype).removeprefix("torch."),
        engine=engine,
    )


def _verifier(instance: "Instance") -> "Callable[[Int[Tensor, ' row'], Int[Tensor, '... row site']], Bool[Tensor, '... row']]":
    """Whether answers obey the rules."""
    from attractorlab import tasks

    return lambda rows, answers: tasks.verify(instance[rows], answers)


def _feedforward(network: "FeedForward", out: Path, task: str, data: str, split: str, rows: int | None, level: float, dtype: str, device: str) -> dict[str, Any]:
    """The one number of a network that has no ticks and no starts."""
    if (out / "run").exists():
        raise ValueError(f"`scale` got --out {out}, which holds the run of a reasoner. A feed-forward network has no run, and would stand beside that of another model. Choose another --out.")
    import torch

    from attractorlab import tasks
    from attractorlab.models.base import weights_hash
    from attractorlab.report.markdown import finite, plain, write_whole
    from attractorlab.statistics import cluster_share

    instance = instances("scale", network, task, data, split, rows)
    assert instance.targets is not None
    about = {"model": network.name, "weights": weights_hash(network), "task": instance.task, "data": data or f"bundled, {split}", "puzzles": len(instance), "fingerprint of the puzzles": tasks.data_fingerprint(instance), "dtype": dtype, "device": device}
    _refuse_other(out / "scale.json", about)
    network = network.to(getattr(torch, dtype)).to(device)
    found = []
    with progress_bar("measuring", len(instance)) as bar, torch.no_grad():
        for k in range(0, len(instance), BATCH):
            bar(k, f"{k} of {len(instance)}")
            found.append(network(instance.inputs[k : k + BATCH].to(device)).argmax(-1).cpu() == instance.targets[k : k + BATCH])
        bar(len(instance), f"{len(instance)} of {len(instance)}")
    right = torch.cat(found).all(1)
    groups = tasks.same_solutions(instance)
    accuracy, low, high = cluster_share(right, groups, level=level)
    facts = {
        **about,
        "kind": "feedforward",
        "solutions that differ": len(torch.unique(groups)),
        "clock": "none: a feed-forward network has no ticks and no starts, so depth, breadth, starts, slots, seed and halting do not apply",
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "level": level,
        "command": command_line(),
        **_answers(instance, None),
    }
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"# Accuracy: {plain(network.name)}", "", "| what | value |", "|---|---|", *[f"| {key} | {plain(str(value))} |" for key, value in facts.items()], ""]
    write_whole({out / "scale.json": json.dumps(finite(facts), indent=1), out / "scale.md": "\n".join(lines)})
    return facts


def _refuse_other(file: Path, about: Mapping[str, Any]) -> None:
    """Leave the results of another network, of other puzzles, dtype or device, where they are."""
    try:
        there = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return  # none, or none that can be read
    if differ := [key for key, value in about.items() if there.get(key) != value]:
        raise ValueError(f"`scale` got --out {file.parent}, whose results differ in {', '.join(differ)}. They would be replaced by others. Choose another --out, or remove that folder.")


def _numbers(name: str, text: str, *, most: int) -> list[int]:
    """The whole numbers of an option, sorted."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and len(part) <= len(str(most)) and 1 <= int(part) <= most for part in parts):
        raise ValueError(f"`scale` got --{name} {text!r}. It is whole numbers from 1 to {most:,}, joined by commas. Use --{name} 1,4,16.")
    return sorted({int(part) for part in parts})


def _thresholds(text: str) -> list[float]:
    """The numbers of an option that may be empty, sorted."""
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"`scale` got --thresholds {text!r}. It is numbers, joined by commas, or nothing. Use --thresholds 1,2,4.")
    return found


def _part(text: str) -> tuple[int, int]:
    """Which units of how many: (k, n) of k/n."""
    k, _, n = text.partition("/")
    if not (text.isascii() and k.isdecimal() and n.isdecimal() and len(n) < 10 and 1 <= int(k[:10]) <= int(n)):
        raise ValueError(f"`scale` got --part {text}. It is k/n, the k-th of n processes. Use --part 1/2 and --part 2/2.")
    return int(k), int(n)


def _of_all_parts(command: str) -> str:
    """The command without its --part: the same for all processes that begin a run together, and the one that makes all of it."""
    words = shlex.split(command)
    return shlex.join(word for k, word in enumerate(words) if word != "--part" and not word.startswith("--part=") and words[k - 1 : k] != ["--part"])


def _with_time_left(bar: Callable[[float | int, str], None]) -> Callable[[int, int, int], None]:
    """Show units done, and the time that those to come will take at the pace of this call."""
    began = monotonic()

    def show(done: int, left: int, of: int) -> None:
        more = f", {left * (monotonic() - began) / done / 60:.1f} min left" if done and left else ""
        bar((of - left) / max(1, of), f"{left} of {of} units to do{more}" if left else "done")

    return show
