"""An example of attempts and of each of their readings, for the tests of what is stored."""

from dataclasses import replace

import torch

from attractorlab.types import Attempts, Foresight, HaltingGain, SolveTimes, dims_of
from tests.stored_nouns import INF, NAN, ORIGIN, floats, ints


def attempts(**more):
    made = Attempts(
        read=torch.tensor([1, 4]),
        answer=ints(2, 3),
        solved=torch.tensor([[True, False, True], [False, False, True]]),
        valid=None,
        residual=floats(2, 3),
        logit_change=floats(2, 3),
        halt=None,
        at_halt={"solved": torch.tensor([True, False, True]), "residual": floats(3)},
        halt_tick=torch.tensor([-1, 2, 4]),
        first_solved=torch.tensor([-1, 1, 2]),
        stays_solved=None,
        final=ints(3, 5).to(torch.int8),
        final_at_halt=ints(3, 5).to(torch.int8),
        last_tick=ints(3),
        computed=ints(3),
        result=ints(3),
        instance=torch.tensor([0, 0, 1]),
        start=torch.tensor([0, 1, 0]),
        ticks=4,
        elastic=False,
        policy='halt > 0 "ü"',
        held="",
        clock="2 x recursion",
        origin=ORIGIN,
    )
    return replace(made, **more)


def halting_gain():
    numbers = {name: floats(2, dtype=torch.float64) for name in dims_of(HaltingGain)}
    numbers |= {name: ints(2) for name in ("depth", "matched", "matched_above")} | {"ratio_high": torch.tensor([INF, NAN], dtype=torch.float64)}
    return HaltingGain(**numbers, rows=6, instances=3, clusters=2, level=0.9, policy="halt > 0", clock="tick", origin=ORIGIN)


def foresight():
    numbers = {name: floats(3, 2, dtype=torch.float64) for name in ("auc", "low", "high", "ahead", "ahead_low", "ahead_high")}
    return Foresight(
        read=ints(3), scores=("residual", "halt"), **numbers, unsolved=ints(3), later=ints(3), rows=9, clusters=4, ticks=8, level=0.95, clock="tick", origin=ORIGIN
    )


def solve_times():
    shapes = {"share": (2, 4), "low": (2, 4), "high": (2, 4), "censored": (2,), "level_of": (3,), "easiest": (2,), "hardest": (2,)}
    shapes |= dict.fromkeys(("quantile", "quantile_low", "quantile_high"), (2, 3))
    numbers = {name: floats(*shape, dtype=torch.float64) for name, shape in shapes.items()} | {"quantile_high": torch.full((2, 3), INF, dtype=torch.float64)}
    return SolveTimes(tick=ints(4), **numbers, rows=ints(2), clusters=ints(2), ticks=8, level=0.95, clock="tick", origin=ORIGIN)


EXAMPLES = {
    "attempts": attempts(),
    "attempts without a halting": attempts(at_halt={}, first_solved=None, solved=None, logit_change=None, policy=""),
    "halting gain": halting_gain(),
    "foresight": foresight(),
    "solve times": solve_times(),
}
