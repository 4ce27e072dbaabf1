"""How the command line's help tells defaults; the texts themselves are the docstrings of the fields."""

from tyro.conf import arg


def unless_none(default: str) -> str:
    """What the help says of a default, where the text does not say what None, or nothing, means already."""
    return "" if default in ("None", "") else f"(default: {default})"


DEFAULT_TOLD = arg(help_behavior_hint=unless_none)
"""For an argument whose text says what happens if it is left out: the help would add "(default: None)"."""
