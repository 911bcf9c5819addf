"""SongUNet and ADM: the original networks' numbers, names and sizes, and what is their own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_networks import awake
from torch import Tensor, nn

from edmund import preconditioning
from edmund.denoiser import Preconditioned
from edmund.errors import InputError
from edmund.networks import ADM, SongUNet
from edmund.networks._blocks import Resample
from edmund.networks.embedding import FourierFeatures, PositionalFeatures

GOLDEN = ["ddpmpp_edm", "ddpmpp_vp", "ncsnpp_edm", "ncsnpp_ve", "adm_edm", "adm_iddpm"]
NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": ADM}
PRECONDITIONINGS: dict[str, Callable[[], preconditioning.Preconditioning]] = {
    "EDMPrecond": lambda: preconditioning.EDM(0.5),
    "VPPrecond": preconditioning.VP,
    "VEPrecond": preconditioning.VE,
    "iDDPMPrecond": preconditioning.IDDPM,
}
ARGUMENTS = {
    "img_channels": "in_channels",
    "img_resolution": "resolution",
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "num_blocks": "blocks",
    "attn_resolutions": "attention_resolutions",
    "embedding_type": "embedding",
    "channel_mult_noise": "noise_mult",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
    "label_dim": "label_dim",
    "augment_dim": "augment_dim",
    "dropout": "dropout",
}
NCSNPP: dict[str, Any] = {
    "embedding": "fourier",
    "noise_mult": 2,
    "encoder": "residual",
    "resample_filter": [1, 3, 3, 1],
}


def golden(shared: Path, name: str) -> tuple[Preconditioned, dict[str, Tensor]]:
    """The denoiser with the original's weights, and the file's inputs and outputs."""
    with safe_open(shared / "golden" / f"network_{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, no dict)
    kind = config.pop("cls")
    network = NETWORKS[config.pop("model_type")]
    extra = config["img_channels"] if kind == "iDDPMPrecond" else 0
    arguments = {ARGUMENTS[key]: value for key, value in config.items()}
    made = network(**arguments, out_channels=config["img_channels"] + extra).eval()
    made.load_state_dict(
        {key.removeprefix("state.model."): value for key, value in tensors.items() if key.startswith("state.model.")}
    )
    given = {key.removeprefix("io."): value for key, value in tensors.items() if key.startswith("io.")}
    return Preconditioned(made, PRECONDITIONINGS[kind](), extra_channels=extra), given


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("dtype_", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", GOLDEN)
def test_the_originals_denoised_images(shared: Path, name: str, dtype_: torch.dtype, tolerance: float) -> None:
    denoiser, given = golden(shared, name)
    denoiser.network.to(dtype_)
    condition = {}
    if "class_labels" in given:
        condition["labels"] = given["class_labels"]
    if "augment_labels" in given:
        condition["augment_labels"] = given["augment_labels"]
    with torch.no_grad():
        out = denoiser(given["x"], given["sigma"], **condition)
        assert out.dtype == torch.float32
        assert apart(out, given["denoised"]) < tolerance
        if "labels" in condition:  # the file's are one-hot: the classes by number are the same
            by_number = denoiser(given["x"], given["sigma"], **condition | {"labels": condition["labels"].argmax(1)})
            assert torch.equal(by_number, out)
        if condition.pop("augment_labels", None) is not None:
            out = denoiser(given["x"], given["sigma"], **condition)
            assert apart(out, given["denoised_without_augment_labels"]) < tolerance


@pytest.mark.parametrize("name", GOLDEN)
def test_the_originals_names_and_shapes_are_ours(shared: Path, name: str) -> None:
    denoiser, _ = golden(shared, name)  # loads strictly: no name is missing, none too many
    rebuilt = type(denoiser.network)(**denoiser.network.config)
    ours = {key: value.shape for key, value in rebuilt.state_dict().items()}
    assert ours == {key: value.shape for key, value in denoiser.network.state_dict().items()}


def test_the_learned_variance_is_the_second_half(shared: Path) -> None:
    denoiser, given = golden(shared, "adm_iddpm")
    with torch.no_grad():
        out, extra = denoiser.with_extra(given["x"], given["sigma"])
    assert apart(out, given["denoised"]) < 1e-5
    assert extra.shape == out.shape
    assert extra.std() > 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "millions"),
    [
        (SongUNet, {"augment_dim": 9}, 55.73),
        (SongUNet, {"augment_dim": 9, **NCSNPP}, 56.40),
        (SongUNet, {"augment_dim": 9, "resolution": 64, "channel_mult": [1, 2, 2, 2]}, 61.81),
        (SongUNet, {"augment_dim": 9, "resolution": 64, "channel_mult": [1, 2, 2, 2], **NCSNPP}, 62.76),
        (ADM, {"label_dim": 1000}, 295.90),
    ],
)
def test_the_published_sizes(kind: type[nn.Module], options: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        network = kind(in_channels=3, **options)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


STYLES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "ddpmpp": (SongUNet, {}),
    "ncsnpp": (SongUNet, NCSNPP),
    "skip": (SongUNet, {"encoder": "skip", "decoder": "skip", "resample_filter": [1, 3, 3, 1]}),
    "box_residual": (SongUNet, {"encoder": "residual", "decoder": "skip"}),
    "adm": (ADM, {}),
}
styles = pytest.mark.parametrize("style", STYLES)


def small(style: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    kind, own = STYLES[style]
    base = {"in_channels": 2, "resolution": 16, "channels": 8, "channel_mult": [1, 2, 2], "blocks": 1}
    return kind(**{**base, "attention_resolutions": [8], **own, **options})


@styles
@pytest.mark.parametrize("size", [(16, 16), (8, 20), (4, 4), (24, 12)])
def test_rectangles(style: str, size: tuple[int, int]) -> None:
    network = awake(small(style, image_channels=1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, *size, generator=generator)
    image = torch.randn(2, 1, *size, generator=generator)
    with torch.no_grad():
        before = network(x, torch.zeros(2), image=image)
        assert before.shape == x.shape
        image[..., -1, -1] += 1
        after = network(x, torch.zeros(2), image=image)
    assert (after - before)[..., -1, -1].abs().min() > 1e-4


@styles
@pytest.mark.parametrize(
    ("size", "side"), [((6, 8), "height"), ((8, 10), "width"), ((16, 1), "width"), ((0, 4), "height")]
)
def test_sizes_that_the_levels_cannot_halve(style: str, size: tuple[int, int], side: str) -> None:
    with pytest.raises(InputError, match=rf"^x has shape .*{size[1]}\]; .* its {side} must be a multiple of 4$"):
        small(style)(torch.zeros(1, 2, *size), torch.zeros(1))


@styles
def test_the_mirrored_network_gives_the_mirrored_result(style: str) -> None:
    """What resamples is symmetric: no half-pixel shift from level to level."""
    network = awake(small(style)).double()
    x = torch.randn(2, 2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    straight = network(x, torch.zeros(2))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(2, 3)
    torch.testing.assert_close(network(x.flip(2, 3), torch.zeros(2)).flip(2, 3), straight, rtol=0, atol=1e-10)


@styles
def test_zero_at_initialisation_and_gradients_that_start(style: str) -> None:
    network = small(style, label_dim=3, augment_dim=2)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    out = network(x, torch.zeros(2), labels=torch.tensor([0, 2]))
    assert not out.any()
    out.sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []
    assert any(parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None)


@styles
def test_dropout_is_in_training_only(style: str) -> None:
    network = awake(small(style, dropout=0.5))
    x = torch.ones(1, 2, 8, 8)
    assert torch.equal(network(x, torch.zeros(1)), network(x, torch.zeros(1)))
    network.train()
    assert not torch.equal(network(x, torch.zeros(1)), network(x, torch.zeros(1)))


@styles
def test_the_decoder_reads_all_that_the_encoder_left(style: str) -> None:
    """One kept tensor a block, of the level's own resolution: what the coarser levels know enters by h alone."""
    network = awake(small(style))
    kept: list[Tensor] = []
    read: list[Tensor] = []
    for key, module in network.enc.items():
        if "_aux_" not in key:
            module.register_forward_hook(lambda _, __, out: kept.append(out))
    for key, module in network.dec.items():
        if "_block" in key:
            module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    network(torch.randn(1, 2, 16, 8, generator=torch.Generator().manual_seed(5)), torch.zeros(1))
    assert len(kept) == len(read)
    for left, given in zip(reversed(kept), read, strict=True):
        end = given[:, -left.shape[1] :]
        assert end.shape == left.shape
        # where the input itself is joined in, what is kept has it too
        assert torch.equal(end, left) or style in ("ncsnpp", "skip", "box_residual")


