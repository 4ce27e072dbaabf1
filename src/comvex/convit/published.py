"""Where weights are found: files and folders here, models by name (packaged or published), the Hugging Face Hub."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from comvex import run_folder
from comvex.errors import UserError

HUB_PREFIX = "hf-hub:"
WEIGHTS_NAME = "model.safetensors"
"""What the Hub calls the weights file of a repository."""
HUB_FILES = (WEIGHTS_NAME, "pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """A model whose weights the authors published."""

    hub_id: str
    """timm's copy on the Hugging Face Hub."""
    address: str
    """The authors' own file."""
    top1: float
    """Accuracy on ImageNet's validation pictures in percent (paper, Table 1)."""
    licence: str = "apache-2.0"

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured of the weights, as ``WeightsInfo`` keeps it."""
        return {"data": "ImageNet-1k", "top1": self.top1, "source": "paper, Table 1"}


PUBLISHED = {
    f"convit_{size}": Published(
        hub_id=f"timm/convit_{size}.fb_in1k",
        address=f"https://dl.fbaipublicfiles.com/convit/convit_{size}.pth",
        top1=top1,
    )
    for size, top1 in (("tiny", 73.1), ("small", 81.3), ("base", 82.4))
}
OFFICIAL = "official"
TAGS = ("fb_in1k", OFFICIAL)
"""convit_tiny.fb_in1k is timm's copy, convit_tiny.official the authors' file; the same numbers."""
NAMES = tuple(f"{name}.fb_in1k" for name in PUBLISHED)
ALIASES = ("convit_ti", "convit_s", "convit_b")
"""What the presets of the same sizes are called, for a hint."""
PACKAGED = {"convit_fashion_mnist": "fashion-mnist"}
"""Models that are part of comvex, each with the data that it was trained on, as ``--data`` calls them."""
PACKAGED_FOLDER = Path(__file__).parents[1] / "packaged"
"""Where they lie: a folder each with weights, config.json, a model card, and a few pictures to try it on."""
UNPUBLISHED = tuple(f"{name}_plus" for name in (*PUBLISHED, *ALIASES))
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


def split_name(name: str) -> tuple[str, str] | None:
    """The model and the tag of a published name, such as ("convit_tiny", "fb_in1k"); None if it is none."""
    model, _, tag = name.removeprefix(HUB_PREFIX).removeprefix("timm/").partition(".")
    if model in PUBLISHED and (tag or TAGS[0]) in TAGS:
        return model, tag or TAGS[0]
    return None


def packaged_folder(source: str | Path) -> Path | None:
    """The folder of a packaged model; None for any other source, such as a file or folder here of the same name."""
    return PACKAGED_FOLDER / source if str(source) in PACKAGED and not Path(source).exists() else None


def packaged_pictures(source: str | Path) -> tuple[Path, ...]:
    """The pictures that come with a packaged model, one of each class in their order; none for any other source."""
    folder = packaged_folder(source)
    return () if folder is None else tuple(sorted((folder / "pictures").glob("*.png")))


def such_as_data(source: str | Path) -> str:
    """How to go on where a sentence has asked for --data, if it is known; else nothing."""
    known = packaged_folder(source) is not None
    return f", such as --data {PACKAGED[str(source)]}, which it was trained on" if known else ""


class Found(NamedTuple):
    """A weights file, and what was published of it if its name was one of the published ones."""

    file: Path
    published: Published | None = None


def find_weights(source: str | Path, **download: Any) -> Found:
    """The weights file that ``source`` stands for: a file; a run folder (its best weights); a folder with
    model.safetensors or one other weights file; the name of a packaged or published model; ``owner/name`` on the
    Hugging Face Hub.

    ``download`` goes to ``huggingface_hub.hf_hub_download`` (``revision``, ``cache_dir``, ``token`` ...). What is in
    the local cache is taken from there. Raises ``ValueError`` that says what to fetch and where to put it.
    """
    path = Path(source)
    try:
        if path.is_file():
            return Found(path)
        is_folder = path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"The weights {source} cannot be read: {error.strerror}.") from error
    if is_folder:
        return Found(find_in_folder(path))
    packaged = packaged_folder(source)
    if packaged is not None:
        return Found(packaged / WEIGHTS_NAME)
    name = str(source)
    model = name.removeprefix(HUB_PREFIX).removeprefix("timm/").partition(".")[0]
    if model.lower() in UNPUBLISHED:
        raise UserError(f"There are no published weights for {model}: the authors published {', '.join(PUBLISHED)}.")
    found = split_name(name)
    if found is not None:
        model, tag = found
        published = PUBLISHED[model]
        file = download_official(model) if tag == OFFICIAL else download_from_hub(name, published.hub_id, **download)
        return Found(file, published)
    hub_id = name.removeprefix(HUB_PREFIX)
    owner = hub_id.partition("/")[0]
    like_an_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not name.endswith(FILE_ENDINGS)
    if name != hub_id or (like_an_id and not Path(owner).exists()):
        return Found(download_from_hub(name, hub_id, **download))
    if len(path.parts) > 1:
        raise UserError(f"There is no run folder or weights file {name}: give the --out folder of a comvex train.")
    near = hint(name)
    raise UserError(
        f"There is no run folder, weights file or published model {name!r}: {near}{'P' if near else 'p'}ublished are "
        f"{', '.join(NAMES)}; part of comvex is {', '.join(PACKAGED)}."
    )


def hint(name: str) -> str:
    """The name that is nearest to a mistyped one, as a question; empty if none is near."""
    known = dict(zip((*NAMES, *ALIASES, *PACKAGED), (*NAMES, *NAMES, *PACKAGED), strict=True))
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {known[near[0]]!r}? " if near else ""


def find_in_folder(folder: Path) -> Path:
    """The weights file of a run folder or of a folder in the Hub's layout."""
    if (folder / run_folder.RECIPE).exists():
        return run_folder.best_weights(folder)
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for ending in FILE_ENDINGS for file in folder.glob(f"*{ending}"))
    if len(found) == 1:
        return found[0]
    what = f"several weights files ({', '.join(file.name for file in found)}): name one" if found else "no weights file"
    raise UserError(f"The folder {folder} is no run folder (it has no {run_folder.RECIPE}) and has {what}.")


