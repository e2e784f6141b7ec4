"""A small C-STORE destination, so that `make run` shows forwarding: keeps what it gets as files, answers Success.

It is a demonstration, not an archive: no index, no queries. One file per SOP Instance UID; a repeated object replaces
the older file by rename, so that a reader never sees half of one.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import typer
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.presentation import AllStoragePresentationContexts, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

AE_TITLE = "DEMO_ARCHIVE"
SUCCESS = 0x0000
CANNOT_UNDERSTAND = 0xC000  # PS3.4 B.2.3
OUT_OF_RESOURCES = 0xA700
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


def store(event: Event, folder: Path) -> int:
    """C-STORE handler: writes one Part 10 file into `folder`; returns the DIMSE status."""
    uid = str(getattr(event.request, "AffectedSOPInstanceUID", ""))
    if not uid or not set(uid) <= set("0123456789."):
        return CANNOT_UNDERSTAND
    target = folder / f"{uid}.dcm"
    temporary = target.with_suffix(f".{threading.get_ident()}.part")
    try:
        temporary.write_bytes(event.encoded_dataset())
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        return OUT_OF_RESOURCES
    return SUCCESS


def serve(folder: Path, port: int, host: str = "127.0.0.1") -> None:
    """Answer C-ECHO and C-STORE on host:port until SIGTERM or SIGINT. Raises OSError if the port is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    ae = AE(ae_title=AE_TITLE)
    storage = [build_context(str(each.abstract_syntax), SYNTAXES) for each in AllStoragePresentationContexts]
    ae.supported_contexts = [*storage, build_context(Verification)]
    ae.maximum_pdu_size = 0  # unlimited (PS3.8 D.1)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = ae.start_server((host, port), block=False, evt_handlers=[(evt.EVT_C_STORE, store, [folder])])
    print(f"{AE_TITLE} on {host}:{port}, files in {folder}", flush=True)
    stopped.wait()
    if server is not None:
        server.shutdown()


if __name__ == "__main__":
    typer.run(serve)
