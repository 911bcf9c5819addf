r"""Diagnosis: what the data say about the noise levels, before and after training.

Of the data: the standard deviation, which is EDM's sigma_data; and the sigma_max that a formulation with a range of its
own, such as VE, should start from: the largest distance between two samples, which the noise has to blur (Song & Ermon
2020, technique 1), or more for data far from 0, whose mean the start at N(0, sigma_max^2 I) misses. Of the network: the
loss against sigma, at initialisation and now (Karras et al. 2022, Figure 5a), as

    L(sigma) = E (sigma^2 + d^2) / (sigma d)^2 |D - y|^2 / dim

with d the standard deviation of the data about the mean of each element. L is 1 where the network does no better than
shrinking x towards the mean: at low noise, which cannot be told from detail, and at high noise, where nothing is left
to see. Training belongs in between, so the P_mean and P_std suggested are the mean and standard deviation of ln sigma
under the weight (1 - L)^4 (the power is a choice: with it the covariance of CIFAR-10 alone suggests about what Karras
et al. found for it, -1.2 and 1.2). For a model that is not trained yet, L is that of the best linear denoiser, which
needs the data's covariance alone: with its eigenvalues l_i, |D - y|^2 = sum_i l_i sigma^2 / (l_i + sigma^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edmund import noise, progress
from edmund.errors import InputError
from edmund.loss import EDM as EDMWeight
from edmund.model import Model
from edmund.training.batches import TrainingData, read
from edmund.transform import Transform

MISSED_MEAN = 0.02
"""What the start of sampling may miss of the data's mean, as a fraction of their standard deviation (both as norms)."""
_STREAM = 1
_LOG_SIGMA_RANGE = (math.log(1e-3), math.log(1e3))


@dataclass(frozen=True)
class Diagnosis:
    """The findings, in the model's units. Curves are float64 [levels].

    sigma_data: standard deviation of all elements about their one mean. mean: over all elements. largest_distance:
    between two data points. sigma_max: where sampling may start. sigmas: the levels of the curves. linear: L of the
    best linear denoiser. initial, current: L of a fresh network and of the trained one (None: not trained). P_mean,
    P_std: the log-normal density of training levels that is suggested; from_network: by the trained network's L, not by
    the linear one's.
    """

    sigma_data: float
    mean: float
    largest_distance: float
    sigma_max: float
    sigmas: Tensor
    linear: Tensor
    initial: Tensor
    current: Tensor | None
    P_mean: float
    P_std: float
    from_network: bool


def suggest_sigma_max(dataset: TrainingData, transform: Transform, *, n: int = 1024, seed: int = 0) -> float:
    """The sigma_max from which sampling may start, in the model's units, from at most n samples; see `Diagnosis`."""
    return _sigma_max(_draw(dataset, transform, n, seed)[0].flatten(1))


