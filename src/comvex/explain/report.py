"""``comvex explain``: what a model does and where it looks in pictures, as PNGs, a table, and one HTML page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comvex import run_folder
from comvex.convit.analysis import (
    Nonlocality,
    attention_maps,
    attention_rollout,
    class_token_attention,
    gates,
    nonlocality,
    positional_kernels,
    uniform_nonlocality,
)
from comvex.convit.config import ConViTConfig
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.data.reading import UnreadablePictureError
from comvex.errors import UserError
from comvex.explain.epochs import load_at, title_of
from comvex.explain.figures import draw_class_token, draw_gates, draw_nonlocality, draw_query
from comvex.explain.kernels import draw_kernels
from comvex.explain.page import Figure, PictureSection, files_of, write_page
from comvex.explain.query import parse_query
from comvex.explain.seen import SeenPicture, see
from comvex.files import read_table, write_table
from comvex.inference.predictor import Predictor
from comvex.terminal import progress_bar
from comvex.training.curves import draw_heads

PAGE = "report.html"


@dataclass(frozen=True)
class Chosen:
    """What ``comvex explain`` is asked to show of each picture."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    query: tuple[int, int]
    """(row, column) of the patch to look from."""


def explain(
    source: str | Path,
    pictures: Sequence[Path],
    *,
    out: Path,
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    query: str | None = None,
    epoch: int | None = None,
    config: ConViTConfig | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the report of a model (see ``load_at``) on picture files into a folder; returns what was found and written.

    ``layers`` and ``heads`` choose where a patch's attention is shown, none of them means all; ``query`` is that patch,
    "X,Y" as column and row, by default the middle one. A picture that cannot be read is left out and named under
    "unreadable". The report is ``report.html``, which needs no other file; the folder also has each figure as a PNG,
    and heads.csv.

    Raises ``ValueError`` for a layer, head or patch that is not there, if no picture can be read, if the folder cannot
    be written to, or if it has a report already and ``overwrite`` is not set; with it the figures of that report go.
    """
    with explained_failures(out):
        check_out(out, overwrite=overwrite)
        before = files_of(out / PAGE)
    predictor = load_at(source, epoch=epoch, config=config, device=device)
    chosen = choose(predictor, layers=layers, heads=heads, query=query)
    seen, problems = see_all(predictor, pictures)
    course = read_course(Path(source))
    with explained_failures(out), progress_bar(transient=True) as progress:
        bar = progress.add_task("drawing", total=len(seen) + 2)
        inputs = (picture.inputs for picture in seen)
        found = nonlocality(predictor.model, inputs)
        progress.advance(bar)
        figures = draw_model(predictor.model, found, out) + draw_course(course, out, title=title_of(source, None))
        write_table(out / run_folder.HEADS, table_of_heads(predictor.model, found))
        progress.advance(bar)
        sections = []
        for number, picture in enumerate(seen, start=1):
            sections.append(draw_seen(predictor.model, picture, out, chosen=chosen, number=number))
            progress.advance(bar)
        write_page(
            out / PAGE,
            title=f"What {title_of(source, epoch)} looks at",
            about=about(predictor),
            model=figures,
            pictures=sections,
        )
        files = [figure.file.name for part in (figures, *(s.figures for s in sections)) for figure in part]
        for name in before.difference(files):
            (out / name).unlink(missing_ok=True)
    return {
        "report": str(out / PAGE),
        "figures": files,
        "table": str(out / run_folder.HEADS),
        "predictions": [
            {"picture": picture.name, "label": picture.predictions[0].label,
             "probability": picture.predictions[0].probability}
            for picture in seen
        ],
        "nonlocality": [round(float(value), 4) for value in found.blended.mean(axis=1)],
        "unreadable": problems,
    }  # fmt: skip


@contextmanager
def explained_failures(out: Path) -> Iterator[None]:
    """Within it a folder that cannot be made, read or written to becomes one sentence, as a ``ValueError``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"The report cannot be written to {out} ({reason}): choose another --out, or make room."
        ) from error


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises ``ValueError`` if a report cannot be written to ``out`` or is there already."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out is {out}, which is a file: it must be a folder, new or old.")
    if (out / run_folder.RECIPE).exists():
        raise UserError(
            f"out is {out}, which is a run folder, whose {run_folder.HEADS} the report's would replace: it must be "
            f"another one, such as {out / 'report'}."
        )
    if (out / PAGE).exists() and not overwrite:
        raise UserError(f"The folder {out} has a {PAGE} already: choose another --out, or give --overwrite.")


