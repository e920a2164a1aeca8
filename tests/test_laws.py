"""Every law has a breaker that is caught by name; toys and models obey all five."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attractorlab import trees
from attractorlab.maps import LatentMap, repeat_rows, strobe
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.testing import check_map, starts, toys
from attractorlab.types import Drive, Instance, State

ROWS, DIM = 6, 4
Rule = Callable[[State, Drive], Mapping[str, Tensor]]


def lawful(z: State, x: Drive) -> State:
    """A damped pair of leaves, driven."""
    b = 0.3 * z["b"] + 0.7 * torch.tanh(z["a"] + x["x"])
    return {"a": torch.tanh(1.5 * b - 0.5 * z["a"]), "b": b}


def driven(rule: Rule, g: torch.Generator, *, dtype: torch.dtype = torch.float64) -> tuple[LatentMap, State]:
    x = torch.randn(ROWS, DIM, generator=g, dtype=dtype)
    f = LatentMap(rule, {"x": x}, instance=torch.arange(ROWS), start=torch.zeros(ROWS, dtype=torch.int64))
    return f, trees.normal_like({"a": x, "b": x}, generator=g)


# Breakers: each takes the drive's x and a generator, and gives a rule that breaks one law in one way.


def extra_leaf(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {**lawful(z, d), "steps": z["a"]}


def lost_leaf(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {"a": lawful(z, d)["a"]}


def low_precision_leaf(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {**lawful(z, d), "b": lawful(z, d)["b"].bfloat16()}


def grown_leaf(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {**lawful(z, d), "b": lawful(z, d)["b"].unsqueeze(1)}


def tuple_state(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: tuple(lawful(z, d).values())  # type: ignore[return-value]


def reset_in_place(x: Tensor, g: torch.Generator) -> Rule:
    def rule(z: State, d: Drive) -> State:
        z["a"][:, 0] = 0.0
        return lawful(z, d)

    return rule


def leaf_handed_back(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {"a": lawful(z, d)["a"], "b": z["b"]}


def view_handed_back(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {"a": lawful(z, d)["a"], "b": z["a"][:, :]}


def ambient_noise(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {name: leaf + 1e-6 * torch.randn(leaf.shape, generator=g, dtype=leaf.dtype) for name, leaf in lawful(z, d).items()}


def dropout(x: Tensor, g: torch.Generator) -> Rule:
    layer = nn.Dropout(0.1)
    return lambda z, d: {name: layer(leaf) for name, leaf in lawful(z, d).items()}


def counted_calls(x: Tensor, g: torch.Generator) -> Rule:
    calls = [0]

    def rule(z: State, d: Drive) -> State:
        calls[0] += 1
        return trees.scale(lawful(z, d), 1 / calls[0])

    return rule


def batch_norm(x: Tensor, g: torch.Generator) -> Rule:
    layer = nn.BatchNorm1d(DIM, affine=False, track_running_stats=False, dtype=x.dtype)
    return lambda z, d: {**lawful(z, d), "b": layer(lawful(z, d)["b"])}


def batch_norm_of_drive(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: lawful(z, {"x": d["x"] - d["x"].mean(0)})


def held_embeddings(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: lawful(z, {"x": x})


def held_for_some_rows(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: lawful(z, {"x": x[: d["x"].shape[0]]})


def neighbour(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {**lawful(z, d), "b": lawful(z, d)["b"] + 1e-3 * z["a"].roll(2, 0)}


def fewer_rows(x: Tensor, g: torch.Generator) -> Rule:
    def rule(z: State, d: Drive) -> State:
        out = lawful(z, d)
        return out if len(out["a"]) == ROWS else {name: leaf[:1] for name, leaf in out.items()}

    return rule


def no_grad(x: Tensor, g: torch.Generator) -> Rule:
    return torch.no_grad()(lawful)


def no_grad_on_first_half(x: Tensor, g: torch.Generator) -> Rule:
    def rule(z: State, d: Drive) -> State:
        with torch.no_grad():
            z = lawful(z, d)
        return lawful(z, d)

    return rule


def no_grad_on_one_leaf(x: Tensor, g: torch.Generator) -> Rule:
    def rule(z: State, d: Drive) -> State:
        with torch.no_grad():
            held = 0.1 * torch.tanh(z["b"])
        out = lawful(z, d)
        return {**out, "b": out["b"] + held}

    return rule


def detached(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {name: leaf.detach() for name, leaf in lawful(z, d).items()}


def detached_in_part(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {**lawful(z, d), "b": lawful(z, d)["b"] + 0.01 * z["b"].detach()}


def rounded(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {name: (leaf * 1024).round() / 1024 for name, leaf in lawful(z, d).items()}


def cast_inside(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {name: leaf.to(x.dtype) for name, leaf in lawful(trees.to(z, torch.float32), trees.to(d, torch.float32)).items()}


def only_forward_mode(x: Tensor, g: torch.Generator) -> Rule:
    return lambda z, d: {name: OnlyForward.apply(leaf) for name, leaf in lawful(z, d).items()}


class OnlyForward(torch.autograd.Function):
    """The identity without a backward pass."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None: ...

    @staticmethod
    def jvp(ctx: object, tangent: Tensor) -> Tensor:
        return tangent.clone()


