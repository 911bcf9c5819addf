"""What is the UNet's own: any height and width, levels, attention, equivariance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_networks import awake

from edmund.errors import InputError
from edmund.networks import UNet


def small(**options: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(**{"in_channels": 1, "channels": 8, "channel_mult": [1, 2, 2], "attention_levels": [], **options})


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (17, 31), (64, 48), (256, 256), (1, 5), (1, 1)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    network = awake(small(image_channels=1, attention_levels=[2] if size[0] < 100 else []))
    x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    image = torch.zeros_like(x)
    with torch.no_grad():
        before = network(x, torch.zeros(1), image=image)
        assert before.shape == x.shape
        # a change in the last corner is felt there: no row or column is cut off on the way
        image[..., -1, -1] = 1
        after = network(x, torch.zeros(1), image=image)
    assert (after - before)[..., -1, -1].abs() > 1e-4


def test_levels_halve_rounding_up() -> None:
    network = awake(small())
    seen = []
    for module in (*network.encoder, network.coarsest, *reversed(network.decoder)):
        module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    network(torch.zeros(1, 1, 9, 14), torch.zeros(1))
    assert seen == [(9, 14), (5, 7), (3, 4), (5, 7), (9, 14)]


def test_every_pixel_can_depend_on_every_other() -> None:
    """Attention at one level carries a change further than the convolutions reach."""
    for levels, reaches in (([2], True), ([], False)):
        # GroupNorm's statistics see all pixels as well; without them only attention is left
        network = awake(small(attention_levels=levels))
        for module in network.modules():
            for name, child in module.named_children():
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, torch.nn.Identity())
        x = torch.randn(1, 1, 128, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        network(x, torch.zeros(1))[0, 0, 0, 0].backward()
        assert x.grad is not None
        assert bool(x.grad[0, 0, -1].any()) is reaches


def test_attention_is_at_the_coarsest_level_by_default() -> None:
    assert UNet(1, channels=8, channel_mult=[1, 2, 2]).config["attention_levels"] == [2]
    assert UNet(1, channels=8, channel_mult=[1], attention_levels=[]).config["attention_levels"] == []


def test_mirrored_kernels_mirror_the_result() -> None:
    """Within a level the network knows left from right by its kernels only: mirrored, they give the mirrored result."""
    network = awake(small(channel_mult=[1], attention_levels=[0])).double()
    x = torch.randn(2, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    straight = network(x, torch.zeros(2))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.flip(3)
    torch.testing.assert_close(network(x.flip(3), torch.zeros(2)).flip(3), straight, rtol=0, atol=1e-10)


def test_one_level_is_a_plain_residual_network() -> None:
    network = awake(small(channel_mult=[1], attention_levels=[0], blocks=2))
    assert len(network.coarsest.blocks) == 4
    assert len(network.encoder) == len(network.decoder) == 0
    assert network(torch.zeros(1, 1, 5, 5), torch.zeros(1)).shape == (1, 1, 5, 5)


def test_residual_branches_start_at_zero() -> None:
    """At initialisation a block with as many channels in as out is the identity."""
    network = small(attention_levels=[0, 1, 2])
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(network.encoder[0](x, torch.randn(2, 32)), x)


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 1, 8), (4, 1)])
def test_x_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^x has shape .* \[B, 1, H, W\]"):
        small()(torch.zeros(shape), torch.zeros(4))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("in_channels", 0),
        ("channel_mult", []),
        ("channel_mult", 2),
        ("channel_mult", [1, 0]),
        ("attention_levels", [3]),
        ("attention_levels", [-1]),
        ("attention_levels", 1),
        ("image_channels", -1),
        ("out_channels", 0),
    ],
)
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option}"):
        small(**{option: value})


def test_patches_are_channels_of_a_coarser_image() -> None:
    network = awake(small(in_channels=2, image_channels=1, patch=2))
    plain = small(in_channels=8, image_channels=4)
    plain.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    x, image = torch.randn(2, 2, 12, 8, generator=generator), torch.randn(2, 1, 12, 8, generator=generator)

    def coarse(y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(y, 2)

    with torch.no_grad():
        out = network(x, torch.zeros(2), image=image)
        assert torch.equal(coarse(out), plain(coarse(x), torch.zeros(2), image=coarse(image)))


def test_sides_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(InputError, match=r"x has shape \[1, 1, 9, 8\].*multiples of 2"):
        small(patch=2)(torch.zeros(1, 1, 9, 8), torch.zeros(1))
    with pytest.raises(InputError, match="patch is 0"):
        small(patch=0)
