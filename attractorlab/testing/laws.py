"""check_map: does a map obey the five laws that every analysis relies on?"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attractorlab import trees
from attractorlab.maps import LatentMap
from attractorlab.types import State


@dataclass(frozen=True)
class _Tolerance:
    """How far two computations of one thing may differ, relative to it, in one dtype.

    `rows`: one row in batches of different sizes; sums in another order, after a tick that may amplify rounding.
    `secant`: a difference quotient and jvp; the best step leaves eps^(2/3), times the map's own curvature.
    `adjoint`: jvp and vjp; rounding alone, through a forward and a backward pass.
    `steps`: of the secants, relative to the state. Large ones see curvature, small ones rounding, and a kink or a jump of
    the map may lie within any of them; so it is enough that one step agrees. A wrong derivative agrees with none, except a
    derivative of exactly 0 on the flats of a staircase: that one must agree with all.
    """

    rows: float
    secant: float
    adjoint: float
    steps: tuple[float, ...]


TOLERANCES = {
    torch.float64: _Tolerance(rows=1e-9, secant=1e-5, adjoint=1e-10, steps=(1e-4, 1e-3, 1e-5, 1e-6)),
    torch.float32: _Tolerance(rows=1e-3, secant=1e-2, adjoint=1e-4, steps=(1e-2, 3e-2, 3e-3, 1e-3)),
}
ROUNDINGS = 30  # roundings of f(z) that a secant or a product may see: a tick is a long chain of sums


def check_map(f: LatentMap, z: State, *, generator: torch.Generator) -> None:
    """Test the five laws on the rows of `z`, in the order closed, pure, deterministic, row-wise, differentiable.

    Passing is evidence at these states, not a proof. A map that is only pure, deterministic and smooth somewhere may fail elsewhere:
    check it again at the states that you study. `z` itself is left alone.

    Args:
        f: The map. It is called some 20 times on as many rows as `z` has, and on as few as half of them.
        z: The states, one per row of `f`, in float32 or float64. A few random starts of two or more instances will do; a
            single row is doubled, which shows whether states mix, but not whether drives do.
        generator: Draws directions, permutations and perturbations.

    Raises:
        AssertionError: If a law is broken. The text begins with the law's name.
        ValueError: If `z` and `f` differ in their number of rows, `z` is in a low precision, or f(z) is not finite.

    Example:
        >>> from attractorlab.testing import toys
        >>> g = torch.Generator().manual_seed(0)
        >>> toy = toys.separable_tanh(2.0, 3)
        >>> check_map(toy.map, toy.starts(4, generator=g), generator=g)
        >>> leaky = LatentMap(lambda z, x: {"z": z["z"] - z["z"].mean(0)}, {})
        >>> check_map(leaky, toy.starts(4, generator=g), generator=g)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        AssertionError: row-wise: with half of the rows left out, ...
    """
    if not len(f.coordinates(z)[0]):
        raise ValueError("`check_map` got a state of no rows. Laws are tried on one row or more. Pass some starts.")
    kinds = {leaf.dtype for leaf in z.values()}
    if len(kinds) != 1 or not kinds <= set(TOLERANCES):
        raise ValueError(
            f"`check_map` got a state in {', '.join(sorted(map(_word, kinds))) or 'no dtype'}. "
            "Broken laws are told from rounding in float32 or float64, one of them for all leaves. "
            "Cast the model first, e.g. `reasoner.to(torch.float32).bind(...)`."
        )
    tolerance = TOLERANCES[kinds.pop()]
    z = {name: leaf.detach() for name, leaf in z.items()}
    _check_closed(f, z)
    _check_pure(f, z)
    _check_deterministic(f, z)
    _check_rowwise(f, z, tolerance, generator)
    _check_differentiable(f, z, tolerance, generator)


def _check_closed(f: LatentMap, z: State) -> None:
    with torch.no_grad():
        out: object = f.rule(_clone(z), f.drive)
    remedy = "Make the rule return the leaves it was given; what never changes goes into the drive, what is read off into the readout."
    if not isinstance(out, Mapping):
        raise AssertionError(f"closed: the map gave a {type(out).__name__}. A state goes in and a state comes out. {remedy}")
    if set(out) != set(z):
        raise AssertionError(f"closed: leaves {sorted(z)} went in and {sorted(out)} came out. f(z) has the names of z. {remedy}")
    for name, leaf in z.items():
        asked, given = _kind(leaf), _kind(out[name])
        if asked != given:
            raise AssertionError(
                f"closed: leaf {name!r} went in as {asked} and came out as {given}. "
                "f(z) has the shapes, dtypes and devices of z. Cast or reshape once, where the state is made, and not within the tick."
            )
    bad = int((~trees.finite(out)).sum())
    if bad:
        raise ValueError(
            f"`check_map` got states that the map takes to NaN or infinity in {bad} rows. Laws are tested on finite numbers. "
            "Start from other states."
        )


def _check_pure(f: LatentMap, z: State) -> None:
    given = _clone(z)
    with torch.no_grad():
        out = f(given)
    for name, leaf in z.items():
        if not torch.equal(given[name], leaf):
            raise AssertionError(
                f"pure: the map wrote into leaf {name!r} of its argument. f(z) leaves z alone. "
                "Replace the in-place operation (`+=`, `copy_`, `z[...] =`) by one that makes a new tensor."
            )
    held = {leaf.untyped_storage().data_ptr(): name for name, leaf in given.items()}
    for name, leaf in out.items():
        if leaf.untyped_storage().data_ptr() in held:
            raise AssertionError(
                f"pure: leaf {name!r} of f(z) shares its memory with leaf {held[leaf.untyped_storage().data_ptr()]!r} of z. "
                "Whoever writes into one would change the other. "
                "Return a new tensor, or `.clone()` it; a leaf that never changes belongs into the drive."
            )


def _check_deterministic(f: LatentMap, z: State) -> None:
    first, second = _call(f, z), _call(f, z)
    change = trees.distance(first, second)
    if not all(torch.equal(first[name], second[name]) for name in z):
        raise AssertionError(
            f"deterministic: two calls at one state differ by up to {float(change.max()):.2g}. "
            "The same z gives the same f(z), bit for bit. "
            "Turn off noise and dropout (`model.eval()`), let no call count calls, and add noise between ticks with `trace(..., kick=...)`."
        )


def _check_rowwise(f: LatentMap, z: State, tolerance: _Tolerance, generator: torch.Generator) -> None:
    if trees.rows(z) == 1:
        f, z = f.take([0, 0]), trees.cat([z, _other(z, generator)])
    n = trees.rows(z)
    out = _call(f, z)
    remedy = (
        "Let row i depend on row i alone (no batch norm, no sum over rows), and pass whatever is held per row through the drive, "
        "where `f.take` can reach it, not through a closure."
    )
    whole = torch.arange(n)
    order = torch.randperm(n, generator=generator, device=generator.device).cpu()
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)  # one cycle through all rows, so that every row moves
    for chosen, what in (
        (cycle, "after the rows were permuted, they differ"),
        (whole[: (n + 1) // 2], "with half of the rows left out, the others differ"),
    ):
        here = trees.take(z, chosen.to(_device(z)))
        try:
            part = _call(f.take(chosen), here)
        except (RuntimeError, IndexError, ValueError) as error:
            raise AssertionError(
                f"row-wise: the map fails on {len(chosen)} of {n} rows ({_first_line(error)}). A map takes any of its rows. {remedy}"
            ) from error
        if trees.rows(part) != len(chosen):
            raise AssertionError(
                f"row-wise: {len(chosen)} of {n} rows went in and {trees.rows(part)} came out. A map takes any of its rows. {remedy}"
            )
        gap = _gap(part, trees.take(out, chosen.to(_device(z))))
        if gap > tolerance.rows:
            raise AssertionError(f"row-wise: {what} by up to {gap:.2g} of their size. Rows follow when they are chosen or moved. {remedy}")
    half = torch.zeros(n, dtype=torch.bool)
    half[order[: n // 2]] = True
    for mask in (half, ~half):
        mask = mask.to(_device(z))
        changed = _call(f, trees.where(mask, _other(z, generator), z))
        gap = _gap(trees.take(changed, ~mask), trees.take(out, ~mask))
        if gap > tolerance.rows:
            raise AssertionError(
                f"row-wise: new states in half of the rows changed the other rows by up to {gap:.2g} of their size. "
                f"Row i of f(z) depends on row i of z alone. {remedy}"
            )


def _check_differentiable(f: LatentMap, z: State, tolerance: _Tolerance, generator: torch.Generator) -> None:
    zero = trees.scale(z, 0.0)
    noise = _noise(z, generator)
    floor = _rounding(f, z)
    for name in z:  # leaf by leaf: a small leaf would drown in a large one
        v = {**zero, name: noise[name]}
        try:
            pushed = f.jvp(z, v)
            pulled = f.vjp(z, pushed)
        except RuntimeError as error:
            raise AssertionError(
                f"differentiable: leaf {name!r} cannot be differentiated ({_first_line(error)}). Both modes of autograd pass through f. "
                "Remove `no_grad` and in-place operations from the rule, and use operations that have derivatives in both modes."
            ) from error
        gap, secant, tangent = _secant_gap(f, z, v, pushed, tolerance)
        if gap > tolerance.secant:
            raise AssertionError(
                f"differentiable: along leaf {name!r} a secant of the map has length {secant:.3g} and jvp gives {tangent:.3g}, "
                f"{gap:.2g} apart relative to the larger. The derivative is that of the whole tick. "
                "Remove `detach`, `.data`, rounding and casts to a lower precision from the rule."
            )
        # With u = Jv both sides are ‖Jv‖²: no direction of u is left to chance.
        # What a strongly contracting map makes of v cancels out of numbers of the size of f(z), and carries their rounding; so does the second product.
        forward, backward = trees.dot(pushed, pushed), trees.dot(pulled, v)
        eps = ROUNDINGS * torch.finfo(forward.dtype).eps
        allowed = tolerance.adjoint * forward + floor * trees.norm(pushed) + eps * trees.norm(pulled) * trees.norm(v)
        off = ((forward - backward).abs() - allowed).nan_to_num(nan=torch.inf)
        worst = int((off / torch.where(forward > 0, forward, torch.ones_like(forward))).argmax())
        if bool((off > 0).any()):
            raise AssertionError(
                f"differentiable: along leaf {name!r} <Jv, Jv> is {float(forward[worst]):.3g} by jvp "
                f"and <v, JᵀJv> is {float(backward[worst]):.3g} by vjp. "
                "Both modes of autograd see the same map. Remove `no_grad` from the rule, also from all but the last of its inner steps."
            )


def _secant_gap(f: LatentMap, z: State, v: State, pushed: State, tolerance: _Tolerance) -> tuple[float, float, float]:
    """For the worst row: how far jvp is from its closest secant, beyond rounding; and the lengths of both."""
    flat = trees.norm(pushed) == 0
    best = torch.full_like(trees.norm(pushed), torch.inf)
    best[flat] = 0.0
    length = torch.zeros_like(best)
    floor = _rounding(f, z)
    for step in tolerance.steps:
        ahead, behind = (_call(f, trees.add(z, trees.scale(v, by))) for by in (step, -step))
        secant = trees.scale(trees.sub(ahead, behind), 0.5 / step)
        larger = torch.where(flat, trees.norm(v), torch.maximum(trees.norm(secant), trees.norm(pushed)))
        excess = (trees.distance(secant, pushed) - floor / step).clamp(min=0)
        gap = torch.where(excess > 0, excess / larger, excess).nan_to_num(nan=torch.inf)
        nearer = (gap > best) == flat
        length = torch.where(nearer, trees.norm(secant), length)
        best = torch.where(nearer, gap, best)
        if bool((best <= tolerance.secant).all()) and not bool(flat.any()):
            break
    worst = int(best.argmax())
    return float(best[worst]), float(length[worst]), float(trees.norm(pushed)[worst])


def _rounding(f: LatentMap, z: State) -> Tensor:
    """How much of each row of f(z) may be rounding."""
    size = trees.norm(_call(f, z))
    return ROUNDINGS * torch.finfo(size.dtype).eps * size


def _call(f: LatentMap, z: State) -> State:
    """f of a copy, so that a map that writes into its argument does no harm here."""
    with torch.no_grad():
        return f(_clone(z))


def _clone(z: State) -> State:
    return {name: leaf.detach().clone() for name, leaf in z.items()}


def _noise(z: State, generator: torch.Generator) -> State:
    """Normal numbers whose standard deviation is the root mean square of the row's leaf, or 1 where that is 0."""
    noise: dict[str, Tensor] = {}
    for name, leaf in trees.normal_like(z, generator=generator).items():
        size = z[name].flatten(1).square().mean(1).sqrt()
        noise |= trees.scale({name: leaf}, torch.where(size > 0, size, torch.ones_like(size)))
    return noise


def _other(z: State, generator: torch.Generator) -> State:
    """Other states, as far from `z` as `z` is from 0."""
    return trees.add(z, _noise(z, generator))


def _gap(u: State, v: State) -> float:
    """The largest distance of a row of `u` from `v`, relative to `v`, or to the typical row where `v` is smaller."""
    size = trees.norm(v)
    size = torch.maximum(size, size.mean())
    gap = trees.distance(u, v) / torch.where(size > 0, size, torch.ones_like(size))
    return float(gap.nan_to_num(nan=torch.inf).max())


def _device(z: State) -> torch.device:
    return next(iter(z.values())).device


def _kind(leaf: Tensor) -> str:
    return f"{_word(leaf.dtype)} {list(leaf.shape)} on {leaf.device}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
