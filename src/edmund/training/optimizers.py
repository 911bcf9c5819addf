"""The optimisers of a run: Adam, AdamW, or Muon for matrices with AdamW for all else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) takes the nearest semi-orthogonal matrix of the
momentum for its step, so that all directions of a layer learn at one pace and not the few that dominate its gradient.
It trains the weights of all linear layers but those that modulate blocks (`Modulation`); vectors, tables and
convolutions are left to AdamW. One learning rate goes with both, as Muon's step is scaled to the size of Adam's (Liu et
al. 2025, arXiv 2502.16982, eq. 4).
"""

from __future__ import annotations

from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

from edmund.errors import InputError
from edmund.networks.conditioning import Modulation
from edmund.training.options import TrainingOptions

_MOMENTUM = 0.95


def optimizers(module: nn.Module, options: TrainingOptions) -> list[Optimizer]:
    """The optimisers which together train every parameter of `module` that asks for a gradient."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = _matrices(module) if options.optimizer == "muon" else set()
    others = [p for p in parameters if id(p) not in matrices]
    kind: type[Adam] = Adam if options.optimizer == "adam" else AdamW
    found: list[Optimizer] = []
    if others:
        found.append(
            kind(
                others,
                lr=options.lr,
                betas=options.betas,
                eps=options.eps,
                weight_decay=options.weight_decay,
                fused=True,
            )
        )
    if matrices:
        found.append(
            Muon(
                [p for p in parameters if id(p) in matrices],
                lr=options.lr,
                momentum=_MOMENTUM,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


def check_optimizer(module: nn.Module, options: TrainingOptions) -> None:
    """InputError where `options` ask for Muon and it has nothing to train."""
    if options.optimizer == "muon" and not _matrices(module):
        raise InputError("optimizer is 'muon', which is for linear layers; the network trains none: choose 'adam'")


def _matrices(module: nn.Module) -> set[int]:
    """The ids of the parameters that Muon trains."""
    linear = (m for m in module.modules() if isinstance(m, nn.Linear) and not isinstance(m, Modulation))
    # A weight may also be computed of parameters, as by weight normalisation, or frozen.
    return {id(m.weight) for m in linear} & {id(p) for p in module.parameters() if p.requires_grad}
