"""The digits that every installation has."""

from __future__ import annotations

from edmund.data.arrays import from_arrays
from edmund.data.dataset import DataSet


def digits() -> DataSet:
    """scikit-learn's 1797 handwritten digits: [1, 8, 8] float32 images of whole values 0 to 16, labels 0 to 9.

    The test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI), which ships with
    scikit-learn: nothing is downloaded.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    return from_arrays(
        found.images.astype("float32"),
        found.target,
        class_names=[str(digit) for digit in range(10)],
        value_range=(0.0, 16.0),
    )
