"""A space to compare images in: the features of a small convolutional network that has learned their classes.

In raw pixels a digit moved by a pixel is as far away as another digit, and a Frechet distance sees colour and blur but
no shape. What a classifier computes just before it decides keeps what distinguishes the classes and forgets where
exactly things lie (the idea of the FID, Heusel et al. 2017, arXiv 1706.08500, whose Inception network needs a download
and photographs of 299 pixels). Here the network is trained on the very data that the model was trained on, in a
minute or two, so it needs labels and nothing else, and its distances compare models of one data set with each other.

The network is a residual one: 3 x 3 convolutions, each with batch normalisation and ReLU, at three resolutions with 32,
96 and 192 channels; at each resolution one more convolution whose output is added to its input; then a 1 x 1
convolution to the 64 features, which are averaged over the image, and a linear layer to the classes. It is trained with
AdamW under a one-cycle learning rate on images shifted at random by up to a sixteenth of their side (and at least a
pixel). They are never mirrored: a mirrored digit is no digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.devices import known_device
from edmund.errors import InputError, check_count
from edmund.metrics.features import Data, optional_labels
from edmund.progress import track

FEATURES = 64
LEAST = 2 * FEATURES
"""Fewer images than this have no covariance of 64 features worth the name."""
LEAST_SIDE = 8
MOST_SIDE = 32
MOST_IMAGES = 60_000
"""Further training images would cost time and no accuracy that matters here."""

_WIDTHS = (32, 96, 192)
_PRESENTATIONS = 320_000  # images shown in training, repetitions included
_MOST_EPOCHS = 10
_BATCH = 128
_LEARNING_RATE = 8e-3
_WEIGHT_DECAY = 0.05
_LABEL_SMOOTHING = 0.1
_CHUNK = 512


class ImageClassifier:
    """What `train_classifier` returns: features and classes of images in the user's units.

    shape: of the images that it sees, no side above 32. training_features, training_labels: of its training images,
    [N, 64] float64 and [N] int64.
    """

    def __init__(self, network: _Network, images: Tensor, labels: Tensor) -> None:
        self.shape = tuple(images.shape[1:])
        self.training_labels = labels
        self._network = network
        self._scale = 1.0
        features = self._run(images)[0]
        variance = float(features.var(0).mean())
        if not variance > 0 or not math.isfinite(variance):
            raise InputError(
                f"images: their classifier's features have a variance of {variance:g}; are they all alike?"
            )
        self._scale = variance**-0.5
        self.training_features = features * self._scale

    @property
    def known(self) -> set[int]:
        """The classes that it tells apart."""
        return set(self.training_labels.tolist())

    def moments(self, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean [64] and unbiased covariance [64, 64] of the training images' features, as if the classes had come in
        proportion to `counts` [classes]; None: as they come.

        With w the weights of the images, of sum one, the covariance is the weighted one over 1 - |w|^2.
        """
        n = torch.bincount(self.training_labels)
        share = (n if counts is None else F.pad(counts, (0, len(n) - len(counts)))).double()
        weights = (share / share.sum() / n.clamp(min=1))[self.training_labels][:, None]
        mean = (weights * self.training_features).sum(0)
        centred = self.training_features - mean
        return mean, (weights * centred).T @ centred / (1 - float(weights.square().sum()))

    def features(self, images: Data) -> Tensor:
        """The features [N, 64] float64 of images [N, C, H, W], on the CPU; their mean variance over the training
        images is 1.
        """
        return self._run(self._checked(images))[0] * self._scale

    def predict(self, images: Data) -> Tensor:
        """The most probable class [N] int64 of images [N, C, H, W], on the CPU."""
        return self._run(self._checked(images))[1].argmax(1)

    def _checked(self, images: Data) -> Tensor:
        found = _as_images("images", images)
        if tuple(found.shape[1:]) != self.shape:
            raise InputError(f"images has samples of shape {tuple(images.shape[1:])}; the classifier sees {self.shape}")
        return found

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        with torch.no_grad():
            for part in torch.split(images, _CHUNK):
                features = self._network.features(part.float())
                found.append((features.cpu().double(), self._network.head(features).cpu()))
        return torch.cat([features for features, _ in found]), torch.cat([logits for _, logits in found])


def no_classifier_because(shape: Sequence[int], labels: Tensor | None, counts: Sequence[int]) -> str | None:
    """Why no classifier can be trained on images of `shape` with `labels` [N] (-1: none) to compare sets of these
    `counts`; None if one can.
    """
    if len(shape) != 3 or min(shape[1:]) < LEAST_SIDE:
        return f"samples of shape {tuple(shape)} are no images of at least {LEAST_SIDE} x {LEAST_SIDE}"
    told = torch.empty(0) if labels is None else labels[labels >= 0]
    if len(told) == 0:
        return "the data have no classes as labels, and the features are those of a classifier"
    if bool((told == told[0]).all()):
        return f"the data have the one class {int(told[0])}, and a classifier needs two"
    least = min([len(told), *counts])
    if least < LEAST:
        return f"{least} images do not determine the covariance of {FEATURES} features; {LEAST} do"
    return None


