"""An embedding of the user's own: any module, if it makes a vector of each observation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edmund.arguments import evaluation_mode
from edmund.errors import InputError
from edmund.sbi.embedding._base import Embedding


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
    # Parameters that are made on the first call (nn.LazyLinear) have no dtype that counts, nor values.
    made = (p for p in module.parameters() if p.is_floating_point() and not isinstance(p, nn.UninitializedParameter))
    like = next(made, torch.zeros(()))
    z = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
    told = f"embedding is a {type(module).__qualname__}; of zeros {list(z.shape)} it"
    wanted = "it must make a vector of each observation, [2, features]"
    try:
        with torch.no_grad(), evaluation_mode(module):
            features = module(z)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{told} raised {type(error).__name__}: {reason}; {wanted}") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or not features.shape[1]:
        made_of = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"{told} made {made_of}; {wanted}")
    if not features.is_floating_point():
        raise InputError(f"{told} made {features.dtype}; {wanted} of floating point")
    bad = int((~features.isfinite()).sum())
    if bad:
        raise InputError(f"{told} made {bad} of {features.numel()} values NaN or infinite; all must be finite")
    return features.shape[1]
