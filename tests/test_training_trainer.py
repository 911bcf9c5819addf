from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import Toy, assert_same_weights, model, options, train, weights

import edmund.training.trainer as trainer_module
from edmund import formulation, noise
from edmund.errors import InputError
from edmund.model import Model, load
from edmund.networks import MLP
from edmund.training import Trainer, TrainingDiverged, TrainingOptions, TrainingResult, fingerprint
from edmund.training.metrics_log import read_metrics
from edmund.training.objective import drop, levels, normals
from edmund.training.order import DataOrder, Part
from edmund.training.processes import Processes
from edmund.training.trainer import _Run
from edmund.training.validation import Validation
from edmund.transform import Identity, Standardise


def lines(directory: Path) -> list[dict[str, Any]]:
    """The metrics without the one that is a time."""
    return [{k: v for k, v in record.items() if k != "samples_per_second"} for record in read_metrics(directory)]


# What training computes -----------------------------------------------------------------------------------------------


def test_the_weights_are_those_of_a_loop_written_by_hand(tmp_path: Path) -> None:
    made, result = train(
        tmp_path, model(dropout=0.0, uncertainty=False), samples=320, lr_schedule="cosine", ema_ramp=0.2, accumulate=3
    )

    other = model(dropout=0.0, uncertainty=False)
    denoiser, toy, order = other.denoiser, Toy(), DataOrder(100, 0)
    parameters = list(denoiser.parameters())
    average = [p.detach().clone() for p in parameters]
    adam = torch.optim.Adam(parameters, lr=1e-3)
    for seen in range(0, 320, 32):
        y, condition = toy.__getitems__(order.indices(Part(seen, seen + 32)))
        keys = noise.keys(0, torch.arange(seen, seen + 32))
        sigma = levels(other.formulation.noise_density, keys, torch.arange(32), 32).float()
        condition = drop(condition, keys, 0.2)
        error = (denoiser(y + sigma[:, None] * normals(keys, y), sigma, **condition) - y) ** 2
        loss = ((sigma**2 + 1) / sigma**2 * error.mean(1)).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        shape = 1 if seen <= 100 else 0.5 * (1 + math.cos(math.pi * (seen - 100) / 220))
        adam.param_groups[0]["lr"] = 1e-3 * min(seen / 100, 1) * shape
        adam.step()
        half_life = min(2000, 0.2 * seen)
        beta = 0.5 ** (32 / half_life) if seen > 0 else 0
        average = [beta * a + (1 - beta) * p.detach() for a, p in zip(average, parameters, strict=True)]

    assert result.samples_seen == result.trained == 320
    for ours, theirs in zip(made.denoiser.parameters(), average, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


class Line:
    """Points on a line, of standard deviation 1/2."""

    shape = (1,)

    def __init__(self, n: int, seed: int) -> None:
        self.y = 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.y[indices], {}


def test_training_reaches_the_loss_of_the_exact_denoiser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Model(MLP(1, channels=32, blocks=1), formulation.EDM(sigma_data=1.0), shape=(1,))
    chosen = TrainingOptions(samples=128_000, batch_size=256, lr=3e-3, lr_ramp=5_000, ema_halflife=10_000)
    validation = Line(4_000, 1)
    result = Trainer(made, Line(20_000, 0), tmp_path, validation=validation, options=chosen, progress=False).run()
    # The exact denoiser of N(0, v) is v / (v + sigma^2) x; here on the data, levels and noise of the validation.
    settings = {"seed": 0, "batch_size": 1, "rank": 0, "world": 1}
    fixed = Validation(validation, Identity(), made.formulation.noise_density, **settings)
    y, sigma = validation.y.double(), fixed.sigma[:, None]
    x = y + sigma * normals(noise.keys(0, -1 - torch.arange(4_000)), y)

    def loss(v: float) -> float:
        return ((sigma**2 + 1) / sigma**2 * (v / (v + sigma**2) * x - y) ** 2).mean().item()

    assert result.validation_loss == pytest.approx(loss(0.25), rel=2e-3)
    assert loss(1.0) > 1.1 * loss(0.25)  # where training starts: c_skip x


def test_the_uncertainty_learns_the_loss_at_each_level(tmp_path: Path) -> None:
    from edmund.networks import Uncertainty

    torch.manual_seed(0)
    made = Model(
        MLP(1, channels=32, blocks=1), formulation.EDM(sigma_data=1.0), shape=(1,), uncertainty=Uncertainty(64)
    )
    chosen = TrainingOptions(samples=128_000, batch_size=256, lr=3e-3, lr_ramp=5_000, ema_halflife=10_000)
    Trainer(made, Line(20_000, 0), tmp_path, options=chosen, progress=False).run()
    sigma = torch.tensor([0.1, 0.3, 1.0])
    exact = (sigma**2 + 1) * 0.25 / (0.25 + sigma**2)
    loaded = load(tmp_path)
    assert torch.allclose(loaded.denoiser.uncertainty(sigma).exp(), exact, rtol=0.15)


def test_accumulation_and_workers_do_not_change_what_is_learned(tmp_path: Path) -> None:
    one, _ = train(tmp_path / "one", model(dropout=0.0))
    for name, changes in {"parts": {"accumulate": 4}, "workers": {"workers": 2}}.items():
        other, _ = train(tmp_path / name, model(dropout=0.0), **changes)
        for ours, theirs in zip(weights(one).values(), weights(other).values(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"ema_power": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1}]
)
def test_choices_change_the_weights_a_little(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain, _ = train(tmp_path / "plain")
    other, _ = train(tmp_path / "other", **changes)
    ours, theirs = (torch.cat([v.flatten() for v in weights(made).values()]) for made in (plain, other))
    assert 0 < (ours - theirs).norm() < 0.1 * theirs.norm()


# The run's folder -----------------------------------------------------------------------------------------------------


def test_the_saved_model_is_the_average(tmp_path: Path) -> None:
    made, _ = train(tmp_path)
    assert_same_weights(load(tmp_path), made)
    assert not made.denoiser.training


def test_metrics_say_what_happened(tmp_path: Path) -> None:
    _, result = train(tmp_path, samples=600)  # 19 steps, the last log interval is cut
    records = read_metrics(tmp_path)
    losses = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation_loss" in record]
    assert [record["samples"] for record in losses] == [96, 192, 288, 384, 480, 576, 608]
    assert [record["samples"] for record in validations] == [160, 320, 480, 608]
    assert losses[0]["lr"] == pytest.approx(1e-3 * 64 / 100) and losses[-1]["lr"] == 1e-3
    assert all(record["nonfinite"] == 0 and record["grad_norm"] > 0 for record in losses)
    assert result.loss == losses[-1]["loss"]
    best = min(validations, key=lambda record: record["validation_loss"])
    assert (result.best_validation_loss, result.best_samples_seen) == (best["validation_loss"], best["samples"])


def test_previews_get_the_average_and_its_sample_count(tmp_path: Path) -> None:
    seen: list[int] = []
    averages: list[Tensor] = []

    def preview(made: Model, samples_seen: int, directory: Path) -> None:
        assert directory == tmp_path and not made.denoiser.training
        seen.append(samples_seen)
        averages.append(torch.cat([p.flatten() for p in made.denoiser.parameters()]))
        made.sample(2, num_steps=2, labels=0)

    made, _ = train(tmp_path, preview=preview, preview_interval=320)
    assert seen == [320, 640]
    assert torch.equal(averages[-1], torch.cat([p.flatten() for p in made.denoiser.parameters()]))
    assert not torch.equal(averages[0], averages[1])


# Interruption and going on --------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts and workers": {"accumulate": 2, "workers": 1},
    "schedules": {"lr_schedule": "inverse_sqrt", "lr_ref": 200, "ema_power": 0.1, "optimizer": "adamw"},
    "cosine, bf16": {"lr_schedule": "cosine", "precision": "bf16"},
    "patience": {"patience": 5_000, "validation_interval": 64},
    "muon": {"optimizer": "muon"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, name: str, number: signal.Signals) -> None:
    def interrupt(made: Model, samples_seen: int, directory: Path) -> None:
        if samples_seen == 224:
            os.kill(os.getpid(), number)

    changes = VARIANTS[name]
    whole, expected = train(tmp_path / "whole", **changes)
    before = signal.getsignal(number)
    _, first = train(tmp_path / "parts", preview=interrupt, preview_interval=32, **changes)
    # The signal came after step 7; the step that was next is finished.
    assert (first.interrupted, first.samples_seen) == (number.name, 256)
    assert signal.getsignal(number) is before
    resumed, second = train(tmp_path / "parts", model(seed=1), **changes)  # its own weights do not matter
    assert (second.interrupted, second.samples_seen, second.trained) == (None, 640, 384)
    assert_same_weights(resumed, whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert (second.loss, second.best_validation_loss) == (expected.loss, expected.best_validation_loss)


def test_an_interrupted_run_leaves_a_model_to_sample(tmp_path: Path) -> None:
    def interrupt(made: Model, samples_seen: int, directory: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    made, _ = train(tmp_path, preview=interrupt, preview_interval=320)
    assert_same_weights(load(tmp_path), made)


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path)[1]))
    thread.start()
    thread.join()
    assert results[0].samples_seen == 640


