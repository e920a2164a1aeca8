"""Curve: the fixed points of a family as curves in state and parameter, and Newton's method across them."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.krylov import NOISE, gmres, random_vectors
from attractorlab.dynamics.modes import Method
from attractorlab.dynamics.orbits import FLOOR
from attractorlab.dynamics.parametric import PARAMETER, ParametricMap
from attractorlab.dynamics.searching import ERROR_FORCING, GMRES_CAP, UNSOLVED, Search, norm
from attractorlab.dynamics.spectrum import spectrum
from attractorlab.types import State

ROUNDS = 3  # Krylov spaces that a linear system may be given, one after the other
NEAR = {torch.float64: 1e-8, torch.float32: 1e-4}  # an eigenvalue is not known to be outside the unit circle by less
TANGENT_FORCING = {torch.float64: 1e-10, torch.float32: 1e-5}
LONGEST = 10.0  # scaled length beyond which a Newton step is no correction
SHORT = 1e-3  # of the scale: residuals of shorter states are relative to it
WORSE = 10.0  # times the first residual: Newton's method is not going to converge

CONVERGED, FAILED, NONFINITE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Sample:
    """Points of the curves, one a row, with all that is asked of them. `at` is where each lies along the line on which it was looked for."""

    y: Float[Tensor, "row dim"]
    tangent: Float[Tensor, "row dim"]
    at: Float[Tensor, " row"]
    residual: Float[Tensor, " row"]
    error: Float[Tensor, " row"]
    off: Float[Tensor, " row"]  # how far the parameter may be off, in units of the span
    values: Complex[Tensor, "row mode"]
    doubt: Float[Tensor, "row mode"]  # the errors of the eigenvalues
    band: Float[Tensor, "row mode"]  # how near 1 a modulus is neither inside nor outside the unit circle
    verdict: Int[Tensor, " row"]  # numbers in `Curve.words`

    def take(self, chosen: Tensor) -> "Sample":
        return Sample(**{one.name: getattr(self, one.name)[chosen] for one in fields(self)})

    def put(self, mask: Bool[Tensor, " row"], other: "Sample") -> "Sample":
        """The rows of `other`, one for each place where `mask` holds, in these places."""
        new = {one.name: getattr(self, one.name).clone() for one in fields(self)}
        for name, values in new.items():
            values[mask] = getattr(other, name)
        return Sample(**new)


class Curve:
    """Residuals, corrections and tangents on flat vectors y: the state in units of `scale` (a number a row), then the parameter in units of `span`.

    Lengths and angles are those of y. Vectors are float64 and always rounded to the dtype of the state.
    """

    def __init__(
        self, family: ParametricMap, z: State, parameter: Tensor, *, scale: Tensor, span: tuple[float, float], tol: float, k: int, method: Method | None
    ) -> None:
        start = {**z, PARAMETER: parameter[:, None]}
        self.family, self.like, self.k, self.method, self.tol, self.span = family, z, k, method, tol, span[1] - span[0]
        self.search = Search(family.extended(), start)
        self.units = torch.cat([scale[:, None].expand(-1, trees.size(z)), torch.full_like(scale, self.span)[:, None]], dim=1)
        self.bounds = self.search.round(torch.tensor(span, dtype=torch.float64, device=scale.device)[:, None])
        self.first = self.y(trees.flatten(start).to(torch.float64), torch.arange(len(parameter)))
        self.words: list[str] = ["not asked"]
        self.device = self.first.device

    def y(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.search.round(x) / self.units[rows]

    def x(self, y: Tensor, rows: Tensor) -> Tensor:
        x = self.search.round(y * self.units[rows])
        for bound in self.bounds:  # dividing by the unit and multiplying again may miss it by a rounding
            x[:, -1] = torch.where((x[:, -1] - bound).abs() <= 4 * torch.finfo(torch.float64).eps * bound.abs(), bound, x[:, -1])
        return x

    def state(self, y: Tensor, rows: Tensor) -> State:
        """The states alone."""
        return {name: leaf for name, leaf in self.search.state(self.x(y, rows)).items() if name != PARAMETER}

    def parameter(self, y: Tensor, rows: Tensor) -> Float[Tensor, " row"]:
        return self.x(y, rows)[:, -1]

    def residual(self, y: Tensor, rows: Tensor) -> tuple[Float[Tensor, "row dim"], Float[Tensor, " row"]]:
        """f(z) − z with a 0 for the parameter, in the units of y, and its length over that of the state."""
        r = self.search.residual(self.x(y, rows), rows) / self.units[rows]
        r[:, -1] = 0
        return r, self.relative(r, y)

    def relative(self, d: Tensor, y: Tensor) -> Float[Tensor, " row"]:
        """The length of the state's part of `d` over that of `y`, or over a thousandth of the scale if the state is shorter."""
        return norm(d[:, :-1]) / norm(y[:, :-1]).clamp(min=SHORT)

    def correct(
        self, y: Tensor, rows: Tensor, normal: Tensor | None, at: Tensor, *, most: int
    ) -> tuple[Tensor, Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Newton's method from `y` to the point of the curve with ``normal · y = at``; without a normal, to the one at the parameter of `y`.

        Returns:
            The points, the Newton steps taken, and CONVERGED, FAILED or NONFINITE, for each row.
        """
        y, n = y.clone(), len(rows)
        code, steps = torch.full((n,), FAILED), torch.zeros(n, dtype=torch.int64)
        live, first = torch.arange(n), torch.full((n,), torch.inf, dtype=torch.float64, device=self.device)
        for step in range(most + 1):
            r, size = self.residual(y[live], rows[live])
            first[live] = torch.minimum(first[live], size) if step == 0 else first[live]
            nonfinite, good = ~torch.isfinite(size), size < self.tol
            steps[live] = step
            code[live[good.cpu()]], code[live[nonfinite.cpu()]] = CONVERGED, NONFINITE
            going = (~(nonfinite | good) & (size <= WORSE * first[live])).cpu()
            live, r, size = live[going], r[going], size[going]
            if step == most or not len(live):
                break
            c = self._normal(normal, live, rows)
            rhs = -r
            if normal is not None:
                rhs[:, -1] = at[live] - (c * y[live]).sum(1)
            forcing = (0.1 * self.tol / size).clamp(1e-8, 1e-3)
            v, _ = Bordered(self, y[live], rows[live], c).solve(rhs, forcing)
            if normal is None:
                v[:, -1] = 0
            fine = (torch.isfinite(v).all(1) & (norm(v) <= LONGEST)).cpu()
            code[live[~fine & ~torch.isfinite(v).all(1).cpu()]] = NONFINITE
            live, v = live[fine], v[fine]
            y[live] = self.y((y[live] + v) * self.units[rows[live]], rows[live])
            if not len(live):
                break
        return y, steps, code

    def look(self, y: Tensor, rows: Tensor, normal: Tensor, *, modes: bool = True) -> Sample:
        """The residual, the unit tangent (on the side of `normal`), the error and, if `modes`, the spectrum at points of the curve."""
        system = Bordered(self, y, rows, normal)
        r, size = self.residual(y, rows)
        up = torch.zeros_like(y)
        up[:, -1] = 1
        tangent, _ = system.solve(up, torch.full_like(size, TANGENT_FORCING[self.search.dtype]))
        tangent = tangent / norm(tangent)[:, None]
        # The distance to the curve: a Newton step with no part along the tangent.
        system.normal = tangent
        d, left = system.solve(-r, torch.full_like(size, ERROR_FORCING))
        # Along a circle of fixed points nothing can be solved for; there only rounding is left.
        known = (left <= UNSOLVED) | (size <= FLOOR[self.search.dtype])
        error = torch.where(known, self.relative(d, y), torch.inf)
        off = torch.where(known, d[:, -1].abs(), torch.inf)
        blank = torch.full((len(y), self.k), torch.nan, dtype=torch.float64, device=self.device)
        verdict = torch.zeros(len(y), dtype=torch.int64, device=self.device)
        sample = Sample(y, tangent, torch.zeros_like(size), size, error, off, blank.to(torch.complex128), blank, blank, verdict)
        return self.with_modes(sample, rows) if modes else sample

    def begin(self, y: Tensor, rows: Tensor, sign: Tensor) -> Sample:
        """The same at the first points, with the tangent on which the parameter grows (`sign` 1) or falls (−1): also where a branch turns."""
        normal = random_vectors(1, y.shape[1], seed=2).to(y).expand_as(y) / y.shape[1] ** 0.5
        first = self.look(y, rows, normal, modes=False)
        here = self.look(y, rows, first.tangent)
        turned = torch.where(here.tangent[:, -1] < 0, -sign.to(y), sign.to(y))
        return replace(here, tangent=here.tangent * turned[:, None])

    def with_modes(self, sample: Sample, rows: Tensor) -> Sample:
        """The sample with the leading eigenvalues at its points."""
        y = sample.y
        if self.k == 0 or not len(y):
            return sample
        f = replace(self.family, like=self.family.like.take(rows)).at(self.parameter(y, rows).to(self.search.dtype))
        found = spectrum(f, self.state(y, rows), k=self.k, method=self.method)
        self.words.extend(word for word in dict.fromkeys(found.verdict) if word not in self.words)
        doubt = (found.condition * found.defect).to(torch.float64).nan_to_num(nan=torch.inf)
        verdict = torch.tensor([self.words.index(word) for word in found.verdict], device=self.device)
        values, doubt = found.eigenvalues.to(torch.complex128).to(self.device), doubt.to(self.device)
        return replace(sample, values=values, doubt=doubt, band=(5 * doubt).clamp(min=NEAR[self.search.dtype]), verdict=verdict)

    def sharpened(self, y: Tensor, rows: Tensor, normal: Tensor) -> Float[Tensor, "row dim"]:
        """`y` after one more Newton step, where that makes the residual smaller."""
        r, size = self.residual(y, rows)
        v, _ = Bordered(self, y, rows, normal).solve(-r, torch.full_like(size, 1e-3))
        new = self.y((y + v) * self.units[rows], rows)
        better = self.residual(new, rows)[1] < size
        return torch.where(better[:, None], new, y)

    def _normal(self, normal: Tensor | None, live: Tensor, rows: Tensor) -> Tensor:
        if normal is not None:
            return normal[live]
        c = torch.zeros_like(self.first[rows[live]])
        c[:, -1] = 1
        return c


class Bordered:
    """The matrix [J − I, derivative by the parameter; normal] at each row of `y`, without ever forming it."""

    def __init__(self, curve: Curve, y: Tensor, rows: Tensor, normal: Tensor) -> None:
        self.units, self.normal, self.noise = curve.units[rows], normal, NOISE[curve.search.dtype]
        x = curve.x(y, rows)
        self.product = curve.search.jacobian(x, rows)
        self.column = None
        step = curve.family.difference
        if step is not None:  # the extended map does not see the parameter: its column is added by hand
            ahead, back = x.clone(), x.clone()
            ahead[:, -1] += step
            back[:, -1] -= step
            width = curve.search.round(ahead)[:, -1:] - curve.search.round(back)[:, -1:]
            # What is subtracted from both, the state, cancels.
            self.column = (curve.search.residual(curve.search.round(ahead), rows) - curve.search.residual(curve.search.round(back), rows)) / width

    def __call__(self, v: Tensor, at: Tensor) -> Tensor:
        raw = v * self.units[at]
        w = self.product(raw, at) - raw
        if self.column is not None:
            w = w + raw[:, -1:] * self.column[at]
        w = w / self.units[at]
        w[:, -1] = (self.normal[at] * v).sum(1)
        return w

    def solve(self, b: Tensor, tol: Tensor) -> tuple[Float[Tensor, "row dim"], Float[Tensor, " row"]]:
        """Solutions to a relative residual of `tol`, by restarted GMRES, and the relative residuals that were reached."""
        v, left = gmres(self, b, tol=tol, cap=GMRES_CAP, noise=self.noise)
        for _ in range(ROUNDS - 1):
            open_ = ((left > tol) & torch.isfinite(left)).cpu().nonzero().squeeze(1)
            if not len(open_):
                break
            rest = b[open_] - self(v[open_], open_)
            more, _ = gmres(lambda w, at, open_=open_: self(w, open_[at]), rest, tol=(tol / left)[open_], cap=GMRES_CAP, noise=self.noise)  # type: ignore[misc]
            trial = v[open_] + more
            after = norm(b[open_] - self(trial, open_)) / norm(b[open_])
            better = after < left[open_]
            chosen = open_[better.cpu()]
            v[chosen], left[chosen] = trial[better], after[better]
            if not len(chosen):
                break
        return v, left
