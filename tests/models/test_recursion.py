"""EqR, TRM and HRM share one recursion; each obeys the laws, and what the published code does around it does not."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from attractorlab.maps import strobe
from attractorlab.models import (
    HRM,
    TRM,
    AbstractReasoner,
    AbstractRecursion,
    AbstractShape,
    EqR,
    EqRConfig,
    HRMConfig,
    TRMConfig,
    load,
    save,
)
from attractorlab.models.layers import rms_norm
from attractorlab.testing import check_map
from attractorlab.types import Instance

SHAPE = {"sites": 5, "vocabulary": 4, "width": 16, "heads": 2, "H_cycles": 2, "L_cycles": 2}
MODELS = {
    "eqr with a prefix": lambda g: EqR(EqRConfig("toy", **SHAPE, prefix=3, blocks=1), generator=g),
    "eqr of attention with a prefix": lambda g: EqR(EqRConfig("toy", **SHAPE, prefix=2, mixer="attention", blocks=1), generator=g),
    "trm": lambda g: TRM(TRMConfig("toy", **SHAPE, prefix=2, blocks=1), generator=g),
    "trm of attention": lambda g: TRM(TRMConfig("toy", **SHAPE, prefix=2, mixer="attention", blocks=1), generator=g),
    "trm without positions": lambda g: TRM(TRMConfig("toy", **SHAPE, mixer="attention", positions="none", blocks=1), generator=g),
    "hrm": lambda g: HRM(HRMConfig("toy", **SHAPE, prefix=1, mixer="attention", H_blocks=1, L_blocks=2), generator=g),
    "hrm of mlps": lambda g: HRM(HRMConfig("toy", **SHAPE, prefix=1, H_blocks=2, L_blocks=1), generator=g),
}


def made(name, generator):
    """A model whose prefix and halting head are not at rest."""
    model = MODELS[name](generator)
    torch.nn.init.normal_(model.q_head.weight, generator=generator)
    if model.config.prefix:
        torch.nn.init.normal_(model.get_buffer("prefix"), generator=generator)
    return model.requires_grad_(False)


def instances(task="toy"):
    return Instance(torch.arange(15).reshape(3, 5) % 4, None, ("0", "1", "2"), task, None)


@pytest.fixture(params=MODELS)
def model(request, generator):
    return made(request.param, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_model_obeys_the_five_laws(model, dtype, generator):
    model = model.to(dtype)
    f = model.bind(instances())
    z = model.random_start(f.drive, scale=1.0, generator=generator)
    check_map(f, z, generator=generator)
    check_map(strobe(f, 2), f(f(z)), generator=generator)


def test_a_tick_is_its_updates_and_they_are_named_in_order(model, generator):
    f = model.bind(instances())
    z = model.random_start(f.drive, scale=1.0, generator=generator)
    assert [(one.name, one.leaves) for one in f.updates] == [("L0", ("z_L",)), ("L1", ("z_L",)), ("H", ("z_H",))]
    here = z
    for update in f.updates:
        before, here = here, update.rule(here, f.drive)
        assert [name for name in here if not here[name].equal(before[name])] == list(update.leaves)
    assert all(here[name].equal(leaf) for name, leaf in f(z).items())
    assert f.clock == "recursion" and f.model is model


def test_states_have_the_prefix_and_answers_do_not(model, generator):
    c = model.config
    f = model.bind(instances())
    z = model.start(f.drive, generator=generator)
    out = f.readout(f(z))
    assert all(leaf.shape == (3, c.prefix + 5, 16) for leaf in (*z.values(), *f.drive.values()))
    assert out["logits"].shape == (3, 5, 4) and all(leaf.shape == (3,) for name, leaf in out.items() if name != "logits")
    assert list(out) == (["logits", "halt"] if isinstance(model, EqR) else ["logits", "halt", "continue"])


def test_halting_is_read_at_the_first_token_and_answers_behind_the_prefix(model, generator):
    f = model.bind(instances())
    z = model.random_start(f.drive, scale=1.0, generator=generator)
    for token in range(model.config.tokens):
        moved = {**z, "z_H": z["z_H"].clone()}
        moved["z_H"][:, token] += 1.0
        before, after = f.readout(z), f.readout(moved)
        changed = (before["logits"] != after["logits"]).any(-1).any(0)
        assert [k for k, one in enumerate(changed) if one] == ([token - model.config.prefix] if token >= model.config.prefix else [])
        assert (not before["halt"].equal(after["halt"])) == (token == 0)


def test_fixed_starts_are_one_vector_for_all_tokens_and_random_ones_are_drawn(generator):
    for name in ("trm", "hrm"):
        model = made(name, generator)
        f = model.bind(instances())
        z = model.start(f.drive, generator=generator)
        assert all(leaf.equal(model.get_buffer(f"{leaf_name[-1]}_init").expand_as(leaf)) for leaf_name, leaf in z.items())
        first, again = (model.random_start(f.drive, scale=2.0, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert all(first[leaf].equal(again[leaf]) and not first[leaf].equal(z[leaf]) for leaf in z)


def test_the_two_stacks_of_an_hrm_are_its_own(generator):
    model = made("hrm", generator)
    f = model.bind(instances())
    z = model.random_start(f.drive, scale=1.0, generator=generator)
    before = f(z)
    model.H_level.layers[0].mlp.down_proj.weight.mul_(1.1)
    after = f(z)
    assert before["z_L"].equal(after["z_L"]) and not before["z_H"].equal(after["z_H"])
    assert len(model.L_level.layers) == 2 and len(model.H_level.layers) == 1


def test_without_damping_and_with_a_fixed_start_an_eqr_is_a_trm(generator):
    shape = {**SHAPE, "prefix": 2, "blocks": 1}
    eqr = EqR(EqRConfig("toy", **shape, damping=0.0, start="fixed"), generator=torch.Generator().manual_seed(3))
    trm = TRM(TRMConfig("toy", **shape), generator=torch.Generator().manual_seed(3))
    assert all(ours.equal(trm.state_dict()[name]) for name, ours in eqr.state_dict().items())
    f, g = eqr.bind(instances()), trm.bind(instances())
    z, w = eqr.start(f.drive, generator=generator), trm.start(g.drive, generator=generator)
    for _ in range(3):
        z, w = f(z), g(w)
        assert all(z[name].equal(w[name]) for name in z)


def test_without_positions_attention_does_not_know_the_order(generator):
    model = made("trm without positions", generator)
    order = torch.tensor([3, 0, 4, 1, 2])
    puzzles = instances()
    f, g = model.bind(puzzles), model.bind(replace(puzzles, inputs=puzzles.inputs[:, order]))
    z = model.random_start(f.drive, scale=1.0, generator=generator)
    moved = {name: leaf[:, order] for name, leaf in z.items()}
    assert all((g(moved)[name] - leaf[:, order]).abs().max() < 1e-5 for name, leaf in f(z).items())


def test_every_model_is_saved_and_read_as_it_is(model, tmp_path):
    save(model, tmp_path / "m.safetensors", about={"command": "x"})
    again = load(tmp_path / "m.safetensors")
    assert type(again) is type(model) and again.config == model.config
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_a_class_of_your_own_is_not_saved_as_one_of_ours(tmp_path, generator, unchecked):
    with pytest.raises(ValueError, match=r"`save` got a Mine\. Files hold eqr, trm, hrm, feedforward\. Save its state_dict\(\) yourself"):
        save(Mine(generator), tmp_path / "x.safetensors", about={})
    assert not any(tmp_path.iterdir())


class MyConfig(AbstractShape):
    pass


class Mine(AbstractRecursion):
    def __init__(self, generator):
        super().__init__(MyConfig("toy", 5, 4))

    def start(self, drive, *, generator):
        return self.fixed_start(drive)

    def readout(self, z):
        return {"logits": self.answer(z)}

    def update_L(self, h, injection):
        return torch.tanh(h + injection)

    def update_H(self, h, injection):
        return torch.tanh(h + injection)


def test_two_updates_and_a_readout_make_a_model(generator):
    model = Mine(generator)
    model.draw(generator)
    f = model.requires_grad_(False).bind(instances())
    check_map(f, model.random_start(f.drive, scale=1.0, generator=generator), generator=generator)


def test_instances_of_another_task_are_refused(model):
    with pytest.raises(ValueError, match=r"A model for toy \(5 sites\) got instances of other \(5 sites\)\."):
        model.bind(instances("other"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: TRMConfig("toy", 5, 4, prefix=-1), r"`TRMConfig` got prefix=-1\. It is a whole number from 0 to 65,536"),
        (lambda: TRMConfig("toy", 5, 4, blocks=0), r"`TRMConfig` got blocks=0\. It is a whole number from 1 to"),
        (lambda: HRMConfig("toy", 5, 4, H_blocks=0), r"`HRMConfig` got H_blocks=0"),
        (lambda: HRMConfig("toy", 5, 4, positions="learned"), r"`HRMConfig` got positions='learned'\. It is one of rotary, none"),
        (lambda: HRMConfig("toy", 5, 4, mixer="attention", width=20, heads=4), r"`HRMConfig` got width=20 for 4 heads.*Use width=16"),
        (lambda: EqRConfig("toy", 5, 4, damping=1.0), r"`EqRConfig` got damping=1\.0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(config, said):
    with pytest.raises(ValueError, match=said):
        config()


# What the published modules do around the map, in stand-ins of ours.


class StandIn(AbstractReasoner):
    """A TRM whose tick is spoilt the way that the published code has it."""

    def __init__(self, model, spoil):
        super().__init__()
        self.model, self.spoil = model, spoil

    def embed(self, instance):
        return self.model.embed(instance)

    def start(self, drive, *, generator):
        return self.model.start(drive, generator=generator)

    def readout(self, z):
        return self.model.readout(z)

    def tick(self, z, drive):
        return self.spoil(self.model, z, drive)


def ambient_noise(model, z, drive):
    return {name: leaf + 0.01 * torch.randn_like(leaf) for name, leaf in model.tick(z, drive).items()}


def truncated_recursion(model, z, drive):
    with torch.no_grad():
        z = model.tick(z, drive)
    return model.tick(z, drive)


def detached_carry(model, z, drive):
    return {name: leaf.detach() for name, leaf in model.tick(z, drive).items()}


def half_precision(model, z, drive):
    return {name: leaf.to(torch.bfloat16) for name, leaf in model.tick(z, drive).items()}


def reset_in_place(model, z, drive):
    z["z_L"].add_(drive["x"])
    return model.tick(z, drive)


@pytest.mark.parametrize(
    ("spoil", "law"),
    [(ambient_noise, "deterministic"), (truncated_recursion, "differentiable"), (detached_carry, "differentiable"), (half_precision, "closed"), (reset_in_place, "pure")],
)
@pytest.mark.parametrize("name", ["trm", "hrm"])
def test_the_published_modules_own_behaviour_breaks_a_law_by_name(spoil, law, name, generator):
    torch.manual_seed(0)  # the noise is ambient
    model = StandIn(made(name, generator), spoil)
    f = model.bind(instances())
    z = model.model.random_start(f.drive, scale=1.0, generator=generator)
    with pytest.raises(AssertionError, match=rf"^{law}: "):
        check_map(f, z, generator=generator)


def test_the_published_norm_rounds_to_single_precision_and_ours_does_not(generator):
    x = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    exact = functional.rms_norm(x, (8,), eps=1e-5)
    assert (rms_norm(x) - exact).abs().max() < 1e-15
    assert (rms_norm(x.float()).double() - exact).abs().max() > 1e-9


COMPILED = """
import torch
from attractorlab.models import EqR, EqRConfig

torch.manual_seed(0)
model = EqR(EqRConfig("toy", sites=5, vocabulary=3, width=16, blocks=2), generator=torch.Generator().manual_seed(0)).to(torch.float64)
h, injection = torch.randn(2, 3, 5, 16, dtype=torch.float64, requires_grad=True)
stack = model.L_level
found = [one(h, injection, model.cos, model.sin) for one in (stack, torch.compile(stack, dynamic=False))]
slopes = [torch.autograd.grad(one.square().sum() + one[0, 0].sum(), [h, *stack.parameters()]) for one in found]
apart = [(a - b).abs().max() for a, b in zip(*[(one, *slope) for one, slope in zip(found, slopes)])]
print(all(one.is_contiguous() for one in found), float(max(apart)))
"""


def test_compiled_blocks_are_the_eager_ones_with_tokens_first():
    # In a process of its own: the shape checks of the tests cannot be compiled.
    told = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True).stdout.split()
    assert told[0] == "True" and 0 < float(told[1]) < 1e-12
