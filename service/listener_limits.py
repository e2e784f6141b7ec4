"""Who may connect, how many at once, and a trail of refusals that a hostile peer cannot make expensive.

A connection passes two gates. At accept, before a byte is read: address and number of connections; a refused one is
closed, because only an association can be rejected. At the A-ASSOCIATE-RQ: number of associations, in all and from one
address (PS3.8 9.3.4: rejected-transient, presentation related, local-limit-exceeded).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gateway import metrics
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.settings import Settings
from service.trail import record

__all__ = ["Connections", "RefusalTrail"]

#: Connections without an association, in one process; a scanner or a flood holds no more. From one address: a quarter.
WAITING_CONNECTIONS = 64
WAITING_FROM_ONE = WAITING_CONNECTIONS // 4
#: Refusals of one kind from one address within this time become one line of the trail, with their number.
WINDOW_SECONDS = 60.0
#: Kinds and addresses kept apart; what comes beyond is counted under no address.
KEPT = 256

Peer = tuple[Any, ...]

log = logging.getLogger(__name__)


class Connections:
    """The open connections of one process. Safe in threads. A peer is named by its socket address: host, port, ..."""

    def __init__(self, settings: Settings, processes: int = 1) -> None:
        """processes: how many share the settings' limits."""
        self._settings = settings
        self._associations = -(-settings.max_associations // processes)
        self._from_one = -(-settings.max_associations_per_peer // processes) or self._associations
        self._lock = threading.Lock()
        self._waiting: dict[Peer, str] = {}
        self._associated: dict[Peer, str] = {}

    @property
    def associated(self) -> int:
        """Associations that are open."""
        return len(self._associated)

    def admit(self, peer: Peer) -> str:
        """A new connection: '' if it may stay, else why not."""
        host = str(peer[0])
        if not self._settings.allows_address(host):
            return "address-not-allowed"
        with self._lock:
            if len(self._waiting) >= WAITING_CONNECTIONS:
                return "too-many-connections"
            if sum(other == host for other in self._waiting.values()) >= WAITING_FROM_ONE:
                return "too-many-connections-from-address"
            self._waiting[peer] = host
        return ""

    def associate(self, peer: Peer) -> str:
        """Its association request came: '' if it may be negotiated, else why not."""
        with self._lock:
            host = self._waiting.pop(peer, str(peer[0]))
            if len(self._associated) >= self._associations:
                return "too-many-associations"
            if sum(other == host for other in self._associated.values()) >= self._from_one:
                return "too-many-associations-from-address"
            self._associated[peer] = host
        return ""

    def gone(self, peer: Peer) -> None:
        """The connection has ended, however. May be called twice."""
        with self._lock:
            self._waiting.pop(peer, None)
            self._associated.pop(peer, None)


@dataclass
class _Refusals:
    """What was counted since the last line. actor: of the first one."""

    actor: str
    count: int = 0
    since: float = field(default_factory=time.monotonic)


class RefusalTrail:
    """Refused connections and associations in the audit trail: the first at once, the rest of a minute as one line.

    Every line is a durable commit. One for each packet would let anybody who reaches the port keep the database busy.
    """

    def __init__(self, gateway: Gateway, window_seconds: float = WINDOW_SECONDS) -> None:
        self._gateway = gateway
        self._window = window_seconds
        self._changed = threading.Condition()
        self._open: dict[tuple[str, str], _Refusals] = {}
        self._due: Counter[tuple[str, str, str]] = Counter()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="refusal-trail", daemon=True)
        self._thread.start()

    def refuse(self, reason: str, address: str, actor: str = "") -> None:
        """Count one refusal; never waits for the database. actor: calling AE title, if one was said."""
        metrics.REFUSED.labels(source="dimse", reason=reason).inc()
        with self._changed:
            key = (reason, address)
            if key not in self._open and len(self._open) >= KEPT:
                key = (reason, "")
            found = self._open.get(key)
            if found is None:
                self._open[key] = _Refusals(actor)
                self._due[(*key, actor)] += 1
                self._changed.notify()
                log.warning("connection refused", extra={"reason": reason})
            else:
                found.count += 1

    def stop(self) -> None:
        """Write what was counted, and end."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._due and not self._stopped:
                    self._changed.wait(min(1.0, self._window))
                self._close_windows(all_of_them=self._stopped)
                due, self._due = self._due, Counter()
                stopped = self._stopped
            for (reason, address, actor), count in due.items():
                self._write(reason, address, actor, count)
            if stopped:
                return

    def _close_windows(self, *, all_of_them: bool) -> None:
        before = time.monotonic() - self._window
        for key, found in list(self._open.items()):
            if all_of_them or found.since <= before:
                del self._open[key]
                if found.count:
                    self._due[(*key, found.actor)] += found.count

    def _write(self, reason: str, address: str, actor: str, count: int) -> None:
        try:
            record(
                self._gateway, "refused", actor=actor or "unknown", outcome="refused", reason=reason, source="dimse",
                address=address or None, count=count,
            )  # fmt: skip
        except PalimpsestError as error:  # the peer was refused in any case
            log.error("a refusal could not be audited", extra={"reason": error.reason})
