"""What every analysis asks of a map: one dtype, and no broken law that one row shows."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from attractorlab import trees
from attractorlab.dynamics.attempts import Halting, attempt, elastic
from attractorlab.dynamics.basins import basin_slice, by_end_state, estimate_basins
from attractorlab.dynamics.door import check_at
from attractorlab.dynamics.fixed_points import by_iteration, find_fixed_points
from attractorlab.dynamics.lyapunov import lyapunov_exponents
from attractorlab.dynamics.non_normality import non_normality
from attractorlab.dynamics.periodic import find_periodic_orbits
from attractorlab.dynamics.recorder import only_last, trace
from attractorlab.dynamics.scaling import scaling_of
from attractorlab.dynamics.settling import settle
from attractorlab.dynamics.spectrum import spectrum
from attractorlab.dynamics.traces import traces
from attractorlab.maps import LatentMap, strobe
from attractorlab.models import load
from attractorlab.tasks import load as puzzles
from attractorlab.types import State

ANALYSES: dict[str, Callable[[LatentMap, State], object]] = {
    "spectrum": lambda f, z: spectrum(f, z, k=1),
    "find_fixed_points": lambda f, z: find_fixed_points(f, z, tol=1e-6, max_steps=3),
    "lyapunov_exponents": lambda f, z: lyapunov_exponents(f, z, k=1, ticks=2),
    "non_normality": lambda f, z: non_normality(f, z, ticks=2),
}
W = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def cell(z: State) -> torch.Tensor:
    return torch.tanh(z["z"] @ (W / 6**0.5))


def noisy(z: State, x: object) -> State:
    return {"z": cell(z) + 1e-3 * torch.randn_like(z["z"])}


def in_place(z: State, x: object) -> State:
    return {"z": z["z"].mul_(0.5).add_(1)}


def mixing(z: State, x: object) -> State:
    return {"z": cell(z) - 0.1 * z["z"].mean(0)}


def detached(z: State, x: object) -> State:
    return {"z": cell({"z": z["z"].detach()}) + 0.0 * z["z"]}


def half_detached(z: State, x: object) -> State:
    return {"z": cell({"z": torch.cat([z["z"][:, :3].detach(), z["z"][:, 3:]], dim=1)})}


BROKEN = {
    noisy: r"takes one state to places .* apart, run alone, twice\. The same state gives the same tick.*Turn off noise",
    mixing: r"takes one state to places .* apart, run alone and beside other rows\. A row depends on itself alone",
    detached: r"whose derivative misses 100 % of how it changes.*Leave out `detach`",
    half_detached: r"whose derivative misses \d+ % of how it changes",
}


@pytest.mark.parametrize("caller", ANALYSES)
@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_a_map_that_breaks_a_law_is_refused_by_every_analysis(caller, rule, generator):
    z = {"z": torch.randn(4, 6, dtype=torch.float64, generator=generator)}
    with pytest.raises(ValueError, match=rf"`{caller}` got a map.*{BROKEN[rule]}"):
        ANALYSES[caller](LatentMap(rule, {}), z)


def readable(f: LatentMap) -> LatentMap:
    return replace(f, readout=lambda z: {"answer": z["z"].round().long()})


RUNS: dict[str, Callable[[LatentMap, State], object]] = {
    "trace": lambda f, z: trace(f, z, ticks=3, keep=only_last()),
    "settle": lambda f, z: settle(f, z, tol=1e-6, max_ticks=9),
    "attempt": lambda f, z: attempt(readable(f), z, ticks=3, read=[3], slots=2, halting=None, hold=None),
    "elastic": lambda f, z: elastic(readable(f), z, ticks=3, read=[3], slots=2, halting=Halting(0.0, 1, 1e-6)),
    "estimate_basins": lambda f, z: estimate_basins(f, z, label=by_end_state(1e-2), tol=1e-6, max_ticks=9, level=0.95),
    "basin_slice": lambda f, z: basin_slice(f, center={"z": z["z"][:1]}, axes={"z": z["z"][1:3]}, extent=1.0, resolution=3, label=by_end_state(1e-2), tol=1e-6, max_ticks=9),
}


def normalised_over_rows(z: State, x: object) -> State:
    return {"z": cell(z) + 3 * (z["z"] - z["z"].mean(0)) / z["z"].std(0)}


@pytest.mark.parametrize("run", RUNS)
def test_a_map_that_writes_into_its_argument_or_gives_no_state_like_it_is_not_even_run(run, generator):
    z = {"z": torch.randn(20, 6, dtype=torch.float64, generator=generator)}
    before = z["z"].clone()
    for rule, said in ((in_place, "writes into leaf 'z'"), (lambda z, x: {**z, "y": z["z"]}, r"to \['y', 'z'\]"), (lambda z, x: {"z": z["z"].float()}, "states in float64 for a map in float32")):
        with pytest.raises(ValueError, match=rf"`(trace|settle|attempt|elastic)` got .*{said}"):
            RUNS[run](LatentMap(rule, {}), z)
    assert z["z"].equal(before)
    RUNS[run](LatentMap(detached, {}), z)  # no derivative is asked for
    drive = {"x": torch.ones(20, 1)}  # of another dtype, which is no fault where nothing but the map is run
    settle(LatentMap(lambda z, x: {"z": cell(z)}, drive, instance=torch.arange(20), start=torch.zeros(20).long()), z, tol=1e-6, max_ticks=99)


@pytest.mark.parametrize("run", RUNS)
def test_what_judges_rest_refuses_chance_and_mixed_rows_and_what_records_does_not(run, generator):
    z = {"z": torch.randn(20, 6, dtype=torch.float64, generator=generator)}
    for rule, said in ((noisy, "run twice\\. .*Turn off noise"), (normalised_over_rows, "run with and without other rows\\. A row depends on itself alone")):
        if run in ("trace", "attempt", "elastic"):
            RUNS[run](LatentMap(rule, {}), z)
        else:
            with pytest.raises(ValueError, match=rf"`settle` got a map that takes one state to places .* apart, {said}"):
                RUNS[run](LatentMap(rule, {}), z)
    half = LatentMap(lambda z, x: {"z": z["z"] + torch.randn_like(z["z"])}, {})
    with pytest.raises(ValueError, match="run twice"):
        settle(half, {"z": z["z"].bfloat16()}, tol=1e-2, max_ticks=9)


def test_sound_maps_that_amplify_rounding_or_jump_are_run(generator):
    w = 3 * torch.randn(128, 128, generator=generator) / 128**0.5
    drive = {"x": torch.randn(32, 128, generator=generator)}
    chaotic = strobe(LatentMap(lambda z, x: {"z": torch.tanh(z["z"] @ w + x["x"])}, drive, instance=torch.arange(32), start=torch.zeros(32).long()), 100)
    settle(chaotic, {"z": torch.zeros(32, 128)}, tol=1e-5, max_ticks=2)
    far = 100 * torch.randn(32, 128, generator=generator)
    cancelled = LatentMap(lambda z, x: {"z": torch.tanh(0.5 * z["z"] + (x["x"] @ w - x["y"]))}, {"x": far, "y": far @ w}, instance=torch.arange(32), start=torch.zeros(32).long())
    settle(cancelled, {"z": torch.zeros(32, 128)}, tol=1e-5, max_ticks=2)
    for seed in range(40):
        patterns = torch.randn(10, 100, generator=torch.Generator().manual_seed(seed)).sign()
        hopfield = LatentMap(lambda z, x: {"z": (z["z"] @ (patterns.T @ patterns)).sign()}, {})  # noqa: B023
        settle(hopfield, {"z": torch.randn(20, 100, generator=generator).sign()}, tol=1e-5, max_ticks=2)
    closed_over = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    z = {"z": torch.randn(20, 6, dtype=torch.float64, generator=generator)}
    assert len(trace(LatentMap(lambda z, x: {"z": torch.tanh(z["z"] + closed_over)}, {}), z, ticks=3, keep=only_last()).start) == 20


def test_what_is_no_state_is_refused_by_everything_that_takes_one(generator):
    f, h = LatentMap(lambda z, x: {"z": 0.5 * z["z"]}, {}), torch.randn(4, 6, dtype=torch.float64, generator=generator)
    for use in (*RUNS.values(), *ANALYSES.values()):
        if use is not RUNS["basin_slice"]:  # which takes points and directions apart
            with pytest.raises(ValueError, match=r"`rows` got the leaf 'z' as a Tensor of shape \[4\] for a state\. A state maps names to tensors, each \[row \.\.\.\]"):
                use(f, {"z": h[:, 0]})
    for use in (RUNS["settle"], RUNS["estimate_basins"]):
        with pytest.raises(ValueError, match=r"`settle` got states in int64\. Rest is judged between floating-point numbers\. Cast the state"):
            use(f, {"z": h.long()})


def test_other_things_than_a_mapping_of_tensors_are_named(tmp_path):
    """In a process of its own: here the types of arguments are checked before."""
    program = """
