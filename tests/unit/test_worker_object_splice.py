"""A received file is cut into spans and put together again, byte for byte, whatever its layout."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import IntegrityError, InvalidInstance, PalimpsestError, Unsupported
from tests.object_makers import BIG, EXPLICIT, IMPLICIT, header, image, noisy, packaged, save
from worker.pixels import Layout, PixelSource, open_pixels, pixel_stream
from worker.splice import Op, SpanKind, Step, carry_out, pack_plan, read_object, unpack_plan

NATIVE_FILES = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_padded.dcm",
    "ExplVR_BigEnd.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "examples_overlay.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
)


def respliced(data: bytes) -> tuple[bytes, PixelSource]:
    source = open_pixels(read_object(data))
    steps, used = unpack_plan(pack_plan(source.steps))
    assert used == len(pack_plan(source.steps))
    layout, _ = Layout.unpack(source.layout.pack())
    pixels = pixel_stream(source, source.fmt, layout)
    return carry_out(steps, memoryview(source.spans.nonpixel()), memoryview(pixels)), source


@pytest.mark.parametrize("name", NATIVE_FILES)
def test_packaged_files_come_back(name: str) -> None:
    data = packaged(name)
    assert respliced(data)[0] == data


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    frames=st.integers(1, 3),
    colour=st.booleans(),
    wide=st.booleans(),
    planar=st.sampled_from((0, 1)),
    syntax=st.sampled_from((IMPLICIT, EXPLICIT, BIG)),
    tail=st.sampled_from((b"", b"xy", b"trailing")),
    vr=st.sampled_from(("OB", "OW")),
)
def test_any_layout_comes_back_with_its_words(
    rows: int, columns: int, frames: int, colour: bool, wide: bool, planar: int, syntax: str, tail: bytes, vr: str
) -> None:
    shape = (rows, columns, 3) if colour else (rows, columns)
    rng = np.random.default_rng(rows * 100 + columns)
    dtype = np.uint16 if wide else np.uint8
    made = [rng.integers(0, 1 << 16 if wide else 256, shape).astype(dtype) for _ in range(frames)]
    data = image(made, syntax=syntax, planar=planar, tail=tail, vr="OW" if wide else vr)
    back, source = respliced(data)
    assert back == data
    assert all(np.array_equal(source.frame(i), made[i]) for i in range(frames))


def test_spans_cover_the_file_and_leave_padding_and_tail_outside() -> None:
    data = image([np.arange(15, dtype=np.uint8).reshape(3, 5)], tail=b"tail")
    spans = open_pixels(read_object(data)).spans
    assert [s.kind for s in spans.spans] == [SpanKind.NONPIXEL, SpanKind.PIXELS, SpanKind.NONPIXEL]
    assert spans.pixels.end - spans.pixels.start == 15
    assert spans.nonpixel().endswith(b"\0tail")


REFUSED = {
    "bits-allocated": {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
    "samples": {"SamplesPerPixel": 4},
    "subsampled": {"PhotometricInterpretation": "YBR_FULL_422"},
    "pixel-length": {"Rows": 97},
    "pixel-format": {"BitsStored": 12, "HighBit": 3},
    "header": {"NumberOfFrames": "0"},
    "too-large": {"Rows": 65535, "Columns": 65535},
}


@pytest.mark.parametrize(("reason", "changes"), REFUSED.items())
def test_what_cannot_be_coded_says_why(reason: str, changes: dict[str, object]) -> None:
    data = image([noisy()], **changes)
    with pytest.raises(Unsupported) as caught:
        open_pixels(read_object(data))
    assert caught.value.reason == reason


PASSED_THROUGH = {
    "liver_1frame.dcm": "bits-allocated",
    "rtdose.dcm": "bits-allocated",
    "rtplan.dcm": "no-pixels",
    "image_dfl.dcm": "deflated",
    "JPEG2000.dcm": "lossy-source",
    "SC_rgb_jpeg_dcmtk.dcm": "lossy-source",
    "JPEGLSNearLossless_16.dcm": "lossy-source",
    "SC_ybr_full_422_uncompressed.dcm": "subsampled",
    "MR_truncated.dcm": "pixel-length",
}


@pytest.mark.parametrize(("name", "reason"), PASSED_THROUGH.items())
def test_packaged_files_that_are_passed_through(name: str, reason: str) -> None:
    with pytest.raises(PalimpsestError) as caught:
        open_pixels(read_object(packaged(name)))
    assert caught.value.reason in (reason, "truncated")


def test_a_huge_declared_frame_allocates_nothing() -> None:
    data = image([noisy(8, 8)], Rows=65535, Columns=8000, NumberOfFrames="1")
    with pytest.raises(Unsupported):
        open_pixels(read_object(data))


def test_native_pixels_under_a_compressed_syntax_are_refused() -> None:
    data = image([noisy(8, 8)]).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    with pytest.raises(Unsupported) as caught:
        read_object(data)
    assert caught.value.reason == "pixel-encoding"


def test_an_object_without_pixels() -> None:
    with pytest.raises(Unsupported) as caught:
        read_object(save(header()))
    assert caught.value.reason == "no-pixels"


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 4000), at=st.integers(0, 4000), value=st.integers(0, 255))
def test_damaged_files_give_typed_refusals(cut: int, at: int, value: int) -> None:
    data = bytearray(image([noisy(16, 16)]))
    data[at % len(data)] = value
    with contextlib.suppress(InvalidInstance, Unsupported):
        open_pixels(read_object(bytes(data[: len(data) - cut % len(data)])))


STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.sampled_from((Op.COPY, Op.SKIP, Op.PIXELS)), st.integers(0, 2**40)),
        st.binary(max_size=40).map(lambda data: Step(Op.INSERT, len(data), data)),
    ),
    max_size=12,
)


@given(STEPS, st.binary(max_size=8))
def test_plans_survive_packing(steps: list[Step], rest: bytes) -> None:
    packed = pack_plan(steps)
    assert unpack_plan(packed + rest) == (tuple(steps), len(packed))


@given(st.binary(max_size=80))
def test_any_bytes_as_a_plan_give_a_plan_or_a_typed_error(data: bytes) -> None:
    try:
        steps, used = unpack_plan(data)
    except IntegrityError:
        return
    assert pack_plan(steps) == data[:used]


def test_a_plan_must_use_up_both_streams() -> None:
    steps = (Step(Op.COPY, 2), Step(Op.PIXELS, 1), Step(Op.SKIP, 1), Step(Op.INSERT, 1, b"!"))
    assert carry_out(steps, memoryview(b"abc"), memoryview(b"P")) == b"abP!"
    for nonpixel, pixels in ((b"abcd", b"P"), (b"ab", b"P"), (b"abc", b"PQ"), (b"abc", b"")):
        with pytest.raises(IntegrityError):
            carry_out(steps, memoryview(nonpixel), memoryview(pixels))
