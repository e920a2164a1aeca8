"""Our EqR computes what the published one does. Reads recorded outputs of the official model when they are at hand."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attractorlab import trees
from attractorlab.maps import strobe
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.types import Instance

REFERENCE = Path(os.environ.get("SHARED_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
SHAPES = {
    "eqr_mlp": EqRConfig("sudoku-9", 81, 11, width=32, blocks=2, mixer="mlp", H_cycles=3, L_cycles=6),
    "eqr_attention": EqRConfig("maze", 36, 6, width=32, blocks=1, mixer="attention", heads=4, H_cycles=3, L_cycles=4),
}
# float32 rounding of the recorded runs, see their README: a few 1e-6 a segment.
ONE_SEGMENT, SIX_SEGMENTS, FLOAT64 = 1e-5, 5e-5, 1e-12


@pytest.fixture(params=SHAPES)
def recorded(request):
    folder = REFERENCE / request.param
    if not folder.exists():
        pytest.skip(f"no recorded outputs of the official models at {REFERENCE}; set SHARED_REFERENCE to their folder")
    [path] = (folder / "checkpoints").glob("*.pth")
    shadow = torch.load(path, weights_only=True)["ema"]["shadow"]
    weights = {name.removeprefix("_orig_mod.model.inner."): tensor for name, tensor in shadow.items()}
    model = EqR(SHAPES[request.param], generator=torch.Generator().manual_seed(0))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) == {"H_init", "L_init"}
    return model, load_file(folder / "expected.safetensors")


def bound(model, expected):
    return model.bind(Instance(expected["inputs"], None, ("",) * len(expected["inputs"]), model.config.task, None))


def test_six_segments_match_the_recorded_states_logits_and_halt_values(recorded):
    model, expected = recorded
    f = strobe(bound(model, expected), model.config.H_cycles)
    z = {"z_H": expected["z0_H"], "z_L": expected["z0_L"]}
    for segment in range(6):
        with torch.no_grad():
            z = f(z)
            out = f.readout(z)
        tol = ONE_SEGMENT if segment == 0 else SIX_SEGMENTS
        for ours, theirs in ((z["z_H"], "z_H"), (z["z_L"], "z_L"), (out["logits"], "logits"), (out["halt"], "q_halt")):
            assert (ours - expected[theirs][segment]).abs().max() < tol, (segment, theirs)


def test_every_update_of_the_first_segment_matches(recorded):
    model, expected = recorded
    f = bound(model, expected)
    seen = {"z_H": [], "z_L": []}
    with torch.no_grad():
        z_H, z_L = expected["z0_H"], expected["z0_L"]
        for _ in range(model.config.H_cycles):
            for _ in range(model.config.L_cycles):
                z_L = model._update(z_L, z_H + f.drive["x"])
                seen["z_L"].append(z_L)
            z_H = model._update(z_H, z_L)
            seen["z_H"].append(z_H)
    assert (torch.stack(seen["z_L"]) - expected["sub_L"]).abs().max() < ONE_SEGMENT
    assert (torch.stack(seen["z_H"]) - expected["sub_H"]).abs().max() < ONE_SEGMENT


def test_one_segment_in_float64_matches_to_twelve_digits(recorded):
    model, expected = recorded
    model = model.to(torch.float64)
    f = strobe(bound(model, expected).take([0]), model.config.H_cycles)
    z = trees.to({"z_H": expected["z0_H"][:1], "z_L": expected["z0_L"][:1]}, torch.float64)
    with torch.no_grad():
        z = f(z)
    assert (z["z_H"][0] - expected["segment1_float64_H"]).abs().max() < FLOAT64
    assert (z["z_L"][0] - expected["segment1_float64_L"]).abs().max() < FLOAT64
