"""The page of a check: the verdict, a table and pictures in one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edmund import plots
from edmund.errors import InputError
from edmund.metrics import Calibration, central_coverage
from edmund.metrics.calibration import JOINT, LEVELS
from edmund.plots import style
from edmund.sbi.check import CheckResult
from edmund.sbi.predictive import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 4
"""Observations whose predictions are drawn."""
_CURVE = np.linspace(0.02, 0.98, 49)
"""Levels of the coverage curves, where the samples resolve them."""

_STYLE = """
body { margin: 0; background: #f4f5f7; color: #1f2933; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; background: #fff }
h1 { font-size: 1.7rem; margin: 0 0 .3rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem }
p { margin: .5rem 0; max-width: 48rem }
.about { color: #66707c }
.verdict { border-left: .4rem solid; padding: .6rem 1rem; margin: 1.2rem 0 }
.verdict strong { display: block; font-size: 1.15rem }
.passed { border-color: #009e73; background: #ebf7f3 }
.failed { border-color: #d55e00; background: #fdf1ea }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; margin: .8rem 0 }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e6e9ed }
td { white-space: nowrap }
th { vertical-align: bottom; font-weight: 600 }
th small, .about small { display: block; font-weight: 400; color: #66707c }
td:first-child, th:first-child { text-align: left }
td.fails { background: #fdf1ea; font-weight: 700 }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0 }
li { max-width: 48rem; margin: .3rem 0 }
"""


def report(result: CheckResult, path: str | Path, *, title: str = "Posterior", about: Sequence[str] = ()) -> Path:
    """Writes the page of a check to `path`, and returns it.

    title: whose posterior it is. about: lines on where the truths come from. Raises InputError where it cannot be
    written.
    """
    found = result.calibration
    parts = [
        f"<h1>{_text(title)}: can its posterior be trusted?</h1>",
        *(f'<p class="about">{_text(line)}</p>' for line in about),
        f'<p class="about">{found.draws} true parameters, {found.samples} posterior samples for each.</p>',
        _box("the posterior", found),
    ]
    if result.predictions is not None:
        parts.append(_box("its predictions", result.predictions.calibration))
    parts += ["<h2>Parameters</h2>", _table(result), *_reading(result), "<h2>Ranks and coverage</h2>"]
    parts += [_image(plots.rank_histograms(result.ranks, found.samples, names=result.names), "rank histograms")]
    parts += [_coverage(result.ranks.numpy(), found, result.names)]
    parts += [_image(plots.tarp_curve(*result.tarp, found.draws), "TARP curve")]
    if result.predictions is not None:
        parts += _predictions(result.predictions)
    parts += _limits(result)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}: check</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"path: {str(path)!r} cannot be written: {error.strerror or error}") from error
    return Path(path)


def _box(what: str, found: Calibration) -> str:
    state, headline = ("passed", "No fault found in") if found.passed else ("failed", "Faults found in")
    return f'<div class="verdict {state}"><strong>{headline} {what}</strong>{_text(found.verdict)}</div>'


def _table(result: CheckResult) -> str:
    found = result.calibration
    tests = {"sbc": "rank uniformity", "folded": "folded ranks", "coverage": "coverage"}
    head = [
        "<th>parameter</th>",
        f"<th>bias<small>in its stds, ±&nbsp;{found.draws**-0.5:.2g}</small></th>",
        f"<th>width<small>1 is right, ±&nbsp;{(2 * found.draws) ** -0.5:.2g}</small></th>",
        f"<th>truths outside<small>all samples; {100 * 2 / (found.samples + 1):.2g} % is right</small></th>",
        "<th>spread<small>of the prior's</small></th>",
        *(f"<th>{words}<small>p, corrected</small></th>" for words in tests.values()),
    ]
    rows = []
    for name in result.names:
        cells = [
            f"<td>{_text(name)}</td>",
            f"<td>{round(found.bias[name], 2) + 0.0:.2f}</td>",
            f"<td>{found.width[name]:.2f}</td>",
            f"<td>{100 * found.outside[name]:.1f} %</td>",
            f"<td>{result.spread[name]:.2f}</td>",
            *(_p_cell(found.corrected[test][name], found.level) for test in tests),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = (
        f'<div class="table"><table><thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    p = found.corrected["tarp"][JOINT]
    told = f"<strong>p = {p:.2g}, fails</strong>" if p < found.level else f"p = {p:.2g}"
    return f"{table}<p>All parameters together, by TARP: {told}.</p>"


def _p_cell(p: float, level: float) -> str:
    text = "&lt; 1e-12" if p < 1e-12 else f"{p:.2g}"
    return f'<td class="fails">{text}</td>' if p < level else f"<td>{text}</td>"


def _reading(result: CheckResult) -> list[str]:
    level = 100 * result.calibration.level
    return [
        f"<p>A test fails where its p-value, corrected for the number of tests, is below {level:g} %. Width: the "
        "posterior's standard deviation over what would be right; below 1 it is too sure of itself. Bias: how far it "
        "lies above the truth. Spread: the posteriors' standard deviation over that of the true values; near 1, x says "
        "nothing of this parameter.</p>"
    ]


def _coverage(
    ranks: np.ndarray, found: Calibration, names: Sequence[str], title: str = "Coverage of credible intervals"
) -> str:
    levels = _CURVE[_CURVE * (found.samples + 1) > 2] if found.samples >= 100 else np.array(LEVELS)
    nominal, covered = central_coverage(ranks, found.samples, levels)
    return _image(plots.coverage_curves(nominal, covered, found.draws, names=names, title=title), "coverage")


def _predictions(predicted: Predictions) -> list[str]:
    found = predicted.calibration
    chosen = f" (of {predicted.total}; these are spread over it)" if predicted.total > len(predicted.names) else ""
    failed = f" {predicted.failed} observations are left out because a simulation failed." if predicted.failed else ""
    return [
        "<h2>Predictions</h2>",
        f"<p>The simulator was run on {found.samples} draws of the posterior of each of {found.draws} observations, "
        f"and once more on the true parameters. If the posterior is exact, that repetition is like one of the "
        f"{found.samples}. Looked at: {len(predicted.names)} numbers of x{chosen}.{failed}</p>",
        _image(_strips(predicted), "predictions and observations"),
        _image(
            plots.rank_histograms(
                predicted.ranks, found.samples, names=predicted.names, title="Ranks of repetitions among predictions"
            ),
            "ranks of repetitions",
        ),
        _coverage(predicted.ranks.numpy(), found, predicted.names, "Coverage of intervals of predictions"),
    ]


def _strips(predicted: Predictions) -> Figure:
    """Predictions of the first few observations as dots, the observation and its repetition over them."""
    shown = min(_SHOWN, predicted.observed.shape[0])
    mean, std = predicted.observed.mean(0), predicted.observed.std(0)
    scale = std.where(std > 0, 1)
    places = np.arange(len(predicted.names))
    with style.styled():
        figure = style.new_figure(7.6, 0.9 + 1.35 * shown)
        panels = figure.subplots(shown, 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for k, panel in enumerate(panels):
            dots = (predicted.predicted[:, k] - mean) / scale
            for row in dots.numpy():
                panel.scatter(places, row, s=14, color=style.GREY, alpha=0.35, linewidths=0, label="_")
            for values, colour, marker, label in (
                (predicted.observed[k], style.COLOURS[0], "D", "observation"),
                (predicted.repeated[k], style.COLOURS[1], "x", "repetition"),
            ):
                panel.scatter(places, ((values - mean) / scale).numpy(), s=26, color=colour, marker=marker, label=label)
            panel.set_xlim(-0.5, len(places) - 0.5)
            panel.set_ylabel(f"observation {k + 1}")
        panels[0].scatter([], [], s=14, color=style.GREY, alpha=0.6, label="predictions")
        panels[0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
        panels[-1].set_xticks(places, predicted.names)
        style.describe(
            figure,
            "Predictions of the first observations",
            "Each number less its mean over all observations, in their standard deviations.",
        )
    return figure


def _limits(result: CheckResult) -> list[str]:
    items = [
        "The tests average over the prior. The posterior of one particular observation may be worse than they tell, "
        "most of all where the simulations are few.",
        "A calibrated posterior need not be a narrow one: the prior itself is calibrated. The column of spreads tells "
        "how much was learned.",
        "The truths are simulations. Whether the simulator describes the real data is another question.",
    ]
    if result.predictions is None:
        items.append("Predictions were not tested: no simulator was given.")
    return ["<h2>What this does not tell</h2>", "<ul>", *(f"<li>{item}</li>" for item in items), "</ul>"]


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    width = round(110 * figure.get_figwidth())  # all with letters of one size
    with style.styled():
        figure.savefig(buffer, format="png")
    return (
        f'<img alt="{alt}" width="{width}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def _text(text: str) -> str:
    return html.escape(text)
