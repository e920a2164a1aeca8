"""The one abstraction: LatentMap, one tick of a reasoner with its instances bound; and strobe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attractorlab import points, trees
from attractorlab.types import Drive, Origin, State

Rule = Callable[[State, Drive], State]
"""One tick, or a part of one: from a state and the drive to a state of the same names, shapes and dtypes."""


def _no_readout(z: State) -> Mapping[str, Tensor]:
    return {}


@dataclass(frozen=True, eq=False)
class Update:
    """A part of a tick that is a map itself: it takes the whole state and rewrites some of its leaves.

    Args:
        name: What it is called within the tick, e.g. "L0", "L1", "H"; `strobe` puts the number of the inner tick before it, "2.L0".
        leaves: The leaves that it rewrites; it hands on the others as they are.
        rule: The update.
    """

    name: str
    leaves: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True, eq=False)
class DrivenReadout:
    """A readout that also needs what the instances contribute: ``z -> rule(z, drive)``. It follows the rows of its map.

    Example:
        >>> f = LatentMap(lambda z, x: z, {"x": torch.tensor([[1.0], [2.0]])}, instance=torch.arange(2), start=torch.zeros(2).long())
        >>> f = replace(f, readout=DrivenReadout(lambda z, x: {"sum": z["z"] + x["x"]}, f.drive))
        >>> f.take([1]).readout({"z": torch.zeros(1, 1)})["sum"]
        tensor([[2.]])
    """

    rule: Callable[[State, Drive], Mapping[str, Tensor]]
    drive: Drive

    def __call__(self, z: State) -> Mapping[str, Tensor]:
        """What is read off `z`."""
        return self.rule(z, self.drive)


@dataclass(frozen=True, eq=False)
class LatentMap:
    """One tick of a reasoner with its instances bound: ``z <- rule(z, drive)``.

    It obeys five laws (closed, pure, deterministic, row-wise, differentiable), which
    `attractorlab.testing.check_map` tests. Everything in `dynamics` relies on them and knows nothing else of the model.

    Args:
        rule: One tick.
        drive: What the instances contribute to every tick, batch first; empty for an undriven map, which then takes any number of rows.
        readout: What can be read off a state, e.g. ``{"logits": [row site class], "halt": [row]}``. One that needs the drive is a `DrivenReadout`.
        clock: What one tick is: "recursion", "segment", ...
        instance, start: Which instance each row is, and from which of its starts; set by `bind` and `take`. Empty for an undriven map.
        origin: The model, weights, dtype and device behind the map.
        updates: The tick taken apart, where its author did so: one after the other they are the rule. Empty: the tick is one piece.
        model: The module that the rule runs, whose parts can be tapped and edited by name; None where there is none.

    Example:
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}, clock="tick")
        >>> half({"z": torch.ones(1, 2)})["z"]
        tensor([[0.5000, 0.5000]])
    """

    rule: Rule
    drive: Drive
    readout: Callable[[State], Mapping[str, Tensor]] = _no_readout
    clock: str = "tick"
    instance: Int[Tensor, " row"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    start: Int[Tensor, " row"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    origin: Origin = Origin()
    updates: tuple[Update, ...] = ()
    model: nn.Module | None = None

    def __call__(self, z: State) -> State:
        """One tick from `z`, its leaves in the order of those of `z`."""
        return _in_order(self.rule(z, self.drive), z)

    @property
    def driven(self) -> bool:
        """Whether the rows are tied to instances."""
        return bool(self.drive)

    @property
    def made_of_updates(self) -> bool:
        """Whether the rule is the updates by construction; where it is not, they can differ."""
        return isinstance(self.rule, InTurn) and self.rule.updates is self.updates

    def take(self, chosen: Sequence[int] | Int[Tensor, " chosen"] | Bool[Tensor, " row"]) -> "LatentMap":
        """The map on chosen (or repeated) rows.

        Rows taken once keep their `start`; if any row is repeated, starts are numbered anew, per instance, in order of
        appearance. An undriven map has no rows of its own: it stays as it is.

        Args:
            chosen: Their numbers, or a mask.

        Raises:
            ValueError: If the map has no such row, or the mask another length.
        """
        if not self.driven:
            return self
        index, n = torch.as_tensor(chosen), len(self.instance)
        if index.dtype == torch.bool:
            if len(index) != n:
                raise ValueError(f"`take` got a mask of {len(index)} for a map of {n} rows. A mask says of each row whether it is taken. Pass {n} of them, or row numbers.")
            index = index.nonzero().squeeze(1)
        index = index.to(torch.int64)
        if len(index) and not -n <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(f"`take` got the rows {int(index.min())} to {int(index.max())} of a map of {n}. Rows are counted from 0. Take rows below {n}.")
        instance = self.instance[index]
        once = len(index) == len(torch.unique(index))
        drive = {name: leaf[index.to(leaf.device)] for name, leaf in self.drive.items()}
        readout = replace(self.readout, drive=drive) if isinstance(self.readout, DrivenReadout) else self.readout
        return replace(self, drive=drive, readout=readout, instance=instance, start=self.start[index] if once else _occurrence(instance))

    def coordinates(self, z: State) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Instance and start of each row of `z`.

        Rows of an undriven map are starts of one instance, 0.

        Raises:
            ValueError: If `z` and the map differ in their number of rows.
        """
        n = trees.rows(z)
        if not self.driven:
            return torch.zeros(n, dtype=torch.int64), torch.arange(n)
        if n != len(self.instance):
            raise ValueError(
                f"A state of {n} rows met a map of {len(self.instance)} rows. Starts and rows pair up one to one. "
                f"Use `f.take([0] * {n})` to try {n} starts on instance 0."
            )
        return self.instance, self.start

    def jvp(self, z: State, v: State) -> State:
        """The Jacobian at `z` times `v`, row by row, in forward mode.

        Fused attention has no forward-mode rule in torch; the plain kernel, which has one, is used here.
        """
        with sdpa_kernel(SDPBackend.MATH):
            # The primal must be contiguous: jvp refuses expanded tensors.
            primal = {name: leaf.detach().contiguous() for name, leaf in z.items()}
            pushed = torch.func.jvp(lambda s: dict(self.rule(s, self.drive)), (primal,), ({name: v[name] for name in primal},))[1]
        return {name: leaf.detach() for name, leaf in _in_order(pushed, z).items()}

    def vjp(self, z: State, u: State) -> State:
        """The transposed Jacobian at `z` times `u`, row by row, in reverse mode."""
        with torch.enable_grad():
            leaves = {name: leaf.detach().clone().requires_grad_(True) for name, leaf in z.items()}
            out = self.rule(leaves, self.drive)
            asked = [name for name in u if out[name].requires_grad]
            if len(asked) < len(u) and not self._constant(z, [name for name in u if name not in asked]):
                asked = list(u)  # torch says what is wrong
            ends, given = [out[name] for name in asked], [u[name] for name in asked]
            pulled: Sequence[Tensor | None] = [None] * len(leaves)
            if asked:
                pulled = torch.autograd.grad(ends, list(leaves.values()), given, allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if part is None else part.detach()
            for (name, leaf), part in zip(leaves.items(), pulled, strict=True)
        }

    def _constant(self, z: State, leaves: Sequence[str]) -> bool:
        """Whether these leaves of the image do not come from the state at all, and not only out of reach of reverse mode, as under `no_grad`."""
        draw = torch.Generator().manual_seed(1)
        pushed = self.jvp(z, {name: torch.randn(leaf.shape, generator=draw).to(leaf) for name, leaf in z.items()})
        return all(bool((pushed[name] == 0).all()) for name in leaves)

    def names(self, z: State) -> points.Points:
        """Every point of a tick that can be tapped and edited, with its shape, its axes and the updates in which it fires.

        Printed, it is a table. The tick is run on two and on three copies of the first row of `z`, to see what fires. Left out are submodules that do not run in a tick
        (a readout head) and those that give no tensor with a row for each row of the state.

        Example:
            >>> model = torch.nn.Linear(3, 3)
            >>> f = LatentMap(lambda z, x: {"z": torch.tanh(model(z["z"]))}, {}, model=torch.nn.ModuleDict({"cell": model}))
            >>> f.names({"z": torch.zeros(1, 3)})
            name  kind    shape of one row  fires
            z     leaf    width 3           once
            cell  module  width 3           once
        """
        return points.names(self, z)

    def residual(self, z: State) -> Float[Tensor, " row"]:
        """The relative residual ‖f(z) − z‖/‖z‖ of each row.

        Raises:
            ValueError: If `z` and the map differ in their number of rows.
        """
        self.coordinates(z)
        with torch.no_grad():
            return relative(trees.distance(self(z), z), z)


