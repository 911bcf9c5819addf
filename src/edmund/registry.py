"""Finding the parts by name.

A part (a sampler, a grid, a network, ...) is a class with a class attribute `name`. Writing the class is all that
registers it: the registries look through the module or the package where the parts of that kind live.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TypeVar

from edmund.errors import InputError, unknown

Part = TypeVar("Part")


def in_module(module: ModuleType, base: type[Part]) -> dict[str, type[Part]]:
    """The parts that `module` defines: name -> class, for each subclass of `base` with a `name` of its own."""
    return {
        part.__dict__["name"]: part
        for part in vars(module).values()
        if isinstance(part, type)
        and issubclass(part, base)
        and part.__module__ == module.__name__
        and "name" in part.__dict__
    }


def in_package(package: ModuleType, base: type[Part]) -> dict[str, type[Part]]:
    """The parts that the modules of `package` define: name -> class."""
    found: dict[str, type[Part]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        found |= in_module(importlib.import_module(f"{package.__name__}.{info.name}"), base)
    return found


def resolve(argument: str, value: str | Part, known: Mapping[str, type[Part]], base: type[Part]) -> Part:
    """`value` itself when it is a part; the part with its defaults when it is a name.

    Raises InputError, naming the nearest known name, for anything else.
    """
    if isinstance(value, base):
        return value
    if not isinstance(value, str):
        raise InputError(f"{argument} is {value!r}; it must be a {base.__name__} or one of {', '.join(sorted(known))}")
    if value not in known:
        raise unknown(argument, value, known)
    return known[value]()
