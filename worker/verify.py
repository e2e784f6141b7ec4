"""The proof: a long-lived process of its own that rebuilds the received file from the candidate and the keys alone.

`python -m worker.verify --keys DIR` is the process, `Verifier` its client. On the pipes, big endian:

    request    u8 kind (0 check, 1 check with the reference decoder), u64 length, envelope bytes
               u8 kind 3 (check one instance of a group's envelope), u64 length, u32 which (from 0), envelope bytes
               u8 kind 4 (check all instances of a group's envelope), u64 length, envelope bytes
               u8 kind 2 (check a viewable stego object), u64 length of u64 + file + record, u64 length of the file,
               file, restoration record (empty: there is none)
    answer     u32 length, JSON object; the first one is {"ready": true}; to kind 4 {"members": [one each]}

The process sees no database, no spool and no encoder state. It ends at EOF on its standard input and with its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gateway.errors import IntegrityError, PalimpsestError, Unavailable
from gateway.keys import KeyRing
from gateway.keyuse import note_use, used_keys
from gateway.launch import bound
from gateway.masters import open_master
from gateway.settings import Settings, python_environment

if TYPE_CHECKING:
    from worker.restore import Rebuilt

CHECK, CHECK_REFERENCE, CHECK_STEGO, CHECK_MEMBER, CHECK_GROUP = range(5)
MEMORY_BYTES = 6 << 30  # RLIMIT_DATA of the process: it holds envelope, side part, pixels and file at once
TIMEOUT_SECONDS = 900.0  # one object; the largest that is coded has 1 GiB of pixels
START_SECONDS = 300.0  # importing and, with a cold cache, compiling
MAX_ANSWER_BYTES = 1 << 21  # a group of 1024 instances
MAX_ENVELOPE_BYTES = 1 << 33
_REQUEST, _ANSWER, _LENGTH = struct.Struct(">BQ"), struct.Struct(">I"), struct.Struct(">Q")
_MEMBER = struct.Struct(">I")
_PIPE_PIECE = 1 << 16


@dataclass(frozen=True)
class VerifyReport:
    """What the process found. Hex SHA-256 digests, '' where there is none.

    ok: everything that the object says of itself held. reason: a machine word when not ok. recorded_sha256: of the
    received file, from the signed record, to be compared with what was received. sha256: of the rebuilt file. keys:
    ids of the keys that were used, with blanks between.
    """

    ok: bool
    reason: str = ""
    recorded_sha256: str = ""
    sha256: str = ""
    dataset_sha256: str = ""
    pixel_sha256: str = ""
    nonpixel_sha256: str = ""
    reference: bool = False
    seconds: float = 0.0
    keys: str = ""


# --- the process ---


def check_envelope(
    envelope: bytes, ring: KeyRing, *, reference: bool = False, member: int | None = None
) -> VerifyReport:
    """Rebuild and compare. member: which instance of a group's envelope.

    Raises only Unavailable (the key ring cannot be read); all else is in the report.
    """
    from worker.restore import rebuild  # imports the codec, hence numba: only after the limits are set

    if not reference:
        return _reported(lambda: rebuild(envelope, ring, _nowhere, member=member))
    from codec.plainstack import PlainStack
    from codec.reference import decode_frame_reference

    plain = partial(rebuild, decode=decode_frame_reference, opener=PlainStack)
    return _reported(lambda: plain(envelope, ring, _nowhere, member=member), True)


def check_group(envelope: bytes, ring: KeyRing) -> list[VerifyReport]:
    """`check_envelope` of every instance of a group's envelope, each frame decoded once. Empty if it holds no group."""
    from worker.restore import chain_through, members_of, rebuild_member

    try:
        members = members_of(envelope)
        chain = chain_through(members[0]) if members else None
    except PalimpsestError:
        return []
    return [_reported(partial(rebuild_member, member, ring, _nowhere, chain=chain)) for member in members]


def _reported(rebuilt: Callable[[], Rebuilt], reference: bool = False) -> VerifyReport:
    started = time.monotonic()
    try:
        found = rebuilt()
    except Unavailable:
        raise
    except PalimpsestError as error:
        return VerifyReport(False, error.reason, reference=reference, seconds=time.monotonic() - started)
    except MemoryError:
        return VerifyReport(False, "memory", reference=reference, seconds=time.monotonic() - started)
    record = found.record
    return VerifyReport(
        ok=found.pixels_open,
        reason="" if found.pixels_open else "pixel-key",
        recorded_sha256=record.file_sha256,
        sha256=found.sha256,
        dataset_sha256=record.dataset_sha256,
        pixel_sha256=found.pixel_sha256,
        nonpixel_sha256=found.nonpixel_sha256,
        reference=reference,
        seconds=time.monotonic() - started,
    )


