"""Published networks: the originals' numbers from their own names and arguments, and files that want to run code."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edmund import grid, model, noise_density, pretrained, process, samplers
from edmund.errors import InputError
from edmund.pretrained import snapshot

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


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("the file's objects were made")


class EasyDict(dict):
    pass


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that a snapshot names, so that one can be written."""
    for module, part in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        for name in (module.split(".")[0], module):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        setattr(sys.modules[module], part.__name__, part)
        monkeypatch.setattr(part, "__module__", module)


class Persistent:
    """Pickled as the originals' classes are, with source text that would leave a trace."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = "") -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def layers(state: dict[str, Tensor]) -> dict[str, Any]:
    """The attributes of a module that holds these parameters, its children among them."""
    children: dict[str, dict[str, Tensor]] = {}
    own: dict[str, Any] = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = value
        else:
            own[name] = value
    modules: OrderedDict[str, Any] = OrderedDict()
    for name, values in children.items():
        attributes = layers(values)
        if name in ("enc", "dec"):
            modules[name] = nn.ModuleDict()
            modules[name].__dict__.update(attributes)
        else:
            modules[name] = Persistent("Layer", attributes)
    buffers = {name: own.pop(name) for name in list(own) if name in ("freqs", "phases", "u", "resample_filter")}
    return {
        "training": False,
        "_parameters": OrderedDict({name: nn.Parameter(value) for name, value in own.items()} | {"absent": None}),
        "_buffers": OrderedDict(buffers) | {"transient": torch.zeros(3)},
        "_non_persistent_buffers_set": {"transient"},
        "_backward_hooks": OrderedDict(),
        "_modules": modules,
    }


def network(state: dict[str, Tensor], config: dict[str, Any], source: str = "") -> Persistent:
    arguments = {key: value for key, value in config.items() if key != "cls"}
    init = {"_init_args": (arguments.pop("img_resolution"),), "_init_kwargs": EasyDict(arguments)}
    return Persistent(config.get("cls", "Precond"), layers(state) | init, source)


@pytest.mark.usefixtures("originals")
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("name", ["ddpmpp_edm", "ncsnpp_ve", "adm_iddpm", "edm2"])
def test_a_snapshot_gives_the_originals_numbers(shared: Path, tmp_path: Path, name: str, protocol: int) -> None:
    state, config, given = golden(shared, name)
    sentinel = tmp_path / "sentinel"
    source = f"open({str(sentinel)!r}, 'w')"
    encoder = Persistent("Encoder", {"scale": np.float32([1, 2]), "bias": np.float32(3)}, source)
    snapshot = EasyDict(ema=network(state, config, source), encoder=encoder, dataset_kwargs=EasyDict(path="x"))
    file = tmp_path / "snapshot.pkl"
    file.write_bytes(pickle.dumps(snapshot, protocol))
    made = pretrained.load(file)
    out = denoised(made, given)
    assert apart(out, given["denoised"]) < 1e-5
    assert torch.equal(denoised(model.load(made.save(tmp_path / "model")), given), out)
    assert not sentinel.exists()


@pytest.mark.usefixtures("originals")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_snapshot_in_half_precision(shared: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """As EDM2's are published: all in half precision, the gains (numbers without axes) and the frequencies too."""
    state, config, given = golden(shared, "edm2")
    half = {key: value.to(dtype) for key, value in state.items()}
    gains = {key: value for key, value in half.items() if value.ndim == 0}
    assert any(key.endswith("emb_gain") for key in gains) and "unet.out_gain" in gains
    (tmp_path / "half.pkl").write_bytes(pickle.dumps({"ema": network(half, config | {"use_fp16": True})}))
    made = pretrained.load(tmp_path / "half.pkl")
    own = made.network.state_dict()
    assert {value.dtype for value in own.values()} == {torch.float32}
    assert all(torch.equal(own[key.removeprefix("unet.")], value.float()) for key, value in gains.items())
    out = denoised(made, given)
    assert torch.equal(out, denoised(pretrained.from_state_dict(half, config), given))
    # Weights rounded to 11 or 8 bits: an error of that size relative to the image, no more.
    assert 1e-7 < apart(out, given["denoised"]) < 4 * torch.finfo(dtype).eps
    assert apart(made.denoiser.uncertainty(given["sigma"]), given["logvar"].flatten()) < 4 * torch.finfo(dtype).eps
    again = model.load(made.save(tmp_path / "model"))
    assert torch.equal(denoised(again, given), out)


