r"""Networks of discrete time steps (DDPM and its descendants) as denoisers.

Such a network was trained on x_i = sqrt(abar_i) y + sqrt(1 - abar_i) n for integer steps i = 0 .. M - 1, with abar_i =
prod_{j <= i} (1 - beta_j) (Ho et al. 2020). Divided by sqrt(abar_i) that is y + sigma_i n with

    sigma_i = sqrt((1 - abar_i) / abar_i),    and the network's input is x / sqrt(1 + sigma_i^2):

a preconditioned network (Karras et al. 2022, Table 1, "iDDPM") that knows only the levels sigma_i. The time step runs
with the noise: i = 0 is the least noisy. Between levels it is told the nearest one's step, and the true sigma enters
everywhere else; samplers have `round_sigma`, by which their nodes and churned levels are levels of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edmund import preconditioning
from edmund.denoiser.preconditioned import Preconditioned
from edmund.errors import InputError, check_count
from edmund.process import DiscreteSteps


class Discrete(Preconditioned):
    """A network trained on discrete time steps as a denoiser, with the range and the levels that it knows.

    network: a module (x / sqrt(1 + sigma^2) [B, *], step [B] int64, **condition) -> [B, *], or an object that has it
    as `.sample`. prediction: what it predicts, "noise", "v" (Salimans & Ho 2022) or "data" (x0); diffusers'
    names "epsilon", "v_prediction" and "sample" say the same.

    schedule: "linear", "scaled_linear" or "sigmoid", betas between beta_start (None: 1e-4) and beta_end (None: 0.02),
    or "squared_cosine" (also "cosine", "squaredcos_cap_v2"), of num_steps steps (None: 1000); the names and values are
    those of diffusers' DDPMScheduler. Or abar_0 > abar_1 > ... themselves, such as a scheduler's `alphas_cumprod`.

    extra_channels: channels beyond x's that the network emits, a learned variance (see `with_extra`).

    `edmund.sample` starts at sigma 80, or at the highest level if that is lower, unless it is told a sigma_max: the
    highest levels of some schedules (157 of "linear", 20 000 of "squared_cosine") are all noise.

    Called with a level outside its range (0 excepted, which is the least noisy step), it raises InputError where sigma
    is on the CPU; elsewhere looking would wait for the device, and `edmund.sample` and its kin check their levels.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: str = "noise",
        schedule: str | Tensor | Sequence[float] = "linear",
        *,
        beta_start: float | None = None,
        beta_end: float | None = None,
        num_steps: int | None = None,
        extra_channels: int = 0,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(f"network is {network!r}; it must be a module (x, step, **condition)")
        steps = DiscreteSteps(schedule, beta_start, beta_end, num_steps)
        self._levels = steps.levels
        super().__init__(
            network,
            preconditioning.Discrete(steps, prediction),
            check_count("extra_channels", extra_channels, least=0),
            sigma_min=self._levels[0].item(),
            sigma_max=self._levels[-1].item(),
        )
        self._steps = steps

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_i of each step, float64 [M], falling."""
        return self._steps.alphas_cumprod

    @property
    def levels(self) -> Tensor:
        """The noise level sigma_i of each step, float64 [M], rising; `grid.Fixed(levels.flip(0))` visits them all."""
        return self._levels.clone()

    def _raw(self, x: Tensor, c_noise: Tensor, condition: dict[str, Tensor]) -> Tensor:
        out = self.network(x, c_noise.to(torch.int64), **condition)
        raw = out if isinstance(out, Tensor) else getattr(out, "sample", None)
        if not isinstance(raw, Tensor):
            raise InputError(f"the network returned a {type(out).__name__}; it must be a tensor or have one as .sample")
        return raw
