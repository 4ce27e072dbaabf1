"""Studies of tiny real runs on the digits: stopped, shared, repeated."""

import csv
import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tyro
from PIL import Image
from safetensors.torch import load_file

from commands import Command
from comvex import run_folder
from comvex.commands.study import RunStudy
from comvex.data.augmentation import Augmentation
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.files import read_table
from comvex.study import carry_out as carrying_out
from comvex.study import plan
from comvex.study.carry_out import carry_out, duration, progress_line, report_all, seconds_left
from comvex.study.pictures import look_through, with_fitting_fractions
from comvex.study.plan import FRACTIONS, STANDARD, Study, command
from comvex.study.results import RUNS, read_result
from comvex.study.study_file import alone_in, begin
from comvex.training import trainer
from comvex.training.build import build_model
from comvex.training.recipe import Architecture, Options, Recipe
from made_pictures import multi_label_recipe, shape_pictures

SMALL = dataclasses.replace(STANDARD.model, dim=32, heads=4, num_local_layers=1, num_nonlocal_layers=1)
RECIPE = dataclasses.replace(STANDARD, data="digits", model=SMALL, steps=4, batch_size=32, patience=1, select="best")
SMALL_PICTURES = dataclasses.replace(SMALL, image_size=8, patch_size=2)
STUDY = Study("sample-efficiency", RECIPE, (0.1, 1.0), (0, 1))
ARGUMENTS = [
    "study", "sample-efficiency", "--data", "digits", "--model.dim", "32", "--model.heads", "4",
    "--model.num-local-layers", "1", "--model.num-nonlocal-layers", "1", "--steps", "4", "--batch-size", "32",
    "--patience", "1", "--select", "best", "--fractions", "0.1", "1", "--seeds", "0", "1", "--threads", "1", "--json",
]  # fmt: skip
"""The same study as a command."""
OPTIONS = Options(threads=1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, list[str], dict]:
    """The folder of the finished study, the parts of the data that were evaluated, and what was returned."""
    out, parts = tmp_path_factory.mktemp("studies") / "study", []
    original = trainer.evaluate_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trainer, "evaluate_part", lambda model, plan, part: parts.append(part) or original(model, plan, part)
        )
        report = carry_out(STUDY, out, options=OPTIONS)
        before = len(parts)
        assert carry_out(STUDY, out, options=OPTIONS) == report
        assert len(parts) == before, "a finished study evaluates nothing again"
    return out, parts, report


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_seconds(out: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(out)]


