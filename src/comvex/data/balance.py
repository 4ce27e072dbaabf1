"""Weights for data whose classes are of uneven size."""

import numpy as np
from numpy.typing import NDArray


def class_weights(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float32]:
    """How much each class counts in the loss so that common and rare ones count the same: (num_classes,).

    Of ``labels`` (num_pictures,) the weight is inversely proportional to the size of the class, and one on the average
    over the pictures; of multi-label ones (num_pictures, num_classes) it is the number of pictures without the class
    for each one with it, to count its positives by (``pos_weight`` of the binary cross-entropy). A class without
    pictures has the weight 1.
    """
    if labels.ndim == 2:
        num_positive = labels.sum(axis=0, dtype=np.int64)
        weights = (len(labels) - num_positive) / np.maximum(num_positive, 1)
        return np.where((num_positive == 0) | (num_positive == len(labels)), 1, weights).astype(np.float32)
    sizes = np.bincount(labels, minlength=num_classes)
    even = len(labels) / np.count_nonzero(sizes) if len(labels) else 1.0
    return np.where(sizes > 0, even / np.maximum(sizes, 1), 1).astype(np.float32)


def sampling_weights(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """How often each picture should be shown so that every class is shown equally often: (num_pictures,), mean one.

    ``labels`` is (num_pictures,).
    """
    return class_weights(labels, num_classes).astype(np.float64)[labels]
