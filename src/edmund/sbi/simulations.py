"""Simulations (theta, x), as a simulator's user has them, checked at the door and read a batch at a time.

Training reads random rows, over and over, of data that may be larger than the memory. So NumPy arrays, tensors and
memory maps stay where and as they are, and only the rows of a batch become float32 tensors. What cannot give random
rows quickly (Zarr and HDF5 arrays, which are compressed in chunks; a DataLoader, which has an order of its own) is read
once, a part at a time, and kept on the CPU as float32: in memory up to 64 MiB, above in an unnamed temporary file that
is mapped. Nothing but the batch at hand ever reaches a device.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edmund.data import DataSet
from edmund.errors import InputError, check_count, check_number
from edmund.progress import track

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CONDITION = "observation"
"""The name under which a denoiser is given x; `x` itself is what it denoises."""
LEAST = 50
"""Fewest simulations that are trained on (and at least two for each parameter): a validation set of 10 % still has
five.
"""
_CHUNK = 1 << 20
"""Numbers that are checked together."""
_IN_MEMORY = 1 << 24
"""Numbers up to which what is read once is kept in memory, as float32: 64 MiB."""
_SMALL = 1 << 22
"""Arrays of fewer numbers are copied together if they are neighbours: one array is read faster than many."""


class Simulations:
    """All that was appended, in order: parameters theta [N, D] in the user's units and outputs x [N, *].

    dim: D, the prior's number of parameters; None: that of the first append. contains: theta [n, D] -> bool [n],
    whether the prior's support holds each; None: everything is inside. nan: "refuse" takes no NaN in x, "mask" takes
    them as values that are missing.
    """

    def __init__(
        self,
        dim: int | None = None,
        contains: Callable[[Tensor], Tensor] | None = None,
        *,
        nan: Literal["refuse", "mask"] = "refuse",
    ) -> None:
        if nan not in ("refuse", "mask"):
            raise InputError(f"nan is {nan!r}; it must be 'refuse' or 'mask'")
        self.dim = None if dim is None else check_count("dim", dim)
        self.contains = contains
        self.nan = nan
        self.x_shape: tuple[int, ...] | None = None
        self.missing = 0
        """Values of x that are NaN; 0 unless `nan` is "mask"."""
        self._theta: list[Array] = []
        self._x: list[Array] = []

    def __len__(self) -> int:
        return sum(map(len, self._theta))

    def append(self, theta: Any, x: Any = None) -> Simulations:
        """Adds theta [N, D] and x [N, *]; returns the simulations themselves.

        Each is a tensor, a NumPy array or memory map, nested lists, or anything with shape, dtype and slices (Zarr,
        HDF5). x None: theta is a DataLoader or another iterable of batches (theta [B, D], x [B, *]), gone through once.
        Values are real numbers of any type that float32's range holds. Arrays are not copied: leave them as they are.

        Raises InputError, and adds nothing, for other shapes than before, theta that is not finite or outside the
        prior's support, x that is infinite or beyond float32, and NaN in x unless they were asked to be masked; all
        with their number.
        """
        kept: list[Array | None] = [None, None]
        if x is None:
            chunks, total = _loaded(theta), None
        else:
            arrays = _array("theta", theta), _array("x", x)
            _check_rows(*arrays)
            kept = [array if isinstance(array, np.ndarray) else None for array in arrays]
            chunks, total = _sliced(*arrays), arrays[0].shape[0]
        found = _Checks(self)
        copies = _Copy(), _Copy()
        with track(total, "checking simulations") as bar:
            for chunk in chunks:
                found.add(*chunk)
                for array, copy, values in zip(kept, copies, chunk, strict=True):
                    # A copy of what will be refused is not wanted; its values may not even fit float32.
                    if array is None and not found.wrong:
                        copy.add(values)
                bar.advance(len(chunk[0]))
        found.refuse()
        for parts, array, copy in zip((self._theta, self._x), kept, copies, strict=True):
            parts.append(copy.array() if array is None else array)
        self.dim, self.x_shape = found.dim, found.x_shape
        self.missing += found.nan
        return self

    def dataset(self, indices: Tensor | None = None) -> SimulationData:
        """The simulations with these numbers (int64 [n]; None: all) as training data."""
        if not self._theta:
            raise InputError("there are no simulations; append some first")
        if indices is None:
            indices = torch.arange(len(self))
        missing = frozenset({CONDITION}) if self.missing else frozenset[str]()
        return SimulationData(_Rows(self._theta), _Rows(self._x), indices.numpy().astype(np.int64), missing)

    def split(self, validation_fraction: float = 0.1, seed: int = 0) -> tuple[SimulationData, SimulationData]:
        """(training data, validation data) of a shuffle by `seed`; that fraction, to the nearest row, is validated on.

        Raises InputError for fewer simulations than can be trained on: 50, or two for each parameter.
        """
        size, least = len(self), max(LEAST, 2 * (self.dim or 0))
        if size < least:
            raise InputError(f"there are {size} simulations of {self.dim} parameters; training needs at least {least}")
        if not 0 < check_number("validation_fraction", validation_fraction) < 1:
            raise InputError(f"validation_fraction is {validation_fraction!r}; it must be between 0 and 1")
        held_out = round(size * validation_fraction)
        if not 0 < held_out < size:
            raise InputError(
                f"validation_fraction is {validation_fraction!r}; of {size} simulations it leaves a part empty"
            )
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        return self.dataset(order[held_out:]), self.dataset(order[:held_out])


class SimulationData(DataSet):
    """Simulations as `edmund.training.Trainer` reads them: y is theta [B, D], the condition {"observation":
    x [B, *]}, in float32.

    x_shape: of one x. may_be_missing: the conditions, that one or none, in which NaN is a value that is missing.
    """

    def __init__(self, theta: _Rows, x: _Rows, indices: Array, may_be_missing: frozenset[str]) -> None:
        super().__init__(theta.shape)
        self.x_shape = x.shape
        self.may_be_missing = may_be_missing
        self._theta = theta
        self._x = x
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self._indices[np.asarray(indices, dtype=np.int64)]
        return self._theta.take(rows), {CONDITION: self._x.take(rows)}

    def observations(self) -> Iterator[Tensor]:
        """Every x once, as batches [B, *] in the order in which they are stored."""
        rows = np.sort(self._indices)
        size = _rows_at_once(self.x_shape)
        for start in range(0, len(rows), size):
            yield self._x.take(rows[start : start + size])


class _Rows:
    """Random rows of arrays that follow one another."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = _merged(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.shape = tuple(parts[0].shape[1:])

    def take(self, rows: Array) -> Tensor:
        """float32 [len(rows), *]."""
        if len(self.parts) == 1:
            return torch.from_numpy(_taken(self.parts[0], rows).astype(np.float32, copy=False))
        values = np.empty((len(rows), *self.shape), dtype=np.float32)
        order = rows.argsort()
        edges = rows[order].searchsorted(self.starts)
        for part, start, first, last in zip(self.parts, self.starts, edges, edges[1:], strict=False):
            if first < last:
                here = order[first:last]
                values[here] = _taken(part, rows[here] - start)
        return torch.from_numpy(values)


