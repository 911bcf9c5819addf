"""The one error that a person's input can cause.

Every public function checks what it is given where it enters, and raises `InputError` with one line that names the
argument, prints the value and says what would be right. The command line prints that line and nothing else.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable


class InputError(ValueError):
    """A value given by the user cannot be used; the message is one line."""


def unknown(argument: str, value: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones; names the nearest, if one is near."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value).lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    nearest = next((name for name in names if near and name.lower() == near[0]), None)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    return InputError(f"{argument}: {value!r} is not known; {hint}known: {', '.join(names)}")


def check_number(argument: str, value: float) -> float:
    """`value`, if it is a finite number; else an `InputError` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"{argument} is {value!r}; it must be a finite number")
    return float(value)


def check_positive(argument: str, value: float) -> float:
    """`value`, if it is a finite number above 0; else an `InputError` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or not value > 0:
        raise InputError(f"{argument} is {value!r}; it must be a finite number above 0")
    return float(value)


def check_not_negative(argument: str, value: float) -> float:
    """`value`, if it is a finite number of at least 0; else an `InputError` that names the argument."""
    if check_number(argument, value) < 0:
        raise InputError(f"{argument} is {value!r}; it must be a finite number, not negative")
    return float(value)


def check_count(argument: str, value: int, least: int = 1) -> int:
    """`value`, if it is an integer of at least `least`; else an `InputError` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise InputError(f"{argument} is {value!r}; it must be an integer of at least {least}")
    return int(value)
