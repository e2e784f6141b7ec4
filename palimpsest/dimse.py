"""C-STORE sender: any number of files over several associations, their bytes as they are.

The data set travels exactly as it lies in the file (pynetdicom's chunked send: nothing is parsed and written again).
One presentation context per pair of SOP class and transfer syntax, so that the receiver cannot choose another syntax;
an association offers at most 128 contexts (PS3.8 9.3.2.2, odd ids up to 255), hence the batches.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.presentation import build_context

from palimpsest.scan import Found

MAX_CONTEXTS = 128
ATTEMPTS = 5
PAUSE_SECONDS = (0.2, 1.0, 3.0, 8.0)
OUT_OF_RESOURCES = 0xA700
META_TAGS = {"class": 0x00020002, "instance": 0x00020003, "syntax": 0x00020010}

# PS3.4 Table B.2-1 and PS3.7 C; the first entry whose range holds the status is its reason.
STATUS_REASONS: tuple[tuple[int, int, str], ...] = (
    (0x0110, 0x0110, "processing-failure"),
    (0x0111, 0x0111, "duplicate-sop-instance"),
    (0x0112, 0x0112, "no-such-instance"),
    (0x0117, 0x0117, "invalid-sop-instance-uid"),
    (0x0122, 0x0122, "sop-class-not-supported"),
    (0x0124, 0x0124, "not-authorised"),
    (0xA700, 0xA7FF, "out-of-resources"),
    (0xA900, 0xA9FF, "data-set-does-not-match"),
    (0xC000, 0xCFFF, "cannot-understand"),
)


@dataclass(frozen=True)
class Target:
    """The receiving application entity, and how we call ourselves. tls_name: what its certificate must bear."""

    host: str
    port: int
    ae_title: str
    calling_ae: str = "PALIMPSEST_SCU"
    tls: SSLContext | None = field(default=None, repr=False)
    tls_name: str = ""

    def associate(self, ae: AE) -> Association:
        """Ask for an association; `is_established` says whether there is one."""
        tls_args = (self.tls, self.tls_name) if self.tls is not None else None
        return ae.associate(self.host, self.port, ae_title=self.ae_title, tls_args=tls_args)


@dataclass(frozen=True)
class Answer:
    """What the receiver said to one file. status None: no answer; reason: a machine word, '' on success."""

    found: Found
    ok: bool
    status: int | None
    reason: str
    detail: str = ""


class SendError(Exception):
    """No association: nobody listens, or the receiver rejects us. The message says which."""


def echo(target: Target) -> bool:
    """C-ECHO: does the target answer?"""
    ae = AE(ae_title=target.calling_ae)
    ae.add_requested_context("1.2.840.10008.1.1")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 5
    association = target.associate(ae)
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status) and status.Status == 0


def batches(files: Iterable[Found], limit: int = MAX_CONTEXTS) -> Iterator[list[Found]]:
    """Files in groups of at most `limit` different (SOP class, syntax) pairs; files of one pair stay together."""
    pairs: dict[tuple[str, str], list[Found]] = {}
    for found in files:
        pairs.setdefault((found.head.sop_class_uid, found.head.transfer_syntax), []).append(found)
    keys = list(pairs)
    for start in range(0, len(keys), limit):
        yield [found for key in keys[start : start + limit] for found in pairs[key]]


def send_all(
    files: Iterable[Found], target: Target, on_answer: Callable[[Answer], None], *, associations: int = 2
) -> None:
    """Send every file once; `on_answer` is called once per file, from the sending threads, one at a time.

    A lost association is opened again, and the file it broke on is sent again (a duplicate is harmless: same digest,
    same answer). Raises SendError when the target cannot be reached at the start.
    """
    _config.STORE_SEND_CHUNKED_DATASET = True
    answering = threading.Lock()

    def answer(result: Answer) -> None:
        with answering:
            on_answer(result)

    for batch in batches(files):
        todo: queue.SimpleQueue[Found] = queue.SimpleQueue()
        for found in batch:
            todo.put(found)
        contexts = sorted({(f.head.sop_class_uid, f.head.transfer_syntax) for f in batch})
        lines = [_Line(target, contexts) for _ in range(max(1, min(associations, len(batch))))]
        lines[0].open()  # a wrong host, port or AE title is one message, not one per file
        threads = [threading.Thread(target=line.drain, args=(todo, answer), daemon=True) for line in lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class _Line:
    """One association with its contexts, opened again when it is lost."""

    def __init__(self, target: Target, contexts: Sequence[tuple[str, str]]) -> None:
        self._target = target
        self._ae = AE(ae_title=target.calling_ae)
        self._ae.requested_contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in contexts]
        self._ae.maximum_pdu_size = 0
        self._ae.connection_timeout = self._ae.acse_timeout = 15
        self._ae.dimse_timeout = self._ae.network_timeout = 300
        self._association: Association | None = None

    def open(self) -> Association:
        """The established association. Raises SendError."""
        if self._association is not None and self._association.is_established:
            return self._association
        association = self._target.associate(self._ae)
        if not association.is_established:
            raise SendError(self._why(association))
        self._association = association
        return association

    def _why(self, association: Association) -> str:
        where = f"{self._target.ae_title} at {self._target.host}:{self._target.port}"
        if association.is_rejected:
            primitive = association.acceptor.primitive
            reason = primitive.reason_str if primitive is not None else "no reason given"
            return f"{where} rejected the association: {reason}"
        secure = ", and do its certificate and ours fit?" if self._target.tls is not None else "?"
        return f"nobody answers as {where} (is `palimpsest run` or `palimpsest listen` up{secure})"

    def drain(self, todo: queue.SimpleQueue[Found], answer: Callable[[Answer], None]) -> None:
        """Send until the queue is empty, then release."""
        while True:
            try:
                found = todo.get_nowait()
            except queue.Empty:
                break
            answer(self._send(found))
        if self._association is not None and self._association.is_established:
            self._association.release()

    def _send(self, found: Found) -> Answer:
        result = Answer(found, False, None, "no-answer")
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS[min(attempt - 1, len(PAUSE_SECONDS) - 1)])
            try:
                result = self._send_once(found, self.open())
            except SendError as error:
                result = Answer(found, False, None, "no-association", str(error))
            if result.ok or not _passing(result):
                break
        return result

    def _send_once(self, found: Found, association: Association) -> Answer:
        head = found.head
        if not _accepted(association, head.sop_class_uid, head.transfer_syntax):
            return Answer(found, False, None, "no-presentation-context", f"{head.sop_class_uid} {head.transfer_syntax}")
        try:
            with _sendable(found) as path:
                status = association.send_c_store(path)
        except (RuntimeError, OSError) as error:  # RuntimeError: the association ended since it was looked at
            return Answer(found, False, None, "no-answer", type(error).__name__)
        except (ValueError, AttributeError) as error:
            return Answer(found, False, None, "not-sendable", str(error))
        code = status.get("Status")
        if code is None:
            return Answer(found, False, None, "no-answer")
        return Answer(found, _is_success(code), code, status_reason(code), str(status.get("ErrorComment", "")))


def status_reason(code: int) -> str:
    """A machine word for a C-STORE status, '' for success and warnings."""
    if _is_success(code):
        return ""
    return next((reason for low, high, reason in STATUS_REASONS if low <= code <= high), f"status-{code:04x}")


def _is_success(code: int) -> bool:
    return code == 0 or 0xB000 <= code <= 0xBFFF  # warnings are stored (PS3.4 B.2.3)


def _passing(result: Answer) -> bool:
    return result.reason in {"no-answer", "no-association"} or (
        result.status is not None and result.status & 0xFF00 == OUT_OF_RESOURCES
    )


def _accepted(association: Association, sop_class: str, syntax: str) -> bool:
    return any(
        context.abstract_syntax == sop_class and syntax in context.transfer_syntax
        for context in association.accepted_contexts
    )


@contextmanager
def _sendable(found: Found) -> Iterator[Path]:
    """The file itself, or, if its meta information disagrees with its data set, a copy with the right one."""
    head = found.head
    meta, offset = split_dataset(found.path)
    wanted = {"class": head.sop_class_uid, "instance": head.sop_instance_uid, "syntax": head.transfer_syntax}
    same = all(tag in meta and str(meta[tag].value) == wanted[name] for name, tag in META_TAGS.items())
    if same and offset == head.dataset_offset:
        yield found.path
        return
    with tempfile.TemporaryDirectory(prefix="palimpsest-send-") as folder:
        copy = Path(folder, "object.dcm")
        _write_copy(found, copy)
        yield copy


def _write_copy(found: Found, copy: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(found.head.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(found.head.sop_instance_uid)
    meta.TransferSyntaxUID = UID(found.head.transfer_syntax)
    meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.1")  # pydicom's root
    with copy.open("wb") as out, found.path.open("rb") as source:
        out.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(out, meta, enforce_standard=True)  # type: ignore[arg-type]
        source.seek(found.head.dataset_offset)
        while chunk := source.read(1 << 20):
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
