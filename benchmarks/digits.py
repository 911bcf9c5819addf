"""The demo's formulations on the digits over several seeds: every measure beside its target and what real data reach.

    python benchmarks/digits.py [--types EDM,Flow] [--seeds 0,1,2] [--out benchmarks/results/digits.json]

Each run is the demo's own: `demo_config(type, seed)`, trained on 80 % of the digits, 2000 class-conditional samples.
Results are written after each run, and runs that the file already holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from edmund import formulation
from edmund.cli.demo import demo_config
from edmund.cli.train import fit
from edmund.images.report import evaluate
from edmund.model import count_parameters, load

STRICT = {"agreement": (0.985, 1), "agreement_worst_class": (0.95, 1), "frechet": (0, 8), "nearest_ratio": (0.97, 1.10)}
STRICT |= {"near_copies": (0, 0.01), "two_sample": (0, 0.60)}
MANY_STEPS = {"agreement": (0.98, 1), "frechet": (0, 12), "nearest_ratio": (0.95, 1.20), "two_sample": (0, 0.65)}
TARGETS = {
    "EDM": STRICT,
    "Flow": STRICT,
    "VP": MANY_STEPS,
    "iDDPM": MANY_STEPS,
    "VE": {"agreement": (0.97, 1), "frechet": (0, 20)},
}
MEASURES = list(STRICT)


def one(kind: str, seed: int) -> dict:
    """Train, sample and judge one formulation with one seed."""
    config = demo_config(kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config, Path(folder))
        model = load(folder)
        train, held_out = config.datasets()
        start = time.perf_counter()
        metrics = evaluate(model, train, held_out, Path(folder)).metrics
        judged = time.perf_counter() - start
    settings = {"steps": model.formulation.num_steps, "sampler": model.formulation.sampler.name}
    settings |= {"sigma_min": model.formulation.sigma_min, "sigma_max": model.formulation.sigma_max}
    seconds = {"training_seconds": result.seconds, "evaluation_seconds": judged}
    metrics["report_seed"] = metrics.pop("seed")
    return {"type": kind, "seed": seed, **settings, **seconds, "parameters": count_parameters(model.network), **metrics}


def table(runs: list[dict]) -> str:
    """A row a run; a measure that misses its target has an exclamation mark."""
    head = ["type", "seed", "steps", "train s", *MEASURES]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for run in runs:
        cells = [run["type"], str(run["seed"]), str(run["steps"]), f"{run['training_seconds']:.0f}"]
        for name in MEASURES:
            low, high = TARGETS.get(run["type"], {}).get(name, (0, float("inf")))
            cells.append(f"{run[name]:.4g}" + ("" if low <= run[name] <= high else " !"))
        lines.append("| " + " | ".join(cells) + " |")
    real = runs[0]
    shown = [f"{real[f'{name}_real']:.4g}" if f"{name}_real" in real else "" for name in MEASURES]
    lines.append("| " + " | ".join(["real data", "", "", "", *shown]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TARGETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "digits.json")
    arguments = parser.parse_args()
    known = {name.lower(): name for name in formulation.named()}
    kinds = [known[name.lower()] for name in arguments.types.split(",")]
    runs = json.loads(arguments.out.read_text()) if arguments.out.is_file() else []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")):
        for kind in kinds:
            if any((run["type"], run["seed"]) == (kind, seed) for run in runs):
                continue
            runs.append(one(kind, seed))
            runs.sort(key=lambda run: (list(TARGETS).index(run["type"]) if run["type"] in TARGETS else 9, run["seed"]))
            arguments.out.write_text(json.dumps(runs, indent=1) + "\n")
            print(table(runs), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
