"""How long a viewer waits for the first image of a study: from the hot cache, from the archive, beside Orthanc.

    python -m tests.acceptance.first_image [--studies 8] [--slices 4] [--size 512] [--rounds 3]

A real gateway (broker, listener, encoders, retrieve worker, sweep, API) takes CT studies in by STOW-RS, archives them
and releases its spool; Orthanc, as packaged, takes the same. Then, for each study, what OHIF asks for over one kept
connection: the series (QIDO-RS), the metadata of the first one, and a frame of its middle slice in any transfer
syntax. `archive`: the cache was deleted, so the learned coder's object is opened and decoded. Orthanc holds
uncompressed files and decodes nothing. Rounds are interleaved. Prints p50 and p95 in ms of the frame alone and of all
three; exits 1 above 250 ms from the cache or 500 ms from the archive (p50 of all three).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np

from gateway.hotcache import HOT_KIND, cache_key, cache_of
from gateway.instance import State
from gateway.settings import use_numba_cache
from gateway.tokens import mint_token
from service.multipart import close_delimiter, frame_part
from tests import viewer_studies
from tests.integration.test_orthanc_roundtrip import Orthanc, run_peer
from tests.running import Rig

ANY = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
JSON = {"Accept": "application/dicom+json"}
LIMITS = {"cache": 250.0, "archive": 500.0}
PATIENCE = 900.0


def store(http: httpx.Client, root: str, files: list[bytes]) -> None:
    """One STOW-RS request."""
    parts = [frame_part("B", {"Content-Type": "application/dicom"}, first=not i) + each for i, each in enumerate(files)]
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B', **JSON}
    http.post(f"{root}/studies", content=b"".join(parts) + close_delimiter("B"), headers=kind).raise_for_status()


def first_image(http: httpx.Client, root: str, study: str) -> tuple[float, float, int]:
    """(seconds of the frame, seconds of all three requests, bytes of the frame's answer)."""
    begun = time.perf_counter()
    series = http.get(f"{root}/studies/{study}/series", headers=JSON).raise_for_status().json()
    number = series[0]["0020000E"]["Value"][0]
    slices = http.get(f"{root}/studies/{study}/series/{number}/metadata", headers=JSON).raise_for_status().json()
    slices.sort(key=lambda each: each["00200013"]["Value"][0])
    middle = slices[len(slices) // 2]["00080018"]["Value"][0]
    asked = time.perf_counter()
    path = f"{root}/studies/{study}/series/{number}/instances/{middle}/frames/1"
    frame = http.get(path, headers={"Accept": ANY}).raise_for_status()
    ended = time.perf_counter()
    return ended - asked, ended - begun, len(frame.content)


def percentiles(times: list[float]) -> tuple[float, float]:
    """p50 and p95, milliseconds."""
    low, high = np.percentile(np.array(times) * 1000, (50, 95))
    return float(low), float(high)


def prepared(rig: Rig, files: dict[str, list[bytes]]) -> httpx.Client:
    """All taken in, archived, released and hot; a client that may read."""
    rig.start("broker")
    rig.wait("broker", rig.broker_answers)
    rig.start("listener", "api", "encode", "retrieve", "forward", "sweep")
    base = f"http://127.0.0.1:{rig.settings.http_port}/dicomweb"

    def ready() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{rig.settings.http_port}/healthz").status_code == 200
        return False

    rig.wait("api", ready)
    headers = {"Authorization": f"Bearer {mint_token(rig.gw, 'service', 'acceptance', 7200)}"}
    http = httpx.Client(headers=headers, timeout=120, trust_env=False)
    for slices in files.values():
        store(http, base, slices)
    count = sum(map(len, files.values()))
    begun = time.perf_counter()
    rig.wait("archived", lambda: rig.gw.index.counts().by_state.get(State.RELEASED, 0) == count, PATIENCE)
    print(f"{count} slices archived and released in {time.perf_counter() - begun:.0f} s", flush=True)
    begun = time.perf_counter()
    rig.wait("hot", lambda: all(is_hot(rig, number) for number in range(1, count + 1)), PATIENCE)
    print(f"all hot {time.perf_counter() - begun:.1f} s later", flush=True)
    return http


def started_orthanc(
    stack: ExitStack, folder: Path, http: httpx.Client, files: dict[str, list[bytes]]
) -> Orthanc | None:
    """An Orthanc that has taken the same files in and ends with `stack`; None where there is none."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        return None
    orthanc = Orthanc(folder)
    stack.enter_context(
        contextmanager(run_peer)([program, str(orthanc.file)], folder / "orthanc.log", orthanc.http_port)
    )
    for slices in files.values():
        store(http, dicom_web(orthanc), slices)
    return orthanc


def dicom_web(orthanc: Orthanc) -> str:
    """The root of its DICOMweb service."""
    return f"http://127.0.0.1:{orthanc.http_port}/dicom-web"


def is_hot(rig: Rig, number: int) -> bool:
    """Whether the copy of an instance is in the cache."""
    return cache_of(rig.settings).find(cache_key(rig.gw.index.get(number).digest, HOT_KIND)) is not None


def forget(rig: Rig) -> None:
    """Delete the cache."""
    for name in ("objects", "entries"):
        shutil.rmtree(rig.settings.cache_dir / name, ignore_errors=True)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    use_numba_cache()
    names = [f"first{number}" for number in range(arguments.studies)]
    files = {name: viewer_studies.ct_series(arguments.slices, name, arguments.size) for name in names}
    times: dict[str, list[tuple[float, float, int]]] = {"cache": [], "archive": [], "Orthanc": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palimpsest-first-")))
        # nothing made behind the readers while they are timed, but for what was made on arrival
        rig = stack.enter_context(Rig(folder / "home", prefetch_instances=0))
        http = stack.enter_context(closing(prepared(rig, files)))
        ours = f"http://127.0.0.1:{rig.settings.http_port}/dicomweb"
        measures: list[tuple[str, str, Callable[[], object]]] = [
            ("cache", ours, lambda: None),
            ("archive", ours, lambda: forget(rig)),
        ]
        if orthanc := started_orthanc(stack, folder, http, files):
            measures.append(("Orthanc", dicom_web(orthanc), lambda: None))
        for _ in range(arguments.rounds):
            for source, root, before in measures:
                for name in names:
                    before()
                    times[source].append(first_image(http, root, viewer_studies.uid(name)))
            heat(http, ours, names)
    return report({source: seen for source, seen in times.items() if seen}, arguments.size)


def heat(http: httpx.Client, root: str, names: list[str]) -> None:
    """Have the copies made anew, by reading every study in that transfer syntax."""
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={HOT_KIND.partition(":")[2]}'
    for name in names:
        http.get(f"{root}/studies/{viewer_studies.uid(name)}", headers={"Accept": accept}).raise_for_status()


def report(times: dict[str, list[tuple[float, float, int]]], size: int) -> int:
    """The table; 1 if a limit was passed."""
    print(
        f"first image of a study, {size} x {size}, 16 bit; ms       frame p50 / p95     series+metadata+frame p50 / p95"
    )
    failed = False
    for source, seen in times.items():
        frame, whole = percentiles([each[0] for each in seen]), percentiles([each[1] for each in seen])
        failed |= whole[0] > LIMITS.get(source, float("inf"))
        size_of = int(np.median([each[2] for each in seen]))
        print(
            f"{source:<8} n={len(seen):<4} {size_of:>8,} bytes   {frame[0]:>18.1f} / {frame[1]:<8.1f}"
            f"   {whole[0]:>18.1f} / {whole[1]:<8.1f}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
