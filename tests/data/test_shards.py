"""WebDataset shards, written with tarfile."""

import io
import json
import pickle
import tarfile

import pytest
from PIL import Image

from comvex.data import shards
from comvex.data.sources import open_data
from comvex.errors import UserError


def encoded(index, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (index, 100, 200)).save(stream, kind)
    return stream.getvalue()


def write_shard(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(numbers, *, label=lambda index: str(index % 2)):
    """The members of samples: the number of the picture is its red value."""
    for index in numbers:
        yield f"{index:05d}.png", encoded(index)
        yield f"{index:05d}.cls", label(index).encode()


def reds(part):
    """The number that each picture shows."""
    return [part.read(index, channels=3).getpixel((0, 0))[0] for index in range(len(part))]


def test_any_sample_is_read_from_the_middle_of_its_shard(tmp_path):
    for shard in range(3):
        write_shard(tmp_path / f"pets-{shard:03d}.tar", samples(range(20 * shard, 20 * shard + 20)))
    data = open_data(f"wds/{tmp_path}/pets-{{000..002}}.tar")
    assert (data.name, data.classes) == ("pets", ("0", "1"))
    shown = {}
    for part in (data.train, data.val, data.test):
        for red, label in zip(reds(part), part.labels, strict=True):
            shown[red] = label
    assert shown == {index: index % 2 for index in range(60)}
    assert len(data.test) == 12
    assert data.train.name(0).endswith(".png")
    again = pickle.loads(pickle.dumps(data.train))  # as a worker process gets it
    assert reds(again) == reds(data.train)
    assert again.fingerprint() == data.train.fingerprint()


def test_shards_of_a_folder_are_parts_by_their_names(tmp_path):
    write_shard(tmp_path / "train-0.tar", samples(range(10)))
    write_shard(tmp_path / "train-1.tar", samples(range(10, 20)))
    write_shard(tmp_path / "validation.tar", [])
    (tmp_path / "validation.tar").unlink()
    write_shard(tmp_path / "val.tar", samples(range(20, 26)))
    write_shard(tmp_path / "test-0.tar", samples(range(30, 33)))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = open_data(f"wds/{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert [reds(part) for part in (data.train, data.val, data.test)] == [
        list(range(20)), list(range(20, 26)), [30, 31, 32],
    ]  # fmt: skip


def test_labels_are_words_or_in_json_and_numbers_sort_as_numbers(tmp_path):
    members = []
    for index in range(20):
        label = ("größer", "klein")[index % 2]
        members += [
            (f"x/{index}.jpg", encoded(index, "JPEG")),
            (f"x/{index}.json", json.dumps({"label": label}).encode()),
        ]
    write_shard(tmp_path / "words.tar", members)
    assert open_data(f"wds/{tmp_path}/words.tar").classes == ("größer", "klein")
    write_shard(tmp_path / "numbers.tar", samples(range(40), label=lambda index: str((2, 10)[index % 2])))
    data = open_data(f"wds/{tmp_path}/numbers*.tar")
    assert data.classes == ("2", "10")
    assert all(label == red % 2 for red, label in zip(reds(data.train), data.train.labels, strict=True))


def test_the_second_time_no_shard_is_searched_unless_it_changed(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(shards, "SMALLEST_CACHED", 1)
    file = tmp_path / "a.tar"
    write_shard(file, samples(range(20)))
    first = open_data(f"wds/{file}")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "scan_shard", None)  # it would fail
        assert reds(open_data(f"wds/{file}").train) == reds(first.train)
    write_shard(file, samples(range(100, 130)))
    changed = open_data(f"wds/{file}")
    assert sorted(reds(changed.train) + reds(changed.val) + reds(changed.test)) == list(range(100, 130))


def test_a_damaged_picture_is_named_and_others_are_read(tmp_path):
    members = list(samples(range(20)))
    members[6] = ("00003.png", b"no picture")
    write_shard(tmp_path / "a.tar", members)
    data = open_data(f"wds/{tmp_path}/a.tar")
    part, index = next(
        (part, index)
        for part in (data.train, data.val, data.test)
        for index in range(len(part))
        if part.name(index).endswith("00003.png")
    )
    with pytest.raises(UserError, match=r"a\.tar:00003\.png cannot be read"):
        part.read(index, channels=3)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", b""), ("2.png", b""), ("2.cls", b"1")], "The sample 1 of the shard .* has no label"),
        ([("1.png", b""), ("1.jpg", b""), ("1.cls", b"1")], "The sample 1 of the shard .* has two pictures"),
        ([("1.png", b""), ("1.cls", b"1"), ("1.json", b'{"label": 2}')], "The sample 1 .* has two labels, '1' and '2'"),
        ([("1.png", b""), ("1.json", b'{"label": 2}'), ("1.cls", b"1")], "The sample 1 .* has two labels, '2' and '1'"),
        ([("1.png", b""), ("1.cls", b"1")], "have pictures of 1 class: at least two"),
        ([("1.png", b""), ("1.json", b"{")], "cannot be read as a tar file|has no label|cannot be read"),
        ([], "have pictures of 0 class"),
    ],
)
def test_shards_that_cannot_be_trained_on_are_refused_by_name(tmp_path, members, message):
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        open_data(f"wds/{tmp_path}/a.tar")
    assert "a.tar" in str(caught.value)


