"""Posteriors from simulations: laws known in closed form, supports, every formulation and kind of x, the door."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import kstest, norm
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, MultivariateNormal, Normal, Uniform
from torch.utils.data import DataLoader, TensorDataset

import edmund
from edmund.data import DataSet
from edmund.errors import InputError
from edmund.model import Model
from edmund.sbi import NPSE, Posterior, npse, surrogate
from edmund.sbi import posterior as posteriors
from edmund.sbi.conditional import Effort, Mapped, held_out_density, held_out_log_prob, train_conditional
from edmund.sbi.gaussian_regression import GaussianRegression, fit_gaussian
from edmund.sbi.location import regress
from edmund.sbi.network import NO_BODY, ConditionalNetwork, mlp_for
from edmund.sbi.surrogate import Enlarged, LearnedSimulator, draw_simulations
from edmund.transform import Chain

STD = 0.5
PRIOR = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
MIX = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])


def simulate(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """theta ~ N(0, I), x = MIX theta + noise."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, 2, generator=generator)
    return theta, theta @ MIX.mT + STD * torch.randn(n, 3, generator=generator)


def exact(x: Tensor) -> MultivariateNormal:
    precision = torch.eye(2) + MIX.mT @ MIX / STD**2
    return MultivariateNormal(torch.linalg.solve(precision, MIX.mT @ x / STD**2), precision_matrix=precision)


def trained(**options: object) -> Posterior:
    theta, x = simulate(4000)
    inference = NPSE(PRIOR, **options)  # type: ignore[arg-type]
    inference.append_simulations(theta, x)
    return inference.train(samples=100_000, learn_simulator=False, progress=False).build_posterior()


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return trained()


X = torch.tensor([1.0, -0.4, 0.8])


def test_draws_have_the_posteriors_law(posterior: Posterior) -> None:
    theta, law = posterior.sample((4000,), x=X), exact(X)
    std = law.variance.sqrt()
    assert theta.shape == (4000, 2)
    assert ((theta.mean(0) - law.mean).abs() < 0.15 * std).all()
    assert torch.allclose(
        theta.mT.cov() / law.covariance_matrix.norm(), law.covariance_matrix / law.covariance_matrix.norm(), atol=0.12
    )


def test_density_is_the_posteriors(posterior: Posterior) -> None:
    law = exact(X)
    theta = law.sample((50,))
    assert (posterior.log_prob(theta, x=X) - law.log_prob(theta)).abs().mean() < 0.15


def test_the_mode_of_a_gaussian_is_its_mean(posterior: Posterior) -> None:
    law = exact(X)
    assert ((posterior.map(x=X) - law.mean).abs() < 0.2 * law.variance.sqrt()).all()


def test_a_batch_of_observations_goes_through_one_call(posterior: Posterior) -> None:
    observations = torch.stack([X, -X])
    theta = posterior.sample_batched((2000,), x=observations)
    assert theta.shape == (2000, 2, 2)
    for k, x in enumerate(observations):
        law = exact(x)
        assert ((theta[:, k].mean(0) - law.mean).abs() < 0.2 * law.variance.sqrt()).all()


@pytest.mark.parametrize("method", ["gauss", "jac"])
def test_several_observations_sharpen_the_posterior(posterior: Posterior, method: str) -> None:
    x = X + 0.3 * torch.tensor([[1.0], [-1.0], [0.5]])
    precision = torch.eye(2) + 3 * MIX.mT @ MIX / STD**2
    law = MultivariateNormal(torch.linalg.solve(precision, MIX.mT @ x.sum(0) / STD**2), precision_matrix=precision)
    theta = posterior.sample_iid((1000,), x=x, method=method)
    assert ((theta.mean(0) - law.mean).abs() < 0.4 * law.variance.sqrt()).all()
    assert (theta.var(0) / law.variance).log().abs().max() < 0.25


def test_tempering_by_two_doubles_the_likelihoods_variance(posterior: Posterior) -> None:
    precision = torch.eye(2) + MIX.mT @ MIX / STD**2 / 2
    theta = posterior.sample_iid((2000,), x=X[None], temperature=2.0)
    assert (theta.var(0) / torch.linalg.inv(precision).diagonal()).log().abs().max() < 0.25


