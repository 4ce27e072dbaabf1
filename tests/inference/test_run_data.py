"""A model is evaluated on pictures that it was not trained on, wherever its weights have gone."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.inference.export import ExportPlan, export_model
from comvex.inference.run_data import evaluation_data, training_data
from comvex.inference.run_evaluation import evaluate_run
from comvex.training.recipe import Architecture, Recipe
from comvex.training.trainer import train


@pytest.fixture
def run_of_another_split(small_run_copy) -> Path:
    """The small run with a recipe that set other pictures aside, and trained on some of the rest."""
    recipe = small_run_copy / "recipe.json"
    content = json.loads(recipe.read_text())
    content["recipe"] |= {"split_seed": 3, "fraction": 0.5, "val_fraction": 0.2}
    recipe.write_text(json.dumps(content))
    return small_run_copy


def test_weights_of_a_run_and_what_was_exported_keep_the_split_of_the_run(run_of_another_split, tmp_path):
    run = run_of_another_split
    expected = open_data("digits", split_seed=3, fraction=0.5, val_fraction=0.2)
    assert expected.val.fingerprint() != open_data("digits").val.fingerprint()
    [checkpoint, *_] = (run / "checkpoints").iterdir()
    weights = [run / "weights" / "best.safetensors", checkpoint / "model.safetensors"]
    exported = [tmp_path / "of-run", tmp_path / "of-weights"]
    for source, out in zip((run, weights[0]), exported, strict=True):
        export_model(source, ExportPlan("torch"), out=out)
    known = evaluate_run(run, out=tmp_path / "evaluation")
    shutil.move(run, tmp_path / "gone")
    split = {"split_seed": 3, "fraction": 0.5, "val_fraction": 0.2}
    of_run = json.loads((tmp_path / "gone" / "recipe.json").read_text())["training_pictures"]
    assert training_data(exported[0]) == {"data": "digits", **split, "training_pictures": of_run}
    moved = [tmp_path / "gone" / file.relative_to(run) for file in weights]
    for source in (*moved, *exported):
        for data in (None, "digits"):
            found = evaluation_data(source, data, part="test")
            for part in ("train", "val", "test"):
                assert found.part(part).fingerprint() == expected.part(part).fingerprint(), (source, data, part)
    for source in (moved[0], *exported):
        assert evaluate_run(source, out=tmp_path / "evaluation")["loss"] == pytest.approx(known["loss"], rel=1e-5)


def test_where_the_split_is_not_known_it_is_said_that_test_pictures_may_be_training_pictures(
    small_run, tmp_path, caplog
):
    for name in ("best.safetensors", "config.json"):
        shutil.copy(small_run / "weights" / name, tmp_path)
    weights = tmp_path / "best.safetensors"
    for part in ("train", "all"):
        evaluation_data(weights, "digits", part=part)
    evaluation_data(small_run, "digits", part="test")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        for part in ("test", "val"):
            evaluation_data(weights, "digits", part=part)
            assert f"the {part} pictures, drawn here, may be among them" in caplog.text
    with pytest.raises(UserError, match=r"best\.safetensors does not say what it was trained on, .*--data must say"):
        evaluation_data(weights, None, part="test")


def test_parts_that_the_data_have_themselves_need_no_word(small_run, tmp_path, caplog):
    shutil.copy(small_run / "weights" / "best.safetensors", tmp_path)
    for part in ("train", "val", "test"):
        for label in "01":
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            for number in range(5):
                Image.fromarray(np.full((8, 8), 40 * number + int(label), np.uint8)).save(folder / f"{number}.png")
    for part in ("val", "test"):
        assert len(evaluation_data(tmp_path / "best.safetensors", str(tmp_path / "data"), part=part).part(part)) == 10
    assert not caplog.records


def test_it_is_said_if_the_run_had_other_training_pictures(tmp_path, caplog, monkeypatch):
    """More pictures are split otherwise: some of those that were trained on are then among the test pictures."""
    monkeypatch.chdir(tmp_path)
    write_classes(Path("pets"), num=20)
    train(Recipe(data="pets", steps=1, model=Architecture(dim=32, image_size=16)), Path("run"))
    export_model("run", ExportPlan("torch"), out=Path("exported"))
    for source in ("run", "exported"):
        evaluation_data(source, None, part="test")
    assert "may have been among those" not in caplog.text
    write_classes(Path("pets"), num=30)
    for source in ("run", "exported"):
        caplog.clear()
        evaluation_data(source, None, part="test")
        assert f"training pictures of pets are not those that {source} was trained on" in caplog.text
    shutil.rmtree("pets")
    with pytest.raises(UserError, match="run was trained on pets, which --data can name otherwise: There is no data"):
        evaluation_data("run", None, part="test")


def write_classes(root: Path, *, num: int) -> None:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(num):
            Image.new("RGB", (16, 16), (8 * number, 0, 0)).save(root / label / f"{number}.png")
