"""report: a recorded run in, a stability report out, as a page, as Markdown and as JSON."""

import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attractorlab.report.analysis import analyse, recorded
from attractorlab.report.findings import findings, verdict
from attractorlab.report.markdown import as_json, as_markdown, write_whole
from attractorlab.report.page import build_page
from attractorlab.report.sections import figures, sections
from attractorlab.store import Run
from attractorlab.types import Report


def report(run: Run | str | os.PathLike[str], folder: str | os.PathLike[str], *, say: Callable[[str], None] = lambda stage: None) -> Report:
    """Analyse a complete run and write ``index.html``, ``report.json`` and ``report.md`` into `folder`.

    The page is one file that opens without a network. The nouns behind it are stored in the run, so that every number can be recomputed;
    a second report on the same run reads them instead of computing them again.

    Args:
        run: The run, or its folder, as `attractorlab record` or `attractorlab report` made it.
        folder: Where to write.
        say: Told the stage that begins.

    Returns:
        The findings, the figures by name, and the folder.

    Raises:
        RunError: If the run is not complete, or its model has changed since.
    """
    data = recorded(run if isinstance(run, Run) else Run(run))
    found = analyse(data, say=say)
    say("the page")
    numbers = findings(data, found)
    sentences = verdict(data, found, numbers)
    drawn = figures(data, found)
    asked = f"{len(data.instance)} puzzles of {data.instance.task}, {data.series['main'].starts} starts each, {int(data.conv['main'].ticks[-1])} ticks"
    page = build_page(f"Stability report: {data.reasoner['main'].name}", sections(data, found, numbers, sentences, drawn), subtitle=asked)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    texts = {"report.json": json.dumps(as_json(data, found, numbers, sentences), indent=1), "report.md": as_markdown(data, numbers, sentences), "index.html": page}
    write_whole({place / name: text for name, text in texts.items()})
    return Report(findings=numbers, figures=drawn, folder=str(place))


class _Room(types.ModuleType):
    # `attractorlab.report` is this room, and by contract also the function.
    def __call__(self, *args: Any, **options: Any) -> Report:
        return report(*args, **options)


sys.modules[__name__].__class__ = _Room
