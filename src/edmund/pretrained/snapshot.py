"""NVIDIA's `.pkl` snapshots of EDM and EDM2, read without running anything in them.

Such a file is a pickle, and a pickle is a program: its opcodes call what they name. Here nothing is called: the opcodes
are followed one by one, the few that such files have; the names are few too (one table), and what stands behind each is
an inert record of the arguments. So reading leaves a tree of records, dicts, lists, numbers and bytes, from which the
network's parameters and its constructor's arguments are then read. The source text of the classes, which the files
carry, stays text. A tensor's numbers are a nested save of one storage, whose opcodes are checked and not followed.

A short file can describe a huge tree, since a part may be in it many times: nothing is hashed, printed or walked before
its kind and its size are known.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.pretrained.state import is_plain, line


class _Record:
    """What the file says of an object: the arguments it is made of and the state it is given. Nothing is called."""

    __slots__ = ("args", "state")

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.state: Any = None


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


_NAMES: Mapping[tuple[str, str], type] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Persistent,
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch.nn.modules.container", "ModuleList"): _Container,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _View,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("builtins", "set"): list,
    ("__builtin__", "set"): list,
    # The statistics of EDM2's latents are NumPy arrays; no network needs them.
    ("numpy.core.multiarray", "_reconstruct"): _Record,
    ("numpy.core.multiarray", "scalar"): _Record,
    ("numpy._core.multiarray", "_reconstruct"): _Record,
    ("numpy._core.multiarray", "scalar"): _Record,
    ("numpy", "ndarray"): _Record,
    ("numpy", "dtype"): _Record,
}
"""Every name that a snapshot may use, and what stands in for it."""

# fmt: off
_VALUES = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8",
})
# fmt: on
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: Mapping[str, type] = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET"})
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})

# Far beyond any real snapshot's, and small enough for their product with a file's size.
_MOST_OPCODES, _MOST_TENSORS, _MOST_ARGUMENTS, _MOST_AXES = 5_000_000, 20_000, 64, 8
_MOST_LEVELS, _LONGEST_NAME, _LONGEST_HEADER = 32, 256, 2000

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
_PROTOCOL, _ZIP = b"\x80", b"PK"
"""How a pickle of protocol 2 or above begins, and a file of torch.save."""


def read_snapshot(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]:
    """The parameters of a snapshot's averaged network (`ema`) by their original names; its config: `cls`, the class,
    and the constructor's arguments; and the P_mean and P_std of its training (`loss_fn`), where it says them.

    Raises InputError for a file that is no such snapshot, is damaged, or uses any other name; nothing in it is run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"path {str(path)!r} cannot be read: {error.strerror or error}") from error
    if content[:1] != _PROTOCOL:
        what = "a file of torch.save" if content[:2] == _ZIP else "no pickle of protocol 2 or above"
        raise InputError(
            f"path {str(path)!r} is no snapshot of EDM or EDM2 but {what}; a state dict with its config is for "
            f"edmund.pretrained.from_state_dict(state, config)"
        )
    try:
        snapshot = _tree(content)
        return *_network(snapshot, len(content)), _levels(snapshot)
    except InputError as error:
        raise InputError(f"path {str(path)!r} is refused: {error}") from error
    except Exception as error:  # of a crafted or damaged file: any kind
        raise InputError(f"path {str(path)!r} is no snapshot of EDM or EDM2: {line(error)}") from error


