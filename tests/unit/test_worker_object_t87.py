"""The own JPEG-LS decoder against CharLS's encoder, which shares no code with it."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.jpegls_t87 import JpegLSError, decode, read_header


def frame(rows: int, columns: int, samples: int, bits: int, kind: str, seed: int) -> np.ndarray:
    """Random, flat, sparse or smooth samples of at most `bits` bits."""
    rng = np.random.default_rng(seed)
    shape, top = (rows, columns, samples), (1 << bits) - 1
    slope = np.add.outer(np.arange(rows) * 3, np.arange(columns) * 5)[..., None] * np.arange(1, samples + 1)
    made = {
        "random": lambda: rng.integers(0, top + 1, shape),
        "flat": lambda: np.full(shape, top // 2),
        "sparse": lambda: np.where(rng.random(shape) < 0.05, rng.integers(0, top + 1, shape), top // 3),
        "smooth": lambda: (slope + rng.integers(0, 3, shape)) % (top + 1),
    }[kind]()
    return np.ascontiguousarray(made.astype(np.uint8 if bits <= 8 else np.uint16))


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    samples=st.sampled_from((1, 3)),
    bits=st.integers(1, 16),
    kind=st.sampled_from(("random", "flat", "sparse", "smooth")),
    seed=st.integers(0, 2**32 - 1),
)
def test_decodes_what_charls_encodes(rows: int, columns: int, samples: int, bits: int, kind: str, seed: int) -> None:
    made = frame(rows, columns, samples, bits, kind, seed)
    room = bytearray(made.nbytes * 4 + 4096)  # the library's own estimate is too small for noise
    stream = bytes(imagecodecs.jpegls_encode(made if samples == 3 else made[..., 0], out=room))
    found = decode(stream)
    assert found.shape == made.shape
    assert np.array_equal(found, made)


def test_refuses_near_lossless() -> None:
    stream = bytes(imagecodecs.jpegls_encode(frame(16, 16, 1, 8, "random", 1)[..., 0], level=2))
    assert read_header(stream).scans[0].near == 2
    with pytest.raises(JpegLSError):
        decode(stream)


def test_every_truncation_is_refused() -> None:
    stream = bytes(imagecodecs.jpegls_encode(frame(24, 24, 1, 12, "random", 2)[..., 0]))
    for end in range(0, len(stream) - 8, 7):
        with pytest.raises(JpegLSError):
            decode(stream[:end])


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255), seed=st.integers(0, 3))
def test_damage_is_an_error_or_an_image_of_the_declared_size(at: int, value: int, seed: int) -> None:
    stream = bytearray(imagecodecs.jpegls_encode(frame(12, 12, 1, 8, "sparse", seed)[..., 0]))
    stream[at % len(stream)] = value
    try:
        header = read_header(bytes(stream))
        if header.rows * header.columns * header.samples < 1 << 20:
            assert decode(bytes(stream)).shape == (header.rows, header.columns, header.samples)
    except JpegLSError:
        pass


def test_thresholds_of_the_standard() -> None:
    """Table C.3 gives T1 = 3, T2 = 7, T3 = 21 for 8 bits and 18, 67, 276 for 12 bits and more."""
    from worker.jpegls_t87 import thresholds

    none = (0, 0, 0, 0, 0)
    assert thresholds(255, none) == (3, 7, 21, 64)
    assert thresholds(4095, none) == thresholds(65535, none) == (18, 67, 276, 64)
