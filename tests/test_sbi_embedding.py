"""Embeddings of observations: their symmetries, that what is missing does not count, and that each learns a summary
whose closed form is known, as it would learn a posterior's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edmund.errors import InputError
from edmund.sbi import embedding
from edmund.sbi.embedding import CNN, MLP, Embedding, PermutationInvariant, Transformer, Vector
from edmund.sbi.standardise import Standardise

CASES: list[tuple[str, tuple[int, ...], dict[str, Any], bool]] = [
    ("mlp", (7,), {"channels": 16, "blocks": 1}, False),
    ("mlp", (3, 4, 2), {"channels": 16, "dropout": 0.25}, False),
    ("set", (6, 3), {"channels": 16}, False),
    ("set", (6, 4), {"channels": 16, "blocks": 1}, True),
    ("cnn", (21, 3), {"channels": 8}, False),
    ("cnn", (2, 9, 14), {"channels": 8}, False),
    ("cnn", (1, 3, 2), {"channels": 8, "dropout": 0.25}, False),
    ("transformer", (9, 3), {"channels": 16}, False),
    ("transformer", (9, 4), {"channels": 16, "heads": 2, "patch": 4}, True),
    ("transformer", (2, 7, 9), {"channels": 16, "patch": 2}, True),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(what: Any, shape: Sequence[int], out_features: int | None = None, **options: Any) -> Embedding:
    """With weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return embedding.build(what, shape, out_features, **options)


def masked(values: Tensor, missing: Tensor) -> Tensor:
    """z as `Standardise` with a mask makes it of values [B, ..., C], missing where told."""
    return torch.cat([values.masked_fill(missing, 0), missing.to(values.dtype)], -1)


def refused(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# Symmetries, and what is missing


def test_sets_have_no_order() -> None:
    net = built("set", [11, 3])
    z = normal(5, 11, 3)
    expected = net(z)
    for seed in range(5):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(net(z[:, order]), expected, rtol=0, atol=1e-6)
    assert (net(z.roll(1, 0)) - expected).abs().max() > 1e-3  # other sets have other features


def test_missing_rows_of_a_set_are_not_in_it() -> None:
    """The features of n rows padded to T are those of phi over the n rows alone, wherever the padding stands."""
    net = built("set", [12, 4], mask=True)
    assert isinstance(net, PermutationInvariant)
    rows = masked(normal(5, 7, 2), normal(5, 7, 2, seed=1) > 1)  # some values of rows that are there are missing
    rows[:, :, 2] = rows[:, :, 2] * (1 - rows[:, :, 3])  # but never all of a row
    rows[:, :, 0] = rows[:, :, 0] * (1 - rows[:, :, 2])
    absent = masked(torch.zeros(5, 5, 2), torch.ones(5, 5, 2, dtype=torch.bool))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    found = net(torch.cat([rows, absent], 1)[:, order])

    h = net.phi(rows)
    size = torch.full((5, 1), math.log(8 / 13))
    torch.testing.assert_close(found, net.rho(torch.cat([h.mean(1), h.amax(1), size], 1)), rtol=0, atol=1e-6)

    absent[:, :, :2] = 100.0  # what stands in a missing row is not read
    torch.testing.assert_close(net(torch.cat([rows, absent], 1)[:, order]), found, rtol=0, atol=1e-6)


def test_a_set_knows_how_many_rows_it_has() -> None:
    """Every row twice: mean and maximum are the same, only the count tells."""
    net = built("set", [12, 4], mask=True)
    rows = masked(normal(5, 6, 2), torch.zeros(5, 6, 2, dtype=torch.bool))
    absent = masked(torch.zeros(5, 6, 2), torch.ones(5, 6, 2, dtype=torch.bool))
    once, twice = net(torch.cat([rows, absent], 1)), net(torch.cat([rows, rows], 1))
    assert (once - twice).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    "training", [True, False]
)  # torch has another path through the transformer where nobody trains
@pytest.mark.parametrize(("name", "shape"), [("set", (6, 4)), ("transformer", (6, 4)), ("transformer", (4, 6, 6))])
def test_an_observation_of_which_all_is_missing_has_features_and_gradients(
    name: str, shape: tuple[int, ...], training: bool
) -> None:
    net = built(name, shape, mask=True).train(training)
    x = normal(3, *Standardise(shape).shape)
    half = shape[0] // 2 if len(shape) == 3 else shape[1] // 2
    x = x[:, :half] if len(shape) == 3 else x[:, :, :half]
    x[1] = torch.nan
    z = Standardise(x.shape[1:], mask=True)(x)
    assert z.shape[1:] == shape
    with torch.no_grad():
        quiet = net(z)
    features = net(z)
    torch.testing.assert_close(quiet, features, rtol=0, atol=1e-5)
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("training", [True, False])
def test_missing_tokens_are_not_attended_to_nor_averaged(training: bool) -> None:
    """Rows 3 .. 8 are missing. What their tokens hold besides (their positions) does not reach the features."""
    net = built("transformer", [12, 4], mask=True).train(training)
    assert isinstance(net, Transformer)
    missing = torch.zeros(4, 12, 2, dtype=torch.bool)
    missing[:, 3:9] = True
    missing[:, 9, 0] = True  # row 9 is there in part
    z = masked(normal(4, 12, 2), missing)
    with torch.no_grad():
        expected = net(z)
        net.positions[3:9] += 10 * normal(6, 64)
        torch.testing.assert_close(net(z), expected, rtol=0, atol=1e-6)
        net.positions[9] += 10 * normal(64)
        assert (net(z) - expected).abs().amax(1).min() > 1e-3


