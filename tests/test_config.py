from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import yaml

from edmund import data, formulation, grid, process, samplers
from edmund.config import Config, dump, override
from edmund.errors import InputError
from edmund.training.augmentation import LABELS

TYPES = ["EDM", "VP", "VE", "iDDPM", "Flow", "Cosine"]
TWO_LINES = """
diffusion: {type: EDM, sigma_data: 1.0, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, p_mean: -1.2, p_std: 1.2}
sampling:  {steps: 40, sampler: heun, s_churn: 40.0, s_min: 0.05, s_max: 50.0, s_noise: 1.003}
"""


def of(**sections):
    return Config.of(sections)


def test_the_two_lines():
    made = Config.of(yaml.safe_load(TWO_LINES)).formulation()
    expected = dataclasses.replace(
        formulation.EDM(1.0, 0.002, 80.0, 7.0, -1.2, 1.2),
        num_steps=40,
        sampler=samplers.Heun(samplers.Churn(40.0, 0.05, 50.0, 1.003)),
    )
    assert made == expected


def test_nothing_is_everything():
    config = Config.of({})
    assert config.formulation() == formulation.EDM()
    train, held_out = config.datasets()
    assert len(train) + len(held_out) == 1797
    model = config.model(train)
    assert model.shape == (1, 8, 8)
    assert model.network.config["label_dim"] == 10
    assert 0.74 < model.formulation.preconditioning.sigma_data < 0.76  # the digits' own, in [-1, 1]


@pytest.mark.parametrize("kind", TYPES)
def test_common_keys_go_with_every_type(kind):
    config = of(diffusion={"type": kind, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0})
    made = config.formulation()
    assert made.name == kind
    if kind == "iDDPM":  # the levels that it has in the range
        assert (made.sigma_min, made.sigma_max) == pytest.approx((0.0064254, 71.29), rel=1e-3)
    else:
        assert (made.sigma_min, made.sigma_max) == (0.002, 80.0)
    train, _ = config.datasets()
    model = config.model(train)
    low, high = model.transform.forward(train.__getitems__([0, 1, 2])[0]).aminmax()
    if kind == "EDM":
        assert model.formulation.preconditioning.sigma_data == 0.5
        assert (low, high) == (-1, 1)
    else:  # written for data of unit scale: the data are divided by sigma_data
        assert (low, high) == (-2, 2)
    assert model.sample(2, num_steps=3, labels=0, progress=False).isfinite().all()


@pytest.mark.parametrize("kind", TYPES)
def test_the_resolved_document_is_the_same_config(kind):
    config = of(diffusion={"type": kind}, training={"samples": 1000, "lr_ramp": 100})
    again = Config.of(yaml.safe_load(dump(config.document())))
    assert again.formulation() == config.formulation()
    assert again.options() == config.options()
    assert again.document() == config.document()


def test_names_have_any_case_and_aliases_resolve():
    made = of(
        diffusion={"type": "iddpm"}, sampling={"sampler": "Midpoint", "steps": 5, "grid": "edm", "process": "vp"}
    ).formulation()
    assert made.sampler == samplers.Heun(alpha=0.5)
    assert (made.num_steps, made.grid, made.process) == (5, grid.EDM(), process.VP())


def test_vp_keeps_its_betas_or_is_fitted():
    assert of(diffusion={"type": "VP", "beta_d": 10.0, "beta_min": 0.2}).formulation().process == process.VP(10.0, 0.2)
    fitted = of(diffusion={"type": "VP", "sigma_min": 0.002, "sigma_max": 80.0}).formulation()
    assert fitted.process == process.VP.for_range(0.002, 80.0)
    assert fitted.trained_range == pytest.approx((0.002, 80.0), rel=1e-9)


def test_numbers_as_yaml_reads_them():
    # YAML 1.1 reads 1e-3 as a text.
    assert of(training={"lr": "1e-3"}).options().lr == 1e-3
    assert math.isinf(
        of(sampling={"sampler": "heun", "s_churn": 1, "s_max": float("inf")}).formulation().sampler.churn.S_max
    )


