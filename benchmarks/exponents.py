"""What Lyapunov exponents cost more than the products with the Jacobian that they are made of. Prints ratios as JSON.

Eight exponents of the bundled side-6 model in float64, one tick a recursion. A tick needs k products and one call of the map. `own products` is exactly that much by the route that the exponents
take: the map recorded once, eight walks back through the record, one plain call; it leaves out orthogonalisation, logarithms and checks. `products alone` is the eight walks and the plain call on a
record that is there already. `forward mode` is eight forward-mode products, as `LatentMap.jvp` makes them, and no call of the map: what a user would write by hand. Times are CPU seconds of this
process on one thread, so that what else the machine does counts little. Ratios are of one round, medians over the rounds; the order of a round is turned at every other one.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import attractorlab as al
from attractorlab import trees
from attractorlab.dynamics.krylov import Jacobian

K, TICKS, ROUNDS = 8, 16, 5
BY_HAND = 2  # ticks of forward-mode products that are timed; their time is taken for all


@torch.no_grad()
def main() -> None:
    """Measure in turn, several rounds, and print medians of the ratios of one round."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for rows in (1, 4):
        found |= ratios(rows)
    print(json.dumps(found | {"k": K, "ticks": TICKS, "rounds": ROUNDS, "threads": torch.get_num_threads()}, indent=1))


def ratios(rows: int) -> dict[str, float]:
    """The three ratios at so many orbits."""
    reasoner = al.models.load("eqr-sudoku-6").to(torch.float64)
    f = reasoner.bind(al.tasks.load("sudoku-6", split="test", rows=slice(0, rows)))
    z = reasoner.start(f.drive, generator=torch.Generator().manual_seed(0))
    everyone = torch.arange(rows)
    vectors = torch.randn(K, rows, trees.size(z), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tangents = [trees.unflatten(one, z) for one in vectors]
    made = Jacobian(f, z).at(everyone)

    def own() -> None:
        product = Jacobian(f, z).at(everyone)
        for one in vectors:
            product(one, everyone)
        f(z)

    def alone() -> None:
        for one in vectors:
            made(one, everyone)
        f(z)

    def by_hand() -> None:
        for one in tangents:
            f.jvp(z, one)

    rounds = measured(
        {
            "exponents": lambda: al.lyapunov_exponents(f, z, k=K, ticks=TICKS),
            "own": lambda: [own() for _ in range(TICKS)],
            "alone": lambda: [alone() for _ in range(TICKS)],
            "by hand": lambda: [by_hand() for _ in range(BY_HAND)],
        }
    )
    name = f"{rows} row{'s' if rows > 1 else ''}"
    return {
        f"{name}: exponents / own products": median(one["exponents"] / one["own"] for one in rounds),
        f"{name}: exponents / products alone": median(one["exponents"] / one["alone"] for one in rounds),
        f"{name}: exponents / forward mode": median(one["exponents"] / (TICKS / BY_HAND * one["by hand"]) for one in rounds),
        f"{name}: seconds a tick": median(one["exponents"] / TICKS for one in rounds),
    }


def measured(runs: dict[str, Callable[[], Any]]) -> list[dict[str, float]]:
    """CPU seconds of every run in every round, after one round to warm up."""
    found = []
    for k in range(ROUNDS + 1):
        times = {}
        for name in list(runs)[:: 1 if k % 2 else -1]:
            began = time.process_time()
            runs[name]()
            times[name] = time.process_time() - began
        found.append(times)
    return found[1:]


def median(values: Any) -> float:
    """The median, to three digits after the point."""
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
