"""attempt and elastic: many starts through a fixed number of slots, read at a few ticks, in memory that does not grow with the ticks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attractorlab.dynamics.door import check_some
from attractorlab.dynamics.orbits import check_tol, rows_at_once
from attractorlab.dynamics.slots import HELD, WINDOW, Slots
from attractorlab.maps import LatentMap
from attractorlab.types import Attempts, Result, State, dims_of

MOST_SLOTS = 64  # on a processor: more rows at a time gain nothing, and slots without a row are computed too
AT_READS = ("answer", "solved", "valid", "residual", "logit_change", "halt")  # what is known of a row at each tick read, and at its halting
PER_OCTAVE = 4  # ticks that are read in a doubling of depth

Verify = Callable[[Int[Tensor, " row"], Int[Tensor, "... row site"]], Bool[Tensor, "... row"]]
"""Whether answers obey the task's own rules, from the instance of each row and answers, of which a row has several. It sees no target."""


@dataclass(frozen=True)
class Halting:
    """When a row may leave: its halting value is above `above` after `after` ticks or more; or its residual was below `rest` at each of three ticks.

    Args:
        above: The halting value, a logit, must exceed it: 0 as published for EqR and TRM. HRM's published rule compares it with a second value, `continue`, which is not looked at here.
        after: Ticks before which no row leaves.
        rest: Relative residual below which a row leaves as well; None for the halting value alone.
    """

    above: float
    after: int
    rest: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.after, int) or self.after < 1 or math.isnan(self.above) or not (self.rest is None or self.rest > 0):
            raise ValueError(
                f"`Halting` got above={self.above}, after={self.after!r}, rest={self.rest}. A threshold is a number, ticks are whole and count from 1, a residual is above 0. "
                "Use Halting(above=0.0, after=1, rest=None)."
            )

    def __str__(self) -> str:
        rest = "" if self.rest is None else f", or residual < {self.rest:g} at 3 ticks"
        return f"halt > {self.above:g} from tick {self.after} on{rest}"


def attempt(
    f: LatentMap,
    z: State,
    *,
    ticks: int,
    read: Sequence[int],
    slots: int,
    halting: Halting | None,
    hold: float | None,
    targets: Int[Tensor, "instance site"] | None = None,
    verify: Verify | None = None,
) -> Attempts:
    """Follow every row for `ticks` ticks and read it at the ticks `read`.

    Rows go through a fixed number of slots, whatever their number, so that each is computed in a batch of one shape; a slot whose row has ended takes the next row at once.

    A row whose state returns to the bit after one tick or two is known for all later ticks and leaves early: this is exact where the map gives a row the same bits in every slot, which
    `hold=None` relies on and nothing else. In float32 a row at rest mostly goes on moving in its last digits; `hold` lets it go too, and this is no proof: see there.

    Args:
        f: The map.
        z: The starts, one per row of `f`.
        ticks: Ticks to follow each row.
        read: Ticks, from 1 to `ticks`, at which answers and scores are read.
        slots: Rows that are computed at a time; see `slots_for`.
        halting: The policy whose halting tick is recorded; the row goes on. None where the map reads out no `halt`.
        hold: Relative residual, near the rounding floor, below which a row at three ticks in a row is held as it is, provided that over all ticks left, at the pace of the last one, no
            site could change its class and the halting value could not cross its threshold; not before the policy's first tick and, where it has a `rest`, not before it let the row go.
            It assumes that a row at rest does not speed up again, which nothing proves: it may sit beside a saddle. The scores of a held row stay as they were, so that among rows at rest
            residual and logit change are rounding, and a higher threshold that its halting value would have crossed later is not seen. None follows such rows to the end.
        targets: The right answers, one row per instance.
        verify: Whether answers obey the rules of the task, for the column `valid`.

    Raises:
        ValueError: If sizes do not fit, states are no floating-point numbers, `read` leaves the range, a policy or `hold` needs a readout that the map lacks, or a few rows show that the
            map writes into its argument or gives no state like it.

    Example:
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}, readout=lambda z: {"answer": (z["z"] < 0.1).long()}, clock="tick")
        >>> z = {"z": torch.tensor([[1.0], [0.3]])}
        >>> attempt(half, z, ticks=6, read=[1, 2, 6], slots=2, halting=None, hold=None, targets=torch.tensor([[1]])).first_solved.tolist()
        [4, 2]
    """
    return _followed(f, z, ticks, read, slots, halting, targets, verify, leave=False, hold=hold)


