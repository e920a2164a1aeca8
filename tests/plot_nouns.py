"""Made-up nouns with known contents, for tests of figures."""

import torch

from attractorlab.types import (
    BasinEstimate,
    BasinSlice,
    Branch,
    Convergence,
    Floquet,
    Foresight,
    LyapunovEstimate,
    NonNormality,
    Origin,
    ProbeFit,
    Projection,
    ScalingGrid,
    SolveTimes,
    SpectralDensity,
    Spectrum,
    TraceEstimate,
)

ORIGIN = Origin(model="toy", dtype="float32")
TICKS = 40


def convergence_of(
    rows: int, *, ticks: int = TICKS, targets: bool = True, settled: bool | None = None, clock: str = "recursion"
) -> Convergence:
    """Rows whose residuals fall by 0.7 a tick, but every fourth stays at 0.05; every third is never solved."""
    time, row = torch.arange(ticks + 1), torch.arange(rows)
    still = (row % 4 != 3) if settled is None else torch.full((rows,), settled)
    residual = torch.where(still, 0.7 ** time[:, None].float() * (1 + row % 5), torch.tensor(0.05))
    first = torch.where(row % 3 != 2, row % 11, -1)
    solved = (time[:, None] >= first) & (first >= 0)
    return Convergence(
        ticks=time,
        residual=residual,
        rate=torch.full((rows,), 0.7),
        settle_tick=torch.where(still, 20 + row % 7, -1),
        solved=solved if targets else None,
        first_solved=first if targets else None,
        stays_solved=first if targets else None,
        period=still.long(),
        verdict=tuple("settled" if one else "wandering" for one in still.tolist()),
        instance=row // 4,
        start=row % 4,
        tol=1e-3,
        clock=clock,
        origin=ORIGIN,
    )


def floquet_of(points: int, modes: int, *, updates: tuple[str, ...] = ("L0", "L1", "H"), clock: str = "recursion") -> Floquet:
    """Gains of 2, 1, 1/2, ... over the updates, times 0.8 a mode; the tangent moves from z_H to z_L."""
    n = len(updates)
    gain = (2.0 - torch.arange(n) / 2).abs() * 0.8 ** torch.arange(modes)[:, None] * (1 + torch.arange(points)[:, None, None] / 10)
    share = torch.linspace(0.9, 0.1, n).expand(points, modes, n)
    return Floquet(
        multipliers=gain.prod(2).to(torch.complex64),
        defect=torch.full((points, modes), 1e-8),
        gain=gain,
        part=torch.stack([share, 1 - share], dim=3),
        block_gain=torch.arange(2 * n).reshape(n, 2).expand(points, n, 2).float(),
        block_error=torch.zeros(points, n, 2),
        updates=updates,
        leaves=("z_H", "z_L"),
        method="dense",
        clock=clock,
        origin=ORIGIN,
    )


