"""What a report claims, and what it wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One number of a report: what is claimed, how sure, from how many, and where it can be recomputed.

    `between` says what `low` and `high` are: "interval" (of confidence), or "range" (the 10 % and 90 % quantiles of a sample). They are NaN where there is neither.
    """

    claim: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    source: str
    between: str = "interval"


@dataclass(frozen=True, eq=False)
class Report:
    """What `report` wrote: its findings, its figures by name, and the folder."""

    findings: tuple[Finding, ...]
    figures: Mapping[str, Any]
    folder: str
