"""Evaluation counts every readable picture exactly once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.data.loading import evaluation_loader
from comvex.data.sources import PictureSet, open_data
from comvex.data.transforms import Preprocessing
from comvex.inference.evaluate import evaluate
from comvex.inference.task import SingleLabel

PREPROCESSING = Preprocessing((8, 8), 1, (0.3,), (0.4,))


@pytest.fixture
def model() -> nn.Module:
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
