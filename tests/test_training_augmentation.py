from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import assert_same_weights, options

import edmund.training.augmentation as module
from edmund import formulation, noise
from edmund.config import Config
from edmund.errors import InputError
from edmund.model import Model, load
from edmund.networks import MLP, UNet
from edmund.training import Trainer, TrainingOptions, TrainingResult
from edmund.training.augmentation import Augmentation, Placements
from edmund.training.objective import Objective, levels, normals
from edmund.training.order import DataOrder, Part
from edmund.training.validation import Validation

H, W = 18, 24
ALWAYS = Augmentation(1.0)
FIELDS = [field.name for field in dataclasses.fields(Placements)]


def keys(n: int, seed: int = 0) -> Tensor:
    return noise.keys(seed, torch.arange(n))


def placed(**given: float) -> Placements:
    """One image placed so; the rest of it is nothing."""
    return Placements(**{name: torch.tensor([given.get(name, 0.0)], dtype=torch.float64) for name in FIELDS})


Points = tuple[Tensor, Tensor]


def centres(height: int = H, width: int = W) -> Points:
    """x and y [height, width] of the pixels from the image's centre, to the right and down."""
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    return x.expand(height, width), y[:, None].expand(height, width)


def wave(x: Tensor, y: Tensor) -> Tensor:
    """A sum of waves of at most 1/8 cycles a pixel, no symmetry, that the mirrors at the edges go on with."""
    u, v = math.pi * (x / W + 0.5), math.pi * (y / H + 0.5)
    return torch.cos(3 * u) * torch.cos(2 * v) + 0.5 * torch.cos(6 * u + 0 * v) + torch.cos(u) * torch.cos(4 * v)


# Where a point came from, each written as its own inverse.


def unturned(angle: float) -> Callable[[Tensor, Tensor], Points]:
    """Back by an anticlockwise turn; y points down, so anticlockwise takes (1, 0) to (cos, -sin)."""
    c, s = math.cos(angle), math.sin(angle)
    return lambda x, y: (c * x - s * y, s * x + c * y)


def unflipped(x: Tensor, y: Tensor) -> Points:
    return -x, y


def ungrown(n: float) -> Callable[[Tensor, Tensor], Points]:
    return lambda x, y: (x / 2 ** (0.2 * n), y / 2 ** (0.2 * n))


def unstretched(n: float, axis: float) -> Callable[[Tensor, Tensor], Points]:
    """The component along the axis divided by 2^(0.2 n), that across it multiplied."""
    ax, ay = math.cos(axis), -math.sin(axis)

    def back(x: Tensor, y: Tensor) -> Points:
        along, across = (x * ax + y * ay) / 2 ** (0.2 * n), (-x * ay + y * ax) * 2 ** (0.2 * n)
        return along * ax - across * ay, along * ay + across * ax

    return back


def unmoved(right: float, down: float) -> Callable[[Tensor, Tensor], Points]:
    return lambda x, y: (x - right * W / 8, y - down * H / 8)


CASES: list[tuple[dict[str, float], list[Callable[[Tensor, Tensor], Points]]]] = [
    ({"angle": 0.3}, [unturned(0.3)]),
    ({"angle": -2.5}, [unturned(-2.5)]),
    ({"scale": 1.5}, [ungrown(1.5)]),
    ({"scale": -1.5}, [ungrown(-1.5)]),
    ({"anisotropy": 1.0, "axis": 0.7}, [unstretched(1.0, 0.7)]),
    ({"anisotropy": -1.0}, [unstretched(-1.0, 0.0)]),
    ({"right": 0.1, "down": -0.27}, [unmoved(0.1, -0.27)]),
    ({"right": 13.7}, [unmoved(13.7, 0.0)]),
    ({"x_flip": 1, "right": 0.1}, [unmoved(0.1, 0), unflipped]),
    ({"y_flip": 1, "down": 0.1}, [unmoved(0, 0.1), unturned(math.pi), unflipped]),
    # The last is undone first.
    (
        {
            "x_flip": 1,
            "scale": 0.6,
            "angle": 1.1,
            "anisotropy": 0.8,
            "axis": -2.0,
            "right": 0.4,
            "down": 1.3,
        },
        [unmoved(0.4, 1.3), unstretched(0.8, -2.0), unturned(1.1), ungrown(0.6), unflipped],
    ),
]


