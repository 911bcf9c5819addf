"""All conditionals of a Gaussian of six variables from one joint model, each beside its closed form.

    python benchmarks/joint.py [--simulations 100000] [--samples N] [--out benchmarks/results/joint.json]

A directed graph of six variables, the first two of which are theta. One `JointEstimator` is trained; then each of the
63 ways to ask some of the variables given all others is sampled for given values drawn from the joint law. The errors
are those of the mean, in the closed form's stds, and of the covariance, each number over the stds of its two variables.
The latents have the mean 0 and the covariance 1 exactly, so that the samples of a perfect model would have no error.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import edmund
from edmund.model import count_parameters
from edmund.sbi.joint import JointEstimator

PARENTS = {1: {0: 0.8}, 2: {0: -0.7}, 3: {1: 1.0, 2: 0.5}, 4: {2: 1.2}, 5: {3: -0.6, 4: 0.9}}
STDS = (1.0, 1.0, 0.8, 0.5, 0.7, 0.6)
COUNT, PARAMETERS = 6, 2
MEAN_LIMIT, COVARIANCE_LIMIT = 0.05, 0.10


def law() -> tuple[Tensor, Tensor]:
    """(graph [6, 6], covariance [6, 6] float64): x_i = sum of weight x_parent + std_i noise."""
    weights = torch.zeros(COUNT, COUNT, dtype=torch.float64)
    for child, parents in PARENTS.items():
        for parent, weight in parents.items():
            weights[child, parent] = weight
    root = torch.linalg.inv(torch.eye(COUNT) - weights) * torch.tensor(STDS)
    return weights != 0, root @ root.mT


def whitened(n: int, dim: int, seed: int) -> Tensor:
    """Normals [n, dim] whose mean and covariance are exactly those of the law."""
    normals = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    normals = normals - normals.mean(0)
    root = torch.linalg.cholesky(normals.mT @ normals / n)
    return torch.linalg.solve_triangular(root, normals.mT, upper=False).mT


def errors(joint: JointEstimator, covariance: Tensor, asked: list[int], values: Tensor, n: int) -> tuple[float, float]:
    """The largest errors of (mean, covariance) of n samples of p(asked | the rest of values [6])."""
    given = [column for column in range(COUNT) if column not in asked]
    conditional = joint.conditional({column: values[column] for column in given}, asked)
    latents = whitened(n, len(asked), seed=sum(2**column for column in asked))
    z = edmund.sample(conditional, (n, len(asked)), latents=latents, progress=False)
    assert isinstance(z, Tensor)
    drawn = conditional.to_user(z).double()
    gain = covariance[asked][:, given] @ torch.linalg.inv(covariance[given][:, given])
    exact = covariance[asked][:, asked] - gain @ covariance[given][:, asked]
    std = exact.diagonal().sqrt()
    mean = ((drawn.mean(0) - gain @ values[given]) / std).abs().max()
    centred = drawn - drawn.mean(0)
    spread = (centred.mT @ centred / n - exact) / std / std[:, None]
    return float(mean), float(spread.abs().max())


def main() -> None:
    """Train, ask everything, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=300_000, help="training samples seen, at most")
    parser.add_argument("--draws", type=int, default=128, help="of each conditional")
    parser.add_argument("--graph", action="store_true", help="tell the model the graph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "joint.json")
    arguments = parser.parse_args()
    graph, covariance = law()
    generator = torch.Generator().manual_seed(arguments.seed)
    normals = torch.randn(arguments.simulations + 63, COUNT, generator=generator, dtype=torch.float64)
    rows = normals @ torch.linalg.cholesky(covariance).mT
    prior = MultivariateNormal(torch.zeros(PARAMETERS), covariance[:PARAMETERS, :PARAMETERS].float())
    joint = JointEstimator(prior, graph=graph if arguments.graph else None)
    simulated = rows[63:].float()
    joint.append_simulations(simulated[:, :PARAMETERS], simulated[:, PARAMETERS:])
    start = time.perf_counter()
    joint.train(samples=arguments.samples, seed=arguments.seed)
    trained = time.perf_counter() - start
    print(f"trained in {trained:.0f} s")
    print("| asked | mean error, std | covariance error |\n|---|---|---|")
    found = []
    start = time.perf_counter()
    for code in range(1, 2**COUNT):
        asked = [column for column in range(COUNT) if code >> column & 1]
        mean, spread = errors(joint, covariance, asked, rows[code - 1], arguments.draws)
        found.append({"asked": asked, "mean": mean, "covariance": spread})
        print(f"| {' '.join(map(str, asked))} | {mean:.4f} | {spread:.4f} |", flush=True)
    worst_mean, worst_covariance = (max(each[name] for each in found) for name in ("mean", "covariance"))
    verdict = "met" if worst_mean <= MEAN_LIMIT and worst_covariance <= COVARIANCE_LIMIT else "missed"
    print(
        f"worst of 63: mean {worst_mean:.4f} std (limit {MEAN_LIMIT}), covariance {worst_covariance:.4f} (limit "
        f"{COVARIANCE_LIMIT}): {verdict}"
    )
    result = {
        "simulations": arguments.simulations,
        "samples": joint.result.samples_seen if joint.result else None,
        "graph": arguments.graph,
        "seed": arguments.seed,
        "parameters": count_parameters(joint.denoiser.network),
        "training_seconds": trained,
        "sampling_seconds": time.perf_counter() - start,
        "draws": arguments.draws,
        "worst_mean": worst_mean,
        "worst_covariance": worst_covariance,
        "conditionals": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
