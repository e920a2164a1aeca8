"""From which tick on can the solution be read from the state by a linear probe?"""

import torch

import attractorlab as al
from attractorlab.statistics import cluster_mean
from attractorlab.types import Finding

QUESTION = "From which tick on can a linear probe read a blank cell's digit from the state, is it sooner than the model itself says it, and does z_L know it before z_H?"
MODEL, PUZZLES, TICKS, LEVEL = "eqr-sudoku-6", 200, 12, 0.95
BLANK = 1
SHOWN = range(0, TICKS + 1, 2)
READ = 0.9  # the lower end of the interval must lie above it


def run() -> tuple[str, list[Finding]]:
    """Fit a probe per recursion to z_H and to z_L, with a control, on held-out puzzles; compare with the model's own readout on the same ones."""
    reasoner = al.models.load(MODEL)
    puzzles = al.tasks.load("sudoku-6", split="test", rows=slice(0, PUZZLES))
    f = reasoner.bind(puzzles)
    traj = al.trace(f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), ticks=TICKS, keep=al.every(1))
    blank = puzzles.inputs == BLANK
    own = ((traj.readouts["answer"] == puzzles.targets) & blank).sum(-1) / blank.sum(-1)  # share of a puzzle's blanks, [tick puzzle]
    findings, first = [], {}
    for leaf in ("z_H", "z_L"):
        # The same split for both leaves: it is drawn from a generator of its own.
        fit = al.fit_probe(
            traj, puzzles.targets, leaf=leaf, sites=blank, test_share=0.3, generator=torch.Generator().manual_seed(1), level=LEVEL, target="digit of a blank cell"
        )
        held = fit.held_out
        apart = [_mean(fit.by_held_out[t] - own[t, held]) for t in range(TICKS + 1)]
        for t in SHOWN:
            findings.append(Finding(f"probe on {leaf} at tick {t} (control {float(fit.control[t]):.3f})", float(fit.score[t]), float(fit.low[t]), float(fit.high[t]), len(held), "share of blank cells, held-out puzzles", "fit_probe"))
            findings.append(Finding(f"probe on {leaf} minus the model's own readout at tick {t}", *apart[t], len(held), "mean over the same held-out puzzles, paired", "fit_probe, trace"))
        first[leaf] = next((t for t in range(TICKS + 1) if float(fit.low[t]) > READ), None)
        first[f"{leaf} sooner"] = [t for t in range(TICKS + 1) if apart[t][1] > 0]
    means = [_mean(own[t, held]) for t in range(TICKS + 1)]
    findings += [Finding(f"the model's own readout at tick {t}", *means[t], len(held), "mean over held-out puzzles of the share of blank cells", "trace") for t in SHOWN]
    said = next((t for t in range(TICKS + 1) if means[t][1] > READ), None)
    when = {name: "never" if t is None else f"from tick {t}" for name, t in {"z_H": first["z_H"], "z_L": first["z_L"], "own": said}.items()}
    ahead = {leaf: f"at ticks {', '.join(map(str, first[f'{leaf} sooner']))}" if first[f"{leaf} sooner"] else "at no tick" for leaf in ("z_H", "z_L")}
    return (
        f"Digits of blank cells are read with more than {READ:.0%} (lower end of the interval) by a probe on z_H {when['z_H']}, on z_L {when['z_L']}; by the model's own readout of z_H {when['own']}. "
        f"Paired on the {len(held)} held-out puzzles, the probe on z_H is ahead of the model's readout {ahead['z_H']}, that on z_L {ahead['z_L']}. "
        f"Ticks are recursions ({f.clock}); probes are trained on {fit.train_instances} of {len(puzzles)} puzzles; the control is the digits of another puzzle."
    ), findings


def _mean(values: torch.Tensor) -> tuple[float, float, float]:
    return cluster_mean(values.double(), torch.arange(len(values)), level=LEVEL)
