"""Well-known data sets of small pictures."""

import functools
import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torchvision.datasets
from torchvision.datasets import utils

from comvex.data import small_sets
from comvex.data.small_sets import read_batch, read_cifar, read_idx
from comvex.data.sources import open_data
from comvex.errors import UserError


def no_network(*_, **__):
    raise OSError("no route to host")


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
    monkeypatch.setattr(small_sets, "SYSTEM_DATASETS", (tmp_path,))
    monkeypatch.setattr(utils, "download_url", no_network)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is missing .* dataset-fashion-mnist"):
        open_data("fashion-mnist")


def test_only_files_of_fashion_mnist_that_are_not_whole_are_downloaded(cache, monkeypatch, tmp_path):
    folder = cache / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    content, resources = {}, []
    for part, num in (("train", 20), ("t10k", 10)):
        labels = np.arange(num, dtype=np.uint8) % 10
        images = np.repeat(labels, 28 * 28).reshape(num, 28, 28)
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            content[f"{name}.gz"] = gzip.compress(header + values.tobytes())
            (folder / name).touch()  # unpacked in part only, as a torchvision that was stopped leaves it
    for name, packed in content.items():
        resources.append((name, hashlib.md5(packed).hexdigest()))
        (folder / name).write_bytes(packed)
    damaged = "t10k-images-idx3-ubyte.gz"
    (folder / damaged).write_bytes(content[damaged][:30])
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / damaged).write_bytes(content[damaged])  # the others cannot be downloaded
    monkeypatch.setattr(small_sets, "SYSTEM_DATASETS", (tmp_path,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=mirror)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address])
        try:
            np.testing.assert_array_equal(open_data("fashion-mnist", val_fraction=0.5).test.labels, np.arange(10))
        finally:
            server.shutdown()
    assert len(open_data("fashion-mnist", val_fraction=0.5).test) == 10  # nobody is asked a second time


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


def take_for_the_authors(kind, folder, monkeypatch):
    """Have torchvision's checksums of CIFAR's files be those of the files in a folder."""

    def with_md5(name):
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    for names in ("train_list", "test_list"):
        monkeypatch.setattr(kind, names, [with_md5(name) for name, _ in getattr(kind, names)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": with_md5(kind.meta["filename"])[1]})


def pack_cifar(folder, archive, monkeypatch):
    """An archive of made pictures that counts as the authors'."""
    write_cifar(folder / "cifar-10-batches-py")
    take_for_the_authors(torchvision.datasets.CIFAR10, folder / "cifar-10-batches-py", monkeypatch)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())


def test_cifar10_in_the_cache_folder_is_read_without_a_download(cache, monkeypatch):
    pictures, labels = write_cifar(cache / "cifar-10-batches-py")
    take_for_the_authors(torchvision.datasets.CIFAR10, cache / "cifar-10-batches-py", monkeypatch)
    data = open_data("cifar10")
    assert (data.name, data.classes, data.channels, data.image_size) == ("cifar10", ("cat", "dog", "ship"), 3, 32)
    np.testing.assert_array_equal(data.test.pictures, pictures[200:])
    np.testing.assert_array_equal(data.test.labels, labels[200:])
    assert len(data.train) + len(data.val) == 200
    picture = data.test.read(5, channels=3)
    np.testing.assert_array_equal(np.asarray(picture), pictures[205])
    assert data.test.read(5, channels=1).mode == "L"


def test_cifar100_has_the_fine_labels(cache, monkeypatch):
    folder = cache / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class {index}" for index in range(100)]
    for name, num in (("train", 300), ("test", 100)):
        fine = [index % 100 for index in range(num)]
        content = {"data": np.zeros((num, 3072), np.uint8), "fine_labels": fine, "coarse_labels": [0] * num}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"]}, protocol=2))
    take_for_the_authors(torchvision.datasets.CIFAR100, folder, monkeypatch)
    data = open_data("cifar100", val_fraction=0.3)
    assert data.classes == tuple(names)
    np.testing.assert_array_equal(data.test.labels, np.arange(100))


def test_the_authors_archive_in_the_cache_folder_is_unpacked(cache, tmp_path, monkeypatch):
    pack_cifar(tmp_path, cache / torchvision.datasets.CIFAR10.filename, monkeypatch)
    assert len(open_data("cifar10").test) == 40


def test_what_is_unpacked_in_part_only_is_unpacked_again(cache, tmp_path, monkeypatch):
    pack_cifar(tmp_path, cache / torchvision.datasets.CIFAR10.filename, monkeypatch)
    whole = open_data("cifar10")
    for name in ("data_batch_1", "data_batch_4", "test_batch", "batches.meta"):
        file = cache / "cifar-10-batches-py" / name
        for damage in (file.unlink, lambda file=file: file.write_bytes(file.read_bytes()[:500])):
            damage()
            data = open_data("cifar10")
            assert data.classes == whole.classes
            np.testing.assert_array_equal(data.test.pictures, whole.test.pictures)
            np.testing.assert_array_equal(data.train.pictures, whole.train.pictures)


def test_of_two_processes_one_unpacks_and_the_other_waits(cache, tmp_path, monkeypatch):
    archive = tmp_path / torchvision.datasets.CIFAR10.filename
    pack_cifar(tmp_path, archive, monkeypatch)
    monkeypatch.setattr(utils, "download_and_extract_archive", no_network)  # the other process does it
    unpack = (
        "import sys, tarfile, time; from filelock import FileLock\n"
        "with FileLock(f'{sys.argv[1]}/.CIFAR10.lock'):\n"
        "    print('held', flush=True); time.sleep(1); tarfile.open(sys.argv[2]).extractall(sys.argv[1])"
    )
    cache.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", unpack, cache, archive], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert len(open_data("cifar10").test) == 40


def test_cifar_that_cannot_be_had_says_where_to_put_it(cache, monkeypatch):
    monkeypatch.setattr(utils, "download_and_extract_archive", no_network)
    with pytest.raises(UserError, match=r"CIFAR100 is not on this machine .*put cifar-100-python.tar.gz .*comvex"):
        open_data("cifar100")
    write_cifar(cache / "cifar-10-batches-py")
    take_for_the_authors(torchvision.datasets.CIFAR10, cache / "cifar-10-batches-py", monkeypatch)
    (cache / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"")
    with pytest.raises(UserError, match=r"CIFAR10 is not on this machine \(.*data_batch_3 is missing or damaged\) and"):
        open_data("cifar10")


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


def test_damaged_batches_are_named(tmp_path):
    write_cifar(tmp_path / "batches")
    file = tmp_path / "batches" / "data_batch_3"
    content = file.read_bytes()
    for damaged in (content[:500], b"", pickle.dumps([1]), pickle.dumps({"labels": [1]})):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="data_batch_3"):
            read_cifar([file])
    file.write_bytes(pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2]}))
    with pytest.raises(UserError, match="data_batch_3 has 3 pictures and 2 labels"):
        read_cifar([file])
