"""The report without pictures: as Markdown to read and as JSON to compute with."""

import math
import os
import re
from pathlib import Path
from typing import Any

from attractorlab.report.analysis import Analysis, Recorded
from attractorlab.report.sections import facts
from attractorlab.store import put
from attractorlab.types import Finding

SCHEMA = 1


def as_markdown(data: Recorded, numbers: tuple[Finding, ...], sentences: list[str]) -> str:
    """The verdict, the run card and every finding."""
    lines = [f"# Stability report: {plain(data.reasoner['main'].name)}", "", "## Verdict", "", *[f"{k}. {text}" for k, text in enumerate(sentences, 1)], ""]
    lines += ["## Run", "", "| what | value |", "|---|---|", *[f"| {key} | {plain(value)} |" for key, value in facts(data).items()], ""]
    lines += ["## Findings", "", "| finding | value | interval or range | n | unit | source |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {plain(one.claim)} | {_number(one.value)} | {_interval(one)} | {one.n} | {plain(one.unit)} | `{one.source}` |" for one in numbers
    ]
    level = f"{100 * data.level:g}"
    lines += [
        "",
        f"Shares carry {level} % intervals: Wilson's with the starts of a puzzle counted for what they are worth, Clopper and Pearson's for counts of points and puzzles; accuracies over depth and breadth "
        "and path dependence those of a bootstrap over puzzles, puzzles of one solution together, or Wilson's where it says nothing. "
        "A median carries its 10-90 % range. A dash stands for a number that has no interval.",
        "",
    ]
    return "\n".join(lines)


def as_json(data: Recorded, found: Analysis, numbers: tuple[Finding, ...], sentences: list[str]) -> dict[str, Any]:
    """The findings, and the tables behind the figures; numbers that do not exist are null."""
    spec, points, g = found.spectrum, found.points[found.points.converged], found.grid
    modes: tuple[list[Any], ...] = ([], [], [], []) if spec is None else (spec.radius.tolist(), list(spec.verdict), spec.eigenvalues.tolist(), spec.defect.tolist())
    return finite(
        {
            "schema": SCHEMA,
            "model": data.reasoner["main"].name,
            "verdict": sentences,
            "run": facts(data),
            "config": dict(data.run.manifest.config),
            "findings": [vars(one) for one in numbers],
            "fixed_points": [
                {
                    "row": row,
                    "instance": instance,
                    "start": start,
                    "residual": residual,
                    "error": error,
                    "moved": moved,
                    "radius": radius,
                    "verdict": word,
                    "eigenvalues": [[value.real, value.imag] for value in eigenvalues],
                    "defect": defect,
                }
                for row, instance, start, residual, error, moved, radius, word, eigenvalues, defect in zip(
                    points.row.tolist(),
                    points.instance.tolist(),
                    points.start.tolist(),
                    points.residual.tolist(),
                    points.error.tolist(),
                    points.moved.tolist(),
                    *modes,
                    strict=True,
                )
            ],
            "basins": [
                {"instance": i, "label": label, "count": c, "share": s, "low": lo, "high": hi}
                for i, label, c, s, lo, hi in zip(
                    found.basins.of_instance.tolist(),
                    found.basins.label.tolist(),
                    found.basins.count.tolist(),
                    found.basins.share.tolist(),
                    found.basins.low.tolist(),
                    found.basins.high.tolist(),
                    strict=True,
                )
            ],
            "scaling": {"depth": g.depth.tolist(), "breadth": g.breadth.tolist(), "selectors": list(g.selectors), "accuracy": g.accuracy.tolist()},
        }
    )


def plain(text: str) -> str:
    r"""Text that Markdown and HTML show as it is, on one line, also inside a table.

    Example:
        >>> plain("a|b <i>c_d</i>")
        'a\\|b &lt;i&gt;c\\_d&lt;/i&gt;'
    """
    shown = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", shown)


def finite(value: Any) -> Any:
    """`value` with null in place of the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(texts: dict[Path, str]) -> None:
    """Write all of them, or leave what was there: none is put in its place before every one is on the disk."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in texts}
    try:
        for path, text in texts.items():
            put(temporary[path], text.encode())
        for path, written in temporary.items():
            os.replace(written, path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def short(value: float) -> str:
    """A number in three digits, or in all before the point: ticks are whole. From ten million on in four.

    Example:
        >>> short(24.13), short(1137.0), short(16384.0), short(2.0**34)
        ('24.1', '1137', '16384', '1.718e+10')
    """
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}" if abs(value) < 1e7 else f"{value:.4g}"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4g}"


def _interval(one: Finding) -> str:
    return "-" if math.isnan(one.low) else f"{one.low:.4g} to {one.high:.4g}"
