"""The nouns: frozen, complete records that every function takes and returns."""

from attractorlab.types.base import Drive, HasRows, Origin, Result, State, dims_of
from attractorlab.types.basins import BasinEstimate, BasinSlice
from attractorlab.types.findings import Finding, Report
from attractorlab.types.orbits import PeriodicOrbitSet
from attractorlab.types.points import FixedPointSet, Floquet, LyapunovEstimate, NonNormality, NotConvergedError, Spectrum
from attractorlab.types.runs import Convergence, Instance, ProbeFit, Projection, ScalingGrid, Trajectory

__all__ = [
    "BasinEstimate",
    "BasinSlice",
    "Convergence",
    "Drive",
    "Finding",
    "FixedPointSet",
    "Floquet",
    "HasRows",
    "Instance",
    "LyapunovEstimate",
    "NonNormality",
    "NotConvergedError",
    "Origin",
    "PeriodicOrbitSet",
    "ProbeFit",
    "Projection",
    "Report",
    "Result",
    "ScalingGrid",
    "Spectrum",
    "State",
    "Trajectory",
    "dims_of",
]
