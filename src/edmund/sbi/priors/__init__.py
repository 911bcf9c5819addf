"""Priors: what a user gives, as draws, a density and a bijection to unbounded space."""

from edmund.sbi.priors.document import prior_from_yaml
from edmund.sbi.priors.prior import Prior

__all__ = ["Prior", "prior_from_yaml"]
