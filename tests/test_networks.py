"""What every raw network must do: start at F = 0, hear each condition and nothing else, refuse what does not fit."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edmund import networks
from edmund.errors import InputError
from edmund.networks import ADM, MLP, DiT, EDM2UNet, SongUNet, UNet

CONDITIONS: dict[str, Any] = {"label_dim": 5, "context_dim": 3, "augment_dim": 2}
SHAPES = {
    "mlp": (6,),
    "unet": (2, 9, 7),
    "edm2_unet": (2, 8, 12),
    "song_unet": (2, 8, 4),
    "adm": (2, 4, 8),
    "dit": (2, 4, 6),
}
BATCH = 4


def make(name: str, **changes: Any) -> nn.Module:
    """A small network that knows every condition."""
    torch.manual_seed(0)
    if name == "mlp":
        return MLP(**{"features": 6, "channels": 32, "blocks": 2, "image_shape": [1, 3, 2], **CONDITIONS, **changes})
    if name == "dit":
        small = {"in_channels": 2, "channels": 16, "blocks": 1, "heads": 2, "image_channels": 1}
        return DiT(**{**small, **CONDITIONS, **changes})
    options = {"in_channels": 2, "channels": 8, "channel_mult": [1, 2, 2], "image_channels": 1, **CONDITIONS}
    if name == "unet":
        return UNet(**{**options, "attention_levels": [1], **changes})
    options |= {"resolution": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [4]}
    if name == "edm2_unet":
        return EDM2UNet(**{**options, **changes})
    if name == "adm":
        return ADM(**{**options, **changes})
    ncsnpp = {"embedding": "fourier", "noise_mult": 2, "encoder": "residual", "resample_filter": [1, 3, 3, 1]}
    return SongUNet(**{**options, **ncsnpp, **changes})


def awake(network: nn.Module) -> nn.Module:
    """The network with its zero-initialised parameters drawn at random, so that its output says something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.2, generator=generator)
    return network.eval()


def draw(name: str, batch: int = BATCH, seed: int = 2) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(x, c_noise, conditions) of a batch."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image = normal(batch, 1, 3, 2) if name == "mlp" else normal(batch, 1, *SHAPES[name][1:])
    condition = {
        "labels": torch.randint(0, 5, (batch,), generator=generator),
        "context": normal(batch, 3),
        "image": image,
        "augment_labels": normal(batch, 2),
    }
    return normal(batch, *SHAPES[name]), normal(batch), condition


every = pytest.mark.parametrize("name", sorted(SHAPES))


def test_registry_knows_every_network() -> None:
    known = networks.registry()
    assert {
        "mlp": MLP,
        "unet": UNet,
        "edm2_unet": EDM2UNet,
        "song_unet": SongUNet,
        "adm": ADM,
        "dit": DiT,
    }.items() <= known.items()
    assert all(kind.name == name for name, kind in known.items())


@every
def test_zero_at_initialisation(name: str) -> None:
    network = make(name)
    x, c_noise, condition = draw(name)
    out = network(x, c_noise, **condition)
    assert out.shape == x.shape
    assert not out.any()


@every
def test_config_rebuilds_the_network(name: str) -> None:
    network = awake(make(name, dropout=0.1))
    config = json.loads(json.dumps(network.config))
    assert set(config) == set(inspect.signature(type(network)).parameters)
    rebuilt = networks.registry()[name](**config).eval()
    rebuilt.load_state_dict(network.state_dict())
    assert rebuilt.config == network.config
    x, c_noise, condition = draw(name)
    assert torch.equal(rebuilt(x, c_noise, **condition), network(x, c_noise, **condition))


@every
def test_extra_outputs(name: str) -> None:
    network = make(name, **{"out_features" if name == "mlp" else "out_channels": 2 * SHAPES[name][0]})
    x, c_noise, condition = draw(name)
    assert network(x, c_noise, **condition).shape == (BATCH, 2 * x.shape[1], *x.shape[2:])


