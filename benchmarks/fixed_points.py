"""Time the search for the fixed points of small networks, by Newton's method against Adam on the squared residual. Prints ratios as JSON.

Networks are x' = tanh(Wx) of 64 units, W normal with standard deviation 1.5/√64, drawn from the seeds named; each is searched from the same 256 starts in float64: standard normal
vectors, each shrunk by a number uniform between 0 and 1, so that some begin near 0. Adam runs in three ways, all with rate 1 falling by 5 % after two steps without progress, 5,000 steps at most, and done at ½‖f(x) − x‖² < 1e-12:
"by_minimisation, all until all are done" is the package's method asked for 1e-13, so that hardly a row leaves before the 5,000 steps are used up, which is how the peer stops;
"by_minimisation, rows leave" is the same where a row that is done leaves; "bare Adam" is a loop with nothing in it but torch's Adam, its schedule and the test whether all are done.
Newton's method is asked for a relative residual of 1e-12.

The networks are not typical in one respect. On some of this gain, such as seeds 0, 11 and 12, most starts wander and end nowhere: of 256 Newton's method brings 74, 71 and 157 to a fixed point
in 200 steps, and Adam 31, 0 and 20 in 5,000. These are not timed.

The true set is found by other means: from 4,096 more starts by Newton's method, then with the known points taken out, and with the opposite of every point, as the map is odd. Times are CPU
seconds of this process on one thread. Ratios are of one network each; their medians are printed. Adam runs once a network, Newton's method three times, of which the median counts.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import attractorlab as al

UNITS, GAIN, ROWS, SEEDS = 64, 1.5, 256, (1, 2, 4)
STEPS, Q = 5000, 1e-12
ALL_DONE, LEAVE, BARE = "by_minimisation, all until all are done / newton", "by_minimisation, rows leave / newton", "bare Adam / newton"
TRUTH_ROWS, SAME = 4096, 1e-6


def main() -> None:
    """Search each network in every way, and print medians of the ratios."""
    torch.set_num_threads(1)
    networks = [measured(seed) for seed in SEEDS]
    ratios = {name: round(statistics.median(one[name] for one in networks), 1) for name in (ALL_DONE, LEAVE, BARE)}
    print(json.dumps(ratios | {"threads": torch.get_num_threads(), "networks": networks}, indent=1))


def measured(seed: int) -> dict[str, Any]:
    """Times, counts and sets of one network."""
    generator = torch.Generator().manual_seed(seed)
    weight = GAIN * torch.randn(UNITS, UNITS, generator=generator, dtype=torch.float64) / UNITS**0.5
    f = al.LatentMap(lambda z, x: {"z": torch.tanh(z["z"] @ weight.T)}, {}, clock="tick")
    z = starts(ROWS, generator)
    truth = true_set(f, generator)

    al.find_fixed_points(f, al.trees.take(z, slice(0, 8)), tol=1e-12, max_steps=200)  # what is loaded at first use is no part of the time
    runs = [timed(lambda: al.find_fixed_points(f, z, tol=1e-12, max_steps=200)) for _ in range(3)]
    newton, points = sorted(one[0] for one in runs)[1], runs[0][1]
    peer, (x, peer_steps) = timed(lambda: bare_adam(weight, z["z"]))
    # The relative residual at which q is 1e-12 for a point of norm about √64: the same demand on the way out.
    ours, adam = timed(lambda: al.find_fixed_points(f, z, method=al.by_minimisation, tol=(2 * Q) ** 0.5 / UNITS**0.5, max_steps=STEPS))
    whole, _ = timed(lambda: al.find_fixed_points(f, z, method=al.by_minimisation, tol=1e-13, max_steps=STEPS))
    fixed = ((torch.tanh(x @ weight.T) - x).square().sum(1) / 2 < Q).sum()
    found = al.distinct(points)
    return {
        "seed": seed,
        ALL_DONE: round(whole / newton, 1),
        LEAVE: round(ours / newton, 1),
        BARE: round(peer / newton, 1),
        "seconds": {"newton": round(newton, 2), "by_minimisation, all": round(whole, 2), "by_minimisation, leave": round(ours, 2), "bare Adam": round(peer, 2)},
        "converged of 256": {"newton": int(points.converged.sum()), "by_minimisation": int(adam.converged.sum()), "bare Adam": int(fixed)},
        "steps": {"newton, median": float(points.steps.median()), "newton, most": int(points.steps.max()), "bare Adam": peer_steps},
        "distinct points": {
            "true": len(truth),
            "newton": len(found.points),
            "newton and opposites": len(distinct_rows(torch.cat([found.points.states["z"], -found.points.states["z"]]))),
            "ends of bare Adam, further apart than 1e-3": len(distinct_rows(x, 1e-3)),
        },
        "newton found no point that is not true": bool((torch.cdist(found.points.states["z"], truth).amin(1) < SAME).all()),
        "newton found the true set": len(found.points) == len(truth),
        "newton and opposites are the true set": bool((torch.cdist(truth, torch.cat([found.points.states["z"], -found.points.states["z"]])).amin(1) < SAME).all()),
    }


def starts(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Normal vectors of all lengths up to the usual one."""
    return {"z": torch.rand(rows, 1, generator=generator, dtype=torch.float64) * torch.randn(rows, UNITS, generator=generator, dtype=torch.float64)}


def true_set(f: al.LatentMap, generator: torch.Generator) -> torch.Tensor:
    """The fixed points of the odd map `f`, as far as they can be known."""
    many = starts(TRUTH_ROWS, generator)
    found = al.distinct(al.find_fixed_points(f, many, tol=1e-12, max_steps=60)).points
    known = found
    more = al.find_fixed_points(f, al.trees.take(many, slice(0, ROWS)), method=al.by_deflation(known), tol=1e-12, max_steps=60)
    x = torch.cat([known.states["z"], more[more.converged].states["z"], torch.zeros(1, UNITS, dtype=torch.float64)])
    return distinct_rows(torch.cat([x, -x]))


def distinct_rows(x: torch.Tensor, near: float = SAME) -> torch.Tensor:
    """The rows that are further than `near` from those before them."""
    kept = x[:1]
    for row in x[1:]:
        if bool(((kept - row).norm(dim=1) > near).all()):
            kept = torch.cat([kept, row[None]])
    return kept


def bare_adam(weight: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Adam on the mean of ½‖f(x) − x‖² over all rows until all are done; the last states and the number of steps."""
    x = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([x], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.95, patience=2, cooldown=0)
    for step in range(STEPS):
        adam.zero_grad()
        q = (torch.tanh(x @ weight.T) - x).square().sum(1) / 2
        loss = q.mean()
        loss.backward()
        adam.step()
        schedule.step(loss.item())
        if bool((q < Q).all()):
            return x.detach(), step + 1
    return x.detach(), STEPS


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came out."""
    began = time.process_time()
    out = run()
    return time.process_time() - began, out


if __name__ == "__main__":
    main()
