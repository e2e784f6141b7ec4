"""Frames by the learned coder: exact, the same bytes for any number of threads, in both decoders; context checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.bitplane import LevelTable, Words
from codec.blob import Frame
from codec.errors import CorruptBitstream, MissingContext, UnsupportedFrame
from codec.frame import EncodedFrame, decode_frame, encode_frame
from codec.header import read_header
from codec.learned import decode_upper
from codec.learneddecode import previous_index
from codec.learnedformat import ADAPTER_SHARED, INHERITED, CodedFrame, read_learned, write_learned
from codec.limits import DEFAULT_LIMITS
from codec.memory import Memory
from codec.pixelformat import PixelFormat
from codec.reference import decode_frame_reference
from codec.weights import UnknownWeights, Weights, add, drop
from codec.wire import Reader
from tests.unit.codec_images import noise, picture, stored
from tests.unit.codec_networks import known, weight_file
from tests.unit.test_codec_frame import frames

GREY = PixelFormat(36, 29, 1, 16, 12, 11, False)


@pytest.fixture(autouse=True, scope="module")
def weights() -> Iterator[Weights]:
    with known(weight_file()) as added:
        yield added


def learned(words: Words, fmt: PixelFormat, **options: object) -> EncodedFrame:
    return encode_frame(words, fmt, coders=("learned",), **options)  # type: ignore[arg-type]


def parsed(blob: bytes) -> tuple[bytes, CodedFrame]:
    """A blob's frame header and the rest of it, parsed."""
    reader = Reader(blob)
    header = read_header(reader, DEFAULT_LIMITS)
    return blob[: reader.position], read_learned(reader, header.fmt.shape, header.levels.count)


def grey(seed: int, grain: int = 3) -> Words:
    return stored(picture(GREY, seed, grain), GREY)


@settings(max_examples=40, deadline=None)
@given(frames(), st.booleans())
def test_any_words_come_back_in_both_decoders(case: tuple[Words, PixelFormat], chained: bool) -> None:
    words, fmt = case
    previous = np.roll(words, 1, axis=0) if chained else None
    coded = learned(words, fmt, previous=previous)
    assert np.array_equal(decode_frame(coded.blob, previous=previous).words, words)
    assert np.array_equal(decode_frame_reference(coded.blob, previous=previous).words, words)
    head, rest = parsed(coded.blob)
    assert head + write_learned(rest) == coded.blob


@pytest.mark.parametrize("samples", [1, 3])
def test_threads_change_no_byte(samples: int) -> None:
    fmt = PixelFormat(300, 450, samples, 16, 10, 9, False)
    words = stored(picture(fmt, 4, 3), fmt)
    one, two = learned(words, fmt, threads=1, profile="fast"), learned(words, fmt, threads=2, profile="fast")
    assert one.blob == two.blob
    assert one.details.get("tiles", one.details.get("tiles0")) == 2
    for threads in (1, 2):
        assert np.array_equal(decode_frame(one.blob, threads=threads).words, words)


def test_every_profile_encodes_and_one_decoder_reads_all() -> None:
    words = grey(7)
    for profile in ("fast", "default", "max"):
        coded = encode_frame(words, GREY, profile=profile)
        assert "learned" in coded.lengths
        assert np.array_equal(decode_frame(coded.blob).words, words)
    assert "dual" in coded.lengths
    with pytest.raises(UnsupportedFrame):
        encode_frame(words, GREY, profile="best")


def test_what_is_left_out_is_left_out() -> None:
    fmt = PixelFormat(80, 80, 1, 16, 12, 11, False)
    words = stored(picture(fmt, 3, 6), fmt)
    assert learned(words, fmt).details["sets"] > 0
    bare = learned(words, fmt, previous=words, without=frozenset({"least-squares", "previous", "split"}))
    assert bare.details["sets"] == bare.details["previous"] == bare.details["raw"] == 0
    assert np.array_equal(decode_frame(bare.blob).words, words)
    with pytest.raises(UnsupportedFrame):
        learned(words, fmt, without=frozenset({"magic"}))


