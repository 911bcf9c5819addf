"""A prior as the rest of the package sees it: draws, a density, and a bijection of its support to unbounded space.

Where the law of a parameter is known, the bijection carries it to the standard normal: ln p(theta) = ln N(z; 0, I) +
ln |det dz/dtheta|, and a diffusion of the prior has a closed form. Where it is not, parameters with limits go through
their logit or logarithm and everything is then standardised by the moments of draws.

Both put a limit infinitely far away, in a tail that few draws of the prior reach. `Prior.compact` is the other way to
get rid of limits: between two of them its z is about theta itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edmund import transform as transforms
from edmund.errors import InputError, check_count
from edmund.sbi.priors import laws as kinds
from edmund.sbi.priors.bounds import Box
from edmund.sbi.priors.laws import Law
from edmund.sbi.seeding import seeded
from edmund.transform import Blocks, Bounded, Chain, Probit, Standardise, Transform

EDGE = 0.2
"""Width of the tails that `Prior.compact` has in the place of two limits, where a uniform law has the std 1."""
DRAWS = 10_000
"""Draws that a law without a known normaliser is standardised by, and that its declared support is checked with."""


@dataclass(frozen=True, eq=False, repr=False)
class Prior:
    """The product of `laws`; made by `Prior.of`.

    transform: theta [B, D] within the support to z [B, D] in unbounded space. names: of the parameters, where they have
    any.
    """

    laws: tuple[Law, ...]
    box: Box
    transform: Transform
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, prior: Any) -> Prior:
        """What a user gives for a prior, as a Prior (which is returned as it is).

        prior: one of torch's distributions with an event of [D] (or of one number); a list, whose independent product
        is meant; or an object with `sample(shape) -> [*shape, D]` and `log_prob(theta [B, D]) -> [B]`, tensors or
        arrays, whose limits are taken from its `support` (one of torch's constraints), or from `low` and `high`
        (numbers, or [D]), or are none.

        >>> from torch.distributions import LogNormal, Uniform
        >>> prior = Prior.of([Uniform(0.0, 1.0), LogNormal(-0.9, 0.5)])
        >>> prior, prior.gaussian
        (Prior(uniform [1], log_normal [1]), True)
        >>> theta = prior.to_user(torch.tensor([[0.0, 0.0], [40.0, -40.0]]))
        >>> prior.contains(theta).tolist()
        [True, True]

        Raises InputError for batch axes, supports that are not a product of intervals, draws that are not finite or
        outside the declared support, points inside it without density, and parameters that do not vary.
        """
        return prior if isinstance(prior, Prior) else assembled(kinds.merged(_laws_of(prior)))

    @property
    def dim(self) -> int:
        """D, the number of parameters."""
        return self.box.dim

    @functools.cached_property
    def gaussian(self) -> bool:
        """Whether the prior is exactly N(0, I) in the space of its transform."""
        return all(law.normaliser() is not None for law in self.laws)

    @functools.cached_property
    def compact(self) -> Transform:
        """theta [B, D] within the support to z [B, D] in unbounded space, of about zero mean and unit variance, where
        parameters with two limits are as they are but for short tails at the limits; `transform` where none has two.
        """
        return self._between_limits(_short_tails)

    @functools.cached_property
    def _input(self) -> Transform:
        return self._between_limits(_as_it_is)

    def _between_limits(self, make: _Between) -> Transform:
        """`transform`, but for what has two limits, which `make` transforms."""
        if not any(_between(law.box).any() for law in self.laws):
            return self.transform
        parts = [_with(make, law) if _between(law.box).any() else _transform(law) for law in self.laws]
        return _side_by_side(list(self.laws), parts)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """[n, D] float32 inside the support, on the CPU; the global random streams are as they were."""
        check_count("n", n)
        check_count("seed", seed, least=0)
        with seeded(seed):
            drawn = [law.sample(n) for law in self.laws]
        return self.box.inward(torch.cat(drawn, 1).float())

    def log_prob(self, theta: Tensor) -> Tensor:
        """ln p(theta), in nats, of theta [B, D]: float64 [B] on theta's device, -inf outside the support."""
        theta = self._rows(theta)
        inside = self.box.contains(theta).all(1)
        # Outside, laws may give anything: they are asked about a point inside instead, and their answer is left out.
        values = self.box.inward(theta.double().nan_to_num())
        values = torch.where(inside[:, None], theta.double(), values)
        parts = zip(torch.split(values, [law.dim for law in self.laws], 1), self.laws, strict=True)
        total = torch.stack([law.log_prob(part) for part, law in parts]).sum(0)
        return torch.where(inside, total, -torch.inf)

    def contains(self, theta: Tensor) -> Tensor:
        """Whether each row of theta [B, D] lies in the support: bool [B]."""
        return self.box.contains(self._rows(theta)).all(1)

    def accepts(self, theta: Tensor) -> Tensor:
        """Whether `to_model` takes each row of theta [B, D], bool [B]: inside the support, or rounded onto a limit."""
        rows = self._rows(theta)
        return (self.box.contains(rows) | self.box.rounds_onto(rows)).all(1)

    def to_model(self, theta: Tensor) -> Tensor:
        """z [B, D] = transform(theta), computed in float64, in theta's floating-point type.

        Limits lie infinitely far away in z: a theta on one, where rounding may have put it, is moved to the nearest
        number of its type inside. Only the limit 0 of a half-line that does not belong to it, near which there are
        numbers of every size, is outside. Raises InputError for theta outside the support, with the number of rows.
        """
        return self._carried(theta, self.transform)

    def to_input(self, theta: Tensor) -> Tensor:
        """z [B, D], theta as a network is told it: of about zero mean and unit variance, without tails at limits.

        Parameters with two limits are as they are, the others as in `transform`; errors as of `to_model`.
        """
        return self._carried(theta, self._input)

    def to_user(self, z: Tensor) -> Tensor:
        """theta [B, D] float32 = transform^-1(z), always inside the support.

        Computed in float64. A number that float32 would round onto a limit, or beyond what it can hold, becomes the
        nearest number inside (the least normal one above a limit of 0). NaN stays NaN.
        """
        return self.box.inward(self.transform.inverse(self._rows(z).double()).float())

    def config(self) -> dict[str, Any]:
        """The prior as JSON: its parts, names and transform; type None where a part is not of a known kind."""
        parts = [law.config() for law in self.laws]
        return {
            "type": None if any(part["type"] is None for part in parts) else "product",
            "parts": parts,
            "names": list(self.names) if self.names else None,
            "transform": self.transform.config(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], prior: Any = None) -> Prior:
        """The prior that `config()` described, with the very transform that it had.

        prior: what the prior was made of, needed where the type is None: a user's object does not go to JSON. Raises
        InputError where it is missing, or has other parameters, limits or arguments than the config says.
        """
        keys = ("type", "parts", "names", "transform")
        if not isinstance(config, Mapping) or set(config) != set(keys) or not isinstance(config["parts"], list | tuple):
            raise InputError(f"prior config is {config!r}; it must be a mapping of {', '.join(keys)}")
        names = tuple(config["names"]) if config["names"] else None
        transform = transforms.from_config(config["transform"])
        if prior is not None:
            found = cls.of(prior)
            if found.config()["parts"] != list(config["parts"]):
                raise InputError(f"prior is {found!r}, and not the one that was saved: {kinds.shown(config['parts'])}")
            return replace(found, transform=transform, names=names)
        if config["type"] is None:
            raise InputError(
                f"prior: it was saved without a part that does not go to JSON ({kinds.shown(config['parts'])}); "
                f"hand in the prior that it was made of"
            )
        laws = [kinds.from_config(part, f"part {number} of the prior") for number, part in enumerate(config["parts"])]
        return cls(tuple(laws), Box.joined([law.box for law in laws]), transform, names)

    def __repr__(self) -> str:
        return f"Prior({kinds.shown([law.config() for law in self.laws])})"

    def _carried(self, theta: Tensor, transform: Transform) -> Tensor:
        theta = self._rows(theta)
        self._refuse_outside(theta, self.box.contains(theta) | self.box.rounds_onto(theta))
        return transform.forward(self.box.inward(theta).double()).to(theta.dtype)

    def _rows(self, theta: Tensor) -> Tensor:
        try:
            rows = torch.as_tensor(theta)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"theta is a {type(theta).__name__}; it must be a tensor [B, {self.dim}]") from None
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise InputError(f"theta has shape {list(rows.shape)}; the prior needs [B, {self.dim}]")
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()

    def _refuse_outside(self, theta: Tensor, taken: Tensor) -> None:
        wrong = ~taken
        if not wrong.any():
            return
        row, column = (int(index) for index in wrong.nonzero()[0])
        name = self.names[column] if self.names else f"parameter {column}"
        raise InputError(
            f"theta: {int(wrong.any(1).sum())} of {len(theta)} rows lie outside the prior's support (the first: row "
            f"{row}, {name} is {float(theta[row, column]):.6g}, not in {self.box.shown(column)})"
        )


