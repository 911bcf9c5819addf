"""edmund.sample: the same seeds give the same samples whatever is around them; every argument does what it says."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import edmund
from edmund import denoiser, formulation, grid, networks, noise, preconditioning, process, samplers
from edmund.denoiser import Preconditioned
from edmund.errors import InputError
from edmund.samplers import DEIS, Churn, Euler, Heun

F64 = torch.float64
CHURNED = Heun(Churn(20.0, S_noise=1.003))


def mixture(dim=2):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, dim, generator=generator, dtype=F64)
    root = torch.randn(3, dim, dim, generator=generator, dtype=F64)
    covariances = root @ root.mT / dim + 0.05 * torch.eye(dim, dtype=F64)
    return denoiser.GaussianMixture(means, weights=[0.2, 0.3, 0.5], covariances=covariances)


def empirical():
    return denoiser.Empirical(torch.randn(60, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=F64))


def filled(network):
    """The network with all its weights random: those that start at zero would make it trivial."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.7 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def unet():
    network = filled(networks.UNet(1, channels=16, label_dim=4))
    return Preconditioned(network, preconditioning.EDM(0.5), formulation=formulation.EDM(0.5)).eval()


def mlp():
    network = filled(networks.MLP(3, channels=32, blocks=2, context_dim=2))
    return Preconditioned(network, preconditioning.EDM(0.5), formulation=formulation.EDM(0.5)).eval()


def draw(oracle, shape, **options):
    return edmund.sample(oracle, shape, progress=False, **options)


EXACT = {"mixture": (mixture, (2,)), "mixture-7d": (lambda: mixture(7), (7,)), "empirical": (empirical, (1, 5, 5))}
NETWORKS = {
    "unet": (unet, (1, 8, 8), lambda n: {"labels": torch.arange(n) % 4}),
    "mlp": (mlp, (3,), lambda n: {"context": torch.arange(2 * n).reshape(n, 2) / n}),
}
every_solver = pytest.mark.parametrize("sampler", [Heun(), CHURNED], ids=["deterministic", "churned"])


@pytest.mark.parametrize("name", EXACT)
@every_solver
def test_batches_and_order_do_not_matter_to_the_last_bit(name, sampler, device):
    make, item = EXACT[name]
    oracle, n = make().to(device), 41
    seeds = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:n].tolist()
    together = draw(oracle, (n, *item), sampler=sampler, num_steps=8, seeds=seeds, batch_size=n)
    for size in (1, 2, 7, 32, 40, 1000):
        assert torch.equal(
            draw(oracle, (n, *item), sampler=sampler, num_steps=8, seeds=seeds, batch_size=size), together
        )
    reverse = draw(oracle, (n, *item), sampler=sampler, num_steps=8, seeds=seeds[::-1], batch_size=9)
    assert torch.equal(reverse.flip(0), together)
    alone = draw(oracle, (1, *item), sampler=sampler, num_steps=8, seeds=[seeds[17]])
    assert torch.equal(alone[0], together[17])
    if name != "empirical":  # whose samples are the data, some of them several times
        assert together.unique(dim=0).shape[0] == n


@pytest.mark.parametrize("name", NETWORKS)
@every_solver
def test_batches_and_order_do_not_matter_to_a_network(name, sampler, device):
    make, item, condition = NETWORKS[name]
    oracle, n = make().to(device), 11
    told = condition(n)
    together = draw(oracle, (n, *item), sampler=sampler, num_steps=6, batch_size=n, condition=told)
    assert together.std() > 0.1
    for size in (1, 4):
        parts = draw(oracle, (n, *item), sampler=sampler, num_steps=6, batch_size=size, condition=told)
        torch.testing.assert_close(parts, together, rtol=0, atol=1e-6)
    backwards = {key: value.flip(0) for key, value in told.items()}
    reverse = draw(
        oracle, (n, *item), sampler=sampler, num_steps=6, seeds=range(n - 1, -1, -1), batch_size=3, condition=backwards
    )
    torch.testing.assert_close(reverse.flip(0), together, rtol=0, atol=1e-6)


