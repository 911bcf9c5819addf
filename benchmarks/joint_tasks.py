"""The posteriors of joint models beside those of the conditional estimator, on sbibm's tasks.

    edmund sbi benchmark --tasks two_moons,slcp --budgets 1e4 --reference DIR --out FILE.csv
    python benchmarks/joint_tasks.py FILE.csv --reference DIR [--tasks two_moons,slcp] [--budget 1e4]

For each task one `JointEstimator` is trained on the simulations that NPSE had (of the same seed), and asked for theta
given x alone. Its C2ST stands beside that of the rows of FILE.csv; the limit is a difference of 0.02.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from edmund.metrics import c2st
from edmund.sbi import JointEstimator, simulate, tasks
from edmund.sbi.benchmark import COLUMN
from edmund.sbi.benchmark_rows import read

LIMIT = 0.02


def measure(task: tasks.Task, budget: int, options: argparse.Namespace) -> dict[str, Any]:
    rows = {
        row.num_observation: row
        for row in read(options.file)
        if (row.task, row.num_simulations, row.seed, row.formulation, row.network)
        == (task.name, budget, 0, "edm", "auto")
    }
    found = simulate(task.simulator, task.prior, budget, seed=0)
    joint = JointEstimator(task.prior).append_simulations(found.theta, found.x)
    began = time.perf_counter()
    joint.train()
    result: dict[str, Any] = {"training_seconds": time.perf_counter() - began, "sampling_seconds": []}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in options.c2st.split(",")}
    for number, row in sorted(rows.items()):
        reference = task.reference(options.reference, number)
        began = time.perf_counter()
        drawn = joint.sample(row.num_samples, given={"x": reference.x}, asked="theta")
        result["sampling_seconds"].append(time.perf_counter() - began)
        for name, pairs in scores.items():
            theirs = getattr(row, COLUMN[name])
            if theirs is not None:
                n = row.C2ST_samples
                pairs.append((c2st(reference.samples[:n], drawn[:n], name), theirs))
                print(f"{task.name} {number} {name}: joint {pairs[-1][0]:.3f}, NPSE {theirs:.3f}", flush=True)
    for name, pairs in scores.items():
        if pairs:
            ours, theirs = (mean(each) for each in zip(*pairs, strict=True))
            result[name] = {"joint": ours, "npse": theirs, "observations": len(pairs), "met": ours <= theirs + LIMIT}
    return result


def main() -> None:
    """Train, ask, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the CSV file of edmund sbi benchmark")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--tasks", default="two_moons,slcp")
    parser.add_argument("--budget", type=float, default=1e4)
    parser.add_argument("--c2st", default="mlp,rf")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "joint_tasks.json")
    options = parser.parse_args()
    results = {}
    for name in options.tasks.split(","):
        results[name] = measure(tasks.get(name), int(options.budget), options)
        print(name, json.dumps(results[name], indent=2), flush=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
