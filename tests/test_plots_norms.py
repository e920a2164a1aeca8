"""Figures of exponents, growth, traces and densities show the numbers of their nouns, with their intervals, and say what was left out."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from attractorlab import plots
from tests.plot_nouns import density_of, lyapunov_of, non_normality_of, traces_of


def named(fig, name):
    return next(trace for trace in fig.data if trace.name == name)


def test_few_rows_show_students_intervals_and_many_their_range() -> None:
    lyap = lyapunov_of(3, 2)
    fig = plots.lyapunov(lyap, level=0.9)
    _, high = lyap.interval(level=0.9)
    row = named(fig, "instance 1, start 0")
    assert np.asarray(row.y) == pytest.approx(lyap.exponents[2].numpy(), rel=1e-5)
    assert np.asarray(row.error_y.array) == pytest.approx((high - lyap.exponents)[2].numpy(), rel=1e-4)
    assert "90% Student's intervals" in fig.layout.title.subtitle.text and "64 ticks after 10" in fig.layout.title.subtitle.text
    many = plots.lyapunov(lyapunov_of(50, 2))
    middle = named(many, "median of rows")
    assert np.asarray(middle.y) == pytest.approx(lyapunov_of(50, 2).exponents.median(0).values.numpy(), abs=0.02)
    assert "10-90 % of rows" in many.layout.title.subtitle.text
    assert "no intervals below 16 ticks" in plots.lyapunov(lyapunov_of(1, 2, ticks=9)).layout.title.subtitle.text


def test_the_running_mean_ends_at_the_exponent() -> None:
    lyap = lyapunov_of(1, 2)
    for mode in (0, 1):
        assert named(plots.lyapunov(lyap), f"exponent {mode + 1}").y[-1] == pytest.approx(lyap.exponents[0, mode].item(), rel=1e-5)


def test_minus_infinity_is_left_out_and_said() -> None:
    lyap = lyapunov_of(2, 2)
    exponents, growth = lyap.exponents.clone(), lyap.growth.clone()
    exponents[0, 1], growth[3, 0, 1] = -math.inf, -math.inf
    fig = plots.lyapunov(dataclasses.replace(lyap, exponents=exponents, growth=growth))
    assert "−∞ left out" in fig.layout.title.subtitle.text
    assert not any(np.isinf(np.asarray(trace.y, dtype=float)).any() for trace in fig.data)


def test_growth_stands_beside_the_powers_of_the_radius() -> None:
    nonn = non_normality_of(1, 5)
    fig = plots.non_normality(nonn, radius=torch.tensor([0.5]))
    assert np.asarray(named(fig, "‖Jᵏ‖₂").y) == pytest.approx(nonn.transient_growth[0].numpy(), rel=1e-5)
    assert np.asarray(named(fig, "ρᵏ").y) == pytest.approx(0.5 ** np.arange(6), rel=1e-5)
    assert np.asarray(named(fig, "pseudospectral radius").y) == pytest.approx(nonn.pseudospectral_radius[0].numpy(), rel=1e-5)
    assert fig.layout.yaxis.type == "log" and fig.layout.xaxis2.type == "log"
    bound = plots.non_normality(non_normality_of(4, 5, bound=True))
    assert "lower bound" in bound.layout.title.subtitle.text and named(bound, "lower bound") is not None
    assert any("no disturbance was asked for" in note.text for note in plots.non_normality(non_normality_of(2, 5, epsilons=())).layout.annotations)


@pytest.mark.usefixtures("unchecked")
def test_radii_of_other_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`non_normality` got 2 radii for 3 points\. Every point has one.*Pass `spectrum"):
        plots.non_normality(non_normality_of(3, 2), radius=torch.ones(2))


def test_traces_have_the_intervals_of_their_noun() -> None:
    est = traces_of(2, 3)
    fig = plots.traces(est)
    line = named(fig, "point 1")
    assert np.asarray(line.error_y.array) == pytest.approx((est.interval(level=0.95)[1] - est.traces)[1].numpy(), rel=1e-4)
    norm = named(fig, "‖J‖_F")
    assert np.asarray(norm.error_y.array) == pytest.approx([2.3646 * 0.4] * 2, rel=1e-3)  # Student's t with 7 degrees of freedom
    assert "8 probes by xtrace" in fig.layout.title.subtitle.text
    exact = plots.traces(traces_of(2, 3, exact=True))
    assert "exact" in exact.layout.title.subtitle.text and np.asarray(named(exact, "‖J‖_F").error_y.array) == pytest.approx([0, 0])


def test_all_values_are_in_the_histogram_and_rows_without_numbers_are_said() -> None:
    found = density_of(3)
    nodes = found.nodes.clone()
    nodes[1] = torch.nan
    fig = plots.density(dataclasses.replace(found, nodes=nodes))
    assert np.asarray(named(fig, "share").y).sum() == pytest.approx(1, rel=1e-5)
    assert named(fig, "median of points").y[-1] == pytest.approx(1) and named(fig, "median of points").y[0] == 0
    assert "1 points without numbers" in fig.layout.title.subtitle.text and "4 probes of 12 nodes each for 5,000 values" in fig.layout.title.subtitle.text


def test_the_legend_of_many_exponents_is_ungrouped_so_that_it_wraps_beside_the_panels_and_does_not_stack():
    fig = plots.lyapunov(lyapunov_of(3, 8))
    assert all(not line.legendgroup for line in fig.data)
    assert fig.layout.yaxis2.title.text == "mean growth so far, nats per recursion"
