"""Folders of diffusers pipelines: a UNet2DModel with the noise levels of its scheduler.

Such a folder holds `model_index.json`, which names the parts' classes, and beside it each part in a folder of its own
(or, as older ones have it, in the same folder): the network's `config.json` with its weights, and
`scheduler_config.json`. The network is run through diffusers (`networks.DiffusersUNet2D`); nothing else of that library
runs, and only weights in safetensors are read, since the older `.bin` files are pickles, which are programs.

A scheduler says two things. What the network was trained on: the levels of its time steps (beta schedule, betas, zero
terminal SNR) and what it predicts; or EDM's preconditioning; or that of a variance-exploding score SDE. From that comes
the formulation. And how diffusers samples it, of which the formulation has as its defaults what there is here: the
solver, the number of steps that diffusers' own pipelines take (as many as in training for DDPM, else 50), and whether
the steps are those of Karras et al. 2022 or even in the time step. They go from the highest level to sigma = 0, each to
the nearest level. Of every setting that is not carried `LeftOut` warns, where its value asks for something else than
the model does: foremost the clamping of D (`clip_sample`), then where the steps lie (`timestep_spacing`, ...), then how
they are taken.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund import grid, networks, samplers
from edmund.errors import InputError, check_count, check_number, unknown
from edmund.formulation import Formulation
from edmund.model import Model
from edmund.pretrained.state import check_state, made, read_tensors, short
from edmund.process import DiscreteSteps

_INDEX = "model_index.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LIBRARY = "diffusers"
_UNET = "UNet2DModel"
_STEPS = 50

# What attention's layers were called before diffusers 0.14, in whose files they still are.
_RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class LeftOut(UserWarning):
    """Something that a published model's folder says and the loaded model does not carry."""


