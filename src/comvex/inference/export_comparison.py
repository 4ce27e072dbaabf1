"""The comparison of an exported model with the weights that it was made of, on real pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.inference.export_pictures import RealPictures
from comvex.inference.exported import HINTS, ExportedInfo, ExportedModel, Precision
from comvex.inference.runtimes import openvino_has_bfloat16

TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 2e-1}
"""Largest norm of the difference to eager float32, over the norm of the logits.

Some hundred roundings of 6e-8 in float32, or of 4e-3 in bfloat16; int8 has steps of 1/127 of the largest value of a
tensor, whose typical values are several times smaller than that. A program that computes something else is off by the
norm itself."""


def compare(
    model: nn.Module, exported: ExportedModel, real: RealPictures, preprocessing: Preprocessing
) -> dict[str, Any]:
    """How far the exported model's logits are from the eager ones on real pictures, as plain values.

    Differences are those of logits; ``relative_difference`` is the norm of the difference over that of the logits,
    ``same_top1`` (multi-label: ``same_answers``) the percentage of equal answers; ``not_compared`` says in what the
    runtime should have computed and could not, if anything. If the size is open, the pictures are compared at the
    native size and at another one, which is no square if the native one is.
    """
    expected, found, sizes = [], [], compared_sizes(exported.info)
    for size in sizes:
        for pictures in real.batches(replace(preprocessing, image_size=size), batch_size=16):
            with torch.inference_mode():
                expected.append(model(pictures))
            found.append(exported(pictures))
    if not expected:
        raise UserError(f"None of the pictures of {real.name} to compare with can be read: --data must name others.")
    eager, run = torch.cat(expected).double(), torch.cat(found).double()
    difference = (run - eager).abs()
    return {
        "compared_on": real.name,
        "why_these_pictures": real.why,
        "num_pictures": len(eager) // len(sizes),
        "sizes": [list(size) for size in sizes],
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "relative_difference": float(difference.norm() / eager.norm()),
        "tolerance": TOLERANCE[exported.info.precision],
        "not_compared": not_compared(exported.info),
        **same_answers(run, eager, multi_label=exported.info.multi_label),
    }


def not_compared(info: ExportedInfo) -> str:
    """What the comparison says nothing about, since this processor cannot compute in it; usually nothing."""
    if info.to != "openvino" or HINTS[info.precision] != "bf16" or openvino_has_bfloat16():
        return ""
    rest = "what is not int8 was computed" if info.precision == "int8" else "all was computed"
    return f"bfloat16, which this processor does not have: {rest} in float32"


def same_answers(logits: Tensor, others: Tensor, *, multi_label: bool) -> dict[str, float]:
    """How many answers are the same, in percent: the most probable class, or each class's yes or no."""
    if multi_label:
        return {"same_answers": 100 * float(((logits > 0) == (others > 0)).double().mean())}
    return {"same_top1": 100 * float((logits.argmax(dim=1) == others.argmax(dim=1)).double().mean())}


def compared_sizes(info: ExportedInfo) -> list[tuple[int, int]]:
    """The sizes (height, width) in pixels at which an exported model is compared."""
    height, width = info.image_size
    patch = info.architecture.patch_size
    return [(height, width), (height + patch, width + 2 * patch)] if "size" in info.dynamic else [(height, width)]


def check_comparison(comparison: dict[str, Any], info: ExportedInfo) -> None:
    """Raises ``ValueError`` if the exported model is further from the weights than its precision explains."""
    if not comparison["relative_difference"] <= comparison["tolerance"]:  # NaN too
        raise UserError(
            f"The exported model computes something else: on {comparison['compared_on']} its logits differ from those "
            f"of the weights by {comparison['relative_difference']:.1e} of their norm, at most "
            f"{comparison['largest_difference']:.2g}, where {info.precision} explains {comparison['tolerance']:.0e}; "
            "nothing was written."
        )
