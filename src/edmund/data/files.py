"""Data sets from a path: .npz and .npy files, folders and zips of images."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edmund.data.arrays import as_labels, from_arrays
from edmund.data.dataset import DataSet
from edmund.data.images import MAX_BYTES, images, images_in_parts
from edmund.errors import InputError

_PARTS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "val", "valid", "validation", "held_out"), "held_out"
)


class Loaded(NamedTuple):
    """What a path holds: its data set, and the test set that it keeps apart, or None where it keeps none."""

    train: DataSet
    held_out: DataSet | None


def load(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    labels_key: str | None = None,
    size: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Loaded:
    """The data at a path: `.train`, and `.held_out` where the path has a test set of its own (else None).

    .npz: arrays under the names that are common (train_images, train_labels, test_images, test_labels; x_train, ...;
    images or data, and labels; x, y; or the only array there is), or `key` for the data and `labels_key` for their
    labels; with `key` nothing else is looked for. .npy: one array, mapped and read as it is needed. A folder or .zip of
    images: see `images`; where its root has just a training and a test folder (train; test, val, ...) they are the two
    parts. Arrays have the layouts of `from_arrays`.

    size: images are cropped and resized to it. max_bytes: the memory that images or an .npz may take. Raises
    InputError for what cannot be read, is ambiguous (with the names that are there) or does not fit; nothing is
    ever unpickled.
    """
    place = Path(path)
    suffix = place.suffix.lower()
    if not place.exists():
        raise InputError(f"path: {str(path)!r} does not exist")
    is_images = place.is_dir() or suffix == ".zip"
    if not is_images and suffix not in (".npz", ".npy"):
        raise InputError(f"path: {str(path)!r} has the suffix {suffix!r}; it must be .npz, .npy, .zip or a folder")
    if suffix != ".npz" and (key is not None or labels_key is not None):
        raise InputError(f"key is {key!r}, labels_key is {labels_key!r}, but {str(path)!r} has no arrays with names")
    if size is not None and not is_images:
        raise InputError(f"size is {size}; it is for image files, and {str(path)!r} holds arrays")
    if is_images:
        parts = images_in_parts(place, _PARTS, size=size, max_bytes=max_bytes)
        return Loaded(*parts) if parts is not None else Loaded(images(place, size=size, max_bytes=max_bytes), None)
    if suffix == ".npy":
        try:
            array = np.load(place, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"path: {str(path)!r} is not a .npy that can be read: {error}") from None
        try:
            return Loaded(from_arrays(array), None)
        except InputError as error:
            raise InputError(f"path: {str(path)!r}: {error}") from None
    return _npz(place, key, labels_key, max_bytes)


def _npz(path: Path, key: str | None, labels_key: str | None, max_bytes: int) -> Loaded:
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {
                name.removesuffix(".npy"): _header(archive, name)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
            names = _choose(path, headers, key, labels_key)
            needed = sum(headers[name].nbytes for name in names if name is not None)
            if needed > max_bytes:
                raise InputError(
                    f"path: the arrays of {str(path)!r} need {needed} bytes in memory, and max_bytes is {max_bytes}; "
                    "raise max_bytes, or keep the data as a .npy, which is read as it is needed"
                )
            arrays = {name: _array(archive, name) for name in names if name is not None}
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise InputError(f"path: {str(path)!r} is not an .npz that can be read: {error}") from None
    if key is None and labels_key is None and names.labels is not None:
        _check_labels(path, names, arrays)
    try:
        return _data_sets(names, arrays)
    except InputError as error:
        raise InputError(f"path: {str(path)!r}, {names.y}: {error}") from None


class _Names(NamedTuple):
    """The arrays of an .npz that are used."""

    y: str
    labels: str | None
    test_y: str | None = None
    test_labels: str | None = None


# How the arrays of an .npz are commonly called.
_CONVENTIONS = (
    _Names("train_images", "train_labels", "test_images", "test_labels"),
    _Names("x_train", "y_train", "x_test", "y_test"),
    _Names("images", "labels"),
    _Names("data", "labels"),
    _Names("x", "labels"),
    _Names("x", "y"),
)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    nbytes: int


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    """What an array will be, before it is given any memory. A header that promises more than there is is damage."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > archive.getinfo(name).file_size and not dtype.hasobject:
        raise ValueError(f"array {name} is cut short")
    return _Header(shape, nbytes)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _choose(path: Path, headers: dict[str, _Header], key: str | None, labels_key: str | None) -> _Names:
    there = ", ".join(f"{name} {list(header.shape)}" for name, header in headers.items())
    for argument, name in (("key", key), ("labels_key", labels_key)):
        if name is not None and name not in headers:
            raise InputError(f"{argument} is {name!r}; {str(path)!r} has {there}")
    if key is not None:
        return _Names(key, labels_key)
    found = [names for names in _CONVENTIONS if names.y in headers]
    if not found and len(headers) == 1:
        return _Names(next(iter(headers)), labels_key)
    if len({names.y for names in found}) != 1:
        raise InputError(f"path: which array of {str(path)!r} is the data? Name it with key; there are {there}")
    best = next((names for names in found if names.labels in headers), found[0])
    names = _Names(best.y, *(name if name in headers else None for name in best[1:]))
    return names if labels_key is None else _Names(names.y, labels_key)


def _check_labels(path: Path, names: _Names, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Refuses labels that were found by their name but are no labels, with the way to say what they are."""
    assert names.labels is not None
    labels, count = arrays[names.labels], len(arrays[names.y])
    if labels.ndim != 1 or len(labels) != count or labels.dtype.kind not in "biu":
        raise InputError(
            f"path: {names.labels} of {str(path)!r} is {labels.dtype} of shape {list(labels.shape)}, not labels of "
            f"{count} samples; name the data with key ({names.y!r}), and their labels with labels_key if they have any"
        )


def _data_sets(names: _Names, arrays: dict[str, np.ndarray[Any, Any]]) -> Loaded:
    labels = None if names.labels is None else arrays[names.labels]
    if names.test_y is None:
        return Loaded(from_arrays(arrays[names.y], labels), None)
    test_labels = None if names.test_labels is None else arrays[names.test_labels]
    if (labels is None) != (test_labels is None):
        raise InputError(f"only one of {names.y} and {names.test_y} has labels; name the data to use with key")
    # A class that only one of the parts has is a class of both.
    classes = max(as_labels(each)[1] for each in (labels, test_labels)) if labels is not None else None
    train = from_arrays(arrays[names.y], labels, num_classes=classes)
    held_out = from_arrays(arrays[names.test_y], test_labels, num_classes=classes)
    if train.shape != held_out.shape:
        raise InputError(f"its samples have shape {list(train.shape)}, those of {names.test_y} {list(held_out.shape)}")
    return Loaded(train, held_out)
