"""Pictures of sampling: flow lines are the quantiles' paths, local errors have their order, names do not overlap."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from test_plots import check_layout

from edmund import denoiser, grid, plots, process, samplers
from edmund.errors import InputError
from edmund.plots.error_against_nfe import spread
from edmund.plots.local_error import local_errors

F64 = torch.float64
PEAKS = denoiser.GaussianMixture([[-1.0], [1.2]], [0.15, 0.25], [0.4, 0.6])
ROUND = denoiser.Gaussian([0.5], [[0.25]])


def cdf_of_peaks(x, sigma):
    parts = zip((0.4, 0.6), (-1.0, 1.2), (0.15, 0.25), strict=True)
    return sum(w * 0.5 * (1 + torch.erf((x - m) / torch.sqrt(2 * (s**2 + sigma**2)))) for w, m, s in parts)


# Flow lines


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "flow", "odd"])
def test_lines_stay_at_their_quantiles(name):
    path = oracles.PROCESSES[name]
    panel = plots.flow_line_arrays(path, PEAKS, lines=5, points=60)
    t, sigma = torch.from_numpy(panel.t), torch.from_numpy(panel.sigma)
    assert (panel.sigma[0], panel.sigma[-1]) == (0.002, 4.0)
    torch.testing.assert_close(sigma, path.sigma(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(t.diff(), t.diff().mean().expand(59), rtol=1e-9, atol=0)
    z = torch.from_numpy(panel.x) / path.s(t)[:, None]
    quantiles = ((torch.arange(5, dtype=F64) + 0.5) / 5).expand(60, 5)
    torch.testing.assert_close(cdf_of_peaks(z, sigma[:, None]), quantiles, rtol=0, atol=2e-6)


def test_density_is_that_of_the_scaled_state():
    path = process.RectifiedFlow()
    panel = plots.flow_line_arrays(path, ROUND, sigma_max=2.0, points=200)
    s, sigma = 1 / (1 + panel.sigma)[:, None], panel.sigma[:, None]
    std = s * np.sqrt(0.25 + sigma**2)
    exact = np.exp(-0.5 * ((panel.places - 0.5 * s) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    assert panel.density == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_curvature_is_zero_of_straight_lines_alone():
    """Of data at one point the lines are straight over t = sigma, and square roots over t = sigma^2."""
    point = denoiser.Gaussian([0.0], [[0.0]])
    straight = plots.flow_line_arrays(process.EDM(), point, lines=4)
    assert abs(straight.curvature) < 1e-9
    bent = plots.flow_line_arrays(process.VE(), point, lines=4, points=1500)
    reach = 1.15 * bent.x.max()
    t = np.linspace(0, 1, 400_001) ** 2  # sqrt(t) moves evenly
    lengths = []
    for end in bent.x[-1]:
        x = np.sqrt(t) * end / (2 * reach)
        lengths.append(np.hypot(np.diff(t), np.diff(x)).sum() / math.hypot(1, x[-1]) - 1)
    assert bent.curvature == pytest.approx(np.mean(lengths), rel=1e-2)
    order = [plots.flow_line_arrays(oracles.PROCESSES[name], PEAKS).curvature for name in ("edm", "vp", "odd")]
    assert order[0] < order[1] < order[2]


def test_flow_lines_figure_is_legible():
    figure = plots.flow_lines({"EDM": process.EDM(), "odd": oracles.PROCESSES["odd"]}, PEAKS, lines=6)
    check_layout(figure)
    panel = plots.flow_line_arrays(process.EDM(), PEAKS, lines=6)
    drawn = figure.axes[0].lines
    assert len(drawn) == 6 and (np.asarray(drawn[2].get_ydata()) == panel.x[:, 2]).all()
    assert figure.axes[0].get_title() == f"EDM: +{100 * panel.curvature:.2g} %"
    check_layout(plots.flow_lines({name: process.EDM() for name in "abcd"}, ROUND, columns=3))


# Local errors


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (samplers.Euler(), 1),
        (samplers.Heun(), 2),
        (samplers.named()["dpmpp_2m"](), 2),
        (samplers.named()["dpmpp_3m"](), 3),
        (samplers.named()["unipc"](), 4),
    ],
)
def test_a_step_adds_one_order_more_than_the_whole(solver, order):
    """Halving a step divides what it adds by 2^(p + 1); multistep ones beyond their start."""
    unit = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    coarse, fine = (
        plots.local_errors(oracles.mixture(), solver, grid.VE()(n + 1, 0.3, 10.0), unit, tolerance=1e-12)
        for n in (64, 128)
    )
    assert coarse.sigma.shape == coarse.error.shape == (64,)
    assert coarse.sigma[[0, 1]] == pytest.approx([10.0, 10 * 0.03 ** (1 / 64)])
    ratio = np.log2(coarse.error[16:] / fine.error[32::2])  # steps that start at the same level
    assert np.median(ratio) == pytest.approx(order + 1, abs=0.15)


def test_local_errors_of_one_step_are_those_of_the_sampler():
    """A single step has no history: it is the sampler's own, from the start to the exact flow's end."""
    oracle = oracles.gaussian()
    unit = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    for path in (process.VP(), process.EDM()):
        found = plots.local_errors(oracle, samplers.Heun(), [5.0, 2.0, 0.0], unit, process=path)
        end = oracles.integrate(samplers.Heun(), oracle, path, 5 * unit, torch.tensor([5.0, 2.0], dtype=F64))
        exact = oracles.gaussian_flow(oracle, 5 * unit, 5.0, 2.0)
        assert found.error == pytest.approx([(end - exact).square().mean().sqrt().item()], rel=1e-6)


def test_local_errors_know_the_condition():
    def shifted(x, sigma, shift):
        return ROUND(x - shift, sigma) + shift

    unit = torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    shift = torch.linspace(-3, 3, 6, dtype=F64)[:, None]
    sigmas = torch.tensor([5.0, 2.0, 1.0], dtype=F64)
    found = plots.local_errors(shifted, samplers.Euler(), sigmas, unit, condition={"shift": shift})
    same = plots.local_errors(ROUND, samplers.Euler(), sigmas, unit - shift / 5)
    assert found.error == pytest.approx(same.error, rel=1e-5)


def test_local_error_figure_draws_what_it_is_given():
    curves = {
        "one": plots.LocalErrors(np.array([10.0, 1.0, 0.1]), np.array([1e-3, 2e-2, 0.0])),
        "two": plots.LocalErrors(np.array([10.0, 0.5]), np.array([1e-4, 1e-3])),
    }
    figure = plots.local_error_against_sigma(curves, {"EDM": grid.EDM()(8, 0.1, 10.0), "VE": [10.0, 1.0, 0.1]})
    check_layout(figure)
    first, second = figure.axes[0].lines
    assert np.asarray(first.get_xydata()).tolist() == [[10.0, 1e-3], [1.0, 2e-2]]
    assert np.asarray(second.get_ydata()).tolist() == [1e-4, 1e-3]
    ticks = np.asarray(figure.axes[1].lines[0].get_xdata())
    assert (ticks == grid.EDM()(8, 0.1, 10.0)[:-1].numpy()).all()
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["EDM", "VE"]
    check_layout(plots.local_error_against_sigma(curves))


# Error against NFE


def test_spread_heights_are_apart_and_nearest():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.0, 0.0, 0.7], 0.1) == pytest.approx([0.0, 0.1, 0.7])
    assert spread([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert spread([0.2, 0.21, 0.9], 0.1) == pytest.approx([0.155, 0.255, 0.9])


def test_error_against_nfe_names_every_line():
    calls = (8, 10, 18, 35, 63, 127)
    table = {f"sampler {k}": {n: (k % 7 + 1) * n ** -(1 + k / 9) for n in calls[: 3 + k % 4]} for k in range(25)}
    figure = plots.error_against_nfe(table, highlight=["sampler 3"])
    check_layout(figure)
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts if text.get_text()) == sorted(table)
    for line, errors in zip(axes.lines, table.values(), strict=False):
        assert np.asarray(line.get_xdata()).tolist() == list(errors)
        assert np.asarray(line.get_ydata()).tolist() == list(errors.values())
    looks = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in axes.lines[:25]}
    assert len(looks) == 25
    widths = [line.get_linewidth() for line in axes.lines[:25]]
    assert [k for k, width in enumerate(widths) if width > 2] == [3]
    heights = sorted(text.get_position()[1] for text in axes.texts if text.get_text())
    assert min(later - earlier for earlier, later in itertools.pairwise(heights)) > 0.02


def test_error_against_nfe_leaves_out_what_has_no_place():
    figure = plots.error_against_nfe({"a": {8: 0.5, 4: 1.0, 16: 0.0, 32: math.inf, 64: math.nan}})
    check_layout(figure)
    assert np.asarray(figure.axes[0].lines[0].get_xydata()).tolist() == [[4, 1.0], [8, 0.5]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.flow_lines({}, PEAKS), "processes is empty"),
        (lambda: plots.flow_line_arrays(process.EDM(), lambda x, sigma: x), "an exact denoiser"),
        (lambda: plots.flow_line_arrays(process.EDM(), oracles.gaussian()), "vectors of one element"),
        (lambda: plots.flow_line_arrays(process.EDM(), PEAKS, lines=0), "lines is 0"),
        (lambda: plots.flow_line_arrays(process.EDM(), PEAKS, sigma_max=0.001), "sigma_max is 0.001"),
        (
            lambda: plots.local_errors(ROUND, samplers.Heun(samplers.Churn(9.0)), [2.0, 1.0], torch.zeros(1, 1)),
            "sampler is Heun",
        ),
        (lambda: plots.local_errors(ROUND, samplers.Heun(), [1.0, 2.0], torch.zeros(1, 1)), r"sigmas is \[1.0, 2.0\]"),
        (lambda: plots.local_errors(ROUND, samplers.Heun(), [1.0, 0.0], torch.zeros(1, 1)), r"sigmas is \[1.0\]"),
        (lambda: plots.local_error_against_sigma({}), "curves is empty"),
        (lambda: plots.error_against_nfe({}), "table is empty"),
        (lambda: plots.error_against_nfe({"a": {8: 0.0}}), r"table\['a'\] is \{8: 0.0\}"),
        (lambda: plots.error_against_nfe({"heun": {8: 1.0}}, highlight=["huen"]), "did you mean 'heun'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampler", [samplers.UniPC(predictor_order=2), samplers.SASolver(2, 2, tau=0.0)], ids=["unipc", "sa_solver"]
)
def test_local_errors_of_a_predictor_corrector_begin_on_the_solution(sampler):
    """The images that a step begins with are of the solution, not of the predictions that earlier steps corrected."""
    mean, variance = 0.3, 0.5
    oracle = denoiser.Gaussian([mean], [[variance]])
    latents = torch.randn(16, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = grid.EDM(3.0)(13, 0.1, 10.0)[:-1]

    def solution(k):
        factor = torch.sqrt((variance + levels[k] ** 2) / (variance + levels[0] ** 2))
        return mean + factor * (10.0 * latents - mean)

    found = local_errors(oracle, sampler, levels, latents).error
    for k in (4, 6):
        predict, correct = sampler.plan(process.EDM(), levels[:-1], levels[1:])[k].stages
        start = solution(k)
        past = [oracle(solution(k - back), levels[k - back]) for back in range(3)]
        predicted = predict.x * start + sum(w * image for w, image in zip(predict.kept, past, strict=False))
        images = [oracle(predicted, levels[k + 1]), *past]
        end = correct.x * start + sum(w * image for w, image in zip(correct.kept, images, strict=False))
        assert found[k] == pytest.approx((end - solution(k + 1)).square().mean().sqrt().item(), rel=2e-3)
