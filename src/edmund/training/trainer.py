r"""The training loop.

One step of B samples, n having been seen: data, noise levels and noise of samples n .. n + B - 1 (`order`,
`objective`, `augmentation`), the gradient of their mean loss over all processes and parts (`processes`), the guard and
the clip (`gradients`), the optimisers at the learning rate of n (`learning_rate`), the moving average (`ema`). Each of
these is a function of the options and n, so a checkpoint holds n, the weights, their averages and the optimisers'
moments, and a run that goes on from it does bit for bit (on one CPU process) what it would have done without the
interruption.

Nothing waits for the device but the readings: at log intervals, at checkpoints, and every 50 steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from signal import Signals
from time import perf_counter

import torch
from torch import Tensor, nn

from edmund import noise
from edmund.denoiser import condition_names
from edmund.errors import InputError
from edmund.model import Model
from edmund.training import fingerprint
from edmund.training.augmentation import LABELS
from edmund.training.batches import Batch, TrainingData, batches, read
from edmund.training.checkpoint import CheckpointStore
from edmund.training.gradients import clip, guard
from edmund.training.interruption import Interruption
from edmund.training.metrics_log import MetricsLog
from edmund.training.objective import Objective, clean, drawn, drop, levels, normals, seeded_dropout
from edmund.training.optimizers import check_optimizer
from edmund.training.options import TrainingOptions
from edmund.training.order import DataOrder, Part, PartSampler
from edmund.training.processes import Processes
from edmund.training.report import Report
from edmund.training.running import Reading
from edmund.training.snapshots import FOLDER
from edmund.training.state import State
from edmund.training.validation import Validation

Preview = Callable[[Model, int, Path], None]
"""Called with the model holding the averaged weights, the samples seen and the run's folder."""

PATIENCE_STEPS = 50
"""Steps in a row with non-finite gradients after which a run is given up."""
AGREE_STEPS = 10
"""Steps between two questions of whether another process was told to stop."""


class TrainingDiverged(InputError):
    """The gradients were not finite for many steps in a row; the message says what to change."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended. The model holds the averaged weights and `directory` the saved model.

    loss: the last mean of a log interval; best: the lowest validation loss and the samples seen then. interrupted: the
    signal's name, else None. trained: samples of this call. nonfinite: steps of the whole run whose gradients were not
    finite.
    """

    directory: Path
    samples_seen: int
    trained: int
    seconds: float
    loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    best_samples_seen: int | None
    stopped_early: bool
    interrupted: str | None
    nonfinite: int


