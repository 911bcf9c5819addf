"""`edmund sample`: a picture and an .npz of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edmund import plots
from edmund.cli._guide import Guide, guided
from edmund.cli._run import (
    Network,
    load_optimised,
    make_folder,
    parse_numbers,
    pick_sampler,
    say,
)
from edmund.errors import InputError
from edmund.images.report import as_condition, class_labels, draw_trajectory, is_image
from edmund.model import Model
from edmund.sample import Trajectory
from edmund.transform import Chain, MinMax


class Solver(NamedTuple):
    """What is asked of the sampler: its name, its churn, "key=value" of its other arguments."""

    name: str | None
    churn: Mapping[str, float | None]
    assignments: Sequence[str]


def run(
    directory: Path,
    n: int | None,
    seeds: str | None,
    labels: str | None,
    solver: Solver,
    guide: Guide,
    options: dict[str, Any],
    *,
    trajectory: bool,
    out: Path | None,
    network: Network,
) -> None:
    """The command."""
    model = load_optimised(directory, network)
    numbers = _seeds(n, seeds)
    asked = _labels(labels, len(numbers), model)
    options = {key: value for key, value in options.items() if value is not None}
    options["sampler"] = pick_sampler(model, *solver)
    options["denoiser"] = guided(model, guide, labels, directory)
    folder = make_folder(out if out is not None else directory / "samples")
    drawn = model.sample(len(numbers), seeds=numbers, return_trajectory=trajectory, **as_condition(asked), **options)
    path = drawn if isinstance(drawn, Trajectory) else None
    samples = drawn.samples if isinstance(drawn, Trajectory) else drawn

    arrays: dict[str, np.ndarray] = {"samples": samples.numpy(), "seeds": np.array(numbers)}
    if asked is not None:
        arrays["labels"] = asked.numpy()
    if path is not None:
        arrays |= {"sigmas": path.sigmas.numpy(), "x": path.x.numpy(), "denoised": path.denoised.numpy()}
    files = [folder / "samples.npz"]
    np.savez_compressed(files[0], **arrays)  # type: ignore[arg-type]
    if is_image(tuple(samples.shape[1:])):
        limits = _limits(model, samples)
        files.append(folder / "samples.png")
        # Classes that are asked for in turn stand in columns.
        in_turn = 0 if asked is None else len(set(asked.tolist()))
        plots.write_png(files[-1], samples, limits, columns=in_turn if 1 < in_turn <= 20 else None)
        if path is not None:
            few = path._replace(samples=samples[:6], x=path.x[:, :6], denoised=path.denoised[:, :6])
            files.append(draw_trajectory(model, few, limits, folder / "trajectory.png"))
    elif samples.ndim == 2:
        files.append(plots.save(plots.pairs(samples), folder / "samples.png"))
    for file in files:
        say(str(file))


def _seeds(n: int | None, seeds: str | None) -> list[int]:
    if seeds is None:
        if n is not None and n < 1:
            raise InputError(f"-n is {n}; it must be at least 1")
        return list(range(64 if n is None else n))
    numbers = parse_numbers("--seeds", seeds)
    if n is not None and n != len(numbers):
        raise InputError(f"-n is {n}, but --seeds names {len(numbers)} seeds; one sample a seed, so leave -n out")
    return numbers


def _labels(labels: str | None, n: int, model: Model) -> Tensor | None:
    """The class of each sample: numbers, ranges or names, repeated in turn."""
    if labels is None:
        return class_labels(n, model.num_classes)
    if labels == "none":
        return torch.full((n,), -1) if model.num_classes else None
    names = {name: number for number, name in enumerate(model.class_names or [])}
    parts = [part.strip() for part in labels.split(",")]
    if all(part in names for part in parts):
        asked = torch.tensor([names[part] for part in parts])
    else:
        asked = torch.tensor(parse_numbers("--labels", labels))
    if len(asked) > n:
        raise InputError(f"--labels {labels!r} names {len(asked)} classes for {n} samples; ask for more samples")
    return asked.repeat(-(-n // len(asked)))[:n]


def _limits(model: Model, samples: Tensor) -> tuple[float, float]:
    """The range in which the pictures are drawn: that of the model's own transform, or the samples' own."""
    first = model.transform.transforms[0] if isinstance(model.transform, Chain) else model.transform
    if isinstance(first, MinMax) and isinstance(first.low, float) and isinstance(first.high, float):
        return first.low, first.high
    return float(samples.min()), float(samples.max())
