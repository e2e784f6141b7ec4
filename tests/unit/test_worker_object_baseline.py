"""The bench's JPEG-LS encoder: CharLS and the own decoder read its streams, and it is shorter where bits are unused."""

from __future__ import annotations

import imagecodecs
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.object_makers import noisy
from worker.jpegls_baseline import encode_jpegls
from worker.jpegls_t87 import decode, read_header


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 40),
    samples=st.sampled_from((1, 3)),
    bits=st.integers(1, 16),
    share=st.sampled_from((0.0, 0.05, 1.0)),
    seed=st.integers(0, 2**32 - 1),
)
def test_two_decoders_read_it(rows: int, columns: int, samples: int, bits: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 1 << bits, (rows, columns, samples))
    plane = np.where(rng.random(noise.shape) < share, noise, (1 << bits) // 3)
    plane = plane.astype(np.uint8 if bits <= 8 else np.uint16)
    stream = encode_jpegls(plane)
    assert np.array_equal(decode(stream), plane)
    assert np.array_equal(np.asarray(imagecodecs.jpegls_decode(stream)).reshape(plane.shape), plane)


def test_it_declares_the_bits_in_use_and_is_shorter_for_it() -> None:
    plane = (noisy(200, 200, noise=6) & 1023).astype(np.uint16)
    stream = encode_jpegls(plane)
    assert read_header(stream).precision == 10
    assert len(stream) < len(imagecodecs.jpegls_encode(plane))
