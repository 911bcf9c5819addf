"""Formulations: Table 1's constants, configs there and back, one cell changed at a time."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from edmund import formulation, grid, loss, noise_density, preconditioning, process, samplers
from edmund.errors import InputError

F64 = torch.float64
NAMED = formulation.named()
every = pytest.mark.parametrize("name", NAMED)


def test_names():
    assert list(NAMED) == ["EDM", "VP", "VE", "iDDPM", "Flow", "Cosine"]
    assert all(make().name == name for name, make in NAMED.items())


def test_table_1():
    """The cells of the four columns, as the paper has them but for the default solver."""
    vp, ve, iddpm, edm = formulation.VP(), formulation.VE(), formulation.IDDPM(), formulation.EDM(0.5)
    # The default solver is ours to choose: by measurement (docs/samplers.md).
    ipndm, deis = samplers.IPNDM(), samplers.DEIS(order=4)
    assert [part.sampler for part in (vp, ve, iddpm, edm)] == [ipndm, deis, ipndm, deis]
    assert vp.process == process.VP(beta_d=19.9, beta_min=0.1, scaling="vp")
    assert ve.process == process.VE(scaling="none")
    assert iddpm.process == edm.process == process.EDM(scaling="none")
    assert [part.grid for part in (vp, ve, iddpm, edm)] == [
        grid.VP(epsilon_s=1e-3),
        grid.VE(),
        grid.IDDPM(M=1000, C_1=0.001, C_2=0.008),
        grid.EDM(rho=7.0),
    ]
    assert [part.preconditioning for part in (vp, ve, iddpm, edm)] == [
        preconditioning.VP(19.9, 0.1, 1000),
        preconditioning.VE(),
        preconditioning.IDDPM(1000, 0.001, 0.008),
        preconditioning.EDM(0.5),
    ]
    assert [part.noise_density for part in (vp, ve, iddpm, edm)] == [
        noise_density.VPUniform(1e-5, 19.9, 0.1),
        noise_density.LogUniform(0.02, 100.0),
        noise_density.IDDPM(1000, 0.001, 0.008),
        noise_density.LogNormal(-1.2, 1.2),
    ]
    assert [part.loss_weight for part in (vp, ve, iddpm, edm)] == [loss.Noise()] * 3 + [loss.EDM(0.5)]
    assert (vp.sigma_min, vp.sigma_max) == pytest.approx((0.01049, 152.17), rel=5e-4)
    assert vp.sigma_min == pytest.approx(math.sqrt(math.expm1(19.9 * 1e-3**2 / 2 + 0.1 * 1e-3)), rel=1e-12)
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 100.0)
    assert (iddpm.sigma_min, iddpm.sigma_max) == pytest.approx((0.0064254, 80.20), rel=1e-4)
    assert (edm.sigma_min, edm.sigma_max) == (0.002, 80.0)


def test_vp_and_ve_grids_are_uniform_in_their_own_process():
    """VP's t_i = 1 + i/(N-1) (epsilon_s - 1), and VE's t falls geometrically."""
    vp = formulation.VP()
    t = vp.process.t(vp.grid(20, vp.sigma_min, vp.sigma_max)[:-1])
    torch.testing.assert_close(t, 1 + torch.arange(20, dtype=F64) / 19 * (1e-3 - 1), rtol=1e-8, atol=0)
    ve = formulation.VE()
    t = ve.process.t(ve.grid(20, 0.02, 100.0)[:-1])
    ratio = (0.02 / 100.0) ** 2
    torch.testing.assert_close(t, 1e4 * ratio ** (torch.arange(20, dtype=F64) / 19), rtol=1e-11, atol=0)


def test_iddpm_starts_at_level_8():
    iddpm, levels = formulation.IDDPM(), process.iddpm_levels()
    sigmas = iddpm.grid(992, iddpm.sigma_min, iddpm.sigma_max)
    assert torch.equal(sigmas, torch.cat([levels[8:1000], levels.new_zeros(1)]))
    assert formulation.IDDPM(M=500).sigma_max == process.iddpm_levels(500)[4].item()


def test_flow_and_cosine_start_where_the_law_is_normal():
    for parts, t in ((formulation.Flow(), 0.999), (formulation.Cosine(), 0.9968)):
        start = torch.tensor(parts.sigma_max, dtype=F64)
        assert parts.process.t(start).item() == pytest.approx(t, abs=5e-5)
        # The start law of data of unit scale, against the unit normal that sampling starts from.
        std = parts.process.s(parts.process.t(start)) * torch.sqrt(1 + start**2)
        assert std.item() == pytest.approx(1, abs=1e-3)
    assert formulation.Flow().sigma_max == 1000 and formulation.Cosine().sigma_max == 200
    flow = formulation.Flow()
    t = flow.process.t(flow.grid(30, flow.sigma_min, flow.sigma_max)[:-1])
    torch.testing.assert_close(t.diff(), t.diff().mean().expand(29), rtol=1e-8, atol=0)


@every
def test_effective_weight_is_one(name):
    """lambda c_out^2 = 1: each column's weight is the squared error of what its network predicts."""
    parts = NAMED[name]().with_sigma_data(0.5)
    sigma = torch.logspace(-2, 2, 20, dtype=F64)
    effective = parts.loss_weight(sigma) * parts.preconditioning.c_out(sigma) ** 2
    torch.testing.assert_close(effective, torch.ones_like(sigma), rtol=1e-12, atol=0)


