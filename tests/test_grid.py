"""Grids: ends, order, the arithmetic each one promises, rounding to a discrete model's levels."""

from __future__ import annotations

import math

import pytest
import torch

from edmund import grid, preconditioning, process
from edmund.errors import InputError

F64 = torch.float64
GRIDS = {
    "edm": grid.EDM(),
    "edm-rho-1": grid.EDM(1.0),
    "vp": grid.VP(),
    "ve": grid.VE(),
    "poly-1": grid.PolyExponential(),
    "poly-2": grid.PolyExponential(2.0),
    "time-flow": grid.UniformTime(process.RectifiedFlow()),
    "time-cosine": grid.UniformTime(process.Cosine()),
    "time-vp": grid.UniformTime(process.VP()),
    "time-odd": grid.UniformTime(process.Process(s=torch.ones_like, sigma=lambda t: 80 * t**3)),
}
every_grid = pytest.mark.parametrize("name", GRIDS)


@every_grid
@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.02, 100.0), (0.01, 1.0)])
@pytest.mark.parametrize("steps", [2, 3, 18, 257])
def test_ends_and_order(name, low, high, steps):
    sigmas = GRIDS[name](steps, low, high)
    assert sigmas.dtype == F64 and sigmas.shape == (steps + 1,)
    assert sigmas[0].item() == pytest.approx(high, rel=1e-11)
    assert sigmas[-2].item() == pytest.approx(low, rel=1e-11)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@every_grid
def test_one_step(name):
    assert GRIDS[name](1, 0.02, 50.0).tolist() == [50.0, 0.0]


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 11.5])
def test_edm_is_arithmetic_in_its_power(rho):
    powers = grid.EDM(rho)(40, 0.002, 80.0)[:-1] ** (1 / rho)
    torch.testing.assert_close(powers.diff(), powers.diff().mean().expand(39), rtol=1e-11, atol=0)
    # The equation, in plain Python.
    expected = [(80 ** (1 / rho) + i / 39 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(40)]
    torch.testing.assert_close(
        grid.EDM(rho)(40, 0.002, 80.0)[:-1], torch.tensor(expected, dtype=F64), rtol=1e-12, atol=0
    )


def test_what_each_is_uniform_in():
    def uniform(values):
        steps = values.diff()
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=0)

    uniform(torch.log(grid.VE()(30, 0.02, 100.0)[:-1]))
    uniform(torch.log(grid.PolyExponential()(30, 0.02, 100.0)[:-1]))
    rho_2 = grid.PolyExponential(2.0)(30, 0.02, 100.0)[:-1]
    uniform(torch.sqrt(torch.log(rho_2 / 0.02).clamp_min(0)))
    for path in (process.RectifiedFlow(), process.Cosine(), process.VP()):
        uniform(path.t(grid.UniformTime(path)(30, 0.02, 100.0)[:-1]))
    uniform(process.VP.for_range(0.02, 100.0).t(grid.VP()(30, 0.02, 100.0)[:-1]))
    # VE's own formula, in t = sigma^2.
    t = [100.0**2 * (0.02**2 / 100.0**2) ** (i / 29) for i in range(30)]
    torch.testing.assert_close(grid.VE()(30, 0.02, 100.0)[:-1] ** 2, torch.tensor(t, dtype=F64), rtol=1e-12, atol=0)


def test_iddpm_levels_are_the_published_ones():
    """Table 1's index floor(j0 + (M - 1 - j0)/(N - 1) i + 1/2) over the whole range of levels."""
    levels = process.iddpm_levels()
    for steps in (2, 10, 18, 256, 992):
        sigmas = grid.IDDPM()(steps, levels[999].item(), levels[8].item())
        index = [math.floor(8 + (999 - 8) / (steps - 1) * i + 0.5) for i in range(steps)]
        ours = process.nearest_level(sigmas[:-1], levels).tolist()
        # Ties of round and floor(+ 1/2) may fall to the two sides.
        assert max(abs(a - b) for a, b in zip(ours, index, strict=True)) <= 1
        assert sum(a != b for a, b in zip(ours, index, strict=True)) <= steps // 10
        assert torch.equal(sigmas[:-1], levels[ours])
        assert sigmas[-1] == 0


def test_iddpm_takes_only_levels_inside():
    sigmas = grid.IDDPM()(20, 0.1, 30.0)
    levels = process.iddpm_levels()
    assert all(sigma in levels for sigma in sigmas[:-1])
    assert sigmas[0] <= 30.0 < levels[process.nearest_level(sigmas[:1], levels)[0] - 1]
    assert sigmas[-2] >= 0.1 > levels[process.nearest_level(sigmas[-2:-1], levels)[0] + 1]


