"""Data sets from CSV files."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from PIL import Image

from comvex.data.sources import open_data
from comvex.errors import UserError


def write(root: Path, header: list[str], rows: list[list[str]], *, name: str = "data.csv") -> str:
    """A CSV file beside the one picture 0.png; the other pictures that it names do not exist."""
    if not (root / "0.png").exists():
        Image.new("RGB", (6, 12)).save(root / "0.png")
    with (root / name).open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(root / name)


def labelled(num: int) -> list[list[str]]:
    return [[f"{index}.png", ("cat", "dog")[index % 2]] for index in range(num)]


def parts_of(data):
    return [part for part in (data.train, data.val, data.test) if part is not None]


def test_paths_are_relative_to_the_file_or_absolute_and_classes_are_sorted(tmp_path):
    rows = [["0.png", "dog"], ["sub/1.png", "cat"], ["/elsewhere/2.png", "dog"]]
    rows += [[f"{index}.png", "cat" if index < 17 else f"{index - 16}"] for index in range(3, 20)]
    data = open_data(write(tmp_path, ["path", "label"], rows), val_fraction=0.2)
    assert (data.name, data.classes, data.multi_label) == ("data", ("1", "2", "3", "cat", "dog"), False)
    found = {file: label for part in parts_of(data) for file, label in zip(part.pictures, part.labels, strict=True)}
    assert len(found) == 20
    assert found[tmp_path / "0.png"] == found[Path("/elsewhere/2.png")] == 4
    assert found[tmp_path / "sub" / "1.png"] == 3


def test_one_label_a_picture_is_split_by_class_as_a_folder_is(tmp_path):
    data = open_data(write(tmp_path, ["label", "path"], [[label, path] for path, label in labelled(60)]))
    assert [np.bincount(part.labels).tolist() for part in (data.test, data.val, data.train)] == [
        [6, 6],
        [2, 2],
        [22, 22],
    ]
    other = open_data(str(tmp_path / "data.csv"), split_seed=1)
    assert other.val.pictures != data.val.pictures
    assert other.test.pictures == data.test.pictures
    assert data.notes == ()


@pytest.mark.parametrize(
    ("column", "special", "expected", "reason"),
    [
        ("labels", "dog", [0, 1], "the column is called labels"),
        ("label", "dog; cat ;dog;", [1, 1], "row 2 has 2 labels (1 of 31 rows have several)"),
        ("label", "", [0, 0], "row 2 has no label (1 of 31 rows)"),
        ("label", " ; ", [0, 0], "row 2 has no label (1 of 31 rows)"),
    ],
)
def test_the_column_labels_a_semicolon_or_an_empty_cell_makes_a_file_multi_label(
    tmp_path, column, special, expected, reason, caplog
):
    with caplog.at_level(logging.INFO):
        data = open_data(write(tmp_path, ["path", column], [["special.png", special], *labelled(30)]))
    assert data.multi_label
    assert data.notes == (f"{tmp_path / 'data.csv'} is multi-label, because {reason}.",)
    assert caplog.messages == list(data.notes)
    assert data.classes == ("cat", "dog")
    for part in parts_of(data):
        for file, row in zip(part.pictures, part.labels, strict=True):
            alone = {0: [1, 0], 1: [0, 1]}
            assert row.tolist() == (expected if file.stem == "special" else alone[int(file.stem) % 2])


def test_the_files_own_split_is_used_and_what_it_lacks_is_set_aside_or_missing(tmp_path):
    split = ["train"] * 20 + ["test"] * 6 + ["val"] * 4
    rows = [[*row, part] for row, part in zip(labelled(30), split, strict=True)]
    data = open_data(write(tmp_path, ["path", "label", "split"], rows))
    assert [[int(file.stem) for file in part.pictures] for part in parts_of(data)] == [
        list(range(20)),
        list(range(26, 30)),
        list(range(20, 26)),
    ]
    data = open_data(write(tmp_path, ["path", "label", "split"], rows[:20]), val_fraction=0.2)
    assert (len(data.train), len(data.val), data.test) == (16, 4, None)


def test_what_spreadsheets_write_is_read(tmp_path):
    write(tmp_path, ["x"], [])
    text = "\ufeff path , Remark,label\r\n"
    text += "".join(f'"{index}.png","a, ""b""", {"cat" if index % 2 else "größer"} \r\n' for index in range(20))
    (tmp_path / "data.CSV").write_text(text + ",,\r\n\r\n", encoding="utf-8")
    data = open_data(str(tmp_path / "data.CSV"))
    assert data.classes == ("cat", "größer")
    assert sum(len(part) for part in parts_of(data)) == 20


ROW = st.tuples(st.integers(0, 12), st.sets(st.sampled_from("abcd")))


