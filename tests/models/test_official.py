"""Official files of any size: understood, computed as described, and refused with the reason where they are not what they should be."""

import os
import shutil
import zipfile

import pytest
import torch

from attractorlab import models
from attractorlab.maps import strobe
from attractorlab.models import CheckpointError, official, unpickling
from attractorlab.types import Instance
from tests.models import made
from tests.models.independent import Independent, rotary

ROUNDING = 1e-12  # float64, over one segment of maps that stretch little, with one set of rotary tables
TABLES = 1e-6  # float32 tables of two libraries; their angles stay below 30
# Sizes and cycle counts that no published model has.
SIZES = {
    "eqr mlp": ("eqr", {"width": 12, "sites": 10, "mlp_t": True, "blocks": 2, "H_cycles": 2, "L_cycles": 3, "lambda_": 0.8}),
    "eqr attention": ("eqr", {"width": 24, "sites": 7, "num_heads": 3, "blocks": 1, "H_cycles": 1, "L_cycles": 5, "lambda_": 0.95}),
    "eqr mlp with a prefix": ("eqr", {"width": 12, "sites": 9, "prefix": 16, "mlp_t": True, "H_cycles": 3, "L_cycles": 2, "lambda_": 0.95}),
    "eqr attention with a prefix": ("eqr", {"width": 16, "sites": 9, "prefix": 16, "num_heads": 2, "H_cycles": 2, "L_cycles": 2, "lambda_": 0.5}),
    "trm mlp": ("trm", {"width": 10, "sites": 11, "prefix": 3, "mlp_t": True, "blocks": 3, "H_cycles": 2, "L_cycles": 1}),
    "trm attention": ("trm", {"width": 20, "sites": 6, "prefix": 5, "num_heads": 5, "blocks": 2, "H_cycles": 4, "L_cycles": 2}),
    "trm attention without positions": ("trm", {"width": 16, "sites": 8, "prefix": 2, "num_heads": 2, "pos_encodings": "none", "H_cycles": 2, "L_cycles": 2}),
    "trm of a long embedding": ("trm", {"width": 16, "sites": 8, "prefix": 4, "puzzle": 40, "num_heads": 2, "H_cycles": 2, "L_cycles": 2}),
    "trm without a prefix": ("trm", {"width": 12, "sites": 8, "mlp_t": True, "H_cycles": 2, "L_cycles": 2}),
    "hrm": ("hrm", {"width": 16, "sites": 9, "prefix": 1, "num_heads": 4, "blocks": 2, "H_blocks": 3, "H_cycles": 3, "L_cycles": 2}),
    "hrm of another base": ("hrm", {"width": 24, "sites": 5, "prefix": 1, "num_heads": 2, "H_cycles": 1, "L_cycles": 4, "rope_theta": 500.0}),
}
LIKE_PUBLISHED = {"width": 8, "sites": 81, "vocabulary": 11, "mixer": "mlp"}


def parted(sizes):
    """What shapes the weights, and what the configuration says."""
    shape = {name: sizes[name] for name in ("width", "sites", "prefix", "blocks", "H_blocks", "puzzle") if name in sizes}
    shape["mixer"] = "mlp" if sizes.get("mlp_t") else "attention"
    said = {name: value for name, value in sizes.items() if name not in ("width", "sites", "prefix", "blocks", "H_blocks", "puzzle")}
    said |= {"hidden_size": sizes["width"], "L_layers": sizes.get("blocks", 1), "mlp_t": bool(sizes.get("mlp_t"))}
    return shape, said


def written(folder, kind, sizes):
    shape, said = parted(sizes)
    weights = made.state_dict(kind, **shape, half=torch.bfloat16)
    if kind == "eqr":
        said |= {"H_init_std": 1.0, "L_init_std": 1.0} | ({"puzzle_emb_len": sizes["prefix"]} if "prefix" in sizes else {})
        path = made.write_training(folder / "checkpoints" / "step_7_abc.pth", weights, made.arch(kind, **said), sites=shape["sites"])
    else:
        said |= {"H_layers": sizes.get("H_blocks", 1)} if kind == "hrm" else {"puzzle_emb_len": sizes.get("prefix", 0)}
        path = made.write_raw(folder / "step_7", weights, made.arch(kind, **said))
    return path, weights, said


def instances(model, rows=3):
    ids = (torch.arange(rows * model.config.sites).reshape(rows, -1) * 5) % model.config.vocabulary
    return Instance(ids, None, ("",) * rows, model.config.task, None)


