r"""Random numbers that depend on a key and a position alone: counter-based, vectorised, the same everywhere.

Sample k of a run must not change with the batch size, the order of the samples, the device or the number of processes.
So no generator carries a state: each number is a hash of (key of the sample, stream, position in the sample). The hash
is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", with the constants of
Stafford's variant 13): word i of a stream with start k is mix(k + i * golden), the sequence that passes BigCrush. Two
words make two unit normals (Box & Muller 1958), in float64 with 53 random bits:

    r = sqrt(-2 ln u_1),   (n_1, n_2) = r (cos 2 pi u_2, sin 2 pi u_2)

The integers are exact on every device; logarithm and cosine agree to a rounding of float64.

Samplers of SDEs may be driven by one Brownian motion W a sample (`Brownian`), which fewer and more steps then share.
Its time u = -ln sigma is cut into unit cells with independent increments, and a cell into halves, 16 times over (Levy's
construction). Given both ends of an interval of width w, W at a share f of it lies on the line between them plus a
normal of variance f (1 - f) w. So W at any one point of a finest interval is a weighted sum of 18 normals, each a
function of its interval's number; and points in different finest intervals have exactly the law of a Brownian motion.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from edmund.errors import InputError


def _signed(word: int) -> int:
    """A 64-bit word as the int64 with the same bits: torch has no unsigned arithmetic."""
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)

# Streams of one key. Each step of a sampler may draw several times; training draws one normal and a few uniforms a
# sample.
_STREAM_LATENTS = 0
_STREAM_STEPS = 1
_DRAWS_PER_STEP = 1 << 16

# Brownian's normals: one for the increment of each unit cell and one for each of the cell's dyadic intervals, in
# streams below all others. ln sigma of a positive float64 lies between -745 and 710.
_STREAM_BROWNIAN = -(1 << 40)
_LEVELS = 16
_FIRST_CELL = -1024
# They are drawn several at a time while they have no more numbers than this together.
_BROWNIAN_ELEMENTS = 1 << 18


def _xor_shift(z: Tensor, bits: int) -> Tensor:
    """z ^= z >>> bits, in place; the mask makes torch's arithmetic shift a logical one."""
    return z.bitwise_xor_((z >> bits).bitwise_and_((1 << (64 - bits)) - 1))


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place on an int64 tensor."""
    _xor_shift(z, 30).mul_(_MIX_1)
    _xor_shift(z, 27).mul_(_MIX_2)
    return _xor_shift(z, 31)


def keys(seed: int, index: Tensor) -> Tensor:
    """One key for each (seed, index): int64 [B] from int64 [B]. Distinct pairs have unrelated streams."""
    start = _mix(torch.tensor([_signed((seed + 1) % 2**64)], dtype=torch.int64, device=index.device))
    return _mix(_mix(index.to(torch.int64) * _GOLDEN + _GOLDEN).add_(start))


def _words(stream_keys: Tensor, first: int, count: int) -> Tensor:
    """Words first, first + 2, first + 4, ... (count of them) of each stream: int64 [B, count]."""
    position = torch.arange(first, first + 2 * count, 2, dtype=torch.int64, device=stream_keys.device).mul_(_GOLDEN)
    return _mix(stream_keys[:, None] + position)


def _unit_interval(words: Tensor, offset: float) -> Tensor:
    """The upper 53 bits as float64 (bits + offset) / 2^53: offset 1 gives (0, 1], 0 gives [0, 1), 1/2 gives (0, 1)."""
    return (words >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).add_(offset).mul_(2.0**-53)


def _offset(stream: int) -> int:
    """What a stream adds to a key."""
    return _signed((stream + 1) * 0xD1B54A32D192ED03 % 2**64)


def _stream(sample_keys: Tensor, stream: int) -> Tensor:
    return _mix(sample_keys + _offset(stream))


def normal(sample_keys: Tensor, shape: Sequence[int], stream: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit normals [B, *shape] on the keys' device: a function of key, stream and position alone.

    sample_keys: int64 [B] from `keys`. stream: any integer; other streams of a key are independent. They are drawn in
    float64 and rounded to `dtype`.
    """
    return _normals(_stream(sample_keys, stream), shape).to(dtype)


def _normals(start: Tensor, shape: Sequence[int]) -> Tensor:
    """Unit normals float64 [B, *shape] of the streams that start at int64 [B]."""
    size = math.prod(shape)
    pairs = (size + 1) // 2
    radius = _unit_interval(_words(start, 1, pairs), 1.0).log_().mul_(-2.0).sqrt_()
    angle = _unit_interval(_words(start, 2, pairs), 0.0).mul_(2.0 * math.pi)
    out = torch.empty(len(start), 2 * pairs, dtype=torch.float64, device=start.device)
    torch.mul(torch.cos(angle), radius, out=out[:, :pairs])
    torch.mul(angle.sin_(), radius, out=out[:, pairs:])
    return out[:, :size].reshape(-1, *shape)


