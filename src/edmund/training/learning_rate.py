r"""The learning rate as a pure function of the samples seen: a linear ramp from 0, then a schedule.

    constant        lr
    cosine          lr (1 + cos(pi (t - ramp) / (end - ramp))) / 2, 0 from the end of the run on
    inverse_sqrt    lr / sqrt(max(t / t_ref, 1))                            (Karras et al. 2024)

with t the samples seen before the step and, while t < ramp, the factor t / ramp (EDM ramps over 10 M images). Constant
and inverse square root do not know when the run ends, so a longer run begins as a shorter one did; a cosine does, and a
finished cosine cannot be prolonged.
"""

from __future__ import annotations

import math

SCHEDULES = ("constant", "cosine", "inverse_sqrt")


def ramp(samples_seen: float, ramp_samples: float) -> float:
    """The factor min(t / ramp, 1); 1 without a ramp."""
    return min(samples_seen / ramp_samples, 1.0) if ramp_samples > 0 else 1.0


def cosine(samples_seen: float, start: float, end: float) -> float:
    """The factor of half a cosine from 1 at `start` to 0 at `end`."""
    progress = min(max((samples_seen - start) / (end - start), 0.0), 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def inverse_sqrt(samples_seen: float, reference: float) -> float:
    """The factor 1 / sqrt(max(t / t_ref, 1))."""
    return 1 / math.sqrt(max(samples_seen / reference, 1.0))


def learning_rate(
    samples_seen: float, *, lr: float, schedule: str, ramp_samples: float, reference: float, end: float
) -> float:
    """The learning rate of the step that starts at `samples_seen`.

    lr: after the ramp. schedule: one of `SCHEDULES`. ramp_samples, reference (t_ref of inverse_sqrt), end (of cosine):
    in samples.
    """
    factor = ramp(samples_seen, ramp_samples)
    if schedule == "cosine":
        factor *= cosine(samples_seen, ramp_samples, end)
    elif schedule == "inverse_sqrt":
        factor *= inverse_sqrt(samples_seen, reference)
    return lr * factor
