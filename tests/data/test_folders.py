"""Folders of class folders: what people really have in them, and the index that is kept."""

import logging
import os
import time

import numpy as np
import pytest
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from comvex.data import folders
from comvex.data.folders import index_folder
from comvex.data.sources import open_data
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError

CLASSES = ("Hündchen", "katze", "鳥")


def write_pictures(folder, num, *, size=(12, 10)):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        Image.new("RGB", size, (0, index, 0)).save(folder / f"{index}.png")


def all_files(data):
    return [file for part in (data.train, data.val, data.test) if part is not None for file in part.pictures]


@pytest.fixture
def messy(tmp_path):
    """A folder with one of everything that goes wrong; returns it with the names of what can and cannot be read."""
    root = tmp_path / "messy"
    for name in CLASSES:
        write_pictures(root / name, 20)
    cats = root / "katze"
    sizes = {"one.png": (1, 1), "long.png": (9000, 40), "thin.png": (1, 9000)}
    for name, size in sizes.items():
        Image.new("L", size, 9).save(cats / name)
    for mode, name in (
        ("CMYK", "cmyk.jpg"),
        ("P", "palette.gif"),
        ("RGBA", "alpha.png"),
        ("1", "bits.tif"),
        ("F", "f.tif"),
    ):
        Image.new(mode, (30, 20)).save(cats / name)
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(cats / "deep.png")
    Image.effect_noise((99, 99), 90).save(cats / "whole.jpg")
    (cats / "cut.jpg").write_bytes((cats / "whole.jpg").read_bytes()[:900])
    (cats / "text.jpg").write_text("no picture")
    (cats / "empty.jpg").touch()
    (cats / "gone.jpg").symlink_to("nowhere.jpg")
    bad_name = os.fsencode(cats) + b"/\xff\xfe.jpg"
    with open(bad_name, "wb") as stream:  # noqa: PTH123 - a name that is no text
        stream.write(b"no picture")
    # What must not be taken for pictures
    (cats / ".hidden.jpg").touch()
    (cats / ".thumbnails").mkdir()
    Image.new("L", (4, 4)).save(cats / ".thumbnails" / "x.png")
    (cats / "folder.jpg").mkdir()
    os.mkfifo(cats / "pipe.jpg")
    (cats / "loop").symlink_to(root)
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "leer").mkdir()
    (root / ".git").mkdir()
    (root / ".git" / "x.png").touch()
    unreadable = {"cut.jpg", "text.jpg", "empty.jpg", "gone.jpg", "\\xff\\xfe.jpg"}
    return root, unreadable


def test_a_messy_folder_is_read_as_far_as_it_can_be(messy, caplog):
    root, unreadable = messy
    with caplog.at_level(logging.WARNING):
        data = open_data(str(root))
    assert data.classes == CLASSES
    assert f"The class folders leer in {root} have no pictures" in caplog.text
    assert f"The link {root}/loop leads back" in caplog.text
    assert f"The link {root}/up leads back" in caplog.text
    assert len(all_files(data)) == len(set(all_files(data))) == 3 * 20 + 3 + 5 + 2 + len(unreadable)

    transform = Preprocessing((32, 48), 3, data.mean, data.std).transform()
    refused = {}
    for part in (data.train, data.val, data.test):
        for index in range(len(part)):
            try:
                assert transform(part.read(index, channels=3)).shape == (3, 32, 48)
            except UserError as error:
                refused[part.name(index).rpartition("/")[2]] = str(error)
    assert refused.keys() == unreadable
    for name, message in refused.items():
        assert name in message
        message.encode("utf-8")  # can be printed and logged, whatever the bytes of the name


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["Train/a", "Train/b", "valid/a"], "has no folder train, but Train and valid look like parts of the data"),
        (["TRAIN/a", "TRAIN/b"], "has no folder train, but TRAIN looks like parts"),
        (["training_set/a", "rest/a"], "but training_set looks like parts"),
        (["Val/a", "Val/b", "Test/a", "Test/b"], "but Test and Val look like parts"),
        (["trian/a", "val/a", "test/a"], "but test and val look like parts"),
        (["train/a", "train/b", "valid/a"], "valid looks like a part of the data: it must be called val,"),
        (["train/a", "train/b", "Validation data/a"], "it must be called val,"),
        (["train/a", "train/b", "val/a", "testing"], "testing looks like a part of the data: it must be called test,"),
    ],
)
def test_folders_that_seem_to_be_parts_by_another_name_are_refused(tmp_path, found, message):
    for name in found:
        write_pictures(tmp_path / name, 10)
    with pytest.raises(UserError, match=message):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("found", "classes"),
    [
        (["valid", "invalid"], ("invalid", "valid")),
        (["valid/1", "valid/2", "invalid/1", "invalid/2"], ("invalid", "valid")),
        (["Train", "Bus", "testing"], ("Bus", "Train", "testing")),
        (["trainer/1", "tester/1"], ("tester", "trainer")),
        (["train/a", "train/b", "val/a", "test/a", "valid/a", "old"], ("a", "b")),
    ],
)
def test_classes_may_be_called_much_like_parts(tmp_path, found, classes):
    for name in found:
        write_pictures(tmp_path / name, 10)
    assert open_data(str(tmp_path)).classes == classes


