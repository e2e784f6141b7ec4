"""Whose keys open what: patient keys, recipients by policy, sealed bitmaps; and one refusal for everything else."""

from __future__ import annotations

import io
import os
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import IntegrityError, PolicyRefused, Unavailable
from gateway.keys import KeyRing, Recipient
from gateway.policy import ArchiveRule
from stego import recipients
from stego.recipients import KINDS, Kind
from stego.seal import Context, open_record, open_side, seal_side, wrap_kek_id
from tests.object_makers import BIG, FACTS, IDENTITY, IMPLICIT, header, image, noisy, outside_uids, packaged, save
from worker import container as box
from worker.candidate import Candidate, Secrets, build_candidate, build_passthrough
from worker.container import SectionType
from worker.encrypted_attributes import open_attributes
from worker.envelope import Source, build_envelope, parse_envelope
from worker.pixels import Layout, bytes_from_words, open_pixels, pixel_digest
from worker.restore import ExactImage, StegoImage, exact_image, read_image, restore, stego_image
from worker.sealing import open_wraps_as
from worker.splice import Op, Step, carry_out, pack_plan, read_object, unpack_plan
from worker.verify import check_envelope

FILE = image([noisy()], stored=16)
SHARED = ArchiveRule(name="shared", shreddable=False, recipients=tuple(KINDS))
SEALED = ArchiveRule(name="sealed", seal_bitmap=True)


@cache
def private(kind: Kind) -> bytes:
    return recipients.generate(kind)[0]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return ring_with_recipients(tmp_path_factory.mktemp("sealing") / "keys")


@pytest.fixture(scope="module")
def other_ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return ring_with_recipients(tmp_path_factory.mktemp("other") / "keys")


def ring_with_recipients(folder: Path) -> KeyRing:
    """A ring that knows a recipient of each kind by the kind's name; the X-Wing one is for recovery."""
    ring = KeyRing.load_or_create(folder)
    for kind in KINDS:
        ring.add_recipient(Recipient(kind, kind, recipients.public_of(kind, private(kind)), kind == "xwing"))
    return ring


def sections_of(envelope: bytes) -> dict[SectionType, memoryview]:
    return box.parse(parse_envelope(envelope).container)


def context_of(envelope: bytes) -> Context:
    return Context.parse(bytes(sections_of(envelope)[SectionType.CONTEXT]))


# --- whose key ---


def test_identity_lies_under_the_patients_own_key(ring: KeyRing) -> None:
    built = build_candidate(FILE, FACTS, ring)
    again = build_candidate(image([noisy(seed=2)], stored=16), FACTS, ring)
    whole = build_passthrough(FILE, FACTS, ring, "test")
    other = build_candidate(image([noisy()], stored=16, PatientID="PID-2"), FACTS, ring)
    assert built.patient_key == again.patient_key == whole.patient_key != other.patient_key
    assert [wrap_kek_id(wrap) for wrap in built.wraps] == [built.patient_key]
    assert built.patient_key == ring.patient_key_ids("P\0PID-77120-X")[0]
    assert built.key_ids == (built.patient_key, ring.signing_key()[0])
    assert box.unpack_wraps(sections_of(built.envelope)[SectionType.WRAPS]) == list(built.wraps)
    assert context_of(built.envelope).object_id == built.object_id
    assert built.pixel_wraps == () and SectionType.PIXEL_WRAPS not in sections_of(built.envelope)
    back = restore(built.envelope, ring)
    assert back.key_ids == (built.patient_key, ring.signing_key()[0])


