"""Examine an installation: does everything load, and are known answers found."""

import shutil
import tempfile
import time
from pathlib import Path

import torch

Check = tuple[str, bool, str]
"""Name, whether it is well, and a sentence."""


def examine() -> list[Check]:
    """Every check, in order. None of them raises."""
    return [_versions(), _device(), _models(), _puzzles(), _spectrum(), _disk(), _umap()]


def _versions() -> Check:
    from attractorlab.models.base import versions

    return "versions", True, ", ".join(f"{name} {version}" for name, version in versions().items())


def _device() -> Check:
    cuda = f"CUDA device {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "no CUDA device"
    return "device", True, f"{torch.get_num_threads()} CPU threads, {cuda}"


def _models() -> Check:
    from attractorlab import models
    from attractorlab.models.base import weights_hash

    found = models.names()
    try:
        networks = [models.load_feedforward(path) if models.describe(path)["model"] == "feedforward" else models.load(path) for path in map(models.find, found)]
        hashes = [f"{name} {weights_hash(network)}" for name, network in zip(found, networks, strict=True)]
    except ValueError as error:
        return "bundled models", False, str(error)
    return "bundled models", bool(found), ", ".join(hashes) or "none found. They are part of the package. Install it again."


def _puzzles() -> Check:
    from attractorlab import tasks

    began = time.perf_counter()
    made = tasks.generate(9, 4, seed=0)
    assert made.targets is not None
    good = bool(tasks.verify(made, made.targets).all())
    return "puzzle generator", good, f"4 puzzles of side 9 in {time.perf_counter() - began:.1f} s, {'each' if good else 'not each'} with a valid solution"


def _spectrum() -> Check:
    from attractorlab.dynamics.fixed_points import find_fixed_points
    from attractorlab.dynamics.spectrum import spectrum
    from attractorlab.maps import LatentMap

    # x -> tanh(2x) rests at 0.957504..., where its slope is 0.166372...
    f = LatentMap(lambda z, x: {"z": torch.tanh(2 * z["z"])}, {}, clock="tick")
    found = find_fixed_points(f, {"z": torch.full((1, 3), 0.8, dtype=torch.float64)}, tol=1e-12, max_steps=50)
    radius = float(spectrum(f, found.states, k=1).radius[0])
    error = abs(radius - 0.166372088) + abs(float(found.states["z"][0, 0]) - 0.957504024077)
    return "known answers", error < 1e-8, f"fixed point and spectral radius of tanh(2x) are off by {error:.1e}"


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    return "disk", free > 2e8, f"{free / 1e9:.1f} GB free here; a report takes about 0.02 GB"


def _umap() -> Check:
    from attractorlab.projection import by_umap

    began = time.perf_counter()
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    placed = by_umap(2, random_state=0)(x)
    good = bool(placed.coordinates.isfinite().all())
    return "UMAP", good, f"60 points laid out in {time.perf_counter() - began:.1f} s, compiling included"