def _tree(content: bytes) -> Any:
    """What the file describes: records, dicts, lists (sets too), tuples and plain values, parts of it maybe shared."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the marks
    memo: dict[int, Any] = {}
    argument: Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if number > _MOST_OPCODES:
            raise InputError(f"it has more than {_MOST_OPCODES} opcodes")
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > 64:
                raise InputError(f"it has an integer of {argument.bit_length()} bits, which a snapshot has not")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-i] for i in range(_TUPLES[name], 0, -1))]
        elif name in ("TUPLE", "FROZENSET"):
            items, stack = stack, below.pop()
            stack.append(tuple(items))
        elif name in ("APPENDS", "ADDITEMS"):
            items, stack = stack, below.pop()
            _of(stack[-1], list).extend(items)
        elif name == "APPEND":
            item = stack.pop()
            _of(stack[-1], list).append(item)
        elif name == "SETITEMS":
            items, stack = stack, below.pop()
            _set_items(stack[-1], items[::2], items[1::2])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key], [value])
        elif name == "GLOBAL":
            stack.append(_stand_in(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(_stand_in(_of(module, str), _of(last, str)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, kind = stack.pop(), stack.pop()
            stack.append(_made(_of(kind, type), _of(arguments, tuple)))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Record):
                stack[-1].state = state
            else:
                _of(stack[-1], dict)  # a dict's attributes are left out
        elif name == "POP":
            stack.pop()
        elif name not in _IGNORED:
            raise InputError(f"it has the opcode {name}, which a snapshot of EDM or EDM2 has not")
    if len(stack) != 1 or below:
        raise InputError("it does not end with one object")
    return stack[0]


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"it uses a {type(value).__name__} where a {kind.__name__} has to be")
    return value


def _stand_in(module: str, name: str) -> type:
    if (module, name) not in _NAMES:
        raise InputError(f"it uses {line(f'{module}.{name}')}, which a snapshot of EDM or EDM2 does not")
    return _NAMES[module, name]


def _made(kind: type, arguments: tuple[Any, ...]) -> Any:
    """What stands in for the result of a call."""
    if issubclass(kind, _Record):
        return kind(arguments)
    if len(arguments) > (kind is list):
        raise InputError(f"it makes a {kind.__name__} of {len(arguments)} arguments")
    return _of(arguments[0], list) if arguments else kind()


def _set_items(target: Any, keys: Iterable[Any], values: Iterable[Any]) -> None:
    """Fills a dict. Its keys are names or small numbers: the hash of a tuple of tuples takes as long as its author
    likes.
    """
    for key, value in zip(keys, values, strict=True):
        if not (isinstance(key, str) or (isinstance(key, int) and key.bit_length() < 32)):
            raise InputError(f"it has a dict with a key that is a {type(key).__name__} or too large")
        _of(target, dict)[key] = value


def _network(snapshot: Any, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    network = snapshot.get("ema") if isinstance(snapshot, dict) else None
    if not isinstance(network, _Persistent):
        raise InputError("it holds no network under 'ema'")
    name, state = _object(network)
    positional, keywords = state.get("_init_args", ()), state.get("_init_kwargs", {})
    leading = ("img_resolution", "img_channels", "label_dim")
    if not isinstance(positional, tuple | list) or not isinstance(keywords, dict) or len(positional) > len(leading):
        raise InputError(f"the arguments of its {line(name)} are not readable")
    if len(keywords) > _MOST_ARGUMENTS:
        raise InputError(f"its {line(name)} has {len(keywords)} arguments")
    config = {**dict(zip(leading, positional, strict=False)), **keywords, "cls": name}
    for argument, value in config.items():
        if not isinstance(argument, str) or not is_plain(value):
            raise InputError(f"the argument {line(argument)} of its {line(name)} is no number, text or list of them")
    views: dict[str, _View] = {}
    _collect(network, "", views, set())
    return _tensors(views, size), config


def _levels(snapshot: Mapping[Any, Any]) -> dict[str, float]:
    """P_mean and P_std of the loss, when it has both as numbers."""
    loss = snapshot.get("loss_fn")
    state = _object(loss)[1] if isinstance(loss, _Persistent) else {}
    levels = {name: float(state[name]) for name in ("P_mean", "P_std") if type(state.get(name)) in (int, float)}
    return levels if len(levels) == 2 else {}


def _tensors(views: Mapping[str, _View], size: int) -> dict[str, Tensor]:
    """The tensors of a file of this size, by name. Those of one storage are read together, each storage once."""
    data = {key: _data(key, view) for key, view in views.items()}
    parameters: dict[str, Tensor] = {}
    read, numbers = b"", torch.empty(0)
    left = size
    for key in sorted(views, key=lambda key: id(data[key])):
        if read is not data[key]:
            read, numbers = data[key], _numbers(key, data[key])
        parameters[key] = _tensor(key, views[key], numbers)
        left -= parameters[key].nbytes
        if left < 0:
            raise InputError(f"its tensors up to {line(key)} have more bytes than the file")
    return {key: parameters[key] for key in views}


def _object(record: _Persistent) -> tuple[str, dict[Any, Any]]:
    """Class name and attributes."""
    meta = record.args[0] if len(record.args) == 1 else None
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != _VERSION:
        raise InputError(f"an object in it is not saved as a class in version {_VERSION}")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise InputError("an object in it has no class name or no state")
    return name, state


def _collect(module: Any, prefix: str, views: dict[str, _View], seen: set[int]) -> None:
    """The tensors of a module and of those in it, by their names."""
    if isinstance(module, _Persistent):
        _, state = _object(module)
    elif isinstance(module, _Container) and isinstance(module.state, dict):
        state = module.state
    else:
        raise InputError(f"{line(prefix)} in it is no network's layer")
    if id(module) in seen:  # modules within modules could make a short file's tree endless
        raise InputError(f"{line(prefix)} in it is there twice")
    seen.add(id(module))
    if prefix.count(".") > _MOST_LEVELS:
        raise InputError(f"{line(prefix)} in it has more than {_MOST_LEVELS} levels")
    transient = state.get("_non_persistent_buffers_set", ())
    if not isinstance(transient, list | tuple) or len(transient) > _MOST_ARGUMENTS:
        raise InputError(f"{line(prefix)} in it has names of transient buffers that are none")
    for group in ("_parameters", "_buffers"):
        for name, value in _named(state, group, prefix, seen):
            tensor = value.args[0] if isinstance(value, _Parameter) and value.args else value
            if tensor is None or (group == "_buffers" and name in transient):
                continue
            if not isinstance(tensor, _View):
                raise InputError(f"{line(prefix + name)} in it is no tensor")
            views[prefix + name] = tensor
            if len(views) > _MOST_TENSORS:
                raise InputError(f"it has more than {_MOST_TENSORS} tensors")
    for name, child in _named(state, "_modules", prefix, seen):
        if child is not None:
            _collect(child, f"{prefix}{name}.", views, seen)


def _named(state: Mapping[Any, Any], group: str, prefix: str, seen: set[int]) -> Iterable[tuple[str, Any]]:
    """The entries of a module's dict of this name, which no other module has."""
    entries = _of(state.get(group, {}), dict)
    if entries and id(entries) in seen:
        raise InputError(f"{line(prefix + group)} in it is there twice")
    seen.add(id(entries))
    for name in entries:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise InputError(f"{line(prefix + group)} in it has an entry whose name is no name")
    return list(entries.items())


