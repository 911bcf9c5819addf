"""Pictures: the data they show are exact, the pixels are the samples', and nothing overlaps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from edmund import formulation, plots
from edmund.errors import InputError
from edmund.noise_density import LogNormal, LogUniform
from edmund.plots.curves import smooth
from edmund.plots.trajectory import CONTRAST


def drawn_texts(figure: Figure) -> list[Text]:
    """All texts that can be seen: matplotlib keeps, and does not draw, the labels of ticks beyond an axis's ends."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in hidden]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def check_layout(figure: Figure) -> None:
    """No two texts overlap and none leaves the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    sheet = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in drawn_texts(figure)]
    for name, box in boxes:
        inside = sheet.x0 <= box.x0 and box.x1 <= sheet.x1 and sheet.y0 <= box.y0 and box.y1 <= sheet.y1
        assert inside, f"{name!r} is cut off"
    for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), f"{name!r} overlaps {other!r}"


def numbered(n: int, channels: int = 1, height: int = 2, width: int = 3) -> torch.Tensor:
    """Images whose values all differ: 0, 1, 2, ..."""
    return torch.arange(n * channels * height * width, dtype=torch.float32).reshape(n, channels, height, width)


def page(figure: Figure, k: int = 0) -> np.ndarray:
    """The array that the k-th axes show as an image."""
    return np.asarray(figure.axes[k].images[0].get_array())


# Bytes, sheets, PNG


def test_bytes_are_the_linear_map_of_the_range() -> None:
    values = torch.tensor([-20.0, -1.0, -0.5, 0.0, 1.0, 3.0]).reshape(1, 1, 2, 3)
    assert plots.to_bytes(values, (-1.0, 1.0)).flatten().tolist() == [0, 0, 64, 128, 255, 255]
    digits = torch.arange(17, dtype=torch.uint8).reshape(1, 1, 1, 17)
    assert plots.to_bytes(digits, (0, 16)).flatten().tolist() == [round(v * 255 / 16) for v in range(17)]
    colours = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert plots.to_bytes(colours, (0, 255)).tolist() == [[[[10, 20, 30]]]]


def test_sheet_has_every_pixel_in_its_place() -> None:
    pictures = numbered(5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    sheet = plots.tile(pictures, 3, scale=2, gap=1)
    assert sheet.shape == (2 * (2 * 2 + 1) + 1, 3 * (3 * 2 + 1) + 1, 1)
    seen = np.zeros(sheet.shape[:2], dtype=bool)
    for k, row, column in itertools.product(range(5), range(4), range(6)):
        top, left = 1 + k // 3 * 5 + row, 1 + k % 3 * 7 + column
        assert sheet[top, left, 0] == pictures[k, row // 2, column // 2, 0]
        seen[top, left] = True
    assert (sheet[~seen] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_pixel_exact(tmp_path: Path, channels: int) -> None:
    from PIL import Image

    images = numbered(6, channels, 2, 3)
    sheet = plots.write_png(tmp_path / "grid.png", images, (0, 107), columns=2, scale=4, gap=3)
    with Image.open(tmp_path / "grid.png") as picture:
        read = np.asarray(picture)
        assert picture.mode == ("L" if channels == 1 else "RGB")
    assert (read.reshape(sheet.shape) == sheet).all()
    assert sheet.shape == (3 * 11 + 3, 2 * 15 + 3, channels)
    assert (sheet[3:11, 3:15] == plots.to_bytes(images, (0, 107))[0].repeat(4, 0).repeat(4, 1)).all()


def test_png_enlarges_small_images_only(tmp_path: Path) -> None:
    assert plots.write_png(tmp_path / "a.png", torch.zeros(4, 1, 8, 8), (0, 16)).shape == (2 * 52 + 4, 2 * 52 + 4, 1)
    assert plots.write_png(tmp_path / "b.png", torch.zeros(1, 3, 64, 64), (0, 1)).shape == (64 + 10, 64 + 10, 3)


def test_image_grid_shows_the_sheet_with_its_labels() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    figure = plots.image_grid(images, (0, 1), columns=2, row_labels=["a", "b", "c"], title="Some")
    check_layout(figure)
    expected = plots.tile(plots.to_bytes(images, (0, 1)), 2, scale=12, gap=6)
    assert (page(figure) == expected[..., 0]).all()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    check_layout(plots.image_grid(torch.rand(15, 3, 32, 32), (0, 1)))


# Side by side


def test_side_by_side_takes_the_first_of_each_class() -> None:
    real_labels = torch.tensor([1, 0, 0, 1, 2, 0, 1])
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    first, second = plots.chosen(7, 6, real_labels, labels, rows=10, columns=2)
    assert first.tolist() == [[1, 2], [0, 3]] and second.tolist() == [[0, 3], [1, 2]]
    first, second = plots.chosen(7, 6, real_labels, labels, rows=1, columns=8)
    assert first.tolist() == [[1, 2, 5]] and second.tolist() == [[0, 3, 5]]  # there are three of class 0, not eight
    first, second = plots.chosen(7, 6, None, None, rows=10, columns=4)
    assert first.tolist() == second.tolist() == [[0, 1, 2, 3]]

    real, generated = torch.rand(7, 1, 8, 8), torch.rand(6, 1, 8, 8)
    names = ["zero", "one", "two"]
    figure = plots.side_by_side(
        real, generated, (0, 1), real_labels=real_labels, labels=labels, columns=2, class_names=names
    )
    check_layout(figure)
    for k, (images, index) in enumerate(((real, [1, 2, 0, 3]), (generated, [0, 3, 1, 2]))):
        assert (page(figure, k) == plots.tile(plots.to_bytes(images[index], (0, 1)), 2, scale=12, gap=6)[..., 0]).all()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["zero", "one"]
    assert [axes.get_title() for axes in figure.axes] == ["real", "generated"]


# Trajectory


def test_trajectory_shows_evenly_chosen_levels_and_ends_with_the_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    steps, n = 12, 3
    sample = 16 * torch.rand(n, 1, 8, 8, generator=generator)
    sigmas = torch.cat([torch.logspace(2, -2, steps, dtype=torch.float64), torch.zeros(1)])
    noise = torch.randn(n, 1, 8, 8, generator=generator)
    x = torch.stack([sample + sigma * noise for sigma in sigmas])
    denoised = sample.expand(steps, n, 1, 8, 8)
    noisy, clean, shown = plots.trajectory_bytes(sigmas, x, denoised, (0, 16), samples=2, levels=4)
    assert shown.tolist() == pytest.approx([100, sigmas[4].item(), sigmas[7].item(), 0.01, 0])
    expected = plots.to_bytes(sample[:2], (0, 16))
    assert noisy.shape == clean.shape == (5, 2, 8, 8, 1)
    for k in range(5):
        assert (clean[k] == expected).all()
    assert (noisy[-1] == expected).all()
    assert np.abs(noisy[-2].astype(int) - expected).max() <= 1  # sigma 0.01 of 16 is less than a level
    # at sigma 100 the sample cannot be seen: black to white are 2.5 standard deviations of the noise to each side
    std = 100 * noise[0].std()
    half = (8**2 + (CONTRAST * std) ** 2) ** 0.5
    by_hand = ((x[0, 0] - 8) / half * 127.5 + 127.5).round().clamp(0, 255)
    assert np.abs(noisy[0, 0, ..., 0].astype(int) - by_hand[0].numpy()).max() <= 1


def test_trajectory_figure_is_legible() -> None:
    x, denoised = torch.rand(19, 5, 1, 8, 8), torch.rand(18, 5, 1, 8, 8)
    sigmas = formulation.EDM().grid(18, 0.002, 80.0)
    figure = plots.trajectory(sigmas, x, denoised, (0, 1), samples=3)
    check_layout(figure)
    top = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert (top[0], top[-2], top[-1]) == ("80", "0.002", "0") and len(top) == 10
    assert len(figure.axes) == 3
    check_layout(plots.trajectory(sigmas[-2:], x[-2:], denoised[-1:], (0, 1), samples=1))


# Curves


def test_metrics_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records: list[dict[str, Any]] = [
        {"samples": 128, "loss": 1.5},
        {"samples": 256, "loss": 1.0, "validation_loss": 0.9},
        {"samples": 256, "other": 3},
        {"samples": 384, "validation_loss": None, "loss": 0.75},
    ]
    path.write_text("\n".join(map(json.dumps, records)) + '\n{"samples": 512, "lo')
    samples, loss = plots.read_curve(path, "loss")
    assert samples.tolist() == [128, 256, 384] and loss.tolist() == [1.5, 1.0, 0.75]
    assert [column.tolist() for column in plots.read_curve(path, "validation_loss")] == [[256], [0.9]]
    with pytest.raises(InputError, match="no line with 'samples' and 'score'"):
        plots.read_curve(path, "score")
    with pytest.raises(InputError, match="there is no such file"):
        plots.read_curve(tmp_path / "none.jsonl", "loss")
    path.write_text("[1, 2]\n")
    with pytest.raises(InputError, match=r"line 1 of .* is not a JSON object"):
        plots.read_curve(path, "loss")
    path.write_text('{"samples": 1, "loss"\n{"samples": 2, "loss": 3}\n')
    with pytest.raises(InputError, match=r"line 1 of .* is not JSON"):
        plots.read_curve(path, "loss")


def test_smoothing_keeps_lines_and_averages_noise() -> None:
    line = 3.0 - 0.01 * np.arange(200)
    assert smooth(line, 10)[:195] == pytest.approx(line[:195])
    assert smooth(np.array([5.0]), 0).tolist() == [5.0]
    noise = np.random.default_rng(0).normal(size=4000)
    assert smooth(noise, 100)[100:].std() == pytest.approx(0.1, rel=0.3)
    assert smooth(noise, 100)[-1] == pytest.approx(noise[-51:].mean())


def test_loss_curve_draws_what_it_is_given() -> None:
    samples = np.arange(1, 301) * 128
    loss = 0.3 + np.exp(-samples / 5000)
    validation = (samples[49::50], loss[49::50] + 0.05)
    figure = plots.loss_curve(samples, loss, validation)
    check_layout(figure)
    raw, mean, points = figure.axes[0].lines
    assert (raw.get_xydata() == np.stack([samples, loss], 1)).all()
    assert np.asarray(mean.get_ydata())[100:250] == pytest.approx(loss[100:250], rel=1e-2)
    assert (points.get_xydata() == np.stack(validation, 1)).all()
    assert figure.axes[0].get_xlabel() == "training samples seen" and figure.axes[0].get_yscale() == "linear"
    falling = plots.loss_curve(samples, np.exp(-samples / 5000))
    check_layout(falling)
    assert falling.axes[0].get_yscale() == "log"
    check_layout(plots.loss_curve(np.array([128]), np.array([0.5])))


def test_density_is_the_exact_one_in_log_sigma() -> None:
    sigma, density = plots.density_of(LogNormal(-1.2, 1.2))
    exact = np.exp(-0.5 * ((np.log(sigma) + 1.2) / 1.2) ** 2) / (1.2 * np.sqrt(2 * np.pi))
    assert density == pytest.approx(exact, abs=2e-3)
    sigma, density = plots.density_of(LogUniform(0.02, 100.0))
    assert density == pytest.approx(np.full(60, 1 / np.log(5000)), rel=5e-3)


def test_loss_against_sigma_draws_what_it_is_given() -> None:
    sigma = np.geomspace(0.002, 80, 40)
    current, initial = 1 - 0.7 * np.exp(-(np.log(sigma) ** 2) / 4), np.ones(40)
    densities = {"training": LogNormal(-1.2, 1.2), "suggested: P_mean -0.4, P_std 1.0": LogNormal(-0.4, 1.0)}
    figure = plots.loss_against_sigma(sigma, current, initial, densities)
    check_layout(figure)
    first, now, outlined = figure.axes[0].lines
    assert (first.get_xydata() == np.stack([sigma, initial], 1)).all()
    assert (now.get_xydata() == np.stack([sigma, current], 1)).all()
    level, density = plots.density_of(densities["suggested: P_mean -0.4, P_std 1.0"])
    drawn = np.asarray(outlined.get_ydata())
    assert (outlined.get_xdata() == level).all() and drawn / drawn.max() == pytest.approx(density / density.max())
    assert level[drawn.argmax()] == pytest.approx(np.exp(-0.4), rel=0.1)
    assert figure.axes[0].get_xscale() == "log"
    check_layout(plots.loss_against_sigma(sigma, current))


# Vectors


def test_pairs_draw_the_points_that_they_are_given() -> None:
    samples = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    figure = plots.pairs(samples, samples[:200] + 1)
    check_layout(figure)
    real, drawn = figure.axes[3].collections  # feature 1 against feature 0
    assert np.allclose(drawn.get_offsets(), samples[:, :2].double().numpy())
    assert np.allclose(real.get_offsets(), samples[:200, :2].double().numpy() + 1)
    with pytest.raises(InputError, match="real has 2 features"):
        plots.pairs(samples, samples[:, :2])


# Formulations


def test_curves_of_formulations_are_those_of_table_1() -> None:
    edm = plots.formulation_curves(formulation.EDM(), sigma_data=0.5)
    assert (edm.sigma[0], edm.sigma[-1]) == pytest.approx((0.002, 80.0))
    assert edm.t == pytest.approx(edm.sigma) and (edm.s == 1).all()
    assert edm.c_skip == pytest.approx(0.25 / (edm.sigma**2 + 0.25))
    assert edm.c_out == pytest.approx(edm.sigma * 0.5 / np.sqrt(edm.sigma**2 + 0.25))
    assert edm.c_in == pytest.approx(1 / np.sqrt(edm.sigma**2 + 0.25))
    assert edm.c_noise == pytest.approx(np.log(edm.sigma) / 4)
    steps = np.arange(18) / 17
    assert edm.nodes[:-1] == pytest.approx((80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    assert edm.nodes[-1] == 0 and len(edm.nodes) == 19

    given = plots.formulation_curves(formulation.EDM(sigma_data=2.0), sigma_data=0.5)
    assert given.c_skip == pytest.approx(4 / (given.sigma**2 + 4))

    vp = plots.formulation_curves(formulation.VP())
    assert vp.sigma == pytest.approx(np.sqrt(np.expm1(19.9 * vp.t**2 / 2 + 0.1 * vp.t)))
    assert vp.s == pytest.approx(1 / np.sqrt(1 + vp.sigma**2))
    assert vp.c_out == pytest.approx(-vp.sigma)
    flow = plots.formulation_curves(formulation.Flow())
    assert flow.s == pytest.approx(1 - flow.t) and flow.c_skip == pytest.approx(1 / (1 + flow.sigma))


def test_figure_of_all_formulations_is_legible() -> None:
    columns = [make() for make in formulation.named().values()]
    figure = plots.formulations(columns)
    check_layout(figure)
    assert len(figure.axes) == 5 * len(columns)
    for k, column in enumerate(columns):
        assert figure.axes[5 * k].get_ylabel() == column.name
        drawn = plots.formulation_curves(column)
        assert (np.asarray(figure.axes[5 * k].lines[0].get_xydata()) == np.stack([drawn.t, drawn.sigma], 1)).all()
        assert (np.asarray(figure.axes[5 * k + 4].lines[0].get_ydata()) == drawn.nodes[:-1]).all()
    check_layout(plots.formulations([formulation.VE()]))


# No state, no display


def test_nothing_is_imported_early_and_no_state_is_left(tmp_path: Path) -> None:
    code = f"""