def test_rounding():
    model = preconditioning.IDDPM()
    levels = process.iddpm_levels()
    for name in ("edm", "ve", "time-flow", "vp"):
        plain, rounded = GRIDS[name](18, 0.05, 80.0), GRIDS[name](18, 0.05, 80.0, model.round_sigma)
        nearest = levels[(levels[None] - plain[:-1, None]).abs().argmin(1)]
        torch.testing.assert_close(rounded[:-1], nearest, rtol=0, atol=0)
        assert rounded[-1] == 0


def test_more_steps_than_levels():
    model = preconditioning.IDDPM()
    inside = int(((process.iddpm_levels() >= 0.1) & (process.iddpm_levels() <= 30)).sum())
    assert len(grid.IDDPM()(inside, 0.1, 30.0)) == inside + 1
    for build in (
        lambda: grid.IDDPM()(inside + 1, 0.1, 30.0),
        lambda: grid.EDM()(inside + 1, 0.1, 30.0, model.round_sigma),
        # Rounding that reaches level 0 before the end has too few levels as well.
        lambda: grid.EDM()(5, 1e-6, 1e-3, model.round_sigma),
    ):
        with pytest.raises(InputError, match="num_steps is") as error:
            build()
        assert "sigma_min" in str(error.value) and "\n" not in str(error.value)


def test_fixed():
    levels = [10.0, 3.0, 0.5]
    for given in (levels, [*levels, 0.0], torch.tensor(levels)):
        assert grid.Fixed(given)(3, 0.5, 10.0).tolist() == [10.0, 3.0, 0.5, 0.0]
    assert grid.Fixed([7.0])(1, 7.0, 7.0).tolist() == [7.0, 0.0]
    assert grid.Fixed([7.0, 0.0]) == grid.Fixed([7.0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: grid.EDM(0.0), ["rho", "0.0"]),
        (lambda: grid.EDM(-7.0), ["rho", "-7.0"]),
        (lambda: grid.EDM(math.nan), ["rho", "nan"]),
        (lambda: grid.PolyExponential(0.0), ["rho", "0.0"]),
        (lambda: grid.EDM()(0, 0.1, 1.0), ["num_steps", "0"]),
        (lambda: grid.EDM()(-3, 0.1, 1.0), ["num_steps", "-3"]),
        (lambda: grid.EDM()(2.5, 0.1, 1.0), ["num_steps", "2.5"]),
        (lambda: grid.EDM()(4, 1.0, 0.1), ["sigma_min", "1.0", "sigma_max", "0.1"]),
        (lambda: grid.EDM()(4, 1.0, 1.0), ["sigma_min", "1.0"]),
        (lambda: grid.EDM()(4, 0.0, 1.0), ["sigma_min", "0.0"]),
        (lambda: grid.EDM()(4, -0.5, 1.0), ["sigma_min", "-0.5"]),
        (lambda: grid.EDM()(4, 0.5, math.inf), ["sigma_max", "inf"]),
        (lambda: grid.VP(epsilon_s=2.0)(4, 0.5, 1.0), ["epsilon_s", "2.0"]),
        (lambda: grid.VP()(4, 0.5, 0.6), ["epsilon_s", "0.5", "0.6"]),
        (lambda: grid.Fixed([1.0, 2.0]), ["sigmas", "[1.0, 2.0]"]),
        (lambda: grid.Fixed([1.0, 1.0]), ["sigmas", "[1.0, 1.0]"]),
        (lambda: grid.Fixed([]), ["sigmas", "[]"]),
        (lambda: grid.Fixed([0.0]), ["sigmas", "[0.0]"]),
        (lambda: grid.Fixed([math.nan, 1.0]), ["sigmas", "nan"]),
        (lambda: grid.Fixed([math.inf, 1.0]), ["sigmas", "inf"]),
        (lambda: grid.Fixed([1.0, -1.0]), ["sigmas", "-1.0"]),
        (lambda: grid.Fixed([2.0, 1.0])(3, 1.0, 2.0), ["num_steps", "3", "2"]),
        (lambda: grid.Fixed([2.0, 1.0])(2, 0.5, 2.0), ["sigma_min", "0.5", "1.0"]),
        (lambda: grid.Fixed([2.0, 1.0])(2, 1.0, 3.0), ["sigma_max", "3.0", "2.0"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_names():
    named = grid.named()
    assert named == {
        "edm": grid.EDM,
        "vp": grid.VP,
        "ve": grid.VE,
        "iddpm": grid.IDDPM,
        "poly_exponential": grid.PolyExponential,
    }
