"""Whatever happens while a model is hooked, nothing is left behind, and the hooks of others stay."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.hooks import RemovableHandle

import attractorlab as al
from tests.models import hooked
from tests.models.hooked import FEATURES, Block, Loop

X = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(3))


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
    with Breaking(left):
        inner = _get_current_function_mode_stack()
        with contextlib.suppress(Broken):
            al.hook(model, block="block", inputs=X)
        assert _get_current_function_mode_stack() == inner
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

    with monkeypatch.context() as patch:
        patch.setattr(RemovableHandle, "remove", breaking)
        with pytest.raises(Broken):
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

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "register_forward_hook", breaking)
            with pytest.raises(Broken):
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
