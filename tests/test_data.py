"""Data sets: every value and label against what was put in, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edmund import data
from edmund.errors import InputError
from edmund.transform import MinMax, Standardise


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused(match: str, make: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def everything(dataset: data.DataSet) -> tuple[Tensor, dict[str, Tensor]]:
    return dataset.__getitems__(list(range(len(dataset))))


# Arrays


@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda values: np.array(values, dtype=">f8"), list])
def test_arrays_of_every_kind(kind: Any) -> None:
    rows = [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]
    dataset = data.from_arrays(kind(rows), kind([1, -1, 0]), context=kind([[7.0], [8.0], [9.0]]))
    assert (len(dataset), dataset.shape, dataset.num_classes, dataset.value_range) == (3, (2,), 2, None)
    y, condition = dataset.__getitems__([2, 0, 2])
    assert y.tolist() == [rows[2], rows[0], rows[2]]
    assert condition["labels"].tolist() == [0, 1, 0] and condition["labels"].dtype == torch.int64
    assert condition["context"].tolist() == [[9.0], [7.0], [9.0]]
    y, condition = dataset[-2]
    assert y.tolist() == rows[1] and condition["labels"].item() == -1
    assert [y.tolist() for y, _ in dataset] == rows  # a sequence that ends


def test_nothing_is_copied() -> None:
    y = torch.zeros(4, 3, dtype=torch.uint8)
    dataset = data.from_arrays(y)
    y[2] = 9
    assert dataset[2][0].tolist() == [9, 9, 9] and dataset[2][0].dtype == torch.uint8


def test_layouts() -> None:
    grey, colour = noise(5, 8, 6), noise(5, 8, 6, 3)
    assert np.array_equal(everything(data.from_arrays(grey))[0], grey[:, None])
    y = everything(data.from_arrays(torch.from_numpy(colour)))[0]
    assert y.is_contiguous() and np.array_equal(y, colour.transpose(0, 3, 1, 2))
    assert data.from_arrays(colour).value_range == (0, 255)
    first = colour.transpose(0, 3, 1, 2)
    assert np.array_equal(everything(data.from_arrays(first))[0], first)
    fields = np.zeros((5, 4, 8, 6))
    assert data.from_arrays(fields).shape == (4, 8, 6) and data.from_arrays(fields).value_range is None


def test_wide_unsigned_integers_keep_their_values() -> None:
    assert data.from_arrays(np.array([[2**32 - 1]], dtype=np.uint32))[0][0].item() == 2**32 - 1


def test_one_hot_labels() -> None:
    dataset = data.from_arrays(torch.zeros(3, 2), torch.eye(3))
    assert dataset.num_classes == 3 and dataset[1][1]["labels"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.from_arrays(torch.zeros(0, 2)), r"y is empty \(shape \[0, 2\]\)"),
        (lambda: data.from_arrays(torch.zeros(3)), r"y has shape \[3\]"),
        (lambda: data.from_arrays(torch.zeros(3, 28, 28, 1)), "looks channel-last"),
        (lambda: data.from_arrays([[1.0], [2.0, 3.0]]), "y is ragged"),
        (lambda: data.from_arrays(np.array([["a"]])), "y holds <U1"),
        (lambda: data.from_arrays(torch.zeros(2, 2, dtype=torch.complex64)), "y holds torch.complex64"),
        (
            lambda: data.from_arrays(torch.tensor([[math.nan, math.nan], [math.inf, 0]])),
            "y: 2 values are NaN and 1 infinite among 4",
        ),
        (lambda: data.from_arrays(torch.zeros(2, 2), context=[[0.0], [math.inf]]), "context: 0 values are NaN and 1"),
        (lambda: data.from_arrays(torch.zeros(2, 2), context=[[0.0]]), r"context has shape \[1, 1\].*2 rows"),
        (lambda: data.from_arrays(torch.zeros(2, 2), [0, 1, 2]), r"labels has shape \[3\].*2 rows"),
        (lambda: data.from_arrays(torch.zeros(2, 2), [0, -2]), r"labels: 1 of 2 are out of range \(the first: -2\)"),
        (lambda: data.from_arrays(torch.zeros(2, 2), [0, 2], num_classes=2), "the first: 2.*0 to 1"),
        (lambda: data.from_arrays(torch.zeros(2, 2), [0, 2], class_names=["a", "b"]), "the first: 2.*0 to 1"),
        (lambda: data.from_arrays(torch.zeros(2, 2), [0.0, 0.5]), "1 of 2 are not whole numbers.*0.5"),
        (lambda: data.from_arrays(torch.zeros(2, 2), [0.0, math.nan]), "1 of 2 are not whole numbers.*nan"),
        (lambda: data.from_arrays(torch.zeros(2, 2), ["cat", "dog"]), "labels holds <U3"),
        (lambda: data.from_arrays(torch.zeros(2, 2), num_classes=3), "labels is None"),
    ],
)
def test_arrays_that_cannot_be(make: Any, message: str) -> None:
    refused(message, make)


# Digits, views, moments


def test_digits() -> None:
    from sklearn.datasets import load_digits

    dataset = data.digits()
    y, condition = everything(dataset)
    assert (dataset.shape, dataset.num_classes, dataset.value_range) == ((1, 8, 8), 10, (0, 16))
    assert dataset.class_names == list("0123456789")
    assert y.dtype == torch.float32
    assert np.array_equal(y[:, 0], load_digits().images) and np.array_equal(condition["labels"], load_digits().target)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.013])
def test_split_is_a_stratified_partition(fraction: float) -> None:
    counts = {-1: 7, 0: 100, 1: 250, 2: 11}
    labels = torch.cat([torch.full((count,), label) for label, count in counts.items()])
    whole = data.from_arrays(torch.arange(len(labels))[:, None], labels, class_names=["a", "b", "c"])
    train, held_out = data.split(whole, fraction, seed=3)
    parts = [everything(part) for part in (train, held_out)]
    assert sorted(torch.cat([y for y, _ in parts]).flatten().tolist()) == list(range(len(labels)))
    assert len(held_out) == round(len(labels) * fraction)
    for part, (y, condition) in zip((train, held_out), parts, strict=True):
        assert torch.equal(condition["labels"], labels[y.flatten()]) and torch.equal(condition["labels"], part.labels)
        assert part.class_names == ["a", "b", "c"] and part.num_classes == 3
    for label, count in counts.items():
        assert abs(int((held_out.labels == label).sum()) - fraction * count) <= 1
    # Neither part is in the order of the classes or of the data.
    for part in (train, held_out) if fraction == 0.2 else ():
        assert len(part.labels[: len(part) // 4].unique()) >= 3
        assert not torch.equal(everything(part)[0].flatten(), everything(part)[0].flatten().sort().values)


def test_split_follows_its_seed() -> None:
    whole = data.from_arrays(torch.arange(100)[:, None])
    order = [everything(data.split(whole, 0.3, seed)[1])[0].flatten().tolist() for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]


def test_split_of_a_split() -> None:
    whole = data.from_arrays(torch.arange(100)[:, None], torch.arange(100) % 4)
    inner, rest = data.split(data.split(whole, 0.5)[0], 0.5)
    assert torch.equal(everything(inner)[0].flatten() % 4, inner.labels)
    assert len(inner) == len(rest) == 25


@pytest.mark.parametrize(("fraction", "message"), [(0, "between 0 and 1"), (1.0, "between"), (0.04, "part empty")])
def test_splits_that_cannot_be(fraction: float, message: str) -> None:
    refused(message, lambda: data.split(data.from_arrays(torch.zeros(10, 2)), fraction))


def test_unlabelled() -> None:
    whole = data.from_arrays(torch.zeros(4, 2), [0, 1, 2, 0], context=torch.ones(4, 1))
    bare = data.unlabelled(whole)
    assert bare.num_classes == 0 and bare.labels is None and bare.class_names is None
    assert bare.__getitems__([1, 2])[1].keys() == {"context"}


@pytest.mark.parametrize("batch_size", [None, 1, 100])
def test_moments_are_of_the_models_units(batch_size: int | None) -> None:
    dataset = data.digits()
    y = everything(dataset)[0].double() / 8 - 1
    found = data.moments(dataset, MinMax(0, 16), batch_size=batch_size)
    assert found.total_mean == pytest.approx(float(y.mean()), rel=1e-6)
    assert found.total_std == pytest.approx(float(y.std(correction=0)), rel=1e-6)
    fitted = Standardise.fit(data.batches(dataset, batch_size))
    standard = data.moments(dataset, fitted)
    assert standard.total_mean == pytest.approx(0, abs=1e-6) and standard.total_std == pytest.approx(1, rel=1e-6)


def test_a_data_loader_reads_the_batches_as_they_are() -> None:
    dataset = data.digits()
    y, condition = next(iter(DataLoader(dataset, batch_size=8, collate_fn=lambda batch: batch)))
    assert torch.equal(y, everything(dataset)[0][:8]) and torch.equal(condition["labels"], dataset.labels[:8])


# .npz and .npy


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_npz_with_its_own_test_set(tmp_path: Path) -> None:
    y, labels = noise(6, 5, 5), np.array([0, 1, 2, 0, 1, 2])
    path = save(
        tmp_path / "a.npz", train_images=y, train_labels=labels, test_images=y[:2], test_labels=np.array([3, 0])
    )
    train, held_out = data.load(path)
    assert held_out is not None
    assert np.array_equal(everything(train)[0], y[:, None]) and train.value_range == (0, 255)
    assert np.array_equal(train.labels, labels) and held_out.labels.tolist() == [3, 0]
    assert train.num_classes == held_out.num_classes == 4  # class 3 is in the test set alone
    # A key means that array, and no other.
    only = data.load(path, key="test_images")
    assert only.held_out is None and len(only.train) == 2 and only.train.labels is None
    assert data.load(path, key="test_images", labels_key="test_labels").train.labels.tolist() == [3, 0]


@pytest.mark.parametrize("names", [("images", "labels"), ("data", "labels"), ("x", "y"), ("x_train", "y_train")])
def test_npz_conventions(tmp_path: Path, names: tuple[str, str]) -> None:
    y = noise(3, 2, 4, 4)
    path = save(tmp_path / "a.npz", **dict(zip(names, (y, np.array([2, 0, 1], dtype=np.uint8)), strict=True)))
    loaded = data.load(path)
    assert loaded.held_out is None
    assert np.array_equal(everything(loaded.train)[0], y) and loaded.train.labels.tolist() == [2, 0, 1]


def test_npz_with_one_array_of_any_name(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=(3, 2))
    assert np.array_equal(everything(data.load(save(tmp_path / "a.npz", theta=y)).train)[0], y)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"a": (3, 2), "b": (3, 2)}, {}, r"key; there are a \[3, 2\], b \[3, 2\]"),
        ({"images": (3, 2), "data": (3, 2)}, {}, "Name it with key"),
        ({"a": (3, 2)}, {"key": "c"}, r"key is 'c'.* has a \[3, 2\]"),
        ({"a": (3, 2)}, {"labels_key": "c"}, "labels_key is 'c'"),
        ({"a": (3, 2)}, {"size": 8}, "size is 8"),
        ({"x": (3, 2), "y": (3, 2)}, {}, r"y of .* is float64 of shape \[3, 2\], not labels"),
        ({"a": (300, 20)}, {"max_bytes": 1000}, "need 48000 bytes in memory, and max_bytes is 1000"),
        ({"a": (0, 20)}, {}, "a: y is empty"),
        ({"train_images": (3, 2), "test_images": (3, 4)}, {}, r"shape \[2\], those of test_images \[4\]"),
    ],
)
def test_npz_that_cannot_be(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "a.npz", **{name: np.zeros(shape) for name, shape in arrays.items()})
    refused(message, lambda: data.load(path, **options))


def test_npz_with_nan_names_the_array(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", theta=np.array([[1.0, math.nan]]))
    refused("a.npz', theta: y: 1 values are NaN", lambda: data.load(path))


def test_damaged_files(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npz", x=noise(50, 4)).read_bytes()
    (tmp_path / "short.npz").write_bytes(good[:-60])
    (tmp_path / "altered.npz").write_bytes(good[:150] + bytes([good[150] ^ 255]) + good[151:])
    (tmp_path / "text.npy").write_text("not an array")
    for name in ("short.npz", "altered.npz", "text.npy"):
        refused(f"{name}' is not an? .np. that can be read", lambda name=name: data.load(tmp_path / name))


def test_a_header_that_promises_too_much_gets_no_memory(tmp_path: Path) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue() + bytes(80))
    refused("x.npy is cut short", lambda: data.load(tmp_path / "a.npz"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "a.npz", "raw.npy"):
        refused("that can be read", lambda name=name: data.load(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def test_npy_is_mapped(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=(40, 3, 4, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", y)
    train = data.load(tmp_path / "a.npy").train
    assert isinstance(train.y, np.memmap)
    batch = train.__getitems__([7, 3])[0]
    assert np.array_equal(batch, y[[7, 3]])
    batch += 1  # a batch is the reader's own
    assert np.array_equal(train[7][0], y[7])


@pytest.mark.parametrize("name", ["a.csv", "a", "a.png"])
def test_other_files(tmp_path: Path, name: str) -> None:
    refused("does not exist", lambda: data.load(tmp_path / name))
    (tmp_path / name).write_text("1,2")
    refused("suffix", lambda: data.load(tmp_path / name))


# Images


def write(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return pixels


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


@pytest.fixture(params=["folder", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Turns a folder into what is read: itself, or a zip with the folder inside."""
    return (lambda folder: folder) if request.param == "folder" else lambda f: zipped(f, tmp_path / "a.zip")