def _taken(part: Array, rows: Array) -> Array:
    # `take` is several times as fast as an index, but copies the whole of an array that is not as C has it.
    plain = part.flags.c_contiguous and part.flags.aligned and part.dtype.isnative
    return part.take(rows, axis=0) if plain else part[rows]


class _Copy:
    """A float32 copy of what comes in parts: in memory while it is small, then in a mapped temporary file."""

    def __init__(self) -> None:
        self.chunks: list[Array] = []
        self.numbers = 0
        self.shape: tuple[int, ...] = (0,)
        self.file: IO[bytes] | None = None

    def add(self, values: Array) -> None:
        self.chunks.append(values.astype(np.float32))
        self.numbers += values.size
        self.shape = (self.shape[0] + len(values), *values.shape[1:])
        if self.numbers > _IN_MEMORY:
            self._write()

    def array(self) -> Array:
        if self.file is None:
            return np.concatenate(self.chunks)
        self._write()
        return np.asarray(np.memmap(self.file, np.float32, "r", shape=self.shape))

    def _write(self) -> None:
        try:
            # The file has no name and ends with its last reader: the map keeps a descriptor of its own.
            self.file = self.file or tempfile.TemporaryFile()  # noqa: SIM115
            for chunk in self.chunks:
                chunk.tofile(self.file)
        except OSError as error:
            raise InputError(
                f"the simulations need {4 * self.numbers} bytes or more in {tempfile.gettempdir()!r}, which cannot be "
                f"written there ({error}); set TMPDIR to a folder with room"
            ) from error
        self.chunks = []