@pytest.mark.parametrize(("given", "back"), CASES)
def test_an_analytic_image_is_moved_to_where_it_says(
    given: dict[str, float],
    back: list[Callable[[Tensor, Tensor], Points]],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    image = wave(*centres())[None, None].to(device, dtype)
    points = centres()
    for step in back:
        points = step(*points)
    moved = ALWAYS.apply(image, placed(**given))
    assert (moved.device, moved.dtype, moved.shape) == (image.device, image.dtype, image.shape)
    assert (moved[0, 0].cpu() - wave(*points)).abs().max() < 3e-4


def test_a_quarter_turn_is_anticlockwise() -> None:
    image = wave(*centres(W, W))[None, None]
    turned = ALWAYS.apply(image, placed(angle=math.pi / 2))
    assert torch.allclose(turned, torch.rot90(image, 1, (2, 3)), atol=2e-4)


def test_more_of_scale_is_larger_and_positive_shifts_go_right_and_down() -> None:
    x, y = centres(32, 32)
    blob = torch.exp(-(x**2 + y**2) / 8)[None, None]
    assert ALWAYS.apply(blob, placed(scale=1.0)).sum() == pytest.approx(blob.sum().item() * 2**0.4, rel=1e-3)
    moved = ALWAYS.apply(blob, placed(right=1.0, down=-0.5))[0, 0]
    assert divmod(int(moved.argmax()), 32) in {(13, 19), (13, 20), (14, 19), (14, 20)}  # 4 right, 2 up, of 15.5


@pytest.mark.parametrize(("cycles", "error"), [(1 / 8, 1e-4), (1 / 4, 1.2e-3), (3 / 8, 7e-3)])
def test_sub_pixel_shifts_of_waves_have_the_stated_error(cycles: float, error: float) -> None:
    x, _ = centres(1, 32)
    phase = 2 * math.pi * cycles * 16

    def row(x: Tensor) -> Tensor:
        return torch.cos(2 * math.pi * cycles * x + phase)

    for shift in (0.1, 0.25, 0.5, 0.77):
        moved = ALWAYS.apply(row(x)[None, None], placed(right=shift / 4))
        assert (moved[0, 0] - row(x - shift)).abs().max() < error


def test_whole_pixels_of_noise_move_as_they_are_nearly() -> None:
    image = torch.randn(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = ALWAYS.apply(image, placed(right=1.0, down=0.5))  # by 2 and by 1
    difference = moved[..., 1:, 2:] - image[..., :-1, :-2]
    assert difference.square().mean().sqrt() < 0.05


def test_a_shrunk_image_does_not_alias() -> None:
    x, y = centres(32, 32)
    fine = torch.cos(2 * math.pi * 14 / 32 * (x + 16)) + 0 * y
    shrunk = ALWAYS.apply(fine[None, None], placed(scale=-5.0))  # to half its size: 0.875 cycles a new pixel
    assert shrunk.abs().max() < 5e-3
    turned = ALWAYS.apply(fine[None, None], placed(scale=-5.0, angle=0.4))
    assert turned.abs().max() < 0.02


def test_only_what_would_alias_is_filtered_and_along_the_new_axes() -> None:
    x, y = centres(48, 48)
    window = torch.exp(-(x**2 + y**2) / (2 * 5**2))

    def packet(direction: float) -> Tensor:
        """0.35 cycles a pixel in a direction, anticlockwise from x."""
        c, s = math.cos(direction), math.sin(direction)
        return (torch.cos(2 * math.pi * 0.35 * (c * x - s * y)) * window)[None, None]

    # Turned by 0.8 and shrunk to half along x: what then runs along x has 0.7 cycles a pixel, what runs along y 0.175.
    how = placed(angle=0.8, anisotropy=-5.0)
    assert ALWAYS.apply(packet(-0.8), how).abs().max() < 0.02
    kept = ALWAYS.apply(packet(-0.8 + math.pi / 2), how)
    assert kept.square().sum() == pytest.approx(packet(0).square().sum().item(), rel=0.02)  # the area is kept


def test_an_edge_rings_little_and_not_far() -> None:
    image = torch.zeros(1, 1, 1, 32, dtype=torch.float64)
    image[..., 16:] = 1
    moved = ALWAYS.apply(image, placed(right=0.125))[0, 0, 0]  # by half a pixel
    assert moved[16] == pytest.approx(0.5, abs=1e-6)
    assert moved.min() > -0.15 and moved.max() < 1.15
    assert (moved[:11].abs() < 5e-3).all() and ((moved[22:] - 1).abs() < 5e-3).all()


def test_a_constant_image_stays_constant(dtype: torch.dtype) -> None:
    image = torch.full((200, 2, 5, 8), 0.7, dtype=dtype)
    moved, _ = ALWAYS(image, keys(200))
    assert (moved - image).abs().max() < 1e-5


def test_an_image_of_one_pixel_stays() -> None:
    image = torch.rand(50, 3, 1, 1, dtype=torch.float64)
    assert torch.allclose(ALWAYS(image, keys(50))[0], image)


# What is exact --------------------------------------------------------------------------------------------------------


def test_probability_zero_is_the_identity_bit_for_bit(device: torch.device, dtype: torch.dtype) -> None:
    image = torch.randn(64, 3, 8, 8).to(device, dtype)
    moved, labels = Augmentation(0.0)(image, keys(64))
    assert torch.equal(moved, image)
    assert torch.equal(labels, torch.zeros(64, 9, dtype=dtype, device=device))


def test_images_that_are_told_nothing_are_as_they_were_and_flips_are_exact(device: torch.device) -> None:
    image = torch.randn(400, 2, 7, 10).to(device)
    before = image.clone()
    moved, labels = Augmentation(0.3)(image, keys(400))
    assert torch.equal(image, before)
    only_flips = (labels[:, 2:] == 0).all(1)
    seen = set()
    for i in only_flips.nonzero().flatten().tolist():
        x_flip, y_flip = labels[i, :2].tolist()
        expected = image[i].flip([axis for axis, bit in ((2, x_flip), (1, y_flip)) if bit])
        assert torch.equal(moved[i], expected)
        seen.add((x_flip, y_flip))
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}
    others = ~only_flips
    assert others.sum() > 100 and (moved[others] - image[others]).abs().amax((1, 2, 3)).min() > 1e-3


# Labels and laws ------------------------------------------------------------------------------------------------------


def test_labels_stand_in_the_papers_order() -> None:
    given = {"x_flip": 1, "scale": 0.6, "angle": 1.1, "anisotropy": 0.8, "axis": -2.0, "right": 0.4, "down": 1.3}
    anisotropy = [0.8 * math.cos(-2), 0.8 * math.sin(-2)]
    expected = [1, 0, 0.6, math.cos(1.1) - 1, math.sin(1.1), *anisotropy, 0.4, 1.3]
    assert placed(**given).labels()[0].tolist() == pytest.approx(expected)
    assert placed(y_flip=1).labels()[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_what_is_drawn_is_what_is_told_and_done() -> None:
    image = wave(*centres())[None, None].expand(32, -1, -1, -1)
    moved, labels = ALWAYS(image, keys(32))
    p = ALWAYS.draw(keys(32))
    assert torch.equal(labels, p.labels())
    for i in range(32):
        one = Placements(**{name: getattr(p, name)[i : i + 1] for name in FIELDS})
        assert torch.allclose(ALWAYS.apply(image[:1], one)[0], moved[i], atol=1e-12)


@pytest.mark.parametrize("probability", [0.12, 1.0])
def test_each_transform_has_its_probability_and_they_are_independent(probability: float) -> None:
    n = 50_000
    p = Augmentation(probability).draw(keys(n))
    done = torch.stack([p.x_flip, p.y_flip, p.scale, p.angle, p.anisotropy, p.right], 1) != 0
    # The bits of the flips are tossed: 1/2 of the images for x, 1/2 of the chosen ones for y.
    expected = torch.tensor([0.5, probability / 2, *[probability] * 4], dtype=torch.float64)
    rate = done.double().mean(0)
    assert (rate - expected).abs().max() < 4.5 * 0.5 / math.sqrt(n)
    assert torch.equal(p.right != 0, p.down != 0)
    together = (done.double().T @ done.double()) / n - torch.outer(rate, rate)
    assert (together - torch.diag(together.diagonal())).abs().max() < 4.5 * 0.25 / math.sqrt(n)


def test_parameters_have_their_laws() -> None:
    n = 50_000
    p = ALWAYS.draw(keys(n))
    for values in (p.scale, p.anisotropy, p.right, p.down):
        assert values.mean().abs() < 4.5 / math.sqrt(n)
        assert values.square().mean().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / n))
    for values in (p.angle, p.axis):
        assert values.abs().max() <= math.pi
        share = torch.histc(values, 8, -math.pi, math.pi) / n
        assert (share - 1 / 8).abs().max() < 4.5 * math.sqrt(1 / 8 * 7 / 8 / n)
    values = torch.stack([getattr(p, name) for name in FIELDS])
    correlation = torch.corrcoef(values) - torch.eye(len(FIELDS))
    assert correlation.abs().max() < 4.5 / math.sqrt(n)
    assert Augmentation(1.0, rotation=0.25).draw(keys(n)).angle.abs().max() <= math.pi / 4


