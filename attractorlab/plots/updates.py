"""Pictures of a Floquet: what each update of a tick does to the leading modes and between the leaves."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from attractorlab.plots.theme import CATEGORICAL, add_level, array, counted, faded, finish, nothing, panels, plain, shade, source
from attractorlab.types import Floquet

MAX_MODES = 6  # lines that can still be told apart
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def floquet(flo: Floquet) -> go.Figure:
    """The gain of every update on the leading modes, where their tangents lie, and the largest gains from leaf to leaf.

    Above 1 an update stretches a mode. The gains of one mode multiply to the modulus of its multiplier, so that it is the product over the tick, and no single
    gain, that decides on stability. Lines are medians over the points, bands their 10-90 % range.

    Returns:
        A figure of three panels over the updates, in their order; the first and the third with logarithmic axes.
    """
    points, modes = flo.multipliers.shape
    title = "What each update does to the leading modes"
    facts = [
        source(flo.origin.model, flo.origin.dtype),
        f"n = {counted(points, 'point')}, {counted(modes, 'mode')} each",
        f"clock: {plain(flo.clock)}",
        f"method: {plain(flo.method)}",
    ]
    gain, part, block = array(flo.gain), array(flo.part), array(flo.block_gain)
    if not np.isfinite(gain).any():
        return nothing(title, reason="no multiplier was found", facts=facts)
    modulus = np.abs(flo.multipliers.detach().cpu().numpy()).astype(np.float32)
    fig = panels(
        1, 3, titles=("gain of each update", "share of mode 1 after it", "largest gain from leaf to update"), horizontal_spacing=0.09
    )
    names = [plain(name) for name in flo.updates]
    at = np.arange(len(names), dtype=np.float32)
    drawn = min(modes, MAX_MODES)
    for mode, colour in enumerate(shade(drawn)):
        known = modulus[:, mode][np.isfinite(modulus[:, mode])]
        label = f"mode {mode + 1}" + (f", |λ| = {float(np.median(known)):.3g}" if len(known) else "")
        _line(fig, at, gain[:, mode], label, colour, mode, log=True, col=1)
    for k, leaf in enumerate(flo.leaves):
        colour = CATEGORICAL[k % len(CATEGORICAL)]
        _line(fig, at, part[:, 0, :, k], plain(leaf), colour, k, log=False, col=2)
        _line(fig, at, block[:, :, k], plain(leaf), colour, k, log=True, col=3, legend=False)
    for col in (1, 3):
        add_level(fig, x=[-0.3, len(names) - 0.7], y=1.0, name="gain 1", dash="solid", row=1, col=col)
    fig.data[-1].showlegend = False
    ticks = at if len(names) <= 12 else at[:: -(-len(names) // 12)]
    for col in (1, 2, 3):
        fig.update_xaxes(
            title="update", tickvals=ticks, ticktext=[names[int(k)] for k in ticks], range=[-0.4, len(names) - 0.6], row=1, col=col
        )
    fig.update_yaxes(title="gain", type="log", exponentformat="power", row=1, col=1)
    fig.update_yaxes(title="share of squared length", range=[-0.03, 1.03], row=1, col=2)
    fig.update_yaxes(title="largest singular value", type="log", exponentformat="power", row=1, col=3)
    facts.append(f"{drawn} modes drawn" if drawn < modes else "")
    facts.append("medians, bands: 10-90 % of points" if points > 1 else "")
    facts.append("exact zeros left out" if bool(((gain == 0).any()) or (block == 0).any()) else "")
    return finish(fig, title=title, facts=facts, height=470)


def _line(
    fig: go.Figure,
    at: NDArray[np.float32],
    values: NDArray[np.float32],
    label: str,
    colour: str,
    k: int,
    *,
    log: bool,
    col: int,
    legend: bool = True,
) -> None:
    """The median of the points at each update, with the band of the middle 80 %."""
    known = np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)
    some = np.isfinite(known).any(0)
    if not some.any():
        return
    low, middle, high = np.nanquantile(known[:, some], (0.1, 0.5, 0.9), axis=0)
    look = dict(legendgroup=label, row=1, col=col)
    if len(known) > 1:
        outline = dict(x=np.concatenate([at[some], at[some][::-1]]), y=np.concatenate([high, low[::-1]]).astype(np.float32), fill="toself")
        fig.add_scatter(
            **outline,
            fillcolor=faded(colour, 0.16),
            line=dict(width=0),
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            name=label,
            **look,
        )
    fig.add_scatter(
        x=at[some],
        y=middle.astype(np.float32),
        mode="lines+markers",
        name=label,
        showlegend=legend,
        line=dict(color=colour, width=2.5, dash=_DASHES[k % len(_DASHES)]),
        marker=dict(symbol=_SYMBOLS[k % len(_SYMBOLS)], size=8),
        hovertemplate="%{fullData.name}, %{x}: median %{y:.3g}<extra></extra>",
        **look,
    )
