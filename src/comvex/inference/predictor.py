"""A trained model ready for pictures: files, Pillow pictures or arrays in, classes with probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from comvex.convit.config import ConViTConfig, as_pair, check_integer
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.convit.weights import default_preprocessing, load_model
from comvex.data.full_depth import as_values, finite, fit_channels, picture_values, read_values
from comvex.data.reading import UnreadablePictureError, blamed, read_picture, to_channels
from comvex.data.transforms import Preprocessing
from comvex.device import choose_device
from comvex.errors import UserError
from comvex.inference.exported import ExportedModel, is_exported, open_exported
from comvex.inference.task import choose_task
from comvex.terminal import progress_bar

Picture = str | Path | Image.Image | np.ndarray
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Prediction:
    """A class and its probability in [0, 1]."""

    label: str
    probability: float


class Predictor(Generic[Model]):
    """A model with the preprocessing and the labels that belong to it.

    ``model`` is the network, or an exported file as one; ``labels`` are the classes in the order of the logits,
    ``preprocessing`` says what ``transform`` does, ``multi_label`` whether a picture may have none or several of the
    classes.
    """

    def __init__(
        self,
        model: Model,
        *,
        preprocessing: Preprocessing,
        labels: Sequence[str],
        device: torch.device,
        multi_label: bool = False,
    ) -> None:
        self.model = model.eval().to(device)
        self.preprocessing = preprocessing
        self.labels = tuple(labels)
        self.task = choose_task(multi_label=multi_label)
        self.device = device

    def read(self, picture: Picture) -> Image.Image | NDArray[np.float32]:
        """A picture as the model wants it: 8 bits, upright, grey or RGB; or, for a model of pictures of full depth, an
        array (height, width, channels) of float32.

        Takes a file, a Pillow picture, or an array (height, width) or (height, width, channels), of bytes or 16-bit
        grey, at full depth of any integers or floats. A file and a Pillow picture are turned as their EXIF orientation
        says. At full depth a Pillow picture gives what its file does, except that Pillow itself keeps only 8 bits of
        16-bit colours.

        Raises ``ValueError`` if it is none of these or cannot be read.
        """
        channels, full_depth = self.preprocessing.channels, self.preprocessing.full_depth
        if not isinstance(picture, Picture):
            raise UserError(
                f"A picture of type {type(picture).__name__}: it must be a file, a Pillow picture or an array."
            )
        if isinstance(picture, str | Path):
            return read_values(picture, channels=channels) if full_depth else read_picture(picture, channels=channels)
        if isinstance(picture, np.ndarray):
            if full_depth:
                return fit_channels(as_values(picture), channels)
            picture = picture_from(picture)
        with blamed(getattr(picture, "filename", "") or "in memory"):
            if not full_depth:
                return to_channels(ImageOps.exif_transpose(picture), channels=channels)
            values = picture_values(picture, channels=channels)
        return fit_channels(finite(values), channels)

    def transform(self, picture: Picture) -> Tensor:
        """The model's input for a picture of any kind that ``read`` takes: (channels, height, width), normalised."""
        return self.preprocessing.transform()(self.read(picture))

    def probabilities(self, pictures: Iterable[Picture]) -> Tensor:
        """The probability of every class for every picture: (num_pictures, num_classes), on the CPU.

        Each row sums to one, unless the model is multi-label: then every class is a yes or no of its own.
        """
        return self.probabilities_of_inputs([self.transform(picture) for picture in pictures])

    @torch.inference_mode()
    def probabilities_of_inputs(self, inputs: Sequence[Tensor]) -> Tensor:
        """``probabilities`` of what ``transform`` made of the pictures."""
        if not inputs:
            return torch.empty(0, len(self.labels))
        return self.task.probabilities(self.model(torch.stack(list(inputs)).to(self.device)).float()).cpu()

    def best(self, probabilities: Tensor, *, top: int) -> list[list[Prediction]]:
        """The ``top`` most probable classes of each row of ``probabilities``, best first."""
        chosen = probabilities.topk(min(top, len(self.labels)))
        return [
            [Prediction(self.labels[label], value) for value, label in zip(*row, strict=True)]
            for row in zip(chosen.values.tolist(), chosen.indices.tolist(), strict=True)
        ]

    def predict(
        self, pictures: Picture | Iterable[Picture], *, top: int = 5, batch_size: int = 64
    ) -> list[list[Prediction]]:
        """The ``top`` most probable classes of each picture, best first.

        ``pictures`` is one picture or several; the answer is always a list with one entry a picture. Raises
        ``ValueError`` for what is no picture, and for less than one class.
        """
        check_integer("top", top, at_least=1)
        if isinstance(pictures, Picture):
            pictures = [pictures]
        waiting, answers = list(pictures), []
        for first in range(0, len(waiting), batch_size):
            answers += self.best(self.probabilities(waiting[first : first + batch_size]), top=top)
        return answers


