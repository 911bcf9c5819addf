"""Models: saved and loaded to the last bit, sampled in the user's units; damaged and foreign folders refused."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import shutil
import struct

import pytest
import torch
from torch import nn

import edmund
from edmund import formulation, networks, preconditioning, transform
from edmund.errors import InputError
from edmund.formulation import Formulation
from edmund.model import Model, load

F64 = torch.float64


def filled(network, seed=0):
    """The network with all its weights random: those that start at zero would make it trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.7 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def mlp_model(uncertainty=None, parts=None, seed=0):
    network = filled(networks.MLP(3, channels=16, blocks=1, label_dim=4), seed)
    return Model(
        network,
        parts or formulation.EDM(0.5),
        transform.Standardise([1.0, 20.0, -3.0], [0.1, 5.0, 2.0]),
        shape=(3,),
        uncertainty=uncertainty,
        class_names=["a", "b", "c", "d"],
    )


def unet_model():
    network = filled(networks.UNet(2, channels=8, image_channels=1))
    return Model(network, formulation.Flow(), transform.Log1p(), shape=(2, 5, 6))


LABELS = torch.tensor([0, 1, 2, 3, -1])
IMAGE = torch.linspace(-1, 1, 150).reshape(5, 1, 5, 6)


def drawn(model):
    condition = {"labels": LABELS} if len(model.shape) == 1 else {"image": IMAGE}
    return model.sample(5, num_steps=4, progress=False, **condition)


@pytest.fixture
def saved(tmp_path):
    return mlp_model().save(tmp_path / "model")


@pytest.mark.parametrize("make", [mlp_model, unet_model])
def test_saved_and_loaded_samples_are_the_same_bits(make, tmp_path, device):
    model = make()
    again = load(model.save(tmp_path / "deep" / "folder"))
    assert torch.equal(drawn(again), drawn(model))
    assert again.formulation == model.formulation and again.transform == model.transform
    assert again.shape == model.shape and again.class_names == model.class_names
    assert again.network.config == model.network.config and type(again.network) is type(model.network)
    assert not again.network.training
    there = load(tmp_path / "deep" / "folder", device=device)
    assert next(there.network.parameters()).device.type == device.type
    torch.testing.assert_close(drawn(there), drawn(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(formulation.named()))
def test_every_formulation_is_kept(name, tmp_path):
    make = formulation.named()[name]
    parts = make((0.5, 1.0, 2.0)) if name == "EDM" else make()
    model = mlp_model(parts=parts)
    again = load(model.save(tmp_path))
    assert again.formulation == parts
    x, sigma = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64),
        torch.logspace(-1, 1, 5, dtype=F64),
    )
    assert torch.equal(again.denoiser(x, sigma, labels=LABELS), model.denoiser(x, sigma, labels=LABELS))
    assert (again.denoiser.sigma_min, again.denoiser.sigma_max) == parts.trained_range
    assert hasattr(again.denoiser, "round_sigma") == (name == "iDDPM")


def test_uncertainty_is_kept(tmp_path):
    u = filled(networks.Uncertainty(32))
    model = mlp_model(uncertainty=u)
    again = load(model.save(tmp_path))
    sigma = torch.logspace(-2, 2, 9)
    assert torch.equal(again.denoiser.uncertainty(sigma), model.denoiser.uncertainty(sigma))
    assert again.denoiser.uncertainty(sigma).std() > 0
    assert not load(mlp_model().save(tmp_path)).denoiser.has_uncertainty


def test_low_precision_weights_stay_what_they_are(tmp_path):
    model = mlp_model()
    model.network.to(torch.bfloat16)
    again = load(model.save(tmp_path))
    assert {parameter.dtype for parameter in again.network.parameters()} == {torch.bfloat16}
    assert torch.equal(drawn(again), drawn(model))


