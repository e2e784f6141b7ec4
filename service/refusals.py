"""A trail of refusals that a hostile peer cannot make expensive: DICOM associations, tokens, sign-ins.

Every line of the audit trail is a durable commit. One for each packet, or each bad token, would let anybody who reaches
the port keep the database busy. So the first of a kind is written at once, the rest of a minute as one line with their
number.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway import metrics
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from service.trail import record

__all__ = ["RefusalTrail"]

#: Refusals of one kind from one address within this time become one line of the trail, with their number.
WINDOW_SECONDS = 60.0
#: Kinds and addresses kept apart; what comes beyond is counted under no address and nobody.
KEPT = 256

log = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """What is counted together. who: a verified actor, else ''."""

    event: Literal["refused", "login-failed"]
    source: Literal["dimse", "http"]
    reason: str
    address: str
    who: str


@dataclass
class _Refusals:
    """What was counted since the last line. actor: of the first one."""

    actor: str
    count: int = 0
    since: float = field(default_factory=time.monotonic)


class RefusalTrail:
    """Refusals in the audit trail of one process. Safe in threads; its own thread begins with the first refusal."""

    def __init__(self, gateway: Gateway, window_seconds: float = WINDOW_SECONDS) -> None:
        self._gateway = gateway
        self._window = window_seconds
        self._changed = threading.Condition()
        self._open: dict[_Kind, _Refusals] = {}
        self._due: Counter[tuple[_Kind, str]] = Counter()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def refuse(self, reason: str, address: str, actor: str = "") -> None:
        """Count a refused connection or association; never waits for the database. actor: calling AE title."""
        self._count(_Kind("refused", "dimse", reason, address, ""), actor)

    def refuse_login(self, reason: str, address: str, who: str = "") -> None:
        """Count a refused token, sign-in or role; never waits for the database. who: if that was verified."""
        self._count(_Kind("login-failed", "http", reason, address, who), who)

    def _count(self, kind: _Kind, actor: str) -> None:
        metrics.REFUSED.labels(source=kind.source, reason=kind.reason).inc()
        with self._changed:
            if kind not in self._open and len(self._open) >= KEPT:
                kind = kind._replace(address="", who="")
            found = self._open.get(kind)
            if found is not None:
                found.count += 1
                return
            self._open[kind] = _Refusals(actor)
            self._due[(kind, actor)] += 1
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="refusal-trail", daemon=True)
                self._thread.start()
            self._changed.notify()
        log.warning("refused", extra={"reason": kind.reason, "source": kind.source})

    def stop(self) -> None:
        """Write what was counted, and end."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._due and not self._stopped:
                    self._changed.wait(min(1.0, self._window))
                self._close_windows(all_of_them=self._stopped)
                due, self._due = self._due, Counter()
                stopped = self._stopped
            for (kind, actor), count in due.items():
                self._write(kind, actor, count)
            if stopped:
                return

    def _close_windows(self, *, all_of_them: bool) -> None:
        before = time.monotonic() - self._window
        for kind, found in list(self._open.items()):
            if all_of_them or found.since <= before:
                del self._open[kind]
                if found.count:
                    self._due[(kind, found.actor)] += found.count

    def _write(self, kind: _Kind, actor: str, count: int) -> None:
        try:
            record(
                self._gateway, kind.event, actor=actor or "unknown", outcome="refused", reason=kind.reason,
                source=kind.source, address=kind.address or None, count=count,
            )  # fmt: skip
        except PalimpsestError as error:  # it was refused in any case
            log.error("a refusal could not be audited", extra={"reason": error.reason})
