"""What the readers of published weights share: the tensors of a file, and whether they fit a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from edmund.errors import InputError

Made = TypeVar("Made")


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata. Raises InputError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"path {str(file)!r} is damaged: {error}") from error


def made(kind: str, make: Callable[[], Made]) -> Made:
    """What `make` returns; its refusal of a value of a wrong kind as an InputError."""
    try:
        return make()
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"config does not make a {kind}: {reason}") from error


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError for the first parameter of a state that is not of the shape expected, or is no weight."""
    for name in [*expected, *(name for name in state if name not in expected)]:
        theirs = tuple(state[name].shape) if name in state else None
        ours = expected.get(name)
        if theirs != ours:
            raise InputError(
                f"state is of another network: {line(name)} has shape {theirs} in the state and {ours} in the network "
                f"of this config (None: it has none)"
            )
        if not state[name].is_floating_point():
            raise InputError(f"state has {line(name)} in {state[name].dtype}; weights are floating-point numbers")


def short(value: object) -> str:
    """A short line that shows a value."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, or lists too deep within lists
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else text[:77] + "..."


def line(value: object) -> str:
    """A short line of any text or error of a file's."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 100 else text[:97] + "..."


def is_plain(value: Any) -> bool:
    """Whether a value is None, a text, a number of at most 64 bits, or a list of at most 64 of them."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_is_scalar(item) for item in value)
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, float | str)