def test_the_users_random_stream_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train(tmp_path, workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_finished_run_trains_nothing_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, expected = train(tmp_path)
    again = model(seed=1)
    result = Trainer(again, Toy(), tmp_path, validation=Toy(30, seed=1), options=options()).run()
    assert (result.trained, result.samples_seen, result.loss) == (0, 640, expected.loss)
    assert_same_weights(again, whole)
    assert "finished already, 640 samples seen" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes", [{}, {"lr_schedule": "inverse_sqrt", "lr_ref": 300}], ids=["constant", "inverse_sqrt"]
)
def test_a_longer_run_goes_on_from_a_shorter_one_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, _ = train(tmp_path / "long", samples=960, **changes)
    train(tmp_path / "short", samples=640, **changes)
    longer, result = train(tmp_path / "short", samples=960, **changes)
    assert result.trained == 320
    assert_same_weights(longer, whole)


def test_a_cosine_cannot_be_prolonged(tmp_path: Path) -> None:
    train(tmp_path, lr_schedule="cosine")
    with pytest.raises(InputError, match=r"training\.samples is 640 there and 960 here; a cosine schedule"):
        train(tmp_path, lr_schedule="cosine", samples=960)


def test_a_damaged_checkpoint_costs_no_more_than_its_interval(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "damaged")
    newest = max((tmp_path / "damaged/checkpoints").iterdir())
    (newest / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*ema.safetensors has 0 bytes"):
        again, result = train(tmp_path / "damaged", model(seed=1))
    assert result.trained == 128
    assert_same_weights(again, whole)
    assert lines(tmp_path / "damaged") == lines(tmp_path / "whole")


OTHER_RUNS: dict[str, Any] = {
    r"training\.lr is 0\.001 there and 0\.002 here": {"lr": 2e-3},
    r"training\.batch_size is 32 there and 64 here": {"batch_size": 64},
    r"training\.seed is 0 there and 1 here": {"seed": 1},
    r"training\.ema_power is None there and 0\.1 here": {"ema_power": 0.1},
}


@pytest.mark.parametrize("message", OTHER_RUNS)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, message: str) -> None:
    train(tmp_path)
    with pytest.raises(InputError, match=f"holds another run: {message}"):
        train(tmp_path, **OTHER_RUNS[message])


