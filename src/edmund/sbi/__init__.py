"""Simulation-based inference: p(theta | x) from simulations, with the diagnostics that say whether to trust it."""
