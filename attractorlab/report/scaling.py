"""What `scale` says: the readings of attempts as facts, as Markdown and as a page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import plots
from attractorlab.dynamics.attempts import Halting, halted, under
from attractorlab.dynamics.scaling import scaling_grid
from attractorlab.dynamics.selectors import Select, by_first_halt, by_halt, by_logit_change, by_residual, by_verifier, by_vote
from attractorlab.dynamics.spending import foresight, halting_gain, solve_times
from attractorlab.report.markdown import plain, short
from attractorlab.report.page import Block, Cell, Figure, Section, Table, Text, build_page
from attractorlab.types import Attempts, Foresight, HaltingGain, Origin, ScalingGrid, SolveTimes

BINS = 4
FALLING = (by_residual, by_logit_change)  # fall from tick to tick, and starts that halt are read at ticks that differ: the later one would win
ACCURACY, HALTED, SAVED, THRESHOLDS = "Accuracy by depth and breadth", "The same with halting", "What halting saves", "Other thresholds"
SCORES, TIMES = "What scores foretell", "Ticks to a lasting solution"
CAPTIONS = {
    ACCURACY: "Instances solved, in per cent, by ticks and starts and by the way to choose among the starts.",
    HALTED: "Instances solved, in per cent, where each start leaves at its halting.",
    SAVED: "One start with and without halting, in per cent, and the ticks that it takes.",
    THRESHOLDS: "The same for each threshold, at the last tick.",
    SCORES: "Area under the ROC curve of each score, by the tick at which it is read.",
    TIMES: "The tick by which a share of the starts is solved for good, by difficulty.",
}
SELECTORS = {
    "mean": "a start picked blindly",
    "residual": "lowest mean residual of the state over the last three ticks",
    "logit_change": "lowest mean change of the logits over the last three ticks",
    "vote": "the most frequent whole answer",
    "halt": "highest halting logit",
    "first_halt": "fewest ticks to halting, then lowest residual",
    "verifier": "an answer that obeys the rules, no target read; on puzzles of one solution it equals any, on others it may choose a right answer that is not the stored one",
    "any": "an oracle that knows the target: the ceiling",
}


@dataclass(frozen=True, eq=False)
class Scaled:
    """All readings of one measurement; those on halting are None for a model without a halting value."""

    grid: ScalingGrid
    elastic: ScalingGrid | None
    gain: HaltingGain | None
    foresight: Foresight
    times: SolveTimes
    policies: tuple[HaltingGain, ...]


def read_off(
    runs: Attempts,
    *,
    depth: Sequence[int],
    breadth: Sequence[int],
    level: float,
    cluster: Int[Tensor, " instance"],
    difficulty: Float[Tensor, " instance"] | None,
    halting: Halting | None,
    thresholds: Sequence[float],
) -> Scaled:
    """Every reading of attempts: the grid, the same with halting, what halting saves, at other `thresholds` of `halting` too, what scores foretell, and how long solving takes."""
    select: list[Select] = [by_residual]
    if runs.logit_change is not None:
        select.append(by_logit_change)
    select.append(by_vote)
    if runs.halt is not None:
        select.append(by_halt)
    if runs.policy:
        select.append(by_first_halt)
    if runs.valid is not None:
        select.append(by_verifier)
    if max(breadth) == 1:
        select = []  # with one start there is nothing to select
    grids = {"depth": depth, "breadth": breadth}
    reads = runs.read.tolist()
    told = sorted({*depth, *(2**k for k in range(runs.ticks.bit_length()))} & set(reads))
    return Scaled(
        grid=scaling_grid(runs, **grids, select=select, level=level, cluster=cluster),
        elastic=scaling_grid(halted(runs), **grids, select=[one for one in select if one not in FALLING], level=level, cluster=cluster) if runs.policy else None,
        gain=halting_gain(runs, depth=list(depth), level=level, cluster=cluster) if runs.policy else None,
        foresight=foresight(runs, read=told, level=level, cluster=cluster),
        times=solve_times(runs, difficulty=difficulty, bins=BINS, level=level, cluster=cluster),
        policies=tuple(
            halting_gain(under(runs, replace(halting, above=one)), depth=[runs.ticks], level=level, cluster=cluster) for one in thresholds if runs.halt is not None and halting is not None
        ),
    )


def nouns_of(found: Scaled) -> dict[str, Any]:
    """The readings by name, without those that there are not."""
    named = {name: value for name, value in vars(found).items() if name != "policies" and value is not None}
    return named | {f"policy-{k:04d}": one for k, one in enumerate(found.policies)}


def scaled_of(nouns: Mapping[str, Any]) -> Scaled:
    """The readings that `nouns_of` named."""
    named = {one.name: nouns.get(one.name) for one in fields(Scaled) if one.name != "policies"}
    return Scaled(**named, policies=tuple(nouns[name] for name in sorted(nouns) if name.startswith("policy-")))  # type: ignore[arg-type]


def scaling_facts(found: Scaled) -> dict[str, Any]:
    """The readings as plain numbers."""
    named = {name: _plain(noun) for name, noun in nouns_of(found).items() if not name.startswith("policy-")}
    return named | {"policies": [_plain(one) for one in found.policies]}


def accuracy_table(grid: ScalingGrid) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A heading and a line for each cell of the grid."""
    head = ("depth", "breadth", "ticks", *grid.selectors, "path dependence")
    lines = []
    for i, d in enumerate(grid.depth.tolist()):
        for j, b in enumerate(grid.breadth.tolist()):
            cells = [share(grid.accuracy[i, j, s], grid.low[i, j, s], grid.high[i, j, s]) for s in range(len(grid.selectors))]
            spread = "-" if b == 1 else share(grid.spread[i, j], grid.spread_low[i, j], grid.spread_high[i, j])
            lines.append((str(d), str(b), short(float(grid.map_calls[i, j])), *cells, spread))
    return head, lines


