r"""Rescaling: the contrast that guidance added, taken away again.

D_main + (w - 1) (D_main - D_ref) has a larger variance over a sample's numbers than D_main: images come out
over-exposed. Scaling it back to D_main's standard deviation gives plain images, and a mixture of both the best (Lin et
al. 2023, arXiv 2305.08891, Section 3.4, there for the network's output):

    D = phi (std(D_main) / std(D_guided)) D_guided + (1 - phi) D_guided,

with the standard deviations over everything but the batch axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edmund.errors import InputError, check_number
from edmund.guidance._base import Wrapper


class Rescale(Wrapper):
    """A guidance whose D has the standard deviation, per sample, of the D that it guides (Lin et al. 2023).

    guidance: a `Guidance`, such as `ClassifierFree`, or thresholding and rescaling around one: of nested guidances the
    outermost is meant, and both its D come through what is around it. phi: how far, in [0, 1]; 0 is off, the paper
    takes 0.7.
    """

    def __init__(self, guidance: Wrapper, phi: float) -> None:
        if not isinstance(guidance, Wrapper) or not guidance.guides:
            raise InputError(
                f"guidance is a {type(guidance).__name__}; it must be a guidance such as ClassifierFree, or "
                f"thresholding around one: Rescale needs to know the unguided D"
            )
        super().__init__(guidance)
        if not 0 <= check_number("phi", phi) <= 1:
            raise InputError(f"phi is {phi!r}; it must lie in [0, 1]: 0 is off, 1 matches the standard deviation")
        self.phi = float(phi)

    def forward(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """The rescaled D(x; sigma), like x [B, *]; sigma [] or [B]."""
        return self.with_main(x, sigma, **condition)[0]

    @property
    def guides(self) -> bool:
        """True."""
        return True

    def with_main(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """(D rescaled, D_main), like x [B, *] each; the same tensor where guidance is off."""
        if x[0].numel() < 2:
            raise InputError(f"x has shape {tuple(x.shape)}; one number a sample has no standard deviation to match")
        assert isinstance(self.denoiser, Wrapper)
        guided, main = self.denoiser.with_main(x, sigma, **condition)
        if self.phi == 0 or guided is main:
            return guided, main
        axes = tuple(range(1, x.ndim))
        wanted, found = main.std(axes, keepdim=True), guided.std(axes, keepdim=True)
        ratio = torch.where(found > 0, wanted / found, 1.0)  # a constant D has no contrast to scale
        return guided * (1 + self.phi * (ratio - 1)), main