def test_without_a_patient_id_the_study_stands_in(ring: KeyRing) -> None:
    keys = [
        build_passthrough(save(header(PatientID="", **changes)), FACTS, ring, "test").patient_key
        for changes in ({}, {"SOPInstanceUID": "1.2.3"}, {"StudyInstanceUID": "1.2.4"})
    ]
    assert keys[0] == keys[1] != keys[2]
    nothing = [build_passthrough(data, FACTS, ring, "test") for data in (b"no DICOM", b"nor this")]
    assert nothing[0].patient_key != nothing[1].patient_key
    assert restore(nothing[1].envelope, ring).data == b"nor this"


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipient_of_the_rule_opens_everything_alone(kind: Kind, ring: KeyRing) -> None:
    built = build_candidate(FILE, FACTS, ring, rule=SHARED)
    assert built.shared_with == built.key_ids[1:-1] == tuple(f"recipient:{name}" for name in KINDS)
    sections, context = sections_of(built.envelope), context_of(built.envelope)
    found = open_wraps_as(box.unpack_wraps(sections[SectionType.WRAPS]), private(kind), context)
    assert found.id == kind
    open_side(sections[SectionType.SIDE], data_key=found.key, context=context, label="nonpixel")
    assert restore(built.envelope, ring).data == FILE
    whole = build_passthrough(FILE, FACTS, ring, "test", rule=SHARED)
    sections, context = sections_of(whole.envelope), context_of(whole.envelope)
    found = open_wraps_as(box.unpack_wraps(sections[SectionType.WRAPS]), private(kind), context)
    assert open_side(sections[SectionType.WHOLE], data_key=found.key, context=context, label="whole") == FILE
    open_record(bytes(sections[SectionType.RECORD]), data_key=found.key, context=context)


def test_a_recipient_that_the_ring_does_not_know_makes_the_object_wait(ring: KeyRing) -> None:
    rule = ArchiveRule(name="x", shreddable=False, recipients=("nobody",))
    for build in (
        lambda: build_candidate(FILE, FACTS, ring, rule=rule),
        lambda: build_passthrough(FILE, FACTS, ring, "test", rule=rule),
    ):
        with pytest.raises(Unavailable) as caught:
            build()
        assert caught.value.reason == "unknown-recipient"


def test_objects_from_before_patient_keys_still_open(ring: KeyRing) -> None:
    """Wrapped to the master itself, as the first release did."""
    from stego.seal import wrap_key
    from worker.candidate import Secrets

    secrets = Secrets(bytes(16), os.urandom(32))
    built = build_candidate(FILE, FACTS, ring, secrets=secrets)
    kek_id, kek = ring.kek_current()
    wraps = box.pack_wraps([wrap_key(secrets.data_key, kek=kek, kek_id=kek_id)])
    back = restore(rebuilt(built.envelope, {SectionType.WRAPS: wraps}, ring), ring)
    assert back.data == FILE and back.key_ids[0] == kek_id


# --- the standard way out ---


def test_openssl_and_pydicom_read_the_identity_from_the_envelope(ring: KeyRing, tmp_path: Path) -> None:
    """PS3.15 E.1.1, by a recipient who has none of our software."""
    rule = ArchiveRule(name="cms", shreddable=False, cms=("rsa",))
    for built in (
        build_candidate(FILE, FACTS, ring, rule=rule),
        build_passthrough(FILE, FACTS, ring, "test", rule=rule),
    ):
        envelope = pydicom.dcmread(io.BytesIO(built.envelope))
        item = envelope.EncryptedAttributesSequence[0]
        (tmp_path / "content.der").write_bytes(item.EncryptedContent)
        (tmp_path / "key.der").write_bytes(private("rsa"))
        command = ["openssl", "cms", "-decrypt", "-inform", "DER", "-in", "content.der"]
        command += ["-inkey", "key.der", "-keyform", "DER", "-binary"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=True)
        syntax = str(item.EncryptedContentTransferSyntaxUID)
        implicit, little = syntax == IMPLICIT, syntax != BIG
        opened = pydicom.filereader.read_dataset(io.BytesIO(done.stdout), implicit, little)
        removed = opened.ModifiedAttributesSequence[0]
        assert (removed.PatientName, removed.PatientID) == (IDENTITY["PatientName"], IDENTITY["PatientID"])
        assert removed.SOPInstanceUID == IDENTITY["SOPInstanceUID"]
        ours = open_attributes(item, private("rsa"), find_verify_key=ring.find_verify_key)
        assert ours.belongs_to == envelope.SOPInstanceUID == built.envelope_uid
        assert "cms:rsa" in built.key_ids and built.shared_with == ("cms:rsa",)
        assert restore(built.envelope, ring).data == FILE
        for text in IDENTITY.values():
            assert text.encode() not in outside_uids(built.envelope)


