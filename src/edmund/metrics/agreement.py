"""Agreement: does a sample show the class that it was asked to show?

A classifier learns the classes from real data and is asked about the samples: a support vector machine with a Gaussian
kernel in `agreement`, any other in `agreement_of`. Its accuracy on held-out real data is the reference: samples cannot
be expected to agree more often. The measure says nothing of quality or variety: the average of two digits of a class
agrees more often than a real digit does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.metrics.features import Data, class_labels, flatten_pair


@dataclass(frozen=True)
class Agreement:
    """How often the classifier sees the class asked for."""

    per_class: dict[int, float]
    """For each class that was asked for, the fraction of its samples that agree."""
    overall: float
    """The fraction of all samples."""
    held_out_accuracy: float
    """The classifier's accuracy on real data that it was not trained on."""

    @property
    def worst(self) -> float:
        """The fraction in the class that agrees least."""
        return min(self.per_class.values())


def agreement(
    samples: Data, labels: Data, train: Data, train_labels: Data, held_out: Data, held_out_labels: Data
) -> Agreement:
    """Agreement of `samples` [N, *] with the `labels` [N] asked for, by a classifier of `train` [M, *].

    Errors: a label that the training data do not have, training data of one class, and what `features` checks.
    """
    from sklearn.svm import SVC

    asked, real = flatten_pair("samples", samples, "train", train)
    other, _ = flatten_pair("held_out", held_out, "train", train)
    target = class_labels("labels", labels, len(asked))
    real_target = class_labels("train_labels", train_labels, len(real))
    other_target = class_labels("held_out_labels", held_out_labels, len(other))
    known = set(real_target.tolist())
    if len(known) < 2:
        raise InputError(f"train_labels has the one class {known.pop()}; a classifier needs at least two")
    check_known(known, labels=target, held_out_labels=other_target)

    classifier = SVC(gamma="scale").fit(real.double().numpy(), real_target.numpy())
    seen, seen_other = (torch.from_numpy(classifier.predict(rows.double().numpy())) for rows in (asked, other))
    return agreement_of(seen, target, seen_other, other_target)


def agreement_of(seen: Tensor, asked: Tensor, seen_held_out: Tensor, held_out_labels: Tensor) -> Agreement:
    """Agreement of the classes `seen` by a classifier in samples with those `asked` for, [N] integers both; and its
    accuracy, from the classes that it saw in held-out data and their labels, [M] both.
    """
    agrees, correct = (seen == asked).double(), (seen_held_out == held_out_labels).double()
    per_class = {c: float(agrees[asked == c].mean()) for c in sorted(set(asked.tolist()))}
    return Agreement(per_class, float(agrees.mean()), float(correct.mean()))


def check_known(known: set[int], **labels: Tensor) -> None:
    """InputError for a class in one of the `labels` that the classifier does not know, by the argument's name."""
    for argument, values in labels.items():
        strange = set(values.tolist()) - known
        if strange:
            raise InputError(f"{argument} has the class {min(strange)}, which train_labels does not have")
