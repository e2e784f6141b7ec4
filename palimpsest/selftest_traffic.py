"""Traffic of `palimpsest selftest`: modalities that repeat each object until they heard Success, and a reader.

What counts is the word given: an object is *acknowledged* from C-STORE status 0x0000 or its place in the Referenced
SOP Sequence of a STOW-RS answer, and from then on must never be lost, nor ever be given back otherwise.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import httpx
from pynetdicom import AE, _config
from pynetdicom.association import Association

from gateway.errors import PalimpsestError
from palimpsest.selftest_objects import SYNTAXES, Generated, dataset_digest

__all__ = ["Acknowledged", "Ledger", "Modality", "Reader", "Uploader", "client", "whole"]

TIMEOUT_SECONDS: Final = 8.0  # of one answer; then it is sent again
PAUSE_SECONDS: Final = 0.1
BOUNDARY: Final = "palimpsest-selftest"
ACCEPT: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An object that was promised, and when (monotonic seconds)."""

    sent: Generated
    at: float


@dataclass
class Ledger:
    """What senders and readers heard; safe in threads. quota: how many objects may have been begun; heard: what senders
    heard instead of Success, and how often.
    """

    quota: int = 0
    begun: int = 0
    heard: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    unanswered: int = 0
    acknowledged: list[Acknowledged] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def take(self, source: Iterator[Generated]) -> Generated | None:
        """The next object once the quota allows it; None at the end."""
        while not self.stopped.is_set():
            with self.lock:
                if self.begun < self.quota:
                    self.begun += 1
                    return next(source)
            self.stopped.wait(0.02)
        return None

    def refused(self, heard: str) -> None:
        """It was not: it will be sent again."""
        with self.lock:
            self.heard[heard] += 1

    def promise(self, sent: Generated) -> None:
        """It was acknowledged."""
        with self.lock:
            self.acknowledged.append(Acknowledged(sent, time.monotonic()))


class _Sender(threading.Thread):
    """Sends until the ledger stops, each object until it was acknowledged."""

    def __init__(self, name: str, ledger: Ledger, source: Iterator[Generated]) -> None:
        super().__init__(name=name, daemon=True)
        self._ledger, self._source = ledger, source

    def run(self) -> None:
        """See Thread."""
        while (current := self._ledger.take(self._source)) is not None:
            while heard := self._send(current):
                self._ledger.refused(heard)
                if self._ledger.stopped.wait(PAUSE_SECONDS):
                    return
            self._ledger.promise(current)
        self._end()

    def _send(self, current: Generated) -> str:
        """'' once it was acknowledged, else what was heard instead."""
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class Modality(_Sender):
    """C-STORE, one association as long as it lasts, or for `renew_every` objects."""

    def __init__(self, name: str, ledger: Ledger, source: Iterator[Generated], port: int, renew_every: int = 0) -> None:
        super().__init__(name, ledger, source)
        self._renew_every, self._stored = renew_every, 0
        _config.STORE_SEND_CHUNKED_DATASET = True  # the data set's bytes as they lie in the file
        self._port = port
        self._ae = AE(ae_title=name.upper()[:16])
        self._ae.connection_timeout = self._ae.acse_timeout = TIMEOUT_SECONDS
        self._ae.dimse_timeout = self._ae.network_timeout = TIMEOUT_SECONDS
        for sop_class, syntax in SYNTAXES.items():
            self._ae.add_requested_context(sop_class, syntax)
        self._association: Association | None = None

    def _send(self, current: Generated) -> str:
        association = self._association
        if association is None or not association.is_established:
            association = self._association = self._ae.associate("127.0.0.1", self._port, ae_title="PALIMPSEST")
            if not association.is_established:
                return "no association"
        try:
            status = association.send_c_store(current.path)
        except (RuntimeError, OSError):  # RuntimeError: the association ended since it was looked at
            return "association ended"
        if status.get("Status") == 0x0000:
            self._stored += 1
            if self._renew_every and self._stored % self._renew_every == 0:
                association.release()
            return ""
        if "Status" not in status:
            association.abort()
            return "no answer"
        return f"status {status.Status:04X}"

    def _end(self) -> None:
        if self._association is not None and self._association.is_established:
            self._association.release()


class Uploader(_Sender):
    """STOW-RS, one instance a request."""

    def __init__(self, name: str, ledger: Ledger, source: Iterator[Generated], url: str, token: str) -> None:
        super().__init__(name, ledger, source)
        self._http = client(url, token, keep=0)

    def _send(self, current: Generated) -> str:
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + current.path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        try:
            answer = self._http.post(f"studies/{current.study}", content=body, headers=headers)
            stored = answer.json().get("00081199", {}).get("Value", []) if answer.status_code in (200, 202) else []
        except (httpx.HTTPError, ValueError) as error:
            return f"HTTP {type(error).__name__}"
        known = any(each.get("00081155", {}).get("Value") == [current.uid] for each in stored)
        return "" if known else f"HTTP {answer.status_code}"

    def _end(self) -> None:
        self._http.close()


class Reader(threading.Thread):
    """Asks for acknowledged objects at random; an answer 200 must hold the very bytes."""

    def __init__(self, ledger: Ledger, url: str, token: str, seed: int) -> None:
        super().__init__(name="reader", daemon=True)
        self._ledger, self._url, self._token = ledger, url, token
        self._random = random.Random(seed)

    def run(self) -> None:
        """See Thread."""
        with client(self._url, self._token) as http:
            while not self._ledger.stopped.wait(0.05):
                with self._ledger.lock:
                    known = self._random.choice(self._ledger.acknowledged).sent if self._ledger.acknowledged else None
                if known is None:
                    continue
                got = whole(http, known)
                if got is None:
                    self._ledger.unanswered += 1
                    continue
                self._ledger.reads += 1
                if got != known.dataset:
                    self._ledger.wrong.add(known.uid)


def whole(http: httpx.Client, known: Generated) -> str | None:
    """SHA-256 of the data set that WADO-RS gives back for an object (PS3.18 10.4); None: it gave none, or not one."""
    path = f"studies/{known.study}/series/{known.series}/instances/{known.uid}"
    try:
        answer = http.get(path, headers={"Accept": ACCEPT})
    except httpx.HTTPError:
        return None
    kind, _, boundary = answer.headers.get("content-type", "").partition("boundary=")
    if answer.status_code != 200 or not kind.startswith("multipart/related"):
        return None
    parts = answer.content.split(b"\r\n--" + boundary.strip('"').encode())
    parts[0] = parts[0].removeprefix(b"--" + boundary.strip('"').encode())
    if len(parts) != 2 or not parts[1].startswith(b"--"):
        return None
    try:
        return dataset_digest(parts[0].partition(b"\r\n\r\n")[2])
    except PalimpsestError:
        return "unreadable"


def client(url: str, token: str, *, keep: int = 4) -> httpx.Client:
    """A DICOMweb client. keep: connections that are used again; 0: a new one for each request."""
    limits = httpx.Limits(max_keepalive_connections=keep)
    headers, timeout = {"Authorization": f"Bearer {token}"}, 4 * TIMEOUT_SECONDS
    return httpx.Client(base_url=f"{url}/dicomweb/", headers=headers, timeout=timeout, limits=limits, trust_env=False)
