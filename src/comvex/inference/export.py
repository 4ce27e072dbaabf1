"""The whole of an export: weights to a file for a runtime, opened again and compared on pictures before it stays."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.markup import escape
from torch import Tensor, nn

from comvex.convit.config import ConViTConfig, as_pair, check_integer
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.convit.weights.config_file import CONFIG_NAME
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.files import remove_leftovers, temporary_beside
from comvex.inference.export_comparison import check_comparison, compare
from comvex.inference.export_pictures import (
    Calibration,
    calibration_batches,
    calibration_pictures,
    comparison_pictures,
)
from comvex.inference.exported import (
    PROGRAM_FILES,
    RUNTIME_PACKAGES,
    ExportedInfo,
    ExportedModel,
    Precision,
    Target,
    is_exported,
    open_program,
    write_exported,
)
from comvex.inference.predictor import Predictor, load
from comvex.inference.programs import (
    FEWEST_PATCHES,
    Axis,
    InPrecision,
    check_installed,
    read_for_openvino,
    trace,
    with_constant_positions,
    write_onnx,
    write_openvino,
)
from comvex.inference.quantisation import quantise
from comvex.inference.run_data import training_data
from comvex.terminal import progress_bar

PRECISIONS: dict[Target, tuple[Precision, ...]] = {
    "onnx": ("float32",),
    "openvino": ("float32", "bfloat16", "int8"),
    "torch": ("float32", "bfloat16"),
}
WRITERS: dict[Target, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("onnx", "onnxscript"),
    "torch": (),
}
"""Packages that writing takes, beyond those of running."""


@dataclass(frozen=True)
class ExportPlan:
    """What shall be exported; raises ``ValueError`` for what does not exist."""

    to: Target
    precision: Precision = "float32"
    dynamic: tuple[Axis, ...] = ()
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or (height, width); None: that of the weights."""
    batch_size: int = 1
    """Pictures a call where "batch" is not open."""
    num_calibration: int = 300
    """Pictures that set the ranges of int8."""

    def __post_init__(self) -> None:
        if self.to not in PRECISIONS:
            raise UserError(f"to is {self.to!r}: it must be one of {', '.join(PRECISIONS)}.")
        if self.precision not in PRECISIONS[self.to]:
            others = "; ".join(f"{to} takes {', '.join(given)}" for to, given in PRECISIONS.items())
            raise UserError(f"precision is {self.precision!r}, which there is not for {self.to}: {others}.")
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("num_calibration", self.num_calibration, at_least=1)
        quantising = ("nncf",) if self.precision == "int8" else ()
        check_installed([*WRITERS[self.to], *RUNTIME_PACKAGES[self.to], *quantising], what=f"Export to {self.to}")


def parse_axes(text: str) -> tuple[Axis, ...]:
    """What --dynamic names, in its own order and once each; raises ``ValueError`` for what there is not."""
    given = [name.strip() for name in text.split(",")] if text else []
    if not set(given) <= set(get_args(Axis)):
        raise UserError(f"dynamic is {text!r}: it must be batch, size, or batch,size.")
    return tuple(axis for axis in get_args(Axis) if axis in given)


