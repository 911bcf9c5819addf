"""The network of a conditional density: what it sees of an observation, where it expects theta, and its body.

    x -> standardised -> features e(x),    F(z; c_noise, x) = gain(c_noise) z + body(z, c_noise, e)

The gain, one number a noise level, is what noise-predicting formulations need: at high levels the noise is all but z
itself, of any size, and a body whose layers are normalised cannot say so.

Beside F there is a location, linear in the standardised x: the mean of z that linear regression predicts. The denoiser
of `Preconditioned` is built around it, so that F starts from the posterior of a linear Gaussian model and learns what
there is beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edmund import networks
from edmund.errors import InputError, unknown
from edmund.networks.embedding import NoiseFeatures, distinct
from edmund.sbi import embedding as embeddings
from edmund.sbi.probe import check_shape, probe, zeros
from edmund.sbi.standardise import Standardise

BODIES = ("mlp", "transformer")
"""The networks by name; a module of one's own is the third kind."""

NO_BODY = {"type": "none"}
"""The body of a network that is the location alone."""
_GAIN = 64


def mlp_for(size: int) -> dict[str, Any]:
    """The body of an MLP for that many simulations."""
    return {"type": "mlp", "channels": 160 if size <= 30_000 else 192, "blocks": 4, "dropout": 0.0}


class ConditionalNetwork(nn.Module):
    """F(z; c_noise, x): z [B, dim], observations x [B, *x_shape] -> [B, dim].

    dim: of z. x_shape: of one observation, in the simulator's units. body: {"type": "mlp" or "transformer", arguments
    of `networks.MLP` or `networks.TokenTransformer`}, `NO_BODY`, or a module (z [B, dim], c_noise [B], *, context [B,
    E]) -> [B, dim]. embedding: see `embedding.build`. mask: NaN in x is missing. channel_axis: see `Standardise`.
    """

    location_weight: Tensor
    location_bias: Tensor

    def __init__(
        self,
        dim: int,
        x_shape: Sequence[int],
        *,
        body: Mapping[str, Any] | nn.Module,
        embedding: Any = None,
        mask: bool = False,
        channel_axis: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.standardise = Standardise(x_shape, channel_axis=channel_axis, mask=mask)
        self.embedding = embeddings.build(embedding, self.standardise.out_shape, mask=mask)
        self.features = self.embedding.out_features
        self.body, described = _build_body(body, dim, self.features)
        self.gain = nn.Sequential(NoiseFeatures(_GAIN), nn.Linear(_GAIN, _GAIN), nn.SiLU(), nn.Linear(_GAIN, 1))
        nn.init.zeros_(self.gain[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.gain[-1].bias)  # type: ignore[arg-type]
        self.concatenated = isinstance(self.body, networks.MLP | networks.TokenTransformer) and described is not None
        self.config: dict[str, Any] = {
            "dim": dim,
            "x_shape": list(x_shape),
            "body": described,
            "embedding": self.embedding.config,
            "mask": mask,
            "channel_axis": channel_axis,
        }
        numbers = math.prod(self.standardise.out_shape)
        self.register_buffer("location_weight", torch.zeros(dim, numbers))
        self.register_buffer("location_bias", torch.zeros(dim))

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch that is sampled: on a CPU as many as its cache has room for."""
        if self.location_bias.device.type != "cpu":
            return 1 << 15
        return 1 << (9 if isinstance(self.body, networks.TokenTransformer) else 12)

    def fit(self, observations: Iterable[Tensor]) -> None:
        """Sets the statistics that observations [B, *x_shape] are standardised by."""
        self.standardise.fit(observations)

    def encode(self, observation: Tensor) -> Tensor:
        """What the network needs of observations [B, *x_shape]: [B, dim + E], the location and the features."""
        standard = self.standardise(observation)
        location = torch.addmm(self.location_bias, standard.flatten(1), self.location_weight.mT)
        return torch.cat([location, self.embedding(standard)], 1)

    def location(self, *, observation: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Where z is expected given the observations, [B, dim]; context: what `encode` made of them."""
        if context is not None:
            return context[:, : self.dim]
        if observation is None:
            raise InputError("observation is None; a posterior needs one")
        standard = self.standardise(observation).flatten(1)
        return torch.addmm(self.location_bias, standard, self.location_weight.mT)

    def forward(
        self, x: Tensor, c_noise: Tensor, *, observation: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """F [B, dim] of x = c_in (z - location) [B, dim] and c_noise [B]; observation [B, *x_shape], or context [B, dim
        + E], what `encode` made of it.
        """
        if context is None:
            if observation is None:
                raise InputError("observation is None; a posterior needs one")
            features = self.embedding(self.standardise(observation))
        else:
            features = context[:, self.dim :]
        linear = self.gain(distinct(c_noise)).to(x.dtype) * x
        return linear + self._body(x, c_noise, features.to(x.dtype))  # type: ignore[no-any-return]

    def _body(self, x: Tensor, c_noise: Tensor, features: Tensor) -> Tensor:
        if not self.concatenated:
            return self.body(x, c_noise, context=features)  # type: ignore[no-any-return]
        both = torch.cat([x, features], 1)
        if isinstance(self.body, networks.MLP):
            return self.body(both, c_noise)  # type: ignore[no-any-return]
        given = torch.arange(both.shape[1], device=x.device) >= self.dim
        return self.body(both, c_noise, given=given[None])[:, : self.dim]  # type: ignore[no-any-return]


class _Nothing(nn.Module):
    """F = 0, of z [B, dim]: what is left is the posterior of a linear Gaussian model."""

    def forward(self, x: Tensor, c_noise: Tensor, *, context: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _build_body(body: Mapping[str, Any] | nn.Module, dim: int, features: int) -> tuple[nn.Module, Any]:
    if isinstance(body, nn.Module):
        _check_own(body, dim, features)
        return body, None
    arguments = dict(body)
    kind = arguments.pop("type")
    if kind == "mlp":
        return networks.MLP(dim + features, out_features=dim, **arguments), dict(body)
    if kind == "transformer":
        return networks.TokenTransformer(dim + features, **arguments), dict(body)
    if kind == NO_BODY["type"]:
        return _Nothing(), dict(body)
    raise unknown("network", kind, BODIES)


def _check_own(body: nn.Module, dim: int, features: int) -> None:
    """Refuses a user's module that does not turn zeros z [2, dim] into [2, dim]."""
    z, c_noise, context = zeros(body, 2, dim), zeros(body, 2).float(), zeros(body, 2, features)
    told = f"network is a {type(body).__qualname__}; of z [2, {dim}], c_noise [2] and context=[2, {features}] it"
    wanted = f"it must make [2, {dim}]"
    check_shape(told, wanted, probe(told, wanted, body, z, c_noise, context=context), z.shape)
