"""The columns of a joint model: their names, and the way from the user's units to standardised, unbounded ones.

Every column has a transform of its own, so that any subset of them can be asked with its density. Parameters take their
prior's; where that mixes columns (a multivariate normal), each is standardised by its own mean and std instead. Columns
of x are standardised, of their logarithm where they are positive and skewed (`edmund.sbi.standardise` says when).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from edmund import transform as transforms
from edmund.errors import InputError, check_count, unknown
from edmund.sbi.priors import Prior
from edmund.sbi.standardise import FAR
from edmund.sbi.standardise import Standardise as Statistics
from edmund.transform import Blocks, Chain, Standardise, TangentLog, Transform, Whiten

_ROUNDING = 1e-5
"""Of standardised float32 values that never varied."""

Names = str | int | Sequence[str | int]
"""Variables: a name, a column's number, or several of them."""


def named_columns(prior: Prior, x_dim: int, variables: Mapping[str, int] | None) -> dict[str, list[int]]:
    """The columns of each name: theta, x, the prior's own names, and `variables`, widths that follow one another."""
    total = prior.dim + x_dim
    found = {"theta": list(range(prior.dim)), "x": list(range(prior.dim, total))}
    found |= {name: [column] for column, name in enumerate(prior.names or ())}
    if variables is None:
        return found
    if not isinstance(variables, Mapping):
        raise InputError(f"variables is {variables!r}; it must be a mapping of names to numbers of columns")
    start = 0
    named: dict[str, list[int]] = {}
    for name, width in variables.items():
        named[str(name)] = list(range(start, start + check_count(f"variables: {name}", width)))
        start += width
    if start != total:
        raise InputError(
            f"variables has {start} columns in all; theta and x have {total} ({prior.dim} and {x_dim}), in this order"
        )
    for name in ("theta", "x"):
        if named.get(name, found[name]) != found[name]:
            raise InputError(f"variables has columns {named[name]} as {name!r}, which are {found[name]}; rename them")
    return found | named


