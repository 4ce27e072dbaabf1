"""ConViT in two minutes, with nothing but what the installed packages bring.

Builds ConViT-Ti of the paper and runs it on a photograph; then trains a small ConViT on handwritten digits, lets it
classify pictures that it has not seen, and draws what it says and where its class token looks.

    python examples/ConViT/demo.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import comvex
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.analysis import class_token_attention
from comvex.data.picture_set import PictureSet
from comvex.data.sources import open_data
from comvex.data.transforms import Preprocessing
from comvex.explain.gallery import Exhibit, draw_gallery
from comvex.inference.predictor import Predictor
from comvex.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from comvex.training.recipe import Recipe
from comvex.training.trainer import train


def run_preset_on_photograph() -> None:
    """A preset takes a photograph of any shape whose sides are multiples of 16."""
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    model = ConViTWithLinearClassifier(ConViTConfig.ConViT_Ti()).eval()
    for height, width in ((224, 224), (416, 640)):
        preprocessing = Preprocessing((height, width), channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        picture = preprocessing.transform()(photograph)[None]
        start = time.perf_counter()
        with torch.inference_mode():
            logits = model(picture)
        milliseconds = 1000 * (time.perf_counter() - start)
        print(
            f"ConViT-Ti on a photograph of {height} x {width} pixels: {logits.shape[1]} logits in {milliseconds:.0f} ms"
        )


def choose_exhibits(predictor: Predictor, pictures: PictureSet, *, num: int) -> list[Exhibit]:
    """Pictures to show: the least certain mistakes first, if there are any, then one of each class."""
    originals = [pictures.read(index, channels=1) for index in range(len(pictures))]
    probabilities = predictor.probabilities(originals).numpy()  # (num_pictures, num_classes)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != pictures.labels)[:2]
    first_of_class = [int(np.flatnonzero(pictures.labels == label)[0]) for label in range(len(predictor.labels))]
    chosen = [*wrong.tolist(), *first_of_class][:num]

    inputs = torch.stack([predictor.transform(originals[index]) for index in chosen])
    attention = class_token_attention(predictor.model, inputs)[-1].mean(dim=1)  # (num, H, W), mean over heads
    exhibits = []
    for index, looks in zip(chosen, attention.numpy(), strict=True):
        best = probabilities[index].argsort()[::-1][:3]
        exhibits.append(
            Exhibit(
                picture=originals[index],
                attention=looks,
                labels=[predictor.labels[label] for label in best],
                probabilities=probabilities[index][best].tolist(),
                truth=predictor.labels[pictures.labels[index]],
            )
        )
    return exhibits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="where to save the figure")
    parser.add_argument("--epochs", type=int, default=None, help="fewer than the default train faster and worse")
    options = parser.parse_args()

    run_preset_on_photograph()

    recipe = Recipe(epochs=options.epochs)
    with tempfile.TemporaryDirectory() as folder:
        print("Training a small ConViT on scikit-learn's handwritten digits ...")
        summary = train(recipe, Path(folder) / "run")
        predictor = comvex.load(Path(folder) / "run")
    print(f"{summary['top1']:.1f} % of {summary['num_pictures']} digits that it had not seen are classified rightly.")

    data = open_data("digits", split_seed=recipe.split_seed)
    exhibits = choose_exhibits(predictor, data.part("test"), num=10)
    title = f"A small ConViT on digits it has not seen: top-1 {summary['top1']:.1f} %"
    draw_gallery(exhibits, options.out, title=title)
    print(f"The figure is {options.out}.")


if __name__ == "__main__":
    main()
