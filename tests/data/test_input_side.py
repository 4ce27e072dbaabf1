"""The benchmark of the input side runs, and its report is well formed. No time is asserted."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from comvex.bench.machine import describe_in_words

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "input_side.py"
WAYS = {"comvex", "Pillow alone", "Pillow with draft", "torchvision v2", "timm"}


def test_the_benchmark_writes_a_report_of_every_way_and_table(tmp_path):
    command = [sys.executable, "-W", "error", str(SCRIPT), "--quick", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "input-side.json").read_text())
    written = (tmp_path / "out" / "input-side.md").read_text()
    assert done.stdout.strip() == written.strip()

    jpeg = [row for row in report["rows"] if "JPEG" in row["pictures"]]
    assert {row["pictures"] for row in jpeg} == {"500 x 375 JPEG", "2000 x 1500 JPEG"}
    shown = {(row["transform"], row["way"]) for row in jpeg}
    assert shown == {
        *(("evaluation", way) for way in WAYS - {"Pillow alone"}),
        *(("small-data", way) for way in WAYS - {"timm"}),
        *((recipe, way) for recipe in ("fine-tune", "paper") for way in WAYS),
    }
    assert {row["pictures"] for row in report["rows"]} - {row["pictures"] for row in jpeg} == {
        "8 x 8, grey, in memory",
        "32 x 32, RGB, in memory",
    }
    for row in report["rows"]:
        low, middle, high = row["times_comvex"]
        assert 0 < low <= middle <= high < math.inf
        assert (row["way"] != "comvex") or low == high == 1
        assert row["pictures_per_cpu_second"] > 0

    apart = {(row["pictures"], row["way"]): row["largest"] for row in report["evaluation_differences"]}
    assert all(largest == 0 for (_, way), largest in apart.items() if way in ("comvex", "timm"))
    assert all(0 < largest < 2.01 for (_, way), largest in apart.items() if way == "torchvision v2")
    assert {row["reduction"] for row in report["crop_differences"]} == {1, 2}
    assert all(row["worst_mean"] < 1 for row in report["crop_differences"])
    assert [row["workers"] for row in report["loader"]] == [0, 1, 2] * 2
    assert {row["transform"] for row in report["stages"]} == {"small-data", "fine-tune", "paper"}
    for row in report["stages"]:
        spreads = [value for value in row.values() if isinstance(value, list)]
        assert len(spreads) == 3
        assert all(low <= middle <= high for low, middle, high in spreads)
    assert all(low > 0 for low, _, _ in (row["input_share"] for row in report["step"]))

    where = describe_in_words(report["machine"])  # as the other benchmarks say it
    for said in ("python benchmarks/input_side.py --quick --out", "torchvision 0.", where, "libjpeg-turbo"):
        assert said in written
    tables = [line for line in written.splitlines() if line.startswith("| ")]
    num_rows = sum(len(value) for name, value in report.items() if isinstance(value, list) and name != "files")
    assert len(tables) == num_rows + 2 * 6  # each of the six has a head and a rule