def test_attention_is_where_the_papers_have_it() -> None:
    def attending(network: nn.Module) -> list[str]:
        return sorted(key.removesuffix(".qkv") for key, module in network.named_modules() if key.endswith(".qkv"))

    assert attending(small("ddpmpp")) == ["dec.4x4_in0", "dec.8x8_block1", "enc.8x8_block0"]
    assert attending(small("adm")) == ["dec.4x4_in0", "dec.8x8_block0", "dec.8x8_block1", "enc.8x8_block0"]


def test_adm_heads_have_64_channels() -> None:
    with torch.device("meta"):
        network = ADM(3)
    heads = {module.qkv.in_channels // module.heads for module in network.modules() if getattr(module, "heads", 0)}
    assert heads == {64}


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 5, 10, 10, 5, 1]])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_resampling_keeps_linear_ramps(direction: Any, taps: list[int]) -> None:
    """Away from the borders, a ramp sampled at pixel centres comes out as the ramp at the new centres (the box repeats
    pixels, so there each pair has the ramp's mean).
    """
    centres = torch.arange(16, dtype=torch.float64) + 0.5
    ramp = centres.expand(1, 1, 16, 16)
    out = Resample(direction, taps).double()(ramp)[0, 0]
    assert out.shape == ((8, 8) if direction == "down" else (32, 32))
    expected = (torch.arange(out.shape[1]) + 0.5) * (16 / out.shape[1])
    middle = out[len(out) // 2]
    if direction == "up" and taps == [1, 1]:
        middle, expected = middle.unflatten(0, (-1, 2)).mean(1), expected.unflatten(0, (-1, 2)).mean(1)
    torch.testing.assert_close(middle[4:-4], expected[4:-4].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_the_box_is_its_filter(direction: Any) -> None:
    """Pooling and repeating pixels are the convolutions with [1, 1] that the original runs."""
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(4))
    module = Resample(direction, [1, 1])
    kernel = module.resample_filter.expand(3, 1, 2, 2)
    if direction == "down":
        expected = torch.nn.functional.conv2d(x, kernel, stride=2, groups=3)
    else:
        expected = torch.nn.functional.conv_transpose2d(x, 4 * kernel, stride=2, groups=3)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6)


