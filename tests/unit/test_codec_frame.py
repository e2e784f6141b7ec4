"""encode_frame and decode_frame: exact for every format, the same bytes for any number of threads, never worse."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.data import get_testdata_file

from codec import frame as frame_coder
from codec.bitplane import LevelTable, Words, split_words
from codec.errors import CodecError, UnsupportedFrame
from codec.frame import ALL_CODERS, V1_CODERS, decode_frame, encode_frame
from codec.limits import Limits
from codec.pixelformat import PixelFormat
from codec.reference import decode_frame_reference
from tests.unit.codec_images import noise, picture, stored


@st.composite
def pixel_formats(draw: st.DrawFn, side: int = 12) -> PixelFormat:
    """Any format that the codec takes, on a small frame."""
    allocated = draw(st.sampled_from([8, 16]))
    bits = draw(st.integers(1, allocated))
    return PixelFormat(
        draw(st.integers(1, side)),
        draw(st.integers(1, side)),
        draw(st.sampled_from([1, 1, 3])),
        allocated,
        bits,
        draw(st.integers(bits - 1, allocated - 1)),
        draw(st.booleans()),
    )


@st.composite
def frames(draw: st.DrawFn) -> tuple[Words, PixelFormat]:
    """Any words of any format."""
    fmt = draw(pixel_formats())
    elements = st.integers(0, (1 << fmt.bits_allocated) - 1)
    words = draw(arrays(fmt.dtype, fmt.shape, elements=elements))
    return words & np.array(draw(st.sampled_from([fmt.mask, 0xFFFF])) & ((1 << fmt.bits_allocated) - 1), fmt.dtype), fmt


@settings(max_examples=60, deadline=None)
@given(frames())
def test_any_words_come_back_by_the_race(case: tuple[Words, PixelFormat]) -> None:
    words, fmt = case
    coded = encode_frame(words, fmt, effort=3)
    frame = decode_frame(coded.blob)
    assert frame.fmt == fmt
    assert frame.words.dtype == words.dtype
    assert np.array_equal(frame.words, words)
    assert len(coded.blob) == coded.lengths[coded.coder] == min(coded.lengths.values())


@settings(max_examples=40, deadline=None)
@given(frames(), st.integers(1, 80))
def test_any_words_come_back_by_the_dual_path_in_both_decoders(case: tuple[Words, PixelFormat], tile: int) -> None:
    words, fmt = case
    blob = encode_frame(words, fmt, coders=("dual",), tile_samples=tile).blob
    assert np.array_equal(decode_frame(blob).words, words)
    assert np.array_equal(decode_frame_reference(blob).words, words)


@pytest.mark.parametrize("grain", [0, 3, 40])
@pytest.mark.parametrize("samples", [1, 3])
def test_threads_change_no_byte_and_reference_agrees(samples: int, grain: int) -> None:
    fmt = PixelFormat(36, 29, samples, 16, 10, 9, False)
    words = stored(picture(fmt, 20 + grain, grain), fmt)
    one = encode_frame(words, fmt, coders=("dual",), threads=1, tile_samples=300)
    two = encode_frame(words, fmt, coders=("dual",), threads=2, tile_samples=300)
    assert one.blob == two.blob
    assert one.details.get("tiles", one.details.get("tiles0")) == 3
    for frame in (
        decode_frame(one.blob, threads=1), decode_frame(one.blob, threads=2), decode_frame_reference(one.blob)
    ):  # fmt: skip
        assert np.array_equal(frame.words, words)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_packaged_images_are_smaller_than_by_any_standard_codec(name: str) -> None:
    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    fmt = PixelFormat(dataset.Rows, dataset.Columns, 1, 16, dataset.BitsStored, dataset.HighBit, True)
    words = np.frombuffer(dataset.PixelData, "<u2").reshape(fmt.shape).astype(np.uint16)
    coded = encode_frame(words, fmt, profile="max", effort=9)
    assert set(coded.lengths) == set(ALL_CODERS)
    assert coded.coder == "learned"
    assert coded.lengths["learned"] < coded.lengths["dual"] < 0.93 * coded.lengths["jpegls"]
    assert np.array_equal(decode_frame_reference(coded.blob).words, words) or words.size > 20_000


def test_a_screen_is_never_above_the_best_standard_codec_by_more_than_promised() -> None:
    """Full effort of JPEG XL gains 11 % over the quick one here, and wins; the quick one alone loses."""
    dataset = pydicom.dcmread(get_testdata_file("examples_palette.dcm", download=False))
    fmt = PixelFormat(dataset.Rows, dataset.Columns, 1, 8, 8, 7, False)
    words = np.frombuffer(dataset.PixelData[: fmt.rows * fmt.columns], np.uint8).reshape(fmt.shape)
    coded = encode_frame(words, fmt)
    best = len(encode_frame(words, fmt, coders=("jxl", "jpegls", "htj2k"), effort=9).blob)
    assert len(coded.blob) <= best + max(0.005 * best, 48)


def test_pure_noise_costs_little_more_than_its_bits_and_has_raw_planes() -> None:
    fmt = PixelFormat(64, 64, 1, 16, 16, 15, False)
    words = noise(64 * 64, 5).astype(np.uint16).reshape(64, 64)
    coded = encode_frame(words, fmt, coders=("dual", "raw"))
    assert coded.coder == "raw"
    assert coded.lengths["dual"] < coded.lengths["raw"] * 1.03
    assert coded.details["raw"] > 0
    assert np.array_equal(decode_frame(coded.blob).words, words)


def test_a_global_part_is_coded_where_it_is_free() -> None:
    fmt = PixelFormat(64, 64, 1, 8, 8, 7, False)
    steps = np.where(np.indices((64, 64)).sum(axis=0) < 60, 3, 200).astype(np.int32)
    words = stored(steps + (noise(4096, 12).reshape(64, 64) & 7).astype(np.int32), fmt)
    coded = encode_frame(words, fmt, coders=("dual",))
    assert coded.details["k"] < 8
    assert np.array_equal(decode_frame(coded.blob).words, words)


def test_levels_may_be_a_superset_and_survive() -> None:
    fmt = PixelFormat(20, 20, 1, 16, 12, 11, True)
    values = picture(fmt, 30, 2)
    levels = LevelTable(-2000, 3, np.array([-2000, -1990, -5], np.int32))
    with pytest.raises(CodecError):
        encode_frame(stored(values, fmt), fmt, levels=levels)
    used = np.unique(values)
    wider = np.union1d(used, [-2048, 2047, 17]).astype(np.int32)
    table = LevelTable(-2048, wider.size, wider)
    frame = decode_frame(encode_frame(stored(values, fmt), fmt, levels=table).blob)
    assert frame.levels == table
    assert np.array_equal(split_words(frame.words, fmt)[0], values)


def test_dense_superset_reaches_every_coder() -> None:
    fmt = PixelFormat(9, 9, 1, 16, 16, 15, False)
    words = (noise(81, 3).reshape(9, 9) & 255).astype(np.uint16)
    for coder in V1_CODERS:
        frame = decode_frame(encode_frame(words, fmt, levels=LevelTable(0, 65536), coders=(coder,)).blob)
        assert np.array_equal(frame.words, words)
        assert frame.levels.count == 65536


def test_what_cannot_be_coded_is_refused() -> None:
    fmt = PixelFormat(4, 4, 1, 16, 12, 11, False)
    with pytest.raises(UnsupportedFrame):
        encode_frame(np.zeros((4, 5), np.uint16), fmt)
    with pytest.raises(UnsupportedFrame):
        encode_frame(np.zeros((4, 4), np.uint8), fmt)
    with pytest.raises(UnsupportedFrame):
        encode_frame(np.zeros((4, 4), np.uint16), fmt, coders=("gif",))


IMPOSSIBLE = [(0, 1, 16, 12, 11), (4, 2, 16, 12, 11), (4, 1, 32, 12, 11), (4, 1, 8, 9, 8), (4, 1, 16, 12, 10)]


@pytest.mark.parametrize("layout", IMPOSSIBLE)
def test_impossible_formats_are_refused(layout: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedFrame):
        PixelFormat(layout[0], 4, *layout[1:], signed=False)


def test_decoder_keeps_to_its_limit() -> None:
    fmt = PixelFormat(40, 40, 1, 8, 8, 7, False)
    blob = encode_frame(np.zeros((40, 40), np.uint8), fmt).blob
    assert decode_frame(blob, limits=Limits(max_samples=1600)).words.size == 1600
    with pytest.raises(CodecError, match="above the limit"):
        decode_frame(blob, limits=Limits(max_samples=1599))


def test_a_candidate_that_fails_the_proof_is_named_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fmt = PixelFormat(40, 44, 1, 16, 12, 11, False)
    words = stored(picture(fmt, 1, 5), fmt)
    right = encode_frame(words, fmt, coders=("jpegls", "raw"))
    assert (right.coder, right.refused) == ("jpegls", ())
    proven, doubted = frame_coder._proven, right.lengths["jpegls"]
    monkeypatch.setattr("codec.frame._proven", lambda blob, *at: None if len(blob) == doubted else proven(blob, *at))
    coded = encode_frame(words, fmt, coders=("jpegls", "raw"))
    assert (coded.coder, coded.refused) == ("raw", ("jpegls",))
    assert "a frame that jpegls coded does not decode" in caplog.text
