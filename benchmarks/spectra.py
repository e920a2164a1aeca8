"""Times spectra against the products they are made of, and against ARPACK point by point, and one point of a large state. Prints JSON.

Two cases of side-9 sudoku: the bundled model, and one of width 128 with fresh weights, drawn with seed 0, whose blocks are halved and whose token vectors are eight times longer, so that its starts come to rest. All states are
polished to fixed points in float64. `own products` is the time that their number of recorded products of a whole batch of points takes, of J and of its transpose: as those of the run took on the mean
(within), and measured alone on a few before and after each batch (apart), where a machine that slows down under steady work is met at another speed. Records, products of fewer points and all else
is what the wall time has besides. ARPACK (`scipy.sparse.linalg.eigs`,
default `ncv`) finds right vectors only, point by point, with its tolerance set to the largest defect that was reached here; its product is timed in forward mode, as a user
would write it, and from the same record. The large state is a diagonal of 100,000 numbers between two reflections, in a process of its own whose memory is watched.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigs

import attractorlab as al
from attractorlab.dynamics import krylov_schur
from attractorlab.dynamics.krylov import Jacobian, blocks_of_rows
from attractorlab.dynamics.records import Record
from attractorlab.maps import LatentMap
from attractorlab.models.eqr import EqR

MODES = 8
THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2  # `python benchmarks/spectra.py 1` where other work shares the cores: two threads then wait for each other
POINTS, TRAINED, EIGS_POINTS, FORWARD_POINTS = 32, 8, 3, 1
SAMPLE = 7  # products by which the cost of one is measured, each time
SHRINK, STRETCH = 0.5, 8.0  # of the weights of the blocks, and of the token vectors: fresh ones as they are drawn wander
LARGE = 100_000


def main() -> None:
    """Both models, then the large state."""
    if "--large" in sys.argv:
        print(json.dumps(large()))
        return
    torch.set_num_threads(THREADS)
    found: dict[str, Any] = {"threads": THREADS, "modes": MODES}
    found["eqr, width 128, fresh weights of seed 0, blocks x 0.5, token vectors x 8"] = compared(*fresh())
    found["eqr-sudoku-9, width 96, trained"] = compared(*trained())
    child = subprocess.run([sys.executable, __file__, str(THREADS), "--large"], check=True, capture_output=True, text=True)
    found[f"one point of {LARGE} dimensions"] = json.loads(child.stdout)
    print(json.dumps(found, indent=1))


def fresh() -> tuple[LatentMap, al.State]:
    """Points of rest of a model of width 128: 20,736 numbers a state."""
    config = dataclasses.replace(al.models.load("eqr-sudoku-9").config, width=128)
    reasoner = EqR(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reasoner.embed_tokens.embedding_weight.mul_(STRETCH)
        for weight in reasoner.L_level.parameters():
            weight.mul_(SHRINK)
    return at_rest(reasoner, POINTS)


def trained() -> tuple[LatentMap, al.State]:
    """Points of rest of the bundled model."""
    return at_rest(al.models.load("eqr-sudoku-9"), TRAINED)


def at_rest(reasoner: Any, points: int) -> tuple[LatentMap, al.State]:
    """Up to `points` polished fixed points, from one start each."""
    puzzles = al.tasks.load("sudoku-9", split="test", rows=slice(0, points + 4))
    f = reasoner.bind(puzzles)
    rest = al.settle(f, reasoner.start(f.drive, generator=torch.Generator().manual_seed(0)), tol=1e-4, max_ticks=100)
    rows = (rest.result == al.Result.CONVERGED.code).nonzero().squeeze(1)[:points]
    f = reasoner.to(torch.float64).bind(puzzles).take(rows)
    found = al.find_fixed_points(f, al.trees.to(al.trees.take(rest.states, rows), torch.float64), tol=1e-10, max_steps=10)
    kept = found.converged.nonzero().squeeze(1)
    return f.take(kept), al.trees.take(found.states, kept)


def compared(f: LatentMap, z: al.State) -> dict[str, Any]:
    """Our time over that of its own products, and ARPACK's products and time over ours."""
    n, dim, few = al.trees.rows(z), al.trees.size(z), min(EIGS_POINTS, al.trees.rows(z))
    al.spectrum(f.take([0]), al.trees.take(z, slice(0, 1)), k=1)  # warm
    parts = [batch(f.take(part), al.trees.take(z, part)) for part in chunks_of(f, z)]
    ours, spectra = sum(seconds for seconds, _, _ in parts), [found for _, _, found in parts]
    own = {way: sum(products[way] for _, products, _ in parts) for way in parts[0][1]}
    spectrum = spectra[0]
    mine, right_time = right_alone(f.take(range(few)), al.trees.take(z, slice(0, few)))
    assert few <= len(spectrum.defect)
    theirs = [
        arpack(f.take([i]), al.trees.take(z, slice(i, i + 1)), float(spectrum.defect[i].max()), forward=i < FORWARD_POINTS) for i in range(few)
    ]
    recorded = statistics.median(one["seconds, recorded product"] for one in theirs)
    forward = statistics.median(one["seconds, forward mode"] for one in theirs[:FORWARD_POINTS])
    apart = [np.abs(np.sort(np.abs(one["values"])) - np.sort(spectrum.eigenvalues[i].abs().numpy())).max() for i, one in enumerate(theirs)]
    return {
        "dimensions": dim,
        "points": n,
        "points given to ARPACK": {"recorded product": few, "forward mode": min(FORWARD_POINTS, few)},
        "wall / own products, timed within": round(ours / own["within"], 3),
        "wall / own products, timed apart": round(ours / own["apart"], 3),
        "products a point, right and left": sum(one.products for one in spectra) / n,
        "products a point, right alone": {"here": mine, "ARPACK": [one["products"] for one in theirs]},
        "most right products here / ARPACK": round(max(a / b["products"] for a, b in zip(mine, theirs, strict=True)), 3),
        "largest defect": {"here": [float(f"{one:.1e}") for one in spectrum.defect[:few].amax(1).tolist()], "ARPACK": [one["defect"] for one in theirs]},
        "largest distance of the moduli from ARPACK's": float(f"{max(apart):.1e}"),
        "seconds a point": {"right and left": round(ours / n, 4), "right alone": round(right_time, 4), "ARPACK, forward mode": round(forward, 4), "ARPACK, recorded": round(recorded, 4)},
        "ARPACK in forward mode / here right and left": round(forward * n / ours, 2),
        "ARPACK in forward mode / here right alone": round(forward / right_time, 2),
        "ARPACK with recorded products / here right and left": round(recorded * n / ours, 2),
        "ARPACK with recorded products / here right alone": round(recorded / right_time, 2),
        "verdicts": sorted({word for one in spectra for word in one.verdict}),
        "radius, median": round(float(torch.cat([one.radius for one in spectra]).median()), 4),
    }