def gain_table(gain: HaltingGain) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A heading and a line for each depth."""
    head: tuple[str, ...] = ("depth", "with halting", "without", "difference", "ticks taken", "depth / ticks", "matched at", "matched / ticks", "halted")
    lines: list[tuple[str, ...]] = []
    for i, d in enumerate(gain.depth.tolist()):
        match = int(gain.matched[i])
        where = f"more than {int(gain.matched_above[i])}" if match < 0 else f"{int(gain.matched_above[i]) + 1} to {match}" if int(gain.matched_above[i]) + 1 < match else str(match)
        lines.append(
            (
                str(d),
                share(gain.accuracy[i], gain.low[i], gain.high[i]),
                share(gain.full[i], gain.full_low[i], gain.full_high[i]),
                share(gain.difference[i], gain.difference_low[i], gain.difference_high[i]),
                number(gain.calls[i], gain.calls_low[i], gain.calls_high[i]),
                number(gain.saving[i], gain.saving_low[i], gain.saving_high[i]),
                where,
                number(gain.ratio[i], gain.ratio_low[i], gain.ratio_high[i]),
                f"{100 * float(gain.halted[i]):.1f} %",
            )
        )
    return head, lines


def foresight_table(told: Foresight) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A heading and a line for each tick."""
    head = ("tick", *(f"{name}, all" for name in told.scores), *(f"{name}, not yet solved" for name in told.scores), "not yet solved", "of them later")
    lines = []
    for i, t in enumerate(told.read.tolist()):
        cells = [number(told.auc[i, s], told.low[i, s], told.high[i, s]) for s in range(len(told.scores))]
        ahead = [number(told.ahead[i, s], told.ahead_low[i, s], told.ahead_high[i, s]) for s in range(len(told.scores))]
        lines.append((str(t), *cells, *ahead, str(int(told.unsolved[i])), str(int(told.later[i]))))
    return head, lines


