"""Which of a model's classes are those of a data set, whatever names and order the two have them in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comvex.data.sources import DataSet
from comvex.errors import UserError


def match_classes(labels: Sequence[str], data: DataSet) -> NDArray[np.int64]:
    """For each class of the data the number of the model's class that is the same: (num_classes of the data,).

    ``labels`` are the model's classes. The data may have some of them only, in any order. ImageNet's classes may be
    called by description or by WordNet id on either side.

    Raises ``ValueError`` for a class that the model does not know, or of whose name it has two.
    """
    if tuple(labels) == data.classes:
        return np.arange(len(labels))
    names = data.classes
    if data.class_ids:
        known_ids = imagenet_ids(labels)
        names = data.class_ids if known_ids or set(data.class_ids) <= set(labels) else names
        labels = known_ids or labels
    place = {name: index for index, name in enumerate(labels)}
    for name, shown in zip(names, data.classes, strict=True):
        if name not in place:
            raise UserError(
                f"The model's classes are not those of {data.name}: it does not know {shown!r}; it knows "
                f"{', '.join(map(repr, labels[:5]))}{' and others' if len(labels) > 5 else ''}."
            )
        if labels.count(name) > 1:
            raise UserError(f"The model has {labels.count(name)} classes called {shown!r}: {data.name} has one.")
    return np.array([place[name] for name in names], dtype=np.int64)


def imagenet_ids(labels: Sequence[str]) -> tuple[str, ...]:
    """ImageNet-1k's 1,000 WordNet ids if ``labels`` are their descriptions, in that order; else empty."""
    if len(labels) != 1000:
        return ()
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.label_names()) if list(labels) == info.label_descriptions() else ()
