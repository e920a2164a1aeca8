"""Every noun comes back from its dataset, and from the disk, as it went: values, dtypes, words and empty places."""

import json
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from attractorlab.store import NOUNS, Run, from_dataset, to_dataset
from attractorlab.types import (
    Origin,
)
from tests import stored_attempts, stored_nouns
from tests.stored_nouns import basins, trajectory

EXAMPLES = stored_nouns.EXAMPLES | stored_attempts.EXAMPLES


def same(a, b, where=""):
    """Equal to the bit, types included."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (a, b))
        if a.is_floating_point():  # a NaN is a NaN, whatever its payload
            assert a.isnan().equal(b.isnan()), where
            a, b = (torch.where(t.isnan(), 0, t) for t in (a, b))
        assert a.contiguous().view(bits[a.element_size()]).equal(b.contiguous().view(bits[b.element_size()])), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif type(a) in NOUNS.values() or isinstance(a, Origin):
        for one in fields(a):
            same(getattr(a, one.name), getattr(b, one.name), f"{where}.{one.name}")
    else:
        assert a == b or (a != a and b != b), where


def test_every_noun_has_an_example():
    assert {type(noun) for noun in EXAMPLES.values()} == set(NOUNS.values())


def test_every_noun_is_read_as_it_was_written(tmp_path):
    run = Run.create(tmp_path / "run", config={}, units=["all"])
    nouns = {f"noun {k}": noun for k, noun in enumerate(EXAMPLES.values())}
    run.write("all", nouns)
    again = Run(tmp_path / "run").read("all")
    assert set(again) == set(nouns)
    for name, noun in nouns.items():
        same(noun, again[name], f"{name} {type(noun).__name__}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_dataset_names_its_dimensions_and_gives_the_noun_back(name):
    data = to_dataset(EXAMPLES[name])
    same(EXAMPLES[name], from_dataset(data), name)
    assert data.attrs["noun"] == type(EXAMPLES[name]).__name__


def test_other_tools_see_the_words_of_the_nouns():
    data = to_dataset(trajectory())
    assert data["residual"].dims == ("time", "row") and data["states.z_H"].dims[:2] == ("kept", "row")
    tapped = to_dataset(EXAMPLES["tapped and edited trajectory"])
    assert tapped["taps.z_L"].dims[:3] == ("kept", "call.z_L", "row") and tapped.sizes["call.layers.0.mlp"] == 3
    assert to_dataset(basins())["share_if"].dims == ("attractor", "bound")
    assert json.loads(data.attrs["origin"])["weights"] == "ab12"


def test_other_tools_open_a_segment(tmp_path):
    import xarray

    run = Run.create(tmp_path / "run", config={}, units=["a"])
    run.write("a", {"trajectory": trajectory()})
    with xarray.open_datatree(tmp_path / "run" / "segments" / "a.zarr", engine="zarr", consolidated=False) as tree:
        assert tree["trajectory"]["residual"].sizes == {"time": 4, "row": 3}
