"""What every test shares: two threads, a fixed seed, and property tests that draw the same cases on every run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(2)
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
