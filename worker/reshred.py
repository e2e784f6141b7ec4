"""A shredding that is newer than a restored database: its patients' names are in it again, and must go again."""

from __future__ import annotations

import hmac

from gateway.bootstrap import Gateway
from gateway.hotcache import cache_of
from gateway.index import InstanceRow
from gateway.instance import State
from gateway.pseudonym import pseudonym_uid

__all__ = ["shred_again"]

PAGE = 500


def shred_again(gw: Gateway, actor: str) -> int:
    """Forget every archived instance whose patient's key is destroyed; how many. Again: nothing happens.

    What is not archived yet stays: it is sealed to another key. Raises Unavailable.
    """
    key_ids = [stone.id for stone in gw.keys.tombstones()]
    pages = (key_ids[at : at + PAGE] for at in range(0, len(key_ids), PAGE))
    return sum(_forget(gw, page, actor) for page in pages)


def _forget(gw: Gateway, key_ids: list[str], actor: str) -> int:
    rows = [row for row in gw.index.subject(key_ids, "", "").rows if _remembered(row)]
    if not rows:
        return 0
    gw.index.shred_begin(actor, len(rows), "restored-backup", None)
    for row in rows:
        if row.state is State.ARCHIVED:
            gw.index.set_released(row.id, actor)
        gw.index.let_go(row.digest, gw.spool.remove)
    pseudonyms = gw.keys.pseudonym_key()
    cache_of(gw.settings).drop_instances(row.digest for row in rows)
    gw.index.forget(
        rows,
        rename=lambda uid: pseudonym_uid(uid, pseudonyms),
        rehash=lambda digest: hmac.new(pseudonyms, b"palimpsest/forgotten\x00" + digest.encode(), "sha256").hexdigest(),
    )
    gw.index.scrub_freed()
    gw.index.shred_done(actor, len(rows), "restored-backup", None, partial=False)
    return len(rows)


def _remembered(row: InstanceRow) -> bool:
    return row.shredded_at is None and row.patient_key is not None and row.archive_key is not None
