"""Evaluating runs and weights on any part of any data, prepared as the weights say or otherwise."""

import csv
import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

import comvex
from comvex.commands.evaluate import describe_evaluation
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier, save_weights
from comvex.data.loading import evaluation_loader
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.inference import run_evaluation
from comvex.inference.evaluate import Evaluation, evaluate
from comvex.inference.run_evaluation import Changes, evaluate_run


def by_hand(run: Path, *, masked: bool = False, **preprocessing) -> Evaluation:
    """The digits' test pictures through the run's model, with some of its preprocessing replaced."""
    predictor = comvex.load(run)
    if masked:
        with torch.no_grad():
            predictor.model.pos_embed.zero_()
    transform = replace(predictor.preprocessing, **preprocessing).transform()
    loader = evaluation_loader(open_data("digits").test, transform, channels=1, batch_size=256, workers=0)
    return evaluate(predictor.model, loader, task=predictor.task, num_classes=10, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "preprocessing", "folder"),
    [
        ({}, {}, "digits-test"),
        ({"image_size": 16}, {"image_size": (16, 16)}, "digits-test-16x16"),
        ({"image_size": (8, 12)}, {"image_size": (8, 12)}, "digits-test-8x12"),
        ({"crop_pct": 0.5}, {"crop_pct": 0.5}, "digits-test-crop0.5"),
        (
            {"image_size": 16, "interpolation": "bilinear"},
            {"image_size": (16, 16), "interpolation": "bilinear"},
            "digits-test-16x16-bilinear",
        ),
    ],
)
def test_size_crop_and_interpolation_replace_those_of_the_weights(small_run_copy, changes, preprocessing, folder):
    found = evaluate_run(small_run_copy, changes=Changes(**changes))
    expected = by_hand(small_run_copy, **preprocessing)
    assert found["loss"] == expected.loss
    assert found["top1"] == expected.scores.top1
    if changes:
        assert found["loss"] != by_hand(small_run_copy).loss
    files = {"confusion.png", "reliability.png", "per_class.csv", "evaluated.json"}
    assert {file.name for file in (small_run_copy / "evaluation" / folder).iterdir()} == files


def test_masking_the_position_embedding_is_setting_it_to_zero(small_run, tmp_path):
    found = evaluate_run(small_run, changes=Changes(mask_position_embedding=True), out=tmp_path)
    assert found["loss"] == by_hand(small_run, masked=True).loss != by_hand(small_run).loss


def test_files_that_are_all_kept_need_no_folder_that_can_be_written_to(small_run, tmp_path, monkeypatch):
    first = evaluate_run(small_run, out=tmp_path)
    monkeypatch.setattr(run_evaluation, "check_writable", None)
    again = evaluate_run(small_run, out=tmp_path)
    assert (again["loss"], again["files_kept"]) == (first["loss"], True)


def test_all_pictures_are_those_of_every_part(small_run, tmp_path):
    parts = [evaluate_run(small_run, part=part, out=tmp_path / part) for part in ("train", "val", "test")]
    whole = evaluate_run(small_run, part="all", out=tmp_path / "all")
    given = evaluate_run(small_run, data="digits", part="all", out=tmp_path / "given")
    assert whole["num_pictures"] == given["num_pictures"] == sum(part["num_pictures"] for part in parts) == 1797
    expected = sum(part["top1"] * part["num_pictures"] for part in parts) / 1797
    assert whole["top1"] == pytest.approx(expected)
    assert given["top1"] == pytest.approx(expected)
    few = digits_folder(tmp_path / "few", {7: "7", 2: "2"}, most=2)  # too few to set some aside
    assert evaluate_run(small_run, data=str(few), part="all", out=tmp_path / "few-out")["num_pictures"] == 4