import sys, torch
from edmund import plots
assert not any(name.startswith("matplotlib") or name == "PIL" for name in sys.modules)
import matplotlib
before = matplotlib.rcParams.copy()
figure = plots.image_grid(torch.zeros(4, 1, 8, 8), (0, 1))
plots.save(figure, {str(tmp_path / "figure.png")!r})
plots.save(figure, {str(tmp_path / "figure.pdf")!r})
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figure.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.to_bytes(torch.zeros(3, 8, 8), (0, 1)), r"images has shape \(3, 8, 8\)"),
        (lambda: plots.to_bytes(torch.zeros(3, 2, 8, 8), (0, 1)), "1 or 3 channels"),
        (lambda: plots.to_bytes(torch.zeros(0, 1, 8, 8), (0, 1)), r"images has shape \(0, 1, 8, 8\)"),
        (lambda: plots.to_bytes(torch.full((1, 1, 8, 8), torch.inf), (0, 1)), "images has NaN or infinite"),
        (lambda: plots.to_bytes(torch.zeros(1, 1, 8, 8), (1, 1)), r"value_range is \(1, 1\)"),
        (lambda: plots.image_grid(torch.zeros(4, 1, 8, 8), (0, 1), columns=0), "columns is 0"),
        (lambda: plots.image_grid(torch.zeros(4, 1, 8, 8), (0, 1), row_labels=["a"]), "row_labels has 1 names; 2 rows"),
        (lambda: plots.chosen(4, 4, None, torch.zeros(4), rows=1, columns=1), "labels and real_labels is None"),
        (lambda: plots.chosen(2, 2, torch.tensor([0, 1]), torch.tensor([0, 2]), rows=9, columns=1), "has the class 2,"),
        (
            lambda: plots.chosen(2, 2, torch.tensor([0]), torch.tensor([0, 2]), rows=9, columns=1),
            r"real_labels has shape",
        ),
        (
            lambda: plots.trajectory(torch.ones(3), torch.zeros(2, 1, 1, 8, 8), torch.zeros(2, 1, 1, 8, 8), (0, 1)),
            r"sigmas, x, denoised have shapes \(3,\)",
        ),
        (lambda: plots.loss_curve(np.zeros(2), np.zeros(3)), r"samples and loss have shapes \(2,\) and \(3,\)"),
        (lambda: plots.loss_against_sigma(np.array([0.0, 1.0]), np.ones(2)), "sigma has shape"),
        (lambda: plots.formulations([]), "rows is empty"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
