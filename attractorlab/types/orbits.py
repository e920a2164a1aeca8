"""Where a map goes round."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab.types.base import Origin, Result, dims_of


@dataclass(frozen=True, eq=False)
class PeriodicOrbitSet:
    """One entry per start, found or not: an orbit of `asked` ticks. Read `found` before `states`.

    `states[k]` is the state after k ticks. `residual` is ‖f^p(z) − z‖/‖z‖ at the first of them, p being `asked`, and `worst` the largest at any of them, measured by going round
    once more: above `tol` where the map stretches on the way. `period` is the smallest number of ticks after which the orbit is back: a fixed point that was met has period 1
    and is no orbit of period `asked`; 0 where the search did not converge. `error` and `moved` are those of a `FixedPointSet`, of f^p at the first state.
    """

    states: Mapping[str, Float[Tensor, "phase point ..."]]
    residual: Float[Tensor, " point"]
    worst: Float[Tensor, " point"]
    error: Float[Tensor, " point"]
    moved: Float[Tensor, " point"]
    period: Int[Tensor, " point"]
    result: Int[Tensor, " point"]
    steps: Int[Tensor, " point"]
    row: Int[Tensor, " point"]
    instance: Int[Tensor, " point"]
    start: Int[Tensor, " point"]
    asked: int
    tol: float
    clock: str
    origin: Origin

    def __len__(self) -> int:
        return self.residual.shape[0]

    def __getitem__(self, points: slice | Tensor) -> "PeriodicOrbitSet":
        """The orbits chosen by a slice, or an index or mask tensor."""
        chosen = {name: getattr(self, name)[points] for name in dims_of(type(self)) if name != "states"}
        return replace(self, states={name: leaf[:, points] for name, leaf in self.states.items()}, **chosen)

    @property
    def converged(self) -> Bool[Tensor, " point"]:
        """Which are orbits to within `tol`, of whatever period."""
        return self.result == Result.CONVERGED.code

    @property
    def found(self) -> Bool[Tensor, " point"]:
        """Which are orbits of the period that was asked for, and of no shorter one."""
        return self.period == self.asked

    @property
    def first(self) -> Mapping[str, Tensor]:
        """The first state of each: where `spectrum(strobe(f, p), ...)` has the multipliers of the orbit."""
        return {name: leaf[0] for name, leaf in self.states.items()}

    @property
    def amplitude(self) -> Float[Tensor, " point"]:
        """The largest distance between the first state and another, relative to the norm of the first."""
        apart = [torch.linalg.vector_norm((leaf - leaf[:1]).flatten(2), dim=2) for leaf in self.states.values()]
        size = [torch.linalg.vector_norm(leaf[0].flatten(1), dim=1) for leaf in self.states.values()]
        whole = torch.linalg.vector_norm(torch.stack(size), dim=0)
        return torch.linalg.vector_norm(torch.stack(apart), dim=0).amax(0) / torch.where(whole > torch.finfo(whole.dtype).eps ** 0.5, whole, 1)