def test_a_previous_frame_is_used_where_it_helps_and_is_needed_then() -> None:
    before = grey(11, 300)
    words = before + np.uint16(1)
    coded = learned(words, GREY, previous=before)
    assert coded.details["previous"] == 1
    assert len(coded.blob) < 0.7 * len(learned(words, GREY).blob)
    for decoder in (decode_frame, decode_frame_reference):
        assert np.array_equal(decoder(coded.blob, previous=before).words, words)
        for wrong in (None, words, before[:-1], before.astype(np.uint8)):
            with pytest.raises(MissingContext):
                decoder(coded.blob, previous=wrong)


def test_a_previous_frame_in_colour_and_with_sparse_levels() -> None:
    fmt = PixelFormat(20, 24, 3, 8, 8, 7, False)
    before = stored(picture(fmt, 5, 3), fmt)
    words = before.copy()
    words[3:9, 2:7] ^= 5
    coded = learned(words, fmt, previous=before)
    assert coded.details["previous"] == 1
    assert np.array_equal(decode_frame_reference(coded.blob, previous=before).words, words)
    table = LevelTable(10, 4, np.array([10, 13, 20, 900], np.int32))
    values = np.array([-5, 10, 11, 13, 14, 20, 21, 899, 900, 901], np.int32)
    assert previous_index(values, table).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert previous_index(values, LevelTable(11, 10)).tolist() == [0, 0, 0, 2, 3, 9, 9, 9, 9, 9]


def test_a_global_part_may_lie_outside() -> None:
    fmt = PixelFormat(64, 64, 1, 8, 8, 7, False)
    steps = np.where(np.indices((64, 64)).sum(axis=0) < 60, 3, 200).astype(np.int32)
    words = stored(steps + (noise(4096, 12).reshape(64, 64) & 7).astype(np.int32), fmt)
    coded = learned(words, fmt)
    head, rest = parsed(coded.blob)
    plane = rest.planes[0]
    assert plane.top > 0
    assert plane.top == plane.highest >> coded.details["k"]
    upper = decode_upper(plane.tiles[0].upper, 64, 64, plane.top)
    stacked = head + write_learned(rest.without_upper())
    assert len(stacked) < len(coded.blob)
    for decoder in (decode_frame, decode_frame_reference):
        assert np.array_equal(decoder(coded.blob).words, words)
        assert np.array_equal(decoder(stacked, upper=[upper]).words, words)
        for wrong in (None, [], [upper[1:]], [upper + plane.top + 1], [upper, upper]):
            with pytest.raises(MissingContext):
                decoder(stacked, upper=wrong)


def test_unknown_weights_and_adapters_are_named(weights: Weights) -> None:
    coded = learned(grey(2), GREY)
    head, rest = parsed(coded.blob)
    assert rest.preface.weights == weights.id
    with known(weight_file(77)) as other:
        with_other = parsed(coded.blob)[1]
        object.__setattr__(with_other.preface, "weights", other.id)
        drop(other)
        with pytest.raises(UnknownWeights):
            decode_frame(head + write_learned(with_other))
    object.__setattr__(rest.preface, "adapter_kind", ADAPTER_SHARED)
    object.__setattr__(rest.preface, "shared_crc", zlib.crc32(b"abc"))
    for shared in (None, b"", b"abd"):
        with pytest.raises(MissingContext):
            decode_frame(head + write_learned(rest), shared=shared)


def test_flat_frames_need_no_weights() -> None:
    coded = learned(np.full((36, 29), 5, np.uint16), GREY)
    assert coded.details["k"] == 0
    assert len(coded.blob) < 32
    assert (decode_frame(coded.blob).words == 5).all()