def build(document):
    """What any command does with a config before it trains."""
    config = Config.of(document)
    config.options()
    config.formulation()
    config.transform(config.datasets()[0])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"difusion": {}}, ["difusion", "'diffusion'"]),
        ({"diffusion": {"type": "EDN"}}, ["diffusion.type", "'EDN'", "'EDM'"]),
        ({"diffusion": {"sigma_mim": 1}}, ["sigma_mim", "'sigma_min'"]),
        ({"diffusion": {"type": "VE", "rho": 7}}, ["diffusion.rho", "7", "VE", "EDM"]),
        ({"diffusion": {"type": "EDM", "beta_d": 7}}, ["diffusion.beta_d", "VP"]),
        ({"diffusion": {"sigma_max": "large"}}, ["diffusion.sigma_max", "'large'", "number"]),
        ({"diffusion": {"sigma_min": 90.0}}, ["sigma_min", "90.0", "sigma_max"]),
        ({"diffusion": {"sigma_min": -1.0}}, ["sigma_min", "-1.0"]),
        ({"diffusion": {"rho": 0}}, ["rho", "0"]),
        ({"diffusion": {"sigma_data": 0}}, ["sigma_data", "0"]),
        ({"diffusion": {"type": "VP", "sigma_data": [1.0, 2.0]}}, ["sigma_data", "[1.0, 2.0]"]),
        ({"sampling": {"sampler": "huen"}}, ["sampling.sampler", "'huen'", "'heun'"]),
        ({"sampling": {"steps": 0}}, ["num_steps", "0"]),
        ({"sampling": {"steps": 2.5}}, ["sampling.steps", "2.5"]),
        ({"sampling": {"sampler": "euler", "alpha": 0.5}}, ["sampling.alpha", "heun"]),
        ({"sampling": {"s_churn": 40}}, ["sampling.s_churn", "40", "heun"]),
        ({"sampling": {"sampler": "heun", "s_min": 0.5}}, ["s_min", "s_churn"]),
        ({"sampling": {"sampler": "heun", "s_churn": -1}}, ["S_churn", "-1"]),
        ({"sampling": {"sampler": "lms", "order": 5}}, ["order", "5"]),
        ({"sampling": {"sampler": "ddim", "eta": -0.5}}, ["eta", "-0.5"]),
        ({"sampling": {"sampler": "restart", "intervals": [[0.3, 0.06, 2, 2]]}}, ["intervals", "0.3", "0.06"]),
        ({"sampling": {"sampler": "restart", "intervals": "all"}}, ["sampling.intervals", "'all'"]),
        ({"sampling": {"steps": True}}, ["sampling.steps", "True"]),
        ({"diffusion": {"p_mean": float("nan")}}, ["P_mean", "nan"]),
        ({"diffusion": {"type": "iDDPM", "m": 0}}, ["M is 0"]),
        ({"diffusion": {"sigma_data": []}}, ["sigma_data", "one a channel"]),
        ({"data": {"path": "x.npz", "source": "digits"}}, ["data.source", "'digits'", "x.npz"]),
        ({"data": {"source": "file"}}, ["data.path is not given", "data.path=PATH"]),
        ({"data": {"std": 0.5}}, ["data.std is 0.5", "'auto'", "standardise"]),
        ({"data": {"std": 0.5, "transform": "min_max"}}, ["data.std is 0.5", "'min_max'"]),
        ({"data": {"std": 0, "transform": "standardise"}}, ["data.std is 0"]),
        ({"data": {"max_bytes": 0}}, ["data.max_bytes is 0"]),
        ({"network": {"type": "song_unet", "resolution": 32}}, ["network.resolution is 32", "the data decide it"]),
        ({"data": {"source": "digit"}}, ["data.source", "'digit'", "'digits'"]),
        ({"data": {"held_out": 1.0}}, ["held_out", "1.0"]),
        ({"network": {"type": "unett"}}, ["network.type", "'unett'", "'unet'"]),
        ({"network": {"type": "mlp", "channel_mult": [1]}}, ["network.channel_mult", "unet"]),
        ({"network": {"chanels": 3}}, ["network", "chanels", "'channels'"]),
        ({"training": {"leraning_rate": 1}}, ["leraning_rate"]),
        ({"training": {"batch_size": 0}}, ["batch_size", "0"]),
        ({"output": "runs"}, ["output", "'runs'"]),
        ([1], ["[1]"]),
    ],
)
def test_bad_input(document, words):
    with pytest.raises(InputError) as caught:
        build(document)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_overrides():
    changed = override(
        {"training": {"lr": 1}}, ["training.lr=2e-1", "diffusion.type=VP", "network.channel_mult=[1, 2]"]
    )
    assert changed == {"training": {"lr": "2e-1"}, "diffusion": {"type": "VP"}, "network": {"channel_mult": [1, 2]}}
    for text in ("lr=1", "training.lr", "training.=1"):
        with pytest.raises(InputError, match="of the form section"):
            override({}, [text])


def test_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Config.load(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="not YAML"):
        Config.load(tmp_path / "bad.yaml")
    (tmp_path / "digits.yaml").write_text(TWO_LINES)
    config = Config.load(tmp_path / "digits.yaml", ["sampling.steps=7"])
    assert config.formulation().num_steps == 7
    assert config.output.directory == "runs/digits"


def random_set(*shape, n=8, **options):
    return data.from_arrays(np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32), **options)


