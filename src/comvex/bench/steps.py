"""One call of a form: a forward pass, or a step of training, with everything that can be done before done before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comvex.bench.models import SEED, build, make_batch
from comvex.bench.names import EXPORTED, QUANTISED, RUNTIME_NAMES, Mode, Precision
from comvex.bench.plan import Form, Scene
from comvex.convit import ConViTConfig
from comvex.errors import UserError
from comvex.inference import exported
from comvex.inference.programs import read_for_openvino, trace, with_constant_positions, write_onnx, write_openvino
from comvex.inference.quantisation import quantise
from comvex.inference.runtimes import Floats, Hint, Run, open_onnx, open_openvino

Step = Callable[[], Any]
HINTS: dict[Precision, Hint] = {**exported.HINTS, "int8_float32": "f32"}
"""What OpenVINO computes in where it is free to choose."""
NUM_CALIBRATION = 16
"""Pictures that set the ranges of int8, at least: what they are changes the logits, but not the time."""
LARGEST_DIFFERENCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 0.4, "int8_float32": 0.4}
"""Norm of the difference to eager float32 over the norm of the logits.

Some hundred roundings of 6e-8, or of 4e-3. Random weights calibrated on a few made pictures are off by a tenth or two
in int8; a model that gives one answer for all pictures would be off by most of the norm.
"""


@dataclass(frozen=True)
class Job:
    """A form in a scene, as a process of its own gets it."""

    form: Form
    config: ConViTConfig
    batch_size: int
    mode: Mode
    threads: int
    device: str
    file: str | None = None
    """The exported model, for the runtimes that run one."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        form, config = Form(**values["form"]), ConViTConfig.from_dict(values["config"])
        return cls(**(values | {"form": form, "config": config}))


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 without TF32 for all contestants, in matrix products and convolutions alike, and then as it was before.

    By itself cuDNN rounds the factors of a convolution to TF32's 11 bits on GPUs that have it (Ampere and later), which
    moves the logits by more than ``LARGEST_DIFFERENCE``, while products are in float32.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def make_step(job: Job) -> Step:
    """The call that is timed; for inference it returns logits (B, num_classes)."""
    form = job.form
    pictures, labels = make_batch(job.config, job.batch_size)
    if form.runtime in EXPORTED:
        run, values = open_exported(job), pictures.numpy()
        return lambda: run(values)
    model = build(form.contestant, job.config).to(job.device)
    pictures, labels = pictures.to(job.device), labels.to(job.device)
    if job.mode == "training":
        return training_step(model, pictures, labels, job=job)
    return inference_step(model, pictures, job=job)


def open_exported(job: Job) -> Run:
    """The runtime of a form on its exported file."""
    assert job.file is not None
    if job.form.runtime == "openvino":
        return open_openvino(Path(job.file), hint=HINTS[job.form.precision], threads=job.threads)
    return open_onnx(Path(job.file), threads=job.threads)


def inference_step(model: nn.Module, pictures: Tensor, *, job: Job) -> Step:
    """A forward pass; in bfloat16 with weights and pictures of that type."""
    dtype = getattr(torch, job.form.precision)
    model, pictures = model.to(dtype).eval(), pictures.to(dtype)
    compiled = compile_if_asked(model, pictures, job=job)

    def step() -> Tensor:
        with torch.inference_mode():
            return compiled(pictures)

    return step


def training_step(model: nn.Module, pictures: Tensor, labels: Tensor, *, job: Job) -> Step:
    """Forward, backward and AdamW; in bfloat16 under autocast, with weights in float32."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    compiled = compile_if_asked(model, pictures, job=job)
    bfloat16 = job.form.precision == "bfloat16"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(pictures.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            loss = F.cross_entropy(compiled(pictures), labels)
        loss.backward()
        optimizer.step()

    return step


def compile_if_asked(model: nn.Module, pictures: Tensor, *, job: Job) -> Callable[[Tensor], Tensor]:
    if job.form.runtime != "compile":
        return model
    settle(model, pictures)
    return torch.compile(model, dynamic=False)


def settle(model: nn.Module, pictures: Tensor) -> None:
    """Run once: timm's ConViT makes its table of offsets in the first forward, and a compiler would trace that."""
    with torch.no_grad():
        model(pictures)


def export(scene: Scene, form: Form, folder: Path) -> Path:
    """Export a contestant for the pictures and batch of a scene; the file is one for int8, one for the rest."""
    onnx_file = folder / f"{form.contestant}-{scene.model}-{scene.image_size}-{scene.batch_size}.onnx"
    if not onnx_file.exists():
        model = build(form.contestant, scene.config).eval()
        pictures, _ = make_batch(scene.config, scene.batch_size)
        settle(model, pictures)
        write_onnx(trace(with_constant_positions(model, scene.config.grid), pictures), onnx_file)
    if form.runtime == "onnxruntime":
        return onnx_file
    quantised = form.precision in QUANTISED
    file = onnx_file.with_suffix(".int8.xml" if quantised else ".xml")
    if not file.exists():
        model = read_for_openvino(onnx_file)
        write_openvino(quantise(model, calibration_batches(scene)) if quantised else model, file)
    return file


def calibration_batches(scene: Scene) -> list[Floats]:
    """Made pictures, others than those that are timed, in whole batches (B, C, height, width)."""
    count = math.ceil(NUM_CALIBRATION / scene.batch_size)
    seeds = range(SEED + 1, SEED + 1 + count)
    return [make_batch(scene.config, scene.batch_size, seed=seed)[0].numpy() for seed in seeds]


def difference_to_eager(job: Job, step: Step) -> float:
    """Norm of the difference between a form's logits and its own contestant's in eager float32, over their norm.

    Raises ``ValueError`` if it is larger than rounding: then the form does not compute the same, and is not measured.
    """
    pictures, _ = make_batch(job.config, job.batch_size)
    with torch.inference_mode():
        expected = build(job.form.contestant, job.config).eval()(pictures)
    logits = torch.as_tensor(step()).cpu().float()
    difference = float((logits - expected).norm() / expected.norm())
    allowed = LARGEST_DIFFERENCE[job.form.precision]
    if not difference <= allowed:  # NaN too
        raise UserError(
            f"The logits of {job.form} differ from those in eager float32 by {difference:.1e} of their norm: more than "
            f"the {allowed:.0e} of rounding, so that its time would mean nothing ({RUNTIME_NAMES[job.form.runtime]})."
        )
    return difference
