"""Checkpoints: whole or not at all, verified when read."""

import pytest
import torch
from torch import nn

from comvex.training.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    load_checkpoint,
    load_latest,
    save_checkpoint,
    set_damaged_aside,
)
from comvex.training.step import optimizer_tensors


def make(step: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder, step: int, *, keep: int = 2, spare: int | None = None) -> nn.Linear:
    model, optimizer = make(step)
    tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    save_checkpoint(folder, Checkpoint(step, tensors, {"loss": 0.1 + step}), keep=keep, spare=spare)
    return model


def test_what_is_saved_is_what_is_loaded(tmp_path):
    model = save(tmp_path, 7)
    loaded = load_checkpoint(tmp_path / "step-00000007")
    assert loaded.step == 7
    assert loaded.state == {"loss": 7.1}
    assert torch.equal(loaded.tensors["model"]["weight"], model.weight)
    assert loaded.tensors["optimizer"].keys() == {
        f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")
    }


def test_the_newest_are_kept_and_nothing_else(tmp_path):
    for step in (5, 10, 100, 15, 101):
        save(tmp_path, step, spare=10)
    assert [int(folder.name[5:]) for folder in checkpoint_folders(tmp_path)] == [10, 100, 101]
    save(tmp_path, 102, keep=1, spare=101)
    assert [int(folder.name[5:]) for folder in checkpoint_folders(tmp_path)] == [101, 102]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "endless nesting"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, name, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-00000002" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-9])
    elif damage == "endless nesting":
        file.write_text("[" * 100_000)
    else:
        file.unlink()
    loaded, problems = load_latest(tmp_path)
    assert loaded.step == 1
    [problem] = problems
    assert "step-00000002" in problem
    save(tmp_path, 2)  # the run goes on and comes to the same step again
    loaded, problems = load_latest(tmp_path)
    assert (loaded.step, problems) == (2, [])


def test_damaged_checkpoints_set_aside_do_not_push_out_new_ones(tmp_path):
    for step in (1, 8, 9):
        save(tmp_path, step, keep=9)
    for step in (8, 9):
        (tmp_path / f"step-{step:08d}" / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "step-00000060.bak").mkdir()
    set_damaged_aside(tmp_path, after=1)
    save(tmp_path, 2, keep=1)
    assert load_latest(tmp_path)[0].step == 2
    assert (tmp_path / "damaged-step-00000009").is_dir()


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.unfinished")
    assert load_latest(tmp_path) == (None, [])
    save(tmp_path, 1)
    assert load_latest(tmp_path)[0].step == 1
