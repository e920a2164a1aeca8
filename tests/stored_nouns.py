"""One example of every noun, with odd numbers, names and shapes."""

import math
from dataclasses import replace

import torch

from attractorlab.types import (
    BasinEstimate,
    BasinSlice,
    Branch,
    Convergence,
    FixedPointSet,
    Floquet,
    Instance,
    LyapunovEstimate,
    NonNormality,
    Origin,
    PeriodicOrbitSet,
    ProbeFit,
    Projection,
    ScalingGrid,
    SpectralDensity,
    Spectrum,
    TraceEstimate,
    Trajectory,
)

NAN, INF = math.nan, math.inf
ORIGIN = Origin(model='m "ü" \\', weights="ab12", dtype="float32", device="cpu", seed=7, versions={"torch": "2.13"}, argv=("a b", "--x=ü"))


def floats(*shape, dtype=torch.float32):
    """Numbers with NaN, both infinities, both zeros and a subnormal among them."""
    values = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).to(dtype)
    odd = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1e-40], dtype=dtype)
    values[: len(odd)] = odd[: len(values)]
    return values.reshape(shape)


def ints(*shape, dtype=torch.int64):
    values = torch.arange(math.prod(shape)) - 1
    values[-1] = torch.iinfo(dtype).max
    return values.to(dtype).reshape(shape)


def trajectory(rows=3, **more):
    made = Trajectory(
        states={"z_H": floats(2, rows, 4, 5), "z.L": floats(2, rows, 6, dtype=torch.float64), "b": floats(2, rows, 2, dtype=torch.bfloat16)},
        kept=torch.tensor([0, 3]),
        ticks=torch.arange(4),
        residual=floats(4, rows),
        recurrence=floats(8, rows),
        readouts={"answer": ints(4, rows, 4, dtype=torch.int16), "halt": floats(4, rows, dtype=torch.float16), "sure": ints(4, rows).to(torch.int8)},
        last_tick=ints(rows),
        result=torch.full((rows,), 4),
        instance=torch.arange(rows),
        start=torch.zeros(rows, dtype=torch.int64),
        clock="3 x recursion",
        origin=ORIGIN,
    )
    return replace(made, **more)


def convergence(**more):
    made = Convergence(
        ticks=torch.arange(4),
        residual=floats(4, 3),
        rate=floats(3),
        settle_tick=ints(3),
        solved=torch.tensor([[True, False, True]] * 4),
        first_solved=ints(3),
        stays_solved=ints(3),
        period=torch.tensor([0, 1, 2]),
        verdict=("wandering", "settled", "periodic(2)"),
        instance=torch.arange(3),
        start=torch.zeros(3, dtype=torch.int64),
        tol=1e-4,
        clock="tick",
        origin=ORIGIN,
    )
    return replace(made, **more)


def points(n=3):
    return FixedPointSet(
        states={"z_H": floats(n, 4, 5, dtype=torch.float64)},
        residual=floats(n),
        error=floats(n),
        moved=floats(n),
        result=torch.zeros(n, dtype=torch.int64),
        steps=torch.arange(n),
        row=torch.arange(n),
        instance=torch.arange(n),
        start=torch.arange(n),
        tol=1e-10,
        clock="tick",
        origin=Origin(),
    )


def orbits(n=3):
    return PeriodicOrbitSet(
        states={"z_H": floats(2, n, 4, 5, dtype=torch.float64), "z_L": floats(2, n, 3, dtype=torch.float64)},
        **{name: floats(n) for name in ("residual", "worst", "error", "moved")},
        period=torch.arange(n),
        result=torch.zeros(n, dtype=torch.int64),
        steps=torch.arange(n),
        row=torch.arange(n),
        instance=torch.arange(n),
        start=torch.arange(n),
        asked=2,
        tol=1e-10,
        clock="tick",
        origin=ORIGIN,
    )


def spectrum():
    return Spectrum(
        eigenvalues=torch.complex(floats(3, 4, dtype=torch.float64), floats(3, 4, dtype=torch.float64).flip(0)),
        defect=floats(3, 4),
        condition=floats(3, 4),
        error=floats(3, 4),
        radius=floats(3),
        verdict=("stable", "unstable(2)", "ill-conditioned"),
        order="modulus",
        method="krylov",
        products=120,
        clock="tick",
        origin=ORIGIN,
    )


