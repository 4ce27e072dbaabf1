"""Peak memory of a form, measured in a process of its own: ``python -m comvex.bench.peak_memory``, a job on stdin.

Where PyTorch computes it is the memory of tensors, from its allocator: the same in each run. A runtime that runs a file
has no such account, so that for it the process's resident memory during one step is taken, which scatters by some
percent.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comvex.errors import UserError

if TYPE_CHECKING:
    from comvex.bench.steps import Job, Step

STEPS = 3
"""The last is measured: by then weights are laid out, the optimiser has its state, and a compiler has compiled."""
REFUSALS = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "bad_alloc",
    "bad allocation",
    "MemoryError",
    "Resource temporarily unavailable",
)
"""What a failed allocation says: PyTorch's on the CPU and on CUDA, C++'s, Python's, a new thread's."""
WITHOUT_REFUSAL = (-signal.SIGKILL, 137)
"""How a process ends that the system, or a container, ended for its memory."""
MEASURED_STEP = "comvex: the step whose memory is measured"
MEMINFO = Path("/proc/meminfo")
CLEAR_REFS = Path("/proc/self/clear_refs")
"""Linux sets a process's peak of resident memory (VmHWM) to what it holds now when 5 is written here."""


class NotMeasurable(UserError):
    """This system does not tell the memory of a process during a step."""


def peak_memory(job: Job, *, limit: int | None = None) -> float | None:
    """Bytes that a form holds at most; None if it runs out of memory.

    With PyTorch all tensors there are at the same time during a step: weights, pictures, activations, gradients,
    optimiser. With other runtimes what the process holds at most during a step beyond what its libraries take once
    imported, without what only reading and compiling the model needed; raises ``NotMeasurable`` where the system does
    not tell. The process may take what the machine has left and no more, or ``limit`` bytes beside its libraries if
    that is less, so that whatever runs out ends itself and nothing else.
    """
    command = [sys.executable, "-m", "comvex.bench.peak_memory"]
    given = json.dumps({"job": job.to_dict(), "limit": limit})
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode in WITHOUT_REFUSAL:
        return None
    if done.returncode:
        if any(refusal in done.stderr for refusal in REFUSALS):
            return None  # refused where nothing can catch it, as in a thread of a library
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"{job.form} cannot be run in a process of its own: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["why_not"] is not None:
        raise NotMeasurable(found["why_not"])
    return found["bytes"]


def peak_of_tensors(make: Callable[[], Step], *, steps: int = STEPS) -> int:
    """Bytes of all tensors in the CPU's memory at the peak of the last of some steps, of what ``make`` makes.

    Every allocation and release of PyTorch's allocator is followed from before ``make``. What a library takes for
    itself during a product is not in it.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = make()
        for _ in range(steps - 1):
            step()
        with record_function(MEASURED_STEP):
            step()
    del step
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    [measured] = [event for event in events if event.get("name") == MEASURED_STEP and event["ph"] == "X"]
    begin, end = measured["ts"], measured["ts"] + measured["dur"]
    now = peak = 0
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    for time, change in sorted(changes, key=lambda change: change[0]):
        if time > end:
            break
        peak = max(peak, now) if time >= begin else 0
        now += change
    return max(peak, now)


def peak_of_process(step: Step) -> int:
    """Bytes in this process's memory at the peak of a step, whatever it held before; raises ``NotMeasurable``."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError as error:
        raise NotMeasurable(
            f"Memory of a step in a process is not measured: {CLEAR_REFS} cannot be written to ({error.strerror})."
        ) from error
    step()
    return of_process("VmHWM")


def memory_of_machine() -> int | None:
    """Bytes of all of the machine's memory; None where the system does not say."""
    return field_of(MEMINFO, "MemTotal") if MEMINFO.exists() else None


def of_process(field: str) -> int:
    """Bytes of this process, on Linux: in memory now ("VmRSS") or at most ("VmHWM"), or of data asked for ("VmData").

    The resource module's figure is not taken: it starts with the peak of the process that started this one.
    """
    return field_of(Path("/proc/self/status"), field)


def field_of(file: Path, field: str) -> int:
    """Bytes that a file of Linux' own gives in kB."""
    [line] = [line for line in file.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def limit_memory(limit: int | None) -> None:
    """Let this process allocate what the machine has left, so that running out is an error here and not elsewhere.

    ``limit`` are the bytes that it may ask for from now on, if that is less: used or not, as the system's limit on data
    (RLIMIT_DATA) counts them.
    """
    if not MEMINFO.exists():
        return
    import resource

    available = min(field_of(MEMINFO, "MemAvailable"), sys.maxsize if limit is None else limit)
    allowed = min(of_process("VmData") + available, sys.maxsize)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def measure(job: Job) -> float | None:
    """Run the form a few times in this process; its peak in bytes, None if there is not enough memory.

    Raises ``NotMeasurable``.
    """
    import torch

    from comvex.bench.names import EXPORTED
    from comvex.bench.steps import make_step

    torch.set_num_threads(job.threads)
    exported = job.form.runtime in EXPORTED
    if exported:
        importlib.import_module(job.form.runtime)
    before = of_process("VmRSS") if exported and CLEAR_REFS.exists() else 0
    try:
        if not exported and not job.device.startswith("cuda"):
            return peak_of_tensors(lambda: make_step(job))
        step = make_step(job)
        for _ in range(STEPS - 1):
            step()
        if exported:
            return peak_of_process(step) - before
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return None
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory was refused, in the words of PyTorch, of a runtime or of Python."""
    return isinstance(error, MemoryError) or any(refusal in str(error) for refusal in REFUSALS)


def main() -> None:
    from comvex.bench.steps import Job, full_float32

    values: dict[str, Any] = json.load(sys.stdin)
    limit_memory(values["limit"])
    found: dict[str, Any] = {"bytes": None, "why_not": None}
    try:
        with full_float32():
            found["bytes"] = measure(Job.from_dict(values["job"]))
    except NotMeasurable as error:
        found["why_not"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
