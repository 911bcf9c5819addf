"""The laws that a prior is a product of: known ones, any other of torch's distributions, and a user's own object.

A known law is kept as its arguments in float64, goes to JSON, and, where it is (log-)normal or uniform, has a transform
that makes it exactly N(0, I). All others are drawn from and evaluated as they are.
"""

from __future__ import annotations

import functools
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, constraints

from edmund.errors import InputError, unknown
from edmund.sbi.priors import bounds
from edmund.sbi.priors.bounds import Box
from edmund.sbi.seeding import seeded
from edmund.transform import Bounded, Chain, Probit, Standardise, Transform, Whiten

UNIVARIATE: dict[str, tuple[type[Distribution], tuple[str, ...]]] = {
    "beta": (distributions.Beta, ("concentration1", "concentration0")),
    "cauchy": (distributions.Cauchy, ("loc", "scale")),
    "chi2": (distributions.Chi2, ("df",)),
    "exponential": (distributions.Exponential, ("rate",)),
    "gamma": (distributions.Gamma, ("concentration", "rate")),
    "gumbel": (distributions.Gumbel, ("loc", "scale")),
    "half_cauchy": (distributions.HalfCauchy, ("scale",)),
    "half_normal": (distributions.HalfNormal, ("scale",)),
    "inverse_gamma": (distributions.InverseGamma, ("concentration", "rate")),
    "laplace": (distributions.Laplace, ("loc", "scale")),
    "log_normal": (distributions.LogNormal, ("loc", "scale")),
    "normal": (distributions.Normal, ("loc", "scale")),
    "pareto": (distributions.Pareto, ("scale", "alpha")),
    "student_t": (distributions.StudentT, ("df", "loc", "scale")),
    "uniform": (distributions.Uniform, ("low", "high")),
    "weibull": (distributions.Weibull, ("scale", "concentration")),
}
"""Laws of one parameter: torch's class and its arguments, by the names that documents use."""

_ANY_SIGN = {"loc", "low", "high"}
"""The arguments that may be 0 or below; all others are scales, rates and shapes."""


class Law(ABC):
    """The law of `dim` neighbouring parameters."""

    dim: int
    box: Box

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """[n, dim] float64 on the CPU, from the global random stream."""

    @abstractmethod
    def log_prob(self, theta: Tensor) -> Tensor:
        """ln p(theta) of float64 theta [B, dim] inside the box: float64 [B] on theta's device."""

    def normaliser(self) -> Transform | None:
        """The transform that makes the law N(0, I) exactly, where there is one."""
        return None

    def config(self) -> dict[str, Any]:
        """{"type": name, argument: nested lists, ...} of a known law; type None, dim and limits of another."""
        limits = {end: [v if math.isfinite(v) else None for v in getattr(self.box, end).tolist()] for end in _ENDS}
        return {"type": None, "dim": self.dim, **limits}


_ENDS = ("low", "high")


class Evaluated(Law):
    """A law that one of torch's distributions stands for, with its arguments in float64."""

    @abstractmethod
    def _make(self, device: torch.device) -> Distribution:
        """The distribution with its arguments on `device`; it does not check what it is asked about."""

    @functools.cached_property
    def _made(self) -> dict[torch.device, Distribution]:
        return {}

    def _on(self, device: torch.device) -> Distribution:
        if device not in self._made:
            self._made[device] = self._make(device)
        return self._made[device]

    def sample(self, n: int) -> Tensor:
        return self._on(torch.device("cpu")).sample(torch.Size([n])).reshape(n, self.dim)