def uniform(sample_keys: Tensor, stream: int) -> Tensor:
    """One number in the open interval (0, 1) a key: float64 [B]."""
    # (bits + 1/2) / 2^53 with 53 bits may round up to 1, so 52 bits are used.
    bits = (_mix(_stream(sample_keys, stream) + _GOLDEN) >> 12).bitwise_and_((1 << 52) - 1)
    return bits.to(torch.float64).add_(0.5).mul_(2.0**-52)


@runtime_checkable
class NoiseSource(Protocol):
    """The source of unit normals that stochastic samplers ask, one call for each draw.

    `rows(start, stop)` is the source of the samples start .. stop - 1, for a batch of them.
    """

    def __call__(self, x: Tensor, step: int, sigma_from: float, sigma_to: float, draw: int = 0) -> Tensor:
        """Unit normals like x [B, *], for the draw number `draw` of step `step`, which goes from sigma_from to
        sigma_to.
        """

    def rows(self, start: int, stop: int) -> NoiseSource:
        """The source of samples start .. stop - 1."""


class Seeded:
    """One random stream a sample, from one seed a sample: `edmund.sample`'s own source.

    seeds: integers in [0, 2^63), one a sample. White noise: draws of different steps are independent whatever their
    sigmas.
    """

    def __init__(self, seeds: Sequence[int] | range | Tensor) -> None:
        values = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
        for value in values:
            # Integral: NumPy's integers too.
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) < 2**63:
                raise InputError(f"seeds holds {value!r}; a seed is an integer from 0 to 2^63 - 1")
        self._keys = keys(0, torch.tensor([int(value) for value in values], dtype=torch.int64))

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self, start: int, stop: int) -> Self:
        """The source of samples start .. stop - 1."""
        part = object.__new__(type(self))
        part._keys = self._keys[start:stop]
        return part

    def latents(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The unit normals [n, *shape] that the samples start from."""
        return self._draw(shape, _STREAM_LATENTS, dtype, device)

    def __call__(self, x: Tensor, step: int, sigma_from: float, sigma_to: float, draw: int = 0) -> Tensor:
        """Unit normals like x."""
        self._check_batch(x)
        return self._draw(x.shape[1:], _STREAM_STEPS + step * _DRAWS_PER_STEP + draw, x.dtype, x.device)

    def _check_batch(self, x: Tensor) -> None:
        if len(x) != len(self._keys):
            raise InputError(f"the noise source has {len(self._keys)} seeds, but the batch has {len(x)} samples")

    def _draw(self, shape: Sequence[int], stream: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        # A device without float64 (MPS) gets the numbers of the CPU.
        where = torch.device("cpu") if device.type == "mps" else device
        self._keys = self._keys.to(where)
        return normal(self._keys, shape, stream, dtype=dtype).to(device)


class Brownian(Seeded):
    """The increments of one Brownian motion a sample, divided by their std: for samplers of SDEs.

    The motion's time is -ln sigma. A draw depends on its interval of sigma alone, not on the numbers of step and draw:
    with steps of half the length the same path is refined, so samples converge as the steps get short. Draws over
    disjoint intervals are independent, and those over adjacent ones add up: sqrt(a) n(I) + sqrt(b) n(J) = sqrt(a + b)
    n(I and J together), with a and b the lengths in ln sigma. What the samples start from is `Seeded`'s.
    """

    # W at the end of the last interval, relative to the start of its cell: most often the next one begins there.
    _last: tuple[float, tuple[int, ...], torch.device, Tensor] | None = None

    def __call__(self, x: Tensor, step: int, sigma_from: float, sigma_to: float, draw: int = 0) -> Tensor:
        """The normalised increment from sigma_from down to sigma_to > 0, like x; `step` and `draw` do not matter.

        Raises InputError unless sigma falls, by more than 2^-16 of itself.
        """
        self._check_batch(x)
        if not 0 < sigma_to < sigma_from < math.inf:
            raise InputError(
                f"sigma goes from {sigma_from!r} to {sigma_to!r}; Brownian noise is that of steps down to a positive "
                "sigma: churn and correctors draw from Seeded"
            )
        start, end = -math.log(sigma_from), -math.log(sigma_to)
        if math.floor(start * 2**_LEVELS) == math.floor(end * 2**_LEVELS):
            raise InputError(
                f"sigma goes from {sigma_from!r} to {sigma_to!r}; a Brownian path is resolved to 2^-{_LEVELS} in "
                "ln sigma: take fewer steps"
            )
        # A device without float64 (MPS) gets the numbers of the CPU.
        where = torch.device("cpu") if x.device.type == "mps" else x.device
        shape = tuple(x.shape[1:])
        begin = self._within_cell(start, shape, where)
        stop = self._within_cell(end, shape, where)
        self._last = end, shape, where, stop
        increment = stop - begin
        cells = range(math.floor(start), math.floor(end))
        self._add([(cell, 0, 1.0) for cell in cells], increment)
        return increment.div_(math.sqrt(end - start)).to(dtype=x.dtype).to(x.device)

    def _within_cell(self, time: float, shape: tuple[int, ...], where: torch.device) -> Tensor:
        """W(time) - W(floor(time)), float64 [B, *shape]; not to be written to."""
        if self._last is not None and self._last[:3] == (time, shape, where):
            return self._last[3]
        value = torch.zeros(len(self._keys), *shape, dtype=torch.float64, device=where)
        self._add(_terms(time), value)
        return value

    def _add(self, terms: Sequence[_Term], to: Tensor) -> None:
        """Adds the weighted normals of the terms to a tensor float64 [B, *]."""
        at_once = max(1, _BROWNIAN_ELEMENTS // max(1, to.numel()))
        for first in range(0, len(terms), at_once):
            part = terms[first : first + at_once]
            for (_, _, weight), normal in zip(part, self._units(part, to), strict=True):
                to.add_(normal, alpha=weight)

    def _units(self, terms: Sequence[_Term], like: Tensor) -> Tensor:
        """The unit normals of the terms, [terms, *] of tensors like the given one."""
        self._keys = self._keys.to(like.device)
        streams = (_STREAM_BROWNIAN - (((cell - _FIRST_CELL) << (_LEVELS + 1)) + number) for cell, number, _ in terms)
        offsets = torch.tensor([_offset(stream) for stream in streams], dtype=torch.int64, device=like.device)
        starts = _mix(offsets[:, None] + self._keys)
        return _normals(starts.flatten(), like.shape[1:]).reshape(len(terms), *like.shape)


# A normal and its weight: (cell, number, weight). Number 0 is the cell's increment, 2^level + place an interval's.
_Term = tuple[int, int, float]


def _terms(time: float) -> list[_Term]:
    """What W(time) - W(floor(time)) is made of."""
    cell = math.floor(time)
    share = time - cell
    terms = [(cell, 0, share)] if share > 0 else []
    for level in range(_LEVELS + 1):
        place, inside = divmod(share * 2**level, 1.0)
        if inside == 0:
            break  # an end of intervals, at this level and all below
        # The midpoint departs from the line between the ends, and so in its share do the points on both sides of it;
        # in a finest interval the point itself departs.
        std = 0.5 * (1 - abs(2 * inside - 1)) if level < _LEVELS else math.sqrt(inside * (1 - inside))
        terms.append((cell, 2**level + int(place), std * 2 ** (-level / 2)))
    return terms


class Recorded:
    """Replays recorded unit normals: array [num_steps, n, *], one draw a step (used or not by the step)."""

    def __init__(self, array: Tensor) -> None:
        if not isinstance(array, Tensor) or array.ndim < 2:
            raise InputError(
                f"array has shape {tuple(getattr(array, 'shape', ()))}; recorded noise is a tensor [num_steps, n, *]"
            )
        self._array = array

    def check(self, num_steps: int, shape: tuple[int, ...]) -> None:
        """Raises InputError unless there is a draw [n, *] of the given shape for each of num_steps steps."""
        if len(self._array) != num_steps or tuple(self._array.shape[1:]) != shape:
            raise InputError(
                f"noise was recorded for {len(self._array)} steps of samples {tuple(self._array.shape[1:])}; "
                f"{num_steps} steps of {shape} are asked for"
            )

    def rows(self, start: int, stop: int) -> Recorded:
        """The source of samples start .. stop - 1."""
        return Recorded(self._array[:, start:stop])

    def __call__(self, x: Tensor, step: int, sigma_from: float, sigma_to: float, draw: int = 0) -> Tensor:
        """The draw recorded for this step, in x's dtype and on its device."""
        if step >= len(self._array) or draw > 0:
            raise InputError(
                f"draw {draw} of step {step} was asked, but one draw of each of {len(self._array)} steps was recorded"
            )
        recorded = self._array[step]
        if recorded.shape != x.shape:
            raise InputError(
                f"recorded noise of a step has shape {tuple(recorded.shape)}, the samples have {tuple(x.shape)}"
            )
        return recorded.to(x)