def test_class_folders(tmp_path: Path, place: Any) -> None:
    root = tmp_path / "root"
    cat = write(root / "cat" / "1.png", noise(5, 7, 3))
    ant = write(root / "ant" / "deep" / "2.bmp", noise(5, 7, 3, seed=1))
    bee = write(root / "bee" / "0.tiff", noise(5, 7, 3, seed=2))
    (root / "notes.txt").write_text("not an image")
    (root / "cat" / ".hidden.png").write_text("nor this")
    dataset = data.images(place(root))
    y, condition = everything(dataset)
    assert (dataset.shape, dataset.value_range, y.dtype) == ((3, 5, 7), (0, 255), torch.uint8)
    assert dataset.class_names == ["ant", "bee", "cat"] and condition["labels"].tolist() == [0, 1, 2]
    for row, pixels in zip(y, (ant, bee, cat), strict=True):
        assert np.array_equal(row, pixels.transpose(2, 0, 1))


def test_images_without_classes(tmp_path: Path, place: Any) -> None:
    root = tmp_path / "root"
    pixels = [write(root / f"{k}.png", noise(4, 4, seed=k)) for k in (3, 1, 2)]
    dataset = data.load(place(root)).train
    y, condition = everything(dataset)
    assert dataset.num_classes == 0 and not condition
    assert np.array_equal(y[:, 0], np.stack([pixels[1], pixels[2], pixels[0]]))  # grey; in the order of the names


