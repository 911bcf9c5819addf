"""Small data sets and models for the tests of training."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund import formulation
from edmund.model import Model
from edmund.networks import MLP, Uncertainty
from edmund.training import Trainer, TrainingOptions, TrainingResult


class Toy:
    """n labelled points of dimension 2, three classes apart from each other."""

    shape = (2,)
    num_classes = 3

    def __init__(self, n: int = 100, seed: int = 0, std: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % 3
        self.y = std * torch.randn(n, 2, generator=generator) + self.labels[:, None]

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.y[indices], {"labels": self.labels[indices]}


def model(seed: int = 0, channels: int = 16, dropout: float = 0.1, uncertainty: bool = True) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(
            MLP(2, channels=channels, blocks=1, label_dim=3, dropout=dropout),
            formulation.EDM(sigma_data=1.0),
            shape=(2,),
            uncertainty=Uncertainty(16) if uncertainty else None,
        )


def options(**changes: Any) -> TrainingOptions:
    """A run of 20 steps that uses what it can."""
    common = {
        "samples": 640,
        "batch_size": 32,
        "lr_ramp": 100,
        "label_dropout": 0.2,
        "clip_norm": 1.0,
        "log_interval": 96,
        "validation_interval": 160,
        "checkpoint_interval": 128,
        "ema_halflife": 2000,
    }
    return TrainingOptions(**(common | changes))


def train(directory: Path, made: Model | None = None, **changes: Any) -> tuple[Model, TrainingResult]:
    """Trains a model on the toy data with a validation set; the model and the result."""
    made = model() if made is None else made
    extra = {key: changes.pop(key) for key in ("preview",) if key in changes}
    trainer = Trainer(
        made, Toy(), directory, validation=Toy(30, seed=1), options=options(**changes), progress=False, **extra
    )
    return made, trainer.run()


def weights(made: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in made.denoiser.state_dict().items()}


def assert_same_weights(a: Model, b: Model) -> None:
    """Bit for bit."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The nearest a test comes to a full disk: the system refuses to let a file grow, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