class _Options(Mapping[str, Any]):
    """A scheduler's arguments: what its file says, else its class's defaults; it keeps count of those that are read."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.defaults = defaults
        self._values = {name: given.get(name, default) for name, default in defaults.items()}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        self._read.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def unread(self) -> dict[str, Any]:
        """Those that nothing has asked for."""
        return {name: value for name, value in self._values.items() if name not in self._read}


def load_folder(folder: Path) -> Model:
    """The model of a diffusers pipeline's folder, in evaluation mode and in the network's own units (images: -1 to 1),
    with weights in float32.

    Raises InputError for parts that are not known here and for anything damaged, missing or that does not fit; warns
    with `LeftOut`.
    """
    index = _read_json(folder / _INDEX, "it is no diffusers pipeline (edmund's own folders are for edmund.load)")
    scheduler = _class_of(index, "scheduler", folder)
    if scheduler not in _SCHEDULERS:
        raise unknown(f"path {str(folder)!r}: scheduler", scheduler, _SCHEDULERS)
    network = _class_of(index, "unet", folder)
    if network != _UNET:
        raise unknown(f"path {str(folder)!r}: unet", network, [_UNET])
    try:
        options = _options(scheduler, _read_json(_part(folder, "scheduler") / "scheduler_config.json"))
        formulation = _SCHEDULERS[scheduler](options)
        model = _model(_part(folder, "unet"), formulation, karras_ve=scheduler == _KARRAS_VE)
    except InputError as error:
        raise InputError(f"path {str(folder)!r} cannot be used: {error}") from error
    others = [name for name in index if not name.startswith("_") and name not in ("unet", "scheduler")]
    others = [name for name in others if isinstance(index[name], list) and any(index[name])]
    if others:
        _leave_out(
            f"the pipeline has {', '.join(others)} too: samples are what its UNet makes, before or without those"
        )
    _warn_of(options, formulation)
    return model


def _leave_out(text: str) -> None:
    warnings.warn(text, LeftOut, stacklevel=5)


def _read_json(path: Path, why: str = "it has to be there") -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"path {str(path.parent)!r} has no {path.name}: {why}")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"path {str(path)!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"path {str(path)!r} holds {short(content)}; it must be an object of names and values")
    return content


def _class_of(index: Mapping[str, Any], part: str, folder: Path) -> str:
    """The class of a pipeline's part, which must be one of diffusers' own."""
    entry = index.get(part)
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        parts = ", ".join(name for name in index if not name.startswith("_")) or "none"
        raise InputError(f"path {str(folder)!r}: its {_INDEX} names no {part}; the parts that it names: {parts}")
    if entry[0] != _LIBRARY:
        raise InputError(
            f"path {str(folder)!r}: its {part} is {entry[1]} of {entry[0]!r}; only classes of {_LIBRARY} are known here"
        )
    return str(entry[1])


def _part(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder


def _options(scheduler: str, config: Mapping[str, Any]) -> _Options:
    """The scheduler's arguments. Other keys are other schedulers', which diffusers leaves in such files."""
    if config.get("predict_epsilon") is False:
        raise InputError(
            "scheduler_config.json has predict_epsilon false, of an old diffusers; write prediction_type 'sample'"
        )
    library = networks.diffusers_library()
    if scheduler == _KARRAS_VE:
        defaults: dict[str, Any] = dict(_KARRAS_VE_DEFAULTS)
    else:
        parameters = inspect.signature(getattr(library, scheduler).__init__).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return _Options(config, defaults)


def _discrete(options: Mapping[str, Any], sampler: samplers.Sampler, num_steps: int | None = _STEPS) -> Formulation:
    """A network of time steps; num_steps: None for every step."""
    for name, only in (("timestep_type", "discrete"), ("use_flow_sigmas", False)):
        if options.get(name, only) != only:
            raise InputError(f"scheduler {name} is {short(options[name])}; only {only!r} is known here")
    zero_snr = bool(options.get("rescale_betas_zero_snr", False))
    count = check_count("scheduler num_train_timesteps", options["num_train_timesteps"], least=2)
    schedule, betas = options["beta_schedule"], options["trained_betas"]
    start, end = options["beta_start"], options["beta_end"]
    if not isinstance(schedule, str):
        raise InputError(f"scheduler beta_schedule is {short(schedule)}; it must be a schedule's name")
    if betas is not None:
        if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != count:
            raise InputError(f"scheduler trained_betas is {short(betas)}; it must be {count} numbers")
        kept = [1 - check_number("scheduler trained_betas", beta) for beta in betas]
        steps = DiscreteSteps(torch.tensor(kept, dtype=torch.float64).cumprod(0), zero_snr=zero_snr)
    elif schedule == "squaredcos_cap_v2":
        steps = DiscreteSteps(schedule, num_steps=count, zero_snr=zero_snr)
    else:
        steps = DiscreteSteps(schedule, start, end, count, zero_snr)
    levels = len(steps.levels)
    parts = formulations.discrete(
        steps, options["prediction_type"], sampler, levels if num_steps is None else min(num_steps, levels)
    )
    if options.get("use_karras_sigmas"):
        return _with_grid(parts, grid.EDM())
    return _with_grid(parts, grid.PolyExponential()) if options.get("use_exponential_sigmas") else parts


def _with_grid(parts: Formulation, own: grid.Grid) -> Formulation:
    """The formulation on a grid whose nodes are rounded to its levels, with no more steps than stay distinct."""
    nodes = own.nodes(parts.num_steps, parts.sigma_min, parts.sigma_max)
    rounded: Callable[[Tensor], Tensor] = parts.preconditioning.round_sigma  # type: ignore[attr-defined]
    while len(torch.unique(rounded(nodes))) < len(nodes):
        nodes = own.nodes(len(nodes) - 1, parts.sigma_min, parts.sigma_max)
    return dataclasses.replace(parts, grid=own, num_steps=len(nodes))


def _edm(options: Mapping[str, Any], sampler: samplers.Sampler) -> Formulation:
    if options["prediction_type"] != "epsilon":
        raise InputError(
            f"scheduler prediction_type is {options['prediction_type']!r}; with EDM's preconditioning it must be "
            f"'epsilon'"
        )
    names = ("sigma_data", "sigma_min", "sigma_max", "rho")
    parts = formulations.EDM(**{name: check_number(f"scheduler {name}", options[name]) for name in names})
    if options["sigma_schedule"] not in ("karras", "exponential"):
        raise unknown("scheduler sigma_schedule", options["sigma_schedule"], ["karras", "exponential"])
    own = parts.grid if options["sigma_schedule"] == "karras" else grid.PolyExponential()
    return dataclasses.replace(parts, grid=own, sampler=sampler, num_steps=_STEPS)


def _karras_ve(options: Mapping[str, Any]) -> Formulation:
    names = ("s_churn", "s_min", "s_max", "s_noise")
    churn = samplers.Churn(*(check_number(f"scheduler {name}", options[name]) for name in names))
    parts = formulations.VE(options["sigma_min"], options["sigma_max"])
    return dataclasses.replace(parts, sampler=samplers.Heun(churn), num_steps=_STEPS)


_KARRAS_VE = "KarrasVeScheduler"
# diffusers has deprecated it, and its current versions do not hand it out any more.
_KARRAS_VE_DEFAULTS = {"sigma_min": 0.02, "sigma_max": 100, "s_noise": 1.007, "s_churn": 80, "s_min": 0.05, "s_max": 50}
_SCHEDULERS: dict[str, Callable[[Mapping[str, Any]], Formulation]] = {
    "DDPMScheduler": lambda options: _discrete(options, samplers.DDIM(eta=1.0), None),
    "DDIMScheduler": lambda options: _discrete(options, samplers.DDIM()),
    "HeunDiscreteScheduler": lambda options: _discrete(options, samplers.Heun()),
    "EulerDiscreteScheduler": lambda options: _discrete(options, samplers.Euler()),
    "DPMSolverMultistepScheduler": lambda options: _discrete(options, samplers.DPMpp2M()),
    "EDMEulerScheduler": lambda options: _edm(options, samplers.Euler()),
    "EDMDPMSolverMultistepScheduler": lambda options: _edm(options, samplers.DPMpp2M()),
    _KARRAS_VE: _karras_ve,
}


_PLACING = frozenset(
    {
        "timestep_spacing",
        "steps_offset",
        "set_alpha_to_one",
        "sigma_min",
        "sigma_max",
        "lambda_min_clipped",
        "interpolation_type",
        "final_sigmas_type",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
    }
)
"""Where a scheduler's steps lie; its other settings say how they are taken."""

