"""What a person sees of a run while it goes on: a bar in a terminal, a line per epoch elsewhere, a log file always."""

from __future__ import annotations

import datetime
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from comvex.terminal import progress_bar

if TYPE_CHECKING:
    from comvex.training.record import EpochSums, RunRecord

LOGGER = logging.getLogger("comvex")
FILE_ONLY = {"file_only": True}
"""What goes with a message (``extra``) that only the log file is to have."""
SECONDS_BETWEEN_LINES = 30.0
"""Between two lines of the log that say how far a run is."""
WIDE = 120
"""Columns of a terminal from which on there is room for a bar and the time that has passed."""


class HeldMessages(logging.Handler):
    """Messages from before a run has a folder, to be told again when it has one."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def held_messages() -> Iterator[HeldMessages]:
    """Within it the messages of comvex are kept back; they are told if it ends in an error."""
    held, level = HeldMessages(), LOGGER.level
    LOGGER.addHandler(held)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield held
    except BaseException:
        for record in held.records:
            print(record.getMessage(), file=sys.stderr)
        raise
    finally:
        LOGGER.removeHandler(held)
        LOGGER.setLevel(level)


@contextmanager
def log_to(file: Path, *, before: Sequence[logging.LogRecord], enabled: bool) -> Iterator[None]:
    """Within it the messages of comvex go to a file and to standard error.

    ``before`` are told first. Debug messages, such as the line per epoch, are left out in a terminal: there the
    progress bar says the same. Of several processes only one is ``enabled``.
    """
    if not enabled:
        yield
        return
    file_handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen_handler = logging.StreamHandler()
    screen_handler.setLevel(logging.INFO if Console(stderr=True).is_terminal else logging.DEBUG)
    screen_handler.addFilter(lambda record: not hasattr(record, "file_only"))
    handlers: list[logging.Handler] = [file_handler, screen_handler]
    level = LOGGER.level
    LOGGER.setLevel(logging.DEBUG)
    for handler in handlers:
        LOGGER.addHandler(handler)
    for record in before:
        LOGGER.handle(record)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()


class RunProgress:
    """A bar on standard error, drawn only in a terminal, with pictures a second and the time left.

    It also measures the share of the time that the model waits for its pictures.
    """

    def __init__(self, num_steps: int, *, start: int, per_epoch: int, batch_size: int, enabled: bool) -> None:
        wide = Console(stderr=True).width >= WIDE
        self.bar = progress_bar(
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=20)] if wide else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("left"),
            TimeRemainingColumn(),
            enabled=enabled,
        )
        self.room_beside_note = len(" left 0:00:00 ") + (len(" 0:00:00") + 21 if wide else 0)
        self.task = self.bar.add_task("training", total=num_steps, completed=start, note="")
        self.num_steps, self.per_epoch, self.batch_size = num_steps, per_epoch, batch_size
        self.start, self.enabled = start, enabled
        self.begin = time.monotonic()
        self.waited = 0.0
        self.last_shown = -math.inf
        self.last_logged = self.begin

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for pictures."""
        begin = time.monotonic()
        yield
        self.waited += time.monotonic() - begin

    def show(self, step: int, record: RunRecord, sums: EpochSums) -> None:
        """Show how far the run is, a few times a second at most, with its latest figures; log it twice a minute."""
        now = time.monotonic()
        if step < self.num_steps and now - self.last_shown < 0.3:
            return
        self.last_shown = now
        epochs = f"{math.ceil(step / self.per_epoch)}/{math.ceil(self.num_steps / self.per_epoch)}"
        seconds = max(now - self.begin, 1e-9)
        rate = (step - self.start) * self.batch_size / seconds
        notes = record.notes(sums, pictures_per_second=rate, waiting=self.waited / seconds)
        description = f"epoch {epochs}, step"
        room = self.bar.console.width - len(f"{description} {step}/{self.num_steps} ") - self.room_beside_note
        self.bar.update(self.task, completed=step, description=description, note=fitting(notes, room))
        if self.enabled and (step == self.num_steps or now - self.last_logged >= SECONDS_BETWEEN_LINES):
            self.last_logged = now
            left = datetime.timedelta(seconds=round((self.num_steps - step) * seconds / (step - self.start)))
            LOGGER.debug("step %d of %d: %s, %s left", step, self.num_steps, ", ".join(notes), left)


def fitting(notes: Sequence[str], room: int) -> str:
    """As many of the notes, from the first on, as a line of that many characters holds."""
    lines = [", ".join(notes[:num]) for num in range(len(notes) + 1)]
    return max((line for line in lines if len(line) <= room), key=len, default="")
