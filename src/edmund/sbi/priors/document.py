"""A prior written down: a YAML file that names each parameter and its law."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edmund.errors import InputError, unknown
from edmund.sbi.priors import laws as kinds
from edmund.sbi.priors.prior import Prior, assembled


def prior_from_yaml(path: str | os.PathLike[str]) -> Prior:
    """The prior of a YAML file, with the names that it gives its parameters, in its order.

        parameters:
          beta: {type: log_normal, loc: -0.9, scale: 0.5}
          gamma: {type: uniform, low: 0, high: 1}
          x, y: {type: multivariate_normal, loc: [0, 0], covariance_matrix: [[1, 0.5], [0.5, 2]]}

    A key may name several parameters: a law of one parameter then takes a number for all of them, or a list. Types and
    arguments are those of torch.distributions. Raises InputError for a file that cannot be read, for what is unknown
    (with the nearest known), missing or given twice, and for impossible arguments.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        _refuse_repeated(yaml.compose(text, yaml.SafeLoader))
        document = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"prior {str(file)!r} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"prior {str(file)!r} is not YAML: {' '.join(str(error).split())}") from error
    parameters = document.get("parameters") if isinstance(document, Mapping) else None
    if isinstance(document, Mapping):
        for key in document:
            if key != "parameters":
                raise unknown(f"key of prior {str(file)!r}", key, ["parameters"])
    if not isinstance(parameters, Mapping) or not parameters:
        raise InputError(f"prior {str(file)!r} must hold `parameters:` with at least one `name: {{type: ..., ...}}`")
    groups = {key: _names(key) for key in parameters}
    names = tuple(name for group in groups.values() for name in group)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"prior {str(file)!r} names the parameter {repeated!r} twice")
    laws = [kinds.from_config(parameters[key], f"parameter {key!r}", len(group)) for key, group in groups.items()]
    return assembled(kinds.merged(laws), names)


def _names(key: Any) -> list[str]:
    names = [name.strip() for name in key.split(",")] if isinstance(key, str) else [""]
    if not all(names):
        raise InputError(
            f"parameters: {key!r} is not a name; it must be a text, or several parted by commas (quote it?)"
        )
    return names


def _refuse_repeated(node: yaml.Node | None) -> None:
    """YAML's reader keeps the last of equal keys and says nothing."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated(item)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise InputError(f"prior: the key {key.value!r} is given twice (line {key.start_mark.line + 1})")
            seen.add(str(key.value))
            _refuse_repeated(value)