def choose(predictor: Predictor, *, layers: Sequence[int], heads: Sequence[int], query: str | None) -> Chosen:
    """Raises ``ValueError`` for a layer, head or patch that the model does not have."""
    config, model = predictor.model.config, predictor.model
    numbers = {"layer": (layers, len(model.blocks)), "head": (heads, config.num_heads)}
    for name, (asked, count) in numbers.items():
        for number in asked:
            if not 0 <= number < count:
                raise UserError(f"{name} is {number}: it must lie between 0 and {count - 1}.")
    return Chosen(
        layers=tuple(sorted(set(layers))) or tuple(range(len(model.blocks))),
        heads=tuple(sorted(set(heads))) or tuple(range(config.num_heads)),
        query=parse_query(query, model.patch_embed.grid_of(*predictor.preprocessing.image_size)),
    )


def see_all(predictor: Predictor, files: Sequence[Path]) -> tuple[list[SeenPicture], list[str]]:
    """The pictures, and a message for each that cannot be read; raises ``ValueError`` if none can."""
    seen, problems = [], []
    for file in files:
        try:
            seen.append(see(predictor, file))
        except UnreadablePictureError as error:
            problems.append(str(error))
    if not seen:
        raise UserError(problems[0] if problems else "No picture is given: name at least one picture file.")
    return seen, problems


def about(predictor: Predictor) -> str:
    """The model in a sentence."""
    config = predictor.model.config
    height, width = predictor.preprocessing.image_size
    rows, columns = predictor.model.patch_embed.grid_of(height, width)
    patch = config.patch_size
    count = sum(parameter.numel() for parameter in predictor.model.parameters())
    kind = "with gated positional self-attention" if config.use_gpsa else "of plain attention"
    return (
        f"{count:,} parameters: {config.num_local_layers} local layers {kind} and {config.num_nonlocal_layers} with a "
        f"class token, {config.num_heads} heads each. It sees pictures of {height} × {width} pixels as {rows} × "
        f"{columns} patches of {patch} × {patch} pixels and tells {len(predictor.labels)} classes apart. "
        "Layers, heads, rows and columns are counted from 0."
    )


def draw_model(model: ConViTWithLinearClassifier, found: Nonlocality, out: Path) -> list[Figure]:
    """What holds for every picture: gates and kernels, if the model has them, and non-locality."""
    figures, gate = [], gates(model)
    if not np.isnan(gate).all():
        draw_gates(gate, out / "gates.png")
        figures.append(Figure(
            out / "gates.png", "Gates",
            "How each head of each layer blends its two attentions: 1 is position alone, as in a convolution; 0 is "
            "content alone, as in a plain vision transformer. Training starts at 0.73.",
        ))  # fmt: skip
        gated = np.flatnonzero(~np.isnan(gate).all(axis=1)).tolist()
        draw_kernels(positional_kernels(model), out / "kernels.png", layers=gated)
        figures.append(Figure(
            out / "kernels.png", "Positional kernels",
            "Where a head's positional attention lies around the patch that looks, the cross: from dark, none, to "
            "bright, the head's largest share of a patch, which stands above it. It is the same for every picture, and "
            "for every patch that is far enough from the border. A head without a peak does not fall off with "
            "distance.",
        ))  # fmt: skip
    uniform = uniform_nonlocality(model.config.grid)
    pictures = "1 picture" if found.num_pictures == 1 else f"{found.num_pictures} pictures"
    draw_nonlocality(found, out / "nonlocality.png", uniform=uniform)
    figures.append(Figure(
        out / "nonlocality.png", "Non-locality",
        f"Mean distance, in patches, from a patch to what it attends to, each layer on its own input, over "
        f"{pictures}. Attention that is the same everywhere would have {uniform:.2f}.",
    ))  # fmt: skip
    return figures


