"""The report on a model of images or vectors: many samples, every metric beside what real data reach, and the pictures
that a person looks at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund import plots
from edmund.arguments import device_of
from edmund.choices import levels_of, resolve_grid, resolve_sampler
from edmund.data import DataSet
from edmund.errors import InputError
from edmund.guidance import Guidance, Wrapper
from edmund.metrics import ImageClassifier, no_classifier_because, sample_report, shrink, train_classifier
from edmund.metrics.classifier import MOST_IMAGES
from edmund.metrics.features import count_in_common
from edmund.model import Model
from edmund.sample import Trajectory
from edmund.speed import PRECISIONS

# Real data beyond this many add nothing to the metrics but time.
_REAL_LIMIT = 10_000
_CHUNK = 4096


@dataclass(frozen=True)
class Report:
    """metrics: the numbers, JSON-able. samples: [n, *] in the user's units. labels: [n] that were asked for, or None.
    files: what was written.
    """

    metrics: dict[str, Any]
    samples: Tensor
    labels: Tensor | None
    files: dict[str, Path]


def class_labels(n: int, num_classes: int) -> Tensor | None:
    """n labels, each class in turn; None without classes."""
    return torch.arange(n) % num_classes if num_classes > 0 else None


def as_condition(labels: Tensor | None) -> dict[str, Any]:
    """The labels as a condition of the model; nothing where there are none."""
    return {} if labels is None else {"labels": labels}


def everything(dataset: DataSet, limit: int = _REAL_LIMIT) -> tuple[Tensor, Tensor | None]:
    """At most `limit` samples of a data set, spread over it, and their labels."""
    count = min(len(dataset), limit)
    y, condition = dataset.__getitems__(torch.linspace(0, len(dataset) - 1, count).round().long().tolist())
    labels = condition.get("labels")
    return y, labels if labels is not None and labels.ndim == 1 else None


def classifier_of(train: DataSet, model: Model, *, progress: bool = True) -> ImageClassifier:
    """The classifier of a labelled training set, trained where the model is; the same for every model of these data."""
    count = min(len(train), MOST_IMAGES)
    images, labels = [], []
    for indices in torch.split(torch.linspace(0, len(train) - 1, count).round().long(), _CHUNK):
        y, condition = train.__getitems__(indices.tolist())
        images.append(shrink(y))
        labels.append(condition["labels"])
    device = device_of(None, model.denoiser, None, {})
    return train_classifier(torch.cat(images), torch.cat(labels), device=device, progress=progress)


def value_range(dataset: DataSet) -> tuple[float, float]:
    """The range in which pictures of the data are drawn: what the format allows, or what the data reach."""
    if dataset.value_range is not None:
        return dataset.value_range
    y = everything(dataset)[0]
    return float(y.min()), float(y.max())


def whole_levels(dataset: DataSet) -> tuple[int, int] | None:
    """(lowest, highest) where the data are whole numbers of a known range, as digits and 8-bit images are."""
    if dataset.value_range is None:
        return None
    y = everything(dataset, 256)[0]
    whole = not y.is_floating_point() or bool((y == y.round()).all())
    return (int(dataset.value_range[0]), int(dataset.value_range[1])) if whole else None


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be drawn as grey or colour pictures."""
    return len(shape) == 3 and shape[0] in (1, 3)