def floquet():
    return Floquet(
        multipliers=torch.complex(floats(3, 2, dtype=torch.float64), floats(3, 2, dtype=torch.float64).flip(0)),
        defect=floats(3, 2),
        gain=floats(3, 2, 4),
        part=floats(3, 2, 4, 2),
        block_gain=floats(3, 4, 2),
        block_error=floats(3, 4, 2),
        updates=("0.L0", "0.H", "1.L0", "1.H"),
        leaves=("z_H", "z_L"),
        method="dense",
        clock="2 x recursion",
        origin=ORIGIN,
    )


def branch(events=2):
    return Branch(
        states={"z_H": floats(3, 4, 5, dtype=torch.float64), "z_L": floats(3, 4)},
        branch=torch.tensor([0, 0, 2]),
        **{name: floats(3, dtype=torch.float64) for name in ("parameter", "arclength", "slope", "residual", "error")},
        eigenvalues=torch.complex(floats(3, 2, dtype=torch.float64), floats(3, 2, dtype=torch.float64).flip(0)),
        verdict=("stable", "not asked", "unstable(1+)"),
        event_states={"z_H": floats(events, 4, 5, dtype=torch.float64), "z_L": floats(events, 4)},
        event_branch=torch.tensor([0, 2])[:events],
        event_point=torch.tensor([1, 2])[:events],
        event_kind=("fold", "Neimark-Sacker")[:events],
        event_parameter=floats(7, dtype=torch.float64)[:events],
        event_error=floats(7, dtype=torch.float64)[:events],
        event_eigenvalue=torch.complex(floats(7, dtype=torch.float64), floats(7, dtype=torch.float64).flip(0))[:events],
        event_change=torch.tensor([1, -2])[:events],
        end=("range", "no start", "nonfinite"),
        instance=torch.arange(3),
        start=torch.zeros(3, dtype=torch.int64),
        scale=floats(3, dtype=torch.float64),
        span=2.0,
        steps=torch.arange(3),
        name="damping",
        derivative="exact",
        tol=1e-10,
        clock="tick",
        origin=ORIGIN,
    )


def basins(attractors=3):
    return BasinEstimate(
        labels=ints(5),
        instance=torch.tensor([0, 0, 0, 4, 4]),
        start=torch.tensor([0, 1, 2, 0, 1]),
        label=ints(max(1, attractors))[:attractors],
        of_instance=torch.tensor([0, 0, 4])[:attractors],
        count=torch.tensor([2, 1, 2])[:attractors],
        share=floats(7, dtype=torch.float64)[:attractors],
        low=floats(7, dtype=torch.float64)[:attractors],
        high=floats(7, dtype=torch.float64)[:attractors],
        share_if=floats(7, 2, dtype=torch.float64)[:attractors],
        example=torch.tensor([0, 2, 3])[:attractors],
        instances=torch.tensor([0, 4]),
        starts=torch.tensor([3, 2]),
        undecided=floats(2, dtype=torch.float64),
        missing_mass=floats(2, dtype=torch.float64),
        effective_n=NAN,
        level=0.95,
        sampler="normal",
        clock="tick",
        origin=ORIGIN,
    )


def plane():
    return BasinSlice(
        labels=ints(2, 3),
        ticks=ints(2, 3),
        residual=floats(2, 3),
        x=torch.linspace(-1, 1, 3, dtype=torch.float64),
        y=torch.linspace(-1, 1, 2),
        center={"z_H": floats(1, 4, 5), "z_L": floats(1, 4)},
        axes={"z_H": floats(2, 4, 5), "z_L": floats(2, 4)},
        tol=1e-3,
        clock="tick",
        origin=ORIGIN,
    )


def grid():
    return ScalingGrid(
        depth=torch.tensor([1, 4, 16]),
        breadth=torch.tensor([1, 8]),
        selectors=("mean", "vote"),
        accuracy=floats(3, 2, 2),
        low=floats(3, 2, 2),
        high=floats(3, 2, 2),
        residual=floats(3, 2, 2),
        spread=floats(3, 2),
        spread_low=floats(3, 2),
        spread_high=floats(3, 2),
        map_calls=floats(3, 2, dtype=torch.float64),
        instances=9,
        clusters=8,
        level=0.95,
        policy="",
        clock="tick",
        origin=ORIGIN,
    )


