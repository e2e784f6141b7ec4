"""Receipts of files, which many threads of a door make durable together (`GroupCommit`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import OutOfResources, Unavailable
from gateway.groupcommit import GroupCommit
from gateway.index import Index
from gateway.index_rows import InstanceRow, NewInstance
from gateway.spool import Spool

__all__ = ["Receipt", "receipts"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A file received and fsynced in `incoming/`, and the row that it wants."""

    temporary: Path
    new: NewInstance


def receipts(spool: Spool, index: Index) -> GroupCommit[Receipt, InstanceRow | None]:
    """Answers a receipt with its row once file, name, row, audit event and outbox are durable.

    None: the UID is known already; the file lies under its digest, and what it is, is for the caller to find out.
    """

    def store(batch: Sequence[Receipt]) -> list[InstanceRow | None]:
        spool.place_many([(each.temporary, each.new.digest) for each in batch])
        return index.add_received_many([each.new for each in batch], spooled=spool.exists)

    return GroupCommit(store, shared=(OutOfResources, Unavailable))
