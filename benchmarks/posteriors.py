"""Posteriors that `edmund sbi benchmark` trained, beside what is known in closed form, and checked for calibration.

    edmund sbi benchmark --tasks gaussian_linear,two_moons --budgets 1e4,1e5 --reference DIR --out FILE.csv
    python benchmarks/posteriors.py FILE.csv --reference DIR [--draws 500] [--out benchmarks/results/posteriors.json]

For every posterior of FILE.csv.runs: the seconds of 10 000 draws of one observation, the share of all draws that left
the prior's support, and SBC, TARP and coverage on fresh simulations (the toolkit's, extra `sbi`), together and each.
For gaussian_linear also the errors of mean, covariance and log-density over the observations against N(x/2, 0.05 I),
the posterior of ten observations by each composition, and the same checks of draws scaled by 1.2 about their mean,
which have to fail.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund.metrics.calibration import Calibration
from edmund.sbi import Posterior, check, tasks

DRAWS = 10_000
OBSERVATIONS = 5


class Scaled:
    """A posterior's draws, scaled about their mean."""

    def __init__(self, posterior: Posterior, factor: float) -> None:
        self.posterior, self.factor = posterior, factor

    def sample_batched(self, shape: tuple[int, ...], x: Tensor, *, show_progress_bars: bool = False) -> Tensor:
        drawn = self.posterior.sample_batched(shape, x=x)
        mean = drawn.mean(0, keepdim=True)
        return mean + self.factor * (drawn - mean)


def fresh(task: tasks.Task, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2**31)
    with torch.random.fork_rng():
        torch.manual_seed(2**31 + 1)
        theta = task.prior.sample((count,))
    return theta, task.simulator(theta, generator)


def verdict(found: Calibration) -> dict[str, Any]:
    failed = {
        test: [name for name, value in values.items() if value < found.level]
        for test, values in found.corrected.items()
    }
    return {"passed": found.passed, "failed": failed, "verdict": found.verdict}


def closed_form(task: tasks.Task, posterior: Posterior, reference: Path) -> dict[str, Any]:
    means, covariances, densities = [], [], []
    for number in range(1, OBSERVATIONS + 1):
        x = task.reference(reference, number).x
        law = task.posterior(x)
        drawn = posterior.sample((DRAWS,), x=x).double()
        means.append(float((drawn.mean(0) - law.mean).abs().max()))
        covariances.append(float((drawn.mT.cov() - law.covariance).norm() / law.covariance.norm()))
        some = law.sample(200, seed=1)
        densities.append(float((posterior.log_prob(some, x=x) - law.log_prob(some)).abs().mean()))
    theta, _ = fresh(task, 1)
    x = task.simulator(theta.expand(10, -1), torch.Generator().manual_seed(1))
    precision = 1 / 0.1 + 10 / 0.1
    mean = x.double().sum(0) / 0.1 / precision
    composed = {}
    for method in ("gauss", "jac"):
        drawn = posterior.sample_iid((4000,), x=x, method=method).double()
        covariance = drawn.mT.cov() * precision - torch.eye(10)
        composed[method] = {
            "mean_in_stds": float(((drawn.mean(0) - mean) * precision**0.5).abs().max()),
            "covariance": float(covariance.norm() / 10**0.5),
            "largest_variance_error": float(covariance.diagonal().abs().max()),
        }
    return {
        "mean_error": max(means),
        "covariance_error": max(covariances),
        "log_prob_error": sum(densities) / len(densities),
        "ten_observations": composed,
    }


def measure(folder: Path, reference: Path, draws: int) -> dict[str, Any]:
    task = tasks.get(folder.name.split("-")[0])
    posterior = Posterior.load(folder / "posterior")
    seconds, outside = [], 0
    for number in range(1, OBSERVATIONS + 1):
        began = time.perf_counter()
        drawn = posterior.sample((DRAWS,), x=task.reference(reference, number).x)
        seconds.append(time.perf_counter() - began)
        outside += int((~posterior.prior.contains(drawn)).sum())
    found: dict[str, Any] = {"sampling_seconds": sorted(seconds)[OBSERVATIONS // 2], "outside_support": outside}
    theta, x = fresh(task, draws)
    found["checks"] = verdict(check(posterior, theta, x).calibration)
    if task.name == "gaussian_linear":
        found["closed_form"] = closed_form(task, posterior, reference)
        for count in (draws, 4 * draws):
            theta, x = fresh(task, count)
            found[f"too_wide_{count}"] = verdict(check(Scaled(posterior, 1.2), theta, x).calibration)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the CSV file of edmund sbi benchmark")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {}
    for folder in sorted(Path(f"{options.file}.runs").iterdir()):
        if not (folder / "posterior").is_dir():
            continue
        results[folder.name] = measure(folder, options.reference, options.draws)
        print(folder.name, json.dumps(results[folder.name], indent=2), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
