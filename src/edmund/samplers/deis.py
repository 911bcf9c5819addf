"""DEIS: exponential Adams-Bashforth on the noise prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.process import Process
from edmund.samplers._exponential import check_order, exponential_weights, log_nodes, log_step, nodes_of
from edmund.samplers._linear import LinearSampler, LinearStep, Stage, denoise


@dataclass(frozen=True)
class DEIS(LinearSampler):
    r"""tAB-DEIS (Zhang & Chen 2023, arXiv 2204.13902), with polynomials in ln sigma: the last `order` noise predictions
    eps_j = (z_j - D_j) / sigma_j, joined by a polynomial and integrated exactly.

    dz = eps dsigma on the unscaled z, so z' = z + sum_j eps_j \int l_j(ln sigma) dsigma over the step; the process does
    not matter. With h = ln(sigma / sigma') the integral is -sigma' h \int_0^1 e^{h (1 - theta)} l_j(theta) dtheta.

    The first step is DDIM's, the next of second order, and so on; the one DDIM step leaves an error of second order, so
    that orders 3 and 4 show order 2 at last, with a small constant. The step to sigma = 0 is DDIM's too: it takes the
    denoised image. NFE of N steps: N.
    """

    name: ClassVar[str] = "deis"
    source: ClassVar[str] = "Zhang & Chen 2023 (2204.13902), tAB-DEIS"
    nfe_per_step = 1
    order: int = 3

    def __post_init__(self) -> None:
        check_order("order", self.order, 4)

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """History of noise predictions."""
        nodes = nodes_of(sigma_from, sigma_to)
        return [self._step(nodes, i) for i in range(len(nodes) - 1)]

    def _step(self, nodes: Sequence[float], i: int) -> LinearStep:
        sigma, sigma_to = nodes[i], nodes[i + 1]
        if sigma_to == 0:
            return denoise(sigma)
        weights = exponential_weights(-log_step(sigma, sigma_to), log_nodes(nodes, i, min(self.order, i + 1)))
        kept = tuple(sigma_to * weight for weight in weights)
        return LinearStep((Stage(sigma, 1.0, kept, keep=(1 / sigma, -1 / sigma)),))
