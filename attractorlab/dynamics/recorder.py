"""trace: follow every row for a number of ticks and keep what is asked for."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.door import check_some, check_strategy
from attractorlab.dynamics.inside import Edits, Inside, Taps, check_updates
from attractorlab.dynamics.orbits import DIVERGED, check_tol, chunks
from attractorlab.editing import Continuation, Edit
from attractorlab.maps import LatentMap, relative
from attractorlab.points import Tap
from attractorlab.types import Result, State, Trajectory

Keep = Callable[[int], Int[Tensor, " kept"]]
"""Given the number of ticks, the ticks at which whole states are kept. The last is always among them."""
Kick = Callable[[State, int], State]
"""Given the state and its tick, the state to go on from."""
LAGS = 8  # longest period that is looked for at the end
COMPLETED, ENDED = Result.COMPLETED.code, (Result.DIVERGED.code, Result.NONFINITE.code)
REST_TICKS = 3  # ticks in a row below `rest` after which a row is followed no further


def every(n: int) -> Keep:
    """Keep the state at every n-th tick, the start and the last.

    Example:
        >>> every(4)(10).tolist()
        [0, 4, 8, 10]
    """
    if n < 1:
        raise ValueError(f"`every` got {n}. States are kept once in 1 or more ticks. Use every(1).")
    return lambda ticks: torch.unique(torch.cat([torch.arange(0, ticks + 1, n), torch.tensor([ticks])]))


def only_last() -> Keep:
    """Keep the state at the last tick alone."""
    return lambda ticks: torch.tensor([ticks])


def log_spaced(n: int) -> Keep:
    """Keep the start and up to `n` states at ticks that grow geometrically up to the last.

    Example:
        >>> log_spaced(4)(64).tolist()
        [0, 1, 4, 16, 64]
    """
    if n < 1:
        raise ValueError(f"`log_spaced` got {n}. One state or more is kept besides the start. Use log_spaced(8).")
    return lambda ticks: torch.unique(
        torch.cat([torch.tensor([0, ticks]), torch.logspace(0, 1, n, base=max(1, ticks), dtype=torch.float64)[: n - 1].round().long()])
    )


def bytes_of(f: LatentMap, z: State, *, ticks: int, keep: Keep, tap: Tap | None = None) -> int:
    """How many bytes `trace` with these arguments will hold: the price of `keep` and `tap`.

    Example:
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, clock="tick")
        >>> z = {"z": torch.zeros(2, 1000)}
        >>> bytes_of(half, z, ticks=99, keep=every(1)) // 1000, bytes_of(half, z, ticks=99, keep=only_last()) // 1000
        (802, 9)
    """
    kept = len(_kept(keep, ticks))
    with torch.no_grad():
        one = trees.take(z, slice(0, 1))
        read = _read(f.take([0]).readout(one), None)
    scalar = trees.norm(one).element_size()
    alive = torch.ones(1, dtype=torch.bool)
    per_tick = scalar + sum(_bytes(_blank(value.cpu(), alive)) for value in read.values())
    # Besides: the recurrence at every lag, and last_tick, result, instance and start.
    per_row = kept * sum(_bytes(leaf) for leaf in one.values()) + (ticks + 1) * per_tick + LAGS * scalar + 4 * 8
    if tap is not None:
        per_row += kept * sum(_bytes(values) for values in Taps(f, one, tap, kept=torch.zeros(1).long(), hold=False).values.values())
    return trees.rows(z) * per_row + 8 * (kept + ticks + 1)


def trace(
    f: LatentMap,
    z: State,
    *,
    ticks: int,
    keep: Keep,
    rest: float | None = None,
    kick: Kick | None = None,
    tap: Tap | None = None,
    edits: Sequence[Edit] = (),
    continuation: Continuation | None = None,
) -> Trajectory:
    """Follow every row of `z` for `ticks` ticks.

    Residuals and readouts are recorded at each tick from 0 to `ticks`, before anything is cast down. A readout named "logits" is
    recorded as `answer` (the class of each site), `margin` (smallest gap between the two largest logits of a site) and `logit_change` (mean over sites of the
    length of the change since the tick before, the published code's convergence score); any other readout as it is.

    Args:
        f: The map; its clock is copied to the result.
        z: The starts, one per row of `f`.
        ticks: Applications of `f` to follow.
        keep: At which ticks whole states are kept: `every(n)`, `log_spaced(n)` or `only_last()`.
        rest: A row whose residual was below this at 3 ticks in a row is followed no further, and what was recorded of it last stands for the ticks
            that are left; its `result` is CONVERGED and its `last_tick` says from when. Choose it near the rounding floor of the dtype: over the n ticks left, such a
            row could have moved by n times `rest` at most. Leave it out to follow every row to the end.
        kick: Changes the state between ticks, for noise and interventions. It sees all rows at once.
        tap: What is recorded inside the ticks, at the kept ones: every call of the points that it names, in the application that starts from the state of that
            tick, the last included. Recording leaves the run as it is, to the bit, except that compiled modules run as written meanwhile.
        edits: What is changed in the run, see `patch`, `steer`, `ablate`, `freeze`, `add_noise`; several at one point are made in their order. What is recorded of
            a tick (state, readouts, taps) is of the edited run, but a residual is always that of the map itself, without edits, at the state on record: it
            says how far the edit holds the state from where the map would take it. Ticks with an edit inside cost two applications. Edits see all rows at once.
        continuation: How an edited run goes on, asked for with edits: `free_running`, `clamped` or `teacher_forced(clean)`. Teacher-forced, the state
            on record at tick t is what one edited tick made of the clean state at t − 1, edits before that tick included.

    Returns:
        One column per row of `z`, in the same order. A row that leaves the finite numbers, or grows 10⁸-fold, ends there with its
        `result`; the others go on.

    Raises:
        ValueError: If `ticks` is below 1, `keep` leaves out the last tick, `z` and `f` differ in their number of rows, options exclude each other, a few rows show that the map
            writes into its argument or gives no state like it, or a tap or edit names no point of the tick, or one that does not run.

    Example:
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + 1}, {}, clock="tick")
        >>> trace(half, {"z": torch.zeros(1, 1)}, ticks=3, keep=every(1)).states["z"].flatten().tolist()
        [0.0, 1.0, 1.5, 1.75]

        A module that runs twice in every tick has two calls at each kept tick:

        >>> model = torch.nn.ModuleDict({"cell": torch.nn.Tanh()})
        >>> twice = LatentMap(lambda z, x: {"z": model["cell"](model["cell"](z["z"]))}, {}, model=model)
        >>> traj = trace(twice, {"z": torch.ones(5, 3)}, ticks=8, keep=every(4), tap=Tap(model, "cell"))
        >>> traj.taps["cell"].shape
        torch.Size([3, 2, 5, 3])
    """
    if ticks < 1:
        raise ValueError(f"`trace` got ticks={ticks}. A trajectory is at least one tick long. Use ticks=1 or more.")
    instance, start = f.coordinates(z)
    _check_options(z, rest, kick, edits, continuation)
    if not len(start) or not all(leaf.is_floating_point() for leaf in z.values()):
        kinds = ", ".join(sorted({str(leaf.dtype).removeprefix("torch.") for leaf in z.values()}))
        raise ValueError(f"`trace` got {len(start)} rows of {kinds}. A trajectory has one row or more, of floating-point numbers. Pass starts such as `reasoner.start(f.drive, ...)`.")
    kept = _kept(keep, ticks)
    check_some(f, z, "trace", laws=False)
    if tap is not None or edits:
        check_updates(f, z, caller="trace")
    taps = None if tap is None else Taps(f, z, tap, kept=kept, hold=rest is not None)
    plan = None if continuation is None else Edits(f, z, edits, continuation, ticks=ticks)
    # A kick or an edit may couple what it does to the row numbers, so it gets them all; without one, rows go through in chunks that fit the cache.
    whole = kick is not None or plan is not None
    # Allocated whole, and filled by the chunks: what is recorded is copied once.
    states = {name: leaf.new_empty((len(kept), *leaf.shape), device="cpu") for name, leaf in z.items()}
    parts: list[_Part] = []
    with ExitStack() as stack:
        inside = None if taps is None and plan is None else stack.enter_context(Inside(taps, plan))
        for rows in [torch.arange(trees.rows(z))] if whole else chunks(z):
            first = sum(part.result.shape[0] for part in parts)
            mine = {name: leaf[:, first : first + len(rows)] for name, leaf in states.items()}
            if taps is not None:
                taps.chunk(first, first + len(rows))
            parts.append(_follow(f if whole else f.take(rows), trees.take(z, rows), ticks, mine, kept, rest, kick, inside))
    return Trajectory(
        states=states,
        kept=kept,
        ticks=torch.arange(ticks + 1),
        residual=torch.cat([part.residual for part in parts], dim=1),
        recurrence=torch.cat([part.recurrence for part in parts], dim=1),
        readouts={name: torch.cat([part.readouts[name] for part in parts], dim=1) for name in parts[0].readouts},
        last_tick=torch.cat([part.last_tick for part in parts]),
        result=torch.cat([part.result for part in parts]),
        instance=instance,
        start=start,
        clock=f.clock,
        origin=f.origin,
        taps={} if taps is None else taps.values,
        calls={} if taps is None else taps.calls,
        edits=() if plan is None else plan.words,
        continuation="none" if continuation is None else continuation.name,
    )


def _check_options(z: State, rest: float | None, kick: Kick | None, edits: Sequence[Edit], continuation: Continuation | None) -> None:
    """Refuse what excludes each other, and edits of which it is not said how the run goes on."""
    if bool(edits) != (continuation is not None):
        raise ValueError(
            f"`trace` got {len(edits)} edits and {f'continuation={continuation.name}' if continuation else 'no continuation'}. How a run goes on after an edit is a part of the experiment. "
            "Pass both: edits=[...], continuation=al.free_running, al.clamped or al.teacher_forced(clean)."
        )
    if edits and kick is not None:
        raise ValueError(
            "`trace` got both edits and kick. Their order would be a guess. Leave out one of them: `add_noise` and `Edit` change the state between ticks too."
        )
    if rest is not None:
        if kick is not None or edits:
            raise ValueError(
                f"`trace` got both rest and {'edits' if edits else 'kick'}. {'An edit' if edits else 'A kick'} may move a row that is at rest. Leave out one of them."
            )
        check_tol(rest, next(iter(z.values())).dtype, "trace")


def _kept(keep: Keep, ticks: int) -> Int[Tensor, " kept"]:
    """The ticks that `keep` chooses, if they are in order and end with the last."""
    check_strategy(keep, "keep", "trace", example="every(1)")
    kept = keep(ticks)
    if len(kept) == 0 or int(kept[0]) < 0 or int(kept[-1]) != ticks or not bool((kept.diff() > 0).all()):
        raise ValueError(
            f"`trace` got a `keep` that chooses the ticks {kept.tolist()} of {ticks}. Kept ticks increase from 0 or later to the last. "
            "Use every(n), log_spaced(n) or only_last()."
        )
    return kept


def _bytes(values: Tensor) -> int:
    return values.numel() * values.element_size()


@dataclass(frozen=True, eq=False)
class _Part:
    residual: Tensor
    recurrence: Tensor
    readouts: Mapping[str, Tensor]
    last_tick: Tensor
    result: Tensor


@torch.no_grad()
def _follow(
    f: LatentMap, z: State, ticks: int, states: State, kept: Tensor, rest: float | None, kick: Kick | None, inside: Inside | None
) -> _Part:
    """Follow the rows of one chunk; their states go to `states`."""
    n = trees.rows(z)
    place = {tick: k for k, tick in enumerate(kept.tolist())}
    large = DIVERGED * trees.norm(z).clamp(min=1)
    device = large.device
    seen: list[dict[str, Tensor]] = []  # what was read at each tick, of the rows in `index`
    index: list[Tensor] = []
    past: list[State] = []
    last_tick = torch.full((n,), ticks, device=device)
    result = torch.full((n,), COMPLETED, device=device)
    calm = torch.zeros(n, dtype=torch.int64, device=device)  # ticks in a row below `rest`
    moving = torch.arange(n, device=device)  # the rows that are still followed; z holds these alone
    alive = torch.ones(n, dtype=torch.bool, device=device)  # of these, the ones that have not ended
    sound = True  # whether no row has ended: the usual case, kept short
    whole = dict(z)  # all rows: those at rest as they were last
    logits: Tensor | None = None
    for t in range(ticks + 1):
        if inside is not None:
            z = inside.arrive(z, t)
        size = trees.norm(z)
        fine = (size <= large) & size.isfinite()
        if not (sound and bool(fine.all())):
            sound, alive = False, _end(z, size <= large, t, moving=moving, result=result, last_tick=last_tick)
        if len(moving) == n:
            whole = dict(z)
        elif t in place or ticks - t <= LAGS:
            for name, leaf in z.items():
                whole[name][moving] = leaf
        if t in place:
            for name, leaf in whole.items():
                states[name][place[t]] = leaf if sound else _blank(leaf, ~_ended(result))
        if ticks - t <= LAGS:
            # A kick may write into a leaf that the map handed on.
            past.append(dict(z) if len(moving) == n and kick is None else {name: leaf.clone() for name, leaf in whole.items()})
        if not len(moving):
            if inside is not None:
                inside.keep(t)
            continue
        if inside is None:
            new = onward = f(z)
        else:
            new, onward = inside.step(f, z, t, moving=moving, alive=alive, last=t == ticks)
        r = relative(trees.distance(new, z), z, norm=size)
        out = f.readout(z)
        seen.append({name: value if sound else _blank(value, alive) for name, value in {"": r, **_read(out, logits)}.items()})
        index.append(moving)
        logits = out.get("logits")
        if rest is not None:
            calm[moving] = torch.where(r < rest, calm[moving] + 1, 0)
            leaves = alive & (calm[moving] >= REST_TICKS)
            if bool(leaves.any()):
                if len(moving) == n:
                    whole = {name: leaf.clone() for name, leaf in z.items()}
                for name, leaf in z.items():
                    whole[name][moving[leaves]] = leaf[leaves]
                result[moving[leaves]], last_tick[moving[leaves]] = Result.CONVERGED.code, t
                stay = ~leaves
                f, onward, moving = f.take(stay.nonzero().squeeze(1).cpu()), trees.take(onward, stay), moving[stay]
                alive, large = alive[stay], large[stay]
                logits = None if logits is None else logits[stay]
        if t < ticks:
            z = onward if kick is None else kick(onward, t + 1)
    lags = [relative(trees.distance(whole, older), whole) for older in reversed(past[:-1])]
    lags += [torch.full_like(large.new_empty(n), torch.nan)] * (LAGS - len(lags))
    scalars = {name: _held([one[name] for one in seen], index, n, ticks + 1).cpu() for name in seen[0]}
    return _Part(
        residual=scalars.pop(""),
        recurrence=torch.stack([_blank(r, ~_ended(result)) for r in lags]).cpu(),
        readouts=scalars,
        last_tick=last_tick.cpu(),
        result=result.cpu(),
    )


def _end(z: State, bounded: Tensor, tick: int, *, moving: Tensor, result: Tensor, last_tick: Tensor) -> Bool[Tensor, " row"]:
    """Enter the rows that ended at `tick` into `result` and `last_tick`; which of the rows of `z` have not ended."""
    code = torch.where(trees.finite(z), torch.where(bounded, COMPLETED, Result.DIVERGED.code), Result.NONFINITE.code)
    ends = (result[moving] == COMPLETED) & (code != COMPLETED)
    result[moving[ends]], last_tick[moving[ends]] = code[ends], tick - 1
    return result[moving] == COMPLETED


def _ended(result: Tensor) -> Bool[Tensor, " row"]:
    return (result == ENDED[0]) | (result == ENDED[1])


def _held(values: list[Tensor], index: list[Tensor], n: int, ticks: int) -> Shaped[Tensor, "time row ..."]:
    """The values of each tick for all rows: those of `index` anew, the others as they were last."""
    if len(values) == ticks and len(index[-1]) == n:
        return torch.stack(values)
    held = values[0].new_empty((ticks, n, *values[0].shape[1:]))
    for t in range(ticks):
        if t:
            held[t] = held[t - 1]
        if t < len(values):
            held[t, index[t]] = values[t]
    return held


def _read(out: Mapping[str, Tensor], before: Tensor | None) -> dict[str, Tensor]:
    """What is recorded of one tick's readouts."""
    # A copy: a part of a state would keep the whole of it in memory.
    read = {name: _wide(value).clone() for name, value in out.items() if name != "logits"}
    if "logits" in out:
        logits = out["logits"]
        top = logits.topk(min(2, logits.shape[-1]), dim=-1)
        read["answer"] = top.indices[..., 0].to(torch.int16 if logits.shape[-1] < 2**15 else torch.int32)
        gap = top.values[..., 0] - top.values[..., 1] if logits.shape[-1] > 1 else torch.full_like(logits[..., 0], torch.inf)  # one class is the answer whatever comes
        read["margin"] = gap.reshape(len(logits), -1).amin(1)
        change = torch.full_like(logits, torch.nan) if before is None else logits - before
        read["logit_change"] = torch.linalg.vector_norm(change, dim=-1).reshape(len(logits), -1).mean(1)
    return read


def _blank(values: Tensor, alive: Tensor) -> Tensor:
    """`values` with the rows that ended replaced by NaN, or −1."""
    values = _wide(values)
    mask = alive.reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(mask, values, torch.nan if values.is_floating_point() or values.is_complex() else -1)


def _wide(values: Tensor) -> Tensor:
    """`values`, in a dtype that has a −1."""
    return values.to({torch.bool: torch.int8, torch.uint8: torch.int16}.get(values.dtype, values.dtype))