def test_the_table_has_every_class_and_files_that_are_there_are_kept_unless_told_otherwise(small_run, tmp_path):
    first = evaluate_run(small_run, out=tmp_path)
    with (tmp_path / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list("0123456789")
    assert [float(row["top1"]) for row in rows] == [row["top1"] for row in first["by_class"]]
    assert not first["files_kept"]
    (tmp_path / "per_class.csv").write_text("mine")
    assert evaluate_run(small_run, out=tmp_path)["files_kept"]
    assert (tmp_path / "per_class.csv").read_text() == "mine"
    assert not evaluate_run(small_run, out=tmp_path, overwrite=True)["files_kept"]
    assert (tmp_path / "per_class.csv").read_text() != "mine"


def digits_folder(root: Path, names: dict[int, str], *, most: int = 1000, bits: int = 8) -> Path:
    """Up to so many test pictures of some digits, in folders of other names."""
    test = open_data("digits").test
    for label, name in names.items():
        (root / name).mkdir(parents=True)
        for index in np.flatnonzero(test.labels == label)[:most].tolist():
            picture = test.read(index, channels=1)
            if bits == 16:
                picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
            picture.save(root / name / f"{index}.png")
    return root


def test_files_of_older_weights_of_a_run_are_replaced_and_an_unfinished_run_says_its_epoch(small_run_copy, tmp_path):
    first = evaluate_run(small_run_copy)
    assert (evaluate_run(small_run_copy)["files_kept"], first["unfinished_epoch"]) == (True, None)
    evaluate_run(small_run_copy, out=tmp_path / "own")
    epoch = json.loads((small_run_copy / "summary.json").read_text())["best_epoch"]
    (small_run_copy / "summary.json").unlink()
    later = time.time() + 1
    os.utime(small_run_copy / "weights" / "best.safetensors", (later, later))
    again = evaluate_run(small_run_copy)
    assert (again["files_kept"], again["unfinished_epoch"]) == (False, epoch)
    assert f"best weights so far, of epoch {epoch}\n" in describe_evaluation(again)
    assert evaluate_run(small_run_copy, out=tmp_path / "own")["files_kept"]  # a folder that somebody has named


def test_figures_of_other_pictures_of_the_same_name_are_replaced(small_run_copy, tmp_path):
    for number, label in enumerate(((7, "7"), (5, "5"))):
        folder = digits_folder(tmp_path / f"{number}" / "same", dict([label, (2, "2")]), most=8)
        found = evaluate_run(small_run_copy, data=str(folder), part="all")
        assert not found["files_kept"]
        with Path(found["per_class_table"]).open() as file:
            assert label[1] in [row["class"] for row in csv.DictReader(file)]
        assert evaluate_run(small_run_copy, data=str(folder), part="all")["files_kept"]


def test_classes_that_the_model_has_in_another_order_are_told_apart(small_run, tmp_path):
    predictor = comvex.load(small_run)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    with torch.no_grad():
        for parameter in predictor.model.head.parameters():
            parameter.copy_(parameter[order].clone())
    labels = tuple(str(label) for label in order)
    save_weights(predictor.model, tmp_path / "model.safetensors", info=replace(predictor.model.info, labels=labels))
    whole = by_hand(small_run)
    found = evaluate_run(tmp_path / "model.safetensors", data="digits", out=tmp_path / "whole")
    assert found["loss"] == pytest.approx(whole.loss, rel=1e-6)
    data = digits_folder(tmp_path / "some", {2: "2", 3: "3", 5: "5"})
    found = evaluate_run(tmp_path / "model.safetensors", data=str(data), part="all", out=tmp_path / "out")
    assert found["by_class"] == [whole.scores.by_class("0123456789")[label] for label in (2, 3, 5)]


def test_a_model_of_eight_bits_is_evaluated_on_pictures_of_sixteen(small_run, tmp_path):
    data = open_data(str(digits_folder(tmp_path / "some", {7: "7", 2: "2"}, bits=16)))
    assert data.full_depth
    found = evaluate_run(small_run, data=str(tmp_path / "some"), out=tmp_path / "out")
    assert found["num_pictures"] == len(data.test)


def test_data_with_some_of_the_classes_are_answered_among_all_of_the_models(small_run, tmp_path):
    data = digits_folder(tmp_path / "some", {7: "7", 2: "2", 5: "5"})
    found = evaluate_run(small_run, data=str(data), part="all", out=tmp_path / "out")
    whole = by_hand(small_run).scores
    for row in found["by_class"]:
        label = int(row["class"])
        assert row == whole.by_class("0123456789")[label]
    assert [row["class"] for row in found["by_class"]] == ["2", "5", "7"]
    assert found["num_pictures"] == whole.confusion[[2, 5, 7]].sum()
    assert found["top1"] == pytest.approx(100 * whole.confusion.diagonal()[[2, 5, 7]].sum() / found["num_pictures"])
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("parts", [("val",), ("val", "test")])
def test_parts_without_training_pictures_can_be_evaluated_and_not_trained_on(parts, small_run, tmp_path):
    """As somebody has ImageNet's validation pictures alone: IMAGENET/val/n01440764/1.JPEG."""
    data = tmp_path / "data"
    for part in parts:
        digits_folder(data / part, {7: "7", 2: "2"})
    whole = evaluate_run(small_run, data=str(data / parts[0]), part="all", out=tmp_path / "whole")
    for part in parts:
        found = evaluate_run(small_run, data=str(data), part=part, out=tmp_path / part)
        assert found["num_pictures"] == whole["num_pictures"]
        assert found["by_class"] == whole["by_class"]
    with pytest.raises(UserError, match=r"The data set .*/data has no training pictures"):
        open_data(str(data))


def test_a_class_that_the_model_does_not_know_is_named(small_run, tmp_path):
    data = digits_folder(tmp_path / "some", {7: "7", 2: "two"})
    with pytest.raises(ValueError, match="The model's classes are not those of some: it does not know 'two'"):
        evaluate_run(small_run, data=str(data), part="all")


def test_folders_of_wordnet_ids_are_those_that_a_model_of_imagenets_classes_knows(tmp_path):
    """A published model stands for itself by its thousand classes; the weights here are new ones."""
    torch.manual_seed(0)
    model = ConViTWithLinearClassifier(
        ConViTConfig.ConViT_Ti(image_size=32, dim=16, num_local_layers=1, num_nonlocal_layers=1)
    )
    weights = tmp_path / "weights" / "model.safetensors"
    save_weights(model, weights)
    info = ImageNetInfo()
    ids = info.label_names()
    chosen = [ids[3], ids[134], ids[517]]  # both kinds of crane
    for part, name in itertools.product(("train", "val"), chosen):
        folder = tmp_path / "pictures" / part / name
        folder.mkdir(parents=True)
        for index in range(3):
            generator = np.random.default_rng([ids.index(name), index])
            Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    found = evaluate_run(weights, data=str(tmp_path / "pictures"), part="val", out=tmp_path / "out")
    shark = info.label_name_to_description(ids[3])
    assert [row["class"] for row in found["by_class"]] == [shark, f"crane ({ids[134]})", f"crane ({ids[517]})"]
    predictor = comvex.load(weights)
    for name, row in zip(chosen, found["by_class"], strict=True):
        files = sorted((tmp_path / "pictures" / "val" / name).iterdir())
        best = predictor.probabilities(files).topk(5).indices
        assert row["top5"] == pytest.approx(100 * float((best == ids.index(name)).any(dim=1).double().mean()))
    expected = -np.mean(
        [
            predictor.probabilities([file])[0, ids.index(file.parent.name)].log().item()
            for file in (tmp_path / "pictures" / "val").rglob("*.png")
        ]
    )
    assert found["loss"] == pytest.approx(expected, rel=1e-4)  # float32 probabilities
