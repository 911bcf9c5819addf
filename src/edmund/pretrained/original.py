"""The published image networks by their original parameter names and constructor arguments.

EDM (Karras et al. 2022) keeps its network under `model.` inside a preconditioning class, EDMPrecond, VPPrecond,
VEPrecond or iDDPMPrecond, whose network is a SongUNet (DDPM++, NCSN++) or a DhariwalUNet (ADM). EDM2 (Karras et al.
2024) has one class, Precond, with its network under `unet.` and its learned uncertainty under `logvar_`. The tables
below say what each argument is here; what only sets how the originals train or round is left out, and what would change
the function is refused.

By default they are sampled as published, with Heun's method (Karras et al. 2022, Algorithm 1): 18 steps up to 32 x 32
pixels and 40 above (its CIFAR-10, and FFHQ and AFHQv2 at 64 x 64), and 32 steps for EDM2. Its ImageNet-64 took 256
steps with churn (S_churn 40, S_min 0.05, S_max 50, S_noise 1.003), which is to be asked for. The networks of VP and VE
are sampled on EDM's grid and process, as the paper's improved sampler does; iDDPM's on its own levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from edmund import formulation as formulations
from edmund import grid, networks, noise_density, process, samplers
from edmund.errors import InputError, check_count, check_number, unknown
from edmund.formulation import Formulation
from edmund.model import Model
from edmund.pretrained.state import check_state, is_plain, line, made, short


@dataclass(frozen=True)
class _Network:
    """A network class: ours, what its arguments are called here, the original defaults that are not ours, and the
    arguments that have one value only here.
    """

    made: type[nn.Module]
    arguments: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Precond:
    """A preconditioning class: its formulation of its own arguments, the network's prefix, and its default network."""

    formulation: Callable[..., Formulation]
    arguments: tuple[str, ...]
    network: str
    prefix: str = "model."
    networks: tuple[str, ...] = ("SongUNet", "DhariwalUNet")


_SHARED = {
    "img_channels": "in_channels",
    "img_resolution": "resolution",
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "num_blocks": "blocks",
    "attn_resolutions": "attention_resolutions",
    "label_dim": "label_dim",
    "dropout": "dropout",
}

_NETWORKS = {
    "SongUNet": _Network(
        networks.SongUNet,
        {
            **_SHARED,
            "channel_mult_emb": "embedding_mult",
            "augment_dim": "augment_dim",
            "embedding_type": "embedding",
            "channel_mult_noise": "noise_mult",
            "encoder_type": "encoder",
            "decoder_type": "decoder",
            "resample_filter": "resample_filter",
        },
        {"channel_mult": [1, 2, 2, 2], "dropout": 0.1},
    ),
    "DhariwalUNet": _Network(
        networks.ADM,
        {**_SHARED, "channel_mult_emb": "embedding_mult", "augment_dim": "augment_dim"},
        {"dropout": 0.1},
    ),
    "UNet": _Network(
        networks.EDM2UNet,
        _SHARED,
        {},
        {
            "channel_mult_noise": None,
            "channel_mult_emb": None,
            "label_balance": 0.5,
            "concat_balance": 0.5,
            "res_balance": 0.3,
            "attn_balance": 0.3,
            "clip_act": 256,
            "channels_per_head": 64,
            "resample_filter": [1, 1],
        },
    ),
}


def _edm(sigma_data: float = 0.5, sigma_min: float = 0.0, sigma_max: float = float("inf")) -> Formulation:
    # The originals' limits are 0 and infinity: "any level". What is sampled is the paper's range within them.
    return formulations.EDM(sigma_data, sigma_min=max(0.002, sigma_min), sigma_max=min(80.0, sigma_max))


_PRECONDS = {
    "EDMPrecond": _Precond(_edm, ("sigma_data", "sigma_min", "sigma_max"), "DhariwalUNet"),
    "VPPrecond": _Precond(formulations.VP, ("beta_d", "beta_min", "M", "epsilon_t"), "SongUNet"),
    "VEPrecond": _Precond(formulations.VE, ("sigma_min", "sigma_max"), "SongUNet"),
    "iDDPMPrecond": _Precond(formulations.IDDPM, ("C_1", "C_2", "M"), "DhariwalUNet"),
    "Precond": _Precond(_edm, ("sigma_data",), "UNet", "unet.", ("UNet",)),
}
_EDM2 = "Precond"

_UNCERTAINTY = {
    "logvar_fourier.freqs": "features.freqs",
    "logvar_fourier.phases": "features.phases",
    "logvar_linear.weight": "linear.weight",
}
_NO_EFFECT = ("use_fp16", "label_dropout")
"""How the originals are run and trained: not what their networks compute."""


