"""The nouns: frozen, complete records that every function takes and returns."""

from attractorlab.types.attempts import Attempts
from attractorlab.types.base import Drive, HasRows, Origin, Result, State, dims_of
from attractorlab.types.basins import BasinEstimate, BasinSlice
from attractorlab.types.branches import Branch
from attractorlab.types.findings import Finding, Report
from attractorlab.types.orbits import PeriodicOrbitSet
from attractorlab.types.points import FixedPointSet, Floquet, LyapunovEstimate, NonNormality, NotConvergedError, Spectrum
from attractorlab.types.runs import Convergence, Instance, ProbeFit, Projection, ScalingGrid, Trajectory
from attractorlab.types.spending import Foresight, HaltingGain, SolveTimes
from attractorlab.types.traces import SpectralDensity, TraceEstimate

__all__ = [
    "Attempts",
    "BasinEstimate",
    "BasinSlice",
    "Branch",
    "Convergence",
    "Drive",
    "Finding",
    "FixedPointSet",
    "Floquet",
    "Foresight",
    "HaltingGain",
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
    "SolveTimes",
    "SpectralDensity",
    "Spectrum",
    "State",
    "TraceEstimate",
    "Trajectory",
    "dims_of",
]
