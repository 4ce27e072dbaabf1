"""What tests of figures share."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn() -> Iterator[list[Figure]]:
    """The figures that were saved, in order, to look at what is on them; they are saved all the same."""
    figures, save = [], Figure.savefig

    def keep(figure: Figure, *arguments, **options) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    with patch.object(Figure, "savefig", keep):
        yield figures