def evaluate(
    model: Model, train: DataSet, held_out: DataSet, directory: Path, *, n: int = 2000, **options: Any
) -> Report:
    """Draws n samples, each class in turn, and writes metrics.json and pictures to `directory`.

    Where the data are images with labels, a classifier is trained on them first; where its features cannot be compared,
    metrics["left_out"] says why; metrics["sampling"] says how the samples were drawn. options: keyword arguments of
    `edmund.sample`. Raises InputError for a model and data of different shapes.
    """
    if model.shape != tuple(train.shape):
        raise InputError(f"the data have shape {tuple(train.shape)}, the model was trained on {model.shape}")
    labels = class_labels(n, model.num_classes)
    condition = as_condition(labels)
    samples = model.sample(n, **condition, **options)
    assert isinstance(samples, Tensor)
    (real, real_labels), (kept, kept_labels) = everything(train), everything(held_out)
    count = min(n, len(kept))
    if labels is not None and kept_labels is not None:
        count = int(count_in_common(labels, kept_labels).sum())
    left_out = no_classifier_because(model.shape, real_labels, [count])
    classifier = None if left_out else classifier_of(train, model, progress=options.get("progress", True))
    metrics = sample_report(
        samples, labels, real, real_labels, kept, kept_labels, classifier=classifier, levels=whole_levels(train)
    )
    if left_out:
        metrics["left_out"] = {"feature_frechet": left_out}
    metrics["sampling"] = sampling_of(model, options)
    directory.mkdir(parents=True, exist_ok=True)
    files = {"metrics": directory / "metrics.json"}
    files["metrics"].write_text(json.dumps(metrics, indent=2) + "\n")
    if is_image(model.shape):
        files |= _pictures(model, train, samples, labels, directory, options)
    elif len(model.shape) == 1:
        files["samples"] = plots.save(
            plots.pairs(samples, real, title="Samples over real data"), directory / "samples.png"
        )
    return Report(metrics, samples, labels, files)


def sampling_of(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """How `model` samples with these keyword arguments of `Model.sample`, JSON-able.

    Keys: sampler, with its arguments; num_steps; guidance: of the outermost one the weight w and the interval of sigma,
    "low,high" (None: all levels), None without; precision of the network: "fp32", "bf16" or "fp16".
    """
    form, guide = model.formulation, options.get("denoiser") or model.denoiser
    grid = resolve_grid(options.get("grid"), form)
    levels = levels_of(guide, form, grid, *(options.get(key) for key in ("num_steps", "sigma_min", "sigma_max")))
    while isinstance(guide, Wrapper) and not isinstance(guide, Guidance):
        guide = guide.denoiser
    guidance = None
    if isinstance(guide, Guidance):
        interval = None if guide.interval is None else "{:g},{:g}".format(*guide.interval)
        guidance = {"w": guide.w, "interval": interval}
    dtype = next((parameter.dtype for parameter in model.network.parameters()), torch.float32)
    return {
        "sampler": repr(resolve_sampler(options.get("sampler"), form)),
        "num_steps": len(levels) - 1,
        "guidance": guidance,
        "precision": next((name for name, known in PRECISIONS.items() if known == dtype), str(dtype)),
    }


def _pictures(
    model: Model, train: DataSet, samples: Tensor, labels: Tensor | None, directory: Path, options: dict[str, Any]
) -> dict[str, Path]:
    limits = value_range(train)
    real, real_labels = everything(train)
    figure = plots.side_by_side(
        real,
        samples,
        limits,
        real_labels=real_labels if labels is not None else None,
        labels=labels,
        class_names=model.class_names,
    )
    files = {"samples": plots.save(figure, directory / "samples.png")}
    few = as_condition(class_labels(6, model.num_classes))
    path = model.sample(6, return_trajectory=True, **few, **options)
    assert isinstance(path, Trajectory)
    files["trajectory"] = draw_trajectory(model, path, limits, directory / "trajectory.png")
    return files


def draw_trajectory(model: Model, path: Trajectory, limits: tuple[float, float], file: Path) -> Path:
    """The denoising trajectory of a few samples as a picture, in the user's units."""
    n = len(path.samples)
    shape = path.x.shape[2:]
    x = model.transform.inverse(path.x.reshape(-1, *shape)).reshape(-1, n, *shape)
    denoised = model.transform.inverse(path.denoised.reshape(-1, *shape)).reshape(-1, n, *shape)
    return plots.save(plots.trajectory(path.sigmas, x, denoised, limits, samples=n), file)
