"""Pictures: nouns in, plotly figures out. Nothing is computed here but layout, quantiles and intervals."""

from attractorlab.plots.branches import branches
from attractorlab.plots.curves import outcome_words, residual_curves, residual_vs_accuracy, settle_times, settled_by_solved
from attractorlab.plots.densities import density, traces
from attractorlab.plots.eigenvalues import spectrum
from attractorlab.plots.exponents import lyapunov
from attractorlab.plots.grids import probe, scaling, scaling_lines
from attractorlab.plots.norms import non_normality
from attractorlab.plots.paths import trajectories
from attractorlab.plots.shares import basin_slice, basins
from attractorlab.plots.spending import foresight, frontier, solve_times
from attractorlab.plots.tables import MAZE, SUDOKU, Markup, boards
from attractorlab.plots.theme import recoloured, template
from attractorlab.plots.training import training
from attractorlab.plots.updates import floquet

__all__ = [
    "MAZE",
    "SUDOKU",
    "Markup",
    "basin_slice",
    "basins",
    "boards",
    "branches",
    "density",
    "floquet",
    "foresight",
    "frontier",
    "lyapunov",
    "non_normality",
    "outcome_words",
    "probe",
    "recoloured",
    "residual_curves",
    "residual_vs_accuracy",
    "scaling",
    "scaling_lines",
    "settle_times",
    "settled_by_solved",
    "solve_times",
    "spectrum",
    "template",
    "traces",
    "training",
    "trajectories",
]
