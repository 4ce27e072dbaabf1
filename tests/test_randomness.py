"""Seeds for what libraries draw from."""

import random

import numpy as np
import torch

from comvex.randomness import seeded


def draws() -> tuple[float, ...]:
    return torch.rand(()).item(), random.random(), random.gauss(), float(np.random.rand())  # noqa: NPY002


def test_all_that_libraries_draw_from_is_a_function_of_the_seed():
    found = []
    for seed in (5, 5, 6):
        with seeded(seed):
            found.append(draws())
    assert found[0] == found[1]
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))


def test_afterwards_every_generator_goes_on_as_if_nothing_had_been():
    def seed_all() -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002

    seed_all()
    expected = draws()
    seed_all()
    with seeded(3), seeded(4):
        draws()
    assert draws() == expected


def test_an_inner_seed_does_not_change_what_the_outer_one_gives():
    with seeded(1):
        alone = draws(), draws()
    with seeded(1):
        first = draws()
        with seeded(2):
            draws()
        assert (first, draws()) == alone
