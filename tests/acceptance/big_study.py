"""Memory of every process while a study of 2 GB comes in and goes out.

    python -m tests.acceptance.big_study [--mebibytes 2048] [--large 700] [--home FOLDER]

Two multi-frame objects of --large MiB and slices of 512 KiB for the rest, in by C-STORE and STOW-RS in turn; out by
WADO-RS as received (every SHA-256 compared), as HTJ2K (every instance, and the frames of a large one in one request),
and rendered. The listener, the API and the retrieve worker run; nothing is archived, which takes the codec's time.
Prints the peak of resident memory (VmHWM) and of what of it is no page of a file (RssAnon, sampled) for each process.
Exits 1 if one was at 300 MiB or more, or anything came back different.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import psutil
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from gateway.blobs import file_digest
from gateway.part10 import read_meta
from gateway.settings import use_numba_cache
from gateway.tokens import mint_token
from gateway.transfer_syntaxes import HTJ2K_RPCL
from service.multipart import PartBegin, PartData, PartEnd, RelatedParser, close_delimiter, frame_part
from tests.running import Rig

LIMIT = 300 << 20
FRAME = 512 * 512 * 2
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
PIECE = 1 << 20


def made(folder: Path, total: int, large: int) -> list[Path]:
    """The study's files: smooth slices with noise, a multi-frame object written frame by frame."""
    rng = np.random.default_rng(1)
    slope = np.add.outer(np.arange(512) * 3, np.arange(512) * 2)
    study, series, paths, left = generate_uid(), (generate_uid(), generate_uid()), [], total
    while left > 0:
        frames = max(1, large // FRAME) if len(paths) < 2 else 1
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = (CT if frames == 1 else ENHANCED_CT), generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series[frames > 1]
        ds.PatientID, ds.Modality, ds.NumberOfFrames = "BIG", "CT", frames
        ds.Rows = ds.Columns = 512
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{len(paths)}.dcm"
        ds.save_as(path, enforce_file_format=True)
        with path.open("ab") as file:
            file.write(b"\xe0\x7f\x10\x00OW\0\0" + (frames * FRAME).to_bytes(4, "little"))
            for _ in range(frames):
                file.write((slope + rng.integers(0, 64, slope.shape)).astype("<u2").tobytes())
        paths.append(path)
        left -= path.stat().st_size
    return paths


class Watch(threading.Thread):
    """Looks at the memory of processes, and of those they started, until stopped."""

    def __init__(self, roots: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.roots, self.over = roots, threading.Event()
        self.peak: dict[str, int] = {}
        self.anonymous: dict[str, int] = {}

    def run(self) -> None:
        while not self.over.wait(0.1):
            for name, pid in self.roots.items():
                with suppress(psutil.Error, OSError, KeyError):  # it ended meanwhile
                    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                        self._look(f"{name} {process.pid}", process.pid)

    def _look(self, name: str, pid: int) -> None:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for field, kept in (("VmHWM", self.peak), ("RssAnon", self.anonymous)):
            kept[name] = max(kept.get(name, 0), int(lines[field].split()[0]) << 10)


def dataset_digest(path: Path) -> str:
    """SHA-256 of the data set, without the file meta information that C-STORE makes anew."""
    with path.open("rb") as file:
        return file_digest(file, read_meta(file.read(1 << 12))[1])


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(PIECE):
            yield data


def send(rig: Rig, base: str, headers: dict[str, str], paths: list[Path]) -> None:
    """Every other file by C-STORE, the others by STOW-RS in one request."""
    ae = AE("SENDER")
    ae.add_requested_context(CT, ExplicitVRLittleEndian)
    ae.add_requested_context(ENHANCED_CT, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", rig.settings.dicom_port, ae_title="PALIMPSEST")
    for path in paths[::2]:
        status = association.send_c_store(path)
        assert status.Status == 0, status
    association.release()

    def body() -> Iterator[bytes]:
        for number, path in enumerate(paths[1::2]):
            yield frame_part("B", {"Content-Type": "application/dicom"}, first=number == 0)
            yield from pieces(path)
        yield close_delimiter("B")

    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B'}
    answer = httpx.post(f"{base}/studies", content=body(), headers={**headers, **kind}, timeout=None)
    assert answer.status_code == 200, answer.text


def fetched(url: str, headers: dict[str, str], accept: str) -> list[tuple[str, int]]:
    """(SHA-256, bytes) of each part of a multipart answer."""
    found: list[tuple[str, int]] = []
    with httpx.stream("GET", url, headers={**headers, "Accept": accept}, timeout=None) as answer:
        assert answer.status_code == 200, answer.read()
        parser = RelatedParser(answer.headers["content-type"].split("boundary=")[1])
        hasher, size = sha256(), 0
        for data in answer.iter_raw(PIECE):
            for event in parser.feed(data):
                if isinstance(event, PartBegin):
                    hasher, size = sha256(), 0
                elif isinstance(event, PartData):
                    hasher.update(event.data)
                    size += len(event.data)
                elif isinstance(event, PartEnd):
                    found.append((hasher.hexdigest(), size))
        parser.close()
    return found


def timed(what: str, start: float, count: int, size: int) -> None:
    seconds = time.monotonic() - start
    rate = size / 1e6 / seconds
    print(f"{what:34} {count:6} parts {size / 1e6:9.1f} MB {seconds:7.1f} s {rate:7.1f} MB/s", flush=True)


def go(rig: Rig, paths: list[Path]) -> bool:
    """In and out; True if all came back as it was sent."""
    base = f"http://127.0.0.1:{rig.settings.http_port}/dicomweb"
    headers = {"Authorization": f"Bearer {mint_token(rig.gw, 'service', 'big-study')}"}
    total = sum(path.stat().st_size for path in paths)
    start = time.monotonic()
    send(rig, base, headers, paths)
    timed("in, C-STORE and STOW-RS", start, len(paths), total)
    rows = rig.gw.index.by_study(str(dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID))
    assert sorted(row.dataset_digest for row in rows) == sorted(map(dataset_digest, paths))
    study = f"{base}/studies/{rows[0].study_uid}"
    start = time.monotonic()
    found = fetched(study, headers, 'multipart/related; type="application/dicom"; transfer-syntax=*')
    timed("out, as received", start, len(found), sum(size for _, size in found))
    same = sorted(digest for digest, _ in found) == sorted(row.digest for row in rows)
    start = time.monotonic()
    coded = fetched(study, headers, f'multipart/related; type="application/dicom"; transfer-syntax={HTJ2K_RPCL}')
    timed("out, HTJ2K", start, len(coded), sum(size for _, size in coded))
    big = next(row for row in rows if row.sop_class == ENHANCED_CT)
    where = f"{study}/series/{big.series_uid}/instances/{big.sop_uid}"
    start = time.monotonic()
    coded_frames = f'multipart/related; type="image/jphc"; transfer-syntax={HTJ2K_RPCL}'
    frames = fetched(f"{where}/bulkdata/7FE00010", headers, coded_frames)
    timed("frames of a large object, HTJ2K", start, len(frames), sum(size for _, size in frames))
    picture = httpx.get(f"{where}/frames/{len(frames)}/rendered", headers=headers, timeout=None)
    return same and len(coded) == len(paths) and picture.status_code == 200


def main() -> int:
    """0 if the bound held and everything came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--large", type=int, default=700)
    parser.add_argument("--home", type=Path)
    args = parser.parse_args()
    use_numba_cache()
    with tempfile.TemporaryDirectory(dir=args.home) as folder:
        files = Path(folder) / "files"
        files.mkdir()
        paths = made(files, args.mebibytes << 20, args.large << 20)
        with Rig(Path(folder) / "home", retrieve_timeout_seconds=600.0) as rig:
            rig.start("broker")
            rig.wait("broker", rig.broker_answers)
            rig.start("listener", "api", "retrieve")
            rig.wait("listener", rig.listens)
            watch = Watch({name: rig.pid(name) for name in ("listener", "api", "retrieve")})
            watch.start()
            same = go(rig, paths)
            watch.over.set()
    for name in sorted(watch.peak):
        peak, anonymous = watch.peak[name] >> 20, watch.anonymous[name] >> 20
        print(f"{name.split()[0]:10} resident at most {peak:4} MiB, of it not of files {anonymous:4} MiB")
    print("all came back as it was sent" if same else "SOMETHING CAME BACK DIFFERENT")
    return 0 if same and max(watch.peak.values()) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
