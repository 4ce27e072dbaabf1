"""The allocator keeps freed memory: told once, a process takes no new pages for tensors of sizes that it had before."""

import json
import platform
import subprocess
import sys

import pytest

from comvex.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, tell

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")

COUNT = """
import json, resource
import torch
from comvex.allocator import give_back_freed_memory, is_freed_memory_kept, keep_freed_memory
from comvex.bench.peak_memory import of_process

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(12_000_000)  # 48 MB, 11,719 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {"by itself": new_pages(), "kept before": is_freed_memory_kept(), "told": keep_freed_memory()}
for _ in range(6):
    # A block that is freed is a little too small for an aligned one of its size, or something small has come to lie in
    # it, until the heap has room for both: mostly two rounds, seldom three.
    new_pages()
found |= {"kept": is_freed_memory_kept(), "afterwards": new_pages(), "MB before": of_process("VmRSS") / 1e6}
give_back_freed_memory()
print(json.dumps(found | {"MB after": of_process("VmRSS") / 1e6}))
"""


def test_a_process_that_is_told_takes_no_new_pages_for_what_it_had_before() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["kept before"], found["told"], found["kept"]) == (False, True, True)
    assert found["by itself"] > 40_000
    assert found["afterwards"] < 1_000
    assert found["MB before"] - found["MB after"] > 48


@pytest.mark.parametrize(("most", "expected"), [(1 << 40, 1 << 30), (1 << 25, 1 << 25), (0, None)])
def test_a_library_that_keeps_smaller_blocks_only_is_told_those(most: int, expected: int | None) -> None:
    """Releases of glibc differ in the largest threshold that they accept; what one accepts stands for it here."""
    accepted = {}

    def mallopt(name: int, value: int) -> int:
        accepts = name == M_TRIM_THRESHOLD or value <= most
        return int(accepts and accepted.setdefault(name, value) == value)

    assert tell(mallopt) == (expected is not None)
    assert accepted.get(M_MMAP_THRESHOLD) == expected
    assert (M_TRIM_THRESHOLD in accepted) == (expected is not None)


def test_a_command_tells_its_process() -> None:
    source = "import sys; from comvex.cli import main; from comvex.allocator import is_freed_memory_kept as kept; "
    source += "before = kept(); code = main(['runs', sys.argv[1]]); sys.exit(code or before or not kept())"
    done = subprocess.run([sys.executable, "-c", source, "."], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
