"""What was found out about data once is kept in the user's cache folder, to start faster the next time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from comvex.files import write_text

LOGGER = logging.getLogger(__name__)
FORMAT = 1


def cache_folder() -> Path:
    """Where downloads and caches are: ``comvex`` in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comvex"


def cache_file(kind: str, key: str) -> Path:
    """The file that holds what is known of ``key``, such as a folder's full path."""
    return cache_folder() / kind / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.json"


def read_cache(kind: str, key: str) -> Any:
    """What was written for this key; None if nothing was, or it is damaged (which the log says).

    The first line of the file is the checksum of the second, which is JSON.
    """
    file = cache_file(kind, key)
    try:
        checksum, content = file.read_bytes().split(b"\n", 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        LOGGER.warning("The cache %s cannot be read and is made again: %s.", file, error)
        return None
    if checksum.decode(errors="replace") != hashlib.sha256(content).hexdigest():
        LOGGER.warning("The cache %s is damaged and is made again.", file)
        return None
    entry = json.loads(content)
    return entry["content"] if (entry["format"], entry["key"]) == (FORMAT, key) else None


def write_cache(kind: str, key: str, content: Any) -> None:
    """Keep plain values for this key; if that is not possible the log says so, and nothing else happens."""
    text = json.dumps({"format": FORMAT, "key": key, "content": content}, separators=(",", ":"))
    file = cache_file(kind, key)
    try:
        write_text(file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    except OSError as error:
        LOGGER.warning("The cache %s cannot be written: %s.", file, error)
