"""An embedding of the user's own: any module, if it makes a vector of each observation."""

from __future__ import annotations

from torch import Tensor, nn

from edmund.errors import InputError
from edmund.sbi.embedding._base import Embedding
from edmund.sbi.probe import check_shape, probe, zeros


class Own(Embedding):
    """A user's module, z [B, *shape] -> [B, out_features], in the place of an embedding.

    Raises InputError for a module that does not turn zeros [2, *shape] into finite numbers [2, out_features].

    config is None: code is not saved. A posterior that was trained with one is loaded with it.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__(shape, _width(module, shape), None)
        self.name = type(module).__qualname__
        self.module = module

    def embed(self, z: Tensor) -> Tensor:
        return self.module(z)  # type: ignore[no-any-return]


def _width(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Features that the module makes of an observation."""
    z = zeros(module, 2, *shape)
    told = f"embedding is a {type(module).__qualname__}; of zeros {list(z.shape)} it"
    wanted = "it must make a vector of each observation, [2, features]"
    features = probe(told, wanted, module, z)
    check_shape(told, wanted, features, (2, None))
    if not features.is_floating_point():
        raise InputError(f"{told} made {features.dtype}; {wanted} of floating point")
    bad = int((~features.isfinite()).sum())
    if bad:
        raise InputError(f"{told} made {bad} of {features.numel()} values NaN or infinite; all must be finite")
    return features.shape[1]
