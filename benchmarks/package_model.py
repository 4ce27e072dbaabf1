"""Turn a finished run on Fashion-MNIST into the model that is part of comvex.

Writes weights (float32) with their config.json, a model card, the recipe, and a test picture of each class into
src/comvex/packaged/convit_fashion_mnist, in place of what is there. Everything that the card says is measured on the
files as they are written: about a minute.

    python benchmarks/package_model.py runs/mine
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import comvex
from comvex import run_folder
from comvex.cli import parse
from comvex.commands.train import Train
from comvex.convit import load_model, save_weights
from comvex.convit.model_card import MARK, model_card
from comvex.convit.published import PACKAGED, PACKAGED_FOLDER, WEIGHTS_NAME
from comvex.convit.weights import add_figures
from comvex.data.picture_set import PictureSet
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.files import temporary_beside, write_text
from comvex.inference.predictor import Predictor, load
from comvex.inference.run_evaluation import evaluate_run
from comvex.processor import processor_name
from comvex.training.recipe import Recipe, train_command

NAME = "convit_fashion_mnist"
LICENCE = "apache-2.0"
CARD, RECIPE = "README.md", "training.json"
LARGEST = 5_000_000
"""Bytes of all files together."""
PLACEHOLDER = (
    "**This is a placeholder.** It was trained for a moment, on some of the pictures, so that the commands can be\n"
    "built and tested; its figures say nothing about ConViT. The model that belongs here takes its place.\n"
)
PICTURES_LICENCE = """\
The pictures in this folder are from Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def package(run: Path, out: Path, *, placeholder: bool, machine: str) -> dict[str, Any]:
    """Write the packaged model of a run into the folder ``out``; returns the figures of its config.json.

    What is in ``out`` goes once the new files are complete. Raises ``ValueError`` if the run is not finished, was not
    trained on the data that the model is named for, or is too large, and if ``out`` holds something else.
    """
    if out.exists() and not (out / RECIPE).is_file():
        raise UserError(f"{out} is there already and is no packaged model: choose another --out.")
    recipe, summary = read_run(run)
    command = command_of(recipe)
    folder = temporary_beside(out)
    try:
        write_weights(run, folder / WEIGHTS_NAME)
        data = open_data(PACKAGED[NAME])
        write_pictures(data.part("test"), data.classes, folder / "pictures")
        measured, by_class = measure(folder / WEIGHTS_NAME, data.part("test"))
        figures = measured | {"measured_on": f"{time.strftime('%Y-%m-%d')}, {machine}"}
        add_figures(folder / WEIGHTS_NAME, figures | ({"placeholder": True} if placeholder else {}))
        training = {
            "command": command,
            "comvex": comvex.__version__,
            "num_training_pictures": summary["num_training_pictures"],
            "seconds": summary["seconds"],
            "machine": summary["machine"],
            "recipe": recipe.to_dict(),
        }
        write_text(folder / RECIPE, json.dumps(training, indent=2) + "\n")
        write_text(folder / CARD, card(folder, training, by_class, placeholder=placeholder))
        (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors writes it for its owner alone
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > LARGEST:
            raise UserError(f"The packaged model has {size:,} bytes: it must have at most {LARGEST:,}.")
        shutil.rmtree(out, ignore_errors=True)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def read_run(run: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, as one that tests too, and the summary of a finished run; raises ``ValueError`` if it is none."""
    recipe, summary = Recipe.from_dict(run_folder.read_recipe(run)), run_folder.read_summary(run)
    if summary is None:
        raise UserError(f"The run {run} is not finished: repeat its comvex train.")
    if recipe.data != PACKAGED[NAME]:
        raise UserError(f"The run {run} was trained on {recipe.data}: {NAME} must be trained on {PACKAGED[NAME]}.")
    return dataclasses.replace(recipe, test=True), summary


def write_weights(run: Path, file: Path) -> None:
    """The weights that the run kept, in float32 with what is known of them."""
    model = load_model(run).float()
    assert model.info is not None
    kept = {name: value for name, value in model.info.figures.items() if not name.startswith("test_")}
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    info = dataclasses.replace(model.info, licence=LICENCE, figures=kept | {"num_parameters": num_parameters})
    save_weights(model, file, info=info)


# The command that trains it again


def command_of(recipe: Recipe) -> str:
    """The ``comvex train`` that has exactly this recipe."""
    command = train_command(recipe.to_dict(), Path("runs") / NAME)
    _, *words = shlex.split(command)
    parsed = parse(words)
    assert isinstance(parsed, Train)
    assert parsed.recipe == recipe, f"{command} is another recipe"
    return command


# Measuring


def measure(weights: Path, pictures: PictureSet) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures on the test pictures as they are, enlarged ten times, and inverted; and a row for each class."""
    with tempfile.TemporaryDirectory() as nowhere:
        found = evaluate_run(weights, data=PACKAGED[NAME], out=Path(nowhere), device="cpu")
    predictor = load(weights, device="cpu")
    num = found["num_pictures"]
    figures = {
        "test_top1": found["top1"],
        "test_top5": found["top5"],
        "test_loss": found["loss"],
        "test_pictures": num,
        "test_right": round(found["top1"] * num / 100),
        "test_calibration_error": found["calibration_error"],
        "enlarged_test_top1": changed_top1(predictor, pictures, lambda picture: picture.resize((280, 280))),
        "inverted_test_top1": changed_top1(predictor, pictures, ImageOps.invert),
    }
    return figures, found["by_class"]


def changed_top1(predictor: Predictor, pictures: PictureSet, change: Callable[[Image.Image], Image.Image]) -> float:
    """Percentage of right answers when every picture is changed, and made RGB as most files are, before it is read."""
    num_right = 0
    for indices in np.array_split(np.arange(len(pictures)), 100):
        changed = [change(Image.fromarray(pictures.pictures[index])).convert("RGB") for index in indices]  # pyright: ignore
        answers = predictor.probabilities(changed).argmax(dim=1).numpy()
        num_right += int((answers == pictures.labels[indices]).sum())
    return 100 * num_right / len(pictures)


def write_pictures(pictures: PictureSet, classes: tuple[str, ...], folder: Path) -> None:
    """The first picture of each class as a PNG, called by number and class, and their licence."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, index in enumerate(np.unique(pictures.labels, return_index=True)[1]):
        name = re.sub(r"\W+", "-", classes[label].lower())
        Image.fromarray(pictures.pictures[index]).save(folder / f"{label}-{name}.png", optimize=True)
    write_text(folder / "LICENSE", PICTURES_LICENCE)


# The card


def card(folder: Path, training: dict[str, Any], by_class: list[dict[str, Any]], *, placeholder: bool) -> str:
    """The model card: the one of every model of comvex, and what is to be said of this one."""
    model = load_model(folder / WEIGHTS_NAME)
    assert model.info is not None
    figures = model.info.figures
    start = model_card(model.config, model.info, repository=NAME).replace(f"{MARK}\n", "")
    what = "A ConViT ([d'Ascoli"
    assert start.count(what) == 1
    if placeholder:
        start = start.replace(what, f"{PLACEHOLDER}\n{what}")
    classes = "\n".join(f"| {row['class']} | {row['top1']:.2f} % |" for row in by_class)
    return f"""{start}
```bash
comvex predict {NAME}                        # the ten pictures that come with it, or: ... photo.jpg
comvex evaluate {NAME} --data fashion-mnist  # the figures above
```

## What to expect

It knows ten kinds of clothing as Fashion-MNIST shows them: one piece, light on black, grey, in the middle of 28 x 28
pixels. Every picture gets one of the ten classes, whatever it shows; a high probability does not mean that it shows
clothing.

- A picture of another size, or in colour, is made grey, its shorter side becomes 28 pixels, and the middle is kept.
  That does little harm to what is light on black: with the test pictures enlarged to 280 x 280 pixels in RGB, top-1 is
  {figures["enlarged_test_top1"]:.2f} %.
- Dark on white, as shops show it: {inverted_words(figures["inverted_test_top1"], training["recipe"]["augment"])}
- Photographs of people, rooms, or anything in front of a background are not what it is for. For pictures of your own
  train a model on them, `comvex train --data FOLDER`, if you like with `--weights {NAME}` to start from.

| class | top-1 accuracy on the test pictures |
| --- | --- |
{classes}

## Data

Fashion-MNIST ([Xiao, Rasul and Vollgraf, 2017](https://arxiv.org/abs/1708.07747), MIT licence): 60,000 training and
10,000 test pictures of clothing, grey, 28 x 28 pixels, ten classes. It was trained on
{training["num_training_pictures"]:,} of the training pictures; {validation_words(training["recipe"]["select"])}. The
figures above are of the test pictures; `pictures/` has the first of each class.

## Training

```bash
{training["command"]}
```

The values of the recipe are in `{RECIPE}`. It took {training["seconds"] / 60:.0f} minutes: {training["machine"]}.
{processes_words(training["machine"])}The figures were measured on {figures["measured_on"]}, by
`python benchmarks/package_model.py RUN`.

## Licence

The weights are, like comvex, under the Apache License 2.0. The pictures in `pictures/` are Zalando's, under the MIT
licence beside them. The SHA-256 of the weights is in `config.json` and is checked whenever they are loaded.
"""


def validation_words(select: str) -> str:
    """What the other training pictures were for; see ``Recipe.select``."""
    if select == "best":
        return "the others, set aside for validation, chose the epoch"
    return "the others, set aside for validation,\nshowed how it went, and the last epoch was kept"


def processes_words(machine: str) -> str:
    """How the command was run, if it was by several processes; see ``RunRecord`` for what it says of the machine."""
    found = re.search(r"(\d+) processes", machine)
    if found is None or found[1] == "1":
        return ""
    command = f"torchrun --nproc-per-node {found[1]} -m comvex train ... --threads 1"
    return (
        f"It was run as `{command}`: each process draws dropout\n"
        "for itself, so a single one ends a little differently.\n"
    )


def inverted_words(top1: float, augment: dict[str, Any]) -> str:
    """What is to be expected of a picture that is dark on white, and why."""
    found = f"with the test pictures inverted, top-1 is\n  {top1:.2f} %."
    if augment["auto_augment"]:
        return f"RandAugment showed it some pictures inverted; {found}"
    return f"it has not seen that; {found} Invert such a picture first (`PIL.ImageOps.invert`)."


def this_machine() -> str:
    """Processor, cores and PyTorch, for figures to stand beside."""
    return f"{processor_name()}, {os.cpu_count()} cores, PyTorch {torch.__version__.partition('+')[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run folder of comvex train")
    parser.add_argument("--placeholder", action="store_true", help="the card says that it is not the model to be")
    parser.add_argument("--out", type=Path, default=PACKAGED_FOLDER / NAME, help="folder that is replaced")
    parser.add_argument(
        "--machine",
        default=this_machine(),
        help="where it is measured; default: this machine",
    )
    options = parser.parse_args()
    try:
        figures = package(options.run, options.out, placeholder=options.placeholder, machine=options.machine)
    except UserError as error:
        raise SystemExit(f"package_model: {error}") from error
    print(f"{options.out}: {figures['test_right']} of {figures['test_pictures']} test pictures are right")


if __name__ == "__main__":
    main()
