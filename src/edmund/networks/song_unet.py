"""DDPM++ and NCSN++ (Song et al. 2021), as the EDM paper runs them (Karras et al. 2022, Appendix F.1 and Table 8).

    F(x; c_noise) = conv(SiLU(norm(decoder(encoder(x))))),  every addition times 1/sqrt(2)

Both are one UNet. DDPM++ tells the noise level by positional features, halves and doubles the grid with the box filter
and reads x once. NCSN++ tells it by random Fourier features, resamples with the smoother filter 1, 3, 3, 1, and carries
x itself down beside the encoder, where each level joins it in: by a residual connection that goes on down (what the
paper uses), or by a skip connection of the low-passed x. The decoder may do the same on the way up: an output at every
level, doubled and added ("skip"), instead of the finest level's alone ("standard"). One attention head where a level
attends; in the decoder only in a level's last block.

The paper's last layer of each residual branch starts at a scale of 1e-5; here it starts at zero, so that F = 0 and D =
c_skip x before training. Labels, context and augment labels join the noise features before the embedding's two layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import check_count, unknown
from edmund.networks._blocks import (
    Block,
    LevelledUNet,
    Resample,
    ResampledConv2d,
    Style,
    check_filter,
    group_norm,
    silu,
    zero,
)
from edmund.networks.conditioning import (
    ContextPooling,
    check_dropout,
    pooled_or_null,
)
from edmund.networks.embedding import FourierFeatures, PositionalFeatures

EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")
_GAIN = math.sqrt(0.5)
_EPS = 1e-6


class _FusedDown(ResampledConv2d):
    """A convolution followed by the filter, as one: the frame that the filter reads is convolved too."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[int]) -> None:
        super().__init__(in_channels, out_channels, 3, "down", taps)
        self.frame = len(taps) // 2 - 1

    def forward(self, input: Tensor) -> Tensor:
        channels = self.out_channels
        h = F.conv2d(input, self.weight, padding=1 + self.frame)
        each = self.resample_filter.to(h.dtype).expand(channels, -1, -1, -1)
        return F.conv2d(h, each, self.bias, stride=2, groups=channels)


