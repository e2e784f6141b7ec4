"""Shadow mode: what passes is untouched whatever becomes of the measuring side; what it reports is right."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from palimpsest.shadow_follow import Association, Seen
from palimpsest.shadow_relay import Copies, Relay, Relayed
from palimpsest.shadow_report import Report, Sums
from tests.running import ROOT, command_of, free_port, until, warm_kernels

pytestmark = pytest.mark.integration
CT = get_testdata_file("CT_small.dcm", download=False)
SR = get_testdata_file("test-SR.dcm", download=False)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", f"{name} is required (apt install dcmtk)"
        pytest.skip(f"needs {name} (apt install dcmtk)")
    return found


@contextmanager
def running(argv: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def receiving(folder: Path) -> Iterator[int]:
    """DCMTK's storescp, which writes what it receives as it received it."""
    folder.mkdir()
    port = free_port()
    with running([program("storescp"), "+xa", "+B", "-od", str(folder), str(port)]):
        assert until(lambda: answers(port))
        yield port


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    with receiving(tmp_path / "pacs") as port:
        yield port, tmp_path / "pacs"


def received_directly(tmp_path: Path, images: list[Path]) -> set[bytes]:
    """What a PACS receives of the same files without us."""
    with receiving(tmp_path / "direct") as port:
        assert send(port, *images).returncode == 0
    return data_sets(tmp_path / "direct")


