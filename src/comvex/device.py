"""Which device to compute on."""

import torch

from comvex.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA if there is one, else Apple's MPS, else the CPU.

    Raises ``ValueError`` for another name or for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if name not in available:
        raise UserError(f"device is {name!r}: it must be one of {', '.join(DEVICES)}.")
    if not available[name]:
        raise UserError(f"device is {name!r}, but PyTorch finds none on this machine; 'auto' takes what is there.")
    return torch.device(name)
