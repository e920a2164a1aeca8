"""Hooked models: the block cannot tell the map from the model, the laws hold, and the Jacobian is that of finite differences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import attractorlab as al
from attractorlab.maps import DrivenReadout, LatentMap
from attractorlab.types import State
from tests.models import hooked, hooked_solvers

# torch's compiler looks at everything, and warns itself of that.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

ROWS = 4
SECANT = 1e-5  # of central differences in float64: their error is its square, some 1e-10 of the third derivative
APART = 1e-6  # layer norms of nearly equal numbers are curved


class Example(NamedTuple):
    make: Callable[[], nn.Module]
    block: str
    tokens: bool = False
    state: str | int | None = None


def compiled() -> nn.Module:
    model = torch.compile(hooked.Gru(), backend="eager")
    model(torch.zeros(2, hooked.FEATURES))  # compiled before anybody hooks it
    return model


def with_compiled_block() -> nn.Module:
    model = hooked.Added()
    model.block = torch.compile(model.block, backend="eager")
    return model


def compiled_in_place() -> nn.Module:
    model = hooked.PostResidual()
    model.block.compile(backend="eager")
    model(torch.zeros(2, hooked.FEATURES))
    return model


LOOPS = {
    "a GRU cell": Example(hooked.Gru, "cell"),
    "an LSTM cell that starts from nothing": Example(hooked.Lstm, "cell"),
    "a looped transformer with input injection and a detached carry": Example(hooked.LoopedTransformer, "transformer.core", tokens=True),
    "two levels, by the lower": Example(hooked.TwoLevels, "l_level"),
    "two levels, by the higher": Example(hooked.TwoLevels, "h_level"),
    "two levels of one module": Example(lambda: hooked.TwoLevels(tied=True), "l_level"),
    "two levels of one module, two by three": Example(lambda: hooked.TwoLevels(True, 2, 3), "l_level"),
    "a compiled model": Example(compiled, "cell"),
    "a compiled block": Example(with_compiled_block, "block"),
    "a block compiled in place": Example(compiled_in_place, "block"),
    "a carry in a tuple": Example(hooked.as_tuple, "block"),
    "a carry in a dict": Example(hooked.as_dict, "block"),
    "a carry in a named tuple": Example(hooked.as_named_tuple, "block"),
    "a carry in a dataclass": Example(hooked.as_record, "block"),
    "a carry in a mapping with attributes": Example(hooked.as_mapping, "block"),
    "arguments by keyword": Example(hooked.ByKeyword, "block"),
    "added to": Example(hooked.Added, "block"),
    "added to in place": Example(hooked.AddedInPlace, "block"),
    "written into by index": Example(hooked.Indexed, "block"),
    "normalised by functions": Example(hooked.Normalised, "block"),
    "normalised by a module after the residual": Example(hooked.PostResidual, "block"),
    "normalised by a module before the block": Example(hooked.PreNorm, "block"),
    "two blocks, by the first": Example(hooked.TwoBlocks, "block"),
    "two blocks, by the second": Example(hooked.TwoBlocks, "second"),
    "no gradients": Example(hooked.NoGrad, "block"),
    "inference mode": Example(hooked.Inferring, "block"),
    "through .data": Example(hooked.ByData, "block"),
    "momentum, which remembers two states": Example(hooked.HeavyBall, "block"),
    "a block that is called before the loop": Example(hooked.FromTheFirst, "block"),
    "a drive that is made anew at every turn": Example(hooked.Reembedding, "block"),
    "a loop that logs and halts": Example(hooked.Logging, "block"),
    "a block with something extra in a record": Example(hooked.WithExtra, "core"),
    "a block with something extra in a tuple": Example(lambda: hooked.WithExtra(lambda z, y: (z, y)), "core"),
    "a block with something extra in a registered mapping": Example(lambda: hooked.WithExtra(hooked.Keyed), "core"),
    "sizes that follow the rows": Example(hooked.Heads, "block"),
    "the library's own layers": Example(lambda: hooked.Stock().eval(), "core"),
}
SOLVERS = {
    "Anderson, and a last call": Example(hooked_solvers.Anderson, "f", state="z"),
    "Anderson alone": Example(lambda: hooked_solvers.Anderson(last=False), "f", state=0),
    "Broyden": Example(hooked_solvers.Broyden, "f", state="z"),
}
loops = pytest.mark.parametrize("example", LOOPS.values(), ids=LOOPS)
everything = pytest.mark.parametrize("example", {**LOOPS, **SOLVERS}.values(), ids={**LOOPS, **SOLVERS})


def made(example: Example, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    inputs = torch.randint(0, 7, (ROWS, hooked.SITES)) if example.tokens else torch.randn(ROWS, hooked.FEATURES, dtype=dtype)
    return example.make().to(dtype), inputs


def hook(example: Example, model: nn.Module, inputs: Tensor) -> Any:
    return al.hook(model, block=example.block, inputs=inputs, state=example.state)


def nearby(states: State, generator: torch.Generator) -> State:
    """States near the last that the model reached: where layer norms are smooth."""
    return {name: leaf[-1] + 0.1 * torch.randn(leaf[-1].shape, generator=generator).to(leaf) for name, leaf in states.items()}


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree.detach().clone()]
    if isinstance(tree, tuple | list):
        return [one for part in tree for one in tensors(part)]
    if isinstance(tree, dict):
        return [one for part in tree.values() for one in tensors(part)]
    return [one for part in vars(tree).values() for one in tensors(part)] if isinstance(tree, hooked.Output) else []


def calls_of(block: nn.Module, act: Callable[[], Any]) -> list[list[Tensor]]:
    """All that a block was given and gave while `act` ran, call by call."""
    seen: list[list[Tensor]] = []
    handle = block.register_forward_hook(lambda _, args, kwargs, out: seen.append(tensors([args, kwargs, out])), with_kwargs=True)
    with torch.compiler.set_stance("force_eager"):
        act()
    handle.remove()
    return seen


@loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_block_cannot_tell_the_map_from_the_model(example: Example, dtype: torch.dtype) -> None:
    model, inputs = made(example, dtype)
    block = model.get_submodule(example.block)
    wanted = calls_of(block, lambda: model(inputs))
    f, z0 = found = hook(example, model, inputs)
    ticks = next(iter(found.states.values())).shape[0] - 1
    path = [z0]

    def iterate() -> None:
        for _ in range(ticks):
            path.append(f(path[-1]))

    # The library's layers round otherwise where no gradient is recorded; the model's own loop runs as this one does.
    got = calls_of(block, iterate)
    assert len(got) >= 2 and len(got) >= len(wanted) - 2
    for k, (a, b) in enumerate(zip(got, wanted[len(wanted) - len(got) :], strict=True)):
        assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), f"call {k}"
    for k, z in enumerate(path):
        assert all(torch.equal(leaf, found.states[name][k]) for name, leaf in z.items())


@pytest.mark.parametrize("example", SOLVERS.values(), ids=SOLVERS)
def test_the_map_under_a_solver_is_the_block(example: Example) -> None:
    model, inputs = made(example)
    f, z0 = found = hook(example, model, inputs)
    pairs: list[tuple[Tensor, Tensor]] = []

    def compare(_: nn.Module, args: Any, out: Tensor) -> None:
        if not pairs or pairs[-1] is not None:
            handle.remove()  # the map calls the block too
            again.append((f({"z": args[0]})["z"].detach().clone(), out.detach().clone()))
            install()

    again: list[tuple[Tensor, Tensor]] = []

    def install() -> None:
        nonlocal handle
        handle = model.f.register_forward_hook(compare)

    handle = model.f.register_forward_hook(compare)
    model(inputs)
    handle.remove()
    assert len(again) == len(found.states["z"]) >= 5
    assert all(torch.equal(a, b) for a, b in again)
    assert torch.equal(z0["z"], torch.zeros(ROWS, hooked.WIDTH))


@everything
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_laws_hold_for_a_hooked_model(example: Example, dtype: torch.dtype, generator: torch.Generator) -> None:
    model, inputs = made(example, dtype)
    found = hook(example, model, inputs)
    al.check_map(found.map, nearby(found.states, generator), generator=generator)


@everything
def test_the_jacobian_is_that_of_finite_differences(example: Example, generator: torch.Generator) -> None:
    model, inputs = made(example, torch.float64)
    found = hook(example, model, inputs)
    f, z = found.map, nearby(found.states, generator)
    for name, leaf in z.items():
        for i in range(leaf[0].numel()):
            e = torch.zeros_like(leaf).flatten(1)
            e[:, i] = 1
            v = {one: e.view_as(leaf) if one == name else torch.zeros_like(z[one]) for one in z}
            with torch.no_grad():
                ahead, behind = (f({one: z[one] + sign * SECANT * v[one] for one in z}) for sign in (1, -1))
            for one, column in f.jvp(z, v).items():
                torch.testing.assert_close(column, (ahead[one] - behind[one]) / (2 * SECANT), atol=APART, rtol=APART)


@everything
def test_the_readout_of_the_last_state_is_what_the_model_says(example: Example) -> None:
    model, inputs = made(example)
    out = tensors(model(inputs))
    found = hook(example, model, inputs)
    f = found.map
    last, before = ({name: leaf[k] for name, leaf in found.states.items()} for k in (-1, -2))
    if "Anderson" in type(model).__name__:
        # After the last call its output is the state; without one, what the solver made of all calls, which the next call would have got.
        last = {"z": model.f(last["z"], inputs)} if model.last else {"z": model.solve(inputs).detach()}
    read = f.readout(last)
    assert read, found.between
    assert all(len(leaf) == ROWS for leaf in read.values())
    late = {name: leaf for name, leaf in f.readout(before).items() if f"{name!r} is made within a tick" in found.between}
    for name, leaf in (read | late).items():
        exact = example.state is None
        assert any(a.shape == leaf.shape and (torch.equal(a, leaf) if exact else torch.allclose(a, leaf, atol=1e-5)) for a in out), name
    fewer = f.take([2, 0, 2]).readout({name: leaf[[2, 0, 2]] for name, leaf in last.items()})
    for name, leaf in read.items():
        torch.testing.assert_close(fewer[name], leaf[[2, 0, 2]])


@everything
def test_recording_does_not_change_the_output(example: Example) -> None:
    model, inputs = made(example)
    with torch.compiler.set_stance("force_eager"):
        wanted = tensors(model(inputs))
    outputs: list[Any] = []
    with model.register_forward_hook(lambda _, args, out: outputs.append(tensors(out))):
        hook(example, model, inputs)
    assert len(outputs[0]) == len(wanted) and all(torch.equal(a, b) for a, b in zip(outputs[0], wanted, strict=True))


def test_leaves_are_called_as_the_block_calls_its_arguments() -> None:
    names = {key: list(hook(one, *made(one)).start) for key, one in LOOPS.items()}
    assert names["a GRU cell"] == ["hx"]
    assert names["an LSTM cell that starts from nothing"] == ["hx.0", "hx.1"]
    assert names["a carry in a tuple"] == ["carry.0", "carry.1"]
    assert names["a carry in a dict"] == ["carry.z", "carry.memory"]
    assert names["a carry in a dataclass"] == ["carry.state", "carry.extra"]
    assert names["two levels, by the lower"] == ["hidden", "injection"]
    assert names["momentum, which remembers two states"] == ["z", "z.before"]
    model, x = made(LOOPS["two levels, by the lower"])
    assert list(al.hook(model, block="l_level", inputs=x, names=["z_L", "z_H"]).start) == ["z_L", "z_H"]
    with pytest.raises(ValueError, match=r"names=\['z'\] for a state of the leaves hidden, injection\. .* Pass 2 different names"):
        al.hook(model, block="l_level", inputs=x, names=["z"])


def test_the_clock_counts_calls() -> None:
    assert hook(LOOPS["a GRU cell"], *made(LOOPS["a GRU cell"])).map.clock == "call"
    assert hook(LOOPS["two levels of one module"], *made(LOOPS["two levels of one module"])).map.clock == "3 calls"


def test_what_lies_between_the_calls_is_told() -> None:
    text = hook(LOOPS["through .data"], *made(LOOPS["through .data"])).between
    assert "Left out, so that there is a derivative: data (4), detach_ (4)" in text
    text = hook(LOOPS["a loop that logs and halts"], *made(LOOPS["a loop that logs and halts"])).between
    assert "Numbers were read off tensors" in text and "No readout is 'steps': its first axis is not the row." in text
    assert (
        "layer_norm"
        in hook(LOOPS["normalised by a module after the residual"], *made(LOOPS["normalised by a module after the residual"])).between
    )


def test_a_start_without_rows_is_spread_out_to_them() -> None:
    class Learned(hooked.Loop):
        def begin(self, x: Tensor) -> Tensor:
            return torch.linspace(-1, 1, hooked.WIDTH)

        def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
            return self.block(z, x)

    f, z0 = found = al.hook(Learned(), block="block", inputs=torch.randn(ROWS, hooked.FEATURES))
    assert z0["z"].shape == (ROWS, hooked.WIDTH) and f(z0)["z"].shape == z0["z"].shape
    assert len(found.states["z"]) in (4, 5)  # the first tick is left out where it rounds otherwise


def test_a_start_of_another_dtype_is_cast_first() -> None:
    class Halved(hooked.Loop):
        def begin(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), hooked.WIDTH, dtype=torch.float64)

        def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
            return self.block(z.float(), x)

    found = al.hook(Halved(), block="block", inputs=torch.randn(ROWS, hooked.FEATURES))
    assert found.start["z"].dtype == torch.float32 and len(found.states["z"]) == 5


def test_what_is_no_part_of_the_loop_is_told() -> None:
    class TwoStages(hooked.Loop):
        def forward(self, x: Tensor) -> Tensor:
            z = self.begin(x)
            for t in range(8):
                z = self.block(z, x if t < 3 else 2 * x)
            return self.head(z)

    x = torch.randn(ROWS, hooked.FEATURES)
    f, z0 = found = al.hook(TwoStages(), block="block", inputs=x)
    assert len(found.states["z"]) == 6 and "The loop is calls 3 to 7; 3 of 8 calls are no part of it." in found.between
    assert torch.equal(f(z0)["z"], found.states["z"][1])


def test_a_part_of_the_state_that_the_last_turn_makes_for_none_is_found() -> None:
    class Slow(hooked.Loop):
        def forward(self, x: Tensor) -> Tensor:
            z, slow = self.begin(x), self.begin(x)
            for _ in range(4):
                z = self.block(0.5 * z + slow, x)
                slow = 0.9 * slow + torch.tanh(z).cumsum(-1)
            return self.head(z)

    found = al.hook(Slow(), block="block", inputs=torch.randn(ROWS, hooked.FEATURES))
    assert len(found.start) == 2 and len(found.states["z"]) == 5


def test_a_cast_of_the_loop_is_replayed() -> None:
    class Cast(hooked.Loop):
        def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                new = self.block(z, x) + nn.functional.linear(z, self.head.weight).sum(-1, keepdim=True)
            return new.to(x.dtype)

    model, x = made(Example(Cast, "block"))
    f, z0 = found = al.hook(model, block="block", inputs=x)
    assert torch.equal(f(z0)["z"], found.states["z"][1]) and f(z0)["z"].dtype == torch.float32


def test_logits_are_read_by_the_tools_that_know_them() -> None:
    model, x = made(LOOPS["a looped transformer with input injection and a detached carry"])
    f, z0 = al.hook(model, block="transformer.core", inputs={"input_ids": x, "n_loops": 6})
    traj = al.trace(f, z0, ticks=6, keep=al.only_last())
    assert traj.readouts["answer"][-1].tolist() == model(x, n_loops=6)["logits"].argmax(-1).tolist()
    assert f.model is model and f.origin.model == "LoopedTransformer" and f.origin.weights


def test_a_readout_can_be_given() -> None:
    model, x = made(LOOPS["a GRU cell"])
    f, z0 = al.hook(model, block="cell", inputs=(x,), readout=lambda z: {"first": z["hx"][:, 0]})
    assert list(f.readout(z0)) == ["first"]


def test_a_map_follows_its_rows_and_weights() -> None:
    model, x = made(LOOPS["sizes that follow the rows"])
    f, z0 = al.hook(model, block="block", inputs=x)
    rows = [3, 1, 1, 0, 2, 3]
    torch.testing.assert_close(f.take(rows)({"input": z0["input"][rows]})["input"], f(z0)["input"][rows])
    before = f(z0)["input"]
    with torch.no_grad():
        model.block.bias.add_(1)
    assert not torch.equal(f(z0)["input"], before)


def test_a_loop_that_only_begins_with_the_input_has_no_drive() -> None:
    class Hopfield(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.step(x)
            return x

    f, z0 = al.hook(Hopfield(), block="step", inputs=torch.randn(ROWS, 3))
    assert not f.driven and f({"input": torch.zeros(9, 3)})["input"].shape == (9, 3) and list(z0) == ["input"]


def test_from_function_binds_a_rule() -> None:
    f = al.from_function(
        lambda z, x: {"z": 0.5 * z["z"] + x["x"]},
        drive={"x": torch.ones(2, 1)},
        clock="sweep",
        readout=DrivenReadout(lambda z, x: {"y": z["z"] - x["x"]}, {"x": torch.ones(2, 1)}),
    )
    assert isinstance(f, LatentMap) and f.clock == "sweep" and f.take([1, 1, 0]).readout({"z": torch.ones(3, 1)})["y"].shape == (3, 1)
    with pytest.raises(ValueError, match=r"`from_function` got a drive with .* All leaves of a drive are batched over the same rows"):
        al.from_function(lambda z, x: z, drive={"a": torch.ones(2), "b": torch.ones(3)}, clock="tick")
    with pytest.raises(ValueError, match=r"got clock=''.* Name it"):
        al.from_function(lambda z, x: z, drive={}, clock="")
