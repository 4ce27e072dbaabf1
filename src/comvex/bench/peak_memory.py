"""Peak memory of a form, measured in a process of its own: ``python -m comvex.bench.peak_memory``, a job on stdin."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comvex.errors import UserError

if TYPE_CHECKING:
    from comvex.bench.steps import Job

STEPS = 3
REFUSALS = ("DefaultCPUAllocator", "CUDA out of memory", "bad_alloc", "bad allocation")
"""What the messages of a failed allocation have in them: PyTorch's on the CPU and on CUDA, and those of C++."""
WITHOUT_REFUSAL = (-signal.SIGKILL, 137)
"""How a process ends that the system, or a container, ended for its memory."""


def peak_memory(job: Job) -> float | None:
    """Bytes that a form needs beyond what its libraries take once imported; None if it runs out of memory.

    On a GPU it is the peak of PyTorch's allocator. The process may take what the machine has left and no more, so that
    whatever runs out ends itself and nothing else.
    """
    command = [sys.executable, "-m", "comvex.bench.peak_memory"]
    done = subprocess.run(command, input=json.dumps(job.to_dict()), capture_output=True, text=True)
    if done.returncode in WITHOUT_REFUSAL:
        return None
    if done.returncode:
        raise UserError(f"{job.form} cannot be run in a process of its own: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])["bytes"]


def resident(field: str) -> int:
    """Bytes in memory of this process, now ("VmRSS") or at most so far ("VmHWM").

    Where Linux's /proc is missing both are the most so far. The resource module's figure is not taken on Linux: there
    it starts with the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith(f"{field}:")]
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def limit_memory() -> None:
    """Let this process allocate what the machine has left, so that running out is an error here and not elsewhere."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return
    import resource

    [line] = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    available = int(line.split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (available, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def measure(job: Job) -> float | None:
    """Run the form a few times in this process; its peak in bytes, None if there is not enough memory."""
    import torch

    from comvex.bench.names import EXPORTED
    from comvex.bench.steps import make_step

    torch.set_num_threads(job.threads)
    if job.form.runtime in EXPORTED:
        importlib.import_module(job.form.runtime)
    cuda = job.device.startswith("cuda")
    before = resident("VmRSS")
    try:
        step = make_step(job)
        for _ in range(STEPS):
            step()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(refusal in str(error) for refusal in REFUSALS):
            return None
        raise
    return torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - before


def main() -> None:
    from comvex.bench.steps import Job

    values: dict[str, Any] = json.load(sys.stdin)
    limit_memory()
    print(json.dumps({"bytes": measure(Job.from_dict(values))}))


if __name__ == "__main__":
    main()