HALF = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import test_sample as t
start, stop, out = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
np.savez(out, **{key: value.numpy() for key, value in t.shares(start, stop).items()})
"""


def shares(start, stop):
    """What one of several processes draws: its part of the seeds, of every denoiser."""
    drawn = {}
    for sampler in (Heun(), CHURNED):
        kind = "churned" if sampler.churn else "plain"
        options = {"sampler": sampler, "num_steps": 6, "seeds": range(start, stop), "batch_size": 5}
        for name, (make, item) in EXACT.items():
            drawn[f"exact-{name}-{kind}"] = draw(make(), (stop - start, *item), **options)
        for name, (make, item, condition) in NETWORKS.items():
            told = {key: value[start:stop] for key, value in condition(14).items()}
            drawn[f"network-{name}-{kind}"] = draw(make(), (stop - start, *item), condition=told, **options)
    return drawn


def test_processes_do_not_matter(tmp_path):
    """Two processes that each sample a part of the seeds agree with one."""
    here = os.path.dirname(__file__)
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", HALF, here, str(start), str(stop), str(tmp_path / f"{start}.npz")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for start, stop in ((0, 6), (6, 14))
    ]
    together = shares(0, 14)
    assert [command.wait(timeout=120) for command in commands] == [0, 0]
    with np.load(tmp_path / "0.npz") as first, np.load(tmp_path / "6.npz") as second:
        for key, expected in together.items():
            joined = torch.from_numpy(np.concatenate([first[key], second[key]]))
            if key.startswith("exact"):
                assert torch.equal(joined, expected), key
            else:
                torch.testing.assert_close(joined, expected, rtol=0, atol=1e-6)


def test_seeds():
    oracle = mixture()
    default = draw(oracle, (5, 2), num_steps=4)
    for seeds in (range(5), [0, 1, 2, 3, 4], torch.arange(5), np.arange(5)):
        assert torch.equal(draw(oracle, (5, 2), num_steps=4, seeds=seeds), default)
    other = draw(oracle, (3, 2), num_steps=4, seeds=[2, 0, 2])
    assert torch.equal(other, default[[2, 0, 2]])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = draw(mixture(), (3, 2), sampler=CHURNED, num_steps=4)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(draw(mixture(), (3, 2), sampler=CHURNED, num_steps=4), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_the_sampler_on_the_seeds_own_numbers(device, dtype):
    """sample = the sampler, from s sigma_0 times the seeded latents, over the grid's levels, with the seeded noise."""
    for path in (process.EDM(), process.VP(), process.RectifiedFlow()):
        oracle = mixture().to(device)
        levels = {"grid": "ve", "num_steps": 9, "sigma_min": 0.02, "sigma_max": 20.0}
        options = {"sampler": CHURNED, "process": path, "batch_size": 4, "dtype": dtype}
        out = draw(oracle, (6, 2), seeds=range(3, 9), **levels, **options)
        source = noise.Seeded(range(3, 9))
        sigmas = grid.VE()(9, 0.02, 20.0)
        start = source.latents((2,), dtype=F64, device=torch.device("cpu")) * sigmas[0] * path.s(path.t(sigmas[0]))
        expected = CHURNED(mixture(), start, sigmas, process=path, noise=source)
        tolerance = 1e-11 if dtype == F64 else 1e-3
        assert out.device.type == "cpu" and out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_scaling_that_is_not_one_at_the_end_is_undone():
    """With s = 2 the sampler's state is twice the data."""
    twice = process.Process(s=lambda t: torch.full_like(t, 2.0), sigma=lambda t: t)
    out = draw(mixture(), (5, 2), num_steps=9, process=twice)
    torch.testing.assert_close(out, draw(mixture(), (5, 2), num_steps=9, process="edm"), rtol=1e-11, atol=1e-11)


def test_names_are_the_objects():
    oracle = mixture()
    options = {"num_steps": 5, "sigma_min": 0.02, "sigma_max": 50.0}
    for name, part in (
        ("euler", Euler()),
        ("heun", Heun()),
        ("midpoint", Heun(alpha=1 / 2)),
        ("ralston", Heun(alpha=2 / 3)),
    ):
        named, given = (draw(oracle, (4, 2), sampler=value, **options) for value in (name, part))
        assert torch.equal(named, given)
    for name, part in (("edm", grid.EDM()), ("ve", grid.VE()), ("iddpm", grid.IDDPM()), ("vp", grid.VP())):
        assert torch.equal(draw(oracle, (4, 2), grid=name, **options), draw(oracle, (4, 2), grid=part, **options))
    for name, kind in process.named().items():
        assert torch.equal(
            draw(oracle, (4, 2), process=name, **options), draw(oracle, (4, 2), process=kind(), **options)
        )


