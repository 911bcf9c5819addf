"""`import edmund` imports torch, and none of what only some parts need."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = [
    "diffusers",
    "accelerate",
    "sklearn",
    "scipy",
    "matplotlib",
    "rich",
    "typer",
    "PIL",
    "pydantic",
    "yaml",
    "huggingface_hub",
    "tensorboard",
    "xarray",
    "pandas",
]
SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
import edmund
after = set(sys.modules)
print(json.dumps({"new": sorted(after - before), "all": sorted(after)}))
"""


def test_import_is_light():
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    modules = json.loads(out.stdout)
    roots = {name.split(".")[0] for name in modules["new"]}
    assert "edmund" in roots
    assert not roots & set(HEAVY)
    # Nor is a recipe or the command line: they are asked for by name.
    loaded = {".".join(name.split(".")[:2]) for name in modules["new"] if name.startswith("edmund.")}
    assert not loaded & {
        "edmund.cli",
        "edmund.config",
        "edmund.training",
        "edmund.metrics",
        "edmund.plots",
        "edmund.images",
    }
    assert out.stderr == ""


def test_public_names():
    import edmund

    assert all(hasattr(edmund, name) for name in edmund.__all__)
    assert {"sample", "load", "Model", "Trajectory", "InputError"} <= set(edmund.__all__)