def elastic(
    f: LatentMap,
    z: State,
    *,
    ticks: int,
    read: Sequence[int],
    slots: int,
    halting: Halting,
    targets: Int[Tensor, "instance site"] | None = None,
    verify: Verify | None = None,
) -> Attempts:
    """The same with every row leaving its slot at its halting tick, or at tick `ticks`: the elastic budget of the paper, a refilled queue.

    Reads after the end of a row repeat what it answered then.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": z["z"] + 1}, {}, readout=lambda z: {"answer": z["z"].long(), "halt": z["z"][:, 0] - 3.5}, clock="tick")
        >>> run = elastic(f, {"z": torch.tensor([[0.0], [2.0], [-9.0]])}, ticks=8, read=[8], slots=2, halting=Halting(0.0, 1, None))
        >>> run.last_tick.tolist(), [Result.of(code).name for code in run.result.tolist()]
        ([4, 2, 8], ['HALTED', 'HALTED', 'COMPLETED'])

    References:
        arXiv 2605.21488, section 6.3.
    """
    return _followed(f, z, ticks, read, slots, halting, targets, verify, leave=True, hold=None)


def halted(runs: Attempts) -> Attempts:
    """What `elastic` would have given, from rows that were followed to the end: each as it was at its halting tick.

    A row does not feel the rows beside it, so that nothing needs to be run again; `computed` says what was. `first_solved` and `stays_solved` remain those of the rows followed to
    the end, which `elastic` cannot know.

    Raises:
        ValueError: If no halting was recorded.
    """
    if not runs.policy:
        raise ValueError("`halted` got runs without a halting policy. A row leaves by a rule that was stated beforehand. Run `attempt` with halting=Halting(0.0, 1, None).")
    left = (runs.halt_tick >= 0) & (runs.read[:, None] >= runs.halt_tick)
    gone = runs.halt_tick >= 0

    seen = {name: vars(runs)[name] for name in AT_READS}
    as_left: dict[str, Any] = {name: torch.where(left, runs.at_halt[name], values) for name, values in seen.items() if values is not None}
    return replace(
        runs,
        **as_left,
        final=runs.final_at_halt,
        last_tick=torch.where(gone, runs.halt_tick, runs.last_tick),
        result=torch.where(gone & (runs.halt_tick < runs.ticks), Result.HALTED.code, runs.result),
        elastic=True,
    )


def under(runs: Attempts, halting: Halting) -> Attempts:
    """The same runs under another halting policy, which looks at a row at the ticks read alone: what it would have done between them is not known.

    Its halting ticks are therefore ticks that were read, at or after those of a policy that looks at every tick. `rest` is taken of the mean residual over the last three ticks.
    Of a row that it does not let go, `at_halt` is what was read last. `final_at_halt` is −1 at every site where the answer at the halting was not kept: there its fingerprint alone is known.

    Raises:
        ValueError: If the runs were left at their halting, or have no halting value.
    """
    if runs.elastic or (runs.halt is None and halting.rest is None):
        raise ValueError(
            f"`under` got runs that {'were left at their halting' if runs.elastic else 'have no halting value'}. A policy is tried on rows followed to the end. "
            "Use `attempt` on a map that reads out `halt`, or give the policy a `rest`."
        )
    goes = torch.zeros_like(runs.residual, dtype=torch.bool) if runs.halt is None else runs.halt > halting.above
    if halting.rest is not None:
        goes = goes | ((runs.residual < halting.rest) & (runs.read >= WINDOW)[:, None])
    goes = goes & (runs.read >= halting.after)[:, None]
    first = torch.where(goes.any(0), goes.int().argmax(0), len(runs.read) - 1)
    stops = goes.any(0)
    row = torch.arange(len(first))
    seen = {name: vars(runs)[name] for name in AT_READS}
    anew = stops | (runs.halt_tick >= 0)  # any other was read at the last tick, and still is
    at_halt = {name: torch.where(anew, values[first, row], runs.at_halt[name]) for name, values in seen.items() if values is not None}
    then = torch.full_like(runs.final, -1)
    for mark, known in ((runs.at_halt["answer"], runs.final_at_halt), (fingerprint(runs.final), runs.final)):
        then = torch.where((at_halt["answer"] == mark)[:, None], known, then)
    return replace(
        runs,
        halt_tick=torch.where(stops, runs.read[first], -1),
        at_halt=at_halt,
        final_at_halt=then,
        policy=f"{halting}, looked at when read",
    )


def slots_for(z: State) -> int:
    """Rows at a time that suit the device, never depending on how many there are."""
    return min(MOST_SLOTS, rows_at_once(z)) if next(iter(z.values())).device.type == "cpu" else rows_at_once(z)


def spaced(ticks: int, *, also: Sequence[int] = ()) -> list[int]:
    """Ticks to read: 1 to 8, then four in each doubling, the last one, and `also`.

    Example:
        >>> spaced(32)
        [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32]
    """
    steps, at = set(range(1, min(8, ticks) + 1)) | set(also) | {ticks}, 3 * PER_OCTAVE
    while (tick := round(2 ** (at / PER_OCTAVE))) <= ticks:
        steps.add(tick)
        at += 1
    return sorted(steps)


