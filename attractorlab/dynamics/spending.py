"""halting_gain, foresight and solve_times: what halting saves, what scores foretell, how long solving takes."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.dynamics.attempts import halted
from attractorlab.statistics import FEWEST, cluster_auc, cluster_shares, redrawn, wilson
from attractorlab.types import Attempts, Foresight, HaltingGain, SolveTimes

QUARTERS = (0.25, 0.5, 0.75)
DRAWS = 2000


def halting_gain(runs: Attempts, *, depth: list[int], level: float, cluster: Int[Tensor, " instance"] | None) -> HaltingGain:
    """What the halting policy saves at each depth: accuracy with and without it, ticks taken, and the ticks that equal accuracy takes without it.

    The runs are followed to the end; rows with halting are the same rows, read at their halting. Accuracy without halting is known at the ticks read alone: `spaced` lays them
    within a quarter of each other, where they are not neighbours.

    Args:
        runs: With targets and a policy, not `elastic`.
        depth: Ticks, of those read, at which rows end at the latest.
        level: Coverage of the intervals.
        cluster: As in `scaling_grid`.

    Raises:
        ValueError: If the runs were left at their halting, have no policy or no targets, or were not read at a depth.
    """
    solved = _solved(runs, "halting_gain")
    if runs.elastic:
        raise ValueError("`halting_gain` got runs that were left at their halting. What they would have answered later is not known. Use `attempt`, which follows rows to the end.")
    reads = runs.read.tolist()
    if not depth or not set(depth) <= set(reads):
        raise ValueError(f"`halting_gain` got depth {depth} for runs read at {reads}. What lies between was not kept. Read the depths: attempt(..., read=depth).")
    gone = halted(runs)
    left = gone.solved
    assert left is not None
    at = torch.tensor([reads.index(d) for d in depth])
    took, whole = (torch.stack([one.last_tick.clamp(max=d) for d in depth]).double() for one in (gone, runs))
    group = _groups(runs, cluster)
    edges = np.cumsum([len(depth), len(reads), len(depth), len(depth)])  # between what is redrawn together, below
    with_halting, without = left[at].double(), solved.double()
    accuracy, low, high = cluster_shares(with_halting, group, level=level)
    full, full_low, full_high = cluster_shares(without[at], group, level=level)
    sums, counts, weights = redrawn(torch.cat([with_halting, without, took, with_halting - without[at], whole]), group, draws=DRAWS, seed=0)
    drawn = (weights @ sums.T) / (weights @ counts)[:, None]
    point = sums.sum(1) / counts.sum()
    halting_point, full_point, calls, gap_point, full_calls = np.split(point, edges)
    halting_drawn, full_drawn, spent, gap_drawn, full_spent = np.split(drawn, edges, axis=1)
    # How much more often rows are right without halting at each tick read than with it, the same rows: [.. depth read].
    ahead, ahead_drawn = full_point - halting_point[:, None], full_drawn[:, None] - halting_drawn[:, :, None]

    def matched(gap: NDArray[np.float64]) -> NDArray[np.float64]:
        """The first tick read at which rows that do not halt are right as often; infinite if none."""
        enough = gap >= -1e-12
        return np.where(enough.any(-1), np.array(reads, dtype=float)[enough.argmax(-1)], np.inf)

    match = matched(ahead)
    short = [max([t for t in reads if t < m], default=0) for m in match.tolist()]
    saving_low, saving_high = _limits(full_spent / spent, level, len(counts))
    ratio_low, ratio_high = _limits(matched(ahead_drawn) / spent, level, len(counts))
    calls_low, calls_high = _limits(spent, level, len(counts))
    difference = torch.from_numpy(gap_point)
    difference_low, difference_high = _limits(gap_drawn, level, len(counts))
    of_cluster = torch.from_numpy(np.split(sums, edges)[3] / counts)
    unsure = difference_low.isnan()
    low_else, high_else = _differences(difference, of_cluster, level)
    difference_low, difference_high = torch.where(unsure, low_else, difference_low), torch.where(unsure, high_else, difference_high)
    return HaltingGain(
        depth=torch.tensor(depth),
        accuracy=accuracy,
        low=low,
        high=high,
        full=full,
        full_low=full_low,
        full_high=full_high,
        difference=difference,
        difference_low=difference_low,
        difference_high=difference_high,
        calls=torch.from_numpy(calls),
        calls_low=calls_low,
        calls_high=calls_high,
        saving=torch.from_numpy(full_calls / calls),
        saving_low=saving_low,
        saving_high=saving_high,
        matched=torch.tensor([int(m) if np.isfinite(m) else -1 for m in match]),
        matched_above=torch.tensor(short),
        ratio=torch.from_numpy(match / calls),
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        halted=((runs.halt_tick >= 0) & (runs.halt_tick <= torch.tensor(depth)[:, None])).double().mean(1),
        rows=len(runs.instance),
        instances=len(torch.unique(runs.instance)),
        clusters=len(counts),
        level=level,
        policy=runs.policy,
        clock=runs.clock,
        origin=runs.origin,
    )


def foresight(runs: Attempts, *, read: list[int], level: float, cluster: Int[Tensor, " instance"] | None) -> Foresight:
    """How well residual, logit change and halting logit, each read at a tick, tell which rows are solved in the end; over all rows, and over those not solved yet.

    Args:
        runs: With targets.
        read: At which of the ticks read.
        level: Coverage of the intervals, which redraw clusters of instances.
        cluster: As in `scaling_grid`.

    Raises:
        ValueError: If there are no targets, or a tick was not read.
    """
    solved = _solved(runs, "foresight")
    reads = runs.read.tolist()
    if not read or not set(read) <= set(reads):
        raise ValueError(f"`foresight` got read={read} for runs read at {reads}. What lies between was not kept. Choose among them.")
    in_the_end = _stays(runs) > 0
    scores = {"residual": -runs.residual}
    if runs.logit_change is not None:
        scores["logit change"] = -runs.logit_change
    if runs.halt is not None:
        scores["halt"] = runs.halt
    group = _groups(runs, cluster)
    shape = (len(read), len(scores), 3)
    everywhere, ahead = torch.full(shape, torch.nan, dtype=torch.float64), torch.full(shape, torch.nan, dtype=torch.float64)
    places = [reads.index(t) for t in read]
    for i, k in enumerate(places):
        waiting = ~solved[k]
        for j, score in enumerate(scores.values()):
            everywhere[i, j] = torch.tensor(cluster_auc(score[k], in_the_end, group, level=level), dtype=torch.float64)
            if bool(waiting.any()):
                ahead[i, j] = torch.tensor(cluster_auc(score[k][waiting], in_the_end[waiting], group[waiting], level=level), dtype=torch.float64)
    waiting = ~solved[places]
    return Foresight(
        read=torch.tensor(read),
        scores=tuple(scores),
        auc=everywhere[..., 0],
        low=everywhere[..., 1],
        high=everywhere[..., 2],
        ahead=ahead[..., 0],
        ahead_low=ahead[..., 1],
        ahead_high=ahead[..., 2],
        unsolved=waiting.sum(1),
        later=(waiting & in_the_end).sum(1),
        rows=len(runs.instance),
        clusters=len(torch.unique(group)),
        ticks=runs.ticks,
        level=level,
        clock=runs.clock,
        origin=runs.origin,
    )


def solve_times(
    runs: Attempts, *, difficulty: Float[Tensor, " instance"] | None, bins: int, level: float, cluster: Int[Tensor, " instance"] | None
) -> SolveTimes:
    """How many ticks rows take to be solved for good, by difficulty.

    Args:
        runs: With targets, followed to the end.
        difficulty: Of the instances, in the order of their numbers; None for one bin of all.
        bins: 1 or more bins of about equally many instances; fewer where many share a difficulty.
        level: Coverage of the intervals, which redraw clusters of instances.
        cluster: As in `scaling_grid`.

    Raises:
        ValueError: If there are no targets, the runs were left at their halting, or there is not one difficulty for each instance.
    """
    _solved(runs, "solve_times")
    if runs.elastic:
        raise ValueError("`solve_times` got runs that were left at their halting. Whether a row stays solved is seen later. Use `attempt`, which follows rows to the end.")
    stays = _stays(runs)
    kinds, place = torch.unique(runs.instance, return_inverse=True)
    if bins < 1 or (difficulty is not None and (len(difficulty) != len(kinds) or not bool(difficulty.isfinite().all()))):
        raise ValueError(
            f"`solve_times` got bins={bins} and {'no' if difficulty is None else len(difficulty)} difficulties for {len(kinds)} instances. There is one bin or more, and one finite number for each "
            "instance, in order. Use bins=4 and the `difficulty` of those instances, or difficulty=None."
        )
    known = torch.zeros(int(place.max()) + 1, dtype=torch.float64) if difficulty is None else difficulty.double()
    edges = torch.unique(torch.quantile(known, torch.linspace(0, 1, bins + 1, dtype=torch.float64)))
    which = torch.bucketize(known, edges[1:-1])  # up to an edge is below it
    of_row, group = which[place], _groups(runs, cluster)
    present = which.unique()
    parts = [_bin(stays[of_row == b], group[of_row == b], runs.read, level) for b in present]
    return SolveTimes(
        tick=runs.read,
        share=torch.stack([part[0][0] for part in parts]),
        low=torch.stack([part[0][1] for part in parts]),
        high=torch.stack([part[0][2] for part in parts]),
        censored=torch.stack([(stays[of_row == b] < 0).double().mean() for b in present]),
        level_of=torch.tensor(QUARTERS, dtype=torch.float64),
        quantile=torch.stack([part[1][0] for part in parts]),
        quantile_low=torch.stack([part[1][1] for part in parts]),
        quantile_high=torch.stack([part[1][2] for part in parts]),
        easiest=torch.stack([known[which == b].amin() for b in present]),
        hardest=torch.stack([known[which == b].amax() for b in present]),
        rows=torch.stack([(of_row == b).sum() for b in present]),
        clusters=torch.tensor([len(torch.unique(group[of_row == b])) for b in present]),
        ticks=runs.ticks,
        level=level,
        clock=runs.clock,
        origin=runs.origin,
    )


def _bin(stays: Int[Tensor, " row"], group: Int[Tensor, " row"], read: Int[Tensor, " read"], level: float) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
    """The share solved for good at each tick read, with its interval; and the quantiles of the ticks taken, with theirs."""
    by_then = (stays > 0) & (stays <= read[:, None])
    times = torch.unique(stays[stays > 0])
    ends = torch.cat([times.double(), torch.tensor([torch.inf], dtype=torch.float64)]).numpy()
    sums, counts, weights = redrawn(((stays > 0) & (stays <= times[:, None])).double(), group, draws=DRAWS, seed=0) if len(times) else redrawn(torch.zeros(1, len(stays)), group, draws=1, seed=0)

    def quantiles(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where each line of growing shares first reaches each quarter."""
        reached = shares[:, None, :] >= np.array(QUARTERS)[None, :, None] - 1e-12
        return ends[np.where(reached.any(2), reached.argmax(2), len(times))]

    point = quantiles((sums.sum(1) / counts.sum())[None])[0]
    low, high = _limits(quantiles((weights @ sums.T) / (weights @ counts)[:, None]), level, len(counts), dull=True)
    return cluster_shares(by_then.double(), group, level=level), [torch.from_numpy(point), low, high]


