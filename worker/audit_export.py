"""Sends the audit trail, and its signed heads, to the syslog server: in order, at least once, never in anybody's way.

The events wait in their table and the place in it is a row: so a server that is away costs no memory, nothing is lost
over a restart of either side, and what was sent but not confirmed is sent again.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Protocol

from gateway.audit_heads import MAX_LINE, head_files
from gateway.audit_message import messages, source_of
from gateway.audit_notary import heads_folder
from gateway.audit_standing import STATE
from gateway.audit_syslog import SyslogConnection, event_line, head_line
from gateway.bootstrap import Gateway
from gateway.certificate import software
from gateway.errors import PalimpsestError, Unavailable
from gateway.index_audit import AuditQuery
from gateway.keyfile import write_atomic
from gateway.tls import syslog_context
from worker.leases import backoff_seconds

__all__ = ["deliver", "run_audit_export"]

log = logging.getLogger(__name__)

BATCH: Final = 200  # events read, and sent, at once
MOST: Final = 2000  # events over one connection: only its end says that they arrived
SETTLE_SECONDS: Final = 5.0  # until an instance is indexed, and its patient known
LEASE_SECONDS: Final = 120.0
FIRST_PAUSE_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 300.0
ALERT_AFTER: Final = 5  # attempts
SENT: Final = "sent.json"  # in the folder of heads
State = dict[str, Any]


class Connection(AbstractContextManager["Connection"], Protocol):
    """What `SyslogConnection` does."""

    def send(self, lines: Iterator[bytes]) -> None: ...

    def finish(self) -> None: ...


Connect = Callable[[], Connection]


def deliver(gw: Gateway, connect: Connect, *, node: str = "") -> int:
    """Send what is due; how many messages arrived. Raises Unavailable when the database does."""
    node = node or socket.gethostname()
    owner = f"{node}/{os.getpid()}"
    heads = _heads_place(gw)
    kept = gw.index.audit_state(STATE) or {}
    if kept.get("due_at", 0.0) > gw.index.now():
        return 0
    claimed = gw.index.audit_claim(STATE, owner, LEASE_SECONDS) if _more_events(gw, kept) else None
    if claimed is None and next(_head_lines(gw, heads, node), None) is None:
        return 0
    try:
        with connect() as connection:
            events, count = _send_events(gw, connection, claimed, node) if claimed is not None else ({}, 0)
            sent_heads = _send_heads(gw, connection, heads, node)
            connection.finish()
    except Unavailable as error:
        _put_off(gw, claimed if claimed is not None else gw.index.audit_state(STATE) or {}, error.reason)
        return 0
    done = {"attempts": 0, "due_at": 0.0, "reason": None}
    if claimed is not None:
        gw.index.audit_state_set(STATE, {**claimed, **events, **done, "lease_until": 0.0}, durable=False)
    if sent_heads:
        write_atomic(heads_folder(gw) / SENT, json.dumps(heads).encode())
    return count + sent_heads


def _heads_place(gw: Gateway) -> State:
    """How far the heads of this folder were sent: it lies with them, for hosts may share the folder or not."""
    try:
        place = json.loads((heads_folder(gw) / SENT).read_bytes())
        return {"file": str(place["file"]), "offset": int(place["offset"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _more_events(gw: Gateway, state: State) -> bool:
    first = gw.index.audit_search(AuditQuery(after=_after(gw, state), oldest_first=True, limit=1))
    return bool(first) and _settled(gw, first[0])


def _after(gw: Gateway, state: State) -> int:
    """Where to go on. A trail that does not hold the last event sent is another one: it is sent from its beginning."""
    seq = int(state.get("seq", 0))
    return seq if seq and gw.index.audit_hash(seq) == state.get("hash") else 0


def _settled(gw: Gateway, line: dict[str, Any]) -> bool:
    return not 0 <= gw.index.now() - line["at_us"] / 1_000_000 < SETTLE_SECONDS


def _send_events(gw: Gateway, connection: Connection, state: State, node: str) -> tuple[State, int]:
    """(the place after them, how many) of the events sent."""
    source = source_of(gw.settings, node, software())
    msgid = gw.settings.audit_syslog_msgid
    place: State = {}
    after, count = _after(gw, state), 0
    while count < MOST:
        lines = gw.index.audit_search(AuditQuery(after=after, oldest_first=True, limit=BATCH))
        ready = list(takewhile(lambda line: _settled(gw, line), lines))
        if not ready:
            break
        connection.send(event_line(message, msgid) for message in messages(gw, ready, source))
        after, count = ready[-1]["seq"], count + len(ready)
        place = {"seq": after, "hash": ready[-1]["hash"]}
    return place, count


def _send_heads(gw: Gateway, connection: Connection, place: State, node: str) -> int:
    """Send signed heads that are new since `place`, which moves along."""
    count = 0
    for line, file, offset in _head_lines(gw, dict(place), node):
        connection.send(iter([line]))
        place |= {"file": file, "offset": offset}
        count += 1
    return count


def _head_lines(gw: Gateway, place: State, node: str) -> Iterator[tuple[bytes, str, int]]:
    """(message, name of the file, offset after it) of every head after `place`, at most MOST."""
    left = MOST
    for path in head_files(heads_folder(gw)):
        if path.name < place.get("file", ""):
            continue
        for line, offset in _lines_after(path, place.get("offset", 0) if path.name == place.get("file") else 0):
            yield head_line(line, node, datetime.now(UTC)), path.name, offset
            left -= 1
            if not left:
                return


def _lines_after(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while (line := file.readline(MAX_LINE)).endswith(b"\n"):
                if line.strip():
                    yield line.strip(), file.tell()
    except OSError as error:
        raise Unavailable("audit-heads-unreadable", f"signed heads cannot be read ({error.strerror})") from None


def _put_off(gw: Gateway, state: State, reason: str) -> None:
    attempts = int(state.get("attempts", 0)) + 1
    pause = backoff_seconds(attempts, base=FIRST_PAUSE_SECONDS, cap=LONGEST_PAUSE_SECONDS)
    later = {"attempts": attempts, "due_at": gw.index.now() + pause, "reason": reason}
    gw.index.audit_state_set(STATE, {**state, **later}, durable=False)
    log.warning("the audit trail could not be exported", extra={"reason": reason, "count": attempts})
    if attempts == ALERT_AFTER:
        message = f"the syslog server takes no audit messages ({reason}); they wait, nothing is lost"
        gw.index.alert_raise("audit-export-down", "syslog", message, "warning")


def run_audit_export(gw: Gateway, stop: threading.Event) -> threading.Thread | None:
    """Start the thread that exports until `stop`; None where no server is configured."""
    if not gw.settings.audit_syslog_host:
        return None
    thread = threading.Thread(target=_run, args=(gw, stop), name="audit-export", daemon=True)
    thread.start()
    return thread


def _run(gw: Gateway, stop: threading.Event) -> None:
    settings = gw.settings

    def connect() -> SyslogConnection:
        context = syslog_context(settings)  # each time: certificates are renewed without a restart
        return SyslogConnection(
            settings.audit_syslog_host, settings.audit_syslog_port, context, settings.audit_syslog_name,
            close_notify=settings.audit_syslog_close == "close-notify",
        )  # fmt: skip

    while not stop.is_set():
        try:
            sent = deliver(gw, connect)
        except PalimpsestError as error:
            log.warning("the audit trail could not be exported", extra={"reason": error.reason})
            sent = 0
        if sent < MOST:
            stop.wait(max(1.0, settings.poll_seconds))