def _data(name: str, view: _View) -> bytes:
    """The nested save of a view's storage."""
    storage = view.args[0] if view.args else None
    data = storage.args[0] if isinstance(storage, _Storage) and len(storage.args) == 1 else None
    if not isinstance(data, bytes):
        raise InputError(f"{line(name)} in it has no storage")
    return data


def _tensor(name: str, view: _View, numbers: Tensor) -> Tensor:
    """The tensor that a view describes, when it lies within its storage and has no more elements than that."""
    offset, shape, stride = view.args[1:4]
    claim = "a shape that is none"
    inside = all(isinstance(axes, tuple | list) and len(axes) <= _MOST_AXES for axes in (shape, stride))
    if inside and all(type(value) is int for value in (offset, *shape, *stride)):
        claim = f"offset {offset}, shape {shape} and stride {stride}"
        inside = min(offset, *shape, *stride, 0) == 0 and len(shape) == len(stride)
    else:
        inside = False
    if inside:
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        inside = 0 < math.prod(shape) <= len(numbers) and last < len(numbers)
    if not inside:
        raise InputError(f"{line(name)} in it has {line(claim)} in a storage of {len(numbers)} elements")
    return numbers.as_strided(tuple(shape), tuple(stride), offset).clone()  # not the whole storage


def _numbers(name: str, data: bytes) -> Tensor:
    """The one storage of a nested save, flat: five pickles that describe it, the count, the numbers (little-endian)."""
    buffer = BytesIO(data[:_LONGEST_HEADER])
    parts = [list(pickletools.genops(buffer)) for _ in range(5)]
    opcodes = {opcode.name for part in parts for opcode, _, _ in part}
    names = [argument for part in parts for opcode, argument, _ in part if opcode.name == "GLOBAL"]
    marks = [argument for opcode, argument, _ in parts[0] if opcode.name == "LONG1"]
    if marks != [_MAGIC] or not opcodes <= _SAVED_OPCODES or len(names) != 1 or names[0] not in _STORAGES:
        raise InputError(f"{line(name)} in it is not saved as one storage of floating-point numbers")
    dtype = _STORAGES[names[0]]
    start = buffer.tell() + 8
    count, rest = int.from_bytes(data[start - 8 : start], "little"), len(data) - start
    if count == 0 or count * dtype.itemsize != rest:
        raise InputError(f"{line(name)} in it claims {count} elements of {dtype} in {rest} bytes")
    return torch.frombuffer(bytearray(data[start:]), dtype=dtype)