def test_another_prior_takes_the_place_of_the_first(posterior: Posterior) -> None:
    prior = Independent(Normal(torch.ones(2), 0.3 * torch.ones(2)), 1)
    precision = torch.eye(2) / 0.09 + MIX.mT @ MIX / STD**2
    mean = torch.linalg.solve(precision, MIX.mT @ X / STD**2 + 1 / 0.09)
    theta = posterior.sample_iid((2000,), x=X[None], prior=prior)
    assert ((theta.mean(0) - mean).abs() < 0.25 * torch.linalg.inv(precision).diagonal().sqrt()).all()


def test_saved_and_loaded_it_is_the_same(posterior: Posterior, tmp_path) -> None:
    posterior.save(tmp_path / "run")
    again = Posterior.load(tmp_path / "run")
    assert torch.equal(posterior.sample((10,), x=X), again.sample((10,), x=X))


def test_seeds_tell_draws_apart(posterior: Posterior) -> None:
    assert torch.equal(posterior.sample((5,), x=X, seed=1), posterior.sample((5,), x=X, seed=1))
    assert not torch.equal(posterior.sample((5,), x=X, seed=1), posterior.sample((5,), x=X, seed=2))


@pytest.mark.parametrize("formulation", ["vp", "ve", "flow"])
def test_any_formulation(formulation: str) -> None:
    theta, law = trained(formulation=formulation).sample((2000,), x=X), exact(X)
    assert ((theta.mean(0) - law.mean).abs() < 0.3 * law.variance.sqrt()).all()
    assert (theta.var(0) / law.variance).log().abs().max() < 0.9  # draws that go astray make it 5


def test_the_transformer_and_a_module_of_ones_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 2))

        def forward(self, x: Tensor, c_noise: Tensor, *, context: Tensor) -> Tensor:
            return self.layers(torch.cat([x, c_noise[:, None], context], 1))  # type: ignore[no-any-return]

    for network in ("transformer", Own()):
        theta, law = trained(network=network).sample((1000,), x=X), exact(X)
        assert ((theta.mean(0) - law.mean).abs() < 0.3 * law.variance.sqrt()).all()


class Flipped(nn.Module):
    """An embedding without parameters."""

    def forward(self, z: Tensor) -> Tensor:
        return z.flip(1)


def test_an_own_embedding_is_asked_for_again(tmp_path) -> None:
    posterior = trained(embedding=Flipped())
    folder = posterior.save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"^embedding is None, but the posterior was saved with one of the user's own"):
        Posterior.load(folder)
    again = Posterior.load(folder, embedding=Flipped())
    assert torch.equal(again.sample((10,), x=X), posterior.sample((10,), x=X))


def test_networks_that_do_not_fit_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(nn.Module):
        def __init__(self, out: int) -> None:
            super().__init__()
            self.linear = nn.Linear(2, out)

        def forward(self, x: Tensor, c_noise: Tensor, *, context: Tensor) -> Tensor:
            return self.linear(x)  # type: ignore[no-any-return]

    for out in (1, 3):
        with pytest.raises(InputError, match=rf"^network is a .*Wrong; .* made \[2, {out}\]; it must make \[2, 2\]"):
            trained(network=Wrong(out))
    # With the defaults too, before a simulator is learned.
    theta, x = simulate(100)
    for options, effort, message in (
        ({"network": nn.Linear(2, 2)}, {}, r"^network is a Linear; .* raised TypeError: .*context"),
        ({"embedding": "mlpp"}, {}, "^embedding: 'mlpp' is not known; did you mean 'mlp'"),
        ({}, {"lr": -1.0}, r"^lr is -1\.0"),
    ):
        monkeypatch.setattr(npse, "draw_simulations", lambda *_, **__: pytest.fail("a simulator is learned"))
        with pytest.raises(InputError, match=message):
            NPSE(PRIOR, **options).append_simulations(theta, x).train(progress=False, **effort)  # type: ignore[arg-type]


