r"""Classifier-free guidance: away from the same model without its condition.

By Bayes' rule D(x | c) - D(x) = sigma^2 grad log p(c | x; sigma), so that w raises the implied classifier p(c | x;
sigma) to the power w (Ho & Salimans 2022). Both come of one network, which was trained with a share of its conditions
taken away (`training.label_dropout`), in one call on a doubled batch.

What "taken away" is, here and in training (`denoiser.drop_condition`): labels -1, or a zero row of a label vector;
the network's learned null for a context and zeros for an image, both by `condition_dropped`. Any other condition stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edmund.denoiser import DROPPABLE, Denoiser, condition_names, drop_condition, expand_condition
from edmund.errors import InputError, unknown
from edmund.guidance._base import Guidance


class ClassifierFree(Guidance):
    """D_ref + w (D_cond - D_ref) with D_ref the denoiser told less (Ho & Salimans 2022, Eq. 6, whose w is ours less 1).

    denoiser: trained with its conditions dropped now and then. w: 1 is off, 0 is D_ref. interval: (sigma_low,
    sigma_high), None: all levels. drop: the conditions that D_ref is not told, of labels, context and image; None: all
    that are given (context and image only go together with all others, as one `condition_dropped` tells of them).

    negative: a mapping of conditions that D_ref is told instead, such as {"labels": ...} or {"context": ...} (negative
    prompts): what the samples are to move away from. Each has a batch axis of 1, the same for all samples, as samplers
    split batches; samples that move away from different things are drawn in a call each. What it does not name D_ref is
    told as it is.

    Raises InputError, when called with w != 1, for a condition of which nothing can be dropped.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        w: float,
        interval: Sequence[float] | None = None,
        negative: Mapping[str, Tensor] | None = None,
        drop: Sequence[str] | None = None,
    ) -> None:
        super().__init__(denoiser, w, interval)
        if negative is not None and drop is not None:
            raise InputError("negative and drop: give one of the two; what negative does not name stays as it is")
        self.negative = None if negative is None else self._check_negative(negative)
        self.drop = DROPPABLE if drop is None else _check_drop(drop)

    def _check_negative(self, negative: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not isinstance(negative, Mapping) or not negative:
            raise InputError(f"negative is {negative!r}; it must be a mapping such as {{'labels': tensor}}, or None")
        for key, value in negative.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise InputError(f"negative {key!r} is {value!r}; it must be a tensor with a batch axis of 1")
            if len(value) != 1:
                raise InputError(
                    f"negative {key!r} has shape {tuple(value.shape)}; its batch axis must be 1, one for all samples, "
                    f"as batches are split: sample what has different negatives in a call each"
                )
        if "labels" in negative and hasattr(self, "check_labels"):
            self.check_labels(negative["labels"])
        return dict(negative)

    def _guided(self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        given = expand_condition(condition, len(x))
        both = self._dropped(given, len(x), x.device) if self.negative is None else self._negated(given, len(x))
        sigmas = sigma.expand(len(x)).repeat(2) if sigma.ndim == 1 else sigma
        main, reference = self.denoiser(torch.cat([x, x]), sigmas, **both).chunk(2)
        return torch.lerp(reference, main, self.w), main

    def _dropped(self, given: Mapping[str, Tensor], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The conditions [2 B, *] of the two halves, the second told less."""
        keys = [key for key in self.drop if key in given]
        if not keys:
            raise InputError(
                f"w is {self.w}, but there is no condition to guide by: given are {sorted(given) or 'none'}, and "
                f"{', '.join(self.drop)} can be dropped; give one of them, or negative="
            )
        together = [key for key in keys if key != "labels"]
        if together:
            self._check_together(together[0], [key for key in DROPPABLE if key in given and key not in keys])
        both = {key: torch.cat([value, value]) for key, value in given.items()}
        second = torch.arange(2 * batch, device=device) >= batch
        return both | drop_condition({key: both[key] for key in (*keys, "condition_dropped") if key in both}, second)

    def _check_together(self, key: str, kept: Sequence[str]) -> None:
        known = condition_names(self.denoiser)
        if known is not None and "condition_dropped" not in known:
            raise InputError(
                f"the denoiser takes {key!r} but no condition_dropped, so it has no 'none' of it; say what to guide "
                f"away from with negative={{{key!r}: ...}}"
            )
        if kept:
            raise InputError(
                f"drop is {list(self.drop)}: {key!r} is dropped together with {', '.join(map(repr, kept))}, by one "
                f"condition_dropped; name all of them, or use negative={{{key!r}: ...}}"
            )

    def _negated(self, given: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The conditions [2 B, *] of the two halves, the second with the negative ones in place of the given."""
        assert self.negative is not None
        negative = expand_condition(self.negative, batch)
        for key, value in negative.items():
            if key not in given:
                raise InputError(
                    f"negative names {key!r}, but the condition has {sorted(given) or 'none'}; give {key!r} there too "
                    f"(labels of -1: none)"
                )
            ours = given[key]
            if ours.shape != value.shape or ours.is_floating_point() != value.is_floating_point():
                raise InputError(
                    f"negative {key!r} is {value.dtype} of shape {tuple(value.shape)}, the condition "
                    f"{ours.dtype} of shape {tuple(ours.shape)}; they go through the network in one batch and must fit"
                )
        return {
            key: torch.cat([value, negative[key].to(value) if key in negative else value])
            for key, value in given.items()
        }


def _check_drop(drop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(drop, str) or not isinstance(drop, Sequence) or not drop:
        raise InputError(f"drop is {drop!r}; it must be a sequence of names of {', '.join(DROPPABLE)}")
    for key in drop:
        if key not in DROPPABLE:
            raise unknown("drop", key, DROPPABLE)
    return tuple(drop)
