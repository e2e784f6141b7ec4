"""Slices of one series in one archive object: together on the way in, each by itself on the way out and in trouble."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest

from codec.bitplane import Words
from codec.errors import CodecError
from codec.fit_adapter import FitResult
from codec.frame import EncodedFrame, encode_frame
from codec.pixelformat import PixelFormat
from gateway.accept import accept_instance
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import Gone, IntegrityError, PolicyRefused, Unavailable, Unsupported
from gateway.instance import Form, ForwardState, State
from gateway.jobs import MemoryQueue
from gateway.policy import DEFAULT_ARCHIVE
from gateway.settings import Destination, Settings
from palimpsest.payload_files import extract
from palimpsest.payload_inspect import inspect
from tests.context_codec import ContextCodec
from tests.object_makers import FACTS, image, noisy, outside_uids
from tests.proving import InProcess
from tests.unit.codec_networks import known, weight_file
from tests.unit.test_worker_object_golden import PATIENT_KEY, GoldenRing
from worker import adapting, framechain, grouping, weightobject
from worker import container as box
from worker import restore as reading
from worker.container import SectionType
from worker.delivery import forward_instance
from worker.envelope import parse_envelope
from worker.forward_folder import FolderSender
from worker.grouping import process_series
from worker.groupobject import GroupFile, build_group
from worker.indexing import index_instance
from worker.opener.keys import Keys
from worker.opener.restore import open_object
from worker.pipeline import process_instance
from worker.rebind import rebind
from worker.restore import exact_image, restore
from worker.retrieve import original_bytes, retrieve
from worker.shred import find_patient, shred
from worker.slices import Slice, coding_order, slice_of
from worker.stegoobject import make_stego
from worker.sweep import release_spool
from worker.verify import Verifier, VerifyReport
from worker.weightobject import archive_weights

OWNER = "test-1"
POLICY = 'version = 1\n\n[[archive]]\nname = "slices"\nmodality = ["CT"]\ngroup = "series"\n'


class Prover(InProcess):
    """Counts; `verdicts` (instance of the group -> reason) fails some of a group's members once."""

    def __init__(self, gw: Gateway) -> None:
        super().__init__(gw.keys)
        self.groups = self.single = 0
        self.verdicts: dict[int, str] = {}

    def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
        self.single += 1
        return super().check(envelope, member)

    def check_group(self, envelope: bytes) -> list[VerifyReport]:
        self.groups += 1
        found = super().check_group(envelope)
        return [
            VerifyReport(False, self.verdicts[number]) if number in self.verdicts else report
            for number, report in enumerate(found)
        ]

    def check_stego(self, *_: object) -> VerifyReport:
        raise AssertionError("nothing here is a stego object")


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> ContextCodec:
    codec = ContextCodec()
    monkeypatch.setattr(framechain, "encode_frame", codec.encode)
    monkeypatch.setattr(reading, "decode_frame", codec.decode)
    monkeypatch.setattr(weightobject, "needed_by", lambda _: None)
    return codec


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "policy.toml").write_text(POLICY, encoding="utf-8")
    (tmp_path / "one").mkdir()
    one = Destination(name="one", kind="filesystem", path=str(tmp_path / "one"))
    gateway = build(Settings(home=tmp_path, watermark_bytes=0, destinations=(one,)), queue=MemoryQueue())
    archive_weights(gateway.archive)  # so that puts are those of envelopes
    yield gateway
    gateway.close()


@pytest.fixture
def prover(gw: Gateway) -> Prover:
    return Prover(gw)


