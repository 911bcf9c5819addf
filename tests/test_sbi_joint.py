"""The joint model: masks, dependences, exactness on Gaussians, units, supports, missing values, saving, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import LogNormal, MultivariateNormal, Uniform

import edmund
from edmund import noise
from edmund.errors import InputError
from edmund.networks import TokenTransformer
from edmund.sbi.dependency import attention, check_graph
from edmund.sbi.joint import Conditional, JointEstimator, draw_masks
from edmund.sbi.joint_network import JointDenoiser, JointNetwork
from edmund.sbi.joint_space import JointSpace, named_columns
from edmund.sbi.priors import Prior
from edmund.training import trainer

# z_1 <- z_0, z_2 <- z_0, z_3 <- z_1 and z_2, z_4 <- z_2, z_5 <- z_3
DAG = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]
)
V = 6


def covariance_of(graph: Tensor) -> Tensor:
    """Of a Gaussian with this graph and weights in general position, standardised, float64."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(V, V, generator=generator, dtype=torch.float64) + 0.3
    if torch.equal(graph, graph.mT):
        weights = (weights + weights.mT) / 2
        covariance = torch.linalg.inv(torch.eye(V) * 6 + graph * weights)
    else:
        root = torch.linalg.inv(torch.eye(V, dtype=torch.float64) - graph * weights)
        covariance = root @ root.mT
    std = covariance.diagonal().sqrt()
    correlation: Tensor = covariance / std / std[:, None]
    return correlation