def test_modules_of_ones_own_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate trains its own, and what is delivered is what was judged."""
    theta, x = simulate(400)
    monkeypatch.setattr(npse, "draw_simulations", lambda *_, **__: simulate(400, seed=1))
    judged = []

    def log_prob(model: Model, data: DataSet) -> Tensor:
        judged.append(held_out_log_prob(model, data))
        return judged[-1]

    monkeypatch.setattr(npse, "held_out_log_prob", log_prob)
    embedding = nn.Linear(3, 4)
    before = embedding.weight.clone()
    inference = (
        NPSE(PRIOR, network="mlp", embedding=embedding)
        .append_simulations(theta, x)
        .train(samples=5_000, progress=False)
    )
    assert torch.equal(embedding.weight, before)
    assert len(judged) == 2 and not torch.equal(*judged)
    assert inference.held_out is not None
    own = Mapped(inference.held_out, inference._inward)
    best = max(judged, key=lambda each: float(each.mean()))
    assert torch.equal(held_out_log_prob(inference.build_posterior().model, own), best)


def test_a_network_is_kept_only_where_it_is_better_than_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of linear Gaussian simulations nothing is left to learn, of curved ones there is."""

    def curved(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        theta, x = simulate(n, seed)
        return theta, torch.cat([x[:, :1], x[:, 1:] + theta[:, :1] ** 2], 1)

    for make, kept in ((simulate, False), (curved, True)):
        monkeypatch.setattr(npse, "draw_simulations", lambda *_, of=make, **__: of(2000, seed=1))
        theta, x = make(1000)
        state = torch.get_rng_state()
        inference = NPSE(PRIOR).append_simulations(theta, x).train(samples=40_000)
        assert torch.equal(torch.get_rng_state(), state)
        posterior = inference.build_posterior()
        assert ("by the network, which is kept" in capsys.readouterr().err) == kept
        assert (posterior.network.config["body"] == NO_BODY) == (not kept)
        again = Posterior.load(posterior.save(tmp_path / str(kept)))
        assert torch.equal(again.sample((10,), x=X), posterior.sample((10,), x=X))
        if not kept:
            law, drawn = exact(X), posterior.sample((4000,), x=X)
            assert ((drawn.mean(0) - law.mean).abs() < 0.1 * law.variance.sqrt()).all()
            assert (drawn.var(0) / law.variance).log().abs().max() < 0.15


def test_a_number_for_one_number_and_what_is_no_observation() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(100, 1, generator=generator)
    inference = NPSE(Normal(0.0, 1.0)).append_simulations(theta, theta + torch.randn(100, 1, generator=generator))
    posterior = inference.train(samples=1_000, learn_simulator=False, progress=False).build_posterior()
    assert torch.equal(posterior.sample((4,), x=0.3), posterior.sample(4, x=[0.3]))
    for call, message in (
        (lambda: posterior.sample_iid((4,), x=torch.zeros(0, 1)), r"^x has shape \[0, 1\], which is no observation"),
        (lambda: posterior.sample(None, x=0.3), "^sample_shape is None"),  # type: ignore[arg-type]
        (lambda: posterior.sample((10.7,), x=0.3), "^sample_shape is 10.7; it must be an integer"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_drawn_simulations_are_nine_tenths_at_most() -> None:
    theta, x = simulate(100)
    own = NPSE(PRIOR).append_simulations(theta, x).simulations.split(0.1)[0]
    for drawn, expected in ((900, 100), (90, 90)):
        data = Enlarged(own, torch.zeros(drawn, 2), torch.zeros(drawn, 3), 0.1)
        assert len(data) == drawn + expected
        y, condition = data.__getitems__([0, len(data) - 1, drawn - 1, drawn])
        assert torch.equal(y.abs().sum(1) == 0, torch.tensor([True, False, True, False]))
        row = (theta == y[3]).all(1).nonzero()[0, 0]
        assert torch.equal(condition["observation"][3], x[row])


def test_priors_without_a_normal_space_can_be_composed() -> None:
    prior = [Gamma(3.0, 1.0), Normal(0.0, 1.0)]
    generator = torch.Generator().manual_seed(0)
    theta = torch.stack([Gamma(3.0, 1.0).sample((2000,)), torch.randn(2000, generator=generator)], 1)
    x = theta.sum(1, keepdim=True) + torch.randn(2000, 2, generator=generator)
    inference = NPSE(prior).append_simulations(theta, x)
    posterior = inference.train(samples=20_000, learn_simulator=False, progress=False).build_posterior()
    drawn = posterior.sample_iid((100,), x=x[:3])
    assert (drawn[:, 0] > 0).all() and drawn.isfinite().all()


def test_observations_too_far_to_be_composed_are_refused(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> Tensor:
        return torch.tensor([[0.0, torch.nan], [0.0, 1.0]])

    monkeypatch.setattr(posteriors, "sample", lost)
    with pytest.raises(InputError, match=r"^x: 1 of 2 draws are not finite by method 'jac'"):
        posterior.sample_iid((2,), x=X.repeat(3, 1), method="jac")


def test_no_draw_leaves_the_support() -> None:
    prior = Independent(Uniform(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 1.0])), 1)
    theta = prior.sample((1000,))
    theta[0] = torch.tensor([0.0, 1.0])  # on the limits, where rounding puts parameters
    x = theta + 0.5 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    inference = NPSE(prior).append_simulations(theta, x)
    posterior = inference.train(samples=20_000, learn_simulator=False, progress=False).build_posterior()
    for x_o in ([0.0, 1.0], [1.5, -1.2], [-0.5, 1.5]):
        draws = posterior.sample((2000,), x=torch.tensor(x_o))
        assert (draws[:, 0] >= 0).all() and (draws[:, 0] < 1).all()
        assert (draws[:, 1] >= -1).all() and (draws[:, 1] < 1).all()
    outside = posterior.log_prob(torch.tensor([[2.0, 0.0], [0.5, 0.0]]), x=torch.tensor([0.5, 0.0]))
    assert outside[0] == -math.inf and outside[1].isfinite()


def test_a_posterior_may_end_at_a_limit_of_the_prior(tmp_path) -> None:
    """U(0, 1) and x = theta + N(0, 0.05^2) seen at the limit 1: half of a normal law."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(4000, 1, generator=generator)
    x = theta + 0.05 * torch.randn(4000, 1, generator=generator)
    inference = NPSE([Uniform(0.0, 1.0)]).append_simulations(theta, x)
    train, validation = inference.simulations.split(0.1)
    prior = inference.prior
    model, _ = train_conditional(
        train,
        validation,
        ConditionalNetwork(1, (1,), body=mlp_for(4000)),
        inference.formulation,
        Effort(200_000, 500, 2e-3, 200_000),
        tmp_path,
        transform=prior.compact,
        diagonal=True,
        seed=0,
        device=None,
        progress=False,
    )
    distance = (1 - Posterior(prior, model).sample((4000,), x=torch.tensor([1.0]))) / 0.05
    assert kstest(distance[:, 0].numpy(), "halfnorm").statistic < 0.08
    # The density that networks are chosen by: its mean is minus the entropy of theta given x.
    y, condition = validation.__getitems__(list(range(len(validation))))
    cut = ndtr((1 - condition["observation"].numpy()) / 0.05) - ndtr(-condition["observation"].numpy() / 0.05)
    true = norm(condition["observation"].numpy(), 0.05).logpdf(y.numpy()) - np.log(cut)
    assert held_out_density(model, validation) == pytest.approx(float(true.mean()), abs=0.05)


def test_the_density_of_held_out_simulations_chooses_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    prior = [Uniform(0.0, 1.0), Uniform(0.0, 1.0)]
    chosen = []
    for densities in ([1.0, 2.0, 0.0], [2.0, 1.0, 0.0]):  # the last without a network
        answers = iter(densities)
        monkeypatch.setattr(
            npse, "held_out_log_prob", lambda *_, answers=answers: torch.full((10,), next(answers)).double()
        )
        inference = NPSE(prior).append_simulations(theta, theta)
        inference.train(samples=2_000, learn_simulator=True, progress=False)
        transform = inference.build_posterior().model.transform
        assert isinstance(transform, Chain)
        chosen.append(transform.transforms[0])
    assert chosen == [inference.prior.transform, inference.prior.compact]


@pytest.mark.parametrize(
    "formulation", ["vp", replace(edmund.formulation.EDM(1.0), sampler=edmund.samplers.DPMppSDE())], ids=["vp", "sde"]
)
def test_any_formulation_learns_a_simulator(formulation: str | edmund.formulation.Formulation) -> None:
    """Samplers that draw noise have no density, and a barely trained denoiser may have none."""
    theta, x = simulate(300)
    inference = NPSE(PRIOR, formulation).append_simulations(theta, x)
    posterior = inference.train(samples=1_000, learn_simulator=True, progress=False).build_posterior()
    assert posterior.sample((10,), x=X).isfinite().all()


def test_the_start_is_about_the_mean_wherever_the_location_is(posterior: Posterior) -> None:
    """Five posterior stds off; noise of 20 stds about the location would leave a quarter of one."""
    context = posterior.network.encode(X[None])
    moved = context.clone()
    moved[:, :2] -= 5.0

    class Moved(nn.Module):
        def forward(self, w: Tensor, sigma: Tensor, *, context: Tensor) -> Tensor:
            right = context.clone()
            right[:, :2] += 5.0
            return denoiser(w, sigma, context=right)  # type: ignore[no-any-return]

    denoiser = posterior.model.denoiser
    wrong = Moved()
    for name in ("formulation", "sigma_min", "sigma_max"):
        setattr(wrong, name, getattr(denoiser, name))
    expected = posterior._draw(context, 4000, 0, None, None, None, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posterior.model, "denoiser", wrong)
        found = posterior._draw(moved, 4000, 0, None, None, None, False)
    assert (found.mean(0) - expected.mean(0)).abs().max() < 0.05


def test_what_was_drawn_is_found_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run goes on with the very simulations that it had, without learning the simulator anew."""
    theta, x = simulate(300)

    def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
        inference = NPSE(PRIOR).append_simulations(theta, x)
        train, validation = inference.simulations.split(0.1)
        return draw_simulations(
            train,
            validation,
            inference.prior,
            inference.formulation,
            tmp_path,
            samples=5_000,
            batch_size=64,
            seed=seed,
            device=None,
            progress=False,
        )

    first = drawn()

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    (tmp_path / "drawn.safetensors").unlink()  # as if it had been interrupted before
    monkeypatch.setattr(surrogate, "fit_gaussian", never)
    again = drawn()
    assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])
    monkeypatch.setattr(LearnedSimulator, "train", never)
    again = drawn()
    assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])
    with pytest.raises(AssertionError):
        drawn(seed=1)
    (tmp_path / "drawn.safetensors").write_bytes(b"torn")
    with pytest.raises(AssertionError):
        drawn()