def test_a_run_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    train(tmp_path, optimizer="muon")
    with pytest.raises(InputError, match=r"holds another run: training\.optimizer is 'muon' there and 'adam' here"):
        train(tmp_path)


def test_statistics_may_differ_by_what_rounding_does(tmp_path: Path) -> None:
    there = {"transform": {"transforms": [{"mean": [0.5, -1e-17]}]}, "samples": 3}
    rounded = {"transform": {"transforms": [{"mean": [0.5 * (1 + 1e-15), 1e-17]}]}, "samples": 3}
    fingerprint.check_same(there, rounded, tmp_path)
    other = {"transform": {"transforms": [{"mean": [0.5001, -1e-17]}]}, "samples": 3}
    with pytest.raises(InputError, match=r"transform.transforms is \[.*0.5.* there and \[.*0.5001"):
        fingerprint.check_same(there, other, tmp_path)


def test_another_model_or_data_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path)

    def again(made: Model, dataset: Toy) -> None:
        Trainer(made, dataset, tmp_path, options=options(), progress=False).run()

    with pytest.raises(
        InputError, match=r"'network\.conditioning\.noise\.weight' has shape \[16, \d+\] there and \[24, "
    ):
        again(model(channels=24), Toy())
    with pytest.raises(InputError, match=r"network\.dropout is 0\.1 there and 0\.3 here"):
        again(model(dropout=0.3), Toy())
    with pytest.raises(InputError, match=r"'_uncertainty.*None in this one"):
        again(model(uncertainty=False), Toy())
    with pytest.raises(InputError, match=r"data\.samples is 100 there and 90 here"):
        again(model(), Toy(90))
    with pytest.raises(InputError, match=r"data\.sha256"):
        again(model(), Toy(seed=5))
    other = model()
    changed = formulation.EDM(sigma_data=1.0, P_mean=-0.4)
    other = Model(other.network, changed, shape=(2,), uncertainty=other.uncertainty)
    with pytest.raises(InputError, match=r"formulation\.noise_density\.P_mean is -1\.2 there and -0\.4 here"):
        again(other, Toy())


