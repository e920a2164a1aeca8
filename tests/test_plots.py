"""What every figure keeps to: finite numbers, stated n and clock, equal scales, nothing told by colour alone, no crash on nothing."""

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from attractorlab import plots
from tests.plot_nouns import (
    ORIGIN,
    TICKS,
    basins_of,
    branch_of,
    convergence_of,
    density_of,
    fit_of,
    floquet_of,
    foresight_of,
    grid_of,
    lyapunov_of,
    non_normality_of,
    plane_of,
    projection_of,
    solve_times_of,
    spectrum_of,
    traces_of,
)

HOSTILE = "<script>alert(1)</script>"



def first(z: Any) -> torch.Tensor:
    return z["z"][:, 0]


ALL: dict[str, Callable[[], go.Figure]] = {
    "branches": lambda: plots.branches(branch_of(2, 30), read=first, label="first number"),
    "residual_curves": lambda: plots.residual_curves(convergence_of(24), floor=1e-7),
    "settle_times": lambda: plots.settle_times(convergence_of(24)),
    "settled_by_solved": lambda: plots.settled_by_solved(convergence_of(24)),
    "residual_vs_accuracy": lambda: plots.residual_vs_accuracy(convergence_of(24)),
    "spectrum": lambda: plots.spectrum(spectrum_of(24, 6)),
    "floquet": lambda: plots.floquet(floquet_of(24, 4)),
    "lyapunov": lambda: plots.lyapunov(lyapunov_of(24, 3)),
    "lyapunov of few rows": lambda: plots.lyapunov(lyapunov_of(3, 4)),
    "non_normality": lambda: plots.non_normality(non_normality_of(24, 12), radius=torch.full((24,), 0.7)),
    "traces": lambda: plots.traces(traces_of(24, 4)),
    "density": lambda: plots.density(density_of(24)),
    "basins": lambda: plots.basins(basins_of([[6, 2], [5, 1, 1, 1]], [0, 0])),
    "basins by solution": lambda: plots.basins(basins_of([[6, 1], [5, 1]], [1, 2]), solved=torch.tensor([True, False, False, True])),
    "basin_slice": lambda: plots.basin_slice(plane_of(torch.arange(24).reshape(6, 4) % 3 - 1)),
    "trajectories": lambda: plots.trajectories(
        [projection_of(24), projection_of(24, method="UMAP")], plots.outcome_words(convergence_of(24))
    ),
    "scaling": lambda: plots.scaling(grid_of()),
    "scaling_lines": lambda: plots.scaling_lines({"one": grid_of(), "two": grid_of(depths=3)}),
    "frontier": lambda: plots.frontier(grid_of(), dataclasses.replace(grid_of(), policy="halt > 0 from tick 1 on", map_calls=0.5 * grid_of().map_calls)),
    "foresight": lambda: plots.foresight(foresight_of(6)),
    "solve_times": lambda: plots.solve_times(solve_times_of(4, 12)),
    "probe": lambda: plots.probe(fit_of(9)),
}
EMPTY: dict[str, Callable[[], go.Figure]] = {
    "branches": lambda: plots.branches(branch_of(2, 0), read=first, label="first number"),
    "residual_curves": lambda: plots.residual_curves(convergence_of(0)),
    "residuals of zero": lambda: plots.residual_curves(dataclasses.replace(convergence_of(3), residual=torch.zeros(TICKS + 1, 3))),
    "settle_times": lambda: plots.settle_times(convergence_of(0)),
    "settled_by_solved": lambda: plots.settled_by_solved(convergence_of(0)),
    "no targets": lambda: plots.settled_by_solved(convergence_of(4, targets=False)),
    "residual_vs_accuracy": lambda: plots.residual_vs_accuracy(convergence_of(0)),
    "accuracy without targets": lambda: plots.residual_vs_accuracy(convergence_of(4, targets=False)),
    "spectrum": lambda: plots.spectrum(spectrum_of(0, 4)),
    "floquet": lambda: plots.floquet(floquet_of(0, 4)),
    "lyapunov": lambda: plots.lyapunov(lyapunov_of(0, 2)),
    "no exponents": lambda: plots.lyapunov(dataclasses.replace(lyapunov_of(1, 2), exponents=torch.full((1, 2), torch.nan))),
    "non_normality": lambda: plots.non_normality(non_normality_of(0, 3)),
    "traces": lambda: plots.traces(traces_of(0, 3)),
    "density": lambda: plots.density(density_of(0)),
    "basins": lambda: plots.basins(basins_of([], [])),
    "basin_slice": lambda: plots.basin_slice(plane_of(torch.zeros(0, 0, dtype=torch.int64))),
    "trajectories": lambda: plots.trajectories([projection_of(0)], []),
    "no projection": lambda: plots.trajectories([], []),
    "scaling": lambda: plots.scaling(grid_of(depths=0)),
    "scaling_lines": lambda: plots.scaling_lines({}),
    "frontier": lambda: plots.frontier(grid_of(depths=0)),
    "foresight": lambda: plots.foresight(foresight_of(0)),
    "all alike": lambda: plots.foresight(dataclasses.replace(foresight_of(3), auc=torch.full((3, 3), torch.nan, dtype=torch.float64))),
    "solve_times": lambda: plots.solve_times(solve_times_of(0, 4)),
    "probe": lambda: plots.probe(fit_of(0)),
}
LONE: dict[str, Callable[[], go.Figure]] = {
    "one point of a branch": lambda: plots.branches(branch_of(1, 1), read=first, label="first number"),
    "branches without eigenvalues": lambda: plots.branches(branch_of(1, 9, modes=0), read=first, label="first number"),
    "one row": lambda: plots.residual_curves(convergence_of(1)),
    "one row, one tick": lambda: plots.residual_curves(convergence_of(1, ticks=0)),
    "never settled": lambda: plots.residual_curves(convergence_of(5, settled=False)),
    "never settled, times": lambda: plots.settle_times(convergence_of(5, settled=False)),
    "without targets": lambda: plots.settle_times(convergence_of(5, targets=False)),
    "one row, accuracy": lambda: plots.residual_vs_accuracy(convergence_of(1)),
    "one eigenvalue": lambda: plots.spectrum(spectrum_of(1, 1)),
    "one mode, one update": lambda: plots.floquet(floquet_of(1, 1, updates=("tick",))),
    "one exponent, one tick": lambda: plots.lyapunov(lyapunov_of(1, 1, ticks=1)),
    "one point of growth": lambda: plots.non_normality(non_normality_of(1, 1, epsilons=(), bound=True)),
    "one point of bounds": lambda: plots.non_normality(non_normality_of(1, 4, bound=True), radius=torch.tensor([0.5])),
    "one exact trace": lambda: plots.traces(traces_of(1, 1, exact=True)),
    "one node": lambda: plots.density(density_of(1, probes=1, nodes=1, kind="symmetric part")),
    "undecided only": lambda: plots.basins(basins_of([[], []], [8, 8])),
    "undecided only, by solution": lambda: plots.basins(basins_of([[]], [8]), solved=torch.zeros(0, dtype=torch.bool)),
    "none solved": lambda: plots.basins(basins_of([[3, 1]], [0]), solved=torch.tensor([False, False])),
    "undecided plane": lambda: plots.basin_slice(plane_of(torch.full((5, 5), -1))),
    "one pixel": lambda: plots.basin_slice(plane_of(torch.zeros(1, 1, dtype=torch.int64))),
    "one point": lambda: plots.trajectories([projection_of(1, ticks=1, method="UMAP")], ["settled"]),
    "one cell": lambda: plots.scaling(grid_of(depths=1, selectors=("residual",))),
    "one cell of a frontier": lambda: plots.frontier(grid_of(depths=1, selectors=("residual",))),
    "foresight at one tick": lambda: plots.foresight(foresight_of(1, scores=("residual",))),
    "one bin, one tick": lambda: plots.solve_times(solve_times_of(1, 1)),
    "one tick": lambda: plots.probe(fit_of(1)),
}


