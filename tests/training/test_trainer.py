"""Training runs: real ones, killed and resumed, on good data and on bad."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from comvex.data.augmentation import Augmentation
from comvex.training.recipe import Architecture, Options, Recipe
from comvex.training.trainer import train

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
    assert "epoch 3" in (small_run / "log.txt").read_text()
    with Image.open(small_run / "curves.png") as curves:
        assert curves.width > 500
    for name in ("best", "last"):
        tensors = load_file(small_run / "weights" / f"{name}.safetensors")
        assert sum(t.numel() for key, t in tensors.items() if "pos_proj.bias" not in key) == summary["num_parameters"]


def test_a_small_convit_learns_the_digits(small_run):
    assert json.loads((small_run / "summary.json").read_text())["top1"] > 30  # chance is 10


def test_two_runs_of_one_recipe_are_bit_identical_whatever_the_workers(small_run, tmp_path):
    recipe = json.loads((small_run / "recipe.json").read_text())["recipe"]
    again = Recipe(**recipe | {"model": Architecture(**recipe["model"]), "augment": Augmentation(**recipe["augment"])})
    train(again, tmp_path / "run", options=Options(workers=2))
    same_files(small_run, tmp_path / "run", "metrics.csv", "weights/best.safetensors", "weights/last.safetensors")


def test_a_finished_run_gives_its_summary_and_is_not_touched(small_run):
    recipe = json.loads((small_run / "recipe.json").read_text())["recipe"]
    again = Recipe(**recipe | {"model": Architecture(**recipe["model"]), "augment": Augmentation(**recipe["augment"])})
    before = {file: file.stat().st_mtime_ns for file in small_run.rglob("*")}
    summary = train(again, small_run)
    assert summary == json.loads((small_run / "summary.json").read_text())
    assert before == {file: file.stat().st_mtime_ns for file in small_run.rglob("*")}


def start(out: Path) -> subprocess.Popen[bytes]:
    """The same run as ``QUICK`` with more epochs, in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import torch; torch.set_num_threads(1)\n"
        "from training.test_trainer import LONG; from comvex.training.trainer import train, Options\n"
        "train(LONG, Path(sys.argv[1]), options=Options(checkpoint_seconds=0.05))"
    )
    tests = str(Path(__file__).parents[1])
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", program, str(out), tests], stderr=log)


LONG = replace(QUICK, epochs=12)


def test_a_run_killed_three_times_ends_as_if_it_had_not_been(tmp_path):
    out, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    checkpoints, seen = out / "checkpoints", []
    for kill in range(3):
        process = start(out)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            steps = sorted(int(folder.name[5:]) for folder in checkpoints.glob("step-*"))
            if steps and steps[-1] >= 25 * (kill + 1):
                break
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.013 * kill)  # another instant each time: within a step, within a checkpoint
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen.append(max(int(folder.name[5:]) for folder in checkpoints.glob("step-*")))
    assert start(out).wait() == 0
    assert start(undisturbed).wait() == 0

    resumed = [line for line in (out / "log.txt").read_text().splitlines() if "resumed at step" in line]
    assert [int(line.rsplit(" ", 1)[1]) for line in resumed] == seen
    same_files(out, undisturbed, "metrics.csv", "weights/best.safetensors", "weights/last.safetensors")
    last = sorted((out / "checkpoints").glob("step-*"))[-1].name
    same_files(
        out / "checkpoints" / last, undisturbed / "checkpoints" / last, "model.safetensors", "optimizer.safetensors"
    )
    figures = [json.loads((run / "summary.json").read_text()) for run in (out, undisturbed)]
    assert figures[0]["loss"] == figures[1]["loss"]


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(small_run, tmp_path):
    with pytest.raises(ValueError, match=r"model\.dim: 32 -> 48"):
        train(replace(QUICK, model=replace(SMALL, dim=48)), small_run)


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
        assert log.count(f"{name} cannot be read") <= 1


def test_pictures_that_change_between_two_starts_are_noticed(tmp_path):
    folder = noise_folder(tmp_path / "pictures")
    recipe = replace(FOLDER, data=str(folder))
    train(recipe, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    for index in range(6):
        (folder / "dark" / f"{index}.png").unlink()
    with pytest.raises(ValueError, match="are not those that the run"):
        train(recipe, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    recipe = replace(QUICK, learning_rate=1e30, clip_norm=1e30, warmup=0.0)
    with pytest.raises(ValueError, match="smaller --learning-rate"):
        train(recipe, tmp_path / "run", options=Options(checkpoint_seconds=0))
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        for name, tensor in load_file(checkpoint / "model.safetensors").items():
            assert torch.isfinite(tensor).all(), name
