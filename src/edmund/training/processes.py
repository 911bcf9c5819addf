"""One process or several: what the trainer asks of Accelerate."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from edmund.devices import known_device
from edmund.errors import InputError
from edmund.training.options import TrainingOptions

_UNSUPPORTED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")


class Processes:
    """The processes of a run, this one's rank and device. Several are started by `accelerate launch` or `torchrun`, and
    share gradients by DDP.

    device: for a run of one process, where it runs; None: what Accelerate chooses.
    """

    def __init__(self, options: TrainingOptions, device: torch.device | str | None) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        _check_launcher(options)
        # Precision and accumulation are the trainer's own: Accelerate's hold for a whole Python process, and ours for
        # one run.
        self._ddp = DistributedDataParallelKwargs()
        self._accelerator: Any = Accelerator(mixed_precision="no", kwargs_handlers=[self._ddp])
        kind = self._accelerator.distributed_type.value
        if kind in _UNSUPPORTED:
            raise InputError(f"accelerate's distributed type is {kind}; edmund trains with one process or with DDP")
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        if device is not None:
            if self.world > 1:
                raise InputError(f"device is {str(device)!r}; with several processes each has its own, so leave it out")
            self.device = known_device(device)
        if str(self.device) == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def main(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    def share_gradients(self, module: nn.Module, unused: bool) -> nn.Module:
        """The module whose gradients are the mean over all processes. unused: some parameters get no gradient."""
        if self.world == 1:
            return module
        self._ddp.find_unused_parameters = unused
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def unshared(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around every backward pass of a step but the last, where the gradients are to be shared."""
        return nullcontext() if last or self.world == 1 else self._accelerator.no_sync(module)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        reduced: Tensor = self._accelerator.reduce(tensor, reduction="mean") if self.world > 1 else tensor
        return reduced

    def largest(self, value: int) -> int:
        """The largest of a number over all processes."""
        if self.world == 1:
            return value
        return int(self._accelerator.gather(torch.tensor([value], device=self.device)).max())

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()


def _check_launcher(options: TrainingOptions) -> None:
    """Refuses settings of `accelerate launch` that the run's options decide otherwise."""
    wanted = {"fp32": "no"}.get(options.precision, options.precision)
    given = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if given not in ("no", wanted):
        raise InputError(
            f"precision is {options.precision!r}, but accelerate was launched with mixed precision {given!r}"
        )
    parts = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if parts not in ("1", str(options.accumulate)):
        raise InputError(
            f"accumulate is {options.accumulate}, but accelerate was launched with {parts} accumulation steps"
        )
