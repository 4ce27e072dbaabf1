"""Training runs: real ones, killed and resumed, on good data and on bad."""

import csv
import json
import math
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import comvex
from commands import completed
from comvex import run_folder
from comvex.commands.train import describe_summary
from comvex.convit import ConViTWithLinearClassifier, load_model
from comvex.convit.analysis import gates, nonlocality
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.files import read_table
from comvex.training import plan
from comvex.training.build import build_model
from comvex.training.plan import make_plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Architecture, Options, Recipe
from comvex.training.runs import list_runs
from comvex.training.trainer import begin_folder, train

SMALL = Architecture(dim=32, num_local_layers=1, num_nonlocal_layers=1, drop_path=0.1, attention_dropout=0.1)
QUICK = Recipe(model=SMALL, epochs=2, batch_size=128)


def same_files(one: Path, other: Path, *names: str) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_folder_holds_what_a_run_promises(small_run):
    summary = json.loads((small_run / "summary.json").read_text())
    assert {"top1", "top5", "loss", "num_parameters", "seconds", "pictures_per_second"} <= summary.keys()
    assert summary["num_pictures"] == 360
    assert summary["evaluated_on"] == "test"
    with (small_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 11))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert (small_run / "timing.csv").read_text().count("\n") == 11
    assert list((small_run / "tensorboard").glob("events.*"))
    log = (small_run / "log.txt").read_text()
    assert "epoch 3" in log
    assert re.search(r"step (\d+) of \1: .* pictures/s, \d+ % waiting for data, 0:00:00 left", log)
    with Image.open(small_run / "curves.png") as curves:
        assert curves.width > 500
    for name in ("best", "last"):
        tensors = load_file(small_run / "weights" / f"{name}.safetensors")
        assert sum(t.numel() for key, t in tensors.items() if "pos_proj.bias" not in key) == summary["num_parameters"]


def test_a_small_convit_learns_the_digits(small_run):
    assert json.loads((small_run / "summary.json").read_text())["top1"] > 30  # chance is 10


def test_two_runs_of_one_recipe_are_bit_identical_whatever_the_workers(small_run, tmp_path):
    again = Recipe.from_dict(json.loads((small_run / "recipe.json").read_text())["recipe"])
    train(again, tmp_path / "run", options=Options(workers=2))
    same_files(small_run, tmp_path / "run", "metrics.csv", "weights/best.safetensors", "weights/last.safetensors")


def test_a_finished_run_gives_its_summary_and_is_not_touched(small_run):
    again = Recipe.from_dict(json.loads((small_run / "recipe.json").read_text())["recipe"])
    before = {file: file.stat().st_mtime_ns for file in small_run.rglob("*")}
    summary = train(again, small_run)
    assert summary == json.loads((small_run / "summary.json").read_text())
    assert before == {file: file.stat().st_mtime_ns for file in small_run.rglob("*")}