@every
@pytest.mark.parametrize("key", ["c_noise", "labels", "context", "image", "augment_labels"])
def test_every_input_is_heard_by_its_own_sample_only(name: str, key: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    before = network(x, c_noise, **condition)
    inputs = {"c_noise": c_noise, **condition}
    inputs[key] = inputs[key].clone()
    inputs[key][1] = (inputs[key][1] + 1) % 5
    after = network(x, **inputs)
    assert (after[1] - before[1]).abs().max() > 1e-3
    others = [0, 2, 3]
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)


@every
def test_permuting_the_batch_permutes_the_result(name: str) -> None:
    network = awake(make(name)).double()
    x, c_noise, condition = draw(name)
    order = torch.tensor([2, 0, 3, 1])
    dropped = torch.tensor([True, False, False, True])
    given = {key: value.double() if value.is_floating_point() else value for key, value in condition.items()}
    given["condition_dropped"] = dropped
    whole = network(x.double(), c_noise, **given)
    shuffled = network(x.double()[order], c_noise[order], **{key: value[order] for key, value in given.items()})
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-12)


@every
def test_a_condition_of_batch_one_is_expanded(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    one = {key: value[:1] for key, value in condition.items()}
    many = {key: value[:1].repeat_interleave(BATCH, 0) for key, value in condition.items()}
    assert torch.equal(network(x, c_noise, **one), network(x, c_noise, **many))


@every
def test_labels_missing_none_and_zero_rows_are_the_same(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    labels = condition.pop("labels")
    missing = network(x, c_noise, **condition)
    assert torch.equal(missing, network(x, c_noise, labels=torch.full((BATCH,), -1), **condition))
    assert torch.equal(missing, network(x, c_noise, labels=torch.zeros(BATCH, 5), **condition))
    told = network(x, c_noise, labels=labels, **condition)
    assert torch.equal(told, network(x, c_noise, labels=torch.eye(5)[labels], **condition))
    assert torch.equal(told, network(x, c_noise, labels=labels.to(torch.uint8), **condition))
    assert (told - missing).abs().amax(dim=tuple(range(1, x.ndim))).min() > 1e-3


@every
def test_augment_labels_of_zero_are_none(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    del condition["augment_labels"]
    assert torch.equal(
        network(x, c_noise, **condition), network(x, c_noise, augment_labels=torch.zeros(BATCH, 2), **condition)
    )


@every
def test_a_dropped_sample_sees_no_condition_and_the_others_see_theirs(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    dropped = torch.tensor([False, True, True, False])
    out = network(x, c_noise, condition_dropped=dropped, **condition)

    # whatever the conditions of the dropped samples are, it is the same
    other = {key: torch.where(dropped.view(-1, *(1,) * (v.ndim - 1)), (v + 1) % 5, v) for key, v in condition.items()}
    other["augment_labels"] = condition["augment_labels"]
    assert torch.equal(out, network(x, c_noise, condition_dropped=dropped, **other))

    # dropping is labels -1, a zero image, and the learned null in the place of the context
    told = network(x, c_noise, **condition)
    torch.testing.assert_close(out[~dropped], told[~dropped], rtol=0, atol=1e-6)
    none = dict(condition, labels=torch.full((BATCH,), -1), image=torch.zeros_like(condition["image"]))
    everyone = torch.ones(BATCH, dtype=torch.bool)
    assert torch.equal(
        network(x, c_noise, condition_dropped=everyone, **condition),
        network(x, c_noise, condition_dropped=everyone, **none),
    )
    assert (out[dropped] - network(x, c_noise, **none)[dropped]).abs().max() > 1e-4  # the context still spoke there

    # the augment labels are no condition: they stay
    plain = {key: value for key, value in condition.items() if key != "augment_labels"}
    assert (network(x, c_noise, condition_dropped=dropped, **plain) - out).abs().max() > 1e-3


@every
def test_dropping_equals_none_exactly_where_there_is_no_context(name: str) -> None:
    network = awake(make(name, context_dim=0))
    x, c_noise, condition = draw(name)
    del condition["context"]
    none = dict(condition, labels=torch.full((BATCH,), -1), image=torch.zeros_like(condition["image"]))
    dropped = torch.ones(BATCH, dtype=torch.bool)
    assert torch.equal(network(x, c_noise, condition_dropped=dropped, **condition), network(x, c_noise, **none))


@every
def test_context_tokens(name: str) -> None:
    network = awake(make(name)).double()
    x, c_noise, condition = draw(name)
    x, image = x.double(), condition["image"].double()
    tokens = torch.randn(BATCH, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def out(context: Tensor) -> Tensor:
        return network(x, c_noise, image=image, context=context)

    torch.testing.assert_close(out(tokens[:, 0]), out(tokens[:, :1]), rtol=0, atol=0)  # a vector is one token
    torch.testing.assert_close(
        out(tokens), out(tokens[:, [3, 1, 4, 0, 2]]), rtol=0, atol=1e-12
    )  # a set, not a sequence
    torch.testing.assert_close(out(tokens[:, :1]), out(tokens[:, :1].expand(-1, 4, -1)), rtol=0, atol=1e-12)
    changed = tokens.clone()
    changed[:, 4] += 1
    assert (out(changed) - out(tokens)).abs().max() > 1e-4


@every
def test_the_image_reaches_the_first_layer_as_it_is(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    seen: list[Tensor] = []
    first = {"mlp": "linear_in", "unet": "conv_in", "dit": "patch_in"}.get(name, "enc.8x8_conv")
    network.get_submodule(first).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(1e-3 * x, c_noise, **condition)
    image = condition["image"].flatten(1) if name == "mlp" else condition["image"]
    assert torch.equal(seen[0][:, x.shape[1] :][:, : image.shape[1]], image)
    assert torch.equal(seen[0][:, : x.shape[1]], 1e-3 * x)


@every
def test_gradients_reach_every_parameter(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    condition["context"] = torch.stack(
        [condition["context"], -condition["context"]], dim=1
    )  # two tokens: attention has a choice
    out = network(x, c_noise, condition_dropped=torch.tensor([True, False, False, False]), **condition)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a key's bias moves all scores of a query alike, and softmax does not see that
    assert [key for key in silent if not key.endswith("context.key.bias")] == []


@every
def test_every_parameter_takes_part_when_conditions_are_missing(name: str) -> None:
    """Else a distributed step waits for gradients that never come."""
    network = make(name)
    x, c_noise, condition = draw(name)
    network(x, c_noise, context=condition["context"], image=condition["image"]).sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@every
def test_bfloat16_agrees_with_float32(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    exact = network(x, c_noise, **condition)
    rough = network.to(torch.bfloat16)(x.to(torch.bfloat16), c_noise, **condition)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).std() < 0.03 * exact.std()


@every
def test_a_bfloat16_network_tells_997_from_999(name: str) -> None:
    network = awake(make(name)).to(torch.bfloat16)
    x, _, condition = draw(name)
    assert torch.tensor(998.0).bfloat16() == torch.tensor(999.0).bfloat16()
    heard = [network(x.to(torch.bfloat16), torch.full((BATCH,), level), **condition) for level in (997.0, 998.0, 999.0)]
    assert (heard[0] - heard[1]).abs().max() > 0.01
    assert (heard[1] - heard[2]).abs().max() > 0.01


@every
def test_compiles_in_one_graph(name: str) -> None:
    network = awake(make(name))
    x, c_noise, condition = draw(name)
    dropped = torch.tensor([True, False, False, False])
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(x, c_noise, condition_dropped=dropped, **condition),
        network(x, c_noise, condition_dropped=dropped, **condition),
    )


@every
@pytest.mark.parametrize("key", ["labels", "context", "image"])
def test_one_batch_overfit_shows_that_each_condition_is_used(name: str, key: str) -> None:
    """x and c_noise are the same for all; only the condition tells which of the targets is meant."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"label_dim": 0, "context_dim": 0, "augment_dim": 0}
    options["image_shape" if name == "mlp" else "image_channels"] = None if name == "mlp" else 0
    options |= {
        "labels": {"label_dim": 5},
        "context": {"context_dim": 3},
        "image": {"image_shape": [1, 3, 2]} if name == "mlp" else {"image_channels": 1},
    }[key]
    network = make(name, **options)
    target, _, condition = draw(name)
    given = {key: torch.arange(BATCH) if key == "labels" else condition[key]}
    x, c_noise = torch.zeros_like(target), torch.zeros(BATCH)
    best_without = (target - target.mean(0)).square().mean().item()
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(200):
        loss = (network(x, c_noise, **given) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05 * best_without


def refused(name: str, changes: dict[str, Any], **options: Any) -> str:
    """The message of the InputError that `changes` to a good batch cause."""
    network = make(name, **options)
    x, c_noise, condition = draw(name)
    inputs = {"x": x, "c_noise": c_noise, **condition, **changes}
    inputs = {key: value for key, value in inputs.items() if value is not None}
    with pytest.raises(InputError) as error:
        network(inputs.pop("x"), inputs.pop("c_noise"), **inputs)
    message = str(error.value)
    assert "\n" not in message
    return message


@every
@pytest.mark.parametrize(
    ("changes", "argument", "tells"),
    [
        ({"c_noise": torch.zeros(())}, "c_noise", "[]"),
        ({"c_noise": torch.zeros(3)}, "c_noise", "[3]"),
        ({"c_noise": torch.zeros(BATCH, dtype=torch.bfloat16)}, "c_noise", "bfloat16"),
        ({"labels": torch.tensor([0, 1, 5, 2])}, "labels", "5"),
        ({"labels": torch.tensor([0, -2, 3, 2])}, "labels", "-2"),
        ({"labels": torch.tensor([0, 1])}, "labels", "[2, 5]"),
        ({"labels": torch.zeros(BATCH)}, "labels", "float32"),
        ({"labels": torch.zeros(BATCH, 4)}, "labels", "[4, 4]"),
        ({"context": None}, "context", "missing"),
        ({"context": torch.zeros(BATCH, 4)}, "context", "[4, 4]"),
        ({"context": torch.zeros(BATCH)}, "context", "[4]"),
        ({"context": torch.zeros(3, 3)}, "context", "[3, 3]"),
        ({"context": torch.zeros(BATCH, 0, 3)}, "context", "[4, 0, 3]"),
        ({"image": None}, "image", "missing"),
        ({"image": torch.zeros(BATCH, 1, 4, 2)}, "image", "[4, 1, 4, 2]"),
        ({"augment_labels": torch.zeros(BATCH, 3)}, "augment_labels", "[4, 3]"),
        ({"augment_labels": torch.zeros(2, 2)}, "augment_labels", "[2, 2]"),
        ({"condition_dropped": torch.zeros(BATCH)}, "condition_dropped", "float32"),
        ({"condition_dropped": torch.zeros(3, dtype=torch.bool)}, "condition_dropped", "[3]"),
    ],
)
def test_bad_input_is_named(name: str, changes: dict[str, Any], argument: str, tells: str) -> None:
    message = refused(name, changes)
    assert message.startswith(argument) and tells in message


@every
def test_a_condition_that_the_network_was_not_built_for(name: str) -> None:
    image = {"image_shape": None} if name == "mlp" else {"image_channels": 0}
    assert refused(name, {}, label_dim=0).startswith("labels")
    assert refused(name, {}, context_dim=0).startswith("context")
    assert refused(name, {}, augment_dim=0).startswith("augment_labels")
    assert refused(name, {}, **image).startswith("image")
    nothing = {"label_dim": 0, "context_dim": 0, **image}
    dropped = {
        "labels": None,
        "context": None,
        "image": None,
        "condition_dropped": torch.zeros(BATCH, dtype=torch.bool),
    }
    assert refused(name, dropped, **nothing).startswith("condition_dropped")


@every
def test_integer_images_are_refused(name: str) -> None:
    image = torch.zeros(draw(name)[2]["image"].shape, dtype=torch.uint8)
    assert refused(name, {"image": image}).startswith("image has dtype torch.uint8")


@every
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("channels", 0),
        ("blocks", 0),
        ("blocks", 1.5),
        ("label_dim", -1),
        ("context_dim", True),
        ("augment_dim", -3),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", "a"),
        ("dropout", None),
        ("dropout", False),
    ],
)
def test_bad_options_are_named(name: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option} is {value!r}"):
        make(name, **{option: value})
