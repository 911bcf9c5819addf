"""The presets against the papers' tables: parameters, learning rates, noise levels, sampling."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from edmund import data, presets, samplers
from edmund.config import Config, dump
from edmund.errors import InputError
from edmund.model import Model, count_parameters
from edmund.networks import EDM2UNet
from edmund.training.ema import HalfLife, PowerFunction

NAMES = sorted(presets.named())
PUBLISHED = {  # millions of parameters
    "cifar10-ddpmpp": 55.73,
    "cifar10-ncsnpp": 56.40,
    "ffhq64-ddpmpp": 61.81,
    "ffhq64-ncsnpp": 62.76,
    "afhqv2-64-ddpmpp": 61.81,
    "afhqv2-64-ncsnpp": 62.76,
    "imagenet64-adm": 295.90,
}
PUBLISHED_EDM2 = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}


class Described(data.DataSet):
    """Data of which only the description is asked for."""

    def __init__(self, preset: presets.Preset, classes: int | None = None) -> None:
        super().__init__(
            preset.shape, num_classes=preset.classes if classes is None else classes, value_range=(0.0, 255.0)
        )

    def __len__(self) -> int:
        return 2

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, data.Condition]:
        values = torch.linspace(0, 255, math.prod(self.shape)).reshape(self.shape)
        return values.expand(len(indices), *self.shape), {}


def built(name: str, classes: int | None = None) -> Model:
    """The preset's model, its weights on the meta device: none of their memory is taken."""
    with pytest.MonkeyPatch.context() as patch:
        # Around the networks alone: the data's statistics and the formulation have to be numbers.
        patch.setattr(torch.random, "fork_rng", lambda devices: torch.device("meta"))
        return Config.preset(name).model(Described(presets.find(name), classes))


@pytest.mark.parametrize("name", NAMES)
def test_the_network_has_the_published_number_of_parameters(name: str) -> None:
    preset = presets.find(name)
    model = built(name)
    assert count_parameters(model.network) == preset.parameters
    assert model.num_classes == preset.classes
    assert model.shape == preset.shape
    if name in PUBLISHED:  # counted without labels for CIFAR-10
        classes = 0 if name.startswith("cifar10") else preset.classes
        assert count_parameters(built(name, classes).network) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.005)
    elif isinstance(model.network, EDM2UNet):
        published = PUBLISHED_EDM2.get(name.rsplit("-", 1)[1])
        assert published is None or preset.parameters / 1e6 == pytest.approx(published, abs=0.5)
        assert model.uncertainty is not None
        assert model.uncertainty.config["magnitude_preserving"]


@pytest.mark.parametrize("name", NAMES)
def test_every_document_is_a_config_that_loads_again(name: str) -> None:
    config = Config.preset(name)
    assert config.output.directory == f"runs/{name}"
    for document in (presets.find(name).document, config.document()):
        again = Config.of(yaml.safe_load(dump(document)))
        assert again.options() == config.options()
        assert again.formulation() == config.formulation()
        assert again.network == {**config.network, **again.network}
    options = config.options()
    intervals = (options.checkpoint_interval, options.validation_interval, options.log_interval)
    assert all(options.batch_size <= interval <= options.samples for interval in intervals)


def lr(name: str, *millions: float) -> list[float]:
    options = Config.preset(name).options()
    return [options.learning_rate(round(1e6 * t)) for t in millions]


def test_learning_rates() -> None:
    assert lr("cifar10-ddpmpp", 0, 5, 10, 199) == pytest.approx([0, 5e-4, 1e-3, 1e-3])
    assert lr("afhqv2-64-ncsnpp", 5, 10, 199) == pytest.approx([1e-4, 2e-4, 2e-4])
    assert lr("imagenet64-adm", 5, 10, 2499) == pytest.approx([5e-5, 1e-4, 1e-4])
    # The reference learning rate until 70 000 (64 x 64: 35 000) batches of 2048, then with the inverse square root.
    reference = 70_000 * 2048 / 1e6
    assert lr("edm2-img512-xs", 5, 10, reference, 4 * reference) == pytest.approx([0.006, 0.012, 0.012, 0.006])
    reference = 35_000 * 2048 / 1e6
    assert lr("edm2-img64-xl", 5, reference, 9 * reference) == pytest.approx([0.0035, 0.007, 0.007 / 3])


