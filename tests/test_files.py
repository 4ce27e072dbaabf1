"""Files that are replaced as a whole: who may read them, and what an error says of them."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comvex.convit.weights import save_tensors
from comvex.errors import UserError
from comvex.files import GrowingTable, check_writable, read_table, replace_file, write_table, write_text


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_weights_and_texts_can_be_read_by_whom_the_umask_says(umask, tmp_path):
    save_tensors({"gate": torch.zeros(2)}, tmp_path / "weights.safetensors")
    write_text(tmp_path / "state.json", "{}")
    for file in tmp_path.iterdir():
        assert oct(file.stat().st_mode & 0o777) == oct(0o666 & ~umask), file.name
    assert len(list(tmp_path.iterdir())) == 2


def test_processes_of_one_number_do_not_write_to_the_same_place(tmp_path):
    """In containers that share a disk: each has the whole of its own text there until it is done."""
    file = tmp_path / "report.md"
    with replace_file(file) as one:
        one.write_text("one")
        with replace_file(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_table_that_grows_is_the_one_that_is_written_at_once(tmp_path):
    rows: list[dict[str, Any]] = [{"epoch": epoch, "gate": epoch / 3, "note": None} for epoch in range(5)]
    write_table(tmp_path / "whole.csv", rows)
    growing = GrowingTable(tmp_path / "growing.csv", rows[:2])
    growing.write([])
    assert not growing.file.exists()
    growing.write(rows[2:4])
    assert read_table(growing.file) == rows[:4]
    growing.write(rows[4:])
    assert growing.file.read_text() == (tmp_path / "whole.csv").read_text()
    assert growing.rows == rows


def test_an_error_of_writing_names_the_file_that_was_to_be_written(tmp_path):
    file = tmp_path / "table.csv"
    with pytest.raises(OSError, match="No space") as full, replace_file(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.filename == str(file)
    longest = tmp_path / ("x" * 250)  # its temporary name is too long
    with pytest.raises(OSError, match="name too long") as too_long:
        write_text(longest, "")
    assert too_long.value.filename == str(longest)
    with pytest.raises(FileNotFoundError) as other, replace_file(file):
        (tmp_path / "missing").read_text()
    assert other.value.filename == str(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_whether_a_folder_can_be_written_to_is_seen_without_making_it(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder", Path("/proc/folder")):
        with pytest.raises(UserError, match=f"^The folder {folder} cannot be written to .*: choose another --out.$"):
            check_writable(folder)
