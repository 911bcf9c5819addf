"""The command line as a person uses it: one tiny run, then every command on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import error_line, run
from PIL import Image

import edmund
from edmund import guidance, presets, samplers
from edmund.config import Config
from edmund.errors import InputError

CONFIG = """
diffusion: {type: EDM}
sampling: {sampler: heun, steps: 4}
network: {type: unet, channels: 8, channel_mult: [1, 2], attention_levels: []}
training: {samples: 2048, batch_size: 64, lr_ramp: 0, label_dropout: 0.2, ema_halflife: 256, log_interval: 256,
           checkpoint_interval: 1024, validation_interval: 1024, preview_interval: 1024}
output: {directory: %s}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a config `tiny.yaml` and its finished run `tiny`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(CONFIG % "tiny")
    run("train", "tiny.yaml", cwd=folder)
    return folder


def test_train_writes_a_run_and_goes_on(folder):
    names = {path.name for path in (folder / "tiny").iterdir()}
    assert {"config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "checkpoints", "previews"} <= names
    before = (folder / "tiny/model.safetensors").read_bytes()
    assert "finished already" in run("train", "tiny.yaml", "--resume", cwd=folder).stderr
    assert (folder / "tiny/model.safetensors").read_bytes() == before
    assert Image.open(next((folder / "tiny/previews").glob("*.png"))).size[0] > 64


def test_another_run_in_the_folder_is_refused(folder):
    assert "formulation.name is 'EDM' there and 'VP' here" in error_line(
        "train", "tiny.yaml", "--set", "diffusion.type=VP", cwd=folder
    )
    assert "network" in error_line("train", "tiny.yaml", "--set", "network.channels=16", cwd=folder)
    assert "batch_size" in error_line("train", "tiny.yaml", "--set", "training.batch_size=32", cwd=folder)


def test_dry_run_prints_a_config_that_loads(folder):
    import yaml

    text = run("train", "tiny.yaml", "--dry-run", "--set", "training.lr=0.5", cwd=folder).stdout
    document = yaml.safe_load(text)
    assert document["training"]["lr"] == 0.5
    assert document["diffusion"]["rho"] == 7.0
    assert document["network"]["blocks"] >= 1
    assert "parameters" in text


def test_sample(folder):
    out = run(
        "sample", "tiny", "--seeds", "0-9,40", "--labels", "3,7", "--steps", 3, "--out", "a", "--trajectory", cwd=folder
    ).stdout
    assert [Path(line).name for line in out.split()] == ["samples.npz", "samples.png", "trajectory.png"]
    with np.load(folder / "a/samples.npz", allow_pickle=False) as file:
        assert file["seeds"].tolist() == [*range(10), 40]
        assert file["labels"].tolist() == [3, 7] * 5 + [3]
        assert file["x"].shape == (4, 11, 1, 8, 8)
        samples = file["samples"]
    # The same seeds in another batch size and through the library.
    run("sample", "tiny", "--seeds", "40", "--labels", "3", "--steps", 3, "--out", "b", "--batch-size", 1, cwd=folder)
    with np.load(folder / "b/samples.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["samples"][0], samples[10], atol=1e-4)
    again = edmund.load(folder / "tiny").sample(1, seeds=[40], labels=3, num_steps=3, progress=False)
    np.testing.assert_allclose(again[0].numpy(), samples[10], atol=1e-4)


def test_sample_with_churn_differs(folder):
    run("sample", "tiny", "-n", 2, "--out", "plain", cwd=folder)
    run("sample", "tiny", "-n", 2, "--out", "churned", "--sampler", "euler", "--s-churn", 20, cwd=folder)
    with np.load(folder / "plain/samples.npz") as plain, np.load(folder / "churned/samples.npz") as churned:
        assert abs(plain["samples"] - churned["samples"]).max() > 0.1


def drawn(folder, *arguments):
    run("sample", "tiny", "-n", 4, "--out", "drawn", *arguments, cwd=folder)
    with np.load(folder / "drawn/samples.npz", allow_pickle=False) as file:
        return file["samples"]


def test_sample_with_another_sampler_is_the_librarys(folder):
    model = edmund.load(folder / "tiny")
    labels = torch.arange(4)
    ours = drawn(folder, "--sampler", "dpmpp_2m", "--steps", 6)
    library = model.sample(4, labels=labels, sampler="dpmpp_2m", num_steps=6, progress=False)
    np.testing.assert_allclose(ours, library.numpy(), atol=1e-4)
    ours = drawn(folder, "--sampler", "lms", "--set", "order=2", "--steps", 6)
    library = model.sample(4, labels=labels, sampler=samplers.LMS(order=2), num_steps=6, progress=False)
    np.testing.assert_allclose(ours, library.numpy(), atol=1e-4)
    # Arguments of the run's own sampler, without naming it.
    ours = drawn(folder, "--set", "alpha=0.5")
    library = model.sample(4, labels=labels, sampler="midpoint", progress=False)
    np.testing.assert_allclose(ours, library.numpy(), atol=1e-4)


def test_sample_with_guidance(folder):
    model = edmund.load(folder / "tiny")
    ours = drawn(folder, "--guidance", "2.0", "--interval", "0.3,5")
    guided = guidance.ClassifierFree(model.denoiser, 2.0, (0.3, 5.0))
    library = model.sample(4, labels=torch.arange(4), denoiser=guided, progress=False)
    np.testing.assert_allclose(ours, library.numpy(), atol=1e-4)
    plain = drawn(folder)
    assert abs(ours - plain).max() > 0.1
    np.testing.assert_array_equal(drawn(folder, "--guidance", "1", "--interval", "0.3,5"), plain)
    np.testing.assert_array_equal(
        drawn(folder, "--guidance", "1", "--labels", "none"), drawn(folder, "--labels", "none")
    )


def test_samplers_are_listed(folder):
    text = run("samplers", cwd=folder).stdout
    listed = [line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")]
    assert set(samplers.named()) <= set(listed)


def test_evaluate_and_diagnose(folder):
    run("evaluate", "tiny", "-n", 100, cwd=folder)
    metrics = json.loads((folder / "tiny/evaluation/metrics.json").read_text())
    assert metrics["counts"]["samples"]["given"] == 100
    assert metrics["frechet"] > metrics["frechet_real"]
    plain = {"sampler": "Heun(churn=None, alpha=1.0)", "num_steps": 4, "guidance": None, "precision": "fp32"}
    assert metrics["sampling"] == plain
    asked = ("--sampler", "euler", "--steps", 2, "--guidance", 2, "--interval", "0.3,inf", "--precision", "bf16")
    run("evaluate", "tiny", "-n", 20, *asked, "--out", "guided", cwd=folder)
    assert json.loads((folder / "guided/metrics.json").read_text())["sampling"] == {
        "sampler": "Euler(churn=None)",
        "num_steps": 2,
        "guidance": {"w": 2.0, "interval": "0.3,inf"},
        "precision": "bf16",
    }
    text = run("diagnose", "tiny", cwd=folder).stdout
    assert "sigma_data 0.75" in text
    found = json.loads((folder / "tiny/diagnosis/diagnosis.json").read_text())
    at_data = min(range(len(found["sigmas"])), key=lambda i: abs(found["sigmas"][i] - 0.5))
    assert found["current"][at_data] < found["initial"][at_data]
    assert (folder / "tiny/diagnosis/loss_against_sigma.png").is_file()


def test_vectors_get_pictures_too(folder):
    y = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    np.savez(folder / "vectors.npz", x=y, labels=np.arange(200) % 2)
    (folder / "vectors.yaml").write_text(
        "data: {path: vectors.npz}\nnetwork: {channels: 8, blocks: 1}\noutput: {directory: vectors}\n"
        "training: {samples: 640, batch_size: 64, lr_ramp: 0}\n"
    )
    assert "2 classes" in run("train", "vectors.yaml", "--set", "network.type=mlp", cwd=folder).stdout
    run("sample", "vectors", "-n", 20, "--steps", 3, cwd=folder)
    run("evaluate", "vectors", "-n", 40, "--steps", 3, cwd=folder)
    assert (folder / "vectors/samples/samples.png").is_file()
    assert (folder / "vectors/evaluation/samples.png").is_file()


def test_usage_errors_are_one_line_too(folder):
    assert "No such option" in error_line("train", "tiny.yaml", "--nope", cwd=folder)
    assert "'-n'" in error_line("sample", "tiny", "-n", "abc", cwd=folder)


def test_the_module_runs_and_fails_in_one_line(folder):
    command = [sys.executable, "-m", "edmund", "sample", "nowhere"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_formulations(folder):
    text = run("formulations", cwd=folder).stdout
    for name in edmund.formulation.named():
        assert name in text
    assert (folder / "formulations.png").is_file()


def test_convert(folder, shared):
    golden = shared / "golden/network_ddpmpp_edm.safetensors"
    lines = run("convert", golden, "converted", cwd=folder).stdout.splitlines()
    assert lines[0] == "converted" and lines[1].startswith("EDM, 3 x 16 x 16, 4 classes")
    run("sample", "converted", "-n", 2, "--steps", 2, cwd=folder)
    assert (folder / "converted/samples/samples.png").is_file()
    assert "not empty" in error_line("convert", golden, "converted", cwd=folder)
    assert "tiny.yaml" in error_line("convert", "tiny.yaml", "other", cwd=folder)


def test_bad_input_is_one_line(folder):
    assert "--sampler" in error_line("sample", "tiny", "--sampler", "huen", cwd=folder)
    assert "labels holds 12" in error_line("sample", "tiny", "--labels", "12", cwd=folder)
    assert "'5-1'" in error_line("sample", "tiny", "--seeds", "5-1", cwd=folder)
    assert "sigma_max is 500" in error_line("sample", "tiny", "--sigma-max", "500", cwd=folder)
    assert "num_steps is 0" in error_line("sample", "tiny", "--steps", "0", cwd=folder)
    assert "--s-churn" in error_line("sample", "tiny", "--s-min", "1", cwd=folder)
    assert "--interval" in error_line("sample", "tiny", "--interval", "1,2", cwd=folder)
    assert "'5'" in error_line("sample", "tiny", "--guidance", "2", "--interval", "5", cwd=folder)
    assert "interval is (5.0, 0.3)" in error_line(
        "sample", "tiny", "--guidance", "2", "--interval", "5,0.3", cwd=folder
    )
    assert "'garbage'" in error_line("sample", "tiny", "--guidance", "1", "--interval", "garbage", cwd=folder)
    assert "--labels is 'none'" in error_line("sample", "tiny", "--guidance", "3", "--labels", "none", cwd=folder)
    assert "w is nan" in error_line("sample", "tiny", "--guidance", "nan", cwd=folder)
    assert "order" in error_line("sample", "tiny", "--sampler", "lms", "--set", "order=9", cwd=folder)
    assert "alpha" in error_line("sample", "tiny", "--sampler", "lms", "--set", "alpha=1", cwd=folder)
    assert "--set 'order'" in error_line("sample", "tiny", "--sampler", "lms", "--set", "order", cwd=folder)
    assert "no churn" in error_line("sample", "tiny", "--sampler", "lms", "--s-churn", "1", cwd=folder)
    (folder / "undropped").mkdir(exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        (folder / "undropped" / file).write_bytes((folder / "tiny" / file).read_bytes())
    config = (folder / "tiny/config.yaml").read_text()
    (folder / "undropped/config.yaml").write_text(config.replace("label_dropout: 0.2", "label_dropout: 0.0"))
    assert "label_dropout 0" in error_line("sample", "undropped", "--guidance", "2", cwd=folder)
    assert "holds no model" in error_line("sample", "nowhere", cwd=folder)
    assert "'nowhere.yaml'" in error_line("train", "nowhere.yaml", cwd=folder)
    assert "'EDN'" in error_line("demo", "--type", "EDN", cwd=folder)
    assert "device is 'gpu'" in error_line("sample", "tiny", "--device", "gpu", cwd=folder)
    (folder / "file").write_text("")
    assert "'file'" in error_line("sample", "tiny", "--out", "file", cwd=folder)
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken/config.json").write_bytes((folder / "tiny/config.json").read_bytes())
    (folder / "broken/model.safetensors").write_bytes((folder / "tiny/model.safetensors").read_bytes()[:-10])
    assert "damaged" in error_line("sample", "broken", cwd=folder)


@pytest.fixture(scope="module")
def tiny_mnist(folder):
    """28 x 28 digits of 10 classes, and what makes `mnist-small` short."""
    x = np.random.default_rng(0).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    labels = np.arange(80) % 10
    arrays = {"train_images": x[:60], "train_labels": labels[:60]}
    np.savez(folder / "tiny_mnist.npz", **arrays, test_images=x[60:], test_labels=labels[60:])
    changes = ["data.path=tiny_mnist.npz", "network.channels=8", "sampling.steps=2", "training.samples=64"]
    changes += ["training.batch_size=16", "training.lr_ramp=16", "training.log_interval=16"]
    return [part for change in changes for part in ("--set", change)]


def test_train_a_preset_and_go_on(folder, tiny_mnist):
    import yaml

    command = ("train", "--preset", "mnist-small", *tiny_mnist, "--set", "training.preview_interval=null")
    done = run(*command, cwd=folder)
    assert "note" not in done.stdout
    assert "edmund sample runs/mnist-small" in done.stdout
    document = yaml.safe_load((folder / "runs/mnist-small/config.yaml").read_text())
    assert document["data"]["path"] == "tiny_mnist.npz"
    preset = presets.find("mnist-small").document
    assert document["network"]["channel_mult"] == preset["network"]["channel_mult"]
    assert document["training"]["lr"] == preset["training"]["lr"]
    assert "finished already" in run(*command, "--resume", cwd=folder).stderr
    run("sample", "runs/mnist-small", "-n", 2, cwd=folder)


def test_a_preset_on_other_data_says_so(folder, tiny_mnist):
    text = run(
        "train", "--preset", "mnist-small", *tiny_mnist, "--set", "data.labels=false", "--dry-run", cwd=folder
    ).stdout
    assert "note: preset mnist-small is for samples of shape (1, 28, 28) and 10 classes" in text
    assert "samples of shape (1, 28, 28) and no classes" in text
    assert "note" not in run("train", "--preset", "mnist-small", *tiny_mnist, "--dry-run", cwd=folder).stdout
    line = error_line("train", "--preset", "cifar10-ddpmpp", "--set", "data.path=tiny_mnist.npz", cwd=folder)
    assert "attention_resolutions contains 16" in line and "(1, 28, 28)" in line
    line = error_line("train", "--preset", "edm2-img64-s", "--set", "data.path=tiny_mnist.npz", cwd=folder)
    assert "4 levels" in line and "multiple of 8" in line and "(1, 28, 28)" in line


def test_a_preset_without_data(folder):
    import yaml

    text = run("train", "--preset", "cifar10-ddpmpp", "--dry-run", cwd=folder).stdout
    assert yaml.safe_load(text)["output"]["directory"] == "runs/cifar10-ddpmpp"
    assert "# model: 55,735,299 parameters" in text
    assert "data.path is not given: preset cifar10-ddpmpp wants CIFAR-10" in text
    line = error_line("train", "--preset", "cifar10-ddpmpp", cwd=folder)
    assert "CIFAR-10, 32 x 32" in line and "--set data.path=PATH" in line and "data.size=32" in line
    assert "data.size" not in error_line("train", "--preset", "edm2-img512-xs", cwd=folder)


def test_presets_are_listed_and_printed(folder):
    text = run("presets", cwd=folder).stdout
    listed = [line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")]
    assert set(presets.named()) <= set(listed)
    for word in ("55.74 M", "FID 1.79", "35 NFE", "512", "200 M"):
        assert word in text
    (folder / "own.yaml").write_text(run("presets", "edm2-img64-s", cwd=folder).stdout)
    own = Config.load(folder / "own.yaml")
    assert own.options() == Config.preset("edm2-img64-s").options()
    assert own.document() | {"output": None} == Config.preset("edm2-img64-s").document() | {"output": None}


def test_bad_presets(folder):
    for command in (("train", "--preset"), ("presets",)):
        assert "'mnist-smal' is not known; did you mean 'mnist-small'?" in error_line(
            *command, "mnist-smal", cwd=folder
        )
    assert "neither is given" in error_line("train", cwd=folder)
    assert "'tiny.yaml' and --preset 'mnist-small'" in error_line(
        "train", "tiny.yaml", "--preset", "mnist-small", cwd=folder
    )


def test_labels_of_an_unconditional_model(folder):
    run(
        *("train", "tiny.yaml", "--set", "data.labels=false", "--set", "training.label_dropout=0"),
        *("--set", "training.samples=64", "--set", "output.directory=unlabelled"),
        cwd=folder,
    )
    assert "the model is unconditional" in error_line("sample", "unlabelled", "--labels", "3", cwd=folder)
    assert "no classes to guide" in error_line("sample", "unlabelled", "--guidance", "2", cwd=folder)
    model = edmund.load(folder / "unlabelled")
    for labels in (3, torch.tensor([3, 4]), torch.eye(10)[:2]):
        with pytest.raises(InputError, match=r"labels .*(unconditional|takes none)"):
            model.sample(2, labels=labels, num_steps=2, progress=False)
    assert run("sample", "unlabelled", "-n", 2, "--labels", "none", cwd=folder).stdout
