"""The scripts behind docs/performance.md."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = (
    "speed", "memory_limit", "layer_profile", "step_profile", "freed_memory", "low_precision", "performance_page",
    "recording", "tables", "targets",
)  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    """The modules of benchmarks/, which is no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(ROOT / "benchmarks"))
