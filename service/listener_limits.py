"""Who may connect over DICOM, and how many at once.

A connection passes two gates. At accept, before a byte is read: address and number of connections; a refused one is
closed, because only an association can be rejected. At the A-ASSOCIATE-RQ: number of associations, in all and from one
address (PS3.8 9.3.4: rejected-transient, presentation related, local-limit-exceeded).
"""

from __future__ import annotations

import threading
from typing import Any

from gateway.settings import Settings

__all__ = ["Connections"]

#: Connections without an association, in one process; a scanner or a flood holds no more. From one address: a quarter.
WAITING_CONNECTIONS = 64
WAITING_FROM_ONE = WAITING_CONNECTIONS // 4

Peer = tuple[Any, ...]


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
