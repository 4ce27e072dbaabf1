"""Which processor this machine has."""

import platform
from pathlib import Path


def processor_name() -> str:
    """As the system tells it."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> str | None:
    """A field of the first core in Linux's /proc/cpuinfo; None if there is no such file or field."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None
