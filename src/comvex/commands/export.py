"""``comvex export``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from comvex.commands.options import ConfigFile, Source, read_config
from comvex.help import DEFAULT_TOLD


@dataclass(frozen=True)
class Export:
    """Write a trained model as a file for another runtime, checked against the weights on real pictures.

    OUT gets the model's file and a config.json with preprocessing, labels, shapes and checksums. The file needs neither
    comvex nor PyTorch (but for --to torch): input "pictures" (batch, channels, height, width), float32 and normalised;
    output "logits" (batch, classes). It is opened again and run on real pictures first; if its logits are further from
    those of the weights than the precision explains, or more than 5 % of the answers that the weights are sure of
    (probability 0.8) are others, nothing is written and the exit code is 2.

      comvex export runs/mine --to onnx                              # for ONNX Runtime, pictures of the run's size
      comvex export runs/mine --to onnx --dynamic batch,size         # any number of pictures of any size
      comvex export runs/mine --to openvino --precision int8         # the fastest on a CPU with VNNI or AMX
      comvex export convit_tiny.fb_in1k --to openvino --precision bfloat16 --out tiny
      comvex predict runs/mine/exported/onnx-float32 photo.jpg       # ... and comvex evaluate run what was exported

    Needs pip install 'comvex[export]'. Precisions: onnx float32; openvino float32, bfloat16, int8; torch float32,
    bfloat16.
    """

    source: Source
    to: Literal["onnx", "openvino", "torch"]
    """onnx: model.onnx. openvino: model.xml and model.bin. torch: model.pt2, a program of torch.export."""
    out: Annotated[Path | None, DEFAULT_TOLD] = None
    """Folder to write. Default: RUN/exported/RUNTIME-PRECISION, or beside a weights file or here for a name
    exported/NAME-RUNTIME-PRECISION, followed by what is not as by default, such as -224x192, -batch8, -any-size."""
    dynamic: Annotated[str, arg(metavar="batch,size")] = ""
    """What stays open: batch (any number of pictures), size (any height and width that the patches divide, from two
    patches on), or both with a comma between them: batch,size. Default: neither, which is fastest: what depends on the
    size alone is computed once, while exporting."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """What the runtime computes in."""
    image_size: Annotated[int | tuple[int, int] | None, DEFAULT_TOLD] = None
    """Picture side in pixels, or HEIGHT WIDTH. Default: that of the weights."""
    batch_size: int = 1
    """Pictures a call, unless --dynamic batch leaves that open."""
    data: Annotated[str | None, DEFAULT_TOLD] = None
    """Pictures to compare with (test part) and to calibrate int8 on (training part). Default: the run's own; without
    any, to compare, the pictures that come with convit_fashion_mnist, or two photographs."""
    num_calibration: int = 300
    """Pictures that int8 is calibrated on."""
    config: ConfigFile = None
    overwrite: bool = False
    """Replace an exported model that is there."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.export import ExportPlan, export_model, parse_axes

        plan = ExportPlan(
            self.to,
            precision=self.precision,
            dynamic=parse_axes(self.dynamic),
            image_size=self.image_size,
            batch_size=self.batch_size,
            num_calibration=self.num_calibration,
        )
        report = export_model(
            self.source,
            plan,
            out=self.out,
            data=self.data,
            config=read_config(self.config),
            overwrite=self.overwrite,
        )
        print(json.dumps(report) if self.json else describe_export(report))
        return 0


def describe_export(report: dict[str, Any]) -> str:
    """The report in lines."""
    sizes = ", ".join(f"{height} x {width}" for height, width in report["sizes"])
    lines = [
        f"{report['source']} -> {report['files'][0]} ({report['megabytes']:.1f} MB, {report['precision']})",
        f"input       pictures ({', '.join(map(str, report['input_shape']))}), float32, normalised",
        f"compared    with the weights in float32 on {report['num_pictures']} pictures of {report['compared_on']}, "
        f"{sizes} pixels",
        f"difference  largest {report['largest_difference']:.2g}, mean {report['mean_difference']:.2g} of a logit; "
        f"{report['relative_difference']:.1e} of their norm (allowed: {report['tolerance']:.0e})",
    ]
    if report["relative_difference_alone"] is not None:
        lines.append(f"one alone   {report['relative_difference_alone']:.1e} of their norm")
    if "same_top1" in report:
        turned = f"of {report['num_sure']} answers that the weights are sure of, {report['num_turned']} are others"
        lines.append(f"top-1       the same on {report['same_top1']:.1f} % of the pictures; {turned}")
    else:
        lines.append(f"answers     {report['same_answers']:.1f} % of the classes' yes or no are the same")
    if report["not_compared"]:
        lines.append(f"not tested  {report['not_compared']}")
    if "calibrated_on" in report:
        skipped = report["calibration_unreadable"]
        unread = f"; {skipped} cannot be read and were skipped" if skipped else ""
        lines.append(f"calibrated  on {report['calibrated_on']} training pictures{unread}")
    if report["why_these_pictures"]:
        lines.append(report["why_these_pictures"])
    return "\n".join(lines)
