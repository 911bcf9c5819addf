"""A raw network as a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edmund.denoiser._protocol import condition_names, expand_condition
from edmund.errors import InputError, unknown
from edmund.preconditioning import Preconditioning

if TYPE_CHECKING:
    from edmund.formulation import Formulation


class Preconditioned(nn.Module):
    """A raw network F as a denoiser: D = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, Eq. 7).

    network: a module (x [B, *], c_noise [B] float32, **condition) -> [B, *]. extra_channels: channels beyond x's that
    the network emits, a learned variance (see `with_extra`). formulation, sigma_min, sigma_max: carried for
    `edmund.sample`; the range is the one the network was trained on. uncertainty: EDM2's u(sigma), a module of c =
    ln(sigma)/4.

    The coefficients are computed in x's dtype, the network runs in its own, the result has x's. c_noise is float32
    whatever the network's dtype: bf16 cannot tell 997 from 999.

    Table 1's coefficients are made for data around 0. A network that knows better where its data lie under a condition
    has a method `location(**condition)`, mu [B, *] or [1, *], and then D = mu + c_skip (x - mu) + c_out F(c_in (x -
    mu); c_noise): the same for data around mu.
    """

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        extra_channels: int = 0,
        *,
        formulation: Formulation | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        uncertainty: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.extra_channels = extra_channels
        self.formulation = formulation
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self._uncertainty = uncertainty
        self.known_conditions = condition_names(network)
        self._location: Callable[..., Tensor] | None = getattr(network, "location", None)
        levels = getattr(preconditioning, "round_sigma", None)
        if levels is not None:
            self.round_sigma: Callable[[Tensor], Tensor] = levels

    @property
    def has_uncertainty(self) -> bool:
        """Whether the network was trained with a learned uncertainty."""
        return self._uncertainty is not None

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """EDM2's learned uncertainty u(sigma), float32 of sigma's shape: exp(u) is the weighted denoising error to
        expect there.
        """
        if self._uncertainty is None:
            raise InputError("this denoiser has no learned uncertainty; train with training.uncertainty on to have one")
        c = (torch.log(sigma) / 4).to(torch.float32)
        u: Tensor = self._uncertainty(c.reshape(-1)).reshape(sigma.shape)
        return u

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the network's labels: 0 where it takes none, None where it does not say."""
        config = getattr(self.network, "config", None)
        label_dim = config.get("label_dim") if isinstance(config, Mapping) else None
        return None if label_dim is None else int(label_dim)

    def check_labels(self, labels: Tensor) -> None:
        """Raises InputError for integer classes that the network has not got; reads the values."""
        if self.num_classes is None or labels.is_floating_point() or labels.ndim != 1:
            return
        if self.num_classes == 0:
            raise InputError(
                f"labels is {labels.tolist()[:8]}, but the model is unconditional: it was trained without labels"
            )
        wrong = labels[(labels < -1) | (labels >= self.num_classes)]
        if len(wrong) > 0:
            raise InputError(
                f"labels holds {int(wrong[0])}; the model's classes are 0 to {self.num_classes - 1} (-1: none)"
            )

    def forward(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """D(x; sigma), like x [B, *]; sigma [] or [B].

        Raises InputError for a condition that the network does not know or of a wrong batch.
        """
        return self._evaluate(x, sigma, condition)[0]

    def with_extra(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """(D(x; sigma), the network's extra channels [B, extra_channels, *] as they are)."""
        denoised, extra = self._evaluate(x, sigma, condition)
        return denoised, extra.clone()  # a CUDA graph writes its next output over this one

    def _evaluate(self, x: Tensor, sigma: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.known_conditions is not None:
            for key in condition:
                if key not in self.known_conditions:
                    raise unknown("condition", key, self.known_conditions)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) not in (1, len(x))):
            raise InputError(f"sigma has shape {tuple(sigma.shape)}; it must be [] or [{len(x)}], one a sample")
        level = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        c = self.preconditioning
        c_noise = c.c_noise(sigma.reshape(-1)).to(torch.float32).expand(len(x))
        location = self._location(**condition).to(x.dtype) if self._location is not None else None
        centred = x if location is None else x - location
        raw = self._raw(
            (c.c_in(level) * centred).to(_dtype_of(self.network)), c_noise, expand_condition(condition, len(x))
        )
        expected = (len(x), x.shape[1] + self.extra_channels, *x.shape[2:])
        if raw.shape != expected:
            raise InputError(
                f"the network's output has shape {tuple(raw.shape)}; for x {tuple(x.shape)} and extra_channels "
                f"= {self.extra_channels} it must be {expected}"
            )
        main, extra = raw[:, : x.shape[1]], raw[:, x.shape[1] :]
        denoised = c.c_skip(level) * centred + c.c_out(level) * main.to(x.dtype)
        return denoised if location is None else denoised + location, extra

    def _raw(self, x: Tensor, c_noise: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output for its input x, c_noise [B] float32 and the expanded conditions."""
        raw: Tensor = self.network(x, c_noise, **condition)
        return raw


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