def test_no_copy_of_the_identity_without_a_rule_or_without_a_header(ring: KeyRing) -> None:
    rule = ArchiveRule(name="cms", shreddable=False, cms=("rsa",))
    plain = build_candidate(FILE, FACTS, ring)
    nothing = build_passthrough(b"no DICOM", FACTS, ring, "test", rule=rule)
    for built in (plain, nothing):
        assert "EncryptedAttributesSequence" not in pydicom.dcmread(io.BytesIO(built.envelope))
        assert "cms:rsa" not in built.key_ids
    for name, reason in (("nobody", "unknown-recipient"), ("x25519", "unfit-recipient")):
        with pytest.raises(Unavailable) as caught:
            build_candidate(FILE, FACTS, ring, rule=ArchiveRule(name="x", shreddable=False, cms=(name,)))
        assert caught.value.reason == reason


# --- the carrier by rule ---


def test_the_rule_chooses_the_carrier(ring: KeyRing) -> None:
    flat = np.add.outer(np.arange(96), np.arange(96) * 2).astype(np.uint16)  # a slope: the coder foresees every bit
    modelled = image([flat], stored=16)
    empty = image([np.zeros((96, 96), np.uint16)], stored=16)
    rules = {name: ArchiveRule(name=name, carrier=name) for name in ("auto", "segmented", "beside")}  # type: ignore[arg-type]
    expected = {
        (FILE, "auto"): "segmented",
        (FILE, "segmented"): "segmented",
        (FILE, "beside"): "beside",
        (modelled, "auto"): "beside",
        (modelled, "segmented"): "segmented",
        (empty, "segmented"): "beside",
    }
    for (data, name), carrier in expected.items():
        built = build_candidate(data, FACTS, ring, rule=rules[name])
        assert built.carrier == carrier
        assert restore(built.envelope, ring).data == data


