"""Time a trace against a bare Python loop of the same map, and what chunking and leaving at rest save. Prints ratios as JSON."""

import json
import statistics
import time
from collections.abc import Callable

import torch

import attractorlab as al
from attractorlab.dynamics import orbits

ROWS, TICKS, ROUNDS = 256, 12, 5


def main() -> None:
    """Measure in turn, several rounds, and print medians of the ratios of one round."""
    reasoner = al.models.load("eqr-sudoku-6")
    puzzles = al.tasks.load("sudoku-6", split="test", rows=slice(0, ROWS // 8))
    f = al.strobe(reasoner.bind(puzzles), reasoner.config.H_cycles).take(al.repeat_rows(len(puzzles), 8))
    z = reasoner.start(f.drive, generator=torch.Generator().manual_seed(0))
    few = torch.arange(48)
    small, z_small = f.take(few), al.trees.take(z, few)

    def loop() -> None:
        with torch.no_grad():
            state = z_small
            for _ in range(TICKS + 1):
                small.readout(state)
                state = small(state)

    whole = orbits.CPU_CHUNK

    def traced(chunk: int, rest: float | None) -> Callable[[], None]:
        def run() -> None:
            orbits.CPU_CHUNK = chunk
            al.trace(f, z, ticks=4 * TICKS, keep=al.only_last(), rest=rest)
            orbits.CPU_CHUNK = whole

        return run

    runs = {
        "loop": loop,
        "trace": lambda: al.trace(small, z_small, ticks=TICKS, keep=al.only_last()) and None,
        "all rows at once": traced(2**40, None),
        "in chunks": traced(whole, None),
        "in chunks, leaving at rest": traced(whole, 5e-7),
    }
    rounds = [{name: timed(run) for name, run in runs.items()} for _ in range(ROUNDS)]
    ratios = {
        "trace / bare loop": [one["trace"] / one["loop"] for one in rounds],
        "all rows at once / in chunks": [one["all rows at once"] / one["in chunks"] for one in rounds],
        "in chunks / leaving at rest": [one["in chunks"] / one["in chunks, leaving at rest"] for one in rounds],
    }
    print(json.dumps({name: round(statistics.median(values), 3) for name, values in ratios.items()} | {"rounds": ROUNDS, "threads": torch.get_num_threads()}))


def timed(run: Callable[[], None]) -> float:
    """Seconds that `run` takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