def slice_file(number: int, **changes: object) -> bytes:
    place = {"ImagePositionPatient": [0, 0, 100 - 2.5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    named = {"SOPInstanceUID": f"1.2.3.4.{number}", "InstanceNumber": number}
    pixels = changes.pop("pixels", noisy(40, 40, seed=number % 1000))
    return image([pixels], stored=16, **{**place, **named, **changes})  # type: ignore[list-item]


def take_in(gw: Gateway, data: bytes) -> int:
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    return accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id


def series(gw: Gateway, count: int = 5, **changes: object) -> dict[int, bytes]:
    """Instance id -> file, sent in an order that is not the coding order."""
    order = np.random.default_rng(count).permutation(count)
    return {take_in(gw, data): data for data in (slice_file(int(at) + 1, **changes) for at in order)}


def envelope_of(gw: Gateway, instance_id: int) -> bytes:
    row = gw.index.get(instance_id)
    return gw.archive.get(str(row.archive_key), str(row.archive_digest))


def assert_given_back(gw: Gateway, files: dict[int, bytes]) -> None:
    for each, data in files.items():
        row = gw.index.get(each)
        assert row.state in (State.ARCHIVED, State.RELEASED)
        assert restore(envelope_of(gw, each), gw.keys, member=row.member).data == data


def events(gw: Gateway, instance_id: int) -> list[str]:
    return [event["event"] for event in reversed(tail(gw.index)) if event["instance_id"] == instance_id]


def test_slices_that_wait_together_become_one_object(gw: Gateway, prover: Prover, codec: ContextCodec) -> None:
    files = series(gw, 20)
    asked = list(files)[3]
    states = process_series(gw, prover, asked, OWNER)
    assert states == dict.fromkeys(files, "ARCHIVED")
    assert (prover.groups, prover.single) == (1, 0)
    rows = [gw.index.get(each) for each in files]
    assert len({(row.archive_key, row.archive_digest) for row in rows}) == 1
    assert sorted(row.member for row in rows if row.member is not None) == list(range(20))
    assert {(row.form, row.lease_owner, row.last_error) for row in rows} == {(Form.CODED, None, None)}
    assert sum(row.archived_size or 0 for row in rows) == len(envelope_of(gw, asked))
    assert not list(gw.candidates)
    assert_given_back(gw, files)
    for each in files:
        assert events(gw, each) == ["received", "candidate", "verified", "archived"]


def test_neighbours_in_space_are_coded_one_after_another(gw: Gateway, prover: Prover, codec: ContextCodec) -> None:
    files = series(gw, 18)
    process_series(gw, prover, next(iter(files)), OWNER)
    blobs = box.unpack_frames(box.parse(parse_envelope(envelope_of(gw, 1)).container)[SectionType.FRAMES])
    assert [at for at, blob in enumerate(blobs) if not blob[2] & 1] == [0, 16]
    found = {gw.index.get(each).member: pydicom.dcmread(io.BytesIO(data)) for each, data in files.items()}
    numbers = {member: data.InstanceNumber for member, data in found.items()}
    assert [numbers[at] for at in range(18)] == list(range(1, 19))


def test_a_group_is_no_larger_than_the_limit_on_a_task_has_time_for(
    gw: Gateway, prover: Prover, codec: ContextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 8 s, 4 of them for a fit, at two frames a second: what is left over is the next group."""
    monkeypatch.setattr(grouping, "SLOWEST", 2 * 40 * 40)
    gw = replace(gw, settings=gw.settings.model_copy(update={"object_time_limit_seconds": 8.0}))
    files = series(gw, 11)
    ids = sorted(files)
    assert set(process_series(gw, prover, ids[0], OWNER)) == set(ids[:8])
    assert {gw.index.get(each).attempts for each in ids[8:]} == {0}
    assert set(process_series(gw, prover, ids[8], OWNER)) == set(ids[8:])
    assert prover.groups == 2
    assert_given_back(gw, files)
    gw = replace(gw, settings=gw.settings.model_copy(update={"object_time_limit_seconds": 1.0}))  # less than a fit
    alone = [take_in(gw, slice_file(number)) for number in (20, 21)]
    assert process_series(gw, prover, alone[0], OWNER) == {alone[0]: "ARCHIVED"} and prover.groups == 2


def test_instances_may_be_numbered_from_zero_and_below(gw: Gateway, prover: Prover, codec: ContextCodec) -> None:
    numbers = {-2: slice_file(-2, SOPInstanceUID="1.2.3.4.98"), 0: slice_file(0, SOPInstanceUID="1.2.3.4.99")}
    numbers[1] = slice_file(1)
    for number, data in numbers.items():
        found = slice_of(data)
        assert found is not None and found.number == number and found.samples == 1600
    files = {take_in(gw, data): data for data in numbers.values()}
    assert process_series(gw, prover, next(iter(files)), OWNER) == dict.fromkeys(files, "ARCHIVED")
    assert prover.groups == 1
    assert [gw.index.get(each).member for each in files] == [0, 1, 2]
    assert_given_back(gw, files)


def test_giving_back_one_slice_decodes_at_most_fifteen_others(gw: Gateway, prover: Prover, codec: ContextCodec) -> None:
    files = series(gw, 20)
    process_series(gw, prover, next(iter(files)), OWNER)
    envelope = envelope_of(gw, 1)
    for each, data in files.items():
        row, codec.decodes = gw.index.get(each), 0
        assert restore(envelope, gw.keys, member=row.member).data == data
        assert codec.decodes == (row.member or 0) % framechain.RUN + 1


def test_a_released_slice_is_retrieved_rendered_and_found(gw: Gateway, prover: Prover) -> None:
    files = series(gw, 4)
    for each in files:
        index_instance(gw, each)
    process_series(gw, prover, next(iter(files)), OWNER)
    forward_all(gw, prover)
    assert release_spool(gw) == 4
    for each, data in files.items():
        assert not gw.spool.exists(gw.index.get(each).digest)
        found = retrieve(gw, each, "original")
        assert (gw.settings.cache_dir / found["path"]).read_bytes() == data
        assert retrieve(gw, each, "rendered:png:1")["size"] > 0
        assert "restored" in events(gw, each)


def test_a_series_that_is_fetched_slice_after_slice_is_read_and_decoded_once(
    gw: Gateway, prover: Prover, codec: ContextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = series(gw, 18)
    process_series(gw, prover, 1, OWNER)
    for each in files:
        gw.spool.remove(gw.index.get(each).digest)
    reads, mapped = 0, gw.archive.map

    def counted(key: str, digest: str) -> memoryview:
        nonlocal reads
        reads += 1
        return mapped(key, digest)

    monkeypatch.setattr(gw.archive, "map", counted)
    codec.decodes = 0
    for row in sorted((gw.index.get(each) for each in files), key=lambda row: row.member or 0):
        assert original_bytes(gw, row) == files[row.id]
    assert (reads, codec.decodes) == (1, 18)
    assert original_bytes(gw, gw.index.get(1)) == files[1]


def forward_all(gw: Gateway, prover: Prover) -> None:
    for row in gw.index.forwards(state=ForwardState.WAITING):
        forward_instance(gw, row.id, "f-1", prover)


def test_a_group_is_forwarded_once(
    gw: Gateway, prover: Prover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    keep = FolderSender.send
    monkeypatch.setattr(FolderSender, "send", lambda self, name, data: sent.append(name) or keep(self, name, data))
    files = series(gw, 4)
    process_series(gw, prover, next(iter(files)), OWNER)
    forward_all(gw, prover)
    rows = gw.index.forwards()
    assert [row.state for row in rows] == [ForwardState.SENT] * 4
    assert sorted(row.proof or "" for row in rows) == ["sent-with-group"] * 3 + ["stored"]
    key = gw.index.get(1).archive_key
    assert sent.count(str(key)) == 1 and (tmp_path / "one" / str(key)).read_bytes() == envelope_of(gw, 1)
    for each in files:
        assert events(gw, each)[-1] == "forwarded"


def test_shredding_takes_the_identity_of_every_slice_and_leaves_the_pixels(gw: Gateway, prover: Prover) -> None:
    files = series(gw, 3)
    for each in files:
        index_instance(gw, each)
    process_series(gw, prover, next(iter(files)), OWNER)
    forward_all(gw, prover)
    patient = find_patient(gw, "PID-77120-X")
    assert shred(gw, patient, actor="admin", reason="erasure-request").instances == 3
    for each, data in files.items():
        row, envelope = gw.index.get(each), envelope_of(gw, each)
        with pytest.raises(IntegrityError) as caught:
            restore(envelope, gw.keys, member=row.member)
        assert caught.value.reason == "seal-refused"
        with pytest.raises(Gone):
            retrieve(gw, each, "original")
        words = pydicom.dcmread(io.BytesIO(data)).pixel_array
        assert np.array_equal(next(exact_image(envelope, member=row.member).frames()), words)
        assert retrieve(gw, each, "rendered:png:1")["size"] > 0


def test_nothing_of_a_slice_stands_in_clear(gw: Gateway, prover: Prover) -> None:
    files = series(gw, 3, ImageComments="Frau Quastenflosser")
    process_series(gw, prover, 1, OWNER)
    envelope = envelope_of(gw, 1)
    for word in (b"Quasten", b"PID-77120", b"1.2.3.4.", b"20190817", *(bytes(d[-40:]) for d in files.values())):
        assert word not in outside_uids(envelope)
    shown = pydicom.dcmread(io.BytesIO(envelope))
    assert len(shown.ReferencedInstanceSequence) == 3


@pytest.mark.parametrize(("adapt", "fits"), [("none", []), ("series", [8]), ("image", [1] * 9)])
def test_adapters_are_fitted_to_the_series_or_to_each_slice(
    adapt: str, fits: list[int], tmp_path: Path, codec: ContextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fit(samples: list[object], **_: object) -> FitResult:
        asked.append(len(samples))
        return FitResult(b"adapter")

    monkeypatch.setattr(adapting, "fit", fit)
    (tmp_path / "policy.toml").write_text(POLICY + f'adapt = "{adapt}"\n', encoding="utf-8")
    gateway = build(Settings(home=tmp_path, watermark_bytes=0), queue=MemoryQueue())
    files = series(gateway, 9)
    assert len(process_series(gateway, Prover(gateway), 1, OWNER)) == 9
    assert asked == fits
    sections = box.parse(parse_envelope(envelope_of(gateway, 1)).container)
    assert (SectionType.ADAPTER in sections) is (adapt == "series")
    assert_given_back(gateway, files)
    gateway.close()


# --- what stays apart ---


def test_without_a_rule_every_instance_goes_alone(tmp_path: Path) -> None:
    with_none = build(Settings(home=tmp_path, watermark_bytes=0), queue=MemoryQueue())
    files = series(with_none, 3)
    first = next(iter(files))
    assert process_series(with_none, Prover(with_none), first, OWNER) == {first: "ARCHIVED"}
    assert with_none.index.get(first).member is None
    assert {with_none.index.get(each).attempts for each in files if each != first} == {0}
    with_none.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientID": "PID-other"},
        {"SeriesInstanceUID": "1.2.3.9"},
        {"Modality": "MR"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"pixels": noisy(40, 41)},
    ],
    ids=["patient", "series", "rule", "class", "size"],
)
def test_what_does_not_belong_goes_alone(changes: dict[str, object], gw: Gateway, prover: Prover) -> None:
    files = series(gw, 3)
    apart = take_in(gw, slice_file(9, **changes))
    assert set(process_series(gw, prover, next(iter(files)), OWNER)) == set(files)
    assert gw.index.get(apart).lease_owner is None
    assert process_series(gw, prover, apart, OWNER) == {apart: "ARCHIVED"}
    assert gw.index.get(apart).member is None


def test_what_a_delivery_rule_may_part_shares_no_object(tmp_path: Path) -> None:
    """Else a slice that a destination must not get as it is would go there inside another one's object."""
    policy = 'version = 1\n[[archive]]\nname = "all"\ngroup = "series"\n'
    (tmp_path / "policy.toml").write_text(policy, encoding="utf-8")
    gateway = build(Settings(home=tmp_path, watermark_bytes=0), queue=MemoryQueue())
    files = series(gateway, 3)
    apart = [take_in(gateway, slice_file(7 + at, Modality="MR")) for at in range(2)]
    assert set(process_series(gateway, Prover(gateway), 1, OWNER)) == set(files)
    assert {gateway.index.get(each).state for each in apart} == {State.RECEIVED}
    gateway.close()


def test_multi_frame_objects_go_alone(gw: Gateway, prover: Prover) -> None:
    series(gw, 2)
    several = take_in(gw, image([noisy(), noisy(seed=2)], stored=16, SOPInstanceUID="1.2.3.4.77"))
    assert process_series(gw, prover, several, OWNER) == {several: "ARCHIVED"}


def test_phases_in_one_place_keep_their_order() -> None:
    def found(number: int, z: float) -> Slice:
        made = slice_of(slice_file(number, ImagePositionPatient=[0, 0, z]))
        assert made is not None
        return made

    phases = [found(number, z) for number, z in ((3, 0.0), (1, 0.0), (4, 1.0), (2, 1.0))]
    assert coding_order(phases) == [1, 3, 0, 2]
    volume = [found(number, z) for number, z in ((1, 5.0), (2, 0.0), (3, 2.5))]
    assert coding_order(volume) == [0, 2, 1]
    assert slice_of(b"no file at all") is None


# --- trouble ---


def rest_alone(gw: Gateway, prover: Prover, files: dict[int, bytes]) -> None:
    for each in files:
        process_series(gw, prover, each, OWNER)
    assert_given_back(gw, files)
    assert {gw.index.get(each).member for each in files} == {None}
    assert not list(gw.candidates)


def test_one_that_cannot_be_coded_lets_the_others_go(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = series(gw, 4)
    broken = take_in(gw, slice_file(9, SamplesPerPixel=2))
    files[broken] = gw.spool.read(gw.index.get(broken).digest)
    first = next(iter(files))
    process_series(gw, prover, first, OWNER)
    assert {gw.index.get(each).state for each in files if each != broken} == {State.ARCHIVED}
    process_series(gw, prover, broken, OWNER)
    assert gw.index.get(broken).form is Form.PASSTHROUGH
    assert_given_back(gw, files)

    def fails(*_: object, **__: object) -> None:
        raise CodecError("no candidate reproduces the frame")

    others = series(gw, 3, SeriesInstanceUID="1.2.3.9", StudyInstanceUID="1.2.3.8", pixels=noisy(seed=5))
    monkeypatch.setattr(grouping, "build_group", fails)
    assert list(process_series(gw, prover, next(iter(others)), OWNER)) == [next(iter(others))]
    rest_alone(gw, prover, others)


def test_a_member_that_is_not_proven_takes_the_group_apart(gw: Gateway, prover: Prover) -> None:
    files = series(gw, 4)
    prover.verdicts = {2: "pixel-mismatch"}
    first = next(iter(files))
    assert process_series(gw, prover, first, OWNER) == {first: "ARCHIVED"}
    assert list(gw.settings.quarantine_dir.glob("*.dcm"))
    assert [alert.kind for alert in gw.index.alerts()] == ["candidate-quarantined"]
    others = [gw.index.get(each) for each in files if each != first]
    assert {(row.state, row.lease_owner, row.last_error) for row in others} == {
        (State.RECEIVED, None, "ungrouped-pixel-mismatch")
    }
    assert gw.queue.depths()["encode"] >= 3
    rest_alone(gw, prover, files)


def test_an_archive_that_is_away_gives_every_member_back_and_each_ends_by_itself(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = series(gw, 4)
    put = gw.archive.put

    def away(*_: object) -> None:
        raise Unavailable("archive-away", "the archive cannot be reached")

    monkeypatch.setattr(gw.archive, "put", away)
    first = next(iter(files))
    with pytest.raises(Unavailable):
        process_series(gw, prover, first, OWNER)
    rows = [gw.index.get(each) for each in files]
    assert {row.state for row in rows} == {State.VERIFIED}
    assert [row.lease_owner for row in rows if row.id != first] == [None] * 3
    monkeypatch.setattr(gw.archive, "put", put)
    finish_each(gw, prover, files)


def finish_each(gw: Gateway, prover: Prover, files: dict[int, bytes]) -> None:
    """What a sweep does after a kill: leases run out, each row is sent again."""
    for each in files:
        row = gw.index.get(each)
        if row.lease_owner is not None:
            gw.index.release_claim(each, row.lease_owner, due_at=0.0, reason=None)
        elif row.state != State.ARCHIVED:
            gw.index.retry(each, "admin")
        assert process_instance(gw, prover, each, "after-1") in ("ARCHIVED", "not-claimed")
    assert_given_back(gw, files)
    assert {gw.index.get(each).member is not None for each in files} == {True}
    assert len({gw.index.get(each).archive_key for each in files}) == 1
    assert not list(gw.candidates)
    assert sum(gw.index.get(each).archived_size or 0 for each in files) == len(envelope_of(gw, next(iter(files))))


class Killed(BaseException):
    """Stands for SIGKILL: nothing behind it is run."""


@pytest.mark.parametrize("at", ["check_group", "set_verified", "put", "set_archived"])
def test_a_kill_anywhere_leaves_rows_that_end_one_by_one(
    at: str, gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = series(gw, 4)
    target = {"check_group": prover, "put": gw.archive}.get(at, gw.index)
    real, calls = getattr(target, at), 0

    def dies(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == (1 if at in ("check_group", "put") else 3):
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(target, at, dies)
    monkeypatch.setattr(grouping, "record_failure", lambda *_: None)  # the dead record nothing
    with pytest.raises(Killed):
        process_series(gw, prover, next(iter(files)), OWNER)
    monkeypatch.setattr(target, at, real)
    finish_each(gw, prover, files)


def test_a_kill_while_coding_never_groups_the_same_files_again(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = series(gw, 3)

    def dies(*_: object, **__: object) -> None:
        raise Killed

    real = grouping.build_group
    monkeypatch.setattr(grouping, "build_group", dies)
    monkeypatch.setattr(grouping, "record_failure", lambda *_: None)
    with pytest.raises(Killed):
        process_series(gw, prover, next(iter(files)), OWNER)
    monkeypatch.setattr(grouping, "build_group", real)
    for each in files:
        gw.index.release_claim(each, OWNER, due_at=0.0, reason=None)
        assert process_series(gw, prover, each, OWNER) == {each: "ARCHIVED"}
    rest_alone(gw, prover, files)


def test_what_an_error_of_ours_sent_back_is_not_grouped_again(gw: Gateway, prover: Prover) -> None:
    """Such a try is not counted, but it may have been in a group."""
    files = series(gw, 4)
    first, *_, failed = files
    assert gw.index.claim(failed, "other", 60.0) is not None
    gw.index.release_claim(failed, "other", due_at=0.0, reason="disk-full", count_attempt=False)
    assert set(process_series(gw, prover, first, OWNER)) == set(files) - {failed}
    assert process_series(gw, prover, failed, OWNER) == {failed: "ARCHIVED"}
    assert_given_back(gw, files)


def test_a_member_whose_patient_was_shredded_meanwhile_is_sealed_anew(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = series(gw, 3)

    def away(*_: object) -> None:
        raise Unavailable("archive-away", "the archive cannot be reached")

    put = gw.archive.put
    monkeypatch.setattr(gw.archive, "put", away)
    with pytest.raises(Unavailable):
        process_series(gw, prover, next(iter(files)), OWNER)
    monkeypatch.setattr(gw.archive, "put", put)
    for key_id in {gw.index.get(each).patient_key for each in files}:
        gw.keys.destroy_patient_key(str(key_id), b"{}")
    for each in files:
        row = gw.index.get(each)
        if row.lease_owner:
            gw.index.release_claim(each, row.lease_owner, due_at=0.0, reason=None)
        gw.index.retry(each, "admin")
        assert process_instance(gw, prover, each, "after-1") == "ARCHIVED"
    assert_given_back(gw, files)
    assert {gw.index.get(each).member for each in files} == {None}


# --- the object ---


def test_a_reader_must_say_which_instance_it_means(gw: Gateway, prover: Prover) -> None:
    series(gw, 3)
    process_series(gw, prover, 1, OWNER)
    envelope = envelope_of(gw, 1)
    with pytest.raises(Unsupported) as caught:
        restore(envelope, gw.keys)
    assert caught.value.reason == "group"
    with pytest.raises(IntegrityError):
        restore(envelope, gw.keys, member=3)
    with pytest.raises(IntegrityError):
        restore(envelope, gw.keys, member=-1)


def test_the_command_line_opens_each_instance_and_says_that_there_are_several(gw: Gateway, prover: Prover) -> None:
    files = series(gw, 3)
    process_series(gw, prover, 1, OWNER)
    envelope = envelope_of(gw, 1)
    for each, data in files.items():
        assert extract(envelope, gw.keys, None, (gw.index.get(each).member or 0) + 1).data == data
    with pytest.raises(PolicyRefused) as caught:
        extract(envelope, gw.keys, None)
    assert caught.value.reason == "group"
    with pytest.raises(PolicyRefused):
        extract(envelope, gw.keys, None, 4)
    facts = inspect(envelope, gw.keys, identity=False)
    shown = facts["without a key"]
    assert (shown["kind"], shown["instances"]) == ("archive object of a group", 3)
    assert facts["with the keys"]["first instance"]["opens"] is True


def test_an_orphaned_envelope_is_named_and_an_orphaned_image_finds_its_slice(gw: Gateway, prover: Prover) -> None:
    files = series(gw, 3, pixels=noisy(320, 320))
    process_series(gw, prover, 1, OWNER)
    with pytest.raises(Unsupported) as caught:
        rebind(gw, envelope_of(gw, 1))
    assert caught.value.reason == "group"
    data = files[2]
    made = make_stego(data, FACTS, gw.keys, mode="hidden", side="archive")
    assert rebind(gw, made.part10).data == data


def test_members_are_cut_out_only_where_they_are() -> None:
    members = [{SectionType.SPAN: box.pack_span(at, 1), SectionType.SIDE: bytes([at])} for at in range(3)]
    body = box.pack_members(members)
    common = {SectionType.FRAMES: memoryview(b"frames")}
    found = box.unpack_members({**common, SectionType.MEMBERS: memoryview(body)})
    assert [bytes(each[SectionType.SIDE]) for each in found] == [b"\0", b"\1", b"\2"]
    assert all(bytes(each[SectionType.FRAMES]) == b"frames" for each in found)
    for end in range(len(body)):
        with pytest.raises(IntegrityError):
            box.unpack_members({**common, SectionType.MEMBERS: memoryview(body[:end])})
    for at in range(len(body)):
        broken = bytearray(body)
        broken[at] ^= 1
        try:
            again = box.unpack_members({**common, SectionType.MEMBERS: memoryview(broken)})
        except IntegrityError:
            continue
        assert len(again) == 3  # a changed number of a section that is none of these is found by the container's digest
    for first, count in ((0, 0), (2, 2), (4, 1), (0, 5), (1 << 31, 1)):
        with pytest.raises(IntegrityError):
            box.unpack_span(memoryview(box.pack_span(first, count)), 3)


def test_the_proving_process_proves_a_group_and_each_of_its_instances(gw: Gateway) -> None:
    files = series(gw, 3)
    with Verifier(gw.settings.keys_dir, settings=gw.settings) as verifier:
        assert set(process_series(gw, verifier, 1, OWNER)) == set(files)
        envelope = envelope_of(gw, 1)
        reports = verifier.check_group(envelope)
        digests = {gw.index.get(each).member: gw.index.get(each).digest for each in files}
        assert [(report.ok, report.sha256) for report in reports] == [(True, digests[at]) for at in range(3)]
        assert verifier.check(envelope, 1).sha256 == digests[1]
        assert [verifier.check(envelope).reason, verifier.check(envelope, 3).ok] == ["group", False]
        assert verifier.check_group(envelope[:-3]) == verifier.check_group(b"nothing") == []
        damaged = bytearray(envelope)
        damaged[len(damaged) // 2] ^= 1
        assert verifier.check_group(bytes(damaged)) == []
    assert_given_back(gw, files)


def test_the_plain_opener_opens_every_instance_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def learned(words: Words, fmt: PixelFormat, **options: object) -> EncodedFrame:
        return encode_frame(words, fmt, **{**options, "coders": ("learned",)})  # type: ignore[arg-type]

    monkeypatch.setattr(framechain, "encode_frame", learned)
    ring, same = GoldenRing(), noisy(24, 24, seed=3)
    files = [slice_file(number, pixels=same + np.uint16(number % 2)) for number in range(3)]
    with known(weight_file()):
        made = build_group(
            [GroupFile(partial(bytes, data), FACTS) for data in files],
            ring,
            rule=DEFAULT_ARCHIVE,  # type: ignore[arg-type]
        )
        assert [each.coder for each in made] == ["learned"] * 3
        keys = Keys({PATIENT_KEY: ring.patient})
        found = list(open_object(made[0].envelope, keys))
    assert [each.data for each in found] == files
    assert all(each.exact for each in found)
