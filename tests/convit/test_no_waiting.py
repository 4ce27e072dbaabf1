"""Nothing in a forward or backward pass makes a GPU wait for the host, as far as the operations called can tell.

The passes run on PyTorch's meta device, whose tensors have shapes but no values: whatever asks for a value fails, as
does what copies to another device, and what is made on another device is found. No GPU is needed, no time is measured.
"""

import pytest
import torch
import torch.nn.functional as F
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


def pass_through(config: ConViTConfig, *, height: int, width: int, training: bool = True) -> None:
    """Forward and backward of a loss; every parameter that is trained gets a gradient.

    The default device stays the CPU, as it is for users: what a pass makes without saying where would be found.
    """
    with torch.device("meta"):
        model = ConViTWithLinearClassifier(config).train(training)
        pictures = torch.zeros(2, config.image_channel, height, width)
        labels = torch.zeros(2, dtype=torch.long)
    with StaysOnItsDevice():
        F.cross_entropy(model(pictures), labels).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("training", [True, False])
def test_no_preset_waits_in_forward_or_backward(preset, training):
    rates = {"drop_path": 0.1, "ff_dropout": 0.1, "attention_dropout": 0.1, "token_dropout": 0.1}
    config = ConViTConfig.from_preset(preset, **rates)
    pass_through(config, height=224, width=224, training=training)


def test_pictures_of_another_size_than_the_weights_do_not_wait_either():
    pass_through(ConViTConfig.ConViT_Ti(), height=320, width=256)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3),
    ],
    ids=["item", "bool", "nonzero", "cpu", "made on the CPU"],
)
def test_what_would_wait_is_found(wait):
    with StaysOnItsDevice(), pytest.raises((AssertionError, RuntimeError)):
        wait(torch.zeros(3, device="meta"))
