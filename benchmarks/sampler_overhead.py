"""What edmund adds around the network: sampling overhead, seeded noise, import time, memory, and CPU against CUDA.

python benchmarks/sampler_overhead.py [--path FILE] [--repetitions N] prints a table and writes it as JSON. The
denoiser is a stub whose call takes exactly 2 ms, so that everything beyond its calls is the sampler's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import edmund
from edmund import denoiser, noise
from edmund.samplers import Churn, Heun

CALL_SECONDS = 2e-3
STEPS = 18
SHAPES = ((64, 2), (64, 3, 32, 32))
SAMPLERS = {"deterministic": Heun(), "churned": Heun(Churn(40.0, 0.05, 50.0, 1.003))}
DEFAULT_PATH = Path(__file__).parent / "results" / "sampler_overhead.json"


class Stub:
    """A denoiser whose call takes CALL_SECONDS: it spins for what its one operation leaves of them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.largest_batch = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        start = perf_counter()
        denoised = 0.5 * x
        while perf_counter() - start < CALL_SECONDS:
            pass
        self.largest_batch = max(self.largest_batch, len(x))
        self.seconds += perf_counter() - start
        return denoised


def overhead_percent(shape: tuple[int, ...], sampler: Heun, dtype: torch.dtype) -> float:
    """Percent that edmund.sample adds to the time of its denoiser calls; dtype is the state's."""
    stub = Stub()
    start = perf_counter()
    edmund.sample(stub, shape, sampler=sampler, num_steps=STEPS, dtype=dtype, progress=False)
    return 100 * (perf_counter() - start - stub.seconds) / stub.seconds


def bare_percent(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """The same for the fewest PyTorch operations that Heun's steps take: a start is given; no checks, no callback."""
    stub = Stub()
    sigmas = torch.linspace(1.0, 0.0, STEPS + 1).tolist()
    x = torch.randn(shape, dtype=dtype)
    start = perf_counter()
    for sigma, following in itertools.pairwise(sigmas):
        ratio = following / sigma
        middle = torch.lerp(x, stub(x, torch.tensor(sigma)), 1 - ratio)
        if following > 0:
            again = stub(middle, torch.tensor(following))
            x = torch.lerp(middle, again, 1 - 1 / ratio).lerp_(x, 0.5)
        else:
            x = middle
    return 100 * (perf_counter() - start - stub.seconds) / stub.seconds


def milliseconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return 1e3 * (perf_counter() - start)


def repeated(measure: Callable[[], float], repetitions: int) -> dict[str, float]:
    """Median and best of the repetitions, after one that is not counted."""
    measure()
    values = [measure() for _ in range(repetitions)]
    return {"median": statistics.median(values), "best": min(values)}


def seeded_draw() -> float:
    keys = noise.keys(0, torch.arange(10_000))
    return milliseconds(lambda: noise.normal(keys, (2,), 1))


def import_seconds(repetitions: int = 5) -> dict[str, float]:
    """Seconds that `import edmund` takes after `import torch`, in fresh processes."""
    script = "import torch, time; t = time.perf_counter(); import edmund; print(time.perf_counter() - t)"
    run = [sys.executable, "-c", script]
    values = [float(subprocess.run(run, check=True, capture_output=True, text=True).stdout) for _ in range(repetitions)]
    return {"median": statistics.median(values), "best": min(values)}


def memory_on_cuda() -> dict[str, float]:
    """Peak MiB on the device for one batch and for ten: the same where it is O(batch)."""

    def peak(n: int) -> float:
        torch.cuda.reset_peak_memory_stats()
        edmund.sample(
            lambda x, sigma: 0.5 * x, (n, 3, 32, 32), num_steps=3, batch_size=256, device="cuda", progress=False
        )
        return torch.cuda.max_memory_allocated() / 2**20

    return {"MiB_256_samples": peak(256), "MiB_2560_samples": peak(2560), "MiB_25600_samples": peak(25_600)}


def cuda_against_cpu() -> dict[str, float]:
    """Largest difference between the devices of the same seeds' samples of an exact mixture, and of the noise."""
    mixture = denoiser.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.3, -1.2]], [0.4, 0.5, 0.6])
    differences = {}
    for kind, sampler in SAMPLERS.items():
        options: dict[str, Any] = {"sampler": sampler, "num_steps": STEPS, "progress": False}
        cpu = edmund.sample(mixture.cpu(), (1000, 2), device="cpu", **options)
        cuda = edmund.sample(mixture.cuda(), (1000, 2), device="cuda", **options)
        differences[kind] = (cpu - cuda).abs().max().item()  # type: ignore[union-attr]
    keys = noise.keys(0, torch.arange(10_000))
    drawn = noise.normal(keys, (64,), 0), noise.normal(keys.cuda(), (64,), 0).cpu()
    return differences | {"noise": (drawn[0] - drawn[1]).abs().max().item()}


