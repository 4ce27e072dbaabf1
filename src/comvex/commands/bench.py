"""``comvex bench``."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from comvex.bench.names import GROWING_SIZES, Mode, Precision, Rival, Runtime
from comvex.errors import UserError
from comvex.help import DEFAULT_TOLD


@dataclass(frozen=True)
class Bench:
    """Measure the speed and memory of ConViT beside a plain ViT and timm's ConViT, in turn in one run.

    All are of the same width, depth and heads, on the same made pictures: this ConViT, timm's VisionTransformer with
    fused attention, and timm's own convit. They run one after the other, round by round, so that the ratios hold on a
    machine whose speed changes; absolute times hold for an idle one. Wherever several values can be given, all their
    combinations are measured. What --out holds is written after each scene (a size of the model, a size of the picture
    and a mode). A form that fails is a row that says so, and the exit code is 1.

      comvex bench                                             # ConViT-Ti at 224 pixels, inference and training
      comvex bench --size 224 448 --runtime eager openvino --precision float32 bfloat16 --out bench
      comvex bench --grow --batch-size 1 --mode inference      # 224 to 1024 pixels, with the exponent
    """

    preset: tuple[str, ...] = ("ConViT_Ti",)
    """Sizes of the model: ConViT_Ti, ConViT_Ti_plus, ConViT_S, ConViT_S_plus, ConViT_B, ConViT_B_plus."""
    size: Annotated[tuple[int, ...] | None, DEFAULT_TOLD] = None
    """Sides of the square pictures in pixels, multiples of 16, each once. Default: 224."""
    grow: bool = False
    """Measure at 224, 384, 448, 768 and 1024 pixels, and fit how the cost grows with the picture."""
    batch_size: int = 16
    """Pictures per step."""
    mode: tuple[Mode, ...] = ("inference", "training")
    """inference is a forward pass, training a step of forward, backward and AdamW."""
    precision: tuple[Precision, ...] = ("float32",)
    """float32, bfloat16 (in training: autocast), int8 (what comvex export writes for OpenVINO, here calibrated on made
    pictures), int8_float32 (int8 whose other layers compute in float32, not in bfloat16)."""
    runtime: tuple[Runtime, ...] = ("eager",)
    """eager, compile (torch.compile), onnxruntime, openvino; the last two infer only, on the CPU."""
    against: tuple[Rival, ...] = ("plain_vit", "timm_convit")
    """What ConViT is compared with: plain_vit, timm_convit."""
    rounds: int = 9
    """Paired rounds, after two steps to warm up; at least 7."""
    threads: Annotated[int | None, DEFAULT_TOLD] = None
    """Threads of every runtime. Default: what PyTorch takes on this machine."""
    device: str = "cpu"
    """cpu, cuda, or auto for cuda where it is there."""
    out: Annotated[Path | None, DEFAULT_TOLD] = None
    """Folder for bench.md, bench.json, ratios.png and times.png."""
    overwrite: bool = False
    """Replace a report that is there."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        if self.grow and self.size is not None:
            raise UserError("size and grow are both given: grow measures at sizes of its own.")
        from comvex.bench.plan import make_plan, preset_configs

        sizes = GROWING_SIZES if self.grow else (224,) if self.size is None else self.size
        plan = make_plan(
            preset_configs(self.preset, sizes),
            batch_size=self.batch_size,
            modes=self.mode,
            runtimes=self.runtime,
            precisions=self.precision,
            against=self.against,
        )
        from comvex.bench.report import check_out, to_markdown, write_report
        from comvex.bench.run import run_bench

        if self.out is not None:
            check_out(self.out, overwrite=self.overwrite)
        report: dict[str, Any] = {}

        def keep(measured: dict[str, Any]) -> None:
            report.update(measured)
            if self.out is not None:
                with suppress(OSError):  # the last time tells it
                    write_report(report, self.out)

        try:
            run_bench(
                plan,
                rounds=self.rounds,
                threads=self.threads,
                device=self.device,
                command=shlex.join(["comvex", *sys.argv[1:]]),
                after_scene=keep,
            )
        finally:  # an interrupted run too says what it has; before what follows, which may find the disk full
            if report:
                print(
                    json.dumps(report) if self.json else to_markdown(report), end="\n" if self.json else "", flush=True
                )
        if self.out is not None:
            write_report(report, self.out)
        num_failed = sum(row["error"] is not None for row in report["rows"])
        if num_failed:
            print(f"comvex: {num_failed} of {len(report['rows'])} forms failed: the report says why.", file=sys.stderr)
        return 1 if num_failed else 0
