"""From which tick on can the solution be read from the state by a linear probe?"""

import torch

import attractorlab as al
from attractorlab.statistics import cluster_mean
from attractorlab.types import Finding

QUESTION = "From which tick on can a linear probe read a blank cell's digit from the state, is it sooner than the model itself says it, and does z_L know it before z_H?"
MODEL, PUZZLES, TICKS, LEVEL = "eqr-sudoku-6", 200, 12, 0.95
BLANK = 1


def run() -> tuple[str, list[Finding]]:
    """Fit a probe per recursion to z_H and to z_L, with a control, on held-out puzzles; compare with the model's own readout."""
    reasoner = al.models.load(MODEL)
    puzzles = al.tasks.load("sudoku-6", split="test", rows=slice(0, PUZZLES))
    f = reasoner.bind(puzzles)
    traj = al.trace(f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), ticks=TICKS, keep=al.every(1))
    blank = puzzles.inputs == BLANK
    cluster = torch.arange(len(puzzles))[:, None].expand_as(blank)[blank]
    own = [cluster_mean((answer == puzzles.targets)[blank].double(), cluster, level=LEVEL) for answer in traj.readouts["answer"]]
    findings, first = [], {}
    for leaf in ("z_H", "z_L"):
        fit = al.fit_probe(
            traj, puzzles.targets, leaf=leaf, sites=blank, test_share=0.3, generator=torch.Generator().manual_seed(1), level=LEVEL, target="digit of a blank cell"
        )
        for t in range(0, TICKS + 1, 2):
            n = fit.test_instances
            findings.append(Finding(f"probe on {leaf} at tick {t} (control {float(fit.control[t]):.3f})", float(fit.score[t]), float(fit.low[t]), float(fit.high[t]), n, "share of blank cells, held-out puzzles", "fit_probe"))
        first[leaf] = next((t for t in range(TICKS + 1) if float(fit.low[t]) > 0.9), None)
    findings += [Finding(f"the model's own readout at tick {t}", *own[t], len(puzzles), "share of blank cells", "trace") for t in range(0, TICKS + 1, 2)]
    said = next((t for t in range(TICKS + 1) if own[t][1] > 0.9), None)
    when = {name: "never" if t is None else f"from tick {t}" for name, t in {**first, "own": said}.items()}
    return (
        f"Digits of blank cells are read with more than 90 % (lower end of the interval) by a probe on z_H {when['z_H']}, on z_L {when['z_L']}; by the model's own readout of z_H {when['own']}. "
        f"Ticks are recursions ({f.clock}); probes are trained on 70 % of {PUZZLES} puzzles and scored on the rest; the control is the digits of another puzzle."
    ), findings
