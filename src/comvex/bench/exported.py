"""Running an exported file in ONNX Runtime or OpenVINO, on the CPU and without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comvex.bench.names import Precision, Runtime

Floats = NDArray[np.float32]


def load_exported(
    file: Path, pictures: Floats, *, runtime: Runtime, precision: Precision, threads: int
) -> Callable[[], Floats]:
    """What runs the file on pictures (B, C, height, width) and returns logits (B, num_classes)."""
    if runtime == "openvino":
        return load_openvino(file, pictures, precision=precision, threads=threads)
    return load_onnx(file, pictures, threads=threads)


def load_onnx(file: Path, pictures: Floats, *, threads: int) -> Callable[[], Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait busily would take the cores from whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: np.asarray(session.run(None, {name: pictures})[0])


def load_openvino(file: Path, pictures: Floats, *, precision: Precision, threads: int) -> Callable[[], Floats]:
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(file, "CPU", properties)
    request = model.create_infer_request()
    return lambda: request.infer([pictures], share_inputs=True)[0]
