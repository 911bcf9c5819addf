"""`edmund sample`: a picture and an .npz of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edmund import plots, samplers
from edmund.cli._run import CONFIG_FILE, console, load_model, make_folder, parse_numbers, read_config
from edmund.errors import InputError, unknown
from edmund.images.report import as_condition, class_labels, draw_trajectory, is_image, value_range
from edmund.model import Model
from edmund.sample import Trajectory


def run(
    directory: Path,
    n: int | None,
    seeds: str | None,
    labels: str | None,
    sampler: str | None,
    churn: dict[str, float | None],
    options: dict[str, Any],
    *,
    trajectory: bool,
    out: Path | None,
    device: str | None,
) -> None:
    """The command."""
    model = load_model(directory, device)
    numbers = _seeds(n, seeds)
    asked = _labels(labels, len(numbers), model.num_classes)
    options = {key: value for key, value in options.items() if value is not None}
    solver = _sampler(model, sampler, churn)
    folder = make_folder(out if out is not None else directory / "samples")
    drawn = model.sample(
        len(numbers), seeds=numbers, sampler=solver, return_trajectory=trajectory, **as_condition(asked), **options
    )
    path = drawn if isinstance(drawn, Trajectory) else None
    samples = drawn.samples if isinstance(drawn, Trajectory) else drawn

    arrays: dict[str, np.ndarray] = {"samples": samples.numpy(), "seeds": np.array(numbers)}
    if asked is not None:
        arrays["labels"] = asked.numpy()
    if path is not None:
        arrays |= {"sigmas": path.sigmas.numpy(), "x": path.x.numpy(), "denoised": path.denoised.numpy()}
    limits = _limits(directory, samples)
    try:
        np.savez_compressed(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
        files = [folder / "samples.npz"]
        if is_image(tuple(samples.shape[1:])):
            plots.write_png(folder / "samples.png", samples, limits)
            files.append(folder / "samples.png")
            if path is not None:
                few = path._replace(samples=samples[:6], x=path.x[:, :6], denoised=path.denoised[:, :6])
                files.append(draw_trajectory(model, few, limits, folder / "trajectory.png"))
    except OSError as error:
        raise InputError(f"folder {str(folder)!r} cannot be written: {error.strerror or error}") from error
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)


def _seeds(n: int | None, seeds: str | None) -> list[int]:
    if seeds is None:
        if n is not None and n < 1:
            raise InputError(f"-n is {n}; it must be at least 1")
        return list(range(64 if n is None else n))
    numbers = parse_numbers("--seeds", seeds)
    if n is not None and n != len(numbers):
        raise InputError(f"-n is {n}, but --seeds names {len(numbers)} seeds; one sample a seed, so leave -n out")
    return numbers


def _labels(labels: str | None, n: int, classes: int) -> Tensor | None:
    if labels is None:
        return class_labels(n, classes)
    if labels == "none":
        return torch.full((n,), -1) if classes else None
    return torch.tensor(parse_numbers("--labels", labels)).repeat(n)[:n]


def _sampler(model: Model, name: str | None, churn: dict[str, float | None]) -> samplers.Sampler:
    """The sampler asked for, with churn; the run's own settings hold for what is not asked."""
    given = {key: value for key, value in churn.items() if value is not None}
    makers = samplers.named()
    if name is not None and name not in makers:
        raise unknown("--sampler", name, makers)
    if name is None and not given:
        return model.formulation.sampler
    if given and "S_churn" not in given:
        raise InputError(
            f"--{next(iter(given)).lower().replace('_', '-')} is given without --s-churn; without "
            f"it there is no churn to shape"
        )
    maker = makers[name if name is not None else model.formulation.sampler.name]
    return maker(churn=samplers.Churn(**given)) if given else maker()


def _limits(directory: Path, samples: Tensor) -> tuple[float, float]:
    """The range in which the pictures are drawn: the data's, or for a model without its data the samples' own."""
    if (directory / CONFIG_FILE).is_file():
        return value_range(read_config(directory).datasets()[0])
    return float(samples.min()), float(samples.max())
