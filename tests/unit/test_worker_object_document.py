"""docs/archive-object.md is enough to write another reader: here is one, without the worker's container code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import re
import struct
import uuid
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from codec.frame import decode_frame, encode_frame
from codec.group import open_stack
from gateway.keys import KeyRing
from gateway.policy import ArchiveRule
from stego import seal
from stego.record import unpack_record
from tests.object_makers import BIG, FACTS, IDENTITY, image, noisy, packaged
from worker import framechain
from worker.candidate import build_candidate

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "archive-object.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("document") / "keys")


# --- the other reader; section numbers are the document's ---


def container_of(envelope: bytes) -> bytes:
    """Section 1."""
    ds = pydicom.dcmread(io.BytesIO(envelope))
    block = ds.private_block(0x4D51, "PALIMPSEST ARCHIVE")
    assert block[0x01].value == "palimpsest-archive-object/1"
    data = b"".join(block[number].value for number in range(0x10, 0x100) if number in block)[: int(block[0x04].value)]
    assert hashlib.sha256(data).hexdigest() == block[0x02].value
    return data


def sections_of(data: bytes) -> dict[int, bytes]:
    """Section 2."""
    magic, version, zero, count, total = struct.unpack_from("<4sBBHQ", data)
    assert (magic, zero, total) == (b"PALM", 0, len(data)) and version in (1, 2)
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    found, at = {}, 16
    for _ in range(count):
        kind, zero, crc, length = struct.unpack_from("<HHIQ", data, at)
        found[kind] = data[at + 16 : at + 16 + length]
        assert (zero, zlib.crc32(found[kind])) == (0, crc)
        at += 16 + length
    assert at == len(data) - 32
    assert list(found) == sorted(found)
    return found


def splice(side: bytes, frames: list[np.ndarray]) -> bytes:
    """Section 3, SIDE."""
    assert side[0] == 1
    at = 34 if side[1] else 2
    word, high_first, by_plane, swapped, pad_length = side[at : at + 5]
    pad, at = side[at + 5 : at + 5 + pad_length], at + 5 + pad_length
    laid = [np.moveaxis(f, 2, 0) if by_plane and f.ndim == 3 else f for f in frames]
    pixels = b"".join(f.astype(f"{'>' if high_first else '<'}u{word}").tobytes() for f in laid)
    if swapped:
        pixels = b"".join((pixels + pad)[i : i + 2][::-1] for i in range(0, len(pixels + pad), 2))
    steps, out = struct.unpack_from("<H", side, at)[0], b""
    at, plan = at + 2, []
    for _ in range(steps):
        operation, length = struct.unpack_from("<BQ", side, at)
        inserted = side[at + 9 : at + 9 + length] if operation == 2 else b""
        plan.append((operation, length, inserted))
        at += 9 + len(inserted)
    rest = side[at:]
    for operation, length, inserted in plan:
        if operation in (0, 1):
            out, rest = out + (rest[:length] if operation == 0 else b""), rest[length:]
        else:
            out, pixels = out + (inserted or pixels[:length]), pixels if inserted else pixels[length:]
    assert (rest, pixels) == (b"", b"")
    return out


def frames_of(sections: dict[int, bytes]) -> list[np.ndarray]:
    """Section 3, FRAMES and CARRIER: the exact image, without a key; flipping by stego, as payload-format.md says."""
    from stego.segmented import exact

    body = sections[4]
    count = struct.unpack_from("<I", body)[0]
    lengths, at = struct.unpack_from(f"<{count}I", body, 4), 4 + 4 * count
    mode, carrying, start, bits = struct.unpack_from("<BIQI", sections[5])
    frames, before = [], None
    for number, length in enumerate(lengths):
        context = before if number % 16 else None
        upper = stack_of(sections, number // 16)[0][number % 16] if 11 in sections else None
        frame = decode_frame(body[at : at + length], previous=context, shared=sections.get(10), upper=upper or None)
        before = words = frame.words
        if mode == 1 and number == carrying:
            words = exact(words, frame.fmt, frame.levels, sections[5][17:], start, bits)
        frames.append(words)
        at += length
    digest = hashlib.sha256(b"".join(f.astype(f"<u{f.dtype.itemsize}").tobytes() for f in frames)).digest()
    assert digest == sections[3][:32]
    return frames


def parts_of(body: bytes) -> list[bytes]:
    """Section 3, FRAMES and STACK: u32 number, u32 length of each, then all."""
    count = struct.unpack_from("<I", body)[0]
    ends = np.cumsum([4 + 4 * count, *struct.unpack_from(f"<{count}I", body, 4)])
    assert ends[-1] == len(body)
    return [body[first:end] for first, end in zip(ends, ends[1:], strict=False)]


def stack_of(sections: dict[int, bytes], run: int) -> tuple[list[list[np.ndarray]], bytes]:
    """Section 3, STACK; the stack itself is global-path.md's."""
    frames, stacks = parts_of(sections[4]), parts_of(sections[11])
    assert len(stacks) == -(-len(frames) // 16)
    return open_stack(frames[16 * run : 16 * run + 16], stacks[run])


def opened(sections: dict[int, bytes], ring: KeyRing, kind: int, label: str) -> bytes:
    size = struct.unpack_from("<H", sections[2])[0]
    key = seal.unwrap_key(sections[2][2 : 2 + size], find_kek=ring.find_kek)
    context = seal.Context.parse(sections[1])
    return seal.open_side(sections[kind], data_key=key, context=context, label=label)


CASES = {
    "segmented": image([noisy()], stored=16),
    "two frames": image([np.zeros((96, 96), np.uint16), noisy()], stored=16),
    "swapped": image([np.arange(15, dtype=np.uint8).reshape(3, 5)], syntax=BIG),
    "by plane": image([np.arange(27, dtype=np.uint8).reshape(3, 3, 3)], planar=1, vr="OB"),
    "big": packaged("MR_small_bigendian.dcm"),
}


@pytest.mark.parametrize("case", CASES)
def test_another_reader_gets_the_received_file(case: str, ring: KeyRing) -> None:
    sections = sections_of(container_of(build_candidate(CASES[case], FACTS, ring).envelope))
    assert splice(opened(sections, ring, 7, "nonpixel"), frames_of(sections)) == CASES[case]


def test_another_reader_gets_a_decompressed_file(ring: KeyRing) -> None:
    received = packaged("MR_small_jpeg_ls_lossless.dcm")
    sections = sections_of(container_of(build_candidate(received, FACTS, ring).envelope))
    side = opened(sections, ring, 7, "nonpixel")
    restored = splice(side, frames_of(sections))
    assert hashlib.sha256(restored).digest() == side[2:34]
    a, b = pydicom.dcmread(io.BytesIO(received)), pydicom.dcmread(io.BytesIO(restored))
    assert np.array_equal(a.pixel_array, b.pixel_array)


def test_another_reader_gets_a_whole_file(ring: KeyRing) -> None:
    received = packaged("rtplan.dcm")
    sections = sections_of(container_of(build_candidate(received, FACTS, ring).envelope))
    assert sorted(sections) == [1, 2, 6, 8]
    assert opened(sections, ring, 8, "whole") == received


def test_another_reader_opens_a_sealed_bitmap(ring: KeyRing) -> None:
    """Section 3 with payload-format.md, sections 3, 6 and 7: exact pixels by the pixel key, without the data key."""
    from stego.segmented import exact

    rule = ArchiveRule(name="sealed", seal_bitmap=True)
    sections = sections_of(container_of(build_candidate(CASES["segmented"], FACTS, ring, rule=rule).envelope))
    mode, carrying, start, bits = struct.unpack_from("<BIQI", sections[5])
    assert (mode, carrying) == (2, 0) and sorted(sections) == [1, 2, 3, 4, 5, 7, 9]
    wrap = sections[9][2 : 2 + struct.unpack_from("<H", sections[9])[0]]
    key = seal.unwrap_key(wrap, find_kek=ring.find_pixel_key)
    salt = hashlib.sha256(sections[1]).digest()

    def derive(info: bytes) -> bytes:
        return hmac.digest(hmac.digest(salt, key, "sha256"), b"palimpsest/" + info + b"\1", "sha256")

    sealed = sections[5][17:]
    assert len(sealed) == bits // 8 + 80 and sealed[:32] == derive(b"commit/v1/bitmap/v1")
    opened = AESGCM(derive(b"bitmap/v1")).decrypt(bytes(12), sealed[32:], sections[1])
    frame = decode_frame(sections[4][8:])
    shown = hashlib.sha256(frame.words.astype("<u2").tobytes()).digest()
    assert shown == sections[3][:32] != opened[:32]
    words = exact(frame.words, frame.fmt, frame.levels, opened[32:], start, bits)
    assert np.array_equal(words, noisy()) and hashlib.sha256(words.astype("<u2").tobytes()).digest() == opened[:32]


def test_another_reader_opens_a_record_in_a_stack(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 3, CARRIER: pixels as always, the record from the first bits of the stack on."""
    options = {"coders": ("learned",), "split": 6}
    monkeypatch.setattr(framechain, "encode_frame", lambda *args, **given: encode_frame(*args, **{**given, **options}))
    received = packaged("MR_small.dcm")
    sections = sections_of(container_of(build_candidate(received, FACTS, ring).envelope))
    assert splice(opened(sections, ring, 7, "nonpixel"), frames_of(sections)) == received
    mode, run, start, bits = struct.unpack("<BIQI", sections[5])
    assert (mode, run, start % 8, bits % 8) == (3, 0, 0, 0) and bits > 0
    sealed = stack_of(sections, run)[1][start // 8 : (start + bits) // 8] + sections[6]
    key = seal.unwrap_key(sections[2][2 : 2 + struct.unpack_from("<H", sections[2])[0]], find_kek=ring.find_kek)
    context = seal.Context.parse(sections[1])
    assert context.mode == "initial-bits" and len(sealed) in (512, 768)
    packed = seal.open_record(sealed, data_key=key, context=context)
    record = unpack_record(packed, find_verify_key=ring.find_verify_key)
    assert record.file_sha256 == hashlib.sha256(received).hexdigest()


def test_pseudonyms_are_as_written(ring: KeyRing) -> None:
    """Section 4."""
    ds = pydicom.dcmread(io.BytesIO(build_candidate(CASES["segmented"], FACTS, ring).envelope))

    def uid(text: str) -> str:
        digest = hmac.digest(ring.pseudonym_key(), b"palimpsest/uid/v1\0" + text.encode(), "sha256")
        number = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(3 << 62) | 8 << 76 | 2 << 62
        return f"2.25.{uuid.UUID(int=number).int}"

    received = hashlib.sha256(CASES["segmented"]).hexdigest()
    sealed_to = ring.patient_key_ids(f"P\0{IDENTITY['PatientID']}")[0]
    assert ds.SOPInstanceUID == uid(f"palimpsest/envelope/1/{received}/{sealed_to}")
    assert ds.StudyInstanceUID == uid(IDENTITY["StudyInstanceUID"])
    assert ds.SeriesInstanceUID == uid("palimpsest/envelope-series/1/" + IDENTITY["SeriesInstanceUID"])
    reference = ds.ReferencedInstanceSequence[0]
    assert reference.ReferencedSOPInstanceUID == uid(IDENTITY["SOPInstanceUID"])
    message = b"palimpsest/text/v1\0P\0" + IDENTITY["PatientID"].encode()
    text = base64.b32encode(hmac.digest(ring.pseudonym_key(), message, "sha256")).decode()
    crockford = text.translate(str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHJKMNPQRSTVWXYZ"))
    assert ds.PatientID == "P" + crockford[:15]
    assert str(ds.PatientName) == "PALIMPSEST^" + ds.PatientID


def test_every_reason_is_listed() -> None:
    """Section 5 against the source."""
    rooms = ("attributes", "splice", "decoders", "pixels", "candidate")
    files = ("gateway/pixelframes.py", *(f"worker/{room}.py" for room in rooms))
    source = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    reasons = set(re.findall(r'Unsupported\("([a-z0-9-]+)"', source)) | set(re.findall(r'reason = "([a-z-]+)"', source))
    assert len(reasons) > 15
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in DOCUMENT] == []