class _Checks:
    """What is wrong with the simulations of one append, counted over its chunks."""

    def __init__(self, earlier: Simulations) -> None:
        self.dim, self.x_shape = earlier.dim, earlier.x_shape
        self.contains = earlier.contains
        self.mask = earlier.nan == "mask"
        self.rows = 0
        self.theta_nan = self.theta_infinite = self.theta_large = 0
        self.outside = 0
        self.first_outside = ""
        self.nan = self.nan_rows = self.infinite = self.infinite_rows = self.large = 0

    def add(self, theta: Array, x: Array) -> None:
        self._check_shapes(theta, x)
        self._add_theta(theta)
        nan, infinite, large = _flaws(x)
        self.nan += int(nan.sum())
        self.nan_rows += _rows_with(nan)
        self.infinite += int(infinite.sum())
        self.infinite_rows += _rows_with(infinite)
        self.large += int(large.sum())
        self.rows += len(theta)

    def _check_shapes(self, theta: Array, x: Array) -> None:
        dim = self.dim if self.dim is not None else theta.shape[1]
        if theta.shape[1] != dim:
            raise InputError(f"theta has {theta.shape[1]} parameters a row; it must have {dim}, as the prior has")
        shape = x.shape[1:]
        if self.x_shape is not None and shape != self.x_shape:
            raise InputError(f"x has rows of shape {list(shape)}; those before have {list(self.x_shape)}")
        self.dim, self.x_shape = dim, shape

    def _add_theta(self, theta: Array) -> None:
        nan, infinite, large = _flaws(theta)
        self.theta_nan += int(nan.sum())
        self.theta_infinite += int(infinite.sum())
        self.theta_large += int(large.sum())
        if self.contains is None:
            return
        # In the precision that was given: float32 may round a parameter onto a bound that it was inside of.
        precision = np.float64 if theta.dtype.itemsize == 8 else np.float32
        finite = np.flatnonzero(~(nan | infinite | large).any(1))
        inside = self.contains(torch.from_numpy(theta[finite].astype(precision)))
        outside = finite[~inside.cpu().numpy()]
        if len(outside) and not self.outside:
            values = ", ".join(f"{value:g}" for value in theta[outside[0]].astype(np.float64)[:6])
            more = ", ..." if theta.shape[1] > 6 else ""
            self.first_outside = f"row {self.rows + int(outside[0])}, [{values}{more}]"
        self.outside += len(outside)

    @property
    def wrong(self) -> bool:
        theta = self.theta_nan or self.theta_infinite or self.theta_large or self.outside
        return bool(theta or self.infinite or self.large or (self.nan and not self.mask))

    def refuse(self) -> None:
        """The InputError for the first kind of flaw there is, if any."""
        if self.dim is None or self.x_shape is None:
            raise InputError("theta, x: there are no batches in what was given; there must be at least one simulation")
        total = f"{self.rows * math.prod(self.x_shape)}"
        if self.theta_nan or self.theta_infinite:
            raise InputError(
                f"theta: {self.theta_nan} values are NaN and {self.theta_infinite} infinite among "
                f"{self.rows * self.dim}; all must be finite"
            )
        for name, large in (("theta", self.theta_large), ("x", self.large)):
            if large:
                raise InputError(f"{name}: {large} values are beyond float32's range; scale them to below 3e38")
        if self.outside:
            raise InputError(
                f"theta: {self.outside} of {self.rows} rows are outside the prior's support (the first: "
                f"{self.first_outside}); the prior must be the one that they were drawn from"
            )
        if self.infinite:
            raise InputError(
                f"x: {self.infinite} of {total} values are infinite, in {self.infinite_rows} of {self.rows} rows; "
                "all must be finite"
            )
        if self.nan and not self.mask:
            raise InputError(
                f"x: {self.nan} of {total} values are NaN, in {self.nan_rows} of {self.rows} rows; leave these rows "
                "out, or give nan='mask' (in a command, --nan mask) where NaN means that a value is missing"
            )


