"""What every noun is made of: states, results, where a number came from, and how dimensions are named."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""A latent state: named leaves, batch first, e.g. ``{"z_H": [row site width]}``."""
Drive = Mapping[str, Tensor]
"""What the instances contribute to every tick, batch first. Empty for an undriven map."""


class Result(Enum):
    """How one row ended. The value is the sentence that an error would print."""

    CONVERGED = "The residual fell below the tolerance."
    MAX_STEPS = "The allowed number of steps was used up before the residual fell below the tolerance."
    DIVERGED = "The state grew without bound."
    NONFINITE = "The map returned a NaN or an infinity."
    COMPLETED = "The row was followed for as many ticks as asked."
    HALTED = "The model's halting value let the row go before the last tick."

    @property
    def code(self) -> int:
        """The number that stands for this result in a tensor."""
        return list(Result).index(self)

    @classmethod
    def of(cls, code: int) -> "Result":
        """The result that `code` stands for."""
        return list(cls)[code]


@dataclass(frozen=True)
class Origin:
    """Where a number came from. Attached by the function that made the noun."""

    model: str = "unnamed"
    weights: str = ""
    dtype: str = ""
    device: str = ""
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()


def dims_of(noun: type) -> dict[str, tuple[str, ...]]:
    """The dimension names of each tensor field of a noun class, read from its annotations.

    Example:
        >>> from attractorlab.types import Convergence
        >>> dims_of(Convergence)["residual"]
        ('time', 'row')
    """
    found: dict[str, tuple[str, ...]] = {}
    for one in fields(noun):
        match = re.search(r"\[[\w.]*Tensor, ['\"]([^'\"]*)['\"]\]", _spelled(one.type))
        if match:
            found[one.name] = tuple(match.group(1).split())
    return found


def _spelled(annotation: Any) -> str:
    if hasattr(annotation, "dim_str"):  # a jaxtyping class
        return f"[Tensor, '{annotation.dim_str.strip()}']"
    parts = getattr(annotation, "__args__", ())
    return " ".join(_spelled(part) for part in parts) if parts else str(annotation)


class HasRows:
    """What every noun with a `row` dimension can do."""

    instance: Tensor
    start: Tensor

    def by_instance(self, name: str) -> Tensor:
        """Field `name` with its `row` axis split into `instance, start`.

        Raises:
            ValueError: If the run is not rectangular (as many starts for each instance).
        """
        values: Tensor = getattr(self, name)
        axis = dims_of(type(self))[name].index("row")
        order = torch.argsort(self.instance * (int(self.start.max()) + 1) + self.start)
        kinds, counts = torch.unique(self.instance, return_counts=True)
        if bool((counts != counts[0]).any()):
            raise ValueError(
                f"`by_instance` got between {int(counts.min())} and {int(counts.max())} starts an instance. "
                "A table needs as many starts for every instance. "
                "Use the `instance` coordinate to group the rows yourself."
            )
        moved = values.index_select(axis, order)
        return moved.unflatten(axis, (len(kinds), int(counts[0])))