def _laws_of(prior: Any) -> list[Law]:
    if isinstance(prior, Prior):
        return list(prior.laws)
    if isinstance(prior, list | tuple):
        if not prior:
            raise InputError(f"prior is {prior!r}; it must have at least one parameter")
        return [law for each in prior for law in _laws_of(each)]
    return [kinds.law_of(prior)]


def assembled(laws: list[Law], names: tuple[str, ...] | None = None) -> Prior:
    """The product of laws, with the transform that normalises or standardises each."""
    box = Box.joined([law.box for law in laws])
    box.inward(torch.zeros(1, box.dim))  # that float32 has numbers inside is seen here, and not at the first draw
    return Prior(tuple(laws), box, _side_by_side(laws, [_transform(law) for law in laws]), names)


def _transform(law: Law) -> Transform:
    return law.normaliser() or _standardising(law)


def _side_by_side(laws: list[Law], parts: list[Transform]) -> Transform:
    if len(parts) == 1:
        return parts[0]
    blocks, start = [], 0
    for law, part in zip(laws, parts, strict=True):
        blocks.append((range(start, start + law.dim), part))
        start += law.dim
    return Blocks(blocks)


def _standardising(law: Law) -> Transform:
    """Limits to infinity, then zero mean and unit variance by the moments of draws; and what is declared is checked."""
    with seeded(0):
        drawn = law.sample(DRAWS)
        noise = torch.randn(DRAWS, law.dim, dtype=torch.float64)
    bad = int((~drawn.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"prior: {bad} of {DRAWS} draws are NaN or infinite; every draw must be finite")
    beyond = (drawn < law.box.low) | (drawn > law.box.high)
    if beyond.any():
        row, column = (int(index) for index in beyond.nonzero()[0])
        raise InputError(
            f"prior: {int(beyond.any(1).sum())} of {DRAWS} draws lie outside the support that it declares (the first: "
            f"{float(drawn[row, column]):.6g}, not in {law.box.shown(column)}); the limits must be those of its draws"
        )
    drawn = law.box.inward(drawn)
    constant = (drawn == drawn[0]).all(0)
    if constant.any():
        raise InputError(
            f"prior: {int(constant.sum())} of {law.dim} parameters do not vary (the first is "
            f"{float(drawn[0, constant][0]):.6g} in all of {DRAWS} draws); leave them out, the simulator can set them"
        )
    _check_density(law.log_prob(drawn), "of its own draws")
    free = Bounded(law.box.low, law.box.high)
    bounded = bool((law.box.low.isfinite() | law.box.high.isfinite()).any())
    where, hint = "points spread over the support that it declares", ""
    if not bounded:
        where = "points spread over all numbers, and it declares no limits"
        hint = "declare low and high (or support, a constraint of torch.distributions); "
    standard = Standardise.fit([free.forward(drawn)])
    whole = Chain([free, standard]) if bounded else standard
    _check_density(
        law.log_prob(law.box.inward(whole.inverse(noise))),
        where,
        f"; {hint}the support must be a product of intervals, the limits of each parameter: where it is none, "
        f"reparametrise",
    )
    return whole


def _between(box: Box) -> Tensor:
    """Which parameters have two limits, bool [D]."""
    return box.low.isfinite() & box.high.isfinite()


_Between = Callable[[Tensor, Tensor], Transform]
"""Of limits low and high, [D]: a transform of what lies between, with which uniform laws have unit variance."""


def _short_tails(low: Tensor, high: Tensor) -> Transform:
    return Probit(low, high, EDGE)


def _as_it_is(low: Tensor, high: Tensor) -> Transform:
    return Standardise((low + high) / 2, (high - low) / math.sqrt(12))


def _with(make: _Between, law: Law) -> Transform:
    """A law with two limits through `make`, standardised by draws unless it is uniform."""
    box, inner = law.box, _between(law.box)
    if isinstance(law, kinds.Univariate) and law.kind == "uniform":
        return make(box.low, box.high)
    parts: list[tuple[list[int], Transform]] = [(inner.nonzero()[:, 0].tolist(), make(box.low[inner], box.high[inner]))]
    if not inner.all():
        parts.append(((~inner).nonzero()[:, 0].tolist(), Bounded(box.low[~inner], box.high[~inner])))
    free = Blocks(parts)
    with seeded(0):
        drawn = law.sample(DRAWS)
    return Chain([free, Standardise.fit([free.forward(box.inward(drawn))])])


def _check_density(log_prob: Tensor, what: str, hint: str = "") -> None:
    for wrong, name in ((log_prob.isnan(), "NaN"), (log_prob == -torch.inf, "-inf")):
        if wrong.any():
            raise InputError(f"prior: log_prob is {name} at {int(wrong.sum())} of {DRAWS} {what}{hint}")
