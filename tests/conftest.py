"""What every test shares: one thread, a fixed seed, and property tests that draw the same cases on every run."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn

from commands import start_server
from comvex.training.recipe import Architecture, Recipe
from comvex.training.step import Learner, StepResult
from comvex.training.trainer import train
from made_pictures import multi_label_recipe, shape_pictures

# Small models: a second thread costs more than it brings, most of all beside another worker's tests, in the processes
# that tests start no less than in this one.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
start_server()
settings.register_profile("deterministic", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchanged() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """``with unchanged(module): ...`` fails if the block changes a tensor or an attribute of the module."""

    def attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
        return {
            name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(part).items()}
            for name, part in module.named_modules()
        }

    @contextmanager
    def watch(module: nn.Module) -> Iterator[None]:
        tensors = {name: (tensor.clone(), tensor._version) for name, tensor in module.state_dict().items()}
        before = attributes(module)
        yield
        assert attributes(module) == before
        assert module.state_dict().keys() == tensors.keys()
        for name, tensor in module.state_dict().items():
            value, version = tensors[name]
            assert torch.equal(tensor, value), name
            assert tensor._version == version, name

    return watch


@pytest.fixture
def broken_off_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """``with broken_off_at(12): train(...)`` ends the training before that step, without a checkpoint of its own."""
    original = Learner.step

    @contextmanager
    def broken_off(at: int) -> Iterator[None]:
        def step(learner: Learner, number: int, *arguments: Any, **options: Any) -> StepResult:
            if number == at:
                raise KeyboardInterrupt
            return original(learner, number, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "step", step)
            with pytest.raises(KeyboardInterrupt):
                yield

    return broken_off


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a very small ConViT on the digits; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "small"
    model = Architecture(dim=32, num_local_layers=1, num_nonlocal_layers=1)
    train(Recipe(model=model, epochs=10, batch_size=32, learning_rate=3e-3), out)
    return out


@pytest.fixture(scope="session")
def multi_label_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on made pictures of 256 x 128 pixels with several labels each; not to be changed."""
    folder = tmp_path_factory.mktemp("multi-label")
    data = shape_pictures(folder / "pictures", num=200)
    train(multi_label_recipe(data), folder / "run")
    return folder / "run"


@pytest.fixture
def small_run_copy(small_run: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(small_run, tmp_path / "copy"))
