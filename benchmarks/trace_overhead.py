"""Time traces, tapped and not, against a bare Python loop of the same map, and what chunking and leaving at rest save. Prints ratios as JSON.

The bare loop is what a user would write by hand: under `no_grad` it applies the map and the readout at every tick, computes the relative residual over all
leaves, and keeps the readouts and residuals. A tapped trace records every call of every MLP and every rewriting of both leaves, and all states, at every tick; it is
compared with the bare loop plus the time to copy as many bytes into fresh memory. Times are CPU seconds of this process on one thread, so that what else the
machine does counts little. Ratios are of one round, medians over the rounds; the order of a round is turned at every other one.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import attractorlab as al
from attractorlab.dynamics import orbits

ROWS, TICKS, ROUNDS = 256, 12, 3
FEW, MANY_ROUNDS = 48, 11


def main() -> None:
    """Measure in turn, several rounds, and print medians of the ratios of one round."""
    torch.set_num_threads(1)
    found = overhead("eqr-sudoku-6") | overhead("eqr-sudoku-4") | savings()
    print(json.dumps(found | {"rounds": [MANY_ROUNDS, ROUNDS], "threads": torch.get_num_threads()}, indent=1))


def overhead(name: str) -> dict[str, float]:
    """What a trace costs more than a loop: the ratios that should stay below 1.05 untapped and 1.10 tapped."""
    f, z, reasoner = bound(name, FEW)
    tap = al.Tap(reasoner, "L_level.layers.*.mlp", "z_?")
    recorded = al.trace(f, z, ticks=TICKS, keep=al.every(1), tap=tap)
    arrays = [*recorded.taps.values(), *recorded.states.values()]
    runs = {
        "loop": lambda: bare_loop(f, z),
        "trace": lambda: al.trace(f, z, ticks=TICKS, keep=al.only_last()),
        "tapped": lambda: al.trace(f, z, ticks=TICKS, keep=al.every(1), tap=tap),
        "copy": lambda: [torch.empty_like(one).copy_(one) for one in arrays],
    }
    rounds = measured(runs, MANY_ROUNDS)
    return {
        f"{name}: trace / bare loop": median(one["trace"] / one["loop"] for one in rounds),
        f"{name}: tapped trace / (bare loop + copy)": median(one["tapped"] / (one["loop"] + one["copy"]) for one in rounds),
        f"{name}: tapped trace / bare loop": median(one["tapped"] / one["loop"] for one in rounds),
        f"{name}: megabytes tapped": round(sum(one.numel() * one.element_size() for one in arrays) / 1e6, 1),
    }


def savings() -> dict[str, float]:
    """What chunks of rows and leaving at rest save."""
    f, z, _ = bound("eqr-sudoku-6", ROWS)
    whole = orbits.CPU_CHUNK

    def traced(chunk: int, rest: float | None) -> Callable[[], al.Trajectory]:
        def run() -> al.Trajectory:
            orbits.CPU_CHUNK = chunk
            traj = al.trace(f, z, ticks=4 * TICKS, keep=al.only_last(), rest=rest)
            orbits.CPU_CHUNK = whole
            return traj

        return run

    rounds = measured({"at once": traced(2**40, None), "chunks": traced(whole, None), "rest": traced(whole, 5e-7)}, ROUNDS)
    return {
        "all rows at once / in chunks": median(one["at once"] / one["chunks"] for one in rounds),
        "in chunks / leaving at rest": median(one["chunks"] / one["rest"] for one in rounds),
    }


def bound(name: str, rows: int) -> tuple[al.LatentMap, al.State, al.models.AbstractReasoner]:
    """A bundled model on `rows` rows, one tick a segment, with its starts."""
    reasoner = al.models.load(name)
    puzzles = al.tasks.load(name.removeprefix("eqr-"), split="test", rows=slice(0, rows // 8))
    f = al.strobe(reasoner.bind(puzzles), reasoner.config.H_cycles).take(al.repeat_rows(len(puzzles), 8))
    return f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), reasoner


@torch.no_grad()
def bare_loop(f: al.LatentMap, z: al.State) -> list[Any]:
    """Readouts and residuals of as many applications as a trace makes."""
    kept = []
    for _ in range(TICKS + 1):
        new = f(z)
        change = torch.cat([(new[name] - z[name]).flatten(1) for name in z], dim=1).norm(dim=1)
        kept.append((f.readout(z), change / torch.cat([leaf.flatten(1) for leaf in z.values()], dim=1).norm(dim=1)))
        z = new
    return kept


def measured(runs: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """CPU seconds of every run in every round, after one round to warm up."""
    found = []
    for k in range(rounds + 1):
        times, held = {}, []
        for name in list(runs)[:: 1 if k % 2 else -1]:
            began = time.process_time()
            held.append(runs[name]())  # held until the round is over, so that every run writes into fresh memory
            times[name] = time.process_time() - began
        found.append(times)
    return found[1:]


def median(values: Any) -> float:
    """The median, to three digits after the point."""
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
