"""continuation: follow fixed points along a parameter, around folds, and find where their stability changes."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.curve import Curve
from attractorlab.dynamics.door import check_at
from attractorlab.dynamics.following import WORDS, Follow, joined
from attractorlab.dynamics.krylov import blocks_of_rows, dtype_of
from attractorlab.dynamics.modes import Method
from attractorlab.dynamics.orbits import check_tol
from attractorlab.dynamics.parametric import PARAMETER, ParametricMap
from attractorlab.dynamics.searching import GMRES_CAP, norm
from attractorlab.types import Branch, State

HIDDEN, HIDDEN_STEP = 0.05, {torch.float64: 1e-6, torch.float32: 1e-2}  # the check of the derivative: relative error, and step in spans


def continuation(
    family: ParametricMap,
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
    that meet a followed one are told of (branch point) and not entered. A step whose ends differ in stability with nothing between them that passes has leapt to another
    branch nearby, and is taken anew, shorter; without eigenvalues, or where both branches are as stable, only a leap that bends the branch is seen. Passages of eigenvalues are looked for among the `k` leading ones, where these are not all outside the
    unit circle at both ends of a step, and known to 1e-3: not beside a point that is ill-conditioned.

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
        >>> cusp = ParametricMap(lambda z, x, b: {"z": torch.tanh(2 * z["z"] + b[:, None])}, name="b")
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
    sign = torch.as_tensor(direction)
    if sign.ndim > 1 or sign.numel() not in (1, n):
        raise ValueError(
            f"`continuation` got directions of shape {tuple(sign.shape)} for {n} states. There is one for all branches or one each. Use direction=1, or a tensor of {n}."
        )
    sign = sign.expand(n)
    _check(family, z, parameter, sign, span=span, tol=tol, step=step, max_steps=max_steps, k=k, scale=scale)
    f = family.at(parameter)
    instance, start = f.coordinates(z)
    check_at(f, z, "continuation")
    length = trees.norm(z).to(torch.float64).clamp(min=1) if scale is None else torch.full((n,), scale, dtype=torch.float64)
    width = span[1] - span[0]
    parts = []
    for rows in blocks_of_rows(f, z, vectors=2 * GMRES_CAP):
        some = replace(family, like=family.like.take(rows))
        curve = Curve(
            some, trees.take(z, rows), parameter[rows], scale=length[rows.to(length.device)], span=span, tol=tol, k=k, method=method
        )
        _check_derivative(curve)
        parts.append(Follow(curve, sign[rows], step, max_steps).run())
    return Branch(
        **joined(parts, z),
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


def _check(
    family: ParametricMap,
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
    if PARAMETER in z:
        raise ValueError(f"`continuation` got a state with a leaf {PARAMETER!r}. The parameter of a family goes by that name. Rename the leaf.")
    if not (span[0] < span[1] and math.isfinite(span[1] - span[0])):
        better = (span[1], span[0]) if span[1] < span[0] else (0.0, 1.0)
        raise ValueError(f"`continuation` got span={span}. It is the least and the largest parameter, both finite. Use span={better}, or a wider one.")
    outside = ~((parameter >= span[0]) & (parameter <= span[1]))
    if bool(outside.any()):
        raise ValueError(
            f"`continuation` got a start at {family.name} = {float(parameter[outside][0]):g} for span={span}. A branch starts inside of its span. "
            "Widen the span, or begin elsewhere."
        )
    if bool((sign.abs() != 1).any()):
        raise ValueError(f"`continuation` got a direction of {int(sign[sign.abs() != 1][0])}. A branch begins up or down the parameter. Use 1 or -1.")
    if not (0 < step < math.inf and max_steps >= 1 and (scale is None or 0 < scale < math.inf)):
        raise ValueError(
            f"`continuation` got step={step}, max_steps={max_steps}, scale={scale}. A branch is followed in one or more steps of a length above 0, "
            "in a scale above 0, all finite. Use step=0.05, max_steps=200 and no scale."
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
