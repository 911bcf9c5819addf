"""A denoising trajectory: what the sampler holds, and what the denoiser believes, from pure noise to the sample.

At each noise level the sampler's state x is a sample of the data plus noise of standard deviation sigma (times the
process's scaling), and the denoiser's D(x; sigma) is the mean of all data that could have become x: at first the mean
of the data set, then a blur of a few candidates, at last one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.plots import style
from edmund.plots.grid import range_text, tile, to_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTRAST = 2.5
"""The range of brightness of a noisy image is widened by so many standard deviations of its noise."""


def trajectory(
    sigmas: Tensor,
    x: Tensor,
    denoised: Tensor,
    value_range: tuple[float, float],
    *,
    samples: int = 4,
    levels: int = 9,
    title: str = "From noise to data",
) -> Figure:
    """The way of the first `samples`, two rows each: the noisy state x above, the denoised D(x; sigma) below.

    sigmas [N + 1], the last 0; x [N + 1, n, C, H, W] before each step and at the end; denoised [N, n, C, H, W] at the
    start of each step, in the units of `value_range`, as x[N] is: what `sample(..., return_trajectory=True)` returns,
    in the data's units. Of the N levels about `levels` are shown, evenly spaced, the first and the last among them. The
    bytes shown are those of `trajectory_bytes`.
    """
    noisy, clean, shown = trajectory_bytes(sigmas, x, denoised, value_range, samples=samples, levels=levels)
    count, n, height, width, _ = noisy.shape
    scale = max(1, 96 // max(height, width))
    gap = max(1, width * scale // 12)
    with style.styled():
        cell = min(0.75, 8.0 / count)
        figure = style.new_figure(count * cell + 1.0, n * (2 * cell * height / width + 0.12) + 1.25)
        axes = figure.subplots(n, 1, squeeze=False)[:, 0]
        for k, place in enumerate(axes):
            pictures = np.concatenate([noisy[:, k], clean[:, k]])
            sheet = tile(pictures, count, scale=scale, gap=gap)
            style.plain_image(place)
            place.imshow(
                sheet[..., 0] if sheet.shape[2] == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            down, across = height * scale + gap, width * scale + gap
            place.set_yticks([gap / 2 + 0.5 * down, gap / 2 + 1.5 * down], ["x", "D(x; σ)"])
            if k == 0:
                place.xaxis.tick_top()
                place.xaxis.set_label_position("top")
                place.set_xticks([gap / 2 + (i + 0.5) * across for i in range(count)], [level_text(s) for s in shown])
                place.set_xlabel("noise level σ", labelpad=6)
            place.tick_params(length=0)
        style.describe(
            figure,
            title,
            "Above, the noisy state x, its contrast lowered to make room for its noise; below, the denoised image "
            f"D(x; σ). Where there is no noise {range_text(value_range)}. At σ = 0 both are the sample.",
        )
    return figure


def trajectory_bytes(
    sigmas: Tensor, x: Tensor, denoised: Tensor, value_range: tuple[float, float], *, samples: int = 4, levels: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pictures of the noisy and of the denoised rows, uint8 [L, n, H, W, C], and the L noise levels, the last 0."""
    check_count("samples", samples)
    check_count("levels", levels, least=2)
    steps = len(sigmas) - 1
    if steps < 1 or len(x) != steps + 1 or len(denoised) != steps or x.shape[1:] != denoised.shape[1:] or x.ndim != 5:
        raise InputError(
            f"sigmas, x, denoised have shapes {tuple(sigmas.shape)}, {tuple(x.shape)}, {tuple(denoised.shape)}; "
            "they must be [N + 1], [N + 1, n, C, H, W] and [N, n, C, H, W]"
        )
    index = torch.linspace(0, steps - 1, min(levels, steps)).round().long()
    shown = min(samples, x.shape[1])
    ends = x[-1:, :shown].detach().cpu().double()
    states = torch.cat([x[index, :shown].detach().cpu().double(), ends])
    beliefs = torch.cat([denoised[index, :shown].detach().cpu().double(), ends])
    middle, half = sum(value_range) / 2, (value_range[1] - value_range[0]) / 2
    noise = (states - beliefs).std((-3, -2, -1), keepdim=True)  # in the data's units, whatever those of sigma are
    states = middle + (states - middle) * half / (half**2 + (CONTRAST * noise) ** 2).sqrt()
    noisy, clean = (to_bytes(images.flatten(0, 1), value_range) for images in (states, beliefs))
    noisy, clean = (images.reshape(len(index) + 1, shown, *images.shape[1:]) for images in (noisy, clean))
    return noisy, clean, torch.cat([sigmas[index], sigmas[-1:]]).detach().cpu().double().numpy()


def level_text(sigma: float) -> str:
    """A noise level in at most three digits: 80, 2.46, 0.002."""
    return f"{sigma:.3g}" if sigma < 100 else f"{sigma:.0f}"
