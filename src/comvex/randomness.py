"""Randomness as a function: every random choice comes from a seed derived from what it is for, never from a state."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all the parts, such as (run seed, purpose, epoch, index), and on nothing else."""
    text = " ".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it all that libraries draw from starts at ``seed``; afterwards it is as it was before.

    That is torch's CPU generator, Python's ``random`` and NumPy's global generator (timm's RandAugment, Mixup and
    RandomErasing draw from the last two); only a normal deviate that NumPy holds in reserve is lost. It takes about 30
    microseconds.
    """
    generator = torch.default_generator
    torch_state, python_state = generator.get_state(), random.getstate()
    numpy_generator = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]
    generator.manual_seed(seed)
    random.seed(seed)
    # Another generator in its place and back: to copy NumPy's state would take longer than all the rest
    np.random.set_bit_generator(np.random.Philox(key=seed))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        generator.set_state(torch_state)
        random.setstate(python_state)
        np.random.set_bit_generator(numpy_generator)  # pyright: ignore[reportAttributeAccessIssue]