def test_train_and_test_folders(tmp_path: Path, place: Any) -> None:
    root = tmp_path / "root"
    for part, count in (("train", 3), ("test", 2)):
        for k in range(count):
            for kind in ("b", "a"):
                write(root / part / kind / f"{k}.png", noise(4, 4, seed=count))
    train, held_out = data.load(place(root))
    assert held_out is not None
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and held_out.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(held_out[3][0][0], noise(4, 4, seed=2))


def test_train_and_test_folders_that_differ(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.png", noise(4, 4))
    write(tmp_path / "test" / "a.png", noise(5, 4))
    refused(r"\[1, 4, 4\].*in train, and \[1, 5, 4\]", lambda: data.load(tmp_path))


def test_modes(tmp_path: Path) -> None:
    """Grey stays grey, whatever it is stored as; one colour image makes all of them colour."""
    grey = write(tmp_path / "1.png", noise(4, 4))
    write(tmp_path / "2.png", grey, "LA")
    write(tmp_path / "3.png", np.where(grey > 127, 255, 0).astype(np.uint8), "1")
    y = everything(data.images(tmp_path))[0]
    assert y.shape == (3, 1, 4, 4)
    assert np.array_equal(y[0, 0], grey) and np.array_equal(y[1, 0], grey)
    assert np.array_equal(y[2, 0], np.where(grey > 127, 255, 0))
    colour = write(tmp_path / "4.png", noise(4, 4, 3), "RGBA")
    palette = np.array([[[255, 0, 0], [0, 255, 0]] * 2] * 4, dtype=np.uint8)
    Image.fromarray(palette).quantize(2).save(tmp_path / "5.gif")
    y = everything(data.images(tmp_path))[0]
    assert y.shape == (5, 3, 4, 4)
    assert np.array_equal(y[0], np.stack([grey] * 3)) and np.array_equal(y[3], colour.transpose(2, 0, 1))
    assert np.array_equal(y[4], palette.transpose(2, 0, 1))


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    write(tmp_path / "a.png", pixels, exif=exif)
    assert np.array_equal(data.images(tmp_path)[0][0][0], np.rot90(pixels, -1))


def test_size_crops_the_centre_and_resizes(tmp_path: Path) -> None:
    left, right = np.full((8, 4), 255, dtype=np.uint8), np.full((8, 4), 255, dtype=np.uint8)
    write(tmp_path / "wide.png", np.hstack([left, noise(8, 8), right]))
    write(tmp_path / "high.png", np.full((20, 10), 100, dtype=np.uint8))
    y = everything(data.images(tmp_path, size=8))[0]
    assert np.array_equal(y[1, 0], noise(8, 8))  # of its size after the crop: no resampling
    assert (y[0] == 100).all() and y.shape == (2, 1, 8, 8)
    halved = everything(data.images(tmp_path, size=4))[0].double()
    assert float(halved[1].mean()) == pytest.approx(noise(8, 8).mean(), abs=8)  # Lanczos keeps the mean, edges aside


def test_images_that_cannot_be(tmp_path: Path, place: Any) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "notes.txt").write_text("")
    refused("holds no images", lambda: data.images(place(root)))
    write(root / "a" / "1.png", noise(4, 6))
    write(root / "b" / "2.png", noise(5, 6))
    refused("different sizes: a/1.png is 6 x 4, b/2.png is 6 x 5; give a size", lambda: data.images(place(root)))
    refused("size is 0", lambda: data.images(place(root), size=0))
    refused("need 98 bytes in memory, and max_bytes is 97", lambda: data.images(place(root), size=7, max_bytes=97))
    write(root / "loose.png", noise(4, 6))
    refused(r"1 images beside its class folders \(the first: loose.png\)", lambda: data.images(place(root), size=4))
    (root / "loose.png").unlink()
    (root / "b" / "2.png").write_bytes((root / "a" / "1.png").read_bytes()[:50])
    refused("b/2.png is not an image that can be read", lambda: data.images(place(root)))
    (root / "b" / "2.png").write_bytes(b"")
    refused("b/2.png is not an image that can be read", lambda: data.images(place(root)))