def test_a_patch_counts_as_missing_where_its_whole_inside_is() -> None:
    """A series of 10 in patches of 4: the last patch has two rows and two of padding, which make it no less missing."""
    net = built({"type": "transformer", "patch": 4}, [10, 2], mask=True)
    assert isinstance(net, Transformer)
    missing = torch.zeros(3, 10, 1, dtype=torch.bool)
    missing[0, 8:] = True
    missing[1, 1:8] = True
    missing[2, 9:] = True
    z = masked(normal(3, 10, 1), missing)
    expected = [[False, False, True], [False, True, False], [False, False, False]]
    assert net._absent(z.transpose(1, 2)).tolist() == expected


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_order_matters_to_series(name: str) -> None:
    net = built(name, [12, 2])
    z = normal(4, 12, 2)
    assert (net(z) - net(z.flip(1))).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize(
    ("shape", "tokens", "patch"), [((64, 1), 64, 1), ((65, 1), 33, 2), ((1000, 1), 63, 16), ((1, 30, 17), 40, 4)]
)
def test_at_most_64_tokens_by_default(shape: tuple[int, ...], tokens: int, patch: int) -> None:
    net = built("transformer", shape)
    assert isinstance(net, Transformer)
    assert (len(net.positions), net.patch) == (tokens, patch)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 9, 17, 32])
@pytest.mark.parametrize("other", [1, 6])
def test_cnn_takes_any_sides_and_pools_a_grid_of_at_most_four(side: int, other: int) -> None:
    for grid in ((side, other), (other, side)):
        net = built({"type": "cnn", "channels": 8}, [1, *grid])
        assert isinstance(net, CNN)
        pooled = net.blocks(net.conv_in(torch.zeros(1, 1, *grid))).shape[2:]
        assert max(pooled) == min(max(grid), 4 if max(grid) in (4, 8, 32) else 3)
        assert net(normal(2, 1, *grid)).isfinite().all()


# What all have in common


@pytest.mark.parametrize(("name", "shape", "options", "mask"), CASES)
def test_gradients_reach_every_parameter(
    name: str, shape: tuple[int, ...], options: dict[str, Any], mask: bool
) -> None:
    net = built({"type": name, **options}, shape, mask=mask)
    z = normal(8, *shape)
    if mask and len(shape) == 2:
        values, missing = z.chunk(2, -1)
        z = masked(values, missing > 0)
    elif mask:
        values, missing = z.movedim(1, -1).chunk(2, -1)
        z = masked(values, missing > 1).movedim(-1, 1)
    net(z).square().sum().backward()
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize(("name", "shape", "options", "mask"), CASES)
def test_config_makes_the_same_embedding_again(
    name: str, shape: tuple[int, ...], options: dict[str, Any], mask: bool
) -> None:
    net = built({"type": name, **options}, shape, out_features=5, mask=mask).eval()
    config = json.loads(json.dumps(net.config))
    z = normal(3, *shape)
    for again in (embedding.from_config(config), embedding.build(config, shape, mask=mask)):
        again.load_state_dict(net.state_dict())
        assert type(again) is type(net) and again.config == net.config and again.out_features == 5
        assert torch.equal(again.eval()(z), net(z)) and net(z).shape == (3, 5)
    assert net.name == name and {key: net.config[key] for key in options} == options  # type: ignore[index]


