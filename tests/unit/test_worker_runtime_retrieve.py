"""Giving back, in every state from Success on, and the task edges that answer the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from celery import Celery
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, InvalidInstance, NotFound, Unavailable, Unsupported
from gateway.jobs import QUEUE_OF, MemoryQueue
from gateway.settings import Settings
from tests.fakes import NoStego
from tests.proving import InProcess
from worker import retrieve
from worker.delivery import forward_instance
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.retrieve import original_bytes, retrieve_failure
from worker.sweep import release_spool
from worker.tasks import TASKS, Runtime, register


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setattr("gateway.bootstrap.CeleryQueue", lambda _: MemoryQueue())
    made = Runtime(Settings(home=tmp_path, watermark_bytes=0), "unit")
    yield made
    made.close()


@pytest.fixture
def gw(runtime: Runtime) -> Gateway:
    return runtime.gw


def take_in(gw: Gateway, name: str = "CT_small.dcm") -> int:
    incoming = gw.spool.incoming()
    copyfile(str(get_testdata_file(name, download=False)), incoming)
    return accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id


def release(gw: Gateway, instance_id: int) -> None:
    index_instance(gw, instance_id)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    for row in gw.index.forwards(instance_id):
        forward_instance(gw, row.id, "test-1", NoStego())
    assert release_spool(gw) == 1
    assert not gw.spool.exists(gw.index.get(instance_id).digest)


def cached(gw: Gateway, reply: dict[str, Any]) -> bytes:
    data = (gw.settings.cache_dir / reply["path"]).read_bytes()
    assert (sha256(data).hexdigest(), len(data)) == (reply["sha256"], reply["size"])
    return data


def received(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


@pytest.mark.parametrize("name", ["CT_small.dcm", "rtplan.dcm"])
def test_the_original_comes_from_the_spool_and_later_from_the_archive(gw: Gateway, name: str) -> None:
    instance_id = take_in(gw, name)
    assert cached(gw, retrieve.retrieve(gw, instance_id, "original")) == received(name)
    release(gw, instance_id)
    assert original_bytes(gw, gw.index.get(instance_id)) == received(name)


def test_a_released_compressed_image_comes_back_with_every_pixel(gw: Gateway) -> None:
    instance_id = take_in(gw, "MR_small_RLE.dcm")
    release(gw, instance_id)
    reply = retrieve.retrieve(gw, instance_id, "original")
    cached(gw, reply)
    restored = dcmread(gw.settings.cache_dir / reply["path"])
    original = dcmread(str(get_testdata_file("MR_small_RLE.dcm", download=False)))
    assert (restored.pixel_array == original.pixel_array).all()
    assert restored.PatientName == original.PatientName
    assert reply["sha256"] == gw.index.facts(instance_id)["restored_sha256"]


def test_equal_requests_are_made_once(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = take_in(gw)
    first = retrieve.retrieve(gw, instance_id, "original")
    monkeypatch.setattr(retrieve, "original_bytes", lambda *_: pytest.fail("made twice"))
    assert retrieve.retrieve(gw, instance_id, "original") == first


def test_metadata_before_and_after_indexing_is_the_same(gw: Gateway) -> None:
    instance_id = take_in(gw)
    before = json.loads(retrieve._metadata(gw, gw.index.get(instance_id)))
    index_instance(gw, instance_id)
    after = json.loads(cached(gw, retrieve.retrieve(gw, instance_id, "metadata")))
    assert after == before
    assert after["00100010"]["Value"] == [{"Alphabetic": "CompressedSamples^CT1"}]


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm"])
def test_another_transfer_syntax_from_the_spool_and_from_the_archive(gw: Gateway, name: str) -> None:
    instance_id, expected = take_in(gw, name), dcmread(str(get_testdata_file(name, download=False)))
    for released in (False, True):
        if released:
            release(gw, instance_id)
        for syntax in ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2"):
            reply = retrieve.retrieve(gw, instance_id, f"transcoded:{syntax}")
            made = dcmread(BytesIO(cached(gw, reply)))
            assert made.file_meta.TransferSyntaxUID == syntax
            assert made.SOPInstanceUID == expected.SOPInstanceUID
            assert (made.pixel_array == expected.pixel_array).all()
            assert retrieve.retrieve(gw, instance_id, f"transcoded:{syntax}") == reply
    own = retrieve.retrieve(gw, instance_id, "transcoded:1.2.840.10008.1.2.1")
    assert own == retrieve.retrieve(gw, instance_id, "original")
    with pytest.raises(Unsupported) as caught:
        retrieve.retrieve(gw, instance_id, "transcoded:1.2.840.10008.1.2.4.50")
    assert retrieve_failure(gw, instance_id, caught.value)["error"] == "not-transcodable"


@pytest.mark.parametrize(
    ("kind", "magic"),
    [
        ("rendered:png:1", b"\x89PNG"),
        ("rendered:jpeg:1:quality=40;window=40,400,sigmoid", b"\xff\xd8"),
        ("rendered:gif:1:annotation=patient,technique;viewport=64,64", b"GIF8"),
    ],
)
def test_a_rendered_frame(gw: Gateway, kind: str, magic: bytes) -> None:
    assert cached(gw, retrieve.retrieve(gw, take_in(gw), kind)).startswith(magic)


KINDS_OF_NONE = (
    "", "originals", "rendered:png:0", "rendered:tiff:1", "rendered:png:1\n", "../x", "rendered:png:1:quality=0",
    "rendered:png:1:window=1,2", "rendered:png:1:colour=red", "rendered:png:1:viewport=1e9,1",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_NONE)
def test_a_kind_that_is_none_is_refused(gw: Gateway, kind: str) -> None:
    with pytest.raises(InvalidInstance):
        retrieve.retrieve(gw, take_in(gw), kind)


def test_a_damaged_archive_object_gives_no_pixels_but_an_alert(gw: Gateway) -> None:
    instance_id = take_in(gw)
    release(gw, instance_id)
    path = gw.settings.archive_dir / str(gw.index.get(instance_id).archive_key)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError) as caught:
        retrieve.retrieve(gw, instance_id, "original")
    reply = retrieve_failure(gw, instance_id, caught.value)
    assert (reply["error"], reply["status"]) == ("digest-mismatch", 500)
    assert [alert.kind for alert in gw.index.alerts()] == ["retrieve-integrity"]


@pytest.mark.parametrize("kind", ["original", "metadata", "rendered:png:1"])
def test_what_does_not_open_leaves_nothing_behind(gw: Gateway, kind: str) -> None:
    """Keys gone: no cache entry, no part of a file, whatever was asked for."""
    instance_id = take_in(gw)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    row = gw.index.get(instance_id)
    gw.spool.remove(row.digest)
    gw.keys.destroy_patient_key(str(row.patient_key), b"test")
    before = {path for path in gw.settings.cache_dir.rglob("*") if path.is_file() and path.stat().st_size}
    with pytest.raises(IntegrityError) as caught:
        retrieve.retrieve(gw, instance_id, kind)
    assert (caught.value.reason, caught.value.__cause__) == ("seal-refused", None)
    assert {path for path in gw.settings.cache_dir.rglob("*") if path.is_file() and path.stat().st_size} == before


def test_a_damaged_spool_file_is_replaced_by_the_archive(gw: Gateway) -> None:
    instance_id = take_in(gw)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    row = gw.index.get(instance_id)
    gw.spool.path(row.digest).write_bytes(b"rotten")
    assert original_bytes(gw, row) == received("CT_small.dcm")


def test_what_is_nowhere_is_not_found(gw: Gateway) -> None:
    instance_id = take_in(gw)
    gw.spool.remove(gw.index.get(instance_id).digest)
    with pytest.raises(NotFound):
        retrieve.retrieve(gw, instance_id, "original")


# --- the task edges ---


@pytest.fixture
def app(runtime: Runtime) -> Celery:
    made = Celery("unit", set_as_current=False)
    register(made, runtime)
    return made


def test_every_message_the_gateway_sends_has_its_task(app: Celery) -> None:
    assert set(TASKS) == set(QUEUE_OF)
    assert set(TASKS) <= set(app.tasks)


def test_the_encode_task_carries_an_instance_through_a_real_proving_process(app: Celery, gw: Gateway) -> None:
    instance_id = take_in(gw)
    assert app.tasks["palimpsest.encode"](instance_id) == {"state": "ARCHIVED"}
    assert app.tasks["palimpsest.encode"](instance_id) == {"state": "not-claimed"}


def test_the_encode_task_hands_the_forwards_on_at_once(
    app: Celery, gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = take_in(gw)
    gw.index.claim(instance_id, "x", 60.0)

    def archived(*_: Any) -> dict[int, str]:
        gw.index.forward_add(instance_id, ["one", "two"])
        return {instance_id: "ARCHIVED"}

    monkeypatch.setattr("worker.tasks.process_series", archived)
    app.tasks["palimpsest.encode"](instance_id)
    assert gw.queue.depths()["forward"] == 2
    assert gw.index.outbox_due() == []


def test_an_error_in_a_task_is_recorded_and_told_without_its_text(
    app: Celery, gw: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: Any) -> str:
        raise RuntimeError("Doe^John 1.2.3")

    instance_id = take_in(gw)
    gw.index.claim(instance_id, "unit-x", 0.0)
    monkeypatch.setattr("worker.pipeline.build_candidate", explode)
    assert app.tasks["palimpsest.encode"](instance_id) == {"error": "internal-error"}
    row = gw.index.get(instance_id)
    assert (row.last_error, row.lease_owner, row.attempts) == ("internal-error", None, 2)
    assert all("Doe" not in record.getMessage() for record in caplog.records)


def test_a_file_that_breaks_its_reader_is_indexed_by_what_the_door_knew(
    app: Celery, gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any) -> None:
        raise SystemError("reader broke")

    instance_id = take_in(gw)
    monkeypatch.setattr("worker.indexing.describe", explode)
    assert app.tasks["palimpsest.index"](instance_id) == {"error": "internal-error"}
    row = gw.index.get(instance_id)
    assert row.indexed_at is not None
    metadata = json.loads(str(gw.index.metadata(instance_id)))
    assert metadata["00080018"]["Value"] == [row.sop_uid]


def test_a_database_that_is_away_leaves_the_task_edge_quiet(
    app: Celery, gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise Unavailable("database-unavailable")

    instance_id = take_in(gw)
    for name in ("claim", "get", "release_claim"):
        monkeypatch.setattr(type(gw.index), name, away)
    assert app.tasks["palimpsest.encode"](instance_id) == {"error": "database-unavailable"}


def test_a_retrieval_that_fails_answers_with_a_problem(app: Celery, gw: Gateway) -> None:
    reply = app.tasks["palimpsest.retrieve"](404, "original")
    assert (reply["error"], reply["status"]) == ("unknown-instance", 404)
    reply = app.tasks["palimpsest.retrieve"](take_in(gw), "nonsense")
    assert reply["error"] == "bad-kind"


def test_a_forward_that_breaks_gives_its_row_back(
    app: Celery, runtime: Runtime, gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = take_in(gw)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    [row] = gw.index.forward_add(instance_id, ["gone"])
    assert app.tasks["palimpsest.forward"](row.id) == {"delivered": 0}

    def explode(_: Gateway, forward_id: int, owner: str) -> int:
        assert gw.index.forward_claim(forward_id, owner, 60.0) is not None
        raise RuntimeError("broken")

    gw.index.forward_replay(row.id, "admin")
    monkeypatch.setattr("worker.tasks.forward_instance", explode)
    assert app.tasks["palimpsest.forward"](row.id) == {"error": "internal-error"}
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.lease_owner) == ("WAITING", None)