@pytest.mark.parametrize(
    ("changes", "silent"),
    [
        ({"x_flip": False}, [0]),
        ({"y_flip": False}, [1]),
        ({"scale": 0.0}, [2]),
        ({"rotation": 0.0}, [3, 4]),
        ({"anisotropy": 0.0}, [5, 6]),
        ({"translation": 0.0}, [7, 8]),
    ],
)
def test_a_transform_can_be_switched_off_alone(changes: dict[str, Any], silent: list[int]) -> None:
    labels = Augmentation(1.0, **changes).draw(keys(100)).labels()
    others = [column for column in range(9) if column not in silent]
    assert (labels[:, silent] == 0).all()
    assert torch.equal(labels[:, others], ALWAYS.draw(keys(100)).labels()[:, others])


def test_a_sample_is_placed_by_its_key_alone() -> None:
    image = torch.randn(40, 1, 12, 12, dtype=torch.float64)
    augmentation = Augmentation(0.4)
    moved, labels = augmentation(image, keys(40))
    assert torch.equal(labels, augmentation(image, keys(40))[1])
    assert not torch.equal(labels, augmentation(image, keys(40, seed=1))[1])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:25]
    some, told = augmentation(image[order], keys(40)[order])
    assert torch.equal(told, labels[order])
    assert torch.allclose(some, moved[order], atol=1e-12)


