"""Weights on disk: the official repository's files, timm's, and our own, which vouch for themselves.

Our own are safetensors with a config.json beside it: architecture, preprocessing, labels, licence, measured figures,
and the SHA-256 of the weights and of itself. One config.json serves all weights files of its folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
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
from comvex.convit.weights_files import read_safetensors, read_tensor_file
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
    """The size of the paper that the file holds, or "another size"."""
    changes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.layout} layout, {self.size}", *self.changes]
        return "\n".join(lines)


def preset_name(config: ConViTConfig) -> str:
    """Which of the paper's sizes a config is, whatever its pictures and classes; "another size" for none."""
    depth = config.num_local_layers, config.num_nonlocal_layers
    for name, size in PRESETS.items():
        if size == (config.dim, config.num_heads) and depth == (10, 2) and config.ff_dim == 4 * config.dim:
            return name
    return "another size"


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


def read_weights(source: str | Path, *, config: ConViTConfig | None = None, ema: bool = False) -> Weights:
    """The tensors of a weights file and what is known of them, after checking that they are a whole ConViT.

    ``source``: a file, a run folder, a folder in the Hub's layout, a published name or a Hub id (``find_weights``).
    ``config`` is needed where a foreign file's shapes do not tell the architecture. ``ema`` takes the averaged weights
    of a training checkpoint.

    Raises ``ValueError`` if there is no such file, or it is damaged, incomplete, or needs code to be run.
    """
    file = find_weights(source)
    content = read_config(file)
    if content is not None and content.get("format") is not None and "files" in content:
        return read_own(file, content)
    found = read_tensor_file(file, ema=ema)
    if MARK in found.metadata:
        raise UserError(f"The weights {file} belong to a {CONFIG_NAME} beside them, which is missing.")
    what = f"The weights file {file}"
    if config is None:
        config = infer_config(found.tensors, what)
    check_shapes(found.tensors, config, what)
    layout: Layout = "official" if found.layout == "official" else "timm"
    info = published_info(source, foreign_info(config, content))
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
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{config_file} is damaged: it holds a {type(content).__name__}, not an object.")
    return content


def read_own(file: Path, content: dict[str, Any]) -> Weights:
    """A weights file of ours, verified against its config.json."""
    config_file = file.with_name(CONFIG_NAME)
    if content["format"] != FORMAT:
        raise UserError(
            f"{config_file} has format {content['format']!r}: this version of comvex reads format {FORMAT}."
        )
    if content.get("checksum") != checksum(content):
        raise UserError(f"{config_file} is damaged or was edited: its checksum is not that of its content.")
    entry = content["files"].get(file.name)
    if entry is None:
        raise UserError(f"{config_file} has no entry for {file.name}: it does not belong to these weights.")
    if not file.is_file() or file_sha256(file) != entry["sha256"]:
        raise UserError(f"The weights {file} are damaged: their SHA-256 is not the one in {config_file}.")
    info = WeightsInfo(
        architecture=ConViTConfig.from_dict(content["architecture"]),
        preprocessing=content["preprocessing"],
        labels=tuple(content["labels"]),
        licence=content["licence"],
        figures=entry["figures"],
        multi_label=content.get("multi_label", False),
    )
    tensors, _ = read_safetensors(file)
    check_shapes(tensors, info.architecture, f"The weights file {file}")
    return Weights(file, "comvex", tensors, info)


def foreign_info(config: ConViTConfig, content: dict[str, Any] | None) -> WeightsInfo:
    """What timm's config.json says of weights, if it is there; ImageNet's figures otherwise."""
    preprocessing = default_preprocessing(config)
    theirs = (content or {}).get("pretrained_cfg", {})
    for name in ("mean", "std", "crop_pct"):
        if isinstance(theirs, dict) and name in theirs:
            preprocessing[name] = theirs[name]
    labels = (content or {}).get("label_names", ())
    return WeightsInfo(
        architecture=config,
        preprocessing=preprocessing,
        labels=tuple(labels) if len(labels) == config.num_classes else (),
        licence=theirs.get("license") if isinstance(theirs, dict) else None,
    )


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
    report = LoadReport(weights.file, weights.layout, preset_name(source), (*weights.notes, *changes))
    for line in report.changes:
        LOGGER.info("%s", line)
    return report


def load_model(
    source: str | Path, *, config: ConViTConfig | None = None, ema: bool = False, **overrides: Any
) -> ConViTWithLinearClassifier:
    """The model that ``source`` (see ``read_weights``) holds, in evaluation mode, on the CPU.

    ``overrides`` are fields of ``ConViTConfig`` that shall differ, to which the weights are adapted as by
    ``load_weights``: ``load_model("convit_tiny.pth", num_classes=10, image_size=(288, 160))``. ``model.info`` has what
    is known of the weights.

    Raises ``ValueError`` if there is no such file, or it is damaged, incomplete, or does not fit.
    """
    weights = read_weights(source, config=config, ema=ema)
    info = weights.info
    if overrides:
        architecture = ConViTConfig.from_dict(dataclasses.asdict(info.architecture) | overrides)
        info = info_for(architecture, info)
    model = ConViTWithLinearClassifier(info.architecture)
    put_weights(model, weights)
    model.info = info
    return model.eval()


def info_for(architecture: ConViTConfig, info: WeightsInfo) -> WeightsInfo:
    """What is known of weights after they were adapted to another architecture."""
    preprocessing = dict(info.preprocessing, image_size=list(as_pair(architecture.image_size)))
    if architecture.image_channel != info.architecture.image_channel:
        mean = {name: sum(preprocessing[name]) / len(preprocessing[name]) for name in ("mean", "std")}
        preprocessing |= {name: [value] * architecture.image_channel for name, value in mean.items()}
        preprocessing["channels"] = architecture.image_channel
    same_classes = architecture.num_classes == info.architecture.num_classes
    return dataclasses.replace(
        info,
        architecture=architecture,
        preprocessing=preprocessing,
        labels=info.labels if same_classes else (),
        figures={},
    )


