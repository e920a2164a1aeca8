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
    assert (c.task, c.sites, c.prefix) == ("maze", 900, 16)
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


@pytest.fixture
def trm(tmp_path):
    """Writes a small TRM with changed weights or configuration, and loads it."""

    def spoil(change=lambda weights: None, **said):
        weights = made.state_dict("trm", width=16, sites=6, prefix=2, mixer="mlp", blocks=2)
        change(weights)
        settings = made.arch("trm", num_heads=2, H_cycles=2, L_cycles=2, puzzle_emb_len=2, mlp_t=True) | said
        path = made.write_raw(tmp_path / "step_1", weights, {name: value for name, value in settings.items() if value is not ...})
        return models.load(path, task="toy")

    assert spoil().config.blocks == 2
    return spoil


def test_missing_and_extra_keys_are_listed_with_the_nearest(trm):
    def rename(weights):
        weights["L_level.layers.1.mlp.down_projection.weight"] = weights.pop("L_level.layers.1.mlp.down_proj.weight")
        weights["zebra"] = torch.zeros(2)

    near = r"L_level\.layers\.1\.mlp\.down_projection\.weight \(near L_level\.layers\.1\.mlp\.down_proj\.weight\)"
    with pytest.raises(CheckpointError, match=rf"lacks L_level\.layers\.1\.mlp\.down_proj\.weight and has in excess {near}, zebra\. A file holds"):
        trm(rename)
    with pytest.raises(CheckpointError, match=r"lacks H_init, lm_head\.weight and has in excess nothing"):
        trm(lambda weights: (weights.pop("H_init"), weights.pop("lm_head.weight")))
    with pytest.raises(CheckpointError, match=r"lacks nothing and has in excess L_level\.layers\.0\.extra_[0-7], .* and 4 more\. A"):
        trm(lambda weights: weights.update({f"L_level.layers.0.extra_{k}": torch.zeros(1) for k in range(12)}))
    with pytest.raises(CheckpointError, match=r"has nothing as L_level\.layers\.0\.mlp\.gate_up_proj\.weight\. It is a matrix"):
        trm(lambda weights: weights.pop("L_level.layers.0.mlp.gate_up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"has H_init twice, the second time as"):
        trm(lambda weights: weights.update({"inner.H_init": torch.zeros(16)}))


def test_shapes_that_contradict_each_other_are_named(trm):
    with pytest.raises(CheckpointError, match=r"contradict each other: lm_head\.weight \(7, 12\) instead of \(7, 16\)\."):
        trm(lambda weights: weights.update({"lm_head.weight": torch.zeros(7, 12)}))
    with pytest.raises(CheckpointError, match=r"contradict each other: L_level\.layers\.1\.mlp_t\.down_proj\.weight \(9, 256\) instead of \(8, 256\)"):
        trm(lambda weights: weights.update({"L_level.layers.1.mlp_t.down_proj.weight": torch.zeros(9, 256)}))
    with pytest.raises(CheckpointError, match=r"contradict each other: puzzle_emb\.weights \(1, 33\) for 2 prefix tokens of 16"):
        trm(lambda weights: weights.update({"puzzle_emb.weights": torch.zeros(1, 33)}))
    with pytest.raises(CheckpointError, match=r"has the shape \(\) as puzzle_emb\.weights\. It is a matrix"):
        trm(lambda weights: weights.update({"puzzle_emb.weights": torch.zeros(())}))
    with pytest.raises(CheckpointError, match=r"has the shape \(5,\) as embed_tokens\.embedding_weight\. It is a matrix"):
        trm(lambda weights: weights.update({"embed_tokens.embedding_weight": torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=r"mixes tokens by both mlp_t and self_attn"):
        trm(lambda weights: weights.update({"L_level.layers.0.self_attn.o_proj.weight": torch.zeros(16, 16)}))


def test_a_configuration_of_another_training_is_refused(trm, tmp_path):
    for said, match in (
        ({"hidden_size": 32}, r"said to have width=16 and width=32\. The caller, the configuration and the tensors agree"),
        ({"L_layers": 3}, r"said to have blocks=2 and blocks=3"),
        ({"mlp_t": False}, r"said to have mixer='mlp' and mixer='attention'"),
        ({"rms_norm_eps": 1e-6}, r"rms_norm_eps: 1e-06\. The published layers use 1e-5"),
        ({"name": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1"}, r"names the model '.*singlez.*'\. eqr, hrm, hrm_act_v1, trm are read"),
        ({"name": made.NAMES["hrm"]}, r"has one stack and is said to be 'hrm'\. Only HRM has H_level beside L_level"),
        ({"pos_encodings": "rope", "expansion": "four"}, r"says expansion: 'four'\. It is of type float"),
        ({"H_cycles": "two"}, r"says H_cycles: 'two'\. It is of type int"),
        ({"puzzle_emb_len": 9}, r"is of a shape that cannot be built: `TRMConfig` got sites=-1"),
    ):
        with pytest.raises(CheckpointError, match=match):
            trm(**said)
    with pytest.raises(ValueError, match=r"cannot tell H_cycles of .*The configuration found does not say it"):
        trm(H_cycles=...)
    with pytest.raises(CheckpointError, match=r"said to have heads=4 and heads=2"):
        models.load(tmp_path / "step_1", task="toy", heads=4)
    with pytest.raises(CheckpointError, match=r"mixes 8 tokens and is said to have 2 \+ 7"):
        models.load(made.write_raw(tmp_path / "step_1", made.state_dict("trm", width=16, sites=6, prefix=2, mixer="mlp"), made.arch("trm", puzzle_emb_len=2)), sites=7)
    with pytest.raises(ValueError, match=r"got kind='lstm'\. Official files hold one of eqr, trm, hrm"):
        models.load(tmp_path / "step_1", task="toy", kind="lstm")
    attention = made.write_raw(tmp_path / "b" / "step_1", made.state_dict("trm", width=16, sites=6, prefix=2), made.arch("trm", pos_encodings="learned"))
    with pytest.raises(CheckpointError, match=r"says pos_encodings: 'learned'\. rope, none are read"):
        models.load(attention, task="toy")
    two = made.write_raw(tmp_path / "c" / "step_1", made.state_dict("eqr", width=16, sites=6), made.arch("eqr", lambda_=0.9, H_init_std=1.0, L_init_std=0.5))
    with pytest.raises(CheckpointError, match=r"said to have start_scale=1\.0 and start_scale=0\.5"):
        models.load(two, task="toy", sites=6)


def test_an_unreadable_configuration_is_named(trm, tmp_path):
    for text, match in (("arch: [", r"all_config\.yaml cannot be read \(while parsing"), ("seed: 3", r"all_config\.yaml has no section `arch`"), ("- 1", "no section `arch`")):
        (tmp_path / official.CONFIG).write_text(text)
        with pytest.raises(CheckpointError, match=match):
            models.load(tmp_path / "step_1", task="toy")
    (tmp_path / official.CONFIG).write_text("arch: {name: !!python/object/apply:os.mkdir [" + str(tmp_path / "executed") + "]}")
    with pytest.raises(CheckpointError, match=r"all_config\.yaml cannot be read \(could not determine a constructor"):
        models.load(tmp_path / "step_1", task="toy")
    assert not (tmp_path / "executed").exists()


def test_files_of_other_models_are_refused_with_their_keys(tmp_path):
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.running_mean": torch.zeros(64), "bn1.num_batches_tracked": torch.tensor(0), "fc.bias": torch.zeros(10)}
    for content, listed in ((resnet, "bn1.num_batches_tracked, bn1.running_mean, conv1.weight, fc.bias"), ({"epoch": 3, "loss": 0.1}, "epoch, loss"), ([1, 2], "nothing")):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=rf"other\.pt holds \d tensors of another kind of model: {listed}\. A file of EqR, TRM or HRM has"):
            models.load(tmp_path / "other.pt")


def test_an_average_of_other_weights_is_refused(tmp_path):
    weights = made.state_dict("eqr", width=16, sites=6)
    path = made.write_training(tmp_path / "x.pth", weights, None, sites=6, classes=False)
    content = torch.load(path, weights_only=True)
    del content["ema"]["shadow"]["_orig_mod.model.inner.lm_head.weight"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"averages other weights than it has: lm_head\.weight\. Every weight has its average"):
        models.load(path)
    torch.save(content | {"ema": {"mu": 0.999}}, path)
    with pytest.raises(CheckpointError, match=r"averages other weights than it has: L_level\.layers\.0\.mlp\.down_proj\.weight, "):
        models.load(path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["raw", "training"])
def test_a_truncated_file_is_refused(kind, share, tmp_path):
    weights = made.state_dict("eqr", width=16, sites=6)
    path = (made.write_raw if kind == "raw" else made.write_training)(tmp_path / "cut.pth", weights)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth begins like a file of torch\.save and cannot be read to its end \(.*probably truncated"):
        models.load(path)


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path):
    path = made.write_raw(tmp_path / "x.pth", made.state_dict("eqr", width=16, sites=6))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has the damaged or compressed record '.*data/\d+'"):
        models.load(path)


def test_files_that_are_no_zip_of_torch_are_refused(tmp_path):
    legacy = tmp_path / "legacy.pt"
    torch.save({"a": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"legacy\.pt is a bare pickle\. torch\.save has written zip files since torch 1\.6"):
        models.load(legacy)
    (tmp_path / "text.pth").write_text("hello, this is no model at all")
    with pytest.raises(CheckpointError, match=r"text\.pth cannot be read as a safetensors file"):
        models.load(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a.txt", "b")
    with pytest.raises(CheckpointError, match=r"other\.pt is a zip file without a record data\.pkl"):
        models.load(tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(CheckpointError, match=r"damaged or compressed record 'x/data\.pkl'"):
        models.load(tmp_path / "packed.pt")


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
