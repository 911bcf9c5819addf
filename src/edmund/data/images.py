"""Folders and zips of images as one array of bytes in memory.

Reading goes twice over the files: first their headers, so that an image of another size, and a set that would not fit,
is known before anything is decoded; then the pixels, by several threads (Pillow decodes outside Python's lock).
Nothing of a zip is ever written to the disk.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from edmund.data.arrays import from_arrays
from edmund.data.dataset import DataSet
from edmund.errors import InputError, check_count
from edmund.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 8 * 2**30
"""The memory that a set of images or an .npz may take unless more is allowed."""

_MAX_FILE_BYTES = 2**28  # of one image file inside a zip, unpacked
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height change places
_WORKERS = 8

Result = TypeVar("Result")


def images(path: str | os.PathLike[str], *, size: int | None = None, max_bytes: int = MAX_BYTES) -> DataSet:
    """The images of a folder or a zip, [C, H, W] uint8 in the order of their names.

    Files of any format that Pillow reads are taken, others are left alone. The folder next to the root in which an
    image lies is its class, and labels follow the sorted names of the classes; images in no folder, or all in one,
    have no labels. Where all are grey there is 1 channel, else 3. Photographs are turned upright as their EXIF says.

    size: each image is cropped to its central square and resized to `size` x `size` (Lanczos); without it all must
    have one size. max_bytes: the memory that they may take. Raises InputError for a path without images, images of
    different sizes, too many for max_bytes, and one that cannot be read, has more than 8 bits or is transparent.
    """
    if size is not None:
        check_count("size", size)
    with _opened(Path(path)) as files:
        return _read(Path(path), files, size, max_bytes)


def images_in_parts(
    path: Path, parts: dict[str, str], *, size: int | None, max_bytes: int
) -> tuple[DataSet, DataSet] | None:
    """The two data sets of a root that has nothing but a training folder and a test folder; else None.

    parts: the names of such folders (lower case) -> "train" or "held_out".
    """
    with _opened(path) as files:
        tops = {file.parts[0] for file in files.names if len(file.parts) > 1}
        kinds = {parts.get(top.lower()): top for top in tops}
        if len(tops) != 2 or set(kinds) != {"train", "held_out"} or any(len(file.parts) == 1 for file in files.names):
            return None
        train = _read(path / kinds["train"], files.under(kinds["train"]), size, max_bytes)
        held_out = _read(path / kinds["held_out"], files.under(kinds["held_out"]), size, max_bytes)
    if train.shape != held_out.shape or train.class_names != held_out.class_names:
        raise InputError(
            f"path: {str(path)!r} has images of shape {list(train.shape)} and classes {train.class_names} in "
            f"{kinds['train']}, and {list(held_out.shape)} and {held_out.class_names} in {kinds['held_out']}"
        )
    return train, held_out


@dataclass(frozen=True)
class _Name:
    """An image inside the root: its path from there, and what the reader knows it by."""

    parts: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class _Files:
    """Image files, sorted by name, and the way to read one. Reading is safe from several threads."""

    names: list[_Name]
    read: Callable[[str], bytes]

    def under(self, folder: str) -> _Files:
        """Those in one folder, named from there."""
        return _Files([_Name(name.parts[1:], name.key) for name in self.names if name.parts[0] == folder], self.read)


@contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    if path.is_dir():
        yield _Files(
            _sorted((_Name(file.relative_to(path).parts, str(file)) for file in _walk(path)), path), _read_file
        )
        return
    if not path.exists():
        raise InputError(f"path: {str(path)!r} does not exist; it must be a folder of images or a zip of them")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"path: {str(path)!r} is not a zip that can be read: {error}") from None
    with archive:
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

        def read(key: str) -> bytes:
            if members[key].file_size > _MAX_FILE_BYTES:
                raise ValueError(f"it unpacks to {members[key].file_size} bytes")
            return archive.read(members[key])

        yield _Files(_sorted((_Name(tuple(filter(None, key.split("/"))), key) for key in members), path), read)


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder; linked folders too, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, file) for file in files)


def _sorted(names: Iterable[_Name], path: Path) -> list[_Name]:
    """Those that are images and not hidden, from the folder on that they do not all share."""
    suffixes = _suffixes()
    found = sorted(
        (
            name
            for name in names
            if Path(name.parts[-1]).suffix.lower() in suffixes
            and not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
        ),
        key=lambda name: name.parts,
    )
    if not found:
        raise InputError(f"path: {str(path)!r} holds no images (of the formats that Pillow reads)")
    return _without_shared(found)


def _without_shared(found: list[_Name]) -> list[_Name]:
    while all(len(name.parts) > 1 and name.parts[0] == found[0].parts[0] for name in found):
        found = [_Name(name.parts[1:], name.key) for name in found]
    return found


def _suffixes() -> set[str]:
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats()}


def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    # EPS is a program, which Pillow hands to Ghostscript: a file from outside is not run.
    kinds = [kind for kind in Image.OPEN if kind != "EPS"]
    return sorted(kinds, key=lambda kind: kind not in ("JPEG", "PNG"))  # Pillow tries them in this order


def _read_file(key: str) -> bytes:
    return Path(key).read_bytes()


def _read(path: Path, files: _Files, size: int | None, max_bytes: int) -> DataSet:
    names = _without_shared(files.names)
    labels, class_names = _classes(path, names)
    formats = _formats()

    def shown(name: _Name) -> str:
        return "/".join(name.parts)

    def header(name: _Name) -> tuple[tuple[int, int], str]:
        with _image(files, name, formats) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return ((height, width) if turned else (width, height)), image.mode

    headers = _in_threads(header, names, "reading image headers")
    for name, (_, mode) in zip(names, headers, strict=True):
        if mode in _DEEP:
            raise InputError(
                f"path: {shown(name)} has more than 8 bits a pixel (mode {mode}); give such images as arrays"
            )
    if size is None:
        for name, (own, _) in zip(names, headers, strict=True):
            if own != headers[0][0]:
                (w0, h0), (w, h) = headers[0][0], own
                raise InputError(
                    f"path: images have different sizes: {shown(names[0])} is {w0} x {h0}, {shown(name)} is {w} x {h}; "
                    "give a size to crop and resize them to"
                )
    width, height = (size, size) if size is not None else headers[0][0]
    channels = 1 if all(mode in _GREY for _, mode in headers) else 3
    needed = len(names) * channels * height * width
    if needed > max_bytes:
        raise InputError(
            f"path: {len(names)} images of {channels} x {height} x {width} need {needed} bytes in memory, and "
            f"max_bytes is {max_bytes}; give a smaller size, or raise max_bytes"
        )
    pixels = torch.empty(len(names), channels, height, width, dtype=torch.uint8)

    def decode(numbered: tuple[int, _Name]) -> None:
        index, name = numbered
        with _image(files, name, formats) as image:
            pixels[index] = _pixels(image, "L" if channels == 1 else "RGB", size, (width, height))

    _in_threads(decode, list(enumerate(names)), "reading images")
    return from_arrays(pixels, labels, class_names=class_names)


def _classes(path: Path, names: list[_Name]) -> tuple[list[int] | None, list[str] | None]:
    loose = [name for name in names if len(name.parts) == 1]
    if len(loose) == len(names):
        return None, None
    if loose:
        raise InputError(
            f"path: {str(path)!r} has {len(loose)} images beside its class folders (the first: {loose[0].parts[0]}); "
            "put each into the folder of its class"
        )
    class_names = sorted({name.parts[0] for name in names})
    number = {name: index for index, name in enumerate(class_names)}
    return [number[name.parts[0]] for name in names], class_names


@contextmanager
def _image(files: _Files, name: _Name, formats: list[str]) -> Iterator[Image]:
    """The image, opened; whatever goes wrong with it is an InputError that names it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(name.key)), formats=formats) as image:
            if math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels")
            yield image
    except InputError:
        raise
    # Pillow's decoders and zipfile raise whatever they meet in a damaged file: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if type(error).__name__ == "UnidentifiedImageError":  # whose own text holds an address in memory
            said = "its format is none that Pillow knows"
        raise InputError(f"path: {'/'.join(name.parts)} is not an image that can be read: {said}") from error


def _pixels(image: Image, mode: str, size: int | None, expected: tuple[int, int]) -> Tensor:
    """[C, H, W] uint8, upright, cropped and resized."""
    import numpy as np
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        if upright.getchannel("A").getextrema() != (255, 255):
            raise ValueError("it is transparent in places; lay it on a background first")
    upright = upright.convert(mode)
    if size is not None:
        short = min(upright.size)
        left, top = (upright.width - short) // 2, (upright.height - short) // 2
        box = (left, top, left + short, top + short)
        upright = upright.resize((size, size), Image.Resampling.LANCZOS, box=box)
    elif upright.size != expected:
        raise ValueError(f"its header says {expected[0]} x {expected[1]} and its pixels are {upright.size}")
    array = np.array(upright, dtype=np.uint8)
    return torch.from_numpy(array).reshape(upright.height, upright.width, -1).permute(2, 0, 1)


Item = TypeVar("Item")


def _in_threads(work: Callable[[Item], Result], items: list[Item], description: str) -> list[Result]:
    results = []
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool, track(len(items), description) as bar:
        try:
            for result in pool.map(work, items):
                results.append(result)
                bar.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
