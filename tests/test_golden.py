"""The reference numbers of the original implementation (../shared/golden; skipped where that folder is absent)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import edmund
from edmund import noise, noise_density, preconditioning, process, samplers
from edmund.loss import EDM as EDMWeight
from edmund.loss import Noise as NoiseWeight

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the reference numbers ../shared/golden are not beside this checkout"
)

RANGES = {"vp": None, "ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}


def runs() -> list[dict]:
    return json.loads((GOLDEN / "samplers.json").read_text()) if GOLDEN.is_dir() else []


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "samplers.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def numbers() -> dict:
    return json.loads((GOLDEN / "preconditioning.json").read_text())


def mixture(arrays: dict[str, torch.Tensor]) -> edmund.denoiser.GaussianMixture:
    return edmund.denoiser.GaussianMixture(arrays["means"], arrays["stds"], arrays["weights"])


def close(ours: torch.Tensor, reference: object, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, torch.tensor(reference, dtype=torch.float64), rtol=rtol, atol=0)


def test_mixture_denoiser(arrays):
    for sigma in (0.05, 0.5, 5.0):
        expected = arrays[f"probe_denoised_sigma={sigma}"]
        torch.testing.assert_close(
            mixture(arrays)(arrays["probe_x"], torch.tensor(sigma, dtype=torch.float64)),
            expected,
            rtol=1e-12,
            atol=1e-12,
        )


def settings(run: dict) -> dict:
    """The run's solver, grid, process and range as arguments of edmund.sample."""
    if run.get("sampler") == "edm_sampler":
        return {"sampler": "heun", "grid": "edm", "process": "edm", "sigma_min": 0.002, "sigma_max": 80.0}
    vp = process.VP()
    ends = vp.sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
    low, high = RANGES[run["discretization"]] or ends
    scaling = run["scaling"]
    path = {
        "vp": lambda: process.VP.for_range(low, high, scaling=scaling),
        "ve": lambda: process.VE(scaling),
        "linear": lambda: process.EDM(scaling),
    }[run["schedule"]]()
    churn = None
    if run["S_churn"]:
        churn = samplers.Churn(run["S_churn"], run["S_min"], float(run["S_max"]), run["S_noise"])
    solver = samplers.Euler(churn) if run["solver"] == "euler" else samplers.Heun(churn, alpha=run.get("alpha", 1.0))
    return {"sampler": solver, "grid": run["discretization"], "process": path, "sigma_min": low, "sigma_max": high}


@pytest.mark.parametrize("run", runs(), ids=lambda run: run["key"])
def test_sampler(run, arrays):
    recorded = noise.Recorded(arrays[f"{run['key']}_noise"]) if "noise" in run else None
    calls = []

    def denoiser(x, sigma):
        calls.append(1)
        return oracle(x, sigma)

    oracle = mixture(arrays)
    x = edmund.sample(
        denoiser,
        (16, 2),
        num_steps=run["num_steps"],
        latents=arrays["latents"],
        noise=recorded,
        progress=False,
        **settings(run),
    )
    assert (x - arrays[run["key"]]).abs().max() < 1e-9
    assert len(calls) == run["nfe"]


@pytest.mark.parametrize("name", ["vp", "ve", "iddpm", "edm", "edm_sigma_data_1"])
def test_preconditioning(name, numbers):
    part = {
        "vp": preconditioning.VP(),
        "ve": preconditioning.VE(),
        "iddpm": preconditioning.IDDPM(),
        "edm": preconditioning.EDM(0.5),
        "edm_sigma_data_1": preconditioning.EDM(1.0),
    }[name]
    sigma = torch.tensor(numbers[name]["sigma"], dtype=torch.float64)
    for coefficient in ("c_skip", "c_out", "c_in", "c_noise"):
        close(getattr(part, coefficient)(sigma), numbers[name][coefficient])


def test_vp_range(numbers):
    t = torch.tensor([1e-3, 1e-5, 1.0], dtype=torch.float64)
    close(process.VP().sigma(t), [numbers["vp"][f"sigma_at_{end}"] for end in ("epsilon_s", "epsilon_t", "1")])


def test_iddpm_levels(numbers):
    expected, levels = numbers["iddpm"], process.iddpm_levels()
    close(levels[:5], expected["u_first_5"])
    close(levels[-5:], expected["u_last_5"])
    close(levels[[8, 500, 999]], [expected["u_8"], expected["u_500"], expected["u_999"]])
    sigma = torch.tensor(expected["sigma"], dtype=torch.float64)
    close(preconditioning.IDDPM().round_sigma(sigma), expected["round_sigma"])
    assert process.nearest_level(sigma, levels).tolist() == expected["index"]


def test_training_levels_and_weights(numbers):
    training = numbers["training"]
    u = torch.tensor(training["quantile"], dtype=torch.float64)
    close(noise_density.VPUniform().quantile(u), training["vp_sigma"])
    close(noise_density.LogUniform().quantile(u), training["ve_sigma"])
    close(noise_density.LogNormal().quantile(u), training["edm_sigma"])
    sigma = torch.tensor(training["sigma"], dtype=torch.float64)
    for name in ("vp", "ve", "iddpm"):
        close(NoiseWeight()(sigma), training[f"{name}_weight"])
    close(EDMWeight(0.5)(sigma), training["edm_weight"])