@pytest.mark.parametrize("name", NAMES)
def test_noise_levels_and_what_is_published_with_them(name: str) -> None:
    made = Config.preset(name).formulation()
    median, upper = made.noise_density.quantile(torch.tensor([0.5, 0.841344746068543], dtype=torch.float64)).log()
    # The small rows are our own recipes: where their few images go, for data of the deviation that is found in them.
    own = {"mnist": (-0.8, 1.2), "cifar10": (-0.4, 1.2)} if name.endswith("-small") else {}
    published = {"edm2-img64": (-0.8, 1.6), "edm2-img512": (-0.4, 1.0)}
    p_mean, p_std = (published | own).get(name.rsplit("-", 1)[0], (-1.2, 1.2))
    assert median.item() == pytest.approx(p_mean, abs=1e-9)
    assert (upper - median).item() == pytest.approx(p_std, rel=1e-9)
    assert (made.sigma_min, made.sigma_max, made.grid.rho) == (0.002, 80.0, 7.0)
    assert made.preconditioning.sigma_data == (None if own else 0.5)
    churn = samplers.Churn(40.0, 0.05, 50.0, 1.003) if name == "imagenet64-adm" else None
    assert made.sampler == samplers.Heun(churn)
    steps = {"cifar10": 18, "mnist": 18, "ffhq64": 40, "afhqv2": 40, "imagenet64": 256, "edm2": 32}
    assert made.num_steps == steps[name.split("-")[0]]
    if "NFE" in presets.find(name).expected:
        assert f"{2 * made.num_steps - 1} NFE" in presets.find(name).expected


def test_what_else_the_recipes_say() -> None:
    cifar = Config.preset("cifar10-ddpmpp").options()
    assert (cifar.samples, cifar.batch_size, cifar.augment) == (200_000_000, 512, 0.12)
    assert cifar.betas == (0.9, 0.999)
    assert cifar.profile == HalfLife(500_000, 0.05)
    adm = Config.preset("imagenet64-adm").options()
    assert (adm.samples, adm.batch_size, adm.augment) == (2_500_000_000, 4096, 0)
    assert adm.profile == HalfLife(50_000_000, 0.05)
    for size, images in (("s", 1024), ("m", 2048), ("l", 1024), ("xl", 640)):
        edm2 = Config.preset(f"edm2-img64-{size}").options()
        assert (edm2.samples, edm2.batch_size) == (images * 2**20, 2048)
        assert edm2.betas == (0.9, 0.99)
        assert edm2.ema_widths == (0.05, 0.1)
        assert isinstance(edm2.profile, PowerFunction)
    dropout = {name: Config.preset(name).network.get("dropout") for name in NAMES}
    assert dropout["cifar10-ncsnpp"] == 0.13
    assert (dropout["ffhq64-ddpmpp"], dropout["afhqv2-64-ddpmpp"]) == (0.05, 0.25)
    assert (dropout["edm2-img64-s"], dropout["edm2-img64-m"], dropout["imagenet64-adm"]) == (0, 0.1, 0.1)


def test_latents_are_standardised_to_half() -> None:
    section = Config.preset("edm2-img512-s").data
    assert (section.transform, section.std) == ("standardise", 0.5)


def test_overrides() -> None:
    config = Config.preset("mnist-small", ["training.lr=1e-4", "data.path=x.npz", "output.directory=here"])
    assert config.options().lr == 1e-4
    assert config.data.path == "x.npz"
    assert config.output.directory == "here"
    assert presets.find("mnist-small").document["data"]["path"] is None


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"preset: 'cifar10-dppmpp' is not known; did you mean 'cifar10-ddpmpp'\?"):
        Config.preset("cifar10-dppmpp")
    with pytest.raises(InputError, match=r"data.path is not given"):
        Config.preset("cifar10-ddpmpp").datasets()
