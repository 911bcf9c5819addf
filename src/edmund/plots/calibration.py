"""Pictures of calibration: ranks of true parameters, coverage of credible regions, the TARP curve.

Each shows what an exact posterior would give with the same number of draws as a shaded band: the binomial interval of
each bin or point by itself, so of a hundred of them one may lie outside a 99 % band. The tests and their verdict are in
`edmund.metrics.calibration`; what is drawn comes from there (`central_coverage`, `density_coverage`) and from the sbi
toolkit (`run_sbc`, `run_tarp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count, check_positive
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5


def rank_histograms(
    ranks: Tensor | np.ndarray,
    samples: int,
    *,
    bins: int | None = None,
    names: Sequence[str] | None = None,
    confidence: float = 0.99,
    title: str = "Ranks of the true parameters",
) -> Figure:
    """A histogram for each parameter of `ranks` [N, D], whole numbers from 0 to `samples`, in units of what an exact
    posterior gives on average; the draws themselves: `rank_counts`.

    bins: None: about 20 draws in each, at most 20. names: of the parameters; None: theta_1 ...
    """
    edges, counts, expected = rank_counts(ranks, samples, bins)
    draws = int(counts[0].sum())
    labels = _names(names, len(counts))
    low, high = (draws * bound / expected for bound in _band(expected / draws, draws, confidence))
    height = counts / expected
    rows = -(-len(counts) // _COLUMNS)
    columns = -(-len(counts) // rows)
    with style.styled():
        figure = style.new_figure(max(1.9 * columns + 0.8, 4.5), 1.7 * rows + 1.0)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel in panels.flat[len(counts) :]:
            panel.set_visible(False)
        for k, label in enumerate(labels):
            panel = panels.flat[k]
            panel.stairs(high, edges, baseline=low, fill=True, color=style.SHADE)
            panel.axhline(1.0, color=style.GREY, linewidth=0.8)
            panel.stairs(height[k], edges, baseline=None, color=style.COLOURS[0])
            panel.grid(False)
            panel.set_title(label, loc="left")
            panel.set_xlim(0, samples + 1)
            panel.set_xticks([0, samples // 2, samples])
            panel.set_ylim(0, 1.1 * max(float(height.max()), float(high.max())))
            panel.set_xlabel("rank")
            if k % columns == 0:
                panel.set_ylabel("draws / expected")
        style.describe(
            figure,
            title,
            f"{draws} draws, {samples} posterior samples each. A hill: the posterior is too wide; a bowl: too narrow; "
            "a slope up: its samples lie too low. "
            f"Shaded: {100 * confidence:g} % of the bars of an exact posterior end there.",
        )
    return figure


def rank_counts(
    ranks: Tensor | np.ndarray, samples: int, bins: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bins of `rank_histograms`: edges [B + 1] in ranks, counts [D, B] of draws, and what is expected [B]."""
    check_count("samples", samples)
    rows = torch.as_tensor(ranks).detach().cpu().double().numpy()
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"ranks has shape {rows.shape}; it must be [N, D], both at least 1")
    if not ((rows >= 0) & (rows <= samples)).all():
        raise InputError(
            f"ranks has values from {rows.min():g} to {rows.max():g}; among {samples} samples they must be from 0 to "
            f"{samples}"
        )
    if bins is None:
        bins = min(max(len(rows) // 20, 2), 20, samples + 1)
    if check_count("bins", bins) > samples + 1:
        raise InputError(f"bins is {bins}; {samples} samples have no more than {samples + 1} ranks")
    edges = np.linspace(0, samples + 1, bins + 1).round()
    counts = np.stack([np.histogram(column, edges)[0] for column in rows.T])
    return edges, counts, len(rows) * np.diff(edges) / (samples + 1)


def coverage_curves(
    nominal: np.ndarray,
    empirical: np.ndarray,
    draws: int,
    *,
    names: Sequence[str] | None = None,
    confidence: float = 0.99,
    title: str = "Coverage of credible intervals",
) -> Figure:
    """Empirical coverage [D, K] against nominal [K] of `draws` truths, and the difference of the two, enlarged.

    The parameters that are farthest off have colours and names, the others are grey. names: None: theta_1 ...
    """
    levels, covered = _curves("nominal", nominal, "empirical", np.atleast_2d(empirical))
    return _against_the_diagonal(
        levels,
        covered,
        draws,
        _names(names, len(covered)),
        confidence,
        ("nominal coverage", "empirical coverage"),
        title,
        "Above the diagonal the truth is inside more often than it should be: the posterior is too wide; below: too "
        "narrow, or biased.",
    )


def tarp_curve(
    ecp: Tensor | np.ndarray,
    alpha: Tensor | np.ndarray,
    draws: int,
    *,
    confidence: float = 0.99,
    title: str = "Coverage of random regions (TARP)",
) -> Figure:
    """Expected coverage `ecp` [K] against credibility `alpha` [K], as the toolkit's `run_tarp` gives them, and the
    difference, enlarged; of `draws` truths.
    """
    levels, covered = _curves("alpha", alpha, "ecp", np.asarray(ecp)[None])
    return _against_the_diagonal(
        levels,
        covered,
        draws,
        ["TARP"],
        confidence,
        ("credibility", "expected coverage"),
        title,
        "Above the diagonal at high credibility: the posterior is too wide; below: too narrow, or biased.",
    )


def _against_the_diagonal(
    levels: np.ndarray,
    covered: np.ndarray,
    draws: int,
    names: Sequence[str],
    confidence: float,
    axis_names: tuple[str, str],
    title: str,
    how_to_read: str,
) -> Figure:
    """Curves [D, K] and their distance from the diagonal, each with the binomial band."""
    check_count("draws", draws)
    dense = np.linspace(0, 1, 201)
    low, high = _band(dense, draws, confidence)
    off = np.abs(covered - levels).max(1)
    coloured = sorted(range(len(covered)), key=lambda k: -off[k])[: len(style.COLOURS)]
    with style.styled():
        figure = style.new_figure(7.6, 3.9)
        whole, enlarged = figure.subplots(1, 2)
        for panel, slope in ((whole, 0.0), (enlarged, 1.0)):
            reference = slope * levels
            panel.fill_between(dense, low - slope * dense, high - slope * dense, color=style.SHADE, linewidth=0)
            panel.plot([0, 1], [0, 1 - slope], color=style.GREY, linewidth=0.8)
            for k in range(len(covered)):
                if k not in coloured:
                    panel.plot(levels, covered[k] - reference, color=style.GREY, linewidth=0.7, alpha=0.7)
            for place, k in enumerate(coloured):
                panel.plot(
                    levels,
                    covered[k] - reference,
                    color=style.COLOURS[place],
                    linestyle=style.DASHES[place],
                    linewidth=1.4,
                    label=names[k],
                )
            panel.set_xlim(0, 1)
            panel.set_xlabel(axis_names[0])
        whole.set_ylim(0, 1)
        whole.set_aspect("equal")
        whole.set_ylabel(axis_names[1])
        enlarged.set_ylabel("difference")
        most = 1.1 * max(float(off.max()), float((high - dense).max()), float((dense - low).max()))
        enlarged.set_ylim(-most, most)
        if len(names) > 1:
            whole.legend(loc="upper left")
        others = f" Grey: the {len(names) - len(coloured)} other parameters." if len(names) > len(coloured) else ""
        style.describe(
            figure,
            title,
            f"{draws} draws. {how_to_read}{others} "
            f"Shaded: {100 * confidence:g} % of the points of an exact posterior lie there.",
        )
    return figure


def _band(probability: np.ndarray, draws: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The central binomial interval of a frequency among `draws`, for each probability [K]."""
    from scipy.stats import binom

    if check_positive("confidence", confidence) >= 1:
        raise InputError(f"confidence is {confidence!r}; it must be a probability between 0 and 1")
    low, high = binom.interval(confidence, draws, probability)
    return np.asarray(low) / draws, np.asarray(high) / draws


def _curves(x_name: str, x: Tensor | np.ndarray, y_name: str, y: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, [K] and [D, K]; an error unless they fit and lie between 0 and 1."""
    levels, covered = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fit = levels.ndim == 1 and covered.ndim == 2 and levels.shape == covered.shape[1:] and len(levels) >= 2
    # the toolkit's curves are float32 sums and may end a little above 1
    if not fit or not all(((values > -1e-4) & (values < 1 + 1e-4)).all() for values in (levels, covered)):
        raise InputError(
            f"{x_name} and {y_name} have shapes {levels.shape} and {covered.shape}; they must have one value a level, "
            "at least 2, from 0 to 1"
        )
    return levels, covered


def _names(names: Sequence[str] | None, dim: int) -> Sequence[str]:
    if names is None:
        return [f"theta_{k + 1}" for k in range(dim)]
    if len(names) != dim:
        raise InputError(f"names is {list(names)!r}; it must be {dim} names, one a parameter")
    return names