@dataclass(frozen=True, eq=False)
class Univariate(Evaluated):
    """Independent parameters of one known kind. arguments: float64 [dim] each, on the CPU."""

    kind: str
    arguments: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for argument, value in self.arguments.items():
            wrong = ~value.isfinite() if argument in _ANY_SIGN else ~(value.isfinite() & (value > 0))
            if wrong.any():
                needed = "finite" if argument in _ANY_SIGN else "finite and above 0"
                raise InputError(
                    f"{argument} of {self.kind} is {float(value[wrong][0])!r}; it must be {needed} everywhere"
                )
        if self.kind == "uniform" and not (self.arguments["low"] < self.arguments["high"]).all():
            where = int((self.arguments["low"] >= self.arguments["high"]).nonzero()[0])
            low, high = (float(self.arguments[end][where]) for end in _ENDS)
            raise InputError(f"low of uniform is {low!r} and high is {high!r}; low must be below high")

    @classmethod
    def of(cls, distribution: Distribution) -> Univariate | None:
        """The known law that a distribution with batch axes [] or [dim] is, if it is one."""
        for kind, (known, arguments) in UNIVARIATE.items():
            if type(distribution) is known:
                values = {
                    argument: getattr(distribution, argument)
                    .detach()
                    .to("cpu", torch.float64)
                    .expand(distribution.batch_shape)
                    .reshape(-1)
                    for argument in arguments
                }
                return cls(kind, values)
        return None

    @property
    def dim(self) -> int:  # type: ignore[override]
        return len(next(iter(self.arguments.values())))

    @functools.cached_property
    def box(self) -> Box:  # type: ignore[override]
        support = Box.of(bounds.of_distribution(self._on(torch.device("cpu"))), self.dim)
        if self.kind != "uniform":
            return support
        # torch declares [low, high], but gives high no density.
        return Box(support.low, support.high, support.low_closed, torch.zeros(self.dim, dtype=torch.bool))

    def log_prob(self, theta: Tensor) -> Tensor:
        return self._on(theta.device).log_prob(theta).sum(1)

    def normaliser(self) -> Transform | None:
        if self.kind == "uniform":
            return Probit(self.arguments["low"], self.arguments["high"])
        if self.kind == "normal":
            return Standardise(self.arguments["loc"], self.arguments["scale"])
        if self.kind == "log_normal":
            return Chain([Bounded(0.0), Standardise(self.arguments["loc"], self.arguments["scale"])])
        return None

    def config(self) -> dict[str, Any]:
        return {"type": self.kind} | {argument: value.tolist() for argument, value in self.arguments.items()}

    def _make(self, device: torch.device) -> Distribution:
        make: Callable[..., Distribution] = UNIVARIATE[self.kind][0]
        return make(**{argument: value.to(device) for argument, value in self.arguments.items()}, validate_args=False)


@dataclass(frozen=True, eq=False)
class MultivariateNormal(Evaluated):
    """N(loc, scale_tril scale_tril^T). loc: [dim]; scale_tril: [dim, dim]; both float64, on the CPU."""

    loc: Tensor
    scale_tril: Tensor
    kind: ClassVar[str] = "multivariate_normal"

    @property
    def dim(self) -> int:  # type: ignore[override]
        return len(self.loc)

    @functools.cached_property
    def box(self) -> Box:  # type: ignore[override]
        return Box.of(bounds.of_constraint(constraints.real), self.dim)

    def log_prob(self, theta: Tensor) -> Tensor:
        return self._on(theta.device).log_prob(theta)

    def normaliser(self) -> Transform | None:
        return Whiten(self.loc, self.scale_tril)

    def config(self) -> dict[str, Any]:
        return {"type": self.kind, "loc": self.loc.tolist(), "scale_tril": self.scale_tril.tolist()}

    def _make(self, device: torch.device) -> Distribution:
        return distributions.MultivariateNormal(
            self.loc.to(device), scale_tril=self.scale_tril.to(device), validate_args=False
        )


@dataclass(frozen=True, eq=False)
class OfTorch(Evaluated):
    """Any other distribution made of torch's own parts, with an event of [] or [dim]; evaluated in float64."""

    distribution: Distribution

    @property
    def dim(self) -> int:  # type: ignore[override]
        return math.prod(self.distribution.batch_shape + self.distribution.event_shape)

    @functools.cached_property
    def box(self) -> Box:  # type: ignore[override]
        return Box.of(bounds.of_distribution(self._on(torch.device("cpu"))), self.dim)

    def log_prob(self, theta: Tensor) -> Tensor:
        event = self.distribution.batch_shape + self.distribution.event_shape
        return self._on(theta.device).log_prob(theta.reshape(len(theta), *event)).reshape(len(theta))

    def _make(self, device: torch.device) -> Distribution:
        made: Distribution = _converted(self.distribution, device, {})
        return made


