"""Devices as people name them."""

from __future__ import annotations

import torch

from edmund.errors import InputError


def known_device(device: torch.device | str) -> torch.device:
    """The device; InputError where torch does not know it or this machine has not got it."""
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(
            f"device is {str(device)!r}, which torch does not know; cpu, cuda, cuda:1 and mps are"
        ) from None
    try:
        torch.empty(0, device=known)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device is {str(device)!r}, which this machine has not got: {reason}") from None
    return known
