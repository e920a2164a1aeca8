"""Which starts reach which attractor."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from attractorlab.types.base import HasRows, Origin, State


@dataclass(frozen=True, eq=False)
class BasinEstimate(HasRows):
    """Which attractor each start reaches, and the share of starts per attractor with its interval.

    Labels count from 0 within each instance, largest share first; −1 is undecided. Entry a of the attractor
    table is label `label[a]` of instance `of_instance[a]`, seen `count[a]` times among that instance's
    starts; `example[a]` is one of its rows. Shares are of all starts, undecided ones included; `share_if` bounds
    them with every undecided start counted against and for. `missing_mass` is Good and Turing's estimate of
    the share of decided starts in attractors not seen, NaN where none is decided. `undecided`, `missing_mass` and `starts` are per entry of `instances`.
    """

    labels: Int[Tensor, " row"]
    instance: Int[Tensor, " row"]
    start: Int[Tensor, " row"]
    label: Int[Tensor, " attractor"]
    of_instance: Int[Tensor, " attractor"]
    count: Int[Tensor, " attractor"]
    share: Float[Tensor, " attractor"]
    low: Float[Tensor, " attractor"]
    high: Float[Tensor, " attractor"]
    share_if: Float[Tensor, "attractor bound"]
    example: Int[Tensor, " attractor"]
    instances: Int[Tensor, " instance"]
    starts: Int[Tensor, " instance"]
    undecided: Float[Tensor, " instance"]
    missing_mass: Float[Tensor, " instance"]
    effective_n: float
    level: float
    sampler: str
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class BasinSlice:
    """A plane through state space, each pixel a start: which attractor it reaches, and in how many ticks.

    Pixel (i, j) starts at ``center + y[i] * axes[1] + x[j] * axes[0]``. Labels count from 0, −1 is undecided.
    """

    labels: Int[Tensor, "y x"]
    ticks: Int[Tensor, "y x"]
    residual: Float[Tensor, "y x"]
    x: Float[Tensor, " x"]
    y: Float[Tensor, " y"]
    center: State
    axes: State
    tol: float
    clock: str
    origin: Origin
