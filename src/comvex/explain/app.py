"""The page in the browser, made of Gradio's parts and of ``panels``; needs the extra ``app``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from comvex.errors import UserError
from comvex.explain.examples import NUM_EXAMPLES
from comvex.explain.explorer import Explorer, View
from comvex.explain.panels import classes_html, enlarged, gates_html, heads_html, layers_html

KEPT_SECONDS = 3600
"""How long what a visitor left behind is kept."""
KEPT = (KEPT_SECONDS, KEPT_SECONDS)
"""How often the files of visitors are looked through, and how old those are that go; the rest go when the page ends."""
KEPT = (KEPT_SECONDS, KEPT_SECONDS)
"""How often files of visitors are looked through, and how old the deleted ones are; on leaving all are deleted."""
HALVES = ("blended", "content", "positional")


def build_page(explorer: Explorer, examples: Sequence[tuple[Image.Image, str]], *, title: str) -> gr.Blocks:
    """The page: the picture and its classes on the left, what the layers and heads do with it on the right."""
    num_layers = len(explorer.predictor.model.blocks)
    with gr.Blocks(analytics_enabled=False, title=f"{title} · comvex", delete_cache=KEPT) as page:
        view = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.HTML(title_html(explorer, title), elem_classes="cx-title")
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                drop = gr.File(label="A picture of yours", height=120, elem_id="cx-drop")
                gr.HTML('<p class="cx-head">or one of these</p>')
                gallery = gr.Gallery(
                    [(ImageOps.fit(enlarged(picture, 160), (160, 160)), name) for picture, name in examples],
                    show_label=False,
                    columns=NUM_EXAMPLES,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    object_fit="contain",
                    elem_id="cx-examples",
                )
                message = gr.HTML(elem_id="cx-message")
                gr.HTML('<p class="cx-head">Click a patch <small>to look from there</small></p>')
                canvas = gr.Image(show_label=False, format="png", interactive=False, buttons=[], elem_id="cx-canvas")
                classes = gr.HTML(elem_id="cx-classes")
            with gr.Column(scale=7, min_width=320):
                layers = gr.HTML(elem_id="cx-layers")
                layer = gr.Slider(
                    0, max(1, num_layers - 1), value=0, step=1, label="Layer", interactive=num_layers > 1,
                    elem_id="cx-layer",
                )  # fmt: skip
                half = gr.Radio(HALVES, value="blended", label="Attention", elem_id="cx-half")
                heads = gr.HTML(elem_id="cx-heads")
                gates = gr.HTML(gates_html(explorer.gates, layer=0), elem_id="cx-gates")

        opened = [view, message, canvas, classes, layers, heads]
        # Everything is answered, one after the other, so that what is shown last is what was asked last; Gradio's
        # trigger mode "always_last" would show the first of many clicks
        in_turn: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple",
                                 "concurrency_id": "look", "concurrency_limit": 1}  # fmt: skip

        def show(picture: Any, number: int, chosen: Any, name: str | None = None) -> tuple[Any, ...]:
            try:
                new = explorer.open(picture, name=name)
            except UserError as error:
                return gr.skip(), refused_html(str(error)), *[gr.skip()] * 4
            return (
                new,
                "",
                new.framed_canvas(),
                classes_html(new.seen.predictions),
                *panels(explorer, new, number, chosen),
            )

        def open_file(file: str | None, number: int, chosen: str) -> tuple[Any, ...]:
            return None, *(show(file, number, chosen) if file else [gr.skip()] * len(opened))

        def open_example(number: int, chosen: str, event: gr.SelectData) -> tuple[Any, ...]:
            picture, name = examples[event.index]
            return show(picture, number, chosen, name)

        def open_first(number: int, chosen: str) -> tuple[Any, ...]:
            picture, name = examples[0]
            return show(picture, number, chosen, name)

        def click(current: View | None, number: int, chosen: str, event: gr.SelectData) -> tuple[Any, ...]:
            if current is None:
                return tuple([gr.skip()] * 4)
            new = explorer.look_from(current, *event.index)
            return new, new.framed_canvas(), *panels(explorer, new, number, chosen)

        def turn(current: View | None, number: int, chosen: str) -> tuple[Any, ...]:
            table = gates_html(explorer.gates, layer=number)
            return (*([gr.skip()] * 2 if current is None else panels(explorer, current, number, chosen)), table)

        choice = [layer, half]
        drop.upload(open_file, [drop, *choice], [drop, *opened], **in_turn)
        gallery.select(open_example, choice, opened, **in_turn)
        canvas.select(click, [view, *choice], [view, canvas, layers, heads], **in_turn)
        for control in choice:
            control.change(turn, [view, *choice], [layers, heads, gates], **in_turn)
        page.load(open_first, choice, opened, **in_turn)
    return page


def panels(explorer: Explorer, view: View, layer: int, half: Any) -> tuple[str, str]:
    """Where the patch looks in every layer, and in each head of one."""
    shown, maps = view.seen.shown, view.maps
    heads = heads_html(shown, maps[layer], gates=explorer.gates[layer], query=view.query, half=half)
    return layers_html(shown, maps, query=view.query, layer=layer), heads


def title_html(explorer: Explorer, title: str) -> str:
    config = explorer.predictor.model.config
    layers = f"{config.num_local_layers} local and {config.num_nonlocal_layers} non-local layers"
    return (
        f"<h1>{escape(title)}</h1><p>{layers} of {config.num_heads} heads, "
        f"{len(explorer.predictor.labels)} classes. Layers and heads are counted from 0.</p>"
    )


def refused_html(sentence: str) -> str:
    return f'<p class="cx-refused" role="alert">{escape(sentence)}</p>'
