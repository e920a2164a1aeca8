"""The nouns: named dimensions, rows by instance, indexing, and result codes."""

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
import torch

from attractorlab import types
from attractorlab.types import Convergence, FixedPointSet, Instance, NotConvergedError, Origin, Result, Spectrum, Trajectory, dims_of


def test_dimension_names_are_read_from_the_annotations() -> None:
    assert dims_of(Trajectory) == {
        "states": ("kept", "row", "..."),
        "kept": ("kept",),
        "ticks": ("time",),
        "residual": ("time", "row"),
        "recurrence": ("lag", "row"),
        "readouts": ("time", "row", "..."),
        "last_tick": ("row",),
        "result": ("row",),
        "instance": ("row",),
        "start": ("row",),
        "taps": ("kept", "call", "row", "..."),
    }
    assert dims_of(Spectrum)["eigenvalues"] == ("point", "mode")
    assert dims_of(Convergence)["solved"] == dims_of(Convergence)["residual"] == ("time", "row")  # also when it may be None
    assert dims_of(Instance)["targets"] == ("row", "site")
    assert dims_of(Origin) == {}


def test_every_field_of_a_noun_that_holds_numbers_names_its_dimensions() -> None:
    plain = {"Origin", "Finding", "Report", "HasRows"}
    nouns = [noun for noun in vars(types).values() if is_dataclass(noun) and isinstance(noun, type) and noun.__name__ not in plain]
    assert len(nouns) >= 10
    for noun in nouns:
        # A bare state, such as the centre of a slice, has the dimensions of the model's leaves.
        tensors = {one.name for one in fields(noun) if "Tensor" in str(one.type) and one.type != types.State}
        assert tensors and tensors == set(dims_of(noun)), noun.__name__


def instances() -> Instance:
    return Instance(
        inputs=torch.arange(8).reshape(4, 2),
        targets=torch.arange(8).reshape(4, 2) + 1,
        ids=("a", "b", "c", "d"),
        task="toy",
        difficulty=torch.tensor([0.0, 1.0, 2.0, 3.0]),
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 3), ["b", "c"]),
        ([3, 0], ["d", "a"]),
        (torch.tensor([3, 0]), ["d", "a"]),
        (torch.tensor([True, False, False, True]), ["a", "d"]),
        (slice(0, 0), []),
        ((-1,), ["d"]),
    ],
)
def test_instances_are_chosen_with_all_that_belongs_to_them(rows: slice, expected: list[str]) -> None:
    whole = instances()
    some = whole[rows]
    at = [whole.ids.index(name) for name in expected]
    assert some.ids == tuple(expected) and len(some) == len(expected) and some.task == "toy"
    assert some.targets is not None and some.difficulty is not None and whole.targets is not None
    assert some.inputs.tolist() == [whole.inputs.tolist()[i] for i in at]
    assert some.targets.tolist() == [whole.targets.tolist()[i] for i in at]
    assert some.difficulty.tolist() == [float(i) for i in at]


def test_instances_without_answers_stay_without() -> None:
    bare = replace(instances(), targets=None, difficulty=None)[:2]
    assert bare.targets is None and bare.difficulty is None and len(bare) == 2


def points(codes: list[Result]) -> FixedPointSet:
    n = len(codes)
    count = torch.arange(n)
    return FixedPointSet(
        states={"z": count.float()[:, None].expand(n, 3)},
        residual=count * 1e-3,
        error=count * 1e-4,
        moved=count * 1e-2,
        result=torch.tensor([code.code for code in codes], dtype=torch.int64),
        steps=count,
        row=count,
        instance=count // 2,
        start=count % 2,
        tol=1e-6,
        clock="tick",
        origin=Origin(model="toy"),
    )


def test_points_are_chosen_with_every_field() -> None:
    whole = points([Result.CONVERGED, Result.MAX_STEPS, Result.CONVERGED, Result.NONFINITE])
    assert whole.converged.tolist() == [True, False, True, False]
    for chosen in (whole[whole.converged], whole[torch.tensor([0, 2])], whole[0:3:2]):
        assert len(chosen) == 2
        assert chosen.states["z"][:, 0].tolist() == [0.0, 2.0]
        for name, dims in dims_of(FixedPointSet).items():
            if name != "states":
                assert dims == ("point",) and torch.equal(getattr(chosen, name), getattr(whole, name)[[0, 2]]), name
        assert (chosen.tol, chosen.clock, chosen.origin) == (whole.tol, whole.clock, whole.origin)


def test_require_passes_converged_points_and_counts_the_others() -> None:
    good = points([Result.CONVERGED] * 3)
    assert good.require() is good
    bad = points([Result.CONVERGED, Result.MAX_STEPS, Result.MAX_STEPS, Result.NONFINITE])
    with pytest.raises(
        NotConvergedError,
        match=r"`require` found \{'CONVERGED': 1, 'MAX_STEPS': 2, 'NONFINITE': 1\} among 4 points\. Only converged.*keep `points\[points\.converged\]`",
    ):
        bad.require()
    assert bad[bad.converged].require().row.tolist() == [0]


def trajectory(instance: list[int], start: list[int]) -> Trajectory:
    n = len(instance)
    row = torch.arange(n)
    return Trajectory(
        states={"z": torch.stack([row.float(), -row.float()])[..., None]},
        kept=torch.tensor([0, 1]),
        ticks=torch.tensor([0, 1]),
        residual=torch.stack([row.float(), 10.0 * row]),
        recurrence=torch.zeros(1, n),
        readouts={},
        last_tick=torch.ones(n, dtype=torch.int64),
        result=torch.full((n,), Result.COMPLETED.code),
        instance=torch.tensor(instance),
        start=torch.tensor(start),
        clock="tick",
        origin=Origin(),
    )


def test_rows_split_into_instances_and_starts_in_any_order() -> None:
    # Rows 0..5 lie shuffled: instance 7 has rows 1, 4, 2 as its starts 0, 1, 2; instance 9 has rows 5, 0, 3.
    traj = trajectory([9, 7, 7, 9, 7, 9], [1, 0, 2, 2, 1, 0])
    assert traj.by_instance("last_tick").shape == (2, 3)
    assert traj.by_instance("residual").tolist() == [[[1.0, 4.0, 2.0], [5.0, 0.0, 3.0]], [[10.0, 40.0, 20.0], [50.0, 0.0, 30.0]]]
    assert traj.by_instance("start").tolist() == [[0, 1, 2]] * 2
    assert traj.last["z"][:, 0].tolist() == [-0.0, -1.0, -2.0, -3.0, -4.0, -5.0]


def test_a_run_that_is_not_rectangular_has_no_table() -> None:
    with pytest.raises(ValueError, match=r"`by_instance` got between 1 and 2 starts an instance\. .*as many starts.* Use the `instance` coordinate"):
        trajectory([0, 0, 1], [0, 1, 0]).by_instance("residual")


def test_result_codes_go_there_and_back_and_are_sentences() -> None:
    assert [Result.of(result.code) for result in Result] == list(Result)
    assert sorted(result.code for result in Result) == list(range(len(Result)))
    assert all(result.value.endswith(".") and " " in result.value for result in Result)
    # Codes are written to disk: a new result goes to the end.
    assert [result.name for result in Result] == ["CONVERGED", "MAX_STEPS", "DIVERGED", "NONFINITE", "COMPLETED", "HALTED"]


def test_nouns_are_frozen_and_complete() -> None:
    with pytest.raises(FrozenInstanceError):
        instances().task = "other"  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing"):
        Spectrum(method="dense")  # type: ignore[call-arg]
