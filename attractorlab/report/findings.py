"""The numbers of a report, each with its interval and n; and the verdict in five sentences."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab.report.analysis import (
    BASELINE,
    LATER,
    MAIN,
    NEAR,
    OWN,
    Analysis,
    Recorded,
    describe_points,
    law,
    solved_ends,
    solved_later,
)
from attractorlab.statistics import clopper_pearson, cluster_auc, cluster_mean, effective_n, wilson
from attractorlab.types import Finding, ScalingGrid


def findings(data: Recorded, found: Analysis) -> tuple[Finding, ...]:
    """Every number that the report claims, in the order of its sections."""
    return (*settling(data), *later(data, found), *solving(data), *stability(data, found), *basin_numbers(data, found), *compute(data, found), *compared(data, found))


def share(
    claim: str, values: Bool[Tensor, " row"], instance: Int[Tensor, " row"], *, level: float, source: str, unit: str = "share of starts"
) -> Finding:
    """A share of rows, its Wilson interval widened for the starts of an instance being alike.

    `n` counts rows; the interval takes them for as many independent ones as they are worth.
    """
    n = len(values)
    if n == 0:
        return Finding(claim, math.nan, 0.0, 1.0, 0, unit, source)
    p = values.double().mean()
    worth = torch.tensor(effective_n(values, instance), dtype=torch.float64)
    low, high = wilson(p * worth, worth, level=level)
    return Finding(claim, float(p), float(low), float(high), n, unit, source)


def exact(claim: str, count: int, n: int, *, level: float, unit: str, source: str) -> Finding:
    """A share of independent things, with the Clopper-Pearson interval."""
    low, high = clopper_pearson(count, n, level=level) if n else (0.0, 1.0)
    return Finding(claim, count / n if n else math.nan, low, high, n, unit, source)


def spread(claim: str, values: Float[Tensor, " item"], *, unit: str, source: str, at: float = 0.5) -> Finding:
    """A quantile of a sample (the median unless told) with the 10 % and 90 % quantiles as its range."""
    v = values[~values.isnan()].double()
    if len(v) == 0:
        return Finding(claim, math.nan, math.nan, math.nan, 0, unit, source, "range")
    q = torch.quantile(v, torch.tensor([0.1, at, 0.9], dtype=torch.float64))
    return Finding(claim, float(q[1]), float(q[0]), float(q[2]), len(v), unit, source, "range")


def settling(data: Recorded) -> list[Finding]:
    """Does it settle, and when."""
    conv = data.conv[MAIN]
    words = {"settled": conv.settled, "periodic": conv.period > 1}
    words |= {one: torch.tensor([word == one for word in conv.verdict]) for one in ("approaching", "wandering", "diverged")}
    found = [share(f"{word} at the last tick", mask, conv.instance, level=data.level, source="convergence.verdict") for word, mask in words.items()]
    found.append(spread("tick from which settled rows are at rest (median; range 10-90 %)", conv.settle_tick[conv.settled].double(), unit=data.clock, source="convergence.settle_tick"))
    found.append(spread("factor by which the residual shrinks per tick (median; range 10-90 %)", conv.rate[conv.settled], unit=f"per {data.clock}", source="convergence.rate"))
    return found


def later(data: Recorded, found: Analysis) -> list[Finding]:
    """What becomes of starts that are not at rest when they are followed longer."""
    if found.later is None:
        return []
    one = found.later
    rest = one.converged
    more = f"within {LATER} times the ticks more"
    right = solved_later(data, one)[rest]
    return [
        share(f"at rest {more}, of the starts not at rest", rest, one.instance, level=data.level, source="later.result", unit="share of unsettled starts tried"),
        share(f"solved, of those at rest {more}", right, one.instance[rest], level=data.level, source="later.states", unit="share of late settlers"),
    ]


def solving(data: Recorded) -> list[Finding]:
    """Is the place where it settles the solution."""
    conv = data.conv[MAIN]
    good = solved_ends(data)
    rest = conv.settled
    found = [share("solved at the last tick", good, conv.instance, level=data.level, source="trajectory.answer")]
    found.append(share("solved among settled", good[rest], conv.instance[rest], level=data.level, source="trajectory.answer, convergence.period", unit="share of settled starts"))
    found.append(share("solved among not settled", good[~rest], conv.instance[~rest], level=data.level, source="trajectory.answer, convergence.period", unit="share of unsettled starts"))
    wrong = ~good
    found.append(share("settled among not solved", rest[wrong], conv.instance[wrong], level=data.level, source="trajectory.answer, convergence.period", unit="share of unsolved starts"))
    assert conv.first_solved is not None and conv.stays_solved is not None
    ever = conv.first_solved >= 0
    found.append(share("once solved, still solved at the last tick", (conv.stays_solved >= 0)[ever], conv.instance[ever], level=data.level, source="convergence.solved", unit="share of starts ever solved"))
    assert conv.solved is not None
    for t in (t for t in (1, 2, 4, 8, 16) if t < len(conv.ticks)):
        yet = ~conv.solved[t]
        # "Will solve" and "has solved" are two things: the second line leaves out what is solved already.
        for name, rows in (("for a solved end", torch.ones_like(yet)), ("for a solved end, of starts not solved by then", yet)):
            area, low, high = cluster_auc(-conv.residual[t][rows], good[rows], conv.instance[rows], level=data.level) if bool(rows.any()) else (math.nan,) * 3
            found.append(Finding(f"AUC of a low residual at tick {t} {name}", area, low, high, int(rows.sum()), "area under the ROC curve; none where all or no ends are solved", "convergence.residual"))
    return found


def stability(data: Recorded, found: Analysis) -> list[Finding]:
    """On what it settles, and how stable that is."""
    about = describe_points(found.points, data.conv[MAIN])
    out = [
        Finding("distinct ends at rest that were polished", _ratio(about["at_rest"], len(found.ends.count)), math.nan, math.nan, len(found.ends.count), "share of distinct ends at rest", "points.row"),
        exact(f"ends at rest that are within {NEAR:g} of the norm of a fixed point", about["at_rest_fixed"], about["at_rest"], level=data.level, unit="share of distinct ends at rest", source="points.result, points.moved"),
        exact("ends at rest from which polishing led further away: no fixed point there", about["at_rest_away"], about["at_rest"], level=data.level, unit="share of distinct ends at rest", source="points.moved"),
        spread("relative distance that polishing moved ends at rest (median; range 10-90 %)", about["moved"], unit="of the state's norm", source="points.moved"),
        Finding("largest relative distance that polishing moved an end at rest", _top(about["moved"]), math.nan, math.nan, len(about["moved"]), "of the state's norm", "points.moved"),
        Finding("largest float64 residual of a fixed point", _top(about["residual"]), math.nan, math.nan, len(about["residual"]), "relative", "points.residual"),
        exact("ends not at rest from which Newton's method finds a fixed point", about["restless_fixed"], about["restless"], level=data.level, unit="share of unsettled ends tried", source="points.result"),
        spread("relative distance to it (median; range 10-90 %)", about["restless_moved"], unit="of the state's norm", source="points.moved"),
    ]
    spec = found.spectrum
    if spec is None:
        return out
    # Fixed points that runs rest on, and those that Newton's method reaches from runs that do not: two populations.
    fixed = found.points[found.points.converged]
    settled = data.conv[MAIN].settled[fixed.row]
    at_rest = settled & (fixed.moved <= NEAR)
    for name, mask in (("fixed points at rest", at_rest), ("fixed points reached from ends not at rest", ~settled)):
        words = [word for word, one in zip(spec.verdict, mask.tolist(), strict=True) if one]
        for word in ("stable", "unstable", "marginal", "ill-conditioned"):
            count = sum(verdict.startswith(word) for verdict in words)
            out.append(exact(f"{name} that are {word}", count, len(words), level=data.level, unit="share of fixed points", source="spectrum.verdict"))
        out.append(spread(f"spectral radius, {name} (median; range 10-90 %)", spec.radius[mask], unit=f"per {data.clock}", source="spectrum.radius"))
        out.append(Finding(f"largest spectral radius, {name}", _top(spec.radius[mask]), math.nan, math.nan, len(words), f"per {data.clock}", "spectrum.radius"))
    out.append(Finding("largest defect ‖Jv − λv‖ of a reported eigenvalue", _top(spec.defect), math.nan, math.nan, spec.defect.numel(), "absolute", "spectrum.defect"))
    return out


def basin_numbers(data: Recorded, found: Analysis) -> list[Finding]:
    """How many attractors, and how large their basins."""
    b, ends = found.basins, found.ends
    out = []
    for name, estimate, source in (("answer", b, "basins"), ("end state", ends, "ends")):
        kinds = torch.bincount(estimate.of_instance, minlength=int(estimate.instances.max()) + 1)[estimate.instances]
        some = int((kinds > 0).sum())
        out.append(exact(f"instances with exactly one attractor seen, by {name}, of those with a start at rest", int((kinds == 1).sum()), some, level=data.level, unit="share of instances with a start at rest", source=f"{source}.label"))
        out.append(exact(f"instances with no start at rest, by {name}", len(kinds) - some, len(kinds), level=data.level, unit="share of instances", source=f"{source}.label"))
        out.append(Finding(f"most attractors seen on one instance, by {name}", float(kinds.max()), math.nan, math.nan, len(kinds), "attractors", f"{source}.label"))
    out.append(share("starts in the largest basin of their instance, by answer", b.labels == 0, b.instance, level=data.level, source="basins.labels"))
    decided = b.labels >= 0
    out.append(share("starts in the largest basin of their instance, among decided ones", (b.labels == 0)[decided], b.instance[decided], level=data.level, source="basins.labels", unit="share of decided starts"))
    out.append(share("starts in the largest basin, should all undecided ones belong to it", (b.labels == 0) | ~decided, b.instance, level=data.level, source="basins.share_if"))
    out.append(share("starts undecided", b.labels < 0, b.instance, level=data.level, source="basins.labels"))
    out.append(spread("share of starts in attractors not seen, after Good and Turing (median; range 10-90 %)", b.missing_mass, unit="share of starts", source="basins.missing_mass"))
    out.append(Finding("independent starts that the starts are worth", b.effective_n, math.nan, math.nan, len(b.labels), "starts", "basins.effective_n"))
    return out


def compute(data: Recorded, found: Analysis) -> list[Finding]:
    """What depth and breadth buy."""
    g = found.grid
    out = [_cell(g, -1, 0, 0, f"solved by one start at depth {int(g.depth[-1])}", "grid")]
    out += [_cell(g, -1, -1, k, f"solved at depth {int(g.depth[-1])}, breadth {int(g.breadth[-1])}, selected by {name}", "grid") for k, name in enumerate(g.selectors)]
    out.append(_cell(g, 0, -1, 0, f"solved by a start at depth {int(g.depth[0])}", "grid"))
    out.append(_spread(g, "path dependence", "grid"))
    return out


def compared(data: Recorded, found: Analysis) -> list[Finding]:
    """The same numbers of the baseline."""
    if found.baseline is None or found.own is None:
        return []
    g, own, conv = found.baseline, found.own, data.conv[BASELINE]
    rest, good = conv.settled, conv.solved
    assert good is not None
    starts = f"from {law(data, BASELINE)}"
    mine = data.conv[MAIN]
    assert mine.solved is not None
    a, b = (one.by_instance("solved")[-1].double() for one in (mine, conv))
    paired = [
        ("accuracy over all starts, minus that of the baseline", a.mean(1) - b.mean(1)),
        ("path dependence, minus that of the baseline", (a.mean(1) - a[:, 0]).abs() - (b.mean(1) - b[:, 0]).abs()),
    ]
    return [
        *[
            Finding(claim, *cluster_mean(values, torch.arange(len(values)), level=data.level), len(values), "mean over instances, paired", "convergence of both series")
            for claim, values in paired
        ],
        _cell(own, -1, 0, 0, f"baseline: solved at depth {int(own.depth[-1])} from {law(data, OWN)}", "own"),
        _cell(g, -1, 0, 0, f"baseline: solved by one start at depth {int(g.depth[-1])} {starts}", "baseline"),
        *[_cell(g, -1, -1, k, f"baseline: solved at depth {int(g.depth[-1])}, breadth {int(g.breadth[-1])}, selected by {name}", "baseline") for k, name in enumerate(g.selectors)],
        _spread(g, "baseline: path dependence", "baseline"),
        share("baseline: settled at the last tick", rest, conv.instance, level=data.level, source="convergence of series baseline"),
        share("baseline: solved among settled", good[-1][rest], conv.instance[rest], level=data.level, source="convergence of series baseline", unit="share of settled starts"),
        share("baseline: settled among not solved", rest[~good[-1]], conv.instance[~good[-1]], level=data.level, source="convergence of series baseline", unit="share of unsolved starts"),
    ]


def verdict(data: Recorded, found: Analysis, numbers: tuple[Finding, ...]) -> list[str]:
    """Five sentences: does it settle; on what, how stable; is it the solution; how large the basins; what compute buys."""
    by = {one.claim: one for one in numbers}
    return [_whether(data, by), _on_what(data, found, by), _solution(data, found, by), _how_large(data, found, by), _what_buys(found, by)]


def _whether(data: Recorded, by: dict[str, Finding]) -> str:
    conv = data.conv[MAIN]
    settled, late = by["settled at the last tick"], by.get(f"at rest within {LATER} times the ticks more, of the starts not at rest")
    when = by["tick from which settled rows are at rest (median; range 10-90 %)"]
    head = "It settles" if settled.value >= 0.9 else "Mostly it settles" if settled.value >= 0.5 else "Mostly it does not settle"
    tail = f", from tick {when.value:.0f} on (median)" if when.n else ""
    more = f"; of those that do not, {percent(late)} come to rest within {LATER} times as many ticks more" if late is not None else ""
    return (
        f"{head}: of {settled.n} starts on {len(data.instance)} puzzles, {percent(settled)} are at rest at tick {int(conv.ticks[-1])} "
        f"(residual below {data.tol:g}, one tick is {data.clock}){tail}{more}."
    )


def _on_what(data: Recorded, found: Analysis, by: dict[str, Finding]) -> str:
    about = describe_points(found.points, data.conv[MAIN])
    if not about["at_rest"]:
        return "On what it settles cannot be said: no start came to rest."
    if not about["at_rest_fixed"]:
        return f"None of the {about['at_rest']} distinct ends at rest that were polished in float64 is within {NEAR:g} of the norm of a fixed point (residual below {found.points.tol:g})."
    away = f"; from {about['at_rest_away']} polishing led further away, so that they are none" if about["at_rest_away"] else ""
    stable, radius = by["fixed points at rest that are stable"], by["spectral radius, fixed points at rest (median; range 10-90 %)"]
    which = "distinct ends" if about["at_rest"] == len(found.ends.count) else f"distinct ends (of {len(found.ends.count)}, the largest first)"
    other = ""
    if about["restless_fixed"]:
        one = by["fixed points reached from ends not at rest that are stable"]
        other = f"; Newton's method also finds {one.n} from ends that were still moving, {round(one.value * one.n)} of them stable"
    return (
        f"Polished in float64, {about['at_rest_fixed']} of {about['at_rest']} {which} at rest are fixed points (residual below {found.points.tol:g}), reached by moving by "
        f"at most {_top(about['moved']):.1e} of the norm; {percent(stable, count=True)} of them are stable, with spectral radius {number(radius)}{away}{other}."
    )


def _solution(data: Recorded, found: Analysis, by: dict[str, Finding]) -> str:
    right, wrong = by["solved among settled"], by["settled among not solved"]
    if not right.n:
        return f"Whether settled means solved cannot be said: no start came to rest; {percent(by['solved at the last tick'])} of the starts show the solution at the last tick."
    failed = f"of the {wrong.n} starts that fail, {percent(wrong)} are at rest on a wrong answer" if wrong.n else "no start fails"
    late = by.get(f"solved, of those at rest within {LATER} times the ticks more")
    more = f"; of those that come to rest later, {percent(late)} are solved" if late is not None and late.n else ""
    return f"Of the settled starts {percent(right)} are solved, and {failed}{more}."


def _how_large(data: Recorded, found: Analysis, by: dict[str, Finding]) -> str:
    b = found.basins
    decided = int((b.labels >= 0).sum())
    if not decided:
        return "How large the basins are cannot be said: every start is undecided."
    one = by["instances with exactly one attractor seen, by end state, of those with a start at rest"]
    low, high = by["starts in the largest basin of their instance, by answer"], by["starts in the largest basin, should all undecided ones belong to it"]
    return (
        f"Of the {one.n} puzzles with a start at rest, {percent(one)} show exactly one attractor among their {int(found.ends.starts.max())} starts; the largest basin of a puzzle takes {percent(low)} of its starts, "
        f"and {percent(high)} if the {len(b.labels) - decided} undecided ones are counted with it (starts of one puzzle are alike: these {len(b.labels)} are worth {b.effective_n:.0f} independent ones)."
    )


def _what_buys(found: Analysis, by: dict[str, Finding]) -> str:
    g = found.grid
    first, last, breadth = int(g.depth[0]), int(g.depth[-1]), int(g.breadth[-1])
    shallow, deep = by[f"solved by a start at depth {first}"], by[f"solved at depth {last}, breadth {breadth}, selected by mean"]
    selected, vote = (by[f"solved at depth {last}, breadth {breadth}, selected by {name}"] for name in ("residual", "vote"))
    return (
        f"A start taken blindly solves {percent(shallow)} of the puzzles at tick {first} and {percent(deep)} at tick {last}; "
        f"of {breadth} starts, the one of lowest residual solves {percent(selected)} and the majority {percent(vote)}."
    )


def percent(one: Finding, *, count: bool = False) -> str:
    """A share with its interval in words."""
    if one.n == 0 or math.isnan(one.value):
        return "none (n = 0)"
    if math.isnan(one.low):
        return f"{100 * one.value:.1f} % (no interval, n = {one.n})"
    head = f"{round(one.value * one.n)} ({100 * one.value:.1f} %" if count else f"{100 * one.value:.1f} % ("
    return f"{head}{', ' if count else ''}{100 * one.low:.1f}-{100 * one.high:.1f} %)" if count else f"{head}{100 * one.low:.1f}-{100 * one.high:.1f} %)"


def number(one: Finding) -> str:
    """A median with its range in words."""
    if one.n == 0:
        return "not measured (n = 0)"
    return f"{one.value:.3g} ({one.low:.3g}-{one.high:.3g})"


def _cell(g: ScalingGrid, depth: int, breadth: int, selector: int, claim: str, source: str) -> Finding:
    at = (depth, breadth, selector)
    return Finding(claim, float(g.accuracy[at]), float(g.low[at]), float(g.high[at]), g.instances, "share of instances", f"{source}.accuracy")


def _spread(g: ScalingGrid, name: str, source: str) -> Finding:
    """Path dependence at the greatest depth and breadth."""
    claim = f"{name}: mean |accuracy over {int(g.breadth[-1])} starts − accuracy of the first|"
    return Finding(claim, float(g.spread[-1, -1]), float(g.spread_low[-1, -1]), float(g.spread_high[-1, -1]), g.instances, "mean over instances", f"{source}.spread")


def _ratio(count: int, of: int) -> float:
    return count / of if of else math.nan


def _top(values: Tensor) -> float:
    return float(values.max()) if values.numel() else math.nan
