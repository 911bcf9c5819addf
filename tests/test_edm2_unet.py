"""EDM2's network: the published function, and magnitudes that its layers keep by construction."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_networks import awake
from torch import Tensor

from edmund import formulation, model
from edmund.denoiser import Preconditioned
from edmund.errors import InputError
from edmund.networks import EDM2UNet, Uncertainty
from edmund.networks.magnitude_preserving import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise
from edmund.preconditioning import EDM


def small(**options: Any) -> EDM2UNet:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"in_channels": 3, "resolution": 16, "channels": 32, "channel_mult": [1, 2, 2]}
    return EDM2UNet(**{**defaults, "blocks": 1, "attention_resolutions": [8], **options})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def magnitude(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


@pytest.fixture
def golden(shared: Path) -> tuple[Preconditioned, dict[str, Tensor]]:
    """The reference network with its uncertainty as a denoiser, and its inputs and outputs."""
    from safetensors import safe_open

    with safe_open(shared / "golden/network_edm2.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    network = EDM2UNet(
        in_channels=config["img_channels"],
        resolution=config["img_resolution"],
        channels=config["model_channels"],
        channel_mult=config["channel_mult"],
        blocks=config["num_blocks"],
        attention_resolutions=config["attn_resolutions"],
        label_dim=config["label_dim"],
        dropout=config["dropout"],
    )
    network.load_state_dict(
        {key.removeprefix("state.unet."): value for key, value in values.items() if key.startswith("state.unet.")}
    )
    uncertainty = Uncertainty(128, magnitude_preserving=True)
    uncertainty.load_state_dict(
        {
            "features.freqs": values["state.logvar_fourier.freqs"],
            "features.phases": values["state.logvar_fourier.phases"],
            "linear.weight": values["state.logvar_linear.weight"],
        }
    )
    denoiser = Preconditioned(network, EDM(0.5), uncertainty=uncertainty)
    return denoiser.eval(), {key[3:]: value for key, value in values.items() if key.startswith("io.")}


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_golden(
    golden: tuple[Preconditioned, dict[str, Tensor]], precision: torch.dtype, tolerance: float, device: torch.device
) -> None:
    denoiser, values = golden
    denoiser.to(device, precision)
    with torch.no_grad():
        denoised = denoiser(
            values["x"].to(device), values["sigma"].to(device), labels=values["class_labels"].to(device)
        )
    assert denoised.dtype == torch.float32
    assert (denoised.cpu() - values["denoised"]).norm() < tolerance * values["denoised"].norm()


def test_golden_uncertainty(golden: tuple[Preconditioned, dict[str, Tensor]]) -> None:
    denoiser, values = golden
    expected = values["logvar"].flatten()
    assert (denoiser.uncertainty(values["sigma"]) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("channels", "millions"), [(128, 125), (192, 280), (256, 498), (320, 777), (384, 1119), (448, 1523)]
)
def test_parameter_counts_are_the_published_ones(channels: int, millions: int) -> None:
    with torch.device("meta"):
        network = EDM2UNet(4, channels=channels, label_dim=1000)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


def test_training_sets_the_weights_back_to_unit_norm() -> None:
    network = small(label_dim=5)
    for parameter in network.parameters():
        parameter.data.mul_(7)
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    x, c_noise, labels = normal(4, 3, 16, 16), normal(4), torch.arange(4)
    for _ in range(3):
        optimiser.zero_grad()
        (network(x, c_noise, labels=labels) - x).square().mean().backward()
        kept = [module.weight.detach().clone() for module in network.modules() if isinstance(module, MPConv)]
        optimiser.step()
    for weight in kept:
        torch.testing.assert_close(weight.flatten(1).square().mean(1), torch.ones(len(weight)), rtol=1e-3, atol=0)


def test_evaluation_leaves_the_weights_and_does_not_see_their_norm() -> None:
    network = awake(small())
    x, c_noise = normal(2, 3, 16, 16), normal(2)
    before = network(x, c_noise)
    for module in network.modules():
        if isinstance(module, MPConv):
            module.weight.data.mul_(3)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    after = network(x, c_noise)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    torch.testing.assert_close(after, before, rtol=0, atol=5e-3 * magnitude(before))  # but for the 1e-4 in the norm


def test_gradients_are_perpendicular_to_the_weights() -> None:
    layer = MPConv(32, 16, 3).double()
    layer(normal(2, 32, 5, 5).double()).square().sum().backward()
    assert layer.weight.grad is not None
    along = (layer.weight * layer.weight.grad).flatten(1).sum(1)
    size = layer.weight.norm() * layer.weight.grad.norm()
    assert along.abs().max() < 1e-3 * size


def test_layers_keep_unit_magnitude() -> None:
    torch.manual_seed(1)
    a, b = normal(64, 96, 8, 8, seed=1), normal(64, 32, 8, 8, seed=2)
    near_one = pytest.approx(1, abs=0.02)
    assert magnitude(mp_silu(a)) == near_one
    assert magnitude(mp_sum(a[:, :32], b, 0.3)) == near_one
    assert magnitude(MPConv(96, 128)(a[:, :, 0, 0])) == near_one
    assert magnitude(MPConv(96, 128, 1)(a)) == near_one
    assert magnitude(MPConv(96, 128, 3)(a)[..., 1:-1, 1:-1]) == near_one  # the padding is zeros
    assert magnitude(MPFourier(512)(torch.linspace(-2, 2, 512))) == pytest.approx(1, abs=0.05)
    assert magnitude(normalise(5 * a, dim=1)) == pytest.approx(1, abs=1e-4)
    # in a concatenation each half of the squares comes from one part, and a convolution over it keeps the magnitude
    both = mp_cat(a, b)
    assert both[:, :96].square().sum() == pytest.approx(both[:, 96:].square().sum().item(), rel=0.02)
    assert magnitude(both) == near_one
    assert magnitude(MPConv(128, 128, 1)(both)) == near_one


def test_the_silu_constant_is_that_of_a_unit_normal() -> None:
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    square = torch.trapezoid(density * torch.nn.functional.silu(grid) ** 2, grid)
    assert square.sqrt().item() == pytest.approx(0.596, abs=5e-4)


@pytest.mark.parametrize("size", [(16, 16), (32, 24)])
def test_activations_have_unit_magnitude_at_initialisation(size: tuple[int, int]) -> None:
    network = small(label_dim=5, channels=64, blocks=2).eval()
    seen: dict[str, float] = {}
    for part in ("enc", "dec"):
        for name, layer in network.get_submodule(part).named_children():
            layer.register_forward_hook(lambda _, __, out, at=f"{part}.{name}": seen.update({at: magnitude(out)}))
    network(normal(4, 3, *size), normal(4), labels=torch.arange(4))
    assert len(seen) == len(network.enc) + len(network.dec)
    # The zeros of the padding and the pixels that upsampling repeats take a little away.
    assert all(0.75 < value < 1.1 for value in seen.values()), seen


def test_the_embedding_has_unit_magnitude_with_every_condition() -> None:
    network = small(label_dim=5, context_dim=4, augment_dim=9, channels=128)
    augment_labels = torch.nn.functional.normalize(normal(8, 9))
    embedding = network._embedding(normal(8), torch.arange(8) % 5, normal(8, 4), augment_labels, None, torch.float32)
    assert magnitude(embedding) == pytest.approx(1, abs=0.15)


def test_frequencies_stay_exact_in_low_precision() -> None:
    features = MPFourier(64)
    freqs, c = features.freqs.clone(), torch.linspace(-1.6, 1.1, 9)
    expected = features(c)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        features.to(dtype)
        assert torch.equal(features.freqs, freqs)
        assert torch.equal(features(c), expected)


def test_attention_reaches_every_pixel() -> None:
    """The first block of the decoder attends at the coarsest level, whatever else does."""
    network = awake(small(channel_mult=[1, 1], resolution=8, attention_resolutions=[]))
    x = normal(1, 3, 64, 2).requires_grad_()
    network(x, torch.zeros(1))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0, -1].any()


def test_saved_and_loaded_with_its_uncertainty(tmp_path: Path) -> None:
    network = awake(small())
    uncertainty = Uncertainty(16, magnitude_preserving=True).eval()
    saved = model.Model(network, formulation.EDM(sigma_data=0.5), shape=(3, 16, 16), uncertainty=uncertainty)
    loaded = model.load(saved.save(tmp_path / "model"))
    x, sigma = normal(2, 3, 16, 16), torch.tensor([0.3, 5.0])
    assert torch.equal(loaded.denoiser(x, sigma), saved.denoiser(x, sigma))
    assert torch.equal(loaded.denoiser.uncertainty(sigma), saved.denoiser.uncertainty(sigma))


@pytest.mark.parametrize("size", [(18, 16), (16, 6), (1, 4)])
def test_a_size_that_the_levels_cannot_halve_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"^x has shape \[1, 3, .*multiples of 4"):
        small()(torch.zeros(1, 3, *size), torch.zeros(1))


@pytest.mark.parametrize(
    ("option", "value", "tells"),
    [
        ("resolution", 18, "multiple of 4"),
        ("resolution", 0, "at least 1"),
        ("attention_resolutions", [32], "16, 8, 4"),
        ("attention_resolutions", 8, "a list of levels"),
        ("channel_mult", [], "one integer"),
        ("channel_mult", [1, 0], "at least 1"),
    ],
)
def test_bad_options_are_named(option: str, value: Any, tells: str) -> None:
    with pytest.raises(InputError, match=f"^{option} .*{tells}"):
        small(**{option: value})
