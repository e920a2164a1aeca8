"""Our models compute what the published ones do. Reads recorded outputs of the official models where they are at hand."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attractorlab import models, trees
from attractorlab.dynamics.spectrum import spectrum
from attractorlab.maps import strobe
from attractorlab.types import Instance

REFERENCE = Path(os.environ.get("SHARED_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
NAMES = ("eqr_mlp", "eqr_attention", "trm_mlp", "trm_attention", "hrm")
# float32 rounding of the recorded runs, see their README: a few 1e-6 a segment.
ONE_SEGMENT, SIX_SEGMENTS, FLOAT64, EIGENVALUE = 1e-5, 5e-5, 1e-12, 1e-6


def recording(name):
    folder = REFERENCE / name
    if not folder.exists():
        pytest.skip(f"no recorded outputs of the official models at {REFERENCE}; set SHARED_REFERENCE to their folder")
    return models.load(folder), load_file(folder / "expected.safetensors")


@pytest.fixture(params=NAMES)
def recorded(request):
    return recording(request.param)


def bound(model, expected):
    return model.bind(Instance(expected["inputs"], None, ("",) * len(expected["inputs"]), model.config.task, None))


def in_float64(model, expected):
    """A float64 copy with the stored rotary tables."""
    model = model.to(torch.float64)
    if "rotary_cos" in expected:
        model.cos.copy_(expected["rotary_cos"])
        model.sin.copy_(expected["rotary_sin"])
    return model


def readouts(model):
    """Our readouts and the recorded values that they are."""
    return {"logits": "logits", "halt": "q_halt"} | ({} if isinstance(model, models.EqR) else {"continue": "q_continue"})


def test_the_fixed_start_is_the_recorded_one(recorded, generator):
    model, expected = recorded
    if isinstance(model, models.EqR):
        pytest.skip("the recorded start of an EqR is one random draw")
    start = model.start(bound(model, expected).drive, generator=generator)
    assert all(start[name].equal(expected[f"z0_{name[-1]}"]) for name in ("z_H", "z_L"))


def test_six_segments_match_the_recorded_states_logits_and_halt_values(recorded):
    model, expected = recorded
    f = strobe(bound(model, expected), model.config.H_cycles)
    z = {"z_H": expected["z0_H"], "z_L": expected["z0_L"]}
    for segment in range(6):
        with torch.no_grad():
            z = f(z)
            out = {**z, **f.readout(z)}
        tol = ONE_SEGMENT if segment == 0 else SIX_SEGMENTS
        for ours, theirs in {"z_H": "z_H", "z_L": "z_L", **readouts(model)}.items():
            assert out[ours].shape == expected[theirs][segment].shape
            assert (out[ours] - expected[theirs][segment]).abs().max() < tol, (segment, theirs)


def test_each_segment_from_the_recorded_state_before_it_matches(recorded):
    model, expected = recorded
    f = strobe(bound(model, expected), model.config.H_cycles)
    for segment in range(1, 6):
        with torch.no_grad():
            z = f({"z_H": expected["z_H"][segment - 1], "z_L": expected["z_L"][segment - 1]})
        for name, leaf in z.items():
            assert (leaf - expected[name][segment]).abs().max() < ONE_SEGMENT, segment


def test_every_update_of_the_first_segment_matches_in_order(recorded):
    model, expected = recorded
    f = strobe(bound(model, expected), model.config.H_cycles)
    z = {"z_H": expected["z0_H"], "z_L": expected["z0_L"]}
    rest = {"z_L": iter(expected["sub_L"]), "z_H": iter(expected["sub_H"])}
    assert len(f.updates) == len(expected["sub_updated"])
    for update, which in zip(f.updates, expected["sub_updated"].tolist(), strict=True):
        assert update.leaves == (("z_L", "z_H")[which],)
        with torch.no_grad():
            z = update.rule(z, f.drive)
        [leaf] = update.leaves
        assert (z[leaf] - next(rest[leaf])).abs().max() < ONE_SEGMENT, update.name


def test_one_segment_in_float64_matches_to_twelve_digits(recorded):
    model, expected = recorded
    model = in_float64(model, expected)
    f = strobe(bound(model, expected).take([0]), model.config.H_cycles)
    with torch.no_grad():
        z = f(trees.to({"z_H": expected["z0_H"][:1], "z_L": expected["z0_L"][:1]}, torch.float64))
    assert (z["z_H"][0] - expected["segment1_float64_H"]).abs().max() < FLOAT64
    assert (z["z_L"][0] - expected["segment1_float64_L"]).abs().max() < FLOAT64


@pytest.fixture(params=["eqr_mlp", "hrm"])
def linearised(request):
    model, expected = recording(request.param)
    model = in_float64(model, expected)
    jacobian = load_file(REFERENCE / request.param / "jacobian.safetensors")
    rows = jacobian["rows"]
    f = strobe(bound(model, expected).take(rows), model.config.H_cycles)
    return f, trees.to({name: expected[name][5, rows] for name in ("z_H", "z_L")}, torch.float64), jacobian


def test_the_image_and_the_jvp_of_the_last_state_match_to_twelve_digits(linearised):
    f, z, jacobian = linearised
    with torch.no_grad():
        image = f(z)
    pushed = f.jvp(z, {"z_H": jacobian["direction_H"], "z_L": jacobian["direction_L"]})
    for name in ("H", "L"):
        assert (image[f"z_{name}"] - jacobian[f"segment_z_{name}"]).abs().max() < FLOAT64
        assert (pushed[f"z_{name}"] - jacobian[f"jvp_{name}"]).abs().max() < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 1])
def test_the_leading_eigenvalues_match_the_recorded_ones(linearised, row):
    f, z, jacobian = linearised
    exact = torch.complex(jacobian["eigenvalues_real"], jacobian["eigenvalues_imag"])[row]
    found = spectrum(f.take([row]), trees.take(z, slice(row, row + 1)), k=13).eigenvalues[0]
    # The last recorded one may be half of a pair; the order within a pair, and of equal moduli, is nobody's.
    assert (exact[:, None] - found[None]).abs().min(1).values.max() < EIGENVALUE
    assert (found.abs()[:12] - jacobian["moduli"][row, :12]).abs().max() < EIGENVALUE
