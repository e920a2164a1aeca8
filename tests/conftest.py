"""What every test may use: the one generator, and starts on the toy maps."""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # torch's own first jvp compiles decompositions through an API that it calls deprecated itself.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture
def generator() -> torch.Generator:
    """A generator on the CPU with seed 0, fresh for every test."""
    return torch.Generator().manual_seed(0)
