"""Intake rate beside Orthanc and DCMTK's storescp: objects a second, answer times, CPU time an object, in one run.

    python -m tests.acceptance.intake [--objects 400] [--associations 1 8] [--rounds 3] [--processes 1 2] [--burst]

One sender for all: raw PDUs (PS3.8 9.3) of at most 128 KiB, as DCMTK sends
them, or what the receiver takes, an own UID for each object, the next
one only after the answer. Rounds are interleaved, so that a noisy machine is noisy for everybody. Ours: listener
processes, broker and SQLite on this disk; Success after fsync of file, folder and database. Orthanc: as packaged.
storescp: no index, no fsync. --burst sends over ten times the associations and then looks for what was acknowledged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import psutil

from gateway import audit
from gateway.settings import use_numba_cache
from tests.fakes import CT, EXPLICIT_LE, element
from tests.running import Rig, free_port

SIZE = 512 << 10
PDU_BYTES = 128 << 10
UID_ROOT = "1.2.826.0.1.3680043.10.9."
UID_DIGITS = 20
BURST_OBJECTS = 20  # an association
WAIT_SECONDS = 60.0

Store = Callable[[str], None]


class Refused(Exception):
    """The association was rejected, or the answer was no Success."""


def item(kind: int, body: bytes) -> bytes:
    """An item of an association PDU (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(body)) + body