def test_class_folders_that_hold_folders_only_are_noted(tmp_path):
    for name in ("cat/rex", "cat/tom", "dog", "dog/max"):
        write_pictures(tmp_path / name, 10)
    note = "The class folder cat (rex, tom) has pictures only in deeper folders, which are no classes."
    assert open_data(str(tmp_path)).notes == (note,)
    for number in range(6):
        write_pictures(tmp_path / "dog" / f"{number}", 1)
        write_pictures(tmp_path / "emu" / f"{number}", 10)
    [note] = open_data(str(tmp_path)).notes
    assert note.startswith("The class folders cat (rex, tom), emu (0, 1, 2, 3 and 2 more) have pictures only in deeper")


def test_a_link_to_a_class_folder_elsewhere_is_followed(tmp_path):
    write_pictures(tmp_path / "elsewhere" / "dogs", 12)
    write_pictures(tmp_path / "data" / "cat", 12)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    data = open_data(str(tmp_path / "data"))
    assert data.classes == ("cat", "dog")
    assert len(all_files(data)) == 24


def test_what_runs_and_studies_have_drawn_inside_the_folder_is_no_class(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / name, 10)
    before = open_data(str(tmp_path)).train.fingerprint()
    for folder, file in (("runs/pets-1", "recipe.json"), ("studies/pets", "study.json"), ("report", "heads.csv")):
        write_pictures(tmp_path / folder, 2)
        write_pictures(tmp_path / folder / "deeper", 2)
        (tmp_path / folder / file).write_text("{}")
    data = open_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train.fingerprint() == before


def test_links_inside_class_folders_are_not_followed_so_that_they_cannot_go_in_circles(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        write_pictures(tmp_path / name, 12)
        (tmp_path / name / "other").symlink_to(tmp_path / other)
    assert len(all_files(open_data(str(tmp_path)))) == 24


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_opened_is_named(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_pictures(tmp_path / name, 10)
    (tmp_path / "c").chmod(0)
    data = open_data(str(tmp_path))
    (tmp_path / "c").chmod(0o755)
    assert data.classes == ("a", "b")
    assert f"The folder {tmp_path}/c cannot be read" in caplog.text


# The index


@pytest.fixture
def indexed(tmp_path, monkeypatch, cache):
    """A settled folder whose index is kept; returns it and the file with its index."""
    monkeypatch.setattr(folders, "SMALLEST_CACHED", 10)
    root = tmp_path / "pictures"
    for name in ("a", "b"):
        write_pictures(root / name / "deeper", 10)
        write_pictures(root / name, 5)
    settle(root)
    index_folder(root)
    [kept] = (cache / "folders").iterdir()
    return root, kept


def settle(root):
    """Make the last change of all folders a minute old."""
    past = time.time_ns() - 60 * 10**9
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(past, past))


def test_files_that_are_not_read_are_counted_by_their_endings(indexed, caplog):
    """Photographs of a telephone, say: nobody should wonder where half of the pictures went."""
    root, _ = indexed
    for number in range(3):
        (root / "a" / f"photo {number}.HEIC").touch()
    (root / "b" / "deeper" / "notes").touch()
    (root / "b" / ".hidden.heic").touch()
    (root / "README.md").touch()
    settle(root)
    note = "Files in class folders that are not read as pictures, by their endings: 3 .heic, 1 without an ending."
    with caplog.at_level(logging.INFO):
        assert open_data(str(root)).notes == (note,)
    assert note in caplog.messages
    assert open_data(str(root)).notes == (note,)  # from the index that is kept by now


def test_files_that_are_not_read_are_counted_in_every_part(tmp_path):
    for part in ("train", "val", "test"):
        for name in ("a", "b"):
            write_pictures(tmp_path / part / name, 5)
            (tmp_path / part / name / "0.txt").touch()
    [note] = open_data(str(tmp_path)).notes
    assert note.endswith("by their endings: 6 .txt.")


def test_the_second_time_no_folder_is_searched(indexed, monkeypatch):
    root, _ = indexed
    first = open_data(str(root))
    monkeypatch.setattr(folders, "scan_folder", None)  # it would fail
    again = open_data(str(root))
    assert all_files(again) == all_files(first)
    assert again.train.fingerprint() == first.train.fingerprint()


def add(root):
    Image.new("L", (4, 4)).save(root / "a" / "deeper" / "new.png")


def remove(root):
    (root / "b" / "3.png").unlink()


def rename(root):
    (root / "b" / "3.png").rename(root / "b" / "three.png")


def remove_folder(root):
    for file in (root / "a" / "deeper").iterdir():
        file.unlink()
    (root / "a" / "deeper").rmdir()


def add_without_a_new_time(root):
    status = (root / "a").stat()
    Image.new("L", (4, 4)).save(root / "a" / "new.png")
    os.utime(root / "a", ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [add, remove, rename, remove_folder, add_without_a_new_time])
def test_whatever_changes_in_the_folder_is_noticed(indexed, change):
    root, _ = indexed
    before = set(index_folder(root).files)
    change(root)
    now = set(index_folder(root).files)
    assert now != before
    assert now == {str(path.relative_to(root)) for path in root.rglob("*.png")}


def test_a_folder_that_has_just_changed_is_not_kept(tmp_path, monkeypatch, cache):
    """Another change in the same instant would go unnoticed."""
    monkeypatch.setattr(folders, "SMALLEST_CACHED", 1)
    write_pictures(tmp_path / "a", 3)
    index_folder(tmp_path)
    assert not (cache / "folders").exists()


def test_small_folders_are_not_kept(tmp_path, cache):
    write_pictures(tmp_path / "a", 3)
    settle(tmp_path)
    index_folder(tmp_path)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: text.replace(b"a/3.png", b"a/7.png"), lambda _: b""]
)
def test_a_damaged_index_is_made_again_and_the_log_says_so(indexed, damage, caplog):
    root, kept = indexed
    whole = index_folder(root).files
    kept.write_bytes(damage(kept.read_bytes()))
    assert index_folder(root).files == whole
    assert str(kept) in caplog.text
    caplog.clear()
    assert index_folder(root).files == whole  # it was written again
    assert caplog.text == ""


