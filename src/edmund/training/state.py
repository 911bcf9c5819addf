"""Everything that a run changes, and its way into a checkpoint and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edmund.model import Model
from edmund.training import ema
from edmund.training.checkpoint import Checkpoint, check_shapes
from edmund.training.ema import PowerFunction
from edmund.training.optimizers import optimizers
from edmund.training.options import TrainingOptions
from edmund.training.running import Running
from edmund.training.snapshots import BUFFERS, group_of
from edmund.training.validation import Best

NETWORK, AVERAGE, BEST, OPTIMIZER = "network", "ema", "best_ema", "optimizer"


class State:
    """The model in training, its average, the optimisers and the counters; `model` and `average` are on `device`.

    mean: the mean of a tensor over all processes. widths: sigma_rel of the power-function averages that are tracked
    beside the one that is delivered.
    """

    def __init__(
        self,
        model: Model,
        options: TrainingOptions,
        device: torch.device,
        mean: Callable[[Tensor], Tensor],
        widths: Sequence[float] = (),
    ) -> None:
        self.model = model.to(device)
        self.average = copy.deepcopy(model)
        self.average.denoiser.requires_grad_(False).eval()
        self.dtype = _computing_dtype(model.denoiser)
        """What the data and the average are computed in: the network's dtype, float32 at least."""
        self.average.denoiser.to(self.dtype)
        self.options = options
        # Kept as lists: to walk through a large network takes as long as to average it.
        self._averages = list(self.average.denoiser.parameters())
        self._averaged = list(model.denoiser.parameters())
        self._tracked = {width: [average.clone() for average in self._averages] for width in widths}
        self._profiles = [options.profile, *map(PowerFunction, widths)]
        self.parameters = [p for p in model.denoiser.parameters() if p.requires_grad]
        self.optimizers = optimizers(model.denoiser, options)
        self.scaler = torch.amp.GradScaler(device.type) if options.precision == "fp16" else None
        self.running = Running(device, mean)
        self.samples_seen = 0
        self.nonfinite = 0
        self.loss: float | None = None
        self.validation_loss: float | None = None
        self.best: Best | None = None
        self.best_average: dict[str, Tensor] | None = None
        self.validated_at: int | None = None

    def update_average(self) -> None:
        """Moves the averages after a step that ended at `samples_seen`."""
        betas = [profile.beta(self.samples_seen, self.options.batch_size) for profile in self._profiles]
        ema.update_all([self._averages, *self._tracked.values()], self._averaged, betas)

    def sync_buffers(self) -> None:
        """Gives the average the network's buffers, which are not averaged."""
        for ours, theirs in zip(self.average.denoiser.buffers(), self.model.denoiser.buffers(), strict=True):
            ours.copy_(theirs)

    def keep_validation(self, loss: float) -> None:
        """Notes a validation loss of the average; the average itself is kept where patience is set and the loss is the
        lowest so far.
        """
        self.validated_at = self.samples_seen
        self.validation_loss = loss if math.isfinite(loss) else None
        if math.isfinite(loss) and (self.best is None or loss < self.best.loss):
            self.best = Best(loss, self.samples_seen)
            kept = self.options.patience is not None
            average = named_tensors(self.average.denoiser)
            self.best_average = {name: t.cpu().clone() for name, t in average.items()} if kept else None

    @property
    def out_of_patience(self) -> bool:
        """Whether the last validation came `patience` samples or more after the best one."""
        if self.options.patience is None or self.best is None or self.validated_at is None:
            return False
        return self.validated_at - self.best.samples_seen >= self.options.patience

    def is_finished(self) -> bool:
        """Whether there is nothing more to train."""
        return self.samples_seen >= self.options.samples or self.out_of_patience

    @torch.no_grad()
    def deliver(self) -> None:
        """Leaves in `model` what the run is for: the best average where patience is set, else the average; in
        evaluation mode.
        """
        self.sync_buffers()
        source = named_tensors(self.average.denoiser)
        if self.options.patience is not None and self.best_average is not None:
            source = self.best_average
        _copy(source, self.model.denoiser)
        self.model.denoiser.eval()

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint."""
        self.sync_buffers()
        found = {
            NETWORK: named_tensors(self.model.denoiser),
            AVERAGE: named_tensors(self.average.denoiser),
            OPTIMIZER: self._optimizer_tensors(),
            **self._tracked_tensors(),
        }
        return found if self.best_average is None else found | {BEST: self.best_average}

    def snapshot(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a snapshot: the tracked averages, and the network's buffers where it has some."""
        found = self._tracked_tensors()
        parameters = dict(self.model.denoiser.named_parameters())
        tensors = named_tensors(self.model.denoiser)
        buffers = {name: tensor for name, tensor in tensors.items() if name not in parameters}
        return found | {BUFFERS: buffers} if buffers else found

    def counters(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint says beside its tensors, JSON-able."""
        return {
            "run": identity,
            "shapes": {name: list(tensor.shape) for name, tensor in named_tensors(self.model.denoiser).items()},
            "best": None if self.best is None else self.best.state(),
            "loss": self.loss,
            "validation_loss": self.validation_loss,
            "validated_at": self.validated_at,
            "nonfinite": self.nonfinite,
            "running": self.running.state(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "torch": str(torch.__version__),
        }

    def check(self, checkpoint: Checkpoint) -> None:
        """InputError where a checkpoint is of another network."""
        check_shapes(checkpoint.state["shapes"], named_tensors(self.model.denoiser), checkpoint.folder)

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this network (`check`) and these options."""
        state = checkpoint.state
        _copy(checkpoint.tensors(NETWORK), self.model.denoiser)
        _copy(checkpoint.tensors(AVERAGE), self.average.denoiser)
        self._load_optimizer(checkpoint.tensors(OPTIMIZER))
        for group, tracked in self._tracked_tensors().items():
            if group in checkpoint.groups:  # else of a run with other widths, which is refused after this
                saved = checkpoint.tensors(group)
                for name, tensor in tracked.items():
                    tensor.copy_(saved[name])
        self.best = None if state["best"] is None else Best(**state["best"])
        self.best_average = checkpoint.tensors(BEST) if BEST in checkpoint.groups else None
        if self.options.patience is not None and self.best_average is None:
            self.best = None  # patience is new to this run: the best so far was not kept, so it starts over from here
        self.loss, self.validation_loss = state["loss"], state["validation_loss"]
        self.validated_at = state["validated_at"]
        self.nonfinite = state["nonfinite"]
        self.running.load_state(state["running"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.samples_seen = checkpoint.samples_seen

    def _tracked_tensors(self) -> dict[str, dict[str, Tensor]]:
        names = [name for name, _ in self.average.denoiser.named_parameters()]
        return {group_of(width): dict(zip(names, tensors, strict=True)) for width, tensors in self._tracked.items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        # By the place in the optimisers, not by name: that is how torch orders its own state.
        return {
            f"{first + index}.{key}": value
            for first, optimizer in self._placed()
            for index, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        for first, optimizer in self._placed():
            groups = optimizer.state_dict()["param_groups"]
            own = {
                index: state[first + index] for group in groups for index in group["params"] if first + index in state
            }
            optimizer.load_state_dict({"state": own, "param_groups": groups})

    def _placed(self) -> Iterator[tuple[int, torch.optim.Optimizer]]:
        """Every optimiser, with the number of parameters of those before it."""
        first = 0
        for optimizer in self.optimizers:
            yield first, optimizer
            first += sum(len(group["params"]) for group in optimizer.param_groups)


def _computing_dtype(module: nn.Module) -> torch.dtype:
    found = next((p.dtype for p in module.parameters()), torch.float32)
    return torch.promote_types(found, torch.float32)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a shared one once."""
    stored = module.state_dict(keep_vars=True)
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    return {name: stored[name] for name in names if name in stored}


def _copy(source: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, tensor in named_tensors(module).items():
        tensor.copy_(source[name])
