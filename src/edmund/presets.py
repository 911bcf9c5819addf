"""Named recipes, each with the result that it is known or expected to give.

A preset is the document of a config, less the data: the recipes of Karras et al. (2022, Appendix F) on CIFAR-10, FFHQ,
AFHQv2 and ImageNet, those of EDM2 (Karras et al. 2024) on ImageNet, as pixels and as latents, and small ones that two
CPU cores can train. Durations are in images. What is published as trained on a whole data set is trained here on all
but the share `held_out`, which the validation loss is measured on, unless the data come with a test set of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edmund.errors import unknown

_MI = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True)
class Preset:
    """One recipe. document: its sections, as in YAML. expected: the published result and its source, or the measured
    one. parameters: of the network, for data as described. data: what the user has to bring, as samples of `shape` of
    that many `classes` (0: labels are not used).
    """

    name: str
    summary: str
    document: Mapping[str, Mapping[str, Any]]
    expected: str
    parameters: int
    data: str
    shape: tuple[int, int, int]
    classes: int


def named() -> dict[str, Preset]:
    """Every preset by its name."""
    return dict(_PRESETS)


def find(name: str) -> Preset:
    """The preset of that name; InputError, naming the nearest, where there is none."""
    if name not in _PRESETS:
        raise unknown("preset", name, _PRESETS)
    return _PRESETS[name]


_EDM = "Karras et al. 2022"
_EDM2 = "Karras et al. 2024"

_CHURN = {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}

_SONG = {
    "DDPM++": {"embedding": "positional", "noise_mult": 1, "encoder": "standard", "resample_filter": [1, 1]},
    "NCSN++": {"embedding": "fourier", "noise_mult": 2, "encoder": "residual", "resample_filter": [1, 3, 3, 1]},
}

_CIFAR10 = "CIFAR-10, 32 x 32 in colour, 10 classes"
_IMAGENET_64 = "ImageNet, 64 x 64 in colour, 1000 classes"


def _file(labels: bool, **options: Any) -> dict[str, Any]:
    """The section `data`: a file that is still to be named."""
    return {"source": "file", "path": None, "labels": labels, "held_out": 0.01, "transform": "min_max"} | options


def _diffusion(p_mean: float, p_std: float) -> dict[str, Any]:
    """The section `diffusion`: EDM for data of standard deviation 0.5."""
    return {
        "type": "EDM",
        "sigma_data": 0.5,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "rho": 7.0,
        "p_mean": p_mean,
        "p_std": p_std,
    }


def _edm_training(images: int, batch: int, lr: float, augment: float, halflife: int, precision: str) -> dict[str, Any]:
    return {
        "samples": images,
        "batch_size": batch,
        "optimizer": "adam",
        "lr": lr,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "lr_ramp": 10_000_000,
        "lr_schedule": "constant",
        "precision": precision,
        "ema_halflife": halflife,
        "ema_ramp": 0.05,
        "augment": augment,
        "checkpoint_interval": images // 100,
        "validation_interval": images // 100,
        "preview_interval": images // 20,
        "log_interval": 100 * batch,
    }


def _song(
    dataset: str,
    architecture: str,
    *,
    side: int,
    classes: int,
    channel_mult: list[int],
    steps: int,
    batch: int,
    lr: float,
    dropout: float,
    augment: float,
    expected: str,
    parameters: int,
    data: str,
) -> Preset:
    """A row of EDM's with DDPM++ or NCSN++."""
    return Preset(
        name=f"{dataset}-{architecture.lower().replace('+', 'p')}",
        summary=f"{architecture} as EDM trains it (the {'VP' if architecture == 'DDPM++' else 'VE'} architecture)",
        document={
            "diffusion": _diffusion(-1.2, 1.2),
            "sampling": {"sampler": "heun", "steps": steps},
            "data": _file(classes > 0),
            "network": {
                "type": "song_unet",
                "channels": 128,
                "channel_mult": channel_mult,
                "blocks": 4,
                "attention_resolutions": [16],
                "dropout": dropout,
            }
            | _SONG[architecture],
            "training": _edm_training(200_000_000, batch, lr, augment, 500_000, "fp32"),
        },
        expected=expected,
        parameters=parameters,
        data=data,
        shape=(3, side, side),
        classes=classes,
    )


def _cifar10(architecture: str, expected: str, parameters: int) -> Preset:
    return _song(
        "cifar10",
        architecture,
        side=32,
        classes=10,
        channel_mult=[2, 2, 2],
        steps=18,
        batch=512,
        lr=1e-3,
        dropout=0.13,
        augment=0.12,
        expected=expected,
        parameters=parameters,
        data=_CIFAR10,
    )


