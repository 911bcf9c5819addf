from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edmund import plots
from edmund.errors import InputError


def test_the_best_of_those_that_were_made_is_marked(tmp_path: Path) -> None:
    widths, losses = [0.1, 0.05, 0.2, 0.03, 0.15], [0.5, 0.6, 0.4, math.nan, 0.55]
    figure = plots.loss_against_width(widths, losses, [True, True, False, True, True], delivered=0.52)
    (axes,) = figure.axes
    line, made, hollow, level, best = axes.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[0.05, 0.6], [0.1, 0.5], [0.15, 0.55], [0.2, 0.4]])
    np.testing.assert_allclose(made.get_xdata(), [0.05, 0.1, 0.15])
    np.testing.assert_allclose(hollow.get_xydata(), [[0.2, 0.4]])
    assert set(level.get_ydata()) == {0.52}
    np.testing.assert_allclose(best.get_xydata(), [[0.1, 0.5]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05", "0.1", "0.15", "0.2"]
    assert plots.save(figure, tmp_path / "sweep.png").stat().st_size > 10_000


def test_labels_do_not_touch() -> None:
    widths = np.geomspace(0.03, 0.25, 40)
    (axes,) = plots.loss_against_width(widths, widths).axes
    ticks = axes.get_xticks()
    assert 8 <= len(ticks) <= 15 and ticks[0] == widths[0]
    assert np.diff(np.log(ticks)).min() > np.log(widths[-1] / widths[0]) / 14 - 1e-9


@pytest.mark.parametrize(
    ("widths", "losses"), [([], []), ([0.1], [1.0, 2.0]), ([0.1, 0.0], [1.0, 2.0]), ([[0.1]], [[1.0]])]
)
def test_what_is_no_curve_is_refused(widths: list, losses: list) -> None:
    with pytest.raises(InputError, match="widths, losses and met have shapes"):
        plots.loss_against_width(widths, losses)
    assert plots.loss_against_width([0.1], [math.inf]).axes
