"""Training on pictures with several labels each, from a CSV file and 256 x 128 pixels, to their probabilities."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import comvex
from comvex.data.sources import open_data
from comvex.inference.run_evaluation import evaluate_run
from comvex.training.best_epoch import best_epoch
from comvex.training.recipe import Options
from comvex.training.trainer import train
from made_pictures import multi_label_recipe, shape_pictures


def test_a_small_convit_learns_which_shapes_are_on_a_picture(multi_label_run):
    summary = json.loads((multi_label_run / "summary.json").read_text())
    assert summary["mean_average_precision"] > 80  # chance is the share of positive pictures, about 40
    assert summary["loss"] < 0.5  # always saying the share of positives has 0.67
    assert (summary["evaluated_on"], summary["num_pictures"]) == ("test", 40)
    assert not {"top1", "top5", "top1_interval"} & summary.keys()


def test_the_best_weights_are_those_of_the_best_epoch_by_mean_average_precision(multi_label_run):
    with (multi_label_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "learning_rate", "train_loss", "gradient_norm", "val_loss", "val_map"]
    history = [{name: float(value) for name, value in row.items()} for row in rows]
    num_pictures = len(open_data(json.loads((multi_label_run / "recipe.json").read_text())["recipe"]["data"]).val)
    best = best_epoch(history, criterion="val_map", num_pictures=num_pictures)
    assert json.loads((multi_label_run / "summary.json").read_text())["best_epoch"] == int(best["epoch"])
    figures = comvex.load(multi_label_run).model.info.figures
    assert figures["val_map"] == best["val_map"] > history[0]["val_map"]
    assert figures["test_map"] == json.loads((multi_label_run / "summary.json").read_text())["mean_average_precision"]
    assert "mAP" in (multi_label_run / "log.txt").read_text()
    with Image.open(multi_label_run / "curves.png") as curves:
        assert curves.width > 500


def test_evaluation_repeats_the_summary_and_draws_a_bar_for_each_class(multi_label_run, tmp_path):
    summary = json.loads((multi_label_run / "summary.json").read_text())
    figures = evaluate_run(multi_label_run, out=tmp_path)
    assert figures["mean_average_precision"] == pytest.approx(summary["mean_average_precision"])
    assert figures["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert [row["class"] for row in figures["by_class"]] == ["circle", "square", "stripe"]
    mean = sum(row["average_precision"] for row in figures["by_class"]) / 3
    assert figures["mean_average_precision"] == pytest.approx(mean)
    assert figures["average_precision_picture"] == str(tmp_path / "average_precision.png")
    files = {"average_precision.png", "reliability.png", "per_class.csv", "evaluated.json"}
    assert {file.name for file in tmp_path.iterdir()} == files


def test_predictions_are_right_for_each_label_by_itself(multi_label_run):
    recipe = json.loads((multi_label_run / "recipe.json").read_text())["recipe"]
    test = open_data(recipe["data"]).test
    predictor = comvex.load(multi_label_run)
    right = 0
    for answer, labels in zip(predictor.predict(test.pictures), test.labels, strict=True):
        said = {entry.label: entry.probability for entry in answer}
        assert list(said.values()) == sorted(said.values(), reverse=True)
        right += sum((said[name] > 0.5) == label for name, label in zip(predictor.labels, labels, strict=True))
    assert right / test.labels.size > 0.8  # always saying no is right for about 60 %


def test_a_model_is_not_evaluated_on_labels_of_the_other_kind(multi_label_run, small_run, tmp_path):
    data = tmp_path / "one.csv"
    lines = [f"{tmp_path}/{index}.png,{('circle', 'square', 'stripe')[index % 3]}" for index in range(30)]
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    data.write_text("\n".join(["path,label", *lines]) + "\n")
    with pytest.raises(ValueError, match="trained on pictures with any number of classes each, but those of one have"):
        evaluate_run(multi_label_run, data=str(data))
    several = json.loads((multi_label_run / "recipe.json").read_text())["recipe"]["data"]
    with pytest.raises(ValueError, match="trained on pictures with one class each, but those of shapes have any"):
        evaluate_run(small_run, data=several)


def test_a_run_stopped_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(broken_off_at, tmp_path):
    recipe = replace(multi_label_recipe(shape_pictures(tmp_path / "pictures", num=100)), epochs=2)
    recipe = replace(recipe, model=replace(recipe.model, drop_path=0.1, attention_dropout=0.1))
    train(recipe, tmp_path / "whole")

    with broken_off_at(12):
        train(recipe, tmp_path / "stopped", options=Options(checkpoint_steps=1))
    train(recipe, tmp_path / "stopped")
    assert "resumed at step 11" in (tmp_path / "stopped" / "log.txt").read_text()
    metrics = [(tmp_path / run / "metrics.csv").read_bytes() for run in ("stopped", "whole")]
    assert metrics[0] == metrics[1]
    for name in ("best", "last"):
        stopped, whole = (load_file(tmp_path / run / "weights" / f"{name}.safetensors") for run in ("stopped", "whole"))
        assert stopped.keys() == whole.keys()
        for key, tensor in whole.items():
            assert torch.equal(stopped[key], tensor), (name, key)


def test_pictures_that_are_missing_are_left_out_and_counted(tmp_path):
    data = shape_pictures(tmp_path / "pictures", num=60)
    for index in range(0, 60, 10):
        Path(tmp_path / "pictures" / f"{index}.png").unlink()
    summary = train(replace(multi_label_recipe(data), epochs=2), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("There is no picture") <= summary["num_unreadable"] <= 6
    assert summary["num_unreadable"] > 0
