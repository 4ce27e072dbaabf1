"""``comvex data check``."""

import json
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from comvex.cli import main
from comvex.data import check, examine
from comvex.data.check import check_data, describe_check
from comvex.data.examine import examine as examine_picture


def write_pictures(root, num=12, *, classes=("cat", "dog")):
    """Pictures of noise, each another, of 40 x 30 to 40 x 41 pixels, in class folders."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(num):
            values = generator.integers(0, 256, (40, 30 + index, 3), dtype=np.uint8)
            Image.fromarray(values).save(root / name / f"{index}.png")


@pytest.fixture
def parts(tmp_path):
    """A folder of train, val and test, each with twelve different pictures of cats and of dogs."""
    generator = np.random.default_rng(1)
    for part in ("train", "val", "test"):
        write_pictures(tmp_path / part)
        for file in (tmp_path / part).rglob("*.png"):
            with Image.open(file) as picture:
                values = generator.integers(0, 256, (picture.height, picture.width, 3), dtype=np.uint8)
            Image.fromarray(values).save(file)
    return tmp_path


def run(capsys, *arguments):
    """Exit code and report of the command."""
    code = main(["data", "check", *map(str, arguments), "--json", "--workers", "0"])
    return code, json.loads(capsys.readouterr().out)


def test_a_sound_data_set_is_counted_measured_and_passed(parts, capsys):
    code, report = run(capsys, parts)
    assert code == 0
    assert report["num_pictures"] == 72
    assert {name: part["classes"] for name, part in report["parts"].items()} == {
        name: {"cat": 12, "dog": 12} for name in ("train", "val", "test")
    }
    assert report["sizes"]["height"] == {"min": 40, "median": 40, "max": 40}
    assert report["sizes"]["width"] == {"min": 30, "median": 35.5, "max": 41}
    assert report["modes"] == {"RGB": 72}
    assert (report["unreadable"], report["duplicates"], report["small_classes"]) == ([], [], {})
    assert report["suggestions"] == ["--model.image-size 32"]


def test_unreadable_files_are_named_and_fail_the_check(parts, capsys):
    (parts / "val" / "cat" / "3.png").write_text("text")
    code, report = run(capsys, parts)
    assert code == 1
    [problem] = report["unreadable"]
    assert str(parts / "val" / "cat" / "3.png") in problem
    assert report["parts"]["val"]["num_unreadable"] == 1
    assert report["parts"]["val"]["classes"] == {"cat": 11, "dog": 12}


def test_the_same_picture_in_two_parts_is_found_by_bytes_and_by_pixels(parts, capsys):
    train, test = parts / "train" / "cat", parts / "test" / "cat"
    shutil.copy(train / "1.png", test / "copy.png")
    with Image.open(train / "2.png") as picture:
        picture.save(test / "other.bmp")
    code, report = run(capsys, parts)
    assert code == 1
    found = {group["same"]: group for group in report["duplicates"]}
    assert [picture["name"] for picture in found["bytes"]["pictures"]] == [str(train / "1.png"), str(test / "copy.png")]
    assert [picture["name"] for picture in found["pixels"]["pictures"]] == [
        str(train / "2.png"),
        str(test / "other.bmp"),
    ]
    assert report["num_duplicates_across_parts"] == 2
    assert report["num_labelled_differently"] == 0


def test_the_same_picture_twice_in_one_part_passes_unless_its_labels_differ(parts, capsys):
    train = parts / "train"
    shutil.copy(train / "cat" / "1.png", train / "cat" / "copy.png")
    code, report = run(capsys, parts)
    assert (code, len(report["duplicates"]), report["num_duplicates_across_parts"]) == (0, 1, 0)
    shutil.copy(train / "cat" / "2.png", train / "dog" / "copy.png")
    code, report = run(capsys, parts)
    assert (code, report["num_labelled_differently"]) == (1, 1)


def test_small_and_uneven_classes_are_told(tmp_path, capsys):
    write_pictures(tmp_path, 40, classes=("cat",))
    write_pictures(tmp_path / "x", 4, classes=("dog",))
    (tmp_path / "x" / "dog").rename(tmp_path / "dog")
    (tmp_path / "x").rmdir()
    generator = np.random.default_rng(5)
    for file in (tmp_path / "dog").iterdir():
        Image.fromarray(generator.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(file)
    code, report = run(capsys, tmp_path)
    assert code == 0
    assert list(report["small_classes"]) == ["dog"]
    assert "--balance loss" in report["suggestions"]


def test_several_labels_a_picture_are_counted_each(tmp_path, capsys):
    write_pictures(tmp_path, 30, classes=("p",))
    rows = [f"p/{index}.png,{('a;b', 'b', '')[index % 3]},train" for index in range(28)]
    rows += ["p/28.png,a,val", "p/29.png,b,val"]
    (tmp_path / "x.csv").write_text("\n".join(["path,labels,split", *rows]))
    _, report = run(capsys, tmp_path / "x.csv")
    assert report["multi_label"]
    assert report["parts"]["train"]["classes"] == {"a": 10, "b": 19}


def test_classes_that_a_part_lacks_are_told(tmp_path, capsys):
    """Groups stay whole, so that a part may have only some of the classes."""
    for part, classes in (("train", ("cat", "dog", "emu")), ("val", ("cat",)), ("test", ("cat", "dog", "emu"))):
        write_pictures(tmp_path / part, 12, classes=classes)
    (tmp_path / "val" / "dog").mkdir()
    _, report = run(capsys, tmp_path)
    assert report["absent_classes"] == {"val": ["dog", "emu"]}
    assert "\nabsent       val has no picture of dog, emu\n" in describe_check(report)


def test_pictures_of_full_depth_are_compared_with_all_their_values(tmp_path, capsys):
    values = np.full((8, 8), 30_000, np.uint16)
    for index, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for number in range(8):
            tifffile.imwrite(tmp_path / name / f"{number}.tif", values + 10 * index + number)  # one step of 8 bits: 257
    code, report = run(capsys, tmp_path)
    assert (code, report["full_depth"], report["duplicates"]) == (0, True, [])
    assert report["modes"] == {"1 channel at full depth": 16}


def test_what_is_wrong_with_every_picture_of_full_depth_is_reported(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(8):
            file = tmp_path / name / f"{number}.tif"
            tifffile.imwrite(file, np.zeros((8, 8, 5), np.uint16), photometric="minisblack", planarconfig="contig")
            with tifffile.TiffFile(file, mode="r+b") as tiff:
                tiff.pages.first.tags["Compression"].overwrite(34712)  # JPEG 2000, which these are not
    code, report = run(capsys, tmp_path)
    assert (code, len(report["unreadable"])) == (1, 16)
    [refused] = report["refused"]
    assert refused.startswith("None of the training pictures can be read: The picture ")
    assert refused.removeprefix("None of the training pictures can be read: ") in report["unreadable"]


def test_data_in_memory_are_checked_too(capsys):
    code, report = run(capsys, "digits")
    assert (code, report["num_pictures"], report["modes"]) == (0, 1797, {"L": 1797})
    assert report["suggestions"] == []


def test_the_second_time_only_what_changed_is_read(parts, monkeypatch):
    read = []

    def counting(picture):
        read.append(str(picture))
        return examine_picture(picture)

    monkeypatch.setattr(examine, "examine", counting)
    first = check_data(str(parts), workers=0)
    assert len(read) == 72
    read.clear()
    second = check_data(str(parts), workers=0)
    assert read == []
    assert second["num_known_before"] == 72
    for report in (first, second):
        del report["seconds"], report["num_known_before"]
    assert first == second
    changed = parts / "train" / "dog" / "0.png"
    Image.new("RGB", (9, 9)).save(changed)
    check_data(str(parts), workers=0)
    assert read == [str(changed)]


def test_what_could_not_be_read_is_read_again(parts):
    (parts / "val" / "cat" / "3.png").write_text("text")  # a package may be installed that knows it
    for num_known in (0, 71, 71):
        report = check_data(str(parts), workers=0)
        assert (report["num_known_before"], len(report["unreadable"])) == (num_known, 1)


def test_a_check_that_was_killed_goes_on_where_it_was(parts, monkeypatch, cache, caplog):
    monkeypatch.setattr(examine, "AT_ONCE", 10)
    num_read = 0

    def until_killed(picture):
        nonlocal num_read
        num_read += 1
        if num_read == 35:
            raise KeyboardInterrupt
        return examine_picture(picture)

    with monkeypatch.context() as patch:
        patch.setattr(examine, "examine", until_killed)
        with pytest.raises(KeyboardInterrupt):
            check_data(str(parts), workers=0)
    [kept] = (cache / "checks").iterdir()
    with kept.open("ab") as stream:
        stream.write(b'["/half a li')  # as kill -9 leaves it
    report = check_data(str(parts), workers=0)
    assert (report["num_known_before"], report["num_pictures"]) == (30, 72)
    assert "is damaged" in caplog.text
    assert check_data(str(parts), workers=0)["num_known_before"] == 72


def test_several_processes_find_what_one_finds(parts, monkeypatch, cache):
    monkeypatch.setattr(examine, "AT_ONCE", 16)
    (parts / "val" / "cat" / "3.png").write_text("text")
    reports = []
    for workers in (0, 2):
        reports.append(check_data(str(parts), workers=workers))
        shutil.rmtree(cache)
    for report in reports:
        assert report.pop("num_known_before") == 0
        del report["seconds"]
    assert reports[0] == reports[1]


def test_the_text_says_what_the_report_has(parts, capsys):
    shutil.copy(parts / "train" / "cat" / "1.png", parts / "test" / "dog" / "copy.png")
    assert main(["data", "check", str(parts), "--workers", "0"]) == 1
    text = capsys.readouterr().out
    for part in (
        "73 pictures",
        "train        24 pictures of 2 classes",
        "1 of them across parts, 1 labelled differently",
    ):
        assert part in text
    assert f"same bytes: {parts}/train/cat/1.png (train, cat), {parts}/test/dog/copy.png (test, dog)" in text
    assert f"comvex train --data {parts} --model.image-size 32" in text


def test_long_lists_are_cut_in_the_text(tmp_path):
    write_pictures(tmp_path, 30)
    for index in range(25):
        (tmp_path / "cat" / f"{index}.png").write_text("text")
    report = check_data(str(tmp_path), workers=0)
    text = check.describe_check(report)
    assert "... and 5 more (--json has all)" in text
    assert len(report["unreadable"]) == 25


def test_what_training_would_refuse_is_said_with_the_counts(tmp_path, capsys):
    write_pictures(tmp_path, 2)
    assert main(["data", "check", str(tmp_path), "--workers", "0"]) == 1
    text = capsys.readouterr().out
    assert f"refused      {tmp_path} has 4 training pictures, of which val_fraction = 0.1 leaves 4 pictures to" in text
    assert "train        4 pictures of 2 classes" in text
    assert "val          0 pictures" in text
    assert "comvex train --data" not in text


def test_a_class_that_training_does_not_have_hides_nothing_else(parts, capsys):
    write_pictures(parts / "test", 3, classes=("emu", "fox"))
    (parts / "val" / "cat" / "3.png").write_bytes(b"")
    code, report = run(capsys, parts)
    assert code == 1
    assert report["refused"] == [
        f"The folder {parts / 'test'} has the class {name!r}, which the training pictures do not have."
        for name in ("emu", "fox")
    ]
    assert report["unreadable"] == [f"The picture {parts / 'val' / 'cat' / '3.png'} cannot be read: it is empty."]
    assert report["parts"]["test"]["classes"] == {"cat": 12, "dog": 12}


def test_a_label_that_training_rows_do_not_have_hides_nothing_else(tmp_path, capsys):
    write_pictures(tmp_path, 20)
    rows = [f"{name}/{index}.png,{name},train" for name in ("cat", "dog") for index in range(18)]
    rows += ["cat/18.png,emu,test", "cat/19.png,emu,test", "dog/18.png,fox,val", "dog/19.png,dog,test"]
    (tmp_path / "x.csv").write_text("\n".join(["path,label,split", *rows, "gone.png,cat,test"]))
    code, report = run(capsys, tmp_path / "x.csv")
    assert code == 1
    assert report["refused"] == [
        f"Row {row} of {tmp_path / 'x.csv'} has the label {label!r}, which no training row has."
        for row, label in ((38, "emu"), (40, "fox"))
    ]
    assert report["unreadable"] == [f"There is no picture {tmp_path / 'gone.png'}."]
    assert {name: part["num_pictures"] for name, part in report["parts"].items()} == {"train": 32, "val": 4, "test": 2}


def test_pictures_without_training_pictures_are_checked_too(parts, capsys):
    shutil.rmtree(parts / "train")
    code, report = run(capsys, parts)
    assert (code, report["num_pictures"]) == (1, 48)
    assert report["refused"] == [
        f"The data set {parts} has no training pictures: only comvex evaluate can do without."
    ]  # fmt: skip


def test_unreadable_pictures_are_sorted_by_name_whatever_their_part(tmp_path, capsys):
    write_pictures(tmp_path, 20)
    for name in ("cat", "dog"):
        for index in range(20, 30):
            (tmp_path / name / f"{index}.png").write_text("text" if index % 2 else "")
    _, report = run(capsys, tmp_path)
    named = [(name, index) for name in ("cat", "dog") for index in range(20, 30)]
    assert report["unreadable"] == [
        f"The picture {tmp_path / name / f'{index}.png'} cannot be read: "
        f"{'it is in no picture format that Pillow knows' if index % 2 else 'it is empty'}."
        for name, index in named
    ]


def test_what_may_not_be_meant_so_is_noted(tmp_path, capsys):
    write_pictures(tmp_path, 20)
    rows = [f"{name}/{index}.png,{name}" for name in ("cat", "dog") for index in range(20)]
    rows[4] = "cat/4.png,"
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *rows]))
    assert main(["data", "check", str(tmp_path / "x.csv"), "--workers", "0"]) == 0
    note = f"note         {tmp_path / 'x.csv'} is multi-label, because row 6 has no label (1 of 40 rows)."
    assert note in capsys.readouterr().out.splitlines()


def test_what_is_no_data_set_is_refused(capsys, tmp_path):
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2
    assert "There is no data set" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--workers", "-1"]) == 2