def cells():
    """Every formulation, and each with cells of other kinds in it."""
    changed = [make() for make in NAMED.values()]
    changed += [formulation.EDM(0.5), formulation.EDM((0.1, 0.2, 3.0)), formulation.EDM(sigma_min=0.01, rho=3.0)]
    changed += [
        formulation.VP(0.02, 100.0),
        formulation.VE(0.1, 20.0),
        formulation.IDDPM(M=200),
        formulation.Flow(t_std=2.0),
    ]
    steps = [process.DiscreteSteps("cosine", num_steps=50), process.DiscreteSteps(beta_end=0.05, zero_snr=True)]
    steps += [process.DiscreteSteps([0.9, 0.3, 0.1])]
    changed += [formulation.discrete(own, prediction) for own in steps for prediction in ("noise", "v", "data")]
    changed += [formulation.discrete(steps[0], sampler=samplers.DDIM(eta=1.0), num_steps=50)]
    base = formulation.EDM(0.5)
    for field, parts in (
        ("process", [process.SubVP(), process.VP(scaling="none"), process.Cosine("flow")]),
        ("grid", [grid.UniformTime(process.VP()), grid.Fixed([3.0, 1.0, 0.1]), grid.PolyExponential(2.0)]),
        ("preconditioning", [preconditioning.Data((0.5, 1.0)), preconditioning.Epsilon(), preconditioning.Flow()]),
        ("noise_density", [noise_density.LogitNormal(0.3, 2.0), noise_density.CosineUniform()]),
        ("loss_weight", [loss.MinSNR(3.0), loss.Score(), loss.Data()]),
        (
            "sampler",
            [samplers.Euler(samplers.Churn(40.0, 0.05, 50.0, 1.003)), samplers.Heun(samplers.Churn(1.0), alpha=0.5)],
        ),
        ("num_steps", [1, 999]),
        ("name", ["mine"]),
    ):
        changed += [dataclasses.replace(base, **{field: part}) for part in parts]
    return changed


@pytest.mark.parametrize("index", range(len(cells())))
def test_config_there_and_back(index):
    parts = cells()[index]
    text = json.dumps(parts.config(), allow_nan=False)
    assert formulation.from_config(json.loads(text)) == parts


@every
def test_one_cell_changes_alone(name):
    parts = NAMED[name]()
    for field, value in (
        ("process", process.SubVP()),
        ("grid", grid.PolyExponential()),
        ("noise_density", noise_density.CosineUniform()),
        ("loss_weight", loss.MinSNR()),
        ("sampler", samplers.Heun(alpha=0.5)),
        ("sigma_max", 70.0),
    ):
        changed = dataclasses.replace(parts, **{field: value})
        others = [other.name for other in dataclasses.fields(parts) if other.name != field]
        assert getattr(changed, field) == value
        assert all(getattr(changed, other) == getattr(parts, other) for other in others)
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.num_steps = 3


def test_sigma_data():
    waiting = formulation.EDM()
    assert waiting.needs_sigma_data
    told = waiting.with_sigma_data(0.3)
    assert not told.needs_sigma_data
    assert told == formulation.EDM(0.3)
    assert told.with_sigma_data(0.9) == told  # what is known already stays
    assert waiting.with_sigma_data([0.3, 0.4]) == formulation.EDM((0.3, 0.4))
    half = dataclasses.replace(waiting, preconditioning=preconditioning.EDM(0.7))
    assert half.needs_sigma_data
    filled = half.with_sigma_data(0.3)
    assert (filled.preconditioning.sigma_data, filled.loss_weight.sigma_data) == (0.7, 0.3)
    for name in ("VP", "VE", "iDDPM", "Flow", "Cosine"):
        parts = NAMED[name]()
        assert not parts.needs_sigma_data and parts.with_sigma_data(0.3) == parts


@every
def test_trained_range(name):
    """The whole default grid lies in it, and it is the density's support where that is bounded."""
    parts = NAMED[name]()
    low, high = parts.trained_range
    expected = {
        "VP": parts.noise_density.support,
        "VE": (0.02, 100.0),
        "iDDPM": (process.iddpm_levels()[-2].item(), process.iddpm_levels()[0].item()),
    }.get(name, (parts.sigma_min, parts.sigma_max))
    assert (low, high) == expected
    sigmas = parts.grid(parts.num_steps, parts.sigma_min, parts.sigma_max)[:-1]
    assert low * (1 - 1e-9) <= sigmas.min() and sigmas.max() <= high * (1 + 1e-9)