def _flaws(values: Array) -> tuple[Array, Array, Array]:
    """Where values are NaN, infinite, and finite but not so as float32."""
    if values.dtype.kind != "f":
        none: Array = np.zeros(values.shape, dtype=bool)
        return none, none, none
    nan, infinite = np.isnan(values), np.isinf(values)
    with np.errstate(over="ignore"):
        large = np.isinf(values.astype(np.float32, copy=False)) & ~infinite
    return nan, infinite, large


def _rows_with(flaw: Array) -> int:
    return int(flaw.reshape(len(flaw), -1).any(1).sum())


def _array(name: str, value: Any) -> Any:
    """The value as a plain array that shares its memory; what has shape, dtype and slices alone stays what it is."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
    elif isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError(f"{name} is a masked array; give {name}.filled(nan), and nan='mask' where values are missing")
    elif isinstance(value, np.ndarray) or not all(hasattr(value, part) for part in ("shape", "dtype", "__getitem__")):
        try:
            value = np.asarray(value)
        except ValueError:
            raise InputError(f"{name} is ragged; all rows must have one shape") from None
    if np.dtype(value.dtype).kind not in "biuf" or np.dtype(value.dtype).itemsize > 8:
        raise InputError(f"{name} holds {value.dtype}; it must hold real numbers")
    return value


def _check_rows(theta: Any, x: Any) -> None:
    """Refuses shapes that are no rows of parameters and rows of outputs."""
    if len(theta.shape) != 2 or 0 in theta.shape:
        raise InputError(f"theta has shape {list(theta.shape)}; it must be [N, D]{_column(theta)}")
    if len(x.shape) < 2 or 0 in x.shape:
        raise InputError(f"x has shape {list(x.shape)}; it must be [N, *], one row a simulation{_column(x)}")
    if theta.shape[0] != x.shape[0]:
        raise InputError(f"theta has {theta.shape[0]} rows and x {x.shape[0]}; they must have one each a simulation")


def _column(values: Any) -> str:
    return f" (for one number a row [{values.shape[0]}, 1])" if len(values.shape) == 1 else ""


def _sliced(theta: Any, x: Any) -> Iterator[tuple[Array, Array]]:
    """Both a part at a time."""
    rows = min(_rows_at_once(array.shape[1:]) for array in (theta, x))
    # A part of a chunk costs as much as the whole of it.
    stored = [array.chunks[0] for array in (theta, x) if not isinstance(array, np.ndarray) and _chunked(array)]
    for chunk in stored:
        rows = max(chunk, rows // chunk * chunk)
    for start in range(0, theta.shape[0], rows):
        yield np.asarray(theta[start : start + rows]), np.asarray(x[start : start + rows])


def _chunked(array: Any) -> bool:
    chunks = getattr(array, "chunks", None)
    return isinstance(chunks, tuple) and bool(chunks) and isinstance(chunks[0], int)


def _loaded(batches: Any) -> Iterator[tuple[Array, Array]]:
    """The batches of a DataLoader."""
    if isinstance(batches, Tensor | np.ndarray) or hasattr(batches, "dtype") or not isinstance(batches, Iterable):
        raise InputError(
            f"x is None and theta is a {type(batches).__name__}; give x, or a DataLoader of (theta, x) for theta"
        )
    for number, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"type {type(batch).__name__}"
            raise InputError(f"theta: batch {number} of the loader has {what}; each must be a pair (theta, x)")
        theta, x = _array("theta", batch[0]), _array("x", batch[1])
        try:
            _check_rows(theta, x)
        except InputError as error:
            raise InputError(f"batch {number} of the loader: {error}") from None
        yield theta, x


def _merged(parts: Sequence[Array]) -> list[Array]:
    """The parts, with neighbours that are small copied together as float32."""
    merged: list[Array] = []
    for small, run in itertools.groupby(parts, lambda part: part.size < _SMALL):
        found = list(run)
        if small and len(found) > 1:
            found = [np.concatenate([part.astype(np.float32, copy=False) for part in found])]
        merged += found
    return merged


def _rows_at_once(shape: Sequence[int]) -> int:
    return max(1, _CHUNK // math.prod(shape))
