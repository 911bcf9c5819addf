"""Optimised networks: the same function within the stated tolerances."""

import copy
import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file
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


def edm2_model():
    """A magnitude-preserving model with its uncertainty, as it is after training."""
    torch.manual_seed(0)
    network = SMALL["edm2_unet"]()
    with torch.no_grad():
        network.out_gain.fill_(1.0)
    uncertainty = networks.Uncertainty(magnitude_preserving=True)
    return edmund.Model(network, formulation.EDM(sigma_data=0.5), shape=(3, 16, 16), uncertainty=uncertainty)


def test_normalised_weights_are_made_once(monkeypatch):
    model = edm2_model()
    model.denoiser.eval()
    before = denoised(model, "cpu")
    model = edm2_model().optimise()

    def unexpected(layer):
        raise AssertionError("a weight was normalised again")

    monkeypatch.setattr(MPConv, "_unit_norms", unexpected)
    assert difference(denoised(model, "cpu"), before) < 1e-6
    model.sample(1, num_steps=2, progress=False)  # which puts the denoiser back into the mode it was in
    denoised(model, "cpu")


def test_an_optimised_model_is_in_evaluation_mode_and_stays_as_it_is():
    model = edm2_model().optimise()
    assert not any(module.training for module in model.denoiser.modules())
    state = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    model.denoiser.uncertainty(torch.tensor([0.1, 1.0]))
    model.sample(1, num_steps=2, progress=False)
    assert all(torch.equal(value, state[name]) for name, value in model.denoiser.state_dict().items())


@pytest.mark.parametrize("how", ["written", "loaded", "trained", "copied"])
def test_normalised_weights_are_not_used_after_a_change(how):
    torch.manual_seed(0)
    layer, other = MPConv(4, 5, 3).eval(), MPConv(4, 5, 3).eval()
    x = torch.randn(2, 4, 6, 6)
    layer.requires_grad_(False)
    plain = layer(x)
    layer.freeze()
    assert torch.equal(layer(x), plain)
    assert "frozen" not in layer.state_dict()
    if how == "copied":
        layer = copy.deepcopy(layer)
        assert torch.equal(layer(x), plain)
    if how == "loaded":
        layer.load_state_dict(other.state_dict())
    else:
        if how == "trained":
            layer.train()
        with torch.no_grad():
            layer.weight.copy_(other.weight)
    assert difference(layer(x), other(x).detach()) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["ddpmpp_edm", "ddpmpp_vp", "ncsnpp_edm", "ncsnpp_ve", "adm_edm", "adm_iddpm", "edm2"])
def test_the_reference_networks_optimised(name, precision, shared, device):
    """The bounds that `Model.optimise` states, on the original implementation's outputs."""
    path = shared / "golden" / f"network_{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    model = edmund.pretrained.load(path).to(device).optimise(precision=precision)
    io = {key.removeprefix("io."): value for key, value in load_file(path).items() if key.startswith("io.")}
    condition = {"labels": io["class_labels"]} if "class_labels" in io else {}
    if "augment_labels" in io:
        condition["augment_labels"] = io["augment_labels"]
    with torch.no_grad():
        out = model.denoiser(io["x"].to(device), io["sigma"].flatten().to(device), **condition).cpu()
    assert difference(out, io["denoised"]) < (1e-5 if precision == "fp32" else 1e-2)


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
    with pytest.raises(InputError, match=r"precision: \['bf16'\]"):
        model.optimise(precision=["bf16"])
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"compile is True, but there is no compiler g\+\+"):
        model.optimise(compile=True)


def test_a_network_without_convolutions_is_fine():
    model = edmund.Model(networks.MLP(features=2), formulation.EDM(sigma_data=1.0), shape=(2,))
    replaced = dataclasses.replace(model.formulation, num_steps=4)
    model = edmund.Model(model.network, replaced, shape=(2,))
    before = model.sample(8, progress=False)
    assert torch.allclose(model.optimise().sample(8, progress=False), before, atol=1e-6)
