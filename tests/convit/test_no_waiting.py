"""Nothing in a forward or backward pass makes a GPU wait for the host, as far as the operations called can tell.

The passes run on PyTorch's meta device, whose tensors have shapes but no values: whatever asks for a value fails, as
does what copies to another device, and what is made on another device, or of Python's numbers, is found. No GPU is
needed, no time is measured.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.config import PRESETS


class StaysOnItsDevice(TorchDispatchMode):
    """Fails where an operation makes a tensor elsewhere than on the meta device; single numbers are passed along."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(returned) if isinstance(value, torch.Tensor)]
        for tensor in made:
            assert tensor.is_meta or tensor.dim() == 0, f"{func} makes a tensor on {tensor.device}"
        return returned


class MadeOfNoValues(TorchFunctionMode):
    """Fails where a tensor is made of values that the host has; operations do not show it, as they get the tensor."""

    COPYING = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in self.COPYING, f"{func.__name__} copies from the host"
        return func(*args, **(kwargs or {}))


def pass_through(config: ConViTConfig, *sizes: tuple[int, int], training: bool = True) -> None:
    """Forward and backward of a loss, of pictures of one (height, width), or of a list of several sizes.

    Every parameter that is trained gets a gradient. The default device stays the CPU, as it is for users: what a pass
    makes without saying where would be found.
    """
    with torch.device("meta"):
        model = ConViTWithLinearClassifier(config).train(training)
        pictures = [torch.zeros(config.image_channel, *size) for size in sizes]
        batch = pictures if len(sizes) > 1 else torch.stack(2 * pictures)
        labels = torch.zeros(len(batch), dtype=torch.long)
    with StaysOnItsDevice(), MadeOfNoValues():
        F.cross_entropy(model(batch), labels).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("training", [True, False])
def test_no_preset_waits_in_forward_or_backward(preset, training):
    rates = {"drop_path": 0.1, "ff_dropout": 0.1, "attention_dropout": 0.1, "token_dropout": 0.1}
    config = ConViTConfig.from_preset(preset, **rates)
    pass_through(config, (224, 224), training=training)


def test_pictures_of_another_size_than_the_weights_do_not_wait_either():
    pass_through(ConViTConfig.ConViT_Ti(), (320, 256))


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("position_embedding", [True, False])
def test_a_list_of_pictures_of_different_sizes_does_not_wait_either(global_pool, position_embedding):
    config = ConViTConfig.ConViT_Ti(
        global_pool=global_pool, position_embedding=position_embedding, pad_to_patch=True
    )  # fmt: skip
    pass_through(config, (224, 224), (96, 300), (224, 224), (32, 16))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1, 2, 3], device=x.device),
        lambda x: torch.as_tensor(np.ones(3), device=x.device),
        lambda x: x.new_tensor([1, 2, 3]),
    ],
    ids=["item", "bool", "nonzero", "cpu", "made on the CPU", "mask", "tensor", "as_tensor", "new_tensor"],
)
def test_what_would_wait_is_found(wait):
    with StaysOnItsDevice(), MadeOfNoValues(), pytest.raises((AssertionError, RuntimeError)):
        wait(torch.zeros(3, device="meta"))
