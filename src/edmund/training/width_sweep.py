"""The validation loss of averages of several widths, made of a run's snapshots: by which a width is chosen after
training (Karras et al. 2024, Section 3.3, who compare FID, which needs samples).

All are evaluated on the same data under the same noise, those of the run's own validation, so two losses differ by the
averages alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edmund import progress
from edmund.model import Model
from edmund.training.batches import TrainingData
from edmund.training.objective import Objective
from edmund.training.options import TrainingOptions
from edmund.training.snapshots import Snapshots
from edmund.training.validation import Validation

MET = 0.05
"""The largest error of a profile with which it counts as that of its width."""


@dataclass(frozen=True)
class Swept:
    """One width: its validation loss, and the error of the profile that was made for it (`Snapshots.profile_error`)."""

    width: float
    validation_loss: float
    profile_error: float

    @property
    def met(self) -> bool:
        """Whether the snapshots can make this width."""
        return self.profile_error <= MET


@dataclass(frozen=True)
class Sweep:
    """The widths at the snapshot `samples_seen`, and the validation loss of the average that the run delivered."""

    samples_seen: int
    delivered: float
    widths: tuple[Swept, ...]

    @property
    def best(self) -> Swept | None:
        """The lowest loss among the widths that could be made; None where there is none."""
        met = [swept for swept in self.widths if swept.met and math.isfinite(swept.validation_loss)]
        return min(met, key=lambda swept: swept.validation_loss, default=None)


def sweep(
    model: Model,
    snapshots: Snapshots,
    widths: Sequence[float],
    held_out: TrainingData,
    options: TrainingOptions,
    *,
    samples_seen: int | None = None,
    show_progress: bool = True,
) -> Sweep:
    """Evaluates averages of these widths (sigma_rel) at the snapshot `samples_seen` (None: the last).

    model: the run's, as it was delivered, on the device to compute on; it is left with the average of the last width.
    held_out, options: the run's validation data and options. Raises InputError for a width or time that there cannot
    be.
    """
    time = snapshots.at(samples_seen).samples_seen
    errors = [snapshots.profile_error(width, time) for width in widths]
    parameter = next(model.denoiser.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    objective = Objective(model.denoiser.to(dtype), model.formulation, options.precision)
    validation = Validation(
        held_out,
        model.transform,
        model.formulation.noise_density,
        seed=options.seed,
        batch_size=max(options.batch_size // options.accumulate, 1),
        rank=0,
        world=1,
    )
    with progress.track(len(widths) + 1, "validation loss of each width", enabled=show_progress) as bar:

        def loss() -> float:
            value = validation.total(objective, parameter.device, dtype).item()
            bar.advance(loss=value)
            return value

        delivered = loss()
        found = []
        for width, error in zip(widths, errors, strict=True):
            snapshots.fill(model, width, time)
            found.append(Swept(width, loss(), error))
    return Sweep(time, delivered, tuple(found))
