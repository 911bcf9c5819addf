"""Published networks: the originals' numbers from their own names and arguments, and files that want to run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from edmund import model, pretrained
from edmund.errors import InputError

GOLDEN = ["ddpmpp_edm", "ddpmpp_vp", "ncsnpp_edm", "ncsnpp_ve", "adm_edm", "adm_iddpm", "edm2"]
FORMULATIONS = {"edm": "EDM", "vp": "VP", "ve": "VE", "iddpm": "iDDPM", "edm2": "EDM"}


def golden(shared: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """The original state, its config, and the file's inputs and outputs."""
    with safe_open(shared / "golden" / f"network_{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, no dict)
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return state, config, {key.removeprefix("io."): value for key, value in tensors.items() if key.startswith("io.")}


def denoised(made: model.Model, given: dict[str, Tensor]) -> Tensor:
    condition = {"labels": given["class_labels"]} if "class_labels" in given else {}
    if "augment_labels" in given:
        condition["augment_labels"] = given["augment_labels"]
    with torch.no_grad():
        return made.denoiser(given["x"], given["sigma"], **condition)


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_originals_numbers(shared: Path, tmp_path: Path, name: str) -> None:
    state, config, given = golden(shared, name)
    made = pretrained.from_state_dict(state, config)
    assert made.formulation.name == FORMULATIONS[name.split("_")[-1]]
    assert made.shape == tuple(given["x"].shape[1:])
    assert made.num_classes == config["label_dim"]
    out = denoised(made, given)
    assert apart(out, given["denoised"]) < 1e-5
    again = model.load(made.save(tmp_path / "model"))
    assert torch.equal(denoised(again, given), out)
    if name == "edm2":
        expected = given["logvar"].flatten()
        assert apart(again.denoiser.uncertainty(given["sigma"]), expected) < 1e-5


def test_half_precision(shared: Path) -> None:
    state, config, given = golden(shared, "edm2")
    made = pretrained.from_state_dict({name: value.half() for name, value in state.items()}, config)
    assert {parameter.dtype for parameter in made.network.parameters()} == {torch.float32}
    assert apart(denoised(made, given), given["denoised"]) < 1e-2


def test_a_learned_variance_samples(shared: Path) -> None:
    state, config, _ = golden(shared, "adm_iddpm")
    drawn = pretrained.from_state_dict(state, config).sample(2, num_steps=3, seeds=[0, 1])
    assert isinstance(drawn, Tensor)
    assert drawn.shape == (2, 3, 16, 16)
    assert drawn.isfinite().all()


def test_the_first_parameter_that_does_not_fit_is_named(shared: Path) -> None:
    state, config, _ = golden(shared, "ddpmpp_vp")
    name = "model.map_layer1.weight"
    wrong = state | {name: torch.zeros(2, 5)}
    with pytest.raises(InputError, match=rf"{name} has shape \(2, 5\) in the state and \(128, 128\) in the network"):
        pretrained.from_state_dict(wrong, config)
    with pytest.raises(InputError, match=rf"{name} has shape None in the state and \(128, 128\)"):
        pretrained.from_state_dict({key: value for key, value in state.items() if key != name}, config)
    with pytest.raises(InputError, match=r"other has shape \(1,\) in the state and None"):
        pretrained.from_state_dict(state | {"other": torch.zeros(1)}, config)
    with pytest.raises(InputError, match=f"{name} in torch.int64"):
        pretrained.from_state_dict(state | {name: torch.zeros(128, 128, dtype=torch.int64)}, config)


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        ({"cls": "EDMPrecon"}, "did you mean 'EDMPrecond'"),
        ({"model_type": "UNet"}, "model_type of VPPrecond"),
        ({"encoder": "standard"}, "did you mean 'encoder_type'"),
        ({"sigma_data": 0.5}, "config argument of VPPrecond: 'sigma_data'"),
        ({"img_channels": 0}, "img_channels is 0"),
        ({"img_resolution": "16"}, "img_resolution is '16'"),
        ({"channel_mult": None}, "channel_mult|VPPrecond"),
        ({"channel_mult": [1, 10**15]}, "VPPrecond"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"model_channels": 64}, "has shape"),
        ({"beta_d": "19.9"}, "beta_d is '19.9'"),
    ],
)
def test_bad_config(shared: Path, change: dict[str, Any], tells: str) -> None:
    state, config, _ = golden(shared, "ddpmpp_vp")
    with pytest.raises(InputError, match=tells) as error:
        pretrained.from_state_dict(state, config | change)
    assert "\n" not in str(error.value)


def test_a_variant_of_edm2_that_is_another_function_is_refused(shared: Path) -> None:
    state, config, given = golden(shared, "edm2")
    with pytest.raises(InputError, match=r"concat_balance is 0\.3; it must be 0\.5"):
        pretrained.from_state_dict(state, config | {"concat_balance": 0.3})
    same = pretrained.from_state_dict(state, config | {"concat_balance": 0.5, "use_fp16": True, "cls": "Precond"})
    assert apart(denoised(same, given), given["denoised"]) < 1e-5
    without = {name: value for name, value in state.items() if not name.startswith("logvar_")}
    assert not pretrained.from_state_dict(without, config).denoiser.has_uncertainty
