"""What fixed points, spectra and exponents say, as facts: plain words, numbers and lists that JSON can hold."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attractorlab import tasks
from attractorlab.dynamics.fixed_points import Distinct, distinct
from attractorlab.report.analysis import NEAR
from attractorlab.report.ends import Ends
from attractorlab.report.markdown import finite
from attractorlab.statistics import clopper_pearson
from attractorlab.types import FixedPointSet, LyapunovEstimate, Result, Spectrum

APART = 1e-6  # of the norm: points further apart are two, where the method tells no errors
VERDICTS = ("stable", "unstable", "marginal", "ill-conditioned")
CLEAR = 3.0  # standard errors from which on an exponent has a sign


def groups(points: FixedPointSet) -> Distinct:
    """The points that differ. Methods that tell no errors leave it to a distance: 1e-6 of the norm, or ten times the residual that was asked for."""
    known = not bool(points.error[points.converged].isnan().any())
    return distinct(points) if known else distinct(points, tol=max(APART, 10 * points.tol))


def about(ends: Ends) -> dict[str, Any]:
    """What was analysed."""
    origin = ends.f.origin
    return {
        "model": origin.model,
        "weights": origin.weights,
        "task": ends.instance.task,
        "clock": ends.f.clock,
        "puzzles": len(torch.unique(ends.f.instance)),
        "ticks": ends.ticks,
        "rows": len(ends.f.instance),
        "of": ends.of,
    }


def fixed_point_facts(ends: Ends, points: FixedPointSet) -> dict[str, Any]:
    """How many ends became fixed points, how many of these differ and are solutions, and how good they are, puzzle by puzzle and point by point."""
    ids, found = ends.instance.ids, groups(points)
    right = solved(ends, found.points)
    by_puzzle = []
    for one in torch.unique(points.instance).tolist():
        here = points[points.instance == one]
        good, own = here[here.converged], found.points.instance == one
        by_puzzle.append(
            {
                "puzzle": ids[one],
                "starts": len(here),
                "converged": len(good),
                "distinct": int(own.sum()),
                "solved": int(right[own].sum()),
                "residual": top(good.residual),
                "error": top(good.error),
                "moved": top(good.moved),
                "unseen": int((found.counts[own] == 1).sum()) / len(good) if len(good) > 1 else None,  # of one start nothing can be told
            }
        )
    unseen = [one["unseen"] for one in by_puzzle if one["unseen"] is not None]
    facts = {
        "tol": points.tol,
        "results": words(points.result),
        "distinct": len(found.points),
        "solved": int(right.sum()),
        "far": int((points.moved[points.converged] > NEAR).sum()),
        "unseen": sum(unseen) / len(unseen) if unseen else None,
        "by_puzzle": by_puzzle,
        "points": [
            {"puzzle": ids[i], "start": s, "result": Result.of(code).name.lower(), "point": label if label >= 0 else None, "residual": r, "error": e, "moved": m, "steps": n}
            for i, s, code, label, r, e, m, n in zip(
                *(values.tolist() for values in (points.instance, points.start, points.result, found.labels, points.residual, points.error, points.moved, points.steps)), strict=True
            )
        ],
    }
    return dict(finite({**about(ends), **facts}))


def spectrum_facts(ends: Ends, points: FixedPointSet, found: Spectrum | None, *, level: float) -> dict[str, Any]:
    """Verdicts on the points that ends rest near, with Clopper-Pearson intervals, and every point with its eigenvalues and their errors.

    `found` is the spectrum at `groups(points).points`. Points that polishing reached from afar are counted apart: no run rests on them.
    """
    ids, fixed = ends.instance.ids, groups(points)
    right, verdicts, rows = solved(ends, fixed.points), [], []
    moved = torch.full((len(fixed.points),), torch.inf, dtype=points.moved.dtype)
    moved = moved.scatter_reduce(0, fixed.labels[fixed.labels >= 0], points.moved[fixed.labels >= 0], "amin")
    near = moved <= NEAR
    if found is not None:
        for word in VERDICTS:
            these = torch.tensor([one.startswith(word) for one in found.verdict])
            count, n = int((these & near).sum()), int(near.sum())
            low, high = clopper_pearson(count, n, level=level) if n else (0.0, 1.0)
            verdicts.append({"verdict": word, "near": count, "share": count / n if n else None, "low": low, "high": high, "far": int((these & ~near).sum())})
        errors = eigenvalue_errors(found)
        for k, (i, start) in enumerate(zip(fixed.points.instance.tolist(), fixed.points.start.tolist(), strict=True)):
            rows.append(
                {
                    "puzzle": ids[i],
                    "start": start,
                    "starts": int(fixed.counts[k]),
                    "solved": bool(right[k]),
                    "residual": float(fixed.points.residual[k]),
                    "moved": float(moved[k]),
                    "radius": float(found.radius[k]),
                    "error": float(errors[k, 0]),
                    "verdict": found.verdict[k],
                    "eigenvalues": [[value.real, value.imag] for value in found.eigenvalues[k].tolist()],
                    "errors": errors[k].tolist(),
                    "defects": found.defect[k].tolist(),
                    "conditions": found.condition[k].tolist(),
                }
            )
    facts = {
        "tol": points.tol,
        "results": words(points.result),
        "level": level,
        "method": None if found is None else found.method,
        "products": None if found is None else found.products,
        "radius": None if found is None else span(found.radius[near]),
        "verdicts": verdicts,
        "points": rows,
    }
    return dict(finite({**about(ends), **facts}))


def lyapunov_facts(ends: Ends, found: LyapunovEstimate) -> dict[str, Any]:
    """The exponents of every orbit with their standard errors, their span over the orbits that were followed to the end, and the sign of the first."""
    ids, followed = ends.instance.ids, found.result == Result.COMPLETED.code
    mine = found.exponents[followed]
    facts = {
        "counted": len(found.growth),
        "transient": found.transient,
        "results": words(found.result),
        "first_exponent": signs(mine[:, 0], found.standard_error[followed, 0]),
        "exponents": [{**span(mine[:, k]), "largest_error": top(found.standard_error[followed, k])} for k in range(mine.shape[1])],
        "orbits": [
            {"puzzle": ids[i], "start": s, "result": Result.of(code).name.lower(), "exponents": x, "standard_errors": e, "kaplan_yorke": d}
            for i, s, code, x, e, d in zip(
                *(values.tolist() for values in (found.instance, found.start, found.result, found.exponents, found.standard_error, found.kaplan_yorke)), strict=True
            )
        ],
    }
    return dict(finite({**about(ends), **facts}))


def eigenvalue_errors(found: Spectrum) -> Float[Tensor, "point mode"]:
    """Condition times defect, which is held to be rounding at least."""
    return found.condition * found.defect.clamp(min=torch.finfo(torch.float64).eps)


def signs(first: Float[Tensor, " row"], error: Float[Tensor, " row"]) -> dict[str, int]:
    """How many first exponents are below and above 0 by more than three standard errors; one without an error has no sign."""
    below, above = first < -CLEAR * error, first > CLEAR * error
    counts = {"negative": int(below.sum()), "positive": int(above.sum()), "undecided": int((~below & ~above).sum())}
    return {word: n for word, n in counts.items() if n}


def solved(ends: Ends, points: FixedPointSet) -> Bool[Tensor, " point"]:
    """Which points are solutions, by the rules of the task."""
    if not len(points):
        return torch.zeros(0, dtype=torch.bool)
    with torch.no_grad():
        answer = ends.reasoner.readout(points.states)["logits"].argmax(-1)
    return tasks.verify(ends.instance[points.instance], answer)


def words(codes: Tensor) -> dict[str, int]:
    """How many ended with which result."""
    counts = {one.name.lower(): int((codes == one.code).sum()) for one in Result}
    return {word: n for word, n in counts.items() if n}


def top(values: Float[Tensor, " item"]) -> float | None:
    """The largest of the values that exist."""
    known = values[~values.isnan()]
    return float(known.max()) if len(known) else None


def span(values: Float[Tensor, " item"]) -> dict[str, float | None]:
    """Median and extremes of the values that exist."""
    known = values[~values.isnan()]
    if not len(known):
        return {"median": None, "lowest": None, "highest": None}
    return {"median": float(known.quantile(0.5)), "lowest": float(known.min()), "highest": float(known.max())}
