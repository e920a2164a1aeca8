"""Pictures: PCA against closed forms, the thinning of paths, and scores of how far to believe them."""

import os
from dataclasses import replace

import pytest
import torch

from attractorlab import by_pca, by_umap, every, only_last, project, trace
from attractorlab import projection as module
from attractorlab.maps import LatentMap
from attractorlab.projection import _neighbours, faithfulness, thin
from attractorlab.types import Origin, Trajectory


def recorded(states, kept=None):
    """A trajectory of these states [kept row width]."""
    kept = torch.arange(len(states)) if kept is None else kept
    rows = states.shape[1]
    none = torch.zeros(len(states), rows)
    return Trajectory(
        states={"z": states},
        kept=kept,
        ticks=torch.arange(len(states)),
        residual=none,
        recurrence=torch.zeros(8, rows),
        readouts={},
        last_tick=torch.zeros(rows).long(),
        result=torch.zeros(rows).long(),
        instance=torch.arange(rows),
        start=torch.zeros(rows).long(),
        clock="3 x recursion",
        origin=Origin(model="made"),
    )


def spiral(rows=6, ticks=60):
    angle = torch.tensor(0.3)
    turn = 0.95 * torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    f = LatentMap(lambda z, x: {"z": z["z"] @ turn.T}, {}, clock="tick")
    starts = torch.stack([torch.linspace(1, 2, rows), torch.linspace(-1, 1, rows)], 1)
    return trace(f, {"z": starts}, ticks=ticks, keep=every(1))


def test_pca_of_a_plane_in_many_dimensions_keeps_every_distance(generator):
    flat = torch.randn(40, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    frame = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))[0]
    placed = by_pca(2)(flat @ frame.T + 7)
    assert (torch.cdist(placed.coordinates, placed.coordinates) - torch.cdist(flat, flat)).abs().max() < 1e-6
    assert placed.scores["variance 1"] + placed.scores["variance 2"] == pytest.approx(1)
    variance = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0)
    assert placed.scores["variance 1"] == pytest.approx((variance[0] / variance.sum()).item())


def test_pca_has_one_sign(generator):
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    axes = torch.linalg.lstsq(by_pca(3)(x).coordinates, x - x.mean(0)).solution
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all(), "the largest loading is positive"
    again = by_pca(3)(x.flip(0)).coordinates.flip(0)
    assert (by_pca(3)(x).coordinates - again).abs().max() < 1e-10


def test_points_that_all_coincide_have_no_axis_but_a_place():
    placed = by_pca(2)(torch.ones(9, 3, dtype=torch.float64))
    assert placed.coordinates.abs().max() < 1e-12 and placed.scores["variance 1"] == 0


