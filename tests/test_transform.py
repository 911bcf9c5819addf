"""Transforms: exact round trips, log-determinants against autograd, one-pass statistics against two-pass ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr, ndtr
from scipy.stats import kstest
from torch import Tensor

from edmund.errors import InputError
from edmund.moments import Moments
from edmund.transform import (
    Blocks,
    Bounded,
    Chain,
    Identity,
    Log1p,
    MinMax,
    Probit,
    Scale,
    Standardise,
    TangentLog,
    Transform,
    Whiten,
    from_config,
)

INF = math.inf


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def vectors(dtype: torch.dtype = torch.float64) -> Tensor:
    """[50, 4] in (0, 1): inside the domain of every transform below."""
    return torch.rand(50, 4, generator=generator(), dtype=torch.float64).clamp(1e-6).to(dtype)


def images() -> Tensor:
    return torch.randn(20, 3, 5, 7, generator=generator(), dtype=torch.float64) * torch.tensor([1.0, 2.0, 30.0]).view(
        3, 1, 1
    ) + torch.tensor([0.0, -4.0, 1e4]).view(3, 1, 1)


LOWER = [[0.5, 0.0, 0.0, 0.0], [0.2, 0.4, 0.0, 0.0], [-0.3, 0.1, 0.6, 0.0], [0.1, -0.2, 0.3, 2.0]]

ON_VECTORS: list[Transform] = [
    Identity(),
    Scale(-2.5),
    Scale([1.0, -2.0, 3.0, 4.0]),
    Standardise(0.5, 0.25),
    Standardise([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]),
    MinMax(0.0, 16.0),
    MinMax([0.0, 0.1, 0.2, 0.3], [1.0, 1.1, 1.2, 1.3]),
    Log1p(),
    TangentLog([0.5, 2.0, 0.1, 1.0]),
    Bounded(0.0, 1.0),
    Bounded([0.0, -1.0, None, None], [1.0, None, 3.0, None]),
    Probit(0.0, 1.0),
    Probit([0.0, -1.0, -2.0, 0.0], [1.0, 3.0, 5.0, 1.5]),
    Probit([0.0, -1.0, -2.0, 0.0], [1.0, 3.0, 5.0, 1.5], [0.01, 0.2, 0.7, 1.0]),
    Whiten([0.1, 0.2, 0.3, 0.4], LOWER),
    Blocks([([0, 1, 2, 3], Probit(0.0, 1.0))]),
    Blocks([([0], Probit(0.0, 1.0)), ([1, 2], Scale([2.0, -3.0])), ([3], Log1p())]),
    Blocks([([3, 0], Whiten([0.5, 0.5], [[2.0, 0.0], [-1.0, 0.5]])), ([2, 1], Bounded([0.0, None], [1.0, 2.0]))]),
    Blocks([([2, 0], Standardise([1.0, 2.0], [3.0, 4.0])), ([1, 3], Scale(-2.0))]),
    Blocks([([1], Log1p()), ([0], Scale(3.0)), ([2, 3], Bounded(0.0, 2.0))]),
    Chain([Scale(3.0), Log1p(), Standardise(0.4, 0.3)]),
    Chain([MinMax(0.0, 2.0), Scale([1.0, 2.0, 3.0, 4.0]), Chain([Standardise(1.0, 0.1)])]),
    Chain([]),
]


@pytest.mark.parametrize("transform", ON_VECTORS, ids=repr)
def test_round_trip(transform: Transform) -> None:
    y = vectors()
    x = transform.forward(y)
    torch.testing.assert_close(transform.inverse(x), y, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(transform.forward(transform.inverse(x)), x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("transform", ON_VECTORS, ids=repr)
def test_log_abs_det_is_autograds(transform: Transform) -> None:
    y = vectors()[:5]
    expected = torch.stack(
        [
            torch.linalg.slogdet(torch.autograd.functional.jacobian(lambda v: transform.forward(v[None])[0], row))[1]
            for row in y
        ]
    )
    torch.testing.assert_close(transform.log_abs_det(y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transform", ON_VECTORS, ids=repr)
def test_inverse_is_differentiable(transform: Transform) -> None:
    # The Jacobian of the inverse is the inverse of the Jacobian: their log-determinants are opposite.
    y = vectors()[:5]
    x = transform.forward(y)
    jacobians = [torch.autograd.functional.jacobian(lambda v: transform.inverse(v[None])[0], row) for row in x]
    found = torch.linalg.slogdet(torch.stack(jacobians))[1]
    torch.testing.assert_close(found, -transform.log_abs_det(y), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transform", ON_VECTORS, ids=repr)
def test_affine_is_forward(transform: Transform) -> None:
    y = vectors()
    x = transform.forward(y)
    second_difference = x[0] - 2 * transform.forward((y[:1] + y[1:2]) / 2)[0] + x[1]
    if isinstance(transform, Whiten):  # linear, but not element by element
        assert transform.affine is None and second_difference.abs().max() < 1e-13
    elif transform.affine is None:
        assert second_difference.abs().max() > 1e-3
    else:
        scale, shift = transform.affine
        torch.testing.assert_close(scale * y + shift, x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("transform", ON_VECTORS, ids=repr)
def test_config_goes_through_json(transform: Transform) -> None:
    again = from_config(json.loads(json.dumps(transform.config(), allow_nan=False)))
    assert again == transform
    assert torch.equal(again.forward(vectors()), transform.forward(vectors()))


@pytest.mark.parametrize("transform", ON_VECTORS, ids=repr)
def test_dtype_is_kept(transform: Transform) -> None:
    for dtype in (torch.float32, torch.float64):
        x = transform.forward(vectors(dtype))
        assert x.dtype == transform.inverse(x).dtype == transform.log_abs_det(vectors(dtype)).dtype == dtype


def test_channels_and_elements_of_fields() -> None:
    y = images()
    per_channel = Standardise.fit([y])
    x = per_channel.forward(y)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-11)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))
    assert per_channel.affine is not None
    scale, shift = per_channel.affine
    torch.testing.assert_close(scale * y + shift, x, rtol=0, atol=1e-10)
    # 35 pixels of each channel share its scale.
    expected = -35 * y.std((0, 2, 3), correction=0).log().sum()
    torch.testing.assert_close(per_channel.log_abs_det(y), expected.expand(20))

    per_element = Standardise(y.mean(0), y.std(0))
    torch.testing.assert_close(per_element.forward(y).std(0), torch.ones(3, 5, 7, dtype=torch.float64))
    assert from_config(json.loads(json.dumps(per_element.config()))) == per_element


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
def test_small_integers_become_float32(dtype: torch.dtype) -> None:
    y = torch.tensor([[0, 1], [1, 1]], dtype=dtype)
    for transform in (Identity(), Scale(2.0), MinMax(0, 255), Log1p(), Standardise(1, 2), Chain([])):
        assert transform.forward(y).dtype == torch.float32
        assert transform.log_abs_det(y).dtype == torch.float32


def test_wide_integers_keep_their_digits() -> None:
    y = torch.tensor([[2**24 + 1]])
    assert Identity().forward(y).item() == 2**24 + 1


def test_bytes_to_minus_one_and_one() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None]
    x = MinMax(0, 255).forward(levels)
    assert x[0] == -1 and x[255] == 1
    assert torch.equal(MinMax(0, 255).inverse(x).round().to(torch.uint8), levels)


def test_bounded_forms() -> None:
    """Each form against its formula; all increase with y."""
    transform = Bounded([2.0, 2.0, None, None], [5.0, None, 5.0, None])
    y = torch.tensor([[3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    expected = [math.log(1 / 2), math.log(1), -math.log(2), 3.0]
    assert transform.forward(y)[0].tolist() == pytest.approx(expected, rel=1e-15)
    assert (transform.forward(y + 0.5) > transform.forward(y)).all()


def test_bounded_keeps_digits_near_both_bounds() -> None:
    transform = Bounded(-3.0, 7.0)
    x = torch.linspace(-30, 30, 121, dtype=torch.float64)[:, None]
    y = transform.inverse(x)
    assert ((y > -3) & (y < 7)).all()
    # The distance to the nearer bound is 10 sigmoid(-|x|); y itself can tell it to half a unit in its last place.
    distance = torch.minimum(y + 3, 7 - y)
    torch.testing.assert_close(distance, 10 * torch.sigmoid(-x.abs()), rtol=1e-14, atol=5e-16)
    assert Bounded(0.0, 1.0).inverse(torch.tensor([[-700.0]], dtype=torch.float64)).item() == pytest.approx(
        math.exp(-700), rel=1e-13
    )


def test_bounded_gradients_are_finite_far_out() -> None:
    transform = Bounded([0.0, 0.0, None, None], [1.0, None, 1.0, None])
    x = torch.full((1, 4), 0.0, dtype=torch.float64)
    x[0] = torch.tensor([800.0, -800.0, 800.0, 1e6])
    x.requires_grad_()
    (slope,) = torch.autograd.grad(transform.inverse(x).sum(), x)
    assert slope.isfinite().all()
    assert slope[0, 3] == 1


def test_bounded_density_integrates_to_one() -> None:
    """The change of variables, as a density uses it: a unit normal in x is a density in y with mass 1."""
    transform = Bounded(2.0, 5.0)
    y = torch.linspace(2, 5, 200_003, dtype=torch.float64)[1:-1, None]
    log_density = -transform.forward(y).square().sum(1) / 2 - math.log(2 * math.pi) / 2 + transform.log_abs_det(y)
    assert float(torch.trapezoid(log_density.exp(), y[:, 0])) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("where", ["low", "high"])
def test_probit_keeps_digits_near_both_bounds(where: str) -> None:
    """Against SciPy's log of the normal tail, out to where float64 ends: 1e-300 of the width from the bound at 0."""
    transform = Probit(0.0, 4.0) if where == "low" else Probit(-4.0, 0.0)
    sign = -1 if where == "low" else 1
    x = sign * torch.linspace(0.5, 37, 74, dtype=torch.float64)[:, None]
    y = transform.inverse(x)
    expected = math.log(4) + torch.from_numpy(log_ndtr(-x.abs().numpy()))
    torch.testing.assert_close(y.abs().log(), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(transform.forward(y), x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("width", [1e-3, 0.05, 0.2, 0.7, 1.0])
def test_uniform_numbers_through_probit_have_unit_variance_and_tails_of_that_width(width: float) -> None:
    transform = Probit(-1.0, 3.0, width)
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5)[:, None] / 1_000_000
    x = transform.forward(4 * u - 1)
    assert float(x.mean()) == pytest.approx(0, abs=1e-9) and float(x.square().mean()) == pytest.approx(1, abs=1e-4)
    # Far out, x moves by the width where a normal number moves by 1.
    q = torch.tensor([[-30.0], [-20.0]], dtype=torch.float64)
    y = 4 * torch.from_numpy(ndtr(q.numpy()))
    x = Probit(0.0, 4.0, width).forward(y)
    assert float(x[1] - x[0]) == pytest.approx(10 * width, rel=1e-9)
    # And back, from wherever a sampler may end: through the knee at the bound, and far beyond.
    transform = Probit(0.0, 4.0, width)
    y = 4 * torch.from_numpy(ndtr(np.linspace(-37, 0.5, 2000)))[:, None]
    torch.testing.assert_close(transform.inverse(transform.forward(y)), y, rtol=1e-9, atol=0)
    ends = torch.tensor([[-math.inf], [-1e30], [1e30], [math.inf]], dtype=torch.float64)
    assert transform.inverse(ends).flatten().tolist() == [0.0, 0.0, 4.0, 4.0]


def test_the_inverse_of_probit_has_second_derivatives() -> None:
    transform = Probit(-1.0, 3.0, 0.2)
    x = torch.linspace(-2.2, 2.2, 45, dtype=torch.float64)[:, None].requires_grad_()
    torch.autograd.gradcheck(transform.inverse, (x,))
    torch.autograd.gradgradcheck(transform.inverse, (x,))


def test_probit_is_differentiable_in_the_middle() -> None:
    transform = Probit(-1.0, 1.0)
    slope = 2 / math.sqrt(2 * math.pi)
    for function, expected in ((transform.forward, 1 / slope), (transform.inverse, slope)):
        middle = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(function(middle).sum(), middle)
        assert float(gradient) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("transform", "draw"),
    [
        (Probit([0.0, -3.0], [1.0, 5.0]), lambda u, z: torch.tensor([0.0, -3.0]) + torch.tensor([1.0, 8.0]) * u),
        (
            Whiten([1.0, -2.0], [[2.0, 0.0], [1.5, 0.1]]),
            lambda u, z: torch.tensor([1.0, -2.0]) + z @ torch.tensor([[2.0, 1.5], [0.0, 0.1]]).double(),
        ),
        (
            Blocks([([1], Probit(-3.0, 5.0)), ([0], Standardise(1.0, 2.0))]),
            lambda u, z: torch.stack([1 + 2 * z[:, 0], -3 + 8 * u[:, 1]], 1),
        ),
    ],
    ids=["probit", "whiten", "blocks"],
)
def test_the_law_becomes_standard_normal(transform: Transform, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    random = generator()
    u = torch.rand(20_000, 2, generator=random, dtype=torch.float64)
    z = torch.randn(20_000, 2, generator=random, dtype=torch.float64)
    x = transform.forward(draw(u, z))
    # Each axis and the two diagonals: were they correlated, a diagonal would have another variance.
    for direction in ((1, 0), (0, 1), (1, 1), (1, -1)):
        projected = x @ torch.tensor(direction, dtype=torch.float64) / math.hypot(*direction)
        assert kstest(projected.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_pass_moments(size: int) -> None:
    """A mean 1e8 times the std, in parts of any size: the naive sum of squares would have no digit left."""
    y = 1e8 + torch.randn(1000, 3, generator=generator(), dtype=torch.float64)
    moments = Moments.of(y.split(size))
    assert moments.count == 1000
    torch.testing.assert_close(moments.mean, y.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.std, (y - 1e8).std(0, correction=0), rtol=1e-7, atol=0)
    assert torch.equal(moments.low, y.amin(0)) and torch.equal(moments.high, y.amax(0))
    assert moments.total_std == pytest.approx(float((y - 1e8).std(correction=0)), rel=1e-7)


def test_moments_of_images_in_unequal_batches() -> None:
    y = images()
    moments = Moments.of(iter([y[:3], y[3:3], y[3:4], y[4:]]))
    assert moments.mean.shape == (3, 1, 1)
    torch.testing.assert_close(moments.mean, y.mean((0, 2, 3)).view(3, 1, 1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moments.std, y.std((0, 2, 3), correction=0).view(3, 1, 1), rtol=1e-12, atol=0)
    assert moments.total_mean == pytest.approx(float(y.mean()), rel=1e-13)
    assert moments.total_std == pytest.approx(float(y.std(correction=0)), rel=1e-12)


def test_fit() -> None:
    y = images()
    fitted = MinMax.fit(y.split(6))
    x = fitted.forward(y)
    assert x.amin((0, 2, 3)).tolist() == [-1, -1, -1] and x.amax((0, 2, 3)).tolist() == [1, 1, 1]
    assert fitted == MinMax.fit(y)  # a tensor is one batch
    levels = torch.randint(0, 256, (9, 1, 4, 4), generator=generator(), dtype=torch.uint8)
    assert Standardise.fit([levels]).config()["mean"] == [[[pytest.approx(float(levels.double().mean()))]]]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        ([torch.zeros(0, 3)], "empty"),
        ([torch.zeros(3)], r"shape \[3\]"),
        ([(torch.zeros(2, 3), {})], "type tuple"),
        ([torch.rand(2, 3), torch.rand(2, 4)], r"shapes \[3\] and \[4\]"),
        (
            [torch.tensor([[1.0, math.nan], [2.0, 3.0]]), torch.tensor([[INF, -INF]])],
            "3 NaN or infinite values among 6",
        ),
        ([torch.tensor([[0.1, 1.0], [0.1, 2.0]])] * 3, "1 of 2 features are constant.*feature 0 is 0.1"),
    ],
)
@pytest.mark.parametrize("transform", [Standardise, MinMax])
def test_fit_refuses(transform: type[Standardise | MinMax], batches: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        transform.fit(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scale(0.0), "factor is 0"),
        (lambda: Scale(math.nan), "factor is nan"),
        (lambda: Scale("two"), "factor is two"),
        (lambda: Standardise(0.0, -1.0), "std is -1"),
        (lambda: Standardise([0.0, 1.0], [1.0, 0.0]), r"std is \(1.0, 0.0\)"),
        (lambda: Standardise([0.0, 1.0], [1.0, 1.0, 1.0]), r"mean has shape \[2\] and std has shape \[3\]"),
        (lambda: Standardise([[0.0], [1.0, 2.0]], 1.0), "mean is"),
        (lambda: MinMax(1.0, 1.0), "low is 1.0, high is 1.0"),
        (lambda: MinMax(0.0, INF), "high is inf"),
        (lambda: Bounded(3.0, 2.0), "low is 3.0, high is 2.0"),
        (lambda: Bounded(math.nan), "low is nan"),
        (lambda: Chain(["log1p"]), "transforms holds 'log1p'"),
        (lambda: Probit(2.0, 1.0), "low is 2.0, high is 1.0"),
        (lambda: Probit(0.0, INF), "high is inf"),
        (lambda: Probit(0.0, 1.0, 0.0), "width is 0.0; it must be above 0 and at most 1"),
        (lambda: Whiten(0.0, [[1.0]]), r"mean has shape \[\] and cholesky \[1, 1\]"),
        (lambda: Whiten([0.0, 0.0], [1.0, 1.0]), r"mean has shape \[2\] and cholesky \[2\]"),
        (lambda: Whiten([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]), "must be lower triangular"),
        (lambda: Whiten([0.0, 0.0], [[1.0, 0.0], [0.5, 0.0]]), "diagonal above 0"),
        (lambda: Blocks([([0], Scale(2.0)), ([2], Identity())]), r"columns \[\[0\], \[2\]\]; every column"),
        (lambda: Blocks([([0, 1], Scale(2.0)), ([1], Identity())]), "exactly one block"),
        (lambda: Blocks([]), r"columns \[\]"),
        (lambda: Blocks([([0], "probit")]), "blocks holds"),
    ],
)
def test_impossible_statistics(make, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "y", "message"),
    [
        (Log1p(), [[0.0, -1.0], [math.nan, -2.0]], "3 of 4 values are not above -1"),
        (Bounded(0.0, 1.0), [[0.5, 1.0], [0.0, 2.0]], r"3 of 4 values are on or outside the bounds \(0.0, 1.0\)"),
        (Bounded([None, 0.0], None), [[math.nan, 0.5]], "1 of 2 values"),
        (Probit(0.0, 1.0), [[0.5, 1.0], [math.nan, 2.0]], r"3 of 4 values are on or outside the bounds \(0.0, 1.0\)"),
        (Whiten([0.0], [[1.0]]), [[0.0, 1.0]], r"whiten is for vectors \[B, 1\], and y has shape \[1, 2\]"),
        (Blocks([([0], Identity())]), [[0.0, 1.0]], r"blocks is for vectors \[B, 1\], and y has shape \[1, 2\]"),
        (Standardise([0.0] * 3, 1.0), [[0.0, 1.0]], r"mean of standardise has shape \[3\], and samples have \[2\]"),
    ],
)
def test_values_outside_the_domain(transform: Transform, y: list[list[float]], message: str) -> None:
    for function in (transform.forward, transform.log_abs_det):
        if isinstance(transform, Standardise) and function != transform.forward:
            continue
        with pytest.raises(InputError, match=message):
            function(torch.tensor(y))


