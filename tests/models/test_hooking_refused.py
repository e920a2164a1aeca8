"""What cannot be hooked is refused with what was seen; and whatever happens, nothing is left behind."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.hooks import RemovableHandle

import attractorlab as al
from tests.models import hooked, hooked_solvers
from tests.models.hooked import FEATURES, WIDTH, Block, Loop

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
    "Anderson without a named state": (hooked_solvers.Anderson, {"block": "f"}, r"a solver seems to call 'f'.*hook\(\.\.\., state='z'\)"),
    "more Anderson without a named state": (
        lambda: hooked_solvers.Anderson(False, 15),
        {"block": "f"},
        r"a solver seems to call 'f'.*hook\(\.\.\., state='z'\)",
    ),
    "Broyden without a named state": (hooked_solvers.Broyden, {"block": "f"}, r"a solver seems to call 'f'.*hook\(\.\.\., state='z'\)"),
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


def test_a_long_loop_is_listed_by_its_first_and_last_calls() -> None:
    with pytest.raises(ValueError, match=r"call 8: (.|\n)*  \.\.\. 6 more\n  call 15: ") as raised:
        al.hook(Counting16(), block="block", inputs=X)
    assert len(str(raised.value).splitlines()) == 14


class Counting16(Numbered):
    def __init__(self) -> None:
        super().__init__()
        self.turns, self.steps = 17, nn.Embedding(17, WIDTH)


def test_batch_statistics_of_the_moment_break_the_law_of_rows(generator: torch.Generator) -> None:
    f, _ = al.hook(Batched(running=False), block="block", inputs=X)
    with pytest.raises(AssertionError, match="row-wise"):
        al.check_map(f, {"input": torch.randn(4, WIDTH, generator=generator)}, generator=generator)


def test_evaluation_mode_makes_a_map_of_what_was_refused(generator: torch.Generator) -> None:
    for model in (Dropping(), Batched()):
        f, z0 = al.hook(model.eval(), block="block", inputs=X)
        al.check_map(f, {name: leaf + 0.1 * torch.randn(leaf.shape, generator=generator) for name, leaf in z0.items()}, generator=generator)


class Broken(Exception):
    pass


class Breaking(TorchFunctionMode):
    """Breaks at the nth operation."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Broken
        return func(*args, **(kwargs or {}))


class Watched(Loop):
    """With somebody else's hooks, a buffer, a frozen part, and parts in different modes."""

    def __init__(self, left: int = 10**9, where: str = "") -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.left, self.where = left, where
        self.edits = [self.block.register_forward_hook(self.edit), self.block.register_forward_pre_hook(self.look)]
        self.norm.eval().requires_grad_(False)

    def tick(self, where: str) -> None:
        self.left -= where == self.where
        if self.left < 0:
            raise Broken

    def edit(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        self.tick("edit")
        return 0.9 * out

    def look(self, module: nn.Module, args: Any) -> None:
        self.tick("look")

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        self.tick("turn")
        self.seen += 1
        self.seen -= 1
        return self.norm(z + self.block(z, x))


def traces(model: nn.Module) -> list[Any]:
    """All that may be left behind."""
    found: list[Any] = [
        _get_current_function_mode_stack(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._get_mkldnn_enabled(),
    ]
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called)
        found += [name, module.training, *[list(one.items()) for one in hooks]]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found += [name, id(tensor), tensor.requires_grad, tensor.grad, tensor.detach().numpy().tobytes()]
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=st.integers(0, 12), where=st.sampled_from(["edit", "look", "turn"]), grad=st.booleans())
def test_an_exception_in_the_model_leaves_nothing_behind(left: int, where: str, grad: bool) -> None:
    torch.manual_seed(0)
    model = Watched(left, where)
    before = traces(model)
    with torch.set_grad_enabled(grad):
        outside = traces(model)[:4]
        with pytest.raises((Broken, ValueError)):
            al.hook(model, block="block", inputs=X)
        assert traces(model)[:4] == outside
    assert traces(model) == before


@settings(max_examples=60, deadline=None)
@given(left=st.integers(0, 150))
def test_an_exception_in_any_operation_leaves_nothing_behind(left: int) -> None:
    torch.manual_seed(0)
    model = hooked.PostResidual()
    before = traces(model)
    with pytest.raises(Broken), Breaking(left):
        inner = _get_current_function_mode_stack()
        try:
            al.hook(model, block="block", inputs=X)
        finally:
            assert [type(one) for one in _get_current_function_mode_stack()] == [type(one) for one in inner]
        raise Broken  # there were fewer operations than that
    assert traces(model) == before


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken=st.integers(0, 5))
def test_an_exception_while_cleaning_up_leaves_nothing_behind(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked.Stock().eval()
    before, remove, count = traces(model), RemovableHandle.remove, [0]

    def breaking(handle: RemovableHandle) -> None:
        remove(handle)
        count[0] += 1
        if count[0] == broken + 1:
            raise Broken

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(RemovableHandle, "remove", breaking)
        al.hook(model, block="core", inputs=X)
    assert traces(model) == before


def test_an_exception_while_hooking_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked.Stock().eval()
    before, register = traces(model), nn.Module.register_forward_hook
    for broken in range(4):
        count = [0]

        def breaking(module: nn.Module, *args: Any, **kwargs: Any) -> RemovableHandle:
            count[0] += 1  # noqa: B023
            if count[0] == broken + 1:  # noqa: B023
                raise Broken
            return register(module, *args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Broken):
            patch.setattr(nn.Module, "register_forward_hook", breaking)
            al.hook(model, block="core", inputs=X)
        assert traces(model) == before


def test_hooking_leaves_nothing_behind_and_keeps_the_edits_of_others() -> None:
    model = hooked.PostResidual()
    handle = model.block.register_forward_hook(lambda module, args, out: 0.5 * out)
    before, wanted = traces(model), model(X)
    f, _ = found = al.hook(model, block="block", inputs=X)
    assert traces(model) == before and torch.equal(model(X), wanted)
    assert torch.equal(f.readout({name: leaf[-1] for name, leaf in found.states.items()})["output"], wanted)
    edited = f(found.start)["z"]
    handle.remove()
    assert not torch.equal(f(found.start)["z"], edited)


def test_an_exception_in_the_map_leaves_nothing_behind() -> None:
    model = Watched()
    model.register_buffer("seen", None)
    model.turn = lambda z, x, t: model.norm(z + model.block(z, x))  # type: ignore[method-assign]
    f, z0 = al.hook(model, block="block", inputs=X)
    before = traces(model)
    model.left, model.where = 0, "edit"
    for act in (lambda: f(z0), lambda: f.jvp(z0, z0), lambda: f.vjp(z0, z0)):
        with pytest.raises(Broken):
            act()
        assert traces(model) == before


def test_a_block_writing_into_its_arguments_writes_into_no_state() -> None:
    class Rude(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return z.mul_(0.5).add_(self.inner(z.clone(), x))

    model = hooked.ByKeyword()
    model.block = Rude()
    f, z0 = found = al.hook(model, block="block", inputs=X)
    start = copy.deepcopy(z0)
    assert torch.equal(f(z0)["z"], found.states["z"][1]) and torch.equal(z0["z"], start["z"]) and len(found.states["z"]) >= 4
