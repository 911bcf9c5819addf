r"""Encoding: from data to the latents that sampling would start from, and the arcs between latents.

The probability-flow ODE is a bijection between data and noise (Song et al. 2021, Section 4.3), so it can be followed up
as well as down. `edmund.sample` comes down from sigma_max z to a state at sigma_min and ends with one step to 0.
`encode` goes back the same way: that step first, then the ODE up to sigma_max. It takes the step to be denoising, D(z;
sigma_min), as it is of samplers that step in sigma (adaptive, DDIM, DPM, UniPC, DEIS and their kin), and of Euler's and
Heun's where noise comes in linearly with t, as in EDM and Flow.

The step's inverse solves D(z; sigma_min) = x by one correction,

    z = x + (x - D(x; sigma_min)) = x - sigma_min^2 grad log p(x; sigma_min)

which leaves sigma_min^4 times the score's slope times the score: of data of std d, about (sigma_min / d)^4 of x, where
starting from z = x would leave (sigma_min / d)^2. That much, for some share of it, is left too by the last step of
other samplers: those that step in t where sigma is a curve of it (Euler's and Heun's over VP and VE end part of the way
from z to D), and LMS anywhere, which goes on with the slopes before. Of a mixture of spreads 0.1 to 0.3, after 400
steps from sigma_max = 80 to sigma_min = 0.02, adaptive steps return x to 4e-5, Heun's over VP to 9e-4 and LMS to 1e-3;
to sigma_min = 0.002 they do to 6e-9, 1e-4 and 2e-5, of which the last two are the other steps' own errors. Data off the
model's manifold (where d is below sigma_min) are not anybody's sample, and come back as their projection onto it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edmund import grid as grids
from edmund import process as processes
from edmund import progress as progress_bars
from edmund import samplers
from edmund.arguments import check_batch_size, check_condition, device_of, evaluation_mode, rows_of
from edmund.denoiser import Denoiser
from edmund.errors import InputError
from edmund.model import Model
from edmund.probability_flow import check_answers, check_data, checked_call, opened, resolve


def encode(
    model: Denoiser | Model,
    /,
    x: Tensor,
    *,
    denoiser: Denoiser | None = None,
    sampler: str | samplers.Sampler | None = None,
    num_steps: int | None = None,
    grid: str | grids.Grid | None = None,
    process: str | processes.Process | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    batch_size: int | None = None,
    condition: Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Tensor:
    """The latents [B, *] of data x [B, *]: `edmund.sample(model, x.shape, latents=latents)` returns x. Float64, on the
    CPU.

    model: a denoiser, or a `Model`: then x is in the user's units, and `model.sample(B, latents=latents)` returns it.
    denoiser: with a Model, what is used instead of its own, such as one of `edmund.guidance` around it. Under a good
    model the latents of data are unit normals, but for what the data's mean and std still are at sigma_max (the mean
    over sigma_max).

    rtol, atol: the error allowed in each step; None: 1e-6. Each sample takes steps of its own. Fixed steps instead
    where sampler, num_steps or grid is given (a denoiser that knows only certain levels needs them), those of
    `edmund.sample` backwards; what is not given comes from the denoiser's formulation. The way back then has errors of
    its own, as large as those of sampling: a few steps there and a few back do not cancel. sigma_min, sigma_max: the
    range, to be the one that is sampled; None: the formulation's.

    condition: keyword tensors with a batch axis of B or 1; another on the way down edits the data. batch_size, device:
    as of `edmund.sample`. A module in training mode is put in evaluation mode meanwhile.

    Raises InputError for every argument that cannot be used, a sampler that draws noise among them.
    """
    oracle, transform = opened(model, denoiser)
    data = check_data(x, model)
    n = len(data)
    path = resolve(
        oracle,
        sampler=sampler,
        num_steps=num_steps,
        grid=grid,
        process=process,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rtol=rtol,
        atol=atol,
        purpose="encoding",
    )
    conditions = check_condition(condition, n, oracle)
    size = check_batch_size(batch_size, n, tuple(data.shape[1:]))
    where = device_of(device, oracle, data, conditions)
    real = torch.float32 if where.type == "mps" else torch.float64

    out = torch.empty(data.shape, dtype=torch.float64)
    bar = progress_bars.track(n, "encoding", enabled=progress)
    with torch.no_grad(), evaluation_mode(oracle), bar:
        inner = transform.forward(data)
        for start in range(0, n, size):
            stop = min(start + size, n)
            z = inner[start:stop].to(where, real)
            given = rows_of(conditions, start, stop, where)
            if start == 0:
                check_answers(oracle, z, path, given)
            level = torch.full((), path.sigma_min, dtype=real, device=where)
            z = 2 * z - checked_call(oracle, z, level, given)
            end, _ = path.run(oracle, z, given, arrived=bar.advance)
            out[start:stop] = end / path.sigma_max
    return out


def interpolate(a: Tensor, b: Tensor, fractions: float | Sequence[float] | Tensor) -> Tensor:
    """Spherical interpolation between a and b, both [B, *]: [F, B, *] at fractions [F], [B, *] at a single one.

    The direction turns evenly along the great circle from a's (fraction 0) to b's (1), and the norm changes evenly from
    |a| to |b| (Shoemake 1985, "Animating rotation with quaternion curves"; fractions beyond [0, 1] go on). For latents:
    the norm of a unit normal in D dimensions is sqrt(D) within 0.7, and straight lines leave that shell, by a third
    half-way. The arc between independent unit normals stays: its directions are uniform exactly, its norm is a mean of
    the two. Samples are interpolated through their latents, `interpolate(encode(denoiser, x), encode(denoiser, y), f)`.

    Raises InputError for shapes that differ, zero vectors, and vectors that point in opposite directions, which no
    great circle prefers to join.
    """
    for argument, value in (("a", a), ("b", b)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            told = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(f"{argument} is {told}; it must be a floating-point tensor [B, *]")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{argument} holds NaN or infinite values; every value must be finite")
    if a.shape != b.shape:
        raise InputError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; they must be the same")
    try:
        share = torch.as_tensor(fractions, dtype=a.dtype, device=a.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"fractions is {fractions!r}; it must be a number or a sequence of numbers") from None
    if share.ndim > 1 or not bool(torch.isfinite(share).all()):
        raise InputError(f"fractions is {fractions!r}; it must be a finite number or a sequence [F] of them")
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    size_a, size_b = flat_a.norm(dim=1, keepdim=True), flat_b.norm(dim=1, keepdim=True)
    for argument, size in (("a", size_a), ("b", size_b)):
        if bool((size == 0).any()):
            raise InputError(f"{argument}[{int((size == 0).flatten().nonzero()[0])}] is zero; it has no direction")
    u, v = flat_a / size_a, flat_b / size_b
    # Kahan's angle, which keeps its digits near 0 and pi, where the arc cosine of u . v loses half of them.
    apart, together = (u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True)
    opposite = together < 16 * torch.finfo(a.dtype).eps
    if bool(opposite.any()):
        raise InputError(
            f"a[{int(opposite.flatten().nonzero()[0])}] and b point in opposite directions; no arc between them is "
            f"shorter than the others"
        )
    angle = 2 * torch.atan2(apart, together)
    w = share.reshape(-1, 1, 1)
    # sin(w angle) / sin(angle), whose limit for parallel vectors is w.
    sine = torch.sin(angle)
    alike = angle == 0
    safe = torch.where(alike, 1.0, sine)
    weight_a = torch.where(alike, 1 - w, torch.sin((1 - w) * angle) / safe)
    weight_b = torch.where(alike, w, torch.sin(w * angle) / safe)
    arc: Tensor = (weight_a * u + weight_b * v) * (size_a + w * (size_b - size_a))
    return torch.reshape(arc, (*share.shape, *a.shape))