@pytest.mark.parametrize("name", list(formulation.named()))
def test_what_is_not_given_comes_from_the_formulation(name):
    make = formulation.named()[name]
    parts = make(0.5) if name == "EDM" else make()
    oracle = mixture()
    oracle.formulation = parts
    given = {
        "sampler": parts.sampler,
        "grid": parts.grid,
        "process": parts.process,
        "num_steps": parts.num_steps,
        "sigma_min": parts.sigma_min,
        "sigma_max": parts.sigma_max,
    }
    assert torch.equal(draw(oracle, (3, 2)), draw(mixture(), (3, 2), **given))


def test_plain_callables_have_edms_defaults():
    oracle, levels = mixture(), []

    def plain(x, sigma):
        levels.append(sigma.item())
        return oracle(x, sigma)

    out = draw(plain, (3, 2))
    assert len(levels) == 36 and levels[0] == pytest.approx(80) and min(levels) == pytest.approx(0.002)
    given = {"sampler": DEIS(order=4), "num_steps": 36, "grid": grid.EDM(7.0), "process": "edm", "sigma_min": 0.002}
    expected = draw(oracle, (3, 2), **given)
    assert torch.equal(out, expected)


def test_latents():
    oracle = mixture()
    latents = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    kept = latents.clone()
    for name in ("edm", "vp", "flow"):
        path = process.named()[name]()
        sigmas = grid.EDM()(6, 0.002, 80.0)
        start = latents * sigmas[0] * path.s(path.t(sigmas[0]))
        expected = Heun()(oracle, start, sigmas, process=path)
        for size in (2, 7):
            options = {"sampler": "heun", "num_steps": 6, "process": path, "latents": latents}
            out = draw(oracle, (7, 2), batch_size=size, **options)
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(latents, kept)
    # The seeds' own latents are what is used without.
    own = noise.Seeded(range(7)).latents((2,), dtype=F64, device=torch.device("cpu"))
    assert torch.equal(draw(oracle, (7, 2), num_steps=6, latents=own), draw(oracle, (7, 2), num_steps=6))
    # With latents given, seeds still drive the churn.
    churned = [draw(oracle, (7, 2), sampler=CHURNED, num_steps=6, latents=own, seeds=range(k, k + 7)) for k in (0, 1)]
    assert torch.equal(churned[0], draw(oracle, (7, 2), sampler=CHURNED, num_steps=6))
    assert (churned[0] - churned[1]).abs().min() > 0


