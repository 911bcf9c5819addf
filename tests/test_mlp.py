"""What is the MLP's own: its shape, and that it learns a function of x and of the noise level."""

from __future__ import annotations

import pytest
import torch

from edmund.errors import InputError
from edmund.networks import MLP


@pytest.mark.parametrize("shape", [(4, 5), (4, 6, 1), (6,)])
def test_x_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^x has shape .* \[B, 6\]"):
        MLP(6, channels=8)(torch.zeros(shape), torch.zeros(4))


@pytest.mark.parametrize("value", [[1, 3], [1, 0, 3], []])
def test_bad_image_shape(value: list[int]) -> None:
    with pytest.raises(InputError, match=r"^image_shape is"):
        MLP(6, image_shape=value)


def test_bad_features() -> None:
    with pytest.raises(InputError, match=r"^features is 0"):
        MLP(0)
    with pytest.raises(InputError, match=r"^out_features is -1"):
        MLP(2, out_features=-1)


def test_it_learns_the_exact_denoiser_of_a_gaussian() -> None:
    """F of the denoiser of N(0, diag(d^2)) is x times a factor that depends on the noise level: it must learn both."""
    torch.manual_seed(0)
    network = MLP(2, channels=64, blocks=2)
    std = torch.tensor([1.0, 0.2])
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sigma = torch.exp(torch.randn(size, 1))
        x = torch.randn(size, 2) * (std**2 + sigma**2).sqrt()
        return x / (1 + sigma**2).sqrt(), sigma.log().squeeze(1) / 4, (x * std**2 / (std**2 + sigma**2))

    for _ in range(400):
        x, c_noise, target = batch(256)
        loss = (network(x, c_noise) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, c_noise, target = batch(4096)
    with torch.no_grad():
        assert (network(x, c_noise) - target).square().mean() < 0.01 * target.var()
