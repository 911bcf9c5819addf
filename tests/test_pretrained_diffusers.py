"""Folders of diffusers pipelines: the same images, levels and trajectories as the library that wrote them."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import edmund
from edmund import data, formulation, grid, guidance, model, networks, preconditioning, pretrained, process, samplers
from edmund.denoiser import Discrete
from edmund.errors import InputError
from edmund.training import Trainer, TrainingOptions

diffusers = pytest.importorskip("diffusers")
F64 = torch.float64
TINY = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SHAPE = (2, 8, 8)
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def unet(seed: int = 0, **changes: Any) -> Any:
    """A small UNet whose every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        made = diffusers.UNet2DModel(**TINY | changes).eval()
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def ddim(*args: Any, **options: Any) -> Any:
    """With the steps where a model here has them."""
    return diffusers.DDIMScheduler(*args, **({"timestep_spacing": "linspace"} | options))


def saved(folder: Path, scheduler: Any, network: Any = None) -> tuple[Path, Any]:
    """The folder of a pipeline, and its network."""
    network = unet() if network is None else network
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder, safe_serialization=True)
    return folder, network


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with nothing to leave out."""
    return saved(tmp_path_factory.mktemp("original") / "pipeline", ddim(clip_sample=False))[0]


@pytest.fixture
def plain(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(original, tmp_path / "pipeline"))


def loaded(folder: Path, left_out: int = 0) -> edmund.Model:
    """The folder's model, which has to tell of this many things left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", pretrained.LeftOut)
        made = pretrained.load(folder)
    told = [warning for warning in caught if warning.category is pretrained.LeftOut]
    assert len(told) == left_out, [str(warning.message) for warning in told]
    return made


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | values).items() if value != "absent"}))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        pretrained.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


SAMPLERS = {
    "DDPMScheduler": (samplers.DDIM(eta=1.0), 1000),
    "DDIMScheduler": (samplers.DDIM(), 50),
    "HeunDiscreteScheduler": (samplers.Heun(), 50),
    "EulerDiscreteScheduler": (samplers.Euler(), 50),
    "DPMSolverMultistepScheduler": (samplers.DPMpp2M(), 50),
}