def times_table(times: SolveTimes) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A heading and a line for each bin of difficulty."""
    head = ("difficulty", "rows", "clusters", *(f"{100 * float(q):g} % solved by tick" for q in times.level_of), f"not solved by {times.ticks}")
    lines = []
    for i in range(len(times.rows)):
        cells = [number(times.quantile[i, k], times.quantile_low[i, k], times.quantile_high[i, k], above=times.ticks) for k in range(len(times.level_of))]
        lines.append(
            (f"{float(times.easiest[i]):g} to {float(times.hardest[i]):g}", str(int(times.rows[i])), str(int(times.clusters[i])), *cells, f"{100 * float(times.censored[i]):.1f} %")
        )
    return head, lines


def scaling_markdown(title: str, about: Mapping[str, Any], found: Scaled) -> str:
    """The measurement in Markdown."""
    lines = [f"# {plain(title)}", "", "| what | value |", "|---|---|", *[f"| {plain(key)} | {plain(str(value))} |" for key, value in about.items()], ""]
    for heading, lead, (head, rows) in _chapters(found):
        lines += [f"## {heading}", "", plain(lead), "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *[f"| {' | '.join(row)} |" for row in rows], ""]
    return "\n".join(lines)


def scaling_page(title: str, about: Mapping[str, Any], found: Scaled) -> str:
    """The measurement as a page with figures."""
    drawn = {
        ACCURACY: [
            (plots.scaling(found.grid), "Depth is ticks." if len(found.grid.breadth) == 1 else "Depth is ticks, breadth is starts; each row of panels is one way to choose among the starts."),
            (plots.frontier(found.grid, found.elastic), "A line joins the cells that no cheaper one equals."),
        ],
        SCORES: [(plots.foresight(found.foresight), "On the right, rows that are solved already when the score is read are left out.")],
        TIMES: [(plots.solve_times(found.times), "A row counts from the tick after which it is never wrong again.")],
    }
    sections = []
    for k, (heading, lead, (head, rows)) in enumerate(_chapters(found)):
        cells: tuple[tuple[Cell, ...], ...] = tuple(tuple(row) for row in rows)
        table = Table(head, cells, caption=CAPTIONS[heading])
        figures = drawn.get(heading, [])
        blocks: tuple[Block, ...] = (Text(lead), *[Figure(fig, caption) for fig, caption in figures], table)
        sections.append(Section(f"part-{k + 1}", heading, "", blocks))
    return build_page(title, sections, facts={key: str(value) for key, value in about.items()})


def _chapters(found: Scaled) -> list[tuple[str, str, tuple[tuple[str, ...], list[tuple[str, ...]]]]]:
    g = found.grid
    level = f"{100 * g.level:g} % intervals redraw {g.clusters} clusters of {g.instances} instances, those of one solution (of Sudoku on side 9 up to symmetry); Wilson's over the clusters where that says nothing"
    words = "; ".join(f"{name}: {SELECTORS[name]}" for name in g.selectors if name in SELECTORS)
    parts = [
        (
            ACCURACY,
            f"Every start followed for depth ticks; one tick is {g.clock}. {level}. {words}. Path dependence: mean over instances of |accuracy over the starts − accuracy of the first|, a dash with one start.",
            accuracy_table(g),
        )
    ]
    if found.elastic is not None and found.gain is not None:
        parts.append((HALTED, f"Each start leaves at its halting: {found.elastic.policy}. Ticks are what all starts of an instance take, on average. Residuals fall from tick to tick, so those of starts read at different ticks do not compare, and none is selected by them.", accuracy_table(found.elastic)))
        parts.append(
            (
                SAVED,
                f"One start, picked blindly, of {found.gain.rows} rows. Matched: the tick at which rows that do not halt are right as often, known to "
                "the ticks that were read; its ratio to the ticks taken is with the larger of them. A dash: no interval can be told.",
                gain_table(found.gain),
            )
        )
    if found.policies:
        head, _ = gain_table(found.policies[0])
        parts.append(
            (
                THRESHOLDS,
                "The same for other thresholds of the halting logit, looked at only at the ticks that were read; a row that was held keeps its halting logit from then on. To choose one by what it does here and to report it on the same puzzles "
                "flatters it: choose on others.",
                (("policy", *head), [(one.policy.removesuffix(", looked at when read"), *row) for one in found.policies for row in gain_table(one)[1]]),
            )
        )
    told = found.foresight
    parts.append(
        (
            SCORES,
            f"Area under the ROC curve of a score read at a tick, for being solved at tick {told.ticks}, over {told.rows} rows; and over those alone that are not solved yet when it is read. "
            f"Scores of state and logits are means over the last three ticks. Intervals redraw {told.clusters} clusters. A dash: all rows alike, or no interval can be told.",
            foresight_table(told),
        )
    )
    parts.append(
        (
            TIMES,
            f"The tick from which a start is solved at every tick up to {found.times.ticks}, by difficulty of the instance. All were followed for {found.times.ticks} ticks: those not solved "
            "then may need more, or never be solved.",
            times_table(found.times),
        )
    )
    return parts


def share(value: Tensor, low: Tensor, high: Tensor) -> str:
    """A share in per cent with its interval."""
    if not math.isfinite(float(value)):
        return "-"
    interval = f" [{100 * float(low):.1f}, {100 * float(high):.1f}]" if math.isfinite(float(low)) else " [-]"
    return f"{100 * float(value):.1f}{interval}"


def number(value: Tensor, low: Tensor, high: Tensor, *, above: int | None = None) -> str:
    """A number with its interval; of ticks, infinite ones are more than `above`."""

    def one(x: Tensor) -> str:
        v = float(x)
        return "-" if math.isnan(v) else (f"> {above}" if above is not None else "inf") if math.isinf(v) else short(v)

    return one(value) if math.isnan(float(value)) else f"{one(value)} [{one(low)}, {one(high)}]" if math.isfinite(float(low)) or math.isinf(float(low)) else f"{one(value)} [-]"


def _plain(noun: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in fields(noun):
        value = getattr(noun, one.name)
        if not isinstance(value, Origin):
            found[one.name] = value.tolist() if isinstance(value, torch.Tensor) else list(value) if isinstance(value, tuple) else value
    return found