def test_without_weights_the_coders_of_version_1_are_the_choice(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(weights)
    monkeypatch.setattr("codec.weights.RELEASED", ())
    try:
        coded = encode_frame(grey(2), GREY)
        assert "learned" not in coded.lengths
        assert "dual" in coded.lengths
        with pytest.raises(UnknownWeights):
            learned(grey(2), GREY)
    finally:
        add(weights.data)


def test_every_truncation_tail_and_flip_is_refused() -> None:
    for words, previous in ((grey(3), None), (grey(4), grey(4))):
        blob = learned(words, GREY, previous=previous).blob
        for end in range(0, len(blob), 7):
            with pytest.raises(CorruptBitstream):
                decode_frame(blob[:end], previous=previous)
        with pytest.raises(CorruptBitstream):
            decode_frame(blob + b"\0", previous=previous)
        for place in range(0, len(blob), 3):
            changed = bytearray(blob)
            changed[place] ^= 1 << place % 8
            with pytest.raises(CorruptBitstream):
                decode_frame(bytes(changed), previous=previous)


# --- going on from the frame before ---


def volume(count: int, seed: int = 3) -> list[Words]:
    """Slices alike and noisy."""
    base = picture(GREY, seed, 2)
    return [stored(base + noise(base.size, seed + 7 * number).reshape(base.shape) % 9, GREY) for number in range(count)]


def chained(frames: list[Words], **options: object) -> list[EncodedFrame]:
    """Each coded with what the one before left."""
    out: list[EncodedFrame] = []
    for number, words in enumerate(frames):
        before = {"previous": frames[number - 1], "memory": out[-1].memory} if out else {}
        out.append(learned(words, GREY, **before, **options))
    return out


@pytest.mark.parametrize("decoder", [decode_frame, decode_frame_reference])
def test_a_chain_goes_on_from_frame_to_frame(decoder: Callable[..., Frame]) -> None:
    frames = volume(4)
    coded = chained(frames)
    assert [bool(each.details["memory"]) for each in coded] == [False, True, True, True] or coded[2].details["memory"]
    memory = previous = None
    for words, each in zip(frames, coded, strict=True):
        frame = decoder(each.blob, previous=previous, memory=memory)
        assert np.array_equal(frame.words, words)
        assert frame.memory is not None and each.memory is not None and frame.memory.crc == each.memory.crc
        previous, memory = words, frame.memory


def test_going_on_saves_the_taps() -> None:
    frames = volume(3)
    onward, alone = chained(frames)[2], learned(frames[2], GREY, previous=frames[1])
    plane = parsed(onward.blob)[1].planes[0]
    assert plane.sets == INHERITED and not plane.taps.size
    assert len(onward.blob) < len(alone.blob)


def test_the_memory_of_another_frame_is_refused() -> None:
    frames = volume(4)
    coded = chained(frames)
    assert coded[3].details["memory"]
    for memory in (None, coded[1].memory):
        with pytest.raises(MissingContext, match="memory"):
            decode_frame(coded[3].blob, previous=frames[2], memory=memory)


def test_without_the_previous_frame_nothing_goes_on() -> None:
    frames = volume(3)
    without = chained(frames, without=frozenset(("previous",)))
    assert [each.blob for each in without] == [learned(words, GREY).blob for words in frames]


def test_a_memory_of_other_tiles_or_another_head_is_a_fault_of_the_blob() -> None:
    frames = volume(3)
    coded = chained(frames)
    head, frame = parsed(coded[2].blob)
    memory = coded[1].memory
    assert memory is not None and memory.planes[0] is not None
    plane = memory.planes[0]
    wrong = (
        Memory(not memory.volume, memory.planes),
        Memory(memory.volume, (None,)),
        Memory(memory.volume, memory.planes * 3),
        Memory(memory.volume, (replace(plane, tile_rows=16),)),
        Memory(memory.volume, (replace(plane, heads=plane.heads * 2),)),
        Memory(memory.volume, (replace(plane, heads=(plane.heads[0][:, 1:],)),)),
    )
    for each in wrong:
        blob = head + write_learned(replace(frame, preface=replace(frame.preface, memory_crc=each.crc)))
        for decoder in (decode_frame, decode_frame_reference):
            with pytest.raises(CorruptBitstream, match="the frame before"):
                decoder(blob, previous=frames[1], memory=each)


def test_a_frame_that_goes_on_from_nothing_has_no_taps_to_inherit() -> None:
    head, frame = parsed(chained(volume(3))[2].blob)
    with pytest.raises(CorruptBitstream, match="plane parameters out of range"):
        decode_frame(head + write_learned(replace(frame, preface=replace(frame.preface, memory_crc=None))))