@pytest.mark.parametrize(
    ("name", "karras"),
    [(name, False) for name in SAMPLERS] + [(name, True) for name in SAMPLERS if not name.startswith("DD")],
)
def test_schedulers_of_time_steps(tmp_path: Path, name: str, karras: bool) -> None:
    kind = getattr(diffusers, name)
    options: dict[str, Any] = {"beta_schedule": "scaled_linear"}
    options |= {"clip_sample": False} if name.startswith("DD") else {"use_karras_sigmas": karras}
    options |= {"timestep_spacing": "linspace"} if name == "DDIMScheduler" else {}
    folder, _ = saved(tmp_path / "pipeline", kind(**options))
    made = loaded(folder)
    parts, theirs = made.formulation, kind(**options)
    sampler, num_steps = SAMPLERS[name]
    assert parts.sampler == sampler and parts.name == "Discrete"
    # Rounded to the network's levels, the steps of Karras et al. meet at low noise: as many as stay apart.
    assert (40 < parts.num_steps <= num_steps) if karras else (parts.num_steps == num_steps)
    steps = parts.preconditioning.steps
    assert (steps.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-6
    assert (steps.beta_start, steps.beta_end) == (theirs.config.beta_start, theirs.config.beta_end)
    assert parts.grid == (grid.EDM() if karras else grid.Discrete(steps))
    assert (made.shape, made.num_classes) == (SHAPE, 0)
    out = made.sample(2, num_steps=4, progress=False)
    assert isinstance(out, Tensor) and out.shape == (2, *SHAPE) and bool(out.isfinite().all())


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "sigmoid", "trained", "zero_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_image_is_that_of_diffusers(tmp_path: Path, schedule: str, prediction: str) -> None:
    """D at a level is the `pred_original_sample` of diffusers' own step from there."""
    options: dict[str, Any] = {"beta_schedule": schedule}
    if schedule == "trained":
        options = {"trained_betas": torch.linspace(1e-3, 0.1, 40).tolist(), "num_train_timesteps": 40}
    elif schedule == "zero_snr":
        options = {"rescale_betas_zero_snr": True}
    scheduler = diffusers.DDPMScheduler(**options, prediction_type=prediction, clip_sample=False)
    folder, network = saved(tmp_path / "pipeline", scheduler)
    made = loaded(folder)
    steps = made.formulation.preconditioning.steps
    count = len(steps.levels)
    assert count == scheduler.config.num_train_timesteps - (schedule == "zero_snr")
    assert (steps.alphas_cumprod - scheduler.alphas_cumprod[:count]).abs().max() < 1e-6
    # diffusers keeps its levels in float32, to which 1 - abar has few digits at low noise: the same formulas on ours.
    scheduler.alphas_cumprod = steps.alphas_cumprod
    plain = Discrete(network, prediction, steps.alphas_cumprod)
    for step in (0, 1, count // 3, count - 20, count - 1):
        x = randn(3, *SHAPE, seed=step)  # in diffusers' scale: variance one
        abar, sigma = steps.alphas_cumprod[step], steps.levels[step]
        with torch.no_grad():
            raw = network(x.float(), step).sample
            theirs = scheduler.step(raw.double(), step, x).pred_original_sample
            ours = made.denoiser(x / abar.sqrt(), sigma)
            assert torch.equal(ours, plain(x / abar.sqrt(), sigma))
        # Of an image at the variance of the noisy one: D of a noise prediction is a difference of large numbers.
        assert ((ours - theirs) * abar.sqrt()).abs().max() < 1e-6


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_trajectory_is_diffusers_ddim(tmp_path: Path, prediction: str) -> None:
    scheduler = ddim(prediction_type=prediction, clip_sample=False, timestep_spacing="linspace")
    folder, network = saved(tmp_path / "pipeline", scheduler)
    made = loaded(folder)
    scheduler.alphas_cumprod = made.formulation.preconditioning.steps.alphas_cumprod
    # Its step back is a constant number of steps: here from 999, 899, ..., 99 to the end.
    scheduler.set_timesteps(10)
    timesteps = torch.arange(999, 0, -100)
    latents = randn(2, *SHAPE)
    levels = made.formulation.preconditioning.steps.levels
    ours = edmund.sample(
        made.denoiser, (2, *SHAPE), sampler="ddim", grid=grid.Fixed(levels[timesteps]), latents=latents, progress=False
    )
    x = latents * (1 - scheduler.alphas_cumprod[999]).sqrt()
    with torch.no_grad():
        for step in timesteps:
            raw = network(x.float(), step).sample.double()
            x = scheduler.step(raw, int(step), x, eta=0.0).prev_sample
    assert apart(ours, x) < 1e-5


def test_the_default_trajectory_is_diffusers_heun(tmp_path: Path) -> None:
    """All of it by default: levels, spacing, solver."""
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="scaled_linear")
    folder, network = saved(tmp_path / "pipeline", scheduler)
    made = loaded(folder)
    latents = randn(2, *SHAPE)
    ours = edmund.sample(made.denoiser, (2, *SHAPE), num_steps=10, latents=latents, progress=False)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == torch.linspace(999, 0, 10).repeat_interleave(2).tolist()[1:]
    x = latents * scheduler.sigmas[0]
    with torch.no_grad():
        for step in scheduler.timesteps:
            raw = network(scheduler.scale_model_input(x, step).float(), step).sample.double()
            x = scheduler.step(raw, step, x).prev_sample
    assert apart(ours, x) < 1e-5


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_edm(tmp_path: Path, schedule: str) -> None:
    """D, the levels and the whole trajectory of diffusers' EDM-Euler."""
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.7, sigma_max=40.0, rho=5.0, sigma_schedule=schedule)
    folder, network = saved(tmp_path / "pipeline", scheduler)
    made = loaded(folder)
    assert made.formulation.preconditioning == preconditioning.EDM(0.7)
    assert made.formulation.sampler == samplers.Euler()
    latents = randn(2, *SHAPE)
    ours = edmund.sample(
        made.denoiser, (2, *SHAPE), num_steps=12, latents=latents, progress=False, return_trajectory=True
    )
    assert isinstance(ours, edmund.Trajectory)
    scheduler.set_timesteps(12)
    torch.testing.assert_close(ours.sigmas, scheduler.sigmas.double(), rtol=1e-6, atol=0)
    x = latents * 40.0
    with torch.no_grad():
        for i, time in enumerate(scheduler.timesteps):
            raw = network(scheduler.scale_model_input(x, time).float(), time).sample.double()
            step = scheduler.step(raw, time, x)
            assert apart(ours.denoised[i], step.pred_original_sample) < 1e-5
            x = step.prev_sample
    assert apart(ours.samples, x) < 1e-5
    folder, _ = saved(tmp_path / "dpm", diffusers.EDMDPMSolverMultistepScheduler())
    assert loaded(folder).formulation.sampler == samplers.DPMpp2M()


