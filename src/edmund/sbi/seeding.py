"""The global random streams, lent out: a simulator or a prior that knows no generator draws from them, reproducibly."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global streams of torch (all devices), NumPy and Python start from `seed`; after, they are as before.

    The streams belong to the process: its threads take turns.
    """
    with _ONE_AT_A_TIME:
        had_cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        state = np.random.get_state(), random.getstate()  # noqa: NPY002  # it is the global stream that users draw from
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if had_cuda else []):
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                random.seed(seed)
                yield
        finally:
            np.random.set_state(state[0])  # noqa: NPY002
            random.setstate(state[1])
            if not had_cuda and torch.cuda.is_available():
                # A device that nobody had started was, or will be, started from our seed: give it the user's.
                torch.cuda.manual_seed_all(torch.initial_seed())