def _faces(dataset: str, architecture: str, dropout: float, expected: str, parameters: int) -> Preset:
    what = "FFHQ" if dataset == "ffhq64" else "AFHQv2"
    return _song(
        dataset,
        architecture,
        side=64,
        classes=0,
        channel_mult=[1, 2, 2, 2],
        steps=40,
        batch=256,
        lr=2e-4,
        dropout=dropout,
        augment=0.15,
        expected=expected,
        parameters=parameters,
        data=f"{what}, 64 x 64 in colour",
    )


def _edm2_training(
    images: int, lr: float, lr_ref: int, ema_power: float, preview_interval: int | None
) -> dict[str, Any]:
    return {
        "samples": images,
        "batch_size": 2048,
        "optimizer": "adam",
        "lr": lr,
        "betas": [0.9, 0.99],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "lr_ramp": 10_000_000,
        "lr_schedule": "inverse_sqrt",
        "lr_ref": lr_ref,
        "precision": "fp16",
        "uncertainty": True,
        "ema_power": ema_power,
        "ema_widths": [0.05, 0.10],
        "ema_snapshot_interval": images // 64,
        "checkpoint_interval": 8 * _MI,
        "validation_interval": 16 * _MI,
        "preview_interval": preview_interval,
        "log_interval": 128 * 2048,
    }


def _edm2(
    name: str,
    summary: str,
    *,
    channels: int,
    dropout: float,
    diffusion: dict[str, Any],
    data_section: dict[str, Any],
    training: dict[str, Any],
    expected: str,
    parameters: int,
    data: str,
    shape: tuple[int, int, int],
) -> Preset:
    """A row of EDM2's, config G."""
    return Preset(
        name=name,
        summary=summary,
        document={
            "diffusion": diffusion,
            "sampling": {"sampler": "heun", "steps": 32},
            "data": data_section,
            "network": {
                "type": "edm2_unet",
                "channels": channels,
                "channel_mult": [1, 2, 3, 4],
                "blocks": 3,
                "attention_resolutions": [16, 8],
                "dropout": dropout,
            },
            "training": training,
        },
        expected=expected,
        parameters=parameters,
        data=data,
        shape=shape,
        classes=1000,
    )


def _edm2_64(
    size: str, channels: int, lr: float, dropout: float, images: int, fid: float, ema: float, parameters: int
) -> Preset:
    """images: in Mi. ema: the relative width that the published network has, found after its training."""
    return _edm2(
        f"edm2-img64-{size}",
        f"EDM2-{size.upper()} on 64 x 64 pixels",
        channels=channels,
        dropout=dropout,
        diffusion=_diffusion(-0.8, 1.6),
        data_section=_file(True, max_bytes=16 * _GIB),
        training=_edm2_training(images * _MI, lr, 35_000 * 2048, ema, 64 * _MI),
        expected=f"FID {fid} at 63 NFE ({_EDM2})",
        parameters=parameters,
        data=_IMAGENET_64,
        shape=(3, 64, 64),
    )


def _edm2_512(
    size: str, channels: int, lr: float, dropout: float, images: int, expected: str, ema: float, parameters: int
) -> Preset:
    """images: in Mi. ema: the relative width that the published network has, found after its training."""
    return _edm2(
        f"edm2-img512-{size}",
        f"EDM2-{size.upper()} on the latents of 512 x 512 images",
        channels=channels,
        dropout=dropout,
        diffusion=_diffusion(-0.4, 1.0),
        data_section=_file(True, transform="standardise", std=0.5, max_bytes=128 * _GIB),
        training=_edm2_training(images * _MI, lr, 70_000 * 2048, ema, None),
        expected=expected,
        parameters=parameters,
        data="ImageNet, 512 x 512, as latents [4, 64, 64] of Stable Diffusion's VAE, 1000 classes",
        shape=(4, 64, 64),
    )


def _published_512(fid: float) -> str:
    return f"FID {fid} at 63 NFE, decoded to 512 x 512, without guidance ({_EDM2})"


def _small(
    name: str,
    summary: str,
    *,
    p_mean: float,
    network: dict[str, Any],
    images: int,
    batch: int,
    lr: float,
    expected: str,
    parameters: int,
    data: str,
    shape: tuple[int, int, int],
) -> Preset:
    """A recipe of our own for two CPU cores, whose bf16 a processor with AMX runs at three times the speed of fp32."""
    return Preset(
        name=name,
        summary=summary,
        document={
            # Few images are seen: more of them at the noise levels where the class and the outline are decided.
            "diffusion": _diffusion(p_mean, 1.2) | {"sigma_data": None},
            "sampling": {"sampler": "heun", "steps": 18},
            "data": _file(True, held_out=0.1),
            "network": {"type": "unet"} | network,
            "training": {
                "samples": images,
                "batch_size": batch,
                "optimizer": "adam",
                "lr": lr,
                "betas": [0.9, 0.99],
                "lr_ramp": 6_400,
                "lr_schedule": "cosine",
                "label_dropout": 0.1,
                "ema_halflife": 8_000,
                "precision": "bf16",
                "checkpoint_interval": images // 5,
                "validation_interval": images // 2,
                "preview_interval": images // 2,
                "log_interval": 2_560,
            },
        },
        expected=expected,
        parameters=parameters,
        data=data,
        shape=shape,
        classes=10,
    )


