"""Training configurations: presets, overrides, and everything unknown refused."""

import json
from dataclasses import fields

import pytest

from attractorlab.models import EqRConfig, FeedForwardConfig
from attractorlab.training.config import PRESETS, TrainConfig, config_from_json, config_to_json, read_config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_back_from_json_and_give_a_model(name):
    config = read_config(name, {})
    assert config == PRESETS[name] == config_from_json(config_to_json(config))
    shape = config.shape(sites=16, vocabulary=6)
    assert isinstance(shape, EqRConfig if config.model == "eqr" else FeedForwardConfig) and (shape.width, shape.task, shape.damping) == (config.width, config.task, config.damping)


@pytest.mark.parametrize(
    ("ours", "theirs", "differ"),
    [
        ("eqr-sudoku-6", "trm-sudoku-6", {"start", "damping", "noise"}),
        ("eqr-sudoku-9", "trm-sudoku-9", {"start", "damping", "noise", "engine"}),
        ("eqr-maze-11", "eqr-maze-11-attention", {"mixer"}),
        ("eqr-sudoku-9", "feedforward-sudoku-9", {"model", "segments", "decay", "engine"}),
    ],
)
def test_a_baseline_differs_from_its_partner_in_what_it_is_about_alone(ours, theirs, differ):
    assert {one.name for one in fields(TrainConfig) if getattr(PRESETS[ours], one.name) != getattr(PRESETS[theirs], one.name)} == differ


def test_overrides_are_read_by_the_type_of_their_field():
    config = read_config("eqr-sudoku-4", {"lr": "1e-3", "width": "48", "loss": "softmax", "data": "x.csv"})
    assert (config.lr, config.width, config.loss, config.data) == (1e-3, 48, "softmax", "x.csv")
    assert type(config.width) is int and config.segments == PRESETS["eqr-sudoku-4"].segments


def test_unknown_names_and_values_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"unknown configuration 'eqr'.*Use one of eqr-sudoku-4"):
        read_config("eqr", {})
    with pytest.raises(ValueError, match=r"unknown key 'learning_rate'.*Use one of H_cycles, .*lr, "):
        read_config("eqr-sudoku-4", {"learning_rate": "1"})
    for key, text, kind in (("width", "1e2", "int"), ("lr", "fast", "float"), ("segments", "", "int")):
        with pytest.raises(ValueError, match=rf"`train` got {key}='{text}'. `{key}` is of type {kind}. Write, for example, {key}="):
            read_config("eqr-sudoku-4", {key: text})


def test_stored_configurations_with_other_keys_are_refused():
    stored = json.loads(config_to_json(TrainConfig("sudoku-4")))
    del stored["ema"]
    with pytest.raises(ValueError, match=r"differs in the keys \['colour', 'ema'\].*Use the version of attractorlab that wrote the file"):
        config_from_json(json.dumps({**stored, "colour": 1}))


WRONG = {
    "model": ("hrm", r"got model='hrm'.*one of eqr, feedforward. Use model=eqr"),
    "loss": ("hinge", r"got loss='hinge'.*stablemax, softmax. Use loss=stablemax"),
    "precision": ("int4", r"got precision='int4'.*Use precision=float32"),
    "segments": (0, r"got segments=0\. It is a whole number from 1 to 99,999,999\. Use segments=2500"),
    "batch": (10**13, r"got batch=10000000000000\..*from 1 to 1,048,576\. Use batch=128"),
    "puzzles": (10**14, r"got puzzles=1.*from 1 to 100,000,000"),
    "halt_max": (10**20, r"got halt_max=1.*from 1 to 65,536\. Use halt_max=16"),
    "lr": (float("nan"), r"got lr=nan.*Use lr=0.002"),
    "weight_decay": (float("nan"), r"got weight_decay=nan.*Use weight_decay=0.1"),
    "ema": (1.0, r"ema=1.0.*Use lr=0.002, ema=0.999"),
    "reveal": (1.5, r"got reveal=1.5. It is a share. Use a number from 0 to 1"),
    "halt_explore": (-0.1, r"got halt_explore=-0.1. It is a share"),
    "decay": (-1, r"got decay=-1, .*None of them is negative"),
    "noise": (-1.0, r"noise=-1.0. None of them is negative.*Use decay=0, warmup=100, noise=0.01"),
    "mixer": ("conv", None),
    "damping": (1.0, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_out_of_range_are_refused(name):
    value, text = WRONG[name]
    if text is None:  # a field of the model's shape is refused by the model's configuration
        with pytest.raises(ValueError, match=rf"`EqRConfig` got {name}="):
            TrainConfig("sudoku-4", **{name: value}).shape(sites=16, vocabulary=6)
    else:
        with pytest.raises(ValueError, match=text):
            TrainConfig("sudoku-4", **{name: value})
