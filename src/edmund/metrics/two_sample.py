"""Classifier two-sample test: can anybody tell the samples from real data?

A classifier is trained on equally many of both and asked about others that it has not seen (Lopez-Paz & Oquab 2017,
arXiv 1610.06545). Its accuracy is 0.5 when the two sets have one law and 1 when they never overlap. Here it is a
support vector machine with a Gaussian kernel, cross-validated: quick, the same on every machine, and on small images
sharp enough to see blur and averages. Below 0.5 the two sets share samples: the copy in the other set teaches the wrong
answer.
"""

from __future__ import annotations

import torch

from edmund.errors import check_count
from edmund.metrics.features import Data, flatten_pair


def two_sample_accuracy(
    first: Data, second: Data, *, seed: int = 0, folds: int = 5, repeats: int = 5, most: int = 1000
) -> float:
    """Cross-validated accuracy of telling `first` [N, *] from `second` [M, *]; 0.5: indistinguishable, 1: apart.

    Each of the `repeats` draws min(N, M, most) samples of either set anew and splits them into stratified `folds`; the
    mean is returned. Its error is about 0.5/sqrt(2 min(N, M)). Errors: fewer than 2 * `folds` samples in a set, values
    that are not finite, samples of different shapes.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    check_count("folds", folds, least=2)
    check_count("repeats", repeats)
    check_count("most", most, least=2 * folds)
    sets = flatten_pair("first", first, "second", second, least=2 * folds)
    size = min(len(sets[0]), len(sets[1]), most)
    target = torch.arange(2).repeat_interleave(size).numpy()
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(repeats):
        drawn = [rows[torch.randperm(len(rows), generator=generator)[:size]].double() for rows in sets]
        shuffle = int(torch.randint(2**31, (), generator=generator))
        splits = StratifiedKFold(folds, shuffle=True, random_state=shuffle)
        # gamma="scale": a kernel as wide as the data, 1/(D variance), so that the units of the data do not matter
        scores.append(cross_val_score(SVC(gamma="scale"), torch.cat(drawn).numpy(), target, cv=splits).mean())
    return float(sum(scores) / repeats)
