"""Evaluating a finished run, or a weights file, on labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from comvex import run_folder
from comvex.data.loading import evaluation_loader
from comvex.data.sources import DataSet, open_data
from comvex.errors import UserError
from comvex.inference.evaluate import evaluate
from comvex.inference.predictor import Predictor, load


def evaluation_data(source: str | Path, data: str | None) -> DataSet:
    """The data set asked for, or else the one that the run ``source`` was trained on, split as it was there.

    Raises ``ValueError`` if none is asked for and ``source`` is no run.
    """
    run = Path(source)
    if not (run / run_folder.RECIPE).exists():
        if data is None:
            raise UserError(f"{source} is no run folder: --data must say what to evaluate it on.")
        return open_data(data)
    recipe = run_folder.read_recipe(run)
    split = {name: recipe[name] for name in ("split_seed", "fraction", "val_fraction")}
    return open_data(data if data is not None else recipe["data"], **split)


def evaluation_folder(source: str | Path) -> Path:
    """Where the pictures of an evaluation go: into the run, beside a weights file, or here for a model by name."""
    path = Path(source)
    return (path if path.is_dir() else path.parent if path.is_file() else Path()) / "evaluation"


def check_task(predictor: Predictor, data: DataSet) -> None:
    """Raises ``ValueError`` if the model was not trained to answer what the labels of the data say."""
    if data.multi_label != predictor.task.multi_label:
        kinds = {True: "any number of classes", False: "one class"}
        raise UserError(
            f"The model was trained on pictures with {kinds[predictor.task.multi_label]} each, but those of "
            f"{data.name} have {kinds[data.multi_label]} each."
        )
    if data.classes != predictor.labels:
        missing = [name for name in data.classes if name not in predictor.labels]
        detail = (
            f"it does not know {missing[0]!r}"
            if missing
            else f"it has {len(predictor.labels)}, in another order or number"
        )
        raise UserError(f"The model's classes are not those of {data.name}: {detail}.")


def evaluate_run(
    source: str | Path,
    *,
    data: str | None = None,
    part: str = "test",
    out: Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate and draw the confusion matrix, or for a multi-label model the average precision of every class.

    Returns the figures: top1 and top5, or mean_average_precision and average_precision by class, in percent. The
    picture goes to ``out``, by default RUN/evaluation/DATA-PART/confusion.png or average_precision.png; one that is
    there already is kept unless ``overwrite``.

    Raises ``ValueError`` if the run, the data or the part is missing, or the classes differ.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1.")
    predictor = load(source, device=device)
    pictures_of = evaluation_data(source, data)
    check_task(predictor, pictures_of)
    pictures = pictures_of.read_at(full_depth=predictor.preprocessing.full_depth).part(part)
    channels = predictor.preprocessing.channels
    loader = evaluation_loader(
        pictures, predictor.transform, channels=channels, batch_size=batch_size, workers=workers
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(f"evaluating {len(pictures)} pictures", total=len(pictures))
        evaluation = evaluate(
            predictor.model,
            loader,
            task=predictor.task,
            num_classes=len(predictor.labels),
            device=predictor.device,
            advance=lambda count: progress.advance(task, count),
        )
    folder = out or evaluation_folder(source) / f"{pictures_of.name}-{part}"
    picture = predictor.task.picture
    file = folder / f"{picture}.png"
    kept = file.exists() and not overwrite
    if not kept:
        what = f"{pictures_of.name}, {evaluation.num_pictures} {part} pictures"
        evaluation.scores.draw(predictor.labels, file, pictures=what)
    return {
        "source": str(source),
        "data": pictures_of.name,
        "part": part,
        "num_pictures": evaluation.num_pictures,
        "num_unreadable": len(evaluation.unreadable),
        "unreadable": evaluation.unreadable,
        **evaluation.scores.summary(),
        **evaluation.scores.by_class(predictor.labels),
        "loss": evaluation.loss,
        "seconds": evaluation.seconds,
        "pictures_per_second": evaluation.pictures_per_second,
        f"{picture}_picture": str(file),
        f"{picture}_picture_kept": kept,
    }
