r"""The probability-flow ODE to a tolerance, at steps that each sample chooses for itself.

In the unscaled z = x / s(t) and over ln sigma the ODE of every process is one and the same (Karras et al. 2022, Eq. 4,
with s divided out),

    dz / d ln sigma = z - D(z; sigma),

so that is what is integrated, by Dormand and Prince's pair of orders 5 and 4 (`edmund.integrate`): six calls a step,
and two to find the length of the first. The last step, to sigma = 0, is denoising, as of other samplers; of it and of
the start at a finite sigma_max the tolerance says nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_positive
from edmund.integrate import integrate
from edmund.noise import NoiseSource
from edmund.process import Process
from edmund.samplers._base import Callback, Evaluator, Sampler, Step, check_sigmas


@dataclass(frozen=True)
class Adaptive(Sampler):
    """Dormand-Prince 5(4) over ln sigma, each step's error held to rtol |z| + atol, as a root mean square over the
    sample.

    rtol, atol: the relative and the absolute tolerance, the latter in the units of the data. The result's error is
    in proportion to them: some 4 times larger at the default, from about 90 calls, with exact denoisers of mixtures.

    The steps are its own: of the nodes only the first, the last positive and a final 0 are where something is done; at
    the others the callback is told the state, by the continuous extension of order 4, which costs no calls. Each sample
    of a batch has its own time and steps and does not depend on the others; those that arrive leave the batch. Rising
    levels encode, to the same tolerance.

    NFE: known afterwards, as the `nfe` of the last `Step` a callback is told: the calls made for the whole batch, of
    which the slowest sample needed all. The callback is told all nodes when the batch has arrived, and with one the
    states at all nodes are kept, [N, B, *]; without, a few [B, *]. `denoised` of a node is one call more, made when it
    is read and not counted.

    The denoiser must take sigma [B], one level a sample, and levels between the nodes: a discrete model, which has only
    some, is an InputError (so it is in `edmund.log_prob` and `edmund.encode` without num_steps).
    """

    name: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "Dormand & Prince 1980"
    order = 5
    nfe_per_step = 6
    rtol: float = 1e-4
    atol: float = 1e-4

    def __post_init__(self) -> None:
        check_positive("rtol", self.rtol)
        check_positive("atol", self.atol)

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
        """As of any sampler; noise is not used. Raises InputError where the tolerance cannot be met."""
        if hasattr(denoiser, "round_sigma"):
            raise InputError(
                "the denoiser has round_sigma, levels that it knows, and adaptive steps go between them; take a "
                "sampler with fixed steps, such as samplers.Heun()"
            )
        levels = check_sigmas(sigmas)
        t = process.t(levels)
        times, scalings, nodes = t.tolist(), process.s(t).tolist(), levels.tolist()
        z = start = x if scalings[0] == 1.0 else x / scalings[0]
        evaluate, once = _PerSample(denoiser, condition or {}, len(x)), Evaluator(denoiser, condition, x.device)
        positive = levels[levels > 0]
        last = len(positive) - 1
        between = z.new_empty(0, *z.shape)
        if last > 0:
            ends = math.log(nodes[0]), math.log(nodes[last])
            evaluate.check(z, *ends)
            at = None if callback is None else positive[1:-1].log()
            z, between, _ = integrate(evaluate.slope, z, *ends, rtol=self.rtol, atol=self.atol, times=at)
        if callback is not None:
            for i, state in enumerate([start, *between][:last]):
                denoised = functools.partial(once, state, nodes[i])
                callback(_NodeStep(i, times[i], nodes[i], scalings[i], state, denoised, evaluate.calls))
        if nodes[-1] == 0:
            image = once(z, nodes[last])
            if callback is not None:
                callback(Step(last, times[last], nodes[last], scalings[last], z, image, evaluate.calls + 1))
            z = image
        return z if scalings[-1] == 1.0 else z * scalings[-1]


class _PerSample:
    """The slope, from a denoiser that is called with one sigma a sample; counts the calls."""

    def __init__(self, denoiser: Denoiser, condition: Mapping[str, Tensor], batch: int) -> None:
        self._denoiser, self._condition, self._batch = denoiser, condition, batch
        self.calls = 0

    def slope(self, log_sigma: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """z - D(z; sigma) of the samples `rows`."""
        self.calls += 1
        given = dict(self._condition)
        if len(rows) < self._batch:
            given = {key: value if len(value) == 1 else value[rows] for key, value in given.items()}
        denoised = self._denoiser(z, log_sigma.exp().to(z.dtype), **given)
        if not isinstance(denoised, Tensor) or denoised.shape != z.shape:
            found = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            raise InputError(
                f"the denoiser returned {found} for x of shape {tuple(z.shape)} and sigma of shape {(len(z),)}, one a "
                f"sample; it must return E[y | x], like x"
            )
        return z - denoised

    def check(self, z: Tensor, start: float, end: float) -> None:
        """InputError for a denoiser that broadcasts sigma [B] along the last axis of x, where that has B entries too:
        it would go wrong without a word. Elsewhere it fails by itself.
        """
        if not len(z) == z.shape[-1] > 1:
            return
        apart = torch.linspace(start, end, len(z), dtype=z.dtype, device=z.device)
        rows = torch.arange(len(z), device=z.device)
        together, alone = self.slope(apart, z, rows)[:1], self.slope(apart[:1], z[:1], rows[:1])
        if not bool(torch.isfinite(alone).all()):
            raise InputError(
                f"the denoiser returned NaN or infinite values at sigma = {math.exp(start):.6g}; E[y | x] is finite"
            )
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
            raise InputError(
                f"the denoiser does not take sigma of shape {(len(z),)} as one level a sample: the first changes with "
                f"the levels of the others; reshape sigma to broadcast against x, or take a sampler with fixed steps"
            )


class _NodeStep(Step):
    """A step from a node, whose denoised image is computed when it is read."""

    __slots__ = ("_image",)
    _image: Tensor | Callable[[], Tensor]

    def __init__(
        self,
        index: int,
        t: float,
        sigma: float,
        s: float,
        unscaled: Tensor,
        denoised: Tensor | Callable[[], Tensor],
        nfe: int,
    ) -> None:
        given = {"index": index, "t": t, "sigma": sigma, "s": s, "unscaled": unscaled, "_image": denoised, "nfe": nfe}
        for key, value in given.items():
            object.__setattr__(self, key, value)

    @property
    def denoised(self) -> Tensor:
        """D(unscaled; sigma)."""
        image = self._image if isinstance(self._image, Tensor) else self._image()
        object.__setattr__(self, "_image", image)
        return image
