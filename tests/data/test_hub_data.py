"""Hugging Face data sets, from local files that ``datasets`` reads as it reads the Hub's."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from comvex.data.sources import open_data
from comvex.errors import UserError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf cache")
    datasets.disable_progress_bars()


def write_pictures(folder, num):
    folder.mkdir(parents=True)
    for index in range(num):
        Image.new("RGB", (8, 6), (index, 100, 200)).save(folder / f"{index:02d}.png")


def write_parquet(file, num, *, columns=("image", "label"), names=("cat", "dog")):
    """A parquet file as the Hub has them, with the pictures inside."""
    rows = []
    for index in range(num):
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), (index, 100, 200)).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    values = [index % 2 if names else ("b", "a")[index % 2] for index in range(num)]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label})
    table = datasets.Dataset.from_dict({columns[0]: rows, columns[1]: values}, features=features)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(file)


def reds(part):
    return [part.read(index, channels=3).getpixel((0, 0))[0] for index in range(len(part))]


def test_a_parquet_data_set_is_read_by_row_with_its_own_splits(tmp_path):
    write_parquet(tmp_path / "pets" / "train-0.parquet", 20)
    write_parquet(tmp_path / "pets" / "validation-0.parquet", 6)
    write_parquet(tmp_path / "pets" / "test-0.parquet", 4)
    data = open_data(f"hfds/{tmp_path}/pets")
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    assert [reds(part) for part in (data.train, data.val, data.test)] == [list(range(20)), list(range(6)), [0, 1, 2, 3]]
    assert data.train.labels.tolist() == [0, 1] * 10
    assert data.train.name(3) == "train[3]"
    assert reds(data.train.where(np.arange(20) % 5 == 2)) == [2, 7, 12, 17]
    assert data.train.fingerprint() == open_data(f"hfds/{tmp_path}/pets").train.fingerprint()


def test_a_folder_of_pictures_is_split_by_class(tmp_path):
    for name in ("a", "b"):
        write_pictures(tmp_path / "pets" / name, 20)
    data = open_data(f"hfds/{tmp_path}/pets")
    assert data.classes == ("a", "b")
    assert [np.bincount(part.labels).tolist() for part in (data.test, data.val, data.train)] == [
        [4, 4], [2, 2], [14, 14],
    ]  # fmt: skip


def test_other_names_of_the_columns_and_labels_in_words_are_understood(tmp_path):
    write_parquet(tmp_path / "x" / "train.parquet", 20, columns=("img", "fine_label"))
    assert open_data(f"hfds/{tmp_path}/x").classes == ("cat", "dog")
    write_parquet(tmp_path / "y" / "train.parquet", 20, names=())
    data = open_data(f"hfds/{tmp_path}/y")
    assert data.classes == ("a", "b")
    everything = [
        pair for part in (data.train, data.val, data.test) for pair in zip(reds(part), part.labels, strict=True)
    ]
    assert all(label == 1 - red % 2 for red, label in everything)


def test_data_sets_that_cannot_be_had_are_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    write_parquet(tmp_path / "x" / "train.parquet", 4, columns=("image", "kind"), names=())
    with pytest.raises(UserError, match="has the columns image, kind: it must have one of pictures"):
        open_data(f"hfds/{tmp_path}/x")
    with pytest.raises(UserError, match=r"hfds/.*nothing cannot be had") as caught:
        open_data(f"hfds/{tmp_path}/nothing")
    assert "\n" not in str(caught.value)


def test_without_the_package_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"needs the package datasets, which is not installed: pip install 'comvex\[hub"
    ):
        open_data("hfds/anything")
