"""What can be said of a Jacobian without forming it: traces of its powers and densities of its singular values, with their errors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab.types.base import Origin


@dataclass(frozen=True, eq=False)
class TraceEstimate:
    """tr J, tr J², … and ‖J‖_F at each point, from products with random probes, each with its standard error.

    `standard_error` and `frobenius_error` come from the spread over the probes, so an interval takes Student's t: `interval`. That of ‖J‖_F is to first order. Below ten probes
    intervals cover less than they say where few directions carry the trace: one of 95 %, from 4 probes of a steep spectrum, about 85 %, and of ‖J‖_F 80 %. Rounding is not in them. Where
    `exact` holds there were at least as many probes as the state has numbers, or these are few: the Jacobian itself was formed, `probes` is 0 and the errors are 0. tr Jᵏ is the sum of the k-th powers of all
    eigenvalues. A Jacobian that is not finite gives NaN, and so does a power beyond the largest number.
    """

    traces: Float[Tensor, "point power"]
    standard_error: Float[Tensor, "point power"]
    frobenius: Float[Tensor, " point"]
    frobenius_error: Float[Tensor, " point"]
    probes: int
    exact: bool
    method: str
    products: int
    clock: str
    origin: Origin

    def interval(self, *, level: float) -> tuple[Float[Tensor, "point power"], Float[Tensor, "point power"]]:
        """Student's interval for each trace; without width where the traces are exact.

        Args:
            level: Coverage, e.g. 0.95.
        """
        return around(self.traces, self.standard_error, 0 if self.exact else self.probes - 1, level=level)


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """How the singular values of the Jacobian at each point, or the eigenvalues of its symmetric part, are distributed: a quadrature for each probe.

    `kind` says which: "singular values" or "symmetric part". Each probe has nodes, in rising order, and weights that add up to 1. Averages over all `size` values are sums over the nodes, averaged over the probes: the
    first 2m − 1 moments (in σ² for singular values) of m nodes are as good as the probes. No single node is a singular value unless `exact` holds: then the nodes are all of them, with
    one probe and equal weights. Nothing is said here of the eigenvalues of a Jacobian that is not symmetric.
    """

    nodes: Float[Tensor, "point probe node"]
    weights: Float[Tensor, "point probe node"]
    kind: str
    size: int
    exact: bool
    products: int
    clock: str
    origin: Origin

    def average(self, of: Callable[[Tensor], Tensor]) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
        """The mean of a function of the values over all of them, with its standard error over the probes: 0 where exact, NaN from one probe.

        The error says nothing of what the nodes cannot resolve. m nodes are exact for polynomials up to degree 2m − 1 (in σ² for singular values); for other functions, above all those with a jump
        or a kink among the values, compare with twice as many.

        Args:
            of: The function, entry by entry, e.g. `torch.square`: the mean of σ² is ‖J‖_F² over the size.
        """
        one = (of(self.nodes) * self.weights).sum(2)
        probes = one.shape[1]
        error = torch.zeros_like(one[:, 0]) if self.exact else one.std(1) / probes**0.5 if probes > 1 else torch.full_like(one[:, 0], torch.nan)
        return one.mean(1), torch.where(one[:, 0].isnan(), torch.nan, error)

    def cdf(self, x: Float[Tensor, " x"]) -> Float[Tensor, "point x"]:
        """The share of values up to each `x`: that of the nodes. A probe's own distribution is met to within the weights of the two nodes around `x`."""
        return self._shares(torch.searchsorted(self.nodes.contiguous(), x.to(self.nodes).expand(*self.nodes.shape[:2], -1).contiguous(), right=True))

    def histogram(self, edges: Float[Tensor, " edge"]) -> Float[Tensor, "point bin"]:
        """The share of values in each bin, from its lower edge to just below its upper one; the last has both. Bins narrower than the nodes lie apart show the nodes.

        Raises:
            ValueError: If there are fewer than two edges, or they do not rise.
        """
        if len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ValueError(
                f"`histogram` got the edges {edges.tolist()[:6]}. Bins lie between edges that rise. Use `torch.linspace(0, 2, 41)`."
            )
        wide = edges.to(self.nodes).expand(*self.nodes.shape[:2], -1).contiguous()
        below = torch.searchsorted(self.nodes.contiguous(), wide, right=False)
        last = torch.searchsorted(self.nodes.contiguous(), wide[:, :, -1:].contiguous(), right=True)
        return self._shares(torch.cat([below[:, :, :-1], last], dim=2)).diff(dim=1)

    def _shares(self, count: Tensor) -> Tensor:
        """The weight of the first `count` nodes of each probe, averaged over the probes."""
        total = torch.cat([torch.zeros_like(self.weights[:, :, :1]), self.weights.cumsum(2)], dim=2)
        return total.gather(2, count).mean(1)


def around(value: Tensor, error: Tensor, freedom: int, *, level: float) -> tuple[Tensor, Tensor]:
    """Student's interval; the value itself where its error is 0."""
    from attractorlab.statistics import students_t  # brings scipy, which nouns do not need to be made

    half = torch.where(error == 0, 0.0, students_t(freedom, level=level) * error)
    return value - half, value + half
