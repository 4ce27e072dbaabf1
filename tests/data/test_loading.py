"""Batches: what is in them depends on the seed and the step alone."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comvex.data.augmentation import Augmentation
from comvex.data.loading import (
    EvaluationPictures,
    Key,
    StepOrder,
    TrainingPictures,
    epoch_order,
    evaluation_loader,
    training_loader,
)
from comvex.data.sources import PictureSet, open_data
from comvex.data.training_transforms import training_transform
from comvex.data.transforms import Preprocessing

PREPROCESSING = Preprocessing((8, 8), 1, (0.3,), (0.4,))


@given(
    num=st.integers(1, 60),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**40),
    stop=st.integers(1, 40),
    start=st.integers(0, 40),
)
def test_a_resumed_order_is_the_rest_of_the_whole_order(num, batch, seed, stop, start):
    start = min(start, stop)
    whole = list(StepOrder(num, batch, seed=seed, start=0, stop=stop))
    assert list(StepOrder(num, batch, seed=seed, start=start, stop=stop)) == whole[start:]
    assert len(whole) == stop


@given(num=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_an_epoch_shows_no_picture_twice_and_leaves_out_less_than_a_batch(num, batch, seed):
    steps = max(1, num // batch)
    shown = [key for step in StepOrder(num, batch, seed=seed, start=steps, stop=2 * steps) for key in step]
    assert {key.epoch for key in shown} == {1}
    indices = [key.number for key in shown]
    assert {key.repeat for key in shown} == {0}
    assert len(set(indices)) == len(indices) > num - batch
    assert set(indices) <= set(range(num))


@given(
    num=st.integers(1, 60),
    batch=st.integers(1, 20),
    accumulate=st.integers(1, 4),
    num_ranks=st.integers(1, 4),
    repeats=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_the_pieces_of_all_processes_are_the_batch_of_one_process(num, batch, accumulate, num_ranks, repeats, seed):
    def order(**cut):
        return list(StepOrder(num, batch, seed=seed, start=0, stop=7, repeats=repeats, **cut))

    whole = order()
    pieces = [order(accumulate=accumulate, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for step, keys in enumerate(whole):
        of_step = [pieces[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(num_ranks)]
        assert [key for piece in of_step for key in piece] == keys
        assert max(map(len, of_step)) - min(map(len, of_step)) <= 1


@given(num=st.integers(1, 60), repeats=st.integers(1, 5), epoch=st.integers(0, 9))
def test_repeated_augmentation_shows_each_picture_of_its_share_that_often(num, repeats, epoch):
    shown, before = epoch_order(num, seed=3, epoch=epoch, repeats=repeats)
    assert len(shown) == num
    whole = num // repeats
    assert len(set(shown[: whole * repeats].tolist())) == whole
    assert before[: whole * repeats].reshape(whole, repeats).tolist() == [list(range(repeats))] * whole


@given(weights=st.lists(st.floats(0.05, 20), min_size=2, max_size=40), epoch=st.integers(0, 9))
def test_balanced_order_shows_each_picture_its_share_of_times_rounded(weights, epoch):
    num = len(weights)
    shown, before = epoch_order(num, seed=1, epoch=epoch, weights=np.array(weights))
    counts = np.bincount(shown, minlength=num)
    expected = np.array(weights) / np.sum(weights) * num
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    for index in range(num):
        assert sorted(before[shown == index]) == list(range(counts[index]))


def batches(workers, *, seed=5, start=0):
    pictures = open_data("digits").train
    transform = training_transform(PREPROCESSING, Augmentation(horizontal_flip=0.5), mirrored=False)
    order = StepOrder(len(pictures), 32, seed=seed, start=start, stop=45)
    dataset = TrainingPictures(pictures, transform, channels=1, seed=seed)
    return list(training_loader(dataset, order, workers=workers, pin_memory=False))


def test_the_number_of_workers_and_where_one_starts_change_nothing():
    alone = batches(0)
    for others, skipped in ((batches(2), 0), (batches(0, start=41), 41)):
        assert len(others) == 45 - skipped
        for one, other in zip(alone[skipped:], others, strict=True):
            assert torch.equal(one.pictures, other.pictures)
            assert torch.equal(one.labels, other.labels)


def test_a_picture_looks_different_in_another_epoch_and_for_another_seed():
    pictures = open_data("digits").train
    transform = training_transform(PREPROCESSING, Augmentation(), mirrored=False)
    one, other = (TrainingPictures(pictures, transform, channels=1, seed=seed) for seed in (1, 2))
    assert torch.equal(one[Key(3, 7, 0)].picture, one[Key(3, 7, 0)].picture)
    assert not torch.equal(one[Key(3, 7, 0)].picture, one[Key(4, 7, 0)].picture)
    assert not torch.equal(one[Key(3, 7, 0)].picture, one[Key(3, 7, 1)].picture)
    assert not torch.equal(one[Key(3, 7, 0)].picture, other[Key(3, 7, 0)].picture)


def test_loading_a_picture_leaves_the_global_generator_as_it_was():
    pictures = open_data("digits").train
    dataset = TrainingPictures(
        pictures, training_transform(PREPROCESSING, Augmentation(), mirrored=True), channels=1, seed=1
    )
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[Key(0, 0, 0)]
    assert torch.equal(torch.rand(3), expected)


def test_unreadable_pictures_are_left_out_of_their_batch_and_named(tmp_path):
    files = []
    for index in range(5):
        files.append(tmp_path / f"{index}.png")
        Image.new("L", (8, 8), 40 * index).save(files[-1])
    files[3].write_text("no picture")
    pictures = PictureSet(files, np.arange(5))
    transform = PREPROCESSING.transform()
    [batch] = evaluation_loader(pictures, transform, channels=1, batch_size=8, workers=0)
    assert batch.labels.tolist() == [0, 1, 2, 4]
    assert batch.pictures.shape == (4, 1, 8, 8)
    [message] = batch.unreadable
    assert str(files[3]) in message

    [empty] = evaluation_loader(
        PictureSet(files[3:4], np.zeros(1, np.int64)), transform, channels=1, batch_size=8, workers=0
    )
    assert len(empty.labels) == 0
    assert len(empty.unreadable) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_each_picture_once_in_order(workers):
    pictures = open_data("digits").test
    transform = PREPROCESSING.transform()
    loader = evaluation_loader(pictures, transform, channels=1, batch_size=50, workers=workers)
    labels = torch.cat([batch.labels for batch in loader])
    np.testing.assert_array_equal(labels.numpy(), pictures.labels)
    assert len(EvaluationPictures(pictures, transform, channels=1)) == 360


def test_signals_to_all_processes_of_a_run_leave_its_loaders_reading_however_they_started():
    """Only by fork do they inherit what the run does with a signal."""
    data = open_data("digits")
    loader = evaluation_loader(data.part("test"), PREPROCESSING.transform(), channels=1, batch_size=36, workers=1)
    loader.multiprocessing_context = "forkserver"
    batches = iter(loader)
    first = next(batches)
    [reader] = batches._workers  # pyright: ignore[reportAttributeAccessIssue]
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(reader.pid, number)
    assert len(first.labels) + sum(len(batch.labels) for batch in batches) == 360
