"""What halting saves, what scores foretell and how long solving takes, on runs of which all of it can be counted by hand."""

import math
from dataclasses import replace

import pytest
import torch

from attractorlab import Halting, attempt, elastic, foresight, halted, halting_gain, scaling_grid, solve_times
from attractorlab.dynamics.attempts import spaced, under
from attractorlab.dynamics.selectors import Candidates, by_first_halt, by_logit_change, by_residual, by_verifier
from attractorlab.maps import LatentMap
from attractorlab.statistics import wilson
from tests.dynamics.test_attempts import NEVER, PUBLISHED, clocked, from_zero, ones

N = 40


def followed(solves, halts, *, ticks=16, until=None):
    n = len(solves)
    return attempt(clocked(solves, halts=halts, until=until), from_zero(n), ticks=ticks, read=spaced(ticks), slots=7, halting=PUBLISHED, hold=None, targets=ones(n))


def test_halting_saves_what_the_known_ticks_say():
    # Each quarter of the rows: solved at 2, 4, 8, never; halts one tick later, and the unsolved ones never.
    runs = followed([2, 4, 8, NEVER] * (N // 4), [3, 5, 9, NEVER] * (N // 4))
    gain = halting_gain(runs, depth=[4, 16], level=0.9, cluster=None)
    assert gain.accuracy.tolist() == gain.full.tolist() == [0.5, 0.75]
    assert gain.calls.tolist() == [(3 + 4 + 4 + 4) / 4, (3 + 5 + 9 + 16) / 4] and gain.saving.tolist() == [4 / 3.75, 16 / 8.25]
    assert gain.halted.tolist() == [0.25, 0.75]
    unseen = wilson(torch.tensor(0), torch.tensor(N), level=0.9)[1].item()
    assert gain.difference.tolist() == [0, 0], "no row differs in any draw, yet some may"
    assert gain.difference_low.tolist() == pytest.approx([-unseen] * 2) and gain.difference_high.tolist() == pytest.approx([unseen] * 2)
    assert gain.matched.tolist() == [4, 8] and gain.matched_above.tolist() == [3, 7], "at 7 ticks a quarter of the same rows is still missing"
    assert gain.ratio.tolist() == [4 / 3.75, 8 / 8.25]
    assert (gain.calls_low < gain.calls).all() and (gain.calls < gain.calls_high).all() and gain.rows == gain.clusters == N


def test_halting_too_early_costs_accuracy_and_says_so():
    # A tenth halts before it is solved.
    halts = [1 if k % 10 == 0 else 6 for k in range(N)]
    gain = halting_gain(followed([5] * N, halts), depth=[16], level=0.95, cluster=None)
    assert gain.accuracy.item() == 0.9 and gain.full.item() == 1.0 and gain.difference.item() == pytest.approx(-0.1)
    assert gain.difference_low.item() < -0.1 < gain.difference_high.item() <= 0
    assert gain.matched.item() == 5 and gain.calls.item() == pytest.approx(0.1 * 1 + 0.9 * 6)


def test_nearly_as_good_is_not_as_good():
    # Nineteen of twenty are solved at 3 and the last at 8, all halt after it: at 3 the interval of the difference still holds 0.
    gain = halting_gain(followed([3] * 38 + [8] * 2, [4] * 38 + [9] * 2), depth=[16], level=0.95, cluster=None)
    assert gain.accuracy.item() == 1 and gain.matched.item() == 8 and gain.ratio_low.item() < gain.ratio.item()


def test_no_depth_read_may_be_as_good_as_halting():
    # Solved from 3 to before 5, halted in between, and wrong at all later ticks; at 3 and 4 only half of the rows are.
    solves, until, halts = [3, 7] * (N // 2), [5, 9] * (N // 2), [4, 8] * (N // 2)
    gain = halting_gain(followed(solves, halts, until=until), depth=[16], level=0.95, cluster=None)
    assert gain.accuracy.item() == 1 and gain.full.item() == 0
    assert gain.matched.item() == -1 and gain.matched_above.item() == 16 and math.isinf(gain.ratio.item())


def test_clusters_of_equal_rows_count_once():
    solves, halts = [2, NEVER] * 12, [3, NEVER] * 12
    apart = halting_gain(followed(solves, halts), depth=[16], level=0.95, cluster=None)
    pairs = halting_gain(followed([s for s in solves for _ in range(4)], [h for h in halts for _ in range(4)]), depth=[16], level=0.95, cluster=torch.arange(24).repeat_interleave(4))
    for name in ("accuracy", "low", "high", "calls", "calls_low", "calls_high"):
        assert getattr(pairs, name).tolist() == pytest.approx(getattr(apart, name).tolist()), name
    assert (pairs.rows, pairs.instances, pairs.clusters) == (96, 96, 24)


def test_a_score_foretells_and_does_not_merely_report():
    # Solved rows are told at once by halting; of the others the halting logit knows nothing: both kinds halt at random ticks.
    halts = [1 + k % 4 for k in range(N)]
    solves = [1 if k < N // 2 else (9 if k % 8 < 4 else NEVER) for k in range(N)]
    runs = followed(solves, halts)
    told = foresight(runs, read=[1, 8, 16], level=0.9, cluster=None)
    assert told.scores == ("residual", "logit change", "halt") and told.rows == N
    assert told.unsolved.tolist() == [20, 20, 12] and told.later.tolist() == [8, 8, 0]
    halt = told.scores.index("halt")
    assert told.ahead[0, halt].item() == pytest.approx(auc([-h for h, s in zip(halts, solves, strict=True) if s > 1], [s == 9 for s in solves if s > 1]))
    assert told.auc[0, halt].item() == pytest.approx(auc([-h for h in halts], [s < NEVER for s in solves]))
    assert told.ahead[2].isnan().all(), "nobody is solved later than at the end"
    assert (told.low[0, halt] < told.auc[0, halt] < told.high[0, halt]).item()
    # Residuals of rows that all count alike tell nothing.
    assert told.auc[:, 0].tolist() == [0.5] * 3


def auc(score, good):
    """The share of pairs in which the good row is ahead; ties count half."""
    pairs = [(a > b) + 0.5 * (a == b) for a, g in zip(score, good, strict=True) if g for b, h in zip(score, good, strict=True) if not h]
    return sum(pairs) / len(pairs)


def test_ticks_to_a_lasting_solution_are_counted_by_difficulty():
    solves = [2] * 20 + [3, 11] * 10 + [NEVER, 9] * 10
    until = [NEVER] * 20 + [NEVER] * 20 + [NEVER, 12] * 10
    runs = followed(solves, [NEVER] * 60, until=until)
    hard = torch.tensor([0.0] * 20 + [5.0] * 20 + [7.0] * 20)
    times = solve_times(runs, difficulty=hard, bins=3, level=0.95, cluster=None)
    assert times.easiest.tolist() == [0, 5, 7] and times.hardest.tolist() == [0, 5, 7] and times.rows.tolist() == [20, 20, 20]
    assert times.censored.tolist() == [0, 0, 1], "solved at 9 and lost at 12 does not last"
    assert times.quantile.tolist() == [[2, 2, 2], [3, 3, 11], [math.inf] * 3]
    at = times.tick.tolist().index(10)
    assert times.share[:, at].tolist() == [1, 0.5, 0]
    assert (times.low <= times.share).all() and (times.share <= times.high).all() and (times.low < times.high).all()
    assert times.quantile_low[1, 1].item() == 3 and times.quantile_high[1, 1].item() == 11
    tied = solve_times(runs, difficulty=torch.zeros(60), bins=3, level=0.95, cluster=None)
    assert tied.rows.tolist() == [60] and tied.quantile.tolist() == [[2, 3, math.inf]]
    assert solve_times(runs, difficulty=None, bins=4, level=0.95, cluster=None).rows.tolist() == [60]


def test_another_threshold_is_tried_at_the_ticks_read():
    runs = followed([2, 4, 8, NEVER] * 10, [3, 5, 9, NEVER] * 10)
    # The halting logit is t − h + 0.5: it passes 0 at h, and 2 two ticks later; ticks read up to 16 are 1 to 8, 10, 11, 13 and 16.
    assert under(runs, PUBLISHED).halt_tick[:4].tolist() == [3, 5, 10, -1]
    assert under(runs, Halting(2.0, 1, None)).halt_tick[:4].tolist() == [5, 7, 11, -1]
    assert under(runs, Halting(2.0, 6, None)).halt_tick[:4].tolist() == [6, 7, 11, -1]
    # Mean residuals of the last three ticks fall below 0.3 at tick 5: (1/2 + 1/3 + 1/4) / 3 at tick 5 is 0.361, (1/3 + 1/4 + 1/5) / 3 at tick 6 is 0.261.
    assert under(runs, Halting(50.0, 1, 0.3)).halt_tick[:4].tolist() == [6, 6, 6, 6]
    late = under(runs, Halting(2.0, 1, None))
    assert late.at_halt["solved"][:4].tolist() == [True, True, True, False] and late.policy.endswith("looked at when read")
    assert halting_gain(late, depth=[16], level=0.9, cluster=None).calls.item() == (5 + 7 + 11 + 16) / 4
    with pytest.raises(ValueError, match=r"`under` got runs that were left at their halting.*Use `attempt`"):
        under(halted(runs), PUBLISHED)
    with pytest.raises(ValueError, match=r"`under` got runs that have no halting value"):
        under(replace(runs, halt=None), PUBLISHED)


def test_another_threshold_leaves_nothing_of_the_policy_that_was_followed():
    # Solved at tick 4 alone; let go by 0 at tick 4, by 2 at tick 6, by 50 never.
    runs = followed([4], [4], until=[5])
    assert runs.at_halt["solved"].item() and runs.final_at_halt.item() == 1 and runs.final.item() == 0
    for halting, tick in ((Halting(2.0, 1, None), 6), (Halting(50.0, 1, None), -1)):
        late = under(runs, halting)
        assert late.halt_tick.item() == tick and not late.at_halt["solved"].item() and late.final_at_halt.item() == 0
    # Answers at ticks 1 to 8: 0, 1, 2, ...; that of tick 6 was neither that of the halting nor the last.
    f = LatentMap(lambda z, x: {"t": z["t"] + 1}, {}, readout=lambda z: {"answer": z["t"].long(), "halt": z["t"][:, 0] - 3.5}, clock="tick")
    runs = attempt(f, {"t": torch.zeros(1, 1)}, ticks=8, read=spaced(8), slots=1, halting=PUBLISHED, hold=None)
    assert [under(runs, Halting(above, 1, None)).final_at_halt.item() for above in (0.0, 2.0, 4.0)] == [4, -1, 8]


def test_few_clusters_that_differ_are_told_to_be_few():
    # Of 8 rows 3 are right with halting alone, 3 without it alone: their mean difference of 0 has a standard error of 0.31.
    solves, until = [2] * 3 + [8] * 3 + [1] * 2, [9] * 3 + [NEVER] * 5
    gain = halting_gain(followed(solves, [3] * 8, until=until), depth=[16], level=0.95, cluster=None)
    assert gain.difference.item() == 0
    low, high = wilson(torch.tensor(4.0), torch.tensor(8), level=0.95)
    assert gain.difference_low.item() == pytest.approx(2 * low.item() - 1) and gain.difference_high.item() == pytest.approx(2 * high.item() - 1)
    assert gain.difference_high.item() > 0.5, "as if no row differed it would be 0.32"


def test_a_lost_row_takes_the_ticks_up_to_its_loss():
    f = clocked([1] * 12, halts=[9] * 12)

    def rule(z, x):
        lost = (z["t"] == 3) & (torch.arange(len(z["t"]))[:, None] % 2 == 0)
        return {"t": torch.where(lost, torch.nan, z["t"] + 1)}

    runs = attempt(replace(f, rule=rule), from_zero(12), ticks=16, read=spaced(16), slots=12, halting=PUBLISHED, hold=None, targets=ones(12))
    gain = halting_gain(runs, depth=[3, 16], level=0.95, cluster=None)
    grid = scaling_grid(halted(runs), depth=[3, 16], breadth=[1], select=[], level=0.95, cluster=None)
    assert gain.calls.tolist() == grid.map_calls[:, 0].tolist() == [3, (4 + 9) / 2]
    assert gain.saving.tolist() == [1, (4 + 16) / (4 + 9)], "what was lost saves nothing"


def test_the_grid_of_halted_runs_counts_the_ticks_they_took():
    runs = followed([2, 4] * 12, [3, 5] * 12)
    runs = replace(runs, instance=torch.arange(12).repeat_interleave(2), start=torch.tensor([0, 1]).repeat(12))
    grid = scaling_grid(halted(runs), depth=[4, 16], breadth=[1, 2], select=[by_residual, by_first_halt], level=0.95, cluster=None)
    assert grid.map_calls.tolist() == [[3, 3 + 4], [3, 3 + 5]] and grid.policy == str(PUBLISHED)
    assert scaling_grid(runs, depth=[4], breadth=[1, 2], select=[by_residual], level=0.95, cluster=None).map_calls.tolist() == [[4, 8]]
    assert grid.spread.tolist() == [[0, 0], [0, 0]] and (grid.spread_high > 0).all(), "no path dependence seen is not none proven"
    early = scaling_grid(runs, depth=[3], breadth=[1, 2], select=[by_residual], level=0.95, cluster=None)
    assert early.spread.tolist() == [[0, 0.5]], "the first start is solved at tick 3, the second is not"


def candidates(**more):
    base = {"residual": torch.tensor([[3.0, 1.0, 2.0]]), "answer": torch.tensor([[1, 2, 3]]), "halt": None, "logit_change": None, "halt_tick": None, "valid": None}
    return Candidates(**{**base, **more})


def test_selectors_choose_by_their_one_score():
    assert by_logit_change(candidates(logit_change=torch.tensor([[0.5, 0.4, torch.nan]]))).tolist() == [1]
    assert by_verifier(candidates(valid=torch.tensor([[False, False, True]]))).tolist() == [2]
    assert by_verifier(candidates(valid=torch.tensor([[False, False, False]]))).tolist() == [0]
    first = {"(4, 2, 2)": 1, "(2, 2, 4)": 1, "(2, -1, 4)": 0, "(-1, -1, -1)": 1, "(-1, -1, 9)": 2}
    for ticks, chosen in first.items():
        assert by_first_halt(candidates(halt_tick=torch.tensor([eval(ticks)]))).tolist() == [chosen], ticks
    lost = candidates(residual=torch.tensor([[torch.nan, 1.0, 2.0]]), halt_tick=torch.tensor([[3, 3, 3]]))
    assert by_first_halt(lost).tolist() == [1], "a lost start is not taken among equals"
    for select, words in ((by_logit_change, "readout `logits`"), (by_first_halt, "halting policy"), (by_verifier, "without a verifier")):
        with pytest.raises(ValueError, match=rf"`{select.__name__}` got a run without.*{words}|{words}"):
            select(candidates())


def test_misuse_is_refused_with_what_to_do():
    runs = followed([2] * 12, [3] * 12)
    left = elastic(clocked([2] * 12, halts=[3] * 12), from_zero(12), ticks=16, read=[16], slots=4, halting=Halting(0.0, 1, None), targets=ones(12))
    plain = replace(runs, solved=None)
    with pytest.raises(ValueError, match=r"`halting_gain` got runs that were left at their halting.*Use `attempt`"):
        halting_gain(left, depth=[16], level=0.9, cluster=None)
    with pytest.raises(ValueError, match=r"`halting_gain` got depth \[9\] for runs read at.*attempt\(\.\.\., read=depth\)"):
        halting_gain(runs, depth=[9], level=0.9, cluster=None)
    with pytest.raises(ValueError, match=r"`foresight` got read=\[9\] for runs read at.*Choose among them"):
        foresight(runs, read=[9], level=0.9, cluster=None)
    with pytest.raises(ValueError, match=r"`solve_times` got runs that were left at their halting"):
        solve_times(left, difficulty=None, bins=2, level=0.9, cluster=None)
    for wrong in ({"difficulty": torch.ones(13), "bins": 2}, {"difficulty": torch.tensor([torch.nan] * 12), "bins": 2}, {"difficulty": None, "bins": 0}):
        with pytest.raises(ValueError, match=r"`solve_times` got bins=.* for 12 instances.*one finite number for each instance.*or difficulty=None"):
            solve_times(runs, **wrong, level=0.9, cluster=None)
    with pytest.raises(ValueError, match=r"got 3 clusters for 12 instances.*one number for each instance"):
        halting_gain(runs, depth=[16], level=0.9, cluster=torch.arange(3))
    for reading in (lambda: halting_gain(plain, depth=[16], level=0.9, cluster=None), lambda: foresight(plain, read=[16], level=0.9, cluster=None)):
        with pytest.raises(ValueError, match=r"got runs without targets\. It counts solved rows\. Run `attempt` with targets"):
            reading()
    with pytest.raises(ValueError, match=r"`scaling_grid` got runs without targets"):
        scaling_grid(plain, depth=[16], breadth=[1], select=[], level=0.9, cluster=None)
    with pytest.raises(ValueError, match=r"`scaling_grid` got depth 9 for runs read at"):
        scaling_grid(runs, depth=[9], breadth=[1], select=[], level=0.9, cluster=None)
    with pytest.raises(ValueError, match=r"`scaling_grid` got 3 clusters for 12 instances"):
        scaling_grid(runs, depth=[16], breadth=[1], select=[], level=0.9, cluster=torch.arange(3))
