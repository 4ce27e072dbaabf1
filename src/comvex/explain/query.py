"""The patch to look from, as a user names it."""

from __future__ import annotations

from comvex.errors import UserError


def parse_query(text: str | None, grid: tuple[int, int]) -> tuple[int, int]:
    """'X,Y', the patch's column and row counted from 0, as (row, column); None is the patch in the middle.

    Raises ``ValueError`` if it is no such pair, or lies outside the grid (rows, columns).
    """
    rows, columns = grid
    if text is None:
        return rows // 2, columns // 2
    allowed = f"it must be X,Y with the patch's column X from 0 to {columns - 1} and row Y from 0 to {rows - 1}."
    try:
        column, row = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"query is {text!r}: {allowed}") from error
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(f"query is {text!r}: {allowed}")
    return row, column
