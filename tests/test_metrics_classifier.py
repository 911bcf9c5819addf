"""The classifier whose features images are compared in: what it learns, what it must not depend on, what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edmund import data, metrics
from edmund.errors import InputError
from edmund.metrics.classifier import FEATURES, LEAST, MOST_SIDE
from edmund.metrics.features import count_in_common


@dataclass
class Parts:
    """Labelled images, and the classifier of the training part."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    classifier: metrics.ImageClassifier

    def distance(self, images: Tensor) -> float:
        """Frechet distance of images to the training images in the classifier's features."""
        features = self.classifier.features(images)
        return metrics.frechet_of_moments(*metrics.moments(features), *self.classifier.moments())


def parts(train: data.DataSet, held_out: data.DataSet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairs = [each.__getitems__(list(range(len(each)))) for each in (train, held_out)]
    return pairs[0][0], pairs[0][1]["labels"], pairs[1][0], pairs[1][1]["labels"]


@pytest.fixture(scope="module")
def digits() -> Parts:
    found = parts(*data.split(data.digits(), 0.2, 0))
    return Parts(*found, metrics.train_classifier(found[0], found[1], progress=False))


def accuracy(classifier: metrics.ImageClassifier, images: Tensor, labels: Tensor) -> float:
    return float((classifier.predict(images) == labels).double().mean())


def test_held_out_digits_are_recognised(digits: Parts) -> None:
    found = accuracy(digits.classifier, digits.held_out, digits.held_out_labels)
    print(f"accuracy on held-out digits: {found:.4f}")
    assert found >= 0.97


@pytest.mark.slow
def test_held_out_mnist_is_recognised(shared: Path) -> None:
    loaded = data.load(shared / "data/mnist.npz")
    assert loaded.held_out is not None
    images, labels, held_out, held_out_labels = parts(loaded.train, loaded.held_out)
    mnist = Parts(images, labels, held_out, held_out_labels, metrics.train_classifier(images, labels, progress=False))
    found, floor = accuracy(mnist.classifier, held_out, held_out_labels), mnist.distance(held_out[:2000])
    print(f"accuracy on held-out MNIST: {found:.4f}; distance of 2000 of them: {floor:.3f}")
    assert found >= 0.99
    assert mnist.distance(blurred(held_out[:2000].float())) > 3 * floor


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def test_what_is_no_digit_is_farther_from_the_digits_than_held_out_digits_are(digits: Parts) -> None:
    floor = digits.distance(digits.held_out)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(digits.held_out.shape, generator=generator)
    few = digits.held_out_labels < 7
    far = {
        "blurred": blurred(digits.held_out),
        "noisy": (digits.held_out + 5 * noise).clamp(0, 16),
        "mirrored": digits.held_out.flip(3),
        "without 7, 8 and 9": digits.held_out[few],
        "averages of two": (digits.held_out + digits.held_out.roll(1, 0)) / 2,
    }
    distances = {name: digits.distance(images) for name, images in far.items()}
    print(f"held-out {floor:.2f}", {name: f"{value:.2f}" for name, value in distances.items()})
    for name, value in distances.items():
        assert value > 2.5 * floor, name


def test_moments_are_those_of_the_training_images_features(digits: Parts) -> None:
    features = digits.classifier.features(digits.train)
    mean, covariance = metrics.moments(features)
    assert features.shape == (len(digits.train), FEATURES)
    found = digits.classifier.moments()
    assert torch.allclose(mean, found[0], rtol=1e-9, atol=1e-9)
    assert torch.allclose(covariance, found[1], rtol=1e-9, atol=1e-9)
    assert float(covariance.trace()) == pytest.approx(FEATURES, rel=1e-9)
    assert digits.distance(digits.train) == pytest.approx(0, abs=1e-6)


def test_moments_in_other_proportions_are_those_of_repeated_images(digits: Parts) -> None:
    """Classes 1 and 4 alone, twice and three times as often as they come: the moments of the images so repeated."""
    labels = digits.train_labels
    counts = torch.zeros(5, dtype=torch.int64)
    counts[1], counts[4] = 2 * int((labels == 1).sum()), 3 * int((labels == 4).sum())
    features = digits.classifier.training_features
    repeated = torch.cat([features[labels == 1].repeat(2, 1), features[labels == 4].repeat(3, 1)])
    mean, covariance = digits.classifier.moments(counts)
    assert torch.allclose(mean, repeated.mean(0), rtol=1e-9, atol=1e-9)
    # the two are unbiased for other numbers of independent images: they differ by that factor alone
    ratio = covariance / torch.cov(repeated.T)
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-6)
    assert 1 < float(ratio[0, 0]) < 1.01


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_stream_alone(digits: Parts) -> None:
    few = slice(0, 300)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = metrics.train_classifier(digits.train[few], digits.train_labels[few], seed=3, progress=False)
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(2)
    again = metrics.train_classifier(digits.train[few], digits.train_labels[few], seed=3, progress=False)
    other = metrics.train_classifier(digits.train[few], digits.train_labels[few], seed=4, progress=False)
    assert torch.equal(first.features(digits.held_out), again.features(digits.held_out))
    assert not torch.equal(first.features(digits.held_out), other.features(digits.held_out))


