"""The config.json beside weights: ours, which says all that is known of them and vouches for both, and timm's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comvex.convit.config import GLOBAL_POOLS, ConViTConfig, check_integer
from comvex.convit.weights.info import WeightsInfo, default_preprocessing
from comvex.errors import UserError
from comvex.files import write_text
from comvex.preprocessing import check_preprocessing

FORMAT = 1
"""Version of the layout of config.json; another one is refused."""
CONFIG_NAME = "config.json"


def read_config(file: Path) -> dict[str, Any] | None:
    """The content of the config.json beside a weights file, ours or another's; None if there is none.

    Raises ``ValueError`` if it is no JSON object.
    """
    config_file = file.with_name(CONFIG_NAME)
    if not config_file.is_file():
        return None
    try:
        content = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config_file} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{config_file} is damaged: it holds a {type(content).__name__}, not an object.")
    return content


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether a config.json is one that comvex wrote, of whatever version."""
    return "format" in content and isinstance(content.get("files"), dict)


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a config.json says, apart from its own entry for it."""
    text = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# Reading


def read_info(file: Path, content: Mapping[str, Any]) -> WeightsInfo:
    """What our config.json says of a weights file; raises ``ValueError`` unless all of it is there and possible."""
    config_file = file.with_name(CONFIG_NAME)
    if content["format"] != FORMAT:
        raise UserError(
            f"{config_file} has format {content['format']!r}: this version of comvex reads format {FORMAT}."
        )
    if content.get("checksum") != checksum(content):
        raise UserError(f"{config_file} is damaged or was edited: its checksum is not that of its content.")
    try:
        entry = content["files"][file.name]
        return WeightsInfo(
            architecture=ConViTConfig.from_dict(entry["architecture"]),
            preprocessing=checked_preprocessing(entry["preprocessing"]),
            labels=checked_labels(entry["labels"], entry["architecture"]["num_classes"]),
            licence=entry["licence"],
            figures=dict(entry["figures"]),
            multi_label=bool(entry.get("multi_label", False)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{config_file} does not say what it must of {file.name}: {told(error)}.") from error


def foreign_fields(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What timm's config.json says of an architecture and no shape tells: ``image_size`` and ``global_pool``.

    Arguments of the model come before what describes it. Raises ``ValueError`` for values that are not possible.
    """
    theirs = content.get("pretrained_cfg")
    if not isinstance(theirs, dict):
        return {}
    arguments = content.get("model_args") or {}
    size: Any = theirs.get("input_size")
    try:
        pool = arguments.get("global_pool", content.get("global_pool", "token"))
        if (given := arguments.get("img_size")) is not None:
            size = [3, given, given] if isinstance(given, int) else [3, *given]
        if pool not in GLOBAL_POOLS:
            raise UserError(f"global_pool is {pool!r}: it must be one of {', '.join(map(repr, GLOBAL_POOLS))}.")
        if size is None:
            return {"global_pool": pool}
        _, height, width = size
        for side in (height, width):
            check_integer("img_size", side, at_least=1)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file.with_name(CONFIG_NAME)} is damaged: {told(error)}.") from error
    return {"global_pool": pool, "image_size": (height, width)}


def read_foreign_info(config: ConViTConfig, content: Mapping[str, Any] | None, file: Path) -> WeightsInfo:
    """What timm's config.json says of weights, if it is there; ImageNet's figures otherwise."""
    preprocessing = default_preprocessing(config)
    theirs = (content or {}).get("pretrained_cfg")
    if content is None or not isinstance(theirs, dict):
        return WeightsInfo(architecture=config, preprocessing=preprocessing)
    try:
        known = {name: theirs[name] for name in ("mean", "std", "crop_pct") if name in theirs}
        preprocessing = checked_preprocessing(preprocessing | known)
        for name in ("mean", "std"):
            preprocessing[name] = for_channels(name, preprocessing[name], config.image_channel)
        labels = checked_labels(listed(content.get("label_names", []), config.num_classes), config.num_classes)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file.with_name(CONFIG_NAME)} is damaged: {told(error)}.") from error
    return WeightsInfo(architecture=config, preprocessing=preprocessing, labels=labels, licence=theirs.get("license"))


def for_channels(name: str, numbers: list[float], channels: int) -> list[float]:
    """A number for each channel; timm leaves those of RGB, or a single one, to models of other channels too."""
    if len(numbers) == channels:
        return numbers
    if len(numbers) not in (1, 3):
        raise UserError(f"{name} has {len(numbers)} numbers for {channels} channels.")
    return [sum(numbers) / len(numbers)] * channels


def listed(names: Any, num_classes: int) -> Any:
    """timm's names of classes as a list: they may be an object by number, with gaps, which get their number."""
    if not isinstance(names, dict):
        return names
    by_number = {int(number): name for number, name in names.items()}
    if any(not 0 <= number < num_classes for number in by_number):
        raise UserError(f"label_names has numbers that are none of the {num_classes} classes.")
    return [by_number.get(number, str(number)) for number in range(num_classes)]


def told(error: Exception) -> str:
    """What an error says, to stand in the middle of a sentence."""
    return str(error).rstrip(".")


def checked_preprocessing(values: Any) -> dict[str, Any]:
    """The preprocessing of a config.json; raises ``ValueError``, ``KeyError`` or ``TypeError`` if it is none."""
    check_preprocessing(values["mean"], values["std"], values["crop_pct"])
    return dict(values)


def checked_labels(labels: Any, num_classes: int) -> tuple[str, ...]:
    """The labels of a config.json, none or one for each class; raises ``ValueError`` otherwise."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"labels is {labels!r}: it must be a list of names.")
    if len(labels) not in (0, num_classes):
        raise UserError(f"There are {len(labels)} labels for {num_classes} classes.")
    return tuple(labels)


# Writing


def other_entries(file: Path) -> dict[str, Any]:
    """What the config.json beside a weights file says of the other weights files that are still there.

    Raises ``ValueError`` if that file is damaged or not comvex's.
    """
    content = read_config(file)
    if content is None:
        return {}
    if not is_ours(content) or content["format"] != FORMAT:
        raise UserError(
            f"{file.with_name(CONFIG_NAME)} is not one that this version of comvex writes: choose another folder."
        )
    others = content["files"].items()
    return {name: entry for name, entry in others if name != file.name and file.with_name(name).exists()}


def write_entry(file: Path, sha256: str, info: WeightsInfo, others: Mapping[str, Any]) -> None:
    """Write the config.json beside a weights file: an entry for it, and those of ``others``."""
    entry = {
        "sha256": sha256,
        "architecture": json.loads(info.architecture.to_json()),
        "preprocessing": info.preprocessing,
        "labels": list(info.labels),
        "licence": info.licence,
        "figures": info.figures,
        "multi_label": info.multi_label,
    }
    write_entries(file, {**others, file.name: entry})


def has_entry(file: Path) -> bool:
    """Whether the config.json beside a weights file is ours and tells of it; raises ``ValueError`` if it is damaged."""
    content = read_config(file)
    return content is not None and is_ours(content) and file.name in content["files"]


def write_entries(file: Path, entries: Mapping[str, Any]) -> None:
    """Write the config.json beside a weights file."""
    content = {"format": FORMAT, "files": dict(sorted(entries.items()))}
    content = json.loads(json.dumps(content))  # as it will be read, so that the checksum is of that
    text = json.dumps({**content, "checksum": checksum(content)}, indent=2) + "\n"
    write_text(file.with_name(CONFIG_NAME), text)
