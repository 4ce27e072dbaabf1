"""The script that records the trials of the small-data recipe: a small real run of it."""

import runpy
from pathlib import Path

from comvex.run_folder import read_recipe, read_summary

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_data_trials.py"


def test_both_architectures_have_the_same_trials_and_no_test_picture_is_seen(tmp_path, monkeypatch):
    script = runpy.run_path(str(SCRIPT))
    assert all(not script["trial_recipe"](c, data="digits", shown=128).test for c in script["TRIALS"].values())
    words = ["small_data_trials.py", "--data", "digits", "--only", "start", "flips, drop path 0.1"]
    words += ["--shown", "128", "--threads", "1", "--out", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", words)
    script["main"]()
    runs = sorted(path.parent for path in (tmp_path / "results").rglob("summary.json"))
    assert len(runs) == 4
    recipes = [read_recipe(run) for run in runs]
    assert sorted((r["model"]["drop_path"], r["model"]["use_gpsa"]) for r in recipes) == [
        (0.0, False), (0.0, True), (0.1, False), (0.1, True)
    ]  # fmt: skip
    assert all(read_summary(run)["evaluated_on"] == "val" for run in runs)
    lines = (tmp_path / "results" / "trials.csv").read_text().splitlines()
    assert [line.strip('"').split(",")[0] for line in lines] == ["trial", "start", "start", "flips", "flips"]
    table = (tmp_path / "results" / "trials.md").read_text()
    assert '"model.drop_path": 0.1' in table
    assert "hours of training in all" in table


def test_the_recorded_trials_are_those_of_the_script_and_its_table_has_them_all():
    script = runpy.run_path(str(SCRIPT))
    folder = SCRIPT.parents[1] / "docs" / "results" / "small-data"
    rows = script["rows_of"](folder, data="fashion-mnist", shown=120_000)
    assert len(rows) == len(list(folder.rglob("summary.json"))) >= 14
    num_lines = 2 + len(rows) // 2  # two of the table's head, one for both architectures
    assert (folder / "trials.md").read_text().splitlines()[:num_lines] == script["report_lines"](rows)[:num_lines]
