r"""Models: a network, its formulation and the transform of its data, as one thing that samples in the user's units and
lives in a folder.

The folder holds `config.json` (readable: network, formulation, transform with its statistics, the shape of a sample,
and the size and SHA-256 of the weights) and `model.safetensors`. Nothing in it is code and nothing is unpickled. The
same folder is a Hugging Face hub repository.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edmund import formulation as formulations
from edmund import networks, speed, transform
from edmund.denoiser import Denoiser, Preconditioned, condition_names
from edmund.devices import known_device
from edmund.errors import InputError, check_count, unknown
from edmund.formulation import Formulation
from edmund.sample import Trajectory, sample
from edmund.transform import Identity, Transform

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_FORMAT = 1
_HUB = "hf://"

_SAMPLE_OPTIONS = frozenset(inspect.signature(sample).parameters) - {"denoiser", "shape", "condition"}


class Model:
    """A trained (or to be trained) diffusion model.

    network: a raw network, see `edmund.networks`. formulation: how it is preconditioned, trained and sampled; its
    sigma_data is filled in. transform: from the user's units to the model's. shape: of one sample, without the batch
    axis. uncertainty: EDM2's learned u(sigma), if there is one. class_names: of
    the labels. Weights stay where they are; `to(device)` moves them.
    """

    def __init__(
        self,
        network: nn.Module,
        formulation: Formulation,
        transform: Transform | None = None,
        *,
        shape: Sequence[int],
        uncertainty: networks.Uncertainty | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(formulation, Formulation):
            raise InputError(f"formulation is {formulation!r}; it must be a Formulation, such as formulation.Flow()")
        if formulation.needs_sigma_data:
            raise InputError(
                "sigma_data is None: a model's formulation must know the data's standard deviation; use "
                "formulation.with_sigma_data(value)"
            )
        self.network = network
        self.formulation = formulation
        self.transform = transform if transform is not None else Identity()
        self.shape = _check_shape(shape)
        sigma_data = getattr(formulation.preconditioning, "sigma_data", None)
        if isinstance(sigma_data, tuple) and len(sigma_data) != self.shape[0]:
            raise InputError(
                f"sigma_data has {len(sigma_data)} numbers; samples of shape {self.shape} have {self.shape[0]} channels"
            )
        self.uncertainty = uncertainty
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        low, high = formulation.trained_range
        self.denoiser = Preconditioned(
            network,
            formulation.preconditioning,
            _extra_channels(network, self.shape[0]),
            formulation=formulation,
            sigma_min=low,
            sigma_max=high,
            uncertainty=uncertainty,
        )
        """The model as a denoiser, in the model's own units."""

    @property
    def num_classes(self) -> int:
        """The number of classes of the network's labels; 0: it takes none."""
        return self.denoiser.num_classes or 0

    def to(self, device: torch.device | str) -> Model:
        """The same model with its weights on another device."""
        self.denoiser.to(known_device(device))
        return self

    def optimise(self, *, precision: str | None = None, compile: bool = False) -> Model:
        """The same model made faster to evaluate on the device where it is: move it first, then optimise it.

        Convolutions get channels-last weights, and EDM2's networks weights normalised once; D changes by rounding
        alone, less than 1e-6 of its norm in float32. precision: "bf16", or "fp16" on a GPU, for the network, for good:
        its weights are rounded; D changes by less than 1e-2 of its norm, the preconditioning and the sampler's state
        stay as they are. "fp32", and None: the network's own. compile: torch.compile at the first call of each shape,
        with CUDA graphs on a GPU (1e-5).

        Raises InputError for another precision, and for what this machine cannot do. The model is in evaluation mode
        then, and what `save` writes has its precision.
        """
        self.denoiser.eval()
        speed.optimise(self.network, precision=precision, compile=compile)
        return self

    def sample(
        self, n: int, *, shape: Sequence[int] | None = None, denoiser: Denoiser | None = None, **options: Any
    ) -> Tensor | Trajectory:
        """n samples in the user's units, float32 [n, *shape] on the CPU (in `dtype`, if that is given).

        shape: of one sample, for a network that takes any size; None: the model's. denoiser: what is sampled instead of
        the model's own, such as one of `edmund.guidance` around it. options: the keyword arguments of `edmund.sample`
        (sampler, num_steps, seeds, batch_size, ...); every other keyword is a condition of the network, a tensor with a
        batch axis of n or 1, or a number. With return_trajectory=True a Trajectory, whose x and denoised stay in the
        model's units.
        """
        given = {key: options.pop(key) for key in list(options) if key in _SAMPLE_OPTIONS}
        condition = {key: _as_batch(key, value) for key, value in options.items() if value is not None}
        self._check_conditions(condition)
        item = self.shape if shape is None else _check_shape(shape)
        out = sample(
            self.denoiser if denoiser is None else denoiser, (check_count("n", n), *item), condition=condition, **given
        )
        dtype = given.get("dtype", torch.float32)
        if isinstance(out, Trajectory):
            return out._replace(samples=self.transform.inverse(out.samples).to(dtype))
        return self.transform.inverse(out).to(dtype)

    def _check_conditions(self, condition: Mapping[str, Tensor]) -> None:
        known = condition_names(self.network)
        for key in condition:
            if known is not None and key not in known:
                raise unknown("argument of sample", key, [*known, *sorted(_SAMPLE_OPTIONS)])

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes the model's folder and returns it.

        Files are replaced whole: an interrupted save leaves the old ones. InputError where it cannot.
        """
        folder = Path(directory)
        config = {
            "format": _FORMAT,
            "network": self._network_config(),
            "formulation": self.formulation.config(),
            "transform": self.transform.config(),
            "shape": list(self.shape),
            "class_names": self.class_names,
            "uncertainty": None if self.uncertainty is None else self.uncertainty.config,
        }
        from safetensors.torch import save as to_bytes

        weights = to_bytes(
            {name: value.detach().cpu().contiguous().clone() for name, value in self._modules().state_dict().items()}
        )
        config["weights"] = {"file": WEIGHTS_FILE, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(config, indent=2, allow_nan=False) + "\n"
            _replace({folder / WEIGHTS_FILE: weights, folder / CONFIG_FILE: text.encode()})
        except OSError as error:
            raise InputError(f"directory {str(folder)!r} cannot be written: {error.strerror or error}") from error
        return folder

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Uploads the model's folder to the Hugging Face hub as `repo_id` ("user/name") and returns its address.

        InputError where that fails.
        """
        return push_to_hub(self.save, repo_id, private=private)

    def _modules(self) -> nn.ModuleDict:
        modules = nn.ModuleDict({"network": self.network})
        if self.uncertainty is not None:
            modules["uncertainty"] = self.uncertainty
        return modules

    def _network_config(self) -> dict[str, Any]:
        name, arguments = getattr(self.network, "name", None), getattr(self.network, "config", None)
        if networks.registry().get(str(name)) is type(self.network) and isinstance(arguments, Mapping):
            return {"type": name, **arguments}
        # A network of one's own: its class is code, and code is never loaded from a file. `load` is handed the network.
        return {"type": None, "class": type(self.network).__qualname__}


