from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edmund.errors import InputError
from edmund.training import TrainingOptions
from edmund.training.augmentation import Augmentation
from edmund.training.ema import HalfLife, PowerFunction

WRONG: list[tuple[str, Any]] = [
    *(
        (name, value)
        for name in ("samples", "batch_size", "accumulate", "log_interval")
        for value in (0, -1, 1.5, True)
    ),
    *((name, 0) for name in ("checkpoint_interval", "validation_interval", "keep_checkpoints", "ema_halflife")),
    *((name, 0) for name in ("patience", "preview_interval", "ema_ramp", "clip_norm", "lr", "eps")),
    ("lr", "1e-3"),
    ("lr", float("nan")),
    ("eps", float("inf")),
    ("lr_ramp", -1),
    ("workers", -1),
    ("seed", -1),
    ("seed", 2**63),
    ("weight_decay", -0.1),
    ("label_dropout", 1.1),
    ("label_dropout", -0.1),
    ("augment", 1.1),
    ("augment", "0.1"),
    ("augment_x_flip", 1),
    ("augment_y_flip", "no"),
    *((f"augment_{name}", -0.1) for name in ("scale", "rotation", "anisotropy", "translation")),
    ("augment_rotation", 1.5),
    ("augment_scale", "0.1"),
    ("betas", (0.9,)),
    ("betas", (0.9, 1.0)),
    ("betas", 0.9),
    ("ema_power", 0.5),
    ("ema_widths", 0.1),
    ("ema_widths", (0.1, 0.1)),
    ("ema_snapshot_interval", 0),
    ("lr_ref", 1000),
    ("accumulate", 1000),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        TrainingOptions(**{name: value})
    assert name in str(error.value) and "\n" not in str(error.value)
    assert str(value) in str(error.value) or repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [("optimizer", "adam_w", "adamw"), ("lr_schedule", "cosin", "cosine"), ("precision", "bf-16", "bf16")],
)
def test_an_unknown_choice_names_the_nearest(name: str, value: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"{name}.*{value}.*did you mean '{nearest}'"):
        TrainingOptions(**{name: value})  # type: ignore[arg-type]


def test_choices_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="lr_ref is None"):
        TrainingOptions(lr_schedule="inverse_sqrt")
    with pytest.raises(InputError, match="lr_ramp is 5000"):
        TrainingOptions(lr_schedule="cosine", samples=5000, lr_ramp=5000)


def test_the_run_is_rounded_up_to_whole_steps() -> None:
    assert TrainingOptions(samples=1000, batch_size=300).steps == 4
    assert TrainingOptions(samples=900, batch_size=300).steps == 3


def test_the_profile_of_the_average() -> None:
    assert TrainingOptions(ema_halflife=1000, ema_ramp=None).profile == HalfLife(1000, None)
    assert TrainingOptions(ema_power=0.1).profile == PowerFunction(0.1)


def test_the_length_of_a_run_decides_its_weights_under_a_cosine_alone() -> None:
    assert "samples" not in TrainingOptions().identity()
    assert "samples" not in TrainingOptions(lr_schedule="inverse_sqrt", lr_ref=1000).identity()
    assert TrainingOptions(lr_schedule="cosine").identity()["samples"] == 256_000


def test_widths_and_the_interval_of_their_snapshots_go_together() -> None:
    with pytest.raises(InputError, match=r"ema_widths is \(0\.1,\) and ema_snapshot_interval None"):
        TrainingOptions(ema_widths=(0.1,))
    with pytest.raises(InputError, match=r"ema_widths is \(\) and ema_snapshot_interval 1000"):
        TrainingOptions(ema_snapshot_interval=1000)
    for wrong in (0.5, 0, "0.1"):
        with pytest.raises(InputError, match=f"^ema_widths.* is {wrong!r}"):
            TrainingOptions(ema_widths=(0.1, wrong), ema_snapshot_interval=1000)  # type: ignore[arg-type]
    made = TrainingOptions(ema_widths=[0.1, 0.05], ema_snapshot_interval=1000)  # type: ignore[arg-type]
    assert made.ema_widths == (0.05, 0.1)
    assert made.identity() == TrainingOptions().identity() | {"ema_widths": [0.05, 0.1]}


def test_each_transform_has_a_switch() -> None:
    assert TrainingOptions().augmentation is None
    assert TrainingOptions(augment=0.12).augmentation == Augmentation(0.12)
    for field in dataclasses.fields(Augmentation):
        if field.name != "probability":
            off = False if isinstance(field.default, bool) else 0.0
            made = TrainingOptions(augment=0.3, **{f"augment_{field.name}": off}).augmentation
            assert made == Augmentation(0.3, **{field.name: off})


def test_switches_without_augmentation_decide_nothing() -> None:
    before = TrainingOptions(augment=0.12).identity()
    assert [name for name in before if name.startswith("augment")] == ["augment"]
    assert TrainingOptions(augment_scale=0.5).identity() == TrainingOptions().identity()
    assert TrainingOptions(augment=0.12, augment_scale=0.5).identity() == before | {"augment_scale": 0.5}
