"""Which images may be altered, and which of their samples: every rule refuses with its own word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported
from stego.lattice import lattice, reserved
from tests.object_makers import image, noisy, packaged
from worker.pixelrules import (
    MAX_FRAMES_TRIED,
    REASONS,
    check_all_frames,
    cover_of,
    covers,
    frame_cover,
    padding_values,
    plateaus,
    value_range,
    with_wet_plateaus,
)
from worker.pixels import PixelSource, open_pixels
from worker.splice import read_object


def opened(data: bytes) -> PixelSource:
    return open_pixels(read_object(data))


def reason_of(data: bytes) -> str:
    with pytest.raises(Unsupported) as caught:
        list(covers(opened(data)))
    return caught.value.reason


def lut() -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [16, 0, 16]
    item.ModalityLUTType = "OD"
    item.add_new(0x00283006, "OW", bytes(32))
    return Sequence([item])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"LossyImageCompression": "01"}, "lossy-source"),
        ({"LossyImageCompressionMethod": "ISO_10918_1"}, "lossy-source"),
        ({"LossyImageCompressionRatio": "12.5"}, "lossy-source"),
        ({"ImageType": ["DERIVED", "PRIMARY", "LOSSY"]}, "lossy-source"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"RedPaletteColorLookupTableDescriptor": [16, 0, 16]}, "palette"),
        ({"ModalityLUTSequence": lut()}, "lut-defined"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "not-a-picture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, "not-a-picture"),
        ({"BurnedInAnnotation": "YES"}, "burned-in"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "photometric"),
        ({"BitsStored": 7, "HighBit": 6}, "few-bits"),
    ],
)
def test_the_header_refuses(changes: dict[str, Any], reason: str) -> None:
    assert reason_of(image([noisy() & 127], stored=12, **changes)) == reason
    assert reason in REASONS


def test_a_plain_image_is_a_cover() -> None:
    found = list(covers(opened(image([noisy()], stored=12, LossyImageCompression="00", BurnedInAnnotation="NO"))))
    assert len(found) == 1
    assert (found[0].cover.low, found[0].cover.high, found[0].cover.barred) == (0, 4095, ())
    assert np.array_equal(found[0].cover.values, noisy())
    assert np.array_equal(found[0].words(found[0].cover.values), noisy())


def test_a_frame_beyond_the_bound_of_memory_is_refused_for_writing_and_reading() -> None:
    fmt = opened(image([noisy()], stored=12)).fmt
    vast = np.broadcast_to(np.int32(7), (1 << 13, (1 << 13) + 1))
    with pytest.raises(Unsupported) as caught:
        cover_of(vast, fmt)
    assert caught.value.reason == "too-large"


def test_colour_is_refused() -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    assert reason_of(image([rgb])) == "colour"


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"])
def test_packaged_images_are_covers(name: str) -> None:
    found = next(covers(opened(packaged(name))))
    assert found.cover.values.shape == (found.fmt.rows, found.fmt.columns)


@pytest.mark.parametrize("name", ["examples_palette.dcm", "examples_rgb_color.dcm"])
def test_packaged_images_that_are_none(name: str) -> None:
    assert reason_of(packaged(name)) in ("palette", "colour")


def test_what_stands_in_unused_bits_is_refused() -> None:
    overlay = noisy() | (np.arange(96) % 2 << 12).astype(np.uint16)
    assert reason_of(image([overlay], stored=12)) == "unused-bits"
    source = opened(image([noisy(), overlay], stored=12))
    assert [found.index for found in covers(source)] == [0]
    with pytest.raises(Unsupported, match="overlay"):
        check_all_frames(source, source.fmt)


@pytest.mark.parametrize("extended", [True, False])
def test_the_sign_is_repeated_as_it_was(extended: bool) -> None:
    values = noisy().astype(np.int32) - 600
    words = (values & (0xFFFF if extended else 0x0FFF)).astype(np.uint16)
    found = next(covers(opened(image([words], stored=12, PixelRepresentation=1))))
    assert found.extended is extended
    assert (found.cover.low, found.cover.high) == (-2048, 2047)
    assert np.array_equal(found.cover.values, values)
    assert np.array_equal(found.words(values), words)


def test_padding_is_barred() -> None:
    frame = noisy()
    data = image([frame], stored=12, PixelPaddingValue=4000, PixelPaddingRangeLimit=4010)
    assert next(covers(opened(data))).cover.barred == tuple(range(4000, 4011))


def test_padding_has_the_sign_of_the_pixels_whatever_its_vr() -> None:
    fmt = PixelFormat(64, 64, 1, 16, 16, 15, True)
    source = opened(image([noisy()], PixelRepresentation=1, PixelPaddingValue=-2000))
    assert padding_values(source.spans.dataset, fmt) == (-2000,)
    outside = opened(image([noisy()], stored=12, PixelPaddingValue=63536))
    assert padding_values(outside.spans.dataset, outside.fmt) == ()


def test_saturation_and_constant_air_are_barred_wherever_they_lie() -> None:
    frame = noisy(noise=200).astype(np.int32)
    clipped = np.clip(frame, 520, 900)
    assert plateaus(clipped) == (520, 900)
    fmt = PixelFormat(96, 96, 1, 16, 12, 11, False)
    cover = cover_of(clipped, fmt, (0, 77))
    assert (cover.low, cover.high, cover.barred) == (1, 4095, (77, 520, 900))
    assert plateaus(frame) == ()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_stego_image_has_the_covers_rules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(int(n) for n in rng.integers(300, 900, 2))
    values = np.clip(noisy(40, 56, seed=seed).astype(np.int32), low, high)
    fmt = PixelFormat(40, 56, 1, 16, 12, 11, False)
    altered = np.clip(values + np.where(reserved(values.shape), 0, rng.integers(-1, 2, values.shape)), 0, 4095)
    altered = altered.astype(np.int32)
    assert np.array_equal(lattice(values), lattice(altered))
    one, other = cover_of(values, fmt, (77,)), cover_of(altered, fmt, (77,))
    assert (one.low, one.high, one.barred) == (other.low, other.high, other.barred)


@pytest.mark.parametrize("value", [0, 700, 4095])
def test_flat_frames_are_refused(value: int) -> None:
    assert reason_of(image([np.full((64, 64), value, dtype=np.uint16)], stored=12)) == "flat"


def test_only_the_first_frames_are_tried() -> None:
    flat = np.zeros((16, 16), dtype=np.uint16)
    frames = [flat] * MAX_FRAMES_TRIED + [noisy(16, 16)]
    assert reason_of(image(frames, stored=12)) == "flat"
    assert [found.index for found in covers(opened(image(frames[1:], stored=12)))] == [MAX_FRAMES_TRIED - 1]


@pytest.mark.parametrize("last", [65535, 65530])
def test_an_absurd_padding_range_leaves_nothing(last: int) -> None:
    assert reason_of(image([noisy()], PixelPaddingValue=0, PixelPaddingRangeLimit=last)) == "padding"


def test_a_padding_range_at_the_end_shortens_the_range() -> None:
    words = (noisy().astype(np.int32) - 400).astype(np.uint16)
    data = image([words], PixelRepresentation=1, PixelPaddingValue=-32768, PixelPaddingRangeLimit=-2000)
    cover = next(covers(opened(data))).cover
    assert (cover.low, cover.high, cover.barred) == (-1999, 32767, ())


def test_padding_with_too_many_holes_is_refused() -> None:
    assert reason_of(image([noisy()], PixelPaddingValue=2000, PixelPaddingRangeLimit=2999)) == "padding"


def test_wet_plateaus_are_the_frames_own() -> None:
    fmt = PixelFormat(96, 96, 1, 16, 12, 11, False)
    clipped = np.clip(noisy(noise=200).astype(np.int32), 520, 900)
    wet = with_wet_plateaus(cover_of(clipped, fmt)).wet
    assert wet is not None
    assert np.array_equal(wet, (clipped == 520) | (clipped == 900))


@pytest.mark.parametrize(("bits", "signed", "expected"), [(8, False, (0, 255)), (12, True, (-2048, 2047))])
def test_range_is_bits_stored(bits: int, signed: bool, expected: tuple[int, int]) -> None:
    assert value_range(PixelFormat(4, 4, 1, 16, bits, bits - 1, signed)) == expected


def test_the_document_lists_every_reason() -> None:
    text = (Path(__file__).parents[2] / "docs" / "stego-object.md").read_text("utf-8")
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []


def test_frame_cover_says_which_frame() -> None:
    fmt = PixelFormat(96, 96, 1, 16, 12, 11, False)
    assert frame_cover(noisy(), fmt, 5).index == 5
