"""Arithmetic on states agrees with the arithmetic of the flat vectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attractorlab import trees
from attractorlab.types import State

quick = settings(max_examples=40, deadline=None)
shapes = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3)
counts = st.integers(1, 5)
seeds = st.integers(0, 2**31)


def state(shape: list[list[int]], rows: int, seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    return {f"leaf {i}": torch.randn(rows, *rest, generator=g, dtype=torch.float64) for i, rest in enumerate(shape)}


def same(u: State, v: State) -> bool:
    return list(u) == list(v) and all(torch.equal(u[name], v[name]) for name in u)


@quick
@given(shapes, counts, seeds)
def test_unflatten_undoes_flatten(shape: list[list[int]], rows: int, seed: int) -> None:
    z = state(shape, rows, seed)
    flat = trees.flatten(z)
    assert flat.shape == (trees.rows(z), trees.size(z)) == (rows, trees.size(z))
    assert same(trees.unflatten(flat, z), z)
    assert same(trees.unflatten(flat[:1], z), trees.take(z, slice(0, 1)))


@quick
@given(shapes, counts, seeds)
def test_arithmetic_is_that_of_the_flat_vectors(shape: list[list[int]], rows: int, seed: int) -> None:
    u, v = state(shape, rows, seed), state(shape, rows, seed + 1)
    a, b = trees.flatten(u), trees.flatten(v)
    by = torch.arange(1.0, rows + 1, dtype=torch.float64)
    assert torch.equal(trees.flatten(trees.add(u, v)), a + b)
    assert torch.equal(trees.flatten(trees.sub(u, v)), a - b)
    assert torch.equal(trees.flatten(trees.scale(u, -2.0)), -2 * a)
    assert torch.equal(trees.flatten(trees.scale(u, by)), by[:, None] * a)
    torch.testing.assert_close(trees.dot(u, v), (a * b).sum(1))
    torch.testing.assert_close(trees.norm(u), a.norm(dim=1))
    torch.testing.assert_close(trees.dot(u, u), trees.norm(u).square())
    assert torch.equal(trees.distance(u, v), trees.norm(trees.sub(u, v)))


@pytest.mark.parametrize("kind", trees.HALF)
def test_lengths_of_half_precision_are_not_rounded_to_it(kind: torch.dtype) -> None:
    u, v = (trees.to(state([[40], [3, 5]], 200, seed), kind) for seed in (0, 1))
    exact = trees.distance(trees.to(u, torch.float64), trees.to(v, torch.float64))
    assert trees.norm(u).dtype == trees.distance(u, v).dtype == torch.float32
    torch.testing.assert_close(trees.norm(u).double(), trees.norm(trees.to(u, torch.float64)), rtol=1e-6, atol=0)
    torch.testing.assert_close(trees.distance(u, v).double(), exact, rtol=1e-6, atol=0)
    assert trees.norm({"large": torch.full((1, 4), 6e4, dtype=torch.float16)}).tolist() == [pytest.approx(2 * 6e4, rel=1e-3)]  # beyond the largest number of float16


@quick
@given(shapes, counts, seeds)
def test_rows_are_chosen_joined_and_mixed_row_by_row(shape: list[list[int]], rows: int, seed: int) -> None:
    u, v = state(shape, rows, seed), state(shape, rows, seed + 1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert same(trees.take(trees.take(u, order), torch.argsort(order)), u)
    assert same(trees.take(trees.cat([u, v]), slice(rows, 2 * rows)), v)
    mask = order % 2 == 0
    mixed = trees.where(mask, u, v)
    assert same(trees.take(mixed, mask), trees.take(u, mask))
    assert same(trees.take(mixed, ~mask), trees.take(v, ~mask))


@quick
@given(shapes, counts, seeds)
def test_one_bad_number_marks_its_row_alone(shape: list[list[int]], rows: int, seed: int) -> None:
    z = {name: leaf.clone() for name, leaf in state(shape, rows, seed).items()}
    assert bool(trees.finite(z).all())
    bad = seed % rows
    z[f"leaf {seed % len(shape)}"].reshape(rows, -1)[bad, -1] = float("nan") if seed % 2 else float("inf")
    assert trees.finite(z).tolist() == [row != bad for row in range(rows)]


def test_to_casts_every_leaf() -> None:
    z = trees.to(state([[2], [3]], 2, 0), torch.float32)
    assert {leaf.dtype for leaf in z.values()} == {torch.float32}


def test_normal_numbers_follow_the_generator_and_the_dtype() -> None:
    z = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4, dtype=torch.float64)}
    draws = [trees.normal_like(z, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert same(draws[0], draws[1]) and not same(draws[0], draws[2])
    assert draws[0]["a"].dtype == torch.float32 and draws[0]["b"].dtype == torch.float64
    sample = trees.normal_like({"a": torch.zeros(100, 1000)}, generator=torch.Generator().manual_seed(0))["a"]
    assert abs(float(sample.mean())) < 0.02 and abs(float(sample.std()) - 1) < 0.02


def test_leaves_that_disagree_on_their_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`rows` got leaves with \{'a': 2, 'b': 3\} rows\. .*same rows\. Make the first axis"):
        trees.rows({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="`rows` got leaves with no rows"):
        trees.rows({})
