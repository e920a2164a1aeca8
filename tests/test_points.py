"""Points inside a tick: found by name, seen only where asked, and nothing is left behind."""

import threading
from collections import OrderedDict, namedtuple
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.hooks import RemovableHandle

import attractorlab as al
from attractorlab.editing import Edit
from attractorlab.maps import LatentMap, Update, in_turn
from attractorlab.points import Call, Point, Sight, Tap, Watch, find, names, survey
from tests.tapped import Plus, Two, condition, counter, made, unchanged

Pair = namedtuple("Pair", "first second")


class Many(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, z):
        return {
            "tuple": (None, z + 1, z),
            "list": [z + 1, z],
            "named": Pair(z + 1, z),
            "dict": OrderedDict(a=z + 1),
            "max": torch.max(z, 1),
        }[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "list", "named", "max"])
def test_a_module_of_many_outputs_is_known_by_its_first_tensor(kind) -> None:
    model = nn.ModuleDict({"many": Many(kind)})

    def rule(z, x):
        out = model["many"](z["z"])
        first = next(one for one in out if one is not None)
        assert type(out) is type(Many(kind)(z["z"]))
        return {"z": first.reshape(len(first), -1).expand_as(z["z"])}

    f = LatentMap(rule, {}, model=model)
    z = {"z": torch.zeros(2, 3)}
    traj = al.trace(
        f,
        z,
        ticks=1,
        keep=al.every(1),
        tap=Tap(model, "many"),
        edits=[al.steer("many", torch.tensor(5.0), ticks=0, scale=1.0)],
        continuation=al.free_running,
    )
    assert (traj.states["z"][1] == traj.taps["many"][0, 0].flatten()[0]).all() and traj.states["z"][1, 0, 0] == (5 if kind == "max" else 6)


def test_a_module_without_a_tensor_is_refused_and_not_listed() -> None:
    model = nn.ModuleDict({"many": Many("dict")})
    f = LatentMap(lambda z, x: {"z": model["many"](z["z"])["a"]}, {}, model=model)
    z = {"z": torch.zeros(2, 3)}
    assert [point.name for point in f.names(z)] == ["z"]
    with pytest.raises(ValueError, match=r"many gives a OrderedDict\. .*a tensor, or a tuple or list.*Name a submodule of it"):
        al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "many"))


def test_names_list_every_point_with_shape_axes_and_when_it_fires(generator) -> None:
    _, f, z = made(4, generator)
    listed = f.names(z)
    assert listed == (
        Point("z_H", "leaf", (3,), ("width",), ("H",)),
        Point("z_L", "leaf", (3,), ("width",), ("L0", "L1")),
        Point("cell", "module", (3,), ("width",), ("L0", "L1", "H")),
        Point("cell.inner", "module", (3,), ("width",), ("L0", "L0", "L1", "L1", "H", "H")),
    )
    lines = repr(listed).splitlines()
    assert lines[0].split() == ["name", "kind", "shape", "of", "one", "row", "fires"] and lines[3].split() == [
        "cell",
        "module",
        "width",
        "3",
        "L0,",
        "L1,",
        "H",
    ]
    assert len(lines) == 5


def test_axes_of_a_module_are_named_after_the_axes_of_the_state() -> None:
    class Turn(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2)

    model = nn.ModuleDict({"turn": Turn(), "wide": nn.Linear(2, 7)})

    def rule(z, x):
        model["wide"](z["z"])
        return {"z": model["turn"](z["z"]).transpose(1, 2), "c": z["c"]}

    f = LatentMap(rule, {}, model=model)
    points = {point.name: (point.shape, point.dims) for point in f.names({"z": torch.zeros(1, 5, 2), "c": torch.zeros(1, 4, 6, 8, 5)})}
    assert points["z"] == ((5, 2), ("site", "width")) and points["c"] == ((4, 6, 8, 5), ("axis0", "axis1", "site", "width"))
    # 5 is the number of sites of one leaf and the width of another.
    assert points["turn"] == ((2, 5), ("width", "axis1")) and points["wide"] == ((5, 7), ("axis0", "axis1"))


