"""From the bytes of a weights file to named tensors, and back: safetensors, or a pickle that is opened as data.

Nothing that a pickle names is ever run. What a file is, is seen from its first bytes and from its keys, not from its
name.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from comvex.errors import UserError
from comvex.files import replace_file

WRAPPERS = ("model", "state_dict")
"""Names under which training checkpoints keep the state dict: the official repository's, and timm's."""
EMA_WRAPPERS = ("model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
MARK = "comvex"
"""In the metadata of a safetensors file: ours, so that it must have its config.json."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class TensorFile:
    """The named tensors of a file, without wrapping and prefixes."""

    tensors: dict[str, Tensor]
    layout: str
    """"official" if the state dict was wrapped as {"model": ...}, "timm" if not."""
    metadata: dict[str, str]
    """What a safetensors file says of itself."""
    notes: tuple[str, ...] = ()
    """What a reader may want to know of the file."""


def read_tensor_file(file: Path, *, ema: bool = False) -> TensorFile:
    """The tensors in a weights file; with ``ema`` the averaged ones that a training checkpoint has beside the others.

    Raises ``ValueError`` if the file is damaged, needs code to be run, or holds something else than finite numbers.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise UserError(f"The weights file {file} cannot be read: {error.strerror}.") from error
    if len(start) == 9 and start[8:] == b"{":  # eight bytes of length, then JSON
        tensors, metadata = read_safetensors(file)
        content = TensorFile(tensors, layout="timm", metadata=metadata)
        if ema:
            raise UserError(f"The file {file} has no averaged weights: a safetensors file holds one model's.")
    elif start.startswith((b"PK", b"\x80")):
        content = unwrap(read_pickle(file), file, ema=ema)
    else:
        raise UserError(f"The file {file} holds no weights: it is neither safetensors nor a PyTorch file.")
    check_tensors(content.tensors, file)
    return content


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; raises ``ValueError`` if it is damaged."""
    try:
        with safe_open(file, framework="pt") as content:
            # Names in the file's own order would be alphabetical; the reader brings its own order.
            return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise UserError(f"The file {file} is damaged or no safetensors file: {error}.") from error


def read_pickle(file: Path) -> Any:
    """The content of a PyTorch file, as data: tensors, plain values, and the options of the official training script.

    Raises ``ValueError`` if it is damaged, or to open it would mean to run code that it names.
    """
    try:
        # By its stream, since by its name torch.load would take some files for something else.
        # What it would warn of, it then refuses.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            file.open("rb") as stream,
            warnings.catch_warnings(action="ignore"),
        ):
            return torch.load(stream, map_location="cpu", weights_only=True)
    # A damaged pickle can fail in any way; whatever it was, nothing of it has been used.
    except Exception as error:
        if "eights only" in str(error):
            code = re.search(r"GLOBAL\s+([\w.]+)", str(error))
            raise UserError(
                f"The file {file} is refused: to open it would run code that it names"
                f"{f' ({code[1]})' if code else ''}; weights are data alone. Save the state dict by itself, best as "
                "safetensors."
            ) from error
        for kind in ("TorchScript", "legacy .tar"):  # where PyTorch's own words advise to run the code
            if kind in str(error):
                raise UserError(
                    f"The file {file} is refused: it is a {kind} archive, which only running code would open; save the "
                    "state dict by itself, best as safetensors."
                ) from error
        raise UserError(f"The file {file} is damaged or no PyTorch file: {cause_of(error)}.") from error


def cause_of(error: Exception) -> str:
    """What PyTorch says of a file that it cannot read, up to the advice that follows."""
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return "it ends too early"  # its directory was looked for before its first byte
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return reason[0].split(". ")[0].rstrip(".")


def unwrap(content: Any, file: Path, *, ema: bool) -> TensorFile:
    """The state dict inside what a PyTorch file holds; raises ``ValueError`` if there is none."""
    if not isinstance(content, dict):
        raise UserError(f"The file {file} holds a {type(content).__name__}: weights are a dict of names and tensors.")
    wrapper = next((name for name in (EMA_WRAPPERS if ema else WRAPPERS) if isinstance(content.get(name), dict)), None)
    if ema and wrapper is None:
        raise UserError(f"The file {file} has no averaged weights: no {' or '.join(EMA_WRAPPERS)} is in it.")
    state = content if wrapper is None else content[wrapper]
    notes = []
    beside = [name for name in EMA_WRAPPERS if name in content and name != wrapper]
    if beside:
        notes.append(f"the file also has averaged weights ({beside[0]}), which ema=True takes")
    # Batch counters and other plain values have no place in a ConViT; they are named as unexpected later on.
    return TensorFile(
        strip_prefixes(state, file),
        layout="official" if wrapper == "model" else "timm",
        metadata={},
        notes=tuple(notes),
    )


def strip_prefixes(state: dict[Any, Any], file: Path) -> dict[str, Any]:
    """The state dict without what wrappers put before every name; raises ``ValueError`` if only some names have it."""
    for prefix in PREFIXES:
        with_it = [name for name in state if isinstance(name, str) and name.startswith(prefix)]
        if not with_it:
            continue
        if len(with_it) == len(state):
            return strip_prefixes({name.removeprefix(prefix): value for name, value in state.items()}, file)
        without = [str(name) for name in state if name not in set(with_it)]
        few, verb = (with_it, "have") if len(with_it) <= len(without) else (without, "lack")
        raise UserError(
            f"The file {file} is no file of weights: {len(few)} of its {len(state)} names {verb} the prefix "
            f"{prefix} that must be on all of them or none: {', '.join(few)}."
        )
    return state


def check_tensors(tensors: dict[str, Any], file: Path) -> None:
    """Raises ``ValueError`` for a name that has no dense tensor of finite floating-point numbers."""
    if not tensors:
        raise UserError(f"The file {file} holds no tensors.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, Tensor):
            raise UserError(f"The file {file} is no file of weights: its entry {name!r} is a {type(tensor).__name__}.")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if tensor.dtype not in FLOATS or not dense:
            raise UserError(
                f"The file {file} has {name} as {str(tensor.dtype).removeprefix('torch.')}: weights must be dense "
                "tensors of float16, bfloat16, float32 or float64."
            )
        if tensor.numel() == 0:  # whatever its other sides say: they may be too long to be compared with
            raise UserError(f"The file {file} has {name} of shape {tuple(tensor.shape)}, which has no numbers.")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"The file {file} has {name} of shape {tuple(tensor.shape)}, more than it has numbers for.")
        if not tensor.isfinite().all():
            raise UserError(f"The file {file} has numbers in {name} that are not finite: it is damaged.")


# Writing


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU with storage of their own and no more than they need."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def save_tensors(tensors: Mapping[str, Tensor], file: Path, *, metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file, complete or not at all; returns its SHA-256."""
    with replace_file(file) as temporary:
        # One entry at most: safetensors writes several in an order of chance, and equal weights shall be equal files.
        save_file(plain_tensors(tensors), temporary, metadata=metadata or {"format": "pt"})
        return file_sha256(temporary)
