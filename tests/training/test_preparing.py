"""What a training prepares in its process."""

import json
import subprocess
import sys

import pytest

from attractorlab.training.preparing import keep_freed_memory

FAULTS = """
import json, resource
import torch
from attractorlab.training.preparing import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.ones(2_000_000) for _ in range(10)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(json.dumps([faults(), keep_freed_memory(), faults(), faults()]))
"""


def test_freed_memory_is_kept_and_not_cleared_again():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    before, kept, _, after = json.loads(run.stdout)
    if not kept:
        pytest.skip("this system's C library is not GNU's")
    if before < 10_000:  # ten rounds of 80 MB are 200,000 pages of 4 kB
        pytest.skip("this system's pages are large, or its C library keeps what is freed")
    assert after < before / 50


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("the C library was touched"))
    assert keep_freed_memory() is False