import torch, attractorlab as al
f, h = al.from_function(lambda z, x: {"z": 0.5 * z["z"]}, drive={}, clock="tick"), torch.ones(4, 6)
for z in (h, (h, h), {"z": h.numpy()}):
    for use in (lambda z: al.settle(f, z, tol=1e-6, max_ticks=9), lambda z: al.trace(f, z, ticks=3, keep=al.only_last()), lambda z: al.spectrum(f, z, k=1)):
        try:
            use(z)
        except ValueError as error:
            print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    kinds = ["a Tensor", "a tuple", "the leaf 'z' as a ndarray"]
    assert [line.split(" for a state. ")[0] for line in said] == [f"`rows` got {kind}" for kind in kinds for _ in range(3)]
    assert all("`.states`" in line for line in said)


def test_plain_iteration_needs_no_derivative(generator):
    z = {"z": torch.randn(4, 6, dtype=torch.float64, generator=generator)}
    f = LatentMap(lambda z, x: {"z": 0.5 * z["z"].detach() + 1}, {})
    assert find_fixed_points(f, z, method=by_iteration, tol=1e-10, max_steps=60).converged.all()


SOUND = {
    "relu": lambda z: {"z": torch.relu(z["z"] @ W) - 0.3},
    "kink at the state": lambda z: {"z": z["z"].abs()},
    "sawtooth": lambda z: {"z": torch.remainder(3 * z["z"], 1.0)},
    "constant": lambda z: {"z": torch.ones_like(z["z"]) + 0.0 * z["z"]},
    "staircase of fine steps": lambda z: {"z": z["z"] * 0.5 + 1e-12 * torch.round(z["z"])},
    "large": lambda z: {"z": 1e6 * z["z"] ** 3},
    "a small difference of large terms": lambda z: {"z": torch.exp(z["z"]) - 1.0},
    "chaotic": lambda z: {"z": 1 - 1.9 * z["z"] ** 2},
    "sorted": lambda z: {"z": z["z"].sort(dim=1).values},
    "the largest few": lambda z: {"z": torch.where(z["z"] >= z["z"].topk(2, dim=1).values[:, -1:], z["z"], 0.0) @ W},
    "normalised": lambda z: {"z": torch.nn.functional.rms_norm(z["z"] @ W, (6,))},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SOUND)
