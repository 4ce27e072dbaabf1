"""A trained model in OpenVINO's float32, bfloat16 and int8 beside eager: top-1 on the test pictures, and time.

python benchmarks/low_precision.py RUN
python benchmarks/low_precision.py convit_fashion_mnist --data fashion-mnist

Each form is what ``comvex export --batch-size 64`` writes (int8 calibrated on training pictures, what it leaves
computed in bfloat16), evaluated as ``comvex evaluate`` does, and timed in turn with the others on one batch of test
pictures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import recording
import torch
from torch import Tensor

from comvex.bench.figures import Spread
from comvex.bench.plan import FEWEST_ROUNDS
from comvex.bench.run import time_in_turn
from comvex.bench.steps import Step
from comvex.convit.config import check_integer
from comvex.convit.published import find_weights
from comvex.convit.weights import file_sha256
from comvex.data.loading import evaluation_loader
from comvex.data.picture_set import PictureSet
from comvex.errors import UserError
from comvex.inference.export import ExportPlan, export_model
from comvex.inference.exported import Precision
from comvex.inference.predictor import Predictor, load, open_predictor
from comvex.inference.run_data import evaluation_data
from comvex.inference.run_evaluation import Changes, class_order, evaluate_parts

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
EAGER = "eager float32"


def one_batch(pictures: PictureSet, predictor: Predictor, *, batch_size: int) -> Tensor:
    """The first pictures (B, C, height, width) as the model wants them."""
    preprocessing = predictor.preprocessing
    loader = evaluation_loader(
        pictures, preprocessing.transform(), channels=preprocessing.channels, batch_size=batch_size, workers=0
    )
    return next(iter(loader)).pictures


def make_step(predictor: Predictor, pictures: Tensor) -> Step:
    """A forward pass of an eager or of an exported model."""

    def step() -> Tensor:
        with torch.inference_mode():
            return predictor.model(pictures)

    return step


def measure(source: str, data: str | None, key: recording.Key) -> dict[str, Any]:
    """Top-1 and paired times of every form of a model."""
    predictor = load(source, device="cpu")
    data_set = evaluation_data(source, data, part="test").read_at(full_depth=predictor.preprocessing.full_depth)
    if data_set.test is None:
        raise UserError(f"{data_set.name} has no test pictures.")
    if data_set.multi_label:
        raise UserError(f"The pictures of {data_set.name} have several classes each: there is no top-1.")
    test = data_set.test
    order = class_order(predictor, data_set)
    forms: dict[str, Predictor] = {EAGER: predictor}
    exports = {}
    with tempfile.TemporaryDirectory(prefix="comvex-low-precision-") as folder:
        for precision in PRECISIONS:
            name = f"OpenVINO {precision}"
            recording.tell(f"exporting for {name}")
            plan = ExportPlan("openvino", precision, batch_size=key["batch_size"])
            exports[name] = export_model(source, plan, out=Path(folder) / precision, data=data)
            forms[name] = open_predictor(Path(folder) / precision, device="cpu")
        top1 = {}
        for name, form in forms.items():
            recording.tell(f"evaluating {name}")
            evaluation = evaluate_parts(form, [test], Changes(), order=order, batch_size=key["batch_size"], workers=0)
            top1[name] = evaluation.scores.summary()["top1"]
        pictures = one_batch(test, predictor, batch_size=key["batch_size"])
        recording.tell("timing")
        steps = {name: make_step(form, pictures) for name, form in forms.items()}
        seconds = time_in_turn(steps, rounds=key["rounds"], device=torch.device("cpu"), tell=lambda text: None)
    return {
        "data": data_set.name,
        "num_pictures": len(test),
        "model": describe(predictor),
        "calibrated_on": exports["OpenVINO int8"]["calibrated_on"],
        "forms": [form_row(name, top1, seconds, exports.get(name), batch_size=len(pictures)) for name in forms],
    }


def describe(predictor: Predictor) -> str:
    config = predictor.model.config
    height, width = predictor.preprocessing.image_size
    layers = config.num_local_layers + config.num_nonlocal_layers
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters())
    return (
        f"{layers} layers, dim {config.dim}, {config.num_heads} heads, patches of {config.patch_size}, "
        f"{height} x {width} px, {parameters:,} parameters"
    )


def form_row(
    name: str,
    top1: dict[str, float],
    seconds: dict[str, list[float]],
    export: dict[str, Any] | None,
    *,
    batch_size: int,
) -> dict[str, Any]:
    """What is known of a form; times are of one picture, ratios those of the rounds."""
    float32 = f"OpenVINO {PRECISIONS[0]}"

    def faster_than(other: str) -> dict[str, float]:
        return vars(Spread.of(a / b for a, b in zip(seconds[other], seconds[name], strict=True)))

    return {
        "name": name,
        "top1": top1[name],
        "points_from_eager": top1[name] - top1[EAGER],
        "times_faster_than_eager": faster_than(EAGER),
        "times_faster_than_float32": faster_than(float32),
        "ms_per_picture": vars(Spread.of(1000 * value / batch_size for value in seconds[name])),
        "relative_difference": None if export is None else export["relative_difference"],
        "megabytes": None if export is None else export["megabytes"],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = recording.new_parser(__doc__)
    parser.add_argument("source", help="run folder, weights file or name of a model")
    parser.add_argument("--data", help="as of comvex evaluate; by default what the run was trained on")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures a call (%(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="paired rounds (%(default)s)")
    options = parser.parse_args(arguments)
    check_integer("batch_size", options.batch_size, at_least=1)
    check_integer("rounds", options.rounds, at_least=FEWEST_ROUNDS)
    key = {
        "sha256": file_sha256(find_weights(options.source).file),  # another training is another entry
        "data": options.data,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
    }
    record = recording.open_record(
        "low_precision", options, runtimes=["openvino"], precisions=["float32", "bfloat16", "int8"]
    )
    record.measure([key], lambda key: measure(options.source, options.data, key))


if __name__ == "__main__":
    recording.run(main)
