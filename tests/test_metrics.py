"""The measures against exact values, and against sets made to deceive them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edmund import metrics
from edmund.errors import InputError


@dataclass
class Digits:
    images: Tensor  # [1797, 1, 8, 8], 0..16
    labels: Tensor
    train: Tensor  # indices of 80 %
    held_out: Tensor

    def of_class(self, c: int) -> Tensor:
        """Training images of a class."""
        return self.images[self.train[self.labels[self.train] == c]]

    def report(self, samples: Tensor, labels: Tensor, **options: Any) -> dict[str, Any]:
        return metrics.sample_report(
            samples,
            labels,
            self.images[self.train],
            self.labels[self.train],
            self.images[self.held_out],
            self.labels[self.held_out],
            levels=(0, 16),
            **options,
        )


@pytest.fixture(scope="module")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return Digits(torch.from_numpy(pixels).reshape(-1, 1, 8, 8), torch.from_numpy(labels), order[360:], order[:360])


def exact_set(mean: Tensor, covariance: Tensor, n: int, seed: int) -> Tensor:
    """n points whose sample mean and unbiased sample covariance are the given ones to rounding."""
    noise = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise -= noise.mean(0)
    own = torch.linalg.cholesky(noise.T @ noise / (n - 1))
    white = torch.linalg.solve_triangular(own, noise.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def random_covariance(d: int, seed: int) -> Tensor:
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


# Frechet distance


def test_frechet_of_known_gaussians() -> None:
    mean_1, mean_2 = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    # covariances that commute: sum of (std_1 - std_2)^2, here 1 + 4 + 0, in a rotated basis; and |mean|^2 = 5
    q = torch.linalg.qr(random_covariance(3, 5)).Q
    covariance_1 = q @ torch.tensor([1.0, 9.0, 4.0]).double().diag() @ q.T
    covariance_2 = q @ torch.tensor([4.0, 1.0, 4.0]).double().diag() @ q.T
    assert metrics.frechet_of_moments(mean_1, covariance_1, mean_2, covariance_2) == pytest.approx(10.0, rel=1e-12)
    a, b = exact_set(mean_1, covariance_1, 50, 1), exact_set(mean_2, covariance_2, 70, 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(10.0, rel=1e-12)


def test_frechet_against_the_general_matrix_root() -> None:
    from scipy.linalg import sqrtm

    mean = torch.zeros(6, dtype=torch.float64)
    c1, c2 = random_covariance(6, 1), random_covariance(6, 2)
    expected = float(np.trace(c1 + c2) - 2 * np.trace(sqrtm((c1 @ c2).numpy()).real))
    assert metrics.frechet_of_moments(mean, c1, mean, c2) == pytest.approx(expected, rel=1e-10)
    assert metrics.frechet_of_moments(mean, c2, mean, c1) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_singular_covariances() -> None:
    """In two planes of R^3 that share one axis: stds 2, 1, 0 and 2, 0, 3 give 0 + 1 + 9."""
    zero = torch.zeros(3, dtype=torch.float64)
    c1, c2 = torch.tensor([4.0, 1.0, 0.0]).diag(), torch.tensor([4.0, 0.0, 9.0]).diag()
    assert metrics.frechet_of_moments(zero, c1, zero, c2) == pytest.approx(10.0, rel=1e-12)


def test_frechet_with_fewer_samples_than_features_is_the_same_number() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    b = 2 * torch.randn(9, 40, generator=generator, dtype=torch.float64) + 1
    by_moments = metrics.frechet_of_moments(*metrics.moments(a), *metrics.moments(b))
    # the moments' way takes roots of eigenvalues that are 0 but for rounding: it is the less exact of the two here
    assert metrics.frechet_distance(a, b) == pytest.approx(by_moments, rel=1e-6)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10)
    assert metrics.frechet_distance(a, a + 1) == pytest.approx(40.0, rel=1e-12)


def test_frechet_of_digits_reaches_the_reference_numbers(digits: Digits) -> None:
    """Two random halves of the 1797 digits: 18.4, with a std of about 2 between halvings; a Gaussian a class: 24.7."""
    halves = metrics.frechet_of_halves(digits.images, halvings=10)
    print(f"two random halves: {halves:.2f}")
    assert halves == pytest.approx(18.4, abs=3.0)

    gaussian = gaussian_a_class(digits)[0]
    distance = metrics.frechet_distance(metrics.round_to_levels(gaussian, (0, 16)), digits.images)
    print(f"a Gaussian a class: {distance:.2f}")
    assert distance == pytest.approx(24.7, abs=1.5)


# Nearest neighbours


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_nearest_distances_are_exact_in_any_chunks(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 2, 3, generator=generator, dtype=torch.float64) + 1e4  # far from 0: cancellation would show
    b = torch.randn(50, 2, 3, generator=generator, dtype=torch.float64) + 1e4
    a[4] = b[20]
    expected = (a.flatten(1)[:, None] - b.flatten(1)[None]).norm(dim=2).min(1).values
    found = metrics.nearest_distances(a, b, chunk=chunk)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    assert found[4] == 0


def test_ratio_and_near_copies_of_points_on_a_line() -> None:
    train = torch.tensor([[0.0], [100.0]])
    held_out = torch.arange(1.0, 5.0)[:, None]  # nearest at 1, 2, 3, 4: mean 2.5, 1st percentile 1.03
    samples = torch.tensor([[-1.0], [1.02], [1.04], [97.0]])
    result = metrics.neighbours(samples, train, held_out)
    assert result.ratio == pytest.approx((1 + 1.02 + 1.04 + 3) / 4 / 2.5, rel=1e-6)
    assert result.copy_threshold == pytest.approx(1.03, rel=1e-6)
    assert result.near_copies == 0.5


def test_held_out_data_that_were_trained_on_are_an_error() -> None:
    data = torch.arange(10.0)[:, None]
    with pytest.raises(InputError, match="held_out has only samples that are in train"):
        metrics.neighbours(data + 0.5, data, data[:4])


# Two-sample test


def test_two_sample_accuracy_is_a_half_for_one_law_and_the_best_possible_for_two() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(600, 2, generator=generator)
    same = torch.randn(400, 2, generator=generator)
    assert metrics.two_sample_accuracy(a, same) == pytest.approx(0.5, abs=0.04)
    # unit normals 2 apart: the best classifier is right with probability Phi(1) = 0.841
    shifted = same + torch.tensor([2.0, 0.0])
    assert metrics.two_sample_accuracy(a, shifted) == pytest.approx(0.841, abs=0.03)
    # same mean, other width, which a linear classifier cannot see. Stds 1 and 3 in the plane: the best divides at
    # r^2 = 9/4 ln 9 and is right with probability (1 - exp(-r^2/2) + exp(-r^2/18)) / 2 = 0.838
    assert metrics.two_sample_accuracy(a, 3 * same) == pytest.approx(0.838, abs=0.03)


def test_two_sample_accuracy_knows_no_units_and_obeys_the_seed() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(60, 3, generator=generator).double(), torch.randn(50, 3, generator=generator).double() + 0.5
    assert metrics.two_sample_accuracy(a, b) == metrics.two_sample_accuracy(1000 * a, 1000 * b)
    assert metrics.two_sample_accuracy(a, b, seed=3) == metrics.two_sample_accuracy(a, b, seed=3)
    assert metrics.two_sample_accuracy(a, b, seed=3) != metrics.two_sample_accuracy(a, b, seed=4)


# Agreement


def test_agreement_counts_by_class() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = torch.arange(90) % 3
    real = centres[labels] + torch.randn(90, 2, generator=generator)
    asked = torch.tensor([0, 0, 0, 0, 2, 2])
    shown = torch.tensor([0, 0, 0, 1, 2, 2])
    result = metrics.agreement(centres[shown], asked, real[:60], labels[:60], real[60:], labels[60:])
    assert result.per_class == {0: 0.75, 2: 1.0}
    assert result.worst == 0.75
    assert result.overall == pytest.approx(5 / 6)
    assert result.held_out_accuracy == 1.0


def test_classifier_of_digits_reaches_the_reference_number(digits: Digits) -> None:
    held_out, labels = digits.images[digits.held_out], digits.labels[digits.held_out]
    result = metrics.agreement(
        held_out, labels, digits.images[digits.train], digits.labels[digits.train], held_out, labels
    )
    print(f"accuracy of the classifier on held-out digits: {result.held_out_accuracy:.4f}")
    assert result.held_out_accuracy == result.overall
    assert result.held_out_accuracy == pytest.approx(0.99, abs=0.01)


# The whole report: sets that deceive one measure are caught by another


def gaussian_a_class(digits: Digits) -> tuple[Tensor, Tensor]:
    """2000 draws of Gaussians fitted to the training digits of each class."""
    rng = np.random.default_rng(0)
    drawn = []
    for c in range(10):
        mean, covariance = metrics.moments(digits.of_class(c))
        drawn.append(rng.multivariate_normal(mean.numpy(), covariance.numpy(), 200))
    return torch.from_numpy(np.concatenate(drawn)).reshape(-1, 1, 8, 8), torch.arange(10).repeat_interleave(200)


def pairs_of_a_class(digits: Digits) -> tuple[Tensor, Tensor, Tensor]:
    """Two random training digits of each of 2000 classes asked for."""
    generator = torch.Generator().manual_seed(0)
    pairs = [
        digits.of_class(c)[torch.randint(len(digits.of_class(c)), (2, 200), generator=generator)] for c in range(10)
    ]
    first, second = torch.cat(pairs, dim=1)
    return first, second, torch.arange(10).repeat_interleave(200)


def test_report_of_a_gaussian_a_class(digits: Digits) -> None:
    report = digits.report(*gaussian_a_class(digits))
    assert report["agreement"] > 0.98  # deceived
    assert report["frechet"] > 20 and report["nearest_ratio"] > 1.1 and report["two_sample"] > 0.7


def test_report_catches_averages_of_two_digits(digits: Digits) -> None:
    first, second, labels = pairs_of_a_class(digits)
    report = digits.report((first + second) / 2, labels)
    assert report["agreement"] >= 0.995  # deceived: more often right than for real digits
    assert report["nearest_ratio"] < 0.96 and report["near_copies"] > 0.02
    assert report["two_sample"] > 0.75 and report["frechet"] > 30


def test_report_catches_a_copy_of_the_training_set(digits: Digits) -> None:
    first, _, labels = pairs_of_a_class(digits)
    report = digits.report(first, labels)
    assert report["agreement"] > 0.985 and report["frechet"] < 8 and report["two_sample"] < 0.6  # deceived
    assert report["near_copies"] == 1.0 and report["nearest_ratio"] == 0.0
    disturbed = first + torch.randn(first.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert digits.report(disturbed, labels)["near_copies"] == 1.0


def test_report_of_honest_samples_meets_the_references(digits: Digits) -> None:
    """Held-out digits as the samples, with the other half of them held out."""
    half = len(digits.held_out) // 2
    samples, held_out = digits.held_out[:half], digits.held_out[half:]
    report = Digits(digits.images, digits.labels, digits.train, held_out).report(
        digits.images[samples], digits.labels[samples]
    )
    assert report["nearest_ratio"] == pytest.approx(1.0, abs=0.06)
    assert report["near_copies"] <= 0.05
    assert report["two_sample"] == pytest.approx(0.5, abs=0.08)
    assert report["agreement"] == pytest.approx(report["agreement_real"], abs=0.03)
    assert set(report["agreement_per_class"]) == {str(c) for c in range(10)}
    assert report["agreement_worst_class"] == min(report["agreement_per_class"].values())
    assert report["counts"]["samples"] == {"given": half, "used": half}
    assert json.loads(json.dumps(report)) == report


def test_report_of_large_vectors_without_labels_is_subsampled_and_free_of_units() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.tensor([1.0, 1e5, 1e-4], dtype=torch.float64)
    real = torch.randn(900, 3, generator=generator, dtype=torch.float64)
    samples = torch.randn(700, 3, generator=generator, dtype=torch.float64)
    report = metrics.sample_report(samples, None, real[:700], None, real[700:], None, limit=150, seed=5)
    scaled = metrics.sample_report(
        samples * units, None, real[:700] * units, None, real[700:] * units, None, limit=150, seed=5
    )
    assert report["counts"] == {
        "samples": {"given": 700, "used": 150},
        "train": {"given": 700, "used": 150},
        "held_out": {"given": 200, "used": 150},
    }
    assert report["limit"] == 150 and report["seed"] == 5 and report["standardised"] is True
    assert not any(key.startswith("agreement") for key in report)
    for key in ("frechet", "nearest_ratio", "near_copies", "two_sample", "two_sample_real", "frechet_real"):
        assert scaled[key] == pytest.approx(report[key], rel=1e-9)
    assert report["two_sample"] == pytest.approx(0.5, abs=0.1)
    # one copy in the samples is found although only 150 training points enter the other measures
    copied = torch.cat([samples[:19], real[650:651]])
    found = metrics.sample_report(copied, None, real[:700], None, real[700:], None, limit=150)
    assert found["near_copies"] >= 1 / 20


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.frechet_distance(torch.zeros(1, 4), torch.zeros(5, 4)), "first has 1 samples; at least 2"),
        (
            lambda: metrics.frechet_distance(torch.zeros(5, 4), torch.zeros(5, 2, 2)),
            r"shape \(4,\) and second of \(2, 2\)",
        ),
        (
            lambda: metrics.frechet_distance(torch.full((5, 4), torch.nan), torch.zeros(5, 4)),
            "first has NaN .* in 5 of 5",
        ),
        (lambda: metrics.frechet_distance(torch.zeros(5), torch.zeros(5)), r"first has shape \(5,\)"),
        (lambda: metrics.nearest_distances(torch.zeros(5, 1), torch.zeros(5, 1), chunk=0), "chunk is 0"),
        (
            lambda: metrics.two_sample_accuracy(torch.zeros(9, 2), torch.zeros(20, 2)),
            "first has 9 samples; at least 10",
        ),
        (lambda: metrics.two_sample_accuracy(torch.zeros(20, 2), torch.zeros(20, 2), folds=1), "folds is 1"),
        (lambda: metrics.round_to_levels(torch.zeros(3), (16, 0)), r"levels is \(16, 0\)"),
        (
            lambda: agreement_with(labels=torch.tensor([0, 5])),
            "labels has the class 5, which train_labels does not have",
        ),
        (lambda: agreement_with(labels=torch.tensor([0, -1])), "labels has the value -1"),
        (lambda: agreement_with(labels=torch.tensor([0])), r"labels has shape \(1,\).*\[2\]"),
        (lambda: agreement_with(labels=torch.tensor([0.5, 1.0])), "labels has shape .*float32; it must be integers"),
        (lambda: agreement_with(train_labels=torch.zeros(4).long()), "train_labels has the one class 0"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def agreement_with(labels: Tensor | None = None, train_labels: Tensor | None = None) -> metrics.Agreement:
    data = torch.arange(4.0)[:, None]
    classes = torch.tensor([0, 0, 1, 1])
    return metrics.agreement(
        data[:2],
        classes[:2] if labels is None else labels,
        data,
        classes if train_labels is None else train_labels,
        data,
        classes,
    )