def test_sound_maps_pass(name, dtype, generator):
    f = LatentMap(lambda z, x: {key: leaf.to(dtype) for key, leaf in SOUND[name]({"z": z["z"].double()}).items()}, {})
    for scale in (1e-3, 1.0, 100.0):
        z = {"z": scale * torch.randn(5, 6, dtype=dtype, generator=generator)}
        check_at(f, z, "test")
    for small in (0.0, 1e-14, 1e-9, 1.0):
        check_at(f, {"z": torch.full((3, 6), small, dtype=dtype)}, "test")


def test_rows_that_are_not_finite_are_not_judged_and_do_not_hide_the_others(generator):
    z = {"z": torch.randn(3, 6, dtype=torch.float64, generator=generator)}
    z["z"][0] = torch.nan
    check_at(LatentMap(lambda z, x: {"z": cell(z)}, {}), z, "test")
    check_at(LatentMap(lambda z, x: {"z": cell(z)}, {}), trees.take(z, slice(0, 1)), "test")
    check_at(LatentMap(lambda z, x: {"z": cell(z)}, {}), trees.take(z, slice(0, 0)), "test")
    with pytest.raises(ValueError, match="Turn off noise"):
        check_at(LatentMap(noisy, {}), z, "test")


def test_the_published_noise_is_refused(generator):
    reasoner = load("eqr-sudoku-4")
    f = reasoner.bind(puzzles("sudoku-4", rows=slice(0, 2)))
    z = reasoner.start(f.drive, generator=generator)
    spectrum(f, z, k=1)
    with pytest.raises(ValueError, match=r"`spectrum` got a map that takes one state to places .*Turn off noise"):
        spectrum(replace(f, rule=reasoner.noisy(0.01, generator)), z, k=1)


def test_states_and_maps_of_two_dtypes_are_refused():
    f = LatentMap(lambda z, x: {"z": z["z"].double()}, {})
    with pytest.raises(ValueError, match=r"`test` got states in float32 for a map in float64\. State and map are worked on in one dtype\. Cast both"):
        check_at(f, {"z": torch.zeros(2, 2)}, "test")


OPEN = {
    "leaves": (lambda z, x: {"y": z["z"]}, r"takes a state of leaves \['z'\] to \['y'\]\. f\(z\) has the names and shapes"),
    "one leaf more": (lambda z, x: {**z, "y": z["z"]}, r"to \['y', 'z'\]"),
    "nothing": (lambda z, x: None, r"to NoneType"),
    "width": (lambda z, x: {"z": z["z"][:, :1]}, r"takes leaf 'z' of shape \[4, 6\] to shape \[4, 1\]"),
    "rows": (lambda z, x: {"z": z["z"][:1]}, r"of shape \[4, 6\] to shape \[1, 6\]"),
    "in place": (lambda z, x: {"z": z["z"].mul_(0.5)}, r"writes into leaf 'z' of its argument\. f\(z\) leaves z alone\. Replace the in-place"),
}