def test_every_run_is_in_the_table_with_the_figures_of_its_own_folder(undisturbed):
    out, _, report = undisturbed
    assert list(rows(out)[0]) == ["architecture", "fraction", "seed", "num_pictures", "steps", "top1", "seconds"]
    assert len(rows(out)) == report["num_finished"] == report["num_runs"] == 8
    for row in rows(out):
        run = out / RUNS / f"{row['architecture']}-{100 * float(row['fraction']):g}pc-seed{row['seed']}"
        summary = json.loads((run / "summary.json").read_text())
        assert float(row["top1"]) == summary["top1"]
        assert int(row["num_pictures"]) == summary["num_training_pictures"]
        assert summary["evaluated_on"] == "test"
        steps = [int(line.split(",")[1]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
        assert int(row["steps"]) == steps[-1]
        assert steps[-1] <= 4
    with (out / "curves.csv").open(newline="") as stream:
        curves = list(csv.DictReader(stream))
    assert {(row["architecture"], row["fraction"], row["seed"]) for row in curves} == {
        (row["architecture"], row["fraction"], row["seed"]) for row in rows(out)
    }


def test_the_test_pictures_are_evaluated_once_per_run(undisturbed):
    _, parts, _ = undisturbed
    assert parts.count("test") == 8
    assert parts.count("val") >= 8


def test_a_run_that_another_process_finishes_meanwhile_is_not_tested_again(tmp_path, monkeypatch):
    recipe, parts = STUDY.runs(1295)[0].recipe, []
    evaluate_part, make_plan = trainer.evaluate_part, trainer.make_plan
    monkeypatch.setattr(
        trainer, "evaluate_part", lambda model, plan, part: parts.append(part) or evaluate_part(model, plan, part)
    )

    def overtaken(*arguments):
        monkeypatch.setattr(trainer, "make_plan", make_plan)
        trainer.train(recipe, tmp_path / "run", options=OPTIONS)  # the other one, from start to end
        return make_plan(*arguments)

    monkeypatch.setattr(trainer, "make_plan", overtaken)
    summary = trainer.train(recipe, tmp_path / "run", options=OPTIONS)
    assert summary == run_folder.read_summary(tmp_path / "run")
    assert parts.count("test") == 1


def test_fractions_are_nested_and_the_same_for_both_architectures(undisturbed):
    """Of the data opened again, and of the fingerprints that the runs have noted of what they were trained on."""
    out, *_ = undisturbed
    for seed in (1, 2):
        pictures = {
            fraction: {part: {p.tobytes() for p in data.part(part).pictures} for part in ("train", "val", "test")}
            for fraction in (0.1, 0.5)
            for data in [open_data("digits", fraction=fraction, split_seed=seed)]
        }
        assert pictures[0.1]["train"] < pictures[0.5]["train"]
        assert pictures[0.1]["val"] < pictures[0.5]["val"]
        assert pictures[0.1]["test"] == pictures[0.5]["test"]
    noted = {
        (run.fraction, run.seed, run.architecture): run_folder.read_beginning(out / RUNS / run.name)[
            "training_pictures"
        ]
        for run in STUDY.runs(1295)
    }
    assert len(noted) == 8
    assert len(set(noted.values())) == 4
    for (fraction, seed, _), fingerprint in noted.items():
        assert fingerprint == open_data("digits", fraction=fraction, split_seed=seed).train.fingerprint()


def test_what_is_chosen_by_validation_has_seen_no_test_picture_of_a_study(tmp_path):
    """Whichever seed a trial splits data without parts by: the test pictures of every seed are the same."""
    for name in ("digits", str(shape_pictures(tmp_path / "pictures", num=60))):
        tested = [set(map(marker, open_data(name, split_seed=seed).test.pictures)) for seed in (0, 1, 2)]
        assert tested[0] == tested[1] == tested[2]
        for seed in (0, 1, 2, 1000):
            trial = open_data(name, split_seed=seed)
            assert not tested[0] & {marker(picture) for part in (trial.train, trial.val) for picture in part.pictures}


def marker(picture: Any) -> Any:
    return picture.tobytes() if hasattr(picture, "tobytes") else str(picture)


def test_the_report_and_the_figures_are_there(undisturbed):
    out, _, report = undisturbed
    text = (out / "report.md").read_text()
    assert "8 of 8 runs are finished" in text
    runs = STUDY.runs(1295)
    num_early = sum(read_table(out / RUNS / run.name / "metrics.csv")[-1]["step"] < run.recipe.steps for run in runs)
    assert f"ended {num_early} of the 8 runs before their last step" in text
    for architecture, fraction in (("convit", 0.1), ("plain", 1.0)):
        [own] = [s for s in report["summary"] if (s["architecture"], s["fraction"]) == (architecture, fraction)]
        assert f"{own['top1']:.2f} ± {own['deviation']:.2f} (2)" in text
    layers = (out / "layers.csv").read_text().splitlines()
    num_layers = STUDY.recipe.model.num_local_layers + STUDY.recipe.model.num_nonlocal_layers
    assert len(layers) == 1 + 8 * 2 * num_layers  # before the first step and after the tested epoch
    assert all(",," in line for line in layers if line.startswith("plain,"))  # it has no gates
    for name in ("figure.png", "curves.png", "layers.png"):
        assert f"({name})" in text
        with Image.open(out / name) as picture:
            assert picture.width > 800


def test_the_command_of_these_tests_is_the_study_that_they_compare_it_with():
    told = tyro.cli(RunStudy, args=ARGUMENTS[1:], config=(tyro.conf.FlagCreatePairsOff,))
    assert Study(told.kind, told.recipe, told.fractions, told.seeds, told.stretch) == STUDY
    assert told.options == OPTIONS


def start(out: Path, name: str) -> Command:
    """A worker, with standard output and error in files beside the study."""
    return Command(*ARGUMENTS, "--out", out, out=out.parent / f"{name}.out", err=out.parent / f"{name}.err")


def test_a_killed_worker_s_study_is_finished_by_two_others_which_share_the_runs(undisturbed, tmp_path):
    out = tmp_path / "study"
    killed = start(out, "killed")
    deadline = time.monotonic() + 120
    while len(list((out / RUNS).glob("*/tensorboard"))) < 2:  # in the middle of the second run
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert 1 <= len(list((out / RUNS).glob("*/summary.json"))) < 8

    workers = {name: start(out, name) for name in ("one", "other")}
    for name, worker in workers.items():
        assert worker.wait(240) == 0, (tmp_path / f"{name}.err").read_text()
    assert without_seconds(out) == without_seconds(undisturbed[0])
    began = [(tmp_path / f"{name}.err").read_text().count(" steps on cpu") for name in ("killed", *workers)]
    assert min(began) >= 1
    assert sum(began) == 9
    starts = {run.name: (run / "log.txt").read_text().count("steps on cpu") for run in (out / RUNS).iterdir()}
    assert sum(starts.values()) == 9, "only the run that was cut short began twice"
    assert set(starts.values()) == {1, 2}
    for name in workers:
        assert json.loads((tmp_path / f"{name}.out").read_text())["num_finished"] == 8


def test_a_run_that_somebody_else_trains_is_passed_over_and_looked_at_again(undisturbed, tmp_path, capsys):
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    run = out / RUNS / "convit-10pc-seed0"
    shutil.rmtree(run)
    hold = "import sys, time; from pathlib import Path; from comvex.run_folder import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(float(sys.argv[2]))"
    with subprocess.Popen([sys.executable, "-c", hold, str(run), "2"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        report = carry_out(STUDY, out, options=OPTIONS, poll=0.1)
    said = capsys.readouterr().err
    assert said.count("1 being trained by other workers; waiting for them") == 1
    assert report["num_finished"] == 8
    assert without_seconds(out) == without_seconds(undisturbed[0])


def test_more_seeds_add_runs_and_another_recipe_is_refused_with_the_difference(undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    report = carry_out(Study(STUDY.kind, RECIPE, (1.0,), (2,)), out, options=OPTIONS)
    assert (report["num_runs"], report["num_finished"]) == (12, 10)
    assert "10 of 12 runs are finished" in (out / "report.md").read_text()
    other = dataclasses.replace(RECIPE, steps=9)
    with pytest.raises(ValueError, match=r"has another study \(steps: 4 -> 9\): choose another --out"):
        carry_out(Study(STUDY.kind, other, (1.0,), (0,)), out)
    with pytest.raises(ValueError, match="study: sample-efficiency -> ablation"):
        carry_out(Study("ablation", RECIPE, (1.0,), (0,)), out)
    with pytest.raises(ValueError, match=r"has another study \(stretch: 1\.0 -> 0\.5\)"):
        carry_out(dataclasses.replace(STUDY, stretch=0.5), out)
    with pytest.raises(ValueError, match="holds something else than a study"):
        carry_out(STUDY, out / RUNS)
    with pytest.raises(ValueError, match="a study does not start runs again"):
        carry_out(STUDY, out, options=Options(overwrite=True))


def test_a_run_trained_otherwise_is_not_taken_for_one_of_the_study(undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    file = out / RUNS / "plain-10pc-seed1" / run_folder.RECIPE
    stored = json.loads(file.read_text())
    stored["recipe"]["learning_rate"] = 0.5
    file.write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match=r"plain-10pc-seed1 was not trained as the study says \(learning_rate: 0\.5 ->"
    ):
        carry_out(STUDY, out, options=OPTIONS)


def test_a_study_of_an_earlier_version_goes_on_though_its_record_lacks_a_setting(undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    shutil.rmtree(out / RUNS / "plain-10pc-seed1")
    for file in (out / run_folder.STUDY, *out.glob(f"{RUNS}/*/{run_folder.RECIPE}")):
        stored = json.loads(file.read_text())
        del stored["recipe"]["precision"], stored["recipe"]["augment"]["shear"]
        file.write_text(json.dumps(stored))
    assert carry_out(STUDY, out, options=OPTIONS)["num_finished"] == 8


def test_a_run_that_fails_is_named_once_the_others_are_finished(undisturbed, tmp_path, monkeypatch, capsys):
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    for name in ("convit-10pc-seed0", "plain-10pc-seed0"):
        shutil.rmtree(out / RUNS / name)
    original = carrying_out.train

    def failing(recipe, folder, *, options):
        if folder.name == "convit-10pc-seed0":
            raise UserError("the loss is no longer finite")
        return original(recipe, folder, options=options)

    monkeypatch.setattr(carrying_out, "train", failing)
    message = "^1 of 8 runs failed, the others are finished; the first that did is convit-10pc-seed0: the loss is no"
    with pytest.raises(ValueError, match=message):
        carry_out(STUDY, out, options=OPTIONS, poll=0.1)
    assert "study: convit, 10 % of the pictures, seed 0 failed: the loss is no longer" in capsys.readouterr().err
    assert "7 of 8 runs are finished" in (out / "report.md").read_text()
    monkeypatch.undo()
    assert carry_out(STUDY, out, options=OPTIONS)["num_finished"] == 8


def test_where_every_run_fails_that_is_said_and_nothing_is_waited_for(tmp_path, monkeypatch, capsys):
    def failing(recipe, folder, *, options):
        raise UserError("the loss is no longer finite")

    monkeypatch.setattr(carrying_out, "train", failing)
    with pytest.raises(ValueError, match=r"^All 8 runs failed; the first that did is convit-10pc-seed0: the loss"):
        carry_out(STUDY, tmp_path / "study", options=OPTIONS, poll=0.1)
    assert "waiting" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["sample-efficiency", "ablation"])
def test_settings_that_fit_no_model_are_refused_before_anything_is_written(kind, tmp_path, capsys):
    wrong = dataclasses.replace(RECIPE, model=dataclasses.replace(SMALL, heads=7))
    with pytest.raises(ValueError, match=r"heads"):
        carry_out(Study(kind, wrong, (0.1, 1.0), (0,)), tmp_path / "study", options=OPTIONS)
    assert not (tmp_path / "study").exists()
    assert "study:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "-1"], r"seeds has -1: each must lie in \[0, 2\*\*32\)"),
        (["--stretch", "2"], "stretch is 2: it must lie in"),
        (["--overwrite"], "a study does not start runs again"),
        (["--out", "{pictures}"], "holds something else than a study"),
    ],
)
def test_what_has_nothing_to_do_with_the_pictures_is_refused_before_they_are_opened(words, message, tmp_path, capsys):
    pictures = uneven_pictures(tmp_path / "pictures")  # too few for the least of the default fractions
    words = ["sample-efficiency", "--data", str(pictures), *(word.format(pictures=pictures) for word in words)]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "study")]
    with pytest.raises(ValueError, match=message):
        tyro.cli(RunStudy, args=words).run()
    assert "without the fraction" not in capsys.readouterr().err


def test_data_without_test_pictures_or_with_several_labels_are_refused(tmp_path):
    table = shape_pictures(tmp_path / "shapes", num=40)
    with pytest.raises(ValueError, match="several labels each: a study compares top-1"):
        carry_out(Study("ablation", Recipe(data=str(multi_label_recipe(table).data)), (1.0,), (0,)), tmp_path / "one")
    for part in ("train", "val"):
        for label in ("dark", "bright"):
            folder = tmp_path / "pictures" / part / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), number + 200 * (label == "bright")).save(folder / f"{number}.png")
    study = Study("ablation", Recipe(data=str(tmp_path / "pictures")), (1.0,), (0,))
    with pytest.raises(ValueError, match="has no test pictures: a study needs some"):
        carry_out(study, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_fractions_that_leave_no_pictures_are_refused_or_left_out_by_default(tmp_path):
    for label in ("dark", "bright"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(40):
            Image.new("L", (8, 8), number + 200 * (label == "bright")).save(
                tmp_path / "pictures" / label / f"{number}.png"
            )
    recipe = Recipe(data=str(tmp_path / "pictures"))
    message = (
        r"^fractions has 0\.01: .* 58 pictures to train on and 6 to validate, .*fraction must be at least 0\.167\.$"
    )
    with pytest.raises(ValueError, match=message):
        carry_out(Study("sample-efficiency", recipe, (0.01, 0.1, 1.0), (0,)), tmp_path / "study")
    assert not (tmp_path / "study").exists()
    fitting, left_out = with_fitting_fractions(by_default(recipe, (0,)))
    assert fitting == Study("sample-efficiency", recipe, (0.3, 1.0), (0,))
    assert [line.split(": ")[0] for line in left_out] == [
        f"without the fraction {share}" for share in (0.01, 0.05, 0.1)
    ]
    assert look_through(Study("sample-efficiency", recipe, (0.167, 1.0), (0,))).num == 58
    with pytest.raises(ValueError, match=r"are too few for a study: without the fraction 0\.1: "):
        with_fitting_fractions(Study("sample-efficiency", recipe, (0.01, 0.1), (0,)))


def by_default(recipe: Recipe, seeds: tuple[int, ...]) -> Study:
    return Study("sample-efficiency", recipe, FRACTIONS["sample-efficiency"], seeds)


def uneven_pictures(root: Path) -> Path:
    """160 dark and 160 bright pictures, and ten that are grey."""
    for label, num, grey in (("dark", 160, 0), ("bright", 160, 200), ("grey", 10, 100)):
        (root / label).mkdir(parents=True)
        for number in range(num):
            Image.new("L", (8, 8), grey + number // 4).save(root / label / f"{number}.png")
    return root


def test_classes_that_a_fraction_leaves_nothing_of_are_told_and_such_fractions_left_out_by_default(tmp_path, capsys):
    recipe = Recipe(data=str(uneven_pictures(tmp_path / "pictures")), model=SMALL_PICTURES, steps=2, batch_size=8)
    fitting, left_out = with_fitting_fractions(by_default(recipe, (0, 1)))
    assert fitting.fractions == (0.1, 0.3, 1.0)
    assert left_out[-1] == "without the fraction 0.05: it leaves no training picture of grey."
    carry_out(Study("ablation", recipe, (0.05,), (0,)), tmp_path / "study", options=OPTIONS)
    sentence = "At 5 % of the pictures there is, with some seed, no picture to train on of 1 class: grey."
    assert f"study: {sentence}" in capsys.readouterr().err
    assert sentence in (tmp_path / "study" / "report.md").read_text()


def test_a_study_does_not_go_on_with_other_pictures(tmp_path):
    pictures = uneven_pictures(tmp_path / "pictures")
    recipe = Recipe(data=str(pictures), model=SMALL_PICTURES, steps=2, batch_size=8)
    study = Study("sample-efficiency", recipe, (1.0,), (0,))
    carry_out(study, tmp_path / "study", options=OPTIONS)
    (pictures / "dark" / "0.png").rename(pictures / "dark" / "another.png")
    assert carry_out(study, tmp_path / "study", options=OPTIONS)["num_finished"] == 2  # of those nothing is needed
    more = dataclasses.replace(study, seeds=(0, 1))
    began = r"are not those that the study in .* was begun with"
    with pytest.raises(
        ValueError, match=began + r" \(changed: .*training pictures.*; then (\d+) to train on, now \1\)"
    ):
        carry_out(more, tmp_path / "study", options=OPTIONS)
    (pictures / "dark" / "another.png").unlink()
    with pytest.raises(ValueError, match=began):
        carry_out(more, tmp_path / "study", options=OPTIONS)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["seeds"] == [0]


def test_a_finished_study_s_command_is_repeated_without_its_pictures_and_takes_its_fractions(tmp_path, capsys):
    pictures = uneven_pictures(tmp_path / "pictures")
    recipe = Recipe(data=str(pictures), model=SMALL_PICTURES, steps=2, batch_size=8)
    command = RunStudy("sample-efficiency", recipe, OPTIONS, out=tmp_path / "study", seeds=(0,))
    assert dataclasses.replace(command, fractions=(0.4,)).run() == 0
    shutil.rmtree(pictures)
    capsys.readouterr()
    assert command.run() == 0
    assert "convit, 40 % (" in (told := capsys.readouterr().out)
    assert "\nWith 95 pictures the seeds do not settle which leads: " in told
    assert "plain, 100 %" not in told


def test_a_study_begun_by_other_defaults_goes_on_by_the_command_that_its_refusal_tells(tmp_path):
    out = tmp_path / "study"
    flips = Augmentation(rotation=0.0, translation=0.04, zoom=0.0, random_erasing=0.0)
    earlier = dataclasses.replace(STANDARD, data="digits", optimizer="adamw", augment=flips, model=Architecture())
    begun, noted = begin(dataclasses.replace(STUDY, recipe=earlier), out)
    del noted["recipe"]["optimizer"]  # as the version before noted it
    (out / "study.json").write_text(json.dumps(noted))
    today = dataclasses.replace(STUDY, recipe=dataclasses.replace(STANDARD, data="digits"))
    with pytest.raises(
        UserError, match=r"optimizer: adamw -> muon.*; the study that is there goes on with "
    ) as refused:
        begin(today, out)
    words = shlex.split(str(refused.value).removesuffix(".").split(" goes on with comvex study ")[1])
    told = tyro.cli(RunStudy, args=words, config=(tyro.conf.FlagCreatePairsOff,))
    assert (told.out, told.fractions, told.seeds) == (out, STUDY.fractions, STUDY.seeds)
    assert begin(Study(told.kind, told.recipe, told.fractions, told.seeds, told.stretch), out)[0] == begun


def test_a_study_keeps_the_length_that_it_was_begun_with_and_its_report_s_command_names_it(tmp_path, monkeypatch):
    out = tmp_path / "study"
    asked = dataclasses.replace(STUDY, recipe=dataclasses.replace(STANDARD, data="digits"))
    begun, noted = begin(asked, out)
    assert begun.recipe.epochs == noted["recipe"]["epochs"] == 625  # 800,000 pictures, 20 batches of 64 each
    assert "--epochs 625 " in command(begun, out)
    monkeypatch.setattr(plan, "SHOWN", 1_000)  # as another version might have it
    assert begin(asked, out)[0] == begun
    assert begin(begun, out)[0] == begun
    with pytest.raises(UserError, match=r"has another study \(epochs: 625 -> 311\)"):
        begin(dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, epochs=311)), out)
    noted["recipe"]["epochs"] = None  # as the version before noted it
    (out / "study.json").write_text(json.dumps(noted))
    assert begin(asked, out)[0] == asked
    by_steps = dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, steps=4))
    assert begin(by_steps, tmp_path / "other")[0] == by_steps