BREAKERS = [
    ("closed", extra_leaf, r"leaves \['a', 'b'\] went in and \['a', 'b', 'steps'\] came out.*the names of z.*Make the rule return"),
    ("closed", lost_leaf, r"and \['a'\] came out"),
    ("closed", low_precision_leaf, r"leaf 'b' went in as float64 \[6, 4\] on cpu and came out as bfloat16.*Cast or reshape once"),
    ("closed", grown_leaf, r"came out as float64 \[6, 1, 4\]"),
    ("closed", tuple_state, r"the map gave a tuple.*a state comes out"),
    ("pure", reset_in_place, r"wrote into leaf 'a'.*leaves z alone.*Replace the in-place"),
    ("pure", leaf_handed_back, r"leaf 'b' of f\(z\) shares its memory with leaf 'b' of z.*\.clone\(\)"),
    ("pure", view_handed_back, r"leaf 'b' of f\(z\) shares its memory with leaf 'a' of z"),
    ("deterministic", ambient_noise, r"two calls at one state differ.*bit for bit.*Turn off noise"),
    ("deterministic", dropout, r"two calls at one state differ"),
    ("deterministic", counted_calls, r"two calls at one state differ"),
    ("row-wise", batch_norm, r"half of the rows left out, the others differ by up to .* of their size.*no batch norm"),
    ("row-wise", batch_norm_of_drive, r"half of the rows left out"),
    ("row-wise", held_embeddings, r"after the rows were permuted, they differ.*Rows follow.*not through a closure"),
    ("row-wise", held_for_some_rows, r"after the rows were permuted"),
    ("row-wise", neighbour, r"after the rows were permuted"),
    ("row-wise", fewer_rows, r"3 of 6 rows went in and 1 came out"),
    ("differentiable", no_grad, r"leaf 'a' cannot be differentiated \(.*\).*Both modes.*Remove `no_grad`"),
    ("differentiable", no_grad_on_first_half, r"leaf 'a' cannot be differentiated"),
    ("differentiable", no_grad_on_one_leaf, r"along leaf 'b' <Jv, Jv> is .* by jvp and <v, JᵀJv> is .* by vjp.*same map.*Remove `no_grad`"),
    ("differentiable", detached, r"cannot be differentiated|jvp gives 0"),
    ("differentiable", detached_in_part, r"along leaf 'b' a secant of the map has length .* and jvp gives .*whole tick.*Remove `detach`"),
    ("differentiable", rounded, r"a secant of the map has length .* and jvp gives 0"),
    ("differentiable", cast_inside, r"a secant of the map .*casts to a lower precision"),
    ("differentiable", only_forward_mode, r"cannot be differentiated"),
]


@pytest.mark.parametrize(("law", "breaker", "words"), BREAKERS, ids=[f"{law}-{breaker.__name__}" for law, breaker, _ in BREAKERS])
def test_every_breaker_is_caught_by_the_name_of_its_law(law: str, breaker: Callable[..., Rule], words: str, generator: torch.Generator) -> None:
    f, z = driven(lawful, generator)
    broken = replace(f, rule=breaker(f.drive["x"], generator))
    before = {name: leaf.clone() for name, leaf in z.items()}
    with pytest.raises(AssertionError, match=rf"(?s)^{law}: .*{words}"):
        check_map(broken, z, generator=generator)
    assert all(torch.equal(z[name], before[name]) for name in z)


def test_every_law_has_a_breaker() -> None:
    assert {law for law, _, _ in BREAKERS} == {"closed", "pure", "deterministic", "row-wise", "differentiable"}


@pytest.mark.parametrize("breaker", [batch_norm, held_embeddings, neighbour, no_grad_on_one_leaf, detached])
def test_breakers_are_caught_in_float32_too(breaker: Callable[..., Rule], generator: torch.Generator) -> None:
    f, z = driven(lawful, generator, dtype=torch.float32)
    with pytest.raises(AssertionError, match=r"^(row-wise|differentiable): "):
        check_map(replace(f, rule=breaker(f.drive["x"], generator)), z, generator=generator)


def test_rows_that_mix_only_under_new_states_are_caught(generator: torch.Generator) -> None:
    # The largest row stays the largest when rows are permuted, and it is kept when half of them are left out.
    f = LatentMap(lambda z, x: {"z": torch.tanh(z["z"]) + 0.1 * z["z"].norm(dim=1).max()}, {})
    z = starts(3, 4, generator=generator)
    z = {"z": torch.cat([10 * z["z"][:1], z["z"][1:]])}
    with pytest.raises(AssertionError, match=r"(?s)^row-wise: new states in half of the rows changed the other rows by up to .*on row i of z alone.*Let row i"):
        check_map(f, z, generator=generator)


