"""Randomness as a function: every random choice comes from a seed derived from what it is for, never from a state."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all the parts, such as (run seed, purpose, epoch, index), and on nothing else."""
    text = " ".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Within it torch's CPU generator starts at ``seed``; afterwards it is as it was before."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
