"""A residual multilayer perceptron over all of an observation's numbers: for long vectors, of which a network should
see a summary, and for what has neither order nor neighbourhood that another embedding could use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import check_count
from edmund.networks.conditioning import check_dropout
from edmund.sbi.embedding._base import FEATURES, Embedding, ResidualBlock, check_shape


class MLP(Embedding):
    """z [B, *shape] -> [B, out_features].

    shape: of one z, any; it is flattened. channels: width of the hidden layers; blocks: residual blocks, of two layers
    each; dropout: probability inside the blocks.
    """

    name = "mlp"

    def __init__(
        self,
        shape: Sequence[int],
        out_features: int = FEATURES,
        channels: int = 128,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        shape = check_shape(shape, range(1, 9), "a vector [F], or what has up to 8 axes")
        check_count("channels", channels)
        check_count("blocks", blocks)
        check_dropout(dropout)
        super().__init__(shape, out_features, {"channels": channels, "blocks": blocks, "dropout": dropout})
        self.linear_in = nn.Linear(math.prod(shape), channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels, dropout) for _ in range(blocks)))
        self.norm_out = nn.LayerNorm(channels)
        self.linear_out = nn.Linear(channels, self.out_features)

    def embed(self, z: Tensor) -> Tensor:
        h = self.blocks(self.linear_in(z.flatten(1)))
        return self.linear_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]
