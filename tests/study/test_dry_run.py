"""What a study would do is told without doing it."""

import dataclasses
import json
import re
import shlex

import pytest

from comvex.cli import main
from comvex.commands.study import RunStudy
from comvex.errors import UserError
from comvex.study.carry_out import carry_out
from comvex.study.dry_run import dry_run
from comvex.study.plan import STANDARD, Study
from comvex.training.recipe import Architecture, Options

SMALL = Architecture(dim=32, heads=4, num_local_layers=1, num_nonlocal_layers=1)
RECIPE = dataclasses.replace(STANDARD, data="digits", model=SMALL, steps=4, batch_size=32)
STUDY = Study("sample-efficiency", RECIPE, (0.1, 1.0), (0,))
OPTIONS = Options(threads=1)


def test_a_dry_run_counts_the_runs_times_some_steps_and_writes_nothing(tmp_path, capsys):
    recipe = dataclasses.replace(RECIPE, steps=None, batch_size=64)
    command = RunStudy("sample-efficiency", recipe, OPTIONS, tmp_path / "study", (0.035, 1.0), (0, 1), dry_run=True)
    assert command.run() == 0
    told = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "8 runs (2 architectures, 2 seeds), 0 of them finished" in told
    assert dataclasses.replace(command, json=True).run() == 0
    outline = json.loads(capsys.readouterr().out)
    runs = Study("sample-efficiency", recipe, (0.035, 1.0), (0, 1)).runs(1295)
    assert [(run["architecture"], run["fraction"], run["seed"], run["epochs"]) for run in outline["runs"]] == [
        (run.architecture, run.fraction, run.seed, run.recipe.epochs) for run in runs
    ]
    few, many = outline["runs"][0], outline["runs"][2]
    assert (few["num_pictures"], few["steps"], many["steps"]) == (45, few["epochs"], 20 * many["epochs"])
    rate = outline["pictures_per_second"]["convit"]
    # A step of fewer pictures than a batch takes less time
    assert (few["seconds"], many["seconds"]) == (
        pytest.approx(few["steps"] * 45 / rate), pytest.approx(many["steps"] * 64 / rate),
    )  # fmt: skip
    assert outline["seconds_left"] == pytest.approx(sum(run["seconds"] for run in outline["runs"]))
    assert re.search(rf"1,295 \(100 %\) +{many['epochs']} +{many['steps']:,}  ", told)


def test_a_dry_run_of_a_begun_study_counts_what_is_left_and_refuses_what_the_study_would(tmp_path):
    out = tmp_path / "study"
    carry_out(STUDY, out, options=OPTIONS)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    outline = dry_run(dataclasses.replace(STUDY, seeds=(0, 1)), out, options=OPTIONS)
    assert [run["finished"] for run in outline["runs"]] == [True] * 4 + [False] * 4
    assert outline["seconds_left"] == pytest.approx(sum(run["seconds"] for run in outline["runs"][4:]))
    other = dataclasses.replace(STUDY, recipe=dataclasses.replace(RECIPE, learning_rate=0.1))
    with pytest.raises(UserError, match="has another study"):
        dry_run(other, out, options=OPTIONS)
    with pytest.raises(UserError, match="holds something else than a study"):
        dry_run(STUDY, tmp_path, options=OPTIONS)
    with pytest.raises(UserError, match="overwrite is True"):
        dry_run(STUDY, out, options=Options(overwrite=True))
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_the_command_that_a_dry_run_names_draws_the_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(dry_run(STUDY, tmp_path / "study", options=OPTIONS)["to_see_pictures"])
    assert words[:2] == ["comvex", "train"]
    assert main(words[1:]) == 0
    assert len(list(tmp_path.glob("runs/*.dry-run/samples.png"))) == 1
