"""`edmund evaluate`: a run's samples beside the real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from edmund.cli._guide import Guide, guided
from edmund.cli._run import Network, console, load_optimised, make_folder, pick_sampler, read_config, say
from edmund.errors import InputError
from edmund.images.report import Report
from edmund.images.report import evaluate as report_on


def run(directory: Path, n: int, guide: Guide, options: dict[str, Any], *, out: Path | None, network: Network) -> None:
    """The command."""
    if n < 20:
        raise InputError(f"-n is {n}; a distribution cannot be judged by fewer than 20 samples")
    model = load_optimised(directory, network)
    train, held_out = read_config(directory).datasets()
    folder = make_folder(out if out is not None else directory / "evaluation")
    given = {key: value for key, value in options.items() if value is not None}
    given["denoiser"] = guided(model, guide, None, directory)
    given["sampler"] = pick_sampler(model, given.get("sampler"), {})
    weight = "" if guide.w is None else f", guidance {guide.w:g}"
    say(f"{n} samples by {given['sampler']}, {given.get('num_steps', model.formulation.num_steps)} steps{weight}")
    show(report_on(model, train, held_out, folder, n=n, **given))


def show(report: Report) -> None:
    """The table of a report, and where its files are."""
    metrics = report.metrics
    table = Table(box=None, pad_edge=False)
    for heading in ("measure", "samples", "real data"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    rows = (
        ("Frechet distance to the real data (real: of two halves)", "frechet", "frechet_real", ".4g"),
        (
            "the same in a classifier's features (real: of held-out data)",
            "feature_frechet",
            "feature_frechet_real",
            ".4g",
        ),
        ("distance to the nearest training sample, over held-out data's", "nearest_ratio", "nearest_ratio_real", ".3f"),
        ("near-copies of training samples", "near_copies", "near_copies_real", ".2%"),
        ("told from held-out data by a classifier (.5: not at all)", "two_sample", "two_sample_real", ".3f"),
        ("classifier sees the class asked for", "agreement", "agreement_real", ".4f"),
        ("the same, worst class", "agreement_worst_class", None, ".3f"),
    )
    for text, key, real, form in rows:
        if key in metrics:
            table.add_row(text, format(metrics[key], form), "" if real is None else format(metrics[real], form))
    console.print(table)
    if "left_out" in metrics:
        say(f"no distance in a classifier's features: {metrics['left_out']['feature_frechet']}")
    for file in report.files.values():
        say(str(file))
