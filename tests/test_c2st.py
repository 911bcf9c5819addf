"""C2ST against scikit-learn and the toolkit called directly, and against the exact accuracy of two known laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edmund import metrics
from edmund.errors import InputError


def normal(n: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_mlp_is_scikit_learn_called_directly() -> None:
    from sklearn.model_selection import KFold
    from sklearn.neural_network import MLPClassifier

    x, y = normal(150, 2, 1, mean=3.0, std=2.0), normal(150, 2, 2, mean=4.0, std=2.0)
    # the same numbers by another road: torch's moments, and each fold by hand
    center, scale = x.double().mean(0), x.double().std(0)
    rows = torch.cat([(x - center) / scale, (y - center) / scale]).float().numpy()
    target = np.array([0] * 150 + [1] * 150)
    correct = []
    for train, test in KFold(n_splits=5, shuffle=True, random_state=1).split(rows):
        network = MLPClassifier((20, 20), activation="relu", solver="adam", max_iter=10000, random_state=1)
        network.fit(rows[train], target[train])
        correct.append((network.predict(rows[test]) == target[test]).mean())
    assert metrics.c2st(x, y) == pytest.approx(np.mean(correct), abs=1e-12)


def test_rf_is_the_toolkit_s() -> None:
    peer = pytest.importorskip("sbi.utils.metrics", reason="the sbi toolkit is not installed")
    x, y = normal(200, 3, 1).double(), normal(200, 3, 2, std=1.5).double()
    own = metrics.c2st(x, y, "rf", seed=7, folds=4)
    assert own == pytest.approx(float(peer.c2st(x, y, seed=7, n_folds=4)), abs=1e-12)


@pytest.mark.slow
def test_processes_do_not_change_the_number() -> None:
    x, y = normal(60, 2, 1), normal(60, 2, 2, mean=0.7)
    assert metrics.c2st(x, y, "rf", workers=2) == metrics.c2st(x, y, "rf")


def test_units_and_dtype_do_not_matter() -> None:
    x, y = normal(100, 2, 1).double(), normal(100, 2, 2, mean=0.5).double()
    scale = torch.tensor([1e-9, 4.0e3]).double()
    plain = metrics.c2st(x, y, "rf")
    assert metrics.c2st(x * scale, y * scale, "rf") == pytest.approx(plain, abs=0.02)
    assert metrics.c2st(x.numpy(), y.numpy(), "rf") == plain


def test_accuracy_reaches_the_best_possible() -> None:
    """N(0, 1) against N(1, 1): the best classifier, x > 1/2, is right with probability Phi(1/2)."""
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    x, y = normal(2000, 1, 1), normal(2000, 1, 2, mean=1.0)
    assert metrics.c2st(x, y) == pytest.approx(best, abs=0.025)
    # one law: 0.5, with an error of 0.5/sqrt(2 N)
    assert metrics.c2st(x, normal(2000, 1, 3)) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert metrics.c2st(x, y + 100, "rf") == 1.0


def test_bad_input() -> None:
    x, y = normal(20, 2, 1), normal(20, 2, 2)
    with pytest.raises(InputError, match=r"classifier: 'fr' is not known.*mlp, rf"):
        metrics.c2st(x, y, "fr")
    with pytest.raises(InputError, match="reference has 20 samples and samples has 19"):
        metrics.c2st(x, y[:19])
    with pytest.raises(InputError, match="reference has 9 samples; at least 10"):
        metrics.c2st(x[:9], y[:9])
    with pytest.raises(InputError, match=r"samples of shape \(2,\) and samples of \(1,\)"):
        metrics.c2st(x, y[:, :1])
    with pytest.raises(InputError, match="samples has NaN or infinite values in 1 of 20"):
        metrics.c2st(x, torch.where(torch.arange(20)[:, None] == 3, torch.nan, y))
    with pytest.raises(InputError, match="reference is constant in column 1"):
        metrics.c2st(torch.stack([x[:, 0], torch.full((20,), 0.1)], 1), y)
    for keywords in ({"folds": 1}, {"seed": -1}, {"workers": 0}):
        with pytest.raises(InputError, match=next(iter(keywords))):
            metrics.c2st(x, y, **keywords)