@pytest.mark.parametrize("content", [b'{"caption": "x"}', b'{"label": null}', b'{"label": 1}', b"[]"])
def test_json_beside_cls_may_lack_the_label_or_repeat_it(tmp_path, content):
    cls, described = ("1.cls", b"1"), ("1.json", content)
    for members in ([cls, described], [described, cls]):
        write_shard(tmp_path / "a.tar", [("1.png", encoded(1)), *members])
        assert [label for _, label in shards.index_shard(tmp_path / "a.tar")] == ["1"]


def test_shards_that_are_named_and_missing_are_told(tmp_path):
    for shard in (0, 2):
        write_shard(tmp_path / f"pets-{shard:03d}.tar", samples(range(4 * shard, 4 * shard + 4)))
    with pytest.raises(UserError, match=r"^2 of the 4 shards .* are missing: .*pets-001\.tar, .*pets-003\.tar\.$"):
        open_data(f"wds/{tmp_path}/pets-{{000..003}}.tar")
    with pytest.raises(UserError, match=r"^98 of the 100 shards .* are missing: .*pets-005\.tar and 94 more\.$"):
        open_data(f"wds/{tmp_path}/pets-{{000..099}}.tar")
    with pytest.raises(UserError, match=r"^1 of the 2 shards .* are missing: .*dogs-\*\.tar\.$"):
        open_data(f"wds/{tmp_path}/{{pets,dogs}}-*.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("odd[1].tar", ["odd[1].tar"]),
        ("odd[1]*.tar", ["odd[1].tar"]),
        ("o{dd,ther}[1].tar", ["odd[1].tar", "other[1].tar"]),
        ("o*1*.tar", ["odd1.tar", "odd[1].tar", "other[1].tar"]),
    ],
)
def test_in_a_pattern_only_stars_and_braces_stand_for_something_else(tmp_path, pattern, names):
    for name in ("odd[1].tar", "other[1].tar", "odd1.tar"):
        (tmp_path / name).touch()
    assert shards.find_shards(f"{tmp_path}/{pattern}") == {"train": [tmp_path / name for name in names]}


def test_a_name_that_looks_like_markup_is_a_name(tmp_path):
    (tmp_path / "m[").mkdir()
    write_shard(tmp_path / "m[" / "b].tar", samples(range(20)))
    assert open_data(f"wds/{tmp_path}/m[/b].tar").classes == ("0", "1")


def test_what_is_no_shard_is_refused(tmp_path):
    (tmp_path / "x.tar").write_text("no tar file at all, but long enough for one block" * 20)
    with pytest.raises(UserError, match=r"x\.tar cannot be read as a tar file"):
        open_data(f"wds/{tmp_path}/x.tar")
    with pytest.raises(UserError, match="There are no shards"):
        open_data(f"wds/{tmp_path}/y-{{0..3}}.tar")
    with pytest.raises(UserError, match=r"no shards for training: they must be called train\*\.tar"):
        open_data(f"wds/{tmp_path}")


def test_classes_of_a_part_that_training_lacks_are_refused(tmp_path):
    write_shard(tmp_path / "train.tar", samples(range(10)))
    write_shard(tmp_path / "val.tar", samples(range(3), label=lambda _: "7"))
    with pytest.raises(UserError, match=r"The val shards of .* have the class '7'"):
        open_data(f"wds/{tmp_path}")
    write_shard(tmp_path / "val.tar", samples(range(4)))
    (tmp_path / "classes.txt").write_text("only one\n")
    with pytest.raises(UserError, match="has 1 lines, but there is a class 1"):
        open_data(f"wds/{tmp_path}")
