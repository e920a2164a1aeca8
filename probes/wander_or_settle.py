"""Do failing starts wander, or settle on a wrong answer?"""

import torch

import attractorlab as al
from attractorlab.statistics import cluster_share
from attractorlab.types import Finding

QUESTION = (
    "Equilibrium Reasoners (arXiv 2605.21488) blames failures on spurious attractors; a study of TRM and HRM (\"fail by wandering, not by settling\") saw "
    "hardly any. Which is it for the bundled side-6 models?"
)
MODELS = ("eqr-sudoku-6", "trm-sudoku-6")
PUZZLES, STARTS, TICKS, TOL, LEVEL = 120, 4, 128, 1e-4, 0.95


def run() -> tuple[str, list[Finding]]:
    """Follow random starts on graded test puzzles, and count the failing ones that are at rest at the end."""
    findings, words = [], []
    for name in MODELS:
        reasoner = al.models.load(name)
        puzzles = al.tasks.load("sudoku-6", split="test", rows=slice(0, PUZZLES))
        f = al.strobe(reasoner.bind(puzzles), reasoner.config.H_cycles).take(al.repeat_rows(len(puzzles), STARTS))
        z = reasoner.random_start(f.drive, scale=1.0, generator=torch.Generator().manual_seed(0))
        conv = al.convergence(al.trace(f, z, ticks=TICKS, keep=al.only_last(), rest=5e-7), tol=TOL, targets=puzzles.targets)
        failed = ~conv.solved[-1]
        rest, cycle = conv.settled[failed], conv.period[failed] > 1
        # Starts of a puzzle fail alike, so puzzles are redrawn, not starts.
        n = int(failed.sum())
        if n:
            share, low, high = cluster_share(rest, conv.instance[failed], level=LEVEL)
            failing = len(torch.unique(conv.instance[failed]))
            findings.append(Finding(f"{name}: settled among failing starts ({failing} puzzles)", share, low, high, n, "share of failing starts", "convergence"))
            findings.append(Finding(f"{name}: on a cycle of period 2 to 8 among failing starts", float(cycle.double().mean()), float("nan"), float("nan"), n, "share of failing starts", "convergence"))
            near = sum(word == "approaching" for word, bad in zip(conv.verdict, failed.tolist(), strict=True) if bad)
            wander = n - int(rest.sum()) - int(cycle.sum()) - near
            words.append(f"Of the {n} failing starts of {name}, {int(rest.sum())} are at rest on a wrong answer, {near} still coming to rest, {int(cycle.sum())} on a short cycle, and {wander} wander")
        else:
            words.append(f"No start of {name} fails")
        findings.append(Finding(f"{name}: solved", *cluster_share(~failed, conv.instance, level=LEVEL), len(failed), "share of starts", "convergence"))
    return f"{'. '.join(words)}, {TICKS} segments after {STARTS} random starts on each of {len(puzzles)} puzzles (residual below {TOL:g} is rest).", findings
