"""The UNet of the diffusers library, `UNet2DModel`, run through that library as a network of ours.

It takes a noisy image, a time and class labels, and its constructor's arguments are this network's config, so a folder
of ours holds it as any other network. The time is c_noise: the step of a discrete preconditioning, or ln(sigma) / 4.
Networks of score SDEs (`karras_ve`; Karras et al. 2022, Table 1, "VE") are made for images in [0, 1], whose noise level
is half of that of the same images in [-1, 1]: they are told sigma / 2, and return the noise, negative, over it.

diffusers is imported where such a network is built, and only there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edmund.errors import InputError, check_count, unknown
from edmund.networks.conditioning import check_condition, check_input

_DECIDED = ("in_channels", "out_channels", "num_class_embeds")
_TIMES = ("positional", "learned")


class DiffusersUNet2D(nn.Module):
    """diffusers' UNet2DModel: x [B, in_channels, H, W] -> [B, out_channels, H, W], H and W multiples of 2^(levels - 1).

    in_channels: channels of x; out_channels: channels of F, `in_channels` when None (a learned variance: twice as
    many); label_dim: number of classes (diffusers' num_class_embeds); karras_ve: run as diffusers' KarrasVePipeline
    runs it, with c_noise = ln(sigma / 2); unet: UNet2DModel's other arguments by their own names, its defaults where
    left out.

    Raises InputError where diffusers is not installed, and for arguments that make no such network.
    """

    name: ClassVar[str] = "diffusers_unet2d"
    null_class: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        label_dim: int = 0,
        karras_ve: bool = False,
        unet: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("label_dim", label_dim, least=0)
        kind = diffusers_library().UNet2DModel
        given = dict(unet or {})
        known = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", *_DECIDED)]
        for key in given:
            if key not in known:
                raise unknown("unet argument", key, known)
        if given.get("class_embed_type") is not None:
            raise InputError(
                f"unet class_embed_type is {given['class_embed_type']!r}; labels are classes here, so it must be None "
                f"(with num_class_embeds)"
            )
        times = ("fourier", *_TIMES) if karras_ve else _TIMES
        if given.get("time_embedding_type", "positional") not in times:
            # Fourier features are of ln(time), and the output is divided by the time: steps and ln(sigma) have zeros.
            raise unknown("unet time_embedding_type", given["time_embedding_type"], times)
        try:
            self.unet: Any = kind(
                in_channels=in_channels,
                out_channels=in_channels if out_channels is None else check_count("out_channels", out_channels),
                num_class_embeds=label_dim or None,
                **given,
            )
        except InputError:
            raise
        except Exception as error:  # diffusers does not check its arguments: any kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"unet does not make a UNet2DModel: {reason}") from error
        own = self.unet.config
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "label_dim": label_dim,
            "karras_ve": karras_ve,
            "unet": {key: list(own[key]) if isinstance(own[key], tuple) else own[key] for key in known},
        }
        self.in_channels = in_channels
        self.label_dim = label_dim
        self.karras_ve = karras_ve
        self.multiple = 2 ** (len(own["block_out_channels"]) - 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffusersUNet2D:
        # Fourier features' frequencies, as in `FourierFeatures`: `network.to(torch.bfloat16)` would make them others.
        fourier = self.unet.config["time_embedding_type"] == "fourier"
        exact = self.unet.time_proj.weight.detach() if fourier else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if exact is not None and self.unet.time_proj.weight.dtype != exact.dtype:
            cast = self.unet.time_proj.weight
            self.unet.time_proj.weight = nn.Parameter(exact.to(cast.device), requires_grad=cast.requires_grad)
        return self

    def forward(self, x: Tensor, c_noise: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """F [B, out_channels, H, W] of x [B, in_channels, H, W], already times c_in, and c_noise [B] in float32.

        labels [B] int, of which a network with classes needs one for each sample: UNet2DModel has no "none" (-1), so
        on the CPU that is an InputError, and elsewhere, where looking would wait for the device, the output is NaN.
        Guidance is told the class that stands for none, if the network was trained with one:
        `ClassifierFree(denoiser, w, negative={"labels": ...})`.
        """
        check_input(x, c_noise, f"[B, {self.in_channels}, H, W]", self.in_channels, 4)
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise InputError(
                f"x has shape {list(x.shape)}; this network halves height and width {self.multiple.bit_length() - 1} "
                f"times, so both must be multiples of {self.multiple}"
            )
        classes, known = self._classes(labels, x.shape[0])
        if self.karras_ve:
            time = torch.exp(c_noise)
            out: Tensor = self.unet((x + 1) / 2, time, classes).sample
            out = out * time.reshape(-1, 1, 1, 1).to(out.dtype)
        else:
            learned = self.unet.config["time_embedding_type"] == "learned"
            out = self.unet(x, c_noise.to(torch.int64) if learned else c_noise, classes).sample
        return out if known is None else out.where(known.reshape(-1, 1, 1, 1), torch.nan)

    def _classes(self, labels: Tensor | None, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """The labels [batch] as classes that there are, and where they were so (None: everywhere)."""
        if not self.label_dim:
            if labels is not None:
                raise InputError(f"labels of shape {list(labels.shape)} is given, but this network takes none")
            return None, None
        if labels is None:
            raise InputError(f"labels is missing; this network needs one of its {self.label_dim} classes a sample")
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(
                f"labels have dtype {labels.dtype} and shape {list(labels.shape)}; they must be integers [{batch}]"
            )
        labels = check_condition("labels", labels, batch).to(torch.int64)
        known = (labels >= 0) & (labels < self.label_dim)
        if labels.device.type != "cpu" or torch.compiler.is_compiling():
            return labels.where(known, 0), known
        if not bool(known.all()):
            raise InputError(
                f"labels contain {int(labels[~known][0])}; they must be in 0 .. {self.label_dim - 1}: a UNet2DModel "
                f"has no 'none' of its own (in Python, guidance.ClassifierFree takes negative={{'labels': ...}}, the "
                f"class that was trained as none)"
            )
        return labels, None


def diffusers_library() -> Any:
    """The module `diffusers`. Raises InputError where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            "this network is run through the diffusers library, which is not installed: pip install edmund[diffusers]"
        ) from error
    return diffusers