def test_order_and_units_of_the_data_do_not_matter_much(digits: Parts) -> None:
    """Another order gives another network, but one that sees as well and ranks as before."""
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(1))
    images, labels = 100 * digits.train[order] - 700, digits.train_labels[order]
    other = Parts(
        images,
        labels,
        digits.held_out,
        digits.held_out_labels,
        metrics.train_classifier(images, labels, progress=False),
    )
    held_out = 100 * digits.held_out - 700
    assert accuracy(other.classifier, held_out, digits.held_out_labels) >= 0.97
    floor = other.distance(held_out)
    assert floor == pytest.approx(digits.distance(digits.held_out), rel=0.5)
    assert other.distance(held_out.flip(3)) > 2.5 * floor


def test_images_without_a_label_are_not_learned(digits: Parts) -> None:
    """As many black images marked -1 as digits: the network is that of the digits alone."""
    few = slice(0, 300)
    alone = metrics.train_classifier(digits.train[few], digits.train_labels[few], progress=False)
    images = torch.cat([digits.train[few], torch.zeros(300, 1, 8, 8)])
    labels = torch.cat([digits.train_labels[few], torch.full((300,), -1)])
    both = metrics.train_classifier(images, labels, progress=False)
    assert torch.equal(alone.features(digits.held_out), both.features(digits.held_out))


def stripes(n: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three channels of noise with a ramp downwards (class 0), to the right (class 2) or none (class 5), and a
    constant channel.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 2, 5])[torch.arange(n) % 3]
    images = torch.randn(n, 3, height, width, generator=generator)
    images[labels == 0] += torch.linspace(-2, 2, height)[:, None]
    images[labels == 2] += torch.linspace(-2, 2, width)
    return torch.cat([images, torch.ones(n, 1, height, width)], 1), labels


@pytest.mark.parametrize("size", [(8, 20), (48, 9)])
def test_any_size_channels_and_classes(size: tuple[int, int]) -> None:
    images, labels = stripes(384, *size, seed=0)
    classifier = metrics.train_classifier(images, labels, progress=False)
    assert classifier.known == {0, 2, 5}
    assert classifier.shape == (4, *(min(side, MOST_SIDE) for side in size))
    others, other_labels = stripes(150, *size, seed=1)
    assert accuracy(classifier, others, other_labels) >= 0.95
    assert accuracy(classifier, metrics.shrink(others), other_labels) >= 0.95  # shrunk already is the same


def test_shrinking_averages() -> None:
    images = torch.arange(2 * 64 * 16).reshape(1, 2, 64, 16)
    small = metrics.shrink(images)
    assert torch.equal(small, (images[:, :, ::2] + images[:, :, 1::2]) / 2)
    assert metrics.shrink(images[:, :, :32]).dtype == torch.int64


# In the report


def report(digits: Parts, samples: Tensor, labels: Tensor | None, **options: Any) -> dict[str, Any]:
    real = (digits.train, digits.train_labels, digits.held_out, digits.held_out_labels)
    return metrics.sample_report(samples, labels, *real, **options)


def test_report_compares_sets_of_one_size_and_changes_nothing_else(digits: Parts) -> None:
    plain = report(digits, digits.train, digits.train_labels, levels=(0, 16))
    full = report(digits, digits.train, digits.train_labels, levels=(0, 16), classifier=digits.classifier)
    assert set(full) - set(plain) == {"feature_frechet", "feature_frechet_real", "feature_count"}
    assert {key: full[key] for key in plain} == plain  # small images: the agreement is the support vector machine's
    # every held-out digit is compared, for the training digits are more of each class
    counts = torch.bincount(digits.held_out_labels)
    features = digits.classifier.features(digits.held_out)
    expected = metrics.frechet_of_moments(*metrics.moments(features), *digits.classifier.moments(counts))
    assert full["feature_count"] == len(digits.held_out)
    assert full["feature_frechet_real"] == pytest.approx(expected, rel=1e-6)
    # a part of the training images is nearer to all of them than held-out ones are, but not at 0: they are fewer
    assert 0.01 < full["feature_frechet"] < full["feature_frechet_real"]


