"""A folder that ``comvex export`` wrote: a file for a runtime, and a config.json that says all that is known of it.

The config.json has what a program without comvex needs too: the names and shapes of inputs and outputs, preprocessing,
labels, and the SHA-256 of every file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from comvex.convit.config import ConViTConfig
from comvex.convit.weights import file_sha256
from comvex.convit.weights.config_file import CONFIG_NAME, checksum
from comvex.errors import UserError
from comvex.files import write_text
from comvex.inference.programs import AXIS_WORDS, FEWEST_PATCHES, INPUT, OUTPUT, Axis, check_installed
from comvex.inference.runtimes import Hint, Run, open_onnx, open_openvino, open_torch

Target = Literal["onnx", "openvino", "torch"]
Precision = Literal["float32", "bfloat16", "int8"]

FORMAT = 1
"""Version of the layout of the config.json; another one is refused."""
KIND = "exported model"
PROGRAM_FILES: dict[Target, tuple[str, ...]] = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "torch": ("model.pt2",),
}
"""The files of each runtime, the one that is opened first."""
RUNTIME_PACKAGES: dict[Target, tuple[str, ...]] = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "torch": ()}
HINTS: dict[Precision, Hint] = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""What OpenVINO computes in where it is free to choose. What int8 leaves in floating point loses less by bfloat16 than
by the steps of int8 around it."""


@dataclass(frozen=True)
class ExportedInfo:
    """What is known of an exported model."""

    to: Target
    precision: Precision
    dynamic: tuple[Axis, ...]
    """What is open: the number of pictures ("batch"), their height and width ("size")."""
    batch_size: int
    """Pictures a call, unless "batch" is open."""
    architecture: ConViTConfig
    preprocessing: dict[str, Any]
    """Its ``image_size`` is the exported one, or where "size" is open the one that pictures are brought to."""
    labels: tuple[str, ...]
    multi_label: bool = False
    licence: str | None = None
    training_data: dict[str, Any] = field(default_factory=dict)
    """The data of the run and how they were split (``run_data.training_data``); empty if that is not known."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of ``preprocessing``."""
        height, width = self.preprocessing["image_size"]
        return height, width

    @property
    def shape(self) -> list[int | str]:
        """Of the pictures: (batch, channels, height, width), with a word for what is open."""
        patch = self.architecture.patch_size
        sides = [f"{patch} * {AXIS_WORDS[axis]}" for axis in (2, 3)] if "size" in self.dynamic else self.image_size
        return [AXIS_WORDS[0] if "batch" in self.dynamic else self.batch_size, self.architecture.image_channel, *sides]

    @property
    def divisor(self) -> int | str:
        """What a picture's integers are divided by before the mean is subtracted; floats stay as they are."""
        return "the largest of their type" if self.preprocessing.get("full_depth") else 255

    def check_size(self, height: int, width: int) -> None:
        """Raises ``ValueError`` if the model does not take pictures of this height and width in pixels."""
        given, patch = f"The pictures are {height} x {width} pixels", self.architecture.patch_size
        if "size" not in self.dynamic:
            if (height, width) != self.image_size:
                raise UserError(
                    f"{given}: this model was exported for {self.image_size[0]} x {self.image_size[1]} alone; "
                    "--dynamic size exports one for every size."
                )
        elif height % patch or width % patch or min(height, width) < FEWEST_PATCHES * patch:
            raise UserError(
                f"{given}: for this exported model each side must be a multiple of {patch}, and at least "
                f"{FEWEST_PATCHES * patch}."
            )


