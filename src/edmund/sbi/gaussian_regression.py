r"""A Gaussian whose mean and covariance depend on a condition: where, how wide and how tilted, before what shape.

    p(s | z) = N(m(z), (P^T P)^-1),    ln p = ln |P| - |P (s - m)|^2 / 2 + const,    P lower triangular, diag P > 0

with m and P a network's outputs, trained by maximum likelihood (Williams 1996, "Using Neural Networks to Model
Conditional Multivariate Densities"). P (s - m) is then white: what a diffusion model is left with has one scale for all
z, however much that of s varies (in many simulators by orders of magnitude over the prior).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.progress import track
from edmund.sbi.seeding import seeded

_WIDTH, _BLOCKS = 128, 3
_STEPS, _WARM_UP = 6000, 100
_PASSES = 100
"""Times that the data are seen, at most, as the steps are."""
_BATCHES, _LEAST_BATCH, _MOST_BATCH = 70, 32, 512
"""Batches of a pass, and what bounds their size. Small ones find what the data have to tell of scales; large data have
more of it.
"""
_LR = 6e-3
_WEIGHT_DECAY = 0.01
_CHECK, _PATIENCE = 200, 2000
"""Steps between two looks at the validation set, and without a better one until it is left at that."""
_AVERAGE = 0.99


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.linear_in = nn.Linear(_WIDTH, _WIDTH)
        self.linear_out = nn.Linear(_WIDTH, _WIDTH)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.linear_out(F.silu(self.linear_in(self.norm(h))))
        return out


class GaussianRegression(nn.Module):
    """z [B, D] -> the mean m [B, F] and the whitening P [B, F, F] of s.

    Residual and normalised, as scales that vary over orders of magnitude take a fast optimiser to fit; before training
    it is N(0, I).
    """

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.features = features
        out = nn.Linear(_WIDTH, features + features * (features + 1) // 2)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        blocks = [_Block() for _ in range(_BLOCKS)]
        self.layers = nn.Sequential(nn.Linear(dim, _WIDTH), *blocks, nn.LayerNorm(_WIDTH), nn.SiLU(), out)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(m [B, F], P [B, F, F])."""
        n, out = self.features, self.layers(z)
        mean, log_scales, rest = out.split([n, n, n * (n - 1) // 2], 1)
        rows, columns = torch.tril_indices(n, n, -1, device=z.device)
        whitening = torch.diag_embed(log_scales.exp())
        whitening[:, rows, columns] = rest
        return mean, whitening

    def whiten(self, z: Tensor, s: Tensor) -> Tensor:
        """w = P (s - m), [B, F]."""
        mean, whitening = self(z)
        return _times(whitening, s - mean)

    def unwhiten(self, z: Tensor, w: Tensor) -> Tensor:
        """s of w = P (s - m), [B, F]."""
        mean, whitening = self(z)
        solved: Tensor = torch.linalg.solve_triangular(whitening, w[..., None], upper=False)
        s: Tensor = mean + solved[..., 0]
        return s

    def log_abs_det(self, z: Tensor) -> Tensor:
        """ln |P|, [B]: of the density of s, ln p(s) = ln p(w) + ln |P|."""
        _, whitening = self(z)
        return _log_abs_det(whitening)

    def loss(self, z: Tensor, s: Tensor) -> Tensor:
        """- ln p(s | z) but for its constant, in nats, the mean over the batch."""
        mean, whitening = self(z)
        squares = _times(whitening, s - mean).square().sum(1)
        loss: Tensor = (squares / 2 - _log_abs_det(whitening)).mean()
        return loss


def fit_gaussian(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], *, seed: int, progress: bool
) -> GaussianRegression:
    """The regression of (z [N, D], s [N, F]), of the average weights with the best validation loss."""
    generator = torch.Generator().manual_seed(seed)
    z, s = train
    with seeded(seed):  # of the first weights, which come from the global stream
        network = GaussianRegression(z.shape[1], s.shape[1])
    average, best = copy.deepcopy(network), copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
    lowest, found_at = math.inf, 0
    batch = min(max(len(z) // _BATCHES, _LEAST_BATCH), _MOST_BATCH)
    steps = min(_STEPS, _PASSES * len(z) // batch)
    with track(steps, "fitting a Gaussian to the simulator", enabled=progress) as bar:
        for step in range(steps):
            rows = torch.randint(len(z), (batch,), generator=generator)
            optimiser.zero_grad()
            loss = network.loss(z[rows], s[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            for group in optimiser.param_groups:
                group["lr"] = _LR * min(1.0, step / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.step()
            with torch.no_grad():
                share = 1 - min(_AVERAGE, (1 + step) / (10 + step))
                for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(weight, share)
                if (step + 1) % _CHECK == 0 or step + 1 == steps:
                    held_out = float(average.loss(*validation))
                    if held_out < lowest:
                        lowest, best, found_at = held_out, copy.deepcopy(average), step
            bar.advance()
            if step - found_at >= _PATIENCE:
                break
    return best.eval()


def _log_abs_det(whitening: Tensor) -> Tensor:
    total: Tensor = whitening.diagonal(dim1=1, dim2=2).log().sum(1)
    return total


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[B, F, F] times [B, F]."""
    product: Tensor = (matrices @ vectors[..., None])[..., 0]
    return product
