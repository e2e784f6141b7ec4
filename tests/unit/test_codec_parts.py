"""The inverse pairs inside the codec, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from codec import color
from codec.bitplane import LevelTable, choose_levels, join_words, pack_levels, plane_entropies, split_words
from codec.errors import CodecError, CorruptBitstream
from codec.plan import NO_WORDS
from codec.rans import (
    ENCODE,
    IO_FIELDS,
    MODE,
    SYMBOL,
    closed,
    code_bit,
    code_number,
    flush,
    fresh_model,
    open_stream,
)
from codec.standard import jxl_encode, jxl_size, pack_bits, unpack_bits
from codec.wire import Reader, inflate, put_crc, put_signed, put_varint
from tests.unit.codec_images import noise
from tests.unit.test_codec_frame import frames


@settings(max_examples=80, deadline=None)
@given(frames())
def test_split_and_join_words(case: tuple) -> None:
    words, fmt = case
    values, unused = split_words(words, fmt)
    low = -(1 << fmt.bits_stored >> 1) if fmt.signed else 0
    assert values.min() >= low
    assert values.max() < low + (1 << fmt.bits_stored)
    assert np.array_equal(join_words(values, unused, fmt), words)


@settings(max_examples=80, deadline=None)
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(-32768, 32767)))
def test_levels_rank_and_value(values: np.ndarray) -> None:
    table = choose_levels(values)
    assert np.array_equal(table.value(table.rank(values)), values)
    explicit = LevelTable(int(values.min()), np.unique(values).size, np.unique(values).astype(np.int32))
    assert np.array_equal(explicit.value(explicit.rank(values)), values)


def test_sparse_histogram_is_packed_and_dense_is_not() -> None:
    index = (noise(4096, 1).reshape(64, 64) >> 10).astype(np.int32)
    assert choose_levels(index).table is None
    packed = choose_levels(index * 7 - 100)
    assert packed.table is not None
    assert packed.count == np.unique(index).size
    assert len(pack_levels(packed)) < 40
    with pytest.raises(CodecError):
        packed.rank(np.array([[-99]], np.int32))


def test_plane_entropies_tell_noise_from_structure() -> None:
    smooth = (np.indices((128, 128)).sum(axis=0) * 16).astype(np.uint16)
    noisy = smooth + (noise(128 * 128, 2).reshape(128, 128) & 7).astype(np.uint16)
    clean, dirty = plane_entropies(smooth), plane_entropies(noisy)
    assert clean.max() < 0.1
    assert dirty[:3].min() > 0.98
    assert dirty[6:].max() < 0.2
    assert plane_entropies(np.zeros((5, 5), np.uint16)).shape == (1,)


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), st.integers(0, 3))
def test_colour_transforms(index: np.ndarray, kind: int) -> None:
    assert np.array_equal(color.inverse(color.forward(index, kind), kind), index)


@given(st.integers(0, 16).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, (1 << b) - 1), max_size=50))))
def test_packed_bits(case: tuple[int, list[int]]) -> None:
    bits, samples = case
    plane = np.array(samples, np.uint16)
    packed = pack_bits(plane, bits)
    assert np.array_equal(unpack_bits(packed, bits, plane.size), plane)
    with pytest.raises(CorruptBitstream):
        unpack_bits(packed + b"\0", bits, plane.size)


@given(st.integers(0, (1 << 32) - 1), st.integers(-(1 << 31), 1 << 31))
def test_numbers_on_the_wire(number: int, signed: int) -> None:
    out = bytearray()
    put_varint(out, number)
    put_signed(out, signed)
    put_crc(out, 0)
    reader = Reader(bytes(out))
    assert reader.varint(1 << 32) == number
    assert reader.signed(1 << 31) == signed
    reader.check_crc(0, "numbers")
    assert reader.left == 0
    with pytest.raises(CorruptBitstream):
        reader.byte()


def test_padded_numbers_and_bombs_are_refused() -> None:
    with pytest.raises(CorruptBitstream):
        Reader(b"\x80\x00").varint(10)
    with pytest.raises(CorruptBitstream):
        Reader(b"\xff" * 9).varint(1 << 60)
    import zlib

    with pytest.raises(CorruptBitstream):
        inflate(zlib.compress(bytes(10_000_000)), 100)
    with pytest.raises(CorruptBitstream):
        inflate(b"no zlib", 100)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100_000)), max_size=60))
def test_adaptive_numbers_through_rans(items: list[tuple[int, int]]) -> None:
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1)
    starts, freqs = np.zeros(64 * 60, np.uint32), np.zeros(64 * 60, np.uint32)
    io[MODE] = ENCODE
    model = fresh_model(300)
    for context, number in items:
        code_bit(io, NO_WORDS, starts, freqs, cost, model, 290 + context, number & 1)
        code_number(io, NO_WORDS, starts, freqs, cost, model, 60 * context, number)
    words = flush(starts, freqs, int(io[SYMBOL]))
    open_stream(io, words)
    model = fresh_model(300)
    for context, number in items:
        assert code_bit(io, words, NO_WORDS, NO_WORDS, cost, model, 290 + context, 0) == number & 1
        assert code_number(io, words, NO_WORDS, NO_WORDS, cost, model, 60 * context, 0) == number
    assert closed(io, words)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (9, 300), (512, 512), (600, 450), (24, 8192), (1080, 1920)])
def test_jpeg_xl_size_is_read_from_the_stream(shape: tuple[int, int]) -> None:
    assert jxl_size(jxl_encode(np.zeros(shape, np.uint16), 1)) == shape
