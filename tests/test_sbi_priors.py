"""Priors: exactly normal where that is promised, density and support as torch's own, and never outside."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy.stats import kstest
from torch import Tensor

from edmund.denoiser import Gaussian
from edmund.errors import InputError
from edmund.sbi.priors import Prior, prior_from_yaml
from edmund.transform import Blocks, Chain, Probit, Standardise, Whiten

COVARIANCE = torch.tensor([[2.0, 1.0], [1.0, 3.0]])


class Wedge:
    """A user's own: p(theta) = 2 theta on (0, 1), twice; its limits stand in `low` and `high`."""

    low, high = 0.0, torch.tensor([1.0, 1.0])

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(*shape, 2).sqrt()

    def log_prob(self, theta: Tensor) -> Tensor:
        return (2 * theta).log().sum(-1)


class Arrays:
    """In NumPy, with the global stream, one parameter as [n], and a support."""

    support = D.constraints.greater_than(2.0)

    def sample(self, shape: tuple[int, ...]) -> np.ndarray:
        return 2 + np.random.exponential(size=tuple(shape))  # noqa: NPY002

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        assert isinstance(theta, np.ndarray) and theta.ndim == 1
        return 2 - theta


def uniform(low: float = -1.0, high: float = 2.0, d: int = 3) -> D.Distribution:
    return D.Independent(D.Uniform(torch.full((d,), low), torch.full((d,), high)), 1)


# What each is, and torch's own distributions of its parameters in groups of columns, for the density.
EXACT: dict[str, Any] = {
    "normal": D.Independent(D.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.1, 3.0])), 1),
    "log_normal": D.Independent(D.LogNormal(torch.tensor([-0.9, 1.0]), torch.tensor([0.5, 1.5])), 1),
    "uniform": uniform(),
    "multivariate_normal": D.MultivariateNormal(torch.tensor([1.0, -2.0]), COVARIANCE),
    "scalar": D.Normal(2.0, 0.5),
    "product": [
        D.Uniform(0.0, 1.0),
        D.Uniform(torch.tensor([2.0]), torch.tensor([5.0])),
        D.MultivariateNormal(torch.zeros(2), COVARIANCE),
        D.LogNormal(0.0, 1.0),
        uniform(d=2),
    ],
}
STANDARDISED: dict[str, Any] = {
    "beta": D.Independent(D.Beta(torch.tensor([2.0, 0.5]), torch.tensor([3.0, 0.5])), 1),
    "gamma": D.Independent(D.Gamma(torch.tensor([2.0, 0.5]), torch.tensor([3.0, 1.0])), 1),
    "mixture": D.MixtureSameFamily(
        D.Categorical(torch.tensor([0.3, 0.7])),
        D.Independent(D.Normal(torch.tensor([[0.0, 1.0], [5.0, 9.0]]), 1.0), 1),
    ),
    "overlapping": D.MixtureSameFamily(
        D.Categorical(torch.tensor([0.5, 0.5])),
        D.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), validate_args=False),
        validate_args=False,
    ),
    "affine": D.Independent(
        D.TransformedDistribution(
            D.Uniform(torch.zeros(2), torch.ones(2)), [D.AffineTransform(5.0, torch.tensor([2.0, -2.0]))]
        ),
        1,
    ),
    "logit_normal": D.Independent(
        D.TransformedDistribution(D.Normal(torch.zeros(2), 1.0), [D.SigmoidTransform(), D.AffineTransform(1.0, 2.0)]),
        1,
    ),
    "half_cauchy": D.HalfCauchy(2.0),
    "pareto": D.Pareto(1.5, 2.0),
    "user": Wedge(),
    "arrays": Arrays(),
    "with_beta": [D.Beta(2.0, 3.0), D.Uniform(0.0, 1.0), Wedge(), D.Normal(0.0, 1.0)],
}
ALL = EXACT | STANDARDISED


@pytest.fixture(scope="module")
def priors() -> dict[str, Prior]:
    return {name: Prior.of(given) for name, given in ALL.items()}


