"""How good are samples? Each measure compares sets [N, *] on their raw values; no network, no internet is asked."""

from edmund.metrics.agreement import Agreement, agreement
from edmund.metrics.frechet import frechet_distance, frechet_of_moments, moments
from edmund.metrics.neighbours import Neighbours, nearest_distances, neighbours
from edmund.metrics.report import frechet_of_halves, round_to_levels, sample_report
from edmund.metrics.two_sample import two_sample_accuracy

__all__ = [
    "Agreement",
    "Neighbours",
    "agreement",
    "frechet_distance",
    "frechet_of_halves",
    "frechet_of_moments",
    "moments",
    "nearest_distances",
    "neighbours",
    "round_to_levels",
    "sample_report",
    "two_sample_accuracy",
]
