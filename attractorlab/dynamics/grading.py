"""grade: fixed points, slow points and points that are not at rest, told apart."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.krylov import Jacobian
from attractorlab.maps import LatentMap
from attractorlab.types import FixedPointSet, State


class Grades(NamedTuple):
    """How much at rest each point is; the words are "fixed", "slow" and "not at rest"."""

    word: tuple[str, ...]
    speed: Float[Tensor, " point"]
    ratio: Float[Tensor, " point"]
    slope: Float[Tensor, " point"]


def grade(f: LatentMap, points: FixedPointSet, *, typical: State, slow: float) -> Grades:
    """What each point is: fixed if it converged, else slow if its speed ‖f(z) − z‖ is at most `slow` times the typical one, else not at rest.

    Searches by minimisation also end where the speed is smallest and not 0. Trajectories linger there, and yet no fixed point need be near: such a point never counts as one.

    Args:
        f: The map that the points were found with, one row per start.
        points: What `find_fixed_points` found.
        typical: One state or more for each row of `f`, such as the starts or states of a trajectory; the median of their speeds is the typical speed of an instance.
        slow: Largest ratio to the typical speed that counts as slow, e.g. 0.01.

    Returns:
        `word` of each point. `speed`: ‖f(z) − z‖ at the returned state. `ratio`: the speed over the typical one. `slope`: how fast the speed changes with distance, ‖(J − I)ᵀr‖/‖r‖ for
        r = f(z) − z: near 0 at a minimum of the speed that is no fixed point, and NaN where the point is exactly fixed.

    Raises:
        ValueError: If `slow` is not between 0 and 1, or `typical` and `f` differ in their number of rows.

    Example:
        >>> from attractorlab.dynamics.fixed_points import find_fixed_points
        >>> from attractorlab.dynamics.minimisation import by_gauss_newton
        >>> f = LatentMap(lambda z, x: {"z": z["z"] + 1e-3 + z["z"] ** 2}, {})  # slowest at 0, where it still moves
        >>> z = {"z": torch.tensor([[0.7], [-0.9]], dtype=torch.float64)}
        >>> points = find_fixed_points(f, z, method=by_gauss_newton, tol=1e-10, max_steps=200)
        >>> grade(f, points, typical=z, slow=0.01).word
        ('slow', 'slow')
    """
    if not 0 < slow < 1:
        raise ValueError(f"`grade` got slow={slow}. A slow point moves by a part of the typical speed. Use slow=0.01.")
    instance, _ = f.coordinates(typical)
    with torch.no_grad():
        usual = trees.distance(f(typical), typical).cpu().double()
    here = f.take(points.row)
    with torch.no_grad():
        r = trees.sub(here(points.states), points.states)
    speed = trees.norm(r).cpu().double()
    middle = {one: usual[(instance == one) & usual.isfinite()].nanmedian() for one in torch.unique(points.instance).tolist()}
    ratio = speed / torch.stack([middle[one] for one in points.instance.tolist()]) if len(points) else speed
    back = Jacobian(here, points.states, transposed=True)
    flat = trees.flatten(r).to(torch.float64)
    pulled = back(flat, torch.arange(len(points))) - flat if len(points) else flat
    slope = torch.linalg.vector_norm(pulled, dim=1).cpu() / speed
    words = ["fixed" if fixed else "slow" if part <= slow else "not at rest" for fixed, part in zip(points.converged.tolist(), ratio.tolist(), strict=True)]
    return Grades(tuple(words), speed, ratio, slope)
