r"""The geometric augmentation of Karras et al. (2022, Appendix F.2), which does not leak into the samples.

A training image is moved by the six transforms below, one after the other from the top, each drawn with probability p
(flips then toss a coin; the x-flip is tossed for every image, p > 0). The network is told how as a vector of 9 numbers,
zero where nothing was done, so at sampling, told zero, it draws images as they were. With n ~ N(0, 1):

    transform     of the image, about its centre                 labels                    strength
    x_flip        left for right                                 0: bit
    y_flip        top for bottom                                 1: bit
    scale         grows by 2^(s n)                               2: n                      s = 0.2
    rotation      by angle a ~ U(-pi s, pi s), anticlockwise     3, 4: cos a - 1, sin a    s = 1
    anisotropy    grows by 2^(s n) along an axis at angle        5, 6: n cos b, n sin b    s = 0.2
                  b ~ U(-pi, pi), anticlockwise from x, and by
                  2^(-s n) across it
    translation   by s n_1 of its width to the right and         7, 8: n_1, n_2            s = 0.125
                  s n_2 of its height down

All of a sample's transforms are one affine map, by which the image is resampled once. Images without any stay as they
are and images only flipped are permuted, bit for bit. The others go, mirrored at their edges, through two low-pass
filters, one between pixel and function, along the image's axes, and one between function and new pixel, along theirs,
where finer detail would alias. Each is 1 up to 3/8 cycles a pixel and falls to 0 at 5/8 as a quarter of a cosine, so
for a map that does not scale both together are a raised cosine: it rings little, and interpolates. They are applied by
FFT, on a grid of half pixels; from there the function is read as a cubic spline. A wave of f cycles a pixel, new and
old, is so moved with an error of 0.1 % at f = 1/4 and 0.7 % at 3/8. (The paper filters with wavelets, at the same
doubled resolution.)

Channels are moved alike and as numbers: the components of a vector field are not turned.

The draws of a sample are a function of its key alone, so they are the same in any batch, process or resumed run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edmund import noise
from edmund.errors import InputError, check_not_negative

LABELS = 9
"""The width of the augment labels."""

# Streams of a sample's key, one for each transform's coin and one for its values; clear of the objective's and of those
# of sampling.
_COIN = 1 << 41
_VALUE = _COIN + 16

_PASS, _STOP = 3 / 8, 5 / 8  # cycles a new pixel
_CHUNK = 1 << 24
"""Numbers that a grid of half pixels may have; larger batches are resampled in parts."""


@dataclass(frozen=True)
class Placements:
    """What is done to each image of a batch, float64 [B] on the CPU; 0: nothing.

    x_flip, y_flip: 0 or 1. scale, anisotropy: n, as exponents before the strength. angle, axis: radians. right, down:
    n_1 and n_2 of the translation.
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    angle: Tensor
    anisotropy: Tensor
    axis: Tensor
    right: Tensor
    down: Tensor

    def labels(self) -> Tensor:
        """What the network is told, float64 [B, 9]."""
        return torch.stack(
            (
                self.x_flip,
                self.y_flip,
                self.scale,
                torch.cos(self.angle) - 1,
                torch.sin(self.angle),
                self.anisotropy * torch.cos(self.axis),
                self.anisotropy * torch.sin(self.axis),
                self.right,
                self.down,
            ),
            dim=1,
        )

    def resampled(self) -> Tensor:
        """Whether more than flips is done, bool [B]."""
        return torch.stack((self.scale, self.angle, self.anisotropy, self.right, self.down)).ne(0).any(0)


