"""``comvex app``: serve the page of ``app.py``, to this machine alone unless told otherwise."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from comvex.convit.config import ConViTConfig
from comvex.errors import UserError
from comvex.explain.epochs import load_at, title_of
from comvex.explain.examples import example_pictures
from comvex.explain.explorer import Explorer

PORT, PORTS_TRIED = 7860, 20
LARGEST_UPLOAD = "100mb"
SYSTEM_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
ONLY_FROM_HERE = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
"""What the browser is told: to ask nothing of any other machine, whatever a library would like."""


def serve(
    source: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    epoch: int | None = None,
    config: ConViTConfig | None = None,
    device: str = "auto",
    as_json: bool = False,
) -> None:
    """Serve the page of a model (see ``load_at``) until Ctrl-C, and print its address.

    ``port`` None is the first free one from 7860 on. Raises ``ValueError`` if Gradio is not installed, there is no
    such model, or the port cannot be had.
    """
    if find_spec("gradio") is None:
        raise UserError("comvex app needs Gradio, which is not installed: pip install 'comvex[app]' brings it.")
    predictor = load_at(source, epoch=epoch, config=config, device=device)
    examples, note = example_pictures(source, predictor)
    if note:
        print(note, file=sys.stderr)
    listening = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    app = web_app(Explorer(predictor), examples, title=title_of(source, epoch))
    print(json.dumps({"address": address}) if as_json else f"{address}  (Ctrl-C ends it)", flush=True)
    run_server(app, listening)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens; connections wait in it until the server takes them."""
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"port is {port}: it must lie between 0, which takes any free one, and 65535.")
    problem = ""
    for candidate in range(PORT, PORT + PORTS_TRIED) if port is None else (port,):
        try:
            return socket.create_server((host, candidate), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            problem = (error.strerror or str(error)).partition(" (while")[0]
    where = f"port {port}" if port is not None else f"any port from {PORT} to {PORT + PORTS_TRIED - 1}"
    raise UserError(f"The page cannot be served on {host}, {where}: {problem}; choose --host and --port.")


def run_server(app: Any, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Pages that are open when the command ends are cut off, which uvicorn would report as errors
            logging.getLogger("uvicorn.error").disabled = True
            await super().shutdown(sockets)

    server = Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # how it is meant to end
        return


def web_app(explorer: Explorer, examples: Sequence[tuple[Image.Image, str]], *, title: str) -> Any:
    """The page as an ASGI application."""
    from fastapi import FastAPI
    from gradio.routes import mount_gradio_app
    from gradio.themes import Base

    from comvex.explain.app import build_page

    app = mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(explorer, examples, title=title),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        theme=Base(primary_hue="blue", font=SYSTEM_FONT),
        css_paths=Path(__file__).with_name("app.css"),
    )
    return with_policy(app)


def with_policy(app: Any) -> Any:
    """The application with ``ONLY_FROM_HERE`` in the head of every answer."""
    policy = (b"content-security-policy", ONLY_FROM_HERE.encode())

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), policy]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer
