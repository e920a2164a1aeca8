"""Whether row i of a hooked map is row i of the inputs: what the second run saw, from what the first run found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attractorlab.models.recording import CONSTANT, Recorder, Ref, copied
from attractorlab.models.replaying import FAILURES, Driving, Pair, Program, Table
from attractorlab.models.rolling import needed
from attractorlab.models.ticking import Ticks, spread
from attractorlab.types import Drive

ROUNDINGS = 300  # by which a tick of some rows may differ from the same tick of others
COARSEST = 2**-4
LOOSE_FLOAT32 = 2**-10  # an accelerator may multiply float32 with so few bits
FILLED_BY_NOTHING = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}


def others(n: int) -> list[int]:
    """The rows of the second run: in another order, in another number, and one of them is not there or there again."""
    return list(range(n - 1, 0, -1)) if n > 2 else [1, 0, 1] if n == 2 else [0, 0]


def check_rows(ticks: Ticks, pair: Pair, program: Program, chosen: Sequence[int], model: nn.Module) -> None:
    """Start, drive and ticks of the second run, each compared with those of the first for the same rows.

    Raises:
        ValueError: If one of them is another.
    """
    one, two = ticks.sides
    grain = _grain(model, two.record)
    starts = [[one_side.record.value(ref) for ref in one_side.cuts[0]] for one_side in ticks.sides]
    likes = [[one_side.record.value(ref) for ref in one_side.after[0]] for one_side in ticks.sides]
    for name, a, b, like_a, like_b, refs in zip(ticks.names, *starts, *likes, zip(one.cuts[0], two.cuts[0], strict=True), strict=True):
        if not any(_arbitrary(side.record, ref) for side, ref in zip(ticks.sides, refs, strict=True)):
            a, b = spread(a, like_a), spread(b, like_b)
            if a.ndim and a.shape[0] == pair.rows[0] and not close(at(a, chosen), b, grain):
                raise _mixed(ticks, chosen, f"the start {name!r}")
    for source, ref in pair.mates.items():
        driving = isinstance(source, Driving) and not _arbitrary(two.record, ref)
        if driving and not close(at(pair.drive[source.name], chosen), two.record.value(ref), grain):
            raise _mixed(ticks, chosen, f"{source.name!r}, which drives the ticks,")
    again, drive = as_second(pair, program, chosen)
    for k, (before, after) in enumerate(zip(two.cuts, two.after, strict=False)):
        z = {name: copied(two.record.value(ref)) for name, ref in zip(ticks.names, before, strict=True)}
        wanted = {name: two.record.value(ref) for name, ref in zip(ticks.names, after, strict=True)}
        if any(z[name].shape != leaf.shape or z[name].dtype != leaf.dtype for name, leaf in wanted.items()):
            continue  # a start that is spread out, or cast, by the first tick
        try:
            with torch.no_grad():
                got = again(z, drive, [two.record.events[number].grad for number in two.own[k]])
        except FAILURES as error:
            raise _mixed(ticks, chosen, f"an error ({type(error).__name__}: {str(error)[:120]}) in tick {k + 1}") from error
        if not all(close(got[name], leaf, grain) for name, leaf in wanted.items()):
            raise _mixed(ticks, chosen, f"the result of tick {k + 1}")


def reads_rows(
    pair: Pair, program: Program, before: Mapping[str, Tensor], wanted: Mapping[str, Tensor], chosen: Sequence[int], model: nn.Module
) -> bool:
    """Whether a readout gives, for the rows of the second run, what the model gave there."""
    again, drive = as_second(pair, program, chosen)
    try:
        with torch.no_grad():
            got = again(before, drive)
    except FAILURES:
        return False
    grain = _grain(model, pair.two)
    return all(close(got[name], leaf, grain) for name, leaf in wanted.items())


def as_second(pair: Pair, program: Program, chosen: Sequence[int]) -> tuple[Program, Drive]:
    """The program and its drive for the rows of the second run; what was drawn at random, or never set, is as the second run had it."""
    own: dict[Any, Tensor] = {source: copied(pair.two.value(ref)) for source, ref in pair.mates.items() if _arbitrary(pair.two, ref)}
    tables = {source: Table(value) for source, value in own.items() if isinstance(source, Table)}
    steps = tuple(
        replace(step, leaves=tuple(tables.get(leaf, leaf) if isinstance(leaf, Table) else leaf for leaf in step.leaves))
        for step in program.steps
    )
    drive = {name: own.get(Driving(name), at(leaf, chosen)) for name, leaf in pair.drive.items()}
    return replace(program, steps=steps), drive


def at(leaf: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows."""
    return leaf.detach().index_select(0, torch.tensor(rows, device=leaf.device))


def close(a: Tensor, b: Tensor, grain: float) -> bool:
    """Whether two tensors are the same up to what a batch of another size rounds otherwise."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (b.is_floating_point() or b.is_complex()) or not b.numel():
        return bool((a == b).all())
    eps = max(grain, torch.finfo(b.dtype).eps)
    finite = b.detach()[b.isfinite()].abs()
    scale = 1 + (float(finite.max()) if len(finite) else 0.0)
    return torch.allclose(a.detach(), b.detach(), rtol=0, atol=min(ROUNDINGS * eps, COARSEST) * scale, equal_nan=True)


def _grain(model: nn.Module, record: Recorder) -> float:
    """The coarsest rounding that the model computes with."""
    kinds = {leaf.dtype for leaf in [*model.parameters(), *model.buffers()] if leaf.is_floating_point()}
    kinds |= {dtype for event in record.events for _, dtype in event.autocast}
    loose = [LOOSE_FLOAT32 for leaf in model.parameters() if leaf.is_cuda and leaf.dtype == torch.float32]
    return max([*(torch.finfo(kind).eps for kind in kinds if kind.itemsize > 1), *loose], default=0.0)


def _arbitrary(record: Recorder, ref: Ref) -> bool:
    """Whether a value rests on random numbers, or on memory that was never set."""
    if ref.event == CONSTANT:
        return False
    made: Iterable[int] = needed(record, [ref.event])
    return any(record.events[number].random or record.events[number].name in FILLED_BY_NOTHING for number in made)


def _mixed(ticks: Ticks, chosen: Sequence[int], what: str) -> ValueError:
    rows = f"{list(chosen)}" if len(chosen) <= 8 else f"{list(chosen[:3])} ... {chosen[-1]}"
    return ticks.seen.error(
        f"gave the model rows {rows} of the inputs, and {what} is not that of these rows among all: row i of the state is not row i of the inputs",
        "Each row of the state goes its own way, whatever the order and the number of rows",
        "Sort, shift or average over rows outside of the hooked module, or give the map by `from_function`",
    )
