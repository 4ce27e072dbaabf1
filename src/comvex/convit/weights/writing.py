"""From a model to a file: our own layout with its config.json, timm's, or the official repository's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from comvex.convit.config import ConViTConfig
from comvex.convit.model import unwrapped
from comvex.convit.published import WEIGHTS_NAME
from comvex.convit.shapes import check_shapes
from comvex.convit.weights.config_file import FORMAT, has_entry, other_entries, write_entries, write_entry
from comvex.convit.weights.info import Layout, WeightsInfo, default_preprocessing, info_for
from comvex.convit.weights.reading import Weights, read_weights
from comvex.convit.weights_files import MARK, file_sha256, plain_tensors, save_tensors
from comvex.errors import UserError
from comvex.files import replace_file

PICKLES = (".pth", ".pt", ".bin")
ENDINGS: dict[Layout, tuple[str, ...]] = {
    "comvex": (".safetensors",),
    "timm": (".safetensors", *PICKLES),
    "official": PICKLES,
}
LAYOUTS = tuple(ENDINGS)


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
    inner = unwrapped(model)
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
    for parent in file.parents:
        if parent.is_file():
            raise UserError(f"{file} cannot be written: {parent} is a file.")
    if layout == "comvex":
        others = other_entries(file)  # first, since it may refuse the folder
        sha256 = save_tensors(tensors, file, metadata={MARK: str(FORMAT)})
        write_entry(file, sha256, info, others)
        return
    check_published_layout(info.architecture, layout)
    others = other_entries(file) if has_entry(file) else None
    if ending == ".safetensors":
        save_tensors(tensors, file)
    else:
        with replace_file(file) as temporary:
            plain = plain_tensors(tensors)
            torch.save({"model": plain} if layout == "official" else plain, temporary)
    if others is not None:  # config.json told of a file of ours, whose place this one has taken
        write_entries(file, others)


def check_published_layout(config: ConViTConfig, layout: Layout) -> None:
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


def add_figures(file: Path, figures: Mapping[str, Any]) -> None:
    """Enter more measured figures for a weights file of ours in the config.json beside it."""
    info = read_weights(file).info
    info = dataclasses.replace(info, figures=info.figures | dict(figures))
    write_entry(file, file_sha256(file), info, other_entries(file))


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
    try:
        out = place_for(out, layout=layout, overwrite=overwrite)
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    weights = read_weights(source, config=config, ema=ema)
    if layout != "comvex" and weights.info.multi_label:
        note = f"the {layout} layout does not say that the model is multi-label: read back, it is a single-label one"
        weights = dataclasses.replace(weights, notes=(*weights.notes, note))
    try:
        write_weights(weights.tensors, out, info=weights.info, layout=layout)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last is what torch.save has for a full disk
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{out} cannot be written: {reason or error}.") from error
    return out, weights


def place_for(out: Path, *, layout: Layout, overwrite: bool) -> Path:
    """The file that ``convert`` writes; raises ``ValueError`` if it may not, ``OSError`` if no file is called so."""
    if layout == "comvex" and (out.suffix != ".safetensors" or out.is_dir()):
        out = out / WEIGHTS_NAME
    if out.is_dir():
        raise UserError(f"{out} is a folder: in the {layout} layout OUT must be a file.")
    if out.exists() and not overwrite:
        raise UserError(f"The file {out} is there already: choose another, or --overwrite to replace it.")
    return out