@pytest.mark.parametrize("name", SIZES)
def test_models_of_other_sizes_load_from_official_files_and_match_an_independent_evaluation(name, tmp_path, generator):
    kind, sizes = SIZES[name]
    path, weights, said = written(tmp_path, kind, sizes)
    model = models.load(path, task="toy", **({} if sizes.get("mlp_t") or kind == "eqr" else {"sites": sizes["sites"]}))
    c = model.config
    assert (c.sites, c.width, c.prefix, c.task, model.name) == (sizes["sites"], sizes["width"], sizes.get("prefix", 0), "toy", "a run")
    assert (c.H_cycles, c.L_cycles) == (sizes["H_cycles"], sizes["L_cycles"]) and model.dtype == torch.float32
    other = Independent(
        {key: tensor.float().numpy() for key, tensor in weights.items()},
        kind=kind,
        heads=said.get("num_heads", 1),
        H_cycles=sizes["H_cycles"],
        L_cycles=sizes["L_cycles"],
        prefix=sizes.get("prefix", 0),
        positions=said.get("pos_encodings", "rope"),
        lambda_=sizes.get("lambda_", 1.0),
        base=sizes.get("rope_theta", 10000.0),
        tables=(model.cos.double().numpy(), model.sin.double().numpy()),
    )
    if said.get("pos_encodings", "rope") == "rope":
        theirs = rotary(c.tokens, max(2, c.width // c.heads), c.rotary_base)
        assert all(abs(ours.double().numpy() - table).max() < TABLES for ours, table in zip((model.cos, model.sin), theirs, strict=True))
    model = model.to(torch.float64)
    f = strobe(model.bind(instances(model)), c.H_cycles)
    z = model.random_start(f.drive, scale=1.0, generator=generator)
    x = other.x(instances(model).inputs.numpy())
    assert abs(x - f.drive["x"].numpy()).max() < ROUNDING
    z_H, z_L, seen = other.segment(z["z_H"].numpy(), z["z_L"].numpy(), x)
    with torch.no_grad():
        here = z
        values = {"z_H": iter(seen["z_H"]), "z_L": iter(seen["z_L"])}
        for update in f.updates:
            here = update.rule(here, f.drive)
            [leaf] = update.leaves
            assert abs(here[leaf].numpy() - next(values[leaf])).max() < ROUNDING, update.name
        z = f(z)
        out = f.readout(z)
    assert abs(z["z_H"].numpy() - z_H).max() < ROUNDING and abs(z["z_L"].numpy() - z_L).max() < ROUNDING
    assert abs(out["logits"].numpy() - other.logits(z_H)).max() < ROUNDING
    halting = other.halting(z_H)
    assert abs(out["halt"].numpy() - halting[:, 0]).max() < ROUNDING
    assert ("continue" in out) == (kind != "eqr")
    if kind != "eqr":
        assert abs(out["continue"].numpy() - halting[:, 1]).max() < ROUNDING


@pytest.mark.parametrize("name", ["eqr mlp with a prefix", "trm attention", "hrm"])
def test_a_converted_file_holds_the_same_model(name, tmp_path, generator):
    kind, sizes = SIZES[name]
    path, _, _ = written(tmp_path, kind, sizes)
    given = models.Given(task="toy", sites=sizes["sites"])
    first = models.convert(path, tmp_path / "ours.safetensors", given=given, about={"command": "by hand"})
    again = models.load(tmp_path / "ours.safetensors")
    assert type(again) is type(first) and again.config == first.config and again.origin().weights == first.origin().weights
    assert again.name == "a run" and models.load(tmp_path / "ours.safetensors", kind=kind, task="toy").config == first.config
    about = models.describe(tmp_path / "ours.safetensors")
    assert about["weights_from"] == ("ema" if kind == "eqr" else "model") and about["source"] == path.name and about["command"] == "by hand"
    f, g = first.bind(instances(first)), again.bind(instances(again))
    z = first.start(f.drive, generator=generator)
    with torch.no_grad():
        assert all(f(z)[leaf].equal(g(z)[leaf]) for leaf in z)
    with pytest.raises(CheckpointError, match=r"ours.safetensors says otherwise than heads=9\. A file of ours says everything itself"):
        models.load(tmp_path / "ours.safetensors", heads=9)
    with pytest.raises(CheckpointError, match=r"is no file of torch\.save\. `convert` reads what the published trainers write"):
        models.convert(tmp_path / "ours.safetensors", tmp_path / "x.safetensors", given=given, about={})


@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", "inner.", "", "model._orig_mod.inner.", "_orig_mod.module.model.inner."])
def test_the_wrappers_in_the_keys_make_no_difference(prefix, tmp_path):
    weights = made.state_dict("trm", width=16, sites=6, prefix=2, vocabulary=7)
    settings = made.arch("trm", num_heads=2, H_cycles=2, L_cycles=2, puzzle_emb_len=2)
    path = made.write_raw(tmp_path / "a" / "step_1", weights, settings, prefix=prefix)
    plain = made.write_raw(tmp_path / "b" / "step_1", weights, settings)
    ours, theirs = (models.load(one, task="toy", sites=6).state_dict() for one in (path, plain))
    assert list(ours) == list(theirs) and all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("classes", [True, False], ids=["classes and arrays", "plain"])
def test_the_average_is_preferred_to_the_weights_and_buffers_come_from_beside_it(classes, tmp_path):
    weights = made.state_dict("eqr", width=16, sites=6, prefix=16)
    settings = made.arch("eqr", num_heads=2, H_cycles=2, L_cycles=2, lambda_=0.95, puzzle_emb_len=16)
    model = models.load(made.write_training(tmp_path / "ema.pth", weights, settings, sites=6, classes=classes), task="toy")
    assert model.lm_head.weight.equal(weights["lm_head.weight"]) and model.prefix[0].equal(weights["puzzle_emb.weights"][0])
    assert not model.prefix[1:].any() and not model.H_init.any() and model.config.damping == 0.05
    raw = models.load(made.write_training(tmp_path / "raw.pth", weights, settings, sites=6, classes=classes, shadow=False), task="toy")
    assert raw.lm_head.weight.equal(weights["lm_head.weight"] + 0.5)


def test_a_recursive_model_that_the_trainer_of_eqr_wrote_is_a_trm_with_averaged_weights(tmp_path):
    weights = made.state_dict("trm", width=16, sites=6, half=torch.bfloat16)
    path = made.write_training(tmp_path / "x.pth", weights, made.arch("trm", name="trm@TRMModel", num_heads=2, H_cycles=2, L_cycles=2), sites=6)
    model = models.load(path, task="toy")
    assert isinstance(model, models.TRM) and model.config.sites == 6 and model.config.prefix == 0
    assert model.lm_head.weight.equal(weights["lm_head.weight"]) and model.L_init.equal(weights["L_init"].float())


def test_torch_reads_what_it_can_and_the_other_reader_only_the_rest(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(unpickling, "read_as_data", lambda path: read.append(path.name) or (_ for _ in ()).throw(CheckpointError("stop")))
    weights, settings = made.state_dict("eqr", width=16, sites=6), made.arch("eqr", num_heads=2, H_cycles=1, L_cycles=1, lambda_=0.9)
    models.load(made.write_training(tmp_path / "plain.pth", weights, settings, sites=6, classes=False), task="toy")
    with pytest.raises(CheckpointError, match="stop"):
        models.load(made.write_training(tmp_path / "classes.pth", weights, settings, sites=6), task="toy")
    assert read == ["classes.pth"]


def test_a_training_file_names_classes_and_arrays_that_torch_refuses_to_read(tmp_path):
    path = made.write_training(tmp_path / "x.pth", made.state_dict("eqr", width=16, sites=6), None, sites=6)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)


def test_half_precision_numbers_and_a_foreign_device_are_read_on_the_cpu(tmp_path):
    weights = made.state_dict("hrm", width=16, sites=6, prefix=1, half=torch.bfloat16)
    settings = made.arch("hrm", num_heads=2, H_cycles=2, L_cycles=2)
    plain = made.write_raw(tmp_path / "a" / "step_1", weights, settings)
    moved = tmp_path / "b" / "step_1"
    moved.parent.mkdir()
    # "cpu" and "cuda:0" differ in length: the pickle writes the length before the text.
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(moved, "w") as after:
        for info in before.infolist():
            content = before.read(info)
            if info.filename.endswith("data.pkl"):
                assert content.count(b"X\x03\x00\x00\x00cpu") == 1
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            after.writestr(info, content)
    shutil.copy(plain.parent / official.CONFIG, moved.parent)
    model = models.load(moved, task="toy", sites=6)
    assert model.H_init.dtype == torch.float32 and model.H_init.equal(weights["H_init"].float()) and model.H_init.device.type == "cpu"


def test_published_sizes_need_no_keyword(tmp_path):
    cycles = {"H_cycles": 3, "L_cycles": 6, "num_heads": 2}
    for prefix, kind, said in ((16, "trm", {}), (0, "eqr", {"lambda_": 0.95}), (1, "hrm", {})):
        shape = {**LIKE_PUBLISHED, "mixer": "attention"} if kind == "hrm" else LIKE_PUBLISHED
        weights = made.state_dict(kind, prefix=prefix, **shape)
        path = made.write_raw(tmp_path / kind / "step_9", weights, made.arch(kind, **cycles, **said))
        for place in (path, path.parent):
            c = models.load(place).config
            assert (c.task, c.sites, c.prefix, c.vocabulary) == ("sudoku-9", 81, prefix, 11)
    maze = made.write_raw(tmp_path / "maze" / "step_9", made.state_dict("trm", width=8, sites=900, prefix=16, vocabulary=6, mixer="mlp"), made.arch("trm", **cycles))
    c = models.load(maze).config
    assert (c.task, c.sites, c.prefix) == ("maze-30", 900, 16)
    assert models.describe(maze)["model"] == "trm"


def test_what_cannot_be_inferred_is_asked_for_by_name_all_at_once(tmp_path):
    weights = made.state_dict("trm", width=16, sites=6, prefix=2)
    path = made.write_raw(tmp_path / "step_1", weights)
    asked = r"kind, prefix, sites, task, positions, heads, H_cycles, L_cycles"
    with pytest.raises(ValueError, match=r"`load` cannot tell [a-zA-Z_, ]+ of .*step_1\. There is no all_config\.yaml beside it or one folder above") as caught:
        models.load(path)
    assert set(str(caught.value).partition("cannot tell ")[2].partition(" of ")[0].split(", ")) == set(asked.split(", "))
    assert "Pass kind=..., " in str(caught.value) and not isinstance(caught.value, CheckpointError)
    told = {"kind": "trm", "prefix": 2, "sites": 6, "task": "toy", "positions": "rotary", "heads": 2, "H_cycles": 2, "L_cycles": 3}
    for name in told:
        with pytest.raises(ValueError, match=rf"`load` cannot tell {name} of"):
            models.load(path, **{key: value for key, value in told.items() if key != name})
    c = models.load(path, **told).config
    assert (c.heads, c.H_cycles, c.L_cycles, c.task, c.tokens) == (2, 2, 3, "toy", 8)
    eqr = made.write_raw(tmp_path / "eqr", made.state_dict("eqr", width=16, sites=6))
    with pytest.raises(ValueError, match=r"cannot tell damping of"):
        models.load(eqr, **{**told, "kind": "eqr", "prefix": 0})
    assert models.load(eqr, **{**told, "kind": "eqr", "prefix": 0, "damping": 0.1}).config.damping == 0.1


def test_an_attention_model_without_a_configuration_does_not_fix_its_length(tmp_path):
    path = made.write_raw(tmp_path / "step_1", made.state_dict("hrm", width=16, sites=81, prefix=1, vocabulary=11))
    told = {"heads": 2, "H_cycles": 2, "L_cycles": 2, "positions": "rotary"}
    with pytest.raises(ValueError, match=r"cannot tell sites, task of .*Pass sites=\.\.\., task=\.\.\. to `load`"):
        models.load(path, **told)
    assert models.load(path, **told, sites=81).config.task == "sudoku-9"


def test_several_puzzle_embeddings_are_not_chosen_from_in_silence(tmp_path):
    weights = made.state_dict("trm", width=16, sites=6, prefix=2)
    weights["puzzle_emb.weights"] = torch.arange(48.0).reshape(3, 16)
    path = made.write_raw(tmp_path / "step_1", weights, made.arch("trm", num_heads=2, H_cycles=2, L_cycles=2, puzzle_emb_len=2))
    with pytest.raises(ValueError, match=r"got identifier=None for the 3 puzzle embeddings .*Pass identifier=0 to 2"):
        models.load(path, task="toy", sites=6)
    assert models.load(path, task="toy", sites=6, identifier=2).prefix[0].equal(torch.arange(32.0, 48.0))


def test_a_folder_stands_for_the_one_checkpoint_in_it(tmp_path):
    weights = made.state_dict("eqr", width=16, sites=6)
    path = made.write_training(tmp_path / "run" / "checkpoints" / "step_5_x.pth", weights, made.arch("eqr", num_heads=2, H_cycles=1, L_cycles=1, lambda_=0.9), sites=6)
    assert models.find(tmp_path / "run") == path and models.load(tmp_path / "run", task="toy").config.sites == 6
    shutil.copy(path, path.with_name("step_9_x.pth"))
    with pytest.raises(ValueError, match=rf"found 2 checkpoints in .*: checkpoints{os.sep}step_5_x\.pth, checkpoints{os.sep}step_9_x\.pth\. .*Give the path of one"):
        models.load(tmp_path / "run")


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path):
    weights = made.state_dict("trm", width=16, sites=6, mixer="mlp")
    path = made.write_raw(tmp_path / "odd.safetensors", weights, made.arch("trm", H_cycles=1, L_cycles=1))
    model = models.load(path, task="toy")
    models.save(model, tmp_path / "ours.pth", about={})
    again = models.load(tmp_path / "ours.pth")
    assert again.config == model.config and isinstance(again, models.TRM)
