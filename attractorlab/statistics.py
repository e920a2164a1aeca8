"""Intervals and sample sizes: no share leaves this package without them."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats
from torch import Tensor

FEWEST = 10  # clusters that a bootstrap needs
AT_ONCE = 2**20  # numbers that a bootstrap works on at a time
FEWEST_BATCHES = 4  # batches over time that a standard error is read from


def wilson(count: Shaped[Tensor, "..."], n: Shaped[Tensor, "..."], *, level: float) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Wilson's interval for a share, `count` of `n`.

    `count` may be fractional: for the mean of values between 0 and 1 the interval is then conservative, as no such values vary
    more than zeros and ones. With n = 0 it is (0, 1).

    Args:
        count: How many, or the sum of values in [0, 1].
        n: Of how many independent ones. Starts of one instance are not independent: give the number of instances.
        level: Coverage, e.g. 0.95.

    Example:
        >>> low, high = wilson(torch.tensor(10), torch.tensor(100), level=0.95)
        >>> round(low.item(), 6), round(high.item(), 6)
        (0.055229, 0.174366)

    References:
        Wilson (1927); Brown, Cai and DasGupta (2001), section 3.1.1.
    """
    if bool((count < 0).any()) or bool((count > n * (1 + 1e-9)).any()):
        raise ValueError("`wilson` got a count below 0 or above its n. A share lies between 0 and 1. Pass how many of how many.")
    z = float(stats.norm.ppf(0.5 + _checked(level) / 2))
    k, m = count.double(), n.double().clamp(min=1e-300)
    middle = (k + z * z / 2) / (m + z * z)
    half = z * torch.sqrt(k * (1 - k / m).clamp(min=0) + z * z / 4) / (m + z * z)
    low, high = (middle - half).clamp(min=0), (middle + half).clamp(max=1)
    # At the ends the closed form misses 0 and 1 by rounding.
    return torch.where((k <= 0) | (n == 0), 0.0, low), torch.where((k >= m) | (n == 0), 1.0, high)


def clopper_pearson(count: int, n: int, *, level: float) -> tuple[float, float]:
    """The exact interval for a share, `count` of `n`; never too short, so it is used for claims.

    Raises:
        ValueError: If `count` is not between 0 and `n`.

    Example:
        >>> low, high = clopper_pearson(0, 100, level=0.95)
        >>> low, round(high, 6)
        (0.0, 0.036217)

    References:
        Clopper and Pearson (1934).
    """
    if not 0 <= count <= n:
        raise ValueError(f"`clopper_pearson` got {count} of {n}. A share counts some of all. Give a count between 0 and n.")
    a = (1 - _checked(level)) / 2
    low = 0.0 if count == 0 else float(stats.beta.ppf(a, count, n - count + 1))
    high = 1.0 if count == n else float(stats.beta.ppf(1 - a, count + 1, n - count))
    return low, high


