"""LatentMap, take, coordinates, jvp and vjp, residual, strobe."""

from dataclasses import replace

import pytest
import torch

from attractorlab import trees
from attractorlab.maps import DrivenReadout, LatentMap, Update, in_turn, relative, repeat_rows, strobe
from attractorlab.testing import starts, toys
from attractorlab.types import Drive, State


def tick(z: State, d: Drive) -> State:
    return {"h": torch.tanh(z["h"] @ d["w"] + z["c"]), "c": 0.5 * z["c"] + d["x"]}


@pytest.fixture
def driven(generator: torch.Generator) -> tuple[LatentMap, State]:
    """Three rows of width 2, each with a matrix and a shift of its own."""
    drive = {
        "w": torch.randn(3, 2, 2, generator=generator, dtype=torch.float64),
        "x": torch.randn(3, 1, 2, generator=generator, dtype=torch.float64),
    }
    f = LatentMap(tick, drive, clock="recursion", instance=torch.arange(3), start=torch.zeros(3, dtype=torch.int64))
    z = trees.normal_like({"h": drive["x"], "c": drive["x"]}, generator=generator)
    return f, z


def same(u: State, v: State) -> bool:
    return list(u) == list(v) and all(torch.equal(u[name], v[name]) for name in u)


def test_strobe_is_n_calls(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    assert same(strobe(f, 3)(z), f(f(f(z))))
    assert strobe(f, 1) is f
    assert strobe(f, 3).clock == "3 x recursion"
    assert strobe(f, 3).drive is f.drive and strobe(f, 3).instance is f.instance
    assert same(strobe(strobe(f, 2), 3)(z), strobe(f, 6)(z))


def test_strobe_refuses_less_than_one_tick(driven: tuple[LatentMap, State]) -> None:
    with pytest.raises(ValueError, match=r"`strobe` got every=0\. .*1 or more ticks\. Use every=1 or more"):
        strobe(driven[0], 0)


def test_the_spectrum_of_a_strobed_map_is_the_spectrum_to_its_power(generator: torch.Generator) -> None:
    toy = toys.linear(torch.randn(6, 6, generator=generator, dtype=torch.float64) / 3, torch.ones(6))
    z = trees.take(toy.fixed_points, repeat_rows(1, 6))
    strobed = strobe(toy.map, 4).jvp(z, {"z": torch.eye(6, dtype=torch.float64)})["z"].T
    seen, expected = torch.linalg.eigvals(strobed), toy.eigenvalues[0] ** 4
    # Each of the one set has its match in the other; complex pairs have no order to rely on.
    gaps = (seen[:, None] - expected[None]).abs()
    assert float(gaps.min(0).values.max()) < 1e-10 and float(gaps.min(1).values.max()) < 1e-10


def test_jvp_and_vjp_give_the_jacobian_and_its_transpose(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    n, dim = 3, trees.size(z)
    many, at = f.take(repeat_rows(n, dim)), trees.take(z, repeat_rows(n, dim))
    basis = trees.unflatten(torch.eye(dim, dtype=torch.float64).repeat(n, 1), at)
    columns = trees.flatten(many.jvp(at, basis)).reshape(n, dim, dim).transpose(1, 2)
    rows = trees.flatten(many.vjp(at, basis)).reshape(n, dim, dim)
    torch.testing.assert_close(columns, rows)
    for row in range(n):
        one, here = f.take([row]), trees.take(z, slice(row, row + 1))
        exact = torch.autograd.functional.jacobian(lambda flat, one=one, here=here: trees.flatten(one(trees.unflatten(flat[None], here)))[0], trees.flatten(here)[0])
        torch.testing.assert_close(columns[row], exact)


def test_derivatives_carry_no_graph_and_leave_the_state_alone(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    tracked = {name: leaf.clone().requires_grad_(True) for name, leaf in z.items()}
    with torch.no_grad():
        for out in (f.jvp(tracked, z), f.vjp(tracked, z)):
            assert not any(leaf.requires_grad for leaf in out.values())
    assert all(leaf.grad is None for leaf in tracked.values())
    assert same({name: leaf.detach() for name, leaf in tracked.items()}, z)


def test_jvp_takes_expanded_states_and_vjp_leaves_without_influence() -> None:
    f = LatentMap(lambda z, d: {"a": 2 * z["a"], "b": z["a"] + 1}, {})
    z = {"a": torch.ones(1, 2).expand(3, 2), "b": torch.ones(1, 2).expand(3, 2)}
    assert f.jvp(z, z)["b"].tolist() == [[1.0, 1.0]] * 3
    pulled = f.vjp(z, {"a": torch.ones(3, 2), "b": torch.ones(3, 2)})
    assert pulled["a"].tolist() == [[3.0, 3.0]] * 3 and pulled["b"].tolist() == [[0.0, 0.0]] * 3


def test_jvp_passes_fused_attention(generator: torch.Generator) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention
    f = LatentMap(lambda z, d: {"z": attend(z["z"], z["z"], z["z"])}, {})
    z = {"z": torch.randn(2, 2, 4, 8, generator=generator, dtype=torch.float64)}
    v = trees.normal_like(z, generator=generator)
    secant = trees.scale(trees.sub(f(trees.add(z, trees.scale(v, 1e-5))), f(trees.sub(z, trees.scale(v, 1e-5)))), 0.5e5)
    torch.testing.assert_close(f.jvp(z, v)["z"], secant["z"], atol=1e-8, rtol=0)  # curvature x step²


def test_take_follows_rows_drives_and_instances(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    chosen = torch.tensor([2, 0])
    taken = f.take(chosen)
    torch.testing.assert_close(taken(trees.take(z, chosen)), dict(trees.take(f(z), chosen)))
    assert taken.instance.tolist() == [2, 0] and taken.clock == "recursion"
    assert same(f.take([2, 0]).drive, taken.drive)
    assert f.take([1, 2]).take([1]).instance.tolist() == [2]


def test_rows_taken_once_keep_their_start_and_repeated_ones_are_numbered_anew(driven: tuple[LatentMap, State]) -> None:
    f, _ = driven
    many = f.take(repeat_rows(3, 4))
    assert many.instance.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert many.start.tolist() == [0, 1, 2, 3] * 3
    assert many.take([5, 2, 11]).start.tolist() == [1, 2, 3]
    again = many.take([5, 2, 5, 6, 0])
    assert again.instance.tolist() == [1, 0, 1, 1, 0] and again.start.tolist() == [0, 0, 1, 2, 1]
    assert f.take([]).start.tolist() == []


def test_an_undriven_map_takes_any_number_of_rows(generator: torch.Generator) -> None:
    f = toys.separable_tanh(2.0, 3).map
    assert f.take([0, 0, 5]) is f and not f.driven
    instance, start = f.coordinates(starts(3, 4, generator=generator))
    assert instance.tolist() == [0, 0, 0, 0] and start.tolist() == [0, 1, 2, 3]


def test_a_state_and_a_map_of_different_rows_are_refused(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    assert f.driven and [kind.tolist() for kind in f.coordinates(z)] == [[0, 1, 2], [0, 0, 0]]
    five = trees.take(z, torch.zeros(5, dtype=torch.int64))
    for call in (f.coordinates, f.residual):
        with pytest.raises(ValueError, match=r"A state of 5 rows met a map of 3 rows\. .*one to one\. Use `f\.take\(\[0\] \* 5\)`"):
            call(five)


def test_the_residual_is_relative_and_per_row() -> None:
    f = LatentMap(lambda z, d: {"a": 1.5 * z["a"], "b": z["b"] + 0}, {})
    z = {"a": torch.tensor([[3.0], [3.0], [0.0]]), "b": torch.tensor([[4.0], [0.0], [0.0]])}
    assert f.residual(z).tolist() == pytest.approx([0.3, 0.5, 0.0])
    tracked = {name: leaf.clone().requires_grad_(True) for name, leaf in z.items()}
    assert not f.residual(tracked).requires_grad


def test_a_length_is_relative_to_one_where_the_state_vanishes() -> None:
    z = {"z": torch.tensor([[2.0], [0.0], [1e-9]])}
    assert relative(torch.tensor([1.0, 0.25, 0.25]), z).tolist() == [0.5, 0.25, 0.25]


def test_repeat_rows_goes_instance_by_instance() -> None:
    assert repeat_rows(3, 2).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_map_reads_nothing_unless_told() -> None:
    f = LatentMap(lambda z, d: {"z": z["z"] + 0}, {})
    assert dict(f.readout({"z": torch.zeros(1, 1)})) == {} and f.clock == "tick" and f.origin.model == "unnamed"


def halves(d: Drive) -> LatentMap:
    """The map of `tick` in two updates that rewrite one leaf each; c is read before it changes."""
    updates = (
        Update("h", ("h",), lambda z, d: {"h": torch.tanh(z["h"] @ d["w"] + z["c"]), "c": z["c"]}),
        Update("c", ("c",), lambda z, d: {"h": z["h"], "c": 0.5 * z["c"] + d["x"]}),
    )
    n = len(d["x"])
    return LatentMap(in_turn(updates), d, instance=torch.arange(n), start=torch.zeros(n, dtype=torch.int64), updates=updates)


def test_updates_one_after_the_other_are_the_tick(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    g = halves(f.drive)
    assert same(g(z), f(z))
    assert g.take([2, 0]).updates is g.updates


def test_a_strobed_map_has_the_updates_of_all_its_ticks(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    g = strobe(halves(f.drive), 2)
    assert [one.name for one in g.updates] == ["0.h", "0.c", "1.h", "1.c"]
    assert same(in_turn(g.updates)(z, g.drive), g(z))
    assert strobe(f, 2).updates == ()


def test_a_map_says_when_its_rule_is_its_updates_by_construction(driven: tuple[LatentMap, State]) -> None:
    f, _ = driven
    g = halves(f.drive)
    assert g.made_of_updates and g.take([2, 0]).made_of_updates and strobe(g, 3).made_of_updates
    other = replace(g, rule=f.rule)
    assert not f.made_of_updates and not other.made_of_updates and not strobe(other, 3).made_of_updates
    assert not replace(g, updates=g.updates[:1]).made_of_updates and not replace(g, updates=()).made_of_updates


def test_a_driven_readout_follows_the_rows(driven: tuple[LatentMap, State]) -> None:
    f, z = driven
    g = replace(f, readout=DrivenReadout(lambda z, d: {"sum": z["c"] + d["x"]}, f.drive))
    order = torch.tensor([2, 0, 0])
    assert torch.equal(g.take(order).readout(trees.take(z, order))["sum"], g.readout(z)["sum"][order])


def test_a_leaf_that_does_not_come_from_the_state_is_no_obstacle_backwards() -> None:
    z = {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(2, 3, dtype=torch.float64)}
    f = LatentMap(lambda z, x: {"a": 2 * z["a"] + z["b"], "b": torch.ones_like(z["b"])}, {})
    back = f.vjp(z, z)
    assert back["a"].eq(2).all() and back["b"].eq(1).all()
    back = LatentMap(lambda z, x: {name: torch.ones_like(leaf) for name, leaf in z.items()}, {}).vjp(z, z)
    assert back["a"].eq(0).all() and back["b"].eq(0).all()

    def held(z: State, x: Drive) -> State:
        with torch.no_grad():
            return {"a": 2 * z["a"], "b": z["b"].sin()}

    with pytest.raises(RuntimeError, match="does not require grad"):  # forward mode sees what `no_grad` hides
        LatentMap(held, {}).vjp(z, z)


def test_rows_are_taken_by_number_or_by_a_mask_and_those_that_are_not_there_are_refused(driven: tuple[LatentMap, State]) -> None:
    f, _ = driven
    n = len(f.instance)
    mask = torch.arange(n) % 2 == 0
    assert f.take(mask).instance.equal(f.take(mask.nonzero().squeeze(1)).instance)
    assert f.take(mask.tolist()).instance.equal(f.take(mask).instance) and not len(f.take([]).instance)
    with pytest.raises(ValueError, match=rf"`take` got a mask of {n + 1} for a map of {n} rows\."):
        f.take(torch.ones(n + 1, dtype=torch.bool))
    assert f.take([-1]).instance.equal(f.take([n - 1]).instance)
    for wrong in (n, -n - 1):
        with pytest.raises(ValueError, match=rf"`take` got the rows {min(wrong, 0)} to {max(wrong, 0)} of a map of {n}\. Rows are counted from 0\. Take rows below {n}\."):
            f.take([0, wrong])
