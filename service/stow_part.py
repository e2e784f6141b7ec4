"""One object of a store request: its bytes in the spool's incoming folder, and the judgement of it."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from gateway.accept import accept_instance
from gateway.blobs import storage_errors
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.part10 import Peek, peek
from gateway.uids import UID
from service.stow_answer import Outcome
from service.trail import refused

__all__ = ["SpooledPart", "judge"]

SPACE_CHECK_BYTES = 16 << 20
MEDIUM_PRIORITY = 5
UNEXPECTED_FAILURE = 0x0110  # PS3.7 C.5.11: processing failure

log = logging.getLogger(__name__)


class SpooledPart:
    """A part under way. Without a file only when none could be made; `error` says why, or what was wrong later."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.path: Path | None = None
        self.file: BinaryIO | None = None
        self.size = 0
        self.error: PalimpsestError | None = None
        self._next_check = 0
        try:
            self.path = gateway.spool.incoming()
            with storage_errors():
                self.file = self.path.open("wb", buffering=0)
        except PalimpsestError as error:
            self.error = error

    def write(self, data: bytes) -> None:
        """Append; after an error, only count."""
        self.size += len(data)
        if self.error is not None or self.file is None:
            return
        try:
            self._append(self.file, data)
        except PalimpsestError as error:
            self.error = error
            with suppress(OSError):  # only to free the space early: the file is removed in any case
                self.file.truncate(0)

    def _append(self, file: BinaryIO, data: bytes) -> None:
        self.gateway.spool.check_size(self.size)
        if self.size >= self._next_check:
            self.gateway.spool.check_space()
            self._next_check = self.size + SPACE_CHECK_BYTES
        with storage_errors(), memoryview(data) as view:
            written = 0
            while written < len(data):  # unbuffered: one write(2) may take less than it was given
                written += file.write(view[written:])

    def close(self) -> None:
        """No more bytes will come."""
        if self.file is not None:
            self.file.close()

    def discard(self) -> None:
        """Remove the file if it is still there."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def judge(gateway: Gateway, part: SpooledPart, *, actor: str, study: UID | None) -> Outcome:
    """What becomes of a closed part: accepted as C-STORE would, or refused with the reason."""
    seen: Peek | None = None
    try:
        if part.error is not None or part.path is None:
            assert part.error is not None
            refused(gateway, part.error, actor=actor, source="stow")
            raise part.error
        seen = _seen(part.path)
        accept_instance(
            gateway, part.path, source="stow", calling_ae=actor, priority=MEDIUM_PRIORITY, expected_study=study
        )
    except PalimpsestError as error:
        log.warning("instance refused", extra={"reason": error.reason, "source": "stow"})
        status = 413 if error.reason == "object-too-large" else error.http_status
        return _outcome(seen, error.dimse_status, status, error.reason)
    except OSError as error:
        log.error("unexpected error in STOW", extra={"reason": type(error).__name__})
        return _outcome(seen, UNEXPECTED_FAILURE, 500, "internal-error")
    return _outcome(seen)


def _seen(path: Path) -> Peek | None:
    """The UIDs that the answer names the instance by; what is wrong with the file `accept_instance` says."""
    try:
        return peek(path)
    except PalimpsestError:
        return None


def _outcome(seen: Peek | None, failure: int = 0, status: int = 200, reason: str = "") -> Outcome:
    if seen is None:
        return Outcome(failure, status, reason)
    return Outcome(
        failure, status, reason, seen.sop_class_uid, seen.sop_instance_uid, seen.study_uid or "", seen.series_uid or ""
    )
