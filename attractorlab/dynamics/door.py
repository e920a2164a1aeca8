"""What every analysis of a map asks of it at the door: one dtype, and no sign at one row of a broken law."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.orbits import FLOOR
from attractorlab.dynamics.records import Record
from attractorlab.maps import LatentMap, relative, yardstick
from attractorlab.types import State

ROUNDINGS = 1000  # that one row in another batch may differ by; `check_map` looks closer
DISTANCES = {torch.float64: (1e-4, 1e-5, 1e-6), torch.float32: (3e-2, 1e-2, 1e-3)}  # of difference quotients, relative to the state
FEW = 8  # rows that a map is tried on before it is only run
RANDOM = "The same state gives the same tick. Turn off noise and dropout (`model.eval()`), and add noise between ticks with `trace(..., kick=...)`."
MIXED = "A row depends on itself alone. Pass whatever is held per row through the drive, and put batch norms into evaluation mode."
GROSS = 0.1  # share of every difference quotient that the derivative may miss: kinks and jumps lie within some of them; and of the norm that a row may move without the others


def check_at(f: LatentMap, z: State, caller: str, *, derivative: bool = True) -> None:
    """Refuse states of several dtypes, or of another than the drive, and what `_check_map` refuses.

    Raises:
        ValueError: If they are, or as `_check_map`.
    """
    trees.rows(z)
    kinds = {leaf.dtype for leaf in z.values()}
    clash = {leaf.dtype for leaf in f.drive.values() if leaf.is_floating_point()} - kinds
    if clash or len(kinds) > 1:
        raise _several(kinds, clash, caller)
    _check_map(f, z, caller, derivative=derivative)


def check_strategy(given: object, name: str, caller: str, *, example: str) -> None:
    """Refuse a way of doing something that is no function, such as its name in quotes.

    Raises:
        ValueError: If it is none.
    """
    if not callable(given):
        raise ValueError(f"`{caller}` got {name}={given!r}. A way of doing it is a function, passed without quotes. Use {name}={example}.")


def check_some(f: LatentMap, z: State, caller: str, *, laws: bool) -> None:
    """Refuse a map that, on a few rows spread over all, writes into its argument or gives no state like it; and with `laws`, one that is random or mixes its rows.

    Leaves and drive may be of several dtypes. Two runs that should agree are told apart by more than rounding, as the map itself amplifies it, and in every row: one that
    jumps, as a sign does, may take a row elsewhere in another batch. `attractorlab.testing.check_map` looks closer.

    Raises:
        ValueError: If it does.
    """
    n = trees.rows(z)
    rows = torch.linspace(0, n - 1, min(n, FEW if laws else 2)).round().long()
    few, some = f.take(rows), trees.take(z, rows)
    try:
        out = _fitting(few, some, caller)
        if laws:
            _check_agreement(few, some, out, caller)
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # of the map's author, or of memory
            raise
        return  # torch's own: a closure over all rows fits no others. If it is another, the run meets it, too


@torch.no_grad()
def _check_agreement(f: LatentMap, z: State, out: State, caller: str) -> None:
    """Raise a ValueError if the map runs otherwise again, or grossly otherwise without some of the rows and not because it amplifies rounding; both in every row that is finite."""
    fine = trees.finite(z) & trees.finite(out)
    floor = max(FLOOR[leaf.dtype] for leaf in z.values())
    off = _apart(out, _fitting(f, z, caller))[fine]
    if len(off) and bool((off > min(GROSS, ROUNDINGS * floor)).all()):
        raise ValueError(f"`{caller}` got a map that takes one state to places {float(off.min()):.0e} of their norm apart, run twice. {RANDOM}")
    some = torch.arange(max(2, trees.rows(z) // 2))
    if trees.rows(z) <= len(some):
        return
    rest = fine[some]
    off = _apart(trees.take(out, some), _fitting(f.take(some), trees.take(z, some), caller))[rest]
    if not len(off) or not bool((off > GROSS).all()):
        return
    eps = max(torch.finfo(leaf.dtype).eps for leaf in z.values())
    drive = {name: leaf * (1 + eps) if leaf.is_floating_point() else leaf for name, leaf in f.drive.items()}
    nudged = f.rule({name: leaf * (1 + eps) + eps for name, leaf in z.items()}, drive)
    if bool((off > ROUNDINGS * _apart(out, nudged)[some][rest]).all()):
        raise ValueError(f"`{caller}` got a map that takes one state to places {float(off.min()):.0e} of their norm apart, run with and without other rows. {MIXED}")


def _apart(one: State, other: State) -> Float[Tensor, " row"]:
    return relative(trees.distance(one, other), one)


def _check_map(f: LatentMap, z: State, caller: str, *, derivative: bool) -> None:
    """Refuse states in another dtype than the map computes in, and maps that break a law so grossly that one row shows it.

    A copy of all rows is run once. One row is run alone, twice, and beside the others; with `derivative`, its derivative is held against difference quotients. A map that
    passes may still break a law: `attractorlab.testing.check_map` tests them all.

    Raises:
        ValueError: If the image has other leaves, shapes or dtypes than `z`, or the map writes into its argument, is random, mixes its rows or hides its derivative.
    """
    if not trees.rows(z):
        return
    out = _fitting(f, z, caller)
    finite = trees.finite(z) & trees.finite(out)
    if not bool(finite.any()):
        return  # each row then ends with its result
    row = int((finite.long() * (1 + (trees.norm(z) > torch.finfo(trees.norm(z).dtype).eps ** 0.5))).argmax())  # the first that is not about 0, if there is one
    alone, one = f.take([row]), trees.take(z, slice(row, row + 1))
    _check_values(alone, one, trees.take(out, slice(row, row + 1)), caller)
    if derivative:
        _check_derivative(alone, one, caller)


def _several(have: set[torch.dtype], wanted: set[torch.dtype], caller: str) -> ValueError:
    there, here = (", ".join(sorted(str(kind).removeprefix("torch.") for kind in some)) for some in (have, wanted))
    return ValueError(
        f"`{caller}` got states in {there} for a map in {here or 'one dtype'}. State and map are worked on in one dtype. "
        "Cast both: the state by `trees.to(z, torch.float64)`, and the weights, those of a reasoner by `reasoner.to(torch.float64)` before it is bound."
    )


def _fitting(f: LatentMap, z: State, caller: str) -> State:
    """f(z), if it is a state like `z`, dtypes too, and `z` is left as it was."""
    out = _image(f, z, caller)
    clash = {out[name].dtype for name in z if out[name].dtype != z[name].dtype}
    if clash:
        raise _several({leaf.dtype for leaf in z.values()}, clash, caller)
    return out


@torch.no_grad()
def _image(f: LatentMap, z: State, caller: str) -> State:
    """f(z), if it is a state like `z` and `z` is left as it was; the map is given a copy."""
    given = {name: leaf.clone() for name, leaf in z.items()}
    out: object = f.rule(given, f.drive)
    remedy = "Make the rule return the leaves it was given; what never changes goes into the drive, what is read off into the readout."
    if not isinstance(out, Mapping) or set(out) != set(z):
        came = sorted(out) if isinstance(out, Mapping) else type(out).__name__
        raise ValueError(f"`{caller}` got a map that takes a state of leaves {sorted(z)} to {came}. f(z) has the names and shapes of z. {remedy}")
    for name, leaf in z.items():
        if out[name].shape != leaf.shape:
            raise ValueError(
                f"`{caller}` got a map that takes leaf {name!r} of shape {list(leaf.shape)} to shape {list(out[name].shape)}. f(z) has the names and shapes of z. {remedy}"
            )
        if given.get(name) is None or not torch.equal(given[name].nan_to_num(nan=0.5), leaf.nan_to_num(nan=0.5)):
            raise ValueError(
                f"`{caller}` got a map that writes into leaf {name!r} of its argument. f(z) leaves z alone. "
                "Replace the in-place operation (`+=`, `copy_`, `z[...] =`) by one that makes a new tensor."
            )
    return {name: out[name] for name in z}


@torch.no_grad()
def _check_values(f: LatentMap, z: State, beside: State, caller: str) -> None:
    first, second = f(z), f(z)
    limit = ROUNDINGS * max(FLOOR[leaf.dtype] for leaf in z.values())
    for other, word, remedy in (
        (second, "alone, twice", RANDOM),
        (beside, "alone and beside other rows", MIXED),
    ):
        off = float(_apart(first, other))
        if off > limit and other is beside:
            # Many chaotic ticks in one amplify rounding: how much of it, a state that is one rounding away shows.
            nudged = f({name: leaf * (1 + torch.finfo(leaf.dtype).eps) for name, leaf in z.items()})
            limit = max(limit, ROUNDINGS * float(_apart(first, nudged)))
        if off > limit:
            raise ValueError(f"`{caller}` got a map that takes one state to places {off:.0e} of their norm apart, run {word}. {remedy}")


def _check_derivative(f: LatentMap, z: State, caller: str) -> None:
    """Refuse a derivative that every difference quotient contradicts, as that of a map that detaches or leaves out a part."""
    kind = next(iter(z.values())).dtype
    if kind not in DISTANCES:
        return
    draw = torch.Generator().manual_seed(11)
    v: State = {name: torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(leaf) for name, leaf in z.items()}
    size = float(yardstick(trees.norm(z)))  # where 1 is no small step, the quotients differ
    v = trees.scale(v, 1 / trees.norm(v))
    first = torch.zeros(1, dtype=torch.int64)
    record = Record(f, z, first)  # what products are made of, wherever a map can be recorded
    walked = record(trees.flatten(v).to(torch.float64), first) if record.usable else None
    try:
        push = _flat(f.jvp(z, v)) if walked is None else walked[0]
    except (RuntimeError, NotImplementedError):  # nor forward mode: there are other ways, or an error that says so
        return
    if not bool(push.isfinite().all()):
        return
    here = _flat(_call(f, z))
    shares, secants, bends = [], [], []
    for distance in DISTANCES[kind]:
        h = distance * size
        ahead, behind = ((_flat(_call(f, trees.add(z, trees.scale(v, side * h)))) - here) / (side * h) for side in (1, -1))
        # At a kink the derivative lies between that ahead and that behind.
        miss = torch.maximum(torch.minimum(ahead, behind) - push, push - torch.maximum(ahead, behind)).clamp(min=0).norm()
        rounding = ROUNDINGS * FLOOR[kind] * here.norm() / h
        secants.append((ahead + behind) / 2)
        bends.append(float((ahead - behind).norm() / secants[-1].norm().clamp(min=1e-300)))
        shares.append(float(torch.where(miss > rounding, miss, 0)) / max(1e-300, float(torch.maximum(secants[-1].norm(), push.norm()))))
    # Where the quotients themselves differ, the map curves, jumps or has a kink within them (as one that sorts has at ties), and they say nothing.
    told = bool((secants[0] - secants[-1]).norm() <= GROSS * secants[-1].norm()) and min(bends) <= GROSS
    if min(shares) > GROSS and told:
        raise ValueError(
            f"`{caller}` got a map whose derivative misses {100 * min(shares):.0f} % of how it changes. A tick is differentiable: small steps and products with its Jacobian agree. "
            "Leave out `detach` and `no_grad` within the tick; `attractorlab.testing.check_map` tells more."
        )


@torch.no_grad()
def _call(f: LatentMap, z: State) -> State:
    return f(z)


def _flat(z: State) -> Float[Tensor, " dim"]:
    """The one row of `z` in float64."""
    return trees.flatten(z).to(torch.float64)[0]
