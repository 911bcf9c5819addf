"""How good are samples? Each measure compares sets [N, *] on their raw values or, for labelled images, in the features
of a small classifier that is trained on the spot; nothing is downloaded.
"""

from edmund.metrics.agreement import Agreement, agreement, agreement_of
from edmund.metrics.c2st import c2st
from edmund.metrics.calibration import Calibration, calibration, central_coverage, density_coverage
from edmund.metrics.classifier import ImageClassifier, no_classifier_because, shrink, train_classifier
from edmund.metrics.frechet import frechet_distance, frechet_of_moments, moments
from edmund.metrics.mmd import median_distance, mmd
from edmund.metrics.neighbours import Neighbours, nearest_distances, neighbours
from edmund.metrics.report import frechet_of_halves, round_to_levels, sample_report
from edmund.metrics.sliced_wasserstein import marginal_wasserstein, sliced_wasserstein
from edmund.metrics.two_sample import two_sample_accuracy

__all__ = [
    "Agreement",
    "Calibration",
    "ImageClassifier",
    "Neighbours",
    "agreement",
    "agreement_of",
    "c2st",
    "calibration",
    "central_coverage",
    "density_coverage",
    "frechet_distance",
    "frechet_of_halves",
    "frechet_of_moments",
    "marginal_wasserstein",
    "median_distance",
    "mmd",
    "moments",
    "nearest_distances",
    "neighbours",
    "no_classifier_because",
    "round_to_levels",
    "sample_report",
    "shrink",
    "sliced_wasserstein",
    "train_classifier",
    "two_sample_accuracy",
]