def test_parts_of_a_large_batch_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(21, 2, 6, 6, dtype=torch.float64)
    whole, _ = ALWAYS(image, keys(21))
    monkeypatch.setattr(module, "_CHUNK", 4 * 16 * 2 * 6 * 6)
    assert torch.allclose(ALWAYS(image, keys(21))[0], whole, atol=1e-12)


def test_half_precision_is_moved_in_single() -> None:
    image = torch.randn(20, 1, 12, 12).bfloat16()
    moved, labels = ALWAYS(image, keys(20))
    assert moved.dtype == labels.dtype == torch.bfloat16
    assert torch.equal(moved, ALWAYS(image.float(), keys(20))[0].bfloat16())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": 1.2}, r"probability is 1\.2; it must be from 0 to 1"),
        ({"probability": -0.1}, r"probability is -0\.1"),
        ({"rotation": 2.0}, r"rotation is 2\.0; it must be from 0 to 1"),
        ({"scale": -0.2}, r"scale is -0\.2"),
        ({"translation": math.inf}, "translation is inf"),
        ({"x_flip": 1}, "x_flip is 1; it must be True or False"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(**changes)


def test_wrong_images_are_named() -> None:
    with pytest.raises(InputError, match=r"images have shape \[4, 8\].*floating point \[B, C, H, W\]"):
        ALWAYS(torch.zeros(4, 8), keys(4))
    with pytest.raises(InputError, match=r"dtype torch.uint8"):
        ALWAYS(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), keys(4))
    with pytest.raises(InputError, match="images are 4, but the samples to augment are 3"):
        ALWAYS(torch.zeros(4, 1, 8, 8), keys(3))


