"""What cannot be hooked is refused, with what was seen."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attractorlab as al
from tests.models import hooked, hooked_solvers
from tests.models.hooked import FEATURES, WIDTH, Loop

X = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(3))


class Numbered(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Embedding(9, WIDTH)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z + self.steps.weight[t], x)


class Layered(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.shifts = nn.ParameterList([torch.full((WIDTH,), float(k)) for k in range(9)])

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z + self.shifts[t], x)


class Measured(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z / (1 + z.norm().item()), x)


class Counting(Loop):
    def forward(self, x: Tensor) -> Tensor:
        z, t = self.begin(x), torch.zeros(len(x), dtype=torch.int64)
        for _ in range(4):
            z = self.block(z + torch.sin(t)[:, None], x)
            t = t + 1
        return self.head(z)


class Noisy(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z + 0.1 * torch.randn_like(z), x)


class Dropping(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return torch.tanh(self.block(z + 1))


class Batched(Loop):
    def __init__(self, running: bool = True) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, track_running_stats=running), nn.Tanh())

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z + x[:, :1])


class Energy(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        z = z.detach().requires_grad_()
        return (z - 0.1 * torch.autograd.grad(self.block(z, x).square().sum(), z)[0]).detach()


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        z = x[:, None]
        for _ in range(4):
            z = torch.cat([z, self.block(z).mean(1, keepdim=True)], 1)
        return z


class Halting(Loop):
    def forward(self, x: Tensor) -> Tensor:
        z, halted = self.begin(x), torch.zeros(len(x), dtype=torch.bool)
        for _ in range(4):
            z = torch.where(halted[:, None], z, self.block(z, x))
            halted = halted | (z.norm(dim=-1) > 3)
        return self.head(z)


class Filling(Loop):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        path = torch.zeros(len(x), 6, WIDTH)
        for t in range(5):
            path[:, t + 1] = self.block(path[:, t], x)
        return self.head(path[:, -1])


class Mapped(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(torch.vmap(lambda row: 0.5 * row)(z), x)


class Square(Loop):
    """Takes four rows and no other number."""

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z + x.view(4, 4)[:, :1], x)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(3, len(x), WIDTH)
        for _ in range(3):
            z = torch.tanh(self.block(z + x[None, :, :1]))
        return z


class Remembering(nn.Module):
    """Its state is an attribute, which nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.h = nn.Linear(FEATURES, WIDTH), torch.zeros(())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.h = 0.5 * self.h + self.mix(x).mean(0)
        return torch.tanh(z + self.h)


class WithMemory(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.block = Remembering()

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x)