def test_recorded_noise_across_batches():
    oracle = mixture()
    draws = torch.randn(6, 7, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    options = {"sampler": CHURNED, "num_steps": 6, "noise": noise.Recorded(draws)}
    together = draw(oracle, (7, 2), batch_size=7, **options)
    for size in (1, 3, 5):
        assert torch.equal(draw(oracle, (7, 2), batch_size=size, **options), together)
    # The seeded source, recorded and replayed, is the seeded source.
    source = noise.Seeded(range(7))
    recorded = torch.stack([source(torch.zeros(7, 2, dtype=F64), k, 0.0, 0.0) for k in range(6)])
    replayed = draw(oracle, (7, 2), sampler=CHURNED, num_steps=6, noise=noise.Recorded(recorded), batch_size=3)
    assert torch.equal(replayed, draw(oracle, (7, 2), sampler=CHURNED, num_steps=6))


def test_conditions_of_one_and_of_each():
    seen = []

    def told(x, sigma, *, labels, context):
        seen.append((labels, context))
        return labels[:, None].to(x.dtype) + context

    condition = {"labels": torch.arange(5), "context": torch.tensor([[0.25, 0.5]], dtype=F64)}
    for size in (1, 2, 5):
        seen.clear()
        out = draw(told, (5, 2), num_steps=3, batch_size=size, condition=condition)
        torch.testing.assert_close(out, condition["labels"][:, None] + condition["context"], rtol=1e-12, atol=1e-12)
        assert all(len(labels) == len(context) <= size for labels, context in seen)
    one = draw(
        told, (1, 2), num_steps=3, condition={"labels": torch.tensor([3]), "context": torch.zeros(1, 2, dtype=F64)}
    )
    torch.testing.assert_close(one, torch.full((1, 2), 3.0, dtype=F64))


def test_unet_conditions_expand():
    oracle = unet()
    one = draw(oracle, (3, 1, 8, 8), num_steps=3, condition={"labels": torch.tensor([2])})
    each = draw(oracle, (3, 1, 8, 8), num_steps=3, condition={"labels": torch.tensor([2, 2, 2])})
    other = draw(oracle, (3, 1, 8, 8), num_steps=3, condition={"labels": torch.tensor([1])})
    assert torch.equal(one, each) and (one - other).abs().max() > 1e-3


@every_solver
@pytest.mark.parametrize("path", ["edm", "vp", "flow"])
def test_trajectory(path, sampler):
    """x at each level is what the callback saw there, unscaled; denoised is D there; the last are the samples."""
    oracle, steps = mixture(), []

    def keep(step):
        steps.append((step.index, step.sigma, step.x.clone(), step.denoised.clone()))

    options = {"num_steps": 6, "process": path, "sampler": sampler}
    out = draw(oracle, (7, 2), batch_size=3, callback=keep, return_trajectory=True, **options)
    assert isinstance(out, edmund.Trajectory)
    assert torch.equal(out.samples, draw(oracle, (7, 2), **options))
    assert torch.equal(out.samples, out.x[-1]) and out.sigmas[-1] == 0
    assert out.x.shape == (7, 7, 2) and out.denoised.shape == (6, 7, 2)
    torch.testing.assert_close(out.sigmas, grid.EDM()(6, 0.002, 80.0), rtol=0, atol=0)
    schedule = process.named()[path]()
    assert len(steps) == 3 * 6
    for k, (index, sigma, x, denoised) in enumerate(steps):
        rows = slice(3 * (k // 6), min(3 * (k // 6) + 3, 7))
        assert index == k % 6 and sigma == out.sigmas[index].item()
        scaling = schedule.s(schedule.t(out.sigmas[index]))
        torch.testing.assert_close(out.x[index, rows], x / scaling, rtol=1e-13, atol=1e-13)
        assert torch.equal(out.denoised[index, rows], denoised)
    if sampler.churn is None:
        for k in range(6):
            torch.testing.assert_close(out.denoised[k], oracle(out.x[k], out.sigmas[k]), rtol=1e-9, atol=1e-9)
    own = noise.Seeded(range(7)).latents((2,), dtype=F64, device=torch.device("cpu"))
    torch.testing.assert_close(out.x[0], own * out.sigmas[0], rtol=1e-12, atol=0)


def test_one_step():
    """[sigma_max, 0] under EDM is D(sigma_max n; sigma_max)."""
    oracle = mixture()
    own = noise.Seeded(range(4)).latents((2,), dtype=F64, device=torch.device("cpu"))
    out = draw(oracle, (4, 2), num_steps=1)
    torch.testing.assert_close(out, oracle(80 * own, torch.tensor(80.0, dtype=F64)), rtol=1e-12, atol=1e-13)


def test_the_denoiser_never_sees_more_than_a_batch():
    oracle, seen = mixture(), []

    def watched(x, sigma):
        seen.append(len(x))
        return oracle(x, sigma)

    draw(watched, (23, 2), num_steps=3, batch_size=4)
    assert set(seen) == {4, 3} and sum(seen) == 23 * 3
    seen.clear()
    # The default bounds the numbers in a batch, however many samples are asked for.
    draw(lambda x, sigma: (seen.append(x.numel()), 0 * x)[1], (5, 3, 512, 512), num_steps=1, dtype=torch.float32)
    assert max(seen) <= 2**20 and sum(seen) == 5 * 3 * 512 * 512


def test_runs_without_gradients():
    grad = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, x, sigma):
            grad.append(torch.is_grad_enabled())
            return self.weight * 0 * x

    out = draw(Watched(), (2, 2), num_steps=3)
    assert grad == [False] * 3 and not out.requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_is_set_and_restored(training):
    modes = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, sigma):
            modes.append((self.training, self.dropout.training))
            if len(modes) > 3:
                raise RuntimeError("stop")
            return 0 * self.dropout(x)

    module = Watched().train(training)
    draw(module, (2, 2), num_steps=3)
    assert modes == [(False, False)] * 3
    assert module.training is training and module.dropout.training is training
    with pytest.raises(RuntimeError, match="stop"):
        draw(module, (2, 2), num_steps=2)
    assert module.training is training and module.dropout.training is training


def test_parts_frozen_in_evaluation_mode_stay_so():
    """A module may keep a part (a batch norm, say) in evaluation mode while it trains."""
    module = nn.Sequential(nn.Linear(2, 2, dtype=F64), nn.Dropout(0.5)).train()
    module[1].eval()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x, sigma):
            return self.inner(x)

    wrapped = Wrapped()
    assert wrapped.training and not module[1].training
    draw(wrapped, (2, 2), num_steps=1)
    assert wrapped.training and module[0].training and not module[1].training