# In training ----------------------------------------------------------------------------------------------------------


class Pictures:
    """n images of a bright corner, in two classes."""

    shape = (1, 6, 6)
    num_classes = 2

    def __init__(self, n: int = 60, seed: int = 0) -> None:
        self.y = 0.3 * torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        self.y[:, :, :2, :2] += 1
        self.extra: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.y[indices], {"labels": torch.tensor(indices) % 2} | {k: v[indices] for k, v in self.extra.items()}


def painter(augment_dim: int = 9) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(1, channels=8, channel_mult=[1], blocks=1, label_dim=2, augment_dim=augment_dim)
        return Model(network, formulation.EDM(sigma_data=0.5), shape=(1, 6, 6))


def train(directory: Path, **changes: Any) -> tuple[Model, TrainingResult]:
    made = painter()
    chosen = options(**{"augment": 0.5, "samples": 256, "label_dropout": 0.0, "clip_norm": None} | changes)
    validation = Pictures(20, seed=1)
    return made, Trainer(made, Pictures(), directory, validation=validation, options=chosen, progress=False).run()


FLIPS = {"augment_scale": 0.0, "augment_rotation": 0.0, "augment_anisotropy": 0.0, "augment_translation": 0.0}
SWITCHES: list[tuple[dict[str, Any], Augmentation]] = [
    ({}, Augmentation(0.5)),
    (FLIPS | {"augment_y_flip": False}, Augmentation(0.5, True, False, 0.0, 0.0, 0.0, 0.0)),
    ({"augment_x_flip": False, "augment_rotation": 0.25}, Augmentation(0.5, x_flip=False, rotation=0.25)),
]


