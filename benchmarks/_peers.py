"""The peers that benchmarks and tests compare with, imported with as little of them as the comparison needs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

_TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


def k_diffusion_sampling() -> types.ModuleType:
    """k-diffusion's module `sampling`; ImportError where k-diffusion or what its samplers use is not installed.

    Importing the package whole brings in its training: datasets, CLIP, torchvision. Its samplers use none of these, and
    torchvision has builds that do not fit a CPU torch; so the package's own __init__ is left out, and where torchvision
    is absent an empty module stands in for it meanwhile.
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("k-diffusion is not installed")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    stand_ins = (
        {} if importlib.util.find_spec("torchvision") else {name: types.ModuleType(name) for name in _TORCHVISION}
    )
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in stand_ins:
            del sys.modules[name]