def test_a_flat_statistic_is_not_taken_for_a_row_of_pixels() -> None:
    with pytest.raises(InputError, match=r"shape \[3\].*\[3, 1, 1\]"):
        Standardise([0.0, 0.0, 0.0], 1.0).forward(torch.zeros(2, 3, 3, 3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "standardize", "mean": 0, "std": 1}, "standardise"),
        ({"type": "standardise", "mean": 0, "sdt": 1}, "'std'"),
        ({"type": "standardise", "mean": 0}, "lacks std"),
        ({"mean": 0}, "must be a mapping with a type"),
        ({"type": "chain", "transforms": 3}, "transforms is 3"),
        ({"type": ["chain"]}, "transform type"),
        ({"type": "scale", "factor": None}, "factor is None"),
        ({"type": "blocks", "blocks": [[[0], {"type": "identity"}]]}, "must be a list of mappings"),
        ({"type": "blocks", "blocks": [{"columns": [0], "transform": {"type": "probt"}}]}, "probit"),
    ],
)
def test_configs_that_cannot_be(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_config(config)


def test_statistics_come_from_arrays_and_tensors_alike() -> None:
    values = [0.1, 0.2]
    assert Standardise(np.array(values), 1.0) == Standardise(torch.tensor(values, dtype=torch.float64), 1.0)
    assert hash(Standardise(values, 1.0)) == hash(Standardise(tuple(values), 1))


def test_tangent_log_is_a_logarithm_that_zero_and_less_do_not_break() -> None:
    y = torch.tensor([[-3.0], [0.0], [0.5], [2.0]], dtype=torch.float64)
    x = TangentLog(0.5).forward(y)
    expected = [math.log(0.5) - 7, math.log(0.5) - 1, math.log(0.5), math.log(2)]
    assert torch.allclose(x[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-14)
    with pytest.raises(InputError, match=r"low is 0\.0; it must be positive"):
        TangentLog(0.0)


def test_blocks_leave_columns_where_they_were() -> None:
    """Also for orders that are their own inverse."""
    y = vectors()
    for order in ([1, 0, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0]):
        blocks = Blocks([([column], Scale(10.0 ** (column + 1))) for column in order])
        assert torch.equal(blocks.forward(y), y * 10.0 ** torch.arange(1, 5))
