"""Standardisation of observations: its numbers against NumPy's, its shape against its formula, each warning by its
cause."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from edmund.errors import InputError
from edmund.sbi import standardise as module
from edmund.sbi.standardise import Standardise

COUNT = 4000


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fitted(x: Tensor, **options: Any) -> Standardise:
    return Standardise(x.shape[1:], **options).fit(torch.split(x, 700))


def refused(match: str, call: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def _no_unexpected_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# The statistics


def test_moments_are_numpys() -> None:
    x = normal(COUNT, 5) * torch.tensor([1.0, 1e-6, 1e6, 3.0, 0.1]) + torch.tensor([0.0, 1.0, 0.0, 1e4, -5.0])
    x[:, 1] -= 1
    found = fitted(x)
    values = x.numpy().astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-6)
    np.testing.assert_array_equal(found.low, x.amin(0))
    np.testing.assert_array_equal(found.high, x.amax(0))
    assert not found.logarithmic.any()


def test_moments_with_nan_are_numpys() -> None:
    x = normal(COUNT, 4) * 3 + 7
    x[normal(COUNT, 4, seed=1) > 0.3] = torch.nan
    x[:2000, 2] = torch.nan  # whole batches without a value
    found = fitted(x, mask=True)
    values = x.numpy().astype(np.float64)
    np.testing.assert_allclose(found.mean, np.nanmean(values, 0), rtol=1e-6)
    np.testing.assert_allclose(found.std, np.nanstd(values, 0), rtol=1e-6)
    z = found(x)
    seen = ~x.isnan()
    assert torch.equal(z[:, 4:], (~seen).float()) and (z[:, :4][~seen] == 0).all()
    bulk = seen & (z[:, :4].abs() < 3)
    expected = (values - np.nanmean(values, 0)) / np.nanstd(values, 0)
    np.testing.assert_allclose(z[:, :4][bulk], expected[bulk.numpy()], atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "axis", "features"),
    [((3, 8, 6), None, 0), ((5, 4), None, 1), ((4, 5), 0, 0), ((2, 3, 4, 5), None, 0), ((6, 7, 3), -1, 2)],
)
def test_channels_of_images_series_and_sets(shape: tuple[int, ...], axis: int | None, features: int) -> None:
    count = shape[features]
    scale = torch.arange(1.0, count + 1).view([-1 if k == features else 1 for k in range(len(shape))])
    x = normal(300, *shape) * scale + scale.square()
    found = fitted(x, channel_axis=axis)
    others = tuple(k for k in range(len(shape) + 1) if k != features + 1)
    np.testing.assert_allclose(found.mean, x.double().mean(others), rtol=1e-6)
    np.testing.assert_allclose(found.std, x.double().std(others, correction=0), rtol=1e-6)
    assert found(x).shape == x.shape and found.out_shape == shape
    masked = Standardise(shape, channel_axis=axis, mask=True).fit([x])
    doubled = tuple(2 * n if k == features else n for k, n in enumerate(shape))
    assert masked(x).shape[1:] == masked.out_shape == doubled
    plain, mask = masked(x).chunk(2, dim=1 + features)
    assert torch.equal(plain, found(x)) and (mask == 0).all()


def test_parts_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(COUNT, 3).exp() + normal(COUNT, 3, seed=1)
    whole = Standardise([3]).fit([x])
    monkeypatch.setattr(module, "_CHUNK", 100)
    parts = fitted(x)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-6, atol=0)


def test_percentiles_of_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(0, 1, 100_000)[:, None].repeat(1, 2)  # in order: a subset must not be its beginning
    monkeypatch.setattr(module, "_QUANTILES", 8000)  # 4000 rows at most
    found = module._Statistics(2)
    for part in torch.split(x.double(), 3000):
        found.add(part)
    assert 1900 < len(found._subset) <= 4000
    # The std of a percentile of 1900 uniform draws is at most sqrt(1 / 4 / 1900) = 0.0115.
    np.testing.assert_allclose(found.percentiles().T, [[0.05, 0.5, 0.95]] * 2, atol=4 * 0.0115)
    assert abs(float(found._subset.mean()) - 0.5) < 4 * 0.2887 / 1900**0.5


# The shape of the transform


def test_identity_in_the_bulk_and_asinh_beyond() -> None:
    found = Standardise([1])
    r = torch.linspace(-2000, 2000, 400_001, dtype=torch.float64)[:, None]
    z = found.double()(r)
    inside = r.abs() <= 3
    assert torch.equal(z[inside], r[inside])
    expected = r.sign() * (3 + torch.log((r.abs() - 3) + ((r.abs() - 3) ** 2 + 1).sqrt()))
    torch.testing.assert_close(z[~inside], expected[~inside])
    slope = z.diff(dim=0) / r.diff(dim=0)
    assert (slope > 0).all() and (slope <= 1 + 1e-9).all()
    assert slope.diff(dim=0).abs().max() < 0.01 * 0.6  # one step times a bound of the second derivative of asinh


def test_logarithm_of_what_spreads_over_orders_of_magnitude() -> None:
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(COUNT, 5, generator=generator)
    columns = {
        "log-normal": (2 * normal(COUNT)).exp(),
        "exponential": -uniform[:, 0].log(),
        "uniform": uniform[:, 1] + 1e-3,
        "positive normal": normal(COUNT, seed=2) + 10,
        "with a zero": torch.cat([torch.zeros(1), (2 * normal(COUNT - 1)).exp()]),
        "negative": -(normal(COUNT).exp()),
        "dust below a signal": torch.where(uniform[:, 2] < 0.3, 1e-16 * (1 + uniform[:, 3]), 1 + uniform[:, 4]),
    }
    x = torch.stack(list(columns.values()), 1)
    found = fitted(x)
    chosen = {name for name, log in zip(columns, found.logarithmic.tolist(), strict=True) if log}
    assert chosen == {"log-normal", "exponential"}
    logs = x[:, :2].double().log().numpy()
    low, median, high = np.percentile(logs, [5, 50, 95], axis=0)
    np.testing.assert_allclose(found.mean[:2], median, atol=1e-3)
    np.testing.assert_allclose(found.std[:2], (high - low) / 3.2897, rtol=1e-3)
    assert float(found.std[0]) == pytest.approx(2, rel=0.05) and abs(float(found.mean[0])) < 0.1
    z = found(x)[:, 0].double().numpy()
    expected = (logs[:, 0] - float(found.mean[0])) / float(found.std[0])
    np.testing.assert_allclose(z[np.abs(z) < 3], expected[np.abs(z) < 3], atol=1e-5)


def test_below_the_least_value_the_logarithm_goes_on_by_its_tangent() -> None:
    x = (2 * normal(COUNT, 1)).exp()
    found = fitted(x).double()
    least = x.min().double()
    at = torch.cat([torch.linspace(-3, 1, 100_001, dtype=torch.float64), least[None]]).sort().values
    z = found(at[:, None])[:, 0]
    assert z.isfinite().all() and (z.diff() > 0).all()
    step = 1e-7 * least
    above, below = (
        (found((least + step)[None, None]) - found(least[None, None])) / step,
        (found(least[None, None]) - found((least - step)[None, None])) / step,
    )
    torch.testing.assert_close(above, below, rtol=1e-4, atol=0)


def test_a_cauchy_column_keeps_its_bulk() -> None:
    cauchy = torch.tan(math.pi * (torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0)) - 0.5))
    found = fitted(cauchy)
    assert cauchy.std() > 100  # which would leave the quartiles, at -1 and 1, one hundredth apart
    # The 5th and 95th percentile of a Cauchy are -6.31 and 6.31.
    assert float(found.std) == pytest.approx(2 * 6.314 / 3.29, rel=0.05) and abs(float(found.mean)) < 0.05
    assert found(cauchy).abs().max() < 20


def test_outliers_of_student_t_do_not_reach_the_network() -> None:
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_t(2, (100_000, 3))).float()
    found = fitted(x)
    np.testing.assert_allclose(found.std, x.double().std(0, correction=0), rtol=1e-5)
    assert (x / found.std).abs().max() > 30 and found(x).abs().max() < 10
    # The order of the farthest is kept in float32.
    farthest = x[:, 0].abs().topk(50).indices
    assert torch.equal(found(x)[farthest, 0].argsort(), x[farthest, 0].argsort())


# Constant, missing, unknown


def test_constant_columns_are_warned_about_and_harmless() -> None:
    x = normal(COUNT, 5)
    x[:, 1], x[:, 3] = 2.5, 0
    x[:, 4] = 7 * (1 + 2**-23 * torch.randint(0, 3, (COUNT,), generator=torch.Generator().manual_seed(0)))
    with pytest.warns(UserWarning, match=r"columns 1 \(c = 2.5\), 3 \(c = 0\), 4 \(c = 7\) are constant") as caught:
        found = fitted(x)
    assert caught[0].filename == __file__
    z = found(x)
    assert (z[:, [1, 3]] == 0).all() and z[:, 4].abs().max() < 1e-5 and z.isfinite().all()
    other = x[:1].clone()
    other[0, 1], other[0, 3] = 3.5, 0.25
    torch.testing.assert_close(found(other)[0, [1, 3]], torch.tensor([1 / 2.5, 0.25]))
    found.check(x)
    with pytest.warns(UserWarning, match=r"x: column 1 of an observation is 3.5, and was 2.5 in all training data"):
        found.check(torch.where(torch.arange(5) == 1, other, x[:1]))


def test_columns_that_are_missing_everywhere() -> None:
    x = normal(COUNT, 3)
    x[:, 1] = torch.nan
    with pytest.warns(UserWarning, match="columns 1 are missing in all simulations"):
        found = fitted(x, mask=True)
    assert (found(x)[:, 1] == 0).all() and (found(x)[:, 4] == 1).all()
    found.check(x)
    with pytest.warns(UserWarning, match="x: column 1 of an observation is 5, and was missing in all training data"):
        found.check(torch.tensor([[0.0, 5.0, 0.0]]))


def test_distance() -> None:
    x = torch.stack([torch.linspace(-1, 1, 1001), torch.linspace(0, 20, 1001), (2 * normal(1001)).exp()], 1)
    found = fitted(x)
    found.check(x)
    assert found.distance(x).value == 0
    std = float(x[:, 1].std(correction=0))
    far = found.distance(torch.tensor([[0.5, 10.0, 1.0], [1.2, 20 + 4 * std, 1.0]]))
    assert far.value == pytest.approx(4, rel=1e-5) and far.feature == 1 and far.x == pytest.approx(20 + 4 * std)
    far = found.distance(torch.tensor([[0.0, 0.0, float(x[:, 2].max() * (2 * found.std[2]).exp())]]))
    assert far.value == pytest.approx(2, rel=1e-4) and far.feature == 2
    with pytest.warns(UserWarning, match=r"column 1 .* 4 standard deviations outside the training range \[0, 20\]"):
        found.check(torch.tensor([[0.0, 20 + 4 * std, 1.0]]))
    image = fitted(normal(50, 2, 4, 4), mask=True)
    observation = normal(1, 2, 4, 4)
    observation[0, 0, 0, 0], observation[0, 1, 3, 2] = torch.nan, 40
    assert image.distance(observation)[1:] == (1, 40)
    with pytest.warns(UserWarning, match="x_o: channel 1 of an observation is 40"):
        image.check(observation, "x_o")


def test_bad_input() -> None:
    found = fitted(normal(COUNT, 10))
    refused("x has 9 values a row; training had 10", lambda: found(normal(5, 9)))
    refused("x_o has 9 values a row; training had 10", lambda: found.check(normal(5, 9), "x_o"))
    refused(r"x has shape \[10\]; it must be \[B, 10\]", lambda: found(normal(10)))
    images = fitted(normal(20, 3, 4, 4))
    refused(r"x has shape \[2, 3, 4, 5\]; it must be \[B, 3, 4, 4\]", lambda: images(normal(2, 3, 4, 5)))
    x = normal(5, 10)
    x[2, 3] = x[1, 1] = torch.nan
    refused("x: 2 of 50 values are NaN", lambda: found.check(x))
    refused("x: 2 of 50 values are NaN or infinite", lambda: fitted(x))
    x[0, 0] = torch.inf
    refused("x: 1 of 50 values are infinite", lambda: found.check(x))
    refused("x: 1 of 50 values are infinite", lambda: fitted(x, mask=True))
    tiny = fitted(normal(COUNT, 1) * 1e-9)
    refused(r"x: column 0 of an observation is 1e\+37, too far", lambda: tiny.check(torch.tensor([[1e37]])))
    refused("batches is empty", lambda: Standardise([3]).fit([]))
    refused("channel_axis is 2", lambda: Standardise([3, 4], channel_axis=2))
    refused(r"shape is \(\)", lambda: Standardise([]))
    refused("shape is 0", lambda: Standardise([3, 0]))


# As a part of a network


def test_saved_with_the_network() -> None:
    x = (2 * normal(COUNT, 3)).exp()
    x[::7, 1] = torch.nan
    found = fitted(x, mask=True)
    again = Standardise([3], mask=True)
    again.load_state_dict(load(save(found.state_dict())))
    assert torch.equal(again(x), found(x)) and again.distance(x * 50) == found.distance(x * 50)


def test_gradients_are_finite_where_values_are_missing() -> None:
    x = (2 * normal(COUNT, 2)).exp()
    found = fitted(x, mask=True)
    at = torch.tensor([[torch.nan, 1.0], [-3.0, torch.nan], [1e4, 0.0]], requires_grad=True)
    found(at).sum().backward()
    assert at.grad is not None and at.grad.isfinite().all()
    assert (at.grad[at.isnan()] == 0).all() and (at.grad[~at.isnan()] > 0).all()


def test_other_types_come_out_as_the_networks() -> None:
    found = fitted(normal(COUNT, 2))
    x = torch.tensor([[1, -2], [0, 1]])
    assert torch.equal(found(x), found(x.float())) and found(x.double()).dtype == torch.float32
    assert found.double()(x.float()).dtype == torch.float64


def test_on_the_device(device: torch.device) -> None:
    x = (2 * normal(COUNT, 3)).exp()
    x[::5, 0] = torch.nan
    found, there = fitted(x, mask=True), Standardise([3], mask=True).to(device).fit([x.to(device)])
    torch.testing.assert_close(there(x.to(device)).cpu(), found(x), rtol=1e-5, atol=1e-6)
    assert there.distance(x.to(device) * 50).value == pytest.approx(found.distance(x * 50).value, rel=1e-4)