def test_a_run_from_before_an_argument_of_the_network_goes_on_with_its_default(tmp_path: Path) -> None:
    earlier = model(dropout=0.0)
    del earlier.network.config["dropout"]
    train(tmp_path, earlier)
    with pytest.raises(InputError, match=r"network\.dropout is 0\.0 there and 0\.3 here"):
        train(tmp_path, model(dropout=0.3), samples=960)
    longer, result = train(tmp_path, model(dropout=0.0), samples=960)
    assert result.trained == 320
    whole, _ = train(tmp_path / "whole", model(dropout=0.0), samples=960)
    assert_same_weights(longer, whole)


def test_what_does_not_decide_the_weights_may_change(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", samples=960)
    train(tmp_path / "other", samples=640)
    changed = {"log_interval": 64, "checkpoint_interval": 320, "keep_checkpoints": 1, "validation_interval": 640}
    other, _ = train(tmp_path / "other", samples=960, **changed)
    assert_same_weights(other, whole)


# Early stopping -------------------------------------------------------------------------------------------------------


def overfit(
    directory: Path, samples: int, patience: int | None = 1_000, made: Model | None = None
) -> tuple[Model, Any]:
    """A large network on 12 points, which learns them by heart."""
    made = model(channels=64, dropout=0.0, uncertainty=False) if made is None else made
    chosen = options(
        samples=samples,
        lr=3e-3,
        lr_ramp=0,
        ema_halflife=300,
        validation_interval=160,
        patience=patience,
        label_dropout=0.0,
    )
    trainer = Trainer(made, Toy(12), directory, validation=Toy(60, seed=1), options=chosen, progress=False)
    return made, trainer.run()


def test_early_stopping_restores_the_best_average(tmp_path: Path) -> None:
    made, result = overfit(tmp_path / "stopped", 100_000)
    assert result.stopped_early and result.samples_seen < 100_000
    assert 1_000 <= result.samples_seen - result.best_samples_seen < 1_000 + 160
    assert result.validation_loss > result.best_validation_loss
    # A run that ended at the best moment has the same average.
    short, _ = overfit(tmp_path / "short", result.best_samples_seen, patience=None)
    assert_same_weights(made, short)
    assert_same_weights(load(tmp_path / "stopped"), short)
    # Started again it does nothing, and still has it.
    again, finished = overfit(tmp_path / "stopped", 100_000, made=model(1, 64, 0.0, False))
    assert finished.trained == 0 and finished.stopped_early
    assert_same_weights(again, short)
    # With more patience it goes on.
    _, longer = overfit(tmp_path / "stopped", 100_000, patience=1_500)
    assert longer.trained > 0


def test_patience_needs_validation_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patience is 1000, but there is no validation data"):
        Trainer(model(), Toy(), tmp_path, options=options(patience=1000))


# Trouble --------------------------------------------------------------------------------------------------------------


class Exploding(MLP):
    """A network that gives NaN from its n-th call in training on."""

    def __init__(self, first: int, last: float = math.inf) -> None:
        super().__init__(2, channels=16, blocks=1, label_dim=3)
        self.calls, self.first, self.last = 0, first, last

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += self.training
        bad = self.training and self.first <= self.calls <= self.last
        return super().forward(*args, **kwargs) * (math.nan if bad else 1)


def exploding(first: int, last: float = math.inf) -> Model:
    return Model(Exploding(first, last), formulation.EDM(sigma_data=1.0), shape=(2,))


def test_steps_with_bad_gradients_are_survived_and_counted(tmp_path: Path) -> None:
    made, result = train(tmp_path, exploding(5, 9))
    assert result.nonfinite == 5
    assert sum(record.get("nonfinite", 0) for record in read_metrics(tmp_path)) == 5
    assert all(torch.isfinite(value).all() for value in weights(made).values())
    assert all(math.isfinite(record["loss"]) for record in read_metrics(tmp_path) if record.get("loss") is not None)


def half(directory: Path, samples: int, made: Model) -> tuple[Model, TrainingResult]:
    """fp16 on the CPU, past the door: the scaler works there too, though slowly."""
    trainer = Trainer(made, Toy(), directory, options=options(precision="fp16", samples=samples), progress=False)
    return made, _Run(trainer, Processes(trainer.options, None)).run()


def test_steps_that_half_precision_overflows_are_skipped_and_counted(tmp_path: Path) -> None:
    made = exploding(5, 9)
    _, result = half(tmp_path / "whole", 640, made)
    records = [record for record in read_metrics(tmp_path / "whole") if "loss" in record]
    assert sum(record["skipped"] for record in records) == result.nonfinite == 5
    assert not any("nonfinite" in record for record in records)
    state = json.loads((tmp_path / "whole/checkpoints/00000640/state.json").read_text())["state"]
    assert state["scaler"]["scale"] == 65536 / 2**5


def test_half_precision_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = half(tmp_path / "whole", 640, model())
    half(tmp_path / "parts", 256, model())
    resumed, _ = half(tmp_path / "parts", 640, model(seed=1))
    assert_same_weights(resumed, whole)


def test_a_run_that_keeps_diverging_stops_with_its_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"no finite gradients in the last \d+ steps.*lr \(now 0.001\)") as error:
        train(tmp_path, exploding(11), samples=32 * 1000, log_interval=3200, checkpoint_interval=320)
    assert isinstance(error.value, InputError) and "\n" not in str(error.value)
    assert trainer_module.PATIENCE_STEPS == 50
    assert max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) <= 32 * 60