class SongUNet(LevelledUNet):
    """DDPM++ and NCSN++: x [B, in_channels, H, W] -> [B, out_channels, H, W].

    in_channels: channels of x; resolution: side of the square images that name the levels, a multiple of 2^(levels -
    1) (other sizes are taken too, each side such a multiple); channels: width that the multiples refer to;
    channel_mult: width of each level; embedding_mult: width of the embedding; blocks: residual blocks a level in the
    encoder (one more in the decoder); attention_resolutions: levels with attention, by their side at `resolution`;
    embedding: "positional" or "fourier"; noise_mult: width of the noise features; encoder: "standard", "skip" or
    "residual"; decoder: "standard" or "skip"; resample_filter: symmetric taps, an even number; label_dim: number of
    classes or width of label vectors; context_dim: width of the context; image_channels: channels of the image
    condition; augment_dim: width of the augment labels; dropout: probability inside the blocks; out_channels: channels
    of F, `in_channels` when None.

    The defaults are DDPM++ for CIFAR-10. NCSN++ has embedding="fourier", noise_mult=2, encoder="residual",
    resample_filter=[1, 3, 3, 1].
    """

    name: ClassVar[str] = "song_unet"

    def __init__(
        self,
        in_channels: int,
        resolution: int = 32,
        channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        embedding_mult: int = 4,
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        embedding: str = "positional",
        noise_mult: int = 1,
        encoder: str = "standard",
        decoder: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
        label_dim: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        check_count("in_channels", in_channels)
        check_count("channels", channels)
        check_count("image_channels", image_channels, least=0)
        taps = check_filter(resample_filter)
        for argument, value, known in (
            ("embedding", embedding, EMBEDDINGS),
            ("encoder", encoder, ENCODERS),
            ("decoder", decoder, DECODERS),
        ):
            if value not in known:
                raise unknown(argument, value, known)
        embedding_channels = channels * check_count("embedding_mult", embedding_mult)
        noise_channels = channels * check_count("noise_mult", noise_mult)
        style = Style(
            embedding_channels=embedding_channels,
            dropout=check_dropout(dropout),
            taps=taps,
            scale=False,
            gain=_GAIN,
            eps=_EPS,
            project=True,
            head_channels=None,
        )
        seen = in_channels + image_channels
        super().__init__(
            style, seen, resolution, channels, channel_mult, blocks, attention_resolutions, attend_once=True
        )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "resolution": resolution,
            "channels": channels,
            "channel_mult": list(channel_mult),
            "embedding_mult": embedding_mult,
            "blocks": blocks,
            "attention_resolutions": list(attention_resolutions),
            "embedding": embedding,
            "noise_mult": noise_mult,
            "encoder": encoder,
            "decoder": decoder,
            "resample_filter": taps,
            "label_dim": label_dim,
            "context_dim": context_dim,
            "image_channels": image_channels,
            "augment_dim": augment_dim,
            "dropout": dropout,
            "out_channels": out_channels,
        }
        self.in_channels = in_channels
        self.image_channels = image_channels
        self.encoder = encoder
        self.decoder = decoder
        self.label_dim = check_count("label_dim", label_dim, least=0)
        self.context_dim = check_count("context_dim", context_dim, least=0)
        self.augment_dim = check_count("augment_dim", augment_dim, least=0)
        self.conditional = bool(label_dim or context_dim or image_channels)

        self.map_noise = (
            PositionalFeatures(noise_channels, endpoint=True)
            if embedding == "positional"
            else FourierFeatures(noise_channels)
        )
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise_channels)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False)
        self.map_layer0 = nn.Linear(noise_channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)
        self._add_encoder(seen, channels, taps)
        self._add_decoder(in_channels if out_channels is None else check_count("out_channels", out_channels), taps)
        self._initialise()
        if context_dim:
            self.context = ContextPooling(context_dim, noise_channels)
            self.null_context = nn.Parameter(torch.zeros(noise_channels))

    def _add_encoder(self, seen: int, channels: int, taps: list[int]) -> None:
        """The layers that carry the input of `seen` channels down beside the levels."""
        carried = seen
        for level, name in list(enumerate(self.levels))[1:]:
            width = self.widths[level - 1]
            if self.encoder == "skip":
                self.enc[f"{name}_aux_down"] = Resample("down", taps)
                self.enc[f"{name}_aux_skip"] = nn.Conv2d(seen, width, 1)
            elif self.encoder == "residual":
                self.enc[f"{name}_aux_residual"] = _FusedDown(carried, width, taps)
                carried = width

    def _add_decoder(self, out_channels: int, taps: list[int]) -> None:
        """The layers that make the output, at the finest level or at all."""
        for level, name in reversed(list(enumerate(self.levels))):
            if level and self.decoder == "standard":
                continue
            if level < len(self.levels) - 1 and self.decoder == "skip":
                self.dec[f"{name}_aux_up"] = Resample("up", taps)
            self.dec[f"{name}_aux_norm"] = group_norm(self.widths[level], _EPS)
            self.dec[f"{name}_aux_conv"] = nn.Conv2d(self.widths[level], out_channels, 3, padding=1)

    def _initialise(self) -> None:
        # Zero biases as in the paper, but for the first convolution's: with none, and all branches at zero, an input of
        # exactly zero would stay exactly zero, and nothing could be learnt from it.
        first = self.enc[f"{self.levels[0]}_conv"]
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None and module is not first:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                zero(module.conv1)
                if module.heads:
                    nn.init.xavier_uniform_(module.qkv.weight, gain=math.sqrt(0.2))
                    zero(module.proj)
        for key, module in self.dec.items():
            if key.endswith("_aux_conv") and isinstance(module, nn.Conv2d):
                zero(module)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        labels: Tensor | None = None,
        context: Tensor | None = None,
        image: Tensor | None = None,
        augment_labels: Tensor | None = None,
        condition_dropped: Tensor | None = None,
    ) -> Tensor:
        """F [B, out_channels, H, W] of x [B, in_channels, H, W], already times c_in, and c_noise [B] in float32.

        labels [B] int (-1: none) or [B, label_dim]; context [B, context_dim] or [B, T, context_dim]; image [B,
        image_channels, H, W], used as it is; augment_labels [B, augment_dim] (zero: none); condition_dropped [B] bool:
        these samples see no labels, the learned null context, a zero image. A condition of batch 1 is expanded.
        Whatever does not fit, H and W that the levels cannot halve among it, is an `InputError`.
        """
        x, rows, context, augment_labels, condition_dropped = self.check_inputs(
            x, c_noise, labels, context, image, augment_labels, condition_dropped
        )

        # The published weights have the sines before the cosines.
        cosines, sines = self.map_noise(c_noise).to(x.dtype).chunk(2, dim=1)
        e = torch.cat([sines, cosines], dim=1)
        if rows is not None:
            e = e + self.map_label(rows * math.sqrt(self.label_dim))
        if augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        if context is not None:
            e = e + pooled_or_null(self.context(context), self.null_context, condition_dropped)
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        return self.run_levels(x, e)

    def join(self, name: str, h: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """The level's h with the carried input in it."""
        if self.encoder == "residual":
            h = (h + self.enc[f"{name}_aux_residual"](aux)).mul_(_GAIN)
            return h, h
        if self.encoder == "skip":
            aux = self.enc[f"{name}_aux_down"](aux)
            return h + self.enc[f"{name}_aux_skip"](aux), aux
        return h, aux

    def emit(self, level: int, h: Tensor, out: Tensor | None) -> Tensor | None:
        """The output of the levels down to this one."""
        if level and self.decoder == "standard":
            return None
        name = self.levels[level]
        here: Tensor = self.dec[f"{name}_aux_conv"](silu(self.dec[f"{name}_aux_norm"](h)))
        return here if out is None else self.dec[f"{name}_aux_up"](out) + here
