"""What a run says when the machine gives out."""

import errno
import multiprocessing.resource_sharer
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset

from comvex.errors import UserError
from comvex.training.failure import explain_failures
from comvex.training.recipe import Recipe


def test_a_run_without_memory_says_what_helps_and_which_checkpoint_there_is(tmp_path):
    helps = r"batches of 64 pictures: --accumulate 2 .* --batch-size .* needs less; "
    with pytest.raises(ValueError, match=helps + "there is no checkpoint yet"), explain_failures(Recipe(), tmp_path):
        raise MemoryError
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    kept = "the checkpoint of step 7 is kept"
    with pytest.raises(ValueError, match=helps + kept), explain_failures(Recipe(), tmp_path):
        raise MemoryError


@pytest.mark.parametrize("words", ["[Errno 24] Too many open files", "received 0 items of ancdata"])
def test_a_run_that_may_open_no_more_files_says_what_helps(words, tmp_path):
    """The second is what PyTorch says when it may not take over a loader's tensors."""
    told = r"Too many files are open: .* no checkpoint"
    with pytest.raises(ValueError, match=told), explain_failures(Recipe(), tmp_path):
        raise RuntimeError(words)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "make it writable"), (errno.EACCES, "make it writable")],
)
def test_a_folder_that_cannot_be_written_to_says_what_helps_there(number, remedy, tmp_path):
    told = rf"^The run folder {tmp_path} cannot be written to \({os.strerror(number)}\): "
    first = told + f"there is no checkpoint yet; {remedy} or choose another --out.$"
    with pytest.raises(UserError, match=first), explain_failures(Recipe(), tmp_path):
        raise OSError(number, os.strerror(number))
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    later = told + f"the checkpoint of step 7 is kept; {remedy} and repeat the command, which goes on from there.$"
    with pytest.raises(UserError, match=later), explain_failures(Recipe(), tmp_path):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")


class StopsHandingOver(Dataset[torch.Tensor]):
    """In a loader process: the second picture ends what hands tensors over, as a process that is dying does."""

    def __init__(self, done: Path) -> None:
        self.done = done

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            time.sleep(1)  # a thread is putting the first picture into the queue
            multiprocessing.resource_sharer.stop(timeout=5)
            self.done.touch()
        return torch.zeros(2)


def test_a_loader_that_dies_while_its_pictures_are_taken_over_is_one_sentence(tmp_path):
    done = tmp_path / "done"
    batches = iter(DataLoader(StopsHandingOver(done), sampler=range(2), num_workers=1))
    deadline = time.monotonic() + 60
    while not done.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = "A process that reads pictures was killed"
    with pytest.raises(ValueError, match=killed), explain_failures(Recipe(), tmp_path):
        next(batches)
    with pytest.raises(FileNotFoundError), explain_failures(Recipe(), tmp_path):
        (tmp_path / "nothing").read_text()