class Trainer:
    """Trains `model` on `dataset` and keeps the run in `directory`; `run` starts it, or goes on where it was.

    model: its weights are trained in place and are the averaged ones at the end. dataset, validation: data sets as
    `edmund.data` makes them. preview: called every `options.preview_interval` samples, in the first process. progress:
    talk on stderr. device: where one process trains; None: what Accelerate chooses (the GPU, if there is one).

    The same arguments go on with an interrupted run. A finished one trains nothing more, unless `samples` is larger,
    which a cosine schedule cannot follow. Raises InputError where the parts do not fit each other, or `directory` holds
    another run.
    """

    def __init__(
        self,
        model: Model,
        dataset: TrainingData,
        directory: str | os.PathLike[str],
        *,
        validation: TrainingData | None = None,
        options: TrainingOptions | None = None,
        preview: Preview | None = None,
        progress: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.directory = Path(directory)
        self.validation = validation
        self.options = options if options is not None else TrainingOptions()
        self.preview = preview
        self.progress = progress
        self.device = device
        _check_data("dataset", dataset, model)
        if validation is not None:
            _check_data("validation", validation, model)
        if self.options.patience is not None and validation is None:
            raise InputError(f"patience is {self.options.patience}, but there is no validation data to stop by")
        if (preview is None) != (self.options.preview_interval is None):
            raise InputError(
                f"preview_interval is {self.options.preview_interval} and preview is {preview!r}; give both or neither"
            )
        if self.options.label_dropout > 0:
            _check_droppable(dataset, model, self.options.label_dropout)
        if self.options.augment > 0:
            _check_augmentable(dataset, model, self.options.augment)
        check_optimizer(model.denoiser, self.options)

    def run(self) -> TrainingResult:
        """Trains until `options.samples` have been seen, patience is out, or the process is told to stop."""
        processes = Processes(self.options, self.device)
        parts = self.options.accumulate * processes.world
        if self.options.batch_size < parts:
            raise InputError(
                f"batch_size is {self.options.batch_size}; it is shared by {processes.world} processes in "
                f"{self.options.accumulate} parts each, so it must be at least {parts}"
            )
        if self.options.precision == "fp16" and processes.device.type == "cpu":
            raise InputError("precision is 'fp16', which needs a GPU, and this run is on the CPU; use 'bf16' or 'fp32'")
        return _Run(self, processes).run()


def _check_data(argument: str, dataset: TrainingData, model: Model) -> None:
    if not hasattr(dataset, "__getitems__") or not hasattr(dataset, "shape"):
        raise InputError(f"{argument} is a {type(dataset).__name__}; wrap it with edmund.data.wrap")
    if len(dataset) == 0:
        raise InputError(f"{argument} is empty; it must have at least 1 sample")
    if tuple(dataset.shape) != tuple(model.shape):
        raise InputError(f"{argument} has samples of shape {tuple(dataset.shape)}; the model's is {tuple(model.shape)}")
    classes = getattr(dataset, "num_classes", 0)
    known = getattr(model.network, "config", {}).get("label_dim", classes)
    if classes > known:
        raise InputError(f"{argument} has {classes} classes; the network was built for {known} (label_dim)")


def _check_droppable(dataset: TrainingData, model: Model, label_dropout: float) -> None:
    condition = dataset.__getitems__([0])[1]
    if not condition:
        raise InputError(f"label_dropout is {label_dropout}, but the data set has no labels or conditions")
    if "labels" in condition and not getattr(model.network, "null_class", True):
        raise InputError(
            f"label_dropout is {label_dropout}, but {type(model.network).__name__} needs a class for each sample: it "
            f"has no 'none' to drop labels to; label_dropout must be 0"
        )


def _check_augmentable(dataset: TrainingData, model: Model, augment: float) -> None:
    if len(model.shape) != 3:
        raise InputError(f"augment is {augment}, for images; the data are of shape {tuple(model.shape)}")
    names = condition_names(model.network)
    told = getattr(model.network, "config", {}).get("augment_dim", LABELS)
    if names is not None and "augment_labels" not in names:
        told = 0
    if told != LABELS:
        raise InputError(
            f"augment is {augment}, of which the network is told in {LABELS} augment labels; this network takes "
            f"{told}: build it with augment_dim={LABELS}"
        )
    condition = dataset.__getitems__([0])[1]
    for name in ("image", "augment_labels"):
        if name in condition:
            raise InputError(
                f"augment is {augment}, but the data come with a condition {name!r}, which would not move with them"
            )


class _Run:
    """One call of `Trainer.run`."""

    def __init__(self, trainer: Trainer, processes: Processes) -> None:
        self.trainer = trainer
        self.options = trainer.options
        self.processes = processes
        self.model = trainer.model
        self.directory = trainer.directory
        self.density = self.model.formulation.noise_density
        self.augmentation = self.options.augmentation
        self.identity = fingerprint.of_run(self.model, trainer.dataset, self.options)
        # Only the first process writes the tracked averages, so only that one has them.
        widths = self.options.ema_widths if processes.main else ()
        self.state = State(self.model, self.options, processes.device, processes.mean, widths)
        self.store = CheckpointStore(self.directory, self.options.keep_checkpoints)
        self.snapshots = CheckpointStore(self.directory, keep=None, name=FOLDER)
        self.saved_at: int | None = None
        self.interval_start = (0.0, 0)  # seconds, samples seen
        self.validation = self._validation()
        self.objective = Objective(self.model.denoiser, self.model.formulation, self.options.precision)
        self.average_objective = Objective(self.state.average.denoiser, self.model.formulation, self.options.precision)

    def run(self) -> TrainingResult:
        """Resumes, trains, delivers."""
        began = perf_counter()
        self._resume()
        state, options = self.state, self.options
        first = state.samples_seen
        enabled = self.trainer.progress and self.processes.main
        interrupted = None
        total = options.steps * options.batch_size
        with Report(total, first, enabled) as report:
            if state.is_finished():
                report.say(f"{self.directory}: finished already, {first} samples seen; a larger `samples` goes on")
            else:
                if first > 0:
                    report.say(f"{self.directory}: going on from {first} samples")
                interrupted = self._train(report)
            if state.out_of_patience:
                report.say(f"no better validation loss for {options.patience} samples: stopped early")
            if interrupted is not None:
                report.say(f"{interrupted} at {state.samples_seen} samples: saved; the same command goes on")
        state.deliver()
        if self.processes.main:
            self.model.save(self.directory)
        self.processes.wait()
        return TrainingResult(
            directory=self.directory,
            samples_seen=state.samples_seen,
            trained=state.samples_seen - first,
            seconds=perf_counter() - began,
            loss=state.loss,
            validation_loss=state.validation_loss,
            best_validation_loss=None if state.best is None else state.best.loss,
            best_samples_seen=None if state.best is None else state.best.samples_seen,
            stopped_early=state.out_of_patience,
            interrupted=interrupted,
            nonfinite=state.nonfinite,
        )

    def _validation(self) -> Validation | None:
        if self.trainer.validation is None:
            return None
        return Validation(
            self.trainer.validation,
            self.model.transform,
            self.density,
            seed=self.options.seed,
            batch_size=max(self.options.batch_size // (self.options.accumulate * self.processes.world), 1),
            rank=self.processes.rank,
            world=self.processes.world,
        )

    def _resume(self) -> None:
        checkpoint = self.store.latest(quiet=not self.processes.main)
        found = -1 if checkpoint is None else checkpoint.samples_seen
        if self.processes.largest(found) != found:
            raise InputError(f"directory: {str(self.directory)!r} is not the same folder for all processes")
        if checkpoint is not None:
            self.state.check(checkpoint)  # refuses another network before any other difference
            saved, ours = (fingerprint.completed(run, self.model) for run in (checkpoint.state["run"], self.identity))
            fingerprint.check_same(saved, ours, self.directory)
            self.state.load(checkpoint)
            self.saved_at = checkpoint.samples_seen

    def _train(self, report: Report) -> str | None:
        """The loop; the name of the signal that ended it, if one did."""
        state, options = self.state, self.options
        module = self.processes.share_gradients(self.objective, self._leaves_parameters_unused())
        stream = self._stream()
        self.model.denoiser.train()
        checked = False
        self.interval_start = (perf_counter(), state.samples_seen)
        with Interruption() as interruption, self._metrics() as log:
            if log is not None:
                self.snapshots.discard_after(state.samples_seen)
            while not state.is_finished():
                self._step(module, stream)
                report.advance(options.batch_size)
                stop = self._asked_to_stop(interruption)
                if not checked or self._crossed(options.batch_size * PATIENCE_STEPS):
                    self._check(state.running.read())
                    checked = True
                if self._crossed(options.log_interval):
                    self._log(log, report)
                if self._crossed(options.validation_interval):
                    self._validate(log, report)
                if state.is_finished():
                    # The last interval may be a part of one, and the last weights are to have a validation loss.
                    self._log(log, report)
                    self._validate(log, report)
                # Before the checkpoint: a run that goes on from there does not come back for it.
                if options.ema_widths and (state.is_finished() or self._crossed(options.ema_snapshot_interval)):
                    self._snapshot(log)
                if state.is_finished() or stop is not None or self._crossed(options.checkpoint_interval):
                    self._save(log)
                if self._crossed(options.preview_interval):
                    self._show_preview()
                if stop is not None and not state.is_finished():
                    return stop
        return None

    def _stream(self) -> Iterator[Batch]:
        """This process's batches from here to the end of the run."""
        options, processes = self.options, self.processes
        order = DataOrder(len(self.trainer.dataset), options.seed)
        sampler = PartSampler(
            order,
            self.state.samples_seen,
            options.samples,
            options.batch_size,
            options.accumulate,
            processes.rank,
            processes.world,
        )
        return batches(
            self.trainer.dataset, sampler, seed=options.seed, workers=options.workers, device=processes.device
        )

    def _step(self, module: nn.Module, stream: Iterator[Batch]) -> None:
        state, options = self.state, self.options
        seen = state.samples_seen
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate(seen)
            optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over the processes; with this factor it is the mean over the batch.
        factor = self.processes.world / options.batch_size
        step_loss = torch.zeros((), device=self.processes.device, dtype=state.dtype)
        for count, batch in enumerate(islice(stream, options.accumulate), start=1):
            with self.processes.unshared(module, last=count == options.accumulate):
                loss = self._loss(module, batch, seen, factor)
                (loss if state.scaler is None else state.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
            step_loss += loss.detach()
        if state.scaler is not None:
            for optimizer in state.optimizers:
                state.scaler.unscale_(optimizer)
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        norm, finite = guard(gradients)
        if options.clip_norm is not None:
            clip(gradients, norm, finite, options.clip_norm)
        for optimizer in state.optimizers:
            if state.scaler is None:
                optimizer.step()
            else:
                state.scaler.step(optimizer)
        if state.scaler is not None:
            state.scaler.update()
        state.running.add_step(step_loss, norm, finite)
        state.samples_seen = seen + options.batch_size
        state.update_average()

    def _loss(self, module: nn.Module, batch: Batch, seen: int, factor: float) -> Tensor:
        """The summed loss of a part, times `factor`; the batch that it is a part of starts at `seen`."""
        state, options, device = self.state, self.options, self.processes.device
        index = torch.arange(batch.part.start, batch.part.stop)
        keys = noise.keys(options.seed, index)
        x = clean(batch, self.model.transform, state.dtype)
        state.running.add_data(x)
        sigma = levels(self.density, keys, index - seen, options.batch_size).to(device, state.dtype, non_blocking=True)
        condition = drop(drawn(self.trainer.dataset, batch.condition, keys), keys, options.label_dropout)
        if self.augmentation is not None:
            x, condition["augment_labels"] = self.augmentation(x, keys)
        with seeded_dropout(device, options.seed, batch.part):
            loss: Tensor = module(x, sigma, normals(keys, x), condition, factor)
        return loss

    def _leaves_parameters_unused(self) -> bool:
        """Whether some parameters get no gradient from this data (a network with labels, data without); DDP must be
        told.
        """
        if self.processes.world == 1:
            return False
        batch = Batch(Part(0, 1), *read(self.trainer.dataset, [0])).to(self.processes.device)
        loss = self._loss(self.objective, batch, 0, 1.0)
        gradients = torch.autograd.grad(loss, self.state.parameters, allow_unused=True)
        return any(gradient is None for gradient in gradients)

    def _metrics(self) -> AbstractContextManager[MetricsLog | None]:
        """The log, which only the first process writes."""
        return MetricsLog(self.directory, self.state.samples_seen) if self.processes.main else nullcontext()

    def _crossed(self, interval: int | None) -> bool:
        """Whether the last step came to or over a multiple of `interval`."""
        if interval is None:
            return False
        seen = self.state.samples_seen
        return seen // interval > (seen - self.options.batch_size) // interval

    def _asked_to_stop(self, interruption: Interruption) -> str | None:
        """The signal that this process received or, with several, one that any of them did; all get the same answer."""
        number = 0 if interruption.received is None else int(interruption.received)
        if self.processes.world > 1:
            asked = self._crossed(self.options.batch_size * AGREE_STEPS)
            number = self.processes.largest(number) if asked else 0
        return Signals(number).name if number else None

    def _check(self, reading: Reading) -> None:
        """Stops a run whose data or gradients are not finite."""
        seen = self.state.samples_seen
        if reading.bad_data:
            name = type(self.model.transform).__name__
            raise InputError(
                f"data: the transform {name} makes values of it (before sample {seen} of the run) that are not finite"
            )
        if reading.consecutive >= PATIENCE_STEPS:
            kept = "none was saved" if self.saved_at is None else f"the last is at {self.saved_at} samples"
            raise TrainingDiverged(
                f"training diverged: no finite gradients in the last {reading.consecutive} steps, up to sample {seen}; "
                f"try a lower lr (now {self.options.lr}), clip_norm, or precision fp32 (now {self.options.precision}); "
                f"checkpoints: {kept}"
            )

    def _log(self, log: MetricsLog | None, report: Report) -> None:
        """Closes an interval, if there were steps since the last one."""
        state = self.state
        now, (start, first) = perf_counter(), self.interval_start
        reading = state.running.read()
        self._check(reading)
        if reading.steps == 0:
            return
        state.nonfinite += reading.nonfinite
        state.loss = reading.loss
        state.running.reset()
        self.interval_start = (now, state.samples_seen)
        report.show(loss=reading.loss)
        if log is not None:
            log.add(
                state.samples_seen,
                loss=reading.loss,
                lr=state.optimizers[0].param_groups[0]["lr"],
                grad_norm=reading.grad_norm,
                **{"nonfinite" if state.scaler is None else "skipped": reading.nonfinite},
                samples_per_second=(state.samples_seen - first) / (now - start),
            )

    def _validate(self, log: MetricsLog | None, report: Report) -> None:
        """The validation loss of the average, if there is validation data and it was not measured here already."""
        state = self.state
        if self.validation is None or state.validated_at == state.samples_seen:
            return
        state.sync_buffers()
        share = self.validation.total(self.average_objective, self.processes.device, state.dtype)
        loss = float(self.processes.mean(share)) * self.processes.world
        state.keep_validation(loss)
        report.show(validation=state.validation_loss)
        if log is not None and state.best is not None:
            log.add(
                state.samples_seen,
                validation_loss=state.validation_loss,
                best_validation_loss=state.best.loss,
                best_samples=state.best.samples_seen,
            )

    def _save(self, log: MetricsLog | None) -> None:
        """A checkpoint, unless there is one here already."""
        state = self.state
        if self.saved_at == state.samples_seen:
            return
        self._check(state.running.read())
        counters = state.counters(self.identity)
        if log is not None:
            log.sync()
            self.store.save(state.samples_seen, state.groups(), counters)
        self.saved_at = state.samples_seen

    def _snapshot(self, log: MetricsLog | None) -> None:
        """The tracked averages, for reconstruction."""
        self._check(self.state.running.read())
        if log is not None:
            self.snapshots.save(self.state.samples_seen, self.state.snapshot(), {})

    def _show_preview(self) -> None:
        if self.trainer.preview is None or not self.processes.main:
            return
        self.state.sync_buffers()
        self.trainer.preview(self.state.average, self.state.samples_seen, self.directory)
