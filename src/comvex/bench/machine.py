"""What a measurement rests on: the machine, its processor's instruction sets, and the versions of the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from comvex.allocator import is_freed_memory_kept
from comvex.bench.names import Precision, Runtime
from comvex.bench.peak_memory import memory_of_machine
from comvex.bench.plan import packages_of
from comvex.processor import cpuinfo, processor_name

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Those of x86 that decide on the speed of float32 (the first two), int8 and bfloat16, as Linux calls them.

Without one that ends in "vnni" or "int8" int8 gains little, without one that ends in "bf16" bfloat16 gains nothing.
"""


def describe_machine(
    *, threads: int, device: torch.device, runtimes: Sequence[Runtime] = (), precisions: Sequence[Precision] = ()
) -> dict[str, Any]:
    """Where and with what a measurement is made, as plain values for JSON."""
    memory = memory_of_machine()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": processor_name(),
        "instruction_sets": instruction_sets(),
        "cores": os.cpu_count(),
        "memory_gb": None if memory is None else round(memory / 1e9),
        "threads": threads,
        "device": "cpu" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}, float32 without TF32",
        "system": platform.platform(terse=True),
        "freed_memory": "kept" if is_freed_memory_kept() else "given back",
        "versions": {"python": platform.python_version(), **versions(runtimes, precisions)},
    }


def describe_in_words(machine: dict[str, Any]) -> str:
    """The same as a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = f"freed memory {machine.get('freed_memory', 'given back')}"
    total = "" if machine.get("memory_gb") is None else f"{machine['memory_gb']} GB, "
    return (
        f"{machine['date']}, {machine['processor']} ({instruction_sets_in_words(machine['instruction_sets'])}), "
        f"{machine['cores']} cores, {machine['threads']} threads, {machine['device']}, {machine['system']}, {total}"
        f"{memory}; {packages}."
    )


def instruction_sets_in_words(there: Sequence[str] | None) -> str:
    """Which of the sets that matter the processor has, and which it lacks."""
    if there is None:
        return "instruction sets unknown"
    missing = [name for name in INSTRUCTION_SETS if name not in there]
    return f"{', '.join(there) or 'no AVX2'}; without {', '.join(missing)}" if missing else ", ".join(there)


def instruction_sets() -> list[str] | None:
    """Those of ``INSTRUCTION_SETS`` that the processor has; None if it is no x86 or the system does not say."""
    flags = cpuinfo("flags")
    return None if flags is None else [name for name in INSTRUCTION_SETS if name in flags.split()]


def versions(runtimes: Sequence[Runtime], precisions: Sequence[Precision]) -> dict[str, str]:
    """Version of every package that the measurement rests on."""
    packages = ["comvex", "torch", "timm", *packages_of(runtimes, precisions)]
    return {package: importlib.metadata.version(package) for package in dict.fromkeys(packages)}
