"""Fixtures for every test."""

from collections.abc import Iterator

import jaxtyping
import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # torch's own first jvp compiles decompositions through an API that it calls deprecated itself.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture
def generator() -> torch.Generator:
    """A generator on the CPU with seed 0, fresh for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked during this test: what a user without the checker sees, our own errors included."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
