"""What makes a run this run and no other: compared when an output folder that already holds a run is given."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.model import Model
from edmund.training.batches import TrainingData
from edmund.training.options import TrainingOptions

PROBES = 16
"""How many samples, evenly spread, stand for the whole data set."""


def of_run(model: Model, dataset: TrainingData, options: TrainingOptions) -> dict[str, Any]:
    """Everything that decides the weights after a given number of samples, JSON-able.

    Of the formulation that is how it trains; its sampler and steps may change.
    """
    formulation = model.formulation.config()
    network, uncertainty = model.network, model.uncertainty
    found = {
        "network": {"type": getattr(network, "name", type(network).__qualname__), **getattr(network, "config", {})},
        "uncertainty": None if uncertainty is None else uncertainty.config,
        "formulation": {
            part: formulation[part] for part in ("name", "preconditioning", "noise_density", "loss_weight")
        },
        "transform": model.transform.config(),
        "data": of_data(dataset),
        "training": options.identity(),
    }
    return cast(dict[str, Any], json.loads(json.dumps(found)))  # as it will be read back: tuples are lists


def completed(run: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """`run`, what `of_run` returned in perhaps an earlier version, with the options and the arguments of the network
    that were not there yet at their defaults.
    """
    parameters = inspect.signature(type(model.network)).parameters
    later = {
        name: list(default) if isinstance(default := parameters[name].default, tuple) else default
        for name in getattr(model.network, "config", {})
        if name not in run["network"] and name in parameters and parameters[name].default is not inspect.Parameter.empty
    }
    training = TrainingOptions.whole_identity(run["training"])
    return {**run, "network": {**run["network"], **later}, "training": training}


def of_data(dataset: TrainingData) -> dict[str, Any]:
    """Size, shape and a digest of a few samples with their conditions; no digest where reading a sample twice gives two
    values.
    """
    size = len(dataset)
    indices = sorted({size * k // PROBES for k in range(PROBES)})
    with torch.random.fork_rng(devices=[]):  # a data set that augments at random draws from the global stream
        first, second = _digest(dataset, indices), _digest(dataset, indices)
    return {"samples": size, "shape": list(dataset.shape), "sha256": first if first == second else None}


def _digest(dataset: TrainingData, indices: list[int]) -> str:
    y, condition = dataset.__getitems__(indices)
    digest = hashlib.sha256()
    for name, value in [("", y), *sorted(condition.items())]:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check_same(saved: Mapping[str, Any], ours: Mapping[str, Any], directory: Path) -> None:
    """Refuses to go on with another run: InputError that names the first thing that differs, and both values."""
    difference = _difference(saved, ours, "")
    if difference is None:
        return
    name, there, here = difference
    hint = (
        "a cosine schedule is set by the length of its run, which cannot change (that of the other schedules can)"
        if name == "training.samples"
        else "use another folder, or the same settings"
    )
    raise InputError(
        f"directory: {str(directory)!r} holds another run: {name} is {there!r} there and {here!r} here; {hint}"
    )


def _difference(saved: Any, ours: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(saved, Mapping) and isinstance(ours, Mapping):
        for key in [*ours, *(key for key in saved if key not in ours)]:
            found = _difference(saved.get(key), ours.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    if isinstance(saved, list) and isinstance(ours, list) and len(saved) == len(ours):
        pairs = enumerate(zip(saved, ours, strict=True))
        return (name, saved, ours) if any(_difference(*pair, f"{name}[{i}]") for i, pair in pairs) else None
    # Statistics that are computed anew round otherwise where there are more threads.
    if isinstance(saved, float) and isinstance(ours, float) and math.isclose(saved, ours, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return None if saved == ours else (name, saved, ours)
