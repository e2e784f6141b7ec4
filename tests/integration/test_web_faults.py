"""A network that breaks under STOW-RS and WADO-RS, in the middle of a multipart body: nothing lost, doubled or kept."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.settings import load_settings
from gateway.tokens import mint_token
from palimpsest.client import FetchError, Route, WebClient
from palimpsest.faultproxy import Fault, FaultProxy, In
from service.multipart import close_delimiter, frame_part
from tests.integration.test_service_api import serving
from tests.integration.test_service_wado import Working
from tests.running import until

pytestmark = pytest.mark.integration

IDLE_SECONDS = 3.0
CT = str(get_testdata_file("CT_small.dcm", download=False))
SIDE = 512  # pixels; half a megabyte of them
FLAT_BYTES = 48 << 20


@dataclass(frozen=True)
class Web:
    """A gateway behind a real HTTP server."""

    gateway: Gateway
    port: int

    @property
    def token(self) -> str:
        """Of a service: it stores and reads."""
        return mint_token(self.gateway, "service", "faults")

    def through(self, *faults: Fault) -> FaultProxy:
        """A proxy in front of the server."""
        return FaultProxy(("127.0.0.1", self.port), *faults)

    def kept(self) -> list[str]:
        """Files that no request should leave behind, and those that one still has open."""
        settings = self.gateway.settings
        half = [path for path in settings.incoming_dir.rglob("*") if path.is_file()]
        held = [file.path for file in psutil.Process().open_files()]
        ours = tuple(map(str, (settings.spool_dir, settings.cache_dir)))
        named = (str(path) for path in (*half, *settings.cache_dir.rglob("*.tmp")))
        return [*named, *(path for path in held if path.startswith(ours))]

    def sockets(self) -> int:
        """TCP sockets of this process; connections to the database are kept on purpose, and are none."""
        return len(psutil.Process().net_connections("tcp"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    queue = Working()
    settings = load_settings(home=tmp_path / "home", watermark_bytes=1, network_timeout_seconds=IDLE_SECONDS)
    queue.gateway = build(settings, queue=queue)
    with serving(queue.gateway) as base:
        yield Web(queue.gateway, int(base.rsplit(":", 1)[1]))
    queue.gateway.close()


def study(number: int) -> list[bytes]:
    """Two CT slices of half a megabyte, that do not compress, and a small one."""
    rng, uid, made = np.random.default_rng(number), generate_uid(), []
    for side in (SIDE, SIDE, 32):
        ds = pydicom.dcmread(CT)
        ds.StudyInstanceUID, ds.Rows, ds.Columns = uid, side, side
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.PixelData = rng.integers(0, 1 << 16, (side, side), np.uint16).tobytes()
        out = io.BytesIO()
        ds.save_as(out)
        made.append(out.getvalue())
    return made


def related(files: list[bytes]) -> bytes:
    head = {"Content-Type": "application/dicom"}
    return b"".join(frame_part("B", head, first=n == 0) + f for n, f in enumerate(files)) + close_delimiter("B")


def stow(web: Web, port: int, files: list[bytes]) -> int:
    """Try until 200, as a sender does; how many tries it took."""
    headers = {"Authorization": f"Bearer {web.token}", "Connection": "close"}
    headers["Content-Type"] = 'multipart/related; type="application/dicom"; boundary=B'
    for number in range(1, 20):
        # what falls silent does so at the first try; of the others none is given up
        with httpx.Client(trust_env=False, timeout=2 * IDLE_SECONDS if number == 1 else 120) as client:
            try:
                url = f"http://127.0.0.1:{port}/dicomweb/studies"
                if client.post(url, content=related(files), headers=headers).status_code == 200:
                    return number
            except httpx.HTTPError:
                continue
    raise AssertionError("never stored")


def whole(web: Web, files: list[bytes]) -> bool:
    """Exactly one row and one file for each, whose bytes are what was sent; nothing else."""
    rows = [web.gateway.index.by_digest(sha256(data).hexdigest()) for data in files]
    return (
        all(
            row is not None and web.gateway.spool.read(row.digest) == data
            for row, data in zip(rows, files, strict=True)
        )
        and web.gateway.index.counts().total == len(files) == len(list(web.gateway.spool))
        and audit.verify(web.gateway.index).ok
    )


def parts(files: list[bytes]) -> list[int]:
    """Offsets in the request, a little after its head, where a first, second and third part are half through."""
    return [300 + sum(map(len, files[:at])) + len(files[at]) // 2 for at in range(len(files))]


@pytest.mark.parametrize("kind", ["cut", "reset", "silent"])
def test_a_broken_upload_loses_and_doubles_nothing(web: Web, kind: Any) -> None:
    studies = [study(number) for number in range(7)]
    ups = [In.offset(120), *(In.offset(at) for at in parts(studies[0])), In.after(b"\r\n--B-")]
    faults = [Fault(kind, at) for at in ups] + [Fault(kind, at, "down") for at in (In.offset(0), In.offset(40))]
    before = web.sockets()

    def send(files: list[bytes], fault: Fault) -> tuple[int, int]:
        with web.through(fault) as proxy:
            return stow(web, proxy.port, files), proxy.struck

    with ThreadPoolExecutor(len(faults)) as pool:
        tries = list(pool.map(send, studies, faults))
    # what breaks behind the last byte of the body breaks nothing that matters: the answer may have come
    assert all(1 <= number <= 2 for number, _ in tries) and sum(number == 2 for number, _ in tries) >= 6
    assert until(lambda: not web.kept())
    assert whole(web, [data for files in studies for data in files])
    assert until(lambda: web.sockets() <= before)


@pytest.mark.parametrize("kind", ["cut", "reset", "silent"])
def test_a_broken_download_gives_no_short_study(web: Web, kind: Any, tmp_path: Path) -> None:
    files = study(1)
    stow(web, web.port, files)
    uid = pydicom.dcmread(io.BytesIO(files[0])).StudyInstanceUID
    before = web.sockets()
    places = [In.offset(10), *(In.offset(at) for at in parts(files)), In.after(b"application/dicom", 1000)]

    def fetch(number: int, place: In) -> list[bytes]:
        with web.through(Fault(kind, place, "down")) as proxy:
            client = WebClient(f"http://127.0.0.1:{proxy.port}", web.token, timeout_seconds=IDLE_SECONDS)
            try:
                found = list(client.fetch(Route.uids(uid), tmp_path / str(number)))
            finally:
                client.close()
            assert proxy.struck == 1 and proxy.connections >= 2
            return [path.read_bytes() for path in found]

    with ThreadPoolExecutor(len(places)) as pool:
        assert list(pool.map(fetch, range(len(places)), places)) == [files] * len(places)
    assert until(lambda: not web.kept())
    assert until(lambda: web.sockets() <= before)


def test_a_slow_network_is_only_slow(web: Web, tmp_path: Path) -> None:
    studies = [study(number) for number in range(3)]
    slow = [Fault("throttle", rate=1e6), Fault("crumbs", size=900), Fault("delay", seconds=0.01)]
    for files, fault in zip(studies, slow, strict=True):
        with web.through(fault) as proxy:
            assert stow(web, proxy.port, files) == 1
        back = Fault(fault.kind, way="down", seconds=fault.seconds, rate=fault.rate, size=fault.size)
        uid = pydicom.dcmread(io.BytesIO(files[0])).StudyInstanceUID
        with web.through(back) as proxy:
            client = WebClient(f"http://127.0.0.1:{proxy.port}", web.token)
            assert [path.read_bytes() for path in client.fetch(Route.uids(uid), tmp_path / uid)] == files
            client.close()
    assert whole(web, [data for files in studies for data in files]) and until(lambda: not web.kept())


def test_what_is_broken_again_and_again_is_not_kept(web: Web, tmp_path: Path) -> None:
    files, process = study(1), psutil.Process()
    stow(web, web.port, files)
    body, uid = study(2), pydicom.dcmread(io.BytesIO(files[0])).StudyInstanceUID

    def break_both(_: int) -> None:
        with web.through(Fault("reset", In.offset(parts(body)[0]))) as proxy, pytest.raises(httpx.HTTPError):
            headers = {"Authorization": f"Bearer {web.token}"}
            headers["Content-Type"] = 'multipart/related; type="application/dicom"; boundary=B'
            httpx.post(
                f"http://127.0.0.1:{proxy.port}/dicomweb/studies", content=related(body), headers=headers, timeout=120
            )
        with web.through(Fault("reset", In.offset(parts(files)[1]), "down")) as proxy, pytest.raises(httpx.HTTPError):
            headers = {"Authorization": f"Bearer {web.token}", "Accept": 'multipart/related; type="application/dicom"'}
            httpx.get(f"http://127.0.0.1:{proxy.port}/dicomweb/studies/{uid}", headers=headers, timeout=120)

    def round_of(count: int) -> tuple[int, int]:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(break_both, range(count)))
        assert until(lambda: not web.kept())
        return web.sockets(), process.memory_info().rss

    before = round_of(12)
    after = round_of(60)  # some 45 MB up and as many down
    assert until(lambda: web.sockets() <= before[0])
    assert after[1] - before[1] < FLAT_BYTES
    assert whole(web, files)


def test_a_download_that_breaks_for_good_is_an_error(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.client.time.sleep", lambda _: None)
    files = study(1)
    stow(web, web.port, files)
    uid = pydicom.dcmread(io.BytesIO(files[0])).StudyInstanceUID
    with FaultProxy(("127.0.0.1", web.port), Fault("cut", In.offset(parts(files)[1]), "down"), every=True) as proxy:
        client = WebClient(f"http://127.0.0.1:{proxy.port}", web.token)
        with pytest.raises(FetchError):
            list(client.fetch(Route.uids(uid), tmp_path / "out"))
        client.close()
    assert not list((tmp_path / "out").iterdir())
