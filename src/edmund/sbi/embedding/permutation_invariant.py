r"""Sets: observations whose rows are exchangeable, as independent draws are.

    e = rho(mean_i phi(z_i), max_i phi(z_i), ln((1 + n) / (1 + T))),    i over the n rows that are there, of T

Every function of a set that does not ask for the order of its rows can be written so, with sums in the place of the
mean (Zaheer et al. 2017, Deep Sets, Theorem 2), and the sufficient statistics of independent draws from an exponential
family are such means. Means and not sums, as they keep their size when n grows; that they forget n is made good by the
last entry.

Sets of different sizes are padded with rows of NaN, in observations with a mask: a row of which all values are missing
is not in the set, wherever it stands. Of rows that are there in part the values and the masks are both seen. The empty
set has means and maxima 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edmund.errors import check_count
from edmund.networks.conditioning import check_dropout
from edmund.sbi.embedding._base import FEATURES, Embedding, ResidualBlock, check_mask, check_shape, head


class PermutationInvariant(Embedding):
    """z [B, T, C] -> [B, out_features], the same for every order of the T rows.

    shape: [T, C]; channels: width of phi and of rho's hidden layer; blocks: residual blocks of phi; dropout:
    probability inside the blocks; mask: the second half of the C features says which of the first are missing, as
    `Standardise` with a mask has it.
    """

    name = "set"

    def __init__(
        self,
        shape: Sequence[int],
        out_features: int = FEATURES,
        channels: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        mask: bool = False,
    ) -> None:
        shape = check_shape(shape, (2,), "sets [T, C] of T rows")
        check_count("channels", channels)
        check_count("blocks", blocks)
        check_dropout(dropout)
        check_mask(mask, shape, 1)
        super().__init__(
            shape, out_features, {"channels": channels, "blocks": blocks, "dropout": dropout, "mask": mask}
        )
        self.mask = mask
        self.phi = nn.Sequential(
            nn.Linear(shape[1], channels), *(ResidualBlock(channels, dropout) for _ in range(blocks))
        )
        self.rho = head(2 * channels + int(mask), channels, self.out_features)
        if mask:
            # One input among so many: the usual initialisation would only whisper the count.
            nn.init.normal_(self.rho.get_parameter("0.weight").data[:, -1])

    def embed(self, z: Tensor) -> Tensor:
        h = self.phi(z)
        if not self.mask:
            return self.rho(torch.cat([h.mean(1), h.amax(1)], 1))  # type: ignore[no-any-return]
        rows, features = self.shape
        absent = (z[:, :, features // 2 :] > 0.5).all(2, keepdim=True)
        count = rows - absent.sum(1)
        mean = h.masked_fill(absent, 0).sum(1) / count.clamp(min=1)
        greatest = h.masked_fill(absent, -math.inf).amax(1).masked_fill(count == 0, 0)
        size = ((1 + count) / (1 + rows)).log().to(h.dtype)
        return self.rho(torch.cat([mean, greatest, size], 1))  # type: ignore[no-any-return]