@dataclass(frozen=True)
class Augmentation:
    """Draws a placement for every image, moves it and says how.

    probability: of each transform; 0: none. The rest switch and weigh the transforms, see the module: flips are on or
    off; a strength of 0 is off. rotation: a fraction of all angles, up to 1.

    Raises InputError for a probability or rotation outside 0 to 1, a negative strength, and a switch that is no bool.
    """

    probability: float = 0.12
    x_flip: bool = True
    y_flip: bool = True
    scale: float = 0.2
    rotation: float = 1.0
    anisotropy: float = 0.2
    translation: float = 0.125

    def __post_init__(self) -> None:
        for name in ("x_flip", "y_flip"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        for name in ("scale", "anisotropy", "translation"):
            check_not_negative(name, getattr(self, name))
        for name in ("probability", "rotation"):
            if check_not_negative(name, getattr(self, name)) > 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be from 0 to 1")

    def __call__(self, images: Tensor, sample_keys: Tensor) -> tuple[Tensor, Tensor]:
        """(the images [B, C, H, W] moved, their augment labels [B, 9]), both in the images' dtype and on their device.

        sample_keys: int64 [B] of `noise.keys`; on the CPU, nothing waits for the images' device.
        """
        _check_images(images, len(sample_keys))
        placements = self.draw(sample_keys)
        return self.apply(images, placements), placements.labels().to(images.dtype).to(images.device, non_blocking=True)

    def draw(self, sample_keys: Tensor) -> Placements:
        """The placements of the samples with these keys, int64 [B]."""
        keys = sample_keys.cpu()
        nothing = torch.zeros(len(keys), dtype=torch.float64)

        def drawn(transform: int, on: float, values: Tensor, probability: float = self.probability) -> Tensor:
            """The values [B] or [B, n] where the coin of this transform, if it is on, says so; else 0."""
            if not on:
                return torch.zeros_like(values)
            chosen = noise.uniform(keys, _COIN + transform) < probability
            return torch.where(chosen.reshape(-1, *(1,) * (values.ndim - 1)), values, 0.0)

        def bit(transform: int) -> Tensor:
            return (noise.uniform(keys, _VALUE + transform) < 0.5).to(torch.float64)

        def angle(stream: int) -> Tensor:
            return math.pi * (2 * noise.uniform(keys, stream) - 1)

        def unit(transform: int, count: int = 1) -> Tensor:
            return noise.normal(keys, (count,), _VALUE + transform)

        translation = drawn(5, self.translation, unit(5, 2))
        anisotropy = drawn(4, self.anisotropy, unit(4)[:, 0])
        return Placements(
            x_flip=drawn(0, self.x_flip, bit(0), 1.0) if self.probability else nothing,
            y_flip=drawn(1, self.y_flip, bit(1)),
            scale=drawn(2, self.scale, unit(2)[:, 0]),
            angle=drawn(3, self.rotation, self.rotation * angle(_VALUE + 3)),
            anisotropy=anisotropy,
            axis=torch.where(anisotropy != 0, angle(_VALUE + 6), 0.0),
            right=translation[:, 0],
            down=translation[:, 1],
        )

    def matrix(self, placements: Placements, height: int, width: int) -> Tensor:
        """The affine maps, float64 [B, 3, 3], of points (x, y, 1) of an image from where they are to where they go.

        x and y are in pixels from the image's centre, to the right and down.
        """
        p = placements
        grown, stretched = torch.exp2(self.scale * p.scale), torch.exp2(self.anisotropy * p.anisotropy)
        flip = _diagonal(1 - 2 * p.x_flip, 1 - 2 * p.y_flip)
        stretch = _rotation(p.axis) @ _diagonal(stretched, 1 / stretched) @ _rotation(-p.axis)
        moved = _diagonal(torch.ones_like(grown), torch.ones_like(grown))
        moved[:, 0, 2], moved[:, 1, 2] = self.translation * width * p.right, self.translation * height * p.down
        return moved @ stretch @ _rotation(p.angle) @ _diagonal(grown, grown) @ flip

    def apply(self, images: Tensor, placements: Placements) -> Tensor:
        """The images [B, C, H, W] moved, in their dtype and on their device."""
        _check_images(images, len(placements.scale))
        out, device = images, images.device
        resampled = placements.resampled()
        for bits, axis in ((placements.x_flip, 3), (placements.y_flip, 2)):
            flipped = bits.bool() & ~resampled
            if flipped.any():
                where = flipped.to(device, non_blocking=True).reshape(-1, 1, 1, 1)
                out = torch.where(where, out.flip(axis), out)
        rows = resampled.nonzero().flatten()
        if len(rows) == 0:
            return out
        height, width = images.shape[2:]
        backward = torch.linalg.inv(self.matrix(placements, height, width)[rows])
        # On the device in the working precision: half precision has too few digits for positions, and no FFT.
        working = images.dtype if images.dtype == torch.float64 else torch.float32
        backward, rows = backward.to(working).to(device, non_blocking=True), rows.to(device, non_blocking=True)
        at_once = max(1, _CHUNK // (16 * images[0].numel()))
        parts = [
            _resample(images[part].to(working), matrices)
            for part, matrices in zip(torch.split(rows, at_once), torch.split(backward, at_once), strict=True)
        ]
        return out.index_copy(0, rows, torch.cat(parts).to(images.dtype))


def _check_images(images: Tensor, count: int) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images have shape {list(images.shape)} and dtype {images.dtype}; they must be floating point [B, C, H, W]"
        )
    if len(images) != count:
        raise InputError(f"images are {len(images)}, but the samples to augment are {count}; there must be as many")


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack((x, y, torch.ones_like(x)), 1))


