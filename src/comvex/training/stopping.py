"""Stopping a run from outside so that nothing is lost: the step in hand is finished and a checkpoint saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75
"""What the command exits with when it was asked to stop: "try again" (EX_TEMPFAIL), a queue should start it anew."""

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)  # fmt: skip


class StoppedError(Exception):
    """The run has been stopped by a signal, after saving a checkpoint."""

    def __init__(self, step: int, name: str) -> None:
        super().__init__(f"stopped at step {step} by {name}: the same command goes on from there.")
        self.exit_code = 130 if name == "SIGINT" else EXIT_CODE


class StopRequest:
    """Which signal has asked for a stop, if any: SIGTERM, SIGUSR1 or Ctrl-C; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it signals ask instead of ending the process; only the main thread can arrange that."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
