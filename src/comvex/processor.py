"""Which processor this machine has."""

import os
import platform
import time
from pathlib import Path

import torch


def processor_name() -> str:
    """As the system tells it."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def machine_line(*details: str) -> str:
    """Where, with what and when figures are made: "NAME, 2 cores, [DETAILS, ]torch 2.14.1, 2026-11-27"."""
    here = [processor_name(), f"{os.cpu_count()} cores", *details, f"torch {torch.__version__}"]
    return ", ".join([*here, time.strftime("%Y-%m-%d")])


def cpuinfo(field: str) -> str | None:
    """A field of the first core in Linux's /proc/cpuinfo; None if there is no such file or field."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None
