"""Which output is the state, and states and blocks of special kinds."""

import pytest
import torch
from torch import Tensor, nn

import attractorlab as al
from tests.models.hooked import FEATURES, WIDTH, Block, ByKeyword, Loop

X = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(3))


class Two(nn.Module):
    """Gives features of the state's shape first, and the state then."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        features = z.relu()
        return features, self.block(features, x)


class Solved(nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.f, self.both = Two(), both

    def forward(self, x: Tensor) -> Tensor:
        z = before = torch.zeros(len(x), WIDTH)
        for _ in range(5):
            features, g = self.f(z, x)
            z, before = 0.7 * g + 0.3 * before * torch.sigmoid((g - z).norm()) + (0.1 * features if self.both else 0.0), g
        return z


def test_the_output_that_the_next_call_rests_on_is_the_state() -> None:
    model = Solved(False)
    f, z0 = al.hook(model, block="f", inputs=X, state="z")
    assert torch.equal(f(z0)["z"], model.f(z0["z"], X)[1])


def test_of_several_outputs_that_go_on_one_is_named() -> None:
    model = Solved(True)
    with pytest.raises(
        ValueError, match=r"saw 'f' give 2 tensors like its state: '0', '1'\. A tick .*\. Name it: `hook\(\.\.\., output='0'\)`"
    ):
        al.hook(model, block="f", inputs=X, state="z")
    f, z0 = al.hook(model, block="f", inputs=X, state="z", output=1)
    assert torch.equal(f(z0)["z"], model.f(z0["z"], X)[1])


def test_a_map_that_is_made_in_inference_mode_has_a_derivative() -> None:
    model = ByKeyword()
    with torch.inference_mode():
        f, z0 = al.hook(model, block="block", inputs=X.clone())
    assert not z0["z"].is_inference() and not any(leaf.is_inference() for leaf in f.drive.values())
    assert f.vjp(z0, z0)["z"].shape == z0["z"].shape


class Turning(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.ones(len(x), WIDTH, dtype=torch.complex64) * x[:, :1]
        for _ in range(4):
            z = self.block(z)
        return z.real


def test_complex_states_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"is of torch.complex64, and states are of real numbers: .*view_as_real"):
        al.hook(Turning(), block="block", inputs=X)


def test_a_scripted_block_is_refused() -> None:
    model = ByKeyword()
    model.block = torch.jit.script(Block())
    with pytest.raises(ValueError, match=r"got block='block', which is a scripted module\. The calls .*\. Hook the model as it was before"):
        al.hook(model, block="block", inputs=X)


class Pair(nn.Module):
    """A state of two tensors, which go in and come out together."""

    def forward(self, z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(0.5 * z[1] + x), torch.tanh(0.3 * z[0] - x)


class SolvedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = Pair()

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(5):
            g = self.f(z, x)
            weight = torch.sigmoid((g[0] - z[0]).norm())
            z = tuple(weight * new + (1 - weight) * old for new, old in zip(g, z, strict=True))
        return z[0]


def test_an_output_is_not_named_for_a_state_of_several_tensors() -> None:
    f, z0 = al.hook(SolvedPair(), block="f", inputs=X, state="z")
    assert len(z0) == 2 and torch.equal(list(f(z0).values())[1], torch.tanh(0.3 * next(iter(z0.values())) - X))
    with pytest.raises(ValueError, match=r"got output=1 for a state of 2 tensors, z\.0, z\.1\. An output is named .* Leave `output` out"):
        al.hook(SolvedPair(), block="f", inputs=X, state="z", output=1)


def test_a_function_that_runs_a_module_can_be_tapped_and_says_its_weights(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    f = al.from_function(lambda z, x: {"z": model(z["z"])}, drive={}, clock="sweep", model=model)
    z = {"z": torch.randn(2, 3, generator=generator)}
    seen = al.trace(f, z, ticks=4, keep=al.every(1), tap=al.Tap(model, "0"))
    assert torch.equal(seen.taps["0"][:-1, 0].tanh(), seen.states["z"][1:])
    hooked = al.trace(f, z, ticks=4, keep=al.every(1), edits=[al.ablate("0", ticks=slice(0, 4))], continuation=al.free_running)
    assert not hooked.states["z"][1:].any()
    assert seen.origin.model == "Sequential" and seen.origin.dtype == "float32" and len(seen.origin.weights) > 8
    before = seen.origin.weights
    with torch.no_grad():
        model[0].weight += 1
    again = al.from_function(lambda z, x: {"z": model(z["z"])}, drive={}, clock="sweep", model=model)
    assert again.origin.weights != before
