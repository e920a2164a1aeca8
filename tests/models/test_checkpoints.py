"""Model files: whole or refused, the same content the same bytes, nothing in them executed."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from attractorlab import tasks
from attractorlab.models import CheckpointError, EqR, EqRConfig, checkpoints, describe, load, load_feedforward, names, save
from attractorlab.models.base import weights_hash

CONFIG = EqRConfig("sudoku-4", 16, 6, width=8, blocks=1, H_cycles=1, L_cycles=1)
ABOUT = {"training": '{"lr": 1}', "command": "train ü"}


def fresh(seed=0, config=CONFIG):
    return EqR(config, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def path(tmp_path):
    save(fresh(), tmp_path / "model.safetensors", about=ABOUT)
    return tmp_path / "model.safetensors"


def rewrite(path, tensors=None, **metadata):
    """The same file with other tensors or metadata; a value of None leaves the key out."""
    about = {**describe(path), **metadata}
    save_file(
        load_file(path) if tensors is None else tensors, path, metadata={key: value for key, value in about.items() if value is not None}
    )


def test_a_model_is_read_as_it_was_written(path):
    model, again = fresh(), load(path)
    assert again.config == model.config and again.name == model.name and not again.training
    assert not any(p.requires_grad for p in again.parameters())
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs) and all(ours[name].equal(theirs[name]) for name in ours)
    puzzles = tasks.load("sudoku-4", rows=[0, 1])
    f, g = model.bind(puzzles), again.bind(puzzles)
    z = model.start(f.drive, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert f(z)["z_H"].equal(g(z)["z_H"])
    assert f.origin == g.origin


def test_a_file_says_what_it_is(path):
    about = describe(path)
    assert about["command"] == "train ü" and about["model"] == "eqr" and json.loads(about["config"])["width"] == 8


def test_the_same_model_saved_twice_is_the_same_bytes(tmp_path, path):
    for k in range(5):
        save(fresh(), tmp_path / f"again{k}.safetensors", about=dict(reversed(ABOUT.items())))
        assert (tmp_path / f"again{k}.safetensors").read_bytes() == path.read_bytes()
    save(load(path), tmp_path / "third.safetensors", about=ABOUT)
    assert (tmp_path / "third.safetensors").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_weights_hash_does_not_see_the_dtype_and_sees_every_number():
    model = fresh()
    known = weights_hash(model)
    assert weights_hash(model.to(torch.float64)) == known == weights_hash(fresh()) and len(known) == 16
    assert weights_hash(fresh(1)) != known
    for name, tensor in model.state_dict().items():
        before = tensor.flatten()[-1].item()
        tensor.view(-1)[-1] += 1e-3
        assert weights_hash(model) != known, name
        tensor.view(-1)[-1] = before
    assert weights_hash(model) == known


def test_a_float64_copy_is_saved_as_the_float32_model_that_it_came_from(tmp_path, path):
    save(fresh().to(torch.float64), tmp_path / "copy.safetensors", about=ABOUT)
    assert (tmp_path / "copy.safetensors").read_bytes() == path.read_bytes()
    odd = fresh().to(torch.float64)
    odd.lm_head.weight.data += 1e-12
    with pytest.raises(ValueError, match=r"`save` got weights that float32 rounds.*Use reasoner.to\(torch.float32\)"):
        save(odd, tmp_path / "odd.safetensors", about=ABOUT)
    assert not (tmp_path / "odd.safetensors").exists()


def test_the_keys_of_the_format_are_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match=r"`save` got config, format in `about`.*Use other names"):
        save(fresh(), tmp_path / "x.safetensors", about={"format": "mine", "config": "{}"})


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    for read in (load, describe):
        with pytest.raises(CheckpointError, match=r"cannot be read as a safetensors file \(.*complete and in that format.*Copy it again"):
            read(path)


def test_other_formats_are_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    contents = {
        "text.safetensors": (b"hello, this is no model at all", "cannot be read as a safetensors file"),
        "huge.safetensors": (struct.pack("<Q", 2**62) + b"{}", "cannot be read as a safetensors file"),
        "pickle.pt": (pickle.dumps(Trap()), "is a bare pickle"),
        "zip.pth": (b"PK\x03\x04" + bytes(64), r"begins like a file of torch\.save and cannot be read to its end \(File is not a zip file\)"),
    }
    for name, (content, said) in contents.items():
        (tmp_path / name).write_bytes(content)
        for read in (load, describe, load_feedforward):
            with pytest.raises(CheckpointError, match=rf"{name} {said}"):
                read(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path, path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is a safetensors file of format 'unknown'. A model file says format 'attractorlab-model-1'"
    ):
        load(tmp_path / "theirs.safetensors")
    rewrite(path, format="attractorlab-model-9")
    with pytest.raises(CheckpointError, match=r"of format 'attractorlab-model-9'.*Use a file written by `attractorlab train`"):
        load(path)


def test_other_shapes_names_and_dtypes_are_refused_by_name(path):
    tensors = load_file(path)
    spoiled = {
        "lm_head.weight": {**tensors, "lm_head.weight": torch.zeros(7, 8)},
        "q_head.bias": {name: tensor for name, tensor in tensors.items() if name != "q_head.bias"},
        "extra, q_head.bias": {**{name: t for name, t in tensors.items() if name != "q_head.bias"}, "extra": torch.zeros(1)},
        "H_init": {**tensors, "H_init": tensors["H_init"].double()},
    }
    for wrong, given in spoiled.items():
        rewrite(path, given)
        with pytest.raises(
            CheckpointError, match=rf"other tensors than its configuration asks for: {wrong}\. Names, shapes and dtypes must match"
        ):
            load(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(path, bad):
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] = bad
    rewrite(path, tensors)
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in lm_head.weight\. Weights are finite numbers.*earlier checkpoint"):
        load(path)


def test_a_file_of_before_prefixes_means_none(path):
    config = json.loads(describe(path)["config"])
    rewrite(path, config=json.dumps({name: value for name, value in config.items() if name not in ("prefix", "positions")}))
    assert load(path).config == CONFIG


@pytest.mark.parametrize("config", [None, "", "[1]", "3", "{"])
def test_a_file_without_a_readable_configuration_is_refused(path, config):
    rewrite(path, config=config)
    with pytest.raises(CheckpointError, match=r"has no readable name and configuration in its metadata.*Write the file again"):
        load(path)


def test_a_file_without_a_name_is_refused(path):
    rewrite(path, name=None)
    with pytest.raises(CheckpointError, match=r"has no readable name and configuration"):
        load(path)


def test_unknown_and_missing_keys_of_the_configuration_are_refused(path):
    config = json.loads(describe(path)["config"])
    del config["heads"]
    rewrite(path, config=json.dumps({**config, "colour": "red"}))
    with pytest.raises(
        CheckpointError, match=r"differs in the keys \['colour', 'heads'\].*Use the version of attractorlab that wrote the file"
    ):
        load(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(path, monkeypatch):
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(fresh(1), path, about=ABOUT)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_models_are_found_by_file_folder_and_name(path, tmp_path, monkeypatch):
    assert checkpoints.find(path) == checkpoints.find(str(path)) == checkpoints.find(tmp_path) == path
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    monkeypatch.setattr(checkpoints, "ALIASES", {"short": "model"})
    assert names() == ["model"] and checkpoints.find("model") == checkpoints.find("short") == path
    for unknown in ("modell", "model.safetensors", tmp_path / "no.safetensors", "a" * 300, tmp_path / ("a" * 300), ""):
        if unknown == "" and (checkpoints.Path("") / "model.safetensors").is_file():
            continue
        with pytest.raises(ValueError, match=r"`load` found no model .*bundled name, the path.*Use one of model, or check the path"):
            load(unknown)
