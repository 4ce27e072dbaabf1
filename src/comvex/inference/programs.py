"""A model as a program for other runtimes: traced by ``torch.export``, then written as ONNX, OpenVINO or PyTorch files.

Every program maps ``pictures`` (B, C, height, width), float32 and normalised, to ``logits`` (B, num_classes), float32.
OpenVINO's model is made of the ONNX one: OpenVINO's reader of PyTorch programs does not know the arithmetic of sizes
that are open, and makes no faster model of fixed ones.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.errors import UserError

Axis = Literal["batch", "size"]
INPUT, OUTPUT = "pictures", "logits"
AXIS_WORDS = {0: "batch", 2: "rows", 3: "columns"}
"""What the numbers of pictures, and of rows and columns of patches, are called where they are open."""
SYMBOL = r"\bs\d+\b"
FEWEST_PATCHES = 2
"""A side of one patch would be another program: tracing takes an axis of length one for a constant."""


class FixedFactors(nn.Module):
    """Stands for the ``PositionalProjection`` of a layer on one grid: its two factors as constants."""

    def __init__(self, row_factor: Tensor, column_factor: Tensor) -> None:
        super().__init__()
        self.row_factor: Tensor
        self.column_factor: Tensor
        self.register_buffer("row_factor", row_factor)
        self.register_buffer("column_factor", column_factor)

    def forward(self, grid: tuple[int, int], key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The factors over rows (heads, H, H) and over columns (heads, W, W)."""
        return self.row_factor, self.column_factor


class InPrecision(nn.Module):
    """A copy of a model computed in another floating-point type, from and to float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures.to(self.dtype)).float()


@torch.no_grad()
def with_constant_positions(model: nn.Module, grid: tuple[int, int]) -> nn.Module:
    """A copy of a model for one grid of patches (rows, columns), whose positional factors are not computed anew."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, GatedPositionalSelfAttention):
            module.pos_proj = FixedFactors(*module.pos_proj(grid))  # pyright: ignore[reportAttributeAccessIssue]
    return model


def trace(
    model: nn.Module, pictures: Tensor, *, dynamic: Collection[Axis] = (), patch_size: int = 1
) -> ExportedProgram:
    """The program of a model for pictures of this shape (B, C, height, width), whatever values they have.

    With "batch" in ``dynamic`` it takes any number of pictures, with "size" every height and width that are multiples
    of ``patch_size``, from two patches on; for these the example must have at least two pictures, and two patches a
    side.
    """
    axes: dict[int, Any] = {0: Dim(AXIS_WORDS[0], min=1)} if "batch" in dynamic else {}
    if "size" in dynamic:
        for axis in (2, 3):
            axes[axis] = patch_size * Dim(AXIS_WORDS[axis], min=FEWEST_PATCHES)
    with torch.no_grad():
        return torch.export.export(model, (pictures,), dynamic_shapes=(axes,) if axes else None)


def write_onnx(program: ExportedProgram, file: Path) -> None:
    """Write a program as one ONNX file, weights included; axes that are open are called as in ``AXIS_WORDS``."""
    converted = torch.onnx.export(
        program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )  # fmt: skip
    assert converted is not None
    name_axes(converted.model.graph)
    converted.save(file, external_data=False)


def name_axes(graph: Any) -> None:
    """Put the words of ``AXIS_WORDS`` for what PyTorch calls the open axes of the pictures, such as s32 and 4*s30."""
    [pictures] = graph.inputs
    words = {}
    for axis, word in AXIS_WORDS.items():
        words |= dict.fromkeys(re.findall(SYMBOL, str(pictures.shape[axis])), word)
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values if words else ():
        for axis, length in enumerate(value.shape or ()):
            if not isinstance(length, int) and length.value is not None:
                named = re.sub(SYMBOL, lambda found: words.get(found[0], found[0]), length.value)
                value.shape[axis] = re.sub(r"(?<=\w)\*(?=\w)", " * ", named)


def read_for_openvino(onnx_file: Path) -> Any:
    """The ``openvino.Model`` of an ONNX file, in float32, with what depends on the weights alone computed."""
    import openvino
    from openvino.passes import ConstantFolding, Manager

    model = openvino.Core().read_model(onnx_file)
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return model


def write_openvino(model: Any, file: Path) -> None:
    """Write an ``openvino.Model`` as FILE.xml and FILE.bin, every number as it is."""
    import openvino

    openvino.save_model(model, file, compress_to_fp16=False)


def check_installed(packages: Iterable[str], *, what: str) -> None:
    """Raises ``ValueError`` if a package is not there that ``what``, as in "Export to onnx", needs."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{what} needs the package {package}, which is not installed: pip install 'comvex[export]' brings it."
            )
