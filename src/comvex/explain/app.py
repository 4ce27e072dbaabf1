"""The page in the browser, made of Gradio's parts and of ``panels``; needs the extra ``app``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from comvex.errors import UserError
from comvex.explain.examples import NUM_EXAMPLES
from comvex.explain.explorer import Explorer, View, Visit
from comvex.explain.panels import CANVAS_SIDE, as_source, classes_html, enlarged, gates_html, heads_html, layers_html

KEPT_SECONDS = 3600
"""How long what a visitor left behind is kept."""
KEPT = (KEPT_SECONDS, KEPT_SECONDS)
"""How often the files of visitors are looked through, and how old those are that go; the rest go when the page ends."""
NOWHERE = {"number": -1, "row": 0, "column": 0}
"""What the canvas holds before a picture is there: the number of its view, and the patch that is looked from."""
CANVAS = """
{{#if picture}}
<div class="cx-patches" tabindex="0" role="application" aria-describedby="cx-patch"
  aria-label="The picture; click a patch or move with the arrow keys">
  <img src="${picture}" alt="" draggable="false">
  <span class="cx-frame" style="left:${100 * value.column / columns}%;top:${100 * value.row / rows}%;
    width:${100 / columns}%;height:${100 / rows}%"></span>
</div>
<p id="cx-patch" class="cx-hint" aria-live="polite">
  row ${value.row}, column ${value.column} of ${rows} × ${columns} patches
</p>
{{/if}}
"""
CANVAS_SCRIPT = Path(__file__).with_name("canvas.js").read_text()
LEFT_ALONE = "The picture was put away, since nothing was asked for an hour: open it again."
HALVES = ("blended", "content", "positional")


def build_page(explorer: Explorer, examples: Sequence[tuple[Image.Image, str]], *, title: str) -> gr.Blocks:
    """The page: the picture and its classes on the left, what the layers and heads do with it on the right."""
    num_layers = len(explorer.predictor.model.blocks)
    with gr.Blocks(analytics_enabled=False, title=f"{title} · comvex", delete_cache=KEPT) as page:
        visit = gr.State(Visit(), time_to_live=KEPT_SECONDS)
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
                gr.HTML('<p class="cx-head">Click a patch <small>to look from there; arrow keys move it</small></p>')
                canvas = gr.HTML(
                    NOWHERE,
                    html_template=CANVAS,
                    js_on_load=CANVAS_SCRIPT,
                    elem_id="cx-canvas",
                    picture="",
                    rows=1,
                    columns=1,
                )
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

        opened = [message, canvas, classes, layers, heads]
        # Requests go past Gradio's queue, whose answers are now and then lost when the next request comes just as one
        # arrives; a visitor's are answered one at a time all the same. Of many clicks that come faster than they can be
        # answered the first and the last are ("always_last": what the page holds when its turn has come).
        asked: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        newest: dict[str, Any] = {**asked, "trigger_mode": "always_last"}

        def show(visit: Visit, picture: Any, number: Any, half: Any, name: str | None = None) -> tuple[Any, ...]:
            with visit.lock:
                try:
                    view = explorer.open(picture, name=name)
                except UserError as error:
                    return refused_html(str(error)), *[gr.skip()] * 4
                visit.view = view
                shown = panels(explorer, view, layer_of(number, num_layers), half)
                return "", canvas_of(view), classes_html(view.seen.predictions), *shown

        def open_file(visit: Visit, file: str | None, number: Any, half: Any) -> tuple[Any, ...]:
            return None, *(show(visit, file, number, half) if file else [gr.skip()] * len(opened))

        def open_example(visit: Visit, number: Any, half: Any, event: gr.SelectData) -> tuple[Any, ...]:
            picture, name = examples[event.index]
            return show(visit, picture, number, half, name)

        def open_first(visit: Visit, number: Any, half: Any) -> tuple[Any, ...]:
            picture, name = examples[0]
            return show(visit, picture, number, half, name)

        def look(visit: Visit, patch: dict[str, int], number: Any, half: Any) -> tuple[Any, ...]:
            with visit.lock:
                if visit.view is None:
                    return refused_html(LEFT_ALONE), gr.skip(), gr.skip()
                if patch["number"] != visit.view.number:  # of the picture before
                    return tuple([gr.skip()] * 3)
                visit.view = explorer.look_from(visit.view, (patch["row"], patch["column"]))
                return gr.skip(), *panels(explorer, visit.view, layer_of(number, num_layers), half)

        def turn(visit: Visit, number: Any, half: Any) -> tuple[Any, ...]:
            layer = layer_of(number, num_layers)
            with visit.lock:
                shown = [gr.skip()] * 2 if visit.view is None else panels(explorer, visit.view, layer, half)
            return *shown, gates_html(explorer.gates, layer=layer)

        choice = [layer, half]
        drop.upload(open_file, [visit, drop, *choice], [drop, *opened], **newest)
        gallery.select(open_example, [visit, *choice], opened, **asked, trigger_mode="multiple")
        canvas.select(look, [visit, canvas, *choice], [message, layers, heads], **newest)
        for control in choice:
            control.change(turn, [visit, *choice], [layers, heads, gates], **newest)
        page.load(open_first, [visit, *choice], opened, **asked)
    return page


def layer_of(number: Any, num_layers: int) -> int:
    """The layer that the slider's number field says; the field may be empty, or hold what no layer has."""
    return min(num_layers - 1, max(0, round(number or 0)))


def canvas_of(view: View) -> gr.HTML:
    """The picture to choose a patch on."""
    row, column = view.query
    rows, columns = view.grid
    return gr.HTML(
        {"number": view.number, "row": row, "column": column},
        picture=as_source(enlarged(view.seen.shown, CANVAS_SIDE).convert("RGB")),
        rows=rows,
        columns=columns,
    )


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
