"""One class a picture, or any number: losses, probabilities, scores."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.weights import WeightsInfo, load_model, save_weights
from comvex.data.loading import evaluation_loader
from comvex.data.sources import PictureSet
from comvex.data.transforms import Preprocessing
from comvex.inference.evaluate import evaluate
from comvex.inference.predictor import load
from comvex.inference.task import MultiLabel, SingleLabel

PREPROCESSING = Preprocessing((8, 4), 1, (0.3,), (0.4,))


@pytest.fixture
def model() -> ConViTWithLinearClassifier:
    config = ConViTConfig.ConViT_Ti(
        image_size=(8, 4), image_channel=1, patch_size=2, dim=16, num_local_layers=1, num_nonlocal_layers=1,
        num_classes=3,
    )  # fmt: skip
    return ConViTWithLinearClassifier(config)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_multi_label_loss_is_the_mean_over_pictures_and_classes(smoothing):
    logits, labels = torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7, 3))
    total = 0.0
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        for logit, target in zip(row, targets, strict=True):
            yes = 1 / (1 + math.exp(-logit))
            wanted = 1 - smoothing / 2 if target else smoothing / 2
            total -= wanted * math.log(yes) + (1 - wanted) * math.log(1 - yes)
    assert float(MultiLabel().loss(logits, labels, smoothing=smoothing)) == pytest.approx(total / 21, rel=1e-12)


def test_the_single_label_loss_is_the_smoothed_cross_entropy():
    logits, labels = torch.randn(7, 3), torch.randint(3, (7,))
    assert torch.equal(SingleLabel().loss(logits, labels), F.cross_entropy(logits, labels))
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert torch.equal(SingleLabel().loss(logits, labels, smoothing=0.2), expected)


def noise_pictures(num: int) -> PictureSet:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (num, 8, 4), dtype=np.uint8)
    return PictureSet(pictures, generator.integers(0, 2, (num, 3), dtype=np.uint8))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_multi_label_figures_are_those_of_all_pictures_at_once(model, batch_size):
    pictures = noise_pictures(40)
    loader = evaluation_loader(pictures, PREPROCESSING.transform(), channels=1, batch_size=batch_size, workers=0)
    found = evaluate(model, loader, task=MultiLabel(), num_classes=3, device=torch.device("cpu"))
    with torch.no_grad():
        [everything] = evaluation_loader(pictures, PREPROCESSING.transform(), channels=1, batch_size=100, workers=0)
        logits = model.eval()(everything.pictures).double()
    targets = torch.from_numpy(pictures.labels).double()
    assert found.num_pictures == found.scores.num_pictures == 40
    # float32 products of other shapes round differently
    assert found.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, targets)), rel=1e-5)
    np.testing.assert_array_equal(found.scores.num_positive, pictures.labels.sum(axis=0))
    by_class = [row["average_precision"] for row in found.scores.by_class("abc")]
    assert found.scores.figures() == {"map": pytest.approx(sum(by_class) / 3)}


def test_a_class_without_a_positive_picture_has_no_figure_and_does_not_count(tmp_path):
    tally = MultiLabel().tally(3)
    tally.add(torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[1, 0, 0], [0, 0, 1]]))
    tally.add(torch.tensor([[0.0, 3.0, 0.5]]), torch.tensor([[0, 0, 0]]))
    scores = tally.scores()
    # the positive picture of the third class ties with one other below the first: one of three, at full recall
    assert scores.by_class("abc") == [
        {"class": "a", "num_positive": 1, "average_precision": 100.0},
        {"class": "b", "num_positive": 0, "average_precision": None},
        {"class": "c", "num_positive": 1, "average_precision": pytest.approx(100 / 3)},
    ]
    assert scores.summary()["mean_average_precision"] == pytest.approx((100 + 100 / 3) / 2)
    scores.draw("abc", tmp_path / "bars.png", pictures="3 pictures")
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width > 500


def test_what_cannot_be_measured_is_refused():
    tally = MultiLabel().tally(2)
    tally.add(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="None of the 4 pictures has a label"):
        tally.scores()
    tally.add(torch.full((1, 2), torch.nan), torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="no longer finite"):
        tally.scores()


def save(model: nn.Module, file, *, multi_label: bool) -> None:
    info = WeightsInfo(model.config, PREPROCESSING.to_dict(), ("a", "b", "c"), multi_label=multi_label)
    save_weights(model, file, info=info)


def test_that_a_model_is_multi_label_travels_with_its_weights_and_decides_its_probabilities(model, tmp_path):
    pictures = [Image.fromarray(picture) for picture in noise_pictures(5).pictures]
    inputs = torch.stack([PREPROCESSING.transform()(picture) for picture in pictures])
    with torch.no_grad():
        logits = model.eval()(inputs)
    for multi_label, expected in ((True, logits.sigmoid()), (False, logits.softmax(dim=1))):
        file = tmp_path / str(multi_label) / "model.safetensors"
        save(model, file, multi_label=multi_label)
        assert load_model(file).info.multi_label is multi_label
        predictor = load(file)
        for answer, row in zip(predictor.predict(pictures), expected, strict=True):
            best = row.sort(descending=True)
            assert [entry.label for entry in answer] == ["abc"[index] for index in best.indices]
            assert [entry.probability for entry in answer] == pytest.approx(best.values.tolist(), rel=1e-5)
