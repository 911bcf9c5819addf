r"""Classifier guidance: along the gradient of a classifier of noisy data.

grad log p(x | c; sigma) = grad log p(x; sigma) + grad log p(c | x; sigma), and the score is (D - x) / sigma^2, so a
classifier moves D by sigma^2 times its gradient (Dhariwal & Nichol 2021, Algorithm 1). With the same convention as
everywhere, w = 1 leaves the denoiser as it is and every further unit adds the gradient once:

    D_guided = D + (w - 1) sigma^2 grad_x log p(c | x; sigma).

Around a conditional denoiser this is classifier-free guidance with the same w; around an unconditional one w = 2 is
the conditional denoiser, exactly, and w = 1 + s is what the paper calls the gradient scale s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edmund.denoiser import Denoiser, expand_condition
from edmund.errors import InputError
from edmund.guidance._base import Guidance

_OF_LABELS = frozenset({"check_labels", "num_classes"})


class ClassifierGuidance(Guidance):
    """D + (w - 1) sigma^2 grad_x log p(c | x; sigma) (Dhariwal & Nichol 2021).

    classifier: a callable (x [B, *] unscaled, sigma [] or [B], **condition) -> log p(c | x; sigma) [B], the
    log-probability, in nats, of the condition given to that sample; differentiable in x. One that is a module gets x in
    its parameters' dtype. w: 1 is off. interval: (sigma_low, sigma_high), None: all levels. conditional: whether the
    denoiser is told the conditions as well; False: they are the classifier's alone.

    The result can be differentiated in x, if gradients are enabled; under no_grad no graph is kept.
    """

    classifier: Callable[..., Tensor]

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: Callable[..., Tensor],
        w: float,
        interval: Sequence[float] | None = None,
        *,
        conditional: bool = True,
    ) -> None:
        super().__init__(denoiser, w, interval)
        if isinstance(classifier, type) or not callable(classifier):
            raise InputError(
                f"classifier is {classifier!r}; it must be a callable (x, sigma, **condition) -> log-probability [B]"
            )
        if not isinstance(conditional, bool):
            raise InputError(f"conditional is {conditional!r}; it must be True or False")
        self.classifier = classifier
        self.conditional = conditional

    def __getattr__(self, name: str) -> Any:
        # An unconditional denoiser would refuse the labels that are the classifier's.
        if name in _OF_LABELS and not self.conditional:
            raise AttributeError(f"{type(self).__name__} of an unconditional denoiser has no {name}")
        return super().__getattr__(name)

    @property
    def known_conditions(self) -> tuple[str, ...] | None:
        """The conditions that may be given; None when any, or when they are the classifier's."""
        return super().known_conditions if self.conditional else None

    def _main(self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return self.denoiser(x, sigma, **condition) if self.conditional else self.denoiser(x, sigma)

    def _guided(self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        main = self._main(x, sigma, condition)
        given = expand_condition(condition, len(x))

        def total(x: Tensor) -> Tensor:
            log_prob = self.classifier(x.to(_dtype_of(self.classifier, x)), sigma, **given)
            if not isinstance(log_prob, Tensor) or log_prob.shape != x.shape[:1]:
                found = tuple(log_prob.shape) if isinstance(log_prob, Tensor) else type(log_prob).__name__
                raise InputError(
                    f"the classifier returned {found} for x of shape {tuple(x.shape)}; it must return the "
                    f"log-probability of each sample's condition, [{len(x)}]"
                )
            if not log_prob.requires_grad:
                raise InputError(
                    "the classifier's log-probability has no gradient in x: it must not compute under no_grad, nor "
                    "detach x"
                )
            return log_prob.sum()

        # As a transform, not by autograd.grad: it composes with outer derivatives of every kind, and with no_grad.
        gradient = torch.func.grad(total)(x)
        level = sigma.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return main + (self.w - 1) * level**2 * gradient, main


def _dtype_of(classifier: Callable[..., Tensor], x: Tensor) -> torch.dtype:
    """The dtype of a module's parameters; x's for what has none."""
    parameters = classifier.parameters() if isinstance(classifier, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), x.dtype)
