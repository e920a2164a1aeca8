"""Intervals against published tables and their own definitions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from attractorlab.statistics import (
    batch_error,
    clopper_pearson,
    cluster_auc,
    cluster_mean,
    cluster_share,
    cluster_shares,
    effective_n,
    wilson,
)

# 95 % intervals of a share: count, n, Wilson, Clopper and Pearson; six digits.
TABLE = [
    (0, 100, 0.0, 0.036993, 0.0, 0.036217),
    (1, 100, 0.001767, 0.054486, 0.000253, 0.054459),
    (10, 100, 0.055229, 0.174366, 0.049005, 0.176223),
    (50, 100, 0.403832, 0.596168, 0.398321, 0.601679),
    (5, 1000, 0.002138, 0.011651, 0.001625, 0.011629),
    (288, 10000, 0.025699, 0.032263, 0.025610, 0.032268),
]
DIGITS = 5.1e-7


@pytest.mark.parametrize(("count", "n", "low", "high", "exact_low", "exact_high"), TABLE)
def test_the_intervals_are_those_of_the_table(count, n, low, high, exact_low, exact_high):
    ours = [bound.item() for bound in wilson(torch.tensor(count), torch.tensor(n), level=0.95)]
    assert ours == pytest.approx([low, high], abs=DIGITS)
    assert clopper_pearson(count, n, level=0.95) == pytest.approx((exact_low, exact_high), abs=DIGITS)


def test_none_and_all_are_mirror_images_and_touch_the_ends():
    for n in (1, 2, 7, 100, 10**6):
        (low, low_of_all), (high, high_of_all) = wilson(torch.tensor([0, n]), torch.tensor([n, n]), level=0.99)
        assert low == 0 and high_of_all == 1 and high.item() == pytest.approx(1 - low_of_all.item(), abs=1e-12)
        none, everything = clopper_pearson(0, n, level=0.99), clopper_pearson(n, n, level=0.99)
        assert none[0] == 0 and everything[1] == 1 and none[1] == pytest.approx(1 - everything[0], abs=1e-12)


def test_nothing_drawn_says_nothing():
    low, high = wilson(torch.tensor(0), torch.tensor(0), level=0.95)
    assert (low.item(), high.item()) == (0.0, 1.0) and clopper_pearson(0, 0, level=0.95) == (0.0, 1.0)


def test_wilsons_ends_solve_his_equation():
    z = stats.norm.ppf(0.95)
    for count, n in ((3, 17), (0.7, 5), (499.5, 1000)):
        for bound in wilson(torch.tensor(count), torch.tensor(n), level=0.9):
            p = bound.item()
            assert abs(count / n - p) == pytest.approx(z * (p * (1 - p) / n) ** 0.5)


def test_clopper_and_pearson_cover_at_least_as_often_as_they_say():
    for n, p in ((20, 0.1), (20, 0.5), (50, 0.02)):
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        covered = [low <= p <= high for low, high in (clopper_pearson(k, n, level=0.9) for k in range(n + 1))]
        assert chance[np.array(covered)].sum() >= 0.9


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95.0, float("nan")])
def test_a_level_is_between_zero_and_one(level):
    for call in (
        lambda: wilson(torch.tensor(1), torch.tensor(2), level=level),
        lambda: clopper_pearson(1, 2, level=level),
        lambda: cluster_mean(torch.ones(4), torch.arange(4), level=level),
    ):
        with pytest.raises(ValueError, match=r"An interval got level=.*between 0 and 1.*Use level=0.95"):
            call()


def test_a_count_beyond_the_number_is_refused():
    for count, n in ((5, 3), (-1, 3)):
        with pytest.raises(ValueError, match=rf"`clopper_pearson` got {count} of {n}.*between 0 and n"):
            clopper_pearson(count, n, level=0.95)


def test_the_cluster_bootstrap_has_the_spread_of_the_cluster_means(generator):
    means = torch.randn(200, generator=generator)
    values, cluster = means.repeat_interleave(10), torch.arange(200).repeat_interleave(10)
    mean, low, high = cluster_mean(values, cluster, level=0.95)
    error = (means.std(correction=0) / 200**0.5).item()
    assert mean == pytest.approx(means.mean().item(), abs=1e-6)
    # The bootstrap's own noise, at 2,000 draws, is a few percent of the half-width.
    assert (high - mean) == pytest.approx(1.96 * error, rel=0.12) and (mean - low) == pytest.approx(1.96 * error, rel=0.12)


def test_the_cluster_bootstrap_knows_nothing_of_the_order_or_the_names_of_clusters(generator):
    values, cluster = torch.rand(60, generator=generator), torch.arange(60) % 17
    order = torch.randperm(60, generator=generator)
    assert cluster_mean(values, cluster, level=0.9) == pytest.approx(cluster_mean(values[order], cluster[order] * 10 + 3, level=0.9))
    assert cluster_mean(values, cluster, level=0.9, seed=1) != cluster_mean(values, cluster, level=0.9, seed=2)


def test_a_bootstrap_that_says_nothing_gives_no_interval():
    for values, cluster in ((torch.rand(60), torch.arange(60) % 9), (torch.ones(60), torch.arange(60) % 30)):
        mean, low, high = cluster_mean(values, cluster, level=0.95)
        assert mean == pytest.approx(values.mean().item()) and math.isnan(low) and math.isnan(high)
    area, low, high = cluster_auc(torch.arange(12.0), torch.arange(12) > 5, torch.arange(12) // 2, level=0.95)
    assert area == 1 and math.isnan(low) and math.isnan(high)


def test_a_share_of_clusters_always_has_an_interval():
    whole = cluster_share(torch.ones(60), torch.arange(60) % 30, level=0.95)
    low, high = wilson(torch.tensor(30), torch.tensor(30), level=0.95)
    assert whole == (1.0, low.item(), high.item())
    values = torch.arange(60) % 2 == 0
    assert cluster_share(values, torch.arange(60) // 2 % 30, level=0.95)[1] > 0
    mixed = torch.rand(60) < 0.5
    assert cluster_share(mixed, torch.arange(60), level=0.9) == cluster_mean(mixed.double(), torch.arange(60), level=0.9)


def test_shares_of_many_cells_are_those_of_each_alone(generator):
    cells = (torch.rand(5, 60, generator=generator) < torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])[:, None]).double()
    for cluster in (torch.arange(60) % 17, torch.arange(60) % 9):
        many = cluster_shares(cells, cluster, level=0.9)
        for k in range(5):
            assert tuple(float(part[k]) for part in many) == pytest.approx(cluster_share(cells[k], cluster, level=0.9))
        assert (many[1] < many[2]).all(), "no interval is without width"


def test_the_cluster_bootstrap_of_shares_is_as_wide_as_the_normal_law_says(generator):
    coins = (torch.rand(1, 900, generator=generator) < 0.3).double()
    mean, low, high = cluster_shares(coins.repeat_interleave(4, dim=1), torch.arange(900).repeat_interleave(4), level=0.95)
    error = 1.96 * (mean * (1 - mean) / 900).sqrt()
    assert low.item() == pytest.approx((mean - error).item(), abs=0.1 * error.item())
    assert high.item() == pytest.approx((mean + error).item(), abs=0.1 * error.item())


def test_rows_of_clusters_that_agree_are_worth_the_number_of_clusters():
    values = torch.tensor([True, False, True, False, False])
    assert effective_n(values.repeat_interleave(8), torch.arange(5).repeat_interleave(8)) == pytest.approx(5)


def test_independent_rows_are_worth_about_their_number(generator):
    worth = effective_n(torch.rand(4000, generator=generator) < 0.4, torch.arange(4000) // 4)
    assert 3500 < worth <= 4000


def test_the_correlation_inside_clusters_is_found(generator):
    # A cluster's rows copy one coin with chance c, else toss their own: the correlation is c².
    c, size, groups = 0.7, 6, 5000
    coin = torch.rand(groups, 1, generator=generator) < 0.5
    rows = torch.where(torch.rand(groups, size, generator=generator) < c, coin, torch.rand(groups, size, generator=generator) < 0.5)
    worth = effective_n(rows.flatten(), torch.arange(groups).repeat_interleave(size))
    assert worth == pytest.approx(groups * size / (1 + (size - 1) * c * c), rel=0.03)


def test_one_huge_cluster_is_worth_little_more_than_one_row():
    values = torch.cat([torch.ones(1, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)])
    cluster = torch.cat([torch.zeros(1).long(), torch.ones(100).long()])
    # Kish: (Σm)²/Σm² = 101²/10001.
    assert effective_n(values, cluster) == pytest.approx(101**2 / 10001)


def test_where_all_values_agree_the_number_of_clusters_is_returned():
    assert effective_n(torch.ones(12, dtype=torch.bool), torch.arange(12) // 4) == 3
    assert effective_n(torch.tensor([True, False, True]), torch.arange(3)) == 3
    assert effective_n(torch.tensor([True, False, True]), torch.zeros(3).long()) == 1


def test_how_often_1_96_batch_errors_cover_the_mean(generator):
    for ticks, said in ((16, 0.86), (64, 0.91), (400, 0.94)):
        x = torch.randn(ticks, 20_000, generator=generator, dtype=torch.float64)
        cover = (x.mean(0).abs() < 1.96 * batch_error(x)).double().mean().item()
        assert abs(cover - said) < 0.012, (ticks, cover)
