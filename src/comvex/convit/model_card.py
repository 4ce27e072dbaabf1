"""The card that goes with weights to the Hub: what they are, from which pictures, how good, how to use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from comvex.convit.config import ConViTConfig, as_pair

if TYPE_CHECKING:
    from comvex.convit.weights import WeightsInfo

MARK = "<!-- Written by comvex from what is known of the weights; a card without this line is left alone. -->"
PERCENTAGES = ("top1", "top5", "map", "calibration_error")
"""Ends of the names of figures in percent."""
IN_WORDS = {
    "val": "validation",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "mean average precision",
    "num": "number of",
}
"""Parts of the names of figures that a reader may not know."""


def model_card(config: ConViTConfig, info: WeightsInfo | None, *, repository: str = "OWNER/NAME") -> str:
    """Markdown with the Hub's metadata in front; figures and data are those that the weights came with.

    ``repository`` is what ``comvex.load`` takes: "owner/name" on the Hub, or the name of a packaged model.
    """
    figures = dict(info.figures) if info is not None else {}
    data = figures.pop("data", None)
    head = ModelCardData(
        library_name="comvex",
        license=info.licence if info is not None else None,
        pipeline_tag="image-classification",
        tags=["convit", "image-classification"],
    )
    height, width = as_pair(config.image_size)
    heads = config.num_heads
    kind = ", any number of them on a picture" if info is not None and info.multi_label else ""
    lines = [
        f"---\n{head.to_yaml()}\n---\n{MARK}\n",
        f"# ConViT{f' trained on the data set {code(data)}' if data else ''}\n",
        "A ConViT ([d'Ascoli et al., 2021](https://arxiv.org/abs/2103.10697)): a vision transformer whose early layers "
        "start as convolutions, for `comvex`.\n",
        f"- {counted(config.num_local_layers, 'GPSA layer')} and "
        f"{counted(config.num_nonlocal_layers, 'self-attention layer')}, "
        f"{heads} heads, tokens of width {config.dim}, patches of {config.patch_size} x {config.patch_size} pixels",
        f"- pictures of {height} x {width} pixels and {counted(config.image_channel, 'channel')}; other sizes work too",
        f"- {config.num_classes} classes{kind}{describe_labels(info.labels) if info is not None else ''}",
        "",
    ]
    if figures:
        rows = [f"| {in_words(name)} | {number(name, value)} |" for name, value in figures.items()]
        lines += ["## Measured\n", "| figure | value |", "| --- | --- |", *rows, ""]
    described = "  # this repository, or a folder with its files" if "/" in repository else ""
    lines += [
        "## Use\n",
        "```python",
        "import comvex",
        "",
        f'predictor = comvex.load("{repository}"){described}',
        'predictor.predict(["photo.jpg"])',
        "```\n",
    ]
    if config.num_classes == 0:
        lines[-5:] = ["from comvex.convit import load_model", "", f'features = load_model("{repository}")', "```\n"]
    return "\n".join(lines)


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def code(name: object) -> str:
    """A name as Markdown's code on one line: a file's or folder's may have any character."""
    line = " ".join(str(name).replace("`", "'").split())
    return f"`{line}`"


def in_words(figure: str) -> str:
    return " ".join(IN_WORDS.get(part, part) for part in figure.split("_"))


def number(name: str, value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} %" if name.endswith(PERCENTAGES) else text


def describe_labels(labels: tuple[str, ...], most: int = 20) -> str:
    if not labels:
        return ""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return f": {', '.join(' '.join(label.split()) for label in labels[:most])}{more}"
