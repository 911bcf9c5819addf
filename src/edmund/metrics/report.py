"""One report of every measure, each beside the value that real data reach.

No single number will do: the mean of two digits fools a classifier of digits, a Gaussian a class fools the Frechet
distance, and a copy of the training set fools both. Together they are hard to fool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.metrics.agreement import Agreement, agreement, agreement_of, check_known
from edmund.metrics.classifier import LEAST, ImageClassifier
from edmund.metrics.features import Data, count_in_common, flatten, flatten_pair, optional_labels, subsample
from edmund.metrics.frechet import frechet_distance, frechet_of_moments, moments
from edmund.metrics.neighbours import neighbours
from edmund.metrics.two_sample import two_sample_accuracy

HALVINGS = 5
"""One halving of the 1797 digits has a standard deviation of 2 about 19; the mean of five is reported."""
SMALL = 256
"""Samples of at most so many values, such as 16 x 16 in grey, are judged for their class by a support vector machine:
on 8 x 8 digits it is right as often as a convolutional network, at once. On 28 x 28 the network is the better judge."""

_LABELS = {"samples": "labels", "train": "train_labels", "held_out": "held_out_labels"}


def sample_report(
    samples: Data,
    labels: Data | None,
    train: Data,
    train_labels: Data | None,
    held_out: Data,
    held_out_labels: Data | None,
    *,
    classifier: ImageClassifier | None = None,
    levels: tuple[int, int] | None = None,
    standardise: bool | None = None,
    limit: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure `samples` [N, *] against the real data, training [M, *] and held-out [K, *]; all in the data's units.

    `classifier`: of all training images, from `train_classifier`; it gives the distances in its features, and judges
    the agreement where a sample has more than 256 values (16 x 16 in grey); a support vector machine judges smaller
    ones, and all where no classifier is given. `levels` (0, 255): the real data are whole numbers in this range;
    samples are rounded to it first, and limited to it, as a picture's would be. `standardise`: divide each feature by
    its standard deviation over the real data, which values in different units need; None: vectors [N, D] yes, images
    and fields no. `limit`: of a larger set so many samples, drawn by `seed`, are used; only the nearest neighbours are
    sought in all of `train`, and the classifier looks at all samples. Without `labels` (or without the real data's)
    there is no agreement.

    Keys, JSON-able; `_real` is the reference that real data reach:
      frechet               to all real data
      frechet_real          between random halves of the real data, the mean of five
      nearest_ratio         mean distance to the nearest training sample, over that of held-out data
      nearest_ratio_real    1, by definition
      near_copies           fraction nearer to a training sample than the held-out data's 1st percentile
      near_copies_real      0.01, by definition
      two_sample            accuracy of a classifier that tells samples from held-out data
      two_sample_real       of one that tells training from held-out data: about 0.5
      feature_frechet       of the classifier's features to those of its training images; in units in which the mean
                            variance of the 64 features of these is 1
      feature_frechet_real  the same of held-out data
      feature_count         as many images of either set are compared, drawn by `seed`: the distance of a finite set is
                            too large by an amount that falls as 1/n, which is thus the same for both. With `labels`
                            they are as many of each class, and the training images count as if so many of them were of
                            each class: that a model was asked for other proportions than the data's is not its fault
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
    images = {name: sets[name].reshape(-1, *samples.shape[1:]) for name in ("samples", "held_out")}
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
    told: dict[str, Tensor] = {}
    if labels is not None and train_labels is not None and held_out_labels is not None:
        given_labels = {"samples": labels, "train": train_labels, "held_out": held_out_labels}
        told = {name: optional_labels(_LABELS[name], each, len(sets[name])) for name, each in given_labels.items()}
    if classifier is not None:
        for name in images.keys() & told.keys():
            check_known(classifier.known, **{_LABELS[name]: told[name][told[name] >= 0]})
        report |= _in_features(classifier, images, told, seed)
    if told:
        if classifier is not None and given[0].shape[1] > SMALL:
            result = _agreement_by(classifier, images, told)
        else:
            result = _agreement_by_machine(used, {name: told[name][index[name]] for name in told})
        report["agreement"] = result.overall
        report["agreement_worst_class"] = result.worst
        report["agreement_per_class"] = {str(c): value for c, value in result.per_class.items()}
        report["agreement_real"] = result.held_out_accuracy
    report["counts"] = {name: {"given": len(rows), "used": len(used[name])} for name, rows in sets.items()}
    report |= {"limit": limit, "seed": seed, "levels": levels and list(levels), "standardised": standardise}
    return report


def _in_features(
    classifier: ImageClassifier, images: dict[str, Tensor], told: dict[str, Tensor], seed: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    # Without labels all samples are of one kind, and the training images count as they come.
    classes = {name: told.get(name, torch.zeros(len(rows), dtype=torch.int64)) for name, rows in images.items()}
    counts = count_in_common(*classes.values())
    count = int(counts.sum())
    if count < LEAST:
        raise InputError(
            f"classifier is given, but samples and held_out have only {count} images of the same classes; at least "
            f"{LEAST} are needed to compare covariances of its features"
        )
    reference = classifier.moments(counts if told else None)
    report: dict[str, Any] = {}
    for key, name in {"feature_frechet": "samples", "feature_frechet_real": "held_out"}.items():
        index = [
            subsample((classes[name] == c).nonzero(), int(many), generator)[0][:, 0] for c, many in enumerate(counts)
        ]
        features = classifier.features(images[name][torch.cat(index)])
        report[key] = frechet_of_moments(*moments(features), *reference)
    return report | {"feature_count": count}


def _agreement_by(classifier: ImageClassifier, images: dict[str, Tensor], targets: dict[str, Tensor]) -> Agreement:
    arguments: list[Tensor] = []
    for name, of_set in images.items():
        told = targets[name] >= 0
        arguments += [classifier.predict(of_set[told]), targets[name][told]]
    return agreement_of(*arguments)


def _agreement_by_machine(used: dict[str, Tensor], targets: dict[str, Tensor]) -> Agreement:
    arguments: list[Tensor] = []
    for name, rows in used.items():
        told = targets[name] >= 0
        arguments += [rows[told], targets[name][told]]
    return agreement(*arguments)


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
