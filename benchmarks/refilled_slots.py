"""Time attempts through slots against a bare loop, and what holding rows at rest, halting with refill and a compiled tick save. Prints ratios as JSON.

The bare loop applies the map and the readout for as many ticks, in batches of as many rows as there are slots, computes the relative residual and keeps nothing else. Times are CPU seconds
of this process on one thread; ratios are of one round, medians over the rounds; the order of a round is turned at every other one. Without a C++ compiler the compiled tick is left out.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import attractorlab as al
from attractorlab.dynamics.attempts import slots_for, spaced
from attractorlab.models.compiling import can_compile, compiled

PUZZLES, STARTS, TICKS, ROUNDS = 24, 1, 48, 3
HALTING = al.Halting(0.0, 1, None)


def main() -> None:
    """Measure in turn, several rounds, and print medians of the ratios of one round."""
    torch.set_num_threads(1)
    reasoner = al.models.load("eqr-sudoku-6")
    puzzles = al.tasks.load("sudoku-6", rows=slice(0, PUZZLES))
    tick, rows = reasoner.bind(puzzles), al.repeat_rows(PUZZLES, STARTS)
    f = al.strobe(tick, reasoner.config.H_cycles).take(rows)
    z = reasoner.start(f.drive, generator=torch.Generator().manual_seed(0))
    slots = min(slots_for(z), PUZZLES * STARTS // 4)
    more: dict[str, Any] = {"ticks": TICKS, "read": spaced(TICKS), "slots": slots, "halting": HALTING, "targets": puzzles.targets}
    runs: dict[str, Callable[[], Any]] = {
        "loop": lambda: bare_loop(f, z, slots),
        "all": lambda: al.attempt(f, z, hold=None, **more),
        "held": lambda: al.attempt(f, z, hold=5e-7, **more),
        "refill": lambda: al.elastic(f, z, **more),
    }
    if can_compile(torch.device("cpu")):
        fused = al.strobe(replace(tick, rule=compiled(reasoner.tick, torch.device("cpu"), "refilled_slots")), reasoner.config.H_cycles).take(rows)
        runs["compiled"] = lambda: al.attempt(fused, z, hold=None, **more)
    rounds = measured(runs)
    whole, held, left = (runs[name]() for name in ("all", "held", "refill"))
    found = {
        "attempts / bare loop": ratio(rounds, "all", "loop"),
        "all to the end / held at rest": ratio(rounds, "all", "held"),
        "all to the end / halting with refill": ratio(rounds, "all", "refill"),
        **({"all to the end, eager / compiled": ratio(rounds, "all", "compiled")} if "compiled" in runs else {}),
        "ticks: all / held at rest": round(int(whole.computed.sum()) / int(held.computed.sum()), 3),
        "ticks: all / halting": round(int(whole.computed.sum()) / int(left.computed.sum()), 3),
        "solved: all, held, halting": [float(one.solved[-1].double().mean()) for one in (whole, held, left)],
    }
    print(json.dumps(found | {"slots": slots, "rounds": ROUNDS, "threads": torch.get_num_threads()}, indent=1))


@torch.no_grad()
def bare_loop(f: al.LatentMap, z: al.State, slots: int) -> None:
    """As many applications, readouts and residuals."""
    for rows in torch.arange(len(f.instance)).split(slots):
        g, now = f.take(rows), {name: leaf[rows] for name, leaf in z.items()}
        for _ in range(TICKS):
            new = g(now)
            change = torch.cat([(new[name] - now[name]).flatten(1) for name in now], dim=1).norm(dim=1)
            g.readout(new), change / torch.cat([leaf.flatten(1) for leaf in now.values()], dim=1).norm(dim=1)
            now = new


def measured(runs: dict[str, Callable[[], Any]]) -> list[dict[str, float]]:
    """CPU seconds of every run in every round, after one round to warm up."""
    found = []
    for k in range(ROUNDS + 1):
        times = {}
        for name in list(runs)[:: 1 if k % 2 else -1]:
            began = time.process_time()
            runs[name]()
            times[name] = time.process_time() - began
        found.append(times)
    return found[1:]


def ratio(rounds: list[dict[str, float]], over: str, under: str) -> float:
    """The median over the rounds, to three digits after the point."""
    return round(statistics.median(one[over] / one[under] for one in rounds), 3)


if __name__ == "__main__":
    main()
