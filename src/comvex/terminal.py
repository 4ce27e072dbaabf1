"""What is drawn on standard error while something goes on, and only where that is a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def progress_bar(*columns: ProgressColumn, enabled: bool = True, **options: Any) -> Progress:
    """Rich's progress bar, with its own columns if none are given; ``options`` are those of its ``Progress``."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (enabled and console.is_terminal), **options)
