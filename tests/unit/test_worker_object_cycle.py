"""From a received file to the archive object and back: the received file, the exact image, the stego image."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from codec.errors import CodecError
from gateway.errors import IntegrityError, Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from tests.object_makers import BIG, FACTS, IDENTITY, IMPLICIT, image, noisy, outside_uids, packaged
from worker import container as box
from worker import framechain
from worker.candidate import Candidate, Secrets, build_candidate, build_passthrough
from worker.container import CarrierMode, SectionType
from worker.envelope import parse_envelope
from worker.pixels import pixel_digest
from worker.restore import ExactImage, StegoImage, exact_image, restore, stego_image


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("object") / "keys")


@pytest.fixture(scope="module")
def other_ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("other") / "keys")


def sections_of(built: Candidate) -> dict[SectionType, memoryview]:
    return box.parse(parse_envelope(built.envelope).container)


def assert_restores(data: bytes, built: Candidate, ring: KeyRing, *, exact: bool = True) -> None:
    back = restore(built.envelope, ring)
    assert back.exact is exact
    assert (back.data == data) is exact
    assert back.record.file_sha256 == built.file_sha256 == sha256(data).hexdigest()
    assert (back.pixel_sha256, back.nonpixel_sha256) == (built.pixel_sha256, built.nonpixel_sha256)


PACKAGED = {
    "CT_small.dcm": "exact",
    "MR_small_implicit.dcm": "exact",
    "MR_small_bigendian.dcm": "exact",
    "MR_small_padded.dcm": "exact",
    "SC_rgb_small_odd.dcm": "exact",
    "SC_rgb_small_odd_big_endian.dcm": "exact",
    "MR_small_RLE.dcm": "pixels",
    "MR_small_jpeg_ls_lossless.dcm": "pixels",
    "SC_rgb_jpeg_gdcm.dcm": "pixels",
    "rtplan.dcm": "no-pixels",
    "liver_1frame.dcm": "bits-allocated",
    "image_dfl.dcm": "deflated",
    "JPEG2000.dcm": "lossy-source",
    "rtplan_truncated.dcm": "unreadable-truncated",
    "no_meta.dcm": "unreadable-not-part10",
}


@pytest.mark.parametrize(("name", "outcome"), PACKAGED.items())
def test_packaged_files(name: str, outcome: str, ring: KeyRing) -> None:
    data = packaged(name)
    built = build_candidate(data, FACTS, ring)
    assert built.reason == ("" if outcome in ("exact", "pixels") else outcome)
    assert built.form == (Form.CODED if not built.reason else Form.PASSTHROUGH)
    assert_restores(data, built, ring, exact=outcome != "pixels")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 3),
    colour=st.booleans(),
    stored=st.integers(1, 16),
    signed=st.booleans(),
    syntax=st.sampled_from((IMPLICIT, "1.2.840.10008.1.2.1", BIG)),
    seed=st.integers(0, 999),
)
def test_any_image_comes_back(
    ring: KeyRing, frames: int, colour: bool, stored: int, signed: bool, syntax: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (9, 11, 3) if colour else (9, 11)
    made = [rng.integers(0, 1 << stored, shape).astype(np.uint16) for _ in range(frames)]
    data = image(made, syntax=syntax, stored=stored, PixelRepresentation=int(signed))
    built = build_candidate(data, FACTS, ring)
    assert (built.form, built.frames) == (Form.CODED, frames)
    assert_restores(data, built, ring)


def test_the_record_rides_in_the_image_and_three_readings_agree(ring: KeyRing) -> None:
    words = noisy()
    data = image([words], stored=16)
    built = build_candidate(data, FACTS, ring)
    assert built.carrier == "segmented"
    assert SectionType.RECORD not in sections_of(built)
    exact, stego = exact_image(built.envelope), stego_image(built.envelope)
    assert np.array_equal(next(exact.frames()), words)
    changed = next(stego.frames()) != words
    carrier = box.unpack_carrier(sections_of(built)[SectionType.CARRIER])
    assert changed.sum() == np.unpackbits(np.frombuffer(carrier.bitmap, np.uint8)).sum() > 0
    assert np.abs(next(stego.frames()).astype(int) - words).max() == 1
    assert type(exact) is ExactImage and type(stego) is StegoImage
    assert exact.pixel_sha256 == built.pixel_sha256 == pixel_digest([words]).hex()
    record = restore(built.envelope, ring).record
    assert (record.patient_name, record.patient_id) == (IDENTITY["PatientName"], IDENTITY["PatientID"])
    assert (record.source, record.calling_ae, record.received_at) == ("dimse", "SENDER", FACTS.received_at)


@pytest.mark.parametrize(
    "changes",
    [{"LossyImageCompression": "01"}, {"PhotometricInterpretation": "PALETTE COLOR"}],
    ids=["lossy origin", "palette"],
)
def test_pixels_that_may_not_carry_send_the_record_beside(changes: dict[str, object], ring: KeyRing) -> None:
    data = image([noisy()], stored=16, **changes)
    built = build_candidate(data, FACTS, ring)
    assert built.carrier == "beside"
    assert np.array_equal(next(stego_image(built.envelope).frames()), noisy())
    assert_restores(data, built, ring)


def test_a_later_frame_carries_when_the_first_has_no_room(ring: KeyRing) -> None:
    data = image([np.zeros((96, 96), np.uint16), noisy()], stored=16)
    built = build_candidate(data, FACTS, ring)
    carrier = box.unpack_carrier(sections_of(built)[SectionType.CARRIER])
    assert (carrier.mode, carrier.frame) == (CarrierMode.SEGMENTED, 1)
    assert_restores(data, built, ring)


def test_nothing_of_the_source_stands_in_clear(ring: KeyRing) -> None:
    comment = "Frau Quastenflosser, Zimmer 12"
    coded = image([noisy()], stored=16, ImageComments=comment, DeviceSerialNumber="SN-0815-4711")
    for built in (build_candidate(coded, FACTS, ring), build_passthrough(coded, FACTS, ring, "policy")):
        texts = [*IDENTITY.values(), comment, "SN-0815-4711", "SENDER", "20190817", "Quasten", built.file_sha256]
        for text in texts:
            assert text.encode() not in outside_uids(built.envelope)
        assert bytes.fromhex(built.file_sha256) not in built.envelope
        shown = pydicom.dcmread(io.BytesIO(built.envelope))
        values = {str(e.value) for e in shown.iterall() if e.VR not in ("SQ", "OB") and not e.tag.is_private}
        received = pydicom.dcmread(io.BytesIO(coded))
        shared = values & {str(e.value) for e in received if e.VR not in ("SQ", "OB", "OW")}
        assert shared <= {"1.2.840.10008.5.1.4.1.1.2", ""}


def test_secrets_given_the_object_is_deterministic_but_for_the_wrap(ring: KeyRing) -> None:
    data, secrets = image([noisy()], stored=16), Secrets(bytes(16), bytes(range(32)))
    first, second = (sections_of(build_candidate(data, FACTS, ring, secrets=secrets)) for _ in range(2))
    assert {k: bytes(v) for k, v in first.items() if k is not SectionType.WRAPS} == {
        k: bytes(v) for k, v in second.items() if k is not SectionType.WRAPS
    }
    drawn = build_candidate(data, FACTS, ring)
    assert bytes(sections_of(drawn)[SectionType.SIDE]) != bytes(first[SectionType.SIDE])
    assert drawn.envelope_uid == build_candidate(data, FACTS, ring).envelope_uid


def test_without_the_key_the_image_still_comes_and_the_file_does_not(ring: KeyRing, other_ring: KeyRing) -> None:
    built = build_candidate(image([noisy()], stored=16), FACTS, ring)
    assert np.array_equal(next(exact_image(built.envelope).frames()), noisy())
    with pytest.raises(IntegrityError) as caught:
        restore(built.envelope, other_ring)
    assert caught.value.reason == "seal-refused"


def rebuilt(built: Candidate, swapped: dict[SectionType, bytes], ring: KeyRing) -> bytes:
    """An envelope with some sections exchanged and every clear digest made to fit: what a forger can do."""
    from worker.envelope import Source, build_envelope

    sections = {kind: bytes(body) for kind, body in sections_of(built).items()} | swapped
    return build_envelope(box.build(sections), Source("00" * 32, "", "", "", ""), "", ring.pseudonym_key())


@pytest.mark.parametrize(
    "kind",
    [SectionType.CONTEXT, SectionType.WRAPS, SectionType.IMAGE]
    + [SectionType.FRAMES, SectionType.CARRIER, SectionType.SIDE],
    ids=lambda kind: kind.name,
)
def test_sections_of_another_object_are_refused(kind: SectionType, ring: KeyRing) -> None:
    mine, other = (build_candidate(image([noisy(seed=s)], stored=16), FACTS, ring) for s in (1, 2))
    forged = rebuilt(mine, {kind: bytes(sections_of(other)[kind])}, ring)
    with pytest.raises(IntegrityError):
        restore(forged, ring)


@settings(max_examples=60, deadline=None)
@example(which=SectionType.CARRIER, at=1594, flip=1)  # a window that the frame has no room for
@example(which=SectionType.CARRIER, at=3, flip=128)
@given(which=st.sampled_from(list(SectionType)), at=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_in_any_section_is_refused(
    ring_and_object: tuple[KeyRing, Candidate], which: SectionType, at: int, flip: int
) -> None:
    ring, built = ring_and_object
    body = bytearray(sections_of(built).get(which, b""))
    if not body:
        return
    body[at % len(body)] ^= flip
    changed = rebuilt(built, {which: bytes(body)}, ring)
    if which is SectionType.IMAGE and at % len(body) >= 32:  # the photometric interpretation is only a hint for display
        return
    with pytest.raises(IntegrityError):
        restore(changed, ring)


@pytest.fixture(scope="module")
def ring_and_object(ring: KeyRing) -> tuple[KeyRing, Candidate]:
    return ring, build_candidate(image([noisy()], stored=16), FACTS, ring)


def test_a_codec_that_fails_passes_the_object_through(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise CodecError("no candidate reproduces the frame")

    monkeypatch.setattr(framechain, "encode_frame", broken)
    data = image([noisy()], stored=16)
    built = build_candidate(data, FACTS, ring)
    assert (built.form, built.reason) == (Form.PASSTHROUGH, "codec-error")
    assert_restores(data, built, ring)
    with pytest.raises(Unsupported):
        exact_image(built.envelope)


def test_objects_of_a_rotated_ring_still_open(tmp_path: Path) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys")
    data = image([noisy()], stored=16)
    built = build_candidate(data, FACTS, ring)
    ring.rotate("kek")
    ring.rotate("sign")
    assert_restores(data, built, ring)


def test_overlong_names_are_cut_in_the_record_and_whole_in_the_file(ring: KeyRing) -> None:
    name = "Lang" * 60 + "^Anna"
    data = image([noisy()], stored=16, PatientName=name)
    built = build_candidate(data, FACTS, ring)
    back = restore(built.envelope, ring)
    assert "patient_name" in back.record.cut
    assert back.data == data
