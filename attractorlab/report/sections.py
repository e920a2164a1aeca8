"""The sections of the page: which findings, figures and tables stand where, and the sentence above each."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch

from attractorlab import plots, tasks
from attractorlab.dynamics.orbits import FLOOR
from attractorlab.plots.tables import Markup
from attractorlab.report.analysis import BASELINE, MAIN, NEAR, OWN, Analysis, Recorded, describe_points, interesting, law, solved_ends
from attractorlab.report.findings import basin_numbers, compared, compute, later, number, percent, settling, solving, stability
from attractorlab.report.page import Board, Code, Figure, Findings, Mono, Section, Strong, Table, Text
from attractorlab.types import Finding, ScalingGrid

SYMBOLS = {"sudoku": plots.SUDOKU, "maze": plots.MAZE}
HARDEST = 12
SHOWN_BOARDS = 3


def facts(data: Recorded) -> dict[str, str]:
    """The run card."""
    config, origin, traj = data.run.manifest.config, data.traj[MAIN].origin, data.traj[MAIN]
    series = data.series[MAIN]
    card = {
        "model": f"{data.reasoner[MAIN].name} (weights {origin.weights})",
        "puzzles": f"{len(data.instance)} of {data.instance.task}, {config['split']} part of the bundled ones, one of each of as many equal parts of it; "
        "the bundled puzzles are graded, not a fair draw" if not config["data"] else f"{len(data.instance)} of {config['data']}, one of each of as many equal parts of it",
        "starts": f"{series.starts} a puzzle: {law(data, MAIN)}; seed {config['seed']}",
        "ticks": f"{int(traj.ticks[-1])}, one tick is {data.clock} (one segment)",
        "at rest": f"relative residual below {data.tol:g} at the last 3 ticks; rounding alone leaves about {FLOOR[traj.residual.dtype]:g}; "
        + (f"a row below {config['rest'][MAIN]:g} at 3 ticks in a row is held there" if config["rest"][MAIN] else "every row is followed to the end"),
        "precision": f"run in {origin.dtype}, fixed points and spectra in float64",
        "intervals": f"{100 * data.level:g} %",
        "versions": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "device": origin.device,
        "recorded": str(data.run.manifest.created),
    }
    if several := int(tasks.task_of(data.instance.task).kind.several(data.instance.inputs).sum()):
        card["answers"] = f"{several} of the puzzles have several right answers; last answers are judged by the rules, figures over ticks and scaling by the stored answer alone, which calls the others wrong"
    if BASELINE in data.series:
        card["baseline"] = f"{data.reasoner[BASELINE].name} (weights {data.traj[BASELINE].origin.weights})"
    return card


def figures(data: Recorded, found: Analysis) -> dict[str, go.Figure]:
    """Every figure of the report by name."""
    conv = data.conv[MAIN]
    words = plots.outcome_words(conv)
    fixed = found.points[found.points.converged]
    solved = solved_ends(data)
    drawn = {
        "residual curves": plots.residual_curves(conv, floor=FLOOR[conv.residual.dtype]),
        "settle times": plots.settle_times(conv),
        "settled by solved": plots.settled_by_solved(conv),
        "residual and accuracy": plots.residual_vs_accuracy(conv, level=data.level),
        "basins": plots.basins(found.basins, solved=solved[found.basins.example]),
        "plane": plots.basin_slice(found.plane),
        "trajectories": plots.trajectories([found.pca, found.umap], words),
        "scaling": plots.scaling(found.grid),
    }
    if found.spectrum is not None:
        drawn["spectrum"] = plots.spectrum(found.spectrum, groups=[words[row] for row in fixed.row.tolist()])
    if found.baseline is not None and found.own is not None:
        drawn["compared"] = plots.scaling_lines(compared_grids(data, found))
        drawn["baseline settled by solved"] = plots.settled_by_solved(data.conv[BASELINE])
    return drawn


def compared_grids(data: Recorded, found: Analysis) -> dict[str, ScalingGrid]:
    """The grids of the comparison by the names of their models."""
    assert found.baseline is not None and found.own is not None
    name = data.reasoner[BASELINE].name
    return {
        data.reasoner[MAIN].name: found.grid,
        f"{name}, random starts": found.baseline,
        f"{name}, own start": found.own,
    }


def sections(
    data: Recorded, found: Analysis, numbers: Sequence[Finding], sentences: Sequence[str], drawn: Mapping[str, go.Figure]
) -> list[Section]:
    """The whole report, in order."""
    made = [
        Section("verdict", "Verdict", "Five questions, five answers. Shares have intervals, medians the range of the middle 80 %; each number is recomputable from the run beside this page.", tuple(Text(text) for text in sentences)),
        Section("run", "What was run", "The settings that decide the numbers.", (Table(("what", "value"), tuple(facts(data).items()), "Settings"),)),
        _convergence(data, found, drawn),
        _solution(data, drawn),
        _stability(data, found, drawn),
        _basins(data, found, drawn),
        _trajectories(found, drawn),
        _scaling(data, found, drawn),
    ]
    if "compared" in drawn:
        made.append(_comparison(data, found, drawn))
    return [*made, _hardest(data, found), _reproduce(data)]


def _convergence(data: Recorded, found: Analysis, drawn: Mapping[str, go.Figure]) -> Section:
    numbers = [*settling(data), *later(data, found)]
    by = {one.claim: one for one in numbers}
    lead = (
        f"At the last tick {percent(by['settled at the last tick'])} of the starts are at rest, {percent(by['approaching at the last tick'])} are still getting there, "
        f"{percent(by['periodic at the last tick'])} run on a short cycle, and {percent(by['wandering at the last tick'])} wander."
    )
    return Section(
        "convergence",
        "Does it settle?",
        lead,
        (
            Figure(drawn["residual curves"], "How far one tick moves the state, relative to its norm. A curve that falls to the rounding floor has settled as far as this precision can tell."),
            Figure(drawn["settle times"], "From which tick on rows are at rest, were first solved, and stay solved. A plateau below 100 % is what never gets there; where solved once is also solved for good, the two lines are one."),
            Findings(tuple(numbers)),
        ),
    )


def _solution(data: Recorded, drawn: Mapping[str, go.Figure]) -> Section:
    numbers = solving(data)
    by = {one.claim: one for one in numbers}
    lead = f"{percent(by['solved among settled'])} of the settled starts are solved; of the starts not solved, {percent(by['settled among not solved'])} have settled."
    return Section(
        "solution",
        "Is it the solution?",
        lead,
        (
            Figure(drawn["settled by solved"], "Settled and solved are two questions: a start may settle on a wrong answer, or show the right one while still moving. Answers are checked by the rules of the puzzle."),
            Figure(drawn["residual and accuracy"], "Does a low residual mean a right answer? A curve of an early tick that already rises to the left predicts; one of the last tick only describes."),
            Findings(tuple(numbers)),
        ),
    )


def _stability(data: Recorded, found: Analysis, drawn: Mapping[str, go.Figure]) -> Section:
    numbers = stability(data, found)
    by = {one.claim: one for one in numbers}
    about = describe_points(found.points, data.conv[MAIN])
    fixed, spec = found.points[found.points.converged], found.spectrum
    words = plots.outcome_words(data.conv[MAIN])
    lead = f"{about['at_rest_fixed']} of {about['at_rest']} polished ends at rest are near fixed points in float64, no further than {NEAR:g} of their norm."
    blocks: list[Text | Figure | Findings] = [
        Text(
            f"One end of each attractor seen ({about['at_rest']} of {len(found.ends.count)}, the largest first) and {about['restless']} ends not at rest were polished by Newton's method in float64. "
            f"A fixed point counts with a residual below {found.points.tol:g}; a large move says that there was none where the run ended. Eigenvalues inside the unit circle pull neighbours in, one tick at a time."
        )
    ]
    if spec is None:
        return Section("stability", "How stable is it?", lead, (*blocks, Text("No fixed point was found, so there is no spectrum."), Findings(tuple(numbers))))
    lead += f" {percent(by['fixed points at rest that are stable'], count=True)} of them are stable, with spectral radius {number(by['spectral radius, fixed points at rest (median; range 10-90 %)'])}."
    rows = tuple(
        (data.instance.ids[i], s, words[r], f"{res:.1e}", f"{moved:.1e}", f"{radius:.4f}", f"{defect:.1e}", word)
        for i, s, r, res, moved, radius, defect, word in zip(
            fixed.instance.tolist(),
            fixed.start.tolist(),
            fixed.row.tolist(),
            fixed.residual.tolist(),
            fixed.moved.tolist(),
            spec.radius.tolist(),
            spec.defect.amax(1).tolist(),
            spec.verdict,
            strict=True,
        )
    )
    table = Table(("puzzle", "start", "its start ends", "residual", "moved", "spectral radius", "largest defect", "verdict"), rows, "Every fixed point")
    blocks.append(Figure(drawn["spectrum"], f"The leading eigenvalues of the Jacobian of one tick ({data.clock}) at each fixed point, by how the start it came from ends.", table))
    return Section("stability", "How stable is it?", lead, (*blocks, Findings(tuple(numbers))))


def _basins(data: Recorded, found: Analysis, drawn: Mapping[str, go.Figure]) -> Section:
    numbers = basin_numbers(data, found)
    by = {one.claim: one for one in numbers}
    lead = (
        f"By answer, {percent(by['instances with exactly one attractor seen, by answer, of those with a start at rest'])} of the puzzles with a start at rest show one attractor in {int(found.basins.starts.max())} starts, "
        f"and {percent(by['starts undecided'])} of the starts are undecided."
    )
    one = interesting(data.conv[MAIN], found.ends)[0]
    return Section(
        "basins",
        "How large are the basins?",
        lead,
        (
            Text(f"A share is that of starts drawn as {law(data, MAIN)}: it is the size of a basin under that law, not its volume."),
            Figure(drawn["basins"], "Which answer the starts of each puzzle settle on, as the rules of the puzzle judge it. Grey is undecided: not at rest at the last tick."),
            Figure(
                drawn["plane"],
                f"A plane through the state space of {data.instance.ids[one]}: through the end of its largest basin (centre), a second attractor or else a start (at 1 on the first axis), and "
                "another start. One plane of thousands of dimensions shows what neighbours do, not how large basins are.",
            ),
            Findings(tuple(numbers)),
        ),
    )


def _trajectories(found: Analysis, drawn: Mapping[str, go.Figure]) -> Section:
    pca, umap = found.pca.faithfulness, found.umap.faithfulness
    lead = f"PCA shows {100 * (pca['variance 1'] + pca.get('variance 2', 0.0)):.0f} % of the variance of these paths; trustworthiness is {pca['trustworthiness']:.3f} for PCA and {umap['trustworthiness']:.3f} for UMAP."
    return Section(
        "trajectories",
        "What do the trajectories look like?",
        lead,
        (
            Figure(drawn["trajectories"], "The paths of a few starts on up to three puzzles: the one with most attractors, the slowest to settle, and a typical one. Pictures to look at; no number in this report is read from them."),
        ),
    )


def _scaling(data: Recorded, found: Analysis, drawn: Mapping[str, go.Figure]) -> Section:
    numbers = compute(data, found)
    g = found.grid
    header = ("depth", *[f"{b} start{'s' if b > 1 else ''}" for b in g.breadth.tolist()])
    which = g.selectors.index("residual")
    rows = tuple(
        (depth, *[f"{100 * float(g.accuracy[i, j, which]):.1f} ({100 * float(g.low[i, j, which]):.1f}-{100 * float(g.high[i, j, which]):.1f})" for j in range(len(g.breadth))])
        for i, depth in enumerate(g.depth.tolist())
    )
    table = Table(header, rows, "Solved, in %, by depth and breadth, selected by lowest residual, with intervals over puzzles")
    lead = f"One start: {percent(numbers[0])} solved at depth {int(g.depth[-1])}. Best of {int(g.breadth[-1])} by residual: {percent(numbers[1 + which])}."
    return Section(
        "scaling",
        "What do depth and breadth buy?",
        lead,
        (
            Figure(drawn["scaling"], "Depth is ticks, breadth is starts. mean: a start picked blindly; residual, vote, halt: picked without knowing the answer; any: picked by an oracle, the ceiling.", table),
            Findings(tuple(numbers)),
        ),
    )


def _comparison(data: Recorded, found: Analysis, drawn: Mapping[str, go.Figure]) -> Section:
    numbers = compared(data, found)
    ours, theirs, own = found.grid, found.baseline, found.own
    assert theirs is not None and own is not None
    name, other = data.reasoner[MAIN].name, data.reasoner[BASELINE].name
    accuracy, path = numbers[0], numbers[1]
    lead = (
        f"Over all random starts {name} solves {percent(_mean(ours))} and {other} {percent(_mean(theirs))}; paired by puzzle the difference is {signed(accuracy)}, "
        f"and that of path dependence {signed(path)}."
    )
    rest, good = data.conv[BASELINE].settled, data.conv[BASELINE].solved
    mine = data.conv[MAIN]
    assert good is not None and mine.solved is not None
    pairs = [(mine.settled, mine.solved[-1]), (rest, good[-1])]
    counts = [[f"{int((s == a).logical_and(q == b).sum())}" for a in (True, False) for b in (True, False)] for s, q in pairs]
    table = Table(
        ("model", "settled, solved", "settled, wrong", "unsettled, solved", "unsettled, wrong", "path dependence"),
        tuple((label, *row, f"{float(g.spread[-1, -1]):.4f}") for label, row, g in zip((name, f"{other}, random starts"), counts, (ours, theirs), strict=True)),
        f"Starts by outcome, and path dependence: mean over puzzles of |accuracy over {int(ours.breadth[-1])} starts − accuracy of the first|",
    )
    return Section(
        "comparison",
        "Against the baseline",
        lead,
        (
            Text(_difference(data, path)),
            Figure(drawn["compared"], "Solved over depth from one start, and over breadth at the greatest depth by each way to select a start: a pattern of dashes each, which the pointer names.", table),
            Figure(drawn["baseline settled by solved"], f"Settled and solved for {other} from random starts."),
            Findings(tuple(numbers)),
        ),
    )


def signed(one: Finding) -> str:
    """A difference with its interval."""
    if math.isnan(one.low):
        return f"{100 * one.value:+.1f} points (no interval from {one.n} puzzles)"
    return f"{100 * one.value:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _mean(grid: ScalingGrid) -> Finding:
    at = (-1, -1, 0)
    return Finding("mean", float(grid.accuracy[at]), float(grid.low[at]), float(grid.high[at]), grid.instances, "share", "")


def _difference(data: Recorded, path: Finding) -> tuple[str | Strong | Mono, ...]:
    """How the two models of a comparison differ, what the difference is claimed to do, and whether it does so here."""
    ours, theirs = data.reasoner[MAIN].config, data.reasoner[BASELINE].config
    mine, other = {"kind": type(ours).__name__.removesuffix("Config"), **vars(ours)}, {"kind": type(theirs).__name__.removesuffix("Config"), **vars(theirs)}
    words = [f"{key} {other[key]} instead of {value}" for key, value in mine.items() if key in other and other[key] != value]
    same = "the same random starts" if (ours.sites, ours.width) == (theirs.sites, theirs.width) else "random starts of the same law"
    told = f"Both ran on the same puzzles from {same}; the baseline also from its own. In shape it has {', '.join(words) or 'no difference'}. "
    if other.get("start") != "fixed" or mine.get("start") != "random":
        return (told,)
    outcome = (
        "It does: the path dependence is lower." if path.high < 0 else "It does not: the path dependence is higher." if path.low > 0 else "These puzzles and starts do not decide it."
    )
    return (
        told,
        "The claim of ",
        Strong("Equilibrium Reasoners"),
        f" (arXiv 2605.21488) is that random starts and noise in training make the answer depend less on the start. Does it hold at this size? {outcome}",
    )


def _hardest(data: Recorded, found: Analysis) -> Section:
    conv, traj, task = data.conv[MAIN], data.traj[MAIN], tasks.task_of(data.instance.task)
    good = solved_ends(data)
    n = len(data.instance)
    starts = torch.bincount(conv.instance, minlength=n).double()
    share = torch.bincount(conv.instance, good.double(), minlength=n) / starts
    settled = torch.bincount(conv.instance, conv.settled.double(), minlength=n) / starts
    kinds = torch.bincount(found.ends.of_instance, minlength=n)
    slow = torch.where(conv.settled, conv.settle_tick, int(conv.ticks[-1])).double()
    slowness = torch.bincount(conv.instance, slow, minlength=n) / starts
    order = sorted(range(n), key=lambda k: (float(share[k]), float(settled[k]), -float(slowness[k])))[:HARDEST]
    grade = data.instance.difficulty
    rows = tuple(
        (data.instance.ids[k], "-" if grade is None else f"{float(grade[k]):g}", f"{100 * float(share[k]):.0f} %", f"{100 * float(settled[k]):.0f} %", f"{float(slowness[k]):.1f}", int(kinds[k]))
        for k in order
    )
    table = Table(
        ("puzzle", f"difficulty ({task.kind.unit})", "starts solved", "starts settled", "mean ticks to settle", "attractors seen"),
        rows,
        f"The {len(rows)} puzzles with fewest starts solved, then fewest settled, then slowest; {int(starts[0])} starts each",
        notes=("A start that never settles counts with the last tick in the mean.",),
    )
    shown = order[:SHOWN_BOARDS]
    pick = []
    for k in shown:
        rows_of = (conv.instance == k).nonzero().squeeze(1)
        wrong = rows_of[~good[rows_of]]
        pick.append(int((wrong if len(wrong) else rows_of)[0]))
    markup: Markup = plots.boards(
        data.instance.inputs[shown],
        traj.readouts["answer"][-1][pick].long(),
        targets=None if data.instance.targets is None else data.instance.targets[shown],
        side=task.side,
        symbols=SYMBOLS[task.kind.name],
        blank=task.kind.blank,
        titles=[f"{data.instance.ids[k]}, start {int(conv.start[row])}: {plots.outcome_words(conv)[row]}" for k, row in zip(shown, pick, strict=True)],
    )
    worst = order[0]
    lead = f"Hardest here: {data.instance.ids[worst]}, solved from {100 * float(share[worst]):.0f} % of its starts."
    return Section("hardest", "The hardest cases", lead, (table, Board(markup, "The last answer of one start of each of the hardest three, a failing one where there is one; wrong cells are struck through.")))


def _reproduce(data: Recorded) -> Section:
    config = data.run.manifest.config
    code = "\n".join(
        [
            "import attractorlab as al",
            f"run = al.Run({str(data.run.path)!r})",
            'traj = run.trajectory_of("main")                 # scalars and answers at every tick, states at the last',
            'nouns = run.read("analysis")                     # basins, points, spectrum, grid, ...',
        ]
    )
    blocks = (
        Text(("The same command on the same versions and thread count gives the same numbers: ", Mono(str(config["command"])), ".")),
        Code(str(config["command"])),
        Text("The run folder beside this page is Zarr, readable by any tool that reads it. From Python:"),
        Code(code),
        Table(
            ("series", "model", "weights", "starts", "law of the starts"),
            tuple((name, one.model, one.weights, one.starts, law(data, name)) for name, one in data.series.items()),
            f"What was recorded, seed {config['seed']}",
            notes=(f"Series: {MAIN} is the model under report, {BASELINE} and {OWN} the model it is compared with, where there is one.",),
        ),
    )
    return Section("reproduce", "How to reproduce it", "Everything needed to get these numbers again.", blocks)
