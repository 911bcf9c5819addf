"""The embedding of vectors that need none: the standardised numbers themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edmund.errors import InputError
from edmund.sbi.embedding._base import Embedding, check_shape


class Vector(Embedding):
    """z [B, F] -> z. shape: [F]; out_features: F, or None for it."""

    name = "vector"

    def __init__(self, shape: Sequence[int], out_features: int | None = None) -> None:
        features = check_shape(shape, (1,), "vectors [F]")
        if out_features not in (None, *features):
            raise InputError(
                f"out_features is {out_features!r}; a vector of {features[0]} is taken as it is, 'mlp' has other widths"
            )
        super().__init__(features, features[0], {})

    def embed(self, z: Tensor) -> Tensor:
        return z
