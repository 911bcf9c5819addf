"""Every choice of a training run that is not the model or the data; durations are in samples seen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edmund.errors import InputError, check_count, check_positive, unknown
from edmund.speed import PRECISIONS
from edmund.training.augmentation import Augmentation
from edmund.training.ema import HalfLife, PowerFunction, Profile
from edmund.training.learning_rate import SCHEDULES, learning_rate

OPTIMIZERS = ("adam", "adamw", "muon")

_TRANSFORMS = tuple(field.name for field in dataclasses.fields(Augmentation) if field.name != "probability")

_CHANGEABLE = frozenset(
    (
        "samples",
        "accumulate",
        "validation_interval",
        "patience",
        "preview_interval",
        "checkpoint_interval",
        "keep_checkpoints",
        "ema_snapshot_interval",
        "log_interval",
        "workers",
    )
)


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. All durations and intervals are in samples seen; a step is `batch_size` samples.

    - samples: length of the run, rounded up to whole steps.
    - batch_size: of one optimiser step, over all processes. accumulate: parts of a process's share of it that go
      through the network one after the other (less memory, the same gradient).
    - optimizer: adam (weight decay is an L2 term of the loss), adamw (decoupled), or muon for the weights of linear
      layers with adamw for the rest, see `optimizers`; betas and eps of Adam, weight_decay.
    - lr, lr_ramp, lr_schedule, lr_ref: see `learning_rate`; lr_ref goes with inverse_sqrt.
    - clip_norm: largest norm of the gradient; None: any.
    - precision: fp32, or autocast to bf16 or fp16 (fp16 needs a GPU).
    - ema_halflife, ema_ramp: the half-life profile of the average. ema_power: sigma_rel of the power-function profile,
      used in place of the half-life. See `ema`.
    - ema_widths, ema_snapshot_interval: sigma_rel of power-function averages that are tracked beside that one, each a
      copy of the parameters in memory, and how often they are stored (and at the end), so that `snapshots.reconstruct`
      can make an average of another width afterwards. Two widths, 0.05 and 0.1 in EDM2, reach a wide range; from one
      alone only its neighbours are met well. A running run cannot change its widths.
    - label_dropout: share of the samples that are trained without their labels, context and image.
    - augment: probability of each geometric transform of the training images, of which the network is told in 9 augment
      labels; 0: none. See `augmentation`. augment_x_flip, augment_y_flip: whether there are such flips. augment_scale,
      augment_rotation, augment_anisotropy, augment_translation: strengths of the other transforms; 0: no such one.
    - seed: of data order, noise levels, noise, dropout and augmentation.
    - validation_interval. patience: stop when the validation loss has not improved for so long, and deliver the best
      average; None: never stop, and deliver the last one.
    - checkpoint_interval, keep_checkpoints (how many stay), log_interval, preview_interval (None: no previews).
    - workers: processes that load data; 0: the training process itself.
    """

    samples: int = 256_000
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr_ramp: int = 12_800
    lr_schedule: str = "constant"
    lr_ref: int | None = None
    clip_norm: float | None = None
    precision: str = "fp32"
    ema_halflife: int = 500_000
    ema_ramp: float | None = 0.05
    ema_power: float | None = None
    ema_widths: tuple[float, ...] = ()
    ema_snapshot_interval: int | None = None
    label_dropout: float = 0.0
    augment: float = 0.0
    augment_x_flip: bool = True
    augment_y_flip: bool = True
    augment_scale: float = 0.2
    augment_rotation: float = 1.0
    augment_anisotropy: float = 0.2
    augment_translation: float = 0.125
    seed: int = 0
    validation_interval: int = 25_600
    patience: int | None = None
    preview_interval: int | None = None
    checkpoint_interval: int = 25_600
    keep_checkpoints: int = 2
    log_interval: int = 2_560
    workers: int = 0

    def __post_init__(self) -> None:
        counts = ("samples", "batch_size", "accumulate", "ema_halflife", "validation_interval", "checkpoint_interval")
        for name in (*counts, "keep_checkpoints", "log_interval"):
            check_count(name, getattr(self, name))
        for name in ("lr_ref", "patience", "preview_interval", "ema_snapshot_interval"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("lr_ramp", "workers", "seed"):
            check_count(name, getattr(self, name), least=0)
        if self.seed >= 2**63:
            raise InputError(f"seed is {self.seed}; it must be below 2^63")
        for name in ("lr", "eps"):
            check_positive(name, _number(name, getattr(self, name)))
        for name in ("clip_norm", "ema_ramp"):
            if getattr(self, name) is not None:
                check_positive(name, _number(name, getattr(self, name)))
        if not 0 <= _number("weight_decay", self.weight_decay) < math.inf:
            raise InputError(f"weight_decay is {self.weight_decay!r}; it must be a finite number of at least 0")
        for name in ("label_dropout", "augment"):
            if not 0 <= _number(name, getattr(self, name)) <= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be a probability, from 0 to 1")
        self._check_betas()
        self._check_widths()
        for name, known in (("optimizer", OPTIMIZERS), ("lr_schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        try:
            self._augmentation()
        except InputError as error:
            raise InputError(f"augment_{error}") from None
        self._check_together()

    def _augmentation(self) -> Augmentation:
        return Augmentation(self.augment, **{name: getattr(self, f"augment_{name}") for name in _TRANSFORMS})

    def _check_betas(self) -> None:
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise InputError(f"betas is {self.betas!r}; it must be two numbers, each at least 0 and below 1")
        if not all(0 <= _number("betas", beta) < 1 for beta in self.betas):
            raise InputError(f"betas is {self.betas!r}; each of the two must be at least 0 and below 1")
        object.__setattr__(self, "betas", tuple(self.betas))

    def _check_widths(self) -> None:
        if not isinstance(self.ema_widths, tuple | list):
            raise InputError(f"ema_widths is {self.ema_widths!r}; it must be a list of widths, such as [0.05, 0.1]")
        for width in self.ema_widths:
            _check_width("ema_widths", width)
        if len(set(self.ema_widths)) < len(self.ema_widths):
            raise InputError(f"ema_widths is {self.ema_widths!r}; no two may be alike")
        if bool(self.ema_widths) != (self.ema_snapshot_interval is not None):
            raise InputError(
                f"ema_widths is {self.ema_widths!r} and ema_snapshot_interval {self.ema_snapshot_interval!r}; the "
                "widths that are tracked and the samples between two times that they are stored go together"
            )
        object.__setattr__(self, "ema_widths", tuple(sorted(map(float, self.ema_widths))))

    def _check_together(self) -> None:
        if (self.lr_schedule == "inverse_sqrt") != (self.lr_ref is not None):
            raise InputError(
                f"lr_ref is {self.lr_ref!r} and lr_schedule {self.lr_schedule!r}; "
                "lr_ref, in samples, goes with inverse_sqrt and only with it"
            )
        if self.lr_schedule == "cosine" and self.lr_ramp >= self.samples:
            raise InputError(
                f"lr_ramp is {self.lr_ramp}; with lr_schedule 'cosine' it must be below samples, {self.samples}"
            )
        if self.optimizer == "muon" and self.precision == "fp16":
            raise InputError(
                "optimizer is 'muon' and precision 'fp16', whose skipped steps it does not share; use bf16"
            )
        if self.accumulate > self.batch_size:
            raise InputError(
                f"accumulate is {self.accumulate}; it must be at most batch_size, which is {self.batch_size}"
            )
        if self.ema_power is not None:
            _check_width("ema_power", self.ema_power)

    @property
    def steps(self) -> int:
        """The number of optimiser steps of the whole run."""
        return -(-self.samples // self.batch_size)

    @property
    def profile(self) -> Profile:
        """The profile of the moving average."""
        if self.ema_power is not None:
            return PowerFunction(self.ema_power)
        return HalfLife(self.ema_halflife, self.ema_ramp)

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation of the training images; None: there is none."""
        return self._augmentation() if self.augment > 0 else None

    def learning_rate(self, samples_seen: int) -> float:
        """The learning rate of the step that starts at `samples_seen`."""
        return learning_rate(
            samples_seen,
            lr=self.lr,
            schedule=self.lr_schedule,
            ramp_samples=self.lr_ramp,
            reference=self.lr_ref or math.inf,
            end=self.samples,
        )

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights after a given number of samples; the others may change when a run goes on.

        The length of the run is one of them under a cosine schedule, where it decides every learning rate. What was not
        there in the first version is left out where it changes nothing, so that an earlier run goes on.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {name: value for name, value in fields.items() if name not in _CHANGEABLE}
        if self.lr_schedule == "cosine":
            kept["samples"] = self.samples
        for name, default in _LATER.items():
            if kept[name] == default or (self.augment == 0 and name.startswith("augment")):
                del kept[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}

    @staticmethod
    def whole_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
        """An identity, perhaps of an earlier version, with what it leaves out at its default."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in _LATER.items()} | {
            **identity
        }


_LATER = {
    field.name: field.default
    for field in dataclasses.fields(TrainingOptions)
    if field.name in ("augment", "ema_widths") or field.name.removeprefix("augment_") in _TRANSFORMS
}
"""The defaults of the fields that the first version did not have."""


def _check_width(name: str, width: object) -> None:
    try:
        PowerFunction(_number(name, width))
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(name) else f"{name}: {message}") from None


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {value!r}; it must be a number")
    return value