def _in_order(out: State, z: State) -> State:
    """`out` in the order of `z`, if it has its leaves: a rule may build its mapping in any order, and flat vectors follow that of the state."""
    return out if list(out) == list(z) or set(out) != set(z) else {name: out[name] for name in z}


def relative(length: Float[Tensor, " row"], z: State, *, norm: Float[Tensor, " row"] | None = None) -> Float[Tensor, " row"]:
    """`length` over what lengths at `z` are relative to, row by row: see `yardstick`."""
    return length / yardstick(trees.norm(z) if norm is None else norm)


def yardstick(norm: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """What lengths at states of these norms are relative to: the norm, and 1 where it is smaller than the square root of the dtype's rounding.

    Example:
        >>> yardstick(torch.tensor([5.0, 1e-9]))
        tensor([5., 1.])
    """
    return torch.where(norm > torch.finfo(norm.dtype).eps ** 0.5, norm, torch.ones_like(norm))


def strobe(f: LatentMap, every: int) -> LatentMap:
    """`every` ticks of `f` seen as one tick.

    The spectrum of the strobed map at a fixed point of `f` is that of `f` to the power `every`. It also rests on every
    orbit of `f` whose period divides `every`.

    Raises:
        ValueError: If `every` is below 1.

    Example:
        >>> half = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}, clock="tick")
        >>> strobe(half, 3).clock, strobe(half, 3)({"z": torch.ones(1)})["z"].item()
        ('3 x tick', 0.125)
    """
    if every < 1:
        raise ValueError(f"`strobe` got every={every}. A tick is seen once in 1 or more ticks. Use every=1 or more.")
    if every == 1:
        return f

    def rule(z: State, drive: Drive) -> State:
        for _ in range(every):
            z = f.rule(z, drive)
        return z

    updates = tuple(replace(one, name=f"{k}.{one.name}") for k in range(every) for one in f.updates)
    return replace(f, rule=in_turn(updates) if f.made_of_updates else rule, clock=f"{every} x {f.clock}", updates=updates)


@dataclass(frozen=True, eq=False)
class InTurn:
    """A rule that is its updates, one after the other, and says so: nobody needs to test that it is."""

    updates: tuple[Update, ...]

    def __call__(self, z: State, drive: Drive) -> State:
        """One tick from `z`."""
        for update in self.updates:
            z = update.rule(z, drive)
        return z


def in_turn(updates: Sequence[Update]) -> InTurn:
    """The tick whose parts are `updates`, one after the other."""
    return InTurn(tuple(updates))


def repeat_rows(rows: int, starts: int) -> Int[Tensor, " row"]:
    """Row numbers that give each of `rows` instances `starts` starts, instance by instance.

    Example:
        >>> repeat_rows(2, 3)
        tensor([0, 0, 0, 1, 1, 1])
    """
    return torch.arange(rows).repeat_interleave(starts)


def _occurrence(instance: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    order = torch.argsort(instance, stable=True)
    _, counts = torch.unique_consecutive(instance[order], return_counts=True)
    first = torch.cumsum(counts, 0) - counts
    number = torch.empty_like(instance)
    number[order] = torch.arange(len(instance)) - first.repeat_interleave(counts)
    return number
