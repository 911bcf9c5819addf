r"""The denoiser of a joint model: any variables given, any asked, around the exact denoiser of a Gaussian.

The data are z [V], standardised, of mean mu and covariance C. In each sample some variables are given, known exactly;
some asked, seen as x = z + sigma n; the rest missing. Were z Gaussian, with N the diagonal of sigma^2 where asked and 0
where given, and A = C + N over what is not missing, then for the asked ones

    E[z | x] = x - sigma^2 (A^-1 (x - mu)),        Var[z | x] = sigma^2 - sigma^4 diag(A^-1) = s^2

for every mask in closed form: the regression on the given ones and the shrinkage of the noisy ones at once. The network
adds what the Gaussian lacks, in the units of its uncertainty, and the loss is in these units too:

    D = E[z | x] + s F(c_in x, r; c_noise, masks),        loss = mean over asked of ((D - z) / s)^2
    r = (A^-1 (x - mu)) / sqrt(diag(A^-1))

The residual r of a value is what all others do not explain of it, of unit variance were z Gaussian: differences of
values that are strongly correlated, which a network sees poorly in the values themselves.

Where C = I and nothing is given this is EDM's preconditioning (Karras et al. 2022, Table 1, sigma_data = 1) with its
weight: s = c_out. Otherwise every conditional has its own scale, so that narrow ones are learned to the same relative
accuracy as wide ones. F = 0 has a loss of 1 under every mask, whatever the data's law, and the least there is where
they are Gaussian.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edmund.denoiser import Preconditioned
from edmund.networks import TokenTransformer
from edmund.preconditioning import Preconditioning
from edmund.sbi.dependency import attention

RIDGE = 1e-4
"""Share of unit variance added to the covariance: what is (next to) a function of the rest keeps some uncertainty."""


class JointNetwork(nn.Module):
    """A `TokenTransformer` with the moments of its variables and the graph of their dependences.

    tokens: the transformer over V variables, of two numbers a token. graph: see `dependency.check_graph`; None: all
    depend on all. gaussian: how many of the first variables are jointly Gaussian by themselves, so that F = 0 where
    nothing but these is asked or given: the parameters of a prior whose law is known.
    """

    mean: Tensor
    covariance: Tensor
    graph: Tensor

    def __init__(self, tokens: TokenTransformer, graph: Tensor | None = None, gaussian: int = 0) -> None:
        super().__init__()
        self.tokens = tokens
        self.gaussian_first = gaussian
        count = tokens.variables
        self.config: dict[str, Any] = {
            "tokens": tokens.config,
            "graph": None if graph is None else graph.int().tolist(),
            "gaussian": gaussian,
        }
        self.masked = graph is not None
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("covariance", torch.eye(count))
        self.register_buffer("graph", torch.ones(count, count, dtype=torch.bool) if graph is None else graph)

    def forward(
        self, x: Tensor, c_noise: Tensor, *, given: Tensor | None = None, missing: Tensor | None = None
    ) -> Tensor:
        """F [B, V] as of `TokenTransformer`, with the attention mask that the graph and the masks make.

        x [B, V, 2]: the values and their residuals.
        """
        mask = None
        if self.masked:
            none = torch.zeros(1, x.shape[1], dtype=torch.bool, device=x.device)
            given_or, missing_or = none if given is None else given, none if missing is None else missing
            rows = max(len(given_or), len(missing_or))
            mask = attention(
                self.graph, given_or.expand(rows, -1), missing_or.expand(rows, -1), len(self.tokens.blocks)
            )
        out: Tensor = self.tokens(x, c_noise, given=given, missing=missing, attention=mask)
        if self.gaussian_first and missing is not None:
            others = missing[:, self.gaussian_first :].all(1, keepdim=True)
            out = torch.where(others, 0, out)
        return out

    def silence(self) -> None:
        """Makes F = 0: the model is then the Gaussian alone."""
        nn.init.zeros_(self.tokens.out_weight)
        nn.init.zeros_(self.tokens.out_bias)

    def gaussian(self, x: Tensor, sigma: Tensor, given: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(E[z | x], its std, r) [B, V] of a Gaussian with these moments; the first two are of no meaning where given
        or missing, the last is 0 where missing.

        x [B, V], noisy where asked, clean where given; sigma [B or 1, 1]; given, missing [B or 1, V]. In x's dtype,
        computed in float64.
        """
        z, level, clean, away = _precise(x, sigma, given, missing)
        noise = torch.where(clean, 0, level**2)
        inverse, solved = self._solve(z, noise, ~away)
        mean = z - level**2 * solved
        precision = inverse.diagonal(dim1=1, dim2=2)
        std = torch.where(clean | away, 1, level**2 - level**4 * precision).sqrt()
        return mean.to(x), std.to(x), (solved / precision.sqrt()).to(x)

    def location(self, z: Tensor, given: Tensor) -> Tensor:
        """E[z | the given ones] [B, V] of that Gaussian, of z [B, V] and given [B or 1, V], in z's dtype."""
        values, clean = _precise(z, given)
        _, solved = self._solve(values, torch.zeros_like(values), clean)
        mean, covariance = _precise(self.mean, self.covariance)
        return (mean + solved @ covariance).to(z)

    def _solve(self, z: Tensor, noise: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(A^-1, A^-1 (z - mean)) of A = covariance + noise over what is there; the other rows meet none of it."""
        mean, covariance = _precise(self.mean, self.covariance)
        covariance = torch.where(there[:, :, None] & there[:, None, :], covariance, 0)
        noisy = covariance + torch.diag_embed(torch.where(there, noise, 1))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(noisy)[0])
        offset = torch.where(there, z - mean, 0)
        return inverse, (inverse @ offset[:, :, None])[:, :, 0]


def _precise(*values: Tensor) -> list[Tensor]:
    """In float64, masks as they are. On the CPU where a device has no float64: in float32 nothing would be left of a
    variance that is 1e-8 of the sigma^2 that it is a difference of.
    """
    moved = [value.cpu() if value.device.type == "mps" else value for value in values]
    return [value if value.dtype == torch.bool else value.double() for value in moved]


class JointDenoiser(Preconditioned):
    """The joint model as a denoiser over all variables: those given are clean in x and come back as they are."""

    network: JointNetwork

    def __init__(self, network: JointNetwork, preconditioning: Preconditioning, **carried: Any) -> None:
        super().__init__(network, preconditioning, **carried)

    def forward(  # type: ignore[override]
        self, x: Tensor, sigma: Tensor, *, given: Tensor | None = None, missing: Tensor | None = None
    ) -> Tensor:
        """D(x; sigma) [B, V]; sigma [] or [B]. given, missing [B or 1, V] bool: these are clean in x, or not looked at.

        Where missing, the result is 0.
        """
        none = torch.zeros(1, x.shape[1], dtype=torch.bool, device=x.device)
        given, missing = none if given is None else given, none if missing is None else missing
        denoised, _ = self._denoised(x, torch.as_tensor(sigma, dtype=x.dtype, device=x.device), given, missing)
        return torch.where(missing, 0, torch.where(given, x, denoised))

    def training_loss(self, y: Tensor, sigma: Tensor, noise: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The loss [B] of clean z = y [B, V] at noise levels [B] under unit normals [B, V], over what is asked."""
        given, missing = condition["given"], condition["missing"]
        asked = ~(given | missing)
        x = torch.where(asked, y + sigma[:, None].to(y.dtype) * noise, y)
        denoised, std = self._denoised(x, sigma.to(y.dtype), given, missing)
        errors = torch.where(asked, (denoised - y) / std, 0).square()
        return errors.sum(1) / asked.sum(1)

    def _denoised(self, x: Tensor, sigma: Tensor, given: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """(D, s) [B, V], of no meaning where given or missing."""
        level = sigma.reshape(-1, 1)
        with torch.autocast(x.device.type, enabled=False):
            mean, std, residual = self.network.gaussian(x, level, given, missing)
        c = self.preconditioning
        value = torch.where(given, x, c.c_in(level) * x)
        seen = torch.stack([value, residual], 2).to(self.network.tokens.out_weight.dtype)
        c_noise = c.c_noise(sigma.reshape(-1)).to(torch.float32).expand(len(x))
        raw = self.network(seen, c_noise, given=given, missing=missing)
        return mean + std * raw.to(x.dtype), std
