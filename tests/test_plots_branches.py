"""A bifurcation diagram tells stable from unstable by more than colour, joins what belongs together, and marks events by kind."""

import dataclasses

import numpy as np
import pytest

from attractorlab import plots
from tests.plot_nouns import branch_of


def first(z):
    return z["z"][:, 0]


def drawn(fig, name):
    (trace,) = [trace for trace in fig.data if trace.name == name]
    return trace, np.asarray(trace.x), np.asarray(trace.y)


def test_stable_and_unstable_lines_differ_in_dash_and_leave_no_gap_at_a_fold():
    fig = plots.branches(branch_of(2, 41), read=first, label="x")
    solid, x, y = drawn(fig, "stable")
    dashed, across, up = drawn(fig, "unstable")
    assert solid.line.dash == "solid" and dashed.line.dash == "dash" and solid.line.color != dashed.line.color
    # Two outer arms a branch, and one middle; each piece ends where the next begins.
    assert np.isnan(x).sum() == 4 and np.isnan(across).sum() == 2
    pieces = np.split(np.arange(len(x)), np.flatnonzero(np.isnan(x)) + 1)[:-1]
    middle = np.split(np.arange(len(across)), np.flatnonzero(np.isnan(across)) + 1)[:-1]
    assert y[pieces[0]][-2] == up[middle[0]][0] and up[middle[0]][-2] == y[pieces[1]][0]
    assert y[pieces[1]][-2] == pytest.approx(1.3) and y[pieces[2]][0] == pytest.approx(-0.3)  # the next branch is no continuation of the first
    of_second = np.concatenate(pieces[2:])[:-1]
    assert np.nanmin(y[of_second]) == pytest.approx(-0.3) and np.nanmax(y[of_second]) == pytest.approx(2.3)
    first_arm = y[pieces[0]][:-1]
    assert np.allclose(x[pieces[0]][:-1], first_arm**3 - first_arm, atol=1e-5)


def test_events_are_marked_by_kind_with_their_error_in_the_hover_text():
    found = branch_of(2, 30)
    kinds = ("fold", "flip", "Neimark-Sacker", "branch point")
    fig = plots.branches(dataclasses.replace(found, event_kind=kinds), read=first, label="x")
    marks = [trace for trace in fig.data if trace.mode == "markers"]
    assert [trace.name for trace in marks] == ["fold (1)", "branch point (1)", "flip (1)", "Neimark-Sacker (1)"]
    assert len({trace.marker.symbol for trace in marks}) == len({trace.marker.color for trace in marks}) == 4
    assert marks[0].customdata[0][1] == pytest.approx(1e-12) and "error about" in marks[0].hovertemplate
    assert "2 branches, 60 points" in fig.layout.title.subtitle.text and "residual below 1e-12" in fig.layout.title.subtitle.text


def test_a_branch_without_eigenvalues_says_that_stability_was_not_asked():
    fig = plots.branches(branch_of(1, 9, modes=0), read=first, label="<b>x</b>")
    assert fig.data[0].name == "stability not asked" and fig.layout.yaxis.title.text == "&lt;b&gt;x&lt;/b&gt;"
    assert "1 branch, 9 points" in fig.layout.title.subtitle.text


def test_many_points_are_thinned_and_it_is_said():
    fig = plots.branches(branch_of(2, 5000), read=first, label="x")
    assert sum(int((~np.isnan(np.asarray(trace.x))).sum()) for trace in fig.data if trace.mode == "lines") <= 6010
    assert "6000 points drawn" in fig.layout.title.subtitle.text


@pytest.mark.usefixtures("unchecked")
def test_more_than_a_number_a_state_is_refused():
    with pytest.raises(ValueError, match=r"read off numbers of shape \(9, 2\) for 9 points\. A diagram shows one number a state\. Pass a function"):
        plots.branches(branch_of(1, 9), read=lambda z: z["z"], label="x")
