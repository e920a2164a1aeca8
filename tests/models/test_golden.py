"""Small models whose weights are a formula give the numbers that another evaluation gave once."""

import pytest
import torch
from safetensors.torch import load_file

from attractorlab import models
from attractorlab.maps import strobe
from attractorlab.types import Instance
from tests.models import made
from tests.models.make_golden import PATH, SEGMENTS, SHAPES, computed, weights_of

# After one segment of maps that stretch; each begins at the stored state before it, so that nothing adds up.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
REMADE = 1e-11  # float64 sums of two machines, after three segments


@pytest.fixture(params=SHAPES)
def golden(request, tmp_path):
    name = request.param
    kind, shape, said = SHAPES[name]
    write = made.write_training if kind == "eqr" else made.write_raw
    path = write(tmp_path / "step_1", weights_of(name), made.arch(kind, **said), **({"sites": shape["sites"]} if kind == "eqr" else {}))
    model = models.load(path, task="toy", sites=shape["sites"])
    return name, model, {key.partition(".")[2]: value for key, value in load_file(PATH).items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_a_model_from_an_official_file_gives_the_stored_numbers(golden, dtype):
    _, model, expected = golden
    model = model.to(dtype)
    model.cos.copy_(expected["cos"])
    model.sin.copy_(expected["sin"])
    tol = TOLERANCE[dtype]
    f = strobe(model.bind(Instance(expected["inputs"], None, ("",), "toy", None)), model.config.H_cycles)
    z = {"z_H": expected["z0_H"].to(dtype), "z_L": expected["z0_L"].to(dtype)}
    rest, here = {"z_L": iter(expected["sub_L"]), "z_H": iter(expected["sub_H"])}, z
    for update in f.updates:
        here = update.rule(here, f.drive)
        [leaf] = update.leaves
        assert (here[leaf] - next(rest[leaf])).abs().max() < tol, update.name
    for segment in range(SEGMENTS):
        z = f({leaf: (expected[leaf][segment - 1] if segment else expected[f"z0_{leaf[-1]}"]).to(dtype) for leaf in z})
        out = f.readout(z)
        assert all((z[leaf] - expected[leaf][segment]).abs().max() < tol for leaf in z)
        assert (out["logits"] - expected["logits"][segment]).abs().max() < tol
        assert (out["halt"] - expected["halting"][segment, :, 0]).abs().max() < tol
        if "continue" in out:
            assert (out["continue"] - expected["halting"][segment, :, 1]).abs().max() < tol


@pytest.mark.parametrize("name", SHAPES)
def test_the_stored_numbers_are_those_that_the_script_makes(name):
    stored = load_file(PATH)
    for key, value in computed(name).items():
        assert stored[key].dtype == value.dtype and (stored[key] - value).abs().max() < REMADE, key


def test_the_stored_file_is_small():
    assert PATH.stat().st_size < 100_000