def learned_simulator(theta: Tensor, x: Tensor, channels: int, samples: int, directory: Path) -> LearnedSimulator:
    inference = NPSE(PRIOR).append_simulations(theta, x)
    train, validation = inference.simulations.split(0.1)
    return LearnedSimulator.train(
        train,
        validation,
        inference.prior,
        inference.formulation,
        {"type": "mlp", "channels": channels, "blocks": 1},
        Effort(samples, 256, 1e-3, samples),
        directory,
        "",
        seed=0,
        device=None,
        progress=False,
    )


def test_learned_simulator_has_the_simulators_law(tmp_path) -> None:
    """x_0 of a scale that theta decides over four orders of magnitude, x_1 a whole number."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4000, 2, generator=generator)
    x = torch.stack([(2 * theta[:, 0]).exp() * torch.randn(4000, generator=generator), (3 * theta[:, 1]).round()], 1)
    simulator = learned_simulator(theta, x, 32, 50_000, tmp_path)
    drawn_theta, drawn = simulator.simulate(4000, 1, progress=False)
    assert len(drawn) > 3950
    assert drawn[:, 0].abs().max() < 1.5 * x[:, 0].abs().max()
    assert torch.equal(drawn[:, 1], drawn[:, 1].round())
    white = drawn[:, 0] * (-2 * drawn_theta[:, 0]).exp()
    bulk = drawn_theta[:, 0].abs() < 1.5
    assert abs(float(white[bulk].std()) - 1) < 0.15
    assert float((drawn[:, 1] - 3 * drawn_theta[:, 1]).abs().mean()) < 0.6


@pytest.mark.parametrize(("plain", "kept"), [(4.7, True), (4.5, False)])
def test_the_density_of_held_out_simulations_chooses_the_simulator(
    plain: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Gaussian that stretches two numbers ten times each adds 2 ln 10 = 4.605 to the density of what it leaves."""
    gaussian = GaussianRegression(2, 2)
    last = gaussian.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias[2:4], math.log(10))
    densities = iter([plain, 0.0])
    monkeypatch.setattr(surrogate, "fit_gaussian", lambda *_, **__: gaussian)
    monkeypatch.setattr(surrogate, "held_out_density", lambda *_: next(densities))
    theta, x = simulate(500)
    simulator = learned_simulator(theta, x[:, :2], 8, 2_000, tmp_path)
    assert (simulator.gaussian is None) == kept
    assert simulator.simulate(10, 0, progress=False)[1].shape == (10, 2)


