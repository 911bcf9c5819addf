"""What is the transformer's own: patches, rotary positions, any size, one dimension, adaLN-zero, tokens of context."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_networks import awake
from torch import Tensor

from edmund import formulation, transform
from edmund.errors import InputError
from edmund.model import Model, load
from edmund.networks import DiT
from edmund.networks.dit import _grid, _rotated, _rotation, _SelfAttention

F64 = torch.float64


def small(**options: Any) -> DiT:
    torch.manual_seed(0)
    return DiT(**{"in_channels": 1, "channels": 16, "blocks": 2, "heads": 2, **options})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def everything(dimensions: int) -> tuple[DiT, tuple[Tensor, Tensor], dict[str, Tensor]]:
    """A network that knows every condition, and a batch of three for it."""
    options = {"label_dim": 4, "context_dim": 3, "image_channels": 2, "augment_dim": 2, "dimensions": dimensions}
    size = (6, 4)[:dimensions]
    condition = {
        "labels": torch.tensor([0, 3, -1]),
        "context": normal(3, 5, 3, seed=1),
        "image": normal(3, 2, *size, seed=2),
        "augment_labels": normal(3, 2, seed=3),
    }
    return awake(small(**options)), (normal(3, 1, *size), normal(3, seed=4)), condition


@pytest.mark.parametrize("dimensions", [1, 2])
def test_zero_at_initialisation_and_every_block_the_identity(dimensions: int) -> None:
    network = small(dimensions=dimensions, context_dim=3)
    size = (8, 12)[:dimensions]
    tokens = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, out: tokens.append((inputs[0], out)))
    out = network(normal(2, 1, *size), normal(2, seed=1), context=normal(2, 3, seed=2))
    assert out.shape == (2, 1, *size)
    assert not out.any()
    assert len(tokens) == 2 and all(torch.equal(before, after) and before.any() for before, after in tokens)


@pytest.mark.parametrize("axes", [1, 2])
def test_scores_depend_on_relative_positions_only(axes: int) -> None:
    """q at p and k at q score the same wherever the two stand, and differently at another distance."""
    positions = _grid(torch.Size((3, 4)[:axes]), F64, torch.device("cpu"))
    query, key = normal(len(positions), 8, seed=1).to(F64), normal(len(positions), 8, seed=2).to(F64)

    def scores(shift: list[int], of_keys: int = 0) -> Tensor:
        moved = positions + torch.tensor(shift[:axes], dtype=F64)
        return _rotated(query, _rotation(moved, 8)) @ _rotated(key, _rotation(moved + of_keys, 8)).mT

    for shift in ([1, 0], [5, -7], [100, 30]):
        torch.testing.assert_close(scores(shift), scores([0, 0]), rtol=0, atol=1e-11)
    assert (scores([0, 0], of_keys=1) - scores([0, 0])).abs().max() > 0.1


def test_rotations_keep_lengths_and_turn_by_the_position() -> None:
    x = normal(6, 8).to(F64)
    cos, sin = _rotation(torch.arange(6, dtype=F64)[:, None], 8)
    turned = _rotated(x, (cos, sin))
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1), rtol=1e-14, atol=0)
    assert torch.equal(turned[0], x[0])
    # as complex numbers: pair i of token p times exp(j p 10000^(-i / pairs))
    angle = torch.arange(6, dtype=F64)[:, None] * 10_000.0 ** -(torch.arange(4, dtype=F64) / 4)
    expected = torch.complex(x[:, :4], x[:, 4:]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], 1), rtol=0, atol=1e-14)


def test_shifted_tokens_give_the_shifted_attention() -> None:
    """The same tokens one patch further along: the output at each is what it was. Swapped tokens: it is not."""
    attention = awake(_SelfAttention(16, 2)).double()
    tokens = normal(1, 12, 16).to(F64)
    positions = _grid(torch.Size((3, 4)), F64, torch.device("cpu"))
    before = attention(tokens, _rotation(positions, 8))
    shifted = attention(tokens, _rotation(positions + torch.tensor([0.0, 1.0], dtype=F64), 8))
    torch.testing.assert_close(shifted, before, rtol=0, atol=1e-12)
    order = torch.tensor([1, 0, *range(2, 12)])
    swapped = attention(tokens[:, order], _rotation(positions, 8))
    assert (swapped[:, 2:] - before[:, 2:]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("patch", "size"), [(2, (2, 2)), (2, (8, 14)), (1, (3, 5)), (4, (16, 4)), (2, (30,)), (3, (3,)), (1, (7,))]
)
def test_any_multiple_of_the_patch(patch: int, size: tuple[int, ...]) -> None:
    """A patch's pixels go in and come out at their own place."""
    network = awake(small(patch=patch, dimensions=len(size), in_channels=2)).double()
    x = normal(2, 2, *size).to(F64)
    out = network(x, torch.zeros(2))
    assert out.shape == x.shape
    # with the blocks idle each patch speaks for itself: a changed last pixel is felt in the last patch alone
    for block in network.blocks:
        block.modulation.weight.data.zero_()
        block.modulation.bias.data.zero_()
    changed = x.clone()
    changed[(..., *(-1 for _ in size))] += 1
    felt = (network(changed, torch.zeros(2)) - network(x, torch.zeros(2))).abs().amax(dim=(0, 1))
    inside = torch.zeros(size, dtype=torch.bool)
    inside[tuple(slice(-patch, None) for _ in size)] = True
    assert bool((felt[inside] > 1e-6).all()) and not felt[~inside].any()


