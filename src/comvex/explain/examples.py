"""Pictures that the browser page offers to begin with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from comvex.convit.published import packaged_pictures
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.explain.seen import as_8_bit
from comvex.inference.predictor import Predictor
from comvex.run_folder import read_recipe

NUM_EXAMPLES = 5
IN_MEMORY = ("digits", "fashion-mnist", "cifar10", "cifar100")
"""Data whose pictures are at hand within a second."""


def example_pictures(source: str | Path, predictor: Predictor) -> tuple[list[tuple[Image.Image, str]], str]:
    """Pictures with their names, at least one: test pictures of a run's data, those that come with a packaged model, or
    else scikit-learn's photographs.

    The second is a sentence that says why they are not the run's own, or nothing.
    """
    if files := packaged_pictures(source):
        return [
            (as_8_bit(predictor.read(file)), label) for file, label in zip(files, predictor.labels, strict=True)
        ], ""
    folder = Path(source)
    if not folder.is_dir() or not (folder / "recipe.json").is_file():
        return photographs(), ""
    recipe = read_recipe(folder)
    name = str(recipe["data"])
    if name not in IN_MEMORY and not Path(name).exists():
        return photographs(), f"The examples are scikit-learn's photographs: the run's data {name} are not at hand."
    try:
        return of_data(name, predictor, split_seed=recipe.get("split_seed", 0)), ""
    except UserError as error:
        return photographs(), f"The examples are scikit-learn's photographs, as the run's data cannot be read. {error}"


def of_data(name: str, predictor: Predictor, *, split_seed: int) -> list[tuple[Image.Image, str]]:
    """A test picture of each of the first classes, or just the first ones if a picture may have several labels."""
    data = open_data(name, split_seed=split_seed)
    part = data.test if data.test is not None and len(data.test) else data.val
    assert part is not None
    if part.multi_label:
        chosen = list(range(min(NUM_EXAMPLES, len(part))))
    else:
        chosen = [int(index) for index in np.unique(part.labels, return_index=True)[1][:NUM_EXAMPLES]]
    found = []
    for index in chosen:
        labels = np.flatnonzero(part.labels[index]) if part.multi_label else [part.labels[index]]
        text = ", ".join(data.classes[label] for label in labels) or "none"
        picture = as_8_bit(part.read(index, channels=predictor.preprocessing.channels))
        found.append((picture, text))
    return found


def photographs() -> list[tuple[Image.Image, str]]:
    """Scikit-learn's two."""
    from sklearn.datasets import load_sample_image

    return [(Image.fromarray(load_sample_image(f"{name}.jpg")), name) for name in ("flower", "china")]
