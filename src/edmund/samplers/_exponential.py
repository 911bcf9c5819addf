r"""What the multistep samplers share: polynomials through the last images, integrated exactly, also against an
exponential.

In lambda = -ln sigma, the unscaled z = y + sigma n follows, whatever the process,

    dz = c (D(z; sigma) - z) dlambda + sigma sqrt(2 (c - 1)) dw,

where c = 1 is the probability-flow ODE and c = 2 the reverse SDE of Song et al. 2021. All but the denoiser is linear,
and over a step of h = lambda' - lambda the solution is (Lu et al. 2022, arXiv 2211.01095; Xue et al. 2023, arXiv
2309.05019)

    z' = e^{-c h} z + c \int_0^h e^{-c (h - u)} D(lambda + u) du + sigma' sqrt(1 - e^{-2 (c - 1) h}) n.

A multistep method puts a polynomial through images D_j at levels u_j = theta_j h, which gives them the weights c h
\int_0^1 e^{-c h (1 - theta)} l_j(theta) dtheta with Lagrange's l_j. The integral of theta^k is k! phi_{k+1}(-c h), with
phi_1(x) = (e^x - 1) / x and phi_{k+1}(x) = (phi_k(x) - 1/k!) / x. Nothing here asks for the sign of h: it is negative
where levels rise.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

from torch import Tensor

from edmund.errors import InputError
from edmund.samplers._linear import LinearStep, Stage


def check_order(argument: str, value: int, most: int) -> None:
    """Raises InputError unless the value is an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= int(value) <= most:
        raise InputError(f"{argument} is {value!r}; it must be an integer from 1 to {most}")


def nodes_of(sigma_from: Tensor, sigma_to: Tensor) -> list[float]:
    """The N + 1 levels of N steps that each start where the one before ended."""
    return [*sigma_from.tolist(), *sigma_to[-1:].tolist()]


def log_step(sigma: float, sigma_to: float) -> float:
    """h = ln(sigma / sigma'), to its last digit however near the two are; infinite for sigma' = 0."""
    return math.inf if sigma_to == 0 else math.log1p((sigma - sigma_to) / sigma_to)


def log_nodes(nodes: Sequence[float], index: int, count: int) -> tuple[float, ...]:
    """Where the levels index, index - 1, ... (count of them) lie in ln sigma, in units of the step from index to index
    + 1: 0, then negative numbers.
    """
    h = log_step(nodes[index], nodes[index + 1])
    return tuple(log_step(nodes[index], nodes[index - back]) / h for back in range(count))


def phi(k: int, x: float) -> float:
    """phi_k(x) = \\int_0^1 e^{(1 - theta) x} theta^{k-1} / (k-1)! dtheta, for k >= 1."""
    if abs(x) < 2:
        # The recursion cancels here; of the series sum_n x^n / (n + k)!, 25 terms leave less than 1e-18.
        value = 1.0
        for n in range(25, 0, -1):
            value = 1 + x * value / (n + k)
        return value / math.factorial(k)
    value = math.expm1(x) / x
    for below in range(1, k):
        value = (value - 1 / math.factorial(below)) / x
    return value


def lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """The coefficients, of rising powers, of the polynomials that are 1 at one node and 0 at the others."""
    basis = []
    for here in nodes:
        polynomial = [1.0]
        for other in nodes:
            if other != here:
                shifted = [0.0, *polynomial]
                for power, coefficient in enumerate(polynomial):
                    shifted[power] -= other * coefficient
                polynomial = [coefficient / (here - other) for coefficient in shifted]
        basis.append(polynomial)
    return basis


def interpolation_weights(moments: Sequence[float], nodes: Sequence[float]) -> list[float]:
    """What a linear functional gives the values at the nodes: its values at the polynomials l_j, from those at the
    powers theta^k, the `moments`.
    """
    return [sum(c * moment for c, moment in zip(p, moments, strict=True)) for p in lagrange(nodes)]


def adams_weights(nodes: Sequence[float]) -> list[float]:
    r"""\int_0^1 l_j(theta) dtheta."""
    return interpolation_weights([1 / (power + 1) for power in range(len(nodes))], nodes)


def exponential_moments(z: float, count: int) -> list[float]:
    r"""z \int_0^1 e^{-z (1 - theta)} theta^k dtheta for k = 0 .. count - 1."""
    return [z * math.factorial(power) * phi(power + 1, -z) for power in range(count)]


def exponential_weights(z: float, nodes: Sequence[float]) -> list[float]:
    r"""z \int_0^1 e^{-z (1 - theta)} l_j(theta) dtheta."""
    return interpolation_weights(exponential_moments(z, len(nodes)), nodes)


def two_point_weights(z: float, theta: float, moment: float) -> tuple[float, float]:
    """The weights of the images at 0 and theta when the integral z e^{-z (1 - theta)} of theta itself is taken to be
    `moment`.

    The exact moment is z phi_2(-z) = z/2 - z^2/6 + ...; others that agree to first order keep the second order, and
    several methods choose one.
    """
    other = moment / theta
    return -math.expm1(-z) - other, other


def noise_weight(sigma_to: float, excess: float, h: float) -> float:
    """sigma' sqrt(1 - e^{-2 (c - 1) h}), with excess = c - 1.

    For a rising step, which the loop refuses if it draws, the size that a falling one has.
    """
    return sigma_to * math.sqrt(-math.expm1(-2 * excess * abs(h)))


def adams_step(sigma: float, sigma_to: float, eta: float, images: Sequence[float], S_noise: float) -> LinearStep:
    """The step of the module's solution with c = 1 + eta that calls the denoiser at its start, with the weights of the
    images; one draw where eta > 0.
    """
    h = log_step(sigma, sigma_to)
    x = math.exp(-(1 + eta) * h)
    if eta == 0:
        return LinearStep((Stage(sigma, x, tuple(images)),))
    noise = (S_noise * noise_weight(sigma_to, eta, h),)
    return LinearStep((Stage(sigma, x, tuple(images), noise),), ((sigma, sigma_to),))


def predict_and_correct(
    nodes: Sequence[float],
    most: int,
    weights: Callable[[int, int], tuple[Sequence[float], Sequence[float]]],
    excess: Sequence[float] | None = None,
) -> list[LinearStep]:
    """The steps of a predictor-corrector that calls the denoiser once a step, at the prediction.

    weights(i, past): of step i from `past` images at its start and before, the weights of the predictor, and of the
    corrector with the image at the prediction first. `past` is at most `most`, at most the images there are, and where
    the levels end in 0 at most the steps that are left. excess: c - 1 of each step's SDE; None: the ODE.
    """
    count = len(nodes) - 1
    steps = []
    for i in range(count):
        # The first step makes its own first call; after it, a step's first image is that of the corrector before.
        level = nodes[0] if i == 0 else None
        if nodes[i + 1] == 0:
            steps.append(LinearStep((Stage(level, 0.0, (1.0,)),)))
            continue
        past = min(most, i + 1, count - i) if nodes[-1] == 0 else min(most, i + 1)
        more = 0.0 if excess is None else excess[i]
        h = log_step(nodes[i], nodes[i + 1])
        x = math.exp(-(1 + more) * h)
        noise = (noise_weight(nodes[i + 1], more, h),) if more > 0 else ()
        predict, correct = weights(i, past)
        stages = [Stage(level, x, tuple(predict), noise)]
        if i < count - 1:
            stages.append(Stage(nodes[i + 1], x, tuple(correct), noise))
        steps.append(LinearStep(tuple(stages), ((nodes[i], nodes[i + 1]),) if more > 0 else ()))
    return steps