@pytest.mark.parametrize("times", ["fourier", "positional"])
def test_karras_ve(tmp_path: Path, times: str) -> None:
    """D is what diffusers' KarrasVePipeline makes of its network: images in [0, 1], told half the noise level."""
    deprecated = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_karras_ve")
    scheduler = deprecated.KarrasVeScheduler(sigma_max=50.0, s_churn=40.0)
    network = unet(time_embedding_type=times, center_input_sample=True)
    folder, _ = saved(tmp_path / "pipeline", ddim(), network)
    scheduler.save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", "KarrasVeScheduler"])
    made = loaded(folder)
    parts = formulation.VE(0.02, 50.0)
    assert made.formulation.preconditioning == parts.preconditioning and made.formulation.grid == parts.grid
    assert made.formulation.sampler == samplers.Heun(samplers.Churn(40.0, 0.05, 50.0, 1.007))
    for level in (0.02, 0.7, 2.0, 50.0):
        sigma, x = torch.tensor(level, dtype=F64), level * randn(2, *SHAPE)
        with torch.no_grad():
            raw = level / 2 * network(((x + 1) / 2).float(), sigma.float() / 2).sample
            theirs = scheduler.step(raw.double(), sigma, sigma / 2, x).pred_original_sample
            assert apart(made.denoiser(x, sigma), theirs) < 1e-5
    again = model.load(made.save(tmp_path / "model"))
    assert torch.equal(again.denoiser(x, sigma), made.denoiser(x, sigma))


@pytest.fixture(scope="module")
def one(original: Path) -> edmund.Model:
    """Its model."""
    return loaded(original)


