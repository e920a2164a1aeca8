"""Where a curve of fixed points turns, and where eigenvalues pass the unit circle on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab.dynamics.curve import CONVERGED, NEAR, Curve, Sample
from attractorlab.dynamics.searching import norm

FOUND = 1e-12  # a slope, or a distance from the unit circle, that cannot be made smaller
NARROW = 1e-13  # of a step: where nothing is left to look at
LOOKS, POLISH = 40, 3  # points at which a crossing is looked for; steps that sharpen it at last
ELSEWHERE = torch.tensor([0.5, 0.5, 0.3, 0.8, 0.1, 0.95], dtype=torch.float64)  # of a bracket: where to look after so many misses
MOST = 8  # crossings of eigenvalues within one step of a branch
CORRECTIONS = 12  # Newton steps for each of these points
REAL = 1e-6  # imaginary part below which an eigenvalue is real
TOUCHES = 1e-3  # distance from +1 at which an eigenvalue belongs to a turn
OWN = 1e-3  # of the step: an eigenvalue that passes +1 so near a fold is that of the fold

TORN = {torch.float64: 1e-5, torch.float32: 3e-3}  # what must cross zero, where the ends around it lie on two curves
APART = 4.0  # times the width of a bracket: ends farther apart do not lie on one curve
BESIDE = 0.01  # of the step: how near a fold its eigenvalue is looked at

UNSURE = 4.0  # times the error where branches meet, whose constant is not known
TRUSTED, HARMLESS = 5e-3, 0.1  # five errors beyond which a mode is not counted on; a modulus that is inside whatever its error

Read = Callable[[Sample], Int[Tensor, "row sign"]]
Height = Callable[[Sample, Sample, Sample], Float[Tensor, " row"]]  # of a point, given two others around the crossing


@dataclass(frozen=True, eq=False)
class Events:
    """What was found, one a row of each: `row` says on which branch, `at` how far along the step."""

    row: Int[Tensor, " event"]
    kind: tuple[str, ...]
    at: Float[Tensor, " event"]
    y: Float[Tensor, "event dim"]
    parameter: Float[Tensor, " event"]
    error: Float[Tensor, " event"]
    eigenvalue: Complex[Tensor, " event"]
    change: Int[Tensor, " event"]


def events_between(curve: Curve, rows: Int[Tensor, " row"], a: Sample, b: Sample) -> tuple[list[Events], Bool[Tensor, " row"]]:
    """Folds, and then passages through the unit circle, on one step of each row from `a` to `b`.

    And which steps are to be taken anew, shorter: those whose ends lie on two curves, and those that hold a fold and a passage that undoes it.
    """
    lines = _Lines(curve, rows, a, replace(b, at=((b.y - a.y) * a.tangent).sum(1)))
    found = []
    turned = (_turn(a) != _turn(b)).any(1).cpu()
    fold_at, fold_change = torch.full_like(a.at, torch.nan), torch.zeros(len(rows), dtype=torch.int64, device=curve.device)
    if bool(turned.any()):
        which = turned.nonzero().squeeze(1)
        low, high, best = lines.search(which, lines.a.take(which), lines.b.take(which), _turn, lambda s, low, high: s.tangent[:, -1], modes=False)
        best = curve.with_modes(best, rows[which])
        fold_at[which] = best.at
        fold = _fold(lines, which, low, high, best)
        fold_change[which] = fold.change
        found.append(fold)
    if curve.k == 0:
        return found, lines.torn
    start = lines.a
    open_ = (_outside(start) != _outside(lines.b)).any(1).cpu() & _complete(curve, start, lines.b)
    for _ in range(MOST):
        which = open_.nonzero().squeeze(1)
        if not len(which):
            break
        low, high, best = lines.search(which, start.take(which), lines.b.take(which), _outside, _height, modes=True)
        crossing = _crossing(lines, which, low, high, best)
        off = (best.at - fold_at[which]).abs() / lines.b.at[which]
        same = (off <= BESIDE) & (crossing.change.sign() == fold_change[which].sign())  # a slow eigenvalue is found a little beside its fold
        own = ((off <= OWN) | same).cpu() & torch.tensor([kind == "branch point" for kind in crossing.kind])
        found.append(chosen(crossing, ~own))
        mask = torch.zeros_like(open_)
        mask[which] = True
        start = start.put(mask.to(curve.device), high)
        open_ = mask & (_outside(start) != _outside(lines.b)).any(1).cpu() & _complete(curve, start, lines.b)
    return found, lines.torn


class _Lines:
    """One line a row, along the tangent at `a`: a point of the curve is looked for across it at each distance."""

    def __init__(self, curve: Curve, rows: Tensor, a: Sample, b: Sample) -> None:
        self.curve, self.rows, self.a, self.b = curve, rows, a, b
        self.near = NEAR[curve.search.dtype]
        self.torn = torch.zeros(len(rows), dtype=torch.bool)

    def search(
        self, which: Tensor, low: Sample, high: Sample, signs: Read, height: Height, *, modes: bool
    ) -> tuple[Sample, Sample, Sample]:
        """Where `signs` first differ from those of `low`: the last two points around it, and the best point.

        By the Illinois rule on `height` where that has two signs, by bisection where it has not, then a few secant steps.
        """
        n = len(which)
        streak = torch.zeros(n, dtype=torch.int64, device=self.curve.device)  # how often in a row the lower (upper: negative) end has stayed
        lost = torch.zeros(n, dtype=torch.bool)  # no point is to be found between the ends
        missed = torch.zeros_like(streak)  # how often in a row no point was found: near where branches meet Newton's method may leave
        live, first = torch.arange(n), signs(low)
        for look in range(LOOKS):
            here, there = low.take(live), high.take(live)
            h = torch.stack([height(here, here, there), height(there, here, there)])
            open_ = ~((h.abs().amin(0) <= self.near) | (there.at - here.at <= NARROW * self.b.at[which[live]]))
            live, here, there, h = live[open_.cpu()], here.take(open_), there.take(open_), h[:, open_]
            if not len(live):
                break
            stay = torch.stack([streak[live], -streak[live]])
            w = h * 0.5 ** (stay - 1).clamp(min=0)  # an end that stays counts half
            inside = (here.at * w[1] - there.at * w[0]) / (w[1] - w[0])
            usable = (h[0] * h[1] < 0) & (inside > here.at) & (inside < there.at) & (look % 4 != 3)
            usable &= missed[live] == 0
            middle = here.at + (there.at - here.at) * ELSEWHERE.to(h)[missed[live]]
            sample, fine = self.point(which[live], here, there, torch.where(usable, inside, middle), modes)
            missed[live] = torch.where(fine, 0, missed[live] + 1)
            given_up = missed[live] == len(ELSEWHERE)
            lost[live[given_up.cpu()]] = True
            live, sample = live[~given_up.cpu()], sample.take(~given_up)
            fine = fine[~given_up]
            kept, live, sample = live, live[fine.cpu()], sample.take(fine)
            past = (signs(sample) != first[live]).any(1)
            streak[live] = torch.where(past, streak[live].clamp(min=0) + 1, streak[live].clamp(max=0) - 1)
            mask = torch.zeros(n, dtype=torch.bool, device=self.curve.device)
            mask[live] = past
            high = high.put(mask, sample.take(past))
            mask[live] = ~past
            low = low.put(mask, sample.take(~past))
            live = kept
        best = self._polished(which, low, high, height, modes)
        met = height(best, low, high).abs() <= TORN[self.curve.search.dtype]
        apart = norm(high.y - low.y) > APART * (high.at - low.at)
        self.torn[which] |= ~met.cpu() & (lost | apart.cpu())
        return low, high, best

    def _polished(self, which: Tensor, low: Sample, high: Sample, height: Height, modes: bool) -> Sample:
        """The better end of each bracket, moved by a few secant steps as long as that makes it better."""
        left, right = height(low, low, high), height(high, low, high)
        best = low.put(right.abs() < left.abs(), high.take(right.abs() < left.abs()))
        slope = (right - left) / (high.at - low.at)
        live = torch.arange(len(which))
        for _ in range(POLISH):
            here = best.take(live)
            value = height(here, low.take(live), high.take(live))
            to = here.at - value / slope[live]
            reach = 2 * (high.at - low.at)[live]
            going = (value.abs() > FOUND) & torch.isfinite(to) & ((to - here.at).abs() <= torch.maximum(reach, self.near * self.b.at[which[live]]))
            live, here, to, value = live[going.cpu()], here.take(going), to[going], value[going]
            if not len(live):
                break
            sample, fine = self.point(which[live], here, here, to, modes)
            fine = fine.clone()
            fine[fine.clone()] = height(sample.take(fine), low.take(live[fine.cpu()]), high.take(live[fine.cpu()])).abs() < value[fine].abs()
            mask = torch.zeros(len(which), dtype=torch.bool, device=self.curve.device)
            mask[live] = fine
            best = best.put(mask, sample.take(fine))
            live = live[fine.cpu()]
        return best

    def passes(self, which: Tensor, best: Sample) -> Bool[Tensor, " row"]:
        """Whether more or fewer real eigenvalues are above 1 right after `best` than right before it."""
        a, b = self.a.take(which), self.b.take(which)
        sides = []
        for at in (torch.maximum(best.at - BESIDE * b.at, best.at / 2), torch.minimum(best.at + BESIDE * b.at, (best.at + b.at) / 2)):
            sample, fine = self.point(which, a, b, at, True)
            sides.append(torch.where(fine, _ahead(sample), -1))
        return (sides[0] != sides[1]) & (torch.stack(sides).amin(0) >= 0)

    def point(self, which: Tensor, low: Sample, high: Sample, at: Tensor, modes: bool) -> tuple[Sample, Bool[Tensor, " row"]]:
        """The points of the curve across the lines at the distances `at`, looked for between two others; and which were found."""
        t = self.a.tangent[which]
        width = (high.at - low.at)[:, None]
        share = torch.where(width == 0, 0, (at - low.at)[:, None] / torch.where(width == 0, 1, width))
        left, right = (end.tangent / (end.tangent * t).sum(1, keepdim=True) for end in (low, high))
        # The cubic through both with their tangents; a straight line from one point alone.
        rise = torch.where(width == 0, left, (high.y - low.y) / torch.where(width == 0, 1, width))
        bend = share * (1 - share) * width * ((1 - share) * (left - rise) - share * (right - rise))
        guess = low.y + (at - low.at)[:, None] * rise + bend
        along = at + (self.a.y[which] * t).sum(1)
        guess = guess + (along - (guess * t).sum(1))[:, None] * t
        y, _, code = self.curve.correct(guess, self.rows[which], t, along, most=CORRECTIONS)
        y = self.curve.sharpened(y, self.rows[which], t)
        sample = replace(self.curve.look(y, self.rows[which], t, modes=modes), at=at)
        known = torch.isfinite(sample.tangent).all(1) & ~(sample.values.isnan().any(1) & modes)
        return sample, (code == CONVERGED).to(known.device) & known


def _turn(s: Sample) -> Int[Tensor, "row sign"]:
    return (s.tangent[:, -1:] > 0).long()


def _outside(s: Sample) -> Int[Tensor, "row sign"]:
    """How many eigenvalues are outside, and whether the real ones above 1 and below −1 among them are odd in number.

    Within the band a mode is not outside: modes that stay at 1, as symmetries have them, pass nothing.
    """
    out = s.values.abs() > 1 + s.band
    real = s.values.imag.abs() <= REAL
    ahead = (out & real & (s.values.real > 0)).sum(1)
    back = (out & real & (s.values.real < 0)).sum(1)
    count = out.sum(1)
    # With all of the leading modes outside, which of them are real is a matter of their order.
    told = count < s.values.shape[1]
    return torch.stack([count, torch.where(told, ahead % 2, 0), torch.where(told, back % 2, 0)], dim=1)


def _complete(curve: Curve, a: Sample, b: Sample) -> Bool[Tensor, " row"]:
    """Whether what passes shows: one end has an eigenvalue inside, and both have none that is not known well enough to say where it is."""
    whole = curve.first.shape[1] - 1 == curve.k
    known = torch.stack([((end.band <= TRUSTED) | (end.values.abs() < HARMLESS)).all(1) & ~end.values.isnan().any(1) for end in (a, b)]).all(0)
    return (known & (whole | (torch.minimum(_outside(a)[:, 0], _outside(b)[:, 0]) < curve.k))).cpu()


def _passing(s: Sample, low: Sample, high: Sample) -> Int[Tensor, "row one"]:
    """Which mode of `s` passes the unit circle between `low` and `high`: the moduli in order are continuous.

    Modes that are at +1 at both ends stay there, and are not among them.
    """
    staying = torch.stack([((end.values - 1).abs() <= end.band).sum(1) for end in (low, high)]).amin(0)
    place = (s.values - 1).abs().argsort(dim=1).argsort(dim=1)
    modulus = torch.where(place < staying[:, None], -1, s.values.abs())
    most = torch.maximum(_outside(low)[:, 0], _outside(high)[:, 0])
    return modulus.argsort(dim=1, descending=True, stable=True).gather(1, (most - 1).clamp(min=0)[:, None])


def _height(s: Sample, low: Sample, high: Sample) -> Float[Tensor, " row"]:
    """How far outside the mode is that passes between `low` and `high`. NaN where as many are outside at both."""
    passed = _outside(low)[:, 0] != _outside(high)[:, 0]
    return torch.where(passed, s.values.gather(1, _passing(s, low, high))[:, 0].abs() - 1, torch.nan)


def _fold(lines: _Lines, which: Tensor, low: Sample, high: Sample, best: Sample) -> Events:
    """A turn; with an eigenvalue that touches 1 and does not pass, it is a branch point met on the branch that turns there."""
    curve, span = lines.curve, lines.curve.span
    slope = ((high.tangent[:, -1] - low.tangent[:, -1]) / (high.at - low.at)).abs()
    away = best.tangent[:, -1].abs() + torch.finfo(torch.float64).eps
    error = span * (away**2 / (2 * slope) + best.off)
    kinds = ["fold"] * len(which)
    value = torch.full((len(which),), torch.nan, dtype=torch.complex128, device=curve.device)
    change = torch.zeros(len(which), dtype=torch.int64, device=curve.device)
    if curve.k:
        near = (best.values - 1).abs().argmin(1, keepdim=True)
        nearest = best.values.gather(1, near)[:, 0]
        known = ((nearest - 1).abs() <= TOUCHES) & (nearest.imag.abs() <= TOUCHES)
        value = torch.where(known, nearest, value)
        sides = torch.stack([_ahead(end) for end in (lines.a.take(which), lines.b.take(which))])
        touches = known & (sides[0] == sides[1])
        if bool(touches.any()):
            crowded = lines.passes(which, best) & touches
            lines.torn[which[crowded.cpu()]] = True
            touches = touches & ~crowded
        kinds = ["branch point" if touch else "fold" for touch in touches.tolist()]
        error = torch.where(touches, error + span * _blur(lines, which, best), error)
        change = torch.where(known, sides[1] - sides[0], 0)
    return _events(lines, which, tuple(kinds), best, error, value, change)


def _blur(lines: _Lines, which: Tensor, best: Sample) -> Float[Tensor, " row"]:
    """Where two branches meet the residual is a product of the distances to both: a point is known as well as its root.

    The distances weigh as much as the branch turns, or its eigenvalues move, over the whole step.
    """
    a, b = lines.a.take(which), lines.b.take(which)
    turn = (b.tangent[:, -1] - a.tangent[:, -1]).abs()
    moved = (b.values.abs().amax(1) - a.values.abs().amax(1)).abs()
    slope = torch.fmax(turn, moved) / b.at
    return UNSURE * ((best.residual + torch.finfo(torch.float64).eps) / slope).sqrt()


def _ahead(s: Sample) -> Int[Tensor, " row"]:
    """How many real eigenvalues are above 1, by more than the band: modes that stay at 1 are not."""
    return ((s.values.real > 1 + s.band) & (s.values.imag.abs() <= REAL)).sum(1)


def _crossing(lines: _Lines, which: Tensor, low: Sample, high: Sample, best: Sample) -> Events:
    counts = torch.stack([_outside(low)[:, 0], _outside(high)[:, 0]])
    mode = _passing(best, low, high)
    value, doubt = best.values.gather(1, mode)[:, 0], best.doubt.gather(1, mode)[:, 0]
    value = torch.complex(value.real, value.imag.abs())
    left, right = _height(low, low, high), _height(high, low, high)
    slope = ((right - left) / (high.at - low.at)).abs()
    away = ((value.abs() - 1).abs() + doubt + torch.finfo(torch.float64).eps) / slope
    away = torch.where(counts[0] == counts[1], high.at - low.at, away)
    error = lines.curve.span * (best.tangent[:, -1].abs() * away + best.off)
    kinds = tuple(_kind(one, off) for one, off in zip(value.tolist(), doubt.tolist(), strict=True))
    error = torch.where((value.abs() - 1).abs() <= TOUCHES, error, torch.inf)
    meets = torch.tensor([kind == "branch point" for kind in kinds], device=error.device)
    error = torch.where(meets, error + lines.curve.span * _blur(lines, which, best), error)
    change = counts[1] - counts[0]
    half = torch.tensor([kind == "Neimark-Sacker" for kind in kinds], device=change.device) & (change.abs() == 1)
    # A pair of which the leading modes hold one.
    return _events(lines, which, kinds, best, error, value, torch.where(half, 2 * change, change))


def _kind(value: complex, doubt: float) -> str:
    if value.imag > max(REAL, doubt**0.5):
        return "Neimark-Sacker"
    return "branch point" if value.real > 0 else "flip"


def _events(lines: _Lines, which: Tensor, kinds: tuple[str, ...], best: Sample, error: Tensor, value: Tensor, change: Tensor) -> Events:
    parameter = lines.curve.parameter(best.y, lines.rows[which])
    rounding = torch.finfo(lines.curve.search.dtype).eps * parameter.abs()
    return Events(which, kinds, best.at, best.y, parameter, error + rounding, value, change)


def chosen(events: Events, mask: Bool[Tensor, " event"]) -> Events:
    """The events where `mask` holds."""
    some = mask.to(events.at.device)
    kinds = tuple(kind for kind, keep in zip(events.kind, mask.tolist(), strict=True) if keep)
    return Events(
        events.row[mask], kinds, events.at[some], events.y[some], events.parameter[some], events.error[some], events.eigenvalue[some], events.change[some]
    )