@dataclass(frozen=True, eq=False)
class OfUser(Law):
    """A user's object with `sample(shape)` and `log_prob(theta)`, called as it is: in the type and on the device of its
    own draws, tensors or arrays.
    """

    prior: Any
    dim: int
    box: Box
    like: Tensor
    arrays: bool

    @classmethod
    def of(cls, prior: Any) -> OfUser:
        """The object, its number of parameters found by drawing twice."""
        with seeded(0):
            drawn = _two_draws(prior)
        try:
            like = torch.as_tensor(drawn)
        except (TypeError, ValueError, RuntimeError):
            like = torch.empty(0)
        if like.ndim not in (1, 2) or len(like) != 2 or like.is_complex():
            told = f"a {type(drawn).__name__} of shape {tuple(getattr(drawn, 'shape', ()))}"
            raise InputError(f"prior: sample((2,)) gave {told}; it must be a tensor or an array [2, D]")
        dim = like.numel() // 2
        if dim == 0:
            raise InputError("prior: its draws have 0 parameters; it must have at least one")
        like = like if like.is_floating_point() else like.float()
        return cls(prior, dim, Box.of(_declared(prior, dim), dim), like, isinstance(drawn, np.ndarray))

    def sample(self, n: int) -> Tensor:
        drawn = torch.as_tensor(self.prior.sample(torch.Size([n])))
        if drawn.shape != (n, *self.like.shape[1:]):
            raise InputError(
                f"prior: sample(({n},)) gave shape {tuple(drawn.shape)}; it must be {(n, *self.like.shape[1:])}"
            )
        return drawn.detach().to("cpu", torch.float64).reshape(n, self.dim)

    def log_prob(self, theta: Tensor) -> Tensor:
        rows = self.box.inward(theta.to(self.like.device, self.like.dtype)).reshape(len(theta), *self.like.shape[1:])
        found = torch.as_tensor(self.prior.log_prob(rows.detach().numpy() if self.arrays else rows))
        if found.shape != (len(theta),):
            raise InputError(
                f"prior: log_prob of {len(theta)} rows gave shape {tuple(found.shape)}; it must be ({len(theta)},)"
            )
        return found.to(theta.device, torch.float64)


def law_of(prior: Any) -> Law:
    """The law that a distribution or a user's object is; InputError for what cannot be a prior."""
    if isinstance(prior, Distribution):
        return _of_distribution(prior)
    if not isinstance(prior, type) and all(callable(getattr(prior, name, None)) for name in ("sample", "log_prob")):
        return OfUser.of(prior)
    raise InputError(
        f"prior is {_short(prior)}; it must be a torch distribution, a list of them, or an object with sample(shape) "
        f"and log_prob(theta)"
    )


def merged(laws: Sequence[Law]) -> list[Law]:
    """The same product, with neighbours of one known kind as one law."""
    found: list[Law] = []
    for law in laws:
        last = found[-1] if found else None
        if isinstance(law, Univariate) and isinstance(last, Univariate) and law.kind == last.kind:
            together = {name: torch.cat([last.arguments[name], law.arguments[name]]) for name in law.arguments}
            found[-1] = Univariate(law.kind, together)
        else:
            found.append(law)
    return found


def shown(parts: Sequence[Mapping[str, Any]]) -> str:
    """The parts of a prior's config in a few words, such as "uniform [2], log_normal [1], an object [3]"."""
    sizes = [part.get("dim") or len(next(iter(list(part.values())[1:]))) for part in parts]
    return ", ".join(f"{part['type'] or 'an object'} [{size}]" for part, size in zip(parts, sizes, strict=True))