def refused(config, dataset, *words):
    with pytest.raises(InputError) as caught:
        config.model(dataset)
    for word in words:
        assert word in str(caught.value)


SMALL = {"song_unet": {"embedding": "fourier"}, "adm": {}, "edm2_unet": {}}


@pytest.mark.parametrize("kind", SMALL)
def test_the_data_decide_the_resolution(kind):
    network = {"type": kind, "channels": 8, "channel_mult": [1, 2, 2], "blocks": 1, "attention_resolutions": [3]}
    config = of(network=network | SMALL[kind], training={"augment": 0.1})
    model = config.model(random_set(2, 12, 20, labels=np.arange(8) % 3))
    assert model.network.config["resolution"] == 12  # the height
    assert model.network.config["in_channels"] == 2
    assert model.network.config["label_dim"] == 3
    assert model.network.config["augment_dim"] == LABELS
    assert model.sample(1, num_steps=2, labels=1, progress=False).shape == (1, 2, 12, 20)
    for shape in ((2, 12, 18), (2, 6, 12)):
        refused(config, random_set(*shape), repr(kind), "3 levels", "multiple of 4", str(shape))
    refused(config, random_set(2, 16, 16), "attention_resolutions contains 3", "16, 8, 4", "(2, 16, 16)")


class Sequences(data.DataSet):
    def __len__(self):
        return 16

    def __getitems__(self, indices):
        t = torch.linspace(0, 1, self.shape[1])
        return torch.stack([torch.sin((i + 1) * t).expand(self.shape) for i in indices]), {}


def test_the_data_decide_the_dimensions_of_a_transformer():
    network = {"type": "dit", "patch": 4, "channels": 16, "blocks": 1, "heads": 2}
    for dataset, dimensions in ((random_set(3, 8, 12), 2), (Sequences((2, 20)), 1)):
        model = of(network=network).model(dataset)
        assert model.network.config["dimensions"] == dimensions
        assert model.sample(1, num_steps=2, progress=False).shape == (1, *dataset.shape)
    for dataset in (random_set(3, 8, 10), Sequences((2, 18))):
        refused(of(network=network), dataset, "network.patch is 4", "multiple of 4", str(dataset.shape))
    assert of().model(Sequences((2, 18))).network.name == "dit"


@pytest.mark.parametrize(
    ("kind", "dataset", "words"),
    [
        ("dit", random_set(5), ["'dit'", "sequences [C, L]", "images and fields [C, H, W]", "(5,)", "mlp"]),
        ("edm2_unet", random_set(5), ["'edm2_unet'", "(5,)", "mlp"]),
        ("unet", Sequences((2, 8)), ["'unet'", "(2, 8)", "dit"]),
        ("mlp", random_set(1, 8, 8), ["'mlp'", "vectors [D]", "(1, 8, 8)", "dit", "unet"]),
    ],
)
def test_data_that_a_network_cannot_take(kind, dataset, words):
    refused(of(network={"type": kind}), dataset, *words)


def test_the_uncertainty_is_the_published_one_beside_the_published_network():
    small = {"channels": 8, "channel_mult": [1, 2], "blocks": 1}
    for kind, expected in (("edm2_unet", True), ("unet", None)):
        network = {"type": kind} | small | ({"attention_resolutions": []} if kind == "edm2_unet" else {})
        model = of(network=network, training={"uncertainty": True}).model(random_set(1, 8, 8))
        assert model.uncertainty.config.get("magnitude_preserving") == expected
        assert of(network=network).model(random_set(1, 8, 8)).uncertainty is None


def test_standardised_data_have_the_std_asked_for():
    values = np.random.default_rng(0).normal([5.0, -1.0], [3.0, 0.1], (500, 2)).astype(np.float32)
    dataset = data.from_arrays(values)
    for std in (0.5, 1.0):
        config = of(data={"transform": "standardise", "std": std}, network={"type": "mlp", "channels": 8, "blocks": 1})
        moments = data.moments(dataset, config.transform(dataset))
        torch.testing.assert_close(moments.std, torch.full((2,), std, dtype=torch.float64), rtol=1e-5, atol=0)
        torch.testing.assert_close(moments.mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5)
        model = config.model(dataset)
        assert model.formulation.preconditioning.sigma_data == pytest.approx(std, rel=1e-5)
        back = model.transform.inverse(model.transform.forward(torch.from_numpy(values)))
        torch.testing.assert_close(back, torch.from_numpy(values), rtol=1e-5, atol=1e-5)


def test_the_memory_that_data_may_take(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((10, 4), np.float32))
    section = {"path": str(tmp_path / "x.npz")}
    assert len(of(data=section).datasets()[0]) == 8
    with pytest.raises(InputError, match=r"160 bytes.*max_bytes is 159"):
        of(data=section | {"max_bytes": 159}).datasets()
