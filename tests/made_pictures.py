"""Pictures made for the tests, whose coloured shapes say what their labels are, and a recipe that learns them."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from comvex.data.augmentation import Augmentation
from comvex.training.recipe import Architecture, Recipe

COLOURS = {"circle": (230, 60, 60), "square": (60, 200, 60), "stripe": (60, 80, 240)}


def shape_pictures(root: Path, *, num: int) -> Path:
    """``num`` pictures of 256 x 128 pixels with none to three shapes, four to a group; returns their CSV file."""
    root.mkdir()
    generator = np.random.default_rng(0)
    with (root / "shapes.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "group"])
        for index in range(num):
            shapes = [name for name in COLOURS if generator.random() < 0.4]
            picture = Image.new("RGB", (128, 256), (40, 40, 40))
            draw = ImageDraw.Draw(picture)
            for name in shapes:
                x, y = (int(generator.integers(0, side - 40)) for side in picture.size)
                if name == "circle":
                    draw.ellipse((x, y, x + 36, y + 36), fill=COLOURS[name])
                elif name == "square":
                    draw.rectangle((x, y, x + 36, y + 36), fill=COLOURS[name])
                else:
                    draw.rectangle((0, y, 127, y + 12), fill=COLOURS[name])
            picture.save(root / f"{index}.png")
            writer.writerow([f"{index}.png", ";".join(shapes), f"roll {index // 4}"])
    return root / "shapes.csv"


def multi_label_recipe(data: Path) -> Recipe:
    """Trains a very small ConViT on pictures that are not square, in seconds."""
    return Recipe(
        data=str(data),
        model=Architecture(dim=32, num_local_layers=2, num_nonlocal_layers=1, image_size=(256, 128), patch_size=32),
        augment=Augmentation(rotation=0, translation=0, zoom=0, random_erasing=0),
        epochs=12,
        batch_size=8,
        learning_rate=3e-3,
    )