def test_a_worker_reports_on_what_another_one_has_added_meanwhile(undisturbed, tmp_path, monkeypatch):
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    shutil.rmtree(out / RUNS / "plain-10pc-seed1")
    original = carrying_out.train

    def overtaken(recipe, folder, *, options):
        monkeypatch.setattr(carrying_out, "train", original)
        carry_out(dataclasses.replace(STUDY, fractions=(1.0,), seeds=(2,)), out, options=OPTIONS)
        return original(recipe, folder, options=options)

    monkeypatch.setattr(carrying_out, "train", overtaken)
    report = carry_out(STUDY, out, options=OPTIONS)
    assert (report["num_runs"], report["num_finished"]) == (12, 10)  # two fractions, three seeds, two architectures
    assert "10 of 12 runs are finished" in (out / "report.md").read_text()


def test_workers_that_begin_at_once_note_the_seeds_of_all(tmp_path):
    """Real processes; each looks through the pictures and then writes study.json."""
    out = tmp_path / "study"
    asked = [[*ARGUMENTS[: ARGUMENTS.index("--seeds")], "--seeds", str(seed)] for seed in range(3)]
    files = [tmp_path / f"{seed}.txt" for seed in range(3)]
    workers = [
        Command(*words, "--threads", "1", "--out", out, out=file, err=file)
        for words, file in zip(asked, files, strict=True)
    ]
    assert [worker.wait(300) for worker in workers] == [0, 0, 0], [file.read_text() for file in files]
    assert json.loads((out / "study.json").read_text())["seeds"] == [0, 1, 2]
    assert "12 of 12 runs are finished" in (out / "report.md").read_text()


