"""The bundled models: lawful, as good as the README says, and made by the commands that they carry."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigs

import attractorlab as al
from attractorlab import models, tasks
from attractorlab.models.checkpoints import BUNDLED
from attractorlab.training.config import PRESETS, config_from_json

NAMES = models.names()
REASONERS = [name for name in NAMES if models.describe(models.find(name))["model"] != "feedforward"]
BUDGET = 12_000_000  # bytes of all bundled files together
SAME_EIGENVALUE = 1e-8


def fixed_point(name, rows):
    """A float64 fixed point of the model's segment on the first puzzle whose start settles, with the map."""
    reasoner = al.models.load(name)
    puzzles = al.tasks.load(reasoner.config.task, rows=slice(0, rows))
    f = al.strobe(reasoner.bind(puzzles), reasoner.config.H_cycles)
    rest = al.settle(f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), tol=1e-5, max_ticks=64)
    row = (rest.result == al.Result.CONVERGED.code).nonzero().squeeze(1)[:1]
    f64 = al.strobe(reasoner.to(torch.float64).bind(puzzles), reasoner.config.H_cycles).take(row)
    z = al.trees.to(al.trees.take(rest.states, row), torch.float64)
    return f64, al.find_fixed_points(f64, z, tol=1e-11, max_steps=20).require()


def test_the_bundled_files_keep_their_budget():
    assert {"eqr-sudoku-4", "eqr-sudoku-6", "trm-sudoku-6", "eqr-sudoku-9", "trm-sudoku-9", "eqr-maze-11", "feedforward-sudoku-9"} <= set(NAMES)
    assert sum(path.stat().st_size for path in BUNDLED.parent.rglob("*") if path.is_file()) < BUDGET


@pytest.mark.parametrize("name", NAMES)
def test_each_says_how_it_was_made_and_that_is_a_preset(name):
    about = models.describe(models.find(name))
    assert about["command"].startswith(f"attractorlab train {name} ")
    assert config_from_json(about["training"]) == PRESETS[name]
    assert int(about["segments"]) == PRESETS[name].segments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", REASONERS)
def test_each_obeys_the_five_laws(name, dtype, generator):
    reasoner = al.models.load(name).to(dtype)
    f = reasoner.bind(al.tasks.load(reasoner.config.task, rows=slice(0, 3)))
    al.check_map(f, reasoner.start(f.drive, generator=generator), generator=generator)


@pytest.mark.parametrize(("name", "least"), [("eqr-sudoku-4", 0.99), ("eqr-sudoku-6", 0.97), ("trm-sudoku-6", 0.97), ("eqr-maze-11", 0.8)])
def test_each_solves_freshly_generated_puzzles(name, least):
    reasoner = al.models.load(name)
    puzzles = tasks.generate(reasoner.config.task, 200, seed=4242)
    f = al.strobe(reasoner.bind(puzzles), reasoner.config.H_cycles)
    traj = al.trace(f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), ticks=16, keep=al.only_last(), rest=1e-6)
    assert tasks.verify(puzzles, traj.readouts["answer"][-1].long()).double().mean() > least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eqr-sudoku-4", "eqr-sudoku-6"])
def test_krylov_eigenvalues_of_a_bundled_model_are_those_of_its_dense_jacobian(name):
    f, point = fixed_point(name, 4)
    segment = al.spectrum(f, point.states, k=2)
    reasoner, puzzles = al.models.load(name).to(torch.float64), al.tasks.load(name.removeprefix("eqr-"), rows=slice(0, 4))
    f = reasoner.bind(puzzles).take(f.instance)  # one recursion: half the work for the whole matrix
    krylov = al.spectrum(f, point.states, k=8)
    assert abs(float(krylov.radius[0]) ** reasoner.config.H_cycles - float(segment.radius[0])) < SAME_EIGENVALUE
    assert krylov.method == "krylov-schur"
    # The whole matrix, and another eigensolver on it: all 4,608 eigenvalues by LAPACK would take minutes.
    matrix = al.dense_jacobian(f, point.states)[0].numpy()
    dense = eigs(matrix, k=24, ncv=120, which="LM", tol=0, v0=np.ones(len(matrix)), return_eigenvectors=False)
    leading = np.sort(np.abs(dense))[::-1][:8]
    mine = krylov.eigenvalues[0].numpy()
    assert np.abs(np.abs(mine) - leading).max() < SAME_EIGENVALUE
    assert np.abs(mine[:, None] - dense[None]).min(1).max() < SAME_EIGENVALUE
    assert krylov.verdict == segment.verdict == ("stable",) and point.residual.max() < 1e-11
