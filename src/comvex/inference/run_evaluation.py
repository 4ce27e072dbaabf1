"""Evaluating a finished run, or a weights file, on labelled pictures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comvex import run_folder
from comvex.convit.analysis import without_position_embedding
from comvex.convit.config import ConViTConfig, as_pair
from comvex.convit.model import ConViTBackbone
from comvex.data.loading import evaluation_loader
from comvex.data.picture_set import PictureSet
from comvex.data.sources import DataSet
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.files import check_writable, write_table, write_text
from comvex.inference.calibration import draw_reliability
from comvex.inference.classes import match_classes
from comvex.inference.evaluate import Evaluation, evaluate
from comvex.inference.exported import ExportedModel
from comvex.inference.predictor import Predictor, open_predictor
from comvex.inference.processes import place_and_number
from comvex.inference.run_data import Part, evaluation_data, run_of
from comvex.inference.task import Task
from comvex.terminal import progress_bar


@dataclass(frozen=True)
class Changes:
    """What is done otherwise than the weights say; None leaves it to them."""

    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or (height, width)."""
    crop_pct: float | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    mask_position_embedding: bool = False

    def preprocessing(self, given: Preprocessing) -> Preprocessing:
        """That of the weights with the changes; raises ``ValueError`` for values that are not possible."""
        changed = {
            name: getattr(self, name) for name in ("crop_pct", "interpolation") if getattr(self, name) is not None
        }
        if self.image_size is not None:
            changed["image_size"] = as_pair(self.image_size)
        return replace(given, **changed)

    def words(self) -> list[str]:
        """The changes as parts of a folder's name."""
        size = [] if self.image_size is None else ["{}x{}".format(*as_pair(self.image_size))]
        crop = [] if self.crop_pct is None else [f"crop{self.crop_pct:g}"]
        masked = ["masked"] if self.mask_position_embedding else []
        return [*size, *crop, *([self.interpolation] if self.interpolation else []), *masked]


def chosen_parts(data: DataSet, part: Part) -> list[PictureSet]:
    """The pictures to evaluate on; raises ``ValueError`` if there are none."""
    if part != "all":
        return [data.part(part)]
    return [pictures for pictures in (data.train, data.val, data.test) if pictures is not None and len(pictures)]


def evaluation_folder(source: str | Path) -> Path:
    """Where the files of an evaluation go: into the run, beside a weights file, or here for a model by name."""
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


class Reordered(nn.Module):
    """A model whose logits (B, num_classes) come in another order, or only some of them: (B, len(order))."""

    def __init__(self, model: nn.Module, order: NDArray[np.int64]) -> None:
        super().__init__()
        self.model, self.order = model, torch.from_numpy(order)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures)[:, self.order]


