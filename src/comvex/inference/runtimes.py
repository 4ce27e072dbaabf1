"""Opening an exported file with its runtime: pictures (B, C, height, width) to logits (B, num_classes), on the CPU.

ONNX Runtime and OpenVINO run without PyTorch; arrays are float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
Floats = NDArray[np.float32]
Run = Callable[[Floats], Floats]
Hint = Literal["f32", "bf16"]
"""OpenVINO's INFERENCE_PRECISION_HINT: what is not quantised is computed in this type, if the processor can."""


def in_own_thread(function: Callable[[], Result]) -> Result:
    """What ``function`` gives, called in a thread of its own: for all that makes OpenVINO compile a model.

    OpenVINO gives the thread that compiles another stack to handle signals on, and when models are released in another
    order than the reverse, it puts back one that is gone: the next signal that Python handles then ends the process,
    as when a process ends that reads pictures for PyTorch's loader.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def openvino_has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor where it is asked to; else it takes float32."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_onnx(file: Path, *, threads: int) -> Run:
    """ONNX Runtime on a .onnx file; raises what ONNX Runtime raises if it cannot read it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait busily would take the cores from whoever computes next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pictures: np.asarray(session.run(None, {name: pictures})[0])


def open_openvino(file: Path, *, hint: Hint, threads: int) -> Run:
    """OpenVINO on an .xml file with its .bin; raises what OpenVINO raises if it cannot read them.

    The hint is always given: left to itself OpenVINO takes bfloat16 where the processor has it.
    """
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    request = in_own_thread(lambda: core.compile_model(file, "CPU", properties)).create_infer_request()
    return lambda pictures: request.infer([pictures], share_inputs=True)[0]


def open_torch(file: Path) -> Run:
    """PyTorch on a .pt2 file; raises what PyTorch raises if it cannot read it."""
    import torch

    module = torch.export.load(file).module()

    def run(pictures: Floats) -> Floats:
        with torch.no_grad():
            return module(torch.from_numpy(pictures)).numpy()

    return run
