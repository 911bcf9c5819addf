"""Optimised networks: the same function within the stated tolerances."""

import dataclasses
import shutil

import pytest
import torch
from torch import nn

import edmund
from edmund import formulation, networks
from edmund.errors import InputError
from edmund.networks.magnitude_preserving import MPConv

SMALL = {
    "unet": lambda: networks.UNet(3, channels=32, channel_mult=[1, 2], label_dim=4),
    "song_unet": lambda: networks.SongUNet(
        3, resolution=16, channels=32, channel_mult=[1, 2], blocks=1, attention_resolutions=[8], label_dim=4
    ),
    "ncsnpp": lambda: networks.SongUNet(
        3,
        resolution=16,
        channels=32,
        channel_mult=[1, 2],
        blocks=1,
        attention_resolutions=[8],
        embedding="fourier",
        noise_mult=2,
        encoder="residual",
        resample_filter=[1, 3, 3, 1],
        label_dim=4,
    ),
    "adm": lambda: networks.ADM(
        3, resolution=16, channels=32, channel_mult=[1, 2], blocks=1, attention_resolutions=[8], label_dim=4
    ),
    "edm2_unet": lambda: networks.EDM2UNet(
        3, resolution=16, channels=32, channel_mult=[1, 2], blocks=1, attention_resolutions=[8], label_dim=4
    ),
    "dit": lambda: networks.DiT(3, channels=64, blocks=2, label_dim=4),
}


@pytest.fixture(params=SMALL)
def model(request, device):
    """A model with no weight at zero, as an initial network has them."""
    torch.manual_seed(0)
    network = SMALL[request.param]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim else 0.5)
    made = edmund.Model(network, formulation.EDM(sigma_data=0.5), shape=(3, 16, 16)).to(device)
    made.denoiser.eval()
    return made


def denoised(model, device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = (2 * torch.randn(6, 3, 16, 16, generator=generator, dtype=dtype)).to(device)
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 50.0], dtype=dtype, device=device)
    with torch.no_grad():
        return model.denoiser(x, sigma, labels=torch.tensor([0, 1, 2, 3, -1, 0], device=device))


def difference(a, b):
    return float((a - b).norm() / b.norm())


def test_channels_last_is_the_same_function(model, device):
    before = denoised(model, device)
    assert model.optimise() is model
    convolutions = [p for p in model.network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    assert difference(denoised(model, device), before) < 1e-6


def test_bf16_rounds_the_network_alone(model, device):
    before = denoised(model, device)
    after = denoised(model.optimise(precision="bf16"), device)
    assert after.dtype == torch.float64
    assert difference(after, before) < 1e-2
    # At sigma = 0.01 the network has 2 % of a say: the state itself is not rounded to the three digits of bf16.
    assert difference(after[0], before[0]) < 1e-3
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}


def test_samples_of_an_optimised_model_are_those_of_the_plain_one(model, device):
    options = {"num_steps": 6, "sampler": "heun", "labels": 1, "progress": False}
    before = model.sample(2, **options)
    assert difference(model.optimise().sample(2, **options), before) < 1e-5


def test_a_bf16_model_is_saved_and_loaded_in_bf16(tmp_path, device, model):
    model.optimise(precision="bf16").save(tmp_path)
    again = edmund.load(tmp_path, device=device).optimise()
    assert difference(denoised(again, device), denoised(model, device)) < 2e-3


def test_normalised_weights_are_made_once_until_trained_or_loaded(device):
    torch.manual_seed(0)
    layer, other = MPConv(4, 5, 3).eval(), MPConv(4, 5, 3)
    x = torch.randn(2, 4, 6, 6)
    plain = layer(x)
    layer.freeze()
    assert torch.equal(layer(x), plain)
    assert "frozen" not in layer.state_dict()

    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other.eval()(x))
    layer.freeze()
    layer.train()
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.equal(layer.eval()(x), -other(x)) or torch.allclose(layer(x), -other(x), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("kind", ["song_unet", "edm2_unet"])
def test_compiled_is_the_same_function(kind, device):
    torch.manual_seed(0)
    network = SMALL[kind]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim else 0.5)
    model = edmund.Model(network, formulation.EDM(sigma_data=0.5), shape=(3, 16, 16)).to(device)
    model.denoiser.eval()
    before = denoised(model, device)
    after = denoised(model.optimise(compile=True), device)
    assert difference(after, before) < 1e-5
    assert difference(denoised(model, device), before) < 1e-5


def test_extra_channels_do_not_share_the_networks_memory():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.zeros(1, 2, 4, 4)  # as a CUDA graph has one output for all its calls

        def forward(self, x, c_noise):
            return self.out.add_(1)

    denoiser = edmund.denoiser.Preconditioned(Kept(), edmund.preconditioning.EDM(0.5), extra_channels=1)
    first = denoiser.with_extra(torch.zeros(1, 1, 4, 4), torch.tensor(1.0))[1]
    denoiser.with_extra(torch.zeros(1, 1, 4, 4), torch.tensor(1.0))
    assert torch.equal(first, torch.ones(1, 1, 4, 4))


def test_bad_input(monkeypatch):
    model = edmund.Model(networks.MLP(features=2), formulation.EDM(sigma_data=1.0), shape=(2,))
    with pytest.raises(InputError, match=r"precision.*'half'.*bf16"):
        model.optimise(precision="half")
    with pytest.raises(InputError, match="precision is 'fp16', which needs a GPU"):
        model.optimise(precision="fp16")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"compile is True, but none of the compilers g\+\+"):
        model.optimise(compile=True)


def test_a_network_without_convolutions_is_fine():
    model = edmund.Model(networks.MLP(features=2), formulation.EDM(sigma_data=1.0), shape=(2,))
    replaced = dataclasses.replace(model.formulation, num_steps=4)
    model = edmund.Model(model.network, replaced, shape=(2,))
    before = model.sample(8, progress=False)
    assert torch.allclose(model.optimise().sample(8, progress=False), before, atol=1e-6)