def cluster_mean(values: Float[Tensor, " row"], cluster: Int[Tensor, " row"], *, level: float, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of `values` with a bootstrap interval that redraws whole clusters (all starts of an instance together).

    Every row weighs the same. The interval is NaN below 10 clusters, from which redrawing learns nothing, and where it has no width, as when all values agree: neither is
    proof. Use Wilson's for shares near 0 or 1.

    Raises:
        ValueError: If there are no values.

    Example:
        >>> values = torch.arange(20.0).repeat_interleave(2)
        >>> [round(x, 1) for x in cluster_mean(values, values.long(), level=0.9)]
        [9.5, 7.3, 11.6]
    """
    if not len(values):
        raise ValueError("`cluster_mean` got no values. The mean of nothing is not known. Pass one value or more.")
    kinds, index = np.unique(cluster.numpy(), return_inverse=True)
    sums = np.bincount(index, values.double().numpy(), len(kinds))
    counts = np.bincount(index, minlength=len(kinds))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=draws)
    means = (weights @ sums) / (weights @ counts)
    return float(sums.sum() / counts.sum()), *_between(means, level, len(kinds))


def cluster_share(values: Shaped[Tensor, " row"], cluster: Int[Tensor, " row"], *, level: float) -> tuple[float, float, float]:
    """The mean of values between 0 and 1 as `cluster_mean` has it; where its bootstrap says nothing, with Wilson's interval over the clusters.

    Example:
        >>> [round(x, 3) for x in cluster_share(torch.ones(40), torch.arange(20).repeat(2), level=0.95)]
        [1.0, 0.839, 1.0]
    """
    mean, low, high = cluster_mean(values.double(), cluster, level=level)
    if np.isnan(low):
        n = torch.tensor(len(torch.unique(cluster)))
        low, high = (float(x) for x in wilson(mean * n, n, level=level))
    return mean, low, high


def cluster_shares(
    values: Shaped[Tensor, "cell row"], cluster: Int[Tensor, " row"], *, level: float, draws: int = 2000, seed: int = 0
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """`cluster_share` of many quantities of the same rows at once: means and their intervals, from the same redrawn clusters.

    Example:
        >>> mean, low, high = cluster_shares(torch.eye(2).repeat(1, 10), torch.arange(20), level=0.95)
        >>> mean.tolist(), [round(x, 2) for x in (*low.tolist(), *high.tolist())]
        ([0.5, 0.5], [0.3, 0.3, 0.7, 0.7])
    """
    sums, counts, weights = redrawn(values, cluster, draws=draws, seed=seed)
    mean = torch.from_numpy(sums.sum(1) / counts.sum())
    low, high = torch.from_numpy(np.quantile((weights @ sums.T) / (weights @ counts)[:, None], [(1 - _checked(level)) / 2, (1 + level) / 2], axis=0))
    n = torch.tensor(len(counts))
    dull = ~(low < high) | (n < FEWEST)
    safe_low, safe_high = wilson(mean.clamp(0, 1) * n, n, level=level)
    return mean, torch.where(dull, safe_low, low), torch.where(dull, safe_high, high)


def redrawn(
    values: Shaped[Tensor, "cell row"], cluster: Int[Tensor, " row"], *, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For a bootstrap over clusters: the sums of `values` in each cluster ``[cell, cluster]``, their sizes, and how often each cluster is in each draw ``[draw, cluster]``."""
    kinds, index = np.unique(cluster.numpy(), return_inverse=True)
    sums = np.stack([np.bincount(index, one, len(kinds)) for one in values.double().numpy()])
    weights = np.random.default_rng(seed).multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=draws).astype(np.float64)
    return sums, np.bincount(index, minlength=len(kinds)).astype(np.float64), weights