def _nowhere(_: bytes | memoryview) -> None:
    """Where a proof writes the received file: its digest is all that is asked for."""


def check_stego_object(part10: bytes, restoration: bytes | None, ring: KeyRing) -> VerifyReport:
    """Open a viewable stego object from its bytes, the ring and its restoration record alone.

    Raises only Unavailable (the key ring cannot be read); all else is in the report.
    """
    from worker.stegoobject import open_stego

    started = time.monotonic()
    try:
        found = open_stego(part10, ring, restoration=restoration)
    except Unavailable:
        raise
    except PalimpsestError as error:
        return VerifyReport(False, error.reason, seconds=time.monotonic() - started)
    except MemoryError:
        return VerifyReport(False, "memory", seconds=time.monotonic() - started)
    recorded = found.record.file_sha256
    return VerifyReport(True, "", recorded, found.sha256, seconds=time.monotonic() - started)


def serve(requests: IO[bytes], answers: IO[bytes], ring: KeyRing) -> None:
    """Answer until end of file."""
    _answer(answers, {"ready": True})
    while head := requests.read(_REQUEST.size):
        if len(head) < _REQUEST.size:
            return
        kind, length = _REQUEST.unpack(head)
        envelope = requests.read(length)
        if len(envelope) < length:
            return
        try:
            if kind == CHECK_GROUP:
                _answer(answers, {"members": [asdict(each) for each in _check_all(envelope, ring)]})
            else:
                _answer(answers, asdict(_check(kind, envelope, ring)))
        except Unavailable as error:
            _answer(answers, {"unavailable": error.reason})


def _check(kind: int, body: bytes, ring: KeyRing) -> VerifyReport:
    with used_keys() as used:
        report = _checked(kind, body, ring)
    return replace(report, keys=used.ids())


def _check_all(body: bytes, ring: KeyRing) -> list[VerifyReport]:
    with used_keys() as used:
        reports = check_group(body, ring)
    return [replace(report, keys=used.ids()) for report in reports]


def _checked(kind: int, body: bytes, ring: KeyRing) -> VerifyReport:
    if kind == CHECK_MEMBER:
        return check_envelope(body[_MEMBER.size :], ring, member=_MEMBER.unpack_from(body)[0])
    if kind != CHECK_STEGO:
        return check_envelope(body, ring, reference=kind == CHECK_REFERENCE)
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    return check_stego_object(body[_LENGTH.size : end], body[end:] or None, ring)


