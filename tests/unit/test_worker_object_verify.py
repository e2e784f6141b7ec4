"""The proving process: right answers, and a client that outlives every way in which it can die."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from pydicom import dcmread

from gateway.errors import Unavailable
from gateway.instance import Form
from gateway.keys import KeyRing
from tests.object_makers import FACTS, image, noisy, packaged
from worker.candidate import Candidate, build_candidate
from worker.verify import Verifier, check_envelope

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "keys"
    KeyRing.load_or_create(folder)
    return folder


@pytest.fixture(scope="module")
def coded(keys: Path) -> Candidate:
    return build_candidate(image([noisy()], stored=16), FACTS, KeyRing.load_or_create(keys))


@pytest.fixture(scope="module")
def verifier(keys: Path) -> Iterator[Verifier]:
    with Verifier(keys) as client:
        yield client


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # not there, or gone between opening and reading
        return False
    return state not in "ZX"


def wait_until_gone(pid: int) -> None:
    """At most two minutes, then fail."""
    for _ in range(2400):
        if not alive(pid):
            return
        time.sleep(0.05)
    pytest.fail("the process is still there")


def test_proves_what_was_received(verifier: Verifier, coded: Candidate) -> None:
    report = verifier.check(coded.envelope)
    assert report.ok
    assert report.recorded_sha256 == report.sha256 == sha256(image([noisy()], stored=16)).hexdigest()
    assert (report.pixel_sha256, report.nonpixel_sha256) == (coded.pixel_sha256, coded.nonpixel_sha256)


def test_proves_compressed_and_passed_through_objects(verifier: Verifier, keys: Path) -> None:
    ring = KeyRing.load_or_create(keys)
    for name, exact in (("MR_small_RLE.dcm", False), ("rtplan.dcm", True)):
        built = build_candidate(packaged(name), FACTS, ring)
        report = verifier.check(built.envelope)
        assert report.ok
        assert report.recorded_sha256 == built.file_sha256
        assert (report.sha256 == built.file_sha256) is exact


def test_the_same_process_serves_many(verifier: Verifier, coded: Candidate) -> None:
    verifier.check(coded.envelope)
    pid = verifier.pid
    for at in range(0, len(coded.envelope), len(coded.envelope) // 9):
        broken = bytearray(coded.envelope)
        broken[at] ^= 1
        verifier.check(bytes(broken))
    assert verifier.check(coded.envelope).ok
    assert verifier.pid == pid


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"x" * 300_000])
def test_damage_is_reported_not_raised(damage: bytes, verifier: Verifier) -> None:
    report = verifier.check(damage)
    assert not report.ok
    assert report.reason in ("not-an-envelope", "envelope-damaged")


def test_a_killed_process_is_replaced(verifier: Verifier, coded: Candidate) -> None:
    verifier.check(coded.envelope)
    pid = verifier.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert verifier.check(coded.envelope).ok
    assert verifier.pid != pid


def test_a_stopped_process_runs_into_the_timeout_and_is_killed(keys: Path, coded: Candidate) -> None:
    with Verifier(keys, timeout=1.0) as client:
        client.start()
        pid = client.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        report = client.check(coded.envelope + bytes(1 << 20))
        assert (report.ok, report.reason) == (False, "verifier-timeout")
        wait_until_gone(pid)


def test_too_little_memory_is_a_report(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # a stack for each of many cores would be more than the limit
    ring = KeyRing.load_or_create(keys)
    ds, received = dcmread(io.BytesIO(packaged("CT_small.dcm"))), io.BytesIO()
    ds.private_block(0x77, "TEST", create=True).add_new(1, "OB", bytes(320 << 20))
    ds.save_as(received)
    built = build_candidate(received.getvalue(), FACTS, ring)  # a few KiB that open to more than the limit
    assert built.form is Form.CODED
    with Verifier(keys, memory_bytes=300 << 20) as client:
        report = client.check(built.envelope)
    assert not report.ok
    assert report.reason in ("memory", "verifier-crashed")


def test_another_key_ring_refuses(tmp_path: Path, coded: Candidate) -> None:
    report = check_envelope(coded.envelope, KeyRing.load_or_create(tmp_path / "keys"))
    assert (report.ok, report.reason) == (False, "seal-refused")


def test_no_key_ring_is_unavailable_and_none_is_made(tmp_path: Path, coded: Candidate) -> None:
    with Verifier(tmp_path / "nothing") as client, pytest.raises(Unavailable):
        client.check(coded.envelope)
    assert not (tmp_path / "nothing").exists()


def test_the_process_ends_with_its_client_however_that_dies(keys: Path) -> None:
    """The client is killed with SIGKILL: end of file and the parent-death signal both reach the process."""
    code = (
        "import sys, time; from pathlib import Path; from worker.verify import Verifier\n"
        "v = Verifier(Path(sys.argv[1])); v.start(); print(v.pid, flush=True); time.sleep(600)"
    )
    client = subprocess.Popen([sys.executable, "-c", code, str(keys)], stdout=subprocess.PIPE, cwd=ROOT)
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    assert alive(pid)
    client.kill()
    client.wait()
    client.stdout.close()
    wait_until_gone(pid)


def test_closing_ends_the_process(keys: Path) -> None:
    client = Verifier(keys)
    client.start()
    pid = client.pid
    assert pid is not None
    client.close()
    client.close()
    wait_until_gone(pid)


def test_the_reference_decoder_agrees(verifier: Verifier, keys: Path) -> None:
    built = build_candidate(image([noisy(24, 24)], stored=16), FACTS, KeyRing.load_or_create(keys))
    report = verifier.check_reference(built.envelope)
    assert (report.ok, report.reference, report.sha256) == (True, True, built.file_sha256)
