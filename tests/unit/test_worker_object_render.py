"""Rendered frames: grey levels computed by hand, every photometric interpretation, typed refusals."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gateway.errors import InvalidInstance, NotFound, Unsupported
from tests.object_makers import BIG, compressed, header, image, packaged, save
from worker.render import render

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def shown(data: bytes, frame: int = 1, image_format: str = "png") -> np.ndarray:
    picture = Image.open(io.BytesIO(render(data, frame, image_format)))
    assert picture.format == image_format.upper()
    return np.asarray(picture)


def test_without_a_window_the_range_is_used() -> None:
    found = shown(image([RAMP], stored=12))
    assert found.dtype == np.uint8
    assert (found.min(), found.max()) == (0, 255)
    assert found[0, 1] == round(16 * 255 / 4080)


def test_window_after_modality_lut() -> None:
    """C = 0, W = 101: black at -50.5, white at 49.5 after x - 1024 (PS3.3 C.11.2.1.2.1)."""
    changes = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "WindowCenter": "0", "WindowWidth": "101"}
    found = shown(image([RAMP], stored=12, **changes))
    hounsfield = RAMP.astype(int) - 1024
    expected = np.clip(np.floor((hounsfield + 50.5) * 2.55 + 0.5), 0, 255)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", BIG])
def test_monochrome1_is_inverted(syntax: str) -> None:
    plain = shown(image([RAMP], stored=12, syntax=syntax))
    inverted = shown(image([RAMP], stored=12, syntax=syntax, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - plain)


def test_signed_values_and_frames() -> None:
    first = (RAMP.astype(np.int32) - 2048).astype(np.int16).view(np.uint16)
    data = image([first, first[::-1].copy()], stored=16, PixelRepresentation=1)
    assert shown(data)[0, 0] == 0
    assert np.array_equal(shown(data, 2), shown(data, 1)[::-1])


def test_padding_does_not_set_the_range() -> None:
    words = RAMP.copy()
    words[0, 0] = 65535
    data = image([words], stored=16, PixelPaddingValue=65535)
    assert shown(data)[-1, -1] == 255


def test_colour() -> None:
    words = np.random.default_rng(1).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    for planar in (0, 1):
        assert np.array_equal(shown(image([words], planar=planar, vr="OB")), words)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "examples_palette.dcm",
        "examples_ybr_color.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "rtdose.dcm",
        "liver_1frame.dcm",
    ],
)
def test_packaged_files_are_drawn(name: str) -> None:
    found = shown(packaged(name))
    assert found.max() > found.min()
    assert shown(packaged(name), 1, "jpeg").shape == found.shape


def test_what_pydicom_cannot_decode_our_reader_can() -> None:
    import imagecodecs

    words = RAMP.astype(np.uint16)
    stream = bytes(imagecodecs.htj2k_encode(words, reversible=True))
    data = compressed([words], [stream], syntax="1.2.840.10008.1.2.4.201", stored=16)
    assert np.array_equal(shown(data), shown(image([words], stored=16)))


@pytest.mark.parametrize(
    ("data", "frame", "error", "reason"),
    [
        (save(header()), 1, Unsupported, "no-pixels"),
        (image([RAMP]), 2, NotFound, "no-such-frame"),
        (image([RAMP], Rows=65535, Columns=65535), 1, Unsupported, "too-large"),
        (image([RAMP], Rows=400), 1, Unsupported, "not-renderable"),
        (b"not dicom", 1, InvalidInstance, "unreadable"),
    ],
    ids=["no pixels", "frame", "large", "short", "not dicom"],
)
def test_refusals(data: bytes, frame: int, error: type[Exception], reason: str) -> None:
    with pytest.raises(error) as caught:
        render(data, frame, "png")
    assert caught.value.reason == reason  # type: ignore[attr-defined]


def test_only_png_and_jpeg() -> None:
    with pytest.raises(Unsupported):
        render(image([RAMP]), 1, "gif")