def test_a_projection_carries_ticks_rows_clock_and_scores():
    traj = spiral()
    proj = project(replace(traj, kept=traj.kept * 5), by_pca(2), points_per_row=10)
    assert proj.coordinates.shape == (len(proj.tick), 2) and proj.clock == "tick" and proj.method == "PCA"
    assert proj.row.unique().tolist() == list(range(6))
    assert set(proj.faithfulness) == {"variance 1", "variance 2", "trustworthiness", "continuity", "scored at", "scored points"}
    assert proj.faithfulness["trustworthiness"] == pytest.approx(1) and proj.faithfulness["continuity"] == pytest.approx(1)
    for point in (0, 7, -1):
        state = traj.states["z"][proj.tick[point] // 5, proj.row[point]].double()
        others = traj.states["z"][proj.tick // 5, proj.row].double()
        far = (others - state).norm(dim=1)
        assert ((proj.coordinates - proj.coordinates[point]).norm(dim=1) - far).abs().max() < 1e-6, "a point is its row's state at its tick"


def test_a_path_is_thinned_evenly_along_its_length_and_not_in_time():
    # A row that runs 0, 1, 2, ... 100 at once and then lies still for 100 ticks; one that never moves; one that leaps once.
    run = torch.cat([torch.arange(101), torch.full((100,), 100)]).double()
    leap = torch.where(torch.arange(201) < 150, 0.0, 9.0).double()
    states = torch.stack([run, torch.zeros(201).double(), leap], 1)[..., None]
    time, row = thin(recorded(states), 11)
    assert time[row == 0].tolist() == list(range(0, 101, 10))
    assert time[row == 1].tolist() == [0]
    assert time[row == 2].tolist() == [0, 150]


@pytest.mark.parametrize("points", [2, 3, 17, 40, 1000])
def test_thinning_keeps_the_first_and_the_last_and_no_more_than_asked(points, generator):
    states = torch.randn(80, 5, 3, generator=generator).cumsum(0)
    time, row = thin(recorded(states), points)
    for one in range(5):
        mine = time[row == one].tolist()
        assert mine[0] == 0 and mine[-1] == 79 and len(mine) <= points and mine == sorted(set(mine))


def test_a_row_that_ended_is_drawn_up_to_its_last_finite_state():
    states = torch.arange(12).double()[:, None, None].repeat(1, 2, 1)
    states[5:, 1] = torch.nan
    time, row = thin(recorded(states), 40)
    assert time[row == 1].tolist() == [0, 1, 2, 3, 4] and time[row == 0].tolist() == list(range(12))


def test_many_rows_are_thinned_by_whole_rows(monkeypatch):
    monkeypatch.setattr(module, "LANDMARKS", 100)
    time, row = thin(recorded(torch.arange(20).double()[:, None, None].repeat(1, 50, 1)), 40)
    assert len(time) <= 100 and (torch.bincount(row)[row.unique()] == 20).all() and row[0] == 0 and row[-1] == 49


def test_a_shuffled_picture_is_not_believed(generator):
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    true, shuffled = faithfulness(x, 3 * x), faithfulness(x, x[torch.randperm(300, generator=generator)])
    assert true["trustworthiness"] == true["continuity"] == pytest.approx(1)
    assert shuffled["trustworthiness"] < 0.6 and shuffled["continuity"] < 0.6
    assert true["scored at"] == 15 and true["scored points"] == 300


def test_a_torn_picture_is_trusted_and_not_continuous(generator):
    # A circle cut open and straightened keeps false neighbours out but parts true ones; folded flat, it does the reverse.
    angle = torch.linspace(0, 6.283, 400, dtype=torch.float64)[:, None]
    circle = torch.cat([angle.cos(), angle.sin()], 1)
    torn, folded = faithfulness(circle, angle), faithfulness(circle, angle.cos())
    assert torn["trustworthiness"] > torn["continuity"] and folded["continuity"] > folded["trustworthiness"]


@pytest.mark.parametrize("points", [4, 5, 6, 31, 32])
def test_few_points_are_scored_at_fewer_neighbours(points, generator):
    x = torch.randn(points, 3, generator=generator, dtype=torch.float64)
    scores = faithfulness(x, x)
    assert scores["trustworthiness"] == pytest.approx(1) and 1 <= scores["scored at"] < points / 2


def test_neighbours_are_the_nearest_and_begin_with_the_point_itself(generator):
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    x[7] = x[3]  # twins
    distance, index = _neighbours(x, 6)
    full = torch.stack([(x - one).norm(dim=1) for one in x])
    assert index[:, 0].tolist() == list(range(50)) and (distance[:, 0] == 0).all()
    assert (distance.sort(1).values - full.sort(1).values[:, :6]).abs().max() < 1e-6
    assert all(len(set(row)) == 6 for row in index.tolist()) and 7 in index[3].tolist()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"`project` got 3 points of 3 rows that are finite throughout.*four or more finite states.*keep=every\(1\)"):
        project(recorded(torch.zeros(1, 3, 2)), by_pca())
    states = torch.randn(9, 2, 2, generator=torch.Generator().manual_seed(0))
    states[:, 1] = torch.nan
    left = project(recorded(states), by_pca())
    assert left.row.unique().tolist() == [0] and left.faithfulness["rows left out"] == 1
    with pytest.raises(ValueError, match=r"`project` got 0 points of 0 rows.*rows whose result is COMPLETED"):
        project(recorded(torch.full((9, 2, 2), torch.nan)), by_pca())
    with pytest.raises(ValueError, match=r"`project` got points_per_row=1.*Use points_per_row=40"):
        project(recorded(torch.zeros(9, 3, 2)), by_pca(), points_per_row=1)


def test_last_states_alone_can_be_drawn(generator):
    f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {}, clock="tick")
    proj = project(trace(f, {"z": torch.randn(20, 3, generator=generator)}, ticks=7, keep=only_last()), by_pca())
    assert proj.tick.tolist() == [7] * 20 and proj.row.tolist() == list(range(20))


@pytest.mark.slow
def test_umap_is_seeded_and_tells_clusters_apart(generator):
    before, threads = dict(os.environ), torch.get_num_threads()
    centres = 50 * torch.randn(3, 1, 8, generator=generator, dtype=torch.float64)
    x = (centres + torch.randn(3, 40, 8, generator=generator, dtype=torch.float64)).flatten(0, 1)
    placed, again, other = (by_umap(2, random_state=seed)(x) for seed in (0, 0, 1))
    assert placed.coordinates.equal(again.coordinates) and not placed.coordinates.equal(other.coordinates)
    assert placed.coordinates.shape == (120, 2) and placed.coordinates.isfinite().all()
    assert placed.method == "UMAP" and placed.scores == {"neighbours": 15.0}
    _, index = _neighbours(placed.coordinates, 10)
    assert (index // 40 == torch.arange(120)[:, None] // 40).all(), "neighbours in the picture are of one cluster"
    assert torch.get_num_threads() == threads
    assert {key for key in os.environ if os.environ.get(key) != before.get(key)} <= {"NUMBA_CACHE_DIR", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"}
