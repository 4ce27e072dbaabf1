"""Weights on disk: the official repository's files, timm's, and our own, which vouch for themselves.

Our own are safetensors with a config.json beside it: architecture, preprocessing, labels, licence, measured figures,
and the SHA-256 of the weights and of itself. One config.json has an entry for each weights file of its folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comvex.convit.adapt import adapt
from comvex.convit.config import PRESETS, ConViTConfig, as_pair
from comvex.convit.model import ConViTBackbone, ConViTWithLinearClassifier
from comvex.convit.published import find_weights, published_info
from comvex.convit.shapes import UnknownArchitectureError, check_shapes, infer_config, mismatch
from comvex.convit.weights_files import read_tensor_file
from comvex.errors import UserError
from comvex.files import replace_file, write_text

LOGGER = logging.getLogger(__name__)
FORMAT = 1
"""Version of the layout of config.json; another one is refused."""
CONFIG_NAME = "config.json"
MARK = "comvex"
"""In the metadata of a safetensors file: ours, so that it must have its config.json."""

Layout = Literal["comvex", "timm", "official"]
LAYOUTS: tuple[Layout, ...] = ("comvex", "timm", "official")
PICKLES = (".pth", ".pt", ".bin")
ENDINGS: dict[Layout, tuple[str, ...]] = {
    "comvex": (".safetensors",),
    "timm": (".safetensors", *PICKLES),
    "official": PICKLES,
}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 0.875}


@dataclass(frozen=True)
class WeightsInfo:
    """What is known of weights beside their numbers."""

    architecture: ConViTConfig
    preprocessing: dict[str, Any]
    """``image_size``, ``channels``, ``mean``, ``std``, ``crop_pct``: see ``comvex.data.transforms.Preprocessing``."""
    labels: tuple[str, ...] = ()
    """The classes in the order of the logits; empty if they are not known."""
    licence: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured of these weights, such as ``val_top1`` in percent."""
    multi_label: bool = False
    """Whether a picture may be of none or several of the classes: each logit then is one class's yes or no."""


@dataclass(frozen=True)
class Weights:
    """A weights file that was read and found complete."""

    file: Path
    layout: Layout
    tensors: dict[str, Tensor]
    info: WeightsInfo
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """What loading did: where the weights are from, and a line for each thing that was adapted."""

    file: Path
    layout: Layout
    size: str
    """The size of the paper that the file holds, or "none of the paper's sizes"."""
    changes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.layout} layout, {self.size}", *self.changes]
        return "\n".join(lines)


def preset_name(config: ConViTConfig) -> str:
    """Which of the paper's sizes a config is, whatever its pictures and classes."""
    depth = config.num_local_layers, config.num_nonlocal_layers
    for name, size in PRESETS.items():
        if size == (config.dim, config.num_heads) and depth == (10, 2) and config.ff_dim == 4 * config.dim:
            return name
    return "none of the paper's sizes"


def default_preprocessing(config: ConViTConfig) -> dict[str, Any]:
    """What pictures are put through where nothing else is known: ImageNet's figures for RGB, 0.5 for other channels."""
    known = config.image_channel == 3
    half = [0.5] * config.image_channel
    return {
        "image_size": list(as_pair(config.image_size)),
        "channels": config.image_channel,
        "mean": IMAGENET["mean"] if known else half,
        "std": IMAGENET["std"] if known else half,
        "crop_pct": IMAGENET["crop_pct"] if known else 1.0,
    }


# Reading


def read_weights(
    source: str | Path,
    *,
    config: ConViTConfig | None = None,
    ema: bool = False,
    download: Mapping[str, Any] | None = None,
) -> Weights:
    """The tensors of a weights file and what is known of them, after checking that they are a whole ConViT.

    ``source``: a file, a run folder, a folder in the Hub's layout, a published name or a Hub id (``find_weights``).
    ``config`` is needed where a foreign file's shapes do not tell the architecture. ``ema`` takes the averaged weights
    of a training checkpoint. ``download`` goes to ``huggingface_hub.hf_hub_download``.

    Raises ``ValueError`` if there is no such file, or it is damaged, incomplete, or needs code to be run.
    """
    file = find_weights(source, **(download or {}))
    content = read_config(file)
    if content is not None and is_ours(content):
        if file.name in content["files"]:
            if ema or config not in (None, read_info(file, content).architecture):
                raise UserError(
                    f"The weights {file} are comvex's own: they have no averaged weights beside them, and their "
                    "architecture is in their config.json."
                )
            return read_own(file, content)
        content = None  # it is about other files of the folder
    found = read_tensor_file(file, ema=ema)
    if MARK in found.metadata:
        raise UserError(
            f"The weights {file} belong to a {CONFIG_NAME} beside them, which is missing, damaged or about other files."
        )
    what = f"The weights file {file}"
    if config is None:
        config = infer_config(found.tensors, what)
    check_shapes(found.tensors, config, what)
    layout: Layout = "official" if found.layout == "official" else "timm"
    info = published_info(source, foreign_info(config, content, file))
    return Weights(file, layout, found.tensors, info, found.notes)


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


