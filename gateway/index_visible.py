"""Which instances are shown: the one condition under QIDO-RS, WADO-RS by UID, C-FIND, C-MOVE and C-GET."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from gateway.index_schema import instance, rejection


def visible(table: FromClause = instance) -> ColumnElement[bool]:
    """Rows of `instance` (or of an alias of it) that may be found and given back under their SOP Instance UID.

    Not those that a rejection note hides (IHE RAD TF-2 4.66): it counts for its own study only, whichever came first.
    """
    hidden = sa.exists().where(
        rejection.c.sop_uid == table.c.sop_uid, rejection.c.study_uid == table.c.study_uid, rejection.c.hidden
    )
    return sa.and_(table.c.current, ~hidden)