def load(
    directory: str | os.PathLike[str], *, network: nn.Module | None = None, device: torch.device | str = "cpu"
) -> Model:
    """The model that `Model.save` wrote to a folder, in evaluation mode.

    directory: a folder, or "hf://user/name" to download it from the Hugging Face hub. network: an instance of one's own
    network class, for a model that was saved with one. Raises InputError for a folder without a model, a damaged one,
    and a network that does not fit the weights.
    """
    folder = local(directory)
    config = _read_config(folder)
    weights = _read_weights(folder, config)
    try:
        own = _build_network(config["network"], network)
        uncertainty = None if config["uncertainty"] is None else networks.Uncertainty(**config["uncertainty"])
        model = Model(
            own,
            formulations.from_config(config["formulation"]),
            transform.from_config(config["transform"]),
            shape=config["shape"],
            uncertainty=uncertainty,
            class_names=config["class_names"],
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE} is not a model that this version of edmund can read: {error}"
        ) from error
    _fill(model._modules(), weights, folder / WEIGHTS_FILE)
    model.denoiser.eval()
    return model.to(device)


def local(directory: str | os.PathLike[str], *files: str) -> Path:
    """The folder of a saved model: `directory` itself, or what was downloaded of "hf://user/name".

    files: that it holds beside a model's own. Raises InputError where the download fails.
    """
    return _download(str(directory), files) if str(directory).startswith(_HUB) else Path(directory)


