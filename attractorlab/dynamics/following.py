"""The loop behind continuation: branches that ended leave, and what was met is put in the order of the branches."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.crossings import Events, chosen, events_between
from attractorlab.dynamics.curve import CONVERGED, NONFINITE, Curve, Sample
from attractorlab.dynamics.orbits import DIVERGED
from attractorlab.dynamics.searching import norm
from attractorlab.types import State

FIRST_CORRECTIONS, CORRECTIONS = 30, 8  # Newton steps that a start, and a point of the branch, may take
WANTED = 4  # Newton steps of a point at which the step is right
GROWTH, SHRINK = 1.5, 0.5  # of the step, at most at once, and after a step that failed
TURN = math.cos(0.5)  # of the angle between tangents beyond which a step was too long
SKEW = 0.05  # sine of the angle between a step and the mean of its tangents: beyond it the step may have led to another branch
STEADY = 0.3  # the angle that steps aim at where the branch turns
JUMP = 2.0  # steps: a point farther away is on another branch
SMALLEST = 1e-5  # step relative to the first one at which a branch is given up
CLOSE = 1e-6  # scaled distance from its first point at which a branch is closed
PER_POINT = ("parameter", "arclength", "slope", "residual", "error", "eigenvalues")
WORDS = ("going", "range", "closed", "max steps", "diverged", "nonfinite", "step underflow", "no start")


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
class Part:
    """All that was found in one chunk of branches."""

    points: list[_Points]
    met: list[_Met]
    end: Int[Tensor, " row"]
    steps: Int[Tensor, " row"]
    words: list[str]


class Follow:
    """The loop: a step of every branch that is still going, and those that ended leave."""

    def __init__(self, curve: Curve, sign: Tensor, step: float, max_steps: int) -> None:
        n = len(curve.first)
        self.curve, self.sign, self.step, self.max_steps = curve, sign, step, max_steps
        self.low, self.high = (float(bound) / curve.span for bound in curve.bounds)
        self.points: list[_Points] = []
        self.met: list[_Met] = []
        self.end, self.tries, self.count = (torch.zeros(n, dtype=torch.int64) for _ in range(3))
        self.arclength = torch.zeros(n, dtype=torch.float64, device=curve.device)

    def run(self) -> Part:
        rows, here = self._begin()
        self.first, self.ds = here, torch.full((len(self.end),), self.step, dtype=torch.float64, device=self.curve.device)
        self.failed = torch.zeros_like(self.ds, dtype=torch.bool)
        self.cause = torch.zeros_like(self.end)  # the worst code since two steps in a row were good
        self.place = torch.full((len(self.end),), -1)  # of each branch among those that began
        self.place[rows] = torch.arange(len(rows))
        while len(rows):
            self.tries[rows] += 1
            ds = self.ds[rows]
            there, good, word = self._next(rows, here)
            if bool(good.any()):
                torn = self._met(rows[good.cpu()], here.take(good), there.take(good))
                good, word = self._shorter(rows, ds, good, word, torn)
                self._keep(rows[good.cpu()], there.take(good), norm(there.y - here.y)[good])
                here = here.put(good, there.take(good))
            word = torch.where((word == 0) & (self.tries[rows] >= self.max_steps), WORDS.index("max steps"), word)
            self.end[rows] = word
            stay = word == 0
            rows, here = rows[stay], here.take(stay.to(self.curve.device))
        return Part(self.points, self.met, self.end, self.tries, self.curve.words)

    def _begin(self) -> tuple[Tensor, Sample]:
        """The first points; starts that are none, and branches that begin on a bound and lead out, end here."""
        curve = self.curve
        rows = torch.arange(len(self.end))
        y, _, code = curve.correct(curve.first, rows, None, curve.first[:, -1], most=FIRST_CORRECTIONS)
        self.end[code != CONVERGED] = WORDS.index("no start")
        self.end[code == NONFINITE] = WORDS.index("nonfinite")
        rows = (self.end == 0).nonzero().squeeze(1)
        here = curve.begin(y[rows], rows, self.sign[rows])
        finite = torch.isfinite(here.tangent).all(1).cpu()
        self.end[rows[~finite]] = WORDS.index("nonfinite")
        rows, here = rows[finite], here.take(finite)
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
            mean = here.tangent[tried] + sample.tangent
            chord = sample.y - here.y[tried]
            skew = norm(chord / norm(chord)[:, None] - mean / norm(mean)[:, None])
            mask[tried] = ~(skew > SKEW)
            good = mask & (cosine > TURN)
        grow = (2.0 ** ((WANTED - steps) / 3)).clamp(SHRINK, GROWTH).to(ds)
        grow = torch.minimum(grow, STEADY / cosine.clamp(-1, 1).arccos()).clamp(min=SHRINK)
        grow = torch.where(self.failed[rows], grow.clamp(max=1), grow)  # not at once again where a longer step has failed
        again = torch.where(self.failed[rows].cpu(), self.cause[rows], 0)
        self.cause[rows] = torch.where(good.cpu(), again, torch.maximum(again, code))
        self.failed[rows] = ~good
        self.ds[rows] = torch.where(good, (ds * grow).clamp(max=self.step), ds * SHRINK)
        large = (norm(there.y[:, :-1]) > DIVERGED * norm(curve.first[rows, :-1]).clamp(min=1)).cpu()
        ok = good.cpu()
        word = torch.where(ok, word, 0)
        word[ok & (word == 0) & large] = WORDS.index("diverged")
        given_up = ~ok & (self.ds[rows] < SMALLEST * self.step).cpu()
        word[given_up] = torch.where(self.cause[rows][given_up] == NONFINITE, WORDS.index("nonfinite"), WORDS.index("step underflow"))
        return there, good, word

    def _onto_bound(self, rows: Tensor, here: Sample, y: Tensor, code: Tensor, word: Tensor) -> None:
        """Points beyond the span are brought back onto its bound, in place."""
        p, before = y[:, -1], here.y[:, -1]
        out = ((code == CONVERGED).to(p.device) & ((p <= self.low) | (p >= self.high))).cpu().nonzero().squeeze(1)
        if len(out):
            bound = torch.where(p[out] >= self.high, torch.full_like(p[out], self.high), torch.full_like(p[out], self.low))
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

    def _met(self, rows: Tensor, here: Sample, there: Sample) -> Bool[Tensor, " row"]:
        """Keep the events on a step of each row; and which steps are to be taken anew, whose events are not kept."""
        found, torn = events_between(self.curve, rows, here, there)
        for events in (chosen(one, ~torn[one.row]) for one in found):
            at = rows[events.row]
            self.met.append(_Met(at, self.count[at] - 1, self.curve.state(events.y, at), events))
        return torn

    def _shorter(self, rows: Tensor, ds: Tensor, good: Tensor, word: Tensor, torn: Tensor) -> tuple[Bool[Tensor, " row"], Int[Tensor, " row"]]:
        """The good steps without those that are to be taken anew at half their length, and why branches end."""
        again = good.cpu().nonzero().squeeze(1)[torn]
        if len(again):
            good, word, at = good.clone(), word.clone(), rows[again]
            good[again], self.failed[at] = False, True
            self.ds[at] = ds[again] * SHRINK
            word[again] = torch.where(self.ds[at].cpu() < SMALLEST * self.step, WORDS.index("step underflow"), 0)
        return good, word

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


def joined(parts: list[Part], z: State) -> dict[str, Any]:
    """The points and events of all chunks, sorted by branch and along it, as fields of `Branch`."""
    offset = 0
    points: list[_Points] = []
    met: list[_Met] = []
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