@pytest.mark.parametrize("sampler", [name for name in samplers.named() if name not in ("adaptive", "dpm_fast")])
def test_every_sampler(one: edmund.Model, sampler: str) -> None:
    out = one.sample(1, sampler=sampler, num_steps=5, progress=False)
    assert isinstance(out, Tensor) and bool(out.isfinite().all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_saved_and_loaded(tmp_path: Path, prediction: str) -> None:
    network = unet(num_class_embeds=3)
    folder, _ = saved(tmp_path / "p", ddim(prediction_type=prediction, clip_sample=False), network)
    made = loaded(folder)
    assert isinstance(made.network, networks.DiffusersUNet2D) and made.num_classes == 3
    again = model.load(made.save(tmp_path / "model"))
    assert again.formulation == made.formulation and again.network.config == made.network.config
    labels = torch.tensor([2, 0])
    one, other = (each.sample(2, labels=labels, num_steps=3, progress=False) for each in (made, again))
    assert torch.equal(one, other)
    assert not torch.equal(one, made.sample(2, labels=labels.flip(0), num_steps=3, progress=False))


def test_labels_are_diffusers_classes(original: Path, tmp_path: Path) -> None:
    network = unet(num_class_embeds=4)
    folder, _ = saved(tmp_path / "pipeline", ddim(clip_sample=False), network)
    made = loaded(folder)
    sigma, x = made.formulation.preconditioning.steps.levels[300], randn(3, *SHAPE, dtype=torch.float32)
    labels = torch.tensor([0, 3, 1])
    with torch.no_grad():
        raw = network(x / (1 + sigma.float() ** 2).sqrt(), 300, labels).sample
        torch.testing.assert_close(
            made.denoiser(x, sigma, labels=labels), x - sigma.float() * raw, rtol=1e-5, atol=1e-5
        )
        guided = guidance.ClassifierFree(made.denoiser, 2.0, negative={"labels": torch.tensor([3])})
        D, none = (made.denoiser(x, sigma, labels=torch.tensor([k])) for k in (1, 3))
        torch.testing.assert_close(guided(x, sigma, labels=torch.tensor([1])), none + 2 * (D - none))
    for given, tells in (
        ({"labels": torch.tensor([-1])}, "labels contain -1; they must be in 0 .. 3"),
        ({"labels": torch.tensor([4])}, "labels contain 4"),
        ({"labels": torch.ones(3, 4)}, r"labels have dtype torch.float32 and shape \[3, 4\]"),
        ({}, "labels is missing; this network needs one of its 4 classes"),
    ):
        with pytest.raises(InputError, match=tells):
            made.denoiser(x, sigma, **given)
    with pytest.raises(InputError, match="unconditional"):
        loaded(original).sample(1, labels=torch.tensor([1]), num_steps=2, progress=False)


def test_labels_without_a_none_are_not_dropped_in_training(tmp_path: Path) -> None:
    network = networks.DiffusersUNet2D(2, label_dim=3, unet=_rest())
    made = model.Model(network, formulation.EDM(sigma_data=1.0), shape=SHAPE)
    dataset = data.wrap([(torch.zeros(SHAPE), label) for label in range(3)])
    with pytest.raises(InputError, match=r"label_dropout is 0\.1, but DiffusersUNet2D needs a class for each sample"):
        Trainer(made, dataset, tmp_path, options=TrainingOptions(label_dropout=0.1))
    Trainer(made, dataset, tmp_path, options=TrainingOptions(label_dropout=0.0))


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_class_that_is_not_there_is_nan_where_looking_would_wait(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # nor is there looking in a compiled network
    network = networks.DiffusersUNet2D(2, label_dim=3, unet=_rest()).to(device).eval()
    x = randn(2, *SHAPE, dtype=torch.float32).to(device)
    out = network(x, torch.ones(2, device=device), labels=torch.tensor([bad, 1], device=device))
    assert bool(out[0].isnan().all())
    alone = network(x[1:], torch.ones(1, device=device), labels=torch.tensor([1], device=device))
    torch.testing.assert_close(out[1:], alone, rtol=1e-4, atol=1e-5)


def _rest() -> dict[str, Any]:
    """TINY's arguments beside the channels."""
    return {key: value for key, value in TINY.items() if key not in ("in_channels", "out_channels")}


def test_sizes() -> None:
    network = networks.DiffusersUNet2D(2, unet=_rest())
    assert network(torch.zeros(1, 2, 6, 10), torch.ones(1)).shape == (1, 2, 6, 10)
    with pytest.raises(
        InputError, match=r"x has shape \[1, 2, 8, 7\].*halves height and width 1 times.*multiples of 2"
    ):
        network(torch.zeros(1, 2, 8, 7), torch.ones(1))
    with pytest.raises(InputError, match=r"x has shape \[1, 3, 8, 8\]; this network takes \[B, 2, H, W\]"):
        network(torch.zeros(1, 3, 8, 8), torch.ones(1))
    for unet_, tells in (
        ({"layers": 2}, "unet argument: 'layers' is not known; did you mean 'layers_per_block'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type: 'fourier'"),
        ({"down_block_types": ["Nothing"] * 2}, "does not make a UNet2DModel"),
        ({"block_out_channels": [8]}, "does not make a UNet2DModel"),
    ):
        with pytest.raises(InputError, match=tells):
            networks.DiffusersUNet2D(2, unet=_rest() | unet_)


def test_a_learned_variance(tmp_path: Path) -> None:
    folder, network = saved(tmp_path / "pipeline", ddim(clip_sample=False), unet(out_channels=4))
    made = loaded(folder)
    sigma, x = made.formulation.preconditioning.steps.levels[40], randn(2, *SHAPE, dtype=torch.float32)
    with torch.no_grad():
        raw = network(x / (1 + sigma.float() ** 2).sqrt(), 40).sample
        D, extra = made.denoiser.with_extra(x, sigma)
    torch.testing.assert_close(D, x - sigma.float() * raw[:, :2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(extra, raw[:, 2:], rtol=1e-5, atol=1e-6)


def test_older_folders_and_half_precision(plain: Path, tmp_path: Path) -> None:
    """Everything in one folder, attention's layers by their old names, weights in float16, another scheduler's keys."""
    file = plain / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    flat = tmp_path / "flat"
    flat.mkdir()
    for new, was in old.items():
        state = {name.replace(new, was): value for name, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    save_file({name: value.half() for name, value in state.items()}, flat / file.name)
    for path in (plain / "model_index.json", plain / "unet/config.json", plain / "scheduler/scheduler_config.json"):
        (flat / path.name).write_text(path.read_text())
    change(flat / "scheduler_config.json", skip_prk_steps=True, set_alpha_to_one="absent")
    made, whole = loaded(flat), loaded(plain)
    assert {parameter.dtype for parameter in made.network.parameters()} == {torch.float32}
    x, sigma = randn(2, *SHAPE), torch.tensor(1.0, dtype=F64)
    assert apart(made.denoiser(x, sigma), whole.denoiser(x, sigma)) < 1e-3


def test_learned_times(tmp_path: Path) -> None:
    network = unet(time_embedding_type="learned", num_train_timesteps=30)
    folder, _ = saved(tmp_path / "pipeline", ddim(30, clip_sample=False), network)
    made = loaded(folder)
    assert made.formulation.num_steps == 30
    sigma, x = made.formulation.preconditioning.steps.levels[29], randn(2, *SHAPE, dtype=torch.float32)
    with torch.no_grad():
        raw = network(x / (1 + sigma.float() ** 2).sqrt(), torch.tensor([29])).sample
        torch.testing.assert_close(made.denoiser(x, sigma), x - sigma.float() * raw, rtol=1e-5, atol=1e-6)
    change(folder / "scheduler/scheduler_config.json", num_train_timesteps=31)
    assert "num_train_timesteps is 30" in refused(folder)


def test_few_levels_under_karras_steps(tmp_path: Path) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(20, use_karras_sigmas=True)
    made = loaded(saved(tmp_path / "pipeline", scheduler)[0])
    assert 2 <= made.formulation.num_steps < 20
    assert isinstance(made.sample(1, progress=False), Tensor)


@pytest.mark.parametrize(
    ("scheduler", "tells"),
    [
        (diffusers.DDPMScheduler(), [r"clamps D to \[-1.0, 1.0\].*StaticThresholding\(model.denoiser, 1.0\)"]),
        (ddim(thresholding=True), [r"sample_max_value 1.0\).*StaticThresholding\(model.denoiser, 1.0\)"]),
        (
            ddim(thresholding=True, sample_max_value=2.0),
            [r"DynamicThresholding\(model.denoiser, 0.995\) to do so, but for .* sample_max_value 2.0"],
        ),
        (diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_large"), ["variance_type is 'fixed_large'"]),
        (diffusers.DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), []),
        (diffusers.DDPMScheduler(clip_sample=False, steps_offset=1), [r"elsewhere \(steps_offset 1\)"]),
        (ddim(clip_sample=False, steps_offset=1), []),
        (
            diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
            [r"\(set_alpha_to_one False, steps_offset 1, timestep_spacing 'leading'\): .* from 157.407 over 0.0100005"],
        ),
        (
            diffusers.DPMSolverMultistepScheduler(
                solver_order=3, algorithm_type="sde-dpmsolver++", lambda_min_clipped=-5.1, lower_order_final=False
            ),
            [
                r"elsewhere \(lambda_min_clipped -5.1\)",
                "solver_order is 3, algorithm_type is 'sde-dpmsolver.*', lower_order_final is False, which the model",
            ],
        ),
        (diffusers.DPMSolverMultistepScheduler(euler_at_final=True), ["euler_at_final is True"]),
        (
            diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.1, sigma_max=50.0),
            [r"elsewhere \(sigma_min 0.1, sigma_max 50.0\)"],
        ),
        (diffusers.EulerDiscreteScheduler(interpolation_type="log_linear"), ["interpolation_type 'log_linear'"]),
        (diffusers.EulerDiscreteScheduler(beta_schedule="linear", beta_end=0.01), []),
        (diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min", sigma_max=50.0), ["final_sigmas_type 'sigma_min'"]),
    ],
)
def test_what_is_left_out_is_told(tmp_path: Path, scheduler: Any, tells: list[str]) -> None:
    folder, _ = saved(tmp_path / "pipeline", scheduler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", pretrained.LeftOut)
        pretrained.load(folder)
    caught = [warning for warning in caught if warning.category is pretrained.LeftOut]
    assert len(caught) == len(tells), [str(warning.message) for warning in caught]
    for text, warning in zip(tells, caught, strict=True):
        with pytest.raises(Warning, match=text):
            raise warning.message


@pytest.mark.parametrize("name", [*SAMPLERS, "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_no_setting_is_silent(tmp_path: Path, name: str) -> None:
    """Whatever a scheduler's argument: to change it changes the formulation, or what is told, or is refused."""
    # What has no effect in diffusers either, by itself.
    moot = {
        "steps_offset",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "clip_sample_range",
        "num_train_timesteps",
    }
    moot |= {"timestep_spacing"} if name == "DDPMScheduler" else set()
    kind = getattr(diffusers, name)
    folder, _ = saved(tmp_path / "pipeline", kind())
    file = folder / "scheduler/scheduler_config.json"
    plain = json.loads(file.read_text())

    def seen() -> tuple[Any, ...]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", pretrained.LeftOut)
            try:
                parts = pretrained.load(folder).formulation
            except InputError as error:
                return (str(error),)
        return parts, [str(warning.message) for warning in caught if warning.category is pretrained.LeftOut]

    usual = seen()
    changes = {"beta_schedule": "scaled_linear", "prediction_type": "sample", "sigma_schedule": "exponential"}
    changes |= {"trained_betas": [0.01] * 1000, "variance_type": "fixed_large", "use_beta_sigmas": True}
    changes |= {"use_exponential_sigmas": True, "sigma_min": 0.5, "sigma_max": 20.0}
    for key, value in plain.items():
        if key.startswith("_") or key in moot:
            continue
        other = not value if isinstance(value, bool) else value / 2 + 1 if isinstance(value, float) else "other"
        other = -5.0 if value == -math.inf else value + 1 if type(value) is int else other
        file.write_text(json.dumps(plain | {key: changes.get(key, other)}))
        assert seen() != usual, key


def test_other_parts_are_told_of(plain: Path) -> None:
    change(plain / "model_index.json", vqvae=["diffusers", "VQModel"], safety_checker=[None, None], nothing=[])
    with pytest.warns(pretrained.LeftOut, match="the pipeline has vqvae too"):
        pretrained.load(plain)


def test_clamping_is_static_thresholding(tmp_path: Path) -> None:
    """What the warning says does it: the images of diffusers' clipped steps."""
    scheduler = ddim(clip_sample_range=0.5)
    folder, network = saved(tmp_path / "pipeline", scheduler)
    made = loaded(folder, left_out=1)
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod = made.formulation.preconditioning.steps.alphas_cumprod
    x, abar = randn(2, *SHAPE), scheduler.alphas_cumprod[700]
    with torch.no_grad():
        theirs = scheduler.step(network(x.float(), 700).sample.double(), 700, x).pred_original_sample
        ours = guidance.StaticThresholding(made.denoiser, 0.5)(x / abar.sqrt(), ((1 - abar) / abar).sqrt())
    assert 0.49 < theirs.abs().max() <= 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_only_safetensors(plain: Path) -> None:
    file = plain / "unet/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    assert "is damaged" in refused(plain)
    file.unlink()
    assert "has no diffusion_pytorch_model.safetensors" in refused(plain)
    (plain / "unet/diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch sentinel'\ntR.")
    told = refused(plain)
    assert "only diffusion_pytorch_model.bin: a pickle" in told and "safe_serialization=True" in told


def test_shapes_that_do_not_fit(plain: Path) -> None:
    file = plain / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file(state | {"conv_in.bias": torch.zeros(3)}, file)
    assert "conv_in.bias has shape (3,) in the state and (8,) in the network" in refused(plain)
    save_file({name: value for name, value in state.items() if name != "conv_in.bias"}, file)
    assert "conv_in.bias has shape None in the state and (8,) in the network" in refused(plain)
    save_file(state | {"extra": torch.zeros(1)}, file)
    assert "extra has shape (1,) in the state and None in the network" in refused(plain)


@pytest.mark.parametrize(
    ("file", "values", "tells"),
    [
        ("model_index.json", {"scheduler": ["diffusers", "DDIMSchedular"]}, "did you mean 'DDIMScheduler'"),
        ("model_index.json", {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "HeunDiscreteScheduler"),
        ("model_index.json", {"scheduler": "absent"}, "names no scheduler; the parts that it names: unet"),
        ("model_index.json", {"unet": "absent", "transformer": ["diffusers", "DiT"]}, "names no unet"),
        ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}, "'UNet2DConditionModel' is not known"),
        ("model_index.json", {"unet": ["mine", "UNet2DModel"]}, "its unet is UNet2DModel of 'mine'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "laplace"}, "'laplace' is not known"),
        ("scheduler/scheduler_config.json", {"beta_schedule": 3}, "beta_schedule is 3"),
        ("scheduler/scheduler_config.json", {"beta_end": -1}, "beta_end is -1"),
        ("scheduler/scheduler_config.json", {"beta_end": "0.02"}, "beta_end is '0.02'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "num_steps is 1000000000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}, "num_train_timesteps is '1000'"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "it must be 1000 numbers"),
        ("scheduler/scheduler_config.json", {"trained_betas": [2.0] * 1000}, "between 0 and 1"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "'flow_prediction' is not known"),
        ("scheduler/scheduler_config.json", {"prediction_type": 3}, "prediction is a int"),
        ("scheduler/scheduler_config.json", {"predict_epsilon": False}, "predict_epsilon"),
        ("unet/config.json", {"sample_size": None}, "sample_size is None"),
        ("unet/config.json", {"sample_size": 7}, "sample_size is 7; its levels need multiples of 2"),
        ("unet/config.json", {"sample_size": "8"}, "sample_size is '8'"),
        ("unet/config.json", {"in_channels": 0}, "in_channels is 0"),
        ("unet/config.json", {"out_channels": 3}, "out_channels is 3 and in_channels 2"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
        ("unet/config.json", {"block_out_channels": [2**20, 2**21]}, "in the state and"),
        ("unet/config.json", {"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type"),
        ("unet/config.json", {"num_class_embeds": -2}, "num_class_embeds is -2"),
        ("unet/config.json", {"colour": "red"}, "unet argument: 'colour' is not known"),
    ],
)
def test_bad_folders(plain: Path, file: str, values: dict[str, Any], tells: str) -> None:
    change(plain / file, **values)
    assert tells in refused(plain)


def test_folders_that_are_no_pipelines(plain: Path, tmp_path: Path) -> None:
    assert "no model_index.json" in refused(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert "is no JSON" in refused(tmp_path)
    (tmp_path / "model_index.json").write_text("[1]")
    assert "holds [1]" in refused(tmp_path)
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        content = (plain / name).read_text()
        (plain / name).unlink()
        assert f"has no {Path(name).name}" in refused(plain)
        (plain / name).write_text(content)
    for name, value in (("prediction_type", "v_prediction"), ("sigma_schedule", "other"), ("sigma_data", "1")):
        edm, _ = saved(tmp_path / name, diffusers.EDMEulerScheduler())
        change(edm / "scheduler/scheduler_config.json", **{name: value})
        assert name in refused(edm)


def test_without_diffusers(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = loaded(plain).save(tmp_path / "own")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install edmund[diffusers]" in refused(plain)
    with pytest.raises(InputError, match=r"pip install edmund\[diffusers\]"):
        model.load(own)


def test_the_levels_by_hand(tmp_path: Path) -> None:
    made = loaded(saved(tmp_path / "p", ddim(3, 0.1, 0.3, clip_sample=False))[0])
    abar = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]
    assert made.formulation.preconditioning.steps == process.DiscreteSteps("linear", 0.1, 0.3, 3)
    low, high = made.formulation.trained_range
    assert (low, high) == pytest.approx([math.sqrt((1 - a) / a) for a in (abar[0], abar[-1])], rel=1e-13)


def test_a_level_that_no_step_has_is_refused(one: edmund.Model) -> None:
    """As by `Discrete`, the denoiser of a network at hand: one rule."""
    x = randn(1, *SHAPE)
    low, high = one.formulation.trained_range
    for wrong in (1.05 * high, low / 1.05, -1.0, math.nan):
        told = []
        for denoiser in (one.denoiser, Discrete(one.network, "epsilon")):
            with pytest.raises(InputError, match=r"sigma holds .*; the network knows the levels .*, and 0") as error:
                denoiser(x, torch.tensor(wrong))
            told.append(str(error.value))
        assert told[0] == told[1]


@pytest.mark.parametrize("level", [0.02, 0.3, 3.0, 50.0])
def test_frequencies_stay_exact_in_half_precision(level: float) -> None:
    """Rounded to bf16, those of Fourier features are others: they change F by a third."""
    source = unet(time_embedding_type="fourier")
    network = networks.DiffusersUNet2D(2, karras_ve=True, unet=_rest() | {"time_embedding_type": "fourier"}).eval()
    network.unet.load_state_dict(source.state_dict())
    frequencies = network.unet.time_proj.weight.detach().clone()
    with torch.no_grad():
        network.unet.time_proj.weight.mul_(16)  # as published ones are
        x, c_noise = randn(4, *SHAPE, dtype=torch.float32), torch.full((4,), math.log(level / 2))
        exact = network(x, c_noise)
        network.to(torch.bfloat16)
        out = network(x.to(torch.bfloat16), c_noise)
    assert network.unet.time_proj.weight.dtype == torch.float32
    assert torch.equal(network.unet.time_proj.weight, 16 * frequencies)
    assert {value.dtype for name, value in network.named_parameters() if "time_proj" not in name} == {torch.bfloat16}
    assert apart(out.float(), exact) < 1.5e-2
    with torch.no_grad():
        network.unet.time_proj.weight.copy_(network.unet.time_proj.weight.to(torch.bfloat16))
        assert apart(network(x.to(torch.bfloat16), c_noise).float(), exact) > 1.5e-2, "it matters"
    assert not network.unet.time_proj.weight.requires_grad
    assert len(network.to(torch.float64).state_dict()) == len(source.state_dict())


def test_convert_tells_of_other_warnings_as_such(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = pytest.importorskip("edmund.cli.convert")
    made = loaded(plain)

    def load(file: Path) -> edmund.Model:
        warnings.warn("the disk is slow", UserWarning, stacklevel=2)
        warnings.warn("it has a safety checker", pretrained.LeftOut, stacklevel=2)
        return made

    monkeypatch.setattr(pretrained, "load", load)
    with pytest.warns(UserWarning, match="the disk is slow") as caught:
        command.run(plain, tmp_path / "converted")
    assert len(caught) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "Note" in line] == [
        "Note: it has a safety checker."
    ]


def test_convert(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = pytest.importorskip("edmund.cli.convert")
    change(plain / "scheduler/scheduler_config.json", clip_sample=True)
    command.run(plain, tmp_path / "converted")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "converted")
    assert lines[1] == "Discrete, 2 x 8 x 8, no classes; 50 steps of DDIM(churn=None, eta=0.0, S_noise=1.0)."
    assert lines[2].startswith("Note: the scheduler clamps D to [-1.0, 1.0] (clip_sample)")
    assert model.load(tmp_path / "converted").formulation == loaded(plain, left_out=1).formulation
