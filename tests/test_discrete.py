"""Networks of discrete time steps as denoisers: exact ones, against the exact denoiser, Algorithms 1 and 2 by hand, and
diffusers' schedulers.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import edmund
from edmund import grid, noise, noise_density, preconditioning, process, samplers
from edmund.denoiser import Discrete, GaussianMixture
from edmund.errors import InputError
from edmund.guidance import ClassifierFree, StaticThresholding
from edmund.process import iddpm_levels

F64 = torch.float64
PREDICTIONS = ("noise", "v", "data")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture():
    return GaussianMixture(0.7 * randn(3, 2, seed=3), [0.1, 0.3, 0.5], [0.2, 0.3, 0.5])


class DDPM(nn.Module):
    """The exact network of a mixture, told x_i = sqrt(abar_i) y + sqrt(1 - abar_i) n and i; remembers the steps."""

    def __init__(self, alphas_cumprod, prediction):
        super().__init__()
        self.precision = nn.Parameter(torch.zeros((), dtype=F64))  # a network runs in its parameters' dtype
        self.exact, self.prediction = mixture(), prediction
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.steps = []

    def forward(self, x, step):
        assert step.dtype == torch.int64 and step.shape == x.shape[:1]
        self.steps.append(step.tolist())
        abar = self.alphas_cumprod[step][:, None]
        y = self.exact(x / abar.sqrt(), ((1 - abar) / abar).sqrt()[:, 0])
        n = (x - abar.sqrt() * y) / (1 - abar).sqrt()
        return {"noise": n, "data": y, "v": abar.sqrt() * n - (1 - abar).sqrt() * y}[self.prediction]


class Silent(nn.Module):
    def forward(self, x, step):
        return torch.zeros_like(x)


def discrete(prediction="noise", schedule="linear", **options):
    alphas = Discrete(Silent(), prediction, schedule, **options).alphas_cumprod
    return Discrete(DDPM(alphas, prediction), prediction, schedule, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_it_is_the_exact_denoiser_at_its_levels(prediction):
    model, exact, x = discrete(prediction), mixture(), 2 * randn(5, 2)
    for step in (0, 1, 500, 999):
        sigma = model.levels[step]
        torch.testing.assert_close(model(x * sigma, sigma), exact(x * sigma, sigma), rtol=1e-7, atol=1e-8)
    assert model.network.steps == [[0] * 5, [1] * 5, [500] * 5, [999] * 5]
    many = model(x, model.levels[[0, 10, 200, 999, 3]])
    assert model.network.steps[-1] == [0, 10, 200, 999, 3]
    torch.testing.assert_close(many, exact(x, model.levels[[0, 10, 200, 999, 3]]), rtol=1e-7, atol=1e-8)
    assert model(x.float(), model.levels[500]).dtype == torch.float32
    assert model.network.steps[-1] == [500] * 5


def test_levels_by_hand():
    model = discrete(num_steps=3, beta_start=0.1, beta_end=0.3)
    abar = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]
    assert model.alphas_cumprod.tolist() == pytest.approx(abar, rel=1e-14)
    assert model.levels.tolist() == pytest.approx([math.sqrt((1 - a) / a) for a in abar], rel=1e-13)
    assert (model.sigma_min, model.sigma_max) == (model.levels[0], model.levels[-1])
    root = discrete(schedule="scaled_linear", num_steps=3, beta_start=0.01, beta_end=0.09)
    assert root.alphas_cumprod.tolist() == pytest.approx([0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91], rel=1e-14)
    assert Discrete(Silent(), "v", abar).levels.tolist() == pytest.approx(model.levels.tolist(), rel=1e-13)


def test_squared_cosine_is_iddpm():
    """Two ways to one schedule: Nichol & Dhariwal's betas, and the levels of Karras et al. 2022, Appendix C.3."""
    model = discrete(schedule="squared_cosine")
    torch.testing.assert_close(model.levels.flip(0), iddpm_levels()[:-1], rtol=1e-9, atol=0)
    assert torch.equal(discrete(schedule="cosine").levels, model.levels)
    reference, sigma = preconditioning.IDDPM(), torch.logspace(-2, 3.9, 60, dtype=F64)
    assert torch.equal(model.preconditioning.c_noise(sigma), reference.c_noise(sigma).float())
    torch.testing.assert_close(model.round_sigma(sigma), reference.round_sigma(sigma), rtol=1e-9, atol=0)