def test_every_patch_hears_every_other() -> None:
    network = awake(small(blocks=1)).double()
    x = normal(1, 1, 8, 12).to(F64).requires_grad_()
    network(x, torch.zeros(1))[0, 0, 0, 0].backward()
    assert x.grad is not None and bool(x.grad.all())


def test_patches_come_back_as_they_were_cut() -> None:
    """Identity maps in and out: the output is the normalised patches of the input, each pixel in its place."""
    network = small(channels=8, in_channels=2, heads=2)
    network.patch_in.weight.data = torch.eye(8).view(4, 2, 8).permute(2, 1, 0).reshape(8, 2, 2, 2)
    network.patch_in.bias.data.zero_()
    network.patch_out.weight.data = torch.eye(8)
    x = normal(3, 2, 4, 6)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)
    mean, var = patches.mean((1, 4, 5), keepdim=True), patches.var((1, 4, 5), keepdim=True, unbiased=False)
    expected = ((patches - mean) / (var + 1e-6).sqrt()).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    torch.testing.assert_close(network(x, torch.zeros(3)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("key", ["labels", "context", "image", "augment_labels"])
def test_each_condition_changes_the_output(dimensions: int, key: str) -> None:
    network, given, condition = everything(dimensions)
    before = network(*given, **condition)
    condition[key] = condition[key].clone()
    condition[key][0] = (condition[key][0] + 1) % 4
    after = network(*given, **condition)
    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_dropped_condition_is_the_learned_null(dimensions: int) -> None:
    network, given, condition = everything(dimensions)
    dropped = torch.tensor([True, False, True])
    out = network(*given, condition_dropped=dropped, **condition)
    other = dict(condition, context=7 * condition["context"][:, :2], image=-condition["image"])
    unheard = network(*given, condition_dropped=dropped, **other)
    torch.testing.assert_close(unheard[dropped], out[dropped], rtol=0, atol=1e-5)
    torch.testing.assert_close(out[~dropped], network(*given, **condition)[~dropped], rtol=0, atol=1e-6)
    for null in (network.null_token, network.conditioning.null_context):
        before = null.data.clone()
        null.data += 1
        moved = (network(*given, condition_dropped=dropped, **condition) - out).abs().flatten(1).amax(1)
        null.data = before
        assert bool((moved[dropped] > 1e-3).all()) and not moved[~dropped].any()


def test_patches_attend_to_the_tokens_of_the_context_each_for_itself() -> None:
    """The pooled context says the same to all patches; cross-attention does not."""
    network, given, condition = everything(2)
    network.conditioning.context.out.weight.data.zero_()  # the pooled context is silent
    before = network(*given, **condition)
    after = network(*given, **dict(condition, context=condition["context"].flip(2)))
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("dimensions", [1, 2])
def test_overfits_a_batch_of_other_sizes(dimensions: int) -> None:
    """x is zero: where a patch lies, and which label is meant, is all the network has to go by."""
    network = small(dimensions=dimensions, label_dim=2, channels=32, blocks=1)
    targets = [normal(2, 1, *size[:dimensions], seed=9) for size in ((4, 8), (6, 6))]
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(200):
        loss = torch.stack(
            [
                (network(torch.zeros_like(target), torch.zeros(2), labels=torch.arange(2)) - target).square().mean()
                for target in targets
            ]
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 10)])
def test_saved_and_loaded(tmp_path: Path, shape: tuple[int, ...]) -> None:
    network = awake(small(dimensions=len(shape) - 1, label_dim=3))
    model = Model(network, formulation.EDM(0.5), transform.Log1p(), shape=shape)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert isinstance(again.network, DiT) and again.network.config == network.config
    options: dict[str, Any] = {"labels": torch.tensor([0, 2]), "num_steps": 3, "progress": False}
    assert torch.equal(model.sample(2, **options), again.sample(2, **options))


