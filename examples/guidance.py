"""Classifier-free guidance on two classes with known scores: python examples/guidance.py draws guidance.png.

Each class is a bent row of Gaussians. A weight above 1 moves the samples of the asked class away from the other.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import edmund
from edmund import guidance

bend = torch.linspace(-1, 1, 12, dtype=torch.float64)
rows = [torch.stack([bend, 0.5 * bend**2 + offset], 1) for offset in (-0.5, 0.0)]
classes = [edmund.denoiser.GaussianMixture(row, [0.12] * len(row)) for row in rows]
both = edmund.denoiser.GaussianMixture(torch.cat(rows), [0.12] * 24)


def denoiser(x: Tensor, sigma: Tensor, *, labels: Tensor) -> Tensor:
    """What a network trained with label dropout learns: E[y | x, label], and E[y | x] for the label -1."""
    images = torch.stack([each(x, sigma) for each in (*classes, both)])
    return images[labels, torch.arange(len(x))]  # the label -1 takes the last, `both`


figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
for panel, w in zip(axes, (1.0, 2.0, 4.0), strict=True):
    for label in (0, 1):
        guided = guidance.ClassifierFree(denoiser, w)
        x = edmund.sample(guided, (1000, 2), condition={"labels": torch.tensor([label])}, progress=False)
        panel.scatter(*x.T, s=2, alpha=0.5, label=f"class {label}")
    panel.set_title(f"w = {w:g}" + (" (off)" if w == 1 else ""))
    panel.set_xlabel("$y_1$")
axes[0].set_ylabel("$y_2$")
axes[0].legend(markerscale=4, loc="upper left")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "guidance.png", dpi=120)
