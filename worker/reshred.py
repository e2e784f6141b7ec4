"""A shredding that is newer than a restored database: its patients' names are in it again, and must go again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Final

from gateway.bootstrap import Gateway
from gateway.errors import NotFound
from gateway.index import InstanceRow
from gateway.moment import moment
from gateway.pseudonym import pseudonym_uid
from worker.sealing import patient_label
from worker.shred import forget_all, keeps_source

__all__ = ["shred_again"]

PAGE: Final = 500  # keys asked for at once, and rows held at once
SLACK: Final = 1.0  # seconds between the clocks of whoever received and whoever shredded


def shred_again(gw: Gateway, actor: str) -> int:
    """Forget every instance that a shredding took which the database does not know of; how many. Again: nothing
    happens. What a backup holds unfinished, only the archive may tell of: `Index.restore_over` is the caller's, once
    that was read.

    What is not archived and still in the spool stays: it is sealed to another key; so does what is sealed whole and
    still in the spool: nobody said yet that its image may go, too. Raises Unavailable.
    """
    forgotten = 0
    for rows in chain(_sealed(gw), _abandoned(gw)):
        gw.index.shred_begin(actor, len(rows), "restored-backup", None)
        _forget(gw, rows, actor)
        forgotten += len(rows)
    gw.index.discard_forgotten()
    if forgotten or gw.index.restore_unfinished():
        gw.index.scrub_freed()
    if forgotten:
        gw.index.shred_done(actor, forgotten, "restored-backup", None, partial=False)
    return forgotten


def _sealed(gw: Gateway) -> Iterator[list[InstanceRow]]:
    """Archived instances under keys that are destroyed, a page at a time."""
    key_ids = [stone.id for stone in gw.keys.tombstones()]
    for at in range(0, len(key_ids), PAGE):
        last = 0
        while rows := gw.index.sealed_after(last, key_ids[at : at + PAGE], PAGE):
            last = rows[-1].id
            kept = {row.id for row in rows if _kept(gw, row)}
            for key_id in {row.patient_key for row in rows if row.id in kept and row.patient_key is not None}:
                gw.index.shred_unfinished(key_id)
            if len(kept) < len(rows):
                yield [row for row in rows if row.id not in kept]


def _kept(gw: Gateway, row: InstanceRow) -> bool:
    """Whether a shredding left it (worker/shred.py): sealed whole, the source is all there is of its image."""
    return keeps_source(row) and gw.spool.exists(row.digest)


def _abandoned(gw: Gateway) -> Iterator[list[InstanceRow]]:
    """Unfinished instances whose file a shredding took: the database is from before they were archived."""
    destroyed = {stone.id: moment(stone.destroyed) for stone in gw.keys.tombstones()}
    last = 0
    while page := gw.index.unfinished_after(last, PAGE):
        last = page[-1][0].id
        if rows := [
            row for row, named in page if not gw.spool.exists(row.digest) and _taken(gw, row, named, destroyed)
        ]:
            yield rows


def _taken(gw: Gateway, row: InstanceRow, patient_id: str | None, destroyed: Mapping[str, float]) -> bool:
    """Whether its patient was shredded after it came: by its key, or before it has one by its patient's keys, or, where
    it was not indexed yet and nothing tells whose it is, by what the archive's object of the same instance says (after
    a rebuild).
    """
    if row.patient_key is not None:
        return row.patient_key in destroyed  # under a living one the candidate is finished without a source
    since = row.received_at - SLACK
    if patient_id is not None:
        label = patient_label(patient_id, row.study_uid or f"palimpsest/no-study/{row.digest}")
        if any(destroyed.get(each, 0.0) >= since for each in gw.keys.patient_key_ids(label)):
            return True
    names = (pseudonym_uid(row.sop_uid, each) for each in gw.keys.pseudonym_keys())
    return any((twin.shredded_at or 0.0) >= since for name in names for twin in gw.index.versions(name))


def _forget(gw: Gateway, rows: list[InstanceRow], actor: str) -> None:
    _shown_as_themselves(gw, rows, actor)
    forget_all(gw, rows, actor)


def _shown_as_themselves(gw: Gateway, rows: list[InstanceRow], actor: str) -> None:
    """Take back what shows other patients' objects under these identities: a shredding is refused until that is done,
    so it was, after the backup.
    """
    if merges := gw.index.merges_into([row.id for row in rows]):
        for number in merges:
            with suppress(NotFound):  # revoked, and not taken back everywhere yet
                gw.index.correction_revoke(number, actor)
        gw.index.corrections_run()
