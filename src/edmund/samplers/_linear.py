r"""Fixed-step samplers as data: every step is a linear map of the state, of what the denoiser said, and of noise.

A step from sigma to sigma' takes the unscaled state z = y + sigma n through one or more stages. Each stage may call the
denoiser on the stage before it, and then combines

    z_stage = x z + sum_j kept_j m_j + sum_k noise_k n_k,

where m_j are the images kept so far, newest first, of this step and of those before it, and n_k the step's unit
normals. The last stage is the new state. All coefficients are computed once, in float64, before the first denoiser
call; one loop runs them all. One-step methods keep nothing from step to step, multistep methods look further back,
stochastic ones have noise. The state keeps its own dtype.

A method over the process's own t integrates the probability-flow ODE of the scaled state (Karras et al. 2022, Eq. 81;
t runs down from noise to data)

    dx/dt = a x - b D(x / s; sigma),    a = sigma'/sigma + s'/s,    b = sigma' s / sigma

and writes its weights for z = x / s; a method in ln sigma has the same weights whatever the process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.errors import InputError
from edmund.noise import NoiseSource
from edmund.process import Process
from edmund.samplers._base import Callback, Churn, Evaluator, Sampler, Step, check_sigmas


class Stage(NamedTuple):
    """One stage of a step; weights are those of the module's equation.

    sigma: the level at which the denoiser is called on the stage before (or on the step's start); None: no call. x: the
    weight of the step's start. kept: weights of the kept images, newest first. noise: weights of the step's draws.
    keep: what is kept of a call at z with image D: keep[0] z + keep[1] D; None: D.
    """

    sigma: float | None
    x: float
    kept: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    keep: tuple[float, float] | None = None


class LinearStep(NamedTuple):
    """The stages of a step, and the interval of sigma (from, to) that each of its draws of noise belongs to."""

    stages: tuple[Stage, ...]
    draws: tuple[tuple[float, float], ...] = ()


def denoise(sigma: float) -> LinearStep:
    """The step to sigma = 0 of methods in ln sigma: it is infinitely long, and only the image at its start remains."""
    return LinearStep((Stage(sigma, 0.0, (1.0,)),))


class LinearSampler(Sampler):
    """The loop of all fixed-step samplers. One defines `plan`, the coefficients of all its steps."""

    @abstractmethod
    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """The steps from sigma_from [N] to sigma_to [N], float64 on the CPU; sigma_to may end in 0, and both may rise.

        sigma_from[i + 1] is sigma_to[i], or above it after churn.
        """

    def raised(self, sigmas: Tensor, denoiser: Denoiser) -> Tensor:
        """The level that each step starts from once noise is added ahead of it: float64 [N], from the nodes [N + 1]."""
        return sigmas[:-1]

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        process: Process,
        noise: NoiseSource | None = None,
        condition: Mapping[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """As of any sampler. Stochastic ones need levels that fall."""
        levels = check_sigmas(sigmas)
        raised = self.raised(levels, denoiser)
        added = torch.sqrt((raised**2 - levels[:-1] ** 2).clamp_min(0)).tolist()
        plan = self.plan(process, raised, levels[1:])
        if levels[-1] > levels[0] and (any(step.draws for step in plan) or any(added)):
            raise InputError(f"sigmas rises, and {self!r} adds noise: encode with a deterministic sampler")
        t = process.t(levels)
        times, scalings, starts, churned = t.tolist(), process.s(t).tolist(), levels.tolist(), raised.tolist()

        evaluate = Evaluator(denoiser, condition, x.device)
        images: deque[Tensor] = deque(maxlen=max(len(stage.kept) for step in plan for stage in step.stages) or 1)
        z = x if scalings[0] == 1.0 else x / scalings[0]
        latest: Tensor | None = None
        for index, step in enumerate(plan):
            draw = _Draws(noise, index)
            begin = z
            if added[index] > 0:
                # Churn's S_noise is the added noise's only.
                begin = torch.add(z, draw(z, starts[index], churned[index]), alpha=added[index] * self._added_noise())
            normals = [draw(z, *interval) for interval in step.draws]
            # A predictor-corrector begins a step with the image that corrected the step before.
            now, image = begin, latest
            for stage in step.stages:
                if stage.sigma is not None:
                    latest = evaluate(now, stage.sigma)
                    if stage is step.stages[0]:
                        image = latest
                    images.appendleft(latest if stage.keep is None else _combined(stage.keep, (now, latest)))
                now = _combined(
                    (stage.x, *stage.kept, *stage.noise),
                    (begin, *list(images)[: len(stage.kept)], *normals[: len(stage.noise)]),
                )
            if callback is not None:
                assert image is not None  # a sampler's first stage calls the denoiser
                callback(Step(index, times[index], starts[index], scalings[index], z, image, evaluate.nfe))
            z = now
        return z if scalings[-1] == 1.0 else z * scalings[-1]

    def _added_noise(self) -> float:
        """S_noise of the churn."""
        return 1.0


class OneStepSampler(LinearSampler):
    """A linear sampler that needs nothing but the present state, so that Algorithm 2's churn can go before each step.

    A dataclass with a field `churn`.
    """

    churn: Churn | None

    def __post_init__(self) -> None:
        if self.churn is not None and not isinstance(self.churn, Churn):
            raise InputError(f"churn is {self.churn!r}; it must be a Churn, such as Churn(S_churn=40), or None")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: with churn."""
        return self.churn is not None and self.churn.S_churn > 0

    def raised(self, sigmas: Tensor, denoiser: Denoiser) -> Tensor:
        """The nodes raised by churn."""
        if self.churn is None or self.churn.S_churn == 0:
            return sigmas[:-1]
        if sigmas[-1] > sigmas[0]:
            raise InputError("sigmas rises, and churn adds noise: encode with churn=None")
        return self.churn.raised(sigmas, getattr(denoiser, "round_sigma", None))

    def _added_noise(self) -> float:
        return 1.0 if self.churn is None else self.churn.S_noise


class _Draws:
    """The draws of one step, numbered as they come."""

    def __init__(self, noise: NoiseSource | None, index: int) -> None:
        self._noise, self._index, self._count = noise, index, 0

    def __call__(self, x: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        if self._noise is None:
            raise InputError(
                "noise is None, but the sampler draws noise: give a noise source such as noise.Seeded(seeds)"
            )
        drawn = self._noise(x, self._index, sigma_from, sigma_to, self._count)
        self._count += 1
        return drawn


def _combined(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """sum_i weights_i tensors_i; a new tensor unless it is one of them."""
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=True) if weight != 0.0]
    if not terms:
        return torch.zeros_like(tensors[0])
    (weight, tensor), *rest = terms
    if weight == 1.0 and not rest:
        return tensor
    out = torch.mul(tensor, weight)
    for weight, tensor in rest:
        out.add_(tensor, alpha=weight)
    return out


class Slope(NamedTuple):
    """The coefficients of the ODE at times t: dx/dt = a x - b D(x / s; sigma); tensors [N]."""

    a: Tensor
    b: Tensor
    s: Tensor


def slopes(process: Process, t: Tensor, sigma: Tensor) -> Slope:
    """The ODE's coefficients at times t > 0 with noise levels sigma, float64 [N] each."""
    s, relative = process.s(t), process.sigma_dot(t) / sigma
    return Slope(relative + process.s_dot(t) / s, relative * s, s)
