"""Everything that a network is told beside the noisy sample, gathered in one embedding vector.

    e = SiLU(W_2 SiLU(W_1 features(c_noise) + labels + context + augment_labels))

Each term but the first is zero, exactly, when there is nothing to tell: labels and augment labels pass through a linear
map without a bias (a zero row is "none", as in EDM), and a context that is dropped is replaced by a learned null
vector, which starts at zero. `condition_dropped` marks the samples of a batch that are to see no condition; that is
what classifier-free guidance trains on and samples with (Ho & Salimans 2022). Augment labels are no condition in that
sense and stay.

A context of tokens [B, T, C] is pooled by attention with learned queries (Lee et al. 2019, Set Transformer, PMA), so
its result does not depend on the tokens' order; a vector [B, C] is one token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count, check_number
from edmund.networks.embedding import NoiseFeatures, distinct

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_dropout(dropout: float) -> float:
    """`dropout`, if it is a probability below 1."""
    if not 0 <= check_number("dropout", dropout) < 1:
        raise InputError(f"dropout is {dropout!r}; it must be in [0, 1)")
    return dropout


def check_input(x: Tensor, c_noise: Tensor, shape: str, channels: int, ndim: int) -> None:
    """Refuses an x that is not [B, channels, ...] with `ndim` axes, as `shape` says, and a c_noise that is not [B]."""
    if x.ndim != ndim or x.shape[1] != channels:
        raise InputError(f"x has shape {list(x.shape)}; this network takes {shape}")
    if c_noise.shape != x.shape[:1]:
        raise InputError(f"c_noise has shape {list(c_noise.shape)}; x of batch {x.shape[0]} needs [{x.shape[0]}]")
    if c_noise.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"c_noise has dtype {c_noise.dtype}; it must be torch.float32 (half precision cannot tell 997 from 999)"
        )


def check_condition(name: str, value: Tensor, batch: int) -> Tensor:
    """`value` [batch, *] or [1, *], expanded to [batch, *]; any other batch is an `InputError`."""
    if value.ndim == 0 or value.shape[0] not in (1, batch):
        raise InputError(
            f"{name} has shape {list(value.shape)}; x has batch {batch}, so its first axis must be {batch} or 1"
        )
    return value.expand(batch, *value.shape[1:])


def check_dropped(condition_dropped: Tensor | None, batch: int, conditional: bool) -> Tensor | None:
    """`condition_dropped` as [batch] bool, or None; refused where there is no condition to drop."""
    if condition_dropped is None:
        return None
    if not conditional:
        raise InputError(
            "condition_dropped is given, but this network has no labels, context or image to drop; leave it out"
        )
    if condition_dropped.dtype != torch.bool or condition_dropped.ndim != 1:
        raise InputError(
            f"condition_dropped has dtype {condition_dropped.dtype} and shape {list(condition_dropped.shape)}; "
            f"it must be bool [{batch}]"
        )
    return check_condition("condition_dropped", condition_dropped, batch)


def check_image(
    image: Tensor | None, x: Tensor, shape: list[int] | None, condition_dropped: Tensor | None
) -> Tensor | None:
    """The image condition [B, *shape] in x's dtype, never scaled, zero where dropped; None without one."""
    if shape is None:
        if image is not None:
            raise InputError(
                f"image of shape {list(image.shape)} is given, but this network was built without an image condition"
            )
        return None
    wanted = f"[{x.shape[0]}, {', '.join(map(str, shape))}]"
    if image is None:
        raise InputError(f"image is missing; this network needs one of shape {wanted}")
    if list(image.shape[1:]) != shape:
        raise InputError(f"image has shape {list(image.shape)}; this network needs {wanted}")
    if not image.is_floating_point():
        raise InputError(f"image has dtype {image.dtype}; it must be floating point, scaled as in training")
    image = check_condition("image", image, x.shape[0]).to(x.dtype)
    if condition_dropped is not None:
        image = torch.where(condition_dropped.view(-1, *(1,) * len(shape)), torch.zeros_like(image), image)
    return image


def _refuse(name: str, value: Tensor | None, dim: str) -> None:
    if value is not None:
        raise InputError(f"{name} of shape {list(value.shape)} is given, but this network takes none ({dim} is 0)")