def masks(index: int) -> tuple[Tensor, Tensor]:
    """The states (given, missing), bool [V], of number `index` of 3^V."""
    states = torch.tensor([index // 3**k % 3 for k in range(V)])
    return states == 1, states == 2


def conditional_of(covariance: Tensor, given: Tensor, missing: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The matrix of E[z_asked | x_asked, z_given] = M x in all columns, and the covariance, each [V, V]."""
    there = (~missing).nonzero()[:, 0]
    noise_variance = torch.where(given, 0.0, sigma**2).double().diag()
    noisy = (covariance + noise_variance)[there][:, there]
    gain = covariance[:, there] @ torch.linalg.inv(noisy)
    matrix = torch.zeros(V, V, dtype=torch.float64)
    matrix[:, there] = gain
    asked = ~(given | missing)
    posterior = covariance - gain @ covariance[there]
    return matrix * asked[:, None], posterior * asked * asked[:, None]


def gaussian_network(covariance: Tensor, graph: Tensor | None = None) -> JointNetwork:
    """An untrained network, so F = 0, with the moments of a Gaussian."""
    network = JointNetwork(TokenTransformer(V, channels=8, blocks=1, heads=1, numbers=2), graph)
    network.covariance.copy_(covariance)
    return network.double()


UNDIRECTED = (DAG + DAG.mT).bool()


@pytest.mark.parametrize("graph", [DAG.bool(), UNDIRECTED], ids=["directed", "undirected"])
def test_attention_of_asked_variables_is_what_their_expectation_depends_on(graph: Tensor) -> None:
    """For all 3^6 masks, against the exact expectation of a Gaussian with the graph; one block, so no hops."""
    covariance = covariance_of(graph)
    for index in range(3**V):
        given, missing = masks(index)
        found = attention(graph, given[None], missing[None], 1)[0]
        asked = ~(given | missing)
        depends = conditional_of(covariance, given, missing, 0.7)[0].abs() > 1e-10
        depends |= torch.eye(V, dtype=torch.bool)
        assert torch.equal((found | torch.eye(V, dtype=torch.bool))[asked], depends[asked]), index
        assert not found[missing].any()
        assert not found[:, missing].any()


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_attention_in_several_blocks_reaches_what_one_block_does(blocks: int) -> None:
    given, missing = (torch.stack(each) for each in zip(*map(masks, range(3**V)), strict=True))
    near = attention(DAG.bool(), given, missing, blocks)
    reached = near | torch.eye(V, dtype=torch.bool)
    for _ in range(blocks - 1):
        reached = (reached.float() @ (near | torch.eye(V, dtype=torch.bool)).float()) > 0
    needed = attention(DAG.bool(), given, missing, 1)
    asked = ~(given | missing)
    assert not (needed & ~reached & asked[:, :, None]).any()
    assert near.sum() < needed.sum()


def test_graphs_that_are_none_are_refused() -> None:
    assert not check_graph(torch.eye(3), 3).any()
    with pytest.raises(InputError, match=r"^graph has shape \[2, 3\]; it must be \[3, 3\]"):
        check_graph([[0, 1, 0], [0, 0, 1]], 3)
    with pytest.raises(InputError, match=r"^graph holds 2"):
        check_graph([[0, 2], [0, 0]], 2)
    with pytest.raises(InputError, match=r"^graph has a directed cycle through variable 0"):
        check_graph([[0, 1, 0], [0, 0, 1], [1, 0, 0]], 3)


def test_the_denoiser_of_a_gaussian_is_exact_for_every_mask() -> None:
    covariance = covariance_of(DAG.bool())
    denoiser = JointDenoiser(gaussian_network(covariance), edmund.formulation.EDM(1.0).preconditioning)
    x = torch.randn(4, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma in (0.01, 0.7, 80.0):
        for index in range(0, 3**V, 11):
            given, missing = masks(index)
            expected, posterior = conditional_of(covariance, given, missing, sigma)
            found = denoiser(x, torch.tensor(sigma), given=given[None], missing=missing[None])
            asked = ~(given | missing)
            torch.testing.assert_close(found[:, asked], (x @ expected.mT)[:, asked], rtol=1e-5, atol=1e-7)
            assert torch.equal(found[:, given], x[:, given])
            assert not found[:, missing].any()
            _, std, residual = denoiser.network.gaussian(x, torch.tensor([[sigma]]), given[None], missing[None])
            variance = posterior.diagonal()[asked]
            torch.testing.assert_close(std[0, asked].square(), variance, rtol=1e-4, atol=1e-9)
            assert not residual[:, missing].any()
            noisy = covariance + torch.where(given, 0.0, sigma**2).double().diag()
            there = (~missing).nonzero()[:, 0].tolist()
            for column in there:
                rest = [other for other in there if other != column]
                gain = noisy[column, rest] @ torch.linalg.inv(noisy[rest][:, rest])
                left = noisy[column, column] - gain @ noisy[rest, column]
                unexplained = (x[:, column] - x[:, rest] @ gain) / left.sqrt()
                torch.testing.assert_close(residual[:, column], unexplained, rtol=1e-4, atol=1e-6)


def test_the_loss_looks_at_what_is_asked_and_noises_nothing_else() -> None:
    covariance = covariance_of(DAG.bool())
    denoiser = JointDenoiser(gaussian_network(covariance), edmund.formulation.EDM(1.0).preconditioning)
    n = 15_000
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(n, V, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    normals = torch.randn(n, V, generator=generator, dtype=torch.float64)
    sigma = torch.full((n,), 0.5, dtype=torch.float64)
    given, missing = draw_masks(noise.keys(0, torch.arange(n)), 2, torch.zeros(n, V, dtype=torch.bool))
    condition = {"given": given, "missing": missing}
    with torch.no_grad():
        loss = denoiser.training_loss(z, sigma, normals, condition)
        asked = ~(given | missing)
        # The exact denoiser has a loss of 1 under each mask, an average over what is asked.
        assert abs(float(loss.mean()) - 1) < 0.04
        assert abs(float(loss[asked.sum(1) == 1].mean()) - 1) < 0.15
        changed = torch.where(asked, normals, 7.0)
        assert torch.equal(denoiser.training_loss(z, sigma, changed, condition), loss)
        elsewhere = torch.where(missing, 7.0, z)
        torch.testing.assert_close(denoiser.training_loss(elsewhere, sigma, normals, condition), loss)


def test_masks_are_a_mixture_by_key_and_never_ask_nothing() -> None:
    n = 20_000
    keys = noise.keys(3, torch.arange(n))
    absent = torch.rand(n, V, generator=torch.Generator().manual_seed(0)) < 0.2
    absent[:, :2] = False
    given, missing = draw_masks(keys, 2, absent)
    assert not (given & missing).any()
    assert (missing | ~absent).all()
    assert (~(given | missing)).any(1).all()
    again = draw_masks(keys[100:200], 2, absent[100:200])
    assert torch.equal(again[0], given[100:200]) and torch.equal(again[1], missing[100:200])

    given, missing = draw_masks(keys, 2, torch.zeros_like(absent))
    assert (~(given | missing)).any(1).all()
    theta = torch.arange(V) < 2

    def share(is_given: Tensor, is_missing: Tensor) -> float:
        return float(((given == is_given).all(1) & (missing == is_missing).all(1)).double().mean())

    none = torch.zeros(V, dtype=torch.bool)
    assert abs(share(~theta, none) - 0.6) < 0.03
    assert abs(share(theta, none) - 0.1) < 0.02
    assert abs(share(none, none) - 0.07) < 0.03
    assert abs(share(none, ~theta) - 0.025) < 0.015
    assert abs(share(none, theta) - 0.025) < 0.015
    # every pattern of given and asked occurs
    codes = (given[~missing.any(1)].long() * 2 ** torch.arange(V)).sum(1)
    assert set(range(2**V - 1)) <= set(codes.tolist())


def simulations(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """theta: U(-1, 1) and a log-normal; x: theta_0 + noise, a positive skewed one, and one that is near 1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.stack([2 * torch.rand(n, generator=generator) - 1, torch.randn(n, generator=generator).exp()], 1)
    normals = torch.randn(n, 3, generator=generator)
    x = torch.stack(
        [
            theta[:, 0] + 0.3 * normals[:, 0],
            theta[:, 1] * (0.2 * normals[:, 1]).exp(),
            normals[:, 2].sign() + 0.1 * normals[:, 2],
        ],
        1,
    )
    return theta, x


PRIOR = [Uniform(-1.0, 1.0), LogNormal(0.0, 1.0)]
SMALL: dict[str, Any] = {"channels": 16, "blocks": 1, "heads": 2, "expansion": 2}


@pytest.fixture(scope="module")
def joint() -> JointEstimator:
    """Trained for a moment on 3000 simulations with missing values."""
    theta, x = simulations(3000)
    x[::7, 2] = torch.nan
    estimator = JointEstimator(PRIOR, variables={"shift": 1, "scale": 1, "first": 1, "rest": 2}, nan="mask", **SMALL)
    return estimator.append_simulations(theta, x).train(samples=80_000, batch_size=200, lr=5e-3, progress=False)


def test_a_network_that_adds_something_is_kept(joint: JointEstimator) -> None:
    """The last x is near 1 or -1, which no Gaussian is."""
    drawn = joint.sample(300, asked=4)
    assert ((drawn.abs() - 1).abs() < 0.5).double().mean() > 0.7


def test_samples_are_in_the_users_units_and_in_the_support(joint: JointEstimator) -> None:
    drawn = joint.sample(400, given={"x": [0.9, 2.0, torch.nan]}, asked="theta", num_steps=10)
    assert drawn.dtype == torch.float32 and drawn.shape == (400, 2)
    assert joint.prior.contains(drawn).all()
    assert 0.4 < float(drawn[:, 0].median()) < 1.0
    assert 1.4 < float(drawn[:, 1].median()) < 2.8
    # positive columns of x stay positive; without a condition they are the evidence
    x = joint.sample(400, asked="x", num_steps=10)
    assert (x[:, 1] > 0).all()
    assert 0.6 < float(x[:, 1].median()) < 1.6
    # columns come in the order asked
    swapped = joint.sample(400, given={"x": [0.9, 2.0, torch.nan]}, asked=["scale", 0], num_steps=10)
    assert torch.equal(swapped, swapped)
    assert 1.4 < float(swapped[:, 0].median()) < 2.8


def test_the_prior_and_its_conditionals_are_exact(joint: JointEstimator) -> None:
    """Where no x is asked or given the network has no say."""
    with torch.no_grad():
        joint.denoiser.network.tokens.out_bias += 3.0  # a network that is far off
    drawn = joint.sample(4000, asked="theta")
    other = joint.sample(4000, given={"scale": 3.0, "first": torch.nan}, asked="shift")
    with torch.no_grad():
        joint.denoiser.network.tokens.out_bias -= 3.0
    # 3000 simulations give the moments.
    for column, law in ((drawn[:, 0], PRIOR[0]), (drawn[:, 1], PRIOR[1]), (other[:, 0], PRIOR[0])):
        assert float((law.cdf(column.sort().values) - torch.linspace(0, 1, 4000)).abs().max()) < 0.05


def test_a_value_that_no_logarithm_has() -> None:
    """One 0 in a positive, skewed column, wherever it falls, and observations at and below 0."""
    theta, x = simulations(400)
    x[torch.arange(0, 400, 40), 1] = 0.01
    x[7, 1] = 0.0
    for seed in range(3):
        estimator = JointEstimator(PRIOR, **SMALL).append_simulations(theta, x)
        estimator.train(samples=2000, batch_size=100, seed=seed, learn_simulator=False, progress=False)
    for value in (0.0, -0.1):
        given = {"x": [0.5, value, 1.0]}
        assert estimator.sample(5, given=given, asked="theta", num_steps=4).isfinite().all()
        assert estimator.log_prob({"x": given["x"]}, given={"theta": [0.5, 1.0]}, num_steps=4).isfinite().all()


def test_a_learned_simulator_adds_simulations() -> None:
    theta, x = simulations(300)
    estimator = JointEstimator(PRIOR, **SMALL).append_simulations(theta, x)
    estimator.train(samples=20_000, batch_size=100, lr=5e-3, progress=False)
    drawn = estimator.sample(500, given={"x": [0.9, 2.0, 1.0]}, asked="theta", num_steps=10)
    assert abs(float(drawn[:, 0].median()) - 0.75) < 0.3
    assert abs(float(drawn[:, 1].log().median()) - 0.69) < 0.3


def test_one_condition_a_draw(joint: JointEstimator) -> None:
    shifts = torch.linspace(-0.9, 0.9, 64)
    x = joint.sample(64, given={"shift": shifts, "scale": 1.0}, asked="first", num_steps=10)[:, 0]
    assert float(torch.corrcoef(torch.stack([x, shifts]))[0, 1]) > 0.6
    with pytest.raises(InputError, match=r"^given has 64 rows and n is 10"):
        joint.sample(10, given={"shift": shifts})


def test_density_is_normalised_in_the_users_units(joint: JointEstimator) -> None:
    given = {"first": 0.2}
    edge = torch.linspace(-1.2, 1.2, 97)
    inside = joint.log_prob({"shift": edge}, given=given, rtol=1e-4, atol=1e-4)
    assert torch.isinf(inside[edge.abs() > 1]).all()
    assert abs(float(torch.trapezoid(inside.exp(), edge)) - 1) < 0.03
    positive = torch.linspace(-4, 4, 97).exp()
    density = joint.log_prob({"scale": positive}, given=given, rtol=1e-4, atol=1e-4).exp()
    assert abs(float(torch.trapezoid(density, positive)) - 1) < 0.03


def test_one_value_has_a_density_under_each_condition(joint: JointEstimator) -> None:
    shifts = torch.tensor([-0.5, 0.2, 0.6])
    together = joint.log_prob({"first": 0.2}, given={"shift": shifts, "scale": 1.0}, rtol=1e-4)
    alone = [joint.log_prob({"first": [0.2]}, given={"shift": s, "scale": 1.0}, rtol=1e-4) for s in shifts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-3)
    assert int(together.argmax()) == 1


def test_the_conditional_is_a_denoiser_of_what_is_asked(joint: JointEstimator) -> None:
    conditional = joint.conditional({"rest": [1.0, 0.0]}, ["theta"])
    assert isinstance(conditional, Conditional)
    z = edmund.sample(conditional, (8, 2), sampler="dpmpp_2m", num_steps=8, progress=False)
    assert isinstance(z, Tensor) and z.shape == (8, 2)
    with pytest.raises(InputError, match=r"^x has shape \[8, 3\]; this conditional is of \[B, 2\]"):
        conditional(torch.zeros(8, 3), torch.tensor(1.0))
    # the state of what is given is its value, whatever the noise level; values given in the call take its place
    values = conditional.values.clone()
    low, high = (conditional(torch.zeros(1, 2), torch.tensor(s), given=values + 1) for s in (1.0, 2.0))
    assert not torch.equal(low, conditional(torch.zeros(1, 2), torch.tensor(1.0)))
    assert not torch.equal(low, high)


def test_what_is_neither_given_nor_asked_is_as_missing(joint: JointEstimator) -> None:
    with_nan = joint.conditional({"x": [0.9, torch.nan, torch.nan]}, "theta")
    without = joint.conditional({"first": 0.9}, "theta")
    z, sigma = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(0.6)
    with torch.no_grad():
        torch.testing.assert_close(with_nan(z, sigma), without(z, sigma))
    # what is NaN may be asked, and is where nothing is named
    imputed = joint.sample(5, given={"x": [0.9, torch.nan, torch.nan]}, asked=["theta", 3, 4], num_steps=5)
    assert torch.equal(joint.sample(5, given={"x": [0.9, torch.nan, torch.nan]}, num_steps=5), imputed)


def test_conditionals_are_centred_and_lead_to_the_users_units_and_back(joint: JointEstimator) -> None:
    theta, x = simulations(2000, seed=1)
    conditional = joint.conditional({"x": x}, "theta")
    w = conditional.to_model(theta)
    torch.testing.assert_close(conditional.to_user(w), theta, rtol=1e-4, atol=1e-5)
    assert w.mean(0).abs().max() < 0.06
    assert abs(float(torch.corrcoef(torch.stack([w[:, 0], x[:, 0]]))[0, 1])) < 0.08


def test_saved_and_loaded(joint: JointEstimator, tmp_path: Path) -> None:
    folder = joint.save(tmp_path / "joint")
    assert {file.name for file in folder.iterdir()} == {"config.json", "joint.json", "model.safetensors"}
    loaded = JointEstimator.load(folder)
    given = {"first": 0.2}
    assert torch.equal(
        loaded.sample(5, given=given, asked="theta", num_steps=4),
        joint.sample(5, given=given, asked="theta", num_steps=4),
    )
    with pytest.raises(InputError, match="holds no joint model"):
        JointEstimator.load(tmp_path)
    content = json.loads((folder / "joint.json").read_text())
    (folder / "joint.json").write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(InputError, match=r"is of format 7"):
        JointEstimator.load(folder)
    with pytest.raises(InputError, match=r"^network is None"):
        edmund.load(folder)


def test_bad_questions(joint: JointEstimator) -> None:
    for call, message in (
        (lambda: joint.conditional({"y": 1.0}), "^given: 'y' is not known"),
        (lambda: joint.conditional({7: 1.0}), "^given is 7; there are 5 columns"),
        (
            lambda: JointEstimator(PRIOR, variables={"x": 2, "y": 3}).append_simulations(*simulations(100)).train(),
            r"^variables has columns \[0, 1\] as 'x', which are \[2, 3, 4\]; rename them",
        ),
        (lambda: joint.conditional({"x": 1.0}), r"^given: x has shape \[\]; it must be \[3\]"),
        (lambda: joint.conditional({"x": [1.0, 1.0]}), r"^given: x has shape \[2\]; it must be \[3\]"),
        (lambda: joint.conditional({"x": "abc"}), "^given: x is a str"),
        (
            lambda: joint.conditional([1.0]),  # type: ignore[arg-type]
            r"^given is \[1.0\]; it must be a mapping",
        ),
        (lambda: joint.conditional({"x": [1.0, 1.0, 1.0], "first": 1.0}), "column 2 is in it more than once"),
        (lambda: joint.conditional({"x": [1.0, 1.0, 1.0]}, "first"), "^asked is 'first'; column 2 is given"),
        (lambda: joint.conditional({"x": [1.0, 1.0, 1.0], "theta": [0.0, 1.0]}), "^asked is None; at least one"),
        (lambda: joint.conditional({"shift": 1.5}), "^given: 1 of 1 rows have parameters outside the prior's support"),
        (lambda: joint.conditional({"first": torch.inf}), "^given: 1 of 1 rows hold infinite values"),
        (lambda: joint.conditional({"shift": [0.1, 0.2], "first": [1.0, 2.0, 3.0]}), "^given has 2 and 3 rows"),
        (lambda: joint.log_prob({"shift": torch.nan}), "^values: 1 are NaN"),
        (lambda: joint.sample(0), "^n is 0"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.warns(
        UserWarning, match=r"^given: 'first' is 30, .* standard deviations outside the training range \["
    ):
        joint.conditional({"first": 30.0})


def test_what_never_varied_is_told_of_when_it_does() -> None:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 3.3
    prior = Prior.of(PRIOR)
    with pytest.warns(UserWarning, match="constant"):
        space = JointSpace.fit(prior, named_columns(prior, 2, None), 2, [x])
    space.to_model(x[:1], [prior.dim, prior.dim + 1], "given")
    with pytest.warns(UserWarning, match=r"^given: column 1 of x is 3.4, and was 3.3 in all training data"):
        space.to_model(torch.tensor([[0.0, 3.4]]), [prior.dim, prior.dim + 1], "given")


def test_bad_estimators() -> None:
    theta, x = simulations(200)
    with pytest.raises(InputError, match=r"^heads is 3"):
        JointEstimator(PRIOR, heads=3)
    with pytest.raises(InputError, match=r"^there is no trained network"):
        JointEstimator(PRIOR).sample(1)
    with pytest.raises(InputError, match=r"^there are 40 simulations"):
        JointEstimator(PRIOR).append_simulations(theta[:40], x[:40]).train()
    with pytest.raises(InputError, match=r"^variables has 4 columns in all; theta and x have 5"):
        JointEstimator(PRIOR, variables={"theta": 2, "x": 2}).append_simulations(theta, x).train()
    with pytest.raises(InputError, match=r"^graph has shape \[2, 2\]; it must be \[5, 5\]"):
        JointEstimator(PRIOR, graph=torch.zeros(2, 2)).append_simulations(theta, x).train()
    with pytest.raises(InputError, match=r"^x has rows of shape \[3, 1\]"):
        JointEstimator(PRIOR).append_simulations(theta, x[:, :, None]).train()
    with pytest.raises(InputError, match=r"^x: 1 of 600 values are NaN"):
        JointEstimator(PRIOR).append_simulations(
            theta, torch.where(torch.arange(600).reshape(200, 3) == 5, torch.nan, x)
        )


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are functions of the sample's number: an interrupted run sees the ones that it would have seen."""
    theta, x = simulations(200)

    def trained(folder: Path) -> JointEstimator:
        estimator = JointEstimator(PRIOR, **SMALL).append_simulations(theta, x)
        return estimator.train(directory=folder, samples=3000, batch_size=50, progress=False)

    whole = trained(tmp_path / "whole")
    original = trainer._Run._save

    def save_and_stop(self: Any, log: Any) -> None:
        original(self, log)
        if self.state.samples_seen > 1000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped")
    resumed = trained(tmp_path / "stopped")
    assert resumed.result is not None and resumed.result.trained < 3000
    for ours, theirs in zip(whole.denoiser.parameters(), resumed.denoiser.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_network_that_adds_nothing_is_left_out() -> None:
    """Of Gaussian data it learns noise; then the conditionals are exact but for the moments' own errors."""
    covariance = covariance_of(DAG.bool())
    z = torch.randn(20_000, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = (z @ torch.linalg.cholesky(covariance).mT).float()
    prior = MultivariateNormal(torch.zeros(2), covariance[:2, :2].float())
    estimator = JointEstimator(prior, graph=DAG, **SMALL).append_simulations(z[:, :2], z[:, 2:])
    estimator.train(samples=10_000, batch_size=200, lr=1e-2, progress=False)
    assert not estimator.denoiser.network.tokens.out_weight.any()
    latents = torch.randn(1000, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for index in (0b000000, 0b111100, 0b000011, 0b101010, 0b010101):
        given = torch.tensor([bool(index >> k & 1) for k in range(V)])
        asked = (~given).nonzero()[:, 0].tolist()
        known = given.nonzero()[:, 0].tolist()
        conditional = estimator.conditional(dict.fromkeys(known, 0.5), asked)
        start = latents[:, : len(asked)] - latents[:, : len(asked)].mean(0)
        root = torch.linalg.cholesky(start.mT @ start / len(start))
        start = torch.linalg.solve_triangular(root, start.mT, upper=False).mT
        drawn = edmund.sample(conditional, start.shape, latents=start, progress=False)
        assert isinstance(drawn, Tensor)
        values = conditional.to_user(drawn).double()
        gain = covariance[:, known] @ torch.linalg.inv(covariance[known][:, known])
        mean = (gain @ torch.full((len(known),), 0.5, dtype=torch.float64))[asked]
        exact = (covariance - gain @ covariance[known])[asked][:, asked]
        std = exact.diagonal().sqrt()
        assert ((values.mean(0) - mean) / std).abs().max() < 0.05
        assert ((values.mT.cov() - exact) / std / std[:, None]).abs().max() < 0.1
