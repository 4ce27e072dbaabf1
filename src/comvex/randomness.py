"""Randomness as a function: every random choice comes from a seed derived from what it is for, never from a state."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all the parts, such as (run seed, purpose, epoch, index), and on nothing else."""
    low, high = np.random.SeedSequence([part & 0xFFFFFFFFFFFFFFFF for part in parts]).generate_state(2)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


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
