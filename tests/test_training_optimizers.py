"""The optimisers of a run: who trains what, and that Muon's step is the one of its paper."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edmund.errors import InputError
from edmund.networks.conditioning import Modulation
from edmund.training.optimizers import check_optimizer, optimizers
from edmund.training.options import TrainingOptions


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 7))
        self.wide = nn.Linear(24, 40)
        self.norm = nn.LayerNorm(40)
        self.tall = nn.Linear(40, 16)
        self.noise = Modulation(24, 40)
        self.still = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (
            self.tall(torch.relu(self.noise(x) * self.norm(self.wide(x)))).square().sum() + self.table.square().sum()
        )
        return out


def step(net: Net, name: str, lr: float = 1e-2) -> dict[str, Tensor]:
    """By how much each parameter moves in the first step."""
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    found = optimizers(net, TrainingOptions(optimizer=name, lr=lr))
    net(torch.randn(64, 24, generator=torch.Generator().manual_seed(0))).backward()
    for optimizer in found:
        optimizer.step()
    return {key: value.detach() - before[key] for key, value in net.named_parameters()}


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_every_parameter_is_trained_once(name: str) -> None:
    net = Net()
    found = optimizers(net, TrainingOptions(optimizer=name))
    held = [id(p) for each in found for group in each.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    if name == "muon":
        assert [len(each.param_groups[0]["params"]) for each in found] == [7, 2]


def test_muon_steps_by_the_semi_orthogonal_factor_of_the_gradient() -> None:
    """Of W's gradient U S V^T the step is -lr 0.2 sqrt(max(rows, columns)) U V^T, S replaced by about one."""
    torch.manual_seed(0)
    net = Net()
    moved = step(net, "muon")
    for layer, name in ((net.wide, "wide.weight"), (net.tall, "tall.weight")):
        assert layer.weight.grad is not None
        left, values, right = torch.linalg.svd(layer.weight.grad, full_matrices=False)
        done = left.mT @ (-moved[name] / (1e-2 * 0.2 * math.sqrt(max(layer.weight.shape)))) @ right.mT
        found = done.diagonal()
        # Five Newton-Schulz steps, in bf16, bring all but the smallest of the singular values into 0.7 to 1.2.
        large = values > 0.02 * values.norm()
        assert large.sum() >= 10 and bool(((found > 0.6) & (found < 1.3))[large].all())
        assert (done - done.diagonal().diag()).abs().max() < 0.05


def test_muon_trains_the_rest_as_adamw() -> None:
    torch.manual_seed(0)
    net = Net()
    other = copy.deepcopy(net)
    ours, theirs = step(net, "muon"), step(other, "adamw")
    for name in ours:
        same = torch.equal(ours[name], theirs[name])
        assert same != (name in ("wide.weight", "tall.weight")), name


@pytest.mark.parametrize("module", [nn.Conv2d(1, 1, 3), nn.Linear(2, 2).requires_grad_(False), Modulation(2, 2)])
def test_muon_needs_a_linear_layer_to_train(module: nn.Module) -> None:
    check_optimizer(module, TrainingOptions())
    with pytest.raises(InputError, match="optimizer is 'muon', which is for linear layers; the network trains none"):
        check_optimizer(module, TrainingOptions(optimizer="muon"))


def test_a_computed_weight_is_not_muons() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    found = optimizers(net, TrainingOptions(optimizer="muon"))
    assert [len(each.param_groups[0]["params"]) for each in found] == [4, 1]


def test_muon_and_fp16_do_not_go_together() -> None:
    with pytest.raises(InputError, match="optimizer is 'muon' and precision 'fp16'"):
        TrainingOptions(optimizer="muon", precision="fp16")
