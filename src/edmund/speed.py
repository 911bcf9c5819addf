"""A network made to evaluate faster, with the same results within stated tolerances.

- Memory format: convolutions read channels last, which the fast kernels of CPUs and GPUs want; the same sums in another
  order.
- Precision: the network's weights and activations in bf16 or fp16. The preconditioning and the sampler's state stay in
  float64 or float32, and so do c_noise and the frequencies that embed it: half precision rounds F alone, which D holds
  times c_out.
- Normalised weights: a magnitude-preserving network divides its weights by their norms in every call; here once.
- Compilation: torch.compile fuses what stands between the convolutions, and on a CUDA device replays the whole call as
  a CUDA graph. It costs a minute or more at the first call of each shape, and after eight shapes PyTorch compiles no
  more.

Attention is PyTorch's fused one everywhere already.
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn

from edmund.errors import InputError, unknown
from edmund.networks.magnitude_preserving import MPConv

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def training_precision(device: torch.device) -> str:
    """The fastest precision that small networks of vectors train in without harm: "bf16" where the device multiplies
    matrices of it in hardware, else "fp32".
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"
    return "fp32"


def optimise(network: nn.Module, *, precision: str | None = None, compile: bool = False) -> None:
    """Changes `network` in place, for evaluation on the device it is on; see `Model.optimise`."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    if precision is not None and (not isinstance(precision, str) or precision not in PRECISIONS):
        raise unknown("precision", precision, PRECISIONS)
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is 'fp16', which needs a GPU, and the model is on the CPU; use 'bf16' or 'fp32'")
    if compile:
        _check_compiler(device)
    network.eval()
    for module in network.modules():
        if isinstance(module, MPConv):
            module.freeze()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision is not None:
        network.to(PRECISIONS[precision])
    if compile:
        network.compile(dynamic=False, options={"triton.cudagraphs": True} if device.type == "cuda" else None)


def _check_compiler(device: torch.device) -> None:
    """Refuses where torch.compile will not find the compiler that it calls: C++ for a CPU, C (by Triton) for a GPU."""
    if device.type == "cpu":
        own = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        variable, names = "CXX", [os.environ.get("CXX") or own]
    else:
        variable, names = "CC", [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in names):
        raise InputError(
            f"compile is True, but there is no compiler {' or '.join(names)}; install one, or name yours in {variable}"
        )