def test_auto_goes_by_the_number_of_axes() -> None:
    assert isinstance(embedding.build(None, [9]), Vector)
    assert isinstance(embedding.build("auto", [9], out_features=9), Vector)
    assert isinstance(embedding.build("auto", [9], out_features=4), MLP)
    assert isinstance(embedding.build({"type": "auto", "out_features": 4}, [9]), MLP)
    assert isinstance(embedding.build(None, [9, 2]), Transformer)
    assert isinstance(embedding.build(None, [2, 9, 9]), CNN)
    assert set(embedding.registry()) == {"vector", "mlp", "set", "cnn", "transformer"}


def test_a_vector_is_taken_as_it_is() -> None:
    net = embedding.build(None, [4])
    z = normal(3, 4)
    assert net(z) is z and net.out_features == 4 and not list(net.parameters())
    assert embedding.from_config(net.config or {}).config == net.config


def test_dropout_in_training_only() -> None:
    for name, shape in (("mlp", (6,)), ("set", (6, 2)), ("cnn", (6, 2)), ("transformer", (6, 2))):
        net = built({"type": name, "dropout": 0.5}, shape)
        z = normal(2, *shape)
        assert not torch.equal(net(z), net(z)), name
        net.eval()
        assert torch.equal(net(z), net(z)), name


@pytest.mark.parametrize(("name", "shape", "options", "mask"), CASES)
def test_half_precision_and_float64(name: str, shape: tuple[int, ...], options: dict[str, Any], mask: bool) -> None:
    net = built({"type": name, **options}, shape, mask=mask).eval()
    z = normal(4, *shape)
    values = net(z)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(z)
    assert (half - values).abs().max() < 0.05 * values.abs().max()
    torch.testing.assert_close(net.double()(z.double()), values.double(), rtol=0, atol=1e-5)


# A module of one's own


def test_a_module_of_ones_own() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    net = embedding.build(module, [2, 3])
    assert net.out_features == 8 and net.config is None and net.name == "Sequential"
    assert net.training and all(part.training for part in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())  # no statistics of zeros
    net.eval()
    z = normal(5, 2, 3)
    assert torch.equal(net(z), module(z))
    lazy = embedding.build(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), [2, 3], 4)
    assert lazy(z).shape == (5, 4)
    assert embedding.build(nn.Linear(3, 2).double(), [3]).out_features == 2
    ours = embedding.build("mlp", [3])
    assert embedding.build(ours, [3]) is ours


class _Made(nn.Module):
    """Returns what it is told to."""

    def __init__(self, made: object) -> None:
        super().__init__()
        self.made = made

    def forward(self, z: Tensor) -> object:
        return self.made


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Linear(4, 2), r"^embedding is a Linear; of zeros \[2, 3\] it raised RuntimeError: .*\[2, features\]"),
        (_Made(torch.zeros(2, 3, 4)), r"it made \[2, 3, 4\]; it must make a vector of each"),
        (_Made(torch.zeros(2)), r"it made \[2\];"),
        (_Made(torch.zeros(1, 4)), r"it made \[1, 4\];"),
        (_Made(torch.zeros(2, 0)), r"it made \[2, 0\];"),
        (_Made((torch.zeros(2, 4),)), "it made tuple;"),
        (_Made(torch.zeros(2, 4, dtype=torch.int64)), "it made torch.int64;"),
        (_Made(torch.tensor([[1.0, math.nan], [math.inf, 0.0]])), "made 2 of 4 values NaN or infinite"),
    ],
)
def test_modules_that_make_no_vectors(module: nn.Module, match: str) -> None:
    refused(match, lambda: embedding.build(module, [3]))


def test_modules_that_do_not_fit() -> None:
    refused("makes 2 features; out_features is 5", lambda: embedding.build(nn.Linear(3, 2), [3], 5))
    refused(r"made for shape \[4\]; the observations have \[3\]", lambda: embedding.build(MLP([4]), [3]))
    net = PermutationInvariant([5, 2])
    refused(
        "made with mask = False; the observations need mask = True", lambda: embedding.build(net, [5, 2], mask=True)
    )