@pytest.mark.parametrize("name", EXACT)
def test_known_laws_become_exactly_normal(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    assert prior.gaussian
    theta = prior.sample(20_000, seed=1)
    z = prior.to_model(theta)
    pairs = [(i, j) for i in range(prior.dim) for j in range(i)]
    directions = [
        *torch.eye(prior.dim),
        *((torch.eye(prior.dim)[i] + torch.eye(prior.dim)[j]) / 2**0.5 for i, j in pairs),
    ]
    for direction in directions:
        assert kstest((z @ direction).numpy(), "norm").pvalue > 1e-3
    # And as densities, which sees every digit: ln p(theta) = ln N(z; 0, I) + ln |det dz/dtheta|.
    wide = theta.double()
    inner = prior.transform.forward(wide)
    expected = -inner.square().sum(1) / 2 - prior.dim * math.log(2 * math.pi) / 2 + prior.transform.log_abs_det(wide)
    torch.testing.assert_close(prior.log_prob(wide), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STANDARDISED)
def test_other_laws_are_standardised(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    assert not prior.gaussian
    z = prior.to_model(prior.sample(20_000, seed=1))
    assert z.mean(0).abs().max() < 0.05
    assert (z.std(0) - 1).abs().max() < 0.05


@pytest.mark.parametrize("name", [name for name, given in ALL.items() if isinstance(given, D.Distribution)])
def test_density_and_draws_are_torchs_own(name: str, priors: dict[str, Prior]) -> None:
    prior, own = priors[name], ALL[name]
    theta = prior.sample(5000, seed=3)
    assert theta.shape == (5000, prior.dim) and theta.dtype == torch.float32
    rows = theta if own.event_shape else theta[:, 0]
    torch.testing.assert_close(prior.log_prob(theta).float(), own.log_prob(rows), rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    drawn = own.sample((5000,)).reshape(5000, -1)
    for mine, theirs in zip(theta.T, drawn.T, strict=True):
        assert kstest(mine.numpy(), theirs.numpy()).pvalue > 1e-3


def test_a_product_has_the_sum_of_the_densities(priors: dict[str, Prior]) -> None:
    theta = priors["product"].sample(100, seed=2)
    expected = 0.0
    start = 0
    for law in EXACT["product"]:
        width = math.prod(law.event_shape)
        part = theta[:, start : start + width]
        value = law.log_prob(part if law.event_shape else part[:, 0])
        expected = expected + value
        start += width
    torch.testing.assert_close(priors["product"].log_prob(theta).float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["scalar", "overlapping", "half_cauchy", "pareto", "arrays"])
def test_the_density_in_model_space_integrates_to_one(name: str, priors: dict[str, Prior]) -> None:
    """p(z) = p(theta) / |dz/dtheta|, by the trapezoidal rule; where p(theta) has steps it converges slowly."""
    transform = priors[name].transform
    z = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    theta = transform.inverse(z)
    inside = priors[name].contains(theta) & (priors[name].box.inward(theta) == theta).all(1)
    log_density = priors[name].log_prob(theta[inside]) - transform.log_abs_det(theta[inside])
    assert float(torch.trapezoid(log_density.exp(), z[inside, 0])) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["product", "with_beta", "affine", "mixture"])
def test_on_the_device(name: str, priors: dict[str, Prior], device: torch.device) -> None:
    prior = priors[name]
    theta = prior.sample(100, seed=9)
    z = prior.to_model(theta)
    there = theta.to(device)
    for found, expected in (
        (prior.to_model(there), z),
        (prior.to_user(z.to(device)), prior.to_user(z)),
        (prior.log_prob(there), prior.log_prob(theta)),
        (prior.contains(there * 3), prior.contains(theta * 3)),
    ):
        assert found.device.type == device.type
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_never_outside(name: str, priors: dict[str, Prior]) -> None:
    """However far out in z, and in float32 of the user's units, where most of these round onto a limit."""
    prior = priors[name]
    own = ALL[name]
    for dtype in (torch.float32, torch.float64):
        far = torch.cat([torch.linspace(-40, 40, 801, dtype=dtype), torch.tensor([-1e4, 1e4], dtype=dtype)])
        z = torch.stack([far.roll(97 * k) for k in range(prior.dim)], 1)
        theta = prior.to_user(z)
        assert theta.dtype == torch.float32 and theta.isfinite().all()
        assert prior.contains(theta).all()
        assert (prior.log_prob(theta) > -math.inf).all()
        if isinstance(own, D.Distribution):
            near = theta[theta.abs().amax(1) < 1e15]  # torch's own densities overflow in float32 beyond
            assert len(near) > 100
            assert (own.log_prob(near if own.event_shape else near[:, 0]) > -math.inf).all()
        assert prior.to_model(theta).isfinite().all()  # and there is a way back


@pytest.mark.parametrize("name", ALL)
def test_there_and_back(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    theta = prior.sample(1000, seed=4)
    torch.testing.assert_close(prior.to_user(prior.to_model(theta.double())), theta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_compact_is_standardised_and_goes_there_and_back(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    theta = prior.sample(20_000, seed=3)
    z = prior.compact.forward(theta.double())
    assert z.mean(0).abs().max() < 0.05
    assert (z.std(0) - 1).abs().max() < 0.05
    again = prior.box.inward(prior.compact.inverse(z).float())
    torch.testing.assert_close(again, theta, rtol=1e-6, atol=1e-6)
    two = prior.box.low.isfinite() & prior.box.high.isfinite()
    if two.any():
        # About affine between two limits: the middle half of the range keeps its shape.
        shares = (theta - prior.box.low) / (prior.box.high - prior.box.low)
        for column in two.nonzero()[:, 0].tolist():
            middle = (shares[:, column] - 0.5).abs() < 0.25
            if int(middle.sum()) > 1000:
                line = torch.corrcoef(torch.stack([theta[middle, column].double(), z[middle, column]]))[0, 1]
                assert line > 0.999
    else:
        assert prior.compact is prior.transform


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_standardised_and_between_limits_as_they_are(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    theta = prior.sample(20_000, seed=3)
    z = prior.to_input(theta.double())
    assert z.mean(0).abs().max() < 0.05
    assert (z.std(0) - 1).abs().max() < 0.05
    two = prior.box.low.isfinite() & prior.box.high.isfinite()
    assert torch.equal(z[:, ~two], prior.to_model(theta.double())[:, ~two])
    for column in two.nonzero()[:, 0].tolist():
        slope = z[:, column].std() / theta[:, column].double().std()
        line = slope * (theta[:, column].double() - theta[:, column].double().mean()) + z[:, column].mean()
        torch.testing.assert_close(z[:, column], line, rtol=1e-6, atol=1e-6)


def test_transforms_are_as_named(priors: dict[str, Prior]) -> None:
    assert priors["uniform"].transform == Probit([-1.0] * 3, [2.0] * 3)
    assert priors["uniform"].compact == Probit([-1.0] * 3, [2.0] * 3, 0.2)
    assert isinstance(priors["normal"].transform, Standardise)
    assert isinstance(priors["log_normal"].transform, Chain)
    assert isinstance(priors["multivariate_normal"].transform, Whiten)
    product = priors["product"].transform
    assert isinstance(product, Blocks)
    # Neighbours of one kind are one block.
    assert [columns for columns, _ in product.blocks] == [(0, 1), (2, 3), (4,), (5, 6)]


def test_limits_in_the_users_units() -> None:
    """Values on a limit: torch's Uniform has no density at `high`, nor LogNormal at 0; Gamma declares 0 its own."""
    box = Prior.of(uniform(0.1, 0.7, d=1))
    low, high = torch.tensor([[0.1]]), torch.tensor([[0.7]])
    assert box.contains(low).item() and not box.contains(high).item()
    assert box.log_prob(high).item() == -math.inf and box.log_prob(low).item() > -math.inf
    # Both go in, a step inside; so does a float64 limit that float32 rounds outward.
    z = box.to_model(torch.cat([low, high]))
    assert z[0] < -5 and z[1] > 5
    wide = Prior.of(D.Independent(D.Uniform(torch.tensor([0.7]).double() + 1e-9, torch.ones(1).double()), 1))
    assert wide.to_model(torch.tensor([[0.7]])).isfinite().all()
    assert (
        not wide.contains(torch.tensor([[0.7]])).item() and wide.contains(wide.to_user(torch.tensor([[-40.0]]))).item()
    )

    shifted = D.TransformedDistribution(D.Normal(torch.zeros(1), 1.0), [D.ExpTransform(), D.AffineTransform(5.0, 1.0)])
    assert Prior.of(shifted).to_model(torch.tensor([[5.0]])).isfinite().all()
    positive = Prior.of(D.LogNormal(torch.zeros(1), torch.ones(1)))
    assert not positive.contains(torch.zeros(1, 1)).item()
    for dtype in (torch.float32, torch.float64):
        assert positive.box.inward(torch.zeros(1, 1, dtype=dtype)).item() == torch.finfo(dtype).tiny
    with pytest.raises(InputError, match=r"1 of 2 rows lie outside .* row 1, parameter 0 is 0, not in \(0, inf\)"):
        positive.to_model(torch.tensor([[1.0], [0.0]]))
    assert positive.to_user(torch.tensor([[-1e4]])).item() == torch.finfo(torch.float32).tiny
    assert positive.to_user(torch.tensor([[1e4]])).item() == torch.finfo(torch.float32).max

    assert Prior.of(D.Gamma(1.0, 1.0)).to_model(torch.zeros(1, 1)).isfinite().all()


def test_outside_is_refused_with_the_number() -> None:
    prior = Prior.of(uniform(d=2))
    theta = torch.tensor([[0.0, 0.0], [0.0, 3.0], [-9.0, 9.0], [0.0, math.nan]])
    assert prior.contains(theta).tolist() == [True, False, False, False]
    assert prior.log_prob(theta).tolist() == [pytest.approx(-2 * math.log(3)), -math.inf, -math.inf, -math.inf]
    with pytest.raises(InputError, match=r"theta: 3 of 4 rows .* row 1, parameter 1 is 3, not in \[-1, 2\)"):
        prior.to_model(theta)
    for wrong, message in (
        (torch.zeros(2, 3), r"theta has shape \[2, 3\]; .* needs \[B, 2\]"),
        ("a", "theta is a str"),
    ):
        for method in (prior.to_model, prior.to_user, prior.log_prob, prior.contains):
            with pytest.raises(InputError, match=message):
                method(wrong)


def test_priors_of_priors() -> None:
    whole = Prior.of([D.Uniform(0.0, 1.0), Prior.of([D.Uniform(1.0, 2.0), D.Normal(0.0, 1.0)])])
    assert repr(whole) == "Prior(uniform [2], normal [1])" and Prior.of(whole) is whole


def test_log_prob_is_differentiable(priors: dict[str, Prior]) -> None:
    theta = torch.tensor([[0.2, 3.0, 0.1, 0.3, 1.7, 0.0, 1.0], [9.0] * 7], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(priors["product"].log_prob(theta)[0], theta)
    normal = -torch.linalg.solve(COVARIANCE.double(), theta[0, 2:4].detach())
    expected = torch.tensor([0, 0, *normal, -(1 + math.log(1.7)) / 1.7, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(gradient[0], expected)
    assert gradient[1].eq(0).all()


@pytest.mark.parametrize("name", ["product", "with_beta", "arrays"])
def test_draws_are_the_seeds_and_leave_the_streams(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, again, other = prior.sample(50, seed=5), prior.sample(50, seed=5), prior.sample(50, seed=6)
    Prior.of(ALL[name])
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_toolkits_box() -> None:
    utils = pytest.importorskip("sbi.utils")
    own = utils.BoxUniform(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0]))
    prior = Prior.of(own)
    assert prior.gaussian and prior.transform == Probit([-1.0, 2.0], [1.0, 5.0])
    mixed = utils.MultipleIndependent(
        [D.Uniform(torch.zeros(1), torch.ones(1)), D.LogNormal(torch.zeros(1), torch.ones(1))]
    )
    prior = Prior.of(mixed)
    assert prior.contains(prior.to_user(torch.tensor([[40.0, -40.0], [-40.0, 40.0]]))).all()
    theta = prior.sample(100)
    torch.testing.assert_close(prior.log_prob(theta).float(), mixed.log_prob(theta))


@pytest.mark.parametrize("name", ALL)
def test_config_goes_through_json(name: str, priors: dict[str, Prior]) -> None:
    prior = priors[name]
    config = json.loads(json.dumps(prior.config(), allow_nan=False))
    known = config["type"] is not None
    assert known == (name not in ("mixture", "overlapping", "affine", "logit_normal", "user", "arrays", "with_beta"))
    again = Prior.from_config(config, None if known else ALL[name])
    assert again.transform == prior.transform and again.gaussian == prior.gaussian
    theta = prior.sample(100, seed=7)
    assert torch.equal(again.sample(100, seed=7), theta)
    assert torch.equal(again.log_prob(theta), prior.log_prob(theta))
    assert again.config() == prior.config()


def test_an_object_must_be_handed_in_again() -> None:
    config = Prior.of([D.Uniform(0.0, 1.0), Wedge()]).config()
    with pytest.raises(InputError, match=r"uniform \[1\], an object \[2\]\); hand in the prior"):
        Prior.from_config(config)
    with pytest.raises(InputError, match=r"prior is Prior\(uniform \[3\]\), and not the one that was saved"):
        Prior.from_config(config, uniform())


def written(folder: Path, text: str) -> Path:
    path = folder / "prior.yaml"
    path.write_text(text)
    return path


def test_yaml(tmp_path: Path) -> None:
    prior = prior_from_yaml(
        written(
            tmp_path,
            """
            parameters:
              beta: {type: log_normal, loc: -0.9, scale: 5e-1}
              gamma: {type: uniform, low: 0, high: 1}
              x, y:
                type: multivariate_normal
                loc: [0, 1]
                covariance_matrix: [[2, 1], [1, 3]]
              a, b: {type: normal, loc: [1, 2], scale: 3}
            """,
        )
    )
    assert prior.names == ("beta", "gamma", "x", "y", "a", "b") and prior.gaussian
    same = Prior.of(
        [
            D.LogNormal(-0.9, 0.5),
            D.Uniform(0.0, 1.0),
            D.MultivariateNormal(torch.tensor([0.0, 1.0]), COVARIANCE),
            D.Normal(1.0, 3.0),
            D.Normal(2.0, 3.0),
        ]
    )
    theta = same.sample(200, seed=8)
    torch.testing.assert_close(prior.log_prob(theta), same.log_prob(theta), rtol=1e-6, atol=1e-6)
    assert Prior.from_config(prior.config()).names == prior.names
    with pytest.raises(InputError, match="row 0, gamma is 2, not in"):
        prior.to_model(torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {b: {type: lognormal, loc: 0, scale: 1}}", "type of parameter 'b'.*did you mean 'log_normal'"),
        ("parameters: {b: {type: uniform, low: 0, hihg: 1}}", "key of parameter 'b'.*did you mean 'high'"),
        ("parameters: {b: {type: uniform, low: 0}}", "lacks high"),
        ("parameters: {b: {type: uniform, low: 1, high: 0}}", "low of uniform is 1.0 and high is 0.0"),
        ("parameters: {b: {type: normal, loc: 0, scale: -1}}", "'b': scale of normal is -1.0; .* above 0"),
        ("parameters: {b: {type: normal, loc: zero, scale: 1}}", "loc of parameter 'b' is 'zero'"),
        ("parameters: {b: {type: normal, loc: [0, 1], scale: 1}}", r"shape \[2\]; it must be one number"),
        ("parameters: {b: {type: normal, loc: true, scale: 1}}", "loc of parameter 'b' is True"),
        ("parameters: {b: 3}", "parameter 'b' is 3; it must be a mapping with a type"),
        ("parameters: {no: {type: normal, loc: 0, scale: 1}}", "False is not a name"),
        ("parameters:\n  b: {type: chi2, df: 1}\n  b: {type: chi2, df: 2}", "'b' is given twice .line 3"),
        ("parameters:\n  b: {type: chi2, df: 1}\n  a, b: {type: chi2, df: 2}", "names the parameter 'b' twice"),
        ("parameter: {}", "did you mean 'parameters'"),
        ("parameters: {}", "at least one"),
        ("parameters: [", "is not YAML"),
        ("3", "must hold `parameters:`"),
        (
            "parameters:\n  a, b: {type: multivariate_normal, loc: [0, 0], covariance_matrix: [[1, 2], [2, 1]]}",
            "positive definite",
        ),
        (
            "parameters:\n  a, b: {type: multivariate_normal, loc: [0, 0], covariance_matrix: [[1, 0], [0.5, 1]]}",
            "symmetric",
        ),
        ("parameters:\n  a, b: {type: multivariate_normal, loc: [0, 0]}", "needs loc and one of"),
        ("parameters:\n  a: {type: multivariate_normal, loc: [0, 0], scale_tril: [[1]]}", r"\[2\] and \[1, 1\]"),
    ],
)
def test_yaml_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prior_from_yaml(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        prior_from_yaml(tmp_path / "none.yaml")


class Object:
    """A user's object of given parts."""

    def __init__(self, sample: Any, log_prob: Any, **declared: Any) -> None:
        self.sample, self.log_prob = sample, log_prob
        vars(self).update(declared)


def flat(theta: Tensor) -> Tensor:
    return theta.new_zeros(len(theta))


def box_density(theta: Tensor) -> Tensor:
    return torch.where(((theta > 0) & (theta < 1)).all(1), 0.0, -math.inf)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (D.Normal(torch.zeros(3), 1.0), r"batch_shape \[3\].*Independent\(prior, 1\)"),
        ([D.Normal(torch.zeros(3), 1.0)], r"batch_shape \[3\]"),
        (D.Independent(D.Normal(torch.zeros(2, 3), 1.0), 2), r"event_shape \[2, 3\]"),
        (D.Independent(D.Normal(torch.zeros(0), 1.0), 1), "with D at least 1"),
        ([], "at least one parameter"),
        (3.0, "prior is 3.0; it must be a torch distribution"),
        (D.Normal, "prior is <class 'torch.distributions.normal.Normal'>"),
        ([D.Normal(0.0, 1.0), torch.zeros(2)], r"prior is tensor\(\[0., 0.\]\)"),
        ("uniform", "prior is 'uniform'"),
        (D.Dirichlet(torch.ones(3)), "support is Simplex"),
        (D.Poisson(1.0), "each parameter must be continuous"),
        (
            D.Uniform(torch.tensor(1.0, dtype=torch.float64), torch.tensor(1 + 1e-9, dtype=torch.float64)),
            "no number of float32 lies between the limits 1.0 and 1.000000001 of parameter 0",
        ),
        (D.Uniform(torch.tensor(0.0), torch.tensor(math.inf)), "high of uniform is inf; it must be finite"),
        (
            D.MixtureSameFamily(
                D.Categorical(torch.ones(2)), D.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
            ),
            "log_prob is -inf at .* the support that it declares; the support must be a product of .* reparametrise",
        ),
        (
            Object(lambda s: torch.rand(*s, 2), box_density),
            "log_prob is -inf at .* of 10000 points .*, and it declares no limits; declare low and .* reparametrise",
        ),
        (
            Object(lambda s: torch.rand(*s, 2), box_density, low=torch.zeros(3)),
            r"low of the prior has shape \[3\] and its draws have 2 parameters; it must be one number, or 2",
        ),
        (
            Object(lambda s: torch.rand(*s, 2), box_density, low=0.0, high=[1.0, 1.0, 1.0]),
            r"high of the prior has shape \[3\] and its draws have 2 parameters",
        ),
        (
            Object(lambda s: torch.rand(*s, 2), flat, support=D.constraints.interval(torch.zeros(3), torch.ones(3))),
            r"low of the prior's support has shape \[3\] and its draws have 2 parameters",
        ),
        (
            Object(lambda s: torch.rand(*s, 2), box_density, low=[0.0, 1.0], high=[1.0, 0.0]),
            "low is 1.0 and high is 0.0 of parameter 1; low must be below high",
        ),
        (
            Gaussian(torch.zeros(2), torch.eye(2)),
            r"prior is Gaussian\(\), a denoiser, .* such as MultivariateNormal",
        ),
        (
            Object(lambda: torch.rand(2), flat),
            r"sample\(\(2,\)\) raised a TypeError \(.*; it must take a shape",
        ),
        (
            Object(lambda s: torch.randn(*s, 2), flat, low=0.0, high=1.0),
            r"draws lie outside the support that it declares \(the first: .*, not in \[0, 1\]\)",
        ),
        (
            Object(lambda s: -torch.rand(*s, 2), flat, support=D.constraints.positive),
            r"10000 of 10000 draws lie outside .*not in \(0, inf\)",
        ),
        (Object(lambda s: torch.full((*s, 2), math.nan), flat), "10000 of 10000 draws are NaN or infinite"),
        (Object(lambda s: torch.ones(*s, 2), flat), "2 of 2 parameters do not vary"),
        (Object(lambda s: torch.rand(*s, 2), lambda t: t), r"log_prob of 10000 rows gave shape \(10000, 2\)"),
        (Object(lambda s: torch.rand(*s, 2), lambda t: flat(t) * math.nan), "log_prob is NaN at 10000"),
        (Object(lambda s: torch.rand(*s, 0), flat), "0 parameters"),
        (Object(lambda s: torch.rand(2), flat), r"gave shape \(2,\)"),
        (Object(lambda s: 3.0, flat), "a float of shape"),
        (Object(lambda s: torch.rand(*s, 2), flat, low="zero"), "low of the prior is 'zero'"),
        (Object(lambda s: torch.rand(*s, 2), flat, support=(0, 1)), r"support is \(0, 1\)"),
    ],
)
def test_priors_that_cannot_be(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Prior.of(given)
    assert "\n" not in str(caught.value)


def test_counts_and_seeds_are_checked() -> None:
    prior = Prior.of(uniform())
    for arguments, message in (((0,), "n is 0"), ((5, -1), "seed is -1"), ((2.5,), "n is 2.5")):
        with pytest.raises(InputError, match=message):
            prior.sample(*arguments)
