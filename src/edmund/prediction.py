r"""Predictions: the names of what a network may predict, and every conversion between them.

Given the state x_t = alpha y + std n of a process, one prediction determines all others:

    data    y
    noise   n = (x_t - alpha y) / std
    score   grad log p_t(x_t) = -n / std                      (Song et al. 2021)
    v       alpha n - std y                                   (Salimans & Ho 2022)
    flow    u = alpha' y + std' n                             (Lipman et al. 2022)
    F       (y - c_skip x) / c_out with x = x_t / s           (Karras et al. 2022, Eq. 7)

Each converts to each other through y. No conversion is guarded by a small number: where one is singular (noise at std =
0, ...) it is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edmund.errors import InputError, unknown
from edmund.preconditioning import Preconditioning
from edmund.process import Process

KINDS = ("data", "noise", "score", "v", "flow", "F")


@dataclass(frozen=True)
class _State:
    """What a conversion needs to know of the state: x_t [B, *], and its coefficients broadcast against it."""

    x: Tensor
    t: Tensor
    process: Process
    preconditioning: Preconditioning | None

    @property
    def alpha(self) -> Tensor:
        return self.process.alpha(self.t)

    @property
    def sigma(self) -> Tensor:
        return self.process.sigma(self.t)

    @property
    def std(self) -> Tensor:
        return self.process.std(self.t)

    @property
    def alpha_dot(self) -> Tensor:
        return self.process.s_dot(self.t)

    @property
    def std_dot(self) -> Tensor:
        return self.process.s_dot(self.t) * self.sigma + self.alpha * self.process.sigma_dot(self.t)

    def precondition(self) -> Preconditioning:
        if self.preconditioning is None:
            raise InputError("preconditioning is None; converting from or to 'F' needs the network's preconditioning")
        return self.preconditioning


def _divide(numerator: Tensor, denominator: Tensor, what: str) -> Tensor:
    if bool((denominator == 0).any()):
        raise InputError(f"{what}, which is 0 here: this prediction does not determine that one at this t")
    return numerator / denominator


def _data_from_F(value: Tensor, state: _State) -> Tensor:
    c = state.precondition()
    return (
        c.c_skip(state.sigma) * _divide(state.x, state.alpha, "t: the conversion from F divides by s")
        + c.c_out(state.sigma) * value
    )


def _F_from_data(y: Tensor, state: _State) -> Tensor:
    c = state.precondition()
    skip = c.c_skip(state.sigma) * _divide(state.x, state.alpha, "t: the conversion to F divides by s")
    return _divide(y - skip, c.c_out(state.sigma), "t: the conversion to F divides by c_out")


_TO_DATA: dict[str, Callable[[Tensor, _State], Tensor]] = {
    "data": lambda value, _: value,
    "noise": lambda value, at: _divide(
        at.x - at.std * value, at.alpha, "t: the conversion from noise divides by alpha"
    ),
    "score": lambda value, at: _divide(
        at.x + at.std**2 * value, at.alpha, "t: the conversion from score divides by alpha"
    ),
    "v": lambda value, at: _divide(
        at.alpha * at.x - at.std * value, at.alpha**2 + at.std**2, "t: the conversion from v divides by alpha^2 + std^2"
    ),
    "flow": lambda value, at: _divide(
        at.std * value - at.std_dot * at.x,
        at.std * at.alpha_dot - at.std_dot * at.alpha,
        "t: the conversion from flow divides by std alpha' - std' alpha",
    ),
    "F": _data_from_F,
}


def _noise(y: Tensor, at: _State) -> Tensor:
    return _divide(at.x - at.alpha * y, at.std, "t: the noise is (x_t - alpha y) / std, and divides by std")


_FROM_DATA: dict[str, Callable[[Tensor, _State], Tensor]] = {
    "data": lambda y, _: y,
    "noise": _noise,
    "score": lambda y, at: -_noise(y, at) / at.std,
    "v": lambda y, at: at.alpha * _noise(y, at) - at.std * y,
    "flow": lambda y, at: at.alpha_dot * y + at.std_dot * _noise(y, at),
    "F": _F_from_data,
}


def convert(
    value: Tensor,
    x: Tensor,
    t: Tensor,
    process: Process,
    *,
    source: str,
    target: str,
    preconditioning: Preconditioning | None = None,
) -> Tensor:
    """The prediction `value` of kind `source` as one of kind `target`.

    value, x: [B, *], x the scaled state x_t. t: [] or [B], the process's time (it runs up from data to noise). source,
    target: one of "data", "noise", "score", "v", "flow", "F"; F needs the preconditioning. Computed in x's dtype.
    Raises InputError for unknown kinds, and where the conversion is
    singular.
    """
    for argument, kind in (("source", source), ("target", target)):
        if kind not in KINDS:
            raise unknown(argument, kind, KINDS)
    if value.shape != x.shape:
        raise InputError(
            f"value has shape {tuple(value.shape)}, x has {tuple(x.shape)}; a prediction has the state's shape"
        )
    at = _State(x, torch.as_tensor(t).to(x).reshape(-1, *(1,) * (x.ndim - 1)), process, preconditioning)
    return _FROM_DATA[target](_TO_DATA[source](value, at), at)
