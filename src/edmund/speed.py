"""A network made to evaluate faster, with the same results within stated tolerances.

- Memory format: convolutions read channels last, which the fast kernels of CPUs and GPUs want; the same sums in another
  order.
- Precision: the network's weights and activations in bf16 or fp16. The preconditioning and the sampler's state stay in
  float64 or float32, and so do c_noise and the frequencies that embed it: half precision rounds F alone, which D holds
  times c_out.
- Normalised weights: a magnitude-preserving network divides its weights by their norms in every call; here once.
- Compilation: torch.compile fuses what stands between the convolutions; on a GPU it replays the whole call as a CUDA
  graph, on a CPU it lays out the weights beforehand. It costs minutes at the first call of each shape.

Attention is PyTorch's fused one everywhere already.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from edmund.errors import InputError, unknown
from edmund.networks.magnitude_preserving import MPConv

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def optimise(network: nn.Module, *, precision: str | None = None, compile: bool = False) -> None:
    """Changes `network` in place, for evaluation on the device it is on; see `Model.optimise`."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    if precision is not None and precision not in PRECISIONS:
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
        options: dict[str, Any] = {"freezing": True} if device.type == "cpu" else {"triton.cudagraphs": True}
        network.compile(dynamic=False, options=options)


def _check_compiler(device: torch.device) -> None:
    if device.type != "cpu":
        return  # triton, which comes with PyTorch there
    known = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in known):
        raise InputError(f"compile is True, but there is none of the compilers {', '.join(known)}; install one")
