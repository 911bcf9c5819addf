r"""What fits a grid to a denoiser: the converged solution, how local errors reach its end, and the search of the nodes.

In the unscaled z and over lambda = -ln sigma the probability-flow ODE of every process is dz/dlambda = D(z; sigma) - z.
A step of length h by a method of order p that interpolates D leaves the local error c h^{p+1} |d^p D/dlambda^p|; on its
way to sigma = 0 the flow stretches it by a factor g(lambda), so a density rho of steps a unit of lambda leaves in all

    sum_i h_i^{p+1} E(lambda_i) = integral of E rho^{-p} dlambda,    E = |d^p D/dlambda^p| g,

and for a given number of steps that is least where rho is proportional to E^{1/(p+1)}: each step then adds the same.

That is the best grid for small steps of one sign. With few steps errors have signs and cancel, and the nodes of a given
number of steps can be searched for directly: they minimise the squared distance f of the sampler's end states from the
converged ones. The unknowns are theta_i = ln of the steps' lengths in ln sigma (up to a common factor). The end states
are smooth in theta, so J = d(end)/d(theta) by differences gives Gauss and Newton's step, damped as Levenberg and
Marquardt do, of

    ln f(theta) + a sum_i (theta_{i+1} - theta_i)^2.

The second term, independent of the scale of the data, keeps two nodes from running together for a gain that only this
batch sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from edmund.errors import InputError

Call = Callable[[Tensor, float], Tensor]
"""D(z; sigma)."""

_PROBE = 1e-3  # of the start state: how far off the neighbour starts that shows what the flow stretches
_UNIFORM = 0.05  # the share of steps that is spread evenly over ln sigma, so that no stretch is left without any
_SMOOTH = 1e-2  # the weight a of the steps' evenness: neighbours that differ e-fold cost 1 % of f
_DIFFERENCE = 1e-3  # of theta, for the Jacobian
_ENOUGH = 2e-3  # the search ends when an iteration lowers the logarithm by less


class Reference(NamedTuple):
    """The converged solution. log_sigma: [M + 1], falling evenly. images: D on the solution there, [M + 1, n, *].
    stretch: the factor g by which a small offset there has grown at the end, [M + 1, n]. end: the solution at 0, [n,
    *].
    """

    log_sigma: Tensor
    images: Tensor
    stretch: Tensor
    end: Tensor


def reference(denoise: Call, start: Tensor, sigma_min: float, sigma_max: float, steps: int) -> Reference:
    """The solution from the unscaled start [n, *] at sigma_max, by the classical Runge-Kutta method over ln sigma, and
    D at sigma_min, which is its limit at 0.

    A neighbour of each sample goes along: denoise is called on 2 n at a time, 4 steps + 1 times.
    """
    n = len(start)
    level = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps + 1, dtype=torch.float64)
    h = (level[-1] - level[0]).item() / steps
    # The neighbour's direction needs no randomness of its own: it is the next sample's state.
    z = torch.cat([start, start + _PROBE * start.roll(1, 0)])

    def slope(state: Tensor, log_sigma: float) -> Tensor:
        return state - denoise(state, math.exp(log_sigma))

    images, offsets = [], []
    for log_sigma in level[:-1].tolist():
        image = denoise(z, math.exp(log_sigma))
        images.append(image[:n])
        offsets.append(_length(z[n:] - z[:n]))
        k_1 = z - image
        k_2 = slope(z + h / 2 * k_1, log_sigma + h / 2)
        k_3 = slope(z + h / 2 * k_2, log_sigma + h / 2)
        k_4 = slope(z + h * k_3, log_sigma + h)
        z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    image = denoise(z, sigma_min)
    images.append(image[:n])
    offsets.append(_length(z[n:] - z[:n]))
    if not bool(torch.isfinite(image).all()):
        raise InputError(
            f"denoiser gives values that are not finite on the way from sigma_max = {sigma_max!r} to sigma_min = "
            f"{sigma_min!r}; no grid can be fitted to it"
        )
    stretch = torch.stack(offsets)
    return Reference(level, torch.stack(images), _length(image[n:] - image[:n]) / stretch, image[:n])


def equidistributed(solution: Reference, order: int, knots: int) -> Tensor:
    """ln sigma [knots], falling, between which lies the same share of steps of a method of the given order."""
    level = solution.log_sigma
    change = solution.images
    for _ in range(order):
        change = change[1:] - change[:-1]
    middle = (solution.stretch[: len(change)] + solution.stretch[order:]) / 2
    effect = (_length(change, 2) * middle).square().mean(1).sqrt().cpu().to(torch.float64)
    # A difference of order p belongs to the middle of the p + 1 nodes that it is of.
    at = (level[: len(change)] + level[order:]) / 2
    density = effect ** (1 / (order + 1))
    # On the middles of the reference's intervals; beyond the outermost differences, as there.
    centres = (level[1:] + level[:-1]) / 2
    density = _interpolated(-centres, -at, density)
    total = density.sum()
    even = torch.full_like(density, 1 / len(density))
    share = even if total == 0 else (1 - _UNIFORM) * density / total + _UNIFORM * even
    passed = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(0)])
    return _interpolated(torch.linspace(0, 1, knots, dtype=torch.float64) * passed[-1], passed, level)


def searched(
    run: Callable[[Tensor], Tensor],
    end: Tensor,
    start: Tensor,
    iterations: int,
    told: Callable[[float], None],
) -> tuple[Tensor, float]:
    """ln sigma [N] near those of start [N] that minimise the error of run(ln sigma) against end [n, *], the ends fixed;
    and the minimum of the module's last equation.

    told: is handed the error, the root mean square over samples and elements, after each iteration.
    """
    first, last = start[:1], start[-1:]

    def nodes(theta: Tensor) -> Tensor:
        fallen = (first - last) * torch.softmax(theta, 0).cumsum(0)
        return torch.cat([first, first - fallen[:-1], last])

    def residual(theta: Tensor) -> Tensor:
        return (run(nodes(theta)) - end).flatten()

    def objective(residuals: Tensor, theta: Tensor) -> float:
        square = residuals.square().sum().item()
        return (math.log(square) if square > 0 else -math.inf) + _SMOOTH * (theta @ rough @ theta).item()

    theta = (start[:-1] - start[1:]).log()
    theta = theta - theta.mean()
    unit = torch.eye(len(theta), dtype=torch.float64)
    difference = unit.diff(dim=0)
    rough = difference.T @ difference
    now, damping = residual(theta), 1e-2
    value = objective(now, theta)
    for _ in range(iterations):
        square = now.square().sum()
        if square == 0 or len(theta) == 1:
            break
        jacobian = torch.stack([(residual(theta + _DIFFERENCE * each) - now) / _DIFFERENCE for each in unit], 1)
        normal = (jacobian.T @ jacobian / square).cpu().to(torch.float64) + _SMOOTH * rough
        gradient = (jacobian.T @ now / square).cpu().to(torch.float64) + _SMOOTH * (rough @ theta)
        lowered = 0.0
        for _ in range(8):
            step = -torch.linalg.solve(normal + damping * normal.diagonal().mean() * unit, gradient)
            step = step / max(1.0, step.abs().max().item())
            new = residual(theta + step)
            new_value = objective(new, theta + step)
            if new_value < value:  # not where it is NaN
                lowered = value - new_value
                theta, now, value = theta + step, new, new_value
                break
            damping *= 4
        damping = max(damping / 4, 1e-9)
        told(now.square().mean().sqrt().item())
        if lowered < _ENOUGH:
            break
    return nodes(theta), value


def _length(x: Tensor, first: int = 1) -> Tensor:
    """The root mean square over the axes from `first` on."""
    return x.flatten(first).square().mean(-1).sqrt()


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """y of rising x [K], linearly in between, at [M]; beyond the ends, y there."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    left = right - 1
    share = ((at - x[left]) / (x[right] - x[left])).clamp(0, 1)
    return torch.lerp(y[left], y[right], share)
