"""The database of an archive of N objects is deleted and rebuilt: objects a second, and what a rebuild holds in memory.

    python -m tests.acceptance.way_back --objects 300 [--images]

--images: coded 256 x 256 pictures instead of structured reports; slower to make.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import pydicom

from gateway.bootstrap import Gateway, build
from gateway.jobs import MemoryQueue
from gateway.settings import Settings
from tests.fakes import take_in
from tests.object_makers import image, noisy, packaged
from tests.proving import InProcess
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.rebuild import RebuildReport, rebuild
from worker.retrieve import original_bytes
from worker.sweep import release_spool


def opened(home: Path) -> Gateway:
    settings = Settings(home=home, watermark_bytes=0, codec_profile="fast", backlog_limit_seconds=0)
    return build(settings, queue=MemoryQueue())


def made(number: int, images: bool) -> bytes:
    if images:
        return image([noisy(256, 256, seed=number)], stored=12, SOPInstanceUID=f"1.2.8.{number}")
    report = pydicom.dcmread(io.BytesIO(packaged("test-SR.dcm")))
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = f"1.2.8.{number}"
    out = io.BytesIO()
    report.save_as(out)
    return out.getvalue()


def peak() -> int:
    """Bytes this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        gw, digests = opened(home), []
        for number in range(arguments.objects):
            data = made(number, arguments.images)
            row = take_in(gw, data).row
            process_instance(gw, InProcess(gw.keys), row.id, "acceptance")  # type: ignore[arg-type]
            index_instance(gw, row.id)
            digests.append(sha256(data).hexdigest())
        while release_spool(gw):
            pass
        gw.close()
        for path in home.glob("palimpsest.db*"):
            path.unlink()
        gw, marks, began = opened(home), [], time.monotonic()

        def progress(report: RebuildReport) -> None:
            if report.counts["objects"] % max(1, arguments.objects // 3) == 0:
                marks.append(peak() >> 20)

        report = rebuild(gw, progress=progress)
        seconds = time.monotonic() - began
        lost = wrong = 0
        for digest in digests:
            found = gw.index.by_digest(digest)
            lost += found is None
            wrong += found is not None and sha256(original_bytes(gw, found)).hexdigest() != digest
        gw.close()
    print(f"{report.counts['added']} of {len(digests)} rebuilt, {lost} lost, {wrong} wrong, {report.failed} unreadable")
    print(f"{len(digests) / seconds:.1f} instances a second; peak memory at thirds, MiB: {marks}")


if __name__ == "__main__":
    main()
