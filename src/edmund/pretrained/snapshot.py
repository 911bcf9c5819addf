"""NVIDIA's `.pkl` snapshots of EDM and EDM2, read without running anything in them.

Such a file is a pickle, and a pickle is a program: its opcodes call what they name. Here the names are few (one table),
and what stands behind each is no function of its own but an inert record of the arguments. So loading leaves a tree of
records, dicts, numbers and bytes, from which the network's parameters and its constructor's arguments are then read.
The source text of the classes, which the files carry, stays text. A tensor's numbers are a nested save of one storage:
its own opcodes are checked first, to claim no more elements than there are bytes; then `torch.load` with weights_only
reads it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from edmund.errors import InputError


class _Record:
    """What the file says of an object: the arguments it is made of and the state it is given. Nothing is called."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Self:
        self = super().__new__(cls)
        self.args = args
        self.state = None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Persistent(_Record):
    """An object of a class whose source is in the file."""

    __slots__ = ()


class _Container(_Record):
    """A ModuleDict or ModuleList."""

    __slots__ = ()


class _Storage(_Record):
    """The nested save of a tensor's numbers."""

    __slots__ = ()


class _View(_Record):
    """A tensor: storage, offset, size, stride, and more that only training reads."""

    __slots__ = ()


class _Parameter(_Record):
    """A parameter: its tensor, and more that only training reads."""

    __slots__ = ()


class _Dict(dict[Any, Any]):
    """A dict without attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Attributes are left out."""


_NAMES: Mapping[tuple[str, str], type] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Persistent,
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch.nn.modules.container", "ModuleList"): _Container,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _View,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("collections", "OrderedDict"): _Dict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    # The statistics of EDM2's latents are NumPy arrays; no network needs them.
    ("numpy.core.multiarray", "_reconstruct"): _Record,
    ("numpy.core.multiarray", "scalar"): _Record,
    ("numpy._core.multiarray", "_reconstruct"): _Record,
    ("numpy._core.multiarray", "scalar"): _Record,
    ("numpy", "ndarray"): _Record,
    ("numpy", "dtype"): _Record,
}
"""Every name that a snapshot may use, and what stands in for it."""