def test_discrete_models_are_called_at_their_levels():
    levels, seen = process.iddpm_levels(), []

    class Discrete(nn.Module):
        round_sigma = staticmethod(preconditioning.IDDPM().round_sigma)

        def forward(self, x, sigma):
            seen.append(sigma.item())
            return 0.5 * x

    for sampler in (Heun(), CHURNED, Euler(Churn(3.0))):
        seen.clear()
        draw(Discrete(), (2, 2), sampler=sampler, num_steps=12, sigma_min=0.01)
        assert all(sigma in levels for sigma in seen)


def test_fixed_grids_say_steps_and_range_themselves():
    levels = [10.0, 3.0, 0.5]
    oracle = mixture()
    out = draw(oracle, (3, 2), grid=grid.Fixed(levels), return_trajectory=True)
    assert out.sigmas.tolist() == [10.0, 3.0, 0.5, 0.0]
    assert torch.equal(out.samples, draw(oracle, (3, 2), grid=grid.Fixed(levels), num_steps=3, sigma_min=0.5))


def test_trained_range():
    oracle = mixture()
    oracle.sigma_min, oracle.sigma_max = 0.01, 40.0
    draw(oracle, (1, 2), num_steps=2, sigma_min=0.01, sigma_max=40.0)
    # Churn above the highest node is a stage inside, and not checked.
    draw(oracle, (1, 2), sampler=CHURNED, num_steps=2, sigma_min=0.01, sigma_max=40.0)
    for argument, value in (("sigma_min", 0.009), ("sigma_max", 41.0)):
        with pytest.raises(InputError) as error:
            draw(oracle, (1, 2), num_steps=2, **{"sigma_min": 0.01, "sigma_max": 40.0, argument: value})
        text = str(error.value)
        assert argument in text and str(value) in text and "0.01" in text and "40" in text
    # What is not asked stays inside: EDM's range is only a default for a denoiser without a formulation.
    sigmas = draw(oracle, (1, 2), num_steps=3, return_trajectory=True).sigmas
    assert (sigmas[0], sigmas[-2]) == (pytest.approx(40.0), pytest.approx(0.01))
    with pytest.raises(InputError, match="sigma_max is 100"):
        draw(oracle, (1, 2), grid=grid.Fixed([100.0, 1.0]))


def test_what_is_no_part_is_refused_at_the_door():
    oracle = mixture()
    wrong = {
        "sampler": samplers.Heun,
        "grid": grid.EDM,
        "noise": torch.zeros(2, 4, 2),
        "callback": 3,
        "condition": torch.zeros(4),
        "sigma_min": "0.1",
    }
    for argument, value in wrong.items():
        with pytest.raises(InputError, match=argument):
            draw(oracle, (4, 2), **{"num_steps": 2, argument: value})
    for recorded in (torch.zeros(1, 4, 2), torch.zeros(2, 5, 2)):
        with pytest.raises(InputError, match="noise was recorded for"):
            draw(oracle, (4, 2), num_steps=2, noise=noise.Recorded(recorded))