def from_config(config: Mapping[str, Any], where: str, dim: int | None = None) -> Law:
    """The known law that a mapping of its type and arguments describes; a number stands for every parameter.

    where: what the mapping is, for the messages. dim: the number of parameters that it must have; None: as it has.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        raise InputError(f"{where} is {_short(config)}; it must be a mapping with a type")
    kind = config["type"]
    kinds = [*UNIVARIATE, MultivariateNormal.kind]
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown(f"type of {where}", kind, kinds)
    needed = UNIVARIATE[kind][1] if kind in UNIVARIATE else ("loc", "scale_tril")
    known = needed if kind in UNIVARIATE else ("loc", "scale_tril", "covariance_matrix")
    given = {key: _numbers(f"{key} of {where}", value) for key, value in config.items() if key in known}
    for key in config:
        if key != "type" and key not in known:
            raise unknown(f"key of {where} ({kind})", key, known)
    if kind not in UNIVARIATE:
        return _normal_from(given, where, dim)
    missing = [key for key in needed if key not in given]
    if missing:
        raise InputError(f"{where} ({kind}) lacks {', '.join(missing)}")
    size = dim or max(value.numel() for value in given.values())
    for key, value in given.items():
        if value.ndim > 1 or value.numel() not in (1, size):
            raise InputError(
                f"{key} of {where} has shape {list(value.shape)}; it must be one number, or {size} of them"
            )
    try:
        return Univariate(kind, {key: given[key].reshape(-1).expand(size).clone() for key in needed})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _normal_from(given: Mapping[str, Tensor], where: str, dim: int | None) -> MultivariateNormal:
    scales = [key for key in ("scale_tril", "covariance_matrix") if key in given]
    if "loc" not in given or len(scales) != 1:
        raise InputError(f"{where} ({MultivariateNormal.kind}) needs loc and one of covariance_matrix and scale_tril")
    loc, matrix = given["loc"], given[scales[0]]
    size = dim or loc.numel()
    if loc.shape != (size,) or matrix.shape != (size, size):
        raise InputError(
            f"loc and {scales[0]} of {where} have shapes {list(loc.shape)} and {list(matrix.shape)}; they must be "
            f"[{size}] and [{size}, {size}]"
        )
    if scales[0] == "covariance_matrix":
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) or not torch.allclose(matrix, matrix.mT, rtol=1e-9, atol=0):
            raise InputError(f"covariance_matrix of {where} must be symmetric and positive definite, and is not")
        return MultivariateNormal(loc, factor)
    if matrix.triu(1).any() or not (matrix.diagonal() > 0).all():
        raise InputError(f"scale_tril of {where} must be lower triangular with a diagonal above 0, and is not")
    return MultivariateNormal(loc, matrix)


def _of_distribution(prior: Distribution) -> Law:
    batch, event = prior.batch_shape, prior.event_shape
    # A batch of [1] with a scalar event can only be one parameter; lists of priors are often written so.
    if batch and not (batch == (1,) and event == ()):
        raise InputError(
            f"prior is {_short(prior)} with batch_shape {list(batch)}; its parameters must be one event: "
            f"wrap it in torch.distributions.Independent(prior, {len(batch)})"
        )
    if len(event) > 1 or math.prod(event) == 0:
        raise InputError(f"prior is {_short(prior)} with event_shape {list(event)}; it must be [D], with D at least 1")
    inner = prior
    if isinstance(prior, distributions.Independent) and _plainly_independent(prior):
        inner = prior.base_dist
    known = Univariate.of(inner) if inner.event_shape == () and len(inner.batch_shape) <= 1 else None
    if known is not None:
        return known
    if type(prior) is distributions.MultivariateNormal:
        return MultivariateNormal(
            prior.loc.detach().to("cpu", torch.float64), prior.scale_tril.detach().to("cpu", torch.float64)
        )
    return OfTorch(prior) if _torchs_own(prior) else OfUser.of(prior)


def _plainly_independent(prior: distributions.Independent[Any]) -> bool:
    """Whether nothing of a subclass (BoxUniform is one) changes what is drawn or how dense it is."""
    mine, base = type(prior), distributions.Independent
    return mine.sample is base.sample and mine.rsample is base.rsample and mine.log_prob is base.log_prob


def _torchs_own(value: Any) -> bool:
    """Whether a distribution is built of torch's own distributions and transforms throughout."""
    return all(type(part).__module__.startswith("torch.distributions.") for part in _parts(value, {}).values())