def train_classifier(
    images: Data,
    labels: Data,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ImageClassifier:
    """Trains the classifier on images [N, C, H, W] in any units with `labels` [N], -1 for none; at most 60 000 of them.

    Every channel is brought to mean 0 and variance 1, and sides of more than 32 are averaged down to 32: finer detail
    is not seen. 320 000 images are shown, repeats included, but none more than 10 times: on two cores a minute
    and a half for images of 32 x 32, seconds for the 1797 digits. On processors and GPUs that have bfloat16 the
    convolutions run in it.

    The same images in the same order, `seed`, machine and number of threads give the same network. Another machine or
    order gives one as good, whose distances may differ by a quarter: compare distances of one classifier.

    Raises InputError for images of other than three axes or of a side below 8, fewer than 128 with labels, one class,
    and values that are not finite.
    """
    check_count("seed", seed, least=0)
    pixels = _as_images("images", images)
    target = optional_labels("labels", labels, len(pixels))
    reason = no_classifier_because(tuple(images.shape[1:]), target, [])
    if reason is not None:
        raise InputError(f"images and labels cannot train a classifier: {reason}")
    pixels, target = pixels[target >= 0], target[target >= 0]
    generator = torch.Generator().manual_seed(seed)
    if len(pixels) > MOST_IMAGES:
        chosen = torch.randperm(len(pixels), generator=generator)[:MOST_IMAGES].sort().values
        pixels, target = pixels[chosen], target[chosen]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(pixels, int(target.max()) + 1).to(known_device(device))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _train(network, pixels, target, generator, progress)
    return ImageClassifier(network, pixels, target)


def shrink(images: Tensor) -> Tensor:
    """Images [N, C, H, W] as the classifier sees them: sides above 32 averaged down to 32 (float32), else as given."""
    if max(images.shape[2:]) <= MOST_SIDE:
        return images
    size = (min(images.shape[2], MOST_SIDE), min(images.shape[3], MOST_SIDE))
    return torch.cat([F.adaptive_avg_pool2d(part.float(), size) for part in torch.split(images, _CHUNK)])


def _as_images(argument: str, images: Data) -> Tensor:
    """The images on the CPU, shrunk."""
    found = torch.as_tensor(images).detach().cpu()
    if found.ndim != 4 or found.is_complex() or min(found.shape) == 0:
        raise InputError(
            f"{argument} has shape {tuple(found.shape)} and dtype {found.dtype}; it must be real, [N, C, H, W]"
        )
    if found.is_floating_point():
        bad = (~torch.isfinite(found)).flatten(1).any(1)
        if bad.any():
            raise InputError(
                f"{argument} has NaN or infinite values in {int(bad.sum())} of {len(found)} images; they must be finite"
            )
    return shrink(found)


class _Network(nn.Module):
    """images: those that it will be trained on, whose size and statistics it is made for."""

    def __init__(self, images: Tensor, num_classes: int) -> None:
        super().__init__()
        mean, std = _statistics(images)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        first, middle, last = _WIDTHS
        # Digits of 8 x 8 have no resolution to lose; larger images are halved at once, which is most of the speed.
        stride = 2 if min(images.shape[2:]) >= 2 * LEAST_SIDE else 1
        self.body = nn.Sequential(
            *_layer(images.shape[1], first, stride=stride),
            _Residual(first),
            *_layer(first, middle, stride=2),
            _Residual(middle),
            *_layer(middle, last, stride=2),
            _Residual(last),
            *_layer(last, FEATURES, kernel=1),
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The features [B, 64] of images [B, C, H, W] in the user's units, float32."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = (images.to(mean.device) - mean) / std
        with torch.autocast(mean.device.type, torch.bfloat16, enabled=_has_bfloat16(mean.device)):
            x = self.body(x.contiguous(memory_format=torch.channels_last))
        features: Tensor = x.float().mean((2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes] of images [B, C, H, W] in the user's units."""
        logits: Tensor = self.head(self.features(images))
        return logits


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_layer(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] and what the branch makes of it, added."""
        return x + self.branch(x)  # type: ignore[no-any-return]


def _layer(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [1, C, 1, 1] float32; 1 for that of a constant channel."""
    count, total, square = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for part in torch.split(images, _CHUNK):
        values = part.double()
        count += values[:, 0].numel()
        total = total + values.sum((0, 2, 3))
    mean = total / count
    for part in torch.split(images, _CHUNK):
        square = square + (part.double() - mean[:, None, None]).square().sum((0, 2, 3))
    std = (square / count).sqrt()
    std[std == 0] = 1.0
    return mean.float()[None, :, None, None], std.float()[None, :, None, None]


def _has_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _train(network: _Network, images: Tensor, target: Tensor, generator: torch.Generator, progress: bool) -> None:
    batch = min(_BATCH, len(images))
    per_epoch = len(images) // batch
    steps = max(1, min(_PRESENTATIONS // batch, _MOST_EPOCHS * per_epoch))
    device = network.head.weight.device
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps, pct_start=0.2)
    channels_last = images.permute(0, 2, 3, 1).contiguous()
    network.train()
    with track(steps, "training a classifier", progress) as bar:
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(images), generator=generator)
            index = order[step % per_epoch * batch :][:batch]
            logits = network(_shifted(channels_last, index, generator).float())
            loss = F.cross_entropy(logits, target[index].to(device), label_smoothing=_LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            bar.advance()
    network.eval()


def _shifted(images: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """The images [N, H, W, C] at `index`, each shifted by whole pixels, as [B, C, H, W]; edges are repeated."""
    rows, columns = (_shifts(side, len(index), generator) for side in images.shape[1:3])
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifts(side: int, count: int, generator: torch.Generator) -> Tensor:
    """For each of `count` images, which of the `side` rows stands where: [count, side]."""
    most = max(1, side // 16)
    by = torch.randint(-most, most + 1, (count, 1), generator=generator)
    return (torch.arange(side) + by).clamp(0, side - 1)