_PRESETS = {
    preset.name: preset
    for preset in (
        _small(
            "mnist-small",
            "a small UNet for two CPU cores",
            p_mean=-0.8,
            network={"channels": 32, "channel_mult": [1, 2, 4]},
            images=200_000,
            batch=64,
            lr=2e-3,
            expected="9 min; its classifier sees 92 % (real: 99.7 %), feature distance 0.99 (0.03)",
            parameters=1_219_297,
            data="MNIST, 28 x 28 in grey, 10 classes",
            shape=(1, 28, 28),
        ),
        _small(
            "cifar10-small",
            "a small UNet for two CPU cores",
            p_mean=-0.4,
            network={"channels": 128, "channel_mult": [1, 2], "patch": 2},
            images=160_000,
            batch=32,
            lr=2e-3,
            expected="14 min; at guidance 2.5 its classifier sees 72 % (real: 82 %), feature distance 4.6 (0.18)",
            parameters=5_139_596,
            data=_CIFAR10,
            shape=(3, 32, 32),
        ),
        _cifar10("DDPM++", f"FID 1.79, without labels 1.97, at 35 NFE ({_EDM})", 55_735_299),
        _cifar10("NCSN++", f"of DDPM++: FID 1.79, without labels 1.97, at 35 NFE ({_EDM})", 56_400_643),
        _faces("ffhq64", "DDPM++", 0.05, f"FID 2.39 at 79 NFE ({_EDM})", 61_805_571),
        _faces("ffhq64", "NCSN++", 0.05, f"of DDPM++: FID 2.39 at 79 NFE ({_EDM})", 62_761_091),
        _faces("afhqv2-64", "DDPM++", 0.25, f"FID 1.96 at 79 NFE ({_EDM})", 61_805_571),
        _faces("afhqv2-64", "NCSN++", 0.25, f"of DDPM++: FID 1.96 at 79 NFE ({_EDM})", 62_761_091),
        Preset(
            name="imagenet64-adm",
            summary="ADM as EDM trains it",
            document={
                "diffusion": _diffusion(-1.2, 1.2),
                "sampling": {"sampler": "heun", "steps": 256} | _CHURN,
                "data": _file(True, max_bytes=16 * _GIB),
                "network": {
                    "type": "adm",
                    "channels": 192,
                    "channel_mult": [1, 2, 3, 4],
                    "blocks": 3,
                    "attention_resolutions": [32, 16, 8],
                    "dropout": 0.1,
                },
                "training": _edm_training(2_500_000_000, 4096, 1e-4, 0.0, 50_000_000, "fp16"),
            },
            expected=f"FID 1.36 at 511 NFE ({_EDM})",
            parameters=295_899_267,
            data=_IMAGENET_64,
            shape=(3, 64, 64),
            classes=1000,
        ),
        _edm2_64("s", 192, 0.0100, 0.0, 1024, 1.58, 0.075, 280_209_253),
        _edm2_64("m", 256, 0.0090, 0.1, 2048, 1.43, 0.060, 497_803_045),
        _edm2_64("l", 320, 0.0080, 0.1, 1024, 1.33, 0.040, 777_492_197),
        _edm2_64("xl", 384, 0.0070, 0.1, 640, 1.33, 0.040, 1_119_276_709),
        # No network of this size was published by itself; its duration and width are ours.
        _edm2_512("xxs", 64, 0.0170, 0.0, 2048, "none published; 2048 Mi images are our choice", 0.135, 31_308_901),
        _edm2_512("xs", 128, 0.0120, 0.0, 2048, _published_512(3.53), 0.135, 124_713_125),
        _edm2_512("s", 192, 0.0100, 0.0, 2048, _published_512(2.56), 0.130, 280_212_709),
        _edm2_512("m", 256, 0.0090, 0.1, 2048, _published_512(2.25), 0.100, 497_807_653),
        _edm2_512("l", 320, 0.0080, 0.1, 1792, _published_512(2.06), 0.085, 777_497_957),
        _edm2_512("xl", 384, 0.0070, 0.1, 1280, _published_512(1.96), 0.085, 1_119_283_621),
        _edm2_512("xxl", 448, 0.0065, 0.1, 896, _published_512(1.91), 0.070, 1_523_164_645),
    )
}
