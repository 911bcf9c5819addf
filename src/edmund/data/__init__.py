"""Data sets: samples in the user's units and dtype, with their conditions, read a batch at a time on the CPU.

Whatever the data came from, a `DataSet` hands out batches (y [B, *], condition {name: [B, *]}) in the model's layout:
[D] for vectors, [C, H, W] for images and fields. Bytes stay bytes until a batch of them reaches a transform, and
nothing is ever copied to a device but the batch at hand.

    data.digits()                               scikit-learn's 1797 handwritten digits
    data.from_arrays(y, labels, context=...)    arrays and tensors
    data.load("mnist.npz").train                .npz, .npy, a folder of images or a zip of them
    data.wrap(dataset)                          any map-style torch data set
    train, held_out = data.split(dataset, 0.2)  views, stratified by class
    data.moments(train, transform).total_std    sigma_data
"""

from edmund.data.arrays import from_arrays
from edmund.data.dataset import DataSet, batches, moments
from edmund.data.digits import digits
from edmund.data.files import Loaded, load
from edmund.data.images import images
from edmund.data.views import split, unlabelled
from edmund.data.wrap import wrap

__all__ = [
    "DataSet",
    "Loaded",
    "batches",
    "digits",
    "from_arrays",
    "images",
    "load",
    "moments",
    "split",
    "unlabelled",
    "wrap",
]