_UNUSED_OPCODES = frozenset(
    {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"}
)
_MEMO_OPCODES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

_MAGIC = 0x1950A86A20F9469CFC6C
# fmt: off
_SAVED_OPCODES = frozenset({
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE",
    "BINPUT", "LONG_BINPUT", "BINGET", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "BINPERSID",
})
# fmt: on
"""What `torch.save` writes for a storage in the form that pickled tensors have: no calls."""
_STORAGES = {
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
}
_VERSION = 6


def read_snapshot(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The parameters of a snapshot's averaged network (`ema`) by their original names, and its config: `cls`, the
    class, and the constructor's arguments.

    Raises InputError for a file that is no such snapshot, is damaged, or uses any other name; nothing in it is run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"path {str(path)!r} cannot be read: {error.strerror or error}") from error
    try:
        _check_opcodes(content)
        return _network(_Reader(io.BytesIO(content)).load(), len(content))
    except InputError as error:
        raise InputError(f"path {str(path)!r} is refused: {error}") from error
    except Exception as error:  # of a crafted or damaged file: any kind
        raise InputError(f"path {str(path)!r} is no snapshot of EDM or EDM2: {_line(error)}") from error


class _Reader(pickle.Unpickler):
    """An unpickler that makes records."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _NAMES:
            raise InputError(f"it uses {_line(f'{module}.{name}')}, which a snapshot of EDM or EDM2 does not")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise InputError("it refers to objects outside of the file, which a snapshot of EDM or EDM2 does not")


def _check_opcodes(content: bytes) -> None:
    """Refuses opcodes that no snapshot has, and lengths beyond the file's, for which the unpickler would make room."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in _UNUSED_OPCODES:
            raise InputError(f"it has the opcode {opcode.name}, which a snapshot of EDM or EDM2 has not")
        most = number if opcode.name in _MEMO_OPCODES else len(content) if opcode.name == "FRAME" else None
        if most is not None and int(argument or 0) > most:
            raise InputError(f"it claims {argument} in {opcode.name}, more than the file holds")


def _network(snapshot: Any, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    network = snapshot.get("ema") if isinstance(snapshot, dict) else None
    if not isinstance(network, _Persistent):
        raise InputError("it holds no network under 'ema'")
    name, state = _object(network)
    positional, keywords = state.get("_init_args", ()), state.get("_init_kwargs", {})
    leading = ("img_resolution", "img_channels", "label_dim")
    if not isinstance(positional, tuple | list) or not isinstance(keywords, dict) or len(positional) > len(leading):
        raise InputError(f"the arguments of its {_line(name)} are not readable")
    config = {**dict(zip(leading, positional, strict=False)), **keywords, "cls": name}
    for argument, value in config.items():
        if not isinstance(argument, str) or not _is_plain(value):
            raise InputError(f"the argument {_line(argument)} of its {_line(name)} is no number, text or list of them")
    views: dict[str, _View] = {}
    _collect(network, "", views, set())
    parameters: dict[str, Tensor] = {}
    left = size
    for key, view in views.items():
        parameters[key] = _tensor(key, view)
        left -= parameters[key].nbytes
        if left < 0:
            raise InputError(f"its tensors up to {_line(key)} have more bytes than the file")
    return parameters, config


def _object(record: _Persistent) -> tuple[str, dict[Any, Any]]:
    """Class name and attributes."""
    meta = record.args[0] if len(record.args) == 1 else None
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != _VERSION:
        raise InputError(f"an object in it is not saved as a class in version {_VERSION}")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise InputError("an object in it has no class name or no state")
    return name, state


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(item is None or isinstance(item, bool | int | float | str) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _collect(module: Any, prefix: str, views: dict[str, _View], seen: set[int]) -> None:
    """The tensors of a module and of those in it, by their names."""
    if isinstance(module, _Persistent):
        _, state = _object(module)
    elif isinstance(module, _Container) and isinstance(module.state, dict):
        state = module.state
    else:
        raise InputError(f"{_line(prefix)} in it is no network's layer")
    if id(module) in seen:  # modules within modules could make a short file's tree endless
        raise InputError(f"{_line(prefix)} in it is there twice")
    seen.add(id(module))
    transient = state.get("_non_persistent_buffers_set", set())
    for group in ("_parameters", "_buffers"):
        for name, value in state.get(group, {}).items():
            tensor = value.args[0] if isinstance(value, _Parameter) and value.args else value
            if tensor is None or name in transient:
                continue
            if not isinstance(tensor, _View):
                raise InputError(f"{_line(prefix + name)} in it is no tensor")
            views[prefix + name] = tensor
    for name, child in state.get("_modules", {}).items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", views, seen)


def _tensor(name: str, view: _View) -> Tensor:
    """The tensor that a view describes, when it lies within its storage and holds no element twice."""
    storage, offset, shape, stride = view.args[:4]
    data = storage.args[0] if isinstance(storage, _Storage) and len(storage.args) == 1 else None
    if not isinstance(data, bytes):
        raise InputError(f"{_line(name)} in it has no storage")
    numbers = _numbers(name, data)
    integers = (offset, *shape, *stride)
    inside = all(type(value) is int and value >= 0 for value in integers) and len(shape) == len(stride)
    if inside:
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        inside = 0 < math.prod(shape) <= len(numbers) and last < len(numbers)
    if not inside:
        claim = f"offset {offset}, shape {shape} and stride {stride}"
        raise InputError(f"{_line(name)} in it has {_line(claim)} in a storage of {len(numbers)} elements")
    return numbers.as_strided(tuple(shape), tuple(stride), offset).clone()  # not the whole storage


def _numbers(name: str, data: bytes) -> Tensor:
    """The one storage of a nested save, flat."""
    buffer = io.BytesIO(data)
    parts = [list(pickletools.genops(buffer)) for _ in range(5)]
    opcodes = {opcode.name for part in parts for opcode, _, _ in part}
    names = [argument for part in parts for opcode, argument, _ in part if opcode.name == "GLOBAL"]
    marks = [argument for opcode, argument, _ in parts[0] if opcode.name == "LONG1"]
    if marks != [_MAGIC] or not opcodes <= _SAVED_OPCODES or len(names) != 1 or names[0] not in _STORAGES:
        raise InputError(f"{_line(name)} in it is not saved as one storage of floating-point numbers")
    dtype = _STORAGES[names[0]]
    claimed = max(argument for _, argument, _ in parts[3] if isinstance(argument, int))
    if claimed * dtype.itemsize > len(data):
        raise InputError(f"{_line(name)} in it claims {claimed} elements in {len(data)} bytes")
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=dtype).set_(storage)


def _line(value: object) -> str:
    """A short line of any text or error of the file's."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 100 else text[:97] + "..."