def test_a_loaded_model_can_be_trained_further(saved):
    model = load(saved)
    loss = model.denoiser(torch.randn(5, 3), torch.tensor(1.0), labels=LABELS).square().mean()
    loss.backward()
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert model.network.linear_in.weight.grad.abs().sum() > 0


def test_the_folder(saved):
    """Two files; a readable config; safetensors with its length-prefixed JSON header, and nothing pickled."""
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert config["network"] == {"type": "mlp", **mlp_model().network.config}
    assert config["formulation"]["preconditioning"] == {"type": "EDM", "sigma_data": 0.5}
    assert config["transform"] == {"type": "standardise", "mean": [1.0, 20.0, -3.0], "std": [0.1, 5.0, 2.0]}
    content = (saved / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = {f"network.{name}": list(value.shape) for name, value in mlp_model().network.state_dict().items()}
    assert {name: entry["shape"] for name, entry in tensors.items()} == expected
    assert len(content) == 8 + length + max(entry["data_offsets"][1] for entry in tensors.values())
    assert config["weights"]["bytes"] == len(content)


def test_nothing_is_ever_unpickled(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    load(saved)
    # A pickle in the weights' place is refused as damaged, also with a config that vouches for its bytes.
    content = pickle.dumps({"network.linear_in.weight": 1})
    (saved / "model.safetensors").write_bytes(content)
    import hashlib

    edit(
        saved,
        weights={"file": "model.safetensors", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    )
    with pytest.raises(InputError, match="damaged"):
        load(saved)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def message(call):
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_altered_and_truncated_weights(saved):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for damaged, word in (
        (content[:-1], "damaged"),
        (content[: len(content) // 2], "damaged"),
        (b"", "damaged"),
        (content + b"\0", "damaged"),
        (content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], "altered"),
        (bytes([content[0] ^ 1]) + content[1:], "altered"),
    ):
        path.write_bytes(damaged)
        text = message(lambda: load(saved))
        assert word in text and str(path) in text
    path.unlink()
    assert "cannot be read" in message(lambda: load(saved))


def test_weights_of_another_network(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    edit(saved, network=config["network"] | {"channels": 32})
    text = message(lambda: load(saved))
    assert "another network" in text and "16" in text and "32" in text
    edit(saved, network=config["network"] | {"blocks": 2})
    assert "another network" in message(lambda: load(saved))
    edit(saved, network=config["network"])
    load(saved)
    other = unet_model().save(tmp_path / "other")
    shutil.copy(other / "model.safetensors", saved)
    assert "damaged" in message(lambda: load(saved))


def test_foreign_configs(saved, tmp_path):
    assert "no model" in message(lambda: load(tmp_path / "absent"))
    assert "config.json" in message(lambda: load(tmp_path))
    original = json.loads((saved / "config.json").read_text())
    for text in ("", "{", "[]", "3", '{"architectures": ["BertModel"]}', '{"format": 99, "weights": {}}'):
        (saved / "config.json").write_text(text)
        assert "config.json" in message(lambda: load(saved))
    for key, value, word in (
        ("network", {"type": "transformer"}, "'transformer'"),
        ("network", {"type": "mpl"}, "'mlp'"),
        ("network", original["network"] | {"depth": 3}, "depth"),
        ("network", original["network"] | {"channels": -3}, "-3"),
        ("formulation", {"name": "EDM"}, "formulation"),
        ("formulation", original["formulation"] | {"sigma_min": 100.0}, "sigma_min"),
        ("transform", {"type": "whiten"}, "'whiten'"),
        ("shape", [0], "shape"),
    ):
        (saved / "config.json").write_text(json.dumps(original | {key: value}))
        assert word in message(lambda: load(saved)), key
    for key in ("network", "formulation", "transform", "shape", "weights", "class_names", "uncertainty"):
        (saved / "config.json").write_text(json.dumps({k: v for k, v in original.items() if k != key}))
        assert "config.json" in message(lambda: load(saved))


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    text = message(lambda: mlp_model().save(tmp_path / "file"))
    assert "cannot be written" in text and "file" in text
    assert "cannot be written" in message(lambda: mlp_model().save(tmp_path / "file" / "below"))


@pytest.mark.parametrize(("failing", "at"), [("fsync", 1), ("fsync", 2), ("replace", 1)])
def test_a_full_disk_leaves_the_old_model(saved, monkeypatch, failing, at):
    """Whichever of the two files no room is left for, the folder still holds the model it held, and no rests."""
    before = drawn(load(saved))
    original, calls = getattr(os, failing), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    other = mlp_model(parts=formulation.EDM(1.5), seed=1)
    monkeypatch.setattr(os, failing, full)
    text = message(lambda: other.save(saved))
    assert "cannot be written: No space left on device" in text and repr(str(saved)) in text
    monkeypatch.undo()
    assert torch.equal(drawn(load(saved)), before)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    other.save(saved)
    assert load(saved).formulation == formulation.EDM(1.5)


class Own(nn.Module):
    """A network that is none of edmund's, and takes any condition."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(4, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x, c_noise, **condition):
        shift = condition.get("shift", 0)
        return self.out(torch.tanh(self.linear(torch.cat([x, c_noise[:, None]], 1)))) + shift


def test_own_networks(tmp_path):
    model = Model(filled(Own(8)), formulation.EDM(0.5), shape=(3,))
    folder = model.save(tmp_path)
    assert json.loads((folder / "config.json").read_text())["network"] == {"type": None, "class": "Own"}
    assert "network is None" in message(lambda: load(folder))
    again = load(folder, network=Own(8))
    options = {"num_steps": 3, "progress": False}
    assert torch.equal(again.sample(4, **options), model.sample(4, **options))
    shifted = model.sample(4, shift=torch.full((4, 1), 5.0), **options)
    assert (shifted - model.sample(4, **options)).abs().max() > 0.1
    assert "another network" in message(lambda: load(folder, network=Own(9)))
    assert "another network" in message(lambda: load(folder, network=nn.Linear(3, 3)))
    theirs = mlp_model().save(tmp_path / "theirs")
    assert "network was given" in message(lambda: load(theirs, network=Own(8)))


def test_a_subclass_is_not_taken_for_its_base(tmp_path):
    class Changed(networks.MLP):
        def forward(self, x, c_noise, **condition):
            return 2 * super().forward(x, c_noise, **condition)

    folder = Model(filled(Changed(3, channels=16, blocks=1)), formulation.EDM(0.5), shape=(3,)).save(tmp_path)
    assert "network is None" in message(lambda: load(folder))


# Sampling in the user's units.


def test_samples_are_in_the_users_units():
    model = mlp_model()
    inside = edmund.sample(model.denoiser, (5, 3), num_steps=4, condition={"labels": LABELS}, progress=False)
    outside = drawn(model)
    assert outside.dtype == torch.float32
    scale, shift = torch.tensor([0.1, 5.0, 2.0], dtype=F64), torch.tensor([1.0, 20.0, -3.0], dtype=F64)
    torch.testing.assert_close(outside.double(), inside * scale + shift, rtol=1e-6, atol=1e-6)
    double = model.sample(5, num_steps=4, labels=LABELS, dtype=F64, progress=False)
    torch.testing.assert_close(double, inside * scale + shift, rtol=1e-12, atol=1e-12)
    path = model.sample(5, num_steps=4, labels=LABELS, progress=False, return_trajectory=True)
    assert torch.equal(path.samples, outside)
    torch.testing.assert_close(path.x[-1], inside, rtol=0, atol=0)  # the way there is in the model's units


def test_conditions_of_model_sample():
    model = mlp_model()
    options = {"num_steps": 3, "progress": False}
    one = model.sample(3, labels=2, **options)
    assert torch.equal(one, model.sample(3, labels=torch.tensor([2]), **options))
    assert torch.equal(one, model.sample(3, labels=[2, 2, 2], **options))
    assert (one - model.sample(3, labels=1, **options)).abs().max() > 1e-4
    assert torch.equal(model.sample(3, **options), model.sample(3, labels=-1, **options))


def test_another_shape_of_the_same_network():
    model = Model(filled(networks.UNet(1, channels=8)), formulation.EDM(0.5), shape=(1, 8, 8))
    out = model.sample(2, shape=(1, 5, 11), num_steps=2, progress=False)
    expected = edmund.sample(model.denoiser, (2, 1, 5, 11), num_steps=2, progress=False)
    assert torch.equal(out, expected.float())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.sample(2, labels=torch.tensor([0, 4])), ["labels", "4", "0 to 3"]),
        (lambda m: m.sample(2, labels=-2), ["labels", "-2"]),
        (lambda m: m.sample(2, labels=torch.tensor([0, 1, 2])), ["labels", "(3,)", "2"]),
        (lambda m: m.sample(2, lables=torch.tensor([0, 1])), ["'lables'", "'labels'"]),
        (lambda m: m.sample(2, num_step=4), ["'num_step'", "'num_steps'"]),
        (lambda m: m.sample(2, S_churn=4), ["'S_churn'"]),
        (lambda m: m.sample(0), ["n is 0"]),
        (lambda m: m.sample(2, num_steps=0), ["num_steps", "0"]),
        (lambda m: m.sample(2, sampler="huen"), ["'huen'", "'heun'"]),
        (lambda m: m.sample(2, sigma_max=90.0), ["sigma_max", "90.0", "0.002", "80"]),
        (lambda m: m.sample(2, sigma_min=0.001), ["sigma_min", "0.001", "0.002"]),
        (lambda m: unet_model().sample(2, labels=1), ["labels", "1"]),
        (lambda m: unet_model().sample(2), ["image"]),
        (lambda m: Model(networks.MLP(3), formulation.EDM(), shape=(3,)), ["sigma_data", "None"]),
        (lambda m: Model(networks.MLP(3), formulation.EDM(1.0), shape=(0,)), ["shape", "0"]),
    ],
)
def test_bad_input(call, words):
    text = message(lambda: call(mlp_model()))
    assert all(word in text for word in words), text


# The hub: the same folder, up and down.


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub in a folder."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    repositories = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            assert private and exist_ok
            (repositories / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, repositories / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}"

    def snapshot_download(repo_id, allow_patterns):
        if not (repositories / repo_id).is_dir():
            raise OSError(f"Repository {repo_id} not found\nand a long explanation")
        assert set(allow_patterns) == {"config.json", "model.safetensors"}  # no code comes along
        return str(repositories / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repositories


def test_hub_up_and_down(hub):
    model = mlp_model()
    assert model.push_to_hub("me/digits") == "https://hub/me/digits"
    assert sorted(path.name for path in (hub / "me/digits").iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(drawn(load("hf://me/digits")), drawn(model))


def test_hub_failures_are_one_line(hub, monkeypatch):
    import huggingface_hub

    text = message(lambda: load("hf://me/absent"))
    assert "'hf://me/absent'" in text and "Repository me/absent not found" in text

    def offline(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "Name or service not known" in message(lambda: load("hf://me/digits"))
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", offline)
    text = message(lambda: mlp_model().push_to_hub("me/digits"))
    assert "'me/digits'" in text and "Name or service not known" in text


def test_a_formulation_of_ones_own_parts_cannot_be_saved(tmp_path):
    class Mine(preconditioning.Epsilon):
        pass

    parts = formulation.VP()
    own = Formulation(**{**vars(parts), "preconditioning": Mine()})
    text = message(lambda: Model(networks.MLP(3), own, shape=(3,)).save(tmp_path / "model"))
    assert "preconditioning" in text
    assert not (tmp_path / "model").exists()


def test_a_model_is_not_a_denoiser():
    assert "denoiser is a Model; use its own sample" in message(lambda: edmund.sample(mlp_model(), (2, 3)))
