"""Viewable stego objects: an ordinary image to everyone, the received file to the holder of the keys, or nothing."""

from __future__ import annotations

import io
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from gateway.errors import IntegrityError, PalimpsestError, PolicyRefused, Unsupported
from gateway.keys import KeyRing
from stego.lattice import lattice
from stego.seal import Context
from tests.object_makers import BIG, EXPLICIT, FACTS, IDENTITY, IMPLICIT, RLE, image, outside_uids, packaged, save
from worker import container as box
from worker import stegoheader, stegoside
from worker.candidate import Secrets, build_candidate
from worker.container import SectionType
from worker.deid_profile import Profile
from worker.pixels import open_pixels, pixel_digest
from worker.restore import restore
from worker.splice import Op, Step, carry_out, read_object
from worker.stegoframe import MODES, Mode
from worker.stegoobject import StegoObject, make_stego, open_stego, read_stego
from worker.stegoread import find_capsule
from worker.stegoside import parse_restoration_envelope, restoration_uid

Words = npt.NDArray[np.uint16]


def grainy(rows: int = 288, columns: int = 272, *, seed: int = 1, sigma: float = 6.0) -> Words:
    """A smooth 12-bit scene with Gaussian noise, as detectors have it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    scene = 1200 + 500 * np.sin(y / 41) * np.cos(x / 37)
    return np.clip(np.rint(scene + rng.normal(0, sigma, (rows, columns))), 1, 4094).astype(np.uint16)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("ring") / "keys")


def made(data: bytes, ring: KeyRing, mode: Mode, **options: Any) -> StegoObject:
    options.setdefault("side", "archive" if mode == "hidden" else "inline")
    return make_stego(data, FACTS, ring, mode=mode, **options)


def as_dataset(part10: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(part10))


def rewritten(part10: bytes, **changes: object) -> bytes:
    ds = as_dataset(part10)
    for name, value in changes.items():
        setattr(ds, name, value)
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def refused(part10: bytes, ring: KeyRing, restoration: bytes | None) -> str:
    with pytest.raises(IntegrityError) as caught:
        open_stego(part10, ring, restoration=restoration)
    return f"{caught.value.reason}: {caught.value.message}"


# --- the file comes back ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["inline", "archive"])
def test_the_file_comes_back_bit_for_bit(ring: KeyRing, mode: Mode, side: Any) -> None:
    data = image([grainy()], stored=12)
    if mode == "hidden" and side == "inline":
        with pytest.raises(PolicyRefused, match="archive"):
            made(data, ring, mode, side=side)
        return
    stego = made(data, ring, mode, side=side)
    back = open_stego(stego.part10, ring, restoration=stego.restoration)
    assert back.data == data
    assert back.exact
    assert (back.mode, back.object_id, back.record.patient_id) == (mode, stego.object_id, IDENTITY["PatientID"])
    assert set(back.key_ids) <= set(stego.key_ids) | {ring.signing_key()[0]}
    assert stego.patient_key in stego.key_ids


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("signed", [0, 1])
def test_every_layout(ring: KeyRing, mode: Mode, syntax: str, signed: int) -> None:
    words = grainy() if not signed else (grainy().astype(np.int32) - 1200).astype(np.uint16)
    data = image([words], syntax=syntax, PixelRepresentation=signed)
    stego = made(data, ring, mode)
    assert open_stego(stego.part10, ring, restoration=stego.restoration).data == data


def test_eight_bits_in_big_endian_words_with_an_odd_count(ring: KeyRing) -> None:
    frame = (grainy(287, 301) >> 4).astype(np.uint8)
    data = image([frame], syntax=BIG, vr="OW")
    assert open_stego(made(data, ring, "self-contained").part10, ring).data == data


@pytest.mark.parametrize("mode", MODES)
def test_the_frame_that_carries_need_not_be_the_first(ring: KeyRing, mode: Mode) -> None:
    flat = np.zeros((288, 272), np.uint16)
    data = image([flat, flat, grainy(), grainy(seed=2)], stored=12)
    stego = made(data, ring, mode)
    assert stego.report.frame == 2
    shown = as_dataset(stego.part10).pixel_array
    assert np.array_equal(shown[3], grainy(seed=2))
    assert not np.array_equal(shown[2], grainy())
    assert open_stego(stego.part10, ring, restoration=stego.restoration).data == data


def test_compressed_input_comes_back_native_with_equal_pixels(ring: KeyRing) -> None:
    ds = as_dataset(image([grainy()], stored=12))
    ds.compress(RLE)
    data = save(ds, RLE)
    back = open_stego(made(data, ring, "self-contained").part10, ring)
    assert not back.exact
    assert np.array_equal(as_dataset(back.data).pixel_array, grainy())
    assert back.data == restore(build_candidate(data, FACTS, ring).envelope, ring).data


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_padded.dcm"])
def test_packaged_files(ring: KeyRing, name: str) -> None:
    data = packaged(name)
    try:
        stego = made(data, ring, "self-contained")
    except Unsupported as error:
        assert error.reason == "no-room"
        return
    assert open_stego(stego.part10, ring).data == data


@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(150, 320), columns=st.integers(150, 320),
    bits=st.integers(10, 16), signed=st.booleans(), mode=st.sampled_from(MODES),
)  # fmt: skip
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_image_comes_back_or_is_refused_with_a_reason(
    ring: KeyRing, seed: int, rows: int, columns: int, bits: int, signed: bool, mode: Mode
) -> None:
    values = grainy(rows, columns, seed=seed, sigma=4).astype(np.int32) >> (12 - min(bits, 12))
    words = ((values - (1 << (bits - 1)) if signed else values) & 0xFFFF).astype(np.uint16)
    data = image([words], stored=bits, PixelRepresentation=int(signed), PatientName=f"N{seed}")
    try:
        stego = made(data, ring, mode)
    except Unsupported as error:
        assert error.reason in ("no-room", "smooth", "comb")
        return
    assert open_stego(stego.part10, ring, restoration=stego.restoration).data == data


def test_the_same_secrets_give_the_same_object(ring: KeyRing) -> None:
    data, secrets = image([grainy()], stored=12), Secrets.draw()
    one, other = (made(data, ring, "hidden", secrets=secrets) for _ in range(2))
    assert one == other
    assert one.stego_uid != made(data, ring, "hidden").stego_uid


def test_old_stego_keys_still_find_it(tmp_path: Path) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys")
    data = image([grainy()], stored=12)
    objects = [made(data, ring, mode) for mode in MODES]
    ring.rotate("stego")
    for stego in objects:
        assert open_stego(stego.part10, ring, restoration=stego.restoration).data == data


# --- what others see ---


@pytest.mark.parametrize("mode", MODES)
def test_the_header_is_a_derived_deidentified_images(ring: KeyRing, mode: Mode) -> None:
    data = image(
        [grainy()], stored=12, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], SmallestImagePixelValue=1,
        LargestImagePixelValue=4094, LossyImageCompression="00",
    )  # fmt: skip
    stego = made(data, ring, mode)
    for value in IDENTITY.values():
        assert value.encode() not in outside_uids(stego.part10)
    ds = as_dataset(stego.part10)
    assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == stego.stego_uid
    assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert ds.DerivationDescription
    reference = ds.SourceImageSequence[0]
    assert reference.ReferencedSOPClassUID == ds.SOPClassUID
    assert reference.ReferencedSOPInstanceUID not in (IDENTITY["SOPInstanceUID"], stego.stego_uid)
    assert (ds.SmallestImagePixelValue, ds.LargestImagePixelValue) == (ds.pixel_array.min(), ds.pixel_array.max())
    assert ds.LossyImageCompression == "00"
    assert ds.PatientIdentityRemoved == "YES"


def test_a_hidden_object_shows_nothing_of_ours(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "hidden")
    ds = as_dataset(stego.part10)
    head = stego.part10[: stego.part10.index(b"\xe0\x7f\x10\x00")].lower()
    assert b"stego" not in head
    assert b"palimpsest" not in head
    assert not any(element.tag.is_private for element in ds)
    assert ds.file_meta.ImplementationClassUID == pydicom.uid.PYDICOM_IMPLEMENTATION_UID


def test_a_hidden_object_made_from_a_self_contained_one_shows_nothing_of_ours_either(ring: KeyRing) -> None:
    inner = made(image([grainy()], stored=12), ring, "self-contained")
    outer = made(inner.part10, ring, "hidden")
    assert b"palimpsest" not in outer.part10.lower()
    assert open_stego(outer.part10, ring, restoration=outer.restoration).data == inner.part10


@pytest.mark.parametrize("mode", MODES)
def test_pixels_change_by_no_more_than_the_report_says(ring: KeyRing, mode: Mode) -> None:
    stego = made(image([grainy()], stored=12), ring, mode)
    shown = as_dataset(stego.part10).pixel_array.astype(np.int32)
    change = shown - grainy().astype(np.int32)
    assert int(np.abs(change).max()) == stego.report.max_change
    assert int(np.count_nonzero(change)) == stego.report.changed
    assert float((change**2).mean()) == pytest.approx(stego.report.mse)
    assert np.array_equal(lattice(shown), lattice(grainy().astype(np.int32)))
    assert pixel_digest(open_pixels(read_object(stego.part10))).hex() == stego.stego_sha256


def test_options_of_deidentification_are_followed(ring: KeyRing) -> None:
    data = image([grainy()], stored=12)
    ds = as_dataset(made(data, ring, "self-contained", profile=Profile(retain_uids=True)).part10)
    assert ds.StudyInstanceUID == IDENTITY["StudyInstanceUID"]
    assert ds.SOPInstanceUID != IDENTITY["SOPInstanceUID"]
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == IDENTITY["SOPInstanceUID"]


def test_frame_types_of_an_enhanced_image_are_derived(ring: KeyRing) -> None:
    macro, frame = Dataset(), Dataset()
    macro.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    frame.CTImageFrameTypeSequence = [macro]
    data = image(
        [grainy()], stored=12, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames="1",
        PerFrameFunctionalGroupsSequence=[frame],
    )  # fmt: skip
    groups = as_dataset(made(data, ring, "self-contained").part10).PerFrameFunctionalGroupsSequence
    assert list(groups[0].CTImageFrameTypeSequence[0].FrameType) == ["DERIVED", "PRIMARY", "VOLUME", "NONE"]


# --- what a PACS may do to it ---


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG, RLE])
@pytest.mark.parametrize("mode", MODES)
def test_any_lossless_transcode_is_survived(ring: KeyRing, mode: Mode, syntax: str) -> None:
    data = image([grainy()], stored=12)
    stego = made(data, ring, mode)
    ds = as_dataset(stego.part10)
    if syntax == RLE:
        ds.compress(RLE)
    elif syntax == BIG:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
    back = open_stego(save(ds, syntax), ring, restoration=stego.restoration)
    assert back.data == data


@pytest.mark.parametrize("mode", MODES)
def test_the_header_may_be_rewritten(ring: KeyRing, mode: Mode) -> None:
    data = image([grainy()], stored=12, PixelPaddingValue=3000)
    stego = made(data, ring, mode)
    changed = rewritten(stego.part10, PatientName="SOMEONE^ELSE", StudyInstanceUID="1.2.3", WindowCenter="77")
    assert open_stego(changed, ring, restoration=stego.restoration).data == data


def test_bare_frames_are_enough_to_learn_whose_they_are(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "hidden")
    source = open_pixels(read_object(stego.part10))
    reading = find_capsule([(0, source.frame(0))], source.fmt, ring)
    assert reading.record.patient_name == IDENTITY["PatientName"]
    assert reading.found.capsule.object_id == stego.object_id


def test_the_restoration_record_is_found_by_its_uid_and_opens_by_its_own_wrap(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "hidden")
    assert stego.restoration is not None
    ds = as_dataset(stego.restoration)
    uid = restoration_uid(stego.object_id, ring.pseudonym_key())
    assert ds.SOPInstanceUID == stego.restoration_uid == uid
    parsed = parse_restoration_envelope(stego.restoration)
    assert parsed.wraps == stego.wraps
    assert parsed.context.object_id == stego.object_id
    for value in IDENTITY.values():
        assert value.encode() not in outside_uids(stego.restoration)


# --- refusals ---


@pytest.mark.parametrize("mode", MODES)
def test_wrong_key_damage_and_ordinary_images_are_one_refusal(ring: KeyRing, tmp_path: Path, mode: Mode) -> None:
    data = image([grainy()], stored=12)
    stego = made(data, ring, mode)
    other = KeyRing.load_or_create(tmp_path / "other")
    at = stego.part10.index(b"\xe0\x7f\x10\x00") + 12
    flipped = bytearray(stego.part10)
    for offset in range(0, 100_000, 64):
        flipped[at + offset] ^= 1
    rng = np.random.default_rng(5)
    pixels = (as_dataset(stego.part10).pixel_array ^ rng.integers(0, 2, (288, 272))).astype(np.uint16)
    wiped = rewritten(stego.part10, PixelData=pixels.tobytes())
    seen = {
        refused(stego.part10, other, stego.restoration),
        refused(bytes(flipped), ring, stego.restoration),
        refused(wiped, ring, stego.restoration),
        refused(data, ring, stego.restoration),
    }
    assert len(seen) == 1
    assert next(iter(seen)).startswith("seal-refused")


def test_an_image_of_another_object_is_refused(ring: KeyRing) -> None:
    one = made(image([grainy()], stored=12), ring, "hidden")
    two = made(image([grainy(seed=9)], stored=12), ring, "hidden")
    again = made(image([grainy()], stored=12), ring, "hidden")
    assert refused(one.part10, ring, two.restoration).startswith("restoration-other")
    assert refused(one.part10, ring, again.restoration).startswith("restoration-other")


def test_hidden_needs_its_restoration_record(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "hidden")
    assert refused(stego.part10, ring, None).startswith("restoration-missing")
    assert read_stego(stego.part10, ring).record.patient_id == IDENTITY["PatientID"]


def test_the_archive_object_of_the_file_is_no_restoration_record(ring: KeyRing) -> None:
    data = image([grainy()], stored=12)
    stego = made(data, ring, "hidden")
    assert refused(stego.part10, ring, build_candidate(data, FACTS, ring).envelope).startswith("not-restoration")


def test_a_shredded_patient_is_refused_like_a_wrong_key(tmp_path: Path) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys")
    stego = made(image([grainy()], stored=12), ring, "self-contained")
    ring.destroy_patient_key(stego.patient_key, b"{}")
    assert refused(stego.part10, ring, None).startswith("seal-refused")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned-in"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "burned-in"),
        ({"LossyImageCompression": "01"}, "lossy-source"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_pixel_rules_are_enforced_before_embedding(
    ring: KeyRing, mode: Mode, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        made(image([grainy()], stored=12, **changes), ring, mode)
    assert caught.value.reason == reason


def test_an_overlay_in_any_frame_is_refused(ring: KeyRing) -> None:
    data = image([grainy(), grainy() | 0x8000], stored=12)
    with pytest.raises(Unsupported) as caught:
        made(data, ring, "self-contained")
    assert caught.value.reason == "unused-bits"


def test_nothing_is_hidden_where_it_would_show(ring: KeyRing) -> None:
    smooth = image([grainy(sigma=0.6)], stored=12)
    small = image([grainy(100, 100)], stored=12)
    for data, reason in ((smooth, "smooth"), (small, "no-room")):
        with pytest.raises(Unsupported) as caught:
            made(data, ring, "hidden")
        assert caught.value.reason == reason


def test_no_identity_in_what_is_logged(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "self-contained")
    shown = repr(stego) + repr(open_stego(stego.part10, ring)) + repr(read_stego(stego.part10, ring))
    for value in IDENTITY.values():
        assert value.encode() not in outside_uids(shown.encode())


def test_a_truncated_object_is_refused(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "self-contained")
    for size in (200, len(stego.part10) // 2, len(stego.part10) - 1):
        with pytest.raises(PalimpsestError):
            open_stego(stego.part10[:size], ring)


@pytest.mark.parametrize("mode", ["self-Contained", "hidden\0", "segmented"])
def test_a_record_that_names_no_mode_of_ours_is_refused_like_any_other(ring: KeyRing, mode: str) -> None:
    """The container's digest has no key, so whoever can write a file can make one that fits."""
    stego = made(image([grainy()], stored=12), ring, "self-contained")
    ds = as_dataset(stego.part10)
    element = ds.private_block(stegoheader.PRIVATE_GROUP, stegoheader.CREATOR)[0x10]
    sections = {kind: bytes(body) for kind, body in box.parse(element.value).items()}
    context = Context.parse(sections[SectionType.CONTEXT])
    element.value = box.build({**sections, SectionType.CONTEXT: replace(context, mode=mode).aad()})
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    with pytest.raises(IntegrityError) as refused:
        open_stego(out.getvalue(), ring)
    assert refused.value.reason == "seal-refused"