def branch_of(branches: int, points: int, *, modes: int = 2, clock: str = "recursion") -> Branch:
    """S-curves b = x³ − x, one beside the other, unstable between their two folds."""
    x = torch.linspace(-1.3, 1.3, points, dtype=torch.float64).repeat(branches)
    number = torch.arange(branches).repeat_interleave(points)
    words = ["unstable(1)" if abs(one) < 3**-0.5 else "stable" for one in x.tolist()]
    folds = torch.tensor([-(3**-0.5), 3**-0.5], dtype=torch.float64).repeat(branches if points else 0)
    n, events = len(x), len(folds)
    return Branch(
        states={"z": torch.stack([x + number, torch.zeros(n).double()], 1)},
        branch=number,
        parameter=x**3 - x,
        arclength=x + 1.3,
        slope=3 * x**2 - 1,
        residual=torch.full((n,), 1e-13, dtype=torch.float64),
        error=torch.full((n,), 1e-13, dtype=torch.float64),
        eigenvalues=torch.ones(n, modes, dtype=torch.complex128),
        verdict=tuple(words) if modes else ("not asked",) * n,
        event_states={"z": torch.stack([folds + torch.arange(events) // 2, 0 * folds], 1)},
        event_branch=torch.arange(events) // 2,
        event_point=torch.zeros(events, dtype=torch.int64),
        event_kind=("fold",) * events,
        event_parameter=folds**3 - folds,
        event_error=torch.full((events,), 1e-12, dtype=torch.float64),
        event_eigenvalue=torch.ones(events, dtype=torch.complex128),
        event_change=torch.tensor([1, -1], dtype=torch.int64).repeat(events // 2),
        end=("range",) * branches,
        instance=torch.arange(branches),
        start=torch.zeros(branches, dtype=torch.int64),
        scale=torch.ones(branches, dtype=torch.float64),
        span=2.0,
        steps=torch.full((branches,), points),
        name="b",
        derivative="exact",
        tol=1e-12,
        clock=clock,
        origin=ORIGIN,
    )


def spectrum_of(points: int, modes: int, *, defect: float = 1e-8) -> Spectrum:
    angle = torch.arange(points * modes).reshape(points, modes) * 0.7
    values = torch.polar(
        1.2 * 0.8 ** torch.arange(modes) * torch.ones(points, 1) * (0.5 + torch.arange(points)[:, None] / max(1, points)), angle
    )
    radius = values.abs().amax(1) if points else torch.zeros(0)
    return Spectrum(
        eigenvalues=values,
        defect=torch.full((points, modes), defect),
        condition=torch.ones(points, modes),
        error=torch.full((points, modes), defect),
        radius=radius,
        verdict=tuple("stable" if one < 1 else "unstable(1)" for one in radius.tolist()),
        order="modulus",
        method="dense",
        products=modes,
        clock="recursion",
        origin=ORIGIN,
    )


def lyapunov_of(rows: int, modes: int, *, ticks: int = 64) -> LyapunovEstimate:
    """Growth of 0.4, 0, −0.4, … that swings by 0.2 from tick to tick."""
    mean = 0.4 * (1 - torch.arange(modes)) + torch.arange(rows)[:, None] / 100
    growth = (mean + 0.2 * torch.sin(torch.arange(ticks))[:, None, None]).double()
    return LyapunovEstimate(
        exponents=growth.mean(0),
        standard_error=torch.full((rows, modes), 0.05 if ticks >= 16 else torch.nan, dtype=torch.float64),
        growth=growth,
        result=torch.full((rows,), 4),
        instance=torch.arange(rows) // 2,
        start=torch.arange(rows) % 2,
        size=100,
        transient=10,
        clock="recursion",
        origin=ORIGIN,
    )


def non_normality_of(points: int, ticks: int, *, epsilons: tuple[float, ...] = (1e-8, 1e-4, 1e-2), bound: bool = False) -> NonNormality:
    """Jordan blocks [[λ, 10], [0, λ]] with λ from 0.5 on, as far as they are needed for pictures."""
    value, k = 0.5 + 0.3 * torch.arange(points)[:, None] / max(1, points), torch.arange(ticks + 1)
    ones = torch.ones(points, dtype=torch.float64)
    return NonNormality(
        sigma_max=10 * ones,
        defect=0 * ones,
        transient_growth=torch.maximum(value**k, 10 * k * value ** (k - 1)).double(),
        numerical_radius=5 * ones,
        kreiss=5 * ones,
        henrici=10 * ones,
        natural_gain=torch.nan * ones,
        pseudospectral_radius=(value + (10 * torch.tensor(epsilons)).sqrt()).double(),
        epsilons=epsilons,
        bounds=bound,
        pseudospectral_bound=bound,
        products=9,
        clock="recursion",
        origin=ORIGIN,
    )


def traces_of(points: int, powers: int, *, exact: bool = False) -> TraceEstimate:
    """Traces 10·0.8ᵏ with an error of a tenth."""
    traces = 10 * 0.8 ** torch.arange(1, powers + 1).double().expand(points, powers)
    norm = torch.full((points,), 4.0, dtype=torch.float64)
    none = 0.0 if exact else 0.1
    return TraceEstimate(
        traces=traces,
        standard_error=none * traces,
        frobenius=norm,
        frobenius_error=none * norm,
        probes=0 if exact else 8,
        exact=exact,
        method="dense" if exact else "xtrace",
        products=99,
        clock="recursion",
        origin=ORIGIN,
    )


def density_of(points: int, *, probes: int = 4, nodes: int = 12, kind: str = "singular values") -> SpectralDensity:
    """Evenly spread nodes of equal weights."""
    at = torch.linspace(0.1, 2, nodes, dtype=torch.float64) + 0.01 * torch.arange(probes)[:, None]
    return SpectralDensity(
        nodes=at.expand(points, probes, nodes),
        weights=torch.full((points, probes, nodes), 1 / nodes, dtype=torch.float64),
        kind=kind,
        size=5000,
        exact=False,
        products=99,
        clock="recursion",
        origin=ORIGIN,
    )


def basins_of(counts: list[list[int]], undecided: list[int]) -> BasinEstimate:
    """Given counts per attractor of each instance, largest first, and undecided starts."""
    starts = torch.tensor([sum(some) + rest for some, rest in zip(counts, undecided, strict=True)], dtype=torch.int64)
    of_instance = torch.tensor([i for i, some in enumerate(counts) for _ in some], dtype=torch.int64)
    count = torch.tensor([one for some in counts for one in some], dtype=torch.int64)
    share = count / starts[of_instance] if len(count) else torch.zeros(0)
    rows = int(starts.sum()) if len(starts) else 0
    return BasinEstimate(
        labels=torch.zeros(rows, dtype=torch.int64),
        instance=torch.zeros(rows, dtype=torch.int64),
        start=torch.arange(rows),
        label=torch.tensor([a for some in counts for a in range(len(some))], dtype=torch.int64),
        of_instance=of_instance,
        count=count,
        share=share,
        low=(share - 0.1).clamp(min=0),
        high=(share + 0.1).clamp(max=1),
        share_if=torch.stack([share, share], 1),
        example=torch.zeros_like(count),
        instances=torch.arange(len(counts)),
        starts=starts,
        undecided=torch.tensor(undecided) / starts if len(counts) else torch.zeros(0),
        missing_mass=torch.zeros(len(counts)),
        effective_n=float(len(counts)),
        level=0.95,
        sampler="own starts",
        clock="recursion",
        origin=ORIGIN,
    )


def plane_of(labels: torch.Tensor) -> BasinSlice:
    up, across = labels.shape
    return BasinSlice(
        labels=labels,
        ticks=torch.where(labels >= 0, 7, -1),
        residual=torch.zeros(labels.shape),
        x=torch.linspace(-1, 1, across),
        y=torch.linspace(-2, 2, up),
        center={"z": torch.zeros(3)},
        axes={"z": torch.zeros(2, 3)},
        tol=1e-3,
        clock="recursion",
        origin=ORIGIN,
    )


def projection_of(rows: int, *, ticks: int = 12, method: str = "PCA", clock: str = "recursion", axes: int = 2) -> Projection:
    row, tick = torch.arange(rows).repeat(ticks), torch.arange(ticks).repeat_interleave(rows)
    scores = {"trustworthiness": 0.91} | ({"variance 1": 0.5, "variance 2": 0.25} if method == "PCA" else {})
    coordinates = torch.stack([row + 0.1 * tick, row - 0.2 * tick, tick], 1)[:, :axes].float()
    return Projection(coordinates=coordinates, tick=tick, row=row, faithfulness=scores, method=method, clock=clock, origin=ORIGIN)


def grid_of(*, clock: str = "recursion", depths: int = 4, selectors: tuple[str, ...] = ("residual", "vote")) -> ScalingGrid:
    depth, breadth = 4 ** torch.arange(depths), torch.tensor([1, 4])
    accuracy = torch.linspace(0.1, 0.9, depths)[:, None, None].expand(depths, 2, len(selectors))
    return ScalingGrid(
        depth=depth,
        breadth=breadth,
        selectors=selectors,
        accuracy=accuracy,
        low=accuracy - 0.05,
        high=accuracy + 0.05,
        residual=1 - accuracy,
        spread=torch.zeros(depths, 2),
        spread_low=torch.zeros(depths, 2),
        spread_high=torch.zeros(depths, 2),
        map_calls=(depth[:, None] * breadth).double(),
        instances=50,
        clusters=45,
        level=0.95,
        policy="",
        clock=clock,
        origin=ORIGIN,
    )


def foresight_of(ticks: int, scores: tuple[str, ...] = ("residual", "logit change", "halt")) -> Foresight:
    auc = torch.linspace(0.3, 0.95, ticks, dtype=torch.float64)[:, None].expand(ticks, len(scores)) - 0.05 * torch.arange(len(scores))
    ahead = torch.where(torch.arange(ticks)[:, None] < ticks - 1, 1 - auc, torch.nan)
    return Foresight(
        read=2 ** torch.arange(ticks),
        scores=scores,
        auc=auc,
        low=auc - 0.1,
        high=auc + 0.05,
        ahead=ahead,
        ahead_low=ahead - 0.1,
        ahead_high=ahead + 0.1,
        unsolved=torch.arange(ticks, 0, -1),
        later=torch.arange(ticks - 1, -1, -1),
        rows=80,
        clusters=40,
        ticks=2 ** max(ticks - 1, 0),
        level=0.95,
        clock="recursion",
        origin=ORIGIN,
    )


def solve_times_of(bins: int, ticks: int) -> SolveTimes:
    share = torch.linspace(0, 1, ticks, dtype=torch.float64).expand(bins, ticks) / (1 + torch.arange(bins))[:, None]
    quantile = torch.full((bins, 3), torch.inf, dtype=torch.float64)
    return SolveTimes(
        tick=1 + torch.arange(ticks),
        share=share,
        low=(share - 0.1).clamp(min=0),
        high=(share + 0.1).clamp(max=1),
        censored=1 - share[:, -1] if ticks else torch.ones(bins, dtype=torch.float64),
        level_of=torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64),
        quantile=quantile,
        quantile_low=quantile,
        quantile_high=quantile,
        easiest=torch.arange(bins, dtype=torch.float64),
        hardest=torch.arange(bins, dtype=torch.float64) + 0.5,
        rows=torch.full((bins,), 20),
        clusters=torch.full((bins,), 10),
        ticks=ticks,
        level=0.95,
        clock="recursion",
        origin=ORIGIN,
    )


def fit_of(ticks: int) -> ProbeFit:
    score = torch.linspace(0.3, 0.9, ticks)
    return ProbeFit(
        ticks=torch.arange(ticks),
        score=score,
        low=score - 0.1,
        high=score + 0.1,
        control=torch.full((ticks,), 0.3),
        selectivity=score - 0.3,
        train_instances=20,
        held_out=torch.arange(10),
        by_held_out=torch.full((len(score), 10), 0.5, dtype=torch.float64),
        level=0.95,
        target="digit",
        clock="recursion",
        origin=ORIGIN,
    )