@dataclass(frozen=True)
class JointSpace:
    """V columns, the prior's parameters first.

    columns: of each name. transform: of all columns, each by itself. low, high: of the training data, in the model's
    units, [V].
    """

    prior: Prior
    columns: Mapping[str, list[int]]
    transform: Transform
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def fit(cls, prior: Prior, columns: Mapping[str, list[int]], x_dim: int, batches: Iterable[Tensor]) -> Self:
        """From all x, batches [B, x_dim] (NaN: missing)."""
        found = Statistics((x_dim,), mask=True).fit(batches)
        positive = found.logarithmic
        parts: list[tuple[list[int], Transform]] = []
        for taken, logs in ((positive, True), (~positive, False)):
            columns_of_x = taken.nonzero().flatten().tolist()
            if columns_of_x:
                scaled = Standardise(found.mean[taken].double(), found.std[taken].double())
                logged = [TangentLog(found.low[taken].double())] if logs else []
                parts.append((columns_of_x, Chain([*logged, scaled])))
        of_x = Blocks(parts)
        whole = Blocks([(range(prior.dim), _separate(prior.transform)), (range(prior.dim, prior.dim + x_dim), of_x)])
        # What was missing in all simulations, or never varied, has no range.
        edges = []
        for end, value in ((found.low, 0.0), (found.high, 0.0)):
            safe = torch.where(found.low <= found.high, end, torch.where(positive, 1.0, value)).double()
            edges.append((of_x.forward(safe[None]))[0].tolist())
        wide = [math.inf] * prior.dim
        return cls(prior, columns, whole, (*(-edge for edge in wide), *edges[0]), (*wide, *edges[1]))

    @property
    def dim(self) -> int:
        """V."""
        return len(self.low)

    def resolve(self, argument: str, names: Names) -> list[int]:
        """The columns that are named, in the order of the names."""
        several = [names] if isinstance(names, str | int) else list(names)
        found: list[int] = []
        for name in several:
            if isinstance(name, int) and not isinstance(name, bool):
                if not 0 <= name < self.dim:
                    raise InputError(f"{argument} is {name}; there are {self.dim} columns, 0 to {self.dim - 1}")
                found.append(name)
            elif isinstance(name, str) and name in self.columns:
                found += self.columns[name]
            else:
                raise unknown(argument, name, self.columns)
        twice = sorted({column for column in found if found.count(column) > 1})
        if twice:
            raise InputError(f"{argument} is {names!r}; column {twice[0]} is in it more than once")
        return found

    def to_model(self, values: Tensor, columns: Sequence[int], argument: str) -> Tensor:
        """z [B, n] float64 of values [B, n] of these columns; NaN, what is missing, stays.

        Raises InputError for infinite values and those outside the support, and warns of those far outside the training
        range.
        """
        infinite = values.isinf().any(1)
        if bool(infinite.any()):
            raise InputError(f"{argument}: {int(infinite.sum())} of {len(values)} rows hold infinite values")
        taken = self.contains(values, columns)
        if not bool(taken.all()):
            raise InputError(
                f"{argument}: {int((~taken).sum())} of {len(values)} rows have parameters outside the prior's support"
            )
        z = self.standardised(values, columns)
        self._warn_far(values, z, columns, argument)
        return z

    def standardised(self, values: Tensor, columns: Sequence[int]) -> Tensor:
        """`to_model` of values that are known to be in the support."""
        absent = values.isnan()
        full = self._filled(torch.where(absent, self._inside[:, list(columns)].to(values), values), columns)
        full[:, : self.prior.dim] = self.prior.box.inward(full[:, : self.prior.dim])
        return torch.where(absent, torch.nan, self.transform.forward(full)[:, list(columns)])

    def contains(self, values: Tensor, columns: Sequence[int]) -> Tensor:
        """Whether the parameters among the columns are in the prior's support (NaN is), bool [B]."""
        inside = self._inside[:, list(columns)].to(values)
        full = self._filled(torch.where(values.isnan(), inside, values), columns)
        return self.prior.accepts(full[:, : self.prior.dim])

    def to_user(self, z: Tensor, columns: Sequence[int]) -> Tensor:
        """Values float32 [B, n] of z [B, n]; parameters are always inside the prior's support."""
        full = z.new_zeros(len(z), self.dim, dtype=torch.float64)
        full[:, list(columns)] = z.double()
        values = self.transform.inverse(full).float()
        values[:, : self.prior.dim] = self.prior.box.inward(values[:, : self.prior.dim])
        return values[:, list(columns)]

    def log_abs_det(self, values: Tensor, columns: Sequence[int]) -> Tensor:
        """ln |det dz/dvalues| [B] of the columns alone, each of which has a transform of its own."""
        full = self._filled(values, columns)
        full[:, : self.prior.dim] = self.prior.box.inward(full[:, : self.prior.dim])
        with torch.enable_grad():
            full.requires_grad_()
            (slopes,) = torch.autograd.grad(self.transform.forward(full).sum(), full)
        return slopes[:, list(columns)].abs().log().sum(1)

    def config(self) -> dict[str, Any]:
        """JSON-able; `from_config` rebuilds it."""
        return {
            "prior": self.prior.config(),
            "columns": dict(self.columns),
            "transform": self.transform.config(),
            "range": [[None if math.isinf(edge) else edge for edge in edges] for edges in (self.low, self.high)],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], prior: Any = None) -> Self:
        """What `config` described; prior: for one of the user's own making."""
        low, high = config["range"]
        return cls(
            Prior.from_config(config["prior"], prior),
            {name: list(columns) for name, columns in config["columns"].items()},
            transforms.from_config(config["transform"]),
            tuple(-math.inf if edge is None else edge for edge in low),
            tuple(math.inf if edge is None else edge for edge in high),
        )

    @functools.cached_property
    def _inside(self) -> Tensor:
        """Values [1, V] float64 that every transform takes."""
        return self.transform.inverse(torch.zeros(1, self.dim, dtype=torch.float64))

    def _filled(self, values: Tensor, columns: Sequence[int]) -> Tensor:
        """Rows of all columns [B, V] float64 that hold these values."""
        full = self._inside.repeat(len(values), 1)
        full[:, list(columns)] = values.detach().to("cpu", torch.float64)
        return full

    def _warn_far(self, values: Tensor, z: Tensor, columns: Sequence[int], argument: str) -> None:
        low, high = (torch.tensor(edges, dtype=torch.float64)[list(columns)] for edges in (self.low, self.high))
        beyond = torch.maximum(z - high, low - z).nan_to_num(nan=0.0, posinf=math.inf, neginf=0.0)
        # Of what never varied, any other value is out of range, up to float32's rounding.
        beyond = torch.where((high - low <= _ROUNDING) & (beyond > _ROUNDING), math.inf, beyond)
        if not beyond.numel() or float(beyond.max()) <= FAR:
            return
        row, farthest = divmod(int(beyond.argmax()), len(columns))
        edges = z.new_zeros(2, self.dim)
        edges[:, columns[farthest]] = torch.stack([low[farthest], high[farthest]])
        lowest, highest = self.transform.inverse(edges)[:, columns[farthest]].tolist()
        distance = float(beyond[row, farthest])
        outside = f"{distance:.3g} standard deviations outside the training range [{lowest:g}, {highest:g}]"
        if math.isinf(distance):
            outside = f"and was {lowest:g} in all training data"
        warnings.warn(
            f"{argument}: {self._name(columns[farthest])} is {float(values[row, farthest]):g}, {outside}; the joint "
            "model extrapolates there",
            stacklevel=4,
        )

    def _name(self, column: int) -> str:
        """What a user calls a column: the name of it alone, or its place in x or theta."""
        alone = [name for name, columns in self.columns.items() if list(columns) == [column]]
        whole, first = ("theta", 0) if column < self.prior.dim else ("x", self.prior.dim)
        return repr(alone[0]) if alone else f"column {column - first} of {whole}"


def _separate(transform: Transform) -> Transform:
    """The transform with every column by itself."""
    if isinstance(transform, Blocks):
        return Blocks([(columns, _separate(part)) for columns, part in transform.blocks])
    if isinstance(transform, Chain):
        return Chain([_separate(part) for part in transform.transforms])
    if isinstance(transform, Whiten):
        cholesky = torch.tensor(transform.cholesky, dtype=torch.float64)
        return Standardise(transform.mean, cholesky.square().sum(1).sqrt())
    return transform