def test_a_carrier_that_is_measured_to_cost_more_than_beside_is_given_up(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate proposes, the measurement decides; a rule that insists is not asked."""
    monkeypatch.setattr("worker.candidate.growth", lambda *_, **__: 1.0501)
    built = build_candidate(FILE, FACTS, ring)
    assert built.carrier == "beside" and restore(built.envelope, ring).data == FILE
    for rule in (ArchiveRule(name="x", carrier="segmented"), SEALED):
        assert build_candidate(FILE, FACTS, ring, rule=rule).carrier != "beside"
    monkeypatch.undo()
    segmented, beside = (
        build_candidate(FILE, FACTS, ring, rule=ArchiveRule(name="x", carrier=carrier))
        for carrier in ("segmented", "beside")
    )
    record = len(sections_of(beside.envelope)[SectionType.RECORD])
    assert len(segmented.envelope) - len(beside.envelope) <= 0.05 * record


# --- sealed bitmaps ---


@pytest.fixture(scope="module")
def sealed(ring: KeyRing) -> Candidate:
    return build_candidate(FILE, FACTS, ring, rule=SEALED)


def test_a_sealed_bitmap_shows_a_stego_image_and_says_so(sealed: Candidate, ring: KeyRing) -> None:
    assert sealed.carrier == "sealed-bitmap"
    seen = read_image(sealed.envelope)
    assert type(seen) is StegoImage and not isinstance(seen, ExactImage) and not hasattr(seen, "pixel_sha256")
    words = next(iter(seen.frames()))
    assert np.count_nonzero(words != noisy()) > 100 and np.abs(words.astype(int) - noisy()).max() == 1
    assert np.array_equal(words, next(stego_image(sealed.envelope).frames()))
    with pytest.raises(PolicyRefused) as caught:
        exact_image(sealed.envelope)
    assert caught.value.reason == "pixels-sealed"
    digest = bytes.fromhex(sealed.pixel_sha256)
    assert digest not in sealed.envelope and digest.hex().encode() not in sealed.envelope
    assert parse_envelope(sealed.envelope).pixel_sha256 == ""


def test_a_sealed_bitmap_opens_with_the_pixel_key_or_a_recovery_key(sealed: Candidate, ring: KeyRing) -> None:
    for found in (exact_image(sealed.envelope, ring), exact_image(sealed.envelope, recovery=private("xwing"))):
        assert type(found) is ExactImage and found.pixel_sha256 == sealed.pixel_sha256
        assert pixel_digest(found.frames()).hex() == sealed.pixel_sha256
    assert [recipients.is_ring_wrap(wrap) for wrap in sealed.pixel_wraps] == [True, False]
    assert sealed.key_ids[1:3] == (ring.pixel_key()[0], "recovery:xwing")


def test_a_sealed_bitmap_stays_shut_for_all_others(sealed: Candidate, ring: KeyRing, other_ring: KeyRing) -> None:
    refused(lambda: exact_image(sealed.envelope, other_ring))
    for key in (private("x25519"), private("rsa"), os.urandom(32), b""):
        refused(lambda key=key: exact_image(sealed.envelope, recovery=key))


def test_the_file_comes_back_and_is_proven(sealed: Candidate, ring: KeyRing) -> None:
    back = restore(sealed.envelope, ring)
    assert back.data == FILE and back.exact and back.pixels_open
    assert back.key_ids == (sealed.patient_key, ring.signing_key()[0], ring.pixel_key()[0])
    assert check_envelope(sealed.envelope, ring).ok


def test_an_object_whose_pixels_the_ring_cannot_open_is_not_proven(sealed: Candidate, ring: KeyRing) -> None:
    """Else a shredded patient would take the image along."""
    other = build_candidate(image([noisy(seed=9)], stored=16), FACTS, ring, rule=SEALED)
    wrong = bytes(sections_of(other.envelope)[SectionType.PIXEL_WRAPS])
    forged = rebuilt(sealed.envelope, {SectionType.PIXEL_WRAPS: wrong}, ring)
    report = check_envelope(forged, ring)
    assert (report.ok, report.reason) == (False, "pixel-key")
    refused(lambda: exact_image(forged, ring))


def test_frames_without_room_go_beside_also_when_the_bitmap_should_be_sealed(ring: KeyRing) -> None:
    data = image([np.zeros((32, 32), np.uint16)], stored=16)
    built = build_candidate(data, FACTS, ring, rule=SEALED)
    assert (built.carrier, built.pixel_wraps) == ("beside", ())
    assert type(read_image(built.envelope)) is ExactImage


def test_a_later_frame_carries_a_sealed_bitmap(ring: KeyRing) -> None:
    frames = [np.zeros((96, 96), np.uint16), noisy(), noisy(seed=3)]
    data = image(frames, stored=16)
    built = build_candidate(data, FACTS, ring, rule=SEALED)
    assert restore(built.envelope, ring).data == data
    found = list(exact_image(built.envelope, ring).frames())
    assert all(np.array_equal(a, b) for a, b in zip(found, frames, strict=True))


@pytest.mark.parametrize("rule", [ArchiveRule(name="plain"), SEALED], ids=lambda rule: rule.name)
def test_a_shredded_patient_takes_the_identity_and_not_the_image(rule: ArchiveRule, tmp_path: Path) -> None:
    ring = ring_with_recipients(tmp_path / "keys")
    built = build_candidate(FILE, FACTS, ring, rule=rule)
    ring.destroy_patient_key(built.patient_key, b"tombstone")
    refused(lambda: restore(built.envelope, ring))
    assert np.array_equal(next(exact_image(built.envelope, ring).frames()), noisy())
    for wraps in (built.wraps, built.pixel_wraps):
        for kind in KINDS:
            try:
                found = open_wraps_as(wraps, private(kind), context_of(built.envelope))
            except recipients.SealError:
                continue
            with pytest.raises(recipients.SealError):  # a key that opens pixels opens no identity
                sections = sections_of(built.envelope)
                open_side(
                    sections[SectionType.SIDE], data_key=found.key, context=context_of(built.envelope), label="nonpixel"
                )


# --- one refusal ---


def refused(act: Callable[[], object]) -> None:
    """IntegrityError ``seal-refused``, in the same words, with nothing behind it that tells why."""
    with pytest.raises(IntegrityError) as caught:
        act()
    error = caught.value
    assert (error.reason, str(error)) == ("seal-refused", "a sealed part does not open")
    assert error.__cause__ is None and error.__context__ is None
    text = "".join(traceback.format_exception(error))
    assert "SealError" not in text and "InvalidTag" not in text


def rebuilt(envelope: bytes, swapped: dict[SectionType, bytes], ring: KeyRing) -> bytes:
    """An envelope with some sections exchanged and every digest in clear made to fit: what a forger can do."""
    sections = {kind: bytes(body) for kind, body in sections_of(envelope).items()} | swapped
    return build_envelope(box.build(sections), Source("00" * 32, "", "", "", ""), "", ring.pseudonym_key())


def outcome(envelope: bytes, ring: KeyRing) -> tuple[type[BaseException], str, str] | bytes:
    try:
        return restore(envelope, ring).data
    except IntegrityError as error:
        assert error.__cause__ is None or error.reason != "seal-refused"
        return type(error), error.reason, str(error)


@dataclass(frozen=True, repr=False)
class Pair:
    """Two objects of each form."""

    ring: KeyRing
    other_ring: KeyRing
    objects: dict[str, tuple[Candidate, Candidate]]


@pytest.fixture(scope="module")
def pair(ring: KeyRing, other_ring: KeyRing) -> Pair:
    slopes = [np.add.outer(np.arange(40) + at, np.arange(41)).astype(np.uint16) for at in (0, 1)]
    files = {
        "segmented": [image([noisy(seed=seed)], stored=16) for seed in (1, 2)],
        "sealed": [image([noisy(seed=seed)], stored=16) for seed in (1, 2)],
        "beside": [image([slope], stored=12) for slope in slopes],
        "whole": [save(header(InstanceNumber=number)) for number in ("1", "2")],
    }
    rules = {"sealed": SEALED}
    made = {
        form: [build_candidate(data, FACTS, ring, rule=rules.get(form, ArchiveRule(name="plain"))) for data in each]
        for form, each in files.items()
    }
    return Pair(ring, other_ring, {form: (one, two) for form, (one, two) in made.items()})


FORMS = ("segmented", "sealed", "beside", "whole")


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_ring_and_a_wrong_uid_are_refused_alike(form: str, pair: Pair) -> None:
    built = pair.objects[form][0]
    refused(lambda: restore(built.envelope, pair.other_ring))
    uid = restore(built.envelope, pair.ring).record.sop_uid
    assert restore(built.envelope, pair.ring, sop_uid=uid).data
    refused(lambda: restore(built.envelope, pair.ring, sop_uid=uid + ".1"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", list(SectionType), ids=lambda kind: kind.name)
def test_every_part_of_another_object_is_refused(kind: SectionType, form: str, pair: Pair) -> None:
    """Also when both belong to one patient, so that every wrap opens."""
    one, two = (sections_of(each.envelope) for each in pair.objects[form])
    if kind is SectionType.PIXEL_WRAPS or one.get(kind) == two.get(kind):  # who else sees the pixels: tested above
        return
    forged = rebuilt(pair.objects[form][0].envelope, {kind: bytes(two[kind])}, pair.ring)
    found = outcome(forged, pair.ring)
    assert not isinstance(found, bytes)
    sealed_parts = (SectionType.WRAPS, SectionType.RECORD, SectionType.SIDE, SectionType.WHOLE)
    if kind in sealed_parts:
        assert found[1] == "seal-refused"


@pytest.mark.parametrize("form", FORMS)
def test_the_payload_of_another_object_is_refused(form: str, pair: Pair) -> None:
    """All that is sealed, with its context, on the pixels of the other."""
    one, two = (pair.objects[form][at].envelope for at in (0, 1))
    moved = {kind: bytes(body) for kind, body in sections_of(two).items() if kind not in PIXELS}
    if form == "whole":  # nothing is left of the first: that is the second object
        return
    found = outcome(rebuilt(one, moved, pair.ring), pair.ring)
    assert found[1] in ("context-mismatch", "bitstream-damaged", "pixel-mismatch")
    assert found == outcome(rebuilt(one, moved, pair.ring), pair.other_ring)


PIXELS = (SectionType.FRAMES, SectionType.IMAGE, SectionType.CARRIER)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(FORMS),
    kind=st.sampled_from([kind for kind in SectionType if kind is not SectionType.PIXEL_WRAPS]),
    at=st.integers(0, 10**6),
    change=st.one_of(st.integers(1, 255), st.sampled_from(("cut", "grow", "drop", "empty"))),
)
def test_damage_is_refused_and_what_is_said_of_it_does_not_depend_on_the_keys(
    pair: Pair, form: str, kind: SectionType, at: int, change: int | str
) -> None:
    """Flipped, cut, prolonged, missing: with the right ring and with a wrong one the same words, for every reader."""
    built = pair.objects[form][0]
    body = bytes(sections_of(built.envelope).get(kind, b""))
    if not body:
        return
    if kind is SectionType.IMAGE and (change == "grow" or at % len(body) >= 32):  # a hint for display, bound by nothing
        return
    if kind is SectionType.WRAPS and change == "grow":  # one more wrap, that opens nothing
        return
    forged = rebuilt(built.envelope, {kind: damaged(body, at % len(body), change)}, pair.ring)
    found = outcome(forged, pair.ring)
    assert not isinstance(found, bytes)
    assert found == outcome(forged, pair.other_ring)


def damaged(body: bytes, at: int, change: int | str) -> bytes:
    if isinstance(change, int):
        return body[:at] + bytes([body[at] ^ change]) + body[at + 1 :]
    return {"cut": body[:at], "grow": body + bytes(1 + at % 7), "drop": body[:at] + body[at + 1 :], "empty": b""}[
        change
    ]


# --- every form comes back ---


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=st.sampled_from(
        (SEALED, SHARED, ArchiveRule(name="all", carrier="segmented", shreddable=False, recipients="x25519", cms="rsa"))
    ),
    stored=st.sampled_from((8, 10, 12, 16)),
    signed=st.booleans(),
    frames=st.integers(1, 2),
    noise=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_any_image_under_any_rule_comes_back(
    ring: KeyRing, rule: ArchiveRule, stored: int, signed: bool, frames: int, noise: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    made = [(rng.normal(1 << (stored - 1), noise, (80, 80)).astype(np.int64) % (1 << stored)) for _ in range(frames)]
    words = [each.astype(np.uint16) for each in made]
    data = image(words, stored=stored, PixelRepresentation=int(signed))
    built = build_candidate(data, FACTS, ring, rule=rule)
    back = restore(built.envelope, ring)
    assert back.data == data and back.pixels_open
    assert pixel_digest(exact_image(built.envelope, ring).frames()).hex() == built.pixel_sha256
    seen = read_image(built.envelope)
    assert (type(seen) is StegoImage) == (built.carrier == "sealed-bitmap")


# --- who holds the data key may read, and not write ---


def _rewritten(steps: tuple[Step, ...], at: int, new: bytes) -> tuple[Step, ...]:
    """The plan with `new` in place of as many non-pixel bytes from `at` on."""
    out: list[Step] = []
    taken = 0
    for step in steps:
        if step.op is Op.COPY and taken <= at and at + len(new) <= taken + step.length:
            out += [Step(Op.COPY, at - taken), Step(Op.SKIP, len(new)), Step(Op.INSERT, len(new), new)]
            out += [Step(Op.COPY, step.length - (at - taken) - len(new))]
        else:
            out.append(step)
        taken += step.length if step.op in (Op.COPY, Op.SKIP) else 0
    return tuple(out)


@pytest.mark.parametrize("form", ["native", "compressed"])
def test_a_holder_of_the_data_key_cannot_give_the_file_another_header(form: str, ring: KeyRing) -> None:
    """A recipient opens the object; with write access to the archive it must still not forge what is restored."""
    data = image([noisy(64, 64)], stored=12) if form == "native" else packaged("MR_small_jpeg_ls_lossless.dcm")
    secrets = Secrets(bytes(16), bytes(range(32)))
    built = build_candidate(data, FACTS, ring, secrets=secrets)
    sections = {kind: bytes(body) for kind, body in box.parse(parse_envelope(built.envelope).container).items()}
    context = Context.parse(sections[SectionType.CONTEXT])
    opened = open_side(sections[SectionType.SIDE], data_key=secrets.data_key, context=context, label="nonpixel")
    head = 34 if opened[1] else 2
    layout, used = Layout.unpack(opened[head : head + 16])
    steps, length = unpack_plan(opened[head + used :])
    nonpixel = opened[head + used + length :]
    forged = _rewritten(steps, nonpixel.index(b"\x10\x00\x10\x00PN") + 8, b"MALLORY^MAX^")
    assert forged != steps
    pixels = b"".join(bytes_from_words(words, source.fmt, layout) for source in [open_pixels(read_object(data))]
                      for words in source)  # fmt: skip
    file = carry_out(forged, memoryview(nonpixel), memoryview(pixels))
    assert b"MALLORY" in file
    side = b"".join((b"\x01\x01", sha256(file).digest(), layout.pack(), pack_plan(forged), nonpixel))
    sections[SectionType.SIDE] = seal_side(side, data_key=secrets.data_key, context=context, label="nonpixel")
    envelope = build_envelope(box.build(sections), Source("a" * 64, "P", "1.2", "1.3", "1.4"), "", bytes(32))
    with pytest.raises(IntegrityError) as caught:
        restore(envelope, ring)
    assert caught.value.reason == "seal-refused"