def test_as_many_parameters_as_the_paper() -> None:
    """DiT-XL/2 at 256 x 256: 675 M, of which a block has 18 d^2 + 15 d; ours differs in what is named here."""
    d, blocks = 1152, 28
    block = (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)
    patches = (16 * d + d) + (32 * d + 32)
    told = (256 * d + d) + (d * d + d) + 1001 * d  # noise level, and 1000 classes with "none" as one more
    published = blocks * block + (2 * d * d + 2 * d) + patches + told + 256 * d  # the last: fixed positions
    assert math.isclose(published, 675.1e6, rel_tol=1e-4)
    with torch.device("meta"):
        network = DiT(4, patch=2, channels=d, blocks=blocks, heads=16, label_dim=1000, out_channels=8)
    ours = sum(parameter.numel() for parameter in network.parameters())
    normalised = blocks * 2 * d // 16  # gains of queries and keys
    assert ours == published - 256 * d + 16 * d + normalised - 128 * d - d  # cosines, gains; fewer features, no "none"


@pytest.mark.parametrize(
    ("dimensions", "shape", "tells"),
    [
        (2, (2, 1, 8, 9), r"patch = 2 its width must be a multiple of 2"),
        (2, (2, 1, 7, 8), r"patch = 2 its height must be a multiple of 2"),
        (2, (2, 1, 0, 8), r"its height must"),
        (1, (2, 1, 5), r"its length must be a multiple of 2"),
        (1, (2, 1, 8, 8), r"\[B, 1, L\]"),
        (2, (2, 1, 8), r"\[B, 1, H, W\]"),
        (2, (2, 3, 8, 8), r"\[B, 1, H, W\]"),
    ],
)
def test_x_that_does_not_fit_is_refused(dimensions: int, shape: tuple[int, ...], tells: str) -> None:
    with pytest.raises(InputError, match=rf"^x has shape \[.*{tells}"):
        small(dimensions=dimensions)(torch.zeros(shape), torch.zeros(2))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("in_channels", 0),
        ("patch", 0),
        ("heads", 0),
        ("heads", 3),
        ("heads", 8),
        ("dimensions", 3),
        ("dimensions", 0),
        ("image_channels", -1),
        ("out_channels", 0),
    ],
)
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option} is {value}"):
        small(**{option: value})
