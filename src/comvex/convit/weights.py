"""Weights on disk: safetensors with a config.json beside it that says what they are and vouches for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comvex.convit.config import ConViTConfig
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.errors import UserError
from comvex.files import replace_file, write_text

FORMAT = 1
"""Version of the layout of config.json; another one is refused."""


@dataclass(frozen=True)
class WeightsInfo:
    """What the config.json beside a weights file says of it."""

    architecture: ConViTConfig
    preprocessing: dict[str, Any]
    labels: tuple[str, ...]
    licence: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> str:
    """Write a safetensors file, complete or not at all; returns its SHA-256."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_file(file) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"})
        return file_sha256(temporary)


def save_weights(model: nn.Module, file: str | Path, *, info: WeightsInfo) -> None:
    """Write a model's weights as safetensors and enter them in the config.json beside it.

    Several weights of the same architecture may share a folder: config.json has an entry for each file.
    """
    file = Path(file)
    sha256 = save_tensors(model.state_dict(), file)
    config_file = file.with_name("config.json")
    files = json.loads(config_file.read_text())["files"] if config_file.exists() else {}
    files[file.name] = {"sha256": sha256, "figures": info.figures}
    content = {
        "format": FORMAT,
        "architecture": json.loads(info.architecture.to_json()),
        "preprocessing": info.preprocessing,
        "labels": info.labels,
        "licence": info.licence,
        "files": dict(sorted(files.items())),
    }
    write_text(config_file, json.dumps(content, indent=2) + "\n")


def read_info(file: str | Path) -> WeightsInfo:
    """What config.json says of a weights file, after checking the file against its SHA-256.

    Raises ``ValueError`` if either is missing, was written by another version, or is damaged.
    """
    file = Path(file)
    config_file = file.with_name("config.json")
    for needed in (file, config_file):
        if not needed.is_file():
            raise UserError(f"There is no file {needed}: weights are a .safetensors file with a config.json beside it.")
    try:
        content = json.loads(config_file.read_text())
        if content["format"] != FORMAT:
            raise UserError(
                f"{config_file} has format {content['format']!r}: this version of comvex reads format {FORMAT}."
            )
        entry = content["files"].get(file.name)
        if entry is None:
            raise UserError(f"{config_file} has no entry for {file.name}: it does not belong to these weights.")
        if file_sha256(file) != entry["sha256"]:
            raise UserError(f"The weights {file} are damaged: their SHA-256 is not the one in {config_file}.")
        return WeightsInfo(
            architecture=ConViTConfig.from_dict(content["architecture"]),
            preprocessing=content["preprocessing"],
            labels=tuple(content["labels"]),
            licence=content["licence"],
            figures=entry["figures"],
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config_file} is damaged or not comvex's: {type(error).__name__} {error}.") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises ``ValueError`` if it is damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The file {file} cannot be read as safetensors: {error}.") from error


def load_model(file: str | Path) -> ConViTWithLinearClassifier:
    """The model that a weights file of ours holds, in evaluation mode, on the CPU.

    Raises ``ValueError`` if the file or its config.json is missing, damaged, or does not fit the other.
    """
    file = Path(file)
    info = read_info(file)
    model = ConViTWithLinearClassifier(info.architecture)
    try:
        model.load_state_dict(read_tensors(file))
    except RuntimeError as error:
        raise UserError(f"The weights {file} do not fit the architecture in config.json: {error}.") from error
    return model.eval()