class Direct(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block.forward(z, x)


SOLVER = r"(found no loop: `(.*)` |saw `linalg_solve` between).*[Ww]here a solver.*hook\(\.\.\., state='z'\)"
REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "no such block": (
        hooked.Gru,
        {"block": "cel"},
        r"got block='cel'\. A block is named as in `model.named_modules\(\)`\. Use one of cell",
    ),
    "called once": (
        lambda: hooked.ByKeyword(1),
        {},
        r"saw 1 call of 'block'\. A loop calls its block twice or more.*\n.*\n  call 0: .*z \[4, 5\] is made by zeros",
    ),
    "not called as a module": (Direct, {}, r"saw no calls of 'block'.* as a module: `block\(\.\.\.\)`"),
    "an embedding of each step": (
        Numbered,
        {},
        r"found no loop: `__getitem__` got 3 where it got 2.* from call to call(.|\n)*call 3: z \[4, 5\] is made by add",
    ),
    "a parameter for each step": (Layered, {}, r"found no loop: `add` got another constant than before"),
    "a number read off the state": (Measured, {}, r"found no loop: `div` got .* where it got"),
    "a counter": (Counting, {}, r"is of torch.int64, a counter or mask"),
    "noise between the calls": (Noisy, {}, r"saw `randn_like` draw random numbers.*deterministic.*model.eval\(\)"),
    "dropout": (Dropping, {}, r"saw `Sequential` draw random numbers.*deterministic.*model.eval\(\)"),
    "batch statistics that are kept": (Batched, {}, r"write into its buffer 'block.1.num_batches_tracked'.*model.eval\(\)"),
    "a gradient between the calls": (Energy, {}, r"saw a gradient taken between the calls.*torch.func.grad"),
    "rows on the second axis": (TimeFirst, {}, r"the state 'input' has shapes \[3, 4, 5\] and \[3, 3, 5\]\. .* batch first"),
    "a state that is kept in the block": (WithMemory, {}, r"replayed tick 1, and it differs .* a module keeps for itself"),
    "Anderson without a named state": (hooked_solvers.Anderson, {"block": "f"}, SOLVER),
    "more Anderson without a named state": (
        lambda: hooked_solvers.Anderson(False, 15),
        {"block": "f"},
        SOLVER,
    ),
    "Broyden without a named state": (hooked_solvers.Broyden, {"block": "f"}, SOLVER),
    "a state that grows": (Growing, {}, r"saw the state 'input' go from \[4, 2, 4\], torch.float32, to \[4, 3, 4\].* in tick 2"),
    "rows that halt": (Halting, {}, r"is of torch.bool, a counter or mask"),
    "a place in a buffer": (
        Filling,
        {},
        r"found no loop: `__getitem__` got .*a place in a buffer, hands on the state, name it: `hook\(\.\.\., state='z'\)`",
    ),
    "stand-ins between the calls": (Mapped, {}, r"found no loop: what the last call got comes from no earlier call"),
    "no such state": (
        hooked_solvers.Broyden,
        {"block": "f", "state": "h"},
        r"got state='h'\. The state is one of the block's arguments.* Use one of 'z', 'x'",
    ),
    "the wrong state": (
        hooked_solvers.Broyden,
        {"block": "f", "state": "x"},
        r"saw 'z' change between call 0 and call 1\. Where 'x' is the state",
    ),
    "a state that does not come back": (
        lambda: hooked.TwoLevels(h_cycles=1, l_cycles=1),
        {"block": "embed", "state": "input"},
        r"gives? nothing of the shape of its argument 'input'",
    ),
    "inputs of several sizes": (
        hooked.Gru,
        {"block": "cell", "inputs": (X, X[:2])},
        r"got inputs with \{'0': 4, '1': 2\} rows\. The first axis",
    ),
}


@pytest.mark.parametrize(("make", "options", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_map_is_refused_with_what_was_seen(make: Callable[[], nn.Module], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"`hook` .*{text}"):
        al.hook(make(), **{"block": "block", "inputs": X, **options})


def test_an_exception_of_the_second_run_says_so() -> None:
    with pytest.raises(RuntimeError) as raised:
        al.hook(Square(), block="block", inputs=X)
    assert raised.value.__notes__ == [
        "`hook` ran the model a second time, on 3 rows, to see what follows the rows. A map takes any number of rows."
    ]


def test_a_long_loop_is_listed_by_its_first_and_last_calls() -> None:
    with pytest.raises(ValueError, match=r"call 8: (.|\n)*  \.\.\. 6 more\n  call 15: ") as raised:
        al.hook(Counting16(), block="block", inputs=X)
    assert len(str(raised.value).splitlines()) == 14


class Counting16(Numbered):
    def __init__(self) -> None:
        super().__init__()
        self.turns, self.steps = 17, nn.Embedding(17, WIDTH)


def test_a_state_that_goes_through_a_buffer_is_named() -> None:
    model = Filling()
    f, _ = found = al.hook(model, block="block", inputs=X, state="z")
    assert len(found.states["z"]) == 5
    torch.testing.assert_close(f.readout(f({"z": found.states["z"][-1]}))["output"], model(X))


def test_batch_statistics_of_the_moment_break_the_law_of_rows(generator: torch.Generator) -> None:
    f, _ = al.hook(Batched(running=False), block="block", inputs=X)
    with pytest.raises(AssertionError, match="row-wise"):
        al.check_map(f, {"input": torch.randn(4, WIDTH, generator=generator)}, generator=generator)


def test_evaluation_mode_makes_a_map_of_what_was_refused(generator: torch.Generator) -> None:
    for model in (Dropping(), Batched()):
        f, z0 = al.hook(model.eval(), block="block", inputs=X)
        al.check_map(f, {name: leaf + 0.1 * torch.randn(leaf.shape, generator=generator) for name, leaf in z0.items()}, generator=generator)


def test_a_block_is_named_and_not_given() -> None:
    """In a process of its own: here the types of arguments are checked before."""
    program = "import torch, attractorlab as al\nm = torch.nn.Linear(2, 2)\ntry: al.hook(m, block=m, inputs=torch.ones(3, 2))\nexcept ValueError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("`hook` got a model of Linear and a block of Linear. It takes a module and the name of one of its parts. Use hook(model, block=")
