"""What many doors' threads make durable together: receipts of files, and wake-ups that follow them (`GroupCommit`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.groupcommit import GroupCommit
from gateway.index import Index
from gateway.index_rows import InstanceRow, NewInstance
from gateway.jobs import JobQueue, flush_outbox
from gateway.spool import Spool

__all__ = ["Receipt", "receipts", "wake_ups"]


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
        return index.add_received_many([each.new for each in batch])

    return GroupCommit(store)


def wake_ups(index: Index, queue: JobQueue, encode_queue: str) -> GroupCommit[int, None]:
    """Sends the outbox messages of an instance, by its id. Raises Unavailable: the queue is away, they stay."""

    def send(batch: Sequence[int]) -> list[None]:
        flush_outbox(index, queue, instances=batch, encode_queue=encode_queue)
        return [None] * len(batch)

    return GroupCommit(send)
