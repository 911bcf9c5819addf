"""Losses: every named loss is the denoising loss under a weight, computed here in its own parametrisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edmund import loss, networks, preconditioning, process
from edmund.denoiser import Preconditioned
from edmund.errors import InputError
from edmund.loss import DenoisingLoss
from edmund.prediction import convert

F64 = torch.float64
SIGMA = torch.logspace(-2, 2, 8, dtype=F64)


class Wrong(nn.Module):
    """A denoiser with a known error that depends on x and sigma."""

    def forward(self, x, sigma):
        return x / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1))) + 0.3 * torch.sin(x)


def batch(shape=(8, 2, 3)):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def own_loss(kind, path, preconditioner=None):
    """mean || prediction - target ||^2 in the parametrisation `kind` of the process `path`."""
    y, n = batch()
    t = path.t(SIGMA)
    x_t = path.add_noise(y, t, n)
    level = SIGMA[:, None, None]
    denoised = Wrong()(y + level * n, SIGMA)
    options = {"source": "data", "target": kind, "preconditioning": preconditioner}
    predicted, target = convert(denoised, x_t, t, path, **options), convert(y, x_t, t, path, **options)
    return ((predicted - target) ** 2).flatten(1).mean(1)


@pytest.mark.parametrize(
    ("weight", "kind", "path", "preconditioner"),
    [
        (loss.Data(), "data", process.EDM(), None),
        (loss.Noise(), "noise", process.EDM(), None),
        (loss.Noise(), "noise", process.VP(), None),
        (loss.Noise(), "noise", process.RectifiedFlow(), None),
        (loss.Score(), "score", process.EDM(), None),
        (loss.Velocity(), "v", process.VP(), None),
        (loss.Velocity(), "v", process.Cosine(), None),
        (loss.Flow(), "flow", process.RectifiedFlow(), None),
        (loss.EDM(0.7), "F", process.EDM(), preconditioning.EDM(0.7)),
        (loss.Velocity(), "F", process.VP(), preconditioning.Velocity()),
        (loss.Noise(), "F", process.VP(), preconditioning.VP()),
    ],
)
def test_losses_are_the_denoising_loss_under_a_weight(weight, kind, path, preconditioner):
    y, n = batch()
    ours = DenoisingLoss(Wrong(), weight)(y, SIGMA, n)
    torch.testing.assert_close(ours, own_loss(kind, path, preconditioner), rtol=1e-8, atol=0)


def test_score_matching_of_a_scaled_process():
    """The score of x_t is that of the unscaled x over s: the score loss of VP is 1/(s^2 sigma^4)."""
    y, n = batch()
    s = (1 + SIGMA**2) ** -0.5
    ours = DenoisingLoss(Wrong(), loss.Score())(y, SIGMA, n) / s**2
    torch.testing.assert_close(ours, own_loss("score", process.VP()), rtol=1e-9, atol=0)


def test_min_snr():
    sigma = torch.tensor([0.1, 5**-0.5 * 0.999, 5**-0.5 * 1.001, 2.0], dtype=F64)
    expected = [min(1 / s**2, 5.0) for s in sigma.tolist()]
    torch.testing.assert_close(loss.MinSNR()(sigma), torch.tensor(expected, dtype=F64), rtol=1e-14, atol=0)
    assert loss.MinSNR(gamma=0.2)(sigma).tolist() == pytest.approx([0.2] * 4)  # 1/4 is the least of 1/sigma^2 here


def test_per_channel_weight():
    stds = (0.5, 2.0)
    y, n = batch((8, 2, 3, 3))
    ours = DenoisingLoss(Wrong(), loss.EDM(stds))(y, SIGMA, n)
    parts = []
    for channel, std in enumerate(stds):
        error = (Wrong()(y + SIGMA[:, None, None, None] * n, SIGMA) - y)[:, channel] ** 2
        parts.append((SIGMA**2 + std**2) / (SIGMA * std) ** 2 * error.flatten(1).mean(1))
    torch.testing.assert_close(ours, torch.stack(parts).mean(0), rtol=1e-12, atol=0)


def test_expected_loss_of_the_optimal_denoiser():
    """For y ~ N(0, d^2) the least error is d^2 sigma^2 / (d^2 + sigma^2): EDM's weight makes it 1 everywhere."""
    d = 0.5
    sigma = torch.tensor([0.05, 0.5, 5.0], dtype=F64).repeat_interleave(4)

    class Optimal(nn.Module):
        def forward(self, x, sigma):
            return d**2 / (d**2 + sigma[:, None] ** 2) * x

    y, n = torch.randn(2, 12, 50_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    out = DenoisingLoss(Optimal(), loss.EDM(d))(d * y, sigma, n)
    # Each is a mean of 50 000 chi-square variables of variance 2.
    assert (out - 1).abs().max() < 5 * math.sqrt(2 / 50_000)


def uncertain(u_channels=32):
    network = networks.MLP(3, channels=16, blocks=1)
    u = networks.Uncertainty(u_channels)
    nn.init.normal_(u.linear.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return Preconditioned(network, preconditioning.EDM(0.5), uncertainty=u)


def test_uncertainty_loss():
    y, n = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    denoiser = uncertain()
    plain = Preconditioned(denoiser.network, preconditioning.EDM(0.5))
    u = denoiser.uncertainty(SIGMA)
    error = DenoisingLoss(plain, loss.EDM(0.5))(y, SIGMA, n)
    torch.testing.assert_close(
        DenoisingLoss(denoiser, loss.EDM(0.5))(y, SIGMA, n), error / torch.exp(u) + u, rtol=1e-5, atol=1e-6
    )


def test_uncertainty_is_least_at_the_weighted_error():
    """d/du (L e^-u + u) = 1 - L e^-u: zero at exp(u) = L, negative below, positive above."""
    y, n = batch()
    error = DenoisingLoss(Wrong(), loss.EDM(0.5))(y, SIGMA, n)

    class Given(Wrong):
        has_uncertainty = True

        def __init__(self, u):
            super().__init__()
            self.u = u

        def uncertainty(self, sigma):
            return self.u

    for shift in (-0.1, 0.0, 0.1):
        u = (torch.log(error) + shift).requires_grad_()
        total = DenoisingLoss(Given(u), loss.EDM(0.5))(y, SIGMA, n)
        (slope,) = torch.autograd.grad(total.sum(), u)
        torch.testing.assert_close(slope, torch.full_like(slope, 1 - math.exp(-shift)), rtol=1e-9, atol=1e-12)


def test_training_u_finds_the_error_at_every_level():
    """The trained u(sigma) comes to ln E[lambda |D - y|^2], by optimisation."""
    network = networks.MLP(3, channels=16, blocks=1)
    denoiser = Preconditioned(network, preconditioning.EDM(0.5), uncertainty=networks.Uncertainty(64))
    sigma = torch.tensor([0.05, 0.3, 2.0, 20.0])
    # The network is zero before training: D = c_skip x.
    d = 1.0
    skip = 0.25 / (sigma**2 + 0.25)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * ((1 - skip) ** 2 * d**2 + skip**2 * sigma**2)
    objective = DenoisingLoss(denoiser, loss.EDM(0.5))
    optimiser = torch.optim.Adam(denoiser._uncertainty.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.05 * 0.5 ** (step / 60)
        y, n = torch.randn(2, 512, 3, generator=generator)
        optimiser.zero_grad()
        objective(y, sigma.repeat(128), n).mean().backward()
        optimiser.step()
    torch.testing.assert_close(denoiser.uncertainty(sigma), torch.log(expected), rtol=0, atol=0.03)


def test_gradients_reach_network_and_uncertainty():
    denoiser = uncertain()
    y, n = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    DenoisingLoss(denoiser, loss.EDM(0.5))(y, SIGMA, n).mean().backward()
    assert denoiser.network.linear_out.weight.grad.abs().sum() > 0
    assert denoiser._uncertainty.linear.weight.grad.abs().sum() > 0


def test_conditions_reach_the_denoiser():
    class Told(nn.Module):
        def forward(self, x, sigma, *, labels):
            return labels[:, None, None].to(x.dtype).expand_as(x)

    y, n = batch()
    out = DenoisingLoss(Told(), loss.Data())(y, SIGMA, n, {"labels": torch.arange(8)})
    expected = ((torch.arange(8)[:, None, None] - y) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(out, expected)


def test_errors():
    for build, words in (
        (lambda: loss.EDM(-0.5), ["sigma_data", "-0.5"]),
        (lambda: loss.EDM()(SIGMA), ["sigma_data", "None"]),
        (lambda: loss.MinSNR(0.0), ["gamma", "0.0"]),
    ):
        with pytest.raises(InputError) as error:
            build()
        assert all(word in str(error.value) for word in words)


def test_names():
    assert set(loss.named()) == {"edm", "data", "noise", "score", "velocity", "flow", "min_snr"}