@given(
    rows=st.lists(ROW, min_size=30, max_size=80),
    multi_label=st.booleans(),
    seed=st.integers(0, 2**32),
    fractions=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
)
def test_no_group_is_on_two_sides_and_fractions_are_nested(tmp_path_factory, rows, multi_label, seed, fractions):
    folder = tmp_path_factory.getbasetemp()
    rows = [(0, set("ab")), (1, set("cd")), *rows]
    cells = [
        [f"{index}.png", ";".join(sorted(labels)) if multi_label else min(labels or {"a"}), f"patient {group}"]
        for index, (group, labels) in enumerate(rows)
    ]
    file = write(folder, ["path", "labels" if multi_label else "label", "group"], cells)
    trained_on, tested_on = [], []
    for fraction in sorted(fractions):
        try:
            data = open_data(file, split_seed=seed, fraction=fraction, val_fraction=0.2)
        except UserError:  # a group is too large for its part, or a part has no labels
            reject()
        files = [{int(path.stem) for path in part.pictures} for part in parts_of(data)]
        groups = [{rows[index][0] for index in part} for part in files]
        assert not groups[0] & groups[1]
        assert not groups[2] & (groups[0] | groups[1])
        trained_on.append(files[0] | files[1])
        tested_on.append(files[2])
    assert trained_on[0] <= trained_on[1]
    assert tested_on[0] == tested_on[1]


TWELVE = labelled(12)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["file", "label"], TWELVE, "no column 'path'; its columns are file, label"),
        (["path;label"], TWELVE, r"has the one column 'path;label': cells must be separated by commas, not by ';'\."),
        (["path", "class"], TWELVE, "no column 'label' or 'labels'; its columns are path, class"),
        (["path", "label", "labels"], [["0.png", "a", "b"]], "both columns 'label' and 'labels'"),
        (["path", "path", "label"], [["0.png", "0.png", "b"]], "the column 'path' 2 times"),
        (["path", "label"], [], "has no rows"),
        (["path", "label"], [*TWELVE, [" ", "cat"]], "Row 14 of .*data.csv has no path"),
        (["path", "label"], [*TWELVE, ["x.png"]], "Row 14 of .*data.csv has 1 cells"),
        (
            ["path", "label"],
            [*TWELVE, ["x/../3.png", "cat"]],
            r"Row 14 of .*data.csv names .*3\.png again, as row 5 does",
        ),
        (["path", "label", "split"], [["0.png", "a", "valid"]], "Row 2 of .* has the split 'valid': .*train, val or"),
        (["path", "label", "split"], [["0.png", "a", ""]], "Row 2 of .* has the split ''"),
        (["path", "label", "split"], [["0.png", "a", "val"], ["1.png", "b", "val"]], "no row whose split is train"),
        (
            ["path", "label", "split"],
            [["0.png", "a", "train"], ["1.png", "b", "train"], ["2.png", "c", "test"]],
            "Row 4 of .* has the label 'c', which no training row has",
        ),
        (["path", "label", "group"], [["0.png", "a", "x"], ["1.png", "b", ""]], "Row 3 of .* has no group"),
        (
            ["path", "label", "group", "split"],
            [["0.png", "a", "x", "train"], ["1.png", "b", "x", "test"]],
            r"The group 'x' of .* is in train \(row 2\) and in test \(row 3\)",
        ),
        (["path", "label"], [["0.png", "a"], ["1.png", "a"]], "one class only, 'a'"),
        (["path", "labels"], [["0.png", ""], ["1.png", ";"]], "no label in any row"),
        (["path", "label"], [["a/1.png", "a"], ["2.png", "b"]], r"None of the pictures .*/a/1\.png in row 2"),
        (
            ["path", "labels", "split"],
            [["0.png", "a", "train"], ["1.png", "", "val"], ["2.png", "a", "test"]],
            "The 1 val pictures of .* have no label at all",
        ),
    ],
)
def test_what_a_file_has_wrong_is_said_in_one_sentence(tmp_path, header, rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_data(write(tmp_path, header, rows))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_csv_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*missing\.csv"):
        open_data(str(tmp_path / "missing.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv is empty"):
        open_data(str(tmp_path / "empty.csv"))
    (tmp_path / "latin.csv").write_bytes("path,label\n0.png,größer\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv cannot be read as CSV in UTF-8"):
        open_data(str(tmp_path / "latin.csv"))


def test_the_fingerprint_changes_with_the_labels(tmp_path):
    rows = [["0.png", "a;b"], *[[f"{index}.png", "a"] for index in range(1, 30)]]
    split = [[*row, "train" if index < 20 else "val"] for index, row in enumerate(rows)]
    before = open_data(write(tmp_path, ["path", "label", "split"], split)).train.fingerprint()
    split[3][1] = "b"
    assert open_data(write(tmp_path, ["path", "label", "split"], split)).train.fingerprint() != before
