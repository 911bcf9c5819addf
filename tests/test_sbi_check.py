"""The check of a posterior on exact Gaussian ones, and on the same made too wide or blind; its page."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as D

from edmund.cli.sbi import check as command
from edmund.errors import InputError
from edmund.sbi.check import check
from edmund.sbi.check_page import report
from edmund.sbi.predictive import PREDICTED, predictions
from edmund.sbi.priors import Prior
from edmund.sbi.standardise import Standardise

NOISE = 1.0


class Exact:
    """p(theta | x) of theta ~ N(0, I), x = theta + N(0, I): N(x/2, I/2), its samples scaled about their mean."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def sample_batched(self, shape: tuple[int, ...], x: Tensor, **_: object) -> Tensor:
        return x / 2 + self.scale * 0.5**0.5 * torch.randn(*shape, *x.shape)


def simulator(theta: Tensor) -> Tensor:
    return theta + NOISE * torch.randn_like(theta)


def pairs(draws: int, dim: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(draws, dim, generator=generator)
    return theta, theta + NOISE * torch.randn(draws, dim, generator=generator)


@pytest.fixture(scope="module")
def toolkit():
    pytest.importorskip("sbi.diagnostics")


@pytest.mark.usefixtures("toolkit")
def test_the_exact_posterior_passes():
    theta, x = pairs(500)
    result = check(Exact(), theta, x, simulator=simulator, names=["a", "b"], progress=False)
    assert result.passed, result.verdict
    assert [line.partition(":")[0] for line in result.verdict.splitlines()] == ["Posterior", "Predictions"]
    assert result.ranks.shape == (500, 2)
    assert result.names == ("a", "b")
    # Half of the prior's variance is left.
    assert result.spread["a"] == pytest.approx(0.5**0.5, rel=0.1)
    again = check(Exact(), theta, x, simulator=simulator, names=["a", "b"], progress=False)
    assert torch.equal(again.ranks, result.ranks) and torch.equal(again.predictions.ranks, result.predictions.ranks)


@pytest.mark.usefixtures("toolkit")
def test_a_width_wrong_by_a_fifth_is_seen():
    result = check(Exact(1.2), *pairs(500), progress=False)
    assert not result.passed
    assert set(result.calibration.faults.values()) == {"too wide"}
    assert result.calibration.width["theta_1"] == pytest.approx(1.2, abs=0.1)
    for test in ("folded", "coverage"):
        assert max(result.calibration.corrected[test].values()) < 0.05
    assert result.predictions is None


@pytest.mark.usefixtures("toolkit")
def test_the_prior_is_calibrated_but_its_spread_tells():
    class Prior:
        def sample_batched(self, shape, x, **_):
            return torch.randn(*shape, *x.shape)

    result = check(Prior(), *pairs(400), progress=False)
    assert result.passed
    assert result.spread["theta_2"] == pytest.approx(1.0, rel=0.11)


@pytest.mark.usefixtures("toolkit")
def test_the_global_streams_are_left_alone_and_missing_values_reach_the_posterior():
    class Blind(Exact):
        def sample_batched(self, shape, x, **options):
            missing = x.isnan()
            drawn = super().sample_batched(shape, x.nan_to_num(), **options)
            return torch.where(missing, torch.randn(*shape, *x.shape), drawn)

    theta, x = pairs(300)
    x[::3, 0] = torch.nan
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = check(Blind(), theta, x, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    # The toolkit alone would leave out a third of the draws.
    assert result.ranks.shape == (300, 2)
    assert result.passed


def drawn(x: Tensor, samples: int, scale: float = 1.0) -> Tensor:
    torch.manual_seed(1)
    return Exact(scale).sample_batched((samples,), x)


def test_predictions_of_a_posterior_that_is_too_wide_are_too_wide():
    theta, x = pairs(500)
    options = {"level": 0.05, "seed": 0, "progress": False}
    assert predictions(simulator, theta, x, drawn(x, 30), **options).calibration.passed
    found = predictions(simulator, theta, x, drawn(x, 30, 2.0), **options)
    assert set(found.calibration.faults.values()) == {"too wide"}
    # (1 + 4 / 2) / (1 + 1 / 2) of the variance, by normal scores of 21 ranks, which are cut off.
    assert found.calibration.width["x_1"] == pytest.approx(2**0.5, abs=0.15)


def test_equal_numbers_are_ranked_at_random():
    """Counts of two values: without that, ranks would pile up."""
    theta, _ = pairs(2000, 1)

    def coin(theta: Tensor) -> Tensor:
        return (torch.rand(len(theta), 1) < theta.sigmoid()).float()

    torch.manual_seed(0)
    same = theta.expand(PREDICTED, -1, -1)  # the posterior that knows theta is exact in the sense of ranks
    found = predictions(coin, theta, coin(theta), same, level=0.05, seed=0, progress=False)
    counts = np.bincount(found.ranks[:, 0].numpy(), minlength=PREDICTED + 1)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_failed_predictions_are_counted_and_many_numbers_thinned():
    theta, _ = pairs(100, 2)

    def wide(theta: Tensor) -> Tensor:
        x = theta[:, :1] + torch.randn(len(theta), 40).reshape(len(theta), 5, 8).flatten(1)
        x[theta[:, 1] > 1.8] = torch.nan
        return x.reshape(-1, 5, 8)

    torch.manual_seed(0)
    x = theta[:, :1, None] + torch.randn(100, 5, 8)
    found = predictions(wide, theta, x, theta.expand(PREDICTED, -1, -1), level=0.05, seed=0, progress=False)
    assert found.failed == int((theta[:, 1] > 1.8).sum()) > 0
    assert found.total == 40 and len(found.names) == 16
    assert (found.names[0], found.names[-1]) == ("x_1", "x_40")
    kept = theta[:, 1] <= 1.8
    torch.testing.assert_close(found.observed, x[kept].flatten(1)[:, [int(name[2:]) - 1 for name in found.names]])
    few, its_x = theta[:30], x[:30]
    with pytest.raises(InputError, match=r"only 0 of 30 .*'RuntimeError: no'"):
        predictions(_raises, few, its_x, few.expand(PREDICTED, -1, -1), level=0.05, seed=0, progress=False)
    with pytest.raises(InputError, match=r"rows of shape \(2,\); x has \(5, 8\)"):
        predictions(simulator, theta, x, theta.expand(PREDICTED, -1, -1), level=0.05, seed=0, progress=False)


def _raises(theta: Tensor) -> Tensor:
    raise RuntimeError("no")


@pytest.mark.usefixtures("toolkit")
def test_bad_input():
    theta, x = pairs(100)
    with pytest.raises(InputError, match="theta has 10 draws; a check needs at least 20"):
        check(Exact(), theta[:10], x[:10])
    with pytest.raises(InputError, match="samples is 3"):
        check(Exact(), theta, x, samples=3)
    with pytest.raises(InputError, match="theta has 100 rows and x 99"):
        check(Exact(), theta, x[:-1])
    for names in (["a"], ["a", "a"], ["a", "joint"]):
        asked = mock.Mock()
        with pytest.raises(InputError, match=r"names is \['a'.*\]; it must be 2 different names"):
            check(asked, theta, x, names=names, progress=False)
        asked.sample_batched.assert_not_called()
    with pytest.raises(InputError, match=r"returned \[200, 100, 1\]"):
        check(Exact(), theta, x[:, :1], progress=False)


def test_the_command_names_the_option_whose_simulations_cannot_be(tmp_path):
    theta, x = pairs(30)
    np.savez(tmp_path / "short.npz", theta=theta[:5], x=x[:5])
    np.savez(tmp_path / "held_out.npz", theta=theta[:5], x=x[:5])
    np.savez(tmp_path / "other.npz", theta=theta, x=x)
    prior = Prior.of(D.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    network = SimpleNamespace(standardise=Standardise((3,)))
    posterior = SimpleNamespace(prior=prior, network=network)

    def refused(simulations, simulator=None):
        path = None if simulations is None else tmp_path / simulations
        with (
            mock.patch.object(command, "load_posterior", return_value=posterior),
            pytest.raises(InputError) as caught,
        ):
            command.run(tmp_path, path, simulator, 20, 20, None, seed=0, device=None)
        return str(caught.value)

    assert re.fullmatch(
        r"--simulations: '.*short.npz' holds 5 simulations; a check needs 20 or more", refused("short.npz")
    )
    assert refused(None).endswith(
        "held_out.npz' holds 5 simulations; a check needs 20 or more: give --simulations or --simulator"
    )
    assert refused("other.npz") == "--simulations: x has 2 values a row; training had 3"
    assert refused("other.npz", "torch:sin") == "--simulations: x has 2 values a row; training had 3"
    assert refused(None, "torch:sin") == "--simulator: x has 2 values a row; training had 3"
    network.standardise = Standardise((3, 4))
    assert refused(None, "torch:sin") == "--simulator: x has shape [20, 2]; it must be [B, 3, 4], as in training"


def test_without_the_toolkit_the_command_that_installs_it_is_told():
    with (
        mock.patch.dict(sys.modules, {"sbi": None, "sbi.diagnostics": None}),
        pytest.raises(InputError, match=r"pip install 'edmund\[sbi\]'"),
    ):
        check(Exact(), *pairs(100))


@pytest.mark.usefixtures("toolkit")
def test_the_page_has_all_in_itself(tmp_path):
    names = ["<beta>", "b&c"]
    result = check(Exact(1.5), *pairs(200), simulator=simulator, names=names, progress=False)
    page = report(result, tmp_path / "page.html", title="A & B", about=["from <here>"]).read_text()
    assert "Faults found in the posterior" in page
    assert "&lt;beta&gt;" in page and "<beta>" not in page and "from &lt;here&gt;" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    fails = re.findall(r'<td class="fails">', page)
    wrong = [p for of_test in ("sbc", "folded", "coverage") for p in result.calibration.corrected[of_test].values()]
    assert len(fails) == sum(p < result.calibration.level for p in wrong) > 0
    with pytest.raises(InputError, match="cannot be written"):
        report(result, tmp_path / "none" / "page.html")
