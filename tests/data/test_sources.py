"""What names and folders stand for."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit

from comvex.data.sources import open_data


def write_pictures(folder, num, *, value=0):
    folder.mkdir(parents=True)
    for index in range(num):
        Image.new("RGB", (12, 10), (value, index, 0)).save(folder / f"{index}.png")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_digits_are_split_as_scikit_learn_splits_them(seed):
    data = open_data("digits", split_seed=seed)
    bunch = load_digits()
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=0)  # whatever the seed
    train, test = next(split.split(bunch.data, bunch.target))
    assert len(data.train) + len(data.val) == len(train) == 1437
    np.testing.assert_array_equal(data.test.labels, bunch.target[np.sort(test)])
    first = np.asarray(data.test.read(0, channels=1)) / 255 * 16
    np.testing.assert_allclose(first, bunch.images[np.sort(test)[0]], atol=0.04)  # half a step of 8 bits, times 16/255


def test_no_picture_is_in_two_parts():
    data = open_data("digits", split_seed=3)
    pictures = [part.pictures for part in (data.train, data.val, data.test)]
    assert sum(map(len, pictures)) == 1797
    unique = {picture.tobytes() for part in pictures for picture in part}
    everything = {picture.tobytes() for picture in np.round(load_digits().images * (255 / 16)).astype(np.uint8)}
    assert unique == everything


def test_a_folder_of_class_folders_is_split_by_class(tmp_path):
    write_pictures(tmp_path / "cat", 20)
    write_pictures(tmp_path / "dog" / "deeper", 40)
    data = open_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert [np.bincount(part.labels).tolist() for part in (data.test, data.val, data.train)] == [
        [4, 8],
        [2, 3],
        [14, 29],
    ]
    files = [file for part in (data.train, data.val, data.test) for file in part.pictures]
    assert len(set(files)) == 60


def test_parts_that_a_folder_has_are_used_as_they_are(tmp_path):
    for part, num in (("train", 30), ("val", 4), ("test", 6)):
        for label in ("a", "b"):
            write_pictures(tmp_path / part / label, num)
    data = open_data(str(tmp_path))
    assert [len(part) for part in (data.train, data.val, data.test)] == [60, 8, 12]
    assert all(file.parts[-3] == "val" for file in data.val.pictures)


def test_without_val_some_training_pictures_are_set_aside_and_without_test_there_is_none(tmp_path):
    for label in ("a", "b"):
        write_pictures(tmp_path / "train" / label, 30)
    data = open_data(str(tmp_path), val_fraction=0.2)
    assert (len(data.train), len(data.val), data.test) == (48, 12, None)
    with pytest.raises(ValueError, match="has no test pictures"):
        data.part("test")


def test_hidden_files_other_files_and_loops_of_links_are_left_out(tmp_path):
    for label in ("a", "b"):
        write_pictures(tmp_path / label, 10)
    write_pictures(tmp_path / ".cache", 3)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._1.png").write_text("x")
    (tmp_path / "a" / "UPPER.JPG").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "empty class").mkdir()
    data = open_data(str(tmp_path))
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.val) + len(data.test) == 21


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "has no pictures"),
        (lambda root: write_pictures(root / "only", 5), "one class only, 'only'"),
        (lambda root: (root / "a").mkdir(), "has no pictures"),
        (
            lambda root: [write_pictures(root / "pets" / x, 5) for x in "ab"],
            r"one class only, 'pets': at least two are needed; did you mean '.*/pets', which holds a, b\?",
        ),
        (
            lambda root: [write_pictures(root / x, 5) for x in ("train", "bus")],
            "/train has no class folders, its 5 pictures lie directly in it: a folder called train must hold one",
        ),
        (lambda root: [write_pictures(root / "train" / x, 5) for x in "ab"] + [(root / "test").mkdir()], "no pictures"),
        (lambda root: [write_pictures(root / x, 5) for x in ("train/a", "train/b", "val/c")], "has the class 'c'"),
        (lambda root: [write_pictures(root / x, 1) for x in "ab"], "0 to validate"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused_by_name(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        open_data(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("path", ["pets/cat", "pets/cat/0.png", "pets/train/cat", "pets/train/cat/0.png"])
def test_of_a_class_folder_or_a_picture_it_is_said_which_folder_was_meant(tmp_path, path):
    """Also from inside, where its path does not name the folders above it."""
    split = "train" if "train" in path else ""
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pets" / split / name, 5)
    kind = "is a picture, not a data set" if path.endswith("png") else "its 5 pictures lie directly in it"
    with pytest.raises(ValueError, match=f"{kind}: did you mean '{tmp_path / 'pets'}'"):
        open_data(str(tmp_path / path))


def test_the_folder_that_was_meant_is_told_from_inside_too(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pets" / name, 5)
    monkeypatch.chdir(tmp_path / "pets" / "cat")
    for path in (".", "0.png"):
        with pytest.raises(ValueError, match=f"did you mean '{tmp_path / 'pets'}'"):
            open_data(path)


def test_without_other_class_folders_beside_it_no_folder_is_proposed(tmp_path):
    write_pictures(tmp_path / "pictures", 5)
    with pytest.raises(ValueError, match="lie directly in it: it must hold one folder per class"):
        open_data(str(tmp_path / "pictures"))


def test_of_a_misspelt_folder_or_file_the_one_beside_it_is_proposed(tmp_path):
    (tmp_path / "pets").mkdir()
    (tmp_path / "labels.csv").touch()
    (tmp_path / "petz").touch()  # no data set: it is not proposed
    for path, meant in (("pet", "pets"), ("labels.cvs", "labels.csv")):
        with pytest.raises(ValueError, match=f"no data set '.*{path}': did you mean '{tmp_path / meant}'"):
            open_data(str(tmp_path / path))
    with pytest.raises(ValueError, match=r"petz' is a file, not a data set: give a folder"):
        open_data(str(tmp_path / "petz"))
    (tmp_path / "shards.tar").touch()
    with pytest.raises(ValueError, match=f"did you mean 'wds/{tmp_path}/shards.tar'"):
        open_data(str(tmp_path / "shards.tar"))
    with pytest.raises(ValueError, match=r"no data set 'nowhere/at/all': give a folder"):
        open_data("nowhere/at/all")


def test_training_says_that_there_is_no_such_data_set_before_it_imports_pytorch():
    program = "import sys; from comvex.cli import main; print(main(['train', '--data', 'x']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("comvex: There is no data set 'x': give a folder")


def test_too_few_pictures_are_told_with_the_smallest_share_that_would_do(tmp_path):
    for label in ("a", "b"):
        write_pictures(tmp_path / "few" / label, 2)
        write_pictures(tmp_path / "more" / label, 40)
    few, more = str(tmp_path / "few"), str(tmp_path / "more")
    with pytest.raises(ValueError, match=r"few has 4 training pictures, of .* 0\.1 leaves .*be at least 0\.251\."):
        open_data(few)
    assert (len(open_data(few, val_fraction=0.251).val), len(open_data(few, val_fraction=0.251).train)) == (2, 2)
    with pytest.raises(ValueError, match=r"leaves 4 pictures .* 0 to validate"):
        open_data(few, val_fraction=0.25)
    with pytest.raises(ValueError, match=r"leaves 0 pictures to train on and 4 to validate: .*it must be smaller"):
        open_data(few, val_fraction=0.9)
    with pytest.raises(
        ValueError,
        match=r"more has 58 pictures to train on and 6 to validate, of which fraction = 0\.01 leaves 0 pictures to "
        r"train on and 0 to validate: both need at least one, so the fraction must be at least 0\.167\.",
    ):
        open_data(more, fraction=0.01)
    assert (len(open_data(more, fraction=0.167).train), len(open_data(more, fraction=0.167).val)) == (10, 2)
    with pytest.raises(ValueError, match=r"leaves 10 pictures to train on and 0 to validate"):
        open_data(more, fraction=0.166)


def test_unknown_names_and_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="did you mean 'fashion-mnist'"):
        open_data("fashion_mnist")
    with pytest.raises(ValueError, match="fraction is 0"):
        open_data("digits", fraction=0)
    with pytest.raises(ValueError, match="val_fraction is 1"):
        open_data("digits", val_fraction=1)
    with pytest.raises(ValueError, match="split_seed is -1"):
        open_data("digits", split_seed=-1)


def test_the_fingerprint_changes_when_files_come_or_go(tmp_path):
    for label in ("a", "b"):
        write_pictures(tmp_path / label, 10)
    before, again = (open_data(str(tmp_path)).train.fingerprint() for _ in range(2))
    (tmp_path / "a" / "3.png").unlink()
    (tmp_path / "a" / "4.png").unlink()
    assert before == again != open_data(str(tmp_path)).train.fingerprint()


def test_a_smaller_fraction_trains_and_validates_on_a_part_of_what_a_larger_one_does():
    """And no picture is trained on at one fraction and validated on at another."""

    def rows(part):
        return {picture.tobytes() for picture in part.pictures}

    shares = [open_data("digits", fraction=fraction) for fraction in (0.1, 0.3, 1.0)]
    for small, large in itertools.pairwise(shares):
        assert rows(small.train) < rows(large.train)
        assert rows(small.val) < rows(large.val)
    assert not rows(shares[-1].train) & rows(shares[-1].val)