def test_every_named_point_can_be_tapped_and_edited(generator) -> None:
    model, f, z = made(2, generator)
    for point in f.names(z):
        traj = al.trace(f, z, ticks=1, keep=al.every(1), tap=Tap(model, point.name))
        assert traj.calls[point.name] == point.fires and traj.taps[point.name].shape[3:] == point.shape
        al.trace(f, z, ticks=1, keep=al.every(1), edits=[al.ablate(point.name, ticks=0, calls="*")], continuation=al.free_running)


def test_a_module_known_by_two_names_is_recorded_once() -> None:
    one = Plus()
    model = nn.ModuleDict({"a": one, "b": one})
    f = LatentMap(lambda z, x: {"z": model["b"](z["z"])}, {}, model=model)
    z = {"z": torch.zeros(1, 1)}
    assert list(al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "*")).taps) == ["z", "a"]
    assert list(al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "b")).taps) == ["b"]


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest_names(generator) -> None:
    model, f, z = made(2, generator)

    def traced(*patterns, of=model):
        return al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(of, *patterns))

    with pytest.raises(
        ValueError, match=r"`Tap` got 'cell.iner', which names no point\. .*: cell\.inner.*See all of them with `f\.names\(z\)`"
    ):
        traced("cell", "cell.iner")
    with pytest.raises(ValueError, match=r"'cell' got|`Tap` got 'cell', which names no point \(there is no model\)"):
        traced("cell", of=None)
    with pytest.raises(ValueError, match=r"`Tap` got no pattern\. .*Use Tap\(model, '\*'\)"):
        Tap(model)
    with pytest.raises(ValueError, match=r"`Tap` got 'z_X', which names no point\. .*z_[LH]"):
        traced("z_X")


def test_a_module_that_does_not_run_in_a_tick_is_an_error_that_says_so(generator) -> None:
    model, f, z = made(2, generator)
    for of, pattern in ((model, "head"), (model, "*.idle"), (Two(3, generator), "cell")):
        with pytest.raises(
            ValueError,
            match=r"`Tap` got '.*', and (head|cell.idle|cell) did not run in a tick\. .*not on a copy of it\. Name one of z_H, z_L, cell, cell\.inner",
        ):
            al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(of, pattern))
    assert "cell.idle" not in al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell.*")).taps


def test_a_name_of_a_leaf_and_a_submodule_is_refused() -> None:
    model = nn.ModuleDict({"z": Plus()})
    f = LatentMap(lambda z, x: {"z": model["z"](z["z"])}, {}, model=model)
    with pytest.raises(ValueError, match=r"'z' is both a leaf of the state and a submodule\. A name means one point\. Rename one of them"):
        al.trace(f, {"z": torch.zeros(1, 1)}, ticks=1, keep=al.only_last(), tap=Tap(model, "z"))


class Fickle(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Plus()

    def forward(self, x):
        return self.part(self.part(x)) if bool((x > 2).any()) else self.part(x)


def test_a_point_that_runs_unequally_often_is_refused() -> None:
    model = Fickle()
    f = LatentMap(lambda z, x: {"z": model(z["z"])}, {}, model=model)
    before = condition(model)
    with pytest.raises(
        ValueError, match=r"part ran 2 times at tick 3, and 1 times in a tick before\. .*equally often.*Tap a point that does"
    ):
        al.trace(f, {"z": torch.zeros(1, 1)}, ticks=9, keep=al.every(1), tap=Tap(model, "part"))
    sinking = replace(f, rule=lambda z, x: {"z": model(z["z"]) - 3})
    with pytest.raises(ValueError, match=r"part ran 1 times at tick 2, and 2 times"):
        al.trace(sinking, {"z": torch.full((1, 1), 4.0)}, ticks=9, keep=al.every(1), tap=Tap(model, "part"))
    unchanged(before, model)


def test_a_point_without_a_row_axis_is_refused() -> None:
    class Table(nn.Module):
        def forward(self):
            return torch.ones(4, 2)

    model = nn.ModuleDict({"table": Table()})
    f = LatentMap(lambda z, x: {"z": z["z"] + model["table"]()}, {}, model=model)
    z = {"z": torch.zeros(4, 4, 2)}
    with pytest.raises(ValueError, match=r"table gives \(4, 2\) in a tick of 2 rows\. .*rows first\. Name another point"):
        al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "table"))
    assert [point.name for point in f.names(z)] == ["z"]


