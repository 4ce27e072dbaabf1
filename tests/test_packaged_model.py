"""The model that is part of comvex, in a folder elsewhere and without a network: its card, and each command."""

import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image, ImageOps

import comvex
from comvex.cli import main, parse
from comvex.commands.train import Train
from comvex.convit import ConViTWithLinearClassifier, load_model, load_weights
from comvex.convit.published import PACKAGED, PACKAGED_FOLDER, WEIGHTS_NAME, find_weights, packaged_pictures
from comvex.convit.weights import file_sha256
from comvex.data import small_sets, sources
from comvex.data.augmentation import Augmentation
from comvex.data.picture_set import DataSet, PictureSet
from comvex.data.sources import open_data
from comvex.explain.examples import example_pictures
from comvex.inference.predictor import load
from comvex.training.recipe import Architecture, Recipe
from comvex.training.trainer import train

ROOT = Path(__file__).parents[1]
NAME = "convit_fashion_mnist"
FOLDER = PACKAGED_FOLDER / NAME
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
PICTURES = sorted((FOLDER / "pictures").glob("*.png"))
needs_fashion_mnist = pytest.mark.skipif(
    not any((folder / "fashion-mnist").is_dir() for folder in small_sets.SYSTEM_DATASETS),
    reason="Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, empty caches, and a network that ends at this machine."""
    connect = socket.socket.connect

    def refuse(host: Any, *arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, f"nobody is to be asked for {host}")

    def connect_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            refuse(address)
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints with --json, and nothing else."""

    def run(*arguments: object) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Any:
    """The one sentence of a command that is refused."""

    def run(*arguments: object) -> str:
        assert main([*map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        return line

    return run


def figures() -> dict[str, Any]:
    """What config.json says was measured."""
    info = load_model(NAME).info
    assert info is not None
    return info.figures


# The files


def test_the_card_and_config_json_say_the_same_of_the_same_weights():
    info = load_model(NAME).info
    assert info is not None
    assert (info.labels, info.licence) == (small_sets.FASHION_MNIST_CLASSES, "apache-2.0")
    found = info.figures
    assert found["data"] == PACKAGED[NAME] == "fashion-mnist"
    assert found["num_parameters"] == sum(parameter.numel() for parameter in load_model(NAME).parameters())
    assert found["test_top1"] == pytest.approx(100 * found["test_right"] / found["test_pictures"])
    assert found["test_pictures"] == 10_000
    for figure in ("test_top1", "enlarged_test_top1", "inverted_test_top1", "val_top1"):
        assert f"{found[figure]:.4g} %" in CARD
    assert f"| number of parameters | {found['num_parameters']} |" in CARD
    entry = json.loads((FOLDER / "config.json").read_text())["files"][WEIGHTS_NAME]
    assert entry["sha256"] == file_sha256(FOLDER / WEIGHTS_NAME)


def test_a_placeholder_says_so_and_another_model_does_not():
    assert ("This is a placeholder" in CARD) == figures().get("placeholder", False)


def test_all_of_it_is_small_and_in_float32():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 5_000_000
    assert {parameter.dtype for parameter in load_model(NAME).parameters()} == {torch.float32}
    assert figures()["num_parameters"] <= 1_000_000


def test_the_recorded_second_run_of_the_command_came_to_within_three_tenths_of_a_point():
    folder = Path(__file__).parents[1] / "docs" / "results" / "packaged-model" / "second-run"
    recipe = json.loads((folder / "recipe.json").read_text())["recipe"]
    assert Recipe.from_dict(recipe) == Recipe.from_dict(json.loads((FOLDER / "training.json").read_text())["recipe"])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["evaluated_on"], summary["num_pictures"]) == ("test", 10_000)
    assert summary["top1"] == pytest.approx(figures()["test_top1"], abs=0.3)


def test_the_readme_says_how_good_and_how_large_it_is():
    told = f"({figures()['test_top1']:.1f} % of Fashion-MNIST's test pictures, with "
    told += f"{figures()['num_parameters'] / 1e6:.2f} M parameters)"
    assert told in (Path(__file__).parents[1] / "README.md").read_text()


def test_the_cards_command_has_the_recipe_that_trained_it():
    training = json.loads((FOLDER / "training.json").read_text())
    assert f"```bash\n{training['command']}\n```" in CARD
    program, *arguments = shlex.split(training["command"])
    parsed = parse(arguments)
    assert program == "comvex"
    assert isinstance(parsed, Train)
    assert parsed.recipe == Recipe.from_dict(training["recipe"])
    assert parsed.recipe.test


def test_there_is_a_small_picture_of_each_class_with_its_licence():
    labels = load_model(NAME).info.labels
    assert [file.stem for file in PICTURES] == [
        f"{number}-{label.lower().replace('/', '-').replace(' ', '-')}" for number, label in enumerate(labels)
    ]
    for file in PICTURES:
        assert file.stat().st_size < 2_000
        with Image.open(file) as picture:
            assert (picture.size, picture.mode) == ((28, 28), "L")
    licence = (FOLDER / "pictures" / "LICENSE").read_text()
    assert "Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence


@needs_fashion_mnist
def test_the_pictures_are_the_first_test_picture_of_each_class():
    test = open_data("fashion-mnist").part("test")
    for label, file in enumerate(PICTURES):
        first = int(np.flatnonzero(test.labels == label)[0])
        np.testing.assert_array_equal(np.asarray(Image.open(file)), test.pictures[first])


def test_the_wheel_takes_every_file_along():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["comvex"]
    source = PACKAGED_FOLDER.parent
    taken = {file for pattern in settings for file in source.glob(pattern) if file.is_file()}
    assert {file for file in PACKAGED_FOLDER.rglob("*") if file.is_file()} <= taken


# Its name


def test_the_name_stands_for_it_everywhere_and_a_file_here_comes_first(elsewhere):
    assert find_weights(NAME).file == FOLDER / WEIGHTS_NAME
    model = load_model(NAME)
    assert torch.equal(ConViTWithLinearClassifier.from_pretrained(NAME).cls_token, model.cls_token)
    other = ConViTWithLinearClassifier(model.config)
    assert load_weights(other, NAME).changes == ()
    assert torch.equal(other.cls_token, model.cls_token)
    assert comvex.load(NAME).predict(PICTURES[1])[0][0].label in model.info.labels
    assert packaged_pictures(NAME) == tuple(PICTURES)
    (elsewhere / NAME).mkdir()
    assert packaged_pictures(NAME) == ()
    with pytest.raises(ValueError, match=f"The folder {NAME} is no run folder"):
        find_weights(NAME)


def test_a_mistyped_name_is_answered_with_the_right_one(refusal):
    assert f"did you mean '{NAME}'? " in refusal("evaluate", "convit_fashion_mnst")
    assert f"did you mean '{NAME}'? " in refusal("predict", "convit-fashion-mnist")
    told = refusal("predict", "resnet50", "photo.jpg")
    assert told.endswith(f"; part of comvex is {NAME}.")
    assert refusal("predict", "convit_tiny.fb_in1k").startswith("comvex: No picture is given: name at least one")


# The commands


def test_predict_in_a_process_of_its_own_with_nothing_given(elsewhere):
    done = subprocess.run(
        [sys.executable, "-m", "comvex", "predict", NAME, "--json"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, cwd=elsewhere, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    predictions = json.loads(done.stdout)["predictions"]
    assert list(predictions) == [str(file) for file in PICTURES]
    assert list(elsewhere.iterdir()) == []


def test_a_large_file_in_colour_gets_the_class_of_the_small_grey_picture(answer, elsewhere):
    files = []
    for file in PICTURES:
        files.append(elsewhere / f"{file.stem}.png")
        Image.open(file).resize((280, 280)).convert("RGB").save(files[-1])
    small, large = (answer("predict", NAME, *given)["predictions"] for given in (PICTURES, files))
    same = [one[0]["label"] == other[0]["label"] for one, other in zip(small.values(), large.values(), strict=True)]
    assert sum(same) >= 8  # resampling there and back blurs: a close call may change
    # Its probabilities are near those of the small picture, dark on white too, and not near those of another piece.
    inverted = elsewhere / "inverted.png"
    ImageOps.invert(Image.open(files[1])).save(inverted)
    found = answer("predict", NAME, PICTURES[1], files[1], inverted, files[2], "--top", 10)["predictions"].values()
    chances = [{entry["label"]: entry["probability"] for entry in classes} for classes in found]
    *near, far = (max(abs(chances[0][label] - other[label]) for label in chances[0]) for other in chances[1:])
    assert max(near) < 0.1 < far


def test_a_photograph_of_anything_gets_ten_probabilities(answer, elsewhere):
    from sklearn.datasets import load_sample_image

    Image.fromarray(load_sample_image("flower.jpg")).save(elsewhere / "flower.jpg")
    [classes] = answer("predict", NAME, "flower.jpg", "--top", 10)["predictions"].values()
    assert {entry["label"] for entry in classes} == set(small_sets.FASHION_MNIST_CLASSES)
    assert sum(entry["probability"] for entry in classes) == pytest.approx(1, abs=1e-5)


@needs_fashion_mnist
def test_evaluate_finds_the_accuracy_that_the_card_says(answer, elsewhere):
    found = answer("evaluate", NAME, "--data", "fashion-mnist")
    said = figures()
    assert found["num_pictures"] == said["test_pictures"]
    # Other processors add in another order: a picture or two that is a close call may change sides.
    assert abs(round(found["top1"] * 100) - said["test_right"]) <= 2
    assert f"| test top-1 accuracy | {said['test_top1']:.4g} % |" in CARD
    assert (elsewhere / "evaluation" / "fashion-mnist-test" / "confusion.png").is_file()


def test_where_the_data_are_needed_one_sentence_says_which_and_how_to_get_them(refusal, monkeypatch, tmp_path):
    asked = "--data must say what to evaluate it on, such as --data fashion-mnist, which it was trained on."
    assert refusal("evaluate", NAME).endswith(asked)
    monkeypatch.setattr(small_sets, "SYSTEM_DATASETS", (tmp_path / "nowhere",))
    told = refusal("evaluate", NAME, "--data", "fashion-mnist")
    assert "cannot be downloaded" in told
    assert "install the system package dataset-fashion-mnist, or put the four .gz files of https" in told
    assert told.endswith(f"into {tmp_path / 'cache' / 'comvex' / 'FashionMNIST' / 'raw'}.")


def test_export_compares_on_the_pictures_that_come_with_it(answer, elsewhere):
    report = answer("export", NAME, "--to", "onnx")
    assert (report["compared_on"], report["num_pictures"]) == (f"those that come with {NAME}", 10)
    assert report["same_top1"] == 100
    exported = answer("predict", elsewhere / "exported" / "convit_fashion_mnist-onnx-float32", *PICTURES)["predictions"]
    weights = answer("predict", NAME)["predictions"]
    assert [entry[0]["label"] for entry in exported.values()] == [entry[0]["label"] for entry in weights.values()]
    assert answer("export", NAME, "--to", "torch")["num_pictures"] == 10


@needs_fashion_mnist
def test_int8_is_calibrated_on_the_data_that_are_named(answer, refusal):
    told = refusal("export", NAME, "--to", "openvino", "--precision", "int8")
    assert told.endswith("--data must say where some are, such as --data fashion-mnist, which it was trained on.")
    report = answer(
        "export", NAME, "--to", "openvino", "--precision", "int8", "--data", "fashion-mnist", "--num-calibration", 50
    )
    assert (report["compared_on"], report["calibrated_on"]) == ("fashion-mnist", 50)


def test_explain_without_a_picture_shows_those_that_come_with_it(answer, elsewhere, monkeypatch):
    monkeypatch.setattr("comvex.convit.published.packaged_pictures", lambda source: tuple(PICTURES[8:]))  # to be short
    found = answer("explain", NAME, "--out", "report", "--layer", 0)
    assert [entry["picture"] for entry in found["predictions"]] == ["8-bag.png", "9-ankle-boot.png"]
    assert (elsewhere / "report" / "report.html").is_file()


def test_the_page_offers_a_picture_of_each_class():
    predictor = load(NAME, device="cpu")
    examples, note = example_pictures(NAME, predictor)
    assert note == ""
    assert [name for _, name in examples] == list(predictor.labels)
    for (picture, _), file in zip(examples, PICTURES, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(file)))


def test_app_without_a_run_serves_it(elsewhere, monkeypatch):
    monkeypatch.undo()  # this process is the visitor, and asks by name
    command = [sys.executable, "-m", "comvex", "app", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=elsewhere, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["address"]
            with urllib.request.urlopen(address, timeout=120) as page:
                assert f"{NAME} · comvex" in page.read().decode()
        finally:
            process.terminate()


def test_training_can_start_from_it(elsewhere):
    recipe = Recipe(weights=NAME, model=Architecture(), steps=1, batch_size=8)
    summary = train(recipe, elsewhere / "run")
    assert summary["num_pictures"] == 360
    assert load_model(elsewhere / "run").config.dim == load_model(NAME).config.dim


# Packaging another one


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_model", ROOT / "benchmarks" / "package_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few_clothes(monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """Made pictures under the name of Fashion-MNIST, whose class is how bright they are."""
    random = np.random.default_rng(0)

    def made(num: int) -> PictureSet:
        labels = np.arange(num) % 10
        pictures = 25 * labels[:, None, None] + random.integers(0, 20, (num, 28, 28))
        return PictureSet(pictures.astype(np.uint8), labels)

    data = DataSet(
        name="fashion-mnist", classes=small_sets.FASHION_MNIST_CLASSES, train=made(400), val=None, test=made(200),
        image_size=28, patch_size=4, channels=1, mean=(0.286,), std=(0.353,), mirrored=True,
    )  # fmt: skip
    monkeypatch.setattr(sources, "fashion_mnist", lambda: data)
    return data


def test_a_run_is_packaged_with_the_figures_that_an_evaluation_finds(script, few_clothes, elsewhere, answer):
    recipe = Recipe(
        data="fashion-mnist", epochs=10, batch_size=20, learning_rate=5e-3, test=False, select="last",
        model=Architecture(dim=32, num_local_layers=1, train_gates=False),
        augment=Augmentation(translation=0.0, zoom=0.0),
    )  # fmt: skip
    train(recipe, elsewhere / "run")
    out = elsewhere / "packaged"
    found = script.package(elsewhere / "run", out, placeholder=False, machine="a machine")
    assert found["test_top1"] > 50  # chance is 10
    evaluated = answer("evaluate", out / WEIGHTS_NAME, "--data", "fashion-mnist")
    assert (evaluated["top1"], evaluated["loss"]) == (found["test_top1"], pytest.approx(found["test_loss"]))
    assert found["test_right"] == round(200 * evaluated["top1"] / 100)
    for name, change in (("enlarged", lambda p: p.resize((280, 280))), ("inverted", ImageOps.invert)):
        pictures = [change(Image.fromarray(picture)) for picture in few_clothes.test.pictures]
        truth = [few_clothes.classes[label] for label in few_clothes.test.labels]
        answers = [best.label for [best] in comvex.load(out).predict(pictures, top=1)]
        right = [answer == label for answer, label in zip(answers, truth, strict=True)]
        assert found[f"{name}_test_top1"] == pytest.approx(100 * np.mean(right))
    for name, tensor in load_model(out).state_dict().items():
        assert torch.equal(tensor, load_model(elsewhere / "run").state_dict()[name]), name

    text = (out / "README.md").read_text()
    assert "placeholder" not in text
    assert "the last epoch was kept" in text
    assert f"| test top-1 accuracy | {found['test_top1']:.4g} % |" in text
    command = json.loads((out / "training.json").read_text())["command"]
    assert f"\n{command}\n" in text
    assert "--no-test" not in command
    parsed = parse(shlex.split(command)[1:])
    assert isinstance(parsed, Train)
    assert parsed.recipe.to_dict() == recipe.to_dict() | {"test": True}

    script.package(elsewhere / "run", out, placeholder=True, machine="a machine")  # takes the place of the other
    assert "**This is a placeholder.**" in (out / "README.md").read_text()
    assert load_model(out).info.figures["placeholder"] is True
    assert [path.name for path in elsewhere.iterdir() if path.name.startswith(".")] == []


def test_what_cannot_be_packaged_is_refused_and_nothing_is_lost(script, small_run, few_clothes, elsewhere):
    with pytest.raises(
        ValueError, match="was trained on digits: convit_fashion_mnist must be trained on fashion-mnist"
    ):
        script.package(small_run, elsewhere / "out", placeholder=False, machine="")
    (elsewhere / "mine").mkdir()
    with pytest.raises(ValueError, match="is no packaged model: choose another --out"):
        script.package(small_run, elsewhere / "mine", placeholder=False, machine="")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["mine"]