def _rotation(angle: Tensor) -> Tensor:
    """Anticlockwise as one sees it: y points down."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    out = _diagonal(cos, cos)
    out[:, 0, 1], out[:, 1, 0] = sin, -sin
    return out


def _resample(images: Tensor, backward: Tensor) -> Tensor:
    """The images [B, C, H, W] at the points from which the affine maps `backward` [B, 3, 3] say that each pixel
    comes.
    """
    height, width = images.shape[2:]
    grid = _half_pixels(images, backward[:, :2, :2])
    rows, columns = grid.shape[2:]
    x = torch.arange(width, dtype=images.dtype, device=images.device) - (width - 1) / 2
    y = torch.arange(height, dtype=images.dtype, device=images.device) - (height - 1) / 2
    points = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).reshape(1, -1, 2)
    points = points @ backward[:, :2, :2].transpose(1, 2) + backward[:, None, :2, 2]
    # From the centre, in pixels, to the corner's pixel, in half pixels.
    across, down = (2 * points[..., 0] + (width - 1)), (2 * points[..., 1] + (height - 1))
    (left, x_weights), (top, y_weights) = _spline(across), _spline(down)
    flat = grid.flatten(2)
    out = torch.zeros_like(images).flatten(2)
    for i, y_weight in enumerate(y_weights):
        row = (top + i).remainder(rows) * columns
        for j, x_weight in enumerate(x_weights):
            index = row + (left + j).remainder(columns)
            values = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
            out.addcmul_(values, (y_weight * x_weight)[:, None])
    return out.reshape(images.shape)


def _spline(position: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The first of the 4 knots that a cubic B-spline at `position` reads, and their weights."""
    floor = position.floor()
    t = position - floor
    s = 1 - t
    weights = (s**3 / 6, 2 / 3 - t**2 * (2 - t) / 2, 2 / 3 - s**2 * (2 - s) / 2, t**3 / 6)
    return floor.to(torch.int64) - 1, weights


def _half_pixels(images: Tensor, linear: Tensor) -> Tensor:
    """The spline coefficients [B, C, 4 H, 4 W] of the mirrored images on a grid of half pixels, filtered for their map.

    linear: [B, 2, 2], from steps between new pixels to steps in the image.
    """
    height, width = images.shape[2:]
    mirrored = torch.cat((images, images.flip(3)), 3)
    mirrored = torch.cat((mirrored, mirrored.flip(2)), 2)
    # Zeros between the pixels repeat the spectrum; `fy` and `fx` are in cycles a pixel, to 1.
    spread = images.new_zeros(*images.shape[:2], 4 * height, 4 * width)
    spread[:, :, ::2, ::2] = mirrored
    fy = torch.fft.fftfreq(4 * height, 0.5, dtype=images.dtype, device=images.device)[:, None]
    fx = torch.fft.rfftfreq(4 * width, 0.5, dtype=images.dtype, device=images.device)
    # A wave exp(2 pi i f.p) read at p = M q is one of frequency M^T f on the new pixels q.
    a, b, c, d = (linear[:, i, j, None, None] for i in (0, 1) for j in (0, 1))
    gain = _low_pass(fx) * _low_pass(fy) * _low_pass(a * fx + c * fy) * _low_pass(b * fx + d * fy)
    # 4 for the zeros; and a B-spline blurs its coefficients.
    gain = 4 * gain / (_blur(fx / 2) * _blur(fy / 2))
    coefficients: Tensor = torch.fft.irfft2(torch.fft.rfft2(spread) * gain[:, None], s=(4 * height, 4 * width))
    return coefficients


def _low_pass(frequency: Tensor) -> Tensor:
    fall = ((frequency.abs() - _PASS) / (_STOP - _PASS)).clamp(0, 1)
    return torch.cos(math.pi / 2 * fall)


def _blur(frequency: Tensor) -> Tensor:
    """The values at the knots of a cubic B-spline, 1/6, 2/3, 1/6, as a filter."""
    return (2 + torch.cos(2 * math.pi * frequency)) / 3
