"""One report of every measure, each beside the value that real data reach.

No single number will do: the mean of two digits fools a classifier of digits, a Gaussian a class fools the Frechet
distance, and a copy of the training set fools both. Together they are hard to fool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.metrics.agreement import agreement
from edmund.metrics.features import Data, class_labels, flatten, flatten_pair, subsample
from edmund.metrics.frechet import frechet_distance
from edmund.metrics.neighbours import neighbours
from edmund.metrics.two_sample import two_sample_accuracy

HALVINGS = 5
"""One halving of the 1797 digits has a standard deviation of 2 about 19; the mean of five is reported."""


def sample_report(
    samples: Data,
    labels: Data | None,
    train: Data,
    train_labels: Data | None,
    held_out: Data,
    held_out_labels: Data | None,
    *,
    levels: tuple[int, int] | None = None,
    standardise: bool | None = None,
    limit: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure `samples` [N, *] against the real data, training [M, *] and held-out [K, *]; all in the data's units.

    `levels` (0, 255): the real data are whole numbers in this range; samples are rounded to it first, and limited to
    it, as a picture's would be. `standardise`: divide each feature by its standard deviation over the real data, which
    values in different units need; None: vectors [N, D] yes, images and fields no. `limit`: of a larger set so many
    samples, drawn by `seed`, are used; only the nearest neighbours are sought in all of `train`. Without `labels` (or
    without the real data's) there is no agreement.

    Keys, JSON-able; `_real` is the reference that real data reach:
      frechet               to all real data
      frechet_real          between random halves of the real data, the mean of five
      nearest_ratio         mean distance to the nearest training sample, over that of held-out data
      nearest_ratio_real    1, by definition
      near_copies           fraction nearer to a training sample than the held-out data's 1st percentile
      near_copies_real      0.01, by definition
      two_sample            accuracy of a classifier that tells samples from held-out data
      two_sample_real       of one that tells training from held-out data: about 0.5
      agreement             of a classifier of real data with the label asked for
      agreement_real        the classifier's accuracy on held-out data
      agreement_worst_class, agreement_per_class
      counts, limit, seed, levels, standardised    what was measured: samples given and used of each set
    """
    check_count("limit", limit, least=20)
    given = flatten_pair("samples", samples, "train", train, least=10)
    held = flatten_pair("held_out", held_out, "train", train, least=10)[0]
    sets = {"samples": given[0], "train": given[1], "held_out": held}
    if levels is not None:
        sets["samples"] = round_to_levels(sets["samples"], levels)
    if standardise is None:
        standardise = len(samples.shape) == 2
    if standardise:
        scale = torch.cat([sets["train"], sets["held_out"]]).double().std(0)
        scale[scale == 0] = 1.0  # a constant feature has no scale of its own
        sets = {name: rows.double() / scale for name, rows in sets.items()}

    generator = torch.Generator().manual_seed(seed)
    used: dict[str, Tensor] = {}
    index: dict[str, Tensor] = {}
    for name, rows in sets.items():
        used[name], index[name] = subsample(rows, limit, generator)
    real, _ = subsample(torch.cat([sets["train"], sets["held_out"]]), limit, generator)
    near = neighbours(used["samples"], sets["train"], used["held_out"])

    report: dict[str, Any] = {
        "frechet": frechet_distance(used["samples"], real),
        "frechet_real": frechet_of_halves(real, seed=seed),
        "nearest_ratio": near.ratio,
        "nearest_ratio_real": 1.0,
        "near_copies": near.near_copies,
        "near_copies_real": 0.01,
        "two_sample": two_sample_accuracy(used["samples"], used["held_out"], seed=seed),
        "two_sample_real": two_sample_accuracy(used["train"], used["held_out"], seed=seed),
    }
    if labels is not None and train_labels is not None and held_out_labels is not None:
        targets = {"samples": labels, "train": train_labels, "held_out": held_out_labels}
        names = {"samples": "labels", "train": "train_labels", "held_out": "held_out_labels"}
        arguments: list[Tensor] = []
        for name, target in targets.items():
            told = torch.as_tensor(target)[index[name]] >= 0  # -1: a sample without a label
            classes = class_labels(names[name], torch.as_tensor(target)[index[name]][told], int(told.sum()))
            arguments += [used[name][told], classes]
        result = agreement(*arguments)
        report["agreement"] = result.overall
        report["agreement_worst_class"] = result.worst
        report["agreement_per_class"] = {str(c): value for c, value in result.per_class.items()}
        report["agreement_real"] = result.held_out_accuracy
    report["counts"] = {name: {"given": len(rows), "used": len(used[name])} for name, rows in sets.items()}
    report |= {"limit": limit, "seed": seed, "levels": levels and list(levels), "standardised": standardise}
    return report


def frechet_of_halves(real: Data, *, seed: int = 0, halvings: int = HALVINGS) -> float:
    """Frechet distance between random halves of real data [N, *], the mean of `halvings`: what honest sets reach."""
    rows = flatten("real", real, least=4)
    check_count("halvings", halvings)
    generator = torch.Generator().manual_seed(seed)
    half = len(rows) // 2
    total = 0.0
    for _ in range(halvings):
        order = torch.randperm(len(rows), generator=generator)
        total += frechet_distance(rows[order[:half]], rows[order[half:]])
    return total / halvings


def round_to_levels(samples: Data, levels: tuple[int, int]) -> Tensor:
    """`samples` rounded to whole numbers and limited to `levels` (lowest, highest), as a stored picture would be."""
    low, high = levels
    if not low < high:
        raise InputError(f"levels is {levels!r}; the lowest must be below the highest, as in (0, 255)")
    return torch.as_tensor(samples).double().round().clamp(low, high)