def test_a_transform_that_breaks_the_data_is_named(tmp_path: Path) -> None:
    made = model()
    made.transform = Standardise(0.0, 1e-39)
    with pytest.raises(InputError, match="data: the transform Standardise makes values"):
        train(tmp_path, made)
    assert not (tmp_path / "checkpoints").exists()


def test_nan_in_the_data_is_named(tmp_path: Path) -> None:
    toy = Toy()
    toy.y[77] = math.nan
    with pytest.raises(InputError, match="data: sample 77 holds nan"):
        Trainer(model(), toy, tmp_path, options=options(), progress=False).run()


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = model()
    before = weights(made)
    with pytest.raises(InputError, match="directory: cannot write to"):
        train(tmp_path / "file", made)
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())


class Other(Toy):
    shape = (3,)


def test_parts_that_do_not_fit_are_refused_at_the_door(tmp_path: Path) -> None:
    def trainer(dataset: Any = None, **changes: Any) -> Trainer:
        extra = {key: changes.pop(key) for key in ("preview", "validation") if key in changes}
        return Trainer(model(), Toy() if dataset is None else dataset, tmp_path, options=options(**changes), **extra)

    with pytest.raises(InputError, match="dataset is empty"):
        trainer(Toy(0))
    with pytest.raises(InputError, match="validation is empty"):
        trainer(validation=Toy(0))
    with pytest.raises(InputError, match=r"dataset has samples of shape \(3,\); the model's is \(2,\)"):
        trainer(Other())
    with pytest.raises(InputError, match="dataset is a list"):
        trainer([1, 2])
    with pytest.raises(InputError, match="preview_interval is 10 and preview is None"):
        trainer(preview_interval=10)
    with pytest.raises(InputError, match=r"label_dropout is 0\.1, but the data set has no labels"):
        Trainer(
            Model(MLP(1), formulation.EDM(sigma_data=1.0), shape=(1,)),
            Line(10, 0),
            tmp_path,
            options=options(label_dropout=0.1),
        )
    needy = model()
    needy.network.null_class = False  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"label_dropout is 0\.2, but MLP needs a class for each sample"):
        Trainer(needy, Toy(), tmp_path, options=options())
    Trainer(needy, Toy(), tmp_path, options=options(label_dropout=0.0))
    many = Toy()
    many.num_classes = 10  # type: ignore[misc]
    with pytest.raises(InputError, match="dataset has 10 classes; the network was built for 3"):
        trainer(many)
    with pytest.raises(InputError, match="precision is 'fp16', which needs a GPU"):
        trainer(precision="fp16").run()


def test_settings_of_the_launcher_that_contradict_the_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(
        InputError, match="precision is 'fp32', but accelerate was launched with mixed precision 'bf16'"
    ):
        train(tmp_path)
