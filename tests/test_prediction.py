"""Predictions: each kind against its definition, all conversions there and back, singular ones refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from edmund import preconditioning, process
from edmund.errors import InputError
from edmund.prediction import KINDS, convert

F64 = torch.float64
PROCESSES = {
    "vp": process.VP(),
    "ve": process.VE(),
    "edm": process.EDM(),
    "flow": process.RectifiedFlow(),
    "cosine": process.Cosine(),
    "subvp": process.SubVP(),
    "vp-none": process.VP(scaling="none"),
    "odd": process.Process(s=lambda t: 1 + 0.5 * torch.sin(4 * torch.pi * t), sigma=lambda t: 80 * t**3),
}
every_process = pytest.mark.parametrize("name", PROCESSES)
PRECONDITIONING = preconditioning.EDM(0.7)


def state(name, shape=(6, 3)):
    """Data, noise, times over three decades of sigma, and the noisy state."""
    path = PROCESSES[name]
    generator = torch.Generator().manual_seed(0)
    y, n = torch.randn(2, *shape, generator=generator, dtype=F64)
    t = path.t(torch.logspace(-1.5, 1.5, shape[0], dtype=F64))
    return path, t, y, n, path.add_noise(y, t, n)


def truth(path, t, y, n, axes=1):
    """Every prediction from y and n by its definition; the derivatives by autograd."""
    column = t.clone().reshape(-1, *(1,) * axes).requires_grad_()
    alpha, std = path.s(column), path.s(column) * path.sigma(column)
    alpha_dot = torch.autograd.grad(alpha.sum(), column, retain_graph=True)[0] if alpha.requires_grad else 0.0
    std_dot = torch.autograd.grad(std.sum(), column)[0]
    alpha, std, sigma = alpha.detach(), std.detach(), (std / alpha).detach()
    skip = 0.7**2 / (sigma**2 + 0.7**2)
    return {
        "data": y,
        "noise": n,
        "score": -n / std,
        "v": alpha * n - std * y,
        "flow": alpha_dot * y + std_dot * n,
        "F": (y - skip * (y + sigma * n)) / (sigma * 0.7 / torch.sqrt(sigma**2 + 0.7**2)),
    }


@every_process
@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_conversion(name, source, target):
    path, t, y, n, x = state(name)
    values = truth(path, t, y, n)
    options = {"preconditioning": PRECONDITIONING}
    out = convert(values[source], x, t, path, source=source, target=target, **options)
    scale = values[target].abs().amax(1, keepdim=True)
    assert ((out - values[target]).abs() / scale).max() < 1e-10
    back = convert(out, x, t, path, source=target, target=source, **options)
    assert ((back - values[source]).abs() / values[source].abs().amax(1, keepdim=True)).max() < 1e-10


def test_textbook_velocities():
    """u = n - y on the straight path; v = alpha n - std y is the angular velocity of the cosine one."""
    path, t, y, n, x = state("flow", (5, 2, 4, 4))
    torch.testing.assert_close(convert(y, x, t, path, source="data", target="flow"), n - y, rtol=1e-11, atol=1e-11)
    path, t, y, n, x = state("cosine", (5, 2, 4, 4))
    v = convert(n, x, t, path, source="noise", target="v")
    flow = convert(n, x, t, path, source="noise", target="flow")
    torch.testing.assert_close(flow, math.pi / 2 * v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("own", "name", "kind"),
    [
        (preconditioning.Epsilon(), "vp", "noise"),
        (preconditioning.VP(), "vp", "noise"),
        (preconditioning.Velocity(), "vp", "v"),
        (preconditioning.Velocity(), "cosine", "v"),
        (preconditioning.Flow(), "flow", "flow"),
        (preconditioning.Data(1.0), "odd", "data"),
    ],
)
def test_f_is_what_the_preconditioning_says_it_is(own, name, kind):
    path, t, y, n, x = state(name)
    out = convert(y, x, t, path, source="data", target="F", preconditioning=own)
    torch.testing.assert_close(out, truth(path, t, y, n)[kind], rtol=1e-9, atol=1e-10)


def test_f_of_ve_is_minus_the_noise():
    """c_out = +sigma, c_skip = 1: sigma times the score."""
    path, t, y, n, x = state("ve")
    out = convert(y, x, t, path, source="data", target="F", preconditioning=preconditioning.VE())
    torch.testing.assert_close(out, -n, rtol=1e-11, atol=1e-12)


def test_one_time_for_all():
    path, t, _, n, x = state("vp")
    alone = convert(n, x, t[2], path, source="noise", target="flow")
    many = convert(n, x, t[2].expand(6), path, source="noise", target="flow")
    assert torch.equal(alone, many)


def test_dtype():
    path, t, _, n, x = state("vp")
    out = convert(n.float(), x.float(), t, path, source="noise", target="data")
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[:4].double(), truth(path, *state("vp")[1:4])["data"][:4], rtol=1e-4, atol=1e-4)


def test_singular_conversions_raise():
    y = torch.ones(2, 3, dtype=F64)
    clean, pure = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)
    flow, edm = process.RectifiedFlow(), process.EDM()
    for path, t, source, target in (
        (edm, clean, "data", "noise"),
        (edm, clean, "data", "score"),
        (edm, clean, "data", "v"),
        (edm, clean, "data", "flow"),
        (edm, clean, "data", "F"),
    ):
        with pytest.raises(InputError, match="divides by") as error:
            convert(y, y, t, path, source=source, target=target, preconditioning=PRECONDITIONING)
        assert str(error.value).startswith("t: ")
    # At the end of a flow alpha = 0 and the noise does not tell the data.
    end = process.Process(s=lambda t: 1 - t, sigma=lambda t: t, t_max=1.0)
    for source in ("noise", "score", "F"):
        with pytest.raises(InputError, match="divides by"):
            convert(y, y, pure, end, source=source, target="data", preconditioning=PRECONDITIONING)
    assert torch.equal(convert(y, y, clean, flow, source="noise", target="data"), y)  # at t = 0 it does: x itself


def test_errors():
    path, t, y, _, x = state("vp")
    for options, words in (
        ({"source": "eps", "target": "data"}, ["source", "'eps'", "noise"]),
        ({"source": "data", "target": "velocity"}, ["target", "'velocity'"]),
        ({"source": "data", "target": "F"}, ["preconditioning", "None"]),
    ):
        with pytest.raises(InputError) as error:
            convert(y, x, t, path, **options)
        assert all(word in str(error.value) for word in words), str(error.value)
    with pytest.raises(InputError, match=r"value has shape \(6, 2\)"):
        convert(y[:, :2], x, t, path, source="data", target="v")
