"""The codec's weights are in the archive, and at every destination, before the first object that needs them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from codec import weights as registry
from codec.bitplane import LevelTable
from codec.header import Header, write_header
from codec.pixelformat import PixelFormat
from codec.weights import Weights
from gateway.archive import FilesystemArchive, archive_key
from gateway.errors import IntegrityError, NotFound, OutOfResources
from gateway.settings import Destination
from tests.fakes import MemoryArchive
from tests.unit.codec_networks import weight_file
from worker import container as box
from worker import delivery, pipeline
from worker.container import SectionType
from worker.delivery import Circuit, Work
from worker.envelope import Source, build_envelope
from worker.represent import Parcel
from worker.sender import Delivery
from worker.weightobject import (
    archive_weights,
    needed_ids,
    needed_weights,
    require_archived,
    weights_object,
    weights_uid,
)

FORMAT = PixelFormat(4, 4, 1, 16, 12, 11, False)


@pytest.fixture
def known() -> Iterator[Weights]:
    found = registry.add(weight_file(7))
    yield found
    registry.drop(found)


def envelope(*ids: bytes, stack: bytes = b"") -> bytes:
    """An envelope whose frames name these weights; nothing in it decodes. No id: a frame of a standard coder."""
    blobs = [write_header(Header(FORMAT, LevelTable(0, 9), "learned", 0, None)) + each + bytes(9) for each in ids]
    blobs.append(write_header(Header(FORMAT, LevelTable(0, 9), "raw", 0, None)) + bytes(12))
    sections = {SectionType.FRAMES: box.pack_frames(blobs)}
    if stack:
        sections[SectionType.STACK] = box.pack_frames([b"", b"\x53\x01" + stack + bytes(20)])
    return build_envelope(box.build(sections), Source("0" * 64, "", "", "", ""), "", bytes(32))


def key_of(weights: Weights) -> str:
    return archive_key(weights_uid(weights.sha256))


def test_a_weights_object_is_dicom_and_holds_the_file(known: Weights) -> None:
    data = weights_object(known)
    assert data == weights_object(known)
    assert registry.find(data) == known.data
    found = pydicom.dcmread(io.BytesIO(data))
    assert found.SOPInstanceUID == found.file_meta.MediaStorageSOPInstanceUID == weights_uid(known.sha256)
    assert found.SOPClassUID.name == "Raw Data Storage"
    block = found.private_block(0x4D51, "PALIMPSEST ARCHIVE")
    assert (block[0x01].value, block[0x02].value) == ("palimpsest-weights/1", known.sha256)
    assert bytes(block[0x10].value)[: int(block[0x04].value)] == known.data
    other = registry.parse(weight_file(8))
    assert weights_uid(other.sha256) != weights_uid(known.sha256)


def test_weights_are_archived_once_and_read_back(known: Weights, tmp_path: Path) -> None:
    archive = FilesystemArchive(tmp_path)
    archive_weights(archive)
    data = archive.read_unchecked(key_of(known))
    assert data == weights_object(known)
    assert set(archive.keys()) == {key_of(each) for each in registry.in_use()}
    archive_weights(archive)
    archive_weights(FilesystemArchive(tmp_path))  # another process
    (tmp_path / key_of(known)).unlink()
    archive_weights(archive)  # who took it away did not take it from us
    assert archive.exists(key_of(known))


class Forgetful(MemoryArchive):
    """Gives back other bytes than it was given."""

    def get(self, key: str, digest: str) -> bytes:
        return self.read_unchecked(key)[:-2] + b"xx"


class Full(MemoryArchive):
    """Takes nothing."""

    def put(self, key: str, data: bytes, digest: str) -> None:
        raise OutOfResources("disk-full")


@pytest.mark.parametrize(("archive", "error"), [(Forgetful(), IntegrityError), (Full(), OutOfResources)])
def test_nothing_is_coded_while_weights_are_not_archived(
    archive: MemoryArchive, error: type[Exception], known: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Row:
        attempts, last_error, digest = 1, None, "d"

    class Spool:
        def read(self, digest: str) -> bytes:
            raise AssertionError("the step went on")

    class Holder:
        def __init__(self) -> None:
            self.archive, self.spool = archive, Spool()

        class settings:
            max_attempts = 3

    with pytest.raises(error):
        pipeline.make_candidate(pipeline.Work(Holder(), None, Row(), "me"))  # type: ignore[arg-type]


def test_a_damaged_installation_codes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = registry.Released("lost", "ab" * 32, ("default",))
    monkeypatch.setattr(registry, "RELEASED", (*registry.RELEASED, lost))
    with pytest.raises(IntegrityError, match="install this release again") as refusal:
        archive_weights(MemoryArchive())
    assert refusal.value.reason == "weights-damaged"


def test_needed_weights_are_those_that_frames_and_stacks_name(known: Weights) -> None:
    assert needed_ids(envelope()) == frozenset()
    assert needed_ids(envelope(known.id, known.id, b"abcd")) == {known.id, b"abcd"}
    assert needed_ids(envelope(stack=known.id)) == {known.id}
    assert needed_weights(envelope(known.id)) == (known,)


def test_an_object_whose_weights_nobody_has_is_refused_and_told_what_to_do(known: Weights) -> None:
    archive = MemoryArchive()
    with pytest.raises(NotFound, match="install the release") as refusal:
        require_archived(archive, envelope(b"none"))
    assert refusal.value.reason == "weights-not-archived"
    assert archive.objects == {}
    require_archived(archive, envelope(known.id))
    assert list(archive.objects) == [key_of(known)]
    require_archived(archive, envelope())


class Recorder:
    """A sender that keeps what it was given, in order; outcomes by name."""

    def __init__(self, *outcomes: Delivery) -> None:
        self.sent: list[str] = []
        self.outcomes = list(outcomes)

    def send(self, name: str, part10: bytes) -> Delivery:
        self.sent.append(name)
        return self.outcomes.pop(0) if self.outcomes else Delivery("done", "stored")


def deliver(work: Work, parcel: Parcel) -> Delivery:
    return delivery._deliver_weights(work, parcel.representation, parcel.data or b"")


def test_a_destination_gets_the_weights_before_the_first_envelope(known: Weights, tmp_path: Path) -> None:
    place = Destination(name="pacs", host="one")
    sender = Recorder(Delivery("down", "unreachable"))
    with (tmp_path / "circuit").open("w+") as file:
        work = Work(None, sender, Circuit(file), None, "me", place)  # type: ignore[arg-type]
        parcel = Parcel("k", envelope(known.id), "envelope")
        assert deliver(work, parcel).outcome == "down"  # and the envelope is not sent
        assert deliver(work, parcel).outcome == deliver(work, parcel).outcome == "done"
        assert sender.sent == [key_of(known)] * 2
        work = replace(work, destination=Destination(name="pacs", host="two"))  # another machine under the old name
        assert deliver(work, parcel).outcome == "done"
        assert len(sender.sent) == 3
        for harmless in (Parcel("k", envelope(), "envelope"), Parcel("k", b"no envelope", "hidden")):
            assert deliver(work, harmless).outcome == "done"
        assert len(sender.sent) == 3
    with delivery.destination_lock(tmp_path, "pacs") as circuit:
        assert circuit is not None
        circuit.delivered_weights("w")
    with delivery.destination_lock(tmp_path, "pacs") as circuit:
        assert circuit is not None
        assert circuit.weights == {"w"}
