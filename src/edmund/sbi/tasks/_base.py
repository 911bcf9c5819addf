"""What the ten tasks have in common: a prior, a batched simulator, its likelihood, and the checks at their doors.

A task is stateless: everything random comes from the generator handed in, or from torch's global stream, as in a
user's own simulator. Priors and simulators speak float32; ordinary differential equations, likelihoods and exact
posteriors are computed in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from edmund.errors import InputError
from edmund.sbi.tasks.exact import Exact
from edmund.sbi.tasks.reference import Reference, read_reference


class Task(ABC):
    """A prior over theta [dim_theta] and a simulator of x [dim_x] given theta.

    `prior` is a torch distribution with an event of shape [dim_theta], `simulator` a function of a batch of theta.
    """

    name: ClassVar[str]
    dim_theta: ClassVar[int]
    dim_x: ClassVar[int]
    # What theta and x must be, in words, for `_defined` and `_possible`.
    _theta_domain: ClassVar[str] = "finite"
    _x_domain: ClassVar[str] = "finite"

    @property
    @abstractmethod
    def prior(self) -> Distribution:
        """The prior, float32; its event has the shape [dim_theta]."""

    @abstractmethod
    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        """theta [B, dim_theta], checked, float64 -> x [B, dim_x] of any floating type."""

    @abstractmethod
    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta [B, dim_theta] and x [dim_x], checked, float64 -> [B] float64."""

    def simulator(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x for each theta: [B, dim_theta] -> [B, dim_x] float32, on theta's device.

        generator: on theta's device; None is torch's global stream.
        Raises InputError for a theta of another shape, one that is not finite, or one for which the simulator is
        not defined.
        """
        theta = self._checked_theta(theta)
        if generator is not None and generator.device.type != theta.device.type:
            raise InputError(
                f"generator is on {generator.device}, theta on {theta.device}; the generator must be on theta's device"
            )
        return self._simulate(theta.double(), generator).float()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta) of one observation: theta [B, dim_theta], x [dim_x] or [1, dim_x] -> [B] float64.

        What does not depend on theta may be left out; the task's docstring says where it is.
        """
        theta = self._checked_theta(theta)
        return self._log_likelihood(theta.double(), self._checked_x(x).to(theta.device))

    def posterior(self, x: Tensor) -> Exact | None:
        """The exact posterior given one observation x [dim_x] or [1, dim_x]; None where no exact one is known."""
        self._checked_x(x)
        return None

    def reference(self, directory: str | Path, observation: int) -> Reference:
        """Observation number `observation` (from 1) and its reference posterior, from files in sbibm's layout.

        directory: the folder that holds one folder a task, `TASK/num_observation_K/`.
        Raises InputError where a file is not there.
        """
        return read_reference(directory, self.name, observation, dim_theta=self.dim_theta, dim_x=self.dim_x)

    def _checked_theta(self, theta: Tensor) -> Tensor:
        if not isinstance(theta, Tensor) or not theta.is_floating_point():
            kind = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
            raise InputError(f"theta is {kind}; {self.name} takes a floating-point tensor [B, {self.dim_theta}]")
        if theta.ndim != 2 or theta.shape[1] != self.dim_theta:
            raise InputError(f"theta has the shape {list(theta.shape)}; {self.name} takes [B, {self.dim_theta}]")
        bad = int((~self._defined(theta)).sum())
        if bad:
            raise InputError(
                f"theta: {self.name} is not defined for {bad} of its {len(theta)} rows, not {self._theta_domain}"
            )
        return theta

    def _defined(self, theta: Tensor) -> Tensor:
        """Where the simulator is defined: theta [B, dim_theta] -> bool [B]."""
        return theta.isfinite().all(dim=1)

    def _possible(self, x: Tensor) -> Tensor:
        """Which numbers the simulator can give: x [dim_x] -> bool [dim_x]."""
        return x.isfinite()

    def _checked_x(self, x: Tensor) -> Tensor:
        """x as [dim_x] float64."""
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x is {kind}; {self.name} takes a real tensor [{self.dim_x}]")
        if tuple(x.shape) not in ((self.dim_x,), (1, self.dim_x)):
            raise InputError(f"x has the shape {list(x.shape)}; {self.name} takes one observation [{self.dim_x}]")
        x = x.reshape(-1).double()
        bad = int((~self._possible(x)).sum())
        if bad:
            raise InputError(
                f"x: {bad} of its {self.dim_x} numbers are not {self._x_domain}, as those of {self.name} are"
            )
        return x