# The door


@pytest.mark.parametrize(
    ("what", "shape", "match"),
    [
        ("transfomer", [5, 2], "^embedding: 'transfomer' is not known; did you mean 'transformer'"),
        ({"type": 3}, [5, 2], "^embedding: 3 is not known"),
        ({"channels": 3}, [5, 2], r"^embedding is \{'channels': 3\}; it must be one of cnn, mlp, set"),
        (CNN, [5, 2], "^embedding is <class .* an instance of"),
        ({"type": "cnn", "chanels": 8}, [5, 2], "^key of embedding 'cnn': 'chanels' is not known; did you mean 'cha"),
        ({"type": "vector", "mask": True}, [5], "^key of embedding 'vector': 'mask' is not known"),
        ({"type": "mlp", "shape": [6]}, [5], r"^shape of embedding 'mlp' is \[6\]; the observations need \[5\]"),
        ({"type": "set", "mask": True}, [5, 2], "^mask of embedding 'set' is True; the observations need False"),
        ({"type": "mlp", "out_features": 0}, [5], "^out_features is 0"),
        ({"type": "mlp", "channels": 2.5}, [5], "^channels is 2.5"),
        ({"type": "mlp", "blocks": 0}, [5], "^blocks is 0"),
        ({"type": "mlp", "dropout": 1.0}, [5], "^dropout is 1.0"),
        ({"type": "set", "blocks": True}, [5, 2], "^blocks is True"),
        ({"type": "cnn", "channels": 12}, [5, 2], "^channels is 12; it must be a multiple of 8"),
        ({"type": "transformer", "channels": 12}, [5, 2], "^channels is 12; it must be a multiple of 8"),
        ({"type": "transformer", "heads": 3}, [5, 2], "^heads is 3; it must divide channels, 64"),
        ({"type": "transformer", "patch": 0}, [5, 2], "^patch is 0"),
        ("vector", [5, 2], r"^shape is .*5, 2.*; this embedding takes vectors \[F\]"),
        ("set", [5], r"^shape is .*; this embedding takes sets \[T, C\]"),
        ("cnn", [5], r"^shape is .*; this embedding takes images"),
        ("transformer", [1, 2, 3, 4], r"^shape is .*; this embedding takes series"),
        (None, [1, 2, 3, 4], r"^shape is \[1, 2, 3, 4\]; no embedding is chosen by itself for 4 axes"),
        (None, [], r"^shape is \[\]"),
        (None, 3, "^shape is 3"),
        (None, [5, 0], "^shape is 0; it must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_built(what: Any, shape: Any, match: str) -> None:
    refused(match, lambda: embedding.build(what, shape))


def test_contradictions() -> None:
    refused("^out_features is 4; a vector of 5", lambda: embedding.build("vector", [5], 4))
    refused(
        "^out_features of embedding 'mlp' is 3; the observations need 4",
        lambda: embedding.build({"type": "mlp", "out_features": 3}, [5], 4),
    )
    for name in ("set", "transformer"):
        refused(r"^mask is True, but shape \[5, 3\] has 3", lambda name=name: embedding.build(name, [5, 3], mask=True))
        refused("^mask is 1; it must be True or False", lambda name=name: embedding.build(name, [5, 2], mask=1))
    refused("^embedding is .*'type': 'mlp'.* a type and a shape", lambda: embedding.from_config({"type": "mlp"}))


@pytest.mark.parametrize(("name", "shape", "options", "mask"), CASES)
def test_observations_of_another_shape(name: str, shape: tuple[int, ...], options: dict[str, Any], mask: bool) -> None:
    net = built({"type": name, **options}, shape, mask=mask)
    for wrong in ((*shape[:-1], shape[-1] + 1), shape[1:], (*shape, 1)):
        refused(r"^z has shape .*; this embedding was made for \[B, ", lambda wrong=wrong: net(torch.zeros(2, *wrong)))


# Each learns a summary that is known


def learned(
    what: Any, make: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], steps: int, *, mask: bool = False
) -> Tensor:
    """The root mean square errors [K] of a linear map of the features, trained jointly with them, in the targets' std.

    make: (count, generator) -> (z, targets [count, K]).
    """
    generator = torch.Generator().manual_seed(0)
    z, target = make(64, generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = embedding.build(what, z.shape[1:], mask=mask)
        network = nn.Sequential(net, nn.Linear(net.out_features, target.shape[1]))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        loss = (network(z) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        z, target = make(64, generator)
    network.eval()
    z, target = make(500, generator)
    with torch.no_grad():
        return (network(z) - target).square().mean(0).sqrt() / target.std(0)


def test_a_set_learns_the_posterior_of_every_size() -> None:
    """theta ~ N(0, 1), n of 0 .. 10 draws x_i ~ N(theta, 1): mean sum x_i / (1 + n), variance 1 / (1 + n)."""

    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n = torch.randint(0, 11, (count, 1), generator=generator)
        x = torch.randn(count, 1, generator=generator) + torch.randn(count, 10, generator=generator)
        missing = torch.rand(count, 10, generator=generator).argsort(1) >= n
        z = masked(x[:, :, None], missing[:, :, None])
        return z, torch.cat([z[:, :, 0].sum(1, keepdim=True) / (1 + n), -0.5 * (1.0 + n).log()], 1)

    mean, deviation = learned("set", make, 250, mask=True)
    assert mean < 0.12
    assert deviation < 0.15


def test_a_set_learns_mean_and_deviation() -> None:
    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        std = (0.5 * torch.randn(count, 1, generator=generator)).exp()
        x = torch.randn(count, 1, generator=generator) + std * torch.randn(count, 15, generator=generator)
        return x[:, :, None] / 1.6, torch.cat([x.mean(1, keepdim=True), x.std(1, keepdim=True).log()], 1)

    mean, deviation = learned("set", make, 250)
    assert mean < 0.05
    assert deviation < 0.2


@pytest.mark.parametrize("name", ["transformer", "cnn"])
def test_series_learn_the_posterior_mean_of_a_line(name: str) -> None:
    """x_t = a + b t + noise with unit normal a, b and noise: (A'A + I)^-1 A'x, with A's rows (1, t)."""
    design = torch.stack([torch.ones(20), torch.linspace(-1, 1, 20)], 1)
    ridge = torch.linalg.solve(design.T @ design + torch.eye(2), design.T)

    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 2, generator=generator) @ design.T + torch.randn(count, 20, generator=generator)
        return x[:, :, None] / 1.6, x @ ridge.T

    assert learned(name, make, 100).max() < 0.2


@pytest.mark.parametrize("name", [pytest.param("transformer", marks=pytest.mark.slow), "cnn"])
def test_series_learn_a_frequency(name: str) -> None:
    """2 to 8 periods of any phase, to within a tenth of the frequencies' std (a sixth of a period)."""

    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frequency = 2 + 6 * torch.rand(count, 1, generator=generator)
        phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
        x = math.sqrt(2) * torch.sin(2 * math.pi * frequency * torch.arange(32) / 32 + phase)
        return (x + 0.1 * torch.randn(count, 32, generator=generator))[:, :, None], (frequency - 5) / math.sqrt(3)

    assert learned(name, make, 120) < 0.1


@pytest.mark.parametrize(("name", "error"), [("cnn", 0.1), pytest.param("transformer", 0.2, marks=pytest.mark.slow)])
def test_images_learn_where_a_blob_is(name: str, error: float) -> None:
    rows, columns = torch.linspace(-1, 1, 12)[:, None], torch.linspace(-1, 1, 15)

    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        position = 1.6 * torch.rand(count, 2, generator=generator) - 0.8
        y, x = position[:, :, None, None].unbind(1)
        image = 4 * torch.exp(-((rows - y).square() + (columns - x).square()) / (2 * 0.2**2))
        return (image + 0.2 * torch.randn(image.shape, generator=generator))[:, None], position

    assert learned(name, make, 100).max() < error


def test_images_learn_an_amplitude() -> None:
    """The norms inside do not take away what all pixels have in common."""

    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = (0.7 * torch.randn(count, 1, 1, 1, generator=generator)).exp()
        z = z * torch.randn(count, 1, 12, 12, generator=generator)
        return z, z.flatten(1).std(1, keepdim=True).log()

    assert learned("cnn", make, 100) < 0.25


def test_mlp_learns_a_product_and_a_variance() -> None:
    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, 8, generator=generator)
        return z, torch.stack([z[:, 0] * z[:, 1], z.var(1).log()], 1)

    assert learned("mlp", make, 400).max() < 0.2
