"""How fast whole objects are given back: WADO-RS study by study and instance by instance, and C-GET, beside Orthanc.

    python -m tests.acceptance.retrieve [--studies 4] [--slices 16] [--size 512] [--rounds 3]

The same gateway, studies and Orthanc as in `first_image`. Objects are asked for in Explicit VR Little Endian, as most
workstations do. `archive`: the cache was deleted, so every object is restored from the archive by the one retrieve
process; `cache`: what was asked for lately. Orthanc holds uncompressed files. Every answer's pixel data are compared
with what was sent. Rounds are interleaved. Prints objects/s (median of rounds and studies) and, of single instances,
p50 and p95 in ms.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet,  # type: ignore[attr-defined]
)

from gateway.settings import use_numba_cache
from service.multipart import parse_media_type
from tests import viewer_studies
from tests.acceptance.first_image import dicom_web, forget, percentiles, prepared, started_orthanc
from tests.running import Rig

PART = f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}'


def pixels(files: list[bytes]) -> dict[str, bytes]:
    """SOP Instance UID -> Pixel Data."""
    found = (pydicom.dcmread(io.BytesIO(each)) for each in files)
    return {str(each.SOPInstanceUID): bytes(each.PixelData) for each in found}


def parts(answer: httpx.Response) -> list[bytes]:
    """The objects of a multipart answer. The boundary is in none of them: each is compared with what was sent."""
    boundary = parse_media_type(answer.headers["content-type"]).parameters["boundary"].encode()
    pieces = answer.raise_for_status().content.split(b"--" + boundary)[1:-1]
    return [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces]


def by_study(http: httpx.Client, root: str, study: str) -> list[bytes]:
    """One WADO-RS request."""
    return parts(http.get(f"{root}/studies/{study}", headers={"Accept": PART}))


def by_instance(http: httpx.Client, root: str, files: list[bytes], times: list[float]) -> list[bytes]:
    """A request for each; the seconds of each."""
    found = []
    for each in files:
        ds = pydicom.dcmread(io.BytesIO(each), stop_before_pixels=True)
        path = f"{root}/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
        begun = time.perf_counter()
        answer = http.get(path, headers={"Accept": PART})
        times.append(time.perf_counter() - begun)
        found += parts(answer)
    return found


def by_get(port: int, called: str, study: str) -> dict[str, bytes]:
    """C-GET of a study; SOP Instance UID -> Pixel Data."""
    found: dict[str, bytes] = {}

    def take(event: evt.Event) -> int:
        ds = event.dataset
        found[str(ds.SOPInstanceUID)] = bytes(ds.PixelData)
        return 0x0000

    entity = AE(ae_title="RETRIEVE")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate(
        "127.0.0.1", port, ae_title=called, ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, take)],
    )  # fmt: skip
    assert association.is_established
    wanted = Dataset()
    wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", study
    *_, (status, _) = association.send_c_get(wanted, StudyRootQueryRetrieveInformationModelGet)
    association.release()
    assert status.Status == 0x0000, status
    return found


@dataclass
class Server:
    """One side of the comparison. before: done ahead of every question; times: seconds of single instances."""

    name: str
    root: str
    port: int
    called: str
    before: Callable[[], object] = lambda: None
    times: list[float] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, http: httpx.Client, study: str, files: list[bytes]) -> None:
        """Ask for a study in every way, and compare."""
        sent = pixels(files)
        ways: dict[str, Callable[[], dict[str, bytes]]] = {
            "WADO-RS study": lambda: pixels(by_study(http, self.root, study)),
            "WADO-RS instances": lambda: pixels(by_instance(http, self.root, files, self.times)),
            "C-GET study": lambda: by_get(self.port, self.called, study),
        }
        for way, ask in ways.items():
            self.before()
            begun = time.perf_counter()
            got = ask()
            self.rates.setdefault(way, []).append(len(got) / (time.perf_counter() - begun))
            assert got == sent, (way, self.name, len(got))


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    use_numba_cache()
    names = [f"retrieve{number}" for number in range(arguments.studies)]
    files = {name: viewer_studies.ct_series(arguments.slices, name, arguments.size) for name in names}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palimpsest-retrieve-")))
        rig = stack.enter_context(Rig(folder / "home", prefetch_instances=0))
        http = stack.enter_context(closing(prepared(rig, files)))
        ours = (f"http://127.0.0.1:{rig.settings.http_port}/dicomweb", rig.settings.dicom_port, rig.settings.ae_title)
        servers = [Server("archive", *ours, before=lambda: forget(rig)), Server("cache", *ours)]
        if orthanc := started_orthanc(stack, folder, http, files):
            servers.append(Server("Orthanc", dicom_web(orthanc), orthanc.dicom_port, "ORTHANC"))
        for _ in range(arguments.rounds):
            for name in names:
                for server in servers:
                    server.measure(http, viewer_studies.uid(name), files[name])
    print(f"{arguments.size} x {arguments.size}, 16 bit; {arguments.slices} a study; n={len(names) * arguments.rounds}")
    for way in servers[0].rates:
        for server in servers:
            print(f"{way:<18} {server.name:<8} {median(server.rates[way]):7.1f} objects/s")
    for server in servers:
        low, high = percentiles(server.times)
        print(f"one instance       {server.name:<8} p50 {low:6.1f}  p95 {high:6.1f} ms (n={len(server.times)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
