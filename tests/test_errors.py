"""The one error, and the helpers that word it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import edmund
from edmund.errors import InputError, check_count, check_positive, unknown


def test_it_is_a_value_error():
    assert issubclass(InputError, ValueError) and edmund.InputError is InputError


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        ("huen", "heun"),
        ("Heun", "heun"),
        ("eular", "euler"),
        ("midpiont", "midpoint"),
        ("iDDPM", "IDDPM"),
        ("zzz", None),
    ],
)
def test_unknown_names_the_nearest(value, nearest):
    text = str(unknown("sampler", value, ["heun", "euler", "midpoint", "IDDPM"]))
    assert text.startswith(f"sampler: {value!r} is not known")
    assert "known: IDDPM, euler, heun, midpoint" in text
    assert (f"did you mean {nearest!r}" in text) if nearest else ("did you mean" not in text)
    assert "\n" not in text


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, np.float64(2.0), np.float32(2.0)])
def test_positive(value):
    assert check_positive("rho", value) == value


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_not_positive(value):
    with pytest.raises(InputError) as error:
        check_positive("rho", value)
    assert str(error.value) == f"rho is {value!r}; it must be a finite number above 0"


def test_counts():
    assert check_count("num_steps", 1) == 1 and check_count("workers", 0, least=0) == 0
    for value in (0, -1, 2.0, "3", True, None):
        with pytest.raises(InputError) as error:
            check_count("num_steps", value)
        assert str(error.value) == f"num_steps is {value!r}; it must be an integer of at least 1"
    with pytest.raises(InputError, match="at least 3"):
        check_count("num_steps", 2, least=3)
