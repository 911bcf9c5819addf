"""Summaries of observations, learned with the posterior: standardised z [B, *shape] -> features [B, E].

A density's network is told an observation as a vector. Vectors may be that themselves; of images, series and sets a
network makes one, trained by the posterior's loss through the features, so that they come to hold what the posterior
depends on. Which network is a matter of symmetry: a `cnn` for grids, a `transformer` for what is ordered, a `set` for
what has no order, an `mlp` for all else.

An embedding is one module of this package with one class: an `Embedding` with a class attribute `name`, whose
constructor takes the shape of z first. `registry` finds it; it is listed nowhere else.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from edmund.errors import InputError, unknown
from edmund.registry import in_package
from edmund.sbi.embedding._base import Embedding, check_shape
from edmund.sbi.embedding.cnn import CNN
from edmund.sbi.embedding.mlp import MLP
from edmund.sbi.embedding.own import Own
from edmund.sbi.embedding.permutation_invariant import PermutationInvariant
from edmund.sbi.embedding.transformer import Transformer
from edmund.sbi.embedding.vector import Vector

__all__ = [
    "CNN",
    "MLP",
    "Embedding",
    "Own",
    "PermutationInvariant",
    "Transformer",
    "Vector",
    "build",
    "from_config",
    "registry",
]

_AUTO = {1: Vector.name, 2: Transformer.name, 3: CNN.name}
"""By the number of axes of z."""


@functools.cache
def registry() -> dict[str, type[Embedding]]:
    """Every embedding by its `name`."""
    return in_package(sys.modules[__name__], Embedding)


def build(
    what: str | Mapping[str, Any] | nn.Module | None,
    shape: Sequence[int],
    out_features: int | None = None,
    *,
    mask: bool = False,
) -> Embedding:
    """The embedding of z [B, *shape], such as `Standardise.out_shape`.

    what: a name; a mapping {"type": name, arguments of its class}; a module z -> [B, E] of one's own; or None or
    "auto": vectors [F] as they are (an mlp where another number of features is asked for), a transformer for series
    [T, C], a cnn for images [C, H, W]. out_features: E; None: the class's default. mask: the second half of z's
    features says which of the first are missing (`Standardise` with a mask); embeddings that have use for it leave out
    what is missing.

    Raises InputError for unknown names and keys (with the nearest known), arguments that contradict `shape`,
    `out_features` or `mask`, shapes that an embedding does not take, and modules that make no vectors of z.
    """
    shape = check_shape(shape, range(1, 9), "observations of up to 8 axes")
    if isinstance(what, nn.Module):
        return _of_module(what, shape, out_features, mask)
    given: Mapping[str, Any] = {"type": what} if what is None or isinstance(what, str) else what
    if not isinstance(given, Mapping) or "type" not in given:
        raise InputError(
            f"embedding is {what!r}; it must be one of {', '.join(sorted(registry()))}, a mapping with such a type, or "
            f"an instance of a torch.nn.Module"
        )
    kind = given["type"]
    if kind is None or kind == "auto":
        kind = _automatic(shape, given.get("out_features", out_features))
    if not isinstance(kind, str) or kind not in registry():
        raise unknown("embedding", kind, [*registry(), "auto"])
    part = registry()[kind]
    fixed: dict[str, Any] = {"shape": shape}
    if out_features is not None:
        fixed["out_features"] = out_features
    known = inspect.signature(part).parameters
    if "mask" in known:
        fixed["mask"] = mask
    arguments = {key: value for key, value in given.items() if key != "type"}
    for key, value in arguments.items():
        if key not in known:
            raise unknown(f"key of embedding {kind!r}", key, known)
        if key in fixed and fixed[key] != (tuple(value) if isinstance(value, list) else value):
            asked = list(shape) if key == "shape" else fixed[key]
            raise InputError(f"{key} of embedding {kind!r} is {value!r}; the observations need {asked!r}")
    return part(**{**arguments, **fixed})


def from_config(config: Mapping[str, Any]) -> Embedding:
    """The embedding that `config` described, with new weights; InputError as `build`'s."""
    if not isinstance(config, Mapping) or "type" not in config or "shape" not in config:
        raise InputError(f"embedding is {config!r}; it must be a mapping with a type and a shape")
    return build(config, config["shape"], mask=config.get("mask", False))


def _automatic(shape: tuple[int, ...], out_features: int | None) -> str:
    if len(shape) == 1 and out_features not in (None, *shape):
        return MLP.name
    if len(shape) not in _AUTO:
        raise InputError(
            f"shape is {list(shape)}; no embedding is chosen by itself for {len(shape)} axes: give a module of your "
            f"own, or 'mlp', which flattens"
        )
    return _AUTO[len(shape)]


def _of_module(module: nn.Module, shape: tuple[int, ...], out_features: int | None, mask: bool) -> Embedding:
    if not isinstance(module, Embedding):
        module = Own(module, shape)
    elif module.shape != shape:
        raise InputError(f"embedding was made for shape {list(module.shape)}; the observations have {list(shape)}")
    elif getattr(module, "mask", mask) != mask:
        raise InputError(f"embedding was made with mask = {not mask}; the observations need mask = {mask}")
    if out_features not in (None, module.out_features):
        raise InputError(f"embedding makes {module.out_features} features; out_features is {out_features}")
    return module
