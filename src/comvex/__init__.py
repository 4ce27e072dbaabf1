"""comvex: ConViT, exact at nearly the cost of plain attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comvex.inference.predictor import Predictor, load, load_exported

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "load", "load_exported"]


def __getattr__(name: str) -> Any:
    """Import what uses torch only when it is asked for, so that the command line starts at once."""
    if name in ("Predictor", "load", "load_exported"):
        from comvex.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
