"""ParametricMap: a map with a parameter; damped, between_drives and between_weights make one of maps."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attractorlab import trees
from attractorlab.maps import LatentMap
from attractorlab.types import Drive, State

PARAMETER = "parameter"  # its leaf in an extended state, and in the drive of a map of the family
ParametricRule = Callable[[State, Drive, Float[Tensor, " row"]], State]
"""One tick from a state, the drive, and the parameter of each row."""


def _undriven() -> LatentMap:
    return LatentMap(lambda z, x: z, {})


@dataclass(frozen=True, eq=False)
class ParametricMap:
    """A map with one parameter: ``z <- rule(z, drive, parameter)``, each row at a parameter of its own.

    Args:
        rule: One tick. The parameter comes as one number a row: ``parameter[:, None]`` scales a leaf of shape [row dim].
        name: What the parameter is called.
        like: The map whose drive, instances, clock, readout and origin the family has; its own rule is not used. By default an undriven one.
        difference: The step of a central difference by the parameter, for rules that cannot be differentiated by it (a `detach`, a parameter that is read as a
            plain number). By default the derivative is exact.

    Example:
        >>> logistic = ParametricMap(lambda z, x, r: {"z": r[:, None] * z["z"] * (1 - z["z"])}, name="r")
        >>> logistic.at(torch.tensor([2.0, 3.0]))({"z": torch.tensor([[0.5], [0.5]])})["z"]
        tensor([[0.5000],
                [0.7500]])
    """

    rule: ParametricRule
    name: str
    like: LatentMap = field(default_factory=_undriven)
    difference: float | None = None

    def __post_init__(self) -> None:
        if PARAMETER in self.like.drive:
            raise ValueError(
                f"`ParametricMap` got a map whose drive has a leaf {PARAMETER!r}. The parameter of a family goes by that name. Rename the leaf of the drive."
            )
        if self.difference is not None and not self.difference > 0:
            raise ValueError(
                f"`ParametricMap` got difference={self.difference}. A central difference takes a step above 0. Use difference=1e-5 in float64, or leave it out."
            )

    @property
    def derivative(self) -> str:
        """How the derivative by the parameter is taken, in words."""
        return "exact" if self.difference is None else f"central differences of step {self.difference:g}"

    def at(self, parameter: Float[Tensor, " row"]) -> LatentMap:
        """The map of each row at its parameter."""
        n = len(parameter)
        if self.like.driven and n != len(self.like.instance):
            raise ValueError(
                f"`at` got {n} parameters for a family of {len(self.like.instance)} rows. Every row has a parameter of its own. "
                f"Pass a tensor of {len(self.like.instance)} numbers."
            )
        instance, start = (self.like.instance, self.like.start) if self.like.driven else (torch.zeros(n, dtype=torch.int64), torch.arange(n))

        def rule(z: State, drive: Drive) -> State:
            return self.rule(z, {name: leaf for name, leaf in drive.items() if name != PARAMETER}, drive[PARAMETER])

        drive = {**self.like.drive, PARAMETER: parameter}
        return replace(self.like, rule=rule, drive=drive, instance=instance, start=start, updates=())

    def extended(self) -> LatentMap:
        """The map on states with the parameter as one more leaf [row 1], which it hands on as it is."""

        def rule(z: State, drive: Drive) -> State:
            parameter = z[PARAMETER] if self.difference is None else z[PARAMETER].detach()
            new = self.rule({name: leaf for name, leaf in z.items() if name != PARAMETER}, drive, parameter[:, 0])
            return {**new, PARAMETER: z[PARAMETER]}

        return replace(self.like, rule=rule, updates=())


def damped(f: LatentMap) -> ParametricMap:
    """The family z <- (1 − λ)z + λf(z), whose parameter λ is called damping: 1 is `f` itself.

    Its fixed points are those of `f` at every λ but 0, where all states are fixed. An eigenvalue μ of `f` becomes 1 − λ + λμ.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": -3 * z["z"]}, {}, clock="tick")
        >>> damped(f).at(torch.tensor([0.25]))({"z": torch.ones(1, 1)})["z"]
        tensor([[0.]])
    """

    def rule(z: State, drive: Drive, parameter: Tensor) -> State:
        return _mixed(z, f.rule(z, drive), parameter)

    return ParametricMap(rule, "damping", f)


def between_drives(f: LatentMap, *, towards: Drive) -> ParametricMap:
    """The family of `f` under the drive (1 − λ) ``f.drive`` + λ `towards`, whose parameter λ is called input: between two instances of one model, without noise.

    Args:
        f: The map at λ = 0. Rows, instances and clock are its own.
        towards: The drive at λ = 1, row by row: that of the model bound to other instances. Leaves that are no floating-point numbers must be equal.

    Raises:
        ValueError: If the two drives differ in names, shapes or dtypes, or in a leaf that cannot be interpolated.

    Example:
        >>> f = LatentMap(lambda z, x: {"z": 0.5 * z["z"] + x["x"]}, {"x": torch.tensor([[1.0]])}, instance=torch.tensor([0]), start=torch.tensor([0]))
        >>> between_drives(f, towards={"x": torch.tensor([[3.0]])}).at(torch.tensor([0.5]))({"z": torch.zeros(1, 1)})["z"]
        tensor([[2.]])
    """
    _check_like(f.drive, towards, "between_drives", "drives", "Bind one model to as many other instances of the same task.")

    def rule(z: State, drive: Drive, parameter: Tensor) -> State:
        return f.rule(z, _between(drive, parameter))

    return ParametricMap(rule, "input", _both(f, towards))


def between_weights(f: LatentMap, *, towards: LatentMap) -> ParametricMap:
    """The family between two checkpoints of one model: weights (1 − λ)a + λb, whose parameter λ is called weights.

    The drives are interpolated too, which is exact where the embedding is linear in the weights, and at both ends always. Every row has weights of its own while it is
    worked on: memory grows by one copy of them a row. A model that cannot be differentiated by all of its tensors, as a batch norm by its running means, needs
    ``dataclasses.replace(family, difference=1e-5)``.

    Args:
        f: The map at λ = 0: a model bound to instances.
        towards: The map at λ = 1: the other checkpoint, bound to the same instances.

    Raises:
        ValueError: If a map has no model, or models or drives differ in names, shapes or dtypes.

    Example:
        >>> def bound(weight):
        ...     model = torch.nn.Linear(1, 1, bias=False)
        ...     torch.nn.init.constant_(model.weight, weight)
        ...     return LatentMap(lambda z, x: {"z": model(z["z"])}, {}, model=model)
        >>> between_weights(bound(0.5), towards=bound(0.25)).at(torch.tensor([0.0, 1.0]))({"z": torch.ones(2, 1)})["z"].detach()
        tensor([[0.5000],
                [0.2500]])
    """
    if f.model is None or towards.model is None:
        raise ValueError(
            "`between_weights` got a map without a model. Weights are taken from `f.model`. Pass maps that `bind` made, or build them with `model=`."
        )
    a, b = _tensors(f.model), _tensors(towards.model)
    _check_like(a, b, "between_weights", "models", "Load two checkpoints of one configuration in one dtype.")
    _check_like(f.drive, towards.drive, "between_weights", "drives", "Bind both checkpoints to the same instances.")
    whole = _Tick(f)

    def one(z: State, drive: Drive, parameter: Tensor) -> State:
        weights = {f"model.{name}": _line(a[name], b[name], parameter) for name in a}
        out = torch.func.functional_call(whole, weights, (_row(z), _row(drive)))
        return {name: out[name][0] for name in out}

    def rule(z: State, drive: Drive, parameter: Tensor) -> State:
        mixed = _between(drive, parameter) if drive else {}
        return torch.func.vmap(one)(dict(z), mixed, parameter)

    return ParametricMap(rule, "weights", _both(f, towards.drive))


class _Tick(nn.Module):
    """A rule as the forward of a module that holds its model, so that its weights can be replaced for one call."""

    def __init__(self, f: LatentMap) -> None:
        super().__init__()
        self.model, self.rule = f.model, f.rule

    def forward(self, z: State, drive: Drive) -> State:
        return self.rule(z, drive)


def _row(leaves: State) -> State:
    return {name: leaf[None] for name, leaf in leaves.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: leaf.detach() for name, leaf in [*model.named_parameters(), *model.named_buffers()]}


def _both(f: LatentMap, towards: Drive) -> LatentMap:
    """`f` with both drives side by side, so that both follow its rows."""
    return replace(f, drive={**{f"from {name}": leaf for name, leaf in f.drive.items()}, **{f"to {name}": leaf for name, leaf in towards.items()}})


def _between(drive: Drive, parameter: Tensor) -> Drive:
    names = [name.removeprefix("from ") for name in drive if name.startswith("from ")]
    weight = {name: parameter.reshape(-1, *[1] * (drive[f"from {name}"].ndim - 1)) for name in names}
    return {name: _line(drive[f"from {name}"], drive[f"to {name}"], weight[name]) for name in names}


def _mixed(u: State, v: State, parameter: Tensor) -> State:
    return trees.add(trees.scale(u, 1 - parameter), trees.scale(v, parameter))


def _line(a: Tensor, b: Tensor, parameter: Tensor) -> Tensor:
    """From `a` at 0 to `b` at 1, both ends exact; tensors that are no floating-point numbers are equal."""
    return (1 - parameter) * a + parameter * b if a.is_floating_point() else a


def _check_like(a: Drive, b: Drive, caller: str, what: str, remedy: str) -> None:
    if set(a) != set(b):
        raise ValueError(f"`{caller}` got {what} with different leaves: {sorted(set(a) ^ set(b))[:4]}. Both ends have the same names. {remedy}")
    for name, leaf in a.items():
        if leaf.shape != b[name].shape or leaf.dtype != b[name].dtype:
            kinds = " and ".join(f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (leaf, b[name]))
            raise ValueError(f"`{caller}` got {what} whose leaf {name!r} is {kinds}. Both ends have the same shapes and dtypes. {remedy}")
        if not leaf.is_floating_point() and not leaf.equal(b[name]):
            raise ValueError(
                f"`{caller}` got {what} that differ in {name!r}, which holds {str(leaf.dtype).removeprefix('torch.')}. Only floating-point numbers can be interpolated. "
                "Choose two ends that agree in it."
            )