# What a model here does; of other settings that is the scheduler's default.
_OURS: Mapping[str, tuple[Any, ...]] = {
    "timestep_spacing": ("linspace",),
    "steps_offset": (0,),
    "set_alpha_to_one": (True,),
    "final_sigmas_type": ("zero",),
    "use_beta_sigmas": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log"),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
}


def _warn_of(options: _Options, formulation: Formulation) -> None:
    """Warns of the scheduler's settings of sampling that the formulation does not carry."""
    _warn_of_clamping(options)
    unlike = {
        name: value
        for name, value in options.unread.items()
        if value not in _OURS.get(name, (options.defaults[name],)) and name not in _CLAMPING
    }
    steps = getattr(formulation.preconditioning, "steps", None)
    if steps is not None and formulation.num_steps == len(steps.levels):
        unlike.pop("timestep_spacing", None)  # of all steps there is one only
    if options.get("timestep_spacing") != "leading":
        unlike.pop("steps_offset", None)  # of which the others make no use
    placing = [f"{name} {short(value)}" for name, value in unlike.items() if name in _PLACING]
    if placing:
        _leave_out(
            f"the scheduler's steps lie elsewhere ({', '.join(placing)}): the model's go by its grid from "
            f"{formulation.sigma_max:.6g} over {formulation.sigma_min:.6g} to 0"
        )
    others = [f"{name} is {short(value)}" for name, value in unlike.items() if name not in _PLACING]
    if others:
        _leave_out(
            f"the scheduler's {', '.join(others)}, which the model does not carry; its sampler is {formulation.sampler}"
        )