def push_to_hub(save: Callable[[str], object], repo_id: str, *, private: bool) -> str:
    """Uploads the folder that `save` writes to the Hugging Face hub; see `Model.push_to_hub`."""
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        try:
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
        except Exception as error:
            raise InputError(f"repo_id {repo_id!r}: the upload failed: {_first_line(error)}") from error


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) == 0:
        raise InputError(f"shape is {shape!r}; it must be the shape of one sample, such as (3, 32, 32)")
    return tuple(check_count("shape", size) for size in shape)


def _extra_channels(network: nn.Module, channels: int) -> int:
    """How many channels beyond the samples' the network says it emits: iDDPM's learned variance."""
    config = getattr(network, "config", None)
    emitted = config.get("out_channels") if isinstance(config, Mapping) else None
    return 0 if emitted is None else int(emitted) - channels


def _as_batch(key: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{key} is {value!r}; a condition is a number or a tensor with a batch axis") from None
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def _replace(contents: Mapping[Path, bytes]) -> None:
    """Writes files by renaming finished siblings into their places, once all are finished: a full disk changes none."""
    partial = {path: path.with_name(f".{path.name}.partial") for path in contents}
    try:
        for path, content in contents.items():
            with open(partial[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(partial[path], path)
    finally:
        for rest in partial.values():
            rest.unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"directory {str(folder)!r} holds no model: there is no {CONFIG_FILE} in it")
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        raise InputError(f"{path} is not a model of format {_FORMAT}: it says {found!r}")
    return config


def _read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    path = folder / WEIGHTS_FILE
    expected = config.get("weights")
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        raise InputError(f"{folder / CONFIG_FILE} is damaged: it does not say what {WEIGHTS_FILE} is, but {expected!r}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) != expected["bytes"]:
        raise InputError(f"{path} is damaged: it has {len(content)} bytes, and {CONFIG_FILE} says {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise InputError(f"{path} is altered or damaged: its SHA-256 is not the one in {CONFIG_FILE}")
    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _build_network(config: Mapping[str, Any], given: nn.Module | None) -> nn.Module:
    arguments = dict(config)
    name = arguments.pop("type")
    if name is None:
        if given is None:
            raise InputError(
                f"network is None, but the model was saved with a network of one's own, "
                f"{arguments.get('class')}: give an instance of it (a folder of a recipe's, such as a "
                "posterior, is loaded by the class that saved it: edmund.sbi.Posterior.load)"
            )
        return given
    if given is not None:
        raise InputError(f"network was given, but the model has one of edmund's own, {name!r}; leave it out")
    known = networks.registry()
    if name not in known:
        raise unknown("network type", name, known)
    return known[name](**arguments)


def _fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads the weights; the first parameter that does not fit is an InputError with both shapes."""
    own = module.state_dict()
    for name in sorted({*own, *weights}):
        ours = tuple(own[name].shape) if name in own else None
        theirs = tuple(weights[name].shape) if name in weights else None
        if ours != theirs:
            raise InputError(
                f"{path} is of another network: {name} has shape {theirs} in the file and {ours} in the network "
                f"(None: it has none)"
            )
    module.load_state_dict(dict(weights), assign=True)  # assigned, so that weights of low precision stay so


def _download(address: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    repo_id = address.removeprefix(_HUB)
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, *files]))
    except Exception as error:
        raise InputError(
            f"directory {address!r} could not be downloaded from the Hugging Face hub: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def count_parameters(module: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters() if parameter.requires_grad)
