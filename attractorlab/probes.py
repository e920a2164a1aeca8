"""Run a probe, a file that asks one question, and log its outcome."""

import importlib.util
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from attractorlab.types import Finding


@dataclass(frozen=True)
class Outcome:
    """What a probe found: its question, a one-paragraph answer, and the numbers."""

    question: str
    answer: str
    findings: tuple[Finding, ...]

    def text(self) -> str:
        """The outcome as lines to read."""
        lines = [self.question, "", self.answer, ""]
        for one in self.findings:
            between = "" if math.isnan(one.low) else f" ({one.low:.3g} to {one.high:.3g})"
            lines.append(f"- {one.claim}: {one.value:.4g}{between}, n = {one.n}, {one.unit}")
        return "\n".join(lines)


def run_probe(path: Path) -> Outcome:
    """Run the probe at `path`: a Python file with a `QUESTION` and a function `run() -> (answer, findings)`.

    Raises:
        ValueError: If there is no such file, or it is not a probe.
    """
    if not path.is_file():
        known = sorted(one.stem for one in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ValueError(
            f"`probe` found no {path}. A probe is a file in ./probes, named without its ending. "
            f"Use one of {', '.join(known) or '(none: run this in the project folder)'}, or the path of a file."
        )
    spec = importlib.util.spec_from_file_location(f"attractorlab_probe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    defined = vars(module)
    if "QUESTION" not in defined or "run" not in defined:
        raise ValueError(f"`probe` found no QUESTION and run() in {path}. A probe defines both. Write `QUESTION = ...` and `def run(): return answer, findings`.")
    answer, findings = defined["run"]()
    return Outcome(str(defined["QUESTION"]), str(answer), tuple(findings))


def add_to_log(path: Path, outcome: Outcome, *, command: str) -> Path:
    """Add the outcome to the LOG.md beside the probe, newest last, and return the log's path."""
    log = path.parent / "LOG.md"
    entry = f"\n## {datetime.now(UTC).date().isoformat()} {path.stem}\n\n`{command}`\n\n{outcome.text()}\n"
    with open(log, "a", encoding="utf-8") as file:
        if log.stat().st_size == 0:
            file.write("# Log of the probes\n\nEvery outcome, the negative too.\n")
        file.write(entry)
    return log
