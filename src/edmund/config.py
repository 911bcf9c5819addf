r"""Configs: a validated YAML document, and the parts that it stands for.

    diffusion: {type: EDM, sigma_data: 1.0, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, p_mean: -1.2, p_std: 1.2}
    sampling:  {steps: 40, sampler: heun, s_churn: 40.0, s_min: 0.05, s_max: 50.0, s_noise: 1.003}
    data, network, training, output

Every key is optional. The keys are nowhere listed twice: those of `diffusion` are the arguments of the formulation's
function, those of `sampling` the fields of the sampler, those of `network` the arguments of its class, those of
`training` the fields of TrainingOptions; lower case, `steps` for num_steps. An unknown key is an error that names the
nearest known one, and a key of another type an error that names the types that have it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pydantic
import torch
import yaml

from edmund import data, formulation, grid, loss, networks, presets, process, registry, samplers, transform
from edmund.data import DataSet
from edmund.data.images import MAX_BYTES
from edmund.errors import InputError, check_count, check_positive, unknown
from edmund.formulation import Formulation
from edmund.model import Model
from edmund.training.augmentation import LABELS
from edmund.training.options import TrainingOptions

_ABSENT = inspect.Parameter.empty


@dataclass(frozen=True)
class Key:
    """One key of a section: its type, and its default (`_ABSENT`: it has none)."""

    annotation: Any
    default: Any = None


Keys = dict[str, Key]


@dataclass(frozen=True)
class DataSection:
    """Where the data come from.

    source: "digits" (scikit-learn's 1797 digits) or "file". path: of the file: an .npz or .npy, a folder of images or a
    zip of them; it may wait until the data are read. key, labels_key: the names of the arrays in an .npz. size: images
    are cropped and resized to it. max_bytes: the memory that images or an .npz may take. labels: whether labels in the
    data condition the model. held_out: the fraction kept from training, unless the file has a test set of its own.
    split_seed: of that split. transform: auto (min_max for images, standardise otherwise), min_max, standardise or
    none. std: with standardise, the standard deviation that each channel is given.
    """

    source: str = "digits"
    path: str | None = None
    key: str | None = None
    labels_key: str | None = None
    size: int | None = None
    max_bytes: int = MAX_BYTES
    labels: bool = True
    held_out: float = 0.2
    split_seed: int = 0
    transform: str = "auto"
    std: float = 1.0


@dataclass(frozen=True)
class OutputSection:
    """Where a run goes. directory: its folder; if not given, runs/NAME for a config file NAME.yaml or a preset NAME."""

    directory: str | None = None


# The arguments of networks that the data and the conditions decide; `resolution` names the levels by the height.
_DECIDED_BY_DATA = frozenset(
    (
        "in_channels",
        "features",
        "variables",
        "out_channels",
        "out_features",
        "resolution",
        "dimensions",
        "label_dim",
        "context_dim",
        "image_channels",
        "image_shape",
        "augment_dim",
    )
)
_BY_AXES = {1: "mlp", 2: "dit", 3: "unet"}
"""The network where none is named, by the number of axes of a sample."""
_COMMON = {
    "sigma_data": Key(float | list[float] | None),
    "sigma_min": Key(float | None),
    "sigma_max": Key(float | None),
    "loss_weight": Key(str | None),
}
_CHURN = {field.name.lower(): field.name for field in dataclasses.fields(samplers.Churn)}
TRANSFORMS = ("auto", "min_max", "standardise", "none")


def _arguments(function: Callable[..., Any]) -> Keys:
    """The arguments of a function, a class or a class with some arguments given, as keys in lower case."""
    given: Mapping[str, Any] = {}
    if isinstance(function, functools.partial):
        given, function = function.keywords, function.func
    # A dataclass inherits fields from modules that import what its own does not.
    whole = dataclasses.is_dataclass(function) or not inspect.isclass(function)
    hints = get_type_hints(function if whole else function.__init__)
    parameters = inspect.signature(function).parameters.values()
    return {p.name.lower(): Key(hints.get(p.name, Any), given.get(p.name, p.default)) for p in parameters}


def _names(function: Callable[..., Any]) -> dict[str, str]:
    """Key -> the argument it stands for."""
    return {name.lower(): name for name in inspect.signature(function).parameters}


def _diffusion_keys(kind: str) -> Keys:
    return _COMMON | _arguments(formulation.named()[kind])


def sampler_keys(name: str) -> Keys:
    """The keys of a sampler: its arguments that a document can hold, and the fields of its churn."""
    arguments = _arguments(samplers.named()[name])
    plain = bool | int | float | str | None
    keys = {key: value for key, value in arguments.items() if isinstance(value.default, plain) and key != "churn"}
    if "churn" in arguments:
        hints = get_type_hints(samplers.Churn)
        keys = {key: Key(hints[field] | None) for key, field in _CHURN.items()} | keys
    return keys


def make_sampler(name: str, values: Mapping[str, Any]) -> samplers.Sampler:
    """The sampler of that name with the values of some of its keys. Raises InputError for churn's without s_churn.

    A sampler with noise of its own has one s_noise, for that and for churn's.
    """
    maker = samplers.named()[name]
    names = _names(maker)
    arguments = {names[key]: value for key, value in values.items() if key in names}
    churn = {_CHURN[key]: value for key, value in values.items() if key in _CHURN}
    shaped = [key.lower() for key in churn if key != "S_churn" and key not in arguments]
    if churn and "S_churn" in churn:
        arguments["churn"] = samplers.Churn(**churn)
    elif shaped:
        raise InputError(f"{', '.join(shaped)} without s_churn; without it there is no churn to shape")
    return maker(**arguments)


def sampler_values(sampler: samplers.Sampler) -> dict[str, Any]:
    """The values of a sampler's keys, its churn's among them where it has churn."""
    fields = _plain_fields(sampler)
    churn = getattr(sampler, "churn", None)
    known = sampler_keys(sampler.name)
    return ({} if churn is None else _plain_fields(churn)) | {
        key: value for key, value in fields.items() if key in known
    }


def _plain_fields(part: Any) -> dict[str, Any]:
    return {field.name.lower(): getattr(part, field.name) for field in dataclasses.fields(part)}


def parse_sampler(name: str, assignments: Sequence[str]) -> dict[str, Any]:
    """The values of "key=value", such as "order=2", in the types of the keys of the sampler of that name."""
    given: dict[str, Any] = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set {text!r} is not of the form key=value")
        given[key.strip()] = _yaml(text, value)
    elsewhere = {other: sampler_keys(other) for other in samplers.named()}
    return _check_keys("--set", given, elsewhere[name], elsewhere, "sampler", name)


def _yaml(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text!r}: the value is not YAML: {' '.join(str(error).split())}") from error


_SAMPLING = {"sampler": Key(str | None), "steps": Key(int | None), "grid": Key(str | None), "process": Key(str | None)}


def _network_keys(name: str) -> Keys:
    return {key: value for key, value in _arguments(networks.registry()[name]).items() if key not in _DECIDED_BY_DATA}


def _dataclass_keys(kind: type) -> Keys:
    return _arguments(kind)


def _training_keys() -> Keys:
    return _dataclass_keys(TrainingOptions) | {"uncertainty": Key(bool, False)}


def _check_keys(
    section: str, given: Mapping[str, Any], known: Keys, elsewhere: Mapping[str, Keys], what: str, own: str
) -> dict[str, Any]:
    """The section's values in their types; an InputError for keys that are unknown or belong to another choice of
    `what`.
    """
    checked = {}
    for key, value in given.items():
        where = f"{section}.{key}"
        if key not in known:
            owners = [name for name, keys in elsewhere.items() if key in keys]
            if owners:
                raise InputError(
                    f"{where} is {value!r}, but {what} {own} has no {key}; {', '.join(owners)} "
                    f"{'has' if len(owners) == 1 else 'have'}"
                )
            raise unknown(section, key, known)
        checked[key] = _typed(where, value, known[key].annotation)
    return checked


def _typed(where: str, value: Any, annotation: Any) -> Any:
    if isinstance(value, bool) and annotation not in (bool, Any):
        raise InputError(f"{where} is {value!r}; it is not a switch")  # else pydantic would read it as 0 or 1
    try:
        adapter = pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        problems = dict.fromkeys(problem["msg"][:1].lower() + problem["msg"][1:] for problem in error.errors())
        raise InputError(f"{where} is {value!r}; {' or '.join(problems)}") from None


@dataclass(frozen=True)
class Config:
    """A checked document: the given keys of each section, in their types. The methods make the parts it stands for."""

    diffusion: Mapping[str, Any]
    sampling: Mapping[str, Any]
    data: DataSection
    network: Mapping[str, Any]
    training: Mapping[str, Any]
    output: OutputSection

    @staticmethod
    def of(document: Mapping[str, Any] | None = None) -> Config:
        """The config of a parsed document; InputError for everything in it that cannot be used."""
        given = _sections(document or {})
        diffusion = _diffusion(given["diffusion"])
        return Config(
            diffusion=diffusion,
            sampling=_sampling(given["sampling"], formulation.named()[diffusion["type"]]().sampler.name),
            data=_data(given["data"]),
            network=_network(given["network"]),
            training=_check_keys("training", given["training"], _training_keys(), {}, "", ""),
            output=OutputSection(**_check_keys("output", given["output"], _dataclass_keys(OutputSection), {}, "", "")),
        )

    @staticmethod
    def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
        """The config of a YAML file, with overrides such as "training.lr=1e-3" applied."""
        file = Path(path)
        try:
            document = yaml.safe_load(file.read_text())
        except OSError as error:
            raise InputError(f"config {str(file)!r} cannot be read: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"config {str(file)!r} is not YAML: {' '.join(str(error).split())}") from error
        return Config._named(file.stem, document if document is not None else {}, overrides)

    @staticmethod
    def preset(name: str, overrides: Sequence[str] = ()) -> Config:
        """The config of a preset (see `edmund.presets`), with overrides such as "data.path=cifar10.npz" applied.

        Without data.path all but `datasets` can be had.
        """
        return Config._named(name, presets.find(name).document, overrides)

    @staticmethod
    def _named(name: str, document: Mapping[str, Any], overrides: Sequence[str]) -> Config:
        config = Config.of(override(document, overrides))
        if config.output.directory is None:
            config = dataclasses.replace(config, output=OutputSection(f"runs/{name}"))
        return config

    @property
    def type(self) -> str:
        """The formulation's name."""
        return str(self.diffusion["type"])

    def document(self) -> dict[str, Any]:
        """The whole config with every default filled in, as plain values that load again."""
        made = self.formulation()
        diffusion = {"type": self.type} | {
            key: self.diffusion.get(key, None if key in _COMMON else value.default)
            for key, value in _diffusion_keys(self.type).items()
        }
        if isinstance(made.process, process.VP) and diffusion["sigma_min"] is None and diffusion["sigma_max"] is None:
            # VP is given by its betas or by a range that they are fitted to, not by both.
            diffusion |= {"beta_d": made.process.beta_d, "beta_min": made.process.beta_min}
        else:
            diffusion |= {key: getattr(made, key) for key in ("sigma_min", "sigma_max")}
        own = sampler_values(made.sampler)
        sampler = {key: own.get(key, value.default) for key, value in sampler_keys(made.sampler.name).items()}
        sampling = {
            "sampler": self._sampler_name(),
            "steps": made.num_steps,
            "grid": None,
            "process": None,
            **sampler,
        } | dict(self.sampling)
        network = dict(self.network)
        if network:
            network |= {key: network.get(key, value.default) for key, value in _network_keys(network["type"]).items()}
        training = {key: self.training.get(key, value.default) for key, value in _training_keys().items()}
        return {
            "diffusion": _plain(diffusion),
            "sampling": _plain(sampling),
            "data": dataclasses.asdict(self.data),
            "network": _plain(network),
            "training": _plain(training),
            "output": dataclasses.asdict(self.output),
        }

    def _sampler_name(self) -> str:
        name = self.sampling.get("sampler")
        return str(name) if name is not None else formulation.named()[self.type]().sampler.name

    def formulation(self) -> Formulation:
        """The formulation, with the sampler, steps and grid of `sampling`; sigma_data may still wait for the data."""
        maker = formulation.named()[self.type]
        names = _names(maker)
        arguments = {names[key]: value for key, value in self.diffusion.items() if key in names and value is not None}
        made = maker(**arguments)
        changes: dict[str, Any] = {}
        if self.diffusion.get("loss_weight") is not None:
            name = self.diffusion["loss_weight"]
            changes["loss_weight"] = registry.resolve("diffusion.loss_weight", name, loss.named(), loss.Weight)
        if self.sampling.get("steps") is not None:
            changes["num_steps"] = self.sampling["steps"]
        if self.sampling.get("grid") is not None:
            changes["grid"] = registry.resolve("sampling.grid", self.sampling["grid"], grid.named(), grid.Grid)
        if self.sampling.get("process") is not None:
            changes["process"] = registry.resolve(
                "sampling.process", self.sampling["process"], process.named(), process.Process
            )
        sampler = self._sampler()
        if sampler is not None:
            changes["sampler"] = sampler
        return dataclasses.replace(made, **changes)

    def _sampler(self) -> samplers.Sampler | None:
        own = {key: value for key, value in self.sampling.items() if key not in _SAMPLING and value is not None}
        if self.sampling.get("sampler") is None:
            if not own:
                return None
            own = sampler_values(formulation.named()[self.type]().sampler) | own
        try:
            return make_sampler(self._sampler_name(), own)
        except InputError as error:
            raise InputError(f"sampling: {error}") from error

    def options(self) -> TrainingOptions:
        """The training options."""
        names = _names(TrainingOptions)
        return TrainingOptions(**{names[key]: value for key, value in self.training.items() if key in names})

    def datasets(self) -> tuple[DataSet, DataSet]:
        """The training set and the held-out set."""
        train, held_out = self._read()
        if not self.data.labels:
            return data.unlabelled(train), data.unlabelled(held_out)
        return train, held_out

    def _read(self) -> tuple[DataSet, DataSet]:
        section = self.data
        if section.source == "digits":
            return data.split(data.digits(), section.held_out, section.split_seed)
        if section.path is None:
            raise InputError(
                "data.path is not given; it must be an .npz or .npy, or a folder or .zip of images: data.path=PATH"
            )
        loaded = data.load(
            section.path,
            key=section.key,
            labels_key=section.labels_key,
            size=section.size,
            max_bytes=section.max_bytes,
        )
        if loaded.held_out is not None:
            return loaded.train, loaded.held_out
        return data.split(loaded.train, section.held_out, section.split_seed)

    def transform(self, train: DataSet) -> transform.Transform:
        """The transform to the model's units, fitted to the training set where it has statistics.

        The formulations that are written for data of unit scale (all but EDM) have the data divided by sigma_data,
        where it is given.
        """
        kind = self.data.transform
        if kind == "auto":
            kind = "min_max" if len(train.shape) == 3 else "standardise"
        if kind == "none":
            made: transform.Transform = transform.Identity()
        elif kind == "min_max":
            made = (
                transform.MinMax(*train.value_range)
                if train.value_range is not None
                else transform.MinMax.fit(data.batches(train))
            )
        else:
            made = transform.Standardise.fit(data.batches(train))
            if self.data.std != 1:
                made = transform.Chain([made, transform.Scale(self.data.std)])
        sigma_data = self.diffusion.get("sigma_data")
        if sigma_data is not None and not formulation.named()[self.type]().needs_sigma_data:
            if isinstance(sigma_data, list):
                raise InputError(
                    f"diffusion.sigma_data is {sigma_data}; for type {self.type} it is one number, by which the "
                    f"data are divided"
                )
            made = transform.Chain([made, transform.Scale(1 / check_positive("diffusion.sigma_data", sigma_data))])
        return made

    def resolved(self, train: DataSet) -> Config:
        """The same config with what the data decide filled in: the network's type, sigma_data where it is estimated."""
        network = self.network or {"type": _BY_AXES.get(len(train.shape), "unet")}
        diffusion = dict(self.diffusion)
        if self.formulation().needs_sigma_data:
            diffusion["sigma_data"] = data.moments(train, self.transform(train)).total_std
        return dataclasses.replace(self, network=network, diffusion=diffusion)

    def model(self, train: DataSet) -> Model:
        """A fresh model for the data, its weights a function of training.seed."""
        config = self.resolved(train)
        arguments = dict(config.network)
        kind = networks.registry()[arguments.pop("type")]
        decided = _decided_by_data(config.network, train)
        augment = self.options().augment
        if augment > 0:
            if len(train.shape) != 3:
                raise InputError(f"training.augment is {augment}, for images; the data are {train.shape}")
            if "augment_dim" not in _names(kind):
                raise InputError(
                    f"training.augment is {augment}, but network.type {config.network['type']!r} cannot be told of it "
                    "(it has no augment_dim)"
                )
            decided["augment_dim"] = LABELS
        arguments |= {key: value for key, value in decided.items() if key in _names(kind)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options().seed)
            try:
                network = kind(**arguments)
            except InputError as error:
                raise InputError(f"network: {error} (the data are {train.shape})") from None
            uncertainty = None
            if self.training.get("uncertainty"):
                # As published, beside the one network whose own weights are normalised too.
                uncertainty = networks.Uncertainty(magnitude_preserving=isinstance(network, networks.EDM2UNet))
        return Model(
            network,
            config.formulation(),
            self.transform(train),
            shape=train.shape,
            uncertainty=uncertainty,
            class_names=train.class_names,
        )


def _decided_by_data(network: Mapping[str, Any], train: DataSet) -> dict[str, Any]:
    """The arguments that the data decide, for samples of a shape that the network can take; else InputError."""
    named, shape = network["type"], train.shape
    names = _names(networks.registry()[named])
    takes = _takes(named)
    if len(shape) not in takes:
        fits = ", ".join(name for name in networks.registry() if len(shape) in _takes(name))
        hint = f", which {fits} can take" if fits else ""
        raise InputError(f"network.type is {named!r}, for {' and '.join(takes.values())}; the data are {shape}{hint}")
    values = {name: key.default for name, key in _network_keys(named).items()} | dict(network)
    if "resolution" in names:
        levels = len(values["channel_mult"])
        _check_sides(shape, 2 ** max(levels - 1, 0), f"network.type {named!r} has {levels} levels (channel_mult)")
    if "patch" in names:
        patch = check_count("network.patch", values["patch"])
        _check_sides(shape, patch, f"network.patch is {patch}")
    return {
        "in_channels": shape[0],
        "features": shape[0],
        "variables": shape[0],
        "label_dim": train.num_classes,
        "resolution": shape[1] if len(shape) == 3 else None,
        "dimensions": len(shape) - 1,
    }


def _takes(name: str) -> dict[int, str]:
    """The samples that a network takes, by their number of axes."""
    names = _names(networks.registry()[name])
    if {"features", "variables"} & set(names):
        return {1: "vectors [D]"}
    fields = {3: "images and fields [C, H, W]"}
    return {2: "sequences [C, L]"} | fields if "dimensions" in names else fields


def _check_sides(shape: tuple[int, ...], multiple: int, because: str) -> None:
    if any(side % multiple for side in shape[1:]):
        raise InputError(f"{because}, so each side of the data must be a multiple of {multiple}; they are {shape}")


def _sections(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    known = [field.name for field in dataclasses.fields(Config)]
    if not isinstance(document, Mapping):
        raise InputError(f"the config is {document!r}; it must be sections of keys: {', '.join(known)}")
    for name, section in document.items():
        if name not in known:
            raise unknown("section", name, known)
        if section is not None and not isinstance(section, Mapping):
            raise InputError(f"section {name} is {section!r}; it must be keys with values")
    return {name: document.get(name) or {} for name in known}


def _chosen(where: str, value: object, known: Mapping[str, object]) -> str:
    """A name among the known ones, whatever its case."""
    match = {name.lower(): name for name in known}
    if not isinstance(value, str) or value.lower() not in match:
        raise unknown(where, value, known)
    return match[value.lower()]


def _diffusion(given: Mapping[str, Any]) -> dict[str, Any]:
    kinds = formulation.named()
    own = _chosen("diffusion.type", given.get("type", "EDM"), kinds)
    rest = {key: value for key, value in given.items() if key != "type"}
    elsewhere = {name: _diffusion_keys(name) for name in kinds}
    if rest.get("loss_weight") is not None:
        rest["loss_weight"] = _chosen("diffusion.loss_weight", rest["loss_weight"], loss.named())
    return {"type": own} | _check_keys("diffusion", rest, elsewhere[own], elsewhere, "type", own)


def _sampling(given: Mapping[str, Any], default: str) -> dict[str, Any]:
    """The checked section; default: the sampler of the formulation, whose keys hold where none is named."""
    makers = samplers.named()
    checked: dict[str, Any] = {}
    for key, known in (("sampler", makers), ("grid", grid.named()), ("process", process.named())):
        if given.get(key) is not None:
            checked[key] = _chosen(f"sampling.{key}", given[key], known)
    own = checked.get("sampler", default)
    rest = {key: value for key, value in given.items() if key not in ("sampler", "grid", "process")}
    elsewhere = {name: sampler_keys(name) for name in makers}
    return checked | _check_keys("sampling", rest, _SAMPLING | elsewhere[own], elsewhere, "sampler", own)


def _data(given: Mapping[str, Any]) -> DataSection:
    values = _check_keys("data", given, _dataclass_keys(DataSection), {}, "", "")
    if values.get("path") is not None:
        values.setdefault("source", "file")
    section = DataSection(**values)
    if section.source not in ("digits", "file"):
        raise unknown("data.source", section.source, ("digits", "file"))
    if section.source != "file" and section.path is not None:
        raise InputError(
            f"data.source is {section.source!r} and data.path is {section.path!r}; a path goes with source file"
        )
    if section.transform not in TRANSFORMS:
        raise unknown("data.transform", section.transform, TRANSFORMS)
    if check_positive("data.std", section.std) != 1 and section.transform != "standardise":
        raise InputError(
            f"data.std is {section.std!r} and data.transform {section.transform!r}; std goes with standardise"
        )
    check_count("data.max_bytes", section.max_bytes)
    if not 0 < section.held_out < 1:
        raise InputError(f"data.held_out is {section.held_out!r}; it is a fraction between 0 and 1")
    return section


def _network(given: Mapping[str, Any]) -> dict[str, Any]:
    kinds = networks.registry()
    rest = {key: value for key, value in given.items() if key != "type"}
    if given.get("type") is None and not rest:
        return {}  # by the data
    for key in rest:
        if key in _DECIDED_BY_DATA:
            raise InputError(f"network.{key} is {rest[key]!r}, but the data decide it; leave it out")
    if given.get("type") is None:
        fits = [name for name in kinds if all(key in _network_keys(name) for key in rest)]
        given = {"type": "unet" if "unet" in fits or not fits else fits[0]}
    own = _chosen("network.type", given["type"], kinds)
    elsewhere = {name: _network_keys(name) for name in kinds}
    return {"type": own} | _check_keys("network", rest, elsewhere[own], elsewhere, "type", own)


def override(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The document with "section.key=value" applied, the value in YAML."""
    changed = {name: dict(section) if isinstance(section, Mapping) else section for name, section in _items(document)}
    for text in overrides:
        path, sign, value = text.partition("=")
        section, dot, key = path.strip().partition(".")
        if not sign or not dot or not section or not key:
            raise InputError(f"--set {text!r} is not of the form section.key=value")
        parsed = _yaml(text, value)
        if not isinstance(changed.setdefault(section, {}), dict):
            changed[section] = {}
        changed[section][key] = parsed
    return changed


def _items(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if not isinstance(document, Mapping):
        raise InputError(f"the config is {document!r}; it must be sections of keys")
    return iter(document.items())


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """Values as YAML writes them back: no tuples, no absent defaults."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in section.items()
        if value is not _ABSENT
    }


def dump(document: Mapping[str, Any]) -> str:
    """A document as YAML, in its own order."""
    return yaml.safe_dump(dict(document), sort_keys=False, default_flow_style=None, width=120)
