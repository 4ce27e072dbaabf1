"""``comvex app``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from comvex.commands.options import ConfigFile, Source, read_config
from comvex.help import DEFAULT_TOLD


@dataclass(frozen=True)
class App:
    """Look at a model in the browser: drop a picture, click a patch, see where each layer and head looks.

    Without RUN it is the model that is part of comvex. Needs Gradio: pip install 'comvex[app]'. Everything stays on
    this machine, and nothing is fetched from another.
    """

    source: Source = "convit_fashion_mnist"
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other machines in."""
    port: Annotated[int | None, arg(metavar="PORT"), DEFAULT_TOLD] = None
    """Default: the first free one from 7860 on."""
    epoch: Annotated[int | None, arg(metavar="EPOCH"), DEFAULT_TOLD] = None
    """For a run folder: the model after this epoch, whose checkpoint must be there still. Default: the best epoch."""
    config: ConfigFile = None
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the address as one JSON object."""

    def run(self) -> int:
        from comvex.explain.serve import serve

        serve(
            self.source,
            host=self.host,
            port=self.port,
            epoch=self.epoch,
            config=read_config(self.config),
            device=self.device,
            as_json=self.json,
        )
        return 0
