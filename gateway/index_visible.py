"""Which instances are shown: the one condition under QIDO-RS, WADO-RS by UID, C-FIND, C-MOVE and C-GET."""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause

from gateway.index_schema import instance


def visible(table: FromClause = instance) -> ColumnElement[bool]:
    """Rows of `instance` (or of an alias of it) that may be found and given back under their SOP Instance UID."""
    condition: ColumnElement[bool] = table.c.current
    return condition