def test_gaussian_regression_finds_mean_and_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(4000, 1, generator=generator) * 2 - 1
    noise = torch.randn(4000, 2, generator=generator)
    s = torch.cat([z + z.exp() * noise[:, :1], z**2 + 0.1 * (noise[:, :1] + noise[:, 1:])], 1)
    found = fit_gaussian((z[400:], s[400:]), (z[:400], s[:400]), seed=0, progress=False)
    at = torch.tensor([[-0.5], [0.5]])
    mean, whitening = found(at)
    covariance = torch.linalg.inv(whitening.mT @ whitening)
    assert torch.allclose(mean, torch.cat([at, at**2], 1), atol=0.1)
    assert torch.allclose(covariance[:, 0, 0], (2 * at[:, 0]).exp(), rtol=0.2)
    assert torch.allclose(covariance[:, 0, 1], 0.1 * at[:, 0].exp(), rtol=0.25)
    assert torch.allclose(found.unwhiten(z, found.whiten(z, s)), s, atol=1e-3)
    assert torch.allclose(found.log_abs_det(at), torch.logdet(whitening), atol=1e-5)


def test_regression_is_least_squares_and_its_residual() -> None:
    theta, x = simulate(20_000)
    found = regress([(theta[2000:], x[2000:])], [(theta[:2000], x[:2000])])
    precision = torch.eye(2) + MIX.mT @ MIX / STD**2
    covariance = torch.linalg.inv(precision)
    assert torch.allclose(found.weight.float(), covariance @ MIX.mT / STD**2, atol=0.02)
    assert torch.allclose((found.cholesky @ found.cholesky.mT).float(), covariance, rtol=0.05, atol=0.005)


