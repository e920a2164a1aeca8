"""What halting saves, what scores foretell, and how long solving takes: three readings of `Attempts`."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from attractorlab.types.base import Origin


@dataclass(frozen=True, eq=False)
class HaltingGain:
    """What the halting policy saves, for rows that end at `depth` ticks at the latest. Each row is one start, picked blindly.

    `accuracy` is with halting, `full` of the same rows without it at the same depth, `difference` the first less the second, row by row. `calls` are the ticks that a row takes with halting, on
    average, of a lost row those up to its loss; `saving` is what the same rows take without it, over calls: depth over calls where none is lost. `matched` is the smallest tick read at which rows without halting are right as often as with it (−1: at
    none that was read), and `matched_above` the largest tick read at which they are not (0: there is none): the truth lies between, after the one and up to the other. `ratio` is matched over calls.
    Intervals redraw clusters of instances, and where that says nothing those of shares and of the difference are Wilson's over the clusters; the others are NaN then, and infinite where draws
    found no match.
    """

    depth: Int[Tensor, " depth"]
    accuracy: Float[Tensor, " depth"]
    low: Float[Tensor, " depth"]
    high: Float[Tensor, " depth"]
    full: Float[Tensor, " depth"]
    full_low: Float[Tensor, " depth"]
    full_high: Float[Tensor, " depth"]
    difference: Float[Tensor, " depth"]
    difference_low: Float[Tensor, " depth"]
    difference_high: Float[Tensor, " depth"]
    calls: Float[Tensor, " depth"]
    calls_low: Float[Tensor, " depth"]
    calls_high: Float[Tensor, " depth"]
    saving: Float[Tensor, " depth"]
    saving_low: Float[Tensor, " depth"]
    saving_high: Float[Tensor, " depth"]
    matched: Int[Tensor, " depth"]
    matched_above: Int[Tensor, " depth"]
    ratio: Float[Tensor, " depth"]
    ratio_low: Float[Tensor, " depth"]
    ratio_high: Float[Tensor, " depth"]
    halted: Float[Tensor, " depth"]
    rows: int
    instances: int
    clusters: int
    level: float
    policy: str
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class Foresight:
    """How well a score, read at a tick, tells the rows that are solved at the last tick, `ticks`, from those that are not: the area under the ROC curve.

    `auc` is over all rows: it counts rows that are solved already when the score is read. `ahead` is over the rows that are not solved at that tick, `unsolved` in number,
    of which `later` are solved in the end: what the score foretells. A score is turned so that more is better: low residual, low logit change, high halting logit. NaN: all
    rows alike, or, for an interval, too few clusters or all draws alike.
    """

    read: Int[Tensor, " read"]
    scores: tuple[str, ...]
    auc: Float[Tensor, "read score"]
    low: Float[Tensor, "read score"]
    high: Float[Tensor, "read score"]
    ahead: Float[Tensor, "read score"]
    ahead_low: Float[Tensor, "read score"]
    ahead_high: Float[Tensor, "read score"]
    unsolved: Int[Tensor, " read"]
    later: Int[Tensor, " read"]
    rows: int
    clusters: int
    ticks: int
    level: float
    clock: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class SolveTimes:
    """How many ticks rows take until they are solved and stay so, by difficulty.

    `share` is the share of rows that are solved at the tick and at every later one up to `ticks`; as all rows are followed equally long, that share is the whole survival estimate. Rows
    not solved in the end, the share `censored`, may need more ticks than were given, or never be solved: nothing here tells which. `quantile` is the tick by which the given `level_of` share
    of rows is solved for good, infinite where that many are not. `easiest` and `hardest` bound the difficulty of a bin.
    """

    tick: Int[Tensor, " tick"]
    share: Float[Tensor, "bin tick"]
    low: Float[Tensor, "bin tick"]
    high: Float[Tensor, "bin tick"]
    censored: Float[Tensor, " bin"]
    level_of: Float[Tensor, " quantile"]
    quantile: Float[Tensor, "bin quantile"]
    quantile_low: Float[Tensor, "bin quantile"]
    quantile_high: Float[Tensor, "bin quantile"]
    easiest: Float[Tensor, " bin"]
    hardest: Float[Tensor, " bin"]
    rows: Int[Tensor, " bin"]
    clusters: Int[Tensor, " bin"]
    ticks: int
    level: float
    clock: str
    origin: Origin
