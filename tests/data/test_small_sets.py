"""Well-known data sets of small pictures."""

import gzip
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torchvision.datasets

from comvex.data import small_sets
from comvex.data.small_sets import read_batch, read_idx
from comvex.data.sources import open_data
from comvex.errors import UserError


@pytest.mark.skipif(
    not (small_sets.SYSTEM_DATASETS[0] / "fashion-mnist").is_dir(), reason="Fashion-MNIST is not installed"
)
def test_one_percent_of_fashion_mnist_is_sixty_pictures_of_each_class():
    data = open_data("fashion-mnist", fraction=0.01)
    labels = np.concatenate([data.train.labels, data.val.labels])
    np.testing.assert_array_equal(np.bincount(labels), [60] * 10)
    assert len(data.test) == 10_000
    assert data.train.read(0, channels=1).size == (28, 28)


def test_fashion_mnist_that_cannot_be_had_says_what_to_do(monkeypatch, tmp_path):
    import torchvision.datasets

    def no_network(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(small_sets, "SYSTEM_DATASETS", (tmp_path,))
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", no_network)
    with pytest.raises(ValueError, match="install the system package dataset-fashion-mnist"):
        open_data("fashion-mnist")


def test_idx_files_are_read_compressed_or_not_and_damage_is_named(tmp_path):
    content = struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3) + bytes(range(6))
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    for name in ("plain", "packed"):
        np.testing.assert_array_equal(read_idx(tmp_path, name), [[0, 1, 2], [3, 4, 5]])
    (tmp_path / "short").write_bytes(content[:-1])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(content)[:-9])
    for name in ("short", "cut", "missing"):
        with pytest.raises(ValueError, match=f"{name}.* cannot be read"):
            read_idx(tmp_path, name)


# CIFAR


def write_cifar(folder, *, num=40, classes=("cat", "dog", "ship")):
    """Small files in the layout of CIFAR-10's Python version; returns all pictures (num, 32, 32, 3) and labels."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pictures, labels = [], []
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        batch = generator.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
        values = generator.integers(0, len(classes), num).tolist()
        content = {"data": batch.transpose(0, 3, 1, 2).reshape(num, 3072), "labels": values, "filenames": ["x"] * num}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        pictures.append(batch)
        labels += values
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(classes)}, protocol=2))
    return np.concatenate(pictures), np.array(labels)


def test_cifar10_in_the_cache_folder_is_read_without_a_download(cache):
    pictures, labels = write_cifar(cache / "cifar-10-batches-py")
    data = open_data("cifar10")
    assert (data.name, data.classes, data.channels, data.image_size) == ("cifar10", ("cat", "dog", "ship"), 3, 32)
    np.testing.assert_array_equal(data.test.pictures, pictures[200:])
    np.testing.assert_array_equal(data.test.labels, labels[200:])
    assert len(data.train) + len(data.val) == 200
    picture = data.test.read(5, channels=3)
    np.testing.assert_array_equal(np.asarray(picture), pictures[205])
    assert data.test.read(5, channels=1).mode == "L"


def test_cifar100_has_the_fine_labels(cache):
    folder = cache / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class {index}" for index in range(100)]
    for name, num in (("train", 300), ("test", 100)):
        fine = [index % 100 for index in range(num)]
        content = {"data": np.zeros((num, 3072), np.uint8), "fine_labels": fine, "coarse_labels": [0] * num}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"]}, protocol=2))
    data = open_data("cifar100", val_fraction=0.3)
    assert data.classes == tuple(names)
    np.testing.assert_array_equal(data.test.labels, np.arange(100))


def test_the_authors_archive_in_the_cache_folder_is_unpacked(cache, tmp_path, monkeypatch):
    import hashlib

    write_cifar(tmp_path / "cifar-10-batches-py")
    cache.mkdir(parents=True)
    archive = cache / torchvision.datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(open_data("cifar10").test) == 40


def test_cifar_that_cannot_be_had_says_where_to_put_it(cache, monkeypatch):
    import torchvision.datasets.utils

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", no_network)
    with pytest.raises(UserError, match=r"CIFAR100 is not on this machine .*put cifar-100-python.tar.gz .*comvex"):
        open_data("cifar100")


class Malicious:
    """Its pickle, opened as pickles are, would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": Malicious(tmp_path / "harm")}))
    with pytest.raises(UserError, match=r"batch cannot be read: it names .*mkdir, which is no array"):
        read_batch(tmp_path / "batch")
    assert not (tmp_path / "harm").exists()


def test_damaged_batches_are_named(cache, tmp_path):
    write_cifar(cache / "cifar-10-batches-py")
    file = cache / "cifar-10-batches-py" / "data_batch_3"
    content = file.read_bytes()
    for damaged in (content[:500], b"", pickle.dumps([1]), pickle.dumps({"labels": [1]})):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="data_batch_3"):
            open_data("cifar10")
    file.write_bytes(pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2]}))
    with pytest.raises(UserError, match="data_batch_3 has 3 pictures and 2 labels"):
        open_data("cifar10")
