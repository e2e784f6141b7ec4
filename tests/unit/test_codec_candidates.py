"""The estimate of when standard codecs are tried: odd kinds of images are odd, natural ones are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import frame
from codec.candidates import has_comb, is_odd, looks_odd, packing_may_win, repeats
from codec.frame import ALL_CODERS, encode_frame
from codec.pixelformat import PixelFormat
from codec.standard import STANDARD
from tests.unit.codec_images import noise, picture, stored
from tests.unit.codec_networks import known, weight_file

FMT = PixelFormat(128, 160, 1, 16, 12, 11, False)


def natural(grain: int = 20) -> NDArray[np.uint16]:
    return picture(FMT, 3, grain).astype(np.uint16)


def lengths(index: NDArray[np.uint16]) -> tuple[int, int]:
    """A learned coder's likely length on natural images (JPEG XL less some), and JPEG-LS's."""
    return int(0.95 * len(STANDARD["jxl"].encode(index, 7))), len(STANDARD["jpegls"].encode(index, 0))


def test_a_natural_frame_is_not_odd() -> None:
    index = natural()
    assert not looks_odd(index)
    assert not is_odd(index, *lengths(index), repeats(index, 4096))


def test_grey_written_as_colour_is_judged_as_grey() -> None:
    index = natural()
    shortest, jpegls = lengths(index)
    colour = np.stack([index] * 3, axis=-1)
    assert not looks_odd(colour)
    assert not is_odd(colour, shortest, 3 * jpegls, repeats(colour, 4096))


def test_colour_is_odd() -> None:
    index = natural()
    assert looks_odd(np.stack([index, index, index[::-1]], axis=-1))


def processed() -> NDArray[np.uint16]:
    """Coarse steps under an offset that varies slowly: 0, 1, 2, 3 by bands."""
    bands = np.arange(128)[:, None] // 16 + np.arange(160)[None, :] // 20
    return (natural() // 4 * 4 + bands % 4).astype(np.uint16)


def test_steps_under_a_slowly_varying_offset_are_a_comb() -> None:
    assert has_comb(processed()) and not looks_odd(processed())
    for index in (natural(), natural(200), natural() >> 4, np.stack([processed()] * 3, axis=-1)):
        assert not has_comb(index.astype(np.uint16))
    for shape in ((1, 1), (1, 300), (300, 1), (2, 2)):
        assert not has_comb(np.full(shape, 65535, np.uint16))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_comb_gets_full_effort_at_once_whatever_its_size(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    efforts, jxl = list[int](), STANDARD["jxl"]

    def encode(plane: NDArray[np.uint16], effort: int) -> bytes:
        efforts.append(effort)
        return jxl.encode(plane, effort)

    monkeypatch.setitem(STANDARD, "jxl", replace(jxl, encode=encode))
    monkeypatch.setattr(frame, "is_odd", lambda *_: False)
    monkeypatch.setattr(frame, "STRAIGHT_SAMPLES", 0)
    with known(weight_file()):
        assert "jxl" not in encode_frame(stored(natural().astype(np.int32), FMT), FMT, threads=threads).lengths
        assert "jxl" in encode_frame(stored(processed().astype(np.int32), FMT), FMT, threads=threads).lengths
    assert efforts == [frame.FULL_EFFORT]


def test_what_the_network_does_not_understand_is_odd() -> None:
    index = natural()
    _, jpegls = lengths(index)
    assert is_odd(index, jpegls, jpegls, repeats(index, 4096))
    assert not is_odd(index, jpegls, None, repeats(index, 4096))


def test_a_picture_beside_a_drawing_is_odd() -> None:
    index = natural()
    glyphs = np.repeat(np.repeat(noise(32 * 20, 9).reshape(32, 20) & 1, 4, 0), 4, 1)
    index[:, :80] = glyphs * 4095
    assert looks_odd(index)


def test_few_levels_alone_are_not_odd() -> None:
    grainy = (natural(200) >> 4).astype(np.uint16)
    assert not looks_odd(grainy)
    assert not is_odd(grainy, grainy.size // 3, grainy.size, repeats(grainy, 256))


def test_label_maps_are_odd_whatever_their_levels() -> None:
    index = np.repeat(np.repeat(np.arange(80, dtype=np.uint16).reshape(8, 10) * 37, 16, 0), 16, 1)
    assert looks_odd(index)


def test_magnified_pixels_are_odd() -> None:
    index = np.repeat(np.repeat(natural()[:64, :80], 2, 0), 2, 1)
    assert looks_odd(index)


def test_a_gradient_is_odd() -> None:
    y, x = np.mgrid[:128, :160]
    index = (3 * y + 7 * x).astype(np.uint16)
    assert is_odd(index, 100, 5000, repeats(index, 1600))


def test_repeated_noise_is_odd() -> None:
    part = noise(160 * 16, 5).reshape(16, 160).astype(np.uint16)
    index = np.tile(part, (8, 1))
    assert is_odd(index, 2 * index.size, 2 * index.size + 1000, repeats(index, 1 << 16))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 70000)])
def test_any_shape(shape: tuple[int, int]) -> None:
    index = np.zeros(shape, np.uint16)
    assert is_odd(index, 65, 60, repeats(index, 1))
    assert not is_odd(index, 60, 60, repeats(index, 1))  # nothing gains more than it may


def test_packing() -> None:
    assert packing_may_win(1000, 256, 1000)
    assert packing_may_win(1000, 200, 990)
    assert not packing_may_win(1000, 256, 900)
    assert not packing_may_win(1000, 1 << 16, 1000)
    assert packing_may_win(1000, 1, 30)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_race_asks_the_estimate(odd: bool, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = PixelFormat(24, 32, samples, 16, 12, 11, False)
    words = stored(picture(fmt, 3, 20), fmt)
    monkeypatch.setattr(frame, "is_odd", lambda *_: odd)
    monkeypatch.setattr(frame, "looks_odd", lambda *_: False)
    monkeypatch.setattr(frame, "packing_may_win", lambda *_: False)
    with known(weight_file()):
        tried = set(encode_frame(words, fmt).lengths)
        everything = set(encode_frame(words, fmt, profile="max").lengths)
    assert tried == {"learned"} | ({"jpegls"} if samples == 1 else set()) | ({"jxl", "htj2k"} if odd else set())
    assert everything == set(ALL_CODERS)


def test_profile_fast_leaves_out_full_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = PixelFormat(24, 32, 1, 16, 12, 11, False)
    words, efforts = stored(picture(fmt, 3, 20), fmt), list[int]()
    jxl = STANDARD["jxl"]

    def encode(plane: NDArray[np.uint16], effort: int) -> bytes:
        efforts.append(effort)
        return jxl.encode(plane, effort)

    monkeypatch.setitem(STANDARD, "jxl", replace(jxl, encode=encode))
    monkeypatch.setattr(frame, "is_odd", lambda *_: True)
    with known(weight_file()):  # random weights: JPEG XL is far shorter
        encode_frame(words, fmt, profile="fast")
        assert efforts == [7]
        encode_frame(words, fmt)
        assert efforts == [7, 9]
        encode_frame(words, fmt, profile="max")
    assert efforts[:3] == [7, 9, 7]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("profile", ["fast", "default"])
def test_threads_change_no_byte(samples: int, profile: str) -> None:
    fmt = PixelFormat(48, 64, samples, 16, 12, 11, False)
    natural = stored(picture(fmt, 3, 20), fmt)
    drawing = np.repeat(np.repeat(natural[:24, :32], 2, 0), 2, 1)
    with known(weight_file()):
        for words in (natural, drawing, np.zeros_like(natural)):
            one, two = (encode_frame(words, fmt, profile=profile, threads=threads) for threads in (1, 2))
            assert one.blob == two.blob
            assert one.lengths == two.lengths