class Boom(RuntimeError):
    pass


class Bomb(nn.Module):
    """Passes on what it is given until its k-th call."""

    def __init__(self):
        super().__init__()
        self.left = -1
        self.weight = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise Boom
        return x * self.weight


class Bombs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Bomb(), Bomb()
        self.b.eval()
        self.a.register_forward_hook(lambda module, arguments, out: None)  # somebody else's: it stays

    def map(self):
        def low(z, x):
            return {**z, "z": self.a(z["z"])}

        def high(z, x):
            return {**z, "z": self.b(self.a(z["z"]))}

        updates = (Update("L", ("z",), low), Update("H", ("z",), high))
        return LatentMap(in_turn(updates), {}, updates=updates, model=self)


@settings(max_examples=60, deadline=None)
@given(
    where=st.sampled_from(["call", "edit", "between", "clean-up", "call and clean-up", "install", "nowhere"]),
    k=st.integers(1, 40),
    rest=st.booleans(),
    clamp=st.booleans(),
)
def test_nothing_leaks_whatever_fails(where, k, rest, clamp) -> None:
    model = Bombs()
    f, z = model.map(), {"z": torch.ones(3, 2)}
    left = [k]

    def fail(value, call):
        left[0] -= 1
        if left[0] == 0:
            raise Boom
        return value

    before = condition(model)
    edits = {"edit": [Edit("b", fail, "fail", None), al.freeze("z", ticks=2, calls="L")], "between": [Edit("z", fail, "fail", None)]}.get(
        where, []
    )
    model.a.left = k if where.startswith("call") else -1
    remove, install, tries = RemovableHandle.remove, nn.Module.register_forward_hook, [k % 5 + 1]

    def broken(self, *arguments, **options):
        tries[0] -= 1
        if tries[0] == 0:
            raise Boom
        return (remove if "clean-up" in where else install)(self, *arguments, **options)

    fell = False
    with pytest.MonkeyPatch.context() as patched:
        if "clean-up" in where:
            patched.setattr(RemovableHandle, "remove", broken)
        if where == "install":
            patched.setattr(nn.Module, "register_forward_hook", broken)
        try:
            al.trace(
                f,
                z,
                ticks=6,
                keep=al.every(1),
                rest=1e-6 if rest and not edits else None,
                tap=Tap(model, "*"),
                edits=edits,
                continuation=(al.clamped if clamp else al.free_running) if edits else None,
            )
        except Boom:
            fell = True
        except BaseExceptionGroup as group:
            fell = group.subgroup(Boom) is not None
    model.a.left = -1
    assert fell or where == "nowhere" or k > 3
    unchanged(before, model)
    assert al.trace(f, z, ticks=1, keep=al.only_last()).states["z"].equal(z["z"][None])


def test_an_error_of_a_users_edit_says_where_it_happened_and_keeps_its_traceback(generator) -> None:
    _model, f, z = made(2, generator)

    def fail(value, call):
        raise Boom("mine")

    with pytest.raises(Boom, match="mine") as caught:
        al.trace(f, z, ticks=5, keep=al.only_last(), edits=[Edit("cell", fail, "my deed", 3, "H")], continuation=al.free_running)
    assert caught.value.__notes__ == ["in edit 'my deed' at cell, tick 3, call 2 (H)"]
    assert caught.traceback[-1].name == "fail"
    with pytest.raises(Boom) as caught:
        al.trace(f, z, ticks=5, keep=al.only_last(), edits=[Edit("z_H", fail, "my deed", 3)], continuation=al.free_running)
    assert caught.value.__notes__ == ["in edit 'my deed' at z_H, tick 3, call 0"]


