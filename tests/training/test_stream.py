"""The data stream: symmetric images of the pool, and revealed blanks that show the truth."""

from dataclasses import replace

import pytest
import torch

from attractorlab import tasks
from attractorlab.tasks import BLANK, data_fingerprint
from attractorlab.training.stream import PuzzleStream


@pytest.fixture(scope="module")
def pool():
    return tasks.generate(4, 40, seed=3)


def stream(pool, *, reveal=0.0, up_to=0.6, seed=0):
    return PuzzleStream(pool, torch.Generator().manual_seed(seed), reveal, up_to)


def test_every_pair_is_a_puzzle_with_its_solution(pool):
    inputs, targets = stream(pool, reveal=0.5).next(300)
    given = inputs != BLANK
    assert (inputs[given] == targets[given]).all() and (targets > BLANK).all()
    solutions, count, _ = tasks.solve(inputs)
    assert (count == 1).all() and solutions.equal(targets)


def test_without_revealing_puzzles_keep_their_clues_and_their_canonical_form(pool):
    inputs, _ = stream(pool).next(200)
    clues = (pool.inputs != BLANK).sum(1)
    assert set((inputs != BLANK).sum(1).tolist()) <= set(clues.tolist())
    known = set(tasks.fingerprint(pool.inputs).tolist())
    assert set(tasks.fingerprint(inputs).tolist()) <= known
    assert len({tuple(row) for row in inputs.tolist()}) > 150, "they are turned and renamed"


def test_revealing_only_fills_blanks_with_the_digits_of_the_target(pool):
    plain, targets = stream(pool, seed=5).next(500)
    shown, same = stream(pool, reveal=1.0, up_to=0.6, seed=5).next(500)
    assert targets.equal(same)
    changed = shown != plain
    assert (plain[changed] == BLANK).all() and (shown[changed] == targets[changed]).all()
    share = changed.sum(1) / (plain == BLANK).sum(1)
    # The share is uniform up to 0.6, and each blank is drawn by itself.
    assert 0.25 < share.mean() < 0.35 and (share > 0.3).float().mean() == pytest.approx(0.5, abs=0.1)


def test_the_share_of_puzzles_that_are_eased_is_as_asked(pool):
    plain, _ = stream(pool, seed=5).next(2000)
    shown, _ = stream(pool, reveal=0.3, up_to=1.0, seed=5).next(2000)
    eased = (shown != plain).any(1).float().mean().item()
    assert 0.2 < eased < 0.31


def test_the_generator_is_the_only_state(pool):
    a, b = stream(pool), stream(pool)
    assert a.next(20)[0].equal(b.next(20)[0])
    later = torch.Generator()
    later.set_state(a.generator.get_state())
    assert PuzzleStream(pool, later, 0.0, 0.6).next(9)[0].equal(b.next(9)[0])


def test_the_fingerprint_sees_inputs_targets_order_and_task(pool):
    known = data_fingerprint(pool)
    assert known == data_fingerprint(replace(pool, ids=("x",) * 40, difficulty=None)) and len(known) == 16
    assert known != data_fingerprint(pool[torch.arange(39, -1, -1)])
    assert known != data_fingerprint(replace(pool, targets=None)) and known != data_fingerprint(replace(pool, task="sudoku-5"))
    spoiled = pool.inputs.clone()
    spoiled[7, 3] = 9
    assert known != data_fingerprint(replace(pool, inputs=spoiled))