def projection(**more):
    made = Projection(
        coordinates=floats(6, 2, dtype=torch.float64),
        tick=torch.arange(6),
        row=torch.tensor([0, 0, 0, 1, 1, 1]),
        faithfulness={"trustworthiness": 0.9, "variance 1": NAN},
        method="UMAP",
        clock="tick",
        origin=ORIGIN,
    )
    return replace(made, **more)


def probe():
    return ProbeFit(
        ticks=torch.tensor([0, 4, 16]),
        **{name: floats(3, dtype=torch.float64) for name in ("score", "low", "high", "control", "selectivity")},
        train_instances=5,
        held_out=ints(4),
        by_held_out=floats(3, 4),
        level=0.9,
        target="digit",
        clock="tick",
        origin=ORIGIN,
    )


def lyapunov():
    return LyapunovEstimate(
        exponents=floats(3, 2, dtype=torch.float64),
        standard_error=floats(3, 2, dtype=torch.float64),
        growth=floats(5, 3, 2, dtype=torch.float64),
        result=torch.full((3,), 4),
        instance=ints(3),
        start=ints(3),
        size=9,
        transient=7,
        clock="tick",
        origin=ORIGIN,
    )


def non_normality():
    scalars = ("sigma_max", "defect", "numerical_radius", "kreiss", "henrici", "natural_gain")
    return NonNormality(
        **{name: floats(2, dtype=torch.float64) for name in scalars},
        transient_growth=floats(2, 4),
        pseudospectral_radius=floats(2, 3, dtype=torch.float64),
        epsilons=(1e-8, 1e-4, 0.01),
        bounds=True,
        pseudospectral_bound=True,
        products=9,
        clock="tick",
        origin=ORIGIN,
    )


def trace_estimate():
    fields = {name: floats(3, 4, dtype=torch.float64) for name in ("traces", "standard_error")}
    norms = {name: floats(3, dtype=torch.float64) for name in ("frobenius", "frobenius_error")}
    return TraceEstimate(**fields, **norms, probes=16, exact=False, method="xtrace", products=672, clock="tick", origin=ORIGIN)


def density():
    values = {name: floats(2, 3, 5, dtype=torch.float64) for name in ("nodes", "weights")}
    return SpectralDensity(**values, kind="singular values", size=99, exact=False, products=54, clock="tick", origin=ORIGIN)


def instance(**more):
    made = Instance(torch.ones(2, 4).long(), ints(2, 4), ("a/0", "ü"), "sudoku-4", torch.tensor([NAN, 3.0]))
    return replace(made, **more)


EXAMPLES = {
    "instance": instance(),
    "instance without targets": instance(targets=None, difficulty=None),
    "trajectory": trajectory(),
    "trajectory without readouts": trajectory(readouts={}),
    "tapped and edited trajectory": trajectory(
        taps={"z_L": floats(2, 2, 3, 5, dtype=torch.float16), "layers.0.mlp": ints(2, 3, 3, 4, 2)},
        calls={"z_L": ("0.L0", "0.L1"), "layers.0.mlp": ("", "", "")},
        edits=("freeze at z_L, tick 3", "patch at ü, ticks 0 to 2"),
        continuation="clamped",
    ),
    "convergence": convergence(),
    "convergence without targets": convergence(solved=None, first_solved=None, stays_solved=None, tol=INF),
    "fixed points": points(),
    "no fixed points": points()[:0],
    "orbits": orbits(),
    "no orbits": orbits()[:0],
    "spectrum": spectrum(),
    "floquet": floquet(),
    "exponents": lyapunov(),
    "non-normality": non_normality(),
    "traces": trace_estimate(),
    "density": density(),
    "branch": branch(),
    "branch without events": branch(0),
    "basins": basins(),
    "basins without attractors": basins(0),
    "plane": plane(),
    "grid": grid(),
    "projection": projection(),
    "projection without scores": projection(faithfulness={}),
    "probe": probe(),
}