def label_rows(
    labels: Tensor | None,
    label_dim: int,
    condition_dropped: Tensor | None,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """labels [B] int (-1: none), [B, label_dim] or None -> [B, label_dim], zero for none and where dropped.

    None, and refused when given, for a network without labels (label_dim 0).
    """
    if not label_dim:
        _refuse("labels", labels, "label_dim")
        return None
    if labels is None:
        return torch.zeros(batch, label_dim, dtype=dtype, device=device)
    if labels.ndim == 1 and labels.dtype in _INTEGERS:
        # Reading values from an accelerator would wait for it; there, what is out of range acts as none, and the
        # check is that of the labels' owner (the data set, `sample`).
        if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
            low, high = int(labels.min()), int(labels.max())
            if low < -1 or high >= label_dim:
                wrong = low if low < -1 else high
                raise InputError(f"labels contain {wrong}; they must be in 0 .. {label_dim - 1}, or -1 for none")
        rows = labels[:, None] == torch.arange(label_dim, device=labels.device)
    elif labels.ndim == 2 and labels.shape[1] == label_dim:
        rows = labels
    else:
        raise InputError(
            f"labels have dtype {labels.dtype} and shape {list(labels.shape)}; "
            f"they must be integers [{batch}] or vectors [{batch}, {label_dim}]"
        )
    rows = check_condition("labels", rows, batch).to(dtype)
    return rows if condition_dropped is None else torch.where(condition_dropped[:, None], 0.0, rows)


def context_rows(context: Tensor | None, context_dim: int, batch: int, dtype: torch.dtype) -> Tensor | None:
    """context [B, context_dim] or [B, T, context_dim], checked, in `dtype`; None for a network without (0)."""
    if not context_dim:
        _refuse("context", context, "context_dim")
        return None
    wanted = f"[{batch}, {context_dim}] or [{batch}, tokens, {context_dim}]"
    if context is None:
        raise InputError(
            f"context is missing; this network needs {wanted} (with condition_dropped where it is to be ignored)"
        )
    if context.ndim not in (2, 3) or context.shape[-1] != context_dim or 0 in context.shape[1:]:
        raise InputError(f"context has shape {list(context.shape)}; this network needs {wanted}")
    return check_condition("context", context, batch).to(dtype)


def pooled_or_null(pooled: Tensor, null: Tensor, condition_dropped: Tensor | None) -> Tensor:
    """The pooled context [B, C], and the learned null [C] in the samples where it is dropped."""
    if condition_dropped is None:
        condition_dropped = torch.zeros(pooled.shape[0], dtype=torch.bool, device=pooled.device)
    return torch.where(condition_dropped[:, None], null.to(pooled.dtype), pooled)


def augment_rows(
    augment_labels: Tensor | None, augment_dim: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """augment_labels [B, augment_dim], checked, in `dtype`, zero when missing; None for a network without (0)."""
    if not augment_dim:
        _refuse("augment_labels", augment_labels, "augment_dim")
        return None
    if augment_labels is None:
        return torch.zeros(batch, augment_dim, dtype=dtype, device=device)
    if augment_labels.ndim != 2 or augment_labels.shape[1] != augment_dim:
        raise InputError(
            f"augment_labels have shape {list(augment_labels.shape)}; this network needs [{batch}, {augment_dim}]"
        )
    return check_condition("augment_labels", augment_labels, batch).to(dtype)


class ContextPooling(nn.Module):
    """Context [B, C] or tokens [B, T, C] -> [B, channels]: a hidden layer per token, then attention over the tokens."""

    def __init__(self, context_dim: int, channels: int) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.heads = channels // 32 if channels % 32 == 0 else 1
        self.hidden = nn.Linear(context_dim, channels)
        self.query = nn.Parameter(torch.empty(self.heads, channels // self.heads))
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.normal_(self.query)

    def forward(self, context: Tensor) -> Tensor:
        if context.ndim == 2:
            context = context[:, None]
        batch, tokens, _ = context.shape
        h = F.silu(self.hidden(context))
        key, value = (f(h).view(batch, tokens, self.heads, -1).transpose(1, 2) for f in (self.key, self.value))
        query = self.query.to(key.dtype)[None, :, None].expand(batch, -1, -1, -1)
        pooled: Tensor = self.out(F.scaled_dot_product_attention(query, key, value).reshape(batch, -1))
        return pooled


class Modulation(nn.Linear):
    """A linear layer from a network's embedding of noise level and conditions to the shifts, scales, gates of a block.

    A type of its own, as its inputs are not like others: where nothing but the noise level is told, they lie on a curve
    however many there are, and an optimiser that treats all directions alike (Muon) would train it on noise.
    """


class Conditioning(nn.Module):
    """(c_noise, labels, context, augment_labels, condition_dropped) -> embedding [B, channels].

    channels: width of the embedding; label_dim: number of classes, or width of a label vector (0: unconditional);
    context_dim: width of the context (0: none); augment_dim: width of the augment labels (0: none).
    """

    def __init__(self, channels: int, label_dim: int, context_dim: int, augment_dim: int) -> None:
        super().__init__()
        self.label_dim = check_count("label_dim", label_dim, least=0)
        self.context_dim = check_count("context_dim", context_dim, least=0)
        self.augment_dim = check_count("augment_dim", augment_dim, least=0)
        self.features = NoiseFeatures(128)
        self.noise = nn.Linear(self.features.channels, channels)
        self.out = nn.Linear(channels, channels)
        if label_dim:
            self.labels = nn.Linear(label_dim, channels, bias=False)
            # A one-hot row has norm 1, not sqrt(label_dim): the usual initialisation would only whisper the class.
            nn.init.normal_(self.labels.weight, std=0.5)
        if context_dim:
            self.context = ContextPooling(context_dim, channels)
            self.null_context = nn.Parameter(torch.zeros(channels))
        if augment_dim:
            self.augment = nn.Linear(augment_dim, channels, bias=False)

    def forward(
        self,
        c_noise: Tensor,
        labels: Tensor | None,
        context: Tensor | None,
        augment_labels: Tensor | None,
        condition_dropped: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """c_noise [B]; the conditions as in a network's forward, `condition_dropped` checked; dtype: the network's.

        A c_noise that is one number expanded, as in sampling, is embedded once: the result is [1, channels] where there
        is no condition.
        """
        batch = c_noise.shape[0]
        rows = label_rows(labels, self.label_dim, condition_dropped, batch, dtype, c_noise.device)
        context = context_rows(context, self.context_dim, batch, dtype)
        augment_labels = augment_rows(augment_labels, self.augment_dim, batch, dtype, c_noise.device)

        # Whatever is missing or dropped still passes through its layer, as zeros: every parameter takes part in every
        # step, as distributed training needs.
        embedding = self.noise(self.features(distinct(c_noise)).to(dtype))
        if rows is not None:
            embedding = embedding + self.labels(rows)
        if context is not None:
            embedding = embedding + pooled_or_null(self.context(context), self.null_context, condition_dropped)
        if augment_labels is not None:
            embedding = embedding + self.augment(augment_labels)
        return F.silu(self.out(F.silu(embedding)))
