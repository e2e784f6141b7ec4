"""Rebinding: whatever happened to the header, the pixels (or the container) and the keys give the original back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagecodecs import jpegls_encode
from pydicom import dcmread
from pydicom.encaps import encapsulate
from typer.testing import CliRunner

from gateway.archive import archive_key
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import IntegrityError
from gateway.jobs import MemoryQueue
from gateway.settings import Settings
from palimpsest.cli import app
from tests.object_makers import FACTS, IDENTITY, JPEG_LS, compressed, image, noisy
from worker.candidate import build_candidate
from worker.envelope import PRIVATE_GROUP
from worker.orphan import Shape
from worker.rebind import Rebound, audited_rebind, rebind
from worker.stegoobject import StegoObject, make_stego

ROWS, COLUMNS = 320, 304
MODES = ("self-contained", "hidden")
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def gw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = build(Settings(home=tmp_path_factory.mktemp("home"), watermark_bytes=0), queue=MemoryQueue())
    yield gateway
    gateway.close()


def original(**changes: Any) -> bytes:
    return image([noisy(ROWS, COLUMNS)], stored=12, **changes)


def archive(gw: Gateway, uid: str, envelope: bytes) -> None:
    if not gw.archive.exists(archive_key(uid)):
        gw.archive.put(archive_key(uid), envelope, sha256(envelope).hexdigest())


def make(gw: Gateway, data: bytes, mode: str, side: str = "archive") -> StegoObject:
    """A stego object whose restoration record, if apart, is in the archive and in no index."""
    made = make_stego(data, FACTS, gw.keys, mode=mode, side=side)  # type: ignore[arg-type]
    if made.restoration is not None:
        archive(gw, made.restoration_uid, made.restoration)
    return made


@pytest.fixture(scope="module")
def stego(gw: Gateway) -> dict[str, bytes]:
    return {mode: make(gw, original(), mode).part10 for mode in MODES}


# --- what may happen to a header ---


def saved(ds: Any) -> bytes:
    out = BytesIO()
    ds.save_as(out)
    return out.getvalue()


def foreign(data: bytes) -> bytes:
    """Another patient's header around the pixels, under new UIDs, implicit VR."""
    ds = dcmread(BytesIO(data))
    other = dcmread(BytesIO(original(PatientName="Other^One", PatientID="X", SOPInstanceUID="1.2.3")))
    other.PixelData = ds.PixelData
    return saved(other)


def wrong_depth(data: bytes) -> bytes:
    """Bits Stored and the sign as some systems rewrite them."""
    ds = dcmread(BytesIO(data))
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1
    return saved(ds)


def transcoded(data: bytes) -> bytes:
    ds = dcmread(BytesIO(data))
    ds.PixelData = encapsulate([jpegls_encode(ds.pixel_array)])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG_LS
    return saved(ds)


