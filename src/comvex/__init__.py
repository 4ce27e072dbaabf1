"""comvex: ConViT, exact at the cost of plain attention."""

__version__ = "0.1.0"