@pytest.mark.parametrize("path", [process.VP(), process.RectifiedFlow(), process.EDM()])
def test_churn_without_noise_is_the_limit_of_little_noise(path):
    def final(S_noise):
        churn = samplers.Churn(S_churn=10, S_noise=S_noise)
        return draw(mixture(), (4, 2), sampler=samplers.Heun(churn), process=path, num_steps=6)

    torch.testing.assert_close(final(0.0), final(1e-12), rtol=0, atol=1e-9)


def test_labels_are_checked_at_the_door():
    net = networks.MLP(features=2, channels=8, blocks=1, label_dim=3)
    denoiser = edmund.denoiser.Preconditioned(net, edmund.preconditioning.EDM(0.5))
    with pytest.raises(InputError, match="labels holds 3"):
        edmund.sample(denoiser, (2, 2), num_steps=2, condition={"labels": torch.tensor([0, 3])}, progress=False)


NAN = torch.full((4, 2), math.nan)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma_min": 2.0, "sigma_max": 1.0}, ["sigma_min", "2.0", "sigma_max", "1.0"]),
        ({"sigma_min": 90.0}, ["sigma_min", "90.0", "sigma_max", "80.0"]),
        ({"sigma_min": 0.0}, ["sigma_min", "0.0"]),
        ({"sigma_min": -0.1}, ["sigma_min", "-0.1"]),
        ({"sigma_min": math.nan}, ["sigma_min", "nan"]),
        ({"sigma_max": math.inf}, ["sigma_max", "inf"]),
        ({"num_steps": 0}, ["num_steps", "0"]),
        ({"num_steps": -1}, ["num_steps", "-1"]),
        ({"num_steps": 2.5}, ["num_steps", "2.5"]),
        ({"num_steps": True}, ["num_steps", "True"]),
        ({"sampler": "huen"}, ["sampler", "'huen'", "'heun'"]),
        ({"sampler": 3}, ["sampler", "3", "heun"]),
        ({"grid": "emd"}, ["grid", "'emd'", "'edm'"]),
        ({"grid": 3}, ["grid", "3"]),
        ({"process": "vpp"}, ["process", "'vpp'", "'vp'"]),
        ({"process": 3}, ["process", "3"]),
        ({"seeds": range(3)}, ["seeds", "3", "4"]),
        ({"seeds": [0, 1, 2, -5]}, ["seeds", "-5"]),
        ({"seeds": [0, 1, 2, 2.5]}, ["seeds", "2.5"]),
        ({"seeds": 7}, ["seeds", "7"]),
        ({"seeds": torch.tensor(7)}, ["seeds", "7"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"batch_size": 1.5}, ["batch_size", "1.5"]),
        ({"latents": torch.zeros(3, 2)}, ["latents", "(3, 2)", "(4, 2)"]),
        ({"latents": NAN}, ["latents", "NaN"]),
        ({"latents": torch.zeros(4, 2, dtype=torch.int64)}, ["latents", "integer"]),
        ({"latents": np.zeros((4, 2))}, ["latents", "ndarray", "(4, 2)"]),
        ({"dtype": torch.int32}, ["dtype", "torch.int32"]),
        ({"dtype": "float32"}, ["dtype", "'float32'"]),
        ({"device": "gpu"}, ["device", "'gpu'"]),
        ({"device": "cuda:99"}, ["device", "'cuda:99'"]),
        ({"condition": {"labels": torch.zeros(3)}}, ["labels", "(3,)", "4"]),
        ({"condition": {"labels": torch.tensor(3)}}, ["labels", "()", "4"]),
        ({"condition": {"labels": 3}}, ["labels", "3", "4"]),
        ({"grid": grid.Fixed([2.0, 1.0]), "num_steps": 3}, ["num_steps", "3", "2"]),
        ({"grid": "iddpm", "num_steps": 5000}, ["num_steps", "5000"]),
    ],
    ids=lambda value: None if isinstance(value, list) else next(iter(value)),
)
def test_bad_input(options, words):
    """One clear line that names the argument and its value, before the denoiser is called."""

    def untouched(x, sigma, **condition):
        raise AssertionError("the denoiser was called")

    with pytest.raises(InputError) as error:
        draw(untouched, (4, 2), **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [5, (), (4,), (0, 2), (4, -2), (4, 2.0), ("4", 2), "ab"], ids=repr)
