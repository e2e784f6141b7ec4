"""The learned coder's decoder against changed bytes with right checksums: a typed error or a frame, and both alike."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import weights
from codec.bitplane import Words
from codec.dual import code_taps
from codec.errors import CorruptBitstream
from codec.frame import decode_frame, encode_frame
from codec.header import read_header
from codec.learneddecode import radius_of
from codec.learnedformat import NO_WORDS, CodedFrame, CodedPlane, Tile, read_learned, write_learned
from codec.limits import DEFAULT_LIMITS
from codec.pixelformat import PixelFormat
from codec.reference import decode_frame_reference
from codec.wire import Reader, put_crc, put_signed, put_varint
from tests.golden.make_codec2_vectors import split_frame
from tests.unit.codec_images import picture, stored
from tests.unit.codec_networks import known, weight_file

GREY = PixelFormat(24, 20, 1, 16, 12, 11, False)
SPLIT = PixelFormat(60, 60, 1, 8, 8, 7, False)


@pytest.fixture(autouse=True, scope="module")
def _weights() -> Iterator[None]:
    with known(weight_file()):
        yield


@cache
def parsed(split: bool, chained: bool) -> tuple[bytes, CodedFrame]:
    """A frame's header and the learned coder's part."""
    fmt = SPLIT if split else GREY
    words = split_frame(SPLIT) if split else stored(picture(GREY, 1, 5), GREY)
    blob = encode_frame(words, fmt, coders=("learned",), previous=before(split) if chained else None).blob
    reader = Reader(blob)
    header = read_header(reader, DEFAULT_LIMITS)
    return blob[: reader.position], read_learned(reader, header.fmt.shape, header.levels.count)


@cache
def before(split: bool) -> Words:
    """The previous frame."""
    return split_frame(SPLIT) if split else stored(picture(GREY, 1, 5), GREY)


def outcome(decoder: object, blob: bytes, previous: Words) -> bytes | None:
    """The words, or None for CorruptBitstream; anything else is a failure of the test."""
    try:
        return bytes(decoder(blob, previous=previous).words.tobytes())  # type: ignore[operator]
    except CorruptBitstream:
        return None


@st.composite
def changed_words(draw: st.DrawFn, words: np.ndarray) -> np.ndarray:
    """Words with some of them changed, dropped or added."""
    out = words.copy()
    for _ in range(draw(st.integers(0, 3)) if out.size else 0):
        out[draw(st.integers(0, out.size - 1))] ^= np.uint32(1 << draw(st.integers(0, 31)))
    end = draw(st.sampled_from([out.size, out.size, out.size - 1, 0, draw(st.integers(0, out.size))]))
    extra = draw(st.lists(st.integers(0, (1 << 32) - 1), max_size=2))
    return np.concatenate((out[:end], np.array(extra, np.uint32))) if draw(st.booleans()) else out


@st.composite
def changed_planes(draw: st.DrawFn, plane: CodedPlane) -> CodedPlane:
    """A plane with any of its fields changed to something that the wire can say."""
    tiles = tuple(
        Tile(
            draw(st.sampled_from([tile.anchor, 0, plane.highest])), draw(changed_words(tile.upper)),
            draw(changed_words(tile.words)),
        )
        for tile in plane.tiles
    )  # fmt: skip
    out = replace(plane, tiles=tiles)
    if draw(st.booleans()):
        field, values = draw(
            st.sampled_from(
                [("k", range(32)), ("raw", range(8)), ("precision", range(8)), ("rate", range(16)), ("sets", range(32)),
                 ("tile_rows", range(1, 90)), ("directions", (1, 3))]
            )
        )  # fmt: skip
        out = replace(out, **{field: draw(st.sampled_from(list(values)))})
    return replace(out, taps=draw(changed_words(plane.taps)))


@settings(max_examples=120, deadline=None)
@given(st.booleans(), st.booleans(), st.data())
def test_changed_parts_with_right_checksums_do_no_harm(split: bool, chained: bool, data: st.DataObject) -> None:
    head, frame = parsed(split, chained)
    preface = replace(frame.preface, states=data.draw(st.sampled_from([frame.preface.states, 1, 2, 4, 8, 16])))
    plane = data.draw(changed_planes(frame.planes[0]))
    blob = head + write_learned(CodedFrame(preface, frame.transform, (plane,)))
    fast = outcome(decode_frame, blob, before(split))
    if not split:
        assert fast == outcome(decode_frame_reference, blob, before(split))


def with_sets(sets: int, directions: int) -> CodedPlane:
    """A plane with so many sets of zero taps and, where these allow, thresholds; everything else as it was."""
    words = code_taps(np.zeros((sets, 35), np.int32), radius_of(False)) if sets else NO_WORDS
    thresholds = tuple(range(max(0, (sets - 1) // directions - 1)))
    plane = parsed(False, False)[1].planes[0]
    return replace(plane, sets=sets, directions=directions, thresholds=thresholds, taps=words)


@pytest.mark.parametrize(("sets", "directions"), [(17, 1), (31, 1), (31, 3), (3, 3), (15, 3), (0, 3), (1, 3)])
@pytest.mark.parametrize("decoder", [decode_frame, decode_frame_reference])
def test_sets_that_no_classes_explain_are_refused(decoder: object, sets: int, directions: int) -> None:
    head, frame = parsed(False, False)
    blob = head + write_learned(CodedFrame(frame.preface, None, (with_sets(sets, directions),)))
    with pytest.raises(CorruptBitstream, match="plane parameters out of range"):
        decoder(blob)  # type: ignore[operator]


@pytest.mark.parametrize("rows", [1, 15, 17, 23])
def test_tiles_that_leave_lanes_idle_are_refused(rows: int) -> None:
    head, frame = parsed(False, False)
    plane = replace(frame.planes[0], tile_rows=rows, tiles=frame.planes[0].tiles * -(-GREY.rows // rows))
    with pytest.raises(CorruptBitstream, match="plane parameters out of range"):
        decode_frame(head + write_learned(CodedFrame(frame.preface, None, (plane,))))


@pytest.mark.parametrize("bit", [5, 6, 7])
def test_reserved_bits_of_the_learning_byte_are_refused(bit: int) -> None:
    head, frame = parsed(False, False)
    plane = replace(frame.planes[0], rate=frame.planes[0].rate | 1 << bit)
    with pytest.raises(CorruptBitstream, match="plane parameters out of range"):
        decode_frame(head + write_learned(CodedFrame(frame.preface, None, (plane,))))


def test_weights_without_the_network_are_a_fault_of_the_blob() -> None:
    head, frame = parsed(False, False)
    preface = replace(frame.preface, weights=weights.load("vae").id)
    with pytest.raises(CorruptBitstream):
        decode_frame(head + write_learned(CodedFrame(preface, None, frame.planes)))


@pytest.mark.parametrize("shape", [(65535, 65535), (65535, 1), (1, 65535), (0, 5), (11000, 11000)])
def test_hostile_sizes_cost_no_memory(shape: tuple[int, int]) -> None:
    out = bytearray((0x50, 2, 4, 11 | 11 << 4, 5))
    put_varint(out, shape[0])
    put_varint(out, shape[1])
    put_signed(out, 0)
    put_varint(out, 4095)
    put_crc(out, 0)
    tracemalloc.start()
    with pytest.raises(CorruptBitstream):
        decode_frame(bytes(out) + bytes(200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_versions_and_coders_belong_together() -> None:
    head, frame = parsed(False, False)
    for version, coder in ((1, 5), (2, 4), (2, 0), (2, 6), (3, 5)):
        changed = bytearray(head[:-4])
        changed[1], changed[4] = version, coder
        put_crc(changed, 0)
        with pytest.raises(CorruptBitstream):
            decode_frame(bytes(changed) + write_learned(frame))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_after_a_header_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptBitstream):
        decode_frame(parsed(False, False)[0] + data)