def test_rounding():
    model = discrete()
    levels = model.levels
    assert torch.equal(model.round_sigma(levels), levels)
    middle = (levels[1:] + levels[:-1]) / 2
    assert torch.equal(model.round_sigma(middle * (1 + 1e-6)), levels[1:])
    assert torch.equal(model.round_sigma(middle * (1 - 1e-6)), levels[:-1])
    ends = torch.tensor([0.0, levels[0] / 3, 1e4], dtype=F64)
    assert torch.equal(model.round_sigma(ends), torch.stack([ends[0], ends[0], levels[-1]]))
    assert model.round_sigma(torch.tensor(1.0, dtype=F64)).shape == ()
    assert StaticThresholding(model).round_sigma(middle[3] * (1 + 1e-6)) == levels[4]


def test_between_levels_the_true_sigma_enters():
    model, x = discrete("noise"), randn(4, 2)
    low, high = model.levels[600:602]
    sigma = 0.6 * low + 0.4 * high
    n = model.network(x / torch.sqrt(1 + sigma**2), torch.full((4,), 600))
    torch.testing.assert_close(model(x, sigma), x - sigma * n, rtol=1e-12, atol=1e-12)
    model(x, torch.tensor(0.0, dtype=F64))
    assert model.network.steps[-1] == [0] * 4  # the least noisy step that there is


def d(network, x, abar, step):
    """dx/dsigma of the probability-flow ODE (s = 1, t = sigma) straight from the noise prediction."""
    return network(x * abar[step].sqrt(), torch.full((len(x),), int(step)))


def test_heun_is_algorithm_1_on_its_own_levels():
    model = discrete()
    steps = torch.tensor([999, 900, 700, 500, 300, 100, 20])
    latents = randn(6, 2, seed=1)
    ours = edmund.sample(
        model, (6, 2), sampler="heun", grid=grid.Fixed(model.levels[steps]), latents=latents, progress=False
    )
    asked = [seen[0] for seen in model.network.steps]
    network, abar = DDPM(model.alphas_cumprod, "noise"), model.alphas_cumprod
    sigma = ((1 - abar) / abar).sqrt()
    x = latents * sigma[999]
    for i, step in enumerate(steps):
        slope = d(network, x, abar, step)
        to = sigma[steps[i + 1]] if i + 1 < len(steps) else 0.0
        following = x + (to - sigma[step]) * slope
        if i + 1 < len(steps):
            following = x + (to - sigma[step]) * (slope + d(network, following, abar, steps[i + 1])) / 2
        x = following
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)
    assert asked == [999, 900, 900, 700, 700, 500, 500, 300, 300, 100, 100, 20, 20]


def test_churn_is_algorithm_2_rounded_and_capped_at_the_top():
    """Each gamma takes the noise up to a level of the network; none beyond the last, however much churn is asked."""
    model = discrete()
    steps = torch.tensor([995, 800, 400, 100])
    latents, draws = randn(6, 2, seed=1), randn(4, 6, 2, seed=2)
    ours = edmund.sample(
        model,
        (6, 2),
        sampler=samplers.Euler(churn=samplers.Churn(1e3)),
        grid=grid.Fixed(model.levels[steps]),
        latents=latents,
        noise=noise.Recorded(draws),
        progress=False,
    )
    asked = [seen[0] for seen in model.network.steps]
    network, abar = DDPM(model.alphas_cumprod, "noise"), model.alphas_cumprod
    sigma = ((1 - abar) / abar).sqrt()
    raised = [int((sigma - math.sqrt(2) * sigma[step]).abs().argmin()) for step in steps]
    assert asked == raised and raised[0] == 999 and bool((torch.tensor(raised) > steps).all())
    x = latents * sigma[995]
    for i, (step, up) in enumerate(zip(steps, raised, strict=True)):
        x = x + (sigma[up] ** 2 - sigma[step] ** 2).sqrt() * draws[i]
        to = sigma[steps[i + 1]] if i + 1 < len(steps) else 0.0
        x = x + (to - sigma[up]) * d(network, x, abar, up)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["edm", "ve", "vp"])
