"""From a file, folder or name to a model: recognise, verify, adapt, and only then change anything."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comvex.convit.adapt import adapt
from comvex.convit.config import HEAD_FIELDS, ConViTConfig
from comvex.convit.model import ConViTBackbone, ConViTWithLinearClassifier, unwrapped
from comvex.convit.published import find_weights
from comvex.convit.shapes import UnknownArchitectureError, check_shapes, infer_config, mismatch
from comvex.convit.weights.config_file import (
    CONFIG_NAME,
    foreign_fields,
    is_ours,
    read_config,
    read_foreign_info,
    read_info,
)
from comvex.convit.weights.info import FUNCTION_FIELDS, Layout, WeightsInfo, info_for, preset_name
from comvex.convit.weights_files import MARK, file_sha256, read_tensor_file
from comvex.errors import UserError

LOGGER = logging.getLogger(__name__)


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
    file, published = find_weights(source, **(download or {}))
    content = read_config(file)
    if content is not None and is_ours(content):
        if file.name in content["files"]:
            return read_own(file, content, config=config, ema=ema)
        content = None  # it is about other files of the folder
    weights = read_foreign(file, content, config=config, ema=ema)
    if published is None:
        return weights
    info = weights.info
    known = dataclasses.replace(info, licence=info.licence or published.licence, figures=published.figures)
    return dataclasses.replace(weights, info=known)


def read_own(file: Path, content: Mapping[str, Any], *, config: ConViTConfig | None, ema: bool) -> Weights:
    """A weights file of ours, verified against its config.json."""
    info = read_info(file, content)
    if ema or config not in (None, info.architecture):
        raise UserError(
            f"The weights {file} are comvex's own: they have no averaged weights beside them, and their "
            "architecture is in their config.json."
        )
    if file_sha256(file) != content["files"][file.name].get("sha256"):
        raise UserError(f"The weights {file} are damaged: their SHA-256 is not the one in their {CONFIG_NAME}.")
    found = read_tensor_file(file)
    check_shapes(found.tensors, info.architecture, f"The weights file {file}")
    return Weights(file, "comvex", found.tensors, info)


def read_foreign(file: Path, content: Mapping[str, Any] | None, *, config: ConViTConfig | None, ema: bool) -> Weights:
    """A weights file in timm's or the official layout; ``content`` is that of a config.json of timm's beside it."""
    found = read_tensor_file(file, ema=ema)
    if MARK in found.metadata:
        raise UserError(
            f"The weights {file} belong to a {CONFIG_NAME} beside them, which is missing, damaged or about other files."
        )
    what = f"The weights file {file}"
    if config is None:
        config = infer_config(found.tensors, what, **foreign_fields(content or {}, file))
    check_shapes(found.tensors, config, what)
    layout: Layout = "official" if found.layout == "official" else "timm"
    return Weights(file, layout, found.tensors, read_foreign_info(config, content, file), found.notes)


def load_weights(
    model: nn.Module, source: str | Path, *, config: ConViTConfig | None = None, ema: bool = False
) -> LoadReport:
    """Put the weights of ``source`` (see ``read_weights``) into a model, adapting what may differ.

    A model wrapped for compilation or data parallelism is unwrapped.

    Another grid: the position embedding is resampled. Another patch size or other input channels: the patch projection
    is, by timm's rules. Other classes: the model keeps its own head. Each is a line of the report, and of the log; so
    is a model that pools, normalises or activates otherwise than that of the weights.

    Raises ``ValueError`` naming every tensor that is missing, unexpected or of another shape, or if the model has
    another number of heads; the model is then as it was. ``config`` is needed where neither the file's shapes nor the
    model tell the architecture of the file.
    """
    inner = unwrapped(model)
    if inner is None:
        raise UserError(f"A {type(model).__name__} is no ConViT: weights of one cannot be put into it.")
    try:
        weights = read_weights(source, config=config, ema=ema)
    except UnknownArchitectureError:
        weights = read_weights(source, config=inner.config, ema=ema)
    return put_weights(inner, weights)


def put_weights(model: ConViTBackbone, weights: Weights) -> LoadReport:
    """Copy weights that were read into a model; see ``load_weights``."""
    own = model.state_dict()
    source = weights.info.architecture
    adapted, changes = adapt(weights.tensors, source, model.config, own)
    found = mismatch(adapted, {name: tensor.shape for name, tensor in own.items()})
    if found is not None:
        raise UserError(f"The weights {weights.file} do not fit the model: {found}.")
    changes += other_functions(weights, model.config)
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


def other_functions(weights: Weights, target: ConViTConfig) -> list[str]:
    """A line for each way in which a model computes something else with the same tensors.

    Raises ``ValueError`` for another number of heads, with which no attention that was learned stays what it was.
    """
    source = weights.info.architecture
    if source.num_heads != target.num_heads:
        raise UserError(
            f"The weights {weights.file} do not fit the model: heads is {target.num_heads}, and must be "
            f"{source.num_heads} as in the weights."
        )
    new_head = source.num_classes != target.num_classes  # which pools and activates as it likes
    return [
        f"{name}: {getattr(source, name)!r} in the weights, {getattr(target, name)!r} in the model"
        for name in FUNCTION_FIELDS
        if getattr(source, name) != getattr(target, name) and not (new_head and name in HEAD_FIELDS)
    ]


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
