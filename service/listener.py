"""The DICOM listener: a process of its own (`python -m service.listener`) that takes C-ECHO and C-STORE,
and answers C-FIND, C-MOVE and C-GET.

It accepts every storage SOP class, private and unknown ones too, in every transfer syntax of PS3.6, on several
associations at once.  One process holds one port; more throughput is more processes behind a TCP balancer.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from types import FrameType
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from gateway.bootstrap import Gateway, build
from gateway.log import configure_logging
from gateway.settings import Settings, load_settings
from service.listener_identifier import MODELS
from service.listener_query import QUERY_SYNTAXES, on_async_operations, on_extended, on_requested_query
from service.listener_receive import MIB, ReceiveLimits, SpoolingServer
from service.listener_store import on_echo, on_rejected, on_requested, refusing, storing

__all__ = ["Listener", "main", "run_listener"]

#: Announced maximum PDU when the settings leave it open. Unlimited would let a sender put a whole object into one PDU,
#: and so in memory.
DEFAULT_PDU = MIB
STOP_GRACE_SECONDS = 5.0
ABORT_SECONDS = 2.0
ACSE_TIMEOUT_SECONDS = 30.0

log = logging.getLogger(__name__)


def configure_pynetdicom() -> None:
    """Process-wide switches of pynetdicom; they exist only as module variables (pynetdicom `_config`)."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"  # its handlers print command and data sets
    # A wrong UID shall reach the handler, which answers 0x0117; pynetdicom would abort the association.
    _config.VALIDATORS["UI"] = lambda value: (True, "")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


class Listener:
    """The association server over one gateway. `start`, then `stop`; `port` is the real one, also when 0 was asked
    for.
    """

    def __init__(self, gateway: Gateway) -> None:
        configure_pynetdicom()
        settings = gateway.settings
        settings.incoming_dir.mkdir(parents=True, exist_ok=True)
        self._gateway = gateway
        self._server = self._make_server(settings)
        self._thread: threading.Thread | None = None

    def _make_server(self, settings: Settings) -> SpoolingServer:
        entity = AE(ae_title=settings.ae_title)
        entity.add_supported_context(Verification)
        for model in MODELS:
            entity.add_supported_context(model, list(QUERY_SYNTAXES))
        entity.maximum_pdu_size = settings.max_pdu or DEFAULT_PDU
        entity.maximum_associations = settings.max_associations
        entity.network_timeout = settings.network_timeout_seconds
        entity.acse_timeout = ACSE_TIMEOUT_SECONDS
        entity.require_calling_aet = _allowed_titles(settings)
        handlers = [
            (evt.EVT_REQUESTED, on_requested),
            (evt.EVT_REQUESTED, on_requested_query, [self._gateway]),
            (evt.EVT_SOP_EXTENDED, on_extended),
            (evt.EVT_ASYNC_OPS, on_async_operations),
            (evt.EVT_REJECTED, on_rejected, [self._gateway]),
            (evt.EVT_C_ECHO, on_echo),
        ]
        return entity.make_server(  # type: ignore[return-value]
            (settings.dicom_host, settings.dicom_port),
            evt_handlers=handlers,  # type: ignore[arg-type]
            server_class=SpoolingServer,  # type: ignore[arg-type]
            limits=ReceiveLimits(idle_seconds=settings.network_timeout_seconds),
            spool=self._gateway.spool,
            store=storing(self._gateway),
            refuse=refusing(self._gateway),
        )

    @property
    def port(self) -> int:
        """The TCP port bound."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Accept associations, in a thread of its own."""
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        self._thread.start()
        log.info("listening", extra={"port": self.port})

    def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Accept no more, let running associations end for `grace_seconds`, then abort them.

        An aborted sender has no Success for the object under way and sends it again; nothing half-written stays.
        """
        self._server.shutdown()
        deadline = time.monotonic() + grace_seconds
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        left: list[Any] = list(self._server.active_associations)
        for association in left:  # in threads: aborting waits for a peer that may be silent in the middle of a PDU
            threading.Thread(target=association.abort, daemon=True).start()
        deadline = time.monotonic() + ABORT_SECONDS
        for association in left:
            association.join(timeout=max(0.0, deadline - time.monotonic()))
            association.discard_leftovers()


def _allowed_titles(settings: Settings) -> list[str]:
    """Calling AE titles for pynetdicom's check, in which an empty list means any."""
    if settings.calling_ae_allow:
        return list(settings.calling_ae_allow)
    if settings.allows_calling_ae("ANY-SCU"):
        return []
    log.error(
        "no calling AE title is allowed: every association will be rejected", extra={"reason": "empty-allow-list"}
    )
    return [secrets.token_hex(8)]  # nobody's title


def run_listener(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    listener = Listener(build(settings))
    listener.start()
    stopping.wait()
    listener.stop()


def main() -> None:
    """`python -m service.listener`."""
    settings = load_settings()
    configure_logging(settings)
    logging.captureWarnings(True)  # pydicom's warnings quote values; as log records their text is withheld
    run_listener(settings)


if __name__ == "__main__":
    main()
