"""Which loop is found, and after how many comparisons it is said that there is none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attractorlab as al
from attractorlab.models import rolling
from tests.models.hooked import FEATURES, WIDTH, Loop

X = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(3))


class PerStep(Loop):
    """A parameter for each step, all zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.ParameterList([torch.zeros(WIDTH) for _ in range(4)])

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x) * (1 + self.scale[t])


class PerStepBuffer(PerStep):
    def __init__(self) -> None:
        super().__init__()
        for t in range(4):
            self.register_buffer(f"shift{t}", torch.zeros(WIDTH))

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x) + self.get_buffer(f"shift{t}")


@pytest.mark.parametrize("make", [PerStep, PerStepBuffer])
def test_parameters_of_each_step_are_several_while_they_are_equal(make: type[Loop]) -> None:
    with pytest.raises(ValueError, match=r"found no loop: `(mul|add)` got another constant than before"):
        al.hook(make(), block="block", inputs=X)


class Switching(Loop):
    """What drives the last calls is something else."""

    def __init__(self, first: int, then: int) -> None:
        super().__init__(first + then)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        self.late = x.relu()
        return super().forward(x)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x if t < self.first else self.late)


@pytest.mark.parametrize("then", [1, 2, 3])
def test_the_loop_that_covers_most_calls_is_found(then: int) -> None:
    torch.manual_seed(0)
    found = al.hook(Switching(20, then), block="block", inputs=X)
    assert found.map.clock == "call"
    assert len(found.states["z"]) == 21
    assert f"The loop is calls 0 to 19; {then} of {20 + then} calls are no part of it." in found.between


class Numbered(Loop):
    """An embedding of each step."""

    def __init__(self, turns: int) -> None:
        super().__init__(turns)
        self.steps = nn.Embedding(turns, FEATURES)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.norm(self.block(z.relu() + 0.5 * z.tanh(), x + self.steps(torch.tensor(t))))


def test_a_long_run_without_a_loop_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the turns take four times the comparisons of two events, not eight: the search is quadratic in them."""
    compared, unify = 0, rolling._unify

    def counted(*args: Any) -> int | str:
        nonlocal compared
        compared += 1
        return unify(*args)

    monkeypatch.setattr(rolling, "_unify", counted)
    took = []
    for turns in (20, 40):
        compared = 0
        with pytest.raises(ValueError, match="found no loop"):
            al.hook(Numbered(turns), block="block", inputs=X)
        took.append(compared)
    assert took[0] > 0 and took[1] < 5 * took[0]
