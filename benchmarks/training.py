"""Time a training segment, and say what share of it is its matrix products: the share of the speed that they alone would allow. Prints JSON.

Times are CPU seconds of one thread, in segments of 128 slots of `trm-sudoku-9`; the share is from torch's profiler, of its computing time. The slots are learned from in groups; the last ratio
says what that saves against learning from all at once. First of all the same segment is timed with freed memory given back to the system and kept, as `attractorlab train` does. Without a C++
compiler only the eager engine is timed.
"""

import json
import statistics
import time
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from attractorlab.models.compiling import can_compile
from attractorlab.training import loop
from attractorlab.training.config import PRESETS
from attractorlab.training.preparing import keep_freed_memory

SEGMENTS, ROUNDS = 6, 5
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")


def main() -> None:
    """Time the engines in turn, several rounds, then profile each."""
    torch.set_num_threads(1)
    torch._logging.set_logs(dynamo=40)  # compiling for two sizes of groups is meant
    engines = ("eager", "compiled") if can_compile(torch.device("cpu")) else ("eager",)
    trainers = {(engine, cached): trainer(engine, cached) for engine in engines for cached in (loop.CACHED, PRESETS["trm-sudoku-9"].batch)}
    given_back = [seconds(trainers[engines[-1], loop.CACHED]) for _ in range(ROUNDS)]
    keeps = keep_freed_memory()
    rounds = [{name: seconds(one) for name, one in trainers.items()} for _ in range(ROUNDS)]
    found = {}
    for engine in engines:
        grouped, whole = trainers[engine, loop.CACHED], (engine, PRESETS["trm-sudoku-9"].batch)
        found[engine] = {
            "seconds a segment": round(statistics.median(one[engine, loop.CACHED] for one in rounds), 3),
            "matrix products / all computing": round(share(grouped), 3),
            "all slots at once / in groups": round(statistics.median(one[whole] / one[engine, loop.CACHED] for one in rounds), 3),
        }
    if len(engines) == 2:
        found["eager / compiled"] = round(statistics.median(one["eager", loop.CACHED] / one["compiled", loop.CACHED] for one in rounds), 3)
    if keeps:
        found["freed memory given back / kept"] = round(statistics.median(given_back) / statistics.median(one[engines[-1], loop.CACHED] for one in rounds), 3)
    print(json.dumps({**found, "slots in a group": loop.CACHED, "rounds": ROUNDS, "threads": torch.get_num_threads()}, indent=1))


def trainer(engine: str, cached: int) -> loop.Trainer:
    """A training that has learned from two segments, in groups of at most `cached` slots."""
    one = loop.Trainer(replace(PRESETS["trm-sudoku-9"], engine=engine, puzzles=400))
    one.groups = torch.arange(len(one.steps)).split(cached)
    for _ in range(2):
        one._segment()
    return one


def seconds(one: loop.Trainer) -> float:
    """CPU seconds of a segment."""
    began = time.process_time()
    for _ in range(SEGMENTS):
        one._segment()
    return (time.process_time() - began) / SEGMENTS


def share(one: loop.Trainer) -> float:
    """The matrix products' share of the computing time."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(SEGMENTS):
            one._segment()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(spent.get(name, 0) for name in PRODUCTS) / sum(spent.values())


if __name__ == "__main__":
    main()
