"""What the browser page asks of a model, for any number of visitors at once; each one holds what is his own."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from comvex.convit.analysis import AttentionMaps, attention_maps, gates
from comvex.data.reading import UnreadablePictureError, printable
from comvex.explain.query import parse_query
from comvex.explain.seen import SeenPicture, see
from comvex.inference.predictor import Picture, Predictor


@dataclass(frozen=True, eq=False)
class View:
    """What one visitor looks at."""

    seen: SeenPicture
    query: tuple[int, int]
    """(row, column) of the patch to look from."""
    maps: list[AttentionMaps]
    """Where it looks, an entry for each layer."""
    number: int
    """Tells the pictures apart that were opened, so that a click on one is not taken for one on the next."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        rows, columns = self.maps[0].content.shape[-2:]
        return rows, columns


class Visit:
    """What one visitor has open, and a lock that has his requests answered one at a time."""

    def __init__(self) -> None:
        self.view: View | None = None
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> Visit:
        """A new visitor's: Gradio copies what the page starts with for each of them."""
        return Visit()


class Explorer:
    """A model that answers visitors one after the other: analysis listens in on the layers of a forward pass."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.gates = gates(predictor.model)
        self.lock = threading.Lock()
        self.numbers = itertools.count()

    def open(self, picture: Picture, *, name: str | None = None) -> View:
        """A picture with its classes, looked at from its middle patch.

        Raises ``ValueError``, with the name and not the path of a file, for what is no picture.
        """
        try:
            with self.lock:
                seen = see(self.predictor, picture, name=name)
        except UnreadablePictureError as error:
            if not isinstance(picture, str | Path):
                raise
            short = name or printable(Path(picture).name)
            raise UnreadablePictureError(str(error).replace(printable(picture), short)) from error
        grid = self.predictor.model.patch_embed.grid_of(*seen.inputs.shape[-2:])
        query = parse_query(None, grid)
        return View(seen, query, self.maps(seen, query), next(self.numbers))

    def look_from(self, view: View, query: tuple[int, int]) -> View:
        """The same picture looked at from another patch (row, column)."""
        return replace(view, query=query, maps=self.maps(view.seen, query))

    @torch.no_grad()
    def maps(self, seen: SeenPicture, query: tuple[int, int]) -> list[AttentionMaps]:
        with self.lock:
            return attention_maps(self.predictor.model, seen.inputs, queries=[query])