def without_meta(data: bytes) -> bytes:
    """The bare data set: preamble and file meta information cut off (its length: PS3.10 7.1)."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


def torn(data: bytes) -> bytes:
    """Random bytes over everything before the attributes that describe the pixels."""
    at = data.index(struct.pack("<HH", 0x0028, 0x0002))
    return np.random.default_rng(5).bytes(at) + data[at:]


def torn_to_the_pixels(data: bytes) -> bytes:
    at = data.index(b"\xe0\x7f\x10\x00OW")
    return b"\xff" * at + data[at:]


def raw(data: bytes) -> bytes:
    return bytes(dcmread(BytesIO(data)).PixelData)


def raw_and_more(data: bytes) -> bytes:
    return b"some other header" + raw(data)


KNOWN = Shape(rows=ROWS, columns=COLUMNS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("damage", "shape"),
    [(bytes, Shape()), (foreign, Shape()), (wrong_depth, Shape()), (transcoded, Shape()), (without_meta, Shape()),
     (torn, Shape()), (torn_to_the_pixels, KNOWN), (raw, KNOWN), (raw_and_more, KNOWN),
     (raw, Shape(ROWS, COLUMNS, 1, 16, 12, False))],
)  # fmt: skip
def test_whatever_happened_to_the_header_the_original_comes_back(
    gw: Gateway, stego: dict[str, bytes], mode: str, damage: Damage, shape: Shape
) -> None:
    damaged = damage(stego[mode])
    assert b"Quastenflosser" not in damaged
    found = rebind(gw, damaged, shape)
    assert (found.found, found.restored_from, found.exact) == (mode, "archive", True)
    assert found.data == original()
    assert found.record.patient_name == IDENTITY["PatientName"]


def test_what_rides_in_the_file_needs_no_archive(gw: Gateway) -> None:
    data = original(SOPInstanceUID="1.2.77")
    inline = make(gw, data, "self-contained", side="inline").part10
    for damage in (bytes, without_meta, torn):
        found = rebind(gw, damage(inline))
        assert (found.restored_from, found.data) == ("file", data)


def test_a_record_under_another_pseudonym_key_is_found_by_searching(gw: Gateway) -> None:
    data = original(SOPInstanceUID="1.2.78")
    made = make_stego(data, FACTS, gw.keys, mode="hidden", side="archive")
    assert made.restoration is not None
    archive(gw, "2.25.99", made.restoration)
    assert rebind(gw, raw(made.part10), KNOWN).data == data


def test_without_its_record_the_original_comes_from_its_archive_object(gw: Gateway) -> None:
    data = original(SOPInstanceUID="1.2.79")
    made = make_stego(data, FACTS, gw.keys, mode="hidden", side="archive")
    with pytest.raises(IntegrityError) as caught:
        rebind(gw, made.part10)
    assert caught.value.reason == "restoration-missing"
    candidate = build_candidate(data, FACTS, gw.keys)
    archive(gw, candidate.envelope_uid, candidate.envelope)
    found = rebind(gw, made.part10)
    assert (found.found, found.restored_from, found.data) == ("hidden", "archive", data)


def test_padding_that_only_the_lost_header_stated_is_learned_from_the_record(gw: Gateway) -> None:
    frame = noisy(ROWS, COLUMNS)
    frame[40:60, 40:60] = 1700  # in the middle of the range, and on fewer samples than a plateau has
    data = image([frame], stored=12, PixelPaddingValue=1700, SOPInstanceUID="1.2.80")
    made = make(gw, data, "self-contained")
    assert rebind(gw, torn_to_the_pixels(made.part10), KNOWN).data == data


def test_compressed_originals_come_back_in_their_native_form(gw: Gateway) -> None:
    frame = noisy(ROWS, COLUMNS)
    data = compressed([frame], [jpegls_encode(frame)], syntax=JPEG_LS, stored=12, SOPInstanceUID="1.2.81")
    found = rebind(gw, torn(make(gw, data, "self-contained").part10))
    assert not found.exact and found.record.file_sha256 == sha256(data).hexdigest()
    assert np.array_equal(dcmread(BytesIO(found.data)).pixel_array, frame)


def test_several_frames(gw: Gateway) -> None:
    frames = [noisy(ROWS, COLUMNS, seed=seed) for seed in (1, 2, 3)]
    data = image(frames, stored=12, SOPInstanceUID="1.2.82")
    made = make(gw, data, "self-contained").part10
    assert rebind(gw, torn_to_the_pixels(made), KNOWN).data == data
    assert rebind(gw, raw(made), replace(KNOWN, frames=3)).data == data


# --- archive objects ---


def private_stripped(data: bytes) -> bytes:
    ds = dcmread(BytesIO(data))
    ds.remove_private_tags()
    return saved(ds)


def container_alone(data: bytes) -> bytes:
    return data[data.index(b"PALM") :]


def creator_lost(data: bytes) -> bytes:
    """The private elements without the one that says whose they are."""
    ds = dcmread(BytesIO(data))
    del ds[PRIVATE_GROUP, 0x0010]
    return saved(ds)


@pytest.mark.parametrize(
    ("damage", "found", "source"),
    [(bytes, "container", "file"), (container_alone, "container", "file"), (creator_lost, "container", "file"),
     (private_stripped, "archive-uid", "archive")],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_archive_objects_without_their_header(
    gw: Gateway, damage: Damage, found: str, source: str, whole: bool
) -> None:
    data = b"no DICOM at all" if whole else original(SOPInstanceUID="1.2.83")
    candidate = build_candidate(data, FACTS, gw.keys)
    archive(gw, candidate.envelope_uid, candidate.envelope)
    back = rebind(gw, damage(candidate.envelope))
    assert (back.found, back.restored_from, back.data) == (found, source, data)


# --- refusals ---


@pytest.mark.parametrize("mode", MODES)
def test_another_ring_altered_pixels_and_ordinary_images_are_one_refusal(
    gw: Gateway, stego: dict[str, bytes], mode: str, tmp_path: Path
) -> None:
    stranger = build(Settings(home=tmp_path, watermark_bytes=0), queue=MemoryQueue())
    altered = bytearray(stego[mode])
    for at in range(4002, 20002, 1000):  # of many, as the hidden code leaves some sample out by chance
        altered[-at] ^= 1
    tries = [(stranger, stego[mode]), (gw, bytes(altered)), (gw, original()), (gw, b""), (gw, b"PALM" * 100),
             (gw, stego[mode][: len(stego[mode]) // 2])]  # fmt: skip
    seen = set()
    for gateway, data in tries:
        with pytest.raises(IntegrityError) as caught:
            rebind(gateway, data)
        seen.add((caught.value.reason, caught.value.message))
    assert len(seen) == 1
    stranger.close()


def test_success_and_refusal_are_in_the_audit_trail(gw: Gateway, stego: dict[str, bytes]) -> None:
    found: Rebound = audited_rebind(gw, torn(stego["hidden"]), "cli:me")
    assert found.data == original()
    event = tail(gw.index, 1)[0]
    assert (event["event"], event["actor"], event["outcome"]) == ("rebind", "cli:me", "success")
    assert event["detail"]["kind"] == "hidden" and "stego-1" in event["detail"]["key_id"]
    with pytest.raises(IntegrityError):
        audited_rebind(gw, original(), "cli:me")
    event = tail(gw.index, 1)[0]
    assert (event["event"], event["outcome"], event["detail"]["reason"]) == ("rebind", "failure", "seal-refused")
    assert IDENTITY["PatientName"] not in str(tail(gw.index, 20))


def test_the_command_writes_the_original_once_and_nothing_when_refused(
    gw: Gateway, stego: dict[str, bytes], tmp_path: Path
) -> None:
    orphan, out = tmp_path / "orphan.raw", tmp_path / "original.dcm"
    orphan.write_bytes(raw(stego["self-contained"]))
    arguments = ["payload", "rebind", str(orphan), "--out", str(out), "--home", str(gw.settings.home)]
    refused = CliRunner().invoke(app, arguments)  # nobody said what shape it has
    assert refused.exit_code == 1 and "nothing in this file opens" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["orphan.raw"]
    done = CliRunner().invoke(app, [*arguments, "--rows", str(ROWS), "--columns", str(COLUMNS)])
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == original() and out.stat().st_mode & 0o077 == 0
    assert "byte for byte as received; found by self-contained, restored from the archive" in done.output
    again = CliRunner().invoke(app, [*arguments, "--rows", str(ROWS), "--columns", str(COLUMNS)])
    assert again.exit_code == 1 and "exists" in again.output


def test_a_lost_database_costs_nothing_but_time(tmp_path: Path) -> None:
    home = tmp_path / "home"
    gateway = build(Settings(home=home, watermark_bytes=0), queue=MemoryQueue())
    made = make(gateway, original(), "hidden")
    gateway.close()
    for path in home.glob("palimpsest.db*"):
        path.unlink()
    gateway = build(Settings(home=home, watermark_bytes=0), queue=MemoryQueue())
    assert rebind(gateway, torn(made.part10)).data == original()
    gateway.close()
