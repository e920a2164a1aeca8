"""Official files that are not what they should be are refused, with what is wrong and what to do."""

import zipfile

import pytest
import torch

from attractorlab import models
from attractorlab.models import CheckpointError, official
from tests.models import made


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


def test_a_configuration_without_heads_is_not_filled_in(tmp_path):
    path = made.write_raw(tmp_path / "step_1", made.state_dict("hrm", width=16, sites=6, prefix=1), made.arch("hrm", H_cycles=2, L_cycles=2))
    with pytest.raises(ValueError, match=r"cannot tell heads of .*step_1\. The configuration found does not say it, .*Pass heads=\.\.\. to `load`"):
        models.load(path, task="toy", sites=6)
    assert models.load(path, task="toy", sites=6, heads=4).config.heads == 4
    with pytest.raises(CheckpointError, match=r"of a shape that cannot be built: `HRMConfig` got width=16 for 3 heads"):
        models.load(path, task="toy", sites=6, heads=3)
