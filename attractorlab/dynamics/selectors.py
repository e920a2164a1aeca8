"""Ways to choose one start of each instance, without its target."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a selector may look at: the starts of each instance at one tick. Never the targets. None: the run has no such readout.

    `residual` and `logit_change` are means over the last three ticks. `halt_tick` is the tick at which the halting policy let the start go, −1 if it did not up to this tick.
    `valid` says whether the answer obeys the rules of the task.
    """

    residual: Float[Tensor, "instance start"]
    answer: Int[Tensor, "instance start"]
    halt: Float[Tensor, "instance start"] | None
    logit_change: Float[Tensor, "instance start"] | None
    halt_tick: Int[Tensor, "instance start"] | None
    valid: Bool[Tensor, "instance start"] | None


Select = Callable[[Candidates], Int[Tensor, " instance"]]
"""Chooses one start per instance."""


def by_residual(c: Candidates) -> Int[Tensor, " instance"]:
    """The start with the lowest mean residual over the last three ticks ("Top-1 converged", arXiv 2605.21488, D.3)."""
    return c.residual.nan_to_num(nan=torch.inf).argmin(1)


def by_logit_change(c: Candidates) -> Int[Tensor, " instance"]:
    """The start whose logits changed least over the last three ticks, as the published code selects: the mean over sites of the length of the change.

    Raises:
        ValueError: If the map reads out no logits.
    """
    if c.logit_change is None:
        raise ValueError("`by_logit_change` got a run without a readout `logits`. It needs the change of the logits at each tick. Use by_residual or by_vote.")
    return c.logit_change.nan_to_num(nan=torch.inf).argmin(1)


def by_vote(c: Candidates) -> Int[Tensor, " instance"]:
    """A start with the most frequent whole answer; of equally frequent ones, that of the lowest start number. Lost starts, whose residual is NaN, have no answer and do not vote."""
    lost = c.residual.isnan()
    votes = (c.answer[:, :, None] == c.answer[:, None, :]).sum(2)
    return votes.masked_fill(lost, 0).argmax(1)


def by_halt(c: Candidates) -> Int[Tensor, " instance"]:
    """The start with the highest halting logit.

    Raises:
        ValueError: If the map reads out no halting logit.
    """
    if c.halt is None:
        raise ValueError("`by_halt` got a run without a readout `halt`. It needs a halting logit per start. Use by_residual or by_vote.")
    return c.halt.nan_to_num(nan=-torch.inf).argmax(1)


def by_first_halt(c: Candidates) -> Int[Tensor, " instance"]:
    """The start that halted after the fewest ticks; of equally quick ones, and where none halted, that with the lowest residual.

    Raises:
        ValueError: If no halting policy was followed.
    """
    if c.halt_tick is None:
        raise ValueError("`by_first_halt` got a run without a halting policy. It needs the tick at which each start halted. Run with halting=Halting(0.0, 1, None), or use by_residual.")
    ticks = torch.where(c.halt_tick < 0, torch.iinfo(torch.int64).max, c.halt_tick)
    first = ticks == ticks.amin(1, keepdim=True)
    return torch.where(first, c.residual.double().nan_to_num(nan=torch.finfo(torch.float64).max), torch.inf).argmin(1)


def by_verifier(c: Candidates) -> Int[Tensor, " instance"]:
    """The first start whose answer obeys the rules of the task, the first of all where none does.

    A task whose answers can be checked lets a user do this: no target is read. Where an instance has one solution, as a proper Sudoku has, it finds what the oracle of the column `any` finds.

    Raises:
        ValueError: If no verifier was given.
    """
    if c.valid is None:
        raise ValueError("`by_verifier` got a run without a verifier. It needs to know which answers obey the rules. Pass verify=..., or use by_residual.")
    return c.valid.int().argmax(1)