@pytest.mark.parametrize("caller", ANALYSES)
@pytest.mark.parametrize("name", OPEN)
def test_what_is_no_map_of_states_to_states_is_refused_and_the_states_are_left_alone(caller, name, generator):
    z = {"z": torch.randn(4, 6, dtype=torch.float64, generator=generator)}
    before = z["z"].clone()
    with pytest.raises(ValueError, match=rf"`{caller}` got a map that .*{OPEN[name][1]}"):
        ANALYSES[caller](LatentMap(OPEN[name][0], {}), z)
    assert z["z"].equal(before)


def test_a_map_that_writes_is_refused_with_rows_that_are_not_finite_too():
    with pytest.raises(ValueError, match="writes into leaf"):
        check_at(LatentMap(lambda z, x: {"z": z["z"].add_(1.0)}, {}), {"z": torch.tensor([[torch.nan], [torch.inf], [1.0]])}, "test")
    check_at(LatentMap(lambda z, x: {"z": z["z"] + 1.0}, {}), {"z": torch.tensor([[torch.nan], [torch.inf], [1.0]])}, "test")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_derivative_that_is_left_out_shows_about_zero_too(dtype):
    w = W.to(dtype)
    f = LatentMap(lambda z, x: {"z": torch.tanh(z["z"].detach() @ w) + 0.0 * z["z"] + 0.1}, {})
    with pytest.raises(ValueError, match="derivative misses 100 %"):
        check_at(f, {"z": torch.zeros(2, 6, dtype=dtype)}, "test")


def test_many_chaotic_ticks_in_one_amplify_rounding_and_are_no_mixing_of_rows(generator):
    w = 0.3 * torch.randn(100, 100, dtype=torch.float64, generator=generator)
    f = LatentMap(lambda z, x: {"z": torch.tanh(z["z"] @ w)}, {})
    z = {"z": torch.randn(7, 100, dtype=torch.float64, generator=generator)}
    for _ in range(30):
        z = f(z)
    check_at(strobe(f, 100), z, "test")
    with pytest.raises(ValueError, match="A row depends on itself alone"):
        check_at(strobe(LatentMap(lambda z, x: {"z": torch.tanh(z["z"] @ w) - 0.1 * z["z"].mean(0)}, {}), 4), z, "test")


STRATEGIES: dict[str, tuple[Callable[[LatentMap, State], object], str]] = {
    "find_fixed_points": (lambda f, z: find_fixed_points(f, z, method="newton", tol=1e-6, max_steps=3), "got method='newton'"),
    "find_fixed_points of a period": (lambda f, z: find_periodic_orbits(f, z, method=1, period=2, tol=1e-6, max_steps=3), "got method=1"),
    "spectrum": (lambda f, z: spectrum(f, z, k=1, order="modulus"), "got order='modulus'"),
    "spectrum by": (lambda f, z: spectrum(f, z, k=1, method=""), "got method=''"),
    "traces": (lambda f, z: traces(f, z, powers=1, probes=4, generator=torch.Generator(), method="xtrace"), "got method='xtrace'"),
    "trace": (lambda f, z: trace(f, z, ticks=3, keep=1), "got keep=1"),
    "estimate_basins": (lambda f, z: estimate_basins(f, z, label=1e-2, tol=1e-4, max_ticks=9, level=0.95), "got label=0.01"),
    "basin_slice": (lambda f, z: basin_slice(f, center=z, axes={"z": z["z"].expand(2, -1)}, extent=1.0, resolution=2, label="answer", tol=1e-4, max_ticks=9), "got label='answer'"),
    "scaling_of": (lambda f, z: scaling_of(trace(f, z, ticks=1, keep=only_last()), torch.zeros(1, 6), depth=[1], breadth=[1], select=["vote"], level=0.95), "got select='vote'"),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_way_of_doing_it_is_a_function(unchecked, name):
    run, words = STRATEGIES[name]
    f = LatentMap(lambda z, x: {"z": cell(z)}, {}, readout=lambda z: {"answer": z["z"].round().long(), "logits": torch.stack([-z["z"], z["z"]], -1)})
    with pytest.raises(ValueError, match=rf"`{name.split()[0]}` {words}\. A way of doing it is a function, passed without quotes\. Use \w+="):
        run(f, {"z": torch.ones(1, 6, dtype=torch.float64)})
