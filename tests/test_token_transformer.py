"""What is the token transformer's own: who sees whom, states, missing values, and that it learns a denoiser."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from edmund import networks
from edmund.denoiser import Preconditioned
from edmund.errors import InputError
from edmund.networks import TokenTransformer, token_transformer
from edmund.preconditioning import EDM

V, BATCH = 5, 4


def awake(**options: Any) -> TokenTransformer:
    """A small network in evaluation mode with its zero-initialised parameters drawn at random."""
    torch.manual_seed(0)
    network = TokenTransformer(**{"variables": V, "channels": 16, "blocks": 2, "heads": 2, **options})
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.2)
    return network.eval()


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """(x, c_noise, given)."""
    generator = torch.Generator().manual_seed(1)
    given = torch.rand(BATCH, V, generator=generator) < 0.4
    return torch.randn(BATCH, V, generator=generator), torch.randn(BATCH, generator=generator), given


def changed(value: Tensor, row: int, column: int) -> Tensor:
    """The tensor with one element moved."""
    value = value.clone()
    value[row, column] = ~value[row, column] if value.dtype == torch.bool else value[row, column] + 1
    return value


def test_registry_and_config() -> None:
    assert networks.registry()["token_transformer"] is TokenTransformer
    network = awake(dropout=0.1, expansion=2)
    rebuilt = TokenTransformer(**json.loads(json.dumps(network.config))).eval()
    rebuilt.load_state_dict(network.state_dict())
    x, c_noise, given = draw()
    assert torch.equal(rebuilt(x, c_noise, given=given), network(x, c_noise, given=given))


def test_zero_at_initialisation() -> None:
    x, c_noise, given = draw()
    assert not TokenTransformer(V, channels=16)(x, c_noise, given=given).any()


def test_every_token_hears_every_value_and_state_of_its_sample_only() -> None:
    network = awake()
    x, c_noise, given = draw()
    before = network(x, c_noise, given=given)
    for column in range(V):
        for after in (
            network(changed(x, 1, column), c_noise, given=given),
            network(x, c_noise, given=changed(given, 1, column)),
        ):
            assert (after[1] - before[1]).abs().min() > 1e-5
            torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]], rtol=0, atol=1e-6)
    level = c_noise.clone()
    level[1] += 1
    after = network(x, level, given=given)
    assert (after[1] - before[1]).abs().min() > 1e-5
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]], rtol=0, atol=1e-6)


def test_masks_of_batch_one_are_expanded_and_no_mask_is_all_asked() -> None:
    network = awake()
    x, c_noise, given = draw()
    one = network(x, c_noise, given=given[:1])
    torch.testing.assert_close(one, network(x, c_noise, given=given[:1].expand(BATCH, V)), rtol=0, atol=1e-6)
    none = network(x, c_noise, given=torch.zeros(1, V, dtype=torch.bool))
    torch.testing.assert_close(network(x, c_noise), none, rtol=0, atol=1e-6)


def test_a_missing_token_is_as_if_it_were_not_there() -> None:
    """F of the others is that of a network that never had the variable; NaN there does not spread."""
    network = awake()
    x, c_noise, given = draw()
    missing = torch.zeros(BATCH, V, dtype=torch.bool)
    missing[:, 2] = True
    x[:, 2] = torch.nan
    out = network(x, c_noise, given=given, missing=missing)
    rest = [0, 1, 3, 4]
    smaller = awake(variables=V - 1)
    state = {
        name: value[rest] if name in ("first", "identity", "out_weight", "out_bias") else value
        for name, value in network.state_dict().items()
    }
    smaller.load_state_dict(state)
    expected = smaller(x[:, rest], c_noise, given=given[:, rest])
    torch.testing.assert_close(out[:, rest], expected, rtol=0, atol=1e-6)
    assert not out[:, 2].any()


def test_no_gradient_comes_from_a_missing_value() -> None:
    network = awake()
    x, c_noise, given = draw()
    missing = torch.zeros(1, V, dtype=torch.bool)
    missing[:, 2] = True
    x[:, 2] = torch.nan
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, c_noise, given=given, missing=missing).sum(), x)
    assert not gradient[:, 2].any()
    assert gradient[:, [0, 1, 3, 4]].abs().min() > 0


@pytest.mark.parametrize("batch", [None, 1, BATCH])
def test_attention_is_by_rows(batch: int | None) -> None:
    """Tokens 0 and 1 see each other, token 2 all, 3 and 4 themselves."""
    network = awake()
    x, c_noise, given = draw()
    mask = torch.zeros(V, V, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = True
    mask[2] = True
    shaped = mask if batch is None else mask.expand(batch, V, V)
    before = network(x, c_noise, given=given, attention=shaped)
    for column in range(V):
        moved = (network(changed(x, 1, column), c_noise, given=given, attention=shaped) - before)[1].abs() > 1e-6
        assert torch.equal(moved, mask[:, column] | (torch.arange(V) == column))


def test_attention_and_missing_together() -> None:
    network = awake()
    x, c_noise, given = draw()
    missing = torch.zeros(BATCH, V, dtype=torch.bool)
    missing[1, 0] = True
    everyone = torch.ones(V, V, dtype=torch.bool)
    both = network(x, c_noise, given=given, missing=missing, attention=everyone)
    torch.testing.assert_close(both, network(x, c_noise, given=given, missing=missing), rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_that_of_fp32(masked: bool) -> None:
    """On a CPU the two have kernels of their own, and so have many tokens."""
    for variables in (V, token_transformer._FEW + 1):
        generator = torch.Generator().manual_seed(1)
        network = awake(variables=variables)
        x, c_noise = torch.randn(BATCH, variables, generator=generator), torch.randn(BATCH, generator=generator)
        missing = (torch.rand(BATCH, variables, generator=generator) < 0.4) if masked else None
        exact = network(x, c_noise, missing=missing)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x, c_noise, missing=missing)
        assert (rounded - exact).square().mean() < 1e-3 * exact.square().mean()


def test_a_token_of_several_numbers_hears_each() -> None:
    network = awake(numbers=2)
    _, c_noise, given = draw()
    x = torch.randn(BATCH, V, 2, generator=torch.Generator().manual_seed(2))
    missing = torch.zeros(BATCH, V, dtype=torch.bool)
    missing[:, 2] = True
    x[:, 2] = torch.nan
    before = network(x, c_noise, given=given, missing=missing)
    assert before.isfinite().all()
    for number in range(2):
        other = x.clone()
        other[1, 0, number] += 1
        after = network(other, c_noise, given=given, missing=missing)
        assert (after[1] - before[1])[[0, 1, 3, 4]].abs().min() > 1e-5
    with pytest.raises(InputError, match=r"^x has shape \[4, 5\]; this network takes \[B, 5, 2\]"):
        network(x[:, :, 0], c_noise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": 0}, "^variables is 0"),
        ({"heads": 3}, "^heads is 3; it must divide the number of channels, 16"),
        ({"expansion": 0}, "^expansion is 0"),
        ({"dropout": 1.0}, "^dropout is 1.0"),
        ({"numbers": 0}, "^numbers is 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        awake(**options)


def test_bad_inputs() -> None:
    network = awake()
    x, c_noise, given = draw()
    with pytest.raises(InputError, match=r"^x has shape \[4, 4\]; this network takes \[B, 5\]"):
        network(x[:, :4], c_noise)
    with pytest.raises(InputError, match=r"^given has dtype torch.float32"):
        network(x, c_noise, given=given.float())
    with pytest.raises(InputError, match=r"^missing has dtype torch.bool and shape \[4, 4\]"):
        network(x, c_noise, missing=given[:, :4])
    with pytest.raises(InputError, match=r"^given has shape \[2, 5\]; x has batch 4"):
        network(x, c_noise, given=given[:2])
    with pytest.raises(InputError, match=r"^attention has dtype torch.bool and shape \[4, 5\]"):
        network(x, c_noise, attention=given)
    with pytest.raises(InputError, match=r"^attention has shape \[2, 5, 5\]"):
        network(x, c_noise, attention=torch.ones(2, V, V, dtype=torch.bool))


def test_it_learns_conditional_denoisers_of_a_gaussian() -> None:
    """Two variables of correlation 0.8: E[y_0 | noisy x_0] without, and with, the other one given."""
    torch.manual_seed(0)
    network = TokenTransformer(2, channels=32, blocks=2, heads=2)
    denoiser = Preconditioned(network, EDM(1.0))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    sigma = torch.tensor(0.7)

    def batch(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = torch.randn(size, 2)
        y[:, 1] = 0.8 * y[:, 0] + 0.6 * y[:, 1]
        given = torch.rand(size) < 0.5
        noisy = y[:, 0] + sigma * torch.randn(size)
        mean, variance = torch.where(given, 0.8 * y[:, 1], 0), torch.where(given, 0.36, 1.0)
        exact = mean + variance / (variance + sigma**2) * (noisy - mean)
        return noisy, y, given, exact

    def predicted(noisy: Tensor, y: Tensor, given: Tensor) -> Tensor:
        states = torch.stack([torch.zeros_like(given), given], dim=1)
        c_in = denoiser.preconditioning.c_in(sigma)
        x = torch.stack([noisy, torch.where(given, y[:, 1] / c_in, torch.nan)], dim=1)
        out: Tensor = denoiser(x, sigma, given=states, missing=torch.isnan(x))
        return out[:, 0]

    for _ in range(300):
        noisy, y, given, _ = batch(256)
        loss = (predicted(noisy, y, given) - y[:, 0]).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    noisy, y, given, exact = batch(4096)
    with torch.no_grad():
        assert (predicted(noisy, y, given) - exact).square().mean() < 0.005
