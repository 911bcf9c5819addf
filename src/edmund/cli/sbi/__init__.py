"""`edmund sbi`: posteriors from simulations."""
