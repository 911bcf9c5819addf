"""The peers that benchmarks and tests compare with, imported with as little of them as the comparison needs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types


def k_diffusion_sampling() -> types.ModuleType:
    """k-diffusion's module `sampling`; ImportError where k-diffusion or what its samplers use is not installed.

    Importing the package whole brings in its training: datasets, CLIP, torchvision. Its samplers use none of these, and
    torchvision has builds that do not fit a CPU torch; so the package's own __init__ is left out, and torchvision is an
    empty module where it is absent.
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("k-diffusion is not installed")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
        if importlib.util.find_spec("torchvision") is None:
            for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
                sys.modules.setdefault(name, types.ModuleType(name))
            sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
            transforms = sys.modules["torchvision.transforms"]
            transforms.functional = sys.modules["torchvision.transforms.functional"]  # type: ignore[attr-defined]
    return importlib.import_module("k_diffusion.sampling")