class ExportedModel(nn.Module):
    """An exported file as a module on the CPU: pictures (B, C, height, width) -> logits (B, num_classes).

    Any number of pictures is taken: where the file's batch is fixed, they go through in pieces of that size, the last
    filled up with zeros. Raises ``ValueError`` for sizes that the file does not take.
    """

    def __init__(self, info: ExportedInfo, run: Run) -> None:
        super().__init__()
        self.info, self.run = info, run

    def forward(self, pictures: Tensor) -> Tensor:
        self.info.check_size(*pictures.shape[-2:])
        values = np.ascontiguousarray(pictures.numpy(), dtype=np.float32)
        if "batch" in self.info.dynamic:
            return torch.from_numpy(self.run(values))
        size, logits = self.info.batch_size, []
        for first in range(0, len(values), size):
            piece = values[first : first + size]
            missing = size - len(piece)
            filled = np.pad(piece, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else piece
            logits.append(torch.from_numpy(self.run(filled)[: len(piece)]))
        return torch.cat(logits)


def write_exported(folder: Path, info: ExportedInfo, comparison: dict[str, Any]) -> None:
    """Write the config.json beside the files of an exported model; ``comparison`` is what was measured of them."""
    content = {
        "format": FORMAT,
        "kind": KIND,
        "runtime": info.to,
        "file": PROGRAM_FILES[info.to][0],
        "precision": info.precision,
        "openvino_properties": {"INFERENCE_PRECISION_HINT": HINTS[info.precision]} if info.to == "openvino" else {},
        "input": {"name": INPUT, "type": "float32", "shape": info.shape, "divide_integers_by": info.divisor},
        "output": {"name": OUTPUT, "type": "float32", "shape": [info.shape[0], info.architecture.num_classes]},
        "dynamic": list(info.dynamic),
        "batch_size": info.batch_size,
        "preprocessing": info.preprocessing,
        "labels": list(info.labels),
        "multi_label": info.multi_label,
        "licence": info.licence,
        "training_data": info.training_data,
        "architecture": json.loads(info.architecture.to_json()),
        "comparison": comparison,
        "sha256": {name: file_sha256(folder / name) for name in PROGRAM_FILES[info.to]},
    }
    content = json.loads(json.dumps(content))  # as it will be read, so that the checksum is of that
    text = json.dumps({**content, "checksum": checksum(content)}, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / CONFIG_NAME, text)


def folder_of(source: str | Path) -> Path:
    """The folder of an exported model that is given by its folder or by the file that its runtime opens."""
    path = Path(source)
    return path.parent if path.name in [names[0] for names in PROGRAM_FILES.values()] and path.is_file() else path


def is_exported(source: str | Path) -> bool:
    """Whether this is (the file in) a folder with an exported model, of whatever version and in whatever state."""
    folder = folder_of(source)
    try:
        content = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return has_program(folder)  # its config.json is damaged or missing
    return isinstance(content, dict) and content.get("kind") == KIND


def has_program(folder: Path) -> bool:
    """Whether a folder has a file that is called as those of exported models are."""
    try:
        return any((folder / name).is_file() for names in PROGRAM_FILES.values() for name in names)
    except (OSError, ValueError):  # such as a name that no file can have
        return False


def read_content(folder: Path) -> dict[str, Any]:
    """The config.json of an exported model; raises ``ValueError`` if it is missing, damaged or of another version."""
    file = folder / CONFIG_NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The exported model {folder} has no {CONFIG_NAME} that can be read: {error.strerror}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{file} is damaged or not of an exported model.")
    if content["format"] != FORMAT:
        raise UserError(f"{file} has format {content['format']!r}: this version of comvex reads format {FORMAT}.")
    if content.get("checksum") != checksum(content):
        raise UserError(f"{file} is damaged or was edited: its checksum is not that of its content.")
    return content


def read_exported(folder: Path) -> ExportedInfo:
    """What the config.json of an exported model says.

    Raises ``ValueError`` if it or a file is missing or damaged, or of another version.
    """
    content = read_content(folder)
    for name, expected in content["sha256"].items():
        check_file(folder / name, expected)
    return ExportedInfo(
        to=content["runtime"],
        precision=content["precision"],
        dynamic=tuple(content["dynamic"]),
        batch_size=content["batch_size"],
        architecture=ConViTConfig.from_dict(content["architecture"]),
        preprocessing=content["preprocessing"],
        labels=tuple(content["labels"]),
        multi_label=content["multi_label"],
        licence=content["licence"],
        training_data=content.get("training_data", {}),
    )


def check_file(file: Path, expected: str) -> None:
    """Raises ``ValueError`` unless the file is there and has this SHA-256."""
    try:
        found = file_sha256(file)
    except OSError as error:
        raise UserError(f"The exported model lacks the file {file}: {error.strerror}.") from error
    if found != expected:
        raise UserError(f"The file {file} is damaged: its SHA-256 is {found}, not {expected}.")


def open_exported(source: str | Path) -> ExportedModel:
    """The model in a folder that ``comvex export`` wrote, ready to run on the CPU with PyTorch's number of threads.

    The file in it that the runtime opens may be given too. Raises ``ValueError`` if the model is not whole, or its
    runtime is not installed.
    """
    folder = folder_of(source)
    return ExportedModel(info := read_exported(folder), open_program(folder, info.to, info.precision))


def open_program(folder: Path, to: Target, precision: Precision) -> Run:
    """The file of a runtime in a folder, opened; raises ``ValueError`` if the runtime is missing."""
    file, threads = folder / PROGRAM_FILES[to][0], torch.get_num_threads()
    check_installed(RUNTIME_PACKAGES[to], what=f"The exported model {folder}")
    if to == "onnx":
        return open_onnx(file, threads=threads)
    if to == "openvino":
        return open_openvino(file, hint=HINTS[precision], threads=threads)
    return open_torch(file)