def test_bad_shapes(shape):
    with pytest.raises(InputError, match="shape is") as error:
        draw(mixture(), shape)
    assert repr(shape) in str(error.value)


def test_unknown_conditions_name_the_nearest():
    with pytest.raises(InputError, match=r"'lables'.*'labels'"):
        draw(unet(), (2, 1, 8, 8), num_steps=1, condition={"lables": torch.zeros(2)})


def test_unreachable_levels_are_refused():
    bounded = process.Process(s=lambda t: 1 - t, sigma=lambda t: t / (1 - t), t_max=0.9)
    with pytest.raises(InputError, match=r"sigma = 80\.0"):
        draw(mixture(), (2, 2), process=bounded)


def test_wrong_recorded_noise_is_refused():
    for array in (torch.zeros(3, 4, 2), torch.zeros(5, 3, 2)):
        with pytest.raises(InputError, match="recorded"):
            draw(mixture(), (4, 2), sampler=CHURNED, num_steps=5, noise=noise.Recorded(array))


def test_samplers_are_frozen():
    for sampler in (Euler(), Heun(), Churn(1.0)):
        with pytest.raises(AttributeError):
            sampler.churn = None
    assert samplers.named()["heun"]() == Heun()


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), ["grid gave", "1.0, 2.0, 3.0", "falls strictly to 0"]),
        (torch.tensor([3.0, 1.0]), ["grid gave", "3.0, 1.0", "the last one is 0"]),
        (torch.tensor([math.inf, 1.0, 0.0]), ["grid gave", "inf", "finite"]),
        ([3.0, 1.0, 0.0], ["grid gave", "tensor"]),
    ],
)
def test_a_grid_of_ones_own_that_is_no_grid(levels, words):
    with pytest.raises(InputError) as error:
        edmund.sample(lambda x, sigma: x, (2, 2), grid=lambda *_: levels, progress=False)
    assert all(word in str(error.value) for word in words)


SDE_SAMPLERS = ["euler_maruyama", "sde_heun", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver"]


@pytest.mark.parametrize("sampler", SDE_SAMPLERS)
def test_more_steps_refine_the_same_sample(sampler):
    """Solvers of SDEs are given one Brownian path a seed; with new noise each time the samples would not converge."""
    grids = [torch.cat([grid.EDM(3.0)(n + 1, 0.3, 10.0)[:-1], torch.zeros(1, dtype=F64)]) for n in (32, 64, 128)]
    ends = [draw(mixture(), (200, 2), sampler=sampler, grid=grid.Fixed(levels)) for levels in grids]
    coarse, fine = ((a - b).square().mean().sqrt().item() for a, b in itertools.pairwise(ends))
    assert coarse < 0.25 and fine < 0.8 * coarse
    white = draw(mixture(), (200, 2), sampler=sampler, grid=grid.Fixed(grids[2]), noise=noise.Seeded(range(200)))
    assert (white - ends[2]).square().mean().sqrt() > 0.5
    part = draw(mixture(), (200, 2), sampler=sampler, grid=grid.Fixed(grids[0]), batch_size=37)
    assert torch.equal(part, ends[0])


def test_what_newcomers_try_first():
    network = nn.Linear(2, 2)
    cases = [
        (lambda: draw(lambda x, sigma: network(x), (4, 2)), ["torch.float64", "dtype=torch.float32"]),
        (lambda: draw(mixture(), (4, 2), grid=[80.0, 1.0, 0.0]), ["80.0, 1.0", "grid.Fixed"]),
        (lambda: draw(mixture(), (4, 2), grid=torch.tensor([80.0, 0.0])), ["grid.Fixed"]),
    ]
    for attempt, words in cases:
        with pytest.raises(InputError) as error:
            attempt()
        assert all(word in str(error.value) for word in words), str(error.value)
    assert draw(lambda x, sigma: network(x), (4, 2), dtype=torch.float32).dtype == torch.float32
