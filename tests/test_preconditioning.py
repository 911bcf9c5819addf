"""Preconditionings by algebra, and the Preconditioned denoiser: what the network is fed, in which dtype."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edmund import loss, networks, preconditioning, process
from edmund.denoiser import Preconditioned
from edmund.errors import InputError

F64 = torch.float64
SIGMAS = torch.logspace(-3, 3, 61, dtype=F64)
ALL = {
    "edm": preconditioning.EDM(0.5),
    "data": preconditioning.Data(0.5),
    "epsilon": preconditioning.Epsilon(),
    "vp": preconditioning.VP(),
    "iddpm": preconditioning.IDDPM(),
    "ve": preconditioning.VE(),
    "velocity": preconditioning.Velocity(),
    "flow": preconditioning.Flow(),
}
every = pytest.mark.parametrize("name", ALL)


def target_variance(c, sigma, sigma_data):
    """Var of F's target (y - c_skip (y + sigma n)) / c_out: y and n are independent."""
    skip = c.c_skip(sigma)
    return ((1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2) / c.c_out(sigma) ** 2


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0, 7.0])
def test_edm_has_unit_variances(sigma_data):
    c = preconditioning.EDM(sigma_data)
    one = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c.c_in(SIGMAS) ** 2 * (SIGMAS**2 + sigma_data**2), one, rtol=1e-13, atol=0)
    torch.testing.assert_close(target_variance(c, SIGMAS, sigma_data), one, rtol=1e-11, atol=0)
    # Among all c_skip that keep the target's variance at 1, EDM's has the smallest c_out (Appendix B.6, Eq. 138).
    for other in (0.99, 1.01):
        skip = c.c_skip(SIGMAS) * other
        assert ((1 - skip) ** 2 * sigma_data**2 + skip**2 * SIGMAS**2 > c.c_out(SIGMAS) ** 2).all()


def test_edm_per_channel():
    stds = (0.2, 1.0, 3.0)
    level = SIGMAS.reshape(-1, 1, 1, 1)
    many = preconditioning.EDM(stds)
    for coefficient in ("c_skip", "c_out", "c_in"):
        values = getattr(many, coefficient)(level)
        assert values.shape == (61, 3, 1, 1)
        for channel, std in enumerate(stds):
            torch.testing.assert_close(
                values[:, channel, 0, 0], getattr(preconditioning.EDM(std), coefficient)(SIGMAS), rtol=1e-14, atol=0
            )
    torch.testing.assert_close(
        target_variance(many, level, torch.tensor(stds, dtype=F64)[:, None, None]), torch.ones(61, 3, 1, 1, dtype=F64)
    )
    weight = loss.EDM(stds)
    torch.testing.assert_close(weight(level) * many.c_out(level) ** 2, torch.ones(61, 3, 1, 1, dtype=F64))
    vector = many.c_in(SIGMAS.reshape(-1, 1))
    assert vector.shape == (61, 3)


def test_others_have_unit_variances_for_data_of_unit_scale():
    one = torch.ones_like(SIGMAS)
    for name in ("epsilon", "vp", "iddpm", "ve", "velocity"):
        torch.testing.assert_close(target_variance(ALL[name], SIGMAS, 1.0), one, rtol=1e-11, atol=0)
    for name in ("epsilon", "vp", "iddpm", "velocity"):
        torch.testing.assert_close(ALL[name].c_in(SIGMAS) ** 2 * (SIGMAS**2 + 1), one, rtol=1e-13, atol=0)
    # The flow velocity n - y of unit data has variance 2, at every sigma.
    torch.testing.assert_close(target_variance(ALL["flow"], SIGMAS, 1.0), 2 * one, rtol=1e-11, atol=0)
    data = preconditioning.Data(2.0)
    torch.testing.assert_close(data.c_in(SIGMAS) ** 2 * (SIGMAS**2 + 4), one, rtol=1e-13, atol=0)
    torch.testing.assert_close(target_variance(data, SIGMAS, 2.0), 4 * one, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("edm", loss.EDM(0.5)),
        ("data", loss.Data()),
        ("epsilon", loss.Noise()),
        ("vp", loss.Noise()),
        ("ve", loss.Noise()),
        ("iddpm", loss.Noise()),
        ("velocity", loss.Velocity()),
        ("flow", loss.Flow()),
    ],
)
def test_weight_cancels_c_out(name, weight):
    effective = weight(SIGMAS) * ALL[name].c_out(SIGMAS) ** 2
    torch.testing.assert_close(effective, torch.ones_like(SIGMAS), rtol=1e-12, atol=0)


