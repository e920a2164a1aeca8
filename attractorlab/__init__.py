"""Mechanistic interpretability and attractor analysis of iterative latent reasoners.

Names are imported at first use: ``import attractorlab`` itself loads neither torch nor any other large package.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "attractorlab.types": (
        "Attempts Foresight HaltingGain SolveTimes "
        "BasinEstimate BasinSlice Branch Convergence Drive Finding FixedPointSet Floquet Instance LyapunovEstimate NonNormality NotConvergedError Origin "
        "PeriodicOrbitSet "
        "ProbeFit Projection Report Result "
        "ScalingGrid Spectrum State Trajectory "
        "SpectralDensity TraceEstimate"
    ),
    "attractorlab.maps": "LatentMap repeat_rows strobe",
    "attractorlab.models.cells": "from_cell",
    "attractorlab.models.hooking": "from_function hook",
    "attractorlab.testing": "check_map",
    "attractorlab.dynamics.recorder": "every log_spaced only_last trace",
    "attractorlab.dynamics.settling": "settle",
    "attractorlab.dynamics.continuation": "continuation",
    "attractorlab.dynamics.convergence": "convergence",
    "attractorlab.dynamics.parametric": "ParametricMap between_drives between_weights damped",
    "attractorlab.dynamics.fixed_points": "by_iteration distinct find_fixed_points",
    "attractorlab.dynamics.matching": "match_attractors",
    "attractorlab.dynamics.deflation": "by_deflation enumerate_fixed_points",
    "attractorlab.dynamics.families": "families",
    "attractorlab.dynamics.grading": "grade",
    "attractorlab.dynamics.starting": "starts_from",
    "attractorlab.dynamics.periodic": "distinct_orbits find_periodic_orbits",
    "attractorlab.dynamics.newton": "by_newton_krylov",
    "attractorlab.dynamics.quasi_newton": "by_anderson by_broyden",
    "attractorlab.dynamics.minimisation": "by_gauss_newton by_minimisation",
    "attractorlab.dynamics.krylov_schur": "by_krylov_schur",
    "attractorlab.dynamics.modes": "by_modulus by_real_part",
    "attractorlab.dynamics.spectrum": "by_dense dense_jacobian spectrum",
    "attractorlab.dynamics.floquet": "floquet",
    "attractorlab.dynamics.lyapunov": "lyapunov_exponents",
    "attractorlab.dynamics.non_normality": "non_normality",
    "attractorlab.dynamics.traces": "by_hutchinson by_xtrace traces",
    "attractorlab.dynamics.densities": "singular_density symmetric_density",
    "attractorlab.dynamics.basins": "basin_slice basins_of by_answer by_end_state estimate_basins plane_through",
    "attractorlab.dynamics.attempts": "Halting attempt elastic halted",
    "attractorlab.dynamics.scaling": "scaling scaling_grid scaling_of",
    "attractorlab.dynamics.spending": "foresight halting_gain solve_times",
    "attractorlab.dynamics.selectors": "by_first_halt by_halt by_logit_change by_residual by_verifier by_vote",
    "attractorlab.projection": "by_pca by_umap project",
    "attractorlab.probing": "fit_probe",
    "attractorlab.points": "Call Point Tap",
    "attractorlab.editing": "Edit ablate add_noise clamped free_running freeze patch steer teacher_forced",
    "attractorlab.report": "report",
    "attractorlab.store": "Run",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
_ROOMS = ("models", "plots", "store", "tasks", "testing", "training", "trees")

__all__ = [*sorted(_HOME), *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = import_module(_HOME[name])
        # `report` and `spectrum` are modules and functions: the function is the public name.
        value = getattr(module, name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"attractorlab.{name}")
    raise AttributeError(f"attractorlab has no {name!r}. Public names are listed in attractorlab.__all__. Check the spelling.")


def __dir__() -> list[str]:
    return __all__