def evaluate_run(
    source: str | Path,
    *,
    data: str | None = None,
    part: Part = "test",
    changes: Changes | None = None,
    out: Path | None = None,
    config: ConViTConfig | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate, write the figures of every class as a table, and draw confusion matrix and calibration.

    For a multi-label model the average precision of every class is drawn instead of the confusion matrix. Returns the
    figures, in percent where they are shares; ``by_class`` has a row per class of the data. The files go to ``out``, by
    default RUN/evaluation/DATA-PART; those that are there already are kept unless ``overwrite`` or, in the default
    folder, the run's weights are newer or the pictures were others.

    The data may have fewer classes than the model: they are matched by name, and the model still answers among all of
    its own (a multi-label model is asked for those of the data alone).

    Raises ``ValueError`` if the run, the data or the part is missing, the model does not know a class, a change is not
    possible, or the folder for the files cannot be written to, which is tried first.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1.")
    if workers < 0:
        raise UserError(f"workers is {workers}: it must not be negative.")
    changes = changes or Changes()
    predictor = open_predictor(source, config=config, device=device)
    data_set = evaluation_data(source, data, part=part).read_at(full_depth=predictor.preprocessing.full_depth)
    check_task(predictor, data_set)
    order = class_order(predictor, data_set)
    folder = out or evaluation_folder(source) / "-".join([data_set.name, part, *changes.words()])
    files = evaluation_files(predictor.task, folder)
    pictures = [each.fingerprint() for each in chosen_parts(data_set, part)]
    stale = overwrite or (out is None and read_pictures(folder) != pictures)
    changed = 0.0 if out is not None else time_of_weights(source)
    kept = {file for file in files.values() if file.exists() and file.stat().st_mtime > changed and not stale}
    if len(kept) < len(files):
        check_writable(folder)  # now, and not when all has been computed
    evaluation = evaluate_parts(
        predictor, chosen_parts(data_set, part), changes, order=order, batch_size=batch_size, workers=workers
    )
    which = "" if part == "all" else f"{part} "
    title = f"{data_set.name}, {evaluation.num_pictures} {which}pictures"
    write_files(evaluation, predictor.task, data_set.classes, files, title=title, kept=kept)
    if len(kept) < len(files):
        write_text(
            folder / run_folder.EVALUATED,
            json.dumps({"data": data_set.name, "part": part, "pictures": pictures}) + "\n",
        )
    return {
        "source": str(source),
        "unfinished_epoch": unfinished_epoch(source, predictor),
        "data": data_set.name,
        "part": part,
        "num_pictures": evaluation.num_pictures,
        "num_unreadable": len(evaluation.unreadable),
        "unreadable": evaluation.unreadable,
        **evaluation.scores.summary(),
        "loss": evaluation.loss,
        "seconds": evaluation.seconds,
        "pictures_per_second": evaluation.pictures_per_second,
        "by_class": evaluation.scores.by_class(data_set.classes),
        **{name: str(file) for name, file in files.items()},
        "files_kept": bool(kept),
    }


def read_pictures(folder: Path) -> list[str] | None:
    """Fingerprints of the pictures that a folder's figures are of; None if it does not say."""
    try:
        return json.loads((folder / run_folder.EVALUATED).read_text())["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def time_of_weights(source: str | Path) -> float:
    """When the weights of a run folder were written, in seconds since 1970; 0 for anything else."""
    weights = Path(source) / run_folder.BEST_WEIGHTS
    return weights.stat().st_mtime if weights.is_file() else 0.0


def unfinished_epoch(source: str | Path, predictor: Predictor) -> int | None:
    """The epoch that the weights of a run are of while the run is not finished; None for anything else."""
    run = run_of(source)
    if run is None or run_folder.read_summary(run) is not None or isinstance(predictor.model, ExportedModel):
        return None
    info = predictor.model.info
    return None if info is None else info.figures.get("epoch")


def class_order(predictor: Predictor, data: DataSet) -> NDArray[np.int64]:
    """The model's classes with those of the data first, in the data's order, so that its labels are places in it.

    A multi-label model's other classes are left out: whether the pictures show them is not known.
    """
    classes = match_classes(predictor.labels, data)
    if data.multi_label:
        return classes
    others = np.setdiff1d(np.arange(len(predictor.labels)), classes)
    return np.concatenate([classes, others])


def evaluate_parts(
    predictor: Predictor,
    parts: Sequence[PictureSet],
    changes: Changes,
    *,
    order: NDArray[np.int64],
    batch_size: int,
    workers: int,
) -> Evaluation:
    """Evaluate on all pictures of the parts, with a progress bar in a terminal."""
    preprocessing = changes.preprocessing(predictor.preprocessing)
    model = changed_model(predictor.model, changes, preprocessing)
    rank, num_ranks = place_and_number()
    loaders = [
        evaluation_loader(
            pictures,
            preprocessing.transform(),
            channels=preprocessing.channels,
            batch_size=batch_size,
            workers=workers,
            pin_memory=predictor.device.type == "cuda",
            rank=rank,
            num_ranks=num_ranks,
        )
        for pictures in parts
    ]
    num_pictures = sum(len(loader.sampler) for loader in loaders)  # pyright: ignore[reportArgumentType]
    with progress_bar(transient=True) as progress:
        bar = progress.add_task(f"evaluating {num_pictures} pictures", total=num_pictures)
        return evaluate(
            Reordered(model, order),
            itertools.chain.from_iterable(loaders),
            task=predictor.task,
            num_classes=len(order),
            device=predictor.device,
            advance=lambda count: progress.advance(bar, count),
        )


def changed_model(model: nn.Module, changes: Changes, preprocessing: Preprocessing) -> nn.Module:
    """The model to evaluate; raises ``ValueError`` for a change that an exported one does not allow."""
    if isinstance(model, ExportedModel):
        model.info.check_size(*preprocessing.image_size)
        if changes.mask_position_embedding:
            raise UserError("The position embedding of an exported model cannot be masked: evaluate its weights.")
        return model
    if changes.mask_position_embedding:
        assert isinstance(model, ConViTBackbone)
        return without_position_embedding(model)
    return model


def evaluation_files(task: Task, folder: Path) -> dict[str, Path]:
    """The files of an evaluation by what they are called in its figures: a picture, its calibration, a table."""
    return {
        f"{task.picture}_picture": folder / f"{task.picture}.png",
        "reliability_picture": folder / "reliability.png",
        "per_class_table": folder / "per_class.csv",
    }


def write_files(
    evaluation: Evaluation, task: Task, classes: Sequence[str], files: dict[str, Path], *, title: str, kept: set[Path]
) -> None:
    """Write the ``evaluation_files`` that are not kept."""
    scores = evaluation.scores
    answers = "answers" if task.multi_label else "predictions"
    picture, reliability, table = files.values()
    if picture not in kept:
        scores.draw(classes, picture, pictures=title)
    if reliability not in kept:
        draw_reliability(scores.calibration, reliability, title=title, answers=answers)
    if table not in kept:
        write_table(table, scores.by_class(classes))
