"""Small random ConViTs and weights files of them in every layout, for the tests of weights."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier

State = dict[str, Tensor]


SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "dim": 16,
    "heads": 4,
    "num_local_layers": 2,
    "num_nonlocal_layers": 1,
    "ff_dim": 24,
}


def small_config(**arguments: Any) -> ConViTConfig:
    """An architecture as published, in small: nothing of it is a preset's."""
    return ConViTConfig.ConViT_Ti(**SMALL | {"num_classes": 5} | arguments)


def random_model(config: ConViTConfig | None = None, *, seed: int = 1) -> ConViTWithLinearClassifier:
    """Every tensor random, the positional bias too."""
    generator = torch.Generator().manual_seed(seed)
    model = ConViTWithLinearClassifier(config or small_config()).eval()
    for tensor in model.state_dict().values():
        nn.init.normal_(tensor, std=0.3, generator=generator)
    return model


def random_state(config: ConViTConfig | None = None, *, seed: int = 1) -> State:
    return {name: tensor.clone() for name, tensor in random_model(config, seed=seed).state_dict().items()}


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def official_training_checkpoint(state: State) -> dict[str, Any]:
    """What the official training script saves beside the model."""
    other = {name: tensor + 1 for name, tensor in state.items()}
    return {
        "model": state,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "lr_scheduler": {"base_values": [0.1], "metric": None},
        "epoch": 7,
        "model_ema": other,
        "args": argparse.Namespace(lr=0.1, data_path="/data", epochs=300),
    }


WRITERS: dict[str, tuple[str, Callable[[State, Path], None]]] = {
    # name: (layout it is in, how it is written)
    "official.pth": ("official", lambda state, file: torch.save({"model": state}, file)),
    "official-ddp.pth": ("official", lambda state, file: torch.save({"model": with_prefix(state, "module.")}, file)),
    "official-training.pth": ("official", lambda state, file: torch.save(official_training_checkpoint(state), file)),
    "official-legacy.pth": (
        "official",
        lambda state, file: torch.save({"model": state}, file, _use_new_zipfile_serialization=False),
    ),
    "timm.pth": ("timm", lambda state, file: torch.save(state, file)),
    "pytorch_model.bin": ("timm", lambda state, file: torch.save(state, file)),
    "timm.safetensors": ("timm", lambda state, file: save_file(state, file)),
    "timm-training.pth.tar": ("timm", lambda state, file: torch.save({"state_dict": state, "epoch": 3}, file)),
    "compiled.pth": ("timm", lambda state, file: torch.save(with_prefix(state, "_orig_mod."), file)),
    "safetensors-called.pth": ("timm", lambda state, file: save_file(state, file)),
    "pickle-called.safetensors": ("timm", lambda state, file: torch.save(state, file)),
}


def write(name: str, state: State, folder: Path) -> Path:
    """A weights file of one of the ``WRITERS``."""
    file = folder / name
    WRITERS[name][1](state, file)
    return file


def raw_tensors(file: Path) -> State:
    """The tensors of a file as PyTorch or safetensors alone read them."""
    if file.read_bytes()[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(file)
    content = torch.load(file, weights_only=True)
    return content.get("model", content)