def test_c_noise():
    close = {"rtol": 1e-12, "atol": 1e-14}
    for name in ("edm", "data", "epsilon", "velocity"):
        torch.testing.assert_close(ALL[name].c_noise(SIGMAS), torch.log(SIGMAS) / 4, **close)
    torch.testing.assert_close(ALL["ve"].c_noise(SIGMAS), torch.log(SIGMAS / 2), **close)
    torch.testing.assert_close(ALL["flow"].c_noise(SIGMAS), process.RectifiedFlow().t(SIGMAS), **close)
    torch.testing.assert_close(ALL["vp"].c_noise(SIGMAS), 999 * process.VP().t(SIGMAS), **close)
    levels = process.iddpm_levels()
    assert ALL["iddpm"].c_noise(levels).tolist() == [999 - j for j in range(1001)]


@every
def test_shape_in_is_shape_out(name):
    for shape in ((), (3,), (3, 1), (3, 1, 1, 1)):
        sigma = torch.full(shape, 0.7, dtype=F64)
        for coefficient in ("c_skip", "c_out", "c_in", "c_noise"):
            value = getattr(ALL[name], coefficient)(sigma)
            assert value.shape == shape and value.dtype == F64


class Recorder(nn.Module):
    """A network that keeps what it was fed, and returns given values."""

    def __init__(self, output, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=dtype))
        self.output = output

    def forward(self, x, c_noise, *, labels=None, image=None):
        self.x, self.c_noise, self.labels, self.image = x, c_noise, labels, image
        return self.output.to(self.weight.dtype)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_denoiser_computes_in_the_states_dtype_and_the_network_in_its_own(name, dtype):
    x, raw = normal(4, 2, 3, 3), normal(4, 2, 3, 3)
    sigma = torch.tensor([0.01, 0.7, 3.0, 70.0], dtype=F64)
    network = Recorder(raw, dtype)
    denoised = Preconditioned(network, ALL[name])(x, sigma)
    c, level = ALL[name], sigma[:, None, None, None]
    assert denoised.dtype == F64
    assert network.x.dtype == dtype and network.c_noise.dtype == torch.float32
    torch.testing.assert_close(network.x, (c.c_in(level) * x).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(network.c_noise, c.c_noise(sigma).float(), rtol=0, atol=0)
    torch.testing.assert_close(denoised, c.c_skip(level) * x + c.c_out(level) * raw.to(dtype).double(), rtol=0, atol=0)
    # A state of single precision: coefficients and result in single precision.
    single = Preconditioned(network, c)(x.float(), sigma)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), denoised, rtol=1e-3 if name == "iddpm" else 1e-5, atol=1e-4)


def test_bf16_networks_tell_neighbouring_levels_apart():
    network = Recorder(torch.zeros(3, 1), torch.bfloat16)
    levels = process.iddpm_levels()[[0, 1, 2]]
    Preconditioned(network, preconditioning.IDDPM())(torch.zeros(3, 1), levels)
    assert network.c_noise.tolist() == [999.0, 998.0, 997.0]
    assert len({float(torch.tensor(value).bfloat16()) for value in (999.0, 998.0, 997.0)}) < 3  # what would be lost


def test_sigma_of_one_number_or_one_a_sample():
    network = Recorder(normal(3, 5))
    denoiser = Preconditioned(network, preconditioning.EDM(0.5))
    x = normal(3, 5)
    scalar = denoiser(x, torch.tensor(2.0, dtype=F64))
    assert torch.equal(network.c_noise, torch.full((3,), math.log(2.0) / 4))
    assert torch.equal(scalar, denoiser(x, torch.full((3,), 2.0, dtype=F64)))
    assert torch.equal(scalar, denoiser(x, torch.full((1,), 2.0, dtype=F64)))
    # A plain number is not rounded to single precision on the way.
    assert torch.equal(denoiser(x, 0.1), denoiser(x, torch.tensor(0.1, dtype=F64)))


def test_per_channel_sigma_data_in_the_denoiser():
    x, raw, stds = normal(4, 2, 3, 3), normal(4, 2, 3, 3), (0.3, 4.0)
    sigma = torch.tensor([0.01, 0.7, 3.0, 70.0], dtype=F64)
    joint = Preconditioned(Recorder(raw, F64), preconditioning.EDM(stds))(x, sigma)
    for channel, std in enumerate(stds):
        part = slice(channel, channel + 1)
        alone = Preconditioned(Recorder(raw[:, part], F64), preconditioning.EDM(std))(x[:, part], sigma)
        torch.testing.assert_close(joint[:, part], alone, rtol=1e-15, atol=0)