def test_regression_on_noise_is_none() -> None:
    generator = torch.Generator().manual_seed(3)
    z, s = torch.randn(100, 2, generator=generator), torch.randn(100, 60, generator=generator)
    found = regress([(z[:80], s[:80])], [(z[80:], s[80:])])
    assert found.weight.norm() < 0.3
    copied = torch.cat([s, s, torch.ones(100, 1)], 1)  # singular
    assert regress([(z[:80], copied[:80])], [(z[80:], copied[80:])]).weight.isfinite().all()


def test_missing_values_images_and_loaders() -> None:
    theta, x = simulate(400)
    x[::7, 1] = math.nan
    inference = NPSE(PRIOR, nan="mask").append_simulations(theta, x)
    posterior = inference.train(samples=5_000, progress=False).build_posterior()
    assert posterior.sample((3,), x=torch.tensor([1.0, math.nan, 0.0])).isfinite().all()
    images = theta[:, :, None, None] + torch.randn(400, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(theta, images), batch_size=100)
    inference = NPSE(PRIOR, embedding="cnn").append_simulations(loader)
    posterior = inference.train(samples=5_000, progress=False).build_posterior()
    assert posterior.sample((3,), x=images[0]).shape == (3, 2)


def test_the_door() -> None:
    theta, x = simulate(200)
    with pytest.raises(InputError, match=r"edn.*edm"):
        NPSE(PRIOR, "edn")
    with pytest.raises(InputError, match="network is 3"):
        NPSE(PRIOR, network=3)  # type: ignore[arg-type]
    inference = NPSE(PRIOR)
    with pytest.raises(InputError, match="there are 0 simulations"):
        inference.train()
    with pytest.raises(InputError, match="no trained network"):
        inference.build_posterior()
    with pytest.raises(InputError, match="NaN"):
        inference.append_simulations(theta, torch.where(x > 1, math.nan, x))
    inference.append_simulations(theta[:20], x[:20])
    with pytest.raises(InputError, match="there are 20 simulations"):
        inference.train()
    boxed = NPSE(Independent(Uniform(torch.zeros(2), torch.ones(2)), 1))
    with pytest.raises(InputError, match="of 200 rows are outside the prior's support"):
        boxed.append_simulations(theta, x)
    inference.append_simulations(theta, x)
    with pytest.raises(InputError, match="learn_simulator is 'yes'"):
        inference.train(learn_simulator="yes")  # type: ignore[arg-type]


