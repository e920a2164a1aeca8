"""What a model makes from the state where nobody looks is no constant."""

import numpy as np
import pytest
import torch
from torch import Tensor

import attractorlab as al
from tests.models.hooked import FEATURES, WIDTH, Loop

X = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(3))


@torch.jit.script
def scripted(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


class Gated(Loop):
    """The gate is open at every tick that is seen, and not everywhere."""

    def gate(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z * self.gate(z.mean(1, keepdim=True) + 5), x)


class ByVmap(Gated):
    def gate(self, z: Tensor) -> Tensor:
        return torch.vmap(lambda row: (row > 0).to(row.dtype))(z)


class ByScript(Gated):
    def gate(self, z: Tensor) -> Tensor:
        return scripted(z)


class ByNumpy(Gated):
    def gate(self, z: Tensor) -> Tensor:
        return torch.from_numpy((z.detach().numpy() > 0).astype("float32"))


class ByArray(Gated):
    def gate(self, z: Tensor) -> Tensor:
        return torch.from_numpy((np.asarray(z.detach()) > 0).astype("float32"))


class ByVmapAtLast(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.begin(x)
        for _ in range(4):
            z = self.block(z, x)
        return {"plain": self.head(z), "gated": self.head(z) * torch.vmap(torch.abs)(z.mean(1, keepdim=True) + 5)}


class OfTheDrive(Loop):
    """The same functions, of what is no state; and the state is looked at by another library."""

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        self.seen = float(z.detach().numpy().mean())
        return self.block(z * scripted(x[:, :1]), torch.vmap(lambda row: 0.5 * row)(x))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (ByVmap, "a transform such as `torch.vmap`"),
        (ByNumpy, "`numpy`"),
        (ByArray, "`(__array__|numpy)`"),
    ],
)
def test_a_gate_that_is_made_unseen_is_no_constant(make: type[Loop], text: str) -> None:
    with pytest.raises(ValueError, match=r"make no map.*: a tensor of shape \[4, 1\] was made from the state unseen, by " + text):
        al.hook(make(), block="block", inputs=X)


def test_a_scripted_function_is_replayed_operation_by_operation(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = ByScript()
    f, _ = al.hook(model, block="block", inputs=X)
    z = 9 * torch.randn(4, WIDTH, generator=generator) - 5
    assert {0.0, 1.0} == set(model.gate(z.mean(1) + 5).tolist())
    assert torch.equal(f({"z": z})["z"], model.turn(z, X, 0))


def test_a_readout_through_what_is_unseen_is_none() -> None:
    f, z0 = found = al.hook(ByVmapAtLast(), block="block", inputs=X)
    assert list(f.readout(z0)) == ["plain"]
    assert "No readout is 'gated': a tensor of shape [4, 1] was made from the state unseen" in found.between


def test_what_is_made_unseen_from_the_drive_is_a_constant(generator: torch.Generator) -> None:
    f, _ = al.hook(OfTheDrive(), block="block", inputs=X)
    al.check_map(f, {"z": torch.randn(4, WIDTH, generator=generator)}, generator=generator)


class Inside(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return torch.vmap(self.block)(z, x)


def test_calls_inside_of_a_transform_are_told() -> None:
    with pytest.raises(ValueError, match=r"saw no calls of 'block', which was called inside a transform such as `torch.vmap`"):
        al.hook(Inside(), block="block", inputs=X)


class Nested(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.stack = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x[:, None])


def test_calls_inside_of_another_watched_module_are_told_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"saw no calls of 'stack.layers.0', which was called inside a call of `TransformerEncoder`"):
        al.hook(Nested().eval(), block="stack.layers.0", inputs=X)


def test_an_output_is_named_only_with_a_state():
    with pytest.raises(ValueError, match=r"`hook` got output='z' without a state.*Name the state too"):
        al.hook(torch.nn.Sequential(torch.nn.Linear(2, 2)), block="0", inputs=torch.ones(3, 2), output="z")