def test_extra_channels():
    x, raw = normal(4, 2, 3, 3), normal(4, 4, 3, 3)
    network = Recorder(raw, F64)
    sigma = torch.tensor(0.7, dtype=F64)
    c = preconditioning.IDDPM()
    denoised, extra = Preconditioned(network, c, extra_channels=2).with_extra(x, sigma)
    torch.testing.assert_close(denoised, x - sigma * raw[:, :2], rtol=1e-15, atol=0)
    assert torch.equal(extra, raw[:, 2:])
    assert torch.equal(Preconditioned(network, c, extra_channels=2)(x, sigma), denoised)
    for given in (0, 1, 3):
        with pytest.raises(InputError, match=rf"extra_channels = {given}") as error:
            Preconditioned(network, c, extra_channels=given)(x, sigma)
        assert "(4, 4, 3, 3)" in str(error.value)


def test_wrong_output_shape_is_an_error():
    with pytest.raises(InputError, match=r"output has shape \(4, 2, 3, 2\)"):
        Preconditioned(Recorder(normal(4, 2, 3, 2)), preconditioning.EDM(1.0))(normal(4, 2, 3, 3), torch.tensor(1.0))


def test_conditions_are_never_scaled():
    """At sigma = 80 the input is divided by 80; conditions must arrive as they were given."""
    network = Recorder(normal(4, 2, 3, 3))
    image, labels = normal(4, 1, 3, 3), torch.tensor([3, 1, 0, -1])
    denoiser = Preconditioned(network, preconditioning.EDM(0.5))
    denoiser(normal(4, 2, 3, 3), torch.tensor(80.0), image=image, labels=labels)
    assert torch.equal(network.image, image) and torch.equal(network.labels, labels)
    denoiser(normal(4, 2, 3, 3), torch.tensor(80.0), image=image[:1], labels=labels[:1])
    assert torch.equal(network.image, image[:1].expand(4, 1, 3, 3)) and network.labels.tolist() == [3, 3, 3, 3]


def test_condition_errors():
    denoiser = Preconditioned(Recorder(normal(4, 2)), preconditioning.EDM(0.5))
    x, sigma = normal(4, 2), torch.tensor(1.0)
    for condition, words in (
        ({"label": torch.zeros(4)}, ["'label'", "'labels'"]),
        ({"labels": torch.zeros(3)}, ["'labels'", "(3,)", "4"]),
        ({"labels": 3}, ["'labels'", "3"]),
        ({"labels": torch.tensor(3)}, ["'labels'", "tensor(3)"]),
    ):
        with pytest.raises(InputError) as error:
            denoiser(x, sigma, **condition)
        assert all(word in str(error.value) for word in words), str(error.value)
    for wrong in (torch.ones(3), torch.ones(4, 1)):
        with pytest.raises(InputError, match="sigma has shape"):
            denoiser(x, wrong)


def test_uncertainty():
    u = networks.Uncertainty(16)
    nn.init.normal_(u.linear.weight, generator=torch.Generator().manual_seed(0))
    denoiser = Preconditioned(Recorder(normal(4, 2)), preconditioning.EDM(0.5), uncertainty=u)
    sigma = torch.tensor([0.01, 0.5, 20.0], dtype=F64)
    torch.testing.assert_close(denoiser.uncertainty(sigma), u((torch.log(sigma) / 4).float()), rtol=0, atol=0)
    assert denoiser.uncertainty(sigma[1]).shape == () and denoiser.has_uncertainty
    torch.testing.assert_close(denoiser.uncertainty(sigma[1]), denoiser.uncertainty(sigma)[1])
    without = Preconditioned(Recorder(normal(4, 2)), preconditioning.EDM(0.5))
    assert not without.has_uncertainty
    with pytest.raises(InputError, match="no learned uncertainty"):
        without.uncertainty(sigma)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: preconditioning.EDM(0.0), ["sigma_data", "0.0"]),
        (lambda: preconditioning.EDM(-1), ["sigma_data", "-1"]),
        (lambda: preconditioning.EDM((0.5, math.nan)), ["sigma_data", "nan"]),
        (lambda: preconditioning.Data(math.inf), ["sigma_data", "inf"]),
        (lambda: preconditioning.EDM().c_in(SIGMAS), ["sigma_data", "None"]),
        (lambda: preconditioning.EDM((0.5, 1.0)).c_in(SIGMAS), ["sigma", "(61,)"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_names():
    assert preconditioning.named() == {name: type(part) for name, part in ALL.items()}