def picture_from(array: NDArray[Any]) -> Image.Image:
    """An array of bytes, 16-bit grey or bools as a Pillow picture; raises ``ValueError`` for any other."""
    if array.ndim in (2, 3) and array.size > 0 and array.dtype.name in ("uint8", "uint16", "bool"):
        with suppress(TypeError):
            return Image.fromarray(array)
    raise UserError(
        f"An array of shape {array.shape} and type {array.dtype} is no picture: it must be (height, width) or (height, "
        "width, 3) of uint8, or (height, width) of uint16 or bool."
    )


def predict_files(
    source: str | Path,
    files: Sequence[Path],
    *,
    top: int = 5,
    image_size: int | tuple[int, int] | None = None,
    config: ConViTConfig | None = None,
    device: str = "auto",
    batch_size: int = 64,
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The most probable classes of picture files, and a message for each file that cannot be read.

    ``image_size`` is a side in pixels or (height, width), by default that of the weights.
    """
    check_integer("top", top, at_least=1)
    predictor = open_predictor(source, config=config, device=device)
    if image_size is not None:
        predictor.preprocessing = replace(predictor.preprocessing, image_size=as_pair(image_size))
    predictions: dict[str, list[dict[str, Any]]] = {}
    problems = []
    with progress_bar(transient=True) as progress:
        bar = progress.add_task(f"{len(files)} pictures", total=len(files))
        for first in range(0, len(files), batch_size):
            inputs = {}  # at the model's size: of photographs a whole batch would fill the memory
            for file in files[first : first + batch_size]:
                try:
                    inputs[str(file)] = predictor.transform(file)
                except UnreadablePictureError as error:
                    problems.append(str(error))
                progress.advance(bar)
            if inputs:
                answers = predictor.best(predictor.probabilities_of_inputs(list(inputs.values())), top=top)
                for file, answer in zip(inputs, answers, strict=True):
                    predictions[file] = [asdict(entry) for entry in answer]
    return predictions, problems


def open_predictor(source: str | Path, *, config: ConViTConfig | None = None, device: str = "auto") -> Predictor[Any]:
    """The predictor of weights (``load``) or of an exported model (``load_exported``), which takes no ``config``."""
    if not is_exported(source):
        return load(source, config=config, device=device)
    if config is not None:
        raise UserError(f"config is given, but {source} is an exported model, whose architecture is in its file.")
    return load_exported(source, device=device)


def load_exported(source: str | Path, *, device: str = "auto") -> Predictor[ExportedModel]:
    """The predictor of a folder that ``comvex export`` wrote: its file in its runtime, on the CPU.

    Raises ``ValueError`` if there is no such folder, it is not whole, its runtime is not installed, or another device
    is asked for.
    """
    if device not in ("auto", "cpu"):
        raise UserError(f"device is {device!r}: it must be cpu or auto, since exported models run on the CPU.")
    model = open_exported(Path(source))
    info = model.info
    return Predictor(
        model,
        preprocessing=Preprocessing.from_dict(info.preprocessing),
        labels=info.labels,
        device=torch.device("cpu"),
        multi_label=info.multi_label,
    )


def load(
    source: str | Path, *, config: ConViTConfig | None = None, device: str = "auto"
) -> Predictor[ConViTWithLinearClassifier]:
    """The predictor of a run folder (its best weights), a weights file, a published name or a model on the Hub.

    ``comvex.load("runs/mine")``, ``comvex.load("convit_tiny.fb_in1k")``, ``comvex.load("owner/name")``; a weights file
    may be ours, timm's or the official repository's. ``config`` is the architecture of a foreign file whose shapes do
    not tell it. ``device`` is "auto", "cpu", "cuda" or "mps". Raises ``ValueError`` if there is no such model, or its
    files are damaged or of another version.
    """
    if is_exported(source):
        raise UserError(
            f"{source} is an exported model, which comvex predict, comvex evaluate and comvex.load_exported run: what "
            "looks inside a model needs its weights."
        )
    model = load_model(source, config=config)
    info = model.info
    assert info is not None
    preprocessing = Preprocessing.from_dict(info.preprocessing or default_preprocessing(model.config))
    labels = info.labels or class_labels(model.config.num_classes)
    return Predictor(
        model,
        preprocessing=preprocessing,
        labels=labels,
        device=choose_device(device),
        multi_label=info.multi_label,
    )


def class_labels(num_classes: int) -> tuple[str, ...]:
    """Names for classes that the weights do not name: ImageNet's for 1,000 of them, else "class 0" and so on.

    Raises ``ValueError`` if there are no classes.
    """
    if num_classes == 0:
        raise UserError("The model has no head, so it cannot say what is on a picture: load_model gives its features.")
    if num_classes == 1000:
        from timm.data.imagenet_info import ImageNetInfo

        return tuple(ImageNetInfo().label_descriptions())
    return tuple(f"class {index}" for index in range(num_classes))
