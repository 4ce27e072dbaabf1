"""``comvex`` as a process of its own that need not import PyTorch first: forked from one that has.

Importing PyTorch, timm and torchvision takes far longer than the small runs of the tests. A forked process has its own
pid, session, folder, files, signals and exit code. What a module reads from the environment while it is imported is
that of the tests' start, and no ``atexit`` function runs: where that matters, and for how ``python -m comvex`` itself
starts, a test starts a fresh process.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

from comvex.cli import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "comvex.study.carry_out",
        "comvex.inference.run_evaluation",
        "torch._dynamo",  # the first step of an optimiser would
        "torch.utils.tensorboard",
        "matplotlib.figure",
        "timm.optim",
        "timm.data",
        "sklearn.datasets",
        "sklearn.metrics",
        "sklearn.model_selection",
    ]
)


class Command:
    """A ``comvex`` that is running, as ``subprocess.Popen`` would show it; it ends when nobody holds it any more.

    With ``script`` it is that Python file instead.
    """

    def __init__(
        self,
        *arguments: object,
        out: Path,
        err: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        largest_file: int | None = None,
        script: Path | None = None,
    ) -> None:
        words = [str(argument) for argument in arguments]
        out.touch()
        err.touch()
        surroundings = (out, err, cwd or Path.cwd(), {**os.environ, **(environment or {})}, largest_file)
        process = FORKS.Process(target=run, args=(words, script, *surroundings))
        process.start()
        assert process.pid is not None
        self.pid: int = process.pid
        self._process = process
        weakref.finalize(self, process.kill)

    def poll(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("comvex", timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def completed(
    *arguments: object, cwd: Path | None = None, largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """What a ``comvex`` has printed and how it ended; no file that it writes may have more bytes than the largest."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        code = ended(Command(*arguments, out=out, err=err, cwd=cwd, largest_file=largest_file), err)
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def together(
    *arguments: object,
    files: Sequence[tuple[Path, Path]],
    script: Path | None = None,
    cwds: Sequence[Path] | None = None,
) -> list[Command]:
    """Processes that train together, told of each other as torchrun tells them: one for each pair of out and err.

    They work here, or each in a folder of its own.
    """
    group = {"WORLD_SIZE": str(len(files)), "LOCAL_WORLD_SIZE": str(len(files))}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(files))]
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Command(*arguments, out=out, err=err, cwd=cwd, environment=group | own, script=script)
        for own, (out, err), cwd in zip(ranks, files, cwds or [None] * len(files), strict=True)
    ]


def completed_together(
    *arguments: object, num: int, script: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """What several processes that trained together have printed and how they ended."""
    with TemporaryDirectory() as folder:
        files = [(Path(folder) / f"{rank}.out", Path(folder) / f"{rank}.err") for rank in range(num)]
        processes = together(*arguments, files=files, script=script)
        return [
            subprocess.CompletedProcess(arguments, ended(process, err), out.read_text(), err.read_text())
            for process, (out, err) in zip(processes, files, strict=True)
        ]


def ended(process: Command, err: Path) -> int:
    """The exit code of a process, which has five minutes; what it last said is shown if they do not suffice."""
    try:
        return process.wait(300)
    except subprocess.TimeoutExpired as expired:
        raise TimeoutError(f"comvex has not ended within 300 s; its last words: {err.read_text()[-2000:]}") from expired


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server() -> None:
    """Start what the processes are forked from: before a test changes the environment, which it keeps."""
    forkserver.ensure_running()


def run(
    words: list[str],
    script: Path | None,
    out: Path,
    err: Path,
    cwd: Path,
    environment: Mapping[str, str],
    largest_file: int | None,
) -> None:
    """What the forked process does."""
    os.setsid()
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = [str(script or "comvex"), *words]
    if script is None:
        sys.exit(main())
    runpy.run_path(str(script), run_name="__main__")