_CLAMPING = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value", "clip_sample", "clip_sample_range")


def _warn_of_clamping(options: _Options) -> None:
    if options.get("thresholding"):
        ratio, most = options["dynamic_thresholding_ratio"], options["sample_max_value"]
        if most == 1:  # quantiles are at least one: all that is left is the clamping
            wrapped, but = "StaticThresholding(model.denoiser, 1.0)", ""
        else:
            wrapped = f"DynamicThresholding(model.denoiser, {short(ratio)})"
            but = f", but for the quantile's bound sample_max_value {short(most)}"
        _leave_out(
            f"the scheduler thresholds D (thresholding, sample_max_value {short(most)}), the model does not: sample "
            f"guidance.{wrapped} to do so{but}"
        )
    elif options.get("clip_sample"):
        bound = options["clip_sample_range"]
        _leave_out(
            f"the scheduler clamps D to [-{bound}, {bound}] (clip_sample), the model does not: sample "
            f"guidance.StaticThresholding(model.denoiser, {bound}) to do so"
        )


def _model(folder: Path, formulation: Formulation, *, karras_ve: bool) -> Model:
    config = {name: value for name, value in _read_json(folder / "config.json").items() if not name.startswith("_")}
    state = _read_state(folder)
    channels = check_count("unet in_channels", config.pop("in_channels", 3))
    emitted = check_count("unet out_channels", config.pop("out_channels", 3))
    if emitted not in (channels, 2 * channels):
        raise InputError(
            f"unet out_channels is {emitted} and in_channels {channels}; they must be as many, or twice as many for a "
            f"learned variance"
        )
    if check_count("unet layers_per_block", config.get("layers_per_block", 2)) > len(state):
        raise InputError(f"unet layers_per_block is {config['layers_per_block']}; there are {len(state)} tensors only")
    classes = config.pop("num_class_embeds", None)
    arguments: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": emitted,
        "label_dim": 0 if classes is None else check_count("unet num_class_embeds", classes),
        "karras_ve": karras_ve,
        "unet": config,
    }
    shape = (channels, *_sides(config.get("sample_size")))

    # First without memory: the arguments may be of a network that no machine could hold.
    with torch.device("meta"):
        empty = made(_UNET, lambda: networks.DiffusersUNet2D(**arguments))
    if any(side % empty.multiple for side in shape[1:]):
        raise InputError(f"unet sample_size is {config['sample_size']}; its levels need multiples of {empty.multiple}")
    check_state(state, {name: tuple(value.shape) for name, value in empty.unet.state_dict().items()})
    embedded, steps = empty.config["unet"]["num_train_timesteps"], getattr(formulation.preconditioning, "steps", None)
    if empty.config["unet"]["time_embedding_type"] == "learned" and (steps is None or embedded < len(steps.levels)):
        raise InputError(
            f"unet num_train_timesteps is {embedded}: its learned time embedding has fewer steps than this"
        )
    network = made(_UNET, lambda: networks.DiffusersUNet2D(**arguments))
    network.unet.load_state_dict({name: value.to(torch.float32) for name, value in state.items()})
    model = Model(network, formulation, shape=shape)
    model.denoiser.eval()
    return model


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of the network's images."""
    if isinstance(size, list) and len(size) == 2:
        return check_count("unet sample_size", size[0]), check_count("unet sample_size", size[1])
    if size is None:
        raise InputError("unet sample_size is None; write the side of the images into the UNet's config.json")
    side = check_count("unet sample_size", size)
    return side, side


def _read_state(folder: Path) -> dict[str, Tensor]:
    if not (folder / _WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise InputError(
                f"it has no {_WEIGHTS}, only {', '.join(pickled)}: a pickle, which could run anything when it is read. "
                f"Where you trust it, diffusers' save_pretrained(safe_serialization=True) writes the other"
            )
        raise InputError(f"it has no {_WEIGHTS}")
    state, _ = read_tensors(folder / _WEIGHTS)
    for old, new in _RENAMED.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return state