@pytest.mark.parametrize("held", [(ROWS, DIM), (ROWS, 1)])
def test_an_undriven_closure_over_rows_is_caught(held: tuple[int, ...], generator: torch.Generator) -> None:
    x = torch.randn(held, generator=generator, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"^row-wise: "):
        check_map(LatentMap(lambda z, d: {"z": torch.tanh(z["z"] + x)}, {}), starts(DIM, ROWS, generator=generator), generator=generator)


def test_a_row_count_built_into_the_rule_is_caught(generator: torch.Generator) -> None:
    f = LatentMap(lambda z, d: {"z": torch.tanh(z["z"]).reshape(ROWS, DIM)}, {})
    with pytest.raises(AssertionError, match=r"(?s)^row-wise: the map fails on 3 of 6 rows \(.*\)\. A map takes any of its rows.*Let row i"):
        check_map(f, starts(DIM, ROWS, generator=generator), generator=generator)


def test_one_row_is_doubled_to_see_whether_rows_mix(generator: torch.Generator) -> None:
    f, z = driven(lawful, generator)
    one, z_one = f.take([0]), trees.take(z, slice(0, 1))
    check_map(one, z_one, generator=generator)
    summed = replace(one, rule=lambda z, d: lawful(z, {"x": d["x"].sum(0, keepdim=True)}))
    with pytest.raises(AssertionError, match=r"^row-wise: "):
        check_map(summed, z_one, generator=generator)
    with pytest.raises(AssertionError, match=r"^row-wise: "):
        check_map(LatentMap(lambda z, d: {"z": torch.tanh(z["z"] - z["z"].sum(0))}, {}), starts(DIM, 1, generator=generator), generator=generator)