@contextmanager
def shadow(tmp_path: Path, to: int, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    argv = [sys.executable, "-m", "palimpsest", "shadow", "--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{to}"]
    argv += ["--json", str(tmp_path / "shadow.json"), "--page", str(tmp_path / "shadow.html"), *options]
    with running(argv, cwd=ROOT) as process:
        assert until(lambda: answers(port))
        yield port, process


def series(folder: Path, count: int) -> list[Path]:
    """Copies of one image, each under its own UID and with its own noise."""
    folder.mkdir()
    made = []
    for number in range(count):
        image = dcmread(CT)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        pixels = image.pixel_array.copy()
        pixels[number, :] += number
        image.PixelData = pixels.tobytes()
        image.save_as(folder / f"{number}.dcm")
        made.append(folder / f"{number}.dcm")
    return made


def data_sets(folder: Path) -> set[bytes]:
    found = set()
    for path in folder.iterdir():
        image = dcmread(path)
        found.add(path.read_bytes()[image.file_meta.FileMetaInformationGroupLength + 144 :])
    return found


def send(port: int, *files: Path | str) -> subprocess.CompletedProcess[str]:
    argv = [program("storescu"), "-v", "-aec", "PACS", "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)


def measured(report: Path) -> int:
    return Report.read(report).total().measured


def measuring(relay: subprocess.Popen[bytes]) -> psutil.Process:
    found: list[psutil.Process] = []

    def there() -> bool:
        found[:] = [
            each for each in psutil.Process(relay.pid).children() if "shadow_watch" in " ".join(command_of(each))
        ]
        return bool(found)

    assert until(there)
    return found[0]


@pytest.mark.peers
@pytest.mark.timeout(900)
def test_traffic_passes_untouched_and_is_measured(pacs: tuple[int, Path], tmp_path: Path) -> None:
    port, folder = pacs
    images = series(tmp_path / "in", 3)
    warm_kernels()
    with shadow(tmp_path, port) as (door, relay):
        measuring(relay)
        through = send(door, *images)
        assert through.returncode == 0
        assert through.stdout.count("Received Store Response (Success)") == 3
        deadline = time.monotonic() + 500  # bounds a hang: the measuring side is the last to get a processor
        while measured(tmp_path / "shadow.json") < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        relay.terminate()
        relay.wait(240)
    assert data_sets(folder) == received_directly(tmp_path, images)
    report = json.loads((tmp_path / "shadow.json").read_text())
    ct, saved = report["modalities"]["CT"], report["saved"]["CT"]
    assert (ct["seen"], ct["measured"], ct["wrong"], report["answers"]) == (3, 3, 0, {"success": 3})
    # one of the two is the test, looking whether the port is open
    assert report["relayed"]["connections"] == 2 and report["not_followed"] == {} == report["not_measured"]
    assert ct["bytes"]["default"] < min(ct["bytes"][name] for name in ("jxl9", "jpegls", "htj2k"))
    assert saved["default"]["bytes"] == ct["bytes"]["received"] - ct["bytes"]["default"] > 0
    shown = (tmp_path / "shadow.html").read_text() + (tmp_path / "shadow.json").read_text()
    image = dcmread(images[0])
    assert "JPEG XL" in shown and "<script" not in shown
    for word in (image.PatientName, image.PatientID, image.SOPInstanceUID, image.StudyInstanceUID, "STORESCU"):
        assert str(word) not in shown


@pytest.mark.peers
@pytest.mark.timeout(600)
def test_a_killed_or_frozen_measuring_side_harms_nothing(pacs: tuple[int, Path], tmp_path: Path) -> None:
    port, folder = pacs
    images = series(tmp_path / "in", 6)
    with shadow(tmp_path, port) as (door, relay):
        watcher = measuring(relay)
        watcher.suspend()
        assert send(door, *images[:2]).returncode == 0
        watcher.send_signal(signal.SIGKILL)
        assert send(door, *images[2:4]).returncode == 0
        assert until(lambda: measuring(relay).pid != watcher.pid)
        os.kill(measuring(relay).pid, signal.SIGKILL)
        assert send(door, *images[4:]).returncode == 0
        relay.kill()
    assert data_sets(folder) == received_directly(tmp_path, images)


@contextmanager
def relaying(to: int, tap: Any, relayed: Relayed) -> Iterator[int]:
    """A relay in a thread of its own."""
    loop, ports = asyncio.new_event_loop(), list[int]()
    stop, started = asyncio.Event(), threading.Event()

    async def run() -> None:
        relay = Relay(("127.0.0.1", to), tap, relayed)
        ports.append(await relay.start("127.0.0.1", 0))
        started.set()
        await stop.wait()
        await relay.stop(1.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(120)
    yield ports[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(120)


class Stuck:
    """A transport that nobody empties."""

    def __init__(self) -> None:
        self.waiting = 0

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data: bytes) -> None:
        self.waiting += len(data)


def test_a_copy_that_nobody_takes_is_dropped_and_bounded() -> None:
    """Megabytes both ways, half-closed in the middle, with a watcher that never reads."""
    payload, answer = random.Random(1).randbytes(8 << 20), random.Random(2).randbytes(3 << 20)
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            end, _ = server.accept()
            with end:
                got.append(read_all(end))
                end.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        relayed, stuck = Relayed(), Stuck()
        copies = Copies(relayed, limit=1 << 20)
        copies.watch(stuck)  # type: ignore[arg-type]
        with (
            relaying(server.getsockname()[1], copies, relayed) as port,
            socket.create_connection(("127.0.0.1", port)) as end,
        ):
            end.sendall(payload)
            end.shutdown(socket.SHUT_WR)
            assert read_all(end) == answer
    assert got == [payload]
    assert stuck.waiting < (1 << 20) + 200 and relayed.copies_dropped == 1
    assert (relayed.bytes_to_server, relayed.bytes_to_client) == (len(payload), len(answer))


def read_all(end: socket.socket) -> bytes:
    found = bytearray()
    while piece := end.recv(1 << 16):
        found += piece
    return bytes(found)


def test_a_reset_is_passed_on_as_a_reset_and_an_absent_pacs_closes() -> None:
    import struct

    with socket.create_server(("127.0.0.1", 0)) as server:
        relayed = Relayed()
        copies = Copies(relayed, 1 << 20)
        with relaying(server.getsockname()[1], copies, relayed) as port:
            with socket.create_connection(("127.0.0.1", port)) as end:
                there, _ = server.accept()
                end.sendall(b"x")
                assert there.recv(1) == b"x"  # else the reset may come before the relay has its connection
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                there.close()
                with pytest.raises(ConnectionResetError):
                    assert end.recv(1) != b""
            server.close()
            with socket.create_connection(("127.0.0.1", port)) as end, pytest.raises(ConnectionResetError):
                end.recv(1)
    assert relayed.refused == 1


# --- following ---


class Kept:
    def __init__(self) -> None:
        self.files: list[bytearray] = []
        self.whole: list[bool] = []

    def begin(self) -> Kept:
        self.files.append(bytearray())
        return self

    def write(self, piece: bytes) -> None:
        self.files[-1] += piece

    def close(self, whole: bool) -> None:
        self.whole.append(whole)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """Both sides of an association that stores one image: (from the client, from the server, the data set)."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import CTImageStorage

    image = dcmread(CT)
    entity = AE()
    entity.add_supported_context(CTImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)])
    sides: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

    class Tape:
        def frame(self, kind: int, connection: int, data: bytes = b"") -> None:
            if kind in sides:
                sides[kind] += data

    with relaying(server.server_address[1], Tape(), Relayed()) as port:
        sender = AE()
        sender.add_requested_context(CTImageStorage, image.file_meta.TransferSyntaxUID)
        association = sender.associate("127.0.0.1", port)
        assert association.is_established and association.send_c_store(image).Status == 0
        association.release()
    server.shutdown()
    raw = Path(CT).read_bytes()
    return bytes(sides[1]), bytes(sides[2]), raw[image.file_meta.FileMetaInformationGroupLength + 144 :]


def followed(client: bytes, server: bytes, step: Callable[[], int]) -> tuple[Kept, Seen]:
    kept, seen = Kept(), Seen()
    association = Association(kept.begin, seen)
    at = 0
    ask, rest = client[:6], client[6:]
    length = int.from_bytes(ask[2:], "big")
    association.feed(ask + rest[:length], from_client=True)  # the request, then the answer, as on a wire
    association.feed(server, from_client=False)
    left = rest[length:]
    while at < len(left):
        size = step()
        association.feed(left[at : at + size], from_client=True)
        at += size
    association.close()
    return kept, seen


def test_an_association_is_followed_whatever_the_pieces(recorded: tuple[bytes, bytes, bytes]) -> None:
    client, server, data_set = recorded
    dice = random.Random(3)
    for step in (lambda: 1 << 16, lambda: 7, lambda: dice.randint(1, 3000)):
        kept, seen = followed(client, server, step)
        assert kept.whole == [True] and bytes(kept.files[0]).endswith(data_set)
        assert dcmread(__import__("io").BytesIO(kept.files[0])).Modality == "CT"
        assert (seen.objects, seen.answers, seen.lost) == (1, {"success": 1}, {})


def test_nothing_that_is_sent_breaks_the_follower(recorded: tuple[bytes, bytes, bytes]) -> None:
    client, server, _ = recorded
    assert followed(b"\x16\x03\x01\x02\x00" + bytes(600), server, lambda: 99)[1].lost == {"tls": 1}
    for cut in range(0, len(client), len(client) // 60):  # cut off anywhere: at most one object, and not a whole one
        kept, seen = followed(client[:cut], server, lambda: 500)
        assert kept.whole in ([], [False], [True]) and seen.lost == {}
    dice = random.Random(4)
    for _ in range(150):
        broken = bytearray(client)
        for _ in range(dice.randint(1, 20)):
            broken[dice.randrange(2000)] = dice.randrange(256)
        kept, seen = followed(bytes(broken), server, lambda: 4096)
        assert len(kept.whole) == len(kept.files) <= 3 and sum(seen.lost.values()) <= 2


def test_the_report_counts_on_and_its_page_shows_it(tmp_path: Path) -> None:
    report = Report(began=time.time(), link_mbit=8.0)
    forms = {"received": 1000, "default": 400, "fast": 420, "jxl9": 450, "jpegls": 500, "htj2k": 550}
    report.modalities["CT"] = Sums(2, 2000, 1, forms, {"default": 1.0}, {"default": 0.5})
    report.modalities["other"] = Sums(1, 10)
    report.write(tmp_path / "r.json", tmp_path / "r.html")
    again = Report.read(tmp_path / "r.json")
    assert again == report and Report.read(tmp_path / "r.html") == Report()
    saved = json.loads((tmp_path / "r.json").read_text())["saved"]["CT"]["default"]
    assert (saved["bytes"], saved["share"], saved["link_seconds"]) == (600, 0.6, 0.001)
    page = (tmp_path / "r.html").read_text()
    assert "<strong>60.0%</strong>" in page and "prefers-color-scheme: dark" in page and "://" not in page
    report.modalities["CT"].wrong = 1
    assert "came back wrong" in report.page()


@pytest.mark.timeout(600)
def test_a_folder_is_measured_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    series(folder, 1)
    warm_kernels()
    shutil.copy(SR, folder / "sr.dcm")
    (folder / "notes.txt").write_text("no DICOM")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    argv = [sys.executable, "-m", "palimpsest", "shadow", "--folder", str(folder)]
    argv += ["--json", str(tmp_path / "s.json"), "--page", str(tmp_path / "s.html")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["modalities"]["CT"]["measured"] == report["modalities"]["SR"]["measured"] == 1
    assert report["modalities"]["SR"]["whole"] == {"no-pixels": 1} and report["not_measured"] == {"not-part10": 1}
    assert report["all"]["wrong"] == 0
