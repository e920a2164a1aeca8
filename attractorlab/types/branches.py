"""Where a fixed point goes while a parameter changes, and where its stability does."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Complex, Float, Int
from torch import Tensor

from attractorlab.types.base import Origin


@dataclass(frozen=True, eq=False)
class Branch:
    """Curves of fixed points, point by point and branch by branch, and the events on them.

    Every point is fixed to within `tol`: `residual` is ‖f(z) − z‖/‖z‖, or over a thousandth of `scale` where the state is shorter. `error` is its distance to the curve
    to first order, the length of a Newton step across it, relative in the same way (infinite where its equations could not be solved). `arclength` measures the state in units of `scale` and the parameter in
    units of `span`; `slope` is the derivative of the so measured parameter by it. `eigenvalues` are the leading ones, `verdict` is that of `spectrum`
    ("not asked" without eigenvalues).

    An event lies after point ``event_point`` of its branch and before the next. `event_kind` is fold, branch point (a real eigenvalue passes or touches
    +1 where the branch does not turn as a fold does: pitchfork, transcritical), flip (a real one passes −1) or Neimark-Sacker (a complex pair passes the unit circle);
    `event_error` says how far `event_parameter` may be off, to first order (infinite where the number of eigenvalues outside
    the unit circle changes and none is found on it), `event_eigenvalue` is the one that passes (NaN for a fold whose eigenvalue is not among the leading
    ones) and `event_change` how many more eigenvalues are outside the unit circle after it.

    `end` is why each branch ends: range (the parameter left its span: the last point is on the bound), closed (it came back to its first point), max steps, diverged,
    nonfinite (no step is short enough to avoid a NaN or an infinity), step underflow (none is short enough to stay on the branch), no start (the start could not be
    made a fixed point; such a branch has no points).
    """

    states: Mapping[str, Float[Tensor, "point ..."]]
    branch: Int[Tensor, " point"]
    parameter: Float[Tensor, " point"]
    arclength: Float[Tensor, " point"]
    slope: Float[Tensor, " point"]
    residual: Float[Tensor, " point"]
    error: Float[Tensor, " point"]
    eigenvalues: Complex[Tensor, "point mode"]
    verdict: tuple[str, ...]
    event_states: Mapping[str, Float[Tensor, "event ..."]]
    event_branch: Int[Tensor, " event"]
    event_point: Int[Tensor, " event"]
    event_kind: tuple[str, ...]
    event_parameter: Float[Tensor, " event"]
    event_error: Float[Tensor, " event"]
    event_eigenvalue: Complex[Tensor, " event"]
    event_change: Int[Tensor, " event"]
    end: tuple[str, ...]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    scale: Float[Tensor, " row"]
    span: float
    steps: Int[Tensor, " row"]
    name: str
    derivative: str
    tol: float
    clock: str
    origin: Origin

    def __len__(self) -> int:
        return len(self.end)

    def points_of(self, branch: int) -> Int[Tensor, " chosen"]:
        """The numbers of the points of one branch, in the order in which they were met."""
        return (self.branch == branch).nonzero().squeeze(1)

    def events_of(self, branch: int) -> Int[Tensor, " chosen"]:
        """The numbers of the events on one branch, in the order in which they were met."""
        return (self.event_branch == branch).nonzero().squeeze(1)