def test_damage_in_the_header_part_is_refused(ring: KeyRing) -> None:
    stego = made(image([grainy()], stored=12), ring, "self-contained")
    block = as_dataset(stego.part10).private_block(0x4D51, "PALIMPSEST STEGO")
    container = block[0x10].value
    for at in (0, 9, 60, len(container) // 2, len(container) - 40):
        damaged = stego.part10.replace(container, container[:at] + bytes([container[at] ^ 4]) + container[at + 1 :])
        assert refused(damaged, ring, None).split(":")[0] in ("container-damaged", "container-version")


def test_secrets_are_not_shown() -> None:
    secrets = Secrets(b"\x01" * 16, b"\x02" * 32)
    assert "02" not in repr(replace(secrets))


def test_a_holder_of_the_data_key_cannot_give_the_file_another_header(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens the side part could seal another one: what is not signed must follow from what is."""
    stego = made(image([grainy()], stored=12), ring, "self-contained")
    real = stegoside.unpack_part

    def forged(data: bytes) -> stegoside.SidePart:
        part = real(data)
        at = bytes(part.nonpixel).index(b"\x10\x00\x10\x00PN") + 8
        first = next(index for index, step in enumerate(part.steps) if step.op is Op.COPY and step.length > at)
        taken = sum(step.length for step in part.steps[:first] if step.op in (Op.COPY, Op.SKIP))
        copied = part.steps[first].length - (at - taken) - 4
        changed = (Step(Op.COPY, at - taken), Step(Op.SKIP, 4), Step(Op.INSERT, 4, b"EVE^"), Step(Op.COPY, copied))
        steps = (*part.steps[:first], *changed, *part.steps[first + 1 :])
        source = open_pixels(read_object(image([grainy()], stored=12)))
        pixels = b"".join(words.astype("<u2").tobytes() for words in source)
        file = carry_out(steps, part.nonpixel, memoryview(pixels))
        assert b"EVE^" in file
        return replace(part, compressed=True, steps=steps, restored_sha256=sha256(file).digest())

    monkeypatch.setattr(stegoside, "unpack_part", forged)
    assert refused(stego.part10, ring, stego.restoration).startswith("restore-mismatch")