def test_positional_features() -> None:
    levels = torch.tensor([0.0, 1.5, 999.0])
    for endpoint, slowest in ((True, 1e-4), (False, 1e-4 ** (3 / 4))):
        features = PositionalFeatures(8, endpoint)(levels)
        angles = levels[:, None].double() * torch.logspace(0, math.log10(slowest), 4, dtype=torch.float64)
        expected = torch.cat([angles.cos(), angles.sin()], 1)
        torch.testing.assert_close(features.double(), expected, rtol=0, atol=1e-4)


def test_fourier_frequencies_are_kept_with_the_weights_and_never_rounded() -> None:
    torch.manual_seed(0)
    features = FourierFeatures(2000)
    exact = features.freqs.clone()
    assert abs(exact.std().item() - 16) < 1.5
    assert torch.equal(features.to(torch.bfloat16).freqs, exact)
    assert torch.equal(features.double().freqs, exact)
    assert torch.equal(features.state_dict()["freqs"], exact)
    angles = 2 * math.pi * 0.3 * exact.double()
    expected = torch.cat([angles.cos(), angles.sin()])
    torch.testing.assert_close(features(torch.tensor([0.3]))[0].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("style", "option", "value"),
    [
        ("ddpmpp", "embedding", "fouriers"),
        ("ddpmpp", "encoder", "progressive"),
        ("ddpmpp", "decoder", "residual"),
        ("ddpmpp", "resample_filter", [1, 2, 1]),
        ("ddpmpp", "resample_filter", [1, 3]),
        ("ddpmpp", "resample_filter", []),
        ("ddpmpp", "resample_filter", ["a", "a"]),
        ("ddpmpp", "resample_filter", 2),
        ("ddpmpp", "noise_mult", 0),
        ("adm", "in_channels", 0),
        ("adm", "resolution", 18),
        ("adm", "resolution", 0),
        ("adm", "channel_mult", []),
        ("adm", "channel_mult", [1, 0]),
        ("adm", "attention_resolutions", [32]),
        ("adm", "attention_resolutions", 8),
        ("adm", "embedding_mult", 0),
        ("adm", "image_channels", -1),
        ("adm", "out_channels", 0),
        ("adm", "label_dim", -1),
    ],
)
def test_bad_options_are_named(style: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option}") as error:
        small(style, **{option: value})
    assert "\n" not in str(error.value)