def _solved(runs: Attempts, caller: str) -> Bool[Tensor, "read row"]:
    if runs.solved is None:
        raise ValueError(f"`{caller}` got runs without targets. It counts solved rows. Run `attempt` with targets=....")
    return runs.solved


def _stays(runs: Attempts) -> Int[Tensor, " row"]:
    assert runs.stays_solved is not None
    return runs.stays_solved


def _groups(runs: Attempts, cluster: Int[Tensor, " instance"] | None) -> Int[Tensor, " row"]:
    """The cluster of each row: that of its instance."""
    kinds, place = torch.unique(runs.instance, return_inverse=True)
    if cluster is not None and len(cluster) != len(kinds):
        raise ValueError(f"A reading of attempts got {len(cluster)} clusters for {len(kinds)} instances. Each instance belongs to one. Pass one number for each instance, in order.")
    return place if cluster is None else cluster[place]


def _differences(mean: Float[Tensor, " value"], of_cluster: Float[Tensor, "value cluster"], level: float) -> tuple[Float[Tensor, " value"], Float[Tensor, " value"]]:
    """Wilson's intervals for means of differences between −1 and 1, for few clusters or clusters that are all alike.

    Of alike ones, as many of the unseen may differ as Wilson's interval leaves of those seen to differ, none. Else half of 1 + the difference is a share: conservative.
    """
    n = torch.tensor(of_cluster.shape[1])
    alike = (of_cluster.amax(1) - of_cluster.amin(1)) < 1e-12
    unseen = float(wilson(torch.tensor(0), n, level=level)[1])
    low, high = wilson((1 + mean) / 2 * n, n, level=level)
    return torch.where(alike, (mean - unseen).clamp(min=-1), 2 * low - 1), torch.where(alike, (mean + unseen).clamp(max=1), 2 * high - 1)


def _limits(drawn: NDArray[np.float64], level: float, clusters: int, *, dull: bool = False) -> tuple[Float[Tensor, " value"], Float[Tensor, " value"]]:
    """The percentiles of a bootstrap, draws of infinity included; NaN below ten clusters and, unless `dull` values are counted in whole ticks, where all draws agree."""
    a = (1 - level) / 2
    low, high = (torch.from_numpy(one) for one in np.quantile(drawn, [a, 1 - a], axis=0, method="inverted_cdf"))
    told = torch.full_like(low, clusters >= FEWEST, dtype=torch.bool) & (torch.ones_like(low, dtype=torch.bool) if dull else low < high)
    return torch.where(told, low, torch.nan), torch.where(told, high, torch.nan)