@pytest.mark.parametrize(("switches", "augmentation"), SWITCHES, ids=["all", "x flip alone", "quarter turns"])
def test_the_trainer_moves_the_training_images_and_says_how(
    tmp_path: Path, switches: dict[str, Any], augmentation: Augmentation
) -> None:
    made, _ = train(tmp_path, ema_halflife=1, **switches)  # the average is the last weights, nearly
    other, pictures, order = painter(), Pictures(), DataOrder(60, 0)
    parameters = list(other.denoiser.parameters())
    adam = torch.optim.Adam(parameters, lr=1e-3)
    for seen in range(0, 256, 32):
        y, condition = pictures.__getitems__(order.indices(Part(seen, seen + 32)))
        sample_keys = noise.keys(0, torch.arange(seen, seen + 32))
        sigma = levels(other.formulation.noise_density, sample_keys, torch.arange(32), 32).float()
        y, told = augmentation(y, sample_keys)
        x = y + sigma[:, None, None, None] * normals(sample_keys, y)
        error = (other.denoiser(x, sigma, augment_labels=told, **condition) - y) ** 2
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        adam.zero_grad()
        (weight * error.mean((1, 2, 3))).mean().backward()
        adam.param_groups[0]["lr"] = 1e-3 * min(seen / 100, 1)
        adam.step()
    augment = dict(made.network.named_parameters())["conditioning.augment.weight"]
    assert not torch.equal(augment, dict(painter().network.named_parameters())["conditioning.augment.weight"])
    for ours, theirs in zip(made.denoiser.parameters(), parameters, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_validation_images_stay_where_they_are(tmp_path: Path) -> None:
    made, result = train(tmp_path, augment=1.0)
    settings = {"seed": 0, "batch_size": 32, "rank": 0, "world": 1}
    fixed = Validation(Pictures(20, seed=1), made.transform, made.formulation.noise_density, **settings)
    objective = Objective(made.denoiser, made.formulation, "fp32")
    loss = fixed.total(objective, torch.device("cpu"), torch.float32).item()
    assert result.validation_loss == pytest.approx(loss, rel=1e-5)


def test_a_run_that_goes_on_draws_the_same(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", samples=128)
    resumed, result = train(tmp_path / "parts")
    assert result.trained == 128
    assert_same_weights(resumed, whole)
    assert load(tmp_path / "parts").network.config["augment_dim"] == 9


def test_accumulation_does_not_change_what_is_learned(tmp_path: Path) -> None:
    one, _ = train(tmp_path / "one")
    other, _ = train(tmp_path / "other", accumulate=3)
    for ours, theirs in zip(one.denoiser.parameters(), other.denoiser.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_another_probability_is_another_run(tmp_path: Path) -> None:
    train(tmp_path, samples=64)
    with pytest.raises(InputError, match=r"training.augment is 0\.5 there and 0\.25 here"):
        train(tmp_path, samples=64, augment=0.25)
    assert "augment" not in TrainingOptions().identity()
    with pytest.raises(InputError, match=r"training.augment_x_flip is True there and False here"):
        train(tmp_path, samples=64, augment_x_flip=False)
    with pytest.raises(InputError, match=r"training.augment is 0\.5 there and 0\.0 here"):
        train(tmp_path, samples=64, augment=0.0)


class Deaf(nn.Module):
    """A network that takes no conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.gain * x


def test_what_cannot_be_augmented_is_refused_at_the_door(tmp_path: Path) -> None:
    def trainer(made: Model, data: Any) -> Trainer:
        return Trainer(made, data, tmp_path, options=TrainingOptions(augment=0.1))

    with pytest.raises(InputError, match=r"augment is 0\.1, .* in 9 augment labels; this network takes 0"):
        trainer(painter(augment_dim=0), Pictures())
    with pytest.raises(InputError, match="this network takes 3: build it with augment_dim=9"):
        trainer(painter(augment_dim=3), Pictures())
    with pytest.raises(InputError, match="this network takes 0"):
        trainer(Model(Deaf(), formulation.EDM(sigma_data=0.5), shape=(1, 6, 6)), Pictures())
    pictures = Pictures()
    pictures.extra["image"] = torch.zeros(60, 1, 6, 6)
    with pytest.raises(InputError, match=r"augment is 0\.1, but the data come with a condition 'image'"):
        trainer(painter(), pictures)

    class Vectors(Pictures):
        shape = (2,)  # type: ignore[assignment]

    vectors = Model(MLP(2, label_dim=2, augment_dim=9), formulation.EDM(sigma_data=0.5), shape=(2,))
    with pytest.raises(InputError, match=r"augment is 0\.1, for images; the data are of shape \(2,\)"):
        trainer(vectors, Vectors())


def test_a_config_builds_the_network_for_it(tmp_path: Path) -> None:
    config = Config.of({"training": {"augment": 0.12, "augment_y_flip": False, "augment_rotation": 0.1}})
    train_set, _ = config.datasets()
    model = config.model(train_set)
    assert config.options().augmentation == Augmentation(0.12, y_flip=False, rotation=0.1)
    assert model.network.config["augment_dim"] == 9
    assert Config.of(config.document()).options() == config.options()
    assert model.sample(2, num_steps=3, labels=0, progress=False).isfinite().all()
    assert Config.of({}).model(train_set).network.config["augment_dim"] == 0


def test_a_config_of_vectors_refuses_it(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(20, 2)))
    config = Config.of({"data": {"path": str(tmp_path / "points.npy")}, "training": {"augment": 0.1}})
    with pytest.raises(InputError, match=r"training.augment is 0\.1, for images; the data are \(2,\)"):
        config.model(config.datasets()[0])