def download_from_hub(name: str, hub_id: str, **download: Any) -> Path:
    """The weights file of a repository, from the local cache or the Hub, with its config.json beside it."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    where = {key: value for key, value in download.items() if key in ("cache_dir", "revision") and value is not None}
    try:
        for file in HUB_FILES:
            cached = try_to_load_from_cache(hub_id, file, **where)
            if isinstance(cached, str) and not download.get("force_download"):
                return Path(cached)
        available = {WEIGHTS_NAME, "config.json"}
        if not download.get("local_files_only"):  # asked once, where a download would try again for half a minute
            found = HfApi(token=download.get("token")).model_info(hub_id, revision=download.get("revision"), timeout=10)
            available = {sibling.rfilename for sibling in found.siblings or ()}
        if "config.json" in available:
            hf_hub_download(hub_id, "config.json", **download)
        weights = next((file for file in HUB_FILES if file in available), WEIGHTS_NAME)
        return Path(hf_hub_download(hub_id, weights, **download))
    # The client lets through whatever its network library raises; each means that the file is not to be had.
    except Exception as error:
        raise not_fetched(
            name, hub_id, error, use="give that folder instead of the name (in comvex train as --weights)"
        ) from error


def not_fetched(name: str, hub_id: str, error: Exception, *, use: str) -> UserError:
    """What to tell of a repository's weights that are not to be had; ``use`` is what to do with them once they are."""
    return UserError(
        f"{name} is neither a file or folder here nor in the local cache, and could not be fetched from the "
        f"Hugging Face Hub ({type(error).__name__}): fetch {WEIGHTS_NAME} and config.json from "
        f"https://huggingface.co/{hub_id} into a folder and {use}."
    )


def download_official(model: str) -> Path:
    """The authors' file, from PyTorch's cache or fetched into it."""
    import torch

    address = PUBLISHED[model].address
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file))
        except OSError as error:
            raise UserError(
                f"The authors' weights of {model} are not on this machine and could not be fetched ({error}): fetch "
                f"{address} and put it at {file}."
            ) from error
    return file
