r"""A transformer over variables, one token each: for models of many variables of which some are given.

Token v holds the value of variable v, which variable it is, and whether it is asked (noisy) or given (clean):

    h_v = W SiLU(a_{v, state} value + b_{v, state}) + c_v

with vectors a, b of each variable's two states and c of each variable; where a token holds several numbers, each has
its a. The noise level's embedding e modulates every branch of every block,

    h <- h + (1 + gate) * branch((1 + scale) * norm(h) + shift),

for all tokens alike: given ones are told by their state that their own level is zero. Shift, scale and gate start at 0
as in adaLN-zero (Peebles & Xie 2023, arXiv 2212.09748), but the branches start open: closed ones, made for networks of
many blocks, take a good part of a short training to open. A last layer of one vector a variable reads F_v off its
token; it starts at zero, so F = 0 before training. This is the architecture of the Simformer (Gloeckler et al. 2024,
arXiv 2404.09636) but for the modulation.

Missing tokens are seen by no other, and an attention mask takes away more: which tokens i attends to is row i.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks.conditioning import Conditioning, Modulation, check_condition, check_dropout, check_input

_EPS = 1e-6
_FEW = 128
"""Tokens up to which a CPU attends sooner by products of matrices in bf16: its fused kernel takes two to seven times as
long there, and is for more, whose matrix of all pairs has no room.
"""


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=_EPS)


def _zero(layer: nn.Linear) -> nn.Linear:
    """The layer, with weight and bias zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [B, heads, V, channels / heads]; mask: see `TokenTransformer._mask`."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.shape[2] > _FEW:
        return F.scaled_dot_product_attention(query, key, value, mask)
    scores = (query * query.shape[3] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    attended: Tensor = scores.softmax(3) @ value
    return attended


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = _zero(Modulation(channels, 6 * channels))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attended = nn.Linear(channels, channels)
        self.linear_in = nn.Linear(channels, expansion * channels)
        self.linear_out = nn.Linear(expansion * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, embedding: Tensor, mask: Tensor | None) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(embedding)[:, None].chunk(6, dim=2)
        seen = torch.addcmul(shift, _norm(h), 1 + scale)
        query, key, value = self.qkv(seen).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = _attend(query, key, value, mask).transpose(1, 2).flatten(2)
        h = torch.addcmul(h, 1 + gate, self.dropout(self.attended(found)))
        seen = torch.addcmul(shift_mlp, _norm(h), 1 + scale_mlp)
        found = self.linear_out(F.gelu(self.linear_in(seen)))
        return torch.addcmul(h, 1 + gate_mlp, self.dropout(found))


class TokenTransformer(nn.Module):
    """Transformer over variables: x [B, variables] -> [B, variables], one token a variable.

    variables: their number V; numbers: how many a token holds, the variable's value and what else is told of it (where
    there are several, x is [B, V, numbers]); channels: width of the tokens and of the noise level's embedding; blocks:
    number of transformer blocks; heads: of attention, each of channels / heads channels; expansion: width of the
    perceptrons' hidden layer, in channels; dropout: probability at the end of each branch.
    """

    name: ClassVar[str] = "token_transformer"

    def __init__(
        self,
        variables: int,
        channels: int = 64,
        blocks: int = 4,
        heads: int = 4,
        expansion: int = 3,
        dropout: float = 0.0,
        numbers: int = 1,
    ) -> None:
        super().__init__()
        check_count("variables", variables)
        check_count("numbers", numbers)
        check_count("channels", channels)
        check_count("blocks", blocks)
        check_count("expansion", expansion)
        check_dropout(dropout)
        if channels % check_count("heads", heads):
            raise InputError(f"heads is {heads}; it must divide the number of channels, {channels}")
        self.config: dict[str, Any] = {
            "variables": variables,
            "channels": channels,
            "blocks": blocks,
            "heads": heads,
            "expansion": expansion,
            "dropout": dropout,
            "numbers": numbers,
        }
        self.variables = variables
        self.numbers = numbers
        self.conditioning = Conditioning(channels, label_dim=0, context_dim=0, augment_dim=0)
        # Rows of a variable: a slope for each number and an offset, of it asked, and then the same of it given.
        self.first = nn.Parameter(torch.randn(variables, 2 * (numbers + 1), channels))
        self.identity = nn.Parameter(0.5 * torch.randn(variables, channels))
        self.value_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(_Block(channels, heads, expansion, dropout) for _ in range(blocks))
        self.modulation = _zero(Modulation(channels, 2 * channels))
        self.out_weight = nn.Parameter(torch.zeros(variables, channels))
        self.out_bias = nn.Parameter(torch.zeros(variables))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        given: Tensor | None = None,
        missing: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> Tensor:
        """F [B, V] of x [B, V] or [B, V, numbers], noisy values times c_in where asked and clean values where given,
        and c_noise [B] in float32, the level of the asked ones.

        given [B, V] bool (None: all are asked). missing [B, V] bool: neither asked nor given; whatever stands in x
        there, F is 0 and no other token sees it (None: none is). attention [B, V, V] bool, or [V, V] for all samples:
        token i may attend to token j where [i, j]; each always attends to itself (None: to all). A mask of batch 1 is
        expanded. Whatever does not fit is an `InputError`.
        """
        batch, count = x.shape[0], self.variables
        if self.numbers == 1:
            check_input(x, c_noise, f"[B, {count}]", count, 2)
            x = x[:, :, None]
        else:
            check_input(x, c_noise, f"[B, {count}, {self.numbers}]", count, 3)
            if x.shape[2] != self.numbers:
                raise InputError(f"x has shape {list(x.shape)}; this network takes [B, {count}, {self.numbers}]")
        given = _check_mask("given", given, batch, count)
        missing = _check_mask("missing", missing, batch, count)
        mask = self._mask(missing, _check_attention(attention, batch, count), x.device)
        if missing is not None:
            x = torch.where(missing[:, :, None], 0, x)

        embedding = self.conditioning(c_noise, None, None, None, None, x.dtype)
        told = torch.cat([x, torch.ones_like(x[:, :, :1])], 2)
        clean = torch.zeros(1, 1, 1, dtype=torch.bool, device=x.device) if given is None else given[:, :, None]
        told = torch.cat([torch.where(clean, 0, told), torch.where(clean, told, 0)], 2)
        # Unlike pixels, the numbers of a vector may differ in digits that half precision has not got.
        with torch.autocast(x.device.type, enabled=False):
            h = self.value_in(F.silu(torch.einsum("bvn,vnc->bvc", told.to(self.first), self.first))) + self.identity
        for block in self.blocks:
            h = block(h, embedding, mask)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        out = (torch.addcmul(shift, _norm(h), 1 + scale) * self.out_weight).sum(2) + self.out_bias
        return out if missing is None else torch.where(missing, 0, out)

    def _mask(self, missing: Tensor | None, attention: Tensor | None, device: torch.device) -> Tensor | None:
        """Who attends to whom, [1 or B, 1, V, V] bool; None: everyone to all."""
        if missing is None and attention is None:
            return None
        allowed = torch.ones(1, 1, self.variables, dtype=torch.bool, device=device)
        if missing is not None:
            allowed = allowed & ~missing[:, None, :]
        if attention is not None:
            allowed = allowed & attention
        allowed = allowed | torch.eye(self.variables, dtype=torch.bool, device=device)
        return allowed[:, None]


def _check_mask(name: str, mask: Tensor | None, batch: int, count: int) -> Tensor | None:
    """A mask [batch or 1, count] bool as it is, or None; anything else is an InputError."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape[1] != count:
        raise InputError(
            f"{name} has dtype {mask.dtype} and shape {list(mask.shape)}; it must be bool [{batch}, {count}]"
        )
    check_condition(name, mask, batch)
    return mask


def _check_attention(attention: Tensor | None, batch: int, count: int) -> Tensor | None:
    """The mask as [batch or 1, count, count] bool, or None; anything else is an InputError."""
    if attention is None:
        return None
    if attention.dtype != torch.bool or attention.ndim not in (2, 3) or attention.shape[-2:] != (count, count):
        raise InputError(
            f"attention has dtype {attention.dtype} and shape {list(attention.shape)}; it must be bool "
            f"[{count}, {count}] or [{batch}, {count}, {count}]"
        )
    if attention.ndim == 2:
        return attention[None]
    check_condition("attention", attention, batch)
    return attention
