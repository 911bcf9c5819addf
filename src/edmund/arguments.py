"""The arguments that all that calls a denoiser has in common: shapes, conditions, batches, devices.

Each is checked where it enters: what cannot be used is an InputError before the denoiser is called.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from edmund.devices import known_device
from edmund.errors import InputError, check_count, check_positive

# Without a batch_size, a batch has about this many numbers: 8 MiB in float64, large enough to keep a device busy.
_DEFAULT_BATCH_ELEMENTS = 1 << 20


def check_shape(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """n and the shape of one sample, from (n, *)."""
    sizes = tuple(shape) if hasattr(shape, "__iter__") else ()
    if len(sizes) < 2 or any(isinstance(size, bool) or not isinstance(size, Integral) or size < 1 for size in sizes):
        raise InputError(
            f"shape is {shape!r}; it must be (n, *), the number of samples and the shape of one, positive integers"
        )
    whole = tuple(int(size) for size in sizes)
    return whole[0], whole[1:]


def range_of(
    denoiser: object,
    sigma_min: float | None,
    sigma_max: float | None,
    default: tuple[float, float],
    *,
    clip: bool,
) -> tuple[float, float]:
    """The noise levels asked for, or else the default, within the range that the denoiser was trained on.

    clip: the default is narrowed to that range; what is asked for is not, and is refused outside.
    """
    trained_low = getattr(denoiser, "sigma_min", None) or 0.0
    trained_high = getattr(denoiser, "sigma_max", None) or math.inf
    low, high = (max(default[0], trained_low), min(default[1], trained_high)) if clip else default
    low = low if sigma_min is None else check_positive("sigma_min", sigma_min)
    high = high if sigma_max is None else check_positive("sigma_max", sigma_max)
    # A rounding of the range's ends is no reason to refuse it.
    for argument, value, inside in (
        ("sigma_min", low, low >= trained_low * (1 - 1e-9)),
        ("sigma_max", high, high <= trained_high * (1 + 1e-9)),
    ):
        if not inside:
            raise InputError(
                f"{argument} is {value!r}, outside the range that the model was trained on, {trained_low:.6g} "
                f"to {trained_high:.6g}"
            )
    return low, high


def check_condition(condition: Mapping[str, Tensor] | None, n: int, denoiser: object) -> dict[str, Tensor]:
    """The conditions, each a tensor with a batch axis of n or 1, and the labels among the denoiser's classes."""
    if condition is not None and not isinstance(condition, Mapping):
        raise InputError(
            f"condition is a {type(condition).__name__}; it must be a mapping such as {{'labels': tensor}}"
        )
    checked = dict(condition or {})
    for key, value in checked.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) not in (1, n):
            told = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"condition {key!r} is {told}; it must be a tensor with a batch axis of {n} (the number of "
                f"samples) or 1"
            )
    labels = checked.get("labels")
    if labels is not None and hasattr(denoiser, "check_labels"):
        # Here and not in the network, where looking at values would wait for the device.
        denoiser.check_labels(labels)
    return checked


def rows_of(conditions: Mapping[str, Tensor], start: int, stop: int, device: torch.device) -> dict[str, Tensor]:
    """The conditions of samples start .. stop - 1 on the device, each with a batch axis of their number."""
    rows = {key: (value if len(value) == 1 else value[start:stop]).to(device) for key, value in conditions.items()}
    return {key: value.expand(stop - start, *value.shape[1:]) for key, value in rows.items()}


def check_denoised(denoised: object, x: Tensor) -> Tensor:
    """What a denoiser returned for x, if it is like x; else an InputError."""
    if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
        found = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
        raise InputError(
            f"the denoiser returned {found} for x of shape {tuple(x.shape)}; it must return E[y | x], like x"
        )
    return denoised


def check_batch_size(batch_size: int | None, n: int, item: tuple[int, ...]) -> int:
    """The samples at a time: as asked, or about _DEFAULT_BATCH_ELEMENTS numbers."""
    if batch_size is None:
        return min(n, max(1, _DEFAULT_BATCH_ELEMENTS // math.prod(item)))
    return check_count("batch_size", batch_size)


def device_of(
    device: torch.device | str | None, denoiser: object, latents: Tensor | None, condition: Mapping[str, Tensor]
) -> torch.device:
    """The device given, or where the denoiser's parameters, the latents or the conditions are."""
    if device is not None:
        return known_device(device)
    if isinstance(denoiser, nn.Module):
        for tensor in (*denoiser.parameters(), *denoiser.buffers()):
            return tensor.device
    for value in (latents, *condition.values()):
        if value is not None:
            return value.device
    return torch.device("cpu")


@contextlib.contextmanager
def evaluation_mode(denoiser: object) -> Iterator[None]:
    """Dropout and the like are off while sampling; each part is then put back in the mode that it was in."""
    if not isinstance(denoiser, nn.Module) or not denoiser.training:
        yield
        return
    frozen = [part for part in denoiser.modules() if not part.training]
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.train()
        for part in frozen:
            part.training = False
