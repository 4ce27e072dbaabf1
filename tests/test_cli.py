"""The command line as a person meets it: processes, what they print, and how they end."""

import contextlib
import errno
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from docstring_parser import parse_from_object
from PIL import Image

from commands import completed
from comvex.cli import COMMANDS, ending_on_sigterm, main
from comvex.commands.evaluate import describe_evaluation
from comvex.commands.runs import Runs
from comvex.commands.train import default_out, describe_summary
from comvex.data.augmentation import Augmentation
from comvex.data.sources import open_data
from comvex.inference import run_evaluation
from comvex.training.recipe import Architecture, Recipe
from made_pictures import shape_pictures

SMALL = ["--model.dim", "32", "--model.num-local-layers", "1", "--epochs", "1", "--threads", "1"]


def fresh(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that imports everything anew."""
    command = [sys.executable, "-m", "comvex", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a refused command says: one sentence on standard error, exit code 2, nothing on standard output."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.strip().splitlines()
        assert line.startswith("comvex: ")
        return line

    return run


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_answers_in_under_two_seconds_without_torch(command):
    program = (
        "import sys, time; start = time.perf_counter(); import comvex.cli\n"
        "try: comvex.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'timm', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "usage: comvex" in done.stdout
    # The promise is two seconds on an idle machine; without torch it takes a third of one, so this never comes near.
    assert time.perf_counter() - start < 20


def test_every_setting_is_explained():
    done = fresh("train", "--help")
    for name in ("--data", "--fraction", "--model.preset", "--augment.rotation", "--learning-rate", "--overwrite"):
        assert name in done.stdout
    assert fresh("--version").stdout.startswith("comvex 0.")


@pytest.mark.parametrize("command", ["train", "study", "bench", "export"])
def test_the_help_breaks_a_text_where_the_terminal_ends_and_not_where_the_source_does(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    settings = [COMMANDS[command], *({"train": [Recipe, Architecture, Augmentation]}.get(command, []))]
    texts = [each.description for cls in settings for each in parse_from_object(cls).params if each.description]
    long = [text for text in texts if "\n" in text and len(text) < 300]  # no column is much wider
    assert long
    assert [text for text in long if not any(" ".join(text.split()) in line for line in lines)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_sets_every_command_that_it_shows_apart_from_its_text(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("comvex ")] == []


def test_train_evaluate_predict(tmp_path):
    run = tmp_path / "run"
    done = fresh("train", "--out", run, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "top-1 accuracy" in done.stdout
    assert "epoch 1, step" in done.stderr

    again = completed("train", "--out", run, *SMALL, "--json")
    summary = json.loads(again.stdout)
    assert summary["num_pictures"] == 360
    assert f"{summary['top1']:.2f} %" in done.stdout

    evaluated = completed("evaluate", run, "--json")
    figures = json.loads(evaluated.stdout)
    assert figures["top1"] == pytest.approx(summary["top1"])
    assert figures["loss"] == pytest.approx(summary["loss"], rel=1e-5)  # other batches round differently
    low, high = figures["top1_interval"]
    assert low < figures["top1"] < high
    picture = run / "evaluation" / "digits-test" / "confusion.png"
    first = picture.read_bytes()
    assert "of an earlier evaluation, kept" in completed("evaluate", run).stdout
    assert picture.read_bytes() == first

    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.png")
        open_data("digits").test.read(index, channels=1).save(files[-1])
    predicted = json.loads(completed("predict", run, *files, "--top", 2, "--json").stdout)
    assert list(predicted["predictions"]) == [str(file) for file in files]
    assert all(len(classes) == 2 for classes in predicted["predictions"].values())
    assert " %  " in completed("predict", run, files[0]).stdout


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_still_predicted(small_run, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (8, 8)).save(good)
    bad.write_text("no picture")
    done = completed("predict", small_run, bad, good)
    assert done.returncode == 2
    assert str(good) in done.stdout
    assert (
        done.stderr.strip()
        == f"comvex: The picture {bad} cannot be read: it is in no picture format that Pillow knows."
    )


def test_a_folder_stands_for_its_pictures_as_training_finds_them(small_run, tmp_path, capsys, refusal):
    for name in ("b.png", "a.PNG", "inner/c.png", ".hidden/d.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").touch()
    Image.new("L", (8, 8)).save(tmp_path / "alone.png")
    expected = [tmp_path / "alone.png", *(tmp_path / "pictures" / name for name in ("a.PNG", "b.png", "inner/c.png"))]
    given = [str(tmp_path / "alone.png"), str(tmp_path / "pictures")]
    assert main(["predict", str(small_run), *given, "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert list(predicted["predictions"]) == [str(file) for file in expected]
    assert main(["explain", str(small_run), *given, "--out", str(tmp_path / "report"), "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert [entry["picture"] for entry in explained["predictions"]] == [file.name for file in expected]
    (tmp_path / "empty").mkdir()
    assert "empty has no pictures: they must end in .bmp, .gif" in refusal("predict", small_run, tmp_path / "empty")


def test_mistakes_are_answered_by_one_sentence(small_run, tmp_path, refusal):
    assert "did you mean 'ConViT_Ti'" in refusal("train", "--out", tmp_path / "x", "--model.preset", "ConViT_T")
    assert "image_size is 9" in refusal("train", "--out", tmp_path / "x", "--model.image-size", 9)
    assert "image_size is (8, 9)" in refusal("train", "--out", tmp_path / "x", "--model.image-size", 8, 9)
    assert "no file" in refusal("train", "--out", tmp_path / "x", "--data", tmp_path / "missing.csv")
    assert "channels is 4" in refusal("train", "--out", tmp_path / "x", "--model.channels", 4)
    assert "no data set 'cifar'" in refusal("train", "--out", tmp_path / "x", "--data", "cifar")
    assert "one folder per class" in refusal("train", "--out", tmp_path / "x", "--data", tmp_path)
    assert "learning_rate is -1" in refusal("train", "--out", tmp_path / "x", "--learning-rate", "-1")
    assert not (tmp_path / "x").exists()
    assert "another recipe" in refusal("train", "--out", small_run, "--seed", 5)
    assert "no run folder" in refusal("evaluate", tmp_path / "nowhere")
    assert "is no run folder (it has no recipe.json) and has no weights file" in refusal("evaluate", tmp_path)
    assert "no run folder" in refusal("predict", tmp_path / "nowhere", "picture.png")
    assert "no command 'trian': did you mean 'train'" in refusal("trian")
    assert "no command 'zzz': the commands are train, evaluate" in refusal("zzz")
    assert "no recipe 'finetune': did you mean 'fine-tune'? The recipes are small-data" in refusal("train", "finetune")
    assert "no recipe 'zzz': the recipes are" in refusal("train", "zzz", "--help")
    assert "did you mean comvex data check pets?" in refusal("data", "pets", "--json")
    assert "No picture is given: name at least one picture file" in refusal("predict", small_run)
    assert "No picture is given: did you mean 'convit_tiny" in refusal("predict", "convit_tini")
    assert "top is 0" in refusal("predict", small_run, "picture.png", "--top", 0)
    assert "classes are not those of" in refusal("evaluate", small_run, "--data", folder_of_two(tmp_path))


def test_a_folder_that_cannot_be_made_is_one_sentence(small_run, tmp_path, refusal, monkeypatch):
    file = tmp_path / "t6.csv"
    file.touch()
    reason = "(Not a directory): choose another --out."
    assert refusal("train", "--out", file / "run").endswith(f"The folder {file / 'run'} cannot be made {reason}")
    monkeypatch.setattr(run_evaluation, "evaluate_parts", None)  # it is not come to
    assert refusal("evaluate", small_run, "--out", file / "e").endswith(f"{file / 'e'} cannot be written to {reason}")
    assert refusal("bench", "--size", 32, "--out", file / "b").endswith(f"{file / 'b'} cannot be written to {reason}")
    dry = file / "dry.dry-run"
    assert refusal("train", "--out", file / "dry", "--dry-run").endswith(f"{dry} cannot be written to {reason}")
    told = refusal("study", "ablation", "--data", "digits", "--out", file / "s")
    assert told == f"comvex: The folder {file / 's'} cannot be made {reason}"


def test_what_is_no_matter_of_a_file_keeps_its_traceback(monkeypatch):
    def lose(command: Runs) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(Runs, "run", lose)
    with pytest.raises(ConnectionResetError):
        main(["runs"])


def folder_of_two(root: Path) -> Path:
    for label in ("cat", "dog"):
        (root / "pets" / label).mkdir(parents=True)
        for index in range(20):
            Image.fromarray(np.full((9, 9), index, np.uint8)).save(root / "pets" / label / f"{index}.png")
    return root / "pets"


def test_a_run_folder_of_another_version_is_refused(small_run_copy, refusal):
    recipe = small_run_copy / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"format": 99, "comvex": "9.9"}))
    for command in (["evaluate", small_run_copy], ["train", "--out", small_run_copy]):
        assert "has format 99, written by comvex 9.9" in refusal(*command)


def test_without_out_the_same_command_finds_its_run_again(tmp_path):
    for _ in range(2):
        done = completed("train", *SMALL, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert default_out(Recipe()) != default_out(Recipe(seed=1))
    assert default_out(Recipe(data="/data/my pictures")).name.startswith("my pictures-")


def test_a_folder_of_pictures_can_be_named_as_the_data(tmp_path):
    data = folder_of_two(tmp_path)
    options = ["--model.image-size", 16, "--batch-size", 8, *SMALL]
    done = completed("train", "--data", data, "--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(completed("evaluate", tmp_path / "run", "--json").stdout)["num_pictures"] == 8


def test_pictures_with_several_labels_from_a_table_to_their_probabilities(multi_label_run, tmp_path):
    data = shape_pictures(tmp_path / "pictures", num=60)
    options = ["--model.image-size", 64, 32, "--batch-size", 16, *SMALL]
    done = completed("train", "--data", data, "--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert re.match(r"mean average precision \d+\.\d\d % on 12 test pictures, loss \d\.\d{4}\n", done.stdout)
    assert "64 x 32 pixels" in done.stderr
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["model"]["image_size"] == [64, 32]
    assert completed("train", "--data", data, "--out", tmp_path / "run", *options).stdout == done.stdout

    evaluated = completed("evaluate", multi_label_run, "--out", tmp_path)
    figures = json.loads(completed("evaluate", multi_label_run, "--out", tmp_path, "--json").stdout)
    assert f"mean AP     {figures['mean_average_precision']:.2f} %" in evaluated.stdout
    for row in figures["by_class"]:
        line = f"{row['average_precision']:6.2f} %  {row['class']} ({row['num_positive']} pictures)"
        assert line in evaluated.stdout
    assert figures["files_kept"]

    predicted = json.loads(completed("predict", multi_label_run, data.parent / "0.png", "--json").stdout)
    [entries] = predicted["predictions"].values()
    assert {entry["label"] for entry in entries} == {"circle", "square", "stripe"}


def test_a_refusal_ends_a_real_process_with_code_two_and_no_traceback(tmp_path):
    done = fresh("evaluate", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    folder = tmp_path / "nowhere"
    expected = f"There is no run folder or weights file {folder}: give the --out folder of a comvex train."
    assert done.stderr == f"comvex: {expected}\n"


def test_a_reader_that_has_seen_enough_is_no_mistake():
    command = f"{sys.executable} -m comvex train --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "" or done.stdout.startswith("usage")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["data"], "usage: comvex data [-h] check DATA"),
        (["data", "check"], "usage: comvex data check [-h] DATA"),
        (["study", "ablation"], "usage: comvex study ablation [-h]"),
        (["train", "--epochs", "1", "paper"], "usage: comvex train paper [-h]"),
    ],
)
def test_the_usage_repeats_the_words_that_were_given(words, usage, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert capsys.readouterr().out.startswith(usage)


def test_help_does_not_tell_what_happens_without_a_value_that_a_recipe_has(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for name, told in (("fine-tune", False), ("small-data", True)):
        with pytest.raises(SystemExit):
            main(["train", name, "--help"])
        text = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
        assert ("Default: all the same" in text) is told  # --layer-decay
        assert ("(default: 0.75)" in text) is not told


def test_what_no_does_is_told_beside_no(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # one column
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    for name, told in {
        "test": "Without a test, the test pictures",
        "model.no-use-gpsa": "Without GPSA",
        "model.no-train-gates": "Without training, all gates",
        "model.no-convolutional-init": "Without convolutional init",
    }.items():
        assert f"--{name if '.' in name else f'no-{name}'} {told}" in text
    assert "(default: True)" not in text


def test_top_5_is_told_of_more_than_five_classes(small_run, tmp_path):
    summary = json.loads((small_run / "summary.json").read_text())
    assert summary["num_classes"] == 10
    assert f"top-5 {summary['top5']:.2f} %" in describe_summary(small_run, summary, Recipe())
    assert "top-5" not in describe_summary(small_run, summary | {"num_classes": 5}, Recipe())
    figures = run_evaluation.evaluate_run(small_run, out=tmp_path)
    assert f"top-5       {figures['top5']:.2f} %" in describe_evaluation(figures)
    assert "top-5" not in describe_evaluation(figures | {"num_classes": 3})


@pytest.mark.parametrize(
    "command", ["explain", "app", "predict", "evaluate", "export", "convert", "bench", "data", "study"]
)
def test_the_help_does_not_say_none_or_nothing_where_the_text_has_told_the_default(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    assert "(default: )" not in text
    assert "(default: None)" not in text
    if command not in ("bench", "data", "study"):
        assert "--config FILE" in text


@pytest.mark.parametrize(("command", "goes_on"), [("train", True), ("study", True), ("export", False)])
def test_what_goes_on_after_an_interruption_is_said_of_runs_alone(command, goes_on, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("comvex.cli.parse", interrupted)
    assert main([command]) == 130
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("comvex: interrupted")
    assert line.endswith("an unfinished run goes on when its command is repeated.") is goes_on


def test_being_told_to_end_is_not_lost_where_something_passes_over_every_exception():
    after = []

    def passes_over_every_exception():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        for number in range(1000):
            after.append(number)

    with pytest.raises(SystemExit) as ended, ending_on_sigterm():
        passes_over_every_exception()
    assert ended.value.code == 143
    assert len(after) < 2


def test_being_told_to_end_does_not_interrupt_what_is_cleaned_up():
    cleaned = []

    def cleans_up():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in range(1000):
                cleaned.append(number)

    with pytest.raises(SystemExit), ending_on_sigterm():
        cleans_up()
    assert len(cleaned) == 1000
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
