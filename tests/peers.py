"""Independent implementations to compare with; a test that asks for one is skipped where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from _peers import k_diffusion_sampling


def k_diffusion():
    """k-diffusion's samplers."""
    try:
        return k_diffusion_sampling()
    except ImportError as error:
        pytest.skip(f"k-diffusion cannot be imported: {error}")


def diffusers():
    """diffusers, for its schedulers."""
    return pytest.importorskip("diffusers")
