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
SURE = 0.8
"""Probability from which on the weights are sure of a class; a barely trained model, whose answers are ties, is not."""
LARGEST_SHARE_TURNED = 0.05
"""Of the answers that the weights are sure of, the share that may be others. One always may: it is much among few."""


def compare(
    model: nn.Module, exported: ExportedModel, real: RealPictures, preprocessing: Preprocessing
) -> dict[str, Any]:
    """How far the exported model's logits are from the eager ones on real pictures, as plain values.

    Differences are those of logits; ``relative_difference`` is the norm of the difference over that of the logits,
    ``same_top1`` (multi-label: ``same_answers``) the percentage of equal answers, ``num_sure`` the answers that the
    weights are sure of, ``num_turned`` those of them that are others; ``not_compared`` says in what the runtime should
    have computed and could not, if anything. If the size is open, the pictures are compared at the native size, at a
    larger one, which is no square if the native one is, and at half of it. If the batch is open, the first picture of
    every batch is run alone too, for ``relative_difference_alone``.
    """

    def logits(pictures: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            expected = model(pictures)
        return expected.double(), exported(pictures).double()

    together, alone, sizes = [], [], compared_sizes(exported.info)
    for size in sizes:
        for pictures in real.batches(replace(preprocessing, image_size=size), batch_size=16):
            together.append(logits(pictures))
            if "batch" in exported.info.dynamic:
                alone.append(logits(pictures[:1]))
    if not together:
        raise UserError(f"None of the pictures of {real.name} to compare with can be read: --data must name others.")
    eager, run = map(torch.cat, zip(*together, strict=True))
    difference = (run - eager).abs()
    return {
        "compared_on": real.name,
        "why_these_pictures": real.why,
        "num_pictures": len(eager) // len(sizes),
        "sizes": [list(size) for size in sizes],
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "relative_difference": relative_difference(eager, run),
        "relative_difference_alone": relative_difference(*map(torch.cat, zip(*alone, strict=True))) if alone else None,
        "tolerance": TOLERANCE[exported.info.precision],
        "not_compared": not_compared(exported.info),
        **same_answers(eager, run, multi_label=exported.info.multi_label),
    }


def relative_difference(eager: Tensor, run: Tensor) -> float:
    """The norm of the difference over that of the eager logits."""
    return float((run - eager).norm() / eager.norm())


def not_compared(info: ExportedInfo) -> str:
    """What the comparison says nothing about, since this processor cannot compute in it; usually nothing."""
    if info.to != "openvino" or HINTS[info.precision] != "bf16" or openvino_has_bfloat16():
        return ""
    rest = "what is not int8 was computed" if info.precision == "int8" else "all was computed"
    return f"bfloat16, which this processor does not have: {rest} in float32"


def same_answers(eager: Tensor, run: Tensor, *, multi_label: bool) -> dict[str, float]:
    """How many answers are the same, in percent: the most probable class, or each class's yes or no.

    With one class a picture also how many of them the weights are sure of, and how many of these are not the same.
    """
    if multi_label:
        return {"same_answers": 100 * float(((eager > 0) == (run > 0)).double().mean())}
    same = eager.argmax(dim=1) == run.argmax(dim=1)
    sure = eager.softmax(dim=1).amax(dim=1) >= SURE
    return {
        "same_top1": 100 * float(same.double().mean()),
        "num_sure": int(sure.sum()),
        "num_turned": int((sure & ~same).sum()),
    }


def compared_sizes(info: ExportedInfo) -> list[tuple[int, int]]:
    """The sizes (height, width) in pixels at which an exported model is compared."""
    height, width = info.image_size
    patch = info.architecture.patch_size
    if "size" not in info.dynamic:
        return [(height, width)]
    half_height, half_width = (patch * max(2, side // (2 * patch)) for side in (height, width))
    return list(dict.fromkeys([(height, width), (height + patch, width + 2 * patch), (half_height, half_width)]))


def check_comparison(comparison: dict[str, Any], info: ExportedInfo) -> None:
    """Raises ``ValueError`` if the exported model is further from the weights than its precision explains."""
    for how, name in (("", "relative_difference"), (", one picture alone,", "relative_difference_alone")):
        difference = comparison[name]
        if difference is not None and not difference <= comparison["tolerance"]:  # NaN too
            raise UserError(
                f"The exported model computes something else: on {comparison['compared_on']}{how} its logits differ "
                f"from those of the weights by {difference:.1e} of their norm, where {info.precision} explains "
                f"{comparison['tolerance']:.0e} (a logit by {comparison['largest_difference']:.2g} at most and "
                f"{comparison['mean_difference']:.2g} in the mean); nothing was written."
            )
    num_sure, num_turned = comparison.get("num_sure", 0), comparison.get("num_turned", 0)
    if num_turned > max(1, LARGEST_SHARE_TURNED * num_sure):
        raise UserError(
            f"The exported model answers otherwise: of {num_sure} answers on {comparison['compared_on']} that the "
            f"weights are sure of (probability {SURE} or more) {num_turned} are others, where {info.precision} "
            f"explains one, or {100 * LARGEST_SHARE_TURNED:.0f} %; nothing was written."
        )
