"""Time, memory and share of the GEMM peak of ConViT beside a plain ViT and timm's ConViT, as ``comvex bench`` measures.

python benchmarks/speed.py eager     inference and training of Ti, S and S+ at 224, 384, 448 and 768 pixels
python benchmarks/speed.py openvino  inference of the same in OpenVINO, float32
python benchmarks/speed.py runtimes  Ti and S at 224 pixels in ONNX Runtime and in OpenVINO's four precisions
python benchmarks/speed.py bfloat16  training of Ti and S at 224 pixels in bfloat16 beside float32
python benchmarks/speed.py compile   Ti and S at 224 pixels by torch.compile beside eager (needs a C++ compiler)
python benchmarks/speed.py growth    Ti, one picture of 224 to 1024 pixels, with the exponent

A scene (model, size, batch, mode) that is recorded is not measured again: an interrupted command goes on when repeated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import recording

from comvex.bench.names import GROWING_SIZES, Mode, Precision, Rival, Runtime
from comvex.bench.plan import FEWEST_ROUNDS, Form, Plan, make_plan, preset_configs
from comvex.bench.run import run_bench
from comvex.errors import UserError


@dataclass(frozen=True)
class Table:
    """What a table measures, unless told otherwise."""

    presets: tuple[str, ...]
    batch_sizes: dict[int, int]
    """Pictures in a batch, for each side in pixels: so many that a table takes minutes."""
    modes: tuple[Mode, ...]
    runtimes: tuple[Runtime, ...] = ("eager",)
    precisions: tuple[Precision, ...] = ("float32",)
    against: tuple[Rival, ...] = ("plain_vit", "timm_convit")
    without_timm: tuple[int, ...] = ()
    """Sides that no target about timm's ConViT names, where its many times longer steps are left out."""

    def rivals(self, side: int) -> list[Rival]:
        """Whom ConViT is measured beside, at a side in pixels."""
        return [rival for rival in self.against if rival != "timm_convit" or side not in self.without_timm]


SIZES = {224: 16, 384: 8, 448: 8, 768: 2}
TABLES = {
    "eager": Table(
        ("ConViT_Ti", "ConViT_S", "ConViT_S_plus"), SIZES, ("inference", "training"), without_timm=(384, 768)
    ),
    "openvino": Table(
        ("ConViT_Ti", "ConViT_S", "ConViT_S_plus"), SIZES, ("inference",), ("openvino",), against=("plain_vit",)
    ),
    "runtimes": Table(
        ("ConViT_Ti", "ConViT_S"),
        {224: 16},
        ("inference",),
        ("eager", "onnxruntime", "openvino"),
        ("float32", "bfloat16", "int8_float32", "int8"),
    ),
    "bfloat16": Table(
        ("ConViT_Ti", "ConViT_S"),
        {224: 16},
        ("training",),
        precisions=("float32", "bfloat16"),
        against=("plain_vit",),
    ),
    "compile": Table(("ConViT_Ti", "ConViT_S"), {224: 16}, ("inference", "training"), ("eager", "compile")),
    "growth": Table(("ConViT_Ti",), dict.fromkeys(GROWING_SIZES, 1), ("inference", "training")),
}


def plan_scene(table: Table, key: recording.Key) -> Plan:
    """The plan of one scene."""
    plan = make_plan(
        preset_configs([key["model"]], [key["image_size"]]),
        batch_size=key["batch_size"],
        modes=[key["mode"]],
        runtimes=table.runtimes,
        precisions=table.precisions,
        against=table.rivals(key["image_size"]),
    )
    forms = {mode: [form for form in forms if is_wanted(form, table)] for mode, forms in plan.forms.items()}
    return dataclasses.replace(plan, forms=forms)


def is_wanted(form: Form, table: Table) -> bool:
    """Low precision is for runtimes, and beside these timm's model stands as published: eager in float32."""
    if len(table.runtimes) == 1:
        return True
    as_published = form.runtime == "eager" and form.precision == "float32"
    return as_published or (form.runtime != "eager" and form.contestant != "timm_convit")


def measure_scene(table: Table, key: recording.Key, *, threads: int) -> dict[str, Any]:
    """The figures of one scene, as ``comvex bench --json`` has them; raises ``ValueError`` if a form fails."""
    report = run_bench(plan_scene(table, key), rounds=key["rounds"], threads=threads)
    for row in report["rows"]:
        if row["error"] is not None:
            raise UserError(f"Not recorded, since {row['contestant']} in {row['runtime']} failed: {row['error']}")
    return {name: report[name] for name in ("ratios", "rows", "left_out")}


def num_rounds(side: int) -> int:
    """Paired rounds at a side in pixels, unless told otherwise: more where they are short."""
    return 11 if side <= 224 else FEWEST_ROUNDS


def parse_size(text: str) -> tuple[int, int]:
    """ "448:8" is eight pictures of 448 pixels."""
    side, _, batch_size = text.partition(":")
    if not (side.isdecimal() and batch_size.isdecimal()):
        raise UserError(f"size is {text!r}: it must be SIDE:BATCH, as in 448:8.")
    return int(side), int(batch_size)


def main(arguments: list[str] | None = None) -> None:
    parser = recording.new_parser(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--preset", nargs="+", help="sizes of the model, instead of the table's")
    parser.add_argument("--size", nargs="+", metavar="SIDE:BATCH", help="pixels and pictures, as in 448:8")
    parser.add_argument("--mode", nargs="+", choices=["inference", "training"])
    parser.add_argument("--rounds", type=int, help="paired rounds, at least 7 (11 up to 224 pixels, else 7)")
    options = parser.parse_args(arguments)
    table = TABLES[options.table]
    batch_sizes = dict(map(parse_size, options.size)) if options.size else table.batch_sizes
    rounds = {side: num_rounds(side) if options.rounds is None else options.rounds for side in batch_sizes}
    keys = [
        {"model": preset, "image_size": side, "batch_size": batch_size, "mode": mode, "rounds": rounds[side]}
        for preset in options.preset or table.presets
        for side, batch_size in batch_sizes.items()
        for mode in options.mode or table.modes
    ]
    for key in keys:
        plan_scene(table, key)  # so that a mistake is told before anything is measured
    record = recording.open_record(options.table, options, runtimes=table.runtimes, precisions=table.precisions)
    record.measure(keys, lambda key: measure_scene(table, key, threads=options.threads))


if __name__ == "__main__":
    recording.run(main)
