"""The grid against ten lines of numpy, and the selectors against made-up candidates."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from attractorlab import (
    Halting,
    Instance,
    attempt,
    by_halt,
    by_residual,
    by_vote,
    only_last,
    repeat_rows,
    scaling,
    scaling_grid,
    scaling_of,
    trace,
)
from attractorlab.dynamics.selectors import Candidates
from attractorlab.maps import LatentMap
from attractorlab.statistics import cluster_mean
from tests.stored_attempts import attempts

DEPTH, BREADTH, LEVEL = (1, 2, 5, 9), (1, 3, 4), 0.9
SITES, CLASSES = 3, 4
NOTHING = {"halt": None, "logit_change": None, "halt_tick": None, "valid": None}


@dataclass(frozen=True)
class Made:
    """A reasoner whose state wanders towards logits that suit the instance more or less, from random starts."""

    halts: bool = True

    def bind(self, instance):
        n = len(instance)
        goal = 2.0 * torch.nn.functional.one_hot(instance.inputs, CLASSES).double()

        def readout(z):
            out = {"logits": z["z"]}
            return out | {"halt": z["z"].amax((1, 2))} if self.halts else out

        return LatentMap(
            lambda z, x: {"z": 0.7 * z["z"] + 0.3 * torch.tanh(x["goal"] - z["z"].flip(1))},
            {"goal": goal},
            readout=readout,
            clock="tick",
            instance=torch.arange(n),
            start=torch.zeros(n).long(),
        )

    def start(self, drive, *, generator):
        return {"z": 2 * torch.randn(drive["goal"].shape, generator=generator, dtype=torch.float64)}


def instances(generator, n=12):
    inputs = torch.randint(CLASSES, (n, SITES), generator=generator)
    return Instance(inputs, inputs, tuple(str(k) for k in range(n)), "made", None)


def grid_of(puzzles, reasoner=None, **more):
    choose = [by_residual, by_vote, by_halt]
    g = torch.Generator().manual_seed(3)
    return scaling(reasoner or Made(), puzzles, depth=DEPTH, breadth=BREADTH, select=choose, generator=g, level=LEVEL, **more)


def recorded(puzzles, starts=4, ticks=9):
    f = Made().bind(puzzles).take(repeat_rows(len(puzzles), starts))
    return trace(f, Made().start(f.drive, generator=torch.Generator().manual_seed(3)), ticks=ticks, keep=only_last())


def test_every_column_is_what_ten_lines_of_numpy_give(generator):
    puzzles = instances(generator)
    grid, traj = grid_of(puzzles), recorded(puzzles)
    assert grid.selectors == ("mean", "residual", "vote", "halt", "any")
    n, starts = len(puzzles), 4
    solved = (traj.readouts["answer"].long() == puzzles.targets.repeat_interleave(starts, 0)).all(2).numpy().reshape(-1, n, starts)
    residual, halt = traj.residual.numpy().reshape(-1, n, starts), traj.readouts["halt"].numpy().reshape(-1, n, starts)
    answer = traj.readouts["answer"].numpy().reshape(-1, n, starts, SITES)
    assert 0.1 < solved[-1].mean() < 0.9, "a grid of all right or all wrong would test nothing"
    for i, d in enumerate(DEPTH):
        for j, b in enumerate(BREADTH):
            right, r = solved[d, :, :b], residual[max(0, d - 3) : d, :, :b].mean(0)
            votes = np.array([[sum(tuple(a) == tuple(c) for c in row[:b]) for a in row[:b]] for row in answer[d]])
            picks = [r.argmin(1), votes.argmax(1), halt[d, :, :b].argmax(1)]
            rows = np.arange(n)
            accuracy = [right.mean(), *[right[rows, pick].mean() for pick in picks], right.any(1).mean()]
            oracle = [min(own[ok], default=own.min()) for own, ok in zip(r, right, strict=True)]
            residuals = [r.mean(), *[r[rows, pick].mean() for pick in picks], np.mean(oracle)]
            assert grid.accuracy[i, j].tolist() == pytest.approx(accuracy)
            assert grid.residual[i, j].tolist() == pytest.approx(residuals)
            assert grid.spread[i, j].item() == pytest.approx(np.abs(right.mean(1) - right[:, 0]).mean())
    right = torch.from_numpy(solved[DEPTH[-1]]).double()
    _, low, high = cluster_mean(right.mean(1), torch.arange(n), level=LEVEL)
    assert (grid.low[-1, -1, 0].item(), grid.high[-1, -1, 0].item()) == pytest.approx((low, high))
    assert grid.level == LEVEL and grid.instances == grid.clusters == n and grid.policy == ""
    assert grid.map_calls.tolist() == [[d * b for b in BREADTH] for d in DEPTH]


def test_a_recorded_run_gives_the_same_grid_in_any_order_of_rows(generator):
    puzzles = instances(generator)
    live, traj = grid_of(puzzles), recorded(puzzles)
    order = torch.randperm(48, generator=generator)
    f = Made().bind(puzzles).take(repeat_rows(12, 4))
    moved = trace(f.take(order), {"z": Made().start(f.drive, generator=torch.Generator().manual_seed(3))["z"][order]}, ticks=9, keep=only_last())
    for one in (traj, moved):
        again = scaling_of(one, puzzles.targets, depth=DEPTH, breadth=BREADTH, select=[by_residual, by_vote, by_halt], level=LEVEL)
        for name in ("accuracy", "low", "high", "residual", "spread", "map_calls"):
            assert torch.allclose(getattr(live, name), getattr(again, name), rtol=1e-12, atol=0), name


def test_depths_and_breadths_stand_in_order_however_they_are_given(generator):
    puzzles = instances(generator)
    f = Made().bind(puzzles).take(repeat_rows(12, 4))
    runs = attempt(f, Made().start(f.drive, generator=generator), ticks=9, read=[1, 4, 9], slots=8, halting=None, hold=None, targets=puzzles.targets)
    rest = {"select": [by_residual], "level": LEVEL, "cluster": None}
    sorted_, given = scaling_grid(runs, depth=[1, 4, 9], breadth=[1, 4], **rest), scaling_grid(runs, depth=[9, 1, 4, 4], breadth=[4, 1, 4], **rest)
    assert given.depth.tolist() == [1, 4, 9] and given.breadth.tolist() == [1, 4] and given.accuracy.equal(sorted_.accuracy) and given.low.equal(sorted_.low)


def test_lost_starts_count_alike_by_both_routes(generator):
    puzzles = instances(generator)
    sound = Made().bind(puzzles).take(repeat_rows(12, 4))
    bad = torch.zeros(48).long().index_fill(0, torch.tensor([1, 9]), 1).index_fill(0, torch.tensor([6, 7]), 2)

    def rule(z, x):
        kind = x["bad"][:, None, None]
        return {"z": torch.where(kind == 1, torch.nan, torch.where(kind == 2, 1e5 * z["z"], sound.rule(z, x)["z"]))}

    f, z = replace(sound, rule=rule, drive={**sound.drive, "bad": bad}), Made().start(sound.drive, generator=generator)
    choose = {"depth": DEPTH, "breadth": BREADTH, "select": [by_residual, by_vote, by_halt], "level": LEVEL, "cluster": None}
    runs = attempt(f, z, ticks=9, read=DEPTH, slots=8, halting=Halting(0.0, 1, None), hold=None, targets=puzzles.targets)
    live, again = scaling_grid(runs, **choose), scaling_of(trace(f, z, ticks=9, keep=only_last()), puzzles.targets, **choose)
    for name in ("accuracy", "residual", "spread", "map_calls"):
        assert torch.allclose(getattr(live, name), getattr(again, name), rtol=1e-12, atol=0, equal_nan=True), name
    assert live.map_calls[3, 2].item() == pytest.approx((44 * 9 + 2 * 1 + 2 * 2) / 12), "two are lost at tick 1, two at tick 2"


def test_relabelled_digits_change_nothing(generator):
    puzzles = instances(generator)
    traj = recorded(puzzles)
    other = torch.tensor([2, 0, 3, 1])
    renamed = replace(traj, readouts={**traj.readouts, "answer": other[traj.readouts["answer"].long()].to(torch.int16)})
    choose = [by_residual, by_vote]
    a = scaling_of(traj, puzzles.targets, depth=DEPTH, breadth=BREADTH, select=choose)
    b = scaling_of(renamed, other[puzzles.targets], depth=DEPTH, breadth=BREADTH, select=choose)
    assert a.accuracy.equal(b.accuracy) and a.residual.equal(b.residual)


def test_one_start_leaves_nothing_to_select_and_an_oracle_is_never_beaten(generator):
    grid = grid_of(instances(generator))
    assert (grid.accuracy[:, 0] == grid.accuracy[:, 0, :1]).all() and (grid.spread[:, 0] == 0).all()
    assert (grid.accuracy <= grid.accuracy[..., -1:]).all() and (grid.accuracy[:, 1:, -1] >= grid.accuracy[:, :1, -1]).all()


def test_a_strobed_grid_has_the_columns_of_the_deeper_ticks(generator):
    puzzles = instances(generator)
    plain, seen = grid_of(puzzles), grid_of(puzzles, every=5)
    assert seen.clock == "5 x tick"
    assert seen.accuracy[0, :, [0, 2, 3, 4]].equal(plain.accuracy[2, :, [0, 2, 3, 4]]), "one strobed tick is five"


def test_votes_go_to_whole_answers_and_ties_to_the_lowest_start():
    c = Candidates(residual=torch.tensor([[3.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]]), answer=torch.tensor([[5, 7, 7, 9], [4, 2, 4, 2]]), **NOTHING)
    assert by_vote(c).tolist() == [1, 0] and by_residual(c).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"`by_halt` got a run without a readout `halt`.*Use by_residual or by_vote"):
        by_halt(c)


def test_starts_that_were_lost_do_not_vote():
    nan = torch.nan
    lost = torch.tensor([[nan, nan, 1.0, 2.0], [nan, nan, nan, nan], [1.0, nan, 2.0, 2.0]])
    c = Candidates(residual=lost, answer=torch.tensor([[0, 0, 7, 8], [0, 0, 0, 0], [5, 0, 7, 7]]), **NOTHING)
    assert by_vote(c).tolist() == [2, 0, 2], "two that have no answer do not outvote one that has; where all are lost it is the first"


def test_a_start_that_was_lost_is_never_selected_by_residual_or_halt():
    lost = torch.tensor([[torch.nan, 2.0, 1.0]])
    c = Candidates(residual=lost, answer=torch.zeros(1, 3).long(), **{**NOTHING, "halt": -lost})
    assert by_residual(c).tolist() == [2] and by_halt(c).tolist() == [2]


def test_a_lost_start_leaves_the_other_instances_and_the_best_residual_alone(generator):
    puzzles = instances(generator)
    traj = recorded(puzzles)
    residual = traj.residual.clone()
    residual[:, 1] = torch.nan
    grid = scaling_of(replace(traj, residual=residual), puzzles.targets, depth=[9], breadth=[4], select=[by_residual])
    kept = residual[6:9].mean(0).reshape(-1, 4).double()
    assert grid.residual.isfinite().all() and grid.accuracy.isfinite().all()
    assert grid.residual[0, 0, 0].item() == pytest.approx(kept[~kept.isnan()].mean().item(), rel=1e-6)


def test_the_oracles_residual_is_that_of_a_right_start(generator):
    residual = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, torch.nan], [5.0, torch.nan, 4.0]])
    solved = torch.tensor([[True, False, True], [False, False, False], [False, False, False]])
    for lost in (False, True):
        r = torch.where(torch.tensor([[False], [False], [lost]]), torch.nan, residual)
        runs = attempts(
            read=torch.tensor([4]),
            **{name: values.flatten()[None] for name, values in (("answer", torch.arange(9).reshape(3, 3)), ("solved", solved), ("residual", r))},
            **dict.fromkeys(("valid", "logit_change", "halt")),
            **{name: torch.full((9,), 4) for name in ("halt_tick", "first_solved", "last_tick", "computed", "result")},
            **dict.fromkeys(("final", "final_at_halt"), torch.zeros(9, 5, dtype=torch.int8)),
            at_halt={},
            instance=torch.arange(3).repeat_interleave(3),
            start=torch.arange(3).repeat(3),
            policy="",
        )
        grid = scaling_grid(runs, depth=[4], breadth=[1, 3], select=[by_residual], level=0.95, cluster=None)
        assert grid.residual[0, 1].tolist() == pytest.approx([9 / 5, 1.0, 3 / 2] if lost else [18 / 7, 2.0, 7 / 3])
        assert grid.accuracy[0, 1].tolist() == pytest.approx([2 / 9, 0.0, 1 / 3])


def test_the_answer_is_hidden_from_the_selectors(generator):
    puzzles = instances(generator)
    seen = []

    def by_spying(c):
        seen.append(sorted(vars(c)))
        return torch.zeros(len(c.residual)).long()

    grid = scaling_of(recorded(puzzles), puzzles.targets, depth=[3], breadth=[2], select=[by_spying])
    assert seen == [["answer", "halt", "halt_tick", "logit_change", "residual", "valid"]] and grid.selectors == ("mean", "spying", "any")


def test_misuse_is_refused_with_what_to_do(generator):
    puzzles = instances(generator)
    traj = recorded(puzzles)
    rest = {"select": [by_vote]}
    with pytest.raises(ValueError, match=r"`scaling_of` got depth \[10\] for a run of 9 ticks.*Ask for less, or record more"):
        scaling_of(traj, puzzles.targets, depth=[10], breadth=[1], **rest)
    with pytest.raises(ValueError, match=r"`scaling_of` got breadth \[5\] for a run of 4 starts.*Breadth ends with the starts"):
        scaling_of(traj, puzzles.targets, depth=[1], breadth=[5], **rest)
    for depth, breadth in (([0], [1]), ([1], [0]), ([], [1]), ([-1, 3], [1])):
        with pytest.raises(ValueError, match=r"`scaling_of` got depth .* and breadth .*Both hold whole numbers from 1.*Use depth=\[1, 4, 16\]"):
            scaling_of(traj, puzzles.targets, depth=depth, breadth=breadth, **rest)
        with pytest.raises(ValueError, match=r"`scaling` got depth .*Both hold whole numbers from 1"):
            scaling(Made(), puzzles, depth=depth, breadth=breadth, generator=generator, **rest)

    class Fixed(Made):
        def start(self, drive, *, generator):
            return {"z": torch.zeros_like(drive["goal"])}

    assert scaling(Fixed(), puzzles, depth=[2], breadth=[1], generator=generator, **rest).accuracy.shape == (1, 1, 3)
    with pytest.raises(ValueError, match=r"`scaling` got breadth \[1, 4\] for a reasoner with one fixed start\..*Use breadth=\[1\]"):
        scaling(Fixed(), puzzles, depth=[2], breadth=[1, 4], generator=generator, **rest)
    unknown = Instance(puzzles.inputs, None, puzzles.ids, puzzles.task, None)
    with pytest.raises(ValueError, match=r"`scaling` got instances without targets.*Load puzzles that have them"):
        scaling(Made(), unknown, depth=[1], breadth=[1], generator=generator, **rest)
    f = Made().bind(puzzles).take([0, 0, 1])
    ragged = trace(f, Made().start(f.drive, generator=generator), ticks=3, keep=only_last())
    with pytest.raises(ValueError, match=r"`scaling_of` got between 1 and 2 starts an instance.*f\.take\(repeat_rows"):
        scaling_of(ragged, puzzles.targets, depth=[1], breadth=[1], **rest)
    with pytest.raises(ValueError, match=r"`scaling` got 3 clusters for 12 instances"):
        scaling(Made(), puzzles, depth=[1], breadth=[1], generator=generator, cluster=torch.arange(3), **rest)
    runs = attempt(f, Made().start(f.drive, generator=generator), ticks=1, read=[1], slots=3, halting=None, hold=None, targets=puzzles.targets)
    even = {"depth": [1], "level": 0.9, "cluster": None, **rest}
    with pytest.raises(ValueError, match=r"`scaling_grid` got between 1 and 2 starts an instance"):
        scaling_grid(runs, breadth=[1], **even)
    with pytest.raises(ValueError, match=r"`scaling_grid` got breadth \[2\] for a run of 1 starts"):
        scaling_grid(replace(runs, instance=torch.arange(3), start=torch.zeros(3).long()), breadth=[2], **even)
    with pytest.raises(ValueError, match=r"`scaling_grid` got depth \[1\] and breadth \[\].*Both hold whole numbers"):
        scaling_grid(runs, breadth=[], **even)
    with pytest.raises(ValueError, match=r"`by_halt` got a run without a readout `halt`"):
        scaling(Made(halts=False), puzzles, depth=[1], breadth=[1], select=[by_halt], generator=generator)
