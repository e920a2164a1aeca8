"""Pictures of trainings: loss, accuracy and throughput over the segments."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray

from attractorlab.plots.theme import add_band, add_line, array, finish, nothing, panels, plain, styles
from attractorlab.statistics import wilson

PANELS = ("loss", "solved when halted (training)", "solved (validation)", "puzzle-segments per second")
_KEYS = ("loss", "exact", "validation", "samples_per_second")
LEVEL = 0.95


def training(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Four panels over the segments of each training: loss, accuracy on what it trains on, on what it does not, and throughput.

    Accuracy in training is that of the puzzles that ended since the line before: each when the network held it for solved, or ran out of segments. Validation is the averaged
    model without noise, with Wilson's intervals over its puzzles.

    Args:
        logs: By name, the lines of `log.jsonl` in the folder that `attractorlab train` wrote. Lines may lack what is not drawn from them.
    """
    title = "Training"
    shown = {name: lines for name, lines in logs.items() if lines}
    if not shown:
        return nothing(title, reason="no line has been written yet")
    fig = panels(2, 2, titles=PANELS, vertical_spacing=0.16, horizontal_spacing=0.1)
    look = styles(shown)
    for name, lines in shown.items():
        for k, key in enumerate(_KEYS):
            row, col = 1 + k // 2, 1 + k % 2
            x, y = (_read(lines, one, key) for one in ("segment", key))
            if key == "validation" and len(x):
                n = _read(lines, "validation_puzzles", key)
                low, high = wilson(torch.from_numpy(y * n), torch.from_numpy(n), level=LEVEL)
                add_band(fig, x=x, low=array(low), high=array(high), colour=look[name].colour, group=plain(name), row=row, col=col)
            add_line(fig, x, y, style=look[name], name=plain(name), legend=k == 0, hover="segment %{x}: %{y:.4~g}", markers=len(x) < 60, row=row, col=col)
    fig.update_xaxes(title="segment", row=2)
    fig.update_yaxes(type="log", row=1, col=1)
    for where in (dict(row=1, col=2), dict(row=2, col=1)):
        fig.update_yaxes(tickformat=".0%", range=[-0.03, 1.03], **where)
    fig.update_yaxes(rangemode="tozero", row=2, col=2)
    counts = sorted({int(line["validation_puzzles"]) for lines in shown.values() for line in lines if "validation_puzzles" in line})
    facts = [f"{len(shown)} training{'s' if len(shown) > 1 else ''}", f"validation: n = {', '.join(map(str, counts))}, bands: {LEVEL:.0%} intervals" if counts else "no validation on record"]
    return finish(fig, title=title, facts=facts, height=640)


def _read(lines: Sequence[Mapping[str, float]], key: str, wanted: str) -> NDArray[np.float64]:
    """`key` of the lines that have `wanted`."""
    return np.array([line[key] for line in lines if wanted in line], dtype=np.float64)