def export_model(
    source: str | Path,
    plan: ExportPlan,
    *,
    out: Path | None = None,
    data: str | None = None,
    config: ConViTConfig | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export the weights of ``source`` into the folder ``out``, compare the result with them, and say how it went.

    ``out`` is by default exported/RUNTIME-PRECISION in the run (``default_folder``). ``data`` has the pictures to
    compare with and to calibrate on: by default those of the run, else, to compare, those that come with a packaged
    model or scikit-learn's two photographs. The logits are compared with those of the eager model in float32, on test
    pictures, of two sizes if the size is open.

    Raises ``ValueError`` for what cannot be exported, and if the exported model computes something else than the
    weights do by more than its precision explains: then nothing is left of it.
    """
    if is_exported(source):
        raise UserError(f"{source} is an exported model: comvex export takes the run or the weights it was made of.")
    predictor = load(source, config=config, device="cpu")
    folder = out or default_folder(source, plan, native=predictor.preprocessing.image_size)
    check_out(folder, overwrite=overwrite)
    preprocessing = fit_size(predictor, plan)
    if predictor.model.config.num_classes == 0:
        raise UserError(f"The model of {source} has no head, so there are no logits to export.")
    to_compare = comparison_pictures(source, data, preprocessing)
    to_calibrate = None
    if plan.precision == "int8":
        to_calibrate = calibration_pictures(source, data, preprocessing, num=plan.num_calibration)
    info = ExportedInfo(
        to=plan.to,
        precision=plan.precision,
        dynamic=plan.dynamic,
        batch_size=plan.batch_size,
        architecture=predictor.model.config,
        preprocessing=preprocessing.to_dict(),
        labels=predictor.labels,
        multi_label=predictor.task.multi_label,
        licence=None if predictor.model.info is None else predictor.model.info.licence,
        training_data=training_data(source),
    )
    with progress_bar(transient=True) as bar, fresh_files(folder) as written:
        task = bar.add_task("", total=None)

        def tell(text: str) -> None:
            bar.update(task, description=escape(text))

        calibration = None
        if to_calibrate is not None:
            tell(f"reading {len(to_calibrate.pictures)} pictures of {to_calibrate.name}")
            calibration = calibration_batches(to_calibrate, info)
        write_program(predictor.model, info, written, calibration=calibration, tell=tell)
        tell("comparing with the weights")
        exported = ExportedModel(info, open_program(written, info.to, info.precision))
        comparison = compare(predictor.model, exported, to_compare, preprocessing)
        check_comparison(comparison, info)
        if calibration is not None:
            comparison["calibrated_on"] = calibration.num_pictures
            comparison["calibration_unreadable"] = calibration.num_unreadable
        write_exported(written, info, comparison)
    return {
        "source": str(source),
        "out": str(folder),
        "files": [str(folder / name) for name in PROGRAM_FILES[info.to]],
        "megabytes": sum((folder / name).stat().st_size for name in PROGRAM_FILES[info.to]) / 1e6,
        "runtime": info.to,
        "precision": info.precision,
        "input_shape": info.shape,
        **comparison,
    }


# What goes in


def fit_size(predictor: Predictor[ConViTWithLinearClassifier], plan: ExportPlan) -> Preprocessing:
    """The preprocessing for the size asked for; a model for that size alone gets its position embedding at that size.

    Raises ``ValueError`` for a size that the patches do not divide, or that an open size does not take.
    """
    preprocessing = predictor.preprocessing
    if plan.image_size is not None:
        preprocessing = replace(preprocessing, image_size=as_pair(plan.image_size))
    config = replace(predictor.model.config, image_size=preprocessing.image_size)  # which checks it
    patch = config.patch_size
    if "size" not in plan.dynamic:
        predictor.model.set_input_size(config.image_size)
    elif any(side % patch or side < FEWEST_PATCHES * patch for side in preprocessing.image_size):
        raise UserError(
            f"image_size is {config.image_size}: for --dynamic size each side must be a multiple of {patch} pixels, "
            f"and at least {FEWEST_PATCHES * patch}; --image-size sets it."
        )
    return preprocessing


# Writing


def write_program(
    model: nn.Module,
    info: ExportedInfo,
    folder: Path,
    *,
    calibration: Calibration | None,
    tell: Callable[[str], None],
) -> None:
    """Write the files of a model's program into a folder; ``tell`` is called with what goes on."""
    tell("tracing the model")
    program = trace(
        prepared(model, info),
        example(info),
        dynamic=info.dynamic,
        patch_size=info.architecture.patch_size,
    )
    file = folder / PROGRAM_FILES[info.to][0]
    tell(f"writing {file.name}")
    if info.to == "torch":
        torch.export.save(program, file)
        return
    onnx_file = file.with_suffix(".onnx")
    write_onnx(program, onnx_file)
    if info.to == "onnx":
        return
    converted = read_for_openvino(onnx_file)
    if calibration is not None:
        tell(f"quantising on {calibration.num_pictures} pictures of {calibration.name}")
        converted = quantise(converted, calibration.batches)
    write_openvino(converted, file)
    del converted  # it may still read the ONNX file
    onnx_file.unlink()


def prepared(model: nn.Module, info: ExportedInfo) -> nn.Module:
    """The module that is traced: positional factors as constants if the size is, PyTorch's own in its precision."""
    if "size" not in info.dynamic:
        model = with_constant_positions(model, info.architecture.grid)
    if info.to == "torch" and info.precision == "bfloat16":
        return InPrecision(model, torch.bfloat16)
    return model


def example(info: ExportedInfo) -> Tensor:
    """Zeros (B, C, height, width) to trace with: two pictures where their number is open."""
    batch_size = 2 if "batch" in info.dynamic else info.batch_size
    return torch.zeros(batch_size, info.architecture.image_channel, *info.image_size)


# The folder


def default_folder(source: str | Path, plan: ExportPlan, *, native: tuple[int, int]) -> Path:
    """exported/RUNTIME-PRECISION in a run, beside a weights file, or here for a model by name.

    The name says too of which of several models it is, and what of the shape is not as by default.
    """
    path = Path(source)
    if path.is_dir():
        within, model = path, []
    elif path.is_file():
        within, model = path.parent, [path.stem]
    else:
        within, model = Path(), [re.sub("[/:]", "-", str(source))]
    size = native if plan.image_size is None else as_pair(plan.image_size)
    shape = [] if size == native else ["{}x{}".format(*size)]
    shape += [] if plan.batch_size == 1 or "batch" in plan.dynamic else [f"batch{plan.batch_size}"]
    shape += [f"any-{axis}" for axis in plan.dynamic]
    return within / "exported" / "-".join([*model, plan.to, plan.precision, *shape])


def check_out(folder: Path, *, overwrite: bool) -> None:
    """Raises ``ValueError`` if the folder may not be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_exported(folder):
        raise UserError(f"{folder} is there already and is no exported model: choose another --out.")
    if not overwrite:
        raise UserError(f"The exported model {folder} is there already: choose another --out, or --overwrite.")


@contextmanager
def fresh_files(folder: Path) -> Iterator[Path]:
    """A new folder to write to, whose files reach ``folder`` if nothing fails; otherwise nothing changes there.

    Files of an exported model that are there already go; others stay. Raises ``ValueError`` if it cannot be written.
    """
    temporary = temporary_beside(folder)
    try:
        remove_leftovers(folder)
        try:
            temporary.mkdir(parents=True)  # in here, since a signal may come as soon as it is done
            yield temporary
            folder.mkdir(exist_ok=True)
            # config.json goes first and comes last: what a crash leaves in between is no whole exported model.
            for name in (CONFIG_NAME, *(name for names in PROGRAM_FILES.values() for name in names)):
                (folder / name).unlink(missing_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == CONFIG_NAME):
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
