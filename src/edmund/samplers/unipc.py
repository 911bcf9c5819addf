"""UniPC: a predictor and a corrector for one call a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import unknown
from edmund.process import Process
from edmund.samplers._exponential import (
    check_order,
    exponential_weights,
    log_nodes,
    log_step,
    nodes_of,
    predict_and_correct,
    two_point_weights,
)
from edmund.samplers._linear import LinearSampler, LinearStep


@dataclass(frozen=True)
class UniPC(LinearSampler):
    """UniP-p and UniC-p with data prediction (Zhao et al. 2023, arXiv 2302.04867), p = predictor_order; the process
    does not matter.

    The predictor puts a polynomial in lambda = -ln sigma through the last p images and integrates it exactly; the
    denoiser's image at the prediction joins them, and the step is done again with p + 1 images. The call is that of the
    next step's start, and the last step predicts only: NFE of N steps: N. The order is p + 1.

    Solving the paper's linear systems gives just these weights, whatever its function B(h). B matters only where the
    paper leaves the system unsolved: a predictor of two images and a corrector of one, whose slope gets the weight B/2.
    variant: "bh1": B = h; "bh2": B = 1 - e^{-h}.

    p rises from 1 over the first steps: their errors are of third order (UniPC-1's of second), so that p = 3 shows
    order 3 at last, where the one step shows; on a mixture not before 1024 steps. Where the levels end in 0, p falls
    again over the last steps, to the denoised image in the step to 0.
    """

    name: ClassVar[str] = "unipc"
    source: ClassVar[str] = "Zhao et al. 2023 (2302.04867)"
    nfe_per_step = 1
    predictor_order: int = 3
    variant: str = "bh2"

    def __post_init__(self) -> None:
        check_order("predictor_order", self.predictor_order, 3)
        if self.variant not in ("bh1", "bh2"):
            raise unknown("variant", self.variant, ("bh1", "bh2"))

    @property
    def order(self) -> int:
        """predictor_order + 1, by the corrector."""
        return self.predictor_order + 1

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """z' = e^{-h} z + sum_j w_j D_j, first without the image at z', then with it."""
        nodes = nodes_of(sigma_from, sigma_to)

        def weights(i: int, predictor: int) -> tuple[Sequence[float], Sequence[float]]:
            h = log_step(nodes[i], nodes[i + 1])
            moment = (h if self.variant == "bh1" else -math.expm1(-h)) / 2
            past = log_nodes(nodes, i, predictor)
            predict = two_point_weights(h, past[1], moment) if predictor == 2 else exponential_weights(h, past)
            if predictor == 1:
                return predict, two_point_weights(h, 1.0, moment)[::-1]
            return predict, exponential_weights(h, (1.0, *past))

        return predict_and_correct(nodes, self.predictor_order, weights)
