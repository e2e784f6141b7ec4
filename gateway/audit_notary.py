"""Signs heads of the trail while it grows, and checks the trail against them; who holds the key ring can do both.

The key ring's folder remembers the newest head of each series, and what it said of the trail. So who can write the
database and the folder of heads, but not the key ring, can neither forge heads, nor take the newest ones away
unnoticed, nor have us sign another trail by taking all of them away.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gateway import keyfile
from gateway.audit import GENESIS, AuditReport, digest_of, read_rows, values_of, verify
from gateway.audit_heads import Head, append_head, last_head, lines_of, read_heads, sign_head
from gateway.bootstrap import Gateway
from gateway.certificate_format import trusted_document
from gateway.errors import Unavailable

__all__ = ["check_trail", "heads_folder", "keep_head", "newest_head", "recheck_trail"]

log = logging.getLogger(__name__)

ANCHORS: Final = "audit-heads.json"  # in the key ring's folder
IDLE_SECONDS: Final = 3600.0  # a trail that did not grow gets a head this often: it shows that somebody was watching
LARGEST_STEP: Final = 100_000  # events between two heads: bounds how long one takes
LARGEST_RECHECK: Final = 20_000  # events read again at once: 28 million a day
RECHECK: Final = "recheck"  # name of its place, see Index.audit_state


def heads_folder(gw: Gateway) -> Path:
    """Where signed heads lie."""
    return gw.settings.audit_heads_folder or gw.settings.home / "audit-heads"


def keep_head(gw: Gateway) -> int:
    """Sign a head if one is due, over events that were checked since the last one; 1 if there is a new one.

    A trail that contradicts the last head gets none, but an alert. Raises Unavailable.
    """
    try:
        last = last_head(heads_folder(gw))
        age = abs(gw.index.now() - datetime.fromisoformat(last.at).timestamp()) if last else None
        if age is not None and age < gw.settings.audit_head_seconds:
            return 0
        if _lost_some(gw, last):
            message = "signed heads of the audit trail are missing: restore them from the syslog server's copy"
            gw.index.alert_raise("audit-heads-lost", "audit", message, "critical")
            last = None  # a new series begins, but only over the trail that the lost one was about
        _check_remembered(gw)
        seq, digest = _walk(gw, last.seq, last.hash, LARGEST_STEP) if last else _walk(gw, 0, GENESIS, LARGEST_STEP)
        if seq == 0 or (last is not None and seq == last.seq and age is not None and age < IDLE_SECONDS):
            return 0
        keys = gw.keys.certify_keys()
        line = sign_head(last, seq, digest, now=gw.index.now(), issuer=gw.settings.ae_title, keys=keys)
        head = append_head(heads_folder(gw), line)
        _anchor(gw, head)
    except _Broken as broken:
        message = (
            f"the audit trail contradicts its last signed head at event {broken.seq}: run `palimpsest audit verify`"
        )
        gw.index.alert_raise("audit-broken", "audit", message, "critical")
        return 0
    except OSError as error:
        raise Unavailable("audit-heads-unwritable", f"signed heads cannot be kept ({error.strerror})") from None
    return 1


def recheck_trail(gw: Gateway) -> int:
    """Read the next part of the chain again, from its beginning when the end was reached; how many events were whole.

    So what was changed long after it was signed is noticed by itself. Raises Unavailable.
    """
    place = gw.index.audit_state(RECHECK) or {}
    seq, previous = int(place.get("seq", 0)), str(place.get("hash", GENESIS))
    try:
        reached, digest = _walk(gw, seq, previous, LARGEST_RECHECK)
    except _Broken as broken:
        _alarm(gw, broken)
        reached, digest = 0, GENESIS
    whole = max(0, reached - seq)
    done = {"seq": reached, "hash": digest} if whole >= LARGEST_RECHECK else {}
    gw.index.audit_state_set(RECHECK, done, durable=False)
    return whole


def _alarm(gw: Gateway, broken: _Broken) -> None:
    message = f"the audit trail was changed at event {broken.seq}: run `palimpsest audit verify`"
    gw.index.alert_raise("audit-broken", "audit", message, "critical")


def check_trail(
    gw: Gateway, *, heads: Iterable[bytes] | None = None, trusted: Mapping[str, str] | None = None
) -> AuditReport:
    """The whole trail against its signed heads. heads: lines of a copy kept elsewhere, default: our folder; trusted:
    public keys, default: the key ring's own. Raises Unavailable.
    """
    folder = heads_folder(gw)
    try:
        ours = lines_of(folder) if folder.is_dir() else ()
        read = read_heads(
            ours if heads is None else heads,
            trusted_document(gw.keys.certify_keys()) if trusted is None else trusted,
            anchors=_anchors(gw) if heads is None else None,
            whole=heads is None,
        )
    except OSError as error:
        raise Unavailable("audit-heads-unreadable", f"signed heads cannot be read ({error.strerror})") from None
    if heads is None:
        here = {head.series for head in read.heads}
        remembered = {seq: said for series, (seq, said) in _remembered(gw).items() if series not in here}
        read = replace(read, remembered=remembered)
    return verify(gw.index, read)


def newest_head(gw: Gateway) -> Head | None:
    """The newest head in our folder, unchecked. Raises OSError."""
    return last_head(heads_folder(gw))


class _Broken(Exception):
    def __init__(self, seq: int) -> None:
        super().__init__(seq)
        self.seq = seq


def _walk(gw: Gateway, seq: int, previous: str, most: int) -> tuple[int, str]:
    """(seq, hash) of the newest event that follows from the one given, at most so many later. Raises _Broken."""
    if seq and gw.index.audit_hash(seq) != previous:
        raise _Broken(seq)
    first = seq
    for row in read_rows(gw.index, seq):
        if row["seq"] != seq + 1 or digest_of(values_of(row), previous) != row["hash"]:
            raise _Broken(seq + 1)
        seq, previous = row["seq"], row["hash"]
        if seq - first >= most:
            break
    return seq, previous


def _lost_some(gw: Gateway, last: Head | None) -> bool:
    anchors = _anchors(gw)
    if last is None:
        return bool(anchors)
    number, digest = anchors.get(last.series, (0, ""))
    return number > last.number or (number == last.number and digest != last.digest)


def _check_remembered(gw: Gateway) -> None:
    """Raise _Broken if an event that was the last one under a head is gone or another one."""
    for seq, said in _remembered(gw).values():
        if gw.index.audit_hash(seq) != said:
            raise _Broken(seq)


def _anchors(gw: Gateway) -> dict[str, tuple[int, str]]:
    """series -> (number, digest) of its newest head."""
    return _kept(gw, "series")


def _remembered(gw: Gateway) -> dict[str, tuple[int, str]]:
    """series -> (number, hash) of the event that its newest head ends with; none from before this was kept."""
    return _kept(gw, "trail")


def _kept(gw: Gateway, what: str) -> dict[str, tuple[int, str]]:
    try:
        kept: Any = json.loads((gw.keys.folder / ANCHORS).read_bytes())
        found = kept["series"] if what == "series" else kept.get(what, {})
        return {str(series): (int(number), str(digest)) for series, (number, digest) in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unavailable("audit-anchor-damaged", f"{ANCHORS} in the key ring's folder cannot be read") from None


def _anchor(gw: Gateway, head: Head) -> None:
    with keyfile.locked(gw.keys.folder, "audit-heads.lock"):  # other hosts may share the folder
        series = {**_anchors(gw), head.series: (head.number, head.digest)}
        trail = {**_remembered(gw), head.series: (head.seq, head.hash)}
        keyfile.write_atomic(gw.keys.folder / ANCHORS, json.dumps({"series": series, "trail": trail}).encode())
