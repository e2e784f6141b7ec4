"""Rendered frames: grey levels computed by hand, every photometric interpretation, typed refusals."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gateway.errors import InvalidInstance, NotFound, Unsupported
from gateway.rendering import Rendering
from tests.object_makers import BIG, compressed, header, image, packaged, save
from worker.render import render

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def shown(data: bytes, frame: int = 1, image_format: str = "png") -> np.ndarray:
    picture = Image.open(io.BytesIO(render(io.BytesIO(data), Rendering(image_format, frame))))
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
        render(io.BytesIO(data), Rendering("png", frame))
    assert caught.value.reason == reason  # type: ignore[attr-defined]


def test_only_png_and_jpeg() -> None:
    with pytest.raises(Unsupported):
        render(io.BytesIO(image([RAMP])), Rendering("tiff"))


# --- parameters of PS3.18 8.3.5 ---


def drawn(data: bytes, query: dict[str, str], image_format: str = "png") -> Image.Image:
    how = Rendering.of_query(image_format, 1, query)
    assert Rendering.parse(how.kind()) == how
    return Image.open(io.BytesIO(render(io.BytesIO(data), how)))


def test_a_window_of_the_query_wins_over_that_of_the_header() -> None:
    data = image([RAMP], stored=12, WindowCenter="5", WindowWidth="10", RescaleSlope="1", RescaleIntercept="-1024")
    hounsfield = RAMP.astype(float) - 1024
    expected = {
        "linear": np.clip((hounsfield + 0.5 - 100) / 199 * 255 + 127.5, 0, 255),
        "linear-exact": np.clip((hounsfield - 100) / 200 * 255 + 127.5, 0, 255),
        "sigmoid": 255 / (1 + np.exp(-4 * (hounsfield - 100) / 200)),
    }
    for function, values in expected.items():
        found = np.asarray(drawn(data, {"window": f"100,200,{function}"})).astype(float)
        assert np.abs(found - values).max() <= 0.51, function
    dark = np.asarray(drawn(image([RAMP], stored=12), {"window": "4000,10,linear"}))
    assert np.array_equal(dark, np.where(RAMP > 4000, 255, 0) * (RAMP > 3995)) or dark.mean() < 30


def test_viewport_scales_cuts_and_mirrors_in_proportion() -> None:
    steps = np.repeat(
        np.repeat(np.arange(0, 256, 32, dtype=np.uint16).reshape(1, 8), 4, 0), 4, 1
    )  # 4 x 32, 8 grey bars
    data = image([steps], stored=8, WindowCenter="128", WindowWidth="256")
    assert drawn(data, {"viewport": "64,64"}).size == (64, 8)
    assert drawn(data, {"viewport": "16,1"}).size == (8, 1)
    plain = np.asarray(drawn(data, {"viewport": "8,4,8,0,8,4"}))
    assert np.array_equal(plain, np.asarray(drawn(data, {}))[:, 8:16])
    assert np.array_equal(np.asarray(drawn(data, {"viewport": "8,4,8,0,-8,-4"})), plain[::-1, ::-1])
    with pytest.raises(InvalidInstance) as caught:
        drawn(data, {"viewport": "8,4,32,0,8,4"})
    assert caught.value.reason == "bad-viewport"


def test_quality_annotation_and_colour_profile() -> None:
    data = packaged("examples_rgb_color.dcm")
    sizes = [len(render(io.BytesIO(data), Rendering("jpeg", quality=quality))) for quality in (10, 90)]
    assert sizes[0] < sizes[1] / 2
    plain = drawn(data, {})
    assert "icc_profile" not in plain.info
    for value in ("yes", "srgb"):
        assert b"acsp" in drawn(data, {"iccprofile": value}).info["icc_profile"]
    marked = np.asarray(drawn(data, {"annotation": "patient"})) != np.asarray(plain)
    assert marked[: len(marked) // 2].any() and not marked[len(marked) // 2 :].any()
    assert drawn(data, {}, "gif").format == "GIF"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", "0"), ("quality", "101"), ("quality", "x"), ("quality", "1,2"), ("window", "1,2"),
        ("window", "1,0,linear"), ("window", "nan,2,linear"), ("window", "1,2,cubic"), ("viewport", "0,10"),
        ("viewport", "9000,10"), ("viewport", "1.5,10"), ("viewport", "1,2,3"), ("viewport", "1,2,-3,0,1,1"),
        ("annotation", "everything"), ("iccprofile", "adobergb"),
    ],
)  # fmt: skip
def test_parameters_that_are_none(name: str, value: str) -> None:
    with pytest.raises(InvalidInstance) as caught:
        Rendering.of_query("png", 1, {name: value})
    assert caught.value.reason == "bad-parameter" and name in caught.value.message
