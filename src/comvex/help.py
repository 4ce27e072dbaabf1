"""How the command line's help tells settings and defaults; the texts themselves are the docstrings of the fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, get_type_hints

from docstring_parser import parse_from_object
from tyro.conf import arg


def unless_none(default: str) -> str:
    """What the help says of a default, where the text does not say already what None, nothing, or --no-... means."""
    return "" if default in ("None", "", "True") else f"(default: {default})"


DEFAULT_TOLD = arg(help_behavior_hint=unless_none)
"""For an argument whose text says what happens if it is left out, or says what happens without it: the help would add
"(default: None)", or "(default: True)" beside --no-..."""


def unwrap_texts(command: type[Any], default: Any = None) -> None:
    """Make one line of the docstring of each field of a command and its settings.

    tyro joins the lines of a text that are not indented, and those of a field's docstring are. Where ``default``, the
    command's values before the arguments, has a value, the text does not tell what happens without one.
    """
    for cls, values in with_settings(command, default):
        texts = {each.arg_name: each.description for each in parse_from_object(cls).params if each.description}
        for field in dataclasses.fields(cls):
            if field.name in texts:
                text = " ".join(texts[field.name].split())
                if field.default is None and getattr(values, field.name, None) is not None:
                    text = text.partition(" Default: ")[0]
                field.metadata = MappingProxyType({**field.metadata, "help": text})


def with_settings(cls: type[Any], values: Any) -> Iterator[tuple[type[Any], Any]]:
    """A dataclass and those that its fields are of, each with its part of ``values``, an instance of it or None."""
    yield cls, values
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from with_settings(hint, getattr(values, name, None))