def joined(parts: Sequence[Attempts]) -> Attempts:
    """Attempts at different instances as one, side by side.

    Raises:
        ValueError: If there are none, or they were not made alike: of one model, clock and policy, read at the same ticks.
    """
    kinds = {
        (one.clock, one.ticks, *one.read.tolist(), one.elastic, one.policy, one.held.partition(" at 3 ticks")[0], one.origin.weights, one.origin.dtype, one.final.shape[1], *(vars(one)[name] is None for name in AT_READS))
        for one in parts
    }
    if len(kinds) != 1:
        raise ValueError(
            f"`joined` got {len(parts)} attempts of {len(kinds)} kinds. Only rows of one model, clock and policy, read at the same ticks, stand side by side. "
            "Make all of them by `attempt` with the same arguments."
        )
    first = parts[0]
    axes = dict.fromkeys(AT_READS, 1) | {name: 0 for name, dims in dims_of(Attempts).items() if dims[0] == "row" and name != "at_halt"}
    present: dict[str, Any] = {name: torch.cat([vars(part)[name] for part in parts], dim=axis) for name, axis in axes.items() if vars(first)[name] is not None}
    return replace(
        first,
        **present,
        at_halt={name: torch.cat([part.at_halt[name] for part in parts]) for name in first.at_halt},
        origin=replace(first.origin, device=", ".join(sorted({part.origin.device for part in parts}))),
    )


def _followed(
    f: LatentMap,
    z: State,
    ticks: int,
    read: Sequence[int],
    slots: int,
    halting: Halting | None,
    targets: Tensor | None,
    verify: Verify | None,
    *,
    leave: bool,
    hold: float | None,
) -> Attempts:
    instance, start = f.coordinates(z)
    name = "elastic" if leave else "attempt"
    steps = sorted(set(read))
    if not all(isinstance(one, int) for one in (ticks, slots, *steps)) or slots < 1 or ticks < 1 or not steps or steps[0] < 1 or steps[-1] > ticks or not len(instance):
        raise ValueError(
            f"`{name}` got ticks={ticks}, read={list(read)[:8]}, slots={slots} for {len(instance)} rows. There is one row, slot and tick or more, whole numbers all, and ticks are read from 1 to the last. "
            "Use ticks=64, read=spaced(64), slots=slots_for(z)."
        )
    if hold is not None:
        for leaf in z.values():
            check_tol(hold, leaf.dtype, name, named="hold")
    if targets is not None and (targets.ndim != 2 or len(targets) <= int(instance.max())):
        raise ValueError(
            f"`{name}` got targets of shape {tuple(targets.shape)} for instances up to {int(instance.max())}. Targets are one row of sites per instance. Pass the `targets` that were bound."
        )
    if not all(leaf.is_floating_point() for leaf in z.values()):
        kinds = ", ".join(sorted({str(leaf.dtype).removeprefix("torch.") for leaf in z.values()}))
        raise ValueError(f"`{name}` got states in {kinds}. Residuals are measured between floating-point numbers. Cast the state: `trees.to(z, torch.float64)`.")
    check_some(f, z, name, laws=False)
    run = Slots(f, z, ticks=ticks, read=steps, slots=slots, targets=None if targets is None else targets[instance], leave=leave, hold=hold, caller=name)
    if halting is not None:
        run.stop_at(above=halting.above, after=halting.after, rest=halting.rest)
    run.go()
    return _noun(run, f, instance, start, halting, verify, leave=leave, hold=hold)


def _noun(
    run: Slots, f: LatentMap, instance: Tensor, start: Tensor, halting: Halting | None, verify: Verify | None, *, leave: bool, hold: float | None
) -> Attempts:
    """The tables of a run, without the answers at every read."""
    seen = run.seen()
    reads = len(run.read)
    answer = seen.pop("answer")
    seen["answer"] = fingerprint(answer)
    if verify is not None:
        seen["valid"] = verify(instance, answer.transpose(0, 1).long()).cpu().T
    kept = {name: values[:, :reads].T.contiguous() for name, values in seen.items()}
    return Attempts(
        read=torch.tensor(run.read),
        answer=kept["answer"],
        solved=kept.get("solved"),
        valid=kept.get("valid"),
        residual=kept["residual"],
        logit_change=kept.get("logit_change"),
        halt=kept.get("halt"),
        at_halt={name: values[:, reads] for name, values in seen.items()},
        halt_tick=run.halt_tick(),
        first_solved=run.first_solved(),
        stays_solved=run.stays_solved(),
        final=answer[:, reads + 1],
        final_at_halt=answer[:, reads],
        last_tick=run.last_tick(),
        computed=run.computed(),
        result=run.result(),
        instance=instance,
        start=start,
        ticks=run.ticks,
        elastic=leave,
        policy="" if halting is None else str(halting),
        held=HELD if hold is None else f"{HELD}, or residual < {hold:g} at 3 ticks and no other answer within reach at that pace, which is no proof that none comes",
        clock=f.clock,
        origin=f.origin,
    )


def fingerprint(answer: Int[Tensor, "... site"]) -> Int[Tensor, "..."]:
    """A number that is equal for equal answers; two different ones share it in one of 10¹⁸ cases."""
    draw = torch.Generator().manual_seed(20)
    weight = torch.randint(-(2**62), 2**62, (answer.shape[-1],), generator=draw) * 2 + 1
    return (answer.cpu().long() * weight).sum(-1)
