"""Every Python example in the README and the docs runs as it stands; so do its YAML and the example configs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from edmund.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        texts = re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        found += [(f"{path.name}-{number}", text) for number, text in enumerate(texts)]
    return found


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in blocks("python")])
def test_python(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "example", "exec", dont_inherit=True), {"__name__": "example"})


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in blocks("yaml")])
def test_yaml(text):
    Config.of(yaml.safe_load(text)).formulation()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_configs(path):
    config = Config.load(path)
    config.options()
    config.formulation()
