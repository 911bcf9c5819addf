"""Figure 3 of the EDM paper for any process: python examples/flow_lines.py draws flow_lines.png.

The samples of a 1-D mixture on their way from noise to data, over the density of the noisy state, for the ready
processes and an odd one.
"""

from __future__ import annotations

import sys

import torch

import edmund
from edmund import plots, process

denoiser = edmund.denoiser.GaussianMixture([[-1.0], [0.4], [1.0]], stds=[0.1, 0.08, 0.05], weights=[0.5, 0.2, 0.3])
odd = process.Process(s=lambda t: 1 + 0.5 * torch.sin(4 * torch.pi * t), sigma=lambda t: 80 * t**3)
processes = {
    "VP": process.VP(),
    "VE": process.VE(),
    "EDM": process.EDM(),
    "flow": process.RectifiedFlow(),
    "cosine": process.Cosine(),
    "s = 1 + sin(4πt)/2, σ = 80 t³": odd,
}
plots.save(plots.flow_lines(processes, denoiser), sys.argv[1] if len(sys.argv) > 1 else "flow_lines.png")