@pytest.mark.usefixtures("originals")
@pytest.mark.parametrize("name", ["ddpmpp_edm", "edm2"])
def test_the_training_levels_of_the_loss(shared: Path, tmp_path: Path, name: str) -> None:
    state, config, _ = golden(shared, name)
    file = tmp_path / "snapshot.pkl"
    for attributes, expected in (
        ({"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5}, (-0.4, 1.0)),
        ({"P_mean": -1, "P_std": 1.5}, (-1.0, 1.5)),
        ({"P_mean": "-0.4", "P_std": 1.0}, (-1.2, 1.2)),
        ({"beta_d": 19.9}, (-1.2, 1.2)),
    ):
        loss = Persistent("EDM2Loss", attributes)
        file.write_bytes(pickle.dumps(EasyDict(ema=network(state, config), loss_fn=loss)))
        made = pretrained.load(file)
        assert made.formulation.noise_density == noise_density.LogNormal(*expected)
        assert made.denoiser.formulation == made.formulation
    loss = Persistent("EDM2Loss", {"P_mean": -0.4, "P_std": -1.0})
    assert "P_std is -1.0" in refused(file, pickle.dumps({"ema": network(state, config), "loss_fn": loss}))
    file.write_bytes(pickle.dumps({"ema": network(state, config), "loss_fn": None}))
    assert pretrained.load(file).formulation.noise_density == noise_density.LogNormal(-1.2, 1.2)


def test_training_levels_of_another_formulation(shared: Path) -> None:
    state, config, _ = golden(shared, "ddpmpp_vp")
    with pytest.raises(InputError, match=r"P_mean is 0\.1, P_std is None; VP is not trained on log-normal levels"):
        pretrained.from_state_dict(state, config, P_mean=0.1)


@pytest.mark.parametrize("name", GOLDEN)
def test_sampled_as_published(shared: Path, name: str) -> None:
    state, config, _ = golden(shared, name)
    made = pretrained.from_state_dict(state, config)
    parts = made.formulation
    assert made.shape[-1] <= 32
    assert (parts.sampler, parts.num_steps) == (samplers.Heun(), 32 if name == "edm2" else 18)
    assert isinstance(parts.grid, grid.IDDPM if name == "adm_iddpm" else grid.EDM)
    assert parts.process == process.EDM()
    out = made.sample(1, num_steps=4, progress=False)
    assert isinstance(out, Tensor) and bool(out.isfinite().all())


def test_larger_images_take_more_steps(shared: Path) -> None:
    state, config, _ = golden(shared, "ddpmpp_edm")
    for side, steps in ((32, 18), (64, 40)):
        named = {  # the layers' names tell the resolution
            re.sub(r"(\d+)x\d+", lambda found, side=side: "x".join(2 * [str(int(found[1]) * side // 16)]), key): value
            for key, value in state.items()
        }
        made = pretrained.from_state_dict(named, config | {"img_resolution": side, "attn_resolutions": [side // 2]})
        assert made.shape[-1] == side and made.formulation.num_steps == steps


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def view(data: bytes, offset: Any, size: Any, stride: Any) -> Calls:
    storage = Calls(torch.storage._load_from_bytes, data)
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def saved(values: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


FOUR = saved(torch.zeros(4)._typed_storage())


def refused(file: Path, content: bytes) -> str:
    """The one line of the refusal."""
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        pretrained.load(file)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("originals")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_nothing_that_a_file_names_is_called(tmp_path: Path, protocol: int, place: str) -> None:
    sentinel = tmp_path / "sentinel"
    write = f"open({str(sentinel)!r}, 'w').close()"
    calls = {
        f"{os.name}.system": Calls(os.system, f"touch {sentinel}"),
        "eval": Calls(builtins.eval, write),
        "exec": Calls(builtins.exec, write),
        "getattr": Calls(getattr, 1, "real"),
        "Path.touch": Calls(Path.touch, sentinel),
        "torch._utils._rebuild_meta_tensor": Calls(torch._utils._rebuild_meta_tensor_no_storage, 0, 0, 0, False),
        "bytearray": Calls(bytearray, 10**13),
    }
    for name, call in calls.items():
        content = {"ema": call} if place == "outside" else {"ema": Persistent("EDMPrecond", {"_modules": {"a": call}})}
        told = refused(tmp_path / "bad.pkl", pickle.dumps(content, protocol))
        assert "it uses " in told
        assert name.split(".")[-1][:6] in told or "getattr" in told
        nested = {"ema": network({"model.weight": torch.zeros(4)}, {"cls": "EDMPrecond", "img_resolution": 8})}
        layer = nested["ema"].meta["state"]["_modules"]["model"].meta["state"]
        layer["_parameters"] = {"weight": view(saved(call), 0, (4,), (1,))}
        assert "not saved as one storage" in refused(tmp_path / "bad.pkl", pickle.dumps(nested, max(3, protocol)))
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(calls["eval"]))  # noqa: S301 (the file is our own)
    assert sentinel.exists(), "the calls are real ones"


@pytest.mark.usefixtures("originals")
@pytest.mark.parametrize(
    ("tensor", "tells"),
    [
        (view(FOUR, 0, (10**9,), (1,)), "storage of 4 elements"),
        (view(FOUR, 0, (10**9,), (0,)), "storage of 4 elements"),
        (view(FOUR, 1, (4,), (1,)), "storage of 4 elements"),
        (view(FOUR, -1, (4,), (1,)), "storage of 4 elements"),
        (view(FOUR, 0, ("4",), (1,)), "a shape that is none in a storage of 4 elements"),
        (view(FOUR[:-24] + struct.pack("<Q", 10**9) + FOUR[-16:], 0, (4,), (1,)), "claims 1000000000"),
        (view(FOUR[:-24] + struct.pack("<Q", 2**63) + FOUR[-16:], 0, (4,), (1,)), "claims 9223372036854775808"),
        (view(FOUR[:-3], 0, (4,), (1,)), "claims 4 elements of torch.float32 in 13 bytes"),
        (view(FOUR[:-20], 0, (4,), (1,)), "elements of torch.float32 in"),
        (view(FOUR, 0, [[1] * 2] * 2, (1,)), "a shape that is none"),
        (view(FOUR, 0, (1,) * 9, (1,) * 9), "a shape that is none"),
        (view(FOUR, (), (4,), (1,)), "a shape that is none"),
        (view(b"PK\x03\x04", 0, (4,), (1,)), "no snapshot"),
        (view(saved(torch.zeros(4, dtype=torch.int64)._typed_storage()), 0, (4,), (1,)), "floating-point"),
        ("text", "no tensor"),
    ],
)
def test_a_tensor_that_claims_what_it_has_not(tmp_path: Path, tensor: Any, tells: str) -> None:
    assert FOUR.count(b"K\x04N") == 1
    state = {"_parameters": {"weight": tensor}, "_init_kwargs": {}}
    assert tells in refused(tmp_path / "bad.pkl", pickle.dumps({"ema": Persistent("EDMPrecond", state)}))


@pytest.mark.usefixtures("originals")
def test_files_that_are_no_snapshots(tmp_path: Path) -> None:
    file = tmp_path / "bad.pkl"
    good = pickle.dumps({"ema": Persistent("EDMPrecond", {"_init_kwargs": {}})})
    assert "img_channels" in refused(file, good)
    assert "'NewPrecond' is not known" in refused(file, pickle.dumps({"ema": Persistent("NewPrecond", {})}))
    assert "no network under 'ema'" in refused(file, pickle.dumps({"a": 1}))
    assert "no network under 'ema'" in refused(file, pickle.dumps([1]))
    other = Persistent("EDMPrecond", {})
    other.meta["version"] = 7
    assert "version 6" in refused(file, pickle.dumps({"ema": other}))
    assert "is no number" in refused(
        file, pickle.dumps({"ema": Persistent("EDMPrecond", {"_init_kwargs": {"img_channels": {}}})})
    )
    child = Persistent("Layer", {})
    for _ in range(20):  # 2^20 paths
        child = Persistent("Layer", {"_modules": {"a": child, "b": child}})
    assert "twice" in refused(file, pickle.dumps({"ema": child}))
    for _ in range(20):
        child = Persistent("Layer", {"_modules": {"a": child}})
    assert "more than 32 levels" in refused(file, pickle.dumps({"ema": child}))
    for content in (b"", b"text", good[:-9], saved(torch.zeros(2)), b"\x80\x04" + b"\x8e" + struct.pack("<Q", 2**45)):
        assert "no snapshot" in refused(file, content) or "refused" in refused(file, content)
    assert "no network" in refused(file, b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".")
    assert "PERSID" in refused(file, b"\x80\x04K\x01Q.")
    assert "EXT1" in refused(file, b"\x80\x04\x82\x01.")


def doubled(levels: int) -> list[Any]:
    """A list that is short in a file and has 2^levels items when it is printed or walked."""
    made: list[Any] = ["text"]
    for _ in range(levels):
        made = [made, made]
    return made


def arguments(**changes: Any) -> bytes:
    return pickle.dumps({"ema": Persistent("EDMPrecond", {"_init_kwargs": {"img_resolution": 8} | changes})})


@pytest.mark.usefixtures("originals")
def test_a_short_file_that_describes_a_huge_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at once: what is hashed, printed or walked as a tree would take 2^60 steps, or end the interpreter."""
    file = tmp_path / "bad.pkl"
    doubling = b"K\x01K\x01\x86\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
    deep = b")" + b"\x85" * 100_000
    for nested in (doubling, deep):
        assert "a key that is a tuple" in refused(file, b"\x80\x04}" + nested + b"Ns.")
        assert "a key that is a tuple" in refused(file, b"\x80\x04}(" + nested + b"Nu.")
        assert "no network" in refused(file, b"\x80\x04\x8f(" + nested + b"\x90.")  # a set's item
        assert "no network" in refused(file, b"\x80\x04(" + nested + b"\x91.")  # a frozenset's
        made = b"\x80\x02cbuiltins\nset\n(" + nested + b"l\x85R."
        assert "opcode LIST" in refused(file, made)
        assert "no network" in refused(file, made.replace(b"\n(", b"\n](").replace(b"l\x85R.", b"e\x85R."))
        for call in (b"R", b"\x81"):
            assert "of 1 arguments" in refused(
                file, b"\x80\x02ccollections\nOrderedDict\n](" + nested + b"e\x85" + call + b"."
            )
    nothing = {"_init_kwargs": {}}
    for value in (doubled(60), [doubled(60)], (doubled(60),)):
        for tensor in (view(FOUR, value, (4,), (1,)), view(FOUR, 0, value, (1,)), view(FOUR, 0, (4,), value)):
            content = pickle.dumps({"ema": Persistent("EDMPrecond", nothing | {"_parameters": {"w": tensor}})})
            assert len(content) < 2000 and "a shape that is none" in refused(file, content)
        assert "is no number" in refused(file, arguments(img_channels=value))
    assert "opcode LONG4" in refused(file, arguments(img_channels=-(1 << 40000)))
    assert "integer of 71 bits" in refused(file, arguments(img_channels=1 << 70))
    assert "has 100 arguments" in refused(file, arguments(**{str(i): 0 for i in range(99)}))
    many: dict[str, Any] = {f"{i}": None for i in range(3000)}
    modules = {f"{i}": Persistent("Layer", {"_parameters": many}) for i in range(3000)}
    assert "_parameters in it is there twice" in refused(
        file, pickle.dumps({"ema": Persistent("EDMPrecond", nothing | {"_modules": modules})})
    )
    named = Persistent("EDMPrecond", nothing | {"_parameters": {"w" * 300: None}})
    assert "no name" in refused(file, pickle.dumps({"ema": named}))
    monkeypatch.setattr(snapshot, "_MOST_OPCODES", 1000)
    assert "more than 1000 opcodes" in refused(file, b"\x80\x04(" + b"}" * 1001 + b"t.")


@pytest.mark.usefixtures("originals")
def test_a_storage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = snapshot._numbers
    monkeypatch.setattr(snapshot, "_numbers", lambda name, data: reads.append(name) or original(name, data))
    data = saved(torch.arange(50.0)._typed_storage())
    storage = Calls(torch.storage._load_from_bytes, data)
    views = {
        f"{i}": Calls(torch._utils._rebuild_tensor_v2, storage, i, (2, 2), (1, 1), False, OrderedDict())
        for i in range(20)
    }
    other = {"other": view(FOUR, 0, (4,), (1,))}
    state = {"_parameters": dict(list(views.items())[:9]) | other | dict(list(views.items())[9:]), "_init_kwargs": {}}
    file = tmp_path / "views.pkl"
    file.write_bytes(pickle.dumps({"ema": Persistent("EDMPrecond", state)}))
    tensors, _, _ = snapshot.read_snapshot(file)
    assert len(reads) == 2 and list(tensors) == list(state["_parameters"])
    assert all(tensors[f"{i}"].tolist() == [[i, i + 1], [i + 1, i + 2]] for i in range(20))


def test_bad_arguments(shared: Path) -> None:
    state, config, _ = golden(shared, "ddpmpp_vp")
    for bad in (None, 3, [1], {"a": 1}, {1: torch.zeros(1)}, {"model.a": np.zeros(3)}):
        with pytest.raises(InputError, match=r"state is .*mapping of parameter names to tensors"):
            pretrained.from_state_dict(bad, config)  # type: ignore[arg-type]
    for empty in (config, {name: value for name, value in config.items() if name != "num_blocks"}):
        with pytest.raises(InputError, match="the state has only 0 tensors"):
            pretrained.from_state_dict({}, empty)
    with pytest.raises(InputError, match=r"a b has shape \(1,\) in the state and None"):
        pretrained.from_state_dict(state | {"a\nb": torch.zeros(1)}, config)
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for bad, tells in (
        ({"cls": [1]}, "config cls: \\[1\\] is not known"),
        ({"cls": None}, "config cls: None is not known"),
        ({"model_type": [1]}, "config model_type of VPPrecond"),
        ({"img_channels": -(1 << 40000)}, "img_channels is a int too large to show"),
        ({"img_channels": 1 << 70}, "img_channels is 1180591620717411303424"),
        ({"channel_mult": nested}, "channel_mult is a list too large to show"),
        ({"channel_mult": {}}, "channel_mult is {}"),
    ):
        with pytest.raises(InputError, match=tells):
            pretrained.from_state_dict(state, config | bad)


def test_a_config_too_deep(shared: Path, tmp_path: Path) -> None:
    state, _, _ = golden(shared, "ncsnpp_edm")
    file = tmp_path / "deep.safetensors"
    for text in ("[" * 200_000 + "]" * 200_000, '{"img_channels": ' + "9" * 5000 + "}"):
        save_file(state, file, {"config": text})
        assert "is no JSON" in refused(file, file.read_bytes())


def test_safetensors(shared: Path, tmp_path: Path) -> None:
    state, config, given = golden(shared, "ncsnpp_edm")
    expected = denoised(pretrained.from_state_dict(state, config), given)
    assert torch.equal(denoised(pretrained.load(shared / "golden/network_ncsnpp_edm.safetensors"), given), expected)
    save_file(state, tmp_path / "own.safetensors", {"config": json.dumps(config)})
    assert torch.equal(denoised(pretrained.load(tmp_path / "own.safetensors"), given), expected)
    assert "is damaged" in refused(tmp_path / "damaged.safetensors", b"0123456789")
    save_file(state, tmp_path / "bare.safetensors")
    assert "no 'config'" in refused(tmp_path / "bare.safetensors", (tmp_path / "bare.safetensors").read_bytes())
    save_file(state, tmp_path / "text.safetensors", {"config": "{"})
    assert "no JSON" in refused(tmp_path / "text.safetensors", (tmp_path / "text.safetensors").read_bytes())
    assert "must be a .pkl" in refused(tmp_path / "model.pt", b"")
    with pytest.raises(InputError, match="is no file"):
        pretrained.load(tmp_path / "absent.pkl")