def read_course(source: Path) -> list[dict[str, int | float | None]]:
    """The rows of a run folder's heads.csv; none if there is no such file."""
    table = source / run_folder.HEADS
    return read_table(table) if table.is_file() else []


def draw_course(course: Sequence[dict[str, Any]], out: Path, *, title: str) -> list[Figure]:
    """How gates and non-locality moved over the epochs, if that is known."""
    if not course:
        return []
    draw_heads(course, out / "training.png", title=title)
    return [Figure(
        out / "training.png", "Over the epochs of training",
        "Gates and non-locality before the first step, at 0, and at each validation, on the same few validation "
        "pictures. The axes show the range that occurs.",
    )]  # fmt: skip


def table_of_heads(model: ConViTWithLinearClassifier, found: Nonlocality) -> list[dict[str, Any]]:
    """A row for each layer and head with all that is known of it; None where it has no such figure."""
    kernels = positional_kernels(model)
    columns = {
        "gate": gates(model),
        "nonlocality_content": found.content,
        "nonlocality_positional": found.positional,
        "nonlocality_blended": found.blended,
        "class_token_share": found.class_token_share,
        "kernel_dx": kernels.dx,
        "kernel_dy": kernels.dy,
        "kernel_width": kernels.width,
    }
    return [
        {"layer": layer, "head": head}
        | {name: None if math.isnan(values[layer, head]) else float(values[layer, head])
           for name, values in columns.items()}
        for layer, head in np.ndindex(found.content.shape)
    ]  # fmt: skip


@torch.no_grad()
def draw_seen(
    model: ConViTWithLinearClassifier, seen: SeenPicture, out: Path, *, chosen: Chosen, number: int
) -> PictureSection:
    """The figures of one picture."""
    stem, figures = f"{number:02d}-{file_stem(seen.name)}", []
    if model.config.num_nonlocal_layers:
        file = out / f"{stem}-class-token.png"
        attention = class_token_attention(model, seen.inputs)[:, 0].cpu().numpy()
        rollout = attention_rollout(model, seen.inputs)[0].cpu().numpy()
        layers = range(model.config.num_local_layers, len(model.blocks))
        draw_class_token(seen.shown, attention, rollout, file, layers=layers)
        figures.append(Figure(
            file, "The class token",
            "What the answer is drawn from: where the class token looks in each layer that has one, on the mean over "
            "the heads and head by head. Grey is no attention, the fullest colour the map's largest share of a "
            "patch, so a flat map is one even colour; above it its smallest and largest share. Rollout follows "
            "the attention of all layers back to the patches.",
        ))  # fmt: skip
    maps = attention_maps(model, seen.inputs, queries=[chosen.query], layers=chosen.layers)
    row, column = chosen.query
    file = out / f"{stem}-patch-{column}-{row}.png"
    draw_query(seen.shown, maps, file, query=chosen.query, heads=chosen.heads)
    figures.append(Figure(
        file, f"The patch in column {column}, row {row}",
        "Where each head looks from the framed patch. Grey is no attention, the fullest colour the largest share of a "
        "patch in that map, which stands above it. In layers with a class token the maps are shares of what goes to "
        "patches; what goes to the class token stands below.",
    ))  # fmt: skip
    return PictureSection(seen.name, seen.predictions, figures)


def file_stem(name: str) -> str:
    """A picture's name without its ending, as part of a file name on any system."""
    return re.sub(r"[^\w.-]+", "_", Path(name).stem)[:60]