@pytest.fixture
def more_validation_than_training(tmp_path) -> Path:
    """Folders with 8 training, 40 validation and 8 test pictures of two classes."""
    generator = np.random.default_rng(0)
    for part, num in (("train", 8), ("val", 40), ("test", 8)):
        for index in range(num):
            folder = tmp_path / "pictures" / part / ("dark", "bright")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 128, (8, 8)) + 127 * (index % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def test_a_run_of_many_short_epochs_validates_now_and_then_and_stopped_between_two_ends_the_same(
    more_validation_than_training, broken_off_at, tmp_path, monkeypatch
):
    monkeypatch.setattr("comvex.training.recipe.FEWEST_VALIDATIONS", 10)  # which takes a tenth of the time of 100
    recipe = replace(
        QUICK,
        data=str(more_validation_than_training),
        model=replace(SMALL, image_size=8, patch_size=2, channels=1),
        epochs=23,
        batch_size=8,
    )
    summary = train(recipe, tmp_path / "whole")
    rows = read_table(tmp_path / "whole" / "metrics.csv")
    # 23 // 10: at least ten times, though 40 pictures are five epochs of 8
    assert [(row["epoch"], row["step"]) for row in rows] == [(n, n) for n in (*range(2, 23, 2), 23)]
    assert "23 steps on cpu, validated every 2 epochs" in (tmp_path / "whole" / "log.txt").read_text()
    heads = read_table(tmp_path / "whole" / "heads.csv")
    assert {row["epoch"] for row in heads} == {0, *(row["epoch"] for row in rows)}
    [run] = list_runs(tmp_path / "whole")
    [best] = [row for row in rows if row["epoch"] == summary["best_epoch"]]
    assert (run.epochs, run.val) == (23, best["val_top1"])

    with broken_off_at(16):
        train(recipe, tmp_path / "resumed", options=Options(checkpoint_steps=5))
    assert "step-00000015" in str(sorted((tmp_path / "resumed" / "checkpoints").iterdir())[-1])
    train(recipe, tmp_path / "resumed")
    same_files(
        tmp_path / "whole", tmp_path / "resumed",
        "metrics.csv", "heads.csv", "weights/best.safetensors", "weights/last.safetensors",
    )  # fmt: skip


def test_a_damaged_summary_is_written_anew_once_it_is_deleted(small_run_copy):
    again = Recipe.from_dict(json.loads((small_run_copy / "recipe.json").read_text())["recipe"])
    file = small_run_copy / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(file.read_text()[:20])
    with pytest.raises(UserError, match=r"summary\.json is damaged: delete it and repeat comvex train"):
        train(again, small_run_copy)
    file.unlink()
    assert train(again, small_run_copy) == summary


RUINED = replace(QUICK, epochs=8, warmup_epochs=8, warmup_learning_rate=1e-3, learning_rate=1.0)
"""A learning rate that grows until it ruins what the first epochs have learnt."""


@pytest.fixture(scope="module")
def ruined_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose best epoch is none of the last two; not to be changed."""
    out = tmp_path_factory.mktemp("ruined") / "run"
    assert train(RUINED, out)["best_epoch"] < 7
    return out


@pytest.mark.parametrize("summary_too", [False, True])
def test_lost_weights_are_written_again_from_the_checkpoint_of_their_epoch(summary_too, ruined_run, tmp_path):
    run = Path(shutil.copytree(ruined_run, tmp_path / "run"))
    for file in ("weights/best.safetensors", "weights/config.json", *(["summary.json"] if summary_too else [])):
        (run / file).unlink()
    assert train(RUINED, run) == json.loads((ruined_run / "summary.json").read_text())
    same_files(ruined_run, run, "weights/best.safetensors", "weights/last.safetensors", "metrics.csv")


def test_damaged_weights_of_an_unfinished_run_are_written_again_too(ruined_run, tmp_path):
    run = Path(shutil.copytree(ruined_run, tmp_path / "run"))
    (run / "summary.json").unlink()
    content = bytearray((run / "weights" / "best.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "weights" / "best.safetensors").write_bytes(content)
    train(RUINED, run)
    same_files(ruined_run, run, "weights/best.safetensors", "metrics.csv")


def test_weights_that_are_lost_with_their_checkpoint_are_said_to_be_before_anything_is_trained(ruined_run, tmp_path):
    run = Path(shutil.copytree(ruined_run, tmp_path / "run"))
    (run / "weights" / "best.safetensors").unlink()
    first, *_ = sorted((run / "checkpoints").iterdir())
    shutil.rmtree(first)
    with pytest.raises(
        UserError, match=rf"best\.safetensors is missing or damaged and .* since {first} is missing or damaged"
    ):
        train(RUINED, run)


def test_a_run_that_has_lost_its_checkpoints_says_that_it_starts_again(small_run_copy, caplog):
    again = Recipe.from_dict(json.loads((small_run_copy / "recipe.json").read_text())["recipe"])
    shutil.rmtree(small_run_copy / "checkpoints")
    (small_run_copy / "summary.json").unlink()
    train(again, small_run_copy)
    assert "has no checkpoint any more: it starts again from its first step" in caplog.text


def test_the_command_in_the_log_goes_on_with_the_run(ruined_run, tmp_path):
    out = Path(shutil.copytree(ruined_run, tmp_path / "run"))
    [words] = re.findall(r"command: comvex (.*)\n", (ruined_run / "log.txt").read_text())
    (out / "summary.json").unlink()
    words = words.replace(str(ruined_run), str(out))
    done = completed(*shlex.split(words), "--threads", 1)  # as many as the tests: others round otherwise
    assert done.returncode == 0, done.stderr
    assert (out / "summary.json").read_bytes() == (ruined_run / "summary.json").read_bytes()


def test_a_recipe_without_a_learning_rate_is_told_without_one(tmp_path):
    train(replace(QUICK, epochs=1), tmp_path / "run")
    assert "learning-rate" not in re.findall(r"command: .*", (tmp_path / "run" / "log.txt").read_text())[0]


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference_and_the_command_that_goes_on(small_run):
    with pytest.raises(ValueError, match=r"model\.dim: 32 -> 48") as refusal:
        train(replace(QUICK, model=replace(SMALL, dim=48)), small_run)
    command = "comvex train --data digits --model.dim 32 --model.num-local-layers 1 --model.num-nonlocal-layers 1 "
    command += f"--epochs 10 --batch-size 32 --optimizer muon --learning-rate 0.003 --out {small_run}"
    assert str(refusal.value).endswith(f"the run that is there goes on with {command}.")
    assert f"command: {command}\n" in (small_run / "log.txt").read_text()


def test_a_folder_of_something_else_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds something else than a run"):
            train(QUICK, tmp_path, options=Options(overwrite=overwrite))
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"
    with pytest.raises(ValueError, match="is a file"):
        train(QUICK, tmp_path / "thesis.txt")


def test_a_mistake_leaves_nothing_behind(tmp_path):
    for recipe in (
        replace(QUICK, data="nonesuch"),
        replace(QUICK, model=replace(SMALL, preset="ConViT_XL")),
        replace(QUICK, model=replace(SMALL, image_size=9)),
        replace(QUICK, model=replace(SMALL, channels=2)),
    ):
        with pytest.raises(ValueError, match=r"\w+"):
            train(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_what_a_killed_beginning_leaves_is_no_other_thing(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".recipe.json.4711.tmp").write_text("{")
    train(replace(QUICK, epochs=1), out)
    assert not list(out.rglob(".*.tmp"))


def test_what_a_killed_export_leaves_in_a_run_does_not_stop_it_from_going_on(tmp_path):
    out = tmp_path / "run"
    made_plan = make_plan(QUICK, Options(), torch.device("cpu"), Ranks())
    begin_folder(QUICK, made_plan, out, overwrite=False)
    (out / "exported" / ".onnx-float32.4711.tmp").mkdir(parents=True)  # or one that is still being written
    (out / ".metrics.csv.4711.tmp").write_text("epoch")
    begin_folder(QUICK, made_plan, out, overwrite=False)
    assert [path.name for path in out.rglob(".*.tmp")] == [".onnx-float32.4711.tmp"]


def test_overwriting_that_was_cut_short_can_be_repeated(small_run_copy):
    """The recipe goes last and the summary first, so whatever is left is an unfinished run."""
    removed, unlink = [], Path.unlink

    def watched(path: Path, **options) -> None:
        removed.append(path.name)
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", watched)
        train(replace(QUICK, epochs=1), small_run_copy, options=Options(overwrite=True))
    assert removed[0] == "summary.json"
    of_the_run = [name for name in removed if not name.startswith(".")]
    assert of_the_run.index("recipe.json") == of_the_run.index("metrics.csv") + 1 or "recipe.json" in of_the_run[-2:]


def test_overwrite_starts_again(small_run_copy):
    train(QUICK, small_run_copy, options=Options(overwrite=True))
    assert (small_run_copy / "metrics.csv").read_text().count("\n") == 3
    assert json.loads((small_run_copy / "recipe.json").read_text())["recipe"] == QUICK.to_dict()


def noise_folder(root: Path, *, num: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for label in ("dark", "light"):
        (root / label).mkdir(parents=True)
        for index in range(num):
            values = generator.integers(0, 128, (30, 40, 3), dtype=np.uint8) + (128 if label == "light" else 0)
            Image.fromarray(values.astype(np.uint8)).save(root / label / f"{index}.png")
    return root


FOLDER = replace(QUICK, batch_size=8, model=replace(SMALL, image_size=16, patch_size=8))


def test_a_folder_with_damaged_pictures_trains_and_counts_them(tmp_path):
    folder = noise_folder(tmp_path / "pictures")
    (folder / "dark" / "text.jpg").write_text("no picture")
    whole = (folder / "light" / "0.png").read_bytes()
    (folder / "light" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    summary = train(replace(FOLDER, data=str(folder)), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert summary["num_unreadable"] == 2
    for name in ("text.jpg", "truncated.png"):
        assert log.count(f"{name} cannot be read") == 1


def test_damaged_pictures_of_every_part_are_named_once_and_counted(tmp_path):
    for part, num in (("train", 8), ("val", 4), ("test", 4)):
        folder = noise_folder(tmp_path / "pictures" / part, num=num)
        (folder / "dark" / "0.png").write_text("no picture")
    summary = train(replace(FOLDER, data=str(tmp_path / "pictures")), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert summary["num_unreadable"] == 3
    for part in ("train", "val", "test"):
        assert log.count(f"{part}/dark/0.png cannot be read") == 1


def test_pictures_that_change_between_two_starts_are_noticed(tmp_path):
    folder = noise_folder(tmp_path / "pictures")
    recipe = replace(FOLDER, data=str(folder))
    train(recipe, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    for index in range(6):
        (folder / "dark" / f"{index}.png").unlink()
    with pytest.raises(ValueError, match="are not those that the run"):
        train(recipe, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before_it(tmp_path):
    recipe = replace(QUICK, learning_rate=1e30, clip_norm=None, warmup_epochs=0)
    with pytest.raises(
        ValueError, match=r"The loss of step \d+ is .* on the pictures number \d+.*smaller --learning-rate"
    ) as caught:
        train(recipe, tmp_path / "run", options=Options(checkpoint_steps=1))
    [failure] = (tmp_path / "run" / "failure").iterdir()
    told = json.loads((failure / "failure.json").read_text())
    batch = load_file(failure / "batch.safetensors")
    assert told["pictures"] == [f"number {index}" for index in batch["indices"].tolist()]
    assert batch["pictures"].shape == (128, 1, 8, 8)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(failure / "model.safetensors").values())
    [*_, last] = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert int(last.name[5:]) == told["step"] - 1
    assert str(caught.value).endswith(f"the checkpoint of step {told['step'] - 1} is kept.")
    same_files(failure, last, "model.safetensors", "optimizer.safetensors")


def test_a_trial_never_opens_a_test_picture(tmp_path, monkeypatch):
    class Untouchable:
        def __getattribute__(self, name):
            raise AssertionError(f"{name} of the test pictures was asked for")

    def guarded(*arguments, **options):
        return replace(open_data(*arguments, **options), test=Untouchable())

    monkeypatch.setattr(plan, "open_data", guarded)
    summary = train(replace(QUICK, epochs=1, test=False), tmp_path / "run")
    assert (summary["evaluated_on"], summary["num_pictures"]) == ("val", 142)
    trial = replace(QUICK, test=False, select="last")
    assert "\nThe test pictures were left alone: this figure is of the validation pictures.\n" in describe_summary(
        tmp_path, summary, trial
    )
    no_test_pictures = (
        "The data have no test pictures: this figure is of the validation pictures, which chose the epoch."
    )
    assert no_test_pictures in describe_summary(tmp_path, summary, QUICK)
    with pytest.raises((AssertionError, TypeError)):  # the guard is one
        train(replace(QUICK, epochs=1), tmp_path / "other")


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    recipe = replace(QUICK, epochs=30, patience=2, learning_rate=0.3)
    train(recipe, tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    best = json.loads((tmp_path / "run" / "summary.json").read_text())["best_epoch"]
    assert len(rows) == best + 2 < 30


def test_the_last_epoch_is_kept_and_tested_where_that_is_asked_for(ruined_run, tmp_path):
    best, last = train(RUINED, ruined_run), train(replace(RUINED, select="last"), tmp_path / "last")
    assert best["best_epoch"] < last["best_epoch"] == 8
    kept, final = (load_file(tmp_path / "last" / "weights" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(kept[name], final[name]) for name in kept)
    assert last["loss"] != best["loss"]
    with pytest.raises(UserError, match="patience is 2: it waits for the best epoch, so select must be best, not last"):
        replace(RUINED, select="last", patience=2)
    with pytest.raises(UserError, match="select is 'first': it must be best or last"):
        replace(RUINED, select="first")


def test_averaged_weights_are_evaluated_and_saved(tmp_path):
    recipe = replace(QUICK, epochs=1, ema_decay=0.9)
    train(recipe, tmp_path / "run")
    last = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    averaged, learned = (load_file(last / f"{name}.safetensors") for name in ("ema", "model"))
    saved = load_file(tmp_path / "run" / "weights" / "last.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(tensor, averaged[name])
    assert not torch.equal(averaged["head.weight"], learned["head.weight"])


def test_the_heads_are_watched_from_before_the_first_step(small_run):
    """Epoch 0 is the model as it is made: gates and kernels of the convolutional start."""
    rows = read_table(small_run / "heads.csv")
    assert [row["epoch"] for row in rows] == [epoch for epoch in range(11) for _ in range(2 * 4)]
    new = ConViTWithLinearClassifier(comvex.load(small_run).model.config)
    positional = nonlocality(new, torch.zeros(1, 1, 8, 8)).positional
    for row in rows[:4]:
        assert row["gate"] == pytest.approx(1 / (1 + math.exp(-1)))
        assert row["nonlocality_positional"] == pytest.approx(positional[row["layer"], row["head"]])
    assert all(row["gate"] != first["gate"] for row, first in zip(rows[8:12], rows[:4], strict=True))


def test_training_starts_from_given_weights_with_a_new_head_at_another_size(small_run, tmp_path):
    folder = noise_folder(tmp_path / "pictures")
    recipe = Recipe(
        data=str(folder),
        weights=str(small_run),
        model=Architecture(image_size=16, drop_path=0.1),
        epochs=1,
        batch_size=8,
        learning_rate=1e-12,
        layer_decay=0.5,
    )
    train(recipe, tmp_path / "run")
    trained, start = (comvex.load(run).model for run in (tmp_path / "run", small_run))
    torch.testing.assert_close(trained.blocks[0].mlp.fc1.weight, start.blocks[0].mlp.fc1.weight, atol=1e-9, rtol=0)
    first = [
        row["gate"] for row in read_table(tmp_path / "run" / "heads.csv") if (row["epoch"], row["layer"]) == (0, 0)
    ]
    assert first == pytest.approx(gates(start)[0])
    assert trained.head.weight.shape == (2, 32)
    assert (trained.config.image_size, trained.config.image_channel, trained.config.drop_path) == (16, 1, 0.1)
    with pytest.raises(ValueError, match=r"model\.dim is 48, but the weights .* settle it"):
        replace(recipe, model=Architecture(dim=48))


def test_a_folder_that_cannot_be_written_to_ends_the_run_in_a_sentence(tmp_path):
    """A file system that takes no more: the limit on the size of a file stands in for a full disk."""
    out = tmp_path / "run"
    command = ["train", "--model.dim", 32, "--epochs", 3, "--threads", 1, "--out", out]
    done = completed(*command, largest_file=300_000)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("comvex: ")]
    assert "cannot be written to (File too large)" in line
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.unfinished")) + list(out.rglob("*.tmp"))
    assert completed(*command).returncode == 0


def test_names_that_are_no_text_end_a_run_as_others_do(tmp_path):
    """Such as folders that a system with another encoding has named."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    words = ["train", "--data", noise_folder(folder), "--steps", 1, "--model.dim", 32, "--threads", 1]
    done = completed(*words, "--out", tmp_path / "run")
    assert (done.returncode, "Logging error" in done.stderr) == (0, False), done.stderr
    assert load_model(tmp_path / "run").info.figures["data"] == "odd\\xff"
    assert "odd\\udcff" in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(UserError, match=r"The run folder .*odd\\xff has a name that is not UTF-8"):
        train(QUICK, folder)


def test_a_head_for_as_many_other_classes_is_new_and_for_the_same_classes_kept(small_run):
    start = load_model(small_run)
    kept = build_model(Recipe(weights=str(small_run)), open_data("digits"))
    assert torch.equal(kept.head.weight, start.head.weight)
    others = replace(open_data("digits"), classes=tuple("abcdefghij"))
    new = build_model(Recipe(weights=str(small_run)), others)
    assert not torch.equal(new.head.weight, start.head.weight)
    assert torch.equal(new.cls_token, start.cls_token)


def test_what_a_caller_has_set_of_pytorch_is_as_it_was_afterwards(tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train(replace(QUICK, steps=1), tmp_path / "run", options=Options(threads=1))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_a_scheduler_tells_without_torchrun_makes_no_group(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert train(replace(QUICK, steps=1), tmp_path / "run")["evaluated_on"] == "test"


def test_two_threads_do_not_train_in_one_folder(tmp_path):
    with run_folder.locked(tmp_path / "run"):
        with pytest.raises(UserError, match="This process is training in the run folder"):
            train(replace(QUICK, steps=1), tmp_path / "run")
        with pytest.raises(UserError, match="This process is training"), run_folder.locked(tmp_path / "run"):
            pass
    train(replace(QUICK, steps=1), tmp_path / "run")


def test_a_folder_is_the_same_data_however_it_is_spelt():
    assert Recipe(data="./pets/") == Recipe(data="pets")
    assert Recipe(data="wds/./pets-{000..011}.tar").data == "wds/./pets-{000..011}.tar"
    assert Recipe(data="").data == ""


def test_weights_for_grey_pictures_take_colours_on_request_and_say_what_they_do_without(small_run, tmp_path, caplog):
    data = open_data(str(noise_folder(tmp_path / "pictures")))
    grey = build_model(Recipe(weights=str(small_run)), data)
    assert grey.config.image_channel == 1
    assert "are for grey pictures, so those of pictures are read as grey: model.channels = 3" in caplog.text
    caplog.clear()
    colour = build_model(Recipe(weights=str(small_run), model=Architecture(channels=3)), data)
    assert "grey" not in caplog.text
    pictures = torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        features = [
            model.eval().forward_features(pictures.expand(-1, channels, -1, -1))
            for model, channels in ((grey, 1), (colour, 3))
        ]
    torch.testing.assert_close(*features)