def from_state_dict(
    state: Mapping[str, Tensor], config: Mapping[str, Any], *, P_mean: float | None = None, P_std: float | None = None
) -> Model:
    """The model of an original EDM or EDM2 network, in evaluation mode and in the network's own units (images: -1 to
    1).

    state: tensors by the original parameter names (EDM: `model.*`; EDM2: `unet.*`, `logvar_*`), of any floating-point
    type; the model's are float32. config: the original constructor's arguments, and `cls`, the preconditioning's class,
    which is EDM2's where left out. P_mean, P_std: of the log-normal levels that EDM or EDM2 was trained with, which the
    state and config do not say; None: the formulation's defaults.

    Raises InputError for classes, arguments and values that are not known here, and for a state that does not fit: it
    names the first parameter that differs and both shapes.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise InputError(f"config is {short(config)}; it must be a mapping of argument names to values")
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"state is a {type(state).__name__}; it must be a mapping of parameter names to tensors")
    for name, value in config.items():
        if not is_plain(value):
            raise InputError(
                f"config {line(name)} is {short(value)}; it must be a number of 64 bits, a text or list of them"
            )
    arguments = dict(config)
    kind = arguments.pop("cls", _EDM2)
    if not isinstance(kind, str) or kind not in _PRECONDS:
        raise unknown("config cls", kind, _PRECONDS)
    precond = _PRECONDS[kind]
    network = arguments.pop("model_type", precond.network)
    if not isinstance(network, str) or network not in precond.networks:
        raise unknown(f"config model_type of {kind}", network, precond.networks)
    options = _network_options(kind, _NETWORKS[network], precond.arguments, arguments, len(state))
    levels = {name: arguments[name] for name in precond.arguments if name in arguments}
    for name, value in levels.items():
        if not (name == "sigma_max" and value == float("inf")):
            check_number(f"config {name}", value)
    if kind == "iDDPMPrecond":
        options["out_channels"] = 2 * check_count("config img_channels", options["in_channels"])

    has_uncertainty = kind == _EDM2 and any(name.startswith("logvar_") for name in state)
    channels = check_count("config logvar_channels", arguments.get("logvar_channels", 128))

    def build() -> tuple[nn.Module, networks.Uncertainty | None]:
        uncertainty = networks.Uncertainty(channels, magnitude_preserving=True) if has_uncertainty else None
        return _NETWORKS[network].made(**options), uncertainty

    # First without memory: the arguments may be of a network that no machine could hold.
    with torch.device("meta"):
        empty, no_uncertainty = made(kind, build)
    expected = {name: tuple(value.shape) for name, value in _named(empty, no_uncertainty, precond.prefix).items()}
    if kind == "iDDPMPrecond":  # its noise levels, which are computed here
        expected["u"] = (check_count("config M", levels.get("M", 1000)) + 1,)
    check_state(state, expected)

    own, uncertainty = made(kind, build)
    with torch.no_grad():
        for name, value in _named(own, uncertainty, precond.prefix).items():
            value.copy_(state[name])
    shape = (options["in_channels"], options["resolution"], options["resolution"])
    parts = _trained(_as_published(kind, made(kind, lambda: precond.formulation(**levels)), shape[-1]), P_mean, P_std)
    model = Model(own, parts, shape=shape, uncertainty=uncertainty)
    model.denoiser.eval()
    return model


def _as_published(kind: str, parts: Formulation, side: int) -> Formulation:
    """The formulation with the published sampler as its default."""
    steps = 32 if kind == _EDM2 else 18 if side <= 32 else 40
    if kind in ("VPPrecond", "VEPrecond"):
        parts = replace(parts, grid=grid.EDM(), process=process.EDM())
    return replace(parts, sampler=samplers.Heun(), num_steps=steps)


def _trained(parts: Formulation, P_mean: float | None, P_std: float | None) -> Formulation:
    """The formulation with the training levels that are known."""
    own = parts.noise_density
    if P_mean is None and P_std is None:
        return parts
    if not isinstance(own, noise_density.LogNormal):
        raise InputError(f"P_mean is {P_mean!r}, P_std is {P_std!r}; {parts.name} is not trained on log-normal levels")
    return replace(
        parts,
        noise_density=noise_density.LogNormal(
            own.P_mean if P_mean is None else P_mean, own.P_std if P_std is None else P_std
        ),
    )


def _network_options(
    kind: str, network: _Network, own: tuple[str, ...], arguments: Mapping[str, Any], tensors: int
) -> dict[str, Any]:
    """Our constructor's arguments."""
    also = ("logvar_channels",) if kind == _EDM2 else ()
    options = dict(network.defaults)
    for name, value in arguments.items():
        if name in network.arguments:
            options[network.arguments[name]] = value
        elif name in network.fixed:
            if value != network.fixed[name]:
                raise InputError(f"config {name} is {short(value)}; it must be {network.fixed[name]!r}")
        elif name not in (*own, *also, *_NO_EFFECT):
            raise unknown(f"config argument of {kind}", name, [*network.arguments, *network.fixed, *own, *also])
    for name in ("img_channels", "img_resolution"):
        check_count(f"config {name}", arguments.get(name, 0))
    blocks = check_count("config num_blocks", arguments.get("num_blocks", 1))
    if blocks > tensors:
        raise InputError(f"config num_blocks is {blocks}; the state has only {tensors} tensors")
    return options


def _named(network: nn.Module, uncertainty: nn.Module | None, prefix: str) -> dict[str, Tensor]:
    """Our tensors by their original names; they share memory with the modules'."""
    named = {prefix + name: value for name, value in network.state_dict().items()}
    if uncertainty is not None:
        ours = uncertainty.state_dict()
        named |= {original: ours[name] for original, name in _UNCERTAINTY.items()}
    return named
