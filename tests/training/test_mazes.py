"""Training on mazes: the stream, the pool, a run, and what comes of it in the other rooms."""

from dataclasses import replace

import pytest
import torch

import attractorlab as al
from attractorlab import plots, tasks
from attractorlab.models import EqR, load
from attractorlab.report.sections import SYMBOLS
from attractorlab.training import preparing
from attractorlab.training.config import PRESETS, TrainConfig
from attractorlab.training.loop import Trainer, train
from attractorlab.training.preparing import training_pool
from attractorlab.training.stream import PuzzleStream

TINY = TrainConfig("maze-7", width=16, blocks=1, mixer="attention", heads=2, segments=6, batch=8, warmup=2, decay=2, halt_max=3, reveal=0.5)


@pytest.fixture(scope="module")
def pool():
    return tasks.generate("maze-7", 60, seed=1)


def test_every_pair_of_the_stream_is_a_maze_with_its_path_under_a_symmetry(pool):
    inputs, targets = PuzzleStream(pool, torch.Generator().manual_seed(0), 0.0, 0.6).next(200)
    solutions, counts, _ = tasks.solve_mazes(inputs)
    assert (counts == 1).all() and solutions.equal(targets)
    known = set(tasks.task_of("maze-7").kind.fingerprint(pool.inputs).tolist())
    assert set(tasks.task_of("maze-7").kind.fingerprint(inputs).tolist()) <= known
    assert len(inputs.unique(dim=0)) > 120, "they are turned and mirrored"


def test_revealing_marks_cells_of_the_path_and_leaves_walls_and_ends(pool):
    plain, targets = PuzzleStream(pool, torch.Generator().manual_seed(5), 0.0, 0.6).next(300)
    shown, same = PuzzleStream(pool, torch.Generator().manual_seed(5), 1.0, 0.6).next(300)
    assert targets.equal(same)
    changed = shown != plain
    assert (plain[changed] == 2).all() and (shown[changed] == 5).all() and (targets[changed] == 5).all()
    share = changed.sum(1) / (targets == 5).sum(1)
    assert 0.25 < share.mean() < 0.35  # uniform up to 0.6


def test_the_pool_leaves_out_mazes_with_a_twin_among_the_bundled_but_on_the_smallest_boards(monkeypatch):
    own = tasks.generate("maze-11", 20, seed=77)
    test = tasks.load("maze-11", rows=slice(0, 4))
    turned = tasks.random_symmetries("maze-11", 4, generator=torch.Generator().manual_seed(0))
    mixed = replace(own, inputs=torch.cat([own.inputs, turned.apply(test.inputs)]), targets=torch.cat([own.targets, turned.apply(test.targets)]), ids=(*own.ids, *["twin"] * 4), difficulty=None)
    monkeypatch.setattr(preparing, "generate", lambda task, count, *, seed: mixed)
    assert training_pool(replace(TINY, task="maze-11")).ids == own.ids
    monkeypatch.undo()
    assert len(training_pool(replace(TINY, puzzles=37))) == 37


def test_a_run_on_mazes_is_resumed_to_the_same_bytes_and_its_model_takes_mazes(tmp_path, pool):
    train(Trainer(TINY, pool=pool), tmp_path / "whole", name="tiny", command="a test", save_every=100, report=lambda progress: None)
    first = Trainer(TINY, pool=pool)
    for _ in range(3):
        first._segment()
    first.save_state(tmp_path / "state")
    train(Trainer.resume(tmp_path / "state", pool=pool), tmp_path / "parts", name="tiny", command="a test", save_every=100, report=lambda progress: None)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "parts" / "model.safetensors").read_bytes()
    reasoner = load(tmp_path / "whole")
    assert (reasoner.config.task, reasoner.config.sites, reasoner.config.vocabulary, reasoner.config.positions) == ("maze-7", 49, 6, "rotary")
    f = reasoner.bind(pool[:3])
    assert reasoner.readout(f(reasoner.start(f.drive, generator=torch.Generator().manual_seed(0))))["logits"].shape == (3, 49, 6)
    with pytest.raises(ValueError, match=r"A model for maze-7 \(49 sites\) got instances of maze-11 \(121 sites\)"):
        reasoner.bind(tasks.generate("maze-11", 1, seed=0))


def test_an_attention_model_of_mazes_obeys_the_five_laws(pool, generator):
    shape = TINY.shape(sites=49, vocabulary=6)
    reasoner = EqR(shape, generator=generator).to(torch.float64)
    f = reasoner.bind(pool[:3])
    al.check_map(f, reasoner.start(f.drive, generator=generator), generator=generator)


def test_the_published_shapes_have_the_published_numbers_of_weights():
    """Of the maze model 263,938; of the Sudoku model without prefix 4,855,298."""
    for name, weights in (("eqr-maze-30", 263_938), ("eqr-sudoku-extreme", 4_855_298)):
        config = PRESETS[name]
        task = tasks.task_of(config.task)
        shape = config.shape(sites=task.sites, vocabulary=task.vocabulary)
        model = EqR(shape, generator=torch.Generator().manual_seed(0))
        assert sum(parameter.numel() for parameter in model.parameters()) == weights


def test_mazes_are_drawn_with_their_own_signs_and_without_boxes(pool):
    task = tasks.task_of("maze-9")
    mazes = tasks.generate("maze-9", 1, seed=0)
    drawn = plots.boards(mazes.inputs, mazes.targets, targets=mazes.targets, side=9, symbols=SYMBOLS[task.kind.name], blank=task.kind.blank).html
    assert drawn.count("●") == int((mazes.targets == 5).sum()) and drawn.count(">S<") == drawn.count(">G<") == 1
    assert drawn.count('stroke-width="1.6"') == 4 and "all cells right" in drawn
    assert set(SYMBOLS) == {"sudoku", "maze"} and all(len(SYMBOLS[tasks.task_of(name).kind.name]) >= tasks.task_of(name).vocabulary for name in ("sudoku", "maze"))
