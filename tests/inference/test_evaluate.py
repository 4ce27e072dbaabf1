"""Evaluation counts every readable picture exactly once, in one process or in several."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn

from commands import FORKS
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.data.loading import evaluation_loader
from comvex.data.sources import PictureSet, open_data
from comvex.data.transforms import Preprocessing
from comvex.inference.evaluate import evaluate
from comvex.inference.task import MultiLabel, SingleLabel, Task

PREPROCESSING = Preprocessing((8, 8), 1, (0.3,), (0.4,))


@pytest.fixture
def model() -> nn.Module:
    return new_model()


def new_model() -> nn.Module:
    config = ConViTConfig.ConViT_Ti(
        image_size=8, image_channel=1, patch_size=2, dim=16, num_local_layers=1, num_nonlocal_layers=1, num_classes=10
    )
    return ConViTWithLinearClassifier(config)


@pytest.mark.parametrize("batch_size", [1, 7, 360, 1000])
def test_figures_do_not_depend_on_the_batch_size_and_are_those_of_all_pictures_at_once(model, batch_size):
    pictures = open_data("digits").test
    if batch_size == 1:
        pictures = pictures.where(np.arange(len(pictures)) < 40)
    loader = evaluation_loader(pictures, PREPROCESSING.transform(), channels=1, batch_size=batch_size, workers=0)
    model.train()
    found = evaluate(model, loader, task=SingleLabel(), num_classes=10, device=torch.device("cpu"))
    assert model.training

    [everything] = evaluation_loader(pictures, PREPROCESSING.transform(), channels=1, batch_size=1000, workers=0)
    with torch.no_grad():
        logits = model.eval()(everything.pictures)
    labels = everything.labels
    assert found.num_pictures == len(pictures)
    assert found.scores.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-5)  # float32 logits
    np.testing.assert_array_equal(found.scores.confusion, confusion_matrix(labels, logits.argmax(1), labels=range(10)))


def test_unreadable_pictures_are_told_and_not_counted(model, tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file in files[:2]:
        Image.new("L", (8, 8)).save(file)
    files[2].write_text("no picture")
    device = torch.device("cpu")

    def loader(chosen):
        pictures = PictureSet(chosen, np.zeros(len(chosen), np.int64))
        return evaluation_loader(pictures, PREPROCESSING.transform(), channels=1, batch_size=2, workers=0)

    found = evaluate(model, loader(files), task=SingleLabel(), num_classes=10, device=device)
    assert (found.num_pictures, len(found.unreadable), found.scores.confusion.sum()) == (2, 1, 2)
    with pytest.raises(ValueError, match="None of the pictures could be read"):
        evaluate(model, loader(files[2:]), task=SingleLabel(), num_classes=10, device=device)


def test_a_model_whose_outputs_are_not_finite_is_refused(model):
    pictures = open_data("digits").test
    loader = evaluation_loader(pictures, PREPROCESSING.transform(), channels=1, batch_size=360, workers=0)
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    with pytest.raises(ValueError, match="no longer finite"):
        evaluate(model, loader, task=SingleLabel(), num_classes=10, device=torch.device("cpu"))


def test_the_figures_of_every_class_and_their_mean_are_those_of_loops():
    tally = SingleLabel().tally(7)
    logits, labels = torch.randn(50, 7), torch.randint(6, (50,))  # the last class has no picture
    for start in range(0, 50, 11):
        tally.add(logits[start : start + 11], labels[start : start + 11])
    scores = tally.scores()
    rows = scores.by_class("abcdefg")
    for label, row in enumerate(rows[:6]):
        own = logits[labels == label]
        ranks = [int((picture > picture[label]).sum()) for picture in own]
        assert (row["class"], row["num_pictures"]) == ("abcdefg"[label], len(own))
        assert row["top1"] == pytest.approx(100 * sum(rank < 1 for rank in ranks) / len(own))
        assert row["top5"] == pytest.approx(100 * sum(rank < 5 for rank in ranks) / len(own))
    assert rows[6] == {"class": "g", "num_pictures": 0, "top1": None, "top5": None}
    assert scores.balanced_top1 == pytest.approx(sum(row["top1"] for row in rows[:6]) / 6)
    confidence = logits.double().softmax(dim=1).max(dim=1).values
    assert scores.summary()["mean_confidence"] == pytest.approx(100 * float(confidence.mean()))


# Two real processes


def made_files(folder: Path) -> list[Path]:
    """Seven pictures of noise, of which the fourth cannot be read."""
    generator = np.random.default_rng(0)
    files = [folder / f"{index}.png" for index in range(7)]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    files[3].write_text("no picture")
    return files


def figures_of(task: Task, files: list[Path], *, rank: int, num_ranks: int) -> dict:
    """What a process learns of pictures of which it sees its own part."""
    torch.manual_seed(0)
    labels = np.arange(len(files)) % 10
    if task.multi_label:
        labels = np.random.default_rng(1).integers(0, 2, (len(files), 10))
    loader = evaluation_loader(
        PictureSet(files, labels), PREPROCESSING.transform(), channels=1, batch_size=2, workers=0, rank=rank,
        num_ranks=num_ranks,
    )  # fmt: skip
    found = evaluate(new_model(), loader, task=task, num_classes=10, device=torch.device("cpu"))
    return {
        "summary": found.scores.summary(),
        "by_class": found.scores.by_class("0123456789"),
        "loss": found.loss,
        "num_pictures": found.num_pictures,
        "unreadable": found.unreadable,
    }


def evaluate_part(rank: int, folder: Path, files: list[Path]) -> None:
    """What each of two processes does; with one picture the second of them has none."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    found = [
        figures_of(task, part, rank=rank, num_ranks=2)
        for task in (SingleLabel(), MultiLabel())
        for part in (files, files[:1])
    ]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    try:
        evaluate_unreadable(files[3:4], rank=rank)
    finally:
        dist.destroy_process_group()


def evaluate_unreadable(files: list[Path], *, rank: int) -> None:
    """Both processes must end, also the one that had nothing to read."""
    with pytest.raises(ValueError, match="None of the pictures could be read; the first: The picture"):
        figures_of(SingleLabel(), files, rank=rank, num_ranks=2)


def test_two_processes_count_each_picture_once_and_both_know_the_figures_of_all(tmp_path):
    files = made_files(tmp_path)
    mp.start_processes(evaluate_part, args=(tmp_path, files), nprocs=2, start_method=FORKS.get_start_method())
    expected = [
        figures_of(task, part, rank=0, num_ranks=1)
        for task in (SingleLabel(), MultiLabel())
        for part in (files, files[:1])
    ]
    for rank in range(2):
        for found, alone in zip(json.loads((tmp_path / f"{rank}.json").read_text()), expected, strict=True):
            assert found["by_class"] == alone["by_class"]
            assert found["num_pictures"] == alone["num_pictures"]
            assert found["unreadable"] == alone["unreadable"]
            # float32 products of other batches round differently
            assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
            for name, value in alone["summary"].items():
                assert found["summary"][name] == pytest.approx(value, rel=1e-5), name