def test_the_door_of_a_posterior(posterior: Posterior) -> None:
    with pytest.raises(InputError, match="x has 5 values a row; training had 3"):
        posterior.sample((10,), x=torch.zeros(5))
    with pytest.raises(InputError, match="x is None"):
        posterior.sample((10,))
    with pytest.raises(InputError, match="x has 4 observations"):
        posterior.sample((10,), x=torch.zeros(4, 3))
    with pytest.raises(InputError, match="temperature is 0"):
        posterior.sample_iid((10,), x=X, temperature=0)
    with pytest.raises(InputError, match="theta has shape"):
        posterior.log_prob(torch.zeros(4, 3), x=X)
    with pytest.warns(UserWarning, match="column 1 .* standard deviations outside the training range"):
        posterior.sample((2,), x=torch.tensor([0.0, 100.0, 0.0]))
    with pytest.raises(InputError, match="holds no posterior"):
        Posterior.load("/nowhere")


def test_constant_columns_are_told_of_and_do_no_harm() -> None:
    theta, x = simulate(400)
    constant = torch.cat([x, torch.full((400, 1), 7.0)], 1)
    inference = NPSE(PRIOR).append_simulations(theta, constant)
    with pytest.warns(UserWarning, match=r"columns 3 \(c = 7\) are constant"):
        inference.train(samples=5_000, learn_simulator=False, progress=False)
    assert inference.build_posterior().sample((3,), x=constant[0]).isfinite().all()


def test_choices_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    theta, x = simulate(100)
    NPSE(PRIOR).append_simulations(theta.numpy(), x.numpy().astype(np.float64)).train(
        samples=2_000, learn_simulator=False
    )
    out = capsys.readouterr().err
    assert "100 simulations of 2 parameters, x [3] through the embedding 'vector', 10 held out; EDM; mlp of 4" in out
    assert "learning rate 0.002" in out
    assert "held-out loss" in out


def test_the_toolkits_diagnostics_take_it(posterior: Posterior) -> None:
    diagnostics = pytest.importorskip("sbi.diagnostics")
    analysis = pytest.importorskip("sbi.analysis")
    theta, x = simulate(200, seed=5)
    ranks, averaged = diagnostics.run_sbc(theta, x, posterior, num_posterior_samples=200, show_progress_bar=False)
    assert ranks.shape == (200, 2) and averaged.shape == (200, 2)
    ranks, _ = diagnostics.run_sbc(
        theta[:3], x[:3], posterior, num_posterior_samples=100, reduce_fns=posterior.log_prob, show_progress_bar=False
    )
    assert ranks.shape == (3, 1)
    ecp, alpha = diagnostics.run_tarp(theta, x, posterior, num_posterior_samples=100)
    assert (ecp - alpha).abs().max() < 0.15
    drawn = posterior.sample_batched((1,), x=x)[0]
    test = diagnostics.LC2ST(theta, x, drawn, num_folds=1, classifier="random_forest")
    test.train_on_observed_data()
    assert 0 <= float(test.get_statistic_on_observed_data(posterior.sample((200,), x=X), X)) <= 1
    figure, _ = analysis.pairplot(posterior.sample((100,), x=X))
    assert figure is not None