def test_vp_by_its_range():
    parts = formulation.VP(sigma_min=0.02, sigma_max=50.0)
    ends = parts.process.sigma(torch.tensor([1e-3, 1.0], dtype=F64))
    assert ends.tolist() == pytest.approx([0.02, 50.0], rel=1e-9)
    assert parts.trained_range == pytest.approx((0.02, 50.0), rel=1e-9)
    own = (parts.process.beta_d, parts.process.beta_min)
    assert (parts.preconditioning.beta_d, parts.preconditioning.beta_min) == own
    assert (parts.noise_density.beta_d, parts.noise_density.beta_min) == own
    betas = formulation.VP(beta_d=10.0, beta_min=0.2)
    assert betas.process == process.VP(10.0, 0.2) and betas.preconditioning.beta_d == 10.0
    one_end = formulation.VP(sigma_max=50.0)
    assert one_end.sigma_min == formulation.VP().sigma_min and one_end.sigma_max == 50.0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: formulation.EDM(sigma_min=3.0, sigma_max=2.0), ["sigma_min", "3.0", "sigma_max", "2.0"]),
        (lambda: formulation.EDM(sigma_min=-1.0), ["sigma_min", "-1.0"]),
        (lambda: formulation.EDM(sigma_data=0.0), ["sigma_data", "0.0"]),
        (lambda: formulation.EDM(rho=-1.0), ["rho", "-1.0"]),
        (lambda: formulation.EDM(P_std=0.0), ["P_std", "0.0"]),
        (lambda: formulation.VE(sigma_max=math.inf), ["sigma_max", "inf"]),
        (lambda: formulation.VE(sigma_min=200.0), ["sigma_min", "200.0", "100.0"]),
        (lambda: formulation.Flow(t_std=-1.0), ["std", "-1.0"]),
        (lambda: formulation.VP(sigma_min=0.1, beta_d=3.0), ["beta_d", "3.0", "sigma_min", "0.1"]),
        (lambda: formulation.EDM().with_sigma_data(-2.0), ["sigma_data", "-2.0"]),
        (lambda: dataclasses.replace(formulation.EDM(), num_steps=0), ["num_steps", "0"]),
        (lambda: formulation.from_config({"name": "EDM"}), ["formulation", "name", "process"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prediction", "weight"), [("noise", loss.Noise()), ("v", loss.Velocity()), ("data", loss.Data())]
)
def test_discrete(prediction, weight):
    steps = process.DiscreteSteps(num_steps=50)
    parts = formulation.discrete(steps, {"noise": "epsilon", "v": "v_prediction", "data": "sample"}[prediction])
    assert parts.preconditioning == preconditioning.Discrete(steps, prediction) and parts.loss_weight == weight
    assert parts.trained_range == (parts.sigma_min, parts.sigma_max) == tuple(steps.levels[[0, -1]].tolist())
    assert torch.equal(parts.grid(50, parts.sigma_min, parts.sigma_max)[:-1], steps.levels.flip(0))
    assert parts.num_steps == 36 and formulation.discrete(process.DiscreteSteps([0.9, 0.5])).num_steps == 2
    sigma = steps.levels
    effective = parts.loss_weight(sigma) * parts.preconditioning.c_out(sigma) ** 2
    torch.testing.assert_close(effective, torch.ones_like(sigma), rtol=1e-12, atol=0)
    with pytest.raises(InputError, match=r"num_steps is 51, but .* only 50 levels"):
        parts.grid(51, parts.sigma_min, parts.sigma_max)
    for part in ("grid", "noise_density", "preconditioning"):
        config = parts.config()
        config[part]["steps"] = 3
        with pytest.raises(InputError, match="steps is 3"):
            formulation.from_config(config)


def test_configs_that_cannot_be():
    own = process.Process(s=torch.ones_like, sigma=lambda t: t)
    with pytest.raises(InputError, match="process"):
        dataclasses.replace(formulation.EDM(), process=own).config()

    @dataclasses.dataclass(frozen=True)
    class Mine(samplers.Heun):
        name = "mine"

    with pytest.raises(InputError, match="sampler"):
        dataclasses.replace(formulation.EDM(), sampler=Mine()).config()
    config = formulation.EDM(0.5).config()
    for field, change, words in (
        ("grid", {"type": "Karras"}, ["grid", "'Karras'"]),
        ("grid", {"type": "Grid"}, ["grid", "'Grid'"]),
        ("grid", {"type": "torch"}, ["grid", "'torch'"]),
        ("grid", {"type": "EDM", "rho": 7.0, "sigma": 3.0}, ["grid", "sigma"]),
        ("grid", {"type": "EDM", "rho": -7.0}, ["rho", "-7.0"]),
        ("sampler", {"type": "Heun", "churn": {"type": "Step"}, "alpha": 1.0}, ["Step"]),
        ("num_steps", -4, ["num_steps", "-4"]),
        ("sigma_min", 500.0, ["sigma_min", "500.0"]),
    ):
        with pytest.raises(InputError) as error:
            formulation.from_config(config | {field: change})
        assert all(word in str(error.value) for word in words), (field, str(error.value))
    with pytest.raises(InputError, match="extra"):
        formulation.from_config(config | {"extra": 1})
