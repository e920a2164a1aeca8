"""Attempts: what became of every start of every instance, read at a few ticks."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from attractorlab.types.base import HasRows, Origin


@dataclass(frozen=True, eq=False)
class Attempts(HasRows):
    """Every start of every instance, read at the ticks `read`; what lies between them is not kept, so its size does not grow with the ticks followed.

    `answer` is a fingerprint of the whole answer, equal for equal answers; `final` the answer itself, when the row ended, and `final_at_halt` at its halting. `residual` and `logit_change` are means over the last three
    ticks, or as many as there were: what a selection by them sees. `valid` says whether the answer obeys the task's own rules, which needs no target. `first_solved` and
    `stays_solved` are over every tick from 1 on; −1 is never. `halt_tick` is the first tick at which the stated `policy` lets a row go, −1 for none up to `ticks`, and `at_halt` what was
    read then, at the last tick for the others.

    A row ends at `last_tick`: at its halting where `policy` was followed (`elastic`), else with the last tick; `computed` counts the ticks that were really computed, which are fewer where
    a row at rest was held. `result` is COMPLETED (followed to the last tick), HALTED (left by the policy), CONVERGED (held: see `held`), DIVERGED or NONFINITE. Reads after the end of a row repeat
    its last values, or, where its state returns to the bit every second tick, go on with the two; of a lost row the answer is −1 at every site, so never solved, and the numbers are NaN.
    """

    read: Int[Tensor, " read"]
    answer: Int[Tensor, "read row"]
    solved: Bool[Tensor, "read row"] | None
    valid: Bool[Tensor, "read row"] | None
    residual: Float[Tensor, "read row"]
    logit_change: Float[Tensor, "read row"] | None
    halt: Float[Tensor, "read row"] | None
    at_halt: Mapping[str, Shaped[Tensor, " row"]]
    halt_tick: Int[Tensor, " row"]
    first_solved: Int[Tensor, " row"] | None
    stays_solved: Int[Tensor, " row"] | None
    final: Int[Tensor, "row site"]
    final_at_halt: Int[Tensor, "row site"]
    last_tick: Int[Tensor, " row"]
    computed: Int[Tensor, " row"]
    result: Int[Tensor, " row"]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    ticks: int
    elastic: bool
    policy: str
    held: str
    clock: str
    origin: Origin