def association_request(called: str) -> bytes:
    """A-ASSOCIATE-RQ with one presentation context: CT, Explicit VR Little Endian."""
    context = struct.pack(">Bxxx", 1) + item(0x30, CT.encode()) + item(0x40, EXPLICIT_LE.encode())
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4")
    body = struct.pack(">Hxx16s16s32x", 1, called.ljust(16).encode(), b"INTAKE".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BxL", 1, len(body)) + body


class Sender:
    """One association. `send(uid)` sends one object and waits for its answer.

    give_up_after: PDUs of an object after which `send` raises Refused; 0: none.
    """

    def __init__(self, port: int, called: str, timeout: float = WAIT_SECONDS, give_up_after: int = 0) -> None:
        self._give_up_after, self._sent = give_up_after, 0
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.sendall(association_request(called))
        kind, accepted = self._pdu()
        if kind != 2:
            self.connection.close()
            raise Refused(f"association: PDU {kind}")
        at = accepted.index(b"\x51\0\0\4") + 4  # maximum length (PS3.8 D.1); 0: any
        self._step = min(PDU_BYTES, struct.unpack_from(">L", accepted, at)[0] or PDU_BYTES) - 6
        self._body, self._places = object_template()

    def send(self, uid: str) -> None:
        """C-STORE. Raises Refused."""
        for place in self._places:
            self._body[place : place + len(uid)] = uid.encode()
        command = element(2, "UI", CT.encode(), explicit=False) + element(0x100, "US", b"\1\0", explicit=False)
        command += element(0x110, "US", b"\1\0", explicit=False) + element(0x700, "US", b"\0\0", explicit=False)
        command += element(0x800, "US", b"\0\0", explicit=False) + element(0x1000, "UI", uid.encode(), explicit=False)
        head = element(0, "UL", struct.pack("<L", len(command)), explicit=False)
        self._fragment(3, memoryview(head + command))
        step = self._step
        with memoryview(self._body) as view:
            for at in range(0, len(view), step):
                self._fragment(2 if at + step >= len(view) else 0, view[at : at + step])
        kind, answer = self._pdu()
        at = answer.find(struct.pack("<HHL", 0, 0x900, 2))
        if kind != 4 or answer[at + 8 : at + 10] != b"\0\0":
            raise Refused("no Success")

    def close(self) -> None:
        """Release."""
        with self.connection:
            self.connection.sendall(struct.pack(">BxLL", 5, 4, 0))
            self._pdu()

    def _fragment(self, control: int, data: memoryview) -> None:
        if self._give_up_after and self._sent == self._give_up_after:
            raise Refused("given up")
        self._sent += 1
        head = struct.pack(">BxLLBB", 4, len(data) + 6, len(data) + 2, 1, control)
        sent = self.connection.sendmsg([head, data])
        if sent < len(head) + len(data):
            self.connection.sendall(data[sent - len(head) :])

    def _pdu(self) -> tuple[int, bytes]:
        header = self._exactly(6)
        kind, length = struct.unpack(">BxL", header)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = self.connection.recv(count - len(got))
            if not more:
                raise Refused("the connection ended")
            got += more
        return got


def object_template() -> tuple[bytearray, list[int]]:
    """A CT slice of 512 KiB and where its own UIDs stand in it; always the same noise."""
    uid = UID_ROOT + "0" * UID_DIGITS
    body = element(0x00080016, "UI", CT.encode()) + element(0x00080018, "UI", uid.encode())
    body += (
        element(0x00080060, "CS", b"CT") + element(0x00100010, "PN", b"Intake^Rate") + element(0x00100020, "LO", b"R1")
    )
    body += element(0x0020000D, "UI", b"1.2.3.4.5") + element(0x0020000E, "UI", b"1.2.3.4.5.6")
    for tag, value in ((2, 1), (0x10, 512), (0x11, 512), (0x100, 16), (0x101, 12), (0x102, 11), (0x103, 0)):
        body += element(0x00280000 | tag, "US", struct.pack("<H", value))
    body += element(0x7FE00010, "OW", random.Random(7).randbytes(SIZE))
    return bytearray(body), [body.index(uid.encode())]


@dataclass
class Rate:
    """One run's outcome. Times in seconds."""

    server: str
    associations: int
    objects: int
    seconds: float
    answers: list[float]
    server_cpu: float
    sender_cpu: float

    def line(self) -> str:
        """One row of the table."""
        ordered = sorted(self.answers)
        p50, p95 = (1e3 * ordered[int(len(ordered) * part)] for part in (0.5, 0.95))
        return (
            f"{self.server:<18} {self.associations:>3} {self.objects:>6} {self.objects / self.seconds:>8.1f}/s "
            f"p50 {p50:6.1f} ms  p95 {p95:6.1f} ms  CPU/object {1e3 * self.server_cpu / self.objects:5.2f} ms "
            f"(sender {1e3 * self.sender_cpu / self.objects:4.2f})"
        )


def uids(run: int, lane: int) -> Iterator[str]:
    """UIDs of one association in one run, all of one length."""
    number = 0
    while True:
        yield f"{UID_ROOT}{1 + run:06d}{lane:06d}{number:08d}"
        number += 1


def measure(
    name: str,
    port: int,
    called: str,
    processes: Callable[[], list[psutil.Process]],
    associations: int,
    objects: int,
    run: int,
) -> Rate:
    """Send `objects` over so many associations at once."""
    senders = [Sender(port, called) for _ in range(associations)]
    answers: list[list[float]] = [[] for _ in senders]

    def lane(number: int) -> None:
        source = uids(run, number)
        for _ in range(objects // associations):
            begun = time.perf_counter()
            senders[number].send(next(source))
            answers[number].append(time.perf_counter() - begun)

    before, own, begun = cpu(processes()), time.process_time(), time.perf_counter()
    threads = [threading.Thread(target=lane, args=(number,)) for number in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, own, after = time.perf_counter() - begun, time.process_time() - own, cpu(processes())
    for sender in senders:
        sender.close()
    flat = [each for one in answers for each in one]
    if len(flat) != objects // associations * associations:
        raise Refused(f"{name}: only {len(flat)} answers")
    return Rate(name, associations, len(flat), seconds, flat, after - before, own)


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds of CPU of these and of what they started."""
    total = 0.0
    for process in processes:
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            total += times.user + times.system
        times = process.cpu_times()
        total += times.children_user + times.children_system
    return total


@contextmanager
def ours(folder: Path, count: int) -> Iterator[tuple[Rig, list[psutil.Process]]]:
    """Broker and listener processes with a home of their own."""
    with Rig(folder / f"ours-{count}", listener_processes=count, max_associations=25) as rig:
        rig.start("broker")
        rig.wait("broker", rig.broker_answers)
        rig.start("listener")
        rig.wait("listener", rig.listens)
        time.sleep(1.0)  # every process of several
        yield rig, [psutil.Process(rig.pid(name)) for name in ("listener", "broker")]


@contextmanager
def peer(command: list[str], port: int) -> Iterator[psutil.Process]:
    """Another vendor's server."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"TCP_NODELAY": "1"}
    )
    try:
        until = time.monotonic() + WAIT_SECONDS
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                if time.monotonic() > until or process.poll() is not None:
                    raise SystemExit(f"{command[0]} does not listen")
                time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def orthanc(folder: Path) -> tuple[list[str], int] | None:
    """Orthanc as packaged, with a storage of its own."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        return None
    port = free_port()
    (folder / "orthanc").mkdir()
    values = {
        "StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc"), "DicomPort": port,
        "HttpPort": free_port(), "DicomAet": "ORTHANC", "AuthenticationEnabled": False, "Plugins": [],
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(values))
    return [program, str(folder / "orthanc.json")], port


def storescp(folder: Path) -> tuple[list[str], int] | None:
    """DCMTK's receiver, a process for each association."""
    program = shutil.which("storescp")
    if program is None:
        return None
    port = free_port()
    (folder / "storescp").mkdir()
    return [program, "--fork", "-od", str(folder / "storescp"), str(port)], port


def fsyncs(folder: Path, times: int = 20) -> str:
    """What this disk takes for the three fsyncs of a receipt, one after the other, with no server in between."""
    answers: list[list[float]] = [[], [], []]
    with (folder / "log").open("ab") as log:
        for number in range(times):
            path = folder / f"fsync-{number}"
            with path.open("wb") as file:
                file.write(bytes(SIZE))
                file.flush()
                answers[0].append(timed_fsync(file.fileno()))
            path.rename(folder / "fsync")
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            answers[1].append(timed_fsync(fd))
            os.close(fd)
            log.write(bytes(4096))
            log.flush()
            answers[2].append(timed_fsync(log.fileno()))
    file_ms, folder_ms, log_ms = (1e3 * sorted(each)[times // 2] for each in answers)
    return (
        f"disk: fsync of a file of 512 KiB {file_ms:.1f} ms, of its folder {folder_ms:.1f}, of a log {log_ms:.1f} (p50)"
    )


def timed_fsync(fd: int) -> float:
    """Seconds that fsync takes."""
    begun = time.perf_counter()
    os.fsync(fd)
    return time.perf_counter() - begun


def rates(arguments: argparse.Namespace, folder: Path) -> None:
    """Print a line for each server, association count and round."""
    with ExitStack() as stack:
        servers: list[tuple[str, int, str, Callable[[], list[psutil.Process]]]] = []
        for count in arguments.processes:
            rig, found = stack.enter_context(ours(folder, count))
            servers.append((f"palimpsest x{count}", rig.settings.dicom_port, "PALIMPSEST", lambda found=found: found))  # type: ignore[misc]
        for name, made in (("Orthanc", orthanc(folder)), ("storescp", storescp(folder))):
            if made is None or name.lower() in arguments.without:
                print(f"{name}: left out")
                continue
            process = stack.enter_context(peer(*made))
            servers.append((name, made[1], name.upper(), lambda process=process: [process]))  # type: ignore[misc]
        for number in range(arguments.rounds):
            print(fsyncs(folder), flush=True)
            for associations in arguments.associations:
                for place, (name, port, called, processes) in enumerate(servers):
                    run = number * 1000 + associations * 10 + place
                    print(
                        measure(name, port, called, processes, associations, arguments.objects, run).line(), flush=True
                    )


def burst(folder: Path, count: int, associations: int) -> None:
    """Ten times the associations at once; a rejected one tries again. Then every acknowledged object is looked for."""
    with ours(folder / "burst", count) as (rig, _):
        acknowledged: list[str] = []
        answers: list[float] = []
        rejected = [0]

        def lane(number: int) -> None:
            source, left = uids(900_000, number), BURST_OBJECTS
            current = next(source)
            while left:
                try:
                    sender = Sender(rig.settings.dicom_port, "PALIMPSEST")
                except (Refused, OSError):
                    rejected[0] += 1
                    time.sleep(0.2)
                    continue
                while left:
                    begun = time.perf_counter()
                    sender.send(current)
                    answers.append(time.perf_counter() - begun)
                    acknowledged.append(current)
                    current, left = next(source), left - 1
                sender.close()

        begun = time.perf_counter()
        threads = [threading.Thread(target=lane, args=(number,)) for number in range(associations)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        lost = [uid for uid in acknowledged if not is_there(rig, uid)]
        p95 = 1e3 * sorted(answers)[int(len(answers) * 0.95)]
        rows, whole = rig.gw.index.counts().total, audit.verify(rig.gw.index).ok
        print(
            f"burst, {count} processes, {associations} associations: {len(acknowledged)} acknowledged in "
            f"{seconds:.1f} s ({len(acknowledged) / seconds:.0f}/s, p95 {p95:.0f} ms), {rejected[0]} rejections, "
            f"tried again; {len(lost)} lost, {rows} rows, audit trail {'whole' if whole else 'BROKEN'}"
        )
        if lost or rows != associations * BURST_OBJECTS or not whole:
            raise SystemExit("objects were lost or doubled")


def is_there(rig: Rig, uid: str) -> bool:
    """The row is there, and the file is what its name says."""
    row = rig.gw.index.by_sop(uid)
    return row is not None and sha256(rig.gw.spool.path(row.digest).read_bytes()).hexdigest() == row.digest


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--without", nargs="*", default=[], choices=["orthanc", "storescp"])
    parser.add_argument("--burst", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk that counts; default: the temporary folder")
    arguments = parser.parse_args()
    use_numba_cache()  # the rig wants it; nothing is compiled here
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.burst:
            burst(folder, max(arguments.processes), 10 * max(arguments.associations))
        else:
            rates(arguments, folder)


if __name__ == "__main__":
    main()