def batch(f: LatentMap, z: al.State) -> tuple[float, dict[str, float], al.Spectrum]:
    """Seconds of the spectra of a batch of points and of their own products, timed within and apart, and the spectra."""
    before = [cost(f, z, transposed=transposed) for transposed in (False, True)]
    seconds, (found, counts, within) = timed(lambda: watched(f, z))
    after = [cost(f, z, transposed=transposed) for transposed in (False, True)]
    apart = sum(count * (a + b) / 2 for count, a, b in zip(counts, before, after, strict=True))
    return seconds, {"within": sum(count * one for count, one in zip(counts, within, strict=True)), "apart": apart}, found


def watched(f: LatentMap, z: al.State) -> tuple[al.Spectrum, list[int], list[float]]:
    """The spectra, and of J and its transpose: the products that were made, and the mean seconds a point of those that took all points at once from a ready record."""
    jacobians: list[Jacobian] = []
    taken: dict[bool, list[float]] = {False: [], True: []}
    plain, plain_call = Jacobian.__init__, Record.__call__

    def begin(self: Jacobian, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        jacobians.append(self)

    def call(self: Record, v: torch.Tensor, at: torch.Tensor) -> torch.Tensor | None:
        ready = self.made
        seconds, product = timed(lambda: plain_call(self, v, at))
        if self.made is ready and len(at) == al.trees.rows(z):
            taken[self.transposed].append(seconds / len(at))
        return product

    Jacobian.__init__, Record.__call__ = begin, call  # type: ignore[method-assign]
    try:
        found = al.spectrum(f, z, k=MODES, method=al.by_krylov_schur)
    finally:
        Jacobian.__init__, Record.__call__ = plain, plain_call  # type: ignore[method-assign]
    counts = [sum(one.products for one in jacobians if one.transposed is transposed) for transposed in (False, True)]
    return found, counts, [statistics.mean(one) for one in taken.values()]


def cost(f: LatentMap, z: al.State, *, transposed: bool) -> float:
    """Seconds a point of one recorded product of all points at once."""
    n = al.trees.rows(z)
    everyone = torch.arange(n)
    product = Jacobian(f, z, transposed=transposed).at(everyone)
    v = torch.randn(n, al.trees.size(z), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product(v, everyone)
    return statistics.median(timed(lambda: product(v, everyone))[0] for _ in range(SAMPLE)) / n


def right_alone(f: LatentMap, z: al.State) -> tuple[list[int], float]:
    """Products of each point and seconds a point of the right side, as ARPACK gives it; the look for further copies, which ARPACK does not take, is in them."""
    taken: list[int] = []
    began = time.perf_counter()
    for part in chunks_of(f, z):
        tol = krylov_schur.RIGHT_TOL[torch.float64]
        search = krylov_schur._Search(Jacobian(f, z), part, k=MODES, settle=MODES, order=al.by_modulus, tol=tol, seed=1)
        search.run(None)
        taken += search.taken.tolist()
    return taken, (time.perf_counter() - began) / al.trees.rows(z)


def chunks_of(f: LatentMap, z: al.State) -> list[torch.Tensor]:
    """The points in the chunks that are worked on at a time."""
    largest, kept = krylov_schur._sizes(MODES, al.trees.size(z))
    return blocks_of_rows(f, z, vectors=largest + 2 * kept + 3 * krylov_schur.WIDEST)


def arpack(f: LatentMap, z: al.State, defect: float, *, forward: bool) -> dict[str, Any]:
    """`eigs` on one point, at a tolerance that gives at most the given defect."""
    dim, at, found = al.trees.size(z), torch.zeros(1, dtype=torch.int64), {}
    recorded = Jacobian(f, z).at(at)
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"recorded product": lambda v: recorded(v, at)}
    if forward:
        ways["forward mode"] = lambda v: al.trees.flatten(f.jvp(z, al.trees.unflatten(v, z)))
    for name, way in ways.items():
        count = [0]

        def multiply(v: np.ndarray, way: Any = way, count: list[int] = count) -> np.ndarray:
            count[0] += 1
            return way(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)).reshape(1, -1))[0].numpy()

        operator = LinearOperator((dim, dim), matvec=multiply, dtype=np.float64)
        for tol in (1e-8, 1e-9, 1e-10, 1e-12, 0):  # the loosest that is as good as ours
            count[0] = 0
            seconds, (values, vectors) = timed(lambda tol=tol, operator=operator: eigs(operator, k=MODES, which="LM", tol=tol, v0=np.random.default_rng(1).standard_normal(dim)))
            products = count[0]
            reached = max(np.linalg.norm(multiply(x.real) + 1j * multiply(x.imag) - lam * x) for lam, x in zip(values, vectors.T, strict=True))
            if reached <= max(defect, 1e-9):
                break
        found |= {f"seconds, {name}": seconds, "products": products, "defect": float(f"{reached:.1e}"), "values": values}
    return found


def large() -> dict[str, Any]:
    """The spectrum at one point of a large state, and the most memory that its process held."""
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    u, v = (one / one.norm() for one in torch.randn(2, LARGE, dtype=torch.float64, generator=generator))
    values = 0.6 * (2 * torch.rand(LARGE, dtype=torch.float64, generator=generator) - 1)
    values[:MODES] = torch.linspace(0.99, 0.85, MODES, dtype=torch.float64)

    def turn(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return z - 2 * (z @ w)[:, None] * w

    f = al.from_function(lambda z, x: {"z": turn(turn(values * turn(turn(z["z"], u), v), v), u)}, drive={}, readout=lambda z: {}, clock="tick")
    seconds, found = timed(lambda: al.spectrum(f, {"z": torch.zeros(1, LARGE, dtype=torch.float64)}, k=MODES))
    return {
        "seconds": round(seconds, 2),
        "gigabytes at most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "largest error": float((found.eigenvalues[0] - values[:MODES]).abs().max()),
        "products": found.products,
        "method": found.method,
    }


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a run, and what it gave."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
