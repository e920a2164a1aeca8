"""fit_probe: what a linear map can read from the state, tick by tick, beside a control."""

import warnings

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attractorlab.statistics import cluster_share
from attractorlab.types import ProbeFit, Trajectory


def fit_probe(
    traj: Trajectory,
    labels: Int[Tensor, "instance site"],
    *,
    leaf: str,
    sites: Bool[Tensor, "instance site"],
    test_share: float,
    generator: torch.Generator,
    level: float = 0.95,
    target: str = "label",
) -> ProbeFit:
    """Held-out accuracy of a logistic regression from one site's vector to that site's label, per kept tick.

    Instances, not rows, are split into a training and a test part: starts of one instance share their answer. The control task asks the same probe for
    the labels of another instance, which the state cannot know: its score is what the probe gets from label frequencies alone.

    Args:
        traj: A trajectory with states kept at the ticks to probe.
        labels: What to read, one row of sites per instance.
        leaf: Which leaf of the state to read it from, shaped [row site width].
        sites: Which sites count; leave out those whose label stands in the input.
        test_share: Share of instances held out.
        generator: Draws the split and the control.
        level: Coverage of the intervals, from a bootstrap over held-out instances.
        target: A name for what is read, kept with the result.

    Raises:
        ValueError: If there is no such leaf, it has no site axis or is not finite, the labels do not fit, or fewer than two instances are on
            either side of the split.

    Example:
        >>> from attractorlab import every, trace
        >>> from attractorlab.maps import LatentMap
        >>> g = torch.Generator().manual_seed(0)
        >>> bits = torch.randint(0, 2, (20, 6), generator=g)
        >>> told = LatentMap(
        ...     lambda z, x: {"z": 0.5 * z["z"] + x["x"]}, {"x": bits[..., None].float()}, instance=torch.arange(20), start=torch.zeros(20).long()
        ... )
        >>> traj = trace(told, {"z": torch.randn(20, 6, 1, generator=g)}, ticks=4, keep=every(4))
        >>> fit = fit_probe(traj, bits, leaf="z", sites=torch.ones(20, 6, dtype=torch.bool), test_share=0.4, generator=g)
        >>> fit.score[-1].item()
        1.0

    References:
        Alain and Bengio (2016), linear probes; Hewitt and Liang (2019), control tasks and selectivity.
    """
    if leaf not in traj.states:
        raise ValueError(f"`fit_probe` got leaf={leaf!r}. A probe reads one leaf of the state. Use one of {', '.join(traj.states)}.")
    states = traj.states[leaf]
    if states.ndim != 4 or labels.shape != sites.shape or labels.shape[1:] != states.shape[2:3] or len(labels) <= int(traj.instance.max()):
        raise ValueError(
            f"`fit_probe` got a leaf of shape {tuple(states.shape)}, labels of {tuple(labels.shape)} and sites of {tuple(sites.shape)}. A leaf is "
            "[kept row site width], labels and sites are [instance site]. Pass one row of labels and sites for each instance."
        )
    if not bool(states.isfinite().all()):
        raise ValueError(
            "`fit_probe` got states that are not all finite. A probe is fitted to numbers. Trace again with the rows whose result is COMPLETED."
        )
    instances = torch.unique(traj.instance)
    shuffled = instances[torch.randperm(len(instances), generator=generator)]
    held = round(test_share * len(instances))
    if held < 2 or len(instances) - held < 2:
        raise ValueError(
            f"`fit_probe` got test_share={test_share} of {len(instances)} instances. Two or more are needed on each side. Use more instances, or test_share=0.3."
        )
    test = torch.isin(traj.instance, shuffled[:held])
    other = torch.empty(int(instances.max()) + 1, dtype=torch.int64)
    other[shuffled] = shuffled.roll(1)  # every instance gets another one's labels
    used = sites[traj.instance]
    truth, control = labels[traj.instance], labels[other[traj.instance]]
    cluster = traj.instance[:, None].expand_as(used)[test][used[test]]
    scores = [[_accuracy(at, y, used, test) for y in (truth, control)] for at in states]
    held_out = torch.sort(shuffled[:held]).values
    place = torch.searchsorted(held_out, cluster)
    by_held_out = torch.stack([torch.bincount(place, hit.double(), held) / torch.bincount(place, minlength=held) for hit, _ in scores])
    means = [[cluster_share(hit, cluster, level=level) for hit in pair] for pair in scores]
    column = torch.tensor([[first[0], first[1], first[2], second[0]] for first, second in means], dtype=torch.float64)
    return ProbeFit(
        ticks=traj.kept,
        score=column[:, 0],
        low=column[:, 1],
        high=column[:, 2],
        control=column[:, 3],
        selectivity=column[:, 0] - column[:, 3],
        held_out=held_out,
        by_held_out=by_held_out,
        train_instances=len(instances) - held,
        level=level,
        target=target,
        clock=traj.clock,
        origin=traj.origin,
    )


def _accuracy(states: Tensor, labels: Tensor, used: Tensor, test: Tensor) -> Bool[Tensor, " sample"]:
    """Which held-out samples a probe trained on the others gets right."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def samples(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return states[rows][used[rows]].float().numpy(), labels[rows][used[rows]].numpy()

    # A few hundred iterations are enough for a score; the probe need not be at its optimum to the last digit.
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(*samples(~test))
    x, y = samples(test)
    return torch.as_tensor(probe.predict(x) == y)
