"""Options and fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device on which tests that ask for one run: cpu, cuda, cuda:1, ..."
    )
    parser.addoption("--dtype", default="float64", choices=sorted(DTYPES), help="dtype of tests that ask for one")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device asked for on the command line; the CPU by default."""
    asked = torch.device(request.config.getoption("--device"))
    if asked.type == "cuda" and not torch.cuda.is_available():
        pytest.exit(f"--device is {asked}, but this machine has no CUDA device", returncode=pytest.ExitCode.USAGE_ERROR)
    return asked


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The floating-point type asked for on the command line; float64 by default."""
    return DTYPES[request.config.getoption("--dtype")]


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Path:
    """The folder of reference numbers and real data beside the project; a checkout without it skips the test."""
    folder = (pytestconfig.rootpath / "../shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is absent")
    return folder