def _answer(answers: IO[bytes], message: dict[str, object]) -> None:
    body = json.dumps(message).encode("ascii")
    answers.write(_ANSWER.pack(len(body)) + body)
    answers.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """The process: limits first, then imports that compile, then requests."""
    parser = argparse.ArgumentParser(prog="python -m worker.verify", description="Proves archive objects.")
    parser.add_argument("--keys", type=Path, required=True, help="folder of the key ring")
    parser.add_argument("--memory", type=int, default=MEMORY_BYTES, help="bytes this process may hold")
    arguments = parser.parse_args(argv)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = arguments.memory if hard == resource.RLIM_INFINITY else min(arguments.memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get into the protocol
    import worker.restore  # noqa: F401  the slow imports happen before "ready"

    ring = KeyRing.open_readonly(arguments.keys, master=open_master(Settings()))
    ring.observer = note_use
    serve(sys.stdin.buffer, answers, ring)


# --- the client ---


def _report(answer: dict[str, object]) -> VerifyReport:
    try:
        return VerifyReport(**answer)  # type: ignore[arg-type]
    except TypeError as error:
        raise IntegrityError("verifier-answer", "the verifying process answered nonsense") from error


class VerifierGone(Exception):
    """The process died or did not answer in time."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Verifier:
    """Client of one verifying process; started at first use, killed and started anew after a crash or timeout.

    reference_every: every n-th object is decoded by the NumPy reference decoder too (0: never), if its envelope is no
    longer than reference_bytes, as that decoder is slow. settings: what the process needs to open the key ring goes
    into its environment; default: this process's own.
    """

    def __init__(
        self,
        keys_dir: Path,
        *,
        timeout: float = TIMEOUT_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        reference_every: int = 0,
        reference_bytes: int = 1 << 15,
        settings: Settings | None = None,
    ) -> None:
        self._keys_dir = keys_dir
        self._settings = settings
        self._timeout = timeout
        self._memory = memory_bytes
        self._every = reference_every
        self._reference_bytes = reference_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the living process, None before the first use."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process and wait until it is ready. Raises Unavailable ``verifier-start``."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        command = [sys.executable, "-m", "worker.verify", "--keys", str(self._keys_dir), "--memory", str(self._memory)]
        environment = python_environment(Path(__file__).resolve().parent.parent, self._settings)
        self._process = subprocess.Popen(bound(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        try:
            ready = self._read_answer(time.monotonic() + START_SECONDS).get("ready")
        except VerifierGone as error:
            self.close()
            raise Unavailable("verifier-start", "the verifying process does not start") from error
        if ready is not True:
            self.close()
            raise Unavailable("verifier-start", "the verifying process speaks another protocol")

    def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
        """Prove one candidate; member: which instance of a group's envelope it is.

        A process that dies is replaced and asked once more, so that a kill from outside costs nothing; dying twice, or
        taking too long, is the candidate's failure (reasons ``verifier-crashed``, ``verifier-timeout``).
        Raises Unavailable when the process cannot start or has no key ring.
        """
        if member is not None:
            return _report(self._ask_twice(CHECK_MEMBER, _MEMBER.pack(member) + envelope))
        self._count += 1
        sampled = self._every > 0 and self._count % self._every == 0 and len(envelope) <= self._reference_bytes
        report = _report(self._ask_twice(CHECK, envelope))
        return _report(self._ask_twice(CHECK_REFERENCE, envelope)) if report.ok and sampled else report

    def check_group(self, envelope: bytes) -> list[VerifyReport]:
        """Prove all instances of a group's envelope, in its order; not as many as it holds, or none: it is not proven.

        Never by the reference decoder. Crashes, timeouts and Unavailable as `check`.
        """
        members = self._ask_twice(CHECK_GROUP, envelope).get("members")
        return [_report(each) for each in members] if isinstance(members, list) else []

    def check_reference(self, envelope: bytes) -> VerifyReport:
        """As `check`, with the NumPy reference decoder."""
        return _report(self._ask_twice(CHECK_REFERENCE, envelope))

    def check_stego(self, part10: bytes, restoration: bytes | None) -> VerifyReport:
        """Prove one viewable stego object; crashes, timeouts and Unavailable as `check`."""
        body = b"".join((_LENGTH.pack(len(part10)), part10, restoration or b""))
        return _report(self._ask_twice(CHECK_STEGO, body))

    def close(self) -> None:
        """End the process; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask_twice(self, kind: int, envelope: bytes) -> dict[str, object]:
        """The answer, or that of a report which says why there is none."""
        reason = ""
        for _ in range(2):
            try:
                return self._ask(kind, envelope)
            except VerifierGone as error:
                self.close()
                reason = error.reason
                if reason == "verifier-timeout":
                    break
        return asdict(VerifyReport(False, reason))

    def _ask(self, kind: int, envelope: bytes) -> dict[str, object]:
        self.start()
        deadline = time.monotonic() + self._timeout
        self._write(_REQUEST.pack(kind, len(envelope)), deadline)
        self._write(envelope, deadline)
        answer = self._read_answer(deadline)
        if "unavailable" in answer:
            raise Unavailable(str(answer["unavailable"]), "the verifying process cannot read the key ring")
        return answer

    def _write(self, data: bytes, deadline: float) -> None:
        view, pipe = memoryview(data), self._pipe(lambda process: process.stdin)
        os.set_blocking(pipe, False)
        while len(view):
            self._wait(pipe, select.POLLOUT, deadline)
            try:
                view = view[os.write(pipe, view[:_PIPE_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise VerifierGone("verifier-crashed") from error

    def _read_answer(self, deadline: float) -> dict[str, object]:
        size = _ANSWER.unpack(self._read(_ANSWER.size, deadline))[0]
        if size > MAX_ANSWER_BYTES:
            raise VerifierGone("verifier-crashed")
        answer = json.loads(self._read(size, deadline))
        return answer if isinstance(answer, dict) else {}

    def _read(self, size: int, deadline: float) -> bytes:
        data, pipe = b"", self._pipe(lambda process: process.stdout)
        while len(data) < size:
            self._wait(pipe, select.POLLIN, deadline)
            piece = os.read(pipe, size - len(data))
            if not piece:
                raise VerifierGone("verifier-crashed")
            data += piece
        return data

    def _pipe(self, choose: Callable[[subprocess.Popen[bytes]], IO[bytes] | None]) -> int:
        pipe = choose(self._process) if self._process else None
        if pipe is None:
            raise VerifierGone("verifier-crashed")
        return pipe.fileno()

    @staticmethod
    def _wait(pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise VerifierGone("verifier-timeout")
            if poll.poll(min(left, 1.0) * 1000):
                return


if __name__ == "__main__":
    main()
