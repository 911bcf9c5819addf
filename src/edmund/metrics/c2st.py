r"""C2ST: the accuracy by which the literature of simulation-based inference compares posteriors.

A classifier is trained to tell reference posterior samples from an algorithm's (Lopez-Paz & Oquab 2017, arXiv
1610.06545; Lueckmann et al. 2021, arXiv 2101.04653); 0.5 means that it cannot, 1 that the two never overlap. The number
belongs to the classifier: two are in use, fixed here to the letter so that scores can be set beside published ones,
and not comparable with each other. `mlp` is that of the benchmark sbibm, a small smooth network (the sbi toolkit's own
`mlp` is another: it stops early). `rf`, a random forest, sees finer structure: jitter as wide as two_moons' ring scores
mlp 0.49, rf 0.54. For images and sets of unequal size see `two_sample_accuracy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edmund.errors import InputError, check_count, unknown
from edmund.metrics.features import Data, flatten_pair

CLASSIFIERS = ("mlp", "rf")


def c2st(
    reference: Data,
    samples: Data,
    classifier: str = "mlp",
    *,
    seed: int = 1,
    folds: int = 5,
    workers: int = 1,
) -> float:
    """Cross-validated accuracy of telling `samples` [N, D] from `reference` [N, D]; 0.5: indistinguishable, 1: apart.

    Both are z-scored with the mean and standard deviation (N - 1) of the reference, then held in float32. `mlp`:
    scikit-learn's MLPClassifier, two hidden layers of 10 D rectified units, Adam, at most 10 000 epochs, `seed`; `rf`:
    its RandomForestClassifier, defaults, `seed`. The mean accuracy over `folds` of one shuffled, unstratified division
    by `seed` is returned; its error is about 0.5/sqrt(2 N). The published numbers are at N = 10 000, 5 folds, seed 1.

    workers: processes that train folds at a time; the number does not depend on it (but for rounding where the linear
    algebra library's own threads add up in another order). Errors: fewer than 2 `folds` samples, sets of unequal size
    (whose chance accuracy is not 0.5), a reference column that is constant, what `flatten_pair` checks.
    """
    from sklearn.model_selection import KFold, cross_val_score

    if classifier not in CLASSIFIERS:
        raise unknown("classifier", classifier, CLASSIFIERS)
    check_count("seed", seed, least=0)
    check_count("folds", folds, least=2)
    check_count("workers", workers)
    first, second = (
        rows.double().numpy() for rows in flatten_pair("reference", reference, "samples", samples, least=2 * folds)
    )
    if len(first) != len(second):
        raise InputError(
            f"reference has {len(first)} samples and samples has {len(second)}; they must be as many, "
            "for 0.5 to mean indistinguishable"
        )
    mean, std = first.mean(0), first.std(0, ddof=1)
    constant = np.flatnonzero(first.max(0) == first.min(0))
    if len(constant):
        raise InputError(f"reference is constant in column {constant[0]}; a z-score needs values that vary")
    rows = ((np.concatenate([first, second]) - mean) / std).astype(np.float32)
    target = np.repeat([0, 1], len(first))
    splits = KFold(folds, shuffle=True, random_state=seed)
    judge = _classifier(classifier, rows.shape[1], seed)
    return float(cross_val_score(judge, rows, target, cv=splits, scoring="accuracy", n_jobs=workers).mean())


def _classifier(name: str, dim: int, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neural_network import MLPClassifier

    if name == "rf":
        return RandomForestClassifier(random_state=seed)
    return MLPClassifier(
        activation="relu", hidden_layer_sizes=(10 * dim, 10 * dim), solver="adam", max_iter=10_000, random_state=seed
    )