def test_workers_report_one_after_the_other(undisturbed, tmp_path):
    """One that had read the runs before another's last was finished must not write after it."""
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "study"))
    order = []
    with alone_in(out):
        worker = Thread(target=lambda: (report_all(out, draw=False), order.append("reported")))
        worker.start()
        time.sleep(1)
        order.append("free")
    worker.join(60)
    assert order == ["free", "reported"]


def test_what_a_worker_that_was_killed_at_once_has_left_is_no_other_folder(tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    (out / ".study.json.12345.tmp").touch()
    carry_out(dataclasses.replace(STUDY, fractions=(1.0,), seeds=(0,)), out, options=OPTIONS)
    assert (out / "report.md").exists()


def test_the_line_between_runs_tells_the_time_left(undisturbed, tmp_path):
    runs = STUDY.runs(1295)
    line = partial(progress_line, runs, num_pictures=1295)
    assert line(tmp_path, following=runs[0]) == "study: 0 of 8 runs finished; next convit, 10 % of the pictures, seed 0"
    assert line(undisturbed[0]).startswith("study: 8 of 8 runs finished, about 0 s left")
    finished = read_result(runs[0], undisturbed[0])
    assert finished is not None
    failed = line(tmp_path, failed=[run.name for run in runs[:-1]], following=runs[-1])
    assert failed == f"study: 0 of 8 runs finished, 7 failed; next {runs[-1]}"
    slow = dataclasses.replace(finished, steps=10, seconds=50.0)
    open_runs = runs[:2]  # of four steps each, one of which has done two
    (tmp_path / RUNS / runs[1].name / "checkpoints" / "step-00000002").mkdir(parents=True)
    assert seconds_left(open_runs, [slow], tmp_path, num_pictures=1295) == 5.0 * (4 + 2)
    assert seconds_left(open_runs, [], tmp_path, num_pictures=1295) is None
    assert [duration(seconds) for seconds in (40, 754, 11_100)] == ["40 s", "13 min", "3 h 05 min"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_ablation_leaves_alone_what_it_says_it_freezes(optimizer, tmp_path):
    recipe = Recipe(data="digits", model=SMALL, steps=2, batch_size=32, weight_decay=0.5, learning_rate=1e-2)
    recipe = dataclasses.replace(recipe, optimizer=optimizer)
    study = Study("ablation", recipe, (1.0,), (0,))
    report = carry_out(study, tmp_path / "study", options=OPTIONS)
    assert report["num_finished"] == 7
    text = (tmp_path / "study" / "report.md").read_text()
    assert "| GPSA frozen at random |" in text
    data = open_data("digits")
    unchanged = {}
    for run in study.runs(1295):
        start = build_model(run.recipe, data).state_dict()
        end = load_file(tmp_path / "study" / RUNS / run.name / run_folder.LAST_WEIGHTS)
        assert end.keys() == start.keys()
        unchanged[run.architecture] = {name for name in end if (end[name] == start[name]).all()} - {
            "blocks.0.attn.pos_proj.bias"  # a buffer
        }
    gpsa = {f"blocks.0.attn.{name}" for name in ("qk.weight", "v.weight", "proj.weight", "proj.bias")}
    gpsa |= {"blocks.0.attn.gating_param", "blocks.0.attn.pos_proj.weight"}
    gates = {"blocks.0.attn.gating_param"}
    assert unchanged == {
        "convit": set(),
        "gates frozen at 0": gates,
        "no convolutional init": set(),
        "neither": gates,
        "GPSA frozen at convolution": gpsa,
        "GPSA frozen at random": gpsa,
        "plain": set(),
    }


class BegunError(Exception):
    """In place of the runs, which other tests look at."""


def test_a_study_refuses_torchrun_and_takes_a_scheduler_for_none(tmp_path, monkeypatch):
    def begun(study, out):
        raise BegunError

    monkeypatch.setattr(carrying_out, "begin", begun)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some schedulers set it for every process
    with pytest.raises(BegunError):
        carry_out(STUDY, tmp_path / "study", options=OPTIONS)
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match="A study does not run under torchrun"):
        carry_out(STUDY, tmp_path / "study", options=OPTIONS)