def diagnose(
    model: Model,
    fresh: Model,
    dataset: TrainingData,
    *,
    trained: bool,
    n: int = 1024,
    levels: int = 33,
    seed: int = 0,
    show_progress: bool = True,
) -> Diagnosis:
    """Measures the data and the loss of a model at `levels` noise levels on at most n samples.

    fresh: the same model as it was before training; `model` itself may be it. trained: whether `model` has been
    trained. The same data and noise are used
    at every level and for both networks.
    """
    y, condition = _draw(dataset, model.transform, n, seed)
    if len(y) < 2:
        raise InputError(f"the data set has {len(y)} sample; a diagnosis needs at least 2")
    flat = y.flatten(1)
    spread = (flat - flat.mean(0)).square().mean().sqrt().item()
    if spread == 0:
        raise InputError("the data are constant: every sample is the same, and there is nothing to learn")
    sigmas = torch.linspace(*_LOG_SIGMA_RANGE, levels, dtype=torch.float64).exp()
    weight = EDMWeight(spread)(sigmas)
    variances = _spectrum(flat)[0]
    linear = weight * (variances * sigmas[:, None] ** 2 / (variances + sigmas[:, None] ** 2)).sum(1) / flat.shape[1]
    normals = noise.normal(noise.keys(seed, torch.arange(len(y))), y.shape[1:], _STREAM)
    runs = [fresh, model] if trained else [fresh]
    with progress.track(levels * len(runs), "loss against sigma", enabled=show_progress) as bar:
        errors = [[_error(each, y, sigma, normals, condition, bar) for sigma in sigmas.tolist()] for each in runs]
    curves = [weight * torch.tensor(values, dtype=torch.float64) for values in errors]
    current = curves[1] if trained else None
    seen = current is not None and bool((current < 1).any())
    P_mean, P_std = _suggest(sigmas, current if current is not None and seen else linear)
    return Diagnosis(
        flat.std(correction=0).item(),
        flat.mean().item(),
        _largest_distance(flat),
        _sigma_max(flat),
        sigmas,
        linear,
        curves[0],
        current,
        P_mean,
        P_std,
        seen,
    )


def _draw(dataset: TrainingData, transform: Transform, n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    y, condition = read(dataset, order[:n].tolist())
    return transform.forward(y.to(torch.float64)), condition


def _largest_distance(flat: Tensor) -> float:
    parts = torch.split(flat, 256)
    return max(torch.cdist(flat, part).max().item() for part in parts)


def _spectrum(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues l_i of the data's covariance, and l_i m_i^2 with m_i the mean's component along each axis.

    By the Gram matrix, which has the same positive eigenvalues, where there are fewer samples than elements.
    """
    mean = flat.mean(0)
    centred = (flat - mean) / math.sqrt(len(flat))
    if flat.shape[1] <= len(flat):
        values, axes = torch.linalg.eigh(centred.T @ centred)
        values = values.clamp_min(0)
        return values, values * (mean @ axes) ** 2
    values, axes = torch.linalg.eigh(centred @ centred.T)
    return values.clamp_min(0), ((centred @ mean) @ axes) ** 2


def _sigma_max(flat: Tensor) -> float:
    """The largest distance between two samples, or more where the start would otherwise miss too much of the mean.

    The ODE started from N(0, sigma^2 I) in place of the noisy data ends, for Gaussian data, with its mean short by
    m_i sqrt(l_i / (sigma^2 + l_i)) along each axis of the covariance.
    """
    values, weighted = _spectrum(flat)
    allowed = (MISSED_MEAN**2 * values.sum()).item()
    sigma = _largest_distance(flat)
    while (weighted / (sigma**2 + values)).sum().item() > allowed:
        sigma *= 1.01
    return sigma


def _error(
    model: Model, y: Tensor, sigma: float, normals: Tensor, condition: dict[str, Tensor], bar: progress.Bar
) -> float:
    """The mean squared error of the denoiser's elements at one level."""
    device = next(model.network.parameters()).device
    total = 0.0
    was_training = model.denoiser.training
    model.denoiser.eval()
    with torch.no_grad():
        for start in range(0, len(y), 256):
            part = slice(start, start + 256)
            x = (y[part] + sigma * normals[part]).to(device, torch.float32)
            given = {key: value[part].to(device) for key, value in condition.items()}
            denoised = model.denoiser(x, torch.tensor(sigma, dtype=torch.float64), **given).cpu().to(torch.float64)
            total += (denoised - y[part]).square().sum().item()
    model.denoiser.train(was_training)
    bar.advance()
    return total / y.numel()


def _suggest(sigmas: Tensor, loss: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of ln sigma under the weight (1 - L)^4."""
    gain = (1 - loss).clamp_min(0) ** 4
    logs = sigmas.log()
    mean = (gain * logs).sum() / gain.sum()
    return mean.item(), ((gain * (logs - mean) ** 2).sum() / gain.sum()).sqrt().item()