def test_a_small_leaf_does_not_hide_behind_a_large_one(generator: torch.Generator) -> None:
    def rule(z: State, d: Drive) -> State:
        return {"large": torch.tanh(z["large"]) + 1e-3 * z["small"].detach(), "small": 0.5 * z["small"]}

    z = {"large": torch.randn(3, 5000, generator=generator, dtype=torch.float64), "small": torch.ones(3, 1, dtype=torch.float64)}
    with pytest.raises(AssertionError, match=r"^differentiable: along leaf 'small'"):
        check_map(LatentMap(rule, {}), z, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lawful_maps_pass(dtype: torch.dtype, generator: torch.Generator) -> None:
    f, z = driven(lawful, generator, dtype=dtype)
    for g in (f, strobe(f, 4), f.take(repeat_rows(ROWS, 2)), f.take([4, 1])):
        check_map(g, trees.take(trees.cat([z, z]), slice(0, len(g.instance))), generator=generator)


def test_constant_kinked_and_superstable_maps_pass(generator: torch.Generator) -> None:
    z = starts(DIM, ROWS, generator=generator)
    check_map(LatentMap(lambda z, d: {"z": 0 * z["z"] + 1}, {}), z, generator=generator)
    check_map(LatentMap(lambda z, d: {"z": torch.relu(z["z"])}, {}), z, generator=generator)
    check_map(LatentMap(lambda z, d: {"z": 0.5 * z["z"]}, {}), {"z": torch.zeros(2, 3, dtype=torch.float64)}, generator=generator)
    check_map(LatentMap(lambda z, d: {"z": z["z"] ** 3}, {}), {"z": torch.zeros(2, 3)}, generator=generator)


def made(name: str, dim: int, dtype: torch.dtype, g: torch.Generator) -> toys.Toy:
    if name == "linear":
        return toys.linear(torch.randn(dim, dim, generator=g, dtype=torch.float64) / math.sqrt(dim), torch.ones(dim), dtype=dtype)
    if name == "power iteration":
        return toys.power_iteration([2.0, 1.5][:dim], dim, generator=g, dtype=dtype)
    if name == "ring":
        return toys.ring(max(3, dim), 0.2, dtype=dtype)
    return toys.cubic(1.0, 0.3, dim, dtype=dtype) if name == "cubic" else toys.separable_tanh(1.5, dim, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "dim"),
    [(name, dim) for name in ("linear", "separable tanh", "power iteration", "ring", "cubic") for dim in (2, 50, 10_000) if (name, dim) != ("linear", 10_000)],
)
def test_toys_obey_the_five_laws(name: str, dim: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    toy = made(name, dim, dtype, generator)
    z = toy.starts(4, generator=generator)
    if (name, dim) == ("ring", 10_000):  # among so many random gaps some lie within any step of the jump at π
        z = trees.add(trees.take(toy.fixed_points, slice(0, 4)), trees.scale(trees.normal_like(z, generator=generator), 0.1))
    check_map(toy.map, z, generator=generator)


def eqr(mixer: str, start: str, g: torch.Generator) -> EqR:
    return EqR(EqRConfig(task="toy", sites=5, vocabulary=4, width=16, blocks=1, mixer=mixer, heads=2, start=start), generator=g)


def puzzles(g: torch.Generator) -> Instance:
    return Instance(inputs=torch.randint(4, (3, 5), generator=g), targets=None, ids=("0", "1", "2"), task="toy", difficulty=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["random", "fixed"])
@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_eqr_obeys_the_five_laws(mixer: str, start: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    model = eqr(mixer, start, generator).to(dtype)
    f = model.bind(puzzles(generator))
    z = model.start(f.drive, generator=generator)
    check_map(f, z, generator=generator)
    check_map(strobe(f, 2), f(f(z)), generator=generator)


def test_noise_within_a_tick_is_refused_as_not_deterministic(generator: torch.Generator) -> None:
    model = eqr("mlp", "random", generator)
    f = model.bind(puzzles(generator))
    noisy = replace(f, rule=model.noisy(0.01, torch.Generator().manual_seed(1)))
    with pytest.raises(AssertionError, match=r"^deterministic: "):
        check_map(noisy, model.start(f.drive, generator=generator), generator=generator)


def test_states_that_cannot_be_judged_are_refused(generator: torch.Generator) -> None:
    f = LatentMap(lambda z, d: {"z": torch.tanh(z["z"])}, {})
    with pytest.raises(ValueError, match=r"`check_map` got a state in bfloat16\. .*float32 or float64.* Cast the model first"):
        check_map(f, {"z": torch.zeros(2, 3, dtype=torch.bfloat16)}, generator=generator)
    with pytest.raises(ValueError, match=r"got a state in float32, float64"):
        check_map(f, {"z": torch.zeros(2, 3), "w": torch.zeros(2, 3, dtype=torch.float64)}, generator=generator)
    with pytest.raises(ValueError, match=r"takes to NaN or infinity in 1 rows\. .*finite numbers.* Start from other states"):
        check_map(f, {"z": torch.tensor([[0.0], [math.nan]])}, generator=generator)
    bound, z = driven(lawful, generator)
    with pytest.raises(ValueError, match="A state of 1 rows met a map of 6 rows"):
        check_map(bound, trees.take(z, slice(0, 1)), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sharpness", [40.0, 50.0, 60.0])
def test_strongly_contracting_maps_pass(sharpness: float, dtype: torch.dtype) -> None:
    """A softmax that is all but saturated: what it makes of a disturbance is left over from numbers of the size of 1."""
    g = torch.Generator().manual_seed(round(sharpness))
    w = torch.randn(8, 8, generator=g, dtype=dtype) / 8**0.5
    f = LatentMap(lambda z, d: {"z": torch.softmax(sharpness * (z["z"] @ w), -1)}, {})
    check_map(f, {"z": torch.randn(6, 8, generator=g, dtype=dtype)}, generator=g)


class Wrong(torch.autograd.Function):
    """A matrix that is handed `size` apart from itself in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, size: float) -> Tensor:
        return x @ w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: object) -> Tensor:
        return tangent @ ctx.saved_tensors[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (1 + ctx.size) * grads[0] @ ctx.saved_tensors[0].T, None, None


def test_a_state_of_no_rows_is_no_ground_for_a_verdict() -> None:
    with pytest.raises(ValueError, match=r"`check_map` got a state of no rows\."):
        check_map(LatentMap(lambda z, d: {"z": 0.5 * z["z"]}, {}), {"z": torch.zeros(0, 3)}, generator=torch.Generator())


@pytest.mark.parametrize(
    ("dtype", "gain", "size"), [(torch.float64, 1.0, 1e-8), (torch.float64, 1e-5, 1e-8), (torch.float64, 1e-11, 1e-2), (torch.float32, 1.0, 1e-3), (torch.float32, 1e-3, 1e-1)]
)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_an_adjoint_that_is_a_little_wrong_is_caught_also_where_little_comes_through(
    offset: float, gain: float, size: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    w = gain * torch.randn(8, 8, generator=generator, dtype=dtype) / 8**0.5
    z = {"z": torch.randn(4, 8, generator=generator, dtype=dtype)}
    check_map(LatentMap(lambda z, d: {"z": offset + Wrong.apply(z["z"], w, 0.0)}, {}), z, generator=generator)
    with pytest.raises(AssertionError, match=r"^differentiable: .*<Jv, Jv> is .* by jvp"):
        check_map(LatentMap(lambda z, d: {"z": offset + Wrong.apply(z["z"], w, size)}, {}), z, generator=generator)
