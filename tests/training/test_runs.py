"""Runs are listed from what their folders say, whatever state they are in."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from comvex import run_folder
from comvex.cli import main
from comvex.files import read_table
from comvex.training.recipe import Architecture, Options, Recipe
from comvex.training.runs import list_runs, recipe_differences
from comvex.training.trainer import train


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_a_finished_run_is_told_by_its_summary_and_its_best_epoch(small_run):
    [run] = list_runs(small_run.parent)
    summary = summary_of(small_run)
    assert (run.name, run.data, run.model, run.state) == ("small", "digits", "small ConViT", "finished")
    assert run.num_parameters == summary["num_parameters"]
    assert (run.epochs, run.step, run.num_steps) == (10, 400, 400)
    best = read_table(small_run / "metrics.csv")[summary["best_epoch"] - 1]
    assert (run.criterion, run.val, run.test) == ("top1", best["val_top1"], summary["top1"])
    assert (run.loss, run.seconds) == (summary["loss"], summary["seconds"])
    assert run.pictures_per_second == summary["pictures_per_second"]
    assert list_runs(small_run)[0] == replace(run, name=".")


def test_a_run_of_several_labels_a_picture_has_its_mean_average_precision(multi_label_run):
    [run] = list_runs(multi_label_run)
    summary = summary_of(multi_label_run)
    assert (run.criterion, run.test) == ("map", summary["mean_average_precision"])
    assert run.val == read_table(multi_label_run / "metrics.csv")[summary["best_epoch"] - 1]["val_map"]


def test_a_run_that_was_stopped_says_how_far_it_has_come(broken_off_at, tmp_path):
    recipe = Recipe(model=Architecture(dim=32, num_local_layers=1, num_nonlocal_layers=1), epochs=10, batch_size=64)
    with broken_off_at(51):
        train(recipe, tmp_path / "run", options=Options(checkpoint_steps=24))
    [run] = list_runs(tmp_path)
    assert (run.state, run.step, run.num_steps, run.epochs) == ("at step 48 of 200", 48, 200, 2)
    metrics, timing = read_table(tmp_path / "run" / "metrics.csv"), read_table(tmp_path / "run" / "timing.csv")
    assert run.val == max(row["val_top1"] for row in metrics)
    assert run.seconds == pytest.approx(sum(row["seconds"] for row in timing))
    assert min(r["pictures_per_second"] for r in timing) <= run.pictures_per_second
    assert run.test is run.loss is run.num_parameters is None
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert list_runs(tmp_path)[0].state == "no checkpoint"


@pytest.fixture
def zoo(small_run, tmp_path) -> Path:
    """Copies of a run with other figures and recipes, some of them damaged, at several depths."""
    for name, top1, changes in (
        ("a", 50.0, {}),
        ("deep/b", 70.0, {"seed": 5}),
        ("deep/er/c", 60.0, {"seed": 6, "model": {"dim": 48}}),
    ):
        run = shutil.copytree(small_run, tmp_path / name)
        (run / "summary.json").write_text(json.dumps(summary_of(run) | {"top1": top1}))
        content = json.loads((run / "recipe.json").read_text())
        model = content["recipe"]["model"] | changes.pop("model", {})
        content["recipe"] |= changes | {"model": model}
        (run / "recipe.json").write_text(json.dumps(content))
        os.utime(run / "summary.json", (1e9 + top1, 1e9 + top1))
    for name in ("recipe.json", "summary.json", "metrics.csv", "timing.csv"):
        run = shutil.copytree(small_run, tmp_path / f"damaged {name}")
        if name == "timing.csv":  # which is looked at for runs that are not finished
            (run / "summary.json").unlink()
        content = (run / name).read_text()
        (run / name).write_text(content[: content.rindex(",")])
    version = shutil.copytree(small_run, tmp_path / "later")
    (version / "recipe.json").write_text(json.dumps({"format": 99, "comvex": "9.9"}))
    for place in (Path(".hidden") / "run", Path("a") / "copy"):  # hidden, and inside another run
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(small_run / "recipe.json", tmp_path / place)
    return tmp_path


def test_damaged_runs_are_listed_with_the_reason_and_the_others_all_the_same(zoo):
    runs = {run.name: run for run in list_runs(zoo)}
    assert [name for name, run in runs.items() if run.problem is None] == ["a", "deep/b", "deep/er/c"]
    assert "recipe.json is damaged" in runs["damaged recipe.json"].problem
    assert "summary.json is damaged" in runs["damaged summary.json"].problem
    assert "metrics.csv is damaged" in runs["damaged metrics.csv"].problem
    assert "timing.csv is damaged" in runs["damaged timing.csv"].problem
    assert "has format 99, written by comvex 9.9" in runs["later"].problem
    assert len(runs) == 8


def test_runs_are_sorted_best_first_and_those_without_the_figure_last(zoo):
    def order(sort: str) -> list[str]:
        return [run.name for run in list_runs(zoo, sort=sort)][:3]

    assert order("name") == ["a", "damaged metrics.csv", "damaged recipe.json"]
    assert order("test") == ["deep/b", "deep/er/c", "a"]
    assert order("date") == ["deep/b", "deep/er/c", "a"]
    summary = zoo / "a" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"loss": 0.01, "seconds": 1e5}))
    assert order("loss")[0] == "a"
    assert order("seconds")[2] == "a"


def test_only_what_the_recipes_have_different_is_told(zoo):
    differences = recipe_differences(zoo, list_runs(zoo))
    assert differences == {
        "model.dim": {"a": 32, "deep/b": 32, "deep/er/c": 48},
        "seed": {"a": 0, "deep/b": 5, "deep/er/c": 6},
    }
    assert recipe_differences(zoo / "a", list_runs(zoo / "a")) == {}


def test_recipes_of_an_older_version_are_read_and_lack_what_they_lack(zoo):
    file = zoo / "a" / "recipe.json"
    content = json.loads(file.read_text())
    for name in ("weights", "patience"):
        del content["recipe"][name]
    file.write_text(json.dumps(content))
    runs = list_runs(zoo)
    assert runs[0].problem is None
    assert recipe_differences(zoo, runs).keys() == {"model.dim", "seed"}  # None is what they mean
    del content["recipe"]["optimizer"]
    file.write_text(json.dumps(content))
    told = recipe_differences(zoo, runs)["optimizer"]
    assert told == {"a": "adamw", "deep/b": "muon", "deep/er/c": "muon"}


def test_the_command_prints_tables_and_names_what_cannot_be_read(zoo, capsys):
    assert main(["runs", str(zoo), "--sort", "test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "run data model state params epochs val, % test, % loss seconds img/s date"
    assert [line.split()[0] for line in lines[1:4]] == ["deep/b", "deep/er/c", "a"]
    assert "70.00" in lines[1]
    assert "What the recipes have different:" in lines
    assert any(line.split() == ["deep/er/c", "48", "6"] for line in lines)
    assert sum("cannot be read: " in line for line in lines) == 5


def test_names_stay_whole_in_a_terminal_of_eighty_columns(zoo, monkeypatch):
    """Rich takes this for a terminal, of that width."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    written = StringIO()
    with redirect_stdout(written):
        assert main(["runs", str(zoo)]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue()).splitlines()
    assert lines[0].split() == ["run", "data", "state", "epochs", "val,", "%", "test,", "%"]
    assert max(map(len, lines[:4])) <= 80
    assert {line.split()[0] for line in lines[1:4]} == {"deep/b", "deep/er/c", "a"}


def test_the_command_answers_json_without_torch(zoo):
    program = (
        "import sys\nfrom comvex.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'timm', 'matplotlib'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "runs", str(zoo), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [run["name"] for run in answer["runs"]] == [run.name for run in list_runs(zoo)]
    assert answer["differences"]["seed"] == {"a": 0, "deep/b": 5, "deep/er/c": 6}


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 2
    assert f"The folder {tmp_path} holds no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="There is no folder"):
        list_runs(tmp_path / "nowhere")
    (tmp_path / run_folder.RECIPE).write_text("{}")
    [run] = list_runs(tmp_path)
    assert "damaged or not comvex's" in run.problem
