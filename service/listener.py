"""The DICOM listener: a process of its own (`python -m service.listener`) that takes C-ECHO and C-STORE,
answers C-FIND, C-MOVE and C-GET, and commits to what is archived.

It accepts every storage SOP class, private and unknown ones too, in every transfer syntax of PS3.6, on several
associations at once.  There may be two ports, plain and TLS, and several processes behind both: the first one binds
them and forks the others (`PALIMPSEST_LISTENER_PROCESSES`), which accept from the same sockets.
"""

from __future__ import annotations

import gc
import logging
import secrets
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from gateway import steps
from gateway.alive import Alive
from gateway.bootstrap import Gateway, build
from gateway.commitment import PUSH_MODEL
from gateway.errors import PolicyRefused
from gateway.jobs import new_owner
from gateway.lifecycle import announced
from gateway.log import configure_logging
from gateway.settings import Settings, load_settings
from gateway.tls import FreshContext, server_context
from service.listener_commitment import on_commitment_action, on_commitment_report, on_requested_commitment
from service.listener_commitment_tell import Teller
from service.listener_identifier import MODELS
from service.listener_limits import Connections
from service.listener_processes import Sockets, open_sockets
from service.listener_query import QUERY_SYNTAXES, on_async_operations, on_extended, on_requested_query
from service.listener_receive import SpoolingServer
from service.listener_store import on_echo, on_limits, on_rejected, on_requested, refusing, storing
from service.listener_stream import MIB, Door
from service.processes import run_processes
from service.refusals import RefusalTrail

