"""What a person sees of a run while it goes on: a bar in a terminal, a line per epoch elsewhere, a log file always."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOGGER = logging.getLogger("comvex")


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Within it the messages of comvex go to a file and to standard error.

    Debug messages, such as the line per epoch, are left out in a terminal: there the progress bar says the same.
    """
    file_handler = logging.FileHandler(file, encoding="utf-8")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen_handler = logging.StreamHandler()
    screen_handler.setLevel(logging.INFO if Console(stderr=True).is_terminal else logging.DEBUG)
    handlers: list[logging.Handler] = [file_handler, screen_handler]
    level = LOGGER.level
    LOGGER.setLevel(logging.DEBUG)
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()


def training_progress() -> Progress:
    """A bar on standard error, drawn only in a terminal; the field ``note`` holds the latest figures."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