def test_when_a_run_and_its_clean_up_fail_the_first_error_is_raised_with_a_note(monkeypatch) -> None:
    model = nn.ModuleDict({"a": Plus(), "b": Plus()})

    def broken(self):
        raise Boom("clean-up")

    monkeypatch.setattr(RemovableHandle, "remove", broken)
    with pytest.raises(KeyError) as caught, Watch([Sight(name, one, lambda value, call: value) for name, one in model.items()]):
        raise KeyError("first")
    assert "2 hooks could not be removed in the usual way (Boom('clean-up'))" in caught.value.__notes__[0]
    with pytest.raises(BaseExceptionGroup, match="they are gone all the same"), Watch([Sight("a", model["a"], lambda value, call: value)]):
        pass
    assert not model["a"]._forward_hooks and not model["b"]._forward_hooks


def test_hooks_of_others_stay_and_their_changes_are_seen() -> None:
    model, f, z = counter()
    handle = model.one.register_forward_hook(lambda module, arguments, out: out + 100)
    traj = al.trace(f, z, ticks=1, keep=al.every(1), tap=Tap(model, "one"))
    assert traj.taps["one"][0, :, 0, 0].tolist() == [101, 202]
    assert list(model.one._forward_hooks) == [handle.id]


def test_what_runs_outside_the_ticks_is_not_recorded() -> None:
    """The readout, an edit and a transform call the tapped module too."""
    model, f, z = counter()
    calls = []
    f = replace(f, readout=lambda z: {"next": model.one(z["z"])})

    def change(value, call):
        model.one(value)
        f(z)
        f.jvp(z, z)
        calls.append(call.call)
        return value

    plain = al.trace(f, z, ticks=2, keep=al.every(1), tap=Tap(model, "one"))
    busy = al.trace(
        f, z, ticks=2, keep=al.every(1), tap=Tap(model, "one"), edits=[Edit("one", change, "look", None)], continuation=al.free_running
    )
    assert busy.taps["one"].equal(plain.taps["one"]) and calls == [0, 1] * 3


def test_hooks_rest_under_transforms_and_in_other_threads() -> None:
    model, f, z = counter()
    seen = []

    def see(value, call):
        seen.append(tuple(value.shape))
        return value

    def rule(state, x):
        torch.func.vmap(lambda row: model.one(row))(state["z"])
        other = threading.Thread(target=model.one, args=(state["z"],))
        other.start()
        other.join()
        return {"z": model.one(state["z"])}

    with Watch([Sight("one", model.one, see)]) as watch:
        watch.tick(replace(f, rule=rule), z, tick=0)
        assert watch.counts() == [1]
    assert seen == [(3, 2)]


def test_compiled_modules_are_recorded(monkeypatch) -> None:
    import torch._dynamo

    model = nn.ModuleDict({"one": nn.Sequential(Plus(), Plus())})
    model["one"].compile(backend="eager")
    f = LatentMap(lambda z, x: {"z": model["one"](z["z"])}, {}, model=model)
    z = {"z": torch.zeros(3, 2)}
    f(z)  # compiled before there is a hook
    traj = al.trace(f, z, ticks=2, keep=al.every(1), tap=Tap(model, "one.0", "one"))
    assert traj.taps["one.0"][:, 0, 0, 0].tolist() == [1, 3, 5] and traj.taps["one"][:, 0, 0, 0].tolist() == [2, 4, 6]


def test_find_survey_and_names_are_what_trace_uses(generator) -> None:
    model, f, z = made(2, generator)
    assert list(find(["z_?", "cell*"], model, z, caller="here")) == ["z_H", "z_L", "cell", "cell.inner", "cell.idle"]
    found = survey(f, z, [("z_L", None)], all_updates=True)
    assert found["z_L"].calls == ("L0", "L1", "H") and found["z_L"].shape == (3,)
    assert names(f, z) == f.names(z)
    assert Call("a", 0, 0, "").first is None
