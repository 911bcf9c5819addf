"""Agreement: does a sample show the class that it was asked to show?

A classifier (a support vector machine with a Gaussian kernel) learns the classes from real data and is asked about the
samples. Its accuracy on held-out real data is the reference: samples cannot be expected to agree more often. The
measure says nothing of quality or variety: the average of two digits of a class agrees more often than a real digit
does.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    for argument, values in (("labels", target), ("held_out_labels", other_target)):
        strange = set(values.tolist()) - known
        if strange:
            raise InputError(f"{argument} has the class {min(strange)}, which train_labels does not have")

    classifier = SVC(gamma="scale").fit(real.double().numpy(), real_target.numpy())
    agrees = classifier.predict(asked.double().numpy()) == target.numpy()
    correct = classifier.predict(other.double().numpy()) == other_target.numpy()
    per_class = {c: float(agrees[target.numpy() == c].mean()) for c in sorted(set(target.tolist()))}
    return Agreement(per_class, float(agrees.mean()), float(correct.mean()))