def test_a_cache_that_cannot_be_written_is_a_line_in_the_log(indexed, cache, monkeypatch, caplog):
    root, kept = indexed
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file in the way")
    assert len(index_folder(root).files) == 30
    assert "cannot be written" in caplog.text


# ImageNet


def test_wordnet_ids_become_readable_names_in_timms_order(tmp_path):
    names = ("n02012849", "n01440764", "n03126707")  # crane, tench, crane
    for name in names:
        write_pictures(tmp_path / "train" / name, 12)
        write_pictures(tmp_path / "val" / name, 2)
    data = open_data(str(tmp_path))
    assert data.class_ids == tuple(sorted(names))
    assert data.classes[0].startswith("tench")
    assert data.classes[1:] == ("crane (n02012849)", "crane (n03126707)")
    assert data.test is None
    assert np.bincount(data.val.labels).tolist() == [2, 2, 2]
    assert all(
        file.parent.name == data.class_ids[label]
        for file, label in zip(data.val.pictures, data.val.labels, strict=True)
    )


def test_all_of_imagenet_has_exactly_timms_classes(cache):
    info = ImageNetInfo()
    with pytest.raises(UserError, match=r"ImageNet-1k is not in .*comvex/imagenet-1k: put its folders train and val"):
        open_data("imagenet-1k")
    for name in info.label_names():
        for part, num in (("train", 1), ("val", 1)):
            (cache / "imagenet-1k" / part / name).mkdir(parents=True)
            for index in range(num):
                (cache / "imagenet-1k" / part / name / f"{index}.JPEG").touch()
    data = open_data("imagenet-1k")
    assert data.classes == tuple(info.label_descriptions())
    assert data.class_ids == tuple(info.label_names())
    assert (data.name, data.image_size, data.patch_size, len(data.val)) == ("imagenet-1k", 224, 16, 1000)


def test_other_names_that_look_like_wordnet_ids_stay(tmp_path):
    for name in ("n00000001", "n00000002"):
        write_pictures(tmp_path / name, 12)
    data = open_data(str(tmp_path))
    assert (data.classes, data.class_ids) == (("n00000001", "n00000002"), ())


def test_links_that_lead_to_each_other_are_left_out(tmp_path):
    root = tmp_path / "pictures"
    for name in ("cat", "dog"):
        write_pictures(root / name, 20)
    (root / "loop").symlink_to(root / "loop")
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    (root / "cat" / "circle").symlink_to(root / "cat" / "circle")
    (root / "cat" / "circle.jpg").symlink_to(root / "cat" / "circle.jpg")
    data = open_data(str(root))
    assert data.classes == ("cat", "dog")
    assert {file.name for file in all_files(data)} <= {*(f"{index}.png" for index in range(20)), "circle.jpg"}


def test_a_name_that_looks_like_markup_is_a_name(tmp_path):
    root = tmp_path / "m[" / "b]"
    for name in ("cat", "dog"):
        write_pictures(root / name, 20)
    assert open_data(str(root)).classes == ("cat", "dog")