def cluster_auc(
    score: Float[Tensor, " row"], good: Bool[Tensor, " row"], cluster: Int[Tensor, " row"], *, level: float, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The chance that a good row scores above a bad one (the area under the ROC curve), with a bootstrap interval over whole clusters.

    All three are NaN where all rows are good or all bad; redrawn samples that are so are left out of the interval, which is NaN below 10 clusters and
    where it has no width. A score of NaN counts as the worst.

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> score, good = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([True, False, True, False])
        >>> cluster_auc(score, good, torch.arange(4), level=0.9)[0]
        0.75
    """
    if not len(score):
        raise ValueError("`cluster_auc` got no rows. It compares good ones with bad ones. Pass one row or more.")
    kinds, index = np.unique(cluster.numpy(), return_inverse=True)
    known = score.double().nan_to_num(nan=-np.inf, posinf=np.inf, neginf=-np.inf).numpy()
    order = np.argsort(known, kind="stable")
    x, y, index = known[order], good.numpy()[order], index[order]
    _, tie = np.unique(x, return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=draws)
    weights = np.concatenate([np.ones((1, len(kinds)), dtype=weights.dtype), weights])  # the sample itself first
    begins = np.flatnonzero(np.diff(tie, prepend=-1))
    areas = []
    step = max(1, AT_ONCE // max(1, len(x)))
    for k in range(0, draws + 1, step):
        w = weights[k : k + step, index].astype(np.float64)
        up, down = np.add.reduceat(w * y, begins, axis=1), np.add.reduceat(w * ~y, begins, axis=1)
        ahead = up * (np.cumsum(down, axis=1) - down / 2)  # of a tie, half is below
        pairs = up.sum(1) * down.sum(1)
        areas.append(np.divide(ahead.sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    area, drawn = float(areas[0][0]), np.concatenate(areas)[1:]
    if np.isnan(area):
        return np.nan, np.nan, np.nan
    return area, *_between(drawn, level, len(kinds))


def effective_n(values: Bool[Tensor, " row"], cluster: Int[Tensor, " row"]) -> float:
    """How many independent rows the clustered `values` are worth: n/(1 + (m − 1)ρ), ρ the correlation inside clusters of m rows.

    ρ is the one-way analysis-of-variance estimate, cut to [0, 1]; m is the mean size of the cluster that a row is in. The result lies between the
    number of clusters (all rows of a cluster agree; fewer if the sizes differ) and the number of rows. Where all values agree everywhere ρ is not
    defined; the number of clusters is returned.

    Example:
        >>> effective_n(torch.tensor([True, True, False, False]), torch.tensor([0, 0, 1, 1]))
        2.0

    References:
        Kish (1965), design effect; Donner (1986), the estimate of ρ.
    """
    kinds, index = np.unique(cluster.numpy(), return_inverse=True)
    x = values.double().numpy()
    n, groups = len(x), len(kinds)
    counts = np.bincount(index, minlength=groups)
    if n == groups or groups < 2 or np.all(x == x[0]):
        return float(groups)
    means = np.bincount(index, x, groups) / counts
    between = float((counts * (means - x.mean()) ** 2).sum() / (groups - 1))
    within = float(((x - means[index]) ** 2).sum() / (n - groups))
    typical = (n - (counts**2).sum() / n) / (groups - 1)  # Donner's m₀: the sizes' mean, less a part of their variance
    rho = min(1.0, max(0.0, (between - within) / (between + (typical - 1) * within)))
    return float(n / (1 + ((counts**2).sum() / n - 1) * rho))


def batches_of(n: int) -> int:
    """Into how many batches `n` values over time are put: √n; none below 16 values."""
    return math.isqrt(n) if math.isqrt(n) >= FEWEST_BATCHES else 0


def batch_error(values: Float[Tensor, "time ..."]) -> Float[Tensor, "..."]:
    """The standard error of the mean over time from √n batches of neighbouring values, whose correlation it so keeps; NaN below 16 values.

    From few batches it is itself uncertain: an interval takes Student's t with one degree of freedom less than there are batches, see `students_t`. With 1.96 in its place,
    intervals of 95 % around the mean of independent normal values cover the truth in 86 % of cases at 16 values, in 91 % at 64 and in 94 % at 400.

    Example:
        >>> batch_error(torch.tensor([1.0, 3.0]).repeat_interleave(4).repeat(2)).item()
        0.57735...
    """
    batches = batches_of(len(values))
    if not batches:
        return torch.full_like(values[0], torch.nan)
    size = len(values) // batches
    means = values[len(values) - batches * size :].unflatten(0, (batches, size)).mean(1)  # the earliest values are left out, if any
    return means.std(0) / math.sqrt(batches)


def students_t(freedom: int, *, level: float) -> float:
    """By how many standard errors an interval reaches to either side, when the error itself comes from `freedom` + 1 values; NaN without any freedom.

    Example:
        >>> round(students_t(3, level=0.95), 3), round(students_t(1000, level=0.95), 2)
        (3.182, 1.96)

    References:
        Student (1908).
    """
    return float(stats.t.ppf(0.5 + _checked(level) / 2, freedom)) if freedom > 0 else math.nan


def _between(drawn: np.ndarray, level: float, clusters: int) -> tuple[float, float]:
    """The percentiles of a bootstrap, or NaN where it says nothing."""
    a = (1 - _checked(level)) / 2
    low, high = (float(x) for x in np.nanquantile(drawn, [a, 1 - a]))
    return (low, high) if clusters >= FEWEST and low < high else (np.nan, np.nan)


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"An interval got level={level}. A level is a coverage between 0 and 1. Use level=0.95.")
    return level
