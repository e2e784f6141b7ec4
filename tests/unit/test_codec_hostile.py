"""The decoder against damaged and hostile bytes: a typed error or a frame, in bounded memory."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.errors import CorruptBitstream
from codec.frame import Frame, decode_frame, encode_frame
from codec.pixelformat import PixelFormat
from codec.reference import decode_frame_reference
from codec.wire import put_crc, put_signed, put_varint
from tests.unit.codec_images import picture, stored

GOLDEN = {path.stem: path.read_bytes() for path in (Path(__file__).parents[1] / "golden" / "codec_v1").glob("*.bin")}
NAMES = sorted(GOLDEN)


def _header(rows: int, columns: int, coder: int, flags: int = 4, tail: bytes = b"") -> bytes:
    """A header with a right checksum and any sizes; 12 bits stored, all 4096 levels."""
    out = bytearray((0x50, 1, flags, 11 | 11 << 4, coder))
    put_varint(out, rows)
    put_varint(out, columns)
    put_signed(out, 0)
    put_varint(out, 4095)
    out += tail
    put_crc(out, 0)
    return bytes(out)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_and_every_tail_is_refused(name: str) -> None:
    blob = GOLDEN[name]
    for end in range(0, len(blob), max(1, len(blob) // 60)):
        with pytest.raises(CorruptBitstream):
            decode_frame(blob[:end])
    with pytest.raises(CorruptBitstream):
        decode_frame(blob + b"\0")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_every_flipped_bit_is_noticed(name: str, data: st.DataObject) -> None:
    blob = bytearray(GOLDEN[name])
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptBitstream):
        decode_frame(bytes(blob))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(data: bytes, magic: bool) -> None:
    with pytest.raises(CorruptBitstream):
        decode_frame((b"\x50\x01" if magic else b"") + data)


STREAMS = ["grey8", "activity-classes", "global-part", "noisy16", "bitmap", "one-row"]


def _next_crc(blob: bytes, start: int, first: int) -> int:
    """Where the checksum of the part that begins at `start` lies, not before `first`."""
    places = range(first, len(blob))
    return next(at for at in places if zlib.crc32(blob[start:at]) == int.from_bytes(blob[at : at + 4], "little"))


def _last_tile(blob: bytes) -> int:
    """Where the last checksummed part begins."""
    wanted = int.from_bytes(blob[-4:], "little")
    return next(start for start in range(len(blob) - 4) if zlib.crc32(blob[start:-4]) == wanted)


def _outcome(decoder: object, blob: bytes) -> bytes | None:
    """The words, or None for CorruptBitstream; anything else is a failure of the test."""
    try:
        frame: Frame = decoder(blob)  # type: ignore[operator]
    except CorruptBitstream:
        return None
    return bytes(frame.words.tobytes())


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(STREAMS), st.data())
def test_changed_streams_with_right_checksums_do_no_harm(name: str, data: st.DataObject) -> None:
    blob = GOLDEN[name]
    start = _last_tile(blob)
    part = bytearray(blob[start:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    part += zlib.crc32(part).to_bytes(4, "little")
    changed = blob[:start] + bytes(part)
    outcome = _outcome(decode_frame, changed)
    assert outcome is None or len(outcome) == len(decode_frame(blob).words.tobytes())
    if name == "one-row":
        assert outcome == _outcome(decode_frame_reference, changed)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["activity-classes", "global-part", "colour"]), st.data())
def test_changed_plane_headers_with_right_checksums_do_no_harm(name: str, data: st.DataObject) -> None:
    blob = GOLDEN[name]
    first = 4 + _next_crc(blob, 0, 9)
    end = _next_crc(blob, first, first + 3)
    part = bytearray(blob[first:end])
    part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    part += zlib.crc32(part).to_bytes(4, "little")
    outcome = _outcome(decode_frame, blob[:first] + bytes(part) + blob[end + 4 :])
    assert outcome is None or len(outcome) > 0


@pytest.mark.parametrize("coder", range(5))
@pytest.mark.parametrize("shape", [(65535, 65535), (65535, 1), (1, 65535), (0, 5), (11000, 11000)])
def test_hostile_sizes_cost_no_memory(shape: tuple[int, int], coder: int) -> None:
    blob = _header(*shape, coder) + bytes(64)
    tracemalloc.start()
    with pytest.raises(CorruptBitstream):
        decode_frame(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_level_table_and_unused_bombs_are_refused() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    for flags, span in ((4 | 32, b"\xff\x1f"), (4 | 16, b"")):
        tail = bytearray(span)
        body = (b"\x01" if flags & 32 else b"") + bomb
        put_varint(tail, len(body))
        with pytest.raises(CorruptBitstream):
            decode_frame(_header(8, 8, 0, flags, bytes(tail) + body) + bytes(4))


def test_library_stream_of_another_size_is_refused() -> None:
    small, large = PixelFormat(8, 8, 1, 16, 12, 11, False), PixelFormat(16, 16, 1, 16, 12, 11, False)
    for number, coder in ((1, "jxl"), (2, "jpegls"), (3, "htj2k")):
        blob = encode_frame(stored(picture(large, 1, 3), large), large, coders=(coder,)).blob
        end = 4 + _next_crc(blob, 0, 9)
        with pytest.raises(CorruptBitstream, match="another size"):
            decode_frame(_header(small.rows, small.columns, number) + blob[end:])


def test_other_versions_are_named() -> None:
    blob = bytearray(GOLDEN["grey8"])
    blob[1] = 3
    with pytest.raises(CorruptBitstream, match="version 3"):
        decode_frame(bytes(blob))


def test_words_of_a_decoded_frame_are_its_own() -> None:
    first, second = decode_frame(GOLDEN["coder-raw"]), decode_frame(GOLDEN["coder-raw"])
    first.words[:] = 0
    assert not np.array_equal(first.words, second.words)
