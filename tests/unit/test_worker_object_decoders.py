"""Losslessly compressed input: coded only when two unrelated decoders agree, restored as the same object, native."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import generate_frames

from gateway.errors import Unsupported
from tests.object_makers import HTJ2K, JPEG_2000, JPEG_LS, RLE, compressed, image, noisy, packaged
from worker import decoders
from worker.pixels import PixelSource, open_pixels, pixel_stream
from worker.rle import RLEError, decode_rle
from worker.splice import carry_out, read_object

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
LOSSLESS_FILES = (
    "MR_small_RLE.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
)


def native(data: bytes) -> tuple[bytes, PixelSource]:
    source = open_pixels(read_object(data))
    pixels = pixel_stream(source, source.fmt, source.layout)
    return carry_out(source.steps, memoryview(source.spans.nonpixel()), memoryview(pixels)), source


def assert_same_object(received: bytes, restored: bytes) -> None:
    """Every pixel, every attribute; only the transfer syntax and the way pixels are stored differ."""
    a, b = (pydicom.dcmread(io.BytesIO(data)) for data in (received, restored))
    assert b.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert np.array_equal(a.pixel_array, b.pixel_array)
    assert [e for e in a if e.tag != 0x7FE00010] == [e for e in b if e.tag != 0x7FE00010]


@pytest.mark.parametrize("name", LOSSLESS_FILES)
def test_packaged_files_become_native_and_change_nothing_else(name: str) -> None:
    received = packaged(name)
    assert_same_object(received, native(received)[0])


def test_the_meta_group_length_still_fits() -> None:
    from gateway.part10 import read_meta

    restored, _ = native(packaged("MR_small_RLE.dcm"))
    declared = pydicom.dcmread(io.BytesIO(restored)).file_meta.FileMetaInformationGroupLength
    assert read_meta(restored) == ("1.2.840.10008.1.2.1", 144 + declared)


@pytest.mark.parametrize("stored", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_jpeg_ls_of_any_depth(stored: int, signed: int) -> None:
    words = (noisy(20, 30) & ((1 << stored) - 1)).astype(np.uint16)
    stream = bytes(imagecodecs.jpegls_encode(words))
    data = compressed([words], [stream], syntax=JPEG_LS, stored=stored, PixelRepresentation=signed)
    assert np.array_equal(native(data)[1].frame(0), words)


def test_htj2k_is_passed_through_as_its_two_libraries_share_an_author() -> None:
    words = noisy(40, 50)
    stream = bytes(imagecodecs.htj2k_encode(words, reversible=True))
    with pytest.raises(Unsupported) as caught:
        native(compressed([words], [stream], syntax=HTJ2K, stored=16))
    assert caught.value.reason == "one-decoder"


def _rle(words: npt.NDArray[np.uint16]) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(image([words])))
    ds.compress(RLE)
    return next(generate_frames(ds.PixelData, number_of_frames=1))


ENCODERS = {
    JPEG_LS: lambda words: bytes(imagecodecs.jpegls_encode(words)),
    JPEG_LOSSLESS: lambda words: bytes(imagecodecs.ljpeg_encode(words)),
    JPEG_2000: lambda words: bytes(imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True, level=0)),
    RLE: _rle,
}


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_second_image_that_the_header_does_not_count_is_never_dropped(syntax: str) -> None:
    words = [noisy(20, 30), noisy(20, 30, seed=9)]
    streams = [ENCODERS[syntax](each) for each in words]
    assert np.array_equal(native(compressed(words, streams, syntax=syntax, stored=16))[1].frame(1), words[1])
    hiding = [
        compressed(words[:1], streams, syntax=syntax, stored=16),  # two fragments, one frame
        compressed(words[:1], [b"".join(streams)], syntax=syntax, stored=16),  # one fragment holds both
    ]
    for data in hiding:
        with pytest.raises(Unsupported) as caught:
            open_pixels(read_object(data)).frame(0)
        assert caught.value.reason in ("trailing-data", "undecodable")


def test_a_second_image_in_a_jp2_file_is_never_dropped() -> None:
    words = noisy(20, 30)
    stream = bytes(imagecodecs.jpeg2k_encode(words, codecformat="jp2", reversible=True, level=0))
    assert np.array_equal(native(compressed([words], [stream], syntax=JPEG_2000, stored=16))[1].frame(0), words)
    with pytest.raises(Unsupported) as caught:
        native(compressed([words], [stream + stream], syntax=JPEG_2000, stored=16))
    assert caught.value.reason == "trailing-data"


def test_fragments_before_the_first_offset_are_never_dropped() -> None:
    words = [noisy(20, 30), noisy(20, 30, seed=9)]
    streams = [ENCODERS[JPEG_LS](each) for each in words]
    data = compressed(words, [streams[0], *streams], syntax=JPEG_LS, stored=16)
    table = data.index(b"\xfe\xff\x00\xe0\x0c\x00\x00\x00")  # the offset table's item: three offsets
    offsets = data[table + 8 : table + 20]
    data = data[: table + 4] + b"\x08\x00\x00\x00" + offsets[4:] + data[table + 20 :]
    with pytest.raises(Unsupported) as caught:
        open_pixels(read_object(data))
    assert caught.value.reason == "fragments"


def test_jpeg_2000_by_openjpeg_and_the_own_decoder() -> None:
    words = noisy(40, 50)
    stream = bytes(imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True, level=0))
    data = compressed([words], [stream], syntax=JPEG_2000, stored=16)
    assert np.array_equal(native(data)[1].frame(0), words)


def test_jpeg_2000_that_only_one_decoder_takes_is_passed_through() -> None:
    with pytest.raises(Unsupported) as caught:
        native(packaged("MR_small_jp2klossless.dcm"))  # its bit-planes are cut: lossy, whatever its syntax says
    assert caught.value.reason == "one-decoder"


def test_odd_native_length_is_padded() -> None:
    words = (noisy(5, 7) & 255).astype(np.uint8)
    data = compressed([words], [bytes(imagecodecs.jpegls_encode(words))], syntax=JPEG_LS)
    restored, _ = native(data)
    assert len(pydicom.dcmread(io.BytesIO(restored)).PixelData) == 36
    assert_same_object(data, restored)


def test_disagreement_is_passed_through(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = decoders.PAIRS[RLE]
    off_by_one = replace(pair, second=lambda *args: pair.second(*args) ^ 1)
    monkeypatch.setitem(decoders.PAIRS, RLE, off_by_one)
    with pytest.raises(Unsupported) as caught:
        open_pixels(read_object(packaged("MR_small_RLE.dcm"))).frame(0)
    assert caught.value.reason == "decoders-disagree"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Rows": 21}, "codestream-header"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "codestream-header"),
        ({"NumberOfFrames": "3"}, "fragments"),
        ({"PhotometricInterpretation": "YBR_RCT"}, "attribute-change"),
    ],
)
def test_a_codestream_that_contradicts_the_header(changes: dict[str, object], reason: str) -> None:
    words = noisy(20, 30)
    data = compressed([words], [bytes(imagecodecs.jpegls_encode(words))], syntax=JPEG_LS, stored=16, **changes)
    with pytest.raises(Unsupported) as caught:
        open_pixels(read_object(data)).frame(0)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_damaged_codestreams_are_refused_with_a_reason(name: str) -> None:
    received = packaged(name)
    span = read_object(received).pixels
    rng = np.random.default_rng(5)
    for _ in range(25):
        data = bytearray(received)
        for at in rng.integers(span.start + 40, span.end - 8, 4):
            data[at] = rng.integers(0, 256)
        try:
            source = open_pixels(read_object(bytes(data)))
            assert source.frame(0).shape == (64, 64)
        except Unsupported as error:
            assert error.reason


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_rle_never_gives_another_size(data: bytes) -> None:
    with contextlib.suppress(RLEError):
        assert decode_rle(data, 4, 4, 1, 2).shape == (4, 4, 1)