def test_every_grid_visits_its_levels_only(name):
    model = discrete()
    seen = []
    options = {"sampler": samplers.Heun(churn=samplers.Churn(5)), "num_steps": 12, "progress": False}
    edmund.sample(model, (2, 2), grid=name, callback=lambda step: seen.append(step.sigma), **options)
    assert all((model.levels == sigma).any() for sigma in seen) and len(seen) == 12
    # Through wrappers too, and over another process.
    seen.clear()
    edmund.sample(
        StaticThresholding(model),
        (2, 2),
        process=process.VP(),
        callback=lambda step: seen.append(step.sigma),
        **options,
    )
    assert all((model.levels == sigma).any() for sigma in seen)


def test_samples_are_those_of_the_exact_denoiser():
    model, exact = discrete("v", "scaled_linear"), mixture()
    options = {"sigma_min": model.sigma_min, "sigma_max": model.sigma_max, "num_steps": 30, "progress": False}
    theirs = edmund.sample(exact, (8, 2), grid=grid.Fixed(grid.EDM()(
        30, model.sigma_min, model.sigma_max, model.round_sigma)), progress=False)  # fmt: skip
    torch.testing.assert_close(edmund.sample(model, (8, 2), **options), theirs, rtol=1e-7, atol=1e-7)


def test_a_level_beyond_its_own_is_refused():
    model = discrete("noise", "scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert edmund.sample(model, (1, 2), num_steps=5, progress=False).shape == (1, 2)  # its own range by default
    for options in ({"sigma_max": 20.0}, {"sigma_min": 0.01}, {"grid": grid.Fixed([80.0, 1.0])}):
        with pytest.raises(
            InputError, match=r"outside the range that the model was trained on, 0\.0291672 to 14\.6146"
        ):
            edmund.sample(model, (1, 2), progress=False, **options)
    with pytest.raises(InputError, match="num_steps is 2000, but only 1000 distinct noise levels"):
        edmund.sample(model, (1, 2), num_steps=2000, progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_level_beyond_its_own_is_refused_at_a_call_too(dtype):
    model, x = discrete(), randn(2, 2)
    low, high = model.levels[[0, -1]].to(dtype)  # as a sampler rounds the ends
    for sigma in (low, high, torch.stack([high, low]), torch.zeros((), dtype=dtype)):
        assert bool(torch.isfinite(model(x, sigma)).all())
    for wrong in (1000.0, high.item() * 1.05, low.item() / 1.05, -1.0, math.nan, math.inf):
        for sigma in (torch.tensor(wrong, dtype=dtype), torch.tensor([1.0, wrong], dtype=dtype)):
            with pytest.raises(InputError, match=r"sigma holds .*; the network knows the levels 0\.0100005 to 157\.4"):
                model(x, sigma)
    with pytest.raises(InputError, match="sigma holds 1000"):
        model.with_extra(x, 1000.0)
    edge = model.levels[-1] * (1 + 5e-10)  # what exp(log(sigma)) may come to
    assert bool(torch.isfinite(model(x, edge)).all())


@pytest.mark.parametrize("wrap", [lambda d: d, StaticThresholding])
def test_adaptive_steps_are_refused(wrap):
    """One rule for sampling, likelihoods and encoding: the steps of a discrete model go from level to level."""
    model, x = wrap(discrete()), randn(3, 2)
    with pytest.raises(InputError, match="round_sigma"):
        edmund.sample(model, (3, 2), sampler="adaptive", num_steps=5, progress=False)
    for function in (edmund.log_prob, edmund.encode):
        for options in ({}, {"rtol": 1e-3}):
            with pytest.raises(InputError, match=r"round_sigma.*give num_steps"):
                function(model, x, progress=False, **options)
        with pytest.raises(InputError, match="round_sigma"):
            function(model, x, sampler="adaptive", num_steps=8, progress=False)
        assert bool(torch.isfinite(function(model, x, num_steps=8, sampler="heun", progress=False)).all())


class Embedded(nn.Module):
    """A network as diffusers' have them: an embedding table of steps, an object as output, conditions by its names."""

    def __init__(self, channels=1, extra=0):
        super().__init__()
        self.table = nn.Embedding(1000, 8)
        self.body = nn.Conv2d(channels, channels + extra, 3, padding=1)
        self.classes = nn.Embedding(11, 1)

    def forward(self, sample, timestep, class_labels=None):
        out = self.body(sample) + self.table(timestep).mean(1)[:, None, None, None]
        if class_labels is not None:
            out = out + self.classes(class_labels)[:, :, None, None]
        return SimpleNamespace(sample=out)


def test_foreign_networks():
    network = Embedded(extra=1)
    model = Discrete(network, extra_channels=1)
    x, sigma = randn(3, 1, 4, 4), model.levels[7]
    denoised, extra = model.with_extra(x, sigma, class_labels=torch.tensor([4]))
    raw = network((x / torch.sqrt(1 + sigma**2)).float(), torch.tensor([7, 7, 7]), torch.tensor([4, 4, 4])).sample
    torch.testing.assert_close(denoised, (x - sigma * raw[:, :1]).double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(extra, raw[:, 1:]) and denoised.dtype == F64
    assert model.known_conditions == ("class_labels",)
    # A class of its own for "none" guides as a negative condition.
    guided = ClassifierFree(model, 3.0, negative={"class_labels": torch.tensor([10])})
    D, D_none = (model(x, sigma, class_labels=torch.tensor([k])) for k in (4, 10))
    torch.testing.assert_close(
        guided(x, sigma, class_labels=torch.tensor([4])), D_none + 3 * (D - D_none), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(InputError, match="did you mean 'class_labels'"):
        model(x, sigma, class_label=torch.tensor([4]))
    with pytest.raises(InputError, match="extra_channels = 0"):
        Discrete(network)(x, sigma)


NAMES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1000, 50])
def test_schedules_are_those_of_diffusers(name, steps):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=steps, beta_schedule=name)
    ours = Discrete(Silent(), schedule=name, num_steps=steps)
    assert (ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-6
    torch.testing.assert_close(
        Discrete(Silent(), "noise", theirs.alphas_cumprod).levels, ours.levels, rtol=3e-3, atol=0
    )
    other = diffusers.DDPMScheduler(steps, 0.00085, 0.012, beta_schedule=name)
    if name != "squaredcos_cap_v2":
        ours = Discrete(Silent(), schedule=name, num_steps=steps, beta_start=0.00085, beta_end=0.012)
        assert (ours.alphas_cumprod - other.alphas_cumprod).abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES[:3])
def test_zero_snr_is_that_of_diffusers_without_its_infinite_level(name):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=True).alphas_cumprod
    ours = process.DiscreteSteps(name, zero_snr=True)
    assert theirs[-1] == 0 and len(ours.levels) == 999
    assert (ours.alphas_cumprod - theirs[:-1]).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [50, 40, 1000])