__all__ = ["Listener", "check_ports", "main", "run_listener"]

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
    """The association servers over one gateway. `start`, then `stop`; `port` and `tls_port` are the real ones, also
    when 0 was asked for, and None where that port is closed.
    """

    def __init__(self, gateway: Gateway, sockets: Sockets | None = None) -> None:
        """sockets: those that several processes share; default: its own. Raises PolicyRefused (see `check_ports`)."""
        configure_pynetdicom()
        settings = gateway.settings
        check_ports(settings)
        settings.incoming_dir.mkdir(parents=True, exist_ok=True)
        self._gateway = gateway
        self._refusals = RefusalTrail(gateway)
        self._teller = Teller(gateway)
        self._door = Door(
            gateway.spool,
            storing(gateway),
            refusing(gateway),
            Connections(settings, settings.listener_processes if sockets else 1),
            self._refusals,
            settings.network_timeout_seconds,
        )
        self._entity = self._make_entity(settings)
        shared = sockets or Sockets(None, None)
        self._servers: dict[bool, SpoolingServer] = {}
        if settings.listens_plain:
            self._servers[False] = self._make_server(settings.dicom_port, None, shared.plain)
        if settings.listens_tls:
            files = (settings.dicom_tls_cert, settings.dicom_tls_key, settings.dicom_tls_ca)
            tls = FreshContext(lambda: server_context(settings), *files)
            self._servers[True] = self._make_server(settings.dicom_tls_port, tls, shared.tls)

    def _make_entity(self, settings: Settings) -> AE:
        entity = AE(ae_title=settings.ae_title)
        entity.add_supported_context(Verification)
        for model in MODELS:
            entity.add_supported_context(model, list(QUERY_SYNTAXES))
        entity.add_supported_context(PUSH_MODEL, list(QUERY_SYNTAXES), scu_role=True, scp_role=True)
        entity.maximum_pdu_size = settings.max_pdu or DEFAULT_PDU
        entity.maximum_associations = sys.maxsize  # `Connections` counts: pynetdicom's number holds idle sockets, too
        entity.network_timeout = settings.network_timeout_seconds
        entity.acse_timeout = ACSE_TIMEOUT_SECONDS
        entity.require_calling_aet = _allowed_titles(settings)
        return entity

    def _make_server(self, port: int, tls: FreshContext | None, shared: socket.socket | None) -> SpoolingServer:
        settings, door = self._gateway.settings, self._door
        handlers = [
            (evt.EVT_REQUESTED, on_limits, [door.connections, door.refusals, settings]),
            (evt.EVT_REQUESTED, on_requested),
            (evt.EVT_REQUESTED, on_requested_query, [self._gateway]),
            (evt.EVT_REQUESTED, on_requested_commitment),
            (evt.EVT_N_ACTION, on_commitment_action, [self._gateway, self._teller]),
            (evt.EVT_N_EVENT_REPORT, on_commitment_report, [self._gateway]),
            (evt.EVT_SOP_EXTENDED, on_extended),
            (evt.EVT_ASYNC_OPS, on_async_operations),
            (evt.EVT_REJECTED, on_rejected, [door.refusals]),
            (evt.EVT_C_ECHO, on_echo),
        ]
        return self._entity.make_server(  # type: ignore[return-value]
            (settings.dicom_host, port),
            evt_handlers=handlers,  # type: ignore[arg-type]
            server_class=SpoolingServer,
            door=door,
            tls=tls,
            listening=shared,
        )

    @property
    def port(self) -> int | None:
        """The TCP port of plain DICOM."""
        return self._port(tls=False)

    @property
    def tls_port(self) -> int | None:
        """The TCP port of DICOM over TLS."""
        return self._port(tls=True)

    def _port(self, *, tls: bool) -> int | None:
        return int(self._servers[tls].server_address[1]) if tls in self._servers else None

    def start(self) -> None:
        """Accept associations, in threads of their own."""
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
        self._teller.start()
        log.info("listening", extra={"port": self.port, "tls_port": self.tls_port})

    def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Accept no more, let running associations end for `grace_seconds`, then abort them.

        An aborted sender has no Success for the object under way and sends it again; nothing half-written stays.
        """
        self._teller.stop()
        for server in self._servers.values():
            server.shutdown()
        deadline = time.monotonic() + grace_seconds
        while self._active() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = self._active()
        for association in left:  # in threads: aborting waits for a peer that may be silent in the middle of a PDU
            threading.Thread(target=association.abort, daemon=True).start()
        deadline = time.monotonic() + ABORT_SECONDS
        for association in left:
            association.join(timeout=max(0.0, deadline - time.monotonic()))
            association.discard_leftovers()
        self._refusals.stop()

    def _active(self) -> list[Any]:
        return [association for server in self._servers.values() for association in server.active_associations]


def check_ports(settings: Settings) -> None:
    """Raise PolicyRefused ``no-dicom-port`` if neither port would be open: production means TLS."""
    if not settings.listens_plain and not settings.listens_tls:
        raise PolicyRefused(
            "no-dicom-port",
            "outside the demo profile DICOM needs TLS: set PALIMPSEST_DICOM_TLS_CERT, _KEY and _CA, or say "
            "PALIMPSEST_DICOM_PLAIN=allow where the network is protected otherwise",
        )


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
    """Serve until SIGTERM or SIGINT, in this process or in several."""
    if settings.listener_processes == 1:
        serve(settings, None)
        return
    check_ports(settings)
    build(settings).close()  # what is wrong with the settings or the database is said here, once
    sockets = open_sockets(settings)
    run_processes(settings.listener_processes, lambda: serve(settings, sockets))


def serve(settings: Settings, sockets: Sockets | None) -> None:
    """One process's work, until SIGTERM or SIGINT."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    gateway = build(settings)
    steps.watch(settings, "listener")
    listener = Listener(gateway, sockets)
    alive = Alive(gateway.index, new_owner("listener"), "listener")
    gc.collect()
    gc.freeze()  # what is there now stays: collections, which stop every association, need not look at it
    listener.start()
    alive.start()
    stopping.wait()
    alive.close()
    listener.stop()
    steps.unwatch()


def main() -> None:
    """`python -m service.listener`."""
    settings = load_settings()
    configure_logging(settings)
    logging.captureWarnings(True)  # pydicom's warnings quote values; as log records their text is withheld
    with announced(settings, "listener"):
        run_listener(settings)


if __name__ == "__main__":
    main()