def test_deep_and_transparent_images(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a.png", (noise(4, 4).astype(np.uint16) << 8) + 1)
    refused(r"a.png has more than 8 bits a pixel \(mode I", lambda: data.images(tmp_path / "deep"))
    write(tmp_path / "glass" / "a.png", noise(4, 4, 4))
    refused("a.png .*transparent in places", lambda: data.images(tmp_path / "glass"))


def test_an_image_of_too_many_pixels_is_never_decoded(tmp_path: Path) -> None:
    """A PNG of 57 bytes whose header says 20000 x 20000."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    import zlib

    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + bytes(24))
    refused("bomb.png is not an image that can be read", lambda: data.images(tmp_path))


def test_zip_members_stay_in_the_zip(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(4, 4)).save(file, "png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../outside/1.png", file.getvalue())
        archive.writestr("/absolute/2.png", file.getvalue())
        archive.writestr("in/3.png", file.getvalue())
        archive.writestr("__MACOSX/in/._3.png", b"")
    before = set(tmp_path.rglob("*"))
    assert len(data.images(tmp_path / "a.zip")) == 2  # hidden paths, ".." among them, are left alone
    assert set(tmp_path.rglob("*")) == before and not (tmp_path / "../../outside").exists()
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-10])
    refused("b.zip' is not a zip that can be read", lambda: data.images(tmp_path / "b.zip"))
    refused("does not exist", lambda: data.images(tmp_path / "c.zip"))


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    write(tmp_path / "far" / "1.png", noise(4, 4))
    write(tmp_path / "root" / "a" / "2.png", noise(4, 4))
    (tmp_path / "root" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    dataset = data.images(tmp_path / "root")
    assert dataset.class_names == ["a", "b"] and len(dataset) == 2


# Other people's data sets


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.reads = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.items[index]


def test_wrap_tensors() -> None:
    y = torch.arange(12.0).view(4, 3)
    dataset = data.wrap(Items(list(y)))
    assert dataset.shape == (3,) and dataset.num_classes == 0
    assert torch.equal(dataset.__getitems__([3, 1])[0], y[[3, 1]])


def test_wrap_pairs() -> None:
    items = Items([(np.full((1, 2, 2), k, dtype=np.float32), k % 3) for k in range(7)])
    dataset = data.wrap(items)
    assert dataset.num_classes == 3 and dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    y, condition = dataset.__getitems__([4, 5])
    assert y[:, 0, 0, 0].tolist() == [4, 5] and condition["labels"].tolist() == [1, 2]
    items.reads = 0
    named = data.wrap(items, class_names=["a", "b", "c"])
    assert items.reads == 1 and named.num_classes == 3 and named.labels is None  # no pass over the data
    assert data.wrap(dataset) is dataset


def test_wrap_mappings() -> None:
    items = Items([{"theta": torch.ones(2) * k, "x": torch.ones(3) * -k, "kind": k} for k in range(3)])
    dataset = data.wrap(items, key="theta", labels_key="kind")
    y, condition = dataset.__getitems__([2])
    assert y.tolist() == [[2, 2]] and condition["x"].tolist() == [[-2, -2, -2]] and condition["labels"].tolist() == [2]


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "dataset is empty"),
        ([torch.zeros(())], {}, r"sample 0 has shape \[\]"),
        (["a"], {}, "sample 0 is a str"),
        ([(1, 2, 3)], {}, "sample 0 has 3 parts"),
        ([{"x": torch.zeros(2)}], {}, "key is not given.*mappings with 'x'"),
        ([{"x": torch.zeros(2)}], {"key": "z"}, "key is 'z'"),
        ([torch.zeros(2)], {"num_classes": 3}, "sample 0 has no label"),
        ([torch.zeros(2), torch.zeros(3)], {}, r"sample 1 has shape \[3\], sample 0 has \[2\]"),
        ([(torch.zeros(2), 0), torch.zeros(2)], {}, "sample 1 has no label"),
        ([(torch.zeros(2), 0), (torch.zeros(2), -3)], {}, "1 of 2 are out of range"),
        ([(torch.zeros(2), 0), (torch.zeros(2), 5)], {"num_classes": 2}, "the first: 5.*0 to 1"),
        ([(torch.zeros(2), 0.5)], {}, "not whole numbers"),
        ([(torch.zeros(2), 0), (torch.zeros(2), torch.zeros(4))], {}, r"labels of sample 1 has shape \[4\]"),
    ],
)
def test_wraps_that_cannot_be(items: list[Any], options: dict[str, Any], message: str) -> None:
    refused(message, lambda: everything(data.wrap(Items(items), **options)))


def test_wrap_needs_a_map_style_data_set() -> None:
    refused("dataset is a generator", lambda: data.wrap(x for x in [1]))


# The real thing


def test_mnist(shared: Path) -> None:
    path = shared / "data" / "mnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    train, held_out = data.load(path)
    assert held_out is not None
    assert (len(train), len(held_out), train.shape, train.num_classes) == (60_000, 10_000, (1, 28, 28), 10)
    assert (train.value_range, train[0][0].dtype) == ((0, 255), torch.uint8)
    with np.load(path) as file:
        assert np.array_equal(train.__getitems__([59_999])[0][0, 0], file["train_images"][-1])
        assert np.array_equal(held_out.labels, file["test_labels"])


def test_cifar10_as_jpeg(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "cifar10_jpeg_test.zip"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    # Every tenth image: a thousand.
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "part.zip", "w") as part:
        names = sorted(name for name in source.namelist() if name.endswith(".jpg"))[::10]
        for name in names:
            part.writestr(name, source.read(name))
    dataset = data.images(tmp_path / "part.zip")
    assert (len(dataset), dataset.shape, dataset.num_classes) == (1000, (3, 32, 32), 10)
    assert torch.bincount(dataset.labels).tolist() == [100] * 10
    assert dataset.class_names[0] == "airplane" and dataset.class_names[-1] == "truck"
    with zipfile.ZipFile(path) as source:
        expected = np.array(Image.open(io.BytesIO(source.read(names[437]))))
    assert np.array_equal(dataset[437][0], expected.transpose(2, 0, 1))
    assert 0.2 < data.moments(dataset, MinMax(0, 255)).total_std < 0.6