def test_proportions_of_classes_are_no_distance_where_classes_were_asked_for(digits: Parts) -> None:
    """Few eights and nines among the samples: as near as held-out digits if so few were asked for, else far away."""
    kept = (digits.train_labels < 8) | (torch.arange(len(digits.train)) % 8 == 0)
    samples, labels = digits.train[kept], digits.train_labels[kept]
    asked = report(digits, samples, labels, classifier=digits.classifier)
    assert asked["feature_count"] < len(digits.held_out)
    assert asked["feature_frechet"] < asked["feature_frechet_real"]
    not_asked = report(digits, samples, None, classifier=digits.classifier)
    assert not_asked["feature_frechet"] > 3 * not_asked["feature_frechet_real"]
    assert not_asked["feature_count"] == len(digits.held_out)


def test_report_on_larger_images_asks_the_network_for_the_class() -> None:
    def enlarged(images: np.ndarray | Tensor) -> Tensor:
        return F.interpolate(torch.as_tensor(images).float(), size=(20, 20), mode="bilinear")

    images, labels, held_out, held_out_labels = parts(*data.split(data.digits(), 0.2, 0))
    large, large_held_out = enlarged(images[:512]), enlarged(held_out)
    classifier = metrics.train_classifier(large, labels[:512], progress=False)
    asked = held_out_labels.clone()
    asked[:100] = (asked[:100] + 1) % 10  # a hundred times another class was asked for
    asked[300:] = -1  # and these were drawn without one
    found = metrics.sample_report(
        large_held_out, asked, large, labels[:512], large_held_out, held_out_labels, classifier=classifier
    )
    seen = classifier.predict(large_held_out)
    assert found["agreement_real"] == pytest.approx(float((seen == held_out_labels).double().mean()))
    assert found["agreement_real"] > 0.8
    assert found["agreement"] == pytest.approx(float((seen[:300] == asked[:300]).double().mean()))
    assert found["agreement_worst_class"] == min(found["agreement_per_class"].values())
    assert found["feature_count"] == int(count_in_common(asked, held_out_labels).sum())

    strange = held_out_labels.clone()
    strange[0] = 10
    with pytest.raises(InputError, match="held_out_labels has the class 10, which train_labels does not have"):
        metrics.sample_report(
            large_held_out, asked, large, labels[:512], large_held_out, strange, classifier=classifier
        )


# Bad input


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(200, 8, 8), torch.arange(200) % 2, r"images has shape \(200, 8, 8\)"),
        (torch.zeros(200, 1, 7, 8), torch.arange(200) % 2, r"\(1, 7, 8\) are no images of at least 8 x 8"),
        (torch.zeros(200, 1, 8, 8), torch.arange(199) % 2, r"labels has shape \(199,\)"),
        (torch.zeros(200, 1, 8, 8), torch.zeros(200), r"dtype torch.float32"),
        (torch.zeros(200, 1, 8, 8), torch.full((200,), -1), "no classes as labels"),
        (torch.zeros(200, 1, 8, 8), torch.full((200,), -2), "labels has the value -2"),
        (torch.zeros(200, 1, 8, 8), torch.full((200,), 3), "the one class 3"),
        (torch.zeros(LEAST - 1, 1, 8, 8), torch.arange(LEAST - 1) % 2, "127 images do not determine"),
        (torch.full((200, 1, 8, 8), torch.nan), torch.arange(200) % 2, "NaN or infinite values in 200 of 200"),
    ],
)
def test_data_that_cannot_train_a_classifier_are_named(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        metrics.train_classifier(images, labels, progress=False)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_and_too_few_are_named(digits: Parts) -> None:
    with pytest.raises(InputError, match=r"samples of shape \(1, 9, 8\); the classifier sees \(1, 8, 8\)"):
        digits.classifier.features(torch.zeros(5, 1, 9, 8))
    with pytest.raises(InputError, match="samples and held_out have only 100 images of the same classes; at least 128"):
        report(digits, digits.train[:100], None, classifier=digits.classifier)