def _parts(value: Any, found: dict[int, Any]) -> dict[int, Any]:
    """The distributions and transforms that `value` is made of, by identity: a transform and its inverse hold each
    other.
    """
    if isinstance(value, list | tuple):
        for each in value:
            _parts(each, found)
    elif isinstance(value, Distribution | distributions.Transform) and id(value) not in found:
        found[id(value)] = value
        for each in vars(value).values():
            _parts(each, found)
    return found


def _converted(value: Any, device: torch.device, made: dict[int, Any]) -> Any:
    """A distribution of torch's own on `device` in float64, that evaluates without checking its arguments.

    made: what has been converted, by the identity of the original.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device, torch.float64 if value.is_floating_point() else value.dtype)
    if isinstance(value, list | tuple):
        return type(value)(_converted(each, device, made) for each in value)
    if isinstance(value, weakref.ref):
        return None  # a transform's memory of its inverse, which it makes again
    if not isinstance(value, Distribution | distributions.Transform):
        return value
    if id(value) not in made:
        copied = made[id(value)] = object.__new__(type(value))
        vars(copied).update({name: _converted(each, device, made) for name, each in vars(value).items()})
        if isinstance(copied, Distribution):
            copied._validate_args = False
    return made[id(value)]


def _two_draws(prior: Any) -> Any:
    """What an object's sample gives for the shape (2,)."""
    try:
        return prior.sample(torch.Size([2]))
    except TypeError as error:
        # denoiser.Gaussian and others have sample(n, seed) and a log_prob too.
        if callable(prior) and callable(getattr(prior, "moments", None)):
            raise InputError(
                f"prior is {_short(prior)}, a denoiser, whose sample takes no shape; it must be the law itself, such "
                f"as MultivariateNormal(mean, covariance)"
            ) from None
        raise InputError(
            f"prior: sample((2,)) raised a TypeError ({_short(str(error))}); it must take a shape and give [*shape, D]"
        ) from error


def _declared(prior: Any, dim: int) -> bounds.Limits:
    """The limits that an object of `dim` parameters declares: by a `support` of torch's constraints, or by `low` and
    `high`.
    """
    try:
        support = getattr(prior, "support", None)
    except NotImplementedError:  # torch's Distribution has the attribute, and raises
        support = None
    if isinstance(support, constraints.Constraint):
        limits = bounds.of_constraint(support)
        for end, limit in zip(_ENDS, limits[:2], strict=True):
            _check_length(f"{end} of the prior's support", limit, dim)
        return limits
    if support is not None:
        raise InputError(f"prior: its support is {_short(support)}; it must be a torch.distributions constraint")
    interval = []
    for end, absent in zip(_ENDS, (-math.inf, math.inf), strict=True):
        given = getattr(prior, end, None)
        value = torch.tensor(absent) if given is None else _numbers(f"{end} of the prior", given, finite=False)
        _check_length(f"{end} of the prior", value, dim)
        interval.append(value)
    return bounds.interval(*interval, low_closed=True, high_closed=True)


def _check_length(argument: str, limit: Tensor, dim: int) -> None:
    if limit.shape not in ((), (1,), (dim,)):
        raise InputError(
            f"{argument} has shape {list(limit.shape)} and its draws have {dim} parameters; it must be one number, or "
            f"{dim} of them"
        )


def _numbers(argument: str, value: Any, finite: bool = True) -> Tensor:
    """Numbers, however nested, as float64; YAML's 1e-3, which it takes for a text, is a number here too."""

    def read(each: Any) -> Any:
        if isinstance(each, bool):
            raise TypeError
        return [read(item) for item in each] if isinstance(each, list | tuple) else float(each)

    try:
        whole = value if isinstance(value, Tensor | np.ndarray) else read(value)
        found = torch.as_tensor(whole, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.tensor(math.nan)
    if found.isnan().any() or (finite and found.isinf().any()) or found.numel() == 0:
        raise InputError(f"{argument} is {_short(value)}; it must be a number or a list of numbers")
    return found


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
