"""The feed-forward twin: a segment of its EqR when tied, weights of its own when not, and no map at all."""

import json

import pytest
import torch

from attractorlab.cli import main
from attractorlab.maps import LatentMap, strobe
from attractorlab.models import (
    AbstractReasoner,
    CheckpointError,
    EqR,
    EqRConfig,
    FeedForward,
    FeedForwardConfig,
    load,
    load_feedforward,
    save,
    untied,
)
from attractorlab.types import Instance

SHAPE = {"sites": 5, "vocabulary": 4, "width": 16, "heads": 2, "H_cycles": 2, "L_cycles": 3}


def instances():
    return Instance(torch.arange(15).reshape(3, 5) % 4, None, ("",) * 3, "toy", None)


@pytest.fixture(params=[{"prefix": 0, "mixer": "mlp"}, {"prefix": 2, "mixer": "attention"}], ids=["mlp", "attention with a prefix"])
def eqr(request, generator):
    return EqR(EqRConfig("toy", **SHAPE, **request.param, blocks=2, start="fixed"), generator=generator)


@torch.no_grad()
def test_with_the_weights_of_an_eqr_in_every_update_it_is_a_segment_of_it(eqr, generator):
    for dtype in (torch.float32, torch.float64):
        model = eqr.to(dtype)
        f = strobe(model.bind(instances()), model.config.H_cycles)
        twin = untied(model)
        assert twin(instances().inputs).equal(f.readout(f(model.start(f.drive, generator=generator)))["logits"])
        assert twin.embed(instances())["x"].equal(f.drive["x"])


def test_every_update_has_weights_of_its_own_and_all_are_trained(eqr, generator):
    twin = FeedForward(untied(eqr).config, generator=generator)
    per_block = sum(p.numel() for p in eqr.L_level.layers[0].parameters())
    assert twin.config.depth == 2 * 2 * (3 + 1) == sum(len(level.layers) for level in twin.levels)
    assert sum(p.numel() for p in twin.parameters()) == 16 * per_block + 2 * 4 * 16
    twin(instances().inputs).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in twin.parameters())


def test_the_published_sizes_have_the_published_depths():
    assert FeedForwardConfig("sudoku-9", 81, 11, width=512, blocks=2, H_cycles=3, L_cycles=6).depth == 42
    assert FeedForwardConfig("maze", 900, 6, width=128, mixer="attention", blocks=1, H_cycles=3, L_cycles=4).depth == 15


def test_it_is_no_reasoner_and_binds_to_no_map(eqr):
    assert not issubclass(FeedForward, AbstractReasoner) and not any(isinstance(value, LatentMap) for value in vars(untied(eqr)).values())
    with pytest.raises(AttributeError, match="bind"):
        untied(eqr).bind(instances())


@torch.no_grad()
def test_it_is_saved_and_read_as_it_is_and_the_two_readers_tell_each_other_apart(eqr, tmp_path):
    twin = untied(eqr).requires_grad_(False)  # weights that want a gradient take another attention kernel
    twin.levels[1].layers[0].mlp.down_proj.weight.data.mul_(1.5)
    save(twin, tmp_path / "ff.safetensors", about={})
    save(eqr, tmp_path / "eqr.safetensors", about={})
    again = load_feedforward(tmp_path / "ff.safetensors")
    assert again.config == twin.config and again.name == "unnamed-untied" and not again.training
    assert again(instances().inputs).equal(twin(instances().inputs))
    with pytest.raises(CheckpointError, match=r"holds a feed-forward network, which is no reasoner.*Use `attractorlab\.models\.load_feedforward`"):
        load(tmp_path / "ff.safetensors")
    with pytest.raises(CheckpointError, match=r"holds a reasoner, 'eqr'\..*Use `attractorlab\.models\.load`"):
        load_feedforward(tmp_path / "eqr.safetensors")


def test_it_can_be_inspected(eqr, tmp_path, capsys):
    save(untied(eqr), tmp_path / "ff.safetensors", about={})
    assert main(["inspect", str(tmp_path / "ff.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "feedforward" and facts["L_cycles"] == 3 and len(facts["weights"]) == 16


def test_instances_of_another_size_are_refused(eqr):
    other = Instance(torch.zeros(1, 6, dtype=torch.int64), None, ("",), "toy", None)
    with pytest.raises(ValueError, match=r"A model for toy \(5 sites\) got instances of toy \(6 sites\)"):
        untied(eqr).embed(other)
    with pytest.raises(ValueError, match=r"`FeedForwardConfig` got damping=1"):
        FeedForwardConfig("toy", 5, 4, damping=1.0)
