"""continuation: follow fixed points along a parameter, around folds, and find where their stability changes."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.crossings import Events, events_between
from attractorlab.dynamics.curve import CONVERGED, NONFINITE, Curve, Sample
from attractorlab.dynamics.families import Family
from attractorlab.dynamics.krylov import blocks_of_rows, check_dtype, dtype_of
from attractorlab.dynamics.orbits import DIVERGED, check_tol
from attractorlab.dynamics.searching import GMRES_CAP, norm
from attractorlab.dynamics.spectrum import Method
from attractorlab.types import Branch, State

FIRST_CORRECTIONS, CORRECTIONS = 30, 8  # Newton steps that a start, and a point of the branch, may take
WANTED = 4  # Newton steps of a point at which the step is right
GROWTH, SHRINK = 1.5, 0.5  # of the step, at most at once, and after a step that failed
TURN = 0.9  # cosine of the angle between tangents beyond which a step was too long
JUMP = 2.0  # steps: a point farther away is on another branch
SMALLEST = 1e-8  # step relative to the first one at which a branch is given up
CLOSE = 1e-6  # scaled distance from its first point at which a branch is closed
HIDDEN, HIDDEN_STEP = 0.05, {torch.float64: 1e-6, torch.float32: 1e-2}  # the check of the derivative: relative error, and step in spans
PER_POINT = ("parameter", "arclength", "slope", "residual", "error", "eigenvalues")
WORDS = ("going", "range", "closed", "max steps", "diverged", "nonfinite", "step underflow", "no start")


def continuation(
    family: Family,
    z: State,
    *,
    parameter: Float[Tensor, " row"],
    direction: Int[Tensor, " row"] | int,
    span: tuple[float, float],
    tol: float,
    step: float,
    max_steps: int,
    k: int,
    scale: float | None = None,
    method: Method | None = None,
) -> Branch:
    """Follow the fixed point near each row of `z` while the parameter changes, around folds, by pseudo-arclength.

    Every point is certified: its residual is below `tol`. A pair of events within one step, whose effects cancel, goes unseen: halve `step` to check. Other branches
    that meet a followed one are told of (branch point) and not entered. Bifurcations of eigenvalues beyond the `k` leading ones are seen only where these are not all outside
    the unit circle.

    Args:
        family: The map and its parameter.
        z: A state near a fixed point, one per branch, in float64 or float32, the dtype of the map. Repeat rows to follow a point both ways.
        parameter: Where each branch starts.
        direction: 1 to begin with a growing parameter, −1 with a falling one; one for all rows or one each. After a fold the branch goes on, whichever way that is.
        span: The least and the largest parameter: a branch ends where it leaves them, on the bound.
        tol: Largest relative residual ‖f(z) − z‖/‖z‖ of a point.
        step: The longest step, in the length of a branch: the state in units of `scale`, the parameter in units of the whole span. 0.02 to 0.1 are usual. Steps shrink
            where points need more than 4 Newton steps or the branch turns.
        max_steps: Steps that a branch may try.
        k: How many leading eigenvalues are found at each point; 0 for none, which leaves only the turns to be found.
        scale: The length of a state that counts as much as the whole span of the parameter. By default the norm of the start, but at least 1.
            Residuals of states shorter than a thousandth of it are relative to that thousandth.
        method: How eigenvalues are found, as for `spectrum`.

    Returns:
        All points, branch by branch, with the events on them. A fold is where the parameter turns; it is located by the zero of its slope, the passages of eigenvalues through
        the unit circle by that of their distance from it, each until it is below 1e-8 and then by a few secant steps; `event_error` says what is left.

    Raises:
        ValueError: If `tol` is below the rounding floor, a start lies outside the span, the span is empty, a step or count is not positive, or `z`, `parameter` and
            the family differ in rows or dtype, or the derivative by the parameter is not what a difference gives.

    Example:
        >>> cusp = Family(lambda z, x, b: {"z": torch.tanh(2 * z["z"] + b[:, None])}, name="b")
        >>> z = {"z": torch.tensor([[-1.0]], dtype=torch.float64)}
        >>> start = torch.tensor([-1.0], dtype=torch.float64)
        >>> found = continuation(cusp, z, parameter=start, direction=1, span=(-1.0, 1.0), tol=1e-12, step=0.1, max_steps=200, k=1)
        >>> found.event_kind, [round(b, 9) for b in found.event_parameter.tolist()], found.end
        (('fold', 'fold'), [0.532839975, -0.532839975], ('range',))

    References:
        Keller (1977), Numerical solution of bifurcation and nonlinear eigenvalue problems; Govaerts (2000), Numerical Methods for Bifurcations of Dynamical Equilibria;
        Kuznetsov (2004), Elements of Applied Bifurcation Theory, chapters 4 and 10.
    """
    n = trees.rows(z)
    sign = torch.as_tensor(direction).expand(n)
    _check(family, z, parameter, sign, span=span, tol=tol, step=step, max_steps=max_steps, k=k, scale=scale)
    f = family.at(parameter)
    instance, start = f.coordinates(z)
    check_dtype(f, z, "continuation")
    length = trees.norm(z).to(torch.float64).clamp(min=1) if scale is None else torch.full((n,), scale, dtype=torch.float64)
    width = span[1] - span[0]
    parts = []
    for rows in blocks_of_rows(f, z, vectors=2 * GMRES_CAP):
        some = replace(family, like=family.like.take(rows))
        curve = Curve(
            some, trees.take(z, rows), parameter[rows], scale=length[rows.to(length.device)], span=width, tol=tol, k=k, method=method
        )
        _check_derivative(curve)
        parts.append(_Follow(curve, sign[rows], span, step, max_steps).run())
    return Branch(
        **_joined(parts, z),
        end=tuple(WORDS[code] for part in parts for code in part.end.tolist()),
        steps=torch.cat([part.steps for part in parts]),
        instance=instance,
        start=start,
        scale=length.cpu(),
        span=width,
        name=family.name,
        derivative=family.derivative,
        tol=tol,
        clock=f.clock,
        origin=f.origin,
    )


@dataclass(frozen=True, eq=False)
class _Points:
    """Points as they were met: `row` is the branch, `number` counts along it."""

    row: Int[Tensor, " point"]
    number: Int[Tensor, " point"]
    states: State
    parameter: Float[Tensor, " point"]
    arclength: Float[Tensor, " point"]
    slope: Float[Tensor, " point"]
    residual: Float[Tensor, " point"]
    error: Float[Tensor, " point"]
    eigenvalues: Complex[Tensor, "point mode"]
    verdict: Int[Tensor, " point"]


@dataclass(frozen=True, eq=False)
class _Met:
    """Events as they were met, after point `number` of branch `row`."""

    row: Int[Tensor, " event"]
    number: Int[Tensor, " event"]
    states: State
    events: Events


@dataclass(frozen=True, eq=False)
class _Part:
    """All that was found in one chunk of branches."""

    points: list[_Points]
    met: list[_Met]
    end: Int[Tensor, " row"]
    steps: Int[Tensor, " row"]
    words: list[str]


class _Follow:
    """The loop: a step of every branch that is still going, and those that ended leave."""

    def __init__(self, curve: Curve, sign: Tensor, span: tuple[float, float], step: float, max_steps: int) -> None:
        n = len(curve.first)
        self.curve, self.sign, self.step, self.max_steps = curve, sign, step, max_steps
        self.low, self.high = (float(curve.search.round(torch.tensor([[bound]], dtype=torch.float64))) / curve.span for bound in span)
        self.points: list[_Points] = []
        self.met: list[_Met] = []
        self.end, self.tries, self.count = (torch.zeros(n, dtype=torch.int64) for _ in range(3))
        self.arclength = torch.zeros(n, dtype=torch.float64, device=curve.device)

    def run(self) -> _Part:
        rows, here = self._begin()
        self.first, self.ds = here, torch.full((len(self.end),), self.step, dtype=torch.float64, device=self.curve.device)
        self.place = torch.full((len(self.end),), -1)  # of each branch among those that began
        self.place[rows] = torch.arange(len(rows))
        while len(rows):
            self.tries[rows] += 1
            there, good, word = self._next(rows, here)
            if bool(good.any()):
                self._met(rows[good.cpu()], here.take(good), there.take(good))
                self._keep(rows[good.cpu()], there.take(good), norm(there.y - here.y)[good])
                here = here.put(good, there.take(good))
            word = torch.where((word == 0) & (self.tries[rows] >= self.max_steps), WORDS.index("max steps"), word)
            self.end[rows] = word
            stay = word == 0
            rows, here = rows[stay], here.take(stay.to(self.curve.device))
        return _Part(self.points, self.met, self.end, self.tries, self.curve.words)

    def _begin(self) -> tuple[Tensor, Sample]:
        """The first points; starts that are none, and branches that begin on a bound and lead out, end here."""
        curve = self.curve
        rows = torch.arange(len(self.end))
        y, _, code = curve.correct(curve.first, rows, None, curve.first[:, -1], most=FIRST_CORRECTIONS)
        self.end[code != CONVERGED] = WORDS.index("no start")
        self.end[code == NONFINITE] = WORDS.index("nonfinite")
        rows = (self.end == 0).nonzero().squeeze(1)
        here = curve.look(y[rows], rows, None)
        finite = torch.isfinite(here.tangent).all(1).cpu()
        self.end[rows[~finite]] = WORDS.index("nonfinite")
        rows, here = rows[finite], here.take(finite)
        here = replace(here, tangent=here.tangent * self.sign[rows].to(here.tangent)[:, None])
        self._keep(rows, here, torch.zeros_like(here.at))
        p, slope = here.y[:, -1], here.tangent[:, -1]
        out = (((p <= self.low) & (slope < 0)) | ((p >= self.high) & (slope > 0))).cpu()
        self.end[rows[out]] = WORDS.index("range")
        return rows[~out], here.take(~out)

    def _next(self, rows: Tensor, here: Sample) -> tuple[Sample, Bool[Tensor, " row"], Int[Tensor, " row"]]:
        """A step of each row: the points reached, which of them are good, and why a branch ends with it (0: it goes on)."""
        curve, ds = self.curve, self.ds[rows]
        at = (here.y * here.tangent).sum(1) + ds
        y, steps, code = curve.correct(here.y + ds[:, None] * here.tangent, rows, here.tangent, at, most=CORRECTIONS)
        word = torch.zeros(len(rows), dtype=torch.int64)
        self._onto_bound(rows, here, y, code, word)
        self._onto_first(rows, here, y, code, word)
        apart = norm(y - here.y)
        tried = ((code == CONVERGED).to(ds.device) & (apart <= JUMP * ds)).cpu().nonzero().squeeze(1)
        there, cosine = here, torch.zeros_like(ds)
        good = torch.zeros(len(rows), dtype=torch.bool, device=ds.device)
        if len(tried):
            sample = curve.look(y[tried], rows[tried], here.tangent[tried])
            mask = good.clone()
            mask[tried] = True
            there = here.put(mask, sample)
            cosine[tried] = (sample.tangent * here.tangent[tried]).sum(1)
            code[tried[~torch.isfinite(sample.tangent).all(1).cpu()]] = NONFINITE
            good = mask & (cosine > TURN)
        grow = (2.0 ** ((WANTED - steps) / 3)).clamp(SHRINK, GROWTH).to(ds)
        grow = torch.where(cosine < (1 + TURN) / 2, grow.clamp(max=1), grow)
        self.ds[rows] = torch.where(good, (ds * grow).clamp(max=self.step), ds * SHRINK)
        large = (norm(there.y[:, :-1]) > DIVERGED * norm(curve.first[rows, :-1]).clamp(min=1)).cpu()
        ok = good.cpu()
        word = torch.where(ok, word, 0)
        word[ok & (word == 0) & large] = WORDS.index("diverged")
        given_up = ~ok & (self.ds[rows] < SMALLEST * self.step).cpu()
        word[given_up] = torch.where(code[given_up] == NONFINITE, WORDS.index("nonfinite"), WORDS.index("step underflow"))
        return there, good, word

    def _onto_bound(self, rows: Tensor, here: Sample, y: Tensor, code: Tensor, word: Tensor) -> None:
        """Points beyond the span are brought back onto its bound, in place."""
        p, before = y[:, -1], here.y[:, -1]
        out = ((code == CONVERGED).to(p.device) & ((p <= self.low) | (p >= self.high))).cpu().nonzero().squeeze(1)
        if len(out):
            bound = torch.where(p[out] >= self.high, self.high, self.low).to(p)
            share = ((bound - before[out]) / (p[out] - before[out])).nan_to_num(1).clamp(0, 1)
            guess = here.y[out] + share[:, None] * (y[out] - here.y[out])
            guess[:, -1] = bound
            y[out], _, code[out] = self.curve.correct(guess, rows[out], None, bound, most=CORRECTIONS)
            word[out] = WORDS.index("range")

    def _onto_first(self, rows: Tensor, here: Sample, y: Tensor, code: Tensor, word: Tensor) -> None:
        """Points that passed the first point of their branch are brought back to it, in place."""
        first = self.first.take(self.place[rows])
        before, after = (((one - first.y) * first.tangent).sum(1) for one in (here.y, y))
        near = norm(y - first.y) <= JUMP * self.ds[rows]
        back = ((before < 0) & (after >= 0) & near & ((here.tangent * first.tangent).sum(1) > TURN)).cpu() & (code == CONVERGED) & (word == 0)
        back &= self.count[rows] > 2
        which = back.nonzero().squeeze(1)
        if len(which):
            share = (before / (before - after))[which]
            guess = here.y[which] + share[:, None] * (y[which] - here.y[which])
            at = (first.y * first.tangent).sum(1)[which]
            met, _, done = self.curve.correct(guess, rows[which], first.tangent[which], at, most=CORRECTIONS)
            same = ((done == CONVERGED).to(met.device) & (norm(met - first.y[which]) <= CLOSE)).cpu()
            y[which[same]] = met[same]
            word[which[same]] = WORDS.index("closed")

    def _met(self, rows: Tensor, here: Sample, there: Sample) -> None:
        for events in events_between(self.curve, rows, here, there):
            at = rows[events.row]
            self.met.append(_Met(at, self.count[at] - 1, self.curve.state(events.y, at), events))

    def _keep(self, rows: Tensor, here: Sample, apart: Tensor) -> None:
        self.arclength[rows] += apart
        curve = self.curve
        self.points.append(
            _Points(
                row=rows,
                number=self.count[rows],
                states=curve.state(here.y, rows),
                parameter=curve.parameter(here.y, rows),
                arclength=self.arclength[rows],
                slope=here.tangent[:, -1],
                residual=here.residual,
                error=here.error,
                eigenvalues=here.values,
                verdict=here.verdict,
            )
        )
        self.count[rows] += 1


def _joined(parts: list[_Part], z: State) -> dict[str, Any]:
    """The points and events of all chunks, sorted by branch and along it, as fields of `Branch`."""
    offset, points, met = 0, [], []
    words: list[str] = []
    for part in parts:
        points.extend(replace(one, row=one.row + offset, verdict=one.verdict + len(words)) for one in part.points)
        met.extend(replace(one, row=one.row + offset) for one in part.met)
        words, offset = words + part.words, offset + len(part.end)
    order = _order([one.row for one in points], [one.number for one in points])
    row = torch.cat([one.row for one in points])[order]
    found: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in points])[order].cpu() for name in PER_POINT}
    found["states"] = trees.take(trees.cat([one.states for one in points]), order)
    found["verdict"] = tuple(words[code] for code in torch.cat([one.verdict for one in points])[order].tolist())
    begin = torch.searchsorted(row, torch.arange(offset))
    at = [one.events.at.cpu() for one in met]
    order = _order([one.row for one in met], [one.number for one in met], at)
    branch = _cat([one.row for one in met], row)[order]
    found["event_states"] = trees.take(trees.cat([one.states for one in met] or [trees.take(z, slice(0, 0))]), order)
    found["event_point"] = (begin[branch] + _cat([one.number for one in met], row)[order]).to(torch.int64)
    found["event_kind"] = tuple([kind for one in met for kind in one.events.kind][i] for i in order.tolist())
    for name, like in (("parameter", found["parameter"]), ("error", found["error"]), ("eigenvalue", found["eigenvalues"]), ("change", row)):
        found[f"event_{name}"] = _cat([getattr(one.events, name).cpu() for one in met], like)[order]
    return {**found, "branch": row, "event_branch": branch}


def _order(*keys: list[Tensor]) -> Int[Tensor, " item"]:
    """The order of items by the first key, equal ones by the next."""
    order = torch.arange(sum(len(one) for one in keys[0]))
    for key in reversed(keys):
        order = order[torch.argsort(_cat(key, order)[order], stable=True)]
    return order


def _cat(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else like.flatten()[:0]


def _check(
    family: Family,
    z: State,
    parameter: Tensor,
    sign: Tensor,
    *,
    span: tuple[float, float],
    tol: float,
    step: float,
    max_steps: int,
    k: int,
    scale: float | None,
) -> None:
    """Refuse what cannot be followed."""
    check_tol(tol, dtype_of(z), "continuation")
    if dtype_of(z) not in (torch.float64, torch.float32) or parameter.dtype != dtype_of(z):
        kinds = " and ".join(str(kind).removeprefix("torch.") for kind in (dtype_of(z), parameter.dtype))
        raise ValueError(
            f"`continuation` got states and parameters in {kinds}. Both are followed in float64 or both in float32. "
            "Cast all: `reasoner.to(torch.float64).bind(puzzles)`, `trees.to(z, torch.float64)` and a float64 parameter."
        )
    if len(parameter) != trees.rows(z) or not len(parameter):
        raise ValueError(
            f"`continuation` got {len(parameter)} parameters for {trees.rows(z)} states. Every branch starts at one of each, and there is one or more. "
            f"Pass a tensor of {trees.rows(z)} parameters."
        )
    if not span[0] < span[1]:
        raise ValueError(f"`continuation` got span={span}. It is the least and the largest parameter. Use span=({span[1]}, {span[0]}), or a wider one.")
    outside = ~((parameter >= span[0]) & (parameter <= span[1]))
    if bool(outside.any()):
        raise ValueError(
            f"`continuation` got a start at {family.name} = {float(parameter[outside][0]):g} for span={span}. A branch starts inside of its span. "
            "Widen the span, or begin elsewhere."
        )
    if bool((sign.abs() != 1).any()):
        raise ValueError(f"`continuation` got a direction of {int(sign[sign.abs() != 1][0])}. A branch begins up or down the parameter. Use 1 or -1.")
    if not (step > 0 and max_steps >= 1 and (scale is None or scale > 0)):
        raise ValueError(
            f"`continuation` got step={step}, max_steps={max_steps}, scale={scale}. A branch is followed in one or more steps of a length above 0, "
            "in a scale above 0. Use step=0.05, max_steps=200 and no scale."
        )
    if not 0 <= k <= trees.size(z):
        raise ValueError(
            f"`continuation` got k={k} for states of {trees.size(z)} numbers. A state of n numbers has n eigenvalues. Use k from 0 to {trees.size(z)}."
        )


def _check_derivative(curve: Curve) -> None:
    """Refuse a family whose rule hides its parameter from differentiation."""
    if curve.family.difference is not None:
        return
    rows = torch.arange(len(curve.first))
    x = curve.x(curve.first, rows)
    up = torch.zeros_like(x)
    up[:, -1] = 1
    told = curve.search.jacobian(x, rows)(up, rows)[:, :-1]
    h = HIDDEN_STEP[curve.search.dtype] * curve.span
    seen = []
    for ahead, back in ((h, h), (h, 0), (0, h)):  # one side alone too: at a kink they differ
        ends = [curve.search.round(x + by * up) for by in (ahead, -back)]
        rise = curve.search.residual(ends[0], rows) - curve.search.residual(ends[1], rows)
        seen.append(rise[:, :-1] / (ends[0] - ends[1])[:, -1:])
    size = torch.stack([norm(one) for one in seen]).amax(0)
    off = torch.stack([norm(told - one) for one in seen]).amin(0)
    rounding = 10 * torch.finfo(curve.search.dtype).eps * norm(x) / h
    wrong = off > HIDDEN * size + rounding
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"`continuation` got a family whose derivative by {curve.family.name} is {float(norm(told)[at]):.3g} where a difference gives {float(size[at]):.3g}. "
            "The exact derivative needs a rule that can be differentiated by its parameter. Give the family a `difference`, such as 1e-5."
        )
