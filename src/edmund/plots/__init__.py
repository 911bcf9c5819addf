"""Pictures of samples, trajectories, training and formulations: each function returns a matplotlib Figure.

`save` writes it. What a figure shows can be had as arrays from the function named in its docstring. matplotlib is
imported when the first figure is made.
"""

from edmund.plots.calibration import coverage_curves, rank_counts, rank_histograms, tarp_curve
from edmund.plots.curves import density_of, loss_against_sigma, loss_curve, read_curve
from edmund.plots.error_against_nfe import error_against_nfe
from edmund.plots.flow_lines import FlowLines, flow_line_arrays, flow_lines
from edmund.plots.formulations import formulation_curves, formulations
from edmund.plots.grid import image_grid, tile, to_bytes, write_png
from edmund.plots.local_error import LocalErrors, local_error_against_sigma, local_errors
from edmund.plots.pairs import pairs
from edmund.plots.side_by_side import chosen, side_by_side
from edmund.plots.style import save
from edmund.plots.trajectory import trajectory, trajectory_bytes
from edmund.plots.width_sweep import loss_against_width

__all__ = [
    "FlowLines",
    "LocalErrors",
    "chosen",
    "coverage_curves",
    "density_of",
    "error_against_nfe",
    "flow_line_arrays",
    "flow_lines",
    "formulation_curves",
    "formulations",
    "image_grid",
    "local_error_against_sigma",
    "local_errors",
    "loss_against_sigma",
    "loss_against_width",
    "loss_curve",
    "pairs",
    "rank_counts",
    "rank_histograms",
    "read_curve",
    "save",
    "side_by_side",
    "tarp_curve",
    "tile",
    "to_bytes",
    "trajectory",
    "trajectory_bytes",
    "write_png",
]
