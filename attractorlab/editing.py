"""Edits of a run: patch, steer, ablate, freeze and add noise, between ticks and inside them; and how the run goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from attractorlab.points import Call
from attractorlab.types import Trajectory

Ticks = int | Sequence[int] | slice | None


@dataclass(frozen=True, eq=False)
class Edit:
    """What is put in the place of a value inside a run; made by `patch`, `steer`, `ablate`, `freeze`, `add_noise`, or by hand.

    Args:
        point: A leaf of the state, or a submodule of `f.model` by its dotted name.
        change: Given a copy of the value [row ...] and the call, the value to go on with, of the same shape, dtype and device.
        deed: What it does, for the record: "patch", "add 2 x a direction".
        ticks: At which ticks: one, several, a slice of them, or None for all. Tick t is the application that starts from the state at tick t.
        calls: In which updates of the tick, as a glob ("L*", "H"). None: at every call of a module; for a leaf, before the tick begins.
        where: Which numbers are edited, broadcast to the value; None for all.
    """

    point: str
    change: Callable[[Tensor, Call], Tensor]
    deed: str
    ticks: Ticks
    calls: str | None = None
    where: Bool[Tensor, "..."] | None = None

    def apply(self, value: Tensor, call: Call) -> Tensor:
        """The edited value.

        Raises:
            ValueError: If `change` returned something else than a tensor of the same shape, dtype and device, or `where` does not broadcast to the value.
        """
        try:
            if self.where is not None and not _fits(self.where.shape, value.shape):
                raise ValueError(
                    f"An edit at {self.point} got where= of {tuple(self.where.shape)} for a value of {tuple(value.shape)}. It chooses numbers of the value, rows first, and is broadcast "
                    "to it from the right. Index or reshape `where` to that shape, or to one with axes of length 1."
                )
            new = self.change(value.clone(), call)
            if not isinstance(new, Tensor) or (new.shape, new.dtype, new.device) != (value.shape, value.dtype, value.device):
                got = (
                    f"{str(new.dtype).removeprefix('torch.')} {tuple(new.shape)} on {new.device}"
                    if isinstance(new, Tensor)
                    else type(new).__name__
                )
                raise ValueError(
                    f"An edit at {self.point} gave {got} for {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}. "
                    "What is put in the place of a value has its shape, dtype and device. Return such a tensor, or expand yours."
                )
            return new if self.where is None else torch.where(self.where.to(value.device), new, value)
        except BaseException as error:
            inside = f", call {call.call}" + (f" ({call.update})" if call.update else "")
            error.add_note(f"in edit '{self.deed}' at {self.point}, tick {call.tick}{inside}")
            raise


@dataclass(frozen=True, eq=False)
class Continuation:
    """How a run goes on after an edit: `free_running`, `clamped`, or `teacher_forced(clean)`."""

    name: str
    clean: Trajectory | None = None

    def __post_init__(self) -> None:
        if self.name not in ("free-running", "clamped", "teacher-forced") or (self.name == "teacher-forced") != (self.clean is not None):
            raise ValueError(
                f"`Continuation` got {self.name!r} {'with' if self.clean else 'without'} a clean run. There are three ways to go on, and teacher-forced alone has a clean run. "
                "Use free_running, clamped or teacher_forced(clean)."
            )


free_running = Continuation("free-running")
"""Edits are made at the ticks chosen, and the system runs on from the edited state."""
clamped = Continuation("clamped")
"""From the first tick chosen on, edits are made at every later tick too."""


def teacher_forced(clean: Trajectory) -> Continuation:
    """A continuation that puts the state back to that of `clean` after each tick, so that each tick shows the effect of its edits alone.

    Args:
        clean: The run to go back to: the same map, rows and starts, with every state kept, without edits or kicks. Weights on record and the first tick are held against the map.
    """
    return Continuation("teacher-forced", clean)


def patch(
    point: str,
    values: Shaped[Tensor, "..."] | Trajectory,
    *,
    ticks: Ticks,
    calls: str | None = None,
    where: Bool[Tensor, "..."] | None = None,
) -> Edit:
    """An edit that puts given values in the place of those at a point.

    Args:
        point: A leaf of the state, or a submodule of `f.model` by its dotted name.
        values: One value for each row, [row ...], or one for all rows, [...]; or another run of as many rows, from which the value at the same tick and call is taken:
            its states for a leaf between ticks, its taps otherwise.
        ticks: At which ticks: one, several, a slice of them, or None for all. Tick t is the application that starts from the state at tick t.
        calls: In which updates of the tick, as a glob ("L*", "H"). None: at every call of a module; for a leaf, before the tick begins.
        where: Which numbers are replaced, broadcast to the value [row ...]; None for all.

    Raises:
        ValueError: If `values` is a run that recorded nothing at the point. While the run goes: if it has no such tick or call, or shapes differ.

    Example:
        >>> from attractorlab import every, trace
        >>> from attractorlab.maps import LatentMap
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {})
        >>> edit = patch("z", torch.tensor([8.0]), ticks=2)
        >>> trace(half, {"z": torch.ones(1, 1)}, ticks=3, keep=every(1), edits=[edit], continuation=free_running).states["z"].flatten().tolist()
        [1.0, 0.5, 8.0, 4.0]
    """
    if isinstance(values, Trajectory):
        return Edit(
            point, _from_run(point, values, between=calls is None and point in values.states), "patch from another run", ticks, calls, where
        )
    given = values

    def change(value: Tensor, call: Call) -> Tensor:
        return given.to(value).expand(value.shape) if given.ndim < value.ndim else given.to(value)

    return Edit(point, change, "patch", ticks, calls, where)


def steer(
    point: str,
    direction: Float[Tensor, "..."],
    *,
    ticks: Ticks,
    scale: float,
    calls: str | None = None,
    where: Bool[Tensor, "..."] | None = None,
) -> Edit:
    """An edit that adds `scale` times a direction to the values at a point.

    Args:
        point: A leaf of the state, or a submodule of `f.model` by its dotted name.
        direction: Broadcast to the value [row ...] from the right: [width], [site width] or [row site width]. It is taken as it is, not brought to unit length.
        ticks: At which ticks, as for `patch`.
        scale: How much of it.
        calls: In which updates, as for `patch`.
        where: Which numbers are changed, as for `patch`.
    """

    def change(value: Tensor, call: Call) -> Tensor:
        return value + scale * direction.to(value)

    return Edit(point, change, f"add {scale:g} x a direction", ticks, calls, where)


def ablate(
    point: str,
    *,
    ticks: Ticks,
    mean: Float[Tensor, "..."] | None = None,
    calls: str | None = None,
    where: Bool[Tensor, "..."] | None = None,
) -> Edit:
    """An edit that puts zero, or a mean that is given, in the place of the values at a point.

    Args:
        point: A leaf of the state, or a submodule of `f.model` by its dotted name.
        ticks: At which ticks, as for `patch`.
        mean: What stands for "no information" instead of zero, broadcast to the value [row ...] from the right: the mean of the point over other instances, say.
        calls: In which updates, as for `patch`.
        where: Which numbers are ablated, as for `patch`.
    """

    def change(value: Tensor, call: Call) -> Tensor:
        return torch.zeros_like(value) if mean is None else mean.to(value).expand(value.shape)

    return Edit(point, change, "ablate to zero" if mean is None else "ablate to a mean", ticks, calls, where)


def freeze(point: str, *, ticks: Ticks, calls: str | None = None, where: Bool[Tensor, "..."] | None = None) -> Edit:
    """An edit that holds, row by row, the value that it met at its first call.

    Args:
        point: A leaf of the state, or a submodule of `f.model` by its dotted name.
        ticks: At which ticks, as for `patch`; the value is that of the first of them.
        calls: In which updates, as for `patch`. Without it all calls of a module are held at the value of its first.
        where: Which numbers are held, as for `patch`.
    """

    def change(value: Tensor, call: Call) -> Tensor:
        return value if call.first is None else call.first.clone()

    return Edit(point, change, "freeze", ticks, calls, where)


def add_noise(
    point: str,
    scale: float,
    *,
    ticks: Ticks,
    generator: torch.Generator,
    calls: str | None = None,
    where: Bool[Tensor, "..."] | None = None,
) -> Edit:
    """An edit that adds independent normal numbers of standard deviation `scale` to the values at a point.

    They are drawn anew at every call, in the dtype of the value, for all rows at once: a row's noise depends on the rows before it.

    Args:
        point: A leaf of the state, or a submodule of `f.model` by its dotted name.
        scale: The standard deviation.
        ticks: At which ticks, as for `patch`.
        generator: Draws the numbers; a run leaves it further on.
        calls: In which updates, as for `patch`.
        where: Which numbers are changed, as for `patch`.
    """

    def change(value: Tensor, call: Call) -> Tensor:
        return value + scale * torch.randn(value.shape, generator=generator, dtype=value.dtype, device=generator.device).to(value.device)

    return Edit(point, change, f"add noise of {scale:g}", ticks, calls, where)


def _fits(shape: torch.Size, onto: torch.Size) -> bool:
    """Whether a tensor of a shape broadcasts to another without changing that."""
    return len(shape) <= len(onto) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(onto), strict=False))


def _from_run(point: str, run: Trajectory, *, between: bool) -> Callable[[Tensor, Call], Tensor]:
    """A change to the value that another run had at the same tick and call."""
    if not between and point not in run.taps:
        raise ValueError(
            f"`patch` got a run that recorded nothing at {point}. Values are taken from the states of a run for a leaf between ticks, and from its taps otherwise. "
            f"Trace that run with tap=Tap(f.model, {point!r})."
        )
    at = {tick: k for k, tick in enumerate(run.kept.tolist())}

    def change(value: Tensor, call: Call) -> Tensor:
        # A leaf is met after every update, but recorded after those alone that rewrite it: there the name of the update decides.
        calls = run.calls.get(point, ())
        number = (
            call.call
            if calls[call.call : call.call + 1] == (call.update,)
            else calls.index(call.update)
            if calls.count(call.update) == 1
            else -1
        )
        if call.tick not in at or (not between and number < 0):
            raise ValueError(
                f"`patch` got a run that recorded nothing at {point} at tick {call.tick}, call {call.call} ({call.update}). Each value is taken from the same tick and call. "
                "Trace that run with keep=every(1) and the same clock, or choose other ticks and calls."
            )
        return (run.states[point][at[call.tick]] if between else run.taps[point][at[call.tick], number]).to(value)

    return change