def measure(repetitions: int) -> dict[str, Any]:
    overhead = {
        f"{' x '.join(map(str, shape))}, {kind}{note}": repeated(
            lambda arguments=(shape, sampler, dtype): overhead_percent(*arguments), repetitions
        )
        for shape in SHAPES
        for kind, sampler in SAMPLERS.items()
        for note, dtype in (("", torch.float64), (", float32", torch.float32))
    }
    bare = {
        f"{' x '.join(map(str, shape))}{note}": repeated(
            lambda arguments=(shape, dtype): bare_percent(*arguments), repetitions
        )
        for shape in SHAPES
        for note, dtype in (("", torch.float64), (", float32", torch.float32))
    }
    stub = Stub()
    edmund.sample(stub, (500, 2), num_steps=2, batch_size=64, progress=False)
    cuda = torch.cuda.is_available()
    return {
        "overhead_percent": overhead,
        "bare_loop_percent": bare,
        "seeded_draw_ms": repeated(seeded_draw, 3 * repetitions),
        "import_seconds": import_seconds(),
        "largest_batch_of_500_samples_by_64": stub.largest_batch,
        "cuda_memory": memory_on_cuda() if cuda else None,
        "cuda_against_cpu": cuda_against_cpu() if cuda else None,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if cuda else None,
        },
    }


def table(results: dict[str, Any]) -> str:
    rows = [("what", "median", "best", "target")]
    for name, values in results["overhead_percent"].items():
        target = "< 5 %" if name.endswith("deterministic") else "stated"
        rows.append((f"overhead of sample, {name}", f"{values['median']:.2f} %", f"{values['best']:.2f} %", target))
    for name, values in results["bare_loop_percent"].items():
        rows.append(
            (f"Heun's bare arithmetic, {name}", f"{values['median']:.2f} %", f"{values['best']:.2f} %", "limit")
        )
    for name, key, unit, target in (
        ("one seeded draw, 10000 x 2", "seeded_draw_ms", "ms", "< 5 ms"),
        ("import edmund after import torch", "import_seconds", "s", "<= 0.5 s"),
    ):
        values = results[key]
        rows.append((name, f"{values['median']:.3f} {unit}", f"{values['best']:.3f} {unit}", target))
    rows.append(("largest batch of 500 samples by 64", str(results["largest_batch_of_500_samples_by_64"]), "", "64"))
    if results["cuda_memory"] is None:
        rows.append(("memory and numbers on CUDA", "no CUDA device", "", ""))
    else:
        for name, value in results["cuda_memory"].items():
            rows.append((f"peak on CUDA, batches of 256: {name}", f"{value:.1f} MiB", "", "the same"))
        for name, value in results["cuda_against_cpu"].items():
            rows.append((f"CUDA against CPU, {name}", f"{value:.1e}", "", "rounding"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=DEFAULT_PATH, help="where the JSON goes")
    parser.add_argument("--repetitions", type=int, default=15, help="repetitions of each measurement")
    arguments = parser.parse_args()
    results = measure(arguments.repetitions)
    print(
        f"Heun, {STEPS} steps, a denoiser call of {1e3 * CALL_SECONDS:.0f} ms, {results['machine']['threads']} threads"
    )
    print(table(results))
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    arguments.path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {arguments.path}")


if __name__ == "__main__":
    main()