def test_the_grid_is_diffusers_linspace(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    levels = process.DiscreteSteps().levels
    ours = grid.Discrete(process.DiscreteSteps())(steps, levels[0].item(), levels[-1].item())
    assert torch.equal(ours[:-1], levels[scheduler.timesteps])


def test_training_draws_each_level_as_often():
    steps = process.DiscreteSteps(num_steps=25)
    drawn = noise_density.Discrete(steps).sample(100)
    assert torch.equal(drawn, steps.levels.repeat_interleave(4))
    assert noise_density.Discrete(steps).support == tuple(steps.levels[[0, -1]].tolist())


@pytest.mark.parametrize(("prediction", "theirs"), [("noise", "epsilon"), ("v", "v_prediction"), ("data", "sample")])
def test_euler_is_the_ddim_of_diffusers(prediction, theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(prediction_type=theirs, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(20)
    abar = scheduler.alphas_cumprod.double()
    model = Discrete(DDPM(abar, prediction), prediction, scheduler.alphas_cumprod)
    latents = randn(4, 2)
    ours = edmund.sample(
        model, (4, 2), sampler="euler", grid=grid.Fixed(model.levels[scheduler.timesteps]), latents=latents,
        progress=False,
    )  # fmt: skip
    network, top = DDPM(abar, prediction), abar[scheduler.timesteps[0]]
    x = latents * (1 - top).sqrt()
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, step.expand(4)), step, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_a_unet_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    model = Discrete(network)
    out = edmund.sample(model, (2, 1, 8, 8), num_steps=3, progress=False)
    assert out.shape == (2, 1, 8, 8) and bool(torch.isfinite(out).all())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Discrete(lambda x, step: x), ["network is", "module"]),
        (lambda: Discrete(Silent(), "noize"), ["prediction: 'noize'", "noise"]),
        (lambda: Discrete(Silent(), "noise", "linaer"), ["schedule: 'linaer'", "did you mean 'linear'"]),
        (lambda: Discrete(Silent(), beta_start=0.03), ["beta_start is 0.03", "beta_end is 0.02"]),
        (lambda: Discrete(Silent(), beta_start=0.0), ["beta_start is 0.0"]),
        (lambda: Discrete(Silent(), beta_end=1.0), ["beta_end is 1.0"]),
        (lambda: Discrete(Silent(), beta_end=math.nan), ["beta_end is nan"]),
        (lambda: Discrete(Silent(), num_steps=1), ["num_steps is 1"]),
        (lambda: Discrete(Silent(), num_steps=1000.0), ["num_steps is 1000.0"]),
        (lambda: Discrete(Silent(), num_steps=10**12), ["num_steps is 1000000000000"]),
        (lambda: process.DiscreteSteps([0.9, 0.5], zero_snr=True), ["zero_snr is True", "leave it out"]),
        (lambda: preconditioning.Discrete("linear"), ["steps is 'linear'", "DiscreteSteps"]),
        (
            lambda: Discrete(Silent(), schedule="cosine", beta_end=0.02),
            ["beta_end is 0.02", "'cosine'", "leave it out"],
        ),
        (lambda: Discrete(Silent(), schedule=[0.9, 0.5], num_steps=2), ["num_steps is 2", "leave it out"]),
        (lambda: Discrete(Silent(), schedule=None), ["schedule is None"]),
        (lambda: Discrete(Silent(), schedule=[0.9]), ["alphas_cumprod has shape (1,)"]),
        (lambda: Discrete(Silent(), schedule=torch.rand(2, 2)), ["alphas_cumprod has shape (2, 2)"]),
        (lambda: Discrete(Silent(), schedule=[0.9, 0.5, 0.5]), ["step 2", "0.5", "fall"]),
        (lambda: Discrete(Silent(), schedule=[0.5, 0.9]), ["step 1 is 0.9", "0.5", "fall"]),
        (lambda: Discrete(Silent(), schedule=[0.9, 0.5, 0.0]), ["holds 0.0", "zero-SNR"]),
        (lambda: Discrete(Silent(), schedule=[1.0, 0.5]), ["holds 1.0", "between 0 and 1"]),
        (lambda: Discrete(Silent(), schedule=[0.9, math.nan]), ["holds nan"]),
        (lambda: Discrete(Silent(), schedule=["a", "b"]), ["schedule is ['a', 'b']"]),
        (lambda: Discrete(Silent(), extra_channels=-1), ["extra_channels is -1"]),
        (lambda: Discrete(Tuple())(randn(1, 2), torch.tensor(1.0)), ["returned a tuple", ".sample"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


class Tuple(nn.Module):
    def forward(self, x, step):
        return (x, step)


@pytest.mark.parametrize(("ours", "theirs"), [("noise", "epsilon"), ("v", "v_prediction"), ("data", "sample")])
def test_diffusers_own_names_of_the_prediction(ours, theirs):
    network, x, sigma = discrete(ours).network, 3 * randn(5, 2), torch.tensor(1.5, dtype=torch.float64)
    assert torch.equal(Discrete(network, theirs)(x, sigma), Discrete(network, ours)(x, sigma))
