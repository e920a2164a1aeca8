"""floquet: a tick taken apart at each point: what every update does to the leading modes, and from leaf to leaf."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.inside import check_updates
from attractorlab.dynamics.krylov import DENSE_LIMIT, NOISE, Jacobian, blocks_of_rows, dtype_of, random_vectors
from attractorlab.dynamics.modes import Method
from attractorlab.dynamics.spectrum import dense_jacobian, leading_modes
from attractorlab.maps import LatentMap, Update
from attractorlab.types import Floquet, State

BLOCK_TOL = {torch.float64: 1e-6, torch.float32: 1e-3}  # residual of the leading singular vectors relative to the singular value
LARGEST = 200  # Golub-Kahan steps that a block is given
FIRST_LOOK, NEXT_LOOK = 8, 4  # steps before the singular value is first looked at, and between looks

Multiply = Callable[[Float[Tensor, "row n"]], Float[Tensor, "row m"]]


def floquet(f: LatentMap, z: State, *, k: int, method: Method | None = None) -> Floquet:
    """The `k` leading Floquet multipliers at each row of `z`, and what every update of the tick contributes to them.

    They say where in a tick a mode is stretched, and which leaf carries it. An update may stretch a mode while the tick shrinks it: one gain above 1 is no
    instability. Multipliers describe stability only where `z` is at rest. A map without updates is taken as one update, "tick".

    Args:
        f: The map, one row per point. `strobe` it to see the updates of several ticks.
        z: The points, in float64 or float32, the dtype of the map.
        k: How many multipliers.
        method: How the multipliers are found, as for `spectrum`.

    Returns:
        One entry per row of `z`. Block gains are by LAPACK up to 1,000 numbers a state, otherwise by Golub-Kahan until the residual of the singular vectors is below
        1e-6 of the value (float32: 1e-3), or 200 steps; the residual is on record as `block_error`.

    Raises:
        ValueError: As `spectrum` does, or if the updates of the map, one after the other, are not its rule.

    Example:
        >>> first = Update("a", ("a",), lambda z, x: {"a": 4 * z["b"], "b": z["b"]})
        >>> second = Update("b", ("b",), lambda z, x: {"a": z["a"], "b": 0.125 * z["a"]})
        >>> f = LatentMap(lambda z, x: second.rule(first.rule(z, x), x), {}, updates=(first, second))
        >>> found = floquet(f, {"a": torch.zeros(1, 1).double(), "b": torch.zeros(1, 1).double()}, k=1)
        >>> found.multipliers.real.item(), found.block_gain[0].tolist()
        (0.5, [[0.0, 4.0], [0.125, 0.0]])

    References:
        Guckenheimer and Holmes (1983), section 1.5 (Floquet theory); Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix.
    """
    modes = leading_modes(f, z, k=k, method=method)
    check_updates(f, z, caller="floquet")
    updates = f.updates or (Update("tick", tuple(z), f.rule),)
    names = tuple(z)
    length, tangent = torch.linalg.vector_norm(modes.right, dim=2), modes.right
    noise, floor, modulus = NOISE[dtype_of(z)], torch.zeros_like(length), modes.eigenvalues.abs()
    # Only a mode that is zero, as far as can be known, vanishes; one that is small stays, however small its tangent gets on the way.
    null = modulus <= torch.maximum(modes.defect, noise * modulus.amax(1, keepdim=True))
    gains, parts, blocks, errors = [], [], [], []
    for update in updates:
        step = replace(f, rule=update.rule, updates=(), readout=lambda z: {})
        sizes = [_block_gains(step, z, update.leaves, name) for name in names]
        block = torch.stack([size for size, _ in sizes], dim=1)
        # A leaf that is not rewritten goes through as it is.
        stretch = block.amax(1, keepdim=True).clamp(min=0.0 if set(names) <= set(update.leaves) else 1.0)
        floor = stretch * torch.maximum(noise * length, floor)  # rounding of this update, and of those before it, stretched since
        tangent = _pushed(step, z, tangent)
        after = torch.linalg.vector_norm(tangent, dim=2)
        vanished = null & (after <= floor)
        tangent, after = torch.where(vanished[:, :, None], 0, tangent), torch.where(vanished, 0, after)
        gains.append(torch.where(length == 0, 1.0, after / length))
        parts.append(_shares(tangent, z))
        blocks.append(block)
        errors.append(torch.stack([error for _, error in sizes], dim=1))
        with torch.no_grad():
            z, length = step(z), after
    return Floquet(
        multipliers=modes.eigenvalues,
        defect=modes.defect,
        gain=torch.stack(gains, dim=2),
        part=torch.stack(parts, dim=2),
        block_gain=torch.stack(blocks, dim=1),
        block_error=torch.stack(errors, dim=1),
        updates=tuple(update.name for update in updates),
        leaves=names,
        method=modes.method,
        clock=f.clock,
        origin=f.origin,
    )


def _pushed(step: LatentMap, z: State, tangent: Complex[Tensor, "point mode dim"]) -> Complex[Tensor, "point mode dim"]:
    """Each tangent times the Jacobian of the update at its point."""
    points, modes, _ = tangent.shape
    rows = torch.arange(points).repeat_interleave(modes)
    device = next(iter(z.values())).device
    jacobian = Jacobian(step, z)
    real, imaginary = (jacobian(half.flatten(0, 1).to(device), rows).cpu() for half in (tangent.real, tangent.imag))
    return torch.complex(real, imaginary).unflatten(0, (points, modes))


def _shares(tangent: Complex[Tensor, "point mode dim"], z: State) -> Float[Tensor, "point mode leaf"]:
    """The share of each leaf in the squared length."""
    parts = [leaf.abs().square().sum(2) for leaf in tangent.split([leaf.shape[1:].numel() for leaf in z.values()], dim=2)]
    squared = torch.stack(parts, dim=2)
    return squared / squared.sum(2, keepdim=True)


def _block_gains(step: LatentMap, z: State, rewritten: Sequence[str], leaf: str) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """The largest singular value, and its error, of the Jacobian from `leaf` into the leaves that are rewritten."""
    into, out_of = _places(z, rewritten), _places(z, [leaf])
    if trees.size(z) <= DENSE_LIMIT:
        block = dense_jacobian(step, z).cpu()[:, into][:, :, out_of]
        finite = block.flatten(1).isfinite().all(1)
        sizes = torch.linalg.svdvals(torch.where(finite[:, None, None], block, 0))[:, 0]
        return torch.where(finite, sizes, torch.nan), torch.where(finite, 0.0, torch.nan).to(sizes)
    found = [_block_gain(step, z, rows, into, out_of) for rows in blocks_of_rows(step, z, vectors=2 * LARGEST)]
    return torch.cat([size for size, _ in found]), torch.cat([error for _, error in found])


def _block_gain(step: LatentMap, z: State, rows: Tensor, into: Tensor, out_of: Tensor) -> tuple[Tensor, Tensor]:
    device, dim = next(iter(z.values())).device, trees.size(z)
    push, pull = Jacobian(step, z).at(rows), Jacobian(step, z, transposed=True).at(rows)
    each = torch.arange(len(rows))
    into, out_of = into.to(device), out_of.to(device)

    def forth(v: Tensor) -> Tensor:
        return push(v.new_zeros(len(v), dim).index_copy_(1, out_of, v), each)[:, into]

    def back(u: Tensor) -> Tensor:
        return pull(u.new_zeros(len(u), dim).index_copy_(1, into, u), each)[:, out_of]

    start = random_vectors(1, len(out_of), seed=1).to(device).expand(len(rows), -1)
    kind = dtype_of(z)
    size, error = largest_singular(forth, back, start, tol=BLOCK_TOL[kind], noise=NOISE[kind], cap=min(LARGEST, len(out_of), len(into)))
    return size.cpu(), error.cpu()


def largest_singular(
    forth: Multiply, back: Multiply, start: Float[Tensor, "row n"], *, tol: float, noise: float, cap: int
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """The largest singular value of the operator of each row, from below, and the residual of its singular vectors.

    Golub-Kahan with full orthogonalisation, until all residuals are below `tol` of their value, or `cap` steps. Products that are not finite give NaN.

    Args:
        forth: The operators.
        back: Their transposes.
        start: A start for each row.
        tol: Relative residual at which a value counts as found.
        noise: Relative length below which what orthogonalisation leaves is rounding.
        cap: The most steps.
    """
    v = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    left: list[Tensor] = []
    right = [v]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    size, error = torch.zeros_like(start[:, 0]), torch.zeros_like(start[:, 0])
    for j in range(1, cap + 1):
        u, alpha = _orthogonal(forth(right[-1]), left, noise * size)
        left.append(u)
        alphas.append(alpha)
        size = torch.maximum(size, alpha)
        v, beta = _orthogonal(back(u), right, noise * size)
        right.append(v)
        betas.append(beta)
        if j == cap or (j >= FIRST_LOOK and (j - FIRST_LOOK) % NEXT_LOOK == 0) or bool((beta == 0).all()):
            square = torch.diag_embed(torch.stack(alphas, 1))
            if j > 1:
                square = square + torch.diag_embed(torch.stack(betas[:-1], 1), offset=1)
            finite = square.flatten(1).isfinite().all(1) & beta.isfinite()
            p, sigma, _ = torch.linalg.svd(torch.where(finite[:, None, None], square, 0))
            size = torch.where(finite, sigma[:, 0], torch.nan)
            error = torch.where(finite, beta * p[:, -1, 0].abs(), torch.nan)
            if bool(((error <= tol * size) | ~finite).all()):
                break
    return size, error


def _orthogonal(
    w: Float[Tensor, "row n"], basis: Sequence[Tensor], floor: Float[Tensor, " row"]
) -> tuple[Float[Tensor, "row n"], Float[Tensor, " row"]]:
    """`w` without its part in the basis, brought to unit length, and that length; zero where only rounding is left."""
    if basis:
        whole = torch.stack(tuple(basis), 1)
        for _ in range(2):
            w = w - torch.einsum("rj,rjn->rn", torch.einsum("rjn,rn->rj", whole, w), whole)
    length = torch.linalg.vector_norm(w, dim=1)
    length = torch.where(length <= floor, 0.0, length)
    return w / torch.where(length == 0, torch.inf, length)[:, None], length


def _places(z: State, names: Sequence[str]) -> Tensor:
    """Where the numbers of some leaves stand in a flat state."""
    at, found = 0, []
    for name, leaf in z.items():
        n = leaf.shape[1:].numel()
        if name in names:
            found.append(torch.arange(at, at + n))
        at += n
    return torch.cat(found)