# Writing


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a config.json says, apart from its own entry for it."""
    text = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], file: Path, *, metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file, complete or not at all; returns its SHA-256."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_file(file) as temporary:
        # One entry at most: safetensors writes several in an order of chance, and equal weights shall be equal files.
        save_file(plain, temporary, metadata=metadata or {"format": "pt"})
        return file_sha256(temporary)


def save_weights(
    model: ConViTBackbone | nn.Module, file: str | Path, *, info: WeightsInfo | None = None, layout: Layout = "comvex"
) -> None:
    """Write a model's weights.

    ``layout`` "comvex": safetensors, with an entry in the config.json beside it; "timm": the bare state dict, as
    safetensors or, if the file ends in .pth or .bin, as a PyTorch file; "official": {"model": state dict}, a PyTorch
    file. ``info`` says what is known of the weights, by default ``model.info``, else the model's architecture and
    ImageNet's preprocessing.

    Raises ``ValueError`` for a layout that cannot say what this architecture is.
    """
    if info is None:
        info = getattr(model, "info", None)
    if info is None:
        config = model.config
        assert isinstance(config, ConViTConfig)
        info = WeightsInfo(config, default_preprocessing(config))
    write_weights(model.state_dict(), Path(file), info=info, layout=layout)


def write_weights(tensors: Mapping[str, Tensor], file: Path, *, info: WeightsInfo, layout: Layout) -> None:
    """Write tensors in a layout; see ``save_weights``."""
    if layout not in LAYOUTS:
        raise UserError(f"The layout is {layout!r}: it must be one of {', '.join(LAYOUTS)}.")
    is_pickle = file.suffix in (".pth", ".bin", ".pt")
    if layout == "comvex":
        if is_pickle:
            raise UserError(f"The file is {file.name}: weights in comvex's layout end in .safetensors.")
        sha256 = save_tensors(tensors, file, metadata={MARK: str(FORMAT)})
        enter(file, sha256, info)
        return
    check_published_layout(info.architecture, layout)
    if layout == "timm" and not is_pickle:
        save_tensors(tensors, file)
        return
    if not is_pickle:
        raise UserError(f"The file is {file.name}: the official layout is a PyTorch file, which ends in .pth.")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_file(file) as temporary:
        torch.save({"model": plain} if layout == "official" else plain, temporary)


def enter(file: Path, sha256: str, info: WeightsInfo) -> None:
    """Enter a weights file in the config.json beside it, which keeps its entries for other files that are there."""
    config_file = file.with_name(CONFIG_NAME)
    before = read_config(file) or {}
    files = {name: entry for name, entry in before.get("files", {}).items() if file.with_name(name).exists()}
    files[file.name] = {"sha256": sha256, "figures": info.figures}
    content = {
        "format": FORMAT,
        "architecture": json.loads(info.architecture.to_json()),
        "preprocessing": info.preprocessing,
        "labels": list(info.labels),
        "multi_label": info.multi_label,
        "licence": info.licence,
        "files": dict(sorted(files.items())),
    }
    content = json.loads(json.dumps(content))  # as it will be read, so that the checksum is of that
    write_text(config_file, json.dumps({**content, "checksum": checksum(content)}, indent=2) + "\n")


def add_figures(file: Path, figures: Mapping[str, Any]) -> None:
    """Enter more measured figures for a weights file of ours in the config.json beside it."""
    info = read_weights(file).info
    enter(file, file_sha256(file), dataclasses.replace(info, figures=info.figures | dict(figures)))


def check_published_layout(config: ConViTConfig, layout: str) -> None:
    """Raises ``ValueError`` if the published code could not run weights of this architecture."""
    square = config.grid[0] == config.grid[1]
    for field_name, value, fits in (
        ("pre_norm", config.pre_norm, config.pre_norm),
        ("use_gpsa", config.use_gpsa, config.use_gpsa),
        ("pred_act_fnc_name", config.pred_act_fnc_name, config.pred_act_fnc_name is None),
        ("norm_eps", config.norm_eps, config.norm_eps == 1e-6),
        ("num_nonlocal_layers", config.num_nonlocal_layers, config.num_nonlocal_layers > 0),
        ("global_pool", config.global_pool, config.global_pool == "token"),
        ("image_size", config.image_size, square),
    ):
        if not fits:
            raise UserError(
                f"{field_name} is {value!r}, which the {layout} layout has no place for: it holds pre-norm ConViTs "
                "with a square grid, a class token and one Linear as head."
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
    if layout == "comvex" and not out.suffix:
        out = out / "model.safetensors"
    if out.exists() and not overwrite:
        raise UserError(f"The file {out} is there already: choose another, or --overwrite to replace it.")
    weights = read_weights(source, config=config, ema=ema)
    config_file = out.with_name(CONFIG_NAME)
    if layout == "comvex" and config_file.exists() and not overwrite:
        raise UserError(f"{config_file} is there already: choose another folder, or --overwrite to replace it.")
    write_weights(weights.tensors, out, info=weights.info, layout=layout)
    return out, weights


def read_info(source: str | Path) -> WeightsInfo:
    """What is known of the weights of ``source``, after checking them as ``read_weights`` does."""
    return read_weights(source).info


__all__: Sequence[str] = (
    "LoadReport", "Weights", "WeightsInfo", "convert", "load_model", "load_weights", "read_weights", "save_weights",
)  # fmt: skip