def numbers_of(values: Any) -> np.ndarray:
    """A trace's coordinates as floats, however they are stored."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).astype(float)
    return np.array([np.nan if one is None else one for one in np.asarray(values, dtype=object).ravel()], dtype=float)


@pytest.mark.parametrize("name", [*ALL, *[f"lone: {one}" for one in LONE]])
def test_every_figure_has_titled_axes_facts_and_no_infinity(name: str) -> None:
    fig = LONE[name[6:]]() if name.startswith("lone: ") else ALL[name]()
    found = fig.to_dict()
    for trace in found["data"]:
        for axis in "xyz":
            if axis in trace and not (trace["type"] == "heatmap" and axis in "xy"):
                values = numbers_of(trace[axis])
                assert not np.isinf(values).any()
    titled = {axis.anchor for axis in fig.select_xaxes() if axis.title.text} | {
        axis.anchor for axis in fig.select_yaxes() if axis.title.text
    }
    assert titled
    subtitle = found["layout"]["title"]["subtitle"]["text"]
    assert "recursion" in subtitle
    assert "n = " in subtitle
    assert found["layout"]["height"] > 200
    json.loads(fig.to_json())


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_input_gives_a_figure_that_says_why(name: str) -> None:
    notes = EMPTY[name]().layout.annotations
    assert any(note.text.startswith("nothing to show: ") and len(note.text) > 25 for note in notes)


@pytest.mark.parametrize("name", ALL)
def test_no_figure_needs_webgl_or_shares_state_with_another(name: str) -> None:
    first, second = ALL[name](), ALL[name]()
    assert not any(trace.type.endswith("gl") for trace in first.data)
    assert first.to_json() == second.to_json()


def test_residual_curves_draw_few_lines_of_many_rows_and_say_so() -> None:
    conv = convergence_of(1000)
    fig = plots.residual_curves(conv)
    thin = [trace for trace in fig.data if trace.line.width == 0.8]
    drawn = sum(int(np.isnan(np.asarray(trace.y)).sum()) for trace in thin)
    assert 150 < drawn <= 200
    assert f"{drawn} rows drawn" in fig.layout.title.subtitle.text
    assert {trace.name for trace in thin} == set(plots.outcome_words(conv))
    assert fig.layout.yaxis.type == "log"
    assert sum(int(trace.name.split("(")[1].split()[0]) for trace in fig.data if trace.line.width == 3) == 1000


def test_residual_curves_put_exact_zeros_at_the_edge_instead_of_losing_them() -> None:
    conv = convergence_of(4, settled=True)
    conv = dataclasses.replace(conv, residual=torch.where(conv.ticks[:, None] > 30, 0.0, conv.residual))
    fig = plots.residual_curves(conv, floor=1e-7)
    (median,) = [trace for trace in fig.data if trace.line.width == 3 and trace.name.startswith("settled, solved")]
    assert median.y[-1] == pytest.approx(1e-7)
    assert "exact zeros" in fig.layout.title.subtitle.text


def test_rows_that_diverged_leave_gaps_and_no_warning() -> None:
    conv = convergence_of(8)
    residual = conv.residual.clone()
    residual[10:, 0], residual[20:], residual[5, 1] = float("nan"), float("nan"), float("inf")
    conv = dataclasses.replace(conv, residual=residual)
    plots.residual_curves(conv)
    plots.residual_vs_accuracy(conv)


def test_the_plateau_of_settle_times_is_the_share_that_settles() -> None:
    conv = convergence_of(40)
    fig = plots.settle_times(conv)
    assert fig.data[0].y[-1] == pytest.approx(float((conv.settle_tick >= 0).double().mean()))
    assert fig.data[0].x[-1] == TICKS
    assert fig.data[0].name == "settled (never: 10 of 40)"


def test_the_two_by_two_table_counts_every_row_once() -> None:
    conv = convergence_of(40)
    assert conv.solved is not None
    (heat,) = plots.settled_by_solved(conv).data
    assert np.asarray(heat.z).sum() == 40
    assert heat.z[0][0] == int((conv.settled & conv.solved[-1]).sum())
    assert heat.z[1][1] == int((~conv.settled & ~conv.solved[-1]).sum())


def test_accuracy_bins_hold_every_row_and_stay_between_0_and_1() -> None:
    fig = plots.residual_vs_accuracy(convergence_of(40), bins=5)
    for trace in fig.data:
        assert sum(trace.customdata) == 40
        assert (np.asarray(trace.y) >= 0).all() and (np.asarray(trace.y) <= 1).all()
        assert (np.asarray(trace.error_y.array) >= -1e-6).all()
    assert fig.data[-1].name == f"tick {TICKS}"


def test_the_spectrum_has_equal_scales_a_unit_circle_and_every_eigenvalue() -> None:
    spec = spectrum_of(20, 6)
    fig = plots.spectrum(spec)
    assert fig.layout.yaxis.scaleanchor == "x"
    assert fig.layout.yaxis.scaleratio == 1
    circle = next(trace for trace in fig.data if trace.name == "unit circle")
    assert np.hypot(circle.x, circle.y) == pytest.approx(np.ones(len(circle.x)), abs=1e-6)
    drawn = np.concatenate([np.asarray(t.x) + 1j * np.asarray(t.y) for t in fig.data if t.mode == "markers"])
    assert np.sort(np.abs(drawn)) == pytest.approx(np.sort(spec.eigenvalues.abs().flatten().numpy()), rel=1e-5)
    assert any((trace.name or "").startswith("unstable (") for trace in fig.data)


def test_gains_are_drawn_as_medians_for_each_mode_and_leaf_and_zeros_are_named() -> None:
    noun = floquet_of(5, 8)
    fig = plots.floquet(noun)
    lines = {(line.xaxis, line.name): np.asarray(line.y) for line in fig.data if line.mode == "lines+markers"}
    assert len(lines) == 6 + 2 + 2 and "6 modes drawn" in fig.layout.title.subtitle.text
    first = next(y for (axis, name), y in lines.items() if name.startswith("mode 1, "))
    np.testing.assert_allclose(first, noun.gain[:, 0].median(0).values, rtol=1e-6)
    np.testing.assert_allclose(lines["x2", "z_L"], noun.part[0, 0, :, 1], rtol=1e-6)
    assert lines["x3", "z_H"].tolist() == [2, 4] and lines["x3", "z_L"].tolist() == [1, 3, 5], "a logarithmic axis has no zero"
    assert "exact zeros left out" in fig.layout.title.subtitle.text
    assert fig.layout.xaxis.ticktext == ("L0", "L1", "H") and fig.layout.yaxis.type == fig.layout.yaxis3.type == "log"


def test_only_errors_that_can_be_seen_get_whiskers() -> None:
    small, large = plots.spectrum(spectrum_of(5, 3)), plots.spectrum(spectrum_of(5, 3, defect=0.1))
    assert not any(trace.error_x.array is not None for trace in small.data)
    assert any(trace.error_x.array is not None for trace in large.data)


def test_many_points_are_drawn_by_whole_points_with_every_group() -> None:
    groups = ["solved"] * 990 + ["wrong"] * 10
    fig = plots.spectrum(spectrum_of(1000, 8), groups=groups)
    drawn = {trace.legendgroup: len(trace.x) for trace in fig.data if trace.mode == "markers"}
    assert set(drawn) == {"solved", "wrong"}
    assert all(n % 8 == 0 for n in drawn.values())
    assert sum(drawn.values()) <= 2400
    assert "points drawn" in fig.layout.title.subtitle.text


def test_groups_must_name_every_point() -> None:
    with pytest.raises(ValueError, match=r"got 2 groups for 3 points\. Every point.*Pass one word"):
        plots.spectrum(spectrum_of(3, 2), groups=["a", "b"])


@pytest.mark.parametrize("coloured", [False, True])
def test_bars_of_every_instance_add_up_to_one(coloured: bool) -> None:
    basins = basins_of([[9, 3, 1], [4, 4], [], [12, 1, 1, 1, 1, 1, 1, 1, 1]], [3, 0, 5, 0])
    solved = basins.label == 0 if coloured else None
    fig = plots.basins(basins, solved=solved)
    bars = [trace for trace in fig.data if trace.type == "bar" and len(trace.x) == 4]
    assert sum(np.asarray(bar.y, dtype=float) for bar in bars) == pytest.approx(np.ones(4))
    assert bars[-1].name == "undecided"
    assert list(bars[0].customdata) == [0, 3, 1, 2] or np.all(np.diff(np.asarray(bars[0].y)) <= 0)
    if coloured:
        looks = {trace.name: trace.marker for trace in fig.data if trace.name in ("solution", "not a solution")}
        assert looks["solution"].color != looks["not a solution"].color
        assert looks["solution"].pattern.shape != looks["not a solution"].pattern.shape


def test_solved_runs_along_the_attractor_table() -> None:
    with pytest.raises(ValueError, match=r"got 5 values of `solved` for 2 attractors\. Each attractor.*Pass a mask"):
        plots.basins(basins_of([[6, 2]], [0]), solved=torch.ones(5, dtype=torch.bool))


def test_of_many_instances_some_bars_are_drawn_and_the_figure_says_so() -> None:
    fig = plots.basins(basins_of([[8 - i % 4, i % 4] for i in range(600)], [0] * 600))
    assert len(fig.data[0].x) == 240
    assert "240 of 600 instances drawn" in fig.layout.title.subtitle.text


def test_the_plane_has_square_pixels_and_undecided_ones_have_no_ticks() -> None:
    labels = torch.arange(24).reshape(6, 4) % 3 - 1
    fig = plots.basin_slice(plane_of(labels), names={0: "solution"})
    assert fig.layout.yaxis.scaleanchor == "x"
    # y spans 4 in five steps, x spans 2 in three.
    assert fig.layout.yaxis.scaleratio == pytest.approx((2 / 3) / (4 / 5))
    maps = [trace for trace in fig.data if trace.type == "heatmap"]
    assert maps[0].colorbar.ticktext == ("undecided (33.3%)", "solution (33.3%)", "attractor 1 (33.3%)")
    assert np.isnan(np.asarray(maps[-1].z, dtype=float)).sum() == int((labels < 0).sum())
    assert "undecided 33.3%" in fig.layout.title.subtitle.text


def test_a_plane_of_many_attractors_names_the_most_frequent_and_sums_the_rest() -> None:
    labels = torch.cat([torch.zeros(50), torch.arange(50) % 25 + 10]).long().reshape(10, 10)
    bar = plots.basin_slice(plane_of(labels)).data[0].colorbar
    assert bar.ticktext[0] == "attractor 0 (50.0%)"
    assert bar.ticktext[-1] == "19 others (38.0%)"
    colours = [colour for _, colour in plots.basin_slice(plane_of(labels)).data[0].colorscale]
    assert len(set(colours)) == len(bar.ticktext)


def test_trajectories_are_whole_of_every_outcome_and_marked_at_both_ends() -> None:
    words = ["solved"] * 290 + ["wrong"] * 10
    fig = plots.trajectories([projection_of(300), projection_of(300, method="UMAP")], words)
    lower = [trace for trace in fig.data if trace.mode == "lines" and trace.legendgroup]
    assert {trace.legendgroup for trace in lower} == {"solved", "wrong"}
    assert all((len(trace.x)) % 13 == 0 for trace in lower)  # 12 ticks and a gap each
    assert {trace.marker.symbol for trace in fig.data if trace.legendgroup and trace.mode == "markers"} == {"circle-open", "star"}
    assert "trajectories drawn" in fig.layout.title.subtitle.text
    assert fig.layout.annotations[0].text == "<b>PCA</b>: trustworthiness 0.91"
    assert fig.layout.xaxis3.title.text == "axis 1 (50.0% of variance)"
    assert fig.layout.yaxis.scaleanchor == "x"
    assert fig.layout.yaxis2.scaleanchor is None  # UMAP's axes have no unit


def test_trajectories_refuse_missing_outcomes_other_clocks_and_three_axes() -> None:
    with pytest.raises(ValueError, match=r"got 2 outcomes, and a projection of row 3\. Every row.*Pass `outcome_words"):
        plots.trajectories([projection_of(4)], ["solved"] * 2)
    with pytest.raises(ValueError, match=r"clocks \['recursion', 'segment'\].*Draw one figure"):
        plots.trajectories([projection_of(4), projection_of(4, clock="segment")], ["solved"] * 4)
    with pytest.raises(ValueError, match=r"with 3 axes\. It draws planes\. Project with"):
        plots.trajectories([projection_of(4, axes=3)], ["solved"] * 4)


def test_scaling_shows_the_grid_of_each_selector_and_refuses_to_compare_clocks() -> None:
    grid = grid_of()
    fig = plots.scaling(grid)
    maps = [trace for trace in fig.data if trace.type == "heatmap"]
    assert len(maps) == 2
    assert np.asarray(maps[0].z) == pytest.approx(grid.accuracy[..., 0].T.numpy())
    for starts, lines in ((1, ["1 start"]), (4, ["residual", "vote"])):
        cut = {name: getattr(grid, name)[:, :1] for name in ("accuracy", "low", "high", "residual", "spread", "spread_low", "spread_high", "map_calls")}
        single = plots.scaling(dataclasses.replace(grid, breadth=torch.tensor([starts]), **cut))
        assert {trace.type for trace in single.data} == {"scatter"}, "one row is no map"
        drawn = {trace.name: trace for trace in single.data if trace.mode and "markers" in trace.mode}
        assert list(drawn) == lines and np.asarray(drawn[lines[0]].y) == pytest.approx(grid.accuracy[:, 0, 0].numpy())
        assert f"accuracy, {starts} start" in single.layout.yaxis.title.text
    with pytest.raises(ValueError, match=r"clocks \['recursion', 'segment'\].*do not compare.*Strobe"):
        plots.scaling_lines({"a": grid, "b": grid_of(clock="segment")})
    with pytest.raises(ValueError, match=r"`frontier` got grids on the clocks \['recursion', 'segment'\].*do not compare"):
        plots.frontier(grid, grid_of(clock="segment"))


def test_a_frontier_takes_the_best_of_cells_that_cost_the_same_and_is_marked_in_doublings() -> None:
    grid = grid_of()
    fig = plots.frontier(dataclasses.replace(grid, accuracy=grid.accuracy + torch.tensor([0.0, 0.02])[:, None]))
    line = next(trace for trace in fig.data if trace.name == "residual" and trace.mode and "lines" in trace.mode)
    assert list(line.x) == [1, 4, 16, 64, 256]
    assert np.asarray(line.y) == pytest.approx(np.append(np.linspace(0.1, 0.9, 4), 0.92), abs=1e-6)
    assert fig.layout.xaxis.ticktext == ("1", "4", "16", "64", "256") and list(fig.layout.xaxis.tickvals) == [1, 4, 16, 64, 256]


def test_recolouring_makes_a_copy() -> None:
    fig = ALL["probe"]()
    before = fig.to_json()
    dark = plots.recoloured(fig, mode="dark")
    assert fig.to_json() == before
    assert dark.layout.template.layout.font.color != fig.layout.template.layout.font.color
    assert dark.to_dict()["data"] == fig.to_dict()["data"]


def test_names_with_markup_are_shown_letter_by_letter() -> None:
    hostile = dataclasses.replace(ORIGIN, model=HOSTILE)
    figures = [
        plots.residual_curves(dataclasses.replace(convergence_of(4), origin=hostile, clock=HOSTILE)),
        plots.spectrum(spectrum_of(2, 2), groups=[HOSTILE, "b"]),
        plots.floquet(dataclasses.replace(floquet_of(2, 2, updates=(HOSTILE, "b")), leaves=(HOSTILE, "b"), clock=HOSTILE, method=HOSTILE)),
        plots.basins(dataclasses.replace(basins_of([[3, 1]], [0]), sampler=HOSTILE, origin=hostile, clock=HOSTILE)),
        plots.basin_slice(dataclasses.replace(plane_of(torch.zeros(3, 3).long()), clock=HOSTILE), names={0: HOSTILE}),
        plots.trajectories([projection_of(3, method=HOSTILE, clock=HOSTILE)], [HOSTILE, "a", "b"]),
        plots.scaling(dataclasses.replace(grid_of(), selectors=(HOSTILE, "b"), clock=HOSTILE)),
        plots.frontier(dataclasses.replace(grid_of(), selectors=(HOSTILE, "b"), clock=HOSTILE), dataclasses.replace(grid_of(), selectors=(HOSTILE, "b"), clock=HOSTILE, policy=HOSTILE)),
        plots.foresight(dataclasses.replace(foresight_of(3), scores=(HOSTILE, "b", "c"), clock=HOSTILE)),
        plots.solve_times(dataclasses.replace(solve_times_of(2, 3), clock=HOSTILE)),
        plots.scaling_lines({HOSTILE: dataclasses.replace(grid_of(), clock=HOSTILE)}),
        plots.probe(dataclasses.replace(fit_of(3), target=HOSTILE, clock=HOSTILE)),
    ]
    for fig in figures:
        found = fig.to_dict()
        shown = [found["layout"], *[{k: v for k, v in trace.items() if k != "legendgroup"} for trace in found["data"]]]
        text = json.dumps(shown, default=str)
        assert "<script" not in text
        assert "&lt;script" in text