def is_ours(content: dict[str, Any]) -> bool:
    """Whether a config.json is one that comvex wrote, of whatever version."""
    return "format" in content and isinstance(content.get("files"), dict)


def read_own(file: Path, content: dict[str, Any]) -> Weights:
    """A weights file of ours, verified against its config.json."""
    info = read_info(file, content)
    entry = content["files"][file.name]
    if file_sha256(file) != entry.get("sha256"):
        raise UserError(f"The weights {file} are damaged: their SHA-256 is not the one in their {CONFIG_NAME}.")
    found = read_tensor_file(file)
    check_shapes(found.tensors, info.architecture, f"The weights file {file}")
    return Weights(file, "comvex", found.tensors, info)


def read_info(file: Path, content: dict[str, Any]) -> WeightsInfo:
    """What our config.json says of a weights file, checked."""
    config_file = file.with_name(CONFIG_NAME)
    if content["format"] != FORMAT:
        raise UserError(
            f"{config_file} has format {content['format']!r}: this version of comvex reads format {FORMAT}."
        )
    if content.get("checksum") != checksum(content):
        raise UserError(f"{config_file} is damaged or was edited: its checksum is not that of its content.")
    try:
        entry = content["files"][file.name]
        info = WeightsInfo(
            architecture=ConViTConfig.from_dict(entry["architecture"]),
            preprocessing=check_preprocessing(entry["preprocessing"]),
            labels=check_labels(entry["labels"], entry["architecture"]["num_classes"]),
            licence=entry["licence"],
            figures=dict(entry["figures"]),
            multi_label=bool(entry.get("multi_label", False)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{config_file} does not say what it must of {file.name}: {error}.") from error
    return info


def check_preprocessing(values: Any) -> dict[str, Any]:
    """The preprocessing of a config.json, if it is one; raises ``ValueError`` otherwise."""
    for name in ("mean", "std"):
        numbers = values[name]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise UserError(f"{name} is {numbers!r}: it must have a number for each channel")
    if not all(number > 0 for number in values["std"]):
        raise UserError(f"std is {values['std']!r}: its numbers must be positive")
    if not 0 < values["crop_pct"] <= 1:
        raise UserError(f"crop_pct is {values['crop_pct']!r}: it must lie in (0, 1]")
    return dict(values)


def check_labels(labels: Any, num_classes: int) -> tuple[str, ...]:
    """The labels of a config.json, none or one for each class; raises ``ValueError`` otherwise."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"labels is {labels!r}: it must be a list of names")
    if len(labels) not in (0, num_classes):
        raise UserError(f"there are {len(labels)} labels for {num_classes} classes")
    return tuple(labels)


def foreign_info(config: ConViTConfig, content: dict[str, Any] | None, file: Path) -> WeightsInfo:
    """What timm's config.json says of weights, if it is there; ImageNet's figures otherwise."""
    preprocessing, labels, licence = default_preprocessing(config), (), None
    theirs = (content or {}).get("pretrained_cfg")
    if content is not None and isinstance(theirs, dict):
        try:
            known = {name: theirs[name] for name in ("mean", "std", "crop_pct") if name in theirs}
            preprocessing = check_preprocessing(preprocessing | known)
            labels = check_labels(content.get("label_names", []), config.num_classes)
        except (TypeError, ValueError) as error:
            raise UserError(f"{file.with_name(CONFIG_NAME)} is damaged: {error}.") from error
        licence = theirs.get("license")
    return WeightsInfo(architecture=config, preprocessing=preprocessing, labels=labels, licence=licence)


def load_weights(
    model: ConViTBackbone, source: str | Path, *, config: ConViTConfig | None = None, ema: bool = False
) -> LoadReport:
    """Put the weights of ``source`` (see ``read_weights``) into a model, adapting what may differ.

    Another grid: the position embedding is resampled. Another patch size or other input channels: the patch projection
    is, by timm's rules. Other classes: the model keeps its own head. Each is a line of the report, and of the log.

    Raises ``ValueError`` naming every tensor that is missing, unexpected or of another shape; the model is then as it
    was. ``config`` is needed where neither the file's shapes nor the model tell the architecture of the file.
    """
    try:
        weights = read_weights(source, config=config, ema=ema)
    except UnknownArchitectureError:
        weights = read_weights(source, config=model.config, ema=ema)
    return put_weights(model, weights)


def put_weights(model: ConViTBackbone, weights: Weights) -> LoadReport:
    """Copy weights that were read into a model; see ``load_weights``."""
    own = model.state_dict()
    source = weights.info.architecture
    adapted, changes = adapt(weights.tensors, source, model.config, own)
    found = mismatch(adapted, {name: tensor.shape for name, tensor in own.items()})
    if found is not None:
        raise UserError(f"The weights {weights.file} do not fit the model: {found}.")
    dtypes = {
        tensor.dtype for name, tensor in weights.tensors.items() if name in own and tensor.dtype != own[name].dtype
    }
    for dtype in sorted(dtypes, key=str):
        changes.append(f"precision: {str(dtype).removeprefix('torch.')} converted to the model's")
    with torch.no_grad():
        for name, tensor in own.items():
            if adapted[name] is not tensor:
                tensor.copy_(adapted[name])
    if isinstance(model, ConViTWithLinearClassifier):
        model.info = info_for(model.config, weights.info)
    report = LoadReport(weights.file, weights.layout, preset_name(source), (*weights.notes, *changes))
    for line in report.changes:
        LOGGER.info("%s", line)
    return report


def load_model(
    source: str | Path,
    *,
    config: ConViTConfig | None = None,
    ema: bool = False,
    download: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> ConViTWithLinearClassifier:
    """The model that ``source`` (see ``read_weights``) holds, in evaluation mode, on the CPU.

    ``overrides`` are fields of ``ConViTConfig`` that shall differ, to which the weights are adapted as by
    ``load_weights``: ``load_model("convit_tiny.pth", num_classes=10, image_size=(288, 160))``. ``model.info`` has what
    is known of the weights.

    Raises ``ValueError`` if there is no such file, or it is damaged, incomplete, or does not fit.
    """
    weights = read_weights(source, config=config, ema=ema, download=download)
    architecture = ConViTConfig.from_dict(dataclasses.asdict(weights.info.architecture) | overrides)
    model = ConViTWithLinearClassifier(architecture)
    put_weights(model, weights)
    return model.eval()


def info_for(architecture: ConViTConfig, info: WeightsInfo) -> WeightsInfo:
    """What is known of weights after they were adapted to another architecture; figures were those of the old one."""
    old = info.architecture
    if architecture == old:
        return info
    preprocessing = dict(info.preprocessing)
    if architecture.image_size != old.image_size:
        preprocessing["image_size"] = list(as_pair(architecture.image_size))
    if architecture.image_channel != old.image_channel:
        mean = {name: sum(preprocessing[name]) / len(preprocessing[name]) for name in ("mean", "std")}
        preprocessing |= {name: [value] * architecture.image_channel for name, value in mean.items()}
        preprocessing["channels"] = architecture.image_channel
    same_tensors = all(
        getattr(architecture, name) == getattr(old, name)
        for name in (
            "image_size",
            "image_channel",
            "patch_size",
            "num_classes",
            "num_local_layers",
            "num_nonlocal_layers",
        )
    )
    return dataclasses.replace(
        info,
        architecture=architecture,
        preprocessing=preprocessing,
        labels=info.labels if architecture.num_classes == old.num_classes else (),
        figures=info.figures if same_tensors else {},
    )


# Writing


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a config.json says, apart from its own entry for it."""
    text = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU with storage of their own and no more than they need."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def save_tensors(tensors: Mapping[str, Tensor], file: Path, *, metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file, complete or not at all; returns its SHA-256."""
    with replace_file(file) as temporary:
        # One entry at most: safetensors writes several in an order of chance, and equal weights shall be equal files.
        save_file(plain_tensors(tensors), temporary, metadata=metadata or {"format": "pt"})
        return file_sha256(temporary)


def save_weights(
    model: nn.Module, file: str | Path, *, info: WeightsInfo | None = None, layout: Layout = "comvex"
) -> None:
    """Write a model's weights.

    ``layout`` "comvex": safetensors, with an entry in the config.json beside it; "timm": the bare state dict, as
    safetensors or, if the file ends in .pth, .pt or .bin, as a PyTorch file; "official": {"model": state dict}, a
    PyTorch file. ``info`` says what is known of the weights, by default ``model.info``, else ImageNet's preprocessing;
    the architecture is the model's own. A model wrapped for compilation or data parallelism is unwrapped.

    Raises ``ValueError`` for what is no ConViT or was pruned to what no config describes, a layout that has no place
    for the architecture, or a config.json beside the file that is damaged or not comvex's.
    """
    inner: Any = model
    while not isinstance(inner, ConViTBackbone):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if inner is None:
            raise UserError(f"A {type(model).__name__} is no ConViT: its weights cannot be saved as one.")
    config = inner.config
    if info is None:
        known: WeightsInfo | None = getattr(inner, "info", None)
        info = known or WeightsInfo(config, default_preprocessing(config))
    write_weights(inner.state_dict(), Path(file), info=info_for(config, info), layout=layout)


def write_weights(tensors: Mapping[str, Tensor], file: Path, *, info: WeightsInfo, layout: Layout) -> None:
    """Write tensors in a layout; see ``save_weights``."""
    if layout not in LAYOUTS:
        raise UserError(f"The layout is {layout!r}: it must be one of {', '.join(LAYOUTS)}.")
    check_shapes(tensors, info.architecture, "What is to be saved")
    ending = file.suffix.lower()
    if ending not in ENDINGS[layout]:
        raise UserError(
            f"The file is {file.name}: in the {layout} layout it must end in {' or '.join(ENDINGS[layout])}."
        )
    if layout == "comvex":
        others = other_entries(file)
        sha256 = save_tensors(tensors, file, metadata={MARK: str(FORMAT)})
        enter(file, sha256, info, others)
        return
    check_published_layout(info.architecture, layout)
    if ending == ".safetensors":
        save_tensors(tensors, file)
        return
    with replace_file(file) as temporary:
        plain = plain_tensors(tensors)
        torch.save({"model": plain} if layout == "official" else plain, temporary)


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


def enter(file: Path, sha256: str, info: WeightsInfo, others: Mapping[str, Any]) -> None:
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
    content = {"format": FORMAT, "files": dict(sorted({**others, file.name: entry}.items()))}
    content = json.loads(json.dumps(content))  # as it will be read, so that the checksum is of that
    text = json.dumps({**content, "checksum": checksum(content)}, indent=2) + "\n"
    write_text(file.with_name(CONFIG_NAME), text)


def add_figures(file: Path, figures: Mapping[str, Any]) -> None:
    """Enter more measured figures for a weights file of ours in the config.json beside it."""
    info = read_weights(file).info
    info = dataclasses.replace(info, figures=info.figures | dict(figures))
    enter(file, file_sha256(file), info, other_entries(file))


def check_published_layout(config: ConViTConfig, layout: str) -> None:
    """Raises ``ValueError`` if the published code could not run weights of this architecture."""
    square = config.grid[0] == config.grid[1]
    for field_name, value, fits in (
        ("pre_norm", config.pre_norm, config.pre_norm),
        ("use_gpsa", config.use_gpsa, config.use_gpsa),
        ("pred_act_fnc_name", config.pred_act_fnc_name, config.pred_act_fnc_name is None),
        ("norm_eps", config.norm_eps, config.norm_eps == 1e-6),
        ("position_embedding", config.position_embedding, config.position_embedding),
        ("num_local_layers", config.num_local_layers, config.num_local_layers > 0),
        ("num_nonlocal_layers", config.num_nonlocal_layers, config.num_nonlocal_layers > 0),
        ("global_pool", config.global_pool, config.global_pool == "token"),
        ("image_size", config.image_size, square),
    ):
        if not fits:
            raise UserError(
                f"{field_name} is {value!r}, which the {layout} layout has no place for: it holds pre-norm ConViTs "
                "with GPSA and self-attention layers, a position embedding on a square grid, and one Linear as head."
            )


def convert(
    source: str | Path,
    out: Path,
    *,
    layout: Layout,
    config: ConViTConfig | None = None,
    ema: bool = False,
    overwrite: bool = False,
) -> tuple[Path, Weights]:
    """Write the weights of ``source`` in another layout, every number as it is; returns the file and what was read.

    ``out`` is a file, or for comvex's layout a folder, which gets model.safetensors and config.json. Raises
    ``ValueError`` if ``out`` is there already (unless ``overwrite``), or the layout has no place for the architecture.
    """
    if layout == "comvex" and (out.suffix != ".safetensors" or out.is_dir()):
        out = out / "model.safetensors"
    if out.is_dir():
        raise UserError(f"{out} is a folder: in the {layout} layout OUT must be a file.")
    if out.exists() and not overwrite:
        raise UserError(f"The file {out} is there already: choose another, or --overwrite to replace it.")
    weights = read_weights(source, config=config, ema=ema)
    if layout != "comvex" and weights.info.multi_label:
        note = f"the {layout} layout does not say that the model is multi-label: read back, it is a single-label one"
        weights = dataclasses.replace(weights, notes=(*weights.notes, note))
    try:
        write_weights(weights.tensors, out, info=weights.info, layout=layout)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    return out, weights


__all__: Sequence[str] = (
    "LoadReport", "Weights", "WeightsInfo", "convert", "load_model", "load_weights", "read_weights", "save_weights",
)  # fmt: skip
